//! Defines the result of waiting for a request on an HTTP/1 connection.

use crate::base::memory_budget::{BufferLimit, MemoryShare};
use crate::base::problem::{Code, Problem};
use crate::server::http1_head::RequestHead;

/// The result of waiting for a request.
#[allow(clippy::large_enum_variant)] // nearly all are heads; a box would cost more than it saves
pub(crate) enum NextHead {
    /// A complete head. Its bytes stay in the buffer until `consume`.
    Head(RequestHead),
    /// No further request: the client closed the connection, or Weir is shutting down.
    Closed,
    /// No byte of a request within the idle timeout.
    IdleTimeout,
    /// The head was not complete within the header timeout.
    HeaderTimeout,
    /// The bytes are not a valid request.
    Malformed(Box<Problem>),
    /// The head is over the limit of this name.
    TooLarge(&'static str, Box<Problem>),
    /// There is no memory for a long head.
    NoMemory(BufferLimit),
}

/// Returns the share from which the memory of long heads is reserved while they are read. `None` for a listener that
/// reserves nothing.
pub(crate) type HeadShare<'s> = &'s (dyn Fn() -> Option<MemoryShare> + Sync);

/// How Weir ends a connection on which it read no further request.
pub(crate) struct ConnectionEnd {
    /// The metric's `reason` label.
    pub reason: &'static str,
    /// The size limit that is exceeded.
    pub limit: Option<&'static str>,
    /// The problem that the client gets.
    pub problem: Option<Box<Problem>>,
    /// The client may still be sending.
    pub unread: bool,
}

impl NextHead {
    /// Returns the head, or how the connection ends; `None` if there is nothing to do.
    pub(crate) fn into_head(self) -> Result<RequestHead, Option<ConnectionEnd>> {
        let (reason, limit, problem) = match self {
            NextHead::Head(head) => return Ok(head),
            NextHead::Closed => return Err(None),
            NextHead::IdleTimeout => ("idle_timeout", None, None),
            NextHead::HeaderTimeout => {
                let detail = "the request head was not complete within limits.header_timeout";
                ("header_timeout", None, Some(Box::new(Problem::new(Code::RequestTimeout, detail))))
            }
            NextHead::Malformed(problem) => ("malformed", None, Some(problem)),
            NextHead::TooLarge(limit, problem) => ("malformed", Some(limit), Some(problem)),
            NextHead::NoMemory(limit) => ("overloaded", None, Some(limit.into())),
        };
        Err(Some(ConnectionEnd { reason, limit, problem, unread: matches!(reason, "malformed" | "overloaded") }))
    }
}
