//! Decodes the `headers` section of a provider file: the request headers of Weir's reads.

use super::decode::{self, DecodeContext, Fields};
use super::faults::Located;
use super::tree::Node;

/// The headers of the reads that Weir sends to a provider, besides its own.
#[derive(Debug, Clone, Default)]
pub struct ReadHeaders {
    /// Headers with a fixed value.
    pub fixed: Vec<(Located<String>, Located<String>)>,
    /// Headers of a client's native read that are part of the question: they are sent, and part of the cache key.
    pub key: Vec<Located<String>>,
    /// Headers of a client's native read that are sent, but not part of the cache key.
    pub pass: Vec<Located<String>>,
}

/// Decodes the section.
pub(super) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<ReadHeaders> {
    let mut fields = Fields::of(node, "headers", cx)?;
    let fixed = fields.optional("fixed", cx, |node, cx| {
        decode::entries(node, "fixed", &[], cx, |name, node, cx| {
            let name = Located { value: name.name.clone(), location: name.location.clone() };
            Some((name, decode::at_text(node, cx)?))
        })
    });
    let mut names = |key| fields.optional(key, cx, |node, cx| decode::list(node, cx, decode::at_text));
    let (key, pass) = (names("key"), names("pass"));
    fields.end(cx);
    Some(ReadHeaders { fixed: fixed.unwrap_or_default(), key: key.unwrap_or_default(), pass: pass.unwrap_or_default() })
}
