//! What changes sessions, what streams, and what hands out tokens.
//!
//! Streams are told how by `x-sim-stream: COUNT,MILLISECONDS`: so many events, so far apart.

use crate::faults::Body;
use crate::world::mix;
use crate::{Abort, Header, Query, Reply, Sim, agenthuman, palantir, vectara};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use hyper::{Method, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The longest body that is read as JSON.
const MAX_JSON: usize = 1 << 20;

/// A body that came: JSON, or only its length.
struct Came {
    json: Value,
    text: String,
    bytes: u64,
}

/// Reads a body to its end without keeping what is long.
async fn came(mut body: Incoming) -> Result<Came, Abort> {
    let (mut kept, mut bytes) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Abort("the body broke off"))?;
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            if kept.len() + data.len() <= MAX_JSON {
                kept.extend_from_slice(data);
            }
        }
    }
    let text = String::from_utf8_lossy(&kept).into_owned();
    Ok(Came { json: serde_json::from_str(&text).unwrap_or_default(), text, bytes })
}

/// Answers what is not a plain read; `None` is one.
pub(crate) async fn answer(
    sim: &Arc<Sim>,
    parts: &Parts,
    segments: &[&str],
    query: &Query,
    header: Header<'_>,
    body: Incoming,
) -> Result<Option<Response<Body>>, Abort> {
    let refused = match segments {
        ["oauth2", "token"] | ["multipass", "api", "oauth2", "token"] => None,
        ["v2", ..] => vectara::refused(sim, header),
        ["api", ..] => palantir::refused(sim, query, header),
        ["v1", ..] => agenthuman::refused(sim, header),
        _ => return Ok(None),
    };
    let pacing = header("x-sim-stream").unwrap_or_default();
    if parts.method == Method::GET && !matches!(segments, [.., "artifacts", _] | [.., "events" | "content" | "usage"]) {
        return Ok(None);
    }
    if let Some(refused) = refused {
        return Ok(Some(refused.whole()));
    }
    let came = came(body).await?;
    let reply = match (parts.method.as_str(), segments) {
        ("POST", ["oauth2", "token"]) => token(sim, "vectara", &came),
        ("POST", ["multipass", "api", "oauth2", "token"]) => token(sim, "palantir", &came),
        ("GET", ["v2", "agents", _, "sessions", _, "artifacts", id]) => return Ok(Some(download(id))),
        ("GET", ["v2", "agents", _, "sessions", _, "events"]) => {
            Reply::json(200, &json!({ "events": [], "metadata": {} }))
        }
        ("POST", ["v2", "agents", _, "sessions", session, "events"]) => {
            if came.json["stream_response"] == true {
                return Ok(Some(events(sim, &pacing)));
            }
            Reply::json(201, &json!({ "events": [], "session_key": session, "received_bytes": came.bytes }))
        }
        ("POST", ["api", "v2", "aipAgents", "agents", _, "sessions", _, "streamingContinue"]) => {
            return Ok(Some(markdown(&pacing)));
        }
        ("POST", ["api", "v2", "aipAgents", "agents", _, "sessions", _, "blockingContinue"]) => Reply::json(
            200,
            &json!({ "agentMarkdownResponse": "It is so.", "parameterUpdates": {}, "totalTokensUsed": 7, "interruptedOutput": false, "sessionTraceId": "12345678-0000-4000-8000-000000000001" }),
        ),
        ("GET", ["api", "v2", "aipAgents", "agents", _, "sessions", _, "content"]) => {
            Reply::json(200, &json!({ "exchanges": [] }))
        }
        ("GET", ["v1", "usage"]) => Reply::json(200, &json!({ "success": true, "usage": { "active_sessions": [] } })),
        (method, ["v2", "agents", agent, "sessions", rest @ ..]) => vectara_write(sim, method, agent, rest, &came.json),
        (method, ["api", "v2", "aipAgents", "agents", agent, "sessions", rest @ ..]) => {
            palantir_write(sim, method, agent, rest, &came.json)
        }
        (method, ["v1", "sessions", rest @ ..]) => agenthuman_write(sim, method, rest, &came.json),
        _ => Reply::new(404, String::new()),
    };
    Ok(Some(reply.whole()))
}

fn vectara_write(sim: &Sim, method: &str, agent: &str, rest: &[&str], body: &Value) -> Reply {
    match (method, rest) {
        ("POST", []) => {
            let key = body["key"].as_str().map_or_else(|| format!("ase_new_{}", sim.world.next()), str::to_owned);
            let mut session = json!({ "key": key, "agent_key": agent, "name": "New", "metadata": {}, "enabled": true, "created_at": sim.world.time(sim.world.elapsed(), 3) });
            merge(&mut session, body);
            sim.world.create(agent, session.clone());
            Reply::json(201, &session)
        }
        ("PATCH", [key]) => {
            let members = body.as_object().cloned().unwrap_or_default();
            sim.world.patch(key, members.into_iter().map(|(name, value)| (format!("/{name}"), value)).collect());
            vectara::get(sim, agent, key)
        }
        ("DELETE", [key]) => match vectara::get(sim, agent, key) {
            found if found.status == 200 => {
                sim.world.delete(key);
                Reply::new(204, String::new())
            }
            missing => missing,
        },
        _ => Reply::new(404, String::new()),
    }
}

