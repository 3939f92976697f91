//! Serves one HTTP/1 connection: reads request heads and writes responses, within their timeouts.
//!
//! Enforces the idle, header and stall timeouts and the size limits of a head. It does not interpret requests.

use crate::base::memory_budget::{BufferLimit, Reservation};
use crate::base::model::Time;
use crate::base::problem::{Code, Problem};
use crate::base::request_headers::SHORT_HEAD;
use crate::base::request_reply::{Body, Request, Response};
use crate::config::edge::Limits;
use crate::pipeline::held::CONNECTION_BUFFER;
use crate::server::deadline::Deadline;
use crate::server::http1_body::{BodyDecoder, BodyError};
use crate::server::http1_head::{self, RequestHead};
use crate::server::http1_response::{self, CHUNK_END, DateHeader, LAST_CHUNK, Unwritten};
use crate::server::next_head::{HeadShare, NextHead};
use crate::server::shutdown::{ShutdownSignals, SignalPoll, is_sent};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{Stream as BodyParts, StreamExt};
use http::{Method, Version};
use pingora::protocols::Stream;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

/// Initial size of the read buffer in bytes. It grows for longer heads.
const BUFFER_SIZE: usize = SHORT_HEAD;
/// A body of at most this many bytes is copied behind its head, so that one write sends both.
const MAX_COPIED_BODY: usize = CONNECTION_BUFFER;
/// The most bytes of a TLS record (RFC 8446, section 5.1). Without it, TLS would keep 64 KiB that are not reserved for a
/// client that reads slowly.
const TLS_RECORD: usize = 16 << 10;
/// The most bytes for writing that a connection keeps while it is idle.
const MAX_KEPT_OUT: usize = 4096;
/// Bytes allowed for the parts of a head that no limit counts: method, version, line ends.
const UNLIMITED_PARTS: usize = 1024;
/// Before an early close, Weir discards what the client still sends for this long. Without that, the system would reset
/// the connection, and the client might lose the response.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// How often, and after what time each, Weir writes a comment to a watcher that has closed its sending side.
const PROBES: u32 = 2;
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// A comment in a stream of events, which clients ignore.
const COMMENT: &[u8] = b":\n\n";

/// Why no complete body was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// It is over the limit.
    TooLarge,
    /// It is not well framed.
    Invalid,
    /// It did not arrive within a timeout.
    Timeout,
    /// The connection closed.
    Closed,
}

/// Which of the bytes of a write belong to a response's body.
struct Counted<'s> {
    /// How many bytes come before them.
    before: usize,
    /// How many they are.
    length: usize,
    /// Counts those that were written.
    sent: &'s mut usize,
}

/// An HTTP/1 connection.
pub(crate) struct Http1Connection {
    stream: Stream,
    /// Received bytes that are not consumed yet are in front, `filled` of them.
    buffer: Vec<u8>,
    filled: usize,
    /// The memory of a head that is longer than [`BUFFER_SIZE`], until it is complete.
    head_memory: Option<Reservation>,
    /// The bytes to write next. Kept so that its memory is used again.
    out: Vec<u8>,
    /// The most bytes that one write sends.
    max_piece: usize,
    date: DateHeader,
    deadline: Deadline,
    last_request: watch::Receiver<bool>,
    close_idle: SignalPoll,
    idle_timeout: Duration,
    header_timeout: Duration,
    stall_timeout: Duration,
    /// The maximum length of a head in bytes, and of its first line.
    max_head: usize,
    max_first_line: usize,
    /// The most bytes of an unread body that are discarded before the connection closes.
    max_discarded: u64,
}

impl Http1Connection {
    /// Wraps a connection on which no byte was read yet.
    #[must_use]
    pub(crate) fn new(stream: Stream, limits: &Limits, signals: &ShutdownSignals) -> Self {
        Self {
            buffer: vec![0; BUFFER_SIZE],
            filled: 0,
            head_memory: None,
            max_piece: if stream.get_ssl_digest().is_some() { TLS_RECORD } else { usize::MAX },
            stream,
            out: Vec::new(),
            date: DateHeader::default(),
            deadline: Deadline::new(),
            last_request: signals.last_request.clone(),
            close_idle: SignalPoll::new(signals.close_idle.clone()),
            idle_timeout: limits.idle_timeout,
            header_timeout: limits.header_timeout,
            stall_timeout: limits.stall_timeout,
            max_head: limits.header_bytes + limits.url_bytes + UNLIMITED_PARTS,
            max_first_line: limits.url_bytes + UNLIMITED_PARTS,
            max_discarded: limits.body_bytes,
        }
    }

