//! Reloads the configuration when its files change, on SIGHUP and for `POST /reload`.

use crate::fetch::provider_query::SharedState;
use crate::runtime::reload::{self, Reloaded};
use crate::runtime::{self, Runtime};
use crate::server::diagnostics::LogFilter;
use crate::server::systemd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// Reloads the configuration. Every trigger of a reload calls it.
pub(crate) struct Reloader {
    runtime: Arc<Runtime>,
    shared: Arc<SharedState>,
    /// Locked while the level is read and set, so that of two reloads the later one sets it last.
    log: Mutex<LogFilter>,
}

impl Reloader {
    #[must_use]
    pub(crate) fn new(runtime: Arc<Runtime>, shared: Arc<SharedState>, log: LogFilter) -> Arc<Self> {
        Arc::new(Self { runtime, shared, log: Mutex::new(log) })
    }

    /// Reloads on a thread that may block; counts and logs the result.
    pub(crate) async fn reload(&self, reason: &str) -> Reloaded {
        let runtime = self.runtime.clone();
        let reload = move || {
            systemd::reloading();
            let outcome = runtime.reload(runtime::now());
            systemd::ready();
            outcome
        };
        let outcome = tokio::task::spawn_blocking(reload).await;
        let outcome = outcome.unwrap_or_else(|_| Reloaded::Refused(Vec::new()));
        let seconds = Duration::from_millis(runtime::now().0.unsigned_abs()).as_secs_f64();
        let metrics = &self.shared.metrics.config;
        match &outcome {
            Reloaded::Swapped { revision, restart } => {
                metrics.reloaded("success", revision, seconds);
                self.set_log_level();
                let needs_restart = (!restart.is_empty()).then(|| restart.join(", "));
                info!(reason, revision, needs_restart, "config reloaded");
            }
            Reloaded::Unchanged { revision } => {
                metrics.reloaded("unchanged", revision, seconds);
                debug!(reason, revision, "config unchanged");
            }
            Reloaded::Refused(faults) => {
                metrics.reloaded("failure", "", seconds);
                let count = faults.len();
                warn!(reason, faults = count, "config not reloaded; the previous configuration stays in force");
                faults.iter().for_each(|fault| warn!("{fault}"));
            }
        }
        outcome
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
        loop {
            let event = reload::next_change(&mut changes).await;
            let checked = self.runtime.clone();
            let differs = tokio::task::spawn_blocking(move || checked.has_changed()).await.unwrap_or(false);
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
