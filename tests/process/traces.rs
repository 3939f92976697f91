//! Traces: who is told of them, what is exported, and what is not.

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

/// A provider and a collector at one address; it keeps what came.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    /// Headers of what the provider was asked, by lower-case name.
    asked: Arc<Mutex<Vec<Headers>>>,
    /// Bodies of exports.
    exported: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Milliseconds until the provider answers.
    latency: Arc<AtomicU64>,
}

impl Peer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = Self { address, asked: Arc::default(), exported: Arc::default(), latency: Arc::default() };
        let serving = peer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let peer = serving.clone();
                std::thread::spawn(move || peer.serve(stream));
            }
        });
        peer
    }

    /// Requests of one connection, until it ends.
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
            let answer = if export {
                assert!(headers.contains(&("content-type".to_owned(), "application/x-protobuf".to_owned())));
                assert!(headers.contains(&("x-tenant".to_owned(), "weir".to_owned())));
                self.exported.lock().unwrap().push(body);
                String::new()
            } else {
                self.asked.lock().unwrap().push(headers);
                std::thread::sleep(Duration::from_millis(self.latency.load(Ordering::SeqCst)));
                example("vectara/get").0.to_string()
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            reader.get_mut().write_all((head + &answer).as_bytes()).ok()?;
        }
    }

    /// What the provider was told last.
    fn told(&self, name: &str) -> Option<String> {
        let asked = self.asked.lock().unwrap();
        asked.last()?.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn weir(&self, endpoint: bool, sample: &str) -> Weir {
        let address = format!("http://{}", self.address);
        let config = Config::shipped()
            .clients("clients:\n  - { id: team, keys: [ { sha256: SHA(key-that-nobody-may-see) } ] }\n")
            .env("VECTARA_BASE_URL", &address)
            .env("VECTARA_API_KEY", "credential-that-nobody-may-see")
            .edit("weir.yaml", "sample: 0.01", &format!("sample: {sample}"))
            .edit(
                "weir.yaml",
                "  # headers: { authorization",
                "  headers: { x-tenant: weir }\n  # headers: { authorization",
            );
        let config = if endpoint { config.env("WEIR_TRACES_ENDPOINT", &address) } else { config };
        let process = Process::start(&mut config.command(&["run"]));
        let line = line_with(&process.stderr, "listening http=");
        let (http, admin) = line.split_once(" admin=").unwrap();
        Weir { http: http.parse().unwrap(), admin: admin.parse().unwrap(), process, config }
    }

    /// All spans, once the gateway has ended: it sends the last of them then.
    fn spans(&self, mut weir: Weir) -> Vec<Span> {
        weir.process.signal("TERM");
        assert_eq!(weir.process.wait().code(), Some(0));
        let exported = self.exported.lock().unwrap();
        let requests = exported.iter().map(|body| ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
        let resources = requests.flat_map(|request| request.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }
}

const KEY: (&str, &str) = ("X-API-Key", "key-that-nobody-may-see");
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn fact(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.clone()?.value);
    match value {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} of {}", span.name),
    }
}

fn parents(span: &Span) -> String {
    hex(&span.parent_span_id)
}

fn logged(weir: &Weir, at: usize) -> serde_json::Value {
    until("it is logged", || weir.process.stdout.lock().unwrap().len() > at);
    serde_json::from_str(&weir.process.stdout.lock().unwrap()[at]).unwrap()
}

#[test]
fn a_request_is_followed_to_the_provider_and_its_steps_are_exported() {
    let peer = Peer::start();
    let weir = peer.weir(true, "1");
    let got = |headers: &[(&str, &str)]| send(weir.http, "GET", &format!("{VECTARA}?include=native"), headers).status;
    assert_eq!(got(&[KEY, ("traceparent", PARENT), ("tracestate", "them=1")]), 200);
    let (told, state) = (peer.told("traceparent").unwrap(), peer.told("tracestate"));
    assert_eq!(state.as_deref(), Some("them=1"));
    assert_eq!(logged(&weir, 0)["trace_id"], TRACE);
    // From the cache, and nobody has decided: it begins a trace of its own.
    assert_eq!(got(&[KEY]), 200);
    let own = logged(&weir, 1)["trace_id"].as_str().unwrap().to_owned();
    assert!(own.len() == 32 && own != TRACE);
    // Somebody has decided against it.
    assert_eq!(
        got(&[
            KEY,
            ("traceparent", "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-00"),
            ("Cache-Control", "no-cache")
        ]),
        200
    );
    assert!(peer.told("traceparent").unwrap().starts_with("00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-"));
    assert!(peer.told("traceparent").unwrap().ends_with("-00"));

    let spans = peer.spans(weir);
    let ids: Vec<String> = spans.iter().map(|span| hex(&span.trace_id)).collect();
    assert!(ids.iter().all(|id| id == TRACE || *id == own), "{ids:?}");
    let (first, second): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|span| hex(&span.trace_id) == TRACE);
    let root = named(&first, "GET /v1/agents/{agent}/sessions/{session}")[0];
    assert_eq!((parents(root).as_str(), root.kind), ("00f067aa0ba902b7", 2), "SERVER");
    for (name, value) in [
        ("http.response.status_code", "200"),
        ("weir.client", "team"),
        ("weir.provider", "vectara"),
        ("weir.cache", "miss"),
    ] {
        assert_eq!(fact(root, name), value);
    }
    let call = named(&first, "call")[0];
    assert_eq!((parents(call), fact(call, "weir.operation").as_str()), (hex(&root.span_id), "get_session"));
    let upstream = named(&first, "upstream")[0];
    assert_eq!((parents(upstream), upstream.kind), (hex(&call.span_id), 3), "CLIENT");
    assert_eq!(fact(upstream, "http.response.status_code"), "200");
    assert_eq!(fact(upstream, "server.address"), peer.address.to_string());
    assert_eq!(told, format!("00-{TRACE}-{}-01", hex(&upstream.span_id)), "what the provider was told");
    let steps = |of: &Span, spans: &[Span]| -> Vec<String> {
        spans.iter().filter(|span| span.parent_span_id == of.span_id).map(|span| span.name.clone()).collect()
    };
    let mut line = steps(root, &first);
    line.sort();
    assert_eq!(line, ["authenticate", "call", "fetch", "look up and admit", "respond", "route and permit"]);
    assert_eq!(steps(call, &first), ["gate", "credential", "upstream", "judge and map", "store"]);
    assert!(
        first.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano && span.start_time_unix_nano > 0)
    );
    let root = named(&second, "GET /v1/agents/{agent}/sessions/{session}")[0];
    assert_eq!((parents(root).as_str(), fact(root, "weir.cache").as_str()), ("", "hit"));
    assert!(named(&second, "fetch").is_empty() && named(&second, "call").is_empty());

    let bytes: Vec<u8> = peer.exported.lock().unwrap().concat();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("service.name") && text.contains("weir"));
    for secret in ["nobody-may-see", "ase_customer_support_001", "agt_customer_support", "include=native"] {
        assert!(!text.contains(secret), "{secret} was exported");
    }
}

