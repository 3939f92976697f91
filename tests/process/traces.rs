//! Traces: the trace headers that Weir sends to the provider, and the spans that it exports.

use crate::support::*;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Names and values.
type Headers = Vec<(String, String)>;

/// A provider and an OTLP collector at one address. It records what it receives.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    /// The headers of each request to the provider; names are lower-case.
    provider_requests: Arc<Mutex<Vec<Headers>>>,
    /// The bodies of the export requests.
    exported: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The provider's latency in milliseconds.
    latency: Arc<AtomicU64>,
}

impl Peer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer =
            Self { address, provider_requests: Arc::default(), exported: Arc::default(), latency: Arc::default() };
        let serving = peer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let peer = serving.clone();
                std::thread::spawn(move || peer.serve(stream));
            }
        });
        peer
    }

    /// Serves the requests of one connection until it ends.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
            let export = line.starts_with("POST /v1/traces ");
            let mut headers = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok()?;
                let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                headers.push((name.to_ascii_lowercase(), value.to_owned()));
            }
            let length = headers.iter().find(|(name, _)| name == "content-length");
            let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
            reader.read_exact(&mut body).ok()?;
            let response = if export {
                assert!(headers.contains(&("content-type".to_owned(), "application/x-protobuf".to_owned())));
                assert!(headers.contains(&("x-tenant".to_owned(), "weir".to_owned())));
                self.exported.lock().unwrap().push(body);
                String::new()
            } else {
                self.provider_requests.lock().unwrap().push(headers);
                std::thread::sleep(Duration::from_millis(self.latency.load(Ordering::SeqCst)));
                example("vectara/get").0.to_string()
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                response.len()
            );
            reader.get_mut().write_all((head + &response).as_bytes()).ok()?;
        }
    }

    /// Returns a header of the last request to the provider.
    fn last_header(&self, name: &str) -> Option<String> {
        let provider_requests = self.provider_requests.lock().unwrap();
        provider_requests.last()?.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// Starts Weir in front of this provider. `endpoint` enables the export; `sample` is the share of sampled requests.
    fn start_weir(&self, endpoint: bool, sample: &str) -> Weir {
        let address = format!("http://{}", self.address);
        let config = Config::shipped()
            .clients("clients:\n  - { id: team, keys: [ { sha256: SHA(key-that-must-stay-secret) } ] }\n")
            .env("VECTARA_BASE_URL", &address)
            .env("VECTARA_API_KEY", "credential-that-must-stay-secret")
            .edit("weir.yaml", "sample: 0.01", &format!("sample: {sample}"))
            .edit(
                "weir.yaml",
                "  # headers: { authorization",
                "  headers: { x-tenant: weir }\n  # headers: { authorization",
            );
        let config = if endpoint { config.env("WEIR_TRACES_ENDPOINT", &address) } else { config };
        let process = Process::start(&mut config.command(&["run"]));
        Weir::of(config, process)
    }

    /// Stops the gateway, which then sends its last spans, and returns all spans.
    fn spans(&self, mut weir: Weir) -> Vec<Span> {
        weir.process.signal("TERM");
        assert_eq!(weir.process.wait().code(), Some(0));
        let exported = self.exported.lock().unwrap();
        let requests = exported.iter().map(|body| ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
        let resources = requests.flat_map(|request| request.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }
}

const KEY: (&str, &str) = ("X-API-Key", "key-that-must-stay-secret");
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn spans_named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn attribute(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.clone()?.value);
    match value {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} of {}", span.name),
    }
}

fn parent_id(span: &Span) -> String {
    hex(&span.parent_span_id)
}

fn access_log_line(weir: &Weir, index: usize) -> serde_json::Value {
    wait_until("the request is in the access log", || weir.process.stdout.lock().unwrap().len() > index);
    serde_json::from_str(&weir.process.stdout.lock().unwrap()[index]).unwrap()
}

