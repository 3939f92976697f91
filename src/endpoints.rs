//! The HTTP API as data: every path, its parameters, and what it answers.
//!
//! A room of its own because three readers must agree on it: the router, which refuses what is not here; the
//! OpenAPI description, which is made from it; and the documentation. It decides nothing.

/// One path of the API. All answer GET and HEAD.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its template; names it in metrics and logs.
    pub path: &'static str,
    /// Its name in programs that are made from the description.
    pub operation: &'static str,
    /// One line.
    pub summary: &'static str,
    /// More, for people.
    pub about: &'static str,
    /// What may stand in its path and its query. Another parameter is 400.
    pub parameters: &'static [Parameter],
    /// What it answers when all is well.
    pub answers: Answers,
}

/// What a path answers when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// A unified session.
    Session,
    /// A page of sessions.
    Page,
    /// A session or a problem for each id.
    Batch,
    /// Server-sent events.
    Events,
    /// What is configured.
    Providers,
    /// The API's description.
    Description,
    /// A page to read it in.
    Reader,
    /// A file that the page needs.
    ReaderFile,
}

impl Answers {
    /// Whether it is the same for everyone, and needs no key.
    #[must_use]
    pub fn are_public(self) -> bool {
        matches!(self, Answers::Description | Answers::Reader | Answers::ReaderFile)
    }

    /// Whether providers are asked for it.
    #[must_use]
    pub fn come_from_providers(self) -> bool {
        matches!(self, Answers::Session | Answers::Page | Answers::Batch | Answers::Events)
    }
}

/// A parameter.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What may stand in it.
    pub takes: Takes,
    /// In the path, in the query once, or in the query any number of times.
    pub stands: Stands,
    /// One line.
    pub about: &'static str,
    /// One that would do; empty where that depends on what is configured, or on the answer before.
    pub example: &'static str,
}

/// Where a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// In the path.
    Path,
    /// In the query, at most once.
    Query,
    /// In the query, any number of times.
    Repeated,
    /// In the query, once or more.
    Required,
}

/// A header that any path takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name, in lower case.
    pub name: &'static str,
    /// What may stand in it.
    pub takes: Takes,
    /// One line.
    pub about: &'static str,
}

/// Has a request explained. The answer is then `{ "explain", "status", "headers", "body" }`.
pub const EXPLAIN: Header = Header {
    name: "weir-explain",
    takes: Takes::Word(&["1"]),
    about: "`1`: the answer is told with all that made it so, for clients with `explain: true`; of others it is ignored.",
};

/// What may stand in a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// A session's id: unified, or a provider's own where that is enough.
    Session,
    /// Any text where a session's id belongs: what is none has its own problem in the answer.
    AnyId,
    /// A provider's own id of a session.
    OwnSession,
    /// A provider's own id of an agent.
    OwnAgent,
    /// An agent: the provider's own id, or `provider:agent`.
    Agent,
    /// A configured provider's name.
    Name,
    /// A whole number from 1 to 100.
    Limit,
    /// A page token.
    Token,
    /// A session's status.
    Status,
    /// `true` or `false`.
    Flag,
    /// An RFC 3339 time.
    Time,
    /// Names of a session's fields, with commas between.
    Fields,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// The most sessions of a page.
pub const MAX_LIMIT: u32 = 100;
/// Sessions of a page unless said otherwise.
pub const DEFAULT_LIMIT: u32 = 10;
/// The most ids of a batch.
pub const MAX_BATCH: usize = 100;
/// The most sources of a list.
pub const MAX_SOURCES: usize = 50;
/// The longest id, in bytes after decoding.
pub const MAX_ID: usize = 256;

const fn path(name: &'static str, takes: Takes, about: &'static str) -> Parameter {
    Parameter { name, takes, stands: Stands::Path, about, example: "" }
}

const fn query(name: &'static str, takes: Takes, about: &'static str, example: &'static str) -> Parameter {
    Parameter { name, takes, stands: Stands::Query, about, example }
}

const AGENT: Parameter = path("agent", Takes::OwnAgent, "The provider's own id of the agent.");
const INCLUDE: Parameter =
    query("include", Takes::Word(&["native"]), "Adds `native`, the provider's own object.", "native");
const FIELDS: Parameter =
    query("fields", Takes::Fields, "Only these top-level fields of a session, with commas between.", "id,status");
const SETTLES: Parameter = query("provider", Takes::Name, "Says whose id it is, where its pattern does not.", "");
const LIMIT: Parameter = query("limit", Takes::Limit, "Sessions of a page.", "25");
const TOKEN: Parameter = query(
    "page_token",
    Takes::Token,
    "`next_page_token` of the page before: of the same list and filters, given to the same client.",
    "",
);
const STATUS: Parameter = query("status", Takes::Status, "Only sessions in this state.", "active");
const ENABLED: Parameter = query(
    "enabled",
    Takes::Flag,
    "Only sessions that are, or are not, switched on; 400 where a provider has no such filter.",
    "true",
);
const AFTER: Parameter =
    query("created_after", Takes::Time, "Only sessions made at this moment or later.", "2024-01-15T00:00:00Z");
