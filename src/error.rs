//! Every way a request can fail, and the one JSON form in which clients learn of it.
//!
//! A room of its own so that the error table is in one place: a code has exactly one status and one
//! title. It must not decide when an error happens; that stands beside each cause.

use crate::exchange::{Effort, ProviderReply};
use std::sync::Arc;

/// The `code` of a problem. Its text is a promise to clients; see `docs/API.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// 400: the request is malformed.
    InvalidRequest,
    /// 401: the Weir key is missing or unknown.
    Unauthorized,
    /// 403: this client may not use this provider, or the provider says so.
    Forbidden,
    /// 404: the provider does not know this agent.
    AgentNotFound,
    /// 404: the provider does not know this session.
    SessionNotFound,
    /// 404: no provider of this name is configured.
    ProviderNotFound,
    /// 404: no such path.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 408: the client took too long to send its request.
    RequestTimeout,
    /// 413: the request's body is over the limit.
    BodyTooLarge,
    /// 414: the request's URL is over the limit.
    UrlTooLong,
    /// 431: the request's headers are over the limit.
    HeadersTooLarge,
    /// 429: the client is over one of its own policies.
    RateLimitExceeded,
    /// 500: a fault of Weir's own.
    InternalError,
    /// 502: the provider answered with an error that nothing explains, or the transport broke.
    ProviderError,
    /// 502: the provider's body is not what its file describes.
    ProviderInvalidResponse,
    /// 502: the provider refused Weir's credential.
    ProviderAuthFailed,
    /// 503: the provider throttles Weir, or Weir's capacity for it is used up.
    ProviderRateLimited,
    /// 503: the provider's breaker is open.
    ProviderUnavailable,
    /// 503: Weir sheds load.
    Overloaded,
    /// 504: the provider did not answer within its deadline.
    ProviderTimeout,
    /// 504: `only-if-cached` and nothing stored.
    NotCached,
}

/// Status, `code`, title and cause of every problem, in the order of the documentation.
#[rustfmt::skip] // a table
pub const TABLE: &[(Code, u16, &str, &str, &str)] = &[
    (Code::InvalidRequest, 400, "invalid_request", "Invalid request",
     "an id, a parameter, a token or the request itself is malformed; also a provider's own 400 and 422"),
    (Code::Unauthorized, 401, "unauthorized", "Missing or unknown API key",
     "no API key was sent, or one that is unknown or has expired"),
    (Code::Forbidden, 403, "forbidden", "Not permitted",
     "this client may not use this provider, or the provider says so"),
    (Code::AgentNotFound, 404, "agent_not_found", "Agent not found",
     "the provider does not know this agent"),
    (Code::SessionNotFound, 404, "session_not_found", "Session not found",
     "the provider does not know this session"),
    (Code::ProviderNotFound, 404, "provider_not_found", "Provider not found",
     "no provider of this name is configured"),
    (Code::NotFound, 404, "not_found", "Not found",
     "there is nothing at this path"),
    (Code::MethodNotAllowed, 405, "method_not_allowed", "Method not allowed",
     "the path is there, but answers GET and HEAD alone"),
    (Code::RequestTimeout, 408, "request_timeout", "Request timeout",
     "the request did not come within its deadline"),
    (Code::BodyTooLarge, 413, "request_too_large", "Request body too large",
     "the request's body is over its limit"),
    (Code::UrlTooLong, 414, "request_too_large", "Request URL too long",
     "the request's URL is over its limit"),
    (Code::HeadersTooLarge, 431, "request_too_large", "Request headers too large",
     "the request's header fields are over their limit"),
    (Code::RateLimitExceeded, 429, "rate_limit_exceeded", "Request rate limit exceeded",
     "the client is over one of its policies, or its address sent too many unknown keys"),
    (Code::InternalError, 500, "internal_error", "Internal error",
     "a fault of Weir's own"),
    (Code::ProviderError, 502, "provider_error", "The provider failed",
     "the provider answered with an error that nothing explains, or the connection to it broke"),
    (Code::ProviderInvalidResponse, 502, "provider_invalid_response", "The provider's response is not usable",
     "the provider's answer is not what its file describes"),
    (Code::ProviderAuthFailed, 502, "provider_auth_failed", "The provider refused Weir's credential",
     "the provider refused the credential that it was shown"),
    (Code::ProviderRateLimited, 503, "provider_rate_limited", "The provider's capacity is used up",
     "the provider asks for a pause, or Weir's share of its capacity is used up"),
    (Code::ProviderUnavailable, 503, "provider_unavailable", "The provider is unavailable",
     "the provider failed repeatedly and is not asked for a while"),
    (Code::Overloaded, 503, "overloaded", "Overloaded",
     "Weir has more to do than it may take on"),
    (Code::ProviderTimeout, 504, "provider_timeout", "The provider did not answer in time",
     "the provider did not answer within its deadline"),
    (Code::NotCached, 504, "not_cached", "Not in the cache",
     "`only-if-cached` was asked for, and nothing is stored"),
];

