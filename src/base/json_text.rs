//! Reads a JSON text into a tree whose strings and numbers keep their bytes, so that it can be written again without
//! some of its members.
//!
//! `serde_json::Value` does not suffice: it cannot hold a string that is not Unicode, such as half of a surrogate pair.
//! Of members with the same name only the last one stays, as in `serde_json::Value`.

use serde::de::{Deserializer, Error, IgnoredAny, Visitor};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt;

/// The most levels of nesting in a session, its own object included.
pub(crate) const MAX_DEPTH: usize = 128;
/// The most levels of nesting in a body: those of a session, and those around it.
pub(crate) const MAX_BODY_DEPTH: usize = MAX_DEPTH + 32;
/// The most members of an object that are compared one by one to find those with the same name.
const FEW: usize = 16;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JsonText<'t> {
    /// A string, a number, `true`, `false` or `null`, as in the text.
    Scalar(&'t [u8]),
    /// The elements of an array.
    Array(Vec<JsonText<'t>>),
    /// The members of an object, in order.
    Object(Vec<JsonMember<'t>>),
}

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonMember<'t> {
    /// The name, decoded.
    pub name: String,
    /// The name as in the text, with its quotes.
    raw: &'t [u8],
    /// The value.
    pub value: JsonText<'t>,
}

impl<'t> JsonText<'t> {
    /// Parses a text. `None` if it is not JSON or nested too deep. The bytes of strings need not be UTF-8.
    #[must_use]
    pub(crate) fn parse(text: &'t [u8]) -> Option<Self> {
        Reader::of(text, Below::Fails)?.value(MAX_DEPTH)
    }

    /// Parses a text. `None` if it is not JSON. An array or object below [`MAX_BODY_DEPTH`] levels becomes `null`. The bytes
    /// of strings need not be UTF-8.
    #[must_use]
    pub(crate) fn parse_cut(text: &'t [u8]) -> Option<Self> {
        Reader::of(text, Below::BecomesNull)?.value(MAX_BODY_DEPTH)
    }

    /// Returns whether this is an object.
    #[must_use]
    pub(crate) fn is_object(&self) -> bool {
        matches!(self, JsonText::Object(_))
    }

    /// Returns whether this is a string that is not empty.
    #[must_use]
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, JsonText::Scalar([b'"', _, _, ..]))
    }

    /// Returns whether this is `null`.
    #[must_use]
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, JsonText::Scalar(b"null"))
    }

    /// Returns a member of an object.
    #[must_use]
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        let JsonText::Object(members) = self else { return None };
        members.iter().find(|member| member.name == name).map(|member| &member.value)
    }

    /// Returns a member of an object, to change it.
    #[must_use]
    pub(crate) fn member_mut(&mut self, name: &str) -> Option<&mut Self> {
        let JsonText::Object(members) = self else { return None };
        members.iter_mut().find(|member| member.name == name).map(|member| &mut member.value)
    }

    /// Appends the text without white space between its parts.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            JsonText::Scalar(raw) => out.extend_from_slice(raw),
            JsonText::Array(items) => {
                out.push(b'[');
                for (position, item) in items.iter().enumerate() {
                    if position > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            JsonText::Object(members) => {
                out.push(b'{');
                for (position, member) in members.iter().enumerate() {
                    if position > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(member.raw);
                    out.push(b':');
                    member.value.write(out);
                }
                out.push(b'}');
            }
        }
    }

    /// Returns the value. A string that is not Unicode becomes `null`.
    #[must_use]
    pub(crate) fn to_value(&self) -> Value {
        self.to_value_with(&|_| Value::Null)
    }

    /// Returns the value. In a string that is not Unicode, U+FFFD replaces what is not.
    #[must_use]
    pub(crate) fn to_value_with_replacements(&self) -> Value {
        self.to_value_with(&|raw| {
            serde_json::Deserializer::from_slice(raw).deserialize_bytes(Lossy).unwrap_or_default()
        })
    }

    fn to_value_with(&self, not_unicode: &dyn Fn(&[u8]) -> Value) -> Value {
        match self {
            JsonText::Scalar(raw) => serde_json::from_slice(raw).unwrap_or_else(|_| not_unicode(raw)),
            JsonText::Array(items) => items.iter().map(|item| item.to_value_with(not_unicode)).collect(),
            JsonText::Object(members) => {
                let value = |member: &JsonMember<'_>| (member.name.clone(), member.value.to_value_with(not_unicode));
                Value::Object(members.iter().map(value).collect::<Map<_, _>>())
            }
        }
    }
}

