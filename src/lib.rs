//! Weir: one endpoint in front of several agent-session APIs.
//!
//! The modules are layers: `cli`, `server`, `pipeline`, `fetch`, `runtime`, `engine`, `rules`, `config`, `base`. A file
//! imports only from its own module and from the modules after it in this list; `tests/structure.rs` checks this. See
//! `docs/ARCHITECTURE.md`.

// Without the facade, `pub` items are reachable only inside the crate.
#![cfg_attr(not(feature = "testing"), allow(unreachable_pub))]

mod base;
mod cli;
mod config;
mod engine;
mod fetch;
mod pipeline;
mod rules;
mod runtime;
mod server;

#[cfg(feature = "testing")]
pub mod testing;

pub use cli::main;
