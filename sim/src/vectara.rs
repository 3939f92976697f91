//! Simulates Vectara v2: `/v2/agents/{agent_key}/sessions[/{session_key}]`.
//!
//! The sessions of `agt_customer_support` have the format of the documents (`id`, no `name`). Those of `agt_load_0` to
//! `agt_load_9` and `customer_support` have the format of the specification (`key`, `name`, `status`).

use crate::http::{Query, Reply, header};
use crate::simulator::Simulator;
use crate::world::{World, page, pseudo_random};
use hyper::HeaderMap;
use serde_json::{Value, json};

/// The agent in the documents.
const DOCUMENTED: &str = "agt_customer_support";
/// The `total_count` in the documents.
const DOCUMENTED_TOTAL: usize = 127;

/// Returns the refusal of a request without the right key or a valid issued token.
pub(crate) fn refuse(sim: &Simulator, headers: &HeaderMap) -> Option<Reply> {
    match header(headers, "x-api-key") {
        Some(key) if key == sim.options.vectara_key => None,
        Some("zut_forbidden") => Some(error(403, "Insufficient permissions for this agent.")),
        None if sim.tokens.accept("vectara", header(headers, "authorization")) => None,
        _ => Some(error(401, "Invalid or missing API key.")),
    }
}

pub(crate) fn read(sim: &Simulator, rest: &[&str], query: &Query, headers: &HeaderMap) -> Reply {
    if let Some(refusal) = refuse(sim, headers) {
        return refusal;
    }
    match rest {
        [agent, "sessions"] => list(sim, agent, query),
        [agent, "sessions", session] => get(sim, agent, session),
        _ => Reply::new(404, String::new()),
    }
}

pub(crate) fn write(sim: &Simulator, method: &str, agent: &str, rest: &[&str], body: &Value) -> Reply {
    match (method, rest) {
        ("POST", []) => {
            let key =
                body["key"].as_str().map_or_else(|| format!("ase_new_{}", sim.world.next_number()), str::to_owned);
            let mut session = json!({ "key": key, "agent_key": agent, "name": "New", "metadata": {}, "enabled": true, "created_at": sim.world.time(sim.world.elapsed(), 3) });
            for (name, value) in body.as_object().into_iter().flatten() {
                session[name] = value.clone();
            }
            sim.world.create(agent, session.clone());
            Reply::json(201, &session)
        }
        ("PATCH", [key]) => {
            let members = body.as_object().cloned().unwrap_or_default();
            sim.world.patch(key, members.into_iter().map(|(name, value)| (format!("/{name}"), value)).collect());
            get(sim, agent, key)
        }
        ("DELETE", [key]) => match get(sim, agent, key) {
            found if found.status == 200 => {
                sim.world.delete(key);
                Reply::new(204, String::new())
            }
            missing => missing,
        },
        _ => Reply::new(404, String::new()),
    }
}

fn error(status: u16, message: &str) -> Reply {
    Reply::json(
        status,
        &json!({ "messages": [message], "request_id": format!("{:032x}", pseudo_random(status.into())) }),
    )
}

/// Returns the number of an agent's sessions if the agent exists.
fn total(world: &World, agent: &str) -> Option<usize> {
    match agent {
        DOCUMENTED => Some(DOCUMENTED_TOTAL),
        "agt_empty" => Some(0),
        "customer_support" => Some(world.sessions),
        _ => {
            let number = agent.strip_prefix("agt_load_")?;
            matches!(number.parse::<u8>(), Ok(0..=9)).then_some(world.sessions)
        }
    }
}

fn list(sim: &Simulator, agent: &str, query: &Query) -> Reply {
    let Some(total) = total(&sim.world, agent) else { return error(404, &format!("Agent {agent} not found.")) };
    let limit = query.get("limit").map_or(Some(10), |text| text.parse().ok().filter(|limit| (1..=100).contains(limit)));
    let Some(limit) = limit else {
        let fields = json!({ "limit": "must be between 1 and 100" });
        return Reply::json(400, &json!({ "messages": ["Invalid limit."], "request_id": "r", "field_errors": fields }));
    };
    let enabled: Option<bool> = query.get("enabled").and_then(|text| text.parse().ok());
    let wanted = |session: &Value| enabled.is_none_or(|enabled| session["enabled"] == enabled);
    let generated = (0..total).map(|n| session(&sim.world, agent, n, true)).collect();
    let all: Vec<Value> = sim.world.list(agent, "key", generated).into_iter().filter(wanted).collect();
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

fn get(sim: &Simulator, agent: &str, id: &str) -> Reply {
    let Some(total) = total(&sim.world, agent) else { return error(404, &format!("Agent {agent} not found.")) };
    let number = id.rsplit('_').next().and_then(|n| n.parse::<usize>().ok()).and_then(|n| n.checked_sub(1));
    let generated = number.filter(|n| *n < total && key(agent, *n) == id).map(|n| session(&sim.world, agent, n, false));
    match sim.world.get(agent, "key", id, generated) {
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

fn session(world: &World, agent: &str, n: usize, listed: bool) -> Value {
    if agent == DOCUMENTED {
        if let Some(documented) = documented(n, listed) {
            return documented;
        }
        return json!({
            "id": key(agent, n),
            "agent_key": agent,
            "description": format!("Customer support session {}", n + 1),
            "metadata": { "customer_id": format!("customer_{}", pseudo_random(n as u64) % 100_000), "priority": "low", "channel": "email" },
            "enabled": n % 3 != 2,
            "created_at": world.time(-(n as i64) * 600, 0),
        });
    }
    let seed = pseudo_random(n as u64);
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
        "created_at": world.time(-(n as i64) * 60, 3),
        "secrets": { "token": "****" },
    })
}

/// Returns one of the three sessions in the documents. The first has more members outside of a list.
fn documented(n: usize, listed: bool) -> Option<Value> {
    if n == 0 && !listed {
        return serde_json::from_str(include_str!("../../config/examples/vectara/get.native.json")).ok();
    }
    let list: Value = serde_json::from_str(include_str!("../../config/examples/vectara/list.native.json")).ok()?;
    list["sessions"].get(n).cloned()
}
