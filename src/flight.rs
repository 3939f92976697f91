//! Coalescing: any number of callers of one cold key, one call to the provider.
//!
//! A room of its own because its ends must all be covered: the call runs apart from every caller, so
//! one that hangs up strands nobody; when it ends, however it ends, all wake at once.

use crate::model::Time;
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

const SHARDS: usize = 32;

type Shard<K, V> = Mutex<HashMap<K, Flight<V>>>;

/// A call under way, and a token that each of its callers holds.
struct Flight<V> {
    started: Time,
    receiver: watch::Receiver<Option<V>>,
    callers: Arc<()>,
}

/// A place among those who wait for a flight; given back when dropped.
pub struct Place<V> {
    receiver: watch::Receiver<Option<V>>,
    _caller: Arc<()>,
}

/// Calls under way, by key.
pub struct Flights<K, V> {
    shards: Arc<Vec<Shard<K, V>>>,
    hasher: RandomState,
}

/// What a caller wants of a flight.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The most that may wait for one.
    pub most: usize,
    /// It must not have started before this: an answer asked for earlier confirms nothing now.
    pub started_since: Time,
    /// The moment it is.
    pub now: Time,
}

/// Where a caller stands.
pub enum Joined<K: Hash + Eq, V> {
    /// What the caller looked for is there after all.
    Found(V),
    /// Another caller started the call: wait for it.
    Waiting(Place<V>),
    /// As many wait for it as may.
    Full,
    /// This caller starts the call, and waits like the others.
    Leading(Landing<K, V>, Place<V>),
}

/// Ends a flight: with a value, or, when dropped without (a panic), with none.
pub struct Landing<K: Hash + Eq, V> {
    sender: watch::Sender<Option<V>>,
    shards: Arc<Vec<Shard<K, V>>>,
    shard: usize,
    key: K,
}

impl<K: Hash + Eq + Clone, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards: Arc::new(shards), hasher: RandomState::new() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    /// Forgets all flights under way: they land for those who wait for them, and nobody joins them.
    pub fn detach(&self) {
        self.shards.iter().for_each(|shard| lock(shard).clear());
    }

    fn shard(&self, key: &K) -> usize {
        usize::try_from(self.hasher.hash_one(key)).unwrap_or(0) % SHARDS
    }

    /// Joins the flight of this key, if its terms allow, or starts one. `look` is asked once more with the key's shard
    /// locked: a flight stores its answer before it lands, so what `look` misses there, nobody has.
    pub fn join(&self, key: &K, terms: &Terms, look: impl FnOnce() -> Option<V>) -> Joined<K, V> {
        let shard = self.shard(key);
        let mut flights = lock(&self.shards[shard]);
        if flights.get(key).is_some_and(|flight| flight.started < terms.started_since) {
            // It lands for those who wait for it; whoever comes now joins the next.
            flights.remove(key);
        }
        match flights.entry(key.clone()) {
            Entry::Occupied(flight) => match flight.get() {
                // The map holds one token itself.
                flight if Arc::strong_count(&flight.callers) > terms.most => Joined::Full,
                flight => Joined::Waiting(flight.place()),
            },
            Entry::Vacant(place) => {
                if let Some(found) = look() {
                    return Joined::Found(found);
                }
                let (sender, receiver) = watch::channel(None);
                let flight = Flight { started: terms.now, receiver, callers: Arc::default() };
                let own = flight.place();
                place.insert(flight);
                let landing = Landing { sender, shards: self.shards.clone(), shard, key: key.clone() };
                Joined::Leading(landing, own)
            }
        }
    }
}

