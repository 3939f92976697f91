//! What Weir is built from: under which licences, and each library once.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Licences that may be used and passed on without asking, by their SPDX names.
const LICENCES: [&str; 11] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Libraries of which several versions are built, and which: Pingora and others have not moved to one yet. A further
/// version is as new as a further library.
const SEVERAL: [(&str, &[&str]); 17] = [
    ("asn1-rs", &["0.6.2", "0.7.2"]),
    ("asn1-rs-derive", &["0.5.1", "0.6.0"]),
    ("base64", &["0.22.1", "0.23.1"]),
    ("dashmap", &["5.5.3", "6.2.1"]),
    ("der-parser", &["10.0.0", "9.0.0"]),
    ("getrandom", &["0.2.17", "0.3.4", "0.4.3"]),
    ("hashbrown", &["0.12.3", "0.14.5", "0.16.1", "0.17.1"]),
    ("heck", &["0.4.1", "0.5.0"]),
    ("indexmap", &["1.9.3", "2.14.2"]),
    ("oid-registry", &["0.7.1", "0.8.1"]),
    ("rand", &["0.8.8", "0.9.5"]),
    ("rand_chacha", &["0.3.1", "0.9.0"]),
    ("rand_core", &["0.10.1", "0.6.4", "0.9.5"]),
    ("syn", &["1.0.109", "2.0.119", "3.0.10"]),
    ("thiserror", &["1.0.69", "2.0.21"]),
    ("thiserror-impl", &["1.0.69", "2.0.21"]),
    ("x509-parser", &["0.16.0", "0.18.1"]),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Packages that the program itself is built from, and those that our build script takes out what it embeds with and from:
/// what tests need besides is not passed on.
fn built(metadata: &Value) -> Vec<&Value> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let (mut seen, mut next) = (BTreeSet::new(), vec![metadata["resolve"]["root"].as_str().unwrap()]);
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let ours = Value::String(id.to_owned()) == metadata["resolve"]["root"];
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            // Kind null is a normal dependency.
            let passed_on = |kind: &Value| kind["kind"].is_null() || ours && kind["kind"] == "build";
            if dependency["dep_kinds"].as_array().unwrap().iter().any(passed_on) {
                next.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| seen.contains(package["id"].as_str().unwrap()))
        .collect()
}

/// Whether an SPDX expression can be met with licences that may be used alone.
fn may_be_used(expression: &str) -> bool {
    let parsed = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX);
    parsed.is_ok_and(|parsed| parsed.evaluate(|licence| LICENCES.contains(&&*licence.to_string())))
}

#[test]
fn every_licence_may_be_used() {
    let metadata = metadata();
    let packages = built(&metadata);
    assert!(packages.len() > 100, "the tree was read");
    let wrong: Vec<String> = packages
        .iter()
        .filter(|package| !may_be_used(package["license"].as_str().unwrap_or("none")))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        may_be_used("MIT OR GPL-3.0")
            && may_be_used("(MIT OR Apache-2.0) AND Unicode-3.0")
            && may_be_used("MIT/Apache-2.0")
    );
    for wrong in [
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "(MIT OR Apache-2.0) AND GPL-3.0-only",
        "GPL-3.0-only AND (Apache-2.0 OR MIT)",
        "Apache-2.0 WITH Classpath-exception-2.0",
        "none",
    ] {
        assert!(!may_be_used(wrong), "{wrong}");
    }
}

#[test]
fn each_library_is_built_once_but_for_those_that_are_known() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in built(&metadata) {
        versions.entry(package["name"].as_str().unwrap()).or_default().insert(package["version"].as_str().unwrap());
    }
    let several: BTreeMap<&str, BTreeSet<&str>> =
        versions.into_iter().filter(|(_, versions)| versions.len() > 1).collect();
    let known: BTreeMap<&str, BTreeSet<&str>> =
        SEVERAL.iter().map(|(name, versions)| (*name, versions.iter().copied().collect())).collect();
    assert_eq!(several, known, "left: what is built in several versions; right: what is known");
}

/// What is embedded is named where its licence asks for it.
#[test]
fn what_is_embedded_is_named() {
    let metadata = metadata();
    let packages = built(&metadata);
    let viewer =
        packages.iter().find(|package| package["name"] == "utoipa-swagger-ui-vendored").expect("it is built in");
    assert_eq!(viewer["version"], "0.2.0", "another one holds another Swagger UI: NOTICE names it");
    let notice = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/NOTICE")).unwrap();
    assert!(notice.contains("Swagger UI 5.32.6") && notice.contains("SmartBear"));
}

#[test]
fn no_code_of_ours_is_unsafe() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""));
}
