//! Translates every cause of a failed request into the problem that the client gets.
//!
//! Lower folders return their own error types. This file has one `From` for each type, and one function for each error of
//! the pipeline itself. The server makes the problems of connections and of malformed requests.

use crate::base::memory_budget::BufferLimit;
use crate::base::problem::{Code, Problem, SHORT_RETRY, retry_seconds};
use crate::base::request_reply::FailureKind;
use crate::base::request_reply::FormError;
use crate::engine::credential::token_error::TokenError;
use crate::engine::credential::{ClientCredentialError, SigningError};
use crate::engine::rate_limit::{Bucket, Refusal};
use crate::fetch::error::{FetchCause, FetchError, NoOperation};
use crate::fetch::provider_admission::NotAdmitted;
use crate::fetch::provider_query::{IdentityError, NotPermitted, ProviderQueryError};
use crate::rules::auth::AuthError;
use crate::rules::cut_list::CutList;
use crate::rules::error_rules::{ProviderError, ProviderErrorCause};
use crate::rules::fields::UnreadableSession;
use crate::rules::page_token::InvalidPageToken;
use crate::rules::provider_body::UnreadableBody;
use crate::rules::request_limits::LimitExceeded;
use crate::rules::route_error::RouteError;
use crate::rules::watch_token::{AuthFailure, WatchTokenError};
use std::sync::Arc;
use std::time::Duration;

/// `Retry-After` if a token endpoint throttles.
const TOKEN_RETRY: Duration = Duration::from_secs(5);

/// Methods that are forwarded to a provider's own API.
pub(crate) const FORWARDED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

fn problem(code: Code, detail: &(impl ToString + ?Sized)) -> Box<Problem> {
    Box::new(Problem::new(code, detail.to_string()))
}

fn of_provider(provider: &Arc<str>, code: Code, detail: &(impl ToString + ?Sized)) -> Box<Problem> {
    Box::new(Problem::new(code, detail.to_string()).of(provider))
}

impl From<LimitExceeded> for Box<Problem> {
    fn from(exceeded: LimitExceeded) -> Self {
        let code = match exceeded {
            LimitExceeded::Url { .. } => Code::UrlTooLong,
            LimitExceeded::HeaderCount { .. }
            | LimitExceeded::HeaderBytes { .. }
            | LimitExceeded::HeaderList { .. } => Code::HeadersTooLarge,
            LimitExceeded::Body { .. } => Code::BodyTooLarge,
        };
        problem(code, &exceeded)
    }
}

impl From<AuthError> for Box<Problem> {
    fn from(error: AuthError) -> Self {
        let code = match error {
            AuthError::MissingKey | AuthError::UnknownKey | AuthError::ExpiredKey => Code::Unauthorized,
            AuthError::SeveralWeirKeys | AuthError::SeveralKeys => Code::InvalidRequest,
        };
        problem(code, &error)
    }
}

impl From<WatchTokenError> for Box<Problem> {
    fn from(error: WatchTokenError) -> Self {
        let code = match error {
            WatchTokenError::WithKey => Code::InvalidRequest,
            _ => Code::Unauthorized,
        };
        problem(code, &error)
    }
}

impl From<AuthFailure> for Box<Problem> {
    fn from(failure: AuthFailure) -> Self {
        match failure {
            AuthFailure::Key(error) => error.into(),
            AuthFailure::Token(error) => error.into(),
        }
    }
}

impl From<RouteError> for Box<Problem> {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::UnknownPath | RouteError::UnknownFile => problem(Code::NotFound, &error),
            RouteError::UnknownProvider { .. } => problem(Code::ProviderNotFound, &error),
            RouteError::Method { allow, .. } => Box::new(Problem::method_not_allowed(error.to_string(), allow)),
            RouteError::Form(FormError::TooLarge { .. }) => problem(Code::BodyTooLarge, &error),
            RouteError::Form(FormError::Late) => problem(Code::RequestTimeout, &error),
            RouteError::Form(FormError::NoMemory) => Box::new(Problem::overloaded(error.to_string())),
            _ => problem(Code::InvalidRequest, &error),
        }
    }
}

