//! The API's description: an OpenAPI 3.1 document made of what the code itself reads.
//!
//! A room of its own because it decides nothing and is read by nobody but clients: paths and parameters are those that the
//! router takes (`endpoints`), problems those of the error table (`error`), sessions those of the model, ids those that the configured
//! providers' patterns take. What is said here alone is which problem an operation can have, and each code must say it.

mod headers;
mod samples;
mod schemas;

use crate::config::Config;
use crate::endpoints::{ALL, Answers, DEFAULT_LIMIT, Endpoint, MAX_LIMIT, MAX_SOURCES, Parameter, Stands, Takes};
use crate::error::{Code, Problem, TABLE};
use crate::fields;
use crate::model::Status;
use samples::Samples;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The document, for this configuration.
#[must_use]
pub fn document(config: &Config) -> Vec<u8> {
    let mut description =
        Description { samples: Samples::of(config), responses: BTreeMap::new(), headers: BTreeSet::new() };
    let mut paths = Map::new();
    for endpoint in ALL {
        let (get, head) = (description.operation(endpoint, false), description.operation(endpoint, true));
        paths.insert(endpoint.path.to_owned(), json!({ "get": get, "head": head }));
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": info(),
        "servers": [{ "url": "/", "description": "The Weir that this description came from." }],
        "tags": tags(),
        "security": [{ "apiKey": [] }, { "bearer": [] }, { "weirKey": [] }],
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
    let mut about = String::from(ABOUT);
    for (_, status, code, title, cause) in TABLE {
        about += &format!("\n| {status} | `{code}` | {title} | {cause} |");
    }
    json!({
        "title": "Weir",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "One endpoint, one key and one schema in front of several agent-session APIs.",
        "description": about,
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    })
}

const ABOUT: &str = "\
Every request carries a Weir key, in `X-API-Key`, as `Authorization: Bearer` or in `X-Weir-Key`; this description and its page need none. \
`HEAD` works wherever `GET` does and answers the same without a body. A parameter that a path does not know, or that is given twice, is 400: \
a misspelt filter must not go unnoticed.

Answers are cached for as long as the session's own expiry allows; `Cache-Status` says what happened. `ETag` is strong, and `If-None-Match` gives 304. \
What a client has left of its policies is in `RateLimit`, reckoned at that moment.

**The providers' own APIs** stand under `/{provider}/` for their own SDKs, which need nothing but another base URL and a Weir key as their API key. They are the providers' \
to describe: any method, the provider's own paths, its bodies byte for byte and its own error shapes. Session reads there come out of the same cache.

**Why an answer is as it is** a client with `explain: true` learns by sending `Weir-Explain: 1`: the request is done and charged as always, and the answer comes inside an object, beside \
its route, cache key, lifetime and its inputs, the way to each field, limits and timing. Of other clients the header is ignored.

Problems are `application/problem+json` (RFC 9457); `code` is a promise:

| status | `code` | title | when |
|---|---|---|---|";

const SESSIONS: &str = "sessions";
const PROVIDERS: &str = "providers";
const DOCUMENTATION: &str = "documentation";
const HEAD: &str = "head";

fn tags() -> Value {
    json!([
        { "name": SESSIONS, "description": "Sessions of all providers, in one schema." },
        { "name": PROVIDERS, "description": "What is configured." },
        { "name": DOCUMENTATION, "description": "This description. Needs no key." },
        { "name": HEAD, "description": "The same answers without their bodies." },
    ])
}

fn security_schemes() -> Value {
    json!({
        "apiKey": { "type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A Weir key." },
        "bearer": { "type": "http", "scheme": "bearer", "description": "A Weir key, as a bearer token." },
        "weirKey": {
            "type": "apiKey", "in": "header", "name": "X-Weir-Key",
            "description": "A Weir key, for requests whose other headers are the provider's to read.",
        },
    })
}

/// The name of a code's row: codes that share their text do not share their status.
fn key(code: Code) -> String {
    format!("{}_{}", code.as_str(), code.status())
}

/// A problem as a client gets it.
fn example(code: Code) -> Value {
    let mut problem = Problem::new(code, code.cause());
    if matches!(code.status(), 429 | 503) {
        problem = problem.retry_after_ms(1000);
    }
    if code == Code::RateLimitExceeded {
        problem.violated_policies = vec!["standard".to_owned()];
    }
    problem.to_value(Some("5f2c91d0-0000002a"))
}

/// Whether a request to this endpoint can end so.
fn can_end_in(endpoint: &Endpoint, code: Code) -> bool {
    let answers = endpoint.answers;
    let one = matches!(answers, Answers::Session | Answers::Events);
    // What fails of a batch's session stands in the batch.
    let whole = answers.come_from_providers() && answers != Answers::Batch;
    match code {
        Code::InvalidRequest
        | Code::MethodNotAllowed
        | Code::RequestTimeout
        | Code::BodyTooLarge
        | Code::UrlTooLong
        | Code::HeadersTooLarge
        | Code::InternalError
        | Code::Overloaded => true,
        Code::Unauthorized | Code::RateLimitExceeded => !answers.are_public(),
        // An empty one makes it another path.
        Code::NotFound => endpoint.parameters.iter().any(|parameter| parameter.stands == Stands::Path),
        Code::SessionNotFound => one,
        Code::AgentNotFound | Code::ProviderNotFound => whole,
        Code::Forbidden
        | Code::ProviderError
        | Code::ProviderInvalidResponse
        | Code::ProviderAuthFailed
        | Code::ProviderRateLimited
        | Code::ProviderUnavailable
        | Code::ProviderTimeout
        | Code::NotCached => whole,
    }
}

struct Description<'c> {
    samples: Samples<'c>,
    /// Answers that several operations share, by name.
    responses: BTreeMap<String, Value>,
    /// Header fields that any answer has.
    headers: BTreeSet<String>,
}

