//! Authenticates clients and enforces Weir's limits: sizes, requests in flight, invalid keys, rate limits.

use crate::base::client_use::{CountGuard, Counted};
use crate::base::endpoints::EXPLAIN;
use crate::base::ids::ClientId;
use crate::base::problem::{Code, Outcome, Problem};
use crate::base::request_reply::Request;
use crate::config::edge::counted_address;
use crate::config::weir::AccessLog;
use crate::engine::client_address;
use crate::engine::rate_limit::{self, BucketCharge, Cost, Refusal};
use crate::engine::request_record::{Guess, ProviderCost, RequestRecord};
use crate::engine::strangers::Strangers;
use crate::engine::token_bucket::TokenBucket;
use crate::fetch::provider_query::{ProviderQuery, SharedState};
use crate::fetch::rate_limit_cost::{BucketCost, bucket_costs};
use crate::fetch::{self, CacheLookup};
use crate::pipeline::context::RequestContext;
use crate::pipeline::problems;
use crate::rules::request_limits::LimitExceeded;
use crate::rules::route::SessionName;
use crate::rules::watch_token::{self, Authenticated, WatchTokenError};
use crate::runtime::snapshot::Snapshot;
use std::net::IpAddr;

/// Translates the result of a size check, and counts an exceeded limit.
///
/// # Errors
/// 413, 414 or 431 if a limit is exceeded.
pub(crate) fn check_size(shared: &SharedState, size: Result<(), LimitExceeded>) -> Outcome<()> {
    size.map_err(|exceeded| {
        shared.metrics.edge.limited.with_label_values(&[exceeded.name()]).inc();
        exceeded.into()
    })
}

/// Refuses a request whose host is ambiguous: HTTP/1.1 without `Host`, or more than one (RFC 9112, section 3.2).
///
/// # Errors
/// 400.
pub(crate) fn check_host(request: &Request) -> Outcome<()> {
    let headers = &request.headers;
    match request.version {
        http::Version::HTTP_11 if !headers.contains("host") => Err(problems::invalid_host(true)),
        _ if headers.get_all("host").count() > 1 => Err(problems::invalid_host(false)),
        _ => Ok(()),
    }
}

/// Counts the request among all that are in flight, after its share was checked. Requests that are refused do not count:
/// they take no part of the limit from the others, not even while their responses are delayed or written.
///
/// # Errors
/// 503 over `overload.max_in_flight`.
fn count_among_all(context: &RequestContext<'_>, limit: u32) -> Outcome<CountGuard> {
    let (guard, count) = context.shared.in_flight.count(Counted::Requests);
    if count > i64::from(limit) { Err(problems::too_many_requests(limit.into())) } else { Ok(guard) }
}

/// Counts the request as in flight, unless all requests exceed the limit or those of its client their share.
///
/// # Errors
/// 503.
fn count_in_flight(context: &RequestContext<'_>, id: ClientId, record: &mut RequestRecord) -> Outcome<()> {
    let limit = context.snapshot.weir.overload.max_in_flight;
    let (of_client, count) = context.snapshot.clients[id].usage.count(Counted::Requests);
    let share = i64::try_from(context.snapshot.client_share(limit.into())).unwrap_or(i64::MAX);
    if count > share {
        return Err(problems::request_share(share));
    }
    record.in_flight = [Some(of_client), None, Some(count_among_all(context, limit)?)];
    Ok(())
}

/// Counts a request to a public path as in flight, unless those without a key exceed their share, all of them or those of
/// one address.
///
/// # Errors
/// 503.
pub(crate) fn count_public(
    context: &RequestContext<'_>,
    strangers: &Strangers,
    record: &mut RequestRecord,
) -> Outcome<()> {
    let limit = context.snapshot.weir.overload.max_in_flight;
    let counted = strangers.count_request(client_address(context), limit);
    let [of_address, of_strangers] = counted.map_err(problems::request_share_without_key)?;
    record.in_flight = [of_address, of_strangers, Some(count_among_all(context, limit)?)];
    Ok(())
}

/// Returns the client's address, as it is counted.
pub(crate) fn client_address(context: &RequestContext<'_>) -> Option<IpAddr> {
    client_address::address(context.request, &context.snapshot.weir.trusted_proxies).map(counted_address)
}

/// Returns the client's address for the access log; `None` if there is no log.
pub(crate) fn logged_address(request: &Request, snapshot: &Snapshot) -> Option<IpAddr> {
    let logged = snapshot.weir.access_log != AccessLog::Off;
    logged.then(|| client_address::address(request, &snapshot.weir.trusted_proxies)).flatten()
}

/// Finds the client by its key, or by the token of a watch, and checks that Weir has capacity for the request.
///
/// # Errors
/// 401 for a missing, unknown or expired key, 429 for too many failures from one address, 400 for an ambiguous `Host`,
/// several keys or an invalid `Weir-Explain`, 503 over `overload.max_in_flight` or the client's share of it.
pub(crate) fn authenticate(
    context: &mut RequestContext<'_>,
    record: &mut RequestRecord,
    is_native: bool,
) -> Outcome<Authenticated> {
    record.steps.step("authenticate");
    check_host(context.request)?;
    let snapshot = &context.snapshot;
    let (keys, tokens) = (&snapshot.keys, &snapshot.watch_tokens);
    let found = watch_token::authenticate(keys, tokens, context.request, context.now, is_native);
    let found = found.map_err(|error| authentication_failure(context, error.into(), record))?;
    (context.client, context.authenticated) = (Some(found.client), Some(found));
    let id = found.client;
    let client = &context.snapshot.clients[id];
    (record.client, record.vary) = (Some(client.id.clone()), client.vary.clone());
    // An explanation shows more than the session.
    if client.explain && found.session.is_none() && wants_explanation(context.request)? {
        record.explain = Some(Box::default());
    }
    record.steps.decide(|| client.requested_traces.as_ref().is_some_and(TokenBucket::take_one));
    count_in_flight(context, id, record)?;
    Ok(found)
}

