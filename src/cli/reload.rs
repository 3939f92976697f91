//! Runs `weir reload`: has a running gateway read its configuration again.

use super::{admin_client, print, print_faults, print_stderr};
use crate::config::load::{self, ConfigSource};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The address of the admin listener [default: admin.address of the configuration]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

pub(super) fn reload(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    // The new configuration may have faults. The gateway reports them all; this command needs only `admin`.
    let load::Loaded { config, faults } = load::load(source);
    let Some(weir) = config.map(|config| config.weir) else {
        print_faults(&faults.sorted());
        print_stderr("weir: cannot read the admin listener's address and token from the configuration");
        return ExitCode::FAILURE;
    };
    let address = arguments.admin.unwrap_or(weir.admin.address);
    let token = admin_client::token(source, &weir.admin.token, address);
    match admin_client::send(address, "POST /reload", &token, "") {
        Ok((200, body)) => {
            print(&format!("{}\n", body.trim()));
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            let answer: Value = serde_json::from_str(&body).unwrap_or_default();
            match answer["faults"].as_array() {
                Some(faults) => faults.iter().filter_map(Value::as_str).for_each(print_stderr),
                None => print_stderr(&format!("weir: {status}: {}", answer["detail"].as_str().unwrap_or(&body))),
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            print_stderr(&format!("weir: no response from the admin listener at {address}: {error}"));
            ExitCode::FAILURE
        }
    }
}
