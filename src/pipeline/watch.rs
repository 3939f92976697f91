//! Streams a session as it changes, as server-sent events.
//!
//! A watch fetches the session again and again, until the session ends, the client leaves, or the client may no longer
//! see it. All watches of a session share one topic, so that the provider gets at most one request per `freshness.watch`.

use crate::base::ids::ClientId;
use crate::base::memory_budget::Reservation;
use crate::base::model::{Show, Status, Time};
use crate::base::problem::{Code, Outcome, Problem};
use crate::base::request_reply::{Body, Request};
use crate::engine::cache::{Entry, Key};
use crate::engine::request_record::RequestRecord;
use crate::fetch::provider_query::{ProviderQuery, SharedState, session_query};
use crate::fetch::{self, CacheLookup, Served};
use crate::pipeline::held::ServedEntry;
use crate::pipeline::representation::SessionBody;
use crate::pipeline::{held, obtain, problems, representation};
use crate::rules::accept_encoding;
use crate::rules::cache_control::Directives;
use crate::rules::parameters::Representation;
use crate::rules::route::{Route, RouteMatch};
use crate::rules::watch_token::Authenticated;
use crate::runtime::Runtime;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderValue;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often an unchanged stream sends a comment, so that closed connections are noticed and proxies do not time out.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
const HEARTBEAT: &[u8] = b":\n\n";
/// The memory of a stream without its events: its request, query and timers.
const WATCH_BYTES: usize = 32 << 10;
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
    /// The client whose watch fetched the session.
    client: Arc<str>,
    /// The memory of the entry.
    _memory: Option<Arc<Reservation>>,
}

impl SessionFetch {
    /// Returns whether a watch of this client can use the fetch. A refusal for lack of memory may hold for one client only.
    fn is_for(&self, client: &Arc<str>) -> bool {
        self.client == *client || !self.result.as_ref().is_err_and(|problem| problem.code == Code::Overloaded)
    }
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
    /// Counts a watch, unless `max_watchers` watches are open, or the client has its share of them.
    fn acquire(shared: &Arc<SharedState>, topics: &Arc<WatchTopics>, config: &Snapshot, id: ClientId) -> Outcome<Self> {
        let limit = config.weir.overload.max_watchers;
        let share = i64::try_from(config.client_share(limit.into())).unwrap_or(i64::MAX);
        let limit = i64::from(limit);
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
    authenticated: Authenticated,
    show: Show,
    shape: Representation,
    query: ProviderQuery,
    topic: Arc<Topic>,
    /// The entity tag of the last state that the client got.
    last_sent: Option<HeaderValue>,
    /// Events to send.
    ready: VecDeque<Body>,
    /// When to fetch the session again.
    next_fetch: Instant,
    next_heartbeat: Instant,
    /// When to check the client's rights again.
    next_rights_check: Instant,
    /// The client got an event for the provider's current failure.
    failing: bool,
    ended: bool,
    _permit: WatchPermit,
    /// The memory of the stream itself.
    _memory: Reservation,
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
    /// The client, and its key or token.
    pub authenticated: Authenticated,
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
        let permit = WatchPermit::acquire(self.shared, self.topics, self.snapshot, self.authenticated.client)?;
        let memory = query.memory_share(self.shared).reserve(WATCH_BYTES)?;
        let served = obtain::obtain(self.shared, &query, lookup, None, self.now, record).await?;
        record.cache = Some(served.status.clone());
        obtain::check_exists(&served.entry)?;
        let topic = self.topics.topic(&query.key);
        let now = Instant::now();
        let last_event_id = self.request.headers.get("last-event-id");
        let last_event_id = last_event_id.and_then(|id| HeaderValue::from_bytes(id).ok());
        let mut stream = WatchStream {
            runtime: self.runtime.clone(),
            shared: self.shared.clone(),
            topics: self.topics.clone(),
            request: self.request.clone(),
            show: show(self.snapshot, &self.authenticated, &self.shape),
            authenticated: self.authenticated,
            shape: self.shape,
            query,
            topic,
            last_sent: last_event_id.clone(),
            ready: VecDeque::new(),
            next_fetch: now,
            next_heartbeat: now + HEARTBEAT_INTERVAL,
            next_rights_check: now + RIGHTS_INTERVAL,
            failing: false,
            ended: false,
            _permit: permit,
            _memory: memory,
        };
        stream.add_session_event(&served.entry)?;
        if stream.ended && stream.last_sent == last_event_id {
            return Ok(WatchStart::Ended);
        }
        stream.schedule_fetch(served.entry.life.stored_at);
        Ok(WatchStart::Stream(Box::new(stream)))
    }
}

impl WatchStream {
    /// Returns the events. The stream ends with the watch.
    #[must_use]
    pub fn events(self: Box<Self>) -> Pin<Box<dyn Stream<Item = Body> + Send>> {
        Box::pin(stream::unfold(self, |mut watch| async move { Some((watch.next().await?, watch)) }))
    }

