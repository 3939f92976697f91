//! Reading typed values out of a tree, one fault a mistake, none of them final.
//!
//! A room of its own so that durations, sizes and the words of a fault are the same in every file.

use super::faults::{At, Faults, Place};
use super::sketch::{Scalar, Sketch};
use super::tree::{Key, Node, Value};
use std::num::NonZeroU32;
use std::time::Duration;

/// What a decoder reports into, and how it reads what stands outside the file.
pub struct Cx<'a> {
    /// Where faults go.
    pub faults: &'a mut Faults,
    /// Reads a secret's file: its text without the final newline, or why not.
    pub read_file: &'a dyn Fn(&str) -> Result<String, String>,
    /// Whether the file at hand was cut short, so that nothing is called missing.
    pub cut: bool,
    /// Where what is asked for is drawn, when there is nothing to read.
    pub(super) sketch: Option<Sketch>,
}

impl<'a> Cx<'a> {
    /// For a file.
    pub fn new(faults: &'a mut Faults, read_file: &'a dyn Fn(&str) -> Result<String, String>, cut: bool) -> Self {
        Self { faults, read_file, cut, sketch: None }
    }

    /// Draws what is wanted of a node that is whatever is asked of it. `false` for one from a file.
    fn drawn(&mut self, node: &Node, scalar: Scalar<'_>) -> bool {
        let draws = matches!(node.value, Value::Any);
        if let Some(sketch) = self.sketch.as_mut().filter(|_| draws) {
            sketch.scalar(scalar);
        }
        draws
    }

    fn inside<T>(&mut self, read: impl FnOnce(&mut Self) -> T, leave: impl FnOnce(&mut Sketch)) -> T {
        self.sketch.iter_mut().for_each(Sketch::enter);
        let read = read(self);
        if let Some(sketch) = &mut self.sketch {
            leave(sketch);
        }
        read
    }
}

/// A text that must not be seen: its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(none)" } else { "Secret(…)" })
    }
}

/// A mapping being read: knows which keys were asked for, so that `end` can name the others.
pub struct Fields<'n> {
    place: &'n Place,
    entries: &'n [(Key, Node)],
    known: Vec<&'static str>,
    /// A node in place of each of them, where there is no file.
    any: Option<&'n Node>,
}

impl<'n> Fields<'n> {
    /// The fields of a mapping; anything else is a fault.
    pub fn of(node: &'n Node, what: &str, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => Some(Self { place: &node.place, entries, known: Vec::new(), any: None }),
            Value::Null => Some(Self { place: &node.place, entries: &[], known: Vec::new(), any: None }),
            Value::Any => {
                cx.sketch.iter_mut().for_each(Sketch::mapping);
                Some(Self { place: &node.place, entries: &[], known: Vec::new(), any: Some(node) })
            }
            _ => {
                cx.faults.add(&node.place, format!("{what} must be a mapping (key: value)"));
                None
            }
        }
    }

    /// Where the mapping begins.
    #[must_use]
    pub fn place(&self) -> &Place {
        self.place
    }

    /// The node under a key; one with nothing written counts as absent.
    pub fn node(&mut self, key: &'static str) -> Option<&'n Node> {
        self.known.push(key);
        if self.any.is_some() {
            return self.any;
        }
        let node = self.entries.iter().find(|(k, _)| k.name == key).map(|(_, node)| node)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// An optional field. `None` also for one with a fault, which is then reported.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        cx: &mut Cx<'_>,
        read: impl FnOnce(&'n Node, &mut Cx<'_>) -> Option<T>,
    ) -> Option<T> {
        let node = self.node(key)?;
        cx.inside(|cx| read(node, cx), |sketch| sketch.leave_key(key, false))
    }

    /// A field that must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        cx: &mut Cx<'_>,
        read: impl FnOnce(&'n Node, &mut Cx<'_>) -> Option<T>,
    ) -> Option<T> {
        match self.node(key) {
            Some(node) => cx.inside(|cx| read(node, cx), |sketch| sketch.leave_key(key, true)),
            None => {
                let written = self.entries.iter().any(|(known, _)| known.name == key);
                if !cx.cut && !written {
                    cx.faults.add(self.place, format!("{key:?} is missing here"));
                }
                None
            }
        }
    }

    /// Reports every key that nobody asked for.
    pub fn end(self, cx: &mut Cx<'_>) {
        for (key, node) in self.entries {
            if matches!(node.value, Value::Null) && !cx.cut && self.known.contains(&key.name.as_str()) {
                cx.faults.add(&key.place, format!("{:?} has no value; write one, or take the line out", key.name));
            }
            if !self.known.contains(&key.name.as_str()) {
                cx.faults.add(&key.place, unknown("key", &key.name, self.known.iter().copied()));
            }
        }
    }
}

