//! Groups the pooled connections to providers: a connection carries requests with one credential only.
//!
//! HTTP/1.1 responses have no request number, so a provider that sends a byte too many answers the next request on the
//! same connection with it (RFC 9112, section 9.3). A group that may have such a connection is retired: no request uses
//! its idle connections again, and they close at the idle timeout. This module opens and closes no connections.

use http::{HeaderMap, StatusCode, header};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of counters. Groups share them, so that their memory does not grow with the number of credentials.
const COUNTERS: usize = 1024;

/// Identifies the connections that a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionGroup {
    /// The provider and the credential.
    owner: u64,
    /// The key of the connection pool.
    pub(crate) key: u64,
}

/// The groups of all providers and credentials.
pub(crate) struct ConnectionGroups {
    /// Has random keys, so that no client can choose a credential that shares another one's group.
    hasher: RandomState,
    /// How often the groups of a counter were retired.
    retired: Box<[AtomicU32]>,
}

impl ConnectionGroups {
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { hasher: RandomState::new(), retired: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Returns the present group of an authority and of the identity of a credential.
    #[must_use]
    pub(crate) fn group(&self, authority: &str, identity: &str) -> ConnectionGroup {
        let owner = self.hasher.hash_one((authority, identity));
        ConnectionGroup { owner, key: self.key(owner) }
    }

    /// Makes requests stop using the connections that the group has now.
    pub(crate) fn retire(&self, group: ConnectionGroup) {
        self.counter(group.owner).fetch_add(1, Ordering::AcqRel);
    }

    /// Returns whether the group was retired after [`Self::group`] returned it.
    #[must_use]
    pub(crate) fn is_retired(&self, group: ConnectionGroup) -> bool {
        self.key(group.owner) != group.key
    }

    fn key(&self, owner: u64) -> u64 {
        self.hasher.hash_one((owner, self.counter(owner).load(Ordering::Acquire)))
    }

    fn counter(&self, owner: u64) -> &AtomicU32 {
        &self.retired[usize::try_from(owner % COUNTERS as u64).unwrap_or(0)]
    }
}

/// Returns whether the provider may send a body after this response, although the response has none (RFC 9110, sections
/// 15.3.5 and 15.4.5).
#[must_use]
pub(crate) fn announces_forbidden_body(status: StatusCode, headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && (length || headers.contains_key(header::TRANSFER_ENCODING))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn each_credential_and_provider_has_its_own_group() {
        let groups = ConnectionGroups::new();
        let keys = [("one", "a"), ("one", "b"), ("two", "a"), ("one", ""), ("on", "ea")]
            .map(|(authority, identity)| groups.group(authority, identity).key);
        assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), keys.len());
        assert_eq!(groups.group("one", "a").key, keys[0]);
    }

    #[test]
    fn a_retired_group_gets_another_key() {
        let groups = ConnectionGroups::new();
        let first = groups.group("one", "a");
        assert!(!groups.is_retired(first));
        groups.retire(first);
        assert!(groups.is_retired(first));
        let second = groups.group("one", "a");
        assert!(second.key != first.key && !groups.is_retired(second));
        // A retired group affects at most those that share its counter.
        let others = (0..64).map(|n| groups.group(&n.to_string(), "b")).collect::<Vec<_>>();
        groups.retire(second);
        assert!(others.iter().filter(|group| groups.is_retired(**group)).count() < 8);
    }

    #[test]
    fn a_status_without_a_body_cannot_announce_one() {
        let headers = |name: HeaderName, value| HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
        for (status, headers, expected) in [
            (204, HeaderMap::new(), false),
            (204, headers(header::CONTENT_LENGTH, "0"), false),
            (204, headers(header::CONTENT_LENGTH, "5"), true),
            (304, headers(header::CONTENT_LENGTH, "5"), true),
            (304, headers(header::TRANSFER_ENCODING, "chunked"), true),
            (200, headers(header::CONTENT_LENGTH, "5"), false),
        ] {
            assert_eq!(announces_forbidden_body(StatusCode::from_u16(status).unwrap(), &headers), expected, "{status}");
        }
    }
}
