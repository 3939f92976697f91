//! Limits towards clients: governor's buckets, several to a request, taken all or none.
//!
//! A room of its own because fairness is arithmetic: exact on one node, at most burst + rate × window.
//! Who has a bucket is known before anyone asks, so each has a limiter of its own, and nobody is looked up. governor has
//! neither a peek nor a refund, so its store is wrapped: asked to peek, it computes the decision and keeps its state.
//! Seam for a shared tier: a store that keeps state elsewhere goes here.

use crate::config::weir::{Charge, Policy};
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{InsufficientCapacity, Quota, RateLimiter};
use http::HeaderValue;
use prometheus::IntCounter;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Nanoseconds since its first reading, which is therefore exactly zero: a limiter made with it
/// counts from there, and so do we.
#[derive(Debug, Default, Clone)]
pub struct Ticker {
    epoch: OnceLock<Instant>,
}

impl Clock for Ticker {
    type Instant = Nanos;

    #[allow(clippy::disallowed_methods)] // the limiter's clock
    fn now(&self) -> Nanos {
        match self.epoch.get() {
            Some(epoch) => epoch.elapsed().into(),
            None => {
                let _ = self.epoch.set(Instant::now());
                Nanos::from(0)
            }
        }
    }
}

/// A question to a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ask {
    Peek,
    Take,
}

/// A bucket's state, which can be read beside its limiter.
#[derive(Default, Clone)]
struct Store(Arc<InMemoryState>);

impl StateStore for Store {
    type Key = Ask;

    fn measure_and_replace<T, F, E>(&self, ask: &Ask, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if *ask == Ask::Take {
            return self.0.measure_and_replace(&NotKeyed::NonKey, f);
        }
        // A closure that fails leaves the state as it was.
        let peeked = self.0.measure_and_replace(&NotKeyed::NonKey, |state| Err::<((), Nanos), _>(f(state)));
        match peeked {
            Err(decision) => decision.map(|(value, _)| value),
            Ok(()) => f(None).map(|(value, _)| value),
        }
    }
}

/// What one of those under a policy has taken.
struct State<C: Clock<Instant = Nanos>> {
    limiter: RateLimiter<Ask, Store, C, NoOpMiddleware<Nanos>>,
    store: Store,
}

/// One policy and the state of everyone under it.
pub struct Limiter<C: Clock<Instant = Nanos> = Ticker> {
    quota: Quota,
    /// Read by nobody: each state counts from its own first reading.
    clock: C,
    states: Mutex<HashMap<Arc<str>, Arc<State<C>>>>,
    period: u64,
    burst: u64,
    /// The policy as configured; a limiter is kept over a reload only while this stays the same.
    pub policy: Policy,
    /// The policy as clients are told of it (draft-ietf-httpapi-ratelimit-headers-10).
    pub told: HeaderValue,
}

/// Name, quota, and the seconds in which a burst is earned.
fn told(policy: &Policy) -> HeaderValue {
    let earned = policy.per.as_millis() * u128::from(policy.burst.get());
    let window = earned.div_ceil(1000 * u128::from(policy.requests.get()));
    let text = format!("\"{}\";q={};w={window}", policy.name, policy.burst);
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// What is left in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Requests that would be admitted now.
    pub remaining: u64,
    /// Until one more is earned; zero when the bucket is full.
    pub next_in: Duration,
}

/// GCRA turned round: `arrival` is the theoretical arrival time that a store keeps, in nanoseconds as `now` and
/// `period` are.
#[must_use]
pub fn left_at(now: u64, arrival: u64, period: u64, burst: u64) -> Left {
    let arrival = u128::from(arrival.max(now));
    let (now, period, burst) = (u128::from(now), u128::from(period), u128::from(burst));
    let tolerance = period * (burst - 1);
    let remaining = (now + tolerance).checked_sub(arrival).map_or(0, |room| room / period + 1);
    let remaining = remaining.min(burst);
    let next = if remaining == burst { 0 } else { arrival + remaining * period - tolerance - now };
    Left {
        remaining: u64::try_from(remaining).unwrap_or(u64::MAX),
        next_in: Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX)),
    }
}

