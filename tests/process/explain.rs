//! Requests explained to who may have it: `Weir-Explain`.

use crate::support::*;
use serde_json::{Value, json};

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], explain: true, rate_limit: standard }\n  - { id: plain, keys: [ { sha256: SHA(plain) } ], rate_limit: standard }\n";

fn explained(weir: &Weir, target: &str) -> Value {
    let answer = weir.get_with(target, &[("Weir-Explain", "1")]);
    assert_eq!(answer.header("content-type"), Some("application/json"), "{target}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{target}");
    assert!(answer.header("vary").unwrap().contains("weir-explain"), "{target}");
    let told = answer.json();
    assert_eq!(told["status"], answer.status, "{target}");
    assert_eq!(told["explain"]["request_id"].as_str(), answer.header("x-request-id"), "{target}");
    told
}

fn field<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let fields = answer["mapping"]["ways"][0]["fields"].as_array().unwrap();
    fields.iter().find(|field| field["field"] == name).unwrap()
}

#[test]
fn a_session_of_each_provider_is_explained_as_it_is_answered() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    for (target, provider, route, id, upstream) in [
        (
            VECTARA,
            "vectara",
            "/v1/agents/{agent}/sessions/{session}",
            "$.key",
            "/v2/agents/agt_customer_support/sessions/ase_customer_support_001",
        ),
        (PALANTIR, "palantir", "/v1/agents/{agent}/sessions/{session}", "$.rid", "?preview=true"),
        (AGENTHUMAN, "agenthuman", "/v1/sessions/{id}", "$.session_id", "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T"),
    ] {
        let plain = weir.get_as("plain", target);
        let told = explained(&weir, target);
        assert_eq!(told["body"], plain.json(), "{target}: the answer itself is as always");
        let explain = &told["explain"];
        assert_eq!((&explain["route"], &explain["client"]["id"]), (&json!(route), &json!("open")));
        let answer = &explain["answers"][0];
        assert_eq!((&answer["provider"], &answer["operation"]), (&json!(provider), &json!("get_session")));
        assert!(answer["upstream"].as_str().unwrap().ends_with(upstream), "{answer}");
        assert_eq!(answer["cache"]["result"], "hit", "both clients use the provider's credential");
        assert_eq!(answer["timing"]["call"]["whose"], "an earlier one");
        assert_eq!(answer["timing"]["call"]["tries"], 1);
        assert_eq!(answer["cache_key"]["credential"], answer["credential"]["identity"]);
        assert_eq!(answer["credential"]["from"], "the provider's file");
        let detail = told["headers"]["cache-status"].as_str().unwrap();
        assert!(detail.ends_with(&format!("detail={}", answer["lifetime"]["source"].as_str().unwrap())), "{detail}");
        assert_eq!(answer["lifetime"]["inputs"]["status"], told["body"]["status"]);
        let id_field = field(answer, "provider_session_id");
        assert_eq!((&id_field["path"], &id_field["required"]), (&json!(id), &json!(true)));
        let limits = explain["limits"].as_array().unwrap();
        assert_eq!((&limits[0]["policy"], &limits[0]["cost"]), (&json!("standard"), &json!(1)));
        assert!(told["headers"]["ratelimit"].as_str().unwrap().contains(&format!("r={}", limits[0]["left"])));
    }
    assert_eq!(sim.calls(), 3);
}

#[test]
fn a_client_that_may_not_learns_nothing_and_pays_the_same() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let plain = weir.get_as("plain", VECTARA);
    let asks = weir.get_with_key("plain", VECTARA, &[("Weir-Explain", "1")]);
    assert_eq!((asks.status, &asks.body), (200, &plain.body));
    assert_eq!(asks.header("vary"), plain.header("vary"));
    assert!(!asks.header("vary").unwrap().contains("weir-explain"));
    assert!(asks.header("cache-control").unwrap().contains("max-age"));
    let left = |answer: &Answer| {
        answer
            .header("ratelimit")
            .unwrap()
            .split("r=")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let first = weir.get(VECTARA);
    let second = weir.get_with(VECTARA, &[("Weir-Explain", "1")]);
    assert_eq!(left(&first) - left(&second), 1);
    assert_eq!(weir.get_with(VECTARA, &[("Weir-Explain", "yes")]).code(), (400, "invalid_request".into()));
    let unknown = weir.get_with_key("nobody", VECTARA, &[("Weir-Explain", "1")]);
    assert_eq!(unknown.code(), (401, "unauthorized".into()));
}

#[test]
fn failures_lists_and_batches_are_explained_and_nothing_secret_is_told() {
    let sim = Sim::with(&["--agenthuman-key", "canary-credential"]);
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let native = json!({ "session": { "session_id": "sess_A", "status": "odd", "title": 5,
        "daily_room": { "token": "canary-token" }, "access_token": "canary-access" } });
    sim.answers("/v1/sessions/sess_A", 200, &json!({}), &native.to_string());
    sim.answers(
        "/v1/sessions/sess_B",
        200,
        &json!({}),
        r#"{"session":{"session_id":null,"daily_room":{"token":"canary-unmappable"}}}"#,
    );
    let told = explained(&weir, "/v1/sessions/sess_A");
    let answer = &told["explain"]["answers"][0];
    assert_eq!(
        (&answer["cache"]["result"], &answer["timing"]["call"]["whose"]),
        (&json!("miss"), &json!("this request's"))
    );
    let status = field(answer, "status");
    assert_eq!((&status["found"], &status["reason"]), (&json!("unusable"), &json!("unknown_value")));
    assert_eq!(
        status["tried"],
        json!([{ "path": "$.status", "found": true, "type": "string", "reason": "unknown_value" }])
    );
    let token = field(answer, "connection.token");
    assert_eq!((&token["secret"], &token["tried"][0]["type"]), (&json!(true), &json!("string")));
    assert!(!told.to_string().contains("canary"), "{told}");
    let told = explained(&weir, "/v1/sessions/sess_B");
    assert_eq!((&told["status"], &told["body"]["code"]), (&json!(502), &json!("provider_invalid_response")));
    let id = field(&told["explain"]["answers"][0], "provider_session_id");
    assert_eq!((&id["found"], &id["required"]), (&json!("nothing"), &json!(true)), "why it cannot be mapped");
    assert!(!told.to_string().contains("canary"), "{told}");
    let told = explained(&weir, "/v1/sessions?agent=agt_customer_support&provider=agenthuman&limit=2");
    let of: Vec<&Value> = told["explain"]["answers"].as_array().unwrap().iter().map(|a| &a["provider"]).collect();
    assert_eq!(of, ["vectara", "agenthuman"]);
    assert_eq!(told["explain"]["answers"][0]["lifetime"]["rule"]["source"], "list");
    assert_eq!(told["explain"]["limits"][0]["cost"], 2);
    let told = explained(&weir, "/v1/sessions:batchGet?id=sess_A&id=nobody:x");
    assert_eq!(told["explain"]["answers"].as_array().unwrap().len(), 2);
    let told = explained(&weir, "/nowhere");
    assert_eq!((&told["status"], &told["explain"]["answers"]), (&json!(404), &json!([])));
    // What passes through natively is not held up to be told.
    let passed = weir.get_with("/vectara/v2/agents", &[("Weir-Explain", "1")]);
    assert!(passed.header("cache-status").unwrap().contains("fwd=bypass"));
}
