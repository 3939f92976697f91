//! What operators use: metrics, the admin listener, the access log, and the docs' steps to add a provider.

use crate::support::*;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Returns whether a program is installed; prints a message if it is not.
pub fn has(program: &str) -> bool {
    require_tool(program, Command::new(program).arg("--version").output().is_ok())
}

/// Returns the Python of the test environment if it has this module; prints a message if it has not.
pub fn python(module: &str) -> Option<PathBuf> {
    let python = repository().join("target/tools/bin/python");
    let found = Command::new(&python).args(["-c", &format!("import {module}")]).status().is_ok_and(|s| s.success());
    require_tool(module, found).then_some(python)
}

/// The documents of a YAML file as JSON; `None` if no YAML parser is installed.
pub fn yaml(path: &str) -> Option<Vec<Value>> {
    const READ: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout, default=str)";
    let output = Command::new(python("yaml")?).args(["-c", READ]).arg(repository().join(path)).output().unwrap();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The items of a JSON list as strings.
pub fn texts(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}")).iter().map(text).collect()
}

/// The program of this build, in place of the one in the image.
pub fn program(name: &str) -> Command {
    Command::new(match name {
        "weir" => PathBuf::from(env!("CARGO_BIN_EXE_weir")),
        "weir-sim" => simulator_program(),
        other => panic!("{other} is in no image of the Dockerfile"),
    })
}

#[test]
fn every_metric_has_a_sample_and_promtool_accepts_them() {
    use std::io::Write;
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: standard }\n")
        .start(&sim);
    for target in [VECTARA, VECTARA, PALANTIR, AGENTHUMAN, "/nowhere", "/v1/sessions/sess_none"] {
        weir.get(target);
    }
    sim.set_response(
        "agt_load",
        200,
        &serde_json::json!({}),
        r#"{"key":"ase_1","agent_key":"agt_load_1","created_at":5}"#,
    );
    assert_eq!(weir.get("/v1/sessions/vectara:agt_load_1:ase_1").status, 200);
    let metrics = weir.metrics();
    for name in [
        "weir_http_requests_total",
        "weir_http_request_duration_seconds_bucket",
        "weir_http_requests_in_flight",
        "weir_overhead_seconds_bucket",
        "weir_cache_requests_total",
        "weir_cache_entries",
        "weir_cache_bytes",
        "weir_cache_evictions_total",
        "weir_cache_ttl_seconds_bucket",
        "weir_rate_limit_requests_total",
        "weir_upstream_requests_total",
        "weir_upstream_request_duration_seconds_bucket",
        "weir_upstream_requests_saved_total",
        "weir_upstream_breaker_open",
        "weir_upstream_throttled",
        "weir_mapping_failures_total",
        "weir_config_reloads_total",
        "weir_config_last_reload_successful",
        "weir_config_last_reload_success_timestamp_seconds",
        "weir_config_info",
        "weir_build_info",
        "process_resident_memory_bytes",
    ] {
        let sample = |line: &str| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "));
        assert!(metrics.lines().any(sample), "{name} has no sample");
    }
    let requests = "weir_http_requests_total{client=\"open\",provider=\"vectara\",route=\"/v1/agents/{agent}/sessions/{session}\",status=\"200\"}";
    assert_eq!(weir.metric(requests), 2.0);
    assert_eq!(weir.metric("weir_upstream_requests_saved_total{provider=\"vectara\",reason=\"hit\"}"), 1.0);
    if has("promtool") {
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.trim().is_empty(), "{text}");
    }
}

#[test]
fn the_admin_listener_requires_its_token_except_for_metrics_and_health() {
    let sim = Sim::start();
    let weir = Config::shipped().env("WEIR_ADMIN_TOKEN", "admin-secret").start(&sim);
    for (method, path, open) in [
        ("GET", "/metrics", true),
        ("GET", "/healthz", true),
        ("GET", "/readyz", true),
        ("GET", "/config", false),
        ("GET", "/cache", false),
        ("POST", "/reload", false),
    ] {
        assert_eq!(weir.admin(method, path).status, if open { 200 } else { 401 }, "{path}");
        let wrong = send(weir.admin, method, path, &[("Authorization", "Bearer admin-secre")]);
        assert_eq!(wrong.status, if open { 200 } else { 401 });
        let right = send(weir.admin, method, path, &[("Authorization", "Bearer admin-secret")]);
        assert_eq!(right.status, 200, "{path}");
        assert!(!String::from_utf8_lossy(&right.body).contains("admin-secret"));
    }
    assert_eq!(weir.admin("GET", "/nowhere").status, 404);
    assert_eq!(weir.admin("POST", "/metrics").status, 405);
    assert_eq!(weir.admin("GET", "/reload").status, 401);
    let config = send(weir.admin, "GET", "/config", &[("Authorization", "Bearer admin-secret")]).json();
    assert!(
        config["revision"].is_string()
            && config["files"].as_array().unwrap().len() > 3
            && config["loaded_at"].is_string()
    );
}

