//! Palantir Foundry AIP Agents: `/api/v2/aipAgents/agents/{agentRid}/sessions[/{sessionRid}]?preview=true`.

use crate::world::{mix, page};
use crate::{Query, Reply, Sim};
use serde_json::{Value, json};

const AGENT: &str = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
const LOAD_AGENT: &str = "ri.aip-agents..agent.00000000-0000-0000-0000-00000000000";

pub(crate) fn answer(sim: &Sim, rest: &[&str], query: &Query, header: &dyn Fn(&str) -> Option<String>) -> Reply {
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    if token.as_deref() != Some(&*sim.options.palantir_token) {
        return error(401, "UNAUTHORIZED", "Default:Unauthorized", &json!({}));
    }
    if query.get("preview") != Some("true") {
        return error(400, "INVALID_ARGUMENT", "ApiFeaturePreviewUsageOnly", &json!({}));
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
    let Some((start, next)) = page(query.get("pageToken"), size, total) else {
        return error(400, "INVALID_ARGUMENT", "InvalidPageToken", &json!({ "pageToken": query.get("pageToken") }));
    };
    let data: Vec<Value> = (start..total.min(start + size)).map(|n| session(sim, agent, n)).collect();
    let mut body = json!({ "data": data });
    if let Some(next) = next {
        body["nextPageToken"] = next.into();
    }
    Reply::json(200, &body)
}

fn get(sim: &Sim, agent: &str, rid: &str) -> Reply {
    let Some(total) = total(sim, agent) else { return unknown_agent(agent) };
    let documented = session(sim, agent, 0);
    if documented["rid"] == rid {
        return Reply::json(200, &documented);
    }
    let number = rid.rsplit('-').next().and_then(|n| usize::from_str_radix(n, 16).ok());
    match number.filter(|n| *n < total).map(|n| session(sim, agent, n)) {
        Some(session) if session["rid"] == rid => Reply::json(200, &session),
        _ => error(404, "NOT_FOUND", "SessionNotFound", &json!({ "agentRid": agent, "sessionRid": rid })),
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
