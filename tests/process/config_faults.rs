//! Tests of configuration faults: each has its own message and place, and none hides another.

use crate::support::*;

/// Replaces `from` by `to` in a file and expects a fault with `message`, at the line and column of `needle`.
fn assert_fault(file: &str, from: &str, to: &str, needle: &str, message: &str) {
    let config = Config::shipped().edit(file, from, to);
    let (code, lines) = config.check();
    assert_eq!(code, 1, "{message}: {lines:?}");
    let line =
        lines.iter().find(|line| line.contains(message)).unwrap_or_else(|| panic!("{message:?} is not in {lines:#?}"));
    let text = config.read(file);
    let at = text.find(needle).unwrap_or_else(|| panic!("{needle:?} is not in {file}"));
    let before = &text[..at];
    let (line_number, column) =
        (before.matches('\n').count() + 1, before.len() - before.rfind('\n').map_or(0, |n| n + 1) + 1);
    assert!(line.starts_with(&format!("{file}:{line_number}:{column}: ")), "{line} is not at {line_number}:{column}");
}

#[test]
fn the_message_for_an_unknown_key_names_each_known_key_once() {
    let (code, lines) = Config::shipped().edit("weir.yaml", "workers: 0", "workers: 0\nzzzzzzzz: 1").check();
    assert_eq!(code, 1, "{lines:?}");
    let line = lines.iter().find(|line| line.contains("unknown key \"zzzzzzzz\"")).expect("a fault for the key");
    let known: Vec<&str> = line.split("expected one of: ").nth(1).expect("a list of keys").split(", ").collect();
    let distinct: std::collections::BTreeSet<&str> = known.iter().copied().collect();
    assert!(known.contains(&"page_tokens") && known.len() == distinct.len(), "{line}");
}

