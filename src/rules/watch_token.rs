//! Seals and opens watch tokens: each permits its bearer to watch one session for a short time, with the rights of a key.
//!
//! A token is opaque, versioned and signed. It has no secret, and nothing that tells the key, the client or the session to
//! somebody without the signing key: it ends with its key, whose digest it contains only as a keyed hash.

use crate::base::endpoints::{WATCH, WATCH_TOKEN};
use crate::base::ids::ClientId;
use crate::base::model::Time;
use crate::base::request_reply::Request;
use crate::config::decode::Secret;
use crate::rules::auth::{self, AuthError, KeyDigest, Keys};
use crate::rules::query;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

/// How long a token can be used to begin a watch.
pub(crate) const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// The begin of every token. Weir recognises tokens by it where they do not belong.
pub(crate) const PREFIX: &str = "weir_watch_";
const VERSION: u8 = 1;
/// The length of a keyed hash and of the signature, in bytes.
const TAG: usize = 16;
/// Version, expiry, key, session.
const PAYLOAD: usize = 1 + 8 + 2 * TAG;
/// The length of a token: the prefix, and the payload with its signature in Base64.
const LENGTH: usize = PREFIX.len() + ((PAYLOAD + TAG) * 4).div_ceil(3);

/// A keyed hash.
type Tag = [u8; TAG];

/// The keyed hash of a session's ids, the same for all spellings of its unified id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionTag(Tag);

/// Why a watch token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WatchTokenError {
    /// It is forged or cut, or another signing key has signed it.
    #[error("watch_token is not valid; make one with POST /v1/sessions/{{id}}/watch-tokens")]
    Invalid,
    /// It has expired.
    #[error("this watch_token has expired; make a new one with POST /v1/sessions/{{id}}/watch-tokens")]
    Expired,
    /// The key that made it was removed or has expired.
    #[error("the API key of this watch_token is no longer valid; make a new one with another key")]
    Revoked,
    /// It is for another session.
    #[error(
        "this watch_token is for another session; make one for this session with POST /v1/sessions/{{id}}/watch-tokens"
    )]
    OtherSession,
    /// It is sent with another request than a watch.
    #[error("a watch_token is only accepted by GET /v1/sessions/{{id}}/watch; send an API key")]
    Elsewhere,
    /// The request has a key too.
    #[error("an API key and a watch_token were sent; send one of them")]
    WithKey,
}

/// What a valid token permits: to watch this session with the rights of this key.
struct Grant {
    key: KeyDigest,
    session: SessionTag,
}

/// Seals and opens the tokens of all clients.
pub struct WatchTokens {
    signing_key: [u8; 32],
    /// The digests of all keys, by their keyed hashes.
    keys: HashMap<Tag, KeyDigest>,
}

impl WatchTokens {
    /// Makes the tokens of these keys. The signing key is derived from that of page tokens, which is random if none is
    /// configured.
    #[must_use]
    pub(crate) fn new(keys: impl Iterator<Item = KeyDigest>, configured: &Secret, random: &[u8; 32]) -> Self {
        let page_token_key = if configured.0.is_empty() { random } else { configured.0.as_bytes() };
        // Page tokens sign texts that begin with a length, so no page token has this hash.
        let signing_key =
            mac(page_token_key, b"weir watch token", &[]).map_or([0; 32], |mac| mac.finalize().into_bytes().into());
        let mut tokens = Self { signing_key, keys: HashMap::new() };
        tokens.keys = keys.map(|digest| (tokens.tag(b"key", &[&digest]), digest)).collect();
        tokens
    }

    /// Returns the keyed hash of these parts, for this purpose.
    fn tag(&self, purpose: &[u8], parts: &[&[u8]]) -> Tag {
        // HMAC accepts a key of any length, so there always is a hash.
        let hash = mac(&self.signing_key, purpose, parts).map(|mac| mac.finalize().into_bytes());
        hash.and_then(|hash| hash.first_chunk().copied()).unwrap_or_default()
    }

    /// Returns the keyed hash of a session.
    #[must_use]
    pub(crate) fn session(&self, provider: &str, agent: Option<&str>, session: &str) -> SessionTag {
        let kind: &[u8] = if agent.is_some() { b"agent" } else { b"" };
        let parts = [provider.as_bytes(), kind, agent.unwrap_or_default().as_bytes(), session.as_bytes()];
        SessionTag(self.tag(b"session", &parts))
    }

