//! A configuration compiled: everything a request needs, in one value that never changes.
//!
//! A room of its own because this is the only way to make one. A snapshot takes over from the one
//! before it what must survive a reload: limiters, taps and breakers whose settings are the same.

use super::examples;
use crate::auth::Keys;
use crate::breaker::{Breaker, RetryBudget, Tap};
use crate::config::clients;
use crate::config::decode::Secret;
use crate::config::edge::{Guard, Listener};
use crate::config::faults::{Fault, Faults};
use crate::config::freshness::Freshness;
use crate::config::load::{self, Source};
use crate::config::provider;
use crate::config::upstream::Capacity;
use crate::config::weir::Weir;
use crate::config::{Config, Example};
use crate::credential::{self, Credential};
use crate::cursor::Signer;
use crate::dialect::Dialect;
use crate::endpoints::EXPLAIN;
use crate::export::Destination;
use crate::fault::Rules;
use crate::mapping::Mapping;
use crate::model::Time;
use crate::mount::Mounts;
use crate::openapi;
use crate::origin::Failures;
use crate::ratelimit::{Bucket, Limiter, Ticker};
use crate::reading::Operation;
use crate::route::Table;
use crate::tls::{self, Handshake};
use crate::trace::VARY;
use crate::upstream::Target;
use crate::viewer::Document;
use http::{HeaderName, HeaderValue};
use prometheus::IntCounter;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The compiled configuration.
pub struct Snapshot {
    /// Names the content, for people and metrics.
    pub revision: String,
    /// Says whether anything changed; never shown.
    pub content: Secret,
    /// The files it was read from.
    pub files: Vec<String>,
    /// When it was made.
    pub loaded_at: Time,
    /// `weir.yaml`
    pub weir: Weir,
    /// Whose key is whose.
    pub keys: Keys,
    /// By position, as [`Keys`] gives it.
    pub clients: Vec<Client>,
    /// How connections begin, in the order of the listeners that were bound at start.
    doors: Vec<Door>,
    /// When the certificates of each listener that shows some end.
    pub certificates: Vec<(SocketAddr, Time)>,
    /// Paths and ids.
    pub routes: Table,
    /// Where providers' own APIs stand.
    pub mounts: Mounts,
    /// By position, as [`Table`] gives it.
    pub providers: Vec<Provider>,
    /// The API's description, with ids of the examples.
    pub description: Document,
    /// Page tokens.
    pub signer: Signer,
    /// Where traces go, if anywhere.
    pub traces: Option<Arc<Destination>>,
    /// Failed authentications, where they are limited.
    pub failures: Option<Arc<Failures>>,
    limiters: Vec<Arc<Limiter>>,
}

/// How connections begin at a bound address. That never becomes less than it was: what a later configuration
/// takes away there stays until a restart, which is when an address is given up.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    guard: Guard,
    /// Of all but plain ones.
    handshake: Option<Handshake>,
}

/// A client, compiled.
pub struct Client {
    /// Its name.
    pub id: Arc<str>,
    /// Whether it sees what is marked secret.
    pub reveal_secrets: bool,
    /// Whether it may use the providers' own APIs.
    pub native: bool,
    /// Headers that its answers depend on: where keys come, and where it brings credentials of its own.
    pub vary: HeaderValue,
    /// When each of its keys ends, if it does.
    pub key_ends: Vec<Option<Time>>,
    /// Whether it may have its requests explained.
    pub explain: bool,
    /// Makes admission under several policies one step.
    pub gate: Arc<Mutex<()>>,
    /// Its policies for everything.
    pub buckets: Vec<Bucket>,
    /// By provider's position: what it may use, and how.
    pub access: Vec<Option<Access>>,
}

/// How a client uses a provider.
pub struct Access {
    /// What the provider is shown.
    pub credential: Credential,
    /// It is the client's own, and not the provider's.
    pub own: bool,
    /// The quota that goes with it.
    pub tap: Arc<Tap>,
    /// Policies on top, for this provider's routes.
    pub buckets: Vec<Bucket>,
}

/// A provider, compiled.
pub struct Provider {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub target: Target,
    /// Its place, as part of cache keys.
    pub place: String,
    /// Reading one session.
    pub get_session: Option<Operation>,
    /// Reading a list.
    pub list_sessions: Option<Operation>,
    /// Patterns of its ids, as written.
    pub ids: provider::Ids,
    /// Its sessions and ours.
    pub mapping: Mapping,
    /// Its errors and ours.
    pub errors: Rules,
    /// How long its answers are good for.
    pub freshness: Freshness,
    /// A digest of what makes views and lifetimes: entries made by other rules are made anew.
    pub rules: u64,
    /// Whether it is asked at all.
    pub breaker: Arc<Breaker>,
    /// How much of it is asked twice.
    pub retry_budget: Arc<RetryBudget>,
    /// Taps of credentials that clients bring themselves.
    pub forwarded: Arc<Forwarded>,
    /// Its own API's errors, where its file says how they look.
    pub dialect: Option<Dialect>,
    /// How long a stream of its own API may be silent.
    pub idle_timeout: Duration,
    /// Where its hits, and the calls they saved, are counted, once there was one.
    pub hits: OnceLock<(IntCounter, Option<IntCounter>)>,
    /// By identity: one for all who ask as the same.
    known: HashMap<Arc<str>, Known>,
    own: Credential,
}

