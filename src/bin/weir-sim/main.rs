//! `weir-sim`: three providers' session APIs, simulated for tests, demos and benches.
//!
//! It shares no code with `weir`: the judge must not share code with the judged. It serves all three
//! on one address (their paths differ), misbehaves when told to, and counts calls.

// The house's rules on time and tasks are for the gateway; this is its counterpart.
#![allow(clippy::disallowed_methods)]

mod agenthuman;
mod faults;
mod load;
mod palantir;
mod vectara;
mod world;
mod writes;

use bytes::Bytes;
use clap::{Parser, Subcommand};
use faults::{Control, Planned};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use world::World;

/// An error that ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Abort(pub(crate) &'static str);

#[derive(Parser, Debug, Clone)]
#[command(name = "weir-sim", version, about = "Simulates three providers' session APIs on one address")]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9090")]
    listen: SocketAddr,
    /// Serve TLS with a certificate made now for localhost and 127.0.0.1, written to this file as PEM
    #[arg(long)]
    tls_certificate: Option<std::path::PathBuf>,
    /// Over TLS, do not offer HTTP/2
    #[arg(long)]
    http1_only: bool,
    /// End when standard input ends (so that no simulator outlives its parent)
    #[arg(long)]
    exit_with_stdin: bool,
    /// Sessions generated for each agent, and in all where there are no agents
    #[arg(long, default_value_t = 1000)]
    sessions: usize,
    /// Requests a minute that each provider admits before it throttles; 0: any number
    #[arg(long, default_value_t = 0)]
    throttle: u64,
    /// Vectara's x-api-key
    #[arg(long, default_value = "zut_sim")]
    vectara_key: String,
    /// Palantir's bearer token
    #[arg(long, default_value = "sim-token")]
    palantir_token: String,
    /// AgentHuman's x-api-key
    #[arg(long, default_value = "ah_test_sim")]
    agenthuman_key: String,
    /// The secret of the OAuth 2.0 client `sim-client` at both token endpoints
    #[arg(long, default_value = "sim-secret")]
    client_secret: String,
    /// How long a token is good for, in seconds
    #[arg(long, default_value_t = 1800)]
    token_seconds: u64,
}

#[derive(Subcommand, Debug, Clone)]
enum Command {
    /// Ask a gateway for this and that, at a bounded rate, in place of simulating
    Load(load::Arguments),
}

/// Looks up a request's header.
pub(crate) type Header<'h> = &'h (dyn Fn(&str) -> Option<String> + Sync);

/// All the simulator knows.
pub(crate) struct Sim {
    options: Options,
    world: World,
    control: Control,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if let Some(Command::Load(arguments)) = &options.command {
        return load::run(arguments.clone()).await;
    }
    let listener = TcpListener::bind(options.listen).await?;
    let address = listener.local_addr()?;
    let tls = options.tls_certificate.as_ref().map(|path| acceptor(path, options.http1_only)).transpose()?;
    if options.exit_with_stdin {
        tokio::spawn(async {
            let mut rest = Vec::new();
            let _ = tokio::io::stdin().read_to_end(&mut rest).await;
            std::process::exit(0);
        });
    }
    announce(&options, address)?;
    let sim = Arc::new(Sim { world: World::new(options.sessions), options, control: Control::default() });
    loop {
        let (socket, _) = listener.accept().await?;
        let _ = socket.set_nodelay(true);
        let (sim, tls) = (sim.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                Some(_) if sim.control.refuses_tls() => drop(socket),
                Some(tls) => {
                    if let Ok(stream) = tls.accept(socket).await {
                        serve(stream, sim).await;
                    }
                }
                None => serve(socket, sim).await,
            }
        });
    }
}

/// What a gateway's environment should be, requests to try, and, last, the address.
fn announce(options: &Options, address: SocketAddr) -> std::io::Result<()> {
    let scheme = if options.tls_certificate.is_some() { "https" } else { "http" };
    let secrets = [
        ("VECTARA", "API_KEY", &options.vectara_key),
        ("PALANTIR", "TOKEN", &options.palantir_token),
        ("AGENTHUMAN", "API_KEY", &options.agenthuman_key),
    ];
    let mut out = std::io::stdout();
    for (name, what, secret) in secrets {
        writeln!(out, "env {name}_BASE_URL={scheme}://{address}\nenv {name}_{what}={secret}")?;
    }
    for path in world::TRY {
        writeln!(out, "try {path}")?;
    }
    writeln!(out, "listening http={address}")?;
    out.flush()
}

