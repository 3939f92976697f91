//! Builds the API description: an OpenAPI 3.1 document.
//!
//! It is made of the data that the gateway itself uses: paths and parameters of `base::endpoints`, codes of
//! `base::problem`, session fields of `base::model`, and the id patterns of the configured providers. Only this module
//! knows which problems an endpoint can return.

mod forms;
mod headers;
mod samples;
mod schemas;

use crate::base::endpoints::{
    ALL, DEFAULT_LIMIT, Endpoint, MAX_BATCH, MAX_LIMIT, MAX_SOURCES, Methods, Parameter, ParameterLocation,
    ParameterType, ResponseKind, WATCH_TOKEN,
};
use crate::base::model::Status;
use crate::base::problem::{Code, TABLE, example};
use crate::config::Config;
use crate::rules::fields;
use samples::Samples;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the JSON document for a configuration.
#[must_use]
pub(crate) fn document(config: &Config) -> Vec<u8> {
    let mut description =
        Description { samples: Samples::of(config), responses: BTreeMap::new(), headers: BTreeSet::new() };
    let mut paths = Map::new();
    for endpoint in ALL {
        let mut methods = Map::new();
        if endpoint.methods.has_get() {
            methods.insert("get".into(), description.operation(endpoint, false));
            methods.insert("head".into(), description.operation(endpoint, true));
        }
        if endpoint.methods.has_form() {
            methods.insert("post".into(), description.form_operation(endpoint));
        }
        if endpoint.methods == Methods::Post {
            methods.insert("post".into(), description.operation(endpoint, false));
        }
        paths.insert(endpoint.path.to_owned(), methods.into());
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": info(),
        "servers": [{ "url": "/", "description": "The Weir instance that serves this description." }],
        "tags": tags(),
        "security": security(&[]),
        "paths": paths,
        "components": {
            "securitySchemes": security_schemes(),
            "schemas": schemas::all(&description.samples),
            "parameters": headers::parameters(),
            "headers": headers::components(&description.headers),
            "responses": description.responses,
            "examples": TABLE.iter().map(|row| (key(row.0), json!({ "summary": row.4, "value": example(row.0) }))).collect::<Map<_, _>>(),
        },
    });
    document.to_string().into_bytes()
}

fn info() -> Value {
    let mut description = String::from(INTRODUCTION);
    for (_, status, code, title, cause) in TABLE {
        description += &format!("\n| {status} | `{code}` | {title} | {cause} |");
    }
    json!({
        "title": "Weir",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "One endpoint, one key and one schema in front of several agent-session APIs.",
        "description": description,
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    })
}

const INTRODUCTION: &str = "\
Every request needs a Weir key, in `X-API-Key`, as `Authorization: Bearer` or in `X-Weir-Key`; this description and its page need none. \
`HEAD` works wherever `GET` does and returns the same response without its body. A `POST` has the parameters in a form in place of the query, for requests that are longer than a URL may be. A query parameter that the path does not know is 400, so that a misspelt \
filter is noticed. A parameter that is given twice is 400 too, except where a path takes several.

Responses are cached for as long as the session's own expiry allows; `Cache-Status` has the result of the cache lookup. `ETag` is strong, and `If-None-Match` gives 304. \
A client that sends `Accept-Encoding` gets long responses compressed (zstd, Brotli, gzip). \
`RateLimit` has what is left of the client's policies.

**The providers' own APIs** are under `/{provider}/`, for the providers' own SDKs. An SDK needs only another base URL, and a Weir key as its API key. This description does not \
cover these APIs: any method, the provider's own paths, its bodies byte for byte and its own error shapes. Session reads there use the same cache.

**Explanations.** A client with `explain: true` sends `Weir-Explain: 1` to learn how Weir made a response. Weir handles and charges the request as usual, and returns the response inside an object, next to \
its route, cache key, lifetime, the source of each field, limits and timing. Weir ignores the header of other clients.

Problems are `application/problem+json` (RFC 9457). `code` is stable: programs should test it.

| status | `code` | title | when |
|---|---|---|---|";

const SESSIONS: &str = "sessions";
const PROVIDERS: &str = "providers";
const DOCUMENTATION: &str = "documentation";
const HEAD: &str = "head";

