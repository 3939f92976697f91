//! Reserves a client's memory for what its responses are made of, before it is made.

use crate::base::memory_budget::{BufferLimit, MemoryShare, Reservation};
use crate::base::model::{Show, View};
use crate::base::problem::{Outcome, Problem};
use crate::base::request_reply::Body;
use crate::engine::cache::Entry;
use crate::fetch::provider_query::{ProviderQuery, SharedState};
use crate::fetch;
use crate::pipeline::problems;
use crate::rules::fields::FieldSelection;
use bytes::Bytes;
use std::sync::Arc;

/// The longest body that a connection keeps in its own buffer while the client does not read (HTTP/1). Its memory is not
/// reserved.
pub(crate) const CONNECTION_BUFFER: usize = 8192;
/// The memory of an HTTP/2 stream whose response waits for the client's window, besides the body.
const STREAM_BYTES: usize = 8192;

impl From<BufferLimit> for Box<Problem> {
    fn from(limit: BufferLimit) -> Self {
        problems::buffer_limit(limit)
    }
}

/// A view, and the memory that is reserved for it on behalf of one client.
#[derive(Clone)]
pub(crate) struct HeldView {
    /// The view.
    pub view: Arc<View>,
    /// The memory.
    pub memory: Arc<Reservation>,
}

impl HeldView {
    /// Returns a view of an entry, and makes it if the entry does not have it yet.
    ///
    /// # Errors
    /// The view would exceed the client's share of the memory. The body is unreadable.
    pub(crate) fn of(shared: &SharedState, query: &ProviderQuery, entry: &Arc<Entry>, show: Show) -> Outcome<Self> {
        // A view with native data contains the provider's body, and the fields that are mapped from it.
        let expected = entry.view(show).map_or(2 * entry.body.len(), |view| view.body.len());
        let mut memory = query.memory_share(shared).reserve(expected)?;
        let view = fetch::view(shared, query, entry, show, shared.now())?;
        memory.resize(view.body.len())?;
        Ok(Self { view, memory: Arc::new(memory) })
    }
}

/// Copies the selected fields of sessions, separated by commas. The memory of the copy is reserved before it is made.
///
/// # Errors
/// The copy would exceed the share of the memory. A session is unreadable.
pub(crate) fn selected<'s>(
    fields: &FieldSelection,
    sessions: impl Iterator<Item = &'s [u8]> + Clone,
    share: &MemoryShare,
) -> Outcome<(Bytes, Reservation)> {
    // The selected fields are at most the whole session.
    let mut memory = share.reserve(sessions.clone().map(|session| session.len() + 1).sum())?;
    let mut copy = Vec::new();
    for (number, session) in sessions.enumerate() {
        if number > 0 {
            copy.push(b',');
        }
        fields.write_selected(session, &mut copy)?;
    }
    copy.shrink_to_fit();
    memory.resize(copy.len())?;
    Ok((copy.into(), memory))
}

/// Reserves the memory of a response that waits until the client has read it, unless it is reserved already. A short body
/// waits in the buffer of its HTTP/1 connection.
///
/// # Errors
/// The response would exceed the client's share of the memory.
pub(crate) fn reserve_response(body: Body, http2: bool, share: impl FnOnce() -> MemoryShare) -> Outcome<Body> {
    let length = body.len();
    let bytes = match http2 {
        true if length > 0 => STREAM_BYTES + if body.is_reserved() { 0 } else { length },
        false if length > CONNECTION_BUFFER && !body.is_reserved() => length,
        _ => return Ok(body),
    };
    let memory = share().reserve(bytes)?;
    Ok(body.holding([Arc::new(memory)]))
}
