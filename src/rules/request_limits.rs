//! Checks request size limits and returns the exceeded one.
//!
//! The pipeline checks the limits of URL and headers first, even before it authenticates or responds to a CORS preflight.

use crate::base::endpoints;
use crate::base::request_reply::Request;
use crate::config::edge::Limits;
use http::Version;

/// The limit that a request exceeds, with the request's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitExceeded {
    #[error("the URL has {size} bytes; the limit is {limit}{hint}")]
    Url { size: usize, limit: usize, hint: &'static str },
    #[error("the request has {size} header fields; the limit is {limit}")]
    HeaderCount { size: usize, limit: usize },
    #[error("the headers have {size} bytes; the limit is {limit}")]
    HeaderBytes { size: usize, limit: usize },
    #[error("the HTTP/2 header list has {size} bytes; the limit is {limit}")]
    HeaderList { size: usize, limit: usize },
    #[error("the body has {size} bytes; the limit is {limit}")]
    Body { size: u64, limit: u64 },
}

impl LimitExceeded {
    /// Returns the limit's name in the configuration, which is also the metric's label.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Url { .. } => "url_bytes",
            Self::HeaderCount { .. } => "header_count",
            Self::HeaderBytes { .. } => "header_bytes",
            Self::HeaderList { .. } => "h2_header_list",
            Self::Body { .. } => "body_bytes",
        }
    }
}

/// Checks the limits of the URL and the headers.
///
/// # Errors
/// The first limit that the request exceeds.
pub(crate) fn check_head(request: &Request, limits: &Limits) -> Result<(), LimitExceeded> {
    let (url, limit) = (request.path.len() + request.query.len() + 1, limits.url_bytes);
    if url > limit {
        return Err(LimitExceeded::Url { size: url, limit, hint: endpoints::form_hint(&request.path) });
    }
    let (count, limit) = (request.headers.count(), limits.header_count);
    if count > limit {
        return Err(LimitExceeded::HeaderCount { size: count, limit });
    }
    // Each header line has 4 more bytes: ": " and CRLF.
    let header_bytes = request.headers.bytes() + 4 * count;
    let limit = limits.header_bytes;
    if header_bytes > limit {
        return Err(LimitExceeded::HeaderBytes { size: header_bytes, limit });
    }
    // HTTP/2 counts 32 more bytes for each field (RFC 9113, section 6.5.2). 4 of them are counted already. The method, the
    // scheme, the authority and the path are four more fields.
    let (size, limit) = (url + header_bytes + 28 * count + 4 * 32, limits.h2_header_list);
    if request.version == Version::HTTP_2 && size > limit {
        return Err(LimitExceeded::HeaderList { size, limit });
    }
    Ok(())
}

/// Checks the limit of the body by its `Content-Length`. A body without one is counted while it is read.
///
/// # Errors
/// The body exceeds the limit.
pub(crate) fn check_body(request: &Request, limits: &Limits) -> Result<(), LimitExceeded> {
    let length = request.header("content-length").and_then(|length| length.trim().parse::<u64>().ok());
    let limit = limits.body_bytes;
    match length.filter(|length| *length > limit) {
        Some(size) => Err(LimitExceeded::Body { size, limit }),
        None => Ok(()),
    }
}
