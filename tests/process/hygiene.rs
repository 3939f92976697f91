//! Bytes as no honest client sends them, each with its expected answer, on Weir's own routes and passed on.

use crate::frames;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What came back on a connection: all of it, up to its end or a moment of silence.
fn exchange(weir: &Weir, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let _ = socket.write_all(bytes);
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    String::from_utf8_lossy(&got).into_owned()
}

/// Statuses of all answers on a connection.
fn statuses(answer: &str) -> Vec<u16> {
    answer.match_indices("HTTP/1.1 ").filter_map(|(at, _)| answer[at + 9..].get(..3)?.parse().ok()).collect()
}

const KEY: &str = "Host: a\r\nX-API-Key: open\r\n";

/// What must come of a case: this status, on Weir's own routes and passed on, and never a second request.
struct Case {
    name: &'static str,
    bytes: String,
    own: u16,
    passed: u16,
}

/// A request hidden in what one reading takes for the body of another.
const HIDDEN: &str = "GET /v1/providers HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n";

/// What frames a request in two ways, or in none that is known: 400, wherever it is for.
fn framing(post: &str, get: &str) -> Vec<(&'static str, String)> {
    let hidden = HIDDEN.len();
    let (chunked, none) = ("Transfer-Encoding: chunked\r\n", format!("\r\n0\r\n\r\n{HIDDEN}"));
    vec![
        ("CL.TE", format!("{post}Content-Length: {}\r\n{chunked}{none}", hidden + 5)),
        ("TE.CL", format!("{post}{chunked}Content-Length: 4\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n")),
        ("TE.TE", format!("{post}{chunked}Transfer-Encoding: identity\r\n{none}")),
        ("chunked twice", format!("{post}{chunked}{chunked}{none}")),
        ("an unknown coding", format!("{post}Transfer-Encoding: xchunked\r\n{none}")),
        ("a coding after chunked", format!("{post}Transfer-Encoding: chunked, gzip\r\n{none}")),
        ("a coding before chunked", format!("{post}Transfer-Encoding: gzip, chunked\r\n{none}")),
        ("two lengths", format!("{post}Content-Length: 0\r\nContent-Length: {hidden}\r\n\r\n{HIDDEN}")),
        ("a length twice", format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}{HIDDEN}")),
        ("lengths in a list", format!("{post}Content-Length: 0, {hidden}\r\n\r\n{HIDDEN}")),
        ("a signed length", format!("{post}Content-Length: +{hidden}\r\n\r\n{HIDDEN}")),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\n{HIDDEN}")),
        ("a length in hexadecimal", format!("{post}Content-Length: 0x10\r\n\r\n{HIDDEN}")),
        ("a folded line", format!("{get}{KEY}X-A: b\r\n c\r\n\r\n")),
        ("a NUL", format!("{get}{KEY}X-A: b\0c\r\n\r\n")),
        ("a space before the colon", format!("{get}{KEY}Transfer-Encoding : chunked\r\n{none}")),
        ("two hosts", format!("{get}Host: a\r\nHost: b\r\nX-API-Key: open\r\n\r\n")),
        ("no host", format!("{get}X-API-Key: open\r\n\r\n")),
        ("another host in the target", format!("{}{KEY}\r\n", get.replacen("GET /", "GET http://b/", 1))),
        ("a control character in the path", format!("{}{KEY}\r\n", get.replacen("/v", "/v\x01", 1))),
        ("a tab in the request line", format!("{}{KEY}\r\n", get.replace(' ', "\t"))),
        ("HTTP/1.0 with a coding", format!("{}{chunked}{none}", post.replace("HTTP/1.1", "HTTP/1.0"))),
        ("HTTP/0.9", get.replace(" HTTP/1.1", "") + "\r\n"),
        ("HTTP/3.7", format!("{}{KEY}\r\n", get.replace("HTTP/1.1", "HTTP/3.7"))),
        ("garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned()),
    ]
}

fn corpus(path: &str) -> Vec<Case> {
    let (post, get) = (format!("POST {path} HTTP/1.1\r\n{KEY}"), format!("GET {path} HTTP/1.1\r\n"));
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let case = |name, bytes, own, passed| Case { name, bytes, own, passed };
    let mut cases: Vec<Case> =
        framing(&post, &get).into_iter().map(|(name, bytes)| case(name, bytes, 400, 400)).collect();
    cases.extend([
        // A line may end so (RFC 9112, section 2.2): what follows is a field, and nothing is hidden in it.
        case(
            "a bare line feed inside a value",
            format!("{get}{KEY}X-A: b\nX-B: c\r\nConnection: close\r\n\r\n"),
            200,
            200,
        ),
        case("CONNECT", format!("CONNECT a:443 HTTP/1.1\r\n{KEY}\r\n"), 405, 405),
        case("TRACE", format!("TRACE {path} HTTP/1.1\r\n{KEY}\r\n"), 405, 405),
        // No route of Weir's own takes a body: it is not looked into. Passed on, it is framed anew or refused.
        case("bare line feeds between chunks", format!("{chunked}2\n{{}}\n0\n\n{HIDDEN}"), 405, 400),
        case("a chunk longer than any", format!("{chunked}ffffffffffffffff1\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        // No digits are read as none: the body ends there, and what stands behind it ends the connection.
        case("a chunk without a size", format!("{chunked};a=b\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 201),
        case("a negative chunk", format!("{chunked}-2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        case("a chunk longer than it says", format!("{chunked}1\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"), 405, 400),
        case(
            "bytes behind an early upgrade with a body",
            format!("{post}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n{{}}{HIDDEN}"),
            405,
            201,
        ),
    ]);
    cases
}

/// What came of the cases that should not have.
fn each_case(weir: &Weir, path: &str) -> Vec<String> {
    let own = path == "/v1/providers";
    let wrong = corpus(path).into_iter().filter_map(|case| {
        let answer = exchange(weir, case.bytes.as_bytes());
        let (got, expected) = (statuses(&answer), if own { case.own } else { case.passed });
        let listed = answer.contains("\"providers\":[");
        (got != [expected] || listed != (own && expected == 200))
            .then(|| format!("{} on {path}: {got:?}, not {expected}\n{answer}", case.name))
    });
    wrong.collect()
}

#[test]
fn each_case_of_the_corpus_is_refused_or_read_in_one_way() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let paths = ["/v1/providers", "/vectara/v2/agents/agt_load_1/sessions/ase_1/events"];
        let weir = &weir;
        let start = |path| scope.spawn(move || each_case(weir, path));
        let threads: Vec<_> = paths.into_iter().map(start).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let hidden: Vec<String> = sim.counts()["calls"].as_object().unwrap().keys().cloned().collect();
    assert!(hidden.iter().all(|call| !call.contains("providers")), "nothing hidden was passed on: {hidden:?}");
    assert_eq!(weir.get(VECTARA).status, 200, "Weir goes on");
}

#[test]
fn what_is_odd_but_right_is_answered() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let get = |line: &str, headers: &str| {
        statuses(&exchange(&weir, format!("{line}\r\n{headers}Connection: close\r\n\r\n").as_bytes()))
    };
    assert_eq!(get("GET http://a/v1/providers HTTP/1.1", KEY), [200], "absolute form");
    assert_eq!(get("GET /v1/providers HTTP/1.0", KEY), [200]);
    assert_eq!(
        get("GET /v1/providers HTTP/1.1", &format!("{KEY}Upgrade: websocket\r\n")),
        [200],
        "an upgrade is left out"
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
    // Pipelined: the first is answered; the others too, or not at all, but never another's answer.
    let one = format!("GET /v1/sessions/sess_SIM00000003 HTTP/1.1\r\n{KEY}\r\n");
    let pipelined = exchange(
        &weir,
        format!("{one}GET /v1/sessions/sess_SIM00000004 HTTP/1.1\r\n{KEY}Connection: close\r\n\r\n").as_bytes(),
    );
    let got = statuses(&pipelined);
    assert!(got == [200] || got == [200, 200], "{got:?}");
    assert!(pipelined.contains("sess_SIM00000003"), "{pipelined}");
    // A body that no route wants is not taken for the next request.
    let hidden = format!("GET {VECTARA} HTTP/1.1\r\n{KEY}Content-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len());
    let got = exchange(&weir, hidden.as_bytes());
    assert!(statuses(&got) == [200] && !got.contains("\"providers\":["), "{got}");
    assert_eq!(sim.counts()["calls"].as_object().unwrap().keys().filter(|call| call.contains("..")).count(), 0);
}

#[test]
fn what_a_provider_sends_that_is_not_for_clients_stays_here() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let headers = json!({ "set-cookie": "a=b", "connection": "x-hop", "x-hop": "1", "keep-alive": "timeout=1", "alt-svc": "h3", "server": "them" });
    sim.answers("/v2/", 200, &headers, r#"{"key":"ase_1","agent_key":"agt_1","name":"n","enabled":true}"#);
    for target in [
        "/v1/sessions/vectara:agt_1:ase_1",
        "/vectara/v2/agents/agt_1/sessions/ase_1",
        "/vectara/v2/agents/agt_1/sessions/ase_1/events",
    ] {
        let answer = weir.get_with(target, &[("Cookie", "c=d")]);
        assert_eq!(answer.status, 200, "{target}");
        for name in ["set-cookie", "x-hop", "keep-alive", "alt-svc"] {
            assert_eq!(answer.header(name), None, "{target}");
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order_up_to_one_that_ends_the_connection() {
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
    // Passed on in between: its body is read by Pingora, and what stands behind it ends the connection.
    let post = format!(
        "POST /vectara/v2/agents/agt_load_1/sessions/ase_1/events HTTP/1.1\r\n{KEY}Content-Length: 2\r\n\r\n{{}}"
    );
    let got = exchange(&weir, format!("{}{post}", one(1, "")).as_bytes());
    assert_eq!(statuses(&got).len(), 2, "{got}");
    // One at a time, the connection goes on after what was passed on.
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("HEAD /vectara/v2/agents/agt_load_1 HTTP/1.1\r\n{KEY}\r\n");
    for request in [head.as_str(), &format!("HEAD /v1/providers HTTP/1.1\r\n{KEY}\r\n"), &head, &head] {
        socket.write_all(request.as_bytes()).unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
        while !got.ends_with(b"\r\n\r\n") {
            let n = socket.read(&mut buffer).unwrap();
            assert!(n > 0, "it was closed: {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..n]);
        }
        assert!(got.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&got));
    }
}

#[test]
fn what_is_no_request_is_told_so_and_counted() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let told = exchange(&weir, format!("GET /a<b HTTP/1.1\r\n{KEY}\r\n").as_bytes());
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("\"code\":\"invalid_request\""), "{told}");
    let many: String = (0..300).map(|n| format!("x-{n}: y\r\n")).collect();
    let told = exchange(&weir, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(told.starts_with("HTTP/1.1 431 ") && told.contains("request_too_large"), "{told}");
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(100_000));
    let told = exchange(&weir, endless.as_bytes());
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    let told = exchange(&weir, format!("GET /{}", "y".repeat(100_000)).as_bytes());
    assert!(told.starts_with("HTTP/1.1 414 ") && told.contains("limits.url_bytes"), "{told}");
    for (limit, count) in [("header_count", 1.0), ("header_bytes", 1.0), ("url_bytes", 1.0)] {
        assert_eq!(weir.metric(&format!("weir_limited_total{{limit=\"{limit}\"}}")), count, "{limit}");
    }
    let told = exchange(&weir, format!("CONNECT a:443 HTTP/1.1\r\n{KEY}\r\n").as_bytes());
    assert!(told.starts_with("HTTP/1.1 405 ") && told.contains("\r\nAllow: GET, "), "{told}");
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"malformed\"}"), 5.0);
    // Whoever sends a body that nobody wants can read why, though much of it is still on its way.
    let body = format!("POST /v1/providers HTTP/1.1\r\n{KEY}Content-Length: 60000\r\n\r\n{}", "x".repeat(60_000));
    for _ in 0..20 {
        let told = exchange(&weir, body.as_bytes());
        assert!(told.starts_with("HTTP/1.1 405 ") && told.contains("connection: close"), "{told}");
    }
}

#[test]
fn what_http2_says_of_a_body_is_not_passed_on_as_something_else() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let path = "/vectara/v2/agents/agt_load_1/sessions/ase_1/events";
    let length = HIDDEN.len().to_string();
    for (name, headers, body) in [
        ("a coding", [("transfer-encoding", "chunked")], "0\r\n\r\n"),
        ("a connection's option", [("connection", "transfer-encoding")], "{}"),
        ("a length that is short", [("content-length", "1")], HIDDEN),
        ("a length that is long", [("content-length", &*length)], "{}"),
        ("a line end in a value", [("x-a", "b\r\ncontent-length: 0")], "{}"),
        ("a name that is none", [("x: a\r\nx", "b")], "{}"),
    ] {
        let mut socket = frames::connect(&weir);
        let request = frames::request(1, "POST", path, "open", &headers, 4);
        let body = frames::frame(0, 1, 1, body.as_bytes());
        socket.write_all(&[request, body].concat()).unwrap();
        let ended = |kind, stream, _: &[u8]| kind == frames::GOAWAY || (kind == frames::RESET && stream == 1);
        assert!(frames::until(&mut socket, ended), "{name}: neither reset nor told to go");
    }
    let calls: Vec<String> = sim.counts()["calls"].as_object().unwrap().keys().cloned().collect();
    assert!(calls.iter().all(|call| !call.contains("providers")), "nothing hidden was passed on: {calls:?}");
    assert_eq!(weir.get(VECTARA).status, 200, "Weir goes on");
}

/// Slow connections of one client.
const SLOW: usize = 500;
/// Requests passed on that one client may have under way at this provider: half of its `concurrent`.
const SHARE: f64 = 32.0;

/// What another client gets while one's connections do something slowly, beside the same without them: what is
/// stored, and what must be asked of the provider that the slow requests go to. `held` is how many of these are in
/// flight at least: fewer would be no attack.
fn under_attack(what: &str, held: f64, attack: impl Fn(&Weir, usize) -> Option<TcpStream>) {
    let sim = Sim::start();
    sim.fault("/artifacts", 0, &json!({ "kind": "oversize", "bytes": 8 << 20 }));
    let clients = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n";
    let weir = Config::shipped().clients(clients).start(&sim);
    let p99 = |targets: &mut dyn Iterator<Item = String>| {
        let mut took: Vec<Duration> = targets
            .map(|target| {
                let begun = std::time::Instant::now();
                let answer = weir.get_as("other", &target);
                assert_eq!(answer.status, 200, "{what}: {target}: {}", String::from_utf8_lossy(&answer.body));
                begun.elapsed()
            })
            .collect();
        took.sort();
        took[took.len() * 99 / 100]
    };
    let stored = || (0..200).map(|_| VECTARA.to_owned());
    let cold = |from: u32| (from..from + 60).map(|n| format!("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_{n}"));
    assert_eq!(weir.get(VECTARA).status, 200);
    let before = (p99(&mut stored()), p99(&mut cold(1)));
    let attackers: Vec<TcpStream> = (0..SLOW).filter_map(|n| attack(&weir, n)).collect();
    assert_eq!(attackers.len(), SLOW);
    until("they are connected", || weir.metric("weir_connections") >= SLOW as f64);
    until("they hold what they may", || weir.metric("weir_http_requests_in_flight") >= held);
    // What they began is done, as far as they let it.
    let answered = || {
        let of_theirs = |line: &&str| line.starts_with("weir_http_requests_total{client=\"open\"");
        weir.metrics().lines().filter(of_theirs).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut before_last = Vec::new();
    until("it is quiet", || {
        let now = answered();
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before_last, now.clone()) == now
    });
    let during = (p99(&mut stored()), p99(&mut cold(101)));
    let still = weir.metric("weir_http_requests_in_flight");
    assert!(still >= held, "{what}: all the while: {still}");
    let ratio = |during: Duration, before: Duration| during.as_secs_f64() / before.as_secs_f64();
    let (hits, reads) = (ratio(during.0, before.0), ratio(during.1, before.1));
    println!(
        "{what}: p99 of hits {:?}, {hits:.2} of {:?} without; of cold reads {:?}, {reads:.2} of {:?}",
        during.0, before.0, during.1, before.1
    );
    // Generous, since other tests run beside this one; who waits for the attackers waits for ten seconds and more.
    for (during, before) in [(during.0, before.0), (during.1, before.1)] {
        assert!(during < before * 20 + Duration::from_millis(1500), "{what}: {during:?}, {before:?} without");
    }
}

/// A connection that has sent this, and takes next to nothing of what comes.
fn slow(weir: &Weir, bytes: &[u8]) -> Option<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    socket.set_recv_buffer_size(2048).ok()?;
    socket.connect(&weir.http.into()).ok()?;
    let mut socket = TcpStream::from(socket);
    socket.write_all(bytes).ok()?;
    Some(socket)
}

#[test]
fn five_hundred_slow_connections_leave_others_unharmed() {
    under_attack("slow headers", 0.0, |weir, n| {
        slow(weir, &b"GET /v1/providers HTTP/1.1\r\nHost: a\r\nX-"[..20 + n % 20])
    });
    let artifacts = "/vectara/v2/agents/agt_load_1/sessions/ase_1/artifacts HTTP/1.1";
    let post = format!("POST {artifacts}\r\n{KEY}Content-Length: 1000000\r\n\r\nx");
    under_attack("slow bodies", SHARE, |weir, _| slow(weir, post.as_bytes()));
    let passed = format!("GET {artifacts}\r\n{KEY}\r\n");
    under_attack("slow reads of what is passed on", SHARE, |weir, _| slow(weir, passed.as_bytes()));
    let lists = format!("GET /v1/sessions?provider=agenthuman&limit=100 HTTP/1.1\r\n{KEY}\r\n").repeat(200);
    under_attack("slow reads", SLOW as f64, |weir, _| slow(weir, lists.as_bytes()));
}

#[test]
fn a_body_that_is_passed_on_has_a_time_for_each_part_and_one_for_all() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("weir.yaml", "stall_timeout: 30s", "stall_timeout: 1s")
        .edit("weir.yaml", "body_timeout: 2m", "body_timeout: 3s")
        .start(&sim);
    let post = format!(
        "POST /vectara/v2/agents/agt_load_1/sessions/ase_1/events HTTP/1.1\r\n{KEY}Content-Length: 1000\r\n\r\nx"
    );
    let told = exchange(&weir, post.as_bytes());
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("stall_timeout"), "{told}");
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(post.as_bytes()).unwrap();
    let begun = std::time::Instant::now();
    // A byte now and then is no stall. It ends by itself: the loop is bounded by the body's length.
    for _ in 0..200 {
        if socket.write_all(b"x").is_err() || begun.elapsed() > Duration::from_secs(20) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        if weir.metric("weir_limited_total{limit=\"body_timeout\"}") > 0.0 {
            break;
        }
    }
    let mut told = Vec::new();
    let _ = socket.read_to_end(&mut told);
    let told = String::from_utf8_lossy(&told);
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("body_timeout"), "{told}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    // The same over HTTP/2, where a body of which nothing comes has its stream reset.
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
    let reset = frames::until(&mut h2, |kind, stream, _| kind == frames::RESET && stream == 1);
    assert!(reset, "the stream was not reset");
    let limited = |limit: &str| weir.metric(&format!("weir_limited_total{{limit=\"{limit}\"}}"));
    assert_eq!((limited("stall_timeout"), limited("body_timeout")), (2.0, 1.0));
    let cut = "weir_http_requests_total{client=\"open\",provider=\"vectara\",route=\"native\",status=\"408\"}";
    assert_eq!(weir.metric(cut), 3.0, "and each is told");
    assert_eq!(weir.metric("weir_upstream_requests_in_flight"), 0.0);
}
