//! Configuration files of any kind: a tree or faults with places, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::config::decode::Cx;
use weir::config::faults::Faults;
use weir::config::{clients, provider, tree, weir as own};

fuzz_target!(|text: &str| {
    let mut faults = Faults::default();
    let env = |name: &str| (name.len() % 2 == 0).then(|| "1s".to_owned());
    let document = tree::parse(&"fuzz.yaml".into(), text, &env, &mut faults);
    let Some(root) = document.root else { return };
    let read_file = |_: &str| Err("not here".to_owned());
    let mut cx = Cx::new(&mut faults, &read_file, document.cut);
    let _ = own::decode(&root, &mut cx);
    let _ = clients::decode(&root, &mut cx);
    let _ = provider::decode(&root, &mut cx);
});
