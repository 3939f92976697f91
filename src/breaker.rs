//! Protecting a provider: its quota, its pauses, and when to stop asking.
//!
//! A room of its own because it is judged before a request goes out and told after. `Breaker` belongs
//! to a provider, `Tap` to a provider's credential, since quotas and throttling are per credential.
//! Both take `now`; only waiting for a turn takes time.

use crate::config::upstream::{self, Capacity};
use crate::model::Time;
use crate::ratelimit::{self, Ticker};
use crate::turns::{Shares, Turns};
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Opens after consecutive failures, then lets one request try.
#[derive(Debug)]
pub struct Breaker {
    /// As configured; kept over a reload while it stays the same.
    pub config: Option<upstream::Breaker>,
    failures: AtomicU32,
    /// Milliseconds; 0: closed.
    open_until: AtomicI64,
}

impl Breaker {
    /// A closed breaker, or one that never opens.
    #[must_use]
    pub fn new(config: Option<upstream::Breaker>) -> Self {
        Self { config, failures: AtomicU32::new(0), open_until: AtomicI64::new(0) }
    }

    /// Until when it stays open, if it is.
    #[must_use]
    pub fn open_until(&self, now: Time) -> Option<Time> {
        let until = Time(self.open_until.load(Ordering::Acquire));
        (until > now).then_some(until)
    }

    /// Whether a request may go out now. When the time is up, one may: the pause begins anew for the
    /// others until that one has reported.
    ///
    /// # Errors
    /// Until when not.
    pub fn admit(&self, now: Time) -> Result<(), Time> {
        let Some(config) = &self.config else { return Ok(()) };
        let until = self.open_until.load(Ordering::Acquire);
        if until == 0 {
            return Ok(());
        }
        if until > now.0 {
            return Err(Time(until));
        }
        let next = now.plus(config.open_for).0;
        let mine = self.open_until.compare_exchange(until, next, Ordering::AcqRel, Ordering::Acquire);
        mine.map(|_| ()).map_err(Time)
    }

    /// Tells how a request ended.
    pub fn record(&self, succeeded: bool, now: Time) {
        let Some(config) = &self.config else { return };
        if succeeded {
            self.failures.store(0, Ordering::Release);
            self.open_until.store(0, Ordering::Release);
        } else if self.failures.fetch_add(1, Ordering::AcqRel) + 1 >= config.failures.get() {
            self.open_until.store(now.plus(config.open_for).0, Ordering::Release);
        }
    }
}

/// Keeps retries from multiplying the load on a provider that fails: each request earns a fifth of a
/// retry, and at most ten are saved up.
#[derive(Debug)]
pub struct RetryBudget {
    /// In fifths of a retry.
    saved: AtomicU32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { saved: AtomicU32::new(Self::MOST) }
    }
}

impl RetryBudget {
    const RETRY: u32 = 5;
    const MOST: u32 = 10 * Self::RETRY;

    /// A request goes out.
    pub fn earn(&self) {
        let _ = self
            .saved
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |saved| (saved < Self::MOST).then_some(saved + 1));
    }

    /// Takes a retry, if there is one.
    pub fn take(&self) -> bool {
        self.saved.fetch_update(Ordering::AcqRel, Ordering::Acquire, |saved| saved.checked_sub(Self::RETRY)).is_ok()
    }
}

/// A limiter's state, which can be read beside the limiter: governor itself shows it to nobody.
#[derive(Debug, Default, Clone)]
struct Store(Arc<InMemoryState>);

impl StateStore for Store {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.measure_and_replace(key, f)
    }
}

/// Calls that may be made in a time.
struct Rate {
    limiter: RateLimiter<NotKeyed, Store, Ticker, NoOpMiddleware<Nanos>>,
    store: Store,
    period: Duration,
}

