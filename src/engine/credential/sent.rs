//! The credential of one request, and what it adds to the request: headers, or a query parameter.

use super::outgoing::{AuthenticatedRequest, OutgoingRequest, SecretHeader, SigningError};
use super::sigv4::RequestSigner;
use crate::base::model::Time;
use crate::rules::query_key::QueryKey;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// The credential of one request.
#[derive(Clone)]
pub struct SentCredential {
    pub(super) content: SentContent,
    /// The number of its token, if it carries a token that Weir fetched.
    pub(super) token: Option<u64>,
}

/// What is sent.
#[derive(Clone)]
pub(super) enum SentContent {
    /// These headers; none if the request carries no credential.
    Headers(Arc<[SecretHeader]>),
    /// A query parameter.
    Query(Arc<QueryKey>),
    /// A signature of the request.
    Signature(Arc<RequestSigner>),
}

impl SentCredential {
    /// Returns a credential without a token that can be renewed.
    pub(super) fn of(content: SentContent) -> Self {
        Self { content, token: None }
    }

    /// Adds the credential to a request with these headers.
    ///
    /// # Errors
    /// The request cannot be signed.
    pub(crate) fn added_to<'h>(
        &self,
        request: &OutgoingRequest<'_>,
        headers: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        now: Time,
    ) -> Result<AuthenticatedRequest, SigningError> {
        let path = request.path_and_query;
        Ok(match &self.content {
            SentContent::Headers(headers) => {
                AuthenticatedRequest { path_and_query: path.to_owned(), headers: headers.to_vec() }
            }
            SentContent::Query(key) => AuthenticatedRequest { path_and_query: key.added_to(path), headers: Vec::new() },
            SentContent::Signature(signer) => signer.signed(request, headers, now)?,
        })
    }
}
