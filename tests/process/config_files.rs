//! Files of the configuration that are no regular files, or are too long.

use crate::support::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Each kind of file that Weir must not read, and what the message says about it.
const KINDS: [(&str, &str); 5] = [
    ("pipe", "a named pipe (FIFO)"),
    ("device", "a device"),
    ("directory", "a directory"),
    ("socket", "a socket"),
    ("loop", "Too many levels of symbolic links"),
];

fn make(kind: &str, path: &Path) {
    let _ = fs::remove_file(path);
    match kind {
        "pipe" => make_pipe(path),
        "device" => symlink("/dev/zero", path).unwrap(),
        "directory" => fs::create_dir(path).unwrap(),
        "loop" => symlink(path, path).unwrap(),
        _ => drop(UnixListener::bind(path).unwrap()),
    }
}

fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
}

/// Reads the key of page tokens from the file `secret`.
fn name_a_secret_file(config: &Config) {
    config.change("weir.yaml", "${WEIR_PAGE_TOKEN_KEY:-}", "{ file: secret }");
}

#[test]
fn a_pipe_or_a_device_in_the_configuration_directory_stops_no_reload() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    for file in ["providers/zz.yaml", "examples/vectara/zz.native.json"] {
        for (kind, what) in KINDS {
            make(kind, &weir.config.path(file));
            let (status, body) = weir.reload();
            let faults = body["faults"].to_string();
            assert_eq!(status, 422, "{file} {kind}: {faults}");
            assert!(faults.contains(file) && faults.contains(what), "{file} {kind}: {faults}");
            assert_eq!(weir.get(VECTARA).status, 200, "the previous configuration stays in force");
            remove(&weir.config.path(file));
            assert_eq!(weir.reload().0, 200, "{file} {kind}");
        }
    }
}

#[test]
fn check_and_start_name_a_file_that_is_not_regular() {
    for (kind, what) in KINDS {
        for file in ["weir.yaml", "clients.yaml", "providers/zz.yaml"] {
            let config = Config::shipped();
            make(kind, &config.path(file));
            let (code, lines) = config.check();
            let message = lines.iter().find(|line| line.contains(file) && line.contains(what));
            assert!(code == 1 && message.is_some(), "{file} {kind}: {lines:?}");
            let run = config.command(&["run"]).output().unwrap();
            assert_eq!(run.status.code(), Some(78), "{file} {kind}: {run:?}");
        }
    }
}

#[test]
fn a_secret_or_certificate_that_is_a_pipe_is_refused() {
    for (kind, what) in KINDS {
        let config = Config::shipped();
        make(kind, &config.path("secret"));
        name_a_secret_file(&config);
        let tls = "address: 127.0.0.1:0, tls: { certificate: secret, key: secret, client_ca: secret }";
        config.write("weir.yaml", &(config.read("weir.yaml").replace("listen:", "listen_old:")));
        config.change("weir.yaml", "listen_old:", &format!("listen: [ {{ {tls} }} ]\nold:"));
        let (code, lines) = config.check();
        let found = lines.iter().filter(|line| line.contains("secret") && line.contains(what)).count();
        assert!(code == 1 && found >= 4, "{kind}: {lines:#?}");
    }
}

#[test]
fn a_file_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let config = Config::shipped();
    name_a_secret_file(&config);
    config.write("secret", &"k".repeat(1 << 20));
    assert_eq!(config.check().0, 0, "{:?}", config.check());
    config.write("secret", &"k".repeat((1 << 20) + 1));
    let (code, lines) = config.check();
    assert!(code == 1 && lines[0].contains("secret") && lines[0].contains("more than 1048576 bytes"), "{lines:?}");
}
