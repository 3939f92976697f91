//! The credential of one request, and what it adds to the request: headers that are marked sensitive.

use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A header field that carries a credential. Its value is marked sensitive.
pub(crate) type SecretHeader = (HeaderName, HeaderValue);

/// The credential of one request.
#[derive(Clone)]
pub struct SentCredential {
    /// The headers; none if the request carries no credential.
    pub(super) headers: Arc<[SecretHeader]>,
    /// The number of its token, if it carries a token that Weir fetched.
    pub(super) token: Option<u64>,
}

impl SentCredential {
    /// Returns a credential of these headers, without a token that can be renewed.
    pub(super) fn of(headers: Arc<[SecretHeader]>) -> Self {
        Self { headers, token: None }
    }

    /// Returns the headers of the credential.
    #[must_use]
    pub fn headers(&self) -> &[SecretHeader] {
        &self.headers
    }
}

/// Marks a header value as sensitive, so that `Debug` does not show it.
pub(super) fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Returns the identity of a credential: a digest of its kind and of all its parts. Each part is preceded by its length.
pub(super) fn digest(kind: &str, parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    digest.update(kind.len().to_le_bytes());
    digest.update(kind);
    match parts {
        [only] => digest.update(only),
        parts => {
            for part in parts {
                digest.update(part.len().to_le_bytes());
                digest.update(part);
            }
        }
    }
    hex::encode(&digest.finalize()[..12])
}
