//! Tests of the commands `map`, `key new`, `demo` and `run`, and of the shutdown.

use crate::support::*;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn map_prints_the_unified_body_and_a_coverage_table() {
    let config = Config::shipped();
    let file = config.path("examples/agenthuman/get.native.json");
    let output = config.command(&["map", "agenthuman", file.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success());
    let unified: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(unified, example("agenthuman/get").1);
    let table = String::from_utf8(output.stderr).unwrap();
    assert!(
        table.contains("+ agent.id             $.avatar.avatar_id") && table.contains("- title                no rule"),
        "{table}"
    );
    let mut child = config
        .command(&["map", "vectara", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"agent_key\":\"a\"}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("provider_session_id is required and could not be taken from $.key, $.id")
    );
    assert_eq!(config.command(&["map", "nobody", "-"]).output().unwrap().status.code(), Some(2));
}

/// `weir map` of a body: exit code, standard output and the table.
fn map(config: &Config, provider: &str, body: &Value) -> (i32, String, String) {
    config.write("body.json", &body.to_string());
    let file = config.path("body.json");
    let output = config.command(&["map", provider, file.to_str().unwrap()]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn map_shows_path_and_type_of_what_it_could_not_use() {
    let config = Config::shipped();
    let mut body = example("vectara/get").0;
    body["created_at"] = json!(1_705_314_600);
    body["metadata"] = json!(["a"]);
    body["enabled"] = json!("perhaps");
    body["name"] = Value::Null;
    body["description"] = Value::Null;
    let (code, out, table) = map(&config, "vectara", &body);
    assert_eq!(code, 0, "{table}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["created_at"], Value::Null);
    for line in [
        "! created_at           unusable: number at $.created_at (wrong_type)",
        "! metadata             unusable: array at $.metadata (wrong_type)",
        "! status               unusable: string \"perhaps\" at $.enabled (unknown_value)",
        "- title                not in the body: nothing at $.name (null), $.description (null)",
    ] {
        assert!(table.lines().any(|found| found == line), "{line} is not in\n{table}");
    }
    // A required field too: the table is there although there is no session.
    body["id"] = json!(true);
    body["key"] = json!({});
    let (code, out, table) = map(&config, "vectara", &body);
    assert!(code == 1 && out.is_empty(), "{table}");
    let line = "unusable: object at $.key (wrong_type), boolean at $.id (wrong_type)";
    assert!(table.contains(line) && table.contains("provider_session_id is required"), "{table}");
}

#[test]
fn a_new_key_is_accepted_when_clients_yaml_has_its_digest() {
    let sim = Sim::start();
    let config = Config::shipped();
    let output = String::from_utf8(config.command(&["key", "new"]).output().unwrap().stdout).unwrap();
    let field = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let (key, digest) = (field("key:"), field("sha256:"));
    assert!(key.len() >= 64 && digest.len() == 64);
    let other = String::from_utf8(config.command(&["key", "new"]).output().unwrap().stdout).unwrap();
    assert!(!other.contains(&key));
    let weir = config.clients(&format!("clients:\n  - {{ id: new, keys: [ {{ sha256: {digest} }} ] }}\n")).start(&sim);
    assert_eq!(weir.get_as(&key, AGENTHUMAN).status, 200);
}

#[test]
fn sigterm_waits_for_requests_in_flight_and_not_for_idle_connections() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    assert_eq!(weir.get(AGENTHUMAN).status, 200);
    // An idle keep-alive connection must not delay the shutdown.
    let mut idle = std::net::TcpStream::connect(weir.http).unwrap();
    idle.write_all(format!("GET {AGENTHUMAN} HTTP/1.1\r\nHost: t\r\nX-API-Key: open\r\n\r\n").as_bytes()).unwrap();
    wait_until("the connection is idle after its response", || {
        weir.metric("weir_cache_requests_total{provider=\"agenthuman\",result=\"hit\"}") == 1.0
    });
    weir.process.signal("TERM");
    assert_eq!(weir.process.wait().code(), Some(0));
    wait_for_log(&weir.process.stderr, "INFO", "connections drained");
    let stderr = weir.process.stderr.lock().unwrap().join("\n");
    let took: u64 = stderr
        .split(" took_ms=")
        .nth(1)
        .unwrap_or_else(|| panic!("{stderr}"))
        .split('\n')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(took < 5000, "shutdown took {took} ms, near the grace of 10 s");

    let mut weir = Config::shipped().start(&sim);
    sim.plan(&json!({ "path": "/v2/", "times": 1, "latency_ms": 4000 }));
    let address = weir.http;
    let before = sim.calls();
    let slow = std::thread::spawn(move || send(address, "GET", VECTARA, &[("X-API-Key", "open")]));
    wait_until("the request is in flight", || sim.calls() > before);
    weir.process.signal("TERM");
    wait_until("no connection is accepted", || std::net::TcpStream::connect(address).is_err());
    assert_eq!(weir.admin("GET", "/readyz").status, 503);
    assert_eq!(weir.admin("GET", "/healthz").status, 200);
    assert_eq!(slow.join().unwrap().status, 200, "the request in flight is completed");
    assert_eq!(weir.process.wait().code(), Some(0));
}

#[test]
fn requests_still_open_after_the_grace_are_cut_off() {
    let sim = Sim::start();
    let mut weir = Config::shipped().edit("weir.yaml", "grace: 10s", "grace: 200ms").start(&sim);
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 20000 }));
    let address = weir.http;
    let slow = std::thread::spawn(move || try_send_bytes(address, &request("GET", VECTARA, &[("X-API-Key", "open")])));
    wait_until("the request is in flight", || sim.calls() > 0);
    weir.process.signal("TERM");
    assert_eq!(weir.process.wait().code(), Some(0));
    assert!(slow.join().unwrap().is_err());
    wait_for_log(&weir.process.stderr, "WARN", "connections still open after shutdown.grace");
}

#[test]
fn the_curl_commands_that_the_demo_prints_work() {
    let config = Config::shipped();
    // The shipped clients include the demo's key.
    std::fs::copy(repository().join("config/clients.yaml"), config.path("clients.yaml")).unwrap();
    let mut demo = Process::start(&mut config.command(&["demo"]));
    wait_for_line(&demo.stdout, "Requests are logged below.");
    let lines: Vec<String> =
        demo.stdout.lock().unwrap().iter().filter(|line| line.starts_with("curl ")).cloned().collect();
    assert!(lines.len() >= 3);
    for line in &lines {
        let output = Command::new("sh").args(["-c", &format!("{line} --max-time 20 --fail")]).output().unwrap();
        assert!(output.status.success(), "{line}");
        assert!(!output.stdout.is_empty());
    }
    demo.signal("INT");
    assert_eq!(demo.wait().code(), Some(0));
}

#[test]
fn run_names_the_address_that_is_already_in_use() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let output = Config::shipped().env("WEIR_LISTEN", &address).command(&["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("cannot listen on {address}")));
}
