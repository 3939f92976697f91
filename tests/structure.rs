//! Checks the source layout: folder order, circles, file heads, file sizes, and that vendors are data.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of `src/`, from the top down. A file imports only from its own folder and from the folders after it.
const FOLDERS: &[&str] = &["cli", "server", "pipeline", "fetch", "runtime", "engine", "rules", "config", "base"];

/// Files directly in `src/`: the program, the crate's root and the facade for tests. They may import from every folder.
const ROOT_FILES: &[&str] = &["lib.rs", "main.rs", "testing.rs"];

/// The highest number of lines in a file, without its tests.
const MAX_LINES: usize = 500;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths relative to `directory`, with the text of every Rust file below it.
fn sources(directory: &str) -> BTreeMap<String, String> {
    fn walk(directory: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                all.push(path);
            }
        }
    }
    let (root, mut all) = (repository().join(directory), Vec::new());
    walk(&root, &mut all);
    let relative = |path: &Path| path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
    all.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

fn folder(file: &str) -> &str {
    file.split_once('/').map_or("", |(folder, _)| folder)
}

/// A source without its unit tests and without comments.
fn code(source: &str) -> String {
    let tests = source.find("#[cfg(test)]\nmod tests").unwrap_or(source.len());
    let lines = source[..tests].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Paths that a file names, from the crate's root: `engine::cache`. One for each name in braces.
fn imports(file: &str, source: &str) -> BTreeSet<String> {
    let module = file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent).to_owned();
    let code = code(source);
    let mut found = BTreeSet::new();
    for (prefix, start) in
        [("crate::", String::new()), ("super::", format!("{parent}::")), ("self::", format!("{module}::"))]
    {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
                expand(&start, &code[at + prefix.len()..], &mut found);
            }
        }
    }
    found
}

/// Adds a path to `found`. If the path ends in braces, adds the path of each name in them.
fn expand(start: &str, rest: &str, found: &mut BTreeSet<String>) {
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
    let path = format!("{start}{}", &rest[..end]);
    if !rest[end..].starts_with('{') {
        found.insert(path.trim_end_matches(':').to_owned());
        return;
    }
    let (mut depth, mut item) = (0, end + 1);
    for (at, c) in rest[end..].char_indices().map(|(at, c)| (end + at, c)) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || depth == 0 {
            expand(&path, rest[item..at].trim(), found);
            item = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
}

/// The file that a path leads to: the longest part of it that is a module.
fn file_of<'f>(path: &str, files: &'f BTreeMap<String, String>) -> Option<&'f str> {
    let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    (1..=parts.len()).rev().find_map(|length| {
        let module = parts[..length].join("/");
        let found = [format!("{module}.rs"), format!("{module}/mod.rs")];
        found.iter().find_map(|file| files.get_key_value(file)).map(|(file, _)| file.as_str())
    })
}

