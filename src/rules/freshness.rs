//! Computes how long a response is fresh, and how long it may be served stale.
//!
//! All functions are pure and take `now`; none reads a clock.

use crate::base::model::{Session, Status, Time};
use crate::config::freshness::Freshness;
use std::time::Duration;

/// The rule that set a lifetime: the `detail` of `Cache-Status`, and a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // `docs/API.md` explains the words
pub enum TtlSource {
    ExpiresAt,
    Status,
    Default,
    Max,
    NotFound,
    List,
    Upstream,
}

impl TtlSource {
    /// All rules.
    pub const ALL: [Self; 7] =
        [Self::ExpiresAt, Self::Status, Self::Default, Self::Max, Self::NotFound, Self::List, Self::Upstream];

    /// Returns the word in `Cache-Status` and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TtlSource::ExpiresAt => "expires_at",
            TtlSource::Status => "status",
            TtlSource::Default => "default",
            TtlSource::Max => "max",
            TtlSource::NotFound => "not_found",
            TtlSource::List => "list",
            TtlSource::Upstream => "upstream",
        }
    }
}

/// The times at which a stored response becomes stale and unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When the provider's response arrived.
    pub stored_at: Time,
    /// The age of the response at that time, by its `Age` header.
    pub age: Duration,
    /// The end of freshness.
    pub fresh_until: Time,
    /// The end of the window in which the response may be served stale while it is refreshed.
    pub revalidate_until: Time,
    /// The end of the window in which the response may be served stale if the provider fails.
    pub error_until: Time,
    /// The rule that set `fresh_until`.
    pub source: TtlSource,
    /// The lengths of the two windows and their latest end.
    windows: Windows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Windows {
    revalidate: Duration,
    error: Duration,
    expiry_limit: Option<Time>,
}

impl Lifetime {
    /// Creates a lifetime without stale windows.
    #[must_use]
    pub fn until(stored_at: Time, fresh_until: Time, source: TtlSource) -> Self {
        let windows = Windows::default();
        let (age, revalidate_until, error_until) = (Duration::ZERO, fresh_until, fresh_until);
        Self { stored_at, age, fresh_until, revalidate_until, error_until, source, windows }
    }

    /// Sets the lengths of the stale windows, for refreshing and for errors. Neither extends past `expiry_limit`.
    #[must_use]
    pub fn with_windows(mut self, revalidate: Duration, error: Duration, expiry_limit: Option<Time>) -> Self {
        self.windows = Windows { revalidate, error, expiry_limit };
        self.with_fresh_until(self.fresh_until)
    }

    /// Makes the response stale at `now`. The stale windows start at that time.
    #[must_use]
    pub fn stale_since(self, now: Time) -> Self {
        self.with_fresh_until(self.fresh_until.min(now))
    }

    fn with_fresh_until(mut self, fresh_until: Time) -> Self {
        let cap = |time: Time| self.windows.expiry_limit.map_or(time, |cap| time.min(cap));
        self.revalidate_until = cap(fresh_until.plus(self.windows.revalidate));
        self.error_until = cap(fresh_until.plus(self.windows.error));
        self.fresh_until = fresh_until;
        self
    }

    /// Returns how long the response is fresh, from its arrival.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.fresh_until.since(self.stored_at)
    }

    /// Returns the age at `now` (RFC 9111, section 4.2.3).
    #[must_use]
    pub fn age(&self, now: Time) -> Duration {
        self.age.saturating_add(now.since(self.stored_at))
    }

    /// Returns the age at which freshness ends: the `max-age` for clients, which subtract `Age` from it.
    #[must_use]
    pub fn max_age(&self) -> Duration {
        self.age.saturating_add(self.total())
    }

    /// Returns the time after which the response may not be served at all.
    #[must_use]
    pub fn last(&self) -> Time {
        self.fresh_until.max(self.revalidate_until).max(self.error_until)
    }
}

/// Limits that the provider's response headers set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpstreamLimit {
    /// The longest time for which the response is fresh, if the provider sets one.
    pub max_age: Option<Duration>,
    /// Whether the response may not be served stale (`must-revalidate`).
    pub must_revalidate: bool,
    /// The age of the response when it arrived.
    pub age: Duration,
}

/// A lifetime and the inputs from which it was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshnessDecision {
    /// The resulting lifetime.
    pub life: Lifetime,
    /// The rule that applied first.
    pub rule: AppliedRule,
    /// The inputs from the session; `None` for a list.
    pub session: Option<SessionTimes>,
    /// The expiry after which the response may not be served, fresh or stale. For a list, the earliest in it.
    pub expiry_limit: Option<Time>,
    /// The limits of the provider's headers.
    pub upstream: UpstreamLimit,
}

