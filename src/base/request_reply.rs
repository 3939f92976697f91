//! Defines requests and responses, of clients and of providers, as plain values.
//!
//! They do not depend on Pingora, so that the pipeline can be tested without a socket. This module does not parse and
//! does no IO.

use crate::base::memory_budget::Reservation;
use crate::base::request_headers::RequestHeaders;
use crate::base::response_headers::ResponseHeaders;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A client's request. Of the bodies, Weir's own API reads only forms.
#[derive(Clone, Default)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: http::Method,
    /// The HTTP version.
    pub version: http::Version,
    /// The path as sent, still percent-encoded.
    pub path: String,
    /// The query as sent, without the `?`.
    pub query: String,
    /// All headers as sent.
    pub headers: RequestHeaders,
    /// The IP address at the other end of the connection.
    pub peer: Option<IpAddr>,
    /// The form, or why it was not read. `None` if nobody has tried to read one.
    pub form: Option<Result<String, FormError>>,
}

/// Why a form was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It is longer than the limit.
    #[error("the form has more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// It did not arrive in time.
    #[error("the form was not complete within limits.body_timeout")]
    Late,
    /// Its framing is invalid, or it ended too early.
    #[error("the form is incomplete, or its framing is invalid (RFC 9112, section 7.1)")]
    Incomplete,
    /// It is not UTF-8.
    #[error("the form is not UTF-8")]
    NotUtf8,
    /// The buffers are full.
    #[error("too many forms are read at the same time")]
    NoMemory,
}

impl Request {
    /// Returns the first value of a header if it is text. `name` must be in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.text(name)
    }
}

/// The longest stored bytes that are copied into a body. Longer ones are a part of their own.
const MAX_COPIED: usize = 2048;

/// A response body of one or more parts. Stored bytes are parts of it, so that they need not be copied.
#[derive(Clone, Default)]
pub struct Body {
    parts: Parts,
    /// The memory of the parts, as far as it is reserved.
    memory: Vec<Arc<Reservation>>,
}

#[derive(Clone)]
enum Parts {
    Whole(Bytes),
    Several(Vec<Bytes>),
}

impl Default for Parts {
    fn default() -> Self {
        Parts::Whole(Bytes::new())
    }
}

impl Body {
    /// Creates a body of several parts.
    #[must_use]
    pub fn of(parts: Vec<Bytes>) -> Self {
        Self { parts: Parts::Several(parts), memory: Vec::new() }
    }

    /// Returns the parts in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        match &self.parts {
            Parts::Whole(whole) => std::slice::from_ref(whole),
            Parts::Several(parts) => parts,
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts().iter().map(Bytes::len).sum()
    }

    /// Adds memory that is reserved as long as the body exists.
    #[must_use]
    pub fn holding(mut self, memory: impl IntoIterator<Item = Arc<Reservation>>) -> Self {
        self.memory.extend(memory);
        self
    }

    /// Returns whether the memory of the body is reserved.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        !self.memory.is_empty()
    }

    /// Returns the body between two texts.
    #[must_use]
    pub fn between(self, before: Bytes, after: Bytes) -> Self {
        let parts = [&[before], self.parts(), &[after]].concat();
        Self { parts: Parts::Several(parts), memory: self.memory }
    }

    /// Returns the parts. Each keeps the memory of the body reserved as long as any slice of it exists.
    #[must_use]
    pub fn into_parts(self) -> Vec<Bytes> {
        let parts = match self.parts {
            Parts::Whole(whole) => vec![whole],
            Parts::Several(parts) => parts,
        };
        if self.memory.is_empty() {
            return parts;
        }
        let memory: Arc<[Arc<Reservation>]> = self.memory.into();
        parts.into_iter().map(|bytes| Bytes::from_owner(ReservedPart { bytes, _memory: memory.clone() })).collect()
    }
}

/// A part of a body, with the memory of the body.
struct ReservedPart {
    bytes: Bytes,
    _memory: Arc<[Arc<Reservation>]>,
}

impl AsRef<[u8]> for ReservedPart {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self { parts: Parts::Whole(whole), memory: Vec::new() }
    }
}

