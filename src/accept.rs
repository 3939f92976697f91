//! Connections: counted, shaken hands with, and handed to the gateway.
//!
//! A room of its own because what comes before the first request is where floods are stopped: at a connection
//! too many, a handshake that stalls, a header that never ends.

use crate::config::edge::counted_as;
use crate::error::{Code, Problem};
use crate::gateway::Gateway;
use crate::metrics::EdgeMetrics;
use crate::runtime::Runtime;
use crate::socket::Socket;
use crate::streams;
use crate::wire::{self, Ends};
use pingora::apps::ServerApp;
use pingora::protocols::{ALPN, Stream};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

/// How a connection by prior knowledge of HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long it may take to tell a connection that there is no room for it.
const REFUSING: Duration = Duration::from_secs(1);
/// How many are told at the same time.
pub const MOST_REFUSING: usize = 256;

/// Who is connected.
#[derive(Default)]
pub struct Connections {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection, counted until dropped.
struct Counted {
    connections: Arc<Connections>,
    address: IpAddr,
    metrics: EdgeMetrics,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one in, or says which limit stands against it.
    fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        most: (usize, usize),
        metrics: &EdgeMetrics,
    ) -> Result<Counted, &'static str> {
        let (address, mut open) = (counted_as(address), self.open());
        if open.all >= most.0 {
            return Err("connections");
        }
        let own = open.by_address.entry(address).or_default();
        if *own >= most.1 {
            return Err("connections_per_address");
        }
        *own += 1;
        open.all += 1;
        metrics.connections.inc();
        Ok(Counted { connections: self.clone(), address, metrics: metrics.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        open.all -= 1;
        if let Some(own) = open.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                open.by_address.remove(&self.address);
            }
        }
        self.metrics.connections.dec();
    }
}

/// A listener of clients, and what its connections are handed to.
pub struct Door {
    /// Its position among those bound at start: TLS is found by it.
    pub listener: usize,
    /// What answers.
    pub gateway: Arc<Gateway>,
    /// Whether this listener takes HTTP/2 by prior knowledge.
    pub h2c: bool,
    /// What is in force.
    pub runtime: Arc<Runtime>,
    /// All connections of all doors.
    pub connections: Arc<Connections>,
    /// What is told of them.
    pub metrics: EdgeMetrics,
    /// How many may be told at the same time that there is no room; others are just closed.
    pub refusing: Arc<Semaphore>,
}

/// Accepts connections, each in a task that `tasks` waits for, until it is to stop.
pub async fn clients(listener: TcpListener, door: Arc<Door>, tasks: TaskTracker, ends: Ends) {
    while let Some((socket, peer)) = next(&listener, &ends.last).await {
        let limits = &door.runtime.snapshot().weir.limits;
        let most = (limits.connections, limits.connections_per_address);
        match door.connections.enter(peer.ip(), most, &door.metrics) {
            Ok(counted) => {
                let (door, ends) = (door.clone(), ends.clone());
                tasks.spawn(async move {
                    door.serve(socket, peer, ends).await;
                    drop(counted);
                });
            }
            Err(limit) => {
                door.metrics.ended.with_label_values(&[limit]).inc();
                // Under TLS there is nothing that could be told.
                if door.runtime.snapshot().handshake(door.listener).is_none()
                    && let Ok(place) = door.refusing.clone().try_acquire_owned()
                {
                    tasks.spawn(async move {
                        let _ = tokio::time::timeout(REFUSING, refuse(socket, limit)).await;
                        drop(place);
                    });
                }
            }
        }
    }
}

/// Accepts operators' connections, which nobody counts or waits for.
pub async fn operators<A>(listener: TcpListener, app: Arc<A>, stopping: watch::Receiver<bool>)
where
    A: ServerApp + Send + Sync + 'static,
{
    let tasks = TaskTracker::new();
    while let Some((socket, peer)) = next(&listener, &stopping).await {
        let (app, stopping) = (app.clone(), stopping.clone());
        tasks.spawn(async move {
            app.process_new(Box::new(Socket::new(socket, peer)), &stopping).await;
        });
    }
}

