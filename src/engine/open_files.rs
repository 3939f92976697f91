//! Raises the limit of open files of the process, and shares the files out, in sixteenths: connections of clients may use
//! eight, calls to providers three, idle connections to providers one, the admin listener and refused connections three.
//!
//! The rest is for the configuration and the logs. Without shares, a client that only opens connections, or requests what a
//! provider does not answer, would stop hits, reloads and monitoring.

use crate::config::edge::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most open connections of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionCaps {
    /// Of all clients together.
    pub total: usize,
    /// From one address.
    pub per_address: usize,
}

/// The most idle connections to providers of one pool.
const MAX_IDLE_PROVIDER_CONNECTIONS: usize = 128;
/// Fewer calls to providers at a time are worth a warning.
const FEW_CALLS: usize = 1000;
/// The most connections of the admin listener.
pub(crate) const ADMIN_CONNECTIONS: usize = 256;

/// The number of files that the process may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles(u64);

impl OpenFiles {
    /// Raises the soft limit to the hard one. Returns the limit that is in force then.
    #[must_use]
    pub(crate) fn raise() -> Self {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // The system refuses this only if another thread has lowered the hard limit meanwhile.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        Self(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    /// Returns the limit that a process started now could have.
    #[must_use]
    pub(crate) fn available() -> Self {
        Self(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))
    }

    fn part(self, divisor: u64) -> usize {
        usize::try_from(self.0 / divisor).unwrap_or(usize::MAX).max(1)
    }

    /// Returns the limits of client connections: as configured, but all together at most half of the files. If that is
    /// less than configured, one address gets at most half of it.
    #[must_use]
    pub(crate) fn connections(self, configured: &Limits) -> ConnectionCaps {
        let total = configured.connections.min(self.part(2));
        let is_cut = total < configured.connections;
        let per_address = if is_cut { total.div_ceil(2) } else { total };
        ConnectionCaps { total, per_address: configured.connections_per_address.min(per_address) }
    }

    /// Returns how many calls to providers may be in flight. Each may have a connection of its own.
    #[must_use]
    pub(crate) fn provider_calls(self) -> usize {
        usize::try_from(self.0 / 16 * 3).unwrap_or(usize::MAX).max(1)
    }

    /// Returns how many idle connections to providers a pool keeps, of two pools.
    #[must_use]
    pub(crate) fn idle_provider_connections(self) -> usize {
        MAX_IDLE_PROVIDER_CONNECTIONS.min(self.part(32))
    }

    /// Returns how many connections of one other use are possible, of `wanted`: of the admin listener, or refused ones that
    /// stay open until their response is read.
    #[must_use]
    pub(crate) fn other_connections(self, wanted: usize) -> usize {
        wanted.min(self.part(16))
    }

    /// Returns a warning if fewer client connections are possible than configured, or only few calls to providers.
    #[must_use]
    pub(crate) fn warning(self, configured: &Limits) -> Option<String> {
        let ConnectionCaps { total, per_address } = self.connections(configured);
        let (calls, admin) = (self.provider_calls(), self.other_connections(ADMIN_CONNECTIONS));
        (total < configured.connections || calls < FEW_CALLS).then(|| {
            format!(
                "the process can open only {} files, so Weir accepts {total} connections (limits.connections is {}), \
                 {per_address} of them from one address, and {admin} of the admin listener, and makes at most {calls} \
                 calls to providers at a time; raise the limit of open files (LimitNOFILE=, ulimit -n) to {}",
                self.0,
                configured.connections,
                (2 * configured.connections).max(FEW_CALLS.div_ceil(3) * 16)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_half_of_the_files_and_one_address_half_of_that() {
        let limits = Limits { connections: 20_000, connections_per_address: 5_000, ..Limits::default() };
        for (files, expected) in [
            (u64::MAX, (20_000, 5_000)),
            (65_536, (20_000, 5_000)),
            (40_000, (20_000, 5_000)),
            (20_000, (10_000, 5_000)),
            (1_024, (512, 256)),
            (256, (128, 64)),
            (1, (1, 1)),
            (0, (1, 1)),
        ] {
            let files = OpenFiles(files);
            let caps = files.connections(&limits);
            assert_eq!((caps.total, caps.per_address), expected, "{files:?}");
            assert_eq!(files.warning(&limits).is_some(), expected.0 < 20_000, "{files:?}");
        }
        let small = Limits { connections: 10, connections_per_address: 10, ..limits };
        let caps = ConnectionCaps { total: 10, per_address: 10 };
        assert_eq!(OpenFiles(1_024).connections(&small), caps, "a limit that is reached is not cut further");
        for files in [256, 1_024, 20_000] {
            let files = OpenFiles(files);
            // Admin listener, and refusals of both listeners.
            let other = 3 * files.other_connections(ADMIN_CONNECTIONS) as u64;
            let providers = (files.provider_calls() + 2 * files.idle_provider_connections()) as u64;
            let left = files.0 - files.0 / 2 - other - providers;
            assert!(left >= files.0 / 16, "{left} of {files:?} are left");
        }
        let text = OpenFiles(1_024).warning(&limits).unwrap();
        for part in [
            "limits.connections is 20000",
            "1024 files",
            "512 connections",
            "256 of them from one",
            "64 of the admin",
            "192 calls",
            "40000",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = OpenFiles::raise();
        assert_eq!(raised, OpenFiles::available());
        assert_eq!(getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum);
    }
}
