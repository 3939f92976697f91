//! What providers answered, kept in moka under a key that no two tenants share by accident.
//!
//! A room of its own because here alone a cache key is made, and here alone entries are weighed.
//! Whether an entry may be served is decided from its own times with the caller's `now`; moka's
//! expiry is housekeeping. It must not fetch, map or judge. Seam for a shared tier: `look` and `store`.

use crate::error::Problem;
use crate::exchange::{Effort, ProviderReply};
use crate::freshness::{Lifetime, TtlSource, UpstreamLimit};
use crate::metrics::CacheMetrics;
use crate::model::{Item, Show, Time, View};
use crate::purge::{Epoch, Log, Mode, Scope, Subject};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use written::Writes;

pub use written::Matter;

mod written;

/// What an entry costs beyond its key and bodies, in bytes: moka's node, the entry and its parts.
const OVERHEAD: usize = 600;

/// What part of its size the cache may be over it until entries are evicted.
const SLACK: u64 = 10;

/// How long an answer that must be confirmed each time is kept to be confirmed.
const ASK_WITH: Duration = Duration::from_secs(600);

/// Everything that decides whether two requests may share an answer.
#[derive(Debug, Clone, Copy)]
pub struct KeyParts<'k> {
    /// The provider's name.
    pub provider: &'k str,
    /// Where it is: another base URL, other answers.
    pub place: &'k str,
    /// The identity of the credential it is asked with.
    pub credential: &'k str,
    /// The operation's name.
    pub operation: &'k str,
    /// The request to the provider.
    pub path_and_query: &'k str,
}

/// A key. Made nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// The key of these parts. Each is preceded by its length, so that no two sets of parts, whatever is in
    /// them, make the same key.
    #[must_use]
    pub fn of(parts: KeyParts<'_>) -> Self {
        let KeyParts { provider, place, credential, operation, path_and_query } = parts;
        let parts = [provider, place, credential, operation, path_and_query];
        let mut key = String::with_capacity(parts.iter().map(|part| part.len() + 5).sum());
        for part in parts {
            key.extend([itoa::Buffer::new().format(part.len()), ":", part]);
        }
        Self(key)
    }
}

/// What an entry is an answer to.
#[derive(Debug, Clone)]
pub enum Kind {
    /// One session.
    Session,
    /// A page of a list.
    Page {
        /// The provider's token of the next page.
        next: Option<String>,
        /// How many there are in all, if known.
        total: Option<u64>,
    },
    /// There is no such thing.
    NotFound(Box<Problem>),
}

/// A provider's answer, with what was made of it. Never changed: a new view makes a new entry.
#[derive(Clone)]
pub struct Entry {
    /// What it is about.
    pub subject: Subject,
    /// What it answers.
    pub kind: Kind,
    /// The provider's body, from which any view can be made again.
    pub body: Bytes,
    /// Which rules made views and lifetime.
    pub rules: u64,
    /// How long it is good for.
    pub life: Lifetime,
    /// Stale since then, whatever its lifetime says: a soft purge.
    pub stale_from: Option<Time>,
    /// What the provider's headers allowed.
    pub upstream: UpstreamLimit,
    /// What the call took that brought it.
    pub effort: Effort,
    /// Conditions to ask with whether it still holds; none where the provider gave no validator.
    pub conditions: Vec<(HeaderName, HeaderValue)>,
    /// The provider wants to be asked each time (`no-cache`): kept to ask with conditions only.
    pub ask_always: bool,
    /// Views made so far.
    pub views: Vec<(Show, Arc<View>)>,
}

impl Entry {
    /// An answer of which nothing is known but this.
    #[must_use]
    pub fn new(subject: Subject, kind: Kind, body: Bytes, rules: u64, life: Lifetime) -> Self {
        Self {
            subject,
            kind,
            body,
            rules,
            life,
            stale_from: None,
            upstream: UpstreamLimit::default(),
            effort: Effort::default(),
            conditions: Vec::new(),
            ask_always: false,
            views: Vec::new(),
        }
    }

