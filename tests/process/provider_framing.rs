//! Responses of providers whose end is not certain: no client gets one as a complete response, on any route, with TLS and
//! without.

use crate::scripted_provider::{on_every_version, status, unlimited};
use crate::support::*;
use crate::tls::write_certificate;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A provider that answers every request with the same bytes. Its connections stay open until Weir closes them.
struct RawProvider {
    address: SocketAddr,
    response: Arc<Mutex<Vec<u8>>>,
    /// Whether the connection closes after a response.
    closes: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

impl RawProvider {
    fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let provider = Self {
            address: listener.local_addr().unwrap(),
            response: Arc::default(),
            closes: Arc::default(),
            connections: Arc::default(),
        };
        let (response, closes) = (provider.response.clone(), provider.closes.clone());
        let connections = provider.connections.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::SeqCst);
                socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
                let (tls, response, closes) = (tls.clone(), response.clone(), closes.clone());
                std::thread::spawn(move || serve(socket, tls, &response, &closes));
            }
        });
        provider
    }

    /// Sets the bytes of every response, and whether the connection closes behind them.
    fn respond(&self, bytes: &str, close: bool) {
        *self.response.lock().unwrap() = bytes.as_bytes().to_vec();
        self.closes.store(usize::from(close), Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve(socket: TcpStream, tls: Option<Arc<ServerConfig>>, response: &Mutex<Vec<u8>>, closes: &AtomicUsize) {
    let mut wire: Box<dyn Wire> = match tls {
        None => Box::new(socket),
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), socket)),
    };
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if !matches!(wire.read(&mut byte), Ok(1)) {
                return;
            }
            head.push(byte[0]);
        }
        let bytes = response.lock().unwrap().clone();
        if wire.write_all(&bytes).and_then(|()| wire.flush()).is_err() || closes.load(Ordering::SeqCst) > 0 {
            return;
        }
    }
}

