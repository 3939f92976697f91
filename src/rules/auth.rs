//! Authenticates requests: finds the client of the API key in the request's headers.
//!
//! Weir looks a key up by its digest. It never stores, logs or returns the key itself.

use crate::base::ids::{ClientId, Id};
use crate::base::model::Time;
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::Request;
use crate::config::clients::ClientConfig;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const WEIR_KEY: &str = "x-weir-key";
const API_KEY: &str = "x-api-key";

/// Why a request is not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The request has no key.
    #[error("missing API key; send it in X-API-Key, as Authorization: Bearer, or in X-Weir-Key")]
    MissingKey,
    /// No client has this key.
    #[error("unknown API key; keys are configured in clients.yaml")]
    UnknownKey,
    /// The key has expired.
    #[error("this API key has expired; request a new one")]
    ExpiredKey,
    /// The request has several `X-Weir-Key` headers with different values.
    #[error("several different X-Weir-Key headers were sent; send one")]
    SeveralWeirKeys,
    /// The request has several keys in `X-API-Key` and `Authorization`.
    #[error("two different API keys were sent; send one, in X-API-Key or as Authorization: Bearer")]
    SeveralKeys,
}

/// The SHA-256 of a key.
pub(crate) type KeyDigest = [u8; 32];

/// Returns the digest of a key.
#[must_use]
pub(crate) fn digest(key: &[u8]) -> KeyDigest {
    Sha256::digest(key).into()
}

/// The digests of all clients' keys.
#[derive(Default)]
pub struct Keys {
    by_digest: HashMap<[u8; 32], KnownKey, BuildHasherDefault<DigestHasher>>,
}

/// Uses the first 8 bytes of a digest as its hash. Callers cannot choose the digests in the table.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        // An array also writes its length, which is not used.
        if let Some(first) = bytes.first_chunk().filter(|_| bytes.len() == 32) {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct KnownKey {
    client: ClientId,
    expires_at: Option<Time>,
}

impl Keys {
    /// Makes the table of these clients' keys. A client's id is its position.
    #[must_use]
    pub fn compile(clients: &[ClientConfig]) -> Self {
        let mut by_digest = HashMap::default();
        for (position, config) in clients.iter().enumerate() {
            let client = ClientId::at(position);
            for key in &config.keys {
                by_digest.insert(key.sha256, KnownKey { client, expires_at: key.expires_at });
            }
        }
        Self { by_digest }
    }

    /// Returns the client whose key the request has.
    ///
    /// # Errors
    /// The request has no key, an unknown or expired key, or several different keys.
    pub fn identify(&self, request: &Request, now: Time) -> Result<ClientId, AuthError> {
        self.client_of(&digest(request_key(request)?), now)
    }

    /// Returns the client of a key.
    ///
    /// # Errors
    /// The key is unknown, or has expired.
    pub(crate) fn client_of(&self, key: &KeyDigest, now: Time) -> Result<ClientId, AuthError> {
        let known = self.by_digest.get(key).ok_or(AuthError::UnknownKey)?;
        if known.expires_at.is_some_and(|at| at <= now) {
            return Err(AuthError::ExpiredKey);
        }
        Ok(known.client)
    }

    /// Returns when a key expires; `None` if never.
    #[must_use]
    pub(crate) fn expiry(&self, key: &KeyDigest) -> Option<Time> {
        self.by_digest.get(key)?.expires_at
    }

    /// Returns whether a header value is a key of any client, with or without a scheme before it, expired or not.
    #[must_use]
    pub fn contains(&self, value: &[u8]) -> bool {
        let whole = value.trim_ascii();
        let after_scheme = whole.iter().position(u8::is_ascii_whitespace).map(|at| whole[at..].trim_ascii());
        let known = |key: &[u8]| self.by_digest.contains_key::<[u8; 32]>(&Sha256::digest(key).into());
        known(whole) || after_scheme.is_some_and(known)
    }
}

/// Returns the key in `X-Weir-Key`. If there is one, Weir reads no key from the other headers.
#[must_use]
pub(crate) fn weir_key(headers: &RequestHeaders) -> Option<&[u8]> {
    headers.get(WEIR_KEY).filter(|key| !key.trim_ascii().is_empty())
}

/// Returns the request's key: from `X-Weir-Key`, otherwise from `X-API-Key` or a bearer token (RFC 6750).
///
/// # Errors
/// The request has no key, or several different keys.
pub(crate) fn request_key(request: &Request) -> Result<&[u8], AuthError> {
    if let Some(key) = weir_key(&request.headers) {
        let differs = request.headers.get_all(WEIR_KEY).any(|other| other != key);
        return if differs { Err(AuthError::SeveralWeirKeys) } else { Ok(key) };
    }
    let mut found: Option<&[u8]> = None;
    let plain = request.headers.get_all(API_KEY);
    let bearer = request.headers.get_all("authorization").filter_map(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    for key in plain.chain(bearer).filter(|key| !key.is_empty()) {
        if found.is_some_and(|other| other != key) {
            return Err(AuthError::SeveralKeys);
        }
        found = Some(key);
    }
    found.ok_or(AuthError::MissingKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::problem::{Code, Problem};

    fn keys() -> Keys {
        let digest = |key: &str| Sha256::digest(key).into();
        let known = |client, expires_at| KnownKey { client: ClientId::at(client), expires_at };
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
            form: None,
        };
        let identified = keys().identify(&request, Time(now)).map(ClientId::position);
        identified.map_err(|error| Box::<Problem>::from(error).code)
    }

    #[test]
    fn either_header_or_both_may_have_the_key() {
        assert_eq!(identify(&[("x-api-key", "one")], 0), Ok(0));
        assert_eq!(identify(&[("authorization", "Bearer one")], 0), Ok(0));
        assert_eq!(identify(&[("authorization", "bearer  one ")], 0), Ok(0));
        assert_eq!(identify(&[("x-api-key", "one"), ("authorization", "Bearer one")], 0), Ok(0));
    }

    #[test]
    fn missing_unknown_and_different_keys_are_errors() {
        assert_eq!(identify(&[], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("x-api-key", "")], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("x-api-key", "two")], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("authorization", "Basic one")], 0), Err(Code::Unauthorized));
        assert_eq!(identify(&[("x-api-key", "one"), ("authorization", "Bearer two")], 0), Err(Code::InvalidRequest));
        assert_eq!(identify(&[("x-api-key", "one"), ("x-api-key", "two")], 0), Err(Code::InvalidRequest));
    }

    #[test]
    fn contains_finds_a_key_with_and_without_a_scheme() {
        for value in ["one", "Bearer one", "bearer  one ", "Token one", "old"] {
            assert!(keys().contains(value.as_bytes()), "{value}");
        }
        for value in ["", "two", "Bearer two", "oneone", "Bearer one two"] {
            assert!(!keys().contains(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn a_key_is_invalid_from_its_expiry() {
        assert_eq!(identify(&[("x-api-key", "old")], 999), Ok(1));
        assert_eq!(identify(&[("x-api-key", "old")], 1000), Err(Code::Unauthorized));
    }
}
