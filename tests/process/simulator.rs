//! `weir-sim` as docs/SIMULATOR.md and `--help` describe it.

use crate::support::*;
use serde_json::{Value, json};
use std::process::Command;

fn documentation() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SIMULATOR.md")).unwrap()
}

/// The faults of the table in the documentation.
fn documented_faults() -> Vec<Value> {
    let text = documentation();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `{\"kind\"")?.split_once("` |"));
    rows.map(|(rest, _)| serde_json::from_str(&format!("{{\"kind\"{rest}")).unwrap()).collect()
}

fn help() -> String {
    let output = Command::new(simulator_program()).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_documented_fault_has_its_effect() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 1s").start(&sim);
    let faults = documented_faults();
    assert_eq!(faults.len(), 6);
    // The first one is a pause, which would hide the others.
    for fault in faults.iter().rev() {
        sim.clear_faults();
        sim.plan(&json!({ "path": "/v2/agents", "fault": fault }));
        let response = weir.get(VECTARA);
        let expected = match fault["kind"].as_str().unwrap() {
            "answer" => (503, "provider_rate_limited"),
            "reset" | "truncate" => (502, "provider_error"),
            "oversize" => (502, "provider_invalid_response"),
            _ => (504, "provider_timeout"),
        };
        assert_eq!(response.code(), (expected.0, expected.1.to_owned()), "{fault}");
        if fault["kind"] == "answer" {
            assert_eq!(response.header("retry-after"), Some("7"));
        }
    }
}

#[test]
fn the_help_names_every_fault_and_every_documented_request() {
    let (help, text) = (help(), documentation());
    for fault in documented_faults() {
        assert!(help.contains(&format!("{{\"kind\": {}", fault["kind"])), "{fault}: {help}");
    }
    let requests: Vec<&str> = text.split('`').filter(|code| code.contains(" /_sim/")).collect();
    assert!(requests.len() >= 6, "{requests:?}");
    for request in requests {
        let path = request.split(' ').nth(1).unwrap();
        assert!(help.contains(path), "{request}: {help}");
    }
    let example = help.lines().find_map(|line| line.split_once("curl -d '")?.1.split_once('\'')).unwrap().0;
    let sim = Sim::start();
    sim.plan(&serde_json::from_str(example).unwrap());
    let weir = Config::shipped().start(&sim);
    assert_eq!(weir.get(VECTARA).status, 503, "{example}");
}
