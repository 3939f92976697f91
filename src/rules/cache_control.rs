//! Parses HTTP caching headers: `Cache-Control`, `Age`, `Date` and `If-None-Match`.
//!
//! This module does not decide what the cache does.

use crate::base::model::Time;
use crate::base::request_headers::{self, RequestHeaders};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::Duration;

/// The directives of `Cache-Control` that Weir uses (RFC 9111, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are those of the RFC
pub struct Directives {
    pub no_cache: bool,
    pub no_store: bool,
    pub no_transform: bool,
    pub only_if_cached: bool,
    pub must_revalidate: bool,
    pub max_age: Option<Duration>,
    pub min_fresh: Option<Duration>,
    /// `Some(None)` is `max-stale` without a number: any age is accepted.
    pub max_stale: Option<Option<Duration>>,
}

/// Parses a number of seconds. A number over 2³¹ counts as 2³¹ (RFC 9111, section 1.2.2), an invalid one as 0.
fn delta_seconds(text: &str) -> u64 {
    const LARGE: u64 = 1 << 31;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().unwrap_or(LARGE).min(LARGE) } else { 0 }
}

/// Parses all values of `Cache-Control`. Unknown directives are ignored, as the RFC requires. An invalid number of
/// seconds counts as 0, the strictest value.
#[must_use]
pub fn directives<'v>(values: impl Iterator<Item = &'v [u8]>) -> Directives {
    let mut all = Directives::default();
    for value in values {
        for directive in request_headers::text(value).unwrap_or_default().split(',') {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name.trim(), Some(argument.trim().trim_matches('"'))),
                None => (directive.trim(), None),
            };
            let seconds = || Duration::from_secs(argument.map_or(0, delta_seconds));
            match name.to_ascii_lowercase().as_str() {
                "no-cache" => all.no_cache = true,
                "no-store" => all.no_store = true,
                "no-transform" => all.no_transform = true,
                "must-revalidate" | "proxy-revalidate" => all.must_revalidate = true,
                "only-if-cached" => all.only_if_cached = true,
                // Of a directive that is there twice, the first counts (RFC 9111, section 4.2.1).
                "max-age" => all.max_age = all.max_age.or_else(|| Some(seconds())),
                "min-fresh" => all.min_fresh = all.min_fresh.or_else(|| Some(seconds())),
                "max-stale" => all.max_stale = all.max_stale.or_else(|| Some(argument.is_some().then(seconds))),
                _ => {}
            }
        }
    }
    all
}

/// The highest length of a validator that Weir stores, in bytes.
const MAX_VALIDATOR: usize = 1024;

/// Returns the request headers that revalidate a response with these headers: by its entity tag if it has one,
/// otherwise by its date (RFC 9110, section 13.1).
#[must_use]
pub fn conditions(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let by = |validator: HeaderName, condition: HeaderName| {
        let value = headers.get(validator).filter(|value| value.len() <= MAX_VALIDATOR)?;
        Some(vec![(condition, copied(value))])
    };
    let tag = by(header::ETAG, header::IF_NONE_MATCH);
    tag.or_else(|| by(header::LAST_MODIFIED, header::IF_MODIFIED_SINCE)).unwrap_or_default()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// Copies a value. The original would keep the whole buffer of the response in memory.
#[must_use]
pub(crate) fn copied(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// Returns the value of `Age`, which a cache between Weir and the provider sets. Zero if there is none. Of several values
/// the first counts (RFC 9111, section 5.1).
#[must_use]
pub fn age_header(headers: &HeaderMap) -> Duration {
    let first = text(headers, header::AGE).and_then(|ages| ages.split(',').next()).map(str::trim);
    first.map_or(Duration::ZERO, |age| Duration::from_secs(delta_seconds(age)))
}

/// Returns whether a response may answer no other request with the same cache key (RFC 9111, section 4.1): `Vary` contains
/// `*` or one of these names, which are those of the request headers that the key does not have.
#[must_use]
pub(crate) fn varies_by_more(headers: &HeaderMap, not_in_key: &[HeaderName]) -> bool {
    let by = |name: &[u8]| {
        name == b"*" || not_in_key.iter().any(|other| other.as_str().as_bytes().eq_ignore_ascii_case(name))
    };
    let values = headers.get_all(header::VARY).into_iter();
    values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|name| by(name.trim_ascii()))
}

/// Returns whether a 304 is about another response than the one with these conditions: its validator differs (RFC 9111,
/// section 4.3.4).
#[must_use]
pub(crate) fn confirms_another(not_modified: &HeaderMap, conditions: &[(HeaderName, HeaderValue)]) -> bool {
    let sent =
        |name: HeaderName| conditions.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes());
    let opaque = |tag: &HeaderValue| {
        tag.as_bytes().trim_ascii().strip_prefix(b"W/").unwrap_or(tag.as_bytes().trim_ascii()).to_vec()
    };
    let tag = not_modified.get(header::ETAG).map(opaque);
    match (tag, sent(header::IF_NONE_MATCH), not_modified.get(header::LAST_MODIFIED), sent(header::IF_MODIFIED_SINCE)) {
        (Some(tag), Some(sent), ..) => sent.trim_ascii().strip_prefix(b"W/").unwrap_or(sent.trim_ascii()) != tag,
        (_, None, Some(date), Some(sent)) => date.as_bytes().trim_ascii() != sent.trim_ascii(),
        _ => false,
    }
}

