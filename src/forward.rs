//! A request that is passed on to the provider's own API, and what is learnt of its answer on the way.
//!
//! A room of its own because it lives as long as the stream does: it holds the turn at the provider, knows
//! what a success changes, and tells what may pass. The bytes themselves flow through Pingora.

use crate::cache::Matter;
use crate::credential::Shown;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{ProviderFailure, ProviderReply};
use crate::gate::{self, UnderWay};
use crate::hops;
use crate::pace::Pace;
use crate::purge::Subject;
use crate::question::{Asking, Question, Shared};
use crate::respond;
use crate::runtime;
use crate::runtime::snapshot::{Provider, Snapshot};
use crate::span::Fact;
use crate::trace::Trace;
use crate::upstream::Peer;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// What a request changes if it succeeds.
pub enum Change {
    /// Nothing that is stored.
    Nothing,
    /// A session, and the lists it is in.
    Session {
        /// The question that it answers.
        session: Box<Question>,
        /// One of those that its lists answer, if the provider has any.
        lists: Option<Box<Question>>,
    },
    /// Lists: one of the questions they answer.
    Lists(Option<Box<Question>>),
    /// An agent, with all of its sessions and lists.
    Agent(Subject),
}

/// A request on its way.
pub struct Forward {
    /// What becomes of it.
    pub trace: Trace,
    /// What its answer carries for the page that asked.
    pub shared_with: Vec<(HeaderName, HeaderValue)>,
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    client: usize,
    provider: usize,
    asking: Asking,
    change: Change,
    /// Before the provider's paths, in what Weir's clients see.
    prefix: String,
    path_and_query: String,
    method: http::Method,
    believed: bool,
    shown: Shown,
    /// Connections tried, and how many addresses there are to try.
    tries: usize,
    addresses: usize,
    renewed: bool,
    status: Option<u16>,
    /// The answer's length is not known beforehand: what is changed may go on changing until it ends.
    streams: bool,
    /// A connection to the provider was had.
    connected: bool,
    failed: bool,
    begun: Instant,
    /// How the client's body comes.
    pub pace: Arc<Pace>,
    /// Of the client's share, and of the provider's turns.
    _held: [OwnedSemaphorePermit; 2],
    _under_way: UnderWay,
}

/// What to send instead of what the client sent.
pub struct Head {
    /// Path and query at the provider, its base URL's prefix included.
    pub path_and_query: String,
    /// `Host`.
    pub authority: String,
    /// Headers that go no further.
    pub drop: Vec<HeaderName>,
    /// The provider's credential.
    pub credential: Option<(HeaderName, HeaderValue)>,
    /// Where in a trace the provider is asked, if Weir has a part in it.
    pub trace: Vec<(HeaderName, HeaderValue)>,
}

/// What becomes of an answer's header.
pub enum Answered {
    /// It passes, without and with these headers.
    Pass {
        /// Headers that go no further.
        drop: Vec<HeaderName>,
        /// Weir's own, in place of any of the same name.
        set: Vec<(HeaderName, HeaderValue)>,
        /// Weir's own, besides any of the same name.
        add: Vec<(HeaderName, HeaderValue)>,
    },
    /// The token was refused: once more, with a new one.
    Again,
    /// The client is told this instead.
    Refuse(Box<Problem>),
}

/// What a request is, when it is to be passed on.
pub struct Passage {
    /// What it changes.
    pub change: Change,
    /// What stood before the provider's path.
    pub prefix: String,
    /// The provider's path and query.
    pub path_and_query: String,
    /// Its method.
    pub method: http::Method,
    /// It comes from a proxy whose word on where it comes from is taken.
    pub believed: bool,
}

