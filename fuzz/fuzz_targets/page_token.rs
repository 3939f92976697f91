//! Opens arbitrary page tokens: only sealed tokens open, and only with the same binding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::testing::{CursorHistory, Mark, Position, Secret, Signer, SourceProgress};

fuzz_target!(|input: (String, Option<String>, u32, u32, Option<u64>, String)| {
    let (text, page_token, size, offset, total, before) = input;
    // The first page has no history.
    let history = match &page_token {
        None => CursorHistory::default(),
        Some(token) => CursorHistory::default().follow(None, Some(before.as_bytes()), token).expect("nothing repeats"),
    };
    let signer = Signer::new(&Secret(String::new()), &[7; 32]);
    assert!(signer.open(&["client"], &text).is_err(), "{text:?} opened");
    let mark = (offset % 2 == 1).then_some(Mark { before: size.into(), last: total, total, overlaps: size % 2 == 1 });
    let position = Position { page_token, size, offset, history, mark };
    let positions = [SourceProgress::At(position), SourceProgress::End { total }];
    let sealed = signer.seal(&["client", "list"], &positions);
    assert_eq!(signer.open(&["client", "list"], &sealed).as_deref(), Ok(&positions[..]));
    assert!(signer.open(&["other", "list"], &sealed).is_err());
});
