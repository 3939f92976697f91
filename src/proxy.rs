//! Pingora's side of the line: translate a request, hand it over, write the answer.
//!
//! A room of its own because implementing a framework's trait attracts everything. It makes no
//! decision: what it may not do is look into a request or an answer.

use crate::exchange::{Answer, Request};
use crate::observe::{self, AccessLogger};
use crate::pipeline::Line;
use crate::runtime;
use async_trait::async_trait;
use http::{HeaderMap, Method};
use pingora::http::ResponseHeader;
use pingora::modules::http::HttpModules;
use pingora::proxy::{ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use prometheus::IntGauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a client may take to read a part of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an idle connection is kept.
const IDLE_SECONDS: u64 = 60;

/// The app that Pingora calls.
pub struct Gateway {
    line: Arc<Line>,
    logger: AccessLogger,
    /// Begins every request id made here; random, so that several Weirs do not make the same.
    prefix: String,
    next: AtomicU64,
}

impl Gateway {
    /// A gateway on a line.
    #[must_use]
    pub fn new(line: Arc<Line>, logger: AccessLogger, prefix: String) -> Self {
        Self { line, logger, prefix, next: AtomicU64::new(1) }
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
    type CTX = ();

    fn new_ctx(&self) {}

    /// None: the default is a compression module, which costs on every hit.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> pingora::Result<bool> {
        #[allow(clippy::disallowed_methods)] // where a request's time begins
        let started = Instant::now();
        let metrics = &self.line.shared.metrics;
        let _in_flight = InFlight::begin(&metrics.http.in_flight);
        let request = translate(session);
        let request_id = self.request_id(&request.headers);
        // A body is not wanted on any route: what is not read by the answer's end ends the connection.
        session.as_downstream_mut().set_close_on_response_before_downstream_finish(true);
        session.as_downstream_mut().set_write_timeout(Some(WRITE_TIMEOUT));
        let (answer, mut trace) = self.line.answer(&request, request_id).await;
        if request.method == Method::HEAD {
            trace.bytes = 0;
        }
        if trace.error == Some("internal_error") {
            observe::say(&format!("internal error, request id {}, route {}", trace.request_id, trace.route));
        }
        let written = write(session, &request.method, answer).await;
        let mode = self.line.runtime.snapshot().weir.access_log;
        observe::request(metrics, &self.logger, mode, &request.method, &trace, started.elapsed(), runtime::now());
        written.map(|()| true)
    }

    /// Every request is answered by `request_filter`, so nobody comes here.
    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Error::e_explain(ErrorType::InternalError, "no route of this listener is proxied")
    }
}

fn translate(session: &Session) -> Request {
    let header = session.req_header();
    Request {
        method: header.method.clone(),
        path: header.uri.path().to_owned(),
        query: header.uri.query().unwrap_or_default().to_owned(),
        headers: header.headers.clone(),
    }
}

async fn write(session: &mut Session, method: &Method, answer: Answer) -> pingora::Result<()> {
    let mut header = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
    for (name, value) in answer.headers {
        header.append_header(name, value)?;
    }
    // Pingora would keep a connection that was used once for ever.
    if session.get_keepalive().is_some() {
        session.set_keepalive(Some(IDLE_SECONDS));
    }
    let no_body = *method == Method::HEAD || answer.body.is_empty();
    session.write_response_header(Box::new(header), no_body).await?;
    if !no_body {
        session.write_response_body(Some(answer.body), true).await?;
    }
    Ok(())
}
