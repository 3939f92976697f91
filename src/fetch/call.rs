//! Makes one call to a provider: waits for admission, gets the credential, sends the request, and maps and stores the
//! response.
//!
//! Several client requests can share a call, so nothing here depends on one of them.

use crate::base::json::ParsedJson;
use crate::base::memory_budget::{BufferLimit, Reservation};
use crate::base::model::{Field, Show, Time};
use crate::base::request_reply::{CallStats, FailureKind, ProviderFailure, ProviderReply};
use crate::base::trace_context::{Side, TraceAttribute, TraceSteps};
use crate::engine::cache::{CachedView, Entry, EntryKind};
use crate::engine::coalesce::Joiners;
use crate::engine::credential::SentCredential;
use crate::engine::request_record::StoreOutcome;
use crate::fetch::error::{FetchCause, FetchError};
use crate::fetch::provider_admission::{self, CallGuards};
use crate::fetch::provider_query::{CallReply, CallResult, ProviderQuery, SharedState};
use crate::rules::cache_control::{self, Directives};
use crate::rules::error_rules::ProviderError;
use crate::rules::freshness::{self, UpstreamLimit};
use crate::rules::mapping::MappingFailure;
use crate::rules::page_headers::PageHeaders;
use crate::rules::provider_body::{BodyFault, CompiledOperation, UnreadableBody};
use crate::runtime::snapshot::Provider;
use prometheus::{Histogram, IntCounter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::time::Instant;

/// Why a response is not stored: the provider forbids it.
const NO_STORE: &str = "upstream-no-store";
/// Why a response is not stored: the provider requires revalidation each time, but sends no validator.
const NO_CACHE: &str = "upstream-no-cache";
/// Why a response is not stored: by its `Vary` it answers no other request.
const VARY: &str = "upstream-vary";
/// Why a response is not stored: a purge or a write came after the call had begun.
const PURGED: &str = "purged";
/// Why a response is not stored: it is stale at once.
const NO_LIFETIME: &str = "no-lifetime";
/// Why a response is not stored: the client forbids it.
const CLIENT_NO_STORE: &str = "request-no-store";

/// The memory of a call until it ends, besides the response: its task and its connection to the provider.
const CALL_BYTES: usize = 28 << 10;

/// Makes the call, and stores the response unless `store` is false.
///
/// # Errors
/// The provider's failure, or why the provider was not called.
pub(crate) async fn call(
    shared: &SharedState,
    query: &ProviderQuery,
    store: bool,
    mut steps: TraceSteps,
    joiners: Option<&Joiners>,
) -> CallReply {
    let mut memory = query.memory_share(shared).reservation();
    let result = run(shared, query, store, &mut steps, &mut memory, joiners).await;
    shared.spans.emit(steps.end(Side::Inside, result.is_err(), || {
        let stored = matches!(result, Ok((_, StoreOutcome::Yes)));
        let mut attributes = vec![
            ("weir.provider", TraceAttribute::Text(query.provider().name.clone())),
            ("weir.stored", TraceAttribute::Static(if stored { "yes" } else { "no" })),
        ];
        let operation = query.operation().ok();
        attributes.extend(operation.map(|operation| ("weir.operation", TraceAttribute::Static(operation.name()))));
        let code = result.as_ref().err().map(|error| error.code().as_str());
        attributes.extend(code.map(|code| ("error.type", TraceAttribute::Static(code))));
        ("call".into(), attributes)
    }));
    CallReply { result, memory: Some(Arc::new(memory)), caller: Some(query.client_id().clone()) }
}

async fn run(
    shared: &SharedState,
    query: &ProviderQuery,
    store: bool,
    steps: &mut TraceSteps,
    memory: &mut Reservation,
    joiners: Option<&Joiners>,
) -> CallResult {
    let provider = query.provider();
    let _in_flight = query.count_call(shared)?;
    let _own_memory = query.memory_share(shared).reserve(CALL_BYTES).map_err(|limit| over_budget(provider, limit))?;
    let ticket = shared.cache.ticket();
    let mut previous = shared.cache.get(&query.key).filter(|previous| !previous.conditions.is_empty());
    let mut call_stats = CallStats::default();
    let mut reply = request(shared, query, previous.as_deref(), steps, &mut call_stats, memory, joiners).await;
    if let (Ok(not_modified), Some(stored)) = (&reply, &previous)
        && not_modified.status == 304
        && cache_control::confirms_another(&not_modified.headers, &stored.conditions)
    {
        // The 304 is about a response that Weir does not have, so it asks without a condition.
        previous = None;
        reply = request(shared, query, None, steps, &mut call_stats, memory, joiners).await;
    }
    steps.step("judge and map");
    let now = shared.now();
    let judged = match reply {
        Ok(reply) => entry_from_reply(shared, query, &reply, previous.as_deref(), now),
        Err(error) => entry_from_error(query, error.cause, now),
    };
    let JudgedReply { mut entry, not_stored } = judged.map_err(|mut error| {
        error.call_stats = (call_stats.tries > 0).then_some(call_stats);
        error
    })?;
    entry.call_stats = call_stats;
    steps.step("store");
    let entry = Arc::new(entry);
    let no_lifetime = (entry.life.last() <= now && !entry.always_revalidate).then_some(NO_LIFETIME);
    let client_no_store = (!store).then_some(CLIENT_NO_STORE);
    let stored = match not_stored.or(client_no_store).or(no_lifetime) {
        Some(reason) => {
            // If the client sent no-store, the stored entry stays valid. Otherwise the new response outdates it.
            if client_no_store.is_none() {
                shared.cache.supersede(query.key.clone(), ticket);
            }
            StoreOutcome::No(reason)
        }
        None if shared.cache.store(query.key.clone(), entry.clone(), ticket, now) => {
            let ttl = shared.metrics.cache.ttl.with_label_values(&[&*provider.name, entry.life.source.as_str()]);
            ttl.observe(entry.life.total().as_secs_f64());
            StoreOutcome::Yes
        }
        None => StoreOutcome::No(PURGED),
    };
    // The cache limits what it has stored. Its responses keep the view.
    let body = if matches!(stored, StoreOutcome::Yes) { 0 } else { entry.body.len() };
    let views: usize = entry.views.iter().map(|cached| cached.view.body.len()).sum();
    memory.resize(body + views).map_err(|limit| over_budget(provider, limit))?;
    Ok((entry, stored))
}

/// Returns the error of a call for which there is no memory.
fn over_budget(provider: &Provider, limit: BufferLimit) -> Box<FetchError> {
    let failure = ProviderFailure::new(FailureKind::Overloaded, limit.to_string());
    FetchCause::Provider(provider.errors.judge_failure(failure)).into()
}

/// Waits for admission and sends the request, with retries. Sets `call_stats` also if it fails.
///
/// # Errors
/// The provider's error, or why the request was not sent.
async fn request(
    shared: &SharedState,
    query: &ProviderQuery,
    previous: Option<&Entry>,
    steps: &mut TraceSteps,
    call_stats: &mut CallStats,
    memory: &mut Reservation,
    joiners: Option<&Joiners>,
) -> Result<ProviderReply, Box<FetchError>> {
    let (provider, operation, credential) = (query.provider(), query.operation()?, &query.identity.credential);
    let metrics = &shared.metrics.upstream;
    let started = Instant::now();
    let guards = query.identity.guards(provider, query.call_subject());
    steps.step("gate");
    let caller = query.caller(joiners, started + provider.target.timeout / 2);
    let _permit = provider_admission::admit(shared.admission_state(), provider, &guards, caller).await?;
    call_stats.queue_time = started.elapsed();
    // The provider's time begins after the queue, which is no fault of the provider.
    let deadline = Instant::now() + provider.target.timeout;
    let mut attempts = Attempts::new(shared, query, operation, guards, deadline);
    let mut may_renew_token = true;
    loop {
        steps.step("credential");
        let sent = credential.obtain(&shared.upstream, metrics, deadline, shared.now()).await.inspect_err(|error| {
            provider_admission::record_token_failure(&attempts.guards, error, shared.now());
        })?;
        steps.client_step("upstream");
        attempts.had_whole_timeout = deadline - Instant::now() > provider.target.timeout * 9 / 10;
        let reply = attempts.send(previous, &sent, steps, memory).await;
        call_stats.tries = attempts.tries.load(Ordering::Relaxed);
        call_stats.response_time = started.elapsed() - call_stats.queue_time;
        let result = attempts.judge(reply, previous, steps);
        // A token may have become invalid before its expiry: send the request once more, with a new token.
        if may_renew_token
            && let Some(refusal) = result.as_ref().err().and_then(|error| error.reply.as_ref())
            && credential.renew(&sent, refusal.status, &refusal.headers, shared.now())
            && provider_admission::admit_retry(&attempts.guards, shared.now())
        {
            may_renew_token = false;
            continue;
        }
        return result.map_err(Into::into);
    }
}

/// The requests of one call: the first one and its retries.
struct Attempts<'c> {
    shared: &'c SharedState,
    query: &'c ProviderQuery,
    operation: &'c CompiledOperation,
    guards: CallGuards,
    deadline: Instant,
    /// The wait for the credential has left the provider at least nine tenths of its timeout.
    had_whole_timeout: bool,
    /// The number of requests sent.
    tries: AtomicU32,
    /// Counts responses with status 200.
    ok_responses: &'c IntCounter,
    durations: &'c Histogram,
}

