//! `weir.yaml` as written: listeners, admin, cache, rate-limit policies.
//!
//! A room of its own for the part that platform teams own. Nothing is compiled or bound here.

use super::decode::{self, Cx, Fields, Secret};
use super::edge::{self, Cors, Limits, Listener, Network};
use super::faults::{At, Place};
use super::tree::Node;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// The whole file.
#[derive(Debug, Clone)]
pub struct Weir {
    /// Where clients are listened to; at least one.
    pub listen: Vec<Listener>,
    /// Where the admin endpoints are.
    pub admin: Admin,
    /// Worker threads; 0 is one a core.
    pub workers: usize,
    /// How long requests in flight may take to end after SIGTERM.
    pub grace: Duration,
    /// Where a running process hands its sockets to the next.
    pub upgrade: HandOver,
    /// Where traces go.
    pub traces: Traces,
    /// What Weir says of itself.
    pub log: LogLevel,
    /// What is logged of requests.
    pub access_log: AccessLog,
    /// The cache's weighed size in bytes.
    pub max_bytes: u64,
    /// Bounds on what comes in.
    pub limits: Limits,
    /// Pages of which origins may read answers; `None`: of none.
    pub cors: Option<Cors>,
    /// Proxies before Weir, whose word on a client's address is taken.
    pub trusted_proxies: Vec<Network>,
    /// When to refuse work at once.
    pub overload: Overload,
    /// Signs page tokens; random at start where it is empty.
    pub page_token_key: Secret,
    /// Where some of it stands.
    pub places: Places,
    /// Policies that clients name.
    pub policies: Vec<Policy>,
}

/// Where the file begins, and those of its keys that are spoken of once all is read.
#[derive(Debug, Clone)]
pub struct Places {
    /// The file.
    pub file: Place,
    /// `page_tokens`
    pub page_tokens: Option<Place>,
    /// `limits`
    pub limits: Option<Place>,
    /// `cors`
    pub cors: Option<Place>,
    /// `trusted_proxies`
    pub trusted_proxies: Option<Place>,
}

/// How much Weir says of itself on stderr: of each, what is before it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Faults of its own.
    Error,
    /// What somebody should look at.
    Warn,
    /// What changes.
    Info,
    /// What is refused, and what changes nothing.
    Debug,
}

impl LogLevel {
    /// As written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

/// Where traces go, and how many.
#[derive(Debug, Clone)]
pub struct Traces {
    /// A collector's base URL; `None`: nothing is traced.
    pub endpoint: Option<At<String>>,
    /// The share of requests, from 0 to 1, that is sampled if nobody has decided before.
    pub sample: f64,
    /// What the collector is told besides.
    pub headers: Vec<(At<String>, Secret)>,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, sample: 0.01, headers: Vec::new() }
    }
}

/// Where a running process hands its sockets to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandOver {
    /// At a place made of the user and the configuration's directory.
    Default,
    /// Nowhere.
    Off,
    /// At this socket: a path, or `@NAME` for an abstract one.
    At(String),
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Its address.
    pub address: SocketAddr,
    /// Where that stands; `None` where it is the default.
    pub place: Option<Place>,
    /// Wanted as a bearer token by all but metrics and health; empty: none.
    pub token: Secret,
}

/// Bounds beyond which a request is refused at once instead of queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// Requests being answered at the same time.
    pub max_in_flight: u32,
    /// Requests waiting for one call to a provider.
    pub max_waiters: u32,
    /// Bytes of providers' answers being read at the same time.
    pub max_buffered: u64,
    /// Clients that watch a session at the same time.
    pub max_watchers: u32,
}

impl Default for Overload {
    fn default() -> Self {
        Self { max_in_flight: 20_000, max_waiters: 10_000, max_buffered: 512 << 20, max_watchers: 10_000 }
    }
}

/// How much of the access log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// Every request.
    On,
    /// None.
    Off,
    /// One request in so many, and every one that failed (5xx).
    Sample(u32),
}

/// A rate limit: a bucket of `burst` that refills at `requests` per `per`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Requests earned in `per`.
    pub requests: NonZeroU32,
    /// The time in which they are earned.
    pub per: Duration,
    /// How many may come at once.
    pub burst: NonZeroU32,
    /// What takes from it.
    pub charge: Charge,
}

