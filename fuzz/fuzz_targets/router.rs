//! Routes arbitrary paths and queries: a route or an error, and no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use weir::testing::{ConfigSource, NativeRoutes, Request, RouteTable, has_dots, load_config as load};

static CONFIG: LazyLock<(RouteTable, NativeRoutes)> = LazyLock::new(|| {
    let loaded = load(&ConfigSource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")));
    let mut faults = loaded.faults;
    let providers = loaded.config.expect("the shipped configuration").providers;
    (RouteTable::compile(&providers, &mut faults), NativeRoutes::compile(&providers))
});

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    for path in [path.to_owned(), format!("/v1/sessions/{path}"), format!("/v1/agents/{path}")] {
        let (path, query) = (path.to_string(), query.to_string());
        let _ = CONFIG.0.route(&Request { path: path.clone(), query: query.clone(), ..Request::default() });
        let post = Request { method: http::Method::POST, path: path.clone(), form: Some(Ok(query)), ..Request::default() };
        let _ = CONFIG.0.route(&post);
        let _ = CONFIG.1.find(&weir::testing::RequestHeaders::default(), &path);
        let _ = has_dots(&path);
    }
});
