//! Decodes the parameters of a query string (`application/x-www-form-urlencoded`).

use form_urlencoded::parse;
use percent_encoding::percent_decode_str;
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
