//! Tests of the systemd unit: its validity, its restrictions and its command line.

use crate::support::*;
use crate::tools::{has, program};
use std::fs;
use std::process::Command;
use tempfile::TempDir;

#[test]
fn the_systemd_unit_is_valid_and_restricted() {
    if !has("systemd-analyze") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let unit = fs::read_to_string(repository().join("deploy/systemd/weir.service")).unwrap();
    let installed = "ExecStart=/usr/local/bin/weir ";
    assert!(unit.contains(installed));
    let file = directory.path().join("weir.service");
    fs::write(&file, unit.replace(installed, &format!("ExecStart={} ", env!("CARGO_BIN_EXE_weir")))).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&file).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), printed)
    };
    let (valid, printed) = run(&["verify", "--man=no"]);
    assert!(valid && printed.trim().is_empty(), "{printed}");
    // The threshold is in tenths of the exposure level. The unit still has the network and reads public files.
    let (restricted, printed) = run(&["security", "--offline=yes", "--threshold=15"]);
    println!("{}", printed.lines().last().unwrap_or_default());
    assert!(restricted, "{printed}");
    // The program accepts the command line of the unit.
    let words: Vec<&str> = unit.lines().find_map(|line| line.strip_prefix(installed)).unwrap().split(' ').collect();
    let config = Config::shipped();
    let mut check = program("weir");
    check.args(
        words.iter().map(|word| if *word == "/etc/weir" { config.directory.path().to_str().unwrap() } else { word }),
    );
    let help = check.arg("--help").output().unwrap();
    assert!(help.status.success(), "{}", String::from_utf8_lossy(&help.stderr));

    let users = repository().join("deploy/systemd/sysusers.d/weir.conf");
    if has("systemd-sysusers") {
        let output = Command::new("systemd-sysusers").arg("--dry-run").arg(&users).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let user = unit.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
    assert!(fs::read_to_string(users).unwrap().lines().any(|line| line.starts_with(&format!("u {user} "))));
}
