//! Tests of hints: the first message about a fault leads to its cause, and no second one leads elsewhere.

use crate::support::*;
use std::process::Command;

const CLIENT: &str =
    "clients:\n  - { id: one, keys: [ { sha256: SHA(one) } ], rate_limit: standard, providers: [vectara] }\n";

/// Asserts that the change makes one fault, at `place`, with this message.
fn assert_one_fault(file: &str, from: &str, to: &str, place: &str, message: &str) {
    let config = Config::shipped().clients(CLIENT).edit(file, from, to);
    let (code, lines) = config.check();
    assert_eq!((code, lines.len()), (1, 2), "{to:?}: {lines:#?}");
    assert!(lines[0].starts_with(place) && lines[0].contains(message), "{to:?}: {lines:#?}");
}

#[test]
fn what_is_declared_with_a_fault_is_not_unknown() {
    let standard = "  standard:\n    requests: 600\n    per: 1m\n";
    for (to, message) in [
        ("  standard:\n    requests: many\n    per: 1m\n", "\"many\" is not a whole number"),
        ("  standard:\n    per: 1m\n", "missing key \"requests\""),
        ("  standard: 600\n", "a rate limit must be a mapping"),
        ("  standard:\n    requests: ${NOT_SET}\n    per: 1m\n", "NOT_SET is not set"),
        ("  standard:\n    requests: ${N-T}\n    per: 1m\n", "${N-T} is not a variable name"),
    ] {
        assert_one_fault("weir.yaml", standard, to, "weir.yaml:", message);
    }
    // A client of another policy still learns of its typo.
    let config = Config::shipped().edit("weir.yaml", standard, "  standard: 600\n");
    let (_, lines) = config.clients(&CLIENT.replace("limit: standard", "limit: standrd")).check();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("unknown rate limit \"standrd\"; did you mean \"standard\"?"), "{lines:#?}");

    let vectara = "providers/vectara.yaml";
    for (from, to, message) in [
        ("base_url:", "base_ur:", "base_ur"),
        ("provider_session_id: [$.key, $.id]", "provider_session_id: {}", "a rule must have either from"),
        ("provider_session_id: [$.key, $.id]", "provider_session_id:", "\"provider_session_id\" has no value"),
        ("    id: $.agent_key", "    id: { from: { a: b } }", "must be a single value"),
        ("    id: $.agent_key", "    id:", "\"id\" has no value"),
        ("    agent: '^agt_[0-9a-zA-Z_-]+$'", "    agent: ''", "must not be empty"),
    ] {
        let config = Config::shipped().clients(CLIENT).edit(vectara, from, to);
        let (code, lines) = config.check();
        assert!(code == 1 && lines.iter().any(|line| line.contains(message)), "{to:?}: {lines:#?}");
        assert!(
            lines.iter().all(|line| !line.contains("unknown provider") && !line.contains("is required")),
            "{lines:#?}"
        );
        assert!(lines.iter().all(|line| line.starts_with(vectara) || line.starts_with("weir: ")), "{lines:#?}");
    }
    // The file of one provider ends at a syntax fault; the name of another one is misspelt.
    let config = Config::shipped().clients(&CLIENT.replace("[vectara]", "[vectara, palantr]"));
    let (_, lines) = config.edit(vectara, "timeout: 10s ", "timeout: [10s ").check();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("unknown provider \"palantr\"; did you mean \"palantir\"?"), "{lines:#?}");
}