#[test]
fn each_fault_has_its_own_message_and_place() {
    let (vectara, weir, clients) = ("providers/vectara.yaml", "weir.yaml", "clients.yaml");
    assert_fault(
        vectara,
        "max_body: 4MiB",
        "max_bdy: 4MiB",
        "max_bdy",
        "unknown key \"max_bdy\"; did you mean \"max_body\"?",
    );
    assert_fault(
        vectara,
        "'^agt_[0-9a-zA-Z_-]+$'",
        "'^agt_(+$'",
        "'^agt_(+",
        "is not a regular expression: repetition operator missing expression",
    );
    assert_fault(
        vectara,
        "created_at: $.created_at",
        "created_at: $.created_at[",
        "$.created_at[",
        "is not a JSONPath",
    );
    assert_fault(vectara, "created_at: $.created_at", "created_at: creatd_at", "creatd_at", "it must start with $");
    assert_fault(
        vectara,
        "settle: 2m ",
        "settle: 2 minutes ",
        "2 minutes",
        "\"2 minutes\" is not a duration; write one integer and a unit",
    );
    assert_fault(vectara, "max_body: 4MiB", "max_body: 4MB", "4MB", "is not a size");
    assert_fault(
        vectara,
        "${VECTARA_BASE_URL:-https://api.vectara.io}",
        "${VECTARA_NOT_SET}",
        "${VECTARA_NOT_SET}",
        "the environment variable VECTARA_NOT_SET is not set",
    );
    assert_fault(
        vectara,
        "${VECTARA_BASE_URL:-https://api.vectara.io}",
        "api.vectara.io",
        "api.vectara.io",
        "is not a base URL",
    );
    assert_fault(
        vectara,
        "\"false\": disabled",
        "\"false\": disbled",
        "disbled",
        "unknown status \"disbled\"; did you mean \"disabled\"?",
    );
    assert_fault(vectara, "sessions/{session}\n", "sessions/{sesion}\n", "GET /v2", "{sesion} is not a variable");
    assert_fault(vectara, "sessions/{session}\n", "sessions/x\n", "GET /v2", "get_session must have {session}");
    assert_fault(
        vectara,
        "code: agent_not_found",
        "code: agent_not_fond",
        "agent_not_fond",
        "unknown code \"agent_not_fond\"; did you mean \"agent_not_found\"?",
    );
    assert_fault(
        vectara,
        "  provider_session_id: [$.key, $.id]\n",
        "",
        "agent:\n    id: $.agent_key",
        "session.provider_session_id is required",
    );
    assert_fault(vectara, "ended: 24h", "endd: 24h", "endd", "unknown status \"endd\"");
    assert_fault(
        vectara,
        "value: \"${VECTARA_API_KEY:-}\"",
        "value: { file: /no/such }",
        "/no/such",
        "cannot read secret file \"/no/such\"",
    );
    assert_fault(
        vectara,
        "credentials: { header: x-api-key,",
        "credentials: { header: content-length,",
        "content-length",
        "not a header that can carry a credential",
    );
    assert_fault(vectara, "base_url:", "base_ur:", "base_ur:", "did you mean \"base_url\"?");
    assert_fault(vectara, "base_url:", "base_ur:", "name: vectara", "missing key \"base_url\"");
    assert_fault(
        vectara,
        "matches: \"(?i)session\"",
        "matches: \"(?i)session[\"",
        "\"(?i)session[",
        "is not a regular expression",
    );
    assert_fault(
        vectara,
        "secrets: [$.secrets]",
        "secrets: ['$.secrets[0]']",
        "'$.secrets[0]'",
        "is secret, so it must name one member",
    );
    assert_fault(
        vectara,
        "title: [$.name, $.description]",
        "title: [$.secrets, $.description]",
        "$.secrets",
        "is secret, but title shows it",
    );
    assert_fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [], rate_limit: [standard, standard] }\n",
        "standard] }",
        "duplicate rate limit \"standard\"",
    );
    assert_fault(
        clients,
        "clients:\n",
        "clients:\n  - id: x\n    keys: []\n    providers:\n      # - vectara\n",
        "providers:\n",
        "\"providers\" has no value",
    );
    assert_fault(weir, "burst: 10", "burst: none", "none", "is not a whole number from 1");
    assert_fault(weir, "workers: 0", "workers: 100000", "100000", "are too many; at most 1024");
    assert_fault(
        weir,
        "per: 1m\n    burst: 10",
        "per: 365d\n    burst: 4000000000",
        "careful:",
        "more than a year to fill",
    );
    assert_fault(weir, "access_log: on", "access_log: maybe", "maybe", "is not true or false");
    assert_fault(weir, "min_size: 1KiB", "min_size: 1KB", "1KB ", "\"1KB\" is not a size; write one integer above 0");
    assert_fault(weir, "min_size: 1KiB", "min_sise: 1KiB", "min_sise", "did you mean \"min_size\"?");
    let encodings = "[zstd, br, gzip]";
    assert_fault(weir, encodings, "[zstd, brr]", "brr]", "unknown encoding \"brr\"; did you mean \"br\"?");
    assert_fault(weir, encodings, "[br, gzip, br]", "br]", "\"br\" is there twice; write each encoding once");
    assert_fault(weir, encodings, "[]", "[]", "encodings is empty; write at least one of zstd, br and gzip");
    let shipped = Config::shipped().read(weir);
    let section = shipped.split("compression: ").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    assert_fault(weir, section, "of", "of\n\nlimits", "\"of\" is not true or false (or on, off)");
    assert_fault(weir, "${WEIR_LISTEN:-127.0.0.1:8080}", "localhost", "localhost", "is not a valid address");
    assert_fault(
        weir,
        "${WEIR_ADMIN:-127.0.0.1:8081}",
        "0.0.0.0:8081",
        "0.0.0.0:8081",
        "is not a loopback address; set admin.token",
    );
    assert_fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [ { sha256: abc } ] }\n",
        "abc",
        "64 hexadecimal digits",
    );
    assert_fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [], rate_limit: standrd }\n",
        "standrd",
        "unknown rate limit \"standrd\"; did you mean \"standard\"?",
    );
    assert_fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [], providers: [vectra] }\n",
        "vectra",
        "unknown provider \"vectra\"; did you mean \"vectara\"?",
    );
    assert_fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: twin, keys: [] }\n  - { keys: [], id: \"twin\" }\n",
        "\"twin\"",
        "client id \"twin\" is already used at",
    );
}

