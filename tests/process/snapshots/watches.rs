//! The events of watched sessions.

use super::normalise::{metrics, normalise_body};
use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

const SESSION: &str = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001";
const NATIVE: &str = "/v2/agents/agt_customer_support/sessions/ase_customer_support_001";

/// A client that reads the event stream of a session.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn start(weir: &Weir, session: &str) -> Self {
        let mut stream = TcpStream::connect(weir.http).unwrap();
        stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let head = "HTTP/1.1\r\nHost: test\r\nX-API-Key: open\r\nWeir-Explain: 1\r\nConnection: close\r\n\r\n";
        write!(stream, "GET {session}/watch {head}").unwrap();
        Self(BufReader::new(stream))
    }

    /// Returns the next event: its name, whether it has an id, and its data. Returns the word `end` at the end.
    fn next(&mut self, sim: &Sim) -> Value {
        let (mut name, mut has_id) = (Value::Null, false);
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the connection ended without a last chunk");
            let line = line.trim_end();
            if line == "0" {
                return "end".into();
            } else if let Some(text) = line.strip_prefix("event: ") {
                name = text.into();
            } else if line.starts_with("id: ") {
                has_id = true;
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = data.replace(&sim.address.to_string(), "ADDRESS");
                let mut data: Value = serde_json::from_str(&data).unwrap();
                normalise_body(&mut data);
                return json!({ "event": name, "has_id": has_id, "data": data });
            }
        }
    }
}

pub fn snapshot() -> Value {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "watch: 5s ", "watch: 1s ")
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], explain: true }\n")
        .start(&sim);
    // All responses of the provider are planned before the first call, so that their order does not depend on time.
    let (first, mut changed) = (example("vectara/get").0, example("vectara/get").0);
    changed["name"] = "changed".into();
    let missing = json!({ "messages": ["Session not found."] });
    for (times, status, body) in [(1, 200, first), (1, 500, json!({})), (1, 200, changed), (0, 404, missing)] {
        sim.plan_fault(NATIVE, times, &json!({ "kind": "answer", "status": status, "body": body.to_string() }));
    }
    let mut stream = Stream::start(&weir, SESSION);
    // An explanation, the session, a problem, the changed session, a problem, and the end.
    let events: Vec<Value> = (0..6).map(|_| stream.next(&sim)).collect();
    let mut ended = Stream::start(&weir, AGENTHUMAN);
    let ended = [ended.next(&sim), ended.next(&sim), ended.next(&sim)];
    let metrics = metrics(&weir.metrics(), &[]);
    let series: Vec<&Value> = metrics["series"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|series| series.as_str().unwrap().starts_with("weir_watch"))
        .collect();
    json!({ "changes": events, "ended_session": ended, "series": series })
}
