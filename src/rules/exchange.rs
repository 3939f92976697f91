//! Follows the requests and responses on an HTTP/1 connection to a provider, byte by byte.
//!
//! Refuses a response whose end two readers could see in different places (RFC 9112, section 6), and knows whether the
//! connection is between two exchanges. Pingora reads the response; this module decides which bytes it gets to read.

use crate::rules::chunked::{ChunkFault, ChunkedBody};

/// The most header fields of a response.
const MAX_FIELDS: usize = 256;
/// The most bytes of the head of a response.
const MAX_HEAD: usize = 256 << 10;
/// The most interim (1xx) responses before the final one.
const MAX_INTERIM: usize = 8;

/// A response whose end is not certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum ResponseFault {
    #[error("the provider's response has no valid head")]
    Head,
    #[error("the head of the provider's response is too long")]
    LongHead,
    #[error("the provider sent more than {MAX_INTERIM} interim responses")]
    Interim,
    #[error("the provider switched protocols (101), which Weir did not request")]
    Upgrade,
    #[error("the provider's response has an invalid or a repeated Content-Length")]
    Length,
    #[error("the provider's response has a Transfer-Encoding that is not the single value chunked")]
    Coding,
    #[error("the provider's response has both Content-Length and Transfer-Encoding")]
    LengthAndCoding,
    #[error("the provider sent an invalid chunk: {0}")]
    Chunk(#[from] ChunkFault),
    #[error("the provider closed the connection before the end of the body")]
    Incomplete,
    #[error("the provider sent bytes that belong to no response")]
    Surplus,
}

/// How a message's body ends.
#[derive(Debug)]
enum Body {
    /// After this many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(ChunkedBody),
    /// With the connection.
    UntilClose,
}

/// The position in a message.
#[derive(Debug)]
enum Position {
    /// In its head, whose bytes so far these are.
    Head(Vec<u8>),
    Body(Body),
    /// Behind it.
    End,
}

impl Position {
    fn start() -> Self {
        Self::Head(Vec::new())
    }

    /// Returns whether no byte of the message was seen.
    fn is_start(&self) -> bool {
        matches!(self, Self::Head(head) if head.is_empty())
    }
}

/// The exchanges of one connection, one after the other.
#[derive(Debug)]
pub struct Exchange {
    request: Position,
    response: Position,
    /// The response to HEAD has no body.
    is_head: bool,
    interim: usize,
    /// Whether the connection can carry another exchange, as far as the heads say.
    keeps_alive: bool,
    /// Whether a response was refused.
    broken: bool,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            request: Position::start(),
            response: Position::start(),
            is_head: false,
            interim: 0,
            keeps_alive: true,
            broken: false,
        }
    }
}

