//! Native errors: Weir's errors have the format of the provider; the provider's errors pass unchanged.

use crate::native_client::*;
use crate::support::*;
use serde_json::json;
use std::net::TcpListener;

#[test]
fn weirs_errors_have_the_providers_format_and_the_providers_errors_pass_unchanged() {
    let sim = Sim::start();
    let config = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: once, keys: [ { sha256: SHA(once) } ], rate_limit: once }\n  - { id: plain, keys: [ { sha256: SHA(plain) } ], native: false }\n  - { id: some, keys: [ { sha256: SHA(some) } ], providers: [vectara] }\n")
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  once:\n    requests: 1\n    per: 1h\n");
    let weir = config.start(&sim);
    // 401: no key.
    let get_without_key = |path: &str| send(weir.http, "GET", path, &[]);
    let (v, p, a) = (
        get_without_key(&format!("/vectara{VECTARA_SESSION}")),
        get_without_key(&format!("/palantir{PALANTIR_SESSION}")),
        get_without_key("/agenthuman/v1/usage"),
    );
    assert_eq!((v.status, p.status, a.status), (401, 401, 401));
    assert!(v.json()["messages"][0].as_str().unwrap().contains("missing API key"));
    assert_eq!(v.json()["request_id"], v.header("x-request-id").unwrap());
    assert_eq!(
        (&p.json()["errorCode"], &p.json()["errorName"]),
        (&json!("UNAUTHORIZED"), &json!("Default:Unauthorized"))
    );
    assert!(p.json()["errorInstanceId"].as_str().unwrap().len() == 36 && p.json()["parameters"].is_object());
    assert_eq!((&a.json()["success"], &a.json()["error"]["code"]), (&json!(false), &json!("unauthorized")));
    // 403: the client may not use native routes, or not this provider.
    let plain = weir.get_as("plain", &format!("/vectara{VECTARA_SESSION}"));
    assert_eq!(plain.status, 403);
    assert!(plain.json()["messages"][0].as_str().unwrap().contains("native: false"));
    assert_eq!(weir.get_as("plain", VECTARA).status, 200, "the client may use the unified API");
    assert_eq!(weir.get_as("some", "/palantir/x").json()["errorCode"], "PERMISSION_DENIED");
    // 429: the client's own limit. The header tells the SDK not to retry.
    assert_eq!(weir.get_as("once", "/palantir/api/v2/x?preview=true").status, 404);
    let limited = weir.get_as("once", &format!("/palantir{PALANTIR_SESSION}"));
    assert_eq!((limited.status, limited.header("qos-retry-hint")), (429, Some("do-not-retry")));
    assert!(limited.header("retry-after").unwrap().parse::<u64>().unwrap() > 3000);
    assert!(limited.header("ratelimit").unwrap().starts_with("\"once\";r=0"));
    let limited = weir.get_as("once", &format!("/agenthuman{AGENTHUMAN_SESSION}"));
    assert_eq!(
        (limited.status, limited.json()["error"]["code"].clone(), limited.header("qos-retry-hint")),
        (429, json!("rate_limit_exceeded"), None)
    );
    // The provider's errors pass unchanged, on reads that Weir caches and on requests that it forwards.
    let missing = vectara(&weir, "GET", "/v2/agents/agt_load_1/sessions/ase_none_1", None);
    let direct = send(sim.address, "GET", "/v2/agents/agt_load_1/sessions/ase_none_1", &[("x-api-key", "zut_sim")]);
    assert_eq!((missing.status, &missing.body), (404, &direct.body));
    let missing = palantir(&weir, "GET", &format!("{PALANTIR_AGENT}/sessions/none?preview=true"), None);
    assert_eq!((missing.status, missing.json()["errorName"].clone()), (404, json!("SessionNotFound")));
    for _ in 0..2 {
        assert_eq!(
            palantir(&weir, "GET", &format!("{PALANTIR_AGENT}/sessions/none?preview=true"), None).body,
            missing.body
        );
    }
    for (status, body) in [
        (500, "{\"messages\":[\"oh\"]}"),
        (418, "teapot"),
        (400, "{\"field_errors\":{}}"),
        (403, "{\"messages\":[\"no\"]}"),
    ] {
        sim.clear_faults();
        sim.set_response("/v2/", status, &json!({ "x-own": "kept", "set-cookie": "a=b" }), body);
        for target in [VECTARA_SESSION.to_owned(), format!("{VECTARA_SESSION}/events")] {
            let error = vectara(&weir, "GET", &target, None);
            assert_eq!((error.status, &*error.body), (status, body.as_bytes()), "{target}");
            assert_eq!((error.header("x-own"), error.header("set-cookie")), (Some("kept"), None), "{target}");
        }
    }
    // A 401 of the provider concerns Weir's credential and not the client's key, so the client gets 502.
    sim.clear_faults();
    sim.set_response("/v2/", 401, &json!({}), "{\"messages\":[\"bad key\"]}");
    for target in [VECTARA_SESSION.to_owned(), format!("{VECTARA_SESSION}/events")] {
        let refused = vectara(&weir, "GET", &target, None);
        assert_eq!(refused.status, 502, "{target}");
        assert!(refused.json()["messages"][0].as_str().unwrap().contains("refused Weir's credential"), "{target}");
    }
}

