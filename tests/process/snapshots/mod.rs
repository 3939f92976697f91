//! Compares the output that programs read with a stored snapshot: responses, events, metric series, spans, the access
//! log, the commands, and the API description.
//!
//! Text for people is left out. `WEIR_UPDATE_SNAPSHOTS=1` writes a new snapshot. `WEIR_PROGRAM` names another build to
//! run, so that the version before a change can write the snapshot.

mod commands;
mod faults;
mod normalise;
mod requests;
mod spans;
mod watches;

use crate::support::*;
use normalise::{metrics, names_only, normalise, shape, shape_of, types_only, without_text};
use requests::{ADMIN, EXPLAINED, REQUESTS};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Compares with the section of this name in `tests/snapshots/programs.json`, or replaces the section.
fn assert_equals_snapshot(found: Value) {
    let file = repository().join("tests/snapshots/programs.json");
    if std::env::var_os("WEIR_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, format!("{found:#}\n")).unwrap();
    }
    let wanted: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut differences = Vec::new();
    compare("$", &wanted, &found, &mut differences);
    assert!(differences.is_empty(), "differs from tests/snapshots/programs.json:\n{}", differences.join("\n"));
}

#[test]
fn what_programs_read_equals_the_snapshot() {
    // The parts do not share a process. They run at the same time because some wait for a poll or an export.
    let (mut found, faults, spans, watches, commands) = std::thread::scope(|scope| {
        let faults = scope.spawn(faults::snapshot);
        let spans = scope.spawn(spans::snapshot);
        let watches = scope.spawn(watches::snapshot);
        let commands = scope.spawn(commands::snapshot);
        let plain = plain_requests();
        (plain, faults.join().unwrap(), spans.join().unwrap(), watches.join().unwrap(), commands.join().unwrap())
    });
    found["explained"] = explained_requests();
    found["faults"] = faults;
    found["spans"] = spans;
    found["watches"] = watches;
    found["commands"] = commands;
    assert_equals_snapshot(found);
}

/// The responses and metrics of a gateway without faults, and the API description.
fn plain_requests() -> Value {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let mut responses = Map::new();
    for (name, method, target, extra_headers) in REQUESTS {
        let mut headers = extra_headers.to_vec();
        if !headers.iter().any(|(name, _)| *name == "x-api-key") {
            headers.push(("x-api-key", "open"));
        }
        headers.retain(|(_, value)| !value.is_empty());
        responses.insert((*name).to_owned(), shape(&send(weir.http, method, target, &headers)));
    }
    let malformed = send_bytes(weir.http, b"GET  / HTTP/1.1\r\n\r\n");
    responses.insert("malformed".to_owned(), shape(&malformed));
    for (method, path) in ADMIN {
        let mut found = shape(&weir.admin(method, path));
        // Names of temporary directories and numbers of bytes.
        found["body"] = names_only(&found["body"]);
        responses.insert(format!("admin {method} {path}"), found);
    }
    let mut description = weir.get("/openapi.json").json();
    without_text(&mut description);
    normalise(&mut description);
    let metrics = metrics(&weir.metrics(), &[weir.http]);
    let access_log = access_log(&weir);
    json!({ "responses": responses, "metrics": metrics, "access_log": access_log, "openapi": description })
}

/// The member names and value types of access-log lines, for each route and status.
fn access_log(weir: &Weir) -> Value {
    // The gateway writes a line after the response. The API description is the last request.
    let lines = || weir.process.stdout.lock().unwrap().clone();
    wait_until("each request has its line", || lines().len() > REQUESTS.len());
    let mut found: Map<String, Value> = Map::new();
    for line in lines() {
        let line: Value = serde_json::from_str(&line).unwrap();
        let name = format!("{} {} {} {}", line["method"], line["route"], line["status"], line["cache"]);
        found.insert(name.replace('"', ""), types_only(&line));
    }
    found.sort_keys();
    found.into()
}

/// Responses with an explanation. The last one explains a failure.
fn explained_requests() -> Value {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], explain: true, rate_limit: standard }\n")
        .start(&sim);
    sim.set_response("ase_bad", 200, &json!({}), r#"{"key":"ase_bad","enabled":"perhaps","created_at":5}"#);
    let explained = EXPLAINED.iter().map(|(name, target)| {
        let response = weir.get_with(target, &[("Weir-Explain", "1")]);
        ((*name).to_owned(), shape_of(&response, &[sim.address]))
    });
    explained.collect()
}

fn compare(path: &str, wanted: &Value, found: &Value, differences: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let member = |of: &Map<String, Value>| of.get(name).cloned().unwrap_or_else(|| "(absent)".into());
                compare(&format!("{path}.{name}"), &member(a), &member(b), differences);
            }
            if a.len() == b.len() && !a.keys().eq(b.keys()) {
                differences.push(format!("{path}: the members are in another order"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{at}]"), a, b, differences);
            }
        }
        _ if wanted == found => {}
        _ => differences.push(format!("{path}: snapshot {wanted}, found {found}")),
    }
}
