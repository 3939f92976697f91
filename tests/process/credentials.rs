//! What providers are shown: tokens fetched and renewed, secrets from files, and what clients bring.

use crate::support::*;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OAUTH: &str =
    "oauth2: { token_url: \"${VECTARA_BASE_URL}/oauth2/token\", client_id: sim-client, client_secret: sim-secret }";

/// Both providers that have token endpoints, by client credentials.
fn by_token(config: Config) -> Config {
    config
        .edit("providers/vectara.yaml", "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }", &format!("credentials: {{ {OAUTH} }}"))
        .edit(
            "providers/palantir.yaml",
            "credentials: { bearer: \"${PALANTIR_TOKEN:-}\" }",
            "credentials: { oauth2: { token_url: \"${PALANTIR_BASE_URL}/multipass/api/oauth2/token\", client_id: sim-client, client_secret: sim-secret, scope: api:aip-agents-read } }",
        )
}

fn tokens(sim: &Sim) -> u64 {
    let calls = sim.counts()["calls"].as_object().unwrap().clone();
    calls.iter().filter(|(path, _)| path.ends_with("oauth2/token")).map(|(_, n)| n.as_u64().unwrap()).sum()
}

fn list(n: usize) -> String {
    format!("/v1/agents/agt_load_{}/sessions?limit={}", n % 10, n + 1)
}

fn post(weir: &Weir, target: &str, body: &str) -> Answer {
    let length = body.len().to_string();
    let head = request("POST", target, &[("X-API-Key", "open"), ("Content-Length", &length)]);
    raw(weir.http, &[&head[..], body.as_bytes()].concat())
}

#[test]
fn one_token_serves_all_and_both_endpoints_are_understood() {
    let sim = Sim::start();
    let weir = Arc::new(by_token(Config::shipped()).start(&sim));
    let callers: Vec<_> = (0..40)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || {
                weir.get(&format!("/v1/agents/agt_load_{}/sessions?enabled={}", n % 10, n % 2 == 0)).status
            })
        })
        .collect();
    assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 200));
    assert_eq!(tokens(&sim), 1, "fetched once for all who waited");
    assert_eq!(weir.get(PALANTIR).status, 200);
    assert_eq!(tokens(&sim), 2);
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"token\",provider=\"vectara\",status=\"200\"}"),
        1.0
    );
    // A reload that leaves it alone keeps the token; one that changes it fetches another.
    weir.config.change("weir.yaml", "workers: 0", "workers: 0 # touched");
    weir.reload();
    weir.make_stale();
    assert_eq!(weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]).status, 200);
    assert_eq!(tokens(&sim), 2);
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
fn clients_with_the_same_credential_have_one_token() {
    let sim = Sim::start();
    let own = |secret: &str| {
        format!(
            "credentials: {{ vectara: {{ oauth2: {{ token_url: \"${{VECTARA_BASE_URL}}/oauth2/token\", client_id: sim-client, client_secret: {secret} }} }} }}"
        )
    };
    let clients = |with: &[(&str, &str)]| {
        let client = |(id, own): &(&str, &str)| format!("  - {{ id: {id}, keys: [ {{ sha256: SHA({id}) }} ]{own} }}\n");
        digests(&format!("clients:\n{}", with.iter().map(client).collect::<String>()))
    };
    let same = format!(", {}", own("sim-secret"));
    let team = [("one", &*same), ("two", &*same), ("three", &*same), ("four", &*same), ("five", &*same)];
    let weir = std::sync::Arc::new(Config::shipped().clients(&clients(&team)).start(&sim));
    let all_ask = |keys: &[&'static str], query: &'static str| {
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
    all_ask(&["one", "two", "three", "four", "five"], "a");
    assert_eq!(tokens(&sim), 1, "one for all who ask as the same");
    // A reload keeps it, though the client that was first is gone and another has come.
    weir.config.write("clients.yaml", &clients(&[("two", &same), ("six", &same)]));
    assert_eq!(weir.reload().0, 200);
    all_ask(&["two", "six"], "b");
    assert_eq!(tokens(&sim), 1);
    // So does the provider's own, where that is the same.
    let provider = weir.config.read("providers/vectara.yaml");
    let provider = provider.replace(
        "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }",
        &own("sim-secret").replace("vectara: { ", "").replace(" } } }", " } }"),
    );
    weir.config.write("providers/vectara.yaml", &provider);
    weir.config.write("clients.yaml", &clients(&[("two", &same), ("plain", "")]));
    let reloaded = weir.reload();
    assert_eq!(reloaded.0, 200, "{}", reloaded.1);
    all_ask(&["two", "plain"], "c");
    assert_eq!(tokens(&sim), 1);
    // Another secret is another client.
    weir.config.write("clients.yaml", &clients(&[("two", &same), ("other", &format!(", {}", own("another")))]));
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get_as("other", VECTARA).code(), (502, "provider_auth_failed".into()));
    all_ask(&["two"], "d");
    assert_eq!(tokens(&sim), 2, "it asked for its own, and was refused");
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    let sim = Sim::with(&["--token-seconds", "5"]);
    let weir = by_token(Config::shipped()).start(&sim);
    let refused = "weir_upstream_requests_total{operation=\"list_sessions\",provider=\"vectara\",status=\"401\"}";
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < Duration::from_secs(7) {
        n += 1;
        assert_eq!(weir.get_with(&list(n), &[("Cache-Control", "no-cache")]).status, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(weir.metric(refused), 0.0, "none was used past its end");
    assert!(tokens(&sim) >= 2, "{}", tokens(&sim));
}

#[test]
fn a_token_that_is_refused_is_replaced_and_nobody_is_told() {
    let sim = Sim::start();
    let weir = by_token(Config::shipped()).start(&sim);
    let revoke = || assert_eq!(send(sim.address, "DELETE", "/_sim/tokens", &[]).status, 200);
    assert_eq!(weir.get(VECTARA).status, 200);
    revoke();
    let again = weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]);
    assert_eq!(again.status, 200, "{}", again.json());
    assert_eq!(tokens(&sim), 2);
    assert_eq!(
        weir.metric("weir_upstream_requests_total{operation=\"get_session\",provider=\"vectara\",status=\"401\"}"),
        1.0
    );
    // A new one that is refused too is not to blame: it is kept, and the refusal is told.
    sim.answers("agt_load_9", 401, &json!({}), "{}");
    for _ in 0..5 {
        assert_eq!(weir.get(&list(9)).code(), (502, "provider_auth_failed".into()));
    }
    assert_eq!(tokens(&sim), 2);
    assert_eq!(weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]).status, 200);
}

