//! Ids with characters that have a meaning in URLs or in unified ids: every id in a response, requested again, names that
//! session. What no request could name is a fault of its own.

use crate::scripted_provider::*;
use crate::support::*;
use serde_json::{Value, json};
use std::io::{Read, Write};

/// Own ids with the form that they have as a part of a unified id, first or last.
const ODD: [(&str, &str, &str); 12] = [
    ("plain_1", "plain_1", "plain_1"),
    ("tenant:42", "tenant%3A42", "tenant:42"),
    ("a:b:c", "a%3Ab%3Ac", "a:b:c"),
    ("projects/7/locations/eu/100", "projects%2F7%2Flocations%2Feu%2F100", "projects%2F7%2Flocations%2Feu%2F100"),
    ("50% off?#1", "50%25%20off%3F%231", "50%25%20off%3F%231"),
    ("%2F", "%252F", "%252F"),
    ("a%3Ab", "a%253Ab", "a%253Ab"),
    ("back\\slash", "back%5Cslash", "back%5Cslash"),
    ("dots.in..it", "dots.in..it", "dots.in..it"),
    ("tilde~2F+x", "tilde~2F+x", "tilde~2F+x"),
    ("\u{e9}\u{65e5}\u{672c}\u{1f600}", "\u{e9}\u{65e5}\u{672c}\u{1f600}", "\u{e9}\u{65e5}\u{672c}\u{1f600}"),
    ("q\"uo'te<>&;=@,", "q\"uo'te<>&;=@,", "q\"uo'te<>&;=@,"),
];

fn start(sim: &Sim, provider: &ScriptedProvider) -> Weir {
    let url = provider.base_url();
    unlimited()
        .edit("providers/agenthuman.yaml", "'^[0-9A-Za-z_-]{1,64}$'", "'^.+$'")
        .edit("providers/vectara.yaml", "'^[0-9a-zA-Z_-]{1,50}$'", "'^.+$'")
        .edit("providers/vectara.yaml", "failures: 5", "failures: 1000000")
        .env("AGENTHUMAN_BASE_URL", &url)
        .env("VECTARA_BASE_URL", &url)
        .start(sim)
}

/// Percent-encodes every byte but the unreserved ones.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The paths of the requests that the provider got.
fn paths(provider: &ScriptedProvider) -> Vec<String> {
    let path = |head: &String| head.split(' ').nth(1).unwrap_or_default().to_owned();
    provider.take_heads().iter().map(path).collect()
}

fn purge(weir: &Weir, body: &Value) -> Value {
    let response = weir.post_admin("/cache/purge", &body.to_string());
    assert_eq!(response.status, 200, "{body}: {}", response.json());
    response.json()["purged"].clone()
}

/// Requests a session by its unified id in every way, and expects this path at the provider.
fn check_session(weir: &Weir, provider: &ScriptedProvider, id: &str, path: &str, body: &Value) {
    provider.respond(200, "", body.to_string().as_bytes());
    purge(weir, &json!({ "all": true }));
    provider.take_heads();
    for target in [format!("/v1/sessions/{}", encoded(id)), format!("/v1/sessions:batchGet?id={}", encoded(id))] {
        let response = weir.get(&target).json();
        let session = response.get("results").map_or(&response, |results| &results[0]["session"]);
        assert_eq!(session["id"], id, "{target}: {response}");
        assert_eq!(paths(provider), [path.to_lowercase()], "{target}");
        assert_eq!(purge(weir, &json!({ "session": id })), 1, "{target}");
    }
    let mut watch = std::net::TcpStream::connect(weir.http).unwrap();
    watch.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let target = format!("/v1/sessions/{}/watch", encoded(id));
    watch.write_all(&request("GET", &target, &[("X-API-Key", "open")])).unwrap();
    wait_until("the watch has the session", || {
        let mut bytes = [0; 4096];
        let count = watch.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).contains("event: session")
    });
    assert_eq!(paths(provider), [path.to_lowercase()], "watch of {id}");
    purge(weir, &json!({ "all": true }));
}

