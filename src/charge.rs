//! What a request costs its client, policy by policy.
//!
//! A room of its own because two must reckon alike: who takes it, and who explains it. It takes nothing.

use crate::ratelimit::{Bucket, Cost, Due};
use crate::runtime::snapshot::Snapshot;

/// What is taken from a bucket, or would be.
#[derive(Clone, Copy)]
pub struct Charged<'s> {
    /// Which.
    pub bucket: &'s Bucket,
    /// The provider that it is for; `None`: it is for everything.
    pub provider: Option<usize>,
    /// How much, by what its policy charges.
    pub cost: Cost,
}

impl<'s> Charged<'s> {
    /// What is due; `None` where it is free.
    #[must_use]
    pub fn due(self) -> Option<Due<'s>> {
        Some(Due { bucket: self.bucket, cost: self.cost.under(self.bucket.limiter.policy.charge)? })
    }
}

/// What answers cost a client under each policy that applies: at its own all of them, at those for a provider what
/// is asked of that.
pub fn charges<'s>(
    snapshot: &'s Snapshot,
    client: usize,
    providers: &'s [usize],
    costs: &'s [(Option<usize>, Cost)],
) -> impl Iterator<Item = Charged<'s>> {
    let sum = move |at: Option<usize>| {
        let those = costs.iter().filter(|(provider, _)| at.is_none() || *provider == at);
        those.fold(Cost { all: 0, misses: 0 }, |sum, (_, cost)| sum + *cost)
    };
    let client = &snapshot.clients[client];
    let own = client.buckets.iter().map(move |bucket| Charged { bucket, provider: None, cost: sum(None) });
    let at = providers.iter().filter_map(|at| Some((*at, client.access[*at].as_ref()?)));
    own.chain(at.flat_map(move |(at, access)| {
        access.buckets.iter().map(move |bucket| Charged { bucket, provider: Some(at), cost: sum(Some(at)) })
    }))
}
