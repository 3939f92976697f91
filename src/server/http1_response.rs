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

/// Appends a chunk of a body to `out` (RFC 9112, section 7.1).
pub(crate) fn write_chunk(out: &mut Vec<u8>, chunk: &[u8]) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{:x}\r\n", chunk.len());
    out.extend_from_slice(chunk);
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body without trailers.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Returns the bytes of `head` and then of each part of `body` that remain after `written` bytes. `body` has at most
/// three parts.
pub(crate) fn unwritten<'b>(head: &'b [u8], body: &'b [Bytes], mut written: usize) -> [IoSlice<'b>; 4] {
    let mut slices = [IoSlice::new(&[]); 4];
    let parts = std::iter::once(head).chain(body.iter().map(|part| &**part));
    for (part, slice) in parts.zip(&mut slices) {
        *slice = IoSlice::new(part.get(written..).unwrap_or_default());
        written = written.saturating_sub(part.len());
    }
    slices
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
        for written in 0..=10 {
            let rest: Vec<u8> = unwritten(head, &body, written).iter().flat_map(|part| part.to_vec()).collect();
            assert_eq!(rest, b"headbehind"[written..]);
        }
    }
}
