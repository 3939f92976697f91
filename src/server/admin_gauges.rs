//! Sets the gauges that are computed whenever `/metrics` is read: the state of providers, and expiry times.

use crate::base::memory_budget::MemoryBudget;
use crate::base::metrics::Metrics;
use crate::base::model::Time;
use crate::base::request_reply::FailureKind;
use crate::engine::provider_quota::{LimitUsage, QuotaLimit, QuotaUsage};
use crate::runtime::snapshot::Snapshot;
use prometheus::IntCounterVec;

/// The most series with a client that exist before their first count.
const MAX_CLIENT_SERIES: usize = 5_000;
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

/// Sets the gauges of providers. The reset removes providers that a reload has removed.
pub(crate) fn set_providers(metrics: &Metrics, snapshot: &Snapshot, now: Time) {
    let upstream = &metrics.upstream;
    upstream.breaker_open.reset();
    upstream.throttled.reset();
    upstream.capacity_limit.reset();
    upstream.capacity_left.reset();
    for provider in &snapshot.providers {
        let name = &*provider.name;
        let set_flag = |gauge: &prometheus::IntGaugeVec, on: bool| gauge.with_label_values(&[name]).set(on.into());
        let breaker_open = provider.breaker.open_until(now).is_some()
            || provider.quotas.breakers().any(|breaker| breaker.open_until(now).is_some());
        set_flag(&upstream.breaker_open, breaker_open);
        set_flag(&upstream.throttled, provider.quotas.all().any(|quota| quota.pauses.all_until(now).is_some()));
        let usages: Vec<QuotaUsage> = provider.quotas.all().filter_map(|quota| quota.usage()).collect();
        // A provider may have several quotas. The gauge shows the one with the least capacity left.
        let set_least = |limit: QuotaLimit, of: fn(&QuotaUsage) -> LimitUsage| {
            let least = usages.iter().map(of).min_by_key(|usage| usage.left);
            let Some(LimitUsage { total, left }) = least else { return };
            upstream.capacity_limit.with_label_values(&[name, limit.name()]).set(total as f64);
            upstream.capacity_left.with_label_values(&[name, limit.name()]).set(left as f64);
        };
        set_least(QuotaLimit::Rate, |usage| usage.rate);
        set_least(QuotaLimit::Concurrency, |usage| usage.concurrency);
    }
}

/// Sets the gauges of the memory that is reserved for responses. The reset removes clients that a reload has removed.
pub(crate) fn set_memory(metrics: &Metrics, snapshot: &Snapshot, budget: &MemoryBudget) {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    metrics.http.buffered.set(bytes(budget.used()));
    metrics.http.client_buffered.reset();
    for client in &snapshot.clients {
        metrics.http.client_buffered.with_label_values(&[&*client.id]).set(bytes(client.usage.bytes()));
    }
}

/// Creates the counters of providers and clients at 0. Without a first sample, `rate()` does not see the first count.
pub(crate) fn create_counters(metrics: &Metrics, snapshot: &Snapshot) {
    let (http, upstream, cache) = (&metrics.http, &metrics.upstream, &metrics.cache);
    for result in ["sent", "failed"] {
        http.trace_exports.with_label_values(&[result]);
    }
    let create = |counters: &IntCounterVec, provider: &str, values: &[&str]| {
        for value in values {
            counters.with_label_values(&[provider, *value]);
        }
    };
    for provider in &snapshot.providers {
        let name = &*provider.name;
        for kind in FailureKind::ALL {
            upstream.failures.with_label_values(&[name, kind.reason()]);
        }
        create(&upstream.refused, name, &["pause", "breaker", "rate", "concurrency", "share", "overload"]);
        create(&upstream.retries, name, &["made", "refused"]);
        create(&cache.requests, name, &["hit", "miss", "collapsed", "stale", "bypass"]);
        create(&cache.saved, name, &["hit", "collapsed", "stale"]);
        create(&http.watch_events, name, &["session", "problem", "explain"]);
    }
    let labels = snapshot.clients.iter().flat_map(|client| {
        let permitted = snapshot.providers.iter().zip(client.access.iter()).filter(|(_, access)| access.is_some());
        permitted.flat_map(move |(provider, _)| FAILURE_CODES.map(|code| [&*provider.name, &*client.id, code]))
    });
    labels.take(MAX_CLIENT_SERIES).for_each(|labels| drop(http.problems.with_label_values(&labels)));
}

/// Sets the gauges of the times at which certificates and keys expire.
pub(crate) fn set_expiries(metrics: &Metrics, snapshot: &Snapshot, now: Time) {
    let (certificate, key) = (&metrics.config.certificate_expiry, &metrics.config.key_expiry);
    let seconds = |at: Time| at.0 as f64 / 1000.0;
    certificate.reset();
    for (listener, at) in &snapshot.certificates {
        certificate.with_label_values(&[&listener.to_string()]).set(seconds(*at));
    }
    key.reset();
    for client in &snapshot.clients {
        let expiries = &client.key_expiries;
        if let Some(next) = expiries.iter().flatten().filter(|at| **at > now).min() {
            key.with_label_values(&[&*client.id, "next"]).set(seconds(*next));
        }
        // Only if all keys expire: after the last one, the client has no valid key.
        if let Some(last) = expiries.iter().flatten().max().filter(|_| expiries.iter().all(Option::is_some)) {
            key.with_label_values(&[&*client.id, "last"]).set(seconds(*last));
        }
    }
}
