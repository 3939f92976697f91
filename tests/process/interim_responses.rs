//! Interim (1xx) responses of a provider: a client gets only a 100 that it expects, and always a final response.

use crate::frames;
use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const SECRETS: &str = "Set-Cookie: a=b\r\nAlt-Svc: h3=\":1\"\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\nLink: <http://internal/>\r\nX-Any: 1\r\n";

fn events() -> String {
    format!("/vectara{VECTARA_SESSION}/events")
}

fn start(provider: &StrictProvider, sim: &Sim) -> Weir {
    let config = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    let config = config.edit("providers/vectara.yaml", "failures: 5", "failures: 1000000");
    config.env("VECTARA_BASE_URL", &provider.url()).start(sim)
}

/// Sends bytes and returns all that arrives until the connection closes.
fn exchange(weir: &Weir, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(bytes).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    response
}

/// A request with an empty JSON body. `expect` adds `Expect: 100-continue`.
fn post(version: &str, expect: bool) -> Vec<u8> {
    let mut headers = vec![("X-API-Key", "open"), ("Content-Length", "2")];
    headers.extend(expect.then_some(("Expect", "100-continue")));
    let text = String::from_utf8(request("POST", &events(), &headers)).unwrap();
    (text.replacen("HTTP/1.1", version, 1) + "{}").into_bytes()
}

/// What arrives on stream 1: the payloads of its HEADERS frames, and its body.
fn stream(socket: &mut TcpStream) -> (Vec<Vec<u8>>, String) {
    let (mut heads, mut body) = (Vec::new(), Vec::new());
    let found = frames::read_until(socket, |kind, stream, payload| {
        assert!(kind != frames::RESET && kind != frames::GOAWAY, "frame {kind} {payload:?}");
        match (kind, stream) {
            (frames::HEADERS, 1) => heads.push(payload.to_vec()),
            (0, 1) => body.extend_from_slice(payload),
            _ => {}
        }
        kind == 0 && stream == 1 && matches!(body.last(), Some(b']' | b'}'))
    });
    assert!(found, "the connection ended after {heads:?}");
    (heads, String::from_utf8(body).unwrap())
}

/// In the version with the fault, the client received the 101 and what was behind it.
#[test]
fn an_unrequested_101_is_a_broken_provider() {
    const FORGED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n[forged]";
    for switch in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 50\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.0 101 Switching Protocols\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        for at_once in [true, false] {
            let (closed, is_closed) = std::sync::mpsc::channel();
            let provider = StrictProvider::start(move |head, connection| {
                connection.read_body(head);
                if at_once {
                    connection.write(format!("{switch}{FORGED}"));
                } else {
                    connection.write(switch);
                }
                closed.send(connection.is_closed_by_weir()).unwrap();
                false
            });
            let sim = Sim::start();
            let weir = start(&provider, &sim);
            let upgrade = [("X-API-Key", "open"), ("Upgrade", "websocket"), ("Connection", "upgrade")];
            let get = |version: &str| {
                let text = String::from_utf8(request("GET", &events(), &upgrade[..1])).unwrap();
                text.replacen("HTTP/1.1", version, 1).into_bytes()
            };
            let handshake = String::from_utf8(request("GET", &events(), &upgrade)).unwrap();
            let handshake = handshake.replacen("Connection: close\r\n", "", 1).into_bytes();
            let begun = Instant::now();
            for bytes in [get("HTTP/1.0"), get("HTTP/1.1"), post("HTTP/1.1", false), post("HTTP/1.1", true), handshake]
            {
                let response = exchange(&weir, &bytes);
                let last = response.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
                assert!(last.starts_with("HTTP/1.1 502 "), "{switch:?} {at_once}: {response}");
                assert!(
                    !response.contains("forged") && !response.contains(" 101 "),
                    "{switch:?} {at_once}: {response}"
                );
                assert!(is_closed.recv_timeout(MAX_WAIT).unwrap(), "{switch:?}: the connection must be closed");
            }
            let mut socket = frames::connect(&weir);
            socket.write_all(&frames::request(1, "GET", &events(), "open", &[], 5)).unwrap();
            let (_, body) = stream(&mut socket);
            assert!(!body.contains("forged") && body.contains("messages"), "{switch:?} {at_once}: {body}");
            // Weir reads a session itself on this native path, and on the unified one.
            let native = format!("/vectara{VECTARA_SESSION}");
            for target in [native.as_str(), VECTARA, "/v1/agents/agt_1/sessions"] {
                let response = weir.get(target);
                assert_eq!(response.status, 502, "{switch:?} {at_once} {target}");
                assert!(!String::from_utf8_lossy(&response.body).contains("forged"));
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}: Weir must not wait", begun.elapsed());
        }
    }
}

