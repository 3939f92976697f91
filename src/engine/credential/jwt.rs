//! Signs JSON Web Tokens (RFC 7519): those that are sent as they are, and those that are exchanged for access tokens.
//!
//! `ring` signs. The library for JSON Web Tokens has no backend with it; its other backends are a second cryptographic
//! library, and the crate `rsa`, whose signatures take a time that depends on the key (RUSTSEC-2023-0071).

use super::outgoing::{digest, sensitive};
use super::sent::{SentContent, SentCredential};
use crate::base::model::Time;
use crate::config::credentials::{Jwt, JwtAlgorithm, JwtKey};
use crate::config::faults::{Faults, Located};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, header};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// `iat` is this long in the past, because the provider's clock can be behind Weir's.
const BACKDATED_MS: i64 = 30_000;

/// A token cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotSigned;

/// Signs tokens with one key and the same claims, except for the times.
pub(super) struct JwtSigner {
    /// The identity of the credential.
    pub(super) identity: Arc<str>,
    key: SigningKey,
    /// The header, encoded.
    header: String,
    claims: Map<String, Value>,
    lifetime: Duration,
}

enum SigningKey {
    Hmac(ring::hmac::Key),
    Rsa(Box<RsaKeyPair>),
}

/// A compiled `jwt` section.
pub(super) struct CompiledJwt {
    pub(super) signer: JwtSigner,
    /// Where the token is exchanged; `None` if it is sent as it is.
    pub(super) token_url: Option<Located<String>>,
}

/// The members of a service account's key file that Weir uses.
struct ServiceAccount {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

impl ServiceAccount {
    /// Reads a key file.
    ///
    /// # Errors
    /// What is wrong, without a part of the file.
    fn read(text: &str) -> Result<Self, String> {
        let file: Map<String, Value> = serde_json::from_str(text)
            .map_err(|_| "this is not the key file of a service account, which is a JSON object".to_owned())?;
        let member = |name: &str| file.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let required = |name: &str| {
            let fault = || format!("the key file of the service account has no {name}; download a new one");
            member(name).map(str::to_owned).ok_or_else(fault)
        };
        Ok(Self {
            client_email: required("client_email")?,
            private_key: required("private_key")?,
            private_key_id: member("private_key_id").map(str::to_owned),
            token_uri: member("token_uri").map(str::to_owned),
        })
    }
}

/// Compiles a section. `None` if its key is empty or has a fault.
pub(super) fn compile(config: &Jwt, faults: &mut Faults) -> Option<CompiledJwt> {
    let secret = config.key.secret();
    if secret.value.0.is_empty() {
        return None;
    }
    let (mut issuer, mut key_id, mut token_url) =
        (config.issuer.clone(), config.key_id.clone(), config.token_url.clone());
    let (algorithm, key) = match &config.key {
        JwtKey::Own { algorithm, key } => (*algorithm, key.value.0.clone()),
        JwtKey::ServiceAccount(file) => {
            let account = faults.keep(&file.location, ServiceAccount::read(&file.value.0))?;
            (issuer, key_id) = (Some(account.client_email), account.private_key_id);
            let uri = account.token_uri.map(|value| Located { value, location: file.location.clone() });
            token_url = token_url.or(uri);
            let missing = "the key file of the service account has no token_uri; set token_url";
            faults.keep(&file.location, token_url.as_ref().ok_or(missing))?;
            (JwtAlgorithm::Rs256, account.private_key)
        }
    };
    let signing_key = faults.keep(&secret.location, SigningKey::of(algorithm, &key))?;
    let mut head = json!({ "alg": algorithm.name(), "typ": "JWT" });
    head.as_object_mut()?.extend(key_id.map(|id| ("kid".to_owned(), id.into())));
    let audience = config.audience.clone().or_else(|| token_url.as_ref().map(|url| url.value.clone()));
    let own = [("iss", issuer), ("sub", config.subject.clone()), ("aud", audience), ("scope", config.scope.clone())];
    let mut claims = config.claims.clone();
    claims.extend(own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))));
    let (head, lifetime) = (head.to_string(), config.lifetime);
    let identity = {
        let claims = Value::Object(claims.clone()).to_string();
        let (url, seconds) = (token_url.as_ref().map_or("", |url| &url.value), lifetime.as_secs().to_string());
        digest("jwt", &[&head, &key, &claims, url, &seconds].map(str::as_bytes))
    };
    let header = URL_SAFE_NO_PAD.encode(head);
    let signer = JwtSigner { identity: identity.into(), key: signing_key, header, claims, lifetime };
    Some(CompiledJwt { signer, token_url })
}

impl JwtAlgorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
        }
    }
}

impl SigningKey {
    /// Reads a key: a secret, or a private key in PEM.
    ///
    /// # Errors
    /// What is wrong, without a part of the key.
    fn of(algorithm: JwtAlgorithm, key: &str) -> Result<Self, &'static str> {
        if algorithm == JwtAlgorithm::Hs256 {
            return Ok(Self::Hmac(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes())));
        }
        let pair = match PrivateKeyDer::from_pem_slice(key.as_bytes()) {
            Ok(PrivateKeyDer::Pkcs8(der)) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
            Ok(PrivateKeyDer::Pkcs1(der)) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
            _ => None,
        };
        let fault = "the key is not an RSA private key of 2048 to 4096 bits in PEM (BEGIN PRIVATE KEY)";
        pair.map(|pair| Self::Rsa(Box::new(pair))).ok_or(fault)
    }

    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, NotSigned> {
        match self {
            Self::Hmac(key) => Ok(ring::hmac::sign(key, text).as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).map_err(|_| NotSigned)?;
                Ok(signature)
            }
        }
    }
}

