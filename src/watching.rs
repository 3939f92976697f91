//! A session as it changes, for who stays to see it: server-sent events.
//!
//! A room of its own because such an answer has no end to be known: it asks again and again, for as long as
//! the client, the session and the client's right to it last. However many watch a session, the provider is
//! asked once in `freshness.watch`: they share what was heard last. It writes no socket.

use crate::cache::{Entry, Key, Kind};
use crate::conditional::Directives;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::Request;
use crate::fetch::{self, Looked};
use crate::model::{Form, Show, Status, Time, View};
use crate::parameters::Shape;
use crate::question::{Asking, Question, Shared};
use crate::reading::etag;
use crate::route::{Name, Route, Routed};
use crate::runtime::snapshot::Snapshot;
use crate::runtime::{self, Runtime};
use crate::template::Values;
use crate::trace::Trace;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderValue;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often something is sent where nothing has changed: who has gone is noticed, and no proxy thinks us dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
const BEAT: &[u8] = b":\n\n";

/// What was heard last of each watched session.
#[derive(Default)]
pub struct Watched {
    topics: Mutex<HashMap<Key, Weak<Topic>>>,
}

/// What was heard last of one.
struct Topic {
    key: Key,
    watched: Arc<Watched>,
    last: tokio::sync::Mutex<Option<Heard>>,
}

#[derive(Clone)]
struct Heard {
    at: Time,
    result: Outcome<Arc<Entry>>,
}

impl Watched {
    fn topics(&self) -> MutexGuard<'_, HashMap<Key, Weak<Topic>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn topic(self: &Arc<Self>, key: &Key) -> Arc<Topic> {
        let mut topics = self.topics();
        if let Some(topic) = topics.get(key).and_then(Weak::upgrade) {
            return topic;
        }
        let topic = Arc::new(Topic { key: key.clone(), watched: self.clone(), last: tokio::sync::Mutex::default() });
        topics.insert(key.clone(), Arc::downgrade(&topic));
        topic
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let mut topics = self.watched.topics();
        // Another may have taken its place already.
        if topics.get(&self.key).is_some_and(|topic| topic.strong_count() == 0) {
            topics.remove(&self.key);
        }
    }
}

/// One who watches, counted for as long as it does.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>, most: i64) -> Outcome<Self> {
        let watchers = &shared.metrics.http.watchers;
        watchers.inc();
        let place = Self(shared.clone());
        if watchers.get() <= most {
            return Ok(place);
        }
        let detail = format!("{most} sessions are being watched; more are not (overload.max_watchers)");
        Err(Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.metrics.http.watchers.dec();
    }
}

/// A session, watched for one client.
pub struct Watching {
    runtime: Arc<Runtime>,
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    request: Request,
    client: usize,
    show: Show,
    shape: Shape,
    question: Question,
    topic: Arc<Topic>,
    /// The entity tag of what the client has.
    told: Option<HeaderValue>,
    /// What is to be sent before anything new is asked for.
    ready: Option<Bytes>,
    /// When the session is to be asked for again.
    next: Instant,
    beat: Instant,
    /// It has been told that the provider fails.
    failing: bool,
    over: bool,
    _place: Place,
}

/// How a request to watch begins.
pub enum Begun {
    /// There is something to be sent, now or later.
    Watching(Box<Watching>),
    /// The session has ended, and the client has its last state.
    Over,
}

/// Who wants to watch what.
pub struct Wish<'w> {
    /// What is in force, now and later.
    pub runtime: &'w Arc<Runtime>,
    /// What all requests share.
    pub shared: &'w Arc<Shared>,
    /// What was heard of watched sessions.
    pub watched: &'w Arc<Watched>,
    /// The configuration that the request began under.
    pub snapshot: &'w Arc<Snapshot>,
    /// The client's position in it.
    pub client: usize,
    /// As sent.
    pub request: &'w Request,
    /// How sessions are shown.
    pub shape: Shape,
}

