//! Keeps the quotas of a provider: one for each credential that Weir sends to it.
//!
//! Providers count requests per credential. Clients with the same credential therefore share a quota.

use crate::config::upstream::Capacity;
use crate::engine::breaker::ProviderQuota;
use crate::engine::credential::Credential;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The limit of stored quotas of forwarded credentials.
const MAX_FORWARDED: u64 = 10_000;
/// How long a quota of a forwarded credential is stored without use. Longer than any pause.
const FORWARDED_IDLE: Duration = Duration::from_secs(600);

/// The quotas of one provider.
pub struct ProviderQuotas {
    capacity: Option<Capacity>,
    /// By the identity of the credential.
    configured: HashMap<Arc<str>, CredentialQuota>,
    /// By the identity of the credential. Clones share their content.
    forwarded: moka::sync::Cache<Arc<str>, Arc<ProviderQuota>>,
}

/// A configured credential and its quota.
#[derive(Clone)]
pub(super) struct CredentialQuota {
    pub(super) credential: Credential,
    pub(super) quota: Arc<ProviderQuota>,
}

impl ProviderQuotas {
    /// Creates quotas of this capacity. Takes over those of forwarded credentials from `previous`, if the capacity
    /// is the same.
    pub(super) fn new(capacity: Option<Capacity>, previous: Option<&Self>) -> Self {
        let make = || moka::sync::Cache::builder().max_capacity(MAX_FORWARDED).time_to_idle(FORWARDED_IDLE).build();
        let unchanged = previous.filter(|previous| previous.capacity == capacity);
        let forwarded = unchanged.map_or_else(make, |previous| previous.forwarded.clone());
        Self { capacity, configured: HashMap::new(), forwarded }
    }

    /// Adds a configured credential and returns it with its quota. Credentials of the same identity share a token and
    /// a quota, also with those in `previous`.
    pub(super) fn configure(&mut self, credential: Credential, previous: Option<&Self>) -> CredentialQuota {
        let capacity = &self.capacity;
        let make = || {
            let old = previous.and_then(|previous| previous.configured.get(&credential.identity));
            let unchanged = old.map(|old| &old.quota).filter(|quota| quota.capacity == *capacity);
            let quota = unchanged.cloned().unwrap_or_else(|| Arc::new(ProviderQuota::new(capacity.clone())));
            CredentialQuota { credential: old.map_or(&credential, |old| &old.credential).clone(), quota }
        };
        let shared = self.configured.entry(credential.identity.clone()).or_insert_with(make);
        CredentialQuota { credential: credential.reuse(&shared.credential), quota: shared.quota.clone() }
    }

    /// Returns the quota of a credential that a client sent with its request.
    #[must_use]
    pub fn forwarded(&self, credential: &Credential) -> Arc<ProviderQuota> {
        let make = || Arc::new(ProviderQuota::new(self.capacity.clone()));
        self.forwarded.get_with(credential.identity.clone(), make)
    }

    /// Returns all quotas.
    pub fn all(&self) -> impl Iterator<Item = Arc<ProviderQuota>> {
        let configured = self.configured.values().map(|shared| shared.quota.clone());
        configured.chain(self.forwarded.iter().map(|(_, quota)| quota))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::Faults;
    use crate::engine::credential;

    fn capacity(concurrent: u32) -> Capacity {
        let one = std::num::NonZeroU32::MIN;
        Capacity { requests: one, per: Duration::from_secs(1), burst: one, concurrent }
    }

    #[test]
    fn a_quota_survives_a_reload_unless_its_capacity_changes() {
        let credential = credential::compile(&"p".into(), None, &mut Faults::default());
        let quotas = |concurrent, previous: Option<&ProviderQuotas>| {
            let mut quotas = ProviderQuotas::new(Some(capacity(concurrent)), previous);
            let configured = quotas.configure(credential.clone(), previous).quota;
            let forwarded = quotas.forwarded(&credential);
            (quotas, configured, forwarded)
        };
        let (first, configured, forwarded) = quotas(1, None);
        let (_, same_configured, same_forwarded) = quotas(1, Some(&first));
        assert!(Arc::ptr_eq(&configured, &same_configured) && Arc::ptr_eq(&forwarded, &same_forwarded));
        let (_, new_configured, new_forwarded) = quotas(2, Some(&first));
        assert!(!Arc::ptr_eq(&configured, &new_configured) && !Arc::ptr_eq(&forwarded, &new_forwarded));
    }
}
