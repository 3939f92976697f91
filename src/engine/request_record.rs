//! Records what happened to one request, for response headers, metrics, the access log and traces.
//!
//! A record contains no API key, no query value and no body. Nothing here decides how a request is handled.

use crate::base::client_use::CountGuard;
use crate::base::ids::ProviderId;
use crate::base::memory_budget::Reservation;
use crate::base::model::Time;
use crate::base::trace_context::{TraceAttribute, TraceSteps};
use crate::engine::rate_limit::Cost;
use crate::rules::freshness::Lifetime;
use http::HeaderValue;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The record of one request.
#[derive(Debug)]
pub struct RequestRecord {
    /// The client's request id if it is valid, else a generated one.
    pub request_id: String,
    /// The route's template.
    pub route: &'static str,
    /// The id of the client.
    pub client: Option<Arc<str>>,
    /// The client's address, if there is an access log.
    pub address: Option<IpAddr>,
    /// Whether the sample of the access log has the request; `None` if nobody has decided yet.
    pub sampled: Option<bool>,
    /// The name of the provider.
    pub provider: Option<Arc<str>>,
    /// The result of the cache lookup; `None` if there was none.
    pub cache: Option<CacheStatus>,
    /// How long the request waited for the provider.
    pub provider_wait: Duration,
    /// When the response was made.
    pub responded_at: Time,
    /// The client has no valid key, and the failures of its address are over the limit: its response is delayed.
    pub guess: Option<Guess>,
    /// The problem code, if the response is a problem.
    pub error: Option<&'static str>,
    /// The HTTP status of the response.
    pub status: u16,
    /// The request's position in a distributed trace, and its steps.
    pub steps: TraceSteps,
    /// The value of `Vary` for this client's responses.
    pub vary: HeaderValue,
    /// Whether the response also depends on `Accept-Encoding`.
    pub varies_by_coding: bool,
    /// Counts the request as in flight.
    pub(crate) in_flight: InFlightCounts,
    /// The memory of the request while it waits for providers.
    pub waiting: Option<Reservation>,
    /// The memory of a long head over HTTP/2.
    pub head: Option<Reservation>,
    /// Data for the explanation of the request, if the client wants one.
    pub explain: Option<Box<ExplainData>>,
}

/// Counts an admitted request: for its client, or for those without a valid key from its address and from all addresses; and
/// among all requests.
pub(crate) type InFlightCounts = [Option<CountGuard>; 3];

/// A request with an invalid key from an address that has sent too many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess {
    /// The client's address.
    pub address: IpAddr,
    /// It comes through a trusted proxy, whose connection carries the requests of others too.
    pub through_proxy: bool,
}

/// Data that explains a request, in addition to its response.
#[derive(Debug, Clone, Default)]
pub struct ExplainData {
    /// The explanation of each provider response that the request needed.
    pub provider_responses: Vec<Value>,
    /// The cost of the request at each provider.
    pub costs: Vec<ProviderCost>,
}

/// What a request costs at one provider, or without one.
#[derive(Debug, Clone, Copy)]
pub struct ProviderCost {
    /// The provider; `None` for a response that no provider gives.
    pub provider: Option<ProviderId>,
    /// The cost.
    pub cost: Cost,
}

/// The request headers that `Vary` names for every client: those that can carry a Weir key.
pub(crate) const VARY: &str = "Authorization, X-API-Key, X-Weir-Key";

impl RequestRecord {
    /// Makes a record with only an id and a route.
    #[must_use]
    pub fn new(request_id: String, route: &'static str) -> Self {
        Self {
            request_id,
            route,
            client: None,
            address: None,
            sampled: None,
            provider: None,
            cache: None,
            provider_wait: Duration::ZERO,
            responded_at: Time::default(),
            guess: None,
            error: None,
            status: 0,
            steps: TraceSteps::default(),
            vary: HeaderValue::from_static(VARY),
            varies_by_coding: false,
            in_flight: InFlightCounts::default(),
            waiting: None,
            head: None,
            explain: None,
        }
    }

