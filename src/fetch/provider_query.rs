//! Defines provider queries: requests to a provider on behalf of a client. Also defines the state that requests share.
//!
//! Nothing here sends a request.

use crate::base::client_use::ClientUse;
use crate::base::ids::{ClientId, ProviderId};
use crate::base::memory_budget::{MemoryShare, Reservation};
use crate::base::metrics::Metrics;
use crate::base::model::Time;
use crate::base::operation::Operation;
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::Request;
use crate::base::trace_context::Spans;
use crate::engine::breaker::{Breaker, CallSubject};
use crate::engine::cache::{Cache, Entry, Key, KeyParts};
use crate::engine::coalesce::{Coalescer, JoinTerms, Joiners};
use crate::engine::credential::{ClientCredentialError, Credential};
use crate::engine::provider_quota::ProviderQuota;
use crate::engine::request_record::StoreOutcome;
use crate::engine::upstream::UpstreamClient;
use crate::fetch::error::{FetchError, NoOperation};
use crate::fetch::provider_admission::{
    self, AdmissionState, CallGuards, CallInFlight, CallLimits, Caller, NotAdmitted,
};
use crate::rules::provider_body::CompiledOperation;
use crate::rules::purge::{Mode, Scope, Subject};
use crate::rules::read_headers::{LongHeaders, SentHeaders};
use crate::rules::route::SessionName;
use crate::rules::template::{DotSegment, Values};
use crate::runtime;
use crate::runtime::snapshot::{Access, Provider, Snapshot};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The result of a call, shared by all requests that wait for it.
pub(crate) type CallResult = Result<(Arc<Entry>, StoreOutcome), Box<FetchError>>;

/// The result of a call, and the memory that is reserved for it until every request that waits for it has it.
#[derive(Clone)]
pub(crate) struct CallReply {
    /// The result.
    pub result: CallResult,
    /// The memory; `None` if the result comes from the cache.
    pub memory: Option<Arc<Reservation>>,
    /// The client that started the call; `None` if the result comes from the cache.
    pub caller: Option<Arc<str>>,
}

/// The client may not use the provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("client {client:?} may not use {provider}; its providers are listed in clients.yaml")]
pub struct NotPermitted {
    /// The client's id.
    pub client: Arc<str>,
    /// The provider.
    pub provider: Arc<str>,
}

/// Why a client has no identity at a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It may not use the provider.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// Its request does not contain the credential.
    #[error(transparent)]
    Credential(#[from] ClientCredentialError),
}

