//! Explains what the gateway would do with a request, for `weir explain`.
//!
//! A dry run takes the steps of the pipeline with an empty cache, and stops where the pipeline admits the request. It must
//! not charge a rate limit or call a provider.

use crate::base::endpoints::{Endpoint, ResponseKind};
use crate::base::ids::{ClientId, ProviderId};
use crate::base::model::Time;
use crate::base::problem::{Outcome, Problem};
use crate::base::request_reply::Request;
use crate::engine::rate_limit::Cost;
use crate::engine::request_record::ProviderCost;
use crate::fetch::explain::{self, Arrival};
use crate::fetch::provider_query::{self, ProviderIdentity, ProviderQuery, SharedState};
use crate::fetch::rate_limit_cost::bucket_costs;
use crate::pipeline::batch::{Batch, Job};
use crate::pipeline::forward::Change;
use crate::pipeline::merged_list::{IdentifiedSource, List};
use crate::pipeline::native::{self, NativeAction};
use crate::rules::cache_control;
use crate::rules::freshness::UpstreamLimit;
use crate::rules::native_routes::NativeMatch;
use crate::rules::page_headers::PageHeaders;
use crate::rules::request_limits;
use crate::rules::route::Route;
use crate::runtime::snapshot::Snapshot;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A request to explain.
pub(crate) struct DryRun<'r> {
    /// The configuration.
    pub snapshot: &'r Arc<Snapshot>,
    /// The client.
    pub client: ClientId,
    /// The request.
    pub request: &'r Request,
    /// State with an empty cache.
    pub shared: &'r Arc<SharedState>,
}

/// A provider's response body, to explain with the request.
pub(crate) struct GivenBody<'g> {
    /// Its bytes.
    pub body: &'g [u8],
    /// When the provider responded.
    pub responded_at: Time,
    /// The explanation contains the values in the body, except secrets.
    pub values: bool,
}

/// The results of the steps.
#[derive(Default)]
struct DryRunResult {
    route: Option<String>,
    /// How the request would be handled.
    action: Option<&'static str>,
    changes: Option<&'static str>,
    /// Method and URL of the forwarded request.
    forwarded_to: Option<String>,
    providers: Vec<ProviderId>,
    /// One query for each provider response that the request needs, or why Weir cannot make that query.
    queries: Vec<Outcome<ProviderQuery>>,
    costs: Vec<ProviderCost>,
}