    /// The view that shows this, if it was made already.
    #[must_use]
    pub fn view(&self, show: Show) -> Option<&Arc<View>> {
        self.views.iter().find(|(made, _)| *made == show).map(|(_, view)| view)
    }

    /// The same answer, stale from `now` on; its windows begin now.
    #[must_use]
    pub fn stale_since(&self, now: Time) -> Self {
        Self { life: self.life.stale_since(now), stale_from: Some(now), ..self.clone() }
    }

    /// Marks it as one of which the provider wants to be asked each time: never fresh, never stale.
    pub fn always_ask(&mut self) {
        self.ask_always = true;
        let at = self.life.stored_at;
        (self.life.fresh_until, self.life.revalidate_until, self.life.error_until) = (at, at, at);
        self.life.source = TtlSource::Upstream;
    }

    /// How long it is of use: until its last moment, or as something to ask with.
    fn keep(&self, now: Time) -> Duration {
        let served = self.life.last().since(now);
        if self.ask_always && !self.conditions.is_empty() { served.max(ASK_WITH) } else { served }
    }

    fn weight(&self, key: &Key) -> u32 {
        // A native view may be the body itself.
        let own = |view: &View| if view.body.as_ptr() == self.body.as_ptr() { 0 } else { view.body.len() };
        let views = self.views.iter().map(|(_, view)| own(view) + view.items.len() * size_of::<Item>());
        let conditions = self.conditions.iter().map(|(_, value)| value.len());
        let told = match &self.kind {
            // What native clients are told with it.
            Kind::NotFound(problem) => problem.detail.len() + problem.reply.as_deref().map_or(0, reply_weight),
            _ => 0,
        };
        let own = key.0.len() + self.body.len() + conditions.sum::<usize>() + told;
        let weight = OVERHEAD + own + views.sum::<usize>();
        u32::try_from(weight).unwrap_or(u32::MAX)
    }
}

fn reply_weight(reply: &ProviderReply) -> usize {
    // Its body is the entry's. A header costs its bytes and a place in the map.
    reply.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 100).sum()
}

/// An entry and how long moka should keep it, reckoned when it was put in.
#[derive(Clone)]
struct Kept {
    entry: Arc<Entry>,
    keep: Duration,
    /// The number of its call: an answer asked for earlier does not take its place.
    asked: u64,
}

/// Taken before a provider is asked: what was purged, and what was asked for, since.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    epoch: Epoch,
    number: u64,
}

struct Housekeeping;

impl moka::Expiry<Key, Kept> for Housekeeping {
    fn expire_after_create(&self, _: &Key, kept: &Kept, _: Instant) -> Option<Duration> {
        Some(kept.keep)
    }

    fn expire_after_update(&self, _: &Key, kept: &Kept, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(kept.keep)
    }
}

/// The cache.
pub struct Cache {
    /// Hashed with a seed of this process: keys hold what clients send.
    moka: moka::sync::Cache<Key, Kept, ahash::RandomState>,
    /// Read while storing, written when a purge begins: what is stored was not purged meanwhile.
    purges: RwLock<Log>,
    tickets: AtomicU64,
    /// What was written through Weir: answers asked for before are not it.
    writes: Writes,
    /// Weighed bytes, roughly, put in since entries were last evicted.
    put_since: AtomicU64,
    max_bytes: u64,
    metrics: CacheMetrics,
}

