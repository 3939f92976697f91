//! Native writes: Weir forwards them and removes the cache entries that they change.

use crate::native_client::*;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;

#[test]
fn a_write_invalidates_the_entries_it_changes_and_only_for_its_credential() {
    let sim = Sim::start();
    let config = Config::shipped().clients(
        "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ], credentials: { vectara: { oauth2: { token_url: \"${VECTARA_BASE_URL}/oauth2/token\", client_id: sim-client, client_secret: sim-secret } } } }\n",
    );
    let weir = config.start(&sim);
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_3";
    let (list, other_list) = ("/v1/agents/agt_load_1/sessions", "/v1/agents/agt_load_2/sessions");
    let hit = |key: &str, target: &str| {
        let response = weir.get_as(key, target);
        assert_eq!(response.status, 200, "{}", response.json());
        cache_status(&response).starts_with("weir; hit")
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
    assert_eq!((patched.status, cache_status(&patched)), (200, "weir; fwd=method"));
    assert!(
        hit("open", other_list) && hit("open", neighbour) && hit("other", unified) && hit("other", list),
        "these entries stay"
    );
    let read = weir.get(unified);
    assert_eq!((cache_status(&read).starts_with("weir; fwd=miss"), &read.json()["title"]), (true, &json!("renamed")));
    assert!(!hit("open", list) && hit("open", list), "the list is fetched once more");
    // A failed write invalidates nothing.
    assert_eq!(vectara(&weir, "PATCH", "/v2/agents/agt_none/sessions/ase_agt_load_1_3", Some(&json!({}))).status, 404);
    assert!(hit("open", unified) && hit("open", list));
    // A read of the same session with other parameters has its own entry, which the write invalidates too.
    let other = format!("/vectara{VECTARA_SESSION}?x=1");
    assert!(!hit("open", &other) && hit("open", &other));
    assert_eq!(vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "again" }))).status, 200);
    assert_eq!(weir.get(&other).json()["name"], "again");
    // A new session invalidates the lists only. Another write below the agent invalidates everything of the agent.
    assert!(hit("open", &other) && hit("open", neighbour) && hit("open", other_list));
    vectara(&weir, "POST", "/v2/agents/agt_load_1/sessions", Some(&json!({})));
    assert!(hit("open", &other) && hit("open", neighbour), "only lists are invalidated");
    sim.set_response("/v2/agents/agt_load_1/x", 200, &json!({}), "{}");
    assert_eq!(vectara(&weir, "PUT", "/v2/agents/agt_load_1/x", None).status, 200);
    assert!(!hit("open", &other) && !hit("open", neighbour) && !hit("open", list) && hit("open", other_list));
    assert!(hit("other", unified) && hit("other", list), "entries of another credential stay");
    assert!(!hit("open", unified));
    // The next list contains the new session. A deleted session is not found.
    assert_eq!(
        vectara(&weir, "POST", "/v2/agents/agt_load_1/sessions", Some(&json!({ "key": "ase_fresh" }))).status,
        201
    );
    assert!(hit("open", unified), "other sessions stay");
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
    let created = agenthuman(&weir, "POST", "/v1/sessions", Some(&json!({ "avatar": "a", "metadata": {} }))).json();
    let id = created["session"]["session_id"].as_str().unwrap().to_owned();
    assert_eq!(weir.get("/v1/sessions?provider=agenthuman").json()["sessions"][0]["provider_session_id"], json!(id));
    assert_eq!(weir.get(&format!("/v1/sessions/{id}")).json()["status"], "active");
    for method in ["PUT", "POST"] {
        assert_eq!(agenthuman(&weir, method, &format!("/v1/sessions/{id}/end"), Some(&json!({}))).status, 200);
        assert_eq!(weir.get(&format!("/v1/sessions/{id}")).json()["status"], "ended");
    }
}

