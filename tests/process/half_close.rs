//! Clients that close their sending side after a whole request, and clients of HTTP/1.0, on every kind of route.

use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

fn start(provider: &StrictProvider, sim: &Sim) -> Weir {
    Config::shipped().clients(CLIENTS).env("VECTARA_BASE_URL", &provider.url()).start(sim)
}

fn events() -> String {
    format!("/vectara{VECTARA_SESSION}/events")
}

/// Sends bytes and returns all that comes back.
fn exchange(weir: &Weir, bytes: &[u8], half_close: bool) -> String {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(bytes).unwrap();
    if half_close {
        socket.shutdown(Shutdown::Write).unwrap();
    }
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    String::from_utf8(received).unwrap()
}

#[test]
fn a_client_that_sends_no_more_gets_its_response() {
    let provider = StrictProvider::start(|head, connection| {
        let body = connection.read_body(head);
        // Long enough for Weir to see that the client has closed its sending side.
        std::thread::sleep(Duration::from_millis(200));
        match body {
            Some(body) if head.path.ends_with("stream") => {
                connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n");
                std::thread::sleep(Duration::from_millis(200));
                connection.write(format!("1\r\n{}\r\n1\r\n]\r\n0\r\n\r\n", body.len()))
            }
            Some(body) => connection.respond("200 OK", &format!("[{}]", body.len())),
            None => false,
        }
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    let native = events();
    for version in ["1.1", "1.0"] {
        for (method, path, body) in [
            ("GET", native.clone(), ""),
            ("POST", native.clone(), "hi"),
            ("PUT", native.clone(), "hi"),
            ("DELETE", native.clone(), ""),
            ("GET", format!("{native}/stream"), ""),
            ("POST", format!("{native}/stream"), "hi"),
        ] {
            let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            let bytes = format!("{method} {path} HTTP/{version}\r\nHost: x\r\nX-API-Key: open\r\n{length}\r\n{body}");
            let text = exchange(&weir, bytes.as_bytes(), true);
            let whole = format!("[{}]", body.len());
            let data: String = text.split("\r\n").filter(|line| line.starts_with(['[', ']', '0', '2'])).collect();
            assert!(text.starts_with("HTTP/1.1 200"), "{method} {path} HTTP/{version}: {text:?}");
            assert!(text.ends_with(&whole) || data.contains('['), "{method} {path} HTTP/{version}: {text:?}");
            assert!(text.contains(&whole) || text.ends_with("0\r\n\r\n"), "{method} {path} HTTP/{version}: {text:?}");
        }
    }
    for path in [VECTARA, "/v1/providers", "/openapi.json", &native[..native.len() - 7]] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: open\r\n\r\n");
        assert!(exchange(&weir, bytes.as_bytes(), true).starts_with("HTTP/1.1 "), "{path}");
    }
}

#[test]
fn a_watcher_that_sends_no_more_gets_events() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let path = "/v1/sessions/agenthuman%3Asess_SIM00000001/watch";
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: open\r\n\r\n").as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    let mut part = [0; 4096];
    while !String::from_utf8_lossy(&received).contains("event: session") {
        let length = socket.read(&mut part).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&part[..length]);
    }
}

#[test]
fn an_upload_that_ends_early_is_not_complete() {
    let (sent, bodies) = mpsc::channel();
    let sent = std::sync::Mutex::new(sent);
    let provider = StrictProvider::start(move |head, connection| {
        let body = connection.read_body(head);
        sent.lock().unwrap().send(body.is_some()).unwrap();
        body.is_some() && connection.respond("200 OK", "[]")
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for framing in ["Content-Length: 5\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"] {
        let bytes = format!("POST {} HTTP/1.1\r\nHost: x\r\nX-API-Key: open\r\n{framing}", events());
        let text = exchange(&weir, bytes.as_bytes(), true);
        assert!(!text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(!bodies.recv_timeout(MAX_WAIT).unwrap(), "the provider gets no complete body");
    }
}

#[test]
fn a_stream_ends_at_the_provider_when_its_client_is_gone() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let provider = StrictProvider::start(move |_, connection| {
        connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // A stream of events, until Weir closes the connection.
        for _ in 0..500 {
            if !connection.write("1\r\nx\r\n") {
                count.fetch_add(1, Ordering::SeqCst);
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for half_close in [false, true] {
        let before = closed.load(Ordering::SeqCst);
        let mut socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let bytes = format!("GET {} HTTP/1.1\r\nHost: x\r\nX-API-Key: open\r\n\r\n", events());
        socket.write_all(bytes.as_bytes()).unwrap();
        if half_close {
            socket.shutdown(Shutdown::Write).unwrap();
        }
        socket.read_exact(&mut [0; 100]).unwrap();
        drop(socket);
        wait_until("the provider sees the end", || closed.load(Ordering::SeqCst) > before);
    }
}

#[test]
fn a_client_of_http_1_0_gets_no_chunks() {
    let provider = StrictProvider::start(|head, connection| {
        match head.path.rsplit('/').next().unwrap() {
        "chunked" => connection.write(
            "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n",
        ),
        "close" => {
            connection.write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[]");
            false
        }
        _ => connection.respond("200 OK", "[]"),
    }
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for name in ["chunked", "close", "length"] {
        for connection in ["", "Connection: keep-alive\r\n"] {
            for half_close in [false, true] {
                let path = format!("{}/{name}", events());
                let bytes = format!("GET {path} HTTP/1.0\r\nHost: x\r\nX-API-Key: open\r\n{connection}\r\n");
                // A client that asked to keep the connection reads to the length, if there is one.
                if name == "length" && !connection.is_empty() {
                    continue;
                }
                let text = exchange(&weir, bytes.as_bytes(), half_close);
                let (head, body) = text.split_once("\r\n\r\n").unwrap();
                assert!(
                    head.starts_with("HTTP/1.1 200") && !head.to_lowercase().contains("transfer-encoding"),
                    "{text}"
                );
                assert_eq!(body, "[]", "{name} {connection:?}: {text}");
            }
        }
    }
}
