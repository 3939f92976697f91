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
/// Response headers that are for Weir only. Cookies, for example, belong to Weir's credential, which clients share.
const PROVIDER_TO_WEIR: [&str; 4] = ["set-cookie", "alt-svc", "proxy-authenticate", "proxy-authentication-info"];

/// The request header that is for Weir only.
const CLIENT_TO_WEIR: HeaderName = HeaderName::from_static(EXPLAIN.name);

/// Returns the names of the request headers that Weir does not forward to the provider. Headers about the client's
/// address are forwarded only if `trusted_proxy`.
pub(crate) fn of_request(headers: &HeaderMap, trusted_proxy: bool) -> impl Iterator<Item = HeaderName> {
    // A server that treats an underscore as a hyphen, as CGI does, would take such a header for another one.
    let unsafe_names = matching(headers, move |name| name.contains('_') || !trusted_proxy && is_client_address(name));
    let private = CLIENT_SECRETS.into_iter().map(HeaderName::from_static).chain([CLIENT_TO_WEIR]);
    hop_by_hop(headers).chain(private).chain(unsafe_names)
}

/// Returns whether proxies use this header for the client's address.
fn is_client_address(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip")
}

/// Returns the names for which `filter` returns `true`.
fn matching(headers: &HeaderMap, filter: impl Fn(&str) -> bool) -> impl Iterator<Item = HeaderName> {
    headers.keys().filter(|name| filter(name.as_str())).cloned().collect::<Vec<_>>().into_iter()
}

/// Returns the names of the response headers that Weir does not forward to the client.
pub(crate) fn of_response(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    // Weir's own CORS settings apply to the responses of all providers.
    let cors = matching(headers, |name| name.starts_with("access-control-"));
    hop_by_hop(headers).chain(PROVIDER_TO_WEIR.into_iter().map(HeaderName::from_static)).chain(cors)
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
