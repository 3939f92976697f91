//! Limits the request rates of clients. A request takes tokens from all its buckets, or from none.
//!
//! In any window, a bucket admits at most burst + rate × window on one node. The snapshot makes all buckets in advance, so
//! a request needs no lookup.

use crate::config::weir::{Charge, Policy};
use crate::engine::token_bucket::{OverBurst, Refill, Remaining, TakeMode, Ticker, TokenBucket};
use governor::clock::Clock;
use governor::nanos::Nanos;
use http::HeaderValue;
use prometheus::IntCounter;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The algorithm of a policy with the state of one client. A new kind of policy is one variant here and one kind in the
/// configuration.
enum Algorithm<C: Clock<Instant = Nanos>> {
    /// Tokens that refill with time, up to a burst.
    TokenBucket(TokenBucket<C>),
}

impl<C: Clock<Instant = Nanos>> Algorithm<C> {
    /// Makes the algorithm of a policy in its initial state.
    fn new(policy: &Policy, clock: C) -> Self {
        let refill = Refill::new(policy.requests, policy.per, policy.burst);
        Self::TokenBucket(TokenBucket::new(refill, clock))
    }

    fn remaining(&self) -> Remaining {
        match self {
            Self::TokenBucket(bucket) => bucket.remaining(),
        }
    }

    /// Returns whether the state is the initial one, so that the limiter can remove it.
    fn is_initial(&self) -> bool {
        match self {
            Self::TokenBucket(bucket) => bucket.is_full(),
        }
    }

    /// Returns whether a request of this cost is admitted, and takes the cost if `mode` says so.
    ///
    /// # Errors
    /// The cost is more than the burst.
    fn decide(&self, cost: NonZeroU32, mode: TakeMode) -> Result<bool, OverBurst> {
        match (self, mode) {
            (Self::TokenBucket(bucket), TakeMode::Peek) => bucket.peek(cost),
            (Self::TokenBucket(bucket), TakeMode::Take) => bucket.take(cost),
        }
    }

    /// Returns the time until a request of this cost would be admitted.
    fn wait_for(&self, cost: NonZeroU32) -> Duration {
        match self {
            Self::TokenBucket(bucket) => bucket.wait_for(cost),
        }
    }
}

/// One policy and the states of all its clients.
pub struct Limiter<C: Clock<Instant = Nanos> = Ticker> {
    /// Each state reads its own copy of this clock, which counts from its first reading. This one is never read.
    clock: C,
    states: Mutex<HashMap<Arc<str>, Arc<Algorithm<C>>>>,
    /// The configured policy. A reload keeps the limiter only if the policy is unchanged.
    pub policy: Policy,
    /// The policy's item in the `RateLimit-Policy` header (draft-ietf-httpapi-ratelimit-headers-10).
    pub policy_header: HeaderValue,
}

