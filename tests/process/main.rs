//! Tests with real processes: the gateway, the simulator, and the tools that users have.

// A test may fail, wait and read the clock: that is what it does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods
)]
#![allow(unreachable_pub, clippy::needless_pass_by_value)]

mod api;
mod audit;
mod cache;
mod canary;
mod chaos;
mod command;
mod config_faults;
mod credentials;
mod deploy;
mod edge;
mod explain;
mod frames;
mod hygiene;
mod isolation;
mod limits;
mod lists;
mod mapping;
mod matrix;
mod monitoring;
mod native;
mod openapi;
mod outage;
mod provider_faults;
mod purge;
mod reload;
mod sdk;
mod support;
mod tools;
mod traces;
mod transport;
mod upgrade;
mod watch;
