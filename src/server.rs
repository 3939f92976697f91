//! The process: listeners, runtime, signals, and the ways out: an end, or a successor.
//!
//! A room of its own because Pingora's own server can neither tell the ports it bound nor end when
//! nothing is in flight: connections are accepted here and handed to its `HttpProxy`.

use crate::accept::{self, Connections, Door};
use crate::admin::{self, Admin};
use crate::config::edge::Listener;
use crate::config::faults::Fault;
use crate::config::load::Source;
use crate::config::weir::LogLevel;
use crate::export::Exporter;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::observe::{self, AccessLogger};
use crate::pipeline::Line;
use crate::question::Shared;
use crate::runtime::{self, Runtime, reload};
use crate::supervisor;
use crate::upgrade::{Meeting, Offer, Predecessor};
use crate::wire::Ends;
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
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
    /// The running process does not hand over its sockets.
    #[error("{0}")]
    Upgrade(String),
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
    predecessor: Option<Predecessor>,
}

/// Why a process ends.
enum End {
    /// It was told to.
    Signal,
    /// The process of this id has taken over.
    Succeeded(u32),
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
        let (random, now) = (random()?, runtime::now());
        let runtime = Runtime::start(source, random, now).map_err(StartError::Config)?;
        Self::with(runtime, None)
    }

    /// Loads the configuration and, if it is sound, asks the process that runs with it for its sockets. That one goes
    /// on until [`Server::run`] accepts requests. Addresses that it does not have are bound.
    ///
    /// # Errors
    /// As for [`Server::bind`], and that no process hands its sockets over.
    pub fn take_over(source: Source) -> Result<Self, StartError> {
        let (random, now) = (random()?, runtime::now());
        let checked = Runtime::start(source.clone(), random, now).map_err(StartError::Config)?;
        let at = Meeting::of(&checked.snapshot().weir.upgrade, &source.directory);
        let at = at.ok_or_else(|| StartError::Upgrade("upgrade.socket is off in weir.yaml".to_owned()))?;
        let predecessor = Predecessor::ask(&at).map_err(StartError::Upgrade)?;
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
        let mut had = |address| predecessor.as_mut().and_then(|predecessor| predecessor.take(address));
        let mut listening = |address| had(address).map_or_else(|| bind(address), Ok);
        let listeners =
            snapshot.weir.listen.iter().map(|listener| Ok((listener.clone(), listening(listener.address)?)));
        let listeners = listeners.collect::<Result<_, _>>()?;
        let admin = listening(snapshot.weir.admin.address)?;
        let shared = Arc::new(Shared::new(metrics, snapshot.weir.max_bytes, snapshot.weir.overload.max_buffered));
        let mut prefix = [0; 4];
        getrandom::fill(&mut prefix).map_err(|e| system(&e))?;
        let prefix = prefix.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = Arc::new(Line::new(runtime.clone(), shared.clone()));
        let gateway = Gateway::new(line, AccessLogger::new(std::io::stdout()), prefix);
        let gateway = Arc::new(gateway);
        Ok(Self { runtime, shared, gateway, listeners, admin, predecessor })
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

    /// What another process would be handed, each with the address it was configured for.
    fn sockets(&self) -> std::io::Result<Vec<(SocketAddr, OwnedFd)>> {
        let admin = (self.runtime.started().admin.address, &self.admin);
        let all = self.listeners.iter().map(|(config, listener)| (config.address, listener)).chain([admin]);
        all.map(|(address, listener)| Ok((address, listener.try_clone()?.into()))).collect()
    }

    /// Serves until SIGTERM, SIGINT or a successor, then until nothing is in flight or the grace is over.
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
        let (sockets, predecessor, runtime, shared) = (self.sockets()?, self.predecessor, self.runtime, self.shared);
        let exporter = export(&runtime, &shared);
        let way_out = WayOut::new();
        let open = Arc::<Connections>::default();
        let background = TaskTracker::new();
        for (position, (config, listener)) in self.listeners.into_iter().enumerate() {
            let door = Door {
                listener: position,
                gateway: self.gateway.clone(),
                h2c: config.h2c,
                runtime: runtime.clone(),
                connections: open.clone(),
                metrics: shared.metrics.edge.clone(),
                refusing: Arc::new(Semaphore::new(accept::MOST_REFUSING)),
            };
            let (tasks, ends) = (way_out.connections.clone(), way_out.ends());
            background.spawn(accept::clients(listen(listener)?, Arc::new(door), tasks, ends));
        }
        let admin = Admin { runtime: runtime.clone(), shared: shared.clone(), draining: way_out.draining.clone() };
        background.spawn(accept::operators(listen(self.admin)?, Arc::new(admin), way_out.leave.subscribe()));
        background.spawn(watch_files(runtime.clone(), shared.clone()));
        // Before anyone is told that it runs: a signal that nobody waits for ends the process.
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        background.spawn(reload_on_hangup(signal(SignalKind::hangup())?, runtime.clone(), shared.clone()));
        background.spawn(sweep(runtime.clone()));
        let offer = offer(&runtime, predecessor, sockets).await;
        ready();
        supervisor::ready();
        let taken = async {
            match &offer {
                Some(offer) => offer.taken().await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            _ = terminate.recv() => End::Signal,
            _ = interrupt.recv() => End::Signal,
            pid = taken => End::Succeeded(pid),
        };
        way_out.stop(&end, &shared);
        tell(&runtime, &end, offer);
        way_out.drain(&end, &runtime).await;
        let _ = tokio::task::spawn_blocking(move || exporter.get().into_iter().flatten().for_each(Exporter::end)).await;
        Ok(())
    }
}

