//! Weir: one endpoint in front of several agent-session APIs.
//!
//! The house has floors; a file imports only from floors below its own, and `tests/structure.rs`
//! checks it. See `docs/ARCHITECTURE.md`.

// 0 vocabulary
pub mod endpoints;
pub mod error;
pub mod exchange;
pub mod headers;
pub mod json;
pub mod jsonpath;
pub mod lines;
pub mod metrics;
pub mod model;
pub mod pattern;
pub mod span;
// 1 config
pub mod config;
// 2 rules: pure, given `now`
pub mod auth;
pub mod bounds;
pub mod conditional;
pub mod cors;
pub mod cursor;
pub mod dialect;
pub mod fault;
pub mod fields;
pub mod freshness;
pub mod head;
pub mod hops;
pub mod mapping;
pub mod mount;
pub mod openapi;
pub mod origin;
pub mod parameters;
pub mod purge;
pub mod ratelimit;
pub mod route;
pub mod template;
pub mod turns;
// 3 mechanisms: with state or IO
pub mod audit;
pub mod breaker;
pub mod cache;
pub mod credential;
pub mod export;
pub mod flight;
pub mod held;
pub mod pace;
pub mod reading;
pub mod supervisor;
pub mod tls;
pub mod upstream;
pub mod viewer;
// 4 runtime
pub mod runtime;
// 5 one answer, 6 answers, 7 the line (trace: 3)
pub mod batch;
pub mod call;
pub mod charge;
pub mod explain;
pub mod fetch;
pub mod forward;
pub mod gate;
pub mod listing;
pub mod native;
pub mod pipeline;
pub mod question;
pub mod rehearsal;
pub mod respond;
pub mod trace;
pub mod watching;
// 8 edges
pub mod accept;
pub mod admin;
pub mod gateway;
pub mod observe;
pub mod proxy;
pub mod socket;
pub mod streams;
pub mod upgrade;
pub mod wire;
// 9 assembly
pub mod command;
pub mod server;