#[test]
fn each_wrong_conversion_has_its_own_message() {
    let rule = |key: &str, rule: &str, needle: &str, message: &str| {
        let to = format!("  {key}: {rule}\n  created_at: $.created_at\n");
        let to = if key == "created_at" { format!("  created_at: {rule}\n") } else { to };
        assert_fault("providers/vectara.yaml", "  created_at: $.created_at\n", &to, needle, message);
    };
    rule("created_at", "{ from: $.at, unit: min }", "min }", "unknown unit \"min\"");
    rule("created_at", "{ from: $.at, format: iso8601 }", "iso8601", "unknown format \"iso8601\"");
    rule("created_at", "{ from: $.at, unit: s, format: rfc2822 }", "{ from: $.at", "can have one of unit, format");
    rule("created_at", "{ from: $.at, as: number }", "number }", "as is for texts and numbers");
    rule("created_at", "{ count: $.at }", "$.at }", "count is for message_count and other numbers");
    rule("duration_seconds", "{ from: $.ms, unit: days }", "days", "unknown unit \"days\"");
    rule("message_count", "{ from: $.n, unit: us }", "us }", "unit is for times and durations");
    rule("message_count", "{ from: $.n, count: $.m }", "{ from: $.n", "a rule must have either from");
    rule("message_count", "{ absent: 0 }", "{ absent", "a rule must have either from");
}

#[test]
fn a_fault_does_not_print_credentials_of_a_base_url() {
    let (_, lines) = Config::shipped().env("VECTARA_BASE_URL", "https://user:hunter2@x").check();
    assert!(
        lines[0].contains("credentials belong under credentials:") && !lines.join("").contains("hunter2"),
        "{lines:#?}"
    );
}

#[test]
fn duplicates_across_and_within_files_are_faults() {
    let config = Config::shipped();
    config.write("providers/other.yaml", &config.read("providers/vectara.yaml"));
    let (_, lines) = config.check();
    assert!(
        lines.iter().any(|l| l.starts_with("providers/vectara.yaml:4:7: provider \"vectara\" is already used at")
            && l.contains("other.yaml:4:7")),
        "{lines:#?}"
    );
    let config = Config::shipped().clients(
        "clients:\n  - { id: a, keys: [ { sha256: SHA(k) } ] }\n  - { id: b, keys: [ { sha256: SHA(k) } ] }\n",
    );
    let (_, lines) = config.check();
    assert!(
        lines[0].starts_with("clients.yaml:3:22: this key is already used at")
            && lines[0].contains("clients.yaml:2:22"),
        "{lines:#?}"
    );
    let config = Config::shipped().edit("weir.yaml", "workers: 0", "workers: 0\nworkers: 1");
    assert!(config.check().1[0].contains("duplicate key \"workers\""));
}

#[test]
fn all_faults_are_reported_and_a_syntax_error_hides_only_its_own_file() {
    let config = Config::shipped()
        .edit("weir.yaml", "workers: 0 ", "workrs: 0 ")
        .edit("providers/vectara.yaml", "timeout: 10s ", "timeout: [10s ")
        .edit("providers/palantir.yaml", "max: 1h", "max: 1 hour")
        .edit("providers/palantir.yaml", "item: $\n", "item: $[\n")
        .edit("providers/agenthuman.yaml", "concurrent: 8", "concurrent: eight");
    let (code, lines) = config.check();
    assert_eq!(code, 1);
    for message in [
        "did you mean \"workers\"",
        "YAML syntax",
        "\"1 hour\" is not a duration",
        "is not a JSONPath",
        "\"eight\" is not a whole number",
    ] {
        assert_eq!(lines.iter().filter(|line| line.contains(message)).count(), 1, "{message}: {lines:#?}");
    }
    assert_eq!(lines.len(), 6, "five faults and their count: {lines:#?}");
    assert_eq!(lines.last().unwrap(), "weir: 5 faults");
}

#[test]
fn an_example_that_maps_to_another_unified_body_is_a_fault() {
    let (_, lines) = Config::shipped()
        .edit("examples/vectara/get.unified.json", "\"status\": \"active\"", "\"status\": \"ended\"")
        .check();
    assert!(
        lines[0].contains("examples/vectara/get.unified.json:1:1: $.status is \"ended\"; the mapping gives \"active\""),
        "{lines:#?}"
    );
    let (_, lines) = Config::shipped().edit("examples/palantir/get.native.json", "\"rid\":", "\"rdi\":").check();
    assert!(lines[0].contains("provider_session_id is required"), "{lines:#?}");
    let (_, lines) = Config::shipped().edit("examples/palantir/get.native.json", "\"rid\":", "\"rid\"").check();
    assert!(lines[0].contains("not JSON"), "{lines:#?}");
}