/// `unknown key "x"; did you mean "y"?`, or the list of what is known.
pub fn unknown<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.collect();
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(k, name), *k))
        .filter(|(distance, k)| *distance <= (k.len() / 3).max(1))
        .min();
    match near {
        Some((_, near)) => format!("unknown {what} {name:?}; did you mean {near:?}?"),
        None if known.is_empty() => format!("unknown {what} {name:?}; there is none here"),
        None => format!("unknown {what} {name:?}; known here: {}", known.join(", ")),
    }
}

/// A scalar's text.
pub fn text(node: &Node, cx: &mut Cx<'_>) -> Option<String> {
    if cx.drawn(node, Scalar::Text) {
        return None;
    }
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Null => Some(String::new()),
        _ => {
            cx.faults.add(&node.place, "a single value is wanted here, not a list or mapping");
            None
        }
    }
}

/// A scalar's text that must not be empty, with its place.
pub fn at_text(node: &Node, cx: &mut Cx<'_>) -> Option<At<String>> {
    if cx.drawn(node, Scalar::Some) {
        return None;
    }
    let value = text(node, cx)?;
    if value.is_empty() {
        cx.faults.add(&node.place, "a value is wanted here; it is empty");
        return None;
    }
    Some(At { value, place: node.place.clone() })
}

/// A list of what `read` reads; a single value counts as a list of one.
pub fn list<T>(node: &Node, cx: &mut Cx<'_>, mut read: impl FnMut(&Node, &mut Cx<'_>) -> Option<T>) -> Option<Vec<T>> {
    match &node.value {
        Value::Any => {
            cx.inside(|cx| read(node, cx), Sketch::leave_list);
            None
        }
        Value::List(items) => Some(items.iter().filter_map(|item| read(item, cx)).collect()),
        _ => read(node, cx).map(|one| vec![one]),
    }
}

