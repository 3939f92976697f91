//! The shipped dashboards, recording rules and alerts, tested with a real Prometheus and a real gateway.

use crate::support::*;
use crate::tools::has;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Panels whose correct value may be zero. All other panels must show a value above zero.
const ZERO_ALLOWED: [&str; 4] = ["Access log lines lost", "Connections ended by Weir", "Evictions", "In flight"];

/// The longest time until Prometheus has every series. It scrapes four times a second.
const DATA_TIMEOUT: Duration = Duration::from_secs(90);

fn deploy_path(path: &str) -> PathBuf {
    repository().join("deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy_path(path)).unwrap_or_else(|error| panic!("deploy/{path}: {error}"))
}

/// A Prometheus with the shipped configuration. Only paths, addresses and intervals differ.
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Writes the shipped configuration, changed for a gateway at this admin address.
    pub fn configure(file: &Path, admin: SocketAddr) {
        let mut config = read("prometheus/prometheus.yml");
        for (from, to) in [
            ("scrape_interval: 5s", "scrape_interval: 250ms"),
            ("evaluation_interval: 5s", "evaluation_interval: 500ms"),
            ("/etc/prometheus", deploy_path("prometheus").to_str().unwrap()),
            ("weir:8081", &admin.to_string()),
        ] {
            assert!(config.contains(from), "prometheus.yml has no {from:?}");
            config = config.replace(from, to);
        }
        std::fs::write(file, config).unwrap();
    }

    /// Starts Prometheus by this command, on a free port.
    pub fn run(command: &mut Command) -> Self {
        let process = Process::start(command.arg("--web.listen-address=127.0.0.1:0"));
        let mut address = None;
        wait_until("Prometheus listens", || {
            let lines = process.stderr.lock().unwrap();
            let line = lines.iter().find(|line| line.contains("Listening on"));
            address = line.and_then(|line| line.rsplit_once("address=")?.1.trim_matches('"').parse().ok());
            address.is_some()
        });
        let address = address.unwrap();
        wait_until("Prometheus is ready", || send_bytes(address, b"GET /-/ready HTTP/1.0\r\n\r\n").status == 200);
        Self { _process: process, address }
    }

    /// Returns the data of an API response. HTTP/1.0 prevents a chunked response.
    fn api_data(&self, path: &str) -> Value {
        let response = send_bytes(self.address, format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes());
        let body = response.json();
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].clone()
    }

    /// Returns the series that match a query over the last minute, each with its last finite value.
    pub fn series(&self, query: &str, instant: bool) -> Vec<(Value, f64)> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let data = match instant {
            true => self.api_data(&format!("/api/v1/query?query={query}&time={now}")),
            false => self.api_data(&format!("/api/v1/query_range?query={query}&start={}&end={now}&step=1", now - 60.0)),
        };
        let number =
            |pair: &Value| pair[1].as_str().and_then(|text| text.parse::<f64>().ok()).filter(|n| n.is_finite());
        let last = |series: &Value| match instant {
            true => number(&series["value"]),
            false => series["values"].as_array()?.iter().rev().find_map(number),
        };
        let result = data["result"].as_array().unwrap();
        result.iter().filter_map(|series| Some((series["metric"].clone(), last(series)?))).collect()
    }

    /// Returns the values of a variable's query. All queries have the form `label_values(selector, label)`.
    fn values(&self, query: &str) -> Vec<String> {
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect(query);
        let selector = utf8_percent_encode(selector, NON_ALPHANUMERIC);
        let values = self.api_data(&format!("/api/v1/label/{label}/values?match[]={selector}"));
        values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    }
}

/// The query of a panel or of a variable.
struct Query {
    place: String,
    text: String,
    instant: bool,
}

fn dashboards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(deploy_path("grafana/dashboards")).unwrap();
    let mut all: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Returns a dashboard's queries of variables and of panels, as Grafana sends them if "All" is selected.
