//! Stores the current snapshot, and reads the clock.
//!
//! A request loads the snapshot once and uses it to its end. Only a reload replaces the snapshot, and always as a whole.

mod compile;
mod examples;
pub(crate) mod quotas;
pub(crate) mod reload;
pub(crate) mod snapshot;

use crate::base::model::Time;
use crate::config::content::Content;
use crate::config::faults::Fault;
use crate::config::load::ConfigSource;
use crate::config::weir::Weir;
use arc_swap::ArcSwap;
use snapshot::Snapshot;
use std::sync::{Arc, Mutex};

/// Returns the time of the system's clock.
#[must_use]
#[allow(clippy::disallowed_methods)] // the only module that reads the clock
pub fn now() -> Time {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// Returns the time of the system's clock in full precision, for the spans of a trace.
#[must_use]
#[allow(clippy::disallowed_methods)] // the only module that reads the clock
pub(crate) fn clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The current snapshot, and the state that reloads need.
pub struct Runtime {
    current: ArcSwap<Snapshot>,
    source: ConfigSource,
    /// Signs page tokens if the configuration has no key. Made at start.
    random: [u8; 32],
    last_error: Mutex<Option<LastError>>,
    /// `weir.yaml` at start: the source of settings that only a restart changes.
    started: Weir,
    /// The content of the files at the last poll.
    polled: Mutex<Content>,
    /// Locked during a reload: reloads run one after another.
    reloading: Mutex<()>,
}

/// Why the last reload was refused.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When it was refused.
    pub at: Time,
    /// All faults of the configuration.
    pub faults: Vec<Fault>,
}

impl Runtime {
    /// Loads the configuration for the first time.
    ///
    /// # Errors
    /// All faults of the configuration.
    pub fn start(source: ConfigSource, random: [u8; 32], now: Time) -> Result<Self, Vec<Fault>> {
        let first = Snapshot::load(&source, None, &random, now)?;
        Ok(Self {
            started: first.weir.clone(),
            polled: Mutex::new(first.content.clone()),
            current: ArcSwap::from_pointee(first),
            source,
            random,
            last_error: Mutex::new(None),
            reloading: Mutex::new(()),
        })
    }

    /// Returns the current snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Returns `weir.yaml` as it was at start.
    #[must_use]
    pub fn started(&self) -> &Weir {
        &self.started
    }

    /// Returns the key that signs page tokens if the configuration has none.
    #[must_use]
    pub fn random(&self) -> [u8; 32] {
        self.random
    }

    /// Returns where the configuration is read from.
    #[must_use]
    pub fn source(&self) -> &ConfigSource {
        &self.source
    }

    /// Returns why the last reload was refused; `None` if it was not.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