/// Which requests take from a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// Every admitted request.
    All,
    /// Only those that the cache could not answer.
    Misses,
}

/// Reads the file's tree.
pub fn decode(root: &Node, cx: &mut Cx<'_>) -> Option<Weir> {
    let mut fields = Fields::of(root, "weir.yaml", cx)?;
    let listen = fields.required("listen", cx, |node, cx| decode::list(node, cx, edge::listener));
    let admin = fields.optional("admin", cx, admin);
    let workers = fields.optional("workers", cx, workers);
    let grace = fields.optional("shutdown", cx, |node, cx| {
        let mut fields = Fields::of(node, "shutdown", cx)?;
        let grace = fields.optional("grace", cx, decode::duration);
        fields.end(cx);
        grace
    });
    let upgrade = fields.optional("upgrade", cx, |node, cx| {
        let mut fields = Fields::of(node, "upgrade", cx)?;
        let socket = fields.optional("socket", cx, hand_over);
        fields.end(cx);
        socket
    });
    let traces = fields.optional("traces", cx, traces);
    let log = fields.optional("log", cx, |node, cx| {
        let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
        decode::one_of(node, cx, "level", &levels.map(|level| (level.as_str(), level)))
    });
    let access_log = fields.optional("access_log", cx, access_log);
    let max_bytes = fields.optional("cache", cx, |node, cx| {
        let mut fields = Fields::of(node, "cache", cx)?;
        let size = fields.optional("max_bytes", cx, decode::size);
        fields.end(cx);
        size
    });
    let limits = fields.optional("limits", cx, edge::limits);
    let cors = fields.optional("cors", cx, edge::cors);
    let trusted_proxies = fields.optional("trusted_proxies", cx, |node, cx| decode::list(node, cx, edge::network));
    let overload = fields.optional("overload", cx, overload);
    let page_token_key = fields.optional("page_tokens", cx, |node, cx| {
        let mut fields = Fields::of(node, "page_tokens", cx)?;
        let key = fields.optional("key", cx, decode::secret);
        fields.end(cx);
        key
    });
    let policies = fields.optional("rate_limits", cx, |node, cx| {
        decode::each(node, "rate_limits", &[], cx, |key, node, cx| policy(&key.name, &key.place, node, cx))
    });
    let mut place = |key| fields.node(key).map(|node| node.place.clone());
    let places = Places {
        page_tokens: place("page_tokens"),
        cors: place("cors"),
        trusted_proxies: place("trusted_proxies"),
        limits: place("limits"),
        file: root.place.clone(),
    };
    fields.end(cx);
    Some(Weir {
        places,
        listen: listen.unwrap_or_default(),
        admin: admin.unwrap_or_else(default_admin),
        workers: workers.unwrap_or(0),
        grace: grace.unwrap_or(Duration::from_secs(10)),
        upgrade: upgrade.unwrap_or(HandOver::Default),
        traces: traces.unwrap_or_default(),
        log: log.unwrap_or(LogLevel::Info),
        access_log: access_log.unwrap_or(AccessLog::On),
        max_bytes: max_bytes.unwrap_or(256 << 20),
        limits: limits.unwrap_or_default(),
        cors,
        trusted_proxies: trusted_proxies.unwrap_or_default(),
        overload: overload.unwrap_or_default(),
        page_token_key: page_token_key.unwrap_or(Secret(String::new())),
        policies: policies.unwrap_or_default(),
    })
}

/// A thread costs memory and switches; more than this is a slip of the finger.
fn workers(node: &Node, cx: &mut Cx<'_>) -> Option<usize> {
    let number = decode::whole(node, cx, 0)?;
    let workers = usize::try_from(number).ok().filter(|n| *n <= 1024);
    cx.faults.keep(
        &node.place,
        workers.ok_or_else(|| format!("{number} workers are too many; at most 1024, 0 for one per core")),
    )
}

