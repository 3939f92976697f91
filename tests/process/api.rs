//! Tests of the HTTP API: problems, authentication, headers and conditional requests.

use crate::support::*;
use serde_json::json;

#[test]
fn malformed_requests_are_refused_before_any_provider_call() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    for (target, status, code) in [
        ("/v1/sessions/ase_1", 400, "invalid_request"),
        ("/v1/sessions/vectara:a%2Fb:ase_1", 400, "invalid_request"),
        ("/v1/sessions/vectara:..:ase_1", 400, "invalid_request"),
        ("/v1/agents/agt_a/sessions/ase_1?provider=agenthuman", 400, "invalid_request"),
        ("/v1/agents/agt_a/sessions?limit=0", 400, "invalid_request"),
        ("/v1/agents/agt_a/sessions?limit=1000", 400, "invalid_request"),
        ("/v1/agents/agt_a/sessions?page_token=forged", 400, "invalid_request"),
        ("/v1/agents/ri.aip-agents..agent.x/sessions?enabled=true", 400, "invalid_request"),
        ("/v1/sessions", 400, "invalid_request"),
        ("/v1/sessions?provider=vectara", 400, "invalid_request"),
        ("/v1/sessions/nobody:x", 404, "provider_not_found"),
        ("/v1/agents/agt_a/sessions?provider=nobody", 404, "provider_not_found"),
        ("/nowhere", 404, "not_found"),
        ("/v1/sessions/vectara:agt_a", 400, "invalid_request"),
    ] {
        let response = weir.get(target);
        assert_eq!(response.code(), (status, code.to_owned()), "{target}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        let problem = response.json();
        assert_eq!(problem["request_id"].as_str(), response.header("x-request-id"));
        assert_eq!(problem["type"], "about:blank");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    let long_target = format!("/v1/sessions/{}", "x".repeat(9000));
    assert_eq!(weir.get(&long_target).code(), (414, "request_too_large".into()));
    let many: Vec<(String, String)> = (0..120).map(|n| (format!("X-{n}"), "y".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(weir.get_with(AGENTHUMAN, &many).code(), (431, "request_too_large".into()));
    let big = "y".repeat(70_000);
    assert_eq!(weir.get_with(AGENTHUMAN, &[("X-Big", &big)]).code(), (431, "request_too_large".into()));
    assert_eq!(sim.calls(), 0);
}

#[test]
fn keys_are_checked_and_clients_limited_to_their_providers() {
    let sim = Sim::start();
    let config = Config::shipped().clients(
        "clients:\n  - { id: one, keys: [ { sha256: SHA(one) }, { sha256: SHA(old), expires_at: 2020-01-01T00:00:00Z } ], providers: [vectara] }\n",
    );
    let weir = config.start(&sim);
    let get_with = |headers: &[(&str, &str)]| send(weir.http, "GET", VECTARA, headers);
    for headers in [
        &[("X-API-Key", "one")][..],
        &[("Authorization", "Bearer one")],
        &[("X-API-Key", "one"), ("Authorization", "Bearer one")],
    ] {
        assert_eq!(get_with(headers).status, 200);
    }
    for headers in [&[][..], &[("X-API-Key", "wrong")], &[("X-API-Key", "old")], &[("Authorization", "Basic one")]] {
        let response = get_with(headers);
        assert_eq!(response.code(), (401, "unauthorized".into()));
        assert_eq!(response.header("www-authenticate"), Some("Bearer realm=\"weir\""));
        assert_eq!(response.header("ratelimit"), None);
    }
    assert_eq!(
        get_with(&[("X-API-Key", "one"), ("Authorization", "Bearer two")]).code(),
        (400, "invalid_request".into())
    );
    let forbidden = weir.get_as("one", AGENTHUMAN);
    assert_eq!(forbidden.code(), (403, "forbidden".into()));
    assert_eq!(forbidden.json()["provider"], "agenthuman");
    let providers = weir.get_as("one", "/v1/providers").json();
    assert_eq!(providers["providers"].as_array().unwrap().len(), 1);
    assert_eq!(providers["providers"][0]["name"], "vectara");
    assert_eq!(sim.calls(), 1);
}

#[test]
fn head_is_get_without_a_body_and_other_methods_are_405() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let get = weir.get(AGENTHUMAN);
    let head = send(weir.http, "HEAD", AGENTHUMAN, &[("X-API-Key", "open")]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(&*get.body.len().to_string()));
    assert_eq!(head.header("etag"), get.header("etag"));
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        let response = send(weir.http, method, AGENTHUMAN, &[("X-API-Key", "open"), ("Content-Length", "0")]);
        assert_eq!(response.code(), (405, "method_not_allowed".into()), "{method}");
        assert_eq!(response.header("allow"), Some("GET, HEAD"));
    }
    let mut with_body = request("POST", AGENTHUMAN, &[("X-API-Key", "open"), ("Content-Length", "10000")]);
    with_body.extend(vec![b'x'; 1000]);
    assert_eq!(send_bytes(weir.http, &with_body).status, 405);
    let large = request("POST", AGENTHUMAN, &[("X-API-Key", "open"), ("Content-Length", "1000000")]);
    assert_eq!(send_bytes(weir.http, &large).code(), (413, "request_too_large".into()));
    assert_eq!(weir.get(AGENTHUMAN).status, 200);
}

#[test]
fn a_valid_request_id_is_kept_and_any_other_replaced() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let id = |sent: &str| {
        weir.get_with("/v1/providers", &[("X-Request-Id", sent)]).header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("my-id_1.2~3:4"), "my-id_1.2~3:4");
    let long = "x".repeat(129);
    for bad in ["a b", "a\"b", "é", &long, "<script>"] {
        assert_ne!(id(bad), bad);
    }
    assert_ne!(id(""), id(""));
}