impl<V> Flight<V> {
    fn place(&self) -> Place<V> {
        Place { receiver: self.receiver.clone(), _caller: self.callers.clone() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, V> Landing<K, V> {
    /// Hands the value to everyone who waits.
    pub fn land(self, value: V) {
        self.sender.send_replace(Some(value));
    }
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut flights = lock(&self.shards[self.shard]);
        // Another flight may have taken its place since it was detached.
        if flights.get(&self.key).is_some_and(|flight| self.sender.subscribe().same_channel(&flight.receiver)) {
            flights.remove(&self.key);
        }
    }
}

/// Waits for a flight's value; `None` when it ended without one.
pub async fn landed<V: Clone>(mut place: Place<V>) -> Option<V> {
    let value = place.receiver.wait_for(Option::is_some).await;
    value.ok().and_then(|value| value.clone())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn terms(most: usize) -> Terms {
        Terms { most, started_since: Time(0), now: Time(0) }
    }

    #[tokio::test]
    async fn a_thousand_callers_one_flight() {
        let flights: Arc<Flights<u8, usize>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for _ in 0..1000 {
            let (flights, calls) = (flights.clone(), calls.clone());
            waiting.push(tokio::spawn(async move {
                match flights.join(&1, &terms(1000), || None) {
                    Joined::Found(value) => Some(value),
                    Joined::Waiting(receiver) => landed(receiver).await,
                    Joined::Full => None,
                    Joined::Leading(landing, receiver) => {
                        tokio::spawn(async move {
                            // Lets every other caller join first.
                            for _ in 0..2000 {
                                tokio::task::yield_now().await;
                            }
                            landing.land(calls.fetch_add(1, Ordering::SeqCst) + 41);
                        });
                        landed(receiver).await
                    }
                }
            }));
        }
        for caller in waiting {
            assert_eq!(caller.await.unwrap(), Some(41));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_flight_that_panics_strands_nobody_and_the_next_caller_starts_anew() {
        let flights: Flights<u8, u8> = Flights::default();
        let Joined::Leading(landing, receiver) = flights.join(&1, &terms(1000), || None) else { panic!("no leader") };
        let Joined::Waiting(other) = flights.join(&1, &terms(1000), || None) else { panic!("no waiter") };
        let crashed = tokio::spawn(async move {
            let _landing = landing;
            panic!("on purpose");
        });
        assert!(crashed.await.is_err());
        assert_eq!((landed(receiver).await, landed(other).await), (None, None));
        assert!(matches!(flights.join(&1, &terms(1000), || None), Joined::Leading(..)));
        assert!(matches!(flights.join(&1, &terms(1000), || Some(7)), Joined::Found(7)));
    }

    #[tokio::test]
    async fn no_more_wait_than_may_and_a_place_given_back_is_taken_again() {
        let flights: Flights<u8, u8> = Flights::default();
        let Joined::Leading(landing, own) = flights.join(&1, &terms(2), || None) else { panic!("no leader") };
        let Joined::Waiting(second) = flights.join(&1, &terms(2), || None) else { panic!("no waiter") };
        assert!(matches!(flights.join(&1, &terms(2), || None), Joined::Full));
        drop(second);
        let Joined::Waiting(third) = flights.join(&1, &terms(2), || None) else { panic!("no waiter") };
        landing.land(7);
        assert_eq!((landed(own).await, landed(third).await), (Some(7), Some(7)));
    }

    #[tokio::test]
    async fn who_wants_a_later_flight_starts_one_that_others_join() {
        let flights: Flights<u8, u8> = Flights::default();
        let at = |now| Terms { most: 9, started_since: Time(now), now: Time(now) };
        let Joined::Leading(early, waits) = flights.join(&1, &at(5), || None) else { panic!("no leader") };
        let Joined::Leading(late, own) = flights.join(&1, &at(6), || None) else { panic!("no second leader") };
        let Joined::Waiting(joined) = flights.join(&1, &at(6), || None) else { panic!("no waiter") };
        early.land(1);
        let Joined::Waiting(still) = flights.join(&1, &at(6), || None) else {
            panic!("the first took the second away")
        };
        late.land(2);
        let landed = (landed(waits).await, landed(own).await, landed(joined).await, landed(still).await);
        assert_eq!(landed, (Some(1), Some(2), Some(2), Some(2)));
    }
}
