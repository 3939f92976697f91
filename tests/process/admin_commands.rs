//! Tests of what commands need: those that talk to a running gateway need its address and a token, and those that work
//! offline need no secret.

use crate::support::*;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A gateway whose configuration needs variables that only its own process has.
fn start_with_required_variables(sim: &Sim) -> Weir {
    let config = Config::shipped();
    for (file, variable) in [
        ("weir.yaml", "WEIR_LISTEN:-127.0.0.1:8080"),
        ("weir.yaml", "WEIR_ADMIN:-127.0.0.1:8081"),
        ("weir.yaml", "WEIR_ADMIN_TOKEN:-"),
        ("weir.yaml", "WEIR_PAGE_TOKEN_KEY:-"),
        ("providers/vectara.yaml", "VECTARA_API_KEY:-"),
        ("providers/vectara.yaml", "VECTARA_BASE_URL:-https://api.vectara.io"),
    ] {
        let name = variable.split(':').next().unwrap();
        config.change(file, &format!("${{{variable}}}"), &format!("${{{name}}}"));
    }
    config.env("WEIR_ADMIN_TOKEN", TOKEN).env("WEIR_PAGE_TOKEN_KEY", TOKEN).start(sim)
}

/// Runs `weir` with this directory and without any variable of the service.
fn run_bare(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(weir_program());
    command.env_clear().arg("--config").arg(directory).args(arguments).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn commands_for_a_running_gateway_need_no_variable_of_the_service() {
    let sim = Sim::start();
    let weir = start_with_required_variables(&sim);
    let directory = weir.config.directory.path();
    let none = Path::new("/no/such/directory");
    let (ip, named) = (weir.admin.to_string(), format!("localhost:{}", weir.admin.port()));
    let file = weir.config.runtime.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    for admin in [ip.as_str(), named.as_str()] {
        for command in [&["health"][..], &["health", "--live"], &["purge", "--all"], &["reload"]] {
            for (token, environment) in [
                (&["--token", TOKEN][..], &[][..]),
                (&["--token-file", file], &[]),
                (&["--token-file", file, "--token", "wrong"], &[]),
                (&[], &[("WEIR_ADMIN_TOKEN", TOKEN)]),
            ] {
                let arguments = [command, &["--admin", admin], token].concat();
                // With both, no configuration is read.
                for directory in [directory, none] {
                    let (code, _, stderr) = run_bare(directory, &arguments, environment);
                    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
                }
                let environment = [environment, &[("WEIR_ADMIN", admin)]].concat();
                let (code, _, stderr) = run_bare(none, &[command, token].concat(), &environment);
                assert_eq!((code, stderr.as_str()), (0, ""), "{command:?} {environment:?}");
            }
        }
        // Health needs no token.
        assert_eq!(run_bare(none, &["health", "--admin", admin], &[]).0, 0);
    }
    // Only the variables of the section `admin` are needed, and only the one that no option gives.
    let all = [("WEIR_ADMIN", ip.as_str()), ("WEIR_ADMIN_TOKEN", TOKEN)];
    assert_eq!(run_bare(directory, &["purge", "--all"], &all).0, 0);
    let (code, _, stderr) = run_bare(directory, &["purge", "--all", "--admin", &ip], &[]);
    assert_eq!((code, stderr.lines().count()), (1, 2), "{stderr}");
    assert!(stderr.contains("weir.yaml:18:10: the environment variable WEIR_ADMIN_TOKEN is not set"), "{stderr}");
    assert!(stderr.contains("use --token-file FILE or set WEIR_ADMIN_TOKEN"), "{stderr}");
    let (code, _, stderr) = run_bare(directory, &["health"], &[]);
    assert_eq!((code, stderr.lines().count()), (1, 2), "{stderr}");
    assert!(stderr.contains("WEIR_ADMIN is not set") && stderr.contains("use --admin ADDRESS"), "{stderr}");
    let (code, _, stderr) = run_bare(none, &["reload", "--admin", &ip], &[]);
    assert!(code == 1 && stderr.contains("(tried /no/such/directory)") && stderr.contains("--token-file"), "{stderr}");
    // A fault elsewhere is not the command's business: the gateway reports it.
    weir.config.change("weir.yaml", "workers: 0", "workers: many");
    let (code, _, stderr) = run_bare(directory, &["reload"], &all);
    assert!(code == 1 && stderr.contains("\"many\" is not a whole number"), "{stderr}");
    assert_eq!(run_bare(directory, &["health"], &all).0, 0);
    // A wrong token is refused by the gateway.
    let (code, _, stderr) = run_bare(none, &["purge", "--all", "--admin", &ip, "--token", "wrong"], &[]);
    assert!(code == 1 && stderr.starts_with("weir: 401: "), "{stderr}");
}

#[test]
fn a_token_on_standard_input_is_used_and_wrong_options_say_what_is_right() {
    let sim = Sim::start();
    let weir = start_with_required_variables(&sim);
    let admin = weir.admin.to_string();
    let mut command = Command::new(weir_program());
    command.env_clear().args(["purge", "--all", "--admin", &admin, "--token-file", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("  {TOKEN}\n").as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    let none = Path::new("/no/such/directory");
    for wrong in ["localhost", "http://localhost:8081", ":1", "localhost:99999"] {
        let (code, _, stderr) = run_bare(none, &["health", "--admin", wrong], &[]);
        assert!(code == 2 && stderr.contains("write HOST:PORT, such as localhost:8081"), "{wrong}: {stderr}");
    }
    let (code, _, stderr) = run_bare(none, &["health", "--admin", "nowhere.invalid:1"], &[]);
    assert!(code == 1 && stderr.contains("nowhere.invalid:1 cannot be resolved"), "{stderr}");
    let (code, _, stderr) = run_bare(none, &["purge", "--all", "--admin", &admin, "--token-file", "/no/file"], &[]);
    assert!(code == 1 && stderr.contains("/no/file: "), "{stderr}");
    let closed: SocketAddr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let named = format!("localhost:{}", closed.port());
    let (code, _, stderr) = run_bare(none, &["health", "--admin", &named], &[]);
    assert!(code == 1 && stderr.contains(&format!("no response from the admin listener at {named}")), "{stderr}");
    // The help shows the name of the variable, never its value.
    let (_, help, _) = run_bare(none, &["purge", "--help"], &[("WEIR_ADMIN_TOKEN", TOKEN)]);
    assert!(help.contains("WEIR_ADMIN_TOKEN") && !help.contains(TOKEN), "{help}");
}

#[test]
fn explain_and_map_need_no_secret_and_check_only_if_it_may_be_unset() {
    let config = Config::shipped();
    config.change("weir.yaml", "${WEIR_PAGE_TOKEN_KEY:-}", "${WEIR_PAGE_TOKEN_KEY}");
    config.change("weir.yaml", "address: ${WEIR_LISTEN:-127.0.0.1:8080}", "address: ${LISTEN_ADDRESS}");
    config.change("weir.yaml", "grace: 10s", "grace: ${GRACE}");
    config.change("weir.yaml", "requests: 600", "requests: ${REQUESTS}");
    config.change("providers/vectara.yaml", "\"${VECTARA_API_KEY:-}\"", "\"${VECTARA_API_KEY}\"");
    config.change("providers/vectara.yaml", "${VECTARA_BASE_URL:-https://api.vectara.io}", "${VECTARA_BASE_URL}");
    config.change("providers/agenthuman.yaml", "\"${AGENTHUMAN_API_KEY:-}\"", "{ file: /no/such/secret }");
    let config = config.clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: standard }\n");
    let directory = config.directory.path();
    let missing = [
        "/no/such/secret",
        "GRACE",
        "LISTEN_ADDRESS",
        "REQUESTS",
        "VECTARA_API_KEY",
        "VECTARA_BASE_URL",
        "WEIR_PAGE_TOKEN_KEY",
    ];
    let (code, out, stderr) = run_bare(directory, &["explain", "GET", VECTARA], &[]);
    assert_eq!(code, 0, "{out}{stderr}");
    assert!(out.contains("unset.invalid"), "{out}");
    let native = config.path("examples/vectara/get.native.json");
    let mapped = run_bare(directory, &["map", "vectara", native.to_str().unwrap()], &[]);
    assert_eq!(mapped.0, 0, "{mapped:?}");
    let checked = run_bare(directory, &["check", "--allow-unset"], &[]);
    assert!(checked.0 == 0 && checked.1.starts_with("ok: revision "), "{checked:?}");
    for text in [&stderr, &mapped.2, &checked.2] {
        assert!(text.contains(&missing.join(", ")), "{text}");
    }
    // Without the option, what `weir run` needs is a fault, and each place has one.
    let (code, _, stderr) = run_bare(directory, &["check"], &[]);
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!((code, lines.len()), (1, missing.len() + 1), "{stderr}");
    for name in missing {
        assert_eq!(lines.iter().filter(|line| line.contains(name)).count(), 1, "{name}: {stderr}");
    }
    assert_eq!(run_bare(directory, &["run"], &[]).0, 78);
    // What is wrong without the missing values is still a fault.
    config.change("providers/vectara.yaml", "retries: 1", "retires: 1");
    for command in [&["check", "--allow-unset"][..], &["explain", "GET", VECTARA]] {
        let (code, _, stderr) = run_bare(directory, command, &[]);
        assert!(code == 1 && stderr.contains("did you mean \"retries\"?"), "{stderr}");
    }
}
