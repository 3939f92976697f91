//! Protects a provider that fails: circuit breaker and retry budget.
//!
//! Each provider has a `Breaker` for connections, and one for each credential. Callers pass `now`.

use crate::base::model::Time;
use crate::config::upstream;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a failure counts towards opening the breaker, and how long another failure of the same session counts as
/// the same one.
const FAILURE_WINDOW: Duration = Duration::from_secs(600);

/// What a call is about, as a digest: a session, a list, or the path of another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallSubject {
    digest: u64,
    /// The digest under which failures are counted.
    counted: u64,
    is_path: bool,
}

impl CallSubject {
    /// Makes the subject of calls for one session, or for the lists of one agent.
    #[must_use]
    pub fn of_session(agent: Option<&str>, session: Option<&str>) -> Self {
        let digest = digest((0, agent, session));
        Self { digest, counted: digest, is_path: false }
    }

    /// Makes the subject of calls to a path that no operation describes. Ignores the query string. If several clients use the
    /// credential, `client` is the one that calls: failures of all its paths count as one, because it can make as many paths
    /// as it likes.
    #[must_use]
    pub fn of_path(path_and_query: &str, client: Option<&str>) -> Self {
        let path = digest((1, path_and_query.split('?').next(), None));
        let counted = client.map_or(path, |client| digest((2, Some(client), None)));
        Self { digest: path, counted, is_path: true }
    }

    /// Returns what identifies the subject.
    #[must_use]
    pub fn digest(self) -> u64 {
        self.digest
    }

    /// Returns under what failures of these calls are counted.
    #[must_use]
    pub fn counted(self) -> u64 {
        self.counted
    }

    /// Returns whether no operation describes the calls.
    #[must_use]
    pub fn is_path(self) -> bool {
        self.is_path
    }
}

fn digest(parts: (u8, Option<&str>, Option<&str>)) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// How a call ended, for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The provider works.
    Success,
    /// There was no connection. Each such failure counts.
    NoConnection,
    /// The call failed after the connection was made. Failures of one subject count once.
    Failure,
}

/// How the result of a call changed a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerChange {
    /// It opened for this time, after so many counted failures.
    Opened {
        /// The counted failures.
        failures: usize,
        /// The time until the first trial.
        open_for: Duration,
    },
    /// A trial failed: it is open for this time again.
    OpenedAgain {
        /// The time until the next trial.
        open_for: Duration,
    },
    /// It closed.
    Closed,
}

/// A circuit breaker. It opens after `failures` failures without a success between them. After `open_for` it admits one
/// trial call at a time: a success closes it, and failures open it again by the same count.
///
/// Failures of one subject count once, so that one broken session neither opens the breaker nor keeps it open, unless
/// `failures` is 1.
#[derive(Debug)]
pub struct Breaker {
    /// The configuration. A reload keeps the state if this is unchanged.
    pub config: Option<upstream::BreakerConfig>,
    state: Mutex<BreakerState>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// The counted failures, at most `failures`, and when each happened last. While trials are made: those of trials.
    failed: HashMap<CountedFailure, Time>,
    /// Calls are refused until this time; `None` if the breaker is closed.
    open_until: Option<Time>,
    /// The trial in flight and its deadline: then the next one starts.
    trial: Option<(u64, Time)>,
    /// The number of the last trial.
    last_trial: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CountedFailure {
    Single(u64),
    Of(u64),
}

/// A call that the breaker has admitted. If it is the trial and ends without a result, dropping this admits the next
/// trial.
#[derive(Debug)]
pub struct AdmittedCall {
    trial: Option<(Arc<Breaker>, u64)>,
}

impl Drop for AdmittedCall {
    fn drop(&mut self) {
        let Some((breaker, number)) = self.trial.take() else { return };
        let mut state = breaker.lock();
        if state.trial.is_some_and(|(current, _)| current == number) {
            state.trial = None;
        }
    }
}

impl AdmittedCall {
    /// Returns whether the call is a trial of a breaker that was open.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.trial.is_some()
    }
}

