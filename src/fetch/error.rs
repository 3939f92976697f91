//! Defines why a provider query fails.

use crate::base::model::Field;
use crate::base::operation::Operation;
use crate::base::problem::Code;
use crate::base::request_reply::{CallStats, ProviderReply};
use crate::engine::credential::token_error::TokenError;
use crate::fetch::provider_admission::NotAdmitted;
use crate::rules::error_rules::ProviderError;
use crate::rules::provider_body::UnreadableBody;
use std::sync::Arc;

/// A failed provider query.
#[derive(Debug, Clone)]
pub struct FetchError {
    /// The cause.
    pub cause: FetchCause,
    /// The attempts and times of the call, if a request was sent.
    pub call_stats: Option<CallStats>,
}

/// Why a query failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchCause {
    /// The client accepts only a response from the cache.
    #[error("the cache has no fresh entry, and the request has only-if-cached")]
    NotCached,
    /// Weir may not call the provider now.
    #[error(transparent)]
    NotAdmitted(NotAdmitted),
    /// The limit of requests that wait for this call is reached.
    #[error("too many requests wait for this provider response (overload.max_waiters)")]
    TooManyWaiters,
    /// There is no access token for the provider.
    #[error(transparent)]
    Token(TokenError),
    /// The provider responded with an error, or not at all.
    #[error("{} responded with an error, or not at all", .0.provider)]
    Provider(ProviderError),
    /// The provider's response cannot be used.
    #[error("{error}")]
    Unreadable {
        /// What is wrong with its body.
        error: UnreadableBody,
        /// The response; `None` if the body came from the cache.
        reply: Option<Arc<ProviderReply>>,
    },
    /// A reload has replaced the mapping while the call was under way.
    #[error("the provider's response cannot be mapped by the reloaded configuration")]
    Outdated,
    /// The deadline of a request for several responses has passed. The call continues.
    #[error("{provider} did not respond within the deadline of this request")]
    Deadline {
        /// The provider.
        provider: Arc<str>,
    },
    /// The task of the call panicked.
    #[error("the call to the provider ended without a result")]
    LostCall,
    /// The provider has no such operation.
    #[error(transparent)]
    NoOperation(NoOperation),
}

/// A provider without the operation that a query needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{provider} is not configured to {}", operation.action())]
pub struct NoOperation {
    /// The provider.
    pub provider: Arc<str>,
    /// The operation.
    pub operation: Operation,
}

impl FetchError {
    /// Returns the problem code. It is the label in metrics and traces, and decides whether a stale entry may be served
    /// instead.
    #[must_use]
    pub fn code(&self) -> Code {
        match &self.cause {
            FetchCause::NotCached => Code::NotCached,
            FetchCause::NotAdmitted(error) => error.code(),
            FetchCause::TooManyWaiters => Code::Overloaded,
            FetchCause::Token(error) => error.code(),
            FetchCause::Provider(error) => error.code(),
            FetchCause::Unreadable { .. } | FetchCause::Outdated => Code::ProviderInvalidResponse,
            FetchCause::Deadline { .. } => Code::ProviderTimeout,
            FetchCause::LostCall => Code::InternalError,
            FetchCause::NoOperation(_) => Code::InvalidRequest,
        }
    }

    /// Returns whether Weir refused the call, so that the provider got no request.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.cause, FetchCause::NotAdmitted(_) | FetchCause::TooManyWaiters)
    }

    /// Returns whether the client that started the call has used its share of memory or calls. Another client has its own.
    #[must_use]
    pub fn is_clients_limit(&self) -> bool {
        let is_share = matches!(
            self.cause,
            FetchCause::NotAdmitted(
                NotAdmitted::CallShare { .. } | NotAdmitted::CapacityShare { .. } | NotAdmitted::ConnectionShare { .. }
            )
        );
        is_share || self.is_buffer_limit()
    }

    /// Returns whether the response would have exceeded the memory that Weir may use for it.
    #[must_use]
    pub fn is_buffer_limit(&self) -> bool {
        matches!(&self.cause, FetchCause::Provider(error) if error.is_buffer_limit())
    }

    /// Returns the provider's HTTP status, if it sent a response.
    #[must_use]
    pub fn provider_status(&self) -> Option<u16> {
        match &self.cause {
            FetchCause::Provider(error) => error.status(),
            FetchCause::Token(error) => error.status(),
            FetchCause::Unreadable { reply, .. } => reply.as_ref().map(|reply| reply.status),
            _ => None,
        }
    }

    /// Returns the provider's response, if it sent one.
    #[must_use]
    pub fn reply(&self) -> Option<&ProviderReply> {
        match &self.cause {
            FetchCause::Provider(error) => error.reply.as_deref(),
            FetchCause::Unreadable { reply, .. } => reply.as_deref(),
            _ => None,
        }
    }

    /// Returns the field that makes the session unusable, and the reason, if that is the cause.
    #[must_use]
    pub(crate) fn fault_of_session(&self) -> Option<(Option<Field>, &'static str)> {
        if let FetchCause::Unreadable { error, .. } = &self.cause { error.fault.of_session() } else { None }
    }

    /// Adds the response whose body is unreadable.
    #[must_use]
    pub(crate) fn with_reply(mut self: Box<Self>, unreadable: &ProviderReply) -> Box<Self> {
        if let FetchCause::Unreadable { reply, .. } = &mut self.cause {
            *reply = Some(Arc::new(unreadable.clone()));
        }
        self
    }
}

impl From<FetchCause> for Box<FetchError> {
    fn from(cause: FetchCause) -> Self {
        Box::new(FetchError { cause, call_stats: None })
    }
}

impl From<NotAdmitted> for Box<FetchError> {
    fn from(error: NotAdmitted) -> Self {
        FetchCause::NotAdmitted(error).into()
    }
}

impl From<TokenError> for Box<FetchError> {
    fn from(error: TokenError) -> Self {
        FetchCause::Token(error).into()
    }
}

impl From<ProviderError> for Box<FetchError> {
    fn from(error: ProviderError) -> Self {
        FetchCause::Provider(error).into()
    }
}

impl From<UnreadableBody> for Box<FetchError> {
    fn from(error: UnreadableBody) -> Self {
        FetchCause::Unreadable { error, reply: None }.into()
    }
}

impl From<NoOperation> for Box<FetchError> {
    fn from(error: NoOperation) -> Self {
        FetchCause::NoOperation(error).into()
    }
}
