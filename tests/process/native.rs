//! The providers' own APIs through Weir, asked as their SDKs ask.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const VECTARA_SESSION: &str = "/v2/agents/agt_load_1/sessions/ase_agt_load_1_3";
const PALANTIR_AGENT: &str = "/api/v2/aipAgents/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
const PALANTIR_SESSION: &str = "/api/v2/aipAgents/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";
const AGENTHUMAN_SESSION: &str = "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T";

/// Asks as each SDK does: its own header for the key, its own other headers.
fn vectara(weir: &Weir, method: &str, path: &str, body: Option<&Value>) -> Answer {
    with_body(
        weir,
        method,
        &format!("/vectara{path}"),
        &[("x-api-key", "open"), ("Accept", "*/*"), ("User-Agent", "vectara/0.4.3"), ("X-Fern-Language", "Python")],
        body,
    )
}

fn palantir(weir: &Weir, method: &str, path: &str, body: Option<&Value>) -> Answer {
    with_body(
        weir,
        method,
        &format!("/palantir{path}"),
        &[("Authorization", "Bearer open"), ("Accept", "application/json"), ("Accept-Encoding", "gzip, deflate")],
        body,
    )
}

fn agenthuman(weir: &Weir, method: &str, path: &str, body: Option<&Value>) -> Answer {
    with_body(weir, method, &format!("/agenthuman{path}"), &[("x-api-key", "open")], body)
}

fn with_body(weir: &Weir, method: &str, target: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len().to_string();
    let mut all = headers.to_vec();
    if !body.is_empty() {
        all.extend([("Content-Type", "application/json"), ("Content-Length", &*length)]);
    }
    let mut bytes = request(method, target, &all);
    bytes.extend_from_slice(body.as_bytes());
    raw(weir.http, &bytes)
}

/// What the provider itself answers.
fn directly(sim: &Sim, path: &str, header: (&str, &str)) -> Vec<u8> {
    send(sim.address, "GET", path, &[header]).body
}

fn status_of(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or_default()
}

#[test]
fn session_reads_share_the_entry_with_the_unified_view_and_are_the_providers_bytes() {
    let sim = Sim::start();
    let config = Config::shipped().clients(
        "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: sees, keys: [ { sha256: SHA(sees) } ], reveal_secrets: true }\n",
    );
    let weir = config.start(&sim);
    let palantir_preview = format!("{PALANTIR_SESSION}?preview=true");
    let cases = [
        (
            "vectara",
            "/v2/agents/agt_customer_support/sessions/ase_customer_support_001".to_owned(),
            VECTARA,
            ("x-api-key", "zut_sim"),
        ),
        ("palantir", palantir_preview.clone(), PALANTIR, ("authorization", "Bearer sim-token")),
        ("agenthuman", AGENTHUMAN_SESSION.to_owned(), AGENTHUMAN, ("x-api-key", "ah_test_sim")),
    ];
    for (name, path, unified, credential) in &cases {
        let direct = directly(&sim, path, *credential);
        sim.reset_calls();
        let native = format!("/{name}{path}");
        let first = weir.get_as("sees", &native);
        assert_eq!((first.status, &first.body), (200, &direct), "{name}: byte for byte");
        assert_eq!(first.header("content-type"), Some("application/json"));
        assert!(status_of(&weir.get(unified)).starts_with("weir; hit"), "{name}: one entry for both");
        let again = weir.get_as("sees", &native);
        assert!(status_of(&again).starts_with("weir; hit") && again.header("age").is_some(), "{name}");
        let tag = again.header("etag").unwrap().to_owned();
        assert_eq!(send(weir.http, "GET", &native, &[("X-API-Key", "sees"), ("If-None-Match", &tag)]).status, 304);
        let head = send(weir.http, "HEAD", &native, &[("X-API-Key", "sees")]);
        assert_eq!(
            (head.status, head.body.len(), head.header("content-length")),
            (200, 0, Some(&*direct.len().to_string()))
        );
        assert_eq!(sim.calls(), 1, "{name}");
        // Who may not see secrets gets all but them.
        let mut expected: Value = serde_json::from_slice(&direct).unwrap();
        if let Some(room) = expected.pointer_mut("/session/daily_room") {
            assert!(room.as_object_mut().unwrap().remove("token").is_some());
        }
        assert_eq!(weir.get(&native).json(), expected, "{name}");
    }
    // The preview parameter is mandatory there; who leaves it out gets the same.
    assert!(status_of(&weir.get(&format!("/palantir{PALANTIR_SESSION}"))).starts_with("weir; hit"));
    assert_eq!(
        weir.metric(
            "weir_http_requests_total{client=\"sees\",provider=\"vectara\",route=\"get_session\",status=\"200\"}"
        ),
        3.0
    );
}

