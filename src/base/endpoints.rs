//! Defines the HTTP API as data: each path, its parameters and its success response.
//!
//! The router, the OpenAPI description and the tests read this table, so they cannot disagree. A path or a parameter
//! that is not listed here does not exist.

/// One path of the API.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The path's template; also its name in metrics and logs.
    pub path: &'static str,
    /// The `operationId` of the OpenAPI description.
    pub operation_id: &'static str,
    /// One line, without a full stop.
    pub summary: &'static str,
    /// Whole sentences.
    pub description: &'static str,
    /// Parameters of the path and of the query. Any other parameter is 400.
    pub parameters: &'static [Parameter],
    /// The methods that it has.
    pub methods: Methods,
    /// The kind of its 200 response.
    pub response: ResponseKind,
}

/// The methods of an endpoint. A POST has the parameters of the query in a form, so that they can be longer than a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// GET and HEAD.
    Get,
    /// GET, HEAD and POST.
    GetOrForm,
    /// POST.
    Form,
}

impl Methods {
    /// Returns the value of `Allow`.
    #[must_use]
    pub fn allow(self) -> &'static str {
        match self {
            Methods::Get => "GET, HEAD",
            Methods::GetOrForm => "GET, HEAD, POST",
            Methods::Form => "POST",
        }
    }

    /// Returns whether GET and HEAD are among them.
    #[must_use]
    pub fn has_get(self) -> bool {
        self != Methods::Form
    }

    /// Returns whether POST is among them.
    #[must_use]
    pub fn has_form(self) -> bool {
        self != Methods::Get
    }
}

/// The kind of an endpoint's 200 response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseKind {
    /// A unified session.
    Session,
    /// A page of sessions.
    Page,
    /// A session or a problem for each id.
    Batch,
    /// Server-sent events.
    Events,
    /// The configured providers.
    Providers,
    /// The OpenAPI description.
    Description,
    /// The HTML page that shows the description.
    DocsPage,
    /// A style sheet or script of that page.
    DocsFile,
}

impl ResponseKind {
    /// Returns whether the response is the same for every client and needs no key.
    #[must_use]
    pub fn is_public(self) -> bool {
        matches!(self, ResponseKind::Description | ResponseKind::DocsPage | ResponseKind::DocsFile)
    }

    /// Returns whether the response is made of provider data.
    #[must_use]
    pub fn needs_provider(self) -> bool {
        matches!(self, ResponseKind::Session | ResponseKind::Page | ResponseKind::Batch | ResponseKind::Events)
    }
}

/// A parameter of a path or of a query.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The parameter's name.
    pub name: &'static str,
    /// The type of its value.
    pub value_type: ParameterType,
    /// Where it is, and how often it may occur.
    pub location: ParameterLocation,
    /// Whole sentences.
    pub description: &'static str,
    /// A valid value. Empty if the value depends on the configuration or on an earlier response.
    pub example: &'static str,
}

/// Where a parameter is, and how often it may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterLocation {
    /// In the path.
    Path,
    /// In the query, at most once.
    Query,
    /// In the query, any number of times.
    Repeated,
    /// In the query, once or more.
    Required,
}

/// A request header that every path accepts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeaderParameter {
    /// The name, in lower case.
    pub name: &'static str,
    /// The type of its value.
    pub value_type: ParameterType,
    /// Whole sentences.
    pub description: &'static str,
}

/// Requests an explanation. The body is then `{ "explain", "status", "headers", "body" }`.
pub(crate) const EXPLAIN: HeaderParameter = HeaderParameter {
    name: "weir-explain",
    value_type: ParameterType::Word(&["1"]),
    description: "`1` returns the response inside an explanation of it, for clients with `explain: true`. Weir ignores the header of other clients.",
};

/// The type of a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    /// A session id: unified, or the provider's own where that identifies the session.
    Session,
    /// Any text in place of a session id. An invalid id gets its own problem inside the response.
    AnyId,
    /// A provider's own id of a session.
    OwnSession,
    /// A provider's own id of an agent.
    OwnAgent,
    /// An agent: the provider's own id, or `provider:agent`.
    Agent,
    /// The name of a configured provider.
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
    /// A name of a session field, or several, separated by commas.
    Fields,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// The highest `limit` of a page, in sessions.
pub(crate) const MAX_LIMIT: u32 = 100;
/// The default `limit` of a page, in sessions.
pub(crate) const DEFAULT_LIMIT: u32 = 10;
/// The highest number of ids in a batch.
pub(crate) const MAX_BATCH: usize = 100;
/// The highest number of sources of a list.
pub(crate) const MAX_SOURCES: usize = 50;
/// The highest length of an id, in bytes after percent-decoding.
pub(crate) const MAX_ID: usize = 256;

