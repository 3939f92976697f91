//! Contains the sessions that exist: generated ones, and the changes since the start.
//!
//! A generated session follows from its number and from the start time of the simulator, so that two runs differ only in
//! their times.

use crate::sync::lock;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Paths of a gateway that show each provider.
pub(crate) const EXAMPLE_PATHS: [&str; 5] = [
    "/v1/sessions/agenthuman:sess_01H3Z8G9YR3K2N5M6P7Q8W4T",
    "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001",
    "/v1/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6",
    "/v1/agents/agt_customer_support/sessions?limit=3",
    "/v1/sessions?provider=agenthuman&status=active&limit=2",
];

pub(crate) struct World {
    /// Start of the simulator, since the Unix epoch.
    started: Duration,
    /// Number of generated sessions of each agent, and of each provider without agents.
    pub(crate) sessions: usize,
    changes: Mutex<Changes>,
}

/// The changes since the start. The agent is empty for a provider without agents.
#[derive(Default)]
struct Changes {
    /// By agent: sessions in place of the generated ones, in this order.
    replaced: BTreeMap<String, Vec<Value>>,
    last_number: u64,
    /// Agent and session, newest first.
    created: Vec<(String, Value)>,
    /// By session id: JSON pointers and their new values.
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

    /// Returns a new number on each call.
    pub(crate) fn next_number(&self) -> u64 {
        let mut changes = lock(&self.changes);
        changes.last_number += 1;
        changes.last_number
    }

    /// Replaces the generated sessions by `{"AGENT": [SESSION, …], …}` in the provider's format; an empty object restores
    /// them. Returns false if the body is not in this format.
    pub(crate) fn replace(&self, body: &[u8]) -> bool {
        let replaced = serde_json::from_slice(body);
        replaced.map(|replaced| lock(&self.changes).replaced = replaced).is_ok()
    }

    /// Adds a session. It replaces a created or deleted one with the same id.
    pub(crate) fn create(&self, agent: &str, session: Value) {
        let mut changes = lock(&self.changes);
        let id_of = |session: &Value| {
            ["key", "rid", "session_id"].iter().find_map(|member| session[*member].as_str().map(str::to_owned))
        };
        if let Some(id) = id_of(&session) {
            changes.deleted.remove(&id);
            changes.patched.remove(&id);
            changes.created.retain(|(_, known)| id_of(known).as_ref() != Some(&id));
        }
        changes.created.insert(0, (agent.to_owned(), session));
    }

    /// Sets members of a session by their JSON pointers.
    pub(crate) fn patch(&self, id: &str, members: Vec<(String, Value)>) {
        lock(&self.changes).patched.entry(id.to_owned()).or_default().extend(members);
    }

    pub(crate) fn delete(&self, id: &str) {
        lock(&self.changes).deleted.insert(id.to_owned());
    }

    /// Returns the current sessions of an agent, created ones first. `id_member` is the member with the session's id.
    pub(crate) fn list(&self, agent: &str, id_member: &str, generated: Vec<Value>) -> Vec<Value> {
        let changes = lock(&self.changes);
        let sessions = changes.replaced.get(agent).cloned().unwrap_or(generated);
        let created = changes.created.iter().filter(|(of, _)| of == agent).map(|(_, session)| session.clone());
        created.chain(sessions).filter_map(|session| changes.apply(id_member, session)).collect()
    }

    /// Returns the current state of a session, from its generated state if it has one.
    pub(crate) fn get(&self, agent: &str, id_member: &str, id: &str, generated: Option<Value>) -> Option<Value> {
        let changes = lock(&self.changes);
        let created = changes.created.iter().find(|(of, session)| of == agent && session[id_member] == id);
        changes.apply(id_member, generated.or_else(|| created.map(|(_, session)| session.clone()))?)
    }

    /// Formats the time this many seconds after the start (before it, if negative) as RFC 3339, with this many decimals.
    pub(crate) fn time(&self, seconds: i64, decimals: usize) -> String {
        let at = i64::try_from(self.started.as_secs()).unwrap_or(0) + seconds;
        let nanoseconds = i32::try_from(self.started.subsec_nanos()).unwrap_or(0);
        let timestamp = jiff::Timestamp::new(at, nanoseconds).unwrap_or_default();
        if decimals == 0 { format!("{timestamp:.0}") } else { format!("{timestamp:.decimals$}") }
    }

    /// Returns the seconds since the start.
    pub(crate) fn elapsed(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.saturating_sub(self.started).as_secs()).unwrap_or(0)
    }
}

impl Changes {
    /// Returns the session with its patches, or `None` if it is deleted.
    fn apply(&self, id_member: &str, mut session: Value) -> Option<Value> {
        let id = session[id_member].as_str().or_else(|| session["id"].as_str()).unwrap_or_default().to_owned();
        for (pointer, value) in self.patched.get(&id).into_iter().flatten() {
            match session.pointer_mut(pointer) {
                Some(member) => *member = value.clone(),
                None => session[pointer.trim_start_matches('/')] = value.clone(),
            }
        }
        (!self.deleted.contains(&id)).then_some(session)
    }
}

/// Returns a pseudo-random number that follows from the seed (splitmix64).
pub(crate) fn pseudo_random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Returns the offset of a page and the token of the next page, or `None` if the token is invalid. A token is `p` and the
/// offset in hexadecimal.
pub(crate) fn page(token: Option<&str>, limit: usize, total: usize) -> Option<(usize, Option<String>)> {
    let start = match token {
        None => 0,
        Some(token) => usize::from_str_radix(token.strip_prefix('p')?, 16).ok().filter(|start| *start < total)?,
    };
    let end = start + limit;
    Some((start, (end < total).then(|| format!("p{end:x}"))))
}

#[cfg(test)]
mod tests {
    use super::{World, page};
    use serde_json::json;

    #[test]
    fn page_tokens_lead_to_the_last_page() {
        assert_eq!(page(None, 10, 25), Some((0, Some("pa".to_owned()))));
        assert_eq!(page(Some("pa"), 10, 25), Some((10, Some("p14".to_owned()))));
        assert_eq!(page(Some("p14"), 10, 25), Some((20, None)));
        assert_eq!(page(Some("p19"), 10, 25), None, "an offset after the last session is invalid");
    }

    #[test]
    fn a_deleted_session_can_be_created_again() {
        let world = World::new(1);
        let get = || world.get("agent", "key", "a", None);
        world.create("agent", json!({ "key": "a", "name": "first" }));
        world.patch("a", vec![("/name".to_owned(), "patched".into())]);
        assert_eq!(get().unwrap()["name"], "patched");
        world.delete("a");
        assert_eq!((get(), world.list("agent", "key", Vec::new())), (None, Vec::new()));
        world.create("agent", json!({ "key": "a", "name": "second" }));
        assert_eq!(get().unwrap()["name"], "second");
    }
}
