//! An open-loop load generator: requests leave at fixed moments, whether or not those before were answered.
//!
//! `load ADDRESS PATH RATE SECONDS CONNECTIONS [HEADER...]` prints `requests errors p50 p90 p99 p99.9 max`, times in
//! microseconds; `{n}` in a path is the request's number, from 1. A request's time begins at the moment at which it should have left, not when a connection was
//! free to take it: a server that stalls is charged with all who would have come meanwhile (no coordinated
//! omission). The pace is kept by looking at the clock all the time, so this wants a core of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};

#[derive(Default)]
struct Work {
    due: RefCell<VecDeque<(u64, Instant)>>,
    some: Notify,
    took: RefCell<Vec<u64>>,
}

impl Work {
    /// Whether anything was answered in the next half second: what is late is waited for, what is lost is not.
    async fn moves(&self) -> bool {
        let before = self.took.borrow().len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.took.borrow().len() > before
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo runs benches with options of its own: this one is started by the driver alone.
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
        pace(&work, rate, seconds).await;
        while work.moves().await {}
    });
    let mut took = work.took.borrow_mut();
    took.sort_unstable();
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).or(took.last()).copied().unwrap_or_default();
    let errors = (rate * seconds) as u64 - took.len() as u64;
    println!("{} {errors} {} {} {} {} {}", took.len(), at(0.5), at(0.9), at(0.99), at(0.999), at(1.0));
}

async fn pace(work: &Work, rate: f64, seconds: f64) {
    let (begun, count) = (Instant::now(), (rate * seconds) as u64);
    for n in 0..count {
        let due = begun + Duration::from_secs_f64(n as f64 / rate);
        // Giving way lets the connections move on; it does not sleep.
        while Instant::now() < due {
            yield_now().await;
        }
        work.due.borrow_mut().push_back((n + 1, due));
        work.some.notify_one();
    }
}

async fn connection(address: String, request: String, work: Rc<Work>) {
    let mut socket = TcpStream::connect(&address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let next = work.due.borrow_mut().pop_front();
        let Some((n, due)) = next else {
            work.some.notified().await;
            continue;
        };
        let request = request.replace("{n}", &n.to_string());
        match exchange(&mut socket, request.as_bytes(), &mut buffer).await {
            Some(()) => work.took.borrow_mut().push(due.elapsed().as_micros() as u64),
            None => socket = TcpStream::connect(&address).await.unwrap(),
        }
    }
}

/// One request and its whole answer; `None` where it is not a 200 or 304 of a known length.
async fn exchange(socket: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Option<()> {
    socket.write_all(request).await.ok()?;
    let (mut filled, mut whole) = (0, usize::MAX);
    while filled < whole {
        let read = socket.read(buffer.get_mut(filled..)?).await.ok().filter(|read| *read > 0)?;
        filled += read;
        if whole == usize::MAX
            && let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&buffer[..end]).ok()?.to_ascii_lowercase();
            let status = head.get(9..12)?;
            let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split('\r').next());
            whole = end + 4 + if status == "304" { 0 } else { length?.parse().ok()? };
            if !matches!(status, "200" | "304") {
                return None;
            }
        }
    }
    Some(())
}
