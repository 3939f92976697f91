//! Writes the message for an unknown name, with the nearest known name as a hint.

use std::collections::HashSet;

/// Returns `unknown WHAT "NAME"; did you mean "KNOWN"?` with the nearest known name. Lists all known names if none is
/// near: a near name differs in at most a third of its letters, or in one letter if it is short.
pub(crate) fn unknown<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let mut known: Vec<&str> = known.collect();
    let mut seen = HashSet::new();
    known.retain(|name| seen.insert(*name));
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, name), *known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .min();
    match nearest {
        Some((_, nearest)) => format!("unknown {what} {name:?}; did you mean {nearest:?}?"),
        None if known.is_empty() => format!("unknown {what} {name:?}; no {what} is defined"),
        None => format!("unknown {what} {name:?}; expected one of: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_gets_the_nearest_name_and_another_name_gets_the_list() {
        let known = ["base_url", "credentials"];
        assert_eq!(unknown("key", "bas_url", known.into_iter()), "unknown key \"bas_url\"; did you mean \"base_url\"?");
        assert!(unknown("key", "zzz", known.into_iter()).ends_with("expected one of: base_url, credentials"));
        let twice = ["b", "a", "b"];
        assert!(unknown("key", "zzz", twice.into_iter()).ends_with("expected one of: b, a"));
    }
}
