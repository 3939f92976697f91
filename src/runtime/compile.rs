//! Loads a snapshot: reads and compiles the configuration, and checks it against its examples.
//!
//! After a reload, the new snapshot keeps the limiters, quotas, breakers and tokens of the previous one whose settings are
//! unchanged.

use super::examples;
use super::quotas::{CredentialQuota, ProviderQuotas};
use super::snapshot::{Access, BoundListener, Client, Provider, Snapshot};
use crate::base::client_use::ClientUse;
use crate::base::endpoints::EXPLAIN;
use crate::base::ids::{ClientId, IdVec, ProviderId};
use crate::base::model::Time;
use crate::base::operation::{EveryOperation, PerOperation};
use crate::config::clients::ClientConfig;
use crate::config::content::Content;
use crate::config::credentials::CredentialConfig;
use crate::config::edge::Listener;
use crate::config::faults::{Fault, Faults};
use crate::config::load::{self, ConfigSource};
use crate::config::provider::{IdPatterns, Ids, ProviderConfig};
use crate::config::weir::{Policy, Traces, Weir};
use crate::config::{Config, Example};
use crate::engine::breaker::Breaker;
use crate::engine::client_address::AuthFailures;
use crate::engine::credential;
use crate::engine::otlp::TraceDestination;
use crate::engine::provider_health::ProviderHealth;
use crate::engine::rate_limit::{Bucket, Limiter};
use crate::engine::request_record::VARY;
use crate::engine::tls;
use crate::engine::token_bucket::{Refill, Ticker, TokenBucket};
use crate::engine::unknown_words::UnknownWords;
use crate::engine::upstream::Target;
use crate::rules::auth::Keys;
use crate::rules::error_rules::ErrorRules;
use crate::rules::mapping::Mapping;
use crate::rules::native_errors::NativeErrors;
use crate::rules::native_routes::NativeRoutes;
use crate::rules::openapi;
use crate::rules::page_token::Signer;
use crate::rules::provider_body::CompiledOperation;
use crate::rules::provider_links::ProviderAddress;
use crate::rules::read_headers::ReadHeaderRules;
use crate::rules::route::RouteTable;
use crate::rules::swagger_ui::PublicDocument;
use crate::rules::watch_token::WatchTokens;
use http::{HeaderName, HeaderValue};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

impl Snapshot {
    /// Loads the configuration of a directory. `random` signs page tokens if the configuration has no key.
    ///
    /// # Errors
    /// All faults, sorted by location.
    pub fn load(
        source: &ConfigSource,
        previous: Option<&Snapshot>,
        random: &[u8; 32],
        now: Time,
    ) -> Result<Snapshot, Vec<Fault>> {
        Self::compile(load::load(source), previous, random, now)
    }

    /// Compiles a configuration that was loaded.
    ///
    /// # Errors
    /// All faults, sorted by location.
    pub(crate) fn compile(
        loaded: load::Loaded,
        previous: Option<&Snapshot>,
        random: &[u8; 32],
        now: Time,
    ) -> Result<Snapshot, Vec<Fault>> {
        let load::Loaded { config, content, mut faults } = loaded;
        let clients = previous.into_iter().flat_map(|previous| &previous.clients);
        let previous_clients = clients.map(|client| (&*client.id, client)).collect();
        let compile = |config| {
            Compiler { previous, previous_clients, faults: &mut faults, now }.snapshot(config, content, random)
        };
        match config.map(compile) {
            Some(snapshot) if faults.is_empty() => Ok(snapshot),
            _ => Err(faults.sorted()),
        }
    }
}

struct Compiler<'a> {
    previous: Option<&'a Snapshot>,
    /// The clients of the previous snapshot, by id.
    previous_clients: HashMap<&'a str, &'a Client>,
    faults: &'a mut Faults,
    now: Time,
}

