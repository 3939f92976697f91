//! Configuration that changes while requests run.

use crate::support::*;
use crate::upgrade::{KeepAlive, text};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn revision(weir: &Weir) -> String {
    weir.admin("GET", "/readyz").json()["revision"].as_str().unwrap().to_owned()
}

fn changes(weir: &Weir, before: &str) {
    until("the change is in force", || revision(weir) != before);
}

#[test]
fn a_provider_is_added_under_load_without_a_failed_request() {
    let sim = Sim::start();
    let config = Config::shipped();
    let file = config.read("providers/agenthuman.yaml");
    fs::remove_file(config.path("providers/agenthuman.yaml")).unwrap();
    fs::remove_dir_all(config.path("examples/agenthuman")).unwrap();
    let weir = Arc::new(config.start(&sim));
    assert_eq!(
        weir.get("/v1/sessions/agenthuman:sess_01H3Z8G9YR3K2N5M6P7Q8W4T").code(),
        (404, "provider_not_found".into())
    );
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = [VECTARA, PALANTIR]
        .into_iter()
        .map(|target| {
            let (weir, stop, served) = (weir.clone(), stop.clone(), served.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let answer = weir.get(target);
                    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    until("load runs", || served.load(Ordering::SeqCst) > 50);
    weir.config.write("providers/agenthuman.yaml", &file);
    until("the new provider answers", || weir.get(AGENTHUMAN).status == 200);
    let at_swap = served.load(Ordering::SeqCst);
    until("load ran on", || served.load(Ordering::SeqCst) > at_swap + 50);
    stop.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(weir.metric("weir_config_reloads_total{result=\"failure\"}"), 0.0);
    assert!(weir.metric("weir_config_reloads_total{result=\"success\"}") >= 1.0);
}

#[test]
fn every_way_to_change_a_file_is_noticed() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let text = weir.config.read("weir.yaml");
    // Written in place.
    let before = revision(&weir);
    weir.config.write("weir.yaml", &format!("{text}# one\n"));
    changes(&weir, &before);
    // Written beside and renamed over.
    let before = revision(&weir);
    weir.config.write("weir.yaml.new", &format!("{text}# two\n"));
    fs::rename(weir.config.path("weir.yaml.new"), weir.config.path("weir.yaml")).unwrap();
    changes(&weir, &before);
    // SIGHUP, and the admin endpoint, which say so when nothing changed.
    weir.process.signal("HUP");
    until("SIGHUP was counted", || weir.metric("weir_config_reloads_total{result=\"unchanged\"}") >= 1.0);
    let (status, body) = weir.reload();
    assert_eq!((status, body["result"].as_str().unwrap()), (200, "unchanged"));
    assert_eq!(body["revision"], revision(&weir));
    let info = format!("weir_config_info{{revision=\"{}\"}} 1", revision(&weir));
    let metrics = weir.metrics();
    assert!(metrics.contains(&info) && metrics.matches("weir_config_info{").count() == 1);
}

#[test]
fn a_config_maps_link_swap_is_noticed() {
    use std::os::unix::fs::symlink;
    let sim = Sim::start();
    let config = Config::shipped();
    // As Kubernetes mounts one: files are links into ..data, which is a link that is swapped.
    let make = |version: &str, extra: &str| {
        let directory = config.path(version);
        fs::create_dir(&directory).unwrap();
        for file in ["weir.yaml", "clients.yaml"] {
            fs::write(
                directory.join(file),
                digests(&(fs::read_to_string(repository().join("config").join(file)).unwrap() + extra)),
            )
            .unwrap();
        }
    };
    make("..v1", "# one\n");
    symlink("..v1", config.path("..data")).unwrap();
    for file in ["weir.yaml", "clients.yaml"] {
        fs::remove_file(config.path(file)).unwrap();
        symlink(format!("..data/{file}"), config.path(file)).unwrap();
    }
    let weir = config.start(&sim);
    let before = revision(&weir);
    let config = &weir.config;
    let directory = config.path("..v2");
    copy(&config.path("..v1"), &directory);
    fs::write(directory.join("weir.yaml"), config.read("weir.yaml") + "# two\n").unwrap();
    symlink("..v2", config.path("..data_tmp")).unwrap();
    fs::rename(config.path("..data_tmp"), config.path("..data")).unwrap();
    changes(&weir, &before);
}

#[test]
fn a_bad_config_changes_nothing_and_is_told() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let good = weir.config.read("providers/vectara.yaml");
    let before = revision(&weir);
    weir.config.write(
        "providers/vectara.yaml",
        &good.replace("timeout: 10s ", "timeout: soon ").replace("max: 1h ", "maxx: 1h "),
    );
    until("the failure is counted", || weir.metric("weir_config_reloads_total{result=\"failure\"}") >= 1.0);
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(revision(&weir), before);
    assert_eq!(weir.metric("weir_config_last_reload_successful"), 0.0);
    let (status, body) = weir.reload();
    assert_eq!(status, 422);
    let faults = body["faults"].to_string();
    assert!(
        faults.contains("\\\"soon\\\" is not a duration") && faults.contains("did you mean \\\"max\\\""),
        "{faults}"
    );
    let shown = weir.admin("GET", "/config").json();
    assert_eq!(shown["last_error"]["faults"].as_array().unwrap().len(), 2);
    weir.config.write("providers/vectara.yaml", &good);
    until("it is well again", || weir.metric("weir_config_last_reload_successful") == 1.0);
    assert!(weir.admin("GET", "/config").json()["last_error"].is_null());
}

#[test]
fn cache_and_limiters_survive_and_changed_rules_apply_to_what_is_stored() {
    let sim = Sim::start();
    let config = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: [slow, other] }\n");
    config.change(
        "weir.yaml",
        "rate_limits:\n",
        "rate_limits:\n  slow: { requests: 100, per: 1d }\n  other: { requests: 100, per: 1d }\n",
    );
    let weir = config.start(&sim);
    let left = |answer: &Answer, policy: &str| -> u64 {
        let header = answer.header("ratelimit").unwrap();
        header.split(&format!("\"{policy}\";r=")).nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
    };
    for _ in 0..10 {
        weir.get(VECTARA);
    }
    weir.config.change("weir.yaml", "  other: { requests: 100, per: 1d }", "  other: { requests: 50, per: 1d }");
    weir.config.change("providers/vectara.yaml", "title: [$.name, $.description]", "title: $.metadata.priority");
    weir.config.change("providers/vectara.yaml", "default: 30s ", "default: 50s ");
    fs::remove_dir_all(weir.config.path("examples/vectara")).unwrap();
    until("it reloads", || weir.reload().0 == 200);
    let answer = weir.get(VECTARA);
    assert_eq!((left(&answer, "slow"), left(&answer, "other")), (89, 49), "kept, and started full");
    assert_eq!(answer.json()["title"], "high");
    assert_eq!(answer.header("cache-control"), Some("private, max-age=50"));
    assert!(answer.header("cache-status").unwrap().contains("hit"));
    assert_eq!(sim.calls(), 1, "made anew from the stored body");
}