#[test]
fn lists_are_paged_as_the_sdks_page_them() {
    let sim = Sim::with(&["--sessions", "57"]);
    let weir = Config::shipped().start(&sim);
    let (mut keys, mut token) = (Vec::new(), String::new());
    for page in 0..10 {
        let more = if token.is_empty() { String::new() } else { format!("&page_key={token}") };
        let answer = vectara(&weir, "GET", &format!("/v2/agents/agt_load_1/sessions?limit=25{more}"), None).json();
        keys.extend(answer["sessions"].as_array().unwrap().iter().map(|s| s["key"].clone()));
        token = answer["metadata"]["page_key"].as_str().unwrap_or_default().to_owned();
        assert_eq!(token.is_empty(), page == 2);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(keys.len(), 57);
    let (mut rids, mut token) = (Vec::new(), String::new());
    loop {
        let more = if token.is_empty() { String::new() } else { format!("&pageToken={token}") };
        let answer =
            palantir(&weir, "GET", &format!("{PALANTIR_AGENT}/sessions?pageSize=20{more}&preview=true"), None).json();
        rids.extend(answer["data"].as_array().unwrap().iter().map(|s| s["rid"].clone()));
        token = answer["nextPageToken"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(rids.len(), 57);
    sim.reset_calls();
    let again = vectara(&weir, "GET", "/v2/agents/agt_load_1/sessions?limit=25", None);
    assert!(status_of(&again).starts_with("weir; hit"), "{}", status_of(&again));
    // Parameters that the provider's file does not name go as they are, and have answers of their own.
    sim.reset_calls();
    let filtered = "/v2/agents/agt_load_1/sessions?limit=2&filter=a%20b";
    assert!(status_of(&vectara(&weir, "GET", filtered, None)).starts_with("weir; fwd=miss; stored"));
    assert!(status_of(&vectara(&weir, "GET", filtered, None)).starts_with("weir; hit"));
    assert_eq!(sim.counts()["calls"].as_object().unwrap().keys().collect::<Vec<_>>(), [&format!("GET {filtered}")]);
    let refused = vectara(&weir, "GET", "/v2/agents/agt_load_1/sessions?limit=1000", None);
    assert_eq!((refused.status, refused.json()["field_errors"]["limit"].is_string()), (400, true), "its own words");
    assert_eq!(agenthuman(&weir, "GET", "/v1/sessions", None).json()["sessions"].as_array().unwrap().len(), 57);
}

#[test]
fn a_providers_own_host_needs_no_prefix() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", "hosts: []", "hosts: [agenthuman.weir.example, \"other.example:81\"]")
        .start(&sim);
    let ask = |host: &str, target: &str| {
        raw(
            weir.http,
            format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nx-api-key: open\r\n\r\n").as_bytes(),
        )
    };
    let native = ask("AgentHuman.weir.example:8080", AGENTHUMAN_SESSION);
    assert_eq!((native.status, native.json()["success"].clone()), (200, json!(true)));
    assert_eq!(ask("other.example:81", "/v1/usage").json()["success"], true);
    assert_eq!(ask("other.example:82", AGENTHUMAN).json()["provider"], "agenthuman", "another port: Weir's own API");
}

#[test]
fn writes_change_what_is_read_next_and_only_for_their_credential() {
    let sim = Sim::start();
    let config = Config::shipped().clients(
        "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ], credentials: { vectara: { oauth2: { token_url: \"${VECTARA_BASE_URL}/oauth2/token\", client_id: sim-client, client_secret: sim-secret } } } }\n",
    );
    let weir = config.start(&sim);
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_3";
    let (list, other_list) = ("/v1/agents/agt_load_1/sessions", "/v1/agents/agt_load_2/sessions");
    let hit = |key: &str, target: &str| {
        let answer = weir.get_as(key, target);
        assert_eq!(answer.status, 200, "{}", answer.json());
        status_of(&answer).starts_with("weir; hit")
    };
    let neighbour = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_4";
    for (key, target) in [
        ("open", unified),
        ("open", list),
        ("open", other_list),
        ("open", neighbour),
        ("other", unified),
        ("other", list),
    ] {
        assert!(!hit(key, target));
        assert!(hit(key, target));
    }
    let patched = vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "renamed" })));
    assert_eq!((patched.status, status_of(&patched)), (200, "weir; fwd=method"));
    assert!(
        hit("open", other_list) && hit("open", neighbour) && hit("other", unified) && hit("other", list),
        "untouched"
    );
    let read = weir.get(unified);
    assert_eq!((status_of(&read).starts_with("weir; fwd=miss"), &read.json()["title"]), (true, &json!("renamed")));
    assert!(!hit("open", list) && hit("open", list), "asked again once");
    // What fails changes nothing.
    assert_eq!(vectara(&weir, "PATCH", "/v2/agents/agt_none/sessions/ase_agt_load_1_3", Some(&json!({}))).status, 404);
    assert!(hit("open", unified) && hit("open", list));
    // So has one that was asked for by other parameters, and is not the same entry.
    let other = format!("/vectara{VECTARA_SESSION}?x=1");
    assert!(!hit("open", &other) && hit("open", &other));
    assert_eq!(vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "again" }))).status, 200);
    assert_eq!(weir.get(&other).json()["name"], "again");
    // A write to the agent itself concerns all that is its.
    assert!(hit("open", &other) && hit("open", neighbour) && hit("open", other_list));
    vectara(&weir, "POST", "/v2/agents/agt_load_1/sessions", Some(&json!({})));
    assert!(hit("open", &other) && hit("open", neighbour), "lists alone");
    sim.answers("/v2/agents/agt_load_1/x", 200, &json!({}), "{}");
    assert_eq!(vectara(&weir, "PUT", "/v2/agents/agt_load_1/x", None).status, 200);
    assert!(!hit("open", &other) && !hit("open", neighbour) && !hit("open", list) && hit("open", other_list));
    assert!(hit("other", unified) && hit("other", list), "another credential's are not touched");
    assert!(!hit("open", unified));
    // A new session is in the next list; a deleted one is gone from both.
    assert_eq!(
        vectara(&weir, "POST", "/v2/agents/agt_load_1/sessions", Some(&json!({ "key": "ase_fresh" }))).status,
        201
    );
    assert!(hit("open", unified), "others stay");
    let first = &weir.get(list).json()["sessions"][0];
    assert_eq!(first["provider_session_id"], "ase_fresh");
    assert_eq!(vectara(&weir, "DELETE", VECTARA_SESSION, None).status, 204);
    assert_eq!(weir.get(unified).code(), (404, "session_not_found".into()));

    let rename = palantir(
        &weir,
        "PUT",
        &format!("{PALANTIR_SESSION}/updateTitle?preview=true"),
        Some(&json!({ "title": "new" })),
    );
    assert_eq!(rename.status, 204);
    assert_eq!(weir.get(PALANTIR).json()["title"], "new");
    assert_eq!(weir.get("/v1/sessions?provider=agenthuman").status, 200);
    let made = agenthuman(&weir, "POST", "/v1/sessions", Some(&json!({ "avatar": "a", "metadata": {} }))).json();
    let id = made["session"]["session_id"].as_str().unwrap().to_owned();
    assert_eq!(weir.get("/v1/sessions?provider=agenthuman").json()["sessions"][0]["provider_session_id"], json!(id));
    assert_eq!(weir.get(&format!("/v1/sessions/{id}")).json()["status"], "active");
    for method in ["PUT", "POST"] {
        assert_eq!(agenthuman(&weir, method, &format!("/v1/sessions/{id}/end"), Some(&json!({}))).status, 200);
        assert_eq!(weir.get(&format!("/v1/sessions/{id}")).json()["status"], "ended");
    }
}