impl Forward {
    /// Waits for a turn at the provider, and for a credential to show.
    ///
    /// # Errors
    /// Why it cannot be asked now.
    pub async fn begin(
        shared: &Arc<Shared>,
        snapshot: &Arc<Snapshot>,
        (client, provider): (usize, usize),
        asking: Asking,
        passage: Passage,
    ) -> Outcome<Box<Self>> {
        let (metrics, config) = (&shared.metrics.upstream, &snapshot.providers[provider]);
        let under_way = gate::begin(metrics, &config.name, i64::from(snapshot.weir.overload.max_in_flight))?;
        #[allow(clippy::disallowed_methods)] // where the provider's time begins
        let begun = Instant::now();
        let deadline = tokio::time::Instant::now() + config.target.timeout;
        let latest = deadline - config.target.timeout / 2;
        let (tap, id, limits) = (asking.tap(config), &snapshot.clients[client].id, &snapshot.weir.limits);
        let share = gate::share(metrics, config, &tap, id, latest).await?;
        let turn = gate::pass(metrics, config, &tap, id, latest).await?;
        let shown = asking.credential.show(&shared.upstream, metrics, deadline).await?;
        Ok(Box::new(Self {
            trace: Trace::new(String::new(), ""),
            shared_with: Vec::new(),
            shared: shared.clone(),
            snapshot: snapshot.clone(),
            client,
            provider,
            asking,
            change: passage.change,
            prefix: passage.prefix,
            path_and_query: passage.path_and_query,
            method: passage.method,
            believed: passage.believed,
            shown,
            tries: 0,
            addresses: 0,
            renewed: false,
            status: None,
            streams: false,
            connected: false,
            failed: false,
            begun,
            pace: Arc::new(Pace::new(limits.stall_timeout, limits.body_timeout, tokio::time::Instant::now())),
            _held: [share, turn],
            _under_way: under_way,
        }))
    }

