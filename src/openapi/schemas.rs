//! What stands in the bodies: sessions as the model has them, and what they come in.
//!
//! Beside the description because it is all that is said about JSON; where a body's fields are known to the code as data, they are
//! read from there.

use super::samples::Samples;
use crate::endpoints::MAX_BATCH;
use crate::error::TABLE;
use crate::fields;
use crate::model::{FIELDS, Field, Kind, MODALITIES, Status};
use serde_json::{Map, Value, json};

/// A reference to one of them.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// All of them, by name.
pub(super) fn all(samples: &Samples<'_>) -> Value {
    let properties = session(samples);
    let every: Vec<&str> = fields::names();
    let example = samples.session().cloned().unwrap_or(Value::Null);
    json!({
        "Session": {
            "type": "object",
            "description": "A session. Every field is there; what its provider does not say is `null` (`metadata` is `{}`).",
            "properties": properties.clone(),
            "required": every,
            "additionalProperties": false,
            "examples": [example],
        },
        "PartOfSession": {
            "type": "object",
            "description": "The fields of a session that `fields` asked for, and `native` where it was included.",
            "properties": properties,
            "additionalProperties": false,
        },
        "ShownSession": { "anyOf": [reference("Session"), reference("PartOfSession")] },
        "Page": page(),
        "Source": source(samples),
        "Batch": batch(),
        "Event": event(),
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

fn leaf(kind: Kind) -> Value {
    match kind {
        Kind::Id => nullable(json!({ "type": "string", "minLength": 1 })),
        Kind::Text => nullable(json!({ "type": "string" })),
        Kind::Status => json!({ "type": "string", "enum": Status::ALL.map(Status::as_str) }),
        Kind::Modality => json!({ "type": "string", "enum": MODALITIES }),
        Kind::Time => {
            let about = "RFC 3339 in UTC, fractional digits as the provider sent them.";
            nullable(json!({ "type": "string", "format": "date-time", "description": about }))
        }
        Kind::Number => nullable(json!({ "type": "number", "minimum": 0 })),
        Kind::Count => nullable(json!({ "type": "integer", "minimum": 0 })),
        Kind::Object => json!({ "type": "object", "description": "The provider's free-form object, untouched." }),
    }
}

fn session(samples: &Samples<'_>) -> Map<String, Value> {
    let mut properties = Map::new();
    let id = "Unified: `provider:agent:session`, or `provider:session` where the provider has no agents.";
    properties.insert("id".into(), json!({ "type": "string", "description": id }));
    let names = samples.names(|_| true);
    properties.insert("provider".into(), json!({ "type": "string", "enum": names }));
    for (field, group, member, kind) in FIELDS {
        let mut schema = leaf(kind);
        if field == Field::ProviderSessionId {
            schema = json!({ "type": "string", "minLength": 1, "description": "The provider's own id." });
        }
        if field == Field::ConnectionToken {
            schema["description"] = "There only for clients that may see secrets.".into();
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
    let native = "The provider's own object, with `include=native`; members marked secret are cut.";
    properties.insert("native".into(), json!({ "type": "object", "description": native }));
    properties
}

/// An object that has these members and no others.
fn closed(properties: Value) -> Value {
    let names: Vec<String> = properties.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
    let mut object = json!({ "type": "object", "required": names, "additionalProperties": false });
    object["properties"] = properties;
    object
}

fn page() -> Value {
    let partial = "A source failed: what it has is missing here, and comes on a later page.";
    closed(json!({
        "sessions": { "type": "array", "items": reference("ShownSession") },
        "next_page_token": { "type": ["string", "null"], "description": "For the page after this; `null` on the last one." },
        "total_count": { "type": ["integer", "null"], "minimum": 0, "description": "`null` where it is not known." },
        "partial": { "type": "boolean", "description": partial },
        "sources": { "type": "array", "items": reference("Source") },
    }))
}

/// The words of `sources[].state`.
pub(super) const SOURCE_STATES: [&str; 6] = ["fresh", "cached", "stale", "failed", "rate_limited", "exhausted"];

fn source(samples: &Samples<'_>) -> Value {
    let error = "What failed; what is there already came all the same.";
    closed(json!({
        "provider": { "type": "string", "enum": samples.names(|_| true) },
        "agent": { "type": ["string", "null"] },
        "state": { "type": "string", "enum": SOURCE_STATES },
        "age_seconds": { "type": ["integer", "null"], "minimum": 0 },
        "error": { "anyOf": [reference("PartialProblem"), { "type": "null" }], "description": error },
    }))
}

fn batch() -> Value {
    let result = closed(json!({
        "id": { "type": "string", "description": "As asked." },
        "session": { "anyOf": [reference("ShownSession"), { "type": "null" }] },
        "error": { "anyOf": [reference("PartialProblem"), { "type": "null" }] },
    }));
    closed(json!({ "results": { "type": "array", "items": result, "minItems": 1, "maxItems": MAX_BATCH } }))
}

/// Each of the server-sent events; comments between them keep the connection alive.
fn event() -> Value {
    let data = json!({ "anyOf": [reference("ShownSession"), reference("PartialProblem")] });
    json!({
        "type": "object",
        "description": "One server-sent event. The stream is one after the other, until the session has ended.",
        "properties": {
            "id": { "type": "string", "description": "The entity tag of what is told, for `Last-Event-ID`." },
            "event": { "type": "string", "enum": ["session", "problem"] },
            "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": data },
        },
        "required": ["event", "data"],
    })
}

fn providers(samples: &Samples<'_>) -> Value {
    let patterns =
        closed(json!({ "agent": { "type": ["string", "null"] }, "session": { "type": ["string", "null"] } }));
    let row = closed(json!({
        "name": { "type": "string", "enum": samples.names(|_| true) },
        "operations": { "type": "array", "items": { "type": "string", "enum": ["get_session", "list_sessions"] } },
        "agents": { "type": "boolean", "description": "Whether its sessions belong to agents." },
        "ids": closed(json!({ "recognise": patterns.clone(), "accept": patterns })),
        "state": { "type": "string", "enum": ["ok", "degraded", "down"] },
        "retry_at": { "type": ["string", "null"], "format": "date-time" },
    }));
    closed(json!({ "providers": { "type": "array", "items": row } }))
}

/// RFC 9457. Inside a list or a batch it has no request id.
fn problem(whole: bool) -> Value {
    let codes: Vec<&str> =
        TABLE.iter().map(|row| row.2).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let mut schema = closed(json!({
        "type": { "type": "string", "format": "uri", "description": "`about:blank`, or one of IANA's problem types." },
        "title": { "type": "string" },
        "status": { "type": "integer", "minimum": 400, "maximum": 599 },
        "code": { "type": "string", "enum": codes },
        "detail": { "type": "string", "description": "What is wrong, and what would be right. For people." },
        "provider": { "type": ["string", "null"], "description": "The provider concerned." },
        "retry_after": { "type": ["integer", "null"], "minimum": 1, "description": "Seconds, as in `Retry-After`." },
    }));
    let policies = json!({ "type": "array", "items": { "type": "string" }, "description": "The client's policies that refused, on 429." });
    schema["properties"]["violated-policies"] = policies;
    if whole {
        schema["properties"]["request_id"] = json!({ "type": "string", "description": "As in `X-Request-Id`." });
    }
    schema
}
