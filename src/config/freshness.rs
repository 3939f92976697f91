//! Decodes the `freshness` section of a provider file: how long its responses stay fresh.

use super::decode::{self, DecodeContext, Fields};
use super::tree::Node;
use crate::base::model::Status;
use crate::base::typo::unknown;
use std::time::Duration;

/// Lifetimes of a provider's responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// The lifetime of a session without an expiry, or with one in the past.
    pub default: Duration,
    /// The longest lifetime of a session whose expiry lies ahead.
    pub max: Duration,
    /// The lifetime of a session with this status, in place of its expiry and `max`.
    pub by_status: Vec<(Status, Duration)>,
    /// How long after its end a session can still change. During that time its lifetime is `default`.
    pub settle: Duration,
    /// The lifetime of a response that says that the agent or the session does not exist.
    pub not_found: Duration,
    /// The lifetime of a page of a list.
    pub list: Duration,
    /// How often Weir requests a watched session.
    pub watch: Duration,
    /// How long after its lifetime a response is served while Weir refreshes it.
    pub stale_while_revalidate: Duration,
    /// How long after its lifetime a response is served if the provider fails.
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

/// Decodes the section.
pub(super) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Freshness> {
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

fn by_status(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Vec<(Status, Duration)>> {
    let known = Status::ALL.map(Status::as_str);
    decode::entries(node, "by_status", &known, cx, |key, node, cx| {
        let status = Status::parse(&key.name);
        let status = status.ok_or_else(|| unknown("status", &key.name, known.into_iter()));
        let status = cx.faults.keep(&key.location, status)?;
        decode::duration(node, cx).map(|duration| (status, duration))
    })
}
