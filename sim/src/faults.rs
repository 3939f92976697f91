//! Plans faults: delays, other responses and broken connections.
//!
//! `POST /_sim/faults` plans one for all calls whose path and query contain `path`:
//!
//! ```json
//! {"path": "part of a path and query", "times": 3, "latency_ms": 50, "fault": {"kind": "reset"}}
//! ```
//!
//! `times` is the number of calls; without it, the plan stays until `DELETE /_sim/faults`. `"if_header": {"name": "value"}`
//! restricts the plan to calls with these headers. Without `fault`, a plan is a delay only. The same object in the request
//! header `x-sim-fault` is a plan for that request alone.

use crate::http::{Abort, Body, Reply};
use crate::sync::lock;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Response};
use serde_json::Value;
use std::sync::Mutex;
use std::time::Duration;

const DEFAULT_DRIP: Duration = Duration::from_millis(100);
const DEFAULT_OVERSIZE: usize = 5 << 20;
/// How long after the first half of a truncated body the connection ends, so that the first half is sent.
const TRUNCATE_AFTER: Duration = Duration::from_millis(20);

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// A part of the path and query of the calls.
    path: String,
    /// Headers that a call must have.
    if_header: Vec<(String, String)>,
    /// The number of calls left; `None`: no limit.
    times: Option<u64>,
    pub(crate) latency: Duration,
    pub(crate) fault: Option<Fault>,
}

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Another response.
    Response { status: u16, headers: Vec<(String, String)>, body: String },
    /// The connection ends before the response.
    Reset,
    /// The connection ends in the middle of the body.
    Truncate,
    /// Headers, and then nothing.
    Hang,
    /// The body one byte at a time, with this interval.
    Drip(Duration),
    /// A body of this many bytes.
    Oversize(usize),
}

impl Plan {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let fault = &value["fault"];
        let number = |name: &str| fault[name].as_u64();
        let fault = match fault["kind"].as_str() {
            None => None,
            Some("answer") => Some(Fault::Response {
                status: number("status").and_then(|status| u16::try_from(status).ok()).unwrap_or(200),
                headers: string_members(&fault["headers"]),
                body: match &fault["body"] {
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => other.to_string(),
                },
            }),
            Some("reset") => Some(Fault::Reset),
            Some("truncate") => Some(Fault::Truncate),
            Some("hang") => Some(Fault::Hang),
            Some("drip") => Some(Fault::Drip(number("ms").map_or(DEFAULT_DRIP, Duration::from_millis))),
            Some("oversize") => {
                let bytes = number("bytes").and_then(|bytes| usize::try_from(bytes).ok());
                Some(Fault::Oversize(bytes.unwrap_or(DEFAULT_OVERSIZE)))
            }
            Some(other) => return Err(format!("unknown fault kind {other:?}")),
        };
        Ok(Self {
            path: value["path"].as_str().unwrap_or_default().to_owned(),
            if_header: string_members(&value["if_header"]),
            times: value["times"].as_u64(),
            latency: Duration::from_millis(value["latency_ms"].as_u64().unwrap_or(0)),
            fault,
        })
    }

    fn applies_to(&self, target: &str, headers: &HeaderMap) -> bool {
        let has = |(name, value): &(String, String)| headers.get(name).is_some_and(|known| known == value);
        target.contains(&self.path) && self.if_header.iter().all(has)
    }
}

fn string_members(object: &Value) -> Vec<(String, String)> {
    let members = object.as_object().into_iter().flatten();
    members.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// The plans, oldest first.
#[derive(Default)]
pub(crate) struct Plans(Mutex<Vec<Plan>>);

impl Plans {
    pub(crate) fn add(&self, plan: Plan) {
        lock(&self.0).push(plan);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Returns the oldest plan for this call. Counts the call, and removes a plan with no calls left.
    pub(crate) fn take(&self, target: &str, headers: &HeaderMap) -> Option<Plan> {
        let mut plans = lock(&self.0);
        let at = plans.iter().position(|plan| plan.applies_to(target, headers))?;
        let plan = plans[at].clone();
        if let Some(times) = &mut plans[at].times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                plans.remove(at);
            }
        }
        Some(plan)
    }
}

impl Fault {
    /// Returns the response with this fault. An error ends the connection.
    pub(crate) fn apply(self, mut reply: Reply) -> Result<Response<Body>, Abort> {
        match self {
            Self::Response { status, headers, body } => {
                let mut planned = Reply::new(status, body);
                for (name, value) in headers {
                    planned.headers.retain(|(known, _)| *known != name);
                    planned.headers.push((name, value));
                }
                Ok(planned.into_response())
            }
            Self::Reset => Err(Abort("planned reset")),
            Self::Truncate => Ok(truncated(reply)),
            Self::Hang => {
                let never = stream::pending::<Result<Frame<Bytes>, Abort>>();
                Ok(with_length(reply).with_body(StreamBody::new(never).boxed_unsync()))
            }
            Self::Drip(interval) => Ok(dripped(reply, interval)),
            Self::Oversize(bytes) => {
                reply.body = vec![b' '; bytes].into();
                Ok(reply.into_response())
            }
        }
    }
}

/// Adds Content-Length for the whole body, whose later bytes a fault delays or omits.
fn with_length(mut reply: Reply) -> Reply {
    reply.headers.push(("content-length".into(), reply.body.len().to_string()));
    reply
}

fn truncated(reply: Reply) -> Response<Body> {
    let first_half = reply.body.slice(..reply.body.len() / 2);
    let frames: [Result<Frame<Bytes>, Abort>; 2] = [Ok(Frame::data(first_half)), Err(Abort("planned truncation"))];
    let frames = stream::unfold(frames.into_iter(), |mut frames| async {
        let frame = frames.next()?;
        if frame.is_err() {
            tokio::time::sleep(TRUNCATE_AFTER).await;
        }
        Some((frame, frames))
    });
    with_length(reply).with_body(StreamBody::new(Box::pin(frames)).boxed_unsync())
}

fn dripped(reply: Reply, interval: Duration) -> Response<Body> {
    let body = reply.body.clone();
    let bytes = stream::unfold(0, move |at| {
        let body = body.clone();
        async move {
            if at == body.len() {
                return None;
            }
            tokio::time::sleep(interval).await;
            Some((Ok::<_, Abort>(Frame::data(body.slice(at..=at))), at + 1))
        }
    });
    with_length(reply).with_body(StreamBody::new(Box::pin(bytes)).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::{Plan, Plans};
    use hyper::HeaderMap;

    #[test]
    fn a_plan_ends_after_its_number_of_calls() {
        let plans = Plans::default();
        plans.add(Plan::parse(br#"{"path": "agents", "times": 2, "fault": {"kind": "reset"}}"#).unwrap());
        let take = |path| plans.take(path, &HeaderMap::new()).is_some();
        assert_eq!(
            [take("/v2/agents"), take("/v1/sessions"), take("/v2/agents"), take("/v2/agents")],
            [true, false, true, false]
        );
    }

    #[test]
    fn a_plan_with_an_unknown_fault_is_refused() {
        assert_eq!(Plan::parse(br#"{"fault": {"kind": "x"}}"#).unwrap_err(), "unknown fault kind \"x\"");
    }
}
