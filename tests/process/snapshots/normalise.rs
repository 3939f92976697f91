//! Removes from the output of a program what differs from run to run, and text for people.

use crate::support::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Response headers whose value is the same in each run.
const FIXED_HEADERS: &[&str] =
    &["content-type", "cache-control", "cache-status", "vary", "allow", "retry-after", "ratelimit-policy", "location"];

/// Replaces what differs from run to run or is text for people.
pub fn normalise(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members.iter_mut() {
                match (name.as_str(), &*value) {
                    (
                        "detail" | "message" | "errorDescription" | "description" | "summary" | "note",
                        Value::String(_),
                    ) => *value = "TEXT".into(),
                    (
                        "next_page_token" | "watch_token" | "request_id" | "revision" | "version" | "errorInstanceId",
                        Value::String(_),
                    ) => {
                        *value = "VARIES".into();
                    }
                    ("age_seconds" | "uptime_seconds", Value::Number(_)) => *value = 0.into(),
                    (_, Value::String(text)) if is_of_this_run(text) => *value = "TIME".into(),
                    ("url", Value::String(text)) if text.contains("watch_token=") => {
                        *value = format!("{}=VARIES", text.split('=').next().unwrap()).into();
                    }
                    _ => normalise(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        _ => {}
    }
}

/// Like `normalise`, for a body or an event: also replaces durations, and the state of rate limits.
pub fn normalise_body(value: &mut Value) {
    normalise(value);
    replace_durations(value);
}

/// Returns whether a response with this `Cache-Status` always has an `Age`: it comes from the cache. Any other one has an
/// `Age` only if it took a second or more.
fn has_fixed_age(cache_status: &str) -> bool {
    cache_status.starts_with("weir; hit") || cache_status.ends_with("detail=stale-if-error")
}

fn replace_durations(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let is_running = members.get("status").is_some_and(|status| status == "active");
            if members.get("cache-status").and_then(Value::as_str).is_some_and(|status| !has_fixed_age(status)) {
                members.shift_remove("age");
            }
            for (name, value) in members.iter_mut() {
                match (name.as_str(), &*value) {
                    // The duration of a running session grows.
                    ("duration_seconds", Value::Number(_)) if is_running => *value = 0.into(),
                    ("retry_after" | "fresh_for_seconds" | "left", Value::Number(_)) => *value = 0.into(),
                    (name, Value::Number(_)) if name.ends_with("_ms") => *value = 0.into(),
                    ("x-request-id" | "date" | "age" | "retry-after" | "etag" | "content-length", Value::String(_)) => {
                        *value = "VARIES".into();
                    }
                    ("why" | "way", Value::String(_)) => *value = "TEXT".into(),
                    (_, Value::String(text)) if text.contains("ttl=") || text.contains(";t=") => {
                        *value = without_times(text).into();
                    }
                    _ => replace_durations(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(replace_durations),
        _ => {}
    }
}

/// Returns whether a text is a time of this run: the shipped examples have only times in 2024 and 2025.
fn is_of_this_run(text: &str) -> bool {
    let is_time = text.len() >= 20 && text.as_bytes()[4] == b'-' && text.as_bytes()[10] == b'T';
    is_time && !text.starts_with("2024") && !text.starts_with("2025")
}

/// Removes text for people from the API description.
pub fn without_text(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, value| !(matches!(name.as_str(), "description" | "summary") && value.is_string()));
            members.values_mut().for_each(without_text);
        }
        Value::Array(items) => items.iter_mut().for_each(without_text),
        _ => {}
    }
}

/// Replaces each `$ref` of a JSON Schema by its definition: the names of the definitions have no meaning outside it.
pub fn without_references(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let definitions = schema.as_object_mut().and_then(|members| members.shift_remove("$defs")).unwrap_or_default();
    resolve(&schema, &definitions)
}

fn resolve(value: &Value, definitions: &Value) -> Value {
    if let Some(name) = value["$ref"].as_str().and_then(|target| target.strip_prefix("#/$defs/")) {
        return resolve(&definitions[name], definitions);
    }
    match value {
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), resolve(value, definitions))).collect()
        }
        Value::Array(items) => items.iter().map(|item| resolve(item, definitions)).collect(),
        _ => value.clone(),
    }
}

/// Returns what programs read of a response.
pub fn shape(response: &Response) -> Value {
    shape_of(response, &[])
}

/// Like `shape`; replaces these addresses, which differ from run to run.
pub fn shape_of(response: &Response, addresses: &[SocketAddr]) -> Value {
    let mut names: BTreeSet<String> = response.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    if !response.header("cache-status").is_some_and(has_fixed_age) {
        names.remove("age");
    }
    let headers = FIXED_HEADERS.iter().filter_map(|name| Some((*name, response.header(name)?)));
    let fixed = |(name, value): (&str, &str)| {
        let value = if name == "retry-after" { "VARIES".to_owned() } else { without_times(value) };
        (name.to_owned(), Value::from(value))
    };
    let headers: Map<String, Value> = headers.map(fixed).collect();
    let body = without_addresses(&String::from_utf8_lossy(&response.body), addresses);
    let mut body = serde_json::from_str(&body).unwrap_or_else(|_| json!(response.body.len()));
    normalise_body(&mut body);
    json!({ "status": response.status, "header_names": names, "headers": headers, "body": body })
}

/// Replaces the seconds of `ttl=` in `Cache-Status`, and the requests and seconds that are left in `RateLimit`.
fn without_times(value: &str) -> String {
    ["ttl=", ";r=", ";t="].iter().fold(value.to_owned(), |value, name| match value.split_once(name) {
        Some((before, rest)) => {
            format!("{before}{name}N{}", rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-'))
        }
        None => value,
    })
}

fn without_addresses(text: &str, addresses: &[SocketAddr]) -> String {
    addresses.iter().fold(text.to_owned(), |text, address| text.replace(&address.to_string(), "ADDRESS"))
}

/// The metric families with their types, and the series with their labels. Values and histogram bounds are left out.
pub fn metrics(text: &str, addresses: &[SocketAddr]) -> Value {
    let own = |line: &&str| line.contains("weir_");
    let types: BTreeSet<&str> = text.lines().filter(own).filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let series: BTreeSet<String> = text
        .lines()
        .filter(own)
        .filter(|line| !line.starts_with('#') && !line.contains("le=\""))
        .map(|line| {
            let series = without_addresses(line.rsplit_once(' ').unwrap().0, addresses);
            // Labels that name a build or a configuration differ from run to run.
            ["revision", "version"].iter().fold(series, |series, label| {
                match series.split_once(&format!("{label}=\"")) {
                    Some((before, rest)) => format!("{before}{label}=\"VARIES{}", &rest[rest.find('"').unwrap()..]),
                    None => series,
                }
            })
        })
        .collect();
    json!({ "types": types, "series": series })
}

/// Keeps the member names of a document and drops its values.
pub fn names_only(value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), names_only(value))).collect(),
        Value::Array(items) => items.first().map(names_only).into_iter().collect(),
        _ => Value::Null,
    }
}

/// Keeps the member names of a document and replaces its values by their types.
pub fn types_only(value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), types_only(value))).collect(),
        Value::Array(items) => items.iter().map(types_only).collect(),
        Value::String(_) => "string".into(),
        Value::Number(number) if number.is_f64() => "fraction".into(),
        Value::Number(_) => "integer".into(),
        Value::Bool(_) => "boolean".into(),
        Value::Null => Value::Null,
    }
}
