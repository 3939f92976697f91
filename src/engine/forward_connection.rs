//! Connects forwarded requests to providers. Pingora's proxy sees a connection without TLS whose responses are checked.
//!
//! Pingora has no hook between its pool and its reader of responses. It accepts a connection of ours in place of a TCP
//! connection, though. That one takes a real connection from the pool, with TLS if the provider needs it, and returns it.

use crate::engine::checked_stream::CheckedStream;
use async_trait::async_trait;
use pingora::connectors::{L4Connect, TransportConnector};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream as Layer4Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::{HttpPeer, Peer};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;

/// Gives Pingora's proxy one connection to a provider.
pub(crate) struct ForwardConnector {
    pool: Arc<TransportConnector>,
    /// The provider's address and how to connect to it.
    peer: HttpPeer,
    /// Whether the connection may come from the pool.
    may_reuse: bool,
    state: Arc<ConnectionState>,
}

/// What is known about the connection of a forwarded request.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    is_reused: AtomicBool,
    has_response: AtomicBool,
}

impl ConnectionState {
    /// Returns whether the connection came from the pool.
    #[must_use]
    pub(crate) fn is_reused(&self) -> bool {
        self.is_reused.load(Ordering::Acquire)
    }

    /// Returns whether any byte of a response has arrived, also of an interim one.
    #[must_use]
    pub(crate) fn has_response(&self) -> bool {
        self.has_response.load(Ordering::Acquire)
    }
}

impl fmt::Debug for ForwardConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardConnector").finish_non_exhaustive()
    }
}

/// Returns a peer for Pingora's proxy that connects to `peer` at `address`, and the state of its connection. The
/// connection is a new one unless `may_reuse`.
pub(crate) fn forward_peer(
    pool: &Arc<TransportConnector>,
    address: std::net::SocketAddr,
    peer: HttpPeer,
    may_reuse: bool,
) -> (HttpPeer, Arc<ConnectionState>) {
    let state = Arc::<ConnectionState>::default();
    let mut outer = HttpPeer::new(address, false, String::new());
    outer.options = peer.options.clone();
    let connector = ForwardConnector { pool: pool.clone(), peer, may_reuse, state: state.clone() };
    outer.options.custom_l4 = Some(Arc::new(connector));
    (outer, state)
}

#[async_trait]
impl L4Connect for ForwardConnector {
    async fn connect(&self, _: &SocketAddr) -> pingora::Result<Layer4Stream> {
        let (stream, is_reused) = match self.may_reuse {
            true => self.pool.get_stream(&self.peer).await?,
            false => (self.pool.new_stream(&self.peer).await?, false),
        };
        self.state.is_reused.store(is_reused, Ordering::Release);
        let connection = ForwardConnection {
            stream: Some(CheckedStream::new(stream)),
            shut_down: false,
            state: self.state.clone(),
            pool: self.pool.clone(),
            key: self.peer.reuse_hash(),
            idle_timeout: self.peer.idle_timeout(),
        };
        Ok(VirtualSocketStream::new(Box::new(connection)).into())
    }
}

/// A connection that carries one forwarded request. It returns to the pool when it is dropped, if it is clean.
struct ForwardConnection {
    /// `None` only while it is dropped.
    stream: Option<CheckedStream>,
    shut_down: bool,
    state: Arc<ConnectionState>,
    pool: Arc<TransportConnector>,
    key: u64,
    idle_timeout: Option<std::time::Duration>,
}

impl fmt::Debug for ForwardConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardConnection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl ForwardConnection {
    fn stream(&mut self) -> io::Result<Pin<&mut CheckedStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for ForwardConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream()?;
        // For Pingora the connection ends with the exchange, so that Pingora drops it at once.
        if stream.is_drained() && stream.exchange().is_complete() {
            return Poll::Ready(Ok(()));
        }
        let result = stream.poll_read(cx, buffer);
        if self.stream.as_ref().is_some_and(|stream| stream.exchange().has_begun()) {
            self.state.has_response.store(true, Ordering::Release);
        }
        result
    }
}

impl AsyncWrite for ForwardConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down = true;
        self.stream()?.poll_shutdown(cx)
    }
}

impl VirtualSocket for ForwardConnection {
    /// Does nothing: the real connection has its options already.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ForwardConnection {
    fn drop(&mut self) {
        let clean = self.stream.take().filter(|stream| !self.shut_down && stream.exchange().is_reusable());
        // The pool watches idle connections in a task.
        if let (Some(stream), Ok(_)) = (clean, Handle::try_current()) {
            self.pool.release_stream(stream.into_inner(), self.key, self.idle_timeout);
        }
    }
}
