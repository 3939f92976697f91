//! Runs `weir reload`: has a running gateway read its configuration again.

use super::admin_client::{Connection, Needs};
use crate::config::load::ConfigSource;
use serde_json::Value;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn reload(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    // The new configuration may have faults. The gateway reports them all.
    let listener = match arguments.connection.open(source, Needs::Token) {
        Ok(listener) => listener,
        Err(code) => return code,
    };
    listener.run("POST /reload", "", |status, body| {
        let answer: Value = serde_json::from_str(body).unwrap_or_default();
        match answer["faults"].as_array() {
            Some(faults) => faults.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"),
            None => format!("weir: {status}: {}", answer["detail"].as_str().unwrap_or(body)),
        }
    })
}
