//! Starts Weir with the shipped configuration of each earlier version, kept in `tests/fixtures/config-VERSION/`.
//!
//! A version that refuses one of them must explain it: `config-VERSION.faults` beside the folder lists the expected
//! faults, one line each, as `weir check` prints them.

use crate::support::*;
use std::fs;

#[test]
fn configurations_of_earlier_versions_still_start_or_are_explained() {
    let fixtures = repository().join("tests/fixtures");
    let mut started = 0;
    for entry in fs::read_dir(&fixtures).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().into_string().unwrap();
        let config = Config::shipped();
        fs::remove_dir_all(config.directory.path()).unwrap();
        copy(&entry.path(), config.directory.path());
        let config = config.clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n");
        let (code, faults) = config.check();
        match fs::read_to_string(fixtures.join(format!("{name}.faults"))) {
            Ok(expected) => {
                assert_eq!(code, 1, "{name} is valid, but {name}.faults lists faults");
                assert_eq!(faults, expected.lines().collect::<Vec<_>>(), "{name}");
            }
            Err(_) => {
                assert_eq!(code, 0, "{name}: {faults:?}");
                let sim = Sim::start();
                let weir = config.start(&sim);
                for path in [VECTARA, PALANTIR, AGENTHUMAN] {
                    assert_eq!(weir.get(path).status, 200, "{name}: {path}");
                }
                started += 1;
            }
        }
    }
    assert!(started > 0, "no fixture was started");
}
