//! What operators watch: a real Prometheus scrapes a real gateway that has seen everything, and each panel and
//! variable of the dashboards finds data there. Alerts fire when they should, and have their page.

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

/// Panels in which nothing may be the truth. All others must show that something happened.
const MAY_BE_ZERO: [&str; 4] = ["Access log lines lost", "Connections ended by Weir", "Evictions", "In flight"];

/// The longest that a series may take to be seen: scrapes are four a second.
const WATCH: Duration = Duration::from_secs(90);

fn deployed(path: &str) -> PathBuf {
    repository().join("deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deployed(path)).unwrap_or_else(|error| panic!("deploy/{path}: {error}"))
}

/// A Prometheus with the shipped configuration, whose only differences are where things are and how often it looks.
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Writes the shipped configuration for a gateway at this address.
    pub fn configure(file: &Path, admin: SocketAddr) {
        let mut config = read("prometheus/prometheus.yml");
        for (from, to) in [
            ("scrape_interval: 15s", "scrape_interval: 250ms"),
            ("evaluation_interval: 15s", "evaluation_interval: 500ms"),
            ("/etc/prometheus", deployed("prometheus").to_str().unwrap()),
            ("weir:8081", &admin.to_string()),
        ] {
            assert!(config.contains(from), "prometheus.yml has {from:?}");
            config = config.replace(from, to);
        }
        std::fs::write(file, config).unwrap();
    }

    /// Starts this command, on a free port.
    pub fn run(command: &mut Command) -> Self {
        let process = Process::start(command.arg("--web.listen-address=127.0.0.1:0"));
        let mut address = None;
        until("Prometheus listens", || {
            let lines = process.stderr.lock().unwrap();
            let line = lines.iter().find(|line| line.contains("Listening on"));
            address = line.and_then(|line| line.rsplit_once("address=")?.1.trim_matches('"').parse().ok());
            address.is_some()
        });
        let address = address.unwrap();
        until("Prometheus is ready", || raw(address, b"GET /-/ready HTTP/1.0\r\n\r\n").status == 200);
        Self { _process: process, address }
    }

    /// An answer of its API. HTTP/1.0, so that it comes in one piece.
    fn ask(&self, path: &str) -> Value {
        let answer = raw(self.address, format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes());
        let body = answer.json();
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].clone()
    }

    /// The series that a query gives over the last minute, each with its last finite value.
    pub fn series(&self, query: &str, instant: bool) -> Vec<(Value, f64)> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let data = match instant {
            true => self.ask(&format!("/api/v1/query?query={query}&time={now}")),
            false => self.ask(&format!("/api/v1/query_range?query={query}&start={}&end={now}&step=1", now - 60.0)),
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

    /// What a variable's query offers: `label_values(selector, label)` is all that is used.
    fn values(&self, query: &str) -> Vec<String> {
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect(query);
        let selector = utf8_percent_encode(selector, NON_ALPHANUMERIC);
        let values = self.ask(&format!("/api/v1/label/{label}/values?match[]={selector}"));
        values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    }
}

/// A panel's or a variable's query.
struct Query {
    place: String,
    text: String,
    instant: bool,
}

fn dashboards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(deployed("grafana/dashboards")).unwrap();
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

/// A dashboard's queries as Grafana sends them with "All" chosen.
fn queries(name: &str, dashboard: &Value) -> (Vec<Query>, Vec<Query>) {
    let mut chosen: Vec<(String, String)> =
        vec![("$__rate_interval".into(), "1m".into()), ("$__range".into(), "5m".into())];
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            assert_eq!(variable["allValue"], ".*", "{name}: {variable}");
            chosen.push((format!("${}", variable["name"].as_str().unwrap()), ".*".into()));
        }
    }
    let filled = |text: &str| {
        let mut text = text.to_owned();
        chosen.iter().for_each(|(variable, value)| text = text.replace(variable, value));
        assert!(!text.contains('$'), "{name}: a variable that there is not: {text}");
        text
    };
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter(|variable| variable["type"] == "query").map(|variable| Query {
        place: format!("{name} / ${}", variable["name"].as_str().unwrap()),
        text: filled(variable["query"].as_str().unwrap()),
        instant: false,
    });
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        assert!(panel["type"] == "row" || !targets.is_empty(), "{name}: a panel without a query: {}", panel["title"]);
        let title = panel["title"].as_str().unwrap().to_owned();
        targets.into_iter().map(move |target| (title.clone(), target))
    });
    let panels = panels.map(|(title, target)| Query {
        place: format!("{name} / {title} [{}]", target["legendFormat"].as_str().unwrap_or_default()),
        text: filled(target["expr"].as_str().unwrap()),
        instant: target["instant"] == true,
    });
    (variables.collect(), panels.collect())
}

