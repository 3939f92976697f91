//! Tests of provider credentials: OAuth2 tokens, secrets from files, and keys that clients send along.

use crate::support::*;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OAUTH: &str =
    "oauth2: { token_url: \"${VECTARA_BASE_URL}/oauth2/token\", client_id: sim-client, client_secret: sim-secret }";

/// Configures the two providers with a token endpoint for OAuth2 client credentials.
fn with_oauth2(config: Config) -> Config {
    config
        .edit("providers/vectara.yaml", "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }", &format!("credentials: {{ {OAUTH} }}"))
        .edit(
            "providers/palantir.yaml",
            "credentials: { bearer: \"${PALANTIR_TOKEN:-}\" }",
            "credentials: { oauth2: { token_url: \"${PALANTIR_BASE_URL}/multipass/api/oauth2/token\", client_id: sim-client, client_secret: sim-secret, scope: api:aip-agents-read } }",
        )
}

/// The number of requests to token endpoints.
fn token_requests(sim: &Sim) -> u64 {
    let calls = sim.call_counts()["calls"].as_object().unwrap().clone();
    calls.iter().filter(|(path, _)| path.ends_with("oauth2/token")).map(|(_, n)| n.as_u64().unwrap()).sum()
}

/// A list target that differs for each `n`, so that no cache entry serves it.
fn list_target(n: usize) -> String {
    format!("/v1/agents/agt_load_{}/sessions?limit={}", n % 10, n + 1)
}

fn post(weir: &Weir, target: &str, body: &str) -> Response {
    let length = body.len().to_string();
    let head = request("POST", target, &[("X-API-Key", "open"), ("Content-Length", &length)]);
    send_bytes(weir.http, &[&head[..], body.as_bytes()].concat())
}

#[test]
fn concurrent_requests_share_one_token_of_each_provider() {
    let sim = Sim::start();
    let weir = Arc::new(with_oauth2(Config::shipped()).start(&sim));
    let callers: Vec<_> = (0..40)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || {
                weir.get(&format!("/v1/agents/agt_load_{}/sessions?enabled={}", n % 10, n % 2 == 0)).status
            })
        })
        .collect();
    assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 200));
    assert_eq!(token_requests(&sim), 1, "one token request for all waiting requests");
    assert_eq!(weir.get(PALANTIR).status, 200);
    assert_eq!(token_requests(&sim), 2);
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"token\",provider=\"vectara\",status=\"200\"}"),
        1.0
    );
    // A reload that does not change the credential keeps the token.
    weir.config.change("weir.yaml", "workers: 0", "workers: 0 # touched");
    weir.reload();
    weir.make_stale();
    assert_eq!(weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]).status, 200);
    assert_eq!(token_requests(&sim), 2);
    assert!(
        !weir
            .process
            .stdout
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("sim-issued") || line.contains("sim-secret"))
    );
    assert!(!weir.metrics().contains("sim-issued"));
}