impl From<InvalidPageToken> for Box<Problem> {
    fn from(error: InvalidPageToken) -> Self {
        problem(Code::InvalidRequest, &error)
    }
}

impl From<UnreadableSession> for Box<Problem> {
    fn from(error: UnreadableSession) -> Self {
        problem(Code::InternalError, &error)
    }
}

impl From<NotPermitted> for Box<Problem> {
    fn from(error: NotPermitted) -> Self {
        of_provider(&error.provider, Code::Forbidden, &error)
    }
}

impl From<ClientCredentialError> for Box<Problem> {
    fn from(error: ClientCredentialError) -> Self {
        problem(Code::Unauthorized, &error)
    }
}

impl From<SigningError> for Box<Problem> {
    fn from(error: SigningError) -> Self {
        problem(Code::InvalidRequest, &error)
    }
}

impl From<IdentityError> for Box<Problem> {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::NotPermitted(error) => error.into(),
            IdentityError::Credential(error) => error.into(),
        }
    }
}

impl From<NoOperation> for Box<Problem> {
    fn from(error: NoOperation) -> Self {
        problem(Code::InvalidRequest, &error)
    }
}

impl From<ProviderQueryError> for Box<Problem> {
    fn from(error: ProviderQueryError) -> Self {
        match error {
            ProviderQueryError::Identity(error) => error.into(),
            ProviderQueryError::NoOperation(error) => error.into(),
            ProviderQueryError::Id(error) => problem(Code::InvalidRequest, &error),
            ProviderQueryError::Headers(error) => problem(Code::InvalidRequest, &error),
        }
    }
}

impl From<NotAdmitted> for Box<Problem> {
    fn from(error: NotAdmitted) -> Self {
        let mut problem = Problem::new(error.code(), error.to_string());
        match &error {
            NotAdmitted::Pause { provider, wait }
            | NotAdmitted::Breaker { provider, wait }
            | NotAdmitted::Capacity { provider, wait, .. } => problem = problem.of(provider).retry_in(*wait),
            NotAdmitted::ClientShare { provider, .. } | NotAdmitted::CapacityShare { provider, .. } => {
                problem = problem.of(provider).retry_in(SHORT_RETRY);
            }
            NotAdmitted::TooManyCalls { .. }
            | NotAdmitted::CallShare { .. }
            | NotAdmitted::TooManyConnections { .. }
            | NotAdmitted::ConnectionShare { .. } => problem = problem.retry_in(SHORT_RETRY),
        }
        Box::new(problem)
    }
}

impl From<TokenError> for Box<Problem> {
    fn from(error: TokenError) -> Self {
        let mut problem = Problem::new(error.code(), error.to_string()).of(&error.provider);
        problem.provider_status = error.status();
        if problem.code == Code::ProviderRateLimited {
            problem = problem.retry_in(TOKEN_RETRY);
        }
        Box::new(problem)
    }
}

impl From<&ProviderError> for Box<Problem> {
    fn from(error: &ProviderError) -> Self {
        let mut problem = of_provider(&error.provider, error.code(), &provider_error_detail(error));
        let own_limit = matches!(&error.cause, ProviderErrorCause::Failure(f) if f.kind == FailureKind::Overloaded);
        let wait = error.wait.or(own_limit.then_some(SHORT_RETRY));
        problem.retry_after = wait.map(retry_seconds);
        problem.provider_status = error.status();
        problem.reply.clone_from(&error.reply);
        problem
    }
}

impl From<ProviderError> for Box<Problem> {
    fn from(error: ProviderError) -> Self {
        Self::from(&error)
    }
}