    /// Returns a token for a session, with the rights of this key.
    #[must_use]
    pub(crate) fn seal(&self, key: &KeyDigest, session: SessionTag, expires_at: Time) -> String {
        let mut bytes = Vec::with_capacity(PAYLOAD + TAG);
        bytes.push(VERSION);
        bytes.extend_from_slice(&expires_at.0.to_be_bytes());
        bytes.extend_from_slice(&self.tag(b"key", &[key]));
        bytes.extend_from_slice(&session.0);
        let signature = self.tag(b"token", &[&bytes]);
        bytes.extend_from_slice(&signature);
        let mut token = String::with_capacity(LENGTH);
        token.push_str(PREFIX);
        BASE64.encode_string(bytes, &mut token);
        token
    }

    /// Returns what a token permits.
    fn open(&self, token: &str, now: Time) -> Result<Grant, WatchTokenError> {
        const INVALID: WatchTokenError = WatchTokenError::Invalid;
        let encoded = token.strip_prefix(PREFIX).filter(|_| token.len() == LENGTH).ok_or(INVALID)?;
        let bytes = BASE64.decode(encoded).map_err(|_| INVALID)?;
        let (payload, signature) = bytes.split_last_chunk::<TAG>().ok_or(INVALID)?;
        let mac = mac(&self.signing_key, b"token", &[payload]).ok_or(INVALID)?;
        mac.verify_truncated_left(signature).map_err(|_| INVALID)?;
        let ([VERSION], rest) = payload.split_first_chunk().ok_or(INVALID)? else { return Err(INVALID) };
        let (expires_at, rest) = rest.split_first_chunk().ok_or(INVALID)?;
        let (key, rest) = rest.split_first_chunk::<TAG>().ok_or(INVALID)?;
        let session = SessionTag(rest.try_into().map_err(|_| INVALID)?);
        let expires_at = Time(i64::from_be_bytes(*expires_at));
        if expires_at <= now {
            return Err(WatchTokenError::Expired);
        }
        let key = self.keys.get(key).copied().ok_or(WatchTokenError::Revoked)?;
        Ok(Grant { key, session })
    }
}

/// The client of a request, and how it is known.
#[derive(Clone, Copy)]
pub(crate) struct Authenticated {
    /// The client.
    pub client: ClientId,
    /// Its key.
    pub key: KeyDigest,
    /// The only session that the request may watch, if it has a token in place of a key.
    pub session: Option<SessionTag>,
}

