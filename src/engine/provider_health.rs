//! Logs when the state of a provider changes: its first failure, its breaker, its pauses, its recovery.
//!
//! The lines of one provider are bounded in time, so that neither an outage nor a provider that fails and works in turn
//! fills the log.

use crate::base::model::Time;
use crate::engine::breaker::BreakerChange;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::{info, warn};

/// The least time between two lines of the same kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// The state of a provider as its log lines tell it. A reload keeps it.
#[derive(Debug)]
pub struct ProviderHealth {
    provider: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The failures since the last success.
    failing: Option<Failing>,
    /// When the last line about a first failure, a trial and a pause was written.
    failure_line: Option<Time>,
    trial_line: Option<Time>,
    pause_line: Option<Time>,
    /// The open breaker was logged, and the trial in flight.
    open_logged: bool,
    trial_logged: bool,
    /// The failures without a line since the last line.
    unlogged: u64,
}

#[derive(Debug)]
struct Failing {
    since: Time,
    count: u64,
    logged: bool,
}

impl ProviderHealth {
    /// Makes the state of a provider that works.
    #[must_use]
    pub fn new(provider: Arc<str>) -> Self {
        Self { provider, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a failed call. `cause` says what failed, for operators.
    pub fn failed(&self, cause: &str, change: Option<BreakerChange>, now: Time) {
        let (provider, mut state) = (&*self.provider, self.lock());
        let failing = state.failing.is_none();
        if failing {
            let logged = is_due(&mut state.failure_line, now);
            state.failing = Some(Failing { since: now, count: 0, logged });
            if logged {
                let unlogged = std::mem::take(&mut state.unlogged);
                let unlogged = (unlogged > 0).then_some(unlogged);
                warn!(provider, cause, unlogged_failures = unlogged, "provider fails");
            }
        }
        let State { failing: Some(failing), .. } = &mut *state else { return };
        failing.count += 1;
        let (failures, logged) = (failing.count, failing.logged);
        state.unlogged += u64::from(!logged);
        match change {
            Some(BreakerChange::Opened { failures: counted, open_for }) => {
                (state.open_logged, state.trial_line) = (true, None);
                warn!(provider, cause, failures = counted, open_for = ?open_for, "breaker open: Weir does not call the provider");
            }
            Some(BreakerChange::OpenedAgain { open_for }) if std::mem::take(&mut state.trial_logged) => {
                warn!(provider, cause, failures, open_for = ?open_for, "breaker open again: the trial failed");
            }
            _ => {}
        }
    }

    /// Records a successful call.
    pub fn succeeded(&self, change: Option<BreakerChange>, now: Time) {
        let mut state = self.lock();
        let Some(failing) = state.failing.take() else {
            drop(state);
            if change == Some(BreakerChange::Closed) {
                info!(provider = &*self.provider, "breaker closed");
            }
            return;
        };
        let breaker_line = change == Some(BreakerChange::Closed) && std::mem::take(&mut state.open_logged);
        state.trial_logged = false;
        drop(state);
        let (provider, failures) = (&*self.provider, failing.count);
        let lasted = now.since(failing.since);
        if breaker_line {
            info!(provider, failures, lasted = ?lasted, "breaker closed: the provider works again");
        } else if failing.logged {
            info!(provider, failures, lasted = ?lasted, "provider works again");
        }
    }

    /// Records that an open breaker admits a trial.
    pub fn trial(&self, now: Time) {
        let mut state = self.lock();
        if is_due(&mut state.trial_line, now) {
            state.trial_logged = true;
            info!(provider = &*self.provider, "breaker half-open: one call tries the provider");
        }
    }

    /// Records a pause that the provider requested.
    pub fn paused(&self, cause: &str, wait: Duration, now: Time) {
        if is_due(&mut self.lock().pause_line, now) {
            warn!(provider = &*self.provider, cause, wait = ?wait, "provider throttles: Weir pauses its calls");
        }
    }
}

/// Returns whether the last line is at least [`INTERVAL`] ago. Then `now` becomes its time.
fn is_due(last: &mut Option<Time>, now: Time) -> bool {
    let due = last.is_none_or(|last| now.since(last) >= INTERVAL);
    if due {
        *last = Some(now);
    }
    due
}
