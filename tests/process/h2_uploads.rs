//! Uploads over HTTP/2 on a native mount: the provider reads each as one HTTP/1.1 request, however its frames are cut.

use crate::frames;
use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

type Bodies = Arc<Mutex<Vec<Option<String>>>>;

/// A provider that is 50 ms away and returns the body that it read.
fn start() -> (StrictProvider, Bodies, Weir, Sim) {
    let bodies = Bodies::default();
    let read = bodies.clone();
    let provider = StrictProvider::start(move |head, connection| {
        let early = head.path.ends_with("early") && connection.respond("200 OK", "[early]");
        let body = connection.read_body(head).map(|body| String::from_utf8(body).unwrap());
        read.lock().unwrap().push(body.clone());
        std::thread::sleep(Duration::from_millis(50));
        body.is_some_and(|body| early || connection.respond("200 OK", &format!("[{} {body}]", head.method)))
    });
    let sim = Sim::start();
    let config = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    let weir = config.env("VECTARA_BASE_URL", &provider.url()).start(&sim);
    (provider, bodies, weir, sim)
}

fn target() -> String {
    format!("/vectara{VECTARA_SESSION}/events")
}

fn data(flags: u8, payload: &[u8]) -> Vec<u8> {
    frames::frame(DATA, flags, 1, payload)
}

/// Reads the body of the response on stream 1.
fn read_response(socket: &mut TcpStream, case: &str) -> String {
    let mut body = Vec::new();
    let found = frames::read_until(socket, |kind, stream, payload| {
        assert!(kind != frames::RESET && kind != frames::GOAWAY, "{case}: frame {kind} {payload:?}");
        if kind == DATA && stream == 1 {
            body.extend_from_slice(payload);
        }
        kind == DATA && stream == 1 && body.ends_with(b"]")
    });
    assert!(found, "{case}: the connection ended after {:?}", String::from_utf8_lossy(&body));
    String::from_utf8(body).unwrap()
}

fn upload(weir: &Weir, method: &str, headers: &[(&str, &str)], parts: &[Vec<u8>]) -> TcpStream {
    let mut socket = frames::connect(weir);
    socket.set_nodelay(true).unwrap();
    let path = if method == "PUT early" { format!("{}?early", target()) } else { target() };
    let method = method.trim_end_matches(" early");
    socket.write_all(&frames::request(1, method, &path, "open", headers, END_HEADERS)).unwrap();
    for part in parts {
        std::thread::sleep(Duration::from_millis(20));
        socket.write_all(part).unwrap();
    }
    socket
}

/// In the version with the fault, the provider answered the second last chunk with 400, which the next request received.
#[test]
fn an_upload_that_ends_with_an_empty_frame_has_one_last_chunk() {
    let (provider, bodies, weir, _sim) = start();
    let padded = |text: &[u8], padding: u8| [&[padding], text, &vec![0; usize::from(padding)]].concat();
    let trailers = {
        let block = [&[0_u8, 6][..], b"x-note", &[4], b"done"].concat();
        frames::frame(frames::HEADERS, END_STREAM | END_HEADERS, 1, &block)
    };
    let empty = || data(0, b"");
    let last = || data(END_STREAM, b"");
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("an empty last frame", vec![data(0, b"hello"), last()], "hello"),
        ("several empty frames", vec![empty(), data(0, b"a"), empty(), empty(), data(0, b"b"), empty(), last()], "ab"),
        ("a padded empty last frame", vec![data(0, b"x"), data(END_STREAM | PADDED, &padded(b"", 9))], "x"),
        ("padded frames", vec![data(PADDED, &padded(b"p", 200)), data(PADDED, &padded(b"", 3)), last()], "p"),
        ("only an empty frame", vec![last()], ""),
        ("only empty frames", vec![empty(), empty(), last()], ""),
        ("a last frame with content", vec![data(0, b"a"), data(END_STREAM, b"b")], "ab"),
        ("trailers", vec![data(0, b"t"), trailers.clone()], "t"),
        ("trailers after an empty frame", vec![data(0, b"t"), empty(), trailers.clone()], "t"),
        ("only trailers", vec![trailers], ""),
        ("all in one segment", vec![[data(0, b"o"), empty(), last()].concat()], "o"),
    ];
    for method in ["POST", "PUT", "PATCH", "DELETE", "GET"] {
        for (name, parts, content) in &cases {
            for headers in [vec![], vec![("content-length", content.len().to_string())]] {
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let mut socket = upload(&weir, method, &headers, parts);
                assert_eq!(read_response(&mut socket, name), format!("[{method} {content}]"), "{name} {headers:?}");
                assert_eq!(bodies.lock().unwrap().pop(), Some(Some((*content).to_owned())), "{name} {headers:?}");
                let next = weir.get(&format!("{}?next", target()));
                assert_eq!((next.status, &*next.body), (200, &b"[GET ]"[..]), "after {method}, {name} {headers:?}");
                assert_eq!(provider.junk(), [""; 0], "{method}, {name} {headers:?}");
            }
        }
    }
}

#[test]
fn an_upload_that_the_client_resets_or_leaves_has_no_last_chunk() {
    let (provider, bodies, weir, _sim) = start();
    let reset = |reason: u32| frames::frame(frames::RESET, 0, 1, &reason.to_be_bytes());
    for (name, parts) in [
        ("CANCEL", vec![data(0, b"half"), reset(8)]),
        ("NO_ERROR", vec![data(0, b"half"), reset(0)]),
        ("after empty frames", vec![data(0, b"half"), data(0, b""), reset(8)]),
        ("before the body", vec![reset(8)]),
        ("the connection closes", vec![data(0, b"half")]),
    ] {
        drop(upload(&weir, "PUT", &[], &parts));
        wait_until(&format!("{name}: the provider has read all"), || !bodies.lock().unwrap().is_empty());
        assert_eq!(bodies.lock().unwrap().pop(), Some(None), "{name}: the provider must not take it for complete");
        let next = weir.get(&format!("{}?next", target()));
        assert_eq!((next.status, &*next.body), (200, &b"[GET ]"[..]), "{name}");
        assert_eq!(bodies.lock().unwrap().pop(), Some(Some(String::new())));
    }
    assert_eq!(provider.junk(), [""; 0]);
}

#[test]
fn an_upload_that_ends_after_its_response_has_one_last_chunk() {
    let (provider, bodies, weir, _sim) = start();
    for end in [vec![data(END_STREAM, b"b")], vec![data(0, b"b"), data(END_STREAM, b"")]] {
        let mut socket = upload(&weir, "PUT early", &[], &[data(0, b"a"), data(0, b"")]);
        assert_eq!(read_response(&mut socket, "early"), "[early]");
        for part in end {
            socket.write_all(&part).unwrap();
        }
        wait_until("the provider has read the body", || !bodies.lock().unwrap().is_empty());
        assert_eq!(bodies.lock().unwrap().pop(), Some(Some("ab".to_owned())));
        let next = weir.get(&format!("{}?next", target()));
        assert_eq!((next.status, &*next.body), (200, &b"[GET ]"[..]));
        bodies.lock().unwrap().clear();
    }
    assert_eq!(provider.junk(), [""; 0]);
}