/// In the version with the fault, HTTP/1.1 clients received a 103 with all its headers, and HTTP/1.0 clients a 1xx.
#[test]
fn only_an_expected_100_reaches_a_client_and_it_has_no_headers() {
    let provider = StrictProvider::start(|head, connection| {
        connection.write(format!("HTTP/1.1 103 Early Hints\r\n{SECRETS}\r\nHTTP/1.1 102 Processing\r\n\r\n"));
        connection.write(format!("HTTP/1.1 100 Continue\r\n{SECRETS}\r\n"));
        connection.read_body(head);
        connection.write(format!("HTTP/1.1 199 Any\r\n{SECRETS}\r\n"));
        connection.respond("200 OK", "[own]")
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for (version, expect, interim) in [
        ("HTTP/1.0", false, ""),
        ("HTTP/1.0", true, ""),
        ("HTTP/1.1", false, ""),
        ("HTTP/1.1", true, "HTTP/1.1 100 Continue\r\n\r\n"),
    ] {
        let response = exchange(&weir, &post(version, expect));
        let rest = response.strip_prefix(interim).unwrap();
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("[own]"), "{version} {expect}: {response}");
        assert_eq!(rest.matches("HTTP/1.1").count(), 1, "{version} {expect}: {response}");
        for secret in ["set-cookie", "alt-svc", "access-control", "link", "x-any"] {
            assert!(!response.to_ascii_lowercase().contains(secret), "{version} {expect}: {response}");
        }
    }
    let mut socket = frames::connect(&weir);
    socket.write_all(&frames::request(1, "GET", &events(), "open", &[], 5)).unwrap();
    let (heads, body) = stream(&mut socket);
    assert_eq!((heads.len(), &*body), (1, "[own]"));
    // The calls that fill the cache skip interim responses.
    assert_eq!(weir.get(VECTARA).code(), (502, "provider_invalid_response".into()), "[own] is no session");
}

/// In the version with the fault, the client received no final response.
#[test]
fn a_provider_that_dies_after_100_gives_a_final_502() {
    for interim in ["100 Continue", "103 Early Hints"] {
        let provider = StrictProvider::start(move |head, connection| {
            connection.write(format!("HTTP/1.1 {interim}\r\n\r\n"));
            connection.read_body(head);
            false
        });
        let sim = Sim::start();
        let weir = start(&provider, &sim);
        for (version, expect) in [("HTTP/1.0", true), ("HTTP/1.1", true), ("HTTP/1.1", false)] {
            let response = exchange(&weir, &post(version, expect));
            let last = response.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
            assert!(last.starts_with("HTTP/1.1 502 "), "{interim} {version} {expect}: {response:?}");
            assert!(last.contains("messages"), "{response}");
        }
        let mut socket = frames::connect(&weir);
        socket.write_all(&frames::request(1, "POST", &events(), "open", &[("expect", "100-continue")], 4)).unwrap();
        socket.write_all(&frames::frame(0, 1, 1, b"{}")).unwrap();
        let (_, body) = stream(&mut socket);
        assert!(body.contains("messages"), "{body}");
        assert_eq!(weir.get(VECTARA).status, 502);
    }
}

/// A client that sends its body only after the 100 would otherwise wait until a timeout.
#[test]
fn expect_100_continue_works_over_http2() {
    let provider = StrictProvider::start(|head, connection| {
        assert!(head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")));
        connection.write(format!("HTTP/1.1 103 Early Hints\r\n{SECRETS}\r\nHTTP/1.1 100 Continue\r\n{SECRETS}\r\n"));
        let body = connection.read_body(head).map(|body| String::from_utf8(body).unwrap());
        body.is_some_and(|body| connection.respond("200 OK", &format!("[{body}]")))
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for headers in [vec![("expect", "100-continue")], vec![("expect", "100-Continue"), ("content-length", "4")]] {
        let mut socket = frames::connect(&weir);
        let key = "open";
        socket.write_all(&frames::request(1, "POST", &events(), key, &headers, 4)).unwrap();
        let mut interim = Vec::new();
        assert!(frames::read_until(&mut socket, |kind, stream, payload| {
            interim = payload.to_vec();
            kind == frames::HEADERS && stream == 1
        }));
        assert!(interim.len() < 8, "the 100 has a status only: {interim:?}");
        socket.write_all(&frames::frame(0, 1, 1, b"body")).unwrap();
        let (heads, body) = stream(&mut socket);
        assert_eq!((heads.len(), &*body), (1, "[body]"));
    }
    // A request that Weir refuses gets its final response without a 100.
    let mut socket = frames::connect(&weir);
    socket.write_all(&frames::request(1, "POST", &events(), "wrong", &[("expect", "100-continue")], 4)).unwrap();
    let (heads, body) = stream(&mut socket);
    assert!(heads.len() == 1 && heads[0].len() > 20 && body.contains("messages"), "{heads:?} {body}");
}
