//! One answer of a provider: from the cache, from a call under way, or from a call of its own.
//!
//! A room of its own because unified sessions, lists and native reads all need an answer in
//! the same way. What clients see of an answer is made elsewhere.

use crate::cache::{Entry, Key, Kind};
use crate::call::{call, entry_of, parse};
use crate::conditional::Directives;
use crate::error::{Code, Outcome, Problem};
use crate::explain;
use crate::flight::{Joined, Landing, Terms, landed_where};
use crate::model::{Form, Show, Time, View};
use crate::purge::Subject;
use crate::question::{Landed, Question, Shared};
use crate::reading::etag;
use crate::runtime;
use crate::runtime::snapshot::Provider;
use crate::span::{Context, Steps};
use crate::trace::{CacheStatus, How, Stored, Trace, Why};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{Instant as Latest, timeout_at};

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
    if directives.no_cache || directives.max_age.is_some_and(|max| life.age(now) > max) {
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
    // Who bounds age or staleness does not take more than that (RFC 9111, section 5.2.1).
    let bounded = directives.max_stale.is_some() || directives.min_fresh.is_some() || directives.max_age.is_some();
    (now < life.revalidate_until && !bounded).then_some(How::Stale("stale-while-revalidate"))
}

/// Whether a client takes this stale answer when the provider fails: not if it asked for validation,
/// nor if it set bounds that this is beyond (RFC 9111, section 5.2.1).
fn accepts_stale(directives: &Directives, entry: &Entry, now: Time) -> bool {
    let staleness = now.since(entry.life.fresh_until);
    match (directives.max_stale, directives.max_age) {
        _ if directives.no_cache => false,
        (Some(most), _) => most.is_none_or(|most| staleness <= most),
        (None, Some(max_age)) => entry.life.age(now) <= max_age,
        (None, None) => directives.min_fresh.is_none(),
    }
}

/// The entry, if its rules are in force; else one made anew from its body, if they can.
fn current(shared: &Shared, question: &Question, entry: Arc<Entry>, now: Time) -> Option<Arc<Entry>> {
    if entry.rules == question.provider().rules || matches!(entry.kind, Kind::NotFound(_)) {
        return Some(entry);
    }
    let (mut made, _) = entry_of(question, entry.body.clone(), entry.upstream, entry.life.stored_at).ok()?;
    made.conditions.clone_from(&entry.conditions);
    made.effort = entry.effort;
    if entry.ask_always {
        made.always_ask();
    }
    if let Some(since) = entry.stale_from {
        made = made.stale_since(since);
    }
    let made = Arc::new(made);
    shared.cache.replace(question.key.clone(), &entry, made.clone(), now);
    Some(made)
}

/// Answers a question: from what was looked up if that will do, else from the provider, else from
/// what is stale if the provider fails. Waits at most until `latest`, if that is given: one who asks for several
/// answers does not wait for each as long as for one.
///
/// # Errors
/// The provider's failure, or 504 `not_cached`.
pub async fn obtain(
    shared: &Arc<Shared>,
    question: &Question,
    looked: Looked,
    latest: Option<Latest>,
    trace: &mut Trace,
) -> Outcome<Served> {
    let before = trace.explain.as_ref().and(looked.entry.clone());
    let waited = trace.waited;
    let result = answer(shared, question, looked, latest, trace).await;
    if let Some(gathered) = &mut trace.explain {
        let outcome = match &result {
            Ok(Served { entry, status }) => Ok((&**entry, status)),
            Err(problem) => Err((&**problem, trace.cache.as_ref())),
        };
        let waited = trace.waited.saturating_sub(waited);
        gathered.answers.push(explain::answered(question, before.as_deref(), outcome, waited, runtime::now()));
    }
    result
}

