//! `weir demo`: the gateway against simulated providers, with requests to paste.
//!
//! The simulator is the program `weir-sim` beside this one, started as a process of its own.

use super::{complain, finish, print};
use crate::config::load::Source;
use crate::server::{Addresses, Server, StartError};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

/// The demo client's key; `clients.yaml` has its digest.
const KEY: &str = "weir-demo-key";
/// What the shipped provider files read, and what the simulator accepts.
const SECRETS: [(&str, &str); 3] =
    [("VECTARA_API_KEY", "zut_demo"), ("PALANTIR_TOKEN", "demo-token"), ("AGENTHUMAN_API_KEY", "ah_test_demo")];
const BASES: [&str; 3] = ["VECTARA_BASE_URL", "PALANTIR_BASE_URL", "AGENTHUMAN_BASE_URL"];

/// Ends the simulator with the demo.
struct Simulator(Child);

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn demo(mut source: Source) -> ExitCode {
    let (_simulator, address) = match simulator() {
        Ok(started) => started,
        Err(error) => {
            complain(&format!("weir: {error}"));
            return ExitCode::FAILURE;
        }
    };
    source.overlay.extend(BASES.map(|name| (name.to_owned(), format!("http://{address}"))));
    source.overlay.extend(SECRETS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let started = bind(source).and_then(|server| {
        let addresses = server.addresses()?;
        server.run(|| welcome(&addresses, &address))
    });
    finish(started)
}

/// The configured addresses, or, if they are taken, free ones.
fn bind(mut source: Source) -> Result<Server, StartError> {
    match Server::bind(source.clone()) {
        Err(StartError::Bind { address, .. }) => {
            complain(&format!("weir: {address} is taken; the demo uses free ports instead"));
            for name in ["WEIR_LISTEN", "WEIR_ADMIN"] {
                source.overlay.insert(name.into(), "127.0.0.1:0".into());
            }
            Server::bind(source)
        }
        bound => bound,
    }
}

fn simulator() -> Result<(Simulator, String), String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let program = own.with_file_name("weir-sim");
    let accept = SECRETS.map(|(_, secret)| secret);
    let child = Command::new(&program)
        .args(["--listen", "127.0.0.1:0", "--exit-with-stdin"])
        .args(["--vectara-key", accept[0], "--palantir-token", accept[1], "--agenthuman-key", accept[2]])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the simulator {}: {error}; build it with `cargo build`", program.display()))?;
    let mut simulator = Simulator(child);
    let mut line = String::new();
    if let Some(out) = simulator.0.stdout.take() {
        let _ = BufReader::new(out).read_line(&mut line);
    }
    let address = line.trim().strip_prefix("listening http=").map(str::to_owned);
    let address = address.ok_or_else(|| format!("the simulator did not say where it listens: {line:?}"))?;
    Ok((simulator, address))
}

fn welcome(addresses: &Addresses, simulator: &str) {
    let Some(http) = addresses.http.first() else { return };
    let admin = addresses.admin;
    let session = "agenthuman:sess_01H3Z8G9YR3K2N5M6P7Q8W4T";
    print(&format!(
        "Weir listens on http://{http} (admin: http://{admin}); simulated providers on http://{simulator}.\n\
         Paste these into another terminal:\n\n\
         curl -i -H 'X-API-Key: {KEY}' 'http://{http}/v1/sessions/{session}'\n\
         curl -s -H 'X-API-Key: {KEY}' 'http://{http}/v1/agents/agt_customer_support/sessions?limit=3'\n\
         curl -s -H 'X-API-Key: {KEY}' 'http://{http}/v1/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6'\n\
         curl -s -H 'X-API-Key: {KEY}' 'http://{http}/v1/sessions?provider=agenthuman&status=active&limit=2'\n\
         curl -s 'http://{admin}/metrics'\n\n\
         Requests are logged below. Ctrl-C ends the demo.\n"
    ));
}
