//! What a provider does × what is stored: each cell's status, code, `Cache-Status` and calls.
//!
//! The rows stand in `docs/OPERATIONS.md` too, and a test holds the two together.

use crate::support::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the provider does once it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Refuse,
    CloseBeforeAnswer,
    ResetBeforeAnswer,
    ResetInBody,
    HangAtConnect,
    HangBeforeAnswer,
    HangInBody,
    Drip,
    BadTls,
    /// Status, headers, body.
    Answer(u16, &'static str, &'static str),
    OverLong,
    Truncate,
}

/// A row: what it does, words for it, the cold cell (status, code), calls, and `fwd-status` if there was a response.
struct Row {
    does: Does,
    words: &'static str,
    status: u16,
    code: &'static str,
    calls: usize,
    fwd_status: Option<u16>,
}

const fn row(
    does: Does,
    words: &'static str,
    status: u16,
    code: &'static str,
    calls: usize,
    fwd_status: Option<u16>,
) -> Row {
    Row { does, words, status, code, calls, fwd_status }
}

const GOOD: &str = r#"{"success":true,"session":{"session_id":"sess_A","status":"started"}}"#;

const ROWS: &[Row] = &[
    row(Does::Refuse, "refuses the connection", 502, "provider_error", 0, None),
    row(Does::CloseBeforeAnswer, "closes before its answer", 502, "provider_error", 2, None),
    row(Does::ResetBeforeAnswer, "resets before its answer", 502, "provider_error", 2, None),
    row(Does::ResetInBody, "resets inside its body", 502, "provider_error", 1, None),
    row(Does::Truncate, "ends inside its body", 502, "provider_error", 1, None),
    row(Does::HangAtConnect, "hangs while connecting (TLS)", 504, "provider_timeout", 1, None),
    row(Does::HangBeforeAnswer, "hangs before its answer", 504, "provider_timeout", 1, None),
    row(Does::HangInBody, "hangs inside its body", 504, "provider_timeout", 1, None),
    row(Does::Drip, "drips its body", 504, "provider_timeout", 1, None),
    row(Does::BadTls, "fails the TLS handshake", 502, "provider_error", 1, None),
    row(Does::Answer(500, "", "{}"), "500", 502, "provider_error", 1, Some(500)),
    row(Does::Answer(503, "", "{}"), "503", 503, "provider_rate_limited", 1, Some(503)),
    row(Does::Answer(429, "", "{}"), "429", 503, "provider_rate_limited", 1, Some(429)),
    row(
        Does::Answer(429, "Retry-After: 7\r\n", "{}"),
        "429 with Retry-After",
        503,
        "provider_rate_limited",
        1,
        Some(429),
    ),
    row(Does::Answer(302, "Location: /x\r\n", ""), "a redirect", 502, "provider_error", 1, Some(302)),
    row(Does::Answer(200, "", "{\"ses"), "broken JSON", 502, "provider_invalid_response", 1, Some(200)),
    row(
        Does::Answer(200, "Content-Type: text/html\r\n", "<html>"),
        "HTML",
        502,
        "provider_invalid_response",
        1,
        Some(200),
    ),
    row(
        Does::Answer(200, "Content-Encoding: gzip\r\n", "\u{1f}x"),
        "a gzip body (never unpacked)",
        502,
        "provider_invalid_response",
        1,
        None,
    ),
    row(Does::OverLong, "a body over max_body", 502, "provider_invalid_response", 1, None),
    row(
        Does::Answer(200, "", "{\"session\":{}}"),
        "a missing required field",
        502,
        "provider_invalid_response",
        1,
        Some(200),
    ),
];

/// A provider that is well until told otherwise.
struct Stub {
    address: SocketAddr,
    does: Arc<Mutex<Option<Does>>>,
    calls: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
}

