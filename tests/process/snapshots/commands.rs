//! The output and exit codes of the commands.

use super::normalise::{normalise_body, without_references, without_text};
use crate::support::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["run"],
    &["check"],
    &["schema"],
    &["map"],
    &["explain"],
    &["key"],
    &["key", "new"],
    &["purge"],
    &["reload"],
    &["health"],
    &["init"],
    &["demo"],
];

/// Arguments of `weir explain --json` after the method GET.
const EXPLAINED: &[&str] = &[
    VECTARA,
    "/v1/sessions?agent=agt_a&provider=agenthuman",
    "/v1/sessions:batchGet?id=sess_A&id=nobody:x",
    "/vectara/v2/agents/agt_a/sessions/ase_b",
    "/vectara/v2/corpora",
    "/nowhere",
];

/// Commands that fail.
const FAILING: &[&[&str]] = &[
    &["--nonsense"],
    &["nonsense"],
    &["map", "nobody", "-"],
    &["explain", "GET", "nowhere"],
    &["explain", "GET", "/nowhere"],
    &["purge"],
    // Nothing listens on this port.
    &["health", "--admin", "127.0.0.1:9"],
    &["purge", "--all", "--admin", "127.0.0.1:9"],
];

pub fn snapshot() -> Value {
    let config = Config::shipped();
    let exit_code = |arguments: &[&str]| config.command(arguments).output().unwrap().status.code();
    let explained: Map<String, Value> =
        EXPLAINED.iter().map(|target| ((*target).to_owned(), explain(&config, target))).collect();
    let failing: Map<String, Value> =
        FAILING.iter().map(|arguments| (arguments.join(" "), exit_code(arguments).into())).collect();
    let options: Map<String, Value> =
        COMMANDS.iter().map(|command| (format!("weir {}", command.join(" ")), options(&config, command))).collect();
    let schemas: Map<String, Value> = ["weir", "clients", "provider"]
        .into_iter()
        .map(|file| {
            let mut schema: Value =
                serde_json::from_slice(&config.command(&["schema", file]).output().unwrap().stdout).unwrap();
            without_text(&mut schema);
            assert!(schema["title"].is_string());
            schema["title"] = "TEXT".into();
            (file.to_owned(), without_references(&schema))
        })
        .collect();
    let valid = config.check().0;
    config.change("weir.yaml", "  grace: 10s", "  grace: ten");
    config.change("providers/vectara.yaml", "retries: 1", "retires: 1");
    let (invalid, lines) = config.check();
    let positions: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(position, _)| position)
        .filter(|position| position.contains(".yaml:"))
        .collect();
    json!({
        "check": { "valid": valid, "invalid": { "exit": invalid, "positions": positions } },
        "explain": explained,
        "exit_codes": failing,
        "options": options,
        "schemas": schemas,
    })
}

/// The exit code and the document of `weir explain --json GET TARGET`.
fn explain(config: &Config, target: &str) -> Value {
    let mut command = config.command(&["explain", "--json", "GET", target]);
    for provider in ["VECTARA", "PALANTIR", "AGENTHUMAN"] {
        for name in ["BASE_URL", "API_KEY", "TOKEN"] {
            command.env_remove(format!("{provider}_{name}"));
        }
    }
    let output = command.env("PALANTIR_TOKEN", "token").output().unwrap();
    let mut document = serde_json::from_slice(&output.stdout).unwrap();
    normalise_body(&mut document);
    json!({ "exit": output.status.code(), "document": document })
}

/// The names of the options and of the commands in the help text.
fn options(config: &Config, command: &[&str]) -> Value {
    let output = config.command(&[command, &["--help"]].concat()).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let words = help.lines().filter(|line| line.trim_start().starts_with('-')).flat_map(|line| {
        line.trim_start()
            .split("  ")
            .next()
            .unwrap()
            .split([' ', ','])
            .filter(|word| word.starts_with('-') && word.len() > 1)
            .map(str::to_owned)
    });
    let options: BTreeSet<String> = words.collect();
    let list = help.split("\nCommands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
    let commands: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    json!({ "options": options, "commands": commands })
}