impl Exchange {
    /// Records bytes that were sent to the provider. Weir writes them itself, so they are valid. The first ones after a
    /// complete exchange begin another one.
    pub fn sent(&mut self, bytes: &[u8]) {
        if self.is_reusable() && !bytes.is_empty() {
            *self = Self::default();
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match &mut self.request {
                Position::Head(head) => {
                    let Some(body) = end_of_head(head, &mut rest) else { return };
                    let head = std::mem::take(head);
                    self.begin_request(&head[..body]);
                }
                Position::Body(Body::Length(left)) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= length as u64;
                    rest = &rest[length..];
                    if *left == 0 {
                        self.request = Position::End;
                    }
                }
                Position::Body(Body::Chunked(body)) => match body.read(rest, &mut Vec::new()) {
                    Ok(length) => {
                        rest = &rest[length..];
                        if body.is_complete() {
                            self.request = Position::End;
                        }
                    }
                    Err(_) => return self.broken = true,
                },
                // Bytes behind a request whose response is not complete.
                Position::Body(Body::UntilClose) | Position::End => return self.broken = true,
            }
        }
    }

    fn begin_request(&mut self, head: &[u8]) {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        if !request.parse(head).is_ok_and(|status| status.is_complete()) {
            return self.broken = true;
        }
        self.is_head = request.method == Some("HEAD");
        self.keeps_alive &= !has_option(request.headers, b"close");
        self.request = match framing(request.headers) {
            Ok(Some(body)) => Position::Body(body),
            Ok(None) => Position::End,
            Err(_) => return self.broken = true,
        };
    }

    /// Returns how many of the provider's next bytes belong to the body as they are, so that they need no copy.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        match &self.response {
            Position::Body(Body::Length(left)) => *left,
            Position::Body(Body::Chunked(body)) => body.data_left(),
            Position::Body(Body::UntilClose) => u64::MAX,
            Position::Head(_) | Position::End => 0,
        }
    }

    /// Moves past this many bytes of the body. It must not be more than [`Exchange::plain_bytes`].
    pub fn pass(&mut self, bytes: u64) {
        match &mut self.response {
            Position::Body(Body::Length(left)) => {
                *left = left.saturating_sub(bytes);
                if *left == 0 {
                    self.response = Position::End;
                }
            }
            Position::Body(Body::Chunked(body)) => body.pass(bytes),
            _ => {}
        }
    }

    /// Reads bytes from the provider. Appends to `out` what Pingora may read: heads as they are, chunked bodies in their
    /// plainest form, and nothing behind the final response.
    ///
    /// # Errors
    /// The end of the response is not certain. The connection is of no more use.
    pub fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ResponseFault> {
        let result = self.read(bytes, out);
        self.broken |= result.is_err();
        result
    }

    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ResponseFault> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match &mut self.response {
                Position::Head(head) => {
                    if self.request.is_start() {
                        return Err(ResponseFault::Surplus);
                    }
                    let end = end_of_head(head, &mut rest);
                    if head.len() > MAX_HEAD {
                        return Err(ResponseFault::LongHead);
                    }
                    let Some(end) = end else { return Ok(()) };
                    let head = std::mem::take(head);
                    self.response = self.begin_response(&head[..end])?;
                    out.extend_from_slice(&head[..end]);
                }
                Position::Body(Body::Length(_) | Body::UntilClose) => {
                    let length = usize::try_from(self.plain_bytes()).unwrap_or(usize::MAX).min(rest.len());
                    out.extend_from_slice(&rest[..length]);
                    self.pass(length as u64);
                    rest = &rest[length..];
                }
                Position::Body(Body::Chunked(body)) => {
                    let length = body.read(rest, out)?;
                    rest = &rest[length..];
                    if body.is_complete() {
                        self.response = Position::End;
                    }
                }
                Position::End => {
                    // The response is complete and valid. Only the connection is not usable any more.
                    self.broken = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn begin_response(&mut self, head: &[u8]) -> Result<Position, ResponseFault> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        // Pingora's settings, so that both read the same head.
        let mut parser = httparse::ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        parser.allow_obsolete_multiline_headers_in_responses(true);
        match parser.parse_response(&mut response, head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            _ => return Err(ResponseFault::Head),
        }
        let (status, http10) = (response.code.unwrap_or(0), response.version == Some(0));
        let framing = framing(response.headers)?;
        if matches!(framing, Some(Body::Chunked(_))) && http10 {
            return Err(ResponseFault::Coding);
        }
        match status {
            101 => return Err(ResponseFault::Upgrade),
            100..200 => {
                self.interim += 1;
                return if self.interim > MAX_INTERIM { Err(ResponseFault::Interim) } else { Ok(Position::start()) };
            }
            200..1000 => {}
            _ => return Err(ResponseFault::Head),
        }
        let close = has_option(response.headers, b"close");
        self.keeps_alive &= !close && (!http10 || has_option(response.headers, b"keep-alive"));
        if self.is_head || matches!(status, 204 | 304) {
            return Ok(Position::End);
        }
        let has_length = response.headers.iter().any(|field| is_named(field, "content-length"));
        Ok(match framing {
            Some(body) => Position::Body(body),
            None if has_length => Position::End,
            None => {
                self.keeps_alive = false;
                Position::Body(Body::UntilClose)
            }
        })
    }

    /// Checks that the provider may close the connection here.
    ///
    /// # Errors
    /// The response is incomplete.
    pub fn closed(&self) -> Result<(), ResponseFault> {
        match &self.response {
            Position::Head(head) if head.is_empty() => Ok(()),
            Position::Body(Body::UntilClose) | Position::End => Ok(()),
            Position::Head(_) | Position::Body(_) => Err(ResponseFault::Incomplete),
        }
    }

    /// Returns whether the final response is complete.
    #[must_use]
    pub fn has_response(&self) -> bool {
        matches!(self.response, Position::End)
    }

    /// Returns whether any part of a response has arrived.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.interim > 0 || !self.response.is_start()
    }

    /// Returns whether request and response are complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!((&self.request, &self.response), (Position::End, Position::End))
    }

    /// Returns whether the connection can carry another exchange: request and response are complete, nothing follows them,
    /// and both sides keep the connection.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        self.is_complete() && self.keeps_alive && !self.broken
    }

    /// Returns whether the connection is of no more use, although its last response may be valid.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

