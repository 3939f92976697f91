//! Implements Pingora's proxy trait for forwarded requests.
//!
//! Each callback delegates to `pipeline::forward`. This file must not make decisions about a request or a response.

use crate::base::problem::{Code, Problem};
use crate::base::request_reply::{Body, Response};
use crate::engine::body_deadline::{BodyDeadline, BodyTimeout};
use crate::engine::upstream::forward_failure;
use crate::pipeline::Pipeline;
use crate::pipeline::forward::{Forward, ResponseAction};
use crate::server::access_log::End;
use crate::server::request_log::{Counters, InFlight, RequestLog, with_begin};
use crate::server::request_stream::chunk_fault;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, Uri, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

tokio::task_local! {
    /// The context of the request that this task forwards. Pingora calls `new_ctx` without arguments, so it takes the
    /// context from here.
    static CONTEXT: Cell<Option<ProxyContext>>;
}

/// Pingora's callbacks for forwarded requests. Clones share their fields.
#[derive(Clone)]
pub(crate) struct PassThrough {
    /// The pipeline that has handled the requests.
    pub pipeline: Arc<Pipeline>,
    /// Records the requests.
    pub log: Arc<RequestLog>,
}

/// The state of one forwarded request. It records the request at its end, or when it is dropped before that.
#[derive(Default)]
pub(crate) struct ProxyContext {
    _in_flight: Option<InFlight>,
    /// `None` once the request is recorded.
    active: Option<ActiveRequest>,
    /// The response that the client gets in place of the provider's.
    refusal: Option<Response>,
    /// Whether a connection to the provider was established in this attempt.
    connected: bool,
    /// Whether the request is sent again with a new token.
    retry_with_new_token: bool,
    /// Whether the request is sent on another connection, because it may not use this one. Nothing was sent yet.
    retry_elsewhere: bool,
    /// Whether Pingora accepted the request. It responds by itself to a request that it cannot parse.
    accepted: bool,
}

/// A forwarded request that is not recorded yet.
struct ActiveRequest {
    started: Instant,
    method: Method,
    /// Its state in the pipeline.
    forward: Box<Forward>,
    /// How many bytes of the response's body came from the provider.
    received: usize,
    /// Records it.
    log: Arc<RequestLog>,
}

impl ProxyContext {
    /// Creates the context of a request that began at `started`.
    #[must_use]
    pub(crate) fn new(
        pass_through: &PassThrough,
        method: &Method,
        started: Instant,
        in_flight: InFlight,
        forward: Box<Forward>,
    ) -> Self {
        Self {
            _in_flight: Some(in_flight),
            active: Some(ActiveRequest {
                started,
                method: method.clone(),
                forward,
                received: 0,
                log: pass_through.log.clone(),
            }),
            refusal: None,
            connected: false,
            retry_with_new_token: false,
            retry_elsewhere: false,
            accepted: false,
        }
    }

    /// Returns the deadline of the request body; `None` once the request is recorded.
    #[must_use]
    pub(crate) fn body_deadline(&self) -> Option<Arc<BodyDeadline>> {
        self.active.as_ref().map(|active| active.forward.body_deadline.clone())
    }

    /// Records the request, unless it is recorded already. `status` is recorded if no response was started. `sent`: how many
    /// bytes of the body the client got, if that is known.
    fn finish(&mut self, status: u16, sent: Option<usize>) {
        let Some(ActiveRequest { started, method, mut forward, received, log }) = self.active.take() else { return };
        forward.finish();
        if forward.record.status == 0 {
            forward.record.status = status;
        }
        let (took, sent) = (started.elapsed(), sent.unwrap_or(received));
        let end = End { response_took: took, took, sent };
        log.record(&mut Counters::default(), &method, &mut forward.record, end);
    }

