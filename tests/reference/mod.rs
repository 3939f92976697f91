//! A second reading of chunked bodies and of responses, over the whole input at once, to compare Weir's reading with.

#![allow(unreachable_pub)] // each user is a crate of its own
use regex::bytes::Regex;
use std::sync::LazyLock;

/// RFC 9112, section 7.1, in the form of its ABNF.
static SIZE_LINE: LazyLock<Regex> = LazyLock::new(|| {
    let token = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+";
    let quoted = r#""(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*""#;
    let bws = r"[ \t]*";
    let extension = format!("{bws};{bws}{token}(?:{bws}={bws}(?:{token}|{quoted}))?");
    Regex::new(&format!("(?s-u)^([0-9A-Fa-f]+)((?:{extension})*)$")).expect("the pattern is valid")
});
static TRAILER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?s-u)^[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t \x21-\x7e\x80-\xff]*$").expect("the pattern is valid")
});

/// How a body reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// Its data, and how many bytes belong to it.
    Complete(Vec<u8>, usize),
    /// The data so far; more bytes may complete it.
    Incomplete(Vec<u8>),
    /// No bytes can complete it.
    Invalid,
}

/// A line without its end, and the rest.
type Line<'b> = (&'b [u8], &'b [u8]);

/// Returns the first line; `None` if it is incomplete. An error: it has a bare CR or LF.
fn line(bytes: &[u8]) -> Result<Option<Line<'_>>, ()> {
    match bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        None => Ok(None),
        Some(end) if bytes[end..].starts_with(b"\r\n") => Ok(Some((&bytes[..end], &bytes[end + 2..]))),
        Some(end) if bytes[end..] == *b"\r" => Ok(None),
        Some(_) => Err(()),
    }
}

/// Reads a chunked body. Does not know Weir's limits on the length of lines.
pub fn chunked(bytes: &[u8]) -> Reading {
    let (mut data, mut rest) = (Vec::new(), bytes);
    loop {
        let (text, after) = match line(rest) {
            Err(()) => return Reading::Invalid,
            Ok(None) => return Reading::Incomplete(data),
            Ok(Some(found)) => found,
        };
        let Some(parts) = SIZE_LINE.captures(text) else { return Reading::Invalid };
        let digits = std::str::from_utf8(&parts[1]).expect("digits are ASCII").trim_start_matches('0');
        if digits.len() > 15 || parts[1].len() > 60 {
            return Reading::Invalid;
        }
        let size = usize::from_str_radix(digits, 16).unwrap_or(0);
        rest = after;
        if size == 0 {
            break;
        }
        let available = size.min(rest.len());
        data.extend_from_slice(&rest[..available]);
        rest = &rest[available..];
        match rest {
            _ if available < size => return Reading::Incomplete(data),
            [b'\r', b'\n', after @ ..] => rest = after,
            [] | [b'\r'] => return Reading::Incomplete(data),
            _ => return Reading::Invalid,
        }
    }
    loop {
        match line(rest) {
            Err(()) => return Reading::Invalid,
            Ok(None) => return Reading::Incomplete(data),
            Ok(Some(([], after))) => return Reading::Complete(data, bytes.len() - after.len()),
            Ok(Some((text, _))) if !TRAILER.is_match(text) => return Reading::Invalid,
            Ok(Some((_, after))) => rest = after,
        }
    }
}

/// Where the final response in some bytes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseEnd {
    /// After this many bytes; the connection carries another response only if the flag is set.
    After(usize, bool),
    /// More bytes are needed.
    Later,
    /// Where the connection ends.
    WithConnection,
    /// Nowhere for certain: the response is refused.
    Uncertain,
}

/// Reads the end of a response without interim ones, whose lines end with CR LF (RFC 9112, section 6.3).
pub fn response_end(is_head: bool, bytes: &[u8]) -> ResponseEnd {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the head is complete") + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let mut lines = head.trim_end().lines();
    let first: Vec<&str> = lines.next().expect("there is a status line").split(' ').collect();
    let fields: Vec<(&str, &str)> = lines
        .map(|line| line.split_once(':').map(|(name, value)| (name.trim(), value.trim())).unwrap_or_default())
        .collect();
    let values = |wanted: &str| -> Vec<&str> {
        fields.iter().filter(|(name, _)| *name == wanted).map(|(_, value)| *value).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let is_http10 = first[0] == "http/1.0";
    let certain = match (&lengths[..], &codings[..]) {
        ([], []) => true,
        ([], ["chunked"]) => !is_http10,
        ([length], []) => !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    if !certain || first[0] == "http/2.0" || first[1] == "101" {
        return ResponseEnd::Uncertain;
    }
    let keeps = !is_http10 && !values("connection").contains(&"close");
    let body = &bytes[end..];
    let after = |length: usize| ResponseEnd::After(end + length, keeps && body.len() == length);
    match (&lengths[..], &codings[..]) {
        _ if is_head || matches!(first[1], "204" | "304") => after(0),
        (_, ["chunked"]) => match chunked(body) {
            Reading::Complete(_, length) => after(length),
            Reading::Incomplete(_) => ResponseEnd::Later,
            Reading::Invalid => ResponseEnd::Uncertain,
        },
        ([length], _) => {
            let length = length.parse().expect("it is a number");
            if body.len() < length { ResponseEnd::Later } else { after(length) }
        }
        _ => ResponseEnd::WithConnection,
    }
}

/// Returns the data of a chunked body in its plainest form, and whether it has a last chunk. Reads nothing else.
pub fn plain_data(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    while let Ok(Some((text, after))) = line(bytes) {
        let text = std::str::from_utf8(text).expect("a plain size is ASCII");
        assert!(!text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{text:?}");
        let size = usize::from_str_radix(text, 16).expect("a plain size is a number");
        if size == 0 {
            assert_eq!(after, b"\r\n", "nothing follows the last chunk");
            return (data, true);
        }
        let available = size.min(after.len());
        data.extend_from_slice(&after[..available]);
        bytes = &after[available..];
        bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    }
    (data, false)
}

/// Cuts bytes into parts whose sizes `cuts` chooses.
pub fn parts<'b>(bytes: &'b [u8], cuts: &[u8]) -> Vec<&'b [u8]> {
    let (mut rest, mut all) = (bytes, Vec::new());
    let mut sizes = cuts.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |cut| usize::from(*cut % 17) + 1).min(rest.len());
        all.push(&rest[..size]);
        rest = &rest[size..];
    }
    all
}