#[test]
fn a_cached_404_is_dropped_when_the_session_is_created() {
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
        assert!(cache_status(&weir.get(unified)).starts_with("weir; hit"), "the 404 is cached");
    };
    let create_after_404 = |context: &str| {
        missing();
        assert_eq!(vectara(&weir, "POST", lists, Some(&json!({ "key": "ase_new" }))).status, 201, "{context}");
        let read = vectara(&weir, "GET", one, None);
        assert_eq!(read.status, 200, "{context}: {}", cache_status(&read));
        assert_eq!(weir.get(unified).status, 200, "{context}");
    };
    create_after_404("created");
    assert_eq!(vectara(&weir, "DELETE", one, None).status, 204);
    create_after_404("created again after a deletion");
    // The creation of another session keeps the found session, and keeps the 404 of another agent.
    let elsewhere = "/v1/sessions/vectara:agt_load_2:ase_none_1";
    assert_eq!((weir.get(elsewhere).status, weir.get(elsewhere).status), (404, 404));
    assert_eq!(vectara(&weir, "POST", lists, Some(&json!({}))).status, 201);
    for (target, status) in [(unified, 200), (elsewhere, 404)] {
        let response = weir.get(target);
        assert_eq!((response.status, cache_status(&response).starts_with("weir; hit")), (status, true), "{target}");
    }
    // A read in flight when the session is created does not supply later requests.
    let (slow, slow_unified) = ("/v2/agents/agt_load_1/sessions/ase_slow", "/v1/sessions/vectara:agt_load_1:ase_slow");
    let fault = json!({ "kind": "answer", "status": 404, "headers": {}, "body": "{\"messages\":[\"no session\"]}" });
    sim.plan(&json!({ "path": slow, "times": 1, "latency_ms": 2000, "fault": fault }));
    sim.reset_calls();
    std::thread::scope(|scope| {
        let earlier = scope.spawn(|| weir.get(slow_unified).status);
        wait_until("the read is in flight", || sim.calls() == 1);
        assert_eq!(vectara(&weir, "POST", lists, Some(&json!({ "key": "ase_slow" }))).status, 201);
        assert_eq!(weir.get(slow_unified).status, 200, "the request does not join the earlier call");
        assert_eq!(earlier.join().unwrap(), 404);
    });
    assert_eq!(weir.get(slow_unified).status, 200, "the earlier 404 is not stored");
    // The same holds for a provider without agents.
    let id = {
        let created = agenthuman(&weir, "POST", "/v1/sessions", Some(&json!({}))).json();
        let id = created["session"]["session_id"].as_str().unwrap().to_owned();
        let (head, number) = id.split_at("sess_NEW".len());
        format!("{head}{:08X}", u64::from_str_radix(number, 16).unwrap() + 1)
    };
    assert_eq!(agenthuman(&weir, "GET", &format!("/v1/sessions/{id}"), None).status, 404);
    let created = agenthuman(&weir, "POST", "/v1/sessions", Some(&json!({}))).json();
    assert_eq!(created["session"]["session_id"], json!(id), "ids are consecutive");
    assert_eq!(agenthuman(&weir, "GET", &format!("/v1/sessions/{id}"), None).status, 200);
}

#[test]
fn a_read_in_flight_during_a_write_does_not_store_the_old_session() {
    let sim = Sim::start();
    let weir = std::sync::Arc::new(Config::shipped().start(&sim));
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_3";
    let old = fetch_directly(&sim, VECTARA_SESSION, ("x-api-key", "zut_sim"));
    let fault = json!({ "kind": "answer", "status": 200, "headers": {}, "body": String::from_utf8(old).unwrap() });
    sim.plan(&json!({ "path": VECTARA_SESSION, "times": 1, "latency_ms": 2000, "fault": fault }));
    sim.reset_calls();
    let reader = weir.clone();
    let slow = std::thread::spawn(move || reader.get(unified));
    wait_until("the read is in flight", || sim.calls() == 1);
    assert_eq!(vectara(&weir, "PATCH", VECTARA_SESSION, Some(&json!({ "name": "renamed" }))).status, 200);
    assert_eq!(weir.get(unified).json()["title"], "renamed", "the request does not join the earlier call");
    assert_ne!(slow.join().unwrap().json()["title"], "renamed");
    let after = weir.get(unified);
    assert_eq!((&after.json()["title"], cache_status(&after).starts_with("weir; hit")), (&json!("renamed"), true));
}

#[test]
fn a_write_that_does_not_reach_the_provider_keeps_entries_for_stale_if_error() {
    let sim = Sim::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let provider = std::thread::spawn(move || {
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
    provider.join().unwrap();
    weir.make_stale();
    for path in ["/v2/agents/agt_1/sessions/ase_1", "/v2/agents/agt_1"] {
        assert_eq!(vectara(&weir, "PATCH", path, Some(&json!({}))).status, 502);
    }
    let stale = weir.get(target);
    assert_eq!((stale.status, cache_status(&stale)), (200, "weir; fwd=stale; detail=stale-if-error"));
}
