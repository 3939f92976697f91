//! Shares of what all clients use: whatever one client, or a stranger without a key, has in flight, the others get theirs.

use crate::frames;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;

const CLIENTS: &str = "clients:\n  - { id: greedy, keys: [ { sha256: SHA(greedy) } ], explain: true }\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";
const IN_FLIGHT: &str = "weir_http_requests_in_flight";

fn config() -> Config {
    Config::shipped().clients(CLIENTS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ").edit(
        "providers/vectara.yaml",
        "  timeout: 10s",
        "  timeout: 60s",
    )
}

/// Makes the provider of the slow sessions hang.
fn hang(sim: &Sim) {
    sim.plan_fault("/v2/agents/agt_slow/", 0, &json!({ "kind": "hang" }));
}

fn slow_session(n: usize) -> String {
    format!("/v1/sessions/vectara:agt_slow:ase_{n}")
}

fn refused(weir: &Weir, client: &str) -> f64 {
    let of_client = |line: &&str| {
        line.starts_with(&format!("weir_http_requests_total{{client=\"{client}\"")) && line.contains("status=\"503\"")
    };
    let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    weir.metrics().lines().filter(of_client).map(count).sum()
}

/// Sends requests and does not wait for their responses: over HTTP/1, one on each connection.
fn start_requests(
    weir: &Weir,
    key: &str,
    method: &str,
    target: impl Fn(usize) -> String,
    count: usize,
) -> Vec<TcpStream> {
    let start = |n| {
        let mut socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let headers = [("X-API-Key", key), ("Content-Length", "2"), ("Connection", "close")];
        let headers = if method == "GET" { &[headers[0], headers[2]][..] } else { &headers[..] };
        socket.write_all(&request(method, &target(n), headers)).unwrap();
        if method != "GET" {
            socket.write_all(b"{}").unwrap();
        }
        socket
    };
    (0..count).map(start).collect()
}

/// Sends requests on one HTTP/2 connection.
fn start_streams(weir: &Weir, key: &str, target: impl Fn(usize) -> String, count: usize) -> TcpStream {
    let mut socket = frames::connect(weir);
    for n in 0..count {
        let stream = u32::try_from(2 * n + 1).unwrap();
        socket.write_all(&frames::request(stream, "GET", &target(n), key, &[], 5)).unwrap();
    }
    socket
}

#[test]
fn one_clients_requests_in_flight_leave_half_to_the_others_over_both_protocols() {
    for http2 in [false, true] {
        let sim = Sim::start();
        let weir = config().edit("weir.yaml", "max_in_flight: 20000", "max_in_flight: 12").start(&sim);
        assert_eq!(weir.get(VECTARA).status, 200);
        hang(&sim);
        // All wait for the same call, so that the limit of calls does not matter.
        let same = |_: usize| slow_session(0);
        let (sockets, socket);
        if http2 {
            socket = Some(start_streams(&weir, "greedy", same, 10));
            sockets = Vec::new();
        } else {
            socket = None;
            sockets = start_requests(&weir, "greedy", "GET", same, 10);
        }
        wait_until("six wait and four are refused", || {
            weir.metric(IN_FLIGHT) == 6.0 && refused(&weir, "greedy") == 4.0
        });
        assert_eq!(weir.get(VECTARA).status, 200, "a hit, http2: {http2}");
        assert_eq!(weir.get(PALANTIR).status, 200, "a miss, http2: {http2}");
        let over = weir.get_as("greedy", VECTARA);
        assert_eq!(over.code(), (503, "overloaded".into()));
        let detail = over.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("6 requests") && detail.contains("half of overload.max_in_flight"), "{detail}");
        drop((sockets, socket));
    }
}

