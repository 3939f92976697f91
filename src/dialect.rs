//! Weir's own errors in the shape of a provider's, so that its SDK raises the right exception.
//!
//! A room of its own because every provider's shape is data: JSON from its file, with our words in its
//! strings. It decides nothing; the problem and its status are given.

use crate::config::faults::Faults;
use crate::config::native::{Shape, ShapeHeader};
use crate::error::{Problem, TABLE};
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Variables that every shape has.
const VARIABLES: [&str; 7] = ["status", "code", "title", "detail", "retry_after", "request_id", "request_uuid"];

/// A shape, compiled.
#[derive(Debug)]
pub struct Dialect {
    body: Value,
    words: Vec<Words>,
    headers: Vec<Header>,
}

#[derive(Debug)]
struct Words {
    name: String,
    by_code: Vec<(String, String)>,
}

#[derive(Debug)]
struct Header {
    name: HeaderName,
    value: HeaderValue,
    status: Vec<u16>,
    retry_after_over: Option<Duration>,
}

impl Dialect {
    /// Compiles a shape, reporting every fault.
    pub fn compile(shape: &Shape, faults: &mut Faults) -> Option<Self> {
        let words: Vec<Words> = shape.words.iter().map(|(name, entries)| words(&name.value, entries, faults)).collect();
        for (group, (name, _)) in words.iter().zip(&shape.words) {
            if VARIABLES.contains(&group.name.as_str()) {
                faults.add(&name.place, format!("{:?} is a variable already; take another name", group.name));
            }
        }
        let headers = shape.headers.iter().filter_map(|header| self::header(header, faults)).collect();
        let body = serde_json::from_str(&shape.body.value).map_err(|error| format!("body is not JSON: {error}"));
        let body: Value = faults.keep(&shape.body.place, body)?;
        let known = || VARIABLES.into_iter().chain(words.iter().map(|group| group.name.as_str()));
        for variable in variables(&body) {
            if !known().any(|name| name == variable) {
                faults.add(&shape.body.place, crate::config::decode::unknown("variable", &variable, known()));
            }
        }
        Some(Self { body, words, headers })
    }

    /// The body of a problem, and the headers that go with it.
    #[must_use]
    pub fn render(&self, problem: &Problem, request_id: &str) -> (Vec<u8>, Vec<(HeaderName, HeaderValue)>) {
        let mut body = self.body.clone();
        self.fill(&mut body, problem, request_id);
        let wait = problem.retry_after.map(Duration::from_secs);
        let fits = |header: &&Header| {
            (header.status.is_empty() || header.status.contains(&problem.code.status()))
                && header.retry_after_over.is_none_or(|over| wait.is_some_and(|wait| wait > over))
        };
        let headers = self.headers.iter().filter(fits).map(|h| (h.name.clone(), h.value.clone())).collect();
        (body.to_string().into_bytes(), headers)
    }

    fn fill(&self, value: &mut Value, problem: &Problem, request_id: &str) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.fill(item, problem, request_id)),
            Value::Object(members) => members.values_mut().for_each(|member| self.fill(member, problem, request_id)),
            Value::String(text) => {
                // A number that stands alone stays one.
                let number = match text.as_str() {
                    "{status}" => Some(Value::from(problem.code.status())),
                    "{retry_after}" => Some(Value::from(problem.retry_after)),
                    _ => None,
                };
                *value = number.unwrap_or_else(|| Value::String(self.text(text, problem, request_id)));
            }
            _ => {}
        }
    }

    /// A template's text, with what its variables stand for. What they stand for is not read again.
    fn text(&self, template: &str, problem: &Problem, request_id: &str) -> String {
        let mut out = String::with_capacity(template.len() + 64);
        let mut rest = template;
        while let Some((before, name, after)) = next_variable(rest) {
            out.push_str(before);
            out.push_str(&self.variable(name, problem, request_id));
            rest = after;
        }
        out + rest
    }

    fn variable(&self, name: &str, problem: &Problem, request_id: &str) -> String {
        let code = problem.code;
        match name {
            "status" => code.status().to_string(),
            "code" => code.as_str().to_owned(),
            "title" => code.title().to_owned(),
            "detail" => problem.detail.clone(),
            "retry_after" => problem.retry_after.map_or_else(String::new, |seconds| seconds.to_string()),
            "request_id" => request_id.to_owned(),
            "request_uuid" => uuid(request_id),
            _ => {
                let words = self.words.iter().find(|group| group.name == name);
                let word = |wanted: &str| words?.by_code.iter().find(|(code, _)| code == wanted);
                word(code.as_str()).or_else(|| word("default")).map_or_else(String::new, |(_, word)| word.clone())
            }
        }
    }
}