impl<'a> Compiler<'a> {
    fn snapshot(&mut self, config: Config, content: Content, random: &[u8; 32]) -> Snapshot {
        let secret_changes = self.previous.map_or(0, |previous| {
            previous.secret_changes + u32::from(content.has_other_named_files(&previous.content))
        });
        let routes = RouteTable::compile(&config.providers, self.faults);
        let mut providers: IdVec<ProviderId, Provider> =
            config.providers.iter().filter_map(|p| self.provider(p)).collect();
        let limiters = self.limiters(&config.weir);
        let mut clients = if providers.len() == config.providers.len() {
            config
                .clients
                .iter()
                .map(|client| self.client(client, &mut providers, &limiters, &config.weir.traces))
                .collect()
        } else {
            IdVec::default()
        };
        mark_shared_quotas(&mut clients);
        let expiry = |listener: &Listener| Some((listener.address, tls::expiry(listener.tls.as_ref()?)?));
        let certificates = config.weir.listen.iter().filter_map(expiry).collect();
        let listeners = self.listeners(&config.weir.listen);
        self.examples(&config.examples, &providers);
        let description = PublicDocument::new("application/json", openapi::document(&config).into());
        let digests = config.clients.iter().flat_map(|client| &client.keys).map(|key| key.sha256);
        Snapshot {
            revision: revision(config.revision, secret_changes),
            content,
            secret_changes,
            missing: config.missing,
            files: config.files,
            loaded_at: self.now,
            listeners,
            certificates,
            keys: Keys::compile(&config.clients),
            signer: Signer::new(&config.weir.page_token_key, random),
            watch_tokens: WatchTokens::new(digests, &config.weir.page_token_key, random),
            failures: self.failures(&config.weir),
            traces: TraceDestination::compile(&config.weir.traces, self.faults).map(Arc::new),
            weir: config.weir,
            removed: self.removed(&clients),
            clients,
            routes,
            native_routes: NativeRoutes::compile(&config.providers),
            providers,
            limiters,
            description,
        }
    }

    /// Compiles the listeners. After a reload, each bound listener keeps its position and gets the configured listener with
    /// its address: one with equal requirements, otherwise a stricter one. (Several listeners can have one address if its
    /// port is 0.) A bound listener without a match keeps its settings.
    fn listeners(&mut self, listeners: &[Listener]) -> Vec<BoundListener> {
        let compile = |listener: &Listener| {
            let tls_acceptor = listener.tls.as_ref().and_then(|tls| tls::compile(tls, self.faults));
            BoundListener { address: listener.address, guard: listener.guard(), tls_acceptor }
        };
        let mut configured: Vec<BoundListener> = listeners.iter().map(compile).collect();
        let Some(previous) = self.previous else { return configured };
        let bound = previous.listeners.iter().map(|bound| {
            let equal = |new: &BoundListener| new.address == bound.address && new.guard == bound.guard;
            let stricter = |new: &BoundListener| new.address == bound.address && new.guard > bound.guard;
            match configured.iter().position(equal).or_else(|| configured.iter().position(stricter)) {
                Some(position) => configured.remove(position),
                None => bound.clone(),
            }
        });
        bound.collect()
    }

    /// Checks the examples, unless there are faults already, which explain more than a failed example.
    fn examples(&mut self, examples: &[Example], providers: &IdVec<ProviderId, Provider>) {
        if self.faults.is_empty() {
            for example in examples {
                if let Some(provider) = providers.iter().find(|p| *p.name == *example.provider) {
                    let provider = examples::ExampleProvider {
                        name: &provider.name,
                        mapping: &provider.mapping,
                        operations: &provider.operations,
                    };
                    examples::check(example, &provider, self.now, self.faults);
                }
            }
        }
    }

    fn provider(&mut self, config: &ProviderConfig) -> Option<Provider> {
        let has_agents = config.ids.accept.agent.is_some();
        let operations = PerOperation::make(|operation| {
            CompiledOperation::compile(operation, config.operations.get(operation)?, has_agents, self.faults)
        });
        let target = Target::compile(&config.base_url.value, &config.upstream);
        let target = self.faults.keep(&config.base_url.location, target);
        let mapping = Mapping::compile(config, self.faults);
        let errors = ErrorRules::compile(config, mapping.secrets().clone(), self.faults);
        let cannot_remove =
            operations.iter().map(|(_, operation)| operation).find(|operation| !operation.can_remove_secrets());
        if let Some(operation) = cannot_remove.filter(|_| mapping.has_secrets()) {
            let message = format!(
                "the item path of {} must have only names and indexes, because this provider has secret fields that \
                 Weir removes from responses",
                operation.name()
            );
            self.faults.add(&config.name.location, message);
        }
        let name: Arc<str> = config.name.value.as_str().into();
        let credential = credential::compile(&name, config.credential.as_ref(), self.faults);
        let headers = ReadHeaderRules::compile(&config.headers, self.faults);
        headers.exclude_credential(config.credential.as_ref(), self.faults);
        exclude_parameter(&operations, config.credential.as_ref(), self.faults);
        let native_errors = config.native.errors.as_ref().and_then(|format| NativeErrors::compile(format, self.faults));
        let previous = self.previous_provider(&name);
        let breaker = previous.map(|p| p.breaker.clone()).filter(|breaker| breaker.config == config.upstream.breaker);
        let previous_quotas = previous.map(|p| &p.quotas);
        let mut quotas =
            ProviderQuotas::new(config.upstream.capacity.clone(), config.upstream.breaker.clone(), previous_quotas);
        let CredentialQuota { credential, .. } = quotas.configure(credential, previous_quotas);
        let health = previous.map(|p| p.health.clone());
        let rules = rules_digest(config);
        // With other rules, other words are unknown.
        let unknown_words = previous.filter(|p| p.rules == rules).map(|p| p.unknown_words.clone());
        Some(Provider {
            health: health.unwrap_or_else(|| Arc::new(ProviderHealth::new(name.clone()))),
            name,
            base_url: target.as_ref().map(Target::base_url).unwrap_or_default(),
            address: ProviderAddress::new(&target.as_ref().map(Target::base_url).unwrap_or_default()),
            target: target?,
            operations,
            ids: config.ids.clone(),
            mapping,
            errors,
            freshness: config.freshness.clone(),
            rules,
            unknown_words: unknown_words
                .unwrap_or_else(|| Arc::new(UnknownWords::new(config.name.value.as_str().into()))),
            breaker: breaker.unwrap_or_else(|| Arc::new(Breaker::new(config.upstream.breaker.clone()))),
            retry_budget: previous.map(|p| p.retry_budget.clone()).unwrap_or_default(),
            quotas,
            native_errors,
            headers,
            idle_timeout: config.native.idle_timeout,
            hits: OnceLock::new(),
            call_metrics: EveryOperation::default(),
            credential,
        })
    }

