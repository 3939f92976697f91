//! Defines requests and responses, of clients and of providers, as plain values.
//!
//! They do not depend on Pingora, so that the pipeline can be tested without a socket. This module does not parse and
//! does no IO.

use crate::base::request_headers::RequestHeaders;
use crate::base::response_headers::ResponseHeaders;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// A client's request without its body, which no route of Weir's own API reads.
#[derive(Clone)]
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
}

impl Request {
    /// Returns the first value of a header if it is text. `name` must be in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.text(name)
    }
}

/// A response body of one or three parts. With three parts, a stored part need not be copied.
#[derive(Clone)]
pub enum Body {
    /// One part.
    Whole(Bytes),
    /// A part of this response, a stored part, and another part of this response.
    Parts(Box<[Bytes; 3]>),
}

impl Body {
    /// Creates a body of three parts.
    #[must_use]
    pub fn of(parts: [Bytes; 3]) -> Self {
        Self::Parts(Box::new(parts))
    }

    /// Returns the parts in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        match self {
            Body::Whole(whole) => std::slice::from_ref(whole),
            Body::Parts(parts) => &**parts,
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts().iter().map(Bytes::len).sum()
    }

    /// Returns the body in one piece. This copies a body of three parts.
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
    /// Path and query below the provider's base URL, percent-encoded.
    pub path_and_query: String,
    /// The header with the credential, if any. Its value is marked as sensitive.
    pub credential: Option<(HeaderName, HeaderValue)>,
    /// Conditional headers that revalidate a cache entry (RFC 9110, section 13.1), and trace headers.
    pub conditions: Vec<(HeaderName, HeaderValue)>,
    /// The form of a POST (`application/x-www-form-urlencoded`). `None` for a GET.
    pub form: Option<Bytes>,
}

impl fmt::Debug for ProviderRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderRequest").field("path_and_query", &self.path_and_query).finish_non_exhaustive()
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