#[test]
fn one_clients_calls_that_no_request_waits_for_leave_half_to_the_others() {
    let sim = Sim::start();
    let weir = config().edit("weir.yaml", "max_in_flight: 20000", "max_in_flight: 12").start(&sim);
    let list = |n: usize| format!("/v1/agents/agt_load_{n}/sessions");
    assert!((0..8).all(|n| weir.get(&list(n)).status == 200));
    weir.make_stale();
    sim.plan_fault("/v2/agents/agt_load", 0, &json!({ "kind": "hang" }));
    // Each gets a stale response, and its refresh hangs.
    assert!((0..8).all(|n| weir.get_as("greedy", &list(n)).status == 200));
    let calls = || weir.metric("weir_upstream_requests_in_flight");
    wait_until("six refreshes are in flight", || calls() == 6.0);
    assert_eq!((weir.metric(IN_FLIGHT), weir.metric("weir_upstream_requests_limit")), (0.0, 12.0));
    assert_eq!(weir.get(PALANTIR).status, 200);
    let over = weir.get_as("greedy", AGENTHUMAN);
    assert_eq!(over.code(), (503, "overloaded".into()));
    assert!(over.json()["detail"].as_str().unwrap().contains("6 calls to providers"), "{}", over.json());
    assert_eq!(weir.get(AGENTHUMAN).status, 200, "what one client may not call, another may");
}

#[test]
fn requests_that_wait_are_counted_as_memory_before_they_wait() {
    const KIB: f64 = 1024.0;
    // A call 28 KiB; a request over HTTP/1 4 KiB, over HTTP/2 28 KiB; each of several calls 8 KiB.
    let batch = |_: usize| {
        format!(
            "/v1/sessions:batchGet?{}",
            (0..10).map(|n| format!("id=vectara:agt_slow:ase_{n}")).collect::<Vec<_>>().join("&")
        )
    };
    let list = |_: usize| {
        format!("/v1/sessions?{}", (0..5).map(|n| format!("agent=vectara:agt_slow_{n}")).collect::<Vec<_>>().join("&"))
    };
    type Target<'t> = &'t dyn Fn(usize) -> String;
    let cases: [(&str, bool, Target<'_>, f64); 4] = [
        ("one session, HTTP/1", false, &slow_session, 3.0 * 32.0),
        ("one session, HTTP/2", true, &slow_session, 3.0 * 56.0),
        ("batches", false, &batch, 3.0 * (4.0 + 10.0 * 8.0) + 10.0 * 28.0),
        ("lists", false, &list, 3.0 * (4.0 + 5.0 * 8.0) + 5.0 * 28.0),
    ];
    for (what, http2, target, expected) in cases {
        let sim = Sim::start();
        let weir = config().start(&sim);
        sim.plan_fault("/v2/agents/agt_slow", 0, &json!({ "kind": "hang" }));
        let _socket = http2.then(|| start_streams(&weir, "greedy", target, 3));
        let _sockets = if http2 { Vec::new() } else { start_requests(&weir, "greedy", "GET", target, 3) };
        let buffered = || weir.metric("weir_buffered_bytes") / KIB;
        let client = "weir_client_buffered_bytes{client=\"greedy\"}";
        // The simulator begins its responses before it hangs.
        let is_expected = |seen: f64| (expected..expected + 4.0).contains(&seen);
        let mut seen = 0.0;
        let begun = std::time::Instant::now();
        while !is_expected(seen) && begun.elapsed() < MAX_WAIT {
            seen = buffered();
        }
        assert!(is_expected(seen), "{what}: {seen} KiB, not {expected}");
        assert!(is_expected(weir.metric(client) / KIB), "{what}");
    }
}

#[test]
fn waiting_requests_beyond_the_clients_memory_get_503_and_the_other_client_its_response() {
    let sim = Sim::start();
    let weir = config().edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 4MiB").start(&sim);
    hang(&sim);
    // 2 MiB are 36 times 56 KiB.
    let _socket = start_streams(&weir, "greedy", slow_session, 60);
    wait_until("36 wait and 24 are refused", || weir.metric(IN_FLIGHT) == 36.0 && refused(&weir, "greedy") == 24.0);
    assert_eq!(weir.get(PALANTIR).status, 200);
}

#[test]
fn writes_beyond_the_clients_memory_are_refused_before_they_are_sent() {
    let sim = Sim::start();
    let weir = config()
        .edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 8MiB")
        .edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1000")
        .start(&sim);
    hang(&sim);
    // 4 MiB are four times 864 KiB.
    let path = |n: usize| format!("/vectara/v2/agents/agt_slow/sessions/ase_{n}/messages");
    let mut sockets = start_requests(&weir, "greedy", "POST", path, 10);
    wait_until("four wait and six are refused", || weir.metric(IN_FLIGHT) == 4.0 && refused(&weir, "greedy") == 6.0);
    assert_eq!(sim.calls(), 4, "the provider gets no write whose response Weir cannot hold");
    let mut responses = 0;
    sockets.retain_mut(|socket| {
        let mut response = [0; 12];
        socket.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let is_refused = socket.read_exact(&mut response).is_ok() && &response == b"HTTP/1.1 503";
        responses += usize::from(is_refused);
        !is_refused
    });
    assert_eq!(responses, 6);
    let other = weir.get_as("open", PALANTIR);
    assert_eq!(other.status, 200);
    drop(sockets);
    wait_until("all memory is released", || weir.metric("weir_buffered_bytes") == 0.0);
}

#[test]
fn a_write_that_streams_events_gives_back_the_memory_of_a_long_response() {
    let sim = Sim::start();
    let weir = config().start(&sim);
    let body = br#"{"type":"input_message","messages":[{"type":"text","content":"hello"}],"stream_response":true}"#;
    let length = body.len().to_string();
    let headers = [("X-API-Key", "greedy"), ("Content-Type", "application/json"), ("Content-Length", &*length)];
    let path = "/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_1/events";
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    sim.set_response(
        "/v2/agents/agt_load_1/sessions/ase_agt_load_1_1/events",
        200,
        &json!({ "content-type": "text/event-stream" }),
        "data: 1\n\n",
    );
    socket.write_all(&[&request("POST", path, &headers)[..], body].concat()).unwrap();
    let mut response = Vec::new();
    let mut buffer = [0; 4096];
    while !response.windows(7).any(|bytes| bytes == b"data: 1") {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&response));
        response.extend_from_slice(&buffer[..read]);
    }
    assert!(response.starts_with(b"HTTP/1.1 200"));
    wait_until("all memory is released", || weir.metric("weir_buffered_bytes") == 0.0);
}

