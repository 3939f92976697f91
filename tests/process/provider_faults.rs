//! Faults of a provider: each gives the response of the error table, and Weir keeps working.

use crate::support::*;
use serde_json::{Value, json};

/// Starts Weir with short deadlines and breakers that never open.
fn start(sim: &Sim) -> Weir {
    let mut config = Config::shipped();
    for provider in ["vectara", "palantir", "agenthuman"] {
        let file = format!("providers/{provider}.yaml");
        config = config.edit(&file, "  timeout: 10s", "  timeout: 3s").edit(&file, "failures: 5", "failures: 1000000");
        if provider != "vectara" {
            continue;
        }
        config = config.edit(&file, "max_body: 4MiB", "max_body: 64KiB").edit(&file, "not_found: 5s", "not_found: 0s");
    }
    config.start(sim)
}

/// Returns a fault of the simulator: a response with this status, headers and body.
fn reply(status: u16, headers: Value, body: Value) -> Value {
    json!({ "kind": "answer", "status": status, "headers": headers, "body": body })
}

#[test]
fn each_provider_fault_gives_its_documented_status_and_code() {
    let sim = Sim::start();
    let weir = start(&sim);
    let no_session = json!({ "messages": ["Session ase_x not found."], "request_id": "r" });
    let no_agent = json!({ "messages": ["Agent agt_x not found."] });
    for (name, fault, status, code) in [
        ("garbage", reply(200, json!({}), json!("<html>not json</html>")), 502, "provider_invalid_response"),
        ("an empty body", reply(200, json!({}), json!("")), 502, "provider_invalid_response"),
        ("a list", reply(200, json!({}), json!([1, 2])), 502, "provider_invalid_response"),
        ("null", reply(200, json!({}), json!("null")), 502, "provider_invalid_response"),
        ("a truncated body", json!({ "kind": "truncate" }), 502, "provider_error"),
        ("5 MB", json!({ "kind": "oversize", "bytes": 5_000_000 }), 502, "provider_invalid_response"),
        ("a reset before the response", json!({ "kind": "reset" }), 502, "provider_error"),
        ("headers without a body", json!({ "kind": "hang" }), 504, "provider_timeout"),
        ("a slow body", json!({ "kind": "drip", "ms": 50 }), 504, "provider_timeout"),
        ("gzip", reply(200, json!({ "content-encoding": "gzip" }), json!("x")), 502, "provider_invalid_response"),
        ("a redirect", reply(302, json!({ "location": "http://127.0.0.1:1/" }), json!("")), 502, "provider_error"),
        ("500", reply(500, json!({}), json!({})), 502, "provider_error"),
        ("504", reply(504, json!({}), json!("")), 502, "provider_error"),
        ("418", reply(418, json!({}), json!({})), 502, "provider_error"),
        ("204", reply(204, json!({}), json!("")), 502, "provider_error"),
        ("an empty 404", reply(404, json!({}), json!("")), 502, "provider_error"),
        ("no such session", reply(404, json!({}), no_session), 404, "session_not_found"),
        ("no such agent", reply(404, json!({}), no_agent), 404, "agent_not_found"),
        ("400", reply(400, json!({}), json!({})), 400, "invalid_request"),
        ("422", reply(422, json!({}), json!({})), 400, "invalid_request"),
        ("401", reply(401, json!({}), json!({})), 502, "provider_auth_failed"),
        ("403", reply(403, json!({}), json!({})), 403, "forbidden"),
    ] {
        sim.clear_faults();
        sim.plan_fault("/v2/agents", 0, &fault);
        let response = weir.get(VECTARA);
        assert_eq!(response.code(), (status, code.into()), "{name}: {}", response.json());
        assert_eq!(response.json()["provider"], "vectara", "{name}");
        assert!(response.header("cache-status").unwrap().starts_with("weir; fwd=miss"), "{name}");
    }
    sim.clear_faults();
    assert_eq!(weir.get(VECTARA).status, 200, "Weir works after all faults");
}

