//! Collects what the pipeline learns about a request: client, route, providers.

use crate::base::ids::{ClientId, ProviderId};
use crate::base::model::Time;
use crate::base::problem::Outcome;
use crate::base::request_reply::Request;
use crate::engine::rate_limit::Bucket;
use crate::engine::request_record::RequestRecord;
use crate::fetch::explain;
use crate::fetch::provider_query::{self, SharedState};
use crate::fetch::rate_limit_cost::bucket_costs;
use crate::rules::cache_control::{self, Directives};
use crate::rules::route::RouteMatch;
use crate::rules::watch_token::Authenticated;
use crate::runtime::snapshot::Snapshot;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Provider label of requests to several providers.
pub(crate) const SEVERAL: &str = "several";

/// The state of one request while the pipeline handles it.
pub(crate) struct RequestContext<'r> {
    /// The state that all requests share.
    pub shared: &'r Arc<SharedState>,
    /// The request.
    pub request: &'r Request,
    /// The configuration of this request. A reload does not change it.
    pub snapshot: Arc<Snapshot>,
    /// The client, after authentication.
    pub client: Option<ClientId>,
    /// The client, and its key or token.
    pub authenticated: Option<Authenticated>,
    /// The providers of the request, each once.
    pub providers: Vec<ProviderId>,
    /// The request's `Cache-Control`.
    pub directives: Directives,
    /// When the request arrived.
    pub now: Time,
}

impl<'r> RequestContext<'r> {
    /// Makes the context of a request that is not authenticated yet.
    #[must_use]
    pub(crate) fn new(shared: &'r Arc<SharedState>, request: &'r Request, snapshot: Arc<Snapshot>, now: Time) -> Self {
        let directives = cache_control::directives(request.headers.get_all("cache-control"));
        Self { shared, request, snapshot, client: None, authenticated: None, providers: Vec::new(), directives, now }
    }

    /// Finds the route. Checks that the client, if there is one, may use the route's providers.
    ///
    /// # Errors
    /// 400, 404 or 405 for a request without a route, 403 for a provider that the client may not use.
    pub(crate) fn route(&mut self, record: &mut RequestRecord) -> Outcome<RouteMatch> {
        let request = self.request;
        let routed = self.snapshot.routes.route(request);
        let routed = routed.map_err(|(label, error)| {
            record.route = label;
            error
        })?;
        record.route = routed.endpoint.path;
        let providers = routed.route.providers();
        self.add_providers(providers.iter().copied(), record);
        for provider in providers {
            if let Some(client) = self.client {
                provider_query::permitted(&self.snapshot, client, provider)?;
            }
        }
        Ok(routed)
    }

    /// Adds providers to the request, each once, and updates the record's provider label.
    pub(crate) fn add_providers(&mut self, providers: impl Iterator<Item = ProviderId>, record: &mut RequestRecord) {
        for provider in providers {
            if !self.providers.contains(&provider) {
                self.providers.push(provider);
            }
        }
        record.provider = match self.providers.as_slice() {
            [] => None,
            [one] => Some(self.snapshot.providers[*one].name.clone()),
            _ => Some(SEVERAL.into()),
        };
    }

    /// Returns the explanation of the request, if the client wants one.
    pub(crate) fn explanation(&self, record: &mut RequestRecord) -> Option<Map<String, Value>> {
        let (data, client) = (record.explain.take()?, self.client?);
        let mut explanation = explain::request(&self.snapshot, client, self.request);
        explanation.insert("request_id".into(), record.request_id.as_str().into());
        explanation.insert("route".into(), record.route.into());
        explanation.insert("cache".into(), record.cache.as_ref().map(|status| status.header(self.shared.now())).into());
        let waited_ms = u64::try_from(record.provider_wait.as_millis()).unwrap_or(u64::MAX);
        explanation.insert("waited_ms".into(), waited_ms.into());
        explanation.insert("answers".into(), data.provider_responses.into());
        let costs = bucket_costs(&self.snapshot, client, &self.providers, &data.costs);
        explanation.insert("limits".into(), explain::limits(&self.snapshot, costs, true));
        Some(explanation)
    }

    /// Returns the rate-limit buckets that apply: the client's own, and its buckets for the request's providers.
    #[must_use]
    pub(crate) fn buckets(&self) -> Vec<&Bucket> {
        self.snapshot.buckets(self.client, &self.providers)
    }
}