#[test]
fn what_was_not_there_is_found_once_it_was_made() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "not_found: 5s", "not_found: 1h")
        .edit("providers/palantir.yaml", "not_found: 5s", "not_found: 1h")
        .edit("providers/agenthuman.yaml", "not_found: 5s", "not_found: 1h")
        .start(&sim);
    let (one, lists) = ("/v2/agents/agt_load_1/sessions/ase_new", "/v2/agents/agt_load_1/sessions");
    let unified = "/v1/sessions/vectara:agt_load_1:ase_new";
    let missing = || {
        for _ in 0..2 {
            assert_eq!(vectara(&weir, "GET", one, None).status, 404);
            assert_eq!(weir.get(unified).code(), (404, "session_not_found".into()));
        }
        assert!(status_of(&weir.get(unified)).starts_with("weir; hit"), "it is stored");
    };
    let get_or_create = |what: &str| {
        missing();
        assert_eq!(vectara(&weir, "POST", lists, Some(&json!({ "key": "ase_new" }))).status, 201, "{what}");
        let read = vectara(&weir, "GET", one, None);
        assert_eq!(read.status, 200, "{what}: {}", status_of(&read));
        assert_eq!(weir.get(unified).status, 200, "{what}");
    };
    get_or_create("made");
    assert_eq!(vectara(&weir, "DELETE", one, None).status, 204);
    get_or_create("made again");
    // What is there stays as it is, and so does what another agent has not.
    let elsewhere = "/v1/sessions/vectara:agt_load_2:ase_none_1";
    assert_eq!((weir.get(elsewhere).status, weir.get(elsewhere).status), (404, 404));
    assert_eq!(vectara(&weir, "POST", lists, Some(&json!({}))).status, 201);
    for (target, status) in [(unified, 200), (elsewhere, 404)] {
        let answer = weir.get(target);
        assert_eq!((answer.status, status_of(&answer).starts_with("weir; hit")), (status, true), "{target}");
    }
    // A read that was under way has no answer for who comes after.
    let (slow, slow_unified) = ("/v2/agents/agt_load_1/sessions/ase_slow", "/v1/sessions/vectara:agt_load_1:ase_slow");
    let fault = json!({ "kind": "answer", "status": 404, "headers": {}, "body": "{\"messages\":[\"no session\"]}" });
    sim.plan(&json!({ "path": slow, "times": 1, "latency_ms": 2000, "fault": fault }));
    sim.reset_calls();
    std::thread::scope(|scope| {
        let early = scope.spawn(|| weir.get(slow_unified).status);
        until("the read is under way", || sim.calls() == 1);
        assert_eq!(vectara(&weir, "POST", lists, Some(&json!({ "key": "ase_slow" }))).status, 201);
        assert_eq!(weir.get(slow_unified).status, 200, "it does not join what was asked before");
        assert_eq!(early.join().unwrap(), 404);
    });
    assert_eq!(weir.get(slow_unified).status, 200, "nor does that come back");
    // The same where there are no agents.
    let id = {
        let made = agenthuman(&weir, "POST", "/v1/sessions", Some(&json!({}))).json();
        let id = made["session"]["session_id"].as_str().unwrap().to_owned();
        let (head, number) = id.split_at("sess_NEW".len());
        format!("{head}{:08X}", u64::from_str_radix(number, 16).unwrap() + 1)
    };
    assert_eq!(agenthuman(&weir, "GET", &format!("/v1/sessions/{id}"), None).status, 404);
    let made = agenthuman(&weir, "POST", "/v1/sessions", Some(&json!({}))).json();
    assert_eq!(made["session"]["session_id"], json!(id));
    assert_eq!(agenthuman(&weir, "GET", &format!("/v1/sessions/{id}"), None).status, 200);
}

