//! A client that watches a session, for tests.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

pub const PATH: &str = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001/watch";
pub const NATIVE: &str = "/v2/agents/agt_customer_support/sessions/ase_customer_support_001";

/// What a watcher receives.
#[derive(Debug, PartialEq)]
pub enum Received {
    Event { name: String, id: Option<String>, data: Value },
    Heartbeat,
    End,
}

/// A client that watches a session; a thread reads the stream into the channel.
pub struct Watcher {
    pub stream: TcpStream,
    pub head: String,
    received: Receiver<Received>,
    /// The length of the body so far, in bytes.
    length: Arc<AtomicUsize>,
}

impl Watcher {
    /// Watches with the key `open`, unless another key is in `X-Weir-Key`.
    pub fn start(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::start_without_key(address, path, &[&[("X-API-Key", "open")], headers].concat())
    }

    pub fn start_without_key(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let mut text = format!("GET {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        stream.write_all((text + "\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let (sender, received) = channel();
        let length = Arc::<AtomicUsize>::default();
        let total = length.clone();
        std::thread::spawn(move || {
            while let Some(chunk) = read_chunk(&mut reader) {
                total.fetch_add(chunk.len(), Ordering::SeqCst);
                let Ok(text) = String::from_utf8(chunk) else { return };
                for block in text.split_terminator("\n\n") {
                    let field = |name: &str| {
                        block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
                    };
                    let event = match field("event") {
                        None => Received::Heartbeat,
                        Some(name) => Received::Event {
                            name,
                            id: field("id"),
                            data: serde_json::from_str(&field("data").unwrap_or_default()).unwrap(),
                        },
                    };
                    if sender.send(event).is_err() {
                        return;
                    }
                }
            }
            let _ = sender.send(Received::End);
        });
        Self { stream, head, received, length }
    }

    /// Returns the length of the body so far, in bytes.
    pub fn length(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    pub fn next(&self) -> Received {
        self.received.recv_timeout(MAX_WAIT).expect("the stream has an event, a heartbeat or its end")
    }

    /// Returns id and data of the next `session` event; skips heartbeats.
    pub fn next_session(&self) -> (String, Value) {
        loop {
            match self.next() {
                Received::Heartbeat => {}
                Received::Event { name, id: Some(id), data } if name == "session" => return (id, data),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Reads one chunk (RFC 9112, section 7.1). Returns `None` at the last chunk or the end of the connection.
fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let size = usize::from_str_radix(line.trim(), 16).ok().filter(|size| *size > 0)?;
    let mut bytes = vec![0; size + 2];
    reader.read_exact(&mut bytes).ok()?;
    bytes.truncate(size);
    Some(bytes)
}

/// Returns a configuration in which Weir polls a watched session every second.
pub fn poll_every_second() -> Config {
    Config::shipped().edit("providers/vectara.yaml", "watch: 5s ", "watch: 1s ")
}

pub fn change_session(sim: &Sim, title: &str, enabled: bool) {
    sim.clear_faults();
    let mut session = example("vectara/get").0;
    session["name"] = title.into();
    session["enabled"] = enabled.into();
    sim.set_response(NATIVE, 200, &json!({}), &session.to_string());
}

/// Two clients, whose ids are their keys.
pub const TWO_CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n";
