//! A provider's `native:` as written: how its own API is offered to its own SDKs.

use super::decode::{self, Cx, Fields};
use super::faults::At;
use super::tree::Node;
use std::time::Duration;

/// How a provider's own API is mounted.
#[derive(Debug, Clone)]
pub struct Native {
    /// Hosts (`name` or `name:port`) under which its paths stand without a prefix, lower case.
    pub hosts: Vec<At<String>>,
    /// How long a stream may be silent, either way.
    pub idle_timeout: Duration,
    /// How Weir's own errors look; `None`: as problems.
    pub errors: Option<Shape>,
}

/// The shape of a provider's errors.
#[derive(Debug, Clone)]
pub struct Shape {
    /// JSON with `{variables}` in its strings.
    pub body: At<String>,
    /// Variables of its own: by our code, its words.
    pub words: Vec<(At<String>, Words)>,
    /// Headers that its SDK reads.
    pub headers: Vec<ShapeHeader>,
}

/// A variable's words, by the code of ours that each stands for.
pub type Words = Vec<(At<String>, String)>;

/// A header on errors that meet all of its conditions.
#[derive(Debug, Clone)]
pub struct ShapeHeader {
    /// Its name.
    pub name: At<String>,
    /// Its value.
    pub value: At<String>,
    /// Statuses it is for; none: all.
    pub status: Vec<u16>,
    /// Only where `Retry-After` is longer.
    pub retry_after_over: Option<Duration>,
}

impl Default for Native {
    fn default() -> Self {
        Self { hosts: Vec::new(), idle_timeout: Duration::from_secs(300), errors: None }
    }
}

/// Reads `native:`.
pub(super) fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Native> {
    let mut fields = Fields::of(node, "native", cx)?;
    let mut native = Native::default();
    if let Some(hosts) = fields.optional("hosts", cx, |node, cx| decode::list(node, cx, host)) {
        native.hosts = hosts;
    }
    if let Some(duration) = fields.optional("idle_timeout", cx, decode::positive_duration) {
        native.idle_timeout = duration;
    }
    native.errors = fields.optional("errors", cx, shape);
    fields.end(cx);
    Some(native)
}

fn host(node: &Node, cx: &mut Cx<'_>) -> Option<At<String>> {
    let good = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b));
    decode::shaped(node, cx, r"^[A-Za-z0-9.:\[\]_-]+$", |host| match good(host) {
        true => Ok(host.to_ascii_lowercase()),
        false => Err(format!("{host:?} is not a host; write NAME or NAME:PORT, without scheme or path")),
    })
}

fn shape(node: &Node, cx: &mut Cx<'_>) -> Option<Shape> {
    let mut fields = Fields::of(node, "errors", cx)?;
    let body = fields.required("body", cx, decode::at_text);
    let words = fields.optional("words", cx, |node, cx| {
        decode::each(node, "words", &[], cx, |name, node, cx| {
            let words = decode::each(node, "words", &[], cx, |code, node, cx| {
                let code = At { value: code.name.clone(), place: code.place.clone() };
                Some((code, decode::text(node, cx)?))
            });
            Some((At { value: name.name.clone(), place: name.place.clone() }, words?))
        })
    });
    let headers = fields.optional("headers", cx, |node, cx| decode::list(node, cx, header));
    fields.end(cx);
    Some(Shape { body: body?, words: words.unwrap_or_default(), headers: headers.unwrap_or_default() })
}

fn header(node: &Node, cx: &mut Cx<'_>) -> Option<ShapeHeader> {
    let mut fields = Fields::of(node, "a header", cx)?;
    let name = fields.required("name", cx, decode::at_text);
    let value = fields.required("value", cx, decode::at_text);
    let status = fields.optional("status", cx, |node, cx| decode::list(node, cx, decode::status));
    let retry_after_over = fields.optional("retry_after_over", cx, decode::duration);
    fields.end(cx);
    Some(ShapeHeader { name: name?, value: value?, status: status.unwrap_or_default(), retry_after_over })
}