#[test]
fn what_is_passed_on_is_sent_again_with_a_new_token_if_its_body_is_still_there() {
    let sim = Sim::start();
    let revoke = || assert_eq!(send(sim.address, "DELETE", "/_sim/tokens", &[]).status, 200);
    for (body, status) in
        [("{\"type\":\"input_message\"}".to_owned(), 201), (format!("\"{}\"", "x".repeat(300_000)), 502)]
    {
        let weir = by_token(Config::shipped()).start(&sim);
        assert_eq!(weir.get(VECTARA).status, 200);
        revoke();
        let before = tokens(&sim);
        let written = post(&weir, "/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3/events", &body);
        assert_eq!(written.status, status, "{}", written.json());
        if status == 201 {
            assert_eq!((written.json()["received_bytes"].clone(), tokens(&sim)), (json!(body.len()), before + 1));
        } else {
            assert!(written.json()["messages"][0].as_str().unwrap().contains("refused Weir's credential"));
        }
    }
}

#[test]
fn a_weir_key_is_never_taken_for_a_credential_that_was_brought() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let sim = Sim::start();
    let provider = format!("http://{}", listener.local_addr().unwrap());
    let weir = Config::shipped()
        .clients(BRINGING)
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
            // Alone or beside an empty one, it is the client's key; beside one, it is told what it is.
            let mut sent: Vec<Vec<(&str, &str)>> = vec![vec![(header, values[0])]];
            sent.extend(["", "  "].map(|blank| vec![("X-Weir-Key", blank), (header, values[0])]));
            sent.extend(values.map(|value| vec![("X-Weir-Key", "team-a"), (header, value)]));
            for headers in sent {
                let answer = send(weir.http, "GET", target, &headers);
                assert_eq!(answer.status, 401, "{target} {headers:?}");
                if headers[0] == ("X-Weir-Key", "team-a") {
                    let told = String::from_utf8_lossy(&answer.body).into_owned();
                    assert!(told.contains(&format!("what came in {header} is a Weir key")), "{told}");
                }
            }
        }
    }
    assert!(listener.accept().is_err(), "nobody was asked");
}