#[test]
fn a_request_continues_the_clients_trace_and_its_steps_are_exported() {
    let peer = Peer::start();
    let weir = peer.start_weir(true, "1");
    let get_status =
        |headers: &[(&str, &str)]| send(weir.http, "GET", &format!("{VECTARA}?include=native"), headers).status;
    assert_eq!(get_status(&[KEY, ("traceparent", PARENT), ("tracestate", "them=1")]), 200);
    let (traceparent, tracestate) = (peer.last_header("traceparent").unwrap(), peer.last_header("tracestate"));
    assert_eq!(tracestate.as_deref(), Some("them=1"));
    assert_eq!(access_log_line(&weir, 0)["trace_id"], TRACE);
    // A cache hit without `traceparent` starts a new trace.
    assert_eq!(get_status(&[KEY]), 200);
    let new_trace = access_log_line(&weir, 1)["trace_id"].as_str().unwrap().to_owned();
    assert!(new_trace.len() == 32 && new_trace != TRACE);
    // The client's `traceparent` says that the trace is not sampled.
    assert_eq!(
        get_status(&[
            KEY,
            ("traceparent", "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-00"),
            ("Cache-Control", "no-cache")
        ]),
        200
    );
    assert!(peer.last_header("traceparent").unwrap().starts_with("00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-"));
    assert!(peer.last_header("traceparent").unwrap().ends_with("-00"));

    let spans = peer.spans(weir);
    let ids: Vec<String> = spans.iter().map(|span| hex(&span.trace_id)).collect();
    assert!(ids.iter().all(|id| id == TRACE || *id == new_trace), "{ids:?}");
    let (first, second): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|span| hex(&span.trace_id) == TRACE);
    let root = spans_named(&first, "GET /v1/agents/{agent}/sessions/{session}")[0];
    assert_eq!((parent_id(root).as_str(), root.kind), ("00f067aa0ba902b7", 2), "SERVER");
    for (name, value) in [
        ("http.response.status_code", "200"),
        ("weir.client", "team"),
        ("weir.provider", "vectara"),
        ("weir.cache", "miss"),
    ] {
        assert_eq!(attribute(root, name), value);
    }
    let call = spans_named(&first, "call")[0];
    assert_eq!((parent_id(call), attribute(call, "weir.operation").as_str()), (hex(&root.span_id), "get_session"));
    let upstream = spans_named(&first, "upstream")[0];
    assert_eq!((parent_id(upstream), upstream.kind), (hex(&call.span_id), 3), "CLIENT");
    assert_eq!(attribute(upstream, "http.response.status_code"), "200");
    assert_eq!(attribute(upstream, "server.address"), peer.address.to_string());
    assert_eq!(traceparent, format!("00-{TRACE}-{}-01", hex(&upstream.span_id)), "the provider gets the upstream span");
    let child_names = |parent: &Span, spans: &[Span]| -> Vec<String> {
        spans.iter().filter(|span| span.parent_span_id == parent.span_id).map(|span| span.name.clone()).collect()
    };
    let mut steps = child_names(root, &first);
    steps.sort();
    assert_eq!(steps, ["authenticate", "call", "fetch", "look up and admit", "respond", "route and permit"]);
    assert_eq!(child_names(call, &first), ["gate", "credential", "upstream", "judge and map", "store"]);
    assert!(
        first.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano && span.start_time_unix_nano > 0)
    );
    let root = spans_named(&second, "GET /v1/agents/{agent}/sessions/{session}")[0];
    assert_eq!((parent_id(root).as_str(), attribute(root, "weir.cache").as_str()), ("", "hit"));
    assert!(spans_named(&second, "fetch").is_empty() && spans_named(&second, "call").is_empty());

    let bytes: Vec<u8> = peer.exported.lock().unwrap().concat();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("service.name") && text.contains("weir"));
    for secret in ["must-stay-secret", "ase_customer_support_001", "agt_customer_support", "include=native"] {
        assert!(!text.contains(secret), "{secret} was exported");
    }
}

#[test]
fn a_coalesced_request_has_a_link_to_the_call_it_shares() {
    let peer = Peer::start();
    let weir = peer.start_weir(true, "1");
    peer.latency.store(1500, Ordering::SeqCst);
    let http = weir.http;
    let get_session = move || send(http, "GET", VECTARA, &[KEY]).status;
    let leader = std::thread::spawn(get_session);
    wait_until("the provider has the request", || !peer.provider_requests.lock().unwrap().is_empty());
    assert_eq!((get_session(), leader.join().unwrap()), (200, 200));
    assert_eq!(peer.provider_requests.lock().unwrap().len(), 1);
    let spans = peer.spans(weir);
    let call = spans_named(&spans, "call");
    assert_eq!(call.len(), 1);
    let shared: Vec<&Span> = spans_named(&spans, "fetch").into_iter().filter(|span| !span.links.is_empty()).collect();
    assert_eq!(shared.len(), 1);
    assert_ne!(shared[0].trace_id, call[0].trace_id);
    let link = &shared[0].links[0];
    assert_eq!((&link.trace_id, &link.span_id), (&call[0].trace_id, &call[0].span_id));
}

