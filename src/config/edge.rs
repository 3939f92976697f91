//! Decodes the parts of `weir.yaml` about clients' connections: listeners, limits, CORS origins, trusted proxies.

use super::decode::{self, DecodeContext, Fields, Secret};
use super::faults::{Located, Location};
use super::tree::Node;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

/// A listener for clients.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// The certificate; `None` disables TLS.
    pub tls: Option<Tls>,
    /// Whether it also accepts HTTP/2 without TLS, by prior knowledge (RFC 9113, section 3.3).
    pub h2c: bool,
    /// The location of the address.
    pub location: Location,
}

/// What a listener requires of a connection. The stricter one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// Nothing.
    Plain,
    /// TLS.
    Tls,
    /// TLS and a client certificate.
    Certified,
}

impl Listener {
    /// Returns what it requires of a connection.
    #[must_use]
    pub fn guard(&self) -> Guard {
        match &self.tls {
            None => Guard::Plain,
            Some(Tls { client_ca: None, .. }) => Guard::Tls,
            Some(_) => Guard::Certified,
        }
    }
}

/// A certificate and its private key, as PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate chain, leaf first.
    pub certificate: Located<String>,
    /// The private key of the leaf.
    pub key: Located<Secret>,
    /// The authorities that sign client certificates; `None` if clients need no certificate.
    pub client_ca: Option<Located<String>>,
}

/// Limits for what clients send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at the same time.
    pub connections: usize,
    /// Connections open at the same time from one address.
    pub connections_per_address: usize,
    /// Requests on one connection.
    pub requests_per_connection: u32,
    /// The time that a connection waits for its first or its next request.
    pub idle_timeout: Duration,
    /// The time from the first byte of a request to the end of its header, and the time for a TLS handshake.
    pub header_timeout: Duration,
    /// The limit for a client to read the next part of a response, or to send the next part of a body.
    pub stall_timeout: Duration,
    /// The limit for a client to send the whole body of a forwarded request.
    pub body_timeout: Duration,
    /// Bytes of header fields.
    pub header_bytes: usize,
    /// Number of header fields.
    pub header_count: usize,
    /// Bytes of path and query.
    pub url_bytes: usize,
    /// Bytes of the body of a request that is not forwarded.
    pub body_bytes: u64,
    /// Streams open at the same time on one HTTP/2 connection.
    pub h2_streams: u32,
    /// Streams that a client resets before Weir accepts them, or makes Weir reset, on one HTTP/2 connection.
    pub h2_resets: u32,
    /// Bytes of the header list of an HTTP/2 request, counted as in RFC 9113, section 6.5.2.
    pub h2_header_list: usize,
    /// Failed authentications from one address; `None` if they are not limited.
    pub auth_failures: Option<Failures>,
}

/// The limit of failed authentications: a bucket of `burst` tokens that refills with `requests` tokens in `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    /// Tokens that the bucket gets in `per`.
    pub requests: NonZeroU32,
    /// The time in which the bucket gets `requests` tokens.
    pub per: Duration,
    /// The size of the bucket.
    pub burst: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        const FAILURES: NonZeroU32 = NonZeroU32::new(120).unwrap();
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
            body_bytes: 256 << 10,
            h2_streams: 100,
            h2_resets: 20,
            h2_header_list: 80 << 10,
            auth_failures: Some(Failures { requests: FAILURES, per: Duration::from_secs(60), burst: FAILURES }),
        }
    }
}

/// The origins whose pages may read responses (CORS).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// `scheme://host[:port]`, or `*` for any origin.
    pub origins: Vec<String>,
    /// The time for which a browser caches a preflight response.
    pub max_age: Duration,
}

/// A network: all addresses with the same first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl Network {
    /// Returns whether the network contains an address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

