//! The circuit breaker: one client's broken session or unknown method takes no provider from the other clients.

use crate::support::*;
use serde_json::json;
use std::io::Write;
use std::net::TcpListener;

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n  - { id: own, keys: [ { sha256: SHA(own) } ], credentials: { vectara: { header: x-api-key, value: own-credential } } }\n";
const BROKEN: &str = "/v2/agents/agt_load_1/sessions/ase_agt_load_1_1";
const REFUSED: &str = "weir_upstream_refused_total{provider=\"vectara\",reason=\"breaker\"}";
const IS_OPEN: &str = "weir_upstream_breaker_open{provider=\"vectara\"}";

fn config() -> Config {
    Config::shipped().clients(CLIENTS)
}

fn healthy(n: usize) -> String {
    format!("/v1/sessions/vectara:agt_load_{n}:ase_agt_load_{n}_2")
}

fn post(weir: &Weir, key: &str, target: &str, body: &str) -> Response {
    let length = body.len().to_string();
    let headers = [("X-API-Key", key), ("Content-Type", "application/json"), ("Content-Length", &*length)];
    send_bytes(weir.http, &[&request("POST", target, &headers)[..], body.as_bytes()].concat())
}

/// Makes five sessions fail, so that the breaker of this client's credential opens.
fn open_breaker(sim: &Sim, weir: &Weir, key: &str) {
    sim.set_response("/sessions/ase_broken_", 500, &json!({}), "{}");
    for n in 0..5 {
        assert_eq!(weir.get_as(key, &format!("/v1/sessions/vectara:agt_load_2:ase_broken_{n}")).status, 502, "{n}");
    }
    assert_eq!(weir.metric(IS_OPEN), 1.0);
}

#[test]
fn an_unknown_method_or_path_that_is_501_never_opens_the_breaker() {
    let sim = Sim::start();
    let weir = config().start(&sim);
    sim.set_response("/v2/unknown", 501, &json!({}), "{}");
    sim.set_response(BROKEN, 501, &json!({}), "{}");
    for n in 0..8 {
        let unknown = send(weir.http, "PROPFIND", &format!("/vectara/v2/unknown/{n}"), &[("X-API-Key", "open")]);
        assert_eq!(unknown.status, 501);
        assert_eq!(weir.get_with(&format!("/vectara{BROKEN}"), &[("Cache-Control", "no-cache")]).status, 501);
    }
    assert_eq!(weir.get_as("other", &healthy(3)).status, 200);
    assert_eq!((weir.metric(IS_OPEN), sim.calls()), (0.0, 17));
}

