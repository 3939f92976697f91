//! Obtains a provider response: from the cache, from a call in flight, or from a new call.
//!
//! Nothing here knows the format of responses to clients: the pipeline makes them from entries and views.

pub(crate) mod call;
pub(crate) mod error;
pub(crate) mod explain;
pub(crate) mod provider_admission;
pub(crate) mod provider_query;
pub(crate) mod rate_limit_cost;

use crate::base::content_coding::EncodedForms;
use crate::base::memory_budget::Reservation;
use crate::base::model::{Form, Show, Time, View};
use crate::base::trace_context::{TraceContext, TraceSteps};
use crate::engine::cache::{CachedView, Entry, EntryKind, Key};
use crate::engine::coalesce::{CallGuard, JoinTerms, Joined, shared_result_and_trace};
use crate::engine::request_record::{CacheOutcome, CacheStatus, ForwardReason, RequestRecord, StoreOutcome};
use crate::fetch::call::{call, entry_from_body, parse};
use crate::fetch::error::{FetchCause, FetchError};
use crate::fetch::provider_query::{CallReply, CallResult, ProviderQuery, SharedState};
use crate::rules::cache_control::Directives;
use crate::rules::provider_body::{BodyFault, UnreadableBody, etag};
use crate::rules::purge::Subject;
use crate::rules::visible_body::visible_body;
use crate::runtime::snapshot::Provider;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// The most calls that one request joins, one after the other.
const MAX_JOINS: usize = 4;

/// The result of a cache lookup.
pub(crate) struct CacheLookup {
    entry: Option<Arc<Entry>>,
    /// The outcome if the entry is served as it is; `None` if the provider must be called.
    outcome: Option<CacheOutcome>,
    /// The client's directives.
    directives: Directives,
}

impl CacheLookup {
    /// Returns the stored entry, fresh or not.
    #[must_use]
    pub(crate) fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
    }

    /// Returns whether the entry can be served without a call to the provider.
    #[must_use]
    pub(crate) fn is_hit(&self) -> bool {
        self.outcome.is_some()
    }
}

/// An entry to serve.
pub(crate) struct Served {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Where it comes from.
    pub status: CacheStatus,
    /// The memory of the call that returned it.
    pub memory: Option<Arc<Reservation>>,
}

/// Looks a query up in the cache. Maps the entry again if a reload has replaced the rules that made it.
#[must_use]
pub(crate) fn look_up(shared: &SharedState, query: &ProviderQuery, directives: Directives, now: Time) -> CacheLookup {
    let entry = shared.cache.get(&query.key).and_then(|entry| with_current_rules(shared, query, entry, now));
    let outcome = entry.as_ref().and_then(|entry| outcome_without_call(entry, &directives, now));
    CacheLookup { entry, outcome, directives }
}

/// Returns the outcome of serving the entry as it is; `None` if the lifetime or the client's directives do not permit
/// it (RFC 9111, sections 4.2 and 5.2.1).
fn outcome_without_call(entry: &Entry, directives: &Directives, now: Time) -> Option<CacheOutcome> {
    let life = &entry.life;
    if directives.no_cache || directives.max_age.is_some_and(|max| life.age(now) > max) {
        return None;
    }
    let fresh_for = life.fresh_until.since(now);
    if !fresh_for.is_zero() {
        return directives.min_fresh.is_none_or(|min| fresh_for >= min).then_some(CacheOutcome::Hit);
    }
    let staleness = now.since(life.fresh_until);
    if now >= life.last() {
        return None;
    }
    if directives.max_stale.is_some_and(|max| max.is_none_or(|max| staleness <= max)) {
        return Some(CacheOutcome::Stale("max-stale"));
    }
    // A client that limits age or staleness does not accept more (RFC 9111, section 5.2.1).
    let limited = directives.max_stale.is_some() || directives.min_fresh.is_some() || directives.max_age.is_some();
    (now < life.revalidate_until && !limited).then_some(CacheOutcome::Stale("stale-while-revalidate"))
}

