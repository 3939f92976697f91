//! A connection that is watched while it waits for a request: for its first byte, and for the end of its header.
//!
//! A room of its own because HTTP/1 leaves that to whoever reads the socket. It sits between the socket (or TLS)
//! and Pingora, looks at nothing that passes, and only knows whose turn it is.

use crate::config::edge::Limits;
use crate::error::{Code, Problem};
use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

tokio::task_local! {
    /// The connection whose requests this task answers. HTTP/1 has one task a connection.
    static TURN: Arc<Turn>;
}

/// Whose turn it is on a connection.
#[derive(Debug, Default)]
struct Turn(AtomicU8);

/// Nothing of the next request is here.
const IDLE: u8 = 0;
/// Some of its header is.
const HEADER: u8 = 1;
/// All of its header is: how it goes on is not watched here.
const REQUEST: u8 = 2;

/// The header of a request on this task's connection is here.
pub fn header_came() {
    let _ = TURN.try_with(|turn| turn.0.store(REQUEST, Ordering::Release));
}

/// It is answered: the next may come.
pub fn request_ended() {
    let _ = TURN.try_with(|turn| turn.0.store(IDLE, Ordering::Release));
}

/// Why a connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was silent for too long.
    Idle,
    /// Its header took too long.
    Header,
}

/// Told when a connection is ended here.
pub type Tell = Arc<dyn Fn(Ended) + Send + Sync>;

/// A connection being watched.
pub struct Watched {
    inner: Stream,
    turn: Arc<Turn>,
    /// For which turn the clock runs.
    timed: Option<u8>,
    clock: Pin<Box<Sleep>>,
    /// Resolves when no further request is wanted.
    stopping: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    stopped: bool,
    idle: Duration,
    header: Duration,
    tell: Tell,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Answers a connection's requests, watched. `serve` is given the connection to serve.
pub async fn watch<F: Future>(
    inner: Stream,
    limits: &Limits,
    stopping: impl Future<Output = ()> + Send + Sync + 'static,
    tell: Tell,
    serve: impl FnOnce(Stream) -> F,
) -> F::Output {
    let turn = Arc::<Turn>::default();
    let watched = Watched {
        inner,
        turn: turn.clone(),
        timed: None,
        clock: Box::pin(tokio::time::sleep(Duration::ZERO)),
        stopping: Box::pin(stopping),
        stopped: false,
        idle: limits.idle_timeout,
        header: limits.header_timeout,
        tell,
    };
    TURN.scope(turn, serve(Box::new(watched))).await
}

impl Watched {
    /// Whether it has waited too long, for what its turn is about.
    fn poll_late(&mut self, turn: u8, cx: &mut Context<'_>) -> Poll<()> {
        if self.timed != Some(turn) {
            self.timed = Some(turn);
            let limit = if turn == IDLE { self.idle } else { self.header };
            self.clock.as_mut().reset(Instant::now() + limit);
        }
        self.clock.as_mut().poll(cx)
    }

    /// Tells a client that is too slow, as far as it can be told at once.
    fn refuse(&mut self, cx: &mut Context<'_>) {
        let answer =
            answer(&Problem::new(Code::RequestTimeout, "the request's header did not come within header_timeout"));
        let mut rest = answer.as_slice();
        while let Poll::Ready(Ok(n @ 1..)) = Pin::new(&mut self.inner).poll_write(cx, rest) {
            rest = rest.get(n..).unwrap_or_default();
        }
        let _ = Pin::new(&mut self.inner).poll_flush(cx);
    }
}

/// A whole answer, for a connection on which no request was read.
#[must_use]
pub fn answer(problem: &Problem) -> Vec<u8> {
    let body = problem.to_value(None).to_string();
    let (status, title, length) = (problem.code.status(), problem.code.title(), body.len());
    let wait = problem.retry_after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\n{wait}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let turn = self.turn.0.load(Ordering::Acquire);
        match read {
            Poll::Ready(read) => {
                if turn == IDLE && buffer.filled().len() > before {
                    self.turn.0.store(HEADER, Ordering::Release);
                    self.timed = None;
                }
                Poll::Ready(read)
            }
            Poll::Pending if turn == REQUEST => {
                self.timed = None;
                Poll::Pending
            }
            Poll::Pending => {
                // Nothing of a request is here, or not all of its header: it is not in flight.
                if !self.stopped {
                    self.stopped = self.stopping.as_mut().poll(cx).is_ready();
                }
                if self.stopped {
                    return Poll::Ready(Ok(()));
                }
                ready!(self.poll_late(turn, cx));
                (self.tell)(if turn == IDLE { Ended::Idle } else { Ended::Header });
                if turn == HEADER {
                    self.refuse(cx);
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

#[async_trait]
impl Peek for Watched {}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Watched {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.set_socket_digest(digest);
    }
}
