//! Renders Weir's own errors in a provider's error format, so that the provider's SDK raises the right exception.
//!
//! The format is JSON from the provider file; its strings have variables for the values of the error.

use crate::base::problem::{Code, TABLE};
use crate::config::faults::Faults;
use crate::config::native::{ErrorFormat, ErrorHeader};
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::time::Duration;
use uuid::Uuid;

/// The variables that every format has.
const VARIABLES: [&str; 7] = ["status", "code", "title", "detail", "retry_after", "request_id", "request_uuid"];

/// The values of an error, for the variables of a format.
#[derive(Debug, Clone, Copy)]
pub struct ErrorValues<'v> {
    /// The problem code, which has a status and a title.
    pub code: Code,
    /// What is wrong.
    pub detail: &'v str,
    /// Seconds until a retry is useful.
    pub retry_after: Option<u64>,
    /// The request's id.
    pub request_id: &'v str,
}

/// A compiled error format.
#[derive(Debug)]
pub struct NativeErrors {
    body: Value,
    words: Vec<WordTable>,
    headers: Vec<CompiledHeader>,
}

/// A variable whose value depends on the problem code.
#[derive(Debug)]
struct WordTable {
    name: String,
    by_code: Vec<(String, String)>,
}

#[derive(Debug)]
struct CompiledHeader {
    name: HeaderName,
    value: HeaderValue,
    status: Vec<u16>,
    retry_after_over: Option<Duration>,
}

impl NativeErrors {
    /// Compiles a format, and reports every fault.
    pub fn compile(format: &ErrorFormat, faults: &mut Faults) -> Option<Self> {
        let words: Vec<WordTable> =
            format.words.iter().map(|(name, entries)| word_table(&name.value, entries, faults)).collect();
        for (table, (name, _)) in words.iter().zip(&format.words) {
            if VARIABLES.contains(&table.name.as_str()) {
                faults.add(&name.location, format!("{:?} is already a variable; use another name", table.name));
            }
        }
        let headers = format.headers.iter().filter_map(|header| self::header(header, faults)).collect();
        let body = serde_json::from_str(&format.body.value).map_err(|error| format!("body is not JSON: {error}"));
        let body: Value = faults.keep(&format.body.location, body)?;
        let known = || VARIABLES.into_iter().chain(words.iter().map(|table| table.name.as_str()));
        for variable in variables(&body) {
            if !known().any(|name| name == variable) {
                faults.add(&format.body.location, crate::base::typo::unknown("variable", &variable, known()));
            }
        }
        Some(Self { body, words, headers })
    }

    /// Returns the body and the additional headers of an error.
    #[must_use]
    pub fn render(&self, error: ErrorValues<'_>) -> (Vec<u8>, Vec<(HeaderName, HeaderValue)>) {
        let mut body = self.body.clone();
        self.fill(&mut body, error);
        let wait = error.retry_after.map(Duration::from_secs);
        let applies = |header: &&CompiledHeader| {
            (header.status.is_empty() || header.status.contains(&error.code.status()))
                && header.retry_after_over.is_none_or(|over| wait.is_some_and(|wait| wait > over))
        };
        let headers = self.headers.iter().filter(applies).map(|h| (h.name.clone(), h.value.clone())).collect();
        (body.to_string().into_bytes(), headers)
    }

    fn fill(&self, value: &mut Value, error: ErrorValues<'_>) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.fill(item, error)),
            Value::Object(members) => members.values_mut().for_each(|member| self.fill(member, error)),
            Value::String(text) => {
                // A string that is only this variable becomes a number.
                let number = match text.as_str() {
                    "{status}" => Some(Value::from(error.code.status())),
                    "{retry_after}" => Some(Value::from(error.retry_after)),
                    _ => None,
                };
                *value = number.unwrap_or_else(|| Value::String(self.text(text, error)));
            }
            _ => {}
        }
    }

    /// Replaces the variables of a template. Variables inside a value are not replaced.
    fn text(&self, template: &str, error: ErrorValues<'_>) -> String {
        let mut out = String::with_capacity(template.len() + 64);
        let mut rest = template;
        while let Some((before, name, after)) = next_variable(rest) {
            out.push_str(before);
            out.push_str(&self.variable(name, error));
            rest = after;
        }
        out + rest
    }

    fn variable(&self, name: &str, error: ErrorValues<'_>) -> String {
        let code = error.code;
        match name {
            "status" => code.status().to_string(),
            "code" => code.as_str().to_owned(),
            "title" => code.title().to_owned(),
            "detail" => error.detail.to_owned(),
            "retry_after" => error.retry_after.map_or_else(String::new, |seconds| seconds.to_string()),
            "request_id" => error.request_id.to_owned(),
            "request_uuid" => uuid(error.request_id),
            _ => {
                let words = self.words.iter().find(|table| table.name == name);
                let word = |key: &str| words?.by_code.iter().find(|(code, _)| code == key);
                word(code.as_str()).or_else(|| word("default")).map_or_else(String::new, |(_, word)| word.clone())
            }
        }
    }
}

