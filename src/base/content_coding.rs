//! Defines the content codings in which Weir can send a response (RFC 9110, section 8.4.1), and keeps encoded bodies.
//!
//! This module does not encode and does not decide which coding a client gets.

use bytes::Bytes;
use std::sync::OnceLock;
use tokio::sync::OnceCell;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentCoding {
    /// Zstandard (RFC 8878).
    Zstd,
    /// Brotli (RFC 7932).
    Br,
    /// gzip (RFC 1952).
    Gzip,
}

impl ContentCoding {
    /// All codings, the preferred one first: on a page of a list, the next one needs more time and makes it shorter, or is
    /// known to more clients.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Br, Self::Gzip];

    /// Returns the name in `Accept-Encoding`, in `Content-Encoding`, in the configuration and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// The encoded forms of one body. Each is made once, for the first request that needs it.
#[derive(Default)]
pub struct EncodedForms(OnceLock<Box<[OnceCell<Bytes>; ContentCoding::ALL.len()]>>);

impl EncodedForms {
    /// Returns the place of the form in a coding.
    pub(crate) fn place(&self, coding: ContentCoding) -> &OnceCell<Bytes> {
        &self.0.get_or_init(Box::default)[coding as usize]
    }

    /// Returns the length of all forms that exist, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let forms = self.0.get().into_iter().flat_map(|forms| forms.iter());
        forms.filter_map(OnceCell::get).map(Bytes::len).sum()
    }
}