/// Why a query cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderQueryError {
    /// The client has no identity at the provider.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The provider has no such operation.
    #[error(transparent)]
    NoOperation(#[from] NoOperation),
    /// No path can contain the id.
    #[error(transparent)]
    Id(#[from] DotSegment),
    /// The client's headers are too long.
    #[error(transparent)]
    Headers(#[from] LongHeaders),
}

/// The state that all requests share.
pub struct SharedState {
    /// The metrics.
    pub metrics: Metrics,
    /// The cache of provider responses.
    pub cache: Cache,
    /// Counts the admitted requests of all clients, and of those without a key.
    pub in_flight: Arc<ClientUse>,
    /// Sends requests to providers.
    pub upstream: Arc<UpstreamClient>,
    /// The calls in flight.
    pub(crate) coalescer: Coalescer<Key, CallReply, Subject>,
    /// The spans of distributed traces.
    pub spans: Spans,
    /// Reads the time. For steps that wait and need the time afterwards.
    pub clock: fn() -> Time,
    /// Cancelled when Weir shuts down. Ends responses that have no end of their own.
    pub stopping: CancellationToken,
}

impl SharedState {
    /// Creates the state with an empty cache. `max_bytes` limits the cache; for `max_buffered`, see
    /// [`UpstreamClient::new`].
    #[must_use]
    pub fn new(metrics: Metrics, max_bytes: u64, max_buffered: u64) -> Self {
        let cache = Cache::new(max_bytes, metrics.cache.clone());
        let (upstream, spans) = (Arc::new(UpstreamClient::new(max_buffered)), Spans::default());
        Self {
            metrics,
            cache,
            in_flight: Arc::default(),
            upstream,
            coalescer: Coalescer::default(),
            spans,
            clock: runtime::now,
            stopping: CancellationToken::new(),
        }
    }

    /// Returns the time.
    #[must_use]
    pub fn now(&self) -> Time {
        (self.clock)()
    }

    /// Counts a call to a provider as in flight or waiting, on behalf of a client. There are at most
    /// `overload.max_in_flight` calls.
    ///
    /// # Errors
    /// The limit is reached, or the client's share of it.
    pub(crate) fn count_call(
        &self,
        snapshot: &Snapshot,
        client: ClientId,
        provider: &str,
    ) -> Result<CallInFlight, NotAdmitted> {
        let usage = &snapshot.clients[client].usage;
        let total = snapshot.weir.overload.max_in_flight.into();
        let limit = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
        let limits = CallLimits { total: limit(total), share: limit(snapshot.client_share(total)) };
        provider_admission::count_call(&self.metrics.upstream, provider, usage, limits)
    }

    /// Returns what the admission of calls uses.
    pub(crate) fn admission_state(&self) -> AdmissionState<'_> {
        AdmissionState { metrics: &self.metrics.upstream, slots: &self.upstream.slots, clock: self.clock }
    }

    /// Returns how many calls may have a connection at the same time.
    pub(crate) fn call_limit(&self, snapshot: &Snapshot) -> u64 {
        u64::from(snapshot.weir.overload.max_in_flight).min(self.upstream.slots.total as u64)
    }

    /// Purges the entries in the scope and returns their number. Calls in flight still serve the requests that wait for
    /// them, but no later request.
    pub fn purge(&self, scope: &Scope, mode: Mode, now: Time) -> u64 {
        let count = self.cache.purge(scope, mode, now);
        self.coalescer.detach(|subject| scope.covers(subject));
        count
    }
}

/// The identity under which Weir sends one request to a provider.
#[derive(Clone)]
pub struct ProviderIdentity {
    /// The credential that Weir sends.
    pub credential: Credential,
    /// The quota and the breaker of the credential; `None` if the client sent the credential.
    configured: Option<(Arc<ProviderQuota>, Arc<Breaker>)>,
}

impl ProviderIdentity {
    /// Returns the quota of the credential.
    #[must_use]
    fn quota(&self, provider: &Provider) -> Arc<ProviderQuota> {
        let quota = self.configured.as_ref().map(|(quota, _)| quota.clone());
        quota.unwrap_or_else(|| provider.quotas.forwarded(&self.credential))
    }

    /// Returns the breaker of the credential.
    #[must_use]
    fn breaker(&self, provider: &Provider) -> Arc<Breaker> {
        let breaker = self.configured.as_ref().map(|(_, breaker)| breaker.clone());
        breaker.unwrap_or_else(|| provider.quotas.forwarded_breaker(&self.credential))
    }

    /// Returns the quota and the breakers of a call about `subject`.
    #[must_use]
    pub(crate) fn guards(&self, provider: &Provider, subject: CallSubject) -> CallGuards {
        CallGuards::new(provider, self.quota(provider), self.breaker(provider), subject)
    }

    /// Returns the identity of a client at a provider, for a request with these headers.
    ///
    /// # Errors
    /// The client may not use the provider, or its request lacks the credential.
    pub fn of(
        snapshot: &Snapshot,
        client: ClientId,
        provider: ProviderId,
        headers: &RequestHeaders,
    ) -> Result<Self, IdentityError> {
        let access = permitted(snapshot, client, provider)?;
        if !access.credential.is_forwarded() {
            let configured = Some((access.quota.clone(), access.breaker.clone()));
            return Ok(Self { credential: access.credential.clone(), configured });
        }
        Ok(Self { credential: access.credential.for_request(headers, &snapshot.keys)?, configured: None })
    }
}

/// The client, the provider and the operation of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryTarget {
    /// The client on whose behalf the provider is called.
    pub client: ClientId,
    /// The provider.
    pub provider: ProviderId,
    /// The operation.
    pub operation: Operation,
}

