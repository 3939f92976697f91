//! Reads arbitrary chunked bodies, cut anywhere, beside a second reading: the same data, the same end, or a refusal.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
#[allow(dead_code)]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::{Reading, chunked, parts, plain_data};
use weir::testing::{ChunkFault, ChunkedBody};

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, cuts) = input;
    let (mut reader, mut out, mut used, mut fault) = (ChunkedBody::default(), Vec::new(), 0, None);
    for part in parts(&bytes, &cuts) {
        match reader.read(part, &mut out) {
            Ok(length) => used += length,
            Err(error) => {
                fault = Some(error);
                break;
            }
        }
    }
    let (data, ended) = plain_data(&out);
    assert_eq!(ended, reader.is_complete());
    match chunked(&bytes) {
        // The second reading has no limits on the length of lines.
        _ if fault == Some(ChunkFault::TooLong) => assert!(!ended),
        Reading::Complete(expected, length) => {
            assert_eq!((fault, data, ended, used), (None, expected, true, length));
        }
        Reading::Incomplete(expected) => assert!(!ended && (fault.is_some() || data == expected)),
        Reading::Invalid => assert!(fault.is_some() && !ended),
    }
});
