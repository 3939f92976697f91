//! Configuration reloads while Weir serves requests.

use crate::support::*;
use crate::upgrade::{KeepAlive, get_request};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn revision(weir: &Weir) -> String {
    weir.admin("GET", "/readyz").json()["revision"].as_str().unwrap().to_owned()
}

fn wait_for_new_revision(weir: &Weir, before: &str) {
    wait_until("the new revision is active", || revision(weir) != before);
}

#[test]
fn a_provider_can_be_added_under_load_without_a_failed_request() {
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
                    let response = weir.get(target);
                    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    wait_until("the load has sent 50 requests", || served.load(Ordering::SeqCst) > 50);
    weir.config.write("providers/agenthuman.yaml", &file);
    wait_until("the new provider serves requests", || weir.get(AGENTHUMAN).status == 200);
    let at_reload = served.load(Ordering::SeqCst);
    wait_until("the load has sent 50 more requests", || served.load(Ordering::SeqCst) > at_reload + 50);
    stop.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(weir.metric("weir_config_reloads_total{result=\"failure\"}"), 0.0);
    assert!(weir.metric("weir_config_reloads_total{result=\"success\"}") >= 1.0);
}

#[test]
fn a_file_written_in_place_or_replaced_a_sighup_and_post_reload_all_reload() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let text = weir.config.read("weir.yaml");
    // The file is written in place.
    let before = revision(&weir);
    weir.config.write("weir.yaml", &format!("{text}# one\n"));
    wait_for_new_revision(&weir, &before);
    // The file is replaced by a rename.
    let before = revision(&weir);
    weir.config.write("weir.yaml.new", &format!("{text}# two\n"));
    fs::rename(weir.config.path("weir.yaml.new"), weir.config.path("weir.yaml")).unwrap();
    wait_for_new_revision(&weir, &before);
    // SIGHUP and the admin endpoint report that nothing changed.
    weir.process.signal("HUP");
    wait_until("the reload by SIGHUP is counted", || {
        weir.metric("weir_config_reloads_total{result=\"unchanged\"}") >= 1.0
    });
    let (status, body) = weir.reload();
    assert_eq!((status, body["result"].as_str().unwrap()), (200, "unchanged"));
    assert_eq!(body["revision"], revision(&weir));
    let info = format!("weir_config_info{{revision=\"{}\"}} 1", revision(&weir));
    let metrics = weir.metrics();
    assert!(metrics.contains(&info) && metrics.matches("weir_config_info{").count() == 1);
}

#[test]
fn a_symlink_swap_as_of_a_kubernetes_config_map_is_noticed() {
    use std::os::unix::fs::symlink;
    let sim = Sim::start();
    let config = Config::shipped();
    // Kubernetes mounts files as links into ..data, which is a link itself. An update replaces that link.
    let write_version = |version: &str, extra: &str| {
        let directory = config.path(version);
        fs::create_dir(&directory).unwrap();
        for file in ["weir.yaml", "clients.yaml"] {
            fs::write(
                directory.join(file),
                expand_digests(&(fs::read_to_string(repository().join("config").join(file)).unwrap() + extra)),
            )
            .unwrap();
        }
    };
    write_version("..v1", "# one\n");
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
    wait_for_new_revision(&weir, &before);
}

#[test]
fn an_invalid_configuration_is_reported_and_the_active_one_stays() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let good = weir.config.read("providers/vectara.yaml");
    let before = revision(&weir);
    weir.config.write(
        "providers/vectara.yaml",
        &good.replace("timeout: 10s ", "timeout: soon ").replace("max: 1h ", "maxx: 1h "),
    );
    wait_until("the failure is counted", || weir.metric("weir_config_reloads_total{result=\"failure\"}") >= 1.0);
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
    wait_until("the reload succeeds", || weir.metric("weir_config_last_reload_successful") == 1.0);
    assert!(weir.admin("GET", "/config").json()["last_error"].is_null());
}

