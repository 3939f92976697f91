//! The house: floors, names and sizes, read off the sources.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by floor, from the ground up. A file imports only from floors below its own room's.
const FLOORS: &[&[&str]] = &[
    &["endpoints", "headers", "json", "jsonpath", "lines", "metrics", "model", "pattern"],
    &["exchange", "span"],
    &["error"],
    &["config"],
    &[
        "auth",
        "bounds",
        "conditional",
        "cors",
        "cursor",
        "dialect",
        "fault",
        "fields",
        "freshness",
        "head",
        "hops",
        "mapping",
        "mount",
        "origin",
        "purge",
        "ratelimit",
        "template",
        "turns",
    ],
    &["openapi", "parameters"],
    &["route"],
    &["breaker", "cache", "flight", "held", "pace", "reading", "supervisor", "tls", "trace"],
    &["audit", "upstream", "viewer"],
    &["credential", "export"],
    &["runtime"],
    &["charge", "gate", "question"],
    &["call"],
    &["explain"],
    &["fetch"],
    &["listing", "respond", "watching"],
    &["batch"],
    &["forward"],
    &["native"],
    &["pipeline"],
    &["rehearsal"],
    &["observe", "socket", "wire"],
    &["admin", "proxy", "upgrade"],
    &["gateway"],
    &["streams"],
    &["accept"],
    &["server"],
    &["command"],
];

/// Lines of a file, tests aside.
const LONGEST: usize = 500;

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, all: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                all.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut all = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    all
}

fn relative(path: &Path) -> String {
    path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap().to_string_lossy().into_owned()
}

fn is_simulator(path: &Path) -> bool {
    relative(path).starts_with("bin/")
}

/// Names after `crate::` in a source, braces at the top level opened.
fn imports(source: &str) -> Vec<String> {
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    source
        .split("crate::")
        .skip(1)
        .map(|rest| rest.split(ends).next().unwrap_or_default().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn nothing_imports_upward_or_sideways() {
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(at, rooms)| rooms.iter().map(move |room| (*room, at))).collect();
    let mut wrong = Vec::new();
    for (path, source) in sources() {
        let name = relative(&path);
        let room = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if is_simulator(&path) || room == "lib" || room == "main" {
            continue;
        }
        let own =
            *floor.get(room.as_str()).unwrap_or_else(|| panic!("{name} is in no floor: add it to tests/structure.rs"));
        let tests = source.find("#[cfg(test)]").unwrap_or(source.len());
        for import in imports(&source[..tests]) {
            match floor.get(import.as_str()) {
                Some(other) if *other < own || import == room => {}
                Some(_) => wrong.push(format!("{name} (floor {own}) imports {import}")),
                None => wrong.push(format!("{name} imports {import}, which is in no floor")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_is_declared_and_every_file_says_what_it_is_for() {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for room in FLOORS.iter().flat_map(|rooms| rooms.iter()) {
        assert!(library.contains(&format!("pub mod {room};")), "{room} is not in lib.rs");
    }
    for (path, source) in sources() {
        assert!(source.starts_with("//! "), "{} does not begin with //!", relative(&path));
        let code = source.find("#[cfg(test)]\n").map_or(&*source, |at| &source[..at]);
        let lines = code.lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines", relative(&path));
    }
}

#[test]
fn providers_are_data() {
    let providers = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/providers")).unwrap();
    let names: Vec<String> =
        providers.map(|p| p.unwrap().path().file_stem().unwrap().to_string_lossy().to_lowercase()).collect();
    assert!(names.len() >= 3);
    for (path, source) in sources().into_iter().filter(|(path, _)| !is_simulator(path)) {
        for name in &names {
            assert!(!source.to_lowercase().contains(name), "{} names {name}", relative(&path));
        }
    }
}

#[test]
fn the_simulator_shares_no_code() {
    for (path, source) in sources().into_iter().filter(|(path, _)| is_simulator(path)) {
        assert!(!source.contains("weir::"), "{} uses the gateway's code", relative(&path));
    }
}
