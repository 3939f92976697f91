//! Palantir Foundry AIP Agents: `/api/v2/aipAgents/agents/{agentRid}/sessions[/{sessionRid}]?preview=true`.

use crate::world::{mix, page};
use crate::{Header, Query, Reply, Sim};
use serde_json::{Value, json};

const AGENT: &str = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
const LOAD_AGENT: &str = "ri.aip-agents..agent.00000000-0000-0000-0000-00000000000";

/// By token: a user's, or one of ours.
pub(crate) fn refused(sim: &Sim, query: &Query, header: Header<'_>) -> Option<Reply> {
    let shown = header("authorization");
    let token = shown.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    if token != Some(&*sim.options.palantir_token) && !sim.control.is_token("palantir", shown.as_deref()) {
        return Some(error(401, "UNAUTHORIZED", "Default:Unauthorized", &json!({})));
    }
    (query.get("preview") != Some("true"))
        .then(|| error(400, "INVALID_ARGUMENT", "ApiFeaturePreviewUsageOnly", &json!({})))
}

pub(crate) fn answer(sim: &Sim, rest: &[&str], query: &Query, header: Header<'_>) -> Reply {
    if let Some(refused) = refused(sim, query, header) {
        return refused;
    }
    match rest {
        [agent, "sessions"] => list(sim, agent, query),
        [agent, "sessions", session] => get(sim, agent, session),
        _ => Reply::new(404, String::new()),
    }
}

fn error(status: u16, code: &str, name: &str, parameters: &Value) -> Reply {
    let instance = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    Reply::json(
        status,
        &json!({ "errorCode": code, "errorName": name, "errorInstanceId": instance, "parameters": parameters }),
    )
}

fn total(sim: &Sim, agent: &str) -> Option<usize> {
    let load = agent.strip_prefix(LOAD_AGENT).is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
    (agent == AGENT || load).then_some(sim.world.sessions)
}

fn unknown_agent(agent: &str) -> Reply {
    error(404, "NOT_FOUND", "AgentNotFound", &json!({ "agentRid": agent }))
}

fn list(sim: &Sim, agent: &str, query: &Query) -> Reply {
    let Some(total) = total(sim, agent) else { return unknown_agent(agent) };
    let size = query.get("pageSize").map_or(Some(100), |text| text.parse().ok().filter(|size| *size > 0));
    let Some(size) = size else {
        return error(400, "INVALID_ARGUMENT", "InvalidPageSize", &json!({ "pageSize": query.get("pageSize") }));
    };
    let size: usize = std::cmp::min(size, 100);
    let all = sim.world.now(agent, "rid", (0..total).map(|n| session(sim, agent, n)).collect());
    let Some((start, next)) = page(query.get("pageToken"), size, all.len()) else {
        return error(400, "INVALID_ARGUMENT", "InvalidPageToken", &json!({ "pageToken": query.get("pageToken") }));
    };
    let data: Vec<&Value> = all.iter().skip(start).take(size).collect();
    let mut body = json!({ "data": data });
    if let Some(next) = next {
        body["nextPageToken"] = next.into();
    }
    Reply::json(200, &body)
}

pub(crate) fn get(sim: &Sim, agent: &str, rid: &str) -> Reply {
    let Some(total) = total(sim, agent) else { return unknown_agent(agent) };
    let number = rid.rsplit('-').next().and_then(|n| usize::from_str_radix(n, 16).ok());
    let numbered = number.filter(|n| *n < total).map(|n| session(sim, agent, n));
    let found = [Some(session(sim, agent, 0)), numbered].into_iter().flatten().find(|session| session["rid"] == rid);
    match sim.world.one(agent, "rid", rid, found) {
        Some(session) => Reply::json(200, &session),
        None => error(404, "NOT_FOUND", "SessionNotFound", &json!({ "agentRid": agent, "sessionRid": rid })),
    }
}

fn session(sim: &Sim, agent: &str, n: usize) -> Value {
    if n == 0 && agent == AGENT {
        let documented = include_str!("../../../config/examples/palantir/get.native.json");
        return serde_json::from_str(documented).unwrap_or_default();
    }
    let created = -(n as i64) * 300;
    json!({
        "metadata": {
            "updatedTime": sim.world.time(created + 60, 9),
            "estimatedExpiresTime": sim.world.time(created + 60 + 86_400, 9),
            "messageCount": mix(n as u64) % 40,
            "createdTime": sim.world.time(created, 9),
            "title": format!("Question {n}"),
        },
        "agentRid": agent,
        "agentVersion": "1.0",
        "rid": format!("ri.aip-agents..session.00000000-0000-4000-8000-{n:012x}"),
    })
}