impl Wish<'_> {
    /// Begins to watch, with the session as the cache or the provider has it.
    ///
    /// # Errors
    /// As for one session; 503 where as many watch as may.
    pub async fn begin(self, question: Question, looked: Looked, trace: &mut Trace) -> Outcome<Begun> {
        let place = Place::take(self.shared, i64::from(self.snapshot.weir.overload.max_watchers))?;
        let served = fetch::obtain(self.shared, &question, looked, None, trace).await?;
        trace.cache = Some(served.status);
        if let Kind::NotFound(problem) = &served.entry.kind {
            return Err(problem.clone());
        }
        let form = if self.shape.native { Form::WithNative } else { Form::Unified };
        let show = Show { secrets: self.snapshot.clients[self.client].reveal_secrets, form };
        let topic = self.watched.topic(&question.key);
        let now = Instant::now();
        let mut watching = Watching {
            runtime: self.runtime.clone(),
            shared: self.shared.clone(),
            watched: self.watched.clone(),
            request: self.request.clone(),
            client: self.client,
            show,
            shape: self.shape,
            question,
            topic,
            told: self.request.headers.get("last-event-id").and_then(|id| HeaderValue::from_bytes(id).ok()),
            ready: None,
            next: now,
            beat: now + HEARTBEAT,
            failing: false,
            over: false,
            _place: place,
        };
        let entry = served.entry;
        let began = watching.told.clone();
        watching.tell(&entry)?;
        if watching.over && began == watching.told {
            return Ok(Begun::Over);
        }
        watching.after(entry.life.stored_at);
        Ok(Begun::Watching(Box::new(watching)))
    }
}

impl Watching {
    /// What to send, part by part, until the end.
    #[must_use]
    pub fn parts(self: Box<Self>) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
        Box::pin(stream::unfold(self, |mut watching| async move { Some((watching.next().await?, watching)) }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(ready) = self.ready.take() {
                self.beat = Instant::now() + HEARTBEAT;
                return Some(ready);
            }
            if self.over {
                return None;
            }
            let (stopping, beat, next) = (self.shared.stopping.clone(), self.beat, self.next);
            let look_again = async {
                tokio::time::sleep_until(next).await;
                self.look_again().await;
            };
            tokio::select! {
                () = stopping.cancelled() => return None,
                () = look_again => {}
                // Also while the provider lets us wait, whom another may then ask.
                () = tokio::time::sleep_until(beat) => self.ready = Some(Bytes::from_static(BEAT)),
            }
        }
    }

    /// Asks for the session, unless another who watches it just has; and whether the client still may.
    async fn look_again(&mut self) {
        let heard = match self.permitted() {
            Ok(()) => self.hear().await,
            Err(problem) => {
                self.over = true;
                return self.tell_problem(&problem);
            }
        };
        let told = match &heard.result {
            Ok(entry) => self.tell(entry),
            Err(problem) => Err(problem.clone()),
        };
        self.after(heard.at);
        match told {
            Ok(()) => self.failing = false,
            Err(problem) if problem.code.is_not_found() => {
                self.over = true;
                self.tell_problem(&problem);
            }
            Err(problem) => {
                if let Some(seconds) = problem.retry_after {
                    self.next = self.next.max(Instant::now() + Duration::from_secs(seconds));
                }
                if !std::mem::replace(&mut self.failing, true) {
                    self.tell_problem(&problem);
                }
            }
        }
    }

    /// A reload may have taken the key, the client or its right to this provider away, and a key may expire.
    fn permitted(&mut self) -> Outcome<()> {
        let snapshot = self.runtime.snapshot();
        self.client = snapshot.keys.identify(&self.request, runtime::now())?;
        let routed = snapshot.routes.route(&self.request.method, &self.request.path, &self.request.query);
        let Ok(Routed { route: Route::Watch { name, .. }, .. }) = routed else {
            return Err(routed.err().map_or_else(|| Box::new(Problem::invalid("this is not watched")), |(_, p)| p));
        };
        self.question = question(&snapshot, self.client, &name, &self.request)?;
        self.show.secrets = snapshot.clients[self.client].reveal_secrets;
        if self.question.key != self.topic.key {
            self.topic = self.watched.topic(&self.question.key);
        }
        Ok(())
    }