    fn previous_provider(&self, name: &str) -> Option<&'a Provider> {
        self.previous.and_then(|previous| previous.provider(name))
    }

    fn failures(&self, weir: &Weir) -> Option<Arc<AuthFailures>> {
        let config = weir.limits.auth_failures?;
        let previous = self.previous.and_then(|previous| previous.failures.clone());
        let unchanged = previous.filter(|failures| failures.config == config);
        Some(unchanged.unwrap_or_else(|| Arc::new(AuthFailures::new(config))))
    }

    fn limiters(&self, weir: &Weir) -> Vec<Arc<Limiter>> {
        let previous = |policy: &Policy| {
            let unchanged = |limiter: &&Arc<Limiter>| limiter.policy == *policy;
            self.previous.and_then(|previous| previous.limiters.iter().find(unchanged).cloned())
        };
        let make = |policy| Arc::new(Limiter::new(policy, Ticker::default()));
        weir.policies.iter().map(|policy| previous(policy).unwrap_or_else(|| make(policy))).collect()
    }

    /// Returns what a client still uses that an earlier reload has removed.
    fn removed_use(&self, id: &str) -> Option<Arc<ClientUse>> {
        self.previous?.removed.get(id)?.upgrade()
    }

    /// Returns what the clients still use that are not in the configuration any more.
    fn removed(&self, clients: &IdVec<ClientId, Client>) -> HashMap<Arc<str>, Weak<ClientUse>> {
        let Some(previous) = self.previous else { return HashMap::new() };
        let before = previous.clients.iter().map(|client| (client.id.clone(), Arc::downgrade(&client.usage)));
        let earlier = previous.removed.iter().map(|(id, usage)| (id.clone(), usage.clone()));
        let is_removed = |id: &Arc<str>| !clients.iter().any(|client| client.id == *id);
        earlier.chain(before).filter(|(id, usage)| usage.strong_count() > 0 && is_removed(id)).collect()
    }

    fn client(
        &mut self,
        config: &ClientConfig,
        providers: &mut IdVec<ProviderId, Provider>,
        limiters: &[Arc<Limiter>],
        traces: &Traces,
    ) -> Client {
        let id = &config.id.value;
        let access = providers.into_iter().map(|provider| self.access(config, provider, limiters));
        let access: IdVec<ProviderId, Option<Access>> = access.collect();
        let previous = self.previous_clients.get(id.as_str());
        Client {
            id: id.as_str().into(),
            reveal_secrets: config.reveal_secrets,
            native: config.native,
            vary: vary(&access, config.explain),
            key_expiries: config.keys.iter().map(|key| key.expires_at).collect(),
            explain: config.explain,
            requested_traces: traces.endpoint.is_some().then(|| per_second(traces.requested)),
            provider_reads: per_second(PROVIDER_READS),
            usage: previous.map(|client| client.usage.clone()).or_else(|| self.removed_use(id)).unwrap_or_default(),
            admission_lock: previous.map(|client| client.admission_lock.clone()).unwrap_or_default(),
            buckets: config.rate_limits.iter().filter_map(|at| bucket(limiters, &at.value, id)).collect(),
            access,
        }
    }

    fn access(&mut self, config: &ClientConfig, provider: &mut Provider, limiters: &[Arc<Limiter>]) -> Option<Access> {
        let name = provider.name.clone();
        let is_permitted = config.providers.as_ref().is_none_or(|all| all.iter().any(|at| at.value == *name));
        let own = config.credentials.iter().find(|(at, _)| at.value == *name).map(|(_, own)| own);
        let credential = match own {
            Some(own) => {
                provider.headers.exclude_credential(Some(own), self.faults);
                exclude_parameter(&provider.operations, Some(own), self.faults);
                credential::compile(&name, Some(own), self.faults)
            }
            None => provider.credential.clone(),
        };
        let previous = self.previous_provider(&name).map(|previous| &previous.quotas);
        let CredentialQuota { credential, quota, breaker } = provider.quotas.configure(credential, previous);
        let policies = config.provider_rate_limits.iter().filter(|(at, _)| at.value == *name).flat_map(|(_, all)| all);
        // One policy can limit all requests of a client and also its requests to a provider. These are two buckets, so they
        // have different keys.
        let key = format!("{}\n{name}", config.id.value);
        let buckets = policies.filter_map(|at| bucket(limiters, &at.value, &key)).collect();
        let is_clients_own = own.is_some();
        is_permitted.then_some(Access { credential, is_clients_own, quota, shares_quota: false, breaker, buckets })
    }
}

