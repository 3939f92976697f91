//! How fast a client must send a body that is passed on: each part within a time, and all of it within another.
//!
//! A room of its own because it is seen from two sides: by who passes the parts on, and by who waits for the
//! next one. It holds no body and ends nothing; it says what is late.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// What a body was too slow for, by the name of its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// The next part.
    Stalled,
    /// The whole.
    Whole,
}

impl Late {
    /// The limit's name.
    #[must_use]
    pub fn limit(self) -> &'static str {
        match self {
            Self::Stalled => "stall_timeout",
            Self::Whole => "body_timeout",
        }
    }
}

/// A body as far as it has come.
#[derive(Debug)]
pub struct Pace {
    stall: Duration,
    whole: Instant,
    /// When the last part came; `None` once there is no more to come.
    last: Mutex<Option<Instant>>,
    moved: Notify,
}

impl Pace {
    /// A body that begins now.
    #[must_use]
    pub fn new(stall: Duration, whole: Duration, now: Instant) -> Self {
        Self { stall, whole: now + whole, last: Mutex::new(Some(now)), moved: Notify::new() }
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part came; it may have been the last.
    pub fn came(&self, now: Instant, over: bool) {
        *self.last() = (!over).then_some(now);
        self.moved.notify_one();
    }

    /// What it is late with, by now.
    #[must_use]
    pub fn late(&self, now: Instant) -> Option<Late> {
        let last = (*self.last())?;
        if now >= self.whole {
            return Some(Late::Whole);
        }
        (now >= last + self.stall).then_some(Late::Stalled)
    }

    /// Until when the next part must come; `None` where none is to come.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.last().map(|last| self.whole.min(last + self.stall))
    }

    /// Ends when it is late.
    pub async fn missed(&self) -> Late {
        loop {
            let Some(until) = self.until() else {
                self.moved.notified().await;
                continue;
            };
            sleep_until(until).await;
            if let Some(late) = self.late(Instant::now()) {
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
    async fn each_part_and_the_whole_have_their_time() {
        let begun = Instant::now();
        let pace = Pace::new(3 * SECOND, 10 * SECOND, begun);
        assert_eq!(pace.until(), Some(begun + 3 * SECOND));
        assert_eq!(pace.late(begun + 2 * SECOND), None);
        assert_eq!(pace.late(begun + 3 * SECOND), Some(Late::Stalled));
        for n in 1..5 {
            pace.came(begun + 2 * n * SECOND, false);
        }
        assert_eq!(pace.until(), Some(begun + 10 * SECOND), "what is left of the whole");
        assert_eq!(pace.late(begun + 10 * SECOND), Some(Late::Whole));
        pace.came(begun + 9 * SECOND, true);
        assert_eq!((pace.until(), pace.late(begun + 100 * SECOND)), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_when_it_is_late_and_never_of_one_that_is_whole() {
        let pace = Pace::new(3 * SECOND, 10 * SECOND, Instant::now());
        assert_eq!(tokio::time::timeout(4 * SECOND, pace.missed()).await, Ok(Late::Stalled));
        pace.came(Instant::now(), true);
        assert!(tokio::time::timeout(100 * SECOND, pace.missed()).await.is_err());
    }
}
