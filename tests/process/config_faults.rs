//! Every mistake in a configuration has its own words, its place, and does not hide the others.

use crate::support::*;

/// Breaks one thing and expects one line, at the place where `needle` then stands.
fn fault(file: &str, from: &str, to: &str, needle: &str, words: &str) {
    let config = Config::shipped().edit(file, from, to);
    let (code, lines) = config.check();
    assert_eq!(code, 1, "{words}: {lines:?}");
    let line =
        lines.iter().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words:?} is not in {lines:#?}"));
    let text = config.read(file);
    let at = text.find(needle).unwrap_or_else(|| panic!("{needle:?} is not in {file}"));
    let before = &text[..at];
    let (row, column) = (before.matches('\n').count() + 1, before.len() - before.rfind('\n').map_or(0, |n| n + 1) + 1);
    assert!(line.starts_with(&format!("{file}:{row}:{column}: ")), "{line} is not at {row}:{column}");
}

#[test]
fn each_mistake_has_its_own_words() {
    let (vectara, weir, clients) = ("providers/vectara.yaml", "weir.yaml", "clients.yaml");
    fault(vectara, "max_body: 4MiB", "max_bdy: 4MiB", "max_bdy", "unknown key \"max_bdy\"; did you mean \"max_body\"?");
    fault(
        vectara,
        "'^agt_[0-9a-zA-Z_-]+$'",
        "'^agt_(+$'",
        "'^agt_(+",
        "is not a regular expression: repetition operator missing expression",
    );
    fault(vectara, "created_at: $.created_at", "created_at: $.created_at[", "$.created_at[", "is not a JSONPath");
    fault(vectara, "created_at: $.created_at", "created_at: creatd_at", "creatd_at", "it starts with $");
    fault(
        vectara,
        "settle: 2m ",
        "settle: 2 minutes ",
        "2 minutes",
        "\"2 minutes\" is not a duration; write one integer and a unit",
    );
    fault(vectara, "max_body: 4MiB", "max_body: 4MB", "4MB", "is not a size");
    fault(
        vectara,
        "${VECTARA_BASE_URL:-https://api.vectara.io}",
        "${VECTARA_NOT_SET}",
        "${VECTARA_NOT_SET}",
        "the environment variable VECTARA_NOT_SET is not set",
    );
    fault(
        vectara,
        "${VECTARA_BASE_URL:-https://api.vectara.io}",
        "api.vectara.io",
        "api.vectara.io",
        "is not a base URL",
    );
    fault(
        vectara,
        "\"false\": disabled",
        "\"false\": disbled",
        "disbled",
        "unknown status \"disbled\"; did you mean \"disabled\"?",
    );
    fault(vectara, "sessions/{session}\n", "sessions/{sesion}\n", "GET /v2", "{sesion} is not a variable");
    fault(vectara, "sessions/{session}\n", "sessions/x\n", "GET /v2", "get_session must have {session}");
    fault(
        vectara,
        "code: agent_not_found",
        "code: agent_not_fond",
        "agent_not_fond",
        "unknown code \"agent_not_fond\"; did you mean \"agent_not_found\"?",
    );
    fault(
        vectara,
        "  provider_session_id: [$.key, $.id]\n",
        "",
        "agent:\n    id: $.agent_key",
        "session.provider_session_id is required",
    );
    fault(vectara, "ended: 24h", "endd: 24h", "endd", "unknown status \"endd\"");
    fault(
        vectara,
        "value: \"${VECTARA_API_KEY:-}\"",
        "value: { file: /no/such }",
        "/no/such",
        "the secret's file \"/no/such\" cannot be read",
    );
    fault(
        vectara,
        "credentials: { header: x-api-key,",
        "credentials: { header: content-length,",
        "content-length",
        "not a header that can carry a credential",
    );
    fault(vectara, "base_url:", "base_ur:", "base_ur:", "did you mean \"base_url\"?");
    fault(vectara, "base_url:", "base_ur:", "name: vectara", "\"base_url\" is missing here");
    fault(
        vectara,
        "matches: \"(?i)session\"",
        "matches: \"(?i)session[\"",
        "\"(?i)session[",
        "is not a regular expression",
    );
    fault(
        vectara,
        "secrets: [$.secrets]",
        "secrets: ['$.secrets[0]']",
        "'$.secrets[0]'",
        "is secret, so it must name one member",
    );
    fault(
        vectara,
        "title: [$.name, $.description]",
        "title: [$.secrets, $.description]",
        "$.secrets",
        "is secret, and title would show it",
    );
    fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [], rate_limit: [standard, standard] }\n",
        "standard] }",
        "\"standard\" stands here twice",
    );
    fault(
        clients,
        "clients:\n",
        "clients:\n  - id: x\n    keys: []\n    providers:\n      # - vectara\n",
        "providers:\n",
        "\"providers\" has no value",
    );
    fault(weir, "burst: 10", "burst: none", "none", "is not a whole number from 1");
    fault(weir, "workers: 0", "workers: 100000", "100000", "are too many; at most 1024");
    fault(weir, "per: 1m\n    burst: 10", "per: 365d\n    burst: 4000000000", "careful:", "more than a year to fill");
    fault(weir, "access_log: on", "access_log: maybe", "maybe", "is not true or false");
    fault(weir, "${WEIR_LISTEN:-127.0.0.1:8080}", "localhost", "localhost", "is not an address");
    fault(
        weir,
        "${WEIR_ADMIN:-127.0.0.1:8081}",
        "0.0.0.0:8081",
        "0.0.0.0:8081",
        "which is not loopback; set admin.token too",
    );
    fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [ { sha256: abc } ] }\n",
        "abc",
        "64 hexadecimal digits",
    );
    fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [], rate_limit: standrd }\n",
        "standrd",
        "unknown rate limit \"standrd\"; did you mean \"standard\"?",
    );
    fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: x, keys: [], providers: [vectra] }\n",
        "vectra",
        "unknown provider \"vectra\"; did you mean \"vectara\"?",
    );
    fault(
        clients,
        "clients:\n",
        "clients:\n  - { id: twin, keys: [] }\n  - { keys: [], id: \"twin\" }\n",
        "\"twin\"",
        "client id \"twin\" is already used at",
    );
}

