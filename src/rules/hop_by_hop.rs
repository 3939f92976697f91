//! Decides which headers Weir does not forward, in requests and in responses.
//!
//! The same rules hold for responses that Weir streams and for those that it reads first. This module changes no
//! headers.

use crate::base::endpoints::EXPLAIN;
use http::{HeaderMap, HeaderName, header};

/// Headers of a single connection (RFC 9110, section 7.6.1). The code that writes a message also sets its framing.
const HOP_BY_HOP: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"];
/// Request headers with the client's secrets, which the provider may not see.
const CLIENT_SECRETS: [&str; 5] = ["x-api-key", "authorization", "x-weir-key", "cookie", "proxy-authorization"];
/// The `X-Forwarded-*` headers about the client's address and connection. Others tell the provider another path, method
/// or identity.
const FORWARDED: [&str; 8] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-by",
    "x-forwarded-server",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
];
/// Other headers in which proxies send the client's address.
const CLIENT_ADDRESS: [&str; 14] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-originating-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-remote-host",
    "x-envoy-external-address",
    "x-azure-clientip",
    "true-client-ip",
    "client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
];
/// Request headers that make some servers handle another request than the one that they got: another method, path or
/// host. Weir decides by the method and the path, so they would lead past its rules.
const OVERRIDES: [&str; 18] = [
    "x-http-method",
    "x-http-verb",
    "x-method",
    "x-http-destinationurl",
    "x-http-host",
    "x-http-path",
    "x-http-url",
    "x-host",
    "x-path",
    "x-uri",
    "x-url",
    "x-request-uri",
    "x-real-uri",
    "x-real-url",
    "x-proxy-url",
    "x-wap-url",
    "x-waws-unencoded-url",
    "request-uri",
];
/// What stands before `-override` in further such headers.
const OVERRIDDEN: [&str; 9] = ["method", "verb", "host", "url", "uri", "path", "query", "scheme", "proto"];
/// What the names of further such headers begin with.
const OVERRIDE_PREFIXES: [&str; 8] = [
    "x-override-",
    "x-original-",
    "x-rewrite-",
    "x-envoy-original-",
    "x-ms-original-",
    "x-middleware-",
    "x-matched-",
    "x-invoke-",
];

/// Response headers about the host that sends them, for its cookies, its connections or its reports. The host is Weir,
/// and all providers and clients share it. Cookies, for example, belong to Weir's credential.
const OF_PROVIDERS_HOST: [&str; 40] = [
    // Cookies, credentials and logins.
    "set-cookie",
    "set-cookie2",
    "set-login",
    "p3p",
    "tk",
    "clear-site-data",
    "activate-storage-access",
    "observe-browsing-topics",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-status",
    // How clients connect to the host.
    "alt-svc",
    "alternate-protocol",
    "alternates",
    "strict-transport-security",
    "public-key-pins",
    "public-key-pins-report-only",
    "expect-ct",
    "onion-location",
    "accept-ch",
    "accept-ch-lifetime",
    "critical-ch",
    // Reports.
    "nel",
    "report-to",
    "reporting-endpoints",
    "content-security-policy-report-only",
    "cross-origin-embedder-policy-report-only",
    "cross-origin-opener-policy-report-only",
    "permissions-policy-report-only",
    "document-policy-report-only",
    // What other pages and workers of the host may do.
    "service-worker-allowed",
    "origin-agent-cluster",
    "origin-isolation",
    "timing-allow-origin",
    "cross-origin-resource-policy",
    "x-permitted-cross-domain-policies",
    "use-as-dictionary",
    "speculation-rules",
    // Orders to a proxy or a cache between Weir and the client.
    "edge-control",
    "x-reproxy-url",
];
/// What the names of further such headers begin with: reports on advertisements, device-bound sessions, and orders to a
/// proxy between Weir and the client.
const OF_PROVIDERS_HOST_PREFIXES: [&str; 6] =
    ["attribution-reporting-", "sec-session-", "secure-session-", "x-accel-", "x-sendfile", "surrogate-"];
/// What their names end with: caching rules for the caches of one company (RFC 9213).
const OF_PROVIDERS_HOST_SUFFIX: &str = "cdn-cache-control";

/// The request header that is for Weir only.
const CLIENT_TO_WEIR: HeaderName = HeaderName::from_static(EXPLAIN.name);

/// Returns the names of the headers about a body's length that a response with this status cannot have: 204 has no body
/// (RFC 9110, section 8.6; RFC 9112, section 6.1), and the length of a 304 is that of another response.
#[must_use]
pub(crate) fn framing_without_body(status: u16) -> &'static [HeaderName] {
    match status {
        204 => &[header::CONTENT_LENGTH, header::TRANSFER_ENCODING],
        304 => &[header::TRANSFER_ENCODING],
        _ => &[],
    }
}

/// Returns the names of the request headers that Weir does not forward to the provider. Headers about the client's
/// address are forwarded only if `trusted_proxy`, and headers that override the method or the path never.
pub(crate) fn of_request(headers: &HeaderMap, trusted_proxy: bool) -> impl Iterator<Item = HeaderName> {
    // A server that treats an underscore as a hyphen, as CGI does, would take such a header for another one.
    let unsafe_names = matching(headers, move |name| {
        name.contains('_') || overrides_request(name) || !trusted_proxy && is_client_address(name)
    });
    let private = CLIENT_SECRETS.into_iter().map(HeaderName::from_static).chain([CLIENT_TO_WEIR]);
    hop_by_hop(headers).chain(private).chain(unsafe_names)
}

