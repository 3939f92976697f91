//! Serializes HTTP/1 responses: status line, headers and chunks.
//!
//! Does no IO.

use crate::base::model::Time;
use crate::base::problem::Problem;
use crate::base::request_reply::Response;
use bytes::Bytes;
use http::{StatusCode, Version};
use std::io::{IoSlice, Write};
use std::time::Duration;

/// Appends the head of a response to `out`. `keep_alive` says whether the client may send another request.
pub(crate) fn write_head(
    out: &mut Vec<u8>,
    version: Version,
    response: &Response,
    keep_alive: bool,
    date: &mut DateHeader,
    now: Time,
) {
    let status = StatusCode::from_u16(response.status).unwrap_or_default();
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(response.headers.as_bytes());
    write_field(out, "date", date.at(now));
    match (keep_alive, version) {
        (false, _) => write_field(out, "connection", b"close"),
        (true, Version::HTTP_10) => write_field(out, "connection", b"keep-alive"),
        (true, _) => {}
    }
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends the size of a chunk to `out`. Its data and [`CHUNK_END`] follow (RFC 9112, section 7.1).
pub(crate) fn write_chunk_size(out: &mut Vec<u8>, length: usize) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{length:x}\r\n");
}

/// The end of a chunk's data.
pub(crate) const CHUNK_END: &[u8] = b"\r\n";

/// The end of a chunked body without trailers.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The most parts that one write sends.
const MAX_SLICES: usize = 16;

/// The bytes of a head and of the parts of a body that are not written yet.
pub(crate) struct Unwritten<'b> {
    /// The rest of the head, or of the part that a write has begun.
    begun: &'b [u8],
    /// The parts after it.
    rest: &'b [Bytes],
}

impl<'b> Unwritten<'b> {
    /// Returns all bytes of a head and a body.
    #[must_use]
    pub(crate) fn new(head: &'b [u8], body: &'b [Bytes]) -> Self {
        let mut unwritten = Self { begun: head, rest: body };
        unwritten.advance(0);
        unwritten
    }

    /// Returns whether all bytes are written.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }

    /// Returns the next bytes, at most `limit`, and how many slices contain them.
    #[must_use]
    pub(crate) fn slices(&self, mut limit: usize) -> ([IoSlice<'b>; MAX_SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let parts = std::iter::once(self.begun).chain(self.rest.iter().map(|part| &**part));
        let mut count = 0;
        for (part, slice) in parts.zip(&mut slices) {
            let part = &part[..part.len().min(limit)];
            limit -= part.len();
            *slice = IoSlice::new(part);
            count += 1;
            if limit == 0 {
                break;
            }
        }
        (slices, count)
    }

    /// Moves past written bytes.
    pub(crate) fn advance(&mut self, mut written: usize) {
        loop {
            let here = written.min(self.begun.len());
            (self.begun, written) = (&self.begun[here..], written - here);
            match self.rest.split_first() {
                Some((next, rest)) if self.begun.is_empty() => (self.begun, self.rest) = (next, rest),
                _ => return,
            }
        }
    }
}

/// Returns a complete response with a problem, for a connection on which Weir read no request. The connection closes
/// after it.
#[must_use]
pub(crate) fn of_problem(problem: &Problem) -> Vec<u8> {
    let body = problem.to_value(None).to_string();
    let (status, title, length) = (problem.code.status(), problem.code.title(), body.len());
    let retry_after = problem.retry_after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
    let allow = problem.allow.map_or_else(String::new, |methods| format!("Allow: {methods}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\n{retry_after}{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}

/// The value of the `Date` header, formatted once a second.
#[derive(Default)]
pub(crate) struct DateHeader {
    second: i64,
    text: String,
}

impl DateHeader {
    fn at(&mut self, now: Time) -> &[u8] {
        let second = now.0.div_euclid(1000);
        if second != self.second || self.text.is_empty() {
            let since_epoch = Duration::from_secs(u64::try_from(second).unwrap_or_default());
            self.text = httpdate::fmt_http_date(std::time::UNIX_EPOCH + since_epoch);
            self.second = second;
        }
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_write_continues_at_the_first_unwritten_byte() {
        let (head, body) = (b"head".as_slice(), [Bytes::from_static(b"be"), Bytes::new(), Bytes::from_static(b"hind")]);
        let read = |unwritten: &Unwritten<'_>| {
            let (slices, count) = unwritten.slices(usize::MAX);
            slices[..count].iter().flat_map(|part| part.to_vec()).collect::<Vec<u8>>()
        };
        for first in 0..=10 {
            for second in 0..=10 - first {
                let mut unwritten = Unwritten::new(head, &body);
                unwritten.advance(first);
                unwritten.advance(second);
                assert_eq!(read(&unwritten), b"headbehind"[first + second..]);
                assert_eq!(unwritten.is_empty(), first + second == 10);
                for limit in 1..=12 {
                    let (slices, count) = unwritten.slices(limit);
                    let cut: Vec<u8> = slices[..count].iter().flat_map(|part| part.to_vec()).collect();
                    let rest = &b"headbehind"[first + second..];
                    assert_eq!(cut, rest[..rest.len().min(limit)], "at most {limit} bytes");
                }
            }
        }
        assert!(Unwritten::new(b"", &[Bytes::new(), Bytes::new()]).is_empty());
        let many = vec![Bytes::from_static(b"ab"); 40];
        let (mut unwritten, mut sent) = (Unwritten::new(b"", &many), Vec::new());
        while !unwritten.is_empty() {
            let next = read(&unwritten);
            let written = next.len().min(7);
            sent.extend_from_slice(&next[..written]);
            unwritten.advance(written);
        }
        assert_eq!(sent, many.concat());
    }
}
