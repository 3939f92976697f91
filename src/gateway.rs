//! Where requests come in, whatever they are spoken in: each is read, asked of the line, and answered or
//! passed on.
//!
//! A room of its own because HTTP/1 and HTTP/2 differ in how bytes come and go, and in nothing else. It makes no
//! decision about a request.

use crate::config::edge::Limits;
use crate::error::{Code, Problem};
use crate::exchange::{Answer, Request};
use crate::headers::Headers;
use crate::metrics::EdgeMetrics;
use crate::observe::{AccessLogger, Counters};
use crate::pipeline::{Handled, Line};
use crate::proxy::{self, InFlight, Passing, Way};
use crate::runtime;
use crate::trace::Trace;
use crate::watching::Watching;
use crate::wire::{Came, Ends, Wire};
use futures_util::stream::StreamExt;
use http::Method;
use pingora::apps::HttpServerApp;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Answers requests.
pub struct Gateway {
    passing: Passing,
    /// Streams what is passed on.
    proxy: Arc<HttpProxy<Passing>>,
    metrics: EdgeMetrics,
    /// Begins every request id made here; random, so that several Weirs do not make the same.
    prefix: String,
    next: AtomicU64,
}

/// What becomes of a request.
#[allow(clippy::large_enum_variant)] // nearly all are of the large one, which a box would cost more than it saves
enum Asked {
    /// It has an answer, to be written.
    Answered(Answer, Begun),
    /// It is passed on.
    Passed(Way),
    /// Its answer goes on until what is watched ends, or the client goes.
    Watching(Answer, Box<Watching>, Trace, Duration),
}

/// A request that is being answered.
struct Begun {
    started: Instant,
    trace: Trace,
    _in_flight: InFlight,
}

impl Gateway {
    /// A gateway on a line.
    #[must_use]
    pub fn new(line: Arc<Line>, logger: AccessLogger, prefix: String) -> Self {
        let metrics = line.shared.metrics.edge.clone();
        let passing = Passing { line, logger: Arc::new(logger) };
        let conf = Arc::new(ServerConf { max_retries: 8, ..ServerConf::default() });
        let mut proxy = http_proxy(&conf, passing.clone());
        proxy.handle_init_modules();
        Self { passing, proxy: Arc::new(proxy), metrics, prefix, next: AtomicU64::new(1) }
    }

    /// Asks the line.
    async fn ask(&self, request: &Request) -> Asked {
        let started = now();
        let line = &self.passing.line;
        let in_flight = InFlight::begin(&line.shared.metrics.http.in_flight);
        let (handled, mut trace) = line.handle(request, self.request_id(&request.headers)).await;
        match handled {
            Handled::Answered(answer) => {
                if request.method == Method::HEAD {
                    trace.bytes = 0;
                }
                Asked::Answered(answer, Begun { started, trace, _in_flight: in_flight })
            }
            // It is bounded apart from requests that have an end: it is in flight no longer.
            Handled::Watching(answer, watching) if request.method != Method::HEAD => {
                Asked::Watching(answer, watching, trace, started.elapsed())
            }
            Handled::Watching(answer, _) => Asked::Answered(answer, Begun { started, trace, _in_flight: in_flight }),
            Handled::Passed(mut forward) => {
                forward.trace = trace;
                forward.begin_passing();
                Asked::Passed(Way::new(&self.passing, &request.method, started, in_flight, forward))
            }
        }
    }

    /// Its answer was written, or nobody took it; when that was.
    fn ended(&self, counters: &mut Counters, request: &Request, mut begun: Begun) -> Instant {
        let ended = now();
        self.passing.observe(counters, &request.method, &mut begun.trace, ended - begun.started);
        ended
    }

