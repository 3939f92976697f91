//! One HTTP/1 connection: waits for a request's head within its deadlines, and writes answers.
//!
//! A room of its own because here bytes meet time: an idle wait, a header that never ends, a reader that stalls.
//! What a head means is read in `head`; what is asked and answered is not known here.

use crate::config::edge::Limits;
use crate::error::{Code, Problem};
use crate::exchange::{Answer, Request};
use crate::head::{self, Head};
use crate::model::Time;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{Stream as Parts, StreamExt};
use http::{Method, StatusCode, Version};
use pingora::protocols::Stream;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Write};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

/// Room for a head; a longer one makes more.
const BUFFER: usize = 4096;
/// A body up to this is copied behind its head, and both are sent as one piece.
const COPIED: usize = 8192;
/// Of a head, besides what is limited: the request line's other words, and line ends.
const SLACK: usize = 1024;
/// How long what a client still sends is read past, so that it can read its answer before the connection is reset.
const LINGER: Duration = Duration::from_secs(1);

/// What came of waiting for a request.
#[allow(clippy::large_enum_variant)] // nearly all are heads, which a box would cost more than it saves
pub enum Came {
    /// Its head. Its bytes stay here until they are consumed.
    Head(Head),
    /// Nothing more: the client went, or it is time to stop.
    End,
    /// Nothing, for too long.
    Idle,
    /// Not all of the head in time.
    Late,
    /// What is no request.
    Malformed(Box<Problem>),
    /// More of a head than is read, by the limit's name.
    TooLarge(&'static str, Box<Problem>),
}

/// What ends connections that could go on. Nobody looks at what is told by these: that it changed says it all.
#[derive(Clone)]
pub struct Ends {
    /// The next request is the last.
    pub last: watch::Receiver<bool>,
    /// One that waits for a request waits no longer.
    pub now: watch::Receiver<bool>,
}

/// A connection.
pub struct Wire {
    stream: Stream,
    /// What came and was not consumed is in front.
    buffer: Vec<u8>,
    filled: usize,
    /// The answer's head; kept for its room.
    out: Vec<u8>,
    date: Date,
    deadline: Deadline,
    last: watch::Receiver<bool>,
    stop: Stop,
    idle: Duration,
    header: Duration,
    stall: Duration,
    /// The longest head that is read, and the longest first line of one.
    most: usize,
    url: usize,
    /// Of a body that nobody wants, how much is read past.
    unwanted: u64,
}

impl Wire {
    /// A connection on which nothing came yet.
    #[must_use]
    pub fn new(stream: Stream, limits: &Limits, ends: &Ends) -> Self {
        Self {
            stream,
            buffer: vec![0; BUFFER],
            filled: 0,
            out: Vec::new(),
            date: Date::default(),
            deadline: Deadline::new(),
            last: ends.last.clone(),
            stop: Stop::new(ends.now.clone()),
            idle: limits.idle_timeout,
            header: limits.header_timeout,
            stall: limits.stall_timeout,
            most: limits.header_bytes + limits.url_bytes + SLACK,
            url: limits.url_bytes + SLACK,
            unwanted: limits.body_bytes,
        }
    }

    /// Whether no further request is wanted.
    #[must_use]
    pub fn stops(&self) -> bool {
        is_told(&self.last)
    }

    /// Waits for the next request, as one waits that had nothing to do since then.
    pub async fn head(&mut self, peer: Option<IpAddr>, idle_since: std::time::Instant) -> Came {
        if self.filled > 0 {
            // It came with the one before: others have their turn all the same.
            tokio::task::consume_budget().await;
        }
        if self.filled == 0 {
            self.deadline.set_from(idle_since.into(), self.idle);
        }
        let mut looked_at: usize = 0;
        loop {
            // A head that comes in drops is not read anew at each of them.
            if looked_at == 0 && self.filled > 0 || ends_in(&self.buffer[looked_at.saturating_sub(3)..self.filled]) {
                match head::parse(&self.buffer[..self.filled], peer) {
                    Ok(Some(head)) => return Came::Head(head),
                    Ok(None) => {}
                    Err(problem) if problem.code == Code::HeadersTooLarge => {
                        return Came::TooLarge("header_count", problem);
                    }
                    Err(problem) => return Came::Malformed(problem),
                }
            }
            if looked_at == 0 && self.filled > 0 {
                self.deadline.set(self.header);
            }
            looked_at = self.filled;
            if self.filled >= self.most {
                return self.too_large();
            }
            if let Err(came) = poll_fn(|cx| self.poll_more(cx)).await {
                return came;
            }
        }
    }

