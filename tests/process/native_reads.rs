//! Native reads: Weir returns the provider's bytes, caches them, and removes secrets that the client may not see.

use crate::native_client::*;
use crate::support::*;
use serde_json::{Value, json};

#[test]
fn a_native_read_returns_the_providers_bytes_and_shares_the_cache_entry_with_the_unified_view() {
    let sim = Sim::start();
    let config = Config::shipped().clients(
        "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: trusted, keys: [ { sha256: SHA(trusted) } ], reveal_secrets: true }\n",
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
        let direct = fetch_directly(&sim, path, *credential);
        sim.reset_calls();
        let native = format!("/{name}{path}");
        let first = weir.get_as("trusted", &native);
        assert_eq!((first.status, &first.body), (200, &direct), "{name}: body differs from the provider's");
        assert_eq!(first.header("content-type"), Some("application/json"));
        assert!(cache_status(&weir.get(unified)).starts_with("weir; hit"), "{name}: both views share one entry");
        let again = weir.get_as("trusted", &native);
        assert!(cache_status(&again).starts_with("weir; hit") && again.header("age").is_some(), "{name}");
        let tag = again.header("etag").unwrap().to_owned();
        assert_eq!(send(weir.http, "GET", &native, &[("X-API-Key", "trusted"), ("If-None-Match", &tag)]).status, 304);
        let head = send(weir.http, "HEAD", &native, &[("X-API-Key", "trusted")]);
        assert_eq!(
            (head.status, head.body.len(), head.header("content-length")),
            (200, 0, Some(&*direct.len().to_string()))
        );
        assert_eq!(sim.calls(), 1, "{name}");
        // A client without `reveal_secrets` gets the same JSON without the secrets.
        let mut expected: Value = serde_json::from_slice(&direct).unwrap();
        if let Some(daily_room) = expected.pointer_mut("/session/daily_room") {
            assert!(daily_room.as_object_mut().unwrap().remove("token").is_some());
        }
        assert_eq!(weir.get(&native).json(), expected, "{name}");
    }
    // Weir adds the required parameter `preview`, so a request without it has the same cache entry.
    assert!(cache_status(&weir.get(&format!("/palantir{PALANTIR_SESSION}"))).starts_with("weir; hit"));
    assert_eq!(
        weir.metric(
            "weir_http_requests_total{client=\"trusted\",provider=\"vectara\",route=\"get_session\",status=\"200\"}"
        ),
        3.0
    );
}

#[test]
fn native_lists_have_the_pages_that_the_sdks_expect() {
    let sim = Sim::with_options(&["--sessions", "57"]);
    let weir = Config::shipped().start(&sim);
    let (mut keys, mut token) = (Vec::new(), String::new());
    for page in 0..10 {
        let more = if token.is_empty() { String::new() } else { format!("&page_key={token}") };
        let response = vectara(&weir, "GET", &format!("/v2/agents/agt_load_1/sessions?limit=25{more}"), None).json();
        keys.extend(response["sessions"].as_array().unwrap().iter().map(|s| s["key"].clone()));
        token = response["metadata"]["page_key"].as_str().unwrap_or_default().to_owned();
        assert_eq!(token.is_empty(), page == 2);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(keys.len(), 57);
    let (mut rids, mut token) = (Vec::new(), String::new());
    loop {
        let more = if token.is_empty() { String::new() } else { format!("&pageToken={token}") };
        let response =
            palantir(&weir, "GET", &format!("{PALANTIR_AGENT}/sessions?pageSize=20{more}&preview=true"), None).json();
        rids.extend(response["data"].as_array().unwrap().iter().map(|s| s["rid"].clone()));
        token = response["nextPageToken"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(rids.len(), 57);
    sim.reset_calls();
    let again = vectara(&weir, "GET", "/v2/agents/agt_load_1/sessions?limit=25", None);
    assert!(cache_status(&again).starts_with("weir; hit"), "{}", cache_status(&again));
    // Weir forwards parameters that the provider's file does not name, and gives them their own cache entries.
    sim.reset_calls();
    let filtered = "/v2/agents/agt_load_1/sessions?limit=2&filter=a%20b";
    assert!(cache_status(&vectara(&weir, "GET", filtered, None)).starts_with("weir; fwd=miss; stored"));
    assert!(cache_status(&vectara(&weir, "GET", filtered, None)).starts_with("weir; hit"));
    assert_eq!(
        sim.call_counts()["calls"].as_object().unwrap().keys().collect::<Vec<_>>(),
        [&format!("GET {filtered}")]
    );
    let rejected = vectara(&weir, "GET", "/v2/agents/agt_load_1/sessions?limit=1000", None);
    assert_eq!(
        (rejected.status, rejected.json()["field_errors"]["limit"].is_string()),
        (400, true),
        "the provider's own error"
    );
    assert_eq!(agenthuman(&weir, "GET", "/v1/sessions", None).json()["sessions"].as_array().unwrap().len(), 57);
}

#[test]
fn a_host_listed_in_the_providers_file_needs_no_path_prefix() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", "hosts: []", "hosts: [agenthuman.weir.example, \"other.example:81\"]")
        .start(&sim);
    let get_from_host = |host: &str, target: &str| {
        send_bytes(
            weir.http,
            format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nx-api-key: open\r\n\r\n").as_bytes(),
        )
    };
    let native = get_from_host("AgentHuman.weir.example:8080", AGENTHUMAN_SESSION);
    assert_eq!((native.status, native.json()["success"].clone()), (200, json!(true)));
    assert_eq!(get_from_host("other.example:81", "/v1/usage").json()["success"], true);
    assert_eq!(
        get_from_host("other.example:82", AGENTHUMAN).json()["provider"],
        "agenthuman",
        "a port that is not listed belongs to Weir's own API"
    );
}

#[test]
fn dot_segments_and_encoded_slashes_in_native_paths_are_refused() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    for path in ["/vectara/v2/../../etc", "/vectara/%2e%2e/x", "/vectara/v2/a%2f..%2fb", "/vectara/."] {
        let response = weir.get(path);
        assert_eq!(response.status, 400, "{path}");
        assert!(response.json()["messages"][0].as_str().unwrap().contains("segment"), "{path}");
    }
    assert_eq!(sim.calls(), 0);
    assert_eq!(weir.get("/vectara").status, 404, "the provider has no root path");
    assert_eq!(weir.get("/nowhere/v2").code(), (404, "not_found".into()));
}

#[test]
fn no_spelling_of_a_session_path_reveals_secrets() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let body = json!({ "success": true, "session": { "session_id": "sess_A", "status": "started", "daily_room": { "token": "canary" } } });
    // This provider returns the session for any path.
    sim.set_response("", 200, &json!({}), &body.to_string());
    let mut rejected = 0;
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
            let response = send(weir.http, method, &format!("/agenthuman{path}"), &[("X-API-Key", "open")]);
            assert!(
                !String::from_utf8_lossy(&response.body).contains("canary"),
                "{method} {path}: {}",
                response.status
            );
            rejected += usize::from(response.status == 400);
        }
    }
    assert!(rejected >= 18, "only {rejected} refused");
    assert_eq!(agenthuman(&weir, "GET", "/v1/usage", None).status, 200, "Weir forwards other paths");
}

