//! Makes the body of a session: selects its fields, native data and secrets.

use crate::base::ids::ClientId;
use crate::base::model::{Form, Show, View};
use crate::base::problem::Outcome;
use crate::rules::parameters::Representation;
use crate::rules::provider_body::etag;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use http::HeaderValue;

/// Returns the form that the request selects, with secrets only if the client may see them.
#[must_use]
pub(crate) fn show(snapshot: &Snapshot, client: ClientId, shape: &Representation) -> Show {
    let form = if shape.native { Form::WithNative } else { Form::Unified };
    Show { secrets: snapshot.clients[client].reveal_secrets, form }
}

/// The body of one session.
pub(crate) struct SessionBody {
    /// JSON.
    pub body: Bytes,
    /// Its strong entity tag.
    pub etag: HeaderValue,
}

/// Returns the body of a session, with only the selected fields.
///
/// # Errors
/// 500 if the view is not a session.
pub(crate) fn session_body(view: &View, shape: &Representation) -> Outcome<SessionBody> {
    let Some(fields) = &shape.fields else {
        return Ok(SessionBody { body: view.body.clone(), etag: view.etag.clone() });
    };
    let mut body = Vec::with_capacity(view.body.len());
    fields.write_selected(&view.body, &mut body)?;
    let etag = etag(&body);
    Ok(SessionBody { body: body.into(), etag })
}
