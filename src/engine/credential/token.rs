//! Fetches and renews the access tokens of a provider (OAuth 2.0).

use super::jwt::{JwtSigner, NotSigned};
use super::outgoing::{digest, sensitive};
use super::sent::{SentContent, SentCredential};
use super::token_error::{TokenError, TokenFault};
use crate::base::metrics::UpstreamMetrics;
use crate::base::model::Time;
use crate::base::request_reply::{ProviderReply, ProviderRequest};
use crate::config::credentials::OAuth2;
use crate::config::faults::{Faults, Located};
use crate::config::upstream;
use crate::engine::upstream::{Target, UpstreamClient};
use http::{HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The lifetime of a token whose response has no `expires_in`.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
/// A token is renewed this long before it expires, but not before four fifths of its lifetime.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// A token that replaced a rejected token is not replaced again within this time.
const KEEP_REPLACEMENT: Duration = Duration::from_secs(10);
/// After a failed token request, all requests get its error for this time. Then the next request tries again.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// With what Weir gets a token.
enum Grant {
    /// Client credentials (RFC 6749, section 4.4): the body of the token request. It contains the secret.
    ClientCredentials(String),
    /// A signed assertion (RFC 7523, section 2.1), made for each token request.
    Assertion(Box<JwtSigner>),
}

impl Grant {
    /// Returns the body of a token request.
    fn form(&self, now: Time) -> Result<String, NotSigned> {
        match self {
            Self::ClientCredentials(form) => Ok(form.clone()),
            Self::Assertion(signer) => {
                let grant_type = encode("urn:ietf:params:oauth:grant-type:jwt-bearer");
                // A signed token needs no encoding.
                Ok(format!("grant_type={grant_type}&assertion={}", signer.sign(now)?))
            }
        }
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Fetches and renews a token.
pub(super) struct TokenClient {
    provider: Arc<str>,
    /// The identity of the credential.
    pub(super) identity: Arc<str>,
    target: Target,
    grant: Grant,
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

impl Token {
    fn sent(&self) -> SentCredential {
        let headers = [(header::AUTHORIZATION, self.value.clone())];
        SentCredential { content: SentContent::Headers(headers.into()), token: Some(self.number) }
    }
}

impl TokenClient {
    /// Compiles client credentials.
    pub(super) fn compile(provider: &Arc<str>, config: &OAuth2, faults: &mut Faults) -> Option<Self> {
        // A reload keeps the token if the target and the form, which contain all fields, are unchanged.
        let OAuth2 { token_url, client_id, client_secret, scope } = config;
        let target = target(token_url, faults)?;
        let (id, secret) = (encode(client_id), encode(&client_secret.0));
        let mut form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        if let Some(scope) = scope {
            form += &format!("&scope={}", encode(scope));
        }
        let identity = digest("oauth2", &[format!("{}\n{form}", target.base_url()).as_bytes()]).into();
        Some(Self::new(provider, identity, target, Grant::ClientCredentials(form)))
    }

    /// Compiles a signed assertion that is exchanged at `token_url`.
    pub(super) fn of_assertion(
        provider: &Arc<str>,
        token_url: &Located<String>,
        signer: JwtSigner,
        faults: &mut Faults,
    ) -> Option<Self> {
        let (target, identity) = (target(token_url, faults)?, signer.identity.clone());
        Some(Self::new(provider, identity, target, Grant::Assertion(Box::new(signer))))
    }

    fn new(provider: &Arc<str>, identity: Arc<str>, target: Target, grant: Grant) -> Self {
        Self {
            provider: provider.clone(),
            identity,
            target,
            grant,
            state: Mutex::default(),
            fetch_lock: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, TokenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current token, if it is valid, and whether it is time to renew it.
    fn current(&self, now: Instant) -> Option<(SentCredential, bool)> {
        let state = self.state();
        let token = state.token.as_ref().filter(|token| now < token.expires_at)?;
        Some((token.sent(), now >= token.renew_at))
    }

    /// Returns the token to send now. Fetches one if there is no valid one, and renews it in the background if it expires
    /// soon.
    ///
    /// # Errors
    /// The token request failed.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        upstream: &Arc<UpstreamClient>,
        metrics: &UpstreamMetrics,
        deadline: Instant,
        now: Time,
    ) -> Result<SentCredential, TokenError> {
        if let Some((header, renew)) = self.current(Instant::now()) {
            if renew {
                self.renew_in_background(upstream, metrics, now);
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
        self.fetch(upstream, metrics, deadline, now).await
    }

    /// Starts a renewal while the old token is still valid, unless one is already running.
    #[allow(clippy::disallowed_methods)] // no request waits for it, and it ends by its deadline
    fn renew_in_background(self: &Arc<Self>, upstream: &Arc<UpstreamClient>, metrics: &UpstreamMetrics, now: Time) {
        let (client, upstream, metrics) = (self.clone(), upstream.clone(), metrics.clone());
        tokio::spawn(async move {
            let Ok(_locked) = client.fetch_lock.try_lock() else { return };
            let failed = client.state().recent_failure().is_some();
            if !failed && client.current(Instant::now()).is_none_or(|(_, renew)| renew) {
                let deadline = Instant::now() + client.target.timeout;
                let _ = client.fetch(&upstream, &metrics, deadline, now).await;
            }
        });
    }

    /// Requests a token and stores it, or stores the failure.
    async fn fetch(
        &self,
        upstream: &UpstreamClient,
        metrics: &UpstreamMetrics,
        deadline: Instant,
        now: Time,
    ) -> Result<SentCredential, TokenError> {
        let form = self.grant.form(now).map_err(|NotSigned| self.error(TokenFault::NotSigned))?;
        let request =
            ProviderRequest { owner: self.identity.clone(), form: Some(form.into()), ..ProviderRequest::default() };
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
                Ok(token.sent())
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

    /// Drops a token that the provider rejected. Returns whether a retry gets a different one.
    pub(super) fn invalidate(&self, number: u64) -> bool {
        let mut state = self.state();
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

    fn error(&self, fault: TokenFault) -> TokenError {
        TokenError { provider: self.provider.clone(), fault }
    }
}

fn target(token_url: &Located<String>, faults: &mut Faults) -> Option<Target> {
    let limits = upstream::Upstream { max_body: 64 << 10, ..upstream::Upstream::default() };
    let target = Target::compile(&token_url.value, &limits)
        .map_err(|_| format!("{:?} is not a token URL; write https://HOST[:PORT]/PATH", token_url.value));
    faults.keep(&token_url.location, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::problem::Code;
    use crate::config::decode::Secret;
    use crate::config::faults::Location;
    use bytes::Bytes;

    fn client() -> TokenClient {
        let location = Location::top(&"f".into());
        let config = OAuth2 {
            token_url: Located { value: "https://p.example/oauth2/token".into(), location },
            client_id: "us".into(),
            client_secret: Secret("s".into()),
            scope: None,
        };
        TokenClient::compile(&"p".into(), &config, &mut Faults::default()).unwrap()
    }

    #[test]
    fn token_responses_are_read_by_the_rfc() {
        let client = client();
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