/// A request to a provider on behalf of a client, and the cache key of its response.
#[derive(Clone)]
pub struct ProviderQuery {
    snapshot: Arc<Snapshot>,
    target: QueryTarget,
    /// The client's identity at the provider.
    pub identity: ProviderIdentity,
    /// The path and query, relative to the provider's base URL.
    pub path_and_query: String,
    /// The headers that the provider's file names; `None` if there are none.
    pub headers: Option<Arc<SentHeaders>>,
    /// The cache key of the response.
    pub key: Key,
    /// What the response is about, for purges.
    pub subject: Subject,
}

impl ProviderQuery {
    /// Makes the query of an operation from the values of its template.
    ///
    /// # Errors
    /// The provider has no such operation, or no path can contain the id.
    pub fn new(
        snapshot: &Arc<Snapshot>,
        target: QueryTarget,
        identity: ProviderIdentity,
        values: &Values<'_>,
    ) -> Result<Self, ProviderQueryError> {
        let provider = &snapshot.providers[target.provider];
        let operation = operation(provider, target.operation)?;
        let path_and_query = operation.template.render(values)?;
        let headers = provider.headers.unified().cloned();
        let key = Key::of(parts(provider, &identity, operation, &path_and_query, headers.as_deref()));
        let subject = Subject {
            provider: provider.name.clone(),
            credential: identity.credential.identity.clone(),
            agent: values.agent.map(Into::into),
            session: values.session.map(Into::into),
        };
        Ok(Self { snapshot: snapshot.clone(), target, identity, path_and_query, headers, key, subject })
    }

    /// Replaces the query string.
    ///
    /// # Errors
    /// The provider has no such operation.
    pub fn with_query(self, query: &str) -> Result<Self, NoOperation> {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        let path_and_query = format!("{path}?{query}");
        Self { path_and_query, ..self }.with_new_key()
    }

    /// Takes the headers of a native read that the provider's file names.
    ///
    /// # Errors
    /// The headers are too long.
    pub fn with_headers(self, headers: &RequestHeaders) -> Result<Self, ProviderQueryError> {
        let rules = &self.provider().headers;
        if !rules.takes_any() {
            return Ok(self);
        }
        let sent = rules.native(headers)?;
        let headers = (!sent.headers.is_empty()).then(|| Arc::new(sent));
        Ok(Self { headers, ..self }.with_new_key()?)
    }

    fn with_new_key(self) -> Result<Self, NoOperation> {
        let key = Key::of(self.key_parts()?);
        Ok(Self { key, ..self })
    }

