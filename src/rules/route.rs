//! Parses the path and query of a request into a route: endpoint, provider, ids and parameters.
//!
//! Routing rejects every malformed request, so that Weir never calls a provider for one. It knows providers only by their
//! id patterns, and does not check which providers a client may use.

use crate::base::endpoints::{self, Endpoint, MAX_BATCH, MAX_SOURCES, ResponseKind};
use crate::base::id_pattern::{self, Pattern};
use crate::base::ids::{IdVec, ProviderId};
use crate::base::operation::{Operation, PerOperation};
use crate::base::request_reply::Request;
use crate::base::typo::unknown;
use crate::config::faults::{Faults, Located};
use crate::config::provider::{self, ProviderConfig};
use crate::rules::forms;
use crate::rules::id_text::{check_length, decode_id, own_id};
use crate::rules::parameters::{Page, Parameters, Representation};
use crate::rules::route_error::{IdKind, RouteError};
use crate::rules::unified_id;
use std::sync::Arc;

/// The provider's own ids of a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionName {
    /// The provider.
    pub provider: ProviderId,
    /// The agent, if the provider has agents.
    pub agent: Option<String>,
    /// The provider's own id.
    pub session: String,
}

/// One source of the sessions in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListSource {
    /// The provider.
    pub provider: ProviderId,
    /// The agent, if the provider has agents.
    pub agent: Option<String>,
}

/// What a request reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// One session.
    Session {
        /// The session.
        name: SessionName,
        /// How the response represents it.
        shape: Representation,
    },
    /// The changes of one session, as events.
    Watch {
        /// The session.
        name: SessionName,
        /// How the response represents it.
        shape: Representation,
    },
    /// A token for the watch of this session.
    WatchToken(SessionName),
    /// Sessions by their ids.
    Batch {
        /// The ids.
        ids: Vec<BatchId>,
        /// How the response represents them.
        shape: Representation,
    },
    /// A page of sessions.
    List {
        /// Where the sessions come from.
        sources: Vec<ListSource>,
        /// The parameters of the list.
        page: Page,
    },
    /// The configured providers.
    Providers,
    /// A public document.
    Document(DocumentKind),
}

/// A document that needs no authentication and is the same for all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// The OpenAPI description.
    OpenApi,
    /// The page that shows the description.
    DocsPage,
    /// A file of that page, from [`endpoints::DOCS_FILES`].
    DocsFile(&'static str),
}

/// An id of a batch request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchId {
    /// The id as sent.
    pub text: String,
    /// The session that it names, or why it names no session.
    pub session: Result<SessionName, RouteError>,
}

impl Route {
    /// Returns the providers of the route. For a batch the result is empty, because each id is checked alone.
    #[must_use]
    pub fn providers(&self) -> Vec<ProviderId> {
        match self {
            Route::Session { name, .. } | Route::Watch { name, .. } | Route::WatchToken(name) => vec![name.provider],
            Route::List { sources, .. } => sources.iter().map(|source| source.provider).collect(),
            Route::Batch { .. } | Route::Providers | Route::Document(_) => Vec::new(),
        }
    }
}

/// The endpoint and the route of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    /// The endpoint. Its path is the route's label in metrics and logs.
    pub endpoint: &'static Endpoint,
    /// The route.
    pub route: Route,
}

/// The label of requests without a route.
pub(crate) const NO_ROUTE: &str = "none";

/// The compiled id patterns of all providers.
#[derive(Debug, Default)]
pub struct RouteTable {
    providers: IdVec<ProviderId, ProviderRoutes>,
}

/// What routing knows about one provider.
#[derive(Debug)]
struct ProviderRoutes {
    name: Arc<str>,
    has_agents: bool,
    has_enabled_filter: bool,
    operations: PerOperation<()>,
    /// Ids that identify the provider.
    recognise: CompiledIdPatterns,
    /// Ids that are valid once the provider is known.
    accept: CompiledIdPatterns,
}

