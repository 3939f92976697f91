//! The heads of requests on every HTTP version and route: hosts, targets, lengths and trailers that two servers could
//! read differently.

use crate::frames::{self, GOAWAY, HEADERS, RESET, frame};
use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

pub fn start(sim: &Sim) -> Weir {
    let config = Config::shipped().clients(CLIENTS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    config.start(sim)
}

/// A public document, a unified session, a list, a watch, a described native path, and an undescribed one.
pub fn routes() -> Vec<String> {
    let native = format!("/vectara{VECTARA_SESSION}");
    let watch = "/v1/sessions/agenthuman%3Asess_SIM00000001/watch".to_owned();
    let list = "/v1/sessions?provider=agenthuman".to_owned();
    vec!["/openapi.json".to_owned(), VECTARA.to_owned(), list, watch, native.clone(), format!("{native}/events")]
}

/// Sends bytes over HTTP/1. Returns the first status, as soon as it arrives.
fn status(weir: &Weir, bytes: &str) -> u16 {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(bytes.as_bytes()).unwrap();
    let mut head = [0; 12];
    socket.read_exact(&mut head).unwrap_or_else(|error| panic!("no response to {bytes:?}: {error}"));
    String::from_utf8_lossy(&head[9..]).parse().unwrap()
}

fn get(target: &str, version: &str, host: &str) -> String {
    format!("GET {target} HTTP/{version}\r\n{host}X-API-Key: open\r\nConnection: close\r\n\r\n")
}

const INVALID_HOSTS: [&str; 22] = [
    "x y",
    "x/y",
    "[::1",
    "::1",
    "[::1]x",
    "[x]",
    "x?y",
    "x#y",
    "u@x",
    "u:p@x",
    "x\\y",
    "x:port",
    "x:-1",
    "x:1:2",
    ":80",
    "x%zz",
    "x<y",
    "h\u{f6}st",
    "x,y",
    "x, y",
    "x:99999",
    "x:65536",
];

#[test]
fn an_invalid_host_is_400_on_every_version_and_route() {
    let sim = Sim::start();
    let weir = start(&sim);
    let calls = sim.calls();
    for route in routes() {
        for host in INVALID_HOSTS {
            for version in ["1.1", "1.0"] {
                let bytes = get(&route, version, &format!("Host: {host}\r\n"));
                assert_eq!(status(&weir, &bytes), 400, "{host} over HTTP/{version} on {route}");
            }
            let absolute = get(&format!("http://{host}{route}"), "1.1", &format!("Host: {host}\r\n"));
            assert_eq!(status(&weir, &absolute), 400, "{host} in the target of {route}");
        }
    }
    assert_eq!(sim.calls(), calls, "no request reached a provider");
    for host in ["x:80", "X.", "[::1]:8080", "[::ffff:1.2.3.4]", "a_b", "x:"] {
        for route in routes() {
            for version in ["1.1", "1.0"] {
                let bytes = get(&route, version, &format!("Host: {host}\r\n"));
                assert_eq!(status(&weir, &bytes), 200, "{host} over HTTP/{version} on {route}");
            }
        }
    }
}

#[test]
fn an_absolute_target_may_differ_from_host_in_case_and_default_port() {
    let sim = Sim::start();
    let weir = start(&sim);
    for route in routes() {
        for (target, host, expected) in [
            ("http://EXAMPLE.com:80", "Host: example.com\r\n", 200),
            ("HTTP://example.com", "Host: Example.com:80\r\n", 200),
            ("https://example.com", "Host: example.com:443\r\n", 200),
            ("http://example.com:", "Host: example.com\r\n", 200),
            ("http://example.com", "", 400),
            ("http://example.com:81", "Host: example.com\r\n", 400),
            ("http://example.com:443", "Host: example.com\r\n", 400),
            ("http://example.com", "Host: example.org\r\n", 400),
            ("http://example.com", "Host:\r\n", 400),
            ("ftp://example.com", "Host: example.com\r\n", 400),
        ] {
            // Without a Host, HTTP/1.1 is 400 although the target has one; HTTP/1.0 is not.
            let missing = host.is_empty();
            let expected = if missing { 200 } else { expected };
            let version = if missing { "1.0" } else { "1.1" };
            let bytes = get(&format!("{target}{route}"), version, host);
            assert_eq!(status(&weir, &bytes), expected, "{target} with {host:?} on {route}");
        }
    }
}

#[test]
fn a_fragment_in_a_target_is_400_on_every_version_and_route() {
    let sim = Sim::start();
    let weir = start(&sim);
    let calls = sim.calls();
    for route in routes() {
        for target in [format!("{route}#x"), format!("{route}#"), format!("http://a{route}#x")] {
            for version in ["1.1", "1.0"] {
                assert_eq!(status(&weir, &get(&target, version, "Host: a\r\n")), 400, "{target} over HTTP/{version}");
            }
        }
        let mut socket = frames::connect(&weir);
        socket.write_all(&frames::request(1, "GET", &format!("{route}#x"), "open", &[], 5)).unwrap();
        assert_eq!(frames::response_status(&mut socket, 1), Some(400), "{route}#x over HTTP/2");
        // The connection goes on.
        socket.write_all(&frames::get(3, "open")).unwrap();
        assert_eq!(frames::response_status(&mut socket, 3), Some(200));
    }
    assert_eq!(sim.calls(), calls, "no request reached a provider");
}

#[test]
fn a_long_method_is_400_and_in_no_log_line() {
    let sim = Sim::start();
    let weir = start(&sim);
    let long = "METHOD".repeat(10_000);
    for route in routes() {
        for method in [&long, &"M".repeat(33)] {
            for version in ["1.1", "1.0"] {
                let bytes = get(&route, version, "Host: a\r\n").replacen("GET", method, 1);
                let status = status(&weir, &bytes);
                assert!(matches!(status, 400 | 414), "{status} over HTTP/{version} on {route}");
            }
        }
        let mut socket = frames::connect(&weir);
        socket.write_all(&frames::request(1, &"M".repeat(33), &route, "open", &[], 5)).unwrap();
        assert_eq!(frames::response_status(&mut socket, 1), Some(400), "over HTTP/2 on {route}");
        // A method that is not registered is not refused for its length.
        let bytes = get(&route, "1.1", "Host: a\r\n").replacen("GET", &"M".repeat(32), 1);
        assert_ne!(status(&weir, &bytes), 400, "{route}");
    }
    assert!(weir.process.stdout.lock().unwrap().iter().all(|line| line.len() < 1000), "the access log stays short");
}

#[test]
fn http2_hosts_follow_the_same_rules() {
    let sim = Sim::start();
    let weir = start(&sim);
    // `frames::request` sends the authority `a`.
    for (host, expected) in
        [("a", 200), ("A", 200), ("a:80", 200), ("b", 400), ("a:81", 400), ("a,b", 400), ("a b", 400)]
    {
        for route in routes() {
            let mut socket = frames::connect(&weir);
            socket.write_all(&frames::request(1, "GET", &route, "open", &[("host", host)], 5)).unwrap();
            assert_eq!(frames::response_status(&mut socket, 1), Some(expected), "{host} on {route}");
        }
    }
}

#[test]
fn a_malformed_http2_request_is_reset_and_never_reaches_a_provider() {
    let sim = Sim::start();
    let bodies = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let seen = bodies.clone();
    let provider = StrictProvider::start(move |head, connection| {
        let Some(body) = connection.read_body(head) else { return false };
        seen.lock().unwrap().push(body);
        connection.respond("200 OK", "[done]")
    });
    let config = Config::shipped().clients(CLIENTS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    let weir = config.env("VECTARA_BASE_URL", &provider.url()).start(&sim);
    let path = format!("/vectara{VECTARA_SESSION}/events");
    for headers in [
        &[("content-length", "2"), ("content-length", "2")][..],
        &[("content-length", "2, 2")],
        &[("content-length", "2"), ("content-length", "3")],
        &[("content-length", "+2")],
        &[("content-length", "")],
        &[("x-a", " b")],
        &[("x-a", "b\t")],
        &[("x-a", "b\0c")],
        &[("x-a", "b\r\nc: d")],
        &[("X-A", "b")],
        &[("x a", "b")],
        &[("connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "x")],
        &[("upgrade", "x")],
        &[("te", "gzip")],
        &[(":path", "/other")],
        &[(":status", "200")],
        &[(":unknown", "x")],
        &[("x-a", "b"), (":scheme", "http")],
    ] {
        let mut socket = frames::connect(&weir);
        let request = frames::request(1, "POST", &path, "open", headers, 4);
        socket.write_all(&[request, frame(0, 1, 1, b"hi")].concat()).unwrap();
        let ended = frames::read_until(&mut socket, |kind, stream, payload| {
            assert!(kind != HEADERS, "{headers:?} got a response: {payload:?}");
            kind == GOAWAY || kind == RESET && stream == 1
        });
        assert!(ended, "{headers:?} has no end");
    }
    assert_eq!(provider.heads().len(), 0, "{:?}", provider.heads());

    // One length reaches the provider once.
    let mut socket = frames::connect(&weir);
    let request = frames::request(1, "POST", &path, "open", &[("content-length", "2")], 4);
    socket.write_all(&[request, frame(0, 1, 1, b"hi")].concat()).unwrap();
    assert_eq!(frames::response_status(&mut socket, 1), Some(200));
    let heads = provider.heads();
    assert_eq!(heads[0].lines.iter().filter(|line| line.starts_with("content-length")).count(), 1, "{heads:?}");
    assert_eq!(bodies.lock().unwrap().pop(), Some(b"hi".to_vec()));

    // A body that is longer or shorter than its length is never complete.
    for body in [&b"h"[..], b"hi!", b""] {
        let mut socket = frames::connect(&weir);
        let request = frames::request(1, "POST", &path, "open", &[("content-length", "2")], 4);
        socket.write_all(&[request, frame(0, 1, 1, body)].concat()).unwrap();
        let ended = frames::read_until(&mut socket, |kind, stream, _| kind == GOAWAY || kind == RESET && stream == 1);
        assert!(ended, "{body:?}");
    }
    assert_eq!(bodies.lock().unwrap().len(), 0);
}

#[test]
fn a_pseudo_header_field_in_trailers_makes_the_request_malformed() {
    let sim = Sim::start();
    let bodies = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let seen = bodies.clone();
    let provider = StrictProvider::start(move |head, connection| {
        let Some(body) = connection.read_body(head) else { return false };
        seen.lock().unwrap().push(body);
        connection.respond("200 OK", "[done]")
    });
    let config = Config::shipped().clients(CLIENTS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    let weir = config.env("VECTARA_BASE_URL", &provider.url()).start(&sim);
    let path = format!("/vectara{VECTARA_SESSION}/events");
    let field = |name: &str, value: &str| {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    };
    let send = |trailers: &[u8]| {
        let mut socket = frames::connect(&weir);
        let request = frames::request(1, "POST", &path, "open", &[], 4);
        socket.write_all(&[request, frame(0, 0, 1, b"hi"), frame(HEADERS, 5, 1, trailers)].concat()).unwrap();
        frames::response_status(&mut socket, 1)
    };
    for trailers in [field(":path", "/x"), field(":method", "GET"), field(":status", "200"), vec![0x84]] {
        assert_eq!(send(&trailers), None, "{trailers:?}");
    }
    assert_eq!(bodies.lock().unwrap().len(), 0, "no body was complete");
    assert_eq!(send(&field("x-sum", "1")), Some(200));
    assert_eq!(bodies.lock().unwrap().pop(), Some(b"hi".to_vec()));
    assert!(provider.heads().iter().all(|head| head.header("x-sum").is_none()));
}
