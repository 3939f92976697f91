//! An API key that is a query parameter: adds it to a request, removes what a client sends in its place, and masks it in
//! what the provider sends back.
//!
//! A provider can repeat the URL of a request in its response: in links, and in the texts of errors.

use crate::rules::query;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All characters except the unreserved ones of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The shortest key that is masked wherever it stands. A shorter one is masked behind its name only, because it can be a
/// part of other words.
pub(crate) const MIN_MASKED: usize = 8;

/// An API key and the name of its parameter.
pub(crate) struct QueryKey {
    name: String,
    /// `NAME=VALUE`, percent-encoded.
    pair: String,
    /// The spellings of the secret, each with the bytes before it that are not masked.
    spellings: Vec<Spelling>,
}

struct Spelling {
    text: Vec<u8>,
    /// The bytes at the beginning of `text` that are not secret.
    shown: usize,
}

impl std::fmt::Debug for QueryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QueryKey({})", self.name)
    }
}

impl QueryKey {
    /// Makes the key of a parameter.
    #[must_use]
    pub(crate) fn new(name: &str, value: &str) -> Self {
        let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let pair = format!("{}={}", encode(name), encode(value));
        let encoded = encode(value);
        let lowercase = with_lowercase_escapes(&encoded);
        let in_urls = [value.to_owned(), encoded, lowercase];
        let with_plus = [value.replace(' ', "+"), in_urls[1].replace("%20", "+"), in_urls[2].replace("%20", "+")];
        let mut values: Vec<String> = in_urls.into_iter().chain(with_plus).flat_map(in_json).collect();
        values.sort();
        values.dedup();
        let whole = value.len() >= MIN_MASKED;
        let prefix = if whole { String::new() } else { format!("{}=", encode(name)) };
        let spelling = |value: String| Spelling { text: format!("{prefix}{value}").into(), shown: prefix.len() };
        Self { name: name.to_owned(), pair, spellings: values.into_iter().map(spelling).collect() }
    }

    /// Returns the name of the parameter.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns a path and query with this key, and without other parameters of its name.
    #[must_use]
    pub(crate) fn added_to(&self, path_and_query: &str) -> String {
        let (path, others) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let others = query::without(others, |name| query::is_same_name(name, &self.name));
        let separator = if others.is_empty() { "" } else { "&" };
        format!("{path}?{others}{separator}{}", self.pair)
    }

    /// Masks the key in the headers of a response.
    pub(crate) fn mask_headers(&self, headers: &mut HeaderMap) {
        let masked: Vec<_> = self.masked_headers(headers).collect();
        for (name, values) in masked {
            headers.remove(&name);
            values.into_iter().for_each(|value| {
                headers.append(&name, value);
            });
        }
    }

    /// Returns the headers that contain the key, with all their values masked.
    pub(crate) fn masked_headers<'h>(
        &'h self,
        headers: &'h HeaderMap,
    ) -> impl Iterator<Item = (HeaderName, Vec<HeaderValue>)> + 'h {
        let has_key = |name: &HeaderName| headers.get_all(name).iter().any(|value| self.is_in(value.as_bytes()));
        // A key of digits must not change the framing.
        let is_text = |name: &HeaderName| !matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING);
        headers.keys().filter(move |name| is_text(name) && has_key(name)).map(|name| {
            let masked = |value: &HeaderValue| {
                let mut text = value.as_bytes().to_vec();
                self.mask_in_place(&mut text);
                HeaderValue::from_bytes(&text).ok()
            };
            (name.clone(), headers.get_all(name).iter().filter_map(masked).collect())
        })
    }

    /// Masks the key in a whole body. A body without the key is returned as it is.
    #[must_use]
    pub(crate) fn mask(&self, body: Bytes) -> Bytes {
        if !self.is_in(&body) {
            return body;
        }
        let mut text = Vec::from(body);
        self.mask_in_place(&mut text);
        text.into()
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.spellings.iter().any(|spelling| next(text, &spelling.text).is_some())
    }

    /// Replaces the key by as many asterisks.
    fn mask_in_place(&self, text: &mut [u8]) {
        for Spelling { text: wanted, shown } in &self.spellings {
            let mut from = 0;
            while let Some(at) = next(&text[from..], wanted) {
                let end = from + at + wanted.len();
                text[from + at + shown..end].fill(b'*');
                from = end;
            }
        }
    }

    /// Returns the length of the longest end of `text` with which a spelling of the key begins.
    fn unfinished(&self, text: &[u8]) -> usize {
        let longest = |spelling: &Spelling| {
            let most = spelling.text.len().saturating_sub(1).min(text.len());
            (1..=most).rev().find(|length| text.ends_with(&spelling.text[..*length])).unwrap_or(0)
        };
        self.spellings.iter().map(longest).max().unwrap_or(0)
    }
}

/// Masks a key in a body that arrives in parts. Keeps back the end of a part that can be the beginning of the key.
#[derive(Debug, Default)]
pub(crate) struct StreamMask {
    held: Vec<u8>,
}

