//! Checks a provider's examples: each provider response must map to the unified response beside it.
//!
//! An example that fails is a fault of the configuration.

use crate::base::json::ParsedJson;
use crate::base::model::{Show, Time};
use crate::base::operation::{Operation, PerOperation};
use crate::config::Example;
use crate::config::faults::{Faults, Location};
use crate::rules::mapping::Mapping;
use crate::rules::page_headers::PageHeaders;
use crate::rules::provider_body::{CompiledOperation, UnusableSession};
use serde_json::Value;
use std::sync::Arc;

/// The parts of a compiled provider that map an example.
pub(super) struct ExampleProvider<'p> {
    pub(super) name: &'p Arc<str>,
    pub(super) mapping: &'p Mapping,
    pub(super) operations: &'p PerOperation<CompiledOperation>,
}

/// Maps an example and compares the result. If the unified response has the page member of an operation, the example is
/// a response of that operation; otherwise it is one session.
pub(super) fn check(example: &Example, provider: &ExampleProvider<'_>, now: Time, faults: &mut Faults) {
    let (Some(native), Some(unified)) = (
        json(&example.native, &example.native_location, faults),
        json(&example.unified, &example.unified_location, faults).map(|unified| unified.value),
    ) else {
        return;
    };
    let operation = Operation::of_response(|member| unified.get(member).is_some());
    match map(&native, operation, provider, now) {
        Err(message) => faults.add(&example.native_location, message),
        Ok(mapped) => {
            if let Some(difference) = difference(&unified, &mapped, "$") {
                faults.add(&example.unified_location, difference);
            }
        }
    }
}

fn json<'t>(text: &'t str, location: &Location, faults: &mut Faults) -> Option<ParsedJson<'t>> {
    let parsed = ParsedJson::of(text.as_bytes());
    if let Err(error) = &parsed {
        let location =
            Location { file: location.file.clone(), line: error.line().max(1), column: error.column().max(1) };
        faults.add(&location, format!("not JSON: {error}"));
    }
    parsed.ok()
}

fn map(
    native: &ParsedJson<'_>,
    operation: Operation,
    provider: &ExampleProvider<'_>,
    now: Time,
) -> Result<Value, String> {
    let compiled = provider.operations.get(operation).ok_or_else(|| {
        format!(
            "this example is a response of {}, but the provider file does not have that operation",
            operation.name()
        )
    })?;
    let parsed = compiled
        .read(provider.name, provider.mapping, native, &PageHeaders::default(), now)
        .map_err(|error| error.to_string())?;
    if let Some(UnusableSession { position, fault }) = parsed.unusable.first() {
        return Err(format!("session {position} of the list: {fault}"));
    }
    let view = parsed.view(provider.mapping, Show::default());
    let sessions = view.items.iter().map(|item| serde_json::from_slice(&view.body[item.start..item.end]));
    let sessions: Vec<Value> = sessions.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    match parsed.page.zip(operation.page_member()) {
        None => Ok(sessions.into_iter().next().unwrap_or_default()),
        Some((page, member)) => Ok(serde_json::json!({
            member: sessions,
            "next_page_token": compiled.pages().and_then(|pages| pages.after_first(&page.facts)),
            "total_count": page.facts.total,
        })),
    }
}

/// Describes the first difference of two values.
fn difference(expected: &Value, mapped: &Value, path: &str) -> Option<String> {
    match (expected, mapped) {
        (Value::Object(a), Value::Object(b)) => {
            let missing = b
                .keys()
                .find(|key| !a.contains_key(*key))
                .map(|key| format!("{path}.{key} is missing; the mapping gives {}", b[key]));
            a.iter()
                .find_map(|(key, value)| match b.get(key) {
                    Some(other) => difference(value, other, &format!("{path}.{key}")),
                    None => Some(format!("the mapping gives no {path}.{key}")),
                })
                .or(missing)
                .or_else(|| {
                    (!a.keys().eq(b.keys()))
                        .then(|| format!("the fields of {path} are not in the order that the mapping gives"))
                })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b, &format!("{path}[{i}]")))
        }
        _ if expected == mapped => None,
        _ => Some(format!("{path} is {expected}; the mapping gives {mapped}")),
    }
}
