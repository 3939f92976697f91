//! `weir demo`: the gateway against simulated providers, with requests to paste.
//!
//! The simulator is the program `weir-sim` beside this one, started as a process of its own. It says
//! itself what the environment should be and what there is to try: providers are data here too.

use super::{complain, finish, print};
use crate::config::load::Source;
use crate::server::{Addresses, Server, StartError};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

/// The demo client's key; `clients.yaml` has its digest.
const KEY: &str = "weir-demo-key";

/// A simulator that ends with the demo.
struct Simulator {
    process: Child,
    address: String,
    environment: BTreeMap<String, String>,
    tries: Vec<String>,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn demo(mut source: Source) -> ExitCode {
    let simulator = match Simulator::start() {
        Ok(started) => started,
        Err(error) => {
            complain(&format!("weir: {error}"));
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
        let mut simulator = Self { process, address: String::new(), environment: BTreeMap::new(), tries: Vec::new() };
        let out = simulator.process.stdout.take().ok_or("the simulator has no output")?;
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            match line.split_once(' ') {
                Some(("env", pair)) => {
                    simulator.environment.extend(pair.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())));
                }
                Some(("try", path)) => simulator.tries.push(path.to_owned()),
                Some(("listening", address)) => {
                    simulator.address = address.trim_start_matches("http=").to_owned();
                    return Ok(simulator);
                }
                _ => {}
            }
        }
        Err("the simulator ended before it listened".into())
    }
}

fn welcome(addresses: &Addresses, simulator: &Simulator) {
    let (Some(http), admin) = (addresses.http.first(), addresses.admin) else { return };
    let mut text = format!(
        "Weir listens on http://{http} (admin: http://{admin}); simulated providers on http://{}.\n\
         Paste these into another terminal:\n\n",
        simulator.address
    );
    for path in &simulator.tries {
        text += &format!("curl -i -H 'X-API-Key: {KEY}' 'http://{http}{path}'\n");
    }
    text += &format!("curl -s 'http://{admin}/metrics'\n\nRequests are logged below. Ctrl-C ends the demo.\n");
    print(&text);
}