/// Formats a policy's name, quota `q`, and `w`: seconds until an empty bucket is full.
fn policy_header(policy: &Policy) -> HeaderValue {
    let burst_ms = policy.per.as_millis() * u128::from(policy.burst.get());
    let window = burst_ms.div_ceil(1000 * u128::from(policy.requests.get()));
    let text = format!("\"{}\";q={};w={window}", policy.name, policy.burst);
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

impl<C: Clock<Instant = Nanos> + Clone> Limiter<C> {
    /// Makes a limiter without states. `clock` must not have been read before.
    pub fn new(policy: &Policy, clock: C) -> Self {
        Self { clock, states: Mutex::default(), policy: policy.clone(), policy_header: policy_header(policy) }
    }

    fn states(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Algorithm<C>>>> {
        // No update can be interrupted half-way, so a poisoned lock is safe to use.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state for this key, and makes it if it is new.
    fn state(&self, key: Arc<str>) -> Arc<Algorithm<C>> {
        let make = || Arc::new(Algorithm::new(&self.policy, self.clock.clone()));
        self.states().entry(key).or_insert_with(make).clone()
    }

    /// Removes states that no bucket uses and that are back in their initial state.
    pub fn sweep(&self) {
        let in_use = |state: &Arc<Algorithm<C>>| Arc::strong_count(state) > 1;
        self.states().retain(|_, state| in_use(state) || !state.is_initial());
    }
}

/// The state of one policy for one client. A policy for requests to a provider has one bucket per client and provider.
pub struct Bucket<C: Clock<Instant = Nanos> = Ticker> {
    /// The policy's limiter.
    pub limiter: Arc<Limiter<C>>,
    state: Arc<Algorithm<C>>,
    /// The counter of its admissions; set at the first admission.
    pub admitted: OnceLock<IntCounter>,
}

impl<C: Clock<Instant = Nanos> + Clone> Bucket<C> {
    /// Returns the limiter's bucket for this key. Buckets of the same key share one state.
    #[must_use]
    pub fn new(limiter: Arc<Limiter<C>>, key: Arc<str>) -> Self {
        Self { state: limiter.state(key), limiter, admitted: OnceLock::new() }
    }
}

impl<C: Clock<Instant = Nanos>> Bucket<C> {
    /// Returns the remaining tokens, without taking any.
    #[must_use]
    pub fn remaining(&self) -> Remaining {
        self.state.remaining()
    }

    /// Checks this cost, and takes it if `mode` says so. Adds the policy to `exceeded` if the cost is too much now.
    ///
    /// # Errors
    /// The cost is more than the policy's burst.
    fn decide(&self, cost: NonZeroU32, mode: TakeMode, exceeded: &mut Exceeded) -> Result<(), Refusal> {
        let policy = &self.limiter.policy;
        match self.state.decide(cost, mode) {
            Ok(true) => Ok(()),
            Ok(false) => {
                exceeded.policies.push(policy.name.clone());
                exceeded.retry_after = exceeded.retry_after.max(self.state.wait_for(cost));
                Ok(())
            }
            Err(OverBurst) => Err(Refusal::TooCostly { policy: policy.name.clone(), burst: policy.burst.get() }),
        }
    }
}

/// The policies that a request exceeds.
#[derive(Default)]
struct Exceeded {
    policies: Vec<String>,
    retry_after: Duration,
}

impl Exceeded {
    fn into_result(self) -> Result<(), Refusal> {
        let Self { policies, retry_after } = self;
        if policies.is_empty() { Ok(()) } else { Err(Refusal::Limited { policies, retry_after }) }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request exceeds these policies for now.
    Limited {
        /// Names of the policies.
        policies: Vec<String>,
        /// Time until all of them would admit it.
        retry_after: Duration,
    },
    /// The request costs more than this policy's burst, so it can never be admitted.
    TooCostly {
        /// The policy's name.
        policy: String,
        /// Its burst.
        burst: u32,
    },
}

/// The cost of a request: one for each provider response that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// For a policy that charges all responses.
    pub all: u32,
    /// For a policy that charges only cache misses.
    pub misses: u32,
}

impl Cost {
    /// Returns the cost of one response, from the cache if `hit`.
    #[must_use]
    pub fn one(hit: bool) -> Self {
        Self { all: 1, misses: u32::from(!hit) }
    }

    /// Returns the cost for a policy that charges this; `None` if it is free.
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

/// The tokens that a request takes from a bucket.
pub struct BucketCharge<'b, C: Clock<Instant = Nanos> = Ticker> {
    /// The bucket.
    pub bucket: &'b Bucket<C>,
    /// The cost under its policy.
    pub cost: NonZeroU32,
}

/// Admits a request if all its buckets have the tokens, and takes them. Otherwise takes no tokens.
///
/// `admission_lock` belongs to the client, so that no other request of the client takes tokens between the check and the
/// take.
///
/// # Errors
/// The refusal; no tokens were taken.
pub fn admit<C: Clock<Instant = Nanos>>(
    charges: &[BucketCharge<'_, C>],
    admission_lock: &Mutex<()>,
) -> Result<(), Refusal> {
    // The lock guards no data, so a poisoned lock is safe to use.
    let _locked = admission_lock.lock().unwrap_or_else(PoisonError::into_inner);
    let mut exceeded = Exceeded::default();
    if let [BucketCharge { bucket, cost }] = charges {
        // A single bucket checks and takes in one step.
        bucket.decide(*cost, TakeMode::Take, &mut exceeded)?;
        return exceeded.into_result();
    }
    charges.iter().try_for_each(|charge| charge.bucket.decide(charge.cost, TakeMode::Peek, &mut exceeded))?;
    exceeded.into_result()?;
    for BucketCharge { bucket, cost } in charges {
        let _ = bucket.state.decide(*cost, TakeMode::Take);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    fn policy(name: &str, requests: u32, per: u64, burst: u32, charge: Charge) -> Policy {
        Policy {
            name: name.into(),
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
        let charge = |bucket: &&'_ Bucket<FakeRelativeClock>| cost.under(bucket.limiter.policy.charge);
        let charges: Vec<_> =
            buckets.iter().filter_map(|b| Some(BucketCharge { bucket: *b, cost: charge(b)? })).collect();
        admit(&charges, &Mutex::new(()))
    }

    #[test]
    fn a_bucket_admits_the_burst_and_then_exactly_the_rate() {
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
    fn remaining_agrees_with_what_is_admitted() {
        let clock = FakeRelativeClock::default();
        let bucket = bucket(&policy("p", 3, 10, 4, Charge::All), &clock);
        assert_eq!(bucket.remaining(), Remaining { tokens: 4, next_in: Duration::ZERO });
        for step in 0..500_u64 {
            clock.advance(Duration::from_millis(137 * (step % 7)));
            let remaining = bucket.remaining();
            assert_eq!(remaining, bucket.remaining(), "reading takes nothing");
            let mut admitted = 0;
            while step % 11 == 0 && admit_one(&[&bucket]).is_ok() {
                admitted += 1;
            }
            if step % 11 == 0 {
                assert_eq!(admitted, remaining.tokens);
                let next = bucket.remaining().next_in;
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
        assert_eq!(wide.remaining().tokens, 99);
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
    fn the_state_outlives_a_bucket_until_it_is_full_again() {
        let clock = FakeRelativeClock::default();
        let limiter = Arc::new(Limiter::new(&policy("p", 10, 10, 10, Charge::All), clock.clone()));
        // A function, so that the lock is released before `bucket` takes it again.
        let state_count = || limiter.states().len();
        let bucket = |n: u32| Bucket::new(limiter.clone(), format!("client{n}").into());
        let in_use: Vec<_> = (0..3).map(bucket).collect();
        (0..100).for_each(|n| assert!(admit_one(&[&bucket(n)]).is_ok()));
        limiter.sweep();
        assert_eq!((state_count(), bucket(7).remaining().tokens, in_use[1].remaining().tokens), (100, 9, 9));
        clock.advance(Duration::from_secs(60));
        limiter.sweep();
        assert_eq!((state_count(), in_use[1].remaining().tokens), (3, 10), "only the states in use");
    }
}
