//! Sets the gauges that are computed whenever `/metrics` is read: the state of providers, and expiry times.

use crate::base::memory_budget::MemoryBudget;
use crate::base::metrics::Metrics;
use crate::base::model::Time;
use crate::engine::provider_quota::{LimitUsage, QuotaLimit, QuotaUsage};
use crate::runtime::snapshot::{Provider, Snapshot};

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
        set_flag(&upstream.breaker_open, is_breaker_open(provider, now));
        set_flag(&upstream.throttled, is_throttled(provider, now));
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

/// Returns whether a breaker is open, under any credential.
pub(crate) fn is_breaker_open(provider: &Provider, now: Time) -> bool {
    provider.breaker.open_until(now).is_some()
        || provider.quotas.breakers().any(|breaker| breaker.open_until(now).is_some())
}

/// Returns whether a pause that the provider requested lasts, under any credential.
pub(crate) fn is_throttled(provider: &Provider, now: Time) -> bool {
    provider.quotas.all().any(|quota| quota.pauses.all_until(now).is_some())
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