impl Rate {
    fn new(capacity: &Capacity) -> Option<Self> {
        let period = capacity.per.as_nanos().div_ceil(u128::from(capacity.requests.get())).max(1);
        let period = Duration::from_nanos(u64::try_from(period).unwrap_or(u64::MAX));
        let quota = Quota::with_period(period)?.allow_burst(capacity.burst);
        let store = Store::default();
        Some(Self { limiter: RateLimiter::new(quota, store.clone(), Ticker::default()), store, period })
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long it is until there is one.
    fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|refused| refused.wait_time_from(self.limiter.clock().now()))
    }

    fn left(&self, burst: u64) -> u64 {
        let now = self.limiter.clock().now().as_u64();
        // A closure that fails leaves the state as it was.
        let state = self.store.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>).err().flatten();
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        ratelimit::left_at(now, state.map_or(0, Nanos::as_u64), period, burst).remaining
    }
}

/// What a tap admits, and what of that is left now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Calls that may be made at once: the burst, and what is left of it.
    pub rate: (u64, u64),
    /// Calls that may be under way at the same time, and how many more may be.
    pub concurrency: (u64, u64),
}

/// A provider's quota for one credential, and the pause it asked for.
pub struct Tap {
    /// As configured; kept over a reload while it stays the same.
    pub capacity: Option<Capacity>,
    rate: Option<Rate>,
    concurrent: Arc<Semaphore>,
    turns: Turns,
    /// How much of `concurrent` one client may hold by what it passes on, which lasts as long as it pleases.
    pub shares: Shares,
    /// Milliseconds; 0: open.
    closed_until: AtomicI64,
}

impl Tap {
    /// A tap with this capacity, all of it free.
    #[must_use]
    pub fn new(capacity: Option<Capacity>) -> Self {
        let rate = capacity.as_ref().and_then(Rate::new);
        let concurrent = capacity.as_ref().map_or(Semaphore::MAX_PERMITS, |c| c.concurrent as usize);
        Self {
            capacity,
            rate,
            concurrent: Arc::new(Semaphore::new(concurrent)),
            turns: Turns::default(),
            shares: Shares::half_of(concurrent),
            closed_until: AtomicI64::new(0),
        }
    }

    /// Closes the tap: the provider asked for a pause.
    pub fn close(&self, until: Time) {
        self.closed_until.fetch_max(until.0, Ordering::AcqRel);
    }

    /// Until when it is closed, if it is.
    #[must_use]
    pub fn closed_until(&self, now: Time) -> Option<Time> {
        let until = Time(self.closed_until.load(Ordering::Acquire));
        (until > now).then_some(until)
    }

    /// What is left of its capacity; `None` where none is configured.
    #[must_use]
    pub fn room(&self) -> Option<Room> {
        let (capacity, rate) = self.capacity.as_ref().zip(self.rate.as_ref())?;
        let (burst, concurrent) = (u64::from(capacity.burst.get()), u64::from(capacity.concurrent));
        let free = u64::try_from(self.concurrent.available_permits()).unwrap_or(u64::MAX);
        Some(Room { rate: (burst, rate.left(burst)), concurrency: (concurrent, free) })
    }

    /// Takes one of the rate at once, if there is one.
    #[must_use]
    pub fn take(&self) -> bool {
        self.take_or_wait().is_ok()
    }

    fn take_or_wait(&self) -> Result<(), Duration> {
        self.rate.as_ref().map_or(Ok(()), Rate::take)
    }

