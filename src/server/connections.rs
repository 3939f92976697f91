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
    /// How many connections it counts as.
    places: usize,
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
        let address = counted_address(address);
        self.counts().add(address, 1, caps)?;
        metrics.connections.inc();
        Ok(ConnectionGuard { connections: self.clone(), address, places: 1, metrics: metrics.clone() })
    }
}

impl ConnectionCounts {
    fn add(&mut self, address: IpAddr, places: usize, caps: ConnectionCaps) -> Result<(), ConnectionLimit> {
        if self.total + places > caps.total {
            return Err(ConnectionLimit::Total);
        }
        let from_address = self.by_address.get(&address).copied().unwrap_or(0) + places;
        if from_address > caps.per_address {
            return Err(ConnectionLimit::PerAddress);
        }
        self.by_address.insert(address, from_address);
        self.total += places;
        Ok(())
    }
}

impl ConnectionGuard {
    /// Counts the connection as several, because it takes as much memory as they do. Where the limits permit fewer from one
    /// address at all, it counts as so many.
    ///
    /// # Errors
    /// The limit that this would exceed.
    pub(crate) fn count_as(&mut self, places: usize, caps: ConnectionCaps) -> Result<(), ConnectionLimit> {
        let places = places.min(caps.per_address).min(caps.total);
        let more = places.saturating_sub(self.places);
        self.connections.counts().add(self.address, more, caps)?;
        self.places += more;
        Ok(())
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut counts = self.connections.counts();
        counts.total -= self.places;
        if let Some(from_address) = counts.by_address.get_mut(&self.address) {
            *from_address -= self.places;
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

    #[test]
    fn a_connection_that_takes_the_memory_of_several_counts_as_several() {
        let metrics = Metrics::new().unwrap().edge;
        let connections = Arc::<Connections>::default();
        let caps = ConnectionCaps { total: 12, per_address: 8 };
        let open = |address: &str| connections.open(address.parse().unwrap(), caps, &metrics).ok().unwrap();
        let mut first = open("10.0.0.1");
        assert_eq!(first.count_as(5, caps), Ok(()));
        assert_eq!(first.count_as(5, caps), Ok(()), "not twice");
        let mut second = open("10.0.0.1");
        assert_eq!(second.count_as(5, caps), Err(ConnectionLimit::PerAddress));
        assert_eq!(open("10.0.0.2").count_as(7, caps), Err(ConnectionLimit::Total));
        assert_eq!(metrics.connections.get(), 2, "the gauge counts connections");
        drop(first);
        assert_eq!(second.count_as(5, caps), Ok(()));
        drop(second);
        assert!(connections.counts().by_address.is_empty() && connections.counts().total == 0);
        let few = ConnectionCaps { total: 3, per_address: 2 };
        assert_eq!(open("10.0.0.3").count_as(5, few), Ok(()), "one is always possible");
    }
}