impl Code {
    fn row(self) -> (u16, &'static str, &'static str, &'static str) {
        TABLE
            .iter()
            .find(|row| row.0 == self)
            .map_or((500, "internal_error", "Internal error", ""), |row| (row.1, row.2, row.3, row.4))
    }

    /// The HTTP status this code always comes with.
    #[must_use]
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// The `code` member, also used as metric and log label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The `title` member.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// What it means, for people.
    #[must_use]
    pub fn cause(self) -> &'static str {
        self.row().3
    }

    /// The code of this name, if a provider file may use it in an error rule.
    #[must_use]
    pub fn for_rule(name: &str) -> Option<Self> {
        RULE_CODES.iter().copied().find(|code| code.as_str() == name)
    }

    /// Whether a stored answer may stand in for this failure (RFC 5861, section 4): the provider
    /// failed, throttled or answered something unusable, or Weir has no room to ask it. Not when it
    /// answered the question.
    #[must_use]
    pub fn allows_stale(self) -> bool {
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

    /// Whether this failure means that the thing asked for does not exist, and may be remembered.
    #[must_use]
    pub fn is_not_found(self) -> bool {
        matches!(self, Code::AgentNotFound | Code::SessionNotFound)
    }
}

/// What a provider's error rule may turn a provider's answer into.
pub const RULE_CODES: &[Code] = &[
    Code::InvalidRequest,
    Code::Forbidden,
    Code::AgentNotFound,
    Code::SessionNotFound,
    Code::ProviderError,
    Code::ProviderAuthFailed,
    Code::ProviderRateLimited,
    Code::ProviderUnavailable,
];

/// One failure, as the client will be told of it (RFC 9457). Holds no secret: `detail` is written
/// by Weir, or is the provider's own words where its file says where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind of failure.
    pub code: Code,
    /// For people: what is wrong and what would be right.
    pub detail: String,
    /// The provider concerned, if one is.
    pub provider: Option<Arc<str>>,
    /// Seconds after which to try again; never 0.
    pub retry_after: Option<u64>,
    /// The client's policies that refused the request.
    pub violated_policies: Vec<String>,
    /// Methods that the path does have, for 405.
    pub allow: Option<&'static str>,
    /// The provider's own status, where it gave one.
    pub provider_status: Option<u16>,
    /// The provider's own answer, for those who speak its language.
    pub reply: Option<Arc<ProviderReply>>,
    /// What the call took that ended so, where there was one.
    pub effort: Option<Box<Effort>>,
}

/// What a step of the line gives.
pub type Outcome<T> = Result<T, Box<Problem>>;

impl Problem {
    /// A problem with its code and its words.
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
            effort: None,
        }
    }

    /// 400 with its words.
    #[must_use]
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// Whether the provider was not asked at all: a pause, an open breaker, capacity used up, no room.
    #[must_use]
    pub fn asked_nobody(&self) -> bool {
        let never = matches!(self.code, Code::ProviderUnavailable | Code::ProviderRateLimited);
        let shed = self.code == Code::Overloaded && self.provider.is_none();
        self.provider_status.is_none() && (never || shed)
    }

    /// Names the provider concerned.
    #[must_use]
    pub fn of(mut self, provider: &Arc<str>) -> Self {
        self.provider = Some(provider.clone());
        self
    }

    /// Says when to try again, in whole seconds rounded up, at least 1.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after = Some(ms.div_ceil(1000).max(1));
        self
    }

    /// The `type` member: the IANA problem types where one fits (draft-ietf-httpapi-ratelimit-headers).
    #[must_use]
    pub fn type_uri(&self) -> &'static str {
        match self.code.status() {
            429 => "https://iana.org/assignments/http-problem-types#quota-exceeded",
            503 => "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            _ => "about:blank",
        }
    }

    /// The problem as a JSON object, without the request id where there is none (inside a list).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_row() {
        for (code, status, text, title, cause) in TABLE {
            assert_eq!((code.status(), code.as_str(), code.title()), (*status, *text, *title));
            assert_eq!(code.cause(), *cause);
        }
        assert_eq!(Code::for_rule("session_not_found"), Some(Code::SessionNotFound));
        assert_eq!(Code::for_rule("rate_limit_exceeded"), None);
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        let problem = |ms| Problem::new(Code::RateLimitExceeded, "x").retry_after_ms(ms).retry_after;
        assert_eq!(problem(0), Some(1));
        assert_eq!(problem(1), Some(1));
        assert_eq!(problem(1000), Some(1));
        assert_eq!(problem(1001), Some(2));
    }
}
