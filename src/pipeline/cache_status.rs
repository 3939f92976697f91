//! Combines the cache statuses of several provider responses into that of the response to the client.

use crate::engine::request_record::{CacheOutcome, CacheStatus};

/// Returns the cache status of a response that consists of these parts; `None` if there is no part. If a part failed, the
/// response has no lifetime, so that clients do not cache it.
#[must_use]
pub(crate) fn of_all(parts: impl IntoIterator<Item = CacheStatus>, any_failed: bool) -> Option<CacheStatus> {
    let status = parts.into_iter().reduce(|one, other| of_both(&one, &other))?;
    Some(CacheStatus { life: status.life.filter(|_| !any_failed), ..status })
}

/// Returns the cache status of two parts: the outcome that is further from a hit, and the lifetime that ends first.
fn of_both(one: &CacheStatus, other: &CacheStatus) -> CacheStatus {
    let outcome = if rank(one.outcome) > rank(other.outcome) { one.outcome } else { other.outcome };
    let life = [one.life, other.life].into_iter().flatten().min_by_key(|life| life.fresh_until);
    CacheStatus { outcome, life }
}

/// Returns how far an outcome is from a hit.
fn rank(outcome: CacheOutcome) -> u8 {
    match outcome {
        CacheOutcome::Hit => 0,
        CacheOutcome::Forwarded { collapsed: true, .. } => 1,
        CacheOutcome::Forwarded { .. } | CacheOutcome::Refused(_) => 2,
        CacheOutcome::Stale(_) | CacheOutcome::StaleOnError { .. } => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::model::Time;
    use crate::engine::request_record::{ForwardReason, StoreOutcome};
    use crate::rules::freshness::{Lifetime, TtlSource};

    fn status(outcome: CacheOutcome, fresh_until: i64) -> CacheStatus {
        CacheStatus { outcome, life: Some(Lifetime::until(Time(0), Time(fresh_until), TtlSource::Default)) }
    }

    #[test]
    fn a_combined_status_is_a_hit_only_if_every_part_is() {
        let call =
            |collapsed| CacheOutcome::Forwarded { reason: ForwardReason::Miss, stored: StoreOutcome::Yes, collapsed };
        let ordered = [CacheOutcome::Hit, call(true), call(false), CacheOutcome::Stale("max-stale")];
        for (position, worse) in ordered.iter().enumerate() {
            for better in &ordered[..=position] {
                for pair in [[*better, *worse], [*worse, *better]] {
                    let combined = of_all(pair.map(|outcome| status(outcome, 1)), false).unwrap();
                    assert_eq!(combined.outcome, *worse);
                }
            }
        }
        assert_eq!(of_all([], false), None);
    }

    #[test]
    fn a_combined_status_ends_with_its_first_part_and_at_once_if_a_part_failed() {
        let parts = || [status(CacheOutcome::Hit, 9), status(CacheOutcome::Hit, 5), status(CacheOutcome::Hit, 7)];
        let life = of_all(parts(), false).unwrap().life.unwrap();
        assert_eq!(life.fresh_until, Time(5));
        assert_eq!(of_all(parts(), true).unwrap().life, None);
    }
}
