//! Describes the headers of requests and responses, each once.
//!
//! The parent module decides which response has which header.

use serde_json::{Map, Value, json};

/// Response headers: name, schema type, description, example.
const RESPONSE_HEADERS: [(&str, &str, &str, &str); 15] = [
    (
        "X-Request-Id",
        "string",
        "The id of this request in logs and problems: the client's id if it is valid, otherwise one that Weir makes.",
        "5f2c91d0-0000002a",
    ),
    (
        "Cache-Status",
        "string",
        "The result of the cache lookup (RFC 9211): a hit, or why Weir called the provider; the remaining lifetime in seconds; and the rule that set it.",
        "weir; hit; ttl=57; detail=expires_at",
    ),
    (
        "Cache-Control",
        "string",
        "How long the response may be stored, by the client only unless it is `public` (RFC 9111).",
        "private, max-age=60",
    ),
    ("Age", "integer", "Seconds since the provider's response. The remaining lifetime is `max-age` minus `Age`.", "3"),
    (
        "ETag",
        "string",
        "A strong entity tag of this body, for `If-None-Match`. Each content coding has its own.",
        "\"2BDcFbMpJJ_73EG3r-c0Ig\"",
    ),
    (
        "Vary",
        "string",
        "The request headers on which the response depends.",
        "Authorization, X-API-Key, X-Weir-Key, Accept-Encoding",
    ),
    (
        "Content-Encoding",
        "string",
        "The content coding of the body: `zstd`, `br` or `gzip`, if the client accepts it (`Accept-Encoding`), the body is long enough, and it shows no secret. HTTP libraries decode it.",
        "gzip",
    ),
    (
        "RateLimit-Policy",
        "string",
        "The client's rate-limit policies. `q`: the burst; `w`: seconds until an empty bucket is full (draft-ietf-httpapi-ratelimit-headers-10). Absent if the client has no policy.",
        "\"standard\";q=600;w=60",
    ),
    (
        "RateLimit",
        "string",
        "What is left of each policy. `r`: requests; `t`: seconds until the next one is available.",
        "\"standard\";r=42;t=1",
    ),
    ("Retry-After", "integer", "Seconds after which a retry makes sense.", "1"),
    ("Allow", "string", "The methods that this path has.", "GET, HEAD"),
    ("WWW-Authenticate", "string", "How to send a key (RFC 6750).", "Bearer realm=\"weir\""),
    ("X-Content-Type-Options", "string", "The browser must not guess another media type.", "nosniff"),
    (
        "Content-Security-Policy",
        "string",
        "The page loads from this host only, and sends requests to no other host.",
        "default-src 'none'; script-src 'self'",
    ),
    ("Referrer-Policy", "string", "The browser sends the URL of the response to nobody.", "no-referrer"),
];

/// Request headers: name, component, description, example.
const REQUEST_HEADERS: [(&str, &str, &str, &str); 4] = [
    (
        "X-Request-Id",
        "requestId",
        "The id of the request in logs and in the response: 1 to 128 characters of `A-Z a-z 0-9 - . _ ~ : + / =`. Weir replaces an invalid id.",
        "my-request-1",
    ),
    (
        "If-None-Match",
        "ifNoneMatch",
        "Entity tags of bodies that the client has (RFC 9110). The response is 304 if the current body has one of them.",
        "\"2BDcFbMpJJ_73EG3r-c0Ig\"",
    ),
    (
        "Cache-Control",
        "cacheControl",
        "Weir follows `no-cache`, `no-store`, `max-age`, `min-fresh`, `max-stale` and `only-if-cached` (RFC 9111).",
        "max-age=10",
    ),
    (
        "Last-Event-ID",
        "lastEventId",
        "The id of the last event that the client received. Weir does not send it again.",
        "\"2BDcFbMpJJ_73EG3r-c0Ig\"",
    ),
];

/// Returns the response headers in `used` as components. A header is always present under `NAME.always`, optional under
/// `NAME`.
pub(super) fn components(used: &std::collections::BTreeSet<String>) -> Value {
    let mut all = Map::new();
    for (name, value_type, description, example) in RESPONSE_HEADERS {
        let number = example.parse::<u64>().ok().filter(|_| value_type == "integer");
        let example = number.map_or_else(|| example.into(), Value::from);
        for (key, required) in [(name.to_owned(), false), (format!("{name}.always"), true)] {
            if used.contains(&key) {
                let mut schema = json!({ "type": value_type });
                if value_type == "integer" {
                    schema["minimum"] = 0.into();
                }
                all.insert(
                    key,
                    json!({ "description": description, "required": required, "schema": schema, "example": example }),
                );
            }
        }
    }
    all.into()
}

/// Returns all request headers as parameter components.
pub(super) fn parameters() -> Value {
    let each = REQUEST_HEADERS.iter().map(|(name, key, description, example)| {
        let parameter =
            json!({ "name": name, "in": "header", "description": description, "schema": { "type": "string", "examples": [example] } });
        ((*key).to_owned(), parameter)
    });
    each.collect::<Map<_, _>>().into()
}

/// Adds the members of one object to another.
pub(super) fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}
