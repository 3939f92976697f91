//! Handles one request, from its head to its response.
//!
//! [`Pipeline::handle`] is the path of every request; the other files of this folder implement its steps. The pipeline
//! opens no sockets.

pub(crate) mod admission;
pub(crate) mod batch;
pub(crate) mod cache_status;
pub(crate) mod compression;
pub(crate) mod context;
pub(crate) mod dry_run;
pub(crate) mod forward;
pub(crate) mod forward_memory;
pub(crate) mod head_memory;
pub(crate) mod held;
pub(crate) mod merged_list;
pub(crate) mod native;
pub(crate) mod obtain;
pub(crate) mod problems;
pub(crate) mod representation;
pub(crate) mod respond;
pub(crate) mod routes;
pub(crate) mod source_reader;
pub(crate) mod watch;

use crate::base::endpoints;
use crate::base::memory_budget::{MemoryShare, Reservation};
use crate::base::problem::Outcome;
use crate::base::request_reply::{FormError, Request, Response};
use crate::base::trace_context::TraceSteps;
use crate::engine::compressor::Compressor;
use crate::engine::request_record::RequestRecord;
use crate::engine::strangers::Strangers;
use crate::fetch::explain;
use crate::fetch::provider_query::{ProviderIdentity, SharedState};
use crate::pipeline::context::RequestContext;
use crate::pipeline::forward::Forward;
use crate::pipeline::native::NativeAction;
use crate::pipeline::respond::Content;
use crate::pipeline::routes::RouteResult;
use crate::pipeline::watch::{WatchRequest, WatchStream, WatchTopics};
use crate::rules::cors;
use crate::rules::forwarding;
use crate::rules::native_routes::NativeMatch;
use crate::rules::request_limits;
use crate::rules::route::{NO_ROUTE, Route, RouteMatch};
use crate::rules::watch_token;
use crate::runtime::{self, Runtime};
use serde_json::Value;
use std::sync::Arc;

/// Route label of CORS preflight requests.
const PREFLIGHT: &str = "preflight";
/// Route label of forwarded requests.
pub(crate) const NATIVE: &str = "native";

/// Handles requests.
pub struct Pipeline {
    /// The configuration in force, and its reloads.
    pub runtime: Arc<Runtime>,
    /// The cache, the connections to providers and the metrics.
    pub shared: Arc<SharedState>,
    topics: Arc<WatchTopics>,
    /// What requests without a valid key use.
    strangers: Strangers,
    /// Compresses responses.
    compressor: Compressor,
}

/// What the server must do to respond to a request.
pub enum Handled {
    /// Write this response.
    Respond(Response),
    /// Forward the request to the provider, and the provider's response to the client.
    Forward(Box<Forward>),
    /// Write this response, with the events of the stream as its body.
    Watch(Response, Box<WatchStream>),
}

impl Handled {
    /// Forbids the browser to tell others the URL of the response, which can have a watch token.
    fn forbid_referrer(&mut self) {
        if let Handled::Respond(response) | Handled::Watch(response, _) = self {
            response.headers.push("referrer-policy", "no-referrer");
        }
    }
}