const PALANTIR_LOAD: &str = "ri.aip-agents..agent.00000000-0000-0000-0000-000000000005";
const PALANTIR_SESSION: &str = "ri.aip-agents..session.00000000-0000-0000-0000-";

/// A gateway with all that a dashboard may show: limits, keys that end, a certificate.
fn watched(sim: &Sim) -> Weir {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
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
    config.write("tls.crt", &made.cert.pem());
    config.write("tls.key", &made.signing_key.serialize_pem());
    config.start(sim)
}

/// What happens once, before anyone looks.
fn troubles(sim: &Sim, weir: &Weir) {
    let stored = "/v1/sessions/vectara:agt_load_7:ase_agt_load_7_1";
    assert_eq!(weir.get(stored).status, 200);
    assert_eq!(weir.get(PALANTIR).status, 200);
    weir.make_stale();
    // One provider fails until its breaker opens; another throttles, breaks off, and sends a field of another type.
    sim.answers(PALANTIR_LOAD, 500, &json!({}), "");
    sim.answers("/agt_load_9/", 429, &json!({ "retry-after": "1" }), "{}");
    sim.fault("/agt_load_8/", 0, &json!({ "kind": "reset" }));
    let odd = r#"{"key":"ase_agt_load_6_1","agent_key":"agt_load_6","created_at":5}"#;
    sim.answers("/agt_load_6/", 200, &json!({}), odd);
    assert_eq!(weir.get("/v1/sessions/vectara:agt_load_6:ase_agt_load_6_1").status, 200);
    let yaml = weir.config.read("weir.yaml");
    weir.config.write("weir.yaml", "listen: nonsense\n");
    until("the reload is refused", || weir.metric("weir_config_reloads_total{result=\"failure\"}") >= 1.0);
    weir.config.write("weir.yaml", &(yaml + "\n# again\n"));
    until("the next is not", || weir.metric("weir_config_reloads_total{result=\"success\"}") >= 1.0);
}

/// A client that watches a session for as long as this lives.
fn watch(weir: &Weir) -> TcpStream {
    let mut stream = TcpStream::connect(weir.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001/watch";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: open\r\n\r\n").unwrap();
    let mut begun = [0; 12];
    stream.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    stream
}

/// What happens again and again while they look.
fn trouble_again(weir: &Weir, round: usize) {
    weir.get(&format!("/v1/agents/{PALANTIR_LOAD}/sessions/{PALANTIR_SESSION}{round:012x}"));
    // Its own session is stale and its breaker open.
    weir.get(PALANTIR);
    weir.get(&format!("/v1/sessions/vectara:agt_load_8:ase_agt_load_8_{round}"));
    weir.get(&format!("/v1/sessions/vectara:agt_load_6:ase_agt_load_6_{round}"));
    // Its pause lasts a second: the rounds between are for the others.
    if round % 8 == 7 {
        weir.get(&format!("/v1/sessions/vectara:agt_load_9:ase_agt_load_9_{round}"));
    }
    weir.get_as("greedy", VECTARA);
    weir.get_as("guest", VECTARA);
    weir.get_as("nobody", VECTARA);
    weir.reload();
    drop(watch(weir));
}

#[test]
fn every_panel_and_variable_finds_data_in_a_real_prometheus() {
    if !has("prometheus") {
        return;
    }
    let sim = Sim::start();
    let weir = watched(&sim);
    troubles(&sim, &weir);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("prometheus.yml");
    Prometheus::configure(&file, weir.admin);
    let prometheus = Prometheus::run(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display())),
    );
    let load = Process::start(Command::new(env!("CARGO_BIN_EXE_weir-sim")).args([
        "load",
        "--target",
        &format!("http://{}", weir.http),
        "--key",
        "load",
        "--rate",
        "20",
    ]));
    let watching = watch(&weir);
    let (mut variables, mut panels): (Vec<Query>, Vec<Query>) = (Vec::new(), Vec::new());
    for (name, dashboard) in dashboards() {
        let (of_variables, of_panels) = queries(&name, &dashboard);
        variables.extend(of_variables);
        panels.extend(of_panels);
    }
    assert!(variables.len() > 8 && panels.len() > 60, "{} variables, {} panels", variables.len(), panels.len());
    let (begun, mut found) = (Instant::now(), BTreeMap::new());
    for round in 0.. {
        trouble_again(&weir, round);
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
                found.insert(query.place.clone(), format!("{} series, the greatest {value} {labels}", series.len()));
            }
            let shows = series.iter().any(|(_, value)| *value > 0.0);
            !shows && (series.is_empty() || !MAY_BE_ZERO.iter().any(|title| query.place.contains(title)))
        });
        if variables.is_empty() && panels.is_empty() {
            break;
        }
        let left: Vec<String> =
            variables.iter().chain(&panels).map(|query| format!("{}: {}", query.place, query.text)).collect();
        assert!(begun.elapsed() < WATCH, "no data after {WATCH:?}:\n{}", left.join("\n"));
        std::thread::sleep(Duration::from_millis(250));
    }
    for (place, what) in &found {
        println!("{place}: {what}");
    }
    drop((load, watching));
}

