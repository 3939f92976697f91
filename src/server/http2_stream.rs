//! One stream of an HTTP/2 connection: reads the body of its request and writes its response.
//!
//! Pingora's own HTTP/2 session drops every interim response, so that a client with `Expect: 100-continue` would wait for
//! its timeout. This module makes no decision about a request that is well-formed.

use crate::base::problem::Problem;
use crate::base::request_reply::{Body, FormError, Response};
use crate::server::http2_frames::{HeaderFault, HeaderFaults};
use crate::server::http2_head;
use crate::server::http2_problem;
use crate::server::proxy::response_header;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::http::v2::write_body;
use pingora::{Error, ErrorType, OrErr, Result};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The most bytes of a request body that are stored so that it can be sent again.
const MAX_RETRY_BUFFER: usize = 64 << 10;

/// The most bytes of a part that are sent at once.
const MAX_PIECE: usize = 16 << 10;

/// Headers of an HTTP/1 connection, which HTTP/2 does not allow (RFC 9113, section 8.2.2).
const CONNECTION_HEADERS: [HeaderName; 5] = [
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Why a stream with a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The request breaks the rules of HTTP/2 (RFC 9113, sections 8.1.1 and 8.3.1), so the stream was reset.
    Malformed,
    /// The request is invalid in every version of HTTP, so the client has received 400.
    Invalid,
}

/// A stream with a request.
pub(crate) struct Http2Stream {
    pub(super) request: RequestHeader,
    pub(super) body: RecvStream,
    pub(super) respond: SendResponse<Bytes>,
    /// Writes the body of the response; `None` before its header is written.
    pub(super) writer: Option<SendStream<Bytes>>,
    pub(super) response: Option<Box<ResponseHeader>>,
    /// Whether a 100 was sent.
    continued: bool,
    /// Whether END_STREAM was sent.
    pub(super) ended: bool,
    pub(super) bytes_read: usize,
    pub(super) bytes_sent: usize,
    /// The body so far; `None` inside once it is too large.
    pub(super) retry_buffer: Option<Option<BytesMut>>,
    pub(super) digest: Arc<Digest>,
    faults: Arc<HeaderFaults>,
    pub(super) write_timeout: Option<Duration>,
}

impl Http2Stream {
    /// Returns the stream of a request.
    ///
    /// # Errors
    /// Weir has ended the stream, for this reason.
    pub(crate) fn accept(
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        digest: Arc<Digest>,
        faults: Arc<HeaderFaults>,
    ) -> Result<Self, Rejection> {
        let (head, body) = request.into_parts();
        let request = RequestHeader::from(head);
        if http2_head::is_malformed(&request) {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return Err(Rejection::Malformed);
        }
        let stream = respond.stream_id().as_u32();
        let has_fragment = faults.has(stream, HeaderFault::Fragment);
        faults.forget_fragments_until(stream);
        if let Some(detail) = http2_head::invalid(&request, has_fragment) {
            http2_problem::send(&mut respond, &request.method, &Problem::invalid(detail));
            return Err(Rejection::Invalid);
        }
        Ok(Self {
            request,
            body,
            respond,
            writer: None,
            response: None,
            continued: false,
            ended: false,
            bytes_read: 0,
            bytes_sent: 0,
            retry_buffer: None,
            digest,
            faults,
            write_timeout: None,
        })
    }

    /// Returns the head of the request.
    pub(crate) fn request(&self) -> &RequestHeader {
        &self.request
    }

