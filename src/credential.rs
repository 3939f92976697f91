//! What a provider is shown instead of the client's key, and the identity that goes into cache keys.
//!
//! A room of its own because a credential is the only secret that leaves Weir. It may be fixed, brought
//! by the client, or a token that is fetched and renewed here. Its value is never printed: the header
//! value is marked sensitive, and the identity is a digest.

use crate::auth::{self, Keys};
use crate::config::credentials::{Credential as Config, OAuth2};
use crate::config::faults::{At, Faults};
use crate::config::upstream;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{FailureKind, ProviderReply, ProviderRequest};
use crate::headers::Headers;
use crate::metrics::UpstreamMetrics;
use crate::upstream::{Target, Upstream};
use http::{HeaderName, HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Begins the identity of every credential that a client brought. Alone it stands for all of them.
const FORWARDED: &str = "forwarded:";

/// A header that carries a credential; its value is marked sensitive.
pub type Header = (HeaderName, HeaderValue);

/// A credential, compiled.
#[derive(Clone)]
pub struct Credential {
    /// Part of every cache key.
    pub identity: Arc<str>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// Nothing is sent.
    None,
    Fixed(Arc<Header>),
    /// The client's own, in this header.
    Forward(HeaderName),
    Grant(Arc<Grant>),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.source {
            Source::None => "Credential(none)",
            Source::Fixed(_) => "Credential(…)",
            Source::Forward(_) => "Credential(the client's)",
            Source::Grant(_) => "Credential(OAuth 2.0)",
        })
    }
}

/// A header to send, and which token it is, if it is one of Weir's.
#[derive(Clone)]
pub struct Shown {
    /// `None`: nothing is sent.
    pub header: Option<Header>,
    token: Option<u64>,
}

impl Credential {
    /// The one to ask with for this request: a client that brings its own must have sent it.
    ///
    /// # Errors
    /// 401 where it did not, or where what it sent is one of these keys of Weir's.
    pub fn of_request(&self, headers: &Headers, keys: &Keys) -> Outcome<Self> {
        let Source::Forward(name) = &self.source else { return Ok(self.clone()) };
        let refused = |detail| Err(Box::new(Problem::new(Code::Unauthorized, detail)));
        // Where the Weir key did not come apart, what stands there is that: not to be sent on.
        let brought = headers.get(name.as_str()).filter(|value| !value.is_empty() && auth::apart(headers).is_some());
        let Some(value) = brought else {
            return refused(format!(
                "this client brings its own credential: send it in {name}, and the Weir key in X-Weir-Key"
            ));
        };
        if keys.knows(value) {
            return refused(format!(
                "what came in {name} is a Weir key, which is not sent on; send the provider's own credential there"
            ));
        }
        let identity = format!("{FORWARDED}{}", digest(name.as_str(), value));
        let Ok(mut value) = HeaderValue::from_bytes(value) else {
            return refused(format!("what came in {name} cannot stand in a header"));
        };
        value.set_sensitive(true);
        Ok(Self { identity: identity.into(), source: Source::Fixed(Arc::new((name.clone(), value))) })
    }

    /// How what is shown is had, and the header it goes in; never its value.
    #[must_use]
    pub fn described(&self) -> (&'static str, Option<&HeaderName>) {
        match &self.source {
            Source::None => ("none", None),
            Source::Fixed(header) if self.is_forwarded() => ("forwarded", Some(&header.0)),
            Source::Fixed(header) => ("fixed", Some(&header.0)),
            Source::Forward(name) => ("forwarded", Some(name)),
            Source::Grant(_) => ("oauth2", Some(&header::AUTHORIZATION)),
        }
    }

    /// Whether each client brings its own.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.identity.starts_with(FORWARDED)
    }

    /// The header in which each client brings its own.
    #[must_use]
    pub fn brought_in(&self) -> Option<&HeaderName> {
        if let Source::Forward(name) = &self.source { Some(name) } else { None }
    }

    /// What to send now. A token is fetched where there is none that is valid, and renewed behind this
    /// request where it will soon expire.
    ///
    /// # Errors
    /// 502 `provider_auth_failed` where none is to be had, or what kept us from asking.
    pub async fn show(&self, upstream: &Arc<Upstream>, metrics: &UpstreamMetrics, deadline: Instant) -> Outcome<Shown> {
        match &self.source {
            Source::None | Source::Forward(_) => Ok(Shown { header: None, token: None }),
            Source::Fixed(header) => Ok(Shown { header: Some(Header::clone(header)), token: None }),
            Source::Grant(grant) => grant.show(upstream, metrics, deadline).await,
        }
    }

    /// The provider refused what was shown. `true` where another can be had: a token is forgotten, so
    /// that the next one is new.
    pub fn refused(&self, shown: &Shown) -> bool {
        match (&self.source, shown.token) {
            (Source::Grant(grant), Some(number)) => {
                let mut state = grant.state();
                let Some(token) = state.token.as_ref().filter(|token| token.number == number) else {
                    // Another has come in its place already.
                    return true;
                };
                // One that replaced a refused one, just now, is not to blame: what is refused is something else.
                if token.replaces && token.got.elapsed() < DISTRUST {
                    return false;
                }
                (state.token, state.refused) = (None, true);
                true
            }
            _ => false,
        }
    }

    /// Takes over what `other` has fetched, where it is the same credential. Those that clients bring are all named
    /// alike, and each is read from its own header.
    #[must_use]
    pub fn succeeding(self, other: &Self) -> Self {
        if self.identity == other.identity && !self.is_forwarded() { other.clone() } else { self }
    }
}