    async fn next(&mut self) -> Option<Body> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
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
                () = tokio::time::sleep_until(heartbeat) => {
                    self.ready.push_back(Bytes::from_static(HEARTBEAT).into());
                }
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
    /// the client or its right to the provider, and a key can expire. A token only begins a watch: its own expiry does not
    /// end it.
    fn authorize(&mut self) -> Outcome<()> {
        let snapshot = self.runtime.snapshot();
        self.authenticated.client = snapshot.keys.client_of(&self.authenticated.key, self.shared.now())?;
        let routed = snapshot.routes.route(&self.request);
        let Ok(RouteMatch { route: Route::Watch { name, .. }, .. }) = routed else {
            return Err(routed.err().map_or_else(problems::not_watchable, |(_, error)| error.into()));
        };
        self.query = session_query(&snapshot, self.authenticated.client, &name, &self.request)?;
        self.show = show(&snapshot, &self.authenticated, &self.shape);
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

    /// Adds the event `session`, unless the client has this state already. The memory of the event is reserved until the
    /// client has read it.
    fn add_session_event(&mut self, entry: &Arc<Entry>) -> Outcome<()> {
        let served = ServedEntry { entry, memory: None };
        let session = representation::session_body(&self.shared, &self.query, served, self.show, &self.shape)?;
        let SessionBody { body, etag, status, .. } = session;
        // A client may have the entity tag from a response to GET, which may have been compressed.
        if !self.last_sent.as_ref().is_some_and(|sent| accept_encoding::is_tag_of(sent, &etag)) {
            let http2 = self.request.version == http::Version::HTTP_2;
            let body = held::reserve_response(body, http2, || self.query.memory_share(&self.shared))?;
            let event = self.event("session", Some(&etag), body);
            self.ready.push_back(event);
            self.last_sent = Some(etag);
        }
        self.ended = matches!(status, Some(Status::Ended | Status::Expired));
        Ok(())
    }

    /// Adds the event `explain` before all other events.
    ///
    /// # Errors
    /// The event would exceed the client's share of the memory.
    pub(crate) fn prepend_explanation(&mut self, explanation: Vec<u8>) -> Outcome<()> {
        let memory = self.query.memory_share(&self.shared).reserve(explanation.len())?;
        let explanation = Body::from(Bytes::from(explanation)).holding([Arc::new(memory)]);
        let event = self.event("explain", None, explanation);
        self.ready.push_front(event);
        Ok(())
    }

    fn add_problem_event(&mut self, problem: &Problem) {
        let data = Bytes::from(problem.to_value(None).to_string());
        let event = self.event("problem", None, data.into());
        self.ready.push_back(event);
    }

    /// Makes an event (WHATWG HTML, section 9.2.6). `data` must have no line breaks; Weir's JSON has none.
    fn event(&self, name: &str, id: Option<&HeaderValue>, data: Body) -> Body {
        self.shared.metrics.http.watch_events.with_label_values(&[&*self.query.provider().name, name]).inc();
        let mut start = Vec::new();
        if let Some(id) = id {
            start.extend_from_slice(b"id: ");
            start.extend_from_slice(id.as_bytes());
            start.push(b'\n');
        }
        start.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
        data.between(start.into(), Bytes::from_static(b"\n\n"))
    }
}

/// Returns the form of the events. A URL is seen by more people than a key, so a token reveals no secrets.
fn show(snapshot: &Snapshot, authenticated: &Authenticated, shape: &Representation) -> Show {
    let show = representation::show(snapshot, authenticated.client, shape);
    Show { secrets: show.secrets && authenticated.session.is_none(), ..show }
}

/// Returns the topic's last fetch if it is recent, otherwise fetches the session.
async fn fetch(shared: &Arc<SharedState>, query: &ProviderQuery, topic: &Topic) -> SessionFetch {
    let (interval, client) = (query.provider().freshness.watch, query.client_id());
    let mut last = topic.last.lock().await;
    let now = shared.now();
    let is_recent = |last: &SessionFetch| now.since(last.fetched_at) < interval;
    if let Some(last) = last.as_ref().filter(|last| is_recent(last) && last.is_for(client)) {
        return last.clone();
    }
    // Other requests may have refreshed the cache entry.
    let directives = Directives { max_age: Some(interval), ..Directives::default() };
    let lookup = fetch::look_up(shared, query, directives, now);
    let mut record = RequestRecord::new(String::new(), "");
    let obtained = obtain::obtain(shared, query, lookup, None, now, &mut record).await;
    let (result, memory) = match obtained.and_then(|served| held_entry(shared, query, &served)) {
        Ok((entry, memory)) => (Ok(entry), Some(Arc::new(memory))),
        Err(problem) => (Err(problem), None),
    };
    let fetched_at = result.as_ref().map_or_else(|_| shared.now(), |entry| entry.life.stored_at);
    let fetched = SessionFetch { fetched_at, result, client: client.clone(), _memory: memory };
    *last = Some(fetched.clone());
    fetched
}

/// Returns an entry with its memory, because the topic keeps it also after the cache has evicted it.
///
/// # Errors
/// The provider's "not found". The entry would exceed the client's share of the memory.
fn held_entry(shared: &SharedState, query: &ProviderQuery, served: &Served) -> Outcome<(Arc<Entry>, Reservation)> {
    obtain::check_exists(&served.entry)?;
    let memory = query.memory_share(shared).reserve(served.entry.size(&query.key) as usize)?;
    Ok((served.entry.clone(), memory))
}
