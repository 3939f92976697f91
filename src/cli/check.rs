//! Runs `weir check`: reads, checks and compiles the configuration, and runs its examples.

use super::admin_client::Connection;
use super::{config_lint, count, example_lint, print, print_faults, print_stderr};
use crate::config::load::{self, ConfigSource};
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use serde_json::Value;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Also warn about weak settings; exit 1 on any warning
    #[arg(long)]
    strict: bool,
    /// Accept environment variables that are not set, and secret files that cannot be read
    #[arg(long)]
    allow_unset: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn check(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    let source = if arguments.allow_unset { source.accepting_missing() } else { source.clone() };
    let snapshot = match Snapshot::load(&source, None, &[0; 32], runtime::now()) {
        Ok(snapshot) => snapshot,
        Err(faults) => {
            print_faults(&faults);
            print_stderr(&format!("weir: {}", count(faults.len(), "fault")));
            return ExitCode::FAILURE;
        }
    };
    if !snapshot.missing.is_empty() {
        print_stderr(&format!("weir: checked without the values of {}", snapshot.missing.join(", ")));
    }
    let linted = load::load(&source).config.filter(|_| arguments.strict);
    let warnings = linted.map_or_else(Vec::new, |config| {
        let mut warnings = config_lint::warnings(&config, runtime::now());
        warnings.extend(example_lint::warnings(&config, &snapshot));
        warnings
    });
    if !warnings.is_empty() {
        print_faults(&warnings);
        print_stderr(&format!("weir: valid, with {}", count(warnings.len(), "warning")));
        return ExitCode::FAILURE;
    }
    print(&format!(
        "ok: revision {}, {}, {}, {}\n",
        snapshot.revision,
        count(snapshot.providers.len(), "provider"),
        count(snapshot.clients.len(), "client"),
        count(snapshot.files.len(), "file")
    ));
    if let Some(settings) = waiting_for_restart(&source, arguments, &snapshot) {
        print_stderr(&format!("weir: the running Weir needs a restart for {settings}"));
    }
    ExitCode::SUCCESS
}

/// Returns the settings that the running gateway has read and that only a restart puts into force. `None` if there are
/// none, or if no gateway on this machine runs with these files.
fn waiting_for_restart(source: &ConfigSource, arguments: &Arguments, snapshot: &Snapshot) -> Option<String> {
    let listener = arguments.connection.open_if_local(source, &snapshot.weir.admin)?;
    let (status, body) = listener.send("GET /config", "").ok()?;
    let running: Value = serde_json::from_str(&body).ok().filter(|_| status == 200)?;
    // The running gateway adds `.N` after N changes of secret files.
    let revision = running["revision"].as_str()?.split('.').next()?;
    let settings: Vec<&str> = running["needs_restart"].as_array()?.iter().filter_map(Value::as_str).collect();
    (revision == snapshot.revision && !settings.is_empty()).then(|| settings.join(", "))
}
