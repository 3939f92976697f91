//! Counts what one client uses of what all clients share: bytes of memory, requests in flight, and calls to providers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// What one client uses. Reloads keep it.
#[derive(Debug, Default)]
pub struct ClientUse {
    /// The bytes that are reserved for it.
    pub(super) bytes: AtomicUsize,
    requests: AtomicI64,
    calls: AtomicI64,
}

/// What is counted singly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Requests in flight.
    Requests,
    /// Calls to providers in flight.
    Calls,
}

/// One request or call of a client, counted until dropped.
#[derive(Debug)]
pub struct CountGuard {
    client: Arc<ClientUse>,
    what: Counted,
}

impl ClientUse {
    /// Returns the reserved bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire) as u64
    }

    /// Counts one more request or call. Returns how many there are now.
    #[must_use]
    pub fn count(self: &Arc<Self>, what: Counted) -> (CountGuard, i64) {
        let before = self.counter(what).fetch_add(1, Ordering::AcqRel);
        (CountGuard { client: self.clone(), what }, before + 1)
    }

    fn counter(&self, what: Counted) -> &AtomicI64 {
        match what {
            Counted::Requests => &self.requests,
            Counted::Calls => &self.calls,
        }
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.client.counter(self.what).fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_calls_are_counted_until_they_are_dropped() {
        let client = Arc::<ClientUse>::default();
        let (one, count) = client.count(Counted::Requests);
        assert_eq!(count, 1);
        let (_two, count) = client.count(Counted::Requests);
        assert_eq!((count, client.count(Counted::Calls).1), (2, 1));
        drop(one);
        assert_eq!((client.count(Counted::Requests).1, client.count(Counted::Calls).1), (2, 1));
    }
}