#[test]
fn a_forwarded_request_continues_the_clients_trace() {
    let peer = Peer::start();
    let weir = peer.start_weir(true, "0");
    let target = "/vectara/v2/corpora";
    assert_eq!(send(weir.http, "GET", target, &[KEY, ("traceparent", PARENT), ("tracestate", "them=1")]).status, 200);
    let traceparent = peer.last_header("traceparent").unwrap();
    assert_eq!(peer.last_header("tracestate").as_deref(), Some("them=1"));
    assert_eq!(access_log_line(&weir, 0)["trace_id"], TRACE);
    let spans = peer.spans(weir);
    let (root, upstream) = (spans_named(&spans, "GET native")[0], spans_named(&spans, "upstream")[0]);
    assert_eq!(parent_id(upstream), hex(&root.span_id));
    assert_eq!(traceparent, format!("00-{TRACE}-{}-01", hex(&upstream.span_id)));
    assert_eq!(attribute(upstream, "http.response.status_code"), "200");
}

#[test]
fn without_a_collector_valid_trace_headers_are_forwarded_unchanged() {
    let peer = Peer::start();
    let weir = peer.start_weir(false, "1");
    let get = |target: &str, headers: &[(&str, &str)]| {
        let mut all = vec![KEY];
        all.extend_from_slice(headers);
        assert_eq!(send(weir.http, "GET", target, &all).status, 200);
    };
    let trace_headers = [("traceparent", PARENT), ("tracestate", "them=1"), ("Cache-Control", "no-cache")];
    for (at, target) in [VECTARA, "/vectara/v2/corpora"].into_iter().enumerate() {
        get(target, &trace_headers);
        assert_eq!(peer.last_header("traceparent").as_deref(), Some(PARENT));
        assert_eq!(peer.last_header("tracestate").as_deref(), Some("them=1"));
        assert_eq!(access_log_line(&weir, at)["trace_id"], TRACE);
    }
    get(VECTARA, &[("Cache-Control", "no-cache")]);
    assert_eq!((peer.last_header("traceparent"), access_log_line(&weir, 2)["trace_id"].is_null()), (None, true));
    get(VECTARA, &[("Cache-Control", "no-cache"), ("traceparent", "nonsense"), ("tracestate", "them=1")]);
    assert_eq!((peer.last_header("traceparent"), peer.last_header("tracestate")), (None, None));
    let threads = std::fs::read_dir(format!("/proc/{}/task", weir.process.id())).unwrap().flatten();
    let names: Vec<String> = threads.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap()).collect();
    assert!(!names.is_empty() && !names.iter().any(|name| name.contains("OpenTelemetry")), "{names:?}");
    assert!(peer.spans(weir).is_empty());
}

#[test]
fn an_unreachable_collector_does_not_delay_requests() {
    let peer = Peer::start();
    let weir = peer.start_weir(true, "1");
    // Nothing listens on this port.
    weir.config.change("weir.yaml", "${WEIR_TRACES_ENDPOINT:-}", "http://127.0.0.1:9");
    wait_until("the reload succeeds", || weir.reload().0 == 200);
    for _ in 0..20 {
        assert_eq!(send(weir.http, "GET", VECTARA, &[KEY]).status, 200);
    }
    wait_until("an export fails", || weir.metric("weir_trace_exports_total{result=\"failed\"}") >= 1.0);
    assert!(peer.spans(weir).is_empty());
}

#[test]
fn the_sampling_flag_of_an_unknown_client_exports_nothing() {
    let peer = Peer::start();
    let weir = peer.start_weir(true, "0");
    let trace = ("traceparent", PARENT);
    for target in [VECTARA, "/v1/sessions", "/vectara/v2/corpora", "/openapi.json", "/nowhere"] {
        for headers in [&[trace][..], &[("X-API-Key", "wrong"), trace]] {
            for _ in 0..5 {
                send(weir.http, "GET", target, headers);
            }
        }
    }
    assert_eq!(send(weir.http, "GET", VECTARA, &[KEY, trace]).status, 200);
    let spans = peer.spans(weir);
    assert_eq!(spans_named(&spans, "GET /v1/agents/{agent}/sessions/{session}").len(), 1, "{spans:?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let roots = spans.iter().filter(|span| span.kind == 2).count();
    assert_eq!(roots, 1, "only the request with a valid key is exported");
}

#[test]
fn a_client_has_only_so_many_requests_traced_in_a_second() {
    let peer = Peer::start();
    let weir = peer.start_weir(true, "0");
    weir.config.change("weir.yaml", "requested: 100", "requested: 2");
    wait_until("the reload succeeds", || weir.reload().0 == 200);
    let started = std::time::Instant::now();
    for _ in 0..30 {
        assert_eq!(send(weir.http, "GET", VECTARA, &[KEY, ("traceparent", PARENT)]).status, 200);
    }
    let most = 2.0 + 2.0 * started.elapsed().as_secs_f64();
    let roots = peer.spans(weir).iter().filter(|span| span.kind == 2).count();
    assert!(roots >= 2 && roots as f64 <= most, "{roots} of 30 traces, at most {most}");
}
