//! Decodes the section `compression` of `weir.yaml`.

use super::decode::{self, DecodeContext, Fields};
use super::tree::Node;
use crate::base::content_coding::ContentCoding;

/// Which responses of Weir's own are compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// The length from which a body is compressed, in bytes.
    pub min_size: usize,
    /// The content codings, the preferred one first.
    pub encodings: Vec<ContentCoding>,
}

impl Default for Compression {
    fn default() -> Self {
        Self { min_size: 1 << 10, encodings: ContentCoding::ALL.to_vec() }
    }
}

/// Reads `on`, `off`, or a mapping.
pub(super) fn compression(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Option<Compression>> {
    let settings = |node: &Node, cx: &mut DecodeContext<'_>| {
        let mut fields = Fields::of(node, "compression", cx)?;
        let mut all = Compression::default();
        if let Some(size) = fields.optional("min_size", cx, decode::size) {
            all.min_size = usize::try_from(size).unwrap_or(usize::MAX);
        }
        if let Some(encodings) = fields.optional("encodings", cx, encodings) {
            all.encodings = encodings;
        }
        fields.end(cx);
        Some(Some(all))
    };
    decode::mapping_or(node, cx, settings, |node, cx| decode::boolean(node, cx).map(|on| on.then(Compression::default)))
}

fn encodings(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Vec<ContentCoding>> {
    let words = ContentCoding::ALL.map(|coding| (coding.as_str(), coding));
    let mut all: Vec<ContentCoding> = Vec::new();
    let mut written = 0;
    decode::list(node, cx, |node, cx| {
        written += 1;
        let coding = decode::one_of(node, cx, "encoding", &words)?;
        if all.contains(&coding) {
            cx.faults.add(&node.location, format!("{:?} is there twice; write each encoding once", coding.as_str()));
        } else {
            all.push(coding);
        }
        Some(())
    })?;
    if written == 0 {
        cx.faults
            .add(&node.location, "encodings is empty; write at least one of zstd, br and gzip, or compression: off");
    }
    (!all.is_empty()).then_some(all)
}
