//! Parses arbitrary HTTP/1 request heads: no panic, a part of a head is never complete, and the bytes after a head do not
//! change the result.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::testing::parse_http1_head as parse;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(head)) = parse(bytes, None) else { return };
    assert!(head.length <= bytes.len());
    let alone = parse(&bytes[..head.length], None).ok().flatten().expect("the head alone is complete");
    assert_eq!((alone.length, alone.body, alone.keep_alive), (head.length, head.body, head.keep_alive));
    assert_eq!((&alone.request.path, &alone.request.headers), (&head.request.path, &head.request.headers));
    for end in [head.length - 1, head.length / 2] {
        assert!(!matches!(parse(&bytes[..end], None), Ok(Some(_))), "a part of the head is complete");
    }
});