#[test]
fn no_response_status_reveals_secrets() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: trusted, keys: [ { sha256: SHA(trusted) } ], reveal_secrets: true }\n")
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
    // 404 comes last because Weir stores it.
    for status in [201, 202, 203, 206, 207, 226, 301, 302, 307, 400, 403, 409, 500, 404] {
        let id = format!("sess_S{status}");
        let single = json!({ "success": false, "session": session(&id), "error": "e" });
        let list = json!({ "success": false, "sessions": [session(&id)], "error": "e" });
        for (target, body) in [(format!("/v1/sessions/{id}"), &single), ("/v1/sessions".to_owned(), &list)] {
            sim.clear_faults();
            sim.set_response("/v1/sessions", status, &headers, &body.to_string());
            for _ in 0..2 {
                let response = agenthuman(&weir, "GET", &target, None);
                let text = String::from_utf8_lossy(&response.body);
                assert!(
                    !text.contains("canary") && text.contains(&id) && text.contains("\"url\":\"u\""),
                    "{status} {target}: {text}"
                );
                assert_eq!((response.status, response.header("x-own")), (status, Some("kept")), "{target}");
                for removed in ["x-hop", "proxy-authenticate", "proxy-authentication-info", "set-cookie"] {
                    assert_eq!(response.header(removed), None, "{status} {target}");
                }
                assert_ne!(
                    response.header("cache-control"),
                    Some("public"),
                    "{status} {target}: the header that Connection names"
                );
            }
            let revealed = weir.get_as("trusted", &format!("/agenthuman{target}"));
            assert_eq!(
                (revealed.status, revealed.json()),
                (status, body.clone()),
                "{target}: body differs from the provider's"
            );
        }
    }
    // If Weir cannot tell whether a success response contains secrets, it sends an error in the provider's format.
    for (status, body) in
        [(200, "{\"token\":\"canary\"}"), (201, "{\"token\":\"canary\"}"), (206, "\"token\":\"canary\"")]
    {
        sim.clear_faults();
        sim.set_response("/v1/sessions", status, &json!({}), body);
        let response = agenthuman(&weir, "GET", "/v1/sessions/sess_Other", None);
        assert_eq!((response.status, &response.json()["success"]), (502, &json!(false)), "{status}");
        assert!(!String::from_utf8_lossy(&response.body).contains("canary"));
    }
    sim.clear_faults();
    sim.set_response("/v1/sessions", 404, &json!({ "content-encoding": "gzip" }), "canary");
    let encoded = agenthuman(&weir, "GET", "/v1/sessions/sess_Encoded", None);
    assert_eq!(encoded.header("content-encoding"), None);
    assert!(!String::from_utf8_lossy(&encoded.body).contains("canary"), "an encoded body can contain a session");
    // Empty bodies, and error bodies that are no sessions, pass unchanged.
    for (status, body) in [(202, ""), (418, "teapot"), (409, "[1, 2]")] {
        sim.clear_faults();
        sim.set_response("/v1/sessions", status, &json!({}), body);
        let response = agenthuman(&weir, "GET", "/v1/sessions/sess_Nothing", None);
        assert_eq!((response.status, &*response.body), (status, body.as_bytes()));
    }
}

#[test]
fn the_location_of_a_redirect_is_rewritten_to_weirs_path() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let location = format!("http://{}/v2/agents/agt_load_1/sessions/ase_2", sim.address);
    sim.set_response("/v2/", 307, &json!({ "location": location }), "{}");
    let response = vectara(&weir, "GET", VECTARA_SESSION, None);
    assert_eq!(
        (response.status, response.header("location")),
        (307, Some("/vectara/v2/agents/agt_load_1/sessions/ase_2"))
    );
}