fn word_table(
    name: &str,
    entries: &[(crate::config::faults::Located<String>, String)],
    faults: &mut Faults,
) -> WordTable {
    let known = || TABLE.iter().map(|row| row.2).chain(["default"]);
    for (code, _) in entries {
        if !known().any(|name| name == code.value) {
            faults.add(&code.location, crate::base::typo::unknown("code", &code.value, known()));
        }
    }
    let by_code = entries.iter().map(|(code, word)| (code.value.clone(), word.clone())).collect();
    WordTable { name: name.to_owned(), by_code }
}

fn header(config: &ErrorHeader, faults: &mut Faults) -> Option<CompiledHeader> {
    let name = HeaderName::from_bytes(config.name.value.as_bytes())
        .map_err(|_| format!("{:?} is not a valid header name", config.name.value));
    let value = HeaderValue::from_str(&config.value.value)
        .map_err(|_| "this value has characters that are not allowed in a header".to_owned());
    let (name, value) = (faults.keep(&config.name.location, name), faults.keep(&config.value.location, value));
    Some(CompiledHeader {
        name: name?,
        value: value?,
        status: config.status.clone(),
        retry_after_over: config.retry_after_over,
    })
}

/// Splits a text at its next `{name}`: the text before, the name, and the text after. Other braces are text.
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

/// Derives a UUID (version 8, RFC 9562) from the request id, for formats that need a UUID.
fn uuid(request_id: &str) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(request_id)[..16]);
    Uuid::new_v8(bytes).hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::{Located, Location};

    fn at(value: &str) -> Located<String> {
        Located { value: value.to_owned(), location: Location::top(&"f".into()) }
    }

    fn format(body: &str) -> ErrorFormat {
        let words = vec![(at("name"), vec![(at("session_not_found"), "Gone".into()), (at("default"), "Else".into())])];
        let header = ErrorHeader {
            name: at("X-Hint"),
            value: at("stop"),
            status: vec![429],
            retry_after_over: Some(Duration::from_secs(3)),
        };
        ErrorFormat { body: at(body), words, headers: vec![header] }
    }

    fn rendered(body: &str, error: ErrorValues<'_>) -> (Value, usize) {
        let mut faults = Faults::default();
        let errors = NativeErrors::compile(&format(body), &mut faults).unwrap();
        assert!(faults.is_empty());
        let (body, headers) = errors.render(error);
        (serde_json::from_slice(&body).unwrap(), headers.len())
    }

    #[test]
    fn variables_are_filled_and_types_kept() {
        let detail = "it says \"{code}\"\n and {detail}";
        let error = ErrorValues { code: Code::SessionNotFound, detail, retry_after: None, request_id: "id-1" };
        let (body, headers) = rendered(
            r#"{"ok":false,"n":["{name}: {detail}","{status}","{retry_after}"],"u":"{request_uuid}","r":"<{request_id}> {x y}"}"#,
            error,
        );
        assert_eq!(body["ok"], false);
        assert_eq!(
            body["n"][0], "Gone: it says \"{code}\"\n and {detail}",
            "variables inside a value are not replaced"
        );
        assert_eq!((&body["n"][1], &body["n"][2]), (&Value::from(404), &Value::Null));
        assert_eq!(body["r"], "<id-1> {x y}");
        let uuid = body["u"].as_str().unwrap();
        assert_eq!((uuid.len(), &uuid[14..15], uuid), (36, "8", "eb66c623-572f-8a2a-9167-ce017dee0541"));
        assert_eq!(headers, 0);
    }

    #[test]
    fn headers_have_conditions_and_words_a_default() {
        let limited = |seconds| ErrorValues {
            code: Code::RateLimitExceeded,
            detail: "x",
            retry_after: Some(seconds),
            request_id: "id-1",
        };
        assert_eq!(rendered(r#""{name}""#, limited(3)), (Value::from("Else"), 0));
        assert_eq!(rendered(r#""{name}""#, limited(4)), (Value::from("Else"), 1));
    }

    #[test]
    fn an_unknown_variable_gets_a_suggestion() {
        let fault = |body: &str| {
            let mut faults = Faults::default();
            NativeErrors::compile(&format(body), &mut faults);
            faults.sorted().iter().map(|fault| fault.message.clone()).collect::<Vec<_>>().join("; ")
        };
        assert!(fault("{").contains("not JSON"));
        assert!(fault(r#""{detial}""#).contains("did you mean \"detail\"?"));
    }
}
