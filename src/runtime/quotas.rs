//! Keeps the quotas and breakers of a provider: one of each for each credential that Weir sends to it.
//!
//! Providers count requests per credential. Clients with the same credential therefore share a quota and a breaker.

use crate::config::upstream::{BreakerConfig, Capacity};
use crate::engine::breaker::Breaker;
use crate::engine::credential::Credential;
use crate::engine::provider_quota::ProviderQuota;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The limit of stored quotas, and of stored breakers, of forwarded credentials.
const MAX_FORWARDED: u64 = 10_000;
/// How long a quota or breaker of a forwarded credential is stored without use. Longer than any pause.
const FORWARDED_IDLE: Duration = Duration::from_secs(600);

/// The quotas and breakers of one provider.
pub struct ProviderQuotas {
    capacity: Option<Capacity>,
    breaker: Option<BreakerConfig>,
    /// By the identity of the credential.
    configured: HashMap<Arc<str>, CredentialQuota>,
    /// By the identity of the credential. Clones share their content.
    forwarded: moka::sync::Cache<Arc<str>, Arc<ProviderQuota>>,
    forwarded_breakers: moka::sync::Cache<Arc<str>, Arc<Breaker>>,
}

/// A configured credential with its quota and breaker.
#[derive(Clone)]
pub(super) struct CredentialQuota {
    pub(super) credential: Credential,
    pub(super) quota: Arc<ProviderQuota>,
    pub(super) breaker: Arc<Breaker>,
}

fn forwarded_cache<V: Clone + Send + Sync + 'static>() -> moka::sync::Cache<Arc<str>, V> {
    moka::sync::Cache::builder().max_capacity(MAX_FORWARDED).time_to_idle(FORWARDED_IDLE).build()
}

impl ProviderQuotas {
    /// Creates quotas of this capacity, and breakers of this configuration. Takes over those of forwarded credentials
    /// from `previous`, if their settings are the same.
    pub(super) fn new(capacity: Option<Capacity>, breaker: Option<BreakerConfig>, previous: Option<&Self>) -> Self {
        let same_capacity = previous.filter(|previous| previous.capacity == capacity);
        let forwarded = same_capacity.map_or_else(forwarded_cache, |previous| previous.forwarded.clone());
        let same_breaker = previous.filter(|previous| previous.breaker == breaker);
        let forwarded_breakers =
            same_breaker.map_or_else(forwarded_cache, |previous| previous.forwarded_breakers.clone());
        Self { capacity, breaker, configured: HashMap::new(), forwarded, forwarded_breakers }
    }

    /// Adds a configured credential and returns it with its quota and breaker. Credentials of the same identity share a
    /// token, a quota and a breaker, also with those in `previous`.
    pub(super) fn configure(&mut self, credential: Credential, previous: Option<&Self>) -> CredentialQuota {
        let (capacity, breaker) = (&self.capacity, &self.breaker);
        let make = || {
            let old = previous.and_then(|previous| previous.configured.get(&credential.identity));
            let unchanged = old.map(|old| &old.quota).filter(|quota| quota.capacity == *capacity);
            let quota = unchanged.cloned().unwrap_or_else(|| Arc::new(ProviderQuota::new(capacity.clone())));
            let unchanged = old.map(|old| &old.breaker).filter(|old| old.config == *breaker);
            let breaker = unchanged.cloned().unwrap_or_else(|| Arc::new(Breaker::new(breaker.clone())));
            CredentialQuota { credential: old.map_or(&credential, |old| &old.credential).clone(), quota, breaker }
        };
        let shared = self.configured.entry(credential.identity.clone()).or_insert_with(make);
        CredentialQuota {
            credential: credential.reuse(&shared.credential),
            quota: shared.quota.clone(),
            breaker: shared.breaker.clone(),
        }
    }

    /// Returns the quota of a credential that a client sent with its request.
    #[must_use]
    pub fn forwarded(&self, credential: &Credential) -> Arc<ProviderQuota> {
        let make = || Arc::new(ProviderQuota::new(self.capacity.clone()));
        self.forwarded.get_with(credential.identity.clone(), make)
    }

    /// Returns the breaker of a credential that a client sent with its request.
    #[must_use]
    pub fn forwarded_breaker(&self, credential: &Credential) -> Arc<Breaker> {
        let make = || Arc::new(Breaker::new(self.breaker.clone()));
        self.forwarded_breakers.get_with(credential.identity.clone(), make)
    }

    /// Returns all breakers of credentials.
    pub fn breakers(&self) -> impl Iterator<Item = Arc<Breaker>> {
        let configured = self.configured.values().map(|shared| shared.breaker.clone());
        configured.chain(self.forwarded_breakers.iter().map(|(_, breaker)| breaker))
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
            let mut quotas = ProviderQuotas::new(Some(capacity(concurrent)), None, previous);
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

    #[test]
    fn a_breaker_survives_a_reload_unless_its_settings_change() {
        let credential = credential::compile(&"p".into(), None, &mut Faults::default());
        let quotas = |concurrent, failures: u32, previous: Option<&ProviderQuotas>| {
            let breaker = BreakerConfig { failures: failures.try_into().unwrap(), open_for: Duration::from_secs(1) };
            let mut quotas = ProviderQuotas::new(Some(capacity(concurrent)), Some(breaker), previous);
            let configured = quotas.configure(credential.clone(), previous).breaker;
            let forwarded = quotas.forwarded_breaker(&credential);
            (quotas, configured, forwarded)
        };
        let (first, configured, forwarded) = quotas(1, 1, None);
        let (_, same_configured, same_forwarded) = quotas(2, 1, Some(&first));
        assert!(Arc::ptr_eq(&configured, &same_configured) && Arc::ptr_eq(&forwarded, &same_forwarded));
        let (_, new_configured, new_forwarded) = quotas(1, 2, Some(&first));
        assert!(!Arc::ptr_eq(&configured, &new_configured) && !Arc::ptr_eq(&forwarded, &new_forwarded));
    }
}