/// A credential that Weir has, and the quota that goes with it.
#[derive(Clone)]
struct Known {
    credential: Credential,
    tap: Arc<Tap>,
}

/// A tap for each credential that clients bring, as long as it is used.
pub struct Forwarded {
    capacity: Option<Capacity>,
    taps: moka::sync::Cache<Arc<str>, Arc<Tap>>,
}

impl Forwarded {
    /// The most that are remembered, and for how long one that is not used: longer than any pause.
    const MOST: u64 = 10_000;
    const IDLE: Duration = Duration::from_secs(600);

    fn new(capacity: Option<Capacity>) -> Self {
        Self { capacity, taps: moka::sync::Cache::builder().max_capacity(Self::MOST).time_to_idle(Self::IDLE).build() }
    }

    /// The tap of this credential.
    #[must_use]
    pub fn tap(&self, credential: &Credential) -> Arc<Tap> {
        self.taps.get_with(credential.identity.clone(), || Arc::new(Tap::new(self.capacity.clone())))
    }
}

impl Provider {
    /// All taps towards it.
    pub fn taps(&self) -> impl Iterator<Item = Arc<Tap>> {
        self.known.values().map(|known| known.tap.clone()).chain(self.forwarded.taps.iter().map(|(_, tap)| tap))
    }
}

impl Snapshot {
    /// Reads, checks and compiles a directory and runs its examples.
    ///
    /// # Errors
    /// All faults, by place.
    pub fn load(
        source: &Source,
        before: Option<&Snapshot>,
        random: &[u8; 32],
        now: Time,
    ) -> Result<Snapshot, Vec<Fault>> {
        let load::Loaded { config, mut faults } = load::load(source);
        let clients = before.into_iter().flat_map(|before| &before.clients);
        let clients = clients.map(|client| (&*client.id, client)).collect();
        let snapshot = config.map(|config| Builder { before, clients, faults: &mut faults, now }.build(config, random));
        match snapshot {
            Some(snapshot) if faults.is_empty() => Ok(snapshot),
            _ => Err(faults.sorted()),
        }
    }

    /// The provider of this name.
    #[must_use]
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|p| &*p.name == name)
    }

    /// The policies that apply to a client: its own, and its for these providers.
    #[must_use]
    pub fn buckets(&self, client: usize, providers: &[usize]) -> Vec<&Bucket> {
        let Some(client) = self.clients.get(client) else { return Vec::new() };
        let access = providers.iter().filter_map(|provider| client.access[*provider].as_ref());
        client.buckets.iter().chain(access.flat_map(|access| &access.buckets)).collect()
    }

    /// The TLS of a listener, by its position at start; `None` for one that is plain.
    #[must_use]
    pub fn handshake(&self, listener: usize) -> Option<&Handshake> {
        self.doors.get(listener)?.handshake.as_ref()
    }

    /// Whether every bound listener asks of who connects what its configuration says.
    #[must_use]
    pub fn is_guarded_as_written(&self) -> bool {
        self.doors.iter().map(|door| door.guard).eq(self.weir.listen.iter().map(Listener::guard))
    }

    /// Lets every limiter forget buckets that are full.
    pub fn sweep(&self) {
        self.limiters.iter().for_each(|limiter| limiter.sweep());
        self.failures.iter().for_each(|failures| failures.sweep());
    }
}

struct Builder<'a> {
    before: Option<&'a Snapshot>,
    /// Of the one before, by name.
    clients: HashMap<&'a str, &'a Client>,
    faults: &'a mut Faults,
    now: Time,
}

