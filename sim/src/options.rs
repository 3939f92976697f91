//! Parses the command line of `weir-sim`.

use crate::load;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The control API, for `--help`. docs/SIMULATOR.md explains it.
const CONTROL_API: &str = r#"Requests that control it (docs/SIMULATOR.md explains them):
  POST   /_sim/faults      plan a fault: {"path": PART, "times": N, "if_header": {NAME: VALUE}, "latency_ms": N, "fault": FAULT}
  DELETE /_sim/faults      remove all plans
  POST   /_sim/sessions    replace the generated sessions: {AGENT: [SESSION, ...]}; {} restores them
  POST   /_sim/refuse-tls  end new TLS connections (body: {})
  DELETE /_sim/tokens      revoke all access tokens
  GET    /_sim/calls       the number of calls; DELETE resets it

FAULT is one of:
  {"kind": "answer", "status": N, "headers": {NAME: VALUE}, "body": TEXT}
  {"kind": "reset"}   {"kind": "truncate"}   {"kind": "hang"}
  {"kind": "drip", "ms": N}   {"kind": "oversize", "bytes": N}

Example: the next three calls for sessions are 503:
  curl -d '{"path": "/sessions", "times": 3, "fault": {"kind": "answer", "status": 503}}' http://ADDRESS/_sim/faults
The same object in the request header x-sim-fault holds for that request alone."#;

#[derive(Parser, Debug)]
#[command(
    name = "weir-sim",
    version,
    about = "Simulates the session APIs of three providers on one address",
    after_help = CONTROL_API
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
}

#[derive(Args, Debug)]
pub(crate) struct ServeOptions {
    /// Address to listen on; port 0 picks a free port
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub(crate) listen: SocketAddr,
    /// Serve TLS with a new self-signed certificate for localhost and 127.0.0.1, and write the certificate to this PEM file
    #[arg(long)]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Do not offer HTTP/2 over TLS
    #[arg(long)]
    pub(crate) http1_only: bool,
    /// Exit when standard input closes, so that the simulator does not outlive its parent process
    #[arg(long)]
    pub(crate) exit_with_stdin: bool,
    /// Number of generated sessions of each agent, and of each provider without agents
    #[arg(long, default_value_t = 1000)]
    pub(crate) sessions: usize,
    /// Requests per minute that each provider allows; 0: no limit
    #[arg(long, default_value_t = 0)]
    pub(crate) throttle: u64,
    /// The x-api-key that Vectara accepts
    #[arg(long, default_value = "zut_sim")]
    pub(crate) vectara_key: String,
    /// The bearer token that Palantir accepts
    #[arg(long, default_value = "sim-token")]
    pub(crate) palantir_token: String,
    /// The x-api-key that AgentHuman accepts
    #[arg(long, default_value = "ah_test_sim")]
    pub(crate) agenthuman_key: String,
    /// The secret of the OAuth 2.0 client `sim-client`, for both token endpoints
    #[arg(long, default_value = "sim-secret")]
    pub(crate) client_secret: String,
    /// Lifetime of an issued token, in seconds
    #[arg(long, default_value_t = 1800)]
    pub(crate) token_seconds: u64,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Send mixed requests to a gateway at a limited rate, instead of simulating
    Load(load::Arguments),
}
