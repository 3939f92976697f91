//! The spans that a collector receives, and the metric of the exports.

use crate::support::*;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Requests with a trace of their own: a name, the target, and the value of `Cache-Control`.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("miss", VECTARA, ""),
    ("hit", VECTARA, ""),
    ("confirmed", VECTARA, "no-cache"),
    ("list", "/v1/agents/agt_customer_support/sessions?limit=2", ""),
    ("merged list", "/v1/sessions?agent=agt_customer_support&provider=agenthuman&limit=3", ""),
    ("batch", "/v1/sessions:batchGet?id=sess_SIM00000001&id=nothing", ""),
    ("native read", "/agenthuman/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T", ""),
    ("native forward", "/vectara/v2/corpora", ""),
    ("unknown session", "/v1/sessions/sess_0000000000000000000000NONE", ""),
    ("unknown path", "/v2/nothing", ""),
    ("provider error", "/v1/sessions/vectara:agt_status:ase_1", ""),
    ("retried", "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_1", ""),
];

/// Attributes whose value is the same in each run.
const FIXED_ATTRIBUTES: &[&str] = &["http.request.method", "http.response.status_code", "error.type"];

/// The bodies of the export requests.
type Exported = Arc<Mutex<Vec<Vec<u8>>>>;

/// Starts a collector.
fn start_collector() -> (SocketAddr, Exported) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let exported = Exported::default();
    let bodies = exported.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let bodies = bodies.clone();
            std::thread::spawn(move || collect(stream, &bodies));
        }
    });
    (address, exported)
}

/// Receives the export requests of one connection until it ends.
fn collect(stream: TcpStream, bodies: &Exported) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            length = line.strip_prefix("content-length: ").map_or(length, |value| value.parse().unwrap());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        bodies.lock().unwrap().push(body);
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

fn start(sim: &Sim, endpoint: &str) -> Weir {
    Config::shipped().env("WEIR_TRACES_ENDPOINT", endpoint).edit("weir.yaml", "sample: 0.01", "sample: 1").start(sim)
}

/// Waits for an export with this result and returns the series.
fn exports(weir: &Weir, result: &str) -> Vec<String> {
    let series = format!("weir_trace_exports_total{{result=\"{result}\"}}");
    wait_until(&series, || weir.metric(&series) >= 1.0);
    let metrics = weir.metrics();
    let series = metrics.lines().filter(|line| line.contains("weir_trace_exports_total"));
    series.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).filter(|line| !line.starts_with("# HELP")).collect()
}

pub fn snapshot() -> Value {
    let sim = Sim::start();
    let (collector, exported) = start_collector();
    let mut weir = start(&sim, &format!("http://{collector}"));
    // Nothing listens on this port.
    let unreachable = start(&sim, "http://127.0.0.1:9");
    unreachable.get("/v1/providers");
    sim.set_response("/agt_status/", 500, &json!({}), "{}");
    sim.plan_fault("/agt_load_1/", 1, &json!({ "kind": "reset" }));
    for (at, (_, target, cache_control)) in REQUESTS.iter().enumerate() {
        let parent = format!("00-{:032x}-00f067aa0ba902b7-01", at + 1);
        let mut headers = vec![("traceparent", parent.as_str())];
        headers.extend((!cache_control.is_empty()).then_some(("cache-control", *cache_control)));
        weir.get_with(target, &headers);
    }
    weir.get("/v1/providers");
    let series = json!({ "sent": exports(&weir, "sent"), "failed": exports(&unreachable, "failed") });
    // The gateway sends its last spans before it ends.
    weir.process.signal("TERM");
    assert_eq!(weir.process.wait().code(), Some(0));

    let bodies = exported.lock().unwrap();
    let requests = bodies.iter().map(|body| ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
    let (mut resources, mut scopes, mut spans) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for resource_spans in requests.flat_map(|request| request.resource_spans) {
        resources.extend(resource_spans.resource.unwrap().attributes.into_iter().map(|pair| pair.key));
        for scope_spans in resource_spans.scope_spans {
            scopes.insert(scope_spans.scope.unwrap().name);
            spans.extend(scope_spans.spans);
        }
    }
    let mut traces: Map<String, Value> = REQUESTS
        .iter()
        .enumerate()
        .map(|(at, (name, ..))| ((*name).to_owned(), trace(&spans, |id| id == (at as u128 + 1).to_be_bytes())))
        .collect();
    let is_known = |id: &[u8]| (1..=REQUESTS.len() as u128).any(|known| id == known.to_be_bytes());
    traces.insert("without traceparent".to_owned(), trace(&spans, |id| !is_known(id)));
    json!({ "traces": traces, "resource_attributes": resources, "scopes": scopes, "exports": series })
}

/// The spans of a trace without their ids and times, in the order of their text.
fn trace(spans: &[Span], is_in_trace: impl Fn(&[u8]) -> bool) -> Value {
    let spans: Vec<&Span> = spans.iter().filter(|span| is_in_trace(&span.trace_id)).collect();
    let mut found: Vec<Value> = spans
        .iter()
        .map(|span| {
            let parent = spans.iter().find(|other| other.span_id == span.parent_span_id);
            let parent = match parent {
                Some(parent) => parent.name.as_str(),
                None if span.parent_span_id.is_empty() => "(none)",
                None => "(the client's)",
            };
            let mut attributes: Vec<_> = span.attributes.iter().map(attribute).collect();
            attributes.sort();
            let status = span.status.as_ref().map_or(0, |status| status.code);
            json!({
                "name": span.name, "kind": span.kind, "parent": parent, "attributes": attributes,
                "links": span.links.len(), "events": span.events.len(), "status": status,
            })
        })
        .collect();
    found.sort_by_key(|span| (span["parent"].to_string(), span.to_string()));
    found.into()
}

/// The name of an attribute, and its value if that is the same in each run.
fn attribute(pair: &opentelemetry_proto::tonic::common::v1::KeyValue) -> String {
    let value = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        _ => "(another type)".to_owned(),
    };
    let is_fixed =
        (pair.key.starts_with("weir.") && pair.key != "weir.request_id") || FIXED_ATTRIBUTES.contains(&&*pair.key);
    if is_fixed { format!("{} = {value}", pair.key) } else { pair.key.clone() }
}
