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

/// The place of one call. Dropping it frees the place.
#[derive(Debug)]
pub struct ConnectionSlot {
    _of_all: OwnedSemaphorePermit,
    _of_client: Option<OwnedSemaphorePermit>,
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

    /// Waits for a place, at most until `latest`. If there are other clients (`has_others`), this one gets half of the places.
    ///
    /// # Errors
    /// There was none.
    pub async fn acquire(
        &self,
        client: &Arc<str>,
        has_others: bool,
        latest: Instant,
    ) -> Result<ConnectionSlot, NoSlot> {
        let of_client = if has_others {
            let permit = self.shares.acquire_until(client, latest).await;
            Some(permit.ok_or(NoSlot::Share(self.shares.max_permits))?)
        } else {
            None
        };
        let of_all = timeout_at(latest, self.free.clone().acquire_owned()).await;
        let of_all = of_all.ok().and_then(Result::ok).ok_or(NoSlot::Total(self.total))?;
        Ok(ConnectionSlot { _of_all: of_all, _of_client: of_client })
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
        for _ in 0..2 {
            held.push(slots.acquire(&greedy, true, soon()).await.unwrap());
        }
        assert_eq!(slots.acquire(&greedy, true, soon()).await.err(), Some(NoSlot::Share(2)));
        for _ in 0..2 {
            held.push(slots.acquire(&other, true, soon()).await.unwrap());
        }
        assert_eq!(slots.acquire(&"third".into(), true, soon()).await.err(), Some(NoSlot::Total(4)));
        assert_eq!(slots.acquire(&"alone".into(), false, soon()).await.err(), Some(NoSlot::Total(4)));
        let waiting = slots.acquire(&greedy, true, Instant::now() + Duration::from_secs(9));
        let (got, ()) = tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            held.remove(0);
        });
        assert!(got.is_ok(), "a place that becomes free is given to who waits");
    }
}
