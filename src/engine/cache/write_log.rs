//! Records writes that passed through Weir, and checks whether a response was requested before a write.
//!
//! The log is bounded. After it evicts writes, responses older than the highest evicted sequence number count as
//! outdated, because the log no longer knows their writes.

use crate::base::model::Time;
use crate::rules::purge::Subject;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The stored responses that a write outdates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WriteScope {
    /// Responses about this session, or about these lists if the subject names no session.
    Subject(Subject),
    /// All responses about the subject's agent. The subject names no session.
    Agent(Subject),
}

/// When a write happened.
#[derive(Debug, Clone, Copy)]
struct WriteStamp {
    /// Requests with a lower sequence number were sent before the write.
    sequence: u64,
    at: Time,
}

/// The most writes that the log keeps.
const MAX_WRITES: usize = 100_000;

/// The last writes to each scope.
pub(super) struct WriteLog {
    /// The last write to each scope in `order`. A concurrent map, because every cache lookup reads it.
    last: moka::sync::Cache<Arc<WriteScope>, WriteStamp>,
    /// All writes in the log, oldest first. A scope occurs once for each of its writes.
    order: Mutex<VecDeque<(Arc<WriteScope>, WriteStamp)>>,
    max_writes: usize,
    newest_sequence: AtomicU64,
    /// The highest sequence number that the log evicted.
    evicted_sequence: AtomicU64,
    /// The latest time of an evicted write, in milliseconds; `i64::MIN` if there is none.
    evicted_at: AtomicI64,
}

impl Default for WriteLog {
    fn default() -> Self {
        Self::with_capacity(MAX_WRITES)
    }
}

impl WriteLog {
    fn with_capacity(max_writes: usize) -> Self {
        Self {
            last: moka::sync::Cache::builder().build(),
            order: Mutex::default(),
            max_writes,
            newest_sequence: AtomicU64::new(0),
            evicted_sequence: AtomicU64::new(0),
            evicted_at: AtomicI64::new(i64::MIN),
        }
    }

    /// Adds a write. Sequence numbers and times must not decrease.
    pub(super) fn add(&self, scope: WriteScope, sequence: u64, at: Time) {
        let (scope, stamp) = (Arc::new(scope), WriteStamp { sequence, at });
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        order.push_back((scope.clone(), stamp));
        self.last.insert(scope, stamp);
        if order.len() > self.max_writes
            && let Some((oldest, stamp)) = order.pop_front()
            && self.last.get(&oldest).is_some_and(|last| last.sequence == stamp.sequence)
        {
            // Raised before the write leaves the map, so that every reader finds one or the other.
            self.evicted_at.fetch_max(stamp.at.0, Ordering::AcqRel);
            self.evicted_sequence.fetch_max(stamp.sequence, Ordering::AcqRel);
            self.last.invalidate(&oldest);
        }
        self.newest_sequence.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Checks whether a write outdates the response to the request with this sequence number. A "not found" response
    /// (`not_found`) is also outdated by a write to the lists: the session may be in them now.
    #[must_use]
    pub(super) fn is_outdated(&self, subject: &Subject, not_found: bool, sequence: u64) -> bool {
        // The first comparison is cheap and nearly always decides.
        sequence < self.newest_sequence.load(Ordering::Acquire)
            && (self.writes_to(subject, not_found).any(|stamp| sequence < stamp.sequence)
                || sequence < self.evicted_sequence.load(Ordering::Acquire))
    }

    /// Returns the time of the last write to this subject or its lists. If the log has evicted writes, returns at least
    /// the time of the latest of them.
    #[must_use]
    pub(super) fn last_write_at(&self, subject: &Subject) -> Option<Time> {
        if self.newest_sequence.load(Ordering::Acquire) == 0 {
            return None;
        }
        let known = self.writes_to(subject, true).map(|stamp| stamp.at).max();
        let evicted = Time(self.evicted_at.load(Ordering::Acquire));
        known.max((evicted > Time(i64::MIN)).then_some(evicted))
    }

    fn writes_to(&self, subject: &Subject, with_lists: bool) -> impl Iterator<Item = WriteStamp> {
        let lists_subject = Subject { session: None, ..subject.clone() };
        let lists = (with_lists && subject.session.is_some()).then(|| WriteScope::Subject(lists_subject.clone()));
        let agent = subject.agent.is_some().then_some(WriteScope::Agent(lists_subject));
        let scopes = [Some(WriteScope::Subject(subject.clone())), lists, agent];
        scopes.into_iter().flatten().filter_map(|scope| self.last.get(&scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(session: Option<&str>) -> Subject {
        let (provider, credential) = ("p".into(), "c".into());
        Subject { provider, credential, agent: Some("a".into()), session: session.map(Into::into) }
    }

    fn one(session: &str) -> WriteScope {
        WriteScope::Subject(subject(Some(session)))
    }

    #[test]
    fn evicting_a_write_does_not_make_older_responses_valid_again() {
        let writes = WriteLog::with_capacity(3);
        writes.add(one("s"), 10, Time(10));
        for sequence in 11..=13 {
            assert!(
                writes.is_outdated(&subject(Some("s")), false, 9),
                "before the write with sequence number {sequence}"
            );
            assert!(!writes.is_outdated(&subject(Some("t")), false, 9), "nothing is evicted yet");
            writes.add(one(&sequence.to_string()), sequence, Time(10));
        }
        assert!(
            writes.is_outdated(&subject(Some("s")), false, 9) && !writes.is_outdated(&subject(Some("s")), false, 10)
        );
        assert!(writes.is_outdated(&subject(Some("t")), false, 9), "older than the evicted write");
        assert_eq!(writes.last_write_at(&subject(Some("s"))), Some(Time(10)));
        // Repeated writes to one scope soon evict only older writes to the same scope.
        for sequence in 14..=100 {
            writes.add(one("13"), sequence, Time(20));
        }
        assert!(
            writes.is_outdated(&subject(Some("13")), false, 99)
                && !writes.is_outdated(&subject(Some("13")), false, 100)
        );
        assert!(!writes.is_outdated(&subject(Some("t")), false, 12), "12 is the highest evicted sequence number");
        assert_eq!(writes.order.lock().unwrap().len(), 3);
    }

    #[test]
    fn a_write_to_lists_outdates_not_found_responses_of_sessions() {
        let writes = WriteLog::default();
        assert_eq!(writes.last_write_at(&subject(Some("s"))), None);
        writes.add(WriteScope::Subject(subject(None)), 5, Time(7));
        assert!(writes.is_outdated(&subject(Some("s")), true, 4) && !writes.is_outdated(&subject(Some("s")), true, 5));
        assert!(!writes.is_outdated(&subject(Some("s")), false, 4), "a session that exists is not outdated");
        assert!(writes.is_outdated(&subject(None), false, 4));
        assert_eq!(writes.last_write_at(&subject(Some("s"))), Some(Time(7)));
        let other = Subject { agent: Some("b".into()), ..subject(Some("s")) };
        assert!(!writes.is_outdated(&other, true, 4));
    }
}
