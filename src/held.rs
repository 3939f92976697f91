//! Bytes of answers that are held at the same time, and the most there may be.
//!
//! A room of its own because answers are held in several places, while they are read and while they are put
//! together and sent, and the bound is on all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most bytes that may be held, and how many are.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    most: usize,
}

/// Bytes held; given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Nothing is held.
    #[must_use]
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most: usize::try_from(most).unwrap_or(usize::MAX) })
    }

    /// To hold bytes with.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }
}

impl Held {
    /// Counts more; `false` where that is more than all together may be.
    pub fn more(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.budget.used.fetch_add(bytes, Ordering::AcqRel) + bytes <= self.budget.most
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A body that is counted for as long as any part of it lives.
pub struct Counted {
    body: Vec<u8>,
    _held: Held,
}

impl Counted {
    /// The body as bytes, counted; `None` where it is too much.
    #[must_use]
    pub fn bytes(body: Vec<u8>, budget: &Arc<Budget>) -> Option<bytes::Bytes> {
        Self::along(body, 0, budget)
    }

    /// The same, with so many bytes counted that are held along with it.
    #[must_use]
    pub fn along(body: Vec<u8>, others: usize, budget: &Arc<Budget>) -> Option<bytes::Bytes> {
        let mut held = budget.hold();
        held.more(body.len() + others).then(|| bytes::Bytes::from_owner(Self { body, _held: held }))
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_given_back() {
        let budget = Budget::new(10);
        let mut one = budget.hold();
        assert!(one.more(4) && one.more(4));
        assert!(!budget.hold().more(3), "eleven");
        let two = Counted::bytes(vec![1, 2], &budget).unwrap();
        let part = two.slice(..1);
        drop(two);
        assert!(Counted::bytes(vec![3], &budget).is_none(), "a part of it lives");
        drop(part);
        drop(one);
        assert_eq!(Counted::bytes(vec![0; 10], &budget).unwrap().len(), 10);
        assert_eq!(budget.used.load(Ordering::Acquire), 0);
    }
}
