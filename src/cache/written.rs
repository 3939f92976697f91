//! What was written through Weir, and so which answers are from before it.
//!
//! A room of its own because its one danger is to forget: an answer from before a write that nobody remembers any
//! more would be true again. So what is forgotten leaves a floor, and what is older than that is from before.

use crate::model::Time;
use crate::purge::Subject;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a write that passed through Weir made untrue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Matter {
    /// Answers about this: a session, or lists where it names none.
    One(Subject),
    /// All answers about this agent, whose session is `None`.
    Agent(Subject),
}

/// A write.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// What has a lower number is from before it.
    number: u64,
    at: Time,
}

/// Writes remembered.
const MOST: usize = 100_000;

/// The last write to each matter.
pub(super) struct Writes {
    /// A map that many read at once; it holds what `order` does.
    last: moka::sync::Cache<Arc<Matter>, Written>,
    /// All that are remembered, oldest first; a later one to the same matter stands in it too.
    order: Mutex<VecDeque<(Arc<Matter>, Written)>>,
    most: usize,
    newest: AtomicU64,
    /// The number and the moment of the newest that was forgotten.
    floor: AtomicU64,
    floor_at: AtomicI64,
}

impl Default for Writes {
    fn default() -> Self {
        Self::remembering(MOST)
    }
}

impl Writes {
    fn remembering(most: usize) -> Self {
        let (newest, floor) = (AtomicU64::new(0), AtomicU64::new(0));
        let last = moka::sync::Cache::builder().build();
        Self { last, order: Mutex::default(), most, newest, floor, floor_at: AtomicI64::new(i64::MIN) }
    }

    /// This was written; numbers and moments only grow.
    pub(super) fn add(&self, matter: Matter, number: u64, at: Time) {
        let (matter, written) = (Arc::new(matter), Written { number, at });
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        order.push_back((matter.clone(), written));
        self.last.insert(matter, written);
        if order.len() > self.most
            && let Some((oldest, written)) = order.pop_front()
            && self.last.get(&oldest).is_some_and(|last| last.number == written.number)
        {
            // The floor first: who does not find it any more finds that.
            self.floor_at.fetch_max(written.at.0, Ordering::AcqRel);
            self.floor.fetch_max(written.number, Ordering::AcqRel);
            self.last.invalidate(&oldest);
        }
        self.newest.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether something was written to what this is about since it was asked for, with this number. That there is no
    /// such thing (`absent`) is untrue as soon as its lists have changed: it may be in them.
    #[must_use]
    pub(super) fn outdate(&self, subject: &Subject, absent: bool, number: u64) -> bool {
        // Hardly ever has anything been written since, so hardly ever is more asked.
        number < self.newest.load(Ordering::Acquire)
            && (self.of(subject, absent).any(|written| number < written.number)
                || number < self.floor.load(Ordering::Acquire))
    }

    /// When something was last written to this subject or its lists, if that was lately.
    #[must_use]
    pub(super) fn at(&self, subject: &Subject) -> Option<Time> {
        if self.newest.load(Ordering::Acquire) == 0 {
            return None;
        }
        let known = self.of(subject, true).map(|written| written.at).max();
        let floor = Time(self.floor_at.load(Ordering::Acquire));
        known.max((floor > Time(i64::MIN)).then_some(floor))
    }

    fn of(&self, subject: &Subject, absent: bool) -> impl Iterator<Item = Written> {
        let whole = Subject { session: None, ..subject.clone() };
        let lists = (absent && subject.session.is_some()).then(|| Matter::One(whole.clone()));
        let agent = subject.agent.is_some().then_some(Matter::Agent(whole));
        let matters = [Some(Matter::One(subject.clone())), lists, agent];
        matters.into_iter().flatten().filter_map(|matter| self.last.get(&matter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(session: Option<&str>) -> Subject {
        let (provider, credential) = ("p".into(), "c".into());
        Subject { provider, credential, agent: Some("a".into()), session: session.map(Into::into) }
    }

    fn one(session: &str) -> Matter {
        Matter::One(subject(Some(session)))
    }

    #[test]
    fn what_is_forgotten_does_not_make_an_older_answer_true_again() {
        let writes = Writes::remembering(3);
        writes.add(one("s"), 10, Time(10));
        for number in 11..=13 {
            assert!(writes.outdate(&subject(Some("s")), false, 9), "before {number}");
            assert!(!writes.outdate(&subject(Some("t")), false, 9), "nothing was forgotten yet");
            writes.add(one(&number.to_string()), number, Time(10));
        }
        assert!(writes.outdate(&subject(Some("s")), false, 9) && !writes.outdate(&subject(Some("s")), false, 10));
        assert!(writes.outdate(&subject(Some("t")), false, 9), "of those that old nobody knows");
        assert_eq!(writes.at(&subject(Some("s"))), Some(Time(10)));
        // One that is written again and again is remembered, and pushes nothing out that matters.
        for number in 14..=100 {
            writes.add(one("13"), number, Time(20));
        }
        assert!(writes.outdate(&subject(Some("13")), false, 99) && !writes.outdate(&subject(Some("13")), false, 100));
        assert!(!writes.outdate(&subject(Some("t")), false, 12), "12 was the last that was forgotten");
        assert_eq!(writes.order.lock().unwrap().len(), 3);
    }

    #[test]
    fn a_change_of_lists_is_one_of_what_was_not_there() {
        let writes = Writes::default();
        assert_eq!(writes.at(&subject(Some("s"))), None);
        writes.add(Matter::One(subject(None)), 5, Time(7));
        assert!(writes.outdate(&subject(Some("s")), true, 4) && !writes.outdate(&subject(Some("s")), true, 5));
        assert!(!writes.outdate(&subject(Some("s")), false, 4), "a session that was there is as it was");
        assert!(writes.outdate(&subject(None), false, 4));
        assert_eq!(writes.at(&subject(Some("s"))), Some(Time(7)));
        let other = Subject { agent: Some("b".into()), ..subject(Some("s")) };
        assert!(!writes.outdate(&other, true, 4));
    }
}
