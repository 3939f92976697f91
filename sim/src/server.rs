//! Listens, and routes each request to the provider that it addresses.

use crate::faults::Plan;
use crate::http::{Abort, Body, Query, Reply, header, percent_decode};
use crate::options::ServeOptions;
use crate::simulator::Simulator;
use crate::world::EXAMPLE_PATHS;
use crate::{agenthuman, control, palantir, vectara, writes};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The longest body of a control request, in bytes.
const MAX_CONTROL_BODY: usize = 64 << 20;

pub(crate) async fn run(options: ServeOptions) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(options.listen).await?;
    let address = listener.local_addr()?;
    let tls = options.tls_certificate.as_ref().map(|path| tls_acceptor(path, options.http1_only)).transpose()?;
    if options.exit_with_stdin {
        tokio::spawn(async {
            let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
            std::process::exit(0);
        });
    }
    announce(&options, address)?;
    let sim = Arc::new(Simulator::new(options));
    loop {
        let (socket, _) = listener.accept().await?;
        let _ = socket.set_nodelay(true);
        let (sim, tls) = (sim.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                Some(_) if sim.refuse_tls.load(Ordering::SeqCst) => drop(socket),
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

/// Prints the environment for a gateway (`env NAME=VALUE`), example paths (`try PATH`) and, last, the address
/// (`listening http=ADDRESS`). `weir demo` and the tests read these lines.
fn announce(options: &ServeOptions, address: SocketAddr) -> std::io::Result<()> {
    let scheme = if options.tls_certificate.is_some() { "https" } else { "http" };
    let credentials = [
        ("VECTARA", "API_KEY", &options.vectara_key),
        ("PALANTIR", "TOKEN", &options.palantir_token),
        ("AGENTHUMAN", "API_KEY", &options.agenthuman_key),
    ];
    let mut out = std::io::stdout();
    for (provider, kind, secret) in credentials {
        writeln!(out, "env {provider}_BASE_URL={scheme}://{address}\nenv {provider}_{kind}={secret}")?;
    }
    for path in EXAMPLE_PATHS {
        writeln!(out, "try {path}")?;
    }
    writeln!(out, "listening http={address}")?;
    out.flush()
}

/// Creates a self-signed certificate and writes it to a file.
fn tls_acceptor(certificate_file: &Path, http1_only: bool) -> Result<TlsAcceptor, Box<dyn Error>> {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    std::fs::write(certificate_file, certified.cert.pem())?;
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    let protocols: &[&[u8]] = if http1_only { &[b"http/1.1"] } else { &[b"h2", b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config).into())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, sim: Arc<Simulator>) {
    let service =
        service_fn(move |request| Box::pin(respond(sim.clone(), request)) as Pin<Box<dyn Future<Output = _> + Send>>);
    // Some planned faults end the connection with an error.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(sim: Arc<Simulator>, request: Request<Incoming>) -> Result<Response<Body>, Abort> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if path.starts_with("/_sim/") {
        let body = Limited::new(body, MAX_CONTROL_BODY).collect().await;
        let body = body.map_err(|_| Abort("the control request has no complete body"))?.to_bytes();
        return Ok(control::respond(&sim, &parts.method, path, &body).into_response());
    }
    let target = parts.uri.path_and_query().map_or(path, |target| target.as_str());
    sim.calls.count(&parts.method, target, parts.version);
    let in_header = header(&parts.headers, "x-sim-fault").and_then(|plan| Plan::parse(plan.as_bytes()).ok());
    let plan = in_header.or_else(|| sim.plans.take(target, &parts.headers));
    let (latency, fault) = plan.map(|plan| (plan.latency, plan.fault)).unwrap_or_default();
    // A sleep of zero would cost up to a millisecond.
    if fault.is_none() && !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let quota = sim.throttle.count(path);
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let segments: Vec<String> = path.trim_start_matches('/').split('/').map(percent_decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    // A fault replaces writes and streams too.
    if fault.is_none()
        && let Some(response) = writes::respond(&sim, &parts, &segments, &query, body).await?
    {
        return Ok(response);
    }
    let reply = if parts.method == Method::GET {
        read(&sim, &segments, &query, &parts.headers)
    } else {
        Reply::new(405, "{}".into())
    };
    let reply = sim.throttle.apply(path, &quota, reply);
    let Some(fault) = fault else { return Ok(reply.into_response()) };
    tokio::time::sleep(latency).await;
    fault.apply(reply)
}

/// Responds to a request that reads sessions.
fn read(sim: &Simulator, segments: &[&str], query: &Query, headers: &HeaderMap) -> Reply {
    match segments {
        ["v2", "agents", rest @ ..] => vectara::read(sim, rest, query, headers),
        ["api", "v2", "aipAgents", "agents", rest @ ..] => palantir::read(sim, rest, query, headers),
        ["v1", "sessions", rest @ ..] => agenthuman::read(sim, rest, headers),
        _ => Reply::new(404, String::new()),
    }
}