impl Description<'_> {
    fn operation(&mut self, endpoint: &Endpoint, head: bool) -> Value {
        let tag = match endpoint.answers {
            _ if head => HEAD,
            Answers::Providers => PROVIDERS,
            answers if answers.are_public() => DOCUMENTATION,
            _ => SESSIONS,
        };
        let name = endpoint.operation;
        let mut operation = json!({
            "operationId": if head { format!("{name}Head") } else { name.to_owned() },
            "summary": endpoint.summary,
            "description": endpoint.about,
            "tags": [tag],
            "parameters": self.parameters(endpoint),
            "responses": self.responses(endpoint, head),
        });
        if endpoint.answers.are_public() {
            operation["security"] = json!([]);
        }
        operation
    }

    fn parameters(&self, endpoint: &Endpoint) -> Vec<Value> {
        let mut all: Vec<Value> =
            endpoint.parameters.iter().map(|parameter| self.parameter(endpoint, parameter)).collect();
        let mut header = |name: &str| all.push(json!({ "$ref": format!("#/components/parameters/{name}") }));
        if endpoint.answers == Answers::Events {
            header("lastEventId");
        } else {
            header("ifNoneMatch");
        }
        if endpoint.answers.come_from_providers() {
            header("cacheControl");
        }
        header("requestId");
        all
    }

    fn parameter(&self, endpoint: &Endpoint, parameter: &Parameter) -> Value {
        let mut schema = self.schema(endpoint, parameter);
        let path = parameter.stands == Stands::Path;
        let required = path || parameter.stands == Stands::Required;
        let mut whole = json!({
            "name": parameter.name,
            "in": if path { "path" } else { "query" },
            "required": required,
            "description": parameter.about,
        });
        let several = matches!(parameter.stands, Stands::Repeated | Stands::Required);
        if several {
            let mut items =
                json!({ "type": "array", "items": schema, "uniqueItems": !required, "maxItems": MAX_SOURCES });
            if required {
                items["minItems"] = 1.into();
                items["maxItems"] = crate::endpoints::MAX_BATCH.into();
            }
            schema = items;
            (whole["style"], whole["explode"]) = ("form".into(), true.into());
        } else if parameter.takes == Takes::Fields {
            (whole["style"], whole["explode"]) = ("form".into(), false.into());
        }
        let shown = self.samples.ids(parameter.takes, endpoint.answers == Answers::Events);
        if required && several {
            let all: Vec<String> = shown.into_iter().map(|(_, id)| id).collect();
            whole["example"] = all.into();
        } else if required && !shown.is_empty() {
            let each = shown.into_iter().map(|(provider, id)| (provider.to_owned(), json!({ "value": id })));
            whole["examples"] = each.collect::<Map<_, _>>().into();
        } else if required && !parameter.example.is_empty() {
            whole["example"] = parameter.example.into();
        } else if let Some(example) = self.example(endpoint, parameter) {
            // Not the parameter's own: a page to try requests from would send them all, filters that exclude each other among them.
            schema["examples"] = json!([example]);
        }
        whole["schema"] = schema;
        whole
    }

    /// What may stand in a parameter.
    fn schema(&self, endpoint: &Endpoint, parameter: &Parameter) -> Value {
        match parameter.takes {
            Takes::Session | Takes::OwnSession | Takes::OwnAgent | Takes::Agent => {
                self.samples.id_schema(parameter.takes)
            }
            Takes::AnyId => json!({ "type": "string" }),
            Takes::Name if endpoint.answers == Answers::Page && parameter.stands == Stands::Repeated => {
                json!({ "type": "string", "enum": self.samples.names(|_| true) })
            }
            // Where there are agents in the path, a provider without any is not asked for them.
            Takes::Name => json!({ "type": "string", "enum": self.samples.names(|provider| provider.has_agents) }),
            Takes::Limit => json!({ "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT }),
            Takes::Token => json!({ "type": "string", "minLength": 1 }),
            Takes::Status => json!({ "type": "string", "enum": Status::ALL.map(Status::as_str) }),
            Takes::Flag => json!({ "type": "boolean" }),
            Takes::Time => json!({ "type": "string", "format": "date-time" }),
            Takes::Fields => {
                json!({ "type": "array", "items": { "type": "string", "enum": fields::names() }, "minItems": 1 })
            }
            Takes::Word(words) => json!({ "type": "string", "enum": words }),
        }
    }

    /// One that would do for an optional parameter.
    fn example(&self, endpoint: &Endpoint, parameter: &Parameter) -> Option<Value> {
        let text = parameter.example;
        Some(match parameter.takes {
            Takes::Limit => text.parse::<u32>().ok()?.into(),
            Takes::Flag => (text == "true").into(),
            Takes::Fields => text.split(',').collect::<Vec<_>>().into(),
            Takes::Agent => {
                self.samples.ids(Takes::Agent, false).into_iter().map(|(_, id)| id).collect::<Vec<_>>().into()
            }
            Takes::Name if parameter.stands == Stands::Repeated => {
                self.samples.names(|provider| !provider.has_agents).into()
            }
            Takes::Name if endpoint.answers != Answers::Page || parameter.stands == Stands::Query => {
                (*self.samples.names(|provider| provider.has_agents).first()?).into()
            }
            _ if text.is_empty() => return None,
            _ => text.into(),
        })
    }

    fn responses(&mut self, endpoint: &Endpoint, head: bool) -> Value {
        let mut all = Map::new();
        all.insert("200".into(), self.success(endpoint, head));
        if endpoint.answers == Answers::Events {
            let about = "The session has ended, and its last state is the one of `Last-Event-ID`: there is nothing to come back for.";
            let headers = self.headers(&[
                "X-Request-Id.always",
                "Cache-Control.always",
                "Vary.always",
                "RateLimit-Policy",
                "RateLimit",
            ]);
            all.insert("204".into(), json!({ "description": about, "headers": headers }));
        } else {
            let mut headers = self.headers(&["ETag.always", "X-Request-Id.always", "Cache-Control.always"]);
            if endpoint.answers.come_from_providers() {
                let more =
                    self.headers(&["Cache-Status.always", "Age", "Vary.always", "RateLimit-Policy", "RateLimit"]);
                merge(&mut headers, more);
            }
            all.insert(
                "304".into(),
                json!({ "description": "The client has it already (`If-None-Match`).", "headers": headers }),
            );
        }
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for (code, status, ..) in TABLE.iter().filter(|row| can_end_in(endpoint, row.0)) {
            by_status.entry(*status).or_default().push(*code);
        }
        for (status, codes) in by_status {
            let name = self.problem(status, &codes, head);
            all.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{name}") }));
        }
        all.into()
    }

    /// What an operation answers when all is well.
    fn success(&mut self, endpoint: &Endpoint, head: bool) -> Value {
        let answers = endpoint.answers;
        let mut names = vec!["X-Request-Id.always", "Cache-Control.always", "X-Content-Type-Options.always"];
        if !answers.are_public() {
            names.extend(["Vary.always", "RateLimit-Policy", "RateLimit"]);
        }
        match answers {
            Answers::Events => {}
            Answers::Reader => {
                names.extend(["ETag.always", "Content-Security-Policy.always", "Referrer-Policy.always"]);
            }
            _ => names.push("ETag.always"),
        }
        if matches!(answers, Answers::Session | Answers::Page | Answers::Batch) {
            names.extend(["Cache-Status", "Age"]);
        }
        let mut response = json!({ "description": endpoint.summary, "headers": self.headers(&names) });
        if head {
            return response;
        }
        let text = json!({ "type": "string" });
        let (media, schema) = match answers {
            Answers::Session => ("application/json", schemas::reference("ShownSession")),
            Answers::Page => ("application/json", schemas::reference("Page")),
            Answers::Batch => ("application/json", schemas::reference("Batch")),
            Answers::Providers => ("application/json", schemas::reference("Providers")),
            Answers::Description => {
                let object = json!({ "type": "object" });
                let parts = json!({ "openapi": { "type": "string" }, "info": object, "paths": object });
                (
                    "application/json",
                    json!({ "type": "object", "properties": parts, "required": ["openapi", "info", "paths"] }),
                )
            }
            Answers::Events => ("text/event-stream", schemas::reference("Event")),
            Answers::Reader => ("text/html; charset=utf-8", text.clone()),
            Answers::ReaderFile => ("text/css; charset=utf-8", text.clone()),
        };
        response["content"][media] = json!({ "schema": schema, "example": self.shown(answers) });
        if answers == Answers::ReaderFile {
            response["content"]["text/javascript; charset=utf-8"] = json!({ "schema": text, "example": "…" });
        }
        if answers == Answers::Page {
            response["links"] = self.links(endpoint);
        }
        response
    }

    /// Where a page leads.
    fn links(&self, endpoint: &Endpoint) -> Value {
        json!({
            "nextPage": {
                "operationId": endpoint.operation,
                "parameters": { "page_token": "$response.body#/next_page_token" },
                "description": "The page after this, with the same filters.",
            },
        })
    }

    /// A body as it could come.
    fn shown(&self, answers: Answers) -> Value {
        let session = self.samples.session().cloned().unwrap_or_default();
        let id = session["id"].clone();
        match answers {
            Answers::Session => session,
            Answers::Page => {
                let source = json!({
                    "provider": session["provider"], "agent": session["agent"]["id"], "state": "fresh", "age_seconds": 0, "error": null,
                });
                json!({ "sessions": [session], "next_page_token": null, "total_count": 1, "partial": false, "sources": [source] })
            }
            Answers::Batch => {
                let mut error = example(Code::SessionNotFound);
                if let Some(error) = error.as_object_mut() {
                    error.remove("request_id");
                }
                json!({ "results": [{ "id": id, "session": session, "error": null }, { "id": "other", "session": null, "error": error }] })
            }
            Answers::Events => {
                json!({ "id": "\"2BDcFbMpJJ_73EG3r-c0Ig\"", "event": "session", "data": session.to_string() })
            }
            Answers::Providers => {
                let patterns = json!({ "agent": null, "session": "^[0-9]+$" });
                let ids = json!({ "recognise": patterns, "accept": patterns });
                json!({ "providers": [{
                    "name": session["provider"], "operations": ["get_session", "list_sessions"], "agents": false, "ids": ids,
                    "state": "ok", "retry_at": null,
                }] })
            }
            Answers::Description => json!({ "openapi": "3.1.0", "info": { "title": "Weir" }, "paths": {} }),
            Answers::Reader | Answers::ReaderFile => "…".into(),
        }
    }

    /// The name of the answer that tells of one of these problems.
    fn problem(&mut self, status: u16, codes: &[Code], head: bool) -> String {
        let words: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
        let name = format!("{status}-{}{}", words.join("-"), if head { "-head" } else { "" });
        if self.responses.contains_key(&name) {
            return name;
        }
        let causes: Vec<String> = codes.iter().map(|code| format!("`{}`: {}.", code.as_str(), code.cause())).collect();
        // Some are told to who sent what is no request, or not all of one.
        let read = !matches!(status, 400 | 405 | 408 | 431);
        let mut names = vec![if read { "X-Request-Id.always" } else { "X-Request-Id" }, "Cache-Control.always"];
        names.extend(["RateLimit-Policy", "RateLimit"]);
        match status {
            401 => names.push("WWW-Authenticate.always"),
            405 => names.push("Allow.always"),
            429 | 503 => names.push("Retry-After.always"),
            404 | 502 | 504 => names.push("Cache-Status"),
            _ => {}
        }
        let mut response = json!({ "description": causes.join(" "), "headers": self.headers(&names) });
        if !head {
            let own = json!({ "properties": { "status": { "const": status }, "code": { "enum": words } } });
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

    /// Header fields of an answer, by their components' names.
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

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}
