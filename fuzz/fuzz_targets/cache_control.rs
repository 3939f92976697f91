//! Parses arbitrary caching headers: no panic, and ages within their limit.
#![no_main]

use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use weir::testing::Time;
use weir::testing::cache_control;

fuzz_target!(|input: (Vec<u8>, Vec<u8>, Vec<u8>)| {
    let mut headers = HeaderMap::new();
    for (name, bytes) in [(header::CACHE_CONTROL, &input.0), (header::AGE, &input.1), (header::IF_NONE_MATCH, &input.2)]
    {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.append(name.clone(), value.clone());
            headers.append(header::DATE, value.clone());
            headers.append(header::ETAG, value);
        }
    }
    let values = || headers.get_all(header::CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
    let directives = cache_control::directives(values());
    assert!(directives.max_age.is_none_or(|age| age.as_secs() <= 1 << 31));
    assert!(cache_control::age_header(&headers).as_secs() <= 1 << 31);
    let _ = (
        cache_control::age(&headers, Time(1)),
        cache_control::conditions(&headers),
        cache_control::if_none_match_contains(&(&headers).into(), "\"a\""),
    );
});
