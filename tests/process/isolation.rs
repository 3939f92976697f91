//! Tenant isolation: no client receives a response that was fetched with another credential.
//!
//! The test's provider writes the credential of each request into the sessions that it returns.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};

/// Each tenant and the credential that Weir sends for it.
const TENANTS: [(&str, &str); 5] =
    [("shared-1", "common"), ("shared-2", "common"), ("own-1", "one"), ("own-2", "two"), ("own-1-again", "one")];

/// Starts a provider that returns sessions whose name is the credential of the request.
fn start_echo_provider() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || serve_echo(socket.unwrap()));
        }
    });
    address
}

fn serve_echo(mut socket: std::net::TcpStream) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let path = head.split(' ').nth(1).unwrap();
        let credential = head.lines().find_map(|line| line.strip_prefix("x-api-key: ")).unwrap_or("none");
        let parts: Vec<&str> = path.split(['/', '?']).collect();
        let session = |id: &str| json!({ "key": id, "agent_key": parts[3], "name": credential, "enabled": true, "metadata": { "path": path } });
        let body = match parts.get(5).filter(|id| !id.contains('=')) {
            Some(id) => session(id),
            None => json!({ "sessions": [session("ase_1"), session("ase_2")], "metadata": {} }),
        };
        let body = body.to_string();
        // Other clients join the call during this time.
        std::thread::sleep(std::time::Duration::from_millis(5));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: \"same-for-all\"";
        if write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).is_err() {
            return;
        }
    }
}

fn random_below(random: &mut u64, limit: u64) -> usize {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from((*random >> 33) % limit).unwrap()
}

#[test]
fn every_response_was_fetched_with_the_credential_of_its_client() {
    let (sim, provider) = (Sim::start(), start_echo_provider());
    let mut clients = String::from("clients:\n");
    for (tenant, credential) in TENANTS {
        clients += &format!("  - {{ id: {tenant}, keys: [ {{ sha256: SHA({tenant}) }} ]");
        if credential != "common" {
            clients += &format!(", credentials: {{ vectara: {{ header: x-api-key, value: {credential} }} }}");
        }
        clients += " }\n";
    }
    let weir = Config::shipped()
        .clients(&clients)
        .env("VECTARA_BASE_URL", &format!("http://{provider}"))
        .env("VECTARA_API_KEY", "common")
        .edit("providers/vectara.yaml", "default: 30s ", "default: 200ms ")
        .edit("weir.yaml", "max_bytes: 256MiB", "max_bytes: 64KiB")
        .start(&sim);
    let text = weir.config.read("weir.yaml");
    let shared = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|seed| {
                scope.spawn({
                    let weir = &weir;
                    move || send_random_requests(weir, seed)
                })
            })
            .collect();
        for n in 0..8 {
            weir.config.write("weir.yaml", &format!("{text}# {n}\n"));
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        let shared = senders.into_iter().map(|sender| sender.join().unwrap());
        shared.fold((0, 0), |all, own| (all.0 + own.0, all.1 + own.1))
    });
    assert!(shared.0 > 200 && shared.1 > 5, "{shared:?} hits and coalesced requests: too few for the test");
}

/// Sends random requests and checks each response. Returns the number of cache hits and of coalesced requests.
fn send_random_requests(weir: &Weir, seed: u64) -> (u64, u64) {
    let (mut random, mut shared, mut tags) = (seed + 7, (0, 0), vec![(String::from("\"none\""), "none")]);
    for n in 0..400 {
        let (tenant, credential) = TENANTS[random_below(&mut random, 5)];
        let id = random_below(&mut random, 6);
        let target = match random_below(&mut random, 4) {
            0 => format!("/v1/agents/agt_{}/sessions?limit=2", id % 2),
            1 => format!("/v1/sessions/vectara:agt_1:ase_{id}?include=native"),
            _ => format!("/v1/sessions/vectara:agt_1:ase_{id}"),
        };
        let (tag, tag_credential) = tags[random_below(&mut random, tags.len() as u64)].clone();
        let headers = match random_below(&mut random, 6) {
            0 => vec![("Cache-Control", "no-cache")],
            1 => vec![("Cache-Control", "no-store")],
            2 => vec![("If-None-Match", &*tag)],
            _ => Vec::new(),
        };
        let mut all = vec![("X-API-Key", tenant)];
        all.extend(&headers);
        let response = send(weir.http, "GET", &target, &all);
        let context = format!("{n}: {tenant} {target} {headers:?}: {}", String::from_utf8_lossy(&response.body));
        let cache_status = response.header("cache-status").unwrap_or_default();
        shared.0 += u64::from(cache_status.contains("hit"));
        shared.1 += u64::from(cache_status.contains("collapsed"));
        if response.status == 304 {
            assert_eq!(tag_credential, credential, "{context}: 304 for an entity tag of another credential");
            continue;
        }
        assert_eq!(response.status, 200, "{context}");
        let body = response.json();
        let sessions: Vec<&Value> = body["sessions"].as_array().map_or(vec![&body], |all| all.iter().collect());
        for session in sessions {
            assert_eq!(session["title"], credential, "{context}");
            assert!(session["native"].is_null() || session["native"]["name"] == credential, "{context}");
        }
        if let Some(tag) = response.header("etag").filter(|_| tags.len() < 40) {
            tags.push((tag.to_owned(), credential));
        }
        if random_below(&mut random, 40) == 0 {
            weir.make_stale();
        }
    }
    shared
}