#[test]
fn the_providers_error_bodies_map_to_problem_codes() {
    let sim = Sim::start();
    let weir = start(&sim);
    let agent = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
    for (target, status, code, words) in [
        (
            "/v1/sessions/vectara:agt_customer_support:ase_none_1".to_owned(),
            404,
            "session_not_found",
            "Session ase_none_1 not found.",
        ),
        ("/v1/sessions/vectara:agt_none:ase_none_1".into(), 404, "agent_not_found", "Agent agt_none not found."),
        ("/v1/agents/agt_none/sessions".into(), 404, "agent_not_found", "Agent agt_none"),
        (
            format!("/v1/agents/{agent}/sessions/ri.aip-agents..session.none"),
            404,
            "session_not_found",
            "SessionNotFound",
        ),
        ("/v1/agents/ri.aip-agents..agent.none/sessions".into(), 404, "agent_not_found", "AgentNotFound"),
        ("/v1/sessions/sess_none".into(), 404, "session_not_found", "Session not found"),
    ] {
        let response = weir.get(&target);
        assert_eq!(response.code(), (status, code.into()), "{target}");
        assert!(response.json()["detail"].as_str().unwrap().contains(words), "{}", response.json());
    }
    let palantir = |status: u16, name: &str| {
        sim.clear_faults();
        let body =
            json!({ "errorCode": "INVALID_ARGUMENT", "errorName": name, "errorInstanceId": "i", "parameters": {} });
        sim.set_response("/api/v2", status, &json!({}), &body.to_string());
        weir.get(PALANTIR).code()
    };
    assert_eq!(palantir(403, "ApiUsageDenied"), (403, "forbidden".into()));
    assert_eq!(palantir(400, "InvalidPageToken"), (400, "invalid_request".into()));
    assert_eq!(palantir(400, "SessionNotFound"), (404, "session_not_found".into()));
}

#[test]
fn a_throttled_response_pauses_the_provider_and_gives_its_retry_after() {
    for (headers, body, status, wait) in [
        (json!({ "retry-after": "7" }), json!({}), 429, 7),
        (json!({}), json!("slow down"), 429, 5),
        (json!({ "retry-after": "100000" }), json!({}), 429, 300),
    ] {
        let sim = Sim::start();
        let weir = start(&sim);
        sim.set_response("/v2/", status, &headers, &body.to_string());
        let response = weir.get(VECTARA);
        assert_eq!(response.code(), (503, "provider_rate_limited".into()));
        assert_eq!(response.header("retry-after"), Some(&*wait.to_string()));
        assert_eq!(
            response.json()["type"],
            "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
        );
        sim.clear_faults();
        let again = weir.get("/v1/agents/agt_load_1/sessions");
        assert_eq!(again.code(), (503, "provider_rate_limited".into()));
        let left: u64 = again.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=wait).contains(&left));
        assert_eq!(sim.calls(), 1, "no call during the pause");
        assert_eq!(weir.get(AGENTHUMAN).status, 200, "other providers still work");
    }
    let sim = Sim::start();
    let weir = start(&sim);
    sim.set_response("/api/v2", 400, &json!({}), &json!({ "errorName": "RateLimitExceeded" }).to_string());
    assert_eq!(weir.get(PALANTIR).code(), (503, "provider_rate_limited".into()));
}

#[test]
fn a_refused_connection_and_an_unknown_host_name_give_502() {
    let sim = Sim::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let weir = Config::shipped()
        .env("VECTARA_BASE_URL", &format!("http://{closed}"))
        .env("PALANTIR_BASE_URL", "https://nowhere.invalid")
        .start(&sim);
    let refused = weir.get(VECTARA);
    assert_eq!(refused.code(), (502, "provider_error".into()));
    assert_eq!(refused.json()["detail"], "vectara: the provider is unreachable");
    let unknown = weir.get(PALANTIR);
    assert_eq!(unknown.code(), (502, "provider_error".into()));
    assert_eq!(unknown.json()["detail"], "palantir: the provider is unreachable");
    assert!(
        weir.metric("weir_upstream_requests_total{operation=\"get_session\",provider=\"vectara\",status=\"connect\"}")
            >= 1.0
    );
    assert_eq!(weir.get(AGENTHUMAN).status, 200);
}

