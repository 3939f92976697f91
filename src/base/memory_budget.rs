//! Limits the bytes that Weir holds on behalf of its clients: together, and for each client.
//!
//! A reservation is made before its bytes are, and lives as long as they do.

use crate::base::client_use::ClientUse;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit on bytes, and how many are reserved.
#[derive(Debug)]
pub struct MemoryBudget {
    used: AtomicUsize,
    limit: usize,
}

/// The part of a budget that one client may use, or Weir itself.
#[derive(Debug, Clone)]
pub struct MemoryShare {
    budget: Arc<MemoryBudget>,
    /// `None` for Weir itself.
    client: Option<ClientLimit>,
    /// Several clients that have one share together, if the client is one of them.
    group: Option<ClientLimit>,
}

/// What a client uses, and the most bytes that it may use.
#[derive(Debug, Clone)]
struct ClientLimit {
    client: Arc<ClientUse>,
    limit: usize,
}

/// Bytes reserved from a share. Dropping it returns them.
#[derive(Debug)]
pub struct Reservation {
    share: MemoryShare,
    bytes: usize,
}

/// Why bytes are not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BufferLimit {
    /// The whole budget is used.
    #[error("response buffer limit reached (overload.max_buffered)")]
    Total,
    /// The client has used its share.
    #[error("this client's responses take its share of the response buffers (half of overload.max_buffered)")]
    Share,
    /// Requests without a valid key have used their share.
    #[error(
        "the responses to requests without a valid key take their share of the response buffers (1/8 of \
         overload.max_buffered, 1/32 for one address)"
    )]
    WithoutKey,
}

/// Adds to a counter, unless that exceeds the limit.
fn add(counter: &AtomicUsize, bytes: usize, limit: usize) -> bool {
    let sum = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
    counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, sum).is_ok()
}

impl MemoryBudget {
    /// Makes a budget of `limit` bytes, all of them free.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit: usize::try_from(limit).unwrap_or(usize::MAX) })
    }

    /// Returns the limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit as u64
    }

    /// Returns the reserved bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire) as u64
    }

    /// Returns the share of a client, of at most `limit` bytes.
    #[must_use]
    pub fn share(self: &Arc<Self>, client: &Arc<ClientUse>, limit: u64) -> MemoryShare {
        MemoryShare { budget: self.clone(), client: Some(ClientLimit::new(client, limit)), group: None }
    }

    /// Returns the share of Weir itself, for what it reads on behalf of no client.
    #[must_use]
    pub fn own_share(self: &Arc<Self>) -> MemoryShare {
        MemoryShare { budget: self.clone(), client: None, group: None }
    }
}

impl ClientLimit {
    fn new(client: &Arc<ClientUse>, limit: u64) -> Self {
        Self { client: client.clone(), limit: usize::try_from(limit).unwrap_or(usize::MAX) }
    }

    fn add(&self, bytes: usize) -> bool {
        add(&self.client.bytes, bytes, self.limit)
    }

    fn release(&self, bytes: usize) {
        self.client.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl MemoryShare {
    /// Returns this share, limited also by what a group of clients may use together: those without a valid key.
    #[must_use]
    pub fn of_group(self, group: &Arc<ClientUse>, limit: u64) -> Self {
        Self { group: Some(ClientLimit::new(group, limit)), ..self }
    }

    /// Returns an empty reservation.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        Reservation { share: self.clone(), bytes: 0 }
    }

    /// Returns the limit that a client exceeds if it exceeds its own.
    fn exceeded(&self) -> BufferLimit {
        let is_whole = self.client.as_ref().is_none_or(|client| client.limit >= self.budget.limit);
        match (&self.group, is_whole) {
            (Some(_), _) => BufferLimit::WithoutKey,
            (None, true) => BufferLimit::Total,
            (None, false) => BufferLimit::Share,
        }
    }

    /// Reserves bytes.
    ///
    /// # Errors
    /// The limit that they exceed. Nothing is reserved then.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, BufferLimit> {
        let mut reservation = self.reservation();
        reservation.grow(bytes).map(|()| reservation)
    }
}