#[test]
fn a_read_under_way_when_a_write_comes_brings_nothing_old_back() {
    let sim = Sim::start();
    let weir = std::sync::Arc::new(Config::shipped().start(&sim));
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_3";
    let old = directly(&sim, VECTARA_SESSION, ("x-api-key", "zut_sim"));
    let fault = json!({ "kind": "answer", "status": 200, "headers": {}, "body": String::from_utf8(old).unwrap() });
    sim.plan(&json!({ "path": VECTARA_SESSION, "times": 1, "latency_ms": 2000, "fault": fault }));
    sim.reset_calls();
    let reader = weir.clone();
    let slow = std::thread::spawn(move || reader.get(unified));
    until("the read is under way", || sim.calls() == 1);
    assert_eq!(vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "renamed" }))).status, 200);
    assert_eq!(weir.get(unified).json()["title"], "renamed", "it does not join what was asked before");
    assert_ne!(slow.join().unwrap().json()["title"], "renamed");
    let after = weir.get(unified);
    assert_eq!((&after.json()["title"], status_of(&after).starts_with("weir; hit")), (&json!("renamed"), true));
}

#[test]
fn weirs_own_errors_have_each_providers_shape_and_the_providers_own_pass() {
    let sim = Sim::start();
    let config = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: once, keys: [ { sha256: SHA(once) } ], rate_limit: once }\n  - { id: plain, keys: [ { sha256: SHA(plain) } ], native: false }\n  - { id: some, keys: [ { sha256: SHA(some) } ], providers: [vectara] }\n")
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  once:\n    requests: 1\n    per: 1h\n");
    let weir = config.start(&sim);
    // 401: no key.
    let none = |path: &str| send(weir.http, "GET", path, &[]);
    let (v, p, a) = (
        none(&format!("/vectara{VECTARA_SESSION}")),
        none(&format!("/palantir{PALANTIR_SESSION}")),
        none("/agenthuman/v1/usage"),
    );
    assert_eq!((v.status, p.status, a.status), (401, 401, 401));
    assert!(v.json()["messages"][0].as_str().unwrap().contains("an API key is needed"));
    assert_eq!(v.json()["request_id"], v.header("x-request-id").unwrap());
    assert_eq!(
        (&p.json()["errorCode"], &p.json()["errorName"]),
        (&json!("UNAUTHORIZED"), &json!("Default:Unauthorized"))
    );
    assert!(p.json()["errorInstanceId"].as_str().unwrap().len() == 36 && p.json()["parameters"].is_object());
    assert_eq!((&a.json()["success"], &a.json()["error"]["code"]), (&json!(false), &json!("unauthorized")));
    // 403: not natively, or not this provider at all.
    let plain = weir.get_as("plain", &format!("/vectara{VECTARA_SESSION}"));
    assert_eq!(plain.status, 403);
    assert!(plain.json()["messages"][0].as_str().unwrap().contains("native: false"));
    assert_eq!(weir.get_as("plain", VECTARA).status, 200, "the unified API is its");
    assert_eq!(weir.get_as("some", "/palantir/x").json()["errorCode"], "PERMISSION_DENIED");
    // 429: its own limit, told so that the SDK stops.
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
    // The provider's own, word for word; read whole and passed on.
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
        sim.forget();
        sim.answers("/v2/", status, &json!({ "x-own": "kept", "set-cookie": "a=b" }), body);
        for target in [VECTARA_SESSION.to_owned(), format!("{VECTARA_SESSION}/events")] {
            let own = vectara(&weir, "GET", &target, None);
            assert_eq!((own.status, &*own.body), (status, body.as_bytes()), "{target}");
            assert_eq!((own.header("x-own"), own.header("set-cookie")), (Some("kept"), None), "{target}");
        }
    }
    // Its refusal of Weir's credential is not the client's.
    sim.forget();
    sim.answers("/v2/", 401, &json!({}), "{\"messages\":[\"bad key\"]}");
    for target in [VECTARA_SESSION.to_owned(), format!("{VECTARA_SESSION}/events")] {
        let refused = vectara(&weir, "GET", &target, None);
        assert_eq!(refused.status, 502, "{target}");
        assert!(refused.json()["messages"][0].as_str().unwrap().contains("refused Weir's credential"), "{target}");
    }
}

#[test]
fn throttling_seen_on_the_way_closes_the_tap_for_all() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    sim.answers("/api/v2", 429, &json!({ "retry-after": "30" }), "slow down");
    let first = palantir(&weir, "POST", &format!("{PALANTIR_SESSION}/blockingContinue?preview=true"), Some(&json!({})));
    assert_eq!((first.status, &*first.body, first.header("retry-after")), (429, &b"slow down"[..], Some("30")));
    sim.forget();
    let paused = palantir(&weir, "GET", &format!("{PALANTIR_SESSION}/content?preview=true"), None);
    assert_eq!((paused.status, paused.json()["errorName"].clone()), (503, json!("Weir:ProviderRateLimited")));
    assert_eq!(paused.header("qos-retry-hint"), Some("do-not-retry"));
    assert_eq!(weir.get(PALANTIR).code(), (503, "provider_rate_limited".into()), "the unified API too");
    assert_eq!(sim.calls(), 1);
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"native\",provider=\"palantir\",status=\"429\"}"),
        1.0
    );
}

