//! Keeps the response headers that say how a list goes on: the next page's token or URL, and the number of all sessions.
//!
//! A stored page needs them as it needs its body: after a reload, and for clients of the provider's own API.

use crate::rules::cache_control::copied;
use crate::rules::hop_by_hop;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Response headers that Weir sets itself, or whose meaning is that of one message.
const OF_MESSAGES: [&str; 26] = [
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "cache-status",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "ratelimit",
    "ratelimit-policy",
    "refresh",
    "retry-after",
    "server",
    "transfer-encoding",
    "vary",
    "via",
    "www-authenticate",
    "x-request-id",
];

/// The values of the headers that a provider's file names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageHeaders(Vec<(HeaderName, Vec<HeaderValue>)>);

impl PageHeaders {
    /// Takes the headers with these names from a response. A header that a 304 leaves out keeps its value in `previous`, the
    /// response that it confirms (RFC 9111, section 3.2).
    #[must_use]
    pub(crate) fn of(names: &[HeaderName], headers: &HeaderMap, previous: Option<&Self>) -> Self {
        let values = |name: &HeaderName| {
            let values: Vec<HeaderValue> = headers.get_all(name).iter().map(copied).collect();
            let stored = previous.filter(|_| values.is_empty()).and_then(|previous| previous.get(name));
            stored.map_or(values, <[HeaderValue]>::to_vec)
        };
        Self(names.iter().map(|name| (name.clone(), values(name))).collect())
    }

    /// Returns the values of a header; `None` if nobody has looked for it in the response.
    #[must_use]
    pub(crate) fn get(&self, name: &HeaderName) -> Option<&[HeaderValue]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, values)| values.as_slice())
    }

    /// Returns whether all headers with these names were looked for in the response.
    #[must_use]
    pub(crate) fn has_all(&self, names: &[HeaderName]) -> bool {
        names.iter().all(|name| self.get(name).is_some())
    }

    /// Returns the headers.
    #[must_use]
    pub(crate) fn to_map(&self) -> HeaderMap {
        let all =
            self.0.iter().flat_map(|(name, values)| values.iter().map(move |value| (name.clone(), value.clone())));
        all.collect()
    }

    /// Returns the number of bytes.
    #[must_use]
    pub(crate) fn size(&self) -> usize {
        // The 64 bytes are an estimate of a value's place in memory.
        self.0.iter().flat_map(|(name, values)| values.iter().map(|value| name.as_str().len() + value.len() + 64)).sum()
    }
}

/// Reads the name of a header with a token or a number.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn name(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName =
        text.parse().map_err(|_| format!("{text:?} is not the name of a header; write one, as in X-Next-Cursor"))?;
    if OF_MESSAGES.contains(&name.as_str()) || hop_by_hop::is_never_forwarded(name.as_str()) {
        return Err(format!("the header {text} has another meaning; name the one with the page's token or number"));
    }
    Ok(name)
}