/// Moves bytes from `rest` to `head` until it ends with an empty line. Returns its length then.
fn end_of_head(head: &mut Vec<u8>, rest: &mut &[u8]) -> Option<usize> {
    while let Some((byte, more)) = rest.split_first() {
        head.push(*byte);
        *rest = more;
        if *byte == b'\n' && (head.ends_with(b"\n\n") || head.ends_with(b"\n\r\n")) {
            return Some(head.len());
        }
        if head.len() > MAX_HEAD {
            return None;
        }
    }
    None
}

fn is_named(field: &httparse::Header<'_>, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Returns whether `Connection` has this option.
fn has_option(fields: &[httparse::Header<'_>], option: &[u8]) -> bool {
    let connection = fields.iter().filter(|field| is_named(field, "connection"));
    let mut options = connection.flat_map(|field| field.value.split(|byte| *byte == b','));
    options.any(|other| other.trim_ascii().eq_ignore_ascii_case(option))
}

/// Returns how the fields of a head frame the body. `None`: they do not, or the body is empty.
fn framing(fields: &[httparse::Header<'_>]) -> Result<Option<Body>, ResponseFault> {
    let values = |name: &'static str| fields.iter().filter(move |field| is_named(field, name)).map(|field| field.value);
    let (mut lengths, mut codings) = (values("content-length"), values("transfer-encoding"));
    let (length, coding) = (lengths.next(), codings.next());
    if let Some(coding) = coding {
        return match codings.next() {
            _ if length.is_some() => Err(ResponseFault::LengthAndCoding),
            None if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
                Ok(Some(Body::Chunked(ChunkedBody::default())))
            }
            _ => Err(ResponseFault::Coding),
        };
    }
    let Some(length) = length else { return Ok(None) };
    if lengths.next().is_some() || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(ResponseFault::Length);
    }
    let length = str::from_utf8(length).ok().and_then(|text| text.parse().ok()).ok_or(ResponseFault::Length)?;
    Ok((length > 0).then_some(Body::Length(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    /// Sends `request`, and receives `response` in parts of `step` bytes. Returns what Pingora may read, and the exchange.
    fn exchange(request: &str, response: &str, step: usize) -> Result<(String, Exchange), ResponseFault> {
        let (mut exchange, mut out) = (Exchange::default(), Vec::new());
        exchange.sent(request.as_bytes());
        for part in response.as_bytes().chunks(step) {
            exchange.received(part, &mut out)?;
        }
        Ok((String::from_utf8(out).unwrap(), exchange))
    }

    #[test]
    fn a_response_has_one_end_and_only_a_clean_connection_is_used_again() {
        let post = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let chunked_post = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let head = "HEAD / HTTP/1.1\r\n\r\n";
        let closing = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        for (request, response, readable, reusable) in [
            (GET, ok, ok, true),
            (post, ok, ok, true),
            (chunked_post, ok, ok, true),
            (&post[..post.len() - 1], ok, ok, false),
            (closing, ok, ok, false),
            (GET, &format!("{ok}!"), ok, false),
            (GET, &format!("{ok}{ok}"), ok, false),
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            (GET, "HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 204 No\r\n\r\n", true),
            (GET, "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", true),
            (
                head,
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
                true,
            ),
            (head, &format!("HTTP/1.1 200 OK\r\n\r\n{ok}"), "HTTP/1.1 200 OK\r\n\r\n", false),
            (GET, "HTTP/1.1 200 OK\r\n\r\nany", "HTTP/1.1 200 OK\r\n\r\nany", false),
            (
                GET,
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
                false,
            ),
            (
                GET,
                "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
                false,
            ),
            (
                GET,
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\nTransfer-Encoding:  Chunked \n\n02;x\r\nhi\r\n0\r\na: b\r\n\r\n",
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\nTransfer-Encoding:  Chunked \n\n2\r\nhi\r\n0\r\n\r\n",
                true,
            ),
        ] {
            for step in 1..=response.len() {
                let (text, exchange) = exchange(request, response, step).unwrap();
                assert_eq!(
                    (text.as_str(), exchange.is_reusable()),
                    (readable, reusable),
                    "{request:?} {response:?} {step}"
                );
                assert_eq!(exchange.closed(), Ok(()));
            }
        }
    }

    #[test]
    fn a_response_without_a_certain_end_is_refused() {
        use ResponseFault::*;
        let with = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n0\r\n\r\n");
        let long = with(&format!("a: {}", "x".repeat(MAX_HEAD)));
        for (response, fault) in [
            (with("Content-Length: 5, 5"), Length),
            (with("Content-Length: 5\r\nContent-Length: 5"), Length),
            (with("Content-Length: 5\r\ncontent-length: 6"), Length),
            (with("Content-Length: +5"), Length),
            (with("Content-Length: -1"), Length),
            (with("Content-Length: 5 5"), Length),
            (with("Content-Length: 0x5"), Length),
            (with("Content-Length:"), Length),
            (with("Content-Length: 99999999999999999999"), Length),
            (with("Transfer-Encoding: gzip, chunked"), Coding),
            (with("Transfer-Encoding: gzip"), Coding),
            (with("Transfer-Encoding: chunked, chunked"), Coding),
            (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Coding),
            (with("Transfer-Encoding: xchunked"), Coding),
            (with("Transfer-Encoding:"), Coding),
            (with("Transfer-Encoding: chunked\r\nContent-Length: 5"), LengthAndCoding),
            (with("Content-Length: 5\r\nTransfer-Encoding: chunked"), LengthAndCoding),
            (with("Transfer-Encoding: chunked").replace("/1.1", "/1.0"), Coding),
            (with("Transfer-Encoding: chunked").replace("0\r\n\r\n", ";\r\n\r\n"), Chunk(ChunkFault::Size)),
            (with("a\0: b"), Head),
            (with(": b"), Head),
            (with("a"), Head),
            ("HTTP/2 200 OK\r\n\r\n".to_owned(), Head),
            ("HTTP/1.1 20 OK\r\n\r\n".to_owned(), Head),
            ("HTTP/1.1 099 OK\r\n\r\n".to_owned(), Head),
            ("hello\r\n\r\n".to_owned(), Head),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned(), Upgrade),
            ("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_INTERIM + 1), Interim),
            (long, LongHead),
        ] {
            for step in [1, 3, response.len()] {
                assert_eq!(exchange(GET, &response, step).map(|_| ()), Err(fault), "{response:?}");
            }
        }
        assert_eq!(exchange("", "HTTP/1.1 200 OK\r\n\r\n", 99).map(|_| ()), Err(Surplus));
    }

    #[test]
    fn a_response_that_is_cut_is_incomplete() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        for response in [chunked, length] {
            for end in 1..response.len() {
                let (_, exchange) = exchange(GET, &response[..end], 5).unwrap();
                assert_eq!(exchange.closed(), Err(ResponseFault::Incomplete), "{end}");
                assert!(!exchange.is_reusable() && !exchange.has_response());
            }
        }
        assert_eq!(exchange(GET, "", 1).unwrap().1.closed(), Ok(()), "the provider closed an idle connection");
    }

    #[test]
    fn each_exchange_of_a_connection_is_followed() {
        let (mut exchange, mut out) = (Exchange::default(), Vec::new());
        for method in ["GET", "HEAD", "GET"] {
            exchange.sent(format!("{method} / HTTP/1.1\r\n\r\n").as_bytes());
            assert!(!exchange.is_reusable());
            exchange.received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", &mut out).unwrap();
            if method == "GET" {
                assert_eq!(exchange.plain_bytes(), 2);
                exchange.pass(2);
            }
            assert!(exchange.is_reusable() && exchange.has_response());
        }
        exchange.received(b"x", &mut out).unwrap();
        assert!(!exchange.is_reusable(), "a byte arrived while the connection was idle");
    }
}
