//! Reads the body of an HTTP/1 request: a length, or chunks (RFC 9112, sections 6 and 7.1). Does no IO.

use crate::rules::chunked::{ChunkFault, ChunkedBody};
use crate::server::http1_head::{BodyFraming, RequestHead};

/// A body, and how it ends.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// After this many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(ChunkedBody),
}

impl RequestBody {
    /// Returns the body behind a head, with its chunks in their plainest form.
    #[must_use]
    pub(crate) fn framed(head: &RequestHead) -> Self {
        Self::new(head, ChunkedBody::default())
    }

    /// Returns the body behind a head, without its framing.
    #[must_use]
    pub(crate) fn data(head: &RequestHead) -> Self {
        Self::new(head, ChunkedBody::data_only())
    }

    fn new(head: &RequestHead, chunks: ChunkedBody) -> Self {
        match head.body {
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked => Self::Chunked(chunks),
        }
    }

    /// Returns whether the body is complete.
    #[must_use]
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(body) => body.is_complete(),
        }
    }

    /// Returns how many of the next bytes are data, which is written as it is.
    #[must_use]
    pub(crate) fn plain_bytes(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(body) => body.data_left(),
        }
    }

    /// Moves past this many bytes of data. It must not be more than [`RequestBody::plain_bytes`].
    pub(crate) fn pass(&mut self, bytes: u64) {
        match self {
            Self::Length(left) => *left = left.saturating_sub(bytes),
            Self::Chunked(body) => body.pass(bytes),
        }
    }

    /// Appends the body's bytes to `out`. Returns how many of `bytes` belong to it.
    ///
    /// # Errors
    /// A chunk is invalid.
    pub(crate) fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, ChunkFault> {
        match self {
            Self::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                out.extend_from_slice(&bytes[..length]);
                *left -= length as u64;
                Ok(length)
            }
            Self::Chunked(body) => body.read(bytes, out),
        }
    }
}

/// Why a body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// It is longer than the limit.
    TooLarge,
    /// It is not well framed.
    Invalid,
}

/// Collects a body of limited length.
pub(crate) struct BodyDecoder {
    body: RequestBody,
    limit: u64,
    data: Vec<u8>,
}

impl BodyDecoder {
    /// Starts the body that belongs to `head`, with at most `limit` bytes.
    ///
    /// # Errors
    /// The announced length is over the limit.
    pub(crate) fn new(head: &RequestHead, limit: u64) -> Result<Self, BodyError> {
        let decoder = Self { body: RequestBody::data(head), limit, data: Vec::new() };
        if decoder.is_too_large() { Err(BodyError::TooLarge) } else { Ok(decoder) }
    }

    fn is_too_large(&self) -> bool {
        (self.data.len() as u64).saturating_add(self.body.plain_bytes()) > self.limit
    }

    /// Returns whether the body is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.body.is_complete()
    }

    /// Returns the body.
    pub(crate) fn into_body(self) -> Vec<u8> {
        self.data
    }

    /// Takes bytes from the front of `bytes`. Returns how many it took; the others belong to the next request.
    ///
    /// # Errors
    /// The body is too long, or not well framed.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let taken = self.body.read(bytes, &mut self.data).map_err(|_| BodyError::Invalid)?;
        if self.is_too_large() { Err(BodyError::TooLarge) } else { Ok(taken) }
    }
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
                "0\r\nT x\r\n\r\n",
                "5;a\nb\r\nhello\r\n0\r\n\r\n",
                "-1\r\n",
                "0x1\r\n",
            ] {
                assert_eq!(decode(chunked, sent, piece), Err(BodyError::Invalid), "{sent:?} {piece}");
            }
            assert_eq!(decode(chunked, "6\r\nhellow\r\n5\r\n", piece), Err(BodyError::TooLarge));
            assert_eq!(decode("Content-Length: 11", "", piece), Err(BodyError::TooLarge));
        }
        let long = format!("1;{}", "x".repeat(5000));
        assert_eq!(decode(chunked, &long, 1), Err(BodyError::Invalid));
    }
}
