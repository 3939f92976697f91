//! The server process: binds the listeners, starts the background tasks, handles signals and shuts down.
//!
//! Weir accepts connections itself and passes forwarded requests to Pingora's `HttpProxy`: Pingora's own server neither
//! reports the ports that it bound nor exits as soon as no request is in flight.

pub(crate) mod accept;
pub(crate) mod access_log;
pub(crate) mod admin;
pub(crate) mod admin_gauges;
pub(crate) mod admin_service;
pub(crate) mod config_reload;
pub(crate) mod connections;
pub(crate) mod deadline;
pub(crate) mod diagnostics;
pub(crate) mod gateway;
pub(crate) mod guess_delay;
pub(crate) mod http1;
pub(crate) mod http1_body;
pub(crate) mod http1_head;
pub(crate) mod http1_response;
pub(crate) mod http2;
pub(crate) mod http2_frames;
mod http2_head;
mod http2_problem;
mod http2_session;
mod http2_stream;
pub(crate) mod initial_series;
pub(crate) mod log_limit;
pub(crate) mod next_head;
pub(crate) mod proxy;
pub(crate) mod request_log;
pub(crate) mod request_stream;
pub(crate) mod shutdown;
pub(crate) mod socket;
pub(crate) mod systemd;
pub(crate) mod upgrade;
pub(crate) mod upgrade_socket;

use crate::base::metrics::Metrics;
use crate::config::edge::Listener;
use crate::config::faults::Fault;
use crate::config::load::ConfigSource;
use crate::engine::admin_token::{self, AdminToken};
use crate::engine::open_files::OpenFiles;
use crate::engine::otlp::Exporter;
use crate::fetch::provider_query::SharedState;
use crate::pipeline::Pipeline;
use crate::runtime::{self, Runtime};
use crate::server::accept::ListenerContext;
use crate::server::access_log::AccessLogger;
use crate::server::admin::AdminEndpoints;
use crate::server::admin_service::AdminService;
use crate::server::config_reload::Reloader;
use crate::server::connections::Connections;
use crate::server::diagnostics::Log;
use crate::server::gateway::Gateway;
use crate::server::shutdown::{Shutdown, ShutdownCause};
use crate::server::upgrade::{BoundSocket, Handoff, Predecessor};
use crate::server::upgrade_socket::UpgradeAddress;
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// The number of connections that the system queues for each listener.
const BACKLOG: i32 = 4096;
/// The interval at which unused rate-limit buckets are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The configuration has faults.
    #[error("the configuration has {} faults", .0.len())]
    Config(Vec<Fault>),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: std::io::Error,
    },
    /// The running process did not hand over its sockets.
    #[error("{0}")]
    Upgrade(String),
    /// A system call failed.
    #[error("{0}")]
    System(String),
}

/// A server with a valid configuration and bound listeners. It accepts connections once it runs.
pub(crate) struct Server {
    runtime: Arc<Runtime>,
    shared: Arc<SharedState>,
    gateway: Arc<Gateway>,
    listeners: Vec<(Listener, std::net::TcpListener)>,
    admin: std::net::TcpListener,
    predecessor: Option<Predecessor>,
}

/// The bound addresses.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    /// The client listeners.
    pub http: Vec<SocketAddr>,
    /// The admin listener.
    pub admin: SocketAddr,
}

impl Server {
    /// Loads the configuration and binds its addresses.
    ///
    /// # Errors
    /// The configuration has faults, or an address cannot be bound.
    pub(crate) fn bind(source: ConfigSource) -> Result<Self, StartError> {
        let (key, now) = (random_key()?, runtime::now());
        let runtime = Runtime::start(source, key, now).map_err(StartError::Config)?;
        Self::with(runtime, None)
    }

    /// Loads the configuration and, if it is valid, takes over the sockets of the running process. That process serves
    /// until [`Server::run`] accepts connections. Addresses that the running process does not have are bound.
    ///
    /// # Errors
    /// As for [`Server::bind`]; also if no process hands over its sockets.
    pub(crate) fn take_over(source: ConfigSource) -> Result<Self, StartError> {
        let (key, now) = (random_key()?, runtime::now());
        let checked = Runtime::start(source.clone(), key, now).map_err(StartError::Config)?;
        let address = UpgradeAddress::of(&checked.snapshot().weir.upgrade, &source.directory);
        let address = address.ok_or_else(|| {
            StartError::Upgrade("cannot take over from a running Weir: upgrade.socket is off in weir.yaml".to_owned())
        })?;
        let predecessor = Predecessor::request(&address).map_err(StartError::Upgrade)?;
        let runtime = Runtime::start(source, predecessor.key, now).map_err(StartError::Config)?;
        Self::with(runtime, Some(predecessor))
    }

