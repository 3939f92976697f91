//! Compiles provider credentials and gets the header for each request; fetches and renews OAuth 2.0 tokens.
//!
//! A credential is fixed, forwarded from the client, or an OAuth 2.0 token. Its value is never printed: the header value is
//! marked sensitive, and the identity in cache keys is a digest.

use crate::base::metrics::UpstreamMetrics;
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::{ProviderReply, ProviderRequest};
use crate::config::credentials::{CredentialConfig as Config, OAuth2};
use crate::config::faults::{Faults, Located};
use crate::config::upstream;
use crate::engine::token_error::{TokenError, TokenFault};
use crate::engine::upstream::{Target, UpstreamClient};
use crate::rules::auth::{self, Keys};
use http::{HeaderName, HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The beginning of the identity of a forwarded credential. Until a request sends the credential, it is the whole identity.
const FORWARDED_PREFIX: &str = "forwarded:";

/// A header field that carries a credential. Its value is marked sensitive.
pub(crate) type SecretHeader = (HeaderName, HeaderValue);

/// A compiled credential.
#[derive(Clone)]
pub struct Credential {
    /// A digest of the credential; part of every cache key.
    pub identity: Arc<str>,
    source: CredentialSource,
}

#[derive(Clone)]
enum CredentialSource {
    /// Requests carry no credential.
    None,
    Fixed(Arc<SecretHeader>),
    /// Each client sends its own in this header.
    Forwarded(HeaderName),
    OAuth2(Arc<TokenClient>),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.source {
            CredentialSource::None => "Credential(none)",
            CredentialSource::Fixed(_) => "Credential(…)",
            CredentialSource::Forwarded(_) => "Credential(forwarded)",
            CredentialSource::OAuth2(_) => "Credential(OAuth 2.0)",
        })
    }
}

/// Why a client's credential cannot be forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum ClientCredentialError {
    #[error("this client forwards its own credential: send it in {header}, and the Weir key in X-Weir-Key")]
    Missing { header: HeaderName },
    #[error("{header} contains a Weir key, which Weir does not forward; send the provider's credential there")]
    WeirKey { header: HeaderName },
    #[error("the value of {header} has bytes that are not allowed in a header")]
    Invalid { header: HeaderName },
}

/// The credential header of one request.
#[derive(Clone)]
pub struct CredentialHeader {
    /// `None` if the request carries no credential.
    pub header: Option<SecretHeader>,
    /// The number of its token, if it carries a token that Weir fetched.
    token: Option<u64>,
}

/// What can be printed about a credential.
#[derive(Debug, Clone, Copy)]
pub struct CredentialDescription<'c> {
    /// `none`, `fixed`, `forwarded` or `oauth2`.
    pub kind: &'static str,
    /// The header that carries the credential.
    pub header: Option<&'c HeaderName>,
}