#[test]
fn a_call_that_fails_before_its_response_is_retried_once() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    sim.plan_fault("/v2/", 1, &json!({ "kind": "reset" }));
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(sim.calls(), 2);
    sim.reset_calls();
    sim.plan_fault("/v1/", 0, &json!({ "kind": "reset" }));
    assert_eq!(weir.get(AGENTHUMAN).code(), (502, "provider_error".into()));
    assert_eq!(sim.calls(), 2);
    sim.clear_faults();
    sim.reset_calls();
    // A call whose response began is not retried.
    sim.plan_fault("/api/", 0, &json!({ "kind": "truncate" }));
    assert_eq!(weir.get(PALANTIR).code(), (502, "provider_error".into()));
    assert_eq!(sim.calls(), 1);
}

#[test]
fn a_session_that_cannot_be_mapped_does_not_open_the_breaker() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    sim.set_response("ase_bad", 200, &json!({}), r#"{"key":"ase_bad","enabled":true}"#);
    for _ in 0..8 {
        assert_eq!(weir.get("/v1/sessions/vectara:agt_x:ase_bad").code(), (502, "provider_invalid_response".into()));
    }
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(
        weir.metric("weir_mapping_failures_total{field=\"agent.id\",provider=\"vectara\",reason=\"missing\"}"),
        8.0
    );
}

#[test]
fn the_wait_in_the_providers_queue_is_at_most_half_of_the_timeout() {
    let sim = Sim::start();
    let config = Config::shipped().edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 3s").edit(
        "providers/vectara.yaml",
        "concurrent: 64",
        "concurrent: 1",
    );
    let weir = std::sync::Arc::new(config.start(&sim));
    sim.plan_fault("/v2/", 0, &json!({ "kind": "hang" }));
    let first = weir.clone();
    let first = std::thread::spawn(move || first.get(VECTARA));
    wait_until("the first call is in flight", || sim.calls() == 1);
    let started = std::time::Instant::now();
    let second = weir.get("/v1/agents/agt_load_1/sessions");
    assert!(matches!(second.status, 503 | 504), "{}", second.json());
    assert_eq!(sim.calls(), 1, "the second request stays in the queue");
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
    assert_eq!(first.join().unwrap().status, 504);
}

#[test]
fn queued_requests_are_not_sent_after_a_throttled_response() {
    let sim = Sim::start();
    let weir = std::sync::Arc::new(
        Config::shipped().edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1").start(&sim),
    );
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 1500, "fault": { "kind": "answer", "status": 429, "headers": { "retry-after": "60" }, "body": "{}" } }));
    let callers: Vec<_> = (0..8)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || weir.get(&format!("/v1/agents/agt_load_{n}/sessions")))
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.join().unwrap().code(), (503, "provider_rate_limited".into()));
    }
    assert_eq!(sim.calls(), 1);
}

#[test]
fn a_provider_that_throttles_gets_no_calls_during_its_pause() {
    let sim = Sim::with_options(&["--throttle", "3"]);
    let weir = Config::shipped().start(&sim);
    // A new minute may start during the test, so the test sends more than twice the quota.
    let codes: Vec<u16> = (1..8).map(|n| weir.get(&format!("/v1/sessions/sess_SIM{n:08X}")).status).collect();
    assert!(codes.contains(&503), "{codes:?}");
    let calls = sim.calls();
    assert!((4..=7).contains(&calls), "{calls}");
    assert_eq!(weir.get("/v1/sessions/sess_SIM00000009").code(), (503, "provider_rate_limited".into()));
    assert_eq!(sim.calls(), calls);
}
