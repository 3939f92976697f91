//! Decides how a native request is handled: as a read that the cache can serve, or as a forwarded request that may change
//! cached sessions.
//!
//! Reads that the provider file describes use the same provider queries as the unified API, so they share its cache
//! entries.

use crate::base::ids::{ClientId, ProviderId};
use crate::base::model::{Form, Show};
use crate::base::operation::Operation;
use crate::base::problem::{Outcome, Problem};
use crate::base::request_reply::{Body, ProviderReply, Request};
use crate::engine::cache::EntryKind;
use crate::engine::request_record::RequestRecord;
use crate::fetch::CacheLookup;
use crate::fetch::provider_query::{
    self, ProviderIdentity, ProviderQuery, ProviderQueryError, QueryTarget, SharedState,
};
use crate::pipeline::forward::Change;
use crate::pipeline::held::HeldView;
use crate::pipeline::respond::Content;
use crate::pipeline::{obtain, problems};
use crate::rules::native_routes::{NativeMatch, has_dots};
use crate::rules::page_headers::PageHeaders;
use crate::rules::purge::Subject;
use crate::rules::template::{Template, Values, Variable};
use crate::rules::visible_body::visible_body;
use crate::runtime::snapshot::{Provider, Snapshot};
use http::Method;
use std::sync::Arc;

/// How a native request is handled.
pub(crate) enum NativeAction {
    /// As a provider query: the cache can serve it.
    Read(Box<ProviderQuery>),
    /// Forwarded to the provider. A success makes this change.
    Forward(Change),
}

/// Checks that a client may use a provider's native API.
///
/// # Errors
/// 403 if the client may not use the provider, or may not use native APIs.
pub(crate) fn check_permitted(snapshot: &Snapshot, client: ClientId, provider: ProviderId) -> Outcome<()> {
    provider_query::permitted(snapshot, client, provider)?;
    let client = &snapshot.clients[client];
    if client.native {
        return Ok(());
    }
    Err(problems::native_forbidden(&client.id))
}

/// Decides how a request is handled.
///
/// # Errors
/// 400 for a path that the provider may interpret differently, 405 for `TRACE`.
pub(crate) fn action(
    snapshot: &Arc<Snapshot>,
    client: ClientId,
    identity: &ProviderIdentity,
    native_match: &NativeMatch<'_>,
    request: &Request,
) -> Outcome<NativeAction> {
    if has_dots(native_match.path) {
        return Err(problems::dot_segments());
    }
    let caller = Caller { snapshot, client, provider: native_match.provider, identity };
    check_method(caller.config(), &request.method, native_match.path)?;
    let query = identity.credential.without_parameters(&request.query);
    identity.credential.check_query(&query)?;
    if request.method.is_safe() {
        return caller.safe_action(native_match.path, &query, request);
    }
    Ok(NativeAction::Forward(caller.change_of_write(native_match.path, &query)?))
}

/// A client that uses the native API of a provider.
struct Caller<'r> {
    snapshot: &'r Arc<Snapshot>,
    client: ClientId,
    provider: ProviderId,
    identity: &'r ProviderIdentity,
}

