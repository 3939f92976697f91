//! Decodes the `native` section of a provider file: how Weir serves the provider's own API.

use super::decode::{self, DecodeContext, Fields};
use super::faults::Located;
use super::tree::Node;
use std::time::Duration;

/// How Weir serves a provider's own API.
#[derive(Debug, Clone)]
pub struct Native {
    /// Hosts (`name` or `name:port`, in lower case) under which the provider's paths have no prefix.
    pub hosts: Vec<Located<String>>,
    /// The longest silence of a stream, in each direction.
    pub idle_timeout: Duration,
    /// The format of Weir's own errors; `None` if they are problem details.
    pub errors: Option<ErrorFormat>,
}

/// The format of a provider's errors.
#[derive(Debug, Clone)]
pub struct ErrorFormat {
    /// JSON with `{variables}` in its strings.
    pub body: Located<String>,
    /// The variables that the file defines, each with its values.
    pub words: Vec<(Located<String>, WordByCode)>,
    /// Headers that the provider's SDK reads.
    pub headers: Vec<ErrorHeader>,
}

/// The values of a variable: a problem code and the provider's word for it.
pub(crate) type WordByCode = Vec<(Located<String>, String)>;

/// A header of errors that meet all its conditions.
#[derive(Debug, Clone)]
pub struct ErrorHeader {
    /// The header's name.
    pub name: Located<String>,
    /// The header's value.
    pub value: Located<String>,
    /// The statuses of the errors; empty means all.
    pub status: Vec<u16>,
    /// The `Retry-After` that an error must exceed; `None` means any.
    pub retry_after_over: Option<Duration>,
}

impl Default for Native {
    fn default() -> Self {
        Self { hosts: Vec::new(), idle_timeout: Duration::from_secs(300), errors: None }
    }
}

/// Decodes the section.
pub(super) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Native> {
    let mut fields = Fields::of(node, "native", cx)?;
    let mut native = Native::default();
    if let Some(hosts) = fields.optional("hosts", cx, |node, cx| decode::list(node, cx, host)) {
        native.hosts = hosts;
    }
    if let Some(duration) = fields.optional("idle_timeout", cx, decode::positive_duration) {
        native.idle_timeout = duration;
    }
    native.errors = fields.optional("errors", cx, error_format);
    fields.end(cx);
    Some(native)
}

fn host(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    let good = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b));
    decode::parsed_text(node, cx, r"^[A-Za-z0-9.:\[\]_-]+$", |host| match good(host) {
        true => Ok(host.to_ascii_lowercase()),
        false => Err(format!("{host:?} is not a valid host; write NAME or NAME:PORT, without scheme or path")),
    })
}

fn error_format(node: &Node, cx: &mut DecodeContext<'_>) -> Option<ErrorFormat> {
    let mut fields = Fields::of(node, "errors", cx)?;
    let body = fields.required("body", cx, decode::at_text);
    let words = fields.optional("words", cx, |node, cx| {
        decode::entries(node, "words", &[], cx, |name, node, cx| {
            let words = decode::entries(node, "words", &[], cx, |code, node, cx| {
                let code = Located { value: code.name.clone(), location: code.location.clone() };
                Some((code, decode::text(node, cx)?))
            });
            // Without its values, a variable is still known.
            let words = words.unwrap_or_default();
            Some((Located { value: name.name.clone(), location: name.location.clone() }, words))
        })
    });
    let is_faulty = words.is_none() && fields.is_written("words");
    let headers = fields.optional("headers", cx, |node, cx| decode::list(node, cx, header));
    fields.end(cx);
    if is_faulty {
        return None;
    }
    Some(ErrorFormat { body: body?, words: words.unwrap_or_default(), headers: headers.unwrap_or_default() })
}

fn header(node: &Node, cx: &mut DecodeContext<'_>) -> Option<ErrorHeader> {
    let mut fields = Fields::of(node, "a header", cx)?;
    let name = fields.required("name", cx, decode::at_text);
    let value = fields.required("value", cx, decode::at_text);
    let status = fields.optional("status", cx, |node, cx| decode::list(node, cx, decode::error_status));
    let retry_after_over = fields.optional("retry_after_over", cx, decode::duration);
    fields.end(cx);
    Some(ErrorHeader { name: name?, value: value?, status: status.unwrap_or_default(), retry_after_over })
}