impl Credential {
    /// Returns the credential for this request. A forwarded credential is taken from the request's headers.
    ///
    /// # Errors
    /// The client did not send its credential, or sent a Weir key instead.
    pub fn for_request(&self, headers: &RequestHeaders, keys: &Keys) -> Result<Self, ClientCredentialError> {
        let CredentialSource::Forwarded(name) = &self.source else { return Ok(self.clone()) };
        let header = || name.clone();
        // Without X-Weir-Key, this header may carry the Weir key, which must not be forwarded.
        let sent = headers.get(name.as_str()).filter(|value| !value.is_empty() && auth::weir_key(headers).is_some());
        let value = sent.ok_or_else(|| ClientCredentialError::Missing { header: header() })?;
        if keys.contains(value) {
            return Err(ClientCredentialError::WeirKey { header: header() });
        }
        let identity = format!("{FORWARDED_PREFIX}{}", digest(name.as_str(), value));
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return Err(ClientCredentialError::Invalid { header: header() });
        };
        let field = Arc::new((name.clone(), sensitive(value)));
        Ok(Self { identity: identity.into(), source: CredentialSource::Fixed(field) })
    }

    /// Returns the kind of the credential and the name of its header, never its value.
    #[must_use]
    pub fn describe(&self) -> CredentialDescription<'_> {
        let (kind, header) = match &self.source {
            CredentialSource::None => ("none", None),
            CredentialSource::Fixed(header) if self.is_forwarded() => ("forwarded", Some(&header.0)),
            CredentialSource::Fixed(header) => ("fixed", Some(&header.0)),
            CredentialSource::Forwarded(name) => ("forwarded", Some(name)),
            CredentialSource::OAuth2(_) => ("oauth2", Some(&header::AUTHORIZATION)),
        };
        CredentialDescription { kind, header }
    }

    /// Returns whether each client sends its own credential.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.identity.starts_with(FORWARDED_PREFIX)
    }

    /// Returns the header in which each client sends its own credential.
    #[must_use]
    pub fn forwarded_header(&self) -> Option<&HeaderName> {
        if let CredentialSource::Forwarded(name) = &self.source { Some(name) } else { None }
    }

    /// Returns the header to send now. Fetches a token if there is no valid one, and renews it in the background if it
    /// expires soon.
    ///
    /// # Errors
    /// The token request failed.
    pub async fn header(
        &self,
        upstream: &Arc<UpstreamClient>,
        metrics: &UpstreamMetrics,
        deadline: Instant,
    ) -> Result<CredentialHeader, TokenError> {
        match &self.source {
            CredentialSource::None | CredentialSource::Forwarded(_) => {
                Ok(CredentialHeader { header: None, token: None })
            }
            CredentialSource::Fixed(header) => {
                Ok(CredentialHeader { header: Some(SecretHeader::clone(header)), token: None })
            }
            CredentialSource::OAuth2(client) => client.header(upstream, metrics, deadline).await,
        }
    }

    /// Drops the token of a header that the provider rejected. Returns whether a retry gets a different header.
    pub fn invalidate(&self, rejected: &CredentialHeader) -> bool {
        match (&self.source, rejected.token) {
            (CredentialSource::OAuth2(client), Some(number)) => {
                let mut state = client.state();
                let Some(token) = state.token.as_ref().filter(|token| token.number == number) else {
                    // A newer token has already replaced it.
                    return true;
                };
                // If the provider also rejects the replacement, the token is not the cause.
                if token.replaces_rejected && token.requested_at.elapsed() < KEEP_REPLACEMENT {
                    return false;
                }
                (state.token, state.rejected) = (None, true);
                true
            }
            _ => false,
        }
    }

    /// Returns `existing` with its token, if both are the same credential. Forwarded credentials are never reused: until a
    /// request sends them, all have the same identity, but their headers may differ.
    #[must_use]
    pub fn reuse(self, existing: &Self) -> Self {
        if self.identity == existing.identity && !self.is_forwarded() { existing.clone() } else { self }
    }
}

/// Headers that Weir or the connection sets. A credential cannot use them.
const RESERVED_HEADERS: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "accept",
    "accept-encoding",
    "user-agent",
    "te",
    "x-weir-key",
];

/// Compiles a provider's credential. Without a configuration, requests carry no credential.
#[must_use]
pub(crate) fn compile(provider: &Arc<str>, config: Option<&Config>, faults: &mut Faults) -> Credential {
    match config {
        None => none(),
        Some(Config::Header { header, value }) => fixed(header, &value.0, faults),
        Some(Config::Forward { header }) => match header_name(header, faults) {
            Some(name) => Credential { identity: FORWARDED_PREFIX.into(), source: CredentialSource::Forwarded(name) },
            None => none(),
        },
        Some(Config::OAuth2(config)) => TokenClient::compile(provider, config, faults).map_or_else(none, |client| {
            let identity = digest("oauth2", &client.identity());
            Credential { identity: identity.into(), source: CredentialSource::OAuth2(Arc::new(client)) }
        }),
    }
}

fn header_name(header: &Located<String>, faults: &mut Faults) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(header.value.to_ascii_lowercase().as_bytes())
        .ok()
        .filter(|name| !RESERVED_HEADERS.contains(&name.as_str()))
        .ok_or_else(|| format!("{:?} is not a header that can carry a credential", header.value));
    faults.keep(&header.location, name)
}

