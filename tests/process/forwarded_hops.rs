//! What a proxy says of its connection and of itself: `Connection`, `Via` and `Max-Forwards`, on forwarded requests.

use crate::scripted_provider::*;
use crate::support::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

const PATH: &str = "/agenthuman/v1/other";

/// Sends bytes and reads until the connection closes. The client does not close it first.
fn read_to_close(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(bytes).unwrap();
    let mut text = Vec::new();
    socket.read_to_end(&mut text).unwrap();
    String::from_utf8(text).unwrap().to_ascii_lowercase()
}

fn gateway(provider: &ScriptedProvider, sim: &Sim) -> Weir {
    unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url()).start(sim)
}

#[test]
fn a_response_before_an_early_close_says_close() {
    let sim = Sim::start();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &format!("http://{unused}")).start(&sim);
    for (version, more) in [("1.1", ""), ("1.0", "Connection: keep-alive\r\n")] {
        let head = format!("HTTP/{version}\r\nHost: h\r\nX-API-Key: open\r\n{more}");
        // 502: no provider.
        let text = read_to_close(weir.http, format!("GET {PATH} {head}\r\n").as_bytes());
        assert!(text.starts_with("http/1.1 502") && text.contains("connection: close\r\n"), "{text}");
        assert!(!text.contains("keep-alive"), "{text}");
        // 413 of Weir's own route, 431 and 408 (in `connection_limits`) close too.
        let large = format!("POST /v1/sessions {head}Content-Length: 999999\r\n\r\n");
        let text = read_to_close(weir.http, large.as_bytes());
        assert!(text.contains("connection: close\r\n") && !text.contains("keep-alive"), "{text}");
    }
    // 400: an invalid chunk.
    let provider = ScriptedProvider::start();
    provider.respond(200, "", b"{}");
    let weir = gateway(&provider, &sim);
    let chunk =
        format!("POST {PATH} HTTP/1.1\r\nHost: h\r\nX-API-Key: open\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    let text = read_to_close(weir.http, chunk.as_bytes());
    assert!(text.contains("connection: close\r\n") && !text.contains("keep-alive"), "{text}");
}

#[test]
fn a_request_pipelined_behind_a_forwarded_one_is_answered() {
    let sim = Sim::start();
    let provider = ScriptedProvider::start();
    provider.respond(200, "", b"{\"from\":\"provider\"}");
    let weir = gateway(&provider, &sim);
    let bodies = [
        ("GET", "\r\n"),
        ("POST", "Content-Length: 5\r\n\r\nhello"),
        ("POST", "Content-Length: 0\r\n\r\n"),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ];
    for (method, rest) in bodies {
        let first = format!("{method} {PATH} HTTP/1.1\r\nHost: h\r\nX-API-Key: open\r\n{rest}");
        let last = "GET /v1/providers HTTP/1.1\r\nHost: h\r\nX-API-Key: open\r\nConnection: close\r\n\r\n";
        let text = read_to_close(weir.http, format!("{first}{first}{last}").as_bytes());
        assert_eq!(text.matches("http/1.1 200").count(), 3, "{method} {rest:?}: {text}");
        assert_eq!(text.matches("{\"from\":\"provider\"}").count(), 2, "{text}");
        assert_eq!(text.matches("connection: close").count(), 1, "{text}");
        let heads = provider.take_heads();
        assert!(heads.len() == 2 && heads.iter().all(|head| head.contains("/v1/other ")), "{heads:?}");
    }
}

#[test]
fn options_with_max_forwards_0_is_not_forwarded_and_others_are_counted_down() {
    let sim = Sim::start();
    let provider = ScriptedProvider::start();
    provider.respond(200, "", b"");
    let weir = gateway(&provider, &sim);
    let options = |fields: &[(&str, &str)]| {
        let all = [&[("X-API-Key", "open")], fields].concat();
        send(weir.http, "OPTIONS", PATH, &all)
    };
    let own = options(&[("Max-Forwards", "0")]);
    assert_eq!((own.status, own.body.len()), (204, 0));
    assert!(own.header("allow").unwrap().contains("OPTIONS") && own.header("via").is_none());
    assert_eq!(provider.take_heads(), Vec::<String>::new());
    for (sent, forwarded) in [("1", "0"), ("10", "9"), ("x", "x")] {
        assert_eq!(options(&[("Max-Forwards", sent)]).status, 200);
        let head = provider.take_heads().concat();
        assert!(head.contains(&format!("max-forwards: {forwarded}\r\n")), "{sent}: {head}");
    }
    // The header means nothing for other methods, and TRACE is refused whatever it says.
    assert_eq!(send(weir.http, "GET", PATH, &[("X-API-Key", "open"), ("Max-Forwards", "0")]).status, 200);
    assert_eq!(provider.take_heads().len(), 1);
    assert_eq!(send(weir.http, "TRACE", PATH, &[("X-API-Key", "open"), ("Max-Forwards", "0")]).status, 405);
    // A key comes first.
    assert_eq!(send(weir.http, "OPTIONS", PATH, &[("Max-Forwards", "0")]).status, 401);
}

#[test]
fn via_names_weir_in_both_directions_behind_earlier_proxies() {
    let sim = Sim::start();
    let provider = ScriptedProvider::start();
    provider.respond(200, "Via: 1.1 theirs\r\n", b"{}");
    let weir = gateway(&provider, &sim);
    for (version, name) in [("1.1", "1.1 weir"), ("1.0", "1.0 weir")] {
        let request = format!(
            "GET {PATH} HTTP/{version}\r\nHost: h\r\nX-API-Key: open\r\nVia: 1.1 first\r\nConnection: close\r\n\r\n"
        );
        let text = read_to_close(weir.http, request.as_bytes());
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        let via: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("via: ")).collect();
        assert_eq!(via.join(", "), "1.1 theirs, 1.1 weir", "{text}");
        let head = provider.take_heads().concat();
        let via: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("via: ")).collect();
        assert_eq!(via.join(", "), format!("1.1 first, {name}"), "{head}");
    }
    // Weir's own answers were not forwarded.
    assert_eq!(weir.get(VECTARA).header("via"), None);
    assert_eq!(weir.get("/v1/providers").header("via"), None);
    assert_eq!(send(weir.http, "GET", PATH, &[]).header("via"), None, "401");
}
