//! Tests of HTTP/2: with and without TLS, its timeouts and its limits.

use crate::frames;
use crate::support::*;
use crate::tls::{curl, with_tls, write_certificate};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[test]
fn http2_without_tls_needs_h2c_on_the_listener() {
    let sim = Sim::start();
    let plain = Config::shipped().start(&sim);
    assert!(curl(plain.http, "http", &["--http2-prior-knowledge"]).is_err());
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    assert_eq!(curl(weir.http, "http", &["--http2-prior-knowledge"]), Ok("200 2".into()));
    assert_eq!(curl(weir.http, "http", &["--http1.1"]), Ok("200 1.1".into()));
    assert_eq!(weir.get(VECTARA).status, 200);
}

#[test]
fn lists_are_complete_over_http1_and_http2_and_head_has_their_length() {
    let sim = Sim::with_options(&["--sessions", "100"]);
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let request = |version: &str, path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", version, "-H", "X-API-Key: open"]).args(more);
        let output = curl.arg(format!("http://{}{path}", weir.http)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let response = String::from_utf8(output.stdout).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        (length.parse::<usize>().unwrap(), body.to_owned())
    };
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (path, sessions) in
            [("/v1/agents/agt_load_1/sessions?limit=100", 100), ("/v1/agents/agt_empty/sessions", 0)]
        {
            let (length, body) = request(version, path, &[]);
            let list: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (list["sessions"].as_array().unwrap().len(), body.len()),
                (sessions, length),
                "{version} {path}"
            );
            // Now the list is cached, and its `age_seconds` may have more digits.
            let (head_length, head_body) = request(version, path, &["--head"]);
            assert!(
                head_body.is_empty() && head_length.abs_diff(length) < 20,
                "{version} {path}: {head_length}, GET had {length}; {head_body:?}"
            );
        }
    }
}

#[test]
fn http2_connections_have_a_start_timeout_and_a_request_limit() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
    let directory = TempDir::new().unwrap();
    write_certificate(directory.path(), "server");
    let sim = Sim::start();
    let weir =
        with_tls(directory.path(), "").edit("weir.yaml", "header_timeout: 10s", "header_timeout: 1s").start(&sim);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.path().join("server.crt")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let mut client =
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    for begun in [&b""[..], b"PRI * HTTP"] {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(client.clone().into(), name).unwrap();
        let socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        let started = Instant::now();
        stream.write_all(begun).unwrap();
        stream.flush().unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    }
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"header_timeout\"}"), 2.0);
    let weir = Config::shipped()
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("weir.yaml", "requests_per_connection: 100000", "requests_per_connection: 3")
        .edit("weir.yaml", "idle_timeout: 60s", "idle_timeout: 1s")
        .start(&sim);
    let mut socket = frames::connect(&weir);
    let (mut responses, mut goaway) = (0, false);
    for n in 0..3 {
        socket.write_all(&frames::get(2 * n + 1, "open")).unwrap();
        assert!(frames::read_until(&mut socket, |kind, stream, _| {
            goaway |= kind == frames::GOAWAY;
            responses += usize::from(kind == frames::HEADERS);
            kind == 0 && stream == 2 * n + 1
        }));
    }
    goaway |= frames::read_until(&mut socket, |kind, _, _| kind == frames::GOAWAY);
    assert_eq!((responses, goaway), (3, true));
    assert!(!frames::read_until(&mut socket, |kind, _, _| kind == frames::HEADERS), "the connection closes");
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"requests_per_connection\"}"), 1.0);
    let mut idle = frames::connect(&weir);
    assert!(!frames::read_until(&mut idle, |kind, _, _| kind == frames::HEADERS));
    assert!(weir.metric("weir_connections_ended_total{reason=\"idle_timeout\"}") >= 1.0);
}

#[test]
fn a_rapid_reset_of_http2_streams_closes_the_connection() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let connect = || {
        let mut socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.write_all(&[frames::PREFACE, &frames::frame(4, 0, 0, &[])].concat()).unwrap();
        socket
    };
    const GOAWAY: u8 = 7;
    // A normal request gets response headers and no GOAWAY.
    let mut socket = connect();
    socket.write_all(&frames::get(1, "open")).unwrap();
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    while !frames::kinds(&got).contains(&1) {
        let n = socket.read(&mut buffer).unwrap();
        assert!(n > 0, "the connection closed");
        got.extend_from_slice(&buffer[..n]);
    }
    assert!(!frames::kinds(&got).contains(&GOAWAY));
    // Rapid reset (CVE-2023-44487).
    let mut socket = connect();
    let flood: Vec<u8> = (0..5000_u32)
        .flat_map(|n| [frames::get(2 * n + 1, "open"), frames::frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let _ = socket.write_all(&flood);
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    assert!(frames::kinds(&got).contains(&GOAWAY), "{:?}", frames::kinds(&got));
    wait_until("the closed connection is counted", || {
        weir.metric("weir_connections_ended_total{reason=\"h2_resets\"}") == 1.0
    });
    // A header list over the limit is refused; other connections are unaffected.
    let mut socket = connect();
    let mut block = vec![0x82, 0x86, 0x00, 5];
    block.extend_from_slice(b":path\x01/");
    let large = "y".repeat(100);
    for n in 0..1200 {
        let name = format!("x-{n}");
        block.push(0);
        block.push(u8::try_from(name.len()).unwrap());
        block.extend_from_slice(name.as_bytes());
        block.push(100);
        block.extend_from_slice(large.as_bytes());
    }
    let parts: Vec<&[u8]> = block.chunks(16_000).collect();
    for (n, part) in parts.iter().enumerate() {
        let last = if n + 1 == parts.len() { 4 } else { 0 };
        let bytes = if n == 0 { frames::frame(1, 1 | last, 1, part) } else { frames::frame(9, last, 1, part) };
        let _ = socket.write_all(&bytes);
    }
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    let kinds = frames::kinds(&got);
    assert!(kinds.contains(&GOAWAY) || kinds.contains(&3) || kinds.contains(&1), "{kinds:?}");
    assert!(!String::from_utf8_lossy(&got).contains("\"providers\""));
    assert_eq!(weir.get(VECTARA).status, 200, "other connections are unaffected");
}
