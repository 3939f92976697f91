//! From a path and query to a route: which provider, which ids, which parameters.
//!
//! A room of its own because everything malformed must be refused here, before a provider is asked.
//! It knows providers only by their patterns; whether a client may use one is judged elsewhere.

use crate::config::decode::unknown;
use crate::config::faults::{At, Faults};
use crate::config::provider::{self, Provider};
use crate::endpoints::{self, Answers, Endpoint, MAX_BATCH, MAX_ID, MAX_SOURCES};
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::parameters::{Page, Parameters, Shape};
use crate::pattern::{self, Pattern};
use http::Method;
use percent_encoding::percent_decode_str;
use std::sync::Arc;

/// A session by its provider's own ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// The provider's position.
    pub provider: usize,
    /// The agent, where the provider has agents.
    pub agent: Option<String>,
    /// The provider's own id.
    pub session: String,
}

/// Where sessions of a list come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The provider's position.
    pub provider: usize,
    /// The agent, where the provider has agents.
    pub agent: Option<String>,
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// One session.
    Session {
        /// Which.
        name: Name,
        /// How it is shown.
        shape: Shape,
    },
    /// A session as it changes.
    Watch {
        /// Which.
        name: Name,
        /// How it is shown.
        shape: Shape,
    },
    /// Sessions by their ids.
    Batch {
        /// Each as asked, and which it is, or why it is none.
        ids: Vec<(String, Outcome<Name>)>,
        /// How they are shown.
        shape: Shape,
    },
    /// A page of sessions.
    List {
        /// Of which.
        sources: Vec<Source>,
        /// What of them.
        page: Page,
    },
    /// What is configured.
    Providers,
    /// What is the same for everyone.
    Published(Published),
}

/// What is the same for everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The API's description.
    Description,
    /// The page that it is read in.
    Reader,
    /// A file of that page, of [`endpoints::READER_FILES`].
    File(&'static str),
}

impl Route {
    /// Positions of the providers that it goes to as a whole. A batch is judged id by id.
    #[must_use]
    pub fn providers(&self) -> Vec<usize> {
        match self {
            Route::Session { name, .. } | Route::Watch { name, .. } => vec![name.provider],
            Route::List { sources, .. } => sources.iter().map(|source| source.provider).collect(),
            Route::Batch { .. } | Route::Providers | Route::Published(_) => Vec::new(),
        }
    }
}

/// A route and the template that names it in metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// Its path, parameters and answer.
    pub endpoint: &'static Endpoint,
    /// The route.
    pub route: Route,
}

/// Label of requests that fit no route.
pub const NO_ROUTE: &str = "none";
/// All providers' patterns, compiled.
#[derive(Debug, Default)]
pub struct Table {
    providers: Vec<Patterns>,
}

#[derive(Debug)]
struct Patterns {
    name: Arc<str>,
    has_agents: bool,
    takes_enabled: bool,
    gets: bool,
    lists: bool,
    recognise: Pair,
    accept: Pair,
}

#[derive(Debug)]
struct Pair {
    agent: Option<Pattern>,
    session: Option<Pattern>,
}

impl Pair {
    fn compile(config: &provider::Patterns, faults: &mut Faults) -> Self {
        let mut regex = |at: &Option<At<String>>| {
            let at = at.as_ref()?;
            faults.keep(&at.place, pattern::compile(&at.value))
        };
        Self { agent: regex(&config.agent), session: regex(&config.session) }
    }
}

fn fits(pattern: Option<&Pattern>, id: &str) -> bool {
    pattern.is_some_and(|pattern| pattern.is_match(id))
}

impl Table {
    /// Compiles the providers' patterns, reporting every fault.
    #[must_use]
    pub fn compile(providers: &[Provider], faults: &mut Faults) -> Self {
        let uses = |operation: &Option<provider::Operation>, variable: &str| {
            operation.as_ref().is_some_and(|o| o.query.iter().any(|(_, template)| template.value.contains(variable)))
        };
        let compile = |provider: &Provider, faults: &mut Faults| Patterns {
            name: provider.name.value.as_str().into(),
            has_agents: provider.ids.accept.agent.is_some(),
            takes_enabled: uses(&provider.list_sessions, "{enabled}"),
            gets: provider.get_session.is_some(),
            lists: provider.list_sessions.is_some(),
            recognise: Pair::compile(&provider.ids.recognise, faults),
            accept: Pair::compile(&provider.ids.accept, faults),
        };
        Self { providers: providers.iter().map(|provider| compile(provider, faults)).collect() }
    }