#[test]
fn requests_without_a_key_leave_the_memory_to_the_clients_and_to_other_addresses() {
    let sim = Sim::start();
    let weir = config().edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 64MiB").start(&sim);
    // A window of zero, so that each stream holds its response: 2 MiB are for one address, 8 MiB for all.
    let stalled = |count: u32| {
        let mut socket = frames::connect(&weir);
        socket.write_all(&frames::frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
        for n in 0..count {
            socket.write_all(&frames::request(2 * n + 1, "GET", "/openapi.json", "", &[], 5)).unwrap();
        }
        socket
    };
    let _connections: Vec<_> = (0..3).map(|_| stalled(90)).collect();
    let buffered = || weir.metric("weir_buffered_bytes");
    wait_until("the others are refused", || refused(&weir, "none") > 100.0);
    assert!(buffered() <= f64::from(2 << 20), "{}", buffered());
    // The other client fills its half, and still gets what is in it.
    assert_eq!(weir.get(VECTARA).status, 200);
    let url = format!("http://{}/openapi.json", weir.http);
    let output = std::process::Command::new("curl")
        .args(["-s", "--interface", "127.0.0.2", "--max-time", "20", "-w", "%{http_code}", "-o", "/dev/null", &url])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "200", "another address");
}

#[test]
fn an_http2_upload_without_a_length_by_any_method_is_counted() {
    let sim = Sim::start();
    let weir = config().edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 1MiB").start(&sim);
    sim.plan(&json!({ "path": "/agt_slow/", "latency_ms": 20_000 }));
    for (n, method) in ["GET", "OPTIONS", "DELETE", "POST"].into_iter().enumerate() {
        let mut socket = frames::connect(&weir);
        let path = format!("/vectara/v2/agents/agt_slow/sessions/ase_{n}/other");
        socket.write_all(&frames::request(1, method, &path, "greedy", &[], 4)).unwrap();
        // Half of the budget is less than a long upload needs.
        let _ = socket.write_all(&frames::frame(0, 0, 1, &[b'x'; 16_384]));
        let _ = socket.write_all(&frames::frame(0, 0, 1, &[b'x'; 16_384]));
        let mut body = Vec::new();
        frames::read_until(&mut socket, |kind, stream, payload| {
            if (kind, stream) == (frames::DATA, 1) {
                body.extend_from_slice(payload);
            }
            stream == 1 && matches!(kind, frames::DATA | frames::RESET)
        });
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains("its share of the response buffers"), "{method}: {body}");
    }
    wait_until("all memory is released", || weir.metric("weir_buffered_bytes") == 0.0);
}

