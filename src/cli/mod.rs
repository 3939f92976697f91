//! Parses the command line and runs the command.
//!
//! Exit codes: 0 success; 1 failure or faults; 2 wrong usage; 78 faulty configuration at start (`EX_CONFIG` of
//! sysexits.h).

pub(crate) mod config_lint;

mod admin_client;
mod check;
mod demo;
mod example_lint;
mod explain;
mod health;
mod init;
mod map;
mod purge;
mod reload;

use crate::config::faults::Fault;
use crate::config::load::ConfigSource;
use crate::config::schema;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use crate::server::{Addresses, Server, StartError};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The exit code for a faulty configuration at start.
const EX_CONFIG: u8 = 78;

#[derive(Parser)]
#[command(
    name = "weir",
    version,
    about = "One endpoint, one key and one schema for the agent sessions of several providers"
)]
struct Arguments {
    /// The configuration directory
    #[arg(long, global = true, value_name = "DIR", env = "WEIR_CONFIG", default_value = "config")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Run {
        /// Take over the sockets of the gateway that runs with this configuration, without a failed request
        #[arg(long)]
        upgrade: bool,
    },
    /// Check the configuration and run its examples; exit 1 on any fault
    Check(check::Arguments),
    /// Write a small configuration with comments to a new directory
    Init {
        /// The directory. It must be empty, or not exist
        directory: PathBuf,
    },
    /// Print the JSON Schema (2020-12) of a configuration file, for editors
    Schema {
        /// The kind of file
        #[arg(value_enum, default_value = "weir")]
        file: SchemaOf,
    },
    /// Print shell completions
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the unified session of a provider's response body, and on stderr a table of all fields
    Map {
        /// The provider's name
        provider: String,
        /// A file with the response body, or - for standard input
        file: PathBuf,
        /// Show secret fields
        #[arg(long)]
        reveal_secrets: bool,
    },
    /// Show what Weir would do with a request, without sending it; exit 1 if the request would fail
    Explain(explain::Arguments),
    /// Manage API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Purge the cache of a running gateway through its admin listener
    Purge(purge::Arguments),
    /// Reload the configuration of a running gateway through its admin listener
    Reload(reload::Arguments),
    /// Check that a running gateway accepts requests; exit 1 if it does not
    Health(health::Arguments),
    /// Run the gateway with simulated providers; needs no account and no network
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
    /// Print a new random key and its line for clients.yaml
    New,
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let source = ConfigSource::new(arguments.config);
    match arguments.command.unwrap_or(Command::Run { upgrade: false }) {
        Command::Run { upgrade } => run(source, upgrade),
        Command::Check(arguments) => check::check(&source, &arguments),
        Command::Init { directory } => init::init(&directory),
        Command::Schema { file } => schema(file),
        Command::Completions { shell } => completions(shell),
        Command::Map { provider, file, reveal_secrets } => map::map(&source, &provider, &file, reveal_secrets),
        Command::Explain(arguments) => explain::explain(&source, &arguments),
        Command::Key(KeyCommand::New) => key_new(),
        Command::Purge(arguments) => purge::purge(&source, &arguments),
        Command::Reload(arguments) => reload::reload(&source, &arguments),
        Command::Health(arguments) => health::health(&source, &arguments),
        Command::Demo => demo::demo(source),
    }
}

/// Prints to stdout. Ignores errors, because the reader of a pipe can close it early.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints a line to stderr.
fn print_stderr(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints each fault on its own line.
fn print_faults(faults: &[Fault]) {
    faults.iter().for_each(|fault| print_stderr(&fault.to_string()));
}

fn run(source: ConfigSource, upgrade: bool) -> ExitCode {
    let bound = if upgrade { Server::take_over(source) } else { Server::bind(source) };
    let started = bound.and_then(|server| {
        let Addresses { http, admin } = server.addresses()?;
        let http: Vec<String> = http.iter().map(|address| format!("http={address}")).collect();
        server.run(|| print_stderr(&format!("listening {} admin={admin}", http.join(" "))))
    });
    finish(started)
}

/// Prints the error of a start, if there is one. Returns the exit code.
fn finish(result: Result<(), StartError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config(faults)) => {
            print_faults(&faults);
            print_stderr(&format!("weir: not started: {} in the configuration", count(faults.len(), "fault")));
            ExitCode::from(EX_CONFIG)
        }
        Err(error) => {
            print_stderr(&format!("weir: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn schema(file: SchemaOf) -> ExitCode {
    let file = match file {
        SchemaOf::Weir => schema::File::Weir,
        SchemaOf::Clients => schema::File::Clients,
        SchemaOf::Provider => schema::File::Provider,
    };
    print(&format!("{:#}\n", schema::schema(file)));
    ExitCode::SUCCESS
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// Loads the configuration for a command that needs no secret. Prints what is missing on this machine.
///
/// # Errors
/// The configuration has faults. They are printed.
fn load_without_secrets(source: &ConfigSource) -> Result<Snapshot, ExitCode> {
    match Snapshot::load(&source.accepting_missing(), None, &[0; 32], runtime::now()) {
        Ok(snapshot) => {
            if !snapshot.missing.is_empty() {
                let missing = snapshot.missing.join(", ");
                print_stderr(&format!("weir: without the values of {missing}, which are missing here"));
            }
            Ok(snapshot)
        }
        Err(faults) => {
            print_faults(&faults);
            Err(ExitCode::FAILURE)
        }
    }
}

/// Returns a number with its noun, such as `1 fault` or `2 faults`.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Returns a new random key and its SHA-256 digest.
fn new_key() -> Result<(String, String), getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let key = format!("weir_{}", hex::encode(bytes));
    let digest = hex::encode(Sha256::digest(&key));
    Ok((key, digest))
}

fn key_new() -> ExitCode {
    let (key, digest) = match new_key() {
        Ok(new) => new,
        Err(error) => {
            print_stderr(&format!("weir: cannot get random bytes: {error}"));
            return ExitCode::FAILURE;
        }
    };
    print(&format!(
        "key:    {key}\nsha256: {digest}\n\nGive the key to the client; Weir does not store it. Add its digest to the client in clients.yaml:\n    keys: [ {{ sha256: {digest} }} ]\n"
    ));
    ExitCode::SUCCESS
}
