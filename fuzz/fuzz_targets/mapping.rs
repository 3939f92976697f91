//! Maps arbitrary JSON bodies: a view or an error, and no secret in the view.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use weir::testing::{ConfigSource, Form, PageHeaders, Show, Snapshot, Time};

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let source = ConfigSource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config"));
    Snapshot::load(&source, None, &[7; 32], weir::testing::now()).unwrap_or_else(|faults| panic!("{faults:?}"))
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(body) = weir::testing::ParsedJson::of(bytes) else { return };
    for provider in &SNAPSHOT.providers {
        for (_, operation) in provider.operations.iter() {
            let headers = PageHeaders::default();
            let read = operation.read(&provider.name, &provider.mapping, &body, &headers, Time(1));
            let Ok(provider_body) = read else { continue };
            for form in [Form::Unified, Form::WithNative] {
                let view = provider_body.view(&provider.mapping, Show { secrets: false, form });
                for item in &view.items {
                    let session: serde_json::Value =
                        serde_json::from_slice(&view.body[item.start..item.end]).expect("JSON");
                    assert!(session["connection"]["token"].is_null());
                }
            }
        }
    }
});