#[test]
fn one_broken_session_opens_no_breaker_on_any_route() {
    let unified = "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_1";
    let no_cache = [("Cache-Control", "no-cache")];
    type Read<'r> = &'r dyn Fn(&Weir, usize) -> Response;
    let reads: [(&str, Read<'_>); 6] = [
        ("unified", &|weir, _| weir.get_with(unified, &no_cache)),
        ("native read", &|weir, n| weir.get_with(&format!("/vectara{BROKEN}?page={n}"), &no_cache)),
        ("pass-through read below it", &|weir, n| weir.get(&format!("/vectara{BROKEN}/part_{n}"))),
        ("pass-through write", &|weir, n| post(weir, "open", &format!("/vectara{BROKEN}/message_{n}"), "{}")),
        ("batch", &|weir, _| weir.get_with("/v1/sessions:batchGet?id=vectara:agt_load_1:ase_agt_load_1_1", &no_cache)),
        ("list", &|weir, n| weir.get(&format!("/v1/agents/agt_load_1/sessions?limit={}", n + 1))),
    ];
    for (fault, status) in
        [(json!({ "kind": "answer", "status": 500, "body": "{}" }), Some(500)), (json!({ "kind": "reset" }), None)]
    {
        let sim = Sim::start();
        let weir = config().start(&sim);
        sim.plan_fault("/agt_load_1/", 0, &fault);
        let mut calls = 0;
        for (route, read) in reads {
            for n in 0..8 {
                let response = read(&weir, n);
                assert_ne!(
                    response.status,
                    503,
                    "{route} {n} {status:?}: {:?}",
                    String::from_utf8_lossy(&response.body)
                );
            }
            assert!(sim.calls() >= calls + 6, "{route}: the provider was called {} times", sim.calls() - calls);
            calls = sim.calls();
        }
        assert_eq!(weir.get_as("other", &healthy(3)).status, 200, "{status:?}");
        assert_eq!((weir.metric(IS_OPEN), weir.metric(REFUSED)), (0.0, 0.0), "{status:?}");
    }
}

#[test]
fn one_client_alone_opens_the_breaker_with_five_sessions_or_without_a_connection() {
    let sim = Sim::start();
    let weir = config().start(&sim);
    open_breaker(&sim, &weir, "open");
    assert_eq!(weir.get(&healthy(3)).code(), (503, "provider_unavailable".into()));
    // Nobody listens on this port. The session is always the same.
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let weir = config()
        .env("VECTARA_BASE_URL", &format!("http://{unused}"))
        .edit("providers/vectara.yaml", "retries: 1", "retries: 0")
        .start(&sim);
    for n in 0..5 {
        assert_eq!(weir.get(&healthy(3)).code(), (502, "provider_error".into()), "{n}");
    }
    for key in ["open", "other", "own"] {
        assert_eq!(weir.get_as(key, &healthy(4)).code(), (503, "provider_unavailable".into()), "{key}");
    }
}

#[test]
fn a_clients_own_credential_has_its_own_breaker() {
    let sim = Sim::start();
    let weir = config().start(&sim);
    open_breaker(&sim, &weir, "own");
    assert_eq!(weir.get_as("own", &healthy(3)).code(), (503, "provider_unavailable".into()));
    assert_eq!(weir.get_as("other", &healthy(3)).status, 200);
    let state = |key: &str| {
        let all = weir.get_as(key, "/v1/providers").json();
        let row = all["providers"].as_array().unwrap().iter().find(|p| p["name"] == "vectara").unwrap().clone();
        row["state"].as_str().unwrap().to_owned()
    };
    assert_eq!((state("own"), state("open")), ("down".into(), "ok".into()));
    // A reload that changes other settings keeps the breaker.
    weir.config.change("weir.yaml", "workers: 0", "workers: 0 # touched");
    assert_eq!(weir.reload().0, 200);
    assert_eq!(state("own"), "down");
}

#[test]
fn a_broken_session_of_one_client_does_not_keep_the_breaker_open_for_the_others() {
    let sim = Sim::start();
    let weir = config().edit("providers/vectara.yaml", "open_for: 10s", "open_for: 1s").start(&sim);
    open_breaker(&sim, &weir, "open");
    let broken = "/v1/sessions/vectara:agt_load_2:ase_broken_0";
    let calls = sim.calls();
    wait_until("the broken session gets the first trial", || {
        weir.get(broken);
        sim.calls() > calls
    });
    assert_eq!(weir.get(broken).status, 503, "it gets one trial in the open time");
    assert_eq!(weir.get_as("other", &healthy(3)).status, 200, "the next trial is another session's");
    assert_eq!(weir.metric(IS_OPEN), 0.0);
    for _ in 0..8 {
        assert_eq!(weir.get(broken).status, 502);
    }
    assert_eq!(weir.get_as("other", &healthy(4)).status, 200);
}

#[test]
fn a_trial_whose_client_hangs_up_does_not_block_the_next_one() {
    let sim = Sim::start();
    let weir = config().edit("providers/vectara.yaml", "open_for: 10s", "open_for: 4s").start(&sim);
    open_breaker(&sim, &weir, "open");
    sim.plan(&json!({ "path": "/v2/slow", "latency_ms": 60_000 }));
    let calls = sim.calls();
    wait_until("the trial is forwarded, and its client hangs up", || {
        let mut client = std::net::TcpStream::connect(weir.http).unwrap();
        client
            .write_all(&request("POST", "/vectara/v2/slow", &[("X-API-Key", "open"), ("Content-Length", "0")]))
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        sim.calls() > calls
    });
    wait_until("another trial closes the breaker", || weir.get_as("other", &healthy(3)).status == 200);
    assert_eq!(weir.metric(IS_OPEN), 0.0);
}

/// How a route asks for a session whose provider answers 503, and whether the answer is the provider's own.
type Reading<'r> = (&'r str, &'r dyn Fn(&Weir, &str) -> Response);

#[test]
fn one_sessions_503_pauses_no_other_session_on_any_route() {
    let unavailable = "vectara:agt_load_1:ase_agt_load_1_1";
    let readings: [Reading<'_>; 5] = [
        ("unified", &|weir, key| weir.get_as(key, &format!("/v1/sessions/{unavailable}"))),
        ("native read", &|weir, key| weir.get_as(key, &format!("/vectara{BROKEN}"))),
        ("pass-through write", &|weir, key| post(weir, key, &format!("/vectara{BROKEN}/message"), "{}")),
        ("batch", &|weir, key| weir.get_as(key, &format!("/v1/sessions:batchGet?id={unavailable}"))),
        ("list", &|weir, key| weir.get_as(key, "/v1/agents/agt_load_1/sessions")),
    ];
    for (route, read) in readings {
        let sim = Sim::start();
        let weir = config().start(&sim);
        sim.set_response("/agt_load_1/", 503, &json!({ "retry-after": "300" }), "{}");
        for _ in 0..8 {
            read(&weir, "open");
        }
        assert_eq!(sim.calls(), 1, "{route}: the session itself pauses");
        for key in ["other", "open"] {
            assert_eq!(weir.get_as(key, &healthy(3)).status, 200, "{route}");
            assert_eq!(post(&weir, key, "/vectara/v2/agents/agt_load_3/sessions", "{}").status, 201, "{route}");
        }
        let providers = weir.get("/v1/providers").json();
        let state = |name| {
            providers["providers"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap()["state"].clone()
        };
        assert_eq!(state("vectara"), "ok", "{route}: {providers}");
    }
}

#[test]
fn the_503_of_five_sessions_pauses_the_credential_and_no_other_one() {
    let sim = Sim::start();
    let weir = config().start(&sim);
    sim.set_response("/sessions/ase_down_", 503, &json!({ "retry-after": "300" }), "{}");
    for n in 0..5 {
        assert_eq!(weir.get_as("other", &healthy(n)).status, 200, "{n}");
        assert_eq!(weir.get(&format!("/v1/sessions/vectara:agt_load_2:ase_down_{n}")).status, 503, "{n}");
    }
    let paused = weir.get_as("other", &healthy(7));
    assert_eq!(paused.code(), (503, "provider_rate_limited".into()));
    assert!(paused.header("retry-after").unwrap().parse::<u64>().unwrap() > 200);
    assert_eq!(weir.metric("weir_upstream_throttled{provider=\"vectara\"}"), 1.0);
    let calls = sim.calls();
    assert_ne!(weir.get_as("own", &healthy(7)).status, 503, "its own credential");
    assert_eq!(sim.calls(), calls + 1);
}
