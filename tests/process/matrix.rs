//! The fault matrix: each fault of a provider, with each state of the cache.
//!
//! Each cell checks status, problem code, `Cache-Status`, number of calls and duration. `docs/OPERATIONS.md` has the same
//! rows; a test compares the two.

use crate::support::*;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a faulty provider does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Refuse,
    CloseBeforeResponse,
    ResetBeforeResponse,
    ResetInBody,
    HangAtTcp,
    HangAtTls,
    HangBeforeResponse,
    HangInBody,
    Drip,
    BadTls,
    NotHttp,
    /// Status, headers, body.
    Respond(u16, &'static str, &'static str),
    BodyTooLarge,
    Truncate,
    GzipBomb,
}

/// The deadline that ends the request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deadline {
    NotReached,
    ConnectTimeout,
    Timeout,
}

impl Deadline {
    fn label(self) -> &'static str {
        match self {
            Deadline::NotReached => "at once",
            Deadline::ConnectTimeout => "`connect_timeout`",
            Deadline::Timeout => "`timeout`",
        }
    }

    /// Returns whether this deadline, and no other, explains the duration.
    fn matches(self, elapsed: Duration) -> bool {
        match self {
            Deadline::NotReached => elapsed < CONNECT_TIMEOUT,
            Deadline::ConnectTimeout => (CONNECT_TIMEOUT..TIMEOUT).contains(&elapsed),
            Deadline::Timeout => (TIMEOUT..TIMEOUT * 3).contains(&elapsed),
        }
    }
}

/// A row of the matrix. `status` and `code` are those of a response without a cache entry; `fwd_status` is there if the
/// provider sent a complete response.
struct Row {
    fault: Fault,
    label: &'static str,
    status: u16,
    code: &'static str,
    calls: usize,
    fwd_status: Option<u16>,
    deadline: Deadline,
}

const fn row(
    fault: Fault,
    label: &'static str,
    (status, code): (u16, &'static str),
    calls: usize,
    fwd_status: Option<u16>,
    deadline: Deadline,
) -> Row {
    Row { fault, label, status, code, calls, fwd_status, deadline }
}

const GOOD: &str = r#"{"success":true,"session":{"session_id":"sess_A","status":"started"}}"#;

const FAILED: (u16, &str) = (502, "provider_error");
const INVALID: (u16, &str) = (502, "provider_invalid_response");
const THROTTLED: (u16, &str) = (503, "provider_rate_limited");
const TIMED_OUT: (u16, &str) = (504, "provider_timeout");
use Deadline::NotReached;
use Fault::Respond;

const ROWS: &[Row] = &[
    row(Fault::Refuse, "refuses the connection", FAILED, 0, None, NotReached),
    row(Fault::CloseBeforeResponse, "closes before its response", FAILED, 2, None, NotReached),
    row(Fault::ResetBeforeResponse, "resets before its response", FAILED, 2, None, NotReached),
    row(Fault::ResetInBody, "resets inside its body", FAILED, 1, None, NotReached),
    row(Fault::Truncate, "ends inside its body", FAILED, 1, None, NotReached),
    row(Fault::HangAtTcp, "hangs while connecting (TCP)", TIMED_OUT, 0, None, Deadline::ConnectTimeout),
    row(Fault::HangAtTls, "hangs while connecting (TLS)", TIMED_OUT, 1, None, Deadline::ConnectTimeout),
    row(Fault::HangBeforeResponse, "hangs before its response", TIMED_OUT, 1, None, Deadline::Timeout),
    row(Fault::HangInBody, "hangs inside its body", TIMED_OUT, 1, None, Deadline::Timeout),
    row(Fault::Drip, "drips its body", TIMED_OUT, 1, None, Deadline::Timeout),
    row(Fault::BadTls, "fails the TLS handshake", FAILED, 1, None, NotReached),
    row(Fault::NotHttp, "sends what is not HTTP", INVALID, 1, None, NotReached),
    row(Respond(500, "", "{}"), "500", FAILED, 1, Some(500), NotReached),
    row(Respond(503, "", "{}"), "503", THROTTLED, 1, Some(503), NotReached),
    row(Respond(503, "Retry-After: 7\r\n", "{}"), "503 with Retry-After", THROTTLED, 1, Some(503), NotReached),
    row(Respond(429, "", "{}"), "429", THROTTLED, 1, Some(429), NotReached),
    row(Respond(429, "Retry-After: 7\r\n", "{}"), "429 with Retry-After", THROTTLED, 1, Some(429), NotReached),
    row(Respond(302, "Location: /x\r\n", ""), "a redirect", FAILED, 1, Some(302), NotReached),
    row(Respond(200, "", "{\"ses"), "broken JSON", INVALID, 1, Some(200), NotReached),
    row(Respond(200, "Content-Type: text/html\r\n", "<html>"), "HTML", INVALID, 1, Some(200), NotReached),
    row(Fault::GzipBomb, "a gzip bomb (never unpacked)", INVALID, 1, Some(200), NotReached),
    row(Fault::BodyTooLarge, "a body over max_body", INVALID, 1, None, NotReached),
    row(Respond(200, "", "{\"session\":{}}"), "a missing required field", INVALID, 1, Some(200), NotReached),
];

/// 256 MiB of spaces before the JSON, in 256 KiB.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let spaces = vec![b' '; 1 << 20];
    (0..256).for_each(|_| encoder.write_all(&spaces).unwrap());
    encoder.write_all(GOOD.as_bytes()).unwrap();
    encoder.finish().unwrap()
});