#[test]
fn a_base_urls_credentials_are_not_repeated() {
    let (_, lines) = Config::shipped().env("VECTARA_BASE_URL", "https://user:hunter2@x").check();
    assert!(
        lines[0].contains("credentials belong under credentials:") && !lines.join("").contains("hunter2"),
        "{lines:#?}"
    );
}

#[test]
fn duplicates_across_and_within_files() {
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
        lines[0].starts_with("clients.yaml:3:22: the same key stands at") && lines[0].contains("clients.yaml:2:22"),
        "{lines:#?}"
    );
    let config = Config::shipped().edit("weir.yaml", "workers: 0", "workers: 0\nworkers: 1");
    assert!(config.check().1[0].contains("\"workers\" stands here twice"));
}

#[test]
fn all_faults_come_together_and_a_syntax_fault_hides_only_its_own_file() {
    let config = Config::shipped()
        .edit("weir.yaml", "workers: 0 ", "workrs: 0 ")
        .edit("providers/vectara.yaml", "timeout: 10s ", "timeout: [10s ")
        .edit("providers/palantir.yaml", "max: 1h", "max: 1 hour")
        .edit("providers/palantir.yaml", "item: $\n", "item: $[\n")
        .edit("providers/agenthuman.yaml", "concurrent: 8", "concurrent: eight");
    let (code, lines) = config.check();
    assert_eq!(code, 1);
    for words in [
        "did you mean \"workers\"",
        "YAML syntax",
        "\"1 hour\" is not a duration",
        "is not a JSONPath",
        "\"eight\" is not a whole number",
    ] {
        assert_eq!(lines.iter().filter(|line| line.contains(words)).count(), 1, "{words}: {lines:#?}");
    }
    assert_eq!(lines.len(), 6, "those and their count: {lines:#?}");
    assert_eq!(lines.last().unwrap(), "weir: 5 faults");
}

#[test]
fn an_example_that_does_not_map_as_it_says_is_a_fault() {
    let (_, lines) = Config::shipped()
        .edit("examples/vectara/get.unified.json", "\"status\": \"active\"", "\"status\": \"ended\"")
        .check();
    assert!(
        lines[0].contains("examples/vectara/get.unified.json:1:1: $.status is \"ended\" here; it maps to \"active\""),
        "{lines:#?}"
    );
    let (_, lines) = Config::shipped().edit("examples/palantir/get.native.json", "\"rid\":", "\"rdi\":").check();
    assert!(lines[0].contains("provider_session_id is required"), "{lines:#?}");
    let (_, lines) = Config::shipped().edit("examples/palantir/get.native.json", "\"rid\":", "\"rid\"").check();
    assert!(lines[0].contains("not JSON"), "{lines:#?}");
}

#[test]
fn the_shipped_config_has_no_fault_and_a_bad_one_does_not_start() {
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
