//! Which headers go no further than Weir, in either direction.
//!
//! A room of its own because requests that are passed on, their answers, and answers that were read whole must
//! keep back the same. It reads headers and changes none.

use crate::endpoints::EXPLAIN;
use http::{HeaderMap, HeaderName, header};

/// Headers for one connection (RFC 9110, section 7.6.1); framing is for who writes the message.
const HOP_BY_HOP: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"];
/// The client's secrets, which are not the provider's to know.
const OWN_SECRETS: [&str; 5] = ["x-api-key", "authorization", "x-weir-key", "cookie", "proxy-authorization"];
/// The provider's, which are for Weir: its cookies would tie clients to a credential that is not theirs.
const THEIR_OWN: [&str; 4] = ["set-cookie", "alt-svc", "proxy-authenticate", "proxy-authentication-info"];

/// What is said to Weir alone.
const TO_WEIR: HeaderName = HeaderName::from_static(EXPLAIN.name);

/// What of a client's request does not reach the provider. `believed` says that it comes from a proxy whose word on
/// where it comes from is taken.
pub fn of_request(headers: &HeaderMap, believed: bool) -> impl Iterator<Item = HeaderName> {
    let strange = matching(headers, move |name| name.contains('_') || !believed && is_of_proxies(name));
    let own = OWN_SECRETS.into_iter().map(HeaderName::from_static).chain([TO_WEIR]);
    hop_by_hop(headers).chain(own).chain(strange)
}

/// Whether a header is a proxy's word on where a request comes from.
fn is_of_proxies(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip")
}

/// Names of these headers that are such. (A name with an underscore is such because a server that reads it as a
/// hyphen, as CGI does, would take it for another.)
fn matching(headers: &HeaderMap, such: impl Fn(&str) -> bool) -> impl Iterator<Item = HeaderName> {
    headers.keys().filter(|name| such(name.as_str())).cloned().collect::<Vec<_>>().into_iter()
}

/// What of a provider's answer does not reach the client.
pub fn of_answer(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    // Which pages may read an answer is Weir's to say, for all providers alike.
    let sharing = matching(headers, |name| name.starts_with("access-control-"));
    hop_by_hop(headers).chain(THEIR_OWN.into_iter().map(HeaderName::from_static)).chain(sharing)
}

/// Headers for one connection, those that `Connection` names included.
fn hop_by_hop(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // Framing and target are not an option of the connection.
        .filter(|name| !matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::HOST))
        .collect();
    HOP_BY_HOP.into_iter().map(HeaderName::from_static).chain(named)
}
