//! Reserves a client's memory for what Pingora buffers of a forwarded request.

use crate::base::memory_budget::{BufferLimit, MemoryShare, Reservation};
use crate::base::request_headers::{RequestHeaders, SHORT_HEAD};
use http::{HeaderMap, HeaderValue, Method, header};

/// The memory of a request while little of its bodies is buffered.
const REQUEST_BYTES: usize = 64 << 10;
/// The memory of a request with a long body: Pingora buffers up to twelve parts of 64 KiB.
const LONG_BODY_BYTES: usize = 864 << 10;
/// The copies of a long head: those that Pingora parses, changes and writes. Those of a short one are part of
/// [`REQUEST_BYTES`].
const HEAD_COPIES: usize = 3;
/// The longest body that does not need more than [`REQUEST_BYTES`], and the longest part of a stream.
const SHORT_BODY: u64 = 16 << 10;

/// The memory of one forwarded request.
///
/// That of a write is reserved before it is sent, because its response cannot be refused later: the client would take a
/// write that has succeeded for one that has failed.
pub(crate) struct ForwardMemory {
    reservation: Reservation,
    /// The copies of the head that Pingora makes, if it is long.
    _head_copies: Reservation,
    /// The body of the request may be long.
    has_long_request: bool,
    /// The bytes of the request's body so far.
    received: u64,
    /// [`LONG_BODY_BYTES`] are reserved.
    is_long: bool,
}

impl ForwardMemory {
    /// Reserves the memory of a request with this head.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn reserve(share: &MemoryShare, method: &Method, headers: &RequestHeaders) -> Result<Self, BufferLimit> {
        let length = headers.text("content-length").and_then(|length| length.parse::<u64>().ok());
        // Over HTTP/2, any request may have a body without a length: see `add_request_part`.
        let may_have_body = !method.is_safe() || headers.contains("transfer-encoding");
        let has_long_request = length.map_or(may_have_body, |length| length > SHORT_BODY);
        let head = if headers.bytes() > SHORT_HEAD { HEAD_COPIES * headers.bytes() } else { 0 };
        let mut memory = Self {
            reservation: share.reserve(REQUEST_BYTES)?,
            _head_copies: share.reserve(head)?,
            has_long_request,
            received: 0,
            is_long: false,
        };
        if has_long_request || !method.is_safe() {
            memory.add_long_body()?;
        }
        Ok(memory)
    }

    /// Reserves more memory if a response with this head may have a long body, and returns what it does not need. An event
    /// stream has short parts.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn add_response(&mut self, headers: &HeaderMap) -> Result<(), BufferLimit> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let is_event_stream = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/event-stream");
        let streams_events = || headers.get(header::CONTENT_TYPE).is_some_and(is_event_stream);
        let may_be_long = length.map_or_else(|| !streams_events(), |length| length > SHORT_BODY);
        if may_be_long || self.has_long_request {
            return self.add_long_body();
        }
        self.is_long = false;
        self.reservation.resize(REQUEST_BYTES)
    }

    /// Reserves more memory once the body of the request is long. Its parts are as long as the client makes them.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn add_request_part(&mut self, length: usize) -> Result<(), BufferLimit> {
        self.received += length as u64;
        if self.received <= SHORT_BODY {
            return Ok(());
        }
        self.has_long_request = true;
        self.add_long_body()
    }

    /// Reserves more memory if a part of the response is long.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn add_part(&mut self, length: usize) -> Result<(), BufferLimit> {
        if length as u64 > SHORT_BODY { self.add_long_body() } else { Ok(()) }
    }

    fn add_long_body(&mut self) -> Result<(), BufferLimit> {
        if !self.is_long {
            self.reservation.resize(LONG_BODY_BYTES)?;
            self.is_long = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::memory_budget::MemoryBudget;
    use std::sync::Arc;

    fn memory(budget: &Arc<MemoryBudget>, method: &Method, headers: &[(&'static str, &str)]) -> ForwardMemory {
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        ForwardMemory::reserve(&budget.own_share(), method, &headers).unwrap()
    }

    fn response(headers: &[(&str, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn long_bodies_need_more_memory_than_event_streams() {
        let budget = MemoryBudget::new(1 << 30);
        for (method, headers, is_long) in [
            (Method::GET, &[][..], false),
            (Method::GET, &[("content-length", "16384")], false),
            (Method::GET, &[("content-length", "16385")], true),
            (Method::OPTIONS, &[("transfer-encoding", "chunked")], true),
        ] {
            assert_eq!(memory(&budget, &method, headers).is_long, is_long, "{headers:?}");
        }
        for (headers, is_long) in [
            (&[("content-length", "16384")][..], false),
            (&[("content-length", "16385")], true),
            (&[("content-type", "text/event-stream; charset=utf-8")], false),
            (&[("content-type", "application/json")], true),
            (&[], true),
        ] {
            let mut memory = memory(&budget, &Method::GET, &[]);
            memory.add_response(&response(headers)).unwrap();
            assert_eq!(memory.is_long, is_long, "{headers:?}");
        }
        let mut upload = memory(&budget, &Method::GET, &[]);
        for (length, is_long) in [(16 << 10, false), (0, false), (1, true), (1, true)] {
            upload.add_request_part(length).unwrap();
            assert_eq!(upload.is_long, is_long);
        }
        upload.add_response(&response(&[("content-length", "5")])).unwrap();
        assert!(upload.is_long, "a long upload may go on");
        drop(upload);
        let mut stream = memory(&budget, &Method::GET, &[]);
        stream.add_part(16 << 10).unwrap();
        assert_eq!(budget.used(), REQUEST_BYTES as u64);
        stream.add_part(17 << 10).unwrap();
        stream.add_part(17 << 10).unwrap();
        assert_eq!(budget.used(), LONG_BODY_BYTES as u64);
    }

    #[test]
    fn a_write_has_the_memory_of_its_response_before_it_is_sent() {
        let budget = MemoryBudget::new(1 << 30);
        let (events, short) =
            (response(&[("content-type", "text/event-stream")]), response(&[("content-length", "5")]));
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, "PURGE".parse().unwrap()] {
            for (headers, left) in [(&[("content-length", "10")][..], REQUEST_BYTES), (&[], LONG_BODY_BYTES)] {
                for response in [&events, &short] {
                    let mut memory = memory(&budget, &method, headers);
                    assert_eq!(budget.used(), LONG_BODY_BYTES as u64, "{method} {headers:?}");
                    memory.add_response(response).unwrap();
                    assert_eq!(budget.used(), left as u64, "{method} {headers:?}: a long upload may go on");
                }
            }
        }
        assert_eq!(budget.used(), 0);
    }
}
