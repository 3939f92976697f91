//! Coalesces concurrent requests for one key into one provider call.
//!
//! The first caller of a key is the leader: it gets a [`CallGuard`] and starts the call. Later callers are waiters. The
//! call runs in its own task, so a caller that disconnects does not end it. However the call ends, all waiters wake up.

use crate::base::model::Time;
use crate::base::trace_context::TraceContext;
use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{Notify, watch};

const SHARDS: usize = 32;

type Shard<K, V, T> = Mutex<HashMap<K, KeyCalls<V, T>>>;

/// The calls of one key: the current one, and at most one that starts after it.
struct KeyCalls<V, T> {
    /// Identifies the calls for [`Coalescer::detach`].
    tag: T,
    /// When the current call started; `None` while it waits for the call before it.
    started: Option<Time>,
    current: SharedResult<V>,
    /// The call that starts when the current one ends, for callers that need a call that starts after they join.
    next: Option<SharedResult<V>>,
}

/// The result of a call, which all waiters receive.
struct SharedResult<V> {
    receiver: watch::Receiver<Option<V>>,
    token: Arc<CallToken>,
}

/// Each waiter of a call holds a reference, so the reference count gives the number of waiters.
#[derive(Default)]
struct CallToken {
    /// The call's trace context, once it is known.
    trace_context: OnceLock<TraceContext>,
    /// The waiters of each client that has a share.
    waiters: Mutex<HashMap<Arc<str>, usize>>,
    joiners: Arc<Joiners>,
}

/// The clients with a share that have joined a call, in this order.
#[derive(Default)]
pub struct Joiners {
    clients: Mutex<JoinedClients>,
    added: Notify,
}

#[derive(Default)]
struct JoinedClients {
    /// Each client once, also if it leaves and joins again.
    in_order: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
}

impl Joiners {
    fn add(&self, client: &Arc<str>) {
        let mut clients = lock(&self.clients);
        if clients.known.insert(client.clone()) {
            clients.in_order.push(client.clone());
            self.added.notify_one();
        }
    }

    /// Waits for the client at this position. Only the call itself may wait.
    pub async fn get(&self, position: usize) -> Arc<str> {
        loop {
            if let Some(client) = lock(&self.clients).in_order.get(position) {
                return client.clone();
            }
            self.added.notified().await;
        }
    }
}

/// One caller that waits for a call. Dropping it frees its place among the waiters.
pub struct Waiter<V> {
    receiver: watch::Receiver<Option<V>>,
    token: Arc<CallToken>,
    /// The client, if it has a share of the waiters.
    client: Option<Arc<str>>,
}

impl<V> Drop for Waiter<V> {
    fn drop(&mut self) {
        let Some(client) = &self.client else { return };
        let mut waiters = lock(&self.token.waiters);
        if let Some(count) = waiters.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                waiters.remove(client);
            }
        }
    }
}

impl<V> Waiter<V> {
    /// Sets the call's trace context for all waiters.
    pub fn set_trace_context(&self, context: &TraceContext) {
        let _ = self.token.trace_context.set(context.clone());
    }
}

/// The running calls by key. `T` is a tag by which [`Coalescer::detach`] finds calls.
pub struct Coalescer<K, V, T> {
    shards: Arc<Vec<Shard<K, V, T>>>,
    hasher: RandomState,
}

/// The conditions under which a caller joins a call.
#[derive(Debug, Clone)]
pub struct JoinTerms {
    /// The most waiters of one call.
    pub max_waiters: usize,
    /// The caller's client, and the most waiters of one call that it may have; `None` if it may have all.
    pub share: Option<(Arc<str>, usize)>,
    /// Results of calls that started before this time are outdated: the caller does not join such a call.
    pub not_before: Time,
    /// Whether the call must start after this caller joins.
    pub start_after_join: bool,
}

/// The outcome of [`Coalescer::join`].
pub enum Joined<K: Hash + Eq, V, T> {
    /// The value is already in the cache.
    Found(V),
    /// Another caller leads the call; this one waits.
    Waiting(Waiter<V>),
    /// The call has its maximum number of waiters, or the client has its share of them.
    Full,
    /// This caller leads: it must start the call, and it waits like the others.
    Leading(CallGuard<K, V, T>, Waiter<V>),
}

