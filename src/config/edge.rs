//! What stands between the network and the first request, as written: listeners, limits, origins, proxies.

use super::decode::{self, Cx, Fields, Secret};
use super::faults::{At, Place};
use super::tree::Node;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

/// Where clients come.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// TLS, if it speaks it.
    pub tls: Option<Tls>,
    /// HTTP/2 by prior knowledge, without TLS (RFC 9113, section 3.3).
    pub h2c: bool,
    /// Where it stands.
    pub place: Place,
}

/// What a listener asks of who connects; more is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// Nothing: what is said can be read on the way.
    Plain,
    /// TLS.
    Tls,
    /// TLS, and a certificate of the client's.
    Certified,
}

impl Listener {
    /// What it asks of who connects.
    #[must_use]
    pub fn guard(&self) -> Guard {
        match &self.tls {
            None => Guard::Plain,
            Some(Tls { client_ca: None, .. }) => Guard::Tls,
            Some(_) => Guard::Certified,
        }
    }
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The chain, leaf first.
    pub certificate: At<String>,
    /// The leaf's private key.
    pub key: At<Secret>,
    /// Who must have signed clients' certificates; `None`: they need none.
    pub client_ca: Option<At<String>>,
}

/// Bounds on what comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at the same time.
    pub connections: usize,
    /// Of these, from one address.
    pub connections_per_address: usize,
    /// Requests on one connection.
    pub requests_per_connection: u32,
    /// How long a connection may wait for its first, or its next, request.
    pub idle_timeout: Duration,
    /// From a request's first byte to the end of its header; and for a TLS handshake.
    pub header_timeout: Duration,
    /// How long a client may take to read a part of its answer, or to send a part of its body.
    pub stall_timeout: Duration,
    /// How long a client may take to send all of a body that is passed on.
    pub body_timeout: Duration,
    /// Bytes of header fields.
    pub header_bytes: usize,
    /// Header fields.
    pub header_count: usize,
    /// Bytes of path and query.
    pub url_bytes: usize,
    /// Bytes of a body that no route wants.
    pub body_bytes: u64,
    /// Streams at the same time on one HTTP/2 connection.
    pub h2_streams: u32,
    /// Streams that a client resets before they are taken up, or makes us reset, before it loses its connection.
    pub h2_resets: u32,
    /// Bytes of an HTTP/2 request's header list, as its RFC counts.
    pub h2_header_list: usize,
    /// Failed authentications from one address.
    pub auth_failures: Option<Failures>,
}

/// Failed authentications: a bucket that refills at `requests` per `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    /// Failures earned in `per`.
    pub requests: NonZeroU32,
    /// The time in which they are earned.
    pub per: Duration,
    /// How many may come at once.
    pub burst: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        const MANY: NonZeroU32 = NonZeroU32::new(120).unwrap();
        Self {
            connections: 20_000,
            connections_per_address: 5_000,
            requests_per_connection: 100_000,
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(120),
            header_bytes: 64 << 10,
            header_count: 100,
            url_bytes: 8 << 10,
            body_bytes: 64 << 10,
            h2_streams: 100,
            h2_resets: 20,
            h2_header_list: 80 << 10,
            auth_failures: Some(Failures { requests: MANY, per: Duration::from_secs(60), burst: MANY }),
        }
    }
}

/// Pages of which origins may read answers (CORS).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// `scheme://host[:port]`, or `*` for any.
    pub origins: Vec<String>,
    /// How long a browser may remember that it asked.
    pub max_age: Duration,
}

/// Addresses by their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub address: IpAddr,
    /// How many bits count.
    pub bits: u8,
}