impl<'r> Caller<'r> {
    fn config(&self) -> &'r Provider {
        &self.snapshot.providers[self.provider]
    }

    fn query(&self, operation: Operation, values: &Values<'_>) -> Result<ProviderQuery, ProviderQueryError> {
        let target = QueryTarget { client: self.client, provider: self.provider, operation };
        ProviderQuery::new(self.snapshot, target, self.identity.clone(), values)
    }

    /// Decides how a request with a safe method is handled (RFC 9110, section 9.2.1). `query_string` is without
    /// the parameters of the credential.
    ///
    /// # Errors
    /// 400 for a path that the provider may interpret differently.
    fn safe_action(&self, path: &str, query_string: &str, request: &Request) -> Outcome<NativeAction> {
        let config = self.config();
        let templates = || config.operations.iter().map(|(operation, compiled)| (operation, &compiled.template));
        if matches!(request.method, Method::GET | Method::HEAD) {
            let exact = |(operation, template): (Operation, &Template)| {
                template.read(path, query_string).map(|captured| (operation, captured))
            };
            if let Some((operation, captured)) = templates().find_map(exact) {
                let query = self.query(operation, &captured.values())?.with_headers(&request.headers)?;
                return Ok(NativeAction::Read(Box::new(query)));
            }
            // The path of an operation with other parameters: the query string becomes part of the cache key.
            let with_others = |(operation, template): (Operation, &Template)| {
                let (captured, below) = template.read_ids(path, query_string)?;
                (below == 0).then_some((operation, captured))
            };
            if let Some((operation, captured)) = templates().find_map(with_others) {
                let query = self.query(operation, &captured.values())?.with_query(query_string)?;
                let query = query.with_headers(&request.headers)?;
                return Ok(NativeAction::Read(Box::new(query)));
            }
        }
        // The provider may treat it as a session path. A forwarded response would then contain secrets.
        if config.mapping.has_secrets()
            && let Some((_, template)) = templates().find(|(_, template)| template.matches_leniently(path))
        {
            let incomplete =
                matches!(template.read_path(path), Some((_, 0))) && template.read_ids(path, query_string).is_none();
            return Err(if incomplete { problems::missing_id(path) } else { problems::disguised_path(path) });
        }
        Ok(NativeAction::Forward(Change::Nothing))
    }

    /// Returns what a successful write to a path changes. The operation whose path it is, or is below, decides.
    ///
    /// # Errors
    /// An id in the path is invalid.
    fn change_of_write(&self, path: &str, query: &str) -> Result<Change, ProviderQueryError> {
        let config = self.config();
        for (operation, compiled) in config.operations.iter() {
            let Some((captured, segments_below)) = compiled.template.read_ids(path, query) else { continue };
            match operation {
                // A write below a session, such as a new message, changes the session too.
                Operation::GetSession => {
                    let lists = self.lists(captured.agent.as_deref())?;
                    return Ok(Change::Session {
                        session: Box::new(self.query(operation, &captured.values())?),
                        lists,
                    });
                }
                Operation::ListSessions if segments_below == 0 => {
                    return Ok(Change::Lists(self.lists(captured.agent.as_deref())?));
                }
                Operation::ListSessions => {}
            }
        }
        let agent = config.operations.iter().find_map(|(_, compiled)| compiled.template.read_to(Variable::Agent, path));
        Ok(match agent.and_then(|(captured, _)| captured.agent) {
            Some(agent) => Change::Agent(Subject {
                provider: config.name.clone(),
                credential: self.identity.credential.identity.clone(),
                agent: Some(agent.into()),
                session: None,
            }),
            None => Change::Nothing,
        })
    }

    /// Returns a query for a list of the agent's sessions; `None` if the provider has no lists. Only its subject is used,
    /// and all lists of the agent have the same subject.
    fn lists(&self, agent: Option<&str>) -> Result<Option<Box<ProviderQuery>>, ProviderQueryError> {
        let values = Values { agent, ..Values::default() };
        let operation = Operation::ListSessions;
        self.config().operations.has(operation).then(|| self.query(operation, &values).map(Box::new)).transpose()
    }
}