/// Returns the detail of a provider's error: what happened, and the provider's own text.
fn provider_error_detail(error: &ProviderError) -> String {
    let provider = &error.provider;
    let text = error.text.as_ref().map_or_else(String::new, |text| format!(": {text}"));
    match &error.cause {
        ProviderErrorCause::Response { status, code } => match code {
            Code::ProviderAuthFailed => refused_credential_detail(provider, *status),
            Code::AgentNotFound => format!("{provider} does not know this agent{text}"),
            Code::SessionNotFound => format!("{provider} does not know this session{text}"),
            Code::Forbidden => format!("{provider} does not permit this{text}"),
            Code::ProviderRateLimited => format!("{provider} is throttling requests{text}"),
            _ => format!("{provider} responded with {status}{text}"),
        },
        ProviderErrorCause::ForwardedCredentialRefused { .. } => {
            format!("{provider} refused the credential of this request")
        }
        ProviderErrorCause::Failure(failure) => format!("{provider}: {}", failure.detail),
    }
}

fn refused_credential_detail(provider: &str, status: u16) -> String {
    format!("{provider} refused Weir's credential with {status}; check the credentials in its provider file")
}

impl From<UnreadableBody> for Box<Problem> {
    fn from(error: UnreadableBody) -> Self {
        of_provider(&error.provider, Code::ProviderInvalidResponse, &error)
    }
}

impl From<FetchCause> for Box<Problem> {
    fn from(cause: FetchCause) -> Self {
        match cause {
            FetchCause::NotAdmitted(error) => error.into(),
            FetchCause::Token(error) => error.into(),
            FetchCause::Provider(error) => error.into(),
            FetchCause::NoOperation(error) => error.into(),
            FetchCause::Unreadable { error, reply } => {
                let mut problem = Self::from(error);
                problem.provider_status = reply.as_ref().map(|reply| reply.status);
                problem.reply = reply;
                problem
            }
            FetchCause::Deadline { ref provider } => of_provider(provider, Code::ProviderTimeout, &cause),
            FetchCause::TooManyWaiters => Box::new(Problem::overloaded(cause.to_string())),
            FetchCause::NotCached => problem(Code::NotCached, &cause),
            FetchCause::Outdated => problem(Code::ProviderInvalidResponse, &cause),
            FetchCause::LostCall => problem(Code::InternalError, &cause),
        }
    }
}

impl From<Box<FetchError>> for Box<Problem> {
    fn from(error: Box<FetchError>) -> Self {
        error.cause.into()
    }
}

/// 429 if the client exceeds its rate limits, 400 if the request costs more than a policy's burst.
#[must_use]
pub(crate) fn over_rate_limit(client: &str, buckets: &[&Bucket], refusal: Refusal) -> Box<Problem> {
    let (names, wait) = match refusal {
        Refusal::TooCostly { policy, burst } => {
            return Box::new(Problem::invalid(format!(
                "this request costs more than the burst ({burst}) of policy {policy:?}; read fewer sessions in one request"
            )));
        }
        Refusal::Limited { policies, retry_after } => (policies, retry_after),
    };
    let described: Vec<String> = names
        .iter()
        .filter_map(|name| buckets.iter().map(|b| &b.limiter.policy).find(|policy| policy.name == *name))
        .map(|p| {
            format!("policy {:?} ({} requests per {} s, burst {})", p.name, p.requests, p.per.as_secs_f64(), p.burst)
        })
        .collect();
    let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let mut problem = Problem::new(Code::RateLimitExceeded, String::new()).retry_in(Duration::from_millis(ms));
    let seconds = problem.retry_after.unwrap_or(1);
    problem.detail = format!("client {client:?} exceeds {}; try again in {seconds} s", described.join(" and "));
    problem.violated_policies = names;
    Box::new(problem)
}

/// 429 for a client that reads `GET /v1/providers` too often.
#[must_use]
pub(crate) fn too_many_provider_reads(client: &str, wait: Duration) -> Box<Problem> {
    let mut problem = Problem::new(Code::RateLimitExceeded, String::new()).retry_in(wait);
    let seconds = problem.retry_after.unwrap_or(1);
    problem.detail = format!("client {client:?} reads /v1/providers too often; try again in {seconds} s");
    problem.violated_policies = vec!["provider_reads".to_owned()];
    Box::new(problem)
}

/// 429 for an address that sent too many invalid keys.
#[must_use]
pub(crate) fn too_many_invalid_keys(wait: Duration) -> Box<Problem> {
    let detail = "too many requests from this address had no valid API key; send one, or wait";
    let mut problem = Problem::new(Code::RateLimitExceeded, detail).retry_in(wait);
    problem.violated_policies = vec!["auth_failures".to_owned()];
    Box::new(problem)
}

