//! One call to a provider, from the breaker to the cache.
//!
//! A room of its own because this is the coalesced part: it runs once for any number of callers, and
//! reads as a column: breaker → tap → upstream → judge → map → store. It knows no caller.

use crate::cache::{Entry, Kind};
use crate::conditional;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{FailureKind, ProviderFailure, ProviderReply, ProviderRequest};
use crate::freshness::{self, UpstreamLimit};
use crate::json;
use crate::model::{Show, Time};
use crate::question::{Landed, Question, Shared};
use crate::reading::Unreadable;
use crate::runtime;
use crate::runtime::snapshot::{Access, Provider};
use crate::trace::Stored;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Why an answer was not stored, when the provider said so.
const NO_STORE: &str = "upstream-no-store";

/// One call to a provider, from the breaker to the cache.
///
/// # Errors
/// The provider's failure, or why it was not asked.
pub async fn call(shared: &Shared, question: &Question, store: bool) -> Landed {
    let _under_way = under_way(shared, question)?;
    let (provider, access, ticket) = (question.provider(), question.access()?, shared.cache.ticket());
    let known = shared.cache.look(&question.key).filter(|known| !known.conditions.is_empty());
    let reply = ask_provider(shared, question, access, known.as_deref()).await;
    let now = runtime::now();
    let judged = reply.and_then(|reply| judge(shared, question, reply, known.as_deref(), now));
    let (entry, forbidden) = judged?;
    let entry = Arc::new(entry);
    let no_time = (entry.life.last() <= now && !entry.ask_always).then_some("no-lifetime");
    let not_wanted = (!store).then_some("request-no-store");
    let stored = match forbidden.or(not_wanted).or(no_time) {
        Some(reason) => {
            // The client's wish concerns its own answer; what the provider says concerns what is stored.
            if not_wanted.is_none() {
                shared.cache.supersede(question.key.clone(), ticket);
            }
            Stored::No(reason)
        }
        None => {
            let ttl = shared.metrics.cache.ttl.with_label_values(&[&*provider.name, entry.life.source.as_str()]);
            ttl.observe(entry.life.total().as_secs_f64());
            shared.cache.store(question.key.clone(), entry.clone(), ticket, now);
            Stored::Yes
        }
    };
    Ok((entry, stored))
}

/// A call under way, counted until dropped.
struct UnderWay<'s>(&'s Shared);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.metrics.upstream.calls.dec();
    }
}

/// Counts a call in, if there is room. Requests in flight are bounded already; this bounds the calls that
/// nobody waits for any more: refreshes behind an answer, and those whose callers hung up.
fn under_way<'s>(shared: &'s Shared, question: &Question) -> Outcome<UnderWay<'s>> {
    let calls = &shared.metrics.upstream.calls;
    calls.inc();
    let counted = UnderWay(shared);
    let most = question.max_calls();
    if calls.get() <= most {
        return Ok(counted);
    }
    let detail = format!("{most} calls to providers are under way; more are not begun");
    Err(Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000)))
}

/// Breaker → tap → upstream.
async fn ask_provider(
    shared: &Shared,
    question: &Question,
    access: &Access,
    known: Option<&Entry>,
) -> Outcome<ProviderReply> {
    let (provider, operation) = (question.provider(), question.operation()?);
    let name = &provider.name;
    let deadline = tokio::time::Instant::now() + provider.target.timeout;
    let refuse = |reason, code, detail: String, wait: Duration| {
        shared.metrics.upstream.refused.with_label_values(&[&**name, reason]).inc();
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Box::new(Problem::new(code, detail).of(name).retry_after_ms(ms))
    };
    let paused = |now: Time| match access.tap.closed_until(now) {
        None => Ok(()),
        Some(until) => {
            let detail = format!("{name} asked for a pause, which lasts");
            Err(refuse("pause", Code::ProviderRateLimited, detail, until.since(now)))
        }
    };
    let broken = |until: Time, now: Time| {
        let detail = format!("{name} failed repeatedly; it is not asked for a while");
        refuse("breaker", Code::ProviderUnavailable, detail, until.since(now))
    };
    // Judged before the wait, so that nobody waits in vain, and after it, for what happened meanwhile.
    let open = || {
        let now = runtime::now();
        paused(now)?;
        provider.breaker.open_until(now).map_or(Ok(()), |until| Err(broken(until, now)))
    };
    open()?;
    // Half of the deadline for the turn leaves half for the answer.
    let latest = deadline - provider.target.timeout / 2;
    let busy = |wait: Duration| {
        refuse("capacity", Code::ProviderRateLimited, format!("Weir's capacity for {name} is used up"), wait)
    };
    let _turn = access.tap.turn(question.client_id(), latest, open, busy).await?;
    let now = runtime::now();
    provider.breaker.admit(now).map_err(|until| broken(until, now))?;
    let request = ProviderRequest {
        path_and_query: question.path_and_query.clone(),
        credential: access.credential.header.clone(),
        conditions: known.map(|known| known.conditions.clone()).unwrap_or_default(),
    };
    provider.retry_budget.earn();
    let metrics = &shared.metrics.upstream;
    let timer = metrics.duration.with_label_values(&[&**name, operation.name]).start_timer();
    let reply = {
        // A try that is made again was a call too.
        let again = |failure: &ProviderFailure| {
            let may = provider.retry_budget.take();
            if may {
                metrics.requests.with_label_values(&[name, operation.name, failure.kind.as_str()]).inc();
            }
            may
        };
        shared.upstream.get(&provider.target, &request, deadline, again).await
    };
    timer.observe_duration();
    let status = match &reply {
        Ok(reply) => reply.status.to_string(),
        Err(failure) => failure.kind.as_str().to_owned(),
    };
    metrics.requests.with_label_values(&[name, operation.name, &status]).inc();
    learn(question, access, &reply);
    reply.map_err(|failure| Box::new(provider.errors.judge_failure(&failure)))
}