impl Breaker {
    /// Makes a closed breaker. Without a configuration, it never opens.
    #[must_use]
    pub fn new(config: Option<upstream::BreakerConfig>) -> Self {
        Self { config, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time until which the breaker is open, if it is open. After a failed trial it counts as open for
    /// `open_for`, although the trial of another subject is admitted before.
    #[must_use]
    pub fn open_until(&self, now: Time) -> Option<Time> {
        let open_for = self.config.as_ref()?.open_for;
        let state = self.lock();
        let until = state.open_until?;
        let trial = state.trial.map(|(_, deadline)| deadline);
        let failed_trial = state.failed.values().max().map(|at| at.plus(open_for));
        trial.max(failed_trial).max(Some(until)).filter(|until| *until > now)
    }

    /// Returns whether the breaker is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.config.is_none() || self.lock().open_until.is_none()
    }

    /// Checks whether a call would be admitted now.
    ///
    /// # Errors
    /// The time until which calls for this subject are refused.
    pub fn check(&self, subject: CallSubject, now: Time) -> Result<(), Time> {
        let Some(config) = &self.config else { return Ok(()) };
        self.lock().check(config, subject, now)
    }

    /// Admits a call if the breaker is closed. After the open time, it admits one trial at a time. A subject whose trial
    /// failed gets no further trial for `open_for`, so that others get theirs.
    ///
    /// # Errors
    /// The time until which calls for this subject are refused.
    pub fn admit(self: &Arc<Self>, subject: CallSubject, now: Time) -> Result<AdmittedCall, Time> {
        let Some(config) = &self.config else { return Ok(AdmittedCall { trial: None }) };
        let mut state = self.lock();
        state.check(config, subject, now)?;
        if state.open_until.is_none() {
            return Ok(AdmittedCall { trial: None });
        }
        state.last_trial += 1;
        let number = state.last_trial;
        state.trial = Some((number, now.plus(config.open_for)));
        Ok(AdmittedCall { trial: Some((self.clone(), number)) })
    }

    /// Records the result of a call. A success closes the breaker, also the success of a call that is no trial. Returns
    /// the change of the breaker, if there is one.
    pub fn record(&self, subject: CallSubject, outcome: CallOutcome, now: Time) -> Option<BreakerChange> {
        let config = self.config.as_ref()?;
        let mut state = self.lock();
        if outcome == CallOutcome::Success {
            state.failed.clear();
            state.trial = None;
            return state.open_until.take().map(|_| BreakerChange::Closed);
        }
        // A call that began before the breaker opened says nothing new.
        if state.open_until.is_some_and(|until| until > now) {
            return None;
        }
        let limit = usize::try_from(config.failures.get()).unwrap_or(usize::MAX);
        let failure = match outcome {
            CallOutcome::NoConnection => {
                state.last_trial += 1;
                CountedFailure::Single(state.last_trial)
            }
            _ => CountedFailure::Of(subject.counted()),
        };
        if state.failed.len() + 1 >= limit {
            state.failed.retain(|_, at| now.since(*at) < FAILURE_WINDOW);
        }
        state.failed.insert(failure, now);
        // Without a connection, the trial shows that the provider is still down, whatever the call was about.
        let trial_without_connection = state.open_until.is_some() && outcome == CallOutcome::NoConnection;
        if state.failed.len() >= limit || trial_without_connection {
            let failures = state.failed.len();
            state.failed.clear();
            let open_for = config.open_for;
            let again = state.open_until.replace(now.plus(open_for)).is_some();
            state.trial = None;
            return Some(if again {
                BreakerChange::OpenedAgain { open_for }
            } else {
                BreakerChange::Opened { failures, open_for }
            });
        }
        None
    }
}

impl BreakerState {
    fn check(&self, config: &upstream::BreakerConfig, subject: CallSubject, now: Time) -> Result<(), Time> {
        let Some(until) = self.open_until else { return Ok(()) };
        let trial = self.trial.map(|(_, deadline)| deadline);
        let failed_trial = self.failed.get(&CountedFailure::Of(subject.counted())).map(|at| at.plus(config.open_for));
        let refused_until = trial.max(failed_trial).max(Some(until)).filter(|until| *until > now);
        refused_until.map_or(Ok(()), Err)
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

#[cfg(test)]
mod tests {
    use super::*;

    use CallOutcome::{Failure, NoConnection, Success};

    fn breaker() -> Arc<Breaker> {
        let config = upstream::BreakerConfig { failures: 3.try_into().unwrap(), open_for: Duration::from_secs(10) };
        Arc::new(Breaker::new(Some(config)))
    }

    fn session(n: u32) -> CallSubject {
        CallSubject::of_session(None, Some(&n.to_string()))
    }

    fn fail_sessions(breaker: &Breaker, sessions: std::ops::Range<u32>, now: Time) {
        sessions.for_each(|n| _ = breaker.record(session(n), Failure, now));
    }

    #[test]
    fn the_breaker_opens_only_after_consecutive_failures_of_different_sessions() {
        let breaker = breaker();
        fail_sessions(&breaker, 0..2, Time(0));
        breaker.record(session(9), Success, Time(0));
        fail_sessions(&breaker, 0..2, Time(0));
        assert!(breaker.admit(session(3), Time(0)).is_ok());
        breaker.record(session(2), Failure, Time(1000));
        assert_eq!(breaker.admit(session(3), Time(1000)).unwrap_err(), Time(11_000));
        assert_eq!(breaker.open_until(Time(10_999)), Some(Time(11_000)));
        assert_eq!(breaker.open_until(Time(11_000)), None);
    }

    #[test]
    fn one_broken_session_counts_once_and_calls_without_a_connection_count_singly() {
        let breaker = breaker();
        (0..1000).for_each(|n| _ = breaker.record(session(1), Failure, Time(n)));
        assert!(breaker.is_closed());
        breaker.record(session(1), NoConnection, Time(1000));
        assert!(breaker.is_closed());
        breaker.record(session(1), NoConnection, Time(1000));
        assert!(!breaker.is_closed());
    }

    #[test]
    fn failures_older_than_the_window_do_not_count_and_at_most_as_many_as_needed_are_kept() {
        let breaker = breaker();
        let window = i64::try_from(FAILURE_WINDOW.as_millis()).unwrap();
        for n in 0..100 {
            breaker.record(session(n), Failure, Time(i64::from(n) * window / 2));
            assert!(breaker.is_closed() && breaker.lock().failed.len() < 3, "{n}");
        }
    }

    #[test]
    fn after_the_open_time_a_success_closes_and_no_connection_opens_again() {
        let breaker = breaker();
        fail_sessions(&breaker, 0..3, Time(0));
        let trial = breaker.admit(session(0), Time(10_000)).unwrap();
        assert_eq!(breaker.admit(session(7), Time(10_000)).unwrap_err(), Time(20_000), "only one trial");
        breaker.record(session(0), NoConnection, Time(10_500));
        drop(trial);
        assert_eq!(breaker.admit(session(7), Time(10_500)).unwrap_err(), Time(20_500));
        let trial = breaker.admit(session(7), Time(20_500)).unwrap();
        breaker.record(session(7), Success, Time(20_600));
        drop(trial);
        assert!(breaker.admit(session(1), Time(20_600)).is_ok() && breaker.is_closed());
    }

    #[test]
    fn a_trial_with_a_broken_session_does_not_keep_the_breaker_open_for_others() {
        let breaker = breaker();
        fail_sessions(&breaker, 0..3, Time(0));
        let trial = breaker.admit(session(0), Time(10_000)).unwrap();
        breaker.record(session(0), Failure, Time(10_100));
        drop(trial);
        assert_eq!(breaker.admit(session(0), Time(10_100)).unwrap_err(), Time(20_100), "it has had its trial");
        assert_eq!(breaker.open_until(Time(10_100)), Some(Time(20_100)), "it still shows as open");
        let healthy = breaker.admit(session(8), Time(10_100)).unwrap();
        breaker.record(session(8), Success, Time(10_200));
        drop(healthy);
        assert!(breaker.is_closed());
    }

    #[test]
    fn trials_of_a_dead_provider_open_the_breaker_again_by_the_same_count() {
        let breaker = breaker();
        fail_sessions(&breaker, 0..3, Time(0));
        for n in 0..3 {
            let trial = breaker.admit(session(n), Time(10_000)).unwrap();
            breaker.record(session(n), Failure, Time(10_000));
            drop(trial);
        }
        assert_eq!(breaker.admit(session(4), Time(10_000)).unwrap_err(), Time(20_000));
    }

    #[test]
    fn a_trial_that_is_cancelled_admits_the_next_one() {
        let breaker = breaker();
        fail_sessions(&breaker, 0..3, Time(0));
        drop(breaker.admit(session(0), Time(10_000)).unwrap());
        let next = breaker.admit(session(0), Time(10_000)).unwrap();
        assert!(breaker.admit(session(1), Time(19_999)).is_err());
        let later = breaker.admit(session(1), Time(20_000)).unwrap();
        drop(next);
        assert!(breaker.admit(session(2), Time(20_000)).is_err(), "the drop of an old trial does not end the new one");
        drop(later);
    }

    #[test]
    fn the_paths_of_one_of_several_clients_count_as_one() {
        let breaker = breaker();
        let fail = |client: Option<&str>, paths: std::ops::Range<u32>| {
            paths
                .for_each(|n| _ = breaker.record(CallSubject::of_path(&format!("/odd/{n}"), client), Failure, Time(0)));
        };
        fail(Some("a"), 0..100);
        fail(Some("b"), 0..100);
        assert!(breaker.is_closed());
        fail(Some("c"), 0..1);
        assert!(!breaker.is_closed(), "three clients");
        breaker.record(session(0), Success, Time(0));
        fail(None, 0..2);
        assert!(breaker.is_closed());
        fail(None, 2..3);
        assert!(!breaker.is_closed(), "three paths of the only client");
    }

    #[test]
    fn a_path_counts_without_its_query_string() {
        assert_eq!(CallSubject::of_path("/a?x=1", None), CallSubject::of_path("/a?x=2", None));
        assert_ne!(CallSubject::of_path("/a", None), CallSubject::of_path("/b", None));
        assert_ne!(CallSubject::of_session(None, Some("/a")), CallSubject::of_path("/a", None));
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
}
