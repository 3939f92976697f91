//! Accepts connections: counts them, does the TLS handshake, detects HTTP/2, and hands them to the gateway.
//!
//! Stops floods before the first request: too many connections, and clients that stall in a handshake or in the
//! HTTP/2 preface.

use crate::base::metrics::EdgeMetrics;
use crate::base::problem::{Code, Problem};
use crate::config::edge::Limits;
use crate::engine::open_files::OpenFiles;
use crate::runtime::Runtime;
use crate::server::connections::{ConnectionGuard, ConnectionLimit, Connections};
use crate::server::gateway::Gateway;
use crate::server::http1_response;
use crate::server::http2;
use crate::server::shutdown::ShutdownSignals;
use crate::server::socket::ClientSocket;
use pingora::protocols::{ALPN, Stream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Time limit for sending the 503 to a connection over the limit.
pub(crate) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of refusals that may be sent at the same time.
pub(crate) const MAX_REFUSALS: usize = 256;

/// What the connections of a client listener need.
pub(crate) struct ListenerContext {
    /// The listener's position among those bound at start. It selects the TLS settings.
    pub listener: usize,
    /// Serves the requests.
    pub gateway: Arc<Gateway>,
    /// Whether this listener accepts HTTP/2 without TLS by prior knowledge.
    pub h2c: bool,
    /// The configuration in force.
    pub runtime: Arc<Runtime>,
    /// The files that the process may open.
    pub files: OpenFiles,
    /// The open connections of all listeners.
    pub connections: Arc<Connections>,
    /// Metrics of connections.
    pub metrics: EdgeMetrics,
    /// Limits the refusals that are sent at the same time. Other connections over the limit are closed at once.
    pub refusals: Arc<Semaphore>,
}

/// Accepts client connections until `signals` say to stop. Serves each in a task that `tasks` tracks.
pub(crate) async fn accept_clients(
    listener: TcpListener,
    context: Arc<ListenerContext>,
    tasks: TaskTracker,
    signals: ShutdownSignals,
) {
    while let Some((socket, peer)) = accept(&listener, &signals.last_request).await {
        let caps = context.files.connections(&context.runtime.snapshot().weir.limits);
        match context.connections.open(peer.ip(), caps, &context.metrics) {
            Ok(guard) => {
                let (context, signals) = (context.clone(), signals.clone());
                tasks.spawn(async move {
                    context.serve(socket, peer, guard, signals).await;
                });
            }
            Err(limit) => {
                context.count_end(limit.name());
                // Under TLS a response would need a handshake first.
                if context.runtime.snapshot().tls_acceptor(context.listener).is_none()
                    && let Ok(permit) = context.refusals.clone().try_acquire_owned()
                {
                    tasks.spawn(async move {
                        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(socket, limit_reached(limit))).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Accepts the next connection. Returns `None` once `stopping` is true.
pub(crate) async fn accept(
    listener: &TcpListener,
    stopping: &watch::Receiver<bool>,
) -> Option<(TcpStream, SocketAddr)> {
    let mut stopping = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return None,
        };
        match accepted {
            Ok((socket, peer)) => {
                let _ = socket.set_nodelay(true);
                return Some((socket, peer));
            }
            // Most likely the process is out of file descriptors. They become free when connections close.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn limit_reached(limit: ConnectionLimit) -> Problem {
    Problem::overloaded(format!("connection limit reached (limits.{})", limit.name()))
}

/// Sends 503 to a connection over the limit. Then discards what the client sends: if the connection closed with unread
/// bytes, the system would reset it, and the client might lose the response.
pub(crate) async fn refuse(mut socket: TcpStream, problem: Problem) {
    let response = http1_response::of_problem(&problem);
    if socket.write_all(&response).await.is_ok() && socket.shutdown().await.is_ok() {
        let mut discarded = [0; 1024];
        while matches!(socket.read(&mut discarded).await, Ok(1..)) {}
    }
}

impl ListenerContext {
    async fn serve(&self, mut socket: TcpStream, peer: SocketAddr, guard: ConnectionGuard, signals: ShutdownSignals) {
        let snapshot = self.runtime.snapshot();
        let (limits, handshake) = (snapshot.weir.limits.clone(), snapshot.tls_acceptor(self.listener).cloned());
        // A connection may outlive many snapshots, so it must not keep one alive.
        drop(snapshot);
        if self.h2c && handshake.is_none() {
            match tokio::time::timeout(limits.header_timeout, starts_with_preface(&socket)).await {
                Ok(true) => {
                    let stream = Box::new(ClientSocket::new(socket, peer));
                    return self.serve_http2(stream, guard, &limits, &signals).await;
                }
                Ok(false) => {}
                Err(_) => {
                    self.count_end("header_timeout");
                    let detail = "the connection sent no request within limits.header_timeout";
                    let problem = Problem::new(Code::RequestTimeout, detail);
                    let _ = socket.write_all(&http1_response::of_problem(&problem)).await;
                    return;
                }
            }
        }
        let stream = ClientSocket::new(socket, peer);
        let stream: Stream = match handshake {
            None => Box::new(stream),
            Some(acceptor) => match tokio::time::timeout(limits.header_timeout, acceptor.tls_handshake(stream)).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(_)) => return self.count_end("tls"),
                Err(_) => return self.count_end("tls_timeout"),
            },
        };
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            return self.serve_http2(stream, guard, &limits, &signals).await;
        }
        self.gateway.serve(stream, peer.ip(), &limits, &signals).await;
    }

    /// Serves an HTTP/2 connection, if the limits permit one more.
    async fn serve_http2(
        &self,
        mut stream: Stream,
        mut guard: ConnectionGuard,
        limits: &Limits,
        signals: &ShutdownSignals,
    ) {
        let caps = self.files.connections(&self.runtime.snapshot().weir.limits);
        if let Err(limit) = guard.count_as(http2::CONNECTION_PLACES, caps) {
            self.count_end(limit.name());
            let _ = tokio::time::timeout(REFUSAL_TIMEOUT, http2::refuse(&mut stream)).await;
            return;
        }
        http2::serve(&self.gateway, stream, limits, &signals.last_request).await;
    }

    /// Counts a connection that Weir ended or refused.
    fn count_end(&self, reason: &str) {
        self.metrics.ended.with_label_values(&[reason]).inc();
    }
}

/// Returns whether a connection starts with the HTTP/2 preface. Peeks at the bytes and leaves them in the socket.
async fn starts_with_preface(socket: &TcpStream) -> bool {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let Ok(length) = socket.peek(&mut bytes).await else { return false };
        let received = &bytes[..length];
        if length == 0 || !PREFACE.starts_with(received) {
            return false;
        }
        if length == PREFACE.len() {
            return true;
        }
        // `peek` returns at once while it has any bytes, so it cannot wait for the rest of the preface.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
