//! Decodes typed values from a tree. Each mistake is one fault, and decoding continues after it.
//!
//! All files share these functions, so a duration, a size or a list has the same form and the same fault in each.

use super::faults::{Faults, Located, Location};
use super::schema_builder::{Scalar, SchemaBuilder};
use super::tree::{Node, PLACEHOLDER, TreeKey, Unset, Value};
use crate::base::typo::unknown;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

/// The longest duration: a hundred years, in milliseconds.
const LONGEST_DURATION: u64 = 36_525 * 86_400_000;

/// The file that is being decoded: where its faults go, and how to read the files that it names.
pub struct DecodeContext<'a> {
    /// Receives the faults.
    pub faults: &'a mut Faults,
    /// Reads a file that the configuration names: returns its text without the final line break, or an error.
    pub read_file: &'a dyn Fn(&str) -> Result<String, String>,
    /// Whether the file ends at a syntax fault. Then a missing key is not reported as a fault.
    pub truncated: bool,
    /// Receives what is missing on this machine, if that is accepted; otherwise it is a fault.
    pub(super) missing: Option<&'a Missing>,
    /// Records what the decoder accepts, if the tree is a probe.
    pub(super) schema: Option<SchemaBuilder>,
}

/// The environment variables that are not set and the files that cannot be read, for people.
pub(super) type Missing = RefCell<BTreeSet<String>>;

/// Stands for a secret that is missing on this machine. It is long, so that no rule about short secrets applies.
const MISSING_SECRET: &str = "unset-unset-unset-unset-unset-unset-unset-unset-unset-unset-unset";

impl<'a> DecodeContext<'a> {
    /// Returns a context for one file.
    pub fn new(faults: &'a mut Faults, read_file: &'a dyn Fn(&str) -> Result<String, String>, truncated: bool) -> Self {
        Self { faults, read_file, truncated, missing: None, schema: None }
    }

    /// Returns the text of a scalar whose variables are not set, if that is accepted. Otherwise each of them is a fault.
    fn unset<'n>(&mut self, location: &Location, unset: &'n Unset) -> Option<&'n str> {
        if let Some(missing) = self.missing {
            missing.borrow_mut().extend(unset.variables.iter().cloned());
            self.faults.expect_none_at(location);
            return Some(&unset.text);
        }
        for name in &unset.variables {
            let better = format!("set it, or write ${{{name}:-default}}");
            self.faults.add(location, format!("the environment variable {name} is not set; {better}"));
        }
        None
    }

    /// Reads a file that the configuration names. Returns `None` if it cannot be read, which is a fault unless that is
    /// accepted.
    pub(super) fn file(&mut self, path: &Located<String>, what: &str) -> Option<String> {
        match ((self.read_file)(&path.value), self.missing) {
            (Ok(text), _) => Some(text),
            (Err(_), Some(missing)) => {
                missing.borrow_mut().insert(path.value.clone());
                self.faults.expect_none_at(&path.location);
                None
            }
            (Err(error), None) => {
                self.faults.add(&path.location, format!("cannot read {what} {:?}: {error}", path.value));
                None
            }
        }
    }

    /// Returns whether the node is a probe. If it is, adds the scalar to the schema.
    fn probe(&mut self, node: &Node, scalar: Scalar<'_>) -> bool {
        let is_probe = matches!(node.value, Value::Probe);
        if let Some(schema) = self.schema.as_mut().filter(|_| is_probe) {
            schema.scalar(scalar);
        }
        is_probe
    }

    /// Runs `read` on a node inside the current one, then `leave` on the schema.
    fn inside<T>(&mut self, read: impl FnOnce(&mut Self) -> T, leave: impl FnOnce(&mut SchemaBuilder)) -> T {
        self.schema.iter_mut().for_each(SchemaBuilder::enter);
        let read = read(self);
        if let Some(schema) = &mut self.schema {
            leave(schema);
        }
        read
    }
}

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(none)" } else { "Secret(…)" })
    }
}

/// The keys of a mapping. It records which keys the decoder reads, so that `end` can report the others.
pub(crate) struct Fields<'n> {
    location: &'n Location,
    entries: &'n [(TreeKey, Node)],
    known: Vec<&'static str>,
    /// The value of every key, if the mapping is a probe.
    probe: Option<&'n Node>,
}

