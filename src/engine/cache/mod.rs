//! Stores provider responses in memory (moka) under keys that no two tenants share.
//!
//! Only this module makes cache keys and computes the size of entries. An entry's own times and the caller's `now`
//! decide whether it may be served; moka's expiry only frees memory. This module must not call providers, map bodies or
//! judge responses.

use crate::base::metrics::CacheMetrics;
use crate::base::model::{Item, Show, Time, View};
use crate::base::request_reply::{CallStats, ProviderReply};
use crate::rules::error_rules::ProviderError;
use crate::rules::freshness::{Lifetime, TtlSource, UpstreamLimit};
use crate::rules::page_headers::PageHeaders;
use crate::rules::provider_body::PageInfo;
use crate::rules::purge::{Mode, PurgeEpoch, PurgeLog, Scope, Subject};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use write_log::WriteLog;

pub(crate) use write_log::WriteScope;

mod write_log;

/// Memory that an entry needs besides its key and bodies, in bytes: moka's node, the entry and its parts.
const ENTRY_OVERHEAD: usize = 600;

/// The cache evicts once the entries added since the last eviction exceed its size divided by this.
const EVICTION_DIVISOR: u64 = 10;

/// How long the cache keeps a response that must be revalidated before each use.
const REVALIDATION_RETENTION: Duration = Duration::from_secs(600);

/// Everything that decides whether two requests may share a response.
#[derive(Debug, Clone, Copy)]
pub struct KeyParts<'k> {
    /// The provider's name.
    pub provider: &'k str,
    /// The provider's base URL.
    pub base_url: &'k str,
    /// The identity of the credential sent to the provider.
    pub credential: &'k str,
    /// The operation's name.
    pub operation: &'k str,
    /// Path and query of the provider request.
    pub path_and_query: &'k str,
    /// The request headers that are part of the question, one in a line.
    pub headers: &'k str,
}

/// A cache key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// Makes the key of these parts. The length before each part keeps different sets of parts from making the same
    /// key, whatever the parts contain.
    #[must_use]
    pub fn of(parts: KeyParts<'_>) -> Self {
        let KeyParts { provider, base_url, credential, operation, path_and_query, headers } = parts;
        let parts = [provider, base_url, credential, operation, path_and_query, headers];
        let parts = &parts[..if headers.is_empty() { 5 } else { 6 }];
        let mut key = String::with_capacity(parts.iter().map(|part| part.len() + 5).sum());
        for part in parts {
            key.extend([itoa::Buffer::new().format(part.len()), ":", part]);
        }
        Self(key)
    }
}

/// The kind of response that an entry stores.
#[derive(Debug, Clone)]
pub enum EntryKind {
    /// One session.
    Session,
    /// A page of a list.
    Page(PageInfo),
    /// The session or list does not exist at the provider.
    NotFound(Box<ProviderError>),
}

/// A view and what it shows.
#[derive(Clone)]
pub struct CachedView {
    /// What the view shows.
    pub show: Show,
    /// The view.
    pub view: Arc<View>,
}

/// A stored provider response with the views made from it. Immutable: a new view makes a new entry.
#[derive(Clone)]
pub struct Entry {
    /// The session or list in the response.
    pub subject: Subject,
    /// The kind of response.
    pub kind: EntryKind,
    /// The provider's body. Every view can be made from it again.
    pub body: Bytes,
    /// The provider's headers that say how a list goes on.
    pub page_headers: PageHeaders,
    /// The version of the provider's rules that made the views and the lifetime.
    pub rules: u64,
    /// How long the entry is fresh, and how long it may be served stale.
    pub life: Lifetime,
    /// The time of a soft purge: the entry is stale from then on, whatever its lifetime says.
    pub soft_purged_at: Option<Time>,
    /// The limits that the provider's headers set.
    pub upstream: UpstreamLimit,
    /// Statistics of the provider call that returned the response.
    pub call_stats: CallStats,
    /// Headers of a conditional request that revalidates the entry; empty if the provider sent no validator.
    pub conditions: Vec<(HeaderName, HeaderValue)>,
    /// Whether the entry must be revalidated before each use (`Cache-Control: no-cache`).
    pub always_revalidate: bool,
    /// The views made so far.
    pub views: Vec<CachedView>,
}

impl Entry {
    /// Makes an entry without provider limits, validators and views.
    #[must_use]
    pub fn new(subject: Subject, kind: EntryKind, body: Bytes, rules: u64, life: Lifetime) -> Self {
        Self {
            subject,
            kind,
            body,
            page_headers: PageHeaders::default(),
            rules,
            life,
            soft_purged_at: None,
            upstream: UpstreamLimit::default(),
            call_stats: CallStats::default(),
            conditions: Vec::new(),
            always_revalidate: false,
            views: Vec::new(),
        }
    }

