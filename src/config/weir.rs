//! Decodes `weir.yaml`: listeners, the admin listener, cache, limits and rate-limit policies.
//!
//! It compiles nothing and opens no socket.

use super::compression::{self, Compression};
use super::decode::{self, DecodeContext, Fields, Secret};
use super::edge::{self, Cors, Limits, Listener, Network};
use super::faults::{Located, Location};
use super::tree::Node;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// The whole file.
#[derive(Debug, Clone)]
pub struct Weir {
    /// The listeners for clients; at least one.
    pub listen: Vec<Listener>,
    /// The listener for the admin endpoints.
    pub admin: Admin,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
    /// The time limit for requests in flight after SIGTERM.
    pub grace: Duration,
    /// The socket over which a running process gives its listeners to its successor.
    pub upgrade: UpgradeSocket,
    /// Where spans are sent.
    pub traces: Traces,
    /// The level of the log.
    pub log: LogLevel,
    /// The requests that are logged.
    pub access_log: AccessLog,
    /// The limit of the cache's weighed size, in bytes.
    pub max_bytes: u64,
    /// What is compressed; `None` disables compression.
    pub compression: Option<Compression>,
    /// Limits for what clients send.
    pub limits: Limits,
    /// The origins whose pages may read responses; `None` disables CORS.
    pub cors: Option<Cors>,
    /// The networks of proxies in front of Weir, whose `Forwarded` and `X-Forwarded-For` Weir trusts.
    pub trusted_proxies: Vec<Network>,
    /// Limits above which Weir refuses requests at once.
    pub overload: Overload,
    /// The key that signs page tokens. If it is empty, Weir makes a random one at start.
    pub page_token_key: Secret,
    /// The locations of some keys.
    pub locations: Locations,
    /// The rate-limit policies that clients refer to.
    pub policies: Vec<Policy>,
    /// What is written in the file, whether or not it has faults.
    pub written: Written,
}

/// What is written in the file. Rules about missing and unknown things must not count what is written and has a fault.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// The names of all policies.
    pub policies: Vec<String>,
    /// The number of listeners.
    pub listeners: usize,
    /// Whether there is a section `admin`.
    pub admin: bool,
}

/// The locations of keys about which `weir check --strict` can warn.
#[derive(Debug, Clone)]
pub struct Locations {
    /// The beginning of the file.
    pub file: Location,
    /// `page_tokens`
    pub page_tokens: Option<Location>,
    /// `limits`
    pub limits: Option<Location>,
    /// `cors`
    pub cors: Option<Location>,
    /// `trusted_proxies`
    pub trusted_proxies: Option<Location>,
}

/// The level of the log on stderr. Each level includes the levels before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Internal errors.
    Error,
    /// Events that an operator should look at.
    Warn,
    /// Changes of state, such as start, reload and shutdown.
    Info,
    /// Refused requests and events that change nothing.
    Debug,
}

impl LogLevel {
    /// Returns the level as it is written in the file.
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

/// The default of `traces.requested`.
const REQUESTED_TRACES: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Which requests are traced, and where their spans are sent.
#[derive(Debug, Clone)]
pub struct Traces {
    /// The base URL of a collector; `None` disables traces.
    pub endpoint: Option<Located<String>>,
    /// The share, from 0 to 1, of the requests without a sampling decision in `traceparent` that is sampled.
    pub sample: f64,
    /// How many requests of each client a second are sampled because their `traceparent` says so.
    pub requested: NonZeroU32,
    /// Headers for the collector.
    pub headers: Vec<(Located<String>, Secret)>,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, sample: 0.01, requested: REQUESTED_TRACES, headers: Vec::new() }
    }
}

/// The socket over which a running process gives its listeners to its successor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeSocket {
    /// An abstract socket, named after the user and the configuration directory.
    Auto,
    /// No socket: upgrades are disabled.
    Off,
    /// This socket: a path, or `@NAME` for an abstract socket.
    Named(String),
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The address.
    pub address: SocketAddr,
    /// The location of the address; `None` if it is the default.
    pub location: Option<Location>,
    /// The bearer token for all endpoints except metrics and health; empty if none is needed.
    pub token: Secret,
    /// Further host names of the listener, in lower case.
    pub hosts: Vec<String>,
}

/// Limits above which Weir refuses a request at once instead of queueing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// Requests in flight at the same time; also provider calls in flight at the same time.
    pub max_in_flight: u32,
    /// Requests that wait for the same provider call.
    pub max_waiters: u32,
    /// Bytes that are held on behalf of clients at the same time.
    pub max_buffered: u64,
    /// Clients that watch a session at the same time.
    pub max_watchers: u32,
}