    /// Returns the client's address.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        let address = self.digest.socket_digest.as_ref()?.peer_addr()?;
        address.as_inet().map(std::net::SocketAddr::ip)
    }

    /// Sets how long the client may accept no bytes.
    pub(crate) fn set_write_timeout(&mut self, timeout: Duration) {
        self.write_timeout = Some(timeout);
    }

    /// Writes a response. Adds the bytes of its body that were sent to `sent`.
    ///
    /// # Errors
    /// The client reset the stream, or accepts no bytes within the write timeout.
    pub(crate) async fn write_response(
        &mut self,
        method: &Method,
        mut response: Response,
        sent: &mut usize,
    ) -> Result<()> {
        let body = if *method == Method::HEAD { Body::default() } else { std::mem::take(&mut response.body) };
        // A response without a body waits for no window.
        self.write_header(response_header(&response)?, body.len() == 0)?;
        self.write_body_parts(body, true, sent).await
    }

    /// Writes parts of the body, and ends it if `end`. Adds the bytes that were sent to `sent`. The memory of the parts stays
    /// reserved until the connection has sent them.
    ///
    /// # Errors
    /// The client reset the stream, or accepts no bytes within the write timeout.
    pub(crate) async fn write_body_parts(&mut self, body: Body, end: bool, sent: &mut usize) -> Result<()> {
        let mut parts = body.into_parts().into_iter().filter(|part| !part.is_empty()).peekable();
        if end && parts.peek().is_none() {
            return self.end();
        }
        while let Some(part) = parts.next() {
            let is_last = end && parts.peek().is_none();
            self.write_part(part, is_last, sent).await?;
        }
        Ok(())
    }

    /// Writes the status and the headers of a response.
    ///
    /// # Errors
    /// The client reset the stream.
    pub(crate) fn write_head(&mut self, response: &Response) -> Result<()> {
        self.write_header(response_header(response)?, false)
    }

    /// Writes the header of a final response, or a 100 if the client expects it. Drops other interim responses.
    pub(super) fn write_header(&mut self, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.ended || self.response.is_some() {
            return Ok(());
        }
        self.check_trailers()?;
        if header.status.is_informational() {
            return if header.status == StatusCode::CONTINUE { self.write_continue() } else { Ok(()) };
        }
        header.insert_header(header::DATE, get_cached_date())?;
        for name in &CONNECTION_HEADERS {
            header.remove_header(name);
        }
        let response = http::Response::from_parts(header.as_owned_parts(), ());
        let writer = self.respond.send_response(response, end);
        self.writer = Some(writer.or_err(ErrorType::WriteError, "while writing an HTTP/2 response")?);
        (self.response, self.ended) = (Some(header), end);
        Ok(())
    }

    /// Writes a 100, once and only if the client expects it (RFC 9110, section 10.1.1).
    fn write_continue(&mut self) -> Result<()> {
        let expectation = self.request.headers.get(header::EXPECT);
        let expected = expectation.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !expected || std::mem::replace(&mut self.continued, true) {
            return Ok(());
        }
        let mut response = http::Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        self.respond.send_informational(response).or_err(ErrorType::WriteError, "while writing 100 over HTTP/2")
    }

    /// Writes a part of the body. Adds the bytes that were sent to `sent`.
    ///
    /// # Errors
    /// The client reset the stream, or accepts no bytes within the write timeout.
    pub(super) async fn write_part(&mut self, part: Bytes, end: bool, sent: &mut usize) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let Some(writer) = &mut self.writer else {
            return Error::e_explain(ErrorType::H2Error, "a body before its header");
        };
        let mut rest = part;
        loop {
            // In pieces, so that the bytes sent of a part that is cut off are known.
            let piece = rest.split_to(rest.len().min(MAX_PIECE));
            let (length, ends) = (piece.len(), end && rest.is_empty());
            write_body(writer, piece, ends, self.write_timeout).await.map_err(Error::into_down)?;
            self.bytes_sent += length;
            *sent += length;
            if rest.is_empty() {
                self.ended |= end;
                return Ok(());
            }
        }
    }

    /// Ends the response, if its header is written. Otherwise the stream is reset when it is dropped.
    ///
    /// # Errors
    /// The client reset the stream.
    pub(crate) fn end(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.as_mut().filter(|_| !self.ended) {
            writer.send_data(Bytes::new(), true).or_err(ErrorType::WriteError, "while ending an HTTP/2 response")?;
            self.ended = true;
        }
        Ok(())
    }

    pub(super) async fn read_part(&mut self) -> Result<Option<Bytes>> {
        let part = self.body.data().await.transpose();
        let Some(part) = part.or_err(ErrorType::ReadError, "while reading an HTTP/2 request body")? else {
            return self.check_trailers().map(|()| None);
        };
        self.bytes_read += part.len();
        if let Some(buffer) = &mut self.retry_buffer {
            let fits = buffer.as_ref().is_some_and(|buffer| buffer.len() + part.len() <= MAX_RETRY_BUFFER);
            *buffer = buffer.take().filter(|_| fits);
            buffer.iter_mut().for_each(|buffer| buffer.extend_from_slice(&part));
        }
        let _ = self.body.flow_control().release_capacity(part.len());
        Ok(Some(part))
    }

    /// Resets the stream if its trailers, as far as they have arrived, have a pseudo-header field.
    ///
    /// # Errors
    /// They have one.
    fn check_trailers(&mut self) -> Result<()> {
        if self.faults.has(self.respond.stream_id().as_u32(), HeaderFault::PseudoHeaderInTrailers) {
            self.respond.send_reset(Reason::PROTOCOL_ERROR);
            self.ended = true;
            return Error::e_explain(ErrorType::ReadError, "the trailers have a pseudo-header field");
        }
        Ok(())
    }

    /// Reads the whole body as a form of at most `limit` bytes.
    ///
    /// # Errors
    /// The form is too long, not UTF-8, or not complete.
    pub(crate) async fn read_form(&mut self, limit: u64) -> Result<String, FormError> {
        let mut form = Vec::new();
        // An error means that the client has reset the stream, which the next read tells.
        let _ = self.write_continue();
        loop {
            match self.read_part().await {
                Ok(Some(part)) if (form.len() + part.len()) as u64 > limit => {
                    return Err(FormError::TooLarge { limit });
                }
                Ok(Some(part)) => form.extend_from_slice(&part),
                Ok(None) => return String::from_utf8(form).map_err(|_| FormError::NotUtf8),
                Err(_) => return Err(FormError::Incomplete),
            }
        }
    }

    /// Waits until the client resets the stream.
    ///
    /// # Errors
    /// The connection closed.
    pub(crate) async fn reset(&mut self) -> Result<Reason> {
        let reset = std::future::poll_fn(|cx| match &mut self.writer {
            Some(writer) => writer.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        reset.await.or_err(ErrorType::H2Error, "while waiting for the client")
    }

    /// Returns whether the request has no body.
    pub(crate) fn has_no_body(&self) -> bool {
        let length = self.request.headers.get(header::CONTENT_LENGTH);
        self.bytes_read == 0 && (self.body.is_end_stream() || length.is_some_and(|length| length.as_bytes() == b"0"))
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        self.faults.forget(self.respond.stream_id().as_u32());
    }
}
