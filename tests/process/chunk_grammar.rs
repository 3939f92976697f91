//! Chunked bodies of clients: a provider gets the whole body in its plainest form, or no complete body.

use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

/// The body of each request: `None` if it was not complete.
type Bodies = Arc<Mutex<Vec<Option<Vec<u8>>>>>;

fn start(sim: &Sim) -> (Weir, StrictProvider, Bodies) {
    let bodies = Bodies::default();
    let seen = bodies.clone();
    let provider = StrictProvider::start(move |head, connection| {
        let body = connection.read_body(head);
        seen.lock().unwrap().push(body.clone());
        body.is_some() && connection.respond("201 Created", &format!("[{}]", head.path))
    });
    let config = Config::shipped().clients(CLIENTS).edit("providers/vectara.yaml", "failures: 5", "failures: 1000000");
    let weir = config.env("VECTARA_BASE_URL", &provider.url()).start(sim);
    (weir, provider, bodies)
}

fn post(path: &str) -> String {
    let path = format!("/vectara{VECTARA_SESSION}/{path}");
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// Sends parts of bytes one after the other. Returns everything until the connection ends, or `None` if it does not end.
fn exchange(weir: &Weir, parts: &[&[u8]]) -> Option<String> {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.set_nodelay(true).unwrap();
    for part in parts {
        let _ = socket.write_all(part);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut got = Vec::new();
    let ended = socket.read_to_end(&mut got);
    ended.ok().map(|_| String::from_utf8_lossy(&got).into_owned())
}

fn statuses(response: &str) -> Vec<&str> {
    response.match_indices("HTTP/1.1 ").filter_map(|(at, _)| response.get(at + 9..at + 12)).collect()
}

/// A request that a lenient reader finds behind the body.
const HIDDEN: &str = "GET /v1/providers HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n";

#[test]
fn a_chunk_that_two_servers_read_differently_is_400_and_never_a_complete_body() {
    let sim = Sim::start();
    let (weir, provider, bodies) = start(&sim);
    for (name, body) in [
        ("a line feed in an extension", "2;a\nx\r\nhi\r\n0\r\n\r\n"),
        ("a carriage return in an extension", "2;a\rx\r\nhi\r\n0\r\n\r\n"),
        ("a line feed in a quoted extension", "2;a=\"\n\"\r\nhi\r\n0\r\n\r\n"),
        ("an unclosed quote", "2;a=\"b\r\nhi\r\n0\r\n\r\n"),
        ("an empty size", "\r\n"),
        ("an empty size with an extension", ";a=b\r\n"),
        ("only a semicolon", ";\r\n"),
        ("an extension without a name", "2;\r\nhi\r\n0\r\n\r\n"),
        ("a space before the size", " 2\r\nhi\r\n0\r\n\r\n"),
        ("a space behind the size", "2 \r\nhi\r\n0\r\n\r\n"),
        ("a sign", "+2\r\nhi\r\n0\r\n\r\n"),
        ("a prefix", "0x2\r\nhi\r\n0\r\n\r\n"),
        ("an underscore", "0_2\r\nhi\r\n0\r\n\r\n"),
        ("a size beyond 64 bits", "10000000000000002\r\nhi\r\n0\r\n\r\n"),
        ("bare line feeds", "2\nhi\n0\n\n"),
        ("a bare line feed behind the data", "2\r\nhi\n0\r\n\r\n"),
        ("data without an end", "2\r\nhi0\r\n\r\n"),
        ("more data than the size", "2\r\nhello\r\n0\r\n\r\n"),
        ("a junk trailer", "2\r\nhi\r\n0\r\njunk\r\n\r\n"),
        ("a trailer without a name", "2\r\nhi\r\n0\r\n: x\r\n\r\n"),
        ("a folded trailer", "2\r\nhi\r\n0\r\na: b\r\n c\r\n\r\n"),
        ("a trailer that ends with a line feed", "2\r\nhi\r\n0\r\na: b\n\r\n"),
        ("a NUL in a trailer", "2\r\nhi\r\n0\r\na: \0\r\n\r\n"),
        ("a last line feed", "2\r\nhi\r\n0\r\n\n"),
    ] {
        let (head, body) = (post("bad"), format!("{body}{HIDDEN}"));
        let (half, rest) = body.split_at(body.len().min(5));
        for parts in
            [vec![format!("{head}{body}")], vec![head.clone(), body.clone()], vec![head + half, rest.to_owned()]]
        {
            let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
            let response =
                exchange(&weir, &parts).unwrap_or_else(|| panic!("{name}: Weir did not close the connection"));
            assert_eq!(statuses(&response), ["400"], "{name}: {response}");
            assert!(response.contains("invalid chunk") && response.contains("Connection: close"), "{name}: {response}");
        }
    }
    let complete: Vec<_> = bodies.lock().unwrap().iter().flatten().cloned().collect();
    assert!(complete.is_empty(), "the provider got a complete body: {complete:?}");
    assert_eq!(provider.junk(), Vec::<String>::new());
    assert!(provider.heads().iter().all(|head| head.path.ends_with("bad")));
}

#[test]
fn extensions_and_trailers_do_not_reach_the_provider() {
    let sim = Sim::start();
    let (weir, provider, bodies) = start(&sim);
    let big = "x".repeat(100_000);
    let whole = format!("186a0;a=\"b\\\"c\" ; d\r\n{big}\r\n2\r\n0\r\r\n000;z\r\nTrailer: x\r\n\r\n");
    for cut in [0, 3, 10, 30, whole.len() / 2, whole.len() - 1] {
        let (first, second) = whole.split_at(cut);
        let behind = HIDDEN.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let response =
            exchange(&weir, &[format!("{}{first}", post("good")).as_bytes(), second.as_bytes(), behind.as_bytes()]);
        let response = response.expect("the connection ends with the second request");
        assert_eq!(statuses(&response), ["201", "200"], "the client's next request has its own response: {response}");
        assert_eq!(bodies.lock().unwrap().pop(), Some(Some(format!("{big}0\r").into_bytes())), "cut at {cut}");
    }
    assert_eq!(provider.junk(), Vec::<String>::new());
}

#[test]
fn a_request_behind_a_forwarded_one_gets_its_response() {
    let sim = Sim::start();
    let (weir, provider, _bodies) = start(&sim);
    let path = |name: &str| format!("/vectara{VECTARA_SESSION}/{name}");
    let key = "Host: a\r\nX-API-Key: open\r\n";
    let requests = [
        format!("POST {} HTTP/1.1\r\n{key}Content-Length: 5\r\n\r\nhello", path("one")),
        format!("GET {} HTTP/1.1\r\n{key}\r\n", path("two")),
        format!("{}2\r\nhi\r\n0\r\n\r\n", post("three")),
        format!("GET /v1/providers HTTP/1.1\r\n{key}\r\n"),
        format!("GET {} HTTP/1.1\r\n{key}Connection: close\r\n\r\n", path("four")),
    ];
    let response = exchange(&weir, &[requests.concat().as_bytes()]).expect("the last request closes the connection");
    assert_eq!(statuses(&response), ["201", "201", "201", "200", "201"], "{response}");
    let order: Vec<usize> =
        ["one", "two", "three", "four"].map(|name| response.find(&path(name)["/vectara".len()..]).unwrap()).to_vec();
    assert!(order.is_sorted(), "{response}");
    assert_eq!((provider.heads().len(), provider.junk().len()), (4, 0));
}
