//! Mapping from the providers' sessions to the unified schema, through the whole gateway.

use crate::support::*;
use serde_json::{Value, json};

#[test]
fn the_simulators_sessions_map_to_the_unified_examples() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    for (path, case) in [(VECTARA, "vectara/get"), (PALANTIR, "palantir/get"), (AGENTHUMAN, "agenthuman/get")] {
        let response = weir.get(path);
        assert_eq!(response.status, 200, "{}", response.json());
        // Compared as text because the order of members is part of the contract.
        assert_eq!(response.json().to_string(), example(case).1.to_string());
        let by_id = format!("/v1/sessions/{}", response.json()["id"].as_str().unwrap());
        assert_eq!(weir.get(&by_id).body, response.body);
        assert_eq!(weir.get(&by_id.replace(':', "%3A")).body, response.body);
    }
    let list = weir.get("/v1/agents/agt_customer_support/sessions?limit=3").json();
    assert_eq!(list["sessions"].to_string(), example("vectara/list").1["sessions"].to_string());
    assert_eq!(list["total_count"], 127);
    assert_eq!(list["partial"], false);
    let source = json!([{ "provider": "vectara", "agent": "agt_customer_support", "state": "fresh", "age_seconds": 0, "warnings": [], "error": null }]);
    assert_eq!(list["sources"], source);
}

/// Sets the provider's response body and returns Weir's response.
fn get_mapped(sim: &Sim, weir: &Weir, path: &str, id: &str, body: &Value) -> Response {
    sim.clear_faults();
    sim.set_response(id, 200, &json!({}), &body.to_string());
    weir.get(path)
}

#[test]
fn other_native_forms_of_each_provider_map_to_the_unified_examples() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    for (case, provider) in [
        ("vectara/get-by-spec", "vectara"),
        ("palantir/live", "palantir"),
        ("agenthuman/newest", "agenthuman"),
        ("agenthuman/oldest", "agenthuman"),
    ] {
        let (native, unified) = example(case);
        let id = unified["provider_session_id"].as_str().unwrap();
        let path = format!("/v1/sessions/{}", unified["id"].as_str().unwrap());
        let response = get_mapped(&sim, &weir, &path, id, &native);
        assert_eq!((response.status, response.json()), (200, unified), "{case} of {provider}");
    }
}

#[test]
fn a_missing_required_field_gives_502_and_an_invalid_optional_field_is_null_and_counted() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let without = |case: &str, pointer: &str, member: &str| {
        let mut native = example(case).0;
        native.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(member);
        native
    };
    for (path, id, body, field) in [
        (VECTARA, "ase_customer", without("vectara/get", "", "id"), "provider_session_id"),
        (VECTARA, "ase_customer", without("vectara/get", "", "agent_key"), "agent.id"),
        (PALANTIR, "session.292", without("palantir/get", "", "rid"), "provider_session_id"),
        (AGENTHUMAN, "sess_01H3", without("agenthuman/get", "/session", "session_id"), "provider_session_id"),
    ] {
        let response = get_mapped(&sim, &weir, path, id, &body);
        assert_eq!(response.code(), (502, "provider_invalid_response".into()));
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("{field} is required")), "{detail}");
    }
    let mut native = example("vectara/get").0;
    native["created_at"] = json!(1_705_314_600);
    native["metadata"] = json!(["not", "an", "object"]);
    native["enabled"] = json!("perhaps");
    let session = get_mapped(&sim, &weir, VECTARA, "ase_customer", &native).json();
    assert_eq!(
        (&session["created_at"], &session["metadata"], &session["status"]),
        (&Value::Null, &json!({}), &json!("unknown"))
    );
    for (field, reason) in [("created_at", "wrong_type"), ("metadata", "wrong_type"), ("status", "unknown_value")] {
        let series =
            format!("weir_mapping_failures_total{{field=\"{field}\",provider=\"vectara\",reason=\"{reason}\"}}");
        assert_eq!(weir.metric(&series), 1.0, "{series}");
    }
}

