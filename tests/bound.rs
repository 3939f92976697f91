//! The cache's bound on what it really holds, alone in its process: what it lets go is free once no thread may still
//! look at it, and other tests' threads look at theirs all the time.

// A test may fail: that is what it does.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Weak};
use std::time::Duration;
use weir::cache::{Cache, Entry, Key, KeyParts, Kind};
use weir::freshness::{Lifetime, TtlSource};
use weir::metrics::Metrics;
use weir::model::Time;
use weir::purge::Subject;

fn entry(size: usize) -> Arc<Entry> {
    let life = Lifetime::until(Time(0), Time(0).plus(Duration::from_secs(60)), TtlSource::Default);
    let subject = Subject { provider: "p".into(), credential: "c".into(), agent: None, session: None };
    Arc::new(Entry::new(subject, Kind::Session, vec![b'x'; size].into(), 0, life))
}

#[test]
fn what_is_held_is_bounded_at_every_moment_and_not_only_when_somebody_looks() {
    let cache = Cache::new(1_000_000, Metrics::new().unwrap().cache);
    let mut stored: Vec<Weak<Entry>> = Vec::new();
    // Ten times its size, in entries of a fifth of it; every third key comes again.
    for n in 0..50 {
        let path_and_query = &if n % 3 == 0 { n / 2 } else { n }.to_string();
        let key = KeyParts { provider: "p", place: "h", credential: "c", operation: "get_session", path_and_query };
        let large = entry(180_000);
        stored.push(Arc::downgrade(&large));
        assert!(cache.store(Key::of(key), large, cache.ticket(), Time(0)));
        let held: usize = stored.iter().filter_map(Weak::upgrade).map(|entry| entry.body.len()).sum();
        assert!(held <= 1_100_000, "{held} bytes after {n}");
    }
}
