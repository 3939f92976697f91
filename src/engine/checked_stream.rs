//! Puts a strict reader between a provider's HTTP/1 connection and Pingora, whose readers of heads and chunks are lenient.
//!
//! What does not pass [`Exchange`] is an IO error whose inner error is a [`ResponseFault`]. This module opens no
//! connection.

use crate::rules::exchange::{Exchange, ResponseFault};
use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The size of the buffer for bytes that are checked, in bytes.
const BUFFER_SIZE: usize = 8 << 10;

/// An HTTP/1 connection to a provider whose responses are checked.
#[derive(Debug)]
pub(crate) struct CheckedStream {
    inner: Stream,
    exchange: Exchange,
    /// Checked bytes, and how many of them were read.
    checked: (Vec<u8>, usize),
}

impl CheckedStream {
    /// Wraps a connection that is between two exchanges.
    #[must_use]
    pub(crate) fn new(inner: Stream) -> Self {
        Self { inner, exchange: Exchange::default(), checked: (Vec::new(), 0) }
    }

    /// Returns the exchange on the connection.
    #[must_use]
    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Returns whether the connection can carry another exchange.
    #[must_use]
    pub(crate) fn is_reusable(&self) -> bool {
        self.exchange.is_reusable() && self.is_drained()
    }

    /// Returns whether Pingora has read all checked bytes.
    #[must_use]
    pub(crate) fn is_drained(&self) -> bool {
        self.checked.1 == self.checked.0.len()
    }

    /// Returns the connection.
    #[must_use]
    pub(crate) fn into_inner(self) -> Stream {
        self.inner
    }

    /// Reads bytes of a body that Pingora may get as they are. Returns whether the connection is open.
    fn poll_plain(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let most = usize::try_from(self.exchange.plain_bytes()).unwrap_or(usize::MAX);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(buffer.remaining().min(most)));
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let length = part.filled().len();
        buffer.advance(length);
        self.exchange.pass(length as u64);
        Poll::Ready(Ok(length > 0))
    }

    /// Reads bytes and checks them. Returns whether the connection is open.
    fn poll_check(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; BUFFER_SIZE];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer))?;
        let (checked, read) = &mut self.checked;
        checked.clear();
        *read = 0;
        self.exchange.received(buffer.filled(), checked).map_err(io_error)?;
        Poll::Ready(Ok(!buffer.filled().is_empty()))
    }
}

impl AsyncRead for CheckedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let (checked, read) = &mut self.checked;
            let rest = &checked[*read..];
            if !rest.is_empty() {
                let length = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..length]);
                *read += length;
                return Poll::Ready(Ok(()));
            }
            let had_response = self.exchange.has_response();
            if self.exchange.is_broken() {
                // Bytes behind a response belong to nothing: for Pingora the connection is closed. After a fault there is
                // no further byte.
                return Poll::Ready(if had_response { Ok(()) } else { Err(io_error(ResponseFault::Surplus)) });
            }
            let is_open = if self.exchange.plain_bytes() > 0 {
                ready!(self.poll_plain(cx, buffer))?
            } else {
                ready!(self.poll_check(cx))?
            };
            if !is_open {
                self.exchange.closed().map_err(io_error)?;
                return Poll::Ready(Ok(()));
            }
            if !buffer.filled().is_empty() || had_response {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

fn io_error(fault: ResponseFault) -> io::Error {
    match fault {
        // An ordinary end of a connection.
        ResponseFault::Incomplete => io::ErrorKind::UnexpectedEof.into(),
        fault => io::Error::new(io::ErrorKind::InvalidData, fault),
    }
}

/// Returns why a response was refused, if that is the cause of an error.
#[must_use]
pub(crate) fn response_fault(error: &pingora::Error) -> Option<ResponseFault> {
    find_cause(error, |error| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<ResponseFault>().copied())
}

/// Returns the first result of `find` among the causes of an error of Pingora, which do not appear in `source`.
pub(crate) fn find_cause<T>(
    error: &pingora::Error,
    find: impl Fn(&(dyn StdError + 'static)) -> Option<T> + Copy,
) -> Option<T> {
    let cause: &(dyn StdError + 'static) = error.cause.as_deref()?;
    let nested =
        cause.downcast_ref::<pingora::Error>().or_else(|| cause.downcast_ref::<Box<pingora::Error>>().map(|e| &**e));
    nested.and_then(|nested| find_cause(nested, find)).or_else(|| find(cause))
}

impl AsyncWrite for CheckedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.exchange.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for CheckedStream {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

impl UniqueID for CheckedStream {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for CheckedStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for CheckedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for CheckedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for CheckedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for CheckedStream {}