#[test]
fn a_429_on_a_forwarded_request_pauses_the_provider_for_all_requests() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    sim.set_response("/api/v2", 429, &json!({ "retry-after": "30" }), "slow down");
    let first = palantir(&weir, "POST", &format!("{PALANTIR_SESSION}/blockingContinue?preview=true"), Some(&json!({})));
    assert_eq!((first.status, &*first.body, first.header("retry-after")), (429, &b"slow down"[..], Some("30")));
    sim.clear_faults();
    let paused = palantir(&weir, "GET", &format!("{PALANTIR_SESSION}/content?preview=true"), None);
    assert_eq!((paused.status, paused.json()["errorName"].clone()), (503, json!("Weir:ProviderRateLimited")));
    assert_eq!(paused.header("qos-retry-hint"), Some("do-not-retry"));
    assert_eq!(weir.get(PALANTIR).code(), (503, "provider_rate_limited".into()), "also in the unified API");
    assert_eq!(sim.calls(), 1);
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"native\",provider=\"palantir\",status=\"429\"}"),
        1.0
    );
}

#[test]
fn an_unreachable_provider_gives_an_error_in_the_providers_format() {
    let sim = Sim::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let weir = Config::shipped()
        .env("VECTARA_BASE_URL", &format!("http://{closed}"))
        .edit("providers/palantir.yaml", "idle_timeout: 5m", "idle_timeout: 1s")
        .start(&sim);
    let unreachable = vectara(&weir, "GET", "/v2/anything", None);
    assert_eq!(unreachable.status, 502);
    // The client learns that the provider is unreachable, and not where it is.
    let message = unreachable.json()["messages"][0].as_str().unwrap().to_owned();
    assert!(message.contains("unreachable") && !message.contains(&closed.port().to_string()), "{message}");
    sim.plan_fault("/api/v2", 0, &json!({ "kind": "reset" }));
    let reset = palantir(&weir, "POST", &format!("{PALANTIR_SESSION}/cancel?preview=true"), Some(&json!({})));
    assert_eq!((reset.status, reset.json()["errorCode"].clone()), (502, json!("INTERNAL")));
    assert_eq!(sim.calls(), 1, "a POST is not retried");
    sim.clear_faults();
    sim.plan(&json!({ "path": "/api/v2", "latency_ms": 20_000 }));
    let silent = palantir(&weir, "GET", &format!("{PALANTIR_SESSION}/content?preview=true"), None);
    assert_eq!(silent.status, 504, "{}", silent.json());
}
