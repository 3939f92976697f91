//! Describes the JSON bodies of the API: sessions, pages, batches, events, providers and problems.
//!
//! The fields of a session come from `base::model`, the codes of a problem from `base::problem`.

use super::samples::Samples;
use crate::base::endpoints::MAX_BATCH;
use crate::base::model::{FIELDS, Field, FieldType, MODALITIES, Status};
use crate::base::operation::Operation;
use crate::base::problem::TABLE;
use crate::rules::fields;
use crate::rules::mapping::REQUIRED;
use crate::rules::provider_body::{UNREADABLE_TIME, UNUSABLE_SESSION};
use serde_json::{Map, Value, json};

/// Returns a reference to a schema.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Returns all schemas by name.
pub(super) fn all(samples: &Samples<'_>) -> Value {
    let properties = session(samples);
    let every: Vec<&str> = fields::names();
    let example = samples.session().cloned().unwrap_or(Value::Null);
    json!({
        "Session": {
            "type": "object",
            "description": "A session. Every field is present; a field that the provider does not give is `null` (`metadata`: `{}`).",
            "properties": properties.clone(),
            "required": every,
            "additionalProperties": false,
            "examples": [example],
        },
        "PartOfSession": {
            "type": "object",
            "description": "The fields of a session that `fields` names, and `native` if it is included. The others are absent; their defaults are what a session has if the provider does not give the field.",
            "properties": with_defaults(properties),
            "additionalProperties": false,
        },
        "ShownSession": { "anyOf": [reference("Session"), reference("PartOfSession")] },
        "Page": page(),
        "Source": source(samples),
        "Batch": batch(),
        "Event": event(),
        "WatchToken": watch_token(),
        "Providers": providers(samples),
        "Problem": problem(true),
        "PartialProblem": problem(false),
    })
}

fn nullable(mut schema: Value) -> Value {
    let kind = schema["type"].take();
    schema["type"] = json!([kind, "null"]);
    schema
}

fn field_schema(field_type: FieldType) -> Value {
    match field_type {
        FieldType::Id => nullable(json!({ "type": "string", "minLength": 1 })),
        FieldType::Text => nullable(json!({ "type": "string" })),
        FieldType::Status => json!({ "type": "string", "enum": Status::ALL.map(Status::as_str) }),
        FieldType::Modality => json!({ "type": "string", "enum": MODALITIES }),
        FieldType::Time => {
            let description = "RFC 3339 in UTC, with the fractional digits that the provider sent.";
            nullable(json!({ "type": "string", "format": "date-time", "description": description }))
        }
        FieldType::Number => nullable(json!({ "type": "number", "minimum": 0 })),
        FieldType::Count => nullable(json!({ "type": "integer", "minimum": 0 })),
        FieldType::Object => {
            let mut schema = any_object();
            schema["description"] = "What the customer stored with the session, unchanged.".into();
            schema
        }
    }
}

fn session(samples: &Samples<'_>) -> Map<String, Value> {
    let mut properties = Map::new();
    let id = "The unified id: `provider:agent:session`, or `provider:session` for a provider without agents.";
    properties.insert("id".into(), json!({ "type": "string", "description": id }));
    let names = samples.names(|_| true);
    properties.insert("provider".into(), json!({ "type": "string", "enum": names }));
    for (field, group, member, field_type) in FIELDS {
        let mut schema = field_schema(field_type);
        if field == Field::ProviderSessionId {
            schema = json!({ "type": "string", "minLength": 1, "description": "The provider's own id." });
        }
        if field == Field::ConnectionToken {
            schema["description"] = "Present only for clients with `reveal_secrets`.".into();
        }
        let Some(group) = group else {
            properties.insert(member.into(), schema);
            continue;
        };
        let object = properties.entry(group).or_insert_with(
            || json!({ "type": "object", "properties": {}, "required": [], "additionalProperties": false }),
        );
        object["properties"][member] = schema;
        if let Some(required) = object["required"].as_array_mut().filter(|_| field != Field::ConnectionToken) {
            required.push(member.into());
        }
    }
    let native = "The provider's own object, with `include=native`. Members that are marked as secret are left out.";
    let mut object = any_object();
    object["description"] = native.into();
    properties.insert("native".into(), object);
    properties
}

/// Gives each field a default. Without one, generated types let every field of a session be undefined, because a session
/// is a `Session` or a `PartOfSession`.
fn with_defaults(mut properties: Map<String, Value>) -> Map<String, Value> {
    for (name, schema) in &mut properties {
        schema["default"] = match name.as_str() {
            "native" => continue,
            "status" => Status::Unknown.as_str().into(),
            "modality" => MODALITIES.last().copied().into(),
            "metadata" => json!({}),
            // An enum of the providers' names has no name for a provider that is not shown.
            "id" | "provider" | "provider_session_id" => {
                schema["type"] = "string".into();
                for rule in ["enum", "minLength"] {
                    schema.as_object_mut().map(|schema| schema.remove(rule));
                }
                "".into()
            }
            _ if schema["required"].is_array() => {
                let members = schema["required"].as_array().into_iter().flatten();
                members.filter_map(|member| Some((member.as_str()?.to_owned(), Value::Null))).collect()
            }
            _ => Value::Null,
        };
    }
    properties
}

/// Returns the schema of an object with any members. Without `additionalProperties`, generators of clients make a type
/// that can have no member.
pub(super) fn any_object() -> Value {
    json!({ "type": "object", "additionalProperties": true })
}

/// Returns the schema of an object that has all these members and no others.
fn closed(properties: Value) -> Value {
    let names: Vec<String> = properties.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
    let mut object = json!({ "type": "object", "required": names, "additionalProperties": false });
    object["properties"] = properties;
    object
}