fn acceptor(path: &std::path::Path, http1_only: bool) -> Result<tokio_rustls::TlsAcceptor, Box<dyn Error>> {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    std::fs::write(path, made.cert.pem())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let protocols: &[&[u8]] = if http1_only { &[b"http/1.1"] } else { &[b"h2", b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config).into())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, sim: Arc<Sim>) {
    let service =
        service_fn(move |request| Box::pin(answer(sim.clone(), request)) as Pin<Box<dyn Future<Output = _> + Send>>);
    // An aborted connection is what some faults are for.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(sim: Arc<Sim>, request: Request<Incoming>) -> Result<Response<faults::Body>, Abort> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    if path.starts_with("/_sim/") {
        let body = Limited::new(body, 64 << 20).collect().await.map_err(|_| Abort("no body"))?.to_bytes();
        if path == "/_sim/sessions" {
            let status = if sim.world.replace(&body) { 200 } else { 400 };
            return Ok(Reply::new(status, "{}".into()).whole());
        }
        return Ok(sim.control.handle(&parts.method, &path, &body));
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let version = parts.version;
    sim.control.count(&parts.method, parts.uri.path_and_query().map_or(&*path, |p| p.as_str()), version);
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let told = header("x-sim-fault").and_then(|text| serde_json::from_str(&text).ok());
    let planned = told.or_else(|| sim.control.planned(&path, &parts.headers));
    let planned = match planned {
        // Late, and then as it would be: writes and streams too.
        Some(Planned { latency_ms, fault: faults::Fault::None, .. }) => {
            tokio::time::sleep(std::time::Duration::from_millis(latency_ms)).await;
            None
        }
        planned => planned,
    };
    let window = sim.control.window(&path, sim.options.throttle);
    let segments: Vec<String> = path.trim_start_matches('/').split('/').map(decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if planned.is_none()
        && let Some(response) = writes::answer(&sim, &parts, &segments, &query, &header, body).await?
    {
        return Ok(response);
    }
    let reply = if parts.method == Method::GET {
        route(&sim, &segments, &query, &header)
    } else {
        Reply::new(405, "{}".into())
    };
    let reply = match window {
        faults::Window::Over { resets } => throttled(&path, sim.options.throttle, resets),
        faults::Window::Within { left, resets } => reply.limited(&path, sim.options.throttle, left, resets),
        faults::Window::Unlimited => reply,
    };
    match planned {
        None => Ok(reply.whole()),
        Some(Planned { latency_ms, fault, .. }) => {
            tokio::time::sleep(std::time::Duration::from_millis(latency_ms)).await;
            faults::misbehave(fault, reply).await
        }
    }
}

fn route(sim: &Sim, segments: &[&str], query: &Query, header: Header<'_>) -> Reply {
    match segments {
        ["v2", "agents", rest @ ..] => vectara::answer(sim, rest, query, header),
        ["api", "v2", "aipAgents", "agents", rest @ ..] => palantir::answer(sim, rest, query, header),
        ["v1", "sessions", rest @ ..] => agenthuman::answer(sim, rest, header),
        _ => Reply::new(404, String::new()),
    }
}

/// Each provider's way to say that it is too much.
fn throttled(path: &str, limit: u64, resets: u64) -> Reply {
    use serde_json::json;
    match path.split('/').nth(1) {
        Some("v2") => {
            let mut reply = Reply::json(429, &json!({ "messages": ["rate_limit_exceeded"], "request_id": "r" }));
            reply.headers.push(("retry-after".into(), "1".into()));
            reply
        }
        Some("api") => Reply::new(429, String::new()),
        _ => {
            let error = "Too many requests. Please retry after 1 minute.";
            Reply::json(429, &json!({ "success": false, "error": error })).limited(path, limit, 0, resets)
        }
    }
}

fn decoded(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// A query's parameters.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (decoded(name), decoded(&value.replace('+', " ")))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer before any fault.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn new(status: u16, body: String) -> Self {
        let json = ("content-type".to_owned(), "application/json".to_owned());
        Self { status, headers: vec![json], body: body.into() }
    }

    /// With the headers in which one provider tells what is left.
    fn limited(mut self, path: &str, limit: u64, left: u64, resets: u64) -> Self {
        if path.starts_with("/v1/") {
            for (name, value) in [("limit", limit), ("remaining", left), ("reset", resets)] {
                self.headers.push((format!("x-ratelimit-{name}"), value.to_string()));
            }
        }
        self
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, body.to_string())
    }
}
