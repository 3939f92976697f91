//! What a provider does × what is stored: each cell's status, code, `Cache-Status`, calls and time.
//!
//! The rows stand in `docs/OPERATIONS.md` too, and a test holds the two together.

use crate::support::*;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the provider does once it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Refuse,
    CloseBeforeAnswer,
    ResetBeforeAnswer,
    ResetInBody,
    HangAtTcp,
    HangAtTls,
    HangBeforeAnswer,
    HangInBody,
    Drip,
    BadTls,
    NotHttp,
    /// Status, headers, body.
    Answer(u16, &'static str, &'static str),
    OverLong,
    Truncate,
    GzipBomb,
}

/// When the answer is there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    AtOnce,
    ConnectTimeout,
    Timeout,
}

impl When {
    fn words(self) -> &'static str {
        match self {
            When::AtOnce => "at once",
            When::ConnectTimeout => "`connect_timeout`",
            When::Timeout => "`timeout`",
        }
    }

    /// At once is before the first deadline; who waits for a deadline waits for all of it, and not for another.
    fn holds(self, took: Duration) -> bool {
        match self {
            When::AtOnce => took < CONNECT_TIMEOUT,
            When::ConnectTimeout => (CONNECT_TIMEOUT..TIMEOUT).contains(&took),
            When::Timeout => (TIMEOUT..TIMEOUT * 3).contains(&took),
        }
    }
}

/// A row: what it does, words for it, the cold cell (status, code), calls, `fwd-status` if there was a response, and when.
struct Row {
    does: Does,
    words: &'static str,
    status: u16,
    code: &'static str,
    calls: usize,
    fwd_status: Option<u16>,
    when: When,
}

const fn row(
    does: Does,
    words: &'static str,
    (status, code): (u16, &'static str),
    calls: usize,
    fwd_status: Option<u16>,
    when: When,
) -> Row {
    Row { does, words, status, code, calls, fwd_status, when }
}

const GOOD: &str = r#"{"success":true,"session":{"session_id":"sess_A","status":"started"}}"#;

const BROKEN: (u16, &str) = (502, "provider_error");
const UNUSABLE: (u16, &str) = (502, "provider_invalid_response");
const THROTTLED: (u16, &str) = (503, "provider_rate_limited");
const LATE: (u16, &str) = (504, "provider_timeout");
use Does::Answer;
use When::AtOnce;

const ROWS: &[Row] = &[
    row(Does::Refuse, "refuses the connection", BROKEN, 0, None, AtOnce),
    row(Does::CloseBeforeAnswer, "closes before its answer", BROKEN, 2, None, AtOnce),
    row(Does::ResetBeforeAnswer, "resets before its answer", BROKEN, 2, None, AtOnce),
    row(Does::ResetInBody, "resets inside its body", BROKEN, 1, None, AtOnce),
    row(Does::Truncate, "ends inside its body", BROKEN, 1, None, AtOnce),
    row(Does::HangAtTcp, "hangs while connecting (TCP)", LATE, 0, None, When::ConnectTimeout),
    row(Does::HangAtTls, "hangs while connecting (TLS)", LATE, 1, None, When::ConnectTimeout),
    row(Does::HangBeforeAnswer, "hangs before its answer", LATE, 1, None, When::Timeout),
    row(Does::HangInBody, "hangs inside its body", LATE, 1, None, When::Timeout),
    row(Does::Drip, "drips its body", LATE, 1, None, When::Timeout),
    row(Does::BadTls, "fails the TLS handshake", BROKEN, 1, None, AtOnce),
    row(Does::NotHttp, "answers what is not HTTP", UNUSABLE, 1, None, AtOnce),
    row(Answer(500, "", "{}"), "500", BROKEN, 1, Some(500), AtOnce),
    row(Answer(503, "", "{}"), "503", THROTTLED, 1, Some(503), AtOnce),
    row(Answer(503, "Retry-After: 7\r\n", "{}"), "503 with Retry-After", THROTTLED, 1, Some(503), AtOnce),
    row(Answer(429, "", "{}"), "429", THROTTLED, 1, Some(429), AtOnce),
    row(Answer(429, "Retry-After: 7\r\n", "{}"), "429 with Retry-After", THROTTLED, 1, Some(429), AtOnce),
    row(Answer(302, "Location: /x\r\n", ""), "a redirect", BROKEN, 1, Some(302), AtOnce),
    row(Answer(200, "", "{\"ses"), "broken JSON", UNUSABLE, 1, Some(200), AtOnce),
    row(Answer(200, "Content-Type: text/html\r\n", "<html>"), "HTML", UNUSABLE, 1, Some(200), AtOnce),
    row(Does::GzipBomb, "a gzip bomb (never unpacked)", UNUSABLE, 1, Some(200), AtOnce),
    row(Does::OverLong, "a body over max_body", UNUSABLE, 1, None, AtOnce),
    row(Answer(200, "", "{\"session\":{}}"), "a missing required field", UNUSABLE, 1, Some(200), AtOnce),
];

/// 256 MiB of spaces before the JSON, in 256 KiB.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let spaces = vec![b' '; 1 << 20];
    (0..256).for_each(|_| encoder.write_all(&spaces).unwrap());
    encoder.write_all(GOOD.as_bytes()).unwrap();
    encoder.finish().unwrap()
});

