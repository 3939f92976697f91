//! What a provider's error means: its status and body, judged by the rules of its file.
//!
//! A room of its own because a provider's words must become one of ours in one place. Nothing of a
//! provider's body passes but the text at `errors.detail`, cut to a sensible length.

use crate::config::faults::Faults;
use crate::config::provider;
use crate::error::{Code, Problem};
use crate::exchange::{FailureKind, ProviderFailure, ProviderReply};
use crate::json;
use crate::jsonpath::JsonPath;
use crate::model::Time;
use crate::pattern::{self, Pattern};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// The longest text of a provider's that is passed on, in characters.
const MAX_DETAIL: usize = 300;

/// The longest time a provider may make us wait by `Retry-After`.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How long to wait where a provider throttles and does not say.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// A provider's error rules, compiled.
#[derive(Debug)]
pub struct Rules {
    provider: Arc<str>,
    detail: Vec<JsonPath>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    status: Vec<u16>,
    when: Option<(JsonPath, Pattern)>,
    code: Code,
}

impl Rules {
    /// Compiles a provider's rules, reporting every fault.
    #[must_use]
    pub fn compile(config: &provider::Provider, faults: &mut Faults) -> Self {
        let detail =
            config.errors.detail.iter().filter_map(|at| faults.keep(&at.place, JsonPath::compile(&at.value))).collect();
        let mut rules = Vec::new();
        for rule in &config.errors.rules {
            let when = rule.when.as_ref().map(|(path, matches)| {
                let path = faults.keep(&path.place, JsonPath::compile(&path.value));
                path.zip(faults.keep(&matches.place, pattern::compile(&matches.value)))
            });
            match when {
                Some(None) => {}
                when => rules.push(Rule { status: rule.status.clone(), when: when.flatten(), code: rule.code }),
            }
        }
        Self { provider: config.name.value.as_str().into(), detail, rules }
    }

    /// What an answer other than 200 means. `now` dates a `Retry-After` that is a date.
    #[must_use]
    pub fn judge(&self, reply: &ProviderReply, now: Time) -> Problem {
        let body: Option<Value> = json::parse(&reply.body).ok();
        let code = self.code(reply.status, body.as_ref());
        let own = body.as_ref().and_then(|body| self.own_words(body));
        let said = own.map_or_else(String::new, |text| format!(": {text}"));
        let provider = &self.provider;
        let detail = match code {
            Code::ProviderAuthFailed => format!(
                "{provider} refused Weir's credential with {}; check the credentials in its provider file",
                reply.status
            ),
            Code::AgentNotFound => format!("{provider} does not know this agent{said}"),
            Code::SessionNotFound => format!("{provider} does not know this session{said}"),
            Code::Forbidden => format!("{provider} does not permit this{said}"),
            Code::ProviderRateLimited => format!("{provider} throttles requests at the moment{said}"),
            _ => format!("{provider} answered {}{said}", reply.status),
        };
        let mut problem = Problem::new(code, detail).of(provider);
        problem.provider_status = Some(reply.status);
        problem.reply = Some(Arc::new(reply.clone()));
        if code.status() == 503 {
            let wait = retry_after(reply, now).unwrap_or(DEFAULT_RETRY_AFTER).min(MAX_RETRY_AFTER);
            problem = problem.retry_after_ms(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        }
        problem
    }

    fn code(&self, status: u16, body: Option<&Value>) -> Code {
        // A rule reads a body; an answer without one (a wrong base URL's empty 404) explains nothing.
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

    fn own_words(&self, body: &Value) -> Option<String> {
        let text = self.detail.iter().find_map(|path| path.first(body)?.as_str())?;
        let clean: String = text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
        (!clean.is_empty()).then_some(clean)
    }

    /// What it means that no answer came.
    #[must_use]
    pub fn judge_failure(&self, failure: &ProviderFailure) -> Problem {
        let code = match failure.kind {
            FailureKind::Timeout => Code::ProviderTimeout,
            FailureKind::Overloaded => Code::Overloaded,
            FailureKind::TooLarge | FailureKind::Malformed => Code::ProviderInvalidResponse,
            FailureKind::Connect | FailureKind::Tls | FailureKind::Reset => Code::ProviderError,
        };
        let problem = Problem::new(code, format!("{}: {}", self.provider, failure.detail)).of(&self.provider);
        if code == Code::Overloaded { problem.retry_after_ms(1000) } else { problem }
    }
}

/// `Retry-After` as seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(reply: &ProviderReply, now: Time) -> Option<Duration> {
    let text = reply.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // One too large to hold is very long, not absent.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Time(i64::try_from(date.as_millis()).ok()?).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let rule = |status: &[u16], when: Option<(&str, &str)>, code| Rule {
            status: status.to_vec(),
            when: when.map(|(path, pattern)| (JsonPath::compile(path).unwrap(), pattern::compile(pattern).unwrap())),
            code,
        };
        Rules {
            provider: "p".into(),
            detail: vec![JsonPath::compile("$.messages[0]").unwrap()],
            rules: vec![
                rule(&[404], Some(("$.messages[0]", "(?i)session")), Code::SessionNotFound),
                rule(&[404], None, Code::AgentNotFound),
                rule(&[400], Some(("$.name", "^Rate")), Code::ProviderRateLimited),
            ],
        }
    }

    fn judge(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Problem {
        let headers = headers
            .iter()
            .map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v)))
            .collect();
        rules().judge(&ProviderReply { status, headers, body: body.into() }, Time(784_111_777_000))
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let problem = judge(404, &[], r#"{"messages":["No such SESSION: x"]}"#);
        assert_eq!(problem.code, Code::SessionNotFound);
        assert_eq!(problem.detail, "p does not know this session: No such SESSION: x");
        assert_eq!(judge(404, &[], r#"{"messages":["No such agent"]}"#).code, Code::AgentNotFound);
        assert_eq!(judge(400, &[], r#"{"name":"RateLimitExceeded"}"#).code, Code::ProviderRateLimited);
    }

    #[test]
    fn what_no_rule_explains_has_its_row() {
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
            assert_eq!(judge(status, &[], body).code, code, "{status} {body:?}");
        }
    }

    #[test]
    fn retry_after_in_seconds_as_a_date_absent_and_absurd() {
        assert_eq!(judge(429, &[("retry-after", "7")], "").retry_after, Some(7));
        assert_eq!(judge(429, &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], "").retry_after, Some(10));
        assert_eq!(judge(429, &[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], "").retry_after, Some(1));
        assert_eq!(judge(503, &[], "").retry_after, Some(5));
        assert_eq!(judge(503, &[("retry-after", "86400")], "").retry_after, Some(300));
    }

    #[test]
    fn only_the_named_text_of_a_body_passes_and_not_much_of_it() {
        let problem = judge(500, &[], r#"{"messages":["a\nb"],"secret":"s3cr3t"}"#);
        assert_eq!(problem.detail, "p answered 500: ab");
        let long: &'static str = Box::leak(format!(r#"{{"messages":["{}"]}}"#, "x".repeat(5000)).into_boxed_str());
        assert!(judge(500, &[], long).detail.len() < 400);
    }
}