/// Returns the address under which a client is counted: for IPv6 its /64 network, because one host can use all of it.
#[must_use]
pub(crate) fn counted_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Reads an IP address and a port.
pub(super) fn address(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<SocketAddr>> {
    let expected = "write an IP address and a port, such as 127.0.0.1:8080 or [::]:8080";
    decode::parsed_text(node, cx, r"^[0-9A-Fa-f.:\[\]%]+:[0-9]{1,5}$", |text| {
        text.parse().map_err(|_| format!("{text:?} is not a valid address; {expected}"))
    })
}

pub(super) fn listener(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Listener> {
    let mut fields = Fields::of(node, "a listener", cx)?;
    let address = fields.required("address", cx, address);
    let tls = fields.optional("tls", cx, tls);
    let h2c = fields.optional("h2c", cx, decode::boolean).unwrap_or(false);
    let written = fields.node("tls").is_some();
    if h2c && written {
        cx.faults.add(
            fields.location(),
            "h2c is HTTP/2 without TLS, and this listener has tls; remove h2c (with TLS, HTTP/2 is always on)",
        );
    }
    fields.end(cx);
    // A fault in tls must not make a listener without TLS.
    if written && tls.is_none() {
        return None;
    }
    address.map(|at| Listener { address: at.value, tls, h2c, location: at.location })
}

fn tls(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Tls> {
    let mut fields = Fields::of(node, "tls", cx)?;
    let certificate = fields.required("certificate", cx, file);
    let key = fields.required("key", cx, file);
    let client_ca = fields.optional("client_ca", cx, file);
    let client_ca_written = fields.node("client_ca").is_some();
    fields.end(cx);
    let key = key.map(|at| Located { value: Secret(at.value), location: at.location });
    // A fault in client_ca must not make a listener without client certificates.
    if client_ca_written && client_ca.is_none() {
        return None;
    }
    Some(Tls { certificate: certificate?, key: key?, client_ca })
}

/// Reads a path, and returns the text of that file.
fn file(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    let path = decode::at_text(node, cx)?;
    cx.file(&path, "file").map(|value| Located { value, location: path.location })
}

pub(super) fn limits(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Limits> {
    let mut fields = Fields::of(node, "limits", cx)?;
    let mut all = Limits::default();
    let count = |node: &Node, cx: &mut DecodeContext<'_>| decode::positive_integer(node, cx).map(|n| n.get() as usize);
    let bytes =
        |node: &Node, cx: &mut DecodeContext<'_>| decode::size(node, cx).and_then(|size| usize::try_from(size).ok());
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
    let number = |node: &Node, cx: &mut DecodeContext<'_>| decode::positive_integer(node, cx).map(NonZeroU32::get);
    set(&mut all.requests_per_connection, fields.optional("requests_per_connection", cx, number));
    set(&mut all.h2_streams, fields.optional("h2_streams", cx, number));
    set(&mut all.h2_resets, fields.optional("h2_resets", cx, number));
    set(&mut all.body_bytes, fields.optional("body_bytes", cx, decode::size));
    set(&mut all.auth_failures, fields.optional("auth_failures", cx, failures));
    let location = fields.location().clone();
    fields.end(cx);
    check_maximums(&all, &location, cx);
    Some(all)
}

fn set<T>(value: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *value = new;
    }
}

/// Checks that the limits are lower than those of Pingora, whose error responses are not problems of Weir.
fn check_maximums(limits: &Limits, location: &Location, cx: &mut DecodeContext<'_>) {
    if limits.header_count > 200 {
        cx.faults.add(location, "header_count is too large; at most 200");
    }
    if limits.h2_header_list > 1 << 20 {
        cx.faults.add(location, "h2_header_list is too large; at most 1MiB");
    }
    if limits.header_bytes + limits.url_bytes > 512 << 10 {
        cx.faults.add(location, "header_bytes and url_bytes are too large; at most 512KiB together");
    }
}

/// Reads `off`, or a bucket.
fn failures(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Option<Failures>> {
    let bucket = |node: &Node, cx: &mut DecodeContext<'_>| {
        let mut fields = Fields::of(node, "auth_failures", cx)?;
        let requests = fields.required("requests", cx, decode::positive_integer);
        let per = fields.required("per", cx, decode::positive_duration);
        let burst = fields.optional("burst", cx, decode::positive_integer);
        fields.end(cx);
        let (requests, per) = (requests?, per?);
        let burst = decode::checked_burst(&node.location, requests, per, burst.unwrap_or(requests), cx);
        Some(Some(Failures { requests, per, burst }))
    };
    decode::mapping_or(node, cx, bucket, |node, cx| match decode::boolean(node, cx)? {
        false => Some(None),
        true => {
            cx.faults.add(&node.location, "auth_failures must be off, or { requests: N, per: DURATION, burst: N }");
            None
        }
    })
}

pub(super) fn cors(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Cors> {
    let mut fields = Fields::of(node, "cors", cx)?;
    let origins = fields.required("origins", cx, |node, cx| decode::list(node, cx, origin));
    let max_age = fields.optional("max_age", cx, decode::duration);
    fields.end(cx);
    Some(Cors { origins: origins?, max_age: max_age.unwrap_or(Duration::from_secs(600)) })
}

/// Reads an origin in the form in which a browser sends it.
fn origin(node: &Node, cx: &mut DecodeContext<'_>) -> Option<String> {
    let at = decode::at_text(node, cx)?;
    let origin = at.value.to_ascii_lowercase();
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let plain =
        |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b));
    if origin != "*" && !host.is_some_and(plain) {
        let expected = "write SCHEME://HOST[:PORT] without a path, such as https://app.example, or *";
        cx.faults.add(&at.location, format!("{:?} is not a valid origin; {expected}", at.value));
        return None;
    }
    Some(origin)
}

/// Reads a network: `ADDRESS` or `ADDRESS/BITS`.
pub(super) fn network(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Network> {
    let at = decode::at_text(node, cx)?;
    let read = match at.value.split_once('/') {
        None => at.value.parse::<IpAddr>().ok().map(IpNet::from),
        // ipnet's own parser refuses forms of the number that were always taken here, such as 008.
        Some((address, bits)) => {
            address.parse().ok().zip(bits.parse().ok()).and_then(|(address, bits)| IpNet::new(address, bits).ok())
        }
    };
    let read = read.map(Network);
    let right = || format!("{:?} is not a network; write ADDRESS or ADDRESS/BITS, as in 10.0.0.0/8", at.value);
    cx.faults.keep(&at.location, read.ok_or_else(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses() {
        let contains = |network: &str, bits: u8, address: &str| {
            Network(IpNet::new(network.parse().unwrap(), bits).unwrap()).contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0", 8, "10.255.1.2") && !contains("10.0.0.0", 8, "11.0.0.0"));
        assert!(
            contains("0.0.0.0", 0, "1.2.3.4")
                && contains("127.0.0.1", 32, "127.0.0.1")
                && !contains("127.0.0.1", 32, "127.0.0.2")
        );
        assert!(contains("2001:db8::", 32, "2001:db8:1::1") && !contains("2001:db8::", 32, "2001:db9::"));
        assert!(contains("::", 0, "::1") && !contains("::", 0, "1.2.3.4"));
        assert!(contains("10.0.0.0", 8, "::ffff:10.1.1.1"), "an IPv4-mapped IPv6 address");
        assert!(
            contains("10.1.2.3", 8, "10.0.0.0") && contains("2001:db8::1", 64, "2001:db8::"),
            "further bits do not count"
        );
        assert!(!contains("::ffff:10.0.0.0", 104, "10.1.1.1"));
    }
}
