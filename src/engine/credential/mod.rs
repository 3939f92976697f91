//! Compiles provider credentials, and says what to send with each request.
//!
//! A credential is fixed, forwarded from the client, a token that Weir fetches or signs, or a signature of each request. Its
//! value is never printed: header values are marked sensitive, and the identity in cache keys is a digest.

mod jwt;
mod outgoing;
mod sent;
mod sigv4;
mod token;
pub(crate) mod token_error;

use crate::base::metrics::UpstreamMetrics;
use crate::base::model::Time;
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::{ProviderReply, ProviderRequest};
use crate::config::credentials::{CredentialConfig as Config, Jwt};
use crate::config::decode::Secret;
use crate::config::faults::{Faults, Located};
use crate::engine::upstream::{Target, UpstreamClient};
use crate::rules::auth::{self, Keys};
use crate::rules::query;
use crate::rules::query_key::QueryKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jwt::{CompiledJwt, NotSigned, SelfSigned};
pub(crate) use outgoing::{AuthenticatedRequest, OutgoingBody, OutgoingRequest, SecretHeader, SigningError};
use outgoing::{digest, sensitive};
use sent::SentContent;
pub(crate) use sent::SentCredential;
use sigv4::RequestSigner;
use std::borrow::Cow;
use std::sync::Arc;
use token::TokenClient;
use token_error::{TokenError, TokenFault};
use tokio::time::Instant;

/// The beginning of the identity of a forwarded credential. Until a request sends the credential, it is the whole identity.
const FORWARDED_PREFIX: &str = "forwarded:";

/// A compiled credential.
#[derive(Clone)]
pub struct Credential {
    /// A digest of the credential; part of every cache key.
    pub identity: Arc<str>,
    /// The form, as explanations show it.
    kind: &'static str,
    source: CredentialSource,
}

