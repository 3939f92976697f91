//! Names the reasons why the rest of a list cannot be read.

use crate::rules::page_url::UrlFault;

/// Why the rest of a list cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum CutList {
    #[error("the provider sent the same page again for another page token")]
    RepeatedPage,
    #[error("the provider's page tokens form a circle, so the list would never end")]
    RepeatedToken,
    #[error(
        "the page is full, and the provider's file says that there is no next page (operations.list_sessions.next)"
    )]
    FullPage,
    #[error("the provider says that more sessions follow, but the page has none")]
    EmptyPage,
    #[error("the provider says that more sessions follow, but the page has no way to them (next.{key})")]
    NoWay { key: &'static str },
    #[error(
        "the list ends after {seen} sessions, but the provider says that it has {total} \
         (operations.list_sessions.total)"
    )]
    NotAllRead { seen: u64, total: u64 },
    #[error("sessions of the list were added or removed while it was read, so others may be missing; start again")]
    Moved,
    #[error("the next page's URL cannot be followed: {0}")]
    Url(#[from] UrlFault),
}
