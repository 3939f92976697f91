//! Runs `weir purge`: removes entries from the cache of a running gateway.

use super::{admin_client, print, print_faults, print_stderr};
use crate::config::load::ConfigSource;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: PurgeTarget,
    /// Make the entries stale instead of removing them
    #[arg(long)]
    soft: bool,
    /// The address of the admin listener [default: admin.address of the configuration]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct PurgeTarget {
    /// A session, and the lists that can contain it
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// The sessions and lists of an agent
    #[arg(long, value_name = "PROVIDER:AGENT")]
    agent: Option<String>,
    /// All entries of a provider
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// All entries under the credentials of a client; clients with the same credentials share them
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// All entries
    #[arg(long)]
    all: bool,
}

pub(super) fn purge(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    let snapshot = match Snapshot::load(source, None, &[0; 32], runtime::now()) {
        Ok(snapshot) => snapshot,
        Err(faults) => {
            print_faults(&faults);
            return ExitCode::FAILURE;
        }
    };
    let address = arguments.admin.unwrap_or(snapshot.weir.admin.address);
    let token = admin_client::token(source, &snapshot.weir.admin.token, address);
    match admin_client::send(address, "POST /cache/purge", &token, &arguments.body().to_string()) {
        Ok((200, body)) => {
            print(&format!("{}\n", body.trim()));
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            let problem: Value = serde_json::from_str(&body).unwrap_or_default();
            print_stderr(&format!("weir: {status}: {}", problem["detail"].as_str().unwrap_or(&body)));
            ExitCode::FAILURE
        }
        Err(error) => {
            print_stderr(&format!("weir: no response from the admin listener at {address}: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn body(&self) -> Value {
        let target = &self.target;
        let named = [
            ("session", &target.session),
            ("agent", &target.agent),
            ("provider", &target.provider),
            ("client", &target.client),
        ];
        let mut body: Map<String, Value> =
            named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?.into()))).collect();
        if target.all {
            body.insert("all".into(), true.into());
        }
        body.insert("mode".into(), json!(if self.soft { "soft" } else { "hard" }));
        body.into()
    }
}
