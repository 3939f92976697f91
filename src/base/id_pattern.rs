//! Compiles and matches the patterns of the configuration: regular expressions, mostly for ids.
//!
//! Weir checks every request against several patterns. Most of them are a fixed prefix and some characters of one
//! class. Such a pattern is matched with one look at each byte; all others use the `regex` crate.

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    regex: Regex,
    /// The same pattern as alternatives of prefix and class, if it can be written so.
    simple: Option<Vec<PrefixAndClass>>,
}

/// Matches a text that is `prefix`, then `min` to `max` bytes of a class.
#[derive(Debug, Clone)]
struct PrefixAndClass {
    prefix: Vec<u8>,
    class: [bool; 256],
    min: usize,
    max: usize,
}

/// Compiles a pattern. The compiled regular expression takes at most 1 MiB.
///
/// # Errors
/// What is wrong with the pattern, in one line for the author of the configuration.
pub(crate) fn compile(pattern: &str) -> Result<Pattern, String> {
    let regex = RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| {
        let text = error.to_string();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("{pattern:?} is not a regular expression: {}", last.trim().trim_start_matches("error: "))
    })?;
    Ok(Pattern { simple: regex_syntax::parse(pattern).ok().and_then(|parsed| simplify(&parsed)), regex })
}

/// Returns whether a text that matches can contain one of these characters. `true` if the pattern is not valid.
#[must_use]
pub(crate) fn can_contain(pattern: &str, characters: &[char]) -> bool {
    fn can(parsed: &Hir, characters: &[char]) -> bool {
        match parsed.kind() {
            HirKind::Empty | HirKind::Look(_) => false,
            HirKind::Literal(bytes) => characters.iter().any(|c| u8::try_from(*c).is_ok_and(|c| bytes.0.contains(&c))),
            HirKind::Class(Class::Unicode(class)) => {
                let has = |c: &char| class.ranges().iter().any(|range| (range.start()..=range.end()).contains(c));
                characters.iter().any(has)
            }
            HirKind::Class(Class::Bytes(_)) => true,
            HirKind::Repetition(times) => can(&times.sub, characters),
            HirKind::Capture(group) => can(&group.sub, characters),
            HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(|part| can(part, characters)),
        }
    }
    regex_syntax::parse(pattern).map_or(true, |parsed| can(&parsed, characters))
}

impl Pattern {
    /// Returns whether a text matches.
    #[must_use]
    pub(crate) fn is_match(&self, text: &str) -> bool {
        match &self.simple {
            Some(alternatives) => alternatives.iter().any(|alternative| alternative.is_match(text.as_bytes())),
            None => self.regex.is_match(text),
        }
    }

    /// Returns the pattern as it was written.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        self.regex.as_str()
    }
}

impl PrefixAndClass {
    fn is_match(&self, text: &[u8]) -> bool {
        text.strip_prefix(self.prefix.as_slice()).is_some_and(|rest| {
            (self.min..=self.max).contains(&rest.len()) && rest.iter().all(|byte| self.class[usize::from(*byte)])
        })
    }
}

/// Converts a pattern `^…$` with one prefix and class, or with several in a group: `^agt_[0-9a-z]+$`,
/// `^(sess_[0-9]+|[0-9]+)$`. Returns `None` for any other pattern.
fn simplify(parsed: &Hir) -> Option<Vec<PrefixAndClass>> {
    let HirKind::Concat(parts) = parsed.kind() else { return None };
    let [first, inner @ .., last] = parts.as_slice() else { return None };
    if !matches!((first.kind(), last.kind()), (HirKind::Look(Look::Start), HirKind::Look(Look::End))) {
        return None;
    }
    match inner {
        [one] => match one.kind() {
            HirKind::Capture(group) => match group.sub.kind() {
                HirKind::Alternation(alternatives) => alternatives.iter().map(alternative).collect(),
                _ => Some(vec![alternative(&group.sub)?]),
            },
            _ => Some(vec![alternative(one)?]),
        },
        several => Some(vec![sequence(several)?]),
    }
}

fn alternative(parsed: &Hir) -> Option<PrefixAndClass> {
    match parsed.kind() {
        HirKind::Concat(parts) => sequence(parts),
        _ => sequence(std::slice::from_ref(parsed)),
    }
}

/// Converts a prefix, a class, or a prefix followed by a class.
fn sequence(parts: &[Hir]) -> Option<PrefixAndClass> {
    let (prefix, rest) = match parts {
        [first, rest @ ..] => match first.kind() {
            HirKind::Literal(bytes) => (bytes.0.to_vec(), rest),
            _ => (Vec::new(), parts),
        },
        [] => return None,
    };
    let (class, min, max) = match rest {
        [] => ([false; 256], 0, 0),
        [repeated] => match repeated.kind() {
            HirKind::Repetition(times) => {
                let max = times.max.map_or(usize::MAX, |max| max as usize);
                (ascii_class(&times.sub)?, times.min as usize, max)
            }
            _ => (ascii_class(repeated)?, 1, 1),
        },
        _ => return None,
    };
    Some(PrefixAndClass { prefix, class, min, max })
}

/// Returns the bytes of a character class. `None` if the class has characters outside ASCII.
fn ascii_class(parsed: &Hir) -> Option<[bool; 256]> {
    let mut bytes = [false; 256];
    let HirKind::Class(Class::Unicode(class)) = parsed.kind() else { return None };
    for range in class.ranges() {
        for character in range.start()..=range.end() {
            let byte = u8::try_from(character).ok().filter(u8::is_ascii)?;
            bytes[usize::from(byte)] = true;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_an_invalid_pattern_is_one_line() {
        let error = compile("^(a").unwrap_err();
        assert!(error.contains("unclosed group") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_pattern_tells_which_characters_its_texts_can_contain() {
        for (pattern, expected) in [
            ("^[0-9a-z_-]{1,64}$", false),
            (r"^\w+$", false),
            ("^sess?(a|b)*$", false),
            ("^.+$", true),
            ("^[^/]+$", true),
            ("^a/b$", true),
            ("^(a|b%)*$", true),
            ("^(a", true),
        ] {
            assert_eq!(can_contain(pattern, &['/', '%']), expected, "{pattern}");
        }
    }

    #[test]
    fn a_simple_pattern_matches_what_its_regular_expression_matches() {
        let simple = [
            "^agt_[0-9a-zA-Z_-]+$",
            "^[0-9a-zA-Z_-]{1,5}$",
            "^(sess_[0-9A-Za-z]+|[0-9]+)$",
            "^[a-z]$",
            "^abc$",
            "^(?:x[0-9]*)$",
        ];
        let other = ["agt_[0-9]+", "^a+b+$", "^[^/]+$", "^a|b$", r"^\d+$", "^(a|b)c$", "(?i)^a[0-9]$", "^é[a-z]$", ""];
        let texts = [
            "",
            "a",
            "x",
            "x1",
            "abc",
            "abcd",
            "agt_",
            "agt_a-Z_9",
            "agt_a\n",
            "agt_é",
            "sess_",
            "sess_1",
            "17",
            "1 7",
            "abcdef",
            "abcde",
            "éa",
            "A1",
            "ac",
            "b",
            "٣",
        ];
        for (patterns, is_simple) in [(simple.as_slice(), true), (&other, false)] {
            for pattern in patterns {
                let compiled = compile(pattern).unwrap();
                assert!(compiled.simple.is_some() || !is_simple, "{pattern} is not recognised as simple");
                for text in texts {
                    assert_eq!(compiled.is_match(text), compiled.regex.is_match(text), "{pattern} on {text:?}");
                }
            }
        }
    }
}
