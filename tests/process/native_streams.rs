//! Native streams and large bodies: Weir forwards bytes as they arrive and does not buffer them.

use crate::native_client::*;
use crate::support::*;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[test]
fn events_are_forwarded_as_they_arrive() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let stream = format!("/vectara{VECTARA_SESSION}/events");
    let mut lines =
        open_stream(&weir, &post(&stream, &[("x-sim-stream", "6,500")], "{\"stream_response\":true}")).lines();
    let (started, mut arrived) = (Instant::now(), Vec::new());
    let mut head = String::new();
    for line in lines.by_ref().map_while(Result::ok) {
        if line.starts_with("data: ") {
            arrived.push(started.elapsed());
        } else if arrived.is_empty() {
            head += &(line.to_ascii_lowercase() + "\n");
        }
    }
    assert!(head.contains("http/1.1 201") && head.contains("content-type: text/event-stream"), "{head}");
    assert_eq!(arrived.len(), 6);
    println!("events arrived after {arrived:?}, sent 500 ms apart");
    // If Weir buffered the stream, all events would arrive together.
    assert!(arrived[5] - arrived[0] > Duration::from_secs(1), "{arrived:?}");
    assert!(
        arrived.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(150)).count() >= 3,
        "{arrived:?}"
    );
    let stream = format!("/palantir{PALANTIR_SESSION}/streamingContinue?preview=true");
    let mut socket = open_stream(&weir, &post(&stream, &[("x-sim-stream", "4,400")], "{}"));
    let (mut parts, mut times, started) = (Vec::new(), Vec::new(), Instant::now());
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        if text.contains("word") {
            times.push(started.elapsed());
        }
        parts.push(text);
    }
    let all = parts.concat();
    assert!(all.contains("octet-stream") && (0..4).all(|n| all.contains(&format!("word{n} "))), "{all}");
    assert!(times.len() >= 2 && times[times.len() - 1] - times[0] > Duration::from_millis(500), "{times:?}");
}

#[test]
fn a_client_that_disconnects_during_a_stream_ends_the_provider_call() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let stream = format!("/vectara{VECTARA_SESSION}/events");
    let mut lines =
        open_stream(&weir, &post(&stream, &[("x-sim-stream", "600,200")], "{\"stream_response\":true}")).lines();
    let first = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("data: "));
    assert!(first.is_some());
    assert_eq!(weir.metric("weir_upstream_requests_in_flight"), 1.0);
    drop(lines);
    let started = Instant::now();
    wait_until("the provider call has ended", || weir.metric("weir_upstream_requests_in_flight") == 0.0);
    assert!(started.elapsed() < Duration::from_secs(20), "the stream would have lasted two minutes");
    wait_until("the request is logged", || {
        weir.process.stdout.lock().unwrap().iter().any(|line| line.contains("\"route\":\"native\""))
    });
}

#[test]
fn a_client_that_resets_its_connection_before_the_response_ends_the_provider_call() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 120_000 }));
    let client = open_stream(&weir, &post(&format!("/vectara{VECTARA_SESSION}/events"), &[], "{}"));
    wait_until("the provider call is in flight", || weir.metric("weir_upstream_requests_in_flight") == 1.0);
    socket2::SockRef::from(client.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let started = Instant::now();
    wait_until("the provider call has ended", || weir.metric("weir_upstream_requests_in_flight") == 0.0);
    assert!(started.elapsed() < Duration::from_secs(20));
    let cancelled = "weir_upstream_requests_total{operation=\"native\",provider=\"vectara\",status=\"cancelled\"}";
    wait_until("the call is counted", || weir.metric(cancelled) == 1.0);
}

#[test]
fn large_bodies_pass_in_both_directions_without_being_buffered() {
    const MEGABYTES: usize = 200;
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    let resident = || weir.metric("process_resident_memory_bytes");
    let before = resident();
    let mut peak = before;
    // The upload is one part of a multipart form.
    let boundary = "----weir-boundary";
    let opening = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n");
    let closing = format!("\r\n--{boundary}--\r\n");
    let length = opening.len() + (MEGABYTES << 20) + closing.len();
    let kind = format!("multipart/form-data; boundary={boundary}");
    let head = request(
        "POST",
        &format!("/vectara{VECTARA_SESSION}/events"),
        &[("X-API-Key", "open"), ("Content-Type", &kind), ("Content-Length", &length.to_string())],
    );
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(&head).unwrap();
    socket.write_all(opening.as_bytes()).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    for n in 0..MEGABYTES {
        socket.write_all(&chunk).unwrap();
        if n % 40 == 39 {
            peak = peak.max(resident());
        }
    }
    socket.write_all(closing.as_bytes()).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    assert!(
        response.starts_with("HTTP/1.1 201") && response.contains(&format!("\"received_bytes\":{length}")),
        "{response}"
    );
    // The client pauses during the download. What it does not read must wait at the provider.
    let path = format!("/vectara{VECTARA_SESSION}/artifacts/art_{MEGABYTES}");
    let mut socket = open_stream(&weir, &request("GET", &path, &[("X-API-Key", "open")]));
    let (mut received, mut buffer) = (0_usize, vec![0; 1 << 16]);
    let mut pauses_left = 3;
    loop {
        let n = socket.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        received += n;
        if pauses_left > 0 && received > (MEGABYTES << 18) * (4 - pauses_left) {
            pauses_left -= 1;
            std::thread::sleep(Duration::from_millis(300));
            peak = peak.max(resident());
        }
    }
    assert!(received > MEGABYTES << 20, "{received}");
    println!("resident memory: {before} before, {peak} at most while {MEGABYTES} MB went in each direction");
    assert!(peak - before < 48e6, "memory grew from {before} to {peak}");
}