#[test]
fn secrets_in_files_are_read_again_and_what_needs_a_restart_is_named() {
    let sim = Sim::start();
    let config = Config::shipped();
    config.write("key.txt", "wrong\n");
    config.change("providers/vectara.yaml", "value: \"${VECTARA_API_KEY:-}\"", "value: { file: key.txt }");
    let weir = config.start(&sim);
    assert_eq!(weir.get(VECTARA).code(), (502, "provider_auth_failed".into()));
    weir.config.write("key.txt", "zut_sim\n");
    until("the new secret is used", || weir.get(VECTARA).status == 200);
    weir.config.change("weir.yaml", "max_bytes: 256MiB", "max_bytes: 128MiB");
    until("the change is told", || {
        weir.process.stderr.lock().unwrap().iter().any(|line| line.contains("needs a restart: cache.max_bytes"))
    });
    let everything = weir.process.stderr.lock().unwrap().join("\n")
        + &weir.metrics()
        + &weir.admin("GET", "/config").json().to_string();
    assert!(!everything.contains("zut_sim"));
}

#[test]
fn a_reload_does_not_open_an_admin_listener_that_is_still_public() {
    let sim = Sim::start();
    let weir = Config::shipped().env("WEIR_ADMIN", "0.0.0.0:0").env("WEIR_ADMIN_TOKEN", "t").start(&sim);
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], weir.admin.port()));
    let reload = || send(admin, "POST", "/reload", &[("Authorization", "Bearer t")]);
    weir.config.change("weir.yaml", "${WEIR_ADMIN:-127.0.0.1:8081}", "127.0.0.1:0");
    weir.config.change("weir.yaml", "${WEIR_ADMIN_TOKEN:-}", "\"\"");
    until("it is refused", || reload().status == 422);
    assert!(reload().json()["faults"][0].as_str().unwrap().contains("admin.token is still needed"));
    assert_eq!(send(admin, "GET", "/config", &[]).status, 401);
    weir.config.change("weir.yaml", "token: \"\"", "token: t");
    until("the address alone waits for a restart", || reload().status == 200);
    weir.config.change("weir.yaml", "workers: 0", "workers: 1");
    let told = |answer: &Answer| answer.json()["needs_restart"].clone();
    let mut last = reload();
    until("both are told", || {
        last = reload();
        last.json()["result"] == "success"
            || weir.process.stderr.lock().unwrap().iter().any(|l| l.contains("admin.address, workers"))
    });
    assert!(told(&last).is_null() || told(&last) == serde_json::json!(["admin.address", "workers"]), "{}", last.json());
}

