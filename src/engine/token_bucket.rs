//! Implements token buckets with governor's algorithm (GCRA), and with a state that can be read without taking tokens.
//!
//! A bucket knows neither policies nor clients. `rate_limit` and `breaker` decide what a bucket limits.
//!
//! governor has neither a peek nor a refund, so [`Store`] wraps its state: a peek computes the decision and leaves the
//! state unchanged. The state is in this process: governor's `StateStore` is synchronous, and `rate_limit` stores the
//! buckets in a map of the process.

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A clock that counts nanoseconds from its first reading. The first reading is exactly zero.
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

/// The refill rate and the size of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refill {
    /// Nanoseconds per token.
    period: u64,
    burst: NonZeroU32,
}

impl Refill {
    /// Refills `requests` tokens per `per`, up to `burst`. The period is rounded up, so that the rate is never exceeded.
    pub(crate) fn new(requests: NonZeroU32, per: Duration, burst: NonZeroU32) -> Self {
        let period = per.as_nanos().div_ceil(u128::from(requests.get())).max(1);
        Self { period: u64::try_from(period).unwrap_or(u64::MAX), burst }
    }

    /// Converts it to governor's type.
    pub(crate) fn quota(self) -> Quota {
        // governor rejects only a period of zero, and `new` never makes one.
        let quota = Quota::with_period(Duration::from_nanos(self.period));
        quota.unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN)).allow_burst(self.burst)
    }
}

/// The tokens that remain in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Tokens that can be taken now.
    pub tokens: u64,
    /// Time until the next token; zero if the bucket is full.
    pub next_in: Duration,
}

/// A request needs more tokens than the burst, so the bucket can never have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverBurst;

/// Whether a decision takes the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TakeMode {
    Peek,
    Take,
}

/// The state of a bucket, shared with governor's limiter.
#[derive(Default, Clone)]
struct Store(Arc<InMemoryState>);

impl Store {
    /// Returns the theoretical arrival time of the next request, in nanoseconds of the bucket's clock.
    fn arrival(&self) -> u64 {
        // A closure that fails leaves the state unchanged.
        let state = self.0.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>).err().flatten();
        state.map_or(0, Nanos::as_u64)
    }
}

impl StateStore for Store {
    type Key = TakeMode;

    fn measure_and_replace<T, F, E>(&self, mode: &TakeMode, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if *mode == TakeMode::Take {
            return self.0.measure_and_replace(&NotKeyed::NonKey, f);
        }
        // A closure that fails leaves the state unchanged.
        let peeked = self.0.measure_and_replace(&NotKeyed::NonKey, |state| Err::<((), Nanos), _>(f(state)));
        match peeked {
            Err(decision) => decision.map(|(value, _)| value),
            Ok(()) => f(None).map(|(value, _)| value),
        }
    }
}

/// A bucket of tokens that refills with time.
pub struct TokenBucket<C: Clock<Instant = Nanos> = Ticker> {
    limiter: RateLimiter<TakeMode, Store, C, NoOpMiddleware<Nanos>>,
    store: Store,
    refill: Refill,
}

impl<C: Clock<Instant = Nanos>> TokenBucket<C> {
    /// Makes a full bucket. `clock` must not have been read before.
    pub(crate) fn new(refill: Refill, clock: C) -> Self {
        let store = Store::default();
        Self { limiter: RateLimiter::new(refill.quota(), store.clone(), clock), store, refill }
    }

    /// Returns the tokens that remain, without taking any.
    pub(crate) fn remaining(&self) -> Remaining {
        let now = self.limiter.clock().now().as_u64();
        remaining_at(now, self.store.arrival(), self.refill)
    }

    /// Returns whether the bucket is full.
    pub(crate) fn is_full(&self) -> bool {
        self.remaining().tokens == u64::from(self.refill.burst.get())
    }

    /// Returns whether the bucket has `n` tokens, without taking them.
    ///
    /// # Errors
    /// `n` is more than the burst.
    pub(crate) fn peek(&self, n: NonZeroU32) -> Result<bool, OverBurst> {
        self.decide(n, TakeMode::Peek)
    }

    /// Takes `n` tokens, or none. Returns whether it took them.
    ///
    /// # Errors
    /// `n` is more than the burst.
    pub(crate) fn take(&self, n: NonZeroU32) -> Result<bool, OverBurst> {
        self.decide(n, TakeMode::Take)
    }

    /// Takes a token. Returns whether there was one.
    pub(crate) fn take_one(&self) -> bool {
        self.take(NonZeroU32::MIN) == Ok(true)
    }

    fn decide(&self, n: NonZeroU32, mode: TakeMode) -> Result<bool, OverBurst> {
        self.limiter.check_key_n(&mode, n).map(|decision| decision.is_ok()).map_err(|_| OverBurst)
    }

    /// Returns the time until the bucket has `n` tokens.
    pub(crate) fn wait_for(&self, n: NonZeroU32) -> Duration {
        let remaining = self.remaining();
        let missing = u64::from(n.get()).saturating_sub(remaining.tokens);
        if missing == 0 {
            return Duration::ZERO;
        }
        remaining.next_in + Duration::from_nanos(self.refill.period.saturating_mul(missing - 1))
    }
}

/// Computes the tokens that remain from the theoretical arrival time (GCRA in reverse). `now` and `arrival` are in
/// nanoseconds.
fn remaining_at(now: u64, arrival: u64, refill: Refill) -> Remaining {
    let arrival = u128::from(arrival.max(now));
    let (now, period, burst) = (u128::from(now), u128::from(refill.period), u128::from(refill.burst.get()));
    let tolerance = period * (burst - 1);
    let tokens = (now + tolerance).checked_sub(arrival).map_or(0, |slack| slack / period + 1);
    let tokens = tokens.min(burst);
    let next = if tokens == burst { 0 } else { arrival + tokens * period - tolerance - now };
    Remaining {
        tokens: u64::try_from(tokens).unwrap_or(u64::MAX),
        next_in: Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    fn n(n: u32) -> NonZeroU32 {
        n.try_into().unwrap()
    }

    #[test]
    fn a_peek_decides_like_a_take_and_takes_nothing() {
        let clock = FakeRelativeClock::default();
        let bucket = TokenBucket::new(Refill::new(n(1), Duration::from_secs(2), n(5)), clock.clone());
        assert_eq!(
            (bucket.peek(n(5)), bucket.peek(n(6)), bucket.take(n(6))),
            (Ok(true), Err(OverBurst), Err(OverBurst))
        );
        assert!(bucket.is_full());
        assert_eq!((bucket.take(n(3)), bucket.peek(n(3)), bucket.peek(n(2))), (Ok(true), Ok(false), Ok(true)));
        assert_eq!((bucket.take(n(3)), bucket.remaining().tokens), (Ok(false), 2));
        assert_eq!((bucket.wait_for(n(2)), bucket.wait_for(n(4))), (Duration::ZERO, Duration::from_secs(4)));
        clock.advance(Duration::from_secs(4) - Duration::from_nanos(1));
        assert_eq!(bucket.peek(n(4)), Ok(false));
        clock.advance(Duration::from_nanos(1));
        assert_eq!((bucket.take(n(4)), bucket.remaining().tokens), (Ok(true), 0));
    }

    #[test]
    fn a_refill_is_rounded_so_that_the_rate_is_not_exceeded() {
        let third = Refill::new(n(3), Duration::from_nanos(10), n(1));
        assert_eq!(third, Refill { period: 4, burst: n(1) });
        assert_eq!(Refill::new(n(9), Duration::from_nanos(1), n(1)).period, 1);
    }
}