/// Finds the client of a request by its key, or by the token in the URL of a watch. `is_native`: the request is for a
/// provider's own API, whose paths can look like that of a watch.
///
/// # Errors
/// The key or the token is missing or not valid, or both are there.
pub(crate) fn authenticate(
    keys: &Keys,
    tokens: &WatchTokens,
    request: &Request,
    now: Time,
    is_native: bool,
) -> Result<Authenticated, AuthFailure> {
    let Some(token) = (!is_native).then(|| of_watch(request)).flatten() else {
        let key = match auth::request_key(request) {
            Err(AuthError::MissingKey) if is_sent(request) => return Err(WatchTokenError::Elsewhere.into()),
            key => auth::digest(key?),
        };
        return Ok(Authenticated { client: keys.client_of(&key, now)?, key, session: None });
    };
    if !matches!(auth::request_key(request), Err(AuthError::MissingKey)) {
        return Err(WatchTokenError::WithKey.into());
    }
    let Grant { key, session } = tokens.open(&token, now)?;
    let client = keys.client_of(&key, now).map_err(|_| WatchTokenError::Revoked)?;
    Ok(Authenticated { client, key, session: Some(session) })
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthFailure {
    /// For the key.
    #[error(transparent)]
    Key(#[from] AuthError),
    /// For the token.
    #[error(transparent)]
    Token(#[from] WatchTokenError),
}

/// Returns the HMAC of these parts, for this purpose. Each part begins with its length.
fn mac(key: &[u8], purpose: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(purpose);
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    Some(mac)
}

/// Returns the token of a watch.
fn of_watch(request: &Request) -> Option<Cow<'_, str>> {
    let may_have_one = !request.query.is_empty() && request.path.ends_with("/watch");
    may_have_one.then(|| WATCH.match_path(&request.path)).flatten()?;
    parameter(request)
}

/// Returns the first parameter `watch_token` of a request.
fn parameter(request: &Request) -> Option<Cow<'_, str>> {
    let mut pairs = query::pairs(&request.query).filter_map(Result::ok);
    pairs.find(|(name, _)| name == WATCH_TOKEN.name).map(|(_, value)| value)
}

/// Returns whether a request has the parameter `watch_token`.
#[must_use]
pub(crate) fn is_sent(request: &Request) -> bool {
    !request.query.is_empty() && parameter(request).is_some()
}

/// Returns whether a query contains a token, under whatever name.
#[must_use]
pub(crate) fn is_in(query: &str) -> bool {
    query.contains(PREFIX)
}

/// Returns a query with every token replaced by a word, for explanations.
#[must_use]
pub(crate) fn redacted(query: &str) -> Cow<'_, str> {
    let is_token = |pair: &str| {
        query::pairs(pair)
            .any(|pair| pair.is_ok_and(|(name, value)| name == WATCH_TOKEN.name || value.contains(PREFIX)))
    };
    if !query.split('&').any(is_token) {
        return Cow::Borrowed(query);
    }
    let shown = |pair| if is_token(pair) { "watch_token=[redacted]" } else { pair };
    Cow::Owned(query.split('&').map(shown).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(key: &str) -> WatchTokens {
        let digests = [auth::digest(b"one"), auth::digest(b"two")];
        WatchTokens::new(digests.into_iter(), &Secret(key.into()), &[7; 32])
    }

    fn open(tokens: &WatchTokens, token: &str, now: i64) -> Result<(KeyDigest, SessionTag), WatchTokenError> {
        tokens.open(token, Time(now)).map(|grant| (grant.key, grant.session))
    }

    #[test]
    fn a_token_opens_until_it_expires_where_the_signing_key_is_the_same() {
        let (one, two) = (tokens("shared"), tokens("shared"));
        let session = one.session("p", Some("a"), "s");
        let token = one.seal(&auth::digest(b"one"), session, Time(1000));
        assert_eq!(token.len(), LENGTH);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{token}");
        assert_eq!(open(&two, &token, 999), Ok((auth::digest(b"one"), session)), "another instance");
        assert_eq!(open(&two, &token, 1000), Err(WatchTokenError::Expired));
        assert_eq!(open(&tokens("other"), &token, 0), Err(WatchTokenError::Invalid));
        assert_eq!(open(&tokens(""), &token, 0), Err(WatchTokenError::Invalid), "a random key");
        let removed = WatchTokens::new([auth::digest(b"two")].into_iter(), &Secret("shared".into()), &[7; 32]);
        assert_eq!(open(&removed, &token, 0), Err(WatchTokenError::Revoked));
    }

    #[test]
    fn every_changed_character_makes_a_token_invalid() {
        let tokens = tokens("key");
        let token = tokens.seal(&auth::digest(b"one"), tokens.session("p", None, "s"), Time(1000));
        for at in 0..token.len() {
            for other in *b"AB" {
                let mut forged = token.clone().into_bytes();
                if std::mem::replace(&mut forged[at], other) != other {
                    let forged = String::from_utf8(forged).unwrap();
                    assert_eq!(open(&tokens, &forged, 0), Err(WatchTokenError::Invalid), "{forged}");
                }
            }
            assert_eq!(open(&tokens, &token[..at], 0), Err(WatchTokenError::Invalid));
        }
        for junk in [String::new(), PREFIX.into(), format!("{token}A"), "é".repeat(LENGTH / 2), "A".repeat(100_000)] {
            assert_eq!(open(&tokens, &junk, 0), Err(WatchTokenError::Invalid), "{junk}");
        }
    }

    #[test]
    fn sessions_with_other_ids_have_other_tags() {
        let tokens = tokens("key");
        let tag = |provider, agent, session| tokens.session(provider, agent, session);
        let all = [
            tag("p", Some("a"), "s"),
            tag("p", Some("a"), "s2"),
            tag("p", None, "s"),
            tag("p", Some(""), "s"),
            tag("p", Some("as"), ""),
            tag("pa", Some(""), "s"),
            tag("p", None, "a:s"),
        ];
        for (position, one) in all.iter().enumerate() {
            assert!(!all[..position].contains(one), "{position}");
        }
    }

    #[test]
    fn explanations_show_no_token() {
        for (query, shown) in [
            ("", ""),
            ("fields=id&include=native", "fields=id&include=native"),
            ("fields=id&watch_token=abc&x=1", "fields=id&watch_token=[redacted]&x=1"),
            ("w%61tch_token=abc", "watch_token=[redacted]"),
            ("token=weir_watch_abc&&y", "watch_token=[redacted]&&y"),
            ("token=weir%5Fwatch_abc", "watch_token=[redacted]"),
        ] {
            assert_eq!(redacted(query), shown);
        }
    }
}
