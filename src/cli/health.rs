//! Runs `weir health`: checks a running gateway through its admin listener, for health checks of containers.
//!
//! It reads the configuration only if neither `--admin` nor `WEIR_ADMIN` is given. A faulty file on the disk does not
//! make a running gateway unhealthy, because the gateway keeps its last valid configuration.

use super::admin_client::{Connection, Needs};
use crate::config::load::ConfigSource;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Check that the process is alive (/healthz), not that it accepts requests (/readyz)
    #[arg(long)]
    live: bool,
}

pub(super) fn health(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    let listener = match arguments.connection.open(source, Needs::Address) {
        Ok(listener) => listener,
        Err(code) => return code,
    };
    let path = if arguments.live { "/healthz" } else { "/readyz" };
    listener.run(&format!("GET {path}"), "", |status, body| format!("weir: {path} returned {status}: {}", body.trim()))
}