/// Reads a string of any bytes.
struct Lossy;

impl Visitor<'_> for Lossy {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(String::from_utf8_lossy(bytes).into())
    }
}

/// What an array or object below the most levels of nesting does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Fails,
    BecomesNull,
}

/// Reads a text whose syntax has been checked.
struct Reader<'t> {
    text: &'t [u8],
    at: usize,
    below: Below,
}

impl<'t> Reader<'t> {
    /// Checks the syntax, so that the other functions can rely on it.
    fn of(text: &'t [u8], below: Below) -> Option<Self> {
        serde_json::from_slice::<IgnoredAny>(text).ok()?;
        Some(Self { text, at: 0, below })
    }

    /// Skips white space and returns the next byte.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.text.get(self.at)?, b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    /// Skips the next byte if it is this one, after white space.
    fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Option<JsonText<'t>> {
        match self.peek()? {
            b'[' | b'{' if depth == 0 => match self.below {
                Below::Fails => None,
                Below::BecomesNull => self.skip_nested().map(|()| JsonText::Scalar(b"null")),
            },
            b'[' => {
                let mut items = Vec::new();
                self.at += 1;
                while !self.skip(b']') {
                    items.push(self.value(depth - 1)?);
                    self.skip(b',');
                }
                Some(JsonText::Array(items))
            }
            b'{' => {
                let mut members = Vec::new();
                self.at += 1;
                while !self.skip(b'}') {
                    let raw = self.string()?;
                    self.skip(b':');
                    members.push(JsonMember { name: decoded(raw), raw, value: self.value(depth - 1)? });
                    self.skip(b',');
                }
                Some(JsonText::Object(last_of_each_name(members)))
            }
            b'"' => self.string().map(JsonText::Scalar),
            _ => {
                let rest = &self.text[self.at..];
                let end =
                    rest.iter().position(|byte| matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r'));
                let raw = &rest[..end.unwrap_or(rest.len())];
                self.at += raw.len();
                Some(JsonText::Scalar(raw))
            }
        }
    }

    /// Skips the array or object at the position, however deep it is.
    fn skip_nested(&mut self) -> Option<()> {
        let mut open = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'[' | b'{' => open += 1,
                b']' | b'}' => open -= 1,
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                return Some(());
            }
        }
    }

    /// Returns the string at the position, with its quotes.
    fn string(&mut self) -> Option<&'t [u8]> {
        self.peek()?;
        let start = self.at;
        self.at += 1;
        loop {
            match self.text.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.text.get(start..self.at)
    }
}

/// Decodes the name of a member. Replaces what is not Unicode.
fn decoded(raw: &[u8]) -> String {
    serde_json::from_slice(raw).unwrap_or_else(|_| String::from_utf8_lossy(raw).trim_matches('"').to_owned())
}

