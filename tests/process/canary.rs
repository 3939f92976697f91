//! Puts a canary string into every secret and checks that no response, log line or admin page shows it.

use crate::support::*;
use serde_json::json;

#[test]
fn no_secret_appears_in_responses_logs_or_admin_pages() {
    let sim = Sim::with_options(&["--agenthuman-key", "canary-credential", "--palantir-token", "canary-token"]);
    let config = Config::shipped()
        .clients(
            "clients:\n  - { id: one, keys: [ { sha256: SHA(canary-key-one) } ], credentials: { vectara: { header: x-api-key, value: canary-own-credential } } }\n  - { id: two, keys: [ { sha256: SHA(two) } ] }\n  - { id: revealing, keys: [ { sha256: SHA(revealing) } ], reveal_secrets: true }\n",
        )
        .env("WEIR_ADMIN_TOKEN", "canary-admin-token")
        .env("WEIR_PAGE_TOKEN_KEY", "canary-page-key");
    let weir = config.start(&sim);
    let mut seen: Vec<(String, String)> = Vec::new();
    let native = json!({ "success": true, "session": {
        "session_id": "sess_A", "status": "started", "daily_room": { "url": "u", "name": "n", "token": "canary-room-token" },
        "access_token": "canary-access-token", "session_token": "canary-session-token",
    } });
    let headers = json!({ "set-cookie": "canary-cookie=1", "x-secret": "canary-header", "etag": "\"canary-etag\"" });
    sim.set_response("/v1/sessions/sess_A", 200, &headers, &native.to_string());
    sim.set_response("/v1/sessions/sess_B", 200, &headers, "canary-garbage");
    sim.set_response(
        "/v1/sessions/sess_C",
        500,
        &headers,
        r#"{"secret":"canary-error-body","error":{"message":"words for people"}}"#,
    );
    sim.set_response(
        "/v1/sessions/sess_D",
        200,
        &headers,
        r#"{"session":{"session_id":null,"daily_room":{"token":"canary-unmappable"}}}"#,
    );
    // A client with `reveal_secrets` gets the secret. The rendered body stays in the shared cache entry, and other
    // clients, who get a hit on the same entry, must not receive it.
    for target in ["/v1/sessions/sess_A", "/v1/sessions/sess_A?include=native", "/agenthuman/v1/sessions/sess_A"] {
        let revealed = weir.get_as("revealing", target);
        assert!(
            revealed.status == 200 && String::from_utf8_lossy(&revealed.body).contains("canary-room-token"),
            "{target}"
        );
        let redacted = send(weir.http, "GET", target, &[("Authorization", "Bearer two")]);
        assert!(redacted.status == 200 && redacted.header("cache-status").unwrap().contains("hit"), "{target}");
        seen.push((target.to_owned(), String::from_utf8_lossy(&redacted.body).into_owned()));
    }
    let mut get = |key: &str, target: &str| {
        let response = weir.get_as(key, target);
        let headers: Vec<String> = response.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        seen.push((target.to_owned(), headers.join("\n") + &String::from_utf8_lossy(&response.body)));
    };
    for key in ["canary-key-one", "two", "canary-wrong-key"] {
        for session in ["sess_A", "sess_B", "sess_C", "sess_D"] {
            get(key, &format!("/v1/sessions/{session}"));
            get(key, &format!("/v1/sessions/{session}?include=native"));
        }
        for target in [
            VECTARA,
            PALANTIR,
            "/v1/sessions?provider=agenthuman&limit=2",
            "/v1/providers",
            "/v1/agents/agt_customer_support/sessions?limit=1",
        ] {
            get(key, target);
        }
    }
    // Ids and query values come from the client: its own response may repeat them, but no log or admin page.
    let mut own_statuses = Vec::new();
    for target in [
        "/v1/sessions/vectara:agt_1:ase_canary-id",
        "/v1/sessions/sess_A?canary-parameter=canary-value",
        "/v1/agents/agt_canary-agent/sessions?page_token=canary-page-token",
        "/v1/sessions?provider=canary-provider",
        "/canary-path",
    ] {
        own_statuses.push(weir.get_as("two", target).status);
    }
    assert_eq!(own_statuses, [404, 400, 400, 404, 404]);
    let requests = seen.len() + own_statuses.len();
    for path in ["/metrics", "/healthz", "/readyz", "/config", "/cache"] {
        let response = send(weir.admin, "GET", path, &[("Authorization", "Bearer canary-admin-token")]);
        assert_eq!(response.status, 200, "{path}");
        seen.push((path.into(), String::from_utf8_lossy(&response.body).into_owned()));
    }
    // The faults of a broken configuration are reported without its secrets.
    weir.config.change(
        "clients.yaml",
        "value: canary-own-credential",
        "value: \"canary-own-credential\\ncanary-line-break\"",
    );
    let faults = send(weir.admin, "POST", "/reload", &[("Authorization", "Bearer canary-admin-token")]);
    assert_eq!(faults.status, 422);
    seen.push(("/reload".into(), String::from_utf8_lossy(&faults.body).into_owned()));
    wait_until("the log has the last request", || weir.process.stdout.lock().unwrap().len() >= requests);
    seen.push(("stdout".into(), weir.process.stdout.lock().unwrap().join("\n")));
    seen.push(("stderr".into(), weir.process.stderr.lock().unwrap().join("\n")));
    for (place, text) in seen {
        assert!(!text.contains("canary"), "{place}: {text}");
    }
}
