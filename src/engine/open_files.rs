//! Raises the limit of open files of the process, and shares the files out: connections of clients may use half of them.
//!
//! The other half is for connections to providers, the admin listener, the configuration and the logs. Without it, a
//! client that only opens connections would stop hits, reloads and monitoring.

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

    /// Returns how many connections of one other use are possible, of `wanted`: of the admin listener, or refused ones that
    /// stay open until their response is read.
    #[must_use]
    pub(crate) fn other_connections(self, wanted: usize) -> usize {
        wanted.min(self.part(16))
    }

    /// Returns a warning if fewer client connections are possible than configured.
    #[must_use]
    pub(crate) fn warning(self, configured: &Limits) -> Option<String> {
        let ConnectionCaps { total, per_address } = self.connections(configured);
        (total < configured.connections).then(|| {
            format!(
                "limits.connections is {}, but the process can open only {} files, so Weir accepts {total} connections, \
                 and {per_address} from one address; raise the limit of open files (LimitNOFILE=, ulimit -n) to {}",
                configured.connections,
                self.0,
                2 * configured.connections
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
        // Admin listener, and refusals of both listeners: more than 300 files are left.
        assert_eq!(3 * OpenFiles(1_024).other_connections(256), 192);
        let text = OpenFiles(1_024).warning(&limits).unwrap();
        for part in ["limits.connections is 20000", "1024 files", "512 connections", "256 from one", "40000"] {
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
