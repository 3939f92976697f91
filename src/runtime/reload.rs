//! Reloads the configuration, and notices when its files change.
//!
//! A reload loads a new snapshot and replaces the current one only if there is no fault. Weir compares the content of the
//! files to find changes. Events only make it compare sooner, so renamed files, swapped links of a ConfigMap and missed
//! events are also noticed.

use super::snapshot::Snapshot;
use super::{LastError, Runtime};
use crate::base::model::Time;
use crate::config::edge::Listener;
use crate::config::faults::{Fault, Location};
use crate::config::load;
use crate::config::weir::{Admin, Overload, Weir};
use notify::{RecursiveMode, Watcher};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// A change is complete after this time without an event.
const SETTLE: Duration = Duration::from_millis(100);
/// The limit of the wait for the end of a change, because some files are written all the time.
const MAX_SETTLE: Duration = Duration::from_secs(2);
/// How often Weir compares the files if there is no event.
const POLL: Duration = Duration::from_secs(10);

/// How a reload ended.
#[derive(Debug, Clone)]
pub(crate) enum Reloaded {
    /// The new snapshot is in force.
    Swapped {
        /// Its revision.
        revision: String,
    },
    /// The files are valid and their content is the same as before.
    Unchanged {
        /// The revision in force.
        revision: String,
    },
    /// The new configuration has faults. The old one stays in force.
    Refused(Vec<Fault>),
}

/// A reload.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    /// How it ended.
    pub(crate) outcome: Reloaded,
    /// The files that differ from those of the configuration that was in force before.
    pub(crate) changed: Vec<String>,
}

impl Reload {
    /// Returns a reload that read no file.
    #[must_use]
    pub(crate) fn refused(faults: Vec<Fault>) -> Self {
        Self { outcome: Reloaded::Refused(faults), changed: Vec::new() }
    }
}

/// Decides between a reload and the caller that stops waiting for it. The first of them to claim it wins, so a reload
/// that was reported as failed has no effect later.
#[derive(Default)]
pub(crate) struct ReloadClaim(AtomicBool);

