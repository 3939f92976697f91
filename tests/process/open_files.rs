//! The limit of open files: one address that only opens connections takes nothing from the others.

use crate::frames;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

/// The program, in a shell that lowers the limit of open files first: `ulimit -S` for the soft limit, `-H` for both.
fn under(limits: &str, program: Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{limits} && exec \"$0\" \"$@\"")).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Opens connections that send nothing.
fn flood(weir: &Weir, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(weir.http).unwrap()).collect()
}

#[test]
fn idle_connections_of_one_address_leave_files_for_hits_misses_reloads_and_monitoring() {
    let sim = Sim::start();
    let config = Config::shipped();
    let weir = config.start_with(&sim, |command| under("ulimit -S -n 256 && ulimit -H -n 256", command));
    wait_until("Weir says so at its start", || {
        weir.process.stderr.lock().unwrap().iter().any(|line| line.contains("can open only 256 files"))
    });
    assert_eq!(weir.metric("weir_connections_limit"), 128.0);
    assert_eq!(weir.get(VECTARA).status, 200);
    wait_until("the connection of the request is closed", || weir.metric("weir_connections") == 0.0);
    let idle = flood(&weir, 200);
    let refused = "weir_connections_ended_total{reason=\"connections_per_address\"}";
    wait_until("Weir has refused the others", || weir.metric(refused) == 136.0);
    assert_eq!(weir.metric("weir_connections"), 64.0, "one address gets half of what all clients get");
    // Another address of the loopback network.
    let from_another = |target: &str| {
        let url = format!("http://{}{target}", weir.http);
        let output = Command::new("curl")
            .args(["-s", "--interface", "127.0.0.2", "--max-time", "20", "-H", "X-API-Key: open", "-w", "%{http_code}"])
            .args(["-o", "/dev/null", &url])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(from_another(VECTARA), "200", "a hit");
    assert_eq!(from_another(PALANTIR), "200", "a call to a provider");
    assert_eq!(weir.admin("GET", "/readyz").status, 200);
    weir.config.change("weir.yaml", "  grace: 10s", "  grace: 11s");
    assert_eq!(weir.reload().0, 200);
    drop(idle);
    wait_until("the connections are closed", || weir.metric("weir_connections") < 3.0);
    assert_eq!(weir.get(AGENTHUMAN).status, 200, "the first address is served again");
}

#[test]
fn the_soft_limit_of_open_files_is_raised() {
    let sim = Sim::start();
    let weir = Config::shipped().start_with(&sim, |command| under("ulimit -S -n 64", command));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", weir.process.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{files}");
    let _open = flood(&weir, 100);
    wait_until("more connections are open than the soft limit allowed", || weir.metric("weir_connections") == 100.0);
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.write_all(&request("GET", VECTARA, &[("X-API-Key", "open"), ("Connection", "close")])).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

#[test]
fn check_warns_if_too_few_files_can_be_opened() {
    let config = Config::shipped();
    for (limits, warns) in [("ulimit -S -n 256 && ulimit -H -n 256", true), ("true", false)] {
        let output = under(limits, config.command(&["check", "--strict"])).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(text.contains("can open only 256 files"), warns, "{text}");
    }
}

#[test]
fn one_address_leaves_connections_of_the_admin_listener_to_the_others() {
    let sim = Sim::start();
    let config = Config::shipped();
    let weir = config.start_with(&sim, |command| under("ulimit -S -n 256 && ulimit -H -n 256", command));
    // A sixteenth of the files: 16 connections, 8 of them from one address.
    let _idle: Vec<_> = (0..40).map(|_| TcpStream::connect(weir.admin).unwrap()).collect();
    let output = Command::new("curl")
        .args(["-s", "--interface", "127.0.0.2", "--max-time", "20", "-w", "%{http_code}", "-o", "/dev/null"])
        .arg(format!("http://{}/readyz", weir.admin))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "200");
}

#[test]
fn calls_to_a_provider_that_hangs_leave_files_for_hits_other_providers_reloads_and_monitoring() {
    let sim = Sim::start();
    let clients = "clients:\n  - { id: greedy, keys: [ { sha256: SHA(greedy) } ] }\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";
    let config = Config::shipped()
        .clients(clients)
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 60s")
        .edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1000");
    let weir = config.start_with(&sim, |command| under("ulimit -S -n 256 && ulimit -H -n 256", command));
    assert_eq!(weir.get(VECTARA).status, 200);
    sim.plan(&json!({ "path": "/agt_slow/", "latency_ms": 120_000 }));
    // Read and forwarded requests.
    let paths = ["/v1/sessions/vectara:agt_slow:ase_N", "/vectara/v2/agents/agt_slow/sessions/ase_N/other"];
    let _sockets: Vec<TcpStream> = paths
        .iter()
        .flat_map(|path| {
            let mut socket = frames::connect(&weir);
            for n in 0..40_u32 {
                let path = path.replace('N', &n.to_string());
                socket.write_all(&frames::request(2 * n + 1, "GET", &path, "greedy", &[], 5)).unwrap();
            }
            Some(socket)
        })
        .collect();
    // 80 calls, of which 24 have a connection: the client's half of three sixteenths. The others wait.
    wait_until("the client's share has connections", || sim.calls() == 25);
    wait_until("the others wait", || weir.metric("weir_upstream_requests_in_flight") == 80.0);
    assert_eq!(weir.metric("weir_upstream_requests_limit"), 48.0);
    assert_eq!(weir.get(VECTARA).status, 200, "a hit");
    assert_eq!(weir.get(PALANTIR).status, 200, "a call for the other client");
    assert_eq!(weir.admin("GET", "/readyz").status, 200);
    weir.config.change("weir.yaml", "  grace: 10s", "  grace: 11s");
    assert_eq!(weir.reload().0, 200);
    assert_eq!(sim.calls(), 26, "no further call for the first client");
}
