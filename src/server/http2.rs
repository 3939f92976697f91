//! Serves one HTTP/2 connection: accepts its streams and closes it, within timeouts and limits.
//!
//! Pingora parses the frames. The gateway handles the requests, one for each stream.

use crate::config::edge::Limits;
use crate::server::gateway::Gateway;
use crate::server::http2_frames::{FollowedStream, HeaderBlocks, HeaderFaults};
use crate::server::http2_stream::{Http2Stream, Rejection};
use bytes::Bytes;
use futures_util::future::FutureExt;
use h2::server::Connection;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::{Digest, Stream};
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many connections of HTTP/1 one of HTTP/2 counts as: with all its streams in use, it takes as much memory as they do.
pub(crate) const CONNECTION_PLACES: usize = 8;
/// What a connection over the limits receives: an empty SETTINGS frame, and GOAWAY with the reason `ENHANCE_YOUR_CALM` (RFC
/// 9113, section 6.8).
const REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
/// How long new streams are accepted after GOAWAY: the client may have sent them before it received the frame.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// A connection accepts no further stream after this many more malformed requests than others.
const MAX_MALFORMED: u32 = 32;
/// The most bytes of a header block as it is sent. What it may contain is limited by `limits.h2_header_list`.
const MAX_HEADER_BLOCK: usize = 256 << 10;
/// The most response bytes that are buffered for one stream.
const MAX_SEND_BUFFER: usize = 256 << 10;

/// Serves a connection until it closes. Counts it if Weir closes it.
pub(crate) async fn serve(gateway: &Arc<Gateway>, stream: Stream, limits: &Limits, stopping: &watch::Receiver<bool>) {
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let faults = Arc::<HeaderFaults>::default();
    let stream = FollowedStream::new(stream, HeaderBlocks::new(MAX_HEADER_BLOCK, faults.clone()));
    let reason = match timeout(limits.header_timeout, options(limits).handshake(stream)).await {
        Ok(Ok(connection)) => serve_streams(gateway, connection, (digest, faults), limits, stopping).await,
        Ok(Err(error)) => end_reason(&error),
        Err(_) => Some("header_timeout"),
    };
    if let Some(reason) = reason {
        gateway.count_end(reason);
    }
}

/// Refuses a connection, and closes it once the client has closed it too.
///
/// # Errors
/// The client has closed the connection already.
pub(crate) async fn refuse(stream: &mut Stream) -> std::io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.flush().await?;
    stream.shutdown().await?;
    let mut discarded = [0; 1024];
    while matches!(stream.read(&mut discarded).await, Ok(1..)) {}
    Ok(())
}

/// Serves the streams of a connection until it closes. Returns the metric's reason why Weir closed it; `None` if the
/// client closed it, or if Weir has counted the reason already.
async fn serve_streams(
    gateway: &Arc<Gateway>,
    mut connection: Connection<FollowedStream, Bytes>,
    (digest, faults): (Arc<Digest>, Arc<HeaderFaults>),
    limits: &Limits,
    stopping: &watch::Receiver<bool>,
) -> Option<&'static str> {
    let streams = TaskTracker::new();
    streams.close();
    let closing = CancellationToken::new();
    let (mut accepted, mut malformed, mut accept_until) = (0, 0_u32, None);
    let mut stop = stopping.clone();
    loop {
        let next = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop), if accept_until.is_none() => {
                connection.graceful_shutdown();
                accept_until = Some(Instant::now() + GOAWAY_GRACE);
                continue;
            }
            () = closing.cancelled(), if accept_until.is_none() => {
                connection.graceful_shutdown();
                accept_until = Some(Instant::now() + GOAWAY_GRACE);
                continue;
            }
            next = connection.accept() => next,
            () = idle(&streams, limits.idle_timeout) => return Some("idle_timeout"),
        };
        let (request, respond) = match next {
            Some(Ok(next)) => next,
            Some(Err(error)) => return end_reason(&error),
            None => return None,
        };
        if accept_until.is_some_and(|until| Instant::now() > until) {
            return None;
        }
        accepted += 1;
        malformed = match Http2Stream::accept(request, respond, digest.clone(), faults.clone()) {
            Err(Rejection::Malformed) => malformed + 1,
            Err(Rejection::Invalid) => malformed,
            Ok(stream) => {
                let (gateway_of_stream, stopping, closing) = (gateway.clone(), stopping.clone(), closing.clone());
                // A panic ends this stream only: the others of the connection may be of other clients.
                let served = AssertUnwindSafe(async move {
                    if !gateway_of_stream.serve_stream(stream, &stopping).await {
                        closing.cancel();
                    }
                });
                let mut served = Box::pin(served.catch_unwind());
                // Most requests wait for nothing. Only one that waits takes the memory of a task.
                if poll_fn(|cx| Poll::Ready(served.as_mut().poll(cx))).await.is_pending() {
                    streams.spawn(served);
                }
                malformed.saturating_sub(1)
            }
        };
        let reached = match (malformed >= MAX_MALFORMED, accepted >= limits.requests_per_connection) {
            (true, _) => "malformed",
            (false, true) => "requests_per_connection",
            (false, false) => continue,
        };
        if accept_until.is_none() {
            gateway.count_end(reached);
            // The streams that are open end as usual.
            connection.graceful_shutdown();
            accept_until = Some(Instant::now() + GOAWAY_GRACE);
        }
    }
}

/// Returns once no stream has been open for `limit`.
async fn idle(streams: &TaskTracker, limit: Duration) {
    streams.wait().await;
    sleep(limit).await;
}

/// Returns the metric's reason why Weir closed the connection; `None` if the client closed it.
fn end_reason(error: &h2::Error) -> Option<&'static str> {
    if error.get_io().is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData) {
        return Some("malformed");
    }
    let flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
    error.is_library().then_some(if flood { "h2_resets" } else { "malformed" })
}

/// Limits on streams, header lists and resets. A client that resets requests faster than Weir can serve them
/// (CVE-2023-44487), or makes Weir reset them (CVE-2025-8671), loses its connection.
fn options(limits: &Limits) -> H2Options {
    let mut options = H2Options::default();
    // Weir itself responds 431 to a list over the limit. Only a list over twice the limit is refused by the library.
    let max_header_list = u32::try_from(2 * limits.h2_header_list).unwrap_or(u32::MAX);
    options
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(max_header_list)
        .max_pending_accept_reset_streams(limits.h2_resets as usize)
        .max_concurrent_reset_streams(limits.h2_streams as usize)
        .max_local_error_reset_streams(Some(limits.h2_resets as usize))
        .max_send_buffer_size(MAX_SEND_BUFFER);
    options
}