impl ReloadClaim {
    /// Returns whether this call is the first one.
    pub(crate) fn claim(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Runtime {
    /// Reloads the configuration, unless the caller claims `claim` before the files are read. Blocks: it reads files and
    /// compiles.
    pub(crate) fn reload(&self, now: Time, claim: &ReloadClaim) -> Reload {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.snapshot();
        let loaded = load::load(&self.source);
        let changed = loaded.content.changes_since(&previous.content, loaded.faults.is_empty());
        let loaded = Snapshot::compile(loaded, Some(&previous), &self.random, now);
        if !claim.claim() {
            return Reload::refused(Vec::new());
        }
        let outcome = match loaded {
            Err(faults) => Reloaded::Refused(faults),
            Ok(next) if next.content == previous.content => Reloaded::Unchanged { revision: previous.revision.clone() },
            Ok(next) if self.lacks_admin_token(&next) => Reloaded::Refused(vec![self.missing_admin_token()]),
            Ok(next) => {
                let revision = next.revision.clone();
                self.current.store(next.into());
                Reloaded::Swapped { revision }
            }
        };
        self.set_last_error(match &outcome {
            Reloaded::Refused(faults) => Some(LastError { at: now, faults: faults.clone() }),
            _ => None,
        });
        Reload { outcome, changed }
    }

    /// Returns the settings that only a restart changes. Each is `true` if it differs from the one at the start, so that a
    /// restart is necessary.
    #[must_use]
    pub(crate) fn restart_settings(&self) -> [(&'static str, bool); 6] {
        restart_settings(&self.started, &self.snapshot())
    }

    /// Returns the names of the settings that take effect only after a restart.
    #[must_use]
    pub(crate) fn needs_restart(&self) -> Vec<&'static str> {
        self.restart_settings().into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }

    fn set_last_error(&self, error: Option<LastError>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Records that a reload did not end within `limit`. Returns the fault, which names the file that is being read.
    pub(crate) fn refuse_slow_reload(&self, limit: Duration, now: Time) -> Reload {
        let file = self.source.reading().unwrap_or_else(|| self.source.directory.clone());
        let message = format!(
            "the reload did not end within {} s; a file on a disk that does not respond delays it. The previous \
             configuration stays in force; reload again when the file can be read",
            limit.as_secs()
        );
        let fault = Fault { location: Location::top(&file.to_string_lossy().into()), message };
        self.set_last_error(Some(LastError { at: now, faults: vec![fault.clone()] }));
        Reload::refused(vec![fault])
    }

    /// Returns whether the next snapshot has no admin token although the bound admin address is not a loopback address.
    fn lacks_admin_token(&self, next: &Snapshot) -> bool {
        !self.started.admin.address.ip().is_loopback() && next.weir.admin.token.0.is_empty()
    }

    fn missing_admin_token(&self) -> Fault {
        let file = self.source.directory.join("weir.yaml").to_string_lossy().into();
        let address = self.started.admin.address;
        let message =
            format!("admin.token is required until a restart, because the admin listener is bound to {address}");
        Fault { location: Location::top(&file), message }
    }

    /// Returns whether the content of the files has changed since the last call of this method.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let content = load::load(&self.source).content;
        let mut polled = self.polled.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *polled != content;
        *polled = content;
        changed
    }
}

/// Returns the settings that only a restart changes, and whether they differ from those at the start.
fn restart_settings(started: &Weir, next: &Snapshot) -> [(&'static str, bool); 6] {
    // The pattern has every setting, so a new setting does not compile until it is added here.
    let Weir {
        listen,
        admin: Admin { address: admin, token: _, location: _, hosts: _ },
        workers,
        upgrade,
        overload: Overload { max_buffered, max_in_flight: _, max_waiters: _, max_watchers: _ },
        max_bytes,
        // A reload puts these into force.
        grace: _,
        traces: _,
        log: _,
        access_log: _,
        limits: _,
        compression: _,
        cors: _,
        trusted_proxies: _,
        page_token_key: _,
        locations: _,
        policies: _,
        written: _,
    } = started;
    // TLS is compared by `listeners_match_configuration`.
    let bound = |Listener { address, h2c, tls: _, location: _ }: &Listener| (*address, *h2c);
    let new = &next.weir;
    let same_addresses = listen.iter().map(bound).eq(new.listen.iter().map(bound));
    [
        ("listen", !same_addresses || !next.listeners_match_configuration()),
        ("admin.address", *admin != new.admin.address),
        ("workers", *workers != new.workers),
        ("upgrade.socket", *upgrade != new.upgrade),
        ("overload.max_buffered", *max_buffered != new.overload.max_buffered),
        ("cache.max_bytes", *max_bytes != new.max_bytes),
    ]
}

/// Sends an event when files may have changed, until the watcher is dropped. Returns `None` if the system allows no
/// watcher; then only polling notices changes.
pub(crate) fn watch(directory: &Path, changed: mpsc::Sender<()>) -> Option<impl Watcher + use<>> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Weir's own reads of the files are events too.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })
    .ok()?;
    watcher.watch(directory, RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

/// Waits for an event and for the end of the change. Returns `false` if [`POLL`] passes without an event.
pub(crate) async fn next_change(changes: &mut mpsc::Receiver<()>) -> bool {
    let event = tokio::time::timeout(POLL, changes.recv()).await;
    if !matches!(event, Ok(Some(()))) {
        if matches!(event, Ok(None)) {
            tokio::time::sleep(POLL).await;
        }
        return false;
    }
    let latest = tokio::time::Instant::now() + MAX_SETTLE;
    while let Ok(Some(())) = tokio::time::timeout(SETTLE, changes.recv()).await {
        if tokio::time::Instant::now() >= latest {
            break;
        }
    }
    true
}
