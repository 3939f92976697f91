//! One answer of a provider: from the cache, from a call under way, or from a call of its own.
//!
//! A room of its own because unified sessions, lists and (later) native reads all need an answer in
//! the same way. The coalesced part reads as a column in `call`: breaker → tap → upstream → judge →
//! map → store. What clients see of an answer is made elsewhere.

use crate::cache::{Cache, Entry, Key, KeyParts, Kind};
use crate::conditional::{self, Directives};
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::exchange::{ProviderReply, ProviderRequest};
use crate::flight::{Flights, Joined, Landing, landed};
use crate::freshness::{self, UpstreamLimit};
use crate::metrics::Metrics;
use crate::model::{Show, Time, View};
use crate::purge::{Mode, Scope, Subject};
use crate::reading::Operation;
use crate::runtime;
use crate::runtime::snapshot::{Access, Provider, Snapshot};
use crate::template::Values;
use crate::trace::{CacheStatus, How, Stored, Times, Trace};
use crate::upstream::Upstream;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a call ended, for everyone who waited for it.
type Landed = Result<(Arc<Entry>, Stored), Box<Problem>>;

/// What all requests share.
pub struct Shared {
    /// Every number told to Prometheus.
    pub metrics: Metrics,
    /// What providers answered.
    pub cache: Cache,
    /// Connections to providers.
    pub upstream: Upstream,
    flights: Flights<Key, Landed>,
}

impl Shared {
    /// An empty cache of this size, and no connection yet.
    #[must_use]
    pub fn new(metrics: Metrics, max_bytes: u64) -> Self {
        let cache = Cache::new(max_bytes, metrics.cache.clone());
        Self { metrics, cache, upstream: Upstream::default(), flights: Flights::default() }
    }

    /// Purges what the scope touches; how many entries that were. Calls under way answer those who
    /// wait for them, and nobody who comes later.
    pub fn purge(&self, scope: &Scope, mode: Mode, now: Time) -> u64 {
        let touched = self.cache.purge(scope, mode, now);
        self.flights.detach();
        touched
    }
}

/// A question to a provider on behalf of a client, and the place of its answer in the cache.
#[derive(Clone)]
pub struct Question {
    snapshot: Arc<Snapshot>,
    provider: usize,
    client: usize,
    list: bool,
    path_and_query: String,
    key: Key,
    subject: Subject,
}

impl Question {
    /// The question that `values` make of an operation.
    ///
    /// # Errors
    /// 403 where the client may not use the provider.
    pub fn new(
        snapshot: &Arc<Snapshot>,
        client: usize,
        provider: usize,
        list: bool,
        values: &Values<'_>,
    ) -> Outcome<Self> {
        let asked = &snapshot.providers[provider];
        let access = permitted(snapshot, client, provider)?;
        let operation = operation(asked, list)?;
        let path_and_query = operation.template.render(values);
        let key = Key::of(KeyParts {
            provider: &asked.name,
            credential: &access.credential.identity,
            operation: operation.name,
            path_and_query: &path_and_query,
        });
        let subject = Subject {
            provider: asked.name.clone(),
            credential: access.credential.identity.clone(),
            agent: values.agent.map(Into::into),
            session: values.session.map(Into::into),
        };
        Ok(Self { snapshot: snapshot.clone(), provider, client, list, path_and_query, key, subject })
    }

    /// The provider asked.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.snapshot.providers[self.provider]
    }

    fn access(&self) -> Outcome<&Access> {
        permitted(&self.snapshot, self.client, self.provider)
    }

    fn operation(&self) -> Outcome<&Operation> {
        operation(self.provider(), self.list)
    }
}

/// What a client may use of a provider.
///
/// # Errors
/// 403 where it may not.
pub fn permitted(snapshot: &Snapshot, client: usize, provider: usize) -> Outcome<&Access> {
    snapshot.clients[client].access[provider].as_ref().ok_or_else(|| {
        let (client, provider) = (&snapshot.clients[client].id, &snapshot.providers[provider].name);
        let detail = format!("client {client:?} may not use {provider}; its providers are listed in clients.yaml");
        Box::new(Problem::new(Code::Forbidden, detail).of(provider))
    })
}

