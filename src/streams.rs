//! One HTTP/2 connection: its beginning, its streams and its end, within deadlines and bounds.
//!
//! A room of its own because here many requests share what a connection has one of: a beginning that may never
//! come, a number of streams, a last one. Pingora takes its frames apart; what is asked and answered is not known here.

use crate::config::edge::Limits;
use crate::gateway::Gateway;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Accept, H2Options, HttpSession, handshake};
use pingora::protocols::{Digest, Stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

/// How long streams may begin after the client was told that no more should: those were on their way.
const LEAVING: Duration = Duration::from_secs(1);
/// Streams that are no requests, after which a connection is not worth keeping.
const MOST_MALFORMED: u32 = 32;

/// Serves a connection to its end.
pub async fn serve(gateway: &Arc<Gateway>, stream: Stream, limits: &Limits, stopping: &watch::Receiver<bool>) {
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let mut connection = match timeout(limits.header_timeout, handshake(stream, Some(options(limits)))).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return why(&error).map_or((), |reason| gateway.cut_off(reason)),
        Err(_) => return gateway.cut_off("header_timeout"),
    };
    let streams = TaskTracker::new();
    streams.close();
    let (mut begun, mut malformed, mut leaving) = (0, 0, None);
    let mut stop = stopping.clone();
    loop {
        let came = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop), if leaving.is_none() => {
                connection.graceful_shutdown();
                leaving = Some(Instant::now() + LEAVING);
                continue;
            }
            came = HttpSession::from_h2_conn(&mut connection, digest.clone()) => came,
            () = idle(&streams, limits.idle_timeout) => return gateway.cut_off("idle_timeout"),
        };
        match came {
            Ok(Some(H2Accept::Session(_))) if leaving.is_some_and(|until| Instant::now() > until) => return,
            Ok(Some(H2Accept::Session(session))) => {
                let (answering, stopping) = (gateway.clone(), stopping.clone());
                streams.spawn(async move { answering.stream(ServerSession::new_http2(session), &stopping).await });
                begun += 1;
                if begun == limits.requests_per_connection && leaving.is_none() {
                    gateway.cut_off("requests_per_connection");
                    connection.graceful_shutdown();
                    leaving = Some(Instant::now() + LEAVING);
                }
            }
            Ok(Some(H2Accept::Rejected)) => {
                malformed += 1;
                if malformed == MOST_MALFORMED {
                    return gateway.cut_off("malformed");
                }
            }
            Ok(None) => return,
            Err(error) => return why(&error).map_or((), |reason| gateway.cut_off(reason)),
        }
    }
}

/// Ends when no stream has been open for so long.
async fn idle(streams: &TaskTracker, limit: Duration) {
    streams.wait().await;
    sleep(limit).await;
}

/// What stood against a connection; `None` where the client went.
fn why(error: &pingora::Error) -> Option<&'static str> {
    let error = error.root_cause().downcast_ref::<h2::Error>().filter(|error| error.is_library())?;
    Some(if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) { "h2_resets" } else { "malformed" })
}

/// Streams, header lists and resets. A client that resets what it asked for faster than it can be answered
/// (CVE-2023-44487), or makes us reset (CVE-2025-8671), loses its connection.
fn options(limits: &Limits) -> H2Options {
    let mut options = H2Options::default();
    // A longer list than may be is told so by Weir; one twice as long is not even read.
    let list = u32::try_from(2 * limits.h2_header_list).unwrap_or(u32::MAX);
    options
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(list)
        .max_pending_accept_reset_streams(limits.h2_resets as usize)
        .max_concurrent_reset_streams(limits.h2_streams as usize)
        .max_local_error_reset_streams(Some(limits.h2_resets as usize))
        .max_send_buffer_size(256 << 10);
    options
}