/// 503 if `limit` requests are in flight.
#[must_use]
pub(crate) fn too_many_requests(limit: i64) -> Box<Problem> {
    Box::new(Problem::overloaded(format!(
        "{limit} requests are in flight, which is the limit (overload.max_in_flight)"
    )))
}

/// 503 if one client has its share of `overload.max_in_flight` in flight.
#[must_use]
pub(crate) fn request_share(share: i64) -> Box<Problem> {
    Box::new(Problem::overloaded(format!(
        "this client has {share} requests in flight, which is its share (half of overload.max_in_flight)"
    )))
}

/// 503 if requests without a key have their share of `overload.max_in_flight` in flight.
#[must_use]
pub(crate) fn request_share_without_key(share: i64) -> Box<Problem> {
    Box::new(Problem::overloaded(format!(
        "{share} requests without a key are in flight, which is their share (1/8 of overload.max_in_flight, 1/32 for one \
         address)"
    )))
}

/// 503 if `limit` sessions are watched.
#[must_use]
pub(crate) fn too_many_watchers(limit: i64) -> Box<Problem> {
    Box::new(Problem::overloaded(format!("{limit} sessions are watched, which is the limit (overload.max_watchers)")))
}

/// 503 if one client watches its share of `overload.max_watchers`.
#[must_use]
pub(crate) fn watcher_share(share: i64) -> Box<Problem> {
    Box::new(Problem::overloaded(format!(
        "this client watches {share} sessions, which is its share (half of overload.max_watchers)"
    )))
}

/// 503 if a response would exceed the memory of all responses, or the client's share of it.
#[must_use]
pub(crate) fn buffer_limit(limit: BufferLimit) -> Box<Problem> {
    Box::new(Problem::overloaded(limit.to_string()))
}

/// 400 for a request without exactly one `Host` (RFC 9112, section 3.2).
#[must_use]
pub(crate) fn invalid_host(missing: bool) -> Box<Problem> {
    problem(Code::InvalidRequest, if missing { "missing Host header" } else { "more than one Host header" })
}

/// 400 for a value of `Weir-Explain` other than `1`.
#[must_use]
pub(crate) fn invalid_explain() -> Box<Problem> {
    problem(Code::InvalidRequest, "the value of Weir-Explain must be 1")
}

/// 500 for a public path whose route needs a key.
#[must_use]
pub(crate) fn not_public() -> Box<Problem> {
    problem(Code::InternalError, "the route of this public path needs a key")
}

/// 400 for a page token that has another number of sources than the list.
#[must_use]
pub(crate) fn other_list() -> Box<Problem> {
    problem(Code::InvalidRequest, "page_token belongs to another list; start again without it")
}

/// 502 for a list whose rest the provider does not give.
#[must_use]
pub(crate) fn cut_list(provider: &Arc<str>, cut: &CutList) -> Box<Problem> {
    of_provider(provider, Code::ProviderInvalidResponse, cut)
}

/// 500 for a cache entry that should be a list and is a session.
#[must_use]
pub(crate) fn not_a_list() -> Box<Problem> {
    problem(Code::InternalError, "the cache has a session under the key of a list")
}

/// 400 for a path that no longer leads to a watch after a reload.
#[must_use]
pub(crate) fn not_watchable() -> Box<Problem> {
    problem(Code::InvalidRequest, "this path cannot be watched")
}

/// 403 for a client that may not use native APIs.
#[must_use]
pub(crate) fn native_forbidden(client: &str) -> Box<Problem> {
    let detail = format!("client {client:?} may not use native APIs (native: false in clients.yaml); use /v1/");
    problem(Code::Forbidden, &detail)
}

/// 400 for a watch token of a client whose requests must have a credential that a token does not have.
#[must_use]
pub(crate) fn no_watch_token(client: &str, provider: &Arc<str>) -> Box<Problem> {
    let detail = format!(
        "client {client:?} sends its own credential for {provider} with each request, which a browser's EventSource cannot do; watch with a key"
    );
    of_provider(provider, Code::InvalidRequest, &detail)
}

