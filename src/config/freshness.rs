//! A provider's `freshness:` as written: how long its answers are good for.

use super::decode::{self, Cx, Fields};
use super::tree::Node;
use crate::model::Status;
use std::time::Duration;

/// Section 4 of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// Without an expiry that lies ahead.
    pub default: Duration,
    /// The longest a live session may be cached.
    pub max: Duration,
    /// Replaces expiry and max for that state.
    pub by_status: Vec<(Status, Duration)>,
    /// How long after its end a session may still change.
    pub settle: Duration,
    /// For an answer that there is no such thing.
    pub not_found: Duration,
    /// For a page of a list.
    pub list: Duration,
    /// How often a watched session is asked for.
    pub watch: Duration,
    /// How long past its lifetime an answer is served while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// How long past its lifetime an answer is served when the provider fails.
    pub stale_if_error: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Freshness {
            default: Duration::from_secs(30),
            max: Duration::from_secs(3600),
            by_status: Vec::new(),
            settle: Duration::from_secs(120),
            not_found: Duration::from_secs(5),
            list: Duration::from_secs(10),
            watch: Duration::from_secs(5),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        }
    }
}

/// Reads `freshness:`.
pub(super) fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Freshness> {
    let mut fields = Fields::of(node, "freshness", cx)?;
    let mut all = Freshness::default();
    for (key, target) in [
        ("default", &mut all.default),
        ("max", &mut all.max),
        ("settle", &mut all.settle),
        ("not_found", &mut all.not_found),
        ("list", &mut all.list),
        ("stale_while_revalidate", &mut all.stale_while_revalidate),
        ("stale_if_error", &mut all.stale_if_error),
    ] {
        if let Some(duration) = fields.optional(key, cx, decode::duration) {
            *target = duration;
        }
    }
    if let Some(watch) = fields.optional("watch", cx, decode::positive_duration) {
        all.watch = watch;
    }
    all.by_status = fields.optional("by_status", cx, by_status).unwrap_or_default();
    fields.end(cx);
    Some(all)
}

fn by_status(node: &Node, cx: &mut Cx<'_>) -> Option<Vec<(Status, Duration)>> {
    let known = Status::ALL.map(Status::as_str);
    decode::each(node, "by_status", &known, cx, |key, node, cx| {
        let status = Status::parse(&key.name);
        let status = status.ok_or_else(|| decode::unknown("status", &key.name, known.into_iter()));
        let status = cx.faults.keep(&key.place, status)?;
        decode::duration(node, cx).map(|duration| (status, duration))
    })
}
