//! The one place where what is in force is kept: an `ArcSwap` of one immutable snapshot.
//!
//! A request loads it once and sees it from start to end. Only a reload swaps it, and only for a
//! snapshot that is whole.

mod examples;
pub mod reload;
pub mod snapshot;

use crate::config::faults::Fault;
use crate::config::load::Source;
use crate::config::weir::Weir;
use crate::model::Time;
use arc_swap::ArcSwap;
use snapshot::Snapshot;
use std::sync::{Arc, Mutex};

/// The moment it is, by the system's clock.
#[must_use]
#[allow(clippy::disallowed_methods)] // the one room that may
pub fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The system's clock, in all its digits: when a span of a trace begins or ends.
#[must_use]
#[allow(clippy::disallowed_methods)] // the one room that may
pub fn clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// What is in force, and how it came to be.
pub struct Runtime {
    current: ArcSwap<Snapshot>,
    source: Source,
    /// Signs page tokens where the config has no key; made at start.
    random: [u8; 32],
    last_error: Mutex<Option<LastError>>,
    /// As it was at start: what needs a restart is still in force from here.
    started: Weir,
    /// The content last seen by polling.
    seen: Mutex<String>,
    /// One reload at a time.
    reloading: Mutex<()>,
}

/// Why the last reload was refused.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: Time,
    /// All faults.
    pub faults: Vec<Fault>,
}

impl Runtime {
    /// Loads a directory for the first time.
    ///
    /// # Errors
    /// All faults; there is nothing to fall back on.
    pub fn start(source: Source, random: [u8; 32], now: Time) -> Result<Self, Vec<Fault>> {
        let first = Snapshot::load(&source, None, &random, now)?;
        Ok(Self {
            started: first.weir.clone(),
            seen: Mutex::new(first.content.0.clone()),
            current: ArcSwap::from_pointee(first),
            source,
            random,
            last_error: Mutex::new(None),
            reloading: Mutex::new(()),
        })
    }

    /// What is in force now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// `weir.yaml` as it was at start.
    #[must_use]
    pub fn started(&self) -> &Weir {
        &self.started
    }

    /// Signs page tokens where the config has no key.
    #[must_use]
    pub fn random(&self) -> [u8; 32] {
        self.random
    }

    /// Where it is read from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Why the last reload was refused, if it was.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
