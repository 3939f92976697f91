//! Rate limits of clients: exact on one node.

use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Policies that refill no request while a test runs.
const POLICIES: &str = "\nrate_limits:\n  ten: { requests: 10, per: 1h }\n  three: { requests: 10, per: 1h, burst: 3 }\n  misses: { requests: 2, per: 1h, charge: misses }\n  standard: { requests: 600, per: 1m }\n  careful: { requests: 60, per: 1m, burst: 10 }\n";

fn start(sim: &Sim, clients: &str) -> Weir {
    let config = Config::shipped();
    let text = config.read("weir.yaml");
    config.write("weir.yaml", &(text.split("\nrate_limits:").next().unwrap().to_owned() + POLICIES));
    config.clients(clients).start(sim)
}

#[test]
fn a_limited_request_gets_429_with_the_documented_headers_and_problem() {
    let sim = Sim::start();
    let weir = start(&sim, "clients:\n  - { id: dashboards, keys: [ { sha256: SHA(k) } ], rate_limit: three }\n");
    for left in [2, 1, 0] {
        let response = weir.get_as("k", VECTARA);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("ratelimit-policy"), Some("\"three\";q=3;w=1080"));
        let limit = response.header("ratelimit").unwrap();
        assert!(limit.starts_with(&format!("\"three\";r={left};t=3")), "{limit}");
    }
    let refused = weir.get_as("k", VECTARA);
    assert_eq!(refused.code(), (429, "rate_limit_exceeded".into()));
    let problem = refused.json();
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((300..=360).contains(&wait), "{wait}");
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"three\";r=0;t={wait}")));
    assert_eq!(problem["retry_after"], wait);
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["title"], "Request rate limit exceeded");
    assert_eq!(problem["violated-policies"], serde_json::json!(["three"]));
    let words = "client \"dashboards\" exceeds policy \"three\" (10 requests per 3600 s, burst 3); try again in ";
    assert!(problem["detail"].as_str().unwrap().starts_with(words), "{problem}");
    assert_eq!(weir.get_as("k", "/v1/sessions/nonsense").status, 400, "malformed requests cost nothing");
    assert_eq!(
        weir.metric("weir_rate_limit_requests_total{client=\"dashboards\",decision=\"limited\",policy=\"three\"}"),
        1.0
    );
    assert_eq!(
        weir.metric("weir_rate_limit_requests_total{client=\"dashboards\",decision=\"allowed\",policy=\"three\"}"),
        3.0
    );
}

#[test]
fn concurrent_requests_are_admitted_exactly_up_to_the_burst() {
    let sim = Sim::start();
    let weir =
        Arc::new(start(&sim, "clients:\n  - { id: a, keys: [ { sha256: SHA(a) } ], rate_limit: [ten, standard] }\n"));
    let admitted = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (weir, admitted) = (weir.clone(), admitted.clone());
            std::thread::spawn(move || {
                for _ in 0..10 {
                    let status = weir.get_as("a", VECTARA).status;
                    assert!(matches!(status, 200 | 429));
                    admitted.fetch_add(usize::from(status == 200), Ordering::SeqCst);
                }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(admitted.load(Ordering::SeqCst), 10);
    let response = weir.get_as("a", VECTARA);
    let left = response.header("ratelimit").unwrap();
    let standard: u64 = left.split("\"standard\";r=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    assert!(standard >= 590, "a refusal by one policy costs nothing at the other: {left}");
}

#[test]
fn a_provider_rate_limit_applies_in_addition_and_only_to_that_provider() {
    let sim = Sim::start();
    let weir = start(
        &sim,
        "clients:\n  - { id: a, keys: [ { sha256: SHA(a) } ], rate_limit: ten, provider_rate_limits: { agenthuman: three } }\n  - { id: b, keys: [ { sha256: SHA(b) } ], rate_limit: ten }\n",
    );
    for _ in 0..3 {
        assert_eq!(weir.get_as("a", AGENTHUMAN).status, 200);
    }
    let refused = weir.get_as("a", AGENTHUMAN);
    assert_eq!((refused.status, refused.json()["violated-policies"].clone()), (429, serde_json::json!(["three"])));
    for _ in 0..7 {
        assert_eq!(weir.get_as("a", VECTARA).status, 200);
    }
    assert_eq!(weir.get_as("a", VECTARA).json()["violated-policies"], serde_json::json!(["ten"]));
    assert_eq!(weir.get_as("b", AGENTHUMAN).status, 200, "another client has its own buckets");
}

#[test]
fn a_policy_that_charges_misses_does_not_charge_hits() {
    let sim = Sim::start();
    let weir = start(&sim, "clients:\n  - { id: a, keys: [ { sha256: SHA(a) } ], rate_limit: misses }\n");
    for _ in 0..20 {
        assert_eq!(weir.get_as("a", VECTARA).status, 200);
    }
    assert_eq!(weir.get_as("a", AGENTHUMAN).status, 200);
    assert_eq!(weir.get_as("a", PALANTIR).status, 429);
    assert_eq!(weir.get_as("a", VECTARA).status, 200);
    assert_eq!(sim.calls(), 2);
}

#[test]
fn a_client_over_its_limit_can_read_the_providers_up_to_a_limit_of_their_own() {
    let sim = Sim::start();
    let weir = start(
        &sim,
        "clients:\n  - { id: k, keys: [ { sha256: SHA(k) } ], rate_limit: three }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n",
    );
    while weir.get_as("k", VECTARA).status == 200 {}
    let read = weir.get_as("k", "/v1/providers");
    assert_eq!((read.status, read.json()["providers"].as_array().unwrap().len()), (200, 3));
    assert!(read.header("ratelimit").unwrap().starts_with("\"three\";r=0;"), "{:?}", read.header("ratelimit"));
    let one = "GET /v1/providers HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\n\r\n";
    let last = one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let started = Instant::now();
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all((one.repeat(999) + &last).as_bytes()).unwrap();
    let mut responses = String::new();
    socket.read_to_string(&mut responses).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let (read, refused) = (responses.matches("HTTP/1.1 200 ").count(), responses.matches("HTTP/1.1 429 ").count());
    assert_eq!(read + refused, 1000);
    assert!(read >= 99 && read as f64 <= 100.0 * (1.0 + seconds), "{read} of 1,000 in {seconds} s");
    assert!(refused == 0 || responses.contains("\"violated-policies\":[\"provider_reads\"]"));
    assert_eq!(weir.get_as("other", "/v1/providers").status, 200, "another client has its own limit");
}
