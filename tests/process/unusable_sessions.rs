//! Bodies that are JSON, of which a part cannot be used: the rest is served, and each fault has its own words.

use crate::scripted_provider::*;
use crate::support::*;
use serde_json::{Value, json};

const LIST: &str = "/v1/sessions?provider=agenthuman";
const NATIVE_LIST: &str = "/agenthuman/v1/sessions";

fn start(sim: &Sim, provider: &ScriptedProvider) -> Weir {
    let config = unlimited().edit("providers/vectara.yaml", "failures: 5", "failures: 1000000");
    let url = provider.base_url();
    config.env("AGENTHUMAN_BASE_URL", &url).env("VECTARA_BASE_URL", &url).start(sim)
}

fn purge(weir: &Weir) {
    assert_eq!(weir.post_admin("/cache/purge", "{\"all\": true}").status, 200);
}

/// Arrays in arrays, with this many levels.
fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

/// A session with this many levels, its own object included.
fn deep_session(id: &str, levels: usize) -> String {
    format!(r#"{{"session_id":"{id}","status":"started","metadata":{{"k":{}}}}}"#, nested(levels - 2))
}

fn ids(page: &Value) -> Vec<&str> {
    page["sessions"].as_array().unwrap().iter().map(|session| session["id"].as_str().unwrap()).collect()
}

#[test]
fn one_unusable_session_of_a_page_does_not_cost_the_others() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    let good = |id: &str| format!(r#"{{"session_id":"{id}","status":"started","daily_room":{{"token":"canary"}}}}"#);
    let (id, whole) = (json!("provider_session_id"), Value::Null);
    let (deep, deeper) = (deep_session("sess_d", 129), deep_session("sess_d", 5000));
    for (name, bad, field) in [
        ("no id", r#"{"status":"started"}"#.as_bytes(), &id),
        ("an id that is null", br#"{"session_id":null}"#, &id),
        ("an empty id", br#"{"session_id":""}"#, &id),
        ("an id that is an object", br#"{"session_id":{"a":1}}"#, &id),
        ("an id that is half of a surrogate pair", br#"{"session_id":"sess_\ud83d"}"#, &id),
        ("an id in Latin-1", b"{\"session_id\":\"sess_\xe9\"}", &id),
        ("null", b"null", &whole),
        ("a number", b"17", &whole),
        ("a string", br#""sess_x""#, &whole),
        ("an array", br#"[{"session_id":"sess_x"}]"#, &whole),
        ("129 levels", deep.as_bytes(), &whole),
        ("5000 levels", deeper.as_bytes(), &whole),
    ] {
        let (first, last) = (good("sess_first"), good("sess_last"));
        for sessions in [
            [first.as_bytes(), last.as_bytes(), bad],
            [first.as_bytes(), bad, last.as_bytes()],
            [bad, first.as_bytes(), last.as_bytes()],
        ] {
            provider.respond(200, "", &[b"{\"sessions\":[".as_slice(), &sessions.join(&b','), b"]}"].concat());
            for source in ["from the provider", "from the cache"] {
                let response = weir.get(LIST);
                let page = response.json();
                assert_eq!(response.status, 200, "{name}, {source}: {page}");
                assert_eq!(ids(&page), ["agenthuman:sess_first", "agenthuman:sess_last"], "{name}, {source}");
                let warning = json!({ "code": "unusable_session", "field": field, "sessions": 1 });
                assert_eq!(page["sources"][0]["warnings"], json!([warning]), "{name}, {source}: {page}");
                assert_eq!((&page["partial"], &page["sources"][0]["error"]), (&json!(false), &Value::Null));
                let native = weir.get(NATIVE_LIST);
                let body = String::from_utf8_lossy(&native.body).into_owned();
                assert_eq!(native.status, 200, "{name}, {source}: {body}");
                assert!(body.contains("sess_first") && body.contains("sess_last"), "{name}, {source}: {body}");
                assert!(!body.contains("canary"), "{name}, {source}: {body}");
            }
            purge(&weir);
        }
    }
    let metric = |field: &str, reason: &str| {
        weir.metric(&format!(
            "weir_mapping_failures_total{{field=\"{field}\",provider=\"agenthuman\",reason=\"{reason}\"}}"
        ))
    };
    for (field, reason) in [("provider_session_id", "missing"), ("session", "wrong_type"), ("session", "too_deep")] {
        assert!(metric(field, reason) >= 3.0, "{field}, {reason}: {}", weir.metrics());
    }
}

#[test]
fn a_list_without_any_usable_session_names_the_cause() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    provider.respond(200, "", br#"{"sessions":[{"name":"a"},{"name":"b"},7]}"#);
    let response = weir.get(LIST);
    assert_eq!(response.code(), (502, "provider_invalid_response".into()));
    let detail = response.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("none of the 3 sessions") && detail.contains("provider_session_id"), "{detail}");
    purge(&weir);
    provider.respond(200, "", br#"{"sessions":[]}"#);
    assert_eq!(weir.get(LIST).json()["sources"][0]["warnings"], json!([]));
}

#[test]
fn a_deep_session_is_read_up_to_the_limit_and_then_named_as_too_deep() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    for (levels, is_read) in [(126, true), (127, true), (128, true), (129, false), (130, false), (5000, false)] {
        let id = format!("sess_D{levels}");
        let body = format!(r#"{{"session":{}}}"#, deep_session(&id, levels));
        provider.respond(200, "", body.as_bytes());
        let (single, batch) =
            (weir.get(&format!("/v1/sessions/{id}?include=native")), format!("/v1/sessions:batchGet?id={id}"));
        let batch = weir.get(&batch);
        if is_read {
            assert_eq!(single.status, 200, "{levels}");
            assert!(String::from_utf8_lossy(&single.body).contains(&nested(levels - 2)), "{levels}");
            assert!(String::from_utf8_lossy(&batch.body).ends_with("\"error\":null}]}"), "{levels}");
            let selected = weir.get(&format!("/v1/sessions/{id}?fields=metadata"));
            assert!(String::from_utf8_lossy(&selected.body).contains(&nested(levels - 2)), "{levels}");
        } else {
            assert_eq!(single.code(), (502, "provider_invalid_response".into()), "{levels}");
            for problem in [&single.json(), &batch.json()["results"][0]["error"]] {
                let detail = problem["detail"].as_str().unwrap();
                assert!(detail.contains("nested deeper than 128 levels"), "{levels}: {detail}");
            }
        }
        let native = weir.get(&format!("/agenthuman/v1/sessions/{id}"));
        assert_eq!(native.status, 200, "{levels}");
        assert!(String::from_utf8_lossy(&native.body).contains(&id), "{levels}");
    }
    // Depth beside the session costs nothing.
    let body = format!(r#"{{"debug":{},"session":{{"session_id":"sess_E","status":"started"}}}}"#, nested(900));
    provider.respond(200, "", body.as_bytes());
    assert_eq!(weir.get("/v1/sessions/sess_E").json()["status"], "active");
}

#[test]
fn an_odd_error_body_keeps_its_meaning() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    let deep = nested(400);
    for (name, body) in [
        ("half of a surrogate pair", br#"{"messages":["Session ase_x not found \ud83d."]}"#.to_vec()),
        ("Latin-1", b"{\"messages\":[\"Session ase_x not found, d\xe9sol\xe9.\"]}".to_vec()),
        ("depth", format!(r#"{{"messages":["Session ase_x not found."],"trace":{deep}}}"#).into_bytes()),
        ("half of a pair elsewhere", br#"{"x":"\udc00","messages":["Session ase_x not found."]}"#.to_vec()),
    ] {
        provider.respond(404, "", &body);
        let response = weir.get("/v1/sessions/vectara:agt_x:ase_x");
        assert_eq!(response.code(), (404, "session_not_found".into()), "{name}");
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("Session ase_x not found"), "{name}: {detail}");
        let native = weir.get("/vectara/v2/agents/agt_x/sessions/ase_x");
        assert_eq!(native.status, 404, "{name}");
        let text = String::from_utf8_lossy(&native.body).into_owned();
        assert!(text.contains("Session ase_x not found"), "{name}: {text}");
        purge(&weir);
    }
}

#[test]
fn a_page_token_that_is_not_unicode_is_not_the_end_of_the_list() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    let session = r#"{"key":"ase_1","agent_key":"agt_x","created_at":"2024-01-01T00:00:00Z","enabled":true}"#;
    let page = |key: &str| format!(r#"{{"sessions":[{session}],"metadata":{{"page_key":{key}}}}}"#);
    provider.respond(200, "", page(r#""p\ud83d""#).as_bytes());
    let response = weir.get("/v1/sessions?agent=vectara:agt_x");
    assert_eq!(response.code(), (502, "provider_invalid_response".into()));
    assert!(response.json()["detail"].as_str().unwrap().contains("next page's token"), "{}", response.json());
    provider.respond(200, "", page("null").as_bytes());
    assert_eq!(ids(&weir.get("/v1/sessions?agent=vectara:agt_x").json()), ["vectara:agt_x:ase_1"]);
}
