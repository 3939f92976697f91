//! Streams a session as it changes, as server-sent events.
//!
//! A watch fetches the session again and again, until the session ends, the client leaves, or the client may no longer
//! see it. All watches of a session share one topic, so that the provider gets at most one request per `freshness.watch`.

use crate::base::ids::ClientId;
use crate::base::model::{Show, Status, Time};
use crate::base::problem::{Outcome, Problem};
use crate::base::request_reply::Request;
use crate::engine::cache::{Entry, EntryKind, Key};
use crate::engine::request_record::RequestRecord;
use crate::fetch::provider_query::{ProviderQuery, SharedState, session_query};
use crate::fetch::{self, CacheLookup, Served};
use crate::pipeline::representation::SessionBody;
use crate::pipeline::{obtain, problems, representation};
use crate::rules::cache_control::Directives;
use crate::rules::parameters::Representation;
use crate::rules::route::{Route, RouteMatch};
use crate::runtime::Runtime;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderValue;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often an unchanged stream sends a comment, so that closed connections are noticed and proxies do not time out.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
const HEARTBEAT: &[u8] = b":\n\n";
/// How often a stream checks that its client may still watch the session, also while it waits for the provider.
const RIGHTS_INTERVAL: Duration = Duration::from_secs(2);

/// The topics of all watched sessions.
#[derive(Default)]
pub(crate) struct WatchTopics {
    topics: Mutex<HashMap<Key, Weak<Topic>>>,
    /// The open watches of each client that has any, by the client's id.
    watches: Mutex<HashMap<Arc<str>, i64>>,
}

/// The last fetch of a watched session, shared by its watches.
struct Topic {
    key: Key,
    topics: Arc<WatchTopics>,
    last: tokio::sync::Mutex<Option<SessionFetch>>,
}

/// A fetch of a session.
#[derive(Clone)]
struct SessionFetch {
    /// When the provider responded, or when the fetch failed.
    fetched_at: Time,
    result: Outcome<Arc<Entry>>,
}

impl WatchTopics {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<Topic>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_watches(&self) -> MutexGuard<'_, HashMap<Arc<str>, i64>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the topic of a session; makes one if nobody watches it.
    fn topic(self: &Arc<Self>, key: &Key) -> Arc<Topic> {
        let mut topics = self.lock();
        if let Some(topic) = topics.get(key).and_then(Weak::upgrade) {
            return topic;
        }
        let topic = Arc::new(Topic { key: key.clone(), topics: self.clone(), last: tokio::sync::Mutex::default() });
        topics.insert(key.clone(), Arc::downgrade(&topic));
        topic
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let mut topics = self.topics.lock();
        // A new topic may have replaced this one.
        if topics.get(&self.key).is_some_and(|topic| topic.strong_count() == 0) {
            topics.remove(&self.key);
        }
    }
}

/// Counts a watch until it is dropped.
struct WatchPermit {
    shared: Arc<SharedState>,
    topics: Arc<WatchTopics>,
    client: Arc<str>,
}

impl WatchPermit {
    /// Counts a watch, unless `max_watchers` watches are open, or the client has its share of them. If there are several
    /// clients, the share is half of the limit, rounded up, so that one client leaves the rest to the others.
    fn acquire(shared: &Arc<SharedState>, topics: &Arc<WatchTopics>, config: &Snapshot, id: ClientId) -> Outcome<Self> {
        let limit = i64::from(config.weir.overload.max_watchers);
        let share = if config.clients.iter().nth(1).is_some() { (limit + 1) / 2 } else { limit };
        let client = config.clients[id].id.clone();
        shared.metrics.http.watchers.inc();
        let clients_watches = {
            let mut watches = topics.lock_watches();
            let count = watches.entry(client.clone()).or_default();
            *count += 1;
            *count
        };
        let permit = Self { shared: shared.clone(), topics: topics.clone(), client };
        if shared.metrics.http.watchers.get() > limit {
            return Err(problems::too_many_watchers(limit));
        }
        if clients_watches > share {
            return Err(problems::watcher_share(share));
        }
        Ok(permit)
    }
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.shared.metrics.http.watchers.dec();
        let mut watches = self.topics.lock_watches();
        if let Some(count) = watches.get_mut(&self.client) {
            *count -= 1;
            if *count <= 0 {
                watches.remove(&self.client);
            }
        }
    }
}

/// A session that one client watches.
pub struct WatchStream {
    runtime: Arc<Runtime>,
    shared: Arc<SharedState>,
    topics: Arc<WatchTopics>,
    request: Request,
    client: ClientId,
    show: Show,
    shape: Representation,
    query: ProviderQuery,
    topic: Arc<Topic>,
    /// The entity tag of the last state that the client got.
    last_sent: Option<HeaderValue>,
    /// Events to send.
    ready: Option<Bytes>,
    /// When to fetch the session again.
    next_fetch: Instant,
    next_heartbeat: Instant,
    /// When to check the client's rights again.
    next_rights_check: Instant,
    /// The client got an event for the provider's current failure.
    failing: bool,
    ended: bool,
    _permit: WatchPermit,
}

