//! Translates provider errors into problem codes by the rules of the provider file.
//!
//! Clients get no part of an error body except the text at `errors.detail`, cut to a maximum length.

use crate::base::id_pattern::{self, Pattern};
use crate::base::json::ParsedJson;
use crate::base::jsonpath::JsonPath;
use crate::base::model::Time;
use crate::base::problem::Code;
use crate::base::request_reply::{FailureKind, ProviderFailure, ProviderReply};
use crate::config::faults::Faults;
use crate::config::provider;
use crate::rules::secrets::SecretPaths;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// The maximum length of a provider's text that clients get, in characters.
const MAX_DETAIL: usize = 300;

/// The minimum wait if a provider throttles, also if its `Retry-After` is 0 or past.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The maximum wait that Weir accepts from a provider's `Retry-After`.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The wait if a provider throttles without `Retry-After`.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// A provider's error, translated by its error rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderError {
    /// The provider.
    pub provider: Arc<str>,
    /// The cause.
    pub cause: ProviderErrorCause,
    /// The provider's own text, if `errors.detail` finds it.
    pub text: Option<String>,
    /// How long Weir waits before its next call, if the provider throttles or is unavailable.
    pub wait: Option<Duration>,
    /// The provider's response, for clients of the native API.
    pub reply: Option<Arc<ProviderReply>>,
}

/// The cause of a provider's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderErrorCause {
    /// The provider responded with this status, which has this code by the error rules.
    Response {
        /// The HTTP status.
        status: u16,
        /// The code that the rules name.
        code: Code,
    },
    /// The provider refused the credential that the client sent with its request.
    ForwardedCredentialRefused {
        /// The HTTP status.
        status: u16,
    },
    /// The provider sent no complete response.
    Failure(ProviderFailure),
}

impl ProviderError {
    /// Returns the problem code. It is the label in metrics and traces.
    #[must_use]
    pub fn code(&self) -> Code {
        match &self.cause {
            ProviderErrorCause::Response { code, .. } => *code,
            ProviderErrorCause::ForwardedCredentialRefused { .. } => Code::Unauthorized,
            ProviderErrorCause::Failure(failure) => match failure.kind {
                FailureKind::ConnectTimeout | FailureKind::Timeout => Code::ProviderTimeout,
                FailureKind::Overloaded => Code::Overloaded,
                FailureKind::TooLarge | FailureKind::Malformed => Code::ProviderInvalidResponse,
                FailureKind::Connect
                | FailureKind::Dns
                | FailureKind::Refused
                | FailureKind::Tls
                | FailureKind::Reset => Code::ProviderError,
            },
        }
    }

    /// Returns whether the response would have exceeded the memory that Weir may use for it.
    #[must_use]
    pub fn is_buffer_limit(&self) -> bool {
        matches!(&self.cause, ProviderErrorCause::Failure(failure) if failure.kind == FailureKind::Overloaded)
    }

    /// Returns the provider's HTTP status, if it sent a response.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self.cause {
            ProviderErrorCause::Response { status, .. } | ProviderErrorCause::ForwardedCredentialRefused { status } => {
                Some(status)
            }
            ProviderErrorCause::Failure(_) => None,
        }
    }
}

/// The compiled error rules of a provider.
#[derive(Debug)]
pub struct ErrorRules {
    provider: Arc<str>,
    detail: Vec<JsonPath>,
    /// No detail shows these.
    secrets: SecretPaths,
    rules: Vec<CompiledErrorRule>,
}

#[derive(Debug)]
struct CompiledErrorRule {
    status: Vec<u16>,
    when: Option<(JsonPath, Pattern)>,
    code: Code,
}