impl<'c> Attempts<'c> {
    fn new(
        shared: &'c SharedState,
        query: &'c ProviderQuery,
        operation: &'c CompiledOperation,
        guards: CallGuards,
        deadline: Instant,
    ) -> Self {
        let (metrics, provider, name) = (&shared.metrics.upstream, query.provider(), operation.name());
        let (ok_responses, durations) = provider.call_metrics[operation.operation].get_or_init(|| {
            let responses = metrics.requests.with_label_values(&[&provider.name, name, "200"]);
            (responses, metrics.duration.with_label_values(&[&*provider.name, name]))
        });
        let (had_whole_timeout, tries) = (true, AtomicU32::new(0));
        Self { shared, query, operation, guards, deadline, had_whole_timeout, tries, ok_responses, durations }
    }

    /// Sends the request. Sends it again if it fails and the retry budget and the quota permit it.
    async fn send(
        &self,
        previous: Option<&Entry>,
        sent: &SentCredential,
        steps: &TraceSteps,
        memory: &mut Reservation,
    ) -> Result<ProviderReply, ProviderFailure> {
        let (provider, metrics) = (self.query.provider(), &self.shared.metrics.upstream);
        let named = self.query.headers.as_ref().map(|sent| sent.headers.clone());
        let mut conditions = named.unwrap_or_default();
        conditions.extend(previous.into_iter().flat_map(|previous| previous.conditions.iter().cloned()));
        conditions.extend(steps.headers());
        let (credential, path) = (&self.query.identity.credential, &self.query.path_and_query);
        let request = credential
            .read_request(sent, &provider.target, path, conditions, self.shared.now())
            .map_err(|error| ProviderFailure::new(FailureKind::Malformed, error.to_string()))?;
        provider.retry_budget.earn();
        self.tries.fetch_add(1, Ordering::Relaxed);
        let may_retry = |failure: &ProviderFailure| {
            let admitted = provider_admission::admit_retry(&self.guards, self.shared.now());
            let may_retry = admitted && provider.retry_budget.take();
            let outcome = if may_retry { "made" } else { "refused" };
            metrics.retries.with_label_values(&[&*provider.name, outcome]).inc();
            if may_retry {
                self.tries.fetch_add(1, Ordering::Relaxed);
                self.count_failure(failure);
            }
            may_retry
        };
        let timer = self.durations.start_timer();
        let reply = self.shared.upstream.send(&provider.target, &request, self.deadline, memory, may_retry).await;
        timer.observe_duration();
        reply.map(|reply| credential.masked(reply))
    }

