//! Pingora's side of what is passed on: delegate each turn of a stream to `forward`.
//!
//! A room of its own because implementing a framework's trait attracts everything. It makes no
//! decision: what it may not do is look into a request or an answer.

use crate::config::weir::LogLevel;
use crate::error::{Code, Problem};
use crate::exchange::{Answer, Body};
use crate::forward::{Answered, Forward};
use crate::observe::{self, AccessLogger, Counters};
use crate::pace::{Late, Pace};
use crate::pipeline::Line;
use crate::runtime;
use crate::span::Side;
use crate::trace::Trace;
use crate::upstream::passing_failure;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Uri, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use prometheus::IntGauge;
use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

tokio::task_local! {
    /// The request that this task passes on: Pingora makes its context without being told of what.
    static WAY: Cell<Option<Way>>;
}

/// What Pingora calls where a request is passed on. A copy is the same one.
#[derive(Clone)]
pub struct Passing {
    /// Where it came from.
    pub line: Arc<Line>,
    /// Where its end is told.
    pub logger: Arc<AccessLogger>,
}

/// One request on its way, as far as it has come. Dropped on the way, it was cut off, and is told all the same.
#[derive(Default)]
pub struct Way {
    /// It counts as in flight as long as this lives.
    _in_flight: Option<InFlight>,
    /// When it began, and where it is passed on to.
    passed: Option<(Instant, Box<Forward>)>,
    /// Where its end is told, and of what method it is.
    told: Option<(Passing, Method)>,
    /// What the client is told instead of an answer of the provider's.
    refused: Option<Answer>,
    /// Whether a connection to the provider was had.
    connected: bool,
    /// It is to be tried again with another credential.
    again: bool,
    /// Pingora took it on. What it reads otherwise than Weir did, it answers by itself.
    taken: bool,
}

impl Way {
    /// A request that began then and goes there.
    #[must_use]
    pub fn new(
        passing: &Passing,
        method: &Method,
        started: Instant,
        in_flight: InFlight,
        forward: Box<Forward>,
    ) -> Self {
        Self {
            _in_flight: Some(in_flight),
            passed: Some((started, forward)),
            told: Some((passing.clone(), method.clone())),
            refused: None,
            connected: false,
            again: false,
            taken: false,
        }
    }

    /// How its body comes.
    #[must_use]
    pub fn pace(&self) -> Option<Arc<Pace>> {
        self.passed.as_ref().map(|(_, forward)| forward.pace.clone())
    }

    /// Tells of its end, once: with this status where no answer was begun, and so many bytes of one.
    fn end(&mut self, status: u16, bytes: usize) {
        let (Some((started, mut forward)), Some((passing, method))) = (self.passed.take(), self.told.take()) else {
            return;
        };
        forward.finish();
        forward.trace.bytes = bytes;
        if forward.trace.status == 0 {
            forward.trace.status = status;
        }
        passing.observe(&mut Counters::default(), &method, &mut forward.trace, started.elapsed());
    }

    /// Passes it on: `stream` has Pingora do so.
    pub async fn go<F: Future>(self, stream: F) -> F::Output {
        WAY.scope(Cell::new(Some(self)), stream).await
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let code = if self.taken { Code::RequestTimeout } else { Code::InvalidRequest };
        self.end(code.status(), 0);
    }
}

impl Passing {
    /// Tells that a request is over.
    pub fn observe(&self, counters: &mut Counters, method: &Method, trace: &mut Trace, took: Duration) {
        if let Some(code) = trace.error {
            let level = if code == "internal_error" { LogLevel::Error } else { LogLevel::Debug };
            observe::say(&self.line.runtime, level, || {
                format!("request id {}, route {}: {} {code}", trace.request_id, trace.route, trace.status)
            });
        }
        let mut steps = std::mem::take(&mut trace.steps);
        self.line.shared.spans.emit(steps.end(Side::Server, trace.status >= 500, || {
            (format!("{method} {}", trace.route).into(), trace.facts(method))
        }));
        trace.steps = steps;
        let (mode, metrics) = (self.line.runtime.snapshot().weir.access_log, &self.line.shared.metrics);
        observe::request(metrics, counters, &self.logger, mode, method, trace, took, runtime::now);
    }
}

