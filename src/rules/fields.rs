//! Parses `fields=` and copies only the selected fields from a session's JSON.
//!
//! The cache stores the whole JSON of a session once for all clients. Each response copies its fields from there.

use crate::base::model::{FIELDS, write_json};
use crate::base::typo::unknown;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Returns the names of a session's top-level fields, in the order of its JSON. `native` is not one of them: `include`
/// selects it.
#[must_use]
pub(crate) fn names() -> Vec<&'static str> {
    let mut names = vec!["id", "provider"];
    for (_, group, member, _) in FIELDS {
        let name = group.unwrap_or(member);
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    names
}

/// A name in `fields=` that is not a field of sessions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fields: {hint}; separate names with commas")]
pub struct UnknownField {
    /// Says that the name is unknown, and suggests a similar one.
    pub hint: String,
}

/// A stored session that is not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored session is not a JSON object")]
pub struct UnreadableSession;

/// The selected fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldSelection(Vec<&'static str>);

impl FieldSelection {
    /// Selects the fields with these names. A name may occur several times.
    ///
    /// # Errors
    /// A name is empty or not a field of sessions.
    pub fn of<'n>(selection: impl IntoIterator<Item = &'n str>) -> Result<Self, UnknownField> {
        let (known, mut selected) = (names(), Vec::new());
        for name in selection {
            let found = known.iter().find(|known| **known == name);
            let found = found.ok_or_else(|| UnknownField { hint: unknown("field", name, known.iter().copied()) })?;
            if !selected.contains(found) {
                selected.push(*found);
            }
        }
        Ok(Self(selected))
    }

    /// Appends a session's JSON with only the selected fields, in their original order. `native` is always kept.
    ///
    /// # Errors
    /// `session` is not a JSON object.
    pub fn write_selected(&self, session: &[u8], out: &mut Vec<u8>) -> Result<(), UnreadableSession> {
        let parsed: Result<HashMap<&str, &RawValue>, _> = serde_json::from_slice(session);
        let members = parsed.map_err(|_| UnreadableSession)?;
        let mut separator = b'{';
        for name in names().into_iter().chain(["native"]) {
            if let Some(value) = members.get(name).filter(|_| name == "native" || self.0.contains(&name)) {
                out.push(separator);
                write_json(out, name);
                out.push(b':');
                out.extend_from_slice(value.get().as_bytes());
                separator = b',';
            }
        }
        if separator == b'{' {
            out.push(b'{');
        }
        out.push(b'}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_documented_fields() {
        let all = "id provider provider_session_id agent modality title description status created_at updated_at started_at \
                   ended_at expires_at duration_seconds message_count connection metadata";
        assert_eq!(names().join(" "), all);
    }

    #[test]
    fn selected_fields_are_unchanged_and_in_the_order_of_the_session() {
        let session = br#"{"id":"p:s","provider":"p","agent":{"id":null,"name":"a \"}{\""},"status":"active","metadata":{"n":1.50,"z":1e+3},"native":{"x":[1]}}"#;
        let select = |fields: &str| {
            let mut out = Vec::new();
            FieldSelection::of(fields.split(',')).unwrap().write_selected(session, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(select("status,id,status"), r#"{"id":"p:s","status":"active","native":{"x":[1]}}"#);
        assert_eq!(
            select("metadata,agent"),
            r#"{"agent":{"id":null,"name":"a \"}{\""},"metadata":{"n":1.50,"z":1e+3},"native":{"x":[1]}}"#
        );
        for wrong in ["", "id,", "id, status", "agent.id", "native", "Id"] {
            assert!(FieldSelection::of(wrong.split(',')).is_err(), "{wrong:?}");
        }
        assert!(FieldSelection::of(["staus"]).unwrap_err().to_string().contains("did you mean \"status\""));
    }
}