impl<'n> Fields<'n> {
    /// Returns the fields of a mapping. Any other value is a fault; `what` names the mapping in it.
    pub(crate) fn of(node: &'n Node, what: &str, cx: &mut DecodeContext<'_>) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => Some(Self { location: &node.location, entries, known: Vec::new(), probe: None }),
            Value::Null => Some(Self { location: &node.location, entries: &[], known: Vec::new(), probe: None }),
            Value::Probe => {
                cx.schema.iter_mut().for_each(SchemaBuilder::mapping);
                Some(Self { location: &node.location, entries: &[], known: Vec::new(), probe: Some(node) })
            }
            Value::Faulty => None,
            Value::Unset(unset) => {
                cx.unset(&node.location, unset);
                None
            }
            _ => {
                cx.faults.add(&node.location, format!("{what} must be a mapping (key: value)"));
                None
            }
        }
    }

    /// Returns the location of the mapping.
    #[must_use]
    pub(crate) fn location(&self) -> &Location {
        self.location
    }

    /// Returns the node of a key; `None` if the key is missing or has no value.
    pub(crate) fn node(&mut self, key: &'static str) -> Option<&'n Node> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        if self.probe.is_some() {
            return self.probe;
        }
        let node = self.entries.iter().find(|(k, _)| k.name == key).map(|(_, node)| node)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// Returns whether the file has this key, also without a value or with a fault.
    #[must_use]
    pub(crate) fn is_written(&self, key: &str) -> bool {
        self.entries.iter().any(|(known, _)| known.name == key)
    }

    /// Reads an optional key. Returns `None` if it is missing, or if `read` reports a fault.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        cx: &mut DecodeContext<'_>,
        read: impl FnOnce(&'n Node, &mut DecodeContext<'_>) -> Option<T>,
    ) -> Option<T> {
        let node = self.node(key)?;
        cx.inside(|cx| read(node, cx), |schema| schema.leave_key(key, false))
    }

    /// Reads a required key. A missing key is a fault.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        cx: &mut DecodeContext<'_>,
        read: impl FnOnce(&'n Node, &mut DecodeContext<'_>) -> Option<T>,
    ) -> Option<T> {
        match self.node(key) {
            Some(node) => cx.inside(|cx| read(node, cx), |schema| schema.leave_key(key, true)),
            None => {
                if !cx.truncated && !self.is_written(key) {
                    cx.faults.add(self.location, format!("missing key {key:?}"));
                }
                None
            }
        }
    }

    /// Reports every key that the decoder does not know, and every known key without a value.
    pub(crate) fn end(self, cx: &mut DecodeContext<'_>) {
        for (key, node) in self.entries {
            if matches!(node.value, Value::Null) && !cx.truncated && self.known.contains(&key.name.as_str()) {
                cx.faults.add(&key.location, format!("{:?} has no value; write one, or remove the key", key.name));
            }
            if !self.known.contains(&key.name.as_str()) {
                cx.faults.add(&key.location, unknown("key", &key.name, self.known.iter().copied()));
            }
        }
    }
}

/// Reads a text; no value is the empty text.
pub(crate) fn text(node: &Node, cx: &mut DecodeContext<'_>) -> Option<String> {
    if cx.probe(node, Scalar::Text) {
        return None;
    }
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Unset(unset) => cx.unset(&node.location, unset).map(str::to_owned),
        Value::Faulty => None,
        Value::Null => Some(String::new()),
        _ => {
            cx.faults.add(&node.location, "this must be a single value, not a list or mapping");
            None
        }
    }
}

/// Reads a text that is not empty, with its location.
pub(crate) fn at_text(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    if cx.probe(node, Scalar::NonEmptyText) {
        return None;
    }
    let value = text(node, cx)?;
    if value.is_empty() {
        cx.faults.add(&node.location, "this value must not be empty");
        return None;
    }
    Some(Located { value, location: node.location.clone() })
}

