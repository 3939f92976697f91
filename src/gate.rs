//! Whether a provider may be asked now, and what its answers say of that.
//!
//! A room of its own because every way to a provider goes through it: calls that fill the cache and
//! requests that are passed on. It asks nothing itself.

use crate::breaker::Tap;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{FailureKind, ProviderFailure, ProviderReply};
use crate::metrics::UpstreamMetrics;
use crate::model::Time;
use crate::runtime;
use crate::runtime::snapshot::Provider;
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// A call under way, counted until dropped.
pub struct UnderWay(IntGauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a call in, if there are fewer than `most`. Requests in flight are bounded already; this bounds the
/// calls that nobody waits for any more: refreshes behind an answer, and those whose callers hung up.
///
/// # Errors
/// 503 `overloaded`.
pub fn begin(metrics: &UpstreamMetrics, provider: &str, most: i64) -> Outcome<UnderWay> {
    metrics.calls.inc();
    let counted = UnderWay(metrics.calls.clone());
    if metrics.calls.get() <= most {
        return Ok(counted);
    }
    metrics.refused.with_label_values(&[provider, "overload"]).inc();
    let detail = format!("{most} calls to providers are under way; more are not begun");
    Err(Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000)))
}

/// Waits until a client holds less than its share of a provider's turns, at most until `latest`. It is asked for
/// before a turn is waited for: who is over its share is not in line.
///
/// # Errors
/// 503.
pub async fn share(
    metrics: &UpstreamMetrics,
    provider: &Provider,
    tap: &Tap,
    client: &Arc<str>,
    latest: Instant,
) -> Outcome<OwnedSemaphorePermit> {
    if let Ok(Some(share)) = timeout_at(latest, tap.shares.take(client)).await {
        return Ok(share);
    }
    let name = &provider.name;
    metrics.refused.with_label_values(&[&**name, "share"]).inc();
    let most = tap.shares.most;
    let detail = format!("this client has {most} requests to {name} under way that are passed on, as many as one may");
    Err(Box::new(Problem::new(Code::ProviderRateLimited, detail).of(name).retry_after_ms(1000)))
}

/// Waits for a turn at a provider, at most until `latest`: past pauses, breaker and capacity.
///
/// # Errors
/// 503, with what stands against it and for how long.
pub async fn pass(
    metrics: &UpstreamMetrics,
    provider: &Provider,
    tap: &Tap,
    client: &Arc<str>,
    latest: Instant,
) -> Outcome<OwnedSemaphorePermit> {
    let name = &provider.name;
    let refuse = |reason, code, detail: String, wait: Duration| {
        metrics.refused.with_label_values(&[&**name, reason]).inc();
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Box::new(Problem::new(code, detail).of(name).retry_after_ms(ms))
    };
    let broken = |until: Time, now: Time| {
        let detail = format!("{name} failed repeatedly; it is not asked for a while");
        refuse("breaker", Code::ProviderUnavailable, detail, until.since(now))
    };
    // Judged before the wait, so that nobody waits in vain, and after it, for what happened meanwhile.
    let open = || {
        let now = runtime::now();
        if let Some(until) = tap.closed_until(now) {
            let detail = format!("{name} asked for a pause, which lasts");
            return Err(refuse("pause", Code::ProviderRateLimited, detail, until.since(now)));
        }
        provider.breaker.open_until(now).map_or(Ok(()), |until| Err(broken(until, now)))
    };
    open()?;
    let busy = |what, wait: Duration| {
        refuse(what, Code::ProviderRateLimited, format!("Weir's capacity for {name} is used up"), wait)
    };
    let turn = tap.turn(client, latest, open, busy).await?;
    let now = runtime::now();
    provider.breaker.admit(now).map_err(|until| broken(until, now))?;
    Ok(turn)
}

/// Whether a request may go out once more: nothing stands against it, and its quota has room. Takes of the quota.
#[must_use]
pub fn again(provider: &Provider, tap: &Tap) -> bool {
    let now = runtime::now();
    provider.breaker.open_until(now).is_none() && tap.closed_until(now).is_none() && tap.take()
}

/// What an outcome says of the provider, told while the turn is still held: whoever comes next knows.
pub fn learn(provider: &Provider, tap: &Tap, reply: &Result<ProviderReply, ProviderFailure>) {
    let now = runtime::now();
    match reply {
        // Throttling and refusals are answers, and so is a body that cannot be used: it is up.
        Ok(reply) => {
            provider.breaker.record(reply.status < 500 || reply.status == 503, now);
            if !matches!(reply.status, 200..=399) {
                let problem = provider.errors.judge(reply, now);
                if let Some(seconds) = problem.retry_after {
                    tap.close(now.plus(Duration::from_secs(seconds)));
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