/// Counts a request as in flight for as long as it lives, however it ends.
pub struct InFlight(IntGauge);

impl InFlight {
    /// One more.
    #[must_use]
    pub fn begin(gauge: &IntGauge) -> Self {
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
impl ProxyHttp for Passing {
    type CTX = Way;

    fn new_ctx(&self) -> Way {
        let mut way = WAY.try_with(Cell::take).ok().flatten().unwrap_or_default();
        way.taken = true;
        way
    }

    /// None: the default is a compression module, which costs on every hit.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

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
        for (name, value) in head.credential.into_iter().chain(head.trace) {
            request.insert_header(name, value)?;
        }
        Ok(())
    }

    /// A part of the body came: the next one has its time.
    async fn request_body_filter(
        &self,
        session: &mut Session,
        _: &mut Option<Bytes>,
        over: bool,
        way: &mut Way,
    ) -> pingora::Result<()> {
        let Some((_, forward)) = &way.passed else { return nowhere() };
        let now = tokio::time::Instant::now();
        if forward.pace.late(now) == Some(Late::Whole) && !over {
            return Err(Error::new_down(ErrorType::ReadTimedout));
        }
        forward.pace.came(now, over);
        if let Some(until) = forward.pace.until() {
            session.as_downstream_mut().set_read_timeout(Some(until - now));
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
            Answered::Pass { drop, set, add } => {
                for name in &drop {
                    response.remove_header(name);
                }
                for (name, value) in set {
                    response.insert_header(name, value)?;
                }
                for (name, value) in add {
                    response.append_header(name, value)?;
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
        if theirs && *error.etype() == ErrorType::WriteTimedout {
            self.line.shared.metrics.edge.limited.with_label_values(&[Late::Stalled.limit()]).inc();
        }
        let problem = match error.etype() {
            _ if way.again => forward.refused(),
            ErrorType::InvalidHTTPHeader if theirs => {
                Box::new(Problem::invalid("the request's headers cannot be passed on"))
            }
            ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd") if theirs => Box::new(Problem::invalid(
                "the request's body is not in chunks as they are written (RFC 9112, section 7.1)",
            )),
            ErrorType::ReadTimedout if theirs => {
                let late = forward.pace.late(tokio::time::Instant::now()).unwrap_or(Late::Stalled);
                self.line.shared.metrics.edge.limited.with_label_values(&[late.limit()]).inc();
                let detail = format!("the request's body took longer than {}", late.limit());
                Box::new(Problem::new(Code::RequestTimeout, detail))
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
        let _ = write(session.as_downstream_mut(), &method, answer).await;
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, way: &mut Way) {
        // Where no answer was begun, the client had gone.
        way.end(499, session.body_bytes_sent());
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

/// Writes an answer by Pingora's means.
///
/// # Errors
/// The client is gone, or takes nothing for too long.
pub async fn write(session: &mut ServerSession, method: &Method, mut answer: Answer) -> pingora::Result<()> {
    let body = if *method == Method::HEAD { Body::default() } else { std::mem::take(&mut answer.body) };
    write_head(session, answer).await?;
    let parts = body.parts();
    for (number, part) in parts.iter().enumerate() {
        session.write_response_body(part.clone(), number + 1 == parts.len()).await?;
    }
    Ok(())
}

/// Writes how an answer begins.
///
/// # Errors
/// The client is gone, or takes nothing for too long.
pub async fn write_head(session: &mut ServerSession, answer: Answer) -> pingora::Result<()> {
    let mut header = ResponseHeader::build(answer.status, None)?;
    for (name, value) in answer.headers.iter() {
        header.append_header(name.to_owned(), value)?;
    }
    session.write_response_header(Box::new(header)).await
}