/// A provider that is healthy until `start_fault`.
struct Stub {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    fault: Arc<Mutex<Option<Fault>>>,
    calls: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
    /// Both ends of the connections that are forwarded to the healthy provider.
    forwarded: Arc<Mutex<Vec<TcpStream>>>,
    /// Connections that fill the queue of the listener.
    queue_fillers: Mutex<Vec<TcpStream>>,
}

impl Stub {
    /// Starts the stub. Until a fault starts, it responds itself, or forwards to `healthy` if there is one.
    fn start(healthy: Option<SocketAddr>) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        // A short queue, which a test can fill.
        socket.listen(1).unwrap();
        let listener = Arc::new(TcpListener::from(socket));
        let stub = Self {
            address: listener.local_addr().unwrap(),
            listener,
            fault: Arc::default(),
            calls: Arc::default(),
            closed: Arc::default(),
            forwarded: Arc::default(),
            queue_fillers: Mutex::default(),
        };
        let (listener, fault, calls) = (stub.listener.clone(), stub.fault.clone(), stub.calls.clone());
        let (closed, forwarded) = (stub.closed.clone(), stub.forwarded.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                calls.fetch_add(1, Ordering::SeqCst);
                let fault = *fault.lock().unwrap();
                match (fault, healthy) {
                    (None, Some(healthy)) => forward(socket.unwrap(), TcpStream::connect(healthy).unwrap(), &forwarded),
                    _ => drop(std::thread::spawn(move || respond(socket.unwrap(), fault))),
                }
            }
        });
        stub
    }

    /// Applies the fault to all further connections, ends the forwarded ones, and resets the count of calls.
    fn start_fault(mut self, fault: Fault) -> Self {
        *self.fault.lock().unwrap() = Some(fault);
        for socket in self.forwarded.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if matches!(fault, Fault::Refuse | Fault::HangAtTcp) {
            self.closed.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            wait_until("the stub accepts no connections", || Arc::strong_count(&self.listener) == 1);
        }
        if fault == Fault::Refuse {
            self.listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
            wait_until("the stub is closed", || TcpStream::connect(self.address).is_err());
        }
        if fault == Fault::HangAtTcp {
            wait_until("its queue is full", || {
                let one = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
                one.map(|one| self.queue_fillers.lock().unwrap().push(one)).is_err()
            });
        }
        self.calls.store(0, Ordering::SeqCst);
        self
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
    }
}

/// Copies bytes in both directions until one side closes or the stub closes both.
fn forward(from: TcpStream, to: TcpStream, forwarded: &Mutex<Vec<TcpStream>>) {
    for (mut one, mut other) in
        [(&from, &to), (&to, &from)].map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
    {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut one, &mut other);
            let _ = other.shutdown(Shutdown::Both);
        });
    }
    forwarded.lock().unwrap().extend([from, to]);
}