#[test]
fn nothing_imports_upward_between_folders() {
    let position = |folder: &str| FOLDERS.iter().position(|name| *name == folder);
    let (files, mut wrong, mut checked) = (sources("src"), Vec::new(), 0);
    for (file, source) in &files {
        let Some(own) = position(folder(file)) else {
            assert!(ROOT_FILES.contains(&file.as_str()), "{file} is in no folder of FOLDERS in tests/structure.rs");
            continue;
        };
        for import in imports(file, source) {
            let other = import.split("::").next().unwrap();
            match position(other) {
                Some(other) if other >= own => checked += 1,
                Some(_) => wrong.push(format!("{file} imports {import}, which is above it")),
                None => wrong.push(format!("{file} imports {import}, which is in no folder")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 400, "only {checked} imports were found: does this test still read them?");
}

#[test]
fn no_two_files_of_a_folder_import_each_other_in_a_circle() {
    let files = sources("src");
    let mut circles = Vec::new();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, source) in &files {
        let paths = imports(file, source);
        let targets = paths.iter().filter_map(|path| file_of(path, &files));
        let inside =
            targets.filter(|other| *other != file && folder(other) == folder(file) && !folder(file).is_empty());
        edges.insert(file, inside.collect());
    }
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 50, "hardly any import inside a folder was found");
    for start in edges.keys() {
        // Files that `start` reaches over one import or more.
        let (mut reached, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(file) = next.pop() {
            for other in edges.get(file).into_iter().flatten() {
                if reached.insert(*other) {
                    next.push(other);
                }
            }
        }
        if reached.contains(start) {
            circles.push(*start);
        }
    }
    assert!(circles.is_empty(), "these files import each other in a circle: {circles:#?}");
}

/// Removes string literals, so that only the code's own words remain.
fn without_literals(code: &str) -> String {
    let outside = |line: &str| line.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    code.lines().map(outside).collect::<Vec<_>>().join("\n")
}

#[test]
fn only_the_pipeline_and_the_server_make_http_problems() {
    const BELOW: [&str; 5] = ["rules", "engine", "fetch", "runtime", "config"];
    let (files, mut made) = (sources("src"), 0);
    for (file, source) in &files {
        let code = without_literals(&code(source));
        let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        if BELOW.contains(&folder(file)) {
            // `Outcome` is a result whose error is a problem.
            for word in ["Problem", "Outcome"] {
                assert!(!words.contains(word), "src/{file} has {word}; return an error of its own instead");
            }
        }
        if folder(file) == "pipeline" && code.contains("Problem::new(") {
            assert_eq!(file, "pipeline/problems.rs", "src/{file} makes a problem; add it to pipeline/problems.rs");
            made += 1;
        }
    }
    assert_eq!(made, 1, "no problem is made in pipeline/problems.rs: does this test still read it?");
}

#[test]
fn every_file_says_what_it_does_and_stays_short() {
    for (file, source) in sources("src").into_iter().chain(sources("sim/src")) {
        assert!(source.starts_with("//! "), "{file} does not begin with //!");
        let lines = source.find("#[cfg(test)]\nmod tests").map_or(&*source, |at| &source[..at]).lines().count();
        assert!(lines <= MAX_LINES, "{file} has {lines} lines");
    }
}

#[test]
fn no_provider_is_named_in_the_source() {
    let providers = fs::read_dir(repository().join("config/providers")).unwrap();
    let names: Vec<String> =
        providers.map(|p| p.unwrap().path().file_stem().unwrap().to_string_lossy().to_lowercase()).collect();
    assert!(names.len() >= 3);
    for (file, source) in sources("src") {
        for name in &names {
            assert!(!source.to_lowercase().contains(name), "{file} names {name}");
        }
    }
}

#[test]
fn the_simulator_shares_no_code_with_the_gateway() {
    let manifest = fs::read_to_string(repository().join("sim/Cargo.toml")).unwrap();
    let dependencies = manifest.split_once("[dependencies]").unwrap().1;
    assert!(!dependencies.lines().any(|line| line.starts_with("weir ")), "sim/Cargo.toml depends on weir");
    for (file, source) in sources("sim/src") {
        assert!(!source.contains("weir::"), "sim/src/{file} uses the gateway's code");
    }
}

/// Phrases that readers had to read twice.
const BANNED: &[&str] = &[
    "a room of its own",
    "as may be",
    "who asks",
    "whoever asks",
    "reckon",
    "came to nothing",
    "comes to nothing",
    "is told",
    "are told",
];

/// Where they must not be.
const SCANNED: &[&str] = &[
    "src",
    "sim",
    "tests",
    "benches",
    "fuzz/fuzz_targets",
    "docs",
    "config",
    "deploy",
    "scripts",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.toml",
    "clippy.toml",
    "build.rs",
    "Dockerfile",
    "docker-compose.yml",
    "Makefile",
];

#[test]
fn private_english_stays_out() {
    let mut found = Vec::new();
    for place in SCANNED {
        assert!(repository().join(place).exists(), "{place} does not exist");
        let mut all = Vec::new();
        text_files(&repository().join(place), &mut all);
        for path in all.iter().filter(|path| !path.ends_with("tests/structure.rs")) {
            // Line breaks do not hide a phrase.
            let text = fs::read_to_string(path).unwrap_or_default().to_lowercase();
            let words: Vec<&str> =
                text.split_whitespace().filter(|word| !matches!(*word, "//" | "///" | "//!" | "#")).collect();
            let text = words.join(" ");
            found.extend(
                BANNED
                    .iter()
                    .filter(|phrase| text.contains(**phrase))
                    .map(|phrase| format!("{}: {phrase}", path.display())),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

fn text_files(path: &Path, all: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            text_files(&entry.unwrap().path(), all);
        }
    } else if path.extension().is_none_or(|extension| {
        ["rs", "md", "yaml", "yml", "py", "sh", "toml", "txt", "html", "js", "service", "conf", "cfg"]
            .iter()
            .any(|known| extension == *known)
    }) {
        all.push(path.to_owned());
    }
}
