//! Spans on their way to a collector: OTLP over HTTP, as protobuf.
//!
//! A room of its own so that one file knows OpenTelemetry. Spans wait in its bounded queue and are sent in batches by
//! its own thread; where the collector is too slow or away, they are dropped, and no request waits. It reuses the
//! connector that providers are asked with, TLS included.

use crate::config::faults::Faults;
use crate::config::weir::Traces;
use crate::exchange::ProviderRequest;
use crate::span::{Context, Fact, Side, Span};
use crate::upstream::{Target, Upstream};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header};
use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};
use prometheus::IntCounterVec;
use std::sync::Arc;
use std::time::Duration;

/// How long the last spans may take to be sent.
const LAST: Duration = Duration::from_secs(2);
/// The most of a collector's answer that is read.
const MAX_ANSWER: u64 = 64 << 10;

/// Where spans go, and of how many requests.
#[derive(Debug)]
pub struct Destination {
    target: Target,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The share of requests that is sampled if nobody has decided before.
    pub sample: f64,
}

impl Destination {
    /// Compiles `traces:`; `None` where it is off.
    pub fn compile(config: &Traces, faults: &mut Faults) -> Option<Self> {
        let endpoint = config.endpoint.as_ref()?;
        let calls = crate::config::upstream::Upstream { max_body: MAX_ANSWER, retries: 0, ..Default::default() };
        let target = faults.keep(&endpoint.place, Target::compile(&endpoint.value, &calls));
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            let pair = HeaderName::from_bytes(name.value.as_bytes()).ok().zip(HeaderValue::from_str(&value.0).ok());
            let what = format!("{:?} and its value are no header", name.value);
            headers.extend(faults.keep(&name.place, pair.ok_or(what)).map(|(name, mut value)| {
                value.set_sensitive(true);
                (name, value)
            }));
        }
        Some(Self { target: target?, headers, sample: config.sample })
    }
}

/// What is in force when a batch is sent.
pub type Current = Arc<dyn Fn() -> Option<Arc<Destination>> + Send + Sync>;

/// Sends spans.
pub struct Exporter {
    processor: BatchSpanProcessor,
}

impl Exporter {
    /// Sends to where `current` says, by tasks of the runtime in which this is called.
    ///
    /// # Errors
    /// OpenTelemetry's own.
    pub fn new(current: Current, exports: IntCounterVec) -> Result<Self, String> {
        let runtime = tokio::runtime::Handle::current();
        let client = Client { current, runtime, upstream: Arc::new(Upstream::new(MAX_ANSWER * 4)), exports };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            // The client knows where to; here there must be something.
            .with_endpoint("http://localhost/v1/traces")
            .build()
            .map_err(|error| error.to_string())?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        processor.set_resource(&Resource::builder().with_service_name("weir").with_attribute(version).build());
        Ok(Self { processor })
    }

    /// Sends these, some time.
    pub fn send(&self, spans: Vec<Span>) {
        spans.into_iter().for_each(|span| self.processor.on_end(data(span)));
    }

    /// Sends what waits. It blocks, for a short time at most.
    pub fn end(&self) {
        let _ = self.processor.shutdown_with_timeout(LAST);
    }
}

struct Client {
    current: Current,
    runtime: tokio::runtime::Handle,
    upstream: Arc<Upstream>,
    exports: IntCounterVec,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // A reload has turned it off: what still comes is not wanted.
        let Some(destination) = (self.current)() else { return Ok(Response::new(Bytes::new())) };
        let mut headers = destination.headers.clone();
        headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")));
        headers.push((header::ACCEPT, HeaderValue::from_static("application/x-protobuf")));
        let request = ProviderRequest {
            path_and_query: "/v1/traces".to_owned(),
            credential: None,
            conditions: headers,
            form: Some(request.into_body()),
        };
        let upstream = self.upstream.clone();
        let deadline = tokio::time::Instant::now() + destination.target.timeout;
        let sent =
            self.runtime.spawn(async move { upstream.ask(&destination.target, &request, deadline, |_| false).await });
        let reply =
            sent.await.map_err(|error| error.to_string()).and_then(|reply| reply.map_err(|failure| failure.detail));
        let taken = reply.as_ref().is_ok_and(|reply| (200..300).contains(&reply.status));
        self.exports.with_label_values(&[if taken { "sent" } else { "failed" }]).inc();
        let reply = reply?;
        Ok(Response::builder().status(reply.status).body(reply.body)?)
    }
}

fn context(at: &Context, remote: bool) -> SpanContext {
    let flags = if at.sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(at.trace.into(), at.span.into(), flags, remote, TraceState::NONE)
}

fn data(span: Span) -> SpanData {
    let fact = |(name, fact): (&'static str, Fact)| {
        KeyValue::new(
            name,
            match fact {
                Fact::Word(word) => Value::String(word.into()),
                Fact::Name(name) => Value::String(name.into()),
                Fact::Number(number) => Value::I64(number),
            },
        )
    };
    let mut links = SpanLinks::default();
    links.links = span.links.iter().map(|to| Link::with_context(context(to, false))).collect();
    SpanData {
        span_context: context(&span.at, false),
        parent_span_id: span.parent.unwrap_or(0).into(),
        parent_span_is_remote: span.remote,
        span_kind: match span.side {
            Side::Inside => SpanKind::Internal,
            Side::Server => SpanKind::Server,
            Side::Client => SpanKind::Client,
        },
        name: span.name,
        start_time: span.begun,
        end_time: span.ended,
        attributes: span.facts.into_iter().map(fact).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links,
        status: if span.failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: InstrumentationScope::builder("weir").build(),
    }
}
