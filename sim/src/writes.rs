//! Responds to requests other than reads of sessions: writes, streams, downloads and token requests.

use crate::http::{Abort, Body, Query, Reply, header};
use crate::simulator::Simulator;
use crate::streams::{self, Pace};
use crate::{agenthuman, palantir, tokens, vectara};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// The longest part of a request body that is kept, in bytes.
const MAX_KEPT_BODY: usize = 1 << 20;

/// A request body.
struct ReceivedBody {
    /// Null if the body is not JSON.
    json: Value,
    text: String,
    /// The length in bytes, also beyond `MAX_KEPT_BODY`.
    length: u64,
}

impl ReceivedBody {
    async fn read(mut body: Incoming) -> Result<Self, Abort> {
        let (mut kept, mut length) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Abort("the request body is incomplete"))?;
            if let Some(data) = frame.data_ref() {
                length += data.len() as u64;
                if kept.len() + data.len() <= MAX_KEPT_BODY {
                    kept.extend_from_slice(data);
                }
            }
        }
        let text = String::from_utf8_lossy(&kept).into_owned();
        Ok(Self { json: serde_json::from_str(&text).unwrap_or_default(), text, length })
    }
}

/// Responds to a request, or returns `None` if it is a read of sessions or addresses no provider.
pub(crate) async fn respond(
    sim: &Arc<Simulator>,
    parts: &Parts,
    segments: &[&str],
    query: &Query,
    body: Incoming,
) -> Result<Option<Response<Body>>, Abort> {
    if parts.method == Method::GET && !matches!(segments, [.., "artifacts", _] | [.., "events" | "content" | "usage"]) {
        return Ok(None);
    }
    let refusal = match segments {
        ["oauth2", "token"] | ["multipass", "api", "oauth2", "token"] => None,
        ["v2", ..] => vectara::refuse(sim, &parts.headers),
        ["api", ..] => palantir::refuse(sim, query, &parts.headers),
        ["v1", ..] => agenthuman::refuse(sim, &parts.headers),
        _ => return Ok(None),
    };
    if let Some(refusal) = refusal {
        return Ok(Some(refusal.into_response()));
    }
    let body = ReceivedBody::read(body).await?;
    let streamed = streamed(sim, parts, segments, &body);
    Ok(Some(streamed.unwrap_or_else(|| reply(sim, &parts.method, segments, &body).into_response())))
}

/// Returns the response to a request for a stream or a download; `None` for any other request.
fn streamed(sim: &Arc<Simulator>, parts: &Parts, segments: &[&str], body: &ReceivedBody) -> Option<Response<Body>> {
    let pace = || Pace::parse(header(&parts.headers, "x-sim-stream").unwrap_or_default());
    match (parts.method.as_str(), segments) {
        ("GET", ["v2", "agents", _, "sessions", _, "artifacts", id]) => Some(streams::artifact(id)),
        ("POST", ["v2", "agents", _, "sessions", _, "events"]) if body.json["stream_response"] == true => {
            Some(streams::server_sent_events(sim, pace()))
        }
        ("POST", ["api", "v2", "aipAgents", "agents", _, "sessions", _, "streamingContinue"]) => {
            Some(streams::markdown(pace()))
        }
        _ => None,
    }
}

/// Returns the reply to a token request, a write, or a read of something below a session.
fn reply(sim: &Arc<Simulator>, method: &Method, segments: &[&str], body: &ReceivedBody) -> Reply {
    match (method.as_str(), segments) {
        ("POST", ["oauth2", "token"]) => tokens::respond(sim, "vectara", &body.text),
        ("POST", ["multipass", "api", "oauth2", "token"]) => tokens::respond(sim, "palantir", &body.text),
        ("GET", ["v2", "agents", _, "sessions", _, "events"]) => {
            Reply::json(200, &json!({ "events": [], "metadata": {} }))
        }
        ("POST", ["v2", "agents", _, "sessions", session, "events"]) => {
            Reply::json(201, &json!({ "events": [], "session_key": session, "received_bytes": body.length }))
        }
        ("POST", ["api", "v2", "aipAgents", "agents", _, "sessions", _, "blockingContinue"]) => Reply::json(
            200,
            &json!({ "agentMarkdownResponse": "It is so.", "parameterUpdates": {}, "totalTokensUsed": 7, "interruptedOutput": false, "sessionTraceId": "12345678-0000-4000-8000-000000000001" }),
        ),
        ("GET", ["api", "v2", "aipAgents", "agents", _, "sessions", _, "content"]) => {
            Reply::json(200, &json!({ "exchanges": [] }))
        }
        ("GET", ["v1", "usage"]) => Reply::json(200, &json!({ "success": true, "usage": { "active_sessions": [] } })),
        (method, ["v2", "agents", agent, "sessions", rest @ ..]) => {
            vectara::write(sim, method, agent, rest, &body.json)
        }
        (method, ["api", "v2", "aipAgents", "agents", agent, "sessions", rest @ ..]) => {
            palantir::write(sim, method, agent, rest, &body.json)
        }
        (method, ["v1", "sessions", rest @ ..]) => agenthuman::write(sim, method, rest, &body.json),
        _ => Reply::new(404, String::new()),
    }
}