/// Returns whether the client accepts this stale entry after the provider has failed. The client does not accept it if it
/// requires validation or sets a limit that the entry exceeds (RFC 9111, section 5.2.1).
fn accepts_stale(directives: &Directives, entry: &Entry, now: Time) -> bool {
    let staleness = now.since(entry.life.fresh_until);
    match (directives.max_stale, directives.max_age) {
        _ if directives.no_cache => false,
        (Some(most), _) => most.is_none_or(|most| staleness <= most),
        (None, Some(max_age)) => entry.life.age(now) <= max_age,
        (None, None) => directives.min_fresh.is_none(),
    }
}

/// Returns the entry if the current rules made it. Otherwise maps its body again; `None` if that fails.
fn with_current_rules(shared: &SharedState, query: &ProviderQuery, entry: Arc<Entry>, now: Time) -> Option<Arc<Entry>> {
    if entry.rules == query.provider().rules || matches!(entry.kind, EntryKind::NotFound(_)) {
        return Some(entry);
    }
    // The new rules can name headers of a page that the entry does not have.
    let headers = Some(entry.page_headers.clone())
        .filter(|kept| query.operation().is_ok_and(|operation| kept.has_all(operation.page_headers())))?;
    let (body, stored_at) = (entry.body.clone(), entry.life.stored_at);
    let (mut mapped, _) = entry_from_body(query, body, headers, entry.upstream, stored_at).ok()?;
    mapped.conditions.clone_from(&entry.conditions);
    mapped.call_stats = entry.call_stats;
    if entry.always_revalidate {
        mapped.require_revalidation();
    }
    if let Some(since) = entry.soft_purged_at {
        mapped = mapped.stale_since(since);
    }
    let mapped = Arc::new(mapped);
    shared.cache.replace(query.key.clone(), &entry, mapped.clone(), now);
    Some(mapped)
}

/// Obtains the response to a query: the entry from `lookup` if it can be served, else the result of a call, else a
/// stale entry if the call fails. Waits at most until `latest`; without it, until the call's own deadline.
///
/// # Errors
/// The provider's failure, or why Weir did not call the provider.
pub(crate) async fn obtain(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    lookup: CacheLookup,
    latest: Option<tokio::time::Instant>,
    received_at: Time,
    record: &mut RequestRecord,
) -> Result<Served, Box<FetchError>> {
    if let (Some(entry), Some(outcome)) = (&lookup.entry, lookup.outcome) {
        if matches!(outcome, CacheOutcome::Stale("stale-while-revalidate")) && !lookup.directives.only_if_cached {
            refresh(shared, query, &record.steps);
        }
        return Ok(serve(shared, query, entry.clone(), outcome, None));
    }
    if lookup.directives.only_if_cached {
        return Err(FetchCause::NotCached.into());
    }
    let CallOutcome { reply: CallReply { result, memory, .. }, collapsed, .. } =
        wait_for_call(shared, query, &lookup.directives, latest, record).await;
    // Read again after the wait, because a stale entry may have become unusable meanwhile.
    let now = shared.now();
    let reason = forward_reason(&lookup, received_at);
    let forwarded = |stored| CacheOutcome::Forwarded { reason, stored, collapsed };
    let error = match result {
        Ok((entry, stored)) => {
            // None: a reload has replaced the rules, and the new ones cannot map the response.
            let entry = with_current_rules(shared, query, entry, now).ok_or(FetchCause::Outdated)?;
            return Ok(serve(shared, query, entry, forwarded(stored), memory));
        }
        Err(error) => error,
    };
    if let Some((entry, outcome)) = entry_after_failure(shared, query, lookup.directives, &error, now) {
        return Ok(serve(shared, query, entry, outcome, None));
    }
    let outcome = match error.is_refusal() {
        true => CacheOutcome::Refused(error.code().as_str()),
        false => forwarded(StoreOutcome::Failed(error.provider_status())),
    };
    record.cache = Some(CacheStatus { outcome, life: None });
    count(shared, query.provider(), outcome);
    Err(error)
}