fn operation(provider: &Provider, list: bool) -> Outcome<&Operation> {
    let operation = if list { &provider.list_sessions } else { &provider.get_session };
    operation
        .as_ref()
        .ok_or_else(|| Box::new(Problem::invalid(format!("{} is not configured for this", provider.name))))
}

/// What the cache has for a question, and what the client's directives make of it.
pub struct Looked {
    entry: Option<Arc<Entry>>,
    serve: Option<How>,
    directives: Directives,
}

impl Looked {
    /// Whether it can be answered without the provider.
    #[must_use]
    pub fn is_hit(&self) -> bool {
        self.serve.is_some()
    }
}

/// An answer and how it came.
pub struct Served {
    /// The answer.
    pub entry: Arc<Entry>,
    /// How it came.
    pub status: CacheStatus,
}

/// Looks a question up. Entries that other rules made are made anew from their body.
#[must_use]
pub fn look(shared: &Shared, question: &Question, directives: Directives, now: Time) -> Looked {
    let entry = shared.cache.look(&question.key).and_then(|entry| current(shared, question, entry, now));
    let serve = entry.as_ref().and_then(|entry| servable(entry, &directives, now));
    Looked { entry, serve, directives }
}

/// Whether an entry may be served as it is (RFC 9111, sections 4.2 and 5.2.1).
fn servable(entry: &Entry, directives: &Directives, now: Time) -> Option<How> {
    let life = &entry.life;
    let age = now.since(life.stored_at);
    if directives.no_cache || directives.max_age.is_some_and(|max| age > max) {
        return None;
    }
    let left = life.fresh_until.since(now);
    if !left.is_zero() {
        return directives.min_fresh.is_none_or(|min| left >= min).then_some(How::Hit);
    }
    let staleness = now.since(life.fresh_until);
    if now >= life.last() {
        return None;
    }
    if directives.max_stale.is_some_and(|max| max.is_none_or(|max| staleness <= max)) {
        return Some(How::Stale("max-stale"));
    }
    (now < life.revalidate_until).then_some(How::Stale("stale-while-revalidate"))
}

/// The entry, if its rules are in force; else one made anew from its body, if they can.
fn current(shared: &Shared, question: &Question, entry: Arc<Entry>, now: Time) -> Option<Arc<Entry>> {
    if entry.rules == question.provider().rules || matches!(entry.kind, Kind::NotFound(_)) {
        return Some(entry);
    }
    let (mut made, _) = entry_of(question, entry.body.clone(), entry.upstream, entry.life.stored_at).ok()?;
    if let Some(since) = entry.stale_from {
        made.life.fresh_until = made.life.fresh_until.min(since);
        made.stale_from = Some(since);
    }
    let made = Arc::new(made);
    shared.cache.replace(question.key.clone(), &entry, made.clone(), now);
    Some(made)
}