fn queries(name: &str, dashboard: &Value) -> (Vec<Query>, Vec<Query>) {
    let mut selected: Vec<(String, String)> =
        vec![("$__rate_interval".into(), "1m".into()), ("$__range".into(), "5m".into())];
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            assert_eq!(variable["allValue"], ".*", "{name}: {variable}");
            selected.push((format!("${}", variable["name"].as_str().unwrap()), ".*".into()));
        }
    }
    let expand = |text: &str| {
        let mut text = text.to_owned();
        selected.iter().for_each(|(variable, value)| text = text.replace(variable, value));
        assert!(!text.contains('$'), "{name}: unknown variable: {text}");
        text
    };
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter(|variable| variable["type"] == "query").map(|variable| Query {
        place: format!("{name} / ${}", variable["name"].as_str().unwrap()),
        text: expand(variable["query"].as_str().unwrap()),
        instant: false,
    });
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        assert!(panel["type"] == "row" || !targets.is_empty(), "{name}: panel without a query: {}", panel["title"]);
        let title = panel["title"].as_str().unwrap().to_owned();
        targets.into_iter().map(move |target| (title.clone(), target))
    });
    let panels = panels.map(|(title, target)| Query {
        place: format!("{name} / {title} [{}]", target["legendFormat"].as_str().unwrap_or_default()),
        text: expand(target["expr"].as_str().unwrap()),
        instant: target["instant"] == true,
    });
    (variables.collect(), panels.collect())
}

/// A part of the path of each call to this provider, also of those of the load generator.
const PALANTIR_AGENTS: &str = "ri.aip-agents..agent.";
const PALANTIR_LOAD: &str = "ri.aip-agents..agent.00000000-0000-0000-0000-000000000005";
const PALANTIR_SESSION: &str = "ri.aip-agents..session.00000000-0000-0000-0000-";

/// Starts a gateway that has everything the dashboards show: rate limits, keys that expire, a certificate.
fn start_observed(sim: &Sim) -> Weir {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let config = Config::shipped()
        .edit(
            "weir.yaml",
            "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n",
            "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n  - address: 127.0.0.1:0\n    tls: { certificate: tls.crt, key: tls.key }\n",
        )
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  few:\n    requests: 1\n    per: 1m\n    burst: 2\n")
        .clients(
            "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: standard }\n  \
             - { id: load, keys: [ { sha256: SHA(load) } ] }\n  \
             - { id: greedy, keys: [ { sha256: SHA(greedy) } ], rate_limit: few }\n  \
             - { id: guest, keys: [ { sha256: SHA(guest), expires_at: 2099-01-01T00:00:00Z } ] }\n",
        );
    config.write("tls.crt", &certificate.cert.pem());
    config.write("tls.key", &certificate.signing_key.serialize_pem());
    config.start(sim)
}

/// Causes faults and events once, before Prometheus starts.
fn cause_events_once(sim: &Sim, weir: &Weir) {
    let stored = "/v1/sessions/vectara:agt_load_7:ase_agt_load_7_1";
    assert_eq!(weir.get(stored).status, 200);
    assert_eq!(weir.get(PALANTIR).status, 200);
    weir.make_stale();
    // One provider fails until its breaker opens. The other one throttles, resets connections, and sends a field of the
    // wrong type.
    sim.set_response(PALANTIR_AGENTS, 500, &json!({}), "");
    sim.set_response("/agt_load_9/", 429, &json!({ "retry-after": "1" }), "{}");
    sim.plan_fault("/agt_load_8/", 0, &json!({ "kind": "reset" }));
    let wrong_type = r#"{"key":"ase_agt_load_6_1","agent_key":"agt_load_6","created_at":5}"#;
    sim.set_response("/agt_load_6/", 200, &json!({}), wrong_type);
    assert_eq!(weir.get("/v1/sessions/vectara:agt_load_6:ase_agt_load_6_1").status, 200);
    let yaml = weir.config.read("weir.yaml");
    weir.config.write("weir.yaml", "listen: nonsense\n");
    wait_until("the reload is refused", || weir.metric("weir_config_reloads_total{result=\"failure\"}") >= 1.0);
    weir.config.write("weir.yaml", &(yaml + "\n# again\n"));
    wait_until("the next reload succeeds", || weir.metric("weir_config_reloads_total{result=\"success\"}") >= 1.0);
}

