//! The JSON schemas that `weir schema` prints: they match the shipped files, and they agree with the decoder.

#![allow(clippy::unwrap_used, clippy::panic)]

use jsonschema::Validator;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use weir::testing::{ConfigSource, SchemaFile as File, load_config as load, schema};

const FILES: [(File, &str); 3] = [(File::Weir, "weir"), (File::Clients, "clients"), (File::Provider, "provider")];

fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn validator(file: File) -> Validator {
    let schema = schema(file);
    assert!(jsonschema::meta::is_valid(&schema), "the schema is not a valid JSON schema");
    jsonschema::draft202012::new(&schema).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Returns the shipped configuration files with their kinds.
fn shipped() -> Vec<(File, PathBuf)> {
    let mut all = vec![(File::Weir, "weir.yaml".into()), (File::Clients, "clients.yaml".into())];
    for entry in fs::read_dir(config().join("providers")).unwrap() {
        all.push((File::Provider, Path::new("providers").join(entry.unwrap().file_name())));
    }
    assert!(all.len() >= 5);
    all
}

#[test]
fn the_shipped_schemas_match_the_printed_ones() {
    for (file, name) in FILES {
        let path = config().join(format!("schema/{name}.json"));
        let printed = format!("{:#}\n", schema(file));
        assert!(
            fs::read_to_string(&path).unwrap() == printed,
            "config/schema/{name}.json is outdated; run: weir schema {name} > config/schema/{name}.json"
        );
    }
}

#[test]
fn the_shipped_files_are_valid_by_their_schema_and_name_it() {
    for (file, path) in shipped() {
        let text = fs::read_to_string(config().join(&path)).unwrap();
        let errors: Vec<String> =
            validator(file).iter_errors(&yaml(&text)).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
        let line = text.lines().next().unwrap();
        let named = line.strip_prefix("# yaml-language-server: $schema=").unwrap_or_else(|| panic!("{line}"));
        let (_, name) = FILES.iter().find(|(known, _)| *known == file).unwrap();
        let named = config().join(path.parent().unwrap()).join(named).canonicalize().unwrap();
        assert_eq!(named, config().join(format!("schema/{name}.json")).canonicalize().unwrap());
    }
    let documentation = fs::read_to_string(config().join("../docs/CONFIGURATION.md")).unwrap();
    let provider = documentation.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(validator(File::Provider).is_valid(&yaml(provider)));
}

/// Returns all variants with one change: a value replaced by another one, a key removed, or a key misspelt. Each has a
/// description.
fn variants(value: &Value, replacements: &[Value]) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = replacements
        .iter()
        .filter(|other| *other != value)
        .map(|other| (format!("= {other}"), other.clone()))
        .collect();
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                for (change, member) in variants(member, replacements) {
                    let mut with = members.clone();
                    with.insert(key.clone(), member);
                    all.push((format!("{key} {change}"), with.into()));
                }
                let mut without = members.clone();
                without.shift_remove(key);
                all.push((format!("without {key}"), without.clone().into()));
                without.insert(format!("{key}x"), member.clone());
                all.push((format!("{key} misspelt"), without.into()));
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                for (change, item) in variants(item, replacements) {
                    let mut with = items.clone();
                    with[at] = item;
                    all.push((format!("{at} {change}"), with.into()));
                }
            }
        }
        _ => {}
    }
    all
}

/// Adds keys that the shipped files do not use.
fn with_all_keys(file: File, mut value: Value) -> Value {
    match file {
        File::Weir => {
            value["trusted_proxies"] = json!(["10.0.0.0/8"]);
            value["cors"] = json!({ "origins": ["https://app.example"], "max_age": "10m" });
            value["listen"][0]["h2c"] = json!(true);
            value["rate_limits"]["careful"]["charge"] = json!("misses");
            value["limits"]["auth_failures"]["burst"] = json!(200);
        }
        File::Clients => {
            let client = &mut value["clients"][0];
            client["providers"] = json!(["vectara", "agenthuman"]);
            client["reveal_secrets"] = json!(true);
            client["native"] = json!(false);
            client["keys"][0]["expires_at"] = json!("2999-01-01T00:00:00Z");
            client["credentials"] =
                json!({ "vectara": { "header": "x-api-key", "value": "a" }, "agenthuman": { "bearer": "b" } });
        }
        File::Provider => {
            value["native"]["hosts"] = json!(["a.example:80"]);
            value["upstream"]["capacity"]["burst"] = json!(5);
        }
    }
    value
}

