//! Mixed load while the providers misbehave at random and the configuration reloads every second.
//!
//! `make chaos` runs it for two minutes (or `CHAOS_SECONDS`); an ordinary test run gives it five seconds.

use crate::support::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A small generator of our own: a run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Default)]
struct Counts {
    answers: BTreeMap<String, u64>,
    wrong: Vec<String>,
    cross_tenant: Vec<String>,
    unexplained: Vec<String>,
}

fn fault(random: &mut Random) -> Value {
    let answer = |status: u16, headers: Value, body: &str| json!({ "kind": "answer", "status": status, "headers": headers, "body": body });
    match random.below(9) {
        0 => json!({ "kind": "reset" }),
        1 => json!({ "kind": "truncate" }),
        2 => json!({ "kind": "drip", "ms": 5 }),
        3 => answer(500, json!({}), "{}"),
        4 => answer(429, json!({ "retry-after": "1" }), "{}"),
        5 => answer(503, json!({}), ""),
        6 => answer(200, json!({}), "garbage"),
        7 => json!({ "kind": "hang" }),
        _ => json!({ "kind": "oversize", "bytes": 5_000_000 }),
    }
}

fn judge(counts: &Mutex<Counts>, tenant: &str, target: &str, id: Option<&str>, answer: &Answer) {
    let mut counts = counts.lock().unwrap();
    let body = answer.json();
    let code = body["code"].as_str().unwrap_or("");
    *counts.answers.entry(format!("{} {code}", answer.status)).or_default() += 1;
    let told = format!("{tenant} {target}: {} {body}", answer.status);
    match (answer.status, id) {
        (200, Some(id)) if body["id"] != id => counts.wrong.push(told),
        (200, None) if !body["sessions"].is_array() || body["partial"] != false => counts.wrong.push(told),
        // One tenant's credential is refused by one provider: it must never see that provider's sessions.
        (200, _) if tenant == "outsider" && target.contains("agt_") => counts.cross_tenant.push(told),
        (403, _) if tenant == "insider" => counts.cross_tenant.push(told),
        (200 | 403, _) | (502..=504, _) if answer.status < 500 || code.starts_with("provider_") => {}
        _ => counts.unexplained.push(told),
    }
}

#[test]
fn nothing_wrong_comes_of_chaos() {
    let seconds = std::env::var("CHAOS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let sim = Arc::new(Sim::with(&["--sessions", "300"]));
    let mut config = Config::shipped().clients(
        "clients:\n  - { id: insider, keys: [ { sha256: SHA(insider) } ] }\n  - { id: outsider, keys: [ { sha256: SHA(outsider) } ], credentials: { vectara: { header: x-api-key, value: zut_forbidden } } }\n",
    );
    for provider in ["vectara", "palantir", "agenthuman"] {
        let file = format!("providers/{provider}.yaml");
        config = config.edit(&file, "  timeout: 10s", "  timeout: 1s").edit(&file, "default: 30s", "default: 1s").edit(
            &file,
            "open_for: 10s",
            "open_for: 1s",
        );
    }
    let weir = Arc::new(config.edit("weir.yaml", "access_log: on", "access_log: { sample: 1000 }").start(&sim));
    let (counts, stop) = (Arc::new(Mutex::new(Counts::default())), Arc::new(AtomicBool::new(false)));
    let mut threads = Vec::new();
    for n in 0..8_u64 {
        let (weir, counts, stop) = (weir.clone(), counts.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            let mut random = Random(n + 1);
            let tenant = if n % 2 == 0 { "insider" } else { "outsider" };
            while !stop.load(Ordering::SeqCst) {
                let k = random.below(40) + 1;
                let (target, id) = match random.below(4) {
                    0 => {
                        let id = format!("vectara:agt_load_1:ase_agt_load_1_{k}");
                        (format!("/v1/sessions/{id}"), Some(id))
                    }
                    1 => {
                        let session = format!("ri.aip-agents..session.00000000-0000-4000-8000-{k:012x}");
                        let agent = "ri.aip-agents..agent.00000000-0000-0000-0000-000000000003";
                        (format!("/v1/agents/{agent}/sessions/{session}"), Some(format!("palantir:{agent}:{session}")))
                    }
                    2 => ("/v1/sessions?provider=agenthuman&limit=5".to_owned(), None),
                    _ => (format!("/v1/agents/agt_load_{}/sessions?limit={k}", k % 10), None),
                };
                let answer = weir.get_as(tenant, &target);
                judge(&counts, tenant, &target, id.as_deref(), &answer);
            }
        }));
    }
    let (begun, mut random, mut reloads, mut early) = (Instant::now(), Random(99), 0_u64, 0.0);
    let text = weir.config.read("weir.yaml");
    while begun.elapsed() < Duration::from_secs(seconds) {
        let path = ["/v2/", "/api/v2", "/v1/sessions", ""][usize::try_from(random.below(4)).unwrap()];
        sim.fault(path, random.below(6) + 1, &fault(&mut random));
        std::thread::sleep(Duration::from_millis(100));
        if begun.elapsed().as_secs() > reloads {
            reloads += 1;
            weir.config.write("weir.yaml", &format!("{text}# {reloads}\n"));
        }
        if early == 0.0 && begun.elapsed() > Duration::from_secs(seconds / 4) {
            early = weir.metric("process_resident_memory_bytes");
        }
    }
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let late = weir.metric("process_resident_memory_bytes");
    let panics = weir.process.stderr.lock().unwrap().iter().filter(|line| line.contains("panicked")).count();
    let counts = counts.lock().unwrap();
    println!("chaos: {seconds} s, {} answers: {:?}", counts.answers.values().sum::<u64>(), counts.answers);
    println!(
        "wrong answers {}, cross-tenant answers {}, unexplained {}, panics {panics}, reloads {}, resident memory {:.1} MB after a quarter, {:.1} MB at the end",
        counts.wrong.len(),
        counts.cross_tenant.len(),
        counts.unexplained.len(),
        weir.metric("weir_config_reloads_total{result=\"success\"}"),
        early / 1e6,
        late / 1e6
    );
    assert!(counts.wrong.is_empty(), "{:#?}", counts.wrong);
    assert!(counts.cross_tenant.is_empty(), "{:#?}", counts.cross_tenant);
    assert!(counts.unexplained.is_empty(), "{:#?}", counts.unexplained);
    assert_eq!(panics, 0);
    assert_eq!(weir.metric("weir_config_reloads_total{result=\"failure\"}"), 0.0);
    assert!(late < early * 1.5 + 32e6, "memory grew from {early} to {late}");
    assert!(counts.answers.get("200 ").is_some_and(|n| *n > 100), "there was load");
}