impl Builder<'_> {
    fn build(&mut self, config: Config, random: &[u8; 32]) -> Snapshot {
        let routes = Table::compile(&config.providers, self.faults);
        let mut providers: Vec<Provider> = config.providers.iter().filter_map(|p| self.provider(p)).collect();
        let limiters = self.limiters(&config.weir);
        let clients = if providers.len() == config.providers.len() {
            config.clients.iter().map(|client| self.client(client, &mut providers, &limiters)).collect()
        } else {
            Vec::new()
        };
        let ends = |listener: &Listener| Some((listener.address, tls::expiry(listener.tls.as_ref()?)?));
        let certificates = config.weir.listen.iter().filter_map(ends).collect();
        let doors = self.doors(&config.weir.listen);
        self.examples(&config.examples, &providers);
        let description = Document::new("application/json", openapi::document(&config).into());
        Snapshot {
            revision: config.revision,
            content: config.content,
            files: config.files,
            loaded_at: self.now,
            doors,
            certificates,
            keys: Keys::compile(&config.clients),
            signer: Signer::new(&config.weir.page_token_key, random),
            failures: self.failures(&config.weir),
            traces: Destination::compile(&config.weir.traces, self.faults).map(Arc::new),
            weir: config.weir,
            clients,
            routes,
            mounts: Mounts::compile(&config.providers),
            providers,
            limiters,
            description,
        }
    }

    /// Listeners as written are found by their address; of several at one (port 0), by what they ask.
    fn doors(&mut self, listeners: &[Listener]) -> Vec<Door> {
        let door = |listener: &Listener| {
            let handshake = listener.tls.as_ref().and_then(|tls| tls::compile(tls, self.faults));
            Door { address: listener.address, guard: listener.guard(), handshake }
        };
        let mut written: Vec<Door> = listeners.iter().map(door).collect();
        let Some(before) = self.before else { return written };
        let kept = before.doors.iter().map(|bound| {
            let same = |door: &Door| door.address == bound.address && door.guard == bound.guard;
            let more = |door: &Door| door.address == bound.address && door.guard > bound.guard;
            match written.iter().position(same).or_else(|| written.iter().position(more)) {
                Some(at) => written.remove(at),
                None => bound.clone(),
            }
        });
        kept.collect()
    }

    fn examples(&mut self, examples: &[Example], providers: &[Provider]) {
        // A provider that has faults of its own has said enough.
        if self.faults.is_empty() {
            for example in examples {
                if let Some(provider) = providers.iter().find(|p| *p.name == *example.provider) {
                    examples::check(example, provider, self.now, self.faults);
                }
            }
        }
    }

    fn provider(&mut self, config: &provider::Provider) -> Option<Provider> {
        let has_agents = config.ids.accept.agent.is_some();
        let mut operation = |name, config: &Option<provider::Operation>| {
            config.as_ref().and_then(|config| Operation::compile(name, config, has_agents, self.faults))
        };
        let get_session = operation("get_session", &config.get_session);
        let list_sessions = operation("list_sessions", &config.list_sessions);
        let target = Target::compile(&config.base_url.value, &config.upstream);
        let target = self.faults.keep(&config.base_url.place, target);
        let mapping = Mapping::compile(config, self.faults);
        let errors = Rules::compile(config, self.faults);
        let cannot = [&get_session, &list_sessions].into_iter().flatten().find(|operation| !operation.can_cut());
        if let Some(operation) = cannot.filter(|_| mapping.has_secrets()) {
            let what = "must be found by names and indexes alone, since secrets are cut from what is there";
            self.faults.add(&config.name.place, format!("what {} answers {what}", operation.name));
        }
        let name: Arc<str> = config.name.value.as_str().into();
        let own = credential::compile(&name, config.credential.as_ref(), self.faults);
        let dialect = config.native.errors.as_ref().and_then(|shape| Dialect::compile(shape, self.faults));
        let before = self.before.and_then(|before| before.provider(&config.name.value));
        let forwarded = before.map(|before| before.forwarded.clone());
        let forwarded = forwarded.filter(|forwarded| forwarded.capacity == config.upstream.capacity);
        let breaker = before.map(|before| before.breaker.clone()).filter(|b| b.config == config.upstream.breaker);
        let mut provider = Provider {
            name,
            place: target.as_ref().map(Target::place).unwrap_or_default(),
            target: target?,
            get_session,
            list_sessions,
            ids: config.ids.clone(),
            mapping,
            errors,
            freshness: config.freshness.clone(),
            rules: rules_digest(config),
            breaker: breaker.unwrap_or_else(|| Arc::new(Breaker::new(config.upstream.breaker.clone()))),
            retry_budget: before.map(|before| before.retry_budget.clone()).unwrap_or_default(),
            forwarded: forwarded.unwrap_or_else(|| Arc::new(Forwarded::new(config.upstream.capacity.clone()))),
            dialect,
            idle_timeout: config.native.idle_timeout,
            hits: OnceLock::new(),
            known: HashMap::new(),
            own: own.clone(),
        };
        provider.own = provider.know(own, config.upstream.capacity.as_ref(), before).credential;
        Some(provider)
    }

    fn failures(&self, weir: &Weir) -> Option<Arc<Failures>> {
        let config = weir.limits.auth_failures?;
        let before = self.before.and_then(|before| before.failures.clone());
        Some(before.filter(|before| before.config == config).unwrap_or_else(|| Arc::new(Failures::new(config))))
    }

    fn limiters(&self, weir: &Weir) -> Vec<Arc<Limiter>> {
        let kept = |policy: &crate::config::weir::Policy| {
            let same = |limiter: &&Arc<Limiter>| {
                let old = &limiter.policy;
                (&old.name, old.requests, old.per, old.burst)
                    == (&policy.name, policy.requests, policy.per, policy.burst)
                    && old.charge == policy.charge
            };
            self.before.and_then(|before| before.limiters.iter().find(same).cloned())
        };
        let made = |policy| Arc::new(Limiter::new(policy, Ticker::default()));
        weir.policies.iter().map(|policy| kept(policy).unwrap_or_else(|| made(policy))).collect()
    }

    fn client(&mut self, config: &clients::Client, providers: &mut [Provider], limiters: &[Arc<Limiter>]) -> Client {
        let id = &config.id.value;
        let bucket = |policy: &str, key: &str| {
            let limiter = limiters.iter().find(|limiter| limiter.policy.name == policy)?;
            Some(Bucket::new(limiter.clone(), key.into()))
        };
        let before = self.clients.get(id.as_str()).copied();
        let mut access = Vec::new();
        for provider in providers {
            let name = provider.name.to_string();
            let permitted = config.providers.as_ref().is_none_or(|all| all.iter().any(|at| at.value == name));
            let own = config.credentials.iter().find(|(at, _)| at.value == name).map(|(_, own)| own);
            let credential = match own {
                Some(own) => credential::compile(&provider.name, Some(own), self.faults),
                None => provider.own.clone(),
            };
            let (before, capacity) = (self.before.and_then(|before| before.provider(&name)), provider.capacity());
            let Known { credential, tap } = provider.know(credential, capacity.as_ref(), before);
            let policies =
                config.provider_rate_limits.iter().filter(|(at, _)| at.value == name).flat_map(|(_, all)| all);
            // One policy may limit a client as a whole and at a provider: two buckets.
            let buckets = policies.filter_map(|at| bucket(&at.value, &format!("{id}\n{name}"))).collect();
            access.push(permitted.then_some(Access { credential, own: own.is_some(), tap, buckets }));
        }
        let gate = before.map(|before| before.gate.clone());
        Client {
            id: id.as_str().into(),
            reveal_secrets: config.reveal_secrets,
            native: config.native,
            vary: vary(&access, config.explain),
            key_ends: config.keys.iter().map(|key| key.expires_at).collect(),
            explain: config.explain,
            gate: gate.unwrap_or_default(),
            buckets: config.rate_limits.iter().filter_map(|at| bucket(&at.value, id)).collect(),
            access,
        }
    }
}