/// What an outcome says of the provider, told while the turn is still held: whoever comes next knows.
fn learn(question: &Question, access: &Access, reply: &Result<ProviderReply, ProviderFailure>) {
    let (provider, now) = (question.provider(), runtime::now());
    match reply {
        // Throttling and refusals are answers, and so is a body that cannot be used: it is up.
        Ok(reply) => {
            provider.breaker.record(reply.status < 500 || reply.status == 503, now);
            if !matches!(reply.status, 200 | 304) {
                let problem = provider.errors.judge(reply, now);
                if let Some(seconds) = problem.retry_after {
                    access.tap.close(now.plus(Duration::from_secs(seconds)));
                }
            }
        }
        Err(failure) => match failure.kind {
            // A bound of ours says nothing of the provider.
            FailureKind::Overloaded => {}
            FailureKind::TooLarge => provider.breaker.record(true, now),
            _ => provider.breaker.record(false, now),
        },
    }
}

/// Judge → map. The text says why the answer may not be stored, if it may not.
fn judge(
    shared: &Shared,
    question: &Question,
    reply: ProviderReply,
    known: Option<&Entry>,
    now: Time,
) -> Outcome<(Entry, Option<&'static str>)> {
    let provider = question.provider();
    let confirmed = known.filter(|_| reply.status == 304);
    let said = conditional::directives(&reply.headers);
    if reply.status != 200 && confirmed.is_none() {
        let problem = provider.errors.judge(&reply, now);
        if !problem.code.is_not_found() {
            return Err(Box::new(problem));
        }
        let entry = Entry {
            subject: question.subject.clone(),
            stale_from: None,
            kind: Kind::NotFound(Box::new(problem)),
            body: bytes::Bytes::new(),
            rules: provider.rules,
            life: freshness::of_not_found(&provider.freshness, now),
            upstream: UpstreamLimit::default(),
            conditions: Vec::new(),
            ask_always: false,
            views: Vec::new(),
        };
        return Ok((entry, said.no_store.then_some(NO_STORE)));
    }
    let age = conditional::said_age(&reply.headers);
    // What a 304 does not say anew still holds (RFC 9111, section 4.3.4).
    let unsaid = confirmed.filter(|_| !reply.headers.contains_key(http::header::CACHE_CONTROL));
    let upstream = unsaid.map_or_else(
        || UpstreamLimit {
            max_age: said.max_age.map(|max_age| max_age.saturating_sub(conditional::age(&reply.headers, now))),
            must_revalidate: said.must_revalidate,
            age,
        },
        |known| UpstreamLimit { age, ..known.upstream },
    );
    let unusable = |mut problem: Box<Problem>| {
        problem.provider_status = Some(reply.status);
        problem
    };
    if confirmed.is_none() {
        plain(provider, &reply.headers).map_err(unusable)?;
    }
    let body = confirmed.map_or(reply.body, |known| known.body.clone());
    let count = |field: &str, reason: &str| {
        shared.metrics.upstream.mapping_failures.with_label_values(&[&*provider.name, field, reason]).inc();
    };
    let read = entry_of(question, body, upstream, now);
    if let Err(Unreadable { miss: Some(miss), .. }) = &read {
        count(&miss.field.name(), miss.reason.as_str());
    }
    let (mut entry, misses) = read.map_err(|unreadable| unusable(unreadable.problem))?;
    entry.conditions = conditional::conditions(&reply.headers);
    if let Some(known) = confirmed.filter(|_| entry.conditions.is_empty()) {
        entry.conditions.clone_from(&known.conditions);
    }
    misses.iter().for_each(|(field, reason)| count(field, reason));
    if said.no_cache || unsaid.is_some_and(|known| known.ask_always) {
        entry.always_ask();
    }
    let unconfirmable = said.no_cache && entry.conditions.is_empty();
    let forbidden = unconfirmable.then_some("upstream-no-cache");
    if said.no_store {
        entry.always_ask();
    }
    Ok((entry, said.no_store.then_some(NO_STORE).or(forbidden)))
}

/// Refuses a body in an encoding: none was asked for, and unpacking one is how a small answer becomes large.
fn plain(provider: &Provider, headers: &http::HeaderMap) -> Outcome<()> {
    let encoding =
        headers.get(http::header::CONTENT_ENCODING).filter(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity"));
    let Some(encoding) = encoding else { return Ok(()) };
    let detail = format!("{}: its body is encoded as {encoding:?}, which was not asked for", provider.name);
    Err(Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name)))
}

/// Fields that could not be taken: name and reason.
pub type Misses = Vec<(String, &'static str)>;

/// An entry from a body that came at `now`, with the view that most clients see.
///
/// # Errors
/// 502 `provider_invalid_response`.
pub fn entry_of(
    question: &Question,
    body: bytes::Bytes,
    upstream: UpstreamLimit,
    now: Time,
) -> Result<(Entry, Misses), Unreadable> {
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
    let conditions = Vec::new();
    let entry =
        Entry { subject, kind, body, rules, life, stale_from: None, upstream, conditions, ask_always: false, views };
    Ok((entry, misses))
}

/// A provider's body as JSON.
///
/// # Errors
/// 502 `provider_invalid_response`.
pub fn parse(provider: &Provider, body: &[u8]) -> Outcome<Value> {
    json::parse(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "ends too early",
            _ => "is not JSON",
        };
        let detail = format!("{}: its body ({} bytes) {what}", provider.name, body.len());
        Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name))
    })
}