#[test]
fn clients_with_the_same_credential_share_one_token() {
    let sim = Sim::start();
    let own = |secret: &str| {
        format!(
            "credentials: {{ vectara: {{ oauth2: {{ token_url: \"${{VECTARA_BASE_URL}}/oauth2/token\", client_id: sim-client, client_secret: {secret} }} }} }}"
        )
    };
    let clients = |with: &[(&str, &str)]| {
        let client = |(id, own): &(&str, &str)| format!("  - {{ id: {id}, keys: [ {{ sha256: SHA({id}) }} ]{own} }}\n");
        expand_digests(&format!("clients:\n{}", with.iter().map(client).collect::<String>()))
    };
    let same = format!(", {}", own("sim-secret"));
    let team = [("one", &*same), ("two", &*same), ("three", &*same), ("four", &*same), ("five", &*same)];
    let weir = std::sync::Arc::new(Config::shipped().clients(&clients(&team)).start(&sim));
    let request_as = |keys: &[&'static str], query: &'static str| {
        let callers: Vec<_> = keys
            .iter()
            .map(|key| {
                let (weir, key) = (weir.clone(), *key);
                let target = format!("/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3/events?{query}={key}");
                std::thread::spawn(move || weir.get_as(key, &target).status)
            })
            .collect();
        assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 200));
    };
    request_as(&["one", "two", "three", "four", "five"], "a");
    assert_eq!(token_requests(&sim), 1, "one token for five clients with the same credential");
    // The token survives a reload that removes the first client and adds another.
    weir.config.write("clients.yaml", &clients(&[("two", &same), ("six", &same)]));
    assert_eq!(weir.reload().0, 200);
    request_as(&["two", "six"], "b");
    assert_eq!(token_requests(&sim), 1);
    // The provider's own credential shares the token if it is the same.
    let provider = weir.config.read("providers/vectara.yaml");
    let provider = provider.replace(
        "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }",
        &own("sim-secret").replace("vectara: { ", "").replace(" } } }", " } }"),
    );
    weir.config.write("providers/vectara.yaml", &provider);
    weir.config.write("clients.yaml", &clients(&[("two", &same), ("plain", "")]));
    let reloaded = weir.reload();
    assert_eq!(reloaded.0, 200, "{}", reloaded.1);
    request_as(&["two", "plain"], "c");
    assert_eq!(token_requests(&sim), 1);
    // A client with another secret does not share the token.
    weir.config.write("clients.yaml", &clients(&[("two", &same), ("other", &format!(", {}", own("another")))]));
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get_as("other", VECTARA).code(), (502, "provider_auth_failed".into()));
    request_as(&["two"], "d");
    assert_eq!(token_requests(&sim), 2, "the other client's token request is refused");
}

#[test]
fn a_token_is_renewed_before_it_expires() {
    let sim = Sim::with_options(&["--token-seconds", "5"]);
    let weir = with_oauth2(Config::shipped()).start(&sim);
    let refused = "weir_upstream_requests_total{operation=\"list_sessions\",provider=\"vectara\",status=\"401\"}";
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < Duration::from_secs(7) {
        n += 1;
        assert_eq!(weir.get_with(&list_target(n), &[("Cache-Control", "no-cache")]).status, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(weir.metric(refused), 0.0, "no expired token was used");
    assert!(token_requests(&sim) >= 2, "{}", token_requests(&sim));
}

#[test]
fn a_refused_token_is_replaced_without_an_error_for_the_client() {
    let sim = Sim::start();
    let weir = with_oauth2(Config::shipped()).start(&sim);
    let revoke = || assert_eq!(send(sim.address, "DELETE", "/_sim/tokens", &[]).status, 200);
    assert_eq!(weir.get(VECTARA).status, 200);
    revoke();
    let again = weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]);
    assert_eq!(again.status, 200, "{}", again.json());
    assert_eq!(token_requests(&sim), 2);
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"get_session\",provider=\"vectara\",status=\"401\"}"),
        1.0
    );
    // If the provider refuses a new token too, the token is not the cause: Weir keeps it and reports the refusal.
    sim.set_response("agt_load_9", 401, &json!({}), "{}");
    for _ in 0..5 {
        assert_eq!(weir.get(&list_target(9)).code(), (502, "provider_auth_failed".into()));
    }
    assert_eq!(token_requests(&sim), 2);
    assert_eq!(weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]).status, 200);
}

#[test]
fn a_native_write_is_repeated_with_a_new_token_if_its_body_is_still_buffered() {
    let sim = Sim::start();
    let revoke = || assert_eq!(send(sim.address, "DELETE", "/_sim/tokens", &[]).status, 200);
    for (body, status) in
        [("{\"type\":\"input_message\"}".to_owned(), 201), (format!("\"{}\"", "x".repeat(300_000)), 502)]
    {
        let weir = with_oauth2(Config::shipped()).start(&sim);
        assert_eq!(weir.get(VECTARA).status, 200);
        revoke();
        let before = token_requests(&sim);
        let written = post(&weir, "/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3/events", &body);
        assert_eq!(written.status, status, "{}", written.json());
        if status == 201 {
            assert_eq!(
                (written.json()["received_bytes"].clone(), token_requests(&sim)),
                (json!(body.len()), before + 1)
            );
        } else {
            assert!(written.json()["messages"][0].as_str().unwrap().contains("refused Weir's credential"));
        }
    }
}

