//! Reserves the memory of long request heads. Every connection has the memory of a short one.

use super::Pipeline;
use super::context::RequestContext;
use crate::base::memory_budget::{MemoryShare, Reservation};
use crate::base::problem::Outcome;
use crate::base::request_headers::SHORT_HEAD;
use crate::base::request_reply::Request;
use crate::config::edge::counted_address;
use crate::engine::request_record::RequestRecord;
use http::Version;
use std::net::IpAddr;

impl Pipeline {
    /// Returns the share for heads that are still being read from a connection: who sends them is not known yet.
    #[must_use]
    pub fn head_share(&self, peer: IpAddr) -> MemoryShare {
        self.strangers.memory_share(Some(counted_address(peer)), &self.shared.upstream.budget)
    }

    /// Charges the client for the memory of a head that was read over HTTP/1, if its key is valid and its share has the
    /// space. A proxy in front of Weir would use up the share of its address otherwise.
    #[must_use]
    pub fn charge_head(&self, request: &Request, memory: Reservation) -> Reservation {
        let snapshot = self.runtime.snapshot();
        let Ok(client) = snapshot.keys.identify(request, self.shared.now()) else { return memory };
        let share = snapshot.memory_share(client, &self.shared.upstream.budget);
        share.reserve(memory.bytes()).unwrap_or(memory)
    }

    /// Reserves the memory of a long head that arrived over HTTP/2, until its response was written: the library keeps one
    /// copy of it, and Weir makes another.
    ///
    /// # Errors
    /// 503 if it would exceed the client's share.
    pub(super) fn reserve_head(&self, context: &RequestContext<'_>, record: &mut RequestRecord) -> Outcome<()> {
        let Request { path, query, headers, version, .. } = context.request;
        let length = path.len() + query.len() + headers.bytes();
        if *version != Version::HTTP_2 || length <= SHORT_HEAD {
            return Ok(());
        }
        record.head = Some(self.share(context).reserve(2 * length)?);
        Ok(())
    }
}
