//! A provider's own tests: what its examples say they map to is what they map to.
//!
//! A room of its own because a config that fails its own examples is refused like one with a bad key.

use super::snapshot::Provider;
use crate::config::Example;
use crate::config::faults::{Faults, Place};
use crate::json;
use crate::model::{Show, Time};
use serde_json::Value;

/// Maps an example and compares. Whether it is a list is told by its unified side.
pub(super) fn check(example: &Example, provider: &Provider, now: Time, faults: &mut Faults) {
    let (Some(native), Some(unified)) =
        (json(&example.native, &example.native_place, faults), json(&example.unified, &example.unified_place, faults))
    else {
        return;
    };
    match mapped(&native, unified.get("sessions").is_some(), provider, now) {
        Err(message) => faults.add(&example.native_place, message),
        Ok(mapped) => {
            if let Some(difference) = difference(&unified, &mapped, "$") {
                faults.add(&example.unified_place, difference);
            }
        }
    }
}

fn json(text: &str, place: &Place, faults: &mut Faults) -> Option<Value> {
    let parsed = json::parse(text.as_bytes());
    if let Err(error) = &parsed {
        let place = Place { file: place.file.clone(), line: error.line().max(1), column: error.column().max(1) };
        faults.add(&place, format!("not JSON: {error}"));
    }
    parsed.ok()
}

fn mapped(native: &Value, list: bool, provider: &Provider, now: Time) -> Result<Value, String> {
    let operation = if list { &provider.list_sessions } else { &provider.get_session };
    let operation = operation.as_ref().ok_or("the provider has no operation for this example")?;
    let reading = operation
        .read(&provider.name, &provider.mapping, native, now)
        .map_err(|unreadable| unreadable.problem.detail)?;
    let view = reading.view(&provider.mapping, Show::default());
    let sessions = view.items.iter().map(|item| serde_json::from_slice(&view.body[item.start..item.end]));
    let sessions: Vec<Value> = sessions.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    match reading.page {
        None => Ok(sessions.into_iter().next().unwrap_or_default()),
        Some(page) => Ok(serde_json::json!({
            "sessions": sessions, "next_page_token": page.next, "total_count": page.total,
        })),
    }
}

/// The first place where two values differ, in words.
fn difference(wanted: &Value, got: &Value, at: &str) -> Option<String> {
    match (wanted, got) {
        (Value::Object(a), Value::Object(b)) => {
            let missing = b
                .keys()
                .find(|key| !a.contains_key(*key))
                .map(|key| format!("{at}.{key} is missing here; it maps to {}", b[key]));
            a.iter()
                .find_map(|(key, value)| match b.get(key) {
                    Some(other) => difference(value, other, &format!("{at}.{key}")),
                    None => Some(format!("{at}.{key} stands here; the mapping gives no such field")),
                })
                .or(missing)
                .or_else(|| {
                    (!a.keys().eq(b.keys()))
                        .then(|| format!("the fields of {at} are in another order than the mapping gives them"))
                })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b, &format!("{at}[{i}]")))
        }
        _ if wanted == got => None,
        _ => Some(format!("{at} is {wanted} here; it maps to {got}")),
    }
}