    /// Makes the record of one of several provider queries of this request. [`RequestRecord::join`] merges it back.
    #[must_use]
    pub fn part(&self) -> Self {
        let (steps, explain) = (self.steps.part(), self.explain.as_ref().map(|_| Box::default()));
        Self { steps, explain, ..Self::new(String::new(), self.route) }
    }

    /// Moves the explain data of a part into this record.
    pub fn join(&mut self, part: &mut RequestRecord) {
        if let (Some(explain), Some(part)) = (&mut self.explain, &mut part.explain) {
            explain.provider_responses.append(&mut part.provider_responses);
        }
    }

    /// Returns the trace attributes of the request. They contain no more than the access log.
    #[must_use]
    pub fn trace_attributes(&self, method: &http::Method) -> Vec<(&'static str, TraceAttribute)> {
        let text = |text: &str| TraceAttribute::Text(text.into());
        let mut attributes = vec![
            ("http.request.method", text(method.as_str())),
            ("http.route", TraceAttribute::Static(self.route)),
            ("http.response.status_code", TraceAttribute::Number(self.status.into())),
            ("weir.request_id", text(&self.request_id)),
            ("weir.cache", TraceAttribute::Static(self.cache_label())),
        ];
        attributes.extend(self.client.clone().map(|client| ("weir.client", TraceAttribute::Text(client))));
        attributes.extend(self.provider.clone().map(|provider| ("weir.provider", TraceAttribute::Text(provider))));
        attributes.extend(self.error.map(|code| ("error.type", TraceAttribute::Static(code))));
        attributes
    }

    /// Returns the cache result as a metric and log label.
    #[must_use]
    pub fn cache_label(&self) -> &'static str {
        self.cache.as_ref().map_or("none", |status| status.outcome.label())
    }
}

/// The cache's part in a response, as `Cache-Status` (RFC 9211) reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStatus {
    /// The outcome.
    pub outcome: CacheOutcome,
    /// The lifetime of the entry served; `None` if no entry is served.
    pub life: Option<Lifetime>,
}

/// The outcome of a cache lookup and of the provider call, if there was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheOutcome {
    /// A fresh entry was served.
    Hit,
    /// A stale entry was served and this request did not wait for the provider. The text is the `detail` parameter.
    Stale(&'static str),
    /// The provider was called.
    Forwarded {
        /// Why no stored entry was used.
        reason: ForwardReason,
        /// Whether the response was stored.
        stored: StoreOutcome,
        /// Whether this request shared the call of another request.
        collapsed: bool,
    },
    /// The provider call failed and a stale entry was served.
    StaleOnError {
        /// The HTTP status, if the provider responded.
        status: Option<u16>,
    },
    /// No usable entry was stored and Weir did not call the provider, for this reason.
    Refused(&'static str),
}

/// Why the provider was called (RFC 9211, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardReason {
    /// No entry was stored.
    Miss,
    /// The stored entry was stale.
    Stale,
    /// The client's `Cache-Control` did not accept the stored entry, or forbade storing the response.
    Request,
}

impl ForwardReason {
    fn as_str(self) -> &'static str {
        match self {
            ForwardReason::Miss => "miss",
            ForwardReason::Stale => "stale",
            ForwardReason::Request => "request",
        }
    }
}

/// Whether a response was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It was stored.
    Yes,
    /// It was not stored, for this reason.
    No(&'static str),
    /// The provider call failed, with this HTTP status if the provider responded.
    Failed(Option<u16>),
}

impl CacheOutcome {
    /// Returns the metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            CacheOutcome::Hit => "hit",
            CacheOutcome::Forwarded { collapsed: true, .. } => "collapsed",
            CacheOutcome::Forwarded { reason: ForwardReason::Request, .. } => "bypass",
            CacheOutcome::Forwarded { .. } | CacheOutcome::Refused(_) => "miss",
            CacheOutcome::Stale(_) | CacheOutcome::StaleOnError { .. } => "stale",
        }
    }
}

