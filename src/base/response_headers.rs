//! Stores the header fields of a response as the bytes that are sent.
//!
//! Weir creates most headers for one response and rarely reads them again. So each field is written once, as a line,
//! and is not allocated by itself. This module does not know what a field means, but it ensures that a value cannot
//! become a second field.

use http::{HeaderName, HeaderValue};

/// Header fields in the order in which they are sent, names in lower case.
#[derive(Clone, Default)]
pub struct ResponseHeaders {
    /// Lines `name: value`, each with its CRLF.
    text: Vec<u8>,
}

impl ResponseHeaders {
    /// Creates an empty list with space for a number of bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes) }
    }

    /// Adds a field. `name` must be a token in lower case.
    pub fn push(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.field(name, |line| line.extend_from_slice(value.as_ref()));
    }

    /// Adds a field with a number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.push(name, itoa::Buffer::new().format(value));
    }

    /// Adds a field whose value the closure appends. A value with control characters could be read as another field
    /// (RFC 9110, section 5.5); such a field is left out.
    pub fn field(&mut self, name: &str, write_value: impl FnOnce(&mut Vec<u8>)) {
        let line = self.text.len();
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b": ");
        let start = self.text.len();
        write_value(&mut self.text);
        // No early exit, so that the compiler vectorizes the loop.
        let control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
        let invalid = self.text[start..].iter().fold(false, |invalid, byte| invalid | control(*byte));
        debug_assert!(!invalid, "the value of {name} contains control characters");
        if !invalid {
            self.text.extend_from_slice(b"\r\n");
        } else {
            self.text.truncate(line);
        }
    }

    /// Returns the lines, each with its CRLF.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Returns names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let lines = self.text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        lines.filter_map(|line| {
            let name = line.iter().position(|byte| *byte == b':')?;
            Some((std::str::from_utf8(&line[..name]).ok()?, line.get(name + 2..)?))
        })
    }

    /// Returns the first value of a name. `name` must be in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Removes the fields for whose names `keep` returns `false`.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        let mut kept = Self::with_capacity(self.text.len());
        self.iter().filter(|(name, _)| keep(name)).for_each(|(name, value)| kept.push(name, value));
        *self = kept;
    }
}

impl Extend<(HeaderName, HeaderValue)> for ResponseHeaders {
    fn extend<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(&mut self, fields: T) {
        fields.into_iter().for_each(|(name, value)| self.push(name.as_str(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> ResponseHeaders {
        let mut headers = ResponseHeaders::default();
        headers.push("etag", "\"a: b\"");
        headers.number("age", 7);
        headers.push("x-empty", "");
        headers.push("x-raw", b"\xc3\xa4\t");
        headers
    }

    #[test]
    fn fields_are_stored_as_lines() {
        assert_eq!(headers().as_bytes(), b"etag: \"a: b\"\r\nage: 7\r\nx-empty: \r\nx-raw: \xc3\xa4\t\r\n");
        assert_eq!((headers().get("etag"), headers().get("x-empty")), (Some(&b"\"a: b\""[..]), Some(&b""[..])));
        assert_eq!(
            headers().iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>(),
            ["etag", "age", "x-empty", "x-raw"]
        );
        assert_eq!(ResponseHeaders::default().iter().count(), 0);
    }

    #[test]
    fn retain_removes_fields_by_name() {
        let mut headers = headers();
        headers.retain(|name| name.starts_with('x'));
        assert_eq!(headers.as_bytes(), b"x-empty: \r\nx-raw: \xc3\xa4\t\r\n");
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "contains control characters"))]
    fn a_value_cannot_become_a_second_field() {
        let mut headers = ResponseHeaders::default();
        headers.push("x-a", "b\r\nx-c: d");
        assert_eq!(headers.as_bytes(), b"");
    }
}
