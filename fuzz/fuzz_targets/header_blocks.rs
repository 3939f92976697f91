//! Follows arbitrary frames of an HTTP/2 client, cut anywhere: no panic, and the same faults in any parts.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
#[allow(dead_code)]
mod reference;

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use weir::testing::{HeaderBlocks, HeaderFaults};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns whether the connection goes on, and its faults.
fn read(parts: &[&[u8]]) -> (bool, String) {
    let faults = Arc::<HeaderFaults>::default();
    let mut blocks = HeaderBlocks::new(8192, faults.clone());
    let open = parts.iter().all(|part| blocks.read(part).is_ok());
    (open, format!("{faults:?}"))
}

fuzz_target!(|input: (Vec<(u8, u8, u8, Vec<u8>)>, Vec<u8>)| {
    let (frames, cuts) = input;
    let mut bytes = PREFACE.to_vec();
    for (kind, flags, stream, payload) in frames {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        // Mostly frames with headers.
        let kind = [1, 1, 9, 9, 0, kind][usize::from(kind) % 6];
        bytes.extend([length[1], length[2], length[3], kind, flags, 0, 0, 0, stream % 8]);
        bytes.extend(payload);
    }
    assert_eq!(read(&[&bytes]), read(&reference::parts(&bytes, &cuts)));
});