impl CacheStatus {
    /// Returns the value of `Cache-Status` at `now`.
    #[must_use]
    pub fn header(&self, now: Time) -> String {
        let ttl = self.life.map_or(0, |life| life.fresh_until.0.saturating_sub(now.0).div_euclid(1000));
        let source = self.life.map_or("none", |life| life.source.as_str());
        let mut digits = itoa::Buffer::new();
        let mut hit = |detail: &str| ["weir; hit; ttl=", digits.format(ttl), "; detail=", detail].concat();
        let forwarded = |why: &str, stored: StoreOutcome, collapsed: &str| match stored {
            // Only the request that made the call reports whether the response was stored.
            StoreOutcome::Yes if !collapsed.is_empty() => format!("weir; fwd={why}{collapsed}"),
            StoreOutcome::Yes => format!("weir; fwd={why}; stored; detail={source}"),
            StoreOutcome::No(reason) => format!("weir; fwd={why}{collapsed}; detail={reason}"),
            StoreOutcome::Failed(Some(status)) => format!("weir; fwd={why}; fwd-status={status}{collapsed}"),
            StoreOutcome::Failed(None) => format!("weir; fwd={why}{collapsed}"),
        };
        match self.outcome {
            CacheOutcome::Hit => hit(source),
            CacheOutcome::Stale(detail) => hit(detail),
            CacheOutcome::Forwarded { reason: why, stored, collapsed } => {
                forwarded(why.as_str(), stored, if collapsed { "; collapsed" } else { "" })
            }
            CacheOutcome::StaleOnError { status: Some(status) } => {
                format!("weir; fwd=stale; fwd-status={status}; detail=stale-if-error")
            }
            CacheOutcome::StaleOnError { status: None } => "weir; fwd=stale; detail=stale-if-error".into(),
            // This is neither a hit nor a forward (RFC 9211, section 2).
            CacheOutcome::Refused(reason) => format!("weir; detail={reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::freshness::TtlSource;

    #[test]
    fn each_outcome_has_its_cache_status_header() {
        let life = Lifetime::until(Time(0), Time(60_000), TtlSource::Default);
        let at = |how, now: i64| CacheStatus { outcome: how, life: Some(life) }.header(Time(now));
        let forwarded = |why, stored, collapsed| at(CacheOutcome::Forwarded { reason: why, stored, collapsed }, 0);
        assert_eq!(at(CacheOutcome::Hit, 3000), "weir; hit; ttl=57; detail=default");
        assert_eq!(forwarded(ForwardReason::Miss, StoreOutcome::Yes, false), "weir; fwd=miss; stored; detail=default");
        assert_eq!(
            forwarded(ForwardReason::Miss, StoreOutcome::No("no-store"), false),
            "weir; fwd=miss; detail=no-store"
        );
        assert_eq!(forwarded(ForwardReason::Miss, StoreOutcome::Yes, true), "weir; fwd=miss; collapsed");
        assert_eq!(
            forwarded(ForwardReason::Stale, StoreOutcome::Yes, false),
            "weir; fwd=stale; stored; detail=default"
        );
        assert_eq!(
            forwarded(ForwardReason::Request, StoreOutcome::Yes, false),
            "weir; fwd=request; stored; detail=default"
        );
        assert_eq!(forwarded(ForwardReason::Request, StoreOutcome::Yes, true), "weir; fwd=request; collapsed");
        assert_eq!(
            at(CacheOutcome::Stale("stale-while-revalidate"), 64_000),
            "weir; hit; ttl=-4; detail=stale-while-revalidate"
        );
        assert_eq!(
            at(CacheOutcome::StaleOnError { status: Some(503) }, 64_000),
            "weir; fwd=stale; fwd-status=503; detail=stale-if-error"
        );
        assert_eq!(at(CacheOutcome::StaleOnError { status: None }, 64_000), "weir; fwd=stale; detail=stale-if-error");
        assert_eq!(
            forwarded(ForwardReason::Miss, StoreOutcome::Failed(Some(500)), false),
            "weir; fwd=miss; fwd-status=500"
        );
        assert_eq!(
            forwarded(ForwardReason::Miss, StoreOutcome::Failed(Some(500)), true),
            "weir; fwd=miss; fwd-status=500; collapsed"
        );
        assert_eq!(forwarded(ForwardReason::Request, StoreOutcome::Failed(None), false), "weir; fwd=request");
        assert_eq!(at(CacheOutcome::Refused("provider_unavailable"), 0), "weir; detail=provider_unavailable");
    }
}