/// Headers that Weir or the connection sets; a credential may not stand in their place.
const TAKEN: [&str; 9] = [
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

/// Compiles a provider's credential, or the absence of one.
#[must_use]
pub fn compile(provider: &Arc<str>, config: Option<&Config>, faults: &mut Faults) -> Credential {
    match config {
        None => none(),
        Some(Config::Header { header, value }) => fixed(header, &value.0, faults),
        Some(Config::Forward { header }) => match name(header, faults) {
            Some(name) => Credential { identity: FORWARDED.into(), source: Source::Forward(name) },
            None => none(),
        },
        Some(Config::OAuth2(config)) => Grant::compile(provider, config, faults).map_or_else(none, |grant| {
            let identity = digest("oauth2", &grant.identity());
            Credential { identity: identity.into(), source: Source::Grant(Arc::new(grant)) }
        }),
    }
}

fn name(header: &At<String>, faults: &mut Faults) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(header.value.to_ascii_lowercase().as_bytes())
        .ok()
        .filter(|name| !TAKEN.contains(&name.as_str()))
        .ok_or_else(|| format!("{:?} is not a header that can carry a credential", header.value));
    faults.keep(&header.place, name)
}

fn fixed(header: &At<String>, value: &str, faults: &mut Faults) -> Credential {
    let name = name(header, faults);
    if value.is_empty() {
        return none();
    }
    let compiled = HeaderValue::from_str(value)
        .map_err(|_| "the credential's value holds characters that a header cannot have (a line break?)");
    let compiled = faults.keep(&header.place, compiled).map(sensitive);
    let identity = digest(&header.value.to_ascii_lowercase(), value.as_bytes());
    let source = name.zip(compiled).map_or(Source::None, |header| Source::Fixed(header.into()));
    Credential { identity: identity.into(), source }
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

fn none() -> Credential {
    Credential { identity: digest("", b"").into(), source: Source::None }
}

fn digest(what: &str, value: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(what.len().to_le_bytes());
    digest.update(what);
    digest.update(value);
    digest.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// How long a token is good for where the provider does not say.
const UNSAID: Duration = Duration::from_secs(300);
/// How long before its end a token is renewed, if that is not more than a fifth of its life.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a token that replaced a refused one is not replaced for being refused.
const DISTRUST: Duration = Duration::from_secs(10);
/// How long a failure to get one is answered to all before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Client credentials, and the token they last got (RFC 6749, section 4.4).
struct Grant {
    provider: Arc<str>,
    target: Target,
    /// The request's body; it holds the secret.
    form: String,
    state: Mutex<State>,
    /// Held by the one who fetches.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    tokens: u64,
    /// The last one was refused before its end.
    refused: bool,
    failed: Option<(Instant, Box<Problem>)>,
}

#[derive(Clone)]
struct Token {
    number: u64,
    value: HeaderValue,
    got: Instant,
    renew: Instant,
    ends: Instant,
    /// It took the place of one that the provider refused.
    replaces: bool,
}

impl Grant {
    fn compile(provider: &Arc<str>, config: &OAuth2, faults: &mut Faults) -> Option<Self> {
        let limits = upstream::Upstream { max_body: 64 << 10, ..upstream::Upstream::default() };
        let target = Target::compile(&config.token_url.value, &limits)
            .map_err(|_| format!("{:?} is not a token URL; write https://HOST[:PORT]/PATH", config.token_url.value));
        let target = faults.keep(&config.token_url.place, target)?;
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (id, secret) = (encode(&config.client_id), encode(&config.client_secret.0));
        let mut form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        if let Some(scope) = &config.scope {
            form += &format!("&scope={}", encode(scope));
        }
        Some(Self {
            provider: provider.clone(),
            target,
            form,
            state: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    fn identity(&self) -> Vec<u8> {
        format!("{}\n{}", self.target.place(), self.form).into_bytes()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token there is, if it is valid, and whether it should be renewed.
    fn current(&self, now: Instant) -> Option<(Shown, bool)> {
        let state = self.state();
        let token = state.token.as_ref().filter(|token| now < token.ends)?;
        let shown = Shown { header: Some((header::AUTHORIZATION, token.value.clone())), token: Some(token.number) };
        Some((shown, now >= token.renew))
    }

    async fn show(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        metrics: &UpstreamMetrics,
        deadline: Instant,
    ) -> Outcome<Shown> {
        if let Some((shown, renew)) = self.current(Instant::now()) {
            if renew {
                self.renew_behind(upstream, metrics);
            }
            return Ok(shown);
        }
        let late = || {
            let detail = format!("{}: no access token within the deadline", self.provider);
            Box::new(Problem::new(Code::ProviderTimeout, detail).of(&self.provider))
        };
        let _mine = timeout_at(deadline, self.fetching.lock()).await.map_err(|_| late())?;
        // Whoever fetched meanwhile did it for all who waited, also where it failed.
        if let Some((shown, _)) = self.current(Instant::now()) {
            return Ok(shown);
        }
        if let Some((_, problem)) = self.state().failed.as_ref().filter(|(at, _)| at.elapsed() < RETRY) {
            return Err(problem.clone());
        }
        self.fetch(upstream, metrics, deadline).await
    }

    /// Renews while the old token is still good, unless that is under way already.
    #[allow(clippy::disallowed_methods)] // runs apart from the request, and ends by its deadline
    fn renew_behind(self: &Arc<Self>, upstream: &Arc<Upstream>, metrics: &UpstreamMetrics) {
        let (grant, upstream, metrics) = (self.clone(), upstream.clone(), metrics.clone());
        tokio::spawn(async move {
            let Ok(_mine) = grant.fetching.try_lock() else { return };
            let failed = grant.state().failed.as_ref().is_some_and(|(at, _)| at.elapsed() < RETRY);
            if !failed && grant.current(Instant::now()).is_none_or(|(_, renew)| renew) {
                let deadline = Instant::now() + grant.target.timeout;
                let _ = grant.fetch(&upstream, &metrics, deadline).await;
            }
        });
    }

    async fn fetch(&self, upstream: &Upstream, metrics: &UpstreamMetrics, deadline: Instant) -> Outcome<Shown> {
        let request = ProviderRequest { form: Some(self.form.clone().into()), ..ProviderRequest::default() };
        // Counted from before it was asked for: it must not be thought good for longer than it is.
        let asked = Instant::now();
        let deadline = deadline.min(asked + self.target.timeout);
        let reply = upstream.ask(&self.target, &request, deadline, |_| true).await;
        let status = match &reply {
            Ok(reply) => reply.status.to_string(),
            Err(failure) => failure.kind.as_str().to_owned(),
        };
        metrics.requests.with_label_values(&[&*self.provider, "token", &status]).inc();
        let got = match reply {
            Ok(reply) => self.read(&reply),
            Err(failure) => {
                let code = match failure.kind {
                    FailureKind::Timeout => Code::ProviderTimeout,
                    _ => Code::ProviderError,
                };
                Err(self.problem(code, &failure.detail))
            }
        };
        let mut state = self.state();
        match got {
            Ok((value, life)) => {
                state.tokens += 1;
                let renew = asked + life.saturating_sub(MARGIN.min(life / 5));
                let replaces = std::mem::take(&mut state.refused);
                let token = Token { number: state.tokens, value, got: asked, renew, ends: asked + life, replaces };
                (state.token, state.failed) = (Some(token.clone()), None);
                Ok(Shown { header: Some((header::AUTHORIZATION, token.value)), token: Some(token.number) })
            }
            Err(problem) => {
                state.failed = Some((Instant::now(), problem.clone()));
                Err(problem)
            }
        }
    }

    /// The token in an answer, and how long it is good for (RFC 6749, section 5).
    fn read(&self, reply: &ProviderReply) -> Outcome<(HeaderValue, Duration)> {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if reply.status != 200 {
            // The error's own word is one of a few that the RFC lists; nothing else of the body is told.
            let word = body["error"]
                .as_str()
                .filter(|word| word.len() < 40 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            let told = word.map_or_else(String::new, |word| format!(" ({word})"));
            let (code, hint) = match reply.status {
                429 | 503 => (Code::ProviderRateLimited, ""),
                400..=499 => (Code::ProviderAuthFailed, "; check oauth2: in the credentials"),
                _ => (Code::ProviderError, ""),
            };
            let mut problem = self.problem(code, &format!("its token endpoint answered {}{told}{hint}", reply.status));
            problem.provider_status = Some(reply.status);
            return Err(if code == Code::ProviderRateLimited {
                Box::new(problem.retry_after_ms(5000))
            } else {
                problem
            });
        }
        let unusable =
            || self.problem(Code::ProviderAuthFailed, "its token endpoint's answer has no usable access_token");
        let token = body["access_token"].as_str().filter(|token| !token.is_empty()).ok_or_else(unusable)?;
        let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| unusable())?;
        let said = body["expires_in"].as_u64().or_else(|| body["expires_in"].as_str()?.parse().ok());
        // A year is longer than any token should live; what says nothing is renewed soon.
        let life = said.map_or(UNSAID, |seconds| Duration::from_secs(seconds.clamp(1, 31_536_000)));
        Ok((sensitive(value), life))
    }

    fn problem(&self, code: Code, what: &str) -> Box<Problem> {
        Box::new(Problem::new(code, format!("{}: {what}", self.provider)).of(&self.provider))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Secret;
    use crate::config::faults::Place;
    use bytes::Bytes;

    fn at(text: &str) -> At<String> {
        At { value: text.to_owned(), place: Place::top(&"f".into()) }
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
    fn identity_follows_header_and_value() {
        let of = |header, value| credential(header, value).0.identity;
        assert_eq!(of("X-Api-Key", "a"), of("x-api-key", "a"));
        assert_ne!(of("x-api-key", "a"), of("x-api-key", "b"));
        assert_ne!(of("x-api-key", "a"), of("authorization", "a"));
        assert_ne!(of("x-api-key", "a"), of("x-api-key", ""));
        assert_ne!(oauth2("a").identity, oauth2("b").identity);
        assert_eq!(oauth2("a").identity, oauth2("a").identity);
    }

    #[test]
    fn a_forwarded_one_is_the_clients_and_told_apart_by_its_value() {
        let config = Config::Forward { header: at("x-api-key") };
        let forward = compile(&"p".into(), Some(&config), &mut Faults::default());
        let of = |value: &'static str| {
            let pairs = [("x-api-key", value.as_bytes()), ("x-weir-key", b"w")];
            forward.of_request(&pairs.into_iter().collect(), &Keys::default()).unwrap()
        };
        assert_ne!(of("a").identity, of("b").identity);
        assert_ne!(
            of("a").identity,
            credential("x-api-key", "a").0.identity,
            "never shared with a credential of Weir's"
        );
        assert!(of("a").is_forwarded() && !format!("{:?}", of("hunter2")).contains("hunter2"));
        assert_eq!(forward.of_request(&Headers::default(), &Keys::default()).unwrap_err().code, Code::Unauthorized);
        let alone = [("x-api-key", &b"weir's"[..])].into_iter().collect();
        assert_eq!(
            forward.of_request(&alone, &Keys::default()).unwrap_err().code,
            Code::Unauthorized,
            "Weir's key is not sent on"
        );
    }

    #[test]
    fn a_credential_never_prints_itself() {
        let (compiled, _) = credential("x-api-key", "hunter2");
        let Source::Fixed(header) = &compiled.source else { panic!("no header") };
        assert!(!format!("{compiled:?} {header:?} {:?}", oauth2("hunter2")).contains("hunter2"));
    }

    #[test]
    fn line_breaks_and_framing_headers_are_faults() {
        assert_eq!(credential("x-api-key", "a\r\nb").1, 1);
        assert_eq!(credential("host", "a").1, 1);
        assert_eq!(credential("not a header", "a").1, 1);
    }

    #[test]
    fn token_answers_are_read_as_the_rfc_has_them() {
        let credential = oauth2("s");
        let Source::Grant(grant) = &credential.source else { panic!("no grant") };
        let read = |status, body: &'static str| {
            grant.read(&ProviderReply {
                status,
                headers: http::HeaderMap::new(),
                body: Bytes::from_static(body.as_bytes()),
            })
        };
        let (value, life) = read(200, r#"{"access_token":"t","token_type":"bearer","expires_in":"60"}"#).unwrap();
        assert_eq!((value.to_str().unwrap(), life, value.is_sensitive()), ("Bearer t", Duration::from_secs(60), true));
        assert_eq!(read(200, r#"{"access_token":"t"}"#).unwrap().1, UNSAID);
        for (status, body, code) in [
            (200, "{}", Code::ProviderAuthFailed),
            (200, "<html>", Code::ProviderAuthFailed),
            (401, r#"{"error":"invalid_client"}"#, Code::ProviderAuthFailed),
            (429, "", Code::ProviderRateLimited),
            (500, "", Code::ProviderError),
        ] {
            assert_eq!(read(status, body).unwrap_err().code, code, "{status}");
        }
        assert!(read(401, r#"{"error":"invalid_client"}"#).unwrap_err().detail.contains("(invalid_client)"));
        assert!(!read(401, r#"{"error":"Secret Words"}"#).unwrap_err().detail.contains("Words"));
    }
}