    /// Returns the view for `show`, if it exists already.
    #[must_use]
    pub fn view(&self, show: Show) -> Option<&Arc<View>> {
        self.views.iter().find(|cached| cached.show == show).map(|cached| &cached.view)
    }

    /// Returns a copy that is stale from `now` on. Its stale windows begin at `now`.
    #[must_use]
    pub fn stale_since(&self, now: Time) -> Self {
        Self { life: self.life.stale_since(now), soft_purged_at: Some(now), ..self.clone() }
    }

    /// Marks the entry as one that must be revalidated before each use: it is never served fresh or stale.
    pub fn require_revalidation(&mut self) {
        self.always_revalidate = true;
        let at = self.life.stored_at;
        (self.life.fresh_until, self.life.revalidate_until, self.life.error_until) = (at, at, at);
        self.life.source = TtlSource::Upstream;
    }

    /// Returns how long the cache keeps the entry: until it may no longer be served, or longer for revalidation.
    fn retention(&self, now: Time) -> Duration {
        let servable = self.life.last().since(now);
        let only_revalidated = self.always_revalidate && !self.conditions.is_empty();
        if only_revalidated { servable.max(REVALIDATION_RETENTION) } else { servable }
    }

    /// Returns the size of the entry and its key in bytes.
    #[must_use]
    pub fn size(&self, key: &Key) -> u32 {
        // A native view may share the bytes of the body.
        let body_size = |view: &View| if view.body.as_ptr() == self.body.as_ptr() { 0 } else { view.body.len() };
        let views = self.views.iter().map(|CachedView { view, .. }| {
            body_size(view) + view.items.len() * size_of::<Item>() + view.encoded.bytes()
        });
        let conditions = self.conditions.iter().map(|(_, value)| value.len());
        let error = match &self.kind {
            EntryKind::NotFound(error) => {
                let text = error.text.as_ref().map_or(0, String::len);
                text + error.reply.as_deref().map_or(0, headers_size)
            }
            _ => 0,
        };
        let headers = conditions.sum::<usize>() + self.page_headers.size();
        let stored = key.0.len() + self.body.len() + headers + error;
        let size = ENTRY_OVERHEAD + stored + views.sum::<usize>();
        u32::try_from(size).unwrap_or(u32::MAX)
    }
}

/// Returns the size of a response's headers in bytes. The entry counts its body.
fn headers_size(reply: &ProviderReply) -> usize {
    // The 100 bytes are an estimate of a header's slot in the map.
    reply.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 100).sum()
}

/// An entry as moka stores it.
#[derive(Clone)]
struct StoredEntry {
    entry: Arc<Entry>,
    /// How long moka keeps the entry, computed when it was stored.
    retention: Duration,
    /// The sequence number of the call that returned the response. An older response never replaces a newer one.
    sequence: u64,
}

/// Marks the time before a provider call, so that [`Cache::store`] can refuse responses that are outdated on arrival.
#[derive(Debug, Clone, Copy)]
pub struct StoreTicket {
    epoch: PurgeEpoch,
    sequence: u64,
}

struct RetentionExpiry;

impl moka::Expiry<Key, StoredEntry> for RetentionExpiry {
    fn expire_after_create(&self, _: &Key, stored: &StoredEntry, _: Instant) -> Option<Duration> {
        Some(stored.retention)
    }

    fn expire_after_update(&self, _: &Key, stored: &StoredEntry, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(stored.retention)
    }
}

/// The response cache.
pub struct Cache {
    /// The hash seed is random for each process, because clients influence the keys.
    moka: moka::sync::Cache<Key, StoredEntry, ahash::RandomState>,
    /// A store holds the read lock and a purge takes the write lock, so that no store overlaps the start of a purge.
    purges: RwLock<PurgeLog>,
    next_sequence: AtomicU64,
    /// Writes that passed through Weir. They outdate responses requested before them.
    writes: WriteLog,
    /// Approximate bytes added since the last eviction.
    added_bytes: AtomicU64,
    max_bytes: u64,
    metrics: CacheMetrics,
}

