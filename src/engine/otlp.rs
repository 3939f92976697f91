//! Exports spans to a collector with OTLP: protobuf over HTTP.
//!
//! Spans wait in a bounded queue, and OpenTelemetry's thread sends them in batches. If the collector is slow or
//! unreachable, spans are dropped; no request waits. Only this file uses OpenTelemetry. It sends with the connector of
//! provider calls, which includes TLS.

use crate::base::request_reply::ProviderRequest;
use crate::base::trace_context::{Side, Span, TraceAttribute, TraceContext};
use crate::config::faults::Faults;
use crate::config::weir::Traces;
use crate::engine::upstream::{Target, UpstreamClient};
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

/// The time limit for sending the remaining spans at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest response body that is read from a collector, in bytes.
const MAX_RESPONSE: u64 = 64 << 10;

/// The collector, and the share of requests whose spans are sent to it.
#[derive(Debug)]
pub struct TraceDestination {
    target: Target,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The share of requests to sample, from 0 to 1. A sampling decision in `traceparent` takes precedence.
    pub sample: f64,
}

impl TraceDestination {
    /// Compiles `traces`. Returns `None` if no endpoint is configured, or for a fault, which it adds to `faults`.
    pub fn compile(config: &Traces, faults: &mut Faults) -> Option<Self> {
        let endpoint = config.endpoint.as_ref()?;
        let calls = crate::config::upstream::Upstream { max_body: MAX_RESPONSE, retries: 0, ..Default::default() };
        let target = faults.keep(&endpoint.location, Target::compile(&endpoint.value, &calls));
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            let pair = HeaderName::from_bytes(name.value.as_bytes()).ok().zip(HeaderValue::from_str(&value.0).ok());
            let invalid = format!("{:?} and its value are not a valid header", name.value);
            headers.extend(faults.keep(&name.location, pair.ok_or(invalid)).map(|(name, mut value)| {
                value.set_sensitive(true);
                (name, value)
            }));
        }
        Some(Self { target: target?, headers, sample: config.sample })
    }
}

/// Returns the destination that is configured when a batch is sent.
pub(crate) type CurrentDestination = Arc<dyn Fn() -> Option<Arc<TraceDestination>> + Send + Sync>;

/// Queues spans and exports them.
pub(crate) struct Exporter {
    processor: BatchSpanProcessor,
}

impl Exporter {
    /// Makes an exporter that sends to the destination that `current` returns. It sends in tasks of the Tokio runtime
    /// in which this function is called.
    ///
    /// # Errors
    /// OpenTelemetry could not build its exporter.
    pub(crate) fn new(current: CurrentDestination, exports: IntCounterVec) -> Result<Self, String> {
        let runtime = tokio::runtime::Handle::current();
        let client =
            CollectorClient { current, runtime, upstream: Arc::new(UpstreamClient::new(MAX_RESPONSE * 4)), exports };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            // OpenTelemetry requires an endpoint; `CollectorClient` ignores it.
            .with_endpoint("http://localhost/v1/traces")
            .build()
            .map_err(|error| error.to_string())?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        processor.set_resource(&Resource::builder().with_service_name("weir").with_attribute(version).build());
        Ok(Self { processor })
    }

    /// Queues spans for export. Drops them if the queue is full.
    pub(crate) fn queue(&self, spans: Vec<Span>) {
        spans.into_iter().for_each(|span| self.processor.on_end(span_data(span)));
    }

    /// Sends the queued spans. Blocks for at most two seconds.
    pub(crate) fn shutdown(&self) {
        let _ = self.processor.shutdown_with_timeout(SHUTDOWN_TIMEOUT);
    }
}

struct CollectorClient {
    current: CurrentDestination,
    runtime: tokio::runtime::Handle,
    upstream: Arc<UpstreamClient>,
    exports: IntCounterVec,
}

impl std::fmt::Debug for CollectorClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CollectorClient")
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // A reload has turned tracing off: the queued spans are dropped.
        let Some(destination) = (self.current)() else { return Ok(Response::new(Bytes::new())) };
        let mut headers = destination.headers.clone();
        headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")));
        headers.push((header::ACCEPT, HeaderValue::from_static("application/x-protobuf")));
        let request = ProviderRequest {
            path_and_query: "/v1/traces".to_owned(),
            conditions: headers,
            form: Some(request.into_body()),
            ..ProviderRequest::default()
        };
        let upstream = self.upstream.clone();
        let deadline = tokio::time::Instant::now() + destination.target.timeout;
        let sending = self.runtime.spawn(async move {
            let mut memory = upstream.budget.own_share().reservation();
            upstream.send(&destination.target, &request, deadline, &mut memory, |_| false).await
        });
        let reply =
            sending.await.map_err(|error| error.to_string()).and_then(|reply| reply.map_err(|failure| failure.detail));
        let accepted = reply.as_ref().is_ok_and(|reply| (200..300).contains(&reply.status));
        self.exports.with_label_values(&[if accepted { "sent" } else { "failed" }]).inc();
        let reply = reply?;
        Ok(Response::builder().status(reply.status).body(reply.body)?)
    }
}

fn span_context(at: &TraceContext, remote: bool) -> SpanContext {
    let flags = if at.sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(at.trace.into(), at.span.into(), flags, remote, TraceState::NONE)
}

fn span_data(span: Span) -> SpanData {
    let attribute = |(name, value): (&'static str, TraceAttribute)| {
        KeyValue::new(
            name,
            match value {
                TraceAttribute::Static(text) => Value::String(text.into()),
                TraceAttribute::Text(text) => Value::String(text.into()),
                TraceAttribute::Number(number) => Value::I64(number),
            },
        )
    };
    let mut links = SpanLinks::default();
    links.links = span.links.iter().map(|linked| Link::with_context(span_context(linked, false))).collect();
    SpanData {
        span_context: span_context(&span.context, false),
        parent_span_id: span.parent.unwrap_or(0).into(),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.side {
            Side::Inside => SpanKind::Internal,
            Side::Server => SpanKind::Server,
            Side::Client => SpanKind::Client,
        },
        name: span.name,
        start_time: span.started,
        end_time: span.ended,
        attributes: span.attributes.into_iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links,
        status: if span.failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: InstrumentationScope::builder("weir").build(),
    }
}