impl Network {
    /// Whether an address is one of it.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let shift = |width: u32| width - u32::from(self.bits);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (u128::from(own) ^ u128::from(other)).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// An address as it is counted: a host has a whole /64 of IPv6 to itself.
#[must_use]
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// An IP address and a port.
pub(super) fn address(node: &Node, cx: &mut Cx<'_>) -> Option<At<SocketAddr>> {
    let right = "write an IP address and a port, as in 127.0.0.1:8080 or [::]:8080";
    decode::shaped(node, cx, r"^[0-9A-Fa-f.:\[\]%]+:[0-9]{1,5}$", |text| {
        text.parse().map_err(|_| format!("{text:?} is not an address; {right}"))
    })
}

pub(super) fn listener(node: &Node, cx: &mut Cx<'_>) -> Option<Listener> {
    let mut fields = Fields::of(node, "a listener", cx)?;
    let address = fields.required("address", cx, address);
    let tls = fields.optional("tls", cx, tls);
    let h2c = fields.optional("h2c", cx, decode::boolean).unwrap_or(false);
    let written = fields.node("tls").is_some();
    if h2c && written {
        cx.faults.add(fields.place(), "h2c is HTTP/2 without TLS; with TLS, HTTP/2 is offered anyway: leave h2c out");
    }
    fields.end(cx);
    // With a fault in its TLS it is no listener without TLS.
    if written && tls.is_none() {
        return None;
    }
    address.map(|at| Listener { address: at.value, tls, h2c, place: at.place })
}

fn tls(node: &Node, cx: &mut Cx<'_>) -> Option<Tls> {
    let mut fields = Fields::of(node, "tls", cx)?;
    let certificate = fields.required("certificate", cx, file);
    let key = fields.required("key", cx, file);
    let client_ca = fields.optional("client_ca", cx, file);
    let wants = fields.node("client_ca").is_some();
    fields.end(cx);
    let key = key.map(|at| At { value: Secret(at.value), place: at.place });
    // With a fault in whom it trusts it trusts nobody, rather than everybody.
    if wants && client_ca.is_none() {
        return None;
    }
    Some(Tls { certificate: certificate?, key: key?, client_ca })
}

/// The text of a file that is named here.
fn file(node: &Node, cx: &mut Cx<'_>) -> Option<At<String>> {
    let path = decode::at_text(node, cx)?;
    let read = (cx.read_file)(&path.value).map_err(|e| format!("the file {:?} cannot be read: {e}", path.value));
    cx.faults.keep(&path.place, read).map(|value| At { value, place: path.place })
}

pub(super) fn limits(node: &Node, cx: &mut Cx<'_>) -> Option<Limits> {
    let mut fields = Fields::of(node, "limits", cx)?;
    let mut all = Limits::default();
    let count = |node: &Node, cx: &mut Cx<'_>| decode::positive(node, cx).map(|n| n.get() as usize);
    let bytes = |node: &Node, cx: &mut Cx<'_>| decode::size(node, cx).and_then(|size| usize::try_from(size).ok());
    for (name, value) in [
        ("connections", &mut all.connections),
        ("connections_per_address", &mut all.connections_per_address),
        ("header_count", &mut all.header_count),
    ] {
        set(value, fields.optional(name, cx, count));
    }
    for (name, value) in [
        ("header_bytes", &mut all.header_bytes),
        ("url_bytes", &mut all.url_bytes),
        ("h2_header_list", &mut all.h2_header_list),
    ] {
        set(value, fields.optional(name, cx, bytes));
    }
    for (name, value) in [
        ("idle_timeout", &mut all.idle_timeout),
        ("header_timeout", &mut all.header_timeout),
        ("stall_timeout", &mut all.stall_timeout),
        ("body_timeout", &mut all.body_timeout),
    ] {
        set(value, fields.optional(name, cx, decode::positive_duration));
    }
    let number = |node: &Node, cx: &mut Cx<'_>| decode::positive(node, cx).map(NonZeroU32::get);
    set(&mut all.requests_per_connection, fields.optional("requests_per_connection", cx, number));
    set(&mut all.h2_streams, fields.optional("h2_streams", cx, number));
    set(&mut all.h2_resets, fields.optional("h2_resets", cx, number));
    set(&mut all.body_bytes, fields.optional("body_bytes", cx, decode::size));
    set(&mut all.auth_failures, fields.optional("auth_failures", cx, failures));
    let place = fields.place().clone();
    fields.end(cx);
    within_pingora(&all, &place, cx);
    Some(all)
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// Pingora's own bounds lie above these, and its answers are not ours.
fn within_pingora(limits: &Limits, place: &Place, cx: &mut Cx<'_>) {
    if limits.header_count > 200 {
        cx.faults.add(place, "header_count may be 200 at most");
    }
    if limits.h2_header_list > 1 << 20 {
        cx.faults.add(place, "h2_header_list may be 1 MiB at most");
    }
    if limits.header_bytes + limits.url_bytes > 512 << 10 {
        cx.faults.add(place, "header_bytes and url_bytes may be 512 KiB together at most");
    }
}

/// `off`, or a bucket.
fn failures(node: &Node, cx: &mut Cx<'_>) -> Option<Option<Failures>> {
    let bucket = |node: &Node, cx: &mut Cx<'_>| {
        let mut fields = Fields::of(node, "auth_failures", cx)?;
        let requests = fields.required("requests", cx, decode::positive);
        let per = fields.required("per", cx, decode::positive_duration);
        let burst = fields.optional("burst", cx, decode::positive);
        fields.end(cx);
        let (requests, per) = (requests?, per?);
        let burst = decode::burst(&node.place, requests, per, burst.unwrap_or(requests), cx);
        Some(Some(Failures { requests, per, burst }))
    };
    decode::either(node, cx, bucket, |node, cx| match decode::boolean(node, cx)? {
        false => Some(None),
        true => {
            cx.faults.add(&node.place, "auth_failures is off, or { requests: N, per: DURATION, burst: N }");
            None
        }
    })
}

pub(super) fn cors(node: &Node, cx: &mut Cx<'_>) -> Option<Cors> {
    let mut fields = Fields::of(node, "cors", cx)?;
    let origins = fields.required("origins", cx, |node, cx| decode::list(node, cx, origin));
    let max_age = fields.optional("max_age", cx, decode::duration);
    fields.end(cx);
    Some(Cors { origins: origins?, max_age: max_age.unwrap_or(Duration::from_secs(600)) })
}

/// As a browser sends it in `Origin`.
fn origin(node: &Node, cx: &mut Cx<'_>) -> Option<String> {
    let at = decode::at_text(node, cx)?;
    let origin = at.value.to_ascii_lowercase();
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let plain =
        |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b));
    if origin != "*" && !host.is_some_and(plain) {
        let right = "write SCHEME://HOST[:PORT] without a path, as in https://app.example, or *";
        cx.faults.add(&at.place, format!("{:?} is not an origin; {right}", at.value));
        return None;
    }
    Some(origin)
}

