//! Mixed load while the providers misbehave at random and the configuration reloads every second.
//!
//! `make chaos` runs it for two minutes (or `CHAOS_SECONDS`); an ordinary test run gives it five seconds.

use crate::support::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
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
    /// Answers to what was asked when nothing misbehaved any more.
    calm: u64,
}

fn fault(random: &mut Random) -> Value {
    let answer = |status: u16, headers: Value, body: &str| json!({ "kind": "answer", "status": status, "headers": headers, "body": body });
    // Throttling ends in pauses, in which nothing else is seen: it comes more rarely than the rest.
    let kinds = if random.below(3) == 0 { 9 } else { 7 };
    match random.below(kinds) {
        0 => json!({ "kind": "reset" }),
        1 => json!({ "kind": "truncate" }),
        2 => json!({ "kind": "drip", "ms": 5 }),
        3 => answer(500, json!({}), "{}"),
        4 => answer(200, json!({}), "garbage"),
        5 => json!({ "kind": "hang" }),
        7 => answer(429, json!({ "retry-after": "1" }), "{}"),
        8 => answer(503, json!({ "retry-after": "1" }), ""),
        _ => json!({ "kind": "oversize", "bytes": 5_000_000 }),
    }
}

/// What must come back when all is well: taken from a gateway of its own before anything misbehaves.
struct Asked {
    target: String,
    /// The answer without what time changes in it; `None` for the tenant that may not see it.
    truth: Value,
}

/// A body without what changes by itself: a page's token is bound to its client, an age grows.
fn lasting(mut body: Value) -> Value {
    if let Some(list) = body.as_object_mut().filter(|body| body.contains_key("sessions")) {
        list["next_page_token"] = json!(list["next_page_token"].is_null());
        list["sources"][0]["age_seconds"] = Value::Null;
        list["sources"][0]["state"] = Value::Null;
        // A session that runs says for how long.
        list["sessions"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(|session| session["duration_seconds"] = Value::Null);
    }
    body
}

/// The codes that a fault of the provider's may become; and 503 `overloaded` if Weir were short of room, which it is not.
const EXPLAINED: [(u16, &str); 6] = [
    (502, "provider_error"),
    (502, "provider_invalid_response"),
    (503, "provider_rate_limited"),
    (503, "provider_unavailable"),
    (504, "provider_timeout"),
    (502, "provider_auth_failed"),
];

fn judge(counts: &Mutex<Counts>, tenant: &str, asked: &Asked, answer: &Answer) {
    let body = answer.json();
    let code = body["code"].as_str().unwrap_or("").to_owned();
    let told = format!("{tenant} {}: {} {body}", asked.target, answer.status);
    let outside = tenant == "outsider" && asked.target.contains("agt_");
    let mut counts = counts.lock().unwrap();
    *counts.answers.entry(format!("{} {code}", answer.status)).or_default() += 1;
    match answer.status {
        // One tenant's credential is refused by one provider: it must never see that provider's sessions.
        200 if outside => counts.cross_tenant.push(told),
        200 if lasting(body.clone()) != asked.truth => counts.wrong.push(format!("{told}\nand not {}", asked.truth)),
        200 => {}
        403 if outside => {}
        403 => counts.cross_tenant.push(told),
        // Nobody's credential is wrong here.
        502 if code == "provider_auth_failed" => counts.unexplained.push(told),
        status if EXPLAINED.contains(&(status, &code)) && body["provider"].is_string() => {}
        _ => counts.unexplained.push(told),
    }
}

/// Everything that is asked: sessions and pages of all three providers.
fn targets() -> Vec<String> {
    let mut all = Vec::new();
    for k in 1..41 {
        all.push(format!("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_{k}"));
        let session = format!("ri.aip-agents..session.00000000-0000-4000-8000-{k:012x}");
        all.push(format!("/v1/agents/ri.aip-agents..agent.00000000-0000-0000-0000-000000000003/sessions/{session}"));
        all.push(format!("/v1/agents/agt_load_{}/sessions?limit={k}", k % 10));
        all.push(format!("/v1/sessions?provider=agenthuman&limit={}", k % 5 + 1));
    }
    all
}

/// Eight clients, half of them strangers to one provider; in the `calm` nothing but the truth will do.
fn load(
    weir: &Arc<Weir>,
    asked: &Arc<Vec<Asked>>,
    counts: &Arc<Mutex<Counts>>,
    stop: &Arc<AtomicBool>,
    calm: bool,
) -> Vec<JoinHandle<()>> {
    let client = |n: u64| {
        let (weir, asked, counts, stop) = (weir.clone(), asked.clone(), counts.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut random = Random(n + 1);
            let tenant = if n.is_multiple_of(2) { "insider" } else { "outsider" };
            while !stop.load(Ordering::SeqCst) {
                let asked = &asked[usize::try_from(random.below(asked.len() as u64)).unwrap()];
                let directive = [None, None, None, Some("no-cache"), Some("max-stale"), Some("no-store")]
                    [usize::try_from(random.below(6)).unwrap()];
                let mut headers = vec![("X-API-Key", tenant)];
                headers.extend(directive.map(|directive| ("Cache-Control", directive)));
                let answer = send(weir.http, "GET", &asked.target, &headers);
                judge(&counts, tenant, asked, &answer);
                let mut counts = counts.lock().unwrap();
                counts.calm += u64::from(calm);
                if calm && !matches!(answer.status, 200 | 403) {
                    counts.unexplained.push(format!("in calm: {tenant} {} {:?}", asked.target, answer.code()));
                }
            }
        })
    };
    (0..8).map(client).collect()
}