/// What `read` reads of each entry of a mapping with free keys, in order. `known` are all there can be; empty: any.
pub fn each<T>(
    node: &Node,
    what: &str,
    known: &[&str],
    cx: &mut Cx<'_>,
    mut read: impl FnMut(&Key, &Node, &mut Cx<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    match &node.value {
        Value::Map(entries) => Some(entries.iter().filter_map(|(key, node)| read(key, node, cx)).collect()),
        Value::Null => Some(Vec::new()),
        Value::Any => {
            let key = Key { name: known.first().copied().unwrap_or("name").to_owned(), place: node.place.clone() };
            cx.inside(|cx| read(&key, node, cx), |sketch| sketch.leave_free(known));
            None
        }
        _ => {
            cx.faults.add(&node.place, format!("{what} must be a mapping (key: value)"));
            None
        }
    }
}

/// A mapping read in one way, anything else in another.
pub fn either<T>(
    node: &Node,
    cx: &mut Cx<'_>,
    mapping: impl FnOnce(&Node, &mut Cx<'_>) -> Option<T>,
    other: impl FnOnce(&Node, &mut Cx<'_>) -> Option<T>,
) -> Option<T> {
    match &node.value {
        Value::Map(_) => mapping(node, cx),
        Value::Any => {
            mapping(node, cx);
            other(node, cx)
        }
        _ => other(node, cx),
    }
}

/// One of some words; what it stands for.
pub fn one_of<T: Copy>(node: &Node, cx: &mut Cx<'_>, what: &str, words: &[(&str, T)]) -> Option<T> {
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    if cx.drawn(node, Scalar::Word(&known)) {
        return None;
    }
    let at = at_text(node, cx)?;
    let found = words.iter().find(|(word, _)| *word == at.value).map(|(_, value)| *value);
    cx.faults.keep(&at.place, found.ok_or_else(|| unknown(what, &at.value, known.into_iter())))
}

/// A text that `parse` reads, or says what is wrong with it; its pattern is `shape`, for who writes it.
pub fn shaped<T>(
    node: &Node,
    cx: &mut Cx<'_>,
    shape: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<At<T>> {
    if cx.drawn(node, Scalar::Pattern(shape)) {
        return None;
    }
    let at = at_text(node, cx)?;
    cx.faults.keep(&at.place, parse(&at.value)).map(|value| At { value, place: at.place })
}

/// A name: letters, digits, `-` and `_`, at most 64. Names become metric labels and parts of ids.
pub fn name(node: &Node, cx: &mut Cx<'_>) -> Option<At<String>> {
    let good = |text: &str| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    shaped(node, cx, "^[A-Za-z0-9_-]{1,64}$", |text| match good(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a name; use letters, digits, - and _")),
    })
}

fn parsed<T>(
    node: &Node,
    cx: &mut Cx<'_>,
    scalar: Scalar<'_>,
    wanted: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    if cx.drawn(node, scalar) {
        return None;
    }
    let text = text(node, cx)?;
    let value = parse(&text);
    if value.is_none() {
        cx.faults.add(&node.place, format!("{text:?} is not {wanted}"));
    }
    value
}

/// `true` or `false`, also `on` and `off`.
pub fn boolean(node: &Node, cx: &mut Cx<'_>) -> Option<bool> {
    parsed(node, cx, Scalar::Boolean, "true or false", |text| match text {
        "true" | "on" => Some(true),
        "false" | "off" => Some(false),
        _ => None,
    })
}

/// A whole number from `least`.
pub fn whole(node: &Node, cx: &mut Cx<'_>, least: u64) -> Option<u64> {
    parsed(node, cx, Scalar::Whole(least, u64::MAX), &format!("a whole number from {least}"), |text| {
        text.parse().ok().filter(|number| *number >= least)
    })
}

/// A whole number from 1 to 4,294,967,295.
pub fn positive(node: &Node, cx: &mut Cx<'_>) -> Option<NonZeroU32> {
    parsed(node, cx, Scalar::Whole(1, u64::from(u32::MAX)), "a whole number from 1 to 4294967295", |text| {
        text.parse().ok()
    })
}

/// A share, from 0 to 1.
pub fn share(node: &Node, cx: &mut Cx<'_>) -> Option<f64> {
    parsed(node, cx, Scalar::Share, "a share from 0 to 1, as in 0.01", |text| {
        text.parse().ok().filter(|share| (0.0..=1.0).contains(share))
    })
}

/// An HTTP status that says that something failed.
pub fn status(node: &Node, cx: &mut Cx<'_>) -> Option<u16> {
    if cx.drawn(node, Scalar::Whole(400, 599)) {
        return None;
    }
    let number = whole(node, cx, 400)?;
    let status = u16::try_from(number).ok().filter(|s| *s <= 599).ok_or("a status is from 400 to 599");
    cx.faults.keep(&node.place, status)
}

/// A duration: one integer and a unit (`ms s m h d`).
pub fn duration(node: &Node, cx: &mut Cx<'_>) -> Option<Duration> {
    parsed(
        node,
        cx,
        Scalar::Duration,
        "a duration; write one integer and a unit (ms s m h d), as in 30s",
        parse_duration,
    )
}

/// A duration that is not zero.
pub fn positive_duration(node: &Node, cx: &mut Cx<'_>) -> Option<Duration> {
    parsed(
        node,
        cx,
        Scalar::Duration,
        "a duration above zero; write one integer and a unit (ms s m h d), as in 30s",
        |text| parse_duration(text).filter(|d| !d.is_zero()),
    )
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // A hundred years is longer than any duration here can mean.
    number.checked_mul(unit).filter(|ms| *ms <= 3_155_760_000_000).map(Duration::from_millis)
}

/// The burst, if a bucket of it fills within a year; else a fault, and a burst that any limiter can
/// reckon with.
pub fn burst(place: &Place, requests: NonZeroU32, per: Duration, burst: NonZeroU32, cx: &mut Cx<'_>) -> NonZeroU32 {
    const LONGEST: f64 = 365.0 * 86_400.0;
    let seconds = per.as_secs_f64() / f64::from(requests.get()) * f64::from(burst.get());
    if seconds <= LONGEST {
        return burst;
    }
    cx.faults.add(place, "this takes more than a year to fill; lower burst or per, or raise requests");
    NonZeroU32::MIN
}

/// A size in bytes: one integer and a unit (`B KiB MiB GiB`), or bytes alone.
pub fn size(node: &Node, cx: &mut Cx<'_>) -> Option<u64> {
    parsed(node, cx, Scalar::Size, "a size; write one integer and a unit (B KiB MiB GiB), as in 256MiB", |text| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().ok()?;
        let unit: u64 = match &text[digits..] {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(unit).filter(|size| *size > 0)
    })
}

/// A secret: its text, or `{ file: PATH }`.
pub fn secret(node: &Node, cx: &mut Cx<'_>) -> Option<Secret> {
    let from_file = |node: &Node, cx: &mut Cx<'_>| {
        let mut fields = Fields::of(node, "a secret", cx)?;
        let path = fields.required("file", cx, at_text);
        fields.end(cx);
        let path = path?;
        let read =
            (cx.read_file)(&path.value).map_err(|e| format!("the secret's file {:?} cannot be read: {e}", path.value));
        cx.faults.keep(&path.place, read).map(Secret)
    };
    either(node, cx, from_file, |node, cx| text(node, cx).map(Secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_one_integer_and_a_unit() {
        assert_eq!(parse_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("2d"), Some(Duration::from_secs(172_800)));
        for wrong in ["30", "s", "1.5s", "1h30m", "-1s", "30 s", "99999999999999999d", ""] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_near_miss_gets_a_suggestion_and_a_far_one_the_list() {
        let known = ["base_url", "credentials"];
        assert_eq!(unknown("key", "bas_url", known.into_iter()), "unknown key \"bas_url\"; did you mean \"base_url\"?");
        assert!(unknown("key", "zzz", known.into_iter()).ends_with("known here: base_url, credentials"));
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "Secret(…)");
    }
}
