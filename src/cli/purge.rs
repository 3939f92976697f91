//! Runs `weir purge`: removes entries from the cache of a running gateway.

use super::admin_client::{Connection, Needs};
use crate::config::load::ConfigSource;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: PurgeTarget,
    /// Make the entries stale instead of removing them
    #[arg(long)]
    soft: bool,
    #[command(flatten)]
    connection: Connection,
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
    let listener = match arguments.connection.open(source, Needs::Token) {
        Ok(listener) => listener,
        Err(code) => return code,
    };
    listener.run("POST /cache/purge", &arguments.body().to_string(), |status, body| {
        let problem: Value = serde_json::from_str(body).unwrap_or_default();
        format!("weir: {status}: {}", problem["detail"].as_str().unwrap_or(body))
    })
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