impl JwtSigner {
    /// Returns a token.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn sign(&self, now: Time) -> Result<String, NotSigned> {
        let issued = (now.0 - BACKDATED_MS).div_euclid(1000);
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(0);
        let mut claims = self.claims.clone();
        claims.extend([("iat".to_owned(), issued.into()), ("exp".to_owned(), (issued + lifetime).into())]);
        let claims = URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string());
        let text = format!("{}.{claims}", self.header);
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(text.as_bytes())?);
        Ok(format!("{text}.{signature}"))
    }
}

/// A token that is sent as it is, and made anew when a fifth of its lifetime is left.
pub(super) struct SelfSigned {
    /// The provider that gets them.
    pub(super) provider: Arc<str>,
    signer: JwtSigner,
    current: Mutex<Option<CurrentToken>>,
}

struct CurrentToken {
    value: HeaderValue,
    made_at: Time,
}

impl SelfSigned {
    /// Makes a credential without a token.
    pub(super) fn new(provider: &Arc<str>, signer: JwtSigner) -> Self {
        Self { provider: provider.clone(), signer, current: Mutex::default() }
    }

    /// Returns the token to send now.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn obtain(&self, now: Time) -> Result<SentCredential, NotSigned> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes the token one of the future.
        let used_for = (self.signer.lifetime - Duration::from_millis(BACKDATED_MS.unsigned_abs())) * 4 / 5;
        let is_usable = |token: &&CurrentToken| token.made_at <= now && now.since(token.made_at) < used_for;
        let value = match current.as_ref().filter(is_usable) {
            Some(token) => token.value.clone(),
            None => {
                let token = format!("Bearer {}", self.signer.sign(now)?);
                let value = sensitive(HeaderValue::from_str(&token).map_err(|_| NotSigned)?);
                *current = Some(CurrentToken { value: value.clone(), made_at: now });
                value
            }
        };
        Ok(SentCredential::of(SentContent::Headers([(header::AUTHORIZATION, value)].into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Secret;
    use crate::config::faults::Location;

    fn config(claims: &Value, lifetime: u64) -> Jwt {
        let location = Location::top(&"f".into());
        let key = Located { value: Secret("canary-secret".into()), location };
        Jwt {
            key: JwtKey::Own { algorithm: JwtAlgorithm::Hs256, key },
            issuer: Some("us".into()),
            subject: None,
            audience: None,
            key_id: None,
            scope: None,
            claims: claims.as_object().cloned().unwrap_or_default(),
            lifetime: Duration::from_secs(lifetime),
            token_url: None,
        }
    }

    fn signer(claims: &Value, lifetime: u64) -> JwtSigner {
        let config = config(claims, lifetime);
        assert!(!format!("{config:?}").contains("canary"));
        compile(&config, &mut Faults::default()).unwrap().signer
    }

    fn claims(token: &str) -> Value {
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        serde_json::from_slice(&claims).unwrap()
    }

    #[test]
    fn a_token_has_its_claims_and_times_in_whole_seconds() {
        let signer = signer(&json!({ "admin": true }), 600);
        let token = signer.sign(Time(1_000_000_999)).unwrap();
        assert_eq!(claims(&token), json!({ "admin": true, "iss": "us", "iat": 999_970, "exp": 1_000_570 }));
        let (text, signature) = token.rsplit_once('.').unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"canary-secret");
        ring::hmac::verify(&key, text.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    }

    #[test]
    fn a_sent_token_is_replaced_long_before_it_expires_and_after_the_clock_was_set_back() {
        let token = SelfSigned::new(&"p".into(), signer(&json!({}), 120));
        let mut seen: Vec<Arc<[(http::HeaderName, HeaderValue)]>> = Vec::new();
        let mut at = |seconds: i64| {
            let SentContent::Headers(headers) = token.obtain(Time(seconds * 1000)).unwrap().content else {
                panic!("no header")
            };
            assert!(headers[0].1.is_sensitive());
            let sent = headers[0].1.to_str().unwrap().trim_start_matches("Bearer ").to_owned();
            assert!(claims(&sent)["exp"].as_i64().unwrap() > seconds, "an expired token is never sent");
            let is_new = seen.last().is_none_or(|last| last[0].1 != headers[0].1);
            seen.push(headers);
            is_new
        };
        assert_eq!([1000, 1000, 1071, 1072, 1100, 1001].map(&mut at), [true, false, false, true, false, true]);
    }

    #[test]
    fn every_setting_is_part_of_the_identity() {
        let identity = |config: &Jwt| compile(config, &mut Faults::default()).unwrap().signer.identity;
        let base = || config(&json!({ "a": 1 }), 600);
        let location = Location::top(&"f".into());
        let url = Located { value: "https://x/t".to_owned(), location: location.clone() };
        let key = Located { value: Secret("other".into()), location };
        let others = [
            config(&json!({ "a": 2 }), 600),
            config(&json!({ "a": 1 }), 601),
            Jwt { issuer: Some("them".into()), ..base() },
            Jwt { subject: Some("us".into()), issuer: None, ..base() },
            Jwt { audience: Some("a".into()), ..base() },
            Jwt { key_id: Some("k".into()), ..base() },
            Jwt { token_url: Some(url), ..base() },
            Jwt { key: JwtKey::Own { algorithm: JwtAlgorithm::Hs256, key }, ..base() },
        ];
        let all: std::collections::HashSet<_> = others.iter().map(identity).chain([identity(&base())]).collect();
        assert_eq!((all.len(), identity(&base())), (others.len() + 1, identity(&base())));
    }
}
