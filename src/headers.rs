//! A request's header fields, as they came.
//!
//! A room of its own because every request has fields and few of them are looked at: they are one text and the places
//! in it, and nothing is made of a field that nobody asks for. A map would hash each name and own each value.
//! Whoever adds a field has checked that it is one; what it means is read elsewhere.

use std::fmt;

/// Header fields in the order in which they came.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Names and values, one after the other.
    text: Vec<u8>,
    fields: Vec<Place>,
}

/// Where a field ends: it begins where the one before it does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    name: usize,
    value: usize,
}

impl Headers {
    /// No fields yet, and room for so many, of so many bytes.
    #[must_use]
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), fields: Vec::with_capacity(fields) }
    }

    /// One more field, behind the others.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        self.text.extend_from_slice(name.as_bytes());
        let name = self.text.len();
        self.text.extend_from_slice(value);
        self.fields.push(Place { name, value: self.text.len() });
    }

    /// The first value under a name, which is given in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// All values under a name, which is given in lower case, in the order in which they came.
    pub fn get_all<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        let same =
            move |field: &(&[u8], _)| field.0.len() == name.len() && field.0.eq_ignore_ascii_case(name.as_bytes());
        self.places().filter(same).map(|(_, value)| value)
    }

    /// The first value under a name, given in lower case, where that is text as HTTP knows it: visible ASCII, spaces
    /// and tabs (RFC 9110, section 5.5).
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(text)
    }

    /// Whether there is a field of this name, given in lower case.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// How many fields there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fields.len()
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    fn places(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut begin = 0;
        self.fields.iter().map(move |place| {
            let field = (&self.text[begin..place.name], &self.text[place.name..place.value]);
            begin = place.value;
            field
        })
    }
}

/// A value as text, where it is visible ASCII, spaces and tabs.
#[must_use]
pub fn text(value: &[u8]) -> Option<&str> {
    let plain = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    std::str::from_utf8(value).ok().filter(|_| plain)
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are keys, and whatever else a client sends: only names may be printed.
        f.debug_list().entries(self.places().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

impl<'f> FromIterator<(&'f str, &'f [u8])> for Headers {
    fn from_iter<T: IntoIterator<Item = (&'f str, &'f [u8])>>(fields: T) -> Self {
        let mut headers = Self::default();
        fields.into_iter().for_each(|(name, value)| headers.append(name, value));
        headers
    }
}

impl From<&http::HeaderMap> for Headers {
    fn from(map: &http::HeaderMap) -> Self {
        map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
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
        assert!(headers.contains("x-b") && !headers.contains("x-bb") && !Headers::default().contains("host"));
    }

    #[test]
    fn text_is_what_can_be_seen() {
        let headers: Headers = [("a", &b"a\t b~"[..]), ("b", b"\xc3\xa4"), ("c", b"\x7f")].into_iter().collect();
        assert_eq!((headers.text("a"), headers.text("b"), headers.text("c")), (Some("a\t b~"), None, None));
        assert_eq!(headers.get("b"), Some(&b"\xc3\xa4"[..]));
    }

    #[test]
    fn no_value_is_printed() {
        assert_eq!(format!("{:?}", headers(&[("X-API-Key", "secret")])), "[\"X-API-Key\"]");
    }
}
