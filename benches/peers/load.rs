//! An open-loop load generator: it sends requests at fixed times, whether or not earlier ones have a response.
//!
//! `load ADDRESS PATH RATE SECONDS CONNECTIONS [HEADER...]` prints `requests errors p50 p90 p99 p99.9 max`, with times in
//! microseconds. `{n}` in a path is the number of the request, from 1.
//!
//! The time of a request starts when it is due, and not when a connection is free. So a server that stalls is charged for
//! all requests that are due meanwhile (no coordinated omission). The generator polls the clock and needs its own core.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};

/// The state that the schedule and the connections share.
#[derive(Default)]
struct Work {
    /// The number and the due time of the requests that no connection has sent yet.
    due: RefCell<VecDeque<(u64, Instant)>>,
    available: Notify,
    /// The times of the finished requests in microseconds.
    latencies: RefCell<Vec<u64>>,
}

impl Work {
    /// Waits half a second and returns whether a request finished. The caller waits for late responses, and not for lost ones.
    async fn progresses(&self) -> bool {
        let before = self.latencies.borrow().len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.latencies.borrow().len() > before
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` runs this with other arguments. Only run.py starts it with these.
    let [address, path, rate, seconds, connections, headers @ ..] = arguments.as_slice() else { return };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    let (rate, seconds): (f64, f64) = (rate.parse().unwrap(), seconds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let work = Rc::<Work>::default();
    LocalSet::new().block_on(&runtime, async {
        for _ in 0..connections.parse().unwrap() {
            spawn_local(connection(address.clone(), request.clone(), work.clone()));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        schedule(&work, rate, seconds).await;
        while work.progresses().await {}
    });
    let mut latencies = work.latencies.borrow_mut();
    latencies.sort_unstable();
    let percentile = |share: f64| {
        latencies.get((latencies.len() as f64 * share) as usize).or(latencies.last()).copied().unwrap_or_default()
    };
    let errors = (rate * seconds) as u64 - latencies.len() as u64;
    println!(
        "{} {errors} {} {} {} {} {}",
        latencies.len(),
        percentile(0.5),
        percentile(0.9),
        percentile(0.99),
        percentile(0.999),
        percentile(1.0)
    );
}

/// Adds the requests at their due times.
async fn schedule(work: &Work, rate: f64, seconds: f64) {
    let (started, count) = (Instant::now(), (rate * seconds) as u64);
    for n in 0..count {
        let due = started + Duration::from_secs_f64(n as f64 / rate);
        // A sleep is too inexact; yielding lets the connections work.
        while Instant::now() < due {
            yield_now().await;
        }
        work.due.borrow_mut().push_back((n + 1, due));
        work.available.notify_one();
    }
}

/// Sends due requests on one connection, one after the other.
async fn connection(address: String, request: String, work: Rc<Work>) {
    let mut socket = TcpStream::connect(&address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let next = work.due.borrow_mut().pop_front();
        let Some((n, due)) = next else {
            work.available.notified().await;
            continue;
        };
        let request = request.replace("{n}", &n.to_string());
        match send_request(&mut socket, request.as_bytes(), &mut buffer).await {
            Some(()) => work.latencies.borrow_mut().push(due.elapsed().as_micros() as u64),
            None => socket = TcpStream::connect(&address).await.unwrap(),
        }
    }
}

/// Sends a request and reads its whole response. Returns `None` unless that is a 200 or 304 of known length.
async fn send_request(socket: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Option<()> {
    socket.write_all(request).await.ok()?;
    let (mut filled, mut total) = (0, usize::MAX);
    while filled < total {
        let read = socket.read(buffer.get_mut(filled..)?).await.ok().filter(|read| *read > 0)?;
        filled += read;
        if total == usize::MAX
            && let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&buffer[..end]).ok()?.to_ascii_lowercase();
            let status = head.get(9..12)?;
            let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split('\r').next());
            total = end + 4 + if status == "304" { 0 } else { length?.parse().ok()? };
            if !matches!(status, "200" | "304") {
                return None;
            }
        }
    }
    Some(())
}