#[test]
fn a_reload_keeps_cache_and_limiters_and_applies_new_rules_to_stored_entries() {
    let sim = Sim::start();
    let config = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: [slow, other] }\n");
    config.change(
        "weir.yaml",
        "rate_limits:\n",
        "rate_limits:\n  slow: { requests: 100, per: 1d }\n  other: { requests: 100, per: 1d }\n",
    );
    let weir = config.start(&sim);
    let left = |response: &Response, policy: &str| -> u64 {
        let header = response.header("ratelimit").unwrap();
        header.split(&format!("\"{policy}\";r=")).nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
    };
    for _ in 0..10 {
        weir.get(VECTARA);
    }
    weir.config.change("weir.yaml", "  other: { requests: 100, per: 1d }", "  other: { requests: 50, per: 1d }");
    weir.config.change("providers/vectara.yaml", "title: [$.name, $.description]", "title: $.metadata.priority");
    weir.config.change("providers/vectara.yaml", "default: 30s ", "default: 50s ");
    fs::remove_dir_all(weir.config.path("examples/vectara")).unwrap();
    wait_until("the reload succeeds", || weir.reload().0 == 200);
    let response = weir.get(VECTARA);
    assert_eq!(
        (left(&response, "slow"), left(&response, "other")),
        (89, 49),
        "the unchanged policy is kept, the changed one starts full"
    );
    assert_eq!(response.json()["title"], "high");
    assert_eq!(response.header("cache-control"), Some("private, max-age=50"));
    assert!(response.header("cache-status").unwrap().contains("hit"));
    assert_eq!(sim.calls(), 1, "the session is mapped again from the stored body");
}

#[test]
fn secret_files_are_read_again_and_keys_that_need_a_restart_are_named() {
    let sim = Sim::start();
    let config = Config::shipped();
    config.write("key.txt", "wrong\n");
    config.change("providers/vectara.yaml", "value: \"${VECTARA_API_KEY:-}\"", "value: { file: key.txt }");
    let weir = config.start(&sim);
    assert_eq!(weir.get(VECTARA).code(), (502, "provider_auth_failed".into()));
    weir.config.write("key.txt", "zut_sim\n");
    wait_until("the new secret is used", || weir.get(VECTARA).status == 200);
    weir.config.change("weir.yaml", "max_bytes: 256MiB", "max_bytes: 128MiB");
    wait_until("the log names the key", || {
        weir.process.stderr.lock().unwrap().iter().any(|line| line.contains("needs_restart=\"cache.max_bytes\""))
    });
    let everything = weir.process.stderr.lock().unwrap().join("\n")
        + &weir.metrics()
        + &weir.admin("GET", "/config").json().to_string();
    assert!(!everything.contains("zut_sim"));
}

#[test]
fn a_reload_cannot_remove_the_token_of_an_admin_listener_that_is_still_public() {
    let sim = Sim::start();
    let weir = Config::shipped().env("WEIR_ADMIN", "0.0.0.0:0").env("WEIR_ADMIN_TOKEN", "t").start(&sim);
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], weir.admin.port()));
    let reload = || send(admin, "POST", "/reload", &[("Authorization", "Bearer t")]);
    weir.config.change("weir.yaml", "${WEIR_ADMIN:-127.0.0.1:8081}", "127.0.0.1:0");
    weir.config.change("weir.yaml", "${WEIR_ADMIN_TOKEN:-}", "\"\"");
    wait_until("the reload is refused", || reload().status == 422);
    assert!(reload().json()["faults"][0].as_str().unwrap().contains("admin.token is required until a restart"));
    assert_eq!(send(admin, "GET", "/config", &[]).status, 401);
    weir.config.change("weir.yaml", "token: \"\"", "token: t");
    wait_until("the reload succeeds and the address waits for a restart", || reload().status == 200);
    weir.config.change("weir.yaml", "workers: 0", "workers: 1");
    let needs_restart = |response: &Response| response.json()["needs_restart"].clone();
    let mut last = reload();
    wait_until("both keys are named", || {
        last = reload();
        last.json()["result"] == "success"
            || weir.process.stderr.lock().unwrap().iter().any(|l| l.contains("admin.address, workers"))
    });
    assert!(
        needs_restart(&last).is_null() || needs_restart(&last) == serde_json::json!(["admin.address", "workers"]),
        "{}",
        last.json()
    );
}

