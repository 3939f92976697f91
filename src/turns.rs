//! Whose turn it is: one at a time, round-robin among clients, in order within each; and how much one client may
//! hold.
//!
//! A room of its own because a queue in the order of asking lets one busy client starve the others, and so does
//! a fair queue in which what was given is never given back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Turns, of which one is taken at a time.
#[derive(Debug, Default)]
pub struct Turns {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    /// Clients that wait, in the order in which they come next.
    waiting: VecDeque<(Arc<str>, VecDeque<oneshot::Sender<Turn>>)>,
}

/// A turn; dropped, it is the next one's.
#[derive(Debug)]
pub struct Turn {
    state: Arc<Mutex<State>>,
}

/// What is held as long as clients please, of which each may hold so much.
#[derive(Debug)]
pub struct Shares {
    /// The most that one client may hold.
    pub most: usize,
    held: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

impl Shares {
    /// Of these each may hold half, rounded up: the rest is the others'.
    #[must_use]
    pub fn half_of(all: usize) -> Self {
        Self { most: all.div_ceil(2), held: Mutex::default() }
    }

    /// Waits until this client holds less than its share, and adds to what it holds.
    pub async fn take(&self, client: &Arc<str>) -> Option<OwnedSemaphorePermit> {
        let own = {
            let mut held = lock(&self.held);
            if !held.contains_key(client) {
                // Who holds nothing is not remembered.
                held.retain(|_, share| Arc::strong_count(share) > 1 || share.available_permits() < self.most);
            }
            held.entry(client.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.most))).clone()
        };
        own.acquire_owned().await.ok()
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// Waits for this client's turn. Who stops waiting loses it to the next.
    pub async fn next(&self, client: &Arc<str>) -> Option<Turn> {
        let receiver = {
            let mut state = lock(&self.state);
            if !state.taken {
                state.taken = true;
                return Some(Turn { state: self.state.clone() });
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

impl State {
    /// The one who comes next; its client goes to the end.
    fn pop(&mut self) -> Option<oneshot::Sender<Turn>> {
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

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        while let Some(next) = state.pop() {
            if next.is_closed() {
                continue;
            }
            // Given outside the lock: a turn that nobody takes after all passes itself on when dropped.
            drop(state);
            let _ = next.send(Turn { state: self.state.clone() });
            return;
        }
        state.taken = false;
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_busy_client_does_not_starve_another() {
        let turns = Arc::new(Turns::default());
        let order: Arc<Mutex<Vec<String>>> = Arc::default();
        let first = turns.next(&"busy".into()).await;
        let mut tasks = Vec::new();
        for (client, n) in [("busy", 5), ("quiet", 2), ("third", 1)] {
            for k in 0..n {
                let (turns, order) = (turns.clone(), order.clone());
                tasks.push(tokio::spawn(async move {
                    let turn = turns.next(&client.into()).await;
                    order.lock().unwrap().push(format!("{client}{k}"));
                    tokio::task::yield_now().await;
                    drop(turn);
                }));
                // Lets it join the queue before the next one is made.
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
    async fn one_client_holds_half_and_gets_no_more_until_it_gives_back() {
        let shares = Shares::half_of(3);
        let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
        let mut held = vec![shares.take(&greedy).await, shares.take(&greedy).await];
        let more = || tokio::time::timeout(Duration::from_secs(1), shares.take(&greedy));
        assert!(more().await.is_err());
        assert!(shares.take(&other).await.is_some(), "it is not in another's way");
        held.pop();
        assert!(more().await.is_ok_and(|share| share.is_some()));
        held.clear();
        assert!(shares.take(&"third".into()).await.is_some());
        assert_eq!(lock(&shares.held).len(), 1, "who holds nothing is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_holds_nobody_up() {
        let turns = Turns::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = turns.next(&a).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), turns.next(&a)).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(1), turns.next(&b)).await.is_err());
        drop(first);
        let next = tokio::time::timeout(Duration::from_secs(1), turns.next(&b)).await;
        assert!(next.is_ok_and(|turn| turn.is_some()));
    }
}