/// When the faults end, so do the failures: no breaker stays open, no pause lasts.
fn calm(weir: &Arc<Weir>, sim: &Sim, asked: &Arc<Vec<Asked>>, counts: &Arc<Mutex<Counts>>) {
    sim.forget();
    // A call that began among the faults may hang yet, and who asks for the same joins it.
    until("no call is under way", || weir.metric("weir_upstream_requests_in_flight") == 0.0);
    // A slow machine is given its time.
    for provider in ["vectara", "palantir", "agenthuman"] {
        weir.config.change(&format!("providers/{provider}.yaml"), "  timeout: 1s", "  timeout: 60s");
    }
    assert_eq!(weir.reload().0, 200, "the longer time is in force");
    for target in [VECTARA, PALANTIR, AGENTHUMAN] {
        until("the provider is asked again", || {
            weir.get_with_key("insider", target, &[("Cache-Control", "no-cache")]).status == 200
        });
    }
    until("the outsider's credential is no longer paused", || {
        weir.get_with_key("outsider", VECTARA, &[("Cache-Control", "no-cache")]).status == 403
    });
    let stop = Arc::new(AtomicBool::new(false));
    let threads = load(weir, asked, counts, &stop, true);
    until("calm has been seen", || counts.lock().unwrap().calm > 500);
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
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
            "open_for: 300ms",
        );
        // Enough for the load: what is refused here is refused for the faults' sake.
        for capacity in [
            "requests: 1000\n    per: 1m\n    burst: 1000",
            "requests: 5000\n    per: 1m\n    burst: 5000",
            "requests: 60\n    per: 1m\n    burst: 60",
        ] {
            let read = config.read(&file);
            if read.contains(capacity) {
                config = config.edit(&file, capacity, "requests: 100000\n    per: 1s\n    burst: 100000");
            }
        }
    }
    // Of what comes in a tenth fits: entries are evicted all the time.
    let weir = Arc::new(
        config
            .edit("weir.yaml", "access_log: on", "access_log: { sample: 1000 }")
            .edit("weir.yaml", "max_bytes: 256MiB", "max_bytes: 96KiB")
            .start(&sim),
    );
    let truth = Config::shipped().start(&sim);
    let asked: Arc<Vec<Asked>> = Arc::new(
        targets()
            .into_iter()
            .map(|target| {
                let answer = truth.get(&target);
                assert_eq!(answer.status, 200, "{target}: {}", answer.json());
                Asked { truth: lasting(answer.json()), target }
            })
            .collect(),
    );
    drop(truth);
    let (counts, stop) = (Arc::new(Mutex::new(Counts::default())), Arc::new(AtomicBool::new(false)));
    let threads = load(&weir, &asked, &counts, &stop, false);
    let (begun, mut random, mut reloads, mut early) = (Instant::now(), Random(99), 0_u64, 0.0);
    let text = weir.config.read("weir.yaml");
    let mut samples = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let path = ["/v2/", "/api/v2", "/v1/sessions", ""][usize::try_from(random.below(4)).unwrap()];
        sim.fault(path, random.below(6) + 1, &fault(&mut random));
        std::thread::sleep(Duration::from_millis(100));
        if random.below(20) == 0 {
            weir.make_stale();
        }
        if begun.elapsed().as_secs() > reloads {
            reloads += 1;
            // Every second one changes a rule, so that what is stored is made anew.
            let (from, to) = if reloads % 2 == 0 { ("list: 10s", "list: 11s") } else { ("list: 11s", "list: 10s") };
            if weir.config.read("providers/vectara.yaml").contains(from) {
                weir.config.change("providers/vectara.yaml", from, to);
            } else {
                weir.config.write("weir.yaml", &format!("{text}# {reloads}\n"));
            }
        }
        if samples.len() < usize::try_from(begun.elapsed().as_millis() * 8 / u128::from(seconds * 1000)).unwrap() {
            samples.push(format!("{:.1}", weir.metric("process_resident_memory_bytes") / 1e6));
        }
        if early == 0.0 && begun.elapsed() > Duration::from_secs(seconds / 4) {
            early = weir.metric("process_resident_memory_bytes");
        }
    }
    let late = weir.metric("process_resident_memory_bytes");
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    calm(&weir, &sim, &asked, &counts);
    let reloaded = weir.metric("weir_config_reloads_total{result=\"success\"}");
    let evicted = weir.metric("weir_cache_evictions_total{cause=\"size\"}");
    let panics = weir.process.stderr.lock().unwrap().iter().filter(|line| line.contains("panicked")).count();
    let counts = counts.lock().unwrap();
    println!("resident memory by eighths, in MB: {}", samples.join(" "));
    println!("chaos: {seconds} s, {} answers: {:?}", counts.answers.values().sum::<u64>(), counts.answers);
    println!(
        "wrong answers {}, cross-tenant answers {}, unexplained {}, panics {panics}, reloads {reloaded}, evictions {evicted}, resident memory {:.1} MB after a quarter, {:.1} MB at the end",
        counts.wrong.len(),
        counts.cross_tenant.len(),
        counts.unexplained.len(),
        early / 1e6,
        late / 1e6
    );
    assert!(counts.wrong.is_empty(), "{:#?}", counts.wrong);
    assert!(counts.cross_tenant.is_empty(), "{:#?}", counts.cross_tenant);
    assert!(counts.unexplained.is_empty(), "{:#?}", counts.unexplained);
    assert_eq!(panics, 0);
    assert_eq!(weir.metric("weir_config_reloads_total{result=\"failure\"}"), 0.0);
    let least = f64::from(u32::try_from(seconds).unwrap()) / 2.0;
    assert!(reloaded >= least && evicted > 0.0, "{reloaded} reloads, {evicted} evictions");
    let all: u64 = counts.answers.values().sum();
    let told: u64 = counts.answers.iter().filter(|(answer, _)| answer.starts_with("503")).map(|(_, n)| n).sum();
    assert!(told * 10 < all * 8, "{told} of {all} were 503: the load shows little");
    // Refusals come at once, so that there are many of them however rarely a provider is paused.
    let well = counts.answers.get("200 ").copied().unwrap_or_default();
    assert!(well * 20 > all, "{well} of {all} were 200: the load shows little");
    // Flat: what an allocator keeps for itself, and nothing that grows with time.
    let warming = if seconds < 60 { 64e6 } else { 0.0 };
    assert!(late < early + 24e6 + warming, "memory grew from {early} to {late}");
    assert!(counts.answers.get("200 ").is_some_and(|n| *n > 100), "there was load");
}