/// Checks that a request with this method can be forwarded.
///
/// # Errors
/// 405 for `TRACE`, for another spelling of a known method, and for an unknown method on a path whose responses contain
/// secrets.
fn check_method(config: &Provider, method: &Method, path: &str) -> Outcome<()> {
    const FORWARDED: [Method; 7] =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    if FORWARDED.contains(method) {
        return Ok(());
    }
    let is = |known: &Method| method.as_str().eq_ignore_ascii_case(known.as_str());
    if is(&Method::TRACE) {
        // The response to TRACE contains the request, with Weir's credential (RFC 9110, section 9.3.8).
        return Err(problems::trace_not_forwarded());
    }
    // Methods are case-sensitive (RFC 9110, section 9.1), but a lenient provider may take `get` for GET.
    if is(&Method::CONNECT) || FORWARDED.iter().any(is) {
        return Err(problems::method_not_forwarded(method));
    }
    // A lenient provider may take an unknown method for GET.
    let mut templates = config.operations.iter().map(|(_, compiled)| &compiled.template);
    match config.mapping.has_secrets() && templates.any(|template| template.matches_leniently(path)) {
        true => Err(problems::method_not_forwarded(method)),
        false => Ok(()),
    }
}

/// Performs a native read and returns the provider's own body.
///
/// # Errors
/// The provider's failure. The problem contains the provider's response, without secrets.
pub(crate) async fn read(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    lookup: CacheLookup,
    secrets: bool,
    record: &mut RequestRecord,
) -> Outcome<Content> {
    let show = Show { secrets, form: Form::Native };
    match obtain::obtain(shared, query, lookup, None, shared.now(), record).await {
        Ok(mut served) => {
            record.cache = Some(served.status.clone());
            if let EntryKind::NotFound(error) = &served.entry.kind {
                return unmapped_response(query, (&**error).into(), secrets);
            }
            let headers = served.entry.page_headers.to_map();
            // A view that is stored with its entry needs no memory of its own.
            if let Some(view) = served.entry.view(show) {
                return Ok(Content { headers, ..Content::json(view.body.clone(), Some(view.etag.clone())) });
            }
            let HeldView { view, memory } = HeldView::of(shared, query, (&mut served).into(), show)?;
            let body = Body::from(view.body.clone()).holding([memory]);
            Ok(Content { headers, ..Content::json(body, Some(view.etag.clone())) })
        }
        Err(problem) => unmapped_response(query, problem, secrets),
    }
}

/// Replaces the URLs in the headers of a native list that lead to the provider with the same places at Weir.
pub(crate) fn rewrite_links(provider: &Provider, prefix: &str, content: &mut Content) {
    for (name, values) in provider.address.rewrite(&content.headers, prefix) {
        content.headers.remove(&name);
        values.into_iter().for_each(|value| {
            content.headers.append(&name, value);
        });
    }
}

/// Returns the provider's response to a failed read if it is 200: a native client does not need the mapping.
///
/// # Errors
/// The problem, if the provider's response is not 200 or the client may not see it.
fn unmapped_response(query: &ProviderQuery, mut problem: Box<Problem>, secrets: bool) -> Outcome<Content> {
    let reply = problem.reply.take().and_then(|reply| visible(query, &reply, secrets));
    match reply {
        Some(reply) if reply.status == 200 && !is_encoded(&reply) => {
            let names = query.operation()?.page_headers();
            let headers = PageHeaders::of(names, &reply.headers, None).to_map();
            Ok(Content { headers, ..Content::json(reply.body, None) })
        }
        reply => {
            problem.reply = reply.filter(|reply| reply.status != 200).map(Arc::new);
            Err(problem)
        }
    }
}

/// Returns a provider's response without secrets. `None` if Weir cannot know what it contains: the body is encoded, or a
/// successful response does not have the shape that the provider's file describes.
fn visible(query: &ProviderQuery, reply: &ProviderReply, secrets: bool) -> Option<ProviderReply> {
    let (provider, mut reply) = (query.provider(), reply.clone());
    if secrets || !provider.mapping.has_secrets() || reply.body.is_empty() {
        return Some(reply);
    }
    if is_encoded(&reply) {
        return None;
    }
    let own = query.operation().ok().filter(|_| reply.status < 300);
    reply.body = visible_body(&provider.operations, own, &provider.mapping, &reply.body)?;
    Some(reply)
}

fn is_encoded(reply: &ProviderReply) -> bool {
    let encoding = reply.headers.get(http::header::CONTENT_ENCODING);
    encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}
