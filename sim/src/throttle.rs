//! Limits the requests per minute of each provider, and reports the limit in the provider's own form.

use crate::http::Reply;
use crate::sync::lock;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) struct Throttle {
    /// Requests per minute; 0: no limit.
    limit: u64,
    /// The current minute and its number of requests, by the first path segment, which identifies the provider.
    windows: Mutex<BTreeMap<String, (u64, u64)>>,
}

/// The state of a provider's quota after a request. `resets_at` is in Unix seconds.
pub(crate) enum Quota {
    Unlimited,
    Remaining { requests: u64, resets_at: u64 },
    Exceeded { resets_at: u64 },
}

impl Throttle {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, windows: Mutex::default() }
    }

    /// Counts a request against the quota of its provider.
    pub(crate) fn count(&self, path: &str) -> Quota {
        if self.limit == 0 {
            return Quota::Unlimited;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let minute = now.as_secs() / 60;
        let mut windows = lock(&self.windows);
        let window = windows.entry(provider(path).to_owned()).or_default();
        *window = if window.0 == minute { (minute, window.1 + 1) } else { (minute, 1) };
        let resets_at = (minute + 1) * 60;
        match self.limit.checked_sub(window.1) {
            Some(requests) => Quota::Remaining { requests, resets_at },
            None => Quota::Exceeded { resets_at },
        }
    }

    /// Adds the quota to the response, or replaces the response by a refusal if the quota is exceeded.
    pub(crate) fn apply(&self, path: &str, quota: &Quota, reply: Reply) -> Reply {
        match *quota {
            Quota::Unlimited => reply,
            Quota::Remaining { requests, resets_at } => self.with_quota_headers(path, requests, resets_at, reply),
            Quota::Exceeded { resets_at } => self.refusal(path, resets_at),
        }
    }

    fn refusal(&self, path: &str, resets_at: u64) -> Reply {
        match provider(path) {
            "v2" => {
                let mut reply = Reply::json(429, &json!({ "messages": ["rate_limit_exceeded"], "request_id": "r" }));
                reply.headers.push(("retry-after".into(), "1".into()));
                reply
            }
            "api" => Reply::new(429, String::new()),
            _ => {
                let error = "Too many requests. Please retry after 1 minute.";
                let reply = Reply::json(429, &json!({ "success": false, "error": error }));
                self.with_quota_headers(path, 0, resets_at, reply)
            }
        }
    }

    /// Adds the headers of AgentHuman, the only provider that reports its quota in every response.
    fn with_quota_headers(&self, path: &str, remaining: u64, resets_at: u64, mut reply: Reply) -> Reply {
        if path.starts_with("/v1/") {
            for (name, value) in [("limit", self.limit), ("remaining", remaining), ("reset", resets_at)] {
                reply.headers.push((format!("x-ratelimit-{name}"), value.to_string()));
            }
        }
        reply
    }
}

/// Returns the first path segment.
fn provider(path: &str) -> &str {
    path.split('/').nth(1).unwrap_or_default()
}
