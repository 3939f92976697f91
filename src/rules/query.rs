//! Decodes the parameters of a query string (`application/x-www-form-urlencoded`).

use form_urlencoded::parse;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;

/// A parameter is not UTF-8 when it is percent-decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotUtf8;

/// Returns the decoded names and values of a query string, in order, without empty pairs.
///
/// form_urlencoded replaces invalid UTF-8, so this function checks for it first. It checks one pair at a time, so that a
/// caller can report another fault in an earlier pair.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = Result<(Cow<'_, str>, Cow<'_, str>), NotUtf8>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        percent_decode_str(pair).decode_utf8().map_err(|_| NotUtf8)?;
        Ok(parse(pair.as_bytes()).next().unwrap_or_default())
    })
}

/// All characters except the unreserved ones of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Returns a query string in which only unreserved characters are not percent-encoded, and each name has a value.
///
/// # Errors
/// A parameter is not UTF-8 when it is decoded.
pub(crate) fn canonical(query: &str) -> Result<String, NotUtf8> {
    let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let pair = |pair| {
        let (name, value): (Cow<'_, str>, Cow<'_, str>) = pair?;
        Ok(format!("{}={}", encode(&name), encode(&value)))
    };
    Ok(pairs(query).map(pair).collect::<Result<Vec<_>, NotUtf8>>()?.join("&"))
}

/// How often a name may be percent-encoded.
const MAX_ENCODED: usize = 4;

/// Returns a query string without the parameters whose names `is_dropped` accepts. It gets a name as providers can read it:
/// percent-decoded once or more often. A semicolon separates parameters too, because some servers read it so.
pub(crate) fn without(query: &str, is_dropped: impl Fn(&str) -> bool) -> Cow<'_, str> {
    let is_kept = |pair: &&str| {
        let mut name = Cow::from(pair.split('=').next().unwrap_or_default());
        (0..MAX_ENCODED).all(|_| {
            name = Cow::from(percent_decode_str(&name.replace('+', " ")).decode_utf8_lossy().into_owned());
            !is_dropped(name.split('=').next().unwrap_or_default())
        })
    };
    if query.is_empty() || query.split(['&', ';']).all(|pair| is_kept(&pair)) {
        return query.into();
    }
    let kept = query.split('&').filter_map(|pairs| {
        let kept: Vec<&str> = pairs.split(';').filter(is_kept).collect();
        (!kept.is_empty()).then(|| kept.join(";"))
    });
    kept.collect::<Vec<_>>().join("&").into()
}

/// Returns whether a server can take the name of a parameter for another one: in another letter case, as an array, or with
/// the characters that some languages do not allow in names.
pub(crate) fn is_same_name(name: &str, other: &str) -> bool {
    let plain = |name: &str| {
        let name = name.trim_matches(|c: char| c.is_whitespace() || c.is_control());
        name.split('[').next().unwrap_or_default().replace(['.', ' '], "_").to_ascii_lowercase()
    };
    plain(name) == plain(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An independent decoder: splits at `&` and the first `=`, replaces `+` by a space, then percent-decodes.
    fn expected(query: &str) -> Vec<Result<(String, String), NotUtf8>> {
        let decoded = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8().map(Cow::into_owned).map_err(|_| NotUtf8)
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.map(|(name, value)| Ok((decoded(name)?, decoded(value)?))).collect()
    }

    fn decoded(query: &str) -> Vec<Result<(String, String), NotUtf8>> {
        pairs(query).map(|pair| pair.map(|(name, value)| (name.into_owned(), value.into_owned()))).collect()
    }

    #[test]
    fn names_and_values_are_decoded() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(
            decoded("a=b+c%2B&&d&=e&f=%C3%A9=g"),
            [pair("a", "b c+"), pair("d", ""), pair("", "e"), pair("f", "é=g")]
        );
        assert_eq!(decoded("a=%ff&b=%EF%BF%BD"), [Err(NotUtf8), pair("b", "\u{fffd}")]);
        assert_eq!(decoded("a=%&b=%zz&c=%4"), [pair("a", "%"), pair("b", "%zz"), pair("c", "%4")]);
        assert_eq!((decoded(""), decoded("&")), (Vec::new(), Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn queries_decode_as_with_the_independent_decoder(query in "([a-z%&=+é\u{fffd}]|%[0-9a-fA-F]{2}|%(26|3d|3D|2b|c3%a9|e2%82%ac|ff|80)){0,24}") {
            prop_assert_eq!(decoded(&query), expected(&query));
        }

        #[test]
        fn any_text_decodes_as_with_the_independent_decoder(query in any::<String>()) {
            prop_assert_eq!(decoded(&query), expected(&query));
        }
    }
}
