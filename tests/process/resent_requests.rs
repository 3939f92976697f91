//! How often a provider gets a request whose connection breaks, and what a closed connection costs the next request.

use crate::native_client::VECTARA_SESSION;
use crate::strict_provider::*;
use crate::support::*;
use std::thread;
use std::time::Duration;

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";
const POOLED: usize = 6;

fn start(provider: &StrictProvider, sim: &Sim) -> Weir {
    Config::shipped().clients(CLIENTS).env("VECTARA_BASE_URL", &provider.url()).start(sim)
}

fn path(name: &str) -> String {
    format!("/vectara{VECTARA_SESSION}/events/{name}")
}

fn send(weir: &Weir, method: &str, name: &str) -> u16 {
    let length = if matches!(method, "PUT" | "POST") { &[("content-length", "0")][..] } else { &[] };
    let headers = [&[("x-api-key", "open"), ("connection", "close")], length].concat();
    send_bytes(weir.http, &request(method, &path(name), &headers)).status
}

/// Fills the pool with connections that have carried a request.
fn warm(weir: &Weir, provider: &StrictProvider) {
    thread::scope(|scope| {
        for number in 0..POOLED {
            scope.spawn(move || assert_eq!(send(weir, "GET", &format!("warm{number}")), 200));
        }
    });
    assert!(!provider.heads().is_empty());
}

#[test]
fn a_request_whose_reused_connection_breaks_is_sent_once_more_at_most() {
    let provider = StrictProvider::start(|head, connection| match head.path.rsplit('/').next().unwrap() {
        warm if warm.starts_with("warm") => {
            thread::sleep(Duration::from_millis(50));
            connection.respond("200 OK", "[]")
        }
        // Then the connection closes.
        name => {
            connection.write(match name {
                "interim" => "HTTP/1.1 103 Early Hints\r\n\r\n",
                "continue" => "HTTP/1.1 100 Continue\r\n\r\n",
                "part" => "HTTP/1.1 2",
                "head" => "HTTP/1.1 200 OK\r\nContent-Le",
                _ => "",
            });
            false
        }
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for method in ["GET", "HEAD", "DELETE", "PUT", "OPTIONS", "POST", "PATCH"] {
        for name in ["closes", "interim", "continue", "part", "head"] {
            warm(&weir, &provider);
            let before = provider.connections(name).len();
            let status = send(&weir, method, name);
            let sent = provider.connections(name).split_off(before);
            let most = if name == "closes" && !matches!(method, "POST" | "PATCH") { 2 } else { 1 };
            assert_eq!((status, sent.len()), (502, most), "{method} {name}: {sent:?}");
        }
    }
}

#[test]
fn connections_that_the_provider_has_closed_cost_no_request() {
    let provider = StrictProvider::start(|head, connection| {
        thread::sleep(Duration::from_millis(50));
        connection.respond("200 OK", "[]") && !head.path.ends_with("last")
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    // Not POST: it may not be sent twice, so it can meet a connection whose end has not been noticed yet.
    for method in ["GET", "DELETE", "PUT"] {
        // The connections close while they are idle. Their pool notices that, or the request is sent again.
        thread::scope(|scope| {
            (0..POOLED).for_each(|_| drop(scope.spawn(|| assert_eq!(send(&weir, "GET", "last"), 200))));
        });
        assert_eq!(send(&weir, method, "next"), 200, "{method}");
    }
}

#[test]
fn a_connection_that_one_of_two_connection_lines_closes_is_not_used_again() {
    let provider = StrictProvider::start(|_, connection| {
        connection.write(
            "HTTP/1.1 404 Not Found\r\nConnection: keep-alive\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        )
    });
    let sim = Sim::start();
    let weir = start(&provider, &sim);
    for number in 0..4 {
        let id = format!("/v1/sessions/vectara%3Aagt_a%3Aase_{number}");
        assert_eq!(weir.get_as("open", &id).status, 404);
        assert_eq!(send(&weir, "GET", &format!("e{number}")), 404);
    }
    let connections = provider.connections("");
    assert!(connections.windows(2).all(|two| two[0] != two[1]), "{connections:?}");
}
