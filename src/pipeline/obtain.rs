//! Obtains one provider response, and records its explanation if the client wants one.

use crate::base::model::Time;
use crate::base::problem::{Outcome, Problem};
use crate::engine::cache::{Entry, EntryKind};
use crate::engine::request_record::RequestRecord;
use crate::fetch::error::FetchError;
use crate::fetch::provider_query::{ProviderQuery, SharedState};
use crate::fetch::{self, CacheLookup, Served, explain};
use crate::rules::cache_control::Directives;
use std::sync::Arc;
use tokio::time::Instant;

/// A provider query and the result of its cache lookup.
pub(crate) struct LookedUpQuery {
    /// The query.
    pub query: ProviderQuery,
    /// What the cache has for it.
    pub lookup: CacheLookup,
}

impl LookedUpQuery {
    /// Looks a query up.
    #[must_use]
    pub(crate) fn new(shared: &SharedState, query: ProviderQuery, directives: Directives, now: Time) -> Self {
        let lookup = fetch::look_up(shared, &query, directives, now);
        Self { query, lookup }
    }
}

/// Returns the response to a query; see [`fetch::obtain`].
///
/// # Errors
/// The provider's failure, or why Weir did not call it.
pub(crate) async fn obtain(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    lookup: CacheLookup,
    deadline: Option<Instant>,
    now: Time,
    record: &mut RequestRecord,
) -> Outcome<Served> {
    try_obtain(shared, query, lookup, deadline, now, record).await.map_err(Into::into)
}

/// Like [`obtain`], for a caller that needs the cause of a failure.
///
/// # Errors
/// The provider's failure, or why Weir did not call it.
pub(crate) async fn try_obtain(
    shared: &Arc<SharedState>,
    query: &ProviderQuery,
    lookup: CacheLookup,
    deadline: Option<Instant>,
    now: Time,
    record: &mut RequestRecord,
) -> Result<Served, Box<FetchError>> {
    let before = record.explain.as_ref().and_then(|_| lookup.entry().cloned());
    let wait_before = record.provider_wait;
    let result = fetch::obtain(shared, query, lookup, deadline, now, record).await;
    if let Some(data) = &mut record.explain {
        let problem: Option<Box<Problem>> = match &result {
            Ok(Served { entry, .. }) => match &entry.kind {
                EntryKind::NotFound(error) => Some((&**error).into()),
                _ => None,
            },
            Err(error) => Some(error.clone().into()),
        };
        let outcome = match &result {
            Ok(Served { entry, status, .. }) => Ok((&**entry, status)),
            Err(error) => Err((&**error, record.cache.as_ref())),
        };
        let problem = problem.map(|problem| problem.to_value(None));
        let (waited, now) = (record.provider_wait.saturating_sub(wait_before), shared.now());
        data.provider_responses.push(explain::query_result(query, before.as_deref(), outcome, problem, waited, now));
    }
    result
}

/// Checks that an entry is a resource, not a stored "not found" of the provider.
///
/// # Errors
/// The provider's "not found".
pub(crate) fn check_exists(entry: &Entry) -> Outcome<()> {
    if let EntryKind::NotFound(error) = &entry.kind { Err((&**error).into()) } else { Ok(()) }
}
