//! Gives Pingora the body of one forwarded HTTP/1 request, and not a byte more.
//!
//! Pingora's reader of chunks is lenient, so a chunked body reaches it in its plainest form. What the client sends behind
//! the body is its next request; it stays here until the response is written.

use crate::engine::checked_stream::find_cause;
use crate::rules::chunked::ChunkFault;
use crate::server::http1_body::RequestBody;
use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The size of the buffer for bytes that are checked, in bytes.
const BUFFER_SIZE: usize = 8 << 10;

/// A client's connection while one of its requests is forwarded.
#[derive(Debug)]
pub(crate) struct RequestStream {
    /// `None` only while it is dropped.
    inner: Option<Stream>,
    body: RequestBody,
    /// Bytes from the client that are not checked yet. Once the body is complete, they belong to the next request.
    received: Vec<u8>,
    /// The client has closed its sending side.
    sends_no_more: bool,
    /// Checked bytes, and how many of them Pingora has read.
    checked: (Vec<u8>, usize),
    unread: UnreadStream,
}

/// Gets the connection of a request whose body Pingora has not read to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnreadStream(Arc<Mutex<Option<Stream>>>);

impl UnreadStream {
    /// Returns the connection, if the request is over and its body is not complete.
    pub(crate) fn take(&self) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.body.is_complete() {
            *self.unread.0.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
        }
    }
}

impl RequestStream {
    /// Wraps a connection behind the head of a request. `received` has the bytes behind the head that were read already.
    #[must_use]
    pub(crate) fn new(inner: Stream, body: RequestBody, received: Vec<u8>, unread: &UnreadStream) -> Self {
        Self {
            inner: Some(inner),
            body,
            received,
            sends_no_more: false,
            checked: (Vec::new(), 0),
            unread: unread.clone(),
        }
    }

    fn inner(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Returns the connection that was wrapped, and the bytes of the next request that were read already.
    #[must_use]
    pub(crate) fn unwrap(stream: Stream) -> Option<(Stream, Vec<u8>)> {
        let mut stream = stream.into_any().downcast::<Self>().ok()?;
        Some((stream.inner.take()?, std::mem::take(&mut stream.received)))
    }

    /// Waits until the connection breaks. A client that closes its sending side after a whole request still waits for the
    /// response (RFC 9112, section 9.6). The first bytes of another request are stored.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.received.is_empty() && !self.sends_no_more {
            let mut bytes = [0; BUFFER_SIZE];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(self.inner()?.poll_read(cx, &mut buffer))?;
            self.sends_no_more = buffer.filled().is_empty();
            self.received.extend_from_slice(buffer.filled());
        }
        // The response wakes the task.
        Poll::Pending
    }

    /// Reads data that Pingora may get as it is.
    fn poll_plain(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = usize::try_from(self.body.plain_bytes()).unwrap_or(usize::MAX);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(buffer.remaining().min(most)));
        ready!(self.inner()?.poll_read(cx, &mut part))?;
        let length = part.filled().len();
        buffer.advance(length);
        self.body.pass(length as u64);
        Poll::Ready(Ok(()))
    }

    /// Checks the next bytes from the client. Returns whether there were any.
    fn poll_check(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; BUFFER_SIZE];
        if self.received.is_empty() {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(self.inner()?.poll_read(cx, &mut buffer))?;
            self.received.extend_from_slice(buffer.filled());
        }
        let (checked, read) = &mut self.checked;
        checked.clear();
        *read = 0;
        let any = !self.received.is_empty();
        let length = self.body.read(&self.received, checked);
        self.received.drain(..length.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?);
        Poll::Ready(Ok(any))
    }
}

/// Returns why a request body was refused, if that is the cause of an error.
#[must_use]
pub(crate) fn chunk_fault(error: &pingora::Error) -> Option<ChunkFault> {
    find_cause(error, |error| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<ChunkFault>().copied())
}

impl AsyncRead for RequestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let (checked, read) = &mut self.checked;
            let rest = &checked[*read..];
            if !rest.is_empty() {
                let length = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..length]);
                *read += length;
                return Poll::Ready(Ok(()));
            }
            if self.body.is_complete() {
                return self.poll_broken(cx);
            }
            if self.received.is_empty() && self.body.plain_bytes() > 0 {
                return self.poll_plain(cx, buffer);
            }
            if !ready!(self.poll_check(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for RequestStream {
    async fn shutdown(&mut self) {
        if let Some(inner) = &mut self.inner {
            Shutdown::shutdown(&mut **inner).await;
        }
    }
}

impl UniqueID for RequestStream {
    fn id(&self) -> UniqueIDType {
        self.inner.as_ref().map_or(-1, |inner| inner.id())
    }
}

impl Ssl for RequestStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.as_ref()?.get_ssl_digest()
    }
}

impl GetTimingDigest for RequestStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.as_ref().map(|inner| inner.get_timing_digest()).unwrap_or_default()
    }
}

impl GetProxyDigest for RequestStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.as_ref()?.get_proxy_digest()
    }
}

impl GetSocketDigest for RequestStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.as_ref()?.get_socket_digest()
    }
}

impl Peek for RequestStream {}
