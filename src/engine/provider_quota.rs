//! Limits the calls under one credential of a provider: rate, concurrency, and the pauses that the provider requests.
//!
//! Providers count and throttle per credential. Pauses take `now`; the quota's rate has its own clock. Only
//! `ProviderQuota::acquire` waits.

use crate::base::model::Time;
use crate::config::upstream::Capacity;
use crate::engine::breaker::CallSubject;
use crate::engine::fair_queue::{ClientShares, FairQueue};
use crate::engine::token_bucket::{Refill, Ticker, TokenBucket};
use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

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

/// The pauses that a provider requested for one credential.
///
/// A provider that throttles (429) pauses all calls. One that is unavailable (503) may mean only what the call was about, so
/// it pauses the calls for that session. If that happens to as many sessions as the breaker has `failures`, all calls pause.
#[derive(Debug, Default)]
pub struct Pauses {
    /// Until when all calls pause, in milliseconds; 0 if there was no such pause.
    all: AtomicI64,
    /// The latest time in `subjects`, in milliseconds, so that calls need no lock while nothing pauses.
    latest: AtomicI64,
    /// The pauses of subjects by their digests.
    subjects: Mutex<HashMap<u64, SubjectPause>>,
}

/// The pause of the calls for one subject.
#[derive(Debug)]
struct SubjectPause {
    until: Time,
    subject: CallSubject,
}

/// The most pauses of subjects that are kept, besides as many as pause all calls.
const MAX_FURTHER_PAUSES: usize = 64;

impl Pauses {
    /// Pauses all calls until this time. Never shortens a pause.
    pub fn pause_all(&self, until: Time) {
        self.all.fetch_max(until.0, Ordering::AcqRel);
    }

    /// Pauses the calls for one subject until this time. If `limit` subjects pause then, all calls pause as long as the
    /// shortest of these pauses. Returns the end of that, if all calls pause.
    pub fn pause_subject(&self, subject: CallSubject, until: Time, limit: usize, now: Time) -> Option<Time> {
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.retain(|_, pause| pause.until > now);
        let pause = subjects.entry(subject.digest()).or_insert(SubjectPause { until, subject });
        pause.until = until.max(pause.until);
        self.latest.fetch_max(until.0, Ordering::AcqRel);
        let counted = subjects.values().map(|pause| pause.subject.counted()).collect::<HashSet<_>>().len();
        let ends = subjects.values().map(|pause| pause.until).min()?;
        if subjects.len() > limit + MAX_FURTHER_PAUSES {
            // A path is removed before a session, so that no number of paths ends the pause of a session.
            let others = subjects.values().filter(|pause| pause.subject.digest() != subject.digest());
            let first = others.min_by_key(|pause| (!pause.subject.is_path(), pause.until));
            if let Some(first) = first.map(|pause| pause.subject.digest()) {
                subjects.remove(&first);
            }
        }
        if counted < limit {
            return None;
        }
        self.pause_all(ends);
        Some(ends)
    }

    /// Returns the end of the pause of all calls, if there is one.
    #[must_use]
    pub fn all_until(&self, now: Time) -> Option<Time> {
        Some(Time(self.all.load(Ordering::Acquire))).filter(|until| *until > now)
    }

    /// Returns the end of the pause of calls for this subject, or of all calls, if there is one.
    #[must_use]
    pub fn until(&self, subject: CallSubject, now: Time) -> Option<Time> {
        let of_subject = (Time(self.latest.load(Ordering::Acquire)) > now)
            .then(|| {
                let subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
                subjects.get(&subject.digest()).map(|pause| pause.until)
            })
            .flatten();
        of_subject.filter(|until| *until > now).max(self.all_until(now))
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
    pub forwarded_shares: ClientShares,
    /// Limits all calls of one client to a share of `concurrent`, if several clients use this quota.
    pub client_shares: ClientShares,
    /// The pauses that the provider requested.
    pub pauses: Pauses,
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
            forwarded_shares: ClientShares::half_of(concurrent),
            client_shares: ClientShares::half_of(concurrent),
            pauses: Pauses::default(),
        }
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
    fn a_pause_is_never_shortened() {
        let (pauses, subject) = (Pauses::default(), CallSubject::of_path("/a", None));
        pauses.pause_all(Time(5000));
        pauses.pause_all(Time(3000));
        assert_eq!((pauses.all_until(Time(4999)), pauses.all_until(Time(5000))), (Some(Time(5000)), None));
        pauses.pause_subject(subject, Time(9000), 2, Time(0));
        pauses.pause_subject(subject, Time(3000), 2, Time(0));
        assert_eq!((pauses.until(subject, Time(8999)), pauses.until(subject, Time(9000))), (Some(Time(9000)), None));
    }

    #[test]
    fn the_paths_of_one_client_pause_one_by_one_and_count_as_one() {
        let (pauses, session) = (Pauses::default(), CallSubject::of_session(None, Some("1")));
        let path = |n: i64| CallSubject::of_path(&format!("/odd/{n}"), Some("greedy"));
        assert_eq!(pauses.pause_subject(session, Time(500), 3, Time(0)), None);
        for n in 0..200 {
            assert_eq!(pauses.pause_subject(path(n), Time(9000 - n), 3, Time(0)), None);
            assert_eq!(pauses.until(path(n), Time(0)), Some(Time(9000 - n)), "the newest pause is kept");
            assert!(pauses.subjects.lock().unwrap().len() <= 3 + MAX_FURTHER_PAUSES);
        }
        assert_eq!(pauses.until(session, Time(0)), Some(Time(500)), "no path ends the pause of a session");
        let of_other = CallSubject::of_path("/odd/199", Some("other"));
        assert_eq!(pauses.until(of_other, Time(0)), Some(Time(8801)), "a path pauses for all clients");
    }

    #[test]
    fn one_session_pauses_alone_and_several_pause_the_credential_as_long_as_the_shortest_pause() {
        let (pauses, other) = (Pauses::default(), CallSubject::of_path("/other", None));
        let pause = |n: u32, until, now| {
            pauses.pause_subject(CallSubject::of_session(None, Some(&n.to_string())), Time(until), 3, Time(now))
        };
        for n in 0..100 {
            assert_eq!(pause(1, 300_000 + n, n), None, "one session");
        }
        assert_eq!(pause(2, 5000, 0), None);
        assert_eq!(pauses.until(other, Time(100)), None, "the other sessions do not pause");
        assert_eq!(pause(3, 6000, 5000), None, "the pause of one of three has ended");
        assert_eq!(pause(4, 7000, 5500), Some(Time(6000)));
        assert_eq!((pauses.until(other, Time(5999)), pauses.until(other, Time(6000))), (Some(Time(6000)), None));
        for n in 10..50 {
            assert!(pause(n, 9000, 5500).is_some());
            assert!(pauses.subjects.lock().unwrap().len() <= 3 + MAX_FURTHER_PAUSES);
        }
    }
}
