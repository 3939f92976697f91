//! Tests of `weir check --strict`, `weir schema` and `weir completions`.

use crate::support::*;
use std::process::Command;

/// Runs `weir check --strict`. Returns the exit code and the warnings, with paths relative to the directory.
fn check_strict(config: &Config) -> (i32, Vec<String>) {
    let output = config.command(&["check", "--strict"]).output().unwrap();
    let directory = format!("{}/", config.directory.path().display());
    let text = String::from_utf8(output.stderr).unwrap().replace(&directory, "");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(lines.pop().is_none_or(|last| last.starts_with("weir: valid, with ")));
    (output.status.code().unwrap(), lines)
}

/// Lowers the limit of connections, so that no warning depends on how many files a process of this machine can open.
fn few_connections(config: Config) -> Config {
    config.edit("weir.yaml", "connections: 20000 ", "connections: 100 ")
}

/// A configuration without warnings.
fn strict_config() -> Config {
    let config = Config::shipped()
        .clients("clients:\n  - id: one\n    keys:\n      - sha256: SHA(one)\n    rate_limit: standard\n");
    let key = "0123456789abcdef0123456789abcdef";
    let config = few_connections(config);
    ["VECTARA_API_KEY", "PALANTIR_TOKEN", "AGENTHUMAN_API_KEY", "WEIR_PAGE_TOKEN_KEY"]
        .into_iter()
        .fold(config, |config, name| config.env(name, key))
}

/// Asserts that exactly one warning has this place and message, that it says after `; ` what would be better, and that
/// `weir check` without `--strict` passes.
fn assert_warning(config: &Config, place: &str, message: &str) {
    let (code, warnings) = check_strict(config);
    let fits = |line: &String| line.starts_with(place) && line.contains(message) && line.contains("; ");
    assert!(code == 1 && warnings.iter().filter(|line| fits(line)).count() == 1, "{place} {message}: {warnings:#?}");
    assert_eq!(config.check().0, 0, "a warning is not a fault");
}

/// A certificate that expires `days` days from now (negative: ago), and its key, as PEM.
fn certificate(days: i64) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let today = std::time::SystemTime::now();
    let end = today + std::time::Duration::from_secs(u64::try_from((days + 4000) * 86_400).unwrap());
    params.not_after = (end - std::time::Duration::from_secs(4000 * 86_400)).into();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_strict_configuration_has_no_warnings_and_the_shipped_one_has_five() {
    let (code, warnings) = check_strict(&strict_config());
    assert_eq!((code, warnings), (0, Vec::new()));
    let config = few_connections(Config::shipped());
    std::fs::copy(repository().join("config/clients.yaml"), config.path("clients.yaml")).unwrap();
    let (code, warnings) = check_strict(&config);
    assert_eq!((code, warnings.len()), (1, 5), "{warnings:#?}");
    assert!(warnings[0].starts_with("clients.yaml:") && warnings[0].contains("the key of the demo, which is public"));
    assert_eq!(warnings.iter().filter(|line| line.contains("the credential is empty")).count(), 3);
    assert!(warnings[4].contains("page tokens become invalid at every restart"));
}

#[test]
fn a_field_of_an_example_that_is_null_although_the_provider_sends_something_has_a_warning() {
    let file = "examples/vectara/get.native.json";
    let native = |member: &str, value: &str| {
        let config = strict_config();
        let mut body: serde_json::Value = serde_json::from_str(&config.read(file)).unwrap();
        body[member] = serde_json::from_str(value).unwrap();
        config.write(file, &body.to_string());
        config
    };
    let unified = |config: Config, member: &str, value: &str| {
        let file = "examples/vectara/get.unified.json";
        let mut body: serde_json::Value = serde_json::from_str(&config.read(file)).unwrap();
        body[member] = serde_json::from_str(value).unwrap();
        config.write(file, &body.to_string());
        config
    };
    let place = "examples/vectara/get.native.json:1:1: ";
    assert_warning(
        &unified(native("created_at", "1705314600"), "created_at", "null"),
        place,
        "created_at is null, although the provider sends number at $.created_at (wrong_type); correct the rule",
    );
    assert_warning(
        &unified(native("enabled", "\"perhaps\""), "status", "\"unknown\""),
        place,
        "although the provider sends string \"perhaps\" at $.enabled (unknown_value)",
    );
    // A list names the session.
    let file = "examples/vectara/list";
    let config = strict_config();
    let (mut sent, mut expected): (serde_json::Value, serde_json::Value) = (
        serde_json::from_str(&config.read(&format!("{file}.native.json"))).unwrap(),
        serde_json::from_str(&config.read(&format!("{file}.unified.json"))).unwrap(),
    );
    sent["sessions"][1]["created_at"] = true.into();
    expected["sessions"][1]["created_at"] = serde_json::Value::Null;
    config.write(&format!("{file}.native.json"), &sent.to_string());
    config.write(&format!("{file}.unified.json"), &expected.to_string());
    assert_warning(&config, "examples/vectara/list.native.json:1:1: ", "created_at of session 1 is null, although");
}

