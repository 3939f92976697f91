//! From a path and query to a route: which provider, which ids, which parameters.
//!
//! A room of its own because everything malformed must be refused here, before a provider is asked.
//! It knows providers only by their patterns; whether a client may use one is judged elsewhere.

use crate::config::decode::unknown;
use crate::config::faults::{At, Faults};
use crate::config::provider::{self, Provider};
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::model::Status;
use crate::pattern;
use http::Method;
use percent_encoding::percent_decode_str;
use regex::Regex;
use std::sync::Arc;

/// The longest id, in bytes after decoding.
const MAX_ID: usize = 256;

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// One session.
    Session {
        /// The provider's position.
        provider: usize,
        /// The agent, where the provider has agents.
        agent: Option<String>,
        /// The provider's own id.
        session: String,
        /// `include=native`
        native: bool,
    },
    /// A page of sessions.
    List {
        /// The provider's position.
        provider: usize,
        /// The agent, where the provider has agents.
        agent: Option<String>,
        /// What of it.
        page: Page,
    },
    /// What is configured.
    Providers,
}

/// A list's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Sessions wanted, 1 to 100.
    pub limit: u32,
    /// Our token, as sent.
    pub token: Option<String>,
    /// Only sessions in this state.
    pub status: Option<Status>,
    /// Only sessions that are, or are not, switched on.
    pub enabled: Option<bool>,
    /// `include=native`
    pub native: bool,
}

/// A route and the template that names it in metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// Its path template.
    pub label: &'static str,
    /// The route.
    pub route: Route,
}

/// Label of requests that fit no route.
pub const NO_ROUTE: &str = "none";
const SESSION: &str = "/v1/sessions/{id}";
const AGENT_SESSION: &str = "/v1/agents/{agent}/sessions/{session}";
const AGENT_SESSIONS: &str = "/v1/agents/{agent}/sessions";
const SESSIONS: &str = "/v1/sessions";
const PROVIDERS: &str = "/v1/providers";

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
    agent: Option<Regex>,
    session: Option<Regex>,
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