/// Reads each item of a list with `read`. A single value is a list of one.
pub(crate) fn list<T>(
    node: &Node,
    cx: &mut DecodeContext<'_>,
    mut read: impl FnMut(&Node, &mut DecodeContext<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    match &node.value {
        Value::Probe => {
            cx.inside(|cx| read(node, cx), SchemaBuilder::leave_list);
            None
        }
        Value::List(items) => Some(items.iter().filter_map(|item| read(item, cx)).collect()),
        _ => read(node, cx).map(|one| vec![one]),
    }
}

/// Reads each entry of a mapping with `read`, in the order of the file. `known` lists the possible keys for the schema;
/// it is empty if any key is possible. `what` names the mapping in a fault.
pub(crate) fn entries<T>(
    node: &Node,
    what: &str,
    known: &[&str],
    cx: &mut DecodeContext<'_>,
    mut read: impl FnMut(&TreeKey, &Node, &mut DecodeContext<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    match &node.value {
        Value::Map(entries) => Some(entries.iter().filter_map(|(key, node)| read(key, node, cx)).collect()),
        Value::Null => Some(Vec::new()),
        Value::Probe => {
            let key =
                TreeKey { name: known.first().copied().unwrap_or("name").to_owned(), location: node.location.clone() };
            cx.inside(|cx| read(&key, node, cx), |schema| schema.leave_entries(known));
            None
        }
        Value::Faulty => None,
        Value::Unset(unset) => {
            cx.unset(&node.location, unset);
            None
        }
        _ => {
            cx.faults.add(&node.location, format!("{what} must be a mapping (key: value)"));
            None
        }
    }
}

/// Reads a mapping with `mapping`, and any other value with `other`.
pub(crate) fn mapping_or<T>(
    node: &Node,
    cx: &mut DecodeContext<'_>,
    mapping: impl FnOnce(&Node, &mut DecodeContext<'_>) -> Option<T>,
    other: impl FnOnce(&Node, &mut DecodeContext<'_>) -> Option<T>,
) -> Option<T> {
    match &node.value {
        Value::Map(_) => mapping(node, cx),
        Value::Probe => {
            mapping(node, cx);
            other(node, cx)
        }
        _ => other(node, cx),
    }
}

/// Reads one of some words and returns the value that belongs to it. `what` names the kind of word in a fault.
pub(crate) fn one_of<T: Copy>(node: &Node, cx: &mut DecodeContext<'_>, what: &str, words: &[(&str, T)]) -> Option<T> {
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    if cx.probe(node, Scalar::OneOf(&known)) {
        return None;
    }
    let at = at_text(node, cx)?;
    let found = words.iter().find(|(word, _)| *word == at.value).map(|(_, value)| *value);
    cx.faults.keep(&at.location, found.ok_or_else(|| unknown(what, &at.value, known.into_iter())))
}

/// Reads a text with `parse`; its error is the fault. The schema has the text's pattern.
pub(crate) fn parsed_text<T>(
    node: &Node,
    cx: &mut DecodeContext<'_>,
    pattern: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Located<T>> {
    if cx.probe(node, Scalar::Pattern(pattern)) {
        return None;
    }
    let at = at_text(node, cx)?;
    cx.faults.keep(&at.location, parse(&at.value)).map(|value| Located { value, location: at.location })
}

/// Reads a name: 1 to 64 letters, digits, `-` and `_`. Names become metric labels and parts of ids.
pub(crate) fn name(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    let good = |text: &str| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    parsed_text(node, cx, "^[A-Za-z0-9_-]{1,64}$", |text| match good(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a valid name; use 1 to 64 letters, digits, - and _")),
    })
}

/// Reads a scalar with `parse`. The fault for any other text says that it is not `expected`.
fn scalar<T>(
    node: &Node,
    cx: &mut DecodeContext<'_>,
    scalar: Scalar<'_>,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    if cx.probe(node, scalar) {
        return None;
    }
    let text = text(node, cx)?;
    let value = parse(&text);
    if value.is_none() {
        cx.faults.add(&node.location, format!("{text:?} is not {expected}"));
    }
    value
}

/// Reads `true` or `false`; `on` and `off` mean the same.
pub(crate) fn boolean(node: &Node, cx: &mut DecodeContext<'_>) -> Option<bool> {
    scalar(node, cx, Scalar::Boolean, "true or false (or on, off)", |text| match text {
        "true" | "on" => Some(true),
        "false" | "off" => Some(false),
        _ => None,
    })
}

/// Reads a whole number, `minimum` or more.
pub(crate) fn integer(node: &Node, cx: &mut DecodeContext<'_>, minimum: u64) -> Option<u64> {
    scalar(node, cx, Scalar::Integer(minimum, u64::MAX), &format!("a whole number from {minimum}"), |text| {
        text.parse().ok().filter(|number| *number >= minimum)
    })
}

/// Reads a whole number from 1 to 4,294,967,295.
pub(crate) fn positive_integer(node: &Node, cx: &mut DecodeContext<'_>) -> Option<NonZeroU32> {
    scalar(node, cx, Scalar::Integer(1, u64::from(u32::MAX)), "a whole number from 1 to 4294967295", |text| {
        text.parse().ok()
    })
}

/// Reads `0` or `1`: the number of the first of something.
pub(crate) fn zero_or_one(node: &Node, cx: &mut DecodeContext<'_>) -> Option<u64> {
    scalar(node, cx, Scalar::Integer(0, 1), "a number to count from; write 0 or 1", |text| {
        text.parse().ok().filter(|number| *number <= 1)
    })
}

/// Reads a number from 0 to 1.
pub(crate) fn fraction(node: &Node, cx: &mut DecodeContext<'_>) -> Option<f64> {
    scalar(node, cx, Scalar::Fraction, "a number from 0 to 1, such as 0.01", |text| {
        text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction))
    })
}

/// Reads an HTTP error status, 400 to 599.
pub(crate) fn error_status(node: &Node, cx: &mut DecodeContext<'_>) -> Option<u16> {
    if cx.probe(node, Scalar::Integer(400, 599)) {
        return None;
    }
    let number = integer(node, cx, 400)?;
    let status = u16::try_from(number).ok().filter(|status| *status <= 599);
    cx.faults.keep(&node.location, status.ok_or_else(|| format!("{number} is not an error status, 400 to 599")))
}

/// Reads a duration: one integer and a unit (`ms s m h d`), at most a hundred years.
pub(crate) fn duration(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Duration> {
    scalar(
        node,
        cx,
        Scalar::Duration,
        "a duration; write one integer and a unit (ms, s, m, h, d), such as 30s, at most 36525d",
        parse_duration,
    )
}

/// Reads a duration that is not zero.
pub(crate) fn positive_duration(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Duration> {
    scalar(
        node,
        cx,
        Scalar::Duration,
        "a duration above 0; write one integer and a unit (ms, s, m, h, d), such as 30s, at most 36525d",
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
    number.checked_mul(unit).filter(|ms| *ms <= LONGEST_DURATION).map(Duration::from_millis)
}

/// Returns the burst of a bucket that refills with `requests` in `per`. If an empty bucket is not full again within a
/// year, this is a fault at `location`, and the burst is 1, which every limiter can count.
pub(crate) fn checked_burst(
    location: &Location,
    requests: NonZeroU32,
    per: Duration,
    burst: NonZeroU32,
    cx: &mut DecodeContext<'_>,
) -> NonZeroU32 {
    const YEAR: f64 = 365.0 * 86_400.0;
    let seconds = per.as_secs_f64() / f64::from(requests.get()) * f64::from(burst.get());
    if seconds <= YEAR {
        return burst;
    }
    cx.faults.add(location, "the bucket takes more than a year to fill; lower burst or per, or raise requests");
    NonZeroU32::MIN
}

/// Reads a size above 0: one integer and a unit (`B KiB MiB GiB`). An integer without a unit is a number of bytes.
pub(crate) fn size(node: &Node, cx: &mut DecodeContext<'_>) -> Option<u64> {
    let expected =
        "a size; write one integer above 0 and a unit (B, KiB, MiB, GiB), such as 256MiB; without a unit it is bytes";
    scalar(node, cx, Scalar::Size, expected, parse_size)
}

fn parse_size(text: &str) -> Option<u64> {
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
}

/// Reads a secret: its text, or `{ file: PATH }`.
pub(crate) fn secret(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Secret> {
    let from_file = |node: &Node, cx: &mut DecodeContext<'_>| {
        let mut fields = Fields::of(node, "a secret", cx)?;
        let path = fields.required("file", cx, at_text);
        fields.end(cx);
        let path = path?;
        let text = cx.file(&path, "secret file");
        if text.is_none() && cx.missing.is_some() {
            cx.faults.expect_none_at(&node.location);
            return Some(Secret(MISSING_SECRET.to_owned()));
        }
        text.map(Secret)
    };
    mapping_or(node, cx, from_file, |node, cx| {
        let text = text(node, cx)?;
        let is_missing = matches!(node.value, Value::Unset(_));
        Some(Secret(if is_missing { text + MISSING_SECRET } else { text }))
    })
}

/// Reads a URL. A URL with a variable that is not set, if that is accepted, gets the host `unset.invalid`.
pub(crate) fn url(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    let mut url = at_text(node, cx)?;
    if matches!(node.value, Value::Unset(_)) && !url.value.contains("://") {
        url.value = format!("https://{PLACEHOLDER}.invalid");
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_one_integer_and_a_unit() {
        assert_eq!(parse_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("2d"), Some(Duration::from_secs(172_800)));
        assert_eq!(parse_duration("36525d"), Some(Duration::from_secs(36_525 * 86_400)));
        for wrong in ["30", "s", "1.5s", "1h30m", "-1s", "30 s", "36526d", "99999999999999999d", ""] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_size_is_one_integer_and_an_optional_unit() {
        assert_eq!(parse_size("300"), Some(300), "a number without a unit is bytes");
        assert_eq!(parse_size("300B"), Some(300));
        assert_eq!(parse_size("4MiB"), Some(4 << 20));
        for wrong in ["0", "0MiB", "MiB", "4MB", "4 MiB", "1.5MiB", "-1", "99999999999GiB", ""] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn debug_does_not_show_a_secret() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "Secret(…)");
    }
}
