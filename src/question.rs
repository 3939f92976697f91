//! What a provider is asked on behalf of a client, and what all requests share to have it answered.
//!
//! A room of its own because calls and lookups both speak of questions. It asks nothing itself.

use crate::breaker::Tap;
use crate::cache::{Cache, Entry, Key, KeyParts};
use crate::credential::Credential;
use crate::error::{Code, Outcome, Problem};
use crate::flight::Flights;
use crate::headers::Headers;
use crate::metrics::Metrics;
use crate::model::Time;
use crate::purge::{Mode, Scope, Subject};
use crate::reading::Operation;
use crate::runtime::snapshot::{Access, Provider, Snapshot};
use crate::span::Spans;
use crate::template::Values;
use crate::trace::Stored;
use crate::upstream::Upstream;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How a call ended, for everyone who waited for it.
pub type Landed = Result<(Arc<Entry>, Stored), Box<Problem>>;

/// What all requests share.
pub struct Shared {
    /// Every number told to Prometheus.
    pub metrics: Metrics,
    /// What providers answered.
    pub cache: Cache,
    /// Connections to providers.
    pub upstream: Arc<Upstream>,
    /// Calls under way.
    pub flights: Flights<Key, Landed, Subject>,
    /// Traces that go beyond Weir.
    pub spans: Spans,
    /// Cancelled when Weir shuts down: answers without an end come to it then.
    pub stopping: CancellationToken,
}

impl Shared {
    /// An empty cache of this size, and no connection yet; see [`Upstream::new`] for `max_buffered`.
    #[must_use]
    pub fn new(metrics: Metrics, max_bytes: u64, max_buffered: u64) -> Self {
        let cache = Cache::new(max_bytes, metrics.cache.clone());
        let (upstream, spans) = (Arc::new(Upstream::new(max_buffered)), Spans::default());
        Self { metrics, cache, upstream, flights: Flights::default(), spans, stopping: CancellationToken::new() }
    }

    /// Purges what the scope touches; how many entries that were. Calls under way answer those who
    /// wait for them, and nobody who comes later.
    pub fn purge(&self, scope: &Scope, mode: Mode, now: Time) -> u64 {
        let touched = self.cache.purge(scope, mode, now);
        self.flights.detach(|subject| scope.touches(subject));
        touched
    }
}

/// As whom a provider is asked, for one request.
#[derive(Clone)]
pub struct Asking {
    /// What it is shown.
    pub credential: Credential,
    /// The quota that goes with it, unless the client brought it.
    tap: Option<Arc<Tap>>,
}

impl Asking {
    /// The quota that goes with it.
    #[must_use]
    pub fn tap(&self, provider: &Provider) -> Arc<Tap> {
        self.tap.clone().unwrap_or_else(|| provider.forwarded.tap(&self.credential))
    }

    /// As whom a client asks a provider, with a request that has these headers.
    ///
    /// # Errors
    /// 403 where it may not, 401 where it brings its own credential and did not.
    pub fn of(snapshot: &Snapshot, client: usize, provider: usize, headers: &Headers) -> Outcome<Self> {
        let access = permitted(snapshot, client, provider)?;
        if !access.credential.is_forwarded() {
            return Ok(Self { credential: access.credential.clone(), tap: Some(access.tap.clone()) });
        }
        Ok(Self { credential: access.credential.of_request(headers, &snapshot.keys)?, tap: None })
    }
}

/// A question to a provider on behalf of a client, and the place of its answer in the cache.
#[derive(Clone)]
pub struct Question {
    snapshot: Arc<Snapshot>,
    provider: usize,
    client: usize,
    list: bool,
    /// As whom.
    pub asking: Asking,
    /// What the provider is asked, below its base URL.
    pub path_and_query: String,
    /// Where the answer is kept.
    pub key: Key,
    /// What it is about.
    pub subject: Subject,
}

