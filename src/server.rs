//! The process: listeners, runtime, signals, and the way out.
//!
//! A room of its own because Pingora's own server can neither tell the ports it bound nor end when
//! nothing is in flight: connections are accepted here and handed to its `HttpProxy`.

use crate::accept::{self, Connections, Door};
use crate::admin::{self, Admin};
use crate::config::edge::Listener;
use crate::config::faults::Fault;
use crate::config::load::Source;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::observe::{self, AccessLogger};
use crate::pipeline::Line;
use crate::question::Shared;
use crate::runtime::{self, Runtime, reload};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How often idle rate-limit state is swept.
const SWEEP: Duration = Duration::from_secs(60);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has faults.
    #[error("the configuration has {} faults", .0.len())]
    Config(Vec<Fault>),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The system refuses something that every process needs.
    #[error("{0}")]
    System(String),
}

/// A server that is bound and configured, and accepts nothing yet.
pub struct Server {
    runtime: Arc<Runtime>,
    shared: Arc<Shared>,
    gateway: Arc<Gateway>,
    listeners: Vec<(Listener, std::net::TcpListener)>,
    admin: std::net::TcpListener,
}

/// Addresses really bound.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// For clients.
    pub http: Vec<SocketAddr>,
    /// For operators.
    pub admin: SocketAddr,
}

impl Server {
    /// Loads the configuration and binds its addresses.
    ///
    /// # Errors
    /// All faults of the configuration, or the address that cannot be bound.
    pub fn bind(source: Source) -> Result<Self, StartError> {
        let system = |error: &dyn std::fmt::Display| StartError::System(error.to_string());
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|e| system(&e))?;
        let now = runtime::now();
        let runtime = Arc::new(Runtime::start(source, random, now).map_err(StartError::Config)?);
        let snapshot = runtime.snapshot();
        let metrics = Metrics::new().map_err(|e| system(&e))?;
        let seconds = Duration::from_millis(now.0.unsigned_abs()).as_secs_f64();
        metrics.config.in_force(&snapshot.revision, seconds);
        let listeners = snapshot.weir.listen.iter().map(|listener| Ok((listener.clone(), bind(listener.address)?)));
        let listeners = listeners.collect::<Result<_, _>>()?;
        let admin = bind(snapshot.weir.admin.address)?;
        let shared = Arc::new(Shared::new(metrics, snapshot.weir.max_bytes, snapshot.weir.overload.max_buffered));
        let mut prefix = [0; 4];
        getrandom::fill(&mut prefix).map_err(|e| system(&e))?;
        let prefix = prefix.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = Arc::new(Line::new(runtime.clone(), shared.clone()));
        let gateway = Gateway::new(line, AccessLogger::new(std::io::stdout()), prefix, &snapshot.weir.limits);
        let gateway = Arc::new(gateway);
        Ok(Self { runtime, shared, gateway, listeners, admin })
    }

    /// The addresses really bound.
    ///
    /// # Errors
    /// The system's, which it has for no bound socket.
    pub fn addresses(&self) -> Result<Addresses, StartError> {
        let local =
            |listener: &std::net::TcpListener| listener.local_addr().map_err(|e| StartError::System(e.to_string()));
        let http = self.listeners.iter().map(|(_, listener)| local(listener)).collect::<Result<_, _>>()?;
        Ok(Addresses { http, admin: local(&self.admin)? })
    }

    /// Serves until SIGTERM or SIGINT, then until nothing is in flight or the grace is over.
    /// `ready` is called once requests are accepted.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn run(self, ready: impl FnOnce()) -> Result<(), StartError> {
        let workers = self.runtime.snapshot().weir.workers;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if workers > 0 {
            builder.worker_threads(workers);
        }
        let tokio = builder.enable_all().build().map_err(|e| StartError::System(e.to_string()))?;
        let ended = tokio.block_on(self.serve(ready)).map_err(|e| StartError::System(e.to_string()));
        tokio.shutdown_timeout(Duration::from_millis(100));
        ended
    }

    async fn serve(self, ready: impl FnOnce()) -> std::io::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let draining = Arc::new(AtomicBool::new(false));
        let open = Arc::<Connections>::default();
        let admin = Admin { runtime: self.runtime.clone(), shared: self.shared.clone(), draining: draining.clone() };
        let (connections, background) = (TaskTracker::new(), TaskTracker::new());
        for (position, (config, listener)) in self.listeners.into_iter().enumerate() {
            let door = Door {
                listener: position,
                gateway: self.gateway.clone(),
                h2c: config.h2c,
                runtime: self.runtime.clone(),
                connections: open.clone(),
                metrics: self.shared.metrics.edge.clone(),
                refusing: Arc::new(Semaphore::new(accept::MOST_REFUSING)),
            };
            let (tasks, stopping) = (connections.clone(), stopping.clone());
            background.spawn(accept::clients(listen(listener)?, Arc::new(door), tasks, stopping));
        }
        // Operators may look until the end: their connections are not waited for.
        let (never, running) = watch::channel(false);
        background.spawn(accept::operators(listen(self.admin)?, Arc::new(admin), running));
        background.spawn(watch_files(self.runtime.clone(), self.shared.clone()));
        background.spawn(reload_on_hangup(self.runtime.clone(), self.shared.clone()));
        background.spawn(sweep(self.runtime.clone()));
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        ready();
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        draining.store(true, Ordering::Release);
        stop.send_replace(true);
        self.shared.stopping.cancel();
        connections.close();
        let grace = self.runtime.snapshot().weir.grace;
        let (open, begun) = (connections.len(), tokio::time::Instant::now());
        let drained = tokio::time::timeout(grace, connections.wait());
        let (drained, took) = (drained.await.is_ok(), begun.elapsed().as_millis());
        drop(never);
        observe::say(&match drained {
            true => format!("drained {open} connections in {took} ms"),
            false => {
                format!("{} connections were still open after the grace of {} ms", connections.len(), grace.as_millis())
            }
        });
        Ok(())
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

async fn watch_files(runtime: Arc<Runtime>, shared: Arc<Shared>) {
    let (changed, mut changes) = mpsc::channel(1);
    let watcher = reload::watch(&runtime.source().directory, changed);
    if watcher.is_none() {
        observe::say("config files cannot be watched; changes are noticed by polling");
    }
    loop {
        let told = reload::next_change(&mut changes).await;
        let looking = runtime.clone();
        let differs = tokio::task::spawn_blocking(move || looking.differs()).await.unwrap_or(false);
        if told || differs {
            admin::reload(&runtime, &shared, "files changed").await;
        }
    }
}

async fn reload_on_hangup(runtime: Arc<Runtime>, shared: Arc<Shared>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        admin::reload(&runtime, &shared, "SIGHUP").await;
    }
}

async fn sweep(runtime: Arc<Runtime>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        runtime.snapshot().sweep();
    }
}