impl StreamMask {
    /// Returns what can be sent after this part of the body.
    #[must_use]
    pub(crate) fn add(&mut self, key: &QueryKey, part: Option<Bytes>, is_last: bool) -> Option<Bytes> {
        if self.held.is_empty() {
            let part = part?;
            let unfinished = if is_last { 0 } else { key.unfinished(&part) };
            if unfinished == 0 {
                return Some(key.mask(part));
            }
            self.held.extend_from_slice(&part);
        } else {
            self.held.extend_from_slice(&part.unwrap_or_default());
        }
        key.mask_in_place(&mut self.held);
        let unfinished = if is_last { 0 } else { key.unfinished(&self.held) };
        let rest = self.held.split_off(self.held.len() - unfinished);
        Some(Bytes::from(std::mem::replace(&mut self.held, rest)))
    }
}

/// Returns the position of the first `wanted` in a text.
fn next(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    loop {
        let at = from + text.get(from..)?.iter().position(|byte| *byte == first)?;
        if text[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Returns a text as it can stand in JSON, and as it is. Some programs escape a slash and a plus sign.
fn in_json(text: String) -> Vec<String> {
    let json = serde_json::Value::from(text.as_str()).to_string();
    let json = json[1..json.len() - 1].to_owned();
    let slashes = [json.clone(), json.replace('/', "\\/")];
    let plus = |text: String| [text.replace('+', "\\u002B"), text.replace('+', "\\u002b"), text];
    slashes.into_iter().flat_map(plus).chain([text]).collect()
}

/// Returns the text with its percent-encoded bytes in lower case: `%2f`.
fn with_lowercase_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escape, rest) = part.split_at(part.len().min(2));
        out += &format!("%{}{rest}", escape.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(key: &QueryKey, text: &str) -> String {
        String::from_utf8(key.mask(Bytes::copy_from_slice(text.as_bytes())).to_vec()).unwrap()
    }

    #[test]
    fn the_key_is_added_in_place_of_every_parameter_with_its_name() {
        let key = QueryKey::new("api_key", "a b/+&=é");
        let pair = "api_key=a%20b%2F%2B%26%3D%C3%A9";
        for (request, expected) in [
            ("/x", format!("/x?{pair}")),
            ("/x?", format!("/x?{pair}")),
            ("/x?a=1&b", format!("/x?a=1&b&{pair}")),
            ("/x?api_key=mine", format!("/x?{pair}")),
            ("/x?api_key=mine&a=1&api_key", format!("/x?a=1&{pair}")),
            ("/x?api%5fkey=1&%61PI_KEY=2&a=3&%2561pi_key=4&+api_key=5&api_key[]=6&api.key=7", format!("/x?a=3&{pair}")),
            ("/x?a=1;api_key=2&b=3", format!("/x?a=1&b=3&{pair}")),
            ("/x?my_api_key=1&a=api_key=2", format!("/x?my_api_key=1&a=api_key=2&{pair}")),
        ] {
            assert_eq!(key.added_to(request), expected, "{request}");
        }
    }

    #[test]
    fn the_key_is_masked_in_every_spelling_and_other_text_stays() {
        let key = QueryKey::new("key", "s3cr/t k+y");
        for text in [
            "s3cr/t k+y",
            "s3cr%2Ft%20k%2By",
            "s3cr%2ft%20k%2by",
            r"s3cr\/t k+y",
            "s3cr/t+k+y",
            r"s3cr\/t k\u002By",
            "s3cr%2Ft+k%2By",
        ] {
            let (before, behind) = ("<https://x/?key=", ">; rel=\"next\" s3cr/t k-y");
            let whole = format!("{before}{text}{behind}{text}");
            let stars = "*".repeat(text.len());
            assert_eq!(masked(&key, &whole), format!("{before}{stars}{behind}{stars}"));
        }
        let short = QueryKey::new("k", "abc");
        assert_eq!(masked(&short, "abcd ?k=abc&a=abc"), "abcd ?k=***&a=abc", "a short key can be a part of a word");
        let mut headers = HeaderMap::new();
        for value in ["/a?key=s3cr%2Ft%20k%2By", "/b"] {
            headers.append("location", HeaderValue::from_static(value));
        }
        headers.append("x-other", HeaderValue::from_static("1"));
        key.mask_headers(&mut headers);
        let values: Vec<_> = headers.get_all("location").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!((values, headers.len()), (vec!["/a?key=****************", "/b"], 3));
        assert!(!format!("{key:?}").contains("s3cr"));
    }

    #[test]
    fn a_key_in_a_stream_is_masked_wherever_the_parts_end() {
        let key = QueryKey::new("key", "abcabcabd");
        let text = b"abcabcabcabd, abcabcab abcabcabdabcabc";
        let expected = "abc*********, abcabcab *********abcabc";
        for size in 1..text.len() + 1 {
            let (mut mask, mut out) = (StreamMask::default(), Vec::new());
            let mut parts = text.chunks(size).peekable();
            while let Some(part) = parts.next() {
                let is_last = parts.peek().is_none();
                out.extend(mask.add(&key, Some(Bytes::copy_from_slice(part)), is_last).unwrap_or_default());
            }
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{size}");
        }
        let mut mask = StreamMask::default();
        let plain = Bytes::from_static(b"data: 1\n\n");
        let sent = mask.add(&key, Some(plain.clone()), false).unwrap();
        assert_eq!((sent.as_ptr(), sent.len()), (plain.as_ptr(), plain.len()), "other parts are not copied or delayed");
        assert_eq!(mask.add(&key, Some(Bytes::from_static(b"xabc")), false).as_deref(), Some(&b"x"[..]));
        assert_eq!(mask.add(&key, None, true).as_deref(), Some(&b"abc"[..]));
    }
}