#[test]
fn a_weir_key_is_never_sent_to_a_provider_as_a_client_credential() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let sim = Sim::start();
    let provider = format!("http://{}", listener.local_addr().unwrap());
    let weir = Config::shipped()
        .clients(FORWARDING)
        .edit(
            "providers/palantir.yaml",
            "credentials: { bearer: \"${PALANTIR_TOKEN:-}\" }",
            "credentials: { mode: forward, header: authorization }",
        )
        .env("VECTARA_BASE_URL", &provider)
        .env("PALANTIR_BASE_URL", &provider)
        .start(&sim);
    let native = format!("/palantir/api/v2/aipAgents/agents/{PALANTIR_IDS}?preview=true");
    let content = format!("/palantir/api/v2/aipAgents/agents/{PALANTIR_IDS}/content?preview=true");
    let by_key = [
        "/vectara/v2/agents/agt_load_1/sessions/ase_1",
        "/vectara/v2/agents/agt_load_1/sessions/ase_1/events",
        VECTARA,
    ];
    let by_bearer = [&*native, &*content, PALANTIR];
    for (targets, header, values) in [
        (by_key, "x-api-key", ["team-a", "team-b", " team-a "]),
        (by_bearer, "authorization", ["Bearer team-a", "bearer  team-b", "team-a"]),
    ] {
        for target in targets {
            // Without X-Weir-Key, or with a blank one, the value authenticates the client and the provider key is missing.
            // With X-Weir-Key, the response says that the value is a Weir key.
            let mut sent: Vec<Vec<(&str, &str)>> = vec![vec![(header, values[0])]];
            sent.extend(["", "  "].map(|blank| vec![("X-Weir-Key", blank), (header, values[0])]));
            sent.extend(values.map(|value| vec![("X-Weir-Key", "team-a"), (header, value)]));
            for headers in sent {
                let response = send(weir.http, "GET", target, &headers);
                assert_eq!(response.status, 401, "{target} {headers:?}");
                if headers[0] == ("X-Weir-Key", "team-a") {
                    let body = String::from_utf8_lossy(&response.body).into_owned();
                    assert!(body.contains(&format!("{header} contains a Weir key")), "{body}");
                }
            }
        }
    }
    assert!(listener.accept().is_err(), "a provider was called");
}

#[test]
fn a_refused_client_credential_gets_502_and_few_token_requests() {
    let sim = Sim::with_options(&["--client-secret", "another"]);
    let weir = Arc::new(with_oauth2(Config::shipped()).start(&sim));
    let response = weir.get(VECTARA);
    assert_eq!(response.code(), (502, "provider_auth_failed".into()));
    let detail = response.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("token endpoint responded with 401 (invalid_client)") && detail.contains("oauth2"),
        "{detail}"
    );
    let callers: Vec<_> = (0..20)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || weir.get(&list_target(n)).status)
        })
        .collect();
    assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 502));
    assert!(token_requests(&sim) < 10, "{}", token_requests(&sim));
    let native = weir.get("/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3/events");
    assert_eq!(native.status, 502);
    assert!(native.json()["messages"][0].as_str().unwrap().contains("invalid_client"));
    // A token endpoint that responds with HTML.
    sim.set_response("/oauth2/token", 200, &json!({}), "<html>");
    wait_until("the pause after the last failure ends", || {
        weir.get(VECTARA).json()["detail"].as_str().unwrap().contains("no usable access_token")
    });
}

#[test]
fn a_reload_reads_a_secret_file_again() {
    let sim = Sim::start();
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "wrong\n").unwrap();
    let weir = with_oauth2(Config::shipped())
        .edit(
            "providers/vectara.yaml",
            "client_secret: sim-secret",
            &format!("client_secret: {{ file: {} }}", file.display()),
        )
        .start(&sim);
    assert_eq!(weir.get(VECTARA).code(), (502, "provider_auth_failed".into()));
    std::fs::write(&file, "sim-secret\n").unwrap();
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get(VECTARA).status, 200);
}