fn traces(node: &Node, cx: &mut Cx<'_>) -> Option<Traces> {
    let mut fields = Fields::of(node, "traces", cx)?;
    let mut all = Traces::default();
    let endpoint = fields
        .optional("endpoint", cx, |node, cx| Some(At { value: decode::text(node, cx)?, place: node.place.clone() }));
    all.endpoint = endpoint.filter(|at| !at.value.is_empty());
    if let Some(sample) = fields.optional("sample", cx, decode::share) {
        all.sample = sample;
    }
    let headers = fields.optional("headers", cx, |node, cx| {
        decode::each(node, "headers", &[], cx, |key, node, cx| {
            Some((At { value: key.name.clone(), place: key.place.clone() }, decode::secret(node, cx)?))
        })
    });
    all.headers = headers.unwrap_or_default();
    fields.end(cx);
    Some(all)
}

/// `auto`, `off`, an absolute path, or `@NAME`. The system takes at most 107 bytes (unix(7)).
fn hand_over(node: &Node, cx: &mut Cx<'_>) -> Option<HandOver> {
    let right = "write auto, off, an absolute path, or @NAME for an abstract one, at most 107 bytes";
    let read = |text: &str| match text {
        "auto" => Ok(HandOver::Default),
        "off" => Ok(HandOver::Off),
        _ if (2..=107).contains(&text.len()) && text.starts_with(['/', '@']) => Ok(HandOver::At(text.to_owned())),
        _ => Err(format!("{text:?} is not a place for a socket; {right}")),
    };
    decode::shaped(node, cx, "^(auto|off|[/@].{1,106})$", read).map(|at| at.value)
}

fn overload(node: &Node, cx: &mut Cx<'_>) -> Option<Overload> {
    let mut fields = Fields::of(node, "overload", cx)?;
    let mut all = Overload::default();
    if let Some(most) = fields.optional("max_in_flight", cx, decode::positive) {
        all.max_in_flight = most.get();
    }
    if let Some(most) = fields.optional("max_waiters", cx, decode::positive) {
        all.max_waiters = most.get();
    }
    if let Some(most) = fields.optional("max_watchers", cx, decode::positive) {
        all.max_watchers = most.get();
    }
    if let Some(most) = fields.optional("max_buffered", cx, decode::size) {
        all.max_buffered = most;
    }
    fields.end(cx);
    Some(all)
}

fn default_admin() -> Admin {
    let address = SocketAddr::from(([127, 0, 0, 1], 8081));
    Admin { address, place: None, token: Secret(String::new()) }
}

fn admin(node: &Node, cx: &mut Cx<'_>) -> Option<Admin> {
    let mut fields = Fields::of(node, "admin", cx)?;
    let address = fields.required("address", cx, edge::address);
    let token = fields.optional("token", cx, decode::secret).unwrap_or(Secret(String::new()));
    fields.end(cx);
    let address = address?;
    if !address.value.ip().is_loopback() && token.0.is_empty() {
        cx.faults.add(
            &address.place,
            format!("admin listens on {}, which is not loopback; set admin.token too", address.value),
        );
    }
    Some(Admin { address: address.value, place: Some(address.place), token })
}

fn access_log(node: &Node, cx: &mut Cx<'_>) -> Option<AccessLog> {
    let sampled = |node: &Node, cx: &mut Cx<'_>| {
        let mut fields = Fields::of(node, "access_log", cx)?;
        let sample = fields.required("sample", cx, decode::positive);
        fields.end(cx);
        sample.map(|n| AccessLog::Sample(n.get()))
    };
    decode::either(node, cx, sampled, |node, cx| {
        decode::boolean(node, cx).map(|on| if on { AccessLog::On } else { AccessLog::Off })
    })
}

fn policy(name: &str, place: &Place, node: &Node, cx: &mut Cx<'_>) -> Option<Policy> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        cx.faults.add(place, format!("{name:?} is not a policy's name; use letters, digits, - and _"));
    }
    let mut fields = Fields::of(node, "a rate limit", cx)?;
    let requests = fields.required("requests", cx, decode::positive);
    let per = fields.required("per", cx, decode::positive_duration);
    let burst = fields.optional("burst", cx, decode::positive);
    let charge = fields.optional("charge", cx, |node, cx| {
        decode::one_of(node, cx, "way to charge", &[("all", Charge::All), ("misses", Charge::Misses)])
    });
    fields.end(cx);
    let (requests, per) = (requests?, per?);
    let burst = decode::burst(place, requests, per, burst.unwrap_or(requests), cx);
    Some(Policy {
        name: name.to_owned(),
        place: place.clone(),
        requests,
        per,
        burst,
        charge: charge.unwrap_or(Charge::All),
    })
}