#[test]
fn a_provider_that_is_gone_is_told_in_its_own_shape() {
    let sim = Sim::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let weir = Config::shipped()
        .env("VECTARA_BASE_URL", &format!("http://{closed}"))
        .edit("providers/palantir.yaml", "idle_timeout: 5m", "idle_timeout: 1s")
        .start(&sim);
    let gone = vectara(&weir, "GET", "/v2/anything", None);
    assert_eq!(gone.status, 502);
    assert!(gone.json()["messages"][0].as_str().unwrap().contains(&closed.to_string()), "{}", gone.json());
    sim.fault("/api/v2", 0, &json!({ "kind": "reset" }));
    let reset = palantir(&weir, "POST", &format!("{PALANTIR_SESSION}/cancel?preview=true"), Some(&json!({})));
    assert_eq!((reset.status, reset.json()["errorCode"].clone()), (502, json!("INTERNAL")));
    assert_eq!(sim.calls(), 1, "what may not be repeated is not");
    sim.forget();
    sim.plan(&json!({ "path": "/api/v2", "latency_ms": 20_000 }));
    let silent = palantir(&weir, "GET", &format!("{PALANTIR_SESSION}/content?preview=true"), None);
    assert_eq!(silent.status, 504, "{}", silent.json());
}

/// A connection on which an answer's lines are read as they come.
fn open(weir: &Weir, bytes: &[u8]) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(bytes).unwrap();
    BufReader::new(socket)
}

fn post(target: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let length = body.len().to_string();
    let mut all = vec![("X-API-Key", "open"), ("Content-Type", "application/json"), ("Content-Length", &*length)];
    all.extend_from_slice(headers);
    [&request("POST", target, &all)[..], body.as_bytes()].concat()
}

#[test]
fn events_arrive_one_by_one() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let stream = format!("/vectara{VECTARA_SESSION}/events");
    let mut lines = open(&weir, &post(&stream, &[("x-sim-stream", "6,500")], "{\"stream_response\":true}")).lines();
    let (begun, mut arrived) = (Instant::now(), Vec::new());
    let mut head = String::new();
    for line in lines.by_ref().map_while(Result::ok) {
        if line.starts_with("data: ") {
            arrived.push(begun.elapsed());
        } else if arrived.is_empty() {
            head += &(line.to_ascii_lowercase() + "\n");
        }
    }
    assert!(head.contains("http/1.1 201") && head.contains("content-type: text/event-stream"), "{head}");
    assert_eq!(arrived.len(), 6);
    println!("events arrived after {arrived:?}, sent 500 ms apart");
    // Held back until the end, all would come at once.
    assert!(arrived[5] - arrived[0] > Duration::from_secs(1), "{arrived:?}");
    assert!(
        arrived.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(150)).count() >= 3,
        "{arrived:?}"
    );
    let stream = format!("/palantir{PALANTIR_SESSION}/streamingContinue?preview=true");
    let mut socket = open(&weir, &post(&stream, &[("x-sim-stream", "4,400")], "{}"));
    let (mut words, mut at, begun) = (Vec::new(), Vec::new(), Instant::now());
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        if text.contains("word") {
            at.push(begun.elapsed());
        }
        words.push(text);
    }
    let all = words.concat();
    assert!(all.contains("octet-stream") && (0..4).all(|n| all.contains(&format!("word{n} "))), "{all}");
    assert!(at.len() >= 2 && at[at.len() - 1] - at[0] > Duration::from_millis(500), "{at:?}");
}

#[test]
fn who_hangs_up_ends_the_call() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let stream = format!("/vectara{VECTARA_SESSION}/events");
    let mut lines = open(&weir, &post(&stream, &[("x-sim-stream", "600,200")], "{\"stream_response\":true}")).lines();
    let first = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("data: "));
    assert!(first.is_some());
    assert_eq!(weir.metric("weir_upstream_requests_in_flight"), 1.0);
    drop(lines);
    let begun = Instant::now();
    until("the call has ended", || weir.metric("weir_upstream_requests_in_flight") == 0.0);
    assert!(begun.elapsed() < Duration::from_secs(20), "the stream would have lasted two minutes");
    until("and is logged", || {
        weir.process.stdout.lock().unwrap().iter().any(|line| line.contains("\"route\":\"native\""))
    });
}

#[test]
fn large_bodies_pass_both_ways_without_being_held() {
    const MEGABYTES: usize = 200;
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    let resident = || weir.metric("process_resident_memory_bytes");
    let before = resident();
    let mut most = before;
    // Up, as one part of a multipart form.
    let boundary = "----weir-boundary";
    let opening = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n");
    let closing = format!("\r\n--{boundary}--\r\n");
    let length = opening.len() + (MEGABYTES << 20) + closing.len();
    let kind = format!("multipart/form-data; boundary={boundary}");
    let head = request(
        "POST",
        &format!("/vectara{VECTARA_SESSION}/events"),
        &[("X-API-Key", "open"), ("Content-Type", &kind), ("Content-Length", &length.to_string())],
    );
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&head).unwrap();
    socket.write_all(opening.as_bytes()).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    for n in 0..MEGABYTES {
        socket.write_all(&chunk).unwrap();
        if n % 40 == 39 {
            most = most.max(resident());
        }
    }
    socket.write_all(closing.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains(&format!("\"received_bytes\":{length}")), "{answer}");
    // Down, to a reader that stops in the middle: what it does not read must wait at the provider.
    let path = format!("/vectara{VECTARA_SESSION}/artifacts/art_{MEGABYTES}");
    let mut socket = open(&weir, &request("GET", &path, &[("X-API-Key", "open")]));
    let (mut got, mut buffer) = (0_usize, vec![0; 1 << 16]);
    let mut rests = 3;
    loop {
        let n = socket.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        got += n;
        if rests > 0 && got > (MEGABYTES << 18) * (4 - rests) {
            rests -= 1;
            std::thread::sleep(Duration::from_millis(300));
            most = most.max(resident());
        }
    }
    assert!(got > MEGABYTES << 20, "{got}");
    println!("resident memory: {before} before, {most} at most while {MEGABYTES} MB went up and down");
    assert!(most - before < 48e6, "memory grew from {before} to {most}");
}