impl Cache {
    /// Makes an empty cache of at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: u64, metrics: CacheMetrics) -> Self {
        let on_removal = metrics.clone();
        let moka = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|key: &Key, stored: &StoredEntry| stored.entry.size(key))
            .expire_after(RetentionExpiry)
            .eviction_listener(move |_, stored: StoredEntry, cause| {
                on_removal.removed(&stored.entry.subject.provider, eviction_label(cause));
            })
            .build_with_hasher(ahash::RandomState::new());
        Self {
            moka,
            purges: RwLock::default(),
            next_sequence: AtomicU64::new(1),
            writes: WriteLog::default(),
            added_bytes: AtomicU64::new(0),
            max_bytes,
            metrics,
        }
    }

    /// Returns the entry of a key, fresh or stale, unless a write has outdated it.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        let stored = self.moka.get(key)?;
        (!self.is_outdated(&stored.entry, stored.sequence)).then_some(stored.entry)
    }

    /// Checks whether a write came after the request with this sequence number and outdated its response.
    fn is_outdated(&self, entry: &Entry, sequence: u64) -> bool {
        self.writes.is_outdated(&entry.subject, matches!(entry.kind, EntryKind::NotFound(_)), sequence)
    }

    /// Returns the time of the last recorded write to this subject or its lists. A response requested earlier may be
    /// outdated.
    #[must_use]
    pub fn last_write_at(&self, subject: &Subject) -> Option<Time> {
        self.writes.last_write_at(subject)
    }

    /// Records a write. Stored responses in its scope, and responses requested before it, count as outdated.
    pub fn record_write(&self, scope: WriteScope, now: Time) {
        // As for a purge, no store may overlap: a store before this is outdated, and a store after it sees the write.
        let _no_concurrent_store = self.purges.write().unwrap_or_else(PoisonError::into_inner);
        let sequence = self.next_sequence.fetch_add(1, Ordering::AcqRel) + 1;
        self.writes.add(scope, sequence, now);
    }

    /// Returns a ticket for [`Cache::store`]. The caller must take it before it calls the provider.
    #[must_use]
    pub fn ticket(&self) -> StoreTicket {
        let epoch = self.purges.read().unwrap_or_else(PoisonError::into_inner).epoch();
        StoreTicket { epoch, sequence: self.next_sequence.fetch_add(1, Ordering::AcqRel) }
    }

    /// Removes the entry if it is older than a newer response that must not be stored.
    pub fn supersede(&self, key: Key, ticket: StoreTicket) {
        self.moka.entry(key).and_compute_with(|current| match current {
            Some(current) if current.value().sequence < ticket.sequence => Op::Remove,
            _ => Op::Nop,
        });
    }

    /// Stores an entry, unless it has no lifetime left or the stored entry is newer. Returns `false`, and stores
    /// nothing, if a purge or a write has outdated the entry since the ticket was taken.
    pub fn store(&self, key: Key, entry: Arc<Entry>, ticket: StoreTicket, now: Time) -> bool {
        let retention = entry.retention(now);
        let purges = self.purges.read().unwrap_or_else(PoisonError::into_inner);
        let outdated = purges.purged_since(ticket.epoch, &entry.subject) || self.is_outdated(&entry, ticket.sequence);
        if !retention.is_zero() && !outdated {
            // Every change of an entry uses `and_compute_with`: moka runs one at a time for each key.
            self.moka.entry(key).and_compute_with(|current| match current {
                Some(current) if current.value().sequence > ticket.sequence => Op::Nop,
                _ => self.put(entry, retention, ticket.sequence),
            });
        }
        drop(purges);
        self.evict();
        !outdated
    }

    fn put(&self, entry: Arc<Entry>, retention: Duration, sequence: u64) -> Op<StoredEntry> {
        self.metrics.added(&entry.subject.provider);
        // Most entries have one view, about as long as the body.
        let size = (ENTRY_OVERHEAD + 2 * entry.body.len()) as u64;
        self.added_bytes.fetch_add(size, Ordering::Relaxed);
        Op::Put(StoredEntry { entry, retention, sequence })
    }

    /// Evicts entries once enough bytes were added. By itself, moka evicts and frees only after a number of operations, so
    /// large entries would exceed the cache's size many times over.
    fn evict(&self) {
        if self.added_bytes.load(Ordering::Relaxed) > self.max_bytes / EVICTION_DIVISOR {
            self.added_bytes.store(0, Ordering::Relaxed);
            self.moka.run_pending_tasks();
            // Crossbeam frees a removed entry after its epoch has advanced twice.
            (0..3).for_each(|_| crossbeam_epoch::pin().flush());
        }
    }

    /// Purges the entries in a scope. Returns their number.
    pub fn purge(&self, scope: &Scope, mode: Mode, now: Time) -> u64 {
        self.purges.write().unwrap_or_else(PoisonError::into_inner).add(scope.clone());
        let mut purged = 0;
        for (key, stored) in &self.moka {
            if !scope.covers(&stored.entry.subject) || stored.entry.retention(now).is_zero() {
                continue;
            }
            self.moka.entry((*key).clone()).and_compute_with(|current| match (mode, current) {
                (_, None) => Op::Nop,
                (Mode::Hard, Some(_)) => {
                    purged += 1;
                    Op::Remove
                }
                (Mode::Soft, Some(current)) => {
                    purged += 1;
                    let stale = current.value().entry.stale_since(now);
                    let retention = stale.retention(now);
                    // An entry without a stale window can never be served again.
                    if retention.is_zero() {
                        Op::Remove
                    } else {
                        self.put(Arc::new(stale), retention, current.value().sequence)
                    }
                }
            });
        }
        self.evict();
        purged
    }

    /// Replaces `old` with `new`, unless the key's entry is no longer `old`.
    pub fn replace(&self, key: Key, old: &Arc<Entry>, new: Arc<Entry>, now: Time) {
        let retention = new.retention(now);
        self.moka.entry(key).and_compute_with(|current| match current {
            Some(current) if Arc::ptr_eq(&current.value().entry, old) && !retention.is_zero() => {
                self.put(new, retention, current.value().sequence)
            }
            _ => Op::Nop,
        });
        self.evict();
    }

    /// Weighs the entry of a key again, because one of its views got a compressed form.
    pub fn weigh_again(&self, key: Key, now: Time) {
        self.moka.entry(key).and_compute_with(|current| match current {
            Some(current) => {
                let StoredEntry { entry, sequence, .. } = current.into_value();
                let retention = entry.retention(now);
                if retention.is_zero() { Op::Remove } else { self.put(entry, retention, sequence) }
            }
            None => Op::Nop,
        });
        self.evict();
    }

    /// Runs moka's pending tasks, so that [`Cache::entries`] and [`Cache::bytes`] are exact.
    pub fn run_pending_tasks(&self) {
        self.moka.run_pending_tasks();
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.moka.entry_count()
    }

    /// Returns the size of all entries in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moka.weighted_size()
    }
}

