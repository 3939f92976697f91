//! Checks that a client sends a forwarded request body fast enough: each part, and the whole body, within a timeout.
//!
//! The code that forwards the parts reports each one, and another task waits for the timeout. This module does not
//! store the body and does not end the request.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The timeout that a body exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyTimeout {
    /// The timeout for the next part.
    Stall,
    /// The timeout for the whole body.
    Whole,
}

impl BodyTimeout {
    /// Returns the timeout's config key.
    #[must_use]
    pub fn limit(self) -> &'static str {
        match self {
            Self::Stall => "stall_timeout",
            Self::Whole => "body_timeout",
        }
    }
}

/// The deadlines of one request body.
#[derive(Debug)]
pub struct BodyDeadline {
    stall_timeout: Duration,
    whole_deadline: Instant,
    /// When the last part arrived; `None` once the body is complete.
    last_part_at: Mutex<Option<Instant>>,
    progress: Notify,
}

impl BodyDeadline {
    /// Starts both timeouts at `now`.
    #[must_use]
    pub fn new(stall_timeout: Duration, body_timeout: Duration, now: Instant) -> Self {
        Self {
            stall_timeout,
            whole_deadline: now + body_timeout,
            last_part_at: Mutex::new(Some(now)),
            progress: Notify::new(),
        }
    }

    fn last_part_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last_part_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a part arrived.
    pub fn part_received(&self, now: Instant, is_last: bool) {
        *self.last_part_at() = (!is_last).then_some(now);
        self.progress.notify_one();
    }

    /// Returns the timeout that the body has exceeded, if any.
    #[must_use]
    pub fn exceeded(&self, now: Instant) -> Option<BodyTimeout> {
        let last_part_at = (*self.last_part_at())?;
        if now >= self.whole_deadline {
            return Some(BodyTimeout::Whole);
        }
        (now >= last_part_at + self.stall_timeout).then_some(BodyTimeout::Stall)
    }

    /// Returns the time at which the next part is due; `None` if the body is complete.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.last_part_at().map(|last_part_at| self.whole_deadline.min(last_part_at + self.stall_timeout))
    }

    /// Waits until the body exceeds a timeout, and returns that timeout. Never returns for a complete body.
    pub async fn wait_until_exceeded(&self) -> BodyTimeout {
        loop {
            let Some(until) = self.next_deadline() else {
                self.progress.notified().await;
                continue;
            };
            sleep_until(until).await;
            if let Some(late) = self.exceeded(Instant::now()) {
                return late;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_part_and_the_whole_body_have_a_timeout() {
        let started = Instant::now();
        let deadline = BodyDeadline::new(3 * SECOND, 10 * SECOND, started);
        assert_eq!(deadline.next_deadline(), Some(started + 3 * SECOND));
        assert_eq!(deadline.exceeded(started + 2 * SECOND), None);
        assert_eq!(deadline.exceeded(started + 3 * SECOND), Some(BodyTimeout::Stall));
        for n in 1..5 {
            deadline.part_received(started + 2 * n * SECOND, false);
        }
        assert_eq!(deadline.next_deadline(), Some(started + 10 * SECOND), "the deadline of the whole body comes first");
        assert_eq!(deadline.exceeded(started + 10 * SECOND), Some(BodyTimeout::Whole));
        deadline.part_received(started + 9 * SECOND, true);
        assert_eq!((deadline.next_deadline(), deadline.exceeded(started + 100 * SECOND)), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_at_a_timeout_and_never_for_a_complete_body() {
        let deadline = BodyDeadline::new(3 * SECOND, 10 * SECOND, Instant::now());
        assert_eq!(tokio::time::timeout(4 * SECOND, deadline.wait_until_exceeded()).await, Ok(BodyTimeout::Stall));
        deadline.part_received(Instant::now(), true);
        assert!(tokio::time::timeout(100 * SECOND, deadline.wait_until_exceeded()).await.is_err());
    }
}