#[test]
fn variables_stand_in_regular_expressions_alone() {
    for (name, dashboard) in dashboards() {
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let variable = format!("${}", variable["name"].as_str().unwrap());
            let text = dashboard.to_string();
            if variable == "$datasource" {
                continue;
            }
            let uses = text.matches(&variable).count();
            let proper = text.matches(&format!("=~\\\"{variable}\\\"")).count();
            assert!(uses > 0 && uses == proper, "{name}: {variable} stands {uses} times, {proper} times in =~");
        }
    }
}

#[test]
fn the_dashboards_are_what_their_script_makes() {
    let Some(python) = crate::tools::python("grafana_foundation_sdk") else { return };
    let output = Command::new(python).arg(deployed("grafana/dashboards.py")).arg("--check").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}; run deploy/grafana/dashboards.py");
}

/// Every metric that is shown, judged or recorded exists, and every one that exists is explained.
#[test]
fn every_metric_is_known_and_explained() {
    let sim = Sim::start();
    let weir = watched(&sim);
    troubles(&sim, &weir);
    (0..10).for_each(|round| trouble_again(&weir, round));
    for (series, value) in [
        ("weir_client_key_expiry_timestamp_seconds{client=\"guest\",key=\"last\"}", 4_070_908_800.0),
        ("weir_client_key_expiry_timestamp_seconds{client=\"guest\",key=\"next\"}", 4_070_908_800.0),
        ("weir_upstream_capacity_limit{kind=\"rate\",provider=\"agenthuman\"}", 60.0),
        ("weir_upstream_capacity_limit{kind=\"concurrency\",provider=\"agenthuman\"}", 8.0),
        ("weir_upstream_capacity_left{kind=\"concurrency\",provider=\"agenthuman\"}", 8.0),
        ("weir_http_problems_total{client=\"none\",code=\"unauthorized\",provider=\"none\"}", 10.0),
        // rcgen's certificates end in 4096.
        ("weir_tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:0\"}", 67_090_118_400.0),
    ] {
        assert_eq!(weir.metric(series), value, "{series}");
    }
    assert_eq!(weir.metric("weir_client_key_expiry_timestamp_seconds{client=\"open\",key=\"next\"}"), 0.0);
    let metrics = weir.metrics();
    let there: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let operations = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    for name in there.iter().filter(|name| name.starts_with("weir_")) {
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
        assert!(there.contains(&*name), "{name} is no metric of Weir's");
    }
}

#[test]
fn alerts_fire_when_they_should_and_not_when_they_should_not() {
    if !has("promtool") {
        return;
    }
    let rules = [deployed("prometheus/recording.rules.yml"), deployed("prometheus/alerts.rules.yml")];
    let runs: [(&[&str], Vec<PathBuf>); 2] = [
        (&["check", "rules", "--lint=all", "--lint-fatal"], rules.to_vec()),
        (&["test", "rules"], vec![deployed("prometheus/tests/alerts.test.yml")]),
    ];
    for (arguments, files) in runs {
        let output = Command::new("promtool").args(arguments).args(files).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("SUCCESS"), "{said}");
    }
}

/// Alert by alert: its section, its tests in both directions. And no section or test of an alert that is gone.
#[test]
fn every_alert_has_its_section_and_its_tests() {
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
        assert!(cases.count() > 0, "no test in which {alert} fires");
    }
    for (line, alert) in tests.lines().filter_map(|line| Some((line, line.split("alertname: ").nth(1)?))) {
        let alert = alert.split(',').next().unwrap();
        assert!(alerts.contains(alert), "{line}: no such alert");
    }
    let operations = std::fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    let section = operations.split("\n## Alerts\n").nth(1).expect("a section of alerts");
    let section = section.split("\n## ").next().unwrap();
    let described: BTreeSet<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(alerts, described, "alerts, and their sections in docs/OPERATIONS.md");
    for part in section.split("\n### ").skip(1) {
        for word in ["Means", "Look at", "Do"] {
            assert!(part.contains(&format!("\n**{word}.** ")), "{} has no **{word}.**", part.lines().next().unwrap());
        }
    }
}
