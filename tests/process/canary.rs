//! A canary in every place that holds a secret, looked for in every place that people can see.

use crate::support::*;
use serde_json::json;

#[test]
fn no_canary_is_seen_anywhere() {
    let sim = Sim::with(&["--agenthuman-key", "canary-credential", "--palantir-token", "canary-token"]);
    let config = Config::shipped()
        .clients(
            "clients:\n  - { id: one, keys: [ { sha256: SHA(canary-key-one) } ], credentials: { vectara: { header: x-api-key, value: canary-own-credential } } }\n  - { id: two, keys: [ { sha256: SHA(two) } ] }\n  - { id: sees, keys: [ { sha256: SHA(sees) } ], reveal_secrets: true }\n",
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
    sim.answers("/v1/sessions/sess_A", 200, &headers, &native.to_string());
    sim.answers("/v1/sessions/sess_B", 200, &headers, "canary-garbage");
    sim.answers(
        "/v1/sessions/sess_C",
        500,
        &headers,
        r#"{"secret":"canary-error-body","error":{"message":"words for people"}}"#,
    );
    sim.answers(
        "/v1/sessions/sess_D",
        200,
        &headers,
        r#"{"session":{"session_id":null,"daily_room":{"token":"canary-unmappable"}}}"#,
    );
    // Whoever may see the secret sees it, and leaves the view that shows it in the entry that all share.
    for target in ["/v1/sessions/sess_A", "/v1/sessions/sess_A?include=native", "/agenthuman/v1/sessions/sess_A"] {
        let shown = weir.get_as("sees", target);
        assert!(shown.status == 200 && String::from_utf8_lossy(&shown.body).contains("canary-room-token"), "{target}");
        let cut = send(weir.http, "GET", target, &[("Authorization", "Bearer two")]);
        assert!(cut.status == 200 && cut.header("cache-status").unwrap().contains("hit"), "{target}");
        seen.push((target.to_owned(), String::from_utf8_lossy(&cut.body).into_owned()));
    }
    let mut ask = |key: &str, target: &str| {
        let answer = weir.get_as(key, target);
        let headers: Vec<String> = answer.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        seen.push((target.to_owned(), headers.join("\n") + &String::from_utf8_lossy(&answer.body)));
    };
    for key in ["canary-key-one", "two", "canary-wrong-key"] {
        for session in ["sess_A", "sess_B", "sess_C", "sess_D"] {
            ask(key, &format!("/v1/sessions/{session}"));
            ask(key, &format!("/v1/sessions/{session}?include=native"));
        }
        for target in [
            VECTARA,
            PALANTIR,
            "/v1/sessions?provider=agenthuman&limit=2",
            "/v1/providers",
            "/v1/agents/agt_customer_support/sessions?limit=1",
        ] {
            ask(key, target);
        }
    }
    // Ids and query values are the client's own: it may be told them, and nobody else.
    let mut own = Vec::new();
    for target in [
        "/v1/sessions/vectara:agt_1:ase_canary-id",
        "/v1/sessions/sess_A?canary-parameter=canary-value",
        "/v1/agents/agt_canary-agent/sessions?page_token=canary-page-token",
        "/v1/sessions?provider=canary-provider",
        "/canary-path",
    ] {
        own.push(weir.get_as("two", target).status);
    }
    assert_eq!(own, [404, 400, 400, 404, 404]);
    let requests = seen.len() + own.len();
    for path in ["/metrics", "/healthz", "/readyz", "/config", "/cache"] {
        let answer = send(weir.admin, "GET", path, &[("Authorization", "Bearer canary-admin-token")]);
        assert_eq!(answer.status, 200, "{path}");
        seen.push((path.into(), String::from_utf8_lossy(&answer.body).into_owned()));
    }
    // A broken config is told with its faults, not with its secrets.
    weir.config.change(
        "clients.yaml",
        "value: canary-own-credential",
        "value: \"canary-own-credential\\ncanary-line-break\"",
    );
    let faults = send(weir.admin, "POST", "/reload", &[("Authorization", "Bearer canary-admin-token")]);
    assert_eq!(faults.status, 422);
    seen.push(("/reload".into(), String::from_utf8_lossy(&faults.body).into_owned()));
    until("the log has the last request", || weir.process.stdout.lock().unwrap().len() >= requests);
    seen.push(("stdout".into(), weir.process.stdout.lock().unwrap().join("\n")));
    seen.push(("stderr".into(), weir.process.stderr.lock().unwrap().join("\n")));
    for (place, text) in seen {
        assert!(!text.contains("canary"), "{place}: {text}");
    }
}
