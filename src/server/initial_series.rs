//! Creates the series of counters and histograms at 0, at the start and after each reload.
//!
//! Without a first sample, `rate()` does not see the first count, and a panel of a system without faults shows no data.
//! The label values are those of the configuration in force, so the number of series is known.

use crate::base::endpoints::{self, Endpoint, ResponseKind};
use crate::base::metrics::Metrics;
use crate::base::operation::Operation;
use crate::base::problem::TABLE;
use crate::base::request_reply::FailureKind;
use crate::pipeline::NATIVE;
use crate::pipeline::context::SEVERAL;
use crate::rules::freshness::TtlSource;
use crate::rules::route::NO_ROUTE;
use crate::runtime::snapshot::{Client, Provider, Snapshot};
use prometheus::IntCounterVec;

/// The most series with a client that exist before their first count.
const MAX_CLIENT_SERIES: usize = 5_000;
/// The most histograms of request durations that exist before their first count. Each has twenty series.
const MAX_DURATIONS: usize = 100;
/// The problem codes of failures, for which alerts exist.
const FAILURE_CODES: [&str; 8] = [
    "internal_error",
    "overloaded",
    "provider_auth_failed",
    "provider_error",
    "provider_invalid_response",
    "provider_rate_limited",
    "provider_timeout",
    "provider_unavailable",
];
/// The statuses of providers on which alerts and panels depend, beside the kinds of failure.
const PROVIDER_STATUSES: [&str; 10] = ["200", "304", "401", "403", "404", "429", "500", "502", "503", "504"];
/// The values of the label `cache`, the usual ones first.
const CACHE_RESULTS: [&str; 6] = ["miss", "hit", "none", "collapsed", "stale", "bypass"];
/// The label of a request without a provider, a client or a cache result.
const NONE: &str = "none";

/// Creates all series whose labels are known before a request.
pub(crate) fn create(metrics: &Metrics, snapshot: &Snapshot) {
    for result in ["sent", "failed"] {
        metrics.http.trace_exports.with_label_values(&[result]);
    }
    snapshot.providers.iter().for_each(|provider| self::provider(metrics, provider));
    routes(metrics, snapshot);
    clients(metrics, snapshot);
}

fn provider(metrics: &Metrics, provider: &Provider) {
    let (http, upstream, cache) = (&metrics.http, &metrics.upstream, &metrics.cache);
    let name = &*provider.name;
    let create = |counters: &IntCounterVec, values: &[&str]| {
        for value in values {
            counters.with_label_values(&[name, *value]);
        }
    };
    create(&upstream.failures, &FailureKind::ALL.map(FailureKind::reason));
    create(&upstream.refused, &["pause", "breaker", "rate", "concurrency", "share", "overload"]);
    create(&upstream.retries, &["made", "refused"]);
    create(&cache.requests, &["hit", "miss", "collapsed", "stale", "bypass"]);
    create(&cache.saved, &["hit", "collapsed", "stale"]);
    create(&http.watch_events, &["session", "problem", "explain"]);
    cache.entries.with_label_values(&[name]);
    for source in TtlSource::ALL {
        cache.ttl.with_label_values(&[name, source.as_str()]);
    }
    for operation in provider.operations.iter().map(|(operation, _)| operation.name()).chain([NATIVE]) {
        upstream.duration.with_label_values(&[name, operation]);
        for status in PROVIDER_STATUSES.into_iter().chain(FailureKind::ALL.map(FailureKind::as_str)) {
            upstream.requests.with_label_values(&[name, operation, status]);
        }
    }
    for (field, reason) in provider.mapping.possible_failures() {
        upstream.mapping_failures.with_label_values(&[name, &field.name(), reason.as_str()]);
    }
}

/// Creates the durations of each route. Only routes that need a provider have one as a label.
fn routes(metrics: &Metrics, snapshot: &Snapshot) {
    let http = &metrics.http;
    for endpoint in endpoints::ALL {
        http.overhead.with_label_values(&[endpoint.path]);
        http.duration.with_label_values(&[endpoint.path, NONE, NONE]);
    }
    for route in Operation::all().map(Operation::name).chain([NATIVE, NO_ROUTE]) {
        http.overhead.with_label_values(&[route]);
    }
    http.duration.with_label_values(&[NO_ROUTE, NONE, NONE]);
    let durations = CACHE_RESULTS.into_iter().flat_map(|cache| {
        let named = snapshot.providers.iter().map(|provider| (&*provider.name, routes_of(provider)));
        let several = (SEVERAL, several_routes());
        named
            .chain([several])
            .flat_map(move |(provider, routes)| routes.into_iter().map(move |route| [route, provider, cache]))
    });
    durations.take(MAX_DURATIONS).for_each(|labels| drop(http.duration.with_label_values(&labels)));
    // Requests without a valid key.
    for status in ["400", "401", "404", "405", "429"] {
        http.requests.with_label_values(&[NO_ROUTE, NONE, NONE, status]);
    }
    for (_, _, code, ..) in TABLE {
        http.problems.with_label_values(&[NONE, NONE, *code]);
    }
}