fn words(name: &str, entries: &[(crate::config::faults::At<String>, String)], faults: &mut Faults) -> Words {
    let known = || TABLE.iter().map(|row| row.2).chain(["default"]);
    for (code, _) in entries {
        if !known().any(|name| name == code.value) {
            faults.add(&code.place, crate::config::decode::unknown("code", &code.value, known()));
        }
    }
    let by_code = entries.iter().map(|(code, word)| (code.value.clone(), word.clone())).collect();
    Words { name: name.to_owned(), by_code }
}

fn header(config: &ShapeHeader, faults: &mut Faults) -> Option<Header> {
    let name = HeaderName::from_bytes(config.name.value.as_bytes())
        .map_err(|_| format!("{:?} is not a header's name", config.name.value));
    let value = HeaderValue::from_str(&config.value.value)
        .map_err(|_| "this holds characters that a header cannot have".to_owned());
    let (name, value) = (faults.keep(&config.name.place, name), faults.keep(&config.value.place, value));
    Some(Header {
        name: name?,
        value: value?,
        status: config.status.clone(),
        retry_after_over: config.retry_after_over,
    })
}

/// Text before the next `{name}`, the name, and the text after it. Other braces are text.
fn next_variable(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let open = from + text[from..].find('{')?;
        let close = open + text[open..].find('}')?;
        let name = &text[open + 1..close];
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            return Some((&text[..open], name, &text[close + 1..]));
        }
        from = open + 1;
    }
}

fn variables(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(variables).collect(),
        Value::Object(members) => members.values().flat_map(variables).collect(),
        Value::String(text) => {
            let (mut all, mut rest) = (Vec::new(), text.as_str());
            while let Some((_, name, after)) = next_variable(rest) {
                all.push(name.to_owned());
                rest = after;
            }
            all
        }
        _ => Vec::new(),
    }
}

/// A UUID that follows from the request's id (version 8, RFC 9562), for shapes that want one.
fn uuid(request_id: &str) -> String {
    let digest = Sha256::digest(request_id);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::{At, Place};
    use crate::error::Code;

    fn at(value: &str) -> At<String> {
        At { value: value.to_owned(), place: Place::top(&"f".into()) }
    }

    fn shape(body: &str) -> Shape {
        let words = vec![(at("name"), vec![(at("session_not_found"), "Gone".into()), (at("default"), "Else".into())])];
        let header = ShapeHeader {
            name: at("X-Hint"),
            value: at("stop"),
            status: vec![429],
            retry_after_over: Some(Duration::from_secs(3)),
        };
        Shape { body: at(body), words, headers: vec![header] }
    }

    fn rendered(body: &str, problem: &Problem) -> (Value, usize) {
        let mut faults = Faults::default();
        let dialect = Dialect::compile(&shape(body), &mut faults).unwrap();
        assert!(faults.is_empty());
        let (body, headers) = dialect.render(problem, "id-1");
        (serde_json::from_slice(&body).unwrap(), headers.len())
    }

    #[test]
    fn variables_are_filled_and_types_kept() {
        let problem = Problem::new(Code::SessionNotFound, "it says \"{code}\"\n and {detail}");
        let (body, headers) = rendered(
            r#"{"ok":false,"n":["{name}: {detail}","{status}","{retry_after}"],"u":"{request_uuid}","r":"<{request_id}> {x y}"}"#,
            &problem,
        );
        assert_eq!(body["ok"], false);
        assert_eq!(body["n"][0], "Gone: it says \"{code}\"\n and {detail}", "what is filled in is not read again");
        assert_eq!((&body["n"][1], &body["n"][2]), (&Value::from(404), &Value::Null));
        assert_eq!(body["r"], "<id-1> {x y}");
        let uuid = body["u"].as_str().unwrap();
        assert_eq!((uuid.len(), &uuid[14..15], uuid), (36, "8", &*super::uuid("id-1")));
        assert_eq!(headers, 0);
    }

    #[test]
    fn headers_have_conditions_and_words_a_default() {
        let limited = |ms| Problem::new(Code::RateLimitExceeded, "x").retry_after_ms(ms);
        assert_eq!(rendered(r#""{name}""#, &limited(3000)), (Value::from("Else"), 0));
        assert_eq!(rendered(r#""{name}""#, &limited(4000)), (Value::from("Else"), 1));
    }

    #[test]
    fn faults_name_what_is_known() {
        let fault = |body: &str| {
            let mut faults = Faults::default();
            Dialect::compile(&shape(body), &mut faults);
            faults.sorted().iter().map(|fault| fault.message.clone()).collect::<Vec<_>>().join("; ")
        };
        assert!(fault("{").contains("not JSON"));
        assert!(fault(r#""{detial}""#).contains("did you mean \"detail\"?"));
    }
}