/// Makes a body of short texts, which are copied, and of stored bytes, which are copied only if they are short.
#[derive(Default)]
pub(crate) struct BodyBuilder {
    /// All texts.
    text: Vec<u8>,
    /// Stored bytes, each with the length of the texts before it.
    stored: Vec<(usize, Bytes)>,
}

impl BodyBuilder {
    /// Creates a builder with room for this many bytes of texts.
    #[must_use]
    pub(crate) fn with_capacity(text: usize) -> Self {
        Self { text: Vec::with_capacity(text), stored: Vec::new() }
    }

    /// Returns how many of the stored bytes are copied.
    #[must_use]
    pub(crate) fn copied(stored: &[u8]) -> usize {
        if stored.len() <= MAX_COPIED { stored.len() } else { 0 }
    }

    /// Returns the texts, to append to them.
    pub(crate) fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Appends stored bytes.
    pub(crate) fn stored(&mut self, bytes: &Bytes) {
        if Self::copied(bytes) > 0 {
            self.text.extend_from_slice(bytes);
        } else if !bytes.is_empty() {
            self.stored.push((self.text.len(), bytes.clone()));
        }
    }

    /// Returns the body.
    #[must_use]
    pub(crate) fn finish(self) -> Body {
        let text = Bytes::from(self.text);
        if self.stored.is_empty() {
            return text.into();
        }
        let (mut parts, mut from) = (Vec::with_capacity(2 * self.stored.len() + 1), 0);
        for (to, bytes) in self.stored {
            parts.extend([text.slice(from..to), bytes]);
            from = to;
        }
        parts.push(text.slice(from..));
        parts.retain(|part| !part.is_empty());
        Body::of(parts)
    }
}

/// A response to a client.
#[derive(Clone)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers in the order in which they are sent, including `Content-Length`.
    pub headers: ResponseHeaders,
    /// The body; empty for 304. For `HEAD` it is set but not sent.
    pub body: Body,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Responses for some clients contain secrets: only the body's length may be printed.
        write!(f, "Response {{ status: {}, body: {} bytes }}", self.status, self.body.len())
    }
}

/// A request to a provider, without the provider's address.
#[derive(Clone, Default)]
pub struct ProviderRequest {
    /// Path and query below the provider's base URL, percent-encoded. The query can contain the credential.
    pub path_and_query: String,
    /// The identity of the credential. Requests of different owners share no connection.
    pub owner: Arc<str>,
    /// The headers of the credential. Their values are marked as sensitive.
    pub credential: Vec<(HeaderName, HeaderValue)>,
    /// Headers that the provider's file names, conditional headers that revalidate a cache entry (RFC 9110, section 13.1), and
    /// trace headers.
    pub conditions: Vec<(HeaderName, HeaderValue)>,
    /// The form of a POST (`application/x-www-form-urlencoded`). `None` for a GET.
    pub form: Option<Bytes>,
}

impl fmt::Debug for ProviderRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        f.debug_struct("ProviderRequest").field("path", &path).finish_non_exhaustive()
    }
}

/// A provider's complete response.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderReply {
    /// HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most `max_body` bytes.
    pub body: Bytes,
}

impl fmt::Debug for ProviderReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bodies contain secrets: only their length may be printed.
        write!(f, "ProviderReply {{ status: {}, body: {} bytes }}", self.status, self.body.len())
    }
}

/// Attempts and times of a call to a provider, successful or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallStats {
    /// The number of times the request was sent.
    pub tries: u32,
    /// The time in the provider's queue.
    pub queue_time: Duration,
    /// The time from the end of the queue to the end of the call, including a token request.
    pub response_time: Duration,
}

/// A call to a provider that failed before its response was complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFailure {
    /// The kind, which is also the metric's `status` label.
    pub kind: FailureKind,
    /// What failed, for clients. Contains no secret, and does not say where the provider is.
    pub detail: String,
    /// What failed, for operators: also host, port and the system's reason. Contains no secret.
    pub cause: String,
}

