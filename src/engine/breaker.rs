//! Protects a provider: circuit breaker, retry budget, quota, and pauses after throttling.
//!
//! `Breaker` belongs to a provider. `ProviderQuota` belongs to one credential of a provider, because providers count
//! and throttle per credential. Breaker and pause take `now`; the quota's rate has its own clock. Only
//! `ProviderQuota::acquire` waits.

use crate::base::model::Time;
use crate::config::upstream::{self, Capacity};
use crate::engine::fair_queue::{ClientShares, FairQueue};
use crate::engine::token_bucket::{Refill, Ticker, TokenBucket};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// A circuit breaker. It opens after consecutive failures, and admits one trial request after `open_for`.
#[derive(Debug)]
pub struct Breaker {
    /// The configuration. A reload keeps the state if this is unchanged.
    pub config: Option<upstream::BreakerConfig>,
    failures: AtomicU32,
    /// In milliseconds; 0 if the breaker is closed.
    open_until: AtomicI64,
}

impl Breaker {
    /// Makes a closed breaker. Without a configuration, it never opens.
    #[must_use]
    pub fn new(config: Option<upstream::BreakerConfig>) -> Self {
        Self { config, failures: AtomicU32::new(0), open_until: AtomicI64::new(0) }
    }

    /// Returns the time until which the breaker is open, if it is open.
    #[must_use]
    pub fn open_until(&self, now: Time) -> Option<Time> {
        let until = Time(self.open_until.load(Ordering::Acquire));
        (until > now).then_some(until)
    }

    /// Admits a request if the breaker is closed. After the open time, it admits one trial request and opens again for
    /// all others, until the trial's result is recorded.
    ///
    /// # Errors
    /// The time until which the breaker is open.
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
        let trial = self.open_until.compare_exchange(until, next, Ordering::AcqRel, Ordering::Acquire);
        trial.map(|_| ()).map_err(Time)
    }

    /// Records the result of a request.
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

/// Limits retries, so that they do not multiply the load on a failing provider. Each request earns a fifth of a retry;
/// the budget stores at most ten retries.
#[derive(Debug)]
pub struct RetryBudget {
    /// In fifths of a retry.
    saved: AtomicU32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { saved: AtomicU32::new(Self::MAX) }
    }
}

impl RetryBudget {
    const RETRY: u32 = 5;
    const MAX: u32 = 10 * Self::RETRY;

    /// Adds a fifth of a retry, for one request.
    pub fn earn(&self) {
        let _ = self
            .saved
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |saved| (saved < Self::MAX).then_some(saved + 1));
    }

    /// Takes one retry. Returns whether the budget had one.
    pub fn take(&self) -> bool {
        self.saved.fetch_update(Ordering::AcqRel, Ordering::Acquire, |saved| saved.checked_sub(Self::RETRY)).is_ok()
    }
}

/// The capacity of a quota, and how much of it is unused now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUsage {
    /// The burst, and the calls that remain of it.
    pub rate: LimitUsage,
    /// The limit of concurrent calls, and the calls that can still start.
    pub concurrency: LimitUsage,
}

/// A limit, and how much of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitUsage {
    /// The limit.
    pub total: u64,
    /// What is left.
    pub left: u64,
}

/// A limit of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaLimit {
    /// Calls per period.
    Rate,
    /// Calls in flight.
    Concurrency,
}

impl QuotaLimit {
    /// Returns the name, which is the label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
        }
    }
}

/// A provider's quota for one credential, and the pause that the provider requested.
pub struct ProviderQuota {
    /// The configuration. A reload keeps the state if this is unchanged.
    pub capacity: Option<Capacity>,
    rate: Option<TokenBucket>,
    concurrent: Arc<Semaphore>,
    queue: FairQueue,
    /// Limits the forwarded requests of one client to a share of `concurrent`, because the client decides how long they last.
    pub client_shares: ClientShares,
    /// In milliseconds; 0 if there was no pause.
    paused_until: AtomicI64,
}

impl ProviderQuota {
    /// Makes an unused quota. Without a capacity, it is unlimited.
    #[must_use]
    pub fn new(capacity: Option<Capacity>) -> Self {
        let refill = capacity.as_ref().map(|c| Refill::new(c.requests, c.per, c.burst));
        let rate = refill.map(|refill| TokenBucket::new(refill, Ticker::default()));
        let concurrent = capacity.as_ref().map_or(Semaphore::MAX_PERMITS, |c| c.concurrent as usize);
        Self {
            capacity,
            rate,
            concurrent: Arc::new(Semaphore::new(concurrent)),
            queue: FairQueue::default(),
            client_shares: ClientShares::half_of(concurrent),
            paused_until: AtomicI64::new(0),
        }
    }

    /// Pauses calls until this time, because the provider requested it. Never shortens a pause.
    pub fn pause_until(&self, until: Time) {
        self.paused_until.fetch_max(until.0, Ordering::AcqRel);
    }

    /// Returns the end of the pause, if there is one.
    #[must_use]
    pub fn paused_until(&self, now: Time) -> Option<Time> {
        let until = Time(self.paused_until.load(Ordering::Acquire));
        (until > now).then_some(until)
    }