fn server_config(directory: &Path) -> Arc<ServerConfig> {
    write_certificate(directory, "provider");
    let chain =
        CertificateDer::pem_file_iter(directory.join("provider.crt")).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("provider.key")).unwrap();
    let builder =
        ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
    Arc::new(builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// Starts the provider in place of agenthuman, with TLS or without.
fn start(sim: &Sim, tls: bool) -> (RawProvider, Weir, TempDir) {
    let directory = TempDir::new().unwrap();
    let provider = RawProvider::start(tls.then(|| server_config(directory.path())));
    let config = unlimited().clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n");
    let scheme = if tls { "https" } else { "http" };
    let config = config.env("AGENTHUMAN_BASE_URL", &format!("{scheme}://{}", provider.address));
    let config =
        if tls { config.env("SSL_CERT_FILE", directory.path().join("provider.crt").to_str().unwrap()) } else { config };
    let weir = config.start(sim);
    (provider, weir, directory)
}

/// The same session by the unified API, by a described native path, and by an undescribed one.
const ROUTES: [&str; 3] =
    ["/v1/sessions/agenthuman:sess_", "/agenthuman/v1/sessions/sess_", "/agenthuman/v1/other/sess_"];
const SESSION: &str = "{\"session\":{\"session_id\":\"sess_1\",\"status\":\"ended\"}}";

fn ok(fields: &str, rest: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{fields}\r\n\r\n{rest}")
}

/// Sends the request on every route and HTTP version. Each has a path of its own, so none is a hit.
fn on_every_route(weir: &Weir, name: &str) -> Vec<(String, String)> {
    let number = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut all = Vec::new();
    for route in ROUTES {
        for (version, response) in on_every_version(weir, "GET", &format!("{route}{number}"), &[]) {
            all.push((format!("{name}: {version} {route}"), response));
        }
    }
    all
}

#[test]
fn a_response_with_uncertain_framing_is_502_and_closes_its_connection() {
    for tls in [false, true] {
        let sim = Sim::start();
        let (provider, weir, _directory) = start(&sim, tls);
        let (length, chunks) = (SESSION.len(), format!("{:x}\r\n{SESSION}\r\n0\r\n\r\n", SESSION.len()));
        for (name, response) in [
            ("a length in a list", ok(&format!("Content-Length: {length}, {length}"), SESSION)),
            ("a length twice", ok(&format!("Content-Length: {length}\r\nContent-Length: {length}"), SESSION)),
            ("two lengths", ok(&format!("Content-Length: {length}\r\nContent-Length: 2"), SESSION)),
            ("a signed length", ok(&format!("Content-Length: +{length}"), SESSION)),
            ("an empty length", ok("Content-Length:", SESSION)),
            ("a huge length", ok("Content-Length: 99999999999999999999", SESSION)),
            ("a length and a coding", ok(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), &chunks)),
            ("a coding before chunked", ok("Transfer-Encoding: gzip, chunked", &chunks)),
            ("a coding twice", ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", &chunks)),
            ("an unknown coding", ok("Transfer-Encoding: zip", &chunks)),
            ("an old version with chunks", ok("Transfer-Encoding: chunked", &chunks).replace("HTTP/1.1", "HTTP/1.0")),
            ("a NUL in the head", ok("X: \0", SESSION)),
            ("no status", "HTTP/1.1 OK\r\n\r\n".to_owned()),
            ("another protocol", "ICY 200 OK\r\n\r\n".to_owned()),
            ("nine interim responses", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(9) + &ok("Content-Length: 2", "{}")),
        ] {
            provider.respond(&response, false);
            let before = provider.connections();
            let responses = on_every_route(&weir, name);
            for (place, response) in &responses {
                assert_eq!(status(response), 502, "tls={tls} {place}: {response}");
                // The native paths have the provider's own form of an error.
                assert!(!response.contains("\"session\":"), "tls={tls} {place}: {response}");
            }
            let used = provider.connections() - before;
            assert!(used >= responses.len(), "{name}: {used} connections for {} requests", responses.len());
        }
        provider.respond(&ok(&format!("Content-Length: {length}"), SESSION), false);
        for (place, response) in on_every_route(&weir, "a valid response") {
            assert_eq!(status(&response), 200, "tls={tls} {place}: {response}");
        }
    }
}

#[test]
fn a_body_that_breaks_the_grammar_of_chunks_is_never_complete() {
    for tls in [false, true] {
        let sim = Sim::start();
        let (provider, weir, _directory) = start(&sim, tls);
        // What is behind `BROKEN` must not reach any client.
        let first = "{\"session\":{\"session_id\":\"sess_1\",";
        let rest = "\"status\":\"ended\",\"title\":\"BROKEN\"}}";
        for (name, between, close) in [
            ("an empty size", "\r\n\r\n", false),
            ("an empty size with an extension", ";a\r\n\r\n", false),
            ("a semicolon", ";\r\n\r\n", false),
            ("the end of the connection", "", true),
            ("the end within a size line", "0", true),
            ("the end before the last line", "0\r\n", true),
            ("a bare line feed", "0\n\n", false),
            ("a line feed in an extension", "0;a\nb\r\n\r\n", false),
            ("a junk trailer", "0\r\njunk\r\n\r\n", false),
            ("a size that is no number", "zz\r\n", false),
        ] {
            let mut response = ok("Transfer-Encoding: chunked", &format!("{:x}\r\n{first}\r\n{between}", first.len()));
            if !close {
                response += &format!("{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len());
            }
            provider.respond(&response, close);
            for (place, response) in on_every_route(&weir, name) {
                let place = format!("tls={tls} {place}: {response}");
                assert!(!response.contains("BROKEN") && !response.ends_with("0\r\n\r\n"), "{place}");
                // curl prints nothing if the reset of a stream follows its header at once.
                if response.is_empty() || status(&response) != 502 {
                    assert!(
                        place.contains("/other/") && !response.to_lowercase().contains("content-length"),
                        "{place}"
                    );
                }
            }
        }
        let whole = format!("{:x};a=b\r\n{SESSION}\r\n00\r\nTrailer: x\r\n\r\n", SESSION.len());
        provider.respond(&ok("Transfer-Encoding: chunked", &whole), false);
        let before = provider.connections();
        for _ in 0..3 {
            for (place, response) in on_every_route(&weir, "valid chunks") {
                assert!(status(&response) == 200 && response.contains("sess_1"), "tls={tls} {place}: {response}");
                assert!(!response.to_lowercase().contains("trailer: x"), "{place}");
            }
        }
        let used = provider.connections() - before;
        assert!(used <= 4, "valid responses share connections: {used}");
    }
}
