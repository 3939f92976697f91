//! Parses JSON and keeps the order of keys and every digit of a number.
//!
//! `serde_json` alone does not suffice. To keep digits it represents a number as an object with a private key, and it
//! rejects a body in which a real object has that key. A user who can write metadata could thus make a session, and
//! every list that contains it, unreadable. This parser treats such a key as an ordinary key.

use crate::base::json_text::JsonText;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// The private key under which `serde_json` passes a number with its digits.
const NUMBER: &str = "$serde_json::private::Number";

/// Parses a JSON text. A string that is not Unicode becomes `null`.
///
/// # Errors
/// The position at which the text is not valid JSON, or nested deeper than 128 levels.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    // One UTF-8 check of the whole text is faster than one for each string. For invalid UTF-8, `from_slice` reports
    // where.
    let parsed = match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(text),
    };
    match parsed {
        Ok(Tree(value)) => Ok(value),
        // A string that is not Unicode makes only itself unusable.
        Err(error) => JsonText::parse(text).map(|text| text.to_value()).ok_or(error),
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