impl<C: Clock<Instant = Nanos> + Clone> Limiter<C> {
    /// A full limiter. `clock` must not have been read before.
    pub fn new(policy: &Policy, clock: C) -> Self {
        // Rounded up, so that the rate is never exceeded.
        let period = policy.per.as_nanos().div_ceil(u128::from(policy.requests.get())).max(1);
        let period = u64::try_from(period).unwrap_or(u64::MAX);
        let quota = Quota::with_period(Duration::from_nanos(period))
            .unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN))
            .allow_burst(policy.burst);
        Self {
            quota,
            clock,
            states: Mutex::default(),
            period,
            burst: u64::from(policy.burst.get()),
            policy: policy.clone(),
            told: told(policy),
        }
    }

    fn states(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<State<C>>>> {
        // Nothing in it can be half done.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this one has taken; nothing yet, if it is new.
    fn state(&self, of: Arc<str>) -> Arc<State<C>> {
        let made = || {
            let store = Store::default();
            Arc::new(State { limiter: RateLimiter::new(self.quota, store.clone(), self.clock.clone()), store })
        };
        self.states().entry(of).or_insert_with(made).clone()
    }

    /// Forgets buckets that nobody holds any more and that are full again.
    pub fn sweep(&self) {
        let held = |state: &Arc<State<C>>| Arc::strong_count(state) > 1;
        self.states().retain(|_, state| held(state) || state.left(self.period, self.burst).remaining < self.burst);
    }

    /// Buckets that are remembered.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.states().len()
    }
}

impl<C: Clock<Instant = Nanos>> State<C> {
    fn left(&self, period: u64, burst: u64) -> Left {
        let now = self.limiter.clock().now();
        let state = self.store.0.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>).err().flatten();
        left_at(now.as_u64(), state.map_or(0, Nanos::as_u64), period, burst)
    }
}

/// A policy as it applies to one client (and, if it is a provider's, to that provider alone).
pub struct Bucket<C: Clock<Instant = Nanos> = Ticker> {
    /// The policy's limiter.
    pub limiter: Arc<Limiter<C>>,
    state: Arc<State<C>>,
    /// Where its admissions are counted, once there was one.
    pub admitted: OnceLock<IntCounter>,
}

impl<C: Clock<Instant = Nanos> + Clone> Bucket<C> {
    /// The part of a policy that is this one's: with all that it has taken, if there is such a bucket already.
    #[must_use]
    pub fn new(limiter: Arc<Limiter<C>>, of: Arc<str>) -> Self {
        Self { state: limiter.state(of), limiter, admitted: OnceLock::new() }
    }
}

impl<C: Clock<Instant = Nanos>> Bucket<C> {
    /// What is left, without taking.
    #[must_use]
    pub fn left(&self) -> Left {
        self.state.left(self.limiter.period, self.limiter.burst)
    }

    fn decide(&self, cost: NonZeroU32, ask: Ask) -> Result<bool, InsufficientCapacity> {
        self.state.limiter.check_key_n(&ask, cost).map(|decision| decision.is_ok())
    }

    /// Until a request of this cost would be admitted.
    fn wait_for(&self, cost: NonZeroU32) -> Duration {
        let left = self.left();
        let short = u64::from(cost.get()).saturating_sub(left.remaining);
        if short == 0 {
            return Duration::ZERO;
        }
        left.next_in + Duration::from_nanos(self.limiter.period.saturating_mul(short - 1))
    }

    /// Asks for this cost, and takes it if told to; notes what stands against it.
    fn ask(&self, cost: NonZeroU32, ask: Ask, over: &mut Over) -> Result<(), Refusal> {
        let policy = &self.limiter.policy;
        match self.decide(cost, ask) {
            Ok(true) => Ok(()),
            Ok(false) => {
                over.policies.push(policy.name.clone());
                over.retry_after = over.retry_after.max(self.wait_for(cost));
                Ok(())
            }
            Err(_) => Err(Refusal::TooCostly { policy: policy.name.clone(), burst: policy.burst.get() }),
        }
    }
}

/// Policies that stand against a request.
#[derive(Default)]
struct Over {
    policies: Vec<String>,
    retry_after: Duration,
}

