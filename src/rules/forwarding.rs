//! Makes the header fields that a proxy adds, changes or counts down: `Via`, `Max-Forwards`, and those of a response.

use crate::rules::hop_by_hop;
use crate::rules::provider_links::ProviderAddress;
use crate::rules::query_key::QueryKey;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use std::borrow::Cow;

const MAX_FORWARDS: HeaderName = HeaderName::from_static("max-forwards");

/// Returns the value that Weir appends to `Via`: the version in which it received the message, and its pseudonym (RFC
/// 9110, section 7.6.3).
#[must_use]
pub(crate) fn via(version: Version) -> (HeaderName, HeaderValue) {
    let value = match version {
        Version::HTTP_09 | Version::HTTP_10 => "1.0 weir",
        Version::HTTP_2 => "2 weir",
        Version::HTTP_3 => "3 weir",
        _ => "1.1 weir",
    };
    (header::VIA, HeaderValue::from_static(value))
}

/// Returns the headers of a response that do not reach the client, and those that replace some of them: URLs that lead to
/// the provider, and what repeats the `key` of the request. `prefix` is the part of Weir's path before the provider's path.
#[must_use]
pub(crate) fn response_changes(
    address: &ProviderAddress,
    key: Option<&QueryKey>,
    headers: &HeaderMap,
    prefix: &str,
) -> (Vec<HeaderName>, Vec<(HeaderName, HeaderValue)>) {
    let masked = key.map_or_else(Vec::new, |key| key.masked_headers(headers).collect());
    let mut shown = Cow::Borrowed(headers);
    if let Some(key) = key.filter(|_| !masked.is_empty()) {
        key.mask_headers(shown.to_mut());
    }
    let mut changed = address.rewrite(&shown, prefix);
    let mut drop: Vec<HeaderName> = hop_by_hop::of_response(headers).collect();
    for (name, values) in masked {
        if !drop.contains(&name) && !changed.iter().any(|(known, _)| *known == name) {
            changed.push((name, values));
        }
    }
    drop.extend(changed.iter().map(|(name, _)| name.clone()));
    let values = |(name, values): (HeaderName, Vec<HeaderValue>)| {
        values.into_iter().map(move |value| (name.clone(), value)).collect::<Vec<_>>()
    };
    (drop, changed.into_iter().flat_map(values).collect())
}

/// Returns whether an `OPTIONS` request ends here: its `Max-Forwards` is 0 (RFC 9110, section 7.6.2). Other methods may
/// ignore the header.
#[must_use]
pub(crate) fn ends_here<'h>(method: &Method, mut max_forwards: impl Iterator<Item = &'h [u8]>) -> bool {
    *method == Method::OPTIONS && max_forwards.any(|value| number(value) == Some(0))
}

/// Returns the `Max-Forwards` of the request to the provider, if the client's `OPTIONS` request has a valid one.
#[must_use]
pub(crate) fn decremented(method: &Method, headers: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
    let values = headers.get_all(&MAX_FORWARDS).into_iter();
    let least = values.filter_map(|value| number(value.as_bytes())).min().filter(|_| *method == Method::OPTIONS)?;
    Some((MAX_FORWARDS, HeaderValue::from(least.saturating_sub(1))))
}

/// Reads digits; a number that is too large counts as the largest one.
fn number(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok()?.trim();
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_forwards_counts_for_options_only() {
        let check = |method: Method, values: &[&'static str]| {
            let headers: HeaderMap =
                values.iter().map(|value| (MAX_FORWARDS, HeaderValue::from_static(value))).collect();
            let next = decremented(&method, &headers).map(|(_, value)| value.to_str().unwrap().to_owned());
            (ends_here(&method, values.iter().map(|value| value.as_bytes())), next)
        };
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(check(Method::OPTIONS, &["0"]), (true, some("0")));
        assert_eq!(check(Method::OPTIONS, &["00"]), (true, some("0")));
        assert_eq!(check(Method::OPTIONS, &["1"]), (false, some("0")));
        assert_eq!(check(Method::OPTIONS, &["5", "2"]), (false, some("1")));
        assert_eq!(check(Method::OPTIONS, &["99999999999999999999"]), (false, some("18446744073709551614")));
        for values in [&[][..], &["x"], &["-1"], &[""]] {
            assert_eq!(check(Method::OPTIONS, values), (false, None), "{values:?}");
        }
        assert_eq!(check(Method::GET, &["0"]), (false, None));
    }

    #[test]
    fn via_names_the_version_that_was_received() {
        for (version, value) in
            [(Version::HTTP_10, "1.0 weir"), (Version::HTTP_11, "1.1 weir"), (Version::HTTP_2, "2 weir")]
        {
            assert_eq!(via(version).1, value);
        }
    }
}
