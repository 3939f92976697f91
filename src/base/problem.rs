//! Defines the problems that clients receive (RFC 9457): the table of codes, and the JSON form.
//!
//! Each code has exactly one status and one title. This module does not decide when a problem occurs.

use crate::base::request_reply::ProviderReply;
use std::sync::Arc;
use std::time::Duration;

/// `Retry-After` for a limit of Weir's own: nobody knows when Weir is below the limit again.
pub(crate) const SHORT_RETRY: Duration = Duration::from_secs(1);

/// The `code` of a problem. Its text is stable; see `docs/API.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// 400: the request is malformed.
    InvalidRequest,
    /// 401: the Weir key is missing or unknown.
    Unauthorized,
    /// 403: this client may not use this provider, or the provider responds 403.
    Forbidden,
    /// 404: the provider has no such agent.
    AgentNotFound,
    /// 404: the provider has no such session.
    SessionNotFound,
    /// 404: no provider with this name is configured.
    ProviderNotFound,
    /// 404: no such path.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 408: the client took too long to send its request.
    RequestTimeout,
    /// 413: the request body is over its limit.
    BodyTooLarge,
    /// 414: the request URL is over its limit.
    UrlTooLong,
    /// 431: the request headers are over their limit.
    HeadersTooLarge,
    /// 429: the client is over one of its rate limits.
    RateLimitExceeded,
    /// 500: a fault in Weir.
    InternalError,
    /// 502: the provider responded with an error that its file does not explain, or the connection broke.
    ProviderError,
    /// 502: the provider's body cannot be used.
    ProviderInvalidResponse,
    /// 502: the provider refused Weir's credential.
    ProviderAuthFailed,
    /// 503: the provider throttles, or Weir's capacity for it is used up.
    ProviderRateLimited,
    /// 503: the provider's breaker is open.
    ProviderUnavailable,
    /// 503: Weir sheds load.
    Overloaded,
    /// 504: the provider did not respond within its deadline.
    ProviderTimeout,
    /// 504: the client sent `only-if-cached`, and the cache has no entry that Weir may serve.
    NotCached,
}

/// Status, `code`, title and cause of every problem, in the order of `docs/API.md`.
#[rustfmt::skip] // a table
pub(crate) const TABLE: &[(Code, u16, &str, &str, &str)] = &[
    (Code::InvalidRequest, 400, "invalid_request", "Invalid request",
     "an id, a parameter, a token or the request itself is malformed; also the provider's own 400 and 422"),
    (Code::Unauthorized, 401, "unauthorized", "Missing or unknown API key",
     "no key, an unknown key or an expired one; or a watch token that is not valid for this watch"),
    (Code::Forbidden, 403, "forbidden", "Not permitted",
     "this client may not use this provider, or not its own API; or the provider responds 403"),
    (Code::AgentNotFound, 404, "agent_not_found", "Agent not found",
     "the provider has no such agent"),
    (Code::SessionNotFound, 404, "session_not_found", "Session not found",
     "the provider has no such session"),
    (Code::ProviderNotFound, 404, "provider_not_found", "Provider not found",
     "no provider with this name is configured"),
    (Code::NotFound, 404, "not_found", "Not found",
     "no such path"),
    (Code::MethodNotAllowed, 405, "method_not_allowed", "Method not allowed",
     "the path exists, the method does not"),
    (Code::RequestTimeout, 408, "request_timeout", "Request timeout",
     "the request did not arrive within its deadline"),
    (Code::BodyTooLarge, 413, "request_too_large", "Request body too large",
     "the request body is over its limit"),
    (Code::UrlTooLong, 414, "request_too_large", "Request URL too long",
     "the request URL is over its limit"),
    (Code::HeadersTooLarge, 431, "request_too_large", "Request headers too large",
     "the request headers are over their limit"),
    (Code::RateLimitExceeded, 429, "rate_limit_exceeded", "Request rate limit exceeded",
     "the client is over one of its rate limits; or its address sent too many requests without a valid key"),
    (Code::InternalError, 500, "internal_error", "Internal error",
     "a fault in Weir"),
    (Code::ProviderError, 502, "provider_error", "The provider failed",
     "the provider responds with an error that its file does not explain, or the connection breaks"),
    (Code::ProviderInvalidResponse, 502, "provider_invalid_response", "The provider's response is not usable",
     "the provider's body cannot be used: not JSON, an encoded body, a required field missing, over `max_body`"),
    (Code::ProviderAuthFailed, 502, "provider_auth_failed", "The provider refused Weir's credential",
     "the provider refuses Weir's credential"),
    (Code::ProviderRateLimited, 503, "provider_rate_limited", "The provider's capacity is used up",
     "the provider throttles, or Weir's capacity for it is used up"),
    (Code::ProviderUnavailable, 503, "provider_unavailable", "The provider is unavailable",
     "the provider's breaker is open"),
    (Code::Overloaded, 503, "overloaded", "Overloaded",
     "Weir sheds load"),
    (Code::ProviderTimeout, 504, "provider_timeout", "The provider did not answer in time",
     "the provider did not respond within its deadline"),
    (Code::NotCached, 504, "not_cached", "Not in the cache",
     "the client sent `only-if-cached`, and the cache has no entry that Weir may serve"),
];