fn fits(pattern: Option<&Regex>, id: &str) -> bool {
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

    /// The route of a request.
    ///
    /// # Errors
    /// 400, 404 or 405, with words that say what would be right. With the route's label where the
    /// path is known.
    pub fn route(&self, method: &Method, path: &str, query: &str) -> Result<Routed, (&'static str, Box<Problem>)> {
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        let label = match segments.as_slice() {
            ["v1", "sessions"] => SESSIONS,
            ["v1", "sessions", id] if !id.is_empty() => SESSION,
            ["v1", "agents", agent, "sessions"] if !agent.is_empty() => AGENT_SESSIONS,
            ["v1", "agents", agent, "sessions", id] if !agent.is_empty() && !id.is_empty() => AGENT_SESSION,
            ["v1", "providers"] => PROVIDERS,
            _ => {
                return Err((
                    NO_ROUTE,
                    Box::new(Problem::new(Code::NotFound, "there is nothing at this path; the API is under /v1/")),
                ));
            }
        };
        if *method != Method::GET && *method != Method::HEAD {
            let mut problem = Problem::new(Code::MethodNotAllowed, format!("{label} answers GET and HEAD"));
            problem.allow = Some("GET, HEAD");
            return Err((label, Box::new(problem)));
        }
        let route = match (label, segments.as_slice()) {
            (SESSIONS, _) => self.sessions(query),
            (SESSION, [.., id]) => self.session(id, query),
            (AGENT_SESSIONS, [.., agent, _]) => self.agent_sessions(agent, query),
            (AGENT_SESSION, [.., agent, _, id]) => self.agent_session(agent, id, query),
            _ => Parameters::parse(query, &[]).map(|_| Route::Providers),
        };
        route.map(|route| Routed { label, route }).map_err(|problem| (label, problem))
    }

    /// Provider, agent and session that a session's id names, as it stands in a path.
    ///
    /// # Errors
    /// 400 or 404, with words that say what would be right.
    pub fn session_id(&self, id: &str) -> Outcome<(usize, Option<String>, String)> {
        let id = decoded(id, "session id")?;
        match id.split_once(':') {
            Some((name, rest)) => self.unified(name, rest),
            None => Ok((self.bare(&id)?, None, id)),
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

    fn session(&self, id: &str, query: &str) -> Outcome<Route> {
        let parameters = Parameters::parse(query, &["include"])?;
        let native = parameters.native()?;
        let (provider, agent, session) = self.session_id(id)?;
        self.operation(provider, self.providers[provider].gets, "read one session")?;
        Ok(Route::Session { provider, agent, session, native })
    }

    /// `provider:agent:session` or `provider:session`.
    fn unified(&self, name: &str, rest: &str) -> Outcome<(usize, Option<String>, String)> {
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
        Ok((provider, agent.map(str::to_owned), session.to_owned()))
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

    fn agent_session(&self, agent: &str, session: &str, query: &str) -> Outcome<Route> {
        let parameters = Parameters::parse(query, &["include", "provider"])?;
        let native = parameters.native()?;
        let (agent, session) = (decoded(agent, "agent id")?, decoded(session, "session id")?);
        let provider = self.settle(&agent, Some(&session), parameters.get("provider"))?;
        self.operation(provider, self.providers[provider].gets, "read one session")?;
        Ok(Route::Session { provider, agent: Some(agent), session, native })
    }

    fn agent_sessions(&self, agent: &str, query: &str) -> Outcome<Route> {
        let parameters =
            Parameters::parse(query, &["include", "provider", "limit", "page_token", "status", "enabled"])?;
        let page = parameters.page()?;
        let agent = decoded(agent, "agent id")?;
        let provider = self.settle(&agent, None, parameters.get("provider"))?;
        self.list(provider, Some(agent), page)
    }

    fn sessions(&self, query: &str) -> Outcome<Route> {
        let parameters =
            Parameters::parse(query, &["include", "provider", "limit", "page_token", "status", "enabled"])?;
        let page = parameters.page()?;
        let Some(name) = parameters.get("provider") else {
            return Err(invalid(
                "name a source: provider=NAME for a provider without agents; an agent's sessions are at /v1/agents/AGENT/sessions",
            ));
        };
        let provider = self.named(name)?;
        if self.providers[provider].has_agents {
            return Err(invalid(format!(
                "{name} lists sessions by agent: ask for /v1/agents/AGENT/sessions?provider={name}"
            )));
        }
        self.list(provider, None, page)
    }

    fn list(&self, provider: usize, agent: Option<String>, page: Page) -> Outcome<Route> {
        let patterns = &self.providers[provider];
        self.operation(provider, patterns.lists, "list sessions")?;
        if page.enabled.is_some() && !patterns.takes_enabled {
            return Err(invalid(format!("{} has no filter enabled; status= works for every provider", patterns.name)));
        }
        Ok(Route::List { provider, agent, page })
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
    let id = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| invalid(format!("the {what} is not UTF-8 when percent-decoded")))?;
    if id.len() > MAX_ID {
        return Err(invalid(format!("the {what} is longer than {MAX_ID} bytes")));
    }
    if let Some(bad) = id.chars().find(|c| c.is_control() || matches!(c, '/' | '\\' | '?' | '#' | '%' | ' ')) {
        return Err(invalid(format!("the {what} holds {bad:?}, which no provider's ids have")));
    }
    Ok(id.into_owned())
}

/// A query's parameters, each known and given once.
#[derive(Debug)]
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &str, known: &[&str]) -> Outcome<Self> {
        let mut all: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (form_decoded(name)?, form_decoded(value)?);
            if !known.contains(&name.as_str()) {
                return Err(invalid(unknown("parameter", &name, known.iter().copied())));
            }
            if all.iter().any(|(other, _)| *other == name) {
                return Err(invalid(format!("{name} is given twice; give it once")));
            }
            all.push((name, value));
        }
        Ok(Self(all))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn native(&self) -> Outcome<bool> {
        match self.get("include") {
            None => Ok(false),
            Some("native") => Ok(true),
            Some(other) => {
                Err(invalid(format!("include={other} is unknown; include=native adds the provider's own object")))
            }
        }
    }

    fn page(&self) -> Outcome<Page> {
        let limit = self.get("limit").map_or(Some(10), |text| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|limit| digits && (1..=100).contains(limit))
        });
        let status = self.get("status").map(|text| {
            Status::parse(text).ok_or_else(|| invalid(unknown("status", text, Status::ALL.iter().map(|s| s.as_str()))))
        });
        let enabled = self.get("enabled").map(|text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(invalid(format!("enabled={text} is neither true nor false"))),
        });
        let token = self.get("page_token").map(str::to_owned);
        if token.as_deref() == Some("") {
            return Err(invalid("page_token is empty; leave it out for the first page"));
        }
        Ok(Page {
            limit: limit.ok_or_else(|| invalid("limit is a whole number from 1 to 100"))?,
            token,
            status: status.transpose()?,
            enabled: enabled.transpose()?,
            native: self.native()?,
        })
    }
}