impl Over {
    fn decide(self) -> Result<(), Refusal> {
        let Self { policies, retry_after } = self;
        if policies.is_empty() { Ok(()) } else { Err(Refusal::Limited { policies, retry_after }) }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Over these policies; try again after the longest of their waits.
    Limited {
        /// Names of the policies.
        policies: Vec<String>,
        /// Until all of them would admit it.
        retry_after: Duration,
    },
    /// It costs more than this policy's burst: it can never be admitted.
    TooCostly {
        /// The policy's name.
        policy: String,
        /// Its burst.
        burst: u32,
    },
}

/// What a request costs: one for each answer that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Under a policy that charges every answer.
    pub all: u32,
    /// Under one that charges only what the cache could not answer.
    pub misses: u32,
}

impl Cost {
    /// Of one answer.
    #[must_use]
    pub fn one(hit: bool) -> Self {
        Self { all: 1, misses: u32::from(!hit) }
    }

    /// Under a policy that charges so; `None` where it is free.
    #[must_use]
    pub fn under(self, charge: Charge) -> Option<NonZeroU32> {
        NonZeroU32::new(match charge {
            Charge::All => self.all,
            Charge::Misses => self.misses,
        })
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { all: self.all + other.all, misses: self.misses + other.misses }
    }
}

/// What a request takes from a bucket.
pub struct Due<'b, C: Clock<Instant = Nanos> = Ticker> {
    /// Which.
    pub bucket: &'b Bucket<C>,
    /// How much.
    pub cost: NonZeroU32,
}

