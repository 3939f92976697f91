//! The steps of each route after authentication: look up → admit → fetch.

use crate::base::endpoints::WATCH_TOKEN;
use crate::base::ids::ClientId;
use crate::base::problem::Outcome;
use crate::engine::client_address;
use crate::engine::rate_limit::Cost;
use crate::engine::request_record::{ProviderCost, RequestRecord};
use crate::fetch::provider_query::{self, ProviderIdentity, ProviderQuery};
use crate::pipeline::admission::{admit, look_up_and_admit};
use crate::pipeline::batch::{Batch, Job};
use crate::pipeline::context::RequestContext;
use crate::pipeline::forward::{Change, Forward, ForwardRequest};
use crate::pipeline::forward_memory::ForwardMemory;
use crate::pipeline::merged_list::{IdentifiedSource, List};
use crate::pipeline::representation::{self, SessionBody};
use crate::pipeline::respond::{self, Compressible, Content};
use crate::pipeline::watch::{WatchRequest, WatchStart, WatchStream};
use crate::pipeline::{native, obtain, problems};
use crate::rules::native_routes::NativeMatch;
use crate::rules::parameters::{Page, Representation};
use crate::rules::route::{BatchId, ListSource, SessionName};
use crate::rules::watch_token::{self, Authenticated};
use crate::runtime::snapshot::Client;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;
use std::num::NonZeroU32;
use tokio::time::Instant;

/// The result of a route.
#[allow(clippy::large_enum_variant)] // nearly all are content; a box would cost more than it saves
pub(crate) enum RouteResult {
    /// A body.
    Content(Content),
    /// A request to forward.
    Forward(Box<Forward>),
    /// A stream of events.
    Watch(Box<WatchStream>),
    /// No body, because a watched session has ended and the client has its last state.
    NoContent,
    /// An `OPTIONS` request that Weir must not forward: the methods that it forwards.
    Options,
}

/// `GET /v1/providers`. It costs nothing, so that a client over its rate limit can look; it has a limit of its own.
pub(crate) fn providers(context: &RequestContext<'_>, client: ClientId) -> Outcome<RouteResult> {
    let Client { id, provider_reads, .. } = &context.snapshot.clients[client];
    if !provider_reads.take_one() {
        return Err(problems::too_many_provider_reads(id, provider_reads.wait_for(NonZeroU32::MIN)));
    }
    Ok(RouteResult::Content(respond::providers(&context.snapshot, client, context.now)))
}

/// One session.
pub(crate) async fn session(
    context: &RequestContext<'_>,
    client: ClientId,
    name: &SessionName,
    shape: &Representation,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    let query = provider_query::session_query(&context.snapshot, client, name, context.request)?;
    record.steps.step("look up and admit");
    let lookup = look_up_and_admit(context, client, &query, record)?;
    let mut served = obtain::obtain(context.shared, &query, lookup, None, context.now, record).await?;
    record.cache = Some(served.status.clone());
    obtain::check_exists(&served.entry)?;
    let show = representation::show(&context.snapshot, client, shape);
    let SessionBody { body, etag, view, .. } =
        representation::session_body(context.shared, &query, (&mut served).into(), show, shape)?;
    let compressible = view.map_or(Compressible::Once, |view| Compressible::View(view, query.key));
    Ok(RouteResult::Content(Content::json(body, Some(etag)).compressible(compressible, show.secrets)))
}

/// A token for the watch of a session. Weir does not call the provider for it.
pub(crate) fn watch_token(
    context: &RequestContext<'_>,
    name: &SessionName,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    let snapshot = &context.snapshot;
    let Some(Authenticated { client, key, .. }) = context.authenticated else { return Err(problems::not_public()) };
    let access = provider_query::permitted(snapshot, client, name.provider)?;
    if access.credential.is_forwarded() {
        return Err(problems::no_watch_token(&snapshot.clients[client].id, &snapshot.providers[name.provider].name));
    }
    admit(context, client, &[ProviderCost { provider: Some(name.provider), cost: Cost::one(true) }], record)?;
    let expires_at = context.now.plus(watch_token::LIFETIME);
    let expires_at = snapshot.keys.expiry(&key).map_or(expires_at, |of_key| of_key.min(expires_at));
    let token = snapshot.watch_tokens.seal(&key, snapshot.session_tag(name), expires_at);
    let watch = context.request.path.strip_suffix("-tokens").unwrap_or_default();
    let url = format!("{watch}?{}={token}", WATCH_TOKEN.name);
    let body = json!({ "watch_token": token, "expires_at": expires_at.rfc3339(), "url": url });
    Ok(RouteResult::Content(Content::json(Bytes::from(body.to_string()), None)))
}

