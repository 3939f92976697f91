//! Reloads the configuration when its files change, on SIGHUP and for `POST /reload`.

use crate::engine::admin_token::AdminToken;
use crate::fetch::provider_query::SharedState;
use crate::runtime::reload::{self, Reload, ReloadClaim, Reloaded};
use crate::runtime::{self, Runtime};
use crate::server::diagnostics::LogFilter;
use crate::server::initial_series;
use crate::server::systemd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info, warn};

/// The longest time that a caller waits for a reload.
const RELOAD_DEADLINE: Duration = Duration::from_secs(30);

/// Stores the token of the admin listener if none is configured. If that fails, requests that change something are
/// refused.
pub(crate) fn store_admin_token(runtime: &Runtime, token: &AdminToken) {
    if !runtime.snapshot().weir.admin.token.0.is_empty() || token.is_stored() {
        return;
    }
    match token.store() {
        Ok(file) => info!(file = %file.display(), "admin.token is not set; made a token for this process"),
        Err(error) => warn!(
            "admin.token is not set, and Weir cannot store a token of its own, so the admin listener refuses purges and \
             reloads; set WEIR_ADMIN_TOKEN: {error}"
        ),
    }
}

/// Reloads the configuration. Every trigger of a reload calls it.
pub(crate) struct Reloader {
    runtime: Arc<Runtime>,
    shared: Arc<SharedState>,
    /// One permit: reloads run one after another.
    permit: Arc<Semaphore>,
    /// Made if the configuration has no token.
    admin_token: Arc<AdminToken>,
    /// Locked while the level is read and set, so that of two reloads the later one sets it last.
    log: Mutex<LogFilter>,
}

impl Reloader {
    #[must_use]
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        shared: Arc<SharedState>,
        log: LogFilter,
        admin_token: Arc<AdminToken>,
    ) -> Arc<Self> {
        Arc::new(Self { runtime, shared, permit: Arc::new(Semaphore::new(1)), admin_token, log: Mutex::new(log) })
    }

    /// Reloads on a thread that may block; counts and logs the result.
    pub(crate) async fn reload(&self, reason: &str) -> Reload {
        systemd::reloading();
        let reload = self.reload_within(RELOAD_DEADLINE).await;
        systemd::ready();
        let seconds = Duration::from_millis(runtime::now().0.unsigned_abs()).as_secs_f64();
        let metrics = &self.shared.metrics.config;
        let changed = (!reload.changed.is_empty()).then(|| listed(&reload.changed));
        let restart = self.runtime.needs_restart();
        let needs_restart = (!restart.is_empty()).then(|| restart.join(", "));
        match &reload.outcome {
            Reloaded::Swapped { revision } => {
                metrics.reloaded("success", revision, seconds);
                self.set_log_level();
                initial_series::create(&self.shared.metrics, &self.runtime.snapshot());
                info!(reason, revision, changed, needs_restart, "config reloaded");
            }
            Reloaded::Unchanged { revision } if needs_restart.is_some() => {
                metrics.reloaded("unchanged", revision, seconds);
                info!(reason, revision, needs_restart, "config unchanged; some of it takes effect after a restart");
            }
            Reloaded::Unchanged { revision } => {
                metrics.reloaded("unchanged", revision, seconds);
                debug!(reason, revision, "config unchanged");
            }
            Reloaded::Refused(faults) => {
                metrics.reloaded("failure", "", seconds);
                let faults = faults.len();
                let stays = "config not reloaded; the previous configuration stays in force";
                warn!(reason, faults, changed, needs_restart, "{stays}");
            }
        }
        if let Reloaded::Refused(faults) = &reload.outcome {
            faults.iter().for_each(|fault| warn!("{fault}"));
        }
        reload
    }

    /// Reloads, and stops waiting after `limit`: a file system may block a read without end.
    async fn reload_within(&self, limit: Duration) -> Reload {
        let deadline = tokio::time::Instant::now() + limit;
        let too_slow = || self.runtime.refuse_slow_reload(limit, runtime::now());
        // A reload that is blocked keeps the permit, so blocked reloads do not take all threads.
        let permit = tokio::time::timeout_at(deadline, self.permit.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return too_slow() };
        let (runtime, claim) = (self.runtime.clone(), Arc::<ReloadClaim>::default());
        let claimed = claim.clone();
        let admin_token = self.admin_token.clone();
        let mut reload = tokio::task::spawn_blocking(move || {
            let outcome = runtime.reload(runtime::now(), &claimed);
            store_admin_token(&runtime, &admin_token);
            drop(permit);
            outcome
        });
        let outcome = match tokio::time::timeout_at(deadline, &mut reload).await {
            Ok(outcome) => outcome,
            Err(_) if claim.claim() => return too_slow(),
            Err(_) => reload.await,
        };
        outcome.unwrap_or_else(|_| Reload::refused(Vec::new()))
    }

    fn set_log_level(&self) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let level = self.runtime.snapshot().weir.log;
        log.set(level);
    }

    /// Reloads when the configuration files change.
    pub(crate) async fn watch_files(self: Arc<Self>) {
        let (changed, mut changes) = mpsc::channel(1);
        let watcher = reload::watch(&self.runtime.source().directory, changed);
        if watcher.is_none() {
            warn!("cannot watch the configuration files; checking them at intervals");
        }
        let mut blocked = None;
        loop {
            let event = reload::next_change(&mut changes).await;
            let checked = self.runtime.clone();
            // A check that is blocked is waited for again; no second one is started beside it.
            let mut check =
                blocked.take().unwrap_or_else(|| tokio::task::spawn_blocking(move || checked.has_changed()));
            let differs = match tokio::time::timeout(RELOAD_DEADLINE, &mut check).await {
                Ok(differs) => differs.unwrap_or(false),
                Err(_) => {
                    blocked = Some(check);
                    false
                }
            };
            if event || differs {
                self.reload("files changed").await;
            }
        }
    }

    /// Reloads on every SIGHUP.
    pub(crate) async fn watch_hangup(self: Arc<Self>, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            self.reload("SIGHUP").await;
        }
    }
}