/// Returns the revision of the files, with `.N` after the Nth change of the files that they name. The content of these
/// does not show in it: it would be a fingerprint of the secrets.
fn revision(files: String, secret_changes: u32) -> String {
    if secret_changes == 0 { files } else { format!("{files}.{secret_changes}") }
}

/// Notes which accesses use a quota that another client uses too. A credential that a client sends has a quota of its own.
fn mark_shared_quotas(clients: &mut IdVec<ClientId, Client>) {
    let mut users = HashMap::<_, usize>::new();
    for access in clients.iter().flat_map(|client| client.access.iter().flatten()) {
        *users.entry(Arc::as_ptr(&access.quota)).or_default() += 1;
    }
    for access in clients.into_iter().flat_map(|client| (&mut client.access).into_iter().flatten()) {
        let has_others = users.get(&Arc::as_ptr(&access.quota)).is_some_and(|users| *users > 1);
        access.shares_quota = has_others && !access.credential.is_forwarded();
    }
}

/// Reports a fault if an operation sends the query parameter of a credential.
fn exclude_parameter(
    operations: &PerOperation<CompiledOperation>,
    credential: Option<&CredentialConfig>,
    faults: &mut Faults,
) {
    let Some(CredentialConfig::Query { name, .. }) = credential else { return };
    for (operation, _) in operations.iter().filter(|(_, compiled)| compiled.template.has_parameter(&name.value)) {
        let what = "is the parameter of this credential; remove it from the query of";
        faults.add(&name.location, format!("{} {what} {}", name.value, operation.name()));
    }
}

fn bucket(limiters: &[Arc<Limiter>], policy: &str, key: &str) -> Option<Bucket> {
    let limiter = limiters.iter().find(|limiter| limiter.policy.name == policy)?;
    Some(Bucket::new(limiter.clone(), key.into()))
}

fn vary(access: &IdVec<ProviderId, Option<Access>>, explain: bool) -> HeaderValue {
    let mut names = VARY.to_owned();
    let credential_headers = access.iter().flatten().filter_map(|access| access.credential.forwarded_header());
    for name in credential_headers.map(HeaderName::as_str).chain(explain.then_some(EXPLAIN.name)) {
        if !names.split(", ").any(|known| known.eq_ignore_ascii_case(name)) {
            names += &format!(", {name}");
        }
    }
    HeaderValue::from_str(&names).unwrap_or(HeaderValue::from_static(VARY))
}

/// Returns a digest of all settings that affect the mapping or the lifetime of an entry.
fn rules_digest(config: &ProviderConfig) -> u64 {
    // The pattern has every setting, so a new setting does not compile until it is added here.
    let ProviderConfig {
        name,
        ids: Ids { accept: IdPatterns { agent, session: session_ids }, recognise: _ },
        operations,
        session,
        secrets,
        freshness,
        // These do not change an entry.
        base_url: _,
        credential: _,
        upstream: _,
        errors: _,
        headers: _,
        native: _,
    } = config;
    let mut hasher = DefaultHasher::new();
    format!("{name:?}{agent:?}{session_ids:?}{session:?}{secrets:?}{freshness:?}{operations:?}").hash(&mut hasher);
    hasher.finish()
}

/// The requests to `GET /v1/providers` that a client may send in a second.
const PROVIDER_READS: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Makes a bucket that refills with this many tokens in a second, and has room for as many.
fn per_second(tokens: NonZeroU32) -> TokenBucket {
    TokenBucket::new(Refill::new(tokens, Duration::from_secs(1), tokens), Ticker::default())
}