#[test]
fn a_provider_that_does_not_read_makes_the_client_wait() {
    const LENGTH: usize = 256 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go, told) = std::sync::mpsc::channel::<()>();
    let provider = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        told.recv_timeout(PATIENCE * 4).unwrap();
        let (mut head, mut reader) = (String::new(), BufReader::new(socket.try_clone().unwrap()));
        while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
        let got = std::io::copy(&mut reader.take(LENGTH as u64), &mut std::io::sink()).unwrap();
        socket.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").unwrap();
        got
    });
    let sim = Sim::start();
    let weir = Config::shipped().env("VECTARA_BASE_URL", &format!("http://{address}")).start(&sim);
    assert_eq!(weir.get(PALANTIR).status, 200);
    let resident = || weir.metric("process_resident_memory_bytes");
    let before = resident();
    let head = request(
        "POST",
        &format!("/vectara{VECTARA_SESSION}/events"),
        &[("X-API-Key", "open"), ("Content-Length", &LENGTH.to_string())],
    );
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.write_all(&head).unwrap();
    let (chunk, mut sent, mut still) = (vec![b'x'; 1 << 20], 0, 0);
    // Three times in a row it could send nothing: what it has is all that fits on the way.
    while still < 3 && sent < LENGTH {
        match socket.write(&chunk[..chunk.len().min(LENGTH - sent)]) {
            Ok(n) => (sent, still) = (sent + n, 0),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                still += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let grown = resident() - before;
    println!("{sent} bytes went before the client had to wait; resident memory grew by {grown}");
    assert!(sent < LENGTH / 4, "{sent} bytes were taken of a client whose provider reads nothing");
    assert!(grown < 32e6, "memory grew by {grown}");
    assert_eq!(weir.get(PALANTIR).status, 200, "others do not wait");
    // As soon as it reads, the rest goes.
    go.send(()).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    while sent < LENGTH {
        sent += socket.write(&chunk[..chunk.len().min(LENGTH - sent)]).unwrap();
    }
    let mut answer = String::new();
    let mut end = socket.take(16);
    end.read_to_string(&mut answer).unwrap();
    assert_eq!((&*answer, provider.join().unwrap()), ("HTTP/1.1 201 Cre", LENGTH as u64));
    assert!(resident() - before < 32e6, "nor later");
}

/// Late, and then as it would be.
#[test]
fn the_simulator_can_be_late_with_writes_and_tokens() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "providers/vectara.yaml",
            "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }",
            "credentials: { oauth2: { token_url: \"${VECTARA_BASE_URL}/oauth2/token\", client_id: sim-client, client_secret: sim-secret } }",
        )
        .start(&sim);
    sim.plan(&json!({ "path": "/", "latency_ms": 50 }));
    assert_eq!(vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "late" }))).json()["name"], "late");
    assert_eq!(vectara(&weir, "GET", VECTARA_SESSION, None).json()["name"], "late");
}

#[test]
fn who_expects_to_be_told_to_continue_is_told() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let target = format!("/vectara{VECTARA_SESSION}/events");
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
        .write_all(&request(
            "POST",
            &target,
            &[("X-API-Key", "open"), ("Content-Length", "2"), ("Expect", "100-continue")],
        ))
        .unwrap();
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"{}").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains("\"received_bytes\":2"), "{answer}");
    // Who is refused is not asked for the body.
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&request("POST", &target, &[("Content-Length", "2"), ("Expect", "100-continue")])).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[test]
fn what_goes_upstream_is_the_request_without_the_clients_secrets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let provider = listener.local_addr().unwrap();
    let seen = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        let (mut head, mut reader) = (String::new(), BufReader::new(socket.try_clone().unwrap()));
        while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
        let mut body = [0; 4];
        reader.read_exact(&mut body).unwrap();
        let answer = "HTTP/1.1 302 Found\r\nLocation: http://HOST/base/v2/next?x=1\r\nSet-Cookie: their=cookie\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n";
        socket.write_all(answer.replace("HOST", &provider.to_string()).as_bytes()).unwrap();
        head
    });
    let sim = Sim::start();
    let weir = Config::shipped().env("VECTARA_BASE_URL", &format!("http://{provider}/base")).start(&sim);
    let headers = [
        ("X-API-Key", "open"),
        ("Authorization", "Bearer open"),
        ("Cookie", "session=secret"),
        ("Connection", "close, X-Named"),
        ("X-Named", "hop"),
        ("Request-Timeout", "7"),
        ("X_API_KEY", "read as the provider's key where an underscore is a hyphen"),
        ("Content_Length", "9"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Host", "6.6.6.6"),
        ("X-Real-IP", "6.6.6.6"),
        ("Content-Length", "4"),
    ];
    let mut text = String::from("POST /vectara/v2/a%2Fb/c?q=%20x&y HTTP/1.1\r\nHost: weir.example\r\n");
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    let answer = raw(weir.http, format!("{text}\r\nbody").as_bytes());
    let head = seen.join().unwrap();
    assert!(head.starts_with("POST /base/v2/a%2Fb/c?q=%20x&y HTTP/1.1\r\n"), "{head}");
    let lower = head.to_ascii_lowercase();
    assert!(lower.contains(&format!("host: {provider}\r\n")) && lower.contains("x-api-key: zut_sim\r\n"), "{head}");
    assert!(lower.contains("request-timeout: 7\r\n"), "{head}");
    for gone in ["open", "secret", "x-named", "weir.example", "cookie", "x_api_key", "content_length", "6.6.6.6"] {
        assert!(!lower.contains(gone), "{gone}: {head}");
    }
    assert_eq!((answer.status, answer.header("location")), (302, Some("/vectara/v2/next?x=1")));
    let trace = send(weir.http, "TRACE", "/vectara/v2/x", &[("X-API-Key", "open")]);
    assert_eq!((trace.status, trace.header("allow").is_some()), (405, true), "it would give back the credential");
    assert_eq!((answer.header("set-cookie"), answer.header("x-hop"), answer.header("x-kept")), (None, None, Some("1")));
}