/// Checks that a request with a watch token is about the session of the token.
///
/// # Errors
/// 401 for another session.
pub(crate) fn check_watch_token(
    context: &RequestContext<'_>,
    name: &SessionName,
    record: &mut RequestRecord,
) -> Outcome<()> {
    let Some(permitted) = context.authenticated.and_then(|authenticated| authenticated.session) else { return Ok(()) };
    if permitted == context.snapshot.session_tag(name) {
        return Ok(());
    }
    Err(authentication_failure(context, WatchTokenError::OtherSession.into(), record))
}

/// Counts a failed authentication. Returns its problem, or 429 if the address has had too many failures; the server delays
/// that response.
fn authentication_failure(
    context: &RequestContext<'_>,
    problem: Box<Problem>,
    record: &mut RequestRecord,
) -> Box<Problem> {
    let counter = &context.shared.metrics.edge.auth_failures;
    let address = client_address(context);
    let counted = context.snapshot.failures.as_ref().zip(address).map(|(failures, address)| failures.record(address));
    let Some(Err(wait)) = counted.filter(|_| problem.code == Code::Unauthorized) else {
        counter.with_label_values(&["told"]).inc();
        return problem;
    };
    counter.with_label_values(&["limited"]).inc();
    let through_proxy = client_address::is_from_trusted_proxy(context.request, &context.snapshot.weir.trusted_proxies);
    record.guess = address.map(|address| Guess { address, through_proxy });
    problems::too_many_invalid_keys(wait)
}

/// Returns whether the request has `Weir-Explain: 1`.
///
/// # Errors
/// 400 for any other value.
fn wants_explanation(request: &Request) -> Outcome<bool> {
    match request.headers.get(EXPLAIN.name) {
        None => Ok(false),
        Some(b"1") => Ok(true),
        Some(_) => Err(problems::invalid_explain()),
    }
}

/// Looks a query up in the cache, and then charges the client for it. The lookup comes first, because a policy can
/// charge cache misses only.
///
/// # Errors
/// 429 if a rate limit is exceeded.
pub(crate) fn look_up_and_admit(
    context: &RequestContext<'_>,
    client: ClientId,
    query: &ProviderQuery,
    record: &mut RequestRecord,
) -> Outcome<CacheLookup> {
    let lookup = fetch::look_up(context.shared, query, context.directives, context.now);
    let cost = ProviderCost { provider: context.providers.first().copied(), cost: Cost::one(lookup.is_hit()) };
    admit(context, client, &[cost], record)?;
    Ok(lookup)
}

/// The memory of a request that waits for providers, besides that of its connection: over HTTP/1 and over HTTP/2.
const WAITING_BYTES: [usize; 2] = [4 << 10, 28 << 10];
/// The memory of each of several calls that a request waits for.
const PART_BYTES: usize = 8 << 10;
/// The memory of the explanation of a request, and of each provider response that it needs.
const EXPLANATION_BYTES: usize = 16 << 10;

/// Reserves the memory of the request until its response is made, if it needs more than its connection has: to wait for
/// providers, or for an explanation.
///
/// # Errors
/// 503 if it would exceed the client's share.
fn reserve_waiting(
    context: &RequestContext<'_>,
    id: ClientId,
    costs: &[ProviderCost],
    record: &mut RequestRecord,
) -> Outcome<()> {
    let calls = costs.iter().filter(|cost| cost.cost.misses > 0).count();
    let waiting = WAITING_BYTES[usize::from(context.request.version == http::Version::HTTP_2)];
    let parts = if calls > 1 { calls * PART_BYTES } else { 0 };
    let explanation = if record.explain.is_some() { (1 + costs.len()) * EXPLANATION_BYTES } else { 0 };
    let bytes = explanation + if calls > 0 { waiting + parts } else { 0 };
    if bytes > 0 {
        let share = context.snapshot.memory_share(id, &context.shared.upstream.budget);
        record.waiting = Some(share.reserve(bytes)?);
    }
    Ok(())
}

/// Reserves the memory with which the request waits, and charges the client for it: under all policies that apply, or under
/// none if one of them refuses.
///
/// # Errors
/// 503 if there is no memory, 429 if a rate limit is exceeded, 400 if the request costs more than a policy's burst.
pub(crate) fn admit(
    context: &RequestContext<'_>,
    id: ClientId,
    costs: &[ProviderCost],
    record: &mut RequestRecord,
) -> Outcome<()> {
    if let Some(data) = &mut record.explain {
        data.costs = costs.to_vec();
    }
    reserve_waiting(context, id, costs, record)?;
    let client = &context.snapshot.clients[id];
    let charges: Vec<BucketCharge<'_>> =
        bucket_costs(&context.snapshot, id, &context.providers, costs).filter_map(BucketCost::charge).collect();
    let decision = rate_limit::admit(&charges, &client.admission_lock);
    let violated = match &decision {
        Err(Refusal::Limited { policies, .. }) => policies.as_slice(),
        _ => &[],
    };
    for BucketCharge { bucket, .. } in &charges {
        let policy = &bucket.limiter.policy.name;
        let counter = |result| context.shared.metrics.http.rate_limit.with_label_values(&[&*client.id, policy, result]);
        if decision.is_ok() {
            bucket.admitted.get_or_init(|| counter("allowed")).inc();
        } else if violated.contains(policy) {
            counter("limited").inc();
        }
    }
    decision.map_err(|refusal| problems::over_rate_limit(&client.id, &context.buckets(), refusal))
}