impl ErrorRules {
    /// Compiles a provider's rules, reporting every fault. No detail shows the members at `secrets`.
    #[must_use]
    pub(crate) fn compile(config: &provider::ProviderConfig, secrets: SecretPaths, faults: &mut Faults) -> Self {
        let detail = config
            .errors
            .detail
            .iter()
            .filter_map(|at| faults.keep(&at.location, JsonPath::compile(&at.value)))
            .collect();
        let mut rules = Vec::new();
        for rule in &config.errors.rules {
            let when = rule.when.as_ref().map(|provider::BodyCondition { path, matches }| {
                let path = faults.keep(&path.location, JsonPath::compile(&path.value));
                path.zip(faults.keep(&matches.location, id_pattern::compile(&matches.value)))
            });
            match when {
                Some(None) => {}
                when => {
                    rules.push(CompiledErrorRule {
                        status: rule.status.clone(),
                        when: when.flatten(),
                        code: rule.code,
                    });
                }
            }
        }
        Self { provider: config.name.value.as_str().into(), detail, secrets, rules }
    }

    /// Translates a response with a status other than 200. `forwarded_credential` says whether the client sent the
    /// credential of the request. `now` is needed for a `Retry-After` that is a date.
    #[must_use]
    pub fn judge(&self, reply: ProviderReply, forwarded_credential: bool, now: Time) -> ProviderError {
        let body = ParsedJson::of(&reply.body).ok();
        // A text that is not all Unicode still says what the error is.
        let body = body.as_ref().map(ParsedJson::with_replacements);
        let status = reply.status;
        let code = self.code(status, body.as_deref());
        let cause = match code {
            Code::ProviderAuthFailed if forwarded_credential => {
                ProviderErrorCause::ForwardedCredentialRefused { status }
            }
            _ => ProviderErrorCause::Response { status, code },
        };
        let wait = matches!(code, Code::ProviderRateLimited | Code::ProviderUnavailable)
            .then(|| retry_after(&reply, now).unwrap_or(DEFAULT_RETRY_AFTER).clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER));
        ProviderError {
            provider: self.provider.clone(),
            cause,
            text: body.as_deref().and_then(|body| self.provider_text(body)),
            wait,
            reply: Some(Arc::new(reply)),
        }
    }

    fn code(&self, status: u16, body: Option<&Value>) -> Code {
        // Rules apply only to JSON bodies. For example, a wrong base URL gives an empty 404, which is not a missing agent.
        let rule = body.and_then(|body| {
            self.rules.iter().find(|rule| {
                rule.status.contains(&status)
                    && rule.when.as_ref().is_none_or(|(path, pattern)| {
                        path.first(body).is_some_and(|found| match found {
                            Value::String(text) => pattern.is_match(text),
                            other => pattern.is_match(&other.to_string()),
                        })
                    })
            })
        });
        match (rule, status) {
            (Some(rule), _) => rule.code,
            (None, 400 | 422) => Code::InvalidRequest,
            (None, 401) => Code::ProviderAuthFailed,
            (None, 403) => Code::Forbidden,
            (None, 429 | 503) => Code::ProviderRateLimited,
            (None, _) => Code::ProviderError,
        }
    }

    /// Returns the text at `errors.detail` in an error body, without control characters, cut to [`MAX_DETAIL`].
    fn provider_text(&self, body: &Value) -> Option<String> {
        let text = self.detail.iter().find_map(|path| {
            let value = path.first(body)?;
            let names = path.names().unwrap_or_default();
            value.as_str().filter(|_| !self.secrets.are_in_value_at(&names, value))
        })?;
        let clean: String = text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
        (!clean.is_empty()).then_some(clean)
    }

    /// Translates a failure to get a response.
    #[must_use]
    pub fn judge_failure(&self, failure: ProviderFailure) -> ProviderError {
        ProviderError {
            provider: self.provider.clone(),
            cause: ProviderErrorCause::Failure(failure),
            text: None,
            wait: None,
            reply: None,
        }
    }
}

