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
    /// Whether the connection came from the pool.
    reused: Arc<AtomicBool>,
}

impl fmt::Debug for ForwardConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardConnector").finish_non_exhaustive()
    }
}

/// Returns a peer for Pingora's proxy that connects to `peer` at `address`, and the flag that says whether the connection
/// was reused.
pub(crate) fn forward_peer(
    pool: &Arc<TransportConnector>,
    address: std::net::SocketAddr,
    peer: HttpPeer,
) -> (HttpPeer, Arc<AtomicBool>) {
    let reused = Arc::new(AtomicBool::new(false));
    let mut outer = HttpPeer::new(address, false, String::new());
    outer.options = peer.options.clone();
    let connector = ForwardConnector { pool: pool.clone(), peer, reused: reused.clone() };
    outer.options.custom_l4 = Some(Arc::new(connector));
    (outer, reused)
}

#[async_trait]
impl L4Connect for ForwardConnector {
    async fn connect(&self, _: &SocketAddr) -> pingora::Result<Layer4Stream> {
        let (stream, reused) = self.pool.get_stream(&self.peer).await?;
        self.reused.store(reused, Ordering::Release);
        let connection = ForwardConnection {
            stream: Some(CheckedStream::new(stream)),
            shut_down: false,
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
        stream.poll_read(cx, buffer)
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