#[test]
fn a_provider_that_does_not_read_the_body_blocks_the_client() {
    const LENGTH: usize = 256 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (start_reading, may_read) = std::sync::mpsc::channel::<()>();
    let provider = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        may_read.recv_timeout(MAX_WAIT * 4).unwrap();
        let (mut head, mut reader) = (String::new(), BufReader::new(socket.try_clone().unwrap()));
        while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
        let received = std::io::copy(&mut reader.take(LENGTH as u64), &mut std::io::sink()).unwrap();
        socket.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").unwrap();
        received
    });
    let sim = Sim::start();
    let weir = Config::shipped().env("VECTARA_BASE_URL", &format!("http://{address}")).start(&sim);
    assert_eq!(weir.get(PALANTIR).status, 200);
    let resident = || weir.metric("process_resident_memory_bytes");
    let before = resident();
    let head = request(
        "POST",
        &format!("/vectara{VECTARA_SESSION}/events"),
        &[("X-API-Key", "open"), ("Content-Length", &LENGTH.to_string())],
    );
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.write_all(&head).unwrap();
    let (chunk, mut sent, mut blocked_writes) = (vec![b'x'; 1 << 20], 0, 0);
    // After three blocked writes in a row, all buffers between client and provider are full.
    while blocked_writes < 3 && sent < LENGTH {
        match socket.write(&chunk[..chunk.len().min(LENGTH - sent)]) {
            Ok(n) => (sent, blocked_writes) = (sent + n, 0),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                blocked_writes += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let grown = resident() - before;
    println!("the client sent {sent} bytes before it was blocked; resident memory grew by {grown}");
    assert!(sent < LENGTH / 4, "the client could send {sent} bytes although the provider reads nothing");
    assert!(grown < 32e6, "memory grew by {grown}");
    assert_eq!(weir.get(PALANTIR).status, 200, "requests to other providers are not blocked");
    // The rest is sent as soon as the provider reads.
    start_reading.send(()).unwrap();
    socket.set_write_timeout(Some(MAX_WAIT)).unwrap();
    while sent < LENGTH {
        sent += socket.write(&chunk[..chunk.len().min(LENGTH - sent)]).unwrap();
    }
    let mut response = String::new();
    let mut status_line = socket.take(16);
    status_line.read_to_string(&mut response).unwrap();
    assert_eq!((&*response, provider.join().unwrap()), ("HTTP/1.1 201 Cre", LENGTH as u64));
    assert!(resident() - before < 32e6, "memory does not grow later either");
}

#[test]
fn expect_100_continue_gets_100_before_the_body_is_sent() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let target = format!("/vectara{VECTARA_SESSION}/events");
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket
        .write_all(&request(
            "POST",
            &target,
            &[("X-API-Key", "open"), ("Content-Length", "2"), ("Expect", "100-continue")],
        ))
        .unwrap();
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"{}").unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 201") && response.contains("\"received_bytes\":2"), "{response}");
    // A request that Weir refuses gets its error without a 100.
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(&request("POST", &target, &[("Content-Length", "2"), ("Expect", "100-continue")])).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 401"), "{response}");
}

/// The provider offers HTTP/2, as real providers do.
#[test]
fn streams_and_large_bodies_pass_over_tls() {
    let directory = tempfile::TempDir::new().unwrap();
    let certificate = directory.path().join("sim.pem");
    let sim = Sim::with_options(&["--tls-certificate", certificate.to_str().unwrap()]);
    let weir = Config::shipped().env("SSL_CERT_FILE", certificate.to_str().unwrap()).start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    let stream = format!("/vectara{VECTARA_SESSION}/events");
    let mut lines =
        open_stream(&weir, &post(&stream, &[("x-sim-stream", "5,400")], "{\"stream_response\":true}")).lines();
    let (started, mut arrived) = (Instant::now(), Vec::new());
    for line in lines.by_ref().map_while(Result::ok) {
        if line.starts_with("data: ") {
            arrived.push(started.elapsed());
        }
    }
    assert!(arrived.len() == 5 && arrived[4] - arrived[0] > Duration::from_millis(600), "{arrived:?}");
    let length = 20 << 20;
    let head = request(
        "POST",
        &stream,
        &[("X-API-Key", "open"), ("Expect", "100-continue"), ("Content-Length", &length.to_string())],
    );
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(&head).unwrap();
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(&vec![b'x'; length]).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    assert!(response.contains(&format!("\"received_bytes\":{length}")), "{response}");
    let mut socket = open_stream(
        &weir,
        &request("GET", &format!("/vectara{VECTARA_SESSION}/artifacts/art_20"), &[("X-API-Key", "open")]),
    );
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    assert!(received.len() > 20 << 20);
}
