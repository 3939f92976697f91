//! A provider's `upstream:` as written: deadlines, limits, quota and breaker.

use super::decode::{self, Cx, Fields};
use super::tree::Node;
use std::num::NonZeroU32;
use std::time::Duration;

/// How a provider is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// TCP and TLS together.
    pub connect_timeout: Duration,
    /// In all, retries included.
    pub timeout: Duration,
    /// The longest body accepted, in bytes.
    pub max_body: u64,
    /// Retries of a request that failed before any of the answer came.
    pub retries: u32,
    /// The provider's quota.
    pub capacity: Option<Capacity>,
    /// When to stop asking.
    pub breaker: Option<Breaker>,
}

/// A provider's quota, for one credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Requests in `per`.
    pub requests: NonZeroU32,
    /// The time in which they are earned.
    pub per: Duration,
    /// How many at once after a pause.
    pub burst: NonZeroU32,
    /// How many at the same time.
    pub concurrent: u32,
}

/// Opens after so many consecutive failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// Consecutive failures that open it.
    pub failures: NonZeroU32,
    /// How long it stays open before one request may try.
    pub open_for: Duration,
}

impl Default for Upstream {
    fn default() -> Self {
        Upstream {
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            max_body: 4 << 20,
            retries: 1,
            capacity: None,
            breaker: None,
        }
    }
}

/// Reads `upstream:`.
pub(super) fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Upstream> {
    let mut fields = Fields::of(node, "upstream", cx)?;
    let mut all = Upstream::default();
    if let Some(duration) = fields.optional("connect_timeout", cx, decode::positive_duration) {
        all.connect_timeout = duration;
    }
    if let Some(duration) = fields.optional("timeout", cx, decode::positive_duration) {
        all.timeout = duration;
    }
    if let Some(size) = fields.optional("max_body", cx, decode::size) {
        all.max_body = size;
    }
    if let Some(retries) = fields.optional("retries", cx, |node, cx| decode::whole(node, cx, 0)) {
        all.retries = u32::try_from(retries).unwrap_or(u32::MAX);
    }
    all.capacity = fields.optional("capacity", cx, capacity);
    all.breaker = fields.optional("breaker", cx, |node, cx| {
        let mut fields = Fields::of(node, "breaker", cx)?;
        let failures = fields.required("failures", cx, decode::positive);
        let open_for = fields.required("open_for", cx, decode::positive_duration);
        fields.end(cx);
        Some(Breaker { failures: failures?, open_for: open_for? })
    });
    fields.end(cx);
    Some(all)
}

fn capacity(node: &Node, cx: &mut Cx<'_>) -> Option<Capacity> {
    let mut fields = Fields::of(node, "capacity", cx)?;
    let requests = fields.required("requests", cx, decode::positive);
    let per = fields.required("per", cx, decode::positive_duration);
    let burst = fields.optional("burst", cx, decode::positive);
    let concurrent = fields.optional("concurrent", cx, decode::positive);
    fields.end(cx);
    let (requests, per) = (requests?, per?);
    let burst = decode::burst(&node.place, requests, per, burst.unwrap_or(requests), cx);
    Some(Capacity { requests, per, burst, concurrent: concurrent.map_or(64, NonZeroU32::get) })
}
