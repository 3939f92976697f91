//! Runs `weir demo`: the gateway with simulated providers, and commands to try.
//!
//! The simulator is the program `weir-sim` in the directory of this program. It prints the environment variables that
//! the configuration needs and the paths to try, so this file names no provider.

use super::{finish, print, print_stderr};
use crate::config::load::ConfigSource;
use crate::server::{Addresses, Server, StartError};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

/// The key of the demo client; `clients.yaml` has its digest.
const KEY: &str = "weir-demo-key";

/// The simulator process; it is killed when this is dropped.
struct Simulator {
    process: Child,
    address: String,
    environment: BTreeMap<String, String>,
    paths: Vec<String>,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn demo(mut source: ConfigSource) -> ExitCode {
    let simulator = match Simulator::start() {
        Ok(started) => started,
        Err(error) => {
            print_stderr(&format!("weir: {error}"));
            return ExitCode::FAILURE;
        }
    };
    source.overlay.extend(simulator.environment.clone());
    let started = bind(source).and_then(|server| {
        let addresses = server.addresses()?;
        server.run(|| welcome(&addresses, &simulator))
    });
    finish(started)
}

/// Binds the configured addresses, or free ones if these are in use.
fn bind(mut source: ConfigSource) -> Result<Server, StartError> {
    match Server::bind(source.clone()) {
        Err(StartError::Bind { address, .. }) => {
            print_stderr(&format!("weir: {address} is already in use; the demo uses free ports instead"));
            for name in ["WEIR_LISTEN", "WEIR_ADMIN"] {
                source.overlay.insert(name.into(), "127.0.0.1:0".into());
            }
            Server::bind(source)
        }
        bound => bound,
    }
}

impl Simulator {
    fn start() -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let program = own.with_file_name("weir-sim");
        let process = Command::new(&program)
            .args(["--listen", "127.0.0.1:0", "--exit-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}; build it with `cargo build`", program.display()))?;
        let mut simulator = Self { process, address: String::new(), environment: BTreeMap::new(), paths: Vec::new() };
        let out = simulator.process.stdout.take().ok_or("cannot read the output of the simulator")?;
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            match line.split_once(' ') {
                Some(("env", pair)) => {
                    simulator.environment.extend(pair.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())));
                }
                Some(("try", path)) => simulator.paths.push(path.to_owned()),
                Some(("listening", address)) => {
                    simulator.address = address.trim_start_matches("http=").to_owned();
                    return Ok(simulator);
                }
                _ => {}
            }
        }
        Err("the simulator exited before it listened".into())
    }
}

fn welcome(addresses: &Addresses, simulator: &Simulator) {
    let (Some(http), admin) = (addresses.http.first(), addresses.admin) else { return };
    let mut text = format!(
        "Weir listens on http://{http} (admin: http://{admin}); simulated providers on http://{}.\n\
         Paste these into another terminal:\n\n",
        simulator.address
    );
    for path in &simulator.paths {
        text += &format!("curl -i -H 'X-API-Key: {KEY}' 'http://{http}{path}'\n");
    }
    text += &format!("curl -s 'http://{admin}/metrics'\n\n");
    text += "docs/SIMULATOR.md tells how to make the simulated providers fail.\n";
    text += "Requests are logged below. Ctrl-C ends the demo.\n";
    print(&text);
}
