//! Reading JSON as it was sent: key order and every digit of a number are kept.
//!
//! A room of its own for one trap: to keep digits, `serde_json` passes numbers around as an object
//! with a private key, and so refuses a body in which somebody uses that key. Anybody who may write
//! metadata could make a session, and every list with it, unreadable. Here such a key is a key.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// The key under which `serde_json` hands a number over with its digits.
const NUMBER: &str = "$serde_json::private::Number";

/// Reads a JSON text.
///
/// # Errors
/// Where it is no JSON, or nested deeper than 128.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    // Told to be UTF-8 as a whole, which is quicker than string by string. What is not, is told by the library where.
    let read = match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(text),
    };
    read.map(|Tree(value)| value)
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
    fn what_is_read_is_what_was_sent() {
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
    fn the_private_key_of_a_library_is_a_key_like_any_other() {
        for text in [
            r#"{"$serde_json::private::Number":"x"}"#,
            r#"{"$serde_json::private::Number":{"a":1},"b":2}"#,
            r#"{"a":1,"$serde_json::private::Number":"5"}"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }
}