    /// Returns the capacity and how much of it is unused. `None` if no capacity is configured.
    #[must_use]
    pub fn usage(&self) -> Option<QuotaUsage> {
        let (capacity, rate) = self.capacity.as_ref().zip(self.rate.as_ref())?;
        let free = u64::try_from(self.concurrent.available_permits()).unwrap_or(u64::MAX);
        Some(QuotaUsage {
            rate: LimitUsage { total: u64::from(capacity.burst.get()), left: rate.remaining().tokens },
            concurrency: LimitUsage { total: u64::from(capacity.concurrent), left: free },
        })
    }

    /// Takes one call of the rate without waiting. Returns whether there was one.
    #[must_use]
    pub fn try_take(&self) -> bool {
        self.take_or_delay().is_ok()
    }

    /// Takes one call of the rate, or returns the time until there is one.
    fn take_or_delay(&self) -> Result<(), Duration> {
        const ONE: NonZeroU32 = NonZeroU32::MIN;
        let Some(rate) = &self.rate else { return Ok(()) };
        // The burst is at least one, so `take` does not fail.
        if rate.take(ONE).unwrap_or(false) { Ok(()) } else { Err(rate.wait_for(ONE)) }
    }

    /// Waits for a permit for one call, at most until `latest`. Clients are served round-robin. `check` runs after the
    /// wait and before a call of the rate is taken.
    ///
    /// # Errors
    /// The error of `check`, or the error of `busy`. `busy` gets the exhausted limit and the time until it is available.
    pub async fn acquire<E>(
        &self,
        client: &Arc<str>,
        latest: Instant,
        check: impl Fn() -> Result<(), E>,
        busy: impl Fn(QuotaLimit, Duration) -> E,
    ) -> Result<OwnedSemaphorePermit, E> {
        let timed_out = || busy(QuotaLimit::Concurrency, Duration::from_secs(1));
        // Kept until this function returns, so that rate and concurrency are both shared round-robin.
        let _queue_permit = timeout_at(latest, self.queue.acquire(client)).await.map_err(|_| timed_out())?;
        let permit = timeout_at(latest, self.concurrent.clone().acquire_owned())
            .await
            .map_err(|_| timed_out())?
            .map_err(|_| timed_out())?;
        loop {
            check()?;
            let Err(wait) = self.take_or_delay() else { return Ok(permit) };
            let ready = Instant::now() + wait;
            if ready > latest {
                return Err(busy(QuotaLimit::Rate, wait));
            }
            tokio::time::sleep_until(ready).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        let config = upstream::BreakerConfig { failures: 3.try_into().unwrap(), open_for: Duration::from_secs(10) };
        Breaker::new(Some(config))
    }

    #[test]
    fn the_breaker_opens_only_after_consecutive_failures() {
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
    fn after_the_open_time_one_trial_request_decides() {
        let breaker = breaker();
        (0..3).for_each(|_| breaker.record(false, Time(0)));
        assert_eq!(breaker.admit(Time(10_000)), Ok(()));
        assert_eq!(breaker.admit(Time(10_000)), Err(Time(20_000)), "only one trial");
        breaker.record(false, Time(10_500));
        assert_eq!(breaker.admit(Time(10_500)), Err(Time(20_500)));
        assert_eq!(breaker.admit(Time(20_500)), Ok(()));
        breaker.record(true, Time(20_600));
        assert_eq!(breaker.admit(Time(20_600)), Ok(()));
        assert_eq!(breaker.admit(Time(20_600)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_waits_for_rate_and_concurrency_but_not_past_the_deadline() {
        let capacity = Capacity {
            requests: 60.try_into().unwrap(),
            per: Duration::from_secs(60),
            burst: 1.try_into().unwrap(),
            concurrent: 1,
        };
        let quota = ProviderQuota::new(Some(capacity));
        let client = "client".into();
        let acquire =
            || quota.acquire(&client, Instant::now() + Duration::from_millis(10), || Ok(()), |what, wait| (what, wait));
        let left = |left| {
            let usage = LimitUsage { total: 1, left };
            Some(QuotaUsage { rate: usage, concurrency: usage })
        };
        assert_eq!(quota.usage(), left(1));
        let permit = acquire().await;
        assert!(permit.is_ok());
        assert_eq!(quota.usage(), left(0));
        assert_eq!(acquire().await.unwrap_err(), (QuotaLimit::Concurrency, Duration::from_secs(1)));
        drop(permit);
        let Err((QuotaLimit::Rate, wait)) = acquire().await else { panic!("over the rate") };
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(500), "{wait:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_call_takes_nothing_from_the_rate() {
        let capacity = Capacity {
            requests: 1.try_into().unwrap(),
            per: Duration::from_secs(3600),
            burst: 2.try_into().unwrap(),
            concurrent: 9,
        };
        let (quota, client) = (ProviderQuota::new(Some(capacity)), "client".into());
        let soon = || Instant::now() + Duration::from_millis(10);
        for _ in 0..9 {
            assert_eq!(quota.acquire(&client, soon(), || Err("paused"), |_, _| "busy").await.unwrap_err(), "paused");
        }
        for expected in [true, true, false] {
            assert_eq!(quota.acquire(&client, soon(), || Ok(()), |_, _| "busy").await.is_ok(), expected);
        }
    }

    #[test]
    fn retries_are_at_most_a_fifth_of_requests_in_the_long_run() {
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
        let quota = ProviderQuota::new(None);
        quota.pause_until(Time(5000));
        quota.pause_until(Time(3000));
        assert_eq!((quota.paused_until(Time(4999)), quota.paused_until(Time(5000))), (Some(Time(5000)), None));
    }
}
