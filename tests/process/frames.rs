//! Writes and reads HTTP/2 frames byte by byte, so that tests can break the rules of RFC 9113.

use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RESET: u8 = 3;
pub const GOAWAY: u8 = 7;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    // Literal field without indexing, new name (RFC 7541, section 6.2.2).
    block.push(0);
    for text in [name, value] {
        // An integer with a prefix of 7 bits (RFC 7541, section 5.1).
        let mut length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).unwrap());
        } else {
            block.push(127);
            length -= 127;
            while length >= 128 {
                block.push(u8::try_from(length % 128).unwrap() | 128);
                length /= 128;
            }
            block.push(u8::try_from(length).unwrap());
        }
        block.extend_from_slice(text.as_bytes());
    }
}

/// A HEADERS frame with a request. `flags`: 1 is END_STREAM, 4 is END_HEADERS.
pub fn request(stream: u32, method: &str, path: &str, key: &str, headers: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let headers = [&[("x-api-key", key)], headers].concat();
    request_with(stream, method, path, &headers, flags)
}

/// A request with these headers only.
pub fn request_with(stream: u32, method: &str, path: &str, headers: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let mut block = vec![0x86];
    for (name, value) in [(":method", method), (":path", path), (":authority", "a")].iter().chain(headers) {
        literal(&mut block, name, value);
    }
    frame(HEADERS, flags, stream, &block)
}

/// A GET of `/v1/providers` with this key.
pub fn get(stream: u32, key: &str) -> Vec<u8> {
    request(stream, "GET", "/v1/providers", key, &[], 5)
}

/// Opens a connection and sends the preface and empty SETTINGS.
pub fn connect(weir: &Weir) -> TcpStream {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).unwrap();
    socket
}

/// Reads frames until `found` accepts one (kind, stream, payload). Returns false if the connection ends first.
pub fn read_until(socket: &mut TcpStream, mut found: impl FnMut(u8, u32, &[u8]) -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < MAX_WAIT {
        let mut head = [0; 9];
        if socket.read_exact(&mut head).is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if socket.read_exact(&mut payload).is_err() {
            return false;
        }
        if found(head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), &payload) {
            return true;
        }
    }
    false
}

/// The kinds of the frames in `bytes`, in order.
pub fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        kinds.push(head[3]);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        bytes = rest.get(length..).unwrap_or_default();
    }
    kinds
}

/// Returns the status of the response on a stream over HTTP/2; `None` if the stream is reset.
pub fn response_status(socket: &mut TcpStream, wanted: u32) -> Option<u16> {
    let mut status = None;
    let found = read_until(socket, |kind, stream, payload| {
        assert_ne!(kind, GOAWAY, "the connection ends: {payload:?}");
        if kind == HEADERS && stream == wanted {
            // The first field of a response is `:status`, by its index in the static table, or as a literal.
            status = Some(match payload[0] {
                0x88 => 200,
                0x8c => 400,
                _ => {
                    let digits = payload.windows(3).find(|three| three.iter().all(u8::is_ascii_digit));
                    digits.map_or(1, |digits| String::from_utf8_lossy(digits).parse().unwrap())
                }
            });
        }
        stream == wanted && (kind == HEADERS || kind == RESET)
    });
    assert!(found, "no response on stream {wanted}");
    status
}