fn form_decoded(text: &str) -> Outcome<String> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| invalid("a query parameter is not UTF-8 when percent-decoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(agent: Option<&str>, session: &str) -> Pair {
        Pair { agent: agent.map(|a| Regex::new(a).unwrap()), session: Some(Regex::new(session).unwrap()) }
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

    fn session(provider: usize, agent: Option<&str>, session: &str) -> Route {
        Route::Session { provider, agent: agent.map(Into::into), session: session.into(), native: false }
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
            ("/v1/agents/agt_a/sessions?limit=0", 400, "from 1 to 100"),
            ("/v1/agents/agt_a/sessions?limit=101", 400, "from 1 to 100"),
            ("/v1/agents/agt_a/sessions?limit=%2B5", 400, "from 1 to 100"),
            ("/v1/agents/agt_a/sessions?limit=", 400, "from 1 to 100"),
            ("/v1/agents/agt_a/sessions?limit=5&limit=6", 400, "given twice"),
            ("/v1/agents/agt_a/sessions?status=activ", 400, "did you mean \"active\""),
            ("/v1/agents/agt_a/sessions?enabled=yes", 400, "neither true nor false"),
            ("/v1/agents/agt_a/sessions?page_token=", 400, "leave it out"),
            ("/v1/sessions", 400, "name a source"),
            ("/v1/sessions?provider=with", 400, "by agent"),
            ("/v1/sessions?provider=without&enabled=true", 400, "has no filter"),
            ("/v1/providers?x=1", 400, "unknown parameter"),
            ("/v1/sessions/", 404, "nothing at this path"),
            ("/", 404, "nothing at this path"),
            ("/v2/x", 404, "nothing at this path"),
        ] {
            let (got, detail) = get(target).unwrap_err();
            assert!(got == status && detail.contains(words), "{target}: {got} {detail}");
        }
        assert_eq!(get(&format!("/v1/sessions/{}", "x".repeat(300))).unwrap_err().0, 400);
    }

    #[test]
    fn a_list_and_its_parameters() {
        let page = Page { limit: 25, token: None, status: Some(Status::Active), enabled: Some(true), native: true };
        assert_eq!(
            get("/v1/agents/agt_a/sessions?limit=25&status=active&enabled=true&include=native"),
            Ok(Route::List { provider: 0, agent: Some("agt_a".into()), page })
        );
        let page = Page { limit: 10, token: Some("a+b c".into()), status: None, enabled: None, native: false };
        assert_eq!(
            get("/v1/sessions?provider=without&page_token=a%2Bb+c"),
            Ok(Route::List { provider: 1, agent: None, page })
        );
    }

    #[test]
    fn another_method_is_405_on_a_known_path_only() {
        let (label, problem) = table().route(&Method::POST, "/v1/sessions/sess_1", "").unwrap_err();
        assert_eq!((label, problem.code, problem.allow), (SESSION, Code::MethodNotAllowed, Some("GET, HEAD")));
        assert_eq!(table().route(&Method::POST, "/nowhere", "").unwrap_err().1.code, Code::NotFound);
        assert!(table().route(&Method::HEAD, "/v1/sessions/sess_1", "").is_ok());
    }
}
