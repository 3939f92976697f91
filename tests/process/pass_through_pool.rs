//! Connections to providers: bytes that a provider sends too many never answer another request.

use crate::frames;
use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

/// Two clients that send their own provider key, and one that does not.
const CLIENTS: &str = "clients:\n  - { id: team-a, keys: [ { sha256: SHA(team-a) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n  - { id: team-b, keys: [ { sha256: SHA(team-b) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";
/// Longer than Weir needs to return a connection to its pool and to use it again.
const LATE: Duration = Duration::from_millis(60);
const FORGED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n[forged]";

fn start(provider: &StrictProvider, sim: &Sim) -> Weir {
    let config = Config::shipped().clients(CLIENTS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    config.env("VECTARA_BASE_URL", &provider.url()).start(sim)
}

fn events() -> String {
    format!("/vectara{VECTARA_SESSION}/events")
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    Http10,
    Http11,
    Http2,
}

const VERSIONS: [Version; 3] = [Version::Http10, Version::Http11, Version::Http2];

/// Sends a request without a body. Returns the body of the response.
fn exchange(weir: &Weir, version: Version, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    if version == Version::Http2 {
        let (key, rest): (Vec<(&str, &str)>, Vec<_>) =
            headers.iter().copied().partition(|(name, _)| *name == "x-api-key");
        let mut socket = frames::connect(weir);
        socket.write_all(&frames::request(1, method, path, key[0].1, &rest, 5)).unwrap();
        let mut body = Vec::new();
        let empty = method == "HEAD" || headers.iter().any(|(name, _)| *name == "if-none-match") || method == "DELETE";
        let found = frames::read_until(&mut socket, |kind, _, payload| {
            assert!(kind != frames::RESET && kind != frames::GOAWAY, "{method} {path}: frame {kind} {payload:?}");
            if kind == 0 {
                body.extend_from_slice(payload);
            }
            kind == frames::HEADERS && empty || kind == 0 && body.ends_with(b"]")
        });
        assert!(found, "{method} {path}: {:?}", String::from_utf8_lossy(&body));
        return String::from_utf8(body).unwrap();
    }
    let text = String::from_utf8(request(method, path, headers)).unwrap();
    let text = if version == Version::Http10 { text.replacen("HTTP/1.1", "HTTP/1.0", 1) } else { text };
    let body = send_bytes(weir.http, text.as_bytes()).body;
    String::from_utf8(body).unwrap().lines().find(|line| line.starts_with('[')).unwrap_or_default().to_owned()
}

#[test]
fn a_connection_carries_one_credential_only() {
    let provider = StrictProvider::start(|head, connection| {
        let key = head.header("x-api-key").unwrap_or("none");
        connection.respond("404 Not Found", &format!("[{} {key}]", head.connection))
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    let identities = [
        ("key-a", vec![("x-weir-key", "team-a"), ("x-api-key", "key-a")]),
        ("key-b", vec![("x-weir-key", "team-b"), ("x-api-key", "key-b")]),
        ("key-b", vec![("x-weir-key", "team-a"), ("x-api-key", "key-b")]),
        ("zut_sim", vec![("x-api-key", "open")]),
    ];
    for version in VERSIONS {
        for round in 0..3 {
            for (key, headers) in &identities {
                let body = exchange(&weir, version, "GET", &events(), headers);
                assert!(body.ends_with(&format!(" {key}]")), "{body}");
                exchange(
                    &weir,
                    Version::Http11,
                    "GET",
                    &format!("/v1/sessions/vectara:a:ase_{round}_{version:?}"),
                    headers,
                );
            }
        }
    }
    let mut owners: Vec<Option<String>> = Vec::new();
    for head in provider.heads() {
        owners.resize(owners.len().max(head.connection + 1), None);
        let key = head.header("x-api-key").unwrap().to_owned();
        assert_eq!(owners[head.connection].get_or_insert_with(|| key.clone()), &key, "connection {}", head.connection);
    }
    assert!(owners.len() < provider.heads().len(), "no connection was reused: {owners:?}");
}

/// In the version with the fault, the GET received the body of the HEAD's response as its own response.
#[test]
fn a_body_after_the_response_to_head_does_not_answer_another_request() {
    let provider = StrictProvider::start(|head, connection| {
        if head.method == "HEAD" {
            connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", FORGED.len()));
            std::thread::sleep(LATE);
            return connection.write(FORGED);
        }
        connection.respond("200 OK", "[own]")
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    let key = [("x-api-key", "open")];
    for version in VERSIONS {
        for _ in 0..3 {
            exchange(&weir, version, "HEAD", &events(), &key);
            assert_eq!(exchange(&weir, version, "GET", &events(), &key), "[own]", "{version:?}");
        }
    }
    let heads = provider.heads();
    for head in heads.iter().filter(|head| head.method == "HEAD") {
        assert_eq!(head.header("connection"), Some("close"));
    }
    assert_eq!(provider.junk(), [""; 0]);
}

#[test]
fn a_body_after_204_or_304_does_not_answer_another_request() {
    for framing in [format!("Content-Length: {}", FORGED.len()), "Transfer-Encoding: chunked".to_owned()] {
        let provider = StrictProvider::start(move |head, connection| {
            let status = match &*head.method {
                "DELETE" => "204 No Content",
                _ if head.header("if-none-match").is_some() => "304 Not Modified",
                _ => return connection.respond("200 OK", "[own]"),
            };
            connection.write(format!("HTTP/1.1 {status}\r\n{framing}\r\n\r\n"));
            std::thread::sleep(LATE);
            connection.write(FORGED)
        });
        let sim = Sim::start();
        let weir = start(&provider, &sim);
        let key = ("x-api-key", "open");
        for version in VERSIONS {
            for (method, headers) in [("DELETE", vec![key]), ("GET", vec![key, ("if-none-match", "\"1\"")])] {
                exchange(&weir, version, method, &events(), &headers);
                assert_eq!(exchange(&weir, version, "GET", &events(), &[key]), "[own]", "{version:?} after {method}");
            }
        }
    }
}

#[test]
fn concurrent_requests_receive_no_late_body() {
    let provider = StrictProvider::start(|head, connection| {
        if head.header("if-none-match").is_none() {
            return connection.respond("200 OK", "[own]");
        }
        connection.write(format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {}\r\n\r\n", FORGED.len()));
        std::thread::sleep(Duration::from_millis(3));
        connection.write(FORGED)
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    let (key, condition) = (("x-api-key", "open"), ("if-none-match", "\"1\""));
    std::thread::scope(|scope| {
        for version in [Version::Http10, Version::Http11, Version::Http11, Version::Http2] {
            let weir = &weir;
            scope.spawn(move || {
                for round in 0..60 {
                    exchange(weir, version, "GET", &events(), &[key, condition]);
                    assert_eq!(exchange(weir, version, "GET", &events(), &[key]), "[own]", "{version:?} {round}");
                }
            });
        }
    });
}

/// The same fault in the calls that fill the cache.
#[test]
fn a_body_after_304_does_not_answer_another_unified_request() {
    let (session, _) = example("vectara/get");
    let body = session.to_string();
    let forged = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let provider = StrictProvider::start(move |head, connection| {
        let own = json!({ "key": head.path.rsplit('/').next().unwrap(), "agent_key": "agt_1", "enabled": true });
        if head.header("if-none-match").is_some() {
            connection.write(format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {}\r\n\r\n", forged.len()));
            std::thread::sleep(LATE);
            return connection.write(&forged);
        }
        let body = own.to_string();
        connection.write(format!(
            "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nCache-Control: no-cache\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for round in 0..3 {
        let target = format!("/v1/sessions/vectara:agt_1:ase_{round}");
        assert_eq!(weir.get(&target).status, 200);
        assert_eq!(weir.get(&target).status, 200, "revalidated");
        let other = weir.get(&format!("/v1/sessions/vectara:agt_1:ase_other_{round}"));
        assert_eq!(other.json()["provider_session_id"], format!("ase_other_{round}"), "{}", other.json());
    }
    assert!(provider.heads().iter().any(|head| head.header("if-none-match").is_some()), "an entry was revalidated");
}

#[test]
fn a_byte_after_a_response_closes_the_connection() {
    let (closed, is_closed) = mpsc::channel();
    let provider = StrictProvider::start(move |head, connection| {
        let late = head.path.contains("late");
        if late {
            connection.respond("200 OK", "[own]");
            std::thread::sleep(LATE);
            connection.write("x");
        } else if head.path.contains("chunked") {
            connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[own]\r\n0\r\n\r\nx");
        } else {
            connection.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[own]x");
        }
        closed.send(connection.is_closed_by_weir()).unwrap();
        false
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for version in VERSIONS {
        for place in ["late", "chunked", "at-once"] {
            for native in [true, false] {
                let target = format!("{}?{place}", events());
                if native {
                    assert_eq!(exchange(&weir, version, "GET", &target, &[("x-api-key", "open")]), "[own]", "{place}");
                } else {
                    weir.get(&format!("/v1/sessions/vectara:a:{place}_{version:?}"));
                }
                assert!(is_closed.recv_timeout(MAX_WAIT).unwrap(), "{version:?} {place} native={native}");
            }
        }
    }
    let mut connections = provider.connections("");
    let requests = connections.len();
    connections.dedup();
    assert_eq!(connections.len(), requests, "no connection had a second request");
}

/// In the version with the fault, the response to the rest of the upload answered the next request.
#[test]
fn a_connection_with_an_unfinished_upload_is_not_used_again() {
    const LENGTH: usize = 10_000;
    let provider = StrictProvider::start(|head, connection| {
        if head.method == "GET" {
            return connection.respond("200 OK", "[own]");
        }
        connection.respond("413 Content Too Large", "[early]");
        let complete = connection.read_body(head).is_some();
        std::thread::sleep(LATE);
        complete && connection.write(FORGED)
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    let length = LENGTH.to_string();
    let (half, key) = ("x".repeat(LENGTH / 2), [("x-api-key", "open")]);
    let chunk = format!("{:x}\r\n{half}\r\n", LENGTH / 2);
    let headers = |framing: (&'static str, &str)| {
        String::from_utf8(request("POST", &events(), &[key[0], (framing.0, framing.1)])).unwrap()
    };
    let with_length = headers(("Content-Length", &length));
    let chunked = headers(("Transfer-Encoding", "chunked"));
    for (name, head, parts) in [
        ("HTTP/1.0", with_length.replacen("HTTP/1.1", "HTTP/1.0", 1), [half.clone(), half.clone()]),
        ("HTTP/1.1", with_length, [half.clone(), half.clone()]),
        ("chunked", chunked, [chunk.clone(), format!("{chunk}0\r\n\r\n")]),
    ] {
        let mut socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        socket.write_all(&[head.as_bytes(), parts[0].as_bytes()].concat()).unwrap();
        let mut response = vec![0; 12];
        socket.read_exact(&mut response).unwrap();
        assert_eq!(&response[8..], b" 413", "{name}");
        socket.write_all(parts[1].as_bytes()).unwrap();
        std::thread::sleep(LATE / 3);
        assert_eq!(exchange(&weir, Version::Http11, "GET", &events(), &key), "[own]", "{name}");
    }
    let mut socket = frames::connect(&weir);
    socket.write_all(&frames::request(1, "POST", &events(), "open", &[], 4)).unwrap();
    socket.write_all(&frames::frame(0, 0, 1, half.as_bytes())).unwrap();
    assert!(frames::read_until(&mut socket, |kind, _, payload| kind == 0 && payload.ends_with(b"[early]")));
    socket.write_all(&frames::frame(0, 1, 1, half.as_bytes())).unwrap();
    std::thread::sleep(LATE / 3);
    assert_eq!(exchange(&weir, Version::Http2, "GET", &events(), &key), "[own]");
}