async fn answer(
    shared: &Arc<Shared>,
    question: &Question,
    looked: Looked,
    latest: Option<Latest>,
    trace: &mut Trace,
) -> Outcome<Served> {
    if let (Some(entry), Some(how)) = (&looked.entry, looked.serve) {
        if matches!(how, How::Stale("stale-while-revalidate")) && !looked.directives.only_if_cached {
            refresh(shared, question, &trace.steps);
        }
        return Ok(served(shared, question, entry.clone(), how));
    }
    if looked.directives.only_if_cached {
        return Err(Box::new(Problem::new(Code::NotCached, "nothing fresh is stored, and only-if-cached was sent")));
    }
    let asked_at = runtime::now();
    #[allow(clippy::disallowed_methods)] // how long a caller waits is told to its trace
    let asked = Instant::now();
    trace.steps.step("fetch");
    let asking = ask(shared, question, &looked.directives, &trace.steps);
    let late = || Asked { landed: Err(too_late(question)), collapsed: false, call: None };
    let Asked { landed: result, collapsed, call } = match latest {
        None => asking.await,
        Some(latest) => timeout_at(latest, asking).await.unwrap_or_else(|_| late()),
    };
    if let Some(call) = call.filter(|_| collapsed) {
        trace.steps.link(&call);
    }
    trace.waited += asked.elapsed();
    // Read after the wait: a stale answer must not outlive its last moment meanwhile.
    let now = runtime::now();
    // A fresh entry was there, and the client did not take it.
    let unwanted = looked.entry.as_ref().is_some_and(|entry| entry.life.fresh_until > asked_at);
    let requested = looked.directives.no_cache || looked.directives.no_store || unwanted;
    let why = match (requested, &looked.entry) {
        (true, _) => Why::Request,
        (false, Some(_)) => Why::Stale,
        (false, None) => Why::Miss,
    };
    let how = |stored| How::Forwarded { why, stored, collapsed };
    // Looked up again: what was purged while this request waited is gone, and what came since is newer.
    let again = result.is_err().then(|| look(shared, question, looked.directives, now));
    match (result, again) {
        (Ok((entry, stored)), _) => match current(shared, question, entry, now) {
            Some(entry) => Ok(served(shared, question, entry, how(stored))),
            // It came by rules that a reload has replaced, and cannot be read by those in force.
            None => Err(Box::new(Problem::new(Code::ProviderInvalidResponse, "the answer cannot be mapped"))),
        },
        (Err(problem), Some(Looked { entry: Some(entry), serve: Some(how), .. })) if problem.code.allows_stale() => {
            // Another call has brought something since.
            Ok(served(shared, question, entry, how))
        }
        (Err(problem), Some(Looked { entry: Some(stale), .. }))
            if problem.code.allows_stale()
                && now < stale.life.error_until
                && accepts_stale(&looked.directives, &stale, now) =>
        {
            let how = match problem.asked_nobody() {
                true => How::Stale("stale-if-error"),
                false => How::StaleOnError { status: problem.provider_status },
            };
            Ok(served(shared, question, stale, how))
        }
        (Err(problem), _) => {
            let how = match problem.asked_nobody() {
                true => How::Refused(problem.code.as_str()),
                false => how(Stored::Failed(problem.provider_status)),
            };
            trace.cache = Some(CacheStatus { how, life: None });
            count(shared, question.provider(), how);
            Err(problem)
        }
    }
}

/// The call goes on, for others and for the cache.
fn too_late(question: &Question) -> Box<Problem> {
    let name = &question.provider().name;
    let detail = format!("{name} did not answer within the deadline of all that this request asks for");
    Box::new(Problem::new(Code::ProviderTimeout, detail).of(name))
}

fn served(shared: &Shared, question: &Question, entry: Arc<Entry>, how: How) -> Served {
    count(shared, question.provider(), how);
    Served { status: CacheStatus { how, life: Some(entry.life) }, entry }
}

fn count(shared: &Shared, provider: &Provider, how: How) {
    let (cache, label) = (&shared.metrics.cache, how.label());
    let counters = || {
        let saved = matches!(label, "hit" | "collapsed" | "stale") && !matches!(how, How::StaleOnError { .. });
        let requests = cache.requests.with_label_values(&[&provider.name, label]);
        (requests, saved.then(|| cache.saved.with_label_values(&[&provider.name, label])))
    };
    let made;
    let (requests, saved) = match how {
        How::Hit => provider.hits.get_or_init(counters),
        _ => {
            made = counters();
            &made
        }
    };
    requests.inc();
    if let Some(saved) = saved {
        saved.inc();
    }
}

/// What became of asking.
struct Asked {
    landed: Landed,
    /// It was another's call.
    collapsed: bool,
    /// Where in a trace that call was.
    call: Option<Context>,
}