    /// The client's own id where it is valid: 1 to 128 characters that need no quoting anywhere.
    fn request_id(&self, headers: &Headers) -> String {
        let sent = headers.text("x-request-id");
        let valid = |id: &&str| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:+/=".contains(&b))
        };
        match sent.filter(valid) {
            Some(id) => id.to_owned(),
            None => self.next_id(),
        }
    }

    /// An id of ours: the prefix and a number in hexadecimal.
    fn next_id(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let digit = |shift: u32| char::from(b"0123456789abcdef"[(number >> shift) as usize & 15]);
        let digits = 8.max(u64::BITS.div_ceil(4) - number.leading_zeros() / 4);
        let mut id = String::with_capacity(self.prefix.len() + 17);
        id.push_str(&self.prefix);
        id.push('-');
        id.extend((0..digits).rev().map(|place| digit(4 * place)));
        id
    }

    /// Serves an HTTP/1 connection to its end.
    pub async fn serve(&self, stream: Stream, peer: IpAddr, limits: &Limits, ends: &Ends) {
        let mut wire = Wire::new(stream, limits, ends);
        let (mut counters, mut idle_since) = (Counters::default(), now());
        for left in (0..limits.requests_per_connection).rev() {
            let head = match wire.head(Some(peer), idle_since).await {
                Came::Head(head) => head,
                Came::End => return,
                Came::Idle => return self.cut(wire, "idle_timeout", None).await,
                Came::Malformed(problem) => return self.cut(wire, "malformed", Some(*problem)).await,
                Came::TooLarge(limit, problem) => {
                    self.limited(limit);
                    return self.cut(wire, "malformed", Some(*problem)).await;
                }
                Came::Late => {
                    let detail = "the request's header did not come within header_timeout";
                    let problem = Problem::new(Code::RequestTimeout, detail);
                    return self.cut(wire, "header_timeout", Some(problem)).await;
                }
            };
            let request = &head.request;
            match self.ask(request).await {
                Asked::Answered(answer, begun) => {
                    // A body is not wanted here: where one comes, the connection ends.
                    let goes_on = head.keep_alive && !head.has_body && left > 0 && !wire.stops();
                    let written = wire.answer(request, answer, goes_on, begun.trace.answered_at).await;
                    idle_since = self.ended(&mut counters, request, begun);
                    match written {
                        Err(error) if error.kind() == io::ErrorKind::TimedOut => return self.cut_off("stall_timeout"),
                        Err(_) => return,
                        Ok(()) if goes_on => wire.consume(head.length),
                        Ok(()) => {
                            if left == 0 && head.keep_alive {
                                self.cut_off("requests_per_connection");
                            }
                            return self.end(wire, head.has_body).await;
                        }
                    }
                }
                Asked::Watching(answer, watching, mut trace, took) => {
                    trace.bytes = wire.stream(request, answer, watching.parts(), runtime::now()).await;
                    self.passing.observe(&mut counters, &request.method, &mut trace, took);
                    return self.end(wire, head.has_body).await;
                }
                Asked::Passed(way) => match self.pass(wire, way, left, limits, ends).await {
                    Some(next) => (wire, idle_since) = (next, now()),
                    None => return,
                },
            }
        }
    }

    /// Ends a connection that cannot go on.
    async fn cut(&self, mut wire: Wire, why: &str, problem: Option<Problem>) {
        self.cut_off(why);
        if let Some(problem) = problem
            && wire.tell(&problem).await.is_err()
        {
            return;
        }
        self.end(wire, why == "malformed").await;
    }

    /// Ends a connection; of a body that is not wanted, so much is read past.
    async fn end(&self, wire: Wire, unread: bool) {
        if !wire.end(unread).await {
            self.limited("body_bytes");
        }
    }

    /// Has Pingora read again what came of a request and stream it; gives the connection back where it can go on.
    async fn pass(&self, wire: Wire, way: Way, left: u32, limits: &Limits, ends: &Ends) -> Option<Wire> {
        let (stream, came) = wire.give();
        let mut session = HttpSession::new(stream);
        session.set_pipelined_prefix(came);
        session.set_read_timeout(Some(limits.stall_timeout.min(limits.body_timeout)));
        session.set_write_timeout(Some(limits.stall_timeout));
        session.set_keepalive_reuses_remaining(Some(left));
        let reused = way.go(self.proxy.process_new_http(ServerSession::H1(session), &ends.last)).await?;
        let (stream, _) = reused.consume();
        Some(Wire::new(stream, limits, ends))
    }

    /// Answers a request of an HTTP/2 connection.
    pub async fn stream(&self, mut session: ServerSession, stopping: &watch::Receiver<bool>) {
        let stall = self.passing.line.runtime.snapshot().weir.limits.stall_timeout;
        session.set_write_timeout(Some(stall));
        let request = translate(&session);
        match self.ask(&request).await {
            Asked::Answered(answer, begun) => {
                let written = proxy::write(&mut session, &request.method, answer).await;
                self.ended(&mut Counters::default(), &request, begun);
                if written.is_ok() {
                    let _ = session.finish().await;
                }
            }
            Asked::Watching(answer, watching, mut trace, took) => {
                trace.bytes = stream(&mut session, answer, watching).await;
                self.passing.observe(&mut Counters::default(), &request.method, &mut trace, took);
                let _ = session.finish().await;
            }
            Asked::Passed(way) => {
                let Some(pace) = way.pace() else { return };
                if session.is_body_empty() {
                    pace.came(tokio::time::Instant::now(), true);
                }
                let passed = way.go(self.proxy.process_new_http(session, stopping));
                // A stream's body has no deadlines of Pingora's; ended, the stream is reset.
                tokio::select! {
                    _ = passed => {}
                    late = pace.missed() => self.limited(late.limit()),
                }
            }
        }
    }

    /// A connection was ended or refused for this.
    pub fn cut_off(&self, why: &str) {
        self.metrics.ended.with_label_values(&[why]).inc();
    }

    fn limited(&self, limit: &str) {
        self.metrics.limited.with_label_values(&[limit]).inc();
    }
}

/// Where a request's time begins and ends.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Writes an answer that goes on until what is watched ends, or the client goes; how many bytes of it were taken.
async fn stream(session: &mut ServerSession, answer: Answer, watching: Box<Watching>) -> usize {
    let mut parts = watching.parts();
    let mut taken = 0;
    if proxy::write_head(session, answer).await.is_err() {
        return taken;
    }
    loop {
        let part = tokio::select! {
            part = parts.next() => part,
            _ = session.read_body_or_idle(true) => return taken,
        };
        let over = part.is_none();
        let part = part.unwrap_or_default();
        let bytes = part.len();
        if session.write_response_body(part, over).await.is_err() || over {
            return taken;
        }
        taken += bytes;
    }
}

fn translate(session: &ServerSession) -> Request {
    let header = session.req_header();
    let mut headers = Headers::from(&header.headers);
    // HTTP/2 names the host in its `:authority` (RFC 9113, section 8.3.1).
    if let (Some(authority), false) = (header.uri.authority(), headers.contains("host")) {
        headers.append("host", authority.as_str().as_bytes());
    }
    Request {
        method: header.method.clone(),
        version: header.version,
        path: header.uri.path().to_owned(),
        query: header.uri.query().unwrap_or_default().to_owned(),
        headers,
        peer: session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip),
    }
}
