//! Tests of the limits on connections, requests and failed authentications.

use crate::frames;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn connections_are_limited_in_total_and_per_address() {
    let sim = Sim::start();
    for (edit, reason) in
        [("connections: 20000", "connections"), ("connections_per_address: 5000", "connections_per_address")]
    {
        let (name, _) = edit.split_once(':').unwrap();
        let weir = Config::shipped().edit("weir.yaml", edit, &format!("{name}: 3")).start(&sim);
        let open: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(weir.http).unwrap()).collect();
        wait_until("three connections are counted", || weir.metric("weir_connections") == 3.0);
        let refused = weir.get(VECTARA);
        assert_eq!(refused.code(), (503, "overloaded".into()), "{reason}");
        assert!(refused.json()["detail"].as_str().unwrap().contains(&format!("limits.{reason})")));
        assert_eq!(weir.metric(&format!("weir_connections_ended_total{{reason=\"{reason}\"}}")), 1.0);
        drop(open);
        wait_until("a new connection is accepted", || weir.get(VECTARA).status == 200);
    }
}

/// Opens a connection, completes `before` requests, then sends the parts of another one with pauses. Returns what came
/// after that until the connection closed, and how long it took.
fn send_slowly(weir: &Weir, before: usize, parts: &[&[u8]], pause: Duration) -> (String, Duration) {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    for _ in 0..before {
        socket.write_all(format!("GET {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n").as_bytes()).unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"}") {
            let mut buffer = [0; 4096];
            let n = socket.read(&mut buffer).unwrap();
            assert!(n > 0, "the connection closed: {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..n]);
        }
        assert!(got.starts_with(b"HTTP/1.1 200"));
    }
    let begun = Instant::now();
    for part in parts {
        if socket.write_all(part).is_err() {
            break;
        }
        std::thread::sleep(pause);
    }
    let mut rest = String::new();
    let _ = socket.read_to_string(&mut rest);
    (rest, begun.elapsed())
}

#[test]
fn header_timeout_and_idle_timeout_end_a_connection() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("weir.yaml", "header_timeout: 10s", "header_timeout: 1s")
        .edit("weir.yaml", "idle_timeout: 60s", "idle_timeout: 2s")
        .start(&sim);
    let dripped: Vec<&[u8]> = b"GET /v1/providers HTTP/1.1\r\nHost: a\r\n".chunks(3).collect();
    for before in [0, 3] {
        let (received, took) = send_slowly(&weir, before, &dripped, Duration::from_millis(200));
        assert!(received.starts_with("HTTP/1.1 408") && received.contains("request_timeout"), "{before}: {received}");
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"header_timeout\"}"), 2.0);
    for before in [0, 2] {
        let (received, took) = send_slowly(&weir, before, &[], Duration::ZERO);
        assert_eq!(received, "", "an idle connection closes without a response");
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(15), "{took:?}");
    }
    // A header in several pieces is accepted if it is complete in time.
    let (received, _) = send_slowly(
        &weir,
        1,
        &[b"GET /v1/providers HTT", b"P/1.1\r\nHost: a\r\nConnection: close\r\nX-API-", b"Key: open\r\n\r\n"],
        Duration::from_millis(50),
    );
    assert!(received.starts_with("HTTP/1.1 200"), "{received}");
}