impl Reservation {
    /// Reserves more bytes.
    ///
    /// # Errors
    /// The limit that they exceed. The reservation is as large as before then.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BufferLimit> {
        let MemoryShare { budget, client, group } = &self.share;
        if client.as_ref().is_some_and(|client| !client.add(bytes)) {
            return Err(self.share.exceeded());
        }
        if group.as_ref().is_some_and(|group| !group.add(bytes)) {
            client.iter().for_each(|client| client.release(bytes));
            return Err(self.share.exceeded());
        }
        if !add(&budget.used, bytes, budget.limit) {
            client.iter().chain(group).for_each(|limit| limit.release(bytes));
            return Err(BufferLimit::Total);
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Grows or shrinks to this many bytes.
    ///
    /// # Errors
    /// As for [`Reservation::grow`].
    pub fn resize(&mut self, bytes: usize) -> Result<(), BufferLimit> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.release(self.bytes - bytes);
                Ok(())
            }
        }
    }

    /// Returns the number of reserved bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether the bytes are reserved from this share.
    #[must_use]
    pub fn is_from(&self, share: &MemoryShare) -> bool {
        let client = |share: &MemoryShare| share.client.as_ref().map(|limit| Arc::as_ptr(&limit.client));
        client(&self.share) == client(share)
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        // In the opposite order of `grow`, so that the budget never counts more than the clients.
        self.share.budget.used.fetch_sub(bytes, Ordering::AcqRel);
        self.share.client.iter().chain(&self.share.group).for_each(|limit| limit.release(bytes));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

/// Returns these bytes in an allocation of their length. A vector that shrinks is not enough: the allocator keeps a block
/// in its place until less than half of it is used.
#[must_use]
pub(crate) fn without_spare(bytes: Vec<u8>) -> Bytes {
    let spare = bytes.capacity() - bytes.len();
    if spare > bytes.len() / 8 { Bytes::copy_from_slice(&bytes) } else { bytes.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_bytes_return_to_the_budget() {
        let budget = MemoryBudget::new(10);
        let share = budget.own_share();
        let mut one = share.reserve(4).unwrap();
        assert_eq!(one.grow(4), Ok(()));
        assert_eq!(share.reserve(3).err(), Some(BufferLimit::Total), "11 bytes exceed the budget of 10");
        assert_eq!(one.grow(3), Err(BufferLimit::Total));
        assert_eq!(budget.used(), 8, "refused bytes do not count");
        assert_eq!(one.resize(1), Ok(()));
        assert_eq!((budget.used(), one.resize(11), one.resize(10)), (1, Err(BufferLimit::Total), Ok(())));
        assert_eq!(one.grow(usize::MAX), Err(BufferLimit::Total));
        drop(one);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_client_leaves_the_rest_to_the_others() {
        let budget = MemoryBudget::new(10);
        let (greedy, modest) = (Arc::default(), Arc::default());
        let (greedy, modest) = (budget.share(&greedy, 5), budget.share(&modest, 5));
        let held = greedy.reserve(5).unwrap();
        assert_eq!(greedy.reserve(1).err(), Some(BufferLimit::Share));
        let other = modest.reserve(4).unwrap();
        let own = budget.own_share().reserve(1).unwrap();
        assert_eq!(modest.reserve(1).err(), Some(BufferLimit::Total));
        drop((held, own));
        assert_eq!(modest.reserve(1).map(drop), Ok(()), "a refusal by the budget does not count for the client");
        assert_eq!(modest.reserve(2).err(), Some(BufferLimit::Share));
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_group_of_clients_has_one_share_together() {
        let budget = MemoryBudget::new(100);
        let group = Arc::<ClientUse>::default();
        let member = || budget.share(&Arc::default(), 6).of_group(&group, 10);
        let (one, other) = (member(), member());
        let mut held = one.reserve(6).unwrap();
        assert_eq!(one.reserve(1).err(), Some(BufferLimit::WithoutKey));
        assert_eq!(other.reserve(5).err(), Some(BufferLimit::WithoutKey), "11 bytes exceed the group's 10");
        let rest = other.reserve(4).unwrap();
        assert_eq!((group.bytes(), budget.used()), (10, 10));
        held.resize(1).unwrap();
        assert_eq!(other.reserve(2).map(drop), Ok(()), "a refusal does not count for the client");
        drop((held, rest));
        assert_eq!((group.bytes(), budget.used()), (0, 0));
    }

    #[test]
    fn bytes_without_spare_have_an_allocation_of_their_length() {
        for (length, capacity) in [(0, 0), (0, 100), (1, 1), (90_000, 131_072), (90_000, 90_000), (65_537, 1 << 20)] {
            let mut bytes = Vec::with_capacity(capacity);
            bytes.resize(length, b'x');
            let bytes = without_spare(bytes);
            assert_eq!(bytes.len(), length);
            let capacity = Vec::from(bytes).capacity();
            assert!(capacity <= length + length / 8, "{capacity} bytes for {length}");
        }
    }

    #[test]
    fn threads_never_exceed_the_budget_together() {
        let budget = MemoryBudget::new(100);
        let client = Arc::<ClientUse>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let share = budget.share(&client, 60);
                    for _ in 0..1000 {
                        let _held = (share.reserve(30), share.reserve(25));
                        assert!(budget.used() <= 60, "{}", budget.used());
                    }
                });
            }
        });
        assert_eq!((budget.used(), client.bytes()), (0, 0));
    }
}
