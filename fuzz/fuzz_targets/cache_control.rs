//! Headers about freshness, of any kind: read without a panic, ages within bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use http::{HeaderMap, HeaderValue, header};
use weir::conditional;
use weir::model::Time;

fuzz_target!(|input: (Vec<u8>, Vec<u8>, Vec<u8>)| {
    let mut headers = HeaderMap::new();
    for (name, bytes) in [(header::CACHE_CONTROL, &input.0), (header::AGE, &input.1), (header::IF_NONE_MATCH, &input.2)] {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.append(name.clone(), value.clone());
            headers.append(header::DATE, value.clone());
            headers.append(header::ETAG, value);
        }
    }
    let values = || headers.get_all(header::CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
    let directives = conditional::directives(values());
    assert!(directives.max_age.is_none_or(|age| age.as_secs() <= 1 << 31));
    assert!(conditional::said_age(&headers).as_secs() <= 1 << 31);
    let _ = (conditional::age(&headers, Time(1)), conditional::conditions(&headers), conditional::none_match(&(&headers).into(), "\"a\""));
});