#[test]
fn each_weak_setting_has_a_warning_at_its_place() {
    let weir = |from: &str, to: &str| strict_config().edit("weir.yaml", from, to);
    let listen = "${WEIR_LISTEN:-127.0.0.1:8080}";
    assert_warning(&weir(listen, "0.0.0.0:8080"), "weir.yaml:", "keys and responses cross the network without TLS");
    let trusting = weir(listen, "0.0.0.0:8080").edit("weir.yaml", "admin:", "trusted_proxies: [10.0.0.0/8]\n\nadmin:");
    assert_eq!(check_strict(&trusting), (0, Vec::new()), "the trusted proxy terminates TLS");
    assert_warning(
        &trusting.edit("weir.yaml", "10.0.0.0/8", "0.0.0.0/0"),
        "weir.yaml:",
        "every client can forge its address",
    );
    let public = weir("${WEIR_ADMIN:-127.0.0.1:8081}", "0.0.0.0:8081").env("WEIR_ADMIN_TOKEN", "short");
    assert_warning(&public, "weir.yaml:", "the admin listener is on the network");
    assert_warning(&public, "weir.yaml:", "admin.token is too short");
    let long = public.env("WEIR_ADMIN_TOKEN", &"x".repeat(32));
    assert_eq!(check_strict(&long).1.len(), 1);
    assert_warning(&weir("access_log: on", "access_log: off"), "weir.yaml:", "access_log is off");
    assert_warning(&weir("max_bytes: 256MiB", "max_bytes: 1MiB"), "weir.yaml:", "stores few responses");
    assert_warning(&weir("grace: 10s", "grace: 1s"), "weir.yaml:", "cuts requests off after 1000 ms");
    assert_warning(
        &strict_config().env("WEIR_PAGE_TOKEN_KEY", "short"),
        "weir.yaml:",
        "of 5 characters can be guessed",
    );
    let off = weir(
        "  auth_failures:                         # from one address (an IPv6 /64); then 429 instead of 401\n    requests: 120\n    per: 1m\n",
        "  auth_failures: off\n",
    );
    assert_warning(&off, "weir.yaml:", "failed authentications are not limited");
    assert_warning(&weir("admin:", "cors: { origins: [\"*\"] }\n\nadmin:"), "weir.yaml:", "pages of any origin");

    let client = |yaml: &str| {
        strict_config().clients(&format!("clients:\n  - id: one\n    keys: [ {{ sha256: SHA(one){yaml}\n"))
    };
    assert_warning(&client(" } ]"), "clients.yaml:2:9: client \"one\" has no rate limit", "has no rate limit");
    assert_warning(
        &client(", expires_at: 2020-01-01T00:00:00Z } ]\n    rate_limit: standard"),
        "clients.yaml:3:13:",
        "expired on 2020-01-01",
    );
    let soon = in_days(20);
    assert_warning(
        &client(&format!(", expires_at: {soon} }} ]\n    rate_limit: standard")),
        "clients.yaml:3:13:",
        "in 19 days",
    );
    let later = in_days(40);
    assert_eq!(
        check_strict(&client(&format!(", expires_at: {later} }} ]\n    rate_limit: standard"))),
        (0, Vec::new())
    );
    let without_keys = strict_config().clients("clients:\n  - { id: one, keys: [], rate_limit: standard }\n");
    assert_warning(&without_keys, "clients.yaml:2:", "has no key");

    let provider = |from: &str, to: &str| strict_config().edit("providers/vectara.yaml", from, to);
    assert_warning(
        &provider("https://api.vectara.io", "http://api.vectara.io"),
        "providers/vectara.yaml:5:",
        "use https://",
    );
    assert_eq!(check_strict(&provider("https://api.vectara.io", "http://127.0.0.1:9")).0, 0, "loopback needs no TLS");
    assert_warning(
        &provider("stale_if_error: 10m", "stale_if_error: 0s"),
        "providers/vectara.yaml:",
        "even if a stale response is stored",
    );
    assert_warning(&provider("  max: 1h ", "  max: 0s "), "providers/vectara.yaml:", "are not cached");
    let connect = provider("connect_timeout: 2s ", "connect_timeout: 11s ");
    assert_warning(&connect, "providers/vectara.yaml:", "never ends before upstream.timeout (10000 ms)");
    assert_eq!(check_strict(&provider("connect_timeout: 2s ", "connect_timeout: 10s ")).0, 0);
    let open = provider("agent: '^agt_[0-9a-zA-Z_-]+$'", "agent: '^agt_[0-9a-zA-Z_-]+'");
    assert_warning(&open, "providers/vectara.yaml:", "also matches a part of an id");
    let huge = weir("max_bytes: 256MiB", "max_bytes: 100000GiB");
    assert_warning(&huge, "weir.yaml:", "Weir may take 307200512 MiB");
    let breaker =
        "  breaker:                               # consecutive failures open it\n    failures: 5\n    open_for: 10s\n";
    assert_warning(&provider(breaker, ""), "providers/vectara.yaml:", "every request to it waits for a timeout");
    let oauth = "credentials: { oauth2: { token_url: \"http://login.example/t\", client_id: a, client_secret: b } }";
    assert_warning(
        &provider("credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }", oauth),
        "providers/vectara.yaml:",
        "the client secret crosses",
    );
}

