//! Parses arbitrary session ids and agent ids: no panic, and an accepted id stays in its path segment.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use weir::testing::{ConfigSource, RouteTable, SessionName, load_config as load};

static TABLE: LazyLock<RouteTable> = LazyLock::new(|| {
    let loaded = load(&ConfigSource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")));
    let mut faults = loaded.faults;
    RouteTable::compile(&loaded.config.expect("the shipped configuration").providers, &mut faults)
});

fuzz_target!(|text: &str| {
    if let Ok(SessionName { agent, session, .. }) = TABLE.parse_session_id(text) {
        for id in agent.iter().chain([&session]) {
            assert!(!id.is_empty() && !id.contains(['/', '?', '#', '%', '\0']) && id != "." && id != "..", "{text:?}");
        }
    }
    let _ = TABLE.parse_agent_id(text);
});