/// Answers a question: from what was looked up if that will do, else from the provider, else from
/// what is stale if the provider fails.
///
/// # Errors
/// The provider's failure, or 504 `not_cached`.
pub async fn obtain(shared: &Arc<Shared>, question: &Question, looked: Looked, trace: &mut Trace) -> Outcome<Served> {
    if let (Some(entry), Some(how)) = (&looked.entry, looked.serve) {
        if matches!(how, How::Stale("stale-while-revalidate")) && !looked.directives.only_if_cached {
            refresh(shared, question);
        }
        return Ok(served(shared, question, entry.clone(), how));
    }
    if looked.directives.only_if_cached {
        return Err(Box::new(Problem::new(Code::NotCached, "nothing fresh is stored, and only-if-cached was sent")));
    }
    #[allow(clippy::disallowed_methods)] // how long a caller waits is told to its trace
    let asked = Instant::now();
    let (result, collapsed) = ask(shared, question, &looked.directives).await;
    trace.waited += asked.elapsed();
    // Read after the wait: a stale answer must not outlive its last moment meanwhile.
    let now = runtime::now();
    let how = |stored| match (collapsed, looked.directives.no_cache || looked.directives.no_store) {
        (true, _) => How::Collapsed(stored),
        (false, true) => How::Requested(stored),
        (false, false) => How::Miss(stored),
    };
    match (result, looked.entry) {
        (Ok((entry, stored)), _) => Ok(served(shared, question, entry, how(stored))),
        (Err(problem), Some(stale)) if problem.code.allows_stale() && now < stale.life.error_until => {
            let how = match (problem.code, problem.provider_status) {
                (Code::ProviderUnavailable | Code::ProviderRateLimited, None) => How::Stale("stale-if-error"),
                (_, status) => How::StaleOnError { status },
            };
            Ok(served(shared, question, stale, how))
        }
        (Err(problem), _) => {
            let failed = How::Miss(Stored::Failed(problem.provider_status));
            trace.cache = Some(CacheStatus { how: failed, times: None });
            count(shared, &question.provider().name, trace.cache.as_ref());
            Err(problem)
        }
    }
}

fn served(shared: &Shared, question: &Question, entry: Arc<Entry>, how: How) -> Served {
    let life = &entry.life;
    let times = Times { stored_at: life.stored_at, fresh_until: life.fresh_until, source: life.source };
    let status = CacheStatus { how, times: Some(times) };
    count(shared, &question.provider().name, Some(&status));
    Served { entry, status }
}

fn count(shared: &Shared, provider: &str, status: Option<&CacheStatus>) {
    let Some(status) = status else { return };
    let cache = &shared.metrics.cache;
    cache.requests.with_label_values(&[provider, status.label()]).inc();
    if let label @ ("hit" | "collapsed" | "stale") = status.label()
        && !matches!(status.how, How::StaleOnError { .. })
    {
        cache.saved.with_label_values(&[provider, label]).inc();
    }
}

/// Joins the call under way for this key or starts one. The flag says that it was another's.
async fn ask(shared: &Arc<Shared>, question: &Question, directives: &Directives) -> (Landed, bool) {
    if directives.no_store {
        // What may not be stored may not be shared either.
        return (call(shared, question, false).await, false);
    }
    let fresh = || {
        let entry = shared.cache.look(&question.key)?;
        let fresh =
            entry.rules == question.provider().rules && servable(&entry, directives, runtime::now()) == Some(How::Hit);
        fresh.then_some(Ok((entry, Stored::Yes)))
    };
    let (receiver, collapsed) = match shared.flights.join(&question.key, fresh) {
        Joined::Found(found) => return (found, true),
        Joined::Waiting(receiver) => (receiver, true),
        Joined::Leading(landing, receiver) => {
            launch(shared, question, landing);
            (receiver, false)
        }
    };
    let lost = || Err(Box::new(Problem::new(Code::InternalError, "the call to the provider ended without a result")));
    (landed(receiver).await.unwrap_or_else(lost), collapsed)
}

/// Refreshes behind the answer, unless a call for this key is under way already.
fn refresh(shared: &Arc<Shared>, question: &Question) {
    if let Joined::Leading(landing, _) = shared.flights.join(&question.key, || None) {
        launch(shared, question, landing);
    }
}

/// Runs the call apart from every caller. It ends by its own deadline, and whoever waits for it is
/// in flight itself, so nothing else needs to wait for this task.
#[allow(clippy::disallowed_methods)]
fn launch(shared: &Arc<Shared>, question: &Question, landing: Landing<Key, Landed>) {
    let (shared, question) = (shared.clone(), question.clone());
    tokio::spawn(async move {
        let result = call(&shared, &question, true).await;
        landing.land(result);
    });
}

