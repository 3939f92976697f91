//! Vectara v2: `/v2/agents/{agent_key}/sessions[/{session_key}]`.
//!
//! `agt_customer_support` answers as the documents show (`id`, no `name`); `agt_load_0` to `_9` and
//! `customer_support` as the specification has it (`key`, `name`, `status`).

use crate::world::{mix, page};
use crate::{Header, Query, Reply, Sim};
use serde_json::{Value, json};

const DOCUMENTED: &str = "agt_customer_support";
/// The documents' list says so.
const DOCUMENTED_TOTAL: usize = 127;

/// By API key or by a token of ours.
pub(crate) fn refused(sim: &Sim, header: Header<'_>) -> Option<Reply> {
    match header("x-api-key") {
        Some(key) if key == sim.options.vectara_key => None,
        Some(key) if key == "zut_forbidden" => Some(error(403, "Insufficient permissions for this agent.")),
        None if sim.control.is_token("vectara", header("authorization").as_deref()) => None,
        _ => Some(error(401, "Invalid or missing API key.")),
    }
}

pub(crate) fn answer(sim: &Sim, rest: &[&str], query: &Query, header: Header<'_>) -> Reply {
    if let Some(refused) = refused(sim, header) {
        return refused;
    }
    match rest {
        [agent, "sessions"] => list(sim, agent, query),
        [agent, "sessions", session] => get(sim, agent, session),
        _ => Reply::new(404, String::new()),
    }
}

fn error(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({ "messages": [message], "request_id": format!("{:032x}", mix(status.into())) }))
}

fn total(sim: &Sim, agent: &str) -> Option<usize> {
    match agent {
        DOCUMENTED => Some(DOCUMENTED_TOTAL),
        "agt_empty" => Some(0),
        "customer_support" => Some(sim.world.sessions),
        _ => {
            let number = agent.strip_prefix("agt_load_")?;
            matches!(number.parse::<u8>(), Ok(0..=9)).then_some(sim.world.sessions)
        }
    }
}

fn list(sim: &Sim, agent: &str, query: &Query) -> Reply {
    let Some(total) = total(sim, agent) else { return error(404, &format!("Agent {agent} not found.")) };
    let limit = query.get("limit").map_or(Some(10), |text| text.parse().ok().filter(|limit| (1..=100).contains(limit)));
    let Some(limit) = limit else {
        let fields = json!({ "limit": "must be between 1 and 100" });
        return Reply::json(400, &json!({ "messages": ["Invalid limit."], "request_id": "r", "field_errors": fields }));
    };
    let enabled: Option<bool> = query.get("enabled").and_then(|text| text.parse().ok());
    let wanted = |session: &Value| enabled.is_none_or(|enabled| session["enabled"] == enabled);
    let all: Vec<Value> = (0..total).map(|n| session(sim, agent, n, true)).collect();
    let all: Vec<Value> = sim.world.now(agent, "key", all).into_iter().filter(wanted).collect();
    let Some((start, next)) = page(query.get("page_key"), limit, all.len()) else {
        return error(400, "Invalid page_key.");
    };
    let sessions: Vec<&Value> = all.iter().skip(start).take(limit).collect();
    let mut metadata = json!({});
    if let Some(next) = next {
        metadata["page_key"] = next.into();
    }
    if agent == DOCUMENTED {
        metadata["total_count"] = all.len().into();
    }
    Reply::json(200, &json!({ "sessions": sessions, "metadata": metadata }))
}

pub(crate) fn get(sim: &Sim, agent: &str, id: &str) -> Reply {
    let Some(total) = total(sim, agent) else { return error(404, &format!("Agent {agent} not found.")) };
    let number = id.rsplit('_').next().and_then(|n| n.parse::<usize>().ok()).and_then(|n| n.checked_sub(1));
    let found = number.filter(|n| *n < total && key(agent, *n) == id).map(|n| session(sim, agent, n, false));
    match sim.world.one(agent, "key", id, found) {
        Some(session) => Reply::json(200, &session),
        None => {
            let message = format!("Session {id} not found.");
            Reply::json(404, &json!({ "messages": [message], "request_id": "r", "id": id }))
        }
    }
}

fn key(agent: &str, n: usize) -> String {
    match agent {
        DOCUMENTED => format!("ase_customer_support_{:03}", n + 1),
        _ => format!("ase_{agent}_{}", n + 1),
    }
}

fn session(sim: &Sim, agent: &str, n: usize, listed: bool) -> Value {
    if agent == DOCUMENTED {
        if let Some(documented) = documented(n, listed) {
            return documented;
        }
        return json!({
            "id": key(agent, n),
            "agent_key": agent,
            "description": format!("Customer support session {}", n + 1),
            "metadata": { "customer_id": format!("customer_{}", mix(n as u64) % 100_000), "priority": "low", "channel": "email" },
            "enabled": n % 3 != 2,
            "created_at": sim.world.time(-(n as i64) * 600, 0),
        });
    }
    let seed = mix(n as u64);
    let status = ["unstarted", "running", "stopped"][n % 3];
    json!({
        "key": key(agent, n),
        "agent_key": agent,
        "name": format!("Session {} of {agent}", n + 1),
        "description": if seed.is_multiple_of(5) { Value::Null } else { format!("Generated, seed {seed}").into() },
        "metadata": { "number": n, "seed": seed.to_string(), "tags": ["generated", "load"], "score": 0.1 },
        "enabled": !seed.is_multiple_of(4),
        "status": status,
        "tti_minutes": 30,
        "created_at": sim.world.time(-(n as i64) * 60, 3),
        "secrets": { "token": "****" },
    })
}

/// The three sessions that the documents show; the first is longer when read alone.
fn documented(n: usize, listed: bool) -> Option<Value> {
    if n == 0 && !listed {
        return serde_json::from_str(include_str!("../../../config/examples/vectara/get.native.json")).ok();
    }
    let list: Value = serde_json::from_str(include_str!("../../../config/examples/vectara/list.native.json")).ok()?;
    list["sessions"].get(n).cloned()
}
