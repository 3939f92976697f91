//! Implements a deadline that one task polls and moves often.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A point in time to poll for.
///
/// Moving it costs almost nothing: the timer is moved only if it fires before the deadline, or if the deadline has moved
/// to an earlier time.
pub(crate) struct Deadline {
    at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Deadline {
    pub(crate) fn new() -> Self {
        Self { at: Instant::now(), timer: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    /// Moves the deadline to `limit` from now.
    pub(crate) fn set(&mut self, limit: Duration) {
        self.set_from(Instant::now(), limit);
    }

    /// Moves the deadline to `limit` after `start`.
    pub(crate) fn set_from(&mut self, start: Instant, limit: Duration) {
        self.at = start + limit;
    }

    /// Returns `Ready` once the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.deadline() != self.at {
            if self.timer.deadline() > self.at {
                self.timer.as_mut().reset(self.at);
            }
            ready!(self.timer.as_mut().poll(cx));
            self.timer.as_mut().reset(self.at);
        }
        self.timer.as_mut().poll(cx)
    }
}
