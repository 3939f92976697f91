//! Which fields of a session are shown: `fields=id,status`.
//!
//! A room of its own because it cuts JSON that is already written: the one form that all clients share is made
//! once, and who wants less gets less of it. It knows no request.

use crate::config::decode::unknown;
use crate::error::{Outcome, Problem};
use crate::model::{FIELDS, write_json};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Names of a session's top-level fields, in the order of its JSON. `native` is not one: `include` asks for it.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let mut names = vec!["id", "provider"];
    for (_, group, member, _) in FIELDS {
        let name = group.unwrap_or(member);
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    names
}

/// The fields wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields(Vec<&'static str>);

impl Fields {
    /// Reads names with commas between.
    ///
    /// # Errors
    /// 400 for a name that no session has, and for none.
    pub fn parse(text: &str) -> Outcome<Self> {
        let (known, mut wanted) = (names(), Vec::new());
        for name in text.split(',') {
            let found = known.iter().find(|known| **known == name).ok_or_else(|| {
                let all = known.iter().copied();
                Problem::invalid(format!("fields: {}; with commas between", unknown("field", name, all)))
            })?;
            wanted.push(*found);
        }
        Ok(Self(wanted))
    }

    /// Appends a session's JSON with the fields wanted, in the order in which it has them. `native` is kept.
    ///
    /// # Errors
    /// 500 for what is no JSON object.
    pub fn cut(&self, session: &[u8], out: &mut Vec<u8>) -> Outcome<()> {
        let parsed: Result<HashMap<&str, &RawValue>, _> = serde_json::from_slice(session);
        let members = parsed
            .map_err(|_| Problem::new(crate::error::Code::InternalError, "a session that cannot be read again"))?;
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
    fn names_are_those_of_the_contract() {
        let all = "id provider provider_session_id agent modality title description status created_at updated_at started_at \
                   ended_at expires_at duration_seconds message_count connection metadata";
        assert_eq!(names().join(" "), all);
    }

    #[test]
    fn what_is_wanted_comes_as_it_was_and_in_the_order_of_the_session() {
        let session = br#"{"id":"p:s","provider":"p","agent":{"id":null,"name":"a \"}{\""},"status":"active","metadata":{"n":1.50,"z":1e+3},"native":{"x":[1]}}"#;
        let cut = |fields: &str| {
            let mut out = Vec::new();
            Fields::parse(fields).unwrap().cut(session, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(cut("status,id,status"), r#"{"id":"p:s","status":"active","native":{"x":[1]}}"#);
        assert_eq!(
            cut("metadata,agent"),
            r#"{"agent":{"id":null,"name":"a \"}{\""},"metadata":{"n":1.50,"z":1e+3},"native":{"x":[1]}}"#
        );
        for wrong in ["", "id,", "id, status", "agent.id", "native", "Id"] {
            assert!(Fields::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(Fields::parse("staus").unwrap_err().detail.contains("did you mean \"status\""));
    }
}