    fn with(runtime: Runtime, mut predecessor: Option<Predecessor>) -> Result<Self, StartError> {
        let system = |error: &dyn std::fmt::Display| StartError::System(error.to_string());
        let (runtime, now) = (Arc::new(runtime), runtime::now());
        let snapshot = runtime.snapshot();
        let metrics = Metrics::new().map_err(|e| system(&e))?;
        let seconds = Duration::from_millis(now.0.unsigned_abs()).as_secs_f64();
        metrics.config.in_force(&snapshot.revision, seconds);
        initial_series::create(&metrics, &snapshot);
        let mut inherited = |address| predecessor.as_mut().and_then(|predecessor| predecessor.take(address));
        let mut listener = |address| inherited(address).map_or_else(|| bind(address), Ok);
        let listeners = snapshot.weir.listen.iter().map(|config| Ok((config.clone(), listener(config.address)?)));
        let listeners = listeners.collect::<Result<_, _>>()?;
        let admin = listener(snapshot.weir.admin.address)?;
        let shared = Arc::new(SharedState::new(metrics, snapshot.weir.max_bytes, snapshot.weir.overload.max_buffered));
        let mut id_prefix = [0; 4];
        getrandom::fill(&mut id_prefix).map_err(|e| system(&e))?;
        let pipeline = Arc::new(Pipeline::new(runtime.clone(), shared.clone()));
        let gateway = Gateway::new(pipeline, AccessLogger::new(std::io::stdout()), hex::encode(id_prefix));
        let gateway = Arc::new(gateway);
        Ok(Self { runtime, shared, gateway, listeners, admin, predecessor })
    }

    /// Returns the bound addresses.
    ///
    /// # Errors
    /// The system call failed, which it does not for a bound socket.
    pub(crate) fn addresses(&self) -> Result<Addresses, StartError> {
        let local =
            |listener: &std::net::TcpListener| listener.local_addr().map_err(|e| StartError::System(e.to_string()));
        let http = self.listeners.iter().map(|(_, listener)| local(listener)).collect::<Result<_, _>>()?;
        Ok(Addresses { http, admin: local(&self.admin)? })
    }

    /// Returns the sockets for the next upgrade.
    fn sockets(&self) -> std::io::Result<Vec<BoundSocket>> {
        let admin = (self.runtime.started().admin.address, &self.admin);
        let all = self.listeners.iter().map(|(config, listener)| (config.address, listener)).chain([admin]);
        all.map(|(address, listener)| Ok(BoundSocket { address, fd: listener.try_clone()?.into() })).collect()
    }

    /// Serves until SIGTERM, SIGINT or an upgrade, then drains. Calls `ready` once connections are accepted.
    ///
    /// # Errors
    /// A system call failed.
    pub(crate) fn run(self, ready: impl FnOnce()) -> Result<(), StartError> {
        let workers = self.runtime.snapshot().weir.workers;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if workers > 0 {
            builder.worker_threads(workers);
        }
        let tokio = builder.enable_all().build().map_err(|e| StartError::System(e.to_string()))?;
        let result = tokio.block_on(self.serve(ready)).map_err(|e| StartError::System(e.to_string()));
        tokio.shutdown_timeout(Duration::from_millis(100));
        result
    }

    async fn serve(self, ready: impl FnOnce()) -> std::io::Result<()> {
        let Log { filter, dropped: log_dropped, writer: _log_writer } =
            diagnostics::start(self.runtime.snapshot().weir.log);
        let sockets = self.sockets()?;
        let exporter = start_exporter(&self.runtime, &self.shared);
        let (shutdown, background) = (Shutdown::new(), TaskTracker::new());
        let (runtime, shared, predecessor) = (self.runtime.clone(), self.shared.clone(), self.predecessor);
        let files = OpenFiles::raise();
        if let Some(warning) = files.warning(&runtime.snapshot().weir.limits) {
            warn!("{warning}");
        }
        accept_clients(self.listeners, &self.gateway, files, &runtime, &shared, &shutdown, &background)?;
        let directories = runtime.source().runtime_directories();
        let admin_token = Arc::new(AdminToken::new(self.admin.local_addr()?, directories));
        if let Some((_, token)) = predecessor.as_ref().and_then(|predecessor| predecessor.admin_token.as_ref()) {
            admin_token.inherit(token);
        }
        let reloader = Reloader::new(runtime.clone(), shared.clone(), filter, admin_token.clone());
        let admin = AdminEndpoints {
            runtime: runtime.clone(),
            shared: shared.clone(),
            draining: shutdown.draining.clone(),
            reloader: reloader.clone(),
            files,
            token: admin_token.clone(),
            log_dropped,
        };
        background.spawn(AdminService::new(admin).accept(listen(self.admin)?, shutdown.admin_signals()));
        background.spawn(reloader.clone().watch_files());
        // Before `ready`: a signal without a handler ends the process at once.
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        background.spawn(reloader.watch_hangup(signal(SignalKind::hangup())?));
        background.spawn(sweep(runtime.clone()));
        let handoff = start_handoff(&runtime, predecessor, sockets, &admin_token).await;
        ready();
        systemd::ready();
        let taken_over = async {
            match &handoff {
                Some(handoff) => handoff.completed().await,
                None => std::future::pending().await,
            }
        };
        let cause = tokio::select! {
            _ = terminate.recv() => ShutdownCause::Signal,
            _ = interrupt.recv() => ShutdownCause::Signal,
            pid = taken_over => ShutdownCause::TakenOver(pid),
        };
        shutdown.start(&cause, &shared);
        report_shutdown(&cause, handoff);
        shutdown.drain(&cause, &runtime).await;
        // A successor has replaced or removed the file.
        if matches!(cause, ShutdownCause::Signal) {
            admin_token.remove_file();
        }
        let _ = tokio::task::spawn_blocking(move || exporter.get().into_iter().flatten().for_each(Exporter::shutdown))
            .await;
        Ok(())
    }
}

