//! Benchmarks of a request in the pipeline and of its parts. Run by `make bench`.

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
use support::{LIST_PATH, SESSION_PATH, WarmPipeline, list_body, request, session_body};
use tokio::task::JoinSet;
use weir::testing::{
    BucketCharge, Coalescer, JoinTerms, Joined, Operation, Position, Secret, Signer, SourceProgress, Time, admit,
    parse_http1_head, shared_result_and_trace,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn hits(c: &mut Criterion) {
    let warm = WarmPipeline::new();
    let plain = request(SESSION_PATH, "", &[]);
    let (response, record) = warm.respond(&plain);
    assert_eq!((response.status, record.cache_label()), (200, "hit"));
    let tag = String::from_utf8(response.headers.get("etag").unwrap().to_vec()).unwrap();
    let conditional = request(SESSION_PATH, "", &[("if-none-match", &tag)]);
    assert_eq!(warm.respond(&conditional).0.status, 304);
    let list = request(LIST_PATH, "limit=100", &[]);
    assert_eq!(warm.respond(&list).0.status, 200);
    c.bench_function("hit/session", |b| b.iter(|| warm.respond(black_box(&plain))));
    c.bench_function("hit/304", |b| b.iter(|| warm.respond(black_box(&conditional))));
    c.bench_function("hit/list of 100", |b| b.iter(|| warm.respond(black_box(&list))));
    let bytes = b"GET /v1/agents/agt_bench/sessions/ase_1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-API-Key: bench-key\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";
    c.bench_function("hit/head", |b| b.iter(|| parse_http1_head(black_box(bytes), None).unwrap()));
    c.bench_function("hit/provider query and key", |b| {
        b.iter(|| warm.provider_query(black_box(Operation::GetSession)));
    });
    c.bench_function("hit/key digest", |b| b.iter(|| Sha256::digest(black_box(support::KEY))));
    let (snapshot, cost) = (warm.pipeline.runtime.snapshot(), NonZeroU32::MIN);
    let client = snapshot.clients.iter().next().unwrap();
    let buckets = &client.buckets;
    let charges = [BucketCharge { bucket: &buckets[0], cost }];
    c.bench_function("hit/limiter, taken", |b| {
        b.iter(|| admit(black_box(&charges), &client.admission_lock).unwrap());
    });
    c.bench_function("hit/limiter, left", |b| b.iter(|| black_box(&buckets[0]).remaining()));
}

fn misses(c: &mut Criterion) {
    let warm = WarmPipeline::new();
    for (name, list, body) in
        [("1 KB session", Operation::GetSession, session_body()), ("list of 100", Operation::ListSessions, list_body())]
    {
        let provider_query = warm.provider_query(list);
        c.bench_function(&format!("miss/{name}"), |b| {
            b.iter_batched(|| body.clone(), |body| warm.store(&provider_query, body), BatchSize::SmallInput);
        });
        c.bench_function(&format!("miss/{name}, serde_json alone"), |b| {
            b.iter(|| serde_json::to_vec(&serde_json::from_slice::<Value>(black_box(&body)).unwrap()).unwrap());
        });
    }
}

fn tokens(c: &mut Criterion) {
    let signer = Signer::new(&Secret(String::new()), &[7; 32]);
    let binding = ["client", "/v1/sessions", "", "", "", "", "provider", "agent"];
    let progress =
        [SourceProgress::At(Position { page_token: Some("x".repeat(40)), offset: 7, ..Position::first(100) })];
    let token = signer.seal(&binding, &progress);
    c.bench_function("page token/seal", |b| b.iter(|| signer.seal(black_box(&binding), &progress)));
    c.bench_function("page token/open", |b| b.iter(|| signer.open(black_box(&binding), &token).unwrap()));
}

/// Measures the time from the end of a call until the last of a thousand waiting tasks has its result.
fn waiters(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let terms = JoinTerms { max_waiters: 10_000, share: None, not_before: Time(i64::MIN), start_after_join: false };
    c.bench_function("coalesce/wake 1,000 waiters", |b| {
        b.iter_custom(|times| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..times {
                let coalescer = Arc::new(Coalescer::<u8, u8, ()>::default());
                let Joined::Leading(guard, _first) = coalescer.join(&1, (), &terms, || None) else {
                    panic!("no leader")
                };
                elapsed += runtime.block_on(async {
                    let mut waiting = JoinSet::new();
                    for _ in 0..1000 {
                        let Joined::Waiting(place) = coalescer.join(&1, (), &terms, || None) else {
                            panic!("no waiter")
                        };
                        waiting.spawn(shared_result_and_trace(place));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let started = Instant::now();
                    guard.finish(7);
                    assert!(waiting.join_all().await.into_iter().all(|(value, _)| value == Some(7)));
                    started.elapsed()
                });
            }
            elapsed
        });
    });
}

criterion_group!(benches, hits, misses, tokens, waiters);
criterion_main!(benches);