#[derive(Debug)]
struct CompiledIdPatterns {
    agent: Option<Pattern>,
    session: Option<Pattern>,
}

impl CompiledIdPatterns {
    fn compile(config: &provider::IdPatterns, faults: &mut Faults) -> Self {
        let mut regex = |at: &Option<Located<String>>| {
            let at = at.as_ref()?;
            faults.keep(&at.location, id_pattern::compile(&at.value))
        };
        Self { agent: regex(&config.agent), session: regex(&config.session) }
    }
}

/// Returns whether there is a pattern and the id matches it.
fn matches(pattern: Option<&Pattern>, id: &str) -> bool {
    pattern.is_some_and(|pattern| pattern.is_match(id))
}

impl RouteTable {
    /// Compiles the providers' patterns, and reports every fault.
    #[must_use]
    pub fn compile(providers: &[ProviderConfig], faults: &mut Faults) -> Self {
        let uses = |operation: Option<&provider::OperationConfig>, variable: &str| {
            operation.is_some_and(|o| o.query.iter().any(|(_, template)| template.value.contains(variable)))
        };
        let compile = |provider: &ProviderConfig, faults: &mut Faults| ProviderRoutes {
            name: provider.name.value.as_str().into(),
            has_agents: provider.ids.accept.agent.is_some(),
            has_enabled_filter: uses(provider.operations.get(Operation::ListSessions), "{enabled}"),
            operations: PerOperation::make(|operation| provider.operations.has(operation).then_some(())),
            recognise: CompiledIdPatterns::compile(&provider.ids.recognise, faults),
            accept: CompiledIdPatterns::compile(&provider.ids.accept, faults),
        };
        Self { providers: providers.iter().map(|provider| compile(provider, faults)).collect() }
    }

    /// Returns the endpoint of a path, with the path's variable segments.
    ///
    /// # Errors
    /// The path is unknown.
    pub fn endpoint(path: &str) -> Result<(&'static Endpoint, Vec<&str>), RouteError> {
        let found = endpoints::ALL.iter().find_map(|endpoint| Some((*endpoint, endpoint.match_path(path)?)));
        found.ok_or(RouteError::UnknownPath)
    }

    /// Returns the route of a request.
    ///
    /// # Errors
    /// Why the request has no route, with the label of the endpoint if the path is known.
    pub fn route(&self, request: &Request) -> Result<RouteMatch, (&'static str, RouteError)> {
        let (endpoint, segments) = Self::endpoint(&request.path).map_err(|error| (NO_ROUTE, error))?;
        let route =
            forms::parameters(endpoint, request).and_then(|parameters| self.build(endpoint, &segments, &parameters));
        route.map(|route| RouteMatch { endpoint, route }).map_err(|error| (endpoint.path, error))
    }

    fn build(&self, endpoint: &Endpoint, segments: &[&str], parameters: &Parameters) -> Result<Route, RouteError> {
        match (endpoint.response, segments) {
            (ResponseKind::Session | ResponseKind::Events | ResponseKind::WatchToken, [id]) => {
                let (name, shape) = (self.parse_session_id(id)?, parameters.representation()?);
                self.check_operation(name.provider, Operation::GetSession)?;
                Ok(match endpoint.response {
                    ResponseKind::Events => Route::Watch { name, shape },
                    ResponseKind::WatchToken => Route::WatchToken(name),
                    _ => Route::Session { name, shape },
                })
            }
            (ResponseKind::Session, [agent, id]) => self.agent_session(agent, id, parameters),
            (ResponseKind::Page, [agent]) => self.agent_sessions(agent, parameters),
            (ResponseKind::Page, _) => self.sessions(parameters),
            (ResponseKind::Batch, _) => self.batch(parameters),
            (ResponseKind::Description, _) => Ok(Route::Document(DocumentKind::OpenApi)),
            (ResponseKind::DocsPage, _) => Ok(Route::Document(DocumentKind::DocsPage)),
            (ResponseKind::DocsFile, [name]) => {
                let file = endpoints::DOCS_FILES.into_iter().find(|file| file == name);
                Ok(Route::Document(DocumentKind::DocsFile(file.ok_or(RouteError::UnknownFile)?)))
            }
            _ => Ok(Route::Providers),
        }
    }