/// The most names of files in a log line.
const LISTED_FILES: usize = 20;

/// Returns the names of files for a log line.
fn listed(files: &[String]) -> String {
    let names = files.iter().take(LISTED_FILES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match files.len().saturating_sub(LISTED_FILES) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metrics;
    use crate::config::load::ConfigSource;
    use crate::config::weir::LogLevel;
    use crate::server::diagnostics;

    fn reloader() -> Arc<Reloader> {
        let source = ConfigSource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config"));
        let runtime = Runtime::start(source, [0; 32], runtime::now()).unwrap();
        let shared = Arc::new(SharedState::new(Metrics::new().unwrap(), 1 << 20, 1 << 20));
        let token = AdminToken::new(([127, 0, 0, 1], 1).into(), Vec::new());
        Reloader::new(Arc::new(runtime), shared, diagnostics::start(LogLevel::Error).filter, Arc::new(token))
    }

    #[tokio::test]
    async fn a_reload_behind_a_blocked_one_ends_at_its_deadline() {
        let reloader = reloader();
        let blocked = reloader.permit.clone().acquire_owned().await.unwrap();
        let Reloaded::Refused(faults) = reloader.reload_within(Duration::from_millis(20)).await.outcome else {
            panic!("the reload was not refused")
        };
        assert!(faults[0].message.contains("did not end within"), "{faults:?}");
        assert!(reloader.runtime.last_error().is_some());
        drop(blocked);
        let unchanged = reloader.reload_within(Duration::from_secs(60)).await.outcome;
        assert!(matches!(unchanged, Reloaded::Unchanged { .. }), "{unchanged:?}");
        assert!(reloader.runtime.last_error().is_none());
    }

    #[test]
    fn a_reload_whose_caller_has_given_up_changes_nothing() {
        let reloader = reloader();
        let claim = ReloadClaim::default();
        assert!(claim.claim());
        let _ = reloader.runtime.refuse_slow_reload(Duration::from_secs(1), runtime::now());
        let outcome = reloader.runtime.reload(runtime::now(), &claim).outcome;
        assert!(matches!(outcome, Reloaded::Refused(_)), "{outcome:?}");
        assert!(reloader.runtime.last_error().is_some(), "the error stays");
    }
}
