//! Defines the snapshot: the compiled configuration, as requests use it. A snapshot never changes.

use super::quotas::ProviderQuotas;
use crate::base::client_use::ClientUse;
use crate::base::ids::{ClientId, IdVec, ProviderId};
use crate::base::memory_budget::{MemoryBudget, MemoryShare};
use crate::base::model::Time;
use crate::base::operation::{EveryOperation, PerOperation};
use crate::config::content::Content;
use crate::config::edge::{Guard, Listener};
use crate::config::freshness::Freshness;
use crate::config::provider::Ids;
use crate::config::weir::Weir;
use crate::engine::breaker::{Breaker, RetryBudget};
use crate::engine::client_address::AuthFailures;
use crate::engine::credential::Credential;
use crate::engine::otlp::TraceDestination;
use crate::engine::provider_health::ProviderHealth;
use crate::engine::provider_quota::ProviderQuota;
use crate::engine::rate_limit::{Bucket, Limiter};
use crate::engine::tls::TlsAcceptor;
use crate::engine::token_bucket::TokenBucket;
use crate::engine::unknown_words::UnknownWords;
use crate::engine::upstream::Target;
use crate::rules::auth::Keys;
use crate::rules::error_rules::ErrorRules;
use crate::rules::mapping::Mapping;
use crate::rules::native_errors::NativeErrors;
use crate::rules::native_routes::NativeRoutes;
use crate::rules::page_token::Signer;
use crate::rules::provider_body::CompiledOperation;
use crate::rules::provider_links::ProviderAddress;
use crate::rules::read_headers::ReadHeaderRules;
use crate::rules::route::{RouteTable, SessionName};
use crate::rules::swagger_ui::PublicDocument;
use crate::rules::watch_token::{SessionTag, WatchTokens};
use http::HeaderValue;
use prometheus::{Histogram, IntCounter};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// The compiled configuration.
pub struct Snapshot {
    /// Names the content in logs, metrics and responses.
    pub revision: String,
    /// The content of all files.
    pub content: Content,
    /// How often the files that the configuration names have changed since the start. Part of the revision.
    pub(super) secret_changes: u32,
    /// What is missing on this machine, if the configuration was loaded without it.
    pub missing: Vec<String>,
    /// The files that were read.
    pub files: Vec<String>,
    /// When the snapshot was made.
    pub loaded_at: Time,
    /// `weir.yaml`, as decoded.
    pub weir: Weir,
    /// The clients' keys.
    pub keys: Keys,
    /// The clients.
    pub clients: IdVec<ClientId, Client>,
    /// In the order in which the listeners were bound at start.
    pub(super) listeners: Vec<BoundListener>,
    /// When the certificate of each TLS listener expires.
    pub certificates: Vec<(SocketAddr, Time)>,
    /// The paths, and the patterns of ids.
    pub routes: RouteTable,
    /// The paths of the providers' own APIs.
    pub native_routes: NativeRoutes,
    /// The providers.
    pub providers: IdVec<ProviderId, Provider>,
    /// The OpenAPI document.
    pub description: PublicDocument,
    /// Signs page tokens.
    pub signer: Signer,
    /// Seals and opens watch tokens.
    pub watch_tokens: WatchTokens,
    /// Where traces are sent; `None` disables them.
    pub traces: Option<Arc<TraceDestination>>,
    /// Counts failed authentications; `None` if they are not limited.
    pub failures: Option<Arc<AuthFailures>>,
    pub(super) limiters: Vec<Arc<Limiter>>,
    /// What removed clients still use. A client that comes back has not started from zero.
    pub(super) removed: HashMap<Arc<str>, Weak<ClientUse>>,
}

/// What a bound address requires of connections. A reload never makes it less strict: a requirement that the new
/// configuration removes stays in force until a restart.
#[derive(Clone)]
pub(super) struct BoundListener {
    pub(super) address: SocketAddr,
    pub(super) guard: Guard,
    /// `None` without TLS.
    pub(super) tls_acceptor: Option<TlsAcceptor>,
}

/// A client, compiled.
pub struct Client {
    /// The client's id.
    pub id: Arc<str>,
    /// Whether it receives secret fields.
    pub reveal_secrets: bool,
    /// Whether it may use the providers' own APIs.
    pub native: bool,
    /// The value of `Vary`: the headers that carry its key and its own credentials.
    pub vary: HeaderValue,
    /// The expiry of each of its keys; `None` for a key without one.
    pub key_expiries: Vec<Option<Time>>,
    /// Whether it may request explanations (`Weir-Explain`).
    pub explain: bool,
    /// How often it may request that a request is traced; `None` if there are no traces.
    pub requested_traces: Option<TokenBucket>,
    /// How often it may read `GET /v1/providers`, whatever its policies say.
    pub provider_reads: TokenBucket,
    /// What it uses of what all clients share.
    pub usage: Arc<ClientUse>,
    /// Locked while a request is charged under several policies, so that all of them charge it or none.
    pub admission_lock: Arc<Mutex<()>>,
    /// The buckets of its policies for all requests.
    pub buckets: Vec<Bucket>,
    /// Its access to each provider; `None` for a provider that it may not use.
    pub access: IdVec<ProviderId, Option<Access>>,
}

