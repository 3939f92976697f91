//! Opens arbitrary page tokens: only sealed tokens open, and only with the same binding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::testing::{Position, Secret, Signer, SourceProgress};

fuzz_target!(|input: (String, Option<String>, u32, u32, Option<u64>)| {
    let (text, page_token, size, offset, total) = input;
    let signer = Signer::new(&Secret(String::new()), &[7; 32]);
    assert!(signer.open(&["client"], &text).is_err(), "{text:?} opened");
    let positions = [SourceProgress::At(Position { page_token, size, offset }), SourceProgress::End { total }];
    let sealed = signer.seal(&["client", "list"], &positions);
    assert_eq!(signer.open(&["client", "list"], &sealed).as_deref(), Ok(&positions[..]));
    assert!(signer.open(&["other", "list"], &sealed).is_err());
});