#[test]
fn the_explanation_of_a_watch_is_counted() {
    let sim = Sim::start();
    let weir = config().start(&sim);
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let path = format!("{AGENTHUMAN}/watch");
    socket.write_all(&request("GET", &path, &[("X-API-Key", "greedy"), ("Weir-Explain", "1")])).unwrap();
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while !received.windows(14).any(|bytes| bytes == b"event: explain") {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..read]);
    }
    // 32 KiB of the watch itself fit, an explanation of 16 KiB and more does not.
    let small = config().edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 80KiB");
    let weir = small.start(&sim);
    let response = weir.get_with_key("greedy", &path, &[("Weir-Explain", "1")]);
    assert_eq!(response.status, 503);
}

/// A configuration with few places at the provider of the slow sessions.
fn few_places(concurrent: u32, timeout: &str) -> Config {
    Config::shipped()
        .clients(CLIENTS)
        .edit("providers/vectara.yaml", "concurrent: 64", &format!("concurrent: {concurrent}"))
        .edit("providers/vectara.yaml", "  timeout: 10s", &format!("  timeout: {timeout}"))
}

/// Starts Weir with four places at the provider, of which the greedy client has taken its two.
fn with_share_taken() -> (Sim, Weir, Vec<TcpStream>) {
    let sim = Sim::start();
    let weir = few_places(4, "60s").start(&sim);
    hang(&sim);
    let held = start_requests(&weir, "greedy", "GET", slow_session, 2);
    wait_until("its share is taken", || sim.calls() == 2);
    (sim, weir, held)
}

#[test]
fn one_clients_slow_reads_leave_half_of_the_providers_places_to_the_others() {
    let sim = Sim::start();
    let weir = few_places(4, "60s").start(&sim);
    hang(&sim);
    let held = start_requests(&weir, "greedy", "GET", slow_session, 8);
    wait_until("its share is taken", || sim.calls() == 2);
    assert_eq!(weir.get(VECTARA).status, 200, "a miss of the other client");
    assert_eq!(sim.calls(), 3, "no further call of the first one");
    drop(held);
}

#[test]
fn only_clients_that_use_one_credential_share_its_places() {
    let client = |id: &str, more: &str| format!("  - {{ id: {id}, keys: [ {{ sha256: SHA({id}) }} ]{more} }}\n");
    let own = |key: &str| format!(", credentials: {{ vectara: {{ header: x-api-key, value: {key} }} }}");
    let other_provider = ", providers: [ palantir ]";
    for (greedy, open, places) in [
        (String::new(), String::new(), 2),
        (String::new(), other_provider.to_owned(), 4),
        (String::new(), own("b"), 4),
        (own("a"), own("b"), 4),
        (own("a"), own("a"), 2),
        // The same credential as in the provider's file.
        (own("zut_sim"), String::new(), 2),
    ] {
        let sim = Sim::start();
        let clients = format!("clients:\n{}{}", client("greedy", &greedy), client("open", &open));
        let weir = few_places(4, "60s").clients(&clients).start(&sim);
        hang(&sim);
        let held = start_requests(&weir, "greedy", "GET", slow_session, 8);
        wait_until("all calls wait or are made", || weir.metric("weir_upstream_requests_in_flight") == 8.0);
        wait_until("its places are taken", || sim.calls() >= places);
        assert_eq!(sim.calls(), places, "greedy{greedy}, open{open}");
        drop(held);
    }
}

#[test]
fn a_client_that_joins_a_queued_call_brings_its_own_place() {
    let (sim, weir, held) = with_share_taken();
    // The greedy client's call for this session waits in its queue.
    let queued = start_requests(&weir, "greedy", "GET", |_| VECTARA.to_owned(), 1);
    wait_until("it waits", || weir.metric("weir_upstream_requests_in_flight") == 3.0);
    let joined = weir.get(VECTARA);
    assert_eq!((joined.status, sim.calls()), (200, 3));
    drop((held, queued));
}