fn tags() -> Value {
    json!([
        { "name": SESSIONS, "description": "Sessions of all providers, in one schema." },
        { "name": PROVIDERS, "description": "The configured providers." },
        { "name": DOCUMENTATION, "description": "This description and its page. They need no key." },
        { "name": HEAD, "description": "The same responses without their bodies." },
    ])
}

/// Returns the security schemes of all operations, and more of one.
fn security(more: &[&str]) -> Value {
    let schemes = ["apiKey", "bearer", "weirKey"];
    schemes.iter().chain(more).map(|scheme| json!({ *scheme: [] })).collect()
}

fn security_schemes() -> Value {
    json!({
        "apiKey": { "type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A Weir key." },
        "bearer": { "type": "http", "scheme": "bearer", "description": "A Weir key, as a bearer token." },
        "weirKey": {
            "type": "apiKey", "in": "header", "name": "X-Weir-Key",
            "description": "A Weir key, for clients that also send a provider's credential. Weir then reads no key from the other two headers.",
        },
        "watchToken": {
            "type": "apiKey", "in": "query", "name": WATCH_TOKEN.name,
            "description": "A token of `POST /v1/sessions/{id}/watch-tokens`, for a browser's `EventSource`, which cannot send a key.",
        },
    })
}

/// Returns a unique component name for a code. The status is part of it, because some codes have the same text.
fn key(code: Code) -> String {
    format!("{}_{}", code.as_str(), code.status())
}

/// Returns whether a request to this endpoint can return this code.
fn can_return(endpoint: &Endpoint, code: Code) -> bool {
    let response = endpoint.response;
    let one_session = matches!(response, ResponseKind::Session | ResponseKind::Events);
    // The problems of a batch's sessions are inside its 200 response.
    let provider_failures = response.needs_provider() && response != ResponseKind::Batch;
    match code {
        Code::InvalidRequest
        | Code::MethodNotAllowed
        | Code::RequestTimeout
        | Code::BodyTooLarge
        | Code::UrlTooLong
        | Code::HeadersTooLarge
        | Code::InternalError
        | Code::Overloaded => true,
        Code::Unauthorized | Code::RateLimitExceeded => !response.is_public(),
        // An empty path parameter makes it an unknown path.
        Code::NotFound => endpoint.parameters.iter().any(|parameter| parameter.location == ParameterLocation::Path),
        Code::SessionNotFound => one_session,
        Code::AgentNotFound => provider_failures,
        Code::ProviderNotFound | Code::Forbidden => provider_failures || response == ResponseKind::WatchToken,
        Code::ProviderError
        | Code::ProviderInvalidResponse
        | Code::ProviderAuthFailed
        | Code::ProviderRateLimited
        | Code::ProviderUnavailable
        | Code::ProviderTimeout
        | Code::NotCached => provider_failures,
    }
}

struct Description<'c> {
    samples: Samples<'c>,
    /// Problem responses that several operations share, by name.
    responses: BTreeMap<String, Value>,
    /// Names of the header components in use.
    headers: BTreeSet<String>,
}

