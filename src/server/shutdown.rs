//! Shuts the server down: signals to connections, and the drain within `shutdown.grace`.

use crate::fetch::provider_query::SharedState;
use crate::runtime::Runtime;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Why the process exits.
pub(crate) enum ShutdownCause {
    /// SIGTERM or SIGINT.
    Signal,
    /// An upgrade: the process with this id has taken over.
    TakenOver(u32),
}

/// The state of the shutdown, with its signals in the order in which they are sent.
pub(crate) struct Shutdown {
    /// Set when the shutdown starts. `/readyz` reports it.
    pub draining: Arc<AtomicBool>,
    /// Client listeners stop accepting, and every connection gets at most one more request.
    last_request: watch::Sender<bool>,
    /// The admin listener stops accepting.
    stop_admin: watch::Sender<bool>,
    /// Connections without a request in progress close.
    close_idle: watch::Sender<bool>,
    /// The client connections that the drain waits for.
    pub connections: TaskTracker,
}

/// The shutdown signals for a connection. Each changes at most once.
#[derive(Clone)]
pub(crate) struct ShutdownSignals {
    /// The next request on the connection is the last one.
    pub last_request: watch::Receiver<bool>,
    /// The connection closes if it is waiting for a request.
    pub close_idle: watch::Receiver<bool>,
}

impl Shutdown {
    pub(crate) fn new() -> Self {
        let [last_request, stop_admin, close_idle] = [(); 3].map(|()| watch::channel(false).0);
        Self { draining: Arc::default(), last_request, stop_admin, close_idle, connections: TaskTracker::new() }
    }

    /// Returns the signals for client connections.
    pub(crate) fn signals(&self) -> ShutdownSignals {
        ShutdownSignals { last_request: self.last_request.subscribe(), close_idle: self.close_idle.subscribe() }
    }

    /// Returns the signals for the admin listener. Its connections close as soon as it stops accepting.
    pub(crate) fn admin_signals(&self) -> ShutdownSignals {
        ShutdownSignals { last_request: self.stop_admin.subscribe(), close_idle: self.stop_admin.subscribe() }
    }

    /// Starts the shutdown: the listeners stop accepting.
    pub(crate) fn start(&self, cause: &ShutdownCause, shared: &SharedState) {
        shared.stopping.cancel();
        self.draining.store(true, Ordering::Release);
        self.last_request.send_replace(true);
        // After an upgrade the new process serves the admin address. Otherwise it stays available until the exit.
        if let ShutdownCause::TakenOver(_) = cause {
            self.stop_admin.send_replace(true);
        }
        self.connections.close();
    }

    /// Waits until all client connections are closed, at most for `shutdown.grace`.
    pub(crate) async fn drain(&self, cause: &ShutdownCause, runtime: &Runtime) {
        let grace = runtime.snapshot().weir.grace;
        let (connections, started) = (&self.connections, tokio::time::Instant::now());
        let open = connections.len();
        let drained = tokio::time::timeout(grace, async {
            if let ShutdownCause::TakenOver(_) = cause {
                // A connection that looks idle may have a request on its way. For half of the grace it may send one
                // more, whose response has `Connection: close`.
                let _ = tokio::time::timeout(grace / 2, connections.wait()).await;
            }
            self.close_idle.send_replace(true);
            connections.wait().await;
        });
        let (drained, took) = (drained.await.is_ok(), started.elapsed().as_millis());
        match drained {
            true => info!(connections = open, took_ms = took, "connections drained"),
            false => {
                let (open, grace) = (connections.len(), grace.as_millis());
                warn!(
                    connections = open,
                    grace_ms = grace,
                    "connections still open after shutdown.grace; closing them"
                );
            }
        }
    }
}

/// Returns whether a signal was sent. Receivers never mark a signal as seen, so a change stays visible.
pub(crate) fn is_sent(signal: &watch::Receiver<bool>) -> bool {
    signal.has_changed().unwrap_or(true)
}

/// Polls a shutdown signal and wakes the polling task when it is sent.
///
/// Connections poll it very often. A poll reads one number; only the first poll registers a waker with the channel that
/// all connections share.
pub(crate) struct SignalPoll {
    signal: watch::Receiver<bool>,
    wait: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl SignalPoll {
    pub(crate) fn new(signal: watch::Receiver<bool>) -> Self {
        Self { signal, wait: None }
    }

    /// Returns whether the signal was sent. The same task must make all polls: the waker of the first poll stays registered.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.wait.is_none() {
            let mut signal = self.signal.clone();
            let mut wait: Pin<Box<dyn Future<Output = ()> + Send + Sync>> = Box::pin(async move {
                let _ = signal.changed().await;
            });
            let _: Poll<()> = wait.as_mut().poll(cx);
            self.wait = Some(wait);
        }
        is_sent(&self.signal)
    }
}