impl Provider {
    /// The capacity its taps are made with: the first tap is its own credential's.
    fn capacity(&self) -> Option<Capacity> {
        self.known.get(&self.own.identity).and_then(|known| known.tap.capacity.clone())
    }

    /// What is known of a credential: by whom ever it was configured, here or in the snapshot before, it is one, and so
    /// are its token and its quota.
    fn know(&mut self, credential: Credential, capacity: Option<&Capacity>, before: Option<&Provider>) -> Known {
        let made = || {
            let old = before.and_then(|before| before.known.get(&credential.identity));
            let kept = old.map(|old| &old.tap).filter(|tap| tap.capacity.as_ref() == capacity);
            let tap = kept.cloned().unwrap_or_else(|| Arc::new(Tap::new(capacity.cloned())));
            Known { credential: old.map_or(&credential, |old| &old.credential).clone(), tap }
        };
        let known = self.known.entry(credential.identity.clone()).or_insert_with(made);
        Known { credential: credential.succeeding(&known.credential), tap: known.tap.clone() }
    }
}

fn vary(access: &[Option<Access>], explain: bool) -> HeaderValue {
    let mut names = VARY.to_owned();
    let brought = access.iter().flatten().filter_map(|access| access.credential.brought_in());
    for name in brought.map(HeaderName::as_str).chain(explain.then_some(EXPLAIN.name)) {
        if !names.split(", ").any(|known| known.eq_ignore_ascii_case(name)) {
            names += &format!(", {name}");
        }
    }
    HeaderValue::from_str(&names).unwrap_or(HeaderValue::from_static(VARY))
}

/// Over everything that decides what an entry's body becomes and how long it lives.
fn rules_digest(config: &provider::Provider) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!(
        "{:?}{:?}{:?}{:?}{:?}{:?}",
        config.name,
        config.ids.accept.agent,
        config.session,
        config.secrets,
        config.freshness,
        (&config.get_session, &config.list_sessions)
    )
    .hash(&mut hasher);
    hasher.finish()
}