/// Starts a watch of a session; dropping the connection ends it.
fn start_watch(weir: &Weir) -> TcpStream {
    let mut stream = TcpStream::connect(weir.http).unwrap();
    stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let path = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001/watch";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: open\r\n\r\n").unwrap();
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).unwrap();
    assert_eq!(&status_line, b"HTTP/1.1 200");
    stream
}

/// Causes faults and events that repeat while Prometheus scrapes.
fn cause_events(weir: &Weir, round: usize) {
    weir.get(&format!("/v1/agents/{PALANTIR_LOAD}/sessions/{PALANTIR_SESSION}{round:012x}"));
    // This session is stale and the breaker of its provider is open.
    weir.get(PALANTIR);
    weir.get(&format!("/v1/sessions/vectara:agt_load_8:ase_agt_load_8_{round}"));
    weir.get(&format!("/v1/sessions/vectara:agt_load_6:ase_agt_load_6_{round}"));
    // The pause lasts one second and stops the other requests to this provider, so most rounds leave it out.
    if round % 8 == 7 {
        weir.get(&format!("/v1/sessions/vectara:agt_load_9:ase_agt_load_9_{round}"));
    }
    weir.get_as("greedy", VECTARA);
    weir.get_as("guest", VECTARA);
    weir.get_as("nobody", VECTARA);
    weir.reload();
    drop(start_watch(weir));
}

#[test]
fn every_panel_and_variable_finds_data_in_prometheus() {
    if !has("prometheus") {
        return;
    }
    let sim = Sim::start();
    let weir = start_observed(&sim);
    cause_events_once(&sim, &weir);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("prometheus.yml");
    Prometheus::configure(&file, weir.admin);
    let prometheus = Prometheus::run(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display())),
    );
    let load = Process::start(Command::new(simulator_program()).args([
        "load",
        "--target",
        &format!("http://{}", weir.http),
        "--key",
        "load",
        "--rate",
        "20",
    ]));
    let watcher = start_watch(&weir);
    let (mut variables, mut panels): (Vec<Query>, Vec<Query>) = (Vec::new(), Vec::new());
    for (name, dashboard) in dashboards() {
        let (variable_queries, panel_queries) = queries(&name, &dashboard);
        variables.extend(variable_queries);
        panels.extend(panel_queries);
    }
    assert!(variables.len() > 8 && panels.len() > 60, "{} variables, {} panels", variables.len(), panels.len());
    let (started, mut found) = (Instant::now(), BTreeMap::new());
    for round in 0.. {
        cause_events(&weir, round);
        variables.retain(|query| {
            let values = prometheus.values(&query.text);
            if !values.is_empty() {
                found.insert(query.place.clone(), values.join(", "));
            }
            values.is_empty()
        });
        panels.retain(|query| {
            let series = prometheus.series(&query.text, query.instant);
            if let Some((labels, value)) = series.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
                found.insert(query.place.clone(), format!("{} series, the highest {value} {labels}", series.len()));
            }
            let above_zero = series.iter().any(|(_, value)| *value > 0.0);
            !above_zero && (series.is_empty() || !ZERO_ALLOWED.iter().any(|title| query.place.contains(title)))
        });
        if variables.is_empty() && panels.is_empty() {
            break;
        }
        let missing: Vec<String> =
            variables.iter().chain(&panels).map(|query| format!("{}: {}", query.place, query.text)).collect();
        assert!(started.elapsed() < DATA_TIMEOUT, "no data after {DATA_TIMEOUT:?}:\n{}", missing.join("\n"));
        std::thread::sleep(Duration::from_millis(250));
    }
    for (place, value) in &found {
        println!("{place}: {value}");
    }
    drop((load, watcher));
}

/// Panels that are rightly empty on a system without faults: no alert, no expiry of a key or a certificate.
const EMPTY_IF_HEALTHY: [&str; 3] = ["Alerts", "Key expiry", "Certificates"];

