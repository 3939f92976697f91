//! Why Weir has no access token for a provider (OAuth 2.0).

use crate::base::problem::Code;
use crate::base::request_reply::ProviderFailure;
use std::sync::Arc;

/// Why Weir has no access token for a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{provider}: {fault}")]
pub struct TokenError {
    /// The provider.
    pub provider: Arc<str>,
    /// What failed.
    pub fault: TokenFault,
}

/// Why a token request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum TokenFault {
    #[error("no access token within the deadline")]
    Deadline,
    #[error("{}", .0.detail)]
    Transport(ProviderFailure),
    /// `error` is the body's error code (RFC 6749, section 5.2) in parentheses, or empty.
    #[error("the token endpoint responded with {status}{error}{}", hint(*status))]
    Status { status: u16, error: String },
    #[error("the token endpoint's response has no usable access_token")]
    NoToken,
    #[error("Weir cannot sign the token: the system has no random numbers")]
    NotSigned,
}

fn hint(status: u16) -> &'static str {
    if matches!(status, 400..=499) && status != 429 { "; check oauth2: or jwt: in the credentials" } else { "" }
}

impl TokenError {
    /// Returns the problem code of the failure.
    #[must_use]
    pub fn code(&self) -> Code {
        match &self.fault {
            TokenFault::Deadline => Code::ProviderTimeout,
            TokenFault::Transport(failure) if failure.kind.is_timeout() => Code::ProviderTimeout,
            TokenFault::Status { status: 429 | 503, .. } => Code::ProviderRateLimited,
            TokenFault::Status { status: 400..=499, .. } | TokenFault::NoToken => Code::ProviderAuthFailed,
            TokenFault::Transport(_) | TokenFault::Status { .. } | TokenFault::NotSigned => Code::ProviderError,
        }
    }

    /// Returns what failed, for operators: also the host of the token endpoint.
    #[must_use]
    pub fn cause(&self) -> String {
        if let TokenFault::Transport(failure) = &self.fault {
            return format!("{}: {}", failure.kind.reason(), failure.cause);
        }
        self.fault.to_string()
    }

    /// Returns the token endpoint's status, if it sent a response other than 200.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        if let TokenFault::Status { status, .. } = self.fault { Some(status) } else { None }
    }
}
