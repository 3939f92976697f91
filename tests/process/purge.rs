//! Cache purges by the admin listener and by `weir purge`.

use crate::support::*;
use serde_json::{Value, json};

fn purge(weir: &Weir, body: &Value) -> Response {
    weir.post_admin("/cache/purge", &body.to_string())
}

fn is_hit(weir: &Weir, key: &str, target: &str) -> bool {
    weir.get_as(key, target).header("cache-status").unwrap().starts_with("weir; hit")
}

#[test]
fn each_scope_purges_only_its_entries_and_returns_their_number() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients(
            "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: own, keys: [ { sha256: SHA(own) } ], \
             credentials: { vectara: { header: X-API-KEY, value: \"${VECTARA_API_KEY}\" }, agenthuman: { header: x-api-key, value: other } } }\n",
        )
        .start(&sim);
    let targets = [
        VECTARA,
        "/v1/agents/agt_customer_support/sessions",
        "/v1/sessions/vectara:agt_load_1:ase_agt_load_1_1",
        PALANTIR,
        AGENTHUMAN,
    ];
    let fill = || targets.iter().for_each(|target| assert_eq!(weir.get(target).status, 200));
    let still_cached = || -> Vec<bool> { targets.iter().map(|target| is_hit(&weir, "open", target)).collect() };
    for (body, purged, hits) in [
        (
            json!({ "session": "vectara:agt_customer_support:ase_customer_support_001" }),
            2,
            [false, false, true, true, true],
        ),
        (json!({ "session": "sess_01H3Z8G9YR3K2N5M6P7Q8W4T", "mode": "hard" }), 1, [true, true, true, true, false]),
        (json!({ "agent": "vectara:agt_load_1" }), 1, [true, true, false, true, true]),
        (json!({ "provider": "vectara" }), 3, [false, false, false, true, true]),
        (json!({ "client": "own" }), 4, [false, false, false, false, true]),
        (json!({ "all": true }), 5, [false; 5]),
    ] {
        fill();
        let response = purge(&weir, &body);
        assert_eq!((response.status, response.json()), (200, json!({ "purged": purged })), "{body}");
        assert_eq!(still_cached(), hits, "{body}");
    }
    for invalid in [
        json!({}),
        json!([]),
        json!({ "all": false }),
        json!({ "provider": "vectara", "all": true }),
        json!({ "all": true, "mode": "x" }),
        json!({ "session": "nonsense" }),
        json!({ "x": 1 }),
    ] {
        assert_eq!(purge(&weir, &invalid).code(), (400, "invalid_request".into()), "{invalid}");
    }
    assert_eq!(purge(&weir, &json!({ "provider": "nobody" })).code(), (404, "provider_not_found".into()));
    assert_eq!(purge(&weir, &json!({ "client": "nobody" })).status, 404);
    assert_eq!(weir.admin("GET", "/cache/purge").status, 405);
}

#[test]
fn a_soft_purge_keeps_entries_for_stale_if_error_and_a_hard_purge_does_not() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(purge(&weir, &json!({ "provider": "vectara", "mode": "soft" })).json()["purged"], 1);
    sim.set_response("/v2/", 500, &json!({}), "{}");
    let response = weir.get(VECTARA);
    assert_eq!(
        (response.status, response.header("cache-status")),
        (200, Some("weir; fwd=stale; fwd-status=500; detail=stale-if-error"))
    );
    assert_eq!(purge(&weir, &json!({ "provider": "vectara" })).json()["purged"], 1);
    assert_eq!(weir.get(VECTARA).status, 502);
}

#[test]
fn the_response_of_a_call_in_flight_during_a_purge_is_not_stored() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    sim.plan(&json!({ "path": "/v2/", "times": 1, "latency_ms": 4000 }));
    let address = weir.http;
    let earlier = std::thread::spawn(move || send(address, "GET", VECTARA, &[("X-API-Key", "open")]));
    wait_until("the call is in flight", || sim.calls() == 1);
    assert_eq!(purge(&weir, &json!({ "all": true })).json()["purged"], 0);
    let later = weir.get(VECTARA);
    assert_eq!(
        later.header("cache-status"),
        Some("weir; fwd=miss; stored; detail=default"),
        "a later request does not join the earlier call"
    );
    let stored_at = later.header("date").unwrap().to_owned();
    assert_eq!(earlier.join().unwrap().status, 200);
    assert_eq!(sim.calls(), 2);
    let now = weir.get(VECTARA);
    assert!(now.header("cache-status").unwrap().starts_with("weir; hit"), "{stored_at}");
    let age: u64 = now.header("age").unwrap().parse().unwrap();
    assert!(age >= 1, "the entry is the response of the later call, which ended first");
}

#[test]
fn the_purge_command_purges_the_running_gateway() {
    let sim = Sim::start();
    let weir = Config::shipped().env("WEIR_ADMIN_TOKEN", "t0p").start(&sim);
    assert_eq!(weir.get(AGENTHUMAN).status, 200);
    let admin = weir.admin.to_string();
    let run = |arguments: &[&str]| {
        let output = weir.config.command(&[&["purge", "--admin", &admin], arguments].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(
        run(&["--session", "sess_01H3Z8G9YR3K2N5M6P7Q8W4T"]),
        (Some(0), "{\"purged\":1}\n".into(), String::new())
    );
    assert_eq!(run(&["--all", "--soft"]), (Some(0), "{\"purged\":0}\n".into(), String::new()));
    let (code, _, stderr) = run(&["--provider", "nobody"]);
    assert!(code == Some(1) && stderr.contains("no provider \"nobody\""), "{stderr}");
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&["--all", "--provider", "vectara"]).0, Some(2));
}
