//! Pingora's side of the line: translate a request, hand it over, write the answer or let it stream.
//!
//! A room of its own because implementing a framework's trait attracts everything. It makes no
//! decision: what it may not do is look into a request or an answer.

use crate::error::{Code, Problem};
use crate::exchange::{Answer, Request};
use crate::forward::{Answered, Forward};
use crate::observe::{self, AccessLogger};
use crate::pipeline::{Handled, Line};
use crate::runtime;
use crate::trace::Trace;
use crate::upstream::passing_failure;
use crate::watched;
use crate::watching::Watching;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use prometheus::IntGauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The app that Pingora calls. A copy is the same one.
#[derive(Clone)]
pub struct Gateway {
    line: Arc<Line>,
    logger: Arc<AccessLogger>,
    /// Begins every request id made here; random, so that several Weirs do not make the same.
    prefix: Arc<str>,
    next: Arc<AtomicU64>,
}

/// One request, as far as it has come.
#[derive(Default)]
pub struct Way {
    in_flight: Option<InFlight>,
    /// When it began, and where it is passed on to, if it is.
    passed: Option<(Instant, Box<Forward>)>,
    /// What the client is told instead of an answer of the provider's.
    refused: Option<Answer>,
    /// Whether a connection to the provider was had.
    connected: bool,
    /// It is to be tried again with another credential.
    again: bool,
}

impl Gateway {
    /// A gateway on a line.
    #[must_use]
    pub fn new(line: Arc<Line>, logger: AccessLogger, prefix: String) -> Self {
        Self { line, logger: Arc::new(logger), prefix: prefix.into(), next: Arc::new(AtomicU64::new(1)) }
    }