    /// Translates an error by the provider's rules. Records the result in metrics, in the trace, and for the admission of
    /// later calls. `previous` is the stored entry that a 304 revalidates.
    ///
    /// # Errors
    /// The provider's error.
    fn judge(
        &self,
        reply: Result<ProviderReply, ProviderFailure>,
        previous: Option<&Entry>,
        steps: &mut TraceSteps,
    ) -> Result<ProviderReply, ProviderError> {
        match &reply {
            Ok(reply) => {
                match reply.status {
                    200 => self.ok_responses.inc(),
                    other => self.count(&other.to_string()),
                }
                steps.attribute("http.response.status_code", || TraceAttribute::Number(reply.status.into()));
            }
            Err(failure) => {
                self.count_failure(failure);
                steps.attribute("error.type", || TraceAttribute::Static(failure.kind.as_str()));
                steps.failed();
            }
        }
        let provider = self.query.provider();
        steps.attribute("http.request.method", || TraceAttribute::Static("GET"));
        steps.attribute("server.address", || TraceAttribute::Text(provider.target.authority().into()));
        let (errors, now) = (&provider.errors, self.shared.now());
        let result = match reply {
            Ok(reply) if reply.status == 200 || (reply.status == 304 && previous.is_some()) => Ok(reply),
            Ok(reply) => Err(errors.judge(reply, self.query.identity.credential.is_forwarded(), now)),
            Err(failure) => Err(errors.judge_failure(failure)),
        };
        provider_admission::record_result(&self.guards, result.as_ref().err(), self.had_whole_timeout, now);
        result
    }