impl Cache {
    /// An empty cache of at most `max_bytes`, weighed.
    #[must_use]
    pub fn new(max_bytes: u64, metrics: CacheMetrics) -> Self {
        let on_removal = metrics.clone();
        let moka = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|key: &Key, kept: &Kept| kept.entry.weight(key))
            .expire_after(Housekeeping)
            .eviction_listener(move |_, kept: Kept, cause| {
                on_removal.removed(&kept.entry.subject.provider, cause_label(cause));
            })
            .build_with_hasher(ahash::RandomState::new());
        Self {
            moka,
            purges: RwLock::default(),
            tickets: AtomicU64::new(1),
            writes: Writes::default(),
            put_since: AtomicU64::new(0),
            max_bytes,
            metrics,
        }
    }

    /// The entry under a key, fresh or not.
    #[must_use]
    pub fn look(&self, key: &Key) -> Option<Arc<Entry>> {
        let kept = self.moka.get(key)?;
        (!self.outdated(&kept.entry, kept.asked)).then_some(kept.entry)
    }

    /// Whether something was written since the ticket of this number was taken that makes an entry untrue.
    fn outdated(&self, entry: &Entry, number: u64) -> bool {
        self.writes.outdate(&entry.subject, matches!(entry.kind, Kind::NotFound(_)), number)
    }

    /// When something was last written to this subject or its lists, if that was lately: an answer that was asked for
    /// earlier may be outdated, whatever it turns out to be.
    #[must_use]
    pub fn written_at(&self, subject: &Subject) -> Option<Time> {
        self.writes.at(subject)
    }

    /// Something was written: what is stored of it, or is being asked for, is no longer true. It goes when its time
    /// is over, or when a new answer takes its place.
    pub fn write(&self, matter: Matter, now: Time) {
        // As with a purge: what is stored from here on was asked for since, or is not stored.
        let _nothing_is_stored_now = self.purges.write().unwrap_or_else(PoisonError::into_inner);
        let number = self.tickets.fetch_add(1, Ordering::AcqRel) + 1;
        self.writes.add(matter, number, now);
    }

    /// The ticket to take before a provider is asked.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        let epoch = self.purges.read().unwrap_or_else(PoisonError::into_inner).epoch();
        Ticket { epoch, number: self.tickets.fetch_add(1, Ordering::AcqRel) }
    }

    /// Drops what a later answer, that itself may not be kept, has made untrue.
    pub fn supersede(&self, key: Key, ticket: Ticket) {
        self.moka.entry(key).and_compute_with(|current| match current {
            Some(current) if current.value().asked < ticket.number => Op::Remove,
            _ => Op::Nop,
        });
    }

    /// Keeps an entry until its last moment. One that has none left, that was purged since its ticket was
    /// taken, or that was asked for before the one that is there, is not kept. `false` where it was purged, or something
    /// was written that makes it untrue.
    pub fn store(&self, key: Key, entry: Arc<Entry>, ticket: Ticket, now: Time) -> bool {
        let keep = entry.keep(now);
        let purges = self.purges.read().unwrap_or_else(PoisonError::into_inner);
        let untrue = purges.purged_since(ticket.epoch, &entry.subject) || self.outdated(&entry, ticket.number);
        if !keep.is_zero() && !untrue {
            // All that changes an entry goes through `compute`: moka does one at a time for a key.
            self.moka.entry(key).and_compute_with(|current| match current {
                Some(current) if current.value().asked > ticket.number => Op::Nop,
                _ => self.put(entry, keep, ticket.number),
            });
        }
        drop(purges);
        self.evict();
        !untrue
    }

    fn put(&self, entry: Arc<Entry>, keep: Duration, asked: u64) -> Op<Kept> {
        self.metrics.added(&entry.subject.provider);
        // As a rule there is one view, about as long as the body.
        let weight = (OVERHEAD + 2 * entry.body.len()) as u64;
        self.put_since.fetch_add(weight, Ordering::Relaxed);
        Op::Put(Kept { entry, keep, asked })
    }

    /// moka evicts when it finds the time, by the number of entries put in, and its map frees what was taken out when
    /// it finds the time, by the number taken out: with large ones both would be many times what may be held. So it
    /// is told to, once much has come.
    fn evict(&self) {
        if self.put_since.load(Ordering::Relaxed) > self.max_bytes / SLACK {
            self.put_since.store(0, Ordering::Relaxed);
            self.moka.run_pending_tasks();
            // What a thread took out is free once the epoch has moved on twice.
            (0..3).for_each(|_| crossbeam_epoch::pin().flush());
        }
    }

    /// Purges what the scope touches; how many entries that were.
    pub fn purge(&self, scope: &Scope, mode: Mode, now: Time) -> u64 {
        self.purges.write().unwrap_or_else(PoisonError::into_inner).add(scope.clone());
        let mut touched = 0;
        for (key, kept) in &self.moka {
            if !scope.touches(&kept.entry.subject) || kept.entry.keep(now).is_zero() {
                continue;
            }
            self.moka.entry((*key).clone()).and_compute_with(|current| match (mode, current) {
                (_, None) => Op::Nop,
                (Mode::Hard, Some(_)) => {
                    touched += 1;
                    Op::Remove
                }
                (Mode::Soft, Some(current)) => {
                    touched += 1;
                    let stale = current.value().entry.stale_since(now);
                    let keep = stale.keep(now);
                    // Without a window to be served in, stale is gone.
                    if keep.is_zero() { Op::Remove } else { self.put(Arc::new(stale), keep, current.value().asked) }
                }
            });
        }
        self.evict();
        touched
    }

    /// Puts `new` in the place of `old`, unless another has taken it meanwhile.
    pub fn replace(&self, key: Key, old: &Arc<Entry>, new: Arc<Entry>, now: Time) {
        let keep = new.keep(now);
        self.moka.entry(key).and_compute_with(|current| match current {
            Some(current) if Arc::ptr_eq(&current.value().entry, old) && !keep.is_zero() => {
                self.put(new, keep, current.value().asked)
            }
            _ => Op::Nop,
        });
        self.evict();
    }

    /// Lets moka do what it put off, so that counts are true.
    pub fn settle(&self) {
        self.moka.run_pending_tasks();
    }

    /// Entries held.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.moka.entry_count()
    }

    /// Bytes held, weighed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moka.weighted_size()
    }
}