/// Joins the call under way for this key or starts one.
async fn ask(shared: &Arc<Shared>, question: &Question, directives: &Directives, steps: &Steps) -> Asked {
    let lost = || Err(Box::new(Problem::new(Code::InternalError, "the call to the provider ended without a result")));
    if directives.no_store {
        // What may not be stored may not be shared either.
        let (calling, asked, steps) = (shared.clone(), question.clone(), steps.call(&shared.spans));
        #[allow(clippy::disallowed_methods)] // a task of its own, as all calls: a panic in it is told
        let alone = tokio::spawn(async move { Box::pin(call(&calling, &asked, false, steps)).await });
        return Asked { landed: alone.await.unwrap_or_else(|_| lost()), collapsed: false, call: None };
    }
    // Within the millisecond of a write nobody knows which came first.
    let written = || shared.cache.written_at(&question.subject).map(|at| at.plus(Duration::from_millis(1)));
    let true_since = written().unwrap_or(Time(i64::MIN));
    let terms = Terms { most: question.max_waiters(), true_since, confirm: directives.no_cache };
    let fresh = || fresh(shared, question, directives);
    let (place, collapsed) = match shared.flights.join(&question.key, question.subject.clone(), &terms, fresh) {
        Joined::Found(landed) => return Asked { landed, collapsed: true, call: None },
        Joined::Waiting(place) => (place, true),
        Joined::Full => {
            let detail = "as many requests as may wait for the same answer of the provider";
            let full = Problem::new(Code::Overloaded, detail).retry_after_ms(1000);
            return Asked { landed: Err(Box::new(full)), collapsed: true, call: None };
        }
        Joined::Leading(landing, place) => {
            let steps = steps.call(&shared.spans);
            steps.context().into_iter().for_each(|context| place.mark(context));
            launch(shared, question, landing, steps);
            (place, false)
        }
    };
    let (landed, call) = landed_where(place).await;
    Asked { landed: landed.unwrap_or_else(lost), collapsed, call }
}

/// The answer that is fresh by now, if there is one.
fn fresh(shared: &Shared, question: &Question, directives: &Directives) -> Option<Landed> {
    let entry = shared.cache.look(&question.key)?;
    let current = entry.rules == question.provider().rules;
    let fresh = current && servable(&entry, directives, runtime::now()) == Some(How::Hit);
    fresh.then_some(Ok((entry, Stored::Yes)))
}

/// Refreshes behind the answer, unless a call for this key is under way already.
fn refresh(shared: &Arc<Shared>, question: &Question, steps: &Steps) {
    let terms = Terms { most: usize::MAX, true_since: Time(i64::MIN), confirm: false };
    // One that landed since this request looked has done it already.
    let fresh = || fresh(shared, question, &Directives::default());
    if let Joined::Leading(landing, place) = shared.flights.join(&question.key, question.subject.clone(), &terms, fresh)
    {
        let steps = steps.call(&shared.spans);
        steps.context().into_iter().for_each(|context| place.mark(context));
        launch(shared, question, landing, steps);
    }
}

/// Runs the call apart from every caller; it ends by its own deadline, and nothing needs to wait for it.
#[allow(clippy::disallowed_methods)]
fn launch(shared: &Arc<Shared>, question: &Question, mut landing: Landing<Key, Landed, Subject>, steps: Steps) {
    let (shared, question) = (shared.clone(), question.clone());
    tokio::spawn(async move {
        landing.begin(runtime::now).await;
        // A call is large, and what a task is made of is moved more than once.
        let result = Box::pin(call(&shared, &question, true, steps)).await;
        landing.land(result);
    });
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
    if show.form == Form::Native {
        return native_view(shared, question, entry, show, now);
    }
    let native = parse(provider, &entry.body)?;
    // Read as of when it came: a view made later must not tell another story.
    let reading = question.operation()?.read(&provider.name, &provider.mapping, &native, entry.life.stored_at)?;
    let view = Arc::new(reading.view(&provider.mapping, show));
    keep(shared, question, entry, (show, view.clone()), now);
    Ok(view)
}

/// The provider's body, without its secrets where they are not to be seen.
fn native_view(shared: &Shared, question: &Question, entry: &Arc<Entry>, show: Show, now: Time) -> Outcome<Arc<View>> {
    let provider = question.provider();
    let body = match show.secrets {
        true => entry.body.clone(),
        false => question.operation()?.without_secrets(&provider.mapping, &entry.body).ok_or_else(|| {
            let detail = format!("{}: its body has no sessions where they should be", provider.name);
            Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name))
        })?,
    };
    let view = Arc::new(View { etag: etag(&body), body, items: Vec::new() });
    keep(shared, question, entry, (show, view.clone()), now);
    Ok(view)
}

/// Keeps a view with its entry, if that is still the one, by rules that are still in force.
fn keep(shared: &Shared, question: &Question, entry: &Arc<Entry>, view: (Show, Arc<View>), now: Time) {
    if entry.rules == question.provider().rules {
        let mut views = entry.views.clone();
        views.push(view);
        let more = Entry { views, ..Entry::clone(entry) };
        shared.cache.replace(question.key.clone(), entry, Arc::new(more), now);
    }
}
