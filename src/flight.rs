//! Coalescing: any number of callers of one cold key, one call to the provider.
//!
//! A room of its own because its ends must all be covered: the call runs apart from every caller, so
//! one that hangs up strands nobody; when it ends, however it ends, all wake at once.

use crate::model::Time;
use crate::span::Context;
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

const SHARDS: usize = 32;

type Shard<K, V, T> = Mutex<HashMap<K, Flight<V, T>>>;

/// A call under way, and a token that each of its callers holds.
struct Flight<V, T> {
    /// What it is about.
    tag: T,
    /// When its call began; `None` while it waits for the one before it.
    began: Option<Time>,
    leg: Leg<V>,
    /// The one that begins when this one lands: for those who want an answer asked for after they came.
    next: Option<Leg<V>>,
}

/// A result to come, and who waits for it.
struct Leg<V> {
    receiver: watch::Receiver<Option<V>>,
    callers: Arc<Mark>,
}

/// Held by all who wait for a leg; where in a trace its call is, once that is known.
#[derive(Default)]
struct Mark(OnceLock<Context>);

/// A place among those who wait for a flight; given back when dropped.
pub struct Place<V> {
    receiver: watch::Receiver<Option<V>>,
    caller: Arc<Mark>,
}

impl<V> Place<V> {
    /// Says where in a trace the call is, to all who wait for it.
    pub fn mark(&self, context: &Context) {
        let _ = self.caller.0.set(context.clone());
    }
}

/// Calls under way, by key; each has a tag by which it can be found.
pub struct Flights<K, V, T> {
    shards: Arc<Vec<Shard<K, V, T>>>,
    hasher: RandomState,
}

/// What a caller wants of a flight.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The most that may wait for one.
    pub most: usize,
    /// One whose call began before this has an answer that is no longer true: nobody joins it.
    pub true_since: Time,
    /// The answer must be asked for after this caller came.
    pub confirm: bool,
}

/// Where a caller stands.
pub enum Joined<K: Hash + Eq, V, T> {
    /// What the caller looked for is there after all.
    Found(V),
    /// Another caller started the call: wait for it.
    Waiting(Place<V>),
    /// As many wait for it as may.
    Full,
    /// This caller starts the call, and waits like the others.
    Leading(Landing<K, V, T>, Place<V>),
}

/// Ends a flight: with a value, or, when dropped without (a panic), with none.
pub struct Landing<K: Hash + Eq, V, T> {
    sender: watch::Sender<Option<V>>,
    /// The one to wait for before the call begins.
    after: Option<watch::Receiver<Option<V>>>,
    shards: Arc<Vec<Shard<K, V, T>>>,
    shard: usize,
    key: K,
}

impl<K: Hash + Eq + Clone, V: Clone, T> Default for Flights<K, V, T> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards: Arc::new(shards), hasher: RandomState::new() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone, T> Flights<K, V, T> {
    /// Forgets flights under way by their tags: they land for those who wait for them, and nobody joins them.
    pub fn detach(&self, is_meant: impl Fn(&T) -> bool) {
        for shard in self.shards.iter() {
            lock(shard).retain(|_, flight| !is_meant(&flight.tag));
        }
    }

    fn shard(&self, key: &K) -> usize {
        usize::try_from(self.hasher.hash_one(key)).unwrap_or(0) % SHARDS
    }

