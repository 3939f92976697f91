//! Limits how often a line is logged whose cause somebody else controls.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long no second line is logged.
const PERIOD: Duration = Duration::from_secs(60);

/// Lets one event in [`PERIOD`] be logged, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    /// When the last line was logged, and how many events had none since then.
    last: Mutex<(Option<Instant>, u64)>,
}

impl LogLimit {
    /// Counts an event at `now`. Returns how many events had no line since the last one if this event may have a line.
    pub(crate) fn count(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.is_some_and(|logged| now.saturating_duration_since(logged) < PERIOD) {
            last.1 += 1;
            return None;
        }
        let (_, without_line) = std::mem::replace(&mut *last, (Some(now), 0));
        Some(without_line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // any start will do
    fn one_line_a_minute_says_how_many_were_left_out() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        let at = |seconds| limit.count(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!([at(0), at(1), at(59)], [None; 3]);
        assert_eq!(at(60), Some(3));
        assert_eq!([at(61), at(119)], [None; 2]);
        assert_eq!(at(300), Some(2));
    }
}
