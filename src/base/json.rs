//! Parses JSON and keeps the order of keys and every digit of a number.
//!
//! `serde_json` alone does not suffice. To keep digits it represents a number as an object with a private key, and it
//! rejects a body in which a real object has that key. A user who can write metadata could thus make a session, and
//! every list that contains it, unreadable. This parser treats such a key as an ordinary key.

use crate::base::json_text::{JsonText, MAX_DEPTH};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::fmt;

/// The private key under which `serde_json` passes a number with its digits.
const NUMBER: &str = "$serde_json::private::Number";

/// Parses a JSON text. A string that is not Unicode becomes `null`, and so does an array or object that is nested deeper
/// than any session may be.
///
/// # Errors
/// The position at which the text is not valid JSON.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    ParsedJson::of(text).map(|parsed| parsed.value)
}

/// A parsed JSON text.
#[derive(Debug)]
pub struct ParsedJson<'t> {
    /// The value, as [`parse`] returns it.
    pub value: Value,
    /// The text, if the value may not have all of it.
    text: Option<JsonText<'t>>,
}

impl<'t> ParsedJson<'t> {
    /// Parses a JSON text.
    ///
    /// # Errors
    /// The position at which the text is not valid JSON.
    pub fn of(text: &'t [u8]) -> Result<Self, serde_json::Error> {
        // One UTF-8 check of the whole text is faster than one for each string. For invalid UTF-8, `from_slice` reports
        // where.
        let parsed = match std::str::from_utf8(text) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(text),
        };
        match parsed {
            Ok(Tree(value)) => Ok(Self { value, text: None }),
            // A string that is not Unicode, or a value that is nested too deep, makes only itself unusable.
            Err(error) => match JsonText::parse_cut(text) {
                Some(text) => Ok(Self { value: text.to_value(), text: Some(text) }),
                None => Err(error),
            },
        }
    }

    /// Returns the value. In a string that is not Unicode, U+FFFD replaces what is not.
    #[must_use]
    pub(crate) fn with_replacements(&self) -> Cow<'_, Value> {
        self.text.as_ref().map_or(Cow::Borrowed(&self.value), |text| Cow::Owned(text.to_value_with_replacements()))
    }

    /// Returns whether a part of the value has more than [`MAX_DEPTH`] levels.
    #[must_use]
    pub(crate) fn is_too_deep(&self, part: &Value) -> bool {
        // The other parser reads fewer levels.
        self.text.is_some() && is_deeper(part, MAX_DEPTH)
    }
}

impl From<Value> for ParsedJson<'_> {
    fn from(value: Value) -> Self {
        Self { value, text: None }
    }
}

/// Returns whether a value has more levels of arrays and objects than these.
fn is_deeper(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Array(_) | Value::Object(_), None) => true,
        (Value::Array(items), Some(levels)) => items.iter().any(|item| is_deeper(item, levels)),
        (Value::Object(members), Some(levels)) => members.values().any(|member| is_deeper(member, levels)),
        _ => false,
    }
}

struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Tree)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Tree(value)) = items.next_element()? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        let mut next: Option<String> = members.next_key()?;
        if next.as_deref() == Some(NUMBER) {
            let Tree(value) = members.next_value()?;
            next = members.next_key()?;
            let number = value.as_str().filter(|_| next.is_none()).and_then(|text| text.parse::<Number>().ok());
            if let Some(number) = number {
                return Ok(Value::Number(number));
            }
            all.insert(NUMBER.to_owned(), value);
        }
        while let Some(key) = next {
            let Tree(value) = members.next_value()?;
            all.insert(key, value);
            next = members.next_key()?;
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_order_and_digits_are_kept() {
        for text in [
            r#"{"z":1,"a":[1.0,12345678901234567890123,-0.0,1.50,true,null,"x",{}],"b":{"c":"d"}}"#,
            "[]",
            "\"x\"",
            "7",
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
        }
        assert!(parse(b"{\"a\":").is_err() && parse(b"{} x").is_err() && parse(b"").is_err());
        assert!(parse("[".repeat(1000).as_bytes()).is_err());
    }

    #[test]
    fn a_string_that_is_not_unicode_becomes_null() {
        let text = b"{\"a\":\"half of a pair: \\ud83d\",\"b\":[1.0,\"\xe9\"],\"c\":\"d\"}";
        assert_eq!(parse(text).unwrap().to_string(), r#"{"a":null,"b":[1.0,null],"c":"d"}"#);
    }

    #[test]
    fn a_value_is_too_deep_above_128_levels_wherever_it_stands() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (levels, expected) in [(1, false), (120, false), (127, false), (128, false), (129, true), (10_000, true)] {
            for around in [0, 1, 5, 31] {
                let text = format!("{}{},\"x\"{}", "[".repeat(around), deep(levels), "]".repeat(around));
                let text = if around == 0 { deep(levels) } else { text };
                let parsed = ParsedJson::of(text.as_bytes()).unwrap();
                let part = (0..around).fold(&parsed.value, |value, _| &value[0]);
                assert_eq!(parsed.is_too_deep(part), expected, "{levels} in {around}");
            }
        }
        assert!(parse("[".repeat(1000).as_bytes()).is_err());
    }

    #[test]
    fn the_private_key_of_serde_json_is_an_ordinary_key() {
        for text in [
            r#"{"$serde_json::private::Number":"x"}"#,
            r#"{"$serde_json::private::Number":{"a":1},"b":2}"#,
            r#"{"a":1,"$serde_json::private::Number":"5"}"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }
}