#[test]
fn who_shares_a_call_is_linked_to_it() {
    let peer = Peer::start();
    let weir = peer.weir(true, "1");
    peer.latency.store(1500, Ordering::SeqCst);
    let http = weir.http;
    let ask = move || send(http, "GET", VECTARA, &[KEY]).status;
    let leader = std::thread::spawn(ask);
    until("the provider is asked", || !peer.asked.lock().unwrap().is_empty());
    assert_eq!((ask(), leader.join().unwrap()), (200, 200));
    assert_eq!(peer.asked.lock().unwrap().len(), 1);
    let spans = peer.spans(weir);
    let call = named(&spans, "call");
    assert_eq!(call.len(), 1);
    let shared: Vec<&Span> = named(&spans, "fetch").into_iter().filter(|span| !span.links.is_empty()).collect();
    assert_eq!(shared.len(), 1);
    assert_ne!(shared[0].trace_id, call[0].trace_id);
    let link = &shared[0].links[0];
    assert_eq!((&link.trace_id, &link.span_id), (&call[0].trace_id, &call[0].span_id));
}

#[test]
fn what_passes_through_is_followed_too() {
    let peer = Peer::start();
    let weir = peer.weir(true, "0");
    let target = "/vectara/v2/corpora";
    assert_eq!(send(weir.http, "GET", target, &[KEY, ("traceparent", PARENT), ("tracestate", "them=1")]).status, 200);
    let told = peer.told("traceparent").unwrap();
    assert_eq!(peer.told("tracestate").as_deref(), Some("them=1"));
    assert_eq!(logged(&weir, 0)["trace_id"], TRACE);
    let spans = peer.spans(weir);
    let (root, upstream) = (named(&spans, "GET native")[0], named(&spans, "upstream")[0]);
    assert_eq!(parents(upstream), hex(&root.span_id));
    assert_eq!(told, format!("00-{TRACE}-{}-01", hex(&upstream.span_id)));
    assert_eq!(fact(upstream, "http.response.status_code"), "200");
}

#[test]
fn without_a_collector_what_came_is_passed_on_as_it_is() {
    let peer = Peer::start();
    let weir = peer.weir(false, "1");
    let get = |target: &str, headers: &[(&str, &str)]| {
        let mut all = vec![KEY];
        all.extend_from_slice(headers);
        assert_eq!(send(weir.http, "GET", target, &all).status, 200);
    };
    let came = [("traceparent", PARENT), ("tracestate", "them=1"), ("Cache-Control", "no-cache")];
    for (at, target) in [VECTARA, "/vectara/v2/corpora"].into_iter().enumerate() {
        get(target, &came);
        assert_eq!(peer.told("traceparent").as_deref(), Some(PARENT));
        assert_eq!(peer.told("tracestate").as_deref(), Some("them=1"));
        assert_eq!(logged(&weir, at)["trace_id"], TRACE);
    }
    get(VECTARA, &[("Cache-Control", "no-cache")]);
    assert_eq!((peer.told("traceparent"), logged(&weir, 2)["trace_id"].is_null()), (None, true));
    get(VECTARA, &[("Cache-Control", "no-cache"), ("traceparent", "nonsense"), ("tracestate", "them=1")]);
    assert_eq!((peer.told("traceparent"), peer.told("tracestate")), (None, None));
    let threads = std::fs::read_dir(format!("/proc/{}/task", weir.process.id())).unwrap().flatten();
    let names: Vec<String> = threads.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap()).collect();
    assert!(!names.is_empty() && !names.iter().any(|name| name.contains("OpenTelemetry")), "{names:?}");
    assert!(peer.spans(weir).is_empty());
}

#[test]
fn a_collector_that_is_away_holds_nothing_up() {
    let peer = Peer::start();
    let weir = peer.weir(true, "1");
    // Nobody listens there.
    weir.config.change("weir.yaml", "${WEIR_TRACES_ENDPOINT:-}", "http://127.0.0.1:9");
    until("it reloads", || weir.reload().0 == 200);
    for _ in 0..20 {
        assert_eq!(send(weir.http, "GET", VECTARA, &[KEY]).status, 200);
    }
    until("a batch was lost", || weir.metric("weir_trace_exports_total{result=\"failed\"}") >= 1.0);
    assert!(peer.spans(weir).is_empty());
}