/// What ends, in the order in which it does.
struct WayOut {
    draining: Arc<AtomicBool>,
    /// No connection is accepted, and none has more than one further request.
    stop: watch::Sender<bool>,
    /// Operators' connections are not accepted.
    leave: watch::Sender<bool>,
    /// Connections without a request are closed.
    close: watch::Sender<bool>,
    connections: TaskTracker,
}

impl WayOut {
    fn new() -> Self {
        let [stop, leave, close] = [(); 3].map(|()| watch::channel(false).0);
        Self { draining: Arc::default(), stop, leave, close, connections: TaskTracker::new() }
    }

    /// What a connection is told.
    fn ends(&self) -> Ends {
        Ends { last: self.stop.subscribe(), now: self.close.subscribe() }
    }

    fn stop(&self, end: &End, shared: &Shared) {
        shared.stopping.cancel();
        self.draining.store(true, Ordering::Release);
        self.stop.send_replace(true);
        // Operators may look until the end, unless a successor answers them.
        self.leave.send_replace(matches!(end, End::Succeeded(_)));
        self.connections.close();
    }

    /// Waits until nothing is in flight, or until the grace is over.
    async fn drain(&self, end: &End, runtime: &Runtime) {
        let grace = runtime.snapshot().weir.grace;
        let (connections, begun) = (&self.connections, tokio::time::Instant::now());
        let open = connections.len();
        let drained = tokio::time::timeout(grace, async {
            if let End::Succeeded(_) = end {
                // A request may be on its way on a connection that looks idle. Each has time for one more, whose answer
                // says that it is the last; what is not used for so long is closed with little risk.
                let _ = tokio::time::timeout(grace / 2, connections.wait()).await;
            }
            self.close.send_replace(true);
            connections.wait().await;
        });
        let (drained, took) = (drained.await.is_ok(), begun.elapsed().as_millis());
        match drained {
            true => observe::say(runtime, LogLevel::Info, || format!("drained {open} connections in {took} ms")),
            false => observe::say(runtime, LogLevel::Warn, || {
                format!("{} connections were still open after the grace of {} ms", connections.len(), grace.as_millis())
            }),
        }
    }
}

fn random() -> Result<[u8; 32], StartError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|e| StartError::System(e.to_string()))?;
    Ok(random)
}

/// Sends spans away, from the first one on: without any there is no thread for it.
fn export(runtime: &Arc<Runtime>, shared: &Arc<Shared>) -> Arc<OnceLock<Option<Exporter>>> {
    let exporter = Arc::new(OnceLock::new());
    let (current, exports) = (runtime.clone(), shared.metrics.http.trace_exports.clone());
    let make = move || {
        let current = current.clone();
        let now = current.clone();
        let made = Exporter::new(Arc::new(move || now.snapshot().traces.clone()), exports.clone());
        let cannot = |error| observe::say(&current, LogLevel::Warn, || format!("traces cannot be exported: {error}"));
        made.map_err(cannot).ok()
    };
    let used = exporter.clone();
    shared.spans.send_to(Box::new(move |spans| {
        if let Some(exporter) = used.get_or_init(&make) {
            exporter.send(spans);
        }
    }));
    exporter
}

/// Relieves the process before this one, and offers the sockets to the one after it.
async fn offer(
    runtime: &Arc<Runtime>,
    predecessor: Option<Predecessor>,
    sockets: Vec<(SocketAddr, OwnedFd)>,
) -> Option<Offer> {
    let at = Meeting::of(&runtime.started().upgrade, &runtime.source().directory);
    let mut door = None;
    if let Some(predecessor) = predecessor {
        let next = at.clone();
        let relieved = tokio::task::spawn_blocking(move || predecessor.relieve(next.as_ref())).await;
        door = relieved.unwrap_or_else(|error| Err(error.to_string())).unwrap_or_else(|why| {
            observe::say(runtime, LogLevel::Warn, || why);
            None
        });
    }
    let at = at?;
    let cannot = |error| {
        observe::say(runtime, LogLevel::Warn, || {
            format!("no upgrade without a gap: nobody can come to upgrade.socket ({at}): {error}")
        });
    };
    Offer::new(at.clone(), door, sockets, runtime).map_err(cannot).ok()
}

/// Says how it ends, to whom it concerns.
fn tell(runtime: &Runtime, end: &End, offer: Option<Offer>) {
    match end {
        End::Signal => {
            offer.into_iter().for_each(Offer::withdraw);
            supervisor::stopping();
        }
        End::Succeeded(pid) => {
            observe::say(runtime, LogLevel::Info, || format!("process {pid} has taken over"));
            supervisor::succeeded_by(*pid);
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

async fn watch_files(runtime: Arc<Runtime>, shared: Arc<Shared>) {
    let (changed, mut changes) = mpsc::channel(1);
    let watcher = reload::watch(&runtime.source().directory, changed);
    if watcher.is_none() {
        observe::say(&runtime, LogLevel::Warn, || {
            "config files cannot be watched; changes are noticed by polling".to_owned()
        });
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

async fn reload_on_hangup(mut hangup: Signal, runtime: Arc<Runtime>, shared: Arc<Shared>) {
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