/// 400 for a request to a provider's own API whose query has a watch token.
#[must_use]
pub(crate) fn forwarded_watch_token() -> Box<Problem> {
    problem(Code::InvalidRequest, "the query has a watch token, which a provider must not get; remove it")
}

/// 400 for a path with a dot segment.
#[must_use]
pub(crate) fn dot_segments() -> Box<Problem> {
    problem(Code::InvalidRequest, "a path may not have . or .. as a segment, encoded or not")
}

/// 400 for an unusual spelling of a path whose responses contain secrets.
#[must_use]
pub(crate) fn disguised_path(path: &str) -> Box<Problem> {
    let detail =
        format!("{path:?} is an unusual spelling of a session path; write it as in the provider's documentation");
    problem(Code::InvalidRequest, &detail)
}

/// 400 for a path of sessions whose query does not have the id, or has it twice.
#[must_use]
pub(crate) fn missing_id(path: &str) -> Box<Problem> {
    let detail = format!("{path:?} needs an id in its query, once; write it as in the provider's documentation");
    problem(Code::InvalidRequest, &detail)
}

/// 405 for `TRACE`.
#[must_use]
pub(crate) fn trace_not_forwarded() -> Box<Problem> {
    Box::new(Problem::method_not_allowed("Weir does not forward TRACE", FORWARDED_METHODS))
}

/// 405 for a method that Weir does not forward.
#[must_use]
pub(crate) fn method_not_forwarded(method: &http::Method) -> Box<Problem> {
    let detail = format!("Weir does not forward {method}; methods are case-sensitive");
    Box::new(Problem::method_not_allowed(&detail, FORWARDED_METHODS))
}

