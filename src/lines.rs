//! An answer's header fields, as they are sent.
//!
//! A room of its own because most answers are made anew for every request and read by nobody here: their fields are
//! written once, as the lines that go out, and nothing is owned field by field. What stands in them is not its
//! business, but that each stays one field is.

use http::{HeaderName, HeaderValue};

/// Header fields in the order in which they are sent, names in lower case.
#[derive(Clone, Default)]
pub struct Lines {
    /// `name: value`, each with its line's end.
    text: Vec<u8>,
}

impl Lines {
    /// No fields yet, and room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes) }
    }

    /// One more field. The name is a token in lower case.
    pub fn push(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.field(name, |line| line.extend_from_slice(value.as_ref()));
    }

    /// One more field with a number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.push(name, itoa::Buffer::new().format(value));
    }

    /// One more field, whose value is what is appended. One with control characters in it is left out: it could be
    /// read as another field (RFC 9110, section 5.5).
    pub fn field(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        let line = self.text.len();
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b": ");
        let begin = self.text.len();
        value(&mut self.text);
        // Without a way out of the loop, so that it looks at many bytes at once.
        let control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
        let broken = self.text[begin..].iter().fold(false, |broken, byte| broken | control(*byte));
        debug_assert!(!broken, "{name} cannot stand in a header");
        if !broken {
            self.text.extend_from_slice(b"\r\n");
        } else {
            self.text.truncate(line);
        }
    }

    /// The fields, each with its line's end.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let lines = self.text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        lines.filter_map(|line| {
            let name = line.iter().position(|byte| *byte == b':')?;
            Some((std::str::from_utf8(&line[..name]).ok()?, line.get(name + 2..)?))
        })
    }

    /// The first value under a name in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Drops the fields whose names do not pass.
    pub fn retain(&mut self, mut passes: impl FnMut(&str) -> bool) {
        let mut kept = Self::with_capacity(self.text.len());
        self.iter().filter(|(name, _)| passes(name)).for_each(|(name, value)| kept.push(name, value));
        *self = kept;
    }
}

impl Extend<(HeaderName, HeaderValue)> for Lines {
    fn extend<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(&mut self, fields: T) {
        fields.into_iter().for_each(|(name, value)| self.push(name.as_str(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        let mut lines = Lines::default();
        lines.push("etag", "\"a: b\"");
        lines.number("age", 7);
        lines.push("x-empty", "");
        lines.push("x-raw", b"\xc3\xa4\t");
        lines
    }

    #[test]
    fn fields_are_the_lines_that_are_sent() {
        assert_eq!(lines().as_bytes(), b"etag: \"a: b\"\r\nage: 7\r\nx-empty: \r\nx-raw: \xc3\xa4\t\r\n");
        assert_eq!((lines().get("etag"), lines().get("x-empty")), (Some(&b"\"a: b\""[..]), Some(&b""[..])));
        assert_eq!(
            lines().iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>(),
            ["etag", "age", "x-empty", "x-raw"]
        );
        assert_eq!(Lines::default().iter().count(), 0);
    }

    #[test]
    fn fields_go_by_name() {
        let mut lines = lines();
        lines.retain(|name| name.starts_with('x'));
        assert_eq!(lines.as_bytes(), b"x-empty: \r\nx-raw: \xc3\xa4\t\r\n");
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "cannot stand in a header"))]
    fn a_field_never_becomes_two() {
        let mut lines = Lines::default();
        lines.push("x-a", "b\r\nx-c: d");
        assert_eq!(lines.as_bytes(), b"");
    }
}