#[test]
fn the_shipped_config_has_no_fault_and_run_refuses_one_with_faults() {
    let output = Config::shipped().command(&["check"]).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("ok: revision "));
    let output = Config::shipped().edit("weir.yaml", "workers: 0", "workers: many").command(&["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"many\" is not a whole number"));
    let output = Config::shipped().command(&["run", "--nonsense"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let config = Config::shipped();
    std::fs::remove_file(config.path("clients.yaml")).unwrap();
    assert!(config.check().1[0].starts_with("clients.yaml:1:1: cannot be read"), "{:?}", config.check());
}

#[test]
fn two_listeners_at_one_address_are_a_fault() {
    let (listen, admin) = ("${WEIR_LISTEN:-127.0.0.1:8080}", "${WEIR_ADMIN:-127.0.0.1:8081}");
    let check = |listeners: &str, admin_address: &str| {
        let config = Config::shipped().edit("weir.yaml", listen, listeners).edit("weir.yaml", admin, admin_address);
        let (code, lines) = config.env("WEIR_ADMIN_TOKEN", &"x".repeat(32)).check();
        (code, lines.into_iter().filter(|line| line.contains("choose another port")).collect::<Vec<_>>())
    };
    let second = |first: &str, other: &str| format!("{first}\n  - address: \"{other}\"");
    for (one, other) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "0.0.0.0:8080"),
        ("\"[::]:8080\"", "[::1]:8080"),
    ] {
        let (code, lines) = check(&second(one, other), "127.0.0.1:9");
        assert!(code == 1 && lines.len() == 1, "{one} {other}: {lines:?}");
        assert!(lines[0].starts_with("weir.yaml:7:"), "the second one is the fault: {lines:?}");
        assert!(lines[0].contains("a listener has this address already, at weir.yaml:6:"), "{lines:?}");
        let (code, lines) = check(one, &format!("\"{other}\""));
        assert!(code == 1 && lines.len() == 1, "admin {one} {other}: {lines:?}");
    }
    for (one, other) in [
        ("127.0.0.1:8080", "127.0.0.1:8082"),
        ("127.0.0.1:8080", "127.0.0.2:8080"),
        ("127.0.0.1:8080", "[::1]:8080"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ] {
        assert_eq!(check(&second(one, other), "127.0.0.1:0"), (0, Vec::new()), "{one} {other}");
    }
    assert_eq!(check("127.0.0.1:0", "127.0.0.1:0"), (0, Vec::new()));
}

#[test]
fn a_client_without_providers_and_settings_for_others_are_faults() {
    let check = |client: &str| {
        let yaml = format!("clients:\n  - id: one\n    keys: [ {{ sha256: SHA(one) }} ]\n{client}");
        Config::shipped().clients(&yaml).check()
    };
    let credential = "    credentials: { palantir: { header: authorization, value: Bearer x } }\n";
    for (client, place, message) in [
        ("    providers: []\n", "clients.yaml:2:9: ", "client \"one\" may use no provider"),
        (
            &format!("    providers: [vectara]\n{credential}"),
            "clients.yaml:5:20: ",
            "a credential for \"palantir\", which client \"one\" may not use; add \"palantir\" to its providers, or remove a credential",
        ),
        (
            "    providers: [vectara]\n    provider_rate_limits: { agenthuman: standard }\n",
            "clients.yaml:5:29: ",
            "a rate limit for \"agenthuman\", which client \"one\" may not use",
        ),
    ] {
        let (code, lines) = check(client);
        assert!(code == 1 && lines.iter().any(|line| line.starts_with(place) && line.contains(message)), "{lines:?}");
    }
    for permitted in ["", "    providers: [vectara, palantir]\n", "    providers: palantir\n"] {
        assert_eq!(check(&format!("{permitted}{credential}")).0, 0, "{permitted}");
    }
}