/// Returns the label of an eviction's cause; `None` if an entry was replaced, which is no eviction.
fn eviction_label(cause: RemovalCause) -> Option<&'static str> {
    match cause {
        RemovalCause::Expired => Some("expired"),
        RemovalCause::Size => Some("size"),
        RemovalCause::Explicit => Some("explicit"),
        RemovalCause::Replaced => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metrics;

    const PARTS: KeyParts<'static> = KeyParts {
        provider: "p",
        base_url: "h",
        credential: "c",
        operation: "get_session",
        path_and_query: "/x?y=1",
        headers: "",
    };

    #[test]
    fn keys_differ_if_any_part_differs() {
        let others = [
            KeyParts { provider: "q", ..PARTS },
            KeyParts { base_url: "i", ..PARTS },
            KeyParts { credential: "d", ..PARTS },
            KeyParts { operation: "list_sessions", ..PARTS },
            KeyParts { path_and_query: "/x?y=2", ..PARTS },
            KeyParts { headers: "a:1\n", ..PARTS },
            KeyParts { path_and_query: "/x?y=14:a:1\n", ..PARTS },
        ];
        assert_eq!(Key::of(PARTS), Key::of(PARTS));
        for other in others {
            assert_ne!(Key::of(PARTS), Key::of(other));
        }
        // The same text split differently between two parts makes another key.
        let a = KeyParts { provider: "p", credential: "cd", ..PARTS };
        let b = KeyParts { provider: "pc", credential: "d", ..PARTS };
        assert_ne!(Key::of(a), Key::of(b));
    }

    fn entry(size: usize, seconds: u64) -> Arc<Entry> {
        let until = Time(0).plus(Duration::from_secs(seconds));
        let life = Lifetime::until(Time(0), until, TtlSource::Default);
        let subject = Subject { provider: "p".into(), credential: "c".into(), agent: None, session: None };
        Arc::new(Entry::new(subject, EntryKind::Session, vec![b'x'; size].into(), 0, life))
    }

    #[test]
    fn the_cache_stays_below_its_size_limit_and_counts_its_entries() {
        let metrics = Metrics::new().unwrap();
        let cache = Cache::new(100_000, metrics.cache.clone());
        for n in 0..1000 {
            let path = n.to_string();
            cache.store(Key::of(KeyParts { path_and_query: &path, ..PARTS }), entry(1000, 60), cache.ticket(), Time(0));
        }
        cache.run_pending_tasks();
        assert!(cache.bytes() <= 100_000 && cache.bytes() > 50_000, "{}", cache.bytes());
        let text = metrics.render();
        assert!(text.contains(&format!("weir_cache_entries{{provider=\"p\"}} {}", cache.entries())), "{text}");
    }

    #[test]
    fn entries_without_lifetime_are_not_stored_and_replace_only_replaces_the_expected_entry() {
        let metrics = Metrics::new().unwrap();
        let cache = Cache::new(100_000, metrics.cache.clone());
        let key = Key::of(PARTS);
        cache.store(key.clone(), entry(10, 1), cache.ticket(), Time(1000));
        assert!(cache.get(&key).is_none());
        let (first, second, third) = (entry(10, 60), entry(20, 60), entry(30, 60));
        cache.store(key.clone(), first.clone(), cache.ticket(), Time(0));
        cache.store(key.clone(), second.clone(), cache.ticket(), Time(0));
        cache.replace(key.clone(), &first, third.clone(), Time(0));
        assert!(Arc::ptr_eq(&cache.get(&key).unwrap(), &second));
        cache.replace(key.clone(), &second, third.clone(), Time(0));
        assert!(Arc::ptr_eq(&cache.get(&key).unwrap(), &third));
        cache.run_pending_tasks();
        assert!(metrics.render().contains("weir_cache_entries{provider=\"p\"} 1"));
    }

    #[test]
    fn a_response_requested_before_a_purge_is_not_stored() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let (key, scope) = (Key::of(PARTS), Scope::Provider("p".into()));
        let before_purge = cache.ticket();
        cache.store(key.clone(), entry(10, 60), before_purge, Time(0));
        assert_eq!(cache.purge(&scope, Mode::Hard, Time(0)), 1);
        assert!(cache.get(&key).is_none());
        cache.store(key.clone(), entry(10, 60), before_purge, Time(0));
        assert!(cache.get(&key).is_none());
        cache.store(key.clone(), entry(10, 60), cache.ticket(), Time(0));
        assert_eq!(cache.purge(&Scope::Provider("q".into()), Mode::Hard, Time(0)), 0);
        assert!(cache.get(&key).is_some());
    }

    #[test]
    fn an_entry_stays_outdated_after_its_write_is_evicted_from_the_log() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let (key, stored) = (Key::of(PARTS), entry(10, 60));
        cache.store(key.clone(), stored.clone(), cache.ticket(), Time(0));
        cache.record_write(WriteScope::Subject(stored.subject.clone()), Time(0));
        for n in 0..100_100 {
            let session = Some(n.to_string().into());
            cache.record_write(WriteScope::Subject(Subject { session, ..stored.subject.clone() }), Time(1));
        }
        assert!(cache.get(&key).is_none());
        cache.store(key.clone(), stored, cache.ticket(), Time(2));
        assert!(cache.get(&key).is_some(), "a response requested after the write is stored");
    }

    #[test]
    fn a_response_requested_earlier_does_not_replace_a_later_one() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let (key, early, late) = (Key::of(PARTS), cache.ticket(), cache.ticket());
        let (old, new) = (entry(10, 60), entry(20, 60));
        cache.store(key.clone(), new.clone(), late, Time(0));
        cache.store(key.clone(), old, early, Time(0));
        assert!(Arc::ptr_eq(&cache.get(&key).unwrap(), &new));
        cache.supersede(key.clone(), early);
        assert!(cache.get(&key).is_some());
        cache.supersede(key.clone(), cache.ticket());
        assert!(cache.get(&key).is_none());
    }

    #[test]
    fn a_soft_purge_makes_entries_stale_and_keeps_their_stale_windows() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let key = Key::of(PARTS);
        let mut fresh = Arc::into_inner(entry(10, 60)).unwrap();
        fresh.life = fresh.life.with_windows(Duration::ZERO, Duration::from_secs(600), Some(Time(400_000)));
        cache.store(key.clone(), Arc::new(fresh), cache.ticket(), Time(0));
        assert_eq!(cache.purge(&Scope::All, Mode::Soft, Time(10_000)), 1);
        let life = cache.get(&key).unwrap().life;
        assert_eq!((life.fresh_until, life.error_until), (Time(10_000), Time(400_000)), "the windows end at the limit");
        cache.store(key.clone(), entry(10, 60), cache.ticket(), Time(0));
        assert_eq!(cache.purge(&Scope::All, Mode::Soft, Time(10_000)), 1);
        assert!(cache.get(&key).is_none(), "an entry without a stale window is removed");
    }
}