#[test]
fn reloads_work_after_the_reader_of_stderr_has_closed() {
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
        wait_until("the reload succeeds", || revision() != before);
    }
    let _ = std::process::Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The number of requests of a load, and their latencies in microseconds.
struct LoadResult {
    requests: usize,
    median: u128,
    p99: u128,
}

/// Sends requests on four persistent connections while `action` runs, and at least `min_requests` of them.
fn run_load(weir: &Weir, min_requests: usize, action: impl FnOnce()) -> LoadResult {
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (http, stop, sent) = (weir.http, stop.clone(), sent.clone());
            // Every fourth request goes to the provider.
            let requests = [VECTARA, PALANTIR, AGENTHUMAN].map(|target| get_request(target, ""));
            let no_cache = get_request(VECTARA, "Cache-Control: no-cache\r\n");
            std::thread::spawn(move || {
                let (mut client, mut latencies) = (KeepAlive::new(http), Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    let request =
                        if latencies.len() % 4 == 3 { &no_cache } else { &requests[(n + latencies.len()) % 3] };
                    let started = std::time::Instant::now();
                    let status = client.send(request).unwrap_or_else(|error| panic!("client {n}: {error}"));
                    latencies.push(started.elapsed().as_micros());
                    assert_eq!(status, 200, "{request}");
                    sent.fetch_add(1, Ordering::SeqCst);
                }
                latencies
            })
        })
        .collect();
    action();
    wait_until("enough requests were sent", || {
        sent.load(Ordering::SeqCst) >= min_requests as u64 || clients.iter().any(std::thread::JoinHandle::is_finished)
    });
    stop.store(true, Ordering::SeqCst);
    let mut latencies: Vec<u128> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    latencies.sort_unstable();
    LoadResult {
        requests: latencies.len(),
        median: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
    }
}

