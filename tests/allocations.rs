//! Budgets for the number of memory allocations per request. They do not depend on the speed of the machine.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../benches/support/mod.rs"]
mod support;

use serde_json::Value;
use std::sync::Arc;
use support::{LIST_PATH, SESSION_PATH, WarmPipeline, list_body, request, session_body};
use weir::testing::{HeaderBlocks, Operation};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Returns the allocations of one run. Warm-up runs come first, so that one-time allocations do not count.
fn allocations(mut work: impl FnMut()) -> u64 {
    (0..5).for_each(|_| work());
    let before = dhat::HeapStats::get().total_blocks;
    (0..20).for_each(|_| work());
    (dhat::HeapStats::get().total_blocks - before) / 20
}

/// Reads the header block of an HTTP/2 request with 1,000 fields. An unknown client can send such blocks at any rate.
fn read_header_block() {
    // `:method: GET`, then a new name and a value, both `a` in Huffman code (RFC 7541, section 6.2.2).
    let block = [&[0x82][..], &[0x00, 0x81, 0x1f, 0x81, 0x1f].repeat(1000)].concat();
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frames = [&preface[..], &length[1..], &[1, 5, 0, 0, 0, 1], &block].concat();
    HeaderBlocks::new(block.len(), Arc::default()).read(&frames).unwrap();
}

/// This file has one test because the profiler counts the allocations of the whole process.
/// The fewest allocations of several runs. Now and then a hit also does the housekeeping of the cache, which depends on time.
fn fewest_allocations(run: impl Fn()) -> u64 {
    (0..5).map(|_| allocations(&run)).min().unwrap_or_default()
}

#[test]
fn hits_and_misses_stay_within_their_allocation_budgets() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let warm = WarmPipeline::new();
    let (plain, list) = (request(SESSION_PATH, "", &[]), request(LIST_PATH, "limit=100", &[]));
    let (session_query, list_query) =
        (warm.provider_query(Operation::GetSession), warm.provider_query(Operation::ListSessions));
    let (session_body, list_body) = (session_body(), list_body());
    let serde = |body: &[u8]| drop(serde_json::to_vec(&serde_json::from_slice::<Value>(body).unwrap()).unwrap());
    let measured = [
        ("a session's hit", 20, fewest_allocations(|| drop(warm.respond(&plain)))),
        ("a list's hit", 85, fewest_allocations(|| drop(warm.respond(&list)))),
        (
            "a session's miss: parse, map, serialise, store",
            120,
            allocations(|| warm.store(&session_query, session_body.clone())),
        ),
        ("a list's miss", 8_000, allocations(|| warm.store(&list_query, list_body.clone()))),
        ("a header block of 2,000 strings in Huffman code", 20, allocations(read_header_block)),
    ];
    for (name, budget, count) in measured {
        println!("{name}: {count} allocations, budget {budget}");
    }
    println!(
        "serde_json alone, parse and serialise: {} and {}",
        allocations(|| serde(&session_body)),
        allocations(|| serde(&list_body))
    );
    let over: Vec<_> = measured.iter().filter(|(_, budget, count)| count > budget).collect();
    assert!(over.is_empty(), "{over:?}");
}
