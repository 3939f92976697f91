//! Implements cross-origin resource sharing (the CORS protocol of the Fetch standard) for the configured origins.
//!
//! A preflight request has no key, so it is handled before authentication.

use crate::base::request_reply::Request;
use crate::config::edge::Cors;
use http::{HeaderName, HeaderValue, Method, header};

/// Response headers that a page may read, besides the safelisted ones of the Fetch standard.
const EXPOSED: &str = "age, cache-status, etag, location, ratelimit, ratelimit-policy, retry-after, x-request-id";
/// Methods that a page may use.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

type Headers = Vec<(HeaderName, HeaderValue)>;

/// Returns the value of `Access-Control-Allow-Origin` if pages of the request's origin may read responses.
fn origin(cors: &Cors, request: &Request) -> Option<HeaderValue> {
    let origin = request.header("origin")?;
    let any = cors.origins.iter().any(|known| known == "*");
    if any {
        return Some(HeaderValue::from_static("*"));
    }
    let known = cors.origins.iter().any(|known| known.eq_ignore_ascii_case(origin));
    if known { HeaderValue::from_str(origin).ok() } else { None }
}

/// Returns the CORS headers of a response: `Vary` only, if the origin may not read it; none, if CORS is not configured.
#[must_use]
pub(crate) fn headers(cors: Option<&Cors>, request: &Request) -> Headers {
    let Some(cors) = cors else { return Vec::new() };
    let vary = (header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin(cors, request) else { return vec![vary] };
    vec![
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED)),
        vary,
    ]
}

/// Returns the headers of the response to a preflight. `None` if the request is not a preflight or CORS is not
/// configured.
#[must_use]
pub(crate) fn preflight(cors: Option<&Cors>, request: &Request) -> Option<Headers> {
    let cors = cors?;
    let is_preflight = request.method == Method::OPTIONS
        && request.headers.contains("origin")
        && request.headers.contains("access-control-request-method");
    if !is_preflight {
        return None;
    }
    let mut headers: Headers = vec![(
        header::VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    )];
    if let Some(origin) = origin(cors, request) {
        headers.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
        headers.push((header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS)));
        headers.push((header::ACCESS_CONTROL_MAX_AGE, cors.max_age.as_secs().into()));
        // Allows any header: Weir checks headers when it reads them.
        let names = request.headers.get("access-control-request-headers");
        let names = names.and_then(|names| HeaderValue::from_bytes(names).ok());
        headers.extend(names.map(|names| (header::ACCESS_CONTROL_ALLOW_HEADERS, names)));
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn request(method: Method, pairs: &[(&'static str, &'static str)]) -> Request {
        Request {
            method,
            version: http::Version::HTTP_11,
            path: "/v1/sessions".into(),
            query: String::new(),
            headers: pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect(),
            peer: None,
            form: None,
        }
    }

    fn cors(origins: &[&str]) -> Cors {
        Cors { origins: origins.iter().map(|&o| o.to_owned()).collect(), max_age: Duration::from_secs(600) }
    }

    fn value(headers: &Headers, name: &HeaderName) -> Option<String> {
        headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn only_configured_origins_may_read() {
        let get = |origin| request(Method::GET, &[("origin", origin)]);
        let allowed =
            |cors: &Cors, origin| value(&headers(Some(cors), &get(origin)), &header::ACCESS_CONTROL_ALLOW_ORIGIN);
        let some = cors(&["https://app.example", "http://localhost:3000"]);
        assert_eq!(allowed(&some, "https://app.example").as_deref(), Some("https://app.example"));
        for other in ["https://app.example.evil", "http://app.example", "null", "https://evil"] {
            assert_eq!(allowed(&some, other), None, "{other}");
        }
        assert_eq!(allowed(&cors(&["*"]), "https://any").as_deref(), Some("*"));
        assert!(headers(None, &get("https://app.example")).is_empty());
    }

    #[test]
    fn a_preflight_has_a_method_and_two_headers() {
        let some = cors(&["https://app.example"]);
        let pairs = [
            ("origin", "https://app.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "x-api-key"),
        ];
        let response = preflight(Some(&some), &request(Method::OPTIONS, &pairs)).unwrap();
        assert_eq!(value(&response, &header::ACCESS_CONTROL_ALLOW_HEADERS).as_deref(), Some("x-api-key"));
        assert_eq!(value(&response, &header::ACCESS_CONTROL_MAX_AGE).as_deref(), Some("600"));
        assert!(preflight(Some(&some), &request(Method::OPTIONS, &pairs[..1])).is_none());
        assert!(preflight(Some(&some), &request(Method::GET, &pairs)).is_none());
        assert!(preflight(None, &request(Method::OPTIONS, &pairs)).is_none());
        let evil = request(Method::OPTIONS, &[("origin", "https://evil"), ("access-control-request-method", "GET")]);
        assert_eq!(preflight(Some(&some), &evil).unwrap().len(), 1, "no header but Vary");
    }
}