    /// Returns whether the server is shutting down, so that the current request is the last one.
    #[must_use]
    pub(crate) fn is_last_request(&self) -> bool {
        is_sent(&self.last_request)
    }

    /// Waits for the next request. The idle timeout counts from `idle_since`. The memory of a long head is reserved from
    /// `share`, until [`Http1Connection::take_head_memory`].
    pub(crate) async fn next_head(
        &mut self,
        peer: Option<IpAddr>,
        idle_since: std::time::Instant,
        share: HeadShare<'_>,
    ) -> NextHead {
        if self.filled > 0 {
            // A pipelined request is in the buffer already. All other connections have their turn before it.
            tokio::task::yield_now().await;
        }
        if let Err(limit) = self.reserve_buffer(self.buffer.len(), share) {
            return NextHead::NoMemory(limit);
        }
        if self.filled == 0 {
            self.deadline.set_from(idle_since.into(), self.idle_timeout);
        }
        let mut searched: usize = 0;
        loop {
            // A head that arrives in many small pieces is parsed again only when an empty line may have ended it.
            let unsearched = searched.saturating_sub(3)..self.filled;
            if searched == 0 && self.filled > 0 || has_empty_line(&self.buffer[unsearched]) {
                match http1_head::parse(&self.buffer[..self.filled], peer) {
                    Ok(Some(head)) => return NextHead::Head(head),
                    Ok(None) => {}
                    Err(problem) if problem.code == Code::HeadersTooLarge => {
                        return NextHead::TooLarge("header_count", problem);
                    }
                    Err(problem) => return NextHead::Malformed(problem),
                }
            }
            if searched == 0 && self.filled > 0 {
                self.deadline.set(self.header_timeout);
            }
            searched = self.filled;
            if self.filled >= self.max_head {
                return self.too_large();
            }
            if self.filled == self.buffer.len() {
                let size = (self.filled * 2).min(self.max_head.max(BUFFER_SIZE));
                if let Err(limit) = self.reserve_buffer(size, share) {
                    return NextHead::NoMemory(limit);
                }
                self.buffer.reserve_exact(size - self.filled);
                self.buffer.resize(size, 0);
            }
            if let Err(end) = poll_fn(|cx| self.poll_read(cx)).await {
                return end;
            }
        }
    }

    /// Reserves the memory of a buffer of this size, and of the copy that is made of the head in it. The size that every
    /// connection has is free.
    fn reserve_buffer(&mut self, size: usize, share: HeadShare<'_>) -> Result<(), BufferLimit> {
        if size <= BUFFER_SIZE {
            return Ok(());
        }
        if self.head_memory.is_none() {
            self.head_memory = share().map(|share| share.reservation());
        }
        self.head_memory.as_mut().map_or(Ok(()), |memory| memory.resize(2 * size))
    }

    /// Takes the memory that is reserved for a head, which must live as long as the head.
    pub(crate) fn take_head_memory(&mut self) -> Option<Reservation> {
        self.head_memory.take()
    }

    /// Returns the result for a head over its limit: either its first line or its header fields are too long.
    fn too_large(&self) -> NextHead {
        let max = self.max_head;
        let (limit, code) = match self.buffer[..self.max_first_line].contains(&b'\n') {
            true => ("header_bytes", Code::HeadersTooLarge),
            false => ("url_bytes", Code::UrlTooLong),
        };
        let detail = match code {
            Code::UrlTooLong => format!(
                "the first line of the request is longer than {} bytes (limits.{limit}); POST to /v1/sessions:list and /v1/sessions:batchGet takes the parameters in a form",
                self.max_first_line
            ),
            _ => format!("the request head is longer than {max} bytes (limits.{limit})"),
        };
        NextHead::TooLarge(limit, Box::new(Problem::new(code, detail)))
    }

    /// Reads more bytes, until the deadline.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NextHead>> {
        if self.filled == 0 && self.out.capacity() > MAX_KEPT_OUT {
            self.out = Vec::new();
        }
        let mut free = ReadBuf::new(&mut self.buffer[self.filled..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut free) {
            Poll::Ready(Ok(())) if !free.filled().is_empty() => {
                self.filled += free.filled().len();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) => Poll::Ready(Err(NextHead::Closed)),
            // A request whose head is not complete does not count as in flight.
            Poll::Pending if self.close_idle.poll(cx) => Poll::Ready(Err(NextHead::Closed)),
            Poll::Pending => {
                ready!(self.deadline.poll(cx));
                Poll::Ready(Err(if self.filled == 0 { NextHead::IdleTimeout } else { NextHead::HeaderTimeout }))
            }
        }
    }