    async fn hear(&self) -> Heard {
        let every = self.question.provider().freshness.watch;
        let mut last = self.topic.last.lock().await;
        let now = runtime::now();
        if let Some(heard) = last.as_ref().filter(|heard| now.since(heard.at) < every) {
            return heard.clone();
        }
        // What others have asked for meanwhile will do.
        let directives = Directives { max_age: Some(every), ..Directives::default() };
        let looked = fetch::look(&self.shared, &self.question, directives, now);
        let mut trace = Trace::new(String::new(), "");
        let obtained = fetch::obtain(&self.shared, &self.question, looked, None, &mut trace).await;
        let heard = match obtained {
            Ok(served) => match &served.entry.kind {
                Kind::NotFound(problem) => Heard { at: runtime::now(), result: Err(problem.clone()) },
                _ => Heard { at: served.entry.life.stored_at, result: Ok(served.entry) },
            },
            Err(problem) => Heard { at: runtime::now(), result: Err(problem) },
        };
        *last = Some(heard.clone());
        heard
    }

    /// Asks again when `freshness.watch` has passed since this moment.
    fn after(&mut self, heard: Time) {
        let every = self.question.provider().freshness.watch;
        let left = heard.plus(every).since(runtime::now());
        // A millisecond more, so that it has passed for sure.
        self.next = Instant::now() + left.min(every) + Duration::from_millis(1);
    }

    /// An event, where this is not what the client has.
    fn tell(&mut self, entry: &Arc<Entry>) -> Outcome<()> {
        let view = fetch::view(&self.shared, &self.question, entry, self.show, runtime::now())?;
        let status = view.items.first().map(|item| item.status);
        self.over = matches!(status, Some(Status::Ended | Status::Expired));
        let (tag, body) = self.shown(&view)?;
        if self.told.as_ref() != Some(&tag) {
            self.send("session", Some(&tag), &body);
            self.told = Some(tag);
        }
        Ok(())
    }

    fn shown(&self, view: &View) -> Outcome<(HeaderValue, Bytes)> {
        let Some(fields) = &self.shape.fields else { return Ok((view.etag.clone(), view.body.clone())) };
        let mut body = Vec::with_capacity(view.body.len());
        fields.cut(&view.body, &mut body)?;
        Ok((etag(&body), body.into()))
    }

    /// Says first why it is answered as it is.
    pub fn explain(&mut self, explain: &[u8]) {
        let ready = self.ready.take();
        self.send("explain", None, explain);
        let both = [self.ready.take(), ready].into_iter().flatten().collect::<Vec<_>>();
        self.ready = Some(both.concat().into());
    }

    fn tell_problem(&mut self, problem: &Problem) {
        self.send("problem", None, problem.to_value(None).to_string().as_bytes());
    }

    /// An event (WHATWG HTML, section 9.2.6). JSON as we write it has no line breaks.
    fn send(&mut self, name: &str, id: Option<&HeaderValue>, data: &[u8]) {
        self.shared.metrics.http.watch_events.with_label_values(&[&*self.question.provider().name, name]).inc();
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

/// The question for a session.
///
/// # Errors
/// 403 where the client may not ask it, 400 for an id that no path can hold.
pub fn question(snapshot: &Arc<Snapshot>, client: usize, name: &Name, request: &Request) -> Outcome<Question> {
    let values = Values { agent: name.agent.as_deref(), session: Some(&name.session), ..Values::default() };
    let asking = Asking::of(snapshot, client, name.provider, &request.headers)?;
    Question::new(snapshot, (client, name.provider), asking, false, &values)
}