#[test]
fn a_refused_client_is_told_once_and_the_endpoint_is_not_hammered() {
    let sim = Sim::with(&["--client-secret", "another"]);
    let weir = Arc::new(by_token(Config::shipped()).start(&sim));
    let answer = weir.get(VECTARA);
    assert_eq!(answer.code(), (502, "provider_auth_failed".into()));
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("token endpoint answered 401 (invalid_client)") && detail.contains("oauth2"), "{detail}");
    let callers: Vec<_> = (0..20)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || weir.get(&list(n)).status)
        })
        .collect();
    assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 502));
    assert!(tokens(&sim) < 10, "{}", tokens(&sim));
    let native = weir.get("/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3/events");
    assert_eq!(native.status, 502);
    assert!(native.json()["messages"][0].as_str().unwrap().contains("invalid_client"));
    // An endpoint that is gone, hangs or talks nonsense.
    sim.answers("/oauth2/token", 200, &json!({}), "<html>");
    until("the last failure is forgotten", || {
        weir.get(VECTARA).json()["detail"].as_str().unwrap().contains("no usable access_token")
    });
}

#[test]
fn a_secret_from_a_file_is_read_again_on_reload() {
    let sim = Sim::start();
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "wrong\n").unwrap();
    let weir = by_token(Config::shipped())
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

/// The example's ids, as they stand in the provider's own path.
const PALANTIR_IDS: &str = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";

/// Teams that bring their own key for one provider.
const BRINGING: &str = "clients:\n  - { id: team-a, keys: [ { sha256: SHA(team-a) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n  - { id: team-b, keys: [ { sha256: SHA(team-b) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

fn bringing(weir: &Weir, team: &str, key: &str, target: &str) -> Answer {
    send(weir.http, "GET", target, &[("X-Weir-Key", team), ("x-api-key", key)])
}

#[test]
fn a_key_that_a_team_brings_goes_through_and_scopes_what_is_stored() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(BRINGING).start(&sim);
    let native = "/vectara/v2/agents/agt_load_1/sessions/ase_agt_load_1_3";
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_3";
    let hit = |answer: &Answer| answer.header("cache-status").unwrap().starts_with("weir; hit");
    assert_eq!(weir.get(unified).status, 200);
    let first = bringing(&weir, "team-a", "zut_sim", native);
    assert_eq!((first.status, hit(&first)), (200, false), "what Weir's own credential fetched is not its");
    assert!(hit(&bringing(&weir, "team-a", "zut_sim", unified)));
    assert!(hit(&bringing(&weir, "team-b", "zut_sim", unified)), "the same key of the provider's");
    // Another key has nothing of the first one's.
    assert_eq!(bringing(&weir, "team-a", "zut_forbidden", native).status, 403);
    assert_eq!(bringing(&weir, "team-a", "zut_forbidden", unified).code(), (403, "forbidden".into()));
    assert_eq!(bringing(&weir, "team-a", "zut_sim", &format!("{native}/events")).status, 200);
    let none = send(weir.http, "GET", native, &[("X-Weir-Key", "team-a")]);
    assert_eq!(none.status, 401);
    assert!(none.json()["messages"][0].as_str().unwrap().contains("send it in x-api-key"));
    assert_eq!(bringing(&weir, "nobody", "zut_sim", native).status, 401, "the provider's key opens nothing here");
    assert_eq!(bringing(&weir, "team-a", "zut_sim", PALANTIR).status, 200, "elsewhere Weir's credential");
    // One team's throttling is not another's.
    sim.plan(&json!({ "path": "/v2/", "if_header": { "x-api-key": "zut_busy" }, "fault": { "kind": "answer", "status": 429, "headers": { "retry-after": "60" }, "body": "{}" } }));
    assert_eq!(bringing(&weir, "team-a", "zut_busy", unified).code(), (503, "provider_rate_limited".into()));
    let calls = sim.calls();
    assert_eq!(bringing(&weir, "team-a", "zut_busy", "/v1/agents/agt_load_4/sessions").status, 503);
    assert_eq!(sim.calls(), calls, "its tap is closed");
    assert_eq!(bringing(&weir, "team-b", "zut_sim", "/v1/agents/agt_load_4/sessions").status, 200);
    // A purge of a client who brings keys takes all that was asked with such keys.
    let body = json!({ "client": "team-a" }).to_string();
    let head = request("POST", "/cache/purge", &[("Content-Length", &body.len().to_string())]);
    let purged = raw(weir.admin, &[&head[..], body.as_bytes()].concat()).json()["purged"].as_u64().unwrap();
    assert!(purged >= 3, "{purged}");
    assert!(!hit(&bringing(&weir, "team-a", "zut_sim", unified)) && hit(&weir.get(unified)));
}

