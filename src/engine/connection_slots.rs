//! Limits the calls to providers that have a connection at the same time, as the limit of open files requires: of all clients,
//! and of each.

use crate::engine::fair_queue::ClientShares;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// The connections to providers that the process may open.
#[derive(Debug)]
pub struct ConnectionSlots {
    /// How many calls may have a connection.
    pub total: usize,
    free: Arc<Semaphore>,
    shares: ClientShares,
}

/// Why a call got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSlot {
    /// All places are taken.
    Total(usize),
    /// The client has taken its share.
    Share(usize),
}

impl ConnectionSlots {
    /// Makes `total` free places.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Self { total, free: Arc::new(Semaphore::new(total)), shares: ClientShares::half_of(total) }
    }

    /// Waits until one of several clients has fewer than half of the places, at most until `latest`. A call does this before
    /// it takes anything that others wait for.
    ///
    /// # Errors
    /// It has not.
    pub async fn acquire_share(&self, client: &Arc<str>, latest: Instant) -> Result<OwnedSemaphorePermit, NoSlot> {
        self.shares.acquire_until(client, latest).await.ok_or(NoSlot::Share(self.shares.max_permits))
    }

    /// Waits for a place, at most until `latest`.
    ///
    /// # Errors
    /// There was none.
    pub async fn acquire(&self, latest: Instant) -> Result<OwnedSemaphorePermit, NoSlot> {
        let place = timeout_at(latest, self.free.clone().acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or(NoSlot::Total(self.total))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_for_its_share_and_leaves_the_rest() {
        let slots = ConnectionSlots::new(4);
        let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
        let soon = || Instant::now() + Duration::from_secs(1);
        let mut held = vec![];
        for client in [&greedy, &greedy, &other, &other] {
            let share = slots.acquire_share(client, soon()).await.unwrap();
            held.push((share, slots.acquire(soon()).await.unwrap()));
        }
        assert_eq!(slots.acquire_share(&greedy, soon()).await.err(), Some(NoSlot::Share(2)));
        assert!(slots.acquire_share(&"third".into(), soon()).await.is_ok());
        assert_eq!(slots.acquire(soon()).await.err(), Some(NoSlot::Total(4)));
        let later = Instant::now() + Duration::from_secs(9);
        let waiting = async { (slots.acquire_share(&greedy, later).await, slots.acquire(later).await) };
        let ((share, place), ()) = tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(held.remove(0));
        });
        assert!(share.is_ok() && place.is_ok(), "a place that becomes free is given to who waits");
    }
}
