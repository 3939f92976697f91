//! A request below a provider's own API: whether the cache can answer it, or it is passed on, and what it
//! changes.
//!
//! A room of its own because two languages meet here: the provider's paths and Weir's questions. Reads that
//! the provider's file describes are asked as unified ones are, and share their entries.

use crate::cache::Kind;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{ProviderReply, Request};
use crate::fetch::{self, Looked, Served};
use crate::forward::Change;
use crate::model::{Form, Show};
use crate::mount::{Mounted, has_dots};
use crate::purge::Subject;
use crate::question::{self, Asking, Question, Shared};
use crate::reading::Operation;
use crate::respond::Content;
use crate::runtime;
use crate::runtime::snapshot::{Provider, Snapshot};
use crate::template::{Values, Variable};
use crate::trace::Trace;
use http::Method;
use std::sync::Arc;

/// How a request is answered.
pub enum Way {
    /// As a question that the cache may answer.
    Read(Box<Question>),
    /// By the provider itself.
    Pass(Change),
}

/// Whether a client may use a provider's own API.
///
/// # Errors
/// 403 where it may not use the provider, or none natively.
pub fn permitted(snapshot: &Snapshot, client: usize, provider: usize) -> Outcome<()> {
    question::permitted(snapshot, client, provider)?;
    let client = &snapshot.clients[client];
    if client.native {
        return Ok(());
    }
    let detail =
        format!("client {:?} may not use providers' own APIs (native: false in clients.yaml); it has /v1/", client.id);
    Err(Box::new(Problem::new(Code::Forbidden, detail)))
}

/// Which way a request goes.
///
/// # Errors
/// 400 for a path that could lead elsewhere.
pub fn way(
    snapshot: &Arc<Snapshot>,
    (client, provider): (usize, usize),
    asking: &Asking,
    mounted: &Mounted<'_>,
    request: &Request,
) -> Outcome<Way> {
    if has_dots(mounted.path) {
        return Err(Box::new(Problem::invalid("a path may not have . or .. as a segment, encoded or not")));
    }
    let (config, path) = (&snapshot.providers[provider], mounted.path);
    let ask =
        |list: bool, values: &Values<'_>| Question::new(snapshot, (client, provider), asking.clone(), list, values);
    if request.method == Method::TRACE {
        // It gives back what came, which is Weir's credential (RFC 9110, section 9.3.8).
        let mut problem = Problem::new(Code::MethodNotAllowed, "TRACE is not passed on");
        problem.allow = Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        return Err(Box::new(problem));
    }
    if request.method.is_safe() {
        let read = matches!(request.method, Method::GET | Method::HEAD);
        for (list, operation) in [(false, &config.get_session), (true, &config.list_sessions)] {
            let Some(template) = operation.as_ref().map(|operation| &operation.template) else { continue };
            if let Some(captured) = template.read(path, &request.query).filter(|_| read) {
                return Ok(Way::Read(Box::new(ask(list, &captured.values())?)));
            }
            match template.read_path(path) {
                // The same sessions by other parameters: asked for by their own words.
                Some((captured, 0)) if read => {
                    let question = ask(list, &captured.values())?.with_query(&request.query)?;
                    return Ok(Way::Read(Box::new(question)));
                }
                _ if config.mapping.has_secrets() && template.reads_loosely(path) => return Err(disguised(path)),
                _ => {}
            }
        }
        return Ok(Way::Pass(Change::Nothing));
    }
    let below = |operation: &Option<Operation>| operation.as_ref().and_then(|op| op.template.read_path(path));
    if let Some((captured, _)) = below(&config.get_session) {
        let lists = lists(config, captured.agent.as_deref(), &ask)?;
        return Ok(Way::Pass(Change::Session { session: Box::new(ask(false, &captured.values())?), lists }));
    }
    if let Some((captured, 0)) = below(&config.list_sessions) {
        return Ok(Way::Pass(Change::Lists(lists(config, captured.agent.as_deref(), &ask)?)));
    }
    let operations = [&config.get_session, &config.list_sessions];
    let agent = operations.into_iter().flatten().find_map(|op| op.template.read_to(Variable::Agent, path));
    Ok(Way::Pass(match agent.and_then(|(captured, _)| captured.agent) {
        Some(agent) => Change::Agent(Subject {
            provider: config.name.clone(),
            credential: asking.credential.identity.clone(),
            agent: Some(agent.into()),
            session: None,
        }),
        None => Change::Nothing,
    }))
}