/// Returns the age of a response that arrived at `now`: its `Age`, or the time since its `Date` if that is longer (RFC
/// 9111, section 4.2.3). If the provider's clock is slow, the age is too long, which is safe.
#[must_use]
pub fn age(headers: &HeaderMap, now: Time) -> Duration {
    let stated = age_header(headers);
    let date = text(headers, header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let date = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
    let apparent = date.and_then(|date| i64::try_from(date.as_millis()).ok()).map(|date| now.since(Time(date)));
    // `Date` has whole seconds, so Weir ignores a difference below one second.
    stated.max(apparent.filter(|age| *age >= Duration::from_secs(1)).unwrap_or_default())
}

/// Returns whether `If-None-Match` contains an entity tag, by weak comparison (RFC 9110, section 13.1.2).
#[must_use]
pub fn if_none_match_contains(headers: &RequestHeaders, etag: &str) -> bool {
    headers.get_all("if-none-match").any(|value| {
        let text = request_headers::text(value).unwrap_or_default().trim();
        text == "*" || text.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &header::HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(name.clone(), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn directives_of_several_fields_are_combined() {
        let all_of = |values: &[&'static str]| directives(values.iter().map(|value| value.as_bytes()));
        let all = all_of(&["No-Cache, max-age=60", "max-stale, foo=bar"]);
        assert!(all.no_cache && !all.no_store);
        assert_eq!(all.max_age, Some(Duration::from_secs(60)));
        assert_eq!(all.max_stale, Some(None));
        let all = all_of(&["max-age=soon, max-stale=\"5\", only-if-cached"]);
        assert_eq!((all.max_age, all.max_stale), (Some(Duration::ZERO), Some(Some(Duration::from_secs(5)))));
        assert!(all.only_if_cached);
    }

    #[test]
    fn the_first_of_two_max_ages_and_of_two_ages_counts() {
        let max_age = |text: &'static str| directives(std::iter::once(text.as_bytes())).max_age;
        assert_eq!(max_age("max-age=5, max-age=600"), Some(Duration::from_secs(5)));
        assert_eq!(max_age("max-age=600, max-age=5"), Some(Duration::from_secs(600)));
        assert_eq!(age_header(&headers(&header::AGE, &["15, 0"])), Duration::from_secs(15));
        assert_eq!(age_header(&headers(&header::AGE, &["15", "0"])), Duration::from_secs(15));
        assert_eq!(age_header(&headers(&header::AGE, &["x, 9"])), Duration::ZERO);
    }

    #[test]
    fn a_vary_with_a_star_is_found_in_every_form() {
        let varies = |values: &[&'static str]| {
            varies_by_more(&headers(&header::VARY, values), &[HeaderName::from_static("x-lang")])
        };
        assert!(varies(&["*"]) && varies(&["accept, *"]) && varies(&["accept", " * "]));
        assert!(!varies(&[]) && !varies(&["accept"]) && !varies(&["x-*"]));
        assert!(varies(&["X-Lang"]) && varies(&["accept", "origin ,x-lang"]) && !varies(&["x-language, lang"]));
    }

    #[test]
    fn a_304_with_another_validator_is_about_another_response() {
        let tag = |sent: &'static str, got: &'static str| {
            confirms_another(
                &headers(&header::ETAG, &[got]),
                &[(header::IF_NONE_MATCH, HeaderValue::from_static(sent))],
            )
        };
        assert!(tag("\"e1\"", "\"e2\"") && tag("W/\"e1\"", "W/\"e2\""));
        assert!(!tag("\"e1\"", "\"e1\"") && !tag("W/\"e1\"", "\"e1\"") && !tag("\"e1\"", "W/\"e1\""));
        let date = |got: &'static str| {
            let sent = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
            confirms_another(&headers(&header::LAST_MODIFIED, &[got]), &[(header::IF_MODIFIED_SINCE, sent)])
        };
        assert!(date("Sun, 06 Nov 1994 08:49:38 GMT") && !date("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(!confirms_another(&HeaderMap::new(), &[(header::IF_NONE_MATCH, HeaderValue::from_static("\"e\""))]));
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let is = |values: &[&'static str]| {
            if_none_match_contains(&values.iter().map(|value| ("If-None-Match", value.as_bytes())).collect(), "\"abc\"")
        };
        assert!(
            is(&["\"abc\""])
                && is(&["W/\"abc\""])
                && is(&["\"x\", \"abc\""])
                && is(&["*"])
                && is(&["\"x\"", "\"abc\""])
        );
        assert!(!is(&["\"ab\""]) && !is(&["abc"]) && !is(&[]));
    }

    #[test]
    fn age_is_the_header_or_the_time_since_the_date() {
        let now = Time(784_111_777_000);
        assert_eq!(age(&headers(&header::AGE, &["7"]), now), Duration::from_secs(7));
        assert_eq!(age(&headers(&header::AGE, &["x"]), now), Duration::ZERO);
        assert_eq!(age_header(&headers(&header::AGE, &["99999999999999999999"])), Duration::from_secs(1 << 31));
        assert_eq!(age_header(&headers(&header::DATE, &["Sun, 06 Nov 1994 08:49:27 GMT"])), Duration::ZERO);
        assert_eq!(age(&headers(&header::DATE, &["Sun, 06 Nov 1994 08:49:27 GMT"]), now), Duration::from_secs(10));
        assert_eq!(age(&headers(&header::DATE, &["Sun, 06 Nov 1994 09:49:27 GMT"]), now), Duration::ZERO);
    }
}
