//! Serves the connections of the admin listener, over HTTP/1, within the limits and timeouts of client connections.
//!
//! They are counted apart from client connections, so a flood on one listener does not refuse connections on the other.
//! A shutdown does not wait for them.

use crate::base::metrics::{AdminMetrics, EdgeMetrics};
use crate::base::problem::{Code, Outcome, Problem};
use crate::base::request_reply::{Request, Response};
use crate::config::edge::{Limits, counted_address};
use crate::engine::open_files::{ADMIN_CONNECTIONS, ConnectionCaps};
use crate::engine::request_record::Guess;
use crate::rules::request_limits;
use crate::runtime;
use crate::server::accept::{self, MAX_REFUSALS, REFUSAL_TIMEOUT};
use crate::server::admin::{AdminEndpoints, problem_response};
use crate::server::connections::Connections;
use crate::server::guess_delay::GuessDelay;
use crate::server::http1::{BodyEnd, Http1Connection};
use crate::server::http1_head::RequestHead;
use crate::server::shutdown::ShutdownSignals;
use crate::server::socket::ClientSocket;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Connections to the admin listener that are open at the same time.
/// Those from one address.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 128;

/// The admin listener.
pub(crate) struct AdminService {
    endpoints: AdminEndpoints,
    connections: Arc<Connections>,
    edge: EdgeMetrics,
    metrics: AdminMetrics,
    refusals: Arc<Semaphore>,
    guess_delay: GuessDelay,
}

impl AdminService {
    #[must_use]
    pub(crate) fn new(endpoints: AdminEndpoints) -> Arc<Self> {
        let (metrics, edge) = (endpoints.shared.metrics.admin.clone(), endpoints.shared.metrics.edge.clone());
        AdminEndpoints::create_series(&metrics);
        let edge = EdgeMetrics { connections: metrics.connections.clone(), ended: metrics.ended.clone(), ..edge };
        let refusals = Arc::new(Semaphore::new(endpoints.files.other_connections(MAX_REFUSALS)));
        let guess_delay = GuessDelay::new(&edge, "the admin token");
        Arc::new(Self { endpoints, connections: Arc::default(), edge, metrics, refusals, guess_delay })
    }

    /// Returns the limits in force. Most are those of client connections.
    fn limits(&self) -> Limits {
        let limits = self.endpoints.runtime.snapshot().weir.limits.clone();
        let connections = self.endpoints.files.other_connections(ADMIN_CONNECTIONS).min(limits.connections);
        // One address never takes all connections, however few there are.
        let per_address = MAX_CONNECTIONS_PER_ADDRESS.min(connections.div_ceil(2));
        let connections_per_address = per_address.min(limits.connections_per_address);
        Limits { connections, connections_per_address, ..limits }
    }

