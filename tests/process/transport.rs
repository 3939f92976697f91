//! Connections to providers: plain and TLS, HTTP/1.1 and HTTP/2, the pool, and the headers that Weir sends.

use crate::support::*;
use std::process::Command;
use tempfile::TempDir;

/// Starts a simulator with TLS and a gateway that trusts its certificate if `trusted`.
fn start_with_tls(options: &[&str], trusted: bool) -> (Sim, Weir, TempDir) {
    let directory = TempDir::new().unwrap();
    let certificate = directory.path().join("sim.pem");
    let path = certificate.to_str().unwrap();
    let sim = Sim::with_options(&[&["--tls-certificate", path], options].concat());
    let config = Config::shipped();
    let config = if trusted { config.env("SSL_CERT_FILE", path) } else { config };
    let weir = config.start(&sim);
    (sim, weir, directory)
}

/// Returns the simulator's counts of requests by HTTP version.
fn http_versions(sim: &Sim) -> String {
    let output = Command::new("curl").args(["-sk", &format!("https://{}/_sim/calls", sim.address)]).output().unwrap();
    let counts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    counts["versions"].to_string()
}

#[test]
fn over_tls_weir_uses_http2_if_the_provider_offers_it_and_else_http1() {
    for (options, version) in [(&[][..], "HTTP/2.0"), (&["--http1-only"][..], "HTTP/1.1")] {
        let (sim, weir, _directory) = start_with_tls(options, true);
        for target in [VECTARA, PALANTIR, AGENTHUMAN] {
            let response = weir.get(target);
            assert_eq!(response.status, 200, "{}", response.json());
        }
        assert_eq!(http_versions(&sim), format!("{{\"{version}\":3}}"));
    }
}

#[test]
fn a_provider_with_an_untrusted_certificate_gives_502() {
    let (_sim, weir, _directory) = start_with_tls(&[], false);
    let response = weir.get(VECTARA);
    assert_eq!(response.code(), (502, "provider_error".into()));
    // The client learns that the provider is unreachable; the log says why.
    assert!(response.json()["detail"].as_str().unwrap().contains("unreachable"), "{}", response.json());
    wait_until("the log says why", || {
        weir.process.stderr.lock().unwrap().iter().any(|line| line.contains("UnknownIssuer"))
    });
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"get_session\",provider=\"vectara\",status=\"tls\"}"),
        1.0
    );
}

#[test]
fn connections_to_a_provider_are_reused() {
    let sim = Sim::with_options(&["--sessions", "300"]);
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", "requests: 60\n", "requests: 6000\n")
        .edit("providers/agenthuman.yaml", "burst: 60", "burst: 6000")
        .start(&sim);
    for n in 1..200 {
        assert!(matches!(weir.get(&format!("/v1/sessions/sess_SIM{n:08X}")).status, 200 | 404));
    }
    let connections = open_connections(&sim);
    assert!(connections <= 4, "{connections} connections for 199 sequential calls");
    assert_eq!(sim.calls(), 199);
}

/// Returns the number of established connections to the simulator's port, as the kernel lists them.
fn open_connections(sim: &Sim) -> usize {
    let port = format!(":{:04X}", sim.address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table
        .lines()
        .filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[2].ends_with(&port) && fields[3] == "01"
        })
        .count()
}

#[test]
fn a_base_url_can_have_a_host_name_and_a_path_prefix() {
    let sim = Sim::start();
    let port = sim.address.port();
    let weir = Config::shipped()
        .env("VECTARA_BASE_URL", &format!("http://localhost:{port}"))
        .env("AGENTHUMAN_BASE_URL", &format!("http://127.0.0.1:{port}/prefix/"))
        .start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(weir.get(AGENTHUMAN).code(), (502, "provider_error".into()));
    assert!(sim.call_counts()["calls"].to_string().contains("GET /prefix/v1/sessions/sess_01H3"));
}

#[test]
fn a_provider_call_carries_weirs_headers_and_none_of_the_client() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let received = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut head = String::new();
        let mut reader = BufReader::new(socket.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        socket.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        head
    });
    let sim = Sim::start();
    let weir = Config::shipped().env("PALANTIR_BASE_URL", &format!("http://{address}")).start(&sim);
    weir.get_with(
        PALANTIR,
        &[
            ("Cookie", "c=1"),
            ("X-Request-Id", "client-id"),
            ("Accept-Encoding", "gzip"),
            ("X-Forwarded-For", "1.2.3.4"),
        ],
    );
    let head = received.join().unwrap();
    let mut lines: Vec<String> = head.trim_end().lines().map(str::to_ascii_lowercase).collect();
    let first = lines.remove(0);
    assert!(first.ends_with("?preview=true http/1.1"), "{first}");
    lines.sort();
    let expected = [
        "accept-encoding: identity".to_owned(),
        "accept: application/json".into(),
        "authorization: bearer sim-token".into(),
        format!("host: {address}"),
        format!("user-agent: weir/{}", env!("CARGO_PKG_VERSION")),
    ];
    assert_eq!(lines, expected);
}