impl Default for Overload {
    fn default() -> Self {
        Self { max_in_flight: 20_000, max_waiters: 10_000, max_buffered: 512 << 20, max_watchers: 10_000 }
    }
}

/// The requests that the access log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// All requests.
    On,
    /// No requests.
    Off,
    /// One request in this many, and every 5xx.
    Sample(u32),
}

/// A rate-limit policy: a bucket of `burst` tokens that refills with `requests` tokens in `per`.
///
/// A reload keeps the buckets of a policy that is equal to the one before, so this type holds no location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The name.
    pub name: String,
    /// Tokens that the bucket gets in `per`.
    pub requests: NonZeroU32,
    /// The time in which the bucket gets `requests` tokens.
    pub per: Duration,
    /// The size of the bucket.
    pub burst: NonZeroU32,
    /// The requests that take from the bucket.
    pub charge: Charge,
}

/// The requests that take from a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// All admitted requests.
    All,
    /// Only requests that the cache cannot serve.
    Misses,
}

/// Decodes the file.
pub fn decode(root: &Node, cx: &mut DecodeContext<'_>) -> Option<Weir> {
    let mut fields = Fields::of(root, "weir.yaml", cx)?;
    let mut written = Written { admin: fields.is_written("admin"), ..Written::default() };
    let listen = fields.required("listen", cx, |node, cx| {
        decode::list(node, cx, |node, cx| {
            written.listeners += 1;
            edge::listener(node, cx)
        })
    });
    let admin = fields.optional("admin", cx, admin);
    let workers = fields.optional("workers", cx, workers);
    let grace = section_with_one_key(&mut fields, "shutdown", "grace", cx, decode::duration);
    let upgrade = section_with_one_key(&mut fields, "upgrade", "socket", cx, upgrade_socket);
    let traces = fields.optional("traces", cx, traces);
    let log = fields.optional("log", cx, log_level);
    let access_log = fields.optional("access_log", cx, access_log);
    let max_bytes = section_with_one_key(&mut fields, "cache", "max_bytes", cx, decode::size);
    let compression = fields.optional("compression", cx, compression::compression);
    let limits = fields.optional("limits", cx, edge::limits);
    let cors = fields.optional("cors", cx, edge::cors);
    let trusted_proxies = fields.optional("trusted_proxies", cx, |node, cx| decode::list(node, cx, edge::network));
    let overload = fields.optional("overload", cx, overload);
    let page_token_key = section_with_one_key(&mut fields, "page_tokens", "key", cx, decode::secret);
    let policies = fields.optional("rate_limits", cx, |node, cx| {
        decode::entries(node, "rate_limits", &[], cx, |key, node, cx| {
            written.policies.push(key.name.clone());
            policy(&key.name, &key.location, node, cx)
        })
    });
    let locations = locations(root, &mut fields);
    fields.end(cx);
    Some(Weir {
        locations,
        listen: listen.unwrap_or_default(),
        admin: admin.unwrap_or_else(default_admin),
        workers: workers.unwrap_or(0),
        grace: grace.unwrap_or(Duration::from_secs(10)),
        upgrade: upgrade.unwrap_or(UpgradeSocket::Auto),
        traces: traces.unwrap_or_default(),
        log: log.unwrap_or(LogLevel::Info),
        access_log: access_log.unwrap_or(AccessLog::On),
        max_bytes: max_bytes.unwrap_or(256 << 20),
        compression: compression.unwrap_or_else(|| Some(Compression::default())),
        limits: limits.unwrap_or_default(),
        cors,
        trusted_proxies: trusted_proxies.unwrap_or_default(),
        overload: overload.unwrap_or_default(),
        page_token_key: page_token_key.unwrap_or(Secret(String::new())),
        policies: policies.unwrap_or_default(),
        written,
    })
}

/// Reads a section that has only one key.
fn section_with_one_key<'n, T>(
    fields: &mut Fields<'n>,
    section: &'static str,
    key: &'static str,
    cx: &mut DecodeContext<'_>,
    read: impl FnOnce(&'n Node, &mut DecodeContext<'_>) -> Option<T>,
) -> Option<T> {
    fields.optional(section, cx, |node, cx| {
        let mut fields = Fields::of(node, section, cx)?;
        let value = fields.optional(key, cx, read);
        fields.end(cx);
        value
    })
}

