//! A request pipeline with the shipped configuration and a filled cache. It needs no socket and no provider.

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
use weir::testing::{
    ConfigSource, Entry, Handled, Metrics, Operation, PageHeaders, Pipeline, ProviderIdentity, ProviderQuery,
    QueryTarget, Request, RequestHeaders, RequestRecord, Response, Runtime, SharedState, UnmappedParts, UpstreamLimit,
    Values, entry_from_body, now,
};

pub const KEY: &str = "bench-key";
pub const AGENT: &str = "agt_bench";
pub const SESSION: &str = "ase_1";
pub const SESSION_PATH: &str = "/v1/agents/agt_bench/sessions/ase_1";
pub const LIST_PATH: &str = "/v1/agents/agt_bench/sessions";

/// Returns one session of about a kilobyte, as its provider sends it.
pub fn session_body() -> Bytes {
    let example = fs::read_to_string(shipped("examples/vectara/get.native.json")).unwrap();
    let mut session: Value = serde_json::from_str(&example).unwrap();
    session["metadata"]["notes"] = "as many words as it takes to make a body of a kilobyte. ".repeat(5).into();
    session.to_string().into()
}

/// Returns a page of one hundred sessions.
pub fn list_body() -> Bytes {
    let session: Value = serde_json::from_slice(&session_body()).unwrap();
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

/// A pipeline whose cache contains one session and one list.
pub struct WarmPipeline {
    pub pipeline: Pipeline,
    _directory: TempDir,
}

impl WarmPipeline {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        copy(&shipped(""), directory.path());
        let weir = fs::read_to_string(directory.path().join("weir.yaml")).unwrap();
        let plenty = "  plenty:\n    requests: 1000000000\n    per: 1m\n";
        fs::write(directory.path().join("weir.yaml"), weir.replace("access_log: on", "access_log: off") + plenty)
            .unwrap();
        // The entries stay fresh while the benchmarks run.
        let provider = directory.path().join("providers/vectara.yaml");
        let text = fs::read_to_string(&provider).unwrap();
        fs::write(&provider, text.replace("default: 30s", "default: 24h").replace("list: 10s", "list: 24h")).unwrap();
        let digest: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
        let clients = format!("clients:\n  - {{ id: bench, keys: [ {{ sha256: {digest} }} ], rate_limit: plenty }}\n");
        fs::write(directory.path().join("clients.yaml"), clients).unwrap();
        let runtime = Runtime::start(ConfigSource::new(directory.path()), [7; 32], now())
            .unwrap_or_else(|faults| panic!("{faults:?}"));
        let shared = SharedState::new(Metrics::new().unwrap(), 1 << 30, 1 << 30);
        let warm = Self { pipeline: Pipeline::new(Arc::new(runtime), Arc::new(shared)), _directory: directory };
        warm.store(&warm.provider_query(Operation::GetSession), session_body());
        warm.store(&warm.provider_query(Operation::ListSessions), list_body());
        warm
    }

    /// Returns the provider query for the session or for the list.
    pub fn provider_query(&self, operation: Operation) -> ProviderQuery {
        let snapshot = self.pipeline.runtime.snapshot();
        let provider = snapshot.providers.find(|provider| &*provider.name == "vectara").unwrap();
        let client = snapshot.clients.ids().next().unwrap();
        let identity = ProviderIdentity::of(&snapshot, client, provider, &RequestHeaders::default()).unwrap();
        let values = match operation {
            Operation::GetSession => Values { agent: Some(AGENT), session: Some(SESSION), ..Values::default() },
            Operation::ListSessions => Values { agent: Some(AGENT), limit: Some(100), ..Values::default() },
        };
        ProviderQuery::new(&snapshot, QueryTarget { client, provider, operation }, identity, &values).unwrap()
    }

    /// Parses, maps and serialises a body.
    pub fn entry(&self, provider_query: &ProviderQuery, body: Bytes) -> (Entry, UnmappedParts) {
        entry_from_body(provider_query, body, PageHeaders::default(), UpstreamLimit::default(), now())
            .unwrap_or_else(|unreadable| panic!("{unreadable:?}"))
    }

    /// Does Weir's part of a miss: parses, maps, serialises and stores a body.
    pub fn store(&self, provider_query: &ProviderQuery, body: Bytes) {
        let ticket = self.pipeline.shared.cache.ticket();
        let (entry, _) = self.entry(provider_query, body);
        self.pipeline.shared.cache.store(provider_query.key.clone(), Arc::new(entry), ticket, now());
    }

    /// Returns the response to a cache hit.
    pub fn respond(&self, request: &Request) -> (Response, RequestRecord) {
        match self.pipeline.handle(request, "bench-00000001".into()).now_or_never().expect("a cache hit does not wait")
        {
            (Handled::Respond(response), record) => (response, record),
            _ => panic!("the request was forwarded"),
        }
    }
}

/// Returns a request as a client sends it.
pub fn request(path: &str, query: &str, more: &[(&'static str, &str)]) -> Request {
    let usual = [("host", "127.0.0.1:8080"), ("x-api-key", KEY), ("user-agent", "bench/1"), ("accept", "*/*")];
    Request {
        method: Method::GET,
        version: Version::HTTP_11,
        path: path.into(),
        query: query.into(),
        headers: usual.iter().chain(more).map(|(name, value)| (*name, value.as_bytes())).collect(),
        peer: Some([127, 0, 0, 1].into()),
        form: None,
    }
}