#[test]
fn no_path_leads_out_of_the_providers() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    for path in ["/vectara/v2/../../etc", "/vectara/%2e%2e/x", "/vectara/v2/a%2f..%2fb", "/vectara/."] {
        let answer = weir.get(path);
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.json()["messages"][0].as_str().unwrap().contains("segment"), "{path}");
    }
    assert_eq!(sim.calls(), 0);
    assert_eq!(weir.get("/vectara").status, 404, "the provider's own root");
    assert_eq!(weir.get("/nowhere/v2").code(), (404, "not_found".into()));
}

#[test]
fn no_way_of_writing_a_path_shows_what_is_cut() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let body = json!({ "success": true, "session": { "session_id": "sess_A", "status": "started", "daily_room": { "token": "canary" } } });
    // The provider takes whatever comes for the same session.
    sim.answers("", 200, &json!({}), &body.to_string());
    let mut refused = 0;
    for path in [
        "/v1/sessions/sess_A",
        "/v1/sessions/sess_A?",
        "/v1/sessions/sess_A?x=1",
        "/v1/sessions/sess_A?include=native",
        "/v1/sessions/%73ess_A",
        "/v1/sessions/sess_A/",
        "/v1/sessions//sess_A",
        "//v1/sessions/sess_A",
        "/v1/Sessions/sess_A",
        "/v1/%73essions/sess_A",
        "/v1/sessions;a=b/sess_A",
        "/v1/sessions",
        "/v1/sessions/",
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let answer = send(weir.http, method, &format!("/agenthuman{path}"), &[("X-API-Key", "open")]);
            assert!(!String::from_utf8_lossy(&answer.body).contains("canary"), "{method} {path}: {}", answer.status);
            refused += usize::from(answer.status == 400);
        }
    }
    assert!(refused >= 18, "{refused}");
    assert_eq!(agenthuman(&weir, "GET", "/v1/usage", None).status, 200, "other paths pass");
}

#[test]
fn no_status_shows_what_is_cut() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: sees, keys: [ { sha256: SHA(sees) } ], reveal_secrets: true }\n")
        .edit("providers/agenthuman.yaml", "requests: 60", "requests: 6000")
        .edit("providers/agenthuman.yaml", "burst: 60", "burst: 6000")
        .edit("providers/agenthuman.yaml", "failures: 5", "failures: 50")
        .start(&sim);
    let session =
        |id: &str| json!({ "session_id": id, "status": "started", "daily_room": { "url": "u", "token": "canary" } });
    let headers = json!({
        "connection": "x-hop, cache-control", "x-hop": "1", "cache-control": "public", "x-own": "kept",
        "proxy-authenticate": "Basic", "proxy-authentication-info": "a", "set-cookie": "a=b",
    });
    // 404 last: it is stored.
    for status in [201, 202, 203, 206, 207, 226, 301, 302, 307, 400, 403, 409, 500, 404] {
        let id = format!("sess_S{status}");
        let one = json!({ "success": false, "session": session(&id), "error": "e" });
        let many = json!({ "success": false, "sessions": [session(&id)], "error": "e" });
        for (target, body) in [(format!("/v1/sessions/{id}"), &one), ("/v1/sessions".to_owned(), &many)] {
            sim.forget();
            sim.answers("/v1/sessions", status, &headers, &body.to_string());
            for _ in 0..2 {
                let answer = agenthuman(&weir, "GET", &target, None);
                let text = String::from_utf8_lossy(&answer.body);
                assert!(
                    !text.contains("canary") && text.contains(&id) && text.contains("\"url\":\"u\""),
                    "{status} {target}: {text}"
                );
                assert_eq!((answer.status, answer.header("x-own")), (status, Some("kept")), "{target}");
                for gone in ["x-hop", "proxy-authenticate", "proxy-authentication-info", "set-cookie"] {
                    assert_eq!(answer.header(gone), None, "{status} {target}");
                }
                assert_ne!(answer.header("cache-control"), Some("public"), "{status} {target}: named in Connection");
            }
            let seen = weir.get_as("sees", &format!("/agenthuman{target}"));
            assert_eq!((seen.status, seen.json()), (status, body.clone()), "{target}: as it came");
        }
    }
    // Where nobody knows what is in it, Weir tells in the provider's shape that it cannot be used.
    for (status, body) in
        [(200, "{\"token\":\"canary\"}"), (201, "{\"token\":\"canary\"}"), (206, "\"token\":\"canary\"")]
    {
        sim.forget();
        sim.answers("/v1/sessions", status, &json!({}), body);
        let answer = agenthuman(&weir, "GET", "/v1/sessions/sess_Other", None);
        assert_eq!((answer.status, &answer.json()["success"]), (502, &json!(false)), "{status}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("canary"));
    }
    sim.forget();
    sim.answers("/v1/sessions", 404, &json!({ "content-encoding": "gzip" }), "canary");
    let encoded = agenthuman(&weir, "GET", "/v1/sessions/sess_Encoded", None);
    assert_eq!(encoded.header("content-encoding"), None);
    assert!(!String::from_utf8_lossy(&encoded.body).contains("canary"), "it could be a session");
    // What says nothing passes as it came, and so does what is no session.
    for (status, body) in [(202, ""), (418, "teapot"), (409, "[1, 2]")] {
        sim.forget();
        sim.answers("/v1/sessions", status, &json!({}), body);
        let answer = agenthuman(&weir, "GET", "/v1/sessions/sess_Nothing", None);
        assert_eq!((answer.status, &*answer.body), (status, body.as_bytes()));
    }
}