    /// The endpoint of a path.
    ///
    /// # Errors
    /// 404 where there is none.
    pub fn endpoint(path: &str) -> Outcome<(&'static Endpoint, Vec<&str>)> {
        let found = endpoints::ALL.iter().find_map(|endpoint| Some((*endpoint, endpoint.read(path)?)));
        found.ok_or_else(|| {
            let detail = "there is nothing at this path; the API is under /v1/";
            Box::new(Problem::new(Code::NotFound, detail))
        })
    }

    /// The route of a request.
    ///
    /// # Errors
    /// 400, 404 or 405, with words that say what would be right. With the route's label where the
    /// path is known.
    pub fn route(&self, method: &Method, path: &str, query: &str) -> Result<Routed, (&'static str, Box<Problem>)> {
        let (endpoint, places) = Self::endpoint(path).map_err(|problem| (NO_ROUTE, problem))?;
        let label = endpoint.path;
        if *method != Method::GET && *method != Method::HEAD {
            let mut problem = Problem::new(Code::MethodNotAllowed, format!("{label} answers GET and HEAD"));
            problem.allow = Some("GET, HEAD");
            return Err((label, Box::new(problem)));
        }
        let route = Parameters::parse(query, endpoint).and_then(|parameters| self.read(endpoint, &places, &parameters));
        route.map(|route| Routed { endpoint, route }).map_err(|problem| (label, problem))
    }

    fn read(&self, endpoint: &Endpoint, places: &[&str], parameters: &Parameters) -> Outcome<Route> {
        match (endpoint.answers, places) {
            (Answers::Session | Answers::Events, [id]) => {
                let (name, shape) = (self.session_id(id)?, parameters.shape()?);
                self.gets(name.provider)?;
                Ok(match endpoint.answers {
                    Answers::Events => Route::Watch { name, shape },
                    _ => Route::Session { name, shape },
                })
            }
            (Answers::Session, [agent, id]) => self.agent_session(agent, id, parameters),
            (Answers::Page, [agent]) => self.agent_sessions(agent, parameters),
            (Answers::Page, _) => self.sessions(parameters),
            (Answers::Batch, _) => self.batch(parameters),
            (Answers::Description, _) => Ok(Route::Published(Published::Description)),
            (Answers::Reader, _) => Ok(Route::Published(Published::Reader)),
            (Answers::ReaderFile, [name]) => {
                let file = endpoints::READER_FILES.into_iter().find(|file| file == name);
                let file = file.ok_or_else(|| Box::new(Problem::new(Code::NotFound, "the page has no such file")))?;
                Ok(Route::Published(Published::File(file)))
            }
            _ => Ok(Route::Providers),
        }
    }

    /// The session that an id names, as it stands in a path.
    ///
    /// # Errors
    /// 400 or 404, with words that say what would be right.
    pub fn session_id(&self, id: &str) -> Outcome<Name> {
        self.name(decoded(id, "session id")?)
    }

    fn name(&self, id: String) -> Outcome<Name> {
        match id.split_once(':') {
            Some((name, rest)) => self.unified(name, rest),
            None => Ok(Name { provider: self.bare(&id)?, agent: None, session: id }),
        }
    }

    /// Provider and agent of `provider:agent`.
    ///
    /// # Errors
    /// 400 or 404, with words that say what would be right.
    pub fn agent_id(&self, id: &str) -> Outcome<(usize, String)> {
        let (name, agent) = id.split_once(':').ok_or_else(|| invalid("an agent is named PROVIDER:AGENT here"))?;
        let provider = self.named(name)?;
        if !self.providers[provider].has_agents {
            return Err(invalid(format!("{name} has no agents")));
        }
        self.accept(provider, Some(agent), None)?;
        Ok((provider, agent.to_owned()))
    }

    /// `provider:agent:session` or `provider:session`.
    fn unified(&self, name: &str, rest: &str) -> Outcome<Name> {
        let provider = self.named(name)?;
        let patterns = &self.providers[provider];
        let (agent, session) = match (patterns.has_agents, rest.split_once(':')) {
            (true, Some((agent, session))) => (Some(agent), session),
            (true, None) => {
                return Err(invalid(format!("a session id of {name} is {name}:AGENT:SESSION; the agent is missing")));
            }
            (false, _) => (None, rest),
        };
        self.accept(provider, agent, Some(session))?;
        Ok(Name { provider, agent: agent.map(str::to_owned), session: session.to_owned() })
    }