#[test]
fn the_access_log_is_json_and_contains_no_secrets_ids_or_queries() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    weir.get_with("/v1/agents/agt_customer_support/sessions?limit=17&enabled=true", &[("X-Request-Id", "list-1")]);
    weir.get_as("a-wrong-key", "/v1/sessions/sess_x?include=native");
    let log_line = |text: &str| {
        let mut found = None;
        wait_until(text, || {
            found = weir.process.stdout.lock().unwrap().iter().find(|line| line.contains(text)).cloned();
            found.is_some()
        });
        serde_json::from_str::<Value>(&found.unwrap()).unwrap()
    };
    let list = log_line("list-1");
    assert_eq!(list["route"], "/v1/agents/{agent}/sessions");
    for (field, value) in [("client", "open"), ("method", "GET"), ("provider", "vectara"), ("cache", "miss")] {
        assert_eq!(list[field], value, "{list}");
    }
    assert_eq!(list["status"], 200);
    assert!(
        list["bytes"].as_u64().unwrap() > 1000
            && list["total_ms"].as_f64().unwrap() >= list["upstream_ms"].as_f64().unwrap()
    );
    let refused = log_line("unauthorized");
    assert_eq!(
        (&refused["status"], &refused["client"], &refused["route"]),
        (&Value::from(401), &Value::Null, &Value::from("none"))
    );
    let log = weir.process.stdout.lock().unwrap().join("\n");
    for secret in ["a-wrong-key", "limit=17", "sess_x", "zut_sim", "customer_12345"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

/// Uses the files that the docs print.
#[test]
fn the_docs_steps_to_add_a_provider_work() {
    use std::io::{BufRead, BufReader, Write};
    let docs = std::fs::read_to_string(repository().join("docs/CONFIGURATION.md")).unwrap();
    let section = docs.split("## Add a provider").nth(1).expect("docs/CONFIGURATION.md has a section Add a provider");
    let block = |title: &str| {
        let after =
            section.split(&format!("`{title}`")).nth(1).unwrap_or_else(|| panic!("the docs do not name {title}"));
        let block = after.split("```").nth(1).unwrap();
        block.split_once('\n').unwrap().1.to_owned()
    };
    let native = block("config/examples/acme/get.native.json");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let body = native.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().take(5) {
            let mut socket = socket.unwrap();
            let mut line = String::new();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            while !line.ends_with("\r\n\r\n") && reader.read_line(&mut line).unwrap() > 0 {}
            let known = line.starts_with("GET /api/calls/call-42")
                && line.to_lowercase().contains("authorization: bearer t0ken");
            let (status, body) =
                if known { ("200 OK", body.as_str()) } else { ("404 Not Found", "{\"error\":\"unknown call\"}") };
            write!(socket, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
                .unwrap();
        }
    });
    let sim = Sim::start();
    let weir =
        Config::shipped().env("ACME_BASE_URL", &format!("http://{address}")).env("ACME_TOKEN", "t0ken").start(&sim);
    std::fs::create_dir(weir.config.path("examples/acme")).unwrap();
    weir.config.write("examples/acme/get.native.json", &native);
    weir.config.write("examples/acme/get.unified.json", &block("config/examples/acme/get.unified.json"));
    weir.config.write("providers/acme.yaml", &block("config/providers/acme.yaml"));
    wait_until("the reload succeeds", || weir.reload().0 == 200);
    assert_eq!(weir.config.check(), (0, vec![]));
    let response = weir.get("/v1/sessions/acme:call-42");
    assert_eq!(response.status, 200, "{}", response.json());
    let unified: Value = serde_json::from_str(&block("config/examples/acme/get.unified.json")).unwrap();
    assert_eq!(response.json(), unified);
    assert_eq!(weir.get("/v1/sessions/acme:call-43").code(), (404, "session_not_found".into()));
}
