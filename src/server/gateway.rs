//! Entry point for HTTP/1 and HTTP/2 requests: reads each, has the pipeline handle it, and writes the response.
//!
//! Requests that are forwarded go to Pingora's proxy. The gateway makes no decision about a request.

use crate::base::memory_budget::Reservation;
use crate::base::metrics::EdgeMetrics;
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::{FormError, Request, Response};
use crate::config::edge::Limits;
use crate::engine::request_record::{InFlightCounts, RequestRecord};
use crate::pipeline::watch::WatchStream;
use crate::pipeline::{Handled, Pipeline};
use crate::runtime;
use crate::server::access_log::{AccessLogger, End};
use crate::server::guess_delay::GuessDelay;
use crate::server::http1::{BodyEnd, Http1Connection};
use crate::server::http1_body::RequestBody;
use crate::server::http1_head::{BodyFraming, RequestHead};
use crate::server::http2_stream::Http2Stream;
use crate::server::next_head::ConnectionEnd;
use crate::server::proxy::{PassThrough, ProxyContext};
use crate::server::request_log::{Counters, InFlight, RequestLog, with_begin};
use crate::server::request_stream::{RequestStream, UnreadStream};
use crate::server::shutdown::ShutdownSignals;
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

/// Serves requests.
pub(crate) struct Gateway {
    pass_through: PassThrough,
    /// Streams forwarded requests.
    proxy: Arc<HttpProxy<PassThrough>>,
    metrics: EdgeMetrics,
    guess_delay: GuessDelay,
    /// Start of every request id that Weir makes. It is random, so that two processes make different ids.
    id_prefix: String,
    next_id: AtomicU64,
}

/// What to do with a request that the pipeline has handled.
#[allow(clippy::large_enum_variant)] // nearly all are of the large variant; a box would cost more than it saves
enum NextStep<'g> {
    /// Write the response.
    Respond(Response, ServedRequest<'g>),
    /// Forward the request to the provider.
    Forward(ProxyContext),
    /// Write the response and then its events, until they end or the client closes the connection.
    Watch(Response, Box<WatchStream>, ServedRequest<'g>),
}

/// A request whose response is ready to be written. It is recorded at its end, or when it is dropped before that.
struct ServedRequest<'g> {
    log: &'g RequestLog,
    method: Method,
    started: Instant,
    /// How long it took until its response, if that is not its end.
    response_took: Option<Duration>,
    record: RequestRecord,
    /// How many bytes of the response's body were sent.
    sent: usize,
    recorded: bool,
    _in_flight: Option<InFlight>,
}

impl ServedRequest<'_> {
    /// Returns how to write the line of a request that lasts, and where to count the bytes that were sent.
    fn parts(&mut self) -> (impl FnOnce(), &mut usize) {
        let Self { log, method, started, record, sent, .. } = self;
        let begin = || {
            let line = log.begin(method, record, started.elapsed());
            log.write(line);
        };
        (begin, sent)
    }

    /// Records the request after its response was written or could not be written. Returns the time.
    fn finish(mut self, counters: &mut Counters) -> Instant {
        self.record(counters)
    }

    fn record(&mut self, counters: &mut Counters) -> Instant {
        let ended = now();
        if !std::mem::replace(&mut self.recorded, true) {
            let took = ended - self.started;
            let end = End { response_took: self.response_took.unwrap_or(took), took, sent: self.sent };
            self.log.record(counters, &self.method, &mut self.record, end);
        }
        ended
    }
}

impl Drop for ServedRequest<'_> {
    fn drop(&mut self) {
        self.record(&mut Counters::default());
    }
}

impl Gateway {
    /// Creates a gateway in front of `pipeline`.
    #[must_use]
    pub(crate) fn new(pipeline: Arc<Pipeline>, logger: AccessLogger, id_prefix: String) -> Self {
        let metrics = pipeline.shared.metrics.edge.clone();
        let log = Arc::new(RequestLog::new(pipeline.clone(), logger));
        let pass_through = PassThrough { pipeline, log };
        let conf = Arc::new(ServerConf { max_retries: 8, ..ServerConf::default() });
        let mut proxy = http_proxy(&conf, pass_through.clone());
        proxy.handle_init_modules();
        Self {
            pass_through,
            proxy: Arc::new(proxy),
            guess_delay: GuessDelay::new(&metrics, "a key"),
            metrics,
            id_prefix,
            next_id: AtomicU64::new(1),
        }
    }

