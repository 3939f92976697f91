//! What became of one request: facts gathered on its way, for headers, metrics and the log.
//!
//! A room of its own because observing must not be woven into deciding. It holds no key, no query
//! value, no body.

use crate::freshness::Lifetime;
use crate::model::Time;
use crate::ratelimit::Cost;
use crate::span::{Fact, Steps};
use http::HeaderValue;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// The facts of one request.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Kept from the client where it is valid, else made.
    pub request_id: String,
    /// The route's template.
    pub route: &'static str,
    /// Who asked.
    pub client: Option<Arc<str>>,
    /// Of whom.
    pub provider: Option<Arc<str>>,
    /// What the cache had; `None` where it was not asked.
    pub cache: Option<CacheStatus>,
    /// How long the request waited for the provider.
    pub waited: Duration,
    /// When the answer was made.
    pub answered_at: Time,
    /// The problem's code, where there is one.
    pub error: Option<&'static str>,
    /// The answer's status.
    pub status: u16,
    /// The answer's body, in bytes as sent.
    pub bytes: usize,
    /// Its place in a trace that goes beyond Weir, and its steps.
    pub steps: Steps,
    /// Headers of requests that answers to this client depend on, as `Vary` names them.
    pub vary: HeaderValue,
    /// What is gathered to explain it, where that is wanted.
    pub explain: Option<Box<Gathered>>,
}

/// What a request is explained from, besides its answer.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    /// Each answer of a provider that it needed, told.
    pub answers: Vec<Value>,
    /// What it cost, by provider.
    pub costs: Vec<(Option<usize>, Cost)>,
}

/// Headers that answers to any client depend on.
pub const VARY: &str = "Authorization, X-API-Key, X-Weir-Key";

impl Trace {
    /// A trace of which nothing is known but its id.
    #[must_use]
    pub fn new(request_id: String, route: &'static str) -> Self {
        Self {
            request_id,
            route,
            client: None,
            provider: None,
            cache: None,
            waited: Duration::ZERO,
            answered_at: Time::default(),
            error: None,
            status: 0,
            bytes: 0,
            steps: Steps::default(),
            vary: HeaderValue::from_static(VARY),
            explain: None,
        }
    }

    /// Of one answer among several that this request needs; what it gathers is joined.
    #[must_use]
    pub fn part(&self) -> Self {
        let (steps, explain) = (self.steps.part(), self.explain.as_ref().map(|_| Box::default()));
        Self { steps, explain, ..Self::new(String::new(), self.route) }
    }

    /// Takes what a part has gathered.
    pub fn join(&mut self, part: &mut Trace) {
        if let (Some(all), Some(more)) = (&mut self.explain, &mut part.explain) {
            all.answers.append(&mut more.answers);
        }
    }

    /// What is known of it, for who follows a trace: no more than the access log tells.
    #[must_use]
    pub fn facts(&self, method: &http::Method) -> Vec<(&'static str, Fact)> {
        let name = |text: &str| Fact::Name(text.into());
        let mut facts = vec![
            ("http.request.method", name(method.as_str())),
            ("http.route", Fact::Word(self.route)),
            ("http.response.status_code", Fact::Number(self.status.into())),
            ("weir.request_id", name(&self.request_id)),
            ("weir.cache", Fact::Word(self.cache_label())),
        ];
        facts.extend(self.client.clone().map(|client| ("weir.client", Fact::Name(client))));
        facts.extend(self.provider.clone().map(|provider| ("weir.provider", Fact::Name(provider))));
        facts.extend(self.error.map(|code| ("error.type", Fact::Word(code))));
        facts
    }

    /// The cache's part as a metric and log label.
    #[must_use]
    pub fn cache_label(&self) -> &'static str {
        self.cache.as_ref().map_or("none", |status| status.how.label())
    }
}

/// How the cache took part, as `Cache-Status` (RFC 9211) tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStatus {
    /// What happened.
    pub how: How,
    /// How long the answer given is good for; `None` where there is no answer to give.
    pub life: Option<Lifetime>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Fresh in the cache.
    Hit,
    /// Stale in the cache, served without asking the provider in this request.
    Stale(&'static str),
    /// The provider was asked.
    Forwarded {
        /// Why what was stored did not do.
        why: Why,
        /// Whether its answer was stored.
        stored: Stored,
        /// By another request's call, which answered this one too.
        collapsed: bool,
    },
    /// The provider was asked and failed; what was stored is served.
    StaleOnError {
        /// Its status, where there was a response.
        status: Option<u16>,
    },
    /// Nothing was stored and the provider could not be asked, for this reason.
    Refused(&'static str),
}

/// Why the provider was asked (RFC 9211, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing was stored.
    Miss,
    /// What was stored had lost its freshness.
    Stale,
    /// The client wanted it, or not what was stored.
    Request,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Why::Miss => "miss",
            Why::Stale => "stale",
            Why::Request => "request",
        }
    }
}

