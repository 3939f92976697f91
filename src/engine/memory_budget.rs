//! Limits the bytes of response bodies that are buffered at the same time.
//!
//! Weir buffers bodies while it reads, assembles and sends them. One budget limits all of these together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit on buffered bytes, and how many are reserved.
#[derive(Debug)]
pub struct MemoryBudget {
    used: AtomicUsize,
    limit: usize,
}

/// Bytes reserved from a budget. Dropping it returns them.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl MemoryBudget {
    /// Makes a budget of `limit` bytes, all of them free.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit: usize::try_from(limit).unwrap_or(usize::MAX) })
    }

    /// Returns an empty reservation.
    #[must_use]
    pub fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }
}

impl Reservation {
    /// Reserves more bytes. Returns `false` if this exceeds the budget; the bytes count nevertheless.
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.budget.used.fetch_add(bytes, Ordering::AcqRel) + bytes <= self.budget.limit
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A body that counts against the budget as long as any slice of it exists.
pub(crate) struct BudgetedBytes {
    body: Vec<u8>,
    _reservation: Reservation,
}

impl BudgetedBytes {
    /// Returns the body as bytes that count against the budget; `None` if they exceed it.
    #[must_use]
    pub(crate) fn reserve(body: Vec<u8>, budget: &Arc<MemoryBudget>) -> Option<bytes::Bytes> {
        Self::reserve_with(body, 0, budget)
    }

    /// Like [`BudgetedBytes::reserve`], but counts `extra` more bytes that live as long as the body.
    #[must_use]
    pub(crate) fn reserve_with(body: Vec<u8>, extra: usize, budget: &Arc<MemoryBudget>) -> Option<bytes::Bytes> {
        let mut reservation = budget.reservation();
        reservation.grow(body.len() + extra).then(|| bytes::Bytes::from_owner(Self { body, _reservation: reservation }))
    }
}

impl AsRef<[u8]> for BudgetedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_bytes_return_to_the_budget() {
        let budget = MemoryBudget::new(10);
        let mut one = budget.reservation();
        assert!(one.grow(4) && one.grow(4));
        assert!(!budget.reservation().grow(3), "11 bytes exceed the budget of 10");
        let two = BudgetedBytes::reserve(vec![1, 2], &budget).unwrap();
        let slice = two.slice(..1);
        drop(two);
        assert!(BudgetedBytes::reserve(vec![3], &budget).is_none(), "a slice of the body still exists");
        drop(slice);
        drop(one);
        assert_eq!(BudgetedBytes::reserve(vec![0; 10], &budget).unwrap().len(), 10);
        assert_eq!(budget.used.load(Ordering::Acquire), 0);
    }
}