    /// Removes a head of `length` bytes, whose response was written, from the buffer.
    pub(crate) fn consume(&mut self, length: usize) {
        self.buffer.copy_within(length..self.filled, 0);
        self.filled -= length;
        if self.filled == 0 && self.buffer.len() > BUFFER_SIZE {
            self.buffer = vec![0; BUFFER_SIZE];
        }
    }

    /// Puts bytes that were received already in front of those to read. The buffer must be empty.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.buffer.resize(self.buffer.len().max(bytes.len()), 0);
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        self.filled = bytes.len();
    }

    /// Reads the body of `head`, whose bytes are still in the buffer, of at most `limit` bytes. Consumes both.
    ///
    /// # Errors
    /// There is no complete and valid body within `limits`. The connection cannot be used again.
    pub(crate) async fn read_body(
        &mut self,
        head: &RequestHead,
        limit: u64,
        limits: &Limits,
    ) -> Result<Vec<u8>, BodyEnd> {
        let end = |error| if error == BodyError::TooLarge { BodyEnd::TooLarge } else { BodyEnd::Invalid };
        self.consume(head.length);
        let mut decoder = BodyDecoder::new(head, limit).map_err(end)?;
        let expects = head.request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        if expects && head.has_body() && self.filled == 0 && head.request.version == Version::HTTP_11 {
            self.out.clear();
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            let counted = Counted { before: 0, length: 0, sent: &mut 0 };
            self.write(&[], counted).await.map_err(|_| BodyEnd::Closed)?;
        }
        let latest = Instant::now() + limits.body_timeout;
        loop {
            let taken = decoder.take(&self.buffer[..self.filled]).map_err(end)?;
            self.consume(taken);
            if decoder.is_complete() {
                return Ok(decoder.into_body());
            }
            let left = latest.saturating_duration_since(Instant::now());
            self.deadline.set(self.stall_timeout.min(left));
            match poll_fn(|cx| self.poll_read(cx)).await {
                Ok(()) => {}
                Err(NextHead::IdleTimeout | NextHead::HeaderTimeout) => return Err(BodyEnd::Timeout),
                Err(_) => return Err(BodyEnd::Closed),
            }
        }
    }

    /// Returns the stream, and the bytes that were read but not consumed.
    #[must_use]
    pub(crate) fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, BytesMut::from(&self.buffer[..self.filled]))
    }

    /// Writes a response. `keep_alive` says whether the client may send another request. Adds the bytes of its body that
    /// were written to `sent`.
    ///
    /// # Errors
    /// The client closed the connection, or accepts no bytes within the stall timeout (`TimedOut`).
    pub(crate) async fn write_response(
        &mut self,
        request: &Request,
        response: Response,
        keep_alive: bool,
        now: Time,
        sent: &mut usize,
    ) -> io::Result<()> {
        self.write_head(request.version, &response, keep_alive, now);
        let body = if request.method == Method::HEAD { Body::default() } else { response.body };
        let counted = Counted { before: self.out.len(), length: body.len(), sent };
        if body.len() <= MAX_COPIED_BODY {
            body.parts().iter().for_each(|part| self.out.extend_from_slice(part));
            self.write(&[], counted).await
        } else {
            self.write(body.parts(), counted).await
        }
    }

    /// Writes a response whose body comes in parts, until the last part or until the client closes the connection. Adds
    /// the bytes of its body that were written to `sent`. The connection cannot be used for another request after it.
    pub(crate) async fn write_stream(
        &mut self,
        request: &Request,
        mut response: Response,
        mut parts: Pin<Box<dyn BodyParts<Item = Body> + Send>>,
        now: Time,
        sent: &mut usize,
    ) {
        // An HTTP/1.0 client reads the body to the end of the connection.
        let chunked = request.version == Version::HTTP_11;
        if chunked {
            response.headers.push("transfer-encoding", "chunked");
        }
        self.write_head(request.version, &response, false, now);
        let (mut before, mut length, mut body) = (self.out.len(), 0, Body::default());
        let (mut sends_no_more, mut probes) = (false, 0);
        loop {
            if self.write(body.parts(), Counted { before, length, sent }).await.is_err() {
                return;
            }
            // Its memory is free while the stream waits for the next part.
            drop(body);
            let mut unexpected = [0];
            let part = loop {
                tokio::select! {
                    part = parts.next() => break part,
                    // A client that closes its sending side still reads. One that sends bytes which belong to no request
                    // ends the stream, and so does a broken connection.
                    read = self.stream.read(&mut unexpected), if !sends_no_more => match read {
                        Ok(0) => (sends_no_more, probes) = (true, PROBES),
                        _ => return,
                    },
                    // One that is gone looks the same, until Weir writes to it twice.
                    () = tokio::time::sleep(PROBE_INTERVAL), if probes > 0 => {
                        probes -= 1;
                        break Some(Bytes::from_static(COMMENT).into());
                    }
                }
            };
            self.out.clear();
            let Some(part) = part else {
                self.out.extend_from_slice(if chunked { LAST_CHUNK } else { b"" });
                let _ = self.write(&[], Counted { before: 0, length: 0, sent }).await;
                return;
            };
            body = part;
            length = body.len();
            if chunked {
                http1_response::write_chunk_size(&mut self.out, length);
            }
            before = self.out.len();
            if chunked {
                body = body.between(Bytes::new(), Bytes::from_static(CHUNK_END));
            }
            if length <= MAX_COPIED_BODY {
                body.parts().iter().for_each(|part| self.out.extend_from_slice(part));
                body = Body::default();
            }
        }
    }

    fn write_head(&mut self, version: Version, response: &Response, keep_alive: bool, now: Time) {
        self.out.clear();
        http1_response::write_head(&mut self.out, version, response, keep_alive, &mut self.date, now);
    }

    /// Writes the bytes in `out`, then the parts of a body. Flushes each piece, so that TLS never keeps more than one.
    async fn write(&mut self, body: &[Bytes], counted: Counted<'_>) -> io::Result<()> {
        let Self { stream, deadline, stall_timeout, max_piece, .. } = self;
        let mut unwritten = Unwritten::new(&self.out, body);
        let (sent_before, mut total) = (*counted.sent, 0_usize);
        while !unwritten.is_empty() {
            let written = unless_stalled(deadline, *stall_timeout, |cx| {
                let stream = Pin::new(&mut *stream);
                match unwritten.slices(*max_piece) {
                    (slices, 1) => stream.poll_write(cx, &slices[0]),
                    (slices, count) => stream.poll_write_vectored(cx, &slices[..count]),
                }
            })
            .await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            unwritten.advance(written);
            total += written;
            *counted.sent = sent_before + total.saturating_sub(counted.before).min(counted.length);
            unless_stalled(deadline, *stall_timeout, |cx| Pin::new(&mut *stream).poll_flush(cx)).await?;
        }
        Ok(())
    }

    /// Writes a problem that belongs to no request.
    pub(crate) async fn write_problem(&mut self, problem: &Problem) -> io::Result<()> {
        self.out = http1_response::of_problem(problem);
        self.write(&[], Counted { before: 0, length: 0, sent: &mut 0 }).await
    }

    /// Closes the connection. If `unread`, the client may still be sending; what it sends is discarded first. Returns
    /// `false` if it sent more than the limit.
    pub(crate) async fn close(mut self, unread: bool) -> bool {
        if self.stream.shutdown().await.is_err() || !unread {
            return true;
        }
        let (deadline, mut remaining) = (Instant::now() + DISCARD_TIME, self.max_discarded);
        while let Ok(Ok(read @ 1..)) = tokio::time::timeout_at(deadline, self.stream.read(&mut self.buffer)).await {
            let Some(less) = remaining.checked_sub(read as u64) else { return false };
            remaining = less;
        }
        true
    }
}

/// Returns whether `bytes` contain an empty line.
fn has_empty_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

/// Takes a step of writing. It fails once the client has taken nothing for `timeout`.
async fn unless_stalled<T>(
    deadline: &mut Deadline,
    timeout: Duration,
    mut step: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> io::Result<T> {
    let mut stalled = false;
    poll_fn(|cx| {
        let result = step(cx);
        if result.is_pending() {
            if !std::mem::replace(&mut stalled, true) {
                deadline.set(timeout);
            }
            ready!(deadline.poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    })
    .await
}