/// Whether an answer was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was.
    Yes,
    /// It was not, for this reason.
    No(&'static str),
    /// There was none: the provider failed, with this status if it gave one.
    Failed(Option<u16>),
}

impl How {
    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            How::Hit => "hit",
            How::Forwarded { collapsed: true, .. } => "collapsed",
            How::Forwarded { why: Why::Request, .. } => "bypass",
            How::Forwarded { .. } | How::Refused(_) => "miss",
            How::Stale(_) | How::StaleOnError { .. } => "stale",
        }
    }
}

impl CacheStatus {
    /// The header's value at `now`.
    #[must_use]
    pub fn header(&self, now: Time) -> String {
        let ttl = self.life.map_or(0, |life| life.fresh_until.0.saturating_sub(now.0).div_euclid(1000));
        let source = self.life.map_or("none", |life| life.source.as_str());
        let mut digits = itoa::Buffer::new();
        let mut hit = |detail: &str| ["weir; hit; ttl=", digits.format(ttl), "; detail=", detail].concat();
        let forwarded = |why: &str, stored: Stored, collapsed: &str| match stored {
            // Its own call was saved: whether the other's was stored is the other's to tell.
            Stored::Yes if !collapsed.is_empty() => format!("weir; fwd={why}{collapsed}"),
            Stored::Yes => format!("weir; fwd={why}; stored; detail={source}"),
            Stored::No(reason) => format!("weir; fwd={why}{collapsed}; detail={reason}"),
            Stored::Failed(Some(status)) => format!("weir; fwd={why}; fwd-status={status}{collapsed}"),
            Stored::Failed(None) => format!("weir; fwd={why}{collapsed}"),
        };
        match self.how {
            How::Hit => hit(source),
            How::Stale(detail) => hit(detail),
            How::Forwarded { why, stored, collapsed } => {
                forwarded(why.as_str(), stored, if collapsed { "; collapsed" } else { "" })
            }
            How::StaleOnError { status: Some(status) } => {
                format!("weir; fwd=stale; fwd-status={status}; detail=stale-if-error")
            }
            How::StaleOnError { status: None } => "weir; fwd=stale; detail=stale-if-error".into(),
            // Neither a hit nor forwarded (RFC 9211, section 2).
            How::Refused(reason) => format!("weir; detail={reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freshness::TtlSource;

    #[test]
    fn the_headers_of_the_contract() {
        let life = Lifetime::until(Time(0), Time(60_000), TtlSource::Default);
        let at = |how, now: i64| CacheStatus { how, life: Some(life) }.header(Time(now));
        let forwarded = |why, stored, collapsed| at(How::Forwarded { why, stored, collapsed }, 0);
        assert_eq!(at(How::Hit, 3000), "weir; hit; ttl=57; detail=default");
        assert_eq!(forwarded(Why::Miss, Stored::Yes, false), "weir; fwd=miss; stored; detail=default");
        assert_eq!(forwarded(Why::Miss, Stored::No("no-store"), false), "weir; fwd=miss; detail=no-store");
        assert_eq!(forwarded(Why::Miss, Stored::Yes, true), "weir; fwd=miss; collapsed");
        assert_eq!(forwarded(Why::Stale, Stored::Yes, false), "weir; fwd=stale; stored; detail=default");
        assert_eq!(forwarded(Why::Request, Stored::Yes, false), "weir; fwd=request; stored; detail=default");
        assert_eq!(forwarded(Why::Request, Stored::Yes, true), "weir; fwd=request; collapsed");
        assert_eq!(
            at(How::Stale("stale-while-revalidate"), 64_000),
            "weir; hit; ttl=-4; detail=stale-while-revalidate"
        );
        assert_eq!(
            at(How::StaleOnError { status: Some(503) }, 64_000),
            "weir; fwd=stale; fwd-status=503; detail=stale-if-error"
        );
        assert_eq!(at(How::StaleOnError { status: None }, 64_000), "weir; fwd=stale; detail=stale-if-error");
        assert_eq!(forwarded(Why::Miss, Stored::Failed(Some(500)), false), "weir; fwd=miss; fwd-status=500");
        assert_eq!(forwarded(Why::Miss, Stored::Failed(Some(500)), true), "weir; fwd=miss; fwd-status=500; collapsed");
        assert_eq!(forwarded(Why::Request, Stored::Failed(None), false), "weir; fwd=request");
        assert_eq!(at(How::Refused("provider_unavailable"), 0), "weir; detail=provider_unavailable");
    }
}
