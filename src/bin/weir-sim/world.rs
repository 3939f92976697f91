//! The sessions that exist: the documents' own, word for word, and thousands made up.
//!
//! Made-up ones follow from their number and from when the simulator started, so that two runs
//! differ only in their times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Requests to a gateway that show each provider.
pub(crate) const TRY: [&str; 5] = [
    "/v1/sessions/agenthuman:sess_01H3Z8G9YR3K2N5M6P7Q8W4T",
    "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001",
    "/v1/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6",
    "/v1/agents/agt_customer_support/sessions?limit=3",
    "/v1/sessions?provider=agenthuman&status=active&limit=2",
];

/// When it all began, and how much there is.
pub(crate) struct World {
    started: Duration,
    /// Sessions of each agent, or of a provider without agents.
    pub(crate) sessions: usize,
}

impl World {
    pub(crate) fn new(sessions: usize) -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), sessions }
    }

    /// RFC 3339 so many seconds after the start (before it, if negative), with this many digits.
    pub(crate) fn time(&self, seconds: i64, digits: usize) -> String {
        let at = i64::try_from(self.started.as_secs()).unwrap_or(0) + seconds;
        let nanoseconds = i32::try_from(self.started.subsec_nanos()).unwrap_or(0);
        let stamp = jiff::Timestamp::new(at, nanoseconds).unwrap_or_default();
        if digits == 0 { format!("{stamp:.0}") } else { format!("{stamp:.digits$}") }
    }

    /// Seconds since the start.
    pub(crate) fn elapsed(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.saturating_sub(self.started).as_secs()).unwrap_or(0)
    }
}

/// A number that looks random and follows from its seed (splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Where a page begins by its token, and the token of the next. Tokens are `p<offset>` in hexadecimal.
pub(crate) fn page(token: Option<&str>, limit: usize, total: usize) -> Option<(usize, Option<String>)> {
    let start = match token {
        None => 0,
        Some(token) => usize::from_str_radix(token.strip_prefix('p')?, 16).ok().filter(|start| *start < total)?,
    };
    let end = start + limit;
    Some((start, (end < total).then(|| format!("p{end:x}"))))
}
