//! Defines the HTTP API as data: each path, its parameters and its success response.
//!
//! The router, the OpenAPI description and the tests read this table, so they cannot disagree. A path or a parameter
//! that is not listed here does not exist.

pub(crate) use crate::base::endpoint::HeaderParameter;
pub(crate) use crate::base::endpoint::{Endpoint, Methods, Parameter, ParameterLocation, ParameterType, ResponseKind};

/// Requests an explanation. The body is then `{ "explain", "status", "headers", "body" }`.
pub(crate) const EXPLAIN: HeaderParameter = HeaderParameter {
    name: "weir-explain",
    value_type: ParameterType::Word(&["1"]),
    description: "`1` returns the response inside an explanation of it, for clients with `explain: true`. Weir ignores the header of other clients.",
};

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
/// The parameter with a watch token, in place of a key.
pub(crate) const WATCH_TOKEN: Parameter =
    query("watch_token", ParameterType::WatchToken, "A watch token, in place of a key.", "");
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
    parameters: &[path("id", ParameterType::Session, "As for one session."), INCLUDE, FIELDS, WATCH_TOKEN],
    methods: Methods::Get,
    response: ResponseKind::Events,
};

/// `POST /v1/sessions/{id}/watch-tokens`
pub(crate) const WATCH_TOKENS: Endpoint = Endpoint {
    path: "/v1/sessions/{id}/watch-tokens",
    operation_id: "createWatchToken",
    summary: "A token with which a browser watches one session",
    description: "For `EventSource`, which cannot send a key. Only the watch of this session accepts the token, for five minutes; a watch that has begun \
            goes on. It ends with the key that made the token. The request has no parameters and no body.",
    parameters: &[path("id", ParameterType::Session, "As for one session.")],
    methods: Methods::Post,
    response: ResponseKind::WatchToken,
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
pub(crate) const ALL: [&Endpoint; 12] = [
    &SESSION,
    &AGENT_SESSION,
    &AGENT_SESSIONS,
    &SESSIONS,
    &SESSIONS_BY_FORM,
    &BATCH,
    &WATCH,
    &WATCH_TOKENS,
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

/// Returns whether a path is the watch of a session, or the one of its tokens. The URL of a watch can have a token.
#[must_use]
pub(crate) fn is_watch(path: &str) -> bool {
    let is = |endpoint: &Endpoint, end: &str| path.ends_with(end) && endpoint.match_path(path).is_some();
    is(&WATCH, "/watch") || is(&WATCH_TOKENS, "/watch-tokens")
}

/// Returns whether a path needs no key.
#[must_use]
pub(crate) fn is_public(path: &str) -> bool {
    ALL.iter().any(|endpoint| endpoint.response.is_public() && endpoint.match_path(path).is_some())
}

impl Endpoint {
    /// Returns the path that page tokens belong to: a token of a GET is also valid in a form.
    #[must_use]
    pub fn list_path(&self) -> &'static str {
        if self.path == SESSIONS_BY_FORM.path { SESSIONS.path } else { self.path }
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
        assert_eq!(find("/v1/sessions/a:b/watch-tokens"), Some(("createWatchToken", vec!["a:b"])));
        assert!(is_watch("/v1/sessions/a:b/watch") && is_watch("/v1/sessions/a:b/watch-tokens"));
        assert!(!is_watch("/v1/sessions/watch") && !is_watch("/v1/agents/a/sessions/watch") && !is_watch("/watch"));
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