/// `ADDRESS` or `ADDRESS/BITS`.
pub(super) fn network(node: &Node, cx: &mut Cx<'_>) -> Option<Network> {
    let at = decode::at_text(node, cx)?;
    let (address, bits) = at.value.split_once('/').map_or((&*at.value, None), |(address, bits)| (address, Some(bits)));
    let read = address.parse::<IpAddr>().ok().and_then(|address| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok()).filter(|bits| *bits <= most)?;
        Some(Network { address, bits })
    });
    let right = || format!("{:?} is not a network; write ADDRESS or ADDRESS/BITS, as in 10.0.0.0/8", at.value);
    cx.faults.keep(&at.place, read.ok_or_else(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let holds = |network: &str, bits: u8, address: &str| {
            Network { address: network.parse().unwrap(), bits }.holds(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0", 8, "10.255.1.2") && !holds("10.0.0.0", 8, "11.0.0.0"));
        assert!(
            holds("0.0.0.0", 0, "1.2.3.4")
                && holds("127.0.0.1", 32, "127.0.0.1")
                && !holds("127.0.0.1", 32, "127.0.0.2")
        );
        assert!(holds("2001:db8::", 32, "2001:db8:1::1") && !holds("2001:db8::", 32, "2001:db9::"));
        assert!(holds("::", 0, "::1") && !holds("::", 0, "1.2.3.4"));
        assert!(holds("10.0.0.0", 8, "::ffff:10.1.1.1"), "an IPv4 address in IPv6's dress");
    }
}
