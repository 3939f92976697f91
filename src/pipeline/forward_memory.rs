//! Reserves a client's memory for what Pingora buffers of a forwarded request.

use crate::base::memory_budget::{BufferLimit, MemoryShare, Reservation};
use crate::base::request_headers::RequestHeaders;
use http::{HeaderMap, HeaderValue, Method, header};

/// The memory of a request while little of its bodies is buffered.
const REQUEST_BYTES: usize = 64 << 10;
/// The memory of a request with a long body: Pingora buffers up to twelve parts of 64 KiB.
const LONG_BODY_BYTES: usize = 864 << 10;
/// The longest body that does not need more than [`REQUEST_BYTES`], and the longest part of a stream.
const SHORT_BODY: u64 = 16 << 10;

/// The memory of one forwarded request.
pub(crate) struct ForwardMemory {
    reservation: Reservation,
    has_long_body: bool,
}

impl ForwardMemory {
    /// Reserves the memory of a request with this head.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn reserve(share: &MemoryShare, method: &Method, headers: &RequestHeaders) -> Result<Self, BufferLimit> {
        let mut memory = Self { reservation: share.reserve(REQUEST_BYTES)?, has_long_body: false };
        let length = headers.text("content-length").and_then(|length| length.parse::<u64>().ok());
        let may_have_body = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        if length.map_or(may_have_body || headers.contains("transfer-encoding"), |length| length > SHORT_BODY) {
            memory.add_long_body()?;
        }
        Ok(memory)
    }

    /// Reserves more memory if a response with this head may have a long body. An event stream has short parts.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn add_response(&mut self, headers: &HeaderMap) -> Result<(), BufferLimit> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let is_event_stream = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/event-stream");
        let streams_events = || headers.get(header::CONTENT_TYPE).is_some_and(is_event_stream);
        let may_be_long = length.map_or_else(|| !streams_events(), |length| length > SHORT_BODY);
        if may_be_long { self.add_long_body() } else { Ok(()) }
    }

    /// Reserves more memory if a part of a body is long.
    ///
    /// # Errors
    /// It would exceed the client's share.
    pub(crate) fn add_part(&mut self, length: usize) -> Result<(), BufferLimit> {
        if length as u64 > SHORT_BODY { self.add_long_body() } else { Ok(()) }
    }

    fn add_long_body(&mut self) -> Result<(), BufferLimit> {
        if !self.has_long_body {
            self.reservation.resize(LONG_BODY_BYTES)?;
            self.has_long_body = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::memory_budget::MemoryBudget;

    #[test]
    fn long_bodies_need_more_memory_than_event_streams() {
        let budget = MemoryBudget::new(1 << 30);
        let share = budget.own_share();
        let request = |method: Method, headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            ForwardMemory::reserve(&share, &method, &headers).unwrap()
        };
        for (method, headers, is_long) in [
            (Method::GET, &[][..], false),
            (Method::POST, &[("content-length", "10")], false),
            (Method::POST, &[("content-length", "16385")], true),
            (Method::POST, &[("transfer-encoding", "chunked")], true),
            (Method::POST, &[], true),
            (Method::DELETE, &[], false),
            (Method::DELETE, &[("transfer-encoding", "chunked")], true),
        ] {
            assert_eq!(request(method, headers).has_long_body, is_long, "{headers:?}");
        }
        for (headers, is_long) in [
            (&[("content-length", "16384")][..], false),
            (&[("content-length", "16385")], true),
            (&[("content-type", "text/event-stream; charset=utf-8")], false),
            (&[("content-type", "application/json")], true),
            (&[], true),
        ] {
            let mut memory = request(Method::GET, &[]);
            let headers: HeaderMap =
                headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            memory.add_response(&headers).unwrap();
            assert_eq!(memory.has_long_body, is_long, "{headers:?}");
        }
        let mut stream = request(Method::GET, &[]);
        stream.add_part(16 << 10).unwrap();
        assert_eq!(budget.used(), REQUEST_BYTES as u64);
        stream.add_part(17 << 10).unwrap();
        stream.add_part(17 << 10).unwrap();
        assert_eq!(budget.used(), LONG_BODY_BYTES as u64);
    }
}
