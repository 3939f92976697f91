//! Whose answer is whose: a provider that says in every session with which credential it was asked.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};

/// Tenants and the credential that each asks with.
const TENANTS: [(&str, &str); 5] =
    [("shared-1", "common"), ("shared-2", "common"), ("own-1", "one"), ("own-2", "two"), ("own-1-again", "one")];

/// Answers every session and list with the credential it was shown, for as long as the test runs.
fn telling() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || tell(socket.unwrap()));
        }
    });
    address
}

fn tell(mut socket: std::net::TcpStream) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let path = head.split(' ').nth(1).unwrap();
        let shown = head.lines().find_map(|line| line.strip_prefix("x-api-key: ")).unwrap_or("nobody");
        let parts: Vec<&str> = path.split(['/', '?']).collect();
        let session = |id: &str| json!({ "key": id, "agent_key": parts[3], "name": shown, "enabled": true, "metadata": { "path": path } });
        let body = match parts.get(5).filter(|id| !id.contains('=')) {
            Some(id) => session(id),
            None => json!({ "sessions": [session("ase_1"), session("ase_2")], "metadata": {} }),
        };
        let body = body.to_string();
        // Long enough for others to come while it is under way.
        std::thread::sleep(std::time::Duration::from_millis(5));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: \"same-for-all\"";
        if write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).is_err() {
            return;
        }
    }
}

fn next(random: &mut u64, below: u64) -> usize {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from((*random >> 33) % below).unwrap()
}

#[test]
fn every_answer_is_of_the_credential_it_was_asked_with() {
    let (sim, provider) = (Sim::start(), telling());
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
        let askers: Vec<_> = (0..8)
            .map(|seed| {
                scope.spawn({
                    let weir = &weir;
                    move || ask(weir, seed)
                })
            })
            .collect();
        for n in 0..8 {
            weir.config.write("weir.yaml", &format!("{text}# {n}\n"));
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        let shared = askers.into_iter().map(|asker| asker.join().unwrap());
        shared.fold((0, 0), |all, own| (all.0 + own.0, all.1 + own.1))
    });
    assert!(shared.0 > 200 && shared.1 > 5, "{shared:?} hits and collapsed: something was shared");
}

/// Asks at random and judges every answer; how many were hits, and how many came of another's call.
fn ask(weir: &Weir, seed: u64) -> (u64, u64) {
    let (mut random, mut shared, mut tags) = (seed + 7, (0, 0), vec![(String::from("\"none\""), "nobody")]);
    for n in 0..400 {
        let (tenant, credential) = TENANTS[next(&mut random, 5)];
        let id = next(&mut random, 6);
        let target = match next(&mut random, 4) {
            0 => format!("/v1/agents/agt_{}/sessions?limit=2", id % 2),
            1 => format!("/v1/sessions/vectara:agt_1:ase_{id}?include=native"),
            _ => format!("/v1/sessions/vectara:agt_1:ase_{id}"),
        };
        let (tag, whose) = tags[next(&mut random, tags.len() as u64)].clone();
        let headers = match next(&mut random, 6) {
            0 => vec![("Cache-Control", "no-cache")],
            1 => vec![("Cache-Control", "no-store")],
            2 => vec![("If-None-Match", &*tag)],
            _ => Vec::new(),
        };
        let mut all = vec![("X-API-Key", tenant)];
        all.extend(&headers);
        let answer = send(weir.http, "GET", &target, &all);
        let told = format!("{n}: {tenant} {target} {headers:?}: {}", String::from_utf8_lossy(&answer.body));
        let status = answer.header("cache-status").unwrap_or_default();
        shared.0 += u64::from(status.contains("hit"));
        shared.1 += u64::from(status.contains("collapsed"));
        if answer.status == 304 {
            assert_eq!(whose, credential, "{told}: 304 says that it has what another was given");
            continue;
        }
        assert_eq!(answer.status, 200, "{told}");
        let body = answer.json();
        let sessions: Vec<&Value> = body["sessions"].as_array().map_or(vec![&body], |all| all.iter().collect());
        for session in sessions {
            assert_eq!(session["title"], credential, "{told}");
            assert!(session["native"].is_null() || session["native"]["name"] == credential, "{told}");
        }
        if let Some(tag) = answer.header("etag").filter(|_| tags.len() < 40) {
            tags.push((tag.to_owned(), credential));
        }
        if next(&mut random, 40) == 0 {
            weir.make_stale();
        }
    }
    shared
}