/// How a client uses a provider.
pub struct Access {
    /// The credential that Weir sends to the provider.
    pub credential: Credential,
    /// Whether the credential is configured for this client, not for the provider.
    pub is_clients_own: bool,
    /// The quota of the credential.
    pub quota: Arc<ProviderQuota>,
    /// Whether other clients use this quota too.
    pub shares_quota: bool,
    /// The breaker of the credential.
    pub breaker: Arc<Breaker>,
    /// The buckets of the client's policies for requests to this provider.
    pub buckets: Vec<Bucket>,
}

/// A provider, compiled.
pub struct Provider {
    /// The provider's name.
    pub name: Arc<str>,
    /// Its address, with the settings of connections to it.
    pub target: Target,
    /// Its base URL, as part of cache keys.
    pub base_url: String,
    /// Its base URL, to find it in response headers.
    pub(crate) address: ProviderAddress,
    /// The operations that it has.
    pub operations: PerOperation<CompiledOperation>,
    /// The patterns of its ids, as decoded.
    pub ids: Ids,
    /// Maps its sessions to unified ones.
    pub mapping: Mapping,
    /// Maps its errors to problem codes.
    pub errors: ErrorRules,
    /// The lifetimes of its responses.
    pub freshness: Freshness,
    /// A digest of all rules that make views and lifetimes. An entry with another digest is mapped again.
    pub rules: u64,
    /// Stops the calls of all credentials while there is no connection to the provider.
    pub breaker: Arc<Breaker>,
    /// Logs changes of its state.
    pub health: Arc<ProviderHealth>,
    /// The words that its file does not know.
    pub unknown_words: Arc<UnknownWords>,
    /// Limits the share of requests that are retries.
    pub retry_budget: Arc<RetryBudget>,
    /// The quota and the breaker of each credential.
    pub quotas: ProviderQuotas,
    /// Writes Weir's problems in the format of the provider's API; `None` if no format is configured.
    pub native_errors: Option<NativeErrors>,
    /// The headers of its reads.
    pub headers: ReadHeaderRules,
    /// The time limit between two reads of a native stream.
    pub idle_timeout: Duration,
    /// The counters of hits, and of calls that hits saved. Set at the first hit.
    pub hits: OnceLock<(IntCounter, Option<IntCounter>)>,
    /// The counter of responses with status 200 and the histogram of call durations. Set at the first call.
    pub call_metrics: EveryOperation<OnceLock<(IntCounter, Histogram)>>,
    /// The credential in the provider's file.
    pub(super) credential: Credential,
}

impl Snapshot {
    /// Returns what a watch token has about a session.
    #[must_use]
    pub(crate) fn session_tag(&self, name: &SessionName) -> SessionTag {
        let provider = &self.providers[name.provider].name;
        self.watch_tokens.session(provider, name.agent.as_deref(), &name.session)
    }

    /// Returns the provider with this name.
    #[must_use]
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|p| &*p.name == name)
    }

    /// Returns the buckets of a client's policies for all requests, and for requests to these providers.
    #[must_use]
    pub fn buckets(&self, client: Option<ClientId>, providers: &[ProviderId]) -> Vec<&Bucket> {
        let Some(client) = client.map(|client| &self.clients[client]) else { return Vec::new() };
        let access = providers.iter().filter_map(|provider| client.access[*provider].as_ref());
        client.buckets.iter().chain(access.flat_map(|access| &access.buckets)).collect()
    }

    /// Returns how much of a limit one client may use. With several clients it is half of the limit, rounded up, so that
    /// one client leaves the rest to the others.
    #[must_use]
    pub fn client_share(&self, limit: u64) -> u64 {
        if self.has_several_clients() { limit.div_ceil(2) } else { limit }
    }

    /// Returns whether there is more than one client.
    #[must_use]
    pub fn has_several_clients(&self) -> bool {
        self.clients.iter().nth(1).is_some()
    }

    /// Returns a client's share of a memory budget.
    #[must_use]
    pub fn memory_share(&self, client: ClientId, budget: &Arc<MemoryBudget>) -> MemoryShare {
        budget.share(&self.clients[client].usage, self.client_share(budget.limit()))
    }

    /// Returns the TLS settings of a listener, by its position at start; `None` without TLS.
    #[must_use]
    pub fn tls_acceptor(&self, listener: usize) -> Option<&TlsAcceptor> {
        self.listeners.get(listener)?.tls_acceptor.as_ref()
    }

    /// Returns whether every bound listener has the requirements of the configuration.
    #[must_use]
    pub(super) fn listeners_match_configuration(&self) -> bool {
        self.listeners.iter().map(|bound| bound.guard).eq(self.weir.listen.iter().map(Listener::guard))
    }

    /// Removes full buckets from every limiter. A missing bucket counts as full.
    pub fn sweep(&self) {
        self.limiters.iter().for_each(|limiter| limiter.sweep());
        self.failures.iter().for_each(|failures| failures.sweep());
    }
}
