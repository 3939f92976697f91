//! How long an answer is good for (section 4 of the contract).
//!
//! A room of its own because it is pure and everything hangs on it: states and times in, moments
//! out. It takes `now`, never asks a clock.

use crate::config::freshness::Freshness;
use crate::model::{Session, Status, Time};
use std::time::Duration;

/// Where a lifetime came from: `Cache-Status` detail and metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the words of the contract
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
    /// The word.
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

/// When an answer stops being good, in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Since when it is counted: when the provider's answer came.
    pub stored_at: Time,
    /// How old it was then, by the provider's own word.
    pub age: Duration,
    /// Fresh before this.
    pub fresh_until: Time,
    /// May be served stale before this, while it is refreshed.
    pub revalidate_until: Time,
    /// May be served stale before this, when the provider fails.
    pub error_until: Time,
    /// Why `fresh_until` is what it is.
    pub source: TtlSource,
    /// How long the two windows are, and what they must not go past.
    windows: Windows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Windows {
    revalidate: Duration,
    error: Duration,
    never_past: Option<Time>,
}

impl Lifetime {
    /// One without windows: fresh until then, and of no use afterwards.
    #[must_use]
    pub fn until(stored_at: Time, fresh_until: Time, source: TtlSource) -> Self {
        let windows = Windows::default();
        let (age, revalidate_until, error_until) = (Duration::ZERO, fresh_until, fresh_until);
        Self { stored_at, age, fresh_until, revalidate_until, error_until, source, windows }
    }

    /// The same with windows in which it may be served stale: while it is refreshed, and on errors. Neither goes
    /// past `never_past`.
    #[must_use]
    pub fn with_windows(mut self, revalidate: Duration, error: Duration, never_past: Option<Time>) -> Self {
        self.windows = Windows { revalidate, error, never_past };
        self.fresh_to(self.fresh_until)
    }

    /// The same, stale from `now` on: its windows begin now.
    #[must_use]
    pub fn stale_since(self, now: Time) -> Self {
        self.fresh_to(self.fresh_until.min(now))
    }

    fn fresh_to(mut self, fresh_until: Time) -> Self {
        let cap = |time: Time| self.windows.never_past.map_or(time, |cap| time.min(cap));
        self.revalidate_until = cap(fresh_until.plus(self.windows.revalidate));
        self.error_until = cap(fresh_until.plus(self.windows.error));
        self.fresh_until = fresh_until;
        self
    }

    /// The whole lifetime since the provider's answer.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.fresh_until.since(self.stored_at)
    }

    /// How old it is (RFC 9111, section 4.2.3).
    #[must_use]
    pub fn age(&self, now: Time) -> Duration {
        self.age.saturating_add(now.since(self.stored_at))
    }

    /// The age at which it stops being fresh: `max-age` as clients are told, who take `Age` from it.
    #[must_use]
    pub fn max_age(&self) -> Duration {
        self.age.saturating_add(self.total())
    }

    /// The last moment at which it may be served at all.
    #[must_use]
    pub fn last(&self) -> Time {
        self.fresh_until.max(self.revalidate_until).max(self.error_until)
    }
}

/// What the provider's own headers allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpstreamLimit {
    /// The longest it may be kept, where the provider says so.
    pub max_age: Option<Duration>,
    /// It is not to be served stale (`must-revalidate`).
    pub must_revalidate: bool,
    /// How old it was when it came.
    pub age: Duration,
}

/// A lifetime and all that made it what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reckoning {
    /// What came of it.
    pub life: Lifetime,
    /// The rule that spoke first, and the length it gave.
    pub rule: (TtlSource, Duration),
    /// What the session said; `None` for a list.
    pub said: Option<Said>,
    /// The expiry past which it must not be served, fresh or stale: of a list, the earliest in it.
    pub never_past: Option<Time>,
    /// What the provider's headers allow.
    pub upstream: UpstreamLimit,
}

/// What of a session counts for its lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Its state, with its expiry taken into account.
    pub status: Status,
    /// When it expires.
    pub expires_at: Option<Time>,
    /// When it ended.
    pub ended_at: Option<Time>,
    /// Whether that is longer ago than `settle`.
    pub settled: bool,
}

fn reckon(
    rules: &Freshness,
    now: Time,
    rule: (TtlSource, Duration),
    said: Option<Said>,
    never_past: Option<Time>,
    upstream: UpstreamLimit,
) -> Reckoning {
    let (mut source, mut length) = rule;
    if let Some(max_age) = upstream.max_age.filter(|max_age| *max_age < length) {
        (length, source) = (max_age, TtlSource::Upstream);
    }
    let cap = |time: Time| never_past.map_or(time, |cap| time.min(cap));
    let mut fresh_until = now.plus(length);
    if cap(fresh_until) < fresh_until {
        (fresh_until, source) = (cap(fresh_until), TtlSource::ExpiresAt);
    }
    let window = |length| if upstream.must_revalidate { Duration::ZERO } else { length };
    let (revalidate, error) = (window(rules.stale_while_revalidate), window(rules.stale_if_error));
    let life = Lifetime::until(now, fresh_until, source).with_windows(revalidate, error, never_past);
    Reckoning { life: Lifetime { age: upstream.age, ..life }, rule, said, never_past, upstream }
}

