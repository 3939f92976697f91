//! Which pages may read answers: cross-origin resource sharing, as the Fetch standard has it.
//!
//! A room of its own because a browser's questions come without a key and must not reach the line. It knows
//! headers and the configured origins, nothing else.

use crate::config::edge::Cors;
use crate::exchange::Request;
use http::{HeaderName, HeaderValue, Method, header};

/// Answers' headers that a page may read besides the simple ones.
const EXPOSED: &str = "age, cache-status, etag, location, ratelimit, ratelimit-policy, retry-after, x-request-id";
/// What a page may ask with.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

type Headers = Vec<(HeaderName, HeaderValue)>;

/// The request's origin, if pages of it may read answers.
fn origin(cors: &Cors, request: &Request) -> Option<HeaderValue> {
    let origin = request.header("origin")?;
    let any = cors.origins.iter().any(|known| known == "*");
    if any {
        return Some(HeaderValue::from_static("*"));
    }
    let known = cors.origins.iter().any(|known| known.eq_ignore_ascii_case(origin));
    if known { HeaderValue::from_str(origin).ok() } else { None }
}

/// What an answer carries for the page that asked. Empty for a page that may not read it.
#[must_use]
pub fn headers(cors: Option<&Cors>, request: &Request) -> Headers {
    let Some(cors) = cors else { return Vec::new() };
    let vary = (header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin(cors, request) else { return vec![vary] };
    vec![
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED)),
        vary,
    ]
}

/// The answer's headers to a browser that asks whether it may ask; `None` for any other request, and where no
/// origin is configured.
#[must_use]
pub fn preflight(cors: Option<&Cors>, request: &Request) -> Option<Headers> {
    let cors = cors?;
    let asks = request.method == Method::OPTIONS
        && request.headers.contains("origin")
        && request.headers.contains("access-control-request-method");
    if !asks {
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
        // Which headers are read is decided where they are read.
        let asked = request.headers.get("access-control-request-headers");
        let asked = asked.and_then(|asked| HeaderValue::from_bytes(asked).ok());
        headers.extend(asked.map(|asked| (header::ACCESS_CONTROL_ALLOW_HEADERS, asked)));
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
        }
    }

    fn cors(origins: &[&str]) -> Cors {
        Cors { origins: origins.iter().map(|&o| o.to_owned()).collect(), max_age: Duration::from_secs(600) }
    }

    fn value(headers: &Headers, name: &HeaderName) -> Option<String> {
        headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn only_known_origins_may_read() {
        let ask = |origin| request(Method::GET, &[("origin", origin)]);
        let allowed =
            |cors: &Cors, origin| value(&headers(Some(cors), &ask(origin)), &header::ACCESS_CONTROL_ALLOW_ORIGIN);
        let some = cors(&["https://app.example", "http://localhost:3000"]);
        assert_eq!(allowed(&some, "https://app.example").as_deref(), Some("https://app.example"));
        for other in ["https://app.example.evil", "http://app.example", "null", "https://evil"] {
            assert_eq!(allowed(&some, other), None, "{other}");
        }
        assert_eq!(allowed(&cors(&["*"]), "https://any").as_deref(), Some("*"));
        assert!(headers(None, &ask("https://app.example")).is_empty());
    }

    #[test]
    fn a_preflight_is_one_only_with_its_headers() {
        let some = cors(&["https://app.example"]);
        let pairs = [
            ("origin", "https://app.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "x-api-key"),
        ];
        let told = preflight(Some(&some), &request(Method::OPTIONS, &pairs)).unwrap();
        assert_eq!(value(&told, &header::ACCESS_CONTROL_ALLOW_HEADERS).as_deref(), Some("x-api-key"));
        assert_eq!(value(&told, &header::ACCESS_CONTROL_MAX_AGE).as_deref(), Some("600"));
        assert!(preflight(Some(&some), &request(Method::OPTIONS, &pairs[..1])).is_none());
        assert!(preflight(Some(&some), &request(Method::GET, &pairs)).is_none());
        assert!(preflight(None, &request(Method::OPTIONS, &pairs)).is_none());
        let evil = request(Method::OPTIONS, &[("origin", "https://evil"), ("access-control-request-method", "GET")]);
        assert_eq!(preflight(Some(&some), &evil).unwrap().len(), 1, "told nothing that would let it");
    }
}