    /// The provider of a session id that stands alone.
    fn bare(&self, id: &str) -> Outcome<usize> {
        let fitting: Vec<usize> = self.recognised(None, Some(id));
        match fitting.as_slice() {
            [one] if !self.providers[*one].has_agents => {
                self.accept(*one, None, Some(id))?;
                Ok(*one)
            }
            [one] => {
                let name = &self.providers[*one].name;
                Err(invalid(format!(
                    "{name} needs the agent too: ask for /v1/sessions/{name}:AGENT:{id} or /v1/agents/AGENT/sessions/{id}"
                )))
            }
            [] => Err(invalid(format!(
                "{id:?} is not a session id that any provider is known by; write PROVIDER:SESSION or PROVIDER:AGENT:SESSION"
            ))),
            several => Err(invalid(format!("{id:?} fits {}; write PROVIDER:…:{id}", self.names(several)))),
        }
    }

    fn agent_session(&self, agent: &str, session: &str, parameters: &Parameters) -> Outcome<Route> {
        let shape = parameters.shape()?;
        let (agent, session) = (decoded(agent, "agent id")?, decoded(session, "session id")?);
        let provider = self.settle(&agent, Some(&session), parameters.get("provider"))?;
        self.gets(provider)?;
        Ok(Route::Session { name: Name { provider, agent: Some(agent), session }, shape })
    }

    fn agent_sessions(&self, agent: &str, parameters: &Parameters) -> Outcome<Route> {
        let page = parameters.page()?;
        let agent = decoded(agent, "agent id")?;
        let provider = self.settle(&agent, None, parameters.get("provider"))?;
        self.list(vec![Source { provider, agent: Some(agent) }], page)
    }

    /// Every `agent=` is a source, and so is every `provider=` without agents.
    fn sessions(&self, parameters: &Parameters) -> Outcome<Route> {
        let page = parameters.page()?;
        let named: Vec<usize> = parameters.all("provider").map(|name| self.named(name)).collect::<Outcome<_>>()?;
        let with_agents = |provider: &&usize| self.providers[**provider].has_agents;
        let whose: Vec<usize> = named.iter().filter(with_agents).copied().collect();
        let mut sources = Vec::new();
        for agent in parameters.all("agent") {
            let (provider, agent) = self.agent(agent, &whose)?;
            sources.push(Source { provider, agent: Some(agent) });
        }
        for provider in named {
            let patterns = &self.providers[provider];
            if !patterns.has_agents {
                sources.push(Source { provider, agent: None });
            } else if !sources.iter().any(|source| source.provider == provider) {
                let name = &patterns.name;
                return Err(invalid(format!("{name} lists sessions by agent: add agent={name}:AGENT for each")));
            }
        }
        if sources.is_empty() {
            return Err(invalid(
                "name sources: agent=AGENT for each agent, provider=NAME for each provider without agents",
            ));
        }
        self.list(sources, page)
    }

    /// An agent of a list: `provider:agent`, or an id whose provider its pattern tells, or else one of those named.
    fn agent(&self, id: &str, whose: &[usize]) -> Outcome<(usize, String)> {
        let id = checked(id.to_owned(), "agent id")?;
        if id.contains(':') {
            return self.agent_id(&id);
        }
        let told = self.recognised(Some(&id), None);
        let accepting = |provider: &&usize| fits(self.providers[**provider].accept.agent.as_ref(), &id);
        let accepting: Vec<usize> = whose.iter().filter(accepting).copied().collect();
        match (told.as_slice(), accepting.as_slice()) {
            ([], [one]) => {
                self.accept(*one, Some(&id), None)?;
                Ok((*one, id))
            }
            ([], _) => Err(invalid(format!("{id:?} tells no provider; write agent=PROVIDER:{id}"))),
            _ => Ok((self.settle(&id, None, None)?, id)),
        }
    }

    fn batch(&self, parameters: &Parameters) -> Outcome<Route> {
        let shape = parameters.shape()?;
        let named = |id: &str| {
            let name = checked(id.to_owned(), "session id").and_then(|id| self.name(id));
            (id.to_owned(), name.and_then(|name| self.gets(name.provider).map(|()| name)))
        };
        let ids: Vec<_> = parameters.all("id").map(named).collect();
        if !(1..=MAX_BATCH).contains(&ids.len()) {
            return Err(invalid(format!("{} ids are given; give id=ID once for each, 1 to {MAX_BATCH}", ids.len())));
        }
        Ok(Route::Batch { ids, shape })
    }

