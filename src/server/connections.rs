//! Counts open client connections and enforces the limits on them: in total, and per client address.

use crate::base::metrics::EdgeMetrics;
use crate::config::edge::counted_address;
use crate::engine::open_files::ConnectionCaps;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The open connections of all listeners.
#[derive(Default)]
pub(crate) struct Connections {
    counts: Mutex<ConnectionCounts>,
}

#[derive(Default)]
struct ConnectionCounts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A limit of open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionLimit {
    /// The limit of all connections.
    Total,
    /// The limit of connections from one address.
    PerAddress,
}

impl ConnectionLimit {
    /// Returns the config key below `limits`, which is also the metric's `reason` label.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Total => "connections",
            Self::PerAddress => "connections_per_address",
        }
    }
}

/// Counts one connection until it is dropped.
pub(crate) struct ConnectionGuard {
    connections: Arc<Connections>,
    address: IpAddr,
    metrics: EdgeMetrics,
}

impl Connections {
    fn counts(&self) -> MutexGuard<'_, ConnectionCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection from `address`.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(crate) fn open(
        self: &Arc<Self>,
        address: IpAddr,
        caps: ConnectionCaps,
        metrics: &EdgeMetrics,
    ) -> Result<ConnectionGuard, ConnectionLimit> {
        let (address, mut counts) = (counted_address(address), self.counts());
        if counts.total >= caps.total {
            return Err(ConnectionLimit::Total);
        }
        let from_address = counts.by_address.entry(address).or_default();
        if *from_address >= caps.per_address {
            return Err(ConnectionLimit::PerAddress);
        }
        *from_address += 1;
        counts.total += 1;
        metrics.connections.inc();
        Ok(ConnectionGuard { connections: self.clone(), address, metrics: metrics.clone() })
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut counts = self.connections.counts();
        counts.total -= 1;
        if let Some(from_address) = counts.by_address.get_mut(&self.address) {
            *from_address -= 1;
            if *from_address == 0 {
                counts.by_address.remove(&self.address);
            }
        }
        self.metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metrics;

    #[test]
    fn connections_are_limited_in_total_and_per_address() {
        let metrics = Metrics::new().unwrap().edge;
        let connections = Arc::<Connections>::default();
        let caps = ConnectionCaps { total: 3, per_address: 2 };
        let open = |address: &str| connections.open(address.parse().unwrap(), caps, &metrics);
        let first = open("10.0.0.1").unwrap_or_else(|limit| panic!("{limit:?}"));
        let _second = open("10.0.0.1").unwrap_or_else(|limit| panic!("{limit:?}"));
        assert_eq!(open("10.0.0.1").err(), Some(ConnectionLimit::PerAddress));
        let _third = open("2001:db8::1").unwrap_or_else(|limit| panic!("{limit:?}"));
        assert_eq!(open("10.0.0.2").err(), Some(ConnectionLimit::Total));
        assert_eq!(metrics.connections.get(), 3);
        drop(first);
        assert!(open("2001:db8::ffff:1").is_ok(), "the second connection of this /64");
        assert_eq!(connections.counts().by_address.len(), 2);
    }
}