    fn count_failure(&self, failure: &ProviderFailure) {
        self.shared.metrics.upstream.failed(&self.query.provider().name, self.operation.name(), failure.kind);
    }

    fn count(&self, status: &str) {
        let labels = [&*self.query.provider().name, self.operation.name(), status];
        self.shared.metrics.upstream.requests.with_label_values(&labels).inc();
    }
}

/// The entry made from a reply or from an error.
struct JudgedReply {
    entry: Entry,
    /// Why Weir must not store the entry; `None` if it may.
    not_stored: Option<&'static str>,
}

/// Makes an entry from a reply with status 200, or 304 for the stored entry `previous`.
///
/// # Errors
/// The body is unreadable.
fn entry_from_reply(
    shared: &SharedState,
    query: &ProviderQuery,
    reply: &ProviderReply,
    previous: Option<&Entry>,
    now: Time,
) -> Result<JudgedReply, Box<FetchError>> {
    let confirmed = previous.filter(|_| reply.status == 304);
    let directives = cache_directives(reply);
    // A 304 without Cache-Control leaves the stored directives in force (RFC 9111, section 4.3.4).
    let unchanged = confirmed.filter(|_| !reply.headers.contains_key(http::header::CACHE_CONTROL));
    let upstream = upstream_limit(reply, &directives, unchanged, now);
    if confirmed.is_none() {
        refuse_encoding(query.provider(), &reply.headers)
            .map_err(|error| Box::<FetchError>::from(error).with_reply(reply))?;
    }
    let body = confirmed.map_or_else(|| reply.body.clone(), |previous| previous.body.clone());
    let count = |field: &str, reason: &str| {
        let labels = [&*query.provider().name, field, reason];
        shared.metrics.upstream.mapping_failures.with_label_values(&labels).inc();
    };
    let names = query.operation()?.page_headers();
    let page_headers = PageHeaders::of(names, &reply.headers, confirmed.map(|previous| &previous.page_headers));
    let (mut entry, unmapped) = entry_from_body(query, body, page_headers, upstream, now).map_err(|error| {
        if let Some((field, reason)) = error.fault_of_session().map(metric_labels) {
            count(&field, reason);
        }
        error.with_reply(reply)
    })?;
    unmapped.sessions.iter().for_each(|(field, reason)| count(field, reason));
    for failure in &unmapped.fields {
        let field = failure.field.name();
        count(&field, failure.reason.as_str());
        failure.word.iter().for_each(|word| query.provider().unknown_words.record(&field, word));
    }
    entry.conditions = cache_control::conditions(&reply.headers);
    if let Some(previous) = confirmed.filter(|_| entry.conditions.is_empty()) {
        entry.conditions.clone_from(&previous.conditions);
    }
    if directives.no_cache || directives.no_store || unchanged.is_some_and(|previous| previous.always_revalidate) {
        entry.require_revalidation();
    }
    let cannot_revalidate = directives.no_cache && entry.conditions.is_empty();
    let varies = cache_control::varies_by_more(&reply.headers, query.provider().headers.passed_names());
    let not_stored = directives.no_store.then_some(NO_STORE).or(varies.then_some(VARY));
    let not_stored = not_stored.or(cannot_revalidate.then_some(NO_CACHE));
    Ok(JudgedReply { entry, not_stored })
}

/// Makes the entry of an error that says "not found".
///
/// # Errors
/// Any other error.
fn entry_from_error(query: &ProviderQuery, cause: FetchCause, now: Time) -> Result<JudgedReply, Box<FetchError>> {
    let error = match cause {
        FetchCause::Provider(error) if error.code().is_not_found() => error,
        other => return Err(other.into()),
    };
    let provider = query.provider();
    let no_store = error.reply.as_ref().is_some_and(|reply| cache_directives(reply).no_store);
    let passed = provider.headers.passed_names();
    let varies = error.reply.as_ref().is_some_and(|reply| cache_control::varies_by_more(&reply.headers, passed));
    // The body counts towards the entry's weight, although only native clients receive it.
    let body = error.reply.as_ref().map(|reply| reply.body.clone()).unwrap_or_default();
    let life = freshness::of_not_found(&provider.freshness, now).life;
    let kind = EntryKind::NotFound(Box::new(for_cache(error)));
    let entry = Entry::new(query.subject.clone(), kind, body, provider.rules, life);
    Ok(JudgedReply { entry, not_stored: no_store.then_some(NO_STORE).or(varies.then_some(VARY)) })
}

/// Returns the directives of a reply's `Cache-Control`.
fn cache_directives(reply: &ProviderReply) -> Directives {
    let values = reply.headers.get_all(http::header::CACHE_CONTROL);
    cache_control::directives(values.iter().map(http::HeaderValue::as_bytes))
}

