//! The header fields of requests and answers, each described once.
//!
//! Beside the description because which of them an answer carries is another question than what is in it.

use serde_json::{Map, Value, json};

/// Fields of answers: name, schema's type, what it says, an example.
const ANSWERS: [(&str, &str, &str, &str); 14] = [
    (
        "X-Request-Id",
        "string",
        "Names this request in logs and problems: the one that was sent, where it is 1 to 128 of `A-Z a-z 0-9 - . _ ~ : + / =`.",
        "5f2c91d0-0000002a",
    ),
    (
        "Cache-Status",
        "string",
        "What the cache did (RFC 9211): a hit or why the provider was asked, the seconds left, and why.",
        "weir; hit; ttl=57; detail=expires_at",
    ),
    (
        "Cache-Control",
        "string",
        "How long this answer may be kept, by its client alone unless it is public (RFC 9111).",
        "private, max-age=60",
    ),
    ("Age", "integer", "Seconds since the provider's answer; what is left of `max-age` is the difference.", "3"),
    ("ETag", "string", "A strong tag of exactly this body, for `If-None-Match`.", "\"2BDcFbMpJJ_73EG3r-c0Ig\""),
    ("Vary", "string", "Which request fields an answer depends on.", "Authorization, X-API-Key, X-Weir-Key"),
    (
        "RateLimit-Policy",
        "string",
        "The client's policies: `q` is the burst, `w` the seconds in which it is earned (draft-ietf-httpapi-ratelimit-headers-10). There where the client has any.",
        "\"standard\";q=600;w=60",
    ),
    (
        "RateLimit",
        "string",
        "What is left of each: `r` requests, and `t` seconds until the next one is earned.",
        "\"standard\";r=42;t=1",
    ),
    ("Retry-After", "integer", "Seconds after which to try again.", "1"),
    ("Allow", "string", "The methods that this path does answer.", "GET, HEAD"),
    ("WWW-Authenticate", "string", "How to send a key (RFC 6750).", "Bearer realm=\"weir\""),
    ("X-Content-Type-Options", "string", "The media type is what it says.", "nosniff"),
    (
        "Content-Security-Policy",
        "string",
        "The page runs, shows and asks nothing but this host's.",
        "default-src 'none'; script-src 'self'",
    ),
    ("Referrer-Policy", "string", "The page tells no other where a reader came from.", "no-referrer"),
];

/// Fields of requests: name, component, what it does, an example.
const REQUESTS: [(&str, &str, &str, &str); 4] = [
    (
        "X-Request-Id",
        "requestId",
        "Names the request in logs and in the answer. One that is not 1 to 128 of `A-Z a-z 0-9 - . _ ~ : + / =` is replaced.",
        "my-request-1",
    ),
    (
        "If-None-Match",
        "ifNoneMatch",
        "Entity tags that the client has (RFC 9110): 304 if the body is still one of them.",
        "\"2BDcFbMpJJ_73EG3r-c0Ig\"",
    ),
    (
        "Cache-Control",
        "cacheControl",
        "`no-cache`, `no-store`, `max-age`, `min-fresh`, `max-stale` and `only-if-cached` are obeyed (RFC 9111).",
        "max-age=10",
    ),
    (
        "Last-Event-ID",
        "lastEventId",
        "The id of the last event that came: it is not sent again.",
        "\"2BDcFbMpJJ_73EG3r-c0Ig\"",
    ),
];

/// All fields of answers, as components: `NAME` may be missing, `NAME.always` is there.
pub(super) fn components(used: &std::collections::BTreeSet<String>) -> Value {
    let mut all = Map::new();
    for (name, kind, about, example) in ANSWERS {
        let whole = example.parse::<u64>().ok().filter(|_| kind == "integer");
        let example = whole.map_or_else(|| example.into(), Value::from);
        for (key, required) in [(name.to_owned(), false), (format!("{name}.always"), true)] {
            if used.contains(&key) {
                let schema =
                    if kind == "integer" { json!({ "type": kind, "minimum": 0 }) } else { json!({ "type": kind }) };
                all.insert(
                    key,
                    json!({ "description": about, "required": required, "schema": schema, "example": example }),
                );
            }
        }
    }
    all.into()
}

/// All fields of requests, as components.
pub(super) fn parameters() -> Value {
    let each = REQUESTS.iter().map(|(name, key, about, example)| {
        let parameter =
            json!({ "name": name, "in": "header", "description": about, "schema": { "type": "string", "examples": [example] } });
        ((*key).to_owned(), parameter)
    });
    each.collect::<Map<_, _>>().into()
}