#[test]
fn a_provider_may_want_every_client_to_bring_its_key() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "providers/palantir.yaml",
            "credentials: { bearer: \"${PALANTIR_TOKEN:-}\" }",
            "credentials: { mode: forward, header: authorization }",
        )
        .start(&sim);
    let ask = |headers: &[(&str, &str)]| send(weir.http, "GET", PALANTIR, headers);
    assert_eq!(ask(&[("X-Weir-Key", "open"), ("Authorization", "Bearer sim-token")]).status, 200);
    assert_eq!(ask(&[("X-Weir-Key", "open")]).code(), (401, "unauthorized".into()));
    let wrong = ask(&[("X-Weir-Key", "open"), ("Authorization", "Bearer other")]);
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
        "its own, for its own"
    );
}

#[test]
fn each_client_brings_its_key_in_the_header_that_it_was_given() {
    let sim = Sim::start();
    let bringing = |header: &str| {
        digests(&format!(
            "clients:\n  - {{ id: a, keys: [ {{ sha256: SHA(a) }} ], credentials: {{ vectara: {{ mode: forward, header: {header} }} }} }}\n  - {{ id: b, keys: [ {{ sha256: SHA(b) }} ], credentials: {{ vectara: {{ mode: forward, header: x-api-key }} }} }}\n"
        ))
    };
    let weir = Config::shipped().clients(&bringing("x-other")).start(&sim);
    let ask = |team: &str, header: &str| send(weir.http, "GET", VECTARA, &[("X-Weir-Key", team), (header, "zut_sim")]);
    let told = |team: &str, header: &str| ask(team, header).json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(told("a", "x-api-key").contains("send it in x-other"));
    assert!(told("b", "x-other").contains("send it in x-api-key"));
    let answer = ask("b", "x-api-key");
    assert_eq!((answer.status, answer.header("vary")), (200, Some("Authorization, X-API-Key, X-Weir-Key")));
    let refused = ask("a", "x-other");
    assert_eq!(refused.status, 401, "the provider reads another header");
    assert_eq!(refused.header("vary"), Some("Authorization, X-API-Key, X-Weir-Key, x-other"));
    weir.config.write("clients.yaml", &bringing("x-api-key"));
    assert_eq!(weir.reload().0, 200);
    assert_eq!(ask("a", "x-api-key").status, 200, "in another header since the reload");
}

#[test]
fn credentials_that_cannot_be_are_faults() {
    let fault = |credentials: &str| {
        let config = Config::shipped().edit(
            "providers/vectara.yaml",
            "credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }",
            credentials,
        );
        let (code, lines) = config.check();
        assert_eq!(code, 1, "{credentials}: {lines:?}");
        lines.join("\n")
    };
    for (credentials, words) in [
        ("credentials: { mode: forwards, header: x }", "did you mean \"forward\"?"),
        ("credentials: { mode: forward }", "credentials are {"),
        ("credentials: { mode: forward, header: x-weir-key }", "not a header that can carry a credential"),
        ("credentials: { mode: forward, header: x, value: y }", "credentials are {"),
        ("credentials: { oauth2: { token_url: \"ftp://x\", client_id: a, client_secret: b } }", "is not a token URL"),
        ("credentials: { oauth2: { token_url: \"https://x/t\", client_id: a } }", "\"client_secret\" is missing"),
        (
            "credentials: { bearer: a, oauth2: { token_url: \"https://x/t\", client_id: a, client_secret: b } }",
            "credentials are {",
        ),
    ] {
        let told = fault(credentials);
        assert!(told.contains("providers/vectara.yaml:6") && told.contains(words), "{credentials}: {told}");
    }
    let native = |from: &str, to: &str| Config::shipped().edit("providers/vectara.yaml", from, to).check().1.join("\n");
    assert!(native("\"{detail}\"", "\"{detial}\"").contains("did you mean \"detail\"?"));
    assert!(native("hosts: []", "hosts: [\"https://x\"]").contains("is not a host"));
    assert!(native("name: vectara", "name: v1").contains("is a path of Weir's own"));
}