impl Question {
    /// The question that `values` make of an operation.
    ///
    /// # Errors
    /// 400 for an id that no path can hold.
    pub fn new(
        snapshot: &Arc<Snapshot>,
        (client, provider): (usize, usize),
        asking: Asking,
        list: bool,
        values: &Values<'_>,
    ) -> Outcome<Self> {
        let asked = &snapshot.providers[provider];
        let operation = operation(asked, list)?;
        let path_and_query = operation.template.render(values).map_err(|why| Box::new(Problem::invalid(why)))?;
        let key = Key::of(parts(asked, &asking, operation, &path_and_query));
        let subject = Subject {
            provider: asked.name.clone(),
            credential: asking.credential.identity.clone(),
            agent: values.agent.map(Into::into),
            session: values.session.map(Into::into),
        };
        Ok(Self { snapshot: snapshot.clone(), provider, client, list, asking, path_and_query, key, subject })
    }

    /// The same, with a query that the operation's template does not know.
    ///
    /// # Errors
    /// 400 where the provider has no such operation.
    pub fn with_query(self, query: &str) -> Outcome<Self> {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        let path_and_query = format!("{path}?{query}");
        let key = Key::of(parts(self.provider(), &self.asking, self.operation()?, &path_and_query));
        Ok(Self { path_and_query, key, ..self })
    }

    /// What its key is made of.
    ///
    /// # Errors
    /// 400 where the provider has no such operation.
    pub fn key_parts(&self) -> Outcome<KeyParts<'_>> {
        Ok(parts(self.provider(), &self.asking, self.operation()?, &self.path_and_query))
    }

    /// Where the credential is from that it is asked with.
    #[must_use]
    pub fn credential_from(&self) -> &'static str {
        match &self.snapshot.clients[self.client].access[self.provider] {
            _ if self.asking.tap.is_none() => "the request",
            Some(access) if access.own => "the client, in clients.yaml",
            _ => "the provider's file",
        }
    }

    /// The provider asked.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.snapshot.providers[self.provider]
    }

    /// On whose behalf it is asked.
    #[must_use]
    pub fn client_id(&self) -> &Arc<str> {
        &self.snapshot.clients[self.client].id
    }

    /// How many may wait for one call.
    #[must_use]
    pub fn max_waiters(&self) -> usize {
        self.snapshot.weir.overload.max_waiters as usize
    }

    /// How many calls may be under way at once.
    #[must_use]
    pub fn max_calls(&self) -> i64 {
        i64::from(self.snapshot.weir.overload.max_in_flight)
    }

    /// The operation.
    ///
    /// # Errors
    /// 400 where the provider has none.
    pub fn operation(&self) -> Outcome<&Operation> {
        operation(self.provider(), self.list)
    }
}

fn parts<'k>(provider: &'k Provider, asking: &'k Asking, operation: &'k Operation, path: &'k str) -> KeyParts<'k> {
    KeyParts {
        provider: &provider.name,
        place: &provider.place,
        credential: &asking.credential.identity,
        operation: operation.name,
        path_and_query: path,
    }
}

/// What a client may use of a provider.
///
/// # Errors
/// 403 where it may not.
pub fn permitted(snapshot: &Snapshot, client: usize, provider: usize) -> Outcome<&Access> {
    snapshot.clients[client].access[provider].as_ref().ok_or_else(|| {
        let (client, provider) = (&snapshot.clients[client].id, &snapshot.providers[provider].name);
        let detail = format!("client {client:?} may not use {provider}; its providers are listed in clients.yaml");
        Box::new(Problem::new(Code::Forbidden, detail).of(provider))
    })
}

fn operation(provider: &Provider, list: bool) -> Outcome<&Operation> {
    let operation = if list { &provider.list_sessions } else { &provider.get_session };
    operation
        .as_ref()
        .ok_or_else(|| Box::new(Problem::invalid(format!("{} is not configured for this", provider.name))))
}
