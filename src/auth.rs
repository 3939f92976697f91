//! Who is calling: from a key in the request's headers to a client.
//!
//! A room of its own because it is the only one that sees keys. A key is hashed at once and looked
//! up by its digest; it is kept, logged and echoed nowhere.

use crate::config::clients::Client;
use crate::error::{Code, Problem};
use crate::exchange::Request;
use crate::headers::Headers;
use crate::model::Time;

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const WEIR_KEY: &str = "x-weir-key";
const API_KEY: &str = "x-api-key";

/// Digests of all clients' keys.
#[derive(Default)]
pub struct Keys {
    by_digest: HashMap<[u8; 32], Known, BuildHasherDefault<Digested>>,
}

/// A digest is as good as any hash of it, and what stands in the table is not a caller's to choose.
#[derive(Default)]
struct Digested(u64);

impl Hasher for Digested {
    fn write(&mut self, bytes: &[u8]) {
        // Of what is written, the length is the other thing.
        if let Some(first) = bytes.first_chunk().filter(|_| bytes.len() == 32) {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Known {
    client: usize,
    expires_at: Option<Time>,
}

impl Keys {
    /// The keys of these clients; a client is known by its position.
    #[must_use]
    pub fn compile(clients: &[Client]) -> Self {
        let mut by_digest = HashMap::default();
        for (client, config) in clients.iter().enumerate() {
            for key in &config.keys {
                by_digest.insert(key.sha256, Known { client, expires_at: key.expires_at });
            }
        }
        Self { by_digest }
    }

    /// The position of the client whose key the request carries.
    ///
    /// # Errors
    /// 401 for no key or an unknown one, 400 for two that differ.
    pub fn identify(&self, request: &Request, now: Time) -> Result<usize, Box<Problem>> {
        let key = presented(request)?;
        let digest: [u8; 32] = Sha256::digest(key).into();
        let known = self
            .by_digest
            .get(&digest)
            .ok_or_else(|| unauthorized("this API key is not known; a platform team adds keys to clients.yaml"))?;
        if known.expires_at.is_some_and(|at| at <= now) {
            return Err(unauthorized("this API key has expired; ask for a new one"));
        }
        Ok(known.client)
    }

    /// Whether this header's value is a key of anyone's, alone or behind a scheme, expired or not.
    #[must_use]
    pub fn knows(&self, value: &[u8]) -> bool {
        let whole = value.trim_ascii();
        let behind = whole.iter().position(u8::is_ascii_whitespace).map(|at| whole[at..].trim_ascii());
        let known = |key: &[u8]| self.by_digest.contains_key::<[u8; 32]>(&Sha256::digest(key).into());
        known(whole) || behind.is_some_and(known)
    }
}

/// The key in `X-Weir-Key`, where there is one: then all other headers are the provider's.
#[must_use]
pub fn apart(headers: &Headers) -> Option<&[u8]> {
    headers.get(WEIR_KEY).filter(|key| !key.trim_ascii().is_empty())
}

fn unauthorized(detail: &str) -> Box<Problem> {
    Box::new(Problem::new(Code::Unauthorized, detail))
}

/// The one key that a request carries: in `X-Weir-Key`, which leaves the other headers to the provider, else
/// in `X-API-Key` or as a bearer token (RFC 6750).
fn presented(request: &Request) -> Result<&[u8], Box<Problem>> {
    if let Some(key) = apart(&request.headers) {
        let differs = request.headers.get_all(WEIR_KEY).any(|other| other != key);
        return if differs {
            Err(Box::new(Problem::invalid("several X-Weir-Key were sent; send one")))
        } else {
            Ok(key)
        };
    }
    let mut found: Option<&[u8]> = None;
    let plain = request.headers.get_all(API_KEY);
    let bearer = request.headers.get_all("authorization").filter_map(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    for key in plain.chain(bearer).filter(|key| !key.is_empty()) {
        if found.is_some_and(|other| other != key) {
            return Err(Box::new(Problem::invalid(
                "two different API keys were sent; send one, in X-API-Key or as Authorization: Bearer",
            )));
        }
        found = Some(key);
    }
    found.ok_or_else(|| unauthorized("an API key is needed: in X-API-Key, as Authorization: Bearer, or in X-Weir-Key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        let digest = |key: &str| Sha256::digest(key).into();
        let known = |client, expires_at| Known { client, expires_at };
        Keys {
            by_digest: [(digest("one"), known(0, None)), (digest("old"), known(1, Some(Time(1000))))]
                .into_iter()
                .collect(),
        }
    }

    fn identify(headers: &[(&'static str, &'static str)], now: i64) -> Result<usize, Code> {
        let request = Request {
            method: http::Method::GET,
            version: http::Version::HTTP_11,
            path: "/".into(),
            query: String::new(),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            peer: None,
        };
        keys().identify(&request, Time(now)).map_err(|problem| problem.code)
    }

    #[test]
    fn a_key_in_either_header_or_the_same_in_both() {
        assert_eq!(identify(&[("x-api-key", "one")], 0), Ok(0));
        assert_eq!(identify(&[("authorization", "Bearer one")], 0), Ok(0));
        assert_eq!(identify(&[("authorization", "bearer  one ")], 0), Ok(0));
        assert_eq!(identify(&[("x-api-key", "one"), ("authorization", "Bearer one")], 0), Ok(0));
    }

    #[test]
    fn no_key_an_unknown_one_and_two_different_ones() {
        assert_eq!(identify(&[], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("x-api-key", "")], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("x-api-key", "two")], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("authorization", "Basic one")], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("x-api-key", "one"), ("authorization", "Bearer two")], 0), Err(Code::InvalidRequest));
        assert_eq!(identify(&[("x-api-key", "one"), ("x-api-key", "two")], 0), Err(Code::InvalidRequest));
    }

    #[test]
    fn a_key_is_known_alone_and_behind_a_scheme() {
        for value in ["one", "Bearer one", "bearer  one ", "Token one", "old"] {
            assert!(keys().knows(value.as_bytes()), "{value}");
        }
        for value in ["", "two", "Bearer two", "oneone", "Bearer one two"] {
            assert!(!keys().knows(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn a_key_ends_at_its_expiry() {
        assert_eq!(identify(&[("x-api-key", "old")], 999), Ok(1));
        assert_eq!(identify(&[("x-api-key", "old")], 1000), Err(Code::Unauthorized));
    }
}