    /// The provider it goes to.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.snapshot.providers[self.provider]
    }

    /// Its last step begins.
    pub fn begin_passing(&mut self) {
        let target = &self.snapshot.providers[self.provider].target;
        self.trace.steps.ask("upstream");
        self.trace.steps.fact("server.address", || Fact::Name(target.authority().into()));
    }

    /// Where to connect.
    ///
    /// # Errors
    /// Why there is no address, or no new token.
    pub async fn peer(&mut self) -> Outcome<Peer> {
        let metrics = &self.shared.metrics.upstream;
        if self.renewed {
            let deadline = tokio::time::Instant::now() + self.provider().target.timeout;
            self.shown = self.asking.credential.show(&self.shared.upstream, metrics, deadline).await?;
        }
        let provider = self.provider();
        let peer = self.shared.upstream.peer(&provider.target, self.tries, provider.idle_timeout).await;
        self.tries += 1;
        let (peer, addresses) = peer.map_err(|failure| self.failed(failure))?;
        self.addresses = addresses;
        Ok(peer)
    }

    /// Whether there is an address that no connection was tried to: nothing was sent, so any request may go there.
    #[must_use]
    pub fn has_more_addresses(&self) -> bool {
        self.tries < self.addresses
    }

    /// What is sent instead of what the client sent.
    #[must_use]
    pub fn head(&self, headers: &HeaderMap) -> Head {
        let target = &self.provider().target;
        Head {
            path_and_query: target.path(&self.path_and_query),
            authority: target.authority().to_owned(),
            drop: hops::of_request(headers, self.believed).collect(),
            credential: self.shown.header.clone(),
            trace: if self.trace.steps.context().is_some() { self.trace.steps.headers() } else { Vec::new() },
        }
    }

    /// The header of an answer came.
    pub fn answered(&mut self, status: u16, headers: &HeaderMap) -> Answered {
        let reply = ProviderReply { status, headers: headers.clone(), body: Bytes::new() };
        self.count(&status.to_string());
        if status == 401 && !self.renewed && self.asking.credential.refused(&self.shown) {
            self.renewed = true;
            return Answered::Again;
        }
        let reply = Ok(reply);
        gate::learn(self.provider(), &self.asking.tap(self.provider()), &reply);
        self.status = Some(status);
        self.streams = !headers.contains_key(header::CONTENT_LENGTH);
        // One that the client brought is the client's to hear of.
        if status == 401
            && !self.asking.credential.is_forwarded()
            && let Ok(reply) = &reply
        {
            return Answered::Refuse(Box::new(self.provider().errors.judge(reply, runtime::now())));
        }
        if status < 400 {
            self.changed();
        }
        self.trace.status = status;
        self.trace.steps.fact("http.response.status_code", || Fact::Number(status.into()));
        let drop = hops::of_answer(headers).collect();
        Answered::Pass { drop, set: self.set(headers), add: self.shared_with.clone() }
    }

    fn set(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let why = if self.method.is_safe() { "weir; fwd=bypass" } else { "weir; fwd=method" };
        let mut set = respond::passed(&self.snapshot.buckets(self.client, &[self.provider]), &self.trace, why);
        let location = headers.get(header::LOCATION);
        let location = location.and_then(|location| here(self.provider(), &self.prefix, location));
        set.extend(location.map(|location| (header::LOCATION, location)));
        set
    }

    /// A connection to the provider is there.
    pub fn connected(&mut self) {
        self.connected = true;
    }

    /// No answer came, or not all of it.
    pub fn failed(&mut self, failure: ProviderFailure) -> Box<Problem> {
        self.failed = true;
        self.count(failure.kind.as_str());
        let problem = self.provider().errors.judge_failure(&failure);
        gate::learn(self.provider(), &self.asking.tap(self.provider()), &Err(failure));
        Box::new(problem)
    }

    /// Headers and body of a problem, in the provider's shape.
    #[must_use]
    pub fn problem(&mut self, problem: &Problem) -> crate::exchange::Answer {
        let (snapshot, now) = (self.snapshot.clone(), runtime::now());
        let buckets = snapshot.buckets(self.client, &[self.provider]);
        let dialect = snapshot.providers[self.provider].dialect.as_ref();
        let mut answer = respond::native(problem, dialect, &buckets, &mut self.trace, now);
        answer.headers.extend(self.shared_with.iter().cloned());
        answer
    }

    fn count(&self, status: &str) {
        let labels = [&*self.provider().name, "native", status];
        self.shared.metrics.upstream.requests.with_label_values(&labels).inc();
    }

    /// Nothing that was stored before now holds of what this request changes.
    fn changed(&self) {
        let (cache, now) = (&self.shared.cache, runtime::now());
        let lists = match &self.change {
            Change::Nothing => return,
            Change::Agent(agent) => return cache.write(Matter::Agent(agent.clone()), now),
            Change::Session { session, lists } => {
                cache.write(Matter::One(session.subject.clone()), now);
                lists
            }
            Change::Lists(lists) => lists,
        };
        if let Some(lists) = lists {
            cache.write(Matter::One(lists.subject.clone()), now);
        }
    }

    /// It is over, with or without its answer. What was changed while a stream ran is changed at its end too; of
    /// a request that got no answer nobody knows.
    pub fn finish(&mut self) -> Duration {
        match self.status {
            Some(status) if status < 400 && self.streams => self.changed(),
            // What was on its way may have arrived.
            None if self.connected => self.changed(),
            _ => {}
        }
        if self.status.is_none() && !self.failed {
            // The client hung up.
            self.count("cancelled");
        }
        let took = self.begun.elapsed();
        self.trace.waited = took;
        let labels = [&*self.provider().name, "native"];
        self.shared.metrics.upstream.duration.with_label_values(&labels).observe(took.as_secs_f64());
        took
    }

    /// The problem that a client is told where its provider refuses the credential for good.
    #[must_use]
    pub fn refused(&self) -> Box<Problem> {
        let name = &self.provider().name;
        let detail = format!("{name} refused Weir's credential with 401; check the credentials in its provider file");
        Box::new(Problem::new(Code::ProviderAuthFailed, detail).of(name))
    }
}

/// A place at the provider, as Weir's clients reach it.
#[must_use]
pub fn here(provider: &Provider, prefix: &str, location: &HeaderValue) -> Option<HeaderValue> {
    let below = provider.target.below(location.to_str().ok()?)?;
    HeaderValue::from_str(&format!("{prefix}{below}")).ok()
}