/// One call to a provider, from the breaker to the cache.
async fn call(shared: &Shared, question: &Question, store: bool) -> Landed {
    let (provider, access, epoch) = (question.provider(), question.access()?, shared.cache.epoch());
    let reply = ask_provider(shared, question, access).await;
    let now = runtime::now();
    let judged = reply.and_then(|reply| judge(shared, question, reply, now));
    match judged {
        Ok((entry, forbidden)) => {
            provider.breaker.record(true, now);
            let entry = Arc::new(entry);
            let no_time = (entry.life.last() <= now).then_some("no-lifetime");
            let not_wanted = (!store).then_some("request-no-store");
            let stored = match forbidden.or(not_wanted).or(no_time) {
                Some(reason) => Stored::No(reason),
                None => {
                    let ttl =
                        shared.metrics.cache.ttl.with_label_values(&[&*provider.name, entry.life.source.as_str()]);
                    ttl.observe(entry.life.total().as_secs_f64());
                    shared.cache.store(question.key.clone(), entry.clone(), epoch, now);
                    Stored::Yes
                }
            };
            Ok((entry, stored))
        }
        Err(problem) => {
            if let Some(seconds) = problem.retry_after.filter(|_| problem.provider_status.is_some()) {
                access.tap.close(now.plus(Duration::from_secs(seconds)));
            }
            let asked = problem.code != Code::ProviderUnavailable
                && (problem.code != Code::ProviderRateLimited || problem.provider_status.is_some());
            // Throttling and refusals are answers: the provider is up.
            let failed =
                matches!(problem.code, Code::ProviderError | Code::ProviderTimeout | Code::ProviderInvalidResponse);
            if asked {
                provider.breaker.record(!failed, now);
            }
            Err(problem)
        }
    }
}

/// Breaker → tap → upstream.
async fn ask_provider(shared: &Shared, question: &Question, access: &Access) -> Outcome<ProviderReply> {
    let (provider, operation, now) = (question.provider(), question.operation()?, runtime::now());
    let name = &provider.name;
    let wait = |code, detail: String, ms: u64| Box::new(Problem::new(code, detail).of(name).retry_after_ms(ms));
    let left = |until: Time| u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
    if let Some(until) = access.tap.closed_until(now) {
        return Err(wait(Code::ProviderRateLimited, format!("{name} asked for a pause, which lasts"), left(until)));
    }
    provider.breaker.admit(now).map_err(|until| {
        wait(Code::ProviderUnavailable, format!("{name} failed repeatedly; it is not asked for a while"), left(until))
    })?;
    // Half of the deadline for the turn leaves half for the answer.
    let latest = tokio::time::Instant::now() + provider.target.timeout / 2;
    let _turn = access.tap.turn(latest).await.map_err(|wait_for| {
        let ms = u64::try_from(wait_for.0.as_millis()).unwrap_or(u64::MAX);
        wait(Code::ProviderRateLimited, format!("Weir's capacity for {name} is used up"), ms)
    })?;
    let request = ProviderRequest {
        path_and_query: question.path_and_query.clone(),
        credential: access.credential.header.clone(),
    };
    let metrics = &shared.metrics.upstream;
    let timer = metrics.duration.with_label_values(&[&**name, operation.name]).start_timer();
    let reply = shared.upstream.get(&provider.target, &request).await;
    timer.observe_duration();
    let status = match &reply {
        Ok(reply) => reply.status.to_string(),
        Err(failure) => failure.kind.as_str().to_owned(),
    };
    metrics.requests.with_label_values(&[name, operation.name, &status]).inc();
    reply.map_err(|failure| Box::new(provider.errors.judge_failure(&failure)))
}

