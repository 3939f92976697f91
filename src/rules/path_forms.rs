//! Lists the forms in which a lenient server can read a path: percent-decoded once, twice, and so on.

/// The most times that a path is decoded.
const MAX_DECODINGS: usize = 8;

/// A path that is percent-encoded more often than Weir decodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EncodedTooOften;

/// Returns the path as it is, then decoded once, then twice, and so on until decoding changes nothing. Bytes that are
/// not UTF-8 become U+FFFD.
///
/// # Errors
/// The path is encoded too often.
pub(crate) fn decoded_forms(path: &str) -> Result<Vec<String>, EncodedTooOften> {
    let mut forms = vec![path.to_owned()];
    for _ in 0..MAX_DECODINGS {
        match forms.last().and_then(|form| decode(form)) {
            Some(decoded) => forms.push(decoded),
            None => return Ok(forms),
        }
    }
    Err(EncodedTooOften)
}

/// Decodes `%xx` and `%uxxxx`, which some servers know. `None` if there is neither.
fn decode(path: &str) -> Option<String> {
    let (mut out, mut rest, mut changed) = (Vec::with_capacity(path.len()), path.as_bytes(), false);
    while let Some((first, after)) = rest.split_first() {
        let hex =
            |range| after.get(range).and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        rest = after;
        match *first {
            b'%' if after.first().is_some_and(u8::is_ascii_hexdigit) && hex(0..2).is_some() => {
                out.push(hex(0..2).and_then(|byte| u8::try_from(byte).ok()).unwrap_or_default());
                (rest, changed) = (&after[2..], true);
            }
            b'%' if matches!(after.first(), Some(b'u' | b'U')) && hex(1..5).is_some() => {
                let character = hex(1..5).and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                (rest, changed) = (&after[5..], true);
            }
            byte => out.push(byte),
        }
    }
    changed.then(|| String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_until_nothing_changes() {
        assert_eq!(decoded_forms("/a%2fb/%").unwrap(), ["/a%2fb/%", "/a/b/%"]);
        assert_eq!(decoded_forms("/%252573").unwrap(), ["/%252573", "/%2573", "/%73", "/s"]);
        assert_eq!(decoded_forms("/%u0073%ud800%ff%").unwrap(), ["/%u0073%ud800%ff%", "/s\u{fffd}\u{fffd}%"]);
        assert_eq!(decoded_forms("/%+1%zz%2").unwrap(), ["/%+1%zz%2"]);
        assert_eq!(decoded_forms(&format!("/%{}73", "25".repeat(20))), Err(EncodedTooOften));
    }
}