impl Pipeline {
    /// Creates a pipeline with this configuration and state.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, shared: Arc<SharedState>) -> Self {
        let compressor = Compressor::new(shared.metrics.compression.clone());
        Self { runtime, shared, topics: Arc::default(), strangers: Strangers::default(), compressor }
    }

    /// Reserves the memory for the body of a request, if it is a form from a client with a valid key: Weir reads only such
    /// bodies. Others get their response without it.
    ///
    /// # Errors
    /// The client has used its share of the memory.
    pub fn form_memory(&self, request: &Request) -> Result<Option<Reservation>, FormError> {
        let snapshot = self.runtime.snapshot();
        let is_form = |kind: &str| {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
        };
        if !endpoints::has_form(&request.path) || !request.header("content-type").is_some_and(is_form) {
            return Ok(None);
        }
        let Ok(client) = snapshot.keys.identify(request, self.shared.now()) else { return Ok(None) };
        let limit = snapshot.weir.limits.body_bytes;
        let length = request.header("content-length").and_then(|length| length.parse().ok());
        let bytes = usize::try_from(length.map_or(limit, |length| limit.min(length))).unwrap_or(usize::MAX);
        let share = snapshot.memory_share(client, &self.shared.upstream.budget);
        share.reserve(bytes).map(Some).map_err(|_| FormError::NoMemory)
    }

    /// Handles a request: authenticate → route and permit → look up → admit → fetch → respond.
    ///
    /// A CORS preflight request has no key, so Weir responds to it before authentication. A native request that the cache
    /// cannot serve is admitted and then forwarded, without a lookup.
    pub async fn handle(&self, request: &Request, request_id: String) -> (Handled, RequestRecord) {
        let (snapshot, now) = (self.runtime.snapshot(), self.shared.now());
        let size = admission::check_size(&self.shared, request_limits::check_head(request, &snapshot.weir.limits));
        let preflight = size.is_ok().then(|| cors::preflight(snapshot.weir.cors.as_ref(), request)).flatten();
        if let Some(headers) = preflight {
            let mut record = RequestRecord::new(request_id, PREFLIGHT);
            record.address = admission::logged_address(request, &snapshot);
            record.responded_at = now;
            let response = respond::preflight(headers, &mut record);
            return (Handled::Respond(response), record);
        }
        let native_match = snapshot.native_routes.find(&request.headers, &request.path);
        let mut record = RequestRecord::new(request_id, NO_ROUTE);
        record.address = admission::logged_address(request, &snapshot);
        let sample_rate = snapshot.traces.as_ref().map(|traces| traces.sample);
        record.steps = TraceSteps::begin(&request.headers, sample_rate, &self.shared.spans, runtime::clock);
        let mut context = RequestContext::new(&self.shared, request, snapshot, now);
        let mut result = match (size, &native_match) {
            (Err(problem), _) => Err(problem),
            (Ok(()), None) => self.unified(&mut context, &mut record).await,
            (Ok(()), Some(native_match)) => self.native(&mut context, native_match, &mut record).await,
        };
        if let Ok(RouteResult::Content(content)) = &mut result
            && let Some(selected) = compression::select(&context, content, &mut record)
        {
            record.steps.step("compress");
            let share = self.share(&context);
            // Boxed, because few requests need this future.
            Box::pin(compression::apply(&self.compressor, &context, content, selected, share)).await;
        }
        let mut handled = self.respond(&context, native_match.as_ref(), result, &mut record);
        if native_match.is_none() && endpoints::is_watch(&request.path) {
            handled.forbid_referrer();
        }
        record.waiting = None;
        (handled, record)
    }

    /// Handles a request to Weir's own API.
    async fn unified(&self, context: &mut RequestContext<'_>, record: &mut RequestRecord) -> Outcome<RouteResult> {
        let request = context.request;
        admission::check_size(&self.shared, request_limits::check_body(request, &context.snapshot.weir.limits))?;
        if endpoints::is_public(&request.path) {
            return self.public(context, record).map(RouteResult::Content);
        }
        let authenticated = admission::authenticate(context, record, false)?;
        let client = authenticated.client;
        self.reserve_head(context, record)?;
        record.steps.step("route and permit");
        let RouteMatch { endpoint, route } = context.route(record)?;
        match route {
            Route::Document(kind) => Ok(RouteResult::Content(respond::document(&context.snapshot, kind))),
            Route::Providers => routes::providers(context, client),
            Route::Session { name, shape } => routes::session(context, client, &name, &shape, record).await,
            Route::List { sources, page } => {
                routes::list(context, client, endpoint.list_path(), &sources, &page, record).await
            }
            Route::Batch { ids, shape } => routes::batch(context, client, &ids, &shape, record).await,
            Route::WatchToken(name) => routes::watch_token(context, &name, record),
            Route::Watch { name, shape } => {
                admission::check_watch_token(context, &name, record)?;
                let watch = WatchRequest {
                    runtime: &self.runtime,
                    shared: &self.shared,
                    topics: &self.topics,
                    snapshot: &context.snapshot,
                    authenticated,
                    request,
                    shape,
                    now: context.now,
                };
                routes::watch(context, &name, watch, record).await
            }
        }
    }

    /// Handles a request to a public path. It reads no key, so that nobody can try keys on public paths.
    fn public(&self, context: &mut RequestContext<'_>, record: &mut RequestRecord) -> Outcome<Content> {
        record.steps.step("authenticate");
        admission::check_host(context.request)?;
        admission::count_public(context, &self.strangers, record)?;
        self.reserve_head(context, record)?;
        record.steps.step("route and permit");
        match context.route(record)?.route {
            Route::Document(kind) => Ok(respond::document(&context.snapshot, kind)),
            _ => Err(problems::not_public()),
        }
    }

    /// Handles a request to a provider's native API.
    async fn native(
        &self,
        context: &mut RequestContext<'_>,
        native_match: &NativeMatch<'_>,
        record: &mut RequestRecord,
    ) -> Outcome<RouteResult> {
        let provider = native_match.provider;
        (record.route, record.provider) = (NATIVE, Some(context.snapshot.providers[provider].name.clone()));
        let client = admission::authenticate(context, record, true)?.client;
        self.reserve_head(context, record)?;
        native::check_permitted(&context.snapshot, client, provider)?;
        context.providers = vec![provider];
        let request = context.request;
        if forwarding::ends_here(&request.method, request.headers.get_all("max-forwards")) {
            return Ok(RouteResult::Options);
        }
        if watch_token::is_in(&request.query) {
            return Err(problems::forwarded_watch_token());
        }
        let identity = ProviderIdentity::of(&context.snapshot, client, provider, &context.request.headers)?;
        match native::action(&context.snapshot, client, &identity, native_match, context.request)? {
            NativeAction::Read(query) => {
                routes::native_read(context, client, &query, native_match.prefix, record).await
            }
            NativeAction::Forward(change) => {
                routes::forward(context, client, identity, native_match, change, record).await
            }
        }
    }

    /// Makes the response to the client, with CORS headers and the explanation.
    fn respond(
        &self,
        context: &RequestContext<'_>,
        native_match: Option<&NativeMatch<'_>>,
        result: Outcome<RouteResult>,
        record: &mut RequestRecord,
    ) -> Handled {
        if !matches!(result, Ok(RouteResult::Forward(_))) {
            record.steps.step("respond");
        }
        let (snapshot, buckets) = (&context.snapshot, context.buckets());
        // A request that did not wait needs no second clock read.
        let now = if record.provider_wait.is_zero() { context.now } else { self.shared.now() };
        record.responded_at = now;
        let cors_headers = cors::headers(snapshot.weir.cors.as_ref(), context.request);
        let response = match (result, native_match) {
            (Ok(RouteResult::Forward(mut forward)), _) => {
                forward.cors_headers = cors_headers;
                return Handled::Forward(forward);
            }
            (Ok(RouteResult::Watch(mut stream)), _) => {
                let mut response = respond::events(&buckets, record);
                let explanation = context.explanation(record).map_or(Ok(()), |explanation| {
                    stream.prepend_explanation(Value::Object(explanation).to_string().into_bytes())
                });
                if let Err(problem) = explanation {
                    response = respond::problem(&problem, &buckets, record, now);
                    response.headers.extend(cors_headers);
                    return Handled::Respond(response);
                }
                response.headers.extend(cors_headers);
                return Handled::Watch(response, stream);
            }
            (Ok(RouteResult::Options), _) => respond::options(problems::FORWARDED_METHODS, &buckets, record),
            (Ok(RouteResult::NoContent), _) => respond::no_content(&buckets, record),
            (Ok(RouteResult::Content(content)), _) => respond::content(context.request, content, &buckets, record, now),
            (Err(problem), None) => respond::problem(&problem, &buckets, record, now),
            (Err(problem), Some(native_match)) => {
                let provider = &snapshot.providers[native_match.provider];
                let mut response = respond::native(&problem, provider.native_errors.as_ref(), &buckets, record, now);
                forward::rewrite_links(provider, native_match.prefix, &mut response);
                response
            }
        };
        let mut response = match self.with_explanation(context, response, record) {
            Ok(response) => response,
            Err(problem) => {
                let response = respond::problem(&problem, &buckets, record, now);
                self.reserved(context, response).unwrap_or_else(respond::without_body)
            }
        };
        response.headers.extend(cors_headers);
        Handled::Respond(response)
    }

    /// Puts the response and its explanation into one body, if the client wants an explanation. Reserves the memory of the
    /// response.
    ///
    /// # Errors
    /// The response would exceed the client's share of the memory.
    fn with_explanation(
        &self,
        context: &RequestContext<'_>,
        mut response: Response,
        record: &mut RequestRecord,
    ) -> Outcome<Response> {
        if let Some(explanation) = context.explanation(record) {
            let body = explain::wrap(&mut response, &explanation, &self.share(context))?;
            response = respond::explained(response, body, record);
        }
        if context.request.method != http::Method::HEAD {
            let http2 = context.request.version == http::Version::HTTP_2;
            response.body = held::reserve_response(std::mem::take(&mut response.body), http2, || self.share(context))?;
        }
        Ok(response)
    }

    /// Reserves the memory of a short response.
    ///
    /// # Errors
    /// The response, if it would exceed the client's share of the memory.
    fn reserved(&self, context: &RequestContext<'_>, response: Response) -> Result<Response, Response> {
        let http2 = context.request.version == http::Version::HTTP_2;
        match held::reserve_response(response.body.clone(), http2, || self.share(context)) {
            Ok(body) => Ok(Response { body, ..response }),
            Err(_) => Err(response),
        }
    }

    /// Returns the client's share of the memory budget.
    fn share(&self, context: &RequestContext<'_>) -> MemoryShare {
        let (snapshot, budget) = (&context.snapshot, &self.shared.upstream.budget);
        match context.client {
            Some(client) => snapshot.memory_share(client, budget),
            None => self.strangers.memory_share(admission::client_address(context), budget),
        }
    }
}
