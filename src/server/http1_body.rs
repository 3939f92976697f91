//! Decodes the body of an HTTP/1 request that Weir itself reads: a length, or chunks (RFC 9112, sections 6 and 7.1).
//!
//! Does no IO. It refuses everything that two servers could read differently.

use crate::base::request_headers::text;
use crate::server::http1_head::RequestHead;

/// The longest line with a chunk's size, and the longest trailer section, in bytes.
const MAX_LINE: usize = 256;

/// Why a body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// It is longer than the limit.
    TooLarge,
    /// It is not well framed.
    Invalid,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// So many bytes of a body with a length.
    Rest(u64),
    /// The line with a chunk's size.
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// The empty line after the last chunk. Trailers are refused: nothing would read them.
    End,
    /// Nothing: the body is complete.
    Nothing,
}

/// A body that is being received.
pub(crate) struct BodyDecoder {
    expected: Expected,
    limit: u64,
    body: Vec<u8>,
}

impl BodyDecoder {
    /// Starts the body that belongs to `head`, with at most `limit` bytes.
    ///
    /// # Errors
    /// The announced length is over the limit.
    pub(crate) fn new(head: &RequestHead, limit: u64) -> Result<Self, BodyError> {
        let length = head.request.headers.get("content-length").and_then(text).and_then(|text| text.parse().ok());
        let expected = match (head.has_body, length) {
            (false, _) => Expected::Nothing,
            (true, Some(length)) if length > limit => return Err(BodyError::TooLarge),
            (true, Some(length)) => Expected::Rest(length),
            (true, None) => Expected::Size,
        };
        Ok(Self { expected, limit, body: Vec::new() })
    }

    /// Returns whether the body is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.expected == Expected::Nothing
    }

    /// Returns the body.
    pub(crate) fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Takes bytes from the front of `bytes`. Returns how many it took; the others are not complete yet, or belong to
    /// the next request.
    ///
    /// # Errors
    /// The body is too long, or not well framed.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            let line = |max: usize| match rest.windows(2).position(|two| two == b"\r\n") {
                Some(end) if end <= max => Ok(Some(&rest[..end])),
                None if rest.len() <= max => Ok(None),
                _ => Err(BodyError::Invalid),
            };
            match self.expected {
                Expected::Nothing => return Ok(taken),
                Expected::Rest(left) | Expected::Chunk(left) => {
                    let part = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if part == 0 {
                        return Ok(taken);
                    }
                    self.body.extend_from_slice(&rest[..part]);
                    taken += part;
                    let left = left - part as u64;
                    self.expected = match self.expected {
                        Expected::Rest(_) if left == 0 => Expected::Nothing,
                        Expected::Rest(_) => Expected::Rest(left),
                        _ if left == 0 => Expected::ChunkEnd,
                        _ => Expected::Chunk(left),
                    };
                }
                Expected::Size => {
                    let Some(line) = line(MAX_LINE)? else { return Ok(taken) };
                    taken += line.len() + 2;
                    let size = chunk_size(line).ok_or(BodyError::Invalid)?;
                    if (self.body.len() as u64).saturating_add(size) > self.limit {
                        return Err(BodyError::TooLarge);
                    }
                    self.expected = if size == 0 { Expected::End } else { Expected::Chunk(size) };
                }
                Expected::ChunkEnd | Expected::End => {
                    // At most the first byte of the line end may be there already.
                    if line(1)?.map(<[u8]>::len).unwrap_or_default() > 0 || rest.first().is_some_and(|b| *b != b'\r') {
                        return Err(BodyError::Invalid);
                    }
                    if rest.len() < 2 {
                        return Ok(taken);
                    }
                    taken += 2;
                    self.expected = if self.expected == Expected::End { Expected::Nothing } else { Expected::Size };
                }
            }
        }
    }
}

/// Returns the size of a chunk: 1 to 8 hexadecimal digits, and extensions, which are ignored.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extensions) = line.split_at(digits);
    let visible = |b: &u8| *b == b'\t' || (b' '..0x7f).contains(b);
    if !(1..=8).contains(&digits.len()) || !extensions.iter().all(visible) {
        return None;
    }
    if !extensions.is_empty() && extensions.trim_ascii_start().first() != Some(&b';') {
        return None;
    }
    u64::from_str_radix(text(digits)?, 16).ok()
}

/// Returns the end of the request in `received`, which begins with `head`. It is the end of `received` if the body is not
/// complete yet.
pub(crate) fn end_of_request(head: &RequestHead, received: &[u8]) -> usize {
    let body = received.get(head.length..).unwrap_or_default();
    let end = BodyDecoder::new(head, u64::MAX).and_then(|mut decoder| {
        let taken = decoder.take(body)?;
        Ok(decoder.is_complete().then_some(head.length + taken))
    });
    end.ok().flatten().unwrap_or(received.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http1_head;

    /// Decodes a body that arrives in pieces of `piece` bytes. Returns it, and what follows it.
    fn decode(fields: &str, body: &str, piece: usize) -> Result<(String, String), BodyError> {
        let text = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        let head = http1_head::parse(text.as_bytes(), None).unwrap().unwrap();
        let mut decoder = BodyDecoder::new(&head, 10)?;
        let (mut pending, mut received) = (Vec::new(), body.as_bytes().chunks(piece));
        while !decoder.is_complete() {
            pending.extend_from_slice(received.next().expect("the body is complete"));
            let taken = decoder.take(&pending)?;
            pending.drain(..taken);
        }
        pending.extend(received.flatten());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok((text(decoder.into_body()), text(pending)))
    }

    #[test]
    fn a_body_ends_where_its_framing_says_so_however_it_is_cut() {
        let chunked = "Transfer-Encoding: chunked";
        for piece in [1, 2, 3, 100] {
            for (fields, sent, body) in [
                ("Content-Length: 5", "helloNEXT", "hello"),
                ("Content-Length: 10", "helloworldNEXT", "helloworld"),
                (chunked, "5\r\nhello\r\n0\r\n\r\nNEXT", "hello"),
                (chunked, "1;a=b\r\nh\r\n04\r\nello\r\n0000\r\n\r\nNEXT", "hello"),
                (chunked, "A\r\nhelloworld\r\n0\r\n\r\nNEXT", "helloworld"),
                (chunked, "0\r\n\r\nNEXT", ""),
            ] {
                let decoded = decode(fields, sent, piece);
                assert_eq!(decoded, Ok((body.to_owned(), "NEXT".to_owned())), "{fields} {sent:?} {piece}");
            }
            for sent in [
                "\r\n\r\n",
                ";\r\n",
                "x\r\n",
                "5 hello\r\n",
                "5\r\nhelloX0\r\n\r\n",
                "5\r\nhello0\r\n\r\n",
                "0\r\nT: x\r\n\r\n",
                "5;a\nb\r\nhello\r\n0\r\n\r\n",
                "-1\r\n",
                "0x1\r\n",
                "000000001\r\n",
            ] {
                assert_eq!(decode(chunked, sent, piece), Err(BodyError::Invalid), "{sent:?} {piece}");
            }
            assert_eq!(decode(chunked, "6\r\nhellow\r\n5\r\n", piece), Err(BodyError::TooLarge));
            assert_eq!(decode("Content-Length: 11", "", piece), Err(BodyError::TooLarge));
        }
        let long = format!("1;{}", "x".repeat(400));
        assert_eq!(decode(chunked, &long, 1), Err(BodyError::Invalid));
    }
}