#[test]
fn the_time_in_the_queue_is_not_the_providers_and_opens_no_breaker() {
    let sim = Sim::start();
    let weir = few_places(2, "8s").edit("providers/vectara.yaml", "failures: 5", "failures: 1").start(&sim);
    // Longer than what the queue would leave, shorter than the timeout.
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 6000 }));
    let mut first = start_requests(&weir, "greedy", "GET", slow_session, 1);
    let mut other = start_requests(&weir, "open", "GET", |_| slow_session(9), 1);
    wait_until("both places are taken", || sim.calls() == 2);
    // Then it waits for three seconds, of at most four.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let waited = weir.get(VECTARA);
    assert_eq!(waited.status, 200, "{}", String::from_utf8_lossy(&waited.body));
    for socket in first.iter_mut().chain(&mut other) {
        socket.read_to_end(&mut Vec::new()).unwrap();
    }
    assert_eq!(weir.metric("weir_upstream_breaker_open{provider=\"vectara\"}"), 0.0);
}

#[test]
fn a_call_that_clients_join_while_it_waits_stays_one_call() {
    let (sim, weir, held) = with_share_taken();
    let queued = start_requests(&weir, "greedy", "GET", |_| "/v1/sessions/vectara:agt_slow:shared".to_owned(), 1);
    wait_until("it waits", || weir.metric("weir_upstream_requests_in_flight") == 3.0);
    let waiting = start_requests(&weir, "open", "GET", |_| "/v1/sessions/vectara:agt_slow:shared".to_owned(), 20);
    wait_until("they share one call", || sim.calls() == 3);
    wait_until("all wait", || weir.metric(IN_FLIGHT) == 23.0);
    assert_eq!(sim.calls(), 3);
    drop((held, queued, waiting));
}

#[test]
fn waiters_of_a_call_whose_client_has_used_its_memory_make_one_call_together() {
    let sim = Sim::start();
    let weir = config()
        .edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 4MiB")
        .edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1000")
        .start(&sim);
    let filler = "x".repeat(200_000);
    let body = format!(r#"{{"key":"ase_1","agent_key":"agt_big","enabled":true,"metadata":{{"filler":"{filler}"}}}}"#);
    let answer = json!({ "kind": "answer", "status": 200, "body": body });
    sim.plan(&json!({ "path": "/agt_big/", "latency_ms": 2000, "fault": answer }));
    hang(&sim);
    // 2 MiB are the share. 34 times 56 KiB, and 32 KiB for the request that follows, leave too little for the response.
    let held = start_streams(&weir, "greedy", slow_session, 34);
    wait_until("they wait", || sim.calls() == 34);
    let big = |_: usize| "/v1/sessions/vectara:agt_big:ase_1".to_owned();
    let leading = start_requests(&weir, "greedy", "GET", big, 1);
    wait_until("its call is in flight", || sim.calls() == 35);
    for mut socket in start_requests(&weir, "open", "GET", big, 6) {
        let mut response = Vec::new();
        socket.read_to_end(&mut response).unwrap();
        assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&response[..200]));
    }
    for mut socket in leading {
        let mut response = Vec::new();
        socket.read_to_end(&mut response).unwrap();
        assert!(response.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&response));
    }
    assert_eq!(sim.calls(), 36, "one more call for all six");
    drop(held);
}

#[test]
fn refused_requests_take_nothing_of_max_in_flight_while_their_responses_are_delayed_or_not_read() {
    let sim = Sim::start();
    let weir = config()
        .edit("weir.yaml", "max_in_flight: 20000", "max_in_flight: 12")
        .edit("weir.yaml", "    requests: 120\n", "    requests: 1\n")
        .start(&sim);
    // Each is delayed for a second; sixteen at the same time.
    let mut guesses = Vec::new();
    wait_until("they are delayed", || {
        guesses = start_requests(&weir, "wrong", "GET", |_| VECTARA.to_owned(), 17);
        weir.metric(IN_FLIGHT) >= 13.0
    });
    assert_eq!(weir.get(VECTARA).status, 200);
    drop(guesses);
    // Streams without a window: the responses of six admitted requests wait, and those of the refused ones too.
    let mut socket = TcpStream::connect(weir.http).unwrap();
    let mut bytes = [frames::PREFACE, &frames::frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    for n in 0..40 {
        bytes.extend(frames::request(2 * n + 1, "GET", "/v1/sessions/unknown:1", "greedy", &[], 5));
    }
    socket.write_all(&bytes).unwrap();
    wait_until("more wait than the limit", || weir.metric(IN_FLIGHT) >= 13.0);
    assert_eq!(weir.get(VECTARA).status, 200);
}