    /// Parses a session id from a path.
    ///
    /// # Errors
    /// The id is invalid, or does not identify a provider.
    pub fn parse_session_id(&self, id: &str) -> Result<SessionName, RouteError> {
        self.read_session_id(&decode_id(id, IdKind::Session)?)
    }

    /// Reads a session id as it is in a response.
    ///
    /// # Errors
    /// The id is invalid, or does not identify a provider.
    pub fn read_session_id(&self, id: &str) -> Result<SessionName, RouteError> {
        check_length(id, IdKind::Session)?;
        match id.split_once(':') {
            Some((name, rest)) => self.prefixed_session(name, rest),
            None => {
                let session = own_id(id, IdKind::Session)?;
                Ok(SessionName { provider: self.provider_of_session(&session)?, agent: None, session })
            }
        }
    }

    /// Parses an agent id of the form `provider:agent`.
    ///
    /// # Errors
    /// The id is invalid, or its provider is unknown or has no agents.
    pub fn parse_agent_id(&self, id: &str) -> Result<(ProviderId, String), RouteError> {
        let (name, agent) = id.split_once(':').ok_or(RouteError::AgentWithoutProvider)?;
        let provider = self.provider_by_name(name)?;
        if !self.providers[provider].has_agents {
            return Err(RouteError::NoAgents { provider: self.providers[provider].name.clone() });
        }
        let agent = own_id(agent, IdKind::Agent)?;
        self.accept(provider, Some(&agent), None)?;
        Ok((provider, agent))
    }

    /// Parses the rest of `provider:agent:session` or `provider:session`.
    fn prefixed_session(&self, name: &str, rest: &str) -> Result<SessionName, RouteError> {
        let provider = self.provider_by_name(name)?;
        let patterns = &self.providers[provider];
        let (agent, session) = match (patterns.has_agents, rest.split_once(':')) {
            (true, Some((agent, session))) => (Some(own_id(agent, IdKind::Agent)?), session),
            (true, None) => return Err(RouteError::MissingAgent { provider: patterns.name.clone() }),
            (false, _) => (None, rest),
        };
        let session = own_id(session, IdKind::Session)?;
        self.accept(provider, agent.as_deref(), Some(&session))?;
        Ok(SessionName { provider, agent, session })
    }

    /// Returns the provider that recognises a session id without a prefix.
    fn provider_of_session(&self, id: &str) -> Result<ProviderId, RouteError> {
        match self.recognising(None, Some(id)).as_slice() {
            [one] if !self.providers[*one].has_agents => {
                self.accept(*one, None, Some(id))?;
                Ok(*one)
            }
            [one] => {
                let provider = self.providers[*one].name.clone();
                Err(RouteError::SessionWithoutAgent { provider, id: id.to_owned() })
            }
            [] => Err(RouteError::UnknownSession { id: id.to_owned() }),
            several => Err(RouteError::AmbiguousSession { id: id.to_owned(), providers: self.names(several) }),
        }
    }

    fn agent_session(&self, agent: &str, session: &str, parameters: &Parameters) -> Result<Route, RouteError> {
        let shape = parameters.representation()?;
        let (agent, session) = (decode_id(agent, IdKind::Agent)?, decode_id(session, IdKind::Session)?);
        let provider = self.provider_of_agent(&agent, Some(&session), parameters.get("provider"))?;
        self.check_operation(provider, Operation::GetSession)?;
        Ok(Route::Session { name: SessionName { provider, agent: Some(agent), session }, shape })
    }