/// `None` for what is not an eviction.
fn cause_label(cause: RemovalCause) -> Option<&'static str> {
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
    use crate::metrics::Metrics;

    const PARTS: KeyParts<'static> =
        KeyParts { provider: "p", place: "h", credential: "c", operation: "get_session", path_and_query: "/x?y=1" };

    #[test]
    fn every_part_of_the_key_tells_entries_apart() {
        let others = [
            KeyParts { provider: "q", ..PARTS },
            KeyParts { place: "i", ..PARTS },
            KeyParts { credential: "d", ..PARTS },
            KeyParts { operation: "list_sessions", ..PARTS },
            KeyParts { path_and_query: "/x?y=2", ..PARTS },
        ];
        assert_eq!(Key::of(PARTS), Key::of(PARTS));
        for other in others {
            assert_ne!(Key::of(PARTS), Key::of(other));
        }
        // Parts do not run together.
        let a = KeyParts { provider: "p", credential: "cd", ..PARTS };
        let b = KeyParts { provider: "pc", credential: "d", ..PARTS };
        assert_ne!(Key::of(a), Key::of(b));
    }

    fn entry(size: usize, seconds: u64) -> Arc<Entry> {
        let until = Time(0).plus(Duration::from_secs(seconds));
        let life = Lifetime::until(Time(0), until, TtlSource::Default);
        let subject = Subject { provider: "p".into(), credential: "c".into(), agent: None, session: None };
        Arc::new(Entry::new(subject, Kind::Session, vec![b'x'; size].into(), 0, life))
    }

    #[test]
    fn it_is_bounded_in_bytes_and_counts_what_it_holds() {
        let metrics = Metrics::new().unwrap();
        let cache = Cache::new(100_000, metrics.cache.clone());
        for n in 0..1000 {
            let path = n.to_string();
            cache.store(Key::of(KeyParts { path_and_query: &path, ..PARTS }), entry(1000, 60), cache.ticket(), Time(0));
        }
        cache.settle();
        assert!(cache.bytes() <= 100_000 && cache.bytes() > 50_000, "{}", cache.bytes());
        let text = metrics.render();
        assert!(text.contains(&format!("weir_cache_entries{{provider=\"p\"}} {}", cache.entries())), "{text}");
    }

    #[test]
    fn what_has_no_time_left_is_not_kept_and_replacing_minds_others() {
        let metrics = Metrics::new().unwrap();
        let cache = Cache::new(100_000, metrics.cache.clone());
        let key = Key::of(PARTS);
        cache.store(key.clone(), entry(10, 1), cache.ticket(), Time(1000));
        assert!(cache.look(&key).is_none());
        let (first, second, third) = (entry(10, 60), entry(20, 60), entry(30, 60));
        cache.store(key.clone(), first.clone(), cache.ticket(), Time(0));
        cache.store(key.clone(), second.clone(), cache.ticket(), Time(0));
        cache.replace(key.clone(), &first, third.clone(), Time(0));
        assert!(Arc::ptr_eq(&cache.look(&key).unwrap(), &second));
        cache.replace(key.clone(), &second, third.clone(), Time(0));
        assert!(Arc::ptr_eq(&cache.look(&key).unwrap(), &third));
        cache.settle();
        assert!(metrics.render().contains("weir_cache_entries{provider=\"p\"} 1"));
    }

    #[test]
    fn what_was_asked_for_before_a_purge_does_not_come_back() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let (key, scope) = (Key::of(PARTS), Scope::Provider("p".into()));
        let asked = cache.ticket();
        cache.store(key.clone(), entry(10, 60), asked, Time(0));
        assert_eq!(cache.purge(&scope, Mode::Hard, Time(0)), 1);
        assert!(cache.look(&key).is_none());
        cache.store(key.clone(), entry(10, 60), asked, Time(0));
        assert!(cache.look(&key).is_none());
        cache.store(key.clone(), entry(10, 60), cache.ticket(), Time(0));
        assert_eq!(cache.purge(&Scope::Provider("q".into()), Mode::Hard, Time(0)), 0);
        assert!(cache.look(&key).is_some());
    }

    #[test]
    fn what_was_written_stays_written_however_much_is_written_after_it() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let (key, stored) = (Key::of(PARTS), entry(10, 60));
        cache.store(key.clone(), stored.clone(), cache.ticket(), Time(0));
        cache.write(Matter::One(stored.subject.clone()), Time(0));
        for n in 0..100_100 {
            let session = Some(n.to_string().into());
            cache.write(Matter::One(Subject { session, ..stored.subject.clone() }), Time(1));
        }
        assert!(cache.look(&key).is_none());
        cache.store(key.clone(), stored, cache.ticket(), Time(2));
        assert!(cache.look(&key).is_some(), "what was asked for since is true");
    }

    #[test]
    fn an_answer_asked_for_earlier_does_not_replace_a_later_one() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let (key, early, late) = (Key::of(PARTS), cache.ticket(), cache.ticket());
        let (old, new) = (entry(10, 60), entry(20, 60));
        cache.store(key.clone(), new.clone(), late, Time(0));
        cache.store(key.clone(), old, early, Time(0));
        assert!(Arc::ptr_eq(&cache.look(&key).unwrap(), &new));
        cache.supersede(key.clone(), early);
        assert!(cache.look(&key).is_some());
        cache.supersede(key.clone(), cache.ticket());
        assert!(cache.look(&key).is_none());
    }

    #[test]
    fn a_soft_purge_makes_stale_and_keeps_the_windows() {
        let cache = Cache::new(100_000, Metrics::new().unwrap().cache);
        let key = Key::of(PARTS);
        let mut fresh = Arc::into_inner(entry(10, 60)).unwrap();
        fresh.life = fresh.life.with_windows(Duration::ZERO, Duration::from_secs(600), Some(Time(400_000)));
        cache.store(key.clone(), Arc::new(fresh), cache.ticket(), Time(0));
        assert_eq!(cache.purge(&Scope::All, Mode::Soft, Time(10_000)), 1);
        let life = cache.look(&key).unwrap().life;
        assert_eq!((life.fresh_until, life.error_until), (Time(10_000), Time(400_000)), "not past what it must not");
        cache.store(key.clone(), entry(10, 60), cache.ticket(), Time(0));
        assert_eq!(cache.purge(&Scope::All, Mode::Soft, Time(10_000)), 1);
        assert!(cache.look(&key).is_none(), "it had no window");
    }
}