    /// Accepts connections until `signals` say to stop.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener, signals: ShutdownSignals) {
        let tasks = TaskTracker::new();
        while let Some((socket, peer)) = accept::accept(&listener, &signals.last_request).await {
            let limits = self.limits();
            let caps = ConnectionCaps { total: limits.connections, per_address: limits.connections_per_address };
            match self.connections.open(peer.ip(), caps, &self.edge) {
                Ok(guard) => {
                    let (service, signals) = (self.clone(), signals.clone());
                    tasks.spawn(async move {
                        service.serve(socket, peer, &limits, &signals).await;
                        drop(guard);
                    });
                }
                Err(limit) => {
                    self.count_end(limit.name());
                    if let Ok(permit) = self.refusals.clone().try_acquire_owned() {
                        tasks.spawn(async move {
                            let detail = "too many connections to the admin listener are open";
                            let refused = accept::refuse(socket, Problem::overloaded(detail));
                            let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refused).await;
                            drop(permit);
                        });
                    }
                }
            }
        }
    }

    async fn serve(&self, socket: TcpStream, peer: std::net::SocketAddr, limits: &Limits, signals: &ShutdownSignals) {
        let stream = Box::new(ClientSocket::new(socket, peer));
        let mut connection = Http1Connection::new(stream, limits, signals);
        let mut idle_since = now();
        for remaining in (0..limits.requests_per_connection).rev() {
            let head = match connection.next_head(Some(peer.ip()), idle_since, &|| None).await.into_head() {
                Ok(head) => head,
                Err(None) => return,
                Err(Some(end)) => {
                    self.count_end(end.reason);
                    if let Some(problem) = end.problem
                        && connection.write_problem(&problem).await.is_ok()
                    {
                        connection.close(end.unread).await;
                    }
                    return;
                }
            };
            let answered = self.answer(&mut connection, &head, peer.ip(), limits).await;
            // Somebody may be guessing the token.
            let is_guess = answered.response.status == 401;
            let guess = is_guess.then(|| Guess { address: counted_address(peer.ip()), through_proxy: false });
            if self.guess_delay.wait(guess).await.is_none() {
                return;
            }
            let keep_alive = head.keep_alive && !answered.unread && remaining > 0 && !connection.is_last_request();
            let (request, response) = (&head.request, answered.response);
            let written = connection.write_response(request, response, keep_alive, runtime::now(), &mut 0).await;
            idle_since = now();
            match written {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return self.count_end("stall_timeout"),
                Err(_) => return,
                Ok(()) if !keep_alive => {
                    connection.close(answered.unread).await;
                    return;
                }
                Ok(()) if !answered.consumed => connection.consume(head.length),
                Ok(()) => {}
            }
        }
    }

    /// Answers one request. Reads its body only if the endpoint has one and the request is permitted.
    async fn answer(
        &self,
        connection: &mut Http1Connection,
        head: &RequestHead,
        peer: IpAddr,
        limits: &Limits,
    ) -> Answered {
        let (mut unread, mut consumed) = (head.has_body(), false);
        let permitted = self
            .check_size(&head.request, limits)
            .and_then(|()| self.endpoints.permit(&head.request, head.has_body(), peer).map_err(Box::new));
        let result = match permitted {
            Err(problem) => Err(problem),
            Ok(endpoint) if !endpoint.changes() => Ok((endpoint, Vec::new())),
            Ok(endpoint) => {
                consumed = true;
                let body = connection.read_body(head, limits.body_bytes, limits).await;
                unread &= body.is_err();
                body.map(|body| (endpoint, body)).map_err(|end| self.body_problem(end, limits))
            }
        };
        let response = match result {
            Ok((endpoint, body)) => self.endpoints.respond(endpoint, &body).await,
            Err(problem) => problem_response(&problem),
        };
        let endpoint = AdminEndpoints::label(&head.request.path);
        let status = response.status.to_string();
        self.metrics.requests.with_label_values(&[endpoint, &status]).inc();
        Answered { response, unread, consumed }
    }

    fn check_size(&self, request: &Request, limits: &Limits) -> Outcome<()> {
        request_limits::check_head(request, limits).map_err(|exceeded| {
            let code = if exceeded.name() == "url_bytes" { Code::UrlTooLong } else { Code::HeadersTooLarge };
            Box::new(Problem::new(code, format!("{exceeded} (limits.{})", exceeded.name())))
        })
    }

    fn body_problem(&self, end: BodyEnd, limits: &Limits) -> Box<Problem> {
        Box::new(match end {
            BodyEnd::TooLarge => {
                let detail = format!("the request body is longer than {} bytes (limits.body_bytes)", limits.body_bytes);
                Problem::new(Code::BodyTooLarge, detail)
            }
            BodyEnd::Timeout => {
                self.count_end("body_timeout");
                let detail = "the request body was not complete within limits.body_timeout, or stalled";
                Problem::new(Code::RequestTimeout, detail)
            }
            BodyEnd::Invalid | BodyEnd::Closed => {
                Problem::invalid("the request body is not complete, or has an invalid chunk (RFC 9112, section 7.1)")
            }
        })
    }

    fn count_end(&self, reason: &str) {
        self.metrics.ended.with_label_values(&[reason]).inc();
    }
}

/// A response, and what was read of the request.
struct Answered {
    response: Response,
    /// The request has a body that was not read.
    unread: bool,
    /// The request's bytes are no longer in the connection's buffer.
    consumed: bool,
}

/// Reads the clock, for the idle timeout.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
