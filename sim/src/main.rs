//! `weir-sim`: simulates the session APIs of three providers, for tests, demos and benches.
//!
//! It serves all three on one address (their paths differ), fails on request, and counts calls. It must share no code
//! with `weir`: a fault in shared code would be invisible to the tests.

// `clippy.toml` states rules on clocks and tasks for the gateway. They do not apply to the simulator.
#![allow(clippy::disallowed_methods)]

mod agenthuman;
mod calls;
mod control;
mod faults;
mod http;
mod load;
mod options;
mod palantir;
mod server;
mod simulator;
mod streams;
mod sync;
mod throttle;
mod tokens;
mod vectara;
mod world;
mod writes;

use clap::Parser;
use options::{Command, Options};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    match options.command {
        Some(Command::Load(arguments)) => load::run(arguments).await,
        None => server::run(options.serve).await,
    }
}
