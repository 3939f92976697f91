//! Tests of explained requests: the header `Weir-Explain` and the command `weir explain`.

use crate::support::*;
use serde_json::{Value, json};

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], explain: true, rate_limit: standard }\n  - { id: plain, keys: [ { sha256: SHA(plain) } ], rate_limit: standard }\n";

/// Requests an explanation, checks its envelope, and returns it.
fn get_explained(weir: &Weir, target: &str) -> Value {
    let response = weir.get_with(target, &[("Weir-Explain", "1")]);
    assert_eq!(response.header("content-type"), Some("application/json"), "{target}");
    assert_eq!(response.header("cache-control"), Some("no-store"), "{target}");
    assert!(response.header("vary").unwrap().contains("weir-explain"), "{target}");
    let explained = response.json();
    assert_eq!(explained["status"], response.status, "{target}");
    assert_eq!(explained["explain"]["request_id"].as_str(), response.header("x-request-id"), "{target}");
    explained
}

/// The explanation of one mapped field, in an item of `answers`.
fn field<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let fields = answer["mapping"]["ways"][0]["fields"].as_array().unwrap();
    fields.iter().find(|field| field["field"] == name).unwrap()
}

#[test]
fn the_explanation_of_a_session_matches_its_response() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    for (target, provider, route, id, upstream) in [
        (
            VECTARA,
            "vectara",
            "/v1/agents/{agent}/sessions/{session}",
            "$.id",
            "/v2/agents/agt_customer_support/sessions/ase_customer_support_001",
        ),
        (PALANTIR, "palantir", "/v1/agents/{agent}/sessions/{session}", "$.rid", "?preview=true"),
        (AGENTHUMAN, "agenthuman", "/v1/sessions/{id}", "$.session_id", "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T"),
    ] {
        let plain = weir.get_as("plain", target);
        let explained = get_explained(&weir, target);
        assert_eq!(explained["body"], plain.json(), "{target}: the body is the same as without an explanation");
        let explain = &explained["explain"];
        assert_eq!((&explain["route"], &explain["client"]["id"]), (&json!(route), &json!("open")));
        let answer = &explain["answers"][0];
        assert_eq!((&answer["provider"], &answer["operation"]), (&json!(provider), &json!("get_session")));
        assert!(answer["upstream"].as_str().unwrap().ends_with(upstream), "{answer}");
        assert_eq!(answer["cache"]["result"], "hit", "both clients share the provider's credential");
        assert_eq!(answer["timing"]["call"]["whose"], "an earlier one");
        assert_eq!(answer["timing"]["call"]["tries"], 1);
        assert_eq!(answer["cache_key"]["credential"], answer["credential"]["identity"]);
        assert_eq!(answer["credential"]["from"], "the provider's file");
        let detail = explained["headers"]["cache-status"].as_str().unwrap();
        assert!(detail.ends_with(&format!("detail={}", answer["lifetime"]["source"].as_str().unwrap())), "{detail}");
        assert_eq!(answer["lifetime"]["inputs"]["status"], explained["body"]["status"]);
        let id_field = field(answer, "provider_session_id");
        assert_eq!((&id_field["path"], &id_field["required"]), (&json!(id), &json!(true)));
        let limits = explain["limits"].as_array().unwrap();
        assert_eq!((&limits[0]["policy"], &limits[0]["cost"]), (&json!("standard"), &json!(1)));
        assert!(explained["headers"]["ratelimit"].as_str().unwrap().contains(&format!("r={}", limits[0]["left"])));
    }
    assert_eq!(sim.calls(), 3);
    let tag = weir.get(AGENTHUMAN).header("etag").unwrap().to_owned();
    let not_modified = weir.get_with(AGENTHUMAN, &[("Weir-Explain", "1"), ("If-None-Match", &tag)]);
    let explained = not_modified.json();
    assert_eq!((not_modified.status, &explained["status"], &explained["body"]), (200, &json!(304), &Value::Null));
    // The session has ended, so the watch ends too.
    let watched = weir.get_with(&format!("{AGENTHUMAN}/watch"), &[("Weir-Explain", "1")]);
    let text = String::from_utf8(watched.body).unwrap();
    let (explain, session) = (text.find("event: explain").unwrap(), text.find("event: session").unwrap());
    assert!(explain < session && text.contains("\"freshness_seconds\""), "{text}");
    let native = get_explained(&weir, "/vectara/v2/agents/agt_customer_support/sessions/ase_customer_support_001");
    assert_eq!(native["explain"]["route"], "get_session");
    assert_eq!(native["explain"]["answers"][0]["cache"]["result"], "hit");
}

