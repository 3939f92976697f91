//! Makes the body of a session: selects its fields, native data and secrets.

use crate::base::ids::ClientId;
use crate::base::model::{Form, Show, Status, View};
use crate::base::problem::Outcome;
use crate::base::request_reply::Body;
use crate::fetch::provider_query::{ProviderQuery, SharedState};
use crate::pipeline::held::{self, CONNECTION_BUFFER, HeldView, ServedEntry};
use crate::rules::parameters::Representation;
use crate::rules::provider_body::etag;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use http::HeaderValue;
use std::iter;
use std::sync::Arc;

/// Returns the form that the request selects, with secrets only if the client may see them.
#[must_use]
pub(crate) fn show(snapshot: &Snapshot, client: ClientId, shape: &Representation) -> Show {
    let form = if shape.native { Form::WithNative } else { Form::Unified };
    Show { secrets: snapshot.clients[client].reveal_secrets, form }
}

/// The body of one session.
pub(crate) struct SessionBody {
    /// JSON.
    pub body: Body,
    /// Its strong entity tag.
    pub etag: HeaderValue,
    /// The status of the session.
    pub status: Option<Status>,
    /// The view, if the body is all of it.
    pub view: Option<Arc<View>>,
}

/// Returns the body of a session, with only the selected fields. The memory of what is made for it is reserved.
///
/// # Errors
/// The body would exceed the client's share of the memory. 500 if the entry is not a session.
pub(crate) fn session_body(
    shared: &SharedState,
    query: &ProviderQuery,
    served: ServedEntry<'_>,
    show: Show,
    shape: &Representation,
) -> Outcome<SessionBody> {
    // A view that is stored with its entry needs no memory of its own.
    let (view, memory) = match served.entry.view(show) {
        Some(view) => (view.clone(), None),
        None => {
            let HeldView { view, memory } = HeldView::of(shared, query, served, show)?;
            (view, Some(memory))
        }
    };
    let status = view.items.first().map(|item| item.status);
    let Some(fields) = &shape.fields else {
        let body = Body::from(view.body.clone()).holding(memory);
        return Ok(SessionBody { body, etag: view.etag.clone(), status, view: Some(view) });
    };
    if view.body.len() <= CONNECTION_BUFFER {
        let mut copy = Vec::with_capacity(view.body.len());
        fields.write_selected(&view.body, &mut copy)?;
        let etag = etag(&copy);
        return Ok(SessionBody { body: Bytes::from(copy).into(), etag, status, view: None });
    }
    let (copy, memory) = held::selected(fields, iter::once(&*view.body), &query.memory_share(shared))?;
    let etag = etag(&copy);
    Ok(SessionBody { body: Body::from(copy).holding([Arc::new(memory)]), etag, status, view: None })
}
