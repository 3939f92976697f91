//! Stores the header fields of a request, in the order in which they arrived.
//!
//! Weir reads few of the fields of a request. So they are stored as one buffer with positions in it; a map would hash
//! each name and allocate each value. The code that appends a field has checked its syntax.

use std::fmt;

/// The longest head that needs no memory of its own, in bytes: every connection has that of a short one.
pub(crate) const SHORT_HEAD: usize = 4 << 10;

/// Header fields in the order in which they arrived.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RequestHeaders {
    /// Names and values, one after the other.
    text: Vec<u8>,
    fields: Vec<FieldEnd>,
}

/// The positions in the buffer at which a field's name and value end. A field starts where the previous one ends.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FieldEnd {
    name: usize,
    value: usize,
}

impl RequestHeaders {
    /// Creates an empty list with space for a number of fields and of bytes.
    #[must_use]
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), fields: Vec::with_capacity(fields) }
    }

    /// Adds a field at the end.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        self.text.extend_from_slice(name.as_bytes());
        let name = self.text.len();
        self.text.extend_from_slice(value);
        self.fields.push(FieldEnd { name, value: self.text.len() });
    }

    /// Returns the first value of a name. `name` must be in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// Returns all values of a name, in order. `name` must be in lower case.
    pub fn get_all<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        let same =
            move |field: &(&[u8], _)| field.0.len() == name.len() && field.0.eq_ignore_ascii_case(name.as_bytes());
        self.iter().filter(same).map(|(_, value)| value)
    }

    /// Returns the first value of a name if it consists of visible ASCII, spaces and tabs (RFC 9110, section 5.5).
    /// `name` must be in lower case.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(text)
    }

    /// Returns whether a field with this name exists. `name` must be in lower case.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns the number of fields.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fields.len()
    }

    /// Returns the total length of all names and values, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.fields.iter().map(move |end| {
            let field = (&self.text[start..end.name], &self.text[end.name..end.value]);
            start = end.value;
            field
        })
    }
}

/// Returns a value as text if it consists of visible ASCII, spaces and tabs.
#[must_use]
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let plain = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    std::str::from_utf8(value).ok().filter(|_| plain)
}

impl fmt::Debug for RequestHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values can be keys and other secrets: only names may be printed.
        f.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

impl<'f> FromIterator<(&'f str, &'f [u8])> for RequestHeaders {
    fn from_iter<T: IntoIterator<Item = (&'f str, &'f [u8])>>(fields: T) -> Self {
        let mut headers = Self::default();
        fields.into_iter().for_each(|(name, value)| headers.append(name, value));
        headers
    }
}

impl From<&http::HeaderMap> for RequestHeaders {
    fn from(map: &http::HeaderMap) -> Self {
        map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> RequestHeaders {
        fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
    }

    #[test]
    fn fields_are_found_by_name_in_any_case_and_in_order() {
        let headers = headers(&[("Host", "h"), ("X-A", "1"), ("x-b", ""), ("x-a", "2")]);
        assert_eq!(headers.get_all("x-a").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(
            (headers.get("host"), headers.get("x-b"), headers.get("x-")),
            (Some(&b"h"[..]), Some(&b""[..]), None)
        );
        assert_eq!((headers.count(), headers.bytes()), (4, "HosthX-A1x-bx-a2".len()));
        assert!(headers.contains("x-b") && !headers.contains("x-bb") && !RequestHeaders::default().contains("host"));
    }

    #[test]
    fn only_visible_ascii_is_text() {
        let headers: RequestHeaders = [("a", &b"a\t b~"[..]), ("b", b"\xc3\xa4"), ("c", b"\x7f")].into_iter().collect();
        assert_eq!((headers.text("a"), headers.text("b"), headers.text("c")), (Some("a\t b~"), None, None));
        assert_eq!(headers.get("b"), Some(&b"\xc3\xa4"[..]));
    }

    #[test]
    fn debug_output_has_no_values() {
        assert_eq!(format!("{:?}", headers(&[("X-API-Key", "secret")])), "[\"X-API-Key\"]");
    }
}