/// A path that a provider may take for a session's, though it is not written like one: what is cut there would
/// come through uncut.
fn disguised(path: &str) -> Box<Problem> {
    let detail =
        format!("{path:?} is another way to write a path of sessions; write it as the provider's documents do");
    Box::new(Problem::invalid(detail))
}

/// Any question about the lists of an agent, for what it is about.
fn lists(
    config: &Provider,
    agent: Option<&str>,
    ask: &impl Fn(bool, &Values<'_>) -> Outcome<Question>,
) -> Outcome<Option<Box<Question>>> {
    let values = Values { agent, ..Values::default() };
    config.list_sessions.as_ref().map(|_| ask(true, &values).map(Box::new)).transpose()
}

/// A read that the provider's file describes, answered with the provider's own body.
///
/// # Errors
/// The provider's failure; its own answer is in the problem.
pub async fn read(
    shared: &Arc<Shared>,
    question: &Question,
    looked: Looked,
    secrets: bool,
    trace: &mut Trace,
) -> Outcome<Content> {
    let show = Show { secrets, form: Form::Native };
    match fetch::obtain(shared, question, looked, None, trace).await {
        Ok(Served { entry, status }) => {
            trace.cache = Some(status);
            if let Kind::NotFound(problem) = &entry.kind {
                return told(question, problem.clone(), secrets);
            }
            let view = fetch::view(shared, question, &entry, show, runtime::now())?;
            Ok(Content::json(view.body.clone(), Some(view.etag.clone())))
        }
        Err(problem) => told(question, problem, secrets),
    }
}

/// What is told of the provider's own answer where it is no session as its file describes one.
///
/// # Errors
/// The problem, with the provider's answer as far as it may be seen.
fn told(question: &Question, mut problem: Box<Problem>, secrets: bool) -> Outcome<Content> {
    let reply = problem.reply.take().and_then(|reply| visible(question, &reply, secrets));
    match reply {
        // It could not be unified, which need not trouble who asked for the provider's own.
        Some(reply) if reply.status == 200 && !is_encoded(&reply) => Ok(Content::json(reply.body, None)),
        reply => {
            problem.reply = reply.filter(|reply| reply.status != 200).map(Arc::new);
            Err(problem)
        }
    }
}

/// A provider's answer without what is secret in it. `None` where nobody knows what is in it: an encoded body, or
/// a success without sessions where they should be.
fn visible(question: &Question, reply: &ProviderReply, secrets: bool) -> Option<ProviderReply> {
    let (provider, mut reply) = (question.provider(), reply.clone());
    if secrets || !provider.mapping.has_secrets() || reply.body.is_empty() {
        return Some(reply);
    }
    if is_encoded(&reply) {
        return None;
    }
    let own = question.operation().ok()?.without_secrets(&provider.mapping, &reply.body);
    if own.is_none() && reply.status < 300 {
        return None;
    }
    // Whatever it answers, sessions are cut where any operation would have them.
    for operation in [&provider.get_session, &provider.list_sessions].into_iter().flatten() {
        reply.body = operation.without_secrets(&provider.mapping, &reply.body).unwrap_or(reply.body);
    }
    Some(reply)
}

fn is_encoded(reply: &ProviderReply) -> bool {
    let encoding = reply.headers.get(http::header::CONTENT_ENCODING);
    encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}