/// Collects the keys of a schema as paths from the top.
fn keys(schema: &Value, path: &str, all: &mut Vec<String>) {
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        all.push(format!("{path}.{key}"));
        keys(value, &format!("{path}.{key}"), all);
    }
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        keys(form, path, all);
    }
    for (name, suffix) in [("items", "[]"), ("additionalProperties", ".*")] {
        if schema[name].is_object() {
            keys(&schema[name], &format!("{path}{suffix}"), all);
        }
    }
    all.sort();
    all.dedup();
}

/// Decodes the directory after one file is replaced by this value. Returns the faults if there are any.
fn decode(directory: &Path, path: &Path, value: &Value) -> Result<(), Vec<String>> {
    // YAML includes JSON.
    fs::write(directory.join(path), value.to_string()).unwrap();
    let mut source = ConfigSource::new(directory);
    source.overlay.insert("WEIR_ADMIN_TOKEN".into(), "t".into());
    let loaded = load(&source);
    let faults: Vec<String> = loaded.faults.sorted().iter().map(ToString::to_string).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn the_decoder_refuses_what_the_schema_refuses_and_both_know_the_same_keys() {
    let replacements = [
        json!(3),
        json!(true),
        json!("word"),
        json!("30s"),
        json!("${HOME}"),
        json!([]),
        json!([[1]]),
        json!({ "a": {} }),
    ];
    let directory = tempfile::tempdir().unwrap();
    copy(&config(), directory.path());
    for example in ["examples/agenthuman", "examples/palantir", "examples/vectara"] {
        fs::remove_dir_all(directory.path().join(example)).unwrap();
    }
    let (mut tried, mut refused) = (0, 0);
    for (file, path) in shipped() {
        let validator = validator(file);
        let good = with_all_keys(file, yaml(&fs::read_to_string(config().join(&path)).unwrap()));
        assert_eq!(decode(directory.path(), &path, &good), Ok(()));
        let errors: Vec<String> = validator.iter_errors(&good).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        for (change, changed) in variants(&good, &replacements) {
            let (valid, decoded) = (validator.is_valid(&changed), decode(directory.path(), &path, &changed));
            tried += 1;
            refused += usize::from(!valid);
            assert!(valid || decoded.is_err(), "{}: only the schema refuses {change}", path.display());
            let unknown = decoded.is_err_and(|faults| faults.iter().any(|fault| fault.contains("unknown key")));
            assert!(!(valid && unknown), "{}: only the decoder refuses a key as unknown: {change}", path.display());
        }
        fs::copy(config().join(&path), directory.path().join(&path)).unwrap();
    }
    assert!(tried > 3000 && refused > 1000, "{refused} of {tried}");
}

#[test]
fn the_schemas_contain_keys_of_every_part_of_the_configuration() {
    let mut all = Vec::new();
    FILES.iter().for_each(|(file, name)| keys(&schema(*file), name, &mut all));
    for key in [
        "weir.listen[].tls.client_ca",
        "weir.access_log.sample",
        "weir.limits.auth_failures.per",
        "weir.rate_limits.*.charge",
        "weir.upgrade.socket",
        "clients.clients[].provider_rate_limits",
        "clients.clients[].keys[].sha256",
        "clients.clients[].credentials.*.oauth2.client_secret.file",
        "provider.session.agent.avatar_url.secret",
        "provider.session.status.values",
        "provider.errors.rules[].when.matches",
        "provider.native.errors.headers[].retry_after_over",
        "provider.freshness.by_status",
        "provider.upstream.breaker.open_for",
    ] {
        assert!(all.iter().any(|known| known == key), "no schema has {key}: {all:#?}");
    }
}
