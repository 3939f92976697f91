//! What Weir shows a provider, and the identity under which its answers may be shared.
//!
//! A room of its own because two clients may share a cache entry only if they would have shown the
//! provider the same thing. The identity is a digest and is never printed.

use crate::config::faults::Faults;
use crate::config::provider;
use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A compiled credential.
#[derive(Clone)]
pub struct Credential {
    /// The header it travels in; `None`: nothing is sent.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// Part of every cache key.
    pub identity: Arc<str>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.header.is_some() { "Credential(…)" } else { "Credential(none)" })
    }
}

/// Headers that Weir or the connection sets; a credential may not stand in their place.
const TAKEN: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "accept", "accept-encoding", "user-agent", "te"];

/// Compiles a provider's credential, or the absence of one.
#[must_use]
pub fn compile(config: Option<&provider::Credential>, faults: &mut Faults) -> Credential {
    let Some(config) = config else { return none() };
    let name = HeaderName::from_bytes(config.header.value.to_ascii_lowercase().as_bytes())
        .ok()
        .filter(|name| !TAKEN.contains(&name.as_str()))
        .ok_or_else(|| format!("{:?} is not a header that can carry a credential", config.header.value));
    let name = faults.keep(&config.header.place, name);
    if config.value.0.is_empty() {
        return none();
    }
    let value = HeaderValue::from_str(&config.value.0)
        .map_err(|_| "the credential's value holds characters that a header cannot have (a line break?)");
    let value = faults.keep(&config.header.place, value).map(|mut value| {
        value.set_sensitive(true);
        value
    });
    let identity = identity(&config.header.value.to_ascii_lowercase(), &config.value.0);
    Credential { header: name.zip(value), identity }
}

fn none() -> Credential {
    Credential { header: None, identity: identity("", "") }
}

fn identity(header: &str, value: &str) -> Arc<str> {
    let mut digest = Sha256::new();
    digest.update(header.len().to_le_bytes());
    digest.update(header);
    digest.update(value);
    let text: String = digest.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Secret;
    use crate::config::faults::{At, Place};

    fn credential(header: &str, value: &str) -> (Credential, usize) {
        let mut faults = Faults::default();
        let header = At { value: header.to_owned(), place: Place::top(&"f".into()) };
        let config = provider::Credential { header, value: Secret(value.into()) };
        let compiled = compile(Some(&config), &mut faults);
        (compiled, faults.sorted().len())
    }

    #[test]
    fn identity_follows_header_and_value() {
        let of = |header, value| credential(header, value).0.identity;
        assert_eq!(of("X-Api-Key", "a"), of("x-api-key", "a"));
        assert_ne!(of("x-api-key", "a"), of("x-api-key", "b"));
        assert_ne!(of("x-api-key", "a"), of("authorization", "a"));
        assert_ne!(of("x-api-key", "a"), of("x-api-key", ""));
    }

    #[test]
    fn a_credential_never_prints_itself() {
        let (compiled, _) = credential("x-api-key", "hunter2");
        assert!(!format!("{compiled:?} {:?}", compiled.header).contains("hunter2"));
    }

    #[test]
    fn line_breaks_and_framing_headers_are_faults() {
        assert_eq!(credential("x-api-key", "a\r\nb").1, 1);
        assert_eq!(credential("host", "a").1, 1);
        assert_eq!(credential("not a header", "a").1, 1);
    }
}