#[test]
fn a_reader_of_stderr_that_is_gone_does_not_stop_reloads() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let config = Config::shipped();
    let mut child = config.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(child.stderr.take().unwrap());
    while !line.starts_with("listening") {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    drop(reader);
    let admin: std::net::SocketAddr = line.trim().split("admin=").nth(1).unwrap().parse().unwrap();
    let revision = || send(admin, "GET", "/readyz", &[]).json()["revision"].clone();
    let text = config.read("weir.yaml");
    for n in 0..3 {
        let before = revision();
        config.write("weir.yaml", &format!("{text}# {n}\n"));
        until("it reloads", || revision() != before);
    }
    let _ = std::process::Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// What a load met: how many requests, and the slowest of a hundred, in microseconds.
struct Met {
    requests: usize,
    median: u128,
    p99: u128,
}

/// Asks from four kept connections until `done` has come, and has asked at least so many times.
fn load(weir: &Weir, least: usize, done: impl FnOnce()) -> Met {
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (http, stop, asked) = (weir.http, stop.clone(), asked.clone());
            // Every fourth is asked of the provider.
            let requests = [VECTARA, PALANTIR, AGENTHUMAN].map(|target| text(target, ""));
            let confirmed = text(VECTARA, "Cache-Control: no-cache\r\n");
            std::thread::spawn(move || {
                let (mut client, mut took) = (KeepAlive::new(http), Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    let request = if took.len() % 4 == 3 { &confirmed } else { &requests[(n + took.len()) % 3] };
                    let begun = std::time::Instant::now();
                    let status = client.ask(request).unwrap_or_else(|error| panic!("client {n}: {error}"));
                    took.push(begun.elapsed().as_micros());
                    assert_eq!(status, 200, "{request}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
                took
            })
        })
        .collect();
    done();
    until("enough was asked", || {
        asked.load(Ordering::SeqCst) >= least as u64 || clients.iter().any(std::thread::JoinHandle::is_finished)
    });
    stop.store(true, Ordering::SeqCst);
    let mut took: Vec<u128> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    took.sort_unstable();
    Met { requests: took.len(), median: took[took.len() / 2], p99: took[took.len() * 99 / 100] }
}

#[test]
fn a_thousand_reloads_under_load_fail_no_request_and_hold_no_memory() {
    let reloads: u64 = std::env::var("RELOADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let sim = Sim::start();
    let config = Config::shipped();
    let rate = "requests: 1000\n    per: 1m\n    burst: 1000";
    config.change("providers/vectara.yaml", rate, "requests: 1000000\n    per: 1s\n    burst: 1000000");
    let weir = config.start(&sim);
    let quiet = load(&weir, 5000, || ());
    let yaml = weir.config.read("weir.yaml");
    let count = |weir: &Weir| weir.metric("weir_config_reloads_total{result=\"success\"}") as u64;
    let resident = |weir: &Weir| weir.metric("process_resident_memory_bytes") as u64;
    let mut memory = Vec::new();
    let reloading = load(&weir, 5000, || {
        for n in 1..=reloads {
            // Limits and cache stay, and the rest is made anew.
            // In one step: who watches must not find half of it.
            weir.config.write("weir.yaml.new", &format!("{yaml}# {n}\n"));
            fs::rename(weir.config.path("weir.yaml.new"), weir.config.path("weir.yaml")).unwrap();
            let (status, body) = weir.reload();
            assert_eq!(status, 200, "{body}");
            if n % (reloads / 5) == 0 {
                memory.push(resident(&weir));
            }
        }
    });
    // A file's change may have been noticed before it was told; each changed something, once.
    assert!(count(&weir) >= reloads, "{}", count(&weir));
    assert_eq!(weir.metric("weir_config_reloads_total{result=\"failure\"}"), 0.0);
    eprintln!(
        "{reloads} reloads under {} requests: none failed; resident {memory:?} bytes; median {} us, p99 {} us ({} requests without reloads: {} us, {} us; p99 x {:.2})",
        reloading.requests,
        reloading.median,
        reloading.p99,
        quiet.requests,
        quiet.median,
        quiet.p99,
        reloading.p99 as f64 / quiet.p99 as f64,
    );
    // What the allocator holds wavers by some megabytes; the four fifths since the first sample are hundreds of snapshots.
    let (warm, end) = (memory[0], memory[memory.len() - 1]);
    assert!(end <= warm + warm / 4, "{memory:?}");
}

#[test]
fn how_much_is_said_changes_by_reload() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let said = |text: &str| weir.process.stderr.lock().unwrap().iter().filter(|line| line.contains(text)).count();
    let set = |from: &str, to: &str| {
        weir.config.change("weir.yaml", &format!("log: {from}"), &format!("log: {to}"));
        assert_eq!(weir.reload().0, 200);
    };
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/nobody:1").status, 404);
    assert_eq!(said("weir: debug: "), 0);
    set("info", "debug");
    until("the change itself is told", || said("weir: info: config reloaded") == 1);
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/nobody:1").status, 404);
    until("what changes nothing is told", || said("weir: debug: config unchanged (POST /reload)") >= 1);
    until("what is refused is told", || said("404 provider_not_found") == 1);
    set("debug", "error");
    weir.config.change("weir.yaml", "grace: 10s", "grace: soon");
    until("it is refused", || weir.reload().0 == 422);
    assert_eq!(weir.get("/v1/sessions/nobody:1").status, 404);
    assert_eq!((said("404 provider_not_found"), said("config not reloaded")), (1, 0), "none of it is an error");
}
