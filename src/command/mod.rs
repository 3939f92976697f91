//! The command line: each command is a thin front of what the library does.
//!
//! Exit codes: 0; 1 faults found; 2 usage; 78 bad config at start (`EX_CONFIG` of sysexits).

mod demo;
mod explain;
mod health;
mod map;
mod purge;

use crate::audit;
use crate::config::faults::Fault;
use crate::config::load::{self, Source};
use crate::config::sketch;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use crate::server::{Addresses, Server, StartError};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Bad config at start.
const EX_CONFIG: u8 = 78;

#[derive(Parser)]
#[command(name = "weir", version, about = "One endpoint, one key, one schema for agent sessions of several providers")]
struct Arguments {
    /// The configuration's directory
    #[arg(long, global = true, value_name = "DIR", env = "WEIR_CONFIG", default_value = "config")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Run {
        /// Take over the sockets of the one that runs with this configuration; it then ends, without a failed request
        #[arg(long)]
        upgrade: bool,
    },
    /// Check the configuration and run its examples; exit 1 on any fault
    Check {
        /// Also say what is sound but weak; exit 1 on any finding
        #[arg(long)]
        strict: bool,
    },
    /// Print the JSON Schema (2020-12) of a configuration file, for editors
    Schema {
        /// Which file
        #[arg(value_enum, default_value = "weir")]
        file: SchemaOf,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the unified session of a provider's body; a coverage table goes to stderr
    Map {
        /// The provider's name
        provider: String,
        /// A file with the provider's body, or - for standard input
        file: PathBuf,
        /// Show members marked secret
        #[arg(long)]
        reveal_secrets: bool,
    },
    /// Tell what would become of a request, and why; asks nobody. Exit 1 where it would fail
    Explain(explain::Arguments),
    /// API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Purge answers from a running gateway's cache, by its admin listener
    Purge(purge::Arguments),
    /// Ask a running gateway whether it takes requests; exit 1 if not
    Health(health::Arguments),
    /// Run the gateway against simulated providers: no account, no network
    Demo,
}

/// A kind of configuration file.
#[derive(Clone, Copy, ValueEnum)]
enum SchemaOf {
    /// weir.yaml
    Weir,
    /// clients.yaml
    Clients,
    /// providers/*.yaml
    Provider,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a random key and print it with its line for clients.yaml
    New,
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let source = Source::new(arguments.config);
    match arguments.command.unwrap_or(Command::Run { upgrade: false }) {
        Command::Run { upgrade } => run(source, upgrade),
        Command::Check { strict } => check(&source, strict),
        Command::Schema { file } => schema(file),
        Command::Completions { shell } => completions(shell),
        Command::Map { provider, file, reveal_secrets } => map::map(&source, &provider, &file, reveal_secrets),
        Command::Explain(arguments) => explain::explain(&source, &arguments),
        Command::Key(KeyCommand::New) => key_new(),
        Command::Purge(arguments) => purge::purge(&source, &arguments),
        Command::Health(arguments) => health::health(&source, &arguments),
        Command::Demo => demo::demo(source),
    }
}

/// Prints to stdout. A reader that is gone is no reason to fail.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints to stderr.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn list_faults(faults: &[Fault]) {
    faults.iter().for_each(|fault| complain(&fault.to_string()));
}

fn run(source: Source, upgrade: bool) -> ExitCode {
    let bound = if upgrade { Server::take_over(source) } else { Server::bind(source) };
    let started = bound.and_then(|server| {
        let Addresses { http, admin } = server.addresses()?;
        let http: Vec<String> = http.iter().map(|address| format!("http={address}")).collect();
        server.run(|| complain(&format!("listening {} admin={admin}", http.join(" "))))
    });
    finish(started)
}

fn finish(result: Result<(), StartError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config(faults)) => {
            list_faults(&faults);
            complain(&format!("weir: {} faults in the configuration; not started", faults.len()));
            ExitCode::from(EX_CONFIG)
        }
        Err(error) => {
            complain(&format!("weir: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn schema(file: SchemaOf) -> ExitCode {
    let file = match file {
        SchemaOf::Weir => sketch::File::Weir,
        SchemaOf::Clients => sketch::File::Clients,
        SchemaOf::Provider => sketch::File::Provider,
    };
    print(&format!("{:#}\n", sketch::schema(file)));
    ExitCode::SUCCESS
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

fn check(source: &Source, strict: bool) -> ExitCode {
    match Snapshot::load(source, None, &[0; 32], runtime::now()) {
        Ok(snapshot) => {
            let audited = load::load(source).config.filter(|_| strict);
            let findings = audited.map_or_else(Vec::new, |config| audit::audit(&config, runtime::now()));
            if !findings.is_empty() {
                list_faults(&findings);
                complain(&format!("weir: nothing is wrong, but {} things could be better", findings.len()));
                return ExitCode::FAILURE;
            }
            print(&format!(
                "ok: revision {}, {} providers, {} clients, {} files\n",
                snapshot.revision,
                snapshot.providers.len(),
                snapshot.clients.len(),
                snapshot.files.len()
            ));
            ExitCode::SUCCESS
        }
        Err(faults) => {
            list_faults(&faults);
            complain(&format!("weir: {} faults", faults.len()));
            ExitCode::FAILURE
        }
    }
}

fn key_new() -> ExitCode {
    let mut bytes = [0; 32];
    if let Err(error) = getrandom::fill(&mut bytes) {
        complain(&format!("weir: no random numbers to be had: {error}"));
        return ExitCode::FAILURE;
    }
    let key = format!("weir_{}", hex(&bytes));
    print(&format!(
        "key:    {key}\nsha256: {0}\n\nGive the key to the client; it is not stored. Put its digest under the client in clients.yaml:\n    keys: [ {{ sha256: {0} }} ]\n",
        hex(&Sha256::digest(&key))
    ));
    ExitCode::SUCCESS
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