/// Reads `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(reply: &ProviderReply, now: Time) -> Option<Duration> {
    let text = reply.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // A number that does not fit is a very long wait, not a missing one.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Time(i64::try_from(date.as_millis()).ok()?).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::problem::Problem;

    fn rules() -> ErrorRules {
        let rule = |status: &[u16], when: Option<(&str, &str)>, code| CompiledErrorRule {
            status: status.to_vec(),
            when: when.map(|(path, pattern)| (JsonPath::compile(path).unwrap(), id_pattern::compile(pattern).unwrap())),
            code,
        };
        ErrorRules {
            provider: "p".into(),
            detail: vec![JsonPath::compile("$.messages[0]").unwrap()],
            secrets: SecretPaths::new(&[JsonPath::compile("$.room.key").unwrap()]),
            rules: vec![
                rule(&[404], Some(("$.messages[0]", "(?i)session")), Code::SessionNotFound),
                rule(&[404], None, Code::AgentNotFound),
                rule(&[400], Some(("$.name", "^Rate")), Code::ProviderRateLimited),
            ],
        }
    }

    fn judge(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> ProviderError {
        let headers = headers
            .iter()
            .map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v)))
            .collect();
        rules().judge(ProviderReply { status, headers, body: body.into() }, false, Time(784_111_777_000))
    }

    fn detail(error: ProviderError) -> String {
        Box::<Problem>::from(error).detail
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let error = judge(404, &[], r#"{"messages":["No such SESSION: x"]}"#);
        assert_eq!((error.code(), error.status()), (Code::SessionNotFound, Some(404)));
        assert_eq!(error.text.as_deref(), Some("No such SESSION: x"));
        assert_eq!(detail(error), "p does not know this session: No such SESSION: x");
        assert_eq!(judge(404, &[], r#"{"messages":["No such agent"]}"#).code(), Code::AgentNotFound);
        assert_eq!(judge(400, &[], r#"{"name":"RateLimitExceeded"}"#).code(), Code::ProviderRateLimited);
    }

    #[test]
    fn without_a_matching_rule_the_status_decides() {
        for (status, body, code) in [
            (404, "", Code::ProviderError),
            (404, "<html>", Code::ProviderError),
            (400, "{}", Code::InvalidRequest),
            (422, "{}", Code::InvalidRequest),
            (401, "{}", Code::ProviderAuthFailed),
            (403, "", Code::Forbidden),
            (429, "", Code::ProviderRateLimited),
            (503, "busy", Code::ProviderRateLimited),
            (500, "{}", Code::ProviderError),
            (302, "", Code::ProviderError),
            (418, "{}", Code::ProviderError),
        ] {
            assert_eq!(judge(status, &[], body).code(), code, "{status} {body:?}");
        }
    }

    #[test]
    fn a_refused_credential_of_the_client_is_its_own_cause() {
        let reply = |status| ProviderReply { status, headers: http::HeaderMap::new(), body: "{}".into() };
        let error = |status| rules().judge(reply(status), true, Time(0));
        assert_eq!(error(401).cause, ProviderErrorCause::ForwardedCredentialRefused { status: 401 });
        assert_eq!((error(401).code(), error(401).status()), (Code::Unauthorized, Some(401)));
        assert_eq!(error(403).cause, ProviderErrorCause::Response { status: 403, code: Code::Forbidden });
    }

    #[test]
    fn retry_after_in_seconds_as_a_date_missing_and_too_long() {
        let wait = |status, headers| judge(status, headers, "").wait;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(wait(429, &[("retry-after", "7")]), seconds(7));
        assert_eq!(wait(429, &[("retry-after", "0")]), seconds(1));
        assert_eq!(wait(429, &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")]), seconds(10));
        assert_eq!(wait(429, &[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")]), seconds(1));
        assert_eq!(wait(503, &[]), seconds(5));
        assert_eq!(wait(503, &[("retry-after", "86400")]), seconds(300));
        assert_eq!(wait(500, &[("retry-after", "7")]), None);
        let problem = Box::<Problem>::from(judge(429, &[("retry-after", "7")], ""));
        assert_eq!(problem.retry_after, Some(7));
    }

    #[test]
    fn clients_get_only_the_configured_text_of_a_body_and_it_is_cut() {
        let error = judge(500, &[], r#"{"messages":["a\nb"],"secret":"s3cr3t"}"#);
        assert_eq!(detail(error), "p responded with 500: ab");
        let long: &'static str = Box::leak(format!(r#"{{"messages":["{}"]}}"#, "x".repeat(5000)).into_boxed_str());
        assert!(detail(judge(500, &[], long)).len() < 400);
        let secret = r#"{"messages":["failed with {\"room\":{\"key\":\"canary\"}}"]}"#;
        assert_eq!(detail(judge(500, &[], secret)), "p responded with 500", "a text with a secret is not shown");
    }
}