/// Serves one request as the fault says.
fn respond(mut socket: TcpStream, fault: Option<Fault>) {
    // Longer than each deadline of the test.
    let hang = || std::thread::sleep(Duration::from_secs(15));
    if fault == Some(Fault::ResetBeforeResponse) {
        // The kernel sends a reset because bytes are unread.
        let mut one = [0];
        let _ = socket.peek(&mut one);
        return;
    }
    if fault == Some(Fault::HangAtTls) {
        return hang();
    }
    if fault == Some(Fault::BadTls) {
        let _ = socket.write_all(b"this is not TLS at all, not even a little bit\r\n");
        let _ = socket.read(&mut [0; 4096]);
        return;
    }
    if fault == Some(Fault::ResetInBody) {
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
    let mut send_response = |status: u16, headers: &str, body: &str| {
        let length = body.len();
        let _ = write!(
            socket,
            "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    };
    match fault {
        None => send_response(200, "", GOOD),
        Some(Fault::Respond(status, headers, body)) => send_response(status, headers, body),
        Some(Fault::HangBeforeResponse) => hang(),
        Some(Fault::NotHttp) => {
            let _ = socket.write_all(b"220 mail.example ESMTP ready\r\n250 and more of this\r\n\r\n");
        }
        Some(Fault::GzipBomb) => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip";
            let _ = write!(socket, "{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", BOMB.len());
            let _ = socket.write_all(&BOMB);
        }
        Some(Fault::HangInBody) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{{");
            hang();
        }
        Some(Fault::Truncate) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{GOOD}");
        }
        Some(Fault::Drip) => {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
            for byte in std::iter::repeat_n(b" ", 500) {
                if socket.write_all(byte).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Some(Fault::BodyTooLarge) => {
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

/// The state of the cache entry when the fault starts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    /// There is no entry.
    Cold,
    Fresh,
    Stale,
    /// Too old to be served even after an error.
    Expired,
}

/// Starts a gateway in front of the stub, with cache lifetimes that lead to the state `stored`.
fn gateway(stored: Stored, stub: &Stub, tls: Option<&std::path::Path>, sim: &Sim) -> Weir {
    let (lifetime, window) = match stored {
        Stored::Cold | Stored::Fresh => ("1h", "0s"),
        Stored::Stale => ("300ms", "10m"),
        Stored::Expired => ("300ms", "300ms"),
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut config = Config::shipped()
        .edit(
            "providers/agenthuman.yaml",
            "connect_timeout: 2s",
            &format!("connect_timeout: {}s", CONNECT_TIMEOUT.as_secs()),
        )
        .edit("providers/agenthuman.yaml", "  timeout: 10s", &format!("  timeout: {}s", TIMEOUT.as_secs()))
        .edit("providers/agenthuman.yaml", "  default: 30s", &format!("  default: {lifetime}"))
        .edit("providers/agenthuman.yaml", "    ended: 24h", &format!("    ended: {lifetime}"))
        .edit("providers/agenthuman.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .edit("providers/agenthuman.yaml", "stale_if_error: 10m", &format!("stale_if_error: {window}"))
        .edit("providers/agenthuman.yaml", "failures: 5", "failures: 1000")
        .env("AGENTHUMAN_BASE_URL", &format!("{scheme}://localhost:{}", stub.address.port()));
    if let Some(certificate) = tls {
        config = config.env("SSL_CERT_FILE", &certificate.display().to_string());
    }
    config.start(sim)
}

/// Checks one cell, with its own gateway and its own provider.
fn check_cell(row: &Row, stored: Stored) {
    let cell_name = format!("{} / {stored:?}", row.label);
    let sim = Sim::start();
    let directory = tempfile::TempDir::new().unwrap();
    let certificate = directory.path().join("ca.pem");
    let tls = matches!(row.fault, Fault::HangAtTls | Fault::BadTls).then(|| {
        let healthy = Sim::with_options(&["--tls-certificate", certificate.to_str().unwrap(), "--http1-only"]);
        (healthy, certificate.as_path())
    });
    let stub = Stub::start(tls.as_ref().map(|(healthy, _)| healthy.address));
    let weir = gateway(stored, &stub, tls.as_ref().map(|(_, certificate)| *certificate), &sim);
    let target = if tls.is_some() { AGENTHUMAN } else { "/v1/sessions/sess_A" };
    let first = (stored != Stored::Cold).then(|| weir.get(target));
    if let Some(first) = &first {
        assert_eq!(first.status, 200, "{cell_name}: {}", first.json());
    }
    let memory = weir.metric("process_resident_memory_bytes");
    let stub = stub.start_fault(row.fault);
    // The sleep lets the entry become stale, or too old to be served after an error.
    match stored {
        Stored::Cold | Stored::Fresh => {}
        Stored::Stale => std::thread::sleep(Duration::from_millis(400)),
        Stored::Expired => std::thread::sleep(Duration::from_millis(800)),
    }
    let started = Instant::now();
    let response = weir.get(target);
    let elapsed = started.elapsed();
    let deadline = if stored == Stored::Fresh { NotReached } else { row.deadline };
    assert!(deadline.matches(elapsed), "{cell_name}: expected {deadline:?}, took {elapsed:?}");
    let cache_status = response.header("cache-status").unwrap_or_default();
    let fwd_status = row.fwd_status.map(|s| format!("; fwd-status={s}")).unwrap_or_default();
    match stored {
        Stored::Fresh => {
            assert_eq!(response.status, 200, "{cell_name}");
            assert!(cache_status.starts_with("weir; hit; ttl="), "{cell_name}: {cache_status}");
            assert_eq!(Some(&response.body), first.as_ref().map(|first| &first.body), "{cell_name}");
            assert_eq!(stub.calls.load(Ordering::SeqCst), 0, "{cell_name}");
        }
        Stored::Stale => {
            assert_eq!(
                (response.status, cache_status),
                (200, &*format!("weir; fwd=stale{fwd_status}; detail=stale-if-error")),
                "{cell_name}"
            );
            assert_eq!(Some(&response.body), first.as_ref().map(|first| &first.body), "{cell_name}: the stored body");
            assert!(response.header("age").is_some(), "{cell_name}");
        }
        Stored::Cold | Stored::Expired => {
            assert_eq!(response.code(), (row.status, row.code.to_owned()), "{cell_name}: {}", response.json());
            assert_eq!(cache_status, format!("weir; fwd=miss{fwd_status}"), "{cell_name}");
            assert_eq!(response.header("retry-after").is_some(), row.status == 503, "{cell_name}");
        }
    }
    if stored != Stored::Fresh {
        assert_eq!(stub.calls.load(Ordering::SeqCst), row.calls, "{cell_name}: calls");
    }
    if stored != Stored::Fresh && matches!(row.fault, Fault::Refuse | Fault::HangAtTcp) {
        // The stub cannot count these attempts, so Weir's metric does. Weir retries a refused connection once.
        let (status, attempts) = if row.fault == Fault::Refuse { ("connect", 2.0) } else { ("timeout", 1.0) };
        let series = format!(
            "weir_upstream_requests_total{{operation=\"get_session\",provider=\"agenthuman\",status=\"{status}\"}}"
        );
        assert_eq!(weir.metric(&series), attempts, "{cell_name}");
    }
    assert_eq!(weir.get(VECTARA).status, 200, "{cell_name}: other providers still work");
    let grown = weir.metric("process_resident_memory_bytes") - memory;
    assert!(grown < 64e6, "{cell_name}: memory grew by {grown}");
}

#[test]
fn each_fault_gives_the_documented_response_for_each_cache_state() {
    // It takes seconds to make, which are not the gateway's.
    LazyLock::force(&BOMB);
    std::thread::scope(|scope| {
        // One thread for each state: a cell has up to four processes.
        for stored in [Stored::Cold, Stored::Fresh, Stored::Stale, Stored::Expired] {
            scope.spawn(move || ROWS.iter().for_each(|row| check_cell(row, stored)));
        }
    });
}

fn markdown_row(row: &Row) -> String {
    let fwd_status = row.fwd_status.map(|s| format!("; fwd-status={s}")).unwrap_or_default();
    format!(
        "| {} | {} `{}`, `fwd=miss{fwd_status}` | {} | {} | 200 `hit` | 200 `fwd=stale{fwd_status}` |",
        row.label,
        row.status,
        row.code,
        row.calls,
        row.deadline.label()
    )
}

#[test]
fn operations_md_contains_the_fault_matrix() {
    let docs = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    let rows: Vec<String> = ROWS.iter().map(markdown_row).collect();
    assert!(docs.contains(&rows.join("\n")), "docs/OPERATIONS.md lacks\n{}", rows.join("\n"));
}
