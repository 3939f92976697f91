//! Delays the responses to clients that guess keys, so that a guess takes time.
//!
//! Only a request without a valid key from an address over `limits.auth_failures` is delayed. A valid key never is.

use crate::base::metrics::EdgeMetrics;
use crate::engine::open_files::ConnectionCaps;
use crate::engine::request_record::Guess;
use crate::server::connections::Connections;
use crate::server::log_limit::LogLimit;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How long a response is delayed.
const DELAY: Duration = Duration::from_secs(1);
/// The most responses that are delayed at the same time. Over it, a request gets no response.
const CAPS: ConnectionCaps = ConnectionCaps { total: 1024, per_address: 16 };

/// The delayed responses of all connections.
pub(crate) struct GuessDelay {
    delayed: Arc<Connections>,
    metrics: EdgeMetrics,
    /// What is guessed, for the log: `a key` or `the admin token`.
    secret: &'static str,
    log: LogLimit,
}

impl GuessDelay {
    #[must_use]
    pub(crate) fn new(metrics: &EdgeMetrics, secret: &'static str) -> Self {
        // `Connections` counts in this gauge.
        let metrics = EdgeMetrics { connections: metrics.auth_delayed.clone(), ..metrics.clone() };
        Self { delayed: Arc::default(), metrics, secret, log: LogLimit::default() }
    }

    /// Waits until the client may get its response. Returns how long it waited; `None` if the client gets no response,
    /// because too many are delayed.
    ///
    /// Through a proxy, the client gets its response at once then: a proxy takes a connection without a response for a
    /// fault of Weir, and may send it no further requests of others.
    pub(crate) async fn wait(&self, guess: Option<Guess>) -> Option<Duration> {
        let Some(Guess { address, through_proxy }) = guess else { return Some(Duration::ZERO) };
        if let Some(not_logged) = self.log.count(Instant::now().into_std()) {
            let secret = self.secret;
            warn!(%address, not_logged, "somebody may be guessing {secret}: requests with an invalid one are delayed; if too many are, they get no response, or 429 at once through a trusted proxy; this line comes once a minute at most");
        }
        let Ok(_delayed) = self.delayed.open(address, CAPS, &self.metrics) else {
            if through_proxy {
                self.metrics.auth_failures.with_label_values(&["undelayed"]).inc();
                return Some(Duration::ZERO);
            }
            self.metrics.auth_failures.with_label_values(&["dropped"]).inc();
            return None;
        };
        tokio::time::sleep(DELAY).await;
        Some(DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metrics;

    #[tokio::test(start_paused = true)]
    async fn delays_are_bounded_in_total_and_for_each_address() {
        let metrics = Metrics::new().unwrap().edge;
        let delay = Arc::new(GuessDelay::new(&metrics, "a key"));
        let begun = tokio::time::Instant::now();
        assert_eq!(delay.wait(None).await, Some(Duration::ZERO), "a client with a valid key");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let guess_through = |address: [u8; 4], through_proxy| {
            let delay = delay.clone();
            async move { delay.wait(Some(Guess { address: address.into(), through_proxy })).await }
        };
        let guess = |address| guess_through(address, false);
        let one = futures_util::future::join_all((0..20).map(|_| guess([10, 0, 0, 1]))).await;
        assert_eq!(one.iter().filter(|waited| **waited == Some(DELAY)).count(), CAPS.per_address);
        assert_eq!(begun.elapsed(), DELAY);
        let proxied = futures_util::future::join_all((0..20).map(|_| guess_through([10, 0, 0, 2], true))).await;
        assert_eq!(proxied.iter().filter(|waited| **waited == Some(Duration::ZERO)).count(), 20 - CAPS.per_address);
        assert_eq!(metrics.auth_failures.with_label_values(&["undelayed"]).get(), 4);
        let many = (0..2000_u16).map(|number| guess([10, 1, number.to_be_bytes()[0], number.to_be_bytes()[1]]));
        let many = futures_util::future::join_all(many).await;
        assert_eq!(many.iter().filter(|waited| **waited == Some(DELAY)).count(), CAPS.total);
        assert_eq!(metrics.auth_delayed.get(), 0, "all delays have ended");
        assert_eq!(metrics.auth_failures.with_label_values(&["dropped"]).get(), 4 + 2000 - 1024);
    }
}
