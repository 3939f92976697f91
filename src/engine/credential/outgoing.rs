//! A request to a provider before and after its credential is added, and the identity of a credential.

use crate::engine::upstream::Target;
use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

/// A header field that carries a credential. Its value is marked sensitive.
pub(crate) type SecretHeader = (HeaderName, HeaderValue);

/// A request that needs a credential.
#[derive(Clone, Copy)]
pub(crate) struct OutgoingRequest<'r> {
    /// The method.
    pub(crate) method: &'r str,
    /// The provider.
    pub(crate) target: &'r Target,
    /// Path and query below the provider's base URL.
    pub(crate) path_and_query: &'r str,
    /// The body.
    pub(crate) body: OutgoingBody<'r>,
}

/// The body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutgoingBody<'r> {
    /// Weir has all of it.
    Whole(&'r [u8]),
    /// It is still to come.
    Streamed,
}

/// A request with its credential.
pub(crate) struct AuthenticatedRequest {
    /// Path and query below the provider's base URL. The query can contain the credential.
    pub(crate) path_and_query: String,
    /// The headers of the credential.
    pub(crate) headers: Vec<SecretHeader>,
}

/// Why a request cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum SigningError {
    #[error(
        "Weir signs the requests to this provider, and a signature covers the body: send X-Amz-Content-Sha256 with the \
         SHA-256 of the body in 64 hexadecimal digits"
    )]
    BodyDigest,
    #[error("Weir signs the requests to this provider, and cannot sign a query that is not UTF-8 when it is decoded")]
    Query,
    #[error("Weir signs the requests to this provider, and cannot sign {0} with these characters")]
    Header(HeaderName),
    #[error("Weir signs the requests to this provider, and cannot sign this path")]
    Unsuitable,
}

/// Marks a header value as sensitive, so that `Debug` does not show it.
pub(super) fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Returns the identity of a credential: a digest of its kind and of all its parts. Each of several parts is preceded by its
/// length.
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
