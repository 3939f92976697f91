//! Methods, paths and queries of any kind: a route or a problem, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use weir::config::load::{Source, load};
use weir::mount::{Mounts, has_dots};
use weir::route::Table;

static CONFIG: LazyLock<(Table, Mounts)> = LazyLock::new(|| {
    let loaded = load(&Source::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")));
    let mut faults = loaded.faults;
    let providers = loaded.config.expect("the shipped configuration").providers;
    (Table::compile(&providers, &mut faults), Mounts::compile(&providers))
});

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    for path in [path.to_owned(), format!("/v1/sessions/{path}"), format!("/v1/agents/{path}")] {
        let _ = CONFIG.0.route(&http::Method::GET, &path, query);
        let _ = CONFIG.1.find(&weir::headers::Headers::default(), &path);
        let _ = has_dots(&path);
    }
});