#[test]
fn a_thousand_reloads_under_load_fail_no_request_and_leak_no_memory() {
    let reloads: u64 = std::env::var("RELOADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let sim = Sim::start();
    let config = Config::shipped();
    let rate = "requests: 1000\n    per: 1m\n    burst: 1000";
    config.change("providers/vectara.yaml", rate, "requests: 1000000\n    per: 1s\n    burst: 1000000");
    let weir = config.start(&sim);
    let without_reloads = run_load(&weir, 5000, || ());
    let yaml = weir.config.read("weir.yaml");
    let count = |weir: &Weir| weir.metric("weir_config_reloads_total{result=\"success\"}") as u64;
    let resident = |weir: &Weir| weir.metric("process_resident_memory_bytes") as u64;
    let mut memory = Vec::new();
    let with_reloads = run_load(&weir, 5000, || {
        for n in 1..=reloads {
            // A rename changes the file at once, so that the file watcher never reads half of it.
            weir.config.write("weir.yaml.new", &format!("{yaml}# {n}\n"));
            fs::rename(weir.config.path("weir.yaml.new"), weir.config.path("weir.yaml")).unwrap();
            let (status, body) = weir.reload();
            assert_eq!(status, 200, "{body}");
            if n % (reloads / 5) == 0 {
                memory.push(resident(&weir));
            }
        }
    });
    // The file watcher may reload before the request does. Each change is reloaded once.
    assert!(count(&weir) >= reloads, "{}", count(&weir));
    assert_eq!(weir.metric("weir_config_reloads_total{result=\"failure\"}"), 0.0);
    eprintln!(
        "{reloads} reloads under {} requests: none failed; resident {memory:?} bytes; median {} us, p99 {} us ({} requests without reloads: {} us, {} us; p99 x {:.2})",
        with_reloads.requests,
        with_reloads.median,
        with_reloads.p99,
        without_reloads.requests,
        without_reloads.median,
        without_reloads.p99,
        with_reloads.p99 as f64 / without_reloads.p99 as f64,
    );
    // The allocator's memory varies by some megabytes. A leak of the snapshots since the first sample would be much more.
    let (warm, end) = (memory[0], memory[memory.len() - 1]);
    assert!(end <= warm + warm / 4, "{memory:?}");
}

#[test]
fn a_reload_changes_the_log_level() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let logged_lines = |level: &str, text: &str| {
        weir.process.stderr.lock().unwrap().iter().filter(|line| is_log_line(line, level, text)).count()
    };
    let refused_requests = || {
        let contains = |line: &&String| {
            is_log_line(line, "DEBUG", "request failed request_id=")
                && line.ends_with("route=\"/v1/sessions/{id}\" status=404 code=\"provider_not_found\"")
        };
        weir.process.stderr.lock().unwrap().iter().filter(contains).count()
    };
    let set_level = |from: &str, to: &str| {
        weir.config.change("weir.yaml", &format!("log: {from}"), &format!("log: {to}"));
        assert_eq!(weir.reload().0, 200);
    };
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/nobody:1").status, 404);
    assert_eq!(logged_lines("DEBUG", ""), 0);
    set_level("info", "debug");
    wait_until("the reload is logged", || logged_lines("INFO", "config reloaded reason=") == 1);
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/nobody:1").status, 404);
    wait_until("a reload without a change is logged", || {
        logged_lines("DEBUG", "config unchanged reason=\"POST /reload\" revision=") >= 1
    });
    wait_until("a refused request is logged", || refused_requests() == 1);
    set_level("debug", "error");
    weir.config.change("weir.yaml", "grace: 10s", "grace: soon");
    wait_until("the reload is refused", || weir.reload().0 == 422);
    assert_eq!(weir.get("/v1/sessions/nobody:1").status, 404);
    assert_eq!((refused_requests(), logged_lines("WARN", "config not reloaded")), (1, 0), "none of it is an error");
}

/// Reloads until the result is the expected one: the watcher of files can be first.
fn reload_until(weir: &Weir, what: &str, condition: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let mut answer = weir.reload().1;
    wait_until(what, || {
        answer = weir.reload().1;
        condition(&answer)
    });
    answer
}

#[test]
fn a_needed_restart_is_said_until_the_restart() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let metric = |setting: &str| weir.metric(&format!("weir_config_needs_restart{{setting=\"{setting}\"}}"));
    let config = || weir.admin("GET", "/config").json()["needs_restart"].clone();
    // `weir check` asks the gateway that runs with the same files.
    let check = || {
        let admin = weir.admin.to_string();
        let output = weir.config.command(&["check", "--admin", &admin]).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let none = serde_json::json!([]);
    assert_eq!((config(), weir.reload().1["needs_restart"].clone()), (none.clone(), none.clone()));
    assert!(weir.metrics().contains("weir_config_needs_restart{setting=\"workers\"} 0"));
    assert_eq!(check(), "");

    weir.config.change("weir.yaml", "workers: 0", "workers: 1");
    wait_until("the change is read", || config() == serde_json::json!(["workers"]));
    let logged = || {
        let lines = weir.process.stderr.lock().unwrap();
        lines.iter().filter(|line| line.contains("config ") && line.contains("needs_restart=\"workers\"")).count()
    };
    let before = logged();
    let unchanged = reload_until(&weir, "nothing changes", |answer| answer["result"] == "unchanged");
    assert_eq!(unchanged["needs_restart"], serde_json::json!(["workers"]));
    wait_until("an unchanged reload says it too", || logged() > before);
    assert_eq!((metric("workers"), metric("listen")), (1.0, 0.0));
    assert_eq!(check(), "weir: the running Weir needs a restart for workers\n");

    // A later change of something else does not hide it, and neither does a faulty one.
    weir.config.change("weir.yaml", "grace: 10s", "grace: 11s");
    wait_until("the next change is read", || weir.metric("weir_config_reloads_total{result=\"success\"}") >= 2.0);
    assert_eq!((config(), metric("workers")), (serde_json::json!(["workers"]), 1.0));
    weir.config.change("weir.yaml", "grace: 11s", "grace: eleven");
    let refused = reload_until(&weir, "the change is refused", |answer| answer["result"] == "failure");
    assert_eq!(refused["needs_restart"], serde_json::json!(["workers"]));
    // These are not the files with which the gateway runs, so there is nothing to say about it.
    weir.config.change("weir.yaml", "grace: eleven", "grace: 12s");
    wait_until("the running files are these again", || {
        check() == "weir: the running Weir needs a restart for workers\n"
    });

    weir.config.change("weir.yaml", "workers: 1", "workers: 0");
    wait_until("the setting is as at the start", || config() == none);
    assert_eq!((metric("workers"), check().as_str()), (0.0, ""));
}