/// Admits a request under all buckets that it takes from, or takes from none.
/// `gate` is the client's own: it makes asking all and then taking from all one step.
///
/// # Errors
/// The refusal; nothing was taken.
pub fn admit<C: Clock<Instant = Nanos>>(dues: &[Due<'_, C>], gate: &Mutex<()>) -> Result<(), Refusal> {
    // A poisoned gate guards nothing that could be half done.
    let _one_at_a_time = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let mut over = Over::default();
    if let [Due { bucket, cost }] = dues {
        // One alone is asked and taken from in one step.
        bucket.ask(*cost, Ask::Take, &mut over)?;
        return over.decide();
    }
    dues.iter().try_for_each(|due| due.bucket.ask(due.cost, Ask::Peek, &mut over))?;
    over.decide()?;
    for Due { bucket, cost } in dues {
        let _ = bucket.decide(*cost, Ask::Take);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::Place;
    use governor::clock::FakeRelativeClock;

    fn policy(name: &str, requests: u32, per: u64, burst: u32, charge: Charge) -> Policy {
        Policy {
            name: name.into(),
            place: Place::top(&"f".into()),
            requests: requests.try_into().unwrap(),
            per: Duration::from_secs(per),
            burst: burst.try_into().unwrap(),
            charge,
        }
    }

    fn bucket(policy: &Policy, clock: &FakeRelativeClock) -> Bucket<FakeRelativeClock> {
        Bucket::new(Arc::new(Limiter::new(policy, clock.clone())), "client".into())
    }

    fn admit_one(buckets: &[&Bucket<FakeRelativeClock>]) -> Result<(), Refusal> {
        admit_all(buckets, Cost::one(false))
    }

    fn admit_all(buckets: &[&Bucket<FakeRelativeClock>], cost: Cost) -> Result<(), Refusal> {
        let due = |bucket: &&'_ Bucket<FakeRelativeClock>| cost.under(bucket.limiter.policy.charge);
        let dues: Vec<_> = buckets.iter().filter_map(|b| Some(Due { bucket: *b, cost: due(b)? })).collect();
        admit(&dues, &Mutex::new(()))
    }

    #[test]
    fn burst_then_exactly_the_rate() {
        let clock = FakeRelativeClock::default();
        let bucket = bucket(&policy("careful", 60, 60, 10, Charge::All), &clock);
        let admitted = (0..100).filter(|_| admit_one(&[&bucket]).is_ok()).count();
        assert_eq!(admitted, 10);
        let refusal = admit_one(&[&bucket]).unwrap_err();
        assert_eq!(refusal, Refusal::Limited { policies: vec!["careful".into()], retry_after: Duration::from_secs(1) });
        clock.advance(Duration::from_millis(999));
        assert!(admit_one(&[&bucket]).is_err());
        clock.advance(Duration::from_millis(1));
        assert!(admit_one(&[&bucket]).is_ok());
        assert!(admit_one(&[&bucket]).is_err());
        // Over a long window: no more than burst + rate × window.
        let mut admitted = 0;
        for _ in 0..6000 {
            clock.advance(Duration::from_millis(100));
            admitted += usize::from(admit_one(&[&bucket]).is_ok());
        }
        assert_eq!(admitted, 600);
    }

    #[test]
    fn what_is_left_agrees_with_what_is_admitted() {
        let clock = FakeRelativeClock::default();
        let bucket = bucket(&policy("p", 3, 10, 4, Charge::All), &clock);
        assert_eq!(bucket.left(), Left { remaining: 4, next_in: Duration::ZERO });
        for step in 0..500_u64 {
            clock.advance(Duration::from_millis(137 * (step % 7)));
            let left = bucket.left();
            assert_eq!(left, bucket.left(), "looking takes nothing");
            let mut admitted = 0;
            while step % 11 == 0 && admit_one(&[&bucket]).is_ok() {
                admitted += 1;
            }
            if step % 11 == 0 {
                assert_eq!(admitted, left.remaining);
                let next = bucket.left().next_in;
                clock.advance(next - Duration::from_nanos(1));
                assert!(admit_one(&[&bucket]).is_err());
                clock.advance(Duration::from_nanos(1));
                assert!(admit_one(&[&bucket]).is_ok());
            }
        }
    }

    #[test]
    fn a_request_that_one_policy_refuses_takes_from_none() {
        let clock = FakeRelativeClock::default();
        let wide = bucket(&policy("wide", 100, 60, 100, Charge::All), &clock);
        let narrow = bucket(&policy("narrow", 1, 60, 1, Charge::All), &clock);
        assert!(admit_one(&[&wide, &narrow]).is_ok());
        for _ in 0..50 {
            assert!(admit_one(&[&wide, &narrow]).is_err());
        }
        assert_eq!(wide.left().remaining, 99);
    }

    #[test]
    fn hits_are_free_under_a_policy_that_charges_misses() {
        let clock = FakeRelativeClock::default();
        let misses = bucket(&policy("misses", 1, 60, 1, Charge::Misses), &clock);
        for _ in 0..5 {
            assert!(admit_all(&[&misses], Cost::one(true)).is_ok());
        }
        assert!(admit_all(&[&misses], Cost::one(false)).is_ok());
        assert!(admit_all(&[&misses], Cost::one(false)).is_err());
        assert!(admit_all(&[&misses], Cost::one(true)).is_ok());
    }

    #[test]
    fn a_cost_above_the_burst_can_never_be_admitted() {
        let clock = FakeRelativeClock::default();
        let bucket = bucket(&policy("p", 10, 60, 10, Charge::All), &clock);
        let cost = |n: u32| admit_all(&[&bucket], Cost { all: n, misses: 0 });
        assert_eq!(cost(11), Err(Refusal::TooCostly { policy: "p".into(), burst: 10 }));
        assert_eq!(cost(8), Ok(()));
        let Err(Refusal::Limited { retry_after, .. }) = cost(4) else { panic!("admitted") };
        assert_eq!(retry_after, Duration::from_secs(12));
        clock.advance(retry_after);
        assert_eq!(cost(4), Ok(()));
    }

    #[test]
    fn what_was_taken_outlives_a_bucket_until_it_is_full_again() {
        let clock = FakeRelativeClock::default();
        let limiter = Arc::new(Limiter::new(&policy("p", 10, 10, 10, Charge::All), clock.clone()));
        let bucket = |n: u32| Bucket::new(limiter.clone(), format!("client{n}").into());
        let held: Vec<_> = (0..3).map(bucket).collect();
        (0..100).for_each(|n| assert!(admit_one(&[&bucket(n)]).is_ok()));
        limiter.sweep();
        assert_eq!((limiter.tracked(), bucket(7).left().remaining, held[1].left().remaining), (100, 9, 9));
        clock.advance(Duration::from_secs(60));
        limiter.sweep();
        assert_eq!((limiter.tracked(), held[1].left().remaining), (3, 10), "those that are held");
    }
}