/// Judge → map. The text says why the answer may not be stored, if it may not.
fn judge(
    shared: &Shared,
    question: &Question,
    reply: ProviderReply,
    now: Time,
) -> Outcome<(Entry, Option<&'static str>)> {
    let provider = question.provider();
    if reply.status != 200 {
        let problem = provider.errors.judge(&reply, now);
        if !problem.code.is_not_found() {
            return Err(Box::new(problem));
        }
        let entry = Entry {
            subject: question.subject.clone(),
            stale_from: None,
            kind: Kind::NotFound(Box::new(problem)),
            body: reply.body,
            rules: provider.rules,
            life: freshness::of_not_found(&provider.freshness, now),
            upstream: UpstreamLimit::default(),
            views: Vec::new(),
        };
        return Ok((entry, None));
    }
    let said = conditional::directives(&reply.headers);
    let upstream =
        UpstreamLimit { max_age: said.max_age.map(|max_age| max_age.saturating_sub(conditional::age(&reply.headers))) };
    let (entry, misses) = entry_of(question, reply.body, upstream, now)?;
    let failures = &shared.metrics.upstream.mapping_failures;
    for (field, reason) in misses {
        failures.with_label_values(&[&*provider.name, &field, reason]).inc();
    }
    let forbidden = if said.no_store {
        Some("upstream-no-store")
    } else if said.no_cache {
        Some("upstream-no-cache")
    } else {
        None
    };
    Ok((entry, forbidden))
}

/// Fields that could not be taken: name and reason.
type Misses = Vec<(String, &'static str)>;

/// An entry from a body that came at `now`, with the view that most clients see.
fn entry_of(question: &Question, body: bytes::Bytes, upstream: UpstreamLimit, now: Time) -> Outcome<(Entry, Misses)> {
    let (provider, operation) = (question.provider(), question.operation()?);
    let (kind, life, view, misses) = {
        let native = parse(provider, &body)?;
        let reading = operation.read(&provider.name, &provider.mapping, &native, now)?;
        let life = match (&reading.page, reading.sessions.first()) {
            (None, Some(session)) => freshness::of_session(&provider.freshness, session, now, upstream),
            _ => freshness::of_list(&provider.freshness, &reading.sessions, now, upstream),
        };
        let kind = match &reading.page {
            None => Kind::Session,
            Some(page) => Kind::Page { next: page.next.clone(), total: page.total },
        };
        let view = reading.view(&provider.mapping, Show::default());
        let misses = reading.misses.iter().map(|miss| (miss.field.name(), miss.reason.as_str())).collect();
        (kind, life, view, misses)
    };
    let views = vec![(Show::default(), Arc::new(view))];
    let (subject, rules) = (question.subject.clone(), provider.rules);
    let entry = Entry { subject, kind, body, rules, life, stale_from: None, upstream, views };
    Ok((entry, misses))
}

fn parse(provider: &Provider, body: &[u8]) -> Outcome<Value> {
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "ends too early",
            _ => "is not JSON",
        };
        let detail = format!("{}: its body ({} bytes) {what}", provider.name, body.len());
        Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name))
    })
}

/// The view of an entry that shows this: made already, or made now from its body and kept with it.
///
/// # Errors
/// As when the body was first read; it was readable then.
pub fn view(shared: &Shared, question: &Question, entry: &Arc<Entry>, show: Show, now: Time) -> Outcome<Arc<View>> {
    if let Some(view) = entry.view(show) {
        return Ok(view.clone());
    }
    let provider = question.provider();
    let native = parse(provider, &entry.body)?;
    // Read as of when it came: a view made later must not tell another story.
    let reading = question.operation()?.read(&provider.name, &provider.mapping, &native, entry.life.stored_at)?;
    let view = Arc::new(reading.view(&provider.mapping, show));
    let mut views = entry.views.clone();
    views.push((show, view.clone()));
    let more = Entry {
        subject: entry.subject.clone(),
        stale_from: entry.stale_from,
        kind: entry.kind.clone(),
        body: entry.body.clone(),
        rules: entry.rules,
        life: entry.life,
        upstream: entry.upstream,
        views,
    };
    shared.cache.replace(question.key.clone(), entry, Arc::new(more), now);
    Ok(view)
}