#[derive(Clone)]
enum CredentialSource {
    /// Requests carry no credential.
    None,
    /// The same headers in each request.
    Fixed(Arc<[SecretHeader]>),
    /// The same query parameter in each request.
    Query(Arc<QueryKey>),
    /// Each client sends its own in this header.
    Forwarded(HeaderName),
    /// A token that Weir fetches.
    Token(Arc<TokenClient>),
    /// A token that Weir signs.
    SelfSigned(Arc<SelfSigned>),
    /// A signature of each request.
    Signature(Arc<RequestSigner>),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({})", self.kind)
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

/// What can be printed about a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialDescription<'c> {
    /// The form: `none`, `fixed`, `headers`, `basic`, `query`, `forwarded`, `oauth2`, `jwt` or `aws_sigv4`.
    pub kind: &'static str,
    /// The query parameter that carries the credential.
    pub parameter: Option<&'c str>,
    /// The headers that carry the credential.
    pub headers: Vec<&'c HeaderName>,
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
        let identity = format!("{FORWARDED_PREFIX}{}", digest(name.as_str(), &[value]));
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return Err(ClientCredentialError::Invalid { header: header() });
        };
        let source = CredentialSource::Fixed([(name.clone(), sensitive(value))].into());
        Ok(Self { identity: identity.into(), kind: self.kind, source })
    }

    /// Returns the form of the credential and where it is sent, never its value.
    #[must_use]
    pub fn describe(&self) -> CredentialDescription<'_> {
        let parameter = self.query_key().map(|key| key.name());
        CredentialDescription { kind: self.kind, parameter, headers: self.header_names() }
    }

    /// Returns the names of the headers that only the credential may have.
    #[must_use]
    pub(crate) fn header_names(&self) -> Vec<&HeaderName> {
        match &self.source {
            CredentialSource::None | CredentialSource::Query(_) => Vec::new(),
            CredentialSource::Fixed(headers) => headers.iter().map(|(name, _)| name).collect(),
            CredentialSource::Forwarded(name) => vec![name],
            CredentialSource::Token(_) | CredentialSource::SelfSigned(_) => vec![&header::AUTHORIZATION],
            CredentialSource::Signature(_) => sigv4::HEADERS.iter().collect(),
        }
    }

    /// Returns the API key that is a query parameter, if the credential is one.
    #[must_use]
    pub(crate) fn query_key(&self) -> Option<&Arc<QueryKey>> {
        if let CredentialSource::Query(key) = &self.source { Some(key) } else { None }
    }

    /// Returns a client's query string without the parameters that only the credential may have.
    #[must_use]
    pub(crate) fn without_parameters<'q>(&self, query: &'q str) -> Cow<'q, str> {
        match &self.source {
            CredentialSource::Query(key) => query::without(query, |name| query::is_same_name(name, key.name())),
            CredentialSource::Signature(_) => {
                query::without(query, |name| sigv4::PARAMETERS.iter().any(|own| query::is_same_name(name, own)))
            }
            _ => query.into(),
        }
    }

    /// Checks that requests with this query can have the credential.
    ///
    /// # Errors
    /// The query cannot be signed.
    pub(crate) fn check_query(&self, query: &str) -> Result<(), SigningError> {
        match &self.source {
            CredentialSource::Signature(_) => query::canonical(query).map(drop).map_err(|_| SigningError::Query),
            _ => Ok(()),
        }
    }

    /// Masks the credential in a response that repeats the URL of its request.
    #[must_use]
    pub(crate) fn masked(&self, mut reply: ProviderReply) -> ProviderReply {
        let Some(key) = self.query_key() else { return reply };
        key.mask_headers(&mut reply.headers);
        ProviderReply { body: key.mask(reply.body), ..reply }
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

    /// Returns what to send now. Fetches a token if there is no valid one, and renews it in the background if it expires
    /// soon.
    ///
    /// # Errors
    /// The token request failed.
    pub async fn obtain(
        &self,
        upstream: &Arc<UpstreamClient>,
        metrics: &UpstreamMetrics,
        deadline: Instant,
        now: Time,
    ) -> Result<SentCredential, TokenError> {
        Ok(match &self.source {
            CredentialSource::None | CredentialSource::Forwarded(_) => {
                SentCredential::of(SentContent::Headers([].into()))
            }
            CredentialSource::Fixed(headers) => SentCredential::of(SentContent::Headers(headers.clone())),
            CredentialSource::Query(key) => SentCredential::of(SentContent::Query(key.clone())),
            CredentialSource::Token(client) => client.obtain(upstream, metrics, deadline, now).await?,
            CredentialSource::SelfSigned(token) => token
                .obtain(now)
                .map_err(|NotSigned| TokenError { provider: token.provider.clone(), fault: TokenFault::NotSigned })?,
            CredentialSource::Signature(signer) => SentCredential::of(SentContent::Signature(signer.clone())),
        })
    }

    /// Makes the request of a read below the base URL of `target`, with these headers.
    ///
    /// # Errors
    /// The request cannot be signed.
    pub(crate) fn read_request(
        &self,
        sent: &SentCredential,
        target: &Target,
        path_and_query: &str,
        conditions: Vec<(HeaderName, HeaderValue)>,
        now: Time,
    ) -> Result<ProviderRequest, SigningError> {
        let outgoing = OutgoingRequest { method: "GET", target, path_and_query, body: OutgoingBody::Whole(b"") };
        let headers = conditions.iter().map(|(name, value)| (name, value));
        let AuthenticatedRequest { path_and_query, headers } = sent.added_to(&outgoing, headers, now)?;
        let owner = self.identity.clone();
        Ok(ProviderRequest { path_and_query, owner, credential: headers, conditions, form: None })
    }

    /// Makes the next request differ from one that the provider answered with this status and these headers: drops its
    /// token, or follows the provider's clock. Returns whether a retry differs.
    pub(crate) fn renew(&self, rejected: &SentCredential, status: u16, headers: &HeaderMap, now: Time) -> bool {
        match (&self.source, rejected.token) {
            (CredentialSource::Token(client), Some(number)) => status == 401 && client.invalidate(number),
            (CredentialSource::Signature(signer), _) => signer.follow_clock(status, headers, now),
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
        None => none("none"),
        Some(Config::Header { header, value }) => fixed("fixed", &[(header.clone(), value.clone())], faults),
        Some(Config::Headers(headers)) => fixed("headers", headers, faults),
        Some(Config::Basic { username, password }) => {
            let header = Located { value: "authorization".to_owned(), location: username.location.clone() };
            fixed("basic", &[(header, basic(&username.value.0, password.as_ref()))], faults)
        }
        Some(Config::Query { name, value }) => query_parameter(name, value, faults),
        Some(Config::Forward { header }) => {
            let kind = "forwarded";
            header_name(header, faults).map_or_else(
                || none(kind),
                |name| Credential {
                    identity: FORWARDED_PREFIX.into(),
                    kind,
                    source: CredentialSource::Forwarded(name),
                },
            )
        }
        Some(Config::AwsSigV4(config)) => RequestSigner::compile(config).map_or_else(
            || none("none"),
            |signer| Credential {
                identity: signer.identity.clone(),
                kind: "aws_sigv4",
                source: CredentialSource::Signature(Arc::new(signer)),
            },
        ),
        Some(Config::Jwt(config)) => self_signed_or_exchanged(provider, config, faults),
        Some(Config::OAuth2(config)) => of_tokens("oauth2", TokenClient::compile(provider, config, faults)),
    }
}

fn self_signed_or_exchanged(provider: &Arc<str>, config: &Jwt, faults: &mut Faults) -> Credential {
    let kind = if config.key.secret().value.0.is_empty() { "none" } else { "jwt" };
    match jwt::compile(config, faults) {
        None => none(kind),
        Some(CompiledJwt { signer, token_url: Some(url) }) => {
            of_tokens(kind, TokenClient::of_assertion(provider, &url, signer, faults))
        }
        Some(CompiledJwt { signer, token_url: None }) => Credential {
            identity: signer.identity.clone(),
            kind,
            source: CredentialSource::SelfSigned(Arc::new(SelfSigned::new(provider, signer))),
        },
    }
}

fn of_tokens(kind: &'static str, client: Option<TokenClient>) -> Credential {
    client.map_or_else(
        || none(kind),
        |client| Credential {
            identity: client.identity.clone(),
            kind,
            source: CredentialSource::Token(Arc::new(client)),
        },
    )
}

fn header_name(header: &Located<String>, faults: &mut Faults) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(header.value.to_ascii_lowercase().as_bytes())
        .ok()
        .filter(|name| !RESERVED_HEADERS.contains(&name.as_str()))
        .ok_or_else(|| format!("{:?} is not a header that can carry a credential", header.value));
    faults.keep(&header.location, name)
}

