//! Tests with real processes: the gateway, the simulator, and the tools that users have.

mod api;
mod cache;
mod command;
mod config_faults;
mod limits;
mod mapping;
mod provider_faults;
mod reload;
mod support;
mod tools;
mod transport;
