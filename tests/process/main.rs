//! Runs the gateway and the simulator as real processes, and tests them with the tools that users have.

// Tests may panic, print and read the clock.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods
)]
#![allow(unreachable_pub, clippy::needless_pass_by_value)]

mod access_log;
mod admin;
mod admin_commands;
mod api;
mod audit;
mod breaker;
mod browser;
mod cache;
mod canary;
mod chaos;
mod chunk_grammar;
mod command;
mod compatibility;
mod compression;
mod config_faults;
mod config_files;
mod connection_limits;
mod containers;
mod cors;
mod credential_stub;
mod credentials;
mod explain;
mod first_hints;
mod fixed_credentials;
mod forms;
mod forwarded_hops;
mod frames;
mod generated_clients;
mod h2_uploads;
mod half_close;
mod head_memory;
mod host_values;
mod http2;
mod http2_faults;
mod http2_memory;
mod hygiene;
mod interim_responses;
mod isolation;
mod kubernetes;
mod limits;
mod lists;
mod mapping;
mod matrix;
mod memory_attacks;
mod memory_over_tls;
mod monitoring;
mod native_client;
mod native_errors;
mod native_forwarding;
mod native_read_headers;
mod native_reads;
mod native_secrets;
mod native_streams;
mod native_writes;
mod odd_ids;
mod odd_validators;
mod open_files;
mod openapi;
mod operators;
mod outage;
mod page_faults;
mod page_kinds;
mod paged_provider;
mod pass_through_pool;
mod provider_faults;
mod provider_framing;
mod provider_headers;
mod purge;
mod query_credentials;
mod reload;
mod repeated_pages;
mod resent_requests;
mod responses_without_body;
mod scripted_provider;
mod sdk;
mod shares;
mod signed_tokens;
mod sigv4;
mod simulator;
mod snapshots;
mod strict_provider;
mod support;
mod systemd;
mod text_around_ids;
mod tls;
mod tools;
mod traces;
mod transport;
mod unusable_sessions;
mod upgrade;
mod watch;
mod watch_client;
mod watch_tokens;
