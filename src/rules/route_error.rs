//! Defines the errors of a request's method, path, ids and list sources.

use crate::base::endpoints::{MAX_BATCH, MAX_ID, MAX_SOURCES};
use crate::base::operation::Operation;
use crate::base::request_reply::FormError;
use crate::rules::parameters::QueryError;
use std::sync::Arc;

/// Why an id is invalid for every provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum IdError {
    #[error("the {kind} id is not UTF-8 when percent-decoded")]
    NotUtf8 { kind: IdKind },
    #[error("the {kind} id is longer than {MAX_ID} bytes")]
    TooLong { kind: IdKind },
    #[error(
        "the {kind} id contains {character:?}; write it as % and two hexadecimal digits (%2F for /), and encode that in a URL"
    )]
    Character { kind: IdKind, character: char },
}

/// The kind of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// An agent.
    Agent,
    /// A session.
    Session,
}

impl std::fmt::Display for IdKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == IdKind::Agent { "agent" } else { "session" })
    }
}

/// Why a request has no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum RouteError {
    #[error("unknown path; the API is under /v1/")]
    UnknownPath,
    #[error("unknown file; the files of the documentation page are under /docs/")]
    UnknownFile,
    #[error("{path} allows {allow} only")]
    Method { path: &'static str, allow: &'static str },
    #[error("{path} takes the parameters of a POST in a body with Content-Type: application/x-www-form-urlencoded")]
    NoForm { path: &'static str },
    #[error("a POST has all parameters in its form; the URL has a query, too")]
    QueryAndForm,
    #[error(transparent)]
    Form(#[from] FormError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Id(#[from] IdError),
    /// The hint suggests a provider with a similar name.
    #[error("{hint}")]
    UnknownProvider { hint: String },
    #[error("{provider} is not configured to {}", operation.action())]
    NoOperation { provider: Arc<str>, operation: Operation },
    #[error("write the agent id as PROVIDER:AGENT")]
    AgentWithoutProvider,
    #[error("{provider} has no agents")]
    NoAgents { provider: Arc<str> },
    #[error(
        "{provider} has no agents: request /v1/sessions/{provider}:SESSION or /v1/sessions?provider={provider} instead"
    )]
    NotByAgent { provider: Arc<str> },
    #[error("a session id of {provider} is {provider}:AGENT:SESSION; the agent is missing")]
    MissingAgent { provider: Arc<str> },
    #[error(
        "{provider} needs the agent too: request /v1/sessions/{provider}:AGENT:{id} or /v1/agents/AGENT/sessions/{id}"
    )]
    SessionWithoutAgent { provider: Arc<str>, id: String },
    #[error("{id:?} does not match the session ids of any provider; write PROVIDER:SESSION or PROVIDER:AGENT:SESSION")]
    UnknownSession { id: String },
    #[error("{id:?} matches the session ids of {providers}; write PROVIDER:…:{id}")]
    AmbiguousSession { id: String, providers: String },
    #[error("{id:?} does not match the agent ids of any provider; write agent=PROVIDER:{id}")]
    UnknownListAgent { id: String },
    #[error("{ids} does not identify a provider; add provider= (one of {providers})")]
    UnknownAgent { ids: String, providers: String },
    #[error("{id:?} matches the agent ids of {providers}; add provider=")]
    AmbiguousAgent { id: String, providers: String },
    #[error("{id:?} is not a valid {kind} id of {provider}; its ids match {pattern}")]
    InvalidId { id: String, kind: IdKind, provider: Arc<str>, pattern: String },
    #[error("the request has {count} ids; send id=ID once for each, 1 to {MAX_BATCH} ids")]
    BatchSize { count: usize },
    #[error("no sources given; send agent=AGENT for each agent, provider=NAME for each provider without agents")]
    NoSources,
    #[error("{provider} lists sessions by agent: add agent={provider}:AGENT for each")]
    SourceWithoutAgent { provider: Arc<str> },
    #[error("the list has {count} sources; the limit is {MAX_SOURCES}")]
    TooManySources { count: usize },
    #[error("{provider} has no filter enabled=; use status=, which works for every provider")]
    NoEnabledFilter { provider: Arc<str> },
    #[error("{source_name} is given twice; give each source once")]
    SourceTwice { source_name: String },
}