#[test]
fn each_request_limit_has_its_status_and_is_counted() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("weir.yaml", "requests_per_connection: 100000", "requests_per_connection: 3")
        .edit("weir.yaml", "header_count: 100", "header_count: 20")
        .edit("weir.yaml", "header_bytes: 64KiB", "header_bytes: 2KiB")
        .edit("weir.yaml", "url_bytes: 8KiB", "url_bytes: 1KiB")
        .edit("weir.yaml", "body_bytes: 256KiB", "body_bytes: 1KiB")
        .start(&sim);
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let request = format!("HEAD {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n");
    let (mut responses, mut closed) = (0, false);
    while !closed && responses < 10 {
        socket.write_all(request.as_bytes()).unwrap();
        let (mut got, mut one) = (Vec::new(), [0]);
        while !got.ends_with(b"\r\n\r\n") && socket.read(&mut one).unwrap_or(0) > 0 {
            got.push(one[0]);
        }
        responses += 1;
        closed = String::from_utf8_lossy(&got).to_ascii_lowercase().contains("connection: close");
    }
    assert!((3..=4).contains(&responses), "{responses} responses on one connection");
    let many: Vec<(String, String)> = (0..30).map(|n| (format!("x-{n}"), "y".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(weir.get_with(VECTARA, &many).code(), (431, "request_too_large".into()));
    assert_eq!(weir.get_with(VECTARA, &[("x-long", &"y".repeat(3000))]).code(), (431, "request_too_large".into()));
    assert_eq!(weir.get(&format!("{VECTARA}?x={}", "y".repeat(2000))).code(), (414, "request_too_large".into()));
    assert_eq!(weir.get_with(VECTARA, &[("Content-Length", "2000")]).code(), (413, "request_too_large".into()));
    for limit in ["header_count", "header_bytes", "url_bytes", "body_bytes"] {
        assert_eq!(weir.metric(&format!("weir_limited_total{{limit=\"{limit}\"}}")), 1.0, "{limit}");
    }
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"requests_per_connection\"}"), 1.0);
    // The limits are checked before authentication.
    assert_eq!(
        send(weir.http, "GET", VECTARA, &[("x-long", &"y".repeat(3000))]).code(),
        (431, "request_too_large".into())
    );
    // A body without a length is discarded up to the limit and no further.
    let mut endless = TcpStream::connect(weir.http).unwrap();
    endless.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let begin =
        format!("GET {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n");
    endless.write_all(begin.as_bytes()).unwrap();
    let _ = endless.write_all(&[b'x'; 50_000]);
    let _ = endless.read_to_end(&mut Vec::new());
    wait_until("the body exceeds the limit", || weir.metric("weir_limited_total{limit=\"body_bytes\"}") == 2.0);
}

#[test]
fn guesses_over_the_limit_take_time_and_a_valid_key_does_not() {
    let sim = Sim::start();
    let config = Config::shipped().edit("weir.yaml", "    requests: 120\n    per: 1m", "    requests: 3\n    per: 1h");
    let weir = config.edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let count = |decision: &str| weir.metric(&format!("weir_auth_failures_total{{decision=\"{decision}\"}}"));
    for n in 0..3 {
        assert_eq!(weir.get_as(&format!("guess{n}"), VECTARA).status, 401);
    }
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| {
        let guess = |n: usize| {
            let bytes = request("GET", VECTARA, &[("X-API-Key", &format!("more{n}")), ("Connection", "close")]);
            let mut socket = TcpStream::connect(weir.http).unwrap();
            socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
            socket.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        };
        let guesses: Vec<_> = (0..40).map(|n| scope.spawn(move || guess(n))).collect();
        wait_until("the address has as many delayed responses as it may have", || {
            weir.metric("weir_auth_failures_delayed") == 16.0 || count("limited") >= 40.0
        });
        assert_eq!(weir.get(VECTARA).status, 200, "a valid key from the same address");
        guesses.into_iter().map(|guess| guess.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    let answered = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 429")).count();
    let silent = answers.iter().filter(|answer| answer.is_empty()).count();
    assert_eq!(answered + silent, 40, "{answers:?}");
    assert!(silent > 0, "over 16 delayed responses, a guess gets none");
    assert_eq!((count("limited"), count("dropped")), (40.0, f64::from(u32::try_from(silent).unwrap())));

    // Over HTTP/2, a guess without a response ends the connection, but not the streams that are open.
    sim.plan(&serde_json::json!({ "path": "/agt_slow/", "latency_ms": 500 }));
    let mut socket = frames::connect(&weir);
    let slow = "/v1/agents/agt_slow/sessions";
    socket.write_all(&frames::request(1, "GET", slow, "open", &[], 5)).unwrap();
    for n in 1..40 {
        socket.write_all(&frames::request(2 * n + 1, "GET", VECTARA, "guess", &[], 5)).unwrap();
    }
    let (mut answered, mut reset, mut goes_away, mut slow_answered) = (0, 0, false, false);
    let goes_on = frames::read_until(&mut socket, |kind, stream, _| {
        slow_answered |= kind == frames::HEADERS && stream == 1;
        answered += usize::from(kind == frames::HEADERS && stream > 1);
        reset += usize::from(kind == frames::RESET && stream > 1);
        goes_away |= kind == frames::GOAWAY;
        goes_away && slow_answered && answered + reset >= 39
    });
    assert!(goes_on, "{goes_away} {slow_answered} {answered} {reset}");
    assert!(answered <= 16 && answered + reset == 39, "{answered} answered, {reset} reset");
    // The client does not answer the frames, so the connection ends with its next stream.
    wait_until("the connection ends", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let _ = socket.write_all(&frames::get(2 * 40 + 1, "open"));
        weir.metric("weir_connections") == 0.0
    });
    wait_until("no response is delayed", || weir.metric("weir_auth_failures_delayed") == 0.0);
    wait_for_log(&weir.process.stderr, "WARN", "somebody may be guessing a key:");
    let lines = weir.process.stderr.lock().unwrap().iter().filter(|line| line.contains("guessing a key:")).count();
    assert!((1..=2).contains(&lines), "one line a minute, not {lines}");
}

#[test]
fn guesses_through_a_trusted_proxy_end_no_connection_of_the_proxy() {
    let sim = Sim::start();
    let config = Config::shipped()
        .edit("weir.yaml", "    requests: 120\n    per: 1m", "    requests: 3\n    per: 1h")
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("weir.yaml", "# trusted_proxies: [10.0.0.0/8]", "trusted_proxies: [127.0.0.1/32] #");
    let weir = config.start(&sim);
    let forwarded = [("x-forwarded-for", "203.0.113.9")];
    for n in 0..3 {
        assert_eq!(weir.get_with_key(&format!("guess{n}"), VECTARA, &forwarded).status, 401);
    }
    let mut socket = frames::connect(&weir);
    for n in 0..40 {
        socket.write_all(&frames::request(2 * n + 1, "GET", VECTARA, "guess", &forwarded, 5)).unwrap();
    }
    let mut answered = 0;
    let all = frames::read_until(&mut socket, |kind, _, _| {
        assert!(kind != frames::GOAWAY && kind != frames::RESET, "frame {kind} after {answered} responses");
        answered += usize::from(kind == frames::HEADERS);
        answered == 40
    });
    assert!(all, "{answered} answered");
    socket.write_all(&frames::get(81, "open")).unwrap();
    assert_eq!(frames::response_status(&mut socket, 81), Some(200), "another client of the same proxy");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let guess = || weir.get_with_key("guess", VECTARA, &forwarded).status;
        let guesses: Vec<_> = (0..40).map(|_| scope.spawn(guess)).collect();
        guesses.into_iter().map(|guess| guess.join().unwrap()).collect()
    });
    assert_eq!(statuses, [429; 40], "HTTP/1");
    assert_eq!(weir.metric("weir_auth_failures_total{decision=\"dropped\"}"), 0.0);
}