/// A rule and the lifetime that it gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedRule {
    /// The rule.
    pub source: TtlSource,
    /// How long the response is fresh by this rule.
    pub length: Duration,
}

/// The status and times of a session that determine its lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTimes {
    /// The status; `Expired` for an active session whose expiry has passed.
    pub status: Status,
    /// When the session expires.
    pub expires_at: Option<Time>,
    /// When the session ended.
    pub ended_at: Option<Time>,
    /// Whether the session ended at least `freshness.settle` ago.
    pub settled: bool,
}

fn decide(
    rules: &Freshness,
    now: Time,
    rule: AppliedRule,
    session: Option<SessionTimes>,
    expiry_limit: Option<Time>,
    upstream: UpstreamLimit,
) -> FreshnessDecision {
    let AppliedRule { mut source, mut length } = rule;
    if let Some(max_age) = upstream.max_age.filter(|max_age| *max_age < length) {
        (length, source) = (max_age, TtlSource::Upstream);
    }
    let cap = |time: Time| expiry_limit.map_or(time, |cap| time.min(cap));
    let mut fresh_until = now.plus(length);
    if cap(fresh_until) < fresh_until {
        (fresh_until, source) = (cap(fresh_until), TtlSource::ExpiresAt);
    }
    let window = |length| if upstream.must_revalidate { Duration::ZERO } else { length };
    let (revalidate, error) = (window(rules.stale_while_revalidate), window(rules.stale_if_error));
    let life = Lifetime::until(now, fresh_until, source).with_windows(revalidate, error, expiry_limit);
    FreshnessDecision { life: Lifetime { age: upstream.age, ..life }, rule, session, expiry_limit, upstream }
}

/// Returns the expiry after which a session may not be served. `None` if the session has ended or the expiry has
/// passed.
fn live_expiry(session: &Session, now: Time) -> Option<Time> {
    session.expires_at.filter(|at| session.status != Status::Ended && *at > now)
}

/// Computes the lifetime of a session whose body arrived at `now`.
#[must_use]
pub(crate) fn of_session(
    rules: &Freshness,
    session: &Session,
    now: Time,
    upstream: UpstreamLimit,
) -> FreshnessDecision {
    let settled = session.ended_at.is_some_and(|at| now.since(at) >= rules.settle);
    let by_status = rules.by_status.iter().find(|(status, _)| *status == session.status).map(|(_, d)| *d);
    let (source, length) = match (session.status, by_status, session.expires_at) {
        (Status::Ended, _, _) if !settled => (TtlSource::Default, rules.default),
        (_, Some(length), _) => (TtlSource::Status, length),
        (_, None, Some(at)) if at > now => match at.since(now) {
            left if left > rules.max => (TtlSource::Max, rules.max),
            left => (TtlSource::ExpiresAt, left),
        },
        _ => (TtlSource::Default, rules.default),
    };
    let Session { status, expires_at, ended_at, .. } = *session;
    let times = SessionTimes { status, expires_at, ended_at, settled };
    decide(rules, now, AppliedRule { source, length }, Some(times), live_expiry(session, now), upstream)
}

/// Computes the lifetime of a page of sessions whose body arrived at `now`.
#[must_use]
pub(crate) fn of_list(
    rules: &Freshness,
    sessions: &[Session],
    now: Time,
    upstream: UpstreamLimit,
) -> FreshnessDecision {
    let earliest = sessions.iter().filter_map(|session| live_expiry(session, now)).min();
    decide(rules, now, AppliedRule { source: TtlSource::List, length: rules.list }, None, earliest, upstream)
}