/// The example's agent and session, as in a native path.
const PALANTIR_IDS: &str = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";

/// Two clients that send their own key for one provider, and one that does not.
const FORWARDING: &str = "clients:\n  - { id: team-a, keys: [ { sha256: SHA(team-a) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n  - { id: team-b, keys: [ { sha256: SHA(team-b) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

fn get_with_own_key(weir: &Weir, team: &str, key: &str, target: &str) -> Response {
    send(weir.http, "GET", target, &[("X-Weir-Key", team), ("x-api-key", key)])
}

#[test]
fn a_forwarded_key_reaches_the_provider_and_scopes_cache_entries() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(FORWARDING).start(&sim);
    let native = "/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3";
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_3";
    let hit = |response: &Response| response.header("cache-status").unwrap().starts_with("weir; hit");
    assert_eq!(weir.get(unified).status, 200);
    let first = get_with_own_key(&weir, "team-a", "zut_sim", native);
    assert_eq!((first.status, hit(&first)), (200, false), "an entry fetched with Weir's credential must not be served");
    assert!(hit(&get_with_own_key(&weir, "team-a", "zut_sim", unified)));
    assert!(hit(&get_with_own_key(&weir, "team-b", "zut_sim", unified)), "the same provider key shares the entry");
    // Another provider key does not share them.
    assert_eq!(get_with_own_key(&weir, "team-a", "zut_forbidden", native).status, 403);
    assert_eq!(get_with_own_key(&weir, "team-a", "zut_forbidden", unified).code(), (403, "forbidden".into()));
    assert_eq!(get_with_own_key(&weir, "team-a", "zut_sim", &format!("{native}/events")).status, 200);
    let without_key = send(weir.http, "GET", native, &[("X-Weir-Key", "team-a")]);
    assert_eq!(without_key.status, 401);
    assert!(without_key.json()["messages"][0].as_str().unwrap().contains("send it in x-api-key"));
    assert_eq!(get_with_own_key(&weir, "nobody", "zut_sim", native).status, 401, "a provider key is no Weir key");
    assert_eq!(
        get_with_own_key(&weir, "team-a", "zut_sim", PALANTIR).status,
        200,
        "other providers get Weir's credential"
    );
    // A provider that throttles one team's key is not paused for the other team.
    sim.plan(&json!({ "path": "/v2/", "if_header": { "x-api-key": "zut_busy" }, "fault": { "kind": "answer", "status": 429, "headers": { "retry-after": "60" }, "body": "{}" } }));
    assert_eq!(get_with_own_key(&weir, "team-a", "zut_busy", unified).code(), (503, "provider_rate_limited".into()));
    let calls = sim.calls();
    assert_eq!(get_with_own_key(&weir, "team-a", "zut_busy", "/v1/agents/agt_load_4/sessions").status, 503);
    assert_eq!(sim.calls(), calls, "the provider is paused for this key");
    assert_eq!(get_with_own_key(&weir, "team-b", "zut_sim", "/v1/agents/agt_load_4/sessions").status, 200);
    // A purge of a client that sends its own keys removes every entry that such keys fetched.
    let body = json!({ "client": "team-a" }).to_string();
    let purged = weir.post_admin("/cache/purge", &body).json()["purged"].as_u64().unwrap();
    assert!(purged >= 3, "{purged}");
    assert!(!hit(&get_with_own_key(&weir, "team-a", "zut_sim", unified)) && hit(&weir.get(unified)));
}