/// Returns why the request needs a call, for `Cache-Status`.
fn forward_reason(lookup: &CacheLookup, received_at: Time) -> ForwardReason {
    let CacheLookup { entry, directives, .. } = lookup;
    let client_refuses_fresh = entry.as_ref().is_some_and(|entry| entry.life.fresh_until > received_at);
    match entry {
        _ if directives.no_cache || directives.no_store || client_refuses_fresh => ForwardReason::Request,
        Some(_) => ForwardReason::Stale,
        None => ForwardReason::Miss,
    }
}

/// Returns an entry to serve in place of the error, if there is one. Looks the query up again: the entry may have been
/// purged or refreshed during the call.
fn entry_after_failure(
    shared: &SharedState,
    query: &ProviderQuery,
    directives: Directives,
    error: &FetchError,
    now: Time,
) -> Option<(Arc<Entry>, CacheOutcome)> {
    let CacheLookup { entry, outcome, directives } = look_up(shared, query, directives, now);
    let entry = entry.filter(|_| error.code().permits_stale_response())?;
    if let Some(outcome) = outcome {
        return Some((entry, outcome));
    }
    let usable = now < entry.life.error_until && accepts_stale(&directives, &entry, now);
    let outcome = match error.is_refusal() {
        true => CacheOutcome::Stale("stale-if-error"),
        false => CacheOutcome::StaleOnError { status: error.provider_status() },
    };
    usable.then_some((entry, outcome))
}

fn serve(
    shared: &SharedState,
    query: &ProviderQuery,
    entry: Arc<Entry>,
    outcome: CacheOutcome,
    memory: Option<Arc<Reservation>>,
) -> Served {
    count(shared, query.provider(), outcome);
    Served { status: CacheStatus { outcome, life: Some(entry.life) }, entry, memory }
}

fn count(shared: &SharedState, provider: &Provider, outcome: CacheOutcome) {
    let (cache, label) = (&shared.metrics.cache, outcome.label());
    let counters = || {
        let saved =
            matches!(label, "hit" | "collapsed" | "stale") && !matches!(outcome, CacheOutcome::StaleOnError { .. });
        let requests = cache.requests.with_label_values(&[&provider.name, label]);
        (requests, saved.then(|| cache.saved.with_label_values(&[&provider.name, label])))
    };
    let other;
    let (requests, saved) = match outcome {
        CacheOutcome::Hit => provider.hits.get_or_init(counters),
        _ => {
            other = counters();
            &other
        }
    };
    requests.inc();
    if let Some(saved) = saved {
        saved.inc();
    }
}

/// The result of waiting for a call.
struct CallOutcome {
    reply: CallReply,
    /// Whether another request started the call.
    collapsed: bool,
    /// The trace context of the call, if it is traced.
    trace_context: Option<TraceContext>,
}

impl CallOutcome {
    /// Returns a result that comes from no call.
    fn without_call(result: CallResult, collapsed: bool) -> Self {
        Self { reply: CallReply { result, memory: None, caller: None }, collapsed, trace_context: None }
    }
}

/// Waits for a call, at most until `latest`. Records the wait and the link to a shared call.
async fn wait_for_call(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    directives: &Directives,
    latest: Option<tokio::time::Instant>,
    record: &mut RequestRecord,
) -> CallOutcome {
    #[allow(clippy::disallowed_methods)] // measures the wait
    let started = Instant::now();
    record.steps.step("fetch");
    let call = join_or_call(shared, query, directives, &record.steps);
    let outcome = match latest {
        None => call.await,
        // The call continues after the deadline, for other requests and for the cache.
        Some(latest) => timeout_at(latest, call).await.unwrap_or_else(|_| {
            let result = Err(FetchCause::Deadline { provider: query.provider().name.clone() }.into());
            CallOutcome::without_call(result, false)
        }),
    };
    if let Some(context) = outcome.trace_context.as_ref().filter(|_| outcome.collapsed) {
        record.steps.link(context);
    }
    record.provider_wait += started.elapsed();
    outcome
}

