//! Writes and reads unified ids: `provider:session` and `provider:agent:session`.
//!
//! A part is the provider's own id. In it, `%` and two hexadecimal digits stand for a byte of a character that a path or a
//! part cannot have: `/ \ ? # %`, a space, and `:` in every part but the last. The number of parts is known for each
//! provider, so that the last one may have colons as they are.

use crate::base::endpoints::MAX_ID;
use crate::base::id_pattern::{self, Pattern};
use crate::base::model::Field;
use crate::config::provider::IdPatterns;
use crate::rules::native_routes::has_dots;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::fmt::Write;

/// The ids that a provider accepts.
#[derive(Debug, Default)]
pub(crate) struct AcceptedIds {
    agent: Option<Pattern>,
    session: Option<Pattern>,
}

/// A field whose value no id can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAddressable(pub Field);

impl AcceptedIds {
    /// Compiles the patterns. A faulty one, which [`crate::rules::route::RouteTable`] reports, accepts every id.
    #[must_use]
    pub(crate) fn compile(config: &IdPatterns) -> Self {
        let compile = |at: Option<&crate::config::faults::Located<String>>| id_pattern::compile(&at?.value).ok();
        Self { agent: compile(config.agent.as_ref()), session: compile(config.session.as_ref()) }
    }

    /// Returns the unified id of a session.
    ///
    /// # Errors
    /// A request for this id would be refused: the provider's file does not accept a part, or the id is too long.
    pub(crate) fn write(&self, provider: &str, agent: Option<&str>, session: &str) -> Result<String, NotAddressable> {
        let accepts = |pattern: &Option<Pattern>, id: &str| pattern.as_ref().is_none_or(|pattern| accepts(pattern, id));
        let mut id = String::with_capacity(provider.len() + agent.map_or(0, str::len) + session.len() + 2);
        id.push_str(provider);
        if let Some(agent) = agent {
            if agent.len() > MAX_ID || !accepts(&self.agent, agent) {
                return Err(NotAddressable(Field::AgentId));
            }
            id.push(':');
            write_part(&mut id, agent, false);
        }
        id.push(':');
        if session.len() > MAX_ID || !accepts(&self.session, session) {
            return Err(NotAddressable(Field::ProviderSessionId));
        }
        write_part(&mut id, session, true);
        if id.len() > MAX_ID {
            return Err(NotAddressable(Field::ProviderSessionId));
        }
        Ok(id)
    }
}

/// Returns whether a provider's pattern accepts an id. An id with a reserved character needs a pattern for the whole id, and
/// an id that makes a dot segment is never valid: the provider could read it as another path.
#[must_use]
pub(crate) fn accepts(pattern: &Pattern, id: &str) -> bool {
    if id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b':')) {
        return pattern.is_match(id);
    }
    let is_whole = pattern.as_str().starts_with('^') && pattern.as_str().ends_with('$');
    let is_safe = !id.chars().any(char::is_control) && !matches!(id, "." | "..");
    is_safe && (!id.contains(is_reserved) || is_whole && !has_dots(id)) && pattern.is_match(id)
}

/// The characters that are escaped: the first one not in the last part.
pub(crate) const RESERVED: [char; 7] = [':', '/', '\\', '?', '#', '%', ' '];

/// Returns whether a unified id has this character only in its escaped form.
#[must_use]
pub(crate) fn is_reserved(character: char) -> bool {
    RESERVED[1..].contains(&character)
}

fn write_part(out: &mut String, id: &str, is_last: bool) {
    for character in id.chars() {
        if is_reserved(character) || character == ':' && !is_last {
            // A character that is escaped is one byte.
            let _ = write!(out, "%{:02X}", u32::from(character));
        } else {
            out.push(character);
        }
    }
}

/// Returns the provider's own id of a part. `None` if an escape is not valid, or a reserved character is not escaped.
#[must_use]
pub(crate) fn read_part(part: &str) -> Option<Cow<'_, str>> {
    if !part.contains(is_reserved) {
        return Some(Cow::Borrowed(part));
    }
    let is_escape =
        |after: &str| after.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    let valid = part.split('%').skip(1).all(is_escape) && !part.contains(|c| is_reserved(c) && c != '%');
    valid.then(|| percent_decode_str(part).decode_utf8().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::{Located, Location};
    use proptest::prelude::*;

    fn ids(agent: &str, session: &str) -> AcceptedIds {
        let at = |value: &str| Some(Located { value: value.into(), location: Location::top(&"f".into()) });
        AcceptedIds::compile(&IdPatterns { agent: at(agent), session: at(session) })
    }

    /// Reads the parts of a unified id of a provider with agents.
    fn parts(id: &str) -> Option<(String, String)> {
        let (agent, session) = id.strip_prefix("p:")?.split_once(':')?;
        Some((read_part(agent)?.into_owned(), read_part(session)?.into_owned()))
    }

    #[test]
    fn only_what_is_ambiguous_is_escaped() {
        let any = ids("^.+$", "^.+$");
        for (agent, session, id) in [
            ("agt-1._~", "ase_1", "p:agt-1._~:ase_1"),
            ("a", "b:c", "p:a:b:c"),
            ("a:b", "c", "p:a%3Ab:c"),
            ("tenant/1", "projects/7/s 1", "p:tenant%2F1:projects%2F7%2Fs%201"),
            ("50%", "%2F", "p:50%25:%252F"),
            ("é", "日本", "p:é:日本"),
        ] {
            assert_eq!(any.write("p", Some(agent), session).as_deref(), Ok(id));
            assert_eq!(parts(id), Some((agent.into(), session.into())));
        }
        for wrong in ["a%", "a%2", "a%2x", "%zz", "a/b", "a b", "%FF", "a?b%20"] {
            assert_eq!(read_part(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_no_request_could_name_is_not_addressable() {
        let (agent, session) = (Err(NotAddressable(Field::AgentId)), Err(NotAddressable(Field::ProviderSessionId)));
        let any = ids("^.+$", "^.+$");
        for bad in [".", "..", "a/../b", "a/%2e%2e/b", "a\\..", "a\nb", "a\u{7f}", "%252e%252e%252f", &"x".repeat(257)]
        {
            assert_eq!(any.write("p", Some(bad), "s"), agent, "{bad}");
            assert_eq!(any.write("p", Some("a"), bad), session, "{bad}");
        }
        assert_eq!(any.write("p", Some("a"), &"x".repeat(253)), session, "the whole id is too long");
        assert!(any.write("p", Some("a"), &"x".repeat(252)).is_ok());
        let narrow = ids("^[a-z]+$", "[a-z]+");
        assert_eq!(narrow.write("p", Some("A"), "s"), agent);
        assert_eq!(narrow.write("p", Some("a"), "7"), session);
        assert_eq!(narrow.write("p", Some("a"), "s/1"), session, "the pattern is not for the whole id");
        assert!(narrow.write("p", Some("a"), "s1").is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_unified_id_names_its_parts(
            agent in "[a:/%?#. \\\\é日0-9A-F~\"<&+;=@]{1,12}|\\PC{1,20}|x{1,1100}",
            session in "[a:/%?#. \\\\é日0-9A-F~\"<&+;=@]{1,12}|\\PC{1,20}|x{1,1100}",
        ) {
            let any = ids("^.+$", "^.+$");
            if let Ok(id) = any.write("p", Some(&agent), &session) {
                prop_assert!(id.len() <= MAX_ID);
                prop_assert!(!id.contains(['/', '\\', '?', '#', ' ']), "{}", id);
                prop_assert_eq!(parts(&id), Some((agent, session)));
            }
        }
    }
}
