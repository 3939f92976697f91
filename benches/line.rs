//! What a request costs in the line, and what its parts cost; `make bench`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "support/mod.rs"]
mod support;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{House, LIST, ONE, hundred, one, request};
use tokio::task::JoinSet;
use weir::config::decode::Secret;
use weir::cursor::{Position, Reached, Signer};
use weir::flight::{Flights, Joined, Terms, landed};
use weir::head;
use weir::model::Time;
use weir::ratelimit::{self, Due};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn hits(c: &mut Criterion) {
    let house = House::new();
    let plain = request(ONE, "", &[]);
    let (answer, trace) = house.answer(&plain);
    assert_eq!((answer.status, trace.cache_label()), (200, "hit"));
    let tag = String::from_utf8(answer.headers.get("etag").unwrap().to_vec()).unwrap();
    let known = request(ONE, "", &[("if-none-match", &tag)]);
    assert_eq!(house.answer(&known).0.status, 304);
    let list = request(LIST, "limit=100", &[]);
    assert_eq!(house.answer(&list).0.status, 200);
    c.bench_function("hit/session", |b| b.iter(|| house.answer(black_box(&plain))));
    c.bench_function("hit/304", |b| b.iter(|| house.answer(black_box(&known))));
    c.bench_function("hit/list of 100", |b| b.iter(|| house.answer(black_box(&list))));
    let bytes = b"GET /v1/agents/agt_bench/sessions/ase_1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-API-Key: bench-key\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";
    c.bench_function("hit/head", |b| b.iter(|| head::parse(black_box(bytes), None).unwrap()));
    c.bench_function("hit/question and key", |b| b.iter(|| house.question(black_box(false))));
    c.bench_function("hit/key digest", |b| b.iter(|| Sha256::digest(black_box(support::KEY))));
    let (snapshot, cost) = (house.line.runtime.snapshot(), NonZeroU32::MIN);
    let (client, buckets) = (&snapshot.clients[0], &snapshot.clients[0].buckets);
    let dues = [Due { bucket: &buckets[0], cost }];
    c.bench_function("hit/limiter, taken", |b| {
        b.iter(|| ratelimit::admit(black_box(&dues), &client.gate).unwrap());
    });
    c.bench_function("hit/limiter, left", |b| b.iter(|| black_box(&buckets[0]).left()));
}

fn misses(c: &mut Criterion) {
    let house = House::new();
    for (name, list, body) in [("1 KB session", false, one()), ("list of 100", true, hundred())] {
        let question = house.question(list);
        c.bench_function(&format!("miss/{name}"), |b| {
            b.iter_batched(|| body.clone(), |body| house.store(&question, body), BatchSize::SmallInput);
        });
        c.bench_function(&format!("miss/{name}, serde_json alone"), |b| {
            b.iter(|| serde_json::to_vec(&serde_json::from_slice::<Value>(black_box(&body)).unwrap()).unwrap());
        });
    }
}

fn tokens(c: &mut Criterion) {
    let signer = Signer::new(&Secret(String::new()), &[7; 32]);
    let binding = ["client", "/v1/sessions", "", "", "", "", "provider", "agent"];
    let places = [Reached::At(Position { page_token: Some("x".repeat(40)), size: 100, offset: 7 })];
    let token = signer.seal(&binding, &places);
    c.bench_function("cursor/seal", |b| b.iter(|| signer.seal(black_box(&binding), &places)));
    c.bench_function("cursor/open", |b| b.iter(|| signer.open(black_box(&binding), &token).unwrap()));
}

/// From the landing of a call to the last of a thousand tasks that waited for it.
fn waiters(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let terms = Terms { most: 10_000, true_since: Time(i64::MIN), confirm: false };
    c.bench_function("flight/1,000 waiters woken", |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let flights = Arc::new(Flights::<u8, u8, ()>::default());
                let Joined::Leading(landing, _first) = flights.join(&1, (), &terms, || None) else {
                    panic!("no leader")
                };
                took += runtime.block_on(async {
                    let mut waiting = JoinSet::new();
                    for _ in 0..1000 {
                        let Joined::Waiting(place) = flights.join(&1, (), &terms, || None) else { panic!("no waiter") };
                        waiting.spawn(landed(place));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let begun = Instant::now();
                    landing.land(7);
                    assert!(waiting.join_all().await.into_iter().all(|value| value == Some(7)));
                    begun.elapsed()
                });
            }
            took
        });
    });
}

criterion_group!(benches, hits, misses, tokens, waiters);
criterion_main!(benches);
