//! Authenticates clients and enforces Weir's limits: sizes, requests in flight, invalid keys, rate limits.

use crate::base::endpoints::EXPLAIN;
use crate::base::ids::ClientId;
use crate::base::problem::{Code, Outcome, Problem};
use crate::base::request_reply::Request;
use crate::config::edge::counted_address;
use crate::engine::client_address;
use crate::engine::rate_limit::{self, BucketCharge, Cost, Refusal};
use crate::engine::request_record::{ProviderCost, RequestRecord};
use crate::engine::token_bucket::TokenBucket;
use crate::fetch::provider_query::{ProviderQuery, SharedState};
use crate::fetch::rate_limit_cost::{BucketCost, bucket_costs};
use crate::fetch::{self, CacheLookup};
use crate::pipeline::context::RequestContext;
use crate::pipeline::problems;
use crate::rules::request_limits::LimitExceeded;

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

/// Refuses the request if more than `overload.max_in_flight` requests are in flight, this one included.
///
/// # Errors
/// 503.
pub(crate) fn check_in_flight(context: &RequestContext<'_>) -> Outcome<()> {
    let limit = i64::from(context.snapshot.weir.overload.max_in_flight);
    if context.shared.metrics.http.in_flight.get() <= limit {
        return Ok(());
    }
    Err(problems::too_many_requests(limit))
}

/// Finds the client by its key, and checks that Weir has capacity for the request.
///
/// # Errors
/// 401 for a missing, unknown or expired key, 429 for too many failures from one address, 400 for an ambiguous `Host`,
/// several keys or an invalid `Weir-Explain`, 503 over `overload.max_in_flight`.
pub(crate) fn authenticate(context: &mut RequestContext<'_>, record: &mut RequestRecord) -> Outcome<ClientId> {
    record.steps.step("authenticate");
    check_host(context.request)?;
    let identified = context.snapshot.keys.identify(context.request, context.now);
    let id = identified.map_err(|error| authentication_failure(context, error.into(), record))?;
    context.client = Some(id);
    let client = &context.snapshot.clients[id];
    (record.client, record.vary) = (Some(client.id.clone()), client.vary.clone());
    if client.explain && wants_explanation(context.request)? {
        record.explain = Some(Box::default());
    }
    record.steps.decide(|| client.requested_traces.as_ref().is_some_and(TokenBucket::take_one));
    check_in_flight(context)?;
    Ok(id)
}

/// Counts a failed authentication. Returns its problem, or 429 if the address has had too many failures; the server delays
/// that response.
fn authentication_failure(
    context: &RequestContext<'_>,
    problem: Box<Problem>,
    record: &mut RequestRecord,
) -> Box<Problem> {
    let counter = &context.shared.metrics.edge.auth_failures;
    let address = client_address::address(context.request, &context.snapshot.weir.trusted_proxies).map(counted_address);
    let counted = context.snapshot.failures.as_ref().zip(address).map(|(failures, address)| failures.record(address));
    let Some(Err(wait)) = counted.filter(|_| problem.code == Code::Unauthorized) else {
        counter.with_label_values(&["told"]).inc();
        return problem;
    };
    counter.with_label_values(&["limited"]).inc();
    record.guessing_address = address;
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

/// Charges the client for the request: under all policies that apply, or under none if one of them refuses.
///
/// # Errors
/// 429 if a rate limit is exceeded, 400 if the request costs more than a policy's burst.
pub(crate) fn admit(
    context: &RequestContext<'_>,
    id: ClientId,
    costs: &[ProviderCost],
    record: &mut RequestRecord,
) -> Outcome<()> {
    if let Some(data) = &mut record.explain {
        data.costs = costs.to_vec();
    }
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