    fn agent_sessions(&self, agent: &str, parameters: &Parameters) -> Result<Route, RouteError> {
        let page = parameters.page()?;
        let agent = decode_id(agent, IdKind::Agent)?;
        let provider = self.provider_of_agent(&agent, None, parameters.get("provider"))?;
        self.list(vec![ListSource { provider, agent: Some(agent) }], page)
    }

    /// Makes a source of each `agent=`, and of each `provider=` without agents.
    fn sessions(&self, parameters: &Parameters) -> Result<Route, RouteError> {
        let page = parameters.page()?;
        let given = parameters
            .all("provider")
            .map(|name| self.provider_by_name(name))
            .collect::<Result<Vec<ProviderId>, _>>()?;
        let with_agents = |provider: &&ProviderId| self.providers[**provider].has_agents;
        let given_with_agents: Vec<ProviderId> = given.iter().filter(with_agents).copied().collect();
        let mut sources = Vec::new();
        for agent in parameters.all("agent") {
            let (provider, agent) = self.list_agent(agent, &given_with_agents)?;
            sources.push(ListSource { provider, agent: Some(agent) });
        }
        for provider in given {
            let patterns = &self.providers[provider];
            if !patterns.has_agents {
                sources.push(ListSource { provider, agent: None });
            } else if !sources.iter().any(|source| source.provider == provider) {
                return Err(RouteError::SourceWithoutAgent { provider: patterns.name.clone() });
            }
        }
        if sources.is_empty() {
            return Err(RouteError::NoSources);
        }
        self.list(sources, page)
    }

    /// Parses an agent of a list: `provider:agent`, an id that a provider recognises, or an id that exactly one of the
    /// given providers accepts.
    fn list_agent(&self, id: &str, given: &[ProviderId]) -> Result<(ProviderId, String), RouteError> {
        check_length(id, IdKind::Agent)?;
        let id = id.to_owned();
        if id.contains(':') {
            return self.parse_agent_id(&id);
        }
        let recognising = self.recognising(Some(&id), None);
        let accepting = |provider: &&ProviderId| matches(self.providers[**provider].accept.agent.as_ref(), &id);
        let accepting: Vec<ProviderId> = given.iter().filter(accepting).copied().collect();
        match (recognising.as_slice(), accepting.as_slice()) {
            ([], [one]) => {
                self.accept(*one, Some(&id), None)?;
                Ok((*one, id))
            }
            ([], _) => Err(RouteError::UnknownListAgent { id }),
            _ => Ok((self.provider_of_agent(&id, None, None)?, id)),
        }
    }

    fn batch(&self, parameters: &Parameters) -> Result<Route, RouteError> {
        let shape = parameters.representation()?;
        let parse = |id: &str| {
            let session = self
                .read_session_id(id)
                .and_then(|name| self.check_operation(name.provider, Operation::GetSession).map(|()| name));
            BatchId { text: id.to_owned(), session }
        };
        let ids: Vec<_> = parameters.all("id").map(parse).collect();
        if !(1..=MAX_BATCH).contains(&ids.len()) {
            return Err(RouteError::BatchSize { count: ids.len() });
        }
        Ok(Route::Batch { ids, shape })
    }

    fn list(&self, sources: Vec<ListSource>, page: Page) -> Result<Route, RouteError> {
        if sources.len() > MAX_SOURCES {
            return Err(RouteError::TooManySources { count: sources.len() });
        }
        for (position, source) in sources.iter().enumerate() {
            let patterns = &self.providers[source.provider];
            self.check_operation(source.provider, Operation::ListSessions)?;
            if page.enabled.is_some() && !patterns.has_enabled_filter {
                return Err(RouteError::NoEnabledFilter { provider: patterns.name.clone() });
            }
            if sources[..position].contains(source) {
                let agent = source.agent.as_ref().map(|agent| format!("'s agent {agent}")).unwrap_or_default();
                return Err(RouteError::SourceTwice { source_name: format!("{}{agent}", patterns.name) });
            }
        }
        Ok(Route::List { sources, page })
    }