    /// Joins the flight of this key, if its terms allow, or starts one. `look` is asked once more with the key's shard
    /// locked: a flight stores its answer before it lands, so what `look` misses there, nobody has.
    pub fn join(&self, key: &K, tag: T, terms: &Terms, look: impl FnOnce() -> Option<V>) -> Joined<K, V, T> {
        let shard = self.shard(key);
        let mut flights = lock(&self.shards[shard]);
        if flights.get(key).is_some_and(|flight| flight.began.is_some_and(|at| at < terms.true_since)) {
            // It lands for those who wait for it; whoever comes now joins the next.
            flights.remove(key);
        }
        match flights.entry(key.clone()) {
            Entry::Occupied(mut flight) => {
                let flight = flight.get_mut();
                // One that has begun was asked for before this caller came.
                if !terms.confirm || flight.began.is_none() {
                    return flight.leg.join(terms.most);
                }
                if let Some(next) = &flight.next {
                    return next.join(terms.most);
                }
                let (sender, leg) = Leg::new();
                let (own, after) = (leg.place(), Some(flight.leg.receiver.clone()));
                flight.next = Some(leg);
                Joined::Leading(Landing { sender, after, shards: self.shards.clone(), shard, key: key.clone() }, own)
            }
            Entry::Vacant(place) => {
                if let Some(found) = look() {
                    return Joined::Found(found);
                }
                let (sender, leg) = Leg::new();
                let own = leg.place();
                place.insert(Flight { tag, began: None, leg, next: None });
                let after = None;
                Joined::Leading(Landing { sender, after, shards: self.shards.clone(), shard, key: key.clone() }, own)
            }
        }
    }
}

