//! Simulates Palantir Foundry AIP Agents: `/api/v2/aipAgents/agents/{agentRid}/sessions[/{sessionRid}]?preview=true`.

use crate::http::{Query, Reply, header};
use crate::simulator::Simulator;
use crate::world::{World, page, pseudo_random};
use hyper::HeaderMap;
use serde_json::{Value, json};

const AGENT: &str = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
const LOAD_AGENT: &str = "ri.aip-agents..agent.00000000-0000-0000-0000-00000000000";

/// Returns the refusal of a request without a valid token (a user's or an issued one) or without `preview=true`.
pub(crate) fn refuse(sim: &Simulator, query: &Query, headers: &HeaderMap) -> Option<Reply> {
    let authorization = header(headers, "authorization");
    let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
    if token != Some(&*sim.options.palantir_token) && !sim.tokens.accept("palantir", authorization) {
        return Some(error(401, "UNAUTHORIZED", "Default:Unauthorized", &json!({})));
    }
    (query.get("preview") != Some("true"))
        .then(|| error(400, "INVALID_ARGUMENT", "ApiFeaturePreviewUsageOnly", &json!({})))
}

pub(crate) fn read(sim: &Simulator, rest: &[&str], query: &Query, headers: &HeaderMap) -> Reply {
    if let Some(refusal) = refuse(sim, query, headers) {
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
            let rid = format!("ri.aip-agents..session.ffffffff-0000-4000-8000-{:012x}", sim.world.next_number());
            let time = |seconds| sim.world.time(sim.world.elapsed() + seconds, 9);
            let metadata = json!({ "title": "New", "createdTime": time(0), "updatedTime": time(0), "estimatedExpiresTime": time(86_400), "messageCount": 0 });
            let session = json!({ "rid": rid, "agentRid": agent, "agentVersion": "1.0", "metadata": metadata });
            sim.world.create(agent, session.clone());
            Reply::json(200, &session)
        }
        ("PUT", [rid, "updateTitle"]) => {
            sim.world.patch(rid, vec![("/metadata/title".into(), body["title"].clone())]);
            Reply::new(204, String::new())
        }
        ("DELETE", [rid]) => match get(sim, agent, rid) {
            found if found.status == 200 => {
                sim.world.delete(rid);
                Reply::new(204, String::new())
            }
            missing => missing,
        },
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

/// Returns the number of an agent's sessions if the agent exists.
fn total(world: &World, agent: &str) -> Option<usize> {
    let load = agent.strip_prefix(LOAD_AGENT).is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
    (agent == AGENT || load).then_some(world.sessions)
}

fn unknown_agent(agent: &str) -> Reply {
    error(404, "NOT_FOUND", "AgentNotFound", &json!({ "agentRid": agent }))
}

fn list(sim: &Simulator, agent: &str, query: &Query) -> Reply {
    let Some(total) = total(&sim.world, agent) else { return unknown_agent(agent) };
    let size = query.get("pageSize").map_or(Some(100), |text| text.parse().ok().filter(|size| *size > 0));
    let Some(size) = size else {
        return error(400, "INVALID_ARGUMENT", "InvalidPageSize", &json!({ "pageSize": query.get("pageSize") }));
    };
    let size: usize = std::cmp::min(size, 100);
    let all = sim.world.list(agent, "rid", (0..total).map(|n| session(&sim.world, agent, n)).collect());
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

fn get(sim: &Simulator, agent: &str, rid: &str) -> Reply {
    let Some(total) = total(&sim.world, agent) else { return unknown_agent(agent) };
    let number = rid.rsplit('-').next().and_then(|n| usize::from_str_radix(n, 16).ok());
    let numbered = number.filter(|n| *n < total).map(|n| session(&sim.world, agent, n));
    let generated =
        [Some(session(&sim.world, agent, 0)), numbered].into_iter().flatten().find(|session| session["rid"] == rid);
    match sim.world.get(agent, "rid", rid, generated) {
        Some(session) => Reply::json(200, &session),
        None => error(404, "NOT_FOUND", "SessionNotFound", &json!({ "agentRid": agent, "sessionRid": rid })),
    }
}

fn session(world: &World, agent: &str, n: usize) -> Value {
    if n == 0 && agent == AGENT {
        let documented = include_str!("../../config/examples/palantir/get.native.json");
        return serde_json::from_str(documented).unwrap_or_default();
    }
    let created = -(n as i64) * 300;
    json!({
        "metadata": {
            "updatedTime": world.time(created + 60, 9),
            "estimatedExpiresTime": world.time(created + 60 + 86_400, 9),
            "messageCount": pseudo_random(n as u64) % 40,
            "createdTime": world.time(created, 9),
            "title": format!("Question {n}"),
        },
        "agentRid": agent,
        "agentVersion": "1.0",
        "rid": format!("ri.aip-agents..session.00000000-0000-4000-8000-{n:012x}"),
    })
}