    /// Returns the provider of an agent id: the given one, or the one that recognises the ids.
    fn provider_of_agent(
        &self,
        agent: &str,
        session: Option<&str>,
        given: Option<&str>,
    ) -> Result<ProviderId, RouteError> {
        if let Some(name) = given {
            let provider = self.provider_by_name(name)?;
            if !self.providers[provider].has_agents {
                return Err(RouteError::NotByAgent { provider: self.providers[provider].name.clone() });
            }
            self.accept(provider, Some(agent), session)?;
            return Ok(provider);
        }
        // Providers that match both ids come first. Otherwise one id is enough, because real ids do not always have the
        // usual prefixes.
        let candidates = [
            self.recognising(Some(agent), session),
            self.recognising(Some(agent), None),
            session.map_or_else(Vec::new, |session| self.recognising(None, Some(session))),
        ];
        let mut candidates = candidates.into_iter().map(|mut found| {
            found.retain(|provider| self.providers[*provider].has_agents);
            found
        });
        match candidates.find(|found| !found.is_empty()).unwrap_or_default().as_slice() {
            [one] => {
                self.accept(*one, Some(agent), session)?;
                Ok(*one)
            }
            [] => {
                let ids = session.map_or_else(|| format!("{agent:?}"), |session| format!("{agent:?} with {session:?}"));
                Err(RouteError::UnknownAgent { ids, providers: self.names_with_agents() })
            }
            several => Err(RouteError::AmbiguousAgent { id: agent.to_owned(), providers: self.names(several) }),
        }
    }

    /// Returns the providers whose patterns match these ids.
    fn recognising(&self, agent: Option<&str>, session: Option<&str>) -> Vec<ProviderId> {
        let all = self.providers.pairs();
        all.filter(|(_, p)| {
            agent.is_none_or(|id| matches(p.recognise.agent.as_ref(), id))
                && session.is_none_or(|id| matches(p.recognise.session.as_ref(), id))
        })
        .map(|(provider, _)| provider)
        .collect()
    }

    /// Checks ids against a provider's patterns. A dot segment is never valid, because it would change the path.
    fn accept(&self, provider: ProviderId, agent: Option<&str>, session: Option<&str>) -> Result<(), RouteError> {
        let patterns = &self.providers[provider];
        for (id, pattern, kind) in
            [(agent, &patterns.accept.agent, IdKind::Agent), (session, &patterns.accept.session, IdKind::Session)]
        {
            if let (Some(id), Some(pattern)) = (id, pattern)
                && !unified_id::accepts(pattern, id)
            {
                let (provider, pattern) = (patterns.name.clone(), pattern.as_str().to_owned());
                return Err(RouteError::InvalidId { id: id.to_owned(), kind, provider, pattern });
            }
        }
        Ok(())
    }

    fn provider_by_name(&self, name: &str) -> Result<ProviderId, RouteError> {
        self.providers.find(|p| &*p.name == name).ok_or_else(|| {
            let known = self.providers.iter().map(|p| &*p.name);
            RouteError::UnknownProvider { hint: unknown("provider", name, known) }
        })
    }

    fn check_operation(&self, provider: ProviderId, operation: Operation) -> Result<(), RouteError> {
        let patterns = &self.providers[provider];
        if patterns.operations.has(operation) {
            return Ok(());
        }
        Err(RouteError::NoOperation { provider: patterns.name.clone(), operation })
    }

    fn names(&self, providers: &[ProviderId]) -> String {
        providers.iter().map(|provider| &*self.providers[*provider].name).collect::<Vec<_>>().join(" and ")
    }