#[test]
fn changed_secret_files_have_a_new_revision_and_every_reload_names_the_changed_files() {
    let sim = Sim::start();
    let config = Config::shipped();
    config.write("key.txt", "zut_sim\n");
    config.change("providers/vectara.yaml", "value: \"${VECTARA_API_KEY:-}\"", "value: { file: key.txt }");
    let weir = config.start(&sim);
    let revision = || weir.admin("GET", "/config").json()["revision"].as_str().unwrap().to_owned();
    let log_names = |files: &str| {
        let named = format!("changed=\"{files}\"");
        wait_until(files, || weir.process.stderr.lock().unwrap().iter().any(|line| line.contains(&named)));
    };
    let first = revision();
    weir.config.write("key.txt", "another-secret\n");
    wait_until("the secret has a revision of its own", || revision() == format!("{first}.1"));
    log_names("key.txt");
    assert!(weir.metrics().contains(&format!("weir_config_info{{revision=\"{first}.1\"}} 1")));
    // The same secret again is a change again: the revision does not tell what the secret is.
    weir.config.write("key.txt", "zut_sim\n");
    wait_until("the next change has its own revision", || revision() == format!("{first}.2"));

    weir.config.change("weir.yaml", "grace: 10s", "grace: 11s");
    wait_until("the files have another revision", || !revision().starts_with(&first));
    assert!(revision().ends_with(".2"), "{}", revision());
    log_names("weir.yaml");
    // Several files at once, one of them new; then one that is gone, and one with a fault.
    let pause = weir.config.read("clients.yaml");
    weir.config
        .write("providers/vectara.yaml", &weir.config.read("providers/vectara.yaml").replace("max: 1h", "max: 2h"));
    weir.config.write("clients.yaml", &format!("{pause}\n# changed\n"));
    wait_until("both are read", || {
        let lines = weir.process.stderr.lock().unwrap();
        ["clients.yaml", "providers/vectara.yaml"].iter().all(|file| lines.iter().any(|line| line.contains(file)))
    });
    weir.config.write("clients.yaml", "clients: 1\n");
    let refused = reload_until(&weir, "the change is refused", |answer| answer["result"] == "failure");
    assert_eq!(refused["changed"], serde_json::json!(["clients.yaml"]));
    log_names("clients.yaml");
    weir.config.write("clients.yaml", &format!("{pause}\n# changed\n"));
    let same = reload_until(&weir, "the files are as before", |answer| answer["result"] == "unchanged");
    assert_eq!(same["changed"], serde_json::json!([]));
    let everything = weir.process.stderr.lock().unwrap().join("\n") + &weir.metrics() + &same.to_string();
    assert!(!everything.contains("another-secret") && !everything.contains("zut_sim"));
}