#[test]
fn every_panel_of_a_healthy_system_has_data() {
    if !has("prometheus") {
        return;
    }
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: load, keys: [ { sha256: SHA(load) } ], rate_limit: standard }\n")
        .edit("weir.yaml", "requests: 600", "requests: 60000")
        .start(&sim);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("prometheus.yml");
    Prometheus::configure(&file, weir.admin);
    let prometheus = Prometheus::run(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display())),
    );
    let target = format!("http://{}", weir.http);
    let arguments = ["load", "--target", &target, "--key", "load", "--rate", "20"];
    let _load = Process::start(Command::new(simulator_program()).args(arguments));
    let mut panels: Vec<Query> = dashboards().iter().flat_map(|(name, board)| queries(name, board).1).collect();
    panels.retain(|query| EMPTY_IF_HEALTHY.iter().all(|title| !query.place.contains(&format!("/ {title} ["))));
    let started = Instant::now();
    loop {
        panels.retain(|query| prometheus.series(&query.text, query.instant).is_empty());
        if panels.is_empty() {
            break;
        }
        let missing: Vec<String> = panels.iter().map(|query| format!("{}: {}", query.place, query.text)).collect();
        assert!(started.elapsed() < DATA_TIMEOUT, "no data after {DATA_TIMEOUT:?}:\n{}", missing.join("\n"));
        std::thread::sleep(Duration::from_millis(250));
    }
    let firing = prometheus.series("ALERTS{alertstate=\"firing\"}", true);
    assert!(firing.is_empty(), "{firing:?}");
}

/// Two scrapes: the first before any fault, the second after it. `rate()` sees the first failures.
#[test]
fn the_first_failures_between_two_scrapes_are_seen() {
    if !has("prometheus") {
        return;
    }
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("prometheus.yml");
    Prometheus::configure(&file, weir.admin);
    let prometheus = Prometheus::run(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display())),
    );
    wait_until("the first scrape", || !prometheus.series("weir_build_info", true).is_empty());
    sim.set_response("/v2/", 500, &json!({}), "");
    for n in 0..5 {
        assert_eq!(weir.get(&format!("/v1/sessions/vectara:agt_load_{n}:ase_{n}")).status, 502);
    }
    for query in [
        "sum by (provider) (increase(weir_upstream_requests_total{provider=\"vectara\",status=\"500\"}[1m])) > 0",
        "sum by (code) (increase(weir_http_problems_total{client=\"open\",provider=\"vectara\",code=\"provider_error\"}[1m])) > 0",
    ] {
        wait_until(query, || !prometheus.series(query, true).is_empty());
    }
}

#[test]
fn dashboard_variables_are_used_only_in_regular_expression_matchers() {
    for (name, dashboard) in dashboards() {
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let variable = format!("${}", variable["name"].as_str().unwrap());
            let text = dashboard.to_string();
            if variable == "$datasource" {
                continue;
            }
            let uses = text.matches(&variable).count();
            let proper = text.matches(&format!("=~\\\"{variable}\\\"")).count();
            assert!(uses > 0 && uses == proper, "{name}: {variable} is used {uses} times, {proper} times in =~");
        }
    }
}

#[test]
fn the_dashboard_files_match_their_script() {
    let Some(python) = crate::tools::python("grafana_foundation_sdk") else { return };
    let output = Command::new(python).arg(deploy_path("grafana/dashboards.py")).arg("--check").output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output_text}; run deploy/grafana/dashboards.py");
}