#[test]
fn responses_carry_caching_headers_and_a_matching_tag_gets_304() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let miss = weir.get(AGENTHUMAN);
    assert_eq!(miss.header("cache-status"), Some("weir; fwd=miss; stored; detail=status"));
    assert_eq!(miss.header("cache-control"), Some("private, max-age=86400"));
    assert_eq!(miss.header("vary"), Some("Authorization, X-API-Key, X-Weir-Key, Accept-Encoding"));
    let hit = weir.get(AGENTHUMAN);
    let status = hit.header("cache-status").unwrap();
    assert!(status.starts_with("weir; hit; ttl=86") && status.ends_with("; detail=status"), "{status}");
    assert!(hit.header("age").unwrap().parse::<u64>().unwrap() < 30);
    assert_eq!(hit.header("cache-control"), Some("private, max-age=86400"));
    let tag = hit.header("etag").unwrap();
    assert!(tag.starts_with('"') && tag.len() == 24, "{tag} is not a strong tag");
    for sent in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".into()] {
        let not_modified = weir.get_with(AGENTHUMAN, &[("If-None-Match", &sent)]);
        assert_eq!((not_modified.status, not_modified.body.len()), (304, 0), "{sent}");
        assert_eq!(not_modified.header("etag"), Some(tag));
        assert!(not_modified.header("cache-control").is_some() && not_modified.header("cache-status").is_some());
        assert_eq!(not_modified.header("content-length"), None);
    }
    assert_eq!(weir.get_with(AGENTHUMAN, &[("If-None-Match", "\"other\"")]).status, 200);
    assert_eq!(sim.calls(), 1);
}

#[test]
fn cache_control_of_requests_is_obeyed() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let get = |directive: &str| weir.get_with(AGENTHUMAN, &[("Cache-Control", directive)]);
    assert_eq!(get("only-if-cached").code(), (504, "not_cached".into()));
    assert_eq!(get("no-store").header("cache-status"), Some("weir; fwd=request; detail=request-no-store"));
    assert_eq!(get("only-if-cached").status, 504, "no-store stored nothing");
    assert_eq!(sim.calls(), 1);
    assert_eq!(get("").status, 200);
    assert_eq!(get("only-if-cached").status, 200);
    assert_eq!(sim.calls(), 2);
    assert_eq!(get("no-cache").header("cache-status"), Some("weir; fwd=request; stored; detail=status"));
    assert_eq!(sim.calls(), 3);
    assert!(get("max-age=600").header("cache-status").unwrap().starts_with("weir; hit"));
    assert_eq!(get("min-fresh=999999").status, 200);
    assert_eq!(sim.calls(), 4);
}

#[test]
fn the_providers_list_shows_operations_and_current_state() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let state = |name: &str| {
        let all = weir.get("/v1/providers").json();
        let row = all["providers"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone();
        (row["state"].as_str().unwrap().to_owned(), row["retry_at"].is_string(), row["operations"].clone())
    };
    let both = json!(["get_session", "list_sessions"]);
    assert_eq!(state("vectara"), ("ok".into(), false, both.clone()));
    sim.set_response("/v2/", 429, &json!({ "retry-after": "60" }), "{}");
    assert_eq!(weir.get(VECTARA).status, 503);
    assert_eq!(state("vectara"), ("degraded".into(), true, both.clone()));
    assert_eq!(weir.metric("weir_upstream_throttled{provider=\"vectara\"}"), 1.0);
    sim.set_response("/v1/sessions", 500, &json!({}), "{}");
    for n in 0..5 {
        assert_eq!(weir.get(&format!("/v1/sessions/{}", n + 1)).code(), (502, "provider_error".into()));
    }
    assert_eq!(weir.get("/v1/sessions/9").code(), (503, "provider_unavailable".into()));
    assert_eq!(state("agenthuman"), ("down".into(), true, both.clone()));
    assert_eq!(weir.metric("weir_upstream_breaker_open{provider=\"agenthuman\"}"), 1.0);
    assert_eq!(state("palantir"), ("ok".into(), false, both));
}

#[test]
fn an_incomplete_request_header_gets_408() {
    use std::io::{Read, Write};
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "header_timeout: 10s", "header_timeout: 1s").start(&sim);
    let mut slow = std::net::TcpStream::connect(weir.http).unwrap();
    slow.set_read_timeout(Some(MAX_WAIT)).unwrap();
    slow.write_all(b"GET /v1/providers HTTP/1.1\r\nHost: t\r\nX-API").unwrap();
    let mut response = String::new();
    slow.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("\"code\":\"request_timeout\""), "{response}");
    // A header in several pieces is accepted if it is complete in time.
    let mut pieces = std::net::TcpStream::connect(weir.http).unwrap();
    pieces.set_read_timeout(Some(MAX_WAIT)).unwrap();
    for piece in ["GET /v1/providers HT", "TP/1.1\r\nHost: t\r\nConnection: close\r\nX-API-Key: op", "en\r\n\r\n"] {
        pieces.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut response = String::new();
    pieces.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}