/// Request headers that Weir sets itself on its reads, or whose meaning is that of one message.
const OF_READS: [&str; 22] = [
    "host",
    "accept-encoding",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "expect",
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "cache-control",
    "pragma",
    "via",
    "max-forwards",
    "traceparent",
    "tracestate",
    "origin",
    "x-request-id",
    "http2-settings",
];

/// Returns whether a provider's file may name this header, in lower case, as one of its reads.
#[must_use]
pub(crate) fn may_be_named(name: &str) -> bool {
    let private = CLIENT_SECRETS.contains(&name) || *name == CLIENT_TO_WEIR;
    let other = HOP_BY_HOP.contains(&name) || OF_READS.contains(&name) || is_client_address(name);
    !(private || other || name.contains('_') || overrides_request(name))
}

/// Returns whether proxies use this header for the client's address.
fn is_client_address(name: &str) -> bool {
    FORWARDED.contains(&name) || CLIENT_ADDRESS.contains(&name)
}

/// Returns whether some servers take this header for another method, path, host or identity.
fn overrides_request(name: &str) -> bool {
    let other =
        name.split_once("-override").is_some_and(|(what, _)| OVERRIDDEN.iter().any(|part| what.ends_with(part)));
    other
        || OVERRIDES.contains(&name)
        || OVERRIDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.starts_with("x-forwarded-") && !FORWARDED.contains(&name)
}

/// Returns whether a response header is about the host that sends it.
fn is_of_providers_host(name: &str) -> bool {
    OF_PROVIDERS_HOST.contains(&name)
        || OF_PROVIDERS_HOST_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with(OF_PROVIDERS_HOST_SUFFIX)
        // Weir's own CORS settings apply to the responses of all providers.
        || name.starts_with("access-control-")
}

/// Returns the names for which `filter` returns `true`.
fn matching(headers: &HeaderMap, filter: impl Fn(&str) -> bool) -> impl Iterator<Item = HeaderName> {
    headers.keys().filter(|name| filter(name.as_str())).cloned().collect::<Vec<_>>().into_iter()
}

/// Returns whether Weir never forwards a response header with this name, in lower case.
#[must_use]
pub(crate) fn is_never_forwarded(name: &str) -> bool {
    HOP_BY_HOP.contains(&name) || is_of_providers_host(name)
}

/// Returns the names of the response headers that Weir does not forward to the client.
pub(crate) fn of_response(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    hop_by_hop(headers).chain(matching(headers, is_of_providers_host))
}

/// Returns the headers of a single connection, including those that `Connection` names.
fn hop_by_hop(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // `Connection` must not remove the headers for framing and target.
        .filter(|name| !matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::HOST))
        .collect();
    HOP_BY_HOP.into_iter().map(HeaderName::from_static).chain(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: &[&str]) -> HeaderMap {
        names.iter().map(|name| (name.parse().unwrap(), http::HeaderValue::from_static("x"))).collect()
    }

    #[test]
    fn headers_that_override_the_request_are_not_forwarded() {
        let overriding = [
            "X-HTTP-Method-Override",
            "X-Http-Method",
            "X-Method-Override",
            "X-Original-URL",
            "X-Original-Method",
            "X-Rewrite-Url",
            "X-Forwarded-Prefix",
            "X-Forwarded-Path",
            "X-Forwarded-Uri",
            "X-Forwarded-Method",
            "X-Forwarded-User",
            "X-HTTP-Host-Override",
            "X-Envoy-Original-Path",
            "X-Override-URL",
            "X_Original_URL",
        ];
        let address =
            ["X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "True-Client-IP", "X-Client-IP"];
        let other = ["X-Model-Override", "X-Originator", "Accept", "X-Request-Timeout", "X-Forward"];
        for trusted in [false, true] {
            let all = headers(&[&overriding[..], &address, &other].concat());
            let dropped: Vec<HeaderName> = of_request(&all, trusted).collect();
            let is_dropped = |name: &&str| dropped.contains(&name.parse().unwrap());
            assert!(overriding.iter().all(&is_dropped), "{dropped:?}");
            assert!(address.iter().all(|name| is_dropped(name) != trusted), "{dropped:?}");
            assert!(!other.iter().any(&is_dropped), "{dropped:?}");
        }
    }

    #[test]
    fn headers_about_the_providers_host_are_not_forwarded() {
        let own = [
            "Set-Cookie",
            "Set-Cookie2",
            "Strict-Transport-Security",
            "Clear-Site-Data",
            "Public-Key-Pins",
            "Public-Key-Pins-Report-Only",
            "NEL",
            "Report-To",
            "Reporting-Endpoints",
            "Alt-Svc",
            "Expect-CT",
            "Service-Worker-Allowed",
            "Origin-Agent-Cluster",
            "Access-Control-Allow-Origin",
            "Accept-CH",
            "X-Accel-Redirect",
            "CDN-Cache-Control",
            "Other-CDN-Cache-Control",
            "Surrogate-Control",
        ];
        let other = ["Content-Type", "Cache-Control", "Vary", "Content-Security-Policy", "WWW-Authenticate", "X-Own"];
        let all = headers(&[&own[..], &other].concat());
        let dropped: Vec<HeaderName> = of_response(&all).collect();
        let is_dropped = |name: &&str| dropped.contains(&name.parse().unwrap());
        assert!(own.iter().all(&is_dropped), "{dropped:?}");
        assert!(!other.iter().any(&is_dropped), "{dropped:?}");
    }
}
