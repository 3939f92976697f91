//! The supply chain: the licences and the versions of all libraries that Weir and the simulator contain.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// The accepted licences, by their SPDX names.
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

/// The libraries that are built in several versions, because Pingora, the signer of AWS requests and others require
/// different ones. A new version is reviewed like a new library.
const DUPLICATES: [(&str, &[&str]); 20] = [
    ("asn1-rs", &["0.6.2", "0.7.2"]),
    ("asn1-rs-derive", &["0.5.1", "0.6.0"]),
    ("base64", &["0.22.1", "0.23.1"]),
    ("dashmap", &["5.5.3", "6.2.1"]),
    ("der-parser", &["10.0.0", "9.0.0"]),
    ("getrandom", &["0.2.17", "0.3.4", "0.4.3"]),
    ("hashbrown", &["0.12.3", "0.14.5", "0.16.1", "0.17.1"]),
    ("heck", &["0.4.1", "0.5.0"]),
    ("http", &["0.2.12", "1.5.0"]),
    ("http-body", &["0.4.6", "1.1.0"]),
    ("indexmap", &["1.9.3", "2.14.2"]),
    ("oid-registry", &["0.7.1", "0.8.1"]),
    ("rand", &["0.8.8", "0.9.5"]),
    ("rand_chacha", &["0.3.1", "0.9.0"]),
    ("rand_core", &["0.10.1", "0.6.4", "0.9.5"]),
    ("syn", &["1.0.109", "2.0.119", "3.0.10"]),
    ("synstructure", &["0.13.2", "0.14.0"]),
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

/// Returns the members of the workspace, `weir` and `weir-sim`.
fn members(metadata: &Value) -> Vec<&Value> {
    let ids = metadata["workspace_members"].as_array().unwrap();
    metadata["packages"].as_array().unwrap().iter().filter(|package| ids.contains(&package["id"])).collect()
}

/// Returns the packages that the programs contain: their normal dependencies, and the build dependencies of the members
/// themselves, whose files they embed. Dependencies of tests are not distributed.
fn distributed_packages(metadata: &Value) -> Vec<&Value> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let members: Vec<&str> = members(metadata).iter().map(|member| member["id"].as_str().unwrap()).collect();
    let (mut seen, mut next) = (BTreeSet::new(), members.clone());
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let is_member = members.contains(&id);
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            // Kind null is a normal dependency.
            let distributed = |kind: &Value| kind["kind"].is_null() || is_member && kind["kind"] == "build";
            if dependency["dep_kinds"].as_array().unwrap().iter().any(distributed) {
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

/// Returns whether the accepted licences satisfy an SPDX expression.
fn is_accepted(expression: &str) -> bool {
    let parsed = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX);
    parsed.is_ok_and(|parsed| parsed.evaluate(|licence| LICENCES.contains(&&*licence.to_string())))
}

#[test]
fn every_licence_is_accepted() {
    let metadata = metadata();
    let packages = distributed_packages(&metadata);
    assert!(packages.len() > 100, "cargo metadata lists the dependencies");
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !is_accepted(package["license"].as_str().unwrap_or("none")))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(
        is_accepted("MIT OR GPL-3.0")
            && is_accepted("(MIT OR Apache-2.0) AND Unicode-3.0")
            && is_accepted("MIT/Apache-2.0")
    );
    for refused in [
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "(MIT OR Apache-2.0) AND GPL-3.0-only",
        "GPL-3.0-only AND (Apache-2.0 OR MIT)",
        "Apache-2.0 WITH Classpath-exception-2.0",
        "none",
    ] {
        assert!(!is_accepted(refused), "{refused}");
    }
}

#[test]
fn each_library_has_one_version_except_for_known_duplicates() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in distributed_packages(&metadata) {
        versions.entry(package["name"].as_str().unwrap()).or_default().insert(package["version"].as_str().unwrap());
    }
    let duplicates: BTreeMap<&str, BTreeSet<&str>> =
        versions.into_iter().filter(|(_, versions)| versions.len() > 1).collect();
    let known: BTreeMap<&str, BTreeSet<&str>> =
        DUPLICATES.iter().map(|(name, versions)| (*name, versions.iter().copied().collect())).collect();
    assert_eq!(duplicates, known, "left: built in several versions; right: DUPLICATES");
}

/// The licence of Swagger UI requires the name in NOTICE.
#[test]
fn notice_names_the_embedded_swagger_ui() {
    let metadata = metadata();
    let packages = distributed_packages(&metadata);
    let viewer = packages
        .iter()
        .find(|package| package["name"] == "utoipa-swagger-ui-vendored")
        .expect("Weir contains Swagger UI");
    assert_eq!(viewer["version"], "0.2.0", "update the version of Swagger UI in NOTICE and here");
    let notice = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/NOTICE")).unwrap();
    assert!(notice.contains("Swagger UI 5.32.6") && notice.contains("SmartBear"));
}

#[test]
fn every_manifest_forbids_unsafe_code() {
    let metadata = metadata();
    let manifests: Vec<String> = members(&metadata)
        .iter()
        .map(|member| std::fs::read_to_string(member["manifest_path"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(manifests.len(), 2);
    assert!(manifests.iter().all(|manifest| manifest.contains("[lints]\nworkspace = true\n")));
    let workspace = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let lints = workspace.split("[workspace.lints.rust]\n").nth(1).and_then(|rest| rest.split("\n[").next());
    assert!(lints.unwrap().contains("unsafe_code = \"forbid\""));
}
