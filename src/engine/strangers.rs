//! Limits what requests without a valid key use of memory and of the requests in flight: all of them together, and those
//! from one address.

use crate::base::client_use::{ClientUse, CountGuard, Counted};
use crate::base::memory_budget::{MemoryBudget, MemoryShare};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The part of a limit that all requests without a key may use.
const TOGETHER: u64 = 8;
/// The part of a limit that those from one address may use.
const ONE_ADDRESS: u64 = 32;
/// With any limit, one address may use this many bytes, so that it can read each public document.
const MIN_BYTES: u64 = 1 << 20;

/// What requests without a valid key use.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    together: Arc<ClientUse>,
    by_address: Mutex<HashMap<IpAddr, Weak<ClientUse>>>,
}

impl Strangers {
    /// Returns the share of an address in a memory budget.
    pub(crate) fn memory_share(&self, address: Option<IpAddr>, budget: &Arc<MemoryBudget>) -> MemoryShare {
        let limit = budget.limit();
        let together = (limit / TOGETHER).max(MIN_BYTES);
        match address {
            Some(address) => {
                let share = budget.share(&self.at(address), (limit / ONE_ADDRESS).max(MIN_BYTES));
                share.of_group(&self.together, together)
            }
            None => budget.own_share().of_group(&self.together, together),
        }
    }

    /// Counts one more request in flight from an address. `limit` is that of all requests.
    ///
    /// # Errors
    /// The share that is used up: of the address, or of all requests without a key.
    pub(crate) fn count_request(&self, address: Option<IpAddr>, limit: u32) -> Result<[Option<CountGuard>; 2], i64> {
        let share = |divisor: u64| i64::from(limit).max(1).div_euclid(divisor.cast_signed()).max(1);
        let one = address.map(|address| self.at(address).count(Counted::Requests));
        if one.as_ref().is_some_and(|(_, count)| *count > share(ONE_ADDRESS)) {
            return Err(share(ONE_ADDRESS));
        }
        let (together, count) = self.together.count(Counted::Requests);
        if count > share(TOGETHER) {
            return Err(share(TOGETHER));
        }
        Ok([one.map(|(guard, _)| guard), Some(together)])
    }

    /// Returns what an address uses. Forgets the addresses that use nothing.
    fn at(&self, address: IpAddr) -> Arc<ClientUse> {
        let mut addresses = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = addresses.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        if addresses.len() == addresses.capacity() {
            addresses.retain(|_, used| used.strong_count() > 0);
        }
        let new = Arc::default();
        addresses.insert(address, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::memory_budget::BufferLimit;

    fn address(n: u16) -> Option<IpAddr> {
        let [high, low] = n.to_be_bytes();
        Some([10, 0, high, low].into())
    }

    #[test]
    fn one_address_gets_a_part_of_the_part_of_all() {
        let (budget, strangers) = (MemoryBudget::new(64 << 20), Strangers::default());
        let share = |n| strangers.memory_share(address(n), &budget);
        let held: Vec<_> = (0..4).map(|n| share(n).reserve(2 << 20).unwrap()).collect();
        assert_eq!(share(0).reserve(1).err(), Some(BufferLimit::WithoutKey), "1/32");
        assert_eq!(share(9).reserve(1).err(), Some(BufferLimit::WithoutKey), "1/8");
        drop(held);
        assert_eq!(share(0).reserve(2 << 20).map(drop), Ok(()));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn requests_in_flight_have_shares_too() {
        let strangers = Strangers::default();
        let one: Vec<_> = (0..2).map(|_| strangers.count_request(address(1), 64).unwrap()).collect();
        assert_eq!(strangers.count_request(address(1), 64).err(), Some(2));
        let others: Vec<_> = (2..8).map(|n| strangers.count_request(address(n), 64).unwrap()).collect();
        assert_eq!(strangers.count_request(address(9), 64).err(), Some(8));
        drop(one);
        assert!(strangers.count_request(address(1), 64).is_ok());
        drop(others);
        assert!(strangers.count_request(address(1), 1).is_ok(), "at least one");
    }

    #[test]
    fn addresses_without_use_are_forgotten() {
        let strangers = Strangers::default();
        let kept = strangers.count_request(address(1), 64).unwrap();
        for n in 0..10_000 {
            drop(strangers.count_request(address(n), 64));
        }
        assert!(strangers.by_address.lock().unwrap().len() < 100);
        let second = strangers.count_request(address(1), 64).unwrap();
        assert_eq!(strangers.count_request(address(1), 64).err(), Some(2), "what is in use is not forgotten");
        drop((kept, second));
    }
}
