//! Creates streamed responses: server-sent events, markdown chunks and artifacts.

use crate::http::{Abort, Body, Reply};
use crate::simulator::Simulator;
use crate::world::pseudo_random;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// How many parts a stream has, and the time before each.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    count: u64,
    interval: Duration,
}

impl Pace {
    /// Parses the request header `x-sim-stream: COUNT,MILLISECONDS`.
    pub(crate) fn parse(text: &str) -> Self {
        let (count, milliseconds) = text.split_once(',').unwrap_or(("5", "50"));
        let milliseconds = milliseconds.trim().parse().unwrap_or(50);
        Self { count: count.trim().parse().unwrap_or(5), interval: Duration::from_millis(milliseconds) }
    }
}

/// Streams an agent's output as server-sent events: its words, the end of the output, and the end of the stream.
pub(crate) fn server_sent_events(sim: &Arc<Simulator>, pace: Pace) -> Response<Body> {
    let sim = sim.clone();
    let event = move |n| {
        let now = sim.world.time(sim.world.elapsed(), 3);
        let event = match pace.count - n {
            1 => json!({ "type": "end" }),
            2 if n > 0 => json!({ "type": "streaming_agent_output_end", "event_id": "aev_1", "created_at": now }),
            _ => json!({ "type": "streaming_agent_output", "content": format!("word{n} "), "created_at": now }),
        };
        format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default())
    };
    streamed(201, "text/event-stream", parts(pace, event))
}

/// Streams markdown in chunks, without events.
pub(crate) fn markdown(pace: Pace) -> Response<Body> {
    streamed(200, "application/octet-stream", parts(pace, |n| format!("word{n} ")))
}

/// Streams an artifact; `art_5` has 5 MiB.
pub(crate) fn artifact(id: &str) -> Response<Body> {
    let chunks: u64 = id.strip_prefix("art_").and_then(|n| n.parse().ok()).unwrap_or(1);
    let chunk = Bytes::from((0..MIB).map(|n| pseudo_random(n).to_le_bytes()[0]).collect::<Vec<u8>>());
    streamed(200, "application/octet-stream", stream::iter((0..chunks).map(move |_| chunk.clone())))
}

fn parts(pace: Pace, part: impl Fn(u64) -> String + Send + 'static) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::unfold((0, part), move |(n, part)| async move {
        if n == pace.count {
            return None;
        }
        tokio::time::sleep(pace.interval).await;
        Some((Bytes::from(part(n)), (n + 1, part)))
    })
}

fn streamed(status: u16, content_type: &str, body: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = body.map(|bytes| Ok::<_, Abort>(Frame::data(bytes)));
    let body = StreamBody::new(Box::pin(frames)).boxed_unsync();
    let response = Response::builder().status(status).header("content-type", content_type);
    let response = response.header("x-request-id", "sim").body(body);
    response.unwrap_or_else(|_| Reply::new(500, String::new()).into_response())
}
