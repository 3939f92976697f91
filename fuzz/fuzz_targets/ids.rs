//! Session ids and agent ids as they stand in a path: none panics, and what is accepted stays in its segment.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use weir::config::load::{Source, load};
use weir::route::{Name, Table};

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let loaded = load(&Source::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")));
    let mut faults = loaded.faults;
    Table::compile(&loaded.config.expect("the shipped configuration").providers, &mut faults)
});

fuzz_target!(|text: &str| {
    if let Ok(Name { agent, session, .. }) = TABLE.session_id(text) {
        for id in agent.iter().chain([&session]) {
            assert!(!id.is_empty() && !id.contains(['/', '?', '#', '%', '\0']) && id != "." && id != "..", "{text:?}");
        }
    }
    let _ = TABLE.agent_id(text);
});