/// A session as it changes.
pub(crate) async fn watch(
    context: &RequestContext<'_>,
    name: &SessionName,
    watch: WatchRequest<'_>,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    let query = provider_query::session_query(&context.snapshot, watch.authenticated.client, name, context.request)?;
    let lookup = look_up_and_admit(context, watch.authenticated.client, &query, record)?;
    Ok(match watch.start(query, lookup, record).await? {
        WatchStart::Stream(stream) => RouteResult::Watch(stream),
        WatchStart::Ended => RouteResult::NoContent,
    })
}

/// A page of sessions. `path` is the route's template.
pub(crate) async fn list(
    context: &RequestContext<'_>,
    client: ClientId,
    path: &'static str,
    sources: &[ListSource],
    page: &Page,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    let identified = |source| IdentifiedSource::of(&context.snapshot, client, source, &context.request.headers);
    let list = List {
        shared: context.shared,
        snapshot: &context.snapshot,
        client,
        now: context.now,
        path,
        page,
        sources: sources.iter().map(identified).collect::<Result<_, _>>()?,
        directives: context.directives,
    };
    record.steps.step("look up and admit");
    let readers = list.start()?;
    let costs: Vec<ProviderCost> = readers.iter().filter_map(|reader| list.cost(reader)).collect();
    admit(context, client, &costs, record)?;
    record.steps.step("fetch");
    list.read(readers, Instant::now(), record).await.map(RouteResult::Content)
}

/// Sessions by their ids.
pub(crate) async fn batch(
    context: &mut RequestContext<'_>,
    client: ClientId,
    ids: &[BatchId],
    shape: &Representation,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    let snapshot = context.snapshot.clone();
    let batch = Batch { shared: context.shared, snapshot: &snapshot, client, ids, shape, now: context.now };
    record.steps.step("look up and admit");
    let jobs = batch.jobs(&context.request.headers, context.directives);
    let costs: Vec<ProviderCost> = jobs.jobs.iter().map(Job::cost).collect();
    context.add_providers(costs.iter().filter_map(|cost| cost.provider), record);
    admit(context, client, &costs, record)?;
    record.steps.step("fetch");
    batch.read(jobs, Instant::now(), record).await.map(RouteResult::Content)
}

/// A native read that the cache can serve.
pub(crate) async fn native_read(
    context: &RequestContext<'_>,
    client: ClientId,
    query: &ProviderQuery,
    prefix: &str,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    record.route = query.operation()?.name();
    for name in query.provider().headers.key_names() {
        let vary = [record.vary.as_bytes(), b", ", name.as_str().as_bytes()].concat();
        record.vary = HeaderValue::from_bytes(&vary).unwrap_or_else(|_| record.vary.clone());
    }
    record.steps.step("look up and admit");
    let lookup = look_up_and_admit(context, client, query, record)?;
    let secrets = context.snapshot.clients[client].reveal_secrets;
    let mut content = native::read(context.shared, query, lookup, secrets, record).await?;
    native::rewrite_links(query.provider(), prefix, &mut content);
    Ok(RouteResult::Content(content))
}

/// A native request that the cache cannot serve.
pub(crate) async fn forward(
    context: &RequestContext<'_>,
    client: ClientId,
    identity: ProviderIdentity,
    native_match: &NativeMatch<'_>,
    change: Change,
    record: &mut RequestRecord,
) -> Outcome<RouteResult> {
    let (request, provider) = (context.request, native_match.provider);
    record.steps.step("admit");
    admit(context, client, &[ProviderCost { provider: Some(provider), cost: Cost::one(false) }], record)?;
    record.steps.step("gate and credential");
    let query = identity.credential.without_parameters(&request.query);
    let question_mark = if query.is_empty() { "" } else { "?" };
    let share = context.snapshot.memory_share(client, &context.shared.upstream.budget);
    let memory = ForwardMemory::reserve(&share, &request.method, &request.headers)?;
    let forwarded = ForwardRequest {
        change,
        prefix: native_match.prefix.to_owned(),
        path_and_query: format!("{}{question_mark}{query}", native_match.path),
        method: request.method.clone(),
        from_trusted_proxy: client_address::is_from_trusted_proxy(request, &context.snapshot.weir.trusted_proxies),
    };
    let forward =
        Forward::start(context.shared, &context.snapshot, client, provider, identity, forwarded, memory).await?;
    Ok(RouteResult::Forward(forward))
}
