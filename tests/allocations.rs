//! How often Weir asks for memory: budgets that hold on every machine, however fast it is.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../benches/support/mod.rs"]
mod support;

use serde_json::Value;
use support::{House, LIST, ONE, hundred, one, request};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Allocations in one go of what was done before: what is made once does not count.
fn allocations(mut work: impl FnMut()) -> u64 {
    (0..5).for_each(|_| work());
    let before = dhat::HeapStats::get().total_blocks;
    (0..20).for_each(|_| work());
    (dhat::HeapStats::get().total_blocks - before) / 20
}

/// One test, since all that happens in the process is counted.
#[test]
fn hits_and_misses_stay_within_their_budgets() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let house = House::new();
    let (plain, list) = (request(ONE, "", &[]), request(LIST, "limit=100", &[]));
    let (question, page) = (house.question(false), house.question(true));
    let (one, hundred) = (one(), hundred());
    let serde = |body: &[u8]| drop(serde_json::to_vec(&serde_json::from_slice::<Value>(body).unwrap()).unwrap());
    let counted = [
        ("a session's hit", 20, allocations(|| drop(house.answer(&plain)))),
        ("a list's hit", 85, allocations(|| drop(house.answer(&list)))),
        ("a session's miss: parse, map, serialise, store", 120, allocations(|| house.store(&question, one.clone()))),
        ("a list's miss", 8_000, allocations(|| house.store(&page, hundred.clone()))),
    ];
    for (what, budget, count) in counted {
        println!("{what}: {count} allocations, budget {budget}");
    }
    println!(
        "serde_json alone, parse and serialise: {} and {}",
        allocations(|| serde(&one)),
        allocations(|| serde(&hundred))
    );
    let over: Vec<_> = counted.iter().filter(|(_, budget, count)| count > budget).collect();
    assert!(over.is_empty(), "{over:?}");
}
