//! Requests and answers as the rooms see them: plain values, without Pingora.
//!
//! A room of its own so that the line can be read and tested without a socket. It must not parse,
//! decide or do IO.

use crate::headers::Headers;
use crate::lines::Lines;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// A client's request, its body left aside: no route of ours takes one.
#[derive(Clone)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: http::Method,
    /// HTTP's.
    pub version: http::Version,
    /// The path as sent, still percent-encoded.
    pub path: String,
    /// The query as sent, without the `?`.
    pub query: String,
    /// All headers as sent.
    pub headers: Headers,
    /// The connection's other end.
    pub peer: Option<IpAddr>,
}

impl Request {
    /// A header's value where it is text and stands there once or more: the first. The name is given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.text(name)
    }
}

/// A body whose bytes may stand apart, so that what is stored need not be copied.
#[derive(Clone)]
pub enum Body {
    /// In one piece.
    Whole(Bytes),
    /// What is stored, with something of this answer's own before and behind it.
    Parts(Box<[Bytes; 3]>),
}

impl Body {
    /// One of these parts.
    #[must_use]
    pub fn of(parts: [Bytes; 3]) -> Self {
        Self::Parts(Box::new(parts))
    }

    /// Its parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        match self {
            Body::Whole(whole) => std::slice::from_ref(whole),
            Body::Parts(parts) => &**parts,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts().iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(Bytes::is_empty)
    }

    /// In one piece; copied, where it is not.
    #[must_use]
    pub fn whole(&self) -> Bytes {
        match self {
            Body::Whole(whole) => whole.clone(),
            Body::Parts(parts) => parts.concat().into(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Body::Whole(Bytes::new())
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Body::Whole(whole)
    }
}

/// What the client gets.
#[derive(Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers in the order in which they are sent, `Content-Length` among them.
    pub headers: Lines,
    /// The body; empty for 304. For `HEAD` it is set but not sent.
    pub body: Body,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some clients are shown secrets: only the body's length may be printed.
        write!(f, "Answer {{ status: {}, body: {} bytes }}", self.status, self.body.len())
    }
}

/// A question to a provider, complete but for where the provider is.
#[derive(Clone, Default)]
pub struct ProviderRequest {
    /// Path and query below the provider's base URL, percent-encoded.
    pub path_and_query: String,
    /// The credential's header, if there is one. Its value is marked sensitive.
    pub credential: Option<(HeaderName, HeaderValue)>,
    /// Conditions under which what is known still holds (RFC 9110, section 13.1), and what else is told.
    pub conditions: Vec<(HeaderName, HeaderValue)>,
    /// A form to POST (`application/x-www-form-urlencoded`); else it is a GET.
    pub form: Option<Bytes>,
}

impl fmt::Debug for ProviderRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderRequest").field("path_and_query", &self.path_and_query).finish_non_exhaustive()
    }
}

/// What a provider answered, whole.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderReply {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, at most the configured `max_body`.
    pub body: Bytes,
}

impl fmt::Debug for ProviderReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bodies hold secrets: only their length may be printed.
        write!(f, "ProviderReply {{ status: {}, body: {} bytes }}", self.status, self.body.len())
    }
}

/// What a call to a provider took, answered or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// How often it was sent.
    pub tries: u32,
    /// How long it waited for its turn.
    pub turn: Duration,
    /// From its turn to the end of it all, a token fetched for it included.
    pub answer: Duration,
}

/// Why there is no answer from a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFailure {
    /// The kind, which is also the metric's `status` label.
    pub kind: FailureKind,
    /// For people; holds no secret.
    pub detail: String,
}

/// The kinds of failure before an answer was complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection: refused, unreachable, name not resolved.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// A deadline passed, the connect deadline or the total one.
    Timeout,
    /// The connection broke before or inside the answer.
    Reset,
    /// The body is over `max_body`.
    TooLarge,
    /// Weir holds as many bytes of answers under way as it may.
    Overloaded,
    /// The answer is not HTTP.
    Malformed,
}

impl FailureKind {
    /// The metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Connect => "connect",
            FailureKind::Tls => "tls",
            FailureKind::Timeout => "timeout",
            FailureKind::Reset => "reset",
            FailureKind::TooLarge => "too_large",
            FailureKind::Overloaded => "overloaded",
            FailureKind::Malformed => "malformed",
        }
    }
}
