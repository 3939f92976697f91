//! Secrets in responses of strange shapes, and requests that a lenient provider could take for other ones: a client
//! without `reveal_secrets` never gets a secret.

use crate::scripted_provider::*;
use crate::support::*;
use serde_json::{Value, json};

const CANARY: &str = "canary-5e55";

/// A session's members, with a secret.
const SESSION: &str = r#""session_id":"ID","status":"started","daily_room":{"url":"u","token":"canary-5e55"}"#;

/// Bodies with a secret. The flag says whether the body has the shape of the provider's file, for a session and for a
/// list.
fn bodies() -> Vec<(&'static str, String, [bool; 2])> {
    let s = SESSION;
    vec![
        ("a session", format!("{{\"session\":{{{s}}}}}"), [true, false]),
        ("a list", format!("{{\"sessions\":[{{{s}}},{{{s}}}]}}"), [false, true]),
        (
            "a doubled member, the secret first",
            format!(r#"{{"session":{{{s},"daily_room":{{"url":"u"}}}},"sessions":[{{{s},"daily_room":{{"url":"u"}}}}]}}"#),
            [true, true],
        ),
        (
            "a doubled member, the secret last",
            format!(r#"{{"session":{{"daily_room":{{"url":"u"}},{s}}},"sessions":[{{"daily_room":{{}},{s}}}]}}"#),
            [true, true],
        ),
        (
            "a doubled secret",
            r#"{"session":{"session_id":"ID","daily_room":{"token":"canary-5e55","token":"x","tok\u0065n":"canary-5e55"}},"sessions":[]}"#.into(),
            [true, true],
        ),
        ("session twice", format!(r#"{{"session":{{{s}}},"session":{{"session_id":"ID"}}}}"#), [true, false]),
        ("sessions twice", format!(r#"{{"sessions":[{{{s}}}],"sess\u0069ons":[]}}"#), [false, true]),
        ("a session that is a string", r#"{"session":"{\"daily_room\":{\"token\":\"canary-5e55\"}}"}"#.into(), [false, false]),
        ("a session that is a list", format!("{{\"session\":[{{{s}}}]}}"), [false, false]),
        ("a session one deeper", format!(r#"{{"session":{{"session":{{{s}}}}}}}"#), [true, false]),
        ("a session below data", format!(r#"{{"data":{{"session":{{{s}}}}}}}"#), [false, false]),
        ("a session beside the session", format!(r#"{{"session":{{"session_id":"ID"}},"old":{{{s}}},"sessions":[]}}"#), [true, true]),
        ("a list that is an object", format!(r#"{{"sessions":{{"a":{{{s}}}}}}}"#), [false, false]),
        ("a list one deeper", format!(r#"{{"sessions":[[{{{s}}}]]}}"#), [false, false]),
        ("a list of strings", r#"{"sessions":["canary-5e55"]}"#.into(), [false, false]),
        ("a list that is a string", r#"{"sessions":"canary-5e55","session":{"session_id":"ID"}}"#.into(), [false, false]),
        (
            "a room that is a list",
            r#"{"session":{"session_id":"ID","daily_room":[{"token":"canary-5e55"}]},"sessions":[]}"#.into(),
            [true, true],
        ),
        (
            "a room one deeper",
            r#"{"session":{"session_id":"ID","daily_room":{"room":{"token":"canary-5e55"}}},"sessions":[]}"#.into(),
            [true, true],
        ),
        (
            "a room that is a string",
            r#"{"session":{"session_id":"ID","daily_room":"{\"token\":\"canary-5e55\"}"},"sessions":[]}"#.into(),
            [true, true],
        ),
        (
            "secrets in metadata and in other letter case",
            r#"{"session":{"session_id":"ID","metadata":{"x":{"access_token":"canary-5e55"}},"Session_Token":["canary-5e55"]},"sessions":[]}"#.into(),
            [true, true],
        ),
        ("a bare session", format!("{{{s}}}"), [false, false]),
        ("text", format!("token={CANARY}"), [false, false]),
        ("a body that ends early", format!("{{\"session\":{{{}", &SESSION[..SESSION.len() - 1]), [false, false]),
        ("a body with more after it", format!("{{\"session\":{{{s}}}}} x"), [false, false]),
        ("a body in a call", format!("f({{\"session\":{{{s}}}}})"), [false, false]),
        ("a byte order mark", format!("\u{feff}{{\"session\":{{{s}}}}}"), [false, false]),
        ("UTF-16", format!("{{\"session\":{{{s}}}}}").chars().flat_map(|c| [c, '\0']).collect(), [false, false]),
    ]
}

#[test]
fn no_shape_of_a_body_reveals_secrets() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url()).start(&sim);
    let mut number = 0;
    for (name, body, shape) in bodies() {
        for code in [200, 201, 302, 404, 500] {
            for (native, has_shape) in
                [("/agenthuman/v1/sessions/ID", shape[0]), ("/agenthuman/v1/sessions?n=ID", shape[1])]
            {
                number += 1;
                let id = format!("sess_N{number}");
                provider.respond(code, "", body.replace("ID", &id).as_bytes());
                let unified = if native.contains("?n=") {
                    "/v1/sessions?provider=agenthuman&x=ID"
                } else {
                    "/v1/sessions/ID?include=native"
                };
                let unified = unified.replace("&x=ID", "").replace("ID", &id);
                for target in [native.replace("ID", &id), unified] {
                    // The second time, some come from the cache.
                    for _ in 0..2 {
                        // All versions of HTTP have the same body: one status shows it.
                        let versions = if code == 200 { 3 } else { 1 };
                        for (version, response) in on_versions(&weir, "GET", &target, &[], versions) {
                            let what = format!("{name}, {code}, {target}, {version}: {response}");
                            assert!(!response.replace('\0', "").contains(CANARY), "{what}");
                            if target.starts_with("/agenthuman") && code < 300 {
                                assert_eq!(status(&response), if has_shape { code } else { 502 }, "{what}");
                            }
                        }
                    }
                }
                weir.make_stale();
            }
        }
    }
    // A response without a session passes as it is.
    for (code, body) in [(404, "teapot"), (409, "[1, 2]"), (502, "<html><b>Bad Gateway</b></html>")] {
        provider.respond(code, "", body.as_bytes());
        let response = weir.get("/agenthuman/v1/sessions/sess_Text");
        assert_eq!((response.status, &*response.body), (code, body.as_bytes()));
    }
}

#[test]
fn a_doubled_member_is_sent_once_and_as_weir_reads_it() {
    let sim = Sim::start();
    let weir = unlimited().start(&sim);
    let body = r#"{"success":true, "session":{"session_id":"x"}, "session":{"session_id":"sess_D","a":1,"a":1.50,"daily_room":{"token":"canary-5e55"},"daily_room":{"url":"u"}}}"#;
    sim.set_response("/v1/sessions/sess_D", 200, &json!({}), body);
    let native = weir.get("/agenthuman/v1/sessions/sess_D");
    let expected = r#"{"success":true,"session":{"session_id":"sess_D","a":1.50,"daily_room":{"url":"u"}}}"#;
    assert_eq!((native.status, String::from_utf8(native.body).unwrap()), (200, expected.to_owned()));
    assert_eq!(weir.get("/v1/sessions/sess_D").json()["connection"], json!({"url": "u", "name": null}));
}

#[test]
fn text_that_cannot_be_used_keeps_its_bytes_natively_and_is_null_in_the_unified_view() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url()).start(&sim);
    let session = |id: &str| {
        let text = r#"{"session_id":"ID","status":"started","created_at":"yesterday","duration":"7","avatar":{"avatar_id":"a","name":"half \ud83d"},"metadata":{"k":"\udc00","l":"v"},"daily_room":{"token":"canary-5e55","name":"#;
        [text.replace("ID", id).as_bytes(), b"\"\xe9\"}}"].concat()
    };
    for (native, unified, body) in [
        (
            "/agenthuman/v1/sessions/sess_T",
            "/v1/sessions/sess_T",
            [b"{\"session\":", &*session("sess_T"), b"}"].concat(),
        ),
        (
            "/agenthuman/v1/sessions",
            "/v1/sessions?provider=agenthuman",
            [b"{\"sessions\":[", &*session("sess_T"), b"]}"].concat(),
        ),
    ] {
        provider.respond(200, "", &body);
        let response = weir.get(native);
        assert_eq!(response.status, 200, "{native}");
        let has = |part: &[u8]| response.body.windows(part.len()).any(|window| window == part);
        for kept in [
            &b"\"created_at\":\"yesterday\""[..],
            b"\"duration\":\"7\"",
            b"\"half \\ud83d\"",
            b"\"\\udc00\"",
            b"\"name\":\"\xe9\"",
        ] {
            assert!(has(kept), "{native}: {}", String::from_utf8_lossy(&response.body));
        }
        assert!(!has(CANARY.as_bytes()));
        let response = weir.get(unified);
        assert_eq!(response.status, 200, "{unified}: {}", response.json());
        let json = response.json();
        let session = json.get("sessions").map_or(&json, |sessions| &sessions[0]);
        for null in ["/created_at", "/duration_seconds", "/agent/name", "/connection/name", "/metadata/k"] {
            assert_eq!(session.pointer(null), Some(&Value::Null), "{null}: {session}");
        }
        assert_eq!((&session["status"], &session["metadata"]["l"]), (&json!("active"), &json!("v")));
    }
}

#[test]
fn another_spelling_of_a_method_is_not_forwarded() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = unlimited()
        .env("AGENTHUMAN_BASE_URL", &provider.base_url())
        .env("PALANTIR_BASE_URL", &provider.base_url())
        .start(&sim);
    // This provider does not look at the method.
    provider.respond(200, "", format!("{{\"session\":{{{SESSION}}}}}").as_bytes());
    for method in ["get", "Get", "gET", "head", "Head", "options", "trace", "Trace", "post", "Delete", "Connect"] {
        for target in
            ["/agenthuman/v1/sessions/sess_A", "/agenthuman/v1/usage", "/palantir/api/v2/x", "/v1/sessions/sess_A"]
        {
            for (version, response) in on_every_version(&weir, method, target, &[]) {
                assert_eq!(status(&response), 405, "{method} {target} {version}: {response}");
                assert!(response.to_ascii_lowercase().contains("\nallow: get, head"), "{response}");
            }
        }
    }
    for method in ["FOO", "QUERY", "PROPFIND", "SEARCH"] {
        for target in ["/agenthuman/v1/sessions/sess_A", "/agenthuman/v1/%2573essions"] {
            for (version, response) in on_every_version(&weir, method, target, &[]) {
                assert_eq!(status(&response), 405, "{method} {target} {version}: {response}");
            }
        }
    }
    assert_eq!(provider.take_heads(), Vec::<String>::new());
    let response = send(weir.http, "QUERY", "/palantir/api/v2/x", &[("X-API-Key", "open")]);
    assert_eq!((response.status, provider.take_heads().len()), (200, 1), "an unknown method on another path");
}

#[test]
fn a_session_path_that_is_encoded_twice_is_refused() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url()).start(&sim);
    provider.respond(200, "", format!("{{\"session\":{{{SESSION}}}}}").as_bytes());
    let many = format!("/v1/%{}73essions/sess_A", "25".repeat(12));
    for path in [
        "/v1/%2573essions/sess_A",
        "/v1/%252573essions/sess_A",
        "/v1%252fsessions%252Fsess_A",
        "/v1%2fsessions%2fsess_A",
        "/v1/sessions%3fx/sess_A",
        "/v1/sessions%2523",
        "/v1/sessions%00/sess_A/x",
        "/v1/sessions.json",
        "/v1/%u0073essions/sess_A",
        "/v1/%ef%bd%93essions/sess_A",
        "/v1/x/%252e%252e/sessions/sess_A",
        "/v1/x/%252e%252e%252fsessions",
        &many,
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            for (version, response) in on_every_version(&weir, method, &format!("/agenthuman{path}"), &[]) {
                assert_eq!(status(&response), 400, "{method} {path} {version}: {response}");
            }
        }
    }
    assert_eq!(provider.take_heads(), Vec::<String>::new());
    // An encoded id is an id, and other paths pass.
    provider.respond(200, "", b"{\"session\":{\"session_id\":\"a\"}}");
    for path in ["/v1/sessions/a%252Fb", "/v1/usage%20x", "/v1/usage"] {
        assert_eq!(weir.get(&format!("/agenthuman{path}")).status, 200, "{path}");
    }
    assert!(provider.take_heads()[0].starts_with("get /v1/sessions/a%252fb http/1.1\r\n"));
}

#[test]
fn a_path_whose_id_is_in_the_query_is_no_session_without_the_id() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = unlimited()
        .edit(
            "providers/agenthuman.yaml",
            "request: GET /v1/sessions/{session}\n",
            "request: GET /v1/session\n    query: { id: \"{session}\", full: \"true\" }\n",
        )
        .env("AGENTHUMAN_BASE_URL", &provider.base_url())
        .start(&sim);
    // Without an id this provider responds with all sessions.
    let all = (0..100).map(|n| format!("{{{}}}", SESSION.replace("ID", &n.to_string()))).collect::<Vec<_>>().join(",");
    provider.respond(200, "", format!("{{\"sessions\":[{all}]}}").as_bytes());
    for query in ["", "?", "?id=", "?ID=sess_A", "?x=1", "?full=true", "?id=sess_A&id=sess_B", "?i%2564=sess_A"] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            for (version, response) in on_every_version(&weir, method, &format!("/agenthuman/v1/session{query}"), &[]) {
                assert_eq!(status(&response), 400, "{method} {query} {version}: {response}");
                assert!(!response.contains(CANARY));
            }
        }
    }
    assert_eq!(provider.take_heads(), Vec::<String>::new());
    provider.respond(200, "", format!("{{\"session\":{{{}}}}}", SESSION.replace("ID", "sess_A")).as_bytes());
    for query in ["?id=sess_A", "?full=true&id=sess_A", "?%69d=sess_A", "?id=sess_A&x=1"] {
        let response = weir.get(&format!("/agenthuman/v1/session{query}"));
        assert_eq!(
            (response.status, response.json()["session"]["session_id"].as_str()),
            (200, Some("sess_A")),
            "{query}"
        );
        assert!(!String::from_utf8_lossy(&response.body).contains(CANARY), "{query}");
    }
    let heads = provider.take_heads();
    assert_eq!(heads.len(), 2, "the first three share an entry with the unified view: {heads:?}");
    assert!(heads[0].starts_with("get /v1/session?id=sess_a&full=true "), "{heads:?}");
    assert!(weir.get("/v1/sessions/sess_A").header("cache-status").unwrap().starts_with("weir; hit"));
    // A write finds its session by the id in the query.
    assert_eq!(send(weir.http, "DELETE", "/agenthuman/v1/session?id=sess_B", &[("X-API-Key", "open")]).status, 200);
    assert!(weir.get("/v1/sessions/sess_A").header("cache-status").unwrap().starts_with("weir; hit"));
    assert_eq!(send(weir.http, "DELETE", "/agenthuman/v1/session?id=sess_A", &[("X-API-Key", "open")]).status, 200);
    assert!(weir.get("/v1/sessions/sess_A").header("cache-status").unwrap().starts_with("weir; fwd="));
}

#[test]
fn headers_that_override_method_or_path_do_not_reach_the_provider() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    for trusted in [false, true] {
        let config = unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url());
        if trusted {
            let text = config.read("weir.yaml");
            config.write("weir.yaml", &format!("{text}\ntrusted_proxies: [127.0.0.0/8]\n"));
        }
        let weir = config.start(&sim);
        provider.respond(200, "", b"{}");
        let overriding = [
            "X-HTTP-Method-Override",
            "x-http-method",
            "X-Method-Override",
            "X-Original-URL",
            "X-Original-Uri",
            "X-Rewrite-URL",
            "X-Forwarded-Prefix",
            "X-Forwarded-Path",
            "X-Forwarded-Uri",
            "X-Forwarded-Method",
            "X-Envoy-Original-Path",
            "X-HTTP-Host-Override",
            "X-Host",
            "X-Override-URL",
        ];
        let mut headers: Vec<(&str, &str)> = overriding.iter().map(|name| (*name, "overriding-value")).collect();
        headers.push(("X-Kept", "kept"));
        for method in ["GET", "POST", "DELETE", "OPTIONS"] {
            for (version, response) in on_every_version(&weir, method, "/agenthuman/v1/usage", &headers) {
                assert_eq!(status(&response), 200, "{version}: {response}");
            }
        }
        let heads = provider.take_heads();
        assert_eq!(heads.len(), 12);
        assert!(
            heads.iter().all(|head| head.contains("x-kept: kept") && !head.contains("overriding-value")),
            "{heads:?}"
        );
    }
}