#[test]
fn a_fault_has_no_second_message_about_its_consequences() {
    let (vectara, listen, admin) =
        ("providers/vectara.yaml", "address: ${WEIR_LISTEN:-127.0.0.1:8080}", "address: ${WEIR_ADMIN:-127.0.0.1:8081}");
    let credentials = "{ header: x-api-key, value: \"${VECTARA_API_KEY:-}\" }";
    for (file, from, to, message) in [
        ("weir.yaml", listen, "address: ${NOT_SET}", "NOT_SET is not set"),
        ("weir.yaml", listen, "address: here", "\"here\" is not a valid address"),
        ("weir.yaml", "grace: 10s", "grace: ${NOT_SET}", "NOT_SET is not set"),
        ("weir.yaml", "grace: 10s", "grace: ${oops", "without a closing }"),
        ("weir.yaml", "token: ${WEIR_ADMIN_TOKEN:-}", "token: ${NOT_SET}", "NOT_SET is not set"),
        (vectara, credentials, "{ bearer: { file: /no/such } }", "cannot read secret file \"/no/such\""),
        (vectara, credentials, "{ header: [a, b], value: x }", "must be a single value"),
        (vectara, credentials, "{ heder: x-api-key, value: x }", "did you mean \"header\"?"),
        (vectara, credentials, "{ header: x-api-key, value: \"${NOT_SET}\" }", "NOT_SET is not set"),
        (vectara, "${VECTARA_BASE_URL:-https://api.vectara.io}", "${NOT_SET}", "NOT_SET is not set"),
        (vectara, "timeout: 10s ", "timeout: ${NOT_SET} ", "NOT_SET is not set"),
        ("clients.yaml", "providers: [vectara]", "providers: [\"${NOT_SET}\"]", "NOT_SET is not set"),
        ("clients.yaml", "providers: [vectara]", "providers: [{ a: b }]", "must be a single value"),
    ] {
        assert_one_fault(file, from, to, &format!("{file}:"), message);
    }
    // An address on the network needs a token; that the token has a fault is the only fault.
    let config = Config::shipped().edit("weir.yaml", admin, "address: 0.0.0.0:8081");
    let (_, lines) = config.edit("weir.yaml", "token: ${WEIR_ADMIN_TOKEN:-}", "token: ${NOT_SET}").check();
    assert!(lines.len() == 2 && lines[0].contains("NOT_SET is not set"), "{lines:#?}");
    // The admin listener's own default address is not known to be taken.
    let config = Config::shipped().edit("weir.yaml", admin, "address: here");
    let (_, lines) = config.edit("weir.yaml", listen, "address: 127.0.0.1:8081").check();
    assert!(lines.len() == 2 && lines[0].contains("\"here\" is not a valid address"), "{lines:#?}");
}

#[test]
fn a_fault_about_a_tab_is_at_the_tab() {
    for (from, to, place) in [
        ("  grace: 10s", "\tgrace: 10s", ":1: "),
        ("    requests: 60\n    per: 1m", "    requests: 60\n\tper: 1m", ":1: "),
        ("    requests: 60\n    per: 1m", "    requests: 60\n  \tper: 1m", ":3: "),
    ] {
        let config = Config::shipped().edit("weir.yaml", from, to);
        let line = config.read("weir.yaml").lines().position(|line| line.contains('\t')).unwrap() + 1;
        let (_, lines) = config.check();
        let expected =
            format!("weir.yaml:{line}{place}YAML syntax: a tab, which YAML does not allow here; write spaces");
        assert_eq!(lines, [expected, "weir: 1 fault".to_owned()]);
    }
}