/// The result of starting a watch.
pub(crate) enum WatchStart {
    /// A stream of events.
    Stream(Box<WatchStream>),
    /// The session has ended, and the client has its last state.
    Ended,
}

/// A request to watch a session.
pub(crate) struct WatchRequest<'w> {
    /// The configuration in force, and its reloads.
    pub runtime: &'w Arc<Runtime>,
    /// The state that all requests share.
    pub shared: &'w Arc<SharedState>,
    /// The topics of all watched sessions.
    pub topics: &'w Arc<WatchTopics>,
    /// The configuration at the start of the request.
    pub snapshot: &'w Arc<Snapshot>,
    /// The client.
    pub client: ClientId,
    /// The request.
    pub request: &'w Request,
    /// Which fields of the session the events contain.
    pub shape: Representation,
    /// When the request arrived.
    pub now: Time,
}

impl WatchRequest<'_> {
    /// Obtains the session and starts a watch.
    ///
    /// # Errors
    /// As for one session; 503 over `overload.max_watchers` or the client's share of it.
    pub(crate) async fn start(
        self,
        query: ProviderQuery,
        lookup: CacheLookup,
        record: &mut RequestRecord,
    ) -> Outcome<WatchStart> {
        let permit = WatchPermit::acquire(self.shared, self.topics, self.snapshot, self.client)?;
        let Served { entry, status } = obtain::obtain(self.shared, &query, lookup, None, self.now, record).await?;
        record.cache = Some(status);
        obtain::check_exists(&entry)?;
        let topic = self.topics.topic(&query.key);
        let now = Instant::now();
        let last_event_id = self.request.headers.get("last-event-id");
        let last_event_id = last_event_id.and_then(|id| HeaderValue::from_bytes(id).ok());
        let mut stream = WatchStream {
            runtime: self.runtime.clone(),
            shared: self.shared.clone(),
            topics: self.topics.clone(),
            request: self.request.clone(),
            client: self.client,
            show: representation::show(self.snapshot, self.client, &self.shape),
            shape: self.shape,
            query,
            topic,
            last_sent: last_event_id.clone(),
            ready: None,
            next_fetch: now,
            next_heartbeat: now + HEARTBEAT_INTERVAL,
            next_rights_check: now + RIGHTS_INTERVAL,
            failing: false,
            ended: false,
            _permit: permit,
        };
        stream.add_session_event(&entry)?;
        if stream.ended && stream.last_sent == last_event_id {
            return Ok(WatchStart::Ended);
        }
        stream.schedule_fetch(entry.life.stored_at);
        Ok(WatchStart::Stream(Box::new(stream)))
    }
}

