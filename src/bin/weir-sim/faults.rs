//! Misbehaviour on request, and the control endpoint under `/_sim/`.
//!
//! `POST /_sim/faults` plans one: `{"path": "part of a path", "times": 3, "latency_ms": 50, "fault": {…}}`,
//! with `"if_header": {"name": "value"}` for calls alone that have these headers;
//! `DELETE /_sim/faults` forgets all. `GET /_sim/calls` counts calls by path; `DELETE` starts again.
//! The same object in the request header `x-sim-fault` is for that request alone.

use crate::{Abort, Reply};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Method, Response, Version};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub(crate) type Body = UnsyncBoxBody<Bytes, Abort>;

/// What to do to answers.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    path: String,
    /// Headers that a call must have.
    if_header: Vec<(String, String)>,
    /// `None`: until forgotten.
    times: Option<u64>,
    pub(crate) latency_ms: u64,
    pub(crate) fault: Fault,
}

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The answer as it would be.
    None,
    /// Another status, with headers and body as told.
    Answer { status: u16, headers: Vec<(String, String)>, body: String },
    /// The connection ends before any answer.
    Reset,
    /// The connection ends inside the body.
    Truncate,
    /// Headers, and then nothing.
    Hang,
    /// One byte every so many milliseconds.
    Drip(u64),
    /// A body of this many bytes.
    Oversize(usize),
}

impl<'de> serde::Deserialize<'de> for Planned {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let fault = &value["fault"];
        let number = |name: &str| fault[name].as_u64();
        let fault = match fault["kind"].as_str() {
            None => Fault::None,
            Some("answer") => Fault::Answer {
                status: number("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(200),
                headers: pairs(&fault["headers"]),
                body: match &fault["body"] {
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => other.to_string(),
                },
            },
            Some("reset") => Fault::Reset,
            Some("truncate") => Fault::Truncate,
            Some("hang") => Fault::Hang,
            Some("drip") => Fault::Drip(number("ms").unwrap_or(100)),
            Some("oversize") => {
                Fault::Oversize(number("bytes").and_then(|b| usize::try_from(b).ok()).unwrap_or(5 << 20))
            }
            Some(other) => return Err(serde::de::Error::custom(format!("no fault {other:?}"))),
        };
        Ok(Self {
            path: value["path"].as_str().unwrap_or_default().to_owned(),
            if_header: pairs(&value["if_header"]),
            times: value["times"].as_u64(),
            latency_ms: value["latency_ms"].as_u64().unwrap_or(0),
            fault,
        })
    }
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let members = value.as_object().into_iter().flatten();
    members.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Plans and counts.
#[derive(Default)]
pub(crate) struct Control {
    planned: Mutex<Vec<Planned>>,
    calls: Mutex<BTreeMap<String, u64>>,
    versions: Mutex<BTreeMap<String, u64>>,
    refuse_tls: std::sync::atomic::AtomicBool,
    /// Tokens handed out: whose, and until when.
    tokens: Mutex<BTreeMap<String, (String, Instant)>>,
    issued: std::sync::atomic::AtomicU64,
    /// Minute and calls in it, by the first part of the path: that tells the provider.
    windows: Mutex<BTreeMap<String, (u64, u64)>>,
}

/// Where a call stands in its provider's minute.
pub(crate) enum Window {
    Unlimited,
    Within { left: u64, resets: u64 },
    Over { resets: u64 },
}

impl Control {
    pub(crate) fn handle(&self, method: &Method, path: &str, body: &[u8]) -> Response<Body> {
        let (status, answer) = match (method.as_str(), path) {
            ("POST", "/_sim/faults") => match serde_json::from_slice::<Planned>(body) {
                Ok(planned) => {
                    lock(&self.planned).push(planned);
                    (200, json!({}))
                }
                Err(error) => (400, json!({ "error": error.to_string() })),
            },
            ("DELETE", "/_sim/faults") => {
                lock(&self.planned).clear();
                self.refuse_tls.store(false, std::sync::atomic::Ordering::SeqCst);
                (200, json!({}))
            }
            ("POST", "/_sim/refuse-tls") => {
                self.refuse_tls
                    .store(serde_json::from_slice::<IgnoredAny>(body).is_ok(), std::sync::atomic::Ordering::SeqCst);
                (200, json!({}))
            }
            ("DELETE", "/_sim/tokens") => {
                lock(&self.tokens).clear();
                (200, json!({}))
            }
            ("GET", "/_sim/calls") => {
                let calls = lock(&self.calls).clone();
                (
                    200,
                    json!({ "total": calls.values().sum::<u64>(), "calls": calls, "versions": *lock(&self.versions) }),
                )
            }
            ("DELETE", "/_sim/calls") => {
                lock(&self.calls).clear();
                lock(&self.versions).clear();
                (200, json!({}))
            }
            _ => (404, json!({ "error": "there are /_sim/faults and /_sim/calls" })),
        };
        Reply::json(status, &answer).whole()
    }

