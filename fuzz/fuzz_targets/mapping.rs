//! Bodies of any kind: mapped or refused, and no secret in what is shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use weir::config::load::Source;
use weir::model::{Form, Show, Time};
use weir::runtime::snapshot::Snapshot;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let source = Source::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config"));
    Snapshot::load(&source, None, &[7; 32], weir::runtime::now()).unwrap_or_else(|faults| panic!("{faults:?}"))
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(body) = weir::json::parse(bytes) else { return };
    for provider in &SNAPSHOT.providers {
        for operation in [&provider.get_session, &provider.list_sessions].into_iter().flatten() {
            let Ok(reading) = operation.read(&provider.name, &provider.mapping, &body, Time(1)) else { continue };
            for form in [Form::Unified, Form::WithNative] {
                let view = reading.view(&provider.mapping, Show { secrets: false, form });
                for item in &view.items {
                    let shown: serde_json::Value = serde_json::from_slice(&view.body[item.start..item.end]).expect("JSON");
                    assert!(shown["connection"]["token"].is_null());
                }
            }
        }
    }
});