fn log_level(node: &Node, cx: &mut DecodeContext<'_>) -> Option<LogLevel> {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
    decode::one_of(node, cx, "log level", &levels.map(|level| (level.as_str(), level)))
}

fn locations(root: &Node, fields: &mut Fields<'_>) -> Locations {
    let mut location = |key| fields.node(key).map(|node| node.location.clone());
    Locations {
        page_tokens: location("page_tokens"),
        cors: location("cors"),
        trusted_proxies: location("trusted_proxies"),
        limits: location("limits"),
        file: root.location.clone(),
    }
}

/// Reads the number of threads. More than 1024 is taken for a typo.
fn workers(node: &Node, cx: &mut DecodeContext<'_>) -> Option<usize> {
    let number = decode::integer(node, cx, 0)?;
    let workers = usize::try_from(number).ok().filter(|n| *n <= 1024);
    cx.faults.keep(
        &node.location,
        workers.ok_or_else(|| format!("{number} workers are too many; at most 1024, or 0 for one per core")),
    )
}

fn traces(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Traces> {
    let mut fields = Fields::of(node, "traces", cx)?;
    let mut all = Traces::default();
    let endpoint = fields.optional("endpoint", cx, |node, cx| {
        Some(Located { value: decode::text(node, cx)?, location: node.location.clone() })
    });
    all.endpoint = endpoint.filter(|at| !at.value.is_empty());
    if let Some(sample) = fields.optional("sample", cx, decode::fraction) {
        all.sample = sample;
    }
    if let Some(requested) = fields.optional("requested", cx, decode::positive_integer) {
        all.requested = requested;
    }
    let headers = fields.optional("headers", cx, |node, cx| {
        decode::entries(node, "headers", &[], cx, |key, node, cx| {
            Some((Located { value: key.name.clone(), location: key.location.clone() }, decode::secret(node, cx)?))
        })
    });
    all.headers = headers.unwrap_or_default();
    fields.end(cx);
    Some(all)
}

/// Reads `auto`, `off`, an absolute path, or `@NAME`. The name of a socket has at most 107 bytes (unix(7)).
fn upgrade_socket(node: &Node, cx: &mut DecodeContext<'_>) -> Option<UpgradeSocket> {
    let expected = "write auto, off, an absolute path, or @NAME for an abstract socket, at most 107 bytes";
    let read = |text: &str| match text {
        "auto" => Ok(UpgradeSocket::Auto),
        "off" => Ok(UpgradeSocket::Off),
        _ if (2..=107).contains(&text.len()) && text.starts_with(['/', '@']) => {
            Ok(UpgradeSocket::Named(text.to_owned()))
        }
        _ => Err(format!("{text:?} is not a valid socket; {expected}")),
    };
    decode::parsed_text(node, cx, "^(auto|off|[/@].{1,106})$", read).map(|at| at.value)
}

fn overload(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Overload> {
    let mut fields = Fields::of(node, "overload", cx)?;
    let mut all = Overload::default();
    if let Some(limit) = fields.optional("max_in_flight", cx, decode::positive_integer) {
        all.max_in_flight = limit.get();
    }
    if let Some(limit) = fields.optional("max_waiters", cx, decode::positive_integer) {
        all.max_waiters = limit.get();
    }
    if let Some(limit) = fields.optional("max_watchers", cx, decode::positive_integer) {
        all.max_watchers = limit.get();
    }
    if let Some(limit) = fields.optional("max_buffered", cx, decode::size) {
        all.max_buffered = limit;
    }
    fields.end(cx);
    Some(all)
}

/// Reads only `admin.address`; `None` if it is not written.
pub(crate) fn admin_address(root: &Node, cx: &mut DecodeContext<'_>) -> Option<SocketAddr> {
    let address = Fields::of(root, "weir.yaml", cx)?
        .optional("admin", cx, |node, cx| Fields::of(node, "admin", cx)?.optional("address", cx, edge::address));
    address.map(|at| at.value)
}

/// Reads only `admin.token`; `None` if it is not written.
pub(crate) fn admin_token(root: &Node, cx: &mut DecodeContext<'_>) -> Option<Secret> {
    Fields::of(root, "weir.yaml", cx)?
        .optional("admin", cx, |node, cx| Fields::of(node, "admin", cx)?.optional("token", cx, decode::secret))
}

/// The address of the admin listener if none is written.
pub(crate) fn default_admin_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8081))
}

fn default_admin() -> Admin {
    let address = default_admin_address();
    Admin { address, location: None, token: Secret(String::new()), hosts: Vec::new() }
}