#[test]
fn a_provider_can_require_a_key_from_every_client() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "providers/palantir.yaml",
            "credentials: { bearer: \"${PALANTIR_TOKEN:-}\" }",
            "credentials: { mode: forward, header: authorization }",
        )
        .start(&sim);
    let get = |headers: &[(&str, &str)]| send(weir.http, "GET", PALANTIR, headers);
    assert_eq!(get(&[("X-Weir-Key", "open"), ("Authorization", "Bearer sim-token")]).status, 200);
    assert_eq!(get(&[("X-Weir-Key", "open")]).code(), (401, "unauthorized".into()));
    let wrong = get(&[("X-Weir-Key", "open"), ("Authorization", "Bearer other")]);
    assert_eq!(wrong.code(), (401, "unauthorized".into()));
    let native = send(
        weir.http,
        "GET",
        &format!("/palantir{}", "/api/v2/aipAgents/agents/a/sessions/s/content?preview=true"),
        &[("X-Weir-Key", "open"), ("Authorization", "Bearer other")],
    );
    assert_eq!(
        (native.status, native.json()["errorName"].clone()),
        (401, json!("Default:Unauthorized")),
        "a native path gets the provider's error format"
    );
}

#[test]
fn each_client_sends_its_key_in_its_configured_header() {
    let sim = Sim::start();
    let clients = |header: &str| {
        expand_digests(&format!(
            "clients:\n  - {{ id: a, keys: [ {{ sha256: SHA(a) }} ], credentials: {{ vectara: {{ mode: forward, header: {header} }} }} }}\n  - {{ id: b, keys: [ {{ sha256: SHA(b) }} ], credentials: {{ vectara: {{ mode: forward, header: x-api-key }} }} }}\n"
        ))
    };
    let weir = Config::shipped().clients(&clients("x-other")).start(&sim);
    let get = |team: &str, header: &str| send(weir.http, "GET", VECTARA, &[("X-Weir-Key", team), (header, "zut_sim")]);
    let detail = |team: &str, header: &str| get(team, header).json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail("a", "x-api-key").contains("send it in x-other"));
    assert!(detail("b", "x-other").contains("send it in x-api-key"));
    let response = get("b", "x-api-key");
    assert_eq!(
        (response.status, response.header("vary")),
        (200, Some("Authorization, X-API-Key, X-Weir-Key, Accept-Encoding"))
    );
    let refused = get("a", "x-other");
    assert_eq!(refused.status, 401, "the provider reads another header");
    assert_eq!(refused.header("vary"), Some("Authorization, X-API-Key, X-Weir-Key, x-other"));
    weir.config.write("clients.yaml", &clients("x-api-key"));
    assert_eq!(weir.reload().0, 200);
    assert_eq!(get("a", "x-api-key").status, 200, "the reload changed the header");
}

#[test]
fn invalid_credentials_are_configuration_faults() {
    let faults = |credentials: &str| {
        let config = Config::shipped().edit(
            "providers/vectara.yaml",
            "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }",
            credentials,
        );
        let (code, lines) = config.check();
        assert_eq!(code, 1, "{credentials}: {lines:?}");
        lines.join("\n")
    };
    for (credentials, message) in [
        ("credentials: { mode: forwards, header: x }", "did you mean \"forward\"?"),
        ("credentials: { mode: forward }", "credentials must be {"),
        ("credentials: { mode: forward, header: x-weir-key }", "not a header that can carry a credential"),
        ("credentials: { mode: forward, header: x, value: y }", "credentials must be {"),
        ("credentials: { oauth2: { token_url: \"ftp://x\", client_id: a, client_secret: b } }", "is not a token URL"),
        ("credentials: { oauth2: { token_url: \"https://x/t\", client_id: a } }", "missing key \"client_secret\""),
        (
            "credentials: { bearer: a, oauth2: { token_url: \"https://x/t\", client_id: a, client_secret: b } }",
            "credentials must be {",
        ),
    ] {
        let lines = faults(credentials);
        assert!(lines.contains("providers/vectara.yaml:6") && lines.contains(message), "{credentials}: {lines}");
    }
    let native = |from: &str, to: &str| Config::shipped().edit("providers/vectara.yaml", from, to).check().1.join("\n");
    assert!(native("\"{detail}\"", "\"{detial}\"").contains("did you mean \"detail\"?"));
    assert!(native("hosts: []", "hosts: [\"https://x\"]").contains("is not a valid host"));
    assert!(native("name: vectara", "name: v1").contains("cannot be the name of a provider"));
}