    /// The head is longer than may be: its first line is, or its fields are.
    fn too_large(&self) -> Came {
        let most = self.most;
        let (limit, code) = match self.buffer[..self.url].contains(&b'\n') {
            true => ("header_bytes", Code::HeadersTooLarge),
            false => ("url_bytes", Code::UrlTooLong),
        };
        let detail = format!("the head of the request is longer than {most} bytes (limits.{limit})");
        Came::TooLarge(limit, Box::new(Problem::new(code, detail)))
    }

    /// Reads some more, within the deadline.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Came>> {
        if self.filled == self.buffer.len() {
            self.buffer.resize((self.filled * 2).min(self.most.max(BUFFER)), 0);
        }
        let mut free = ReadBuf::new(&mut self.buffer[self.filled..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut free) {
            Poll::Ready(Ok(())) if !free.filled().is_empty() => {
                self.filled += free.filled().len();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) => Poll::Ready(Err(Came::End)),
            // Nothing of a request is here, or not all of its head: it is not in flight.
            Poll::Pending if self.stop.poll(cx) => Poll::Ready(Err(Came::End)),
            Poll::Pending => {
                ready!(self.deadline.poll(cx));
                Poll::Ready(Err(if self.filled == 0 { Came::Idle } else { Came::Late }))
            }
        }
    }

    /// The head of this length was answered.
    pub fn consume(&mut self, length: usize) {
        self.buffer.copy_within(length..self.filled, 0);
        self.filled -= length;
        if self.filled == 0 && self.buffer.len() > BUFFER {
            self.buffer = vec![0; BUFFER];
        }
    }

    /// The connection, and what came on it, for who reads on.
    #[must_use]
    pub fn give(self) -> (Stream, BytesMut) {
        (self.stream, BytesMut::from(&self.buffer[..self.filled]))
    }

    /// Writes an answer; `goes_on` says whether another request may follow.
    ///
    /// # Errors
    /// The client is gone, or takes nothing for too long.
    pub async fn answer(&mut self, request: &Request, answer: Answer, goes_on: bool, now: Time) -> io::Result<()> {
        self.write_head(request.version, &answer, goes_on, now);
        let body = if request.method == Method::HEAD { &[] } else { answer.body.parts() };
        if answer.body.len() <= COPIED {
            body.iter().for_each(|part| self.out.extend_from_slice(part));
            self.write(&[]).await
        } else {
            self.write(body).await
        }
    }

    /// Writes an answer that comes in parts, until there is none or the client goes; how many of their bytes it took. The
    /// connection ends with it.
    pub async fn stream(
        &mut self,
        request: &Request,
        mut answer: Answer,
        mut parts: Pin<Box<dyn Parts<Item = Bytes> + Send>>,
        now: Time,
    ) -> usize {
        // Before HTTP/1.1 its end is the connection's.
        let chunked = request.version == Version::HTTP_11;
        if chunked {
            answer.headers.push("transfer-encoding", "chunked");
        }
        self.write_head(request.version, &answer, false, now);
        let mut taken = 0;
        loop {
            if self.write(&[]).await.is_err() {
                return taken;
            }
            // What comes now is no part of this request: the client has gone, or speaks out of turn.
            let mut beyond = [0];
            let part = tokio::select! {
                part = parts.next() => part,
                _ = self.stream.read(&mut beyond) => return taken,
            };
            self.out.clear();
            let Some(part) = part else {
                self.out.extend_from_slice(if chunked { b"0\r\n\r\n" } else { b"" });
                let _ = self.write(&[]).await;
                return taken;
            };
            if chunked {
                // Writing to a Vec cannot fail.
                let _ = write!(self.out, "{:x}\r\n", part.len());
            }
            self.out.extend_from_slice(&part);
            self.out.extend_from_slice(if chunked { b"\r\n" } else { b"" });
            taken += part.len();
        }
    }

