//! Responses that have no body by their status: the client gets no length and no coding that promises one.

use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

#[test]
fn a_204_has_neither_length_nor_coding_and_the_next_response_is_whole() {
    let provider = StrictProvider::start(|head, connection| {
        let name = head.path.rsplit('/').next().unwrap();
        let (status, field) = name.split_once('-').unwrap_or(("200", "length"));
        let field = match field {
            "chunked" => "Transfer-Encoding: chunked\r\n",
            "zero" => "Content-Length: 0\r\n",
            "five" => "Content-Length: 5\r\n",
            "length" => return connection.respond("200 OK", "[next]"),
            _ => "",
        };
        connection.write(format!("HTTP/1.1 {status} X\r\n{field}ETag: \"a\"\r\n\r\n"))
    });
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).env("VECTARA_BASE_URL", &provider.url()).start(&sim);
    for version in ["1.1", "1.0"] {
        for method in ["GET", "DELETE", "POST", "HEAD"] {
            for name in ["204-chunked", "204-zero", "204-five", "204-none", "304-chunked", "304-none", "304-five"] {
                let get = |method: &str, name: &str, end: &str| {
                    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
                    format!(
                        "{method} /vectara{VECTARA_SESSION}/events/{name} HTTP/{version}\r\nHost: x\r\nX-API-Key: open\r\nIf-None-Match: \"a\"\r\n{length}Connection: {end}\r\n\r\n"
                    )
                };
                let mut socket = TcpStream::connect(weir.http).unwrap();
                socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
                let case = format!("{method} {name} HTTP/{version}");
                socket.write_all((get(method, name, "keep-alive") + &get("GET", "next", "close")).as_bytes()).unwrap();
                let mut text = String::new();
                socket.read_to_string(&mut text).unwrap();
                let (first, rest) = text.split_once("\r\n\r\n").unwrap();
                let first = first.to_ascii_lowercase();
                assert!(first.contains(&format!(" {} ", &name[..3])), "{case}: {text}");
                assert!(!first.contains("transfer-encoding"), "{case}: {first}");
                assert!(name.starts_with("304") || !first.contains("content-length"), "{case}: {first}");
                assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("[next]"), "{case}: {rest}");
            }
        }
    }
}