const BEFORE: Parameter =
    query("created_before", Takes::Time, "Only sessions made before this moment.", "2034-01-15T00:00:00Z");
const PARTIAL: Parameter = query(
    "partial",
    Takes::Word(&["allow", "deny"]),
    "`deny`: a source that fails makes the whole request fail. `allow`, the default: it is named in `sources`.",
    "deny",
);

/// `GET /v1/sessions/{id}`
pub const SESSION: Endpoint = Endpoint {
    path: "/v1/sessions/{id}",
    operation: "getSession",
    summary: "One session",
    about: "By its unified id, or by a provider's own where its pattern tells the provider and no agent is needed.",
    parameters: &[
        path(
            "id",
            Takes::Session,
            "`provider:agent:session`, or `provider:session` where the provider has no agents, or a bare session id. `%3A` is the same as `:`.",
        ),
        INCLUDE,
        FIELDS,
    ],
    answers: Answers::Session,
};

/// `GET /v1/sessions/{id}/watch`
pub const WATCH: Endpoint = Endpoint {
    path: "/v1/sessions/{id}/watch",
    operation: "watchSession",
    summary: "A session as it changes",
    about: "Server-sent events: one `session` event at once (unless `Last-Event-ID` is its entity tag already) and one for each change, \
            until the session ends; then the stream does too, and who comes back with the last event's id is answered 204.",
    parameters: &[path("id", Takes::Session, "As for one session."), INCLUDE, FIELDS],
    answers: Answers::Events,
};

/// `GET /v1/agents/{agent}/sessions/{session}`
pub const AGENT_SESSION: Endpoint = Endpoint {
    path: "/v1/agents/{agent}/sessions/{session}",
    operation: "getAgentSession",
    summary: "One session, by the provider's own ids",
    about: "The provider follows from the ids' patterns; `provider` settles it.",
    parameters: &[
        AGENT,
        path("session", Takes::OwnSession, "The provider's own id of the session."),
        SETTLES,
        INCLUDE,
        FIELDS,
    ],
    answers: Answers::Session,
};

/// `GET /v1/agents/{agent}/sessions`
pub const AGENT_SESSIONS: Endpoint = Endpoint {
    path: "/v1/agents/{agent}/sessions",
    operation: "listAgentSessions",
    summary: "One agent's sessions",
    about: "In the provider's own order.",
    parameters: &[AGENT, SETTLES, LIMIT, TOKEN, STATUS, ENABLED, AFTER, BEFORE, PARTIAL, INCLUDE, FIELDS],
    answers: Answers::Page,
};

/// `GET /v1/sessions`
pub const SESSIONS: Endpoint = Endpoint {
    path: "/v1/sessions",
    operation: "listSessions",
    summary: "Sessions of several sources, newest first",
    about: "Each `agent` is a source, and so is each `provider` without agents. The sources are merged by `created_at`, newest first as far \
            as each of them is itself sorted. A source that fails is named in `sources` and `partial` is true; the walk goes on, and takes \
            the source up again where it left off.",
    parameters: &[
        Parameter {
            name: "agent",
            takes: Takes::Agent,
            stands: Stands::Repeated,
            about: "An agent whose sessions are wanted: its id, or `provider:agent`. At most 50 sources in all.",
            example: "",
        },
        Parameter {
            name: "provider",
            takes: Takes::Name,
            stands: Stands::Repeated,
            about: "A provider without agents whose sessions are wanted; or one with agents, to say whose the agents are.",
            example: "",
        },
        LIMIT,
        TOKEN,
        STATUS,
        ENABLED,
        AFTER,
        BEFORE,
        PARTIAL,
        INCLUDE,
        FIELDS,
    ],
    answers: Answers::Page,
};

/// `GET /v1/sessions:batchGet`
pub const BATCH: Endpoint = Endpoint {
    path: "/v1/sessions:batchGet",
    operation: "batchGetSessions",
    summary: "Up to 100 sessions by their ids",
    about: "Over all providers, in the order asked. Each result has a session or a problem.",
    parameters: &[
        Parameter {
            name: "id",
            takes: Takes::AnyId,
            stands: Stands::Required,
            about: "As for one session; 1 to 100 of them.",
            example: "",
        },
        INCLUDE,
        FIELDS,
    ],
    answers: Answers::Batch,
};