/// Joins the call in flight for this key, or starts one. If a joined call fails because the client that started it has used
/// its share, joins or starts another one: this client has its own share.
async fn join_or_call(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    directives: &Directives,
    steps: &TraceSteps,
) -> CallOutcome {
    if directives.no_store {
        // A response that must not be stored must not be shared either.
        return call_alone(shared, query, false, steps).await;
    }
    let is_of_other = |outcome: &CallOutcome| match &outcome.reply {
        CallReply { result: Err(error), caller: Some(caller), .. } => {
            outcome.collapsed && error.is_clients_limit() && caller != query.client_id()
        }
        _ => false,
    };
    for _ in 0..MAX_JOINS {
        let outcome = join_once(shared, query, directives, steps).await;
        if !is_of_other(&outcome) {
            return outcome;
        }
    }
    // Whatever the others do, this client has its share.
    call_alone(shared, query, true, steps).await
}

/// Joins the call in flight for this key, or starts one.
async fn join_once(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    directives: &Directives,
    steps: &TraceSteps,
) -> CallOutcome {
    // Times are in milliseconds, so a call that started in the same millisecond may have started before the write.
    let after_write = shared.cache.last_write_at(&query.subject).map(|at| at.plus(Duration::from_millis(1)));
    let not_before = after_write.unwrap_or(Time(i64::MIN));
    let terms = JoinTerms { not_before, start_after_join: directives.no_cache, ..query.join_terms() };
    let fresh = || fresh_result(shared, query, directives);
    let (waiter, collapsed) = match shared.coalescer.join(&query.key, query.subject.clone(), &terms, fresh) {
        Joined::Found(reply) => return CallOutcome { reply, collapsed: true, trace_context: None },
        Joined::Waiting(waiter) => (waiter, true),
        Joined::Full => {
            return CallOutcome::without_call(Err(FetchCause::TooManyWaiters.into()), true);
        }
        Joined::Leading(guard, waiter) => {
            let steps = steps.call(&shared.spans);
            steps.context().into_iter().for_each(|context| waiter.set_trace_context(context));
            start_call(shared, query, guard, steps);
            (waiter, false)
        }
    };
    match shared_result_and_trace(waiter).await {
        (Some(reply), trace_context) => CallOutcome { reply, collapsed, trace_context },
        (None, _) => CallOutcome::without_call(Err(FetchCause::LostCall.into()), collapsed),
    }
}

/// Makes a call that no other request joins.
async fn call_alone(shared: &Arc<SharedState>, query: &ProviderQuery, store: bool, steps: &TraceSteps) -> CallOutcome {
    let (shared, query, steps) = (shared.clone(), query.clone(), steps.call(&shared.spans));
    #[allow(clippy::disallowed_methods)] // a task of its own, like every call, so that a panic becomes `LostCall`
    let call_task = tokio::spawn(async move { Box::pin(call(&shared, &query, store, steps, None)).await });
    let lost_call = |_| CallOutcome::without_call(Err(FetchCause::LostCall.into()), false);
    let outcome = |reply| CallOutcome { reply, collapsed: false, trace_context: None };
    call_task.await.map_or_else(lost_call, outcome)
}

/// Returns the cache entry if it is fresh by now: another call may have stored it since the lookup.
fn fresh_result(shared: &SharedState, query: &ProviderQuery, directives: &Directives) -> Option<CallReply> {
    let entry = shared.cache.get(&query.key)?;
    let has_current_rules = entry.rules == query.provider().rules;
    let is_fresh =
        has_current_rules && outcome_without_call(&entry, directives, shared.now()) == Some(CacheOutcome::Hit);
    is_fresh.then(|| CallReply { result: Ok((entry, StoreOutcome::Yes)), memory: None, caller: None })
}

/// Starts a call that refreshes the entry, unless one is in flight. Does not wait for it.
fn refresh(shared: &Arc<SharedState>, query: &ProviderQuery, steps: &TraceSteps) {
    let terms = JoinTerms { max_waiters: usize::MAX, ..query.join_terms() };
    let fresh = || fresh_result(shared, query, &Directives::default());
    if let Joined::Leading(guard, waiter) = shared.coalescer.join(&query.key, query.subject.clone(), &terms, fresh) {
        let steps = steps.call(&shared.spans);
        steps.context().into_iter().for_each(|context| waiter.set_trace_context(context));
        start_call(shared, query, guard, steps);
    }
}