    /// Has the pipeline handle a request.
    async fn handle(&self, request: &Request) -> NextStep<'_> {
        let started = now();
        let pipeline = &self.pass_through.pipeline;
        let in_flight = InFlight::new(&pipeline.shared.metrics.http.in_flight);
        let (handled, mut record) = pipeline.handle(request, self.request_id(&request.headers)).await;
        let served = |record, in_flight, response_took| ServedRequest {
            log: &self.pass_through.log,
            method: request.method.clone(),
            started,
            response_took,
            record,
            sent: 0,
            recorded: false,
            _in_flight: in_flight,
        };
        match handled {
            // A watch does not count as in flight: it has limits of its own.
            Handled::Watch(response, events) if request.method != Method::HEAD => {
                record.in_flight = InFlightCounts::default();
                let mut served = served(record, None, Some(started.elapsed()));
                served.parts().0();
                NextStep::Watch(response, events, served)
            }
            Handled::Respond(response) | Handled::Watch(response, _) => {
                NextStep::Respond(response, served(record, Some(in_flight), None))
            }
            Handled::Forward(mut forward) => {
                forward.record = record;
                forward.start_upstream_step();
                let context = ProxyContext::new(&self.pass_through, &request.method, started, in_flight, forward);
                NextStep::Forward(context)
            }
        }
    }

    /// Returns the client's own request id if it is valid, otherwise a new one. A valid id has 1 to 128 characters that need
    /// no quoting in headers, JSON and logs.
    fn request_id(&self, headers: &RequestHeaders) -> String {
        let sent = headers.text("x-request-id");
        let valid = |id: &&str| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:+/=".contains(&b))
        };
        match sent.filter(valid) {
            Some(id) => id.to_owned(),
            None => self.new_request_id(),
        }
    }

    /// Makes a request id: the prefix and a number in hexadecimal with at least 8 digits.
    fn new_request_id(&self) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let digit = |shift: u32| char::from(b"0123456789abcdef"[(number >> shift) as usize & 15]);
        let digits = 8.max(u64::BITS.div_ceil(4) - number.leading_zeros() / 4);
        let mut id = String::with_capacity(self.id_prefix.len() + 17);
        id.push_str(&self.id_prefix);
        id.push('-');
        id.extend((0..digits).rev().map(|position| digit(4 * position)));
        id
    }

    /// Serves an HTTP/1 connection until it closes.
    pub(crate) async fn serve(&self, stream: Stream, peer: IpAddr, limits: &Limits, signals: &ShutdownSignals) {
        let mut connection = Http1Connection::new(stream, limits, signals);
        let (mut counters, mut idle_since) = (Counters::default(), now());
        let pipeline = &self.pass_through.pipeline;
        for remaining in (0..limits.requests_per_connection).rev() {
            let share = || Some(pipeline.head_share(peer));
            let mut head = match connection.next_head(Some(peer), idle_since, &share).await.into_head() {
                Ok(head) => head,
                Err(None) => return,
                Err(Some(end)) => return self.end_without_request(connection, end).await,
            };
            let _head_memory = connection.take_head_memory().map(|memory| pipeline.charge_head(&head.request, memory));
            let _form_memory = match head.request.method {
                Method::POST => self.read_form(&mut connection, &mut head, limits).await,
                _ => None,
            };
            let request = &head.request;
            match self.handle(request).await {
                NextStep::Respond(response, mut served) => {
                    // Weir's own routes ignore a body. The next request would begin after it, so the connection closes.
                    let keep_alive =
                        head.keep_alive && !head.has_body() && remaining > 0 && !connection.is_last_request();
                    let Some(delayed) = self.guess_delay.wait(served.record.guess).await else { return };
                    // The delay is not time that the request took.
                    served.started += delayed;
                    let now = served.record.responded_at;
                    let (begin, sent) = served.parts();
                    let write = connection.write_response(request, response, keep_alive, now, sent);
                    let written = with_begin(write, begin).await;
                    idle_since = served.finish(&mut counters);
                    match written {
                        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                            return self.count_end("stall_timeout");
                        }
                        Err(_) => return,
                        Ok(()) if keep_alive => connection.consume(head.length),
                        Ok(()) => {
                            if remaining == 0 && head.keep_alive {
                                self.count_end("requests_per_connection");
                            }
                            return self.close(connection, head.has_body()).await;
                        }
                    }
                }
                NextStep::Watch(response, events, mut served) => {
                    let events = events.events();
                    connection.write_stream(request, response, events, runtime::now(), &mut served.sent).await;
                    served.finish(&mut counters);
                    return self.close(connection, head.has_body()).await;
                }
                NextStep::Forward(context) => {
                    match self.forward(connection, &head, context, remaining, limits, signals).await {
                        Some(next) => (connection, idle_since) = (next, now()),
                        None => return,
                    }
                }
            }
        }
    }

    /// Reads the body of a request if it is a form. Then the head has no body and no bytes that are still in the buffer.
    /// Returns the memory of the form.
    async fn read_form(
        &self,
        connection: &mut Http1Connection,
        head: &mut RequestHead,
        limits: &Limits,
    ) -> Option<Reservation> {
        let memory = match self.pass_through.pipeline.form_memory(&head.request) {
            Ok(memory) => memory?,
            Err(error) => {
                head.request.form = Some(Err(error));
                return None;
            }
        };
        let read = connection.read_body(head, limits.body_bytes, limits).await;
        let form = read.map_err(|end| match end {
            BodyEnd::TooLarge => FormError::TooLarge { limit: limits.body_bytes },
            BodyEnd::Timeout => FormError::Late,
            BodyEnd::Invalid | BodyEnd::Closed => FormError::Incomplete,
        });
        if form.is_ok() {
            head.body = BodyFraming::Length(0);
        }
        head.length = 0;
        head.request.form = Some(form.and_then(|form| String::from_utf8(form).map_err(|_| FormError::NotUtf8)));
        Some(memory)
    }

    /// Ends an HTTP/1 connection on which no further request was read.
    async fn end_without_request(&self, mut connection: Http1Connection, end: ConnectionEnd) {
        end.limit.into_iter().for_each(|limit| self.count_limited(limit));
        self.count_end(end.reason);
        if let Some(problem) = end.problem
            && connection.write_problem(&problem).await.is_err()
        {
            return;
        }
        self.close(connection, end.unread).await;
    }

    /// Closes a connection. Counts it if the client sent more of an unread body than is discarded.
    async fn close(&self, connection: Http1Connection, unread: bool) {
        if !connection.close(unread).await {
            self.count_limited("body_bytes");
        }
    }

    /// Has Pingora forward a request, which it parses again. Returns the connection if the client may use it again.
    async fn forward(
        &self,
        connection: Http1Connection,
        head: &RequestHead,
        context: ProxyContext,
        remaining: u32,
        limits: &Limits,
        signals: &ShutdownSignals,
    ) -> Option<Http1Connection> {
        let (stream, mut received) = connection.into_parts();
        let behind_head = received.split_off(head.length);
        let body = RequestBody::framed(head);
        let unread = UnreadStream::default();
        let mut session = HttpSession::new(Box::new(RequestStream::new(stream, body, behind_head.into(), &unread)));
        session.set_pipelined_prefix(head.in_origin_form(received));
        session.set_read_timeout(Some(limits.stall_timeout.min(limits.body_timeout)));
        session.set_write_timeout(Some(limits.stall_timeout));
        // A proxy in front of Weir may take what follows a request to upgrade for another protocol.
        let is_upgrade = head.request.headers.contains("upgrade");
        session.set_keepalive_reuses_remaining(Some(if is_upgrade { 0 } else { remaining }));
        // Except for a 100 that the client expects.
        session.set_ignore_info_resp(true);
        let process = self.proxy.process_new_http(ServerSession::H1(session), &signals.last_request);
        let Some(reused) = context.scope(process).await else {
            // The response came before the end of the request body.
            if let Some(stream) = unread.take() {
                self.close(Http1Connection::new(stream, limits, signals), true).await;
            }
            return None;
        };
        let (stream, received) = RequestStream::unwrap(reused.consume().0)?;
        let mut connection = Http1Connection::new(stream, limits, signals);
        connection.put_back(&received);
        Some(connection)
    }

    /// Serves the request of an HTTP/2 stream. Returns whether the connection may carry further
    /// streams.
    pub(crate) async fn serve_stream(&self, mut stream: Http2Stream, stopping: &watch::Receiver<bool>) -> bool {
        let stall_timeout = self.pass_through.pipeline.runtime.snapshot().weir.limits.stall_timeout;
        stream.set_write_timeout(stall_timeout);
        let mut request = to_request(&stream);
        let mut _form_memory = None;
        if request.method == Method::POST {
            (_form_memory, request.form) = self.read_stream_form(&mut stream, &request).await;
        }
        match self.handle(&request).await {
            NextStep::Respond(response, mut served) => {
                let Some(delayed) = self.guess_delay.wait(served.record.guess).await else { return false };
                served.started += delayed;
                let (begin, sent) = served.parts();
                let written = with_begin(stream.write_response(&request.method, response, sent), begin).await;
                served.finish(&mut Counters::default());
                if written.is_ok() {
                    let _ = stream.end();
                }
            }
            NextStep::Watch(response, events, mut served) => {
                write_events(&mut stream, response, events, &mut served.sent).await;
                served.finish(&mut Counters::default());
                let _ = stream.end();
            }
            NextStep::Forward(context) => {
                let Some(body_deadline) = context.body_deadline() else { return true };
                if stream.has_no_body() {
                    body_deadline.part_received(tokio::time::Instant::now(), true);
                }
                let session = ServerSession::new_custom(Box::new(stream));
                let forwarded = context.scope(self.proxy.process_new_http(session, stopping));
                // Pingora has no deadline for the body of an HTTP/2 stream. Dropping the future resets the stream.
                tokio::select! {
                    _ = forwarded => {}
                    late = body_deadline.wait_until_exceeded() => self.count_limited(late.limit()),
                }
            }
        }
        true
    }

    /// Reads the body of an HTTP/2 request if it is a form. Returns its memory and the form.
    async fn read_stream_form(
        &self,
        stream: &mut Http2Stream,
        request: &Request,
    ) -> (Option<Reservation>, Option<Result<String, FormError>>) {
        let pipeline = &self.pass_through.pipeline;
        let memory = match pipeline.form_memory(request) {
            Ok(None) => return (None, None),
            Ok(memory) => memory,
            Err(error) => return (None, Some(Err(error))),
        };
        let snapshot = pipeline.runtime.snapshot();
        let limits = &snapshot.weir.limits;
        let form = tokio::time::timeout(limits.body_timeout, stream.read_form(limits.body_bytes)).await;
        (memory, Some(form.unwrap_or(Err(FormError::Late))))
    }

    /// Counts a connection that Weir ended or refused.
    pub(crate) fn count_end(&self, reason: &str) {
        self.metrics.ended.with_label_values(&[reason]).inc();
    }

    fn count_limited(&self, limit: &str) {
        self.metrics.limited.with_label_values(&[limit]).inc();
    }
}

/// Reads the clock, for the duration of a request.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Writes a response and then its events, until they end or the client closes the stream. Adds the bytes of its body that
/// were sent to `sent`.
async fn write_events(stream: &mut Http2Stream, response: Response, events: Box<WatchStream>, sent: &mut usize) {
    let mut events = events.events();
    if stream.write_head(&response).is_err() {
        return;
    }
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = stream.reset() => return,
        };
        let Some(event) = event else { return };
        if stream.write_body_parts(event, false, sent).await.is_err() {
            return;
        }
    }
}

/// Converts the head of an HTTP/2 request.
fn to_request(stream: &Http2Stream) -> Request {
    let header = stream.request();
    let mut headers = RequestHeaders::from(&header.headers);
    // HTTP/2 has the host in `:authority` (RFC 9113, section 8.3.1).
    if let (Some(authority), false) = (header.uri.authority(), headers.contains("host")) {
        headers.append("host", authority.as_str().as_bytes());
    }
    Request {
        method: header.method.clone(),
        version: header.version,
        path: header.uri.path().to_owned(),
        query: header.uri.query().unwrap_or_default().to_owned(),
        headers,
        peer: stream.peer(),
        form: None,
    }
}
