//! Determines the client address of a request, and limits failed authentications by address.
//!
//! Weir reads `Forwarded` and `X-Forwarded-For` only from the proxies under `trusted_proxies`: any other client could
//! make them up.

use crate::base::request_headers;
use crate::base::request_reply::Request;
use crate::config::edge::{Failures as Config, Network};
use crate::engine::token_bucket::Refill;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, RateLimiter};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Returns the client's address. From a trusted proxy, it is the last address in `Forwarded` (RFC 7239) or
/// `X-Forwarded-For` that is not a trusted proxy's; else it is the address of the connection. A proxy extends one of
/// the two headers and passes the other unchanged. If the headers name different addresses, the client may have made
/// one up, so the address of the connection counts.
#[must_use]
pub(crate) fn address(request: &Request, trusted: &[Network]) -> Option<IpAddr> {
    let peer = request.peer?.to_canonical();
    if !is_from_trusted_proxy(request, trusted) {
        return Some(peer);
    }
    let client = |chain: Vec<Option<IpAddr>>| last_untrusted(&chain, trusted).unwrap_or(peer);
    let chains = [chain(request, "forwarded", forwarded_for), chain(request, "x-forwarded-for", node_address)];
    Some(match chains {
        [Some(forwarded), Some(x_forwarded_for)] => {
            let (forwarded, x_forwarded_for) = (client(forwarded), client(x_forwarded_for));
            if forwarded == x_forwarded_for { forwarded } else { peer }
        }
        [forwarded, x_forwarded_for] => forwarded.or(x_forwarded_for).map_or(peer, client),
    })
}

/// Checks whether the request comes from a trusted proxy. Only then does Weir pass on its forwarding headers.
#[must_use]
pub(crate) fn is_from_trusted_proxy(request: &Request, trusted: &[Network]) -> bool {
    request.peer.is_some_and(|peer| is_trusted(peer.to_canonical(), trusted))
}

fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(address))
}

/// Returns the last address that is not a trusted proxy's: the client may have made up the addresses before it. If all
/// addresses are trusted, returns the first.
fn last_untrusted(chain: &[Option<IpAddr>], trusted: &[Network]) -> Option<IpAddr> {
    let mut nearest_first = chain.iter().rev().map_while(|address| *address);
    let mut last = None;
    nearest_first.find(|address| !is_trusted(*last.insert(*address), trusted)).or(last)
}

/// Returns the addresses in all headers of this name, the nearest last; `None` for an element without an address.
fn chain(request: &Request, name: &str, address: impl Fn(&str) -> Option<IpAddr>) -> Option<Vec<Option<IpAddr>>> {
    let values = request.headers.get_all(name).map(|value| request_headers::text(value).unwrap_or("?"));
    let elements: Vec<_> = values.flat_map(|value| value.split(',')).map(|element| address(element.trim())).collect();
    (!elements.is_empty()).then_some(elements)
}

/// Returns the `for` address of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    node_address(node.trim().trim_matches('"'))
}

/// Parses an address, with or without a port.
fn node_address(node: &str) -> Option<IpAddr> {
    let bare = node.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(node);
    let address = bare.parse::<IpAddr>().ok().or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

/// Limits failed authentications by client address.
pub struct AuthFailures {
    /// The configured limit. A reload with an equal limit keeps the counters.
    pub config: Config,
    limiter: DefaultKeyedRateLimiter<IpAddr>,
}

impl AuthFailures {
    /// Makes a limiter without failures.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let refill = Refill::new(config.requests, config.per, config.burst);
        Self { config, limiter: RateLimiter::keyed(refill.quota()) }
    }

    /// Counts one failed authentication from this address.
    ///
    /// # Errors
    /// The limit is reached: returns the time until the next failure is allowed.
    pub fn record(&self, address: IpAddr) -> Result<(), Duration> {
        self.limiter.check_key(&address).map_err(|refused| refused.wait_time_from(DefaultClock::default().now()))
    }

    /// Removes addresses whose failures no longer count.
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
        let trusted = [Network("10.0.0.0/8".parse().unwrap()), Network("::1/128".parse().unwrap())];
        let peer = Some(peer.parse().unwrap());
        let request = Request {
            method: Method::GET,
            version: http::Version::HTTP_11,
            path: "/".into(),
            query: String::new(),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            peer,
            form: None,
        };
        address(&request, &trusted).unwrap().to_string()
    }

    #[test]
    fn forwarding_headers_count_only_from_trusted_proxies() {
        assert_eq!(address_of("1.2.3.4", &[("x-forwarded-for", "9.9.9.9")]), "1.2.3.4");
        assert_eq!(address_of("10.1.1.1", &[("x-forwarded-for", "9.9.9.9")]), "9.9.9.9");
        assert_eq!(address_of("::ffff:10.1.1.1", &[("x-forwarded-for", "9.9.9.9")]), "9.9.9.9");
        assert_eq!(address_of("10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn addresses_before_the_last_untrusted_one_are_ignored() {
        let of = |chain| address_of("10.1.1.1", &[("x-forwarded-for", chain)]);
        assert_eq!(of("6.6.6.6, 9.9.9.9, 10.2.2.2"), "9.9.9.9");
        assert_eq!(of("10.3.3.3, 10.2.2.2"), "10.3.3.3", "all are trusted: the first");
        assert_eq!(of("6.6.6.6, unknown"), "10.1.1.1", "an element without an address ends the chain");
        assert_eq!(of("6.6.6.6, unknown, 10.2.2.2"), "10.2.2.2");
        assert_eq!(of("[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(of("9.9.9.9:1234"), "9.9.9.9");
        let two = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "9.9.9.9")];
        assert_eq!(address_of("10.1.1.1", &two), "9.9.9.9", "several header lines are one chain");
    }

    #[test]
    fn forwarded_is_parsed_as_in_rfc_7239() {
        let of = |value| address_of("::1", &[("forwarded", value)]);
        assert_eq!(of("for=192.0.2.60;proto=http;by=203.0.113.43"), "192.0.2.60");
        assert_eq!(of("for=192.0.2.43, FOR=\"[2001:db8:cafe::17]:4711\""), "2001:db8:cafe::17");
        assert_eq!(of("for=_hidden"), "::1");
        assert_eq!(of("proto=https"), "::1");
    }

    #[test]
    fn two_headers_with_different_addresses_are_ignored() {
        let of = |forwarded, x_forwarded_for| {
            address_of("10.1.1.1", &[("forwarded", forwarded), ("x-forwarded-for", x_forwarded_for)])
        };
        assert_eq!(of("for=6.6.6.6", "9.9.9.9"), "10.1.1.1", "the client may have sent one of them");
        assert_eq!(of("for=unknown", "9.9.9.9"), "10.1.1.1");
        assert_eq!(of("for=6.6.6.6, for=9.9.9.9", "9.9.9.9, 10.2.2.2"), "9.9.9.9", "both name the same client");
    }

    #[test]
    fn failures_are_limited_by_address() {
        let two = 2.try_into().unwrap();
        let failures = AuthFailures::new(Config { requests: two, per: Duration::from_secs(3600), burst: two });
        let (one, other): (IpAddr, IpAddr) = ("1.1.1.1".parse().unwrap(), "2.2.2.2".parse().unwrap());
        assert!(failures.record(one).is_ok() && failures.record(one).is_ok());
        assert!(failures.record(one).unwrap_err() > Duration::from_secs(1000));
        assert!(failures.record(other).is_ok());
    }
}
