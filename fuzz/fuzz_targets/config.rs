//! Parses and decodes arbitrary configuration files: a value or faults, and no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::testing::{DecodeContext, Faults, decode_clients, decode_provider, decode_weir, parse_yaml};

fuzz_target!(|text: &str| {
    let mut faults = Faults::default();
    let env = |name: &str| (name.len() % 2 == 0).then(|| "1s".to_owned());
    let document = parse_yaml(&"fuzz.yaml".into(), text, &env, &mut faults);
    let Some(root) = document.root else { return };
    let read_file = |_: &str| Err("no such file".to_owned());
    let mut context = DecodeContext::new(&mut faults, &read_file, document.truncated);
    let _ = decode_weir(&root, &mut context);
    let _ = decode_clients(&root, &mut context);
    let _ = decode_provider(&root, &mut context);
});
