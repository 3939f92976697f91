//! Decodes the `upstream` section of a provider file: timeouts, limits, quota and breaker.

use super::decode::{self, DecodeContext, Fields};
use super::tree::Node;
use std::num::NonZeroU32;
use std::time::Duration;

/// How Weir calls a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The limit for the TCP and the TLS handshake together.
    pub connect_timeout: Duration,
    /// The limit for a whole call: the wait for `capacity`, the retries and the whole response.
    pub timeout: Duration,
    /// The longest response body, in bytes.
    pub max_body: u64,
    /// The retries of a request that fails before the response begins.
    pub retries: u32,
    /// The provider's quota; `None` if it has none.
    pub capacity: Option<Capacity>,
    /// The circuit breaker; `None` disables it.
    pub breaker: Option<BreakerConfig>,
}

/// A provider's quota for one credential: a bucket of `burst` requests that refills with `requests` in `per`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Requests that the bucket gets in `per`.
    pub requests: NonZeroU32,
    /// The time in which the bucket gets `requests`.
    pub per: Duration,
    /// The size of the bucket.
    pub burst: NonZeroU32,
    /// Requests in flight at the same time.
    pub concurrent: u32,
}

/// A circuit breaker: it opens after failures without a success between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerConfig {
    /// The failures that open it. Failures of one session count once.
    pub failures: NonZeroU32,
    /// The time for which it stays open before it lets one call at a time through.
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

/// Decodes the section.
pub(super) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Upstream> {
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
    if let Some(retries) = fields.optional("retries", cx, |node, cx| decode::integer(node, cx, 0)) {
        all.retries = u32::try_from(retries).unwrap_or(u32::MAX);
    }
    all.capacity = fields.optional("capacity", cx, capacity);
    all.breaker = fields.optional("breaker", cx, |node, cx| {
        let mut fields = Fields::of(node, "breaker", cx)?;
        let failures = fields.required("failures", cx, decode::positive_integer);
        let open_for = fields.required("open_for", cx, decode::positive_duration);
        fields.end(cx);
        Some(BreakerConfig { failures: failures?, open_for: open_for? })
    });
    fields.end(cx);
    Some(all)
}

fn capacity(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Capacity> {
    let mut fields = Fields::of(node, "capacity", cx)?;
    let requests = fields.required("requests", cx, decode::positive_integer);
    let per = fields.required("per", cx, decode::positive_duration);
    let burst = fields.optional("burst", cx, decode::positive_integer);
    let concurrent = fields.optional("concurrent", cx, decode::positive_integer);
    fields.end(cx);
    let (requests, per) = (requests?, per?);
    let burst = decode::checked_burst(&node.location, requests, per, burst.unwrap_or(requests), cx);
    Some(Capacity { requests, per, burst, concurrent: concurrent.map_or(64, NonZeroU32::get) })
}