#[test]
fn every_odd_id_in_a_response_names_its_session() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    // Without agents: a list gives the ids.
    let sessions: Vec<Value> = ODD.iter().map(|(own, ..)| json!({ "session_id": own, "status": "started" })).collect();
    provider.respond(200, "", json!({ "sessions": sessions }).to_string().as_bytes());
    let page = weir.get("/v1/sessions?provider=agenthuman&limit=100").json();
    assert_eq!(page["sources"][0]["warnings"], json!([]), "{page}");
    for ((own, _, last), session) in ODD.iter().zip(page["sessions"].as_array().unwrap()) {
        let id = session["id"].as_str().unwrap();
        assert_eq!((id, &session["provider_session_id"]), (&*format!("agenthuman:{last}"), &json!(own)));
        let body = json!({ "session": { "session_id": own, "status": "started" } });
        check_session(&weir, &provider, id, &format!("/v1/sessions/{}", encoded(own)), &body);
    }
    // With agents: each id as the agent's and as the session's.
    for (position, (agent, first, _)) in ODD.iter().enumerate() {
        let (session, _, last) = ODD[(position + 1) % ODD.len()];
        let one = json!({ "key": session, "agent_key": agent, "created_at": "2024-01-01T00:00:00Z", "enabled": true });
        provider.respond(200, "", json!({ "sessions": [one], "metadata": {} }).to_string().as_bytes());
        let page = weir.get(&format!("/v1/sessions?agent=vectara%3A{}", encoded(first))).json();
        let id = page["sessions"][0]["id"].as_str().unwrap_or_else(|| panic!("{agent}: {page}")).to_owned();
        assert_eq!(id, format!("vectara:{first}:{last}"));
        assert_eq!(page["sources"][0]["agent"], *agent);
        let path = format!("/v2/agents/{}/sessions/{}", encoded(agent), encoded(session));
        check_session(&weir, &provider, &id, &path, &one);
        // By the provider's own ids.
        provider.take_heads();
        let own = format!("/v1/agents/{}/sessions/{}?provider=vectara", encoded(agent), encoded(session));
        assert_eq!(weir.get(&own).json()["id"], *id, "{own}");
        assert_eq!(paths(&provider), [path.to_lowercase()], "{own}");
        assert_eq!(purge(&weir, &json!({ "agent": format!("vectara:{first}") })), 1);
    }
}

#[test]
fn an_id_that_no_request_could_name_is_502_and_is_left_out_of_lists() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    let long = "x".repeat(1024);
    for own in [".", "..", "a/../b", "a\nb", "%2e%2e/x", long.as_str()] {
        let one = json!({ "session_id": own, "status": "started" });
        provider.respond(200, "", json!({ "session": one }).to_string().as_bytes());
        let response = weir.get("/v1/sessions/agenthuman:sess_A");
        assert_eq!(response.code(), (502, "provider_invalid_response".into()), "{own}");
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("provider_session_id") && detail.contains("$.session_id"), "{own}: {detail}");
        let good = json!({ "session_id": "sess_B", "status": "started" });
        provider.respond(200, "", json!({ "sessions": [one, good] }).to_string().as_bytes());
        let page = weir.get("/v1/sessions?provider=agenthuman").json();
        assert_eq!(page["sessions"].as_array().unwrap().len(), 1, "{own}: {page}");
        let warning = json!({ "code": "unusable_session", "field": "provider_session_id", "sessions": 1 });
        assert_eq!(page["sources"][0]["warnings"], json!([warning]), "{own}");
        purge(&weir, &json!({ "all": true }));
    }
    let metric =
        "weir_mapping_failures_total{field=\"provider_session_id\",provider=\"agenthuman\",reason=\"not_addressable\"}";
    assert!(weir.metric(metric) >= 12.0, "{}", weir.metrics());
    // What the file does not accept cannot be requested either.
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url()).start(&sim);
    provider.respond(200, "", json!({ "session": { "session_id": "tenant:42" } }).to_string().as_bytes());
    assert_eq!(weir.get("/v1/sessions/agenthuman:sess_A").code(), (502, "provider_invalid_response".into()));
}

#[test]
fn malformed_escapes_and_unescaped_characters_are_400() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    for id in ["a%", "a%2", "a%zz", "a/b", "a b", "a?b", "a#b", "a\\b", "%FF", "..", "%2E%2E", "a%2F..%2Fb", "%00"] {
        let id = format!("agenthuman:{id}");
        assert_eq!(weir.get(&format!("/v1/sessions/{}", encoded(&id))).code(), (400, "invalid_request".into()), "{id}");
        let batch = weir.get(&format!("/v1/sessions:batchGet?id={}", encoded(&id))).json();
        assert_eq!(batch["results"][0]["error"]["code"], "invalid_request", "{id}");
        assert_eq!(weir.post_admin("/cache/purge", &json!({ "session": id }).to_string()).status, 400, "{id}");
    }
    assert!(paths(&provider).is_empty());
}
