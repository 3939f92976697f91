//! What `weir check --strict` finds; schemas and completions as printed.

use crate::support::*;
use std::process::Command;

/// The findings, without the directory before them.
fn strict(config: &Config) -> (i32, Vec<String>) {
    let output = config.command(&["check", "--strict"]).output().unwrap();
    let directory = format!("{}/", config.directory.path().display());
    let text = String::from_utf8(output.stderr).unwrap().replace(&directory, "");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(lines.pop().is_none_or(|last| last.starts_with("weir: nothing is wrong, but ")));
    (output.status.code().unwrap(), lines)
}

/// Nothing to be found in it.
fn strong() -> Config {
    let config = Config::shipped()
        .clients("clients:\n  - id: one\n    keys:\n      - sha256: SHA(one)\n    rate_limit: standard\n");
    let key = "0123456789abcdef0123456789abcdef";
    ["VECTARA_API_KEY", "PALANTIR_TOKEN", "AGENTHUMAN_API_KEY", "WEIR_PAGE_TOKEN_KEY"]
        .into_iter()
        .fold(config, |config, name| config.env(name, key))
}

fn find(config: &Config, place: &str, message: &str) {
    let (code, found) = strict(config);
    let fits = |line: &String| line.starts_with(place) && line.contains(message) && line.contains("; ");
    assert!(code == 1 && found.iter().filter(|line| fits(line)).count() == 1, "{place} {message}: {found:#?}");
    assert_eq!(config.check().0, 0, "it is not wrong");
}

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
fn a_strong_configuration_has_no_findings_and_the_shipped_one_has_those_it_should() {
    let (code, found) = strict(&strong());
    assert_eq!((code, found), (0, Vec::new()));
    let config = Config::shipped();
    std::fs::copy(repository().join("config/clients.yaml"), config.path("clients.yaml")).unwrap();
    let (code, found) = strict(&config);
    assert_eq!((code, found.len()), (1, 5), "{found:#?}");
    assert!(found[0].starts_with("clients.yaml:") && found[0].contains("the key of the demo, which everybody knows"));
    assert_eq!(found.iter().filter(|line| line.contains("the credential is empty")).count(), 3);
    assert!(found[4].contains("page tokens end with every restart"));
}