#[test]
fn a_redirect_of_a_described_read_stays_here() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let location = format!("http://{}/v2/agents/agt_load_1/sessions/ase_2", sim.address);
    sim.answers("/v2/", 307, &json!({ "location": location }), "{}");
    let answer = vectara(&weir, "GET", VECTARA_SESSION, None);
    assert_eq!((answer.status, answer.header("location")), (307, Some("/vectara/v2/agents/agt_load_1/sessions/ase_2")));
}

#[test]
fn a_write_that_did_not_arrive_leaves_what_is_stored_for_the_outage() {
    let sim = Sim::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        let _ = socket.read(&mut [0; 4096]);
        let body = r#"{"key":"ase_1","agent_key":"agt_1","name":"n","enabled":true}"#;
        write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
    });
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .env("VECTARA_BASE_URL", &format!("http://{address}"))
        .start(&sim);
    let target = "/v1/sessions/vectara:agt_1:ase_1";
    assert_eq!(weir.get(target).status, 200);
    answering.join().unwrap();
    weir.make_stale();
    for path in ["/v2/agents/agt_1/sessions/ase_1", "/v2/agents/agt_1"] {
        assert_eq!(vectara(&weir, "PATCH", path, Some(&json!({}))).status, 502);
    }
    let stale = weir.get(target);
    assert_eq!((stale.status, status_of(&stale)), (200, "weir; fwd=stale; detail=stale-if-error"));
}

#[test]
fn another_address_of_the_name_is_tried() {
    // `localhost` is [::1] too, where nobody listens.
    let sim = Sim::start();
    let weir =
        Config::shipped().env("VECTARA_BASE_URL", &format!("http://localhost:{}", sim.address.port())).start(&sim);
    for _ in 0..3 {
        let answer = vectara(&weir, "POST", &format!("{VECTARA_SESSION}/events"), Some(&json!({})));
        assert_eq!(answer.status, 201, "{}", answer.json());
    }
}

#[test]
fn who_hangs_up_before_the_answer_ends_the_call_too() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 120_000 }));
    let caller = open(&weir, &post(&format!("/vectara{VECTARA_SESSION}/events"), &[], "{}"));
    until("the call is under way", || weir.metric("weir_upstream_requests_in_flight") == 1.0);
    drop(caller);
    let begun = Instant::now();
    until("the call has ended", || weir.metric("weir_upstream_requests_in_flight") == 0.0);
    assert!(begun.elapsed() < Duration::from_secs(20));
    let cancelled = "weir_upstream_requests_total{operation=\"native\",provider=\"vectara\",status=\"cancelled\"}";
    until("and is counted", || weir.metric(cancelled) == 1.0);
}

/// As real providers are reached: over TLS, by one that would speak HTTP/2.
#[test]
fn over_tls_too_events_come_one_by_one_and_large_bodies_pass() {
    let directory = tempfile::TempDir::new().unwrap();
    let certificate = directory.path().join("sim.pem");
    let sim = Sim::with(&["--tls-certificate", certificate.to_str().unwrap()]);
    let weir = Config::shipped().env("SSL_CERT_FILE", certificate.to_str().unwrap()).start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    let stream = format!("/vectara{VECTARA_SESSION}/events");
    let mut lines = open(&weir, &post(&stream, &[("x-sim-stream", "5,400")], "{\"stream_response\":true}")).lines();
    let (begun, mut arrived) = (Instant::now(), Vec::new());
    for line in lines.by_ref().map_while(Result::ok) {
        if line.starts_with("data: ") {
            arrived.push(begun.elapsed());
        }
    }
    assert!(arrived.len() == 5 && arrived[4] - arrived[0] > Duration::from_millis(600), "{arrived:?}");
    let length = 20 << 20;
    let head = request(
        "POST",
        &stream,
        &[("X-API-Key", "open"), ("Expect", "100-continue"), ("Content-Length", &length.to_string())],
    );
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&head).unwrap();
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(&vec![b'x'; length]).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&format!("\"received_bytes\":{length}")), "{answer}");
    let mut socket =
        open(&weir, &request("GET", &format!("/vectara{VECTARA_SESSION}/artifacts/art_20"), &[("X-API-Key", "open")]));
    let mut got = Vec::new();
    socket.read_to_end(&mut got).unwrap();
    assert!(got.len() > 20 << 20);
}