#[test]
fn without_permission_the_header_changes_nothing_and_costs_the_same() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let plain = weir.get_as("plain", VECTARA);
    let ignored = weir.get_with_key("plain", VECTARA, &[("Weir-Explain", "1")]);
    assert_eq!((ignored.status, &ignored.body), (200, &plain.body));
    assert_eq!(ignored.header("vary"), plain.header("vary"));
    assert!(!ignored.header("vary").unwrap().contains("weir-explain"));
    assert!(ignored.header("cache-control").unwrap().contains("max-age"));
    let left = |response: &Response| {
        response
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
fn failures_lists_and_batches_are_explained_without_secrets() {
    let sim = Sim::with_options(&["--agenthuman-key", "canary-credential"]);
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let native = json!({ "session": { "session_id": "sess_A", "status": "odd", "title": 5,
        "daily_room": { "token": "canary-token" }, "access_token": "canary-access" } });
    sim.set_response("/v1/sessions/sess_A", 200, &json!({}), &native.to_string());
    sim.set_response(
        "/v1/sessions/sess_B",
        200,
        &json!({}),
        r#"{"session":{"session_id":null,"daily_room":{"token":"canary-unmappable"}}}"#,
    );
    let explained = get_explained(&weir, "/v1/sessions/sess_A");
    let answer = &explained["explain"]["answers"][0];
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
    assert!(!explained.to_string().contains("canary"), "{explained}");
    let explained = get_explained(&weir, "/v1/sessions/sess_B");
    assert_eq!((&explained["status"], &explained["body"]["code"]), (&json!(502), &json!("provider_invalid_response")));
    let id = field(&explained["explain"]["answers"][0], "provider_session_id");
    assert_eq!(
        (&id["found"], &id["required"]),
        (&json!("nothing"), &json!(true)),
        "the explanation names the missing required field"
    );
    assert!(!explained.to_string().contains("canary"), "{explained}");
    let explained = get_explained(&weir, "/v1/sessions?agent=agt_customer_support&provider=agenthuman&limit=2");
    let providers: Vec<&Value> =
        explained["explain"]["answers"].as_array().unwrap().iter().map(|a| &a["provider"]).collect();
    assert_eq!(providers, ["vectara", "agenthuman"]);
    assert_eq!(explained["explain"]["answers"][0]["lifetime"]["rule"]["source"], "list");
    assert_eq!(explained["explain"]["limits"][0]["cost"], 2);
    let explained = get_explained(&weir, "/v1/sessions:batchGet?id=sess_A&id=nobody:x");
    assert_eq!(explained["explain"]["answers"].as_array().unwrap().len(), 2);
    weir.make_stale();
    sim.clear_faults();
    sim.set_response("/v1/sessions/sess_A", 500, &json!({}), "{}");
    // With max-age in the request, Weir calls the provider before it serves a stale entry.
    let headers = [("Weir-Explain", "1"), ("Cache-Control", "max-age=600")];
    let explained = weir.get_with("/v1/sessions/sess_A", &headers).json();
    assert!(
        explained["headers"]["cache-status"].as_str().unwrap().contains("fwd=stale; fwd-status=500"),
        "{explained}"
    );
    let answer = &explained["explain"]["answers"][0];
    assert_eq!((&explained["status"], &answer["cache"]["result"]), (&json!(200), &json!("stale")), "{explained}");
    assert_eq!(
        answer["timing"]["call"]["whose"], "an earlier one",
        "the call that fetched the entry, not the one that failed"
    );
    let explained = get_explained(&weir, "/nowhere");
    assert_eq!((&explained["status"], &explained["explain"]["answers"]), (&json!(404), &json!([])));
    // A native response that is streamed through is not explained.
    let passed = weir.get_with("/vectara/v2/agents", &[("Weir-Explain", "1")]);
    assert!(passed.header("cache-status").unwrap().contains("fwd=bypass"));
}

/// Runs `weir explain --json`. Returns the exit code, the JSON (null if there is none) and stderr.
fn run_explain(config: &Config, arguments: &[&str]) -> (i32, Value, String) {
    let output = config.command(&[&["explain", "--json"], arguments].concat()).output().unwrap();
    let explained = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), explained, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_command_explains_a_session_of_each_provider_offline() {
    let config = Config::shipped().clients(CLIENTS);
    for (target, provider, path, credential) in [
        (
            VECTARA,
            "vectara",
            "https://api.vectara.io/v2/agents/agt_customer_support/sessions/ase_customer_support_001",
            "none",
        ),
        (
            PALANTIR,
            "palantir",
            "https://example.palantirfoundry.com/api/v2/aipAgents/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6?preview=true",
            "fixed",
        ),
        (AGENTHUMAN, "agenthuman", "https://api.agenthuman.com/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T", "none"),
    ] {
        let mut command = config.command(&["explain", "--json", "GET", target, "--client", "plain"]);
        for name in
            ["VECTARA_API_KEY", "AGENTHUMAN_API_KEY", "VECTARA_BASE_URL", "PALANTIR_BASE_URL", "AGENTHUMAN_BASE_URL"]
        {
            command.env_remove(name);
        }
        let output = command.env("PALANTIR_TOKEN", "canary-token").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(!text.contains("canary"));
        let explained: Value = serde_json::from_str(&text).unwrap();
        let answer = &explained["answers"][0];
        assert_eq!((&answer["provider"], &answer["upstream"]), (&json!(provider), &json!(format!("GET {path}"))));
        assert_eq!(
            (&answer["credential"]["kind"], &answer["cache_key"]["operation"]),
            (&json!(credential), &json!("get_session"))
        );
        assert_eq!(
            (&answer["freshness_seconds"]["by_status"]["ended"], &explained["limits"][0]["cost"]),
            (&json!(86400), &json!(1))
        );
    }
}

#[test]
fn the_command_explains_lifetime_and_mapping_of_a_given_body() {
    let config = Config::shipped().clients("clients:\n  - { id: one, keys: [ { sha256: SHA(one) } ] }\n");
    let body = config.path("body.json");
    let native = json!({ "session": { "session_id": "sess_A", "status": "started", "expiration": "2024-01-15T14:00:00Z",
        "avatar": { "name": "canary-name" }, "daily_room": { "token": "canary-token" } } });
    std::fs::write(&body, native.to_string()).unwrap();
    let explain_body = |more: &[&str]| {
        let arguments =
            ["GET", "/v1/sessions/sess_A", "--body", body.to_str().unwrap(), "--at", "2024-01-15T12:00:00Z"];
        run_explain(&config, &[&arguments, more].concat())
    };
    let (code, explained, _) = explain_body(&[]);
    let lifetime = &explained["answers"][0]["lifetime"];
    assert_eq!((code, &lifetime["source"], &lifetime["seconds"]), (0, &json!("max"), &json!(300)), "{explained}");
    assert_eq!(lifetime["why"], "max: expires_at is 7200 s ahead, which is more than max");
    assert_eq!(lifetime["inputs"]["expires_at"], "2024-01-15T14:00:00.000Z");
    assert!(!explained.to_string().contains("canary"), "without --values only types are shown");
    let (_, explained, _) = explain_body(&["--values"]);
    let name = field(&explained["answers"][0], "agent.name");
    assert_eq!(name["tried"][0]["value"], "canary-name");
    assert!(!explained.to_string().contains("canary-token"), "--values does not show secrets");
    std::fs::write(&body, r#"{"session":{"status":"started"}}"#).unwrap();
    let (code, explained, _) = explain_body(&[]);
    assert_eq!((code, &explained["problem"]["code"]), (1, &json!("provider_invalid_response")));
    assert_eq!(field(&explained["answers"][0], "provider_session_id")["found"], "nothing");
    let output = config.command(&["explain", "GET", "/v1/sessions/sess_A"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("route: /v1/sessions/{id}\n") && text.contains("    from: the provider's file\n"), "{text}");
}

#[test]
fn the_command_explains_lists_batches_native_paths_and_errors() {
    let config = Config::shipped().clients(
        "clients:\n  - { id: one, keys: [ { sha256: SHA(one) } ], rate_limit: standard, providers: [vectara, agenthuman] }\n",
    );
    let (code, explained, _) = run_explain(&config, &["GET", "/v1/sessions?agent=agt_a&provider=agenthuman"]);
    let providers: Vec<&Value> = explained["answers"].as_array().unwrap().iter().map(|a| &a["provider"]).collect();
    assert_eq!((code, providers), (0, vec![&json!("vectara"), &json!("agenthuman")]));
    assert_eq!(explained["limits"][0]["cost"], 2);
    let (code, explained, _) = run_explain(&config, &["GET", "/v1/sessions:batchGet?id=sess_A&id=sess_A&id=nobody:x"]);
    assert_eq!(
        (code, explained["answers"].as_array().unwrap().len(), &explained["limits"][0]["cost"]),
        (0, 2, &json!(2))
    );
    assert_eq!(explained["answers"][1]["problem"]["code"], "provider_not_found");
    let (code, explained, _) = run_explain(&config, &["GET", "/vectara/v2/agents/agt_a/sessions/ase_b"]);
    assert_eq!((code, &explained["answers"][0]["session"]), (0, &json!("ase_b")));
    assert!(explained["way"].as_str().unwrap().starts_with("native read"));
    let (code, explained, _) = run_explain(&config, &["POST", "/vectara/v2/agents/agt_a/sessions"]);
    assert_eq!((code, &explained["changes"], &explained["answers"]), (0, &json!("lists"), &json!([])));
    assert!(explained["passed_to"].as_str().unwrap().ends_with("/v2/agents/agt_a/sessions"));
    for (arguments, code) in [
        (&["GET", "/nowhere"][..], "not_found"),
        (&["POST", "/v1/providers"], "method_not_allowed"),
        (&["GET", "/v1/sessions/ase_1"], "invalid_request"),
        (&["GET", PALANTIR], "forbidden"),
        (&["GET", "/palantir/x"], "forbidden"),
    ] {
        let (exit, explained, _) = run_explain(&config, arguments);
        assert_eq!((exit, &explained["problem"]["code"]), (1, &json!(code)), "{arguments:?}");
    }
    for (arguments, message) in [
        (&["GET", "/v1/providers", "--client", "nobody"][..], "unknown client \"nobody\"; expected one of: one"),
        (&["GET", "nowhere"], "begins with /"),
        (&["GET", "/v1/sessions?provider=agenthuman&agent=agt_a", "--body", "x"], "x: "),
        (&["GET"], "<PATH>"),
    ] {
        let (exit, _, stderr) = run_explain(&config, arguments);
        assert!(exit == 2 && stderr.contains(message), "{arguments:?}: {exit} {stderr}");
    }
}