fn page() -> Value {
    let partial = "Whether a source failed. Its missing sessions follow on later pages.";
    closed(json!({
        "sessions": { "type": "array", "items": reference("ShownSession") },
        "next_page_token": { "type": ["string", "null"], "description": "The token of the next page; `null` on the last one." },
        "total_count": { "type": ["integer", "null"], "minimum": 0, "description": "The number of sessions in all sources; `null` if it is not known." },
        "partial": { "type": "boolean", "description": partial },
        "sources": { "type": "array", "items": reference("Source") },
    }))
}

/// The values of `sources[].state`.
pub(super) const SOURCE_STATES: [&str; 6] = ["fresh", "cached", "stale", "failed", "rate_limited", "exhausted"];

fn source(samples: &Samples<'_>) -> Value {
    let error = "The problem of a source that failed. The page still has the sessions that Weir read from it before.";
    let warnings = "What Weir could not read in the provider's pages of this response.";
    let is_named = |field: Field, kind: FieldType| kind == FieldType::Time || REQUIRED.contains(&field);
    let fields = FIELDS.iter().filter(|(field, _, _, kind)| is_named(*field, *kind));
    let fields: Vec<Value> = fields.map(|(field, ..)| field.name().into()).chain([Value::Null]).collect();
    let code = "`unreadable_time`: the sessions are in the list, without the field. `unusable_session`: the sessions are not in the list.";
    let field = "The field that cannot be read; `null` if it is the session as a whole.";
    let warning = closed(json!({
        "code": { "type": "string", "enum": [UNREADABLE_TIME, UNUSABLE_SESSION], "description": code },
        "field": { "type": ["string", "null"], "enum": fields, "description": field },
        "sessions": { "type": "integer", "minimum": 1, "description": "The number of these sessions." },
    }));
    closed(json!({
        "provider": { "type": "string", "enum": samples.names(|_| true) },
        "agent": { "type": ["string", "null"] },
        "state": { "type": "string", "enum": SOURCE_STATES },
        "age_seconds": { "type": ["integer", "null"], "minimum": 0 },
        "warnings": { "type": "array", "items": warning, "description": warnings },
        "error": { "anyOf": [reference("PartialProblem"), { "type": "null" }], "description": error },
    }))
}

fn batch() -> Value {
    let result = closed(json!({
        "id": { "type": "string", "description": "The id as in the request." },
        "session": { "anyOf": [reference("ShownSession"), { "type": "null" }] },
        "error": { "anyOf": [reference("PartialProblem"), { "type": "null" }] },
    }));
    closed(json!({ "results": { "type": "array", "items": result, "minItems": 1, "maxItems": MAX_BATCH } }))
}

/// Describes one server-sent event. The comments between events, which keep the connection alive, are not described.
fn event() -> Value {
    let data = json!({ "anyOf": [reference("ShownSession"), reference("PartialProblem")] });
    json!({
        "type": "object",
        "description": "One server-sent event. The stream sends one after the other until the session has ended.",
        "properties": {
            "id": { "type": "string", "description": "The entity tag of the session, for `Last-Event-ID`." },
            "event": { "type": "string", "enum": ["session", "problem"] },
            "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": data },
        },
        "required": ["event", "data"],
    })
}

fn watch_token() -> Value {
    closed(json!({
        "watch_token": { "type": "string", "description": "The token. It is as secret as the session." },
        "expires_at": { "type": "string", "format": "date-time", "description": "From then on, no watch can begin with the token." },
        "url": { "type": "string", "format": "uri-reference", "description": "The path and query of the watch, with the token." },
    }))
}

fn providers(samples: &Samples<'_>) -> Value {
    let patterns =
        closed(json!({ "agent": { "type": ["string", "null"] }, "session": { "type": ["string", "null"] } }));
    let row = closed(json!({
        "name": { "type": "string", "enum": samples.names(|_| true) },
        "operations": { "type": "array", "items": { "type": "string", "enum": Operation::all().map(Operation::name).collect::<Vec<_>>() } },
        "agents": { "type": "boolean", "description": "Whether the provider has agents." },
        "ids": closed(json!({ "recognise": patterns.clone(), "accept": patterns })),
        "state": { "type": "string", "enum": ["ok", "degraded", "down"] },
        "retry_at": { "type": ["string", "null"], "format": "date-time" },
    }));
    closed(json!({ "providers": { "type": "array", "items": row } }))
}

/// Describes a problem (RFC 9457). Problems inside a list, a batch or an event have no request id.
fn problem(with_request_id: bool) -> Value {
    let codes: Vec<&str> =
        TABLE.iter().map(|row| row.2).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let mut schema = closed(json!({
        "type": { "type": "string", "format": "uri", "description": "`about:blank`, or one of IANA's problem types." },
        "title": { "type": "string" },
        "status": { "type": "integer", "minimum": 400, "maximum": 599 },
        "code": { "type": "string", "enum": codes },
        "detail": { "type": "string", "description": "What is wrong in this request, and what would be right. For people; may change." },
        "provider": { "type": ["string", "null"], "description": "The provider concerned, or `null`." },
        "retry_after": { "type": ["integer", "null"], "minimum": 1, "description": "Seconds until a new attempt makes sense, or `null`; as in `Retry-After`." },
    }));
    let policies = json!({ "type": "array", "items": { "type": "string" }, "description": "On 429: the names of the rate-limit policies that refused the request." });
    schema["properties"]["violated-policies"] = policies;
    if with_request_id {
        schema["properties"]["request_id"] = json!({ "type": "string", "description": "As in `X-Request-Id`." });
    }
    schema
}
