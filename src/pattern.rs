//! Patterns from the config, with errors that fit on a line.
//!
//! A room of its own because every request is held against several. Nearly all are a fixed beginning and some
//! characters of one kind, as ids are: those are told by looking at each byte once, and regex has all others.

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    /// The same, where it is of the usual kind: one of these.
    plain: Option<Vec<Plain>>,
}

/// These bytes, and then between so many and so many of a kind.
#[derive(Debug, Clone)]
struct Plain {
    begins: Vec<u8>,
    kind: [bool; 256],
    least: usize,
    most: usize,
}

/// Compiles a pattern of bounded size.
///
/// # Errors
/// What is wrong with it, for the config's author.
pub fn compile(pattern: &str) -> Result<Pattern, String> {
    let regex = RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| {
        let text = error.to_string();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("{pattern:?} is not a regular expression: {}", last.trim().trim_start_matches("error: "))
    })?;
    Ok(Pattern { plain: regex_syntax::parse(pattern).ok().and_then(|parsed| plain(&parsed)), regex })
}

impl Pattern {
    /// Whether a text fits.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        match &self.plain {
            Some(ways) => ways.iter().any(|way| way.is_match(text.as_bytes())),
            None => self.regex.is_match(text),
        }
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }
}

impl Plain {
    fn is_match(&self, text: &[u8]) -> bool {
        text.strip_prefix(self.begins.as_slice()).is_some_and(|rest| {
            (self.least..=self.most).contains(&rest.len()) && rest.iter().all(|byte| self.kind[usize::from(*byte)])
        })
    }
}

/// `^…$` with one of the usual kind in it, or several in a group: `^agt_[0-9a-z]+$`, `^(sess_[0-9]+|[0-9]+)$`.
fn plain(parsed: &Hir) -> Option<Vec<Plain>> {
    let HirKind::Concat(parts) = parsed.kind() else { return None };
    let [first, inner @ .., last] = parts.as_slice() else { return None };
    if !matches!((first.kind(), last.kind()), (HirKind::Look(Look::Start), HirKind::Look(Look::End))) {
        return None;
    }
    match inner {
        [one] => match one.kind() {
            HirKind::Capture(group) => match group.sub.kind() {
                HirKind::Alternation(ways) => ways.iter().map(way).collect(),
                _ => Some(vec![way(&group.sub)?]),
            },
            _ => Some(vec![way(one)?]),
        },
        several => Some(vec![sequence(several)?]),
    }
}

fn way(parsed: &Hir) -> Option<Plain> {
    match parsed.kind() {
        HirKind::Concat(parts) => sequence(parts),
        _ => sequence(std::slice::from_ref(parsed)),
    }
}

/// Fixed bytes, or some of a kind, or the one and then the other.
fn sequence(parts: &[Hir]) -> Option<Plain> {
    let (begins, rest) = match parts {
        [first, rest @ ..] => match first.kind() {
            HirKind::Literal(bytes) => (bytes.0.to_vec(), rest),
            _ => (Vec::new(), parts),
        },
        [] => return None,
    };
    let (kind, least, most) = match rest {
        [] => ([false; 256], 0, 0),
        [repeated] => match repeated.kind() {
            HirKind::Repetition(times) => {
                let most = times.max.map_or(usize::MAX, |most| most as usize);
                (kind(&times.sub)?, times.min as usize, most)
            }
            _ => (kind(repeated)?, 1, 1),
        },
        _ => return None,
    };
    Some(Plain { begins, kind, least, most })
}

/// ASCII characters of a kind.
fn kind(parsed: &Hir) -> Option<[bool; 256]> {
    let mut kind = [false; 256];
    let HirKind::Class(Class::Unicode(class)) = parsed.kind() else { return None };
    for range in class.ranges() {
        for character in range.start()..=range.end() {
            let byte = u8::try_from(character).ok().filter(u8::is_ascii)?;
            kind[usize::from(byte)] = true;
        }
    }
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_pattern_says_so_in_one_line() {
        let error = compile("^(a").unwrap_err();
        assert!(error.contains("unclosed group") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_plain_pattern_fits_what_its_regular_expression_fits() {
        let plain = [
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
        for (patterns, is_plain) in [(plain.as_slice(), true), (&other, false)] {
            for pattern in patterns {
                let compiled = compile(pattern).unwrap();
                assert!(compiled.plain.is_some() || !is_plain, "{pattern} is not seen to be plain");
                for text in texts {
                    assert_eq!(compiled.is_match(text), compiled.regex.is_match(text), "{pattern} on {text:?}");
                }
            }
        }
    }
}