    fn write_head(&mut self, version: Version, answer: &Answer, goes_on: bool, now: Time) {
        let out = &mut self.out;
        out.clear();
        let status = StatusCode::from_u16(answer.status).unwrap_or_default();
        for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(answer.headers.as_bytes());
        line(out, "date", self.date.at(now));
        match (goes_on, version) {
            (false, _) => line(out, "connection", b"close"),
            (true, Version::HTTP_10) => line(out, "connection", b"keep-alive"),
            (true, _) => {}
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes what is in `out`, and a body of at most three parts behind it.
    async fn write(&mut self, body: &[Bytes]) -> io::Result<()> {
        let mut written = 0;
        let whole = self.out.len() + body.iter().map(Bytes::len).sum::<usize>();
        while written < whole {
            let mut waited = false;
            written += poll_fn(|cx| {
                let stream = Pin::new(&mut self.stream);
                let wrote = match body {
                    [] => stream.poll_write(cx, &self.out[written..]),
                    _ => stream.poll_write_vectored(cx, &left(&self.out, body, written)),
                };
                if wrote.is_pending() {
                    if !std::mem::replace(&mut waited, true) {
                        self.deadline.set(self.stall);
                    }
                    ready!(self.deadline.poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                match wrote {
                    Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    wrote => wrote,
                }
            })
            .await?;
        }
        self.stream.flush().await
    }

    /// Tells of a problem that no request is the cause of.
    pub async fn tell(&mut self, problem: &Problem) -> io::Result<()> {
        self.out = self::answer(problem);
        self.write(&[]).await
    }

    /// Ends the connection. `unread` says that the client may still be sending; `false` that it sent more than is
    /// read past.
    pub async fn end(mut self, unread: bool) -> bool {
        if self.stream.shutdown().await.is_err() || !unread {
            return true;
        }
        let (deadline, mut left) = (Instant::now() + LINGER, self.unwanted);
        while let Ok(Ok(read @ 1..)) = tokio::time::timeout_at(deadline, self.stream.read(&mut self.buffer)).await {
            let Some(less) = left.checked_sub(read as u64) else { return false };
            left = less;
        }
        true
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What is left of a head and of each part of a body once so much was written.
fn left<'b>(head: &'b [u8], body: &'b [Bytes], mut written: usize) -> [IoSlice<'b>; 4] {
    let mut left = [IoSlice::new(&[]); 4];
    let parts = std::iter::once(head).chain(body.iter().map(|part| &**part));
    for (part, left) in parts.zip(&mut left) {
        *left = IoSlice::new(part.get(written..).unwrap_or_default());
        written = written.saturating_sub(part.len());
    }
    left
}

/// Whether an empty line is in this.
fn ends_in(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

/// A whole answer, for a connection on which no request was read.
#[must_use]
pub fn answer(problem: &Problem) -> Vec<u8> {
    let body = problem.to_value(None).to_string();
    let (status, title, length) = (problem.code.status(), problem.code.title(), body.len());
    let wait = problem.retry_after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
    let allow = problem.allow.map_or_else(String::new, |methods| format!("Allow: {methods}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\n{wait}{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}

/// The `Date` of answers, made once a second.
#[derive(Default)]
struct Date {
    second: i64,
    text: String,
}

impl Date {
    fn at(&mut self, now: Time) -> &[u8] {
        let second = now.0.div_euclid(1000);
        if second != self.second || self.text.is_empty() {
            let since = Duration::from_secs(u64::try_from(second).unwrap_or_default());
            self.text = httpdate::fmt_http_date(std::time::UNIX_EPOCH + since);
            self.second = second;
        }
        self.text.as_bytes()
    }
}

/// A moment that must not be passed. Moving it costs nothing: its timer is moved only when it rings too early.
struct Deadline {
    at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Deadline {
    fn new() -> Self {
        Self { at: Instant::now(), timer: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    fn set(&mut self, limit: Duration) {
        self.set_from(Instant::now(), limit);
    }

    fn set_from(&mut self, begun: Instant, limit: Duration) {
        self.at = begun + limit;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.deadline() != self.at {
            if self.timer.deadline() > self.at {
                self.timer.as_mut().reset(self.at);
            }
            ready!(self.timer.as_mut().poll(cx));
            self.timer.as_mut().reset(self.at);
        }
        self.timer.as_mut().poll(cx)
    }
}

/// Nobody ever looks at what was told, so that it stays news.
fn is_told(told: &watch::Receiver<bool>) -> bool {
    told.has_changed().unwrap_or(true)
}

/// Whether it is time to stop, and a task that wants to know. Asked of it all the time, so it is one look at a
/// number; only the first wait registers with what all connections share.
struct Stop {
    told: watch::Receiver<bool>,
    listening: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Stop {
    fn new(told: watch::Receiver<bool>) -> Self {
        Self { told, listening: None }
    }

    /// A connection has one task, so its waker stays the same.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.listening.is_none() {
            let mut told = self.told.clone();
            let mut listening: Pin<Box<dyn Future<Output = ()> + Send + Sync>> = Box::pin(async move {
                let _ = told.changed().await;
            });
            let _ = listening.as_mut().poll(cx);
            self.listening = Some(listening);
        }
        is_told(&self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wherever_writing_stopped_it_goes_on_there() {
        let (head, body) = (b"head".as_slice(), [Bytes::from_static(b"be"), Bytes::new(), Bytes::from_static(b"hind")]);
        for written in 0..=10 {
            let rest: Vec<u8> = left(head, &body, written).iter().flat_map(|part| part.to_vec()).collect();
            assert_eq!(rest, b"headbehind"[written..]);
        }
    }
}
