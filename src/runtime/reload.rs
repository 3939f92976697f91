//! Reloading: read, check, compile, run the examples, and only then swap.
//!
//! A room of its own because a file change, a signal and an admin request must all do the same. It
//! also watches the files; what changed is told by content, not by events, so that a rename-over, a
//! ConfigMap's link swap and a missed event all come to the same.

use super::snapshot::Snapshot;
use super::{LastError, Runtime};
use crate::config::faults::{Fault, Place};
use crate::config::weir::Weir;
use crate::model::Time;
use notify::{RecursiveMode, Watcher};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long to wait for the rest of a change once it began.
const SETTLE: Duration = Duration::from_millis(100);
/// Something that writes all the time must not keep a change from being seen.
const SETTLE_AT_MOST: Duration = Duration::from_secs(2);
/// How often to look without being told.
const POLL: Duration = Duration::from_secs(10);

/// How a reload ended.
#[derive(Debug, Clone)]
pub enum Reloaded {
    /// A new snapshot is in force.
    Swapped {
        /// Its revision.
        revision: String,
        /// What it changes that needs a restart.
        restart: Vec<&'static str>,
    },
    /// Valid, and the same as what is in force.
    Unchanged {
        /// The revision in force.
        revision: String,
    },
    /// Refused; what was in force still is.
    Refused(Vec<Fault>),
}

impl Runtime {
    /// Reloads. Reads files and compiles: call it where blocking is allowed.
    pub fn reload(&self, now: Time) -> Reloaded {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot();
        let outcome = match Snapshot::load(&self.source, Some(&before), &self.random, now) {
            Err(faults) => Reloaded::Refused(faults),
            Ok(next) if next.content == before.content => Reloaded::Unchanged { revision: before.revision.clone() },
            Ok(next) if self.would_open_admin(&next) => Reloaded::Refused(vec![self.open_admin()]),
            Ok(next) => {
                let restart = needs_restart(&self.started, &next);
                let revision = next.revision.clone();
                self.current.store(next.into());
                Reloaded::Swapped { revision, restart }
            }
        };
        let error = match &outcome {
            Reloaded::Refused(faults) => Some(LastError { at: now, faults: faults.clone() }),
            _ => None,
        };
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        outcome
    }

    /// The admin listener stays where it was bound: there, a token may not be taken away.
    fn would_open_admin(&self, next: &Snapshot) -> bool {
        !self.started.admin.address.ip().is_loopback() && next.weir.admin.token.0.is_empty()
    }

    fn open_admin(&self) -> Fault {
        let file = self.source.directory.join("weir.yaml").to_string_lossy().into();
        let address = self.started.admin.address;
        let message = format!("admin still listens on {address} until a restart, so admin.token is still needed");
        Fault { place: Place::top(&file), message }
    }

    /// Whether the directory's content is another than when this was last asked.
    #[must_use]
    pub fn differs(&self) -> bool {
        let loaded = crate::config::load::load(&self.source);
        let content = match loaded.config {
            Some(config) => config.content.0,
            None => loaded.faults.sorted().iter().map(ToString::to_string).collect(),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = *seen != content;
        *seen = content;
        differs
    }
}

/// Settings that only a start reads.
fn needs_restart(old: &Weir, next: &Snapshot) -> Vec<&'static str> {
    let new = &next.weir;
    let bound = |weir: &Weir| weir.listen.iter().map(|l| (l.address, l.h2c)).collect::<Vec<_>>();
    [
        ("listen", bound(old) != bound(new) || !next.is_guarded_as_written()),
        ("admin.address", old.admin.address != new.admin.address),
        ("workers", old.workers != new.workers),
        ("upgrade.socket", old.upgrade != new.upgrade),
        ("overload.max_buffered", old.overload.max_buffered != new.overload.max_buffered),
        ("cache.max_bytes", old.max_bytes != new.max_bytes),
    ]
    .into_iter()
    .filter_map(|(name, changed)| changed.then_some(name))
    .collect()
}

/// Tells, through `changed`, that files may have changed. Holds until dropped; without a watch (no
/// more inotify handles, say) polling alone notices.
pub fn watch(directory: &Path, changed: mpsc::Sender<()>) -> Option<impl Watcher + use<>> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is an event too: it changes nothing.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })
    .ok()?;
    watcher.watch(directory, RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

/// Waits until the files may have changed and the change has settled. `false` for a mere poll.
pub async fn next_change(changes: &mut mpsc::Receiver<()>) -> bool {
    let told = tokio::time::timeout(POLL, changes.recv()).await;
    if !matches!(told, Ok(Some(()))) {
        if matches!(told, Ok(None)) {
            tokio::time::sleep(POLL).await;
        }
        return false;
    }
    let latest = tokio::time::Instant::now() + SETTLE_AT_MOST;
    while let Ok(Some(())) = tokio::time::timeout(SETTLE, changes.recv()).await {
        if tokio::time::Instant::now() >= latest {
            break;
        }
    }
    true
}
