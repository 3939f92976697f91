//! Long request heads, and many requests at once on a connection: neither takes memory or time from the other client.

use crate::frames;
use crate::http2_memory::PLACES;
use crate::memory_attacks::{CONNECTION, SMALL, Scale, Target};
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;

/// The cache is small, so that its part of the bound hides nothing.
const SCALE: Scale = Scale { cache_mib: 1, buffered_mib: 16, body: 10, ..SMALL };
const OVERLOADED: &str = "weir_connections_ended_total{reason=\"overloaded\"}";

/// Header fields of 56 KB.
fn long_fields() -> String {
    (0..7).map(|n| format!("X-Long-{n}: {}\r\n", "a".repeat(8000))).collect()
}

/// Sends these bytes on one connection each. Weir may close a connection before it has read all of them.
fn send(target: &Target, count: usize, bytes: impl Fn(usize) -> String) -> Vec<TcpStream> {
    let open = |n| {
        let mut socket = TcpStream::connect(target.weir.http).unwrap();
        socket.set_write_timeout(Some(MAX_WAIT)).unwrap();
        let _ = socket.write_all(bytes(n).as_bytes());
        socket
    };
    (0..count).map(open).collect()
}

#[test]
fn heads_that_are_not_complete_are_counted_as_memory_of_their_address() {
    let target = Target::start(SCALE);
    let head = format!("GET /v1/providers HTTP/1.1\r\nHost: a\r\n{}", long_fields());
    let sockets = send(&target, 800, |_| head.clone());
    wait_until("some are refused", || target.weir.metric(OVERLOADED) > 600.0);
    target.expect_other_client_served();
    target.expect_bounded_with("heads that are not complete", sockets.len() as f64 * CONNECTION);
    // The rest of a head that was accepted is read, and a refused client gets an answer.
    let mut refused = 0;
    for mut socket in sockets {
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let _ = socket.write_all(b"X-API-Key: open\r\nConnection: close\r\n\r\n");
        let mut response = Vec::new();
        let _ = socket.read_to_end(&mut response);
        let text = String::from_utf8_lossy(&response);
        assert!(text.starts_with("HTTP/1.1 200 ") || text.starts_with("HTTP/1.1 503 "), "{text}");
        refused += u32::from(text.contains("\"overloaded\""));
    }
    assert!((600..800).contains(&refused), "{refused} are refused");
    target.expect_all_released();
}

#[test]
fn the_heads_of_waiting_requests_are_counted_as_memory_of_their_client() {
    let wait = |target: &Target, in_flight: usize| {
        wait_until("the requests wait or are refused", || {
            let refused = "weir_http_requests_total{client=\"open\"";
            let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            let is_refused = |line: &&str| line.starts_with(refused) && line.contains("status=\"503\"");
            let metrics = target.weir.metrics();
            let refused: f64 = metrics.lines().filter(is_refused).map(count).sum();
            let closed = target.weir.metric(OVERLOADED);
            let waiting = target.weir.metric("weir_http_requests_in_flight");
            refused + closed + waiting >= in_flight as f64
        });
        target.expect_other_client_served();
    };
    let hang = |target: &Target| {
        target.sim.plan_fault("/v2/agents/agt_slow/", 0, &json!({ "kind": "hang" }));
    };
    for path in ["/v1/sessions/vectara:agt_slow:ase_1", "/vectara/v2/agents/agt_slow/sessions/ase_1?forwarded=1"] {
        let target = Target::start(SCALE);
        hang(&target);
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n{}\r\n", long_fields());
        let sockets = send(&target, 300, |_| head.clone());
        wait(&target, sockets.len());
        target.expect_bounded_with(&format!("requests with long heads: {path}"), sockets.len() as f64 * CONNECTION);
        drop(sockets);
        wait_until("nothing is in flight", || target.weir.metric("weir_http_requests_in_flight") == 0.0);
    }
    let target = Target::start(SCALE);
    hang(&target);
    let (long, path) = ("a".repeat(7900), "/v1/sessions/vectara:agt_slow:ase_1");
    let connections: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut socket = frames::connect(&target.weir);
            for n in 0..90 {
                let fields = [("x-long-1", &*long), ("x-long-2", &*long)];
                socket.write_all(&frames::request(2 * n + 1, "GET", path, "open", &fields, 5)).unwrap();
            }
            socket
        })
        .collect();
    wait(&target, 10 * 90);
    let places = (PLACES * connections.len()) as f64;
    target.expect_bounded_with("streams with long heads", places * CONNECTION);
}

#[test]
fn a_client_that_sends_many_requests_at_once_lets_others_have_their_turn() {
    let (attackers, requests) = (100, 100);
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n")
        .edit("weir.yaml", "workers: 0", "workers: 1")
        .start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    for path in [VECTARA, "/docs", "/v1/sessions/unknown:1"] {
        let bytes = format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n");
        let mut own = TcpStream::connect(weir.http).unwrap();
        own.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let mut sockets: Vec<TcpStream> = (0..attackers).map(|_| TcpStream::connect(weir.http).unwrap()).collect();
        let first = request_id(&mut own, &bytes);
        sockets.iter_mut().for_each(|socket| socket.write_all(bytes.repeat(requests).as_bytes()).unwrap());
        // The numbers in the ids tell how many requests Weir has begun between two responses to this connection.
        let ids: Vec<u64> = std::iter::once(first)
            .chain((0..10_000).map(|_| request_id(&mut own, &bytes)))
            .take_while(|id| *id < first + (attackers * requests) as u64)
            .collect();
        let mut between: Vec<u64> = ids.windows(2).map(|pair| pair[1] - pair[0]).collect();
        between.sort_unstable();
        println!("{path}: {between:?}");
        // Each of the others begins one while this connection waits for its turn, and some while this test runs.
        assert!(between.len() > 8 && between[between.len() / 2] < 8 * attackers as u64, "{path}: {between:?}");
        drop(sockets);
        wait_until("nothing is in flight", || weir.metric("weir_http_requests_in_flight") == 0.0);
    }
}

/// Sends a request without a body in the response. Returns the number at the end of its request id.
fn request_id(socket: &mut TcpStream, request: &str) -> u64 {
    socket.write_all(request.as_bytes()).unwrap();
    let (mut response, mut buffer) = (String::new(), [0; 4096]);
    while !response.ends_with("\r\n\r\n") {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "{response}");
        response.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    let id = response.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    u64::from_str_radix(id.rsplit('-').next().unwrap(), 16).unwrap()
}