    /// Waits for a turn, round-robin among clients, at most until `latest`. `open` is asked when the turn
    /// has come, before any of the rate is spent.
    ///
    /// # Errors
    /// `open`'s, or `busy`'s, which is told what there was too little of and how long it would have had to wait.
    pub async fn turn<E>(
        &self,
        client: &Arc<str>,
        latest: Instant,
        open: impl Fn() -> Result<(), E>,
        busy: impl Fn(&'static str, Duration) -> E,
    ) -> Result<OwnedSemaphorePermit, E> {
        let late = || busy("concurrency", Duration::from_secs(1));
        // Held until rate and concurrency are had: so both go round.
        let _turn = timeout_at(latest, self.turns.next(client)).await.map_err(|_| late())?;
        let permit = timeout_at(latest, self.concurrent.clone().acquire_owned())
            .await
            .map_err(|_| late())?
            .map_err(|_| late())?;
        loop {
            open()?;
            let Err(wait) = self.take_or_wait() else { return Ok(permit) };
            let ready = Instant::now() + wait;
            if ready > latest {
                return Err(busy("rate", wait));
            }
            tokio::time::sleep_until(ready).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        let config = upstream::Breaker { failures: 3.try_into().unwrap(), open_for: Duration::from_secs(10) };
        Breaker::new(Some(config))
    }

    #[test]
    fn it_opens_after_consecutive_failures_only() {
        let breaker = breaker();
        for succeeded in [false, false, true, false, false] {
            breaker.record(succeeded, Time(0));
        }
        assert_eq!(breaker.admit(Time(0)), Ok(()));
        breaker.record(false, Time(1000));
        assert_eq!(breaker.admit(Time(1000)), Err(Time(11_000)));
        assert_eq!(breaker.open_until(Time(10_999)), Some(Time(11_000)));
        assert_eq!(breaker.open_until(Time(11_000)), None);
    }

    #[test]
    fn after_its_time_one_request_tries_and_decides() {
        let breaker = breaker();
        (0..3).for_each(|_| breaker.record(false, Time(0)));
        assert_eq!(breaker.admit(Time(10_000)), Ok(()));
        assert_eq!(breaker.admit(Time(10_000)), Err(Time(20_000)), "only one");
        breaker.record(false, Time(10_500));
        assert_eq!(breaker.admit(Time(10_500)), Err(Time(20_500)));
        assert_eq!(breaker.admit(Time(20_500)), Ok(()));
        breaker.record(true, Time(20_600));
        assert_eq!(breaker.admit(Time(20_600)), Ok(()));
        assert_eq!(breaker.admit(Time(20_600)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_waits_for_rate_and_concurrency_but_not_past_its_deadline() {
        let capacity = Capacity {
            requests: 60.try_into().unwrap(),
            per: Duration::from_secs(60),
            burst: 1.try_into().unwrap(),
            concurrent: 1,
        };
        let tap = Tap::new(Some(capacity));
        let client = "client".into();
        let turn =
            || tap.turn(&client, Instant::now() + Duration::from_millis(10), || Ok(()), |what, wait| (what, wait));
        assert_eq!(tap.room(), Some(Room { rate: (1, 1), concurrency: (1, 1) }));
        let permit = turn().await;
        assert!(permit.is_ok());
        assert_eq!(tap.room(), Some(Room { rate: (1, 0), concurrency: (1, 0) }));
        assert_eq!(turn().await.unwrap_err(), ("concurrency", Duration::from_secs(1)));
        drop(permit);
        let Err(("rate", wait)) = turn().await else { panic!("over the rate") };
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(500), "{wait:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_when_the_turn_comes_spends_nothing() {
        let capacity = Capacity {
            requests: 1.try_into().unwrap(),
            per: Duration::from_secs(3600),
            burst: 2.try_into().unwrap(),
            concurrent: 9,
        };
        let (tap, client) = (Tap::new(Some(capacity)), "client".into());
        let soon = || Instant::now() + Duration::from_millis(10);
        for _ in 0..9 {
            assert_eq!(tap.turn(&client, soon(), || Err("paused"), |_, _| "busy").await.unwrap_err(), "paused");
        }
        for expected in [true, true, false] {
            assert_eq!(tap.turn(&client, soon(), || Ok(()), |_, _| "busy").await.is_ok(), expected);
        }
    }

    #[test]
    fn retries_are_a_fifth_of_requests_in_the_long_run() {
        let budget = RetryBudget::default();
        let taken = (0..1000)
            .filter(|_| {
                budget.earn();
                budget.take()
            })
            .count();
        assert_eq!(taken, 10 + 1000 / 5 - 1);
    }

    #[test]
    fn a_pause_is_never_shortened() {
        let tap = Tap::new(None);
        tap.close(Time(5000));
        tap.close(Time(3000));
        assert_eq!((tap.closed_until(Time(4999)), tap.closed_until(Time(5000))), (Some(Time(5000)), None));
    }
}
