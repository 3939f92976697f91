//! Memory of HTTP/2 connections whose clients send many requests at once and read nothing, and how such connections count.

use crate::frames;
use crate::memory_attacks::{CONNECTION, MIB, SMALL, Scale, Target, slow_connection, status};
use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;

const STREAMS: u32 = 95;
/// As how many connections an HTTP/2 connection counts, as OPERATIONS.md has it.
pub const PLACES: usize = 8;

/// Sends a request on every stream of every connection, and reads nothing.
pub fn unread_connections(target: &Target, count: usize, path: &str, key: Option<&str>) -> Vec<TcpStream> {
    let mut bytes = [frames::PREFACE, &frames::frame(4, 0, 0, &[])].concat();
    for n in 0..STREAMS {
        let headers: Vec<_> = key.map(|key| ("x-api-key", key)).into_iter().collect();
        bytes.extend(frames::request_with(2 * n + 1, "GET", path, &headers, 5));
    }
    let open = |_| {
        let mut socket = slow_connection(target.weir.http);
        socket.write_all(&bytes).unwrap();
        socket
    };
    (0..count).map(open).collect()
}

#[test]
fn requests_on_all_streams_that_nobody_reads_take_no_more_than_documented() {
    const COUNT: usize = 400;
    let session = "/v1/sessions/vectara:agt_1:ase_1";
    for (kind, path, key) in [
        ("requests without a key", session, None),
        ("requests with a wrong key", session, Some("wrong")),
        ("hits", session, Some("open")),
        ("requests to no route", "/nothing", Some("open")),
    ] {
        let target = Target::start(Scale { body: 100, ..SMALL });
        assert_eq!(target.weir.get_with_key("open", session, &[]).status, 200);
        let connections = unread_connections(&target, COUNT, path, key);
        let requests = || {
            let metrics = target.weir.metrics();
            let counted = metrics.lines().filter(|line| line.starts_with("weir_http_requests_total"));
            counted.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
        };
        // A guess that gets no response ends its connection for further streams.
        let expected = if key == Some("open") { COUNT * STREAMS as usize } else { COUNT };
        wait_until("all requests are handled", || requests() >= expected as f64);
        target.expect_other_client_served();
        let each = (status(&target.weir, "VmHWM") - target.baseline()) / COUNT as f64;
        println!("{kind}: {each:.0} bytes for each connection");
        assert!(each <= 1.1 * PLACES as f64 * CONNECTION, "{kind}: {each} bytes");
        assert!(target.weir.metric("weir_buffered_bytes") <= 24.0 * MIB);
        drop(connections);
        target.expect_all_released();
    }
}

#[test]
fn an_http2_connection_counts_as_eight_and_is_refused_with_goaway() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n")
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("weir.yaml", "connections_per_address: 5000", "connections_per_address: 18")
        .start(&sim);
    let open_one = || {
        let mut socket = frames::connect(&weir);
        socket.write_all(&frames::get(1, "open")).unwrap();
        assert_eq!(frames::response_status(&mut socket, 1), Some(200));
        socket
    };
    let mut open = vec![open_one(), open_one()];
    // Two places are left: enough for two connections of HTTP/1, and for none of HTTP/2.
    let mut refused = TcpStream::connect(weir.http).unwrap();
    refused.set_read_timeout(Some(MAX_WAIT)).unwrap();
    refused.write_all(&[frames::PREFACE, &frames::frame(4, 0, 0, &[]), &frames::get(1, "open")].concat()).unwrap();
    let mut received = Vec::new();
    refused.read_to_end(&mut received).unwrap();
    // An empty SETTINGS frame, and GOAWAY without a processed stream: ENHANCE_YOUR_CALM.
    let goaway = frames::frame(frames::GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]);
    assert_eq!(received, [frames::frame(4, 0, 0, &[]), goaway].concat());
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"connections_per_address\"}"), 1.0);
    drop(refused);
    wait_until("its place is free", || weir.metric("weir_connections") == 2.0);
    assert_eq!(weir.get_as("open", PALANTIR).status, 200);
    drop(open.pop());
    wait_until("its places are free", || weir.metric("weir_connections") == 1.0);
    open.push(open_one());
}