impl Description<'_> {
    fn operation(&mut self, endpoint: &Endpoint, head: bool) -> Value {
        let tag = match endpoint.response {
            _ if head => HEAD,
            ResponseKind::Providers => PROVIDERS,
            response if response.is_public() => DOCUMENTATION,
            _ => SESSIONS,
        };
        let name = endpoint.operation_id;
        let mut operation = json!({
            "operationId": if head { format!("{name}Head") } else { name.to_owned() },
            "summary": endpoint.summary,
            "description": endpoint.description,
            "tags": [tag],
            "parameters": self.parameters(endpoint),
            "responses": self.responses(endpoint, head),
        });
        match endpoint.response {
            ResponseKind::Events => operation["security"] = security(&["watchToken"]),
            response if response.is_public() => operation["security"] = json!([]),
            _ => {}
        }
        operation
    }

    fn parameters(&self, endpoint: &Endpoint) -> Vec<Value> {
        // The token is a security scheme.
        let described = endpoint.parameters.iter().filter(|parameter| **parameter != WATCH_TOKEN);
        let mut all: Vec<Value> = described.map(|parameter| self.parameter(endpoint, parameter)).collect();
        let mut header = |name: &str| all.push(json!({ "$ref": format!("#/components/parameters/{name}") }));
        match endpoint.response {
            ResponseKind::Events => header("lastEventId"),
            ResponseKind::WatchToken => {}
            _ => header("ifNoneMatch"),
        }
        if endpoint.response.needs_provider() {
            header("cacheControl");
        }
        header("requestId");
        all
    }

    fn parameter(&self, endpoint: &Endpoint, parameter: &Parameter) -> Value {
        let mut schema = self.schema(endpoint, parameter);
        let path = parameter.location == ParameterLocation::Path;
        let required = path || parameter.location == ParameterLocation::Required;
        let mut object = json!({
            "name": parameter.name,
            "in": if path { "path" } else { "query" },
            "required": required,
            "description": parameter.description,
        });
        let several = matches!(parameter.location, ParameterLocation::Repeated | ParameterLocation::Required);
        if several {
            schema = match parameter.value_type {
                ParameterType::Fields => json!({ "type": "array", "items": schema, "minItems": 1 }),
                _ if required => json!({ "type": "array", "items": schema, "minItems": 1, "maxItems": MAX_BATCH }),
                _ => json!({ "type": "array", "items": schema, "uniqueItems": true, "maxItems": MAX_SOURCES }),
            };
            (object["style"], object["explode"]) = ("form".into(), true.into());
        }
        let examples = self.samples.ids(parameter.value_type, endpoint.response == ResponseKind::Events);
        if required && several {
            let all: Vec<String> = examples.into_iter().map(|(_, id)| id).collect();
            object["example"] = all.into();
        } else if required && !examples.is_empty() {
            let each = examples.into_iter().map(|(provider, id)| (provider.to_owned(), json!({ "value": id })));
            object["examples"] = each.collect::<Map<_, _>>().into();
        } else if required && !parameter.example.is_empty() {
            object["example"] = parameter.example.into();
        } else if let Some(example) = self.example(endpoint, parameter) {
            // In the schema, because the documentation page would send all examples of parameters at once, including
            // filters that exclude each other.
            schema["examples"] = json!([example]);
        }
        object["schema"] = schema;
        object
    }

    /// Returns the schema of one value of a parameter.
    fn schema(&self, endpoint: &Endpoint, parameter: &Parameter) -> Value {
        match parameter.value_type {
            ParameterType::Session | ParameterType::OwnSession | ParameterType::OwnAgent | ParameterType::Agent => {
                self.samples.id_schema(parameter.value_type)
            }
            ParameterType::AnyId => json!({ "type": "string" }),
            ParameterType::Name
                if endpoint.response == ResponseKind::Page && parameter.location == ParameterLocation::Repeated =>
            {
                json!({ "type": "string", "enum": self.samples.names(|_| true) })
            }
            // Elsewhere the path has an agent, so the provider must have agents.
            ParameterType::Name => {
                json!({ "type": "string", "enum": self.samples.names(|provider| provider.has_agents) })
            }
            ParameterType::Limit => {
                json!({ "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT })
            }
            ParameterType::Token | ParameterType::WatchToken => json!({ "type": "string", "minLength": 1 }),
            ParameterType::Status => json!({ "type": "string", "enum": Status::ALL.map(Status::as_str) }),
            ParameterType::Flag => json!({ "type": "boolean" }),
            ParameterType::Time => json!({ "type": "string", "format": "date-time" }),
            ParameterType::Fields => {
                json!({ "type": "string", "enum": fields::names() })
            }
            ParameterType::Word(words) => json!({ "type": "string", "enum": words }),
        }
    }

    /// Returns a valid example of an optional parameter.
    fn example(&self, endpoint: &Endpoint, parameter: &Parameter) -> Option<Value> {
        let text = parameter.example;
        Some(match parameter.value_type {
            ParameterType::Limit => text.parse::<u32>().ok()?.into(),
            ParameterType::Flag => (text == "true").into(),
            ParameterType::Fields => text.split(',').collect::<Vec<_>>().into(),
            ParameterType::Agent => {
                self.samples.ids(ParameterType::Agent, false).into_iter().map(|(_, id)| id).collect::<Vec<_>>().into()
            }
            ParameterType::Name if parameter.location == ParameterLocation::Repeated => {
                self.samples.names(|provider| !provider.has_agents).into()
            }
            ParameterType::Name
                if endpoint.response != ResponseKind::Page || parameter.location == ParameterLocation::Query =>
            {
                (*self.samples.names(|provider| provider.has_agents).first()?).into()
            }
            _ if text.is_empty() => return None,
            _ => text.into(),
        })
    }

    fn responses(&mut self, endpoint: &Endpoint, head: bool) -> Value {
        let mut all = Map::new();
        all.insert("200".into(), self.success(endpoint, head));
        if endpoint.response == ResponseKind::Events {
            let description = "The session has ended, and `Last-Event-ID` is the entity tag of its last state. The client need not reconnect.";
            let headers = self.headers(&[
                "X-Request-Id.always",
                "Cache-Control.always",
                "Vary.always",
                "Referrer-Policy.always",
                "RateLimit-Policy",
                "RateLimit",
            ]);
            all.insert("204".into(), json!({ "description": description, "headers": headers }));
        } else if endpoint.response != ResponseKind::WatchToken {
            let mut headers = self.headers(&["ETag.always", "X-Request-Id.always", "Cache-Control.always", "Vary"]);
            if endpoint.response.needs_provider() {
                let more =
                    self.headers(&["Cache-Status.always", "Age", "Vary.always", "RateLimit-Policy", "RateLimit"]);
                headers::merge(&mut headers, more);
            }
            all.insert(
                "304".into(),
                json!({ "description": "The client already has this body (`If-None-Match`).", "headers": headers }),
            );
        }
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for (code, status, ..) in TABLE.iter().filter(|row| can_return(endpoint, row.0)) {
            by_status.entry(*status).or_default().push(*code);
        }
        for (status, codes) in by_status {
            let name = self.problem(status, &codes, head);
            all.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{name}") }));
        }
        all.into()
    }

    /// Describes the 200 response.
    fn success(&mut self, endpoint: &Endpoint, head: bool) -> Value {
        let kind = endpoint.response;
        let mut names = vec!["X-Request-Id.always", "Cache-Control.always", "X-Content-Type-Options.always"];
        if kind.is_public() {
            names.push("Vary");
        } else {
            names.extend(["Vary.always", "RateLimit-Policy", "RateLimit"]);
        }
        if kind != ResponseKind::Events {
            names.push("Content-Encoding");
        }
        match kind {
            ResponseKind::Events | ResponseKind::WatchToken => names.push("Referrer-Policy.always"),
            ResponseKind::DocsPage => {
                names.extend(["ETag.always", "Content-Security-Policy.always", "Referrer-Policy.always"]);
            }
            _ => names.push("ETag.always"),
        }
        if matches!(kind, ResponseKind::Session | ResponseKind::Page | ResponseKind::Batch) {
            names.extend(["Cache-Status", "Age"]);
        }
        let mut response = json!({ "description": endpoint.summary, "headers": self.headers(&names) });
        if head {
            return response;
        }
        let text = json!({ "type": "string" });
        let (media, schema) = match kind {
            ResponseKind::Session => ("application/json", schemas::reference("ShownSession")),
            ResponseKind::Page => ("application/json", schemas::reference("Page")),
            ResponseKind::Batch => ("application/json", schemas::reference("Batch")),
            ResponseKind::Providers => ("application/json", schemas::reference("Providers")),
            ResponseKind::Description => {
                let object = schemas::any_object();
                let parts = json!({ "openapi": { "type": "string" }, "info": object, "paths": object });
                (
                    "application/json",
                    json!({ "type": "object", "properties": parts, "required": ["openapi", "info", "paths"] }),
                )
            }
            ResponseKind::Events => ("text/event-stream", schemas::reference("Event")),
            ResponseKind::WatchToken => ("application/json", schemas::reference("WatchToken")),
            ResponseKind::DocsPage => ("text/html; charset=utf-8", text.clone()),
            ResponseKind::DocsFile => ("text/css; charset=utf-8", text.clone()),
        };
        response["content"][media] = json!({ "schema": schema, "example": self.body_example(kind) });
        if kind == ResponseKind::DocsFile {
            response["content"]["text/javascript; charset=utf-8"] = json!({ "schema": text, "example": "…" });
        }
        if kind == ResponseKind::Page {
            response["links"] = self.links(endpoint);
        }
        response
    }

    /// Describes the link from a page to the next one.
    fn links(&self, endpoint: &Endpoint) -> Value {
        json!({
            "nextPage": {
                "operationId": endpoint.operation_id,
                "parameters": { "page_token": "$response.body#/next_page_token" },
                "description": "The next page, with the same filters.",
            },
        })
    }

    /// Returns an example of a body.
    fn body_example(&self, kind: ResponseKind) -> Value {
        let session = self.samples.session().cloned().unwrap_or_default();
        let id = session["id"].clone();
        match kind {
            ResponseKind::Session => session,
            ResponseKind::Page => {
                let source = json!({
                    "provider": session["provider"], "agent": session["agent"]["id"], "state": "fresh", "age_seconds": 0, "warnings": [], "error": null,
                });
                json!({ "sessions": [session], "next_page_token": null, "total_count": 1, "partial": false, "sources": [source] })
            }
            ResponseKind::Batch => {
                let mut error = example(Code::SessionNotFound);
                if let Some(error) = error.as_object_mut() {
                    error.remove("request_id");
                }
                json!({ "results": [{ "id": id, "session": session, "error": null }, { "id": "other", "session": null, "error": error }] })
            }
            ResponseKind::Events => {
                json!({ "id": "\"2BDcFbMpJJ_73EG3r-c0Ig\"", "event": "session", "data": session.to_string() })
            }
            ResponseKind::WatchToken => {
                let url = format!("/v1/sessions/{}/watch?watch_token=weir_watch_AQ", id.as_str().unwrap_or_default());
                json!({ "watch_token": "weir_watch_AQ", "expires_at": "2026-01-15T00:05:00.000Z", "url": url })
            }
            ResponseKind::Providers => {
                let patterns = json!({ "agent": null, "session": "^[0-9]+$" });
                let ids = json!({ "recognise": patterns, "accept": patterns });
                json!({ "providers": [{
                    "name": session["provider"], "operations": ["get_session", "list_sessions"], "agents": false, "ids": ids,
                    "state": "ok", "retry_at": null,
                }] })
            }
            ResponseKind::Description => json!({ "openapi": "3.1.0", "info": { "title": "Weir" }, "paths": {} }),
            ResponseKind::DocsPage | ResponseKind::DocsFile => "…".into(),
        }
    }

    /// Adds the shared response for problems with this status and one of these codes. Returns its name.
    fn problem(&mut self, status: u16, codes: &[Code], head: bool) -> String {
        let names: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
        let name = format!("{status}-{}{}", names.join("-"), if head { "-head" } else { "" });
        if self.responses.contains_key(&name) {
            return name;
        }
        let causes: Vec<String> = codes.iter().map(|code| format!("`{}`: {}.", code.as_str(), code.cause())).collect();
        // Weir also sends these statuses when it could not read the whole request. Such a response has no request id.
        let has_id = !matches!(status, 400 | 405 | 408 | 431);
        let mut headers = vec![if has_id { "X-Request-Id.always" } else { "X-Request-Id" }, "Cache-Control.always"];
        headers.extend(["RateLimit-Policy", "RateLimit"]);
        match status {
            401 => headers.push("WWW-Authenticate.always"),
            405 => headers.push("Allow.always"),
            429 | 503 => headers.push("Retry-After.always"),
            404 | 502 | 504 => headers.push("Cache-Status"),
            _ => {}
        }
        let mut response = json!({ "description": causes.join(" "), "headers": self.headers(&headers) });
        if !head {
            // Generators of clients cannot merge a `const` or an `enum` without a type with the type in `Problem`.
            let status = json!({ "type": "integer", "enum": [status] });
            let own = json!({ "properties": { "status": status, "code": { "type": "string", "enum": names } } });
            let examples = codes.iter().map(|code| {
                let key = key(*code);
                (key.clone(), json!({ "$ref": format!("#/components/examples/{key}") }))
            });
            response["content"]["application/problem+json"] = json!({
                "schema": { "allOf": [schemas::reference("Problem"), own] },
                "examples": examples.collect::<Map<_, _>>(),
            });
        }
        self.responses.insert(name.clone(), response);
        name
    }

    /// Returns references to header components and records that they are in use.
    fn headers(&mut self, names: &[&str]) -> Value {
        let mut all = Map::new();
        for name in names {
            self.headers.insert((*name).to_owned());
            let field = name.strip_suffix(".always").unwrap_or(name);
            all.insert(field.to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }));
        }
        all.into()
    }
}