/// The time `days` days from now, less one hour, as RFC 3339.
fn in_days(days: u64) -> String {
    let at = std::time::SystemTime::now() + std::time::Duration::from_secs(days * 86_400 - 3600);
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    weir::testing::Time(i64::try_from(since).unwrap()).rfc3339()
}

#[test]
fn a_certificate_near_its_expiry_has_a_warning() {
    let tls = |days: i64| {
        let config = strict_config();
        let (certificate, key) = certificate(days);
        config.write("c.pem", &certificate);
        config.write("k.pem", &key);
        config.edit(
            "weir.yaml",
            "${WEIR_LISTEN:-127.0.0.1:8080}\n",
            "0.0.0.0:8443\n    tls: { certificate: c.pem, key: k.pem }\n",
        )
    };
    assert_eq!(check_strict(&tls(90)), (0, Vec::new()));
    assert_warning(&tls(10), "weir.yaml:7:25:", "the certificate expires on ");
    assert_warning(&tls(-10), "weir.yaml:7:25:", "the certificate expired on ");
}

#[test]
fn with_faults_no_warnings_are_printed() {
    let (code, printed) = check_strict_unparsed(&strict_config().edit("weir.yaml", "grace: 10s", "grace: soon"));
    assert!(code == 1 && printed.contains("is not a duration") && !printed.contains("valid, with"), "{printed}");
}

fn check_strict_unparsed(config: &Config) -> (i32, String) {
    let output = config.command(&["check", "--strict"]).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn schemas_and_completions_are_printed() {
    let config = Config::shipped();
    let printed = |arguments: &[&str]| {
        let output = config.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for name in ["weir", "clients", "provider"] {
        let shipped = std::fs::read_to_string(repository().join(format!("config/schema/{name}.json"))).unwrap();
        assert_eq!(printed(&["schema", name]), shipped);
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("upgrade") && script.contains("completions"), "{shell}");
    }
    // Real bash completes `weir che`.
    let script = config.path("weir.bash");
    std::fs::write(&script, printed(&["completions", "bash"])).unwrap();
    let complete = format!(
        "source {}; COMP_WORDS=(weir che); COMP_CWORD=1; _weir weir che weir; echo \"${{COMPREPLY[*]}}\"",
        script.display()
    );
    let output = Command::new("bash").args(["--norc", "-c", &complete]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "check", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(config.command(&["completions", "cmd"]).output().unwrap().status.code(), Some(2));
}