/// A provider that is well until told otherwise.
struct Stub {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    does: Arc<Mutex<Option<Does>>>,
    calls: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
    /// Connections passed on to a provider that is well, both ends.
    passed: Arc<Mutex<Vec<TcpStream>>>,
    filled: Mutex<Vec<TcpStream>>,
}

impl Stub {
    /// While it is well it answers itself, or passes bytes on to `well`.
    fn start(well: Option<SocketAddr>) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        // A short queue, so that it can be filled.
        socket.listen(1).unwrap();
        let listener = Arc::new(TcpListener::from(socket));
        let stub = Self {
            address: listener.local_addr().unwrap(),
            listener,
            does: Arc::default(),
            calls: Arc::default(),
            closed: Arc::default(),
            passed: Arc::default(),
            filled: Mutex::default(),
        };
        let (listener, does, calls) = (stub.listener.clone(), stub.does.clone(), stub.calls.clone());
        let (closed, passed) = (stub.closed.clone(), stub.passed.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                calls.fetch_add(1, Ordering::SeqCst);
                let does = *does.lock().unwrap();
                match (does, well) {
                    (None, Some(well)) => pass_on(socket.unwrap(), TcpStream::connect(well).unwrap(), &passed),
                    _ => drop(std::thread::spawn(move || behave(socket.unwrap(), does))),
                }
            }
        });
        stub
    }

    fn misbehave(mut self, does: Does) -> Self {
        *self.does.lock().unwrap() = Some(does);
        for socket in self.passed.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if matches!(does, Does::Refuse | Does::HangAtTcp) {
            self.closed.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            until("the stub accepts no more", || Arc::strong_count(&self.listener) == 1);
        }
        if does == Does::Refuse {
            self.listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
            until("the stub is closed", || TcpStream::connect(self.address).is_err());
        }
        if does == Does::HangAtTcp {
            until("its queue is full", || {
                let one = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
                one.map(|one| self.filled.lock().unwrap().push(one)).is_err()
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

/// Passes bytes both ways until one side ends, or the stub ends both.
fn pass_on(from: TcpStream, to: TcpStream, passed: &Mutex<Vec<TcpStream>>) {
    for (mut one, mut other) in
        [(&from, &to), (&to, &from)].map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
    {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut one, &mut other);
            let _ = other.shutdown(Shutdown::Both);
        });
    }
    passed.lock().unwrap().extend([from, to]);
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
    if does == Some(Does::HangAtTls) {
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
        Some(Does::NotHttp) => {
            let _ = socket.write_all(b"220 mail.example ESMTP ready\r\n250 and more of this\r\n\r\n");
        }
        Some(Does::GzipBomb) => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip";
            let _ = write!(socket, "{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", BOMB.len());
            let _ = socket.write_all(&BOMB);
        }
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

/// A gateway before this stub, which answers `sess_A` well so far. What it stores ends as the column says.
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

/// One cell: a gateway and a provider of their own.
fn cell(row: &Row, stored: Stored) {
    let what = format!("{} / {stored:?}", row.words);
    let sim = Sim::start();
    let directory = tempfile::TempDir::new().unwrap();
    let certificate = directory.path().join("ca.pem");
    let tls = matches!(row.does, Does::HangAtTls | Does::BadTls).then(|| {
        let well = Sim::with(&["--tls-certificate", certificate.to_str().unwrap(), "--http1-only"]);
        (well, certificate.as_path())
    });
    let stub = Stub::start(tls.as_ref().map(|(well, _)| well.address));
    let weir = gateway(stored, &stub, tls.as_ref().map(|(_, certificate)| *certificate), &sim);
    let target = if tls.is_some() { AGENTHUMAN } else { "/v1/sessions/sess_A" };
    let first = (stored != Stored::Cold).then(|| weir.get(target));
    if let Some(first) = &first {
        assert_eq!(first.status, 200, "{what}: {}", first.json());
    }
    let memory = weir.metric("process_resident_memory_bytes");
    let stub = stub.misbehave(row.does);
    // Past what it may be served as: what time does, a test has to wait for.
    match stored {
        Stored::Cold | Stored::Fresh => {}
        Stored::Stale => std::thread::sleep(Duration::from_millis(400)),
        Stored::Expired => std::thread::sleep(Duration::from_millis(800)),
    }
    let begun = Instant::now();
    let answer = weir.get(target);
    let took = begun.elapsed();
    let when = if stored == Stored::Fresh { AtOnce } else { row.when };
    assert!(when.holds(took), "{what}: {when:?}, and took {took:?}");
    let cache_status = answer.header("cache-status").unwrap_or_default();
    let fwd_status = row.fwd_status.map(|s| format!("; fwd-status={s}")).unwrap_or_default();
    match stored {
        Stored::Fresh => {
            assert_eq!(answer.status, 200, "{what}");
            assert!(cache_status.starts_with("weir; hit; ttl="), "{what}: {cache_status}");
            assert_eq!(Some(&answer.body), first.as_ref().map(|first| &first.body), "{what}");
            assert_eq!(stub.calls.load(Ordering::SeqCst), 0, "{what}");
        }
        Stored::Stale => {
            assert_eq!(
                (answer.status, cache_status),
                (200, &*format!("weir; fwd=stale{fwd_status}; detail=stale-if-error")),
                "{what}"
            );
            assert_eq!(Some(&answer.body), first.as_ref().map(|first| &first.body), "{what}: what was stored");
            assert!(answer.header("age").is_some(), "{what}");
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
    if stored != Stored::Fresh && matches!(row.does, Does::Refuse | Does::HangAtTcp) {
        // Nobody is there to count these: Weir does. One that was refused is tried once more.
        let (status, tries) = if row.does == Does::Refuse { ("connect", 2.0) } else { ("timeout", 1.0) };
        let tried = format!(
            "weir_upstream_requests_total{{operation=\"get_session\",provider=\"agenthuman\",status=\"{status}\"}}"
        );
        assert_eq!(weir.metric(&tried), tries, "{what}");
    }
    assert_eq!(weir.get(VECTARA).status, 200, "{what}: other providers go on");
    let grown = weir.metric("process_resident_memory_bytes") - memory;
    assert!(grown < 64e6, "{what}: memory grew by {grown}");
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

fn line(row: &Row) -> String {
    let fwd_status = row.fwd_status.map(|s| format!("; fwd-status={s}")).unwrap_or_default();
    format!(
        "| {} | {} `{}`, `fwd=miss{fwd_status}` | {} | {} | 200 `hit` | 200 `fwd=stale{fwd_status}` |",
        row.words,
        row.status,
        row.code,
        row.calls,
        row.when.words()
    )
}

#[test]
fn the_docs_have_the_matrix() {
    let docs = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    let rows: Vec<String> = ROWS.iter().map(line).collect();
    assert!(docs.contains(&rows.join("\n")), "docs/OPERATIONS.md lacks\n{}", rows.join("\n"));
}