/// Starts to accept connections on the client listeners.
fn accept_clients(
    listeners: Vec<(Listener, std::net::TcpListener)>,
    gateway: &Arc<Gateway>,
    files: OpenFiles,
    runtime: &Arc<Runtime>,
    shared: &Arc<SharedState>,
    shutdown: &Shutdown,
    background: &TaskTracker,
) -> std::io::Result<()> {
    let connections = Arc::<Connections>::default();
    for (position, (config, listener)) in listeners.into_iter().enumerate() {
        let context = ListenerContext {
            listener: position,
            gateway: gateway.clone(),
            h2c: config.h2c,
            runtime: runtime.clone(),
            files,
            connections: connections.clone(),
            metrics: shared.metrics.edge.clone(),
            refusals: Arc::new(Semaphore::new(files.other_connections(accept::MAX_REFUSALS))),
        };
        let (tasks, signals) = (shutdown.connections.clone(), shutdown.signals());
        background.spawn(accept::accept_clients(listen(listener)?, Arc::new(context), tasks, signals));
    }
    Ok(())
}

fn random_key() -> Result<[u8; 32], StartError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|e| StartError::System(e.to_string()))?;
    Ok(key)
}

/// Connects the spans to an exporter. The exporter, with its thread, is made when the first span is sent.
fn start_exporter(runtime: &Arc<Runtime>, shared: &Arc<SharedState>) -> Arc<OnceLock<Option<Exporter>>> {
    let exporter = Arc::new(OnceLock::new());
    let (current, exports) = (runtime.clone(), shared.metrics.http.trace_exports.clone());
    let make = move || {
        let current = current.clone();
        let made = Exporter::new(Arc::new(move || current.snapshot().traces.clone()), exports.clone());
        made.map_err(|error| warn!("cannot export traces: {error}")).ok()
    };
    let used = exporter.clone();
    shared.spans.send_to(Box::new(move |spans| {
        if let Some(exporter) = used.get_or_init(&make) {
            exporter.queue(spans);
        }
    }));
    exporter
}

/// Has the predecessor stop accepting, if there is one, and offers the sockets for the next upgrade.
async fn start_handoff(
    runtime: &Arc<Runtime>,
    predecessor: Option<Predecessor>,
    sockets: Vec<BoundSocket>,
    admin_token: &Arc<AdminToken>,
) -> Option<Handoff> {
    let address = UpgradeAddress::of(&runtime.started().upgrade, &runtime.source().directory);
    let (mut listener, mut inherited) = (None, None);
    if let Some(mut predecessor) = predecessor {
        inherited = predecessor.admin_token.take();
        let next = address.clone();
        let relieved = tokio::task::spawn_blocking(move || predecessor.relieve(next.as_ref())).await;
        listener = relieved.unwrap_or_else(|error| Err(error.to_string())).unwrap_or_else(|why| {
            warn!("{why}");
            None
        });
    }
    // Only now: before, the old process needs its file.
    config_reload::store_admin_token(runtime, admin_token);
    if let Some((old, token)) = inherited.filter(|(old, _)| *old != admin_token.address() || !admin_token.is_stored()) {
        admin_token::remove_file_of(&runtime.source().runtime_directories(), old, &token);
    }
    let address = address?;
    let failed = |error| {
        warn!("upgrades are not possible: cannot listen on upgrade.socket ({address}): {error}");
    };
    Handoff::new(address.clone(), listener, sockets, runtime, admin_token.clone()).map_err(failed).ok()
}

/// Reports the start of the shutdown to the log and to the service manager. Ends the offer of the sockets.
fn report_shutdown(cause: &ShutdownCause, handoff: Option<Handoff>) {
    match cause {
        ShutdownCause::Signal => {
            handoff.into_iter().for_each(Handoff::withdraw);
            systemd::stopping();
        }
        ShutdownCause::TakenOver(pid) => {
            info!(pid, "another process has taken over");
            systemd::succeeded_by(*pid);
        }
    }
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bound().map_err(|error| StartError::Bind { address, error })
}

fn listen(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

/// Removes unused rate-limit buckets at intervals.
async fn sweep(runtime: Arc<Runtime>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        runtime.snapshot().sweep();
    }
}