/// `GET /v1/providers`
pub const PROVIDERS: Endpoint = Endpoint {
    path: "/v1/providers",
    operation: "listProviders",
    summary: "What this client may use, and how it is",
    about: "Operations, id patterns, and a state: `ok`, `degraded` (it asked for a pause) or `down` (it failed repeatedly and is not asked).",
    parameters: &[],
    answers: Answers::Providers,
};

/// `GET /openapi.json`
pub const DESCRIPTION: Endpoint = Endpoint {
    path: "/openapi.json",
    operation: "getDescription",
    summary: "This description",
    about: "OpenAPI 3.1. Needs no key and costs nothing.",
    parameters: &[],
    answers: Answers::Description,
};

/// `GET /docs`
pub const READER: Endpoint = Endpoint {
    path: "/docs",
    operation: "getReader",
    summary: "A page to read this description in",
    about: "And to try requests with a key of yours. Needs no key itself, costs nothing, and asks no other host.",
    parameters: &[],
    answers: Answers::Reader,
};

/// `GET /docs/{file}`
pub const READER_FILE: Endpoint = Endpoint {
    path: "/docs/{file}",
    operation: "getReaderFile",
    summary: "A file of that page",
    about: "Style and scripts.",
    parameters: &[Parameter { example: READER_FILES[0], ..path("file", Takes::Word(&READER_FILES), "Its name.") }],
    answers: Answers::ReaderFile,
};

/// Files of the page that the description is read in.
pub const READER_FILES: [&str; 3] = ["swagger-ui.css", "swagger-ui-bundle.js", "start.js"];

/// All of them, in the order of the documentation.
pub const ALL: [&Endpoint; 10] = [
    &SESSION,
    &AGENT_SESSION,
    &AGENT_SESSIONS,
    &SESSIONS,
    &BATCH,
    &WATCH,
    &PROVIDERS,
    &DESCRIPTION,
    &READER,
    &READER_FILE,
];

/// Whether a path needs no key.
#[must_use]
pub fn is_public(path: &str) -> bool {
    ALL.iter().any(|endpoint| endpoint.answers.are_public() && endpoint.read(path).is_some())
}

impl Endpoint {
    /// What stands in the places of its template, if a path is one of its.
    #[must_use]
    pub fn read<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let mut places = Vec::new();
        let (mut own, mut given) = (self.path, path);
        loop {
            match (own.as_bytes(), given.as_bytes()) {
                ([], []) => return Some(places),
                ([b'{', ..], _) => {
                    let end = given.bytes().position(|byte| byte == b'/').unwrap_or(given.len());
                    places.push(Some(&given[..end]).filter(|given| !given.is_empty())?);
                    (own, given) = (own.split_once('}').map_or("", |(_, rest)| rest), &given[end..]);
                }
                ([one, ..], [other, ..]) if one == other => (own, given) = (&own[1..], &given[1..]),
                // It means the same.
                ([b':', ..], [b'%', b'3', b'a' | b'A', ..]) => (own, given) = (&own[1..], &given[3..]),
                _ => return None,
            }
        }
    }

    /// The parameter of its query with this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.in_query().find(|parameter| parameter.name == name)
    }

    /// Parameters of its query.
    pub fn in_query(&self) -> impl Iterator<Item = &'static Parameter> + use<> {
        self.parameters.iter().filter(|parameter| parameter.stands != Stands::Path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str) -> Option<(&'static str, Vec<&str>)> {
        let all: Vec<_> = ALL.iter().filter_map(|e| e.read(path).map(|places| (e.operation, places))).collect();
        assert!(all.len() < 2, "{path}: {all:?}");
        all.into_iter().next()
    }

    #[test]
    fn a_path_is_one_endpoints_at_most() {
        assert_eq!(found("/v1/sessions/a:b"), Some(("getSession", vec!["a:b"])));
        assert_eq!(found("/v1/sessions/a:b/watch"), Some(("watchSession", vec!["a:b"])));
        assert_eq!(found("/v1/agents/a/sessions/b"), Some(("getAgentSession", vec!["a", "b"])));
        assert_eq!(found("/v1/sessions:batchGet"), Some(("batchGetSessions", vec![])));
        assert_eq!(found("/v1/sessions%3abatchGet"), Some(("batchGetSessions", vec![])));
        assert_eq!(found("/docs/start.js"), Some(("getReaderFile", vec!["start.js"])));
        assert!(is_public("/docs") && is_public("/docs/any") && is_public("/openapi.json"));
        assert!(!is_public("/v1/sessions/docs") && !is_public("/v1/providers") && !is_public("/docs/a/b"));
        for path in
            ["/docs/", "/v1/sessions/", "/v1/agents//sessions", "/v1", "/", "", "/v1/sessions:batchget", "/V1/sessions"]
        {
            assert_eq!(found(path), None, "{path}");
        }
    }
}