/// The leader's part of a call. [`CallGuard::finish`] ends the call with a result; dropping the guard (a panic) ends it
/// without one.
pub struct CallGuard<K: Hash + Eq, V, T> {
    sender: watch::Sender<Option<V>>,
    /// The call that must end before this one starts.
    previous: Option<watch::Receiver<Option<V>>>,
    shards: Arc<Vec<Shard<K, V, T>>>,
    shard: usize,
    key: K,
    /// The clients that wait for the call.
    pub joiners: Arc<Joiners>,
}

impl<K: Hash + Eq + Clone, V: Clone, T> Default for Coalescer<K, V, T> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards: Arc::new(shards), hasher: RandomState::new() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone, T> Coalescer<K, V, T> {
    /// Detaches the calls whose tag matches: their waiters still get the result, but no caller joins them any more.
    pub fn detach(&self, matches: impl Fn(&T) -> bool) {
        for shard in self.shards.iter() {
            lock(shard).retain(|_, calls| !matches(&calls.tag));
        }
    }

    fn shard(&self, key: &K) -> usize {
        usize::try_from(self.hasher.hash_one(key)).unwrap_or(0) % SHARDS
    }

    /// Joins the call of this key if the terms allow it, else makes this caller the leader of a new one. `lookup` reads
    /// the cache under the lock of the key's shard. A call stores its result before it ends, so a result that `lookup`
    /// misses does not exist.
    pub fn join(&self, key: &K, tag: T, terms: &JoinTerms, lookup: impl FnOnce() -> Option<V>) -> Joined<K, V, T> {
        let shard = self.shard(key);
        let mut calls_by_key = lock(&self.shards[shard]);
        if calls_by_key.get(key).is_some_and(|calls| calls.started.is_some_and(|at| at < terms.not_before)) {
            // Its waiters still get the outdated result; this caller and later ones join a new call.
            calls_by_key.remove(key);
        }
        match calls_by_key.entry(key.clone()) {
            Entry::Occupied(mut calls) => {
                let calls = calls.get_mut();
                // A call that has not started yet starts after this caller joined.
                if !terms.start_after_join || calls.started.is_none() {
                    return calls.current.join(terms);
                }
                if let Some(next) = &calls.next {
                    return next.join(terms);
                }
                let (sender, next) = SharedResult::new();
                let (waiter, previous) = (next.waiter(terms), Some(calls.current.receiver.clone()));
                let joiners = next.token.joiners.clone();
                calls.next = Some(next);
                let guard =
                    CallGuard { sender, previous, shards: self.shards.clone(), shard, key: key.clone(), joiners };
                Joined::Leading(guard, waiter)
            }
            Entry::Vacant(slot) => {
                if let Some(found) = lookup() {
                    return Joined::Found(found);
                }
                let (sender, current) = SharedResult::new();
                let (waiter, joiners, previous) = (current.waiter(terms), current.token.joiners.clone(), None);
                slot.insert(KeyCalls { tag, started: None, current, next: None });
                let guard =
                    CallGuard { sender, previous, shards: self.shards.clone(), shard, key: key.clone(), joiners };
                Joined::Leading(guard, waiter)
            }
        }
    }
}