    /// Hands out a token that is good for so many seconds.
    pub(crate) fn issue(&self, provider: &str, seconds: u64) -> String {
        let number = self.issued.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        let token = format!("sim-issued-{number}");
        lock(&self.tokens).insert(token.clone(), (provider.to_owned(), Instant::now() + Duration::from_secs(seconds)));
        token
    }

    pub(crate) fn is_token(&self, provider: &str, authorization: Option<&str>) -> bool {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let tokens = lock(&self.tokens);
        token.and_then(|token| tokens.get(token)).is_some_and(|(of, until)| of == provider && Instant::now() < *until)
    }

    pub(crate) fn count(&self, method: &Method, target: &str, version: Version) {
        *lock(&self.calls).entry(format!("{method} {target}")).or_default() += 1;
        *lock(&self.versions).entry(format!("{version:?}")).or_default() += 1;
    }

    /// Counts a call in its provider's minute.
    pub(crate) fn window(&self, path: &str, limit: u64) -> Window {
        if limit == 0 {
            return Window::Unlimited;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let minute = now.as_secs() / 60;
        let provider = path.split('/').nth(1).unwrap_or_default().to_owned();
        let mut windows = lock(&self.windows);
        let window = windows.entry(provider).or_default();
        *window = if window.0 == minute { (minute, window.1 + 1) } else { (minute, 1) };
        let resets = (minute + 1) * 60;
        match limit.checked_sub(window.1) {
            Some(left) => Window::Within { left, resets },
            None => Window::Over { resets },
        }
    }

    pub(crate) fn refuses_tls(&self) -> bool {
        self.refuse_tls.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// The first plan for this call; one that is used up is forgotten.
    pub(crate) fn planned(&self, path: &str, headers: &HeaderMap) -> Option<Planned> {
        let mut all = lock(&self.planned);
        let has = |(name, value): &(String, String)| headers.get(name).is_some_and(|known| known == value);
        let at = all.iter().position(|planned| path.contains(&planned.path) && planned.if_header.iter().all(has))?;
        let planned = all[at].clone();
        if let Some(times) = &mut all[at].times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                all.remove(at);
            }
        }
        Some(planned)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Reply {
    /// The answer, whole.
    pub(crate) fn whole(self) -> Response<Body> {
        let body = Full::new(self.body.clone()).map_err(|never| match never {}).boxed_unsync();
        self.with(body)
    }

    fn with(self, body: Body) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        response
            .body(body)
            .unwrap_or_else(|_| Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()))
    }
}

/// The answer with a fault in it. `Err` ends the connection.
pub(crate) async fn misbehave(fault: Fault, mut reply: Reply) -> Result<Response<Body>, Abort> {
    let length = reply.body.len();
    match fault {
        Fault::None => Ok(reply.whole()),
        Fault::Answer { status, headers, body } => {
            let mut told = Reply::new(status, body);
            for (name, value) in headers {
                told.headers.retain(|(known, _)| *known != name);
                told.headers.push((name, value));
            }
            Ok(told.whole())
        }
        Fault::Reset => Err(Abort("told to reset")),
        Fault::Truncate => {
            reply.headers.push(("content-length".into(), length.to_string()));
            let half = reply.body.slice(..length / 2);
            let frames: Vec<Result<Frame<Bytes>, Abort>> = vec![Ok(Frame::data(half)), Err(Abort("told to truncate"))];
            // The first half must be on its way before the connection ends.
            let paced = stream::unfold(frames.into_iter(), |mut frames| async {
                let frame = frames.next()?;
                if frame.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Some((frame, frames))
            });
            Ok(reply.with(StreamBody::new(Box::pin(paced)).boxed_unsync()))
        }
        Fault::Hang => {
            reply.headers.push(("content-length".into(), length.to_string()));
            let never = stream::pending::<Result<Frame<Bytes>, Abort>>();
            Ok(reply.with(StreamBody::new(never).boxed_unsync()))
        }
        Fault::Drip(ms) => {
            reply.headers.push(("content-length".into(), length.to_string()));
            let body = reply.body.clone();
            let drops = stream::unfold(0, move |at| {
                let body = body.clone();
                async move {
                    if at == body.len() {
                        return None;
                    }
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    Some((Ok::<_, Abort>(Frame::data(body.slice(at..=at))), at + 1))
                }
            });
            Ok(reply.with(StreamBody::new(Box::pin(drops)).boxed_unsync()))
        }
        Fault::Oversize(bytes) => {
            reply.body = vec![b' '; bytes].into();
            Ok(reply.whole())
        }
    }
}
