//! Tests with malformed, ambiguous and slow requests, on Weir's own routes and on native paths.

use crate::frames;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends bytes on a new connection. Returns all that came back until the end or three seconds of silence.
fn exchange(weir: &Weir, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let _ = socket.write_all(bytes);
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    String::from_utf8_lossy(&got).into_owned()
}

/// The status of each response in `response`.
fn statuses(response: &str) -> Vec<u16> {
    response.match_indices("HTTP/1.1 ").filter_map(|(at, _)| response[at + 9..].get(..3)?.parse().ok()).collect()
}

const KEY: &str = "Host: a\r\nX-API-Key: open\r\n";

/// A request with its expected status, on Weir's own route and on a native path. It must never count as two requests.
struct Case {
    name: &'static str,
    bytes: String,
    own_status: u16,
    native_status: u16,
}

/// A request that a second interpretation of the framing would find in the body of the first.
const HIDDEN: &str = "GET /v1/providers HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n";

/// Requests with ambiguous or unknown framing, or with a malformed header. Each gets 400 on every path.
fn malformed(post: &str, get: &str) -> Vec<(&'static str, String)> {
    let hidden = HIDDEN.len();
    let (chunked, empty_chunk) = ("Transfer-Encoding: chunked\r\n", format!("\r\n0\r\n\r\n{HIDDEN}"));
    vec![
        ("CL.TE", format!("{post}Content-Length: {}\r\n{chunked}{empty_chunk}", hidden + 5)),
        ("TE.CL", format!("{post}{chunked}Content-Length: 4\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n")),
        ("TE.TE", format!("{post}{chunked}Transfer-Encoding: identity\r\n{empty_chunk}")),
        ("chunked twice", format!("{post}{chunked}{chunked}{empty_chunk}")),
        ("an unknown coding", format!("{post}Transfer-Encoding: xchunked\r\n{empty_chunk}")),
        ("a coding after chunked", format!("{post}Transfer-Encoding: chunked, gzip\r\n{empty_chunk}")),
        ("a coding before chunked", format!("{post}Transfer-Encoding: gzip, chunked\r\n{empty_chunk}")),
        ("two lengths", format!("{post}Content-Length: 0\r\nContent-Length: {hidden}\r\n\r\n{HIDDEN}")),
        ("a length twice", format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}{HIDDEN}")),
        ("lengths in a list", format!("{post}Content-Length: 0, {hidden}\r\n\r\n{HIDDEN}")),
        ("a signed length", format!("{post}Content-Length: +{hidden}\r\n\r\n{HIDDEN}")),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\n{HIDDEN}")),
        ("a length in hexadecimal", format!("{post}Content-Length: 0x10\r\n\r\n{HIDDEN}")),
        ("a folded line", format!("{get}{KEY}X-A: b\r\n c\r\n\r\n")),
        ("a NUL", format!("{get}{KEY}X-A: b\0c\r\n\r\n")),
        ("a space before the colon", format!("{get}{KEY}Transfer-Encoding : chunked\r\n{empty_chunk}")),
        ("two hosts", format!("{get}Host: a\r\nHost: b\r\nX-API-Key: open\r\n\r\n")),
        ("no host", format!("{get}X-API-Key: open\r\n\r\n")),
        ("another host in the target", format!("{}{KEY}\r\n", get.replacen("GET /", "GET http://b/", 1))),
        ("a control character in the path", format!("{}{KEY}\r\n", get.replacen("/v", "/v\x01", 1))),
        ("a tab in the request line", format!("{}{KEY}\r\n", get.replace(' ', "\t"))),
        ("HTTP/1.0 with a coding", format!("{}{chunked}{empty_chunk}", post.replace("HTTP/1.1", "HTTP/1.0"))),
        ("HTTP/0.9", get.replace(" HTTP/1.1", "") + "\r\n"),
        ("HTTP/3.7", format!("{}{KEY}\r\n", get.replace("HTTP/1.1", "HTTP/3.7"))),
        ("garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned()),
    ]
}

/// All cases for a path.
fn corpus(path: &str) -> Vec<Case> {
    let (post, get) = (format!("POST {path} HTTP/1.1\r\n{KEY}"), format!("GET {path} HTTP/1.1\r\n"));
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let case = |name, bytes, own_status, native_status| Case { name, bytes, own_status, native_status };
    let mut cases: Vec<Case> =
        malformed(&post, &get).into_iter().map(|(name, bytes)| case(name, bytes, 400, 400)).collect();
    cases.extend([
        // RFC 9112, section 2.2 permits a bare line feed as the end of a line, so X-B is a field of its own.
        case(
            "a bare line feed inside a value",
            format!("{get}{KEY}X-A: b\nX-B: c\r\nConnection: close\r\n\r\n"),
            200,
            200,
        ),
        case("CONNECT", format!("CONNECT a:443 HTTP/1.1\r\n{KEY}\r\n"), 405, 405),
        case("TRACE", format!("TRACE {path} HTTP/1.1\r\n{KEY}\r\n"), 405, 405),
        // Weir's own routes take no body and do not read the chunks. On a native path the chunks are parsed: Weir sends
        // the body with new framing, or refuses it.
        case("bare line feeds between chunks", format!("{chunked}2\n{{}}\n0\n\n{HIDDEN}"), 405, 400),
        case("a chunk longer than any", format!("{chunked}ffffffffffffffff1\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        case("a chunk without a size", format!("{chunked};a=b\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        case("a negative chunk", format!("{chunked}-2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        case("a chunk longer than it says", format!("{chunked}1\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        case(
            "bytes after an early upgrade with a body",
            format!("{post}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n{{}}{HIDDEN}"),
            405,
            201,
        ),
    ]);
    cases
}

/// Runs every case on a path and describes those with an unexpected result.
fn unexpected_results(weir: &Weir, path: &str) -> Vec<String> {
    let own = path == "/v1/providers";
    let wrong = corpus(path).into_iter().filter_map(|case| {
        let response = exchange(weir, case.bytes.as_bytes());
        let (got, expected) = (statuses(&response), if own { case.own_status } else { case.native_status });
        let listed = response.contains("\"providers\":[");
        (got != [expected] || listed != (own && expected == 200))
            .then(|| format!("{} on {path}: {got:?}, expected {expected}\n{response}", case.name))
    });
    wrong.collect()
}

#[test]
fn each_ambiguous_request_is_refused_or_read_in_one_way() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let paths = ["/v1/providers", "/vectara/v2/agents/agt_load_1/sessions/ase_1/events"];
        let weir = &weir;
        let start = |path| scope.spawn(move || unexpected_results(weir, path));
        let threads: Vec<_> = paths.into_iter().map(start).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let calls: Vec<String> = sim.call_counts()["calls"].as_object().unwrap().keys().cloned().collect();
    assert!(calls.iter().all(|call| !call.contains("providers")), "a hidden request reached the provider: {calls:?}");
    assert_eq!(weir.get(VECTARA).status, 200, "Weir still serves");
}

#[test]
fn unusual_but_valid_requests_are_served() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let get = |line: &str, headers: &str| {
        statuses(&exchange(&weir, format!("{line}\r\n{headers}Connection: close\r\n\r\n").as_bytes()))
    };
    assert_eq!(get("GET http://a/v1/providers HTTP/1.1", KEY), [200], "absolute form of the target");
    assert_eq!(get("GET /v1/providers HTTP/1.0", KEY), [200]);
    assert_eq!(
        get("GET /v1/providers HTTP/1.1", &format!("{KEY}Upgrade: websocket\r\n")),
        [200],
        "an upgrade is ignored"
    );
    assert_eq!(get("GET //v1/providers HTTP/1.1", KEY), [404]);
    for path in [
        "/v1/sessions/vectara:agt_1:..",
        "/v1/sessions/sess_A%2F..%2FB",
        "/v1/agents/../sessions",
        "/v1/agents/agt_1/sessions/%2e%2e",
        "/v1/sessions/a%00b",
        "/v1/sessions/%ff",
    ] {
        let status = get(&format!("GET {path} HTTP/1.1"), KEY);
        assert!(status == [400] || status == [404], "{path}: {status:?}");
    }
    // Pipelined requests: the first gets its response; the second gets its own or none.
    let one = format!("GET /v1/sessions/sess_SIM00000003 HTTP/1.1\r\n{KEY}\r\n");
    let pipelined = exchange(
        &weir,
        format!("{one}GET /v1/sessions/sess_SIM00000004 HTTP/1.1\r\n{KEY}Connection: close\r\n\r\n").as_bytes(),
    );
    let got = statuses(&pipelined);
    assert!(got == [200] || got == [200, 200], "{got:?}");
    assert!(pipelined.contains("sess_SIM00000003"), "{pipelined}");
    // A body that the route ignores must not be read as the next request.
    let hidden = format!("GET {VECTARA} HTTP/1.1\r\n{KEY}Content-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len());
    let got = exchange(&weir, hidden.as_bytes());
    assert!(statuses(&got) == [200] && !got.contains("\"providers\":["), "{got}");
    assert_eq!(sim.call_counts()["calls"].as_object().unwrap().keys().filter(|call| call.contains("..")).count(), 0);
}

#[test]
fn cookies_and_hop_by_hop_headers_of_a_provider_are_removed() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let headers = json!({ "set-cookie": "a=b", "connection": "x-hop", "x-hop": "1", "keep-alive": "timeout=1", "alt-svc": "h3", "server": "them" });
    sim.set_response("/v2/", 200, &headers, r#"{"key":"ase_1","agent_key":"agt_1","name":"n","enabled":true}"#);
    for target in [
        "/v1/sessions/vectara:agt_1:ase_1",
        "/vectara/v2/agents/agt_1/sessions/ase_1",
        "/vectara/v2/agents/agt_1/sessions/ase_1/events",
    ] {
        let response = weir.get_with(target, &[("Cookie", "c=d")]);
        assert_eq!(response.status, 200, "{target}");
        for name in ["set-cookie", "x-hop", "keep-alive", "alt-svc"] {
            assert_eq!(response.header(name), None, "{target}");
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_until_one_closes_the_connection() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let one = |id: u32, more: &str| {
        format!("GET /v1/sessions/sess_SIM{id:08} HTTP/1.1\r\n{KEY}X-Request-Id: r{id}.\r\n{more}\r\n")
    };
    let many: String = (1..=40).map(|id| one(id, "")).collect();
    let got = exchange(&weir, format!("{many}{}{}", one(41, "Connection: close\r\n"), one(42, "")).as_bytes());
    assert_eq!(statuses(&got).len(), 41, "{got}");
    let at = |id: u32| got.find(&format!("x-request-id: r{id}.\r\n")).unwrap_or_else(|| panic!("{id}: {got}"));
    assert!((1..41).all(|id| at(id) < at(id + 1)) && !got.contains("r42."));
    // A native request with a body at the end of the pipeline; Pingora reads the body.
    let post = format!(
        "POST /vectara/v2/agents/agt_load_1/sessions/ase_1/events HTTP/1.1\r\n{KEY}Content-Length: 2\r\n\r\n{{}}"
    );
    let got = exchange(&weir, format!("{}{post}", one(1, "")).as_bytes());
    assert_eq!(statuses(&got).len(), 2, "{got}");
    // Without pipelining, a connection stays open after a native request.
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let head = format!("HEAD /vectara/v2/agents/agt_load_1 HTTP/1.1\r\n{KEY}\r\n");
    for request in [head.as_str(), &format!("HEAD /v1/providers HTTP/1.1\r\n{KEY}\r\n"), &head, &head] {
        socket.write_all(request.as_bytes()).unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
        while !got.ends_with(b"\r\n\r\n") {
            let n = socket.read(&mut buffer).unwrap();
            assert!(n > 0, "the connection closed: {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..n]);
        }
        assert!(got.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&got));
    }
}

#[test]
fn malformed_requests_get_a_problem_and_are_counted() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let received = exchange(&weir, format!("GET /a<b HTTP/1.1\r\n{KEY}\r\n").as_bytes());
    assert!(received.starts_with("HTTP/1.1 400 ") && received.contains("\"code\":\"invalid_request\""), "{received}");
    let many: String = (0..300).map(|n| format!("x-{n}: y\r\n")).collect();
    let received = exchange(&weir, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(received.starts_with("HTTP/1.1 431 ") && received.contains("request_too_large"), "{received}");
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(100_000));
    let received = exchange(&weir, endless.as_bytes());
    assert!(received.starts_with("HTTP/1.1 431 "), "{received}");
    let received = exchange(&weir, format!("GET /{}", "y".repeat(100_000)).as_bytes());
    assert!(received.starts_with("HTTP/1.1 414 ") && received.contains("limits.url_bytes"), "{received}");
    for (limit, count) in [("header_count", 1.0), ("header_bytes", 1.0), ("url_bytes", 1.0)] {
        assert_eq!(weir.metric(&format!("weir_limited_total{{limit=\"{limit}\"}}")), count, "{limit}");
    }
    let received = exchange(&weir, format!("CONNECT a:443 HTTP/1.1\r\n{KEY}\r\n").as_bytes());
    assert!(received.starts_with("HTTP/1.1 405 ") && received.contains("\r\nAllow: GET, "), "{received}");
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"malformed\"}"), 5.0);
    // A client can read the 405 although most of its body is still in transit when the connection closes.
    let body = format!("POST /v1/providers HTTP/1.1\r\n{KEY}Content-Length: 60000\r\n\r\n{}", "x".repeat(60_000));
    for _ in 0..20 {
        let received = exchange(&weir, body.as_bytes());
        assert!(received.starts_with("HTTP/1.1 405 ") && received.contains("connection: close"), "{received}");
    }
}

#[test]
fn http2_requests_with_ambiguous_framing_are_reset() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let path = "/vectara/v2/agents/agt_load_1/sessions/ase_1/events";
    let length = HIDDEN.len().to_string();
    for (name, headers, body) in [
        ("a coding", [("transfer-encoding", "chunked")], "0\r\n\r\n"),
        ("a connection option", [("connection", "transfer-encoding")], "{}"),
        ("a length that is short", [("content-length", "1")], HIDDEN),
        ("a length that is long", [("content-length", &*length)], "{}"),
        ("a line end in a value", [("x-a", "b\r\ncontent-length: 0")], "{}"),
        ("an invalid field name", [("x: a\r\nx", "b")], "{}"),
    ] {
        let mut socket = frames::connect(&weir);
        let request = frames::request(1, "POST", path, "open", &headers, 4);
        let body = frames::frame(0, 1, 1, body.as_bytes());
        socket.write_all(&[request, body].concat()).unwrap();
        let ended = |kind, stream, _: &[u8]| kind == frames::GOAWAY || (kind == frames::RESET && stream == 1);
        assert!(frames::read_until(&mut socket, ended), "{name}: neither RST_STREAM nor GOAWAY");
    }
    let calls: Vec<String> = sim.call_counts()["calls"].as_object().unwrap().keys().cloned().collect();
    assert!(calls.iter().all(|call| !call.contains("providers")), "a hidden request reached the provider: {calls:?}");
    assert_eq!(weir.get(VECTARA).status, 200, "Weir still serves");
}

/// The number of slow connections of one client.
const SLOW: usize = 500;
/// The limit of concurrent native requests of one client at this provider: half of its `concurrent`.
const SHARE: f64 = 32.0;

/// Measures cache hits and uncached reads of another client, without and during slow connections of the first, and
/// limits how much slower they get. The uncached reads go to the same provider as the slow requests. At least
/// `min_in_flight` slow requests must be in flight; otherwise the test shows nothing.
fn assert_others_unharmed(what: &str, min_in_flight: f64, attack: impl Fn(&Weir, usize) -> Option<TcpStream>) {
    let sim = Sim::start();
    sim.plan_fault("/artifacts", 0, &json!({ "kind": "oversize", "bytes": 8 << 20 }));
    let clients = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n";
    let weir = Config::shipped().clients(clients).start(&sim);
    let p99 = |targets: &mut dyn Iterator<Item = String>| {
        let mut took: Vec<Duration> = targets
            .map(|target| {
                let begun = std::time::Instant::now();
                let response = weir.get_as("other", &target);
                assert_eq!(response.status, 200, "{what}: {target}: {}", String::from_utf8_lossy(&response.body));
                begun.elapsed()
            })
            .collect();
        took.sort();
        took[took.len() * 99 / 100]
    };
    let cached = || (0..200).map(|_| VECTARA.to_owned());
    let uncached = |from: u32| (from..from + 60).map(|n| format!("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_{n}"));
    assert_eq!(weir.get(VECTARA).status, 200);
    let before = (p99(&mut cached()), p99(&mut uncached(1)));
    let attackers: Vec<TcpStream> = (0..SLOW).filter_map(|n| attack(&weir, n)).collect();
    assert_eq!(attackers.len(), SLOW);
    wait_until("the slow connections are open", || weir.metric("weir_connections") >= SLOW as f64);
    wait_until("the slow requests are in flight", || weir.metric("weir_http_requests_in_flight") >= min_in_flight);
    // Requests of the slow client that can complete must not disturb the measurement.
    let completed = || {
        let of_slow_client = |line: &&str| line.starts_with("weir_http_requests_total{client=\"open\"");
        weir.metrics().lines().filter(of_slow_client).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut previous = Vec::new();
    wait_until("no more slow requests complete", || {
        let now = completed();
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut previous, now.clone()) == now
    });
    let during = (p99(&mut cached()), p99(&mut uncached(101)));
    let in_flight = weir.metric("weir_http_requests_in_flight");
    assert!(in_flight >= min_in_flight, "{what}: only {in_flight} requests in flight at the end");
    let ratio = |during: Duration, before: Duration| during.as_secs_f64() / before.as_secs_f64();
    let (hits, reads) = (ratio(during.0, before.0), ratio(during.1, before.1));
    println!(
        "{what}: p99 of hits {:?}, {hits:.2} of {:?} without; of uncached reads {:?}, {reads:.2} of {:?}",
        during.0, before.0, during.1, before.1
    );
    // The limit is generous because other tests run at the same time. A request that waited for the slow ones would
    // take ten seconds and more.
    for (during, before) in [(during.0, before.0), (during.1, before.1)] {
        assert!(during < before * 20 + Duration::from_millis(1500), "{what}: {during:?}, {before:?} without");
    }
}

/// Opens a connection, sends bytes, and accepts very little of the response (tiny receive buffer).
fn slow(weir: &Weir, bytes: &[u8]) -> Option<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    socket.set_recv_buffer_size(2048).ok()?;
    socket.connect(&weir.http.into()).ok()?;
    let mut socket = TcpStream::from(socket);
    socket.write_all(bytes).ok()?;
    Some(socket)
}

#[test]
fn five_hundred_slow_connections_do_not_slow_another_client() {
    assert_others_unharmed("slow headers", 0.0, |weir, n| {
        slow(weir, &b"GET /v1/providers HTTP/1.1\r\nHost: a\r\nX-"[..20 + n % 20])
    });
    let artifacts = "/vectara/v2/agents/agt_load_1/sessions/ase_1/artifacts HTTP/1.1";
    let post = format!("POST {artifacts}\r\n{KEY}Content-Length: 1000000\r\n\r\nx");
    assert_others_unharmed("slow bodies", SHARE, |weir, _| slow(weir, post.as_bytes()));
    let native = format!("GET {artifacts}\r\n{KEY}\r\n");
    assert_others_unharmed("slow reads of native responses", SHARE, |weir, _| slow(weir, native.as_bytes()));
    let lists = format!("GET /v1/sessions?provider=agenthuman&limit=100 HTTP/1.1\r\n{KEY}\r\n").repeat(200);
    assert_others_unharmed("slow reads of lists", SLOW as f64, |weir, _| slow(weir, lists.as_bytes()));
}

#[test]
fn native_request_bodies_have_a_stall_timeout_and_a_body_timeout() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("weir.yaml", "stall_timeout: 30s", "stall_timeout: 1s")
        .edit("weir.yaml", "body_timeout: 2m", "body_timeout: 3s")
        .start(&sim);
    let post = format!(
        "POST /vectara/v2/agents/agt_load_1/sessions/ase_1/events HTTP/1.1\r\n{KEY}Content-Length: 1000\r\n\r\nx"
    );
    let received = exchange(&weir, post.as_bytes());
    assert!(received.starts_with("HTTP/1.1 408 ") && received.contains("stall_timeout"), "{received}");
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(post.as_bytes()).unwrap();
    let begun = std::time::Instant::now();
    // A byte every 100 ms is no stall, so only `body_timeout` ends the request.
    for _ in 0..200 {
        if socket.write_all(b"x").is_err() || begun.elapsed() > Duration::from_secs(20) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        if weir.metric("weir_limited_total{limit=\"body_timeout\"}") > 0.0 {
            break;
        }
    }
    let mut received = Vec::new();
    let _ = socket.read_to_end(&mut received);
    let received = String::from_utf8_lossy(&received);
    assert!(received.starts_with("HTTP/1.1 408 ") && received.contains("body_timeout"), "{received}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    // Over HTTP/2 a stalled body has its stream reset.
    let headers = [("content-length", "1000")];
    let mut h2 = frames::connect(&weir);
    h2.write_all(&frames::request(
        1,
        "POST",
        "/vectara/v2/agents/agt_load_1/sessions/ase_1/events",
        "open",
        &headers,
        4,
    ))
    .unwrap();
    let reset = frames::read_until(&mut h2, |kind, stream, _| kind == frames::RESET && stream == 1);
    assert!(reset, "the stream was not reset");
    let limited = |limit: &str| weir.metric(&format!("weir_limited_total{{limit=\"{limit}\"}}"));
    assert_eq!((limited("stall_timeout"), limited("body_timeout")), (2.0, 1.0));
    let cut = "weir_http_requests_total{client=\"open\",provider=\"vectara\",route=\"native\",status=\"408\"}";
    assert_eq!(weir.metric(cut), 3.0, "each request is counted with 408");
    assert_eq!(weir.metric("weir_upstream_requests_in_flight"), 0.0);
}