impl Code {
    fn row(self) -> (u16, &'static str, &'static str, &'static str) {
        TABLE
            .iter()
            .find(|row| row.0 == self)
            .map_or((500, "internal_error", "Internal error", ""), |row| (row.1, row.2, row.3, row.4))
    }

    /// Returns the HTTP status of this code.
    #[must_use]
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// Returns the `code` member, which is also the label in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// Returns the `title` member.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// Returns when this code occurs, for people.
    #[must_use]
    pub fn cause(self) -> &'static str {
        self.row().3
    }

    /// Returns the code with this name if an error rule of a provider's file may use it.
    #[must_use]
    pub fn for_rule(name: &str) -> Option<Self> {
        RULE_CODES.iter().copied().find(|code| code.as_str() == name)
    }

    /// Returns whether Weir may serve a stale entry in place of this failure (RFC 5861, section 4). That is so if the
    /// provider failed, throttled or sent an unusable body, or if Weir sheds load; not if the provider gave a definite
    /// result.
    #[must_use]
    pub fn permits_stale_response(self) -> bool {
        matches!(
            self,
            Code::ProviderError
                | Code::ProviderInvalidResponse
                | Code::ProviderRateLimited
                | Code::ProviderUnavailable
                | Code::ProviderTimeout
                | Code::Overloaded
                | Code::InternalError
        )
    }

    /// Returns whether the agent or session does not exist. The cache may store such a result.
    #[must_use]
    pub fn is_not_found(self) -> bool {
        matches!(self, Code::AgentNotFound | Code::SessionNotFound)
    }
}

/// Codes that an error rule of a provider's file may use.
pub(crate) const RULE_CODES: &[Code] = &[
    Code::InvalidRequest,
    Code::Forbidden,
    Code::AgentNotFound,
    Code::SessionNotFound,
    Code::ProviderError,
    Code::ProviderAuthFailed,
    Code::ProviderRateLimited,
    Code::ProviderUnavailable,
];

/// One failure, as the client receives it (RFC 9457). It contains no secret: Weir writes `detail`, or takes it from the
/// place in the provider's body that the provider's file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The kind of failure.
    pub code: Code,
    /// For people: what is wrong and what would be right.
    pub detail: String,
    /// The provider concerned, if any.
    pub provider: Option<Arc<str>>,
    /// Seconds after which a retry makes sense; never 0.
    pub retry_after: Option<u64>,
    /// The client's policies that refused the request.
    pub violated_policies: Vec<String>,
    /// The methods that the path has, for 405.
    pub allow: Option<&'static str>,
    /// The status of the provider's response, if it sent one.
    pub provider_status: Option<u16>,
    /// The provider's own response, for clients of its native API.
    pub reply: Option<Arc<ProviderReply>>,
}

