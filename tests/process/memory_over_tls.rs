//! Memory of clients that use TLS.

use crate::memory_attacks::*;
use crate::support::*;
use crate::tls::write_certificate;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};

/// Memory of a client connection with TLS, as OPERATIONS.md has it.
const TLS_CONNECTION: f64 = 46_000.0;

/// The number of clients of each test.
const COUNT: usize = 600;

type TlsClient = StreamOwned<ClientConnection, TcpStream>;

fn start(directory: &Path, scale: Scale) -> (Target, Arc<ClientConfig>) {
    write_certificate(directory, "server");
    (Target::with(with_both(directory), scale), client_config(directory))
}

/// A configuration with a listener without TLS, and one with TLS.
fn with_both(directory: &Path) -> Config {
    let tls = format!("{{ certificate: {0}/server.crt, key: {0}/server.key }}", directory.display());
    let listener = format!("  - address: 127.0.0.1:0\n    tls: {tls}\n");
    Config::shipped().edit("weir.yaml", "  # - address: 0.0.0.0:8443\n", &listener)
}

fn client_config(directory: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("server.crt")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    builder.with_root_certificates(roots).with_no_client_auth().into()
}

fn connect(target: &Target, config: &Arc<ClientConfig>) -> TlsClient {
    let name = ServerName::try_from("localhost").unwrap();
    let socket = slow_connection(target.weir.listeners[1]);
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream
}

fn keep_alive(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n")
}

#[test]
fn idle_connections_over_tls_take_no_more_than_documented() {
    let directory = TempDir::new().unwrap();
    let (target, config) = start(directory.path(), SMALL);
    let open_one = || {
        let mut client = connect(&target, &config);
        client.write_all(keep_alive(PALANTIR).as_bytes()).unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"}") {
            let mut buffer = [0; 4096];
            let read = client.read(&mut buffer).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..read]);
        }
        client
    };
    // What the first handshakes take for all that follow is not part of the measurement, and neither is the first answer
    // with the metrics.
    let mut open: Vec<TlsClient> = (0..100).map(|_| open_one()).collect();
    wait_until("the first ones are counted", || target.weir.metric("weir_connections") >= open.len() as f64);
    let before = status(&target.weir, "VmRSS");
    open.extend((0..COUNT).map(|_| open_one()));
    wait_until("all are counted", || target.weir.metric("weir_connections") >= open.len() as f64);
    let each = (status(&target.weir, "VmRSS") - before) / COUNT as f64;
    println!("each idle connection over TLS takes {each:.0} bytes");
    assert!(each <= 1.1 * TLS_CONNECTION, "{each} bytes");
    target.expect_bounded_with("idle connections over TLS", open.len() as f64 * TLS_CONNECTION);
}

#[test]
fn slow_readers_over_tls_stay_within_the_bound() {
    let directory = TempDir::new().unwrap();
    let scale = Scale { body: 90_000, ..SMALL };
    let (target, config) = start(directory.path(), scale);
    let before = status(&target.weir, "VmRSS");
    let readers: Vec<TlsClient> = (0..COUNT)
        .map(|_| {
            let mut client = connect(&target, &config);
            // The client reads nothing, and each response is a copy of its own. The first ones fill the buffers of the
            // operating system.
            client
                .write_all(keep_alive("/v1/sessions/vectara:agt_1:ase_1?fields=metadata").repeat(60).as_bytes())
                .unwrap();
            client
        })
        .collect();
    wait_for_responses(&target, COUNT);
    let reserved = target.weir.metric("weir_buffered_bytes");
    let each = (status(&target.weir, "VmRSS") - before - reserved) / COUNT as f64;
    println!("each slow reader over TLS takes {each:.0} bytes beyond {reserved} that are reserved for all");
    target.expect_bounded_with("slow readers over TLS", readers.len() as f64 * TLS_CONNECTION);
    drop(readers);
    target.expect_all_released();
}

#[test]
fn a_client_over_tls_that_stops_reading_is_disconnected() {
    let directory = TempDir::new().unwrap();
    write_certificate(directory.path(), "server");
    let config = with_both(directory.path()).edit("weir.yaml", "stall_timeout: 30s", "stall_timeout: 1s");
    let (target, config) = (Target::with(config, SMALL), client_config(directory.path()));
    let mut client = connect(&target, &config);
    client.sock.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    // Each of these responses is shorter than what TLS keeps.
    let _ = client.write_all(keep_alive(PALANTIR).repeat(10_000).as_bytes());
    let ended = "weir_connections_ended_total{reason=\"stall_timeout\"}";
    wait_until("the connection is closed", || target.weir.metric(ended) == 1.0);
}