impl DryRun<'_> {
    /// Returns the explanation, and whether the request would fail.
    ///
    /// # Errors
    /// A body is given, but the request does not need exactly one provider response.
    pub(crate) fn explain(&self, given: Option<&GivenBody<'_>>) -> Result<(Value, bool), String> {
        let mut result = DryRunResult::default();
        let mut problem: Option<Box<Problem>> = self.run(&mut result).err();
        if given.is_some() && problem.is_none() && (result.queries.len() != 1 || result.queries[0].is_err()) {
            let count = result.queries.iter().filter(|query| query.is_ok()).count();
            return Err(format!("--body explains one provider response, but this request needs {count}"));
        }
        let mut responses = Vec::with_capacity(result.queries.len());
        for query in &result.queries {
            responses.push(match query {
                Ok(query) => {
                    let mut described = explain::provider_query(query);
                    if let (Some(given), None) = (given, &problem) {
                        let headers = &PageHeaders::default();
                        let arrival = Arrival { at: given.responded_at, upstream: UpstreamLimit::default(), headers };
                        let explained = explain::add_body(&mut described, query, given.body, arrival, given.values);
                        problem = explained.err().map(Into::into);
                    }
                    Value::Object(described)
                }
                Err(problem) => json!({ "problem": problem.to_value(None) }),
            });
        }
        let mut explanation: Map<String, Value> = explain::request(self.snapshot, self.client, self.request);
        explanation.insert("route".into(), result.route.into());
        explanation.insert("way".into(), result.action.into());
        explanation.extend(result.forwarded_to.map(|target| ("passed_to".to_owned(), target.into())));
        explanation.extend(result.changes.map(|changes| ("changes".to_owned(), changes.into())));
        explanation.insert("answers".into(), responses.into());
        let costs = bucket_costs(self.snapshot, self.client, &result.providers, &result.costs);
        explanation.insert("limits".into(), explain::limits(self.snapshot, costs, false));
        let fails = problem.is_some();
        explanation.insert("problem".into(), problem.map(|problem| problem.to_value(None)).into());
        Ok((explanation.into(), fails))
    }

    /// Takes the steps of the pipeline, until one fails.
    fn run(&self, result: &mut DryRunResult) -> Outcome<()> {
        let request = self.request;
        let native_match = self.snapshot.native_routes.find(&request.headers, &request.path);
        request_limits::check_head(request, &self.snapshot.weir.limits)?;
        if let Some(native_match) = native_match {
            return self.native(&native_match, result);
        }
        let routed = self.snapshot.routes.route(request);
        let routed = routed.map_err(|(label, error)| {
            result.route = Some(label.to_owned());
            error
        })?;
        result.route = Some(routed.endpoint.path.to_owned());
        result.action = Some(action(routed.endpoint));
        result.providers = routed.route.providers();
        result.providers.sort_unstable();
        result.providers.dedup();
        for provider in &result.providers {
            provider_query::permitted(self.snapshot, self.client, *provider)?;
        }
        self.queries(&routed.route, routed.endpoint, result)?;
        result.costs.extend(result.queries.iter().flatten().map(cost));
        if let Route::Batch { .. } = routed.route {
            result.providers = result.costs.iter().filter_map(|cost| cost.provider).collect();
            result.providers.sort_unstable();
            result.providers.dedup();
        }
        Ok(())
    }

    fn queries(&self, route: &Route, endpoint: &'static Endpoint, result: &mut DryRunResult) -> Outcome<()> {
        let (snapshot, client, headers) = (self.snapshot, self.client, &self.request.headers);
        let now = self.shared.now();
        let directives = cache_control::directives(headers.get_all("cache-control"));
        match route {
            // These cost nothing.
            Route::Document(_) | Route::Providers => {}
            Route::WatchToken(name) => {
                result.costs.push(ProviderCost { provider: Some(name.provider), cost: Cost::one(true) });
            }
            Route::Session { name, .. } | Route::Watch { name, .. } => {
                result.queries.push(Ok(provider_query::session_query(snapshot, client, name, self.request)?));
            }
            Route::List { sources, page } => {
                let sources = sources
                    .iter()
                    .map(|source| IdentifiedSource::of(snapshot, client, source, headers))
                    .collect::<Result<_, _>>()?;
                let (shared, path) = (self.shared, endpoint.list_path());
                let list = List { shared, snapshot, client, path, page, sources, directives, now };
                let readers = list.start()?;
                result.queries.extend(readers.iter().filter_map(|reader| reader.first_query().cloned().map(Ok)));
            }
            Route::Batch { ids, shape } => {
                let batch = Batch { shared: self.shared, snapshot, client, ids, shape, now };
                let jobs = batch.jobs(headers, directives).jobs;
                let failed = jobs.iter().filter(|job| job.query().is_err());
                // An id without a query also has a cost.
                result.costs.extend(failed.map(Job::cost));
                result.queries.extend(jobs.iter().map(|job| job.query().cloned()));
            }
        }
        Ok(())
    }

    fn native(&self, native_match: &NativeMatch<'_>, result: &mut DryRunResult) -> Outcome<()> {
        let (snapshot, provider) = (self.snapshot, native_match.provider);
        let target = &snapshot.providers[provider].target;
        result.route = Some(format!("/{}/**", snapshot.providers[provider].name));
        native::check_permitted(snapshot, self.client, provider)?;
        result.providers = vec![provider];
        let identity = ProviderIdentity::of(snapshot, self.client, provider, &self.request.headers)?;
        let action = native::action(snapshot, self.client, &identity, native_match, self.request)?;
        result.costs.push(ProviderCost { provider: Some(provider), cost: Cost::one(false) });
        match action {
            NativeAction::Read(query) => {
                result.action = Some("native read: served through the cache, whose entry the unified API shares");
                result.queries.push(Ok(*query));
            }
            NativeAction::Forward(change) => {
                result.action = Some("forwarded to the provider, not cached");
                let path = target.path(native_match.path);
                result.forwarded_to = Some(format!("{} {}{path}", self.request.method, target.origin()));
                result.changes = match change {
                    Change::Nothing => None,
                    Change::Session { .. } => Some("the session, and the lists that contain it"),
                    Change::Lists(_) => Some("lists"),
                    Change::Agent(_) => Some("the agent, with all its sessions and lists"),
                };
            }
        }
        Ok(())
    }
}

/// Returns the cost of a query that the cache cannot serve.
fn cost(query: &ProviderQuery) -> ProviderCost {
    ProviderCost { provider: Some(query.provider_id()), cost: Cost::one(false) }
}

fn action(endpoint: &Endpoint) -> &'static str {
    match endpoint.response {
        ResponseKind::Events => {
            "unified watch: one provider request per freshness.watch, shared by all watches of the session"
        }
        ResponseKind::WatchToken => "unified, made by Weir: no provider request",
        ResponseKind::Providers => "unified, from the configuration: no provider request",
        _ => "unified, through the cache",
    }
}