    /// Runs `process`, in which Pingora forwards the request, with this context.
    pub(crate) async fn scope<F: Future>(mut self, process: F) -> F::Output {
        let begin = self.active.as_mut().map(|ActiveRequest { started, method, forward, log, .. }| {
            let line = log.begin(method, &mut forward.record, started.elapsed());
            (log.clone(), line)
        });
        let process = CONTEXT.scope(Cell::new(Some(self)), process);
        with_begin(process, || begin.into_iter().for_each(|(log, line)| log.write(line))).await
    }
}

impl Drop for ProxyContext {
    fn drop(&mut self) {
        let code = if self.accepted { Code::RequestTimeout } else { Code::InvalidRequest };
        self.finish(code.status(), None);
    }
}

#[async_trait]
impl ProxyHttp for PassThrough {
    type CTX = ProxyContext;

    fn new_ctx(&self) -> ProxyContext {
        let mut context = CONTEXT.try_with(Cell::take).ok().flatten().unwrap_or_default();
        context.accepted = true;
        context
    }

    /// Adds no module. Pingora's default adds compression, which costs time on every request.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn upstream_peer(&self, _: &mut Session, context: &mut ProxyContext) -> pingora::Result<Box<HttpPeer>> {
        let Some(ActiveRequest { forward, .. }) = &mut context.active else { return no_forward() };
        (context.connected, context.retry_with_new_token, context.retry_elsewhere) = (false, false, false);
        match forward.peer().await {
            Ok(peer) => Ok(Box::new(peer)),
            Err(problem) => {
                context.refusal = Some(forward.problem_response(&problem));
                Error::e_explain(ErrorType::ConnectError, "no address or credential for the provider")
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        // Pingora knows only the connection of `forward_connection`, which is always new.
        _: bool,
        _: &HttpPeer,
        _: std::os::unix::io::RawFd,
        _: Option<&pingora::protocols::Digest>,
        context: &mut ProxyContext,
    ) -> pingora::Result<()> {
        let Some(ActiveRequest { forward, .. }) = &mut context.active else { return no_forward() };
        if forward.is_connection_reused() && forward.is_connection_retired() {
            context.retry_elsewhere = true;
            return Error::e_explain(ErrorType::ConnectionClosed, "another request has retired the connection");
        }
        forward.mark_connected();
        context.connected = true;
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut ProxyContext,
    ) -> pingora::Result<()> {
        let Some(ActiveRequest { forward, .. }) = &mut context.active else { return no_forward() };
        // Pingora has removed `Connection` from `request`, so its options are read from the client's header.
        let client_version = session.req_header().version;
        let head = forward.provider_head(client_version, &session.req_header().headers);
        for name in &head.drop {
            request.remove_header(name);
        }
        let has_body = !session.is_body_empty();
        let authenticated = match forward.authenticated(&request.headers, has_body) {
            Ok(authenticated) => authenticated,
            Err(problem) => {
                context.refusal = Some(forward.problem_response(&problem));
                return Error::e_explain(ErrorType::InternalError, "the request cannot have the credential");
            }
        };
        let uri = Uri::try_from(&authenticated.path_and_query);
        request.set_uri(uri.map_err(|e| Error::because(ErrorType::InvalidHTTPHeader, "invalid path", e))?);
        request.insert_header(header::HOST, head.authority)?;
        // An HTTP/1.0 client sends its body at once (RFC 9110, section 10.1.1).
        if client_version == Version::HTTP_10 {
            request.remove_header(&header::EXPECT);
        }
        if head.close {
            request.insert_header(header::CONNECTION, "close")?;
        }
        if head.plain_response {
            request.insert_header(header::ACCEPT_ENCODING, "identity")?;
        }
        request.append_header(head.via.0, head.via.1)?;
        for (name, value) in authenticated.headers.into_iter().chain(head.trace).chain(head.max_forwards) {
            request.insert_header(name, value)?;
        }
        Ok(())
    }

    /// Reserves the memory of a part of the body, checks the body deadline and sets the read timeout for the next part.
    ///
    /// Removes an empty last part, with which an HTTP/2 body may end: Pingora would write it as a last chunk, and then
    /// another one (`send_body_to1` in pingora-proxy's `proxy_h1.rs`). The provider would read a second request there.
    async fn request_body_filter(
        &self,
        session: &mut Session,
        part: &mut Option<Bytes>,
        is_last: bool,
        context: &mut ProxyContext,
    ) -> pingora::Result<()> {
        let Some(ActiveRequest { forward, .. }) = &mut context.active else { return no_forward() };
        if is_last {
            part.take_if(|part| part.is_empty());
        }
        if let Err(problem) = forward.add_request_part(part.as_ref().map_or(0, Bytes::len)) {
            context.refusal = Some(forward.problem_response(&problem));
            return Error::e_explain(ErrorType::InternalError, "the client's share of the memory is used");
        }
        let now = tokio::time::Instant::now();
        if forward.body_deadline.exceeded(now) == Some(BodyTimeout::Whole) && !is_last {
            return Err(Error::new_down(ErrorType::ReadTimedout));
        }
        forward.body_deadline.part_received(now, is_last);
        if let Some(until) = forward.body_deadline.next_deadline() {
            session.as_downstream_mut().set_read_timeout(Some(until - now));
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        context: &mut ProxyContext,
    ) -> pingora::Result<()> {
        let Some(ActiveRequest { forward, .. }) = &mut context.active else { return no_forward() };
        if response.status.is_informational() {
            return remove_interim_fields(response);
        }
        match forward.response_action(response.version, response.status.as_u16(), &response.headers) {
            ResponseAction::Forward { drop, set, add } => {
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
            ResponseAction::RetryWithNewToken => {
                context.retry_with_new_token = true;
                Error::e_explain(ErrorType::InternalError, "the provider refused the token; retrying with a new one")
            }
            ResponseAction::Refuse(problem) => {
                context.refusal = Some(forward.problem_response(&problem));
                Error::e_explain(ErrorType::InternalError, "the provider refused the credential")
            }
        }
    }

    /// Removes the chunked coding, which Pingora may have added, for a client of HTTP/1.0. It reads the body to the end of
    /// the connection (RFC 9112, section 6.1).
    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _: &mut ProxyContext,
    ) -> pingora::Result<()> {
        if session.req_header().version == Version::HTTP_10 {
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        part: &mut Option<Bytes>,
        is_last: bool,
        context: &mut ProxyContext,
    ) -> pingora::Result<Option<Duration>> {
        let Some(ActiveRequest { forward, received, .. }) = &mut context.active else { return no_forward() };
        let length = part.as_ref().map_or(0, Bytes::len);
        *received += length;
        let Err(problem) = forward.add_part(length) else {
            forward.mask_part(part, is_last);
            return Ok(None);
        };
        context.refusal = Some(forward.problem_response(&problem));
        Error::e_explain(ErrorType::InternalError, "the client's share of the memory is used")
    }

    /// Lets Pingora try the next address. No byte of the request was sent, so this is safe for every method.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        context: &mut ProxyContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(context.active.as_ref().is_some_and(|active| active.forward.has_more_addresses()));
        error
    }

    /// Decides whether Pingora sends the request again. It does so in three cases: the provider refused a token that can
    /// be renewed, another request retired the connection before this one was sent, or a reused connection was closed and
    /// the method is idempotent (RFC 9110, section 9.2.2). The whole body must still be buffered.
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        context: &mut ProxyContext,
        _: bool,
    ) -> Box<Error> {
        let body_buffered = !session.as_ref().retry_buffer_truncated();
        if context.retry_elsewhere {
            error.set_retry(true);
        } else if context.retry_with_new_token {
            error.set_retry(body_buffered);
        } else if context.refusal.is_some() || !body_buffered || !session.req_header().method.is_idempotent() {
            error.set_retry(false);
        } else {
            // Pingora's errors say whether they can come from a connection that the provider had closed before.
            let may_send_again = context.active.as_mut().is_some_and(|active| active.forward.may_send_again());
            error.retry.decide_reuse(may_send_again);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut ProxyContext) -> FailToProxy {
        let no_response = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Some(ActiveRequest { forward, .. }) = &mut context.active else { return no_response };
        let client_error = *error.esource() == ErrorSource::Downstream;
        if client_error && *error.etype() == ErrorType::WriteTimedout {
            self.pipeline.shared.metrics.edge.limited.with_label_values(&[BodyTimeout::Stall.limit()]).inc();
        }
        let problem = match error.etype() {
            _ if context.retry_with_new_token => forward.credential_refused(),
            ErrorType::InvalidHTTPHeader if client_error => {
                Box::new(Problem::invalid("invalid request header; Weir cannot forward it"))
            }
            _ if let Some(fault) = chunk_fault(error) => Box::new(Problem::invalid(format!(
                "invalid chunk in the request body (RFC 9112, section 7.1): {fault}"
            ))),
            ErrorType::ReadTimedout if client_error => {
                let late = forward.body_deadline.exceeded(tokio::time::Instant::now()).unwrap_or(BodyTimeout::Stall);
                self.pipeline.shared.metrics.edge.limited.with_label_values(&[late.limit()]).inc();
                let detail = format!("timeout while receiving the request body (limits.{})", late.limit());
                Box::new(Problem::new(Code::RequestTimeout, detail))
            }
            // The client closed the connection: nobody would receive a response.
            _ if client_error && context.refusal.is_none() => return no_response,
            _ if context.refusal.is_some() => forward.credential_refused(),
            _ => {
                let failure = forward_failure(&forward.provider().target, error, context.connected);
                forward.record_failure(failure)
            }
        };
        let response = context.refusal.take().unwrap_or_else(|| forward.problem_response(&problem));
        if session.response_written().is_some_and(|written| !written.status.is_informational()) {
            return no_response;
        }
        let (method, status) = (session.req_header().method.clone(), response.status);
        // The connection closes, because the client may still be sending; the response says so.
        session.as_downstream_mut().set_keepalive(None);
        let _ = write_response(session.as_downstream_mut(), &method, response).await;
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, context: &mut ProxyContext) {
        // 499 if no response was started: then the client had closed the connection.
        context.finish(499, Some(session.body_bytes_sent()));
    }

    /// Turns Pingora's error log off: Weir counts and logs failures itself.
    fn suppress_error_log(&self, _: &Session, _: &ProxyContext, _: &Error) -> bool {
        true
    }
}

/// Removes all headers of an interim response. Pingora writes only a 100 that the client expects, which needs none (RFC
/// 9110, section 15.2.1).
///
/// # Errors
/// The status is 101. Weir requests no upgrade, so whatever follows is no HTTP.
fn remove_interim_fields(response: &mut ResponseHeader) -> pingora::Result<()> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "101 without a request to upgrade");
    }
    let names: Vec<_> = response.headers.keys().cloned().collect();
    for name in &names {
        response.remove_header(name);
    }
    Ok(())
}

/// Returns the error of a callback for a request that is recorded already. Pingora makes no such call.
fn no_forward<T>() -> pingora::Result<T> {
    Error::e_explain(ErrorType::InternalError, "no request to forward")
}

/// Writes a response to a Pingora session.
///
/// # Errors
/// The client closed the connection, or accepts no bytes within the stall timeout.
async fn write_response(session: &mut ServerSession, method: &Method, mut response: Response) -> pingora::Result<()> {
    let body = if *method == Method::HEAD { Body::default() } else { std::mem::take(&mut response.body) };
    session.write_response_header(response_header(&response)?).await?;
    let parts = body.parts();
    for (number, part) in parts.iter().enumerate() {
        session.write_response_body(part.clone(), number + 1 == parts.len()).await?;
    }
    Ok(())
}

/// Converts the status and the headers of a response.
pub(crate) fn response_header(response: &Response) -> pingora::Result<Box<ResponseHeader>> {
    let mut header = ResponseHeader::build(response.status, None)?;
    for (name, value) in response.headers.iter() {
        header.append_header(name.to_owned(), value)?;
    }
    Ok(Box::new(header))
}
