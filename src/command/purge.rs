//! `weir purge`: asks a running gateway to forget answers.

use super::{complain, list_faults, print};
use crate::config::load::Source;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use serde_json::{Map, Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// For each step of the exchange with the admin listener.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Mark stale instead of removing
    #[arg(long)]
    soft: bool,
    /// The admin listener's address; left out: the configuration's
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// A session, and the lists it may be in
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// An agent's sessions and lists
    #[arg(long, value_name = "PROVIDER:AGENT")]
    agent: Option<String>,
    /// All of a provider's
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// All that this client's credentials can see (other clients with the same credentials share it)
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Everything
    #[arg(long)]
    all: bool,
}

pub(super) fn purge(source: &Source, arguments: &Arguments) -> ExitCode {
    let snapshot = match Snapshot::load(source, None, &[0; 32], runtime::now()) {
        Ok(snapshot) => snapshot,
        Err(faults) => {
            list_faults(&faults);
            return ExitCode::FAILURE;
        }
    };
    let address = arguments.admin.unwrap_or(snapshot.weir.admin.address);
    match ask(address, "POST /cache/purge", &snapshot.weir.admin.token.0, &arguments.body().to_string()) {
        Ok((200, body)) => {
            print(&format!("{}\n", body.trim()));
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            let problem: Value = serde_json::from_str(&body).unwrap_or_default();
            complain(&format!("weir: {status}: {}", problem["detail"].as_str().unwrap_or(&body)));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("weir: the admin listener {address} does not answer: {error}"));
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

/// One request, one answer: status and body.
pub(super) fn ask(address: SocketAddr, what: &str, token: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let token = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{token}Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| std::io::Error::other("what it sent is not HTTP"))
}
