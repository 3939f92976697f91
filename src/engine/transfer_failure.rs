//! Translates errors of Pingora while a request is sent or a response is read.

use crate::base::request_reply::{FailureKind, ProviderFailure};
use crate::engine::checked_stream::response_fault;
use pingora::{Error, ErrorType};

/// Returns why a call failed after its connection was established. `when` says during what.
#[must_use]
pub(crate) fn transfer_failure(error: &Error, when: &str) -> ProviderFailure {
    if let Some(fault) = response_fault(error) {
        return ProviderFailure::new(FailureKind::Malformed, format!("the provider sent invalid HTTP {when}: {fault}"));
    }
    match error.etype() {
        // The peer refused the stream or closed the connection gracefully: it has not processed the request.
        ErrorType::H2Error if error.retry() => {
            ProviderFailure::new(FailureKind::Reset, format!("the provider refused the stream {when}"))
        }
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error => {
            ProviderFailure::new(FailureKind::Malformed, format!("the provider sent invalid HTTP {when}"))
        }
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => {
            ProviderFailure::new(FailureKind::Timeout, format!("the connection stalled {when}"))
        }
        other => ProviderFailure::new(FailureKind::Reset, format!("the connection broke {when} ({})", other.as_str())),
    }
}
