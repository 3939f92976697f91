//! The sessions that exist: the documents' own, word for word, and thousands made up.
//!
//! Made-up ones follow from their number and from when the simulator started, so that two runs
//! differ only in their times.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    changes: Mutex<Changes>,
}

/// What was changed since the start.
#[derive(Default)]
struct Changes {
    /// By agent: these sessions in this order, in place of those made up.
    replaced: BTreeMap<String, Vec<Value>>,
    made: u64,
    /// By agent; empty where there are none.
    created: Vec<(String, Value)>,
    /// By session: JSON pointers and what stands there now.
    patched: BTreeMap<String, Vec<(String, Value)>>,
    deleted: BTreeSet<String>,
}

impl World {
    pub(crate) fn new(sessions: usize) -> Self {
        Self {
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            sessions,
            changes: Mutex::default(),
        }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that was not given before.
    pub(crate) fn next(&self) -> u64 {
        let mut changes = self.changes();
        changes.made += 1;
        changes.made
    }

    /// Takes sessions of tests: `{"AGENT": [SESSION, …], …}`, as the provider shows them; the agent is empty where there
    /// are none. They replace those that were made up, until an empty object comes.
    pub(crate) fn replace(&self, body: &[u8]) -> bool {
        let replaced = serde_json::from_slice(body);
        replaced.map(|replaced| self.changes().replaced = replaced).is_ok()
    }

    pub(crate) fn create(&self, agent: &str, session: Value) {
        let mut changes = self.changes();
        let named = |session: &Value| {
            ["key", "rid", "session_id"].iter().find_map(|id| session[*id].as_str().map(str::to_owned))
        };
        // One that was deleted may be made again.
        if let Some(id) = named(&session) {
            changes.deleted.remove(&id);
            changes.patched.remove(&id);
            changes.created.retain(|(_, known)| named(known).as_ref() != Some(&id));
        }
        changes.created.insert(0, (agent.to_owned(), session));
    }

    pub(crate) fn patch(&self, id: &str, members: Vec<(String, Value)>) {
        self.changes().patched.entry(id.to_owned()).or_default().extend(members);
    }

    pub(crate) fn delete(&self, id: &str) {
        self.changes().deleted.insert(id.to_owned());
    }

    /// An agent's sessions as they are now: those made since first.
    pub(crate) fn now(&self, agent: &str, field: &str, sessions: Vec<Value>) -> Vec<Value> {
        let changes = self.changes();
        let sessions = changes.replaced.get(agent).cloned().unwrap_or(sessions);
        let created = changes.created.iter().filter(|(of, _)| of == agent).map(|(_, session)| session.clone());
        let all = created.chain(sessions);
        all.filter_map(|session| changes.apply(field, session)).collect()
    }

    /// One session as it is now, if there is one.
    pub(crate) fn one(&self, agent: &str, field: &str, id: &str, found: Option<Value>) -> Option<Value> {
        let changes = self.changes();
        let created = changes.created.iter().find(|(of, session)| of == agent && session[field] == id);
        changes.apply(field, found.or_else(|| created.map(|(_, session)| session.clone()))?)
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

impl Changes {
    fn apply(&self, field: &str, mut session: Value) -> Option<Value> {
        let id = session[field].as_str().or_else(|| session["id"].as_str()).unwrap_or_default().to_owned();
        for (pointer, value) in self.patched.get(&id).into_iter().flatten() {
            match session.pointer_mut(pointer) {
                Some(member) => *member = value.clone(),
                None => session[pointer.trim_start_matches('/')] = value.clone(),
            }
        }
        (!self.deleted.contains(&id)).then_some(session)
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