impl WatchStream {
    /// Returns the events as parts of a body. The stream ends with the watch.
    #[must_use]
    pub fn parts(self: Box<Self>) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
        Box::pin(stream::unfold(self, |mut watch| async move { Some((watch.next().await?, watch)) }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(ready) = self.ready.take() {
                self.next_heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
                return Some(ready);
            }
            if self.ended {
                return None;
            }
            let (stopping, heartbeat) = (self.shared.stopping.clone(), self.next_heartbeat);
            tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                // Before all else, so that a client without rights gets no further event.
                () = tokio::time::sleep_until(self.next_rights_check) => {
                    self.check_rights();
                }
                () = tokio::time::sleep_until(heartbeat) => self.ready = Some(Bytes::from_static(HEARTBEAT)),
                () = tokio::time::sleep_until(self.next_fetch) => {
                    if self.check_rights() {
                        self.update().await;
                    }
                }
            }
        }
    }

    /// Checks the client's rights. If they are gone, adds the last event and returns false.
    fn check_rights(&mut self) -> bool {
        self.next_rights_check = Instant::now() + RIGHTS_INTERVAL;
        let Err(problem) = self.authorize() else { return true };
        self.ended = true;
        self.add_problem_event(&problem);
        false
    }

    /// Fetches the session, unless another watch has just fetched it, and adds an event if something changed. Returns
    /// early for a heartbeat, at shutdown, and if the client loses its rights.
    async fn update(&mut self) {
        let stopping = self.shared.stopping.clone();
        let fetched = {
            let (shared, query, topic) = (self.shared.clone(), self.query.clone(), self.topic.clone());
            let mut fetch = std::pin::pin!(fetch(&shared, &query, &topic));
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep_until(self.next_rights_check) => {
                        // After a change of the client's credential or of the provider's address, this fetch is not for it.
                        if !self.check_rights() || self.query.key != query.key {
                            return;
                        }
                    }
                    fetched = &mut fetch => break fetched,
                    // This cancels a slow fetch. Another watch of the topic can then fetch.
                    () = tokio::time::sleep_until(self.next_heartbeat) => return,
                }
            }
        };
        let result = match &fetched.result {
            Ok(entry) => self.add_session_event(entry),
            Err(problem) => Err(problem.clone()),
        };
        self.schedule_fetch(fetched.fetched_at);
        match result {
            Ok(()) => self.failing = false,
            Err(problem) if problem.code.is_not_found() => {
                self.ended = true;
                self.add_problem_event(&problem);
            }
            Err(problem) => {
                if let Some(seconds) = problem.retry_after {
                    self.next_fetch = self.next_fetch.max(Instant::now() + Duration::from_secs(seconds));
                }
                if !std::mem::replace(&mut self.failing, true) {
                    self.add_problem_event(&problem);
                }
            }
        }
    }

    /// Checks under the configuration in force that the client may still watch the session. A reload can remove the key,
    /// the client or its right to the provider, and a key can expire.
    fn authorize(&mut self) -> Outcome<()> {
        let snapshot = self.runtime.snapshot();
        self.client = snapshot.keys.identify(&self.request, self.shared.now())?;
        let routed = snapshot.routes.route(&self.request);
        let Ok(RouteMatch { route: Route::Watch { name, .. }, .. }) = routed else {
            return Err(routed.err().map_or_else(problems::not_watchable, |(_, error)| error.into()));
        };
        self.query = session_query(&snapshot, self.client, &name, &self.request)?;
        self.show.secrets = snapshot.clients[self.client].reveal_secrets;
        if self.query.key != self.topic.key {
            self.topic = self.topics.topic(&self.query.key);
        }
        Ok(())
    }

    /// Schedules the next fetch for `freshness.watch` after this time.
    fn schedule_fetch(&mut self, last: Time) {
        let interval = self.query.provider().freshness.watch;
        let until_next = last.plus(interval).since(self.shared.now());
        // One millisecond more, because `fetch` compares whole milliseconds.
        self.next_fetch = Instant::now() + until_next.min(interval) + Duration::from_millis(1);
    }

    /// Adds the event `session`, unless the client has this state already.
    fn add_session_event(&mut self, entry: &Arc<Entry>) -> Outcome<()> {
        let view = fetch::view(&self.shared, &self.query, entry, self.show, self.shared.now())?;
        let status = view.items.first().map(|item| item.status);
        self.ended = matches!(status, Some(Status::Ended | Status::Expired));
        let SessionBody { body, etag } = representation::session_body(&view, &self.shape)?;
        if self.last_sent.as_ref() != Some(&etag) {
            self.add_event("session", Some(&etag), &body);
            self.last_sent = Some(etag);
        }
        Ok(())
    }

    /// Adds the event `explain` before all other events.
    pub fn prepend_explanation(&mut self, explanation: &[u8]) {
        let ready = self.ready.take();
        self.add_event("explain", None, explanation);
        let both = [self.ready.take(), ready].into_iter().flatten().collect::<Vec<_>>();
        self.ready = Some(both.concat().into());
    }

    fn add_problem_event(&mut self, problem: &Problem) {
        self.add_event("problem", None, problem.to_value(None).to_string().as_bytes());
    }

    /// Adds an event to `ready` (WHATWG HTML, section 9.2.6). `data` must have no line breaks; Weir's JSON has none.
    fn add_event(&mut self, name: &str, id: Option<&HeaderValue>, data: &[u8]) {
        self.shared.metrics.http.watch_events.with_label_values(&[&*self.query.provider().name, name]).inc();
        let mut event = self.ready.take().map(Vec::from).unwrap_or_default();
        if let Some(id) = id {
            event.extend_from_slice(b"id: ");
            event.extend_from_slice(id.as_bytes());
            event.push(b'\n');
        }
        event.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
        event.extend_from_slice(data);
        event.extend_from_slice(b"\n\n");
        self.ready = Some(event.into());
    }
}

/// Returns the topic's last fetch if it is recent, otherwise fetches the session.
async fn fetch(shared: &Arc<SharedState>, query: &ProviderQuery, topic: &Topic) -> SessionFetch {
    let interval = query.provider().freshness.watch;
    let mut last = topic.last.lock().await;
    let now = shared.now();
    if let Some(last) = last.as_ref().filter(|last| now.since(last.fetched_at) < interval) {
        return last.clone();
    }
    // Other requests may have refreshed the cache entry.
    let directives = Directives { max_age: Some(interval), ..Directives::default() };
    let lookup = fetch::look_up(shared, query, directives, now);
    let mut record = RequestRecord::new(String::new(), "");
    let obtained = obtain::obtain(shared, query, lookup, None, now, &mut record).await;
    let fetched = match obtained {
        Ok(served) => match &served.entry.kind {
            EntryKind::NotFound(error) => SessionFetch { fetched_at: shared.now(), result: Err((&**error).into()) },
            _ => SessionFetch { fetched_at: served.entry.life.stored_at, result: Ok(served.entry) },
        },
        Err(problem) => SessionFetch { fetched_at: shared.now(), result: Err(problem) },
    };
    *last = Some(fetched.clone());
    fetched
}