    fn names_with_agents(&self) -> String {
        self.providers.iter().filter(|p| p.has_agents).map(|p| &*p.name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Id;
    use crate::base::problem::{Code, Problem};
    use crate::base::request_reply::FormError;
    use http::Method;

    fn pair(agent: Option<&str>, session: &str) -> CompiledIdPatterns {
        CompiledIdPatterns {
            agent: agent.map(|a| id_pattern::compile(a).unwrap()),
            session: Some(id_pattern::compile(session).unwrap()),
        }
    }

    fn table() -> RouteTable {
        let patterns = |name: &str, recognise, accept, has_agents| ProviderRoutes {
            name: name.into(),
            has_agents,
            has_enabled_filter: has_agents,
            operations: PerOperation::make(|_| Some(())),
            recognise,
            accept,
        };
        RouteTable {
            providers: [
                patterns(
                    "with",
                    pair(Some("^agt_"), "^ase_"),
                    pair(Some("^[a-z_.]{1,20}$"), "^[a-z_.0-9]{1,20}$"),
                    true,
                ),
                patterns("without", pair(None, "^(sess_|[0-9]+$)"), pair(None, "^[a-zA-Z_0-9]{1,20}$"), false),
            ]
            .into_iter()
            .collect(),
        }
    }

    fn request(method: Method, path: &str, query: &str, form: Option<&str>) -> Request {
        let form = form.map(|form| Ok(form.to_owned()));
        Request { method, path: path.to_owned(), query: query.to_owned(), form, ..Request::default() }
    }

    fn get(target: &str) -> Result<Route, (u16, String)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        table()
            .route(&request(Method::GET, path, query, None))
            .map(|found| found.route)
            .map_err(|(_, error)| Box::<Problem>::from(error))
            .map_err(|problem| (problem.code.status(), problem.detail))
    }

    fn name(provider: usize, agent: Option<&str>, session: &str) -> SessionName {
        SessionName { provider: ProviderId::at(provider), agent: agent.map(Into::into), session: session.into() }
    }

    fn session(provider: usize, agent: Option<&str>, session: &str) -> Route {
        Route::Session { name: name(provider, agent, session), shape: Representation::default() }
    }

    #[test]
    fn a_session_has_several_paths() {
        assert_eq!(get("/v1/sessions/with:agt_a:ase_1"), Ok(session(0, Some("agt_a"), "ase_1")));
        assert_eq!(get("/v1/sessions/with%3Aagt_a%3aase_1"), Ok(session(0, Some("agt_a"), "ase_1")));
        assert_eq!(
            get("/v1/sessions/with:plain:x"),
            Ok(session(0, Some("plain"), "x")),
            "valid, because the provider is known"
        );
        assert_eq!(get("/v1/sessions/without:sess_1"), Ok(session(1, None, "sess_1")));
        assert_eq!(get("/v1/sessions/sess_1"), Ok(session(1, None, "sess_1")));
        assert_eq!(get("/v1/sessions/42"), Ok(session(1, None, "42")));
        assert_eq!(get("/v1/agents/agt_a/sessions/ase_1"), Ok(session(0, Some("agt_a"), "ase_1")));
        assert_eq!(get("/v1/agents/agt_a/sessions/x"), Ok(session(0, Some("agt_a"), "x")), "the agent is enough");
        assert_eq!(
            get("/v1/agents/plain/sessions/ase_1"),
            Ok(session(0, Some("plain"), "ase_1")),
            "the session is enough"
        );
        assert_eq!(get("/v1/agents/plain/sessions/x?provider=with"), Ok(session(0, Some("plain"), "x")));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (target, status, words) in [
            ("/v1/sessions/ase_1", 400, "needs the agent too"),
            ("/v1/sessions/with:ase_1", 400, "the agent is missing"),
            ("/v1/sessions/whatever", 400, "does not match the session ids of any provider"),
            ("/v1/sessions/nobody:x", 404, "unknown provider \"nobody\""),
            ("/v1/sessions/wiht:agt_a:ase_1", 404, "did you mean \"with\""),
            ("/v1/sessions/without:UPPER-CASE", 400, "its ids match"),
            ("/v1/sessions/with:..:ase_1", 400, "is not a valid agent id"),
            ("/v1/sessions/with:agt_a:..", 400, "is not a valid session id"),
            ("/v1/sessions/with:agt_a:a%2Fb", 400, "contains '/'"),
            ("/v1/sessions/with:agt_a:a%252Fb", 400, "\"a/b\" is not a valid session id"),
            ("/v1/sessions/%ff", 400, "not UTF-8"),
            ("/v1/sessions/sess_1?include=all", 400, "include=native"),
            ("/v1/sessions/sess_1?inclde=native", 400, "did you mean \"include\""),
            ("/v1/agents/plain/sessions", 400, "add provider="),
            ("/v1/agents/plain/sessions?provider=without", 400, "has no agents"),
            ("/v1/sessions", 400, "no sources"),
            ("/v1/sessions?provider=with", 400, "by agent"),
            ("/v1/sessions?provider=with&provider=without", 400, "by agent"),
            ("/v1/sessions?agent=plain", 400, "write agent=PROVIDER:plain"),
            ("/v1/sessions?agent=without:x", 400, "has no agents"),
            ("/v1/sessions?agent=with:agt_a&agent=agt_a", 400, "given twice"),
            ("/v1/sessions?provider=without&provider=without", 400, "given twice"),
            ("/v1/sessions?agent=agt_a&provider=without&enabled=true", 400, "without has no filter"),
            ("/v1/sessions:batchGet", 400, "0 ids"),
            ("/v1/sessions:batchGet?ids=sess_1", 400, "did you mean \"id\""),
            ("/v1/sessions/ase_1/watch", 400, "needs the agent too"),
            ("/v1/sessions?provider=without&enabled=true", 400, "has no filter"),
            ("/v1/providers?x=1", 400, "unknown parameter"),
            ("/v1/sessions/", 404, "unknown path"),
            ("/", 404, "unknown path"),
            ("/v2/x", 404, "unknown path"),
            ("/docs/other.js", 404, "unknown file"),
            ("/openapi.json?x=1", 400, "unknown parameter"),
        ] {
            let (got, detail) = get(target).unwrap_err();
            assert!(got == status && detail.contains(words), "{target}: {got} {detail}");
        }
        assert_eq!(get(&format!("/v1/sessions/{}", "x".repeat(300))).unwrap_err().0, 400);
    }

    fn sources(target: &str) -> Vec<(usize, Option<String>)> {
        match get(target) {
            Ok(Route::List { sources, .. }) => sources.into_iter().map(|s| (s.provider.position(), s.agent)).collect(),
            other => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn a_list_may_have_several_sources() {
        let agent = |provider, agent: &str| (provider, Some(agent.to_owned()));
        assert_eq!(sources("/v1/agents/agt_a/sessions?limit=25&enabled=true"), [agent(0, "agt_a")]);
        assert_eq!(sources("/v1/sessions?provider=without"), [(1, None)]);
        let both = [agent(0, "agt_a"), agent(0, "plain"), (1, None)];
        assert_eq!(sources("/v1/sessions?agent=agt_a&provider=without&agent=with%3Aplain"), both);
        assert_eq!(sources("/v1/sessions?agent=agt_a&provider=without&provider=with&agent=plain"), both);
        let many = |count: usize| (0..count).map(|n| format!("agent=agt_{}&", "a".repeat(n))).collect::<String>();
        let few: String = ('a'..='z').map(|c| format!("agent=agt_{c}&")).collect();
        assert_eq!(sources(&format!("/v1/sessions?{few}")).len(), 26);
        assert!(get(&format!("/v1/sessions?{}", many(60))).is_err());
    }

    #[test]
    fn a_batch_checks_each_id_alone() {
        let Ok(Route::Batch { ids, .. }) =
            get("/v1/sessions%3AbatchGet?id=sess_1&id=nobody:x&id=with:agt_a:ase_1&id=sess_1")
        else {
            panic!("no batch")
        };
        let ids: Vec<_> =
            ids.into_iter().map(|id| (id.text, id.session.map_err(|error| Box::<Problem>::from(error).code))).collect();
        let sess = ("sess_1".to_owned(), Ok(name(1, None, "sess_1")));
        assert_eq!(ids[0], sess);
        assert_eq!(ids[1], ("nobody:x".to_owned(), Err(Code::ProviderNotFound)));
        assert_eq!(ids[2].1, Ok(name(0, Some("agt_a"), "ase_1")));
        assert_eq!(ids[3], sess);
        assert!(get(&format!("/v1/sessions:batchGet?{}", "id=1&".repeat(101))).is_err());
        assert!(matches!(get("/v1/sessions/sess_1/watch"), Ok(Route::Watch { .. })));
    }

    #[test]
    fn a_wrong_method_is_405_only_on_a_known_path() {
        let error_for = |path| {
            let (label, error) = table().route(&request(Method::POST, path, "", None)).unwrap_err();
            (label, Box::<Problem>::from(error))
        };
        let (label, problem) = error_for("/v1/sessions/sess_1");
        assert_eq!((label, problem.code), ("/v1/sessions/{id}", Code::MethodNotAllowed));
        assert_eq!(problem.allow, Some("GET, HEAD"));
        assert_eq!(error_for("/nowhere").1.code, Code::NotFound);
        assert!(table().route(&request(Method::HEAD, "/v1/sessions/sess_1", "", None)).is_ok());
        assert_eq!(error_for("/v1/sessions").1.allow, Some("GET, HEAD"));
        let (_, error) = table().route(&request(Method::GET, "/v1/sessions:list", "", None)).unwrap_err();
        assert_eq!(Box::<Problem>::from(error).allow, Some("POST"));
        let (_, error) = table().route(&request(Method::PUT, "/v1/sessions:batchGet", "", None)).unwrap_err();
        assert_eq!(Box::<Problem>::from(error).allow, Some("GET, HEAD, POST"));
    }

    #[test]
    fn a_form_has_the_parameters_of_the_query() {
        let post = |path, query, form: Option<&str>| {
            let routed = table().route(&request(Method::POST, path, query, form));
            routed.map(|found| found.route).map_err(|(_, error)| Box::<Problem>::from(error))
        };
        let batch = "/v1/sessions:batchGet";
        assert_eq!(post(batch, "", Some("id=1&id=sess_1")).unwrap(), get(&format!("{batch}?id=1&id=sess_1")).unwrap());
        let list = "provider=without&limit=3";
        assert_eq!(post("/v1/sessions:list", "", Some(list)).unwrap(), get(&format!("/v1/sessions?{list}")).unwrap());
        for (query, form, expected) in [
            ("", None, "application/x-www-form-urlencoded"),
            ("id=1", None, "application/x-www-form-urlencoded"),
            ("id=1", Some("id=1"), "all parameters in its form"),
            ("", Some("ids=1"), "did you mean"),
            ("", Some(""), "id"),
        ] {
            let problem = post(batch, query, form).unwrap_err();
            assert!(problem.code == Code::InvalidRequest && problem.detail.contains(expected), "{}", problem.detail);
        }
        for (error, code) in [
            (FormError::TooLarge { limit: 1 }, Code::BodyTooLarge),
            (FormError::Late, Code::RequestTimeout),
            (FormError::Incomplete, Code::InvalidRequest),
            (FormError::NotUtf8, Code::InvalidRequest),
            (FormError::NoMemory, Code::Overloaded),
        ] {
            let sent = Request { form: Some(Err(error)), ..request(Method::POST, batch, "", None) };
            assert_eq!(Box::<Problem>::from(table().route(&sent).unwrap_err().1).code, code);
        }
    }
}