fn fixed(header: &Located<String>, value: &str, faults: &mut Faults) -> Credential {
    let name = header_name(header, faults);
    if value.is_empty() {
        return none();
    }
    let compiled = HeaderValue::from_str(value)
        .map_err(|_| "the credential has characters that are not allowed in a header (a line break?)");
    let compiled = faults.keep(&header.location, compiled).map(sensitive);
    let identity = digest(&header.value.to_ascii_lowercase(), value.as_bytes());
    let source = name.zip(compiled).map_or(CredentialSource::None, |header| CredentialSource::Fixed(header.into()));
    Credential { identity: identity.into(), source }
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

fn none() -> Credential {
    Credential { identity: digest("", b"").into(), source: CredentialSource::None }
}

fn digest(kind: &str, value: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(kind.len().to_le_bytes());
    digest.update(kind);
    digest.update(value);
    hex::encode(&digest.finalize()[..12])
}

/// The lifetime of a token whose response has no `expires_in`.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
/// A token is renewed this long before it expires, but not before four fifths of its lifetime.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// A token that replaced a rejected token is not replaced again within this time.
const KEEP_REPLACEMENT: Duration = Duration::from_secs(10);
/// After a failed token request, all requests get its error for this time. Then the next request tries again.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Fetches and renews a token with client credentials (RFC 6749, section 4.4).
struct TokenClient {
    provider: Arc<str>,
    target: Target,
    /// The body of the token request. It contains the secret.
    form: String,
    state: Mutex<TokenState>,
    /// Locked during a token request, so that there is only one at a time.
    fetch_lock: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct TokenState {
    token: Option<Token>,
    /// How many tokens were fetched.
    fetched: u64,
    /// The provider rejected the last token before it expired.
    rejected: bool,
    last_failure: Option<(Instant, TokenError)>,
}

impl TokenState {
    /// Returns the error of the last token request, if it failed so recently that Weir does not try again.
    fn recent_failure(&self) -> Option<&TokenError> {
        let (at, error) = self.last_failure.as_ref()?;
        (at.elapsed() < RETRY_AFTER_FAILURE).then_some(error)
    }
}

#[derive(Clone)]
struct Token {
    number: u64,
    value: HeaderValue,
    requested_at: Instant,
    renew_at: Instant,
    expires_at: Instant,
    /// It replaced a token that the provider rejected.
    replaces_rejected: bool,
}

impl TokenClient {
    fn compile(provider: &Arc<str>, config: &OAuth2, faults: &mut Faults) -> Option<Self> {
        // A reload keeps the token if the target and the form, which contain all fields, are unchanged.
        let OAuth2 { token_url, client_id, client_secret, scope } = config;
        let limits = upstream::Upstream { max_body: 64 << 10, ..upstream::Upstream::default() };
        let target = Target::compile(&token_url.value, &limits)
            .map_err(|_| format!("{:?} is not a token URL; write https://HOST[:PORT]/PATH", token_url.value));
        let target = faults.keep(&token_url.location, target)?;
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (id, secret) = (encode(client_id), encode(&client_secret.0));
        let mut form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        if let Some(scope) = scope {
            form += &format!("&scope={}", encode(scope));
        }
        Some(Self {
            provider: provider.clone(),
            target,
            form,
            state: Mutex::default(),
            fetch_lock: tokio::sync::Mutex::default(),
        })
    }

    fn identity(&self) -> Vec<u8> {
        format!("{}\n{}", self.target.base_url(), self.form).into_bytes()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, TokenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current token, if it is valid, and whether it is time to renew it.
    fn current(&self, now: Instant) -> Option<(CredentialHeader, bool)> {
        let state = self.state();
        let token = state.token.as_ref().filter(|token| now < token.expires_at)?;
        let header =
            CredentialHeader { header: Some((header::AUTHORIZATION, token.value.clone())), token: Some(token.number) };
        Some((header, now >= token.renew_at))
    }

    async fn header(
        self: &Arc<Self>,
        upstream: &Arc<UpstreamClient>,
        metrics: &UpstreamMetrics,
        deadline: Instant,
    ) -> Result<CredentialHeader, TokenError> {
        if let Some((header, renew)) = self.current(Instant::now()) {
            if renew {
                self.renew_in_background(upstream, metrics);
            }
            return Ok(header);
        }
        let _locked =
            timeout_at(deadline, self.fetch_lock.lock()).await.map_err(|_| self.error(TokenFault::Deadline))?;
        // Requests that waited for the lock use the result of the last token request, even if it failed.
        if let Some((header, _)) = self.current(Instant::now()) {
            return Ok(header);
        }
        if let Some(error) = self.state().recent_failure() {
            return Err(error.clone());
        }
        self.fetch(upstream, metrics, deadline).await
    }

    /// Starts a renewal while the old token is still valid, unless one is already running.
    #[allow(clippy::disallowed_methods)] // no request waits for it, and it ends by its deadline
    fn renew_in_background(self: &Arc<Self>, upstream: &Arc<UpstreamClient>, metrics: &UpstreamMetrics) {
        let (client, upstream, metrics) = (self.clone(), upstream.clone(), metrics.clone());
        tokio::spawn(async move {
            let Ok(_locked) = client.fetch_lock.try_lock() else { return };
            let failed = client.state().recent_failure().is_some();
            if !failed && client.current(Instant::now()).is_none_or(|(_, renew)| renew) {
                let deadline = Instant::now() + client.target.timeout;
                let _ = client.fetch(&upstream, &metrics, deadline).await;
            }
        });
    }

    /// Requests a token and stores it, or stores the failure.
    async fn fetch(
        &self,
        upstream: &UpstreamClient,
        metrics: &UpstreamMetrics,
        deadline: Instant,
    ) -> Result<CredentialHeader, TokenError> {
        let request = ProviderRequest { form: Some(self.form.clone().into()), ..ProviderRequest::default() };
        // The lifetime counts from before the request, so that Weir never uses an expired token.
        let requested_at = Instant::now();
        let deadline = deadline.min(requested_at + self.target.timeout);
        let mut memory = upstream.budget.own_share().reservation();
        let reply = upstream.send(&self.target, &request, deadline, &mut memory, |_| true).await;
        match &reply {
            Ok(reply) => {
                metrics.requests.with_label_values(&[&*self.provider, "token", &reply.status.to_string()]).inc();
            }
            Err(failure) => metrics.failed(&self.provider, "token", failure.kind),
        }
        let result = match reply {
            Ok(reply) => self.read(&reply),
            Err(failure) => Err(self.error(TokenFault::Transport(failure))),
        };
        let mut state = self.state();
        match result {
            Ok((value, lifetime)) => {
                state.fetched += 1;
                let token = Token {
                    number: state.fetched,
                    value,
                    requested_at,
                    renew_at: requested_at + lifetime.saturating_sub(RENEW_BEFORE.min(lifetime / 5)),
                    expires_at: requested_at + lifetime,
                    replaces_rejected: std::mem::take(&mut state.rejected),
                };
                (state.token, state.last_failure) = (Some(token.clone()), None);
                Ok(CredentialHeader { header: Some((header::AUTHORIZATION, token.value)), token: Some(token.number) })
            }
            Err(error) => {
                state.last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Reads the token and its lifetime from a response (RFC 6749, section 5).
    ///
    /// # Errors
    /// The status is not 200, or the body has no usable token.
    fn read(&self, reply: &ProviderReply) -> Result<(HeaderValue, Duration), TokenError> {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if reply.status != 200 {
            // Shows only the error code of the body, and only if it has the form of the RFC's codes.
            let code = body["error"]
                .as_str()
                .filter(|code| code.len() < 40 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            let error = code.map_or_else(String::new, |code| format!(" ({code})"));
            return Err(self.error(TokenFault::Status { status: reply.status, error }));
        }
        let unusable = || self.error(TokenFault::NoToken);
        let token = body["access_token"].as_str().filter(|token| !token.is_empty()).ok_or_else(unusable)?;
        let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| unusable())?;
        let seconds = body["expires_in"].as_u64().or_else(|| body["expires_in"].as_str()?.parse().ok());
        // Bounded by a year, so that adding it to a time cannot overflow.
        let lifetime = seconds.map_or(DEFAULT_LIFETIME, |seconds| Duration::from_secs(seconds.clamp(1, 31_536_000)));
        Ok((sensitive(value), lifetime))
    }

    fn error(&self, fault: TokenFault) -> TokenError {
        TokenError { provider: self.provider.clone(), fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::problem::Code;
    use crate::base::problem::Problem;
    use crate::config::decode::Secret;
    use crate::config::faults::Location;
    use bytes::Bytes;

    fn at(text: &str) -> Located<String> {
        Located { value: text.to_owned(), location: Location::top(&"f".into()) }
    }

    fn credential(header: &str, value: &str) -> (Credential, usize) {
        let mut faults = Faults::default();
        let config = Config::Header { header: at(header), value: Secret(value.into()) };
        let compiled = compile(&"p".into(), Some(&config), &mut faults);
        (compiled, faults.sorted().len())
    }

    fn oauth2(secret: &str) -> Credential {
        let config = OAuth2 {
            token_url: at("https://p.example/oauth2/token"),
            client_id: "us".into(),
            client_secret: Secret(secret.into()),
            scope: None,
        };
        compile(&"p".into(), Some(&Config::OAuth2(config)), &mut Faults::default())
    }

    #[test]
    fn identity_depends_on_header_and_value() {
        let of = |header, value| credential(header, value).0.identity;
        assert_eq!(of("X-Api-Key", "a"), of("x-api-key", "a"));
        assert_ne!(of("x-api-key", "a"), of("x-api-key", "b"));
        assert_ne!(of("x-api-key", "a"), of("authorization", "a"));
        assert_ne!(of("x-api-key", "a"), of("x-api-key", ""));
        assert_ne!(oauth2("a").identity, oauth2("b").identity);
        assert_eq!(oauth2("a").identity, oauth2("a").identity);
    }

    #[test]
    fn a_forwarded_credential_has_the_identity_of_its_value() {
        let config = Config::Forward { header: at("x-api-key") };
        let forward = compile(&"p".into(), Some(&config), &mut Faults::default());
        let of = |value: &'static str| {
            let pairs = [("x-api-key", value.as_bytes()), ("x-weir-key", b"w")];
            forward.for_request(&pairs.into_iter().collect(), &Keys::default()).unwrap()
        };
        assert_ne!(of("a").identity, of("b").identity);
        assert_ne!(of("a").identity, credential("x-api-key", "a").0.identity, "never equal to a configured credential");
        assert!(of("a").is_forwarded() && !format!("{:?}", of("hunter2")).contains("hunter2"));
        let error_code = |headers: &RequestHeaders| {
            let error = forward.for_request(headers, &Keys::default()).unwrap_err();
            Box::<Problem>::from(error).code
        };
        assert_eq!(error_code(&RequestHeaders::default()), Code::Unauthorized);
        let alone = [("x-api-key", &b"weir's"[..])].into_iter().collect();
        assert_eq!(error_code(&alone), Code::Unauthorized, "Weir's key is not forwarded");
    }

    #[test]
    fn debug_output_has_no_credential() {
        let (compiled, _) = credential("x-api-key", "hunter2");
        let CredentialSource::Fixed(header) = &compiled.source else { panic!("no header") };
        assert!(!format!("{compiled:?} {header:?} {:?}", oauth2("hunter2")).contains("hunter2"));
    }

    #[test]
    fn invalid_credential_headers_are_faults() {
        assert_eq!(credential("x-api-key", "a\r\nb").1, 1);
        assert_eq!(credential("host", "a").1, 1);
        assert_eq!(credential("not a header", "a").1, 1);
    }

    #[test]
    fn token_responses_are_read_by_the_rfc() {
        let credential = oauth2("s");
        let CredentialSource::OAuth2(client) = &credential.source else { panic!("no token client") };
        let read = |status, body: &'static str| {
            client.read(&ProviderReply {
                status,
                headers: http::HeaderMap::new(),
                body: Bytes::from_static(body.as_bytes()),
            })
        };
        let (value, lifetime) = read(200, r#"{"access_token":"t","token_type":"bearer","expires_in":"60"}"#).unwrap();
        assert_eq!(
            (value.to_str().unwrap(), lifetime, value.is_sensitive()),
            ("Bearer t", Duration::from_secs(60), true)
        );
        assert_eq!(read(200, r#"{"access_token":"t"}"#).unwrap().1, DEFAULT_LIFETIME);
        for (status, body, code) in [
            (200, "{}", Code::ProviderAuthFailed),
            (200, "<html>", Code::ProviderAuthFailed),
            (401, r#"{"error":"invalid_client"}"#, Code::ProviderAuthFailed),
            (429, "", Code::ProviderRateLimited),
            (500, "", Code::ProviderError),
        ] {
            assert_eq!(read(status, body).unwrap_err().code(), code, "{status}");
        }
        assert!(read(401, r#"{"error":"invalid_client"}"#).unwrap_err().to_string().contains("(invalid_client)"));
        assert!(!read(401, r#"{"error":"Secret Words"}"#).unwrap_err().to_string().contains("Words"));
    }
}