fn admin(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Admin> {
    let mut fields = Fields::of(node, "admin", cx)?;
    let address = fields.required("address", cx, edge::address);
    let token = fields.optional("token", cx, decode::secret);
    let lacks_token = token.as_ref().is_none_or(|token| token.0.is_empty());
    let has_faulty_token = token.is_none() && fields.is_written("token");
    let token = token.unwrap_or(Secret(String::new()));
    let hosts = fields.optional("hosts", cx, |node, cx| decode::list(node, cx, host_name)).unwrap_or_default();
    fields.end(cx);
    let address = address?;
    if !address.value.ip().is_loopback() && lacks_token && !has_faulty_token {
        cx.faults.add(
            &address.location,
            format!("admin.address {} is not a loopback address; set admin.token", address.value),
        );
    }
    Some(Admin { address: address.value, location: Some(address.location), token, hosts })
}

/// Reads a host name, and returns it in lower case.
fn host_name(node: &Node, cx: &mut DecodeContext<'_>) -> Option<String> {
    decode::parsed_text(node, cx, r"^[0-9A-Za-z._-]{1,253}$", |text| {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let expected = "write a host name without a port, such as weir.example";
        if valid { Ok(name) } else { Err(format!("{text:?} is not a valid host name; {expected}")) }
    })
    .map(|at| at.value)
}

fn access_log(node: &Node, cx: &mut DecodeContext<'_>) -> Option<AccessLog> {
    let sampled = |node: &Node, cx: &mut DecodeContext<'_>| {
        let mut fields = Fields::of(node, "access_log", cx)?;
        let sample = fields.required("sample", cx, decode::positive_integer);
        fields.end(cx);
        sample.map(|n| AccessLog::Sample(n.get()))
    };
    decode::mapping_or(node, cx, sampled, |node, cx| {
        decode::boolean(node, cx).map(|on| if on { AccessLog::On } else { AccessLog::Off })
    })
}

fn policy(name: &str, location: &Location, node: &Node, cx: &mut DecodeContext<'_>) -> Option<Policy> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        cx.faults.add(location, format!("{name:?} is not a valid name of a rate limit; use letters, digits, - and _"));
    }
    let mut fields = Fields::of(node, "a rate limit", cx)?;
    let requests = fields.required("requests", cx, decode::positive_integer);
    let per = fields.required("per", cx, decode::positive_duration);
    let burst = fields.optional("burst", cx, decode::positive_integer);
    let charge = fields.optional("charge", cx, |node, cx| {
        decode::one_of(node, cx, "charge", &[("all", Charge::All), ("misses", Charge::Misses)])
    });
    fields.end(cx);
    let (requests, per) = (requests?, per?);
    let burst = decode::checked_burst(location, requests, per, burst.unwrap_or(requests), cx);
    Some(Policy { name: name.to_owned(), requests, per, burst, charge: charge.unwrap_or(Charge::All) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::edge::Failures;
    use crate::config::upstream::{BreakerConfig, Capacity};

    /// Checks that two settings which differ in one field are not equal. The pattern names every field, so that a new
    /// one does not compile before it is changed here too.
    macro_rules! differs_by_every_field {
        ($of:expr, $kind:ident { $($field:ident: $other:expr),+ }) => {
            let one: $kind = $of;
            let $kind { $($field: _),+ } = one.clone();
            assert_eq!(one, one.clone());
            $(assert_ne!($kind { $field: $other, ..one.clone() }, one, stringify!($field));)+
        };
    }

    /// Rate limits, quotas, breakers and counters of failures are kept over a reload while their settings are equal.
    #[test]
    fn settings_with_state_differ_when_any_field_differs() {
        let (one, two) = (NonZeroU32::MIN, NonZeroU32::MAX);
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(2));
        let policy = Policy { name: "a".into(), requests: one, per: short, burst: one, charge: Charge::All };
        differs_by_every_field!(
            policy,
            Policy { name: "b".into(), requests: two, per: long, burst: two, charge: Charge::Misses }
        );
        let capacity = Capacity { requests: one, per: short, burst: one, concurrent: 1 };
        differs_by_every_field!(capacity, Capacity { requests: two, per: long, burst: two, concurrent: 2 });
        let breaker = BreakerConfig { failures: one, open_for: short };
        differs_by_every_field!(breaker, BreakerConfig { failures: two, open_for: long });
        let failures = Failures { requests: one, per: short, burst: one };
        differs_by_every_field!(failures, Failures { requests: two, per: long, burst: two });
    }
}
