//! Decides whether Weir may call a provider now, and records how calls end.
//!
//! All calls pass through this file: calls that fill the cache, and forwarded requests. Nothing here sends a request.
//! Callers pass the time or the clock.

use crate::base::metrics::UpstreamMetrics;
use crate::base::model::Time;
use crate::base::problem::Code;
use crate::base::request_reply::FailureKind;
use crate::engine::breaker::{ProviderQuota, QuotaLimit};
use crate::rules::error_rules::{ProviderError, ProviderErrorCause};
use crate::runtime::snapshot::Provider;
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// Why Weir does not call a provider now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum NotAdmitted {
    #[error("{provider} throttles requests; Weir has paused its calls to it")]
    Pause { provider: Arc<str>, wait: Duration },
    #[error("{provider} failed repeatedly; its breaker is open")]
    Breaker { provider: Arc<str>, wait: Duration },
    #[error("Weir's capacity for {provider} is used up")]
    Capacity { provider: Arc<str>, limit: QuotaLimit, wait: Duration },
    #[error(
        "this client has {limit} forwarded requests to {provider} in flight, which is the limit (half of \
         capacity.concurrent)"
    )]
    ClientShare { provider: Arc<str>, limit: usize },
    #[error("{limit} calls to providers are in flight, which is the limit (overload.max_in_flight)")]
    TooManyCalls { limit: i64 },
}

impl NotAdmitted {
    /// Returns the problem code of the refusal.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Pause { .. } | Self::Capacity { .. } | Self::ClientShare { .. } => Code::ProviderRateLimited,
            Self::Breaker { .. } => Code::ProviderUnavailable,
            Self::TooManyCalls { .. } => Code::Overloaded,
        }
    }

    /// Returns the metric's `reason` label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pause { .. } => "pause",
            Self::Breaker { .. } => "breaker",
            Self::Capacity { limit, .. } => limit.name(),
            Self::ClientShare { .. } => "share",
            Self::TooManyCalls { .. } => "overload",
        }
    }

    /// Counts the refusal, and returns it.
    fn counted(self, metrics: &UpstreamMetrics, provider: &str) -> Self {
        metrics.refused.with_label_values(&[provider, self.reason()]).inc();
        self
    }
}

/// Counts a call as in flight until dropped.
pub(crate) struct CallInFlight(IntGauge);

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a call as in flight. The limit exists for calls that no request waits for: background refreshes, and calls whose
/// clients have closed their connections. Requests in flight have their own limit.
///
/// # Errors
/// The limit of calls in flight is reached.
pub(crate) fn count_call(metrics: &UpstreamMetrics, provider: &str, limit: i64) -> Result<CallInFlight, NotAdmitted> {
    metrics.calls.inc();
    let call = CallInFlight(metrics.calls.clone());
    if metrics.calls.get() <= limit {
        return Ok(call);
    }
    Err(NotAdmitted::TooManyCalls { limit }.counted(metrics, provider))
}

/// Waits, at most until `latest`, until the client has fewer forwarded requests in flight than its share. Call it
/// before [`admit`], so that a client above its share does not wait in the provider's queue.
///
/// # Errors
/// The client's share is used up.
pub(crate) async fn acquire_client_share(
    metrics: &UpstreamMetrics,
    provider: &Provider,
    quota: &ProviderQuota,
    client: &Arc<str>,
    latest: Instant,
) -> Result<OwnedSemaphorePermit, NotAdmitted> {
    if let Ok(Some(permit)) = timeout_at(latest, quota.client_shares.acquire(client)).await {
        return Ok(permit);
    }
    let name = &provider.name;
    let refusal = NotAdmitted::ClientShare { provider: name.clone(), limit: quota.client_shares.max_permits };
    Err(refusal.counted(metrics, name))
}

/// Waits for a permit to call a provider, at most until `latest`. `clock` is read before and after the wait.
///
/// # Errors
/// The provider is paused, its breaker is open, or its capacity is used up.
pub(crate) async fn admit(
    metrics: &UpstreamMetrics,
    provider: &Provider,
    quota: &ProviderQuota,
    client: &Arc<str>,
    latest: Instant,
    clock: fn() -> Time,
) -> Result<OwnedSemaphorePermit, NotAdmitted> {
    let admitted = try_admit(provider, quota, client, latest, clock).await;
    admitted.map_err(|refusal| refusal.counted(metrics, &provider.name))
}

async fn try_admit(
    provider: &Provider,
    quota: &ProviderQuota,
    client: &Arc<str>,
    latest: Instant,
    clock: fn() -> Time,
) -> Result<OwnedSemaphorePermit, NotAdmitted> {
    let name = || provider.name.clone();
    let breaker_open = |until: Time, now: Time| NotAdmitted::Breaker { provider: name(), wait: until.since(now) };
    let check = || {
        let now = clock();
        if let Some(until) = quota.paused_until(now) {
            return Err(NotAdmitted::Pause { provider: name(), wait: until.since(now) });
        }
        provider.breaker.open_until(now).map_or(Ok(()), |until| Err(breaker_open(until, now)))
    };
    // Checked before the wait, to refuse at once, and after it, because the state may have changed.
    check()?;
    let busy = |limit, wait| NotAdmitted::Capacity { provider: name(), limit, wait };
    let permit = quota.acquire(client, latest, check, busy).await?;
    let now = clock();
    provider.breaker.admit(now).map_err(|until| breaker_open(until, now))?;
    Ok(permit)
}

/// Returns whether a call may send its request once more: there is no pause, the breaker is not open, and the quota has a
/// call left. Takes that call from the quota.
#[must_use]
pub(crate) fn admit_retry(provider: &Provider, quota: &ProviderQuota, now: Time) -> bool {
    provider.breaker.open_until(now).is_none() && quota.paused_until(now).is_none() && quota.try_take()
}

/// Updates the breaker and the pause from how a request ended. Call it before the permit is dropped, so that the next
/// call sees the new state.
pub(crate) fn record_result(provider: &Provider, quota: &ProviderQuota, error: Option<&ProviderError>, now: Time) {
    let succeeded = match error.map(|error| &error.cause) {
        None => true,
        Some(ProviderErrorCause::Failure(failure)) => match failure.kind {
            // Weir reached its own limit, which says nothing about the provider.
            FailureKind::Overloaded => return,
            FailureKind::TooLarge => true,
            _ => false,
        },
        // A provider that throttles (503) or refuses the request (below 500) works.
        Some(
            ProviderErrorCause::Response { status, .. } | ProviderErrorCause::ForwardedCredentialRefused { status },
        ) => *status < 500 || *status == 503,
    };
    provider.breaker.record(succeeded, now);
    if let Some(wait) = error.and_then(|error| error.wait) {
        quota.pause_until(now.plus(wait));
    }
}