/// Dashboards, alerts and recording rules use only metrics that exist, and the docs explain each metric.
#[test]
fn every_used_metric_exists_and_every_metric_is_documented() {
    let sim = Sim::start();
    let weir = start_observed(&sim);
    cause_events_once(&sim, &weir);
    (0..10).for_each(|round| cause_events(&weir, round));
    for (series, value) in [
        ("weir_client_key_expiry_timestamp_seconds{client=\"guest\",key=\"last\"}", 4_070_908_800.0),
        ("weir_client_key_expiry_timestamp_seconds{client=\"guest\",key=\"next\"}", 4_070_908_800.0),
        ("weir_upstream_capacity_limit{kind=\"rate\",provider=\"agenthuman\"}", 60.0),
        ("weir_upstream_capacity_limit{kind=\"concurrency\",provider=\"agenthuman\"}", 8.0),
        ("weir_upstream_capacity_left{kind=\"concurrency\",provider=\"agenthuman\"}", 8.0),
        ("weir_http_problems_total{client=\"none\",code=\"unauthorized\",provider=\"none\"}", 10.0),
        // The certificates of rcgen expire in the year 4096.
        ("weir_tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:0\"}", 67_090_118_400.0),
    ] {
        assert_eq!(weir.metric(series), value, "{series}");
    }
    assert_eq!(weir.metric("weir_client_key_expiry_timestamp_seconds{client=\"open\",key=\"next\"}"), 0.0);
    let metrics = weir.metrics();
    let existing: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let operations = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    for name in existing.iter().filter(|name| name.starts_with("weir_")) {
        assert!(operations.contains(&format!("`{name}`")), "docs/OPERATIONS.md does not explain {name}");
    }
    let mut used = BTreeSet::new();
    let files = ["prometheus/recording.rules.yml", "prometheus/alerts.rules.yml"].map(read);
    let boards = dashboards().into_iter().map(|(_, dashboard)| dashboard.to_string());
    for text in files.into_iter().chain(boards) {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
            if word.starts_with("weir_") || word.starts_with("process_") {
                used.insert(word.trim_end_matches("_bucket").to_owned());
            }
        }
    }
    assert!(used.len() > 20, "{used:?}");
    for name in used {
        assert!(existing.contains(&*name), "Weir has no metric {name}");
    }
}

#[test]
fn promtool_accepts_the_rules_and_the_alert_tests_pass() {
    if !has("promtool") {
        return;
    }
    let rules = [deploy_path("prometheus/recording.rules.yml"), deploy_path("prometheus/alerts.rules.yml")];
    let runs: [(&[&str], Vec<PathBuf>); 2] = [
        (&["check", "rules", "--lint=all", "--lint-fatal"], rules.to_vec()),
        (
            &["test", "rules"],
            ["alerts", "outage"].map(|name| deploy_path(&format!("prometheus/tests/{name}.test.yml"))).to_vec(),
        ),
    ];
    for (arguments, files) in runs {
        let output = Command::new("promtool").args(arguments).args(files).output().unwrap();
        let output_text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && output_text.contains("SUCCESS"), "{output_text}");
    }
}

/// No section and no test names an alert that does not exist.
#[test]
fn every_alert_has_a_section_in_operations_md_and_a_test() {
    let rules = read("prometheus/alerts.rules.yml");
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 12);
    for alert in &alerts {
        let link = format!("runbook_url: docs/OPERATIONS.md#{}", alert.to_lowercase());
        assert_eq!(rules.matches(&format!("{link}\n")).count(), 1, "{alert} has no {link}");
    }
    let tests = read("prometheus/tests/alerts.test.yml");
    for alert in &alerts {
        let cases = tests.split("\n  - name: ").filter(|case| case.contains(&format!("alertname: {alert}\n")));
        assert!(cases.count() > 0, "{alert} has no test");
    }
    for (line, alert) in tests.lines().filter_map(|line| Some((line, line.split("alertname: ").nth(1)?))) {
        let alert = alert.split(',').next().unwrap();
        assert!(alerts.contains(alert), "{line}: unknown alert");
    }
    let operations = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    let section = operations.split("\n## Alerts\n").nth(1).expect("docs/OPERATIONS.md has a section Alerts");
    let section = section.split("\n## ").next().unwrap();
    let described: BTreeSet<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(alerts, described, "left: alerts; right: sections in docs/OPERATIONS.md");
    for part in section.split("\n### ").skip(1) {
        for word in ["Means", "Look at", "Do"] {
            assert!(part.contains(&format!("\n**{word}.** ")), "{} has no **{word}.**", part.lines().next().unwrap());
        }
    }
}