/// Returns how the provider's caching headers limit the lifetime. If `unchanged` is given, the directives of that stored
/// entry stay in force.
fn upstream_limit(
    reply: &ProviderReply,
    directives: &Directives,
    unchanged: Option<&Entry>,
    now: Time,
) -> UpstreamLimit {
    let age = cache_control::age_header(&reply.headers);
    let from_reply = || UpstreamLimit {
        max_age: directives.max_age.map(|max_age| max_age.saturating_sub(cache_control::age(&reply.headers, now))),
        must_revalidate: directives.must_revalidate,
        age,
    };
    unchanged.map_or_else(from_reply, |previous| UpstreamLimit { age, ..previous.upstream })
}

/// The limit of a provider's error reply, headers and body, that is stored for native clients. In bytes.
const MAX_STORED_ERROR: usize = 64 << 10;

/// Prepares an error for the cache: copies the reply's headers out of the connection's buffer, and drops a reply above
/// the limit.
fn for_cache(mut error: ProviderError) -> ProviderError {
    error.reply = error.reply.and_then(|reply| {
        let headers = reply.headers.iter().map(|(name, value)| (name.clone(), cache_control::copied(value)));
        let headers: http::HeaderMap = headers.collect();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let body = reply.body.clone();
        let fits = bytes + body.len() <= MAX_STORED_ERROR;
        fits.then(|| Arc::new(ProviderReply { status: reply.status, headers, body }))
    });
    error
}

/// Refuses a body with a content encoding: Weir requests none, and a small compressed body can become a large one.
fn refuse_encoding(provider: &Provider, headers: &http::HeaderMap) -> Result<(), UnreadableBody> {
    let encoding =
        headers.get(http::header::CONTENT_ENCODING).filter(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity"));
    let Some(encoding) = encoding else { return Ok(()) };
    let fault = BodyFault::Encoded { encoding: format!("{encoding:?}") };
    Err(UnreadableBody { provider: provider.name.clone(), fault })
}

/// Returns the values of the labels `field` and `reason` for a session that cannot be used.
fn metric_labels((field, reason): (Option<Field>, &'static str)) -> (String, &'static str) {
    (field.map_or_else(|| "session".to_owned(), Field::name), reason)
}

/// What of a body could not be used.
#[derive(Debug, Default)]
pub struct UnmappedParts {
    /// Optional fields that could not be mapped.
    fields: Vec<MappingFailure>,
    /// The labels `field` and `reason` of sessions that could not be used.
    sessions: Vec<(String, &'static str)>,
}

/// Makes an entry from a body that arrived at `now` with these headers, with the view that most clients receive.
///
/// # Errors
/// The body is unreadable.
pub fn entry_from_body(
    query: &ProviderQuery,
    body: bytes::Bytes,
    page_headers: PageHeaders,
    upstream: UpstreamLimit,
    now: Time,
) -> Result<(Entry, UnmappedParts), Box<FetchError>> {
    let (provider, operation) = (query.provider(), query.operation()?);
    let (kind, life, view, unmapped) = {
        let native = parse(provider, &body)?;
        let parsed = operation.read(&provider.name, &provider.mapping, &native, &page_headers, now)?;
        let life = parsed.freshness(&provider.freshness, now, upstream).life;
        let kind = match &parsed.page {
            None => EntryKind::Session,
            Some(page) => EntryKind::Page(page.clone()),
        };
        let view = parsed.view(&provider.mapping, Show::default());
        let unusable = parsed.unusable.iter().filter_map(|session| session.fault.of_session());
        let sessions = unusable.map(metric_labels).collect();
        (kind, life, view, UnmappedParts { fields: parsed.mapping_failures, sessions })
    };
    let views = vec![CachedView { show: Show::default(), view: Arc::new(view) }];
    let entry = Entry::new(query.subject.clone(), kind, body, provider.rules, life);
    Ok((Entry { upstream, views, page_headers, ..entry }, unmapped))
}

/// Parses a provider's body.
///
/// # Errors
/// The body is not JSON.
pub(crate) fn parse<'t>(provider: &Provider, body: &'t [u8]) -> Result<ParsedJson<'t>, UnreadableBody> {
    ParsedJson::of(body).map_err(|error| {
        let bytes = body.len();
        let fault = match error.classify() {
            serde_json::error::Category::Eof => BodyFault::Incomplete { bytes },
            _ => BodyFault::NotJson { bytes },
        };
        UnreadableBody { provider: provider.name.clone(), fault }
    })
}