impl ProviderFailure {
    /// Makes a failure with the same text for clients and operators.
    #[must_use]
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { kind, cause: detail.clone(), detail }
    }

    /// Makes the failure of a call without a connection. Clients learn only that the provider is unreachable.
    #[must_use]
    pub fn unreachable(kind: FailureKind, cause: impl Into<String>) -> Self {
        Self { kind, detail: "the provider is unreachable".to_owned(), cause: cause.into() }
    }
}

/// The kind of a failed call to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, for another reason than the next four kinds.
    Connect,
    /// The host name is not resolved. The `status` label is that of `Connect`.
    Dns,
    /// The host refused the connection. The `status` label is that of `Connect`.
    Refused,
    /// The TLS handshake failed.
    Tls,
    /// No connection within the connect deadline. The `status` label is that of `Timeout`.
    ConnectTimeout,
    /// The total deadline passed.
    Timeout,
    /// The connection broke before or within the response.
    Reset,
    /// The body is over `max_body`.
    TooLarge,
    /// The response buffer limit is reached (`overload.max_buffered`).
    Overloaded,
    /// The response is not valid HTTP.
    Malformed,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Connect,
        Self::Dns,
        Self::Refused,
        Self::Tls,
        Self::ConnectTimeout,
        Self::Timeout,
        Self::Reset,
        Self::TooLarge,
        Self::Overloaded,
        Self::Malformed,
    ];

    /// Returns whether a deadline passed.
    #[must_use]
    pub fn is_timeout(self) -> bool {
        matches!(self, FailureKind::ConnectTimeout | FailureKind::Timeout)
    }

    /// Returns the metric's `status` label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Connect | FailureKind::Dns | FailureKind::Refused => "connect",
            FailureKind::Tls => "tls",
            FailureKind::ConnectTimeout | FailureKind::Timeout => "timeout",
            FailureKind::Reset => "reset",
            FailureKind::TooLarge => "too_large",
            FailureKind::Overloaded => "overloaded",
            FailureKind::Malformed => "malformed",
        }
    }

    /// Returns the metric's `reason` label, which differs for each kind.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            FailureKind::Connect => "connect",
            FailureKind::Dns => "dns",
            FailureKind::Refused => "refused",
            FailureKind::Tls => "tls",
            FailureKind::ConnectTimeout => "connect_timeout",
            FailureKind::Timeout => "timeout",
            FailureKind::Reset => "reset",
            FailureKind::TooLarge => "too_large",
            FailureKind::Overloaded => "overloaded",
            FailureKind::Malformed => "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::memory_budget::MemoryBudget;

    #[test]
    fn a_body_is_written_from_stored_bytes_and_short_ones_are_copied() {
        let (long, short) = (Bytes::from(vec![b'x'; MAX_COPIED + 1]), Bytes::from_static(b"short"));
        let mut body = BodyBuilder::with_capacity(16);
        for stored in [&long, &short, &long, &long] {
            body.text().push(b'[');
            body.stored(stored);
        }
        body.stored(&long);
        let body = body.finish();
        let expected = [b"[", &*long, b"[short[", &*long, b"[", &*long, &*long].concat();
        assert_eq!(body.parts().concat(), expected);
        assert_eq!((body.len(), body.parts().len()), (expected.len(), 7));
        assert_eq!(body.parts()[1].as_ptr(), long.as_ptr());
        assert_eq!(BodyBuilder::default().finish().parts().concat(), b"");
        let wrapped = body.between(Bytes::from_static(b"<"), Bytes::from_static(b">"));
        assert_eq!(wrapped.parts().concat(), [b"<", &*expected, b">"].concat());
    }

    #[test]
    fn a_slice_of_a_part_keeps_the_memory_of_its_body_reserved() {
        let budget = MemoryBudget::new(10);
        let memory = Arc::new(budget.own_share().reserve(7).unwrap());
        let body = Body::of(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"defg")]).holding([memory]);
        assert!(body.is_reserved());
        let parts = body.into_parts();
        assert_eq!(parts.concat(), b"abcdefg");
        let slice = parts[1].slice(1..2);
        drop(parts);
        assert_eq!(budget.used(), 7);
        drop(slice);
        assert_eq!(budget.used(), 0);
    }
}