/// Keeps the last value of each name, at the position of the first.
fn last_of_each_name(members: Vec<JsonMember<'_>>) -> Vec<JsonMember<'_>> {
    let is_first = |(position, member): (usize, &JsonMember<'_>)| {
        members[..position].iter().all(|earlier| earlier.name != member.name)
    };
    if members.len() <= FEW && members.iter().enumerate().all(is_first) {
        return members;
    }
    let mut kept: Vec<JsonMember<'_>> = Vec::with_capacity(members.len());
    let mut positions: HashMap<String, usize> = HashMap::with_capacity(members.len());
    for member in members {
        match positions.get(&member.name) {
            Some(position) => kept[*position].value = member.value,
            None => {
                positions.insert(member.name.clone(), kept.len());
                kept.push(member);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        JsonText::parse(text)?.write(&mut out);
        Some(out)
    }

    #[test]
    fn scalars_keep_their_bytes_and_white_space_goes() {
        for (text, expected) in [
            (
                &b" { \"z\" : 1.50 , \"\\u0061\" : [ ] , \"b\" : [ true , { } ] } "[..],
                &b"{\"z\":1.50,\"\\u0061\":[],\"b\":[true,{}]}"[..],
            ),
            (b"\"\\ud83d \\\" \\\\\"", b"\"\\ud83d \\\" \\\\\""),
            (b"[\"\xff\",-0.0e+1]", b"[\"\xff\",-0.0e+1]"),
            (b"null", b"null"),
        ] {
            assert_eq!(written(text).as_deref(), Some(expected), "{}", String::from_utf8_lossy(text));
        }
        for bad in [&b""[..], b"{\"a\":}", b"{} {}", b"[1,]", b"\"\\x\"", b"{\"a\":1"] {
            assert_eq!(written(bad), None, "{}", String::from_utf8_lossy(bad));
        }
        assert!(written("[".repeat(128).as_bytes()).is_none());
        assert!(written(format!("{}{}", "[".repeat(128), "]".repeat(128)).as_bytes()).is_some());
        assert!(written(format!("{}{}", "[".repeat(129), "]".repeat(129)).as_bytes()).is_none());
    }

    #[test]
    fn of_members_with_the_same_name_the_last_value_stays() {
        assert_eq!(written(br#"{"a":{"x":1},"b":2,"\u0061":3}"#).unwrap(), br#"{"a":3,"b":2}"#);
        let many: String = (0..40).map(|n| format!("\"k{}\":{n},", n % 20)).collect();
        let many = format!("{{{}}}", many.trim_end_matches(','));
        let value: Value = serde_json::from_str(&many).unwrap();
        assert_eq!(written(many.as_bytes()).unwrap(), value.to_string().as_bytes());
    }

    #[test]
    fn a_string_that_is_not_unicode_becomes_null_in_the_value() {
        let text = JsonText::parse(b"{\"a\":\"\\ud83d\",\"b\":\"\xff\",\"c\":\"d\"}").unwrap();
        assert_eq!(text.to_value().to_string(), r#"{"a":null,"b":null,"c":"d"}"#);
    }

    #[test]
    fn what_is_nested_below_the_limit_becomes_null_and_the_rest_is_read() {
        let nested = |depth: usize| format!("{}\"]}}{{[\\\"\"{}", "[".repeat(depth), "]".repeat(depth));
        let cut = |text: &str| {
            let mut out = Vec::new();
            JsonText::parse_cut(text.as_bytes())?.write(&mut out);
            String::from_utf8(out).ok()
        };
        let whole = format!(r#"{{"a":{},"b":1}}"#, nested(MAX_BODY_DEPTH - 1));
        assert_eq!(cut(&whole).as_deref(), Some(&*whole));
        for more in [0, 1, 5000] {
            let (deep, rest) = (nested(MAX_BODY_DEPTH + more), nested(0));
            let levels = MAX_BODY_DEPTH - 1;
            let expected = format!(r#"{{"a":{}null{},"b":{rest}}}"#, "[".repeat(levels), "]".repeat(levels));
            assert_eq!(cut(&format!(r#"{{"a": {deep} , "b":{rest}}}"#)), Some(expected), "{more}");
        }
        assert_eq!(cut(&"[".repeat(1000)), None);
    }

    #[test]
    fn text_that_is_not_unicode_is_replaced_on_request() {
        let text =
            JsonText::parse(b"{\"a\":\"x \\ud83d \\u00e9 \\\" y\",\"b\":\"\xff!\",\"c\":\"d\",\"e\":[1.50]}").unwrap();
        let expected =
            "{\"a\":\"x \u{fffd}\u{fffd}\u{fffd} \u{e9} \\\" y\",\"b\":\"\u{fffd}!\",\"c\":\"d\",\"e\":[1.50]}";
        assert_eq!(text.to_value_with_replacements().to_string(), expected);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec(("[ab\\\\\"é]{0,2}", inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_value_is_written_as_it_was_read(value in json()) {
            let text = value.to_string();
            prop_assert_eq!(written(text.as_bytes()).unwrap(), text.as_bytes());
            let pretty = serde_json::to_vec_pretty(&value).unwrap();
            prop_assert_eq!(written(&pretty).unwrap(), text.as_bytes());
            prop_assert_eq!(JsonText::parse(&pretty).unwrap().to_value(), value);
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b'{'), Just(b'}'), Just(b'\\'), Just(b':'), Just(b'['), Just(b','), any::<u8>()], 0..24)) {
            let strict: Result<Value, _> = serde_json::from_slice(&text);
            let read = JsonText::parse(&text);
            if let Ok(strict) = strict {
                prop_assert_eq!(read.unwrap().to_value(), strict);
            }
        }
    }
}