#[test]
fn a_name_that_is_used_twice_is_listed_once() {
    let config = Config::shipped().clients(&CLIENT.replace("[vectara]", "[zzzzzzzzzz]"));
    config.write("providers/other.yaml", &config.read("providers/vectara.yaml"));
    let (_, lines) = config.check();
    let line = lines.iter().find(|line| line.contains("unknown provider")).unwrap();
    assert!(line.ends_with("expected one of: agenthuman, vectara, palantir"), "{line}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_path_that_was_tried() {
    let config = Config::shipped();
    let directory = std::fs::canonicalize(config.directory.path()).unwrap();
    let run = |arguments: &[&str]| {
        let output =
            Command::new(weir_program()).env_remove("WEIR_CONFIG").current_dir(&directory).args(arguments).output();
        let output = output.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // Without a directory, there is one fault, and it says how to name or make one.
    for (arguments, exit) in [(&["check"][..], 1), (&["run"], 78), (&["explain", "GET", "/"], 1), (&[], 78)] {
        let (code, stderr) = run(arguments);
        assert_eq!(code, exit, "{arguments:?}: {stderr}");
        let fault = stderr.lines().next().unwrap();
        assert!(fault.starts_with("config:1:1: cannot be read: No such file"), "{stderr}");
        for part in
            [&format!("(tried {}/config)", directory.display()), "--config DIR", "WEIR_CONFIG", "`weir init DIR`"]
        {
            assert!(fault.contains(part), "{stderr}");
        }
        assert_eq!(stderr.matches("cannot be read").count(), 1, "{stderr}");
    }
    let (_, stderr) = run(&["--config", "weir.yaml", "check"]);
    assert!(stderr.contains("this is not a directory (tried ") && stderr.contains("`weir init DIR`"), "{stderr}");
    config.change("providers/vectara.yaml", "\"${VECTARA_API_KEY:-}\"", "{ file: key }");
    std::fs::remove_file(config.path("clients.yaml")).unwrap();
    let (_, stderr) = run(&["--config", ".", "check"]);
    let shown = directory.display();
    assert!(stderr.contains(&format!("(tried {shown}/clients.yaml)")), "{stderr}");
    assert!(stderr.contains("cannot read secret file \"key\": No such file") && stderr.contains("/key)"), "{stderr}");
    // A provider file that cannot be read is one fault: its name may be the one that a client uses.
    let config = Config::shipped().clients(CLIENT);
    std::fs::remove_file(config.path("providers/vectara.yaml")).unwrap();
    std::fs::create_dir(config.path("providers/vectara.yaml")).unwrap();
    let (_, lines) = config.check();
    assert!(lines.len() == 2 && lines[0].starts_with("providers/vectara.yaml:1:1: cannot be read"), "{lines:#?}");
}

#[test]
fn weir_init_writes_a_configuration_that_passes_check_and_replaces_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("new/config");
    let run = |arguments: &[&str]| {
        let output = Command::new(weir_program()).env_clear().args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let path = directory.to_str().unwrap();
    let (code, out, stderr) = run(&["init", path]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let key = out.lines().find(|line| line.trim().starts_with("weir_")).unwrap().trim().to_owned();
    let (code, checked, stderr) = run(&["--config", path, "check"]);
    assert!(code == 0 && checked.contains("1 provider, 1 client"), "{stderr}");
    let (_, _, strict) = run(&["--config", path, "check", "--strict"]);
    let secrets = ["the credential is empty", "page tokens become invalid", "open files"];
    assert!(
        strict
            .lines()
            .filter(|line| !line.starts_with("weir: "))
            .all(|line| { secrets.iter().any(|secret| line.contains(secret)) }),
        "only secrets and the machine are left to set: {strict}"
    );
    for file in ["weir.yaml", "clients.yaml", "providers/acme.yaml"] {
        let text = std::fs::read_to_string(directory.join(file)).unwrap();
        assert!(text.starts_with('#') && text.lines().count() < 50 && !text.contains(&key), "{text}");
    }
    // The key serves, and `map` prints the example.
    let native = directory.join("examples/acme/get.native.json");
    assert_eq!(run(&["--config", path, "map", "acme", native.to_str().unwrap()]).0, 0);
    let mut command = Command::new(weir_program());
    command.env_clear().args(["--config", path, "run"]);
    command.env("WEIR_LISTEN", "127.0.0.1:0").env("WEIR_ADMIN", "127.0.0.1:0").env("TMPDIR", parent.path());
    let process = Process::start(&mut command);
    let line = wait_for_line(&process.stderr, "listening http=");
    let http = line.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(send(http, "GET", "/v1/providers", &[("X-API-Key", &key)]).status, 200);
    drop(process);

    let before = std::fs::read_to_string(directory.join("clients.yaml")).unwrap();
    let (code, out, stderr) = run(&["init", path]);
    assert!(code == 1 && out.is_empty() && stderr.contains("is not empty (it has clients.yaml)"), "{stderr}");
    assert_eq!(std::fs::read_to_string(directory.join("clients.yaml")).unwrap(), before);
    // One other file is enough, a hidden one is not, and a file is no directory.
    let (foreign, hidden) = (parent.path().join("foreign"), parent.path().join("hidden"));
    std::fs::create_dir_all(&foreign).unwrap();
    std::fs::write(foreign.join("notes"), "mine").unwrap();
    assert_eq!(run(&["init", foreign.to_str().unwrap()]).0, 1);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
    std::fs::create_dir_all(hidden.join(".git")).unwrap();
    assert_eq!(run(&["init", hidden.to_str().unwrap()]).0, 0);
    let file = foreign.join("notes");
    let (code, _, stderr) = run(&["init", file.to_str().unwrap()]);
    assert!(code == 1 && stderr.starts_with("weir: nothing written: "), "{stderr}");
    assert_eq!(run(&["init"]).0, 2);
}