/// The result of a step of the pipeline.
pub(crate) type Outcome<T> = Result<T, Box<Problem>>;

impl Problem {
    /// Creates a problem with a code and a detail.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            provider: None,
            retry_after: None,
            violated_policies: Vec::new(),
            allow: None,
            provider_status: None,
            reply: None,
        }
    }

    /// Creates a 400 `invalid_request` with a detail.
    #[must_use]
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// Creates a 405 `method_not_allowed` with the methods that the path has.
    #[must_use]
    pub fn method_not_allowed(detail: impl Into<String>, allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, detail) }
    }

    /// Creates a 503 `overloaded` for a limit of Weir's own that is reached.
    #[must_use]
    pub fn overloaded(detail: impl Into<String>) -> Self {
        Self::new(Code::Overloaded, detail).retry_in(SHORT_RETRY)
    }

    /// Sets the provider concerned.
    #[must_use]
    pub fn of(mut self, provider: &Arc<str>) -> Self {
        self.provider = Some(provider.clone());
        self
    }

    /// Sets `retry_after` to a wait; see [`retry_seconds`].
    #[must_use]
    pub fn retry_in(mut self, wait: Duration) -> Self {
        self.retry_after = Some(retry_seconds(wait));
        self
    }

    /// Returns the `type` member: an IANA problem type if one fits (draft-ietf-httpapi-ratelimit-headers).
    #[must_use]
    pub fn type_uri(&self) -> &'static str {
        match self.code.status() {
            429 => "https://iana.org/assignments/http-problem-types#quota-exceeded",
            503 => "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            _ => "about:blank",
        }
    }

    /// Returns the problem as a JSON object. Problems inside a list, a batch or an event have no request id.
    #[must_use]
    pub fn to_value(&self, request_id: Option<&str>) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        object.insert("type".into(), self.type_uri().into());
        object.insert("title".into(), self.code.title().into());
        object.insert("status".into(), self.code.status().into());
        object.insert("code".into(), self.code.as_str().into());
        object.insert("detail".into(), self.detail.as_str().into());
        object.insert("provider".into(), self.provider.as_deref().into());
        object.insert("retry_after".into(), self.retry_after.into());
        if !self.violated_policies.is_empty() {
            object.insert("violated-policies".into(), self.violated_policies.clone().into());
        }
        if let Some(id) = request_id {
            object.insert("request_id".into(), id.into());
        }
        serde_json::Value::Object(object)
    }
}

/// Returns a wait in whole seconds for `Retry-After`: its whole milliseconds, rounded up, at least 1.
#[must_use]
pub(crate) fn retry_seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).div_ceil(1000).max(1)
}

/// Returns a problem with this code as the API's description shows it.
#[must_use]
pub(crate) fn example(code: Code) -> serde_json::Value {
    let mut problem = Problem::new(code, code.cause());
    if matches!(code.status(), 429 | 503) {
        problem = problem.retry_in(SHORT_RETRY);
    }
    if code == Code::RateLimitExceeded {
        problem.violated_policies = vec!["standard".to_owned()];
    }
    problem.to_value(Some("5f2c91d0-0000002a"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_row_in_the_table() {
        for (code, status, text, title, cause) in TABLE {
            assert_eq!((code.status(), code.as_str(), code.title()), (*status, *text, *title));
            assert_eq!(code.cause(), *cause);
        }
        assert_eq!(Code::for_rule("session_not_found"), Some(Code::SessionNotFound));
        assert_eq!(Code::for_rule("rate_limit_exceeded"), None);
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        let wait = Duration::from_millis;
        let problem = |ms| Problem::new(Code::RateLimitExceeded, "x").retry_in(wait(ms)).retry_after;
        assert_eq!(problem(0), Some(1));
        assert_eq!(problem(1), Some(1));
        assert_eq!(problem(1000), Some(1));
        assert_eq!(problem(1001), Some(2));
    }
}
