//! Checks the heads of HTTP/2 requests, beyond what the HTTP/2 library refuses.
//!
//! Does no IO.

use crate::rules::authority::Authority;
use crate::server::http1_head::MAX_METHOD;
use http::{HeaderValue, Method, header};
use pingora::http::RequestHeader;

/// Returns whether a request breaks the rules of HTTP/2 (RFC 9113, section 8.1.1).
pub(crate) fn is_malformed(request: &RequestHeader) -> bool {
    let is_path = !request.raw_path().iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n' | b' '));
    !is_path || !has_clear_length(request) || !has_clear_values(request)
}

/// Returns what is wrong with a request that no version of HTTP allows.
pub(crate) fn invalid(request: &RequestHeader, has_fragment: bool) -> Option<String> {
    if has_fragment {
        return Some("the request target has a fragment (`#`)".to_owned());
    }
    if request.method.as_str().len() > MAX_METHOD {
        return Some(format!("the method is longer than {MAX_METHOD} bytes"));
    }
    let detail = "the request must name one host, in `:authority` or in a single `Host` header, and its path must begin with `/`";
    (!has_clear_authority(request)).then(|| detail.to_owned())
}

/// Returns whether the body has at most one length, and that is a number. HTTP/1 requests have the same rule.
fn has_clear_length(request: &RequestHeader) -> bool {
    let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let Some(length) = lengths.next() else { return true };
    let is_number =
        length.iter().all(u8::is_ascii_digit) && str::from_utf8(length).is_ok_and(|text| text.parse::<u64>().is_ok());
    is_number && lengths.next().is_none()
}

/// Returns whether no value begins or ends with a space or a tab (RFC 9113, section 8.2.1).
fn has_clear_values(request: &RequestHeader) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let mut values = request.headers.values().map(HeaderValue::as_bytes);
    values.all(|value| !is_space(value.first()) && !is_space(value.last()))
}

/// Returns whether the request names one host, and its path is a path.
fn has_clear_authority(request: &RequestHeader) -> bool {
    let path = request.method == Method::CONNECT || matches!(request.raw_path(), [b'/', ..] | b"*");
    let mut hosts = request.headers.get_all(header::HOST).iter().map(|host| Authority::parse(host.as_bytes()));
    let authority = request.uri.authority().map(|authority| Authority::parse(authority.as_str().as_bytes()));
    let default_port = if request.uri.scheme_str() == Some("http") { 80 } else { 443 };
    let named = match (authority, hosts.next()) {
        (Some(Some(authority)), Some(Some(host))) => authority.is_same(&host, default_port),
        (Some(Some(_)), None) | (None, Some(Some(_))) => true,
        _ => false,
    };
    path && named && hosts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        RequestHeader::from(request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn lengths_that_differ_or_are_no_numbers_are_refused() {
        for (lengths, expected) in [
            (&[][..], true),
            (&["0"], true),
            (&["12"], true),
            (&["12", "12"], false),
            (&["12, 12"], false),
            (&["12", "13"], false),
            (&["12,13"], false),
            (&["12,"], false),
            (&[""], false),
            (&["+1"], false),
            (&["-1"], false),
            (&["0x1"], false),
            (&["99999999999999999999999"], false),
        ] {
            let headers: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert_eq!(has_clear_length(&request("POST", "http://a/", &headers)), expected, "{lengths:?}");
        }
    }

    #[test]
    fn a_request_names_one_host_and_a_path() {
        for (method, uri, hosts, expected) in [
            ("GET", "http://a/", &[][..], true),
            ("GET", "http://a/", &["a"], true),
            ("GET", "/x", &["a"], true),
            ("OPTIONS", "*", &["a"], true),
            ("GET", "/x", &[], false),
            ("GET", "http://a/", &["A:80"], true),
            ("GET", "https://a/", &["A:443"], true),
            ("GET", "https://a/", &["a:80"], false),
            ("GET", "http://a/", &[""], false),
            ("GET", "/x", &["x,y"], false),
            ("GET", "/x", &["x:99999"], false),
            ("GET", "http://a/", &["b"], false),
            ("GET", "http://a/", &["a", "a"], false),
            ("GET", "http://u@a/", &[], false),
            ("GET", "/x", &["u@a"], false),
        ] {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(has_clear_authority(&request(method, uri, &headers)), expected, "{method} {uri} {hosts:?}");
        }
    }
}