    /// Returns the parts of the cache key.
    ///
    /// # Errors
    /// The provider has no such operation.
    pub fn key_parts(&self) -> Result<KeyParts<'_>, NoOperation> {
        Ok(parts(self.provider(), &self.identity, self.operation()?, &self.path_and_query, self.headers.as_deref()))
    }

    /// Returns where the credential is configured, in words.
    #[must_use]
    pub fn credential_from(&self) -> &'static str {
        match &self.snapshot.clients[self.target.client].access[self.target.provider] {
            _ if self.identity.configured.is_none() => "the request",
            Some(access) if access.is_clients_own => "the client, in clients.yaml",
            _ => "the provider's file",
        }
    }

    /// Returns the provider's id in the snapshot of this query.
    #[must_use]
    pub fn provider_id(&self) -> ProviderId {
        self.target.provider
    }

    /// Returns the provider.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.snapshot.providers[self.target.provider]
    }

    /// Returns the client's id.
    #[must_use]
    pub fn client_id(&self) -> &Arc<str> {
        &self.snapshot.clients[self.target.client].id
    }

    /// Returns on whose behalf a call for this query is made.
    pub(crate) fn caller<'c>(&'c self, joiners: Option<&'c Joiners>, latest: Instant) -> Caller<'c> {
        let QueryTarget { client, provider, .. } = self.target;
        Caller { joiners, ..caller(&self.snapshot, client, provider, latest) }
    }

    /// Returns the client's share of the memory budget.
    #[must_use]
    pub fn memory_share(&self, shared: &SharedState) -> MemoryShare {
        self.snapshot.memory_share(self.target.client, &shared.upstream.budget)
    }

    /// Returns what the call is about, for the breaker.
    #[must_use]
    pub fn call_subject(&self) -> CallSubject {
        CallSubject::of_session(self.subject.agent.as_deref(), self.subject.session.as_deref())
    }

    /// Counts a call for this query as in flight.
    ///
    /// # Errors
    /// The limit of calls in flight is reached, or the client's share of it.
    pub(crate) fn count_call(&self, shared: &SharedState) -> Result<CallInFlight, NotAdmitted> {
        shared.count_call(&self.snapshot, self.target.client, &self.provider().name)
    }

    /// Returns the terms of joining a call: with the limits of waiters, on any call in flight.
    pub(crate) fn join_terms(&self) -> JoinTerms {
        let max_waiters = self.snapshot.weir.overload.max_waiters;
        let share = self.snapshot.client_share(max_waiters.into());
        let share = (share < u64::from(max_waiters))
            .then(|| (self.client_id().clone(), usize::try_from(share).unwrap_or(usize::MAX)));
        JoinTerms { max_waiters: max_waiters as usize, share, not_before: Time(i64::MIN), start_after_join: false }
    }

    /// Returns the operation.
    ///
    /// # Errors
    /// The provider has no such operation.
    pub fn operation(&self) -> Result<&CompiledOperation, NoOperation> {
        operation(self.provider(), self.target.operation)
    }
}

fn parts<'k>(
    provider: &'k Provider,
    identity: &'k ProviderIdentity,
    operation: &'k CompiledOperation,
    path_and_query: &'k str,
    headers: Option<&'k SentHeaders>,
) -> KeyParts<'k> {
    KeyParts {
        provider: &provider.name,
        base_url: &provider.base_url,
        credential: &identity.credential.identity,
        operation: operation.name(),
        path_and_query,
        headers: headers.map_or("", |headers| &headers.key),
    }
}

/// Returns on whose behalf a client's call to a provider is made.
pub(crate) fn caller(snapshot: &Snapshot, client: ClientId, provider: ProviderId, latest: Instant) -> Caller<'_> {
    let client = &snapshot.clients[client];
    let shares_quota = client.access[provider].as_ref().is_some_and(|access| access.shares_quota);
    let has_others = snapshot.has_several_clients();
    Caller { client: &client.id, has_others, shares_quota, joiners: None, latest }
}

/// Returns a client's access to a provider.
///
/// # Errors
/// The client may not use the provider.
pub(crate) fn permitted(snapshot: &Snapshot, client: ClientId, provider: ProviderId) -> Result<&Access, NotPermitted> {
    snapshot.clients[client].access[provider].as_ref().ok_or_else(|| {
        let (client, provider) = (&snapshot.clients[client].id, &snapshot.providers[provider].name);
        NotPermitted { client: client.clone(), provider: provider.clone() }
    })
}

fn operation(provider: &Provider, operation: Operation) -> Result<&CompiledOperation, NoOperation> {
    let compiled = provider.operations.get(operation);
    compiled.ok_or_else(|| NoOperation { provider: provider.name.clone(), operation })
}

/// Makes the query of one session.
///
/// # Errors
/// The client may not use the provider, or no path can contain the id.
pub(crate) fn session_query(
    snapshot: &Arc<Snapshot>,
    client: ClientId,
    name: &SessionName,
    request: &Request,
) -> Result<ProviderQuery, ProviderQueryError> {
    let values = Values { agent: name.agent.as_deref(), session: Some(&name.session), ..Values::default() };
    let identity = ProviderIdentity::of(snapshot, client, name.provider, &request.headers)?;
    let target = QueryTarget { client, provider: name.provider, operation: Operation::GetSession };
    ProviderQuery::new(snapshot, target, identity, &values)
}