impl<V> SharedResult<V> {
    fn new() -> (watch::Sender<Option<V>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self { receiver, token: Arc::default() })
    }

    /// Makes a waiter and counts it for its client.
    fn waiter(&self, terms: &JoinTerms) -> Waiter<V> {
        let client = terms.share.as_ref().map(|(client, _)| client.clone());
        if let Some(client) = &client {
            *lock(&self.token.waiters).entry(client.clone()).or_default() += 1;
            self.token.joiners.add(client);
        }
        Waiter { receiver: self.receiver.clone(), token: self.token.clone(), client }
    }

    fn join<K: Hash + Eq, T>(&self, terms: &JoinTerms) -> Joined<K, V, T> {
        let waits_of = |client: &Arc<str>| lock(&self.token.waiters).get(client).copied().unwrap_or(0);
        let client_has_share = terms.share.as_ref().is_some_and(|(client, most)| waits_of(client) >= *most);
        // `self` has one reference, and each waiter has one.
        if client_has_share || Arc::strong_count(&self.token) > terms.max_waiters {
            return Joined::Full;
        }
        Joined::Waiting(self.waiter(terms))
    }

    fn belongs_to(&self, sender: &watch::Sender<Option<V>>) -> bool {
        sender.subscribe().same_channel(&self.receiver)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, V, T> CallGuard<K, V, T> {
    /// Waits until the previous call has ended, if there is one, and records `now()` as the start of this call.
    pub async fn start(&mut self, now: impl FnOnce() -> Time) {
        if let Some(mut previous) = self.previous.take() {
            // An error means that the previous call ended without a result.
            let _ = previous.wait_for(Option::is_some).await;
        }
        let mut calls_by_key = lock(&self.shards[self.shard]);
        if let Some(calls) = calls_by_key.get_mut(&self.key).filter(|calls| calls.current.belongs_to(&self.sender)) {
            calls.started = Some(now());
        }
    }

    /// Ends the call and passes its result to all waiters.
    pub fn finish(self, value: V) {
        // The call is removed before its waiters wake up, so that none of them joins it again.
        self.remove();
        self.sender.send_replace(Some(value));
    }

    /// Removes the call; the next one, if there is one, becomes the current call.
    fn remove(&self) {
        let mut calls_by_key = lock(&self.shards[self.shard]);
        let Some(calls) = calls_by_key.get_mut(&self.key) else { return };
        if calls.next.as_ref().is_some_and(|next| next.belongs_to(&self.sender)) {
            // This call ended before it could start.
            calls.next = None;
        } else if calls.current.belongs_to(&self.sender) {
            match calls.next.take() {
                Some(next) => (calls.current, calls.started) = (next, None),
                None => {
                    calls_by_key.remove(&self.key);
                }
            }
        }
    }
}

impl<K: Hash + Eq, V, T> Drop for CallGuard<K, V, T> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Waits for the result of a call and returns it with the call's trace context. The result is `None` if the call ended
/// without one.
pub async fn shared_result_and_trace<V: Clone>(mut waiter: Waiter<V>) -> (Option<V>, Option<TraceContext>) {
    let value = waiter.receiver.wait_for(Option::is_some).await;
    let value = value.ok().and_then(|value| value.clone());
    (value, waiter.token.trace_context.get().cloned())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    async fn shared_result<V: Clone>(waiter: Waiter<V>) -> Option<V> {
        shared_result_and_trace(waiter).await.0
    }

    fn at_most(most: usize) -> JoinTerms {
        JoinTerms { max_waiters: most, share: None, not_before: Time(0), start_after_join: false }
    }

    #[tokio::test]
    async fn a_thousand_callers_share_one_call() {
        let coalescer: Arc<Coalescer<u8, usize, ()>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for _ in 0..1000 {
            let (coalescer, calls) = (coalescer.clone(), calls.clone());
            waiting.push(tokio::spawn(async move {
                match coalescer.join(&1, (), &at_most(1000), || None) {
                    Joined::Found(value) => Some(value),
                    Joined::Waiting(waiter) => shared_result(waiter).await,
                    Joined::Full => None,
                    Joined::Leading(guard, waiter) => {
                        tokio::spawn(async move {
                            // Every other caller joins during these yields.
                            for _ in 0..2000 {
                                tokio::task::yield_now().await;
                            }
                            guard.finish(calls.fetch_add(1, Ordering::SeqCst) + 41);
                        });
                        shared_result(waiter).await
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
    async fn a_call_that_panics_wakes_its_waiters_and_the_next_caller_leads() {
        let coalescer: Coalescer<u8, u8, ()> = Coalescer::default();
        let Joined::Leading(guard, leader) = coalescer.join(&1, (), &at_most(1000), || None) else {
            panic!("no leader")
        };
        let Joined::Waiting(follower) = coalescer.join(&1, (), &at_most(1000), || None) else { panic!("no waiter") };
        let crashed = tokio::spawn(async move {
            let _guard = guard;
            panic!("on purpose");
        });
        assert!(crashed.await.is_err());
        assert_eq!((shared_result(leader).await, shared_result(follower).await), (None, None));
        assert!(matches!(coalescer.join(&1, (), &at_most(1000), || None), Joined::Leading(..)));
        assert!(matches!(coalescer.join(&1, (), &at_most(1000), || Some(7)), Joined::Found(7)));
    }

    #[tokio::test]
    async fn waiters_are_limited_and_a_dropped_waiter_frees_its_place() {
        let coalescer: Coalescer<u8, u8, ()> = Coalescer::default();
        let Joined::Leading(guard, first) = coalescer.join(&1, (), &at_most(2), || None) else { panic!("no leader") };
        let Joined::Waiting(second) = coalescer.join(&1, (), &at_most(2), || None) else { panic!("no waiter") };
        assert!(matches!(coalescer.join(&1, (), &at_most(2), || None), Joined::Full));
        drop(second);
        let Joined::Waiting(third) = coalescer.join(&1, (), &at_most(2), || None) else { panic!("no waiter") };
        guard.finish(7);
        assert_eq!((shared_result(first).await, shared_result(third).await), (Some(7), Some(7)));
    }

    #[test]
    fn a_client_leaves_places_among_the_waiters_to_the_others() {
        let coalescer: Coalescer<u8, u8, ()> = Coalescer::default();
        let join = |client: &str| {
            coalescer.join(&1, (), &JoinTerms { share: Some((client.into(), 2)), ..at_most(4) }, || None)
        };
        let (Joined::Leading(_guard, _first), Joined::Waiting(second)) = (join("greedy"), join("greedy")) else {
            panic!("no share")
        };
        assert!(matches!(join("greedy"), Joined::Full));
        let Joined::Waiting(_other) = join("modest") else { panic!("no place for the other client") };
        drop(second);
        assert!(matches!(join("greedy"), Joined::Waiting(_)), "its place is free again");
    }

    fn leading(joined: Joined<u8, u8, &'static str>) -> (CallGuard<u8, u8, &'static str>, Waiter<u8>) {
        let Joined::Leading(guard, waiter) = joined else { panic!("not the leader") };
        (guard, waiter)
    }

    fn waiting(joined: Joined<u8, u8, &'static str>) -> Waiter<u8> {
        let Joined::Waiting(waiter) = joined else { panic!("not a waiter") };
        waiter
    }

    #[tokio::test]
    async fn callers_that_need_a_later_call_share_one_next_call() {
        let coalescer: Coalescer<u8, u8, &'static str> = Coalescer::default();
        let join = |start_after_join| coalescer.join(&1, "t", &JoinTerms { start_after_join, ..at_most(9) }, || None);
        let (mut early, first) = leading(join(true));
        let not_started = waiting(join(true));
        early.start(|| Time(5)).await;
        let (mut late, second) = leading(join(true));
        let (third, plain) = (waiting(join(true)), waiting(join(false)));
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, late.start(|| Time(6))).await.is_err(),
            "the next call starts after the current one ends"
        );
        early.finish(1);
        let joined_next = waiting(join(true));
        late.start(|| Time(7)).await;
        let (next, after_that) = leading(join(true));
        late.finish(2);
        next.finish(3);
        for (waiter, value) in
            [(first, 1), (not_started, 1), (plain, 1), (second, 2), (third, 2), (joined_next, 2), (after_that, 3)]
        {
            assert_eq!(shared_result(waiter).await, Some(value));
        }
        assert!(matches!(join(false), Joined::Leading(..)), "no call is left");
    }

    #[tokio::test]
    async fn outdated_calls_are_not_joined_and_their_end_does_not_remove_newer_calls() {
        let coalescer: Coalescer<u8, u8, &'static str> = Coalescer::default();
        let join = |since| coalescer.join(&1, "t", &JoinTerms { not_before: Time(since), ..at_most(9) }, || None);
        let (mut old, before) = leading(join(0));
        old.start(|| Time(5)).await;
        let (new, after) = leading(join(6));
        let joined = waiting(join(6));
        old.finish(1);
        let still = waiting(join(6));
        new.finish(2);
        let all = (
            shared_result(before).await,
            shared_result(after).await,
            shared_result(joined).await,
            shared_result(still).await,
        );
        assert_eq!(all, (Some(1), Some(2), Some(2), Some(2)));
    }

    #[tokio::test]
    async fn detach_affects_only_calls_with_a_matching_tag() {
        let coalescer: Coalescer<u8, u8, &'static str> = Coalescer::default();
        let (_one, _) = leading(coalescer.join(&1, "one", &at_most(9), || None));
        let (_two, _) = leading(coalescer.join(&2, "two", &at_most(9), || None));
        coalescer.detach(|tag| *tag == "one");
        assert!(matches!(coalescer.join(&1, "one", &at_most(9), || None), Joined::Leading(..)));
        assert!(matches!(coalescer.join(&2, "two", &at_most(9), || None), Joined::Waiting(..)));
    }
}
