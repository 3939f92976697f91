//! Clients that other tools generate from the OpenAPI description, used against the running gateway.

use crate::support::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn start(sim: &Sim) -> Weir {
    Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: once, keys: [ { sha256: SHA(once) } ], rate_limit: once }\n")
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  once:\n    requests: 1\n    per: 1h\n")
        .start(sim)
}

fn output(command: &mut Command) -> (Output, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

/// Writes the description of the running gateway to a file of this directory.
fn write_description(weir: &Weir, directory: &Path) -> PathBuf {
    let file = directory.join("openapi.json");
    std::fs::write(&file, send(weir.http, "GET", "/openapi.json", &[]).body).unwrap();
    file
}

#[test]
fn generated_python_clients_lost_the_bodies_of_errors() {
    let programs = repository().join("target/openapi/bin");
    let generator = programs.join("openapi-python-client");
    if !require_tool("openapi-python-client", generator.exists()) {
        return;
    }
    let sim = Sim::with_options(&["--sessions", "57"]);
    let weir = start(&sim);
    let directory = tempfile::TempDir::new().unwrap();
    let description = write_description(&weir, directory.path());
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let (generated, text) = output(
        Command::new(generator)
            .args(["generate", "--fail-on-warning", "--output-path", "generated", "--path"])
            .arg(description)
            .current_dir(directory.path())
            .env("PATH", path),
    );
    assert!(generated.status.success() && !text.to_lowercase().contains("warning"), "{text}");
    let (read, text) = output(
        Command::new(programs.join("python"))
            .arg(repository().join("tests/openapi/client.py"))
            .env("PYTHONPATH", directory.path().join("generated"))
            .env("WEIR", weir.http.to_string()),
    );
    assert!(read.status.success() && text.ends_with("ok\n"), "{text}");
}

#[test]
fn generated_typescript_types_had_objects_without_members() {
    let modules = repository().join("target/openapi/linter/node_modules");
    let installed =
        ["openapi-typescript", "openapi-fetch", "typescript"].iter().all(|name| modules.join(name).exists());
    if !require_tool("openapi-typescript", installed) {
        return;
    }
    let sim = Sim::with_options(&["--sessions", "57"]);
    let weir = start(&sim);
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    let description = write_description(&weir, here);
    std::os::unix::fs::symlink(&modules, here.join("node_modules")).unwrap();
    std::fs::write(here.join("package.json"), r#"{ "type": "module", "private": true }"#).unwrap();
    std::fs::copy(repository().join("tests/openapi/client.ts"), here.join("client.ts")).unwrap();
    let program = |name: &str| Command::new(modules.join(".bin").join(name));
    let (generated, text) =
        output(program("openapi-typescript").arg(description).args(["--output", "weir.d.ts"]).current_dir(here));
    assert!(generated.status.success() && !text.to_lowercase().contains("warn"), "{text}");
    let options = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom"];
    let (compiled, text) = output(program("tsc").args(options).arg("client.ts").current_dir(here));
    assert!(compiled.status.success() && text.is_empty(), "{text}");
    let (read, text) =
        output(Command::new("node").arg("client.js").current_dir(here).env("WEIR", weir.http.to_string()));
    assert!(read.status.success() && text.starts_with("ok"), "{text}");
}

/// Finds the schemas that generators misread: a `const`, an `enum` without a type, an object that says nothing about its
/// members.
fn misread(at: &str, node: &Value, found: &mut Vec<String>) {
    match node {
        Value::Object(members) => {
            let typeless = |key: &str| members.get(key).is_some_and(Value::is_array) && !members.contains_key("type");
            let object = members.get("type").is_some_and(|kind| kind == "object");
            let described = ["properties", "additionalProperties"].iter().any(|key| members.contains_key(*key));
            if members.contains_key("const") || typeless("enum") || object && !described {
                found.push(at.to_owned());
            }
            let schemas = members.iter().filter(|(name, _)| !matches!(name.as_str(), "example" | "examples" | "value"));
            schemas.for_each(|(name, child)| misread(&format!("{at}/{name}"), child, found));
        }
        Value::Array(items) => items.iter().for_each(|item| misread(at, item, found)),
        _ => {}
    }
}

#[test]
fn the_description_had_schemas_that_generators_misread() {
    let sim = Sim::start();
    let weir = start(&sim);
    let mut found = Vec::new();
    misread("", &send(weir.http, "GET", "/openapi.json", &[]).json(), &mut found);
    assert!(found.is_empty(), "{found:#?}");
}
