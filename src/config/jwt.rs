//! Decodes the `jwt` form of credentials: a JSON Web Token that Weir signs, sent as it is or exchanged for an access token.

use super::decode::{self, DecodeContext, Fields, Secret};
use super::faults::Located;
use super::tree::{Node, Value};
use serde_json::{Map, Value as Json};
use std::time::Duration;

/// A signed JSON Web Token (RFC 7519).
#[derive(Clone)]
pub struct Jwt {
    /// The key that signs it.
    pub key: JwtKey,
    /// `iss`; `None` if the service account has it, or if there is none.
    pub issuer: Option<String>,
    /// `sub`
    pub subject: Option<String>,
    /// `aud`
    pub audience: Option<String>,
    /// `kid`, in the header.
    pub key_id: Option<String>,
    /// `scope`, of a token that is exchanged.
    pub scope: Option<String>,
    /// Further claims.
    pub claims: Map<String, Json>,
    /// From `iat` to `exp`.
    pub lifetime: Duration,
    /// Where the token is exchanged for an access token (RFC 7523, section 2.1).
    pub token_url: Option<Located<String>>,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Claims can be secret.
        f.debug_struct("Jwt").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What signs a token.
#[derive(Debug, Clone)]
pub enum JwtKey {
    /// The key file of a service account, in JSON.
    ServiceAccount(Located<Secret>),
    /// A key of its own.
    Own {
        /// The algorithm.
        algorithm: JwtAlgorithm,
        /// The secret of `HS256`, or the private key of `RS256` in PEM.
        key: Located<Secret>,
    },
}

impl JwtKey {
    /// Returns the secret.
    #[must_use]
    pub fn secret(&self) -> &Located<Secret> {
        match self {
            Self::ServiceAccount(key) | Self::Own { key, .. } => key,
        }
    }
}

/// The algorithm of a signature (RFC 7518, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// RSA with SHA-256.
    Rs256,
}

/// Claims that have a key of their own, or that Weir sets.
const OWN_CLAIMS: [(&str, &str); 6] = [
    ("iss", "write issuer: in place of it"),
    ("sub", "write subject: in place of it"),
    ("aud", "write audience: in place of it"),
    ("exp", "Weir sets it; write lifetime: in place of it"),
    ("iat", "Weir sets it"),
    ("nbf", "Weir sends none; iat is half a minute in the past"),
];

/// The longest lifetime of a token that is exchanged.
const MAX_EXCHANGED: Duration = Duration::from_secs(3600);
/// The longest lifetime of a token that is sent as it is.
const MAX_SENT: Duration = Duration::from_secs(86_400);
/// The shortest lifetime.
const MIN_LIFETIME: Duration = Duration::from_secs(120);
/// The lifetime without `lifetime` of a token that is sent as it is.
const DEFAULT_SENT: Duration = Duration::from_secs(600);

/// Decodes the section.
pub(super) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Jwt> {
    let before = cx.faults.count();
    let mut fields = Fields::of(node, "jwt", cx)?;
    let service_account = fields.optional("service_account", cx, secret);
    let algorithm = fields.optional("algorithm", cx, |node, cx| {
        let known = [("HS256", JwtAlgorithm::Hs256), ("RS256", JwtAlgorithm::Rs256)];
        decode::one_of(node, cx, "algorithm", &known)
    });
    let key = fields.optional("key", cx, secret);
    let issuer = fields.optional("issuer", cx, decode::text);
    let subject = fields.optional("subject", cx, decode::text);
    let audience = fields.optional("audience", cx, decode::text);
    let key_id = fields.optional("key_id", cx, decode::text);
    let scope = fields.optional("scope", cx, decode::text);
    let claims = fields.optional("claims", cx, claims).unwrap_or_default();
    let token_url = fields.optional("token_url", cx, decode::url);
    let is_exchanged = fields.is_written("token_url") || fields.is_written("service_account");
    let lifetime = fields.optional("lifetime", cx, |node, cx| lifetime(node, is_exchanged, cx));
    let forms = ["service_account", "algorithm", "key"].map(|key| fields.is_written(key));
    let of_account = ["issuer", "key_id"].into_iter().find(|key| fields.is_written(key));
    let location = fields.location().clone();
    fields.end(cx);
    if cx.faults.count() > before {
        return None;
    }
    let key = match forms {
        [true, false, false] => JwtKey::ServiceAccount(service_account?),
        [false, true, true] => JwtKey::Own { algorithm: algorithm?, key: key? },
        _ => {
            let forms = "{ service_account: { file: KEY.json }, … } or { algorithm: HS256, key: SECRET, … }";
            cx.faults.add(&location, format!("jwt must be {forms}"));
            return None;
        }
    };
    if let (JwtKey::ServiceAccount(_), Some(key)) = (&key, of_account) {
        cx.faults.add(&location, format!("the service account has its own {key}; remove the key {key}"));
    }
    if scope.is_some() && !is_exchanged {
        let better = "write it under claims:, or set token_url";
        cx.faults.add(&location, format!("scope is for a token that is exchanged at a token_url; {better}"));
    }
    let lifetime = lifetime.unwrap_or(if is_exchanged { MAX_EXCHANGED } else { DEFAULT_SENT });
    (cx.faults.count() == before).then_some(Jwt {
        key,
        issuer,
        subject,
        audience,
        key_id,
        scope,
        claims,
        lifetime,
        token_url,
    })
}

fn secret(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<Secret>> {
    Some(Located { value: decode::secret(node, cx)?, location: node.location.clone() })
}

fn lifetime(node: &Node, is_exchanged: bool, cx: &mut DecodeContext<'_>) -> Option<Duration> {
    let lifetime = decode::positive_duration(node, cx)?;
    let (most, word) = if is_exchanged { (MAX_EXCHANGED, "1h") } else { (MAX_SENT, "24h") };
    let is_valid = (MIN_LIFETIME..=most).contains(&lifetime);
    let fault = || format!("the lifetime of this token must be from 2m to {word}");
    cx.faults.keep(&node.location, is_valid.then_some(lifetime).ok_or_else(fault))
}

fn claims(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Map<String, Json>> {
    let claims = decode::entries(node, "claims", &[], cx, |key, node, cx| {
        if let Some((_, better)) = OWN_CLAIMS.iter().find(|(name, _)| *name == key.name) {
            cx.faults.add(&key.location, format!("the claim {} cannot stand here: {better}", key.name));
            return None;
        }
        Some((key.name.clone(), json(node, cx)?))
    })?;
    Some(claims.into_iter().collect())
}

/// Reads any value as JSON. `true` and `false` become booleans, whole numbers become numbers, and other texts stay texts.
fn json(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Json> {
    match &node.value {
        Value::Null => Some(Json::Null),
        Value::Probe | Value::Faulty => None,
        Value::List(items) => Some(items.iter().filter_map(|item| json(item, cx)).collect()),
        Value::Map(entries) => {
            let pairs = entries.iter().filter_map(|(key, node)| Some((key.name.clone(), json(node, cx)?)));
            Some(Json::Object(pairs.collect()))
        }
        Value::Text(_) | Value::Unset(_) => {
            let text = decode::text(node, cx)?;
            let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
            Some(match (text.as_str(), number) {
                ("true", _) => Json::Bool(true),
                ("false", _) => Json::Bool(false),
                (_, Some(number)) => number.into(),
                _ => Json::String(text),
            })
        }
    }
}