/// Computes the lifetime of a not-found result. It is never served stale.
#[must_use]
pub(crate) fn of_not_found(rules: &Freshness, now: Time) -> FreshnessDecision {
    let rule = AppliedRule { source: TtlSource::NotFound, length: rules.not_found };
    let life = Lifetime::until(now, now.plus(rules.not_found), TtlSource::NotFound);
    FreshnessDecision { life, rule, session: None, expiry_limit: None, upstream: UpstreamLimit::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const S: i64 = 1000;

    fn rules() -> Freshness {
        let seconds = Duration::from_secs;
        Freshness {
            default: seconds(30),
            max: seconds(3600),
            by_status: vec![(Status::Ended, seconds(86_400)), (Status::Disabled, seconds(60))],
            settle: seconds(120),
            not_found: seconds(5),
            list: seconds(10),
            watch: seconds(5),
            stale_while_revalidate: seconds(30),
            stale_if_error: seconds(600),
        }
    }

    fn session(status: Status, ended_at: Option<i64>, expires_at: Option<i64>) -> Session {
        Session {
            id: String::new(),
            provider: "p".into(),
            values: std::array::from_fn(|_| Value::Null),
            status,
            created_at: None,
            ended_at: ended_at.map(|s| Time(s * S)),
            expires_at: expires_at.map(|s| Time(s * S)),
        }
    }

    fn ttl(session: &Session) -> (u64, TtlSource) {
        let life = of_session(&rules(), session, Time(1000 * S), UpstreamLimit::default()).life;
        (life.total().as_secs(), life.source)
    }

    #[test]
    fn the_first_matching_rule_sets_the_lifetime() {
        assert_eq!(ttl(&session(Status::Active, None, Some(1600))), (600, TtlSource::ExpiresAt));
        assert_eq!(ttl(&session(Status::Active, None, Some(4600))), (3600, TtlSource::ExpiresAt));
        assert_eq!(ttl(&session(Status::Active, None, Some(4601))), (3600, TtlSource::Max));
        assert_eq!(ttl(&session(Status::Active, None, None)), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Expired, None, Some(1000))), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Disabled, None, None)), (60, TtlSource::Status));
    }

    #[test]
    fn an_ended_session_has_the_default_lifetime_until_it_settles() {
        assert_eq!(ttl(&session(Status::Ended, Some(880), None)), (86_400, TtlSource::Status));
        assert_eq!(ttl(&session(Status::Ended, Some(881), None)), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Ended, None, Some(9000))), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Ended, Some(2000), None)), (30, TtlSource::Default), "clocks differ");
        // The expiry of an ended session may be in the future. It does not count.
        assert_eq!(ttl(&session(Status::Ended, Some(100), Some(1010))), (86_400, TtlSource::Status));
    }

    #[test]
    fn a_live_session_is_not_served_after_its_expiry_not_even_stale() {
        let life =
            of_session(&rules(), &session(Status::Active, None, Some(1010)), Time(1000 * S), UpstreamLimit::default())
                .life;
        assert_eq!((life.fresh_until, life.last()), (Time(1010 * S), Time(1010 * S)));
        // by_status takes the place of the expiry, but the lifetime still ends at the expiry.
        let life = of_session(
            &rules(),
            &session(Status::Disabled, None, Some(1010)),
            Time(1000 * S),
            UpstreamLimit::default(),
        )
        .life;
        assert_eq!((life.last(), life.source), (Time(1010 * S), TtlSource::ExpiresAt));
        let sessions = [session(Status::Active, None, None), session(Status::Active, None, Some(1004))];
        let life = of_list(&rules(), &sessions, Time(1000 * S), UpstreamLimit::default()).life;
        assert_eq!((life.last(), life.source), (Time(1004 * S), TtlSource::ExpiresAt));
        let life = of_list(&rules(), &sessions[..1], Time(1000 * S), UpstreamLimit::default()).life;
        assert_eq!((life.total().as_secs(), life.source), (10, TtlSource::List));
        assert_eq!(life.error_until, Time(1610 * S));
    }

    #[test]
    fn the_providers_max_age_is_an_upper_limit() {
        let limit = |seconds| UpstreamLimit {
            max_age: Some(Duration::from_secs(seconds)),
            must_revalidate: false,
            age: Duration::ZERO,
        };
        let live = session(Status::Active, None, Some(1600));
        let life = of_session(&rules(), &live, Time(1000 * S), limit(20)).life;
        assert_eq!((life.total().as_secs(), life.source), (20, TtlSource::Upstream));
        let life = of_session(&rules(), &live, Time(1000 * S), limit(6000)).life;
        assert_eq!((life.total().as_secs(), life.source), (600, TtlSource::ExpiresAt));
    }

    #[test]
    fn a_decision_contains_its_inputs() {
        let limit = |max_age| UpstreamLimit { max_age, ..UpstreamLimit::default() };
        let ended = session(Status::Ended, Some(890), Some(9000));
        let made = of_session(&rules(), &ended, Time(1000 * S), limit(Some(Duration::from_secs(7))));
        let rule = AppliedRule { source: TtlSource::Default, length: Duration::from_secs(30) };
        assert_eq!(made.rule, rule, "the rule that applied first");
        assert_eq!(
            (made.life.source, made.life.total().as_secs()),
            (TtlSource::Upstream, 7),
            "the limit that shortened it"
        );
        let times = SessionTimes {
            status: Status::Ended,
            expires_at: Some(Time(9000 * S)),
            ended_at: Some(Time(890 * S)),
            settled: false,
        };
        assert_eq!((made.session, made.expiry_limit), (Some(times), None), "an ended session's expiry does not count");
        let page = [session(Status::Active, None, Some(1004)), ended];
        let made = of_list(&rules(), &page, Time(1000 * S), limit(None));
        assert_eq!((made.rule.source, made.session, made.expiry_limit), (TtlSource::List, None, Some(Time(1004 * S))));
    }
}