#[test]
fn what_is_weak_is_found_where_it_stands() {
    let weir = |from: &str, to: &str| strong().edit("weir.yaml", from, to);
    let listen = "${WEIR_LISTEN:-127.0.0.1:8080}";
    find(&weir(listen, "0.0.0.0:8080"), "weir.yaml:", "keys and answers cross the network in the clear");
    let trusting = weir(listen, "0.0.0.0:8080").edit("weir.yaml", "admin:", "trusted_proxies: [10.0.0.0/8]\n\nadmin:");
    assert_eq!(strict(&trusting), (0, Vec::new()), "TLS is the proxy's");
    find(&trusting.edit("weir.yaml", "10.0.0.0/8", "0.0.0.0/0"), "weir.yaml:", "anybody is believed");
    let public = weir("${WEIR_ADMIN:-127.0.0.1:8081}", "0.0.0.0:8081").env("WEIR_ADMIN_TOKEN", "short");
    find(&public, "weir.yaml:", "the network reaches the admin listener");
    find(&public, "weir.yaml:", "the admin token is short");
    let long = public.env("WEIR_ADMIN_TOKEN", &"x".repeat(32));
    assert_eq!(strict(&long).1.len(), 1);
    find(&weir("access_log: on", "access_log: off"), "weir.yaml:", "access_log is off");
    find(&weir("max_bytes: 256MiB", "max_bytes: 1MiB"), "weir.yaml:", "holds few answers");
    find(&weir("grace: 10s", "grace: 1s"), "weir.yaml:", "cuts requests off after 1000 ms");
    find(&strong().env("WEIR_PAGE_TOKEN_KEY", "short"), "weir.yaml:", "of 5 characters can be guessed");
    let off = weir(
        "  auth_failures:                         # from one address (an IPv6 /64); then 429 instead of 401\n    requests: 120\n    per: 1m\n",
        "  auth_failures: off\n",
    );
    find(&off, "weir.yaml:", "guessed as fast as connections allow");
    find(&weir("admin:", "cors: { origins: [\"*\"] }\n\nadmin:"), "weir.yaml:", "pages of any origin");

    let client =
        |yaml: &str| strong().clients(&format!("clients:\n  - id: one\n    keys: [ {{ sha256: SHA(one){yaml}\n"));
    find(&client(" } ]"), "clients.yaml:2:9: client \"one\" has no limit", "has no limit");
    find(
        &client(", expires_at: 2020-01-01T00:00:00Z } ]\n    rate_limit: standard"),
        "clients.yaml:3:13:",
        "ended on 2020-01-01",
    );
    let soon = in_days(20);
    find(&client(&format!(", expires_at: {soon} }} ]\n    rate_limit: standard")), "clients.yaml:3:13:", "in 19 days");
    let later = in_days(40);
    assert_eq!(strict(&client(&format!(", expires_at: {later} }} ]\n    rate_limit: standard"))), (0, Vec::new()));
    let none = strong().clients("clients:\n  - { id: one, keys: [], rate_limit: standard }\n");
    find(&none, "clients.yaml:2:", "has no key");

    let provider = |from: &str, to: &str| strong().edit("providers/vectara.yaml", from, to);
    find(&provider("https://api.vectara.io", "http://api.vectara.io"), "providers/vectara.yaml:5:", "use https://");
    assert_eq!(strict(&provider("https://api.vectara.io", "http://127.0.0.1:9")).0, 0, "it does not leave the machine");
    find(
        &provider("stale_if_error: 10m", "stale_if_error: 0s"),
        "providers/vectara.yaml:",
        "though an answer may be stored",
    );
    find(&provider("  max: 1h ", "  max: 0s "), "providers/vectara.yaml:", "are not cached");
    let breaker =
        "  breaker:                               # consecutive failures open it\n    failures: 5\n    open_for: 10s\n";
    find(&provider(breaker, ""), "providers/vectara.yaml:", "every request waits for it");
    let oauth = "credentials: { oauth2: { token_url: \"http://login.example/t\", client_id: a, client_secret: b } }";
    find(
        &provider("credentials: { header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }", oauth),
        "providers/vectara.yaml:",
        "the client secret crosses",
    );
}

/// A moment so many days from now, less an hour.
fn in_days(days: u64) -> String {
    let at = std::time::SystemTime::now() + std::time::Duration::from_secs(days * 86_400 - 3600);
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    weir::model::Time(i64::try_from(since).unwrap()).rfc3339()
}

#[test]
fn a_certificate_near_its_end_is_found() {
    let tls = |days: i64| {
        let config = strong();
        let (certificate, key) = certificate(days);
        config.write("c.pem", &certificate);
        config.write("k.pem", &key);
        config.edit(
            "weir.yaml",
            "${WEIR_LISTEN:-127.0.0.1:8080}\n",
            "0.0.0.0:8443\n    tls: { certificate: c.pem, key: k.pem }\n",
        )
    };
    assert_eq!(strict(&tls(90)), (0, Vec::new()));
    find(&tls(10), "weir.yaml:7:25:", "the certificate ends on ");
    find(&tls(-10), "weir.yaml:7:25:", "the certificate ended on ");
}

#[test]
fn faults_come_before_findings() {
    let (code, found) = strict_raw(&strong().edit("weir.yaml", "grace: 10s", "grace: soon"));
    assert!(code == 1 && found.contains("is not a duration") && !found.contains("could be better"), "{found}");
}

fn strict_raw(config: &Config) -> (i32, String) {
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
    // What bash itself makes of it.
    let script = config.path("weir.bash");
    std::fs::write(&script, printed(&["completions", "bash"])).unwrap();
    let ask = format!(
        "source {}; COMP_WORDS=(weir che); COMP_CWORD=1; _weir weir che weir; echo \"${{COMPREPLY[*]}}\"",
        script.display()
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "check", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(config.command(&["completions", "cmd"]).output().unwrap().status.code(), Some(2));
}