const fn path(name: &'static str, value_type: ParameterType, description: &'static str) -> Parameter {
    Parameter { name, value_type, location: ParameterLocation::Path, description, example: "" }
}

const fn query(
    name: &'static str,
    value_type: ParameterType,
    description: &'static str,
    example: &'static str,
) -> Parameter {
    Parameter { name, value_type, location: ParameterLocation::Query, description, example }
}

const AGENT: Parameter = path("agent", ParameterType::OwnAgent, "The provider's own id of the agent.");
const INCLUDE: Parameter =
    query("include", ParameterType::Word(&["native"]), "Adds `native`, the provider's own object.", "native");
const FIELDS: Parameter = Parameter {
    name: "fields",
    value_type: ParameterType::Fields,
    location: ParameterLocation::Repeated,
    description: "Returns only these top-level fields of a session. Several names: one parameter for each, or one parameter with commas between the names.",
    example: "id,status",
};
const PROVIDER_OF_IDS: Parameter =
    query("provider", ParameterType::Name, "The provider of the ids, if their patterns do not identify it.", "");
const LIMIT: Parameter = query("limit", ParameterType::Limit, "Sessions per page.", "25");
const TOKEN: Parameter = query(
    "page_token",
    ParameterType::Token,
    "The `next_page_token` of the previous page. It is valid for the same client, path, sources and filters.",
    "",
);
const STATUS: Parameter = query("status", ParameterType::Status, "Only sessions with this status.", "active");
const ENABLED: Parameter = query(
    "enabled",
    ParameterType::Flag,
    "Only enabled (`true`) or only disabled (`false`) sessions. 400 for a provider that has no such filter.",
    "true",
);
const AFTER: Parameter =
    query("created_after", ParameterType::Time, "Only sessions created at this time or later.", "2024-01-15T00:00:00Z");
const BEFORE: Parameter =
    query("created_before", ParameterType::Time, "Only sessions created before this time.", "2034-01-15T00:00:00Z");
const PARTIAL: Parameter = query(
    "partial",
    ParameterType::Word(&["allow", "deny"]),
    "`allow`, the default: a source that fails is named in `sources`. `deny`: it makes the whole request fail.",
    "deny",
);

/// `GET /v1/sessions/{id}`
pub(crate) const SESSION: Endpoint = Endpoint {
    path: "/v1/sessions/{id}",
    operation_id: "getSession",
    summary: "One session",
    description: "By its unified id. A provider's own id is enough if its pattern identifies a provider without agents.",
    parameters: &[
        path(
            "id",
            ParameterType::Session,
            "`provider:agent:session`, or `provider:session` for a provider without agents, or a bare session id. `%3A` is the same as `:`.",
        ),
        INCLUDE,
        FIELDS,
    ],
    methods: Methods::Get,
    response: ResponseKind::Session,
};

/// `GET /v1/sessions/{id}/watch`
pub(crate) const WATCH: Endpoint = Endpoint {
    path: "/v1/sessions/{id}/watch",
    operation_id: "watchSession",
    summary: "A session as it changes",
    description: "Server-sent events. The stream sends one `session` event at once, unless `Last-Event-ID` already has its entity tag, and one \
            after each change. It ends after the session has ended. A client that reconnects with the last id of an ended session gets 204.",
    parameters: &[path("id", ParameterType::Session, "As for one session."), INCLUDE, FIELDS],
    methods: Methods::Get,
    response: ResponseKind::Events,
};

/// `GET /v1/agents/{agent}/sessions/{session}`
pub(crate) const AGENT_SESSION: Endpoint = Endpoint {
    path: "/v1/agents/{agent}/sessions/{session}",
    operation_id: "getAgentSession",
    summary: "One session, by the provider's own ids",
    description: "The patterns of the ids identify the provider; `provider` names it.",
    parameters: &[
        AGENT,
        path("session", ParameterType::OwnSession, "The provider's own id of the session."),
        PROVIDER_OF_IDS,
        INCLUDE,
        FIELDS,
    ],
    methods: Methods::Get,
    response: ResponseKind::Session,
};

