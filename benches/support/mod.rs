//! A line on the shipped configuration with what it asks for already in its cache: no socket, no provider.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_docs)]

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Version};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use weir::cache::Entry;
use weir::call::{Misses, entry_of};
use weir::config::load::Source;
use weir::exchange::{Answer, Request};
use weir::freshness::UpstreamLimit;
use weir::headers::Headers;
use weir::metrics::Metrics;
use weir::pipeline::{Handled, Line};
use weir::question::{Asking, Question, Shared};
use weir::runtime::{Runtime, now};
use weir::template::Values;
use weir::trace::Trace;

pub const KEY: &str = "bench-key";
pub const AGENT: &str = "agt_bench";
pub const SESSION: &str = "ase_1";
pub const ONE: &str = "/v1/agents/agt_bench/sessions/ase_1";
pub const LIST: &str = "/v1/agents/agt_bench/sessions";

/// One session of about a kilobyte, as its provider sends it.
pub fn one() -> Bytes {
    let example = fs::read_to_string(shipped("examples/vectara/get.native.json")).unwrap();
    let mut session: Value = serde_json::from_str(&example).unwrap();
    session["metadata"]["notes"] = "as many words as it takes to make a body of a kilobyte. ".repeat(5).into();
    session.to_string().into()
}

/// A page of a hundred of them.
pub fn hundred() -> Bytes {
    let session: Value = serde_json::from_slice(&one()).unwrap();
    let sessions: Vec<Value> = (0..100)
        .map(|n| {
            let mut session = session.clone();
            session["key"] = format!("ase_{n}").into();
            session
        })
        .collect();
    json!({ "sessions": sessions, "metadata": { "page_key": "next" } }).to_string().into()
}

fn shipped(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(path)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The line, warm.
pub struct House {
    pub line: Line,
    _directory: TempDir,
}

impl House {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        copy(&shipped(""), directory.path());
        let weir = fs::read_to_string(directory.path().join("weir.yaml")).unwrap();
        let plenty = "  plenty:\n    requests: 1000000000\n    per: 1m\n";
        fs::write(directory.path().join("weir.yaml"), weir.replace("access_log: on", "access_log: off") + plenty)
            .unwrap();
        // What is stored stays fresh for as long as it is measured.
        let provider = directory.path().join("providers/vectara.yaml");
        let text = fs::read_to_string(&provider).unwrap();
        fs::write(&provider, text.replace("default: 30s", "default: 24h").replace("list: 10s", "list: 24h")).unwrap();
        let digest: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
        let clients = format!("clients:\n  - {{ id: bench, keys: [ {{ sha256: {digest} }} ], rate_limit: plenty }}\n");
        fs::write(directory.path().join("clients.yaml"), clients).unwrap();
        let runtime =
            Runtime::start(Source::new(directory.path()), [7; 32], now()).unwrap_or_else(|faults| panic!("{faults:?}"));
        let shared = Shared::new(Metrics::new().unwrap(), 1 << 30, 1 << 30);
        let house = Self { line: Line::new(Arc::new(runtime), Arc::new(shared)), _directory: directory };
        house.store(&house.question(false), one());
        house.store(&house.question(true), hundred());
        house
    }

    /// The question for the session, or for the page.
    pub fn question(&self, list: bool) -> Question {
        let snapshot = self.line.runtime.snapshot();
        let provider = snapshot.providers.iter().position(|provider| &*provider.name == "vectara").unwrap();
        let asking = Asking::of(&snapshot, 0, provider, &Headers::default()).unwrap();
        let values = match list {
            false => Values { agent: Some(AGENT), session: Some(SESSION), ..Values::default() },
            true => Values { agent: Some(AGENT), limit: Some(100), ..Values::default() },
        };
        Question::new(&snapshot, (0, provider), asking, list, &values).unwrap()
    }

    /// Parse, map, serialise.
    pub fn entry(&self, question: &Question, body: Bytes) -> (Entry, Misses) {
        entry_of(question, body, UpstreamLimit::default(), now()).unwrap_or_else(|unreadable| panic!("{unreadable:?}"))
    }

    /// All of a miss that is Weir's own: parse, map, serialise, store.
    pub fn store(&self, question: &Question, body: Bytes) {
        let ticket = self.line.shared.cache.ticket();
        let (entry, _) = self.entry(question, body);
        self.line.shared.cache.store(question.key.clone(), Arc::new(entry), ticket, now());
    }

    /// What the line answers from its cache, which takes no waiting.
    pub fn answer(&self, request: &Request) -> (Answer, Trace) {
        match self.line.handle(request, "bench-00000001".into()).now_or_never().expect("a hit waits for nothing") {
            (Handled::Answered(answer), trace) => (answer, trace),
            _ => panic!("it was passed on"),
        }
    }
}

/// A request as a client sends it.
pub fn request(path: &str, query: &str, more: &[(&'static str, &str)]) -> Request {
    let usual = [("host", "127.0.0.1:8080"), ("x-api-key", KEY), ("user-agent", "bench/1"), ("accept", "*/*")];
    Request {
        method: Method::GET,
        version: Version::HTTP_11,
        path: path.into(),
        query: query.into(),
        headers: usual.iter().chain(more).map(|(name, value)| (*name, value.as_bytes())).collect(),
        peer: Some([127, 0, 0, 1].into()),
    }
}