    /// The client's own id where it is valid: 1 to 128 characters that need no quoting anywhere.
    fn request_id(&self, headers: &HeaderMap) -> String {
        let sent = headers.get("x-request-id").and_then(|value| value.to_str().ok());
        let valid = |id: &&str| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:+/=".contains(&b))
        };
        match sent.filter(valid) {
            Some(id) => id.to_owned(),
            None => format!("{}-{:08x}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// For each part of a body or an answer, and for the next request.
    fn timeouts(&self) -> (Duration, Duration) {
        let limits = &self.line.runtime.snapshot().weir.limits;
        (limits.stall_timeout, limits.idle_timeout)
    }

    fn observe(&self, method: &Method, trace: &Trace, took: Duration) {
        let mode = self.line.runtime.snapshot().weir.access_log;
        observe::request(&self.line.shared.metrics, &self.logger, mode, method, trace, took, runtime::now());
    }
}

/// Counts a request as in flight for as long as it lives, however it ends.
struct InFlight(IntGauge);

impl InFlight {
    fn begin(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Way;

    fn new_ctx(&self) -> Way {
        Way::default()
    }

    /// None: the default is a compression module, which costs on every hit.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, way: &mut Way) -> pingora::Result<bool> {
        #[allow(clippy::disallowed_methods)] // where a request's time begins
        let started = Instant::now();
        way.in_flight = Some(InFlight::begin(&self.line.shared.metrics.http.in_flight));
        let request = translate(session);
        let request_id = self.request_id(&request.headers);
        watched::header_came();
        let (stall, idle) = self.timeouts();
        session.as_downstream_mut().set_write_timeout(Some(stall));
        session.as_downstream_mut().set_read_timeout(Some(stall));
        keep_alive(session, idle);
        let (handled, mut trace) = self.line.handle(&request, request_id).await;
        let answer = match handled {
            Handled::Answered(answer) => answer,
            Handled::Watching(answer, watching) => {
                let took = started.elapsed();
                // It is bounded apart from requests that have an end.
                way.in_flight = None;
                let written = stream(session, &request, answer, watching, &mut trace).await;
                self.observe(&request.method, &trace, took);
                return written.map(|()| true);
            }
            Handled::Passed(mut forward) => {
                forward.trace = trace;
                way.passed = Some((started, forward));
                return Ok(false);
            }
        };
        // A body is not wanted here: what is not read by the answer's end ends the connection.
        session.as_downstream_mut().set_close_on_response_before_downstream_finish(true);
        if request.method == Method::HEAD {
            trace.bytes = 0;
        }
        if trace.error == Some("internal_error") {
            observe::say(&format!("internal error, request id {}, route {}", trace.request_id, trace.route));
        }
        let written = write(session, &request.method, answer).await;
        self.observe(&request.method, &trace, started.elapsed());
        written.map(|()| true)
    }

    async fn upstream_peer(&self, _: &mut Session, way: &mut Way) -> pingora::Result<Box<HttpPeer>> {
        let Some((_, forward)) = &mut way.passed else { return nowhere() };
        (way.connected, way.again) = (false, false);
        match forward.peer().await {
            Ok(peer) => Ok(Box::new(peer)),
            Err(problem) => {
                way.refused = Some(forward.problem(&problem));
                Error::e_explain(ErrorType::ConnectError, "there is nowhere to connect to")
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: std::os::unix::io::RawFd,
        _: Option<&pingora::protocols::Digest>,
        way: &mut Way,
    ) -> pingora::Result<()> {
        way.connected = true;
        if let Some((_, forward)) = &mut way.passed {
            forward.connected();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        way: &mut Way,
    ) -> pingora::Result<()> {
        let Some((_, forward)) = &way.passed else { return nowhere() };
        // What `Connection` names is in the client's header alone: Pingora has taken that out here.
        let head = forward.head(&session.req_header().headers);
        for name in &head.drop {
            request.remove_header(name);
        }
        let uri = Uri::try_from(&head.path_and_query);
        request.set_uri(uri.map_err(|e| Error::because(ErrorType::InvalidHTTPHeader, "the path", e))?);
        request.insert_header(header::HOST, head.authority)?;
        if let Some((name, value)) = head.credential {
            request.insert_header(name, value)?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        way: &mut Way,
    ) -> pingora::Result<()> {
        let Some((_, forward)) = &mut way.passed else { return nowhere() };
        if response.status.is_informational() {
            return Ok(());
        }
        match forward.answered(response.status.as_u16(), &response.headers) {
            Answered::Pass { drop, set } => {
                for name in &drop {
                    response.remove_header(name);
                }
                for (name, value) in set {
                    response.insert_header(name, value)?;
                }
                Ok(())
            }
            Answered::Again => {
                way.again = true;
                Error::e_explain(ErrorType::InternalError, "once more, with a new token")
            }
            Answered::Refuse(problem) => {
                way.refused = Some(forward.problem(&problem));
                Error::e_explain(ErrorType::InternalError, "the provider refused the credential")
            }
        }
    }

    /// Nothing was sent yet: another address will do for any request.
    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, way: &mut Way, mut error: Box<Error>) -> Box<Error> {
        error.set_retry(way.passed.as_ref().is_some_and(|(_, forward)| forward.has_more_addresses()));
        error
    }

    /// Sent again is only what was not processed: what may be repeated (RFC 9110, section 9.2.2), where a kept
    /// connection had gone, and what was refused with a token that can be had anew; and only if its body is
    /// still there.
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        way: &mut Way,
        reused: bool,
    ) -> Box<Error> {
        let whole = !session.as_ref().retry_buffer_truncated();
        if way.again {
            error.set_retry(whole);
        } else if way.refused.is_some() || !whole || !session.req_header().method.is_idempotent() {
            error.set_retry(false);
        } else {
            error.retry.decide_reuse(reused);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, way: &mut Way) -> FailToProxy {
        let gone = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Some((_, forward)) = &mut way.passed else { return gone };
        let theirs = *error.esource() == ErrorSource::Downstream;
        let problem = match error.etype() {
            _ if way.again => forward.refused(),
            ErrorType::InvalidHTTPHeader if theirs => {
                Box::new(Problem::invalid("the request's headers cannot be passed on"))
            }
            ErrorType::ReadTimedout if theirs => {
                Box::new(Problem::new(Code::RequestTimeout, "the request's body stalled for longer than stall_timeout"))
            }
            // The client hung up, or its body broke off: nobody is there to be told.
            _ if theirs && way.refused.is_none() => return gone,
            _ if way.refused.is_some() => forward.refused(),
            _ => {
                let failure = passing_failure(&forward.provider().target, error, way.connected);
                forward.failed(failure)
            }
        };
        let answer = way.refused.take().unwrap_or_else(|| forward.problem(&problem));
        if session.response_written().is_some() {
            return gone;
        }
        let (method, status) = (session.req_header().method.clone(), answer.status);
        session.as_downstream_mut().set_close_on_response_before_downstream_finish(true);
        let _ = write(session, &method, answer).await;
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, way: &mut Way) {
        watched::request_ended();
        if let Some((started, mut forward)) = way.passed.take() {
            forward.finish();
            forward.trace.bytes = session.body_bytes_sent();
            // No answer was begun: the client had gone.
            if forward.trace.status == 0 {
                forward.trace.status = 499;
            }
            self.observe(&session.req_header().method, &forward.trace, started.elapsed());
        }
    }

    /// Failures are counted and told; Pingora need not log them too.
    fn suppress_error_log(&self, _: &Session, _: &Way, _: &Error) -> bool {
        true
    }
}

/// What Pingora asks only of requests that are passed on.
fn nowhere<T>() -> pingora::Result<T> {
    Error::e_explain(ErrorType::InternalError, "this request is not passed on")
}

fn translate(session: &Session) -> Request {
    let header = session.req_header();
    let mut headers = header.headers.clone();
    // HTTP/2 names the host in its `:authority` (RFC 9113, section 8.3.1).
    if let (Some(authority), false) = (header.uri.authority(), headers.contains_key(header::HOST)) {
        headers.extend(HeaderValue::from_str(authority.as_str()).ok().map(|host| (header::HOST, host)));
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

/// Pingora would keep a connection that was used once for ever.
fn keep_alive(session: &mut Session, idle: Duration) {
    if session.get_keepalive().is_some() {
        session.set_keepalive(Some(idle.as_secs().max(1)));
    }
}

/// Writes an answer that goes on until what is watched ends, or the client goes.
async fn stream(
    session: &mut Session,
    request: &Request,
    answer: Answer,
    mut watching: Box<Watching>,
    trace: &mut Trace,
) -> pingora::Result<()> {
    let mut header = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
    for (name, value) in answer.headers {
        header.append_header(name, value)?;
    }
    match request.version {
        Version::HTTP_11 => header.insert_header(header::TRANSFER_ENCODING, "chunked")?,
        // Its end is the connection's.
        Version::HTTP_10 => session.set_keepalive(None),
        _ => {}
    }
    let head_only = request.method == Method::HEAD;
    session.write_response_header(Box::new(header), head_only).await?;
    if head_only {
        return Ok(());
    }
    loop {
        let part = tokio::select! {
            part = watching.next() => part,
            // What comes now is no part of this request: it has gone, or speaks out of turn.
            _ = session.as_downstream_mut().read_body_or_idle(true) => return Ok(()),
        };
        trace.bytes += part.as_ref().map_or(0, Bytes::len);
        let over = part.is_none();
        session.write_response_body(part, over).await?;
        if over {
            return Ok(());
        }
    }
}

async fn write(session: &mut Session, method: &Method, answer: Answer) -> pingora::Result<()> {
    let mut header = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
    for (name, value) in answer.headers {
        header.append_header(name, value)?;
    }
    let no_body = *method == Method::HEAD || answer.body.is_empty();
    session.write_response_header(Box::new(header), no_body).await?;
    if !no_body {
        session.write_response_body(Some(answer.body), true).await?;
    }
    Ok(())
}