#[test]
fn metadata_passes_unchanged() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    let metadata = r#"{"z":1,"a":{"y":[1.0,1e+3,12345678901234567890123],"b":null,"k":{"$serde_json::private::Number":"x"}},"π":"ü","0":-0.0}"#;
    let body = format!(r#"{{"key":"ase_x","agent_key":"agt_x","enabled":true,"metadata":{metadata}}}"#);
    sim.set_response("ase_x", 200, &json!({}), &body);
    let response = weir.get("/v1/sessions/vectara:agt_x:ase_x");
    let text = String::from_utf8(response.body).unwrap();
    assert!(text.contains(&format!(r#""metadata":{metadata}"#)), "{text}");
}

#[test]
fn only_clients_with_reveal_secrets_see_secrets() {
    let sim = Sim::start();
    let config = Config::shipped().clients(
        "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: trusted, keys: [ { sha256: SHA(trusted) } ], reveal_secrets: true }\n",
    );
    let weir = config.start(&sim);
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...";
    let native = format!("{AGENTHUMAN}?include=native");
    let (plain, plain_native) = (weir.get(AGENTHUMAN), weir.get(&native));
    let (revealed, revealed_native) = (weir.get_as("trusted", AGENTHUMAN), weir.get_as("trusted", &native));
    assert_eq!(sim.calls(), 1, "all views come from one cache entry");
    for response in [&plain, &plain_native] {
        assert!(!String::from_utf8_lossy(&response.body).contains(token));
    }
    assert_eq!(
        plain.json()["connection"],
        json!({ "url": "https://agenthuman.daily.co/example-room-name", "name": "example-room-name" })
    );
    assert_eq!(revealed.json()["connection"]["token"], token);
    let mut expected_native = example("agenthuman/get").0["session"].clone();
    assert_eq!(revealed_native.json()["native"].to_string(), expected_native.to_string());
    expected_native["daily_room"].as_object_mut().unwrap().remove("token");
    assert_eq!(plain_native.json()["native"], expected_native);
    let tags: std::collections::HashSet<_> =
        [&plain, &plain_native, &revealed, &revealed_native].map(|a| a.header("etag").unwrap()).into();
    assert_eq!(tags.len(), 4, "each view has its own entity tag");
    for output in [
        weir.metrics(),
        String::from_utf8(weir.admin("GET", "/config").body).unwrap(),
        weir.process.stdout.lock().unwrap().join("\n"),
    ] {
        assert!(!output.contains(token) && !output.contains("ah_test_sim"));
    }
}

#[test]
fn a_secret_inside_metadata_is_removed_from_the_unified_and_the_native_view() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "secrets: [$.secrets]", "secrets: [$.secrets, $.metadata.api_key]")
        .start(&sim);
    let body =
        r#"{"key":"ase_x","agent_key":"agt_x","metadata":{"a":1,"api_key":"hidden","b":2},"secrets":{"t":"hidden"}}"#;
    sim.set_response("ase_x", 200, &json!({}), body);
    for query in ["", "?include=native"] {
        let response = weir.get(&format!("/v1/sessions/vectara:agt_x:ase_x{query}"));
        assert!(!String::from_utf8_lossy(&response.body).contains("hidden"), "{query}");
        assert_eq!(response.json()["metadata"].to_string(), r#"{"a":1,"b":2}"#, "{query}");
    }
}

#[test]
fn a_page_walk_returns_every_session_once_for_any_limit() {
    let (sim, config) = (Sim::with_options(&["--sessions", "230"]), Config::shipped());
    let weir = config.start(&sim);
    // A total of 0 stands for a number that the test does not know.
    for (path, total) in [
        ("/v1/agents/agt_load_1/sessions", 230),
        ("/v1/agents/agt_load_1/sessions?enabled=true", 0),
        ("/v1/agents/agt_load_2/sessions?status=active", 0),
        ("/v1/agents/ri.aip-agents..agent.00000000-0000-0000-0000-000000000003/sessions", 230),
        ("/v1/sessions?provider=agenthuman", 230),
        ("/v1/sessions?provider=agenthuman&status=pending", 0),
        ("/v1/agents/agt_empty/sessions", 0),
    ] {
        let mut lengths = Vec::new();
        for limit in [7, 100, 64] {
            let mut ids = Vec::new();
            let mut token: Option<String> = None;
            for _ in 0..300 {
                let sign = if path.contains('?') { '&' } else { '?' };
                let token_part = token.as_ref().map(|t| format!("&page_token={t}")).unwrap_or_default();
                let page = weir.get(&format!("{path}{sign}limit={limit}{token_part}")).json();
                let sessions = page["sessions"].as_array().unwrap_or_else(|| panic!("{page}"));
                assert!(sessions.len() <= limit);
                ids.extend(sessions.iter().map(|s| s["id"].as_str().unwrap().to_owned()));
                token = page["next_page_token"].as_str().map(str::to_owned);
                if token.is_none() {
                    break;
                }
                assert!(!sessions.is_empty() || path.contains("status"), "a page before the last is empty");
            }
            assert_eq!(token, None, "the page walk does not end");
            let distinct: std::collections::HashSet<_> = ids.iter().collect();
            assert_eq!(distinct.len(), ids.len(), "{path}");
            lengths.push(ids.len());
        }
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{path}: {lengths:?}");
        assert!(total == 0 || lengths[0] == total, "{path}: {lengths:?}");
        assert!(path.contains("empty") || lengths[0] > 0, "{path}");
    }
}

#[test]
fn a_filter_is_sent_to_the_provider_if_it_supports_it_and_else_applied_by_weir() {
    let (sim, config) = (Sim::with_options(&["--sessions", "230"]), Config::shipped());
    let weir = config.start(&sim);
    let enabled = weir.get("/v1/agents/agt_load_1/sessions?enabled=false&limit=5").json();
    assert!(enabled["sessions"].as_array().unwrap().iter().all(|s| s["status"] == "disabled"));
    assert!(sim.call_counts()["calls"].to_string().contains("enabled=false"));
    let total = weir.get("/v1/sessions?provider=agenthuman&limit=1").json()["total_count"].clone();
    assert_eq!(total, 230);
    let ended = weir.get("/v1/sessions?provider=agenthuman&limit=50&status=ended").json();
    assert_eq!((ended["sessions"].as_array().unwrap().len(), &ended["total_count"]), (50, &Value::Null));
    assert!(ended["sessions"].as_array().unwrap().iter().all(|s| s["status"] == "ended"));
}

#[test]
fn times_durations_and_counts_are_read_as_the_file_says() {
    let sim = Sim::start();
    let rules = "  created_at: { from: [$.none, $.start], unit: ms, absent: 0 }\n  started_at: { from: $.said, format: rfc2822 }\n  ended_at: { from: $.end, unit: s }\n  updated_at: $.spaced\n  duration_seconds: { from: $.took, unit: ms }\n  message_count: { count: $.turns }\n";
    let config = Config::shipped()
        .edit("providers/vectara.yaml", "  created_at: $.created_at\n", rules)
        .edit(
            "providers/vectara.yaml",
            "    id: $.agent_key\n",
            "    id: $.agent_key\n    version: { from: $.version, as: text }\n",
        )
        .edit(
            "providers/vectara.yaml",
            "  title: [$.name, $.description]\n",
            "  title: { from: [$.name, $.description], absent: \"\" }\n",
        );
    std::fs::remove_dir_all(config.path("examples/vectara")).unwrap();
    let weir = config.start(&sim);
    let body = json!({
        "key": "ase_1", "agent_key": "agt_1", "enabled": true, "version": 7, "name": "", "description": "d",
        "none": 0, "start": 1_700_000_000_123_i64, "said": "Tue, 31 Aug 2010 20:36:28 +0200", "end": "1700000100",
        "spaced": "2024-01-15 12:00:00+01:00", "took": 99_877, "turns": [{}, {}, {}],
    });
    let session = get_mapped(&sim, &weir, "/v1/sessions/vectara:agt_1:ase_1", "ase_1", &body).json();
    let found = |name: &str| session[name].clone();
    assert_eq!(session["agent"]["version"], "7");
    assert_eq!(found("title"), "d");
    assert_eq!(found("created_at"), "2023-11-14T22:13:20.123Z");
    assert_eq!(found("started_at"), "2010-08-31T18:36:28Z");
    assert_eq!(found("ended_at"), "2023-11-14T22:15:00Z");
    assert_eq!(found("updated_at"), "2024-01-15T11:00:00Z");
    assert_eq!(session["duration_seconds"].to_string(), "99.877");
    assert_eq!(found("message_count"), 3);
    assert_eq!(
        weir.metric("weir_mapping_failures_total{field=\"created_at\",provider=\"vectara\",reason=\"wrong_type\"}"),
        0.0
    );
}