    fn list(&self, sources: Vec<Source>, page: Page) -> Outcome<Route> {
        if sources.len() > MAX_SOURCES {
            return Err(invalid(format!("{} sources; at most {MAX_SOURCES} in one list", sources.len())));
        }
        for (position, source) in sources.iter().enumerate() {
            let patterns = &self.providers[source.provider];
            self.operation(source.provider, patterns.lists, "list sessions")?;
            if page.enabled.is_some() && !patterns.takes_enabled {
                let name = &patterns.name;
                return Err(invalid(format!("{name} has no filter enabled; status= works for every provider")));
            }
            if sources[..position].contains(source) {
                let agent = source.agent.as_ref().map(|agent| format!("'s agent {agent}")).unwrap_or_default();
                return Err(invalid(format!("{}{agent} is given twice; give each source once", patterns.name)));
            }
        }
        Ok(Route::List { sources, page })
    }

    /// The provider of an agent's id: the one asked for, or the one whose patterns tell it.
    fn settle(&self, agent: &str, session: Option<&str>, asked: Option<&str>) -> Outcome<usize> {
        if let Some(name) = asked {
            let provider = self.named(name)?;
            if !self.providers[provider].has_agents {
                return Err(invalid(format!(
                    "{name} has no agents: ask for /v1/sessions/{name}:SESSION or /v1/sessions?provider={name}"
                )));
            }
            self.accept(provider, Some(agent), session)?;
            return Ok(provider);
        }
        // Both tell it, or else one of them alone: real ids need not have the usual prefixes.
        let told = [
            self.recognised(Some(agent), session),
            self.recognised(Some(agent), None),
            match session {
                Some(session) => self.recognised(None, Some(session)),
                None => Vec::new(),
            },
        ];
        let told = told.into_iter().map(|mut told| {
            told.retain(|provider| self.providers[*provider].has_agents);
            told
        });
        match told.into_iter().find(|told| !told.is_empty()).unwrap_or_default().as_slice() {
            [one] => {
                self.accept(*one, Some(agent), session)?;
                Ok(*one)
            }
            [] => {
                let ids = session.map_or_else(|| format!("{agent:?}"), |session| format!("{agent:?} with {session:?}"));
                Err(invalid(format!("{ids} tells no provider; add provider= (one of {})", self.names_with_agents())))
            }
            several => Err(invalid(format!("{agent:?} fits {}; add provider=", self.names(several)))),
        }
    }

    fn recognised(&self, agent: Option<&str>, session: Option<&str>) -> Vec<usize> {
        let all = self.providers.iter().enumerate();
        all.filter(|(_, p)| {
            agent.is_none_or(|id| fits(p.recognise.agent.as_ref(), id))
                && session.is_none_or(|id| fits(p.recognise.session.as_ref(), id))
        })
        .map(|(position, _)| position)
        .collect()
    }

    fn accept(&self, provider: usize, agent: Option<&str>, session: Option<&str>) -> Outcome<()> {
        let patterns = &self.providers[provider];
        for (id, pattern, what) in
            [(agent, &patterns.accept.agent, "agent"), (session, &patterns.accept.session, "session")]
        {
            if let (Some(id), Some(pattern)) = (id, pattern)
                && (!pattern.is_match(id) || matches!(id, "." | ".."))
            {
                let name = &patterns.name;
                return Err(invalid(format!("{id:?} is not a {what} id of {name}; those match {}", pattern.as_str())));
            }
        }
        Ok(())
    }

    fn named(&self, name: &str) -> Outcome<usize> {
        self.providers.iter().position(|p| &*p.name == name).ok_or_else(|| {
            let known = self.providers.iter().map(|p| &*p.name);
            Box::new(Problem::new(Code::ProviderNotFound, unknown("provider", name, known)))
        })
    }

    fn gets(&self, provider: usize) -> Outcome<()> {
        self.operation(provider, self.providers[provider].gets, "read one session")
    }

    fn operation(&self, provider: usize, has: bool, what: &str) -> Outcome<()> {
        let name = &self.providers[provider].name;
        if has { Ok(()) } else { Err(invalid(format!("{name} is not configured to {what}"))) }
    }

    fn names(&self, positions: &[usize]) -> String {
        positions.iter().map(|at| &*self.providers[*at].name).collect::<Vec<_>>().join(" and ")
    }

    fn names_with_agents(&self) -> String {
        self.providers.iter().filter(|p| p.has_agents).map(|p| &*p.name).collect::<Vec<_>>().join(", ")
    }
}