/// 502 for a provider that refused Weir's credential with this status, if Weir cannot send the request again with a new token.
#[must_use]
pub(crate) fn credential_refused(provider: &Arc<str>, status: u16) -> Box<Problem> {
    of_provider(provider, Code::ProviderAuthFailed, &refused_credential_detail(provider, status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::operation::Operation;
    use crate::base::request_reply::{ProviderFailure, ProviderReply};
    use crate::engine::credential::token_error::TokenFault;
    use crate::engine::provider_quota::QuotaLimit;
    use crate::rules::provider_body::BodyFault;

    fn provider() -> Arc<str> {
        "p".into()
    }

    /// Status, code, `Retry-After`, and whether the provider is named.
    type Summary = (u16, &'static str, Option<u64>, bool);

    fn summary(problem: impl Into<Box<Problem>>) -> Summary {
        let problem = problem.into();
        (problem.code.status(), problem.code.as_str(), problem.retry_after, problem.provider.is_some())
    }

    fn reply(status: u16) -> Arc<ProviderReply> {
        Arc::new(ProviderReply { status, headers: http::HeaderMap::new(), body: bytes::Bytes::new() })
    }

    #[test]
    fn a_refused_call_has_its_code_and_its_wait() {
        let wait = Duration::from_millis(2001);
        for (error, expected) in [
            (NotAdmitted::Pause { provider: provider(), wait }, (503, "provider_rate_limited", Some(3), true)),
            (NotAdmitted::Breaker { provider: provider(), wait }, (503, "provider_unavailable", Some(3), true)),
            (
                NotAdmitted::Capacity { provider: provider(), limit: QuotaLimit::Rate, wait },
                (503, "provider_rate_limited", Some(3), true),
            ),
            (
                NotAdmitted::ClientShare { provider: provider(), limit: 1 },
                (503, "provider_rate_limited", Some(1), true),
            ),
            (NotAdmitted::TooManyCalls { limit: 1 }, (503, "overloaded", Some(1), false)),
            (NotAdmitted::CallShare { limit: 1 }, (503, "overloaded", Some(1), false)),
            (NotAdmitted::TooManyConnections { limit: 1 }, (503, "overloaded", Some(1), false)),
            (NotAdmitted::ConnectionShare { limit: 1 }, (503, "overloaded", Some(1), false)),
        ] {
            assert_eq!(summary(error.clone()), expected, "{error}");
            let fetch: Box<FetchError> = error.into();
            assert!(fetch.is_refusal() && fetch.code().as_str() == expected.1);
            assert_eq!(summary(fetch), expected);
        }
    }

    #[test]
    fn a_refused_call_names_the_breaker_or_the_limit() {
        let detail = |error: NotAdmitted| Box::<Problem>::from(error).detail;
        let wait = Duration::ZERO;
        assert_eq!(
            detail(NotAdmitted::Breaker { provider: provider(), wait }),
            "p failed repeatedly; its breaker is open"
        );
        assert_eq!(
            detail(NotAdmitted::ClientShare { provider: provider(), limit: 2 }),
            "this client has 2 forwarded requests to p in flight, which is the limit (half of capacity.concurrent)"
        );
        assert_eq!(
            detail(NotAdmitted::TooManyCalls { limit: 3 }),
            "3 calls to providers are in flight or wait, which is the limit (overload.max_in_flight)"
        );
    }

    #[test]
    fn a_refused_call_has_the_reason_of_its_cause() {
        let (p, wait) = (provider, Duration::ZERO);
        for (error, reason) in [
            (NotAdmitted::Pause { provider: p(), wait }, "pause"),
            (NotAdmitted::Breaker { provider: p(), wait }, "breaker"),
            (NotAdmitted::Capacity { provider: p(), limit: QuotaLimit::Rate, wait }, "rate"),
            (NotAdmitted::Capacity { provider: p(), limit: QuotaLimit::Concurrency, wait }, "concurrency"),
            (NotAdmitted::ClientShare { provider: p(), limit: 1 }, "share"),
            (NotAdmitted::TooManyCalls { limit: 1 }, "overload"),
            (NotAdmitted::CallShare { limit: 1 }, "overload"),
            (NotAdmitted::CapacityShare { provider: p(), limit: 1 }, "share"),
            (NotAdmitted::TooManyConnections { limit: 1 }, "overload"),
            (NotAdmitted::ConnectionShare { limit: 1 }, "overload"),
        ] {
            assert_eq!(error.reason(), reason);
        }
    }

    #[test]
    fn the_detail_of_a_provider_error_says_what_happened() {
        let detail = |cause, text: Option<&str>| {
            let text = text.map(str::to_owned);
            let error = ProviderError { provider: provider(), cause, text, wait: None, reply: None };
            Box::<Problem>::from(error).detail
        };
        let response = |status, code| ProviderErrorCause::Response { status, code };
        for (code, expected) in [
            (Code::AgentNotFound, "p does not know this agent: why"),
            (Code::SessionNotFound, "p does not know this session: why"),
            (Code::Forbidden, "p does not permit this: why"),
            (Code::ProviderRateLimited, "p is throttling requests: why"),
            (Code::InvalidRequest, "p responded with 400: why"),
            (
                Code::ProviderAuthFailed,
                "p refused Weir's credential with 400; check the credentials in its provider file",
            ),
        ] {
            assert_eq!(detail(response(400, code), Some("why")), expected);
        }
        assert_eq!(detail(response(500, Code::ProviderError), None), "p responded with 500");
        let refused = ProviderErrorCause::ForwardedCredentialRefused { status: 401 };
        assert_eq!(detail(refused, Some("why")), "p refused the credential of this request");
        let failure = ProviderFailure::new(FailureKind::Timeout, "no response");
        assert_eq!(detail(ProviderErrorCause::Failure(failure), None), "p: no response");
    }

    #[test]
    fn a_token_error_has_its_code_and_status() {
        let status = |status| TokenFault::Status { status, error: String::new() };
        let transport = |kind| TokenFault::Transport(ProviderFailure::new(kind, "x"));
        for (fault, expected, provider_status) in [
            (TokenFault::Deadline, (504, "provider_timeout", None, true), None),
            (transport(FailureKind::Timeout), (504, "provider_timeout", None, true), None),
            (transport(FailureKind::Connect), (502, "provider_error", None, true), None),
            (TokenFault::NoToken, (502, "provider_auth_failed", None, true), None),
            (status(401), (502, "provider_auth_failed", None, true), Some(401)),
            (status(429), (503, "provider_rate_limited", Some(5), true), Some(429)),
            (status(503), (503, "provider_rate_limited", Some(5), true), Some(503)),
            (status(500), (502, "provider_error", None, true), Some(500)),
        ] {
            let error = TokenError { provider: provider(), fault };
            assert_eq!(summary(error.clone()), expected, "{error}");
            assert_eq!(Box::<Problem>::from(error.clone()).provider_status, provider_status);
            let fetch: Box<FetchError> = error.into();
            assert!(!fetch.is_refusal() && fetch.provider_status() == provider_status);
        }
    }

    #[test]
    fn a_query_without_a_response_has_its_code() {
        let unreadable = UnreadableBody { provider: provider(), fault: BodyFault::NoSessions };
        let response = |status, code| ProviderErrorCause::Response { status, code };
        let failure = |kind| ProviderErrorCause::Failure(ProviderFailure::new(kind, "x"));
        let error = |cause, wait| {
            let reply = Some(reply(404)).filter(|_| !matches!(cause, ProviderErrorCause::Failure(_)));
            FetchCause::Provider(ProviderError { provider: provider(), cause, text: None, wait, reply })
        };
        let wait = Some(Duration::from_millis(6001));
        let missing = NoOperation { provider: provider(), operation: Operation::GetSession };
        for (cause, expected) in [
            (FetchCause::NotCached, (504, "not_cached", None, false)),
            (FetchCause::TooManyWaiters, (503, "overloaded", Some(1), false)),
            (FetchCause::Outdated, (502, "provider_invalid_response", None, false)),
            (FetchCause::Deadline { provider: provider() }, (504, "provider_timeout", None, true)),
            (FetchCause::LostCall, (500, "internal_error", None, false)),
            (FetchCause::NoOperation(missing), (400, "invalid_request", None, false)),
            (error(response(404, Code::SessionNotFound), None), (404, "session_not_found", None, true)),
            (error(response(429, Code::ProviderRateLimited), wait), (503, "provider_rate_limited", Some(7), true)),
            (
                error(ProviderErrorCause::ForwardedCredentialRefused { status: 401 }, None),
                (401, "unauthorized", None, true),
            ),
            (error(failure(FailureKind::Timeout), None), (504, "provider_timeout", None, true)),
            (error(failure(FailureKind::Overloaded), None), (503, "overloaded", Some(1), true)),
            (error(failure(FailureKind::Malformed), None), (502, "provider_invalid_response", None, true)),
            (error(failure(FailureKind::Reset), None), (502, "provider_error", None, true)),
            (
                FetchCause::Unreadable { error: unreadable, reply: Some(reply(200)) },
                (502, "provider_invalid_response", None, true),
            ),
        ] {
            let fetch: Box<FetchError> = cause.into();
            let problem = Box::<Problem>::from(fetch.clone());
            assert_eq!(fetch.code(), problem.code, "metrics and clients get one code");
            assert_eq!(fetch.provider_status(), problem.provider_status);
            assert_eq!(fetch.reply(), problem.reply.as_deref());
            assert_eq!(fetch.is_refusal(), matches!(fetch.cause, FetchCause::TooManyWaiters));
            assert_eq!(summary(fetch), expected);
        }
    }

    #[test]
    fn a_request_that_is_too_large_has_the_status_of_its_limit() {
        let (size, limit) = (2, 1);
        for (exceeded, status, name) in [
            (LimitExceeded::Url { size, limit, hint: "" }, 414, "url_bytes"),
            (LimitExceeded::HeaderCount { size, limit }, 431, "header_count"),
            (LimitExceeded::HeaderBytes { size, limit }, 431, "header_bytes"),
            (LimitExceeded::HeaderList { size, limit }, 431, "h2_header_list"),
            (LimitExceeded::Body { size: 2, limit: 1 }, 413, "body_bytes"),
        ] {
            assert_eq!((summary(exceeded), exceeded.name()), ((status, "request_too_large", None, false), name));
        }
    }
}