impl<V> Leg<V> {
    fn new() -> (watch::Sender<Option<V>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self { receiver, callers: Arc::default() })
    }

    fn place(&self) -> Place<V> {
        Place { receiver: self.receiver.clone(), caller: self.callers.clone() }
    }

    fn join<K: Hash + Eq, T>(&self, most: usize) -> Joined<K, V, T> {
        // One token is the leg's own.
        if Arc::strong_count(&self.callers) > most { Joined::Full } else { Joined::Waiting(self.place()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, V, T> Landing<K, V, T> {
    /// Waits for the flight before this one, if there is one, however that ends; then its call begins, at the
    /// moment that `now` tells.
    pub async fn begin(&mut self, now: impl FnOnce() -> Time) {
        if let Some(mut after) = self.after.take() {
            // An error is an end too.
            let _ = after.wait_for(Option::is_some).await;
        }
        let mut flights = lock(&self.shards[self.shard]);
        if let Some(flight) = flights.get_mut(&self.key).filter(|flight| flight.leg.is_of(&self.sender)) {
            flight.began = Some(now());
        }
    }

    /// Hands the value to everyone who waits.
    pub fn land(self, value: V) {
        // Whoever wakes finds that it is over.
        self.leave();
        self.sender.send_replace(Some(value));
    }

    /// Gives its place to the next, if there is one.
    fn leave(&self) {
        let mut flights = lock(&self.shards[self.shard]);
        let Some(flight) = flights.get_mut(&self.key) else { return };
        if flight.next.as_ref().is_some_and(|next| next.is_of(&self.sender)) {
            // It never began.
            flight.next = None;
        } else if flight.leg.is_of(&self.sender) {
            match flight.next.take() {
                Some(next) => (flight.leg, flight.began) = (next, None),
                None => {
                    flights.remove(&self.key);
                }
            }
        }
    }
}

impl<V> Leg<V> {
    fn is_of(&self, sender: &watch::Sender<Option<V>>) -> bool {
        sender.subscribe().same_channel(&self.receiver)
    }
}

impl<K: Hash + Eq, V, T> Drop for Landing<K, V, T> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Waits for a flight's value; `None` when it ended without one.
pub async fn landed<V: Clone>(place: Place<V>) -> Option<V> {
    landed_where(place).await.0
}

/// Likewise; and where in a trace its call was.
pub async fn landed_where<V: Clone>(mut place: Place<V>) -> (Option<V>, Option<Context>) {
    let value = place.receiver.wait_for(Option::is_some).await;
    let value = value.ok().and_then(|value| value.clone());
    (value, place.caller.0.get().cloned())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn terms(most: usize) -> Terms {
        Terms { most, true_since: Time(0), confirm: false }
    }

    #[tokio::test]
    async fn a_thousand_callers_one_flight() {
        let flights: Arc<Flights<u8, usize, ()>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for _ in 0..1000 {
            let (flights, calls) = (flights.clone(), calls.clone());
            waiting.push(tokio::spawn(async move {
                match flights.join(&1, (), &terms(1000), || None) {
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
        let flights: Flights<u8, u8, ()> = Flights::default();
        let Joined::Leading(landing, receiver) = flights.join(&1, (), &terms(1000), || None) else {
            panic!("no leader")
        };
        let Joined::Waiting(other) = flights.join(&1, (), &terms(1000), || None) else { panic!("no waiter") };
        let crashed = tokio::spawn(async move {
            let _landing = landing;
            panic!("on purpose");
        });
        assert!(crashed.await.is_err());
        assert_eq!((landed(receiver).await, landed(other).await), (None, None));
        assert!(matches!(flights.join(&1, (), &terms(1000), || None), Joined::Leading(..)));
        assert!(matches!(flights.join(&1, (), &terms(1000), || Some(7)), Joined::Found(7)));
    }

    #[tokio::test]
    async fn no_more_wait_than_may_and_a_place_given_back_is_taken_again() {
        let flights: Flights<u8, u8, ()> = Flights::default();
        let Joined::Leading(landing, own) = flights.join(&1, (), &terms(2), || None) else { panic!("no leader") };
        let Joined::Waiting(second) = flights.join(&1, (), &terms(2), || None) else { panic!("no waiter") };
        assert!(matches!(flights.join(&1, (), &terms(2), || None), Joined::Full));
        drop(second);
        let Joined::Waiting(third) = flights.join(&1, (), &terms(2), || None) else { panic!("no waiter") };
        landing.land(7);
        assert_eq!((landed(own).await, landed(third).await), (Some(7), Some(7)));
    }

    fn leading(joined: Joined<u8, u8, &'static str>) -> (Landing<u8, u8, &'static str>, Place<u8>) {
        let Joined::Leading(landing, place) = joined else { panic!("it does not lead") };
        (landing, place)
    }

    fn waiting(joined: Joined<u8, u8, &'static str>) -> Place<u8> {
        let Joined::Waiting(place) = joined else { panic!("it does not wait") };
        place
    }

    #[tokio::test]
    async fn who_wants_confirmation_waits_for_the_next_and_there_is_one_next() {
        let flights: Flights<u8, u8, &'static str> = Flights::default();
        let join = |confirm| flights.join(&1, "t", &Terms { confirm, ..terms(9) }, || None);
        let (mut early, first) = leading(join(true));
        let not_begun = waiting(join(true));
        early.begin(|| Time(5)).await;
        let (mut late, second) = leading(join(true));
        let (third, plain) = (waiting(join(true)), waiting(join(false)));
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, late.begin(|| Time(6))).await.is_err(),
            "not before it lands"
        );
        early.land(1);
        let still_next = waiting(join(true));
        late.begin(|| Time(7)).await;
        let (next, after_that) = leading(join(true));
        late.land(2);
        next.land(3);
        for (place, value) in
            [(first, 1), (not_begun, 1), (plain, 1), (second, 2), (third, 2), (still_next, 2), (after_that, 3)]
        {
            assert_eq!(landed(place).await, Some(value));
        }
        assert!(matches!(join(false), Joined::Leading(..)), "nothing is left behind");
    }

    #[tokio::test]
    async fn what_is_no_longer_true_is_joined_by_nobody_and_takes_nothing_away() {
        let flights: Flights<u8, u8, &'static str> = Flights::default();
        let join = |since| flights.join(&1, "t", &Terms { true_since: Time(since), ..terms(9) }, || None);
        let (mut old, before) = leading(join(0));
        old.begin(|| Time(5)).await;
        let (new, after) = leading(join(6));
        let joined = waiting(join(6));
        old.land(1);
        let still = waiting(join(6));
        new.land(2);
        let all = (landed(before).await, landed(after).await, landed(joined).await, landed(still).await);
        assert_eq!(all, (Some(1), Some(2), Some(2), Some(2)));
    }

    #[tokio::test]
    async fn only_those_that_are_meant_are_detached() {
        let flights: Flights<u8, u8, &'static str> = Flights::default();
        let (_one, _) = leading(flights.join(&1, "one", &terms(9), || None));
        let (_two, _) = leading(flights.join(&2, "two", &terms(9), || None));
        flights.detach(|tag| *tag == "one");
        assert!(matches!(flights.join(&1, "one", &terms(9), || None), Joined::Leading(..)));
        assert!(matches!(flights.join(&2, "two", &terms(9), || None), Joined::Waiting(..)));
    }
}