/// The expiry past which a session must not be served: one that lay ahead, of a session not ended.
fn live_expiry(session: &Session, now: Time) -> Option<Time> {
    session.expires_at.filter(|at| session.status != Status::Ended && *at > now)
}

/// The lifetime of one session whose body came at `now`.
#[must_use]
pub fn of_session(rules: &Freshness, session: &Session, now: Time, upstream: UpstreamLimit) -> Reckoning {
    let settled = session.ended_at.is_some_and(|at| now.since(at) >= rules.settle);
    let by_status = rules.by_status.iter().find(|(status, _)| *status == session.status).map(|(_, d)| *d);
    let rule = match (session.status, by_status, session.expires_at) {
        (Status::Ended, _, _) if !settled => (TtlSource::Default, rules.default),
        (_, Some(length), _) => (TtlSource::Status, length),
        (_, None, Some(at)) if at > now => match at.since(now) {
            left if left > rules.max => (TtlSource::Max, rules.max),
            left => (TtlSource::ExpiresAt, left),
        },
        _ => (TtlSource::Default, rules.default),
    };
    let Session { status, expires_at, ended_at, .. } = *session;
    let said = Said { status, expires_at, ended_at, settled };
    reckon(rules, now, rule, Some(said), live_expiry(session, now), upstream)
}

/// The lifetime of a page of sessions whose body came at `now`.
#[must_use]
pub fn of_list(rules: &Freshness, sessions: &[Session], now: Time, upstream: UpstreamLimit) -> Reckoning {
    let earliest = sessions.iter().filter_map(|session| live_expiry(session, now)).min();
    reckon(rules, now, (TtlSource::List, rules.list), None, earliest, upstream)
}

/// The lifetime of an answer that there is no such thing. Never served stale.
#[must_use]
pub fn of_not_found(rules: &Freshness, now: Time) -> Reckoning {
    let rule = (TtlSource::NotFound, rules.not_found);
    let life = Lifetime::until(now, now.plus(rules.not_found), TtlSource::NotFound);
    Reckoning { life, rule, said: None, never_past: None, upstream: UpstreamLimit::default() }
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
    fn the_rules_in_their_order() {
        assert_eq!(ttl(&session(Status::Active, None, Some(1600))), (600, TtlSource::ExpiresAt));
        assert_eq!(ttl(&session(Status::Active, None, Some(4600))), (3600, TtlSource::ExpiresAt));
        assert_eq!(ttl(&session(Status::Active, None, Some(4601))), (3600, TtlSource::Max));
        assert_eq!(ttl(&session(Status::Active, None, None)), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Expired, None, Some(1000))), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Disabled, None, None)), (60, TtlSource::Status));
    }

    #[test]
    fn an_ended_session_settles_first() {
        assert_eq!(ttl(&session(Status::Ended, Some(880), None)), (86_400, TtlSource::Status));
        assert_eq!(ttl(&session(Status::Ended, Some(881), None)), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Ended, None, Some(9000))), (30, TtlSource::Default));
        assert_eq!(ttl(&session(Status::Ended, Some(2000), None)), (30, TtlSource::Default), "clocks differ");
        // An ended session may carry an expiry that lies ahead: it does not count.
        assert_eq!(ttl(&session(Status::Ended, Some(100), Some(1010))), (86_400, TtlSource::Status));
    }

    #[test]
    fn nothing_live_is_served_past_its_expiry_not_even_stale() {
        let life =
            of_session(&rules(), &session(Status::Active, None, Some(1010)), Time(1000 * S), UpstreamLimit::default())
                .life;
        assert_eq!((life.fresh_until, life.last()), (Time(1010 * S), Time(1010 * S)));
        // by_status replaces expiry, yet does not reach past it.
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
    fn the_providers_max_age_is_an_upper_bound() {
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
    fn a_reckoning_tells_what_it_was_made_of() {
        let limit = |max_age| UpstreamLimit { max_age, ..UpstreamLimit::default() };
        let ended = session(Status::Ended, Some(890), Some(9000));
        let made = of_session(&rules(), &ended, Time(1000 * S), limit(Some(Duration::from_secs(7))));
        assert_eq!(made.rule, (TtlSource::Default, Duration::from_secs(30)), "the rule that spoke first");
        assert_eq!((made.life.source, made.life.total().as_secs()), (TtlSource::Upstream, 7), "what then cut it");
        let said = Said {
            status: Status::Ended,
            expires_at: Some(Time(9000 * S)),
            ended_at: Some(Time(890 * S)),
            settled: false,
        };
        assert_eq!((made.said, made.never_past), (Some(said), None), "an ended session's expiry does not count");
        let page = [session(Status::Active, None, Some(1004)), ended];
        let made = of_list(&rules(), &page, Time(1000 * S), limit(None));
        assert_eq!((made.rule.0, made.said, made.never_past), (TtlSource::List, None, Some(Time(1004 * S))));
    }
}