fn invalid(detail: impl Into<String>) -> Box<Problem> {
    Box::new(Problem::invalid(detail))
}

/// An id as it stood in the path, decoded once.
fn decoded(segment: &str, what: &str) -> Outcome<String> {
    if is_plain(segment) && segment.len() <= MAX_ID {
        return Ok(segment.to_owned());
    }
    let id = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| invalid(format!("the {what} is not UTF-8 when percent-decoded")))?;
    checked(id.into_owned(), what)
}

/// Nearly all ids are of these, which are quickly told: none is encoded, and none has a meaning in a path.
fn is_plain(id: &str) -> bool {
    id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':'))
}

/// An id that can stand in a path.
fn checked(id: String, what: &str) -> Outcome<String> {
    if id.len() > MAX_ID {
        return Err(invalid(format!("the {what} is longer than {MAX_ID} bytes")));
    }
    let bad = |c: &char| c.is_control() || matches!(c, '/' | '\\' | '?' | '#' | '%' | ' ');
    if !is_plain(&id)
        && let Some(bad) = id.chars().find(bad)
    {
        return Err(invalid(format!("the {what} holds {bad:?}, which no provider's ids have")));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(agent: Option<&str>, session: &str) -> Pair {
        Pair { agent: agent.map(|a| pattern::compile(a).unwrap()), session: Some(pattern::compile(session).unwrap()) }
    }

    fn table() -> Table {
        let patterns = |name: &str, recognise, accept, has_agents| Patterns {
            name: name.into(),
            has_agents,
            takes_enabled: has_agents,
            gets: true,
            lists: true,
            recognise,
            accept,
        };
        Table {
            providers: vec![
                patterns(
                    "with",
                    pair(Some("^agt_"), "^ase_"),
                    pair(Some("^[a-z_.]{1,20}$"), "^[a-z_.0-9]{1,20}$"),
                    true,
                ),
                patterns("without", pair(None, "^(sess_|[0-9]+$)"), pair(None, "^[a-zA-Z_0-9]{1,20}$"), false),
            ],
        }
    }

    fn get(target: &str) -> Result<Route, (u16, String)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        table()
            .route(&Method::GET, path, query)
            .map(|routed| routed.route)
            .map_err(|(_, p)| (p.code.status(), p.detail))
    }

    fn name(provider: usize, agent: Option<&str>, session: &str) -> Name {
        Name { provider, agent: agent.map(Into::into), session: session.into() }
    }

    fn session(provider: usize, agent: Option<&str>, session: &str) -> Route {
        Route::Session { name: name(provider, agent, session), shape: Shape::default() }
    }

    #[test]
    fn a_session_by_each_of_its_names() {
        assert_eq!(get("/v1/sessions/with:agt_a:ase_1"), Ok(session(0, Some("agt_a"), "ase_1")));
        assert_eq!(get("/v1/sessions/with%3Aagt_a%3aase_1"), Ok(session(0, Some("agt_a"), "ase_1")));
        assert_eq!(
            get("/v1/sessions/with:plain:x"),
            Ok(session(0, Some("plain"), "x")),
            "accepted, once the provider is known"
        );
        assert_eq!(get("/v1/sessions/without:sess_1"), Ok(session(1, None, "sess_1")));
        assert_eq!(get("/v1/sessions/sess_1"), Ok(session(1, None, "sess_1")));
        assert_eq!(get("/v1/sessions/42"), Ok(session(1, None, "42")));
        assert_eq!(get("/v1/agents/agt_a/sessions/ase_1"), Ok(session(0, Some("agt_a"), "ase_1")));
        assert_eq!(get("/v1/agents/agt_a/sessions/x"), Ok(session(0, Some("agt_a"), "x")), "the agent alone tells it");
        assert_eq!(
            get("/v1/agents/plain/sessions/ase_1"),
            Ok(session(0, Some("plain"), "ase_1")),
            "so does the session"
        );
        assert_eq!(get("/v1/agents/plain/sessions/x?provider=with"), Ok(session(0, Some("plain"), "x")));
    }

    #[test]
    fn malformed_requests_say_what_would_be_right() {
        for (target, status, words) in [
            ("/v1/sessions/ase_1", 400, "needs the agent too"),
            ("/v1/sessions/with:ase_1", 400, "the agent is missing"),
            ("/v1/sessions/whatever", 400, "not a session id that any provider"),
            ("/v1/sessions/nobody:x", 404, "unknown provider \"nobody\""),
            ("/v1/sessions/wiht:agt_a:ase_1", 404, "did you mean \"with\""),
            ("/v1/sessions/without:UPPER-CASE", 400, "those match"),
            ("/v1/sessions/with:..:ase_1", 400, "is not a agent id"),
            ("/v1/sessions/with:agt_a:..", 400, "is not a session id"),
            ("/v1/sessions/with:agt_a:a%2Fb", 400, "holds '/'"),
            ("/v1/sessions/with:agt_a:a%252Fb", 400, "holds '%'"),
            ("/v1/sessions/%ff", 400, "not UTF-8"),
            ("/v1/sessions/sess_1?include=all", 400, "include=native"),
            ("/v1/sessions/sess_1?inclde=native", 400, "did you mean \"include\""),
            ("/v1/agents/plain/sessions", 400, "add provider="),
            ("/v1/agents/plain/sessions?provider=without", 400, "has no agents"),
            ("/v1/sessions", 400, "name sources"),
            ("/v1/sessions?provider=with", 400, "by agent"),
            ("/v1/sessions?provider=with&provider=without", 400, "by agent"),
            ("/v1/sessions?agent=plain", 400, "write agent=PROVIDER:plain"),
            ("/v1/sessions?agent=without:x", 400, "has no agents"),
            ("/v1/sessions?agent=with:agt_a&agent=agt_a", 400, "given twice"),
            ("/v1/sessions?provider=without&provider=without", 400, "given twice"),
            ("/v1/sessions?agent=agt_a&provider=without&enabled=true", 400, "without has no filter"),
            ("/v1/sessions:batchGet", 400, "0 ids are given"),
            ("/v1/sessions:batchGet?ids=sess_1", 400, "did you mean \"id\""),
            ("/v1/sessions/ase_1/watch", 400, "needs the agent too"),
            ("/v1/sessions?provider=without&enabled=true", 400, "has no filter"),
            ("/v1/providers?x=1", 400, "unknown parameter"),
            ("/v1/sessions/", 404, "nothing at this path"),
            ("/", 404, "nothing at this path"),
            ("/v2/x", 404, "nothing at this path"),
            ("/docs/other.js", 404, "no such file"),
            ("/openapi.json?x=1", 400, "unknown parameter"),
        ] {
            let (got, detail) = get(target).unwrap_err();
            assert!(got == status && detail.contains(words), "{target}: {got} {detail}");
        }
        assert_eq!(get(&format!("/v1/sessions/{}", "x".repeat(300))).unwrap_err().0, 400);
    }

    fn sources(target: &str) -> Vec<(usize, Option<String>)> {
        match get(target) {
            Ok(Route::List { sources, .. }) => sources.into_iter().map(|s| (s.provider, s.agent)).collect(),
            other => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn a_list_and_its_sources() {
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
    fn a_batch_judges_each_id() {
        let Ok(Route::Batch { ids, .. }) =
            get("/v1/sessions%3AbatchGet?id=sess_1&id=nobody:x&id=with:agt_a:ase_1&id=sess_1")
        else {
            panic!("no batch")
        };
        let ids: Vec<_> = ids.into_iter().map(|(id, name)| (id, name.map_err(|p| p.code))).collect();
        let sess = ("sess_1".to_owned(), Ok(name(1, None, "sess_1")));
        assert_eq!(ids[0], sess);
        assert_eq!(ids[1], ("nobody:x".to_owned(), Err(Code::ProviderNotFound)));
        assert_eq!(ids[2].1, Ok(name(0, Some("agt_a"), "ase_1")));
        assert_eq!(ids[3], sess);
        assert!(get(&format!("/v1/sessions:batchGet?{}", "id=1&".repeat(101))).is_err());
        assert!(matches!(get("/v1/sessions/sess_1/watch"), Ok(Route::Watch { .. })));
    }

    #[test]
    fn another_method_is_405_on_a_known_path_only() {
        let (label, problem) = table().route(&Method::POST, "/v1/sessions/sess_1", "").unwrap_err();
        assert_eq!((label, problem.code), ("/v1/sessions/{id}", Code::MethodNotAllowed));
        assert_eq!(problem.allow, Some("GET, HEAD"));
        assert_eq!(table().route(&Method::POST, "/nowhere", "").unwrap_err().1.code, Code::NotFound);
        assert!(table().route(&Method::HEAD, "/v1/sessions/sess_1", "").is_ok());
    }
}
