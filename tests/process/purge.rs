//! Purging, by the admin listener and by the command line.

use crate::support::*;
use serde_json::{Value, json};

fn purge(weir: &Weir, body: &Value) -> Answer {
    let body = body.to_string();
    let mut bytes = request("POST", "/cache/purge", &[("Content-Length", &body.len().to_string())]);
    bytes.extend_from_slice(body.as_bytes());
    raw(weir.admin, &bytes)
}

fn is_hit(weir: &Weir, key: &str, target: &str) -> bool {
    weir.get_as(key, target).header("cache-status").unwrap().starts_with("weir; hit")
}

#[test]
fn each_scope_purges_its_own_and_says_how_many() {
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
    let left = || -> Vec<bool> { targets.iter().map(|target| is_hit(&weir, "open", target)).collect() };
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
        let answer = purge(&weir, &body);
        assert_eq!((answer.status, answer.json()), (200, json!({ "purged": purged })), "{body}");
        assert_eq!(left(), hits, "{body}");
    }
    for wrong in [
        json!({}),
        json!([]),
        json!({ "all": false }),
        json!({ "provider": "vectara", "all": true }),
        json!({ "all": true, "mode": "x" }),
        json!({ "session": "nonsense" }),
        json!({ "x": 1 }),
    ] {
        assert_eq!(purge(&weir, &wrong).code(), (400, "invalid_request".into()), "{wrong}");
    }
    assert_eq!(purge(&weir, &json!({ "provider": "nobody" })).code(), (404, "provider_not_found".into()));
    assert_eq!(purge(&weir, &json!({ "client": "nobody" })).status, 404);
    assert_eq!(weir.admin("GET", "/cache/purge").status, 405);
}

#[test]
fn a_soft_purge_leaves_something_to_serve_when_the_provider_fails() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(purge(&weir, &json!({ "provider": "vectara", "mode": "soft" })).json()["purged"], 1);
    sim.answers("/v2/", 500, &json!({}), "{}");
    let answer = weir.get(VECTARA);
    assert_eq!(
        (answer.status, answer.header("cache-status")),
        (200, Some("weir; fwd=stale; fwd-status=500; detail=stale-if-error"))
    );
    assert_eq!(purge(&weir, &json!({ "provider": "vectara" })).json()["purged"], 1);
    assert_eq!(weir.get(VECTARA).status, 502);
}

#[test]
fn a_call_under_way_when_the_purge_comes_brings_nothing_back() {
    let (sim, config) = (Sim::start(), Config::shipped());
    let weir = config.start(&sim);
    sim.plan(&json!({ "path": "/v2/", "times": 1, "latency_ms": 4000 }));
    let address = weir.http;
    let early = std::thread::spawn(move || send(address, "GET", VECTARA, &[("X-API-Key", "open")]));
    until("the call is under way", || sim.calls() == 1);
    assert_eq!(purge(&weir, &json!({ "all": true })).json()["purged"], 0);
    let late = weir.get(VECTARA);
    assert_eq!(
        late.header("cache-status"),
        Some("weir; fwd=miss; stored; detail=default"),
        "nobody joins the old call"
    );
    let stored_at = late.header("date").unwrap().to_owned();
    assert_eq!(early.join().unwrap().status, 200);
    assert_eq!(sim.calls(), 2);
    let now = weir.get(VECTARA);
    assert!(now.header("cache-status").unwrap().starts_with("weir; hit"), "{stored_at}");
    let age: u64 = now.header("age").unwrap().parse().unwrap();
    assert!(age >= 1, "what is stored is the later call's answer, not the one that ended last");
}

#[test]
fn weir_purge_asks_the_running_gateway() {
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