/// `GET /v1/agents/{agent}/sessions`
pub(crate) const AGENT_SESSIONS: Endpoint = Endpoint {
    path: "/v1/agents/{agent}/sessions",
    operation_id: "listAgentSessions",
    summary: "One agent's sessions",
    description: "In the provider's own order.",
    parameters: &[AGENT, PROVIDER_OF_IDS, LIMIT, TOKEN, STATUS, ENABLED, AFTER, BEFORE, PARTIAL, INCLUDE, FIELDS],
    methods: Methods::Get,
    response: ResponseKind::Page,
};

/// `GET /v1/sessions`
pub(crate) const SESSIONS: Endpoint = Endpoint {
    path: "/v1/sessions",
    operation_id: "listSessions",
    summary: "Sessions of several sources, newest first",
    description: "Each `agent` is a source, and so is each `provider` without agents. Weir merges the sources by `created_at`, newest first, but \
            never changes the order inside a source. If a source fails, `sources` names it and `partial` is true. The next page continues that \
            source where it stopped.",
    parameters: &[
        Parameter {
            name: "agent",
            value_type: ParameterType::Agent,
            location: ParameterLocation::Repeated,
            description: "An agent whose sessions to list: its id, or `provider:agent`. At most 50 sources in all.",
            example: "",
        },
        Parameter {
            name: "provider",
            value_type: ParameterType::Name,
            location: ParameterLocation::Repeated,
            description: "A provider without agents whose sessions to list; or one with agents, to say which provider the agents belong to.",
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
    methods: Methods::Get,
    response: ResponseKind::Page,
};

/// `POST /v1/sessions:list`
pub(crate) const SESSIONS_BY_FORM: Endpoint = Endpoint {
    path: "/v1/sessions:list",
    operation_id: "listSessions",
    summary: "Sessions of several sources, with the parameters in a form",
    description: "The same as `GET /v1/sessions`, also with the same page tokens. With many sources, the parameters and the page token can be longer \
            than a URL may be.",
    methods: Methods::Form,
    ..SESSIONS
};

/// `GET /v1/sessions:batchGet`
pub(crate) const BATCH: Endpoint = Endpoint {
    path: "/v1/sessions:batchGet",
    operation_id: "batchGetSessions",
    summary: "Up to 100 sessions by their ids",
    description: "Over all providers, in the order of the request. Each result has a session or a problem. Many long ids can be longer than a URL may \
            be: `POST` takes the same parameters in a form.",
    parameters: &[
        Parameter {
            name: "id",
            value_type: ParameterType::AnyId,
            location: ParameterLocation::Required,
            description: "As for one session; 1 to 100 of them.",
            example: "",
        },
        INCLUDE,
        FIELDS,
    ],
    methods: Methods::GetOrForm,
    response: ResponseKind::Batch,
};

/// `GET /v1/providers`
pub(crate) const PROVIDERS: Endpoint = Endpoint {
    path: "/v1/providers",
    operation_id: "listProviders",
    summary: "The providers that this client may use, and their state",
    description: "Operations, id patterns and the state: `ok`; `degraded`, if Weir pauses after a 429 or 503 of the provider; `down`, if its breaker is open.",
    parameters: &[],
    methods: Methods::Get,
    response: ResponseKind::Providers,
};

/// `GET /openapi.json`
pub(crate) const DESCRIPTION: Endpoint = Endpoint {
    path: "/openapi.json",
    operation_id: "getDescription",
    summary: "This description",
    description: "OpenAPI 3.1. Needs no key and counts against no rate limit.",
    parameters: &[],
    methods: Methods::Get,
    response: ResponseKind::Description,
};

/// `GET /docs`
pub(crate) const DOCS_PAGE: Endpoint = Endpoint {
    path: "/docs",
    operation_id: "getReader",
    summary: "A page that shows this description",
    description: "The page can also send requests with your key. It needs no key itself, counts against no rate limit, and loads nothing from other hosts.",
    parameters: &[],
    methods: Methods::Get,
    response: ResponseKind::DocsPage,
};

/// `GET /docs/{file}`
pub(crate) const DOCS_FILE: Endpoint = Endpoint {
    path: "/docs/{file}",
    operation_id: "getReaderFile",
    summary: "A file of that page",
    description: "Its style sheet and scripts.",
    parameters: &[Parameter {
        example: DOCS_FILES[0],
        ..path("file", ParameterType::Word(&DOCS_FILES), "The name of the file.")
    }],
    methods: Methods::Get,
    response: ResponseKind::DocsFile,
};

/// Names of the files that the documentation page loads.
pub(crate) const DOCS_FILES: [&str; 3] = ["swagger-ui.css", "swagger-ui-bundle.js", "start.js"];

/// Every endpoint, in the order of the documentation.
pub(crate) const ALL: [&Endpoint; 11] = [
    &SESSION,
    &AGENT_SESSION,
    &AGENT_SESSIONS,
    &SESSIONS,
    &SESSIONS_BY_FORM,
    &BATCH,
    &WATCH,
    &PROVIDERS,
    &DESCRIPTION,
    &DOCS_PAGE,
    &DOCS_FILE,
];

/// Returns what to add to the message about a URL that is too long: where the parameters can be in a form.
#[must_use]
pub(crate) fn form_hint(path: &str) -> &'static str {
    match path {
        path if SESSIONS.match_path(path).is_some() => "; POST /v1/sessions:list takes the parameters in a form",
        path if BATCH.match_path(path).is_some() => "; POST takes the parameters in a form",
        _ => "",
    }
}

/// Returns whether a POST to this path has a form.
#[must_use]
pub(crate) fn has_form(path: &str) -> bool {
    ALL.iter().any(|endpoint| endpoint.methods.has_form() && endpoint.match_path(path).is_some())
}

/// Returns whether a path needs no key.
#[must_use]
pub(crate) fn is_public(path: &str) -> bool {
    ALL.iter().any(|endpoint| endpoint.response.is_public() && endpoint.match_path(path).is_some())
}

impl Endpoint {
    /// Returns the values of the template's variables if the path matches the template. They are still percent-encoded
    /// and never empty.
    #[must_use]
    pub fn match_path<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let mut values = Vec::new();
        let (mut template, mut rest) = (self.path, path);
        loop {
            match (template.as_bytes(), rest.as_bytes()) {
                ([], []) => return Some(values),
                ([b'{', ..], _) => {
                    let end = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
                    values.push(Some(&rest[..end]).filter(|value| !value.is_empty())?);
                    (template, rest) = (template.split_once('}').map_or("", |(_, after)| after), &rest[end..]);
                }
                ([one, ..], [other, ..]) if one == other => (template, rest) = (&template[1..], &rest[1..]),
                // `%3A` in the path means the same as `:` in the template.
                ([b':', ..], [b'%', b'3', b'a' | b'A', ..]) => (template, rest) = (&template[1..], &rest[3..]),
                _ => return None,
            }
        }
    }

    /// Returns the path that page tokens belong to: a token of a GET is also valid in a form.
    #[must_use]
    pub fn list_path(&self) -> &'static str {
        if self.path == SESSIONS_BY_FORM.path { SESSIONS.path } else { self.path }
    }

    /// Returns the query parameter with this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.query_parameters().find(|parameter| parameter.name == name)
    }

    /// Returns the query parameters.
    pub fn query_parameters(&self) -> impl Iterator<Item = &'static Parameter> + use<> {
        self.parameters.iter().filter(|parameter| parameter.location != ParameterLocation::Path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str) -> Option<(&'static str, Vec<&str>)> {
        let all: Vec<_> =
            ALL.iter().filter_map(|e| e.match_path(path).map(|values| (e.operation_id, values))).collect();
        assert!(all.len() < 2, "{path}: {all:?}");
        all.into_iter().next()
    }

    #[test]
    fn a_path_matches_at_most_one_endpoint() {
        assert_eq!(find("/v1/sessions/a:b"), Some(("getSession", vec!["a:b"])));
        assert_eq!(find("/v1/sessions/a:b/watch"), Some(("watchSession", vec!["a:b"])));
        assert_eq!(find("/v1/agents/a/sessions/b"), Some(("getAgentSession", vec!["a", "b"])));
        assert_eq!(find("/v1/sessions:batchGet"), Some(("batchGetSessions", vec![])));
        assert_eq!(find("/v1/sessions:list"), Some(("listSessions", vec![])));
        assert!(has_form("/v1/sessions:list") && has_form("/v1/sessions%3AbatchGet") && !has_form("/v1/sessions"));
        assert_eq!(find("/v1/sessions%3abatchGet"), Some(("batchGetSessions", vec![])));
        assert_eq!(find("/docs/start.js"), Some(("getReaderFile", vec!["start.js"])));
        assert!(is_public("/docs") && is_public("/docs/any") && is_public("/openapi.json"));
        assert!(!is_public("/v1/sessions/docs") && !is_public("/v1/providers") && !is_public("/docs/a/b"));
        for path in
            ["/docs/", "/v1/sessions/", "/v1/agents//sessions", "/v1", "/", "", "/v1/sessions:batchget", "/V1/sessions"]
        {
            assert_eq!(find(path), None, "{path}");
        }
    }
}