impl Stub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stub = Self { address, does: Arc::default(), calls: Arc::default(), closed: Arc::default() };
        let (does, calls, closed) = (stub.does.clone(), stub.calls.clone(), stub.closed.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                calls.fetch_add(1, Ordering::SeqCst);
                let does = *does.lock().unwrap();
                std::thread::spawn(move || behave(socket.unwrap(), does));
            }
        });
        stub
    }

    fn misbehave(&self, does: Does) {
        *self.does.lock().unwrap() = Some(does);
        if does == Does::Refuse {
            self.closed.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            until("the stub is closed", || TcpStream::connect(self.address).is_err());
        }
        self.calls.store(0, Ordering::SeqCst);
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn behave(mut socket: TcpStream, does: Option<Does>) {
    // Long enough for any deadline of the test, short enough not to outlive it by much.
    let hang = || std::thread::sleep(Duration::from_secs(15));
    if does == Some(Does::ResetBeforeAnswer) {
        // Unread bytes make a close a reset.
        let mut one = [0];
        let _ = socket.peek(&mut one);
        return;
    }
    if does == Some(Does::HangAtConnect) {
        return hang();
    }
    if does == Some(Does::BadTls) {
        let _ = socket.write_all(b"this is not TLS at all, not even a little bit\r\n");
        let _ = socket.read(&mut [0; 4096]);
        return;
    }
    if does == Some(Does::ResetInBody) {
        let _ = socket.peek(&mut [0]);
        let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{{\"success\"");
        std::thread::sleep(Duration::from_millis(50));
        return;
    }
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => head.extend_from_slice(&buffer[..n]),
        }
    }
    let mut answer = |status: u16, headers: &str, body: &str| {
        let length = body.len();
        let _ = write!(
            socket,
            "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    };
    match does {
        None => answer(200, "", GOOD),
        Some(Does::Answer(status, headers, body)) => answer(status, headers, body),
        Some(Does::HangBeforeAnswer) => hang(),
        Some(Does::HangInBody) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{{");
            hang();
        }
        Some(Does::Truncate) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{GOOD}");
        }
        Some(Does::Drip) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
            for byte in std::iter::repeat_n(b" ", 500) {
                if socket.write_all(byte).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Some(Does::OverLong) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(65_536));
            for _ in 0..200 {
                if socket.write_all(chunk.as_bytes()).is_err() {
                    return;
                }
            }
        }
        _ => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Cold,
    Fresh,
    Stale,
    Expired,
}

/// One cell: a gateway and a provider of their own.
fn cell(row: &Row, stored: Stored) {
    let what = format!("{} / {stored:?}", row.words);
    let stub = Stub::start();
    let window = if stored == Stored::Expired { "0s" } else { "10m" };
    let config = Config::shipped()
        .edit("providers/agenthuman.yaml", "connect_timeout: 2s", "connect_timeout: 1s")
        .edit("providers/agenthuman.yaml", "  timeout: 10s", "  timeout: 3s")
        .edit("providers/agenthuman.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .edit("providers/agenthuman.yaml", "stale_if_error: 10m", &format!("stale_if_error: {window}"))
        .edit("providers/agenthuman.yaml", "failures: 5", "failures: 1000");
    config.change(
        "providers/agenthuman.yaml",
        "${AGENTHUMAN_BASE_URL:-https://api.agenthuman.com}",
        &format!("http://{}", stub.address),
    );
    let sim = Sim::start();
    let weir = config.start(&sim);
    let target = "/v1/sessions/sess_A";
    if stored != Stored::Cold {
        assert_eq!(weir.get(target).status, 200, "{what}");
    }
    if matches!(stored, Stored::Stale | Stored::Expired) {
        assert_eq!(weir.make_stale(), 1, "{what}");
    }
    if matches!(row.does, Does::HangAtConnect | Does::BadTls) {
        weir.config.change("providers/agenthuman.yaml", "base_url: http://", "base_url: https://");
        until("it reloads", || weir.reload().0 == 200);
    }
    stub.misbehave(row.does);
    let begun = Instant::now();
    let answer = weir.get(target);
    assert!(begun.elapsed() < Duration::from_secs(14), "{what}: a deadline holds");
    let cache_status = answer.header("cache-status").unwrap_or_default();
    let fwd_status = row.fwd_status.map(|s| format!("; fwd-status={s}")).unwrap_or_default();
    match stored {
        Stored::Fresh => {
            assert_eq!(answer.status, 200, "{what}");
            assert!(cache_status.starts_with("weir; hit; ttl="), "{what}: {cache_status}");
            assert_eq!(stub.calls.load(Ordering::SeqCst), 0, "{what}");
        }
        Stored::Stale => {
            assert_eq!(
                (answer.status, cache_status),
                (200, &*format!("weir; fwd=stale{fwd_status}; detail=stale-if-error")),
                "{what}"
            );
            assert_eq!(answer.json()["id"], "agenthuman:sess_A", "{what}");
        }
        Stored::Cold | Stored::Expired => {
            assert_eq!(answer.code(), (row.status, row.code.to_owned()), "{what}: {}", answer.json());
            assert_eq!(cache_status, format!("weir; fwd=miss{fwd_status}"), "{what}");
            assert_eq!(answer.header("retry-after").is_some(), row.status == 503, "{what}");
        }
    }
    if stored != Stored::Fresh {
        assert_eq!(stub.calls.load(Ordering::SeqCst), row.calls, "{what}: calls");
    }
    assert_eq!(weir.get(VECTARA).status, 200, "{what}: other providers go on");
}

#[test]
fn every_cell_of_the_fault_matrix() {
    std::thread::scope(|scope| {
        // Four at a time: each has three processes.
        for stored in [Stored::Cold, Stored::Fresh, Stored::Stale, Stored::Expired] {
            scope.spawn(move || ROWS.iter().for_each(|row| cell(row, stored)));
        }
    });
}

#[test]
fn the_docs_have_the_matrix() {
    let docs = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    for row in ROWS {
        let fwd_status = row.fwd_status.map(|s| format!("; fwd-status={s}")).unwrap_or_default();
        let line = format!(
            "| {} | {} `{}` | {} | 200 `hit` | 200 `fwd=stale{fwd_status}` |",
            row.words, row.status, row.code, row.calls
        );
        assert!(docs.contains(&line), "docs/OPERATIONS.md lacks {line}");
    }
}
