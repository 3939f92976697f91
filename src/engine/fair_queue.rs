//! Shares capacity fairly among clients: a queue that serves them round-robin, and a limit for each client.
//!
//! In a plain queue, one busy client would starve the others. The limit covers permits that a client keeps for as long
//! as it likes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

/// A queue with one permit. It serves clients round-robin, and each client's requests in order.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    state: Arc<Mutex<QueueState>>,
}

#[derive(Debug, Default)]
struct QueueState {
    permit_taken: bool,
    /// The waiting clients in the order in which they are served, each with its waiting requests.
    waiting: VecDeque<(Arc<str>, VecDeque<oneshot::Sender<QueuePermit>>)>,
}

/// The queue's permit. Dropping it passes it to the next waiter.
#[derive(Debug)]
pub(crate) struct QueuePermit {
    state: Arc<Mutex<QueueState>>,
}

/// Limits the permits of each client.
#[derive(Debug)]
pub struct ClientShares {
    /// The most permits that one client may have.
    pub max_permits: usize,
    clients: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

impl ClientShares {
    /// Limits each client to half of `total` permits, rounded up, so that other clients get the rest.
    #[must_use]
    pub fn half_of(total: usize) -> Self {
        Self { max_permits: total.div_ceil(2), clients: Mutex::default() }
    }

    /// Waits until this client is below its limit, at most until `latest`, and returns a permit; `None` if it was too late.
    pub async fn acquire_until(&self, client: &Arc<str>, latest: Instant) -> Option<OwnedSemaphorePermit> {
        timeout_at(latest, self.acquire(client)).await.ok().flatten()
    }

    async fn acquire(&self, client: &Arc<str>) -> Option<OwnedSemaphorePermit> {
        let share = {
            let mut clients = lock(&self.clients);
            if !clients.contains_key(client) {
                // Drops clients without permits, so that the map stays small.
                clients.retain(|_, share| Arc::strong_count(share) > 1 || share.available_permits() < self.max_permits);
            }
            clients.entry(client.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.max_permits))).clone()
        };
        share.acquire_owned().await.ok()
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FairQueue {
    /// Waits for the permit. A caller that stops waiting loses its place in the queue.
    pub(crate) async fn acquire(&self, client: &Arc<str>) -> Option<QueuePermit> {
        let receiver = {
            let mut state = lock(&self.state);
            if !state.permit_taken {
                state.permit_taken = true;
                return Some(QueuePermit { state: self.state.clone() });
            }
            let (sender, receiver) = oneshot::channel();
            match state.waiting.iter_mut().find(|(waiting, _)| waiting == client) {
                Some((_, queue)) => queue.push_back(sender),
                None => state.waiting.push_back((client.clone(), VecDeque::from([sender]))),
            }
            receiver
        };
        receiver.await.ok()
    }
}

impl QueueState {
    /// Removes and returns the next waiter, and moves its client to the end of the queue.
    fn pop(&mut self) -> Option<oneshot::Sender<QueuePermit>> {
        self.waiting.retain(|(_, queue)| queue.iter().any(|sender| !sender.is_closed()));
        let (client, mut queue) = self.waiting.pop_front()?;
        while queue.front().is_some_and(oneshot::Sender::is_closed) {
            queue.pop_front();
        }
        let next = queue.pop_front();
        if !queue.is_empty() {
            self.waiting.push_back((client, queue));
        }
        next
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        while let Some(next) = state.pop() {
            if next.is_closed() {
                continue;
            }
            // Sent without the lock: if the receiver is gone, the permit is dropped here, and its drop takes the lock.
            drop(state);
            let _ = next.send(QueuePermit { state: self.state.clone() });
            return;
        }
        state.permit_taken = false;
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_busy_client_does_not_starve_another() {
        let queue = Arc::new(FairQueue::default());
        let order: Arc<Mutex<Vec<String>>> = Arc::default();
        let first = queue.acquire(&"busy".into()).await;
        let mut tasks = Vec::new();
        for (client, n) in [("busy", 5), ("quiet", 2), ("third", 1)] {
            for k in 0..n {
                let (queue, order) = (queue.clone(), order.clone());
                tasks.push(tokio::spawn(async move {
                    let permit = queue.acquire(&client.into()).await;
                    order.lock().unwrap().push(format!("{client}{k}"));
                    tokio::task::yield_now().await;
                    drop(permit);
                }));
                // The task joins the queue before the next one is spawned.
                tokio::task::yield_now().await;
            }
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock().unwrap().join(" ");
        assert_eq!(order, "busy0 quiet0 third0 busy1 quiet1 busy2 busy3 busy4");
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_gets_half_of_the_permits_and_no_more_until_it_returns_one() {
        let shares = ClientShares::half_of(3);
        let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
        let mut permits = vec![shares.acquire(&greedy).await, shares.acquire(&greedy).await];
        let acquire = || tokio::time::timeout(Duration::from_secs(1), shares.acquire(&greedy));
        assert!(acquire().await.is_err());
        assert!(shares.acquire(&other).await.is_some(), "other clients are not limited by it");
        permits.pop();
        assert!(acquire().await.is_ok_and(|permit| permit.is_some()));
        permits.clear();
        assert!(shares.acquire(&"third".into()).await.is_some());
        assert_eq!(lock(&shares.clients).len(), 1, "clients without permits are dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gives_up_does_not_block_the_queue() {
        let queue = FairQueue::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = queue.acquire(&a).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.acquire(&a)).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.acquire(&b)).await.is_err());
        drop(first);
        let next = tokio::time::timeout(Duration::from_secs(1), queue.acquire(&b)).await;
        assert!(next.is_ok_and(|permit| permit.is_some()));
    }
}