/// Returns the value of `Authorization` for a user name and a password in UTF-8 (RFC 7617); empty if both are empty.
fn basic(username: &str, password: Option<&Secret>) -> Secret {
    let pair = format!("{username}:{}", password.map_or("", |password| &password.0));
    Secret(if pair == ":" { String::new() } else { format!("Basic {}", STANDARD.encode(pair)) })
}

/// Compiles headers with fixed values. Leaves out a header whose value is empty.
fn fixed(kind: &'static str, headers: &[(Located<String>, Secret)], faults: &mut Faults) -> Credential {
    let mut compiled = Vec::new();
    for (header, value) in headers {
        let name = header_name(header, faults);
        if value.0.is_empty() {
            continue;
        }
        let value = HeaderValue::from_str(&value.0)
            .map_err(|_| "the credential has characters that are not allowed in a header (a line break?)");
        compiled.extend(name.zip(faults.keep(&header.location, value).map(sensitive)));
    }
    // The order in the file makes no difference.
    compiled.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
    let identity = match compiled.as_slice() {
        [] => return none("none"),
        [(name, value)] => digest(name.as_str(), &[value.as_bytes()]),
        several => {
            let parts = several.iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
            digest("headers", &parts.collect::<Vec<_>>())
        }
    };
    Credential { identity: identity.into(), kind, source: CredentialSource::Fixed(compiled.into()) }
}

fn query_parameter(name: &Located<String>, value: &Secret, faults: &mut Faults) -> Credential {
    if value.0.is_empty() {
        return none("none");
    }
    if value.0.chars().any(char::is_control) {
        let message = "the credential has characters that are not allowed in a query (a line break?)";
        faults.add(&name.location, message);
    }
    let identity = digest("query", &[name.value.as_bytes(), value.0.as_bytes()]).into();
    let source = CredentialSource::Query(Arc::new(QueryKey::new(&name.value, &value.0)));
    Credential { identity, kind: "query", source }
}

fn none(kind: &'static str) -> Credential {
    Credential { identity: digest("", &[b""]).into(), kind, source: CredentialSource::None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::problem::Code;
    use crate::base::problem::Problem;
    use crate::config::credentials::OAuth2;
    use crate::config::faults::Location;

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
}
