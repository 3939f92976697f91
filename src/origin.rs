//! Where a request comes from, and how many of its kind may fail.
//!
//! A room of its own because an address is only worth what those who tell it are: proxies that the platform
//! team trusts are believed, and nobody else.

use crate::config::edge::{Failures as Config, Network};
use crate::exchange::Request;
use crate::headers;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The address of a client: the connection's, or, behind trusted proxies, the last one in
/// `Forwarded` (RFC 7239) or `X-Forwarded-For` that is not theirs. A proxy adds to one of them and passes the other
/// as it came: where both are there and differ, either may be made up, and the connection's is what is known.
#[must_use]
pub fn address(request: &Request, trusted: &[Network]) -> Option<IpAddr> {
    let peer = request.peer?.to_canonical();
    if !believed(request, trusted) {
        return Some(peer);
    }
    let of = |chain: Vec<Option<IpAddr>>| last_strange(&chain, trusted).unwrap_or(peer);
    let told = [told(request, "forwarded", forwarded_for), told(request, "x-forwarded-for", node_address)];
    Some(match told {
        [Some(one), Some(other)] => {
            let (one, other) = (of(one), of(other));
            if one == other { one } else { peer }
        }
        [one, other] => one.or(other).map_or(peer, of),
    })
}

/// Whether it comes from a proxy whose word is taken. Nobody else's is passed on.
#[must_use]
pub fn believed(request: &Request, trusted: &[Network]) -> bool {
    request.peer.is_some_and(|peer| is_trusted(peer.to_canonical(), trusted))
}

fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.holds(address))
}

/// From the nearest: what stands before an address that is nobody's we know may be made up. If all are known, the
/// farthest.
fn last_strange(chain: &[Option<IpAddr>], trusted: &[Network]) -> Option<IpAddr> {
    let mut told = chain.iter().rev().map_while(|address| *address);
    let mut last = None;
    told.find(|address| !is_trusted(*last.insert(*address), trusted)).or(last)
}

/// All addresses that a header tells, from the farthest to the nearest; `None` for what is not an address.
fn told(request: &Request, name: &str, address: impl Fn(&str) -> Option<IpAddr>) -> Option<Vec<Option<IpAddr>>> {
    let values = request.headers.get_all(name).map(|value| headers::text(value).unwrap_or("?"));
    let elements: Vec<_> = values.flat_map(|value| value.split(',')).map(|element| address(element.trim())).collect();
    (!elements.is_empty()).then_some(elements)
}

/// The address in an element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    node_address(node.trim().trim_matches('"'))
}

/// An address, with or without a port.
fn node_address(node: &str) -> Option<IpAddr> {
    let bare = node.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(node);
    let address = bare.parse::<IpAddr>().ok().or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

/// Failed authentications by address.
pub struct Failures {
    /// As configured; kept over a reload while it stays the same.
    pub config: Config,
    limiter: DefaultKeyedRateLimiter<IpAddr>,
}

impl Failures {
    /// Nobody has failed yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let period = config.per.as_nanos().div_ceil(u128::from(config.requests.get())).max(1);
        let period = Duration::from_nanos(u64::try_from(period).unwrap_or(u64::MAX));
        // A period that is not zero makes a quota.
        let quota = Quota::with_period(period).unwrap_or_else(|| Quota::per_second(config.requests));
        Self { config, limiter: RateLimiter::keyed(quota.allow_burst(config.burst)) }
    }

    /// One more has failed from this address.
    ///
    /// # Errors
    /// How long until it may be told that it failed.
    pub fn count(&self, address: IpAddr) -> Result<(), Duration> {
        self.limiter.check_key(&address).map_err(|refused| refused.wait_time_from(DefaultClock::default().now()))
    }

    /// Forgets addresses that have not failed for long.
    pub fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn address_of(peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let trusted = [
            Network { address: "10.0.0.0".parse().unwrap(), bits: 8 },
            Network { address: "::1".parse().unwrap(), bits: 128 },
        ];
        let peer = Some(peer.parse().unwrap());
        let request = Request {
            method: Method::GET,
            version: http::Version::HTTP_11,
            path: "/".into(),
            query: String::new(),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            peer,
        };
        address(&request, &trusted).unwrap().to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(address_of("1.2.3.4", &[("x-forwarded-for", "9.9.9.9")]), "1.2.3.4");
        assert_eq!(address_of("10.1.1.1", &[("x-forwarded-for", "9.9.9.9")]), "9.9.9.9");
        assert_eq!(address_of("::ffff:10.1.1.1", &[("x-forwarded-for", "9.9.9.9")]), "9.9.9.9");
        assert_eq!(address_of("10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn what_stands_before_a_stranger_is_not_believed() {
        let of = |chain| address_of("10.1.1.1", &[("x-forwarded-for", chain)]);
        assert_eq!(of("6.6.6.6, 9.9.9.9, 10.2.2.2"), "9.9.9.9");
        assert_eq!(of("10.3.3.3, 10.2.2.2"), "10.3.3.3", "all are known: the farthest");
        assert_eq!(of("6.6.6.6, unknown"), "10.1.1.1", "what is no address ends the chain");
        assert_eq!(of("6.6.6.6, unknown, 10.2.2.2"), "10.2.2.2");
        assert_eq!(of("[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(of("9.9.9.9:1234"), "9.9.9.9");
        let two = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "9.9.9.9")];
        assert_eq!(address_of("10.1.1.1", &two), "9.9.9.9", "several lines are one chain");
    }

    #[test]
    fn forwarded_is_read_as_the_rfc_has_it() {
        let of = |value| address_of("::1", &[("forwarded", value)]);
        assert_eq!(of("for=192.0.2.60;proto=http;by=203.0.113.43"), "192.0.2.60");
        assert_eq!(of("for=192.0.2.43, FOR=\"[2001:db8:cafe::17]:4711\""), "2001:db8:cafe::17");
        assert_eq!(of("for=_hidden"), "::1");
        assert_eq!(of("proto=https"), "::1");
    }

    #[test]
    fn of_two_headers_that_differ_neither_is_believed() {
        let of = |one, other| address_of("10.1.1.1", &[("forwarded", one), ("x-forwarded-for", other)]);
        assert_eq!(of("for=6.6.6.6", "9.9.9.9"), "10.1.1.1", "one of them is the client's own");
        assert_eq!(of("for=unknown", "9.9.9.9"), "10.1.1.1");
        assert_eq!(of("for=6.6.6.6, for=9.9.9.9", "9.9.9.9, 10.2.2.2"), "9.9.9.9", "they say the same");
    }

    #[test]
    fn failures_are_bounded_by_address() {
        let two = 2.try_into().unwrap();
        let failures = Failures::new(Config { requests: two, per: Duration::from_secs(3600), burst: two });
        let (one, other): (IpAddr, IpAddr) = ("1.1.1.1".parse().unwrap(), "2.2.2.2".parse().unwrap());
        assert!(failures.count(one).is_ok() && failures.count(one).is_ok());
        assert!(failures.count(one).unwrap_err() > Duration::from_secs(1000));
        assert!(failures.count(other).is_ok());
    }
}
