//! Reserves a client's memory for what its responses are made of, before it is made.

use crate::base::memory_budget::{BufferLimit, MemoryShare, Reservation, without_spare};
use crate::base::model::{Show, View};
use crate::base::problem::{Outcome, Problem};
use crate::base::request_reply::Body;
use crate::engine::cache::Entry;
use crate::fetch::provider_query::{ProviderQuery, SharedState};
use crate::fetch::{self, Served};
use crate::pipeline::problems;
use crate::rules::fields::FieldSelection;
use bytes::Bytes;
use std::sync::Arc;

/// The longest body that a connection keeps in its own buffer while the client does not read (HTTP/1). Its memory is not
/// reserved.
pub(crate) const CONNECTION_BUFFER: usize = 8192;
/// The memory of an HTTP/2 stream whose response waits for the client's window, besides the body.
const STREAM_BYTES: usize = 48 << 10;

impl From<BufferLimit> for Box<Problem> {
    fn from(limit: BufferLimit) -> Self {
        problems::buffer_limit(limit)
    }
}

/// An entry to serve, and the memory of the call that returned it.
pub(crate) struct ServedEntry<'s> {
    /// The entry.
    pub entry: &'s Arc<Entry>,
    /// The memory; `None` if the entry comes from the cache.
    pub memory: Option<Arc<Reservation>>,
}

impl<'s> From<&'s mut Served> for ServedEntry<'s> {
    fn from(served: &'s mut Served) -> Self {
        Self { memory: served.memory.take(), entry: &served.entry }
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
    /// Returns a view of an entry, and makes it if the entry does not have it yet. Takes the memory of the call if no other
    /// request needs it.
    ///
    /// # Errors
    /// The view would exceed the client's share of the memory. The body is unreadable.
    pub(crate) fn of(
        shared: &SharedState,
        query: &ProviderQuery,
        served: ServedEntry<'_>,
        show: Show,
    ) -> Outcome<Self> {
        let ServedEntry { entry, memory } = served;
        let share = query.memory_share(shared);
        let memory = memory.and_then(Arc::into_inner).filter(|memory| memory.is_from(&share));
        let mut memory = memory.unwrap_or_else(|| share.reservation());
        // A view with native data contains the provider's body, and the fields that are mapped from it.
        let expected = entry.view(show).map_or(2 * entry.body.len(), |view| view.body.len());
        memory.resize(expected)?;
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
    let copy = without_spare(copy);
    memory.resize(copy.len())?;
    Ok((copy, memory))
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