fn palantir_write(sim: &Sim, method: &str, agent: &str, rest: &[&str], body: &Value) -> Reply {
    match (method, rest) {
        ("POST", []) => {
            let rid = format!("ri.aip-agents..session.ffffffff-0000-4000-8000-{:012x}", sim.world.next());
            let time = |after| sim.world.time(sim.world.elapsed() + after, 9);
            let metadata = json!({ "title": "New", "createdTime": time(0), "updatedTime": time(0), "estimatedExpiresTime": time(86_400), "messageCount": 0 });
            let session = json!({ "rid": rid, "agentRid": agent, "agentVersion": "1.0", "metadata": metadata });
            sim.world.create(agent, session.clone());
            Reply::json(200, &session)
        }
        ("PUT", [rid, "updateTitle"]) => {
            sim.world.patch(rid, vec![("/metadata/title".into(), body["title"].clone())]);
            Reply::new(204, String::new())
        }
        ("DELETE", [rid]) => match palantir::get(sim, agent, rid) {
            found if found.status == 200 => {
                sim.world.delete(rid);
                Reply::new(204, String::new())
            }
            missing => missing,
        },
        _ => Reply::new(404, String::new()),
    }
}

fn agenthuman_write(sim: &Sim, method: &str, rest: &[&str], body: &Value) -> Reply {
    let now = || Value::from(sim.world.time(sim.world.elapsed(), 0));
    match (method, rest) {
        ("POST", []) => {
            let id = format!("sess_NEW{:08X}", sim.world.next());
            let session = json!({ "session_id": id, "status": "started", "started_at": now(), "ended_at": null, "expiration": null, "duration": 0, "metadata": body["metadata"] });
            sim.world.create("", session.clone());
            Reply::json(200, &json!({ "success": true, "session": session, "message": "Session created" }))
        }
        ("PUT" | "POST", [id, "end"]) => {
            sim.world.patch(id, vec![("/status".into(), "ended".into()), ("/ended_at".into(), now())]);
            match agenthuman::find(sim, id) {
                Some(session) => Reply::json(200, &json!({ "success": true, "session": session })),
                None => Reply::json(404, &json!({ "success": false, "error": { "message": "Session not found" } })),
            }
        }
        ("PUT", [id, "start"]) => {
            sim.world.patch(id, vec![("/status".into(), "started".into()), ("/started_at".into(), now())]);
            Reply::json(
                200,
                &json!({ "success": true, "ws_uri": "wss://sim/", "expiration": null, "message": "started" }),
            )
        }
        _ => Reply::new(404, String::new()),
    }
}

fn merge(into: &mut Value, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        into[name] = value.clone();
    }
}

/// Client credentials (RFC 6749, section 4.4), as both token endpoints take them: a form.
fn token(sim: &Sim, provider: &str, came: &Came) -> Reply {
    let form = Query::parse(&came.text);
    let known =
        form.get("client_id") == Some("sim-client") && form.get("client_secret") == Some(&*sim.options.client_secret);
    match form.get("grant_type") {
        Some("client_credentials") if known => {
            let token = sim.control.issue(provider, sim.options.token_seconds);
            Reply::json(
                200,
                &json!({ "access_token": token, "token_type": "bearer", "expires_in": sim.options.token_seconds }),
            )
        }
        Some("client_credentials") => Reply::json(401, &json!({ "error": "invalid_client" })),
        _ => Reply::json(400, &json!({ "error": "unsupported_grant_type" })),
    }
}

fn paced(text: &str) -> (u64, u64) {
    let (count, ms) = text.split_once(',').unwrap_or(("5", "50"));
    (count.trim().parse().unwrap_or(5), ms.trim().parse().unwrap_or(50))
}

fn streamed(status: u16, kind: &str, body: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = body.map(|bytes| Ok::<_, Abort>(Frame::data(bytes)));
    let response = Response::builder().status(status).header("content-type", kind).header("x-request-id", "sim");
    let body = StreamBody::new(Box::pin(frames)).boxed_unsync();
    response.body(body).unwrap_or_else(|_| Reply::new(500, String::new()).whole())
}

/// Text in pieces, each after a while.
fn pieces(
    (count, ms): (u64, u64),
    piece: impl Fn(u64) -> String + Send + 'static,
) -> impl futures_util::Stream<Item = Bytes> + Send + 'static {
    stream::unfold((0, piece), move |(n, piece)| async move {
        if n == count {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Some((Bytes::from(piece(n)), (n + 1, piece)))
    })
}

/// Server-sent events, as an agent's answer comes: its words, that they are all, and the end.
fn events(sim: &Arc<Sim>, pacing: &str) -> Response<Body> {
    let (sim, (count, ms)) = (sim.clone(), paced(pacing));
    streamed(
        201,
        "text/event-stream",
        pieces((count, ms), move |n| {
            let now = sim.world.time(sim.world.elapsed(), 3);
            let event = match count - n {
                1 => json!({ "type": "end" }),
                2 if n > 0 => json!({ "type": "streaming_agent_output_end", "event_id": "aev_1", "created_at": now }),
                _ => json!({ "type": "streaming_agent_output", "content": format!("word{n} "), "created_at": now }),
            };
            format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default())
        }),
    )
}

/// Chunks of markdown, which is not server-sent events.
fn markdown(pacing: &str) -> Response<Body> {
    streamed(200, "application/octet-stream", pieces(paced(pacing), |n| format!("word{n} ")))
}

/// `art_MEGABYTES`: so many, made up as they go.
fn download(id: &str) -> Response<Body> {
    let megabytes: u64 = id.strip_prefix("art_").and_then(|n| n.parse().ok()).unwrap_or(1);
    let chunk = Bytes::from((0..1 << 20).map(|n| mix(n).to_le_bytes()[0]).collect::<Vec<u8>>());
    streamed(200, "application/octet-stream", stream::iter((0..megabytes).map(move |_| chunk.clone())))
}
