//! Conditions on requests and answers: `If-None-Match` and `Cache-Control`.
//!
//! A room of its own because it is RFC text turned into pure functions. It decides nothing about a
//! cache; it says what the headers say.

use crate::headers::{self, Headers};
use crate::model::Time;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::Duration;

/// The directives of `Cache-Control` that matter here (RFC 9111, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are those of the RFC
pub struct Directives {
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    pub must_revalidate: bool,
    pub max_age: Option<Duration>,
    pub min_fresh: Option<Duration>,
    /// `Some(None)` is `max-stale` without a number: any age will do.
    pub max_stale: Option<Option<Duration>>,
}

/// A number of seconds; one too large to hold counts as very large (RFC 9111, section 1.2.2).
fn delta_seconds(text: &str) -> u64 {
    const LARGE: u64 = 1 << 31;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().unwrap_or(LARGE).min(LARGE) } else { 0 }
}

/// Reads all values of `Cache-Control`. What is unknown or malformed is left aside, as the RFC wants; a
/// malformed age counts as zero, which is the careful reading.
#[must_use]
pub fn directives<'v>(values: impl Iterator<Item = &'v [u8]>) -> Directives {
    let mut all = Directives::default();
    for value in values {
        for directive in headers::text(value).unwrap_or_default().split(',') {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name.trim(), Some(argument.trim().trim_matches('"'))),
                None => (directive.trim(), None),
            };
            let seconds = || Duration::from_secs(argument.map_or(0, delta_seconds));
            match name.to_ascii_lowercase().as_str() {
                "no-cache" => all.no_cache = true,
                "no-store" => all.no_store = true,
                "must-revalidate" | "proxy-revalidate" => all.must_revalidate = true,
                "only-if-cached" => all.only_if_cached = true,
                "max-age" => all.max_age = Some(seconds()),
                "min-fresh" => all.min_fresh = Some(seconds()),
                "max-stale" => all.max_stale = Some(argument.is_some().then(seconds)),
                _ => {}
            }
        }
    }
    all
}

/// The longest validator that is kept, in bytes.
const MAX_VALIDATOR: usize = 1024;

/// Conditions to ask with whether an answer with these headers still holds: by its entity tag where
/// it has one, else by its date (RFC 9110, section 13.1).
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

/// A value with bytes of its own: as it came, it is a slice of all that was read with it.
#[must_use]
pub fn copied(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// How old an answer was when it came, by its `Age`: one is only there if a cache stands between.
#[must_use]
pub fn said_age(headers: &HeaderMap) -> Duration {
    text(headers, header::AGE).map_or(Duration::ZERO, |age| Duration::from_secs(delta_seconds(age)))
}

/// How much of its `max-age` an answer had used up when it came: what `Age` says, or what its `Date` tells
/// if that is more (RFC 9111, section 4.2.3). A clock of the provider's that is behind only shortens.
#[must_use]
pub fn age(headers: &HeaderMap, now: Time) -> Duration {
    let said = said_age(headers);
    let date = text(headers, header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let date = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
    let apparent = date.and_then(|date| i64::try_from(date.as_millis()).ok()).map(|date| now.since(Time(date)));
    // A date has whole seconds: less than one is no age.
    said.max(apparent.filter(|age| *age >= Duration::from_secs(1)).unwrap_or_default())
}

/// Whether `If-None-Match` names this entity tag, by weak comparison (RFC 9110, section 13.1.2).
#[must_use]
pub fn none_match(headers: &Headers, etag: &str) -> bool {
    headers.get_all("if-none-match").any(|value| {
        let text = headers::text(value).unwrap_or_default().trim();
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
    fn directives_are_read_over_several_fields() {
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
    fn none_match_compares_weakly() {
        let is = |values: &[&'static str]| {
            none_match(&values.iter().map(|value| ("If-None-Match", value.as_bytes())).collect(), "\"abc\"")
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
    fn age_is_what_is_said_or_what_the_date_tells() {
        let now = Time(784_111_777_000);
        assert_eq!(age(&headers(&header::AGE, &["7"]), now), Duration::from_secs(7));
        assert_eq!(age(&headers(&header::AGE, &["x"]), now), Duration::ZERO);
        assert_eq!(said_age(&headers(&header::AGE, &["99999999999999999999"])), Duration::from_secs(1 << 31));
        assert_eq!(said_age(&headers(&header::DATE, &["Sun, 06 Nov 1994 08:49:27 GMT"])), Duration::ZERO);
        assert_eq!(age(&headers(&header::DATE, &["Sun, 06 Nov 1994 08:49:27 GMT"]), now), Duration::from_secs(10));
        assert_eq!(age(&headers(&header::DATE, &["Sun, 06 Nov 1994 09:49:27 GMT"]), now), Duration::ZERO);
    }
}