/// Returns the route labels of requests to one provider.
fn routes_of(provider: &Provider) -> Vec<&'static str> {
    let has_agents = provider.ids.accept.agent.is_some();
    let fits = |endpoint: &&&Endpoint| {
        let operation = match endpoint.response {
            ResponseKind::Page => Operation::ListSessions,
            _ => Operation::GetSession,
        };
        endpoint.response.needs_provider()
            && provider.operations.has(operation)
            && (has_agents || !endpoint.path.contains("/agents/"))
    };
    let unified = endpoints::ALL.iter().filter(fits);
    let native = provider.operations.iter().map(|(operation, _)| operation.name());
    unified.map(|endpoint| endpoint.path).chain(native).chain([NATIVE]).collect()
}

/// Returns the route labels of requests that can be to several providers: lists over sources, and batches.
fn several_routes() -> Vec<&'static str> {
    let can_have_several = |endpoint: &&Endpoint| match endpoint.response {
        ResponseKind::Batch => true,
        ResponseKind::Page => !endpoint.path.contains('{'),
        _ => false,
    };
    endpoints::ALL.iter().filter(|endpoint| can_have_several(endpoint)).map(|endpoint| endpoint.path).collect()
}

/// Creates the series with a client, up to a number: first those on which alerts depend.
fn clients(metrics: &Metrics, snapshot: &Snapshot) {
    let http = &metrics.http;
    let problems =
        |[provider, client, code]: [&str; 3]| drop(http.problems.with_label_values(&[provider, client, code]));
    let mut left = MAX_CLIENT_SERIES;
    let failures =
        pairs(snapshot).flat_map(|(client, provider)| FAILURE_CODES.map(|code| [&*provider.name, &*client.id, code]));
    take(&mut left, failures, problems);
    take(&mut left, decisions(snapshot), |[client, policy, decision]| {
        http.rate_limit.with_label_values(&[client, policy, decision]);
    });
    let served = pairs(snapshot).flat_map(|(client, provider)| {
        let routes = routes_of(provider).into_iter().filter(|route| client.native || route.starts_with('/'));
        routes.map(|route| [route, &*provider.name, &*client.id, "200"])
    });
    take(&mut left, served, |labels| drop(http.requests.with_label_values(&labels)));
    let codes = || TABLE.iter().map(|(_, _, code, ..)| *code);
    let without_provider = snapshot.clients.iter().flat_map(|client| codes().map(|code| [NONE, &*client.id, code]));
    take(&mut left, without_provider, problems);
    let others =
        pairs(snapshot).flat_map(|(client, provider)| codes().map(|code| [&*provider.name, &*client.id, code]));
    take(&mut left, others, problems);
}

/// Creates series until none is left.
fn take<L>(left: &mut usize, all: impl Iterator<Item = L>, create: impl Fn(L)) {
    for labels in all.take(*left) {
        create(labels);
        *left -= 1;
    }
}

/// Returns each client with each provider that it may use.
fn pairs(snapshot: &Snapshot) -> impl Iterator<Item = (&Client, &Provider)> {
    snapshot.clients.iter().flat_map(|client| {
        let permitted = snapshot.providers.iter().zip(client.access.iter()).filter(|(_, access)| access.is_some());
        permitted.map(move |(provider, _)| (client, provider))
    })
}

/// Returns the decisions of each policy of each client.
fn decisions(snapshot: &Snapshot) -> impl Iterator<Item = [&str; 3]> {
    snapshot.clients.iter().flat_map(|client| {
        let buckets = client.buckets.iter().chain(client.access.iter().flatten().flat_map(|access| &access.buckets));
        let policies = buckets.map(|bucket| bucket.limiter.policy.name.as_str());
        policies.flat_map(|policy| ["allowed", "limited"].map(|decision| [&*client.id, policy, decision]))
    })
}
