//! Computes the cost of a request under each rate-limit policy of its client. It takes no tokens from buckets.

use crate::base::ids::{ClientId, ProviderId};
use crate::engine::rate_limit::{Bucket, BucketCharge, Cost};
use crate::engine::request_record::ProviderCost;
use crate::runtime::snapshot::Snapshot;

/// The cost of a request in one bucket.
#[derive(Clone, Copy)]
pub(crate) struct BucketCost<'s> {
    /// The bucket.
    pub bucket: &'s Bucket,
    /// The provider whose requests the bucket limits; `None` if it limits all requests.
    pub provider: Option<ProviderId>,
    /// The cost.
    pub cost: Cost,
}

impl<'s> BucketCost<'s> {
    /// Returns the charge under the bucket's policy; `None` if the policy charges nothing.
    #[must_use]
    pub(crate) fn charge(self) -> Option<BucketCharge<'s>> {
        Some(BucketCharge { bucket: self.bucket, cost: self.cost.under(self.bucket.limiter.policy.charge)? })
    }
}

/// Returns the cost under each policy that applies. A policy for all requests counts all costs; a policy for a
/// provider counts the costs at that provider.
pub(crate) fn bucket_costs<'s>(
    snapshot: &'s Snapshot,
    client: ClientId,
    providers: &'s [ProviderId],
    costs: &'s [ProviderCost],
) -> impl Iterator<Item = BucketCost<'s>> {
    let sum = move |provider: Option<ProviderId>| {
        let counted = costs.iter().filter(|cost| provider.is_none() || cost.provider == provider);
        counted.fold(Cost { all: 0, misses: 0 }, |sum, cost| sum + cost.cost)
    };
    let client = &snapshot.clients[client];
    let overall = client.buckets.iter().map(move |bucket| BucketCost { bucket, provider: None, cost: sum(None) });
    let accesses = providers.iter().filter_map(|id| Some((*id, client.access[*id].as_ref()?)));
    overall.chain(accesses.flat_map(move |(id, access)| {
        access.buckets.iter().map(move |bucket| BucketCost { bucket, provider: Some(id), cost: sum(Some(id)) })
    }))
}