/// Starts the call in a task of its own, because it outlives the request that starts it. The call has a deadline.
#[allow(clippy::disallowed_methods)]
fn start_call(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    mut guard: CallGuard<Key, CallReply, Subject>,
    steps: TraceSteps,
) {
    let (shared, query) = (shared.clone(), query.clone());
    tokio::spawn(async move {
        guard.start(shared.clock).await;
        // Boxed, because the future is large and the runtime moves tasks.
        let joiners = guard.joiners.clone();
        let result = Box::pin(call(&shared, &query, true, steps, Some(&joiners))).await;
        guard.finish(result);
    });
}

/// Returns a view of an entry. Makes it from the body if the entry does not have it yet, and stores it there.
///
/// # Errors
/// The body is unreadable.
pub(crate) fn view(
    shared: &SharedState,
    query: &ProviderQuery,
    entry: &Arc<Entry>,
    show: Show,
    now: Time,
) -> Result<Arc<View>, Box<FetchError>> {
    if let Some(view) = entry.view(show) {
        return Ok(view.clone());
    }
    if let Some(view) = stored_view(shared, query, entry, show) {
        return Ok(view);
    }
    let provider = query.provider();
    if show.form == Form::Native {
        return native_view(shared, query, entry, show, now);
    }
    let native = parse(provider, &entry.body)?;
    // Mapped with the time of its arrival, so that all views of an entry agree.
    let (headers, stored_at) = (&entry.page_headers, entry.life.stored_at);
    let parsed = query.operation()?.read(&provider.name, &provider.mapping, &native, headers, stored_at)?;
    let view = Arc::new(parsed.view(&provider.mapping, show));
    Ok(store_view(shared, query, entry, CachedView { show, view }, now))
}

/// Returns the provider's body, without secret fields unless `show` includes them.
fn native_view(
    shared: &SharedState,
    query: &ProviderQuery,
    entry: &Arc<Entry>,
    show: Show,
    now: Time,
) -> Result<Arc<View>, Box<FetchError>> {
    let provider = query.provider();
    let body = match show.secrets {
        true => entry.body.clone(),
        false => visible_body(&provider.operations, Some(query.operation()?), &provider.mapping, &entry.body)
            .ok_or_else(|| UnreadableBody { provider: provider.name.clone(), fault: BodyFault::NoSessions })?,
    };
    let view = Arc::new(View { etag: etag(&body), body, items: Vec::new(), encoded: EncodedForms::default() });
    Ok(store_view(shared, query, entry, CachedView { show, view }, now))
}

/// Returns the view that the stored entry of this response has. Requests that waited for one call have the entry without
/// the views that others made of it since.
fn stored_view(shared: &SharedState, query: &ProviderQuery, entry: &Entry, show: Show) -> Option<Arc<View>> {
    let stored = shared.cache.get(&query.key)?;
    let is_same = stored.rules == entry.rules
        && stored.life.stored_at == entry.life.stored_at
        && stored.body.as_ptr() == entry.body.as_ptr();
    stored.view(show).filter(|_| is_same).cloned()
}

/// Adds a view to the stored entry, if the cache still has this entry and the current rules made it. Returns the view of
/// the stored entry if another request has added it first, so that its compressed forms are made once.
fn store_view(
    shared: &SharedState,
    query: &ProviderQuery,
    entry: &Arc<Entry>,
    view: CachedView,
    now: Time,
) -> Arc<View> {
    let CachedView { show, view: made } = view.clone();
    if entry.rules == query.provider().rules {
        let mut views = entry.views.clone();
        views.push(view);
        let extended = Entry { views, ..Entry::clone(entry) };
        shared.cache.replace(query.key.clone(), entry, Arc::new(extended), now);
    }
    stored_view(shared, query, entry, show).unwrap_or(made)
}