#[test]
fn auth_failures_are_limited_per_client_address() {
    let sim = Sim::start();
    let config =
        || Config::shipped().edit("weir.yaml", "    requests: 120\n    per: 1m", "    requests: 3\n    per: 1h");
    let weir = config().start(&sim);
    for n in 0..3 {
        assert_eq!(weir.get_as(&format!("guess{n}"), VECTARA).code(), (401, "unauthorized".into()));
    }
    let limited = weir.get_as("guess", VECTARA);
    assert_eq!(limited.code(), (429, "rate_limit_exceeded".into()));
    assert_eq!(limited.json()["violated-policies"], json!(["auth_failures"]));
    assert!(limited.header("retry-after").unwrap().parse::<u64>().unwrap() > 600);
    assert_eq!(send(weir.http, "GET", "/vectara/v2/x", &[]).status, 429, "the limit also holds for native paths");
    assert_eq!(weir.get(VECTARA).status, 200, "a valid key is still accepted");
    assert_eq!(
        (
            weir.metric("weir_auth_failures_total{decision=\"told\"}"),
            weir.metric("weir_auth_failures_total{decision=\"limited\"}")
        ),
        (3.0, 2.0)
    );
    // X-Forwarded-For counts only if it comes from a trusted proxy.
    let status_for = |weir: &Weir, address: &str| {
        send(weir.http, "GET", VECTARA, &[("X-API-Key", "x"), ("X-Forwarded-For", address)]).status
    };
    assert_eq!(status_for(&weir, "9.9.9.9"), 429);
    let weir =
        config().edit("weir.yaml", "# trusted_proxies: [10.0.0.0/8]", "trusted_proxies: [127.0.0.0/8] #").start(&sim);
    assert!((0..3).all(|_| status_for(&weir, "8.8.8.8") == 401));
    assert_eq!(
        (status_for(&weir, "8.8.8.8"), status_for(&weir, "7.7.7.7, 8.8.8.8"), status_for(&weir, "9.9.9.9")),
        (429, 429, 401)
    );
    // The proxy writes X-Forwarded-For and passes the client's own Forwarded on: that header must not give more guesses.
    let guess = |n: u32| {
        let invented = format!("for=10.9.9.{n}");
        let headers = [("X-API-Key", "x"), ("X-Forwarded-For", "6.6.6.6"), ("Forwarded", &invented)];
        send(weir.http, "GET", VECTARA, &headers).status
    };
    assert_eq!((0..5).map(guess).collect::<Vec<_>>(), [401, 401, 401, 429, 429]);
}
