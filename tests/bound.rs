//! The cache's memory limit. This test needs its own process: an evicted entry is freed only when no thread can still
//! read it, and threads of other tests would delay that.

// Tests fail by panics.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Weak};
use std::time::Duration;
use weir::testing::{Cache, Entry, EntryKind, Key, KeyParts, Lifetime, Metrics, Subject, Time, TtlSource};

fn entry(size: usize) -> Arc<Entry> {
    let life = Lifetime::until(Time(0), Time(0).plus(Duration::from_secs(60)), TtlSource::Default);
    let subject = Subject { provider: "p".into(), credential: "c".into(), agent: None, session: None };
    Arc::new(Entry::new(subject, EntryKind::Session, vec![b'x'; size].into(), 0, life))
}

#[test]
fn the_cache_stays_below_its_size_limit_after_every_store() {
    let cache = Cache::new(1_000_000, Metrics::new().unwrap().cache);
    let mut stored: Vec<Weak<Entry>> = Vec::new();
    // Stores nine times the limit, in entries of about a fifth of it. Some keys repeat.
    for n in 0..50 {
        let path_and_query = &if n % 3 == 0 { n / 2 } else { n }.to_string();
        let key = KeyParts {
            provider: "p",
            base_url: "h",
            credential: "c",
            operation: "get_session",
            path_and_query,
            headers: "",
        };
        let large = entry(180_000);
        stored.push(Arc::downgrade(&large));
        assert!(cache.store(Key::of(key), large, cache.ticket(), Time(0)));
        let total: usize = stored.iter().filter_map(Weak::upgrade).map(|entry| entry.body.len()).sum();
        assert!(total <= 1_100_000, "{total} bytes after {n}");
    }
}