/// The next connection; `None` when it is time to stop.
async fn next(listener: &TcpListener, stopping: &watch::Receiver<bool>) -> Option<(TcpStream, SocketAddr)> {
    let mut stopping = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return None,
        };
        match accepted {
            Ok((socket, peer)) => {
                let _ = socket.set_nodelay(true);
                return Some((socket, peer));
            }
            // Out of file descriptors, most likely: others must close before more can open.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Tells one connection too many. What it sends is read past: closed with that unread, it would be reset before it
/// has read the answer.
async fn refuse(mut socket: TcpStream, limit: &str) {
    let problem = Problem::new(Code::Overloaded, format!("as many connections are open as may be (limits.{limit})"));
    if socket.write_all(&wire::answer(&problem.retry_after_ms(1000))).await.is_ok() && socket.shutdown().await.is_ok() {
        let mut unwanted = [0; 1024];
        while matches!(socket.read(&mut unwanted).await, Ok(1..)) {}
    }
}

impl Door {
    async fn serve(&self, mut socket: TcpStream, peer: SocketAddr, ends: Ends) {
        let snapshot = self.runtime.snapshot();
        let limits = &snapshot.weir.limits;
        let handshake = snapshot.handshake(self.listener).cloned();
        if self.h2c && handshake.is_none() {
            match tokio::time::timeout(limits.header_timeout, speaks_h2(&socket)).await {
                Ok(true) => {
                    streams::serve(&self.gateway, Box::new(Socket::new(socket, peer)), limits, &ends.last).await;
                    return;
                }
                Ok(false) => {}
                Err(_) => {
                    self.ended("header_timeout");
                    let problem =
                        Problem::new(Code::RequestTimeout, "the connection did not begin within header_timeout");
                    let _ = socket.write_all(&wire::answer(&problem)).await;
                    return;
                }
            }
        }
        let stream = Socket::new(socket, peer);
        let stream: Stream = match handshake {
            None => Box::new(stream),
            Some(acceptor) => match tokio::time::timeout(limits.header_timeout, acceptor.tls_handshake(stream)).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(_)) => return self.ended("tls"),
                Err(_) => return self.ended("tls_timeout"),
            },
        };
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            streams::serve(&self.gateway, stream, limits, &ends.last).await;
            return;
        }
        // A connection may outlive many snapshots.
        let limits = limits.clone();
        drop(snapshot);
        self.gateway.serve(stream, peer.ip(), &limits, &ends).await;
    }

    fn ended(&self, why: &str) {
        self.metrics.ended.with_label_values(&[why]).inc();
    }
}

/// Whether a connection begins as HTTP/2 does. Looks without taking.
async fn speaks_h2(socket: &TcpStream) -> bool {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let Ok(length) = socket.peek(&mut bytes).await else { return false };
        let begun = &bytes[..length];
        if length == 0 || !PREFACE.starts_with(begun) {
            return false;
        }
        if length == PREFACE.len() {
            return true;
        }
        // The rest is on its way; a peek does not wait for more than there is.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn connections_are_counted_in_all_and_by_address() {
        let metrics = Metrics::new().unwrap().edge;
        let connections = Arc::<Connections>::default();
        let enter = |address: &str| connections.enter(address.parse().unwrap(), (3, 2), &metrics);
        let one = enter("10.0.0.1").unwrap_or_else(|limit| panic!("{limit}"));
        let _two = enter("10.0.0.1").unwrap_or_else(|limit| panic!("{limit}"));
        assert_eq!(enter("10.0.0.1").err(), Some("connections_per_address"));
        let _three = enter("2001:db8::1").unwrap_or_else(|limit| panic!("{limit}"));
        assert_eq!(enter("10.0.0.2").err(), Some("connections"));
        assert_eq!(metrics.connections.get(), 3);
        drop(one);
        assert!(enter("2001:db8::ffff:1").is_ok(), "the second of its /64");
        assert_eq!(connections.open().by_address.len(), 2);
    }
}
