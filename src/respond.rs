//! Answers as clients get them: headers of caching and limits, problems, and what is configured.
//!
//! A room of its own so that a header is set in one place. It decides nothing; it tells what was
//! decided.

use crate::conditional;
use crate::config::provider::Patterns;
use crate::dialect::Dialect;
use crate::error::{Code, Problem};
use crate::exchange::{Answer, Body, Request};
use crate::hops;
use crate::lines::Lines;
use crate::model::Time;
use crate::ratelimit::{Bucket, Refusal};
use crate::reading::etag;
use crate::route::Published;
use crate::runtime::snapshot::{Provider, Snapshot};
use crate::trace::{How, Trace};
use crate::viewer::{self, Document};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

/// Room for an answer's header fields.
const USUAL: usize = 640;

/// A body to answer with.
pub struct Content {
    /// The body.
    pub body: Body,
    /// Its strong entity tag.
    pub etag: Option<HeaderValue>,
    /// What it is, and for whom.
    pub media: Media,
}

/// What a body is, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// JSON for one client, which may keep it for as long as the cache says.
    Json,
    /// Of this type, and the same for everyone.
    Published(&'static str),
}

impl Content {
    /// JSON for one client.
    #[must_use]
    pub fn json(body: impl Into<Body>, etag: Option<HeaderValue>) -> Self {
        Self { body: body.into(), etag, media: Media::Json }
    }
}

/// 200, or 304 where the client has it already.
#[must_use]
pub fn content(request: &Request, content: Content, buckets: &[&Bucket], trace: &mut Trace, now: Time) -> Answer {
    let unchanged = content.etag.as_ref().and_then(|tag| tag.to_str().ok());
    let unchanged = unchanged.is_some_and(|tag| conditional::none_match(&request.headers, tag));
    let mut headers = Lines::with_capacity(USUAL);
    let media = match content.media {
        Media::Json => "application/json",
        Media::Published(media) => media,
    };
    if !unchanged {
        headers.push("content-type", media);
        headers.number("content-length", content.body.len() as u64);
    }
    if let Some(tag) = content.etag {
        headers.push("etag", tag);
    }
    match content.media {
        Media::Json => {
            caching(&mut headers, trace, now);
            common(&mut headers, buckets, trace, None);
        }
        Media::Published(media) => published(&mut headers, media, trace),
    }
    (trace.status, trace.bytes) = if unchanged { (304, 0) } else { (200, content.body.len()) };
    Answer { status: trace.status, headers, body: if unchanged { Body::default() } else { content.body } }
}

/// An answer with its explanation around it. What cannot carry a body comes as 200; the answer's own status is in it.
#[must_use]
pub fn explained(mut answer: Answer, body: Bytes, trace: &mut Trace) -> Answer {
    const REPLACED: [&str; 6] = ["content-type", "content-length", "cache-control", "etag", "age", "last-modified"];
    answer.headers.retain(|name| !REPLACED.contains(&name));
    answer.headers.push("content-type", "application/json");
    answer.headers.number("content-length", body.len() as u64);
    answer.headers.push("cache-control", "no-store");
    if matches!(answer.status, 204 | 304) {
        answer.status = 200;
    }
    (trace.status, trace.bytes) = (answer.status, body.len());
    Answer { body: body.into(), ..answer }
}

/// A problem, as `application/problem+json` (RFC 9457).
#[must_use]
pub fn problem(problem: &Problem, buckets: &[&Bucket], trace: &mut Trace, now: Time) -> Answer {
    let body = Bytes::from(problem.to_value(Some(&trace.request_id)).to_string());
    let mut headers = Lines::with_capacity(USUAL);
    headers.push("content-type", "application/problem+json");
    headers.number("content-length", body.len() as u64);
    headers.push("cache-control", "no-store");
    if let Some(seconds) = problem.retry_after {
        headers.number("retry-after", seconds);
    }
    if let Some(methods) = problem.allow {
        headers.push("allow", methods);
    }
    if problem.code == Code::Unauthorized {
        headers.push("www-authenticate", "Bearer realm=\"weir\"");
    }
    if let Some(status) = &trace.cache {
        headers.push("cache-status", status.header(now));
    }
    let violated = &problem.violated_policies;
    common(&mut headers, buckets, trace, violated.first().filter(|_| violated.len() == 1).zip(problem.retry_after));
    (trace.status, trace.bytes, trace.error) = (problem.code.status(), body.len(), Some(problem.code.as_str()));
    Answer { status: trace.status, headers, body: body.into() }
}

/// A problem for who speaks the provider's own language: the provider's own answer where it gave one, else
/// Weir's words in the provider's shape. Its refusal of Weir's credential is not the client's.
#[must_use]
pub fn native(
    problem: &Problem,
    dialect: Option<&Dialect>,
    buckets: &[&Bucket],
    trace: &mut Trace,
    now: Time,
) -> Answer {
    let theirs = problem.reply.as_deref().filter(|_| problem.code != Code::ProviderAuthFailed);
    let mut answer = self::problem(problem, buckets, trace, now);
    match (theirs, dialect) {
        (Some(reply), _) => {
            let mut theirs = reply.headers.clone();
            // Its body was read whole: how it came says nothing of how it goes.
            for name in hops::of_answer(&reply.headers).chain([header::TRANSFER_ENCODING, header::CONTENT_LENGTH]) {
                theirs.remove(name);
            }
            // Theirs in place of ours, which stay where they say nothing.
            let said = [header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER];
            answer.headers.retain(|name| !(said.iter().any(|said| said == name) && theirs.contains_key(name)));
            // An answer varies by what either says.
            let ours = |name: &HeaderName| *name != header::VARY && answer.headers.get(name.as_str()).is_some();
            let kept = theirs.iter().filter(|(name, _)| !ours(name));
            let kept: Vec<_> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
            answer.headers.extend(kept);
            (answer.status, answer.body) = (reply.status, reply.body.clone().into());
        }
        (None, Some(dialect)) => {
            let (body, headers) = dialect.render(problem, &trace.request_id);
            answer.headers.retain(|name| !matches!(name, "content-type" | "content-length"));
            answer.headers.push("content-type", "application/json");
            answer.headers.extend(headers);
            answer.body = Bytes::from(body).into();
        }
        (None, None) => return answer,
    }
    answer.headers.retain(|name| name != "content-length");
    answer.headers.number("content-length", answer.body.len() as u64);
    (trace.status, trace.bytes) = (answer.status, answer.body.len());
    answer
}

/// How an answer that is server-sent events begins.
#[must_use]
pub fn events(buckets: &[&Bucket], trace: &mut Trace) -> Answer {
    let mut headers = Lines::with_capacity(USUAL);
    headers.push("content-type", "text/event-stream");
    headers.push("cache-control", "no-store");
    common(&mut headers, buckets, trace, None);
    trace.status = 200;
    Answer { status: 200, headers, body: Body::default() }
}

/// 204: a browser that is answered so does not ask for events again (WHATWG HTML, section 9.2.3).
#[must_use]
pub fn nothing(buckets: &[&Bucket], trace: &mut Trace) -> Answer {
    let mut headers = Lines::with_capacity(USUAL);
    headers.push("cache-control", "no-store");
    common(&mut headers, buckets, trace, None);
    trace.status = 204;
    Answer { status: 204, headers, body: Body::default() }
}

/// The answer to a browser that asks whether it may ask.
#[must_use]
pub fn preflight(told: Vec<(HeaderName, HeaderValue)>, trace: &mut Trace) -> Answer {
    let mut headers = Lines::with_capacity(USUAL);
    headers.extend(told);
    headers.push("x-request-id", &trace.request_id);
    trace.status = 204;
    Answer { status: 204, headers, body: Body::default() }
}

/// What an answer that is passed on carries of Weir's own.
#[must_use]
pub fn passed(buckets: &[&Bucket], trace: &Trace, cache_status: &'static str) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Lines::with_capacity(USUAL);
    headers.push("cache-status", cache_status);
    common(&mut headers, buckets, trace, None);
    // How the provider's own vary is the provider's to say.
    let ours = headers.iter().filter(|(name, _)| !matches!(*name, "vary" | "x-content-type-options"));
    let typed = |(name, value): (&str, &[u8])| Some((name.parse().ok()?, HeaderValue::from_bytes(value).ok()?));
    ours.filter_map(typed).collect()
}

/// What is the same for everyone may be kept by everyone. A page runs nothing and asks nobody but this host.
fn published(headers: &mut Lines, media: &str, trace: &Trace) {
    headers.push("cache-control", "public, max-age=300");
    headers.push("x-content-type-options", "nosniff");
    headers.push("x-request-id", &trace.request_id);
    if media.starts_with("text/html") {
        headers.push("content-security-policy", viewer::POLICY);
        headers.push("referrer-policy", "no-referrer");
    }
}

/// `Cache-Control`, `Age` and `Cache-Status` (RFC 9111, RFC 9211).
fn caching(headers: &mut Lines, trace: &Trace, now: Time) {
    let Some(status) = &trace.cache else {
        headers.push("cache-control", "no-store");
        return;
    };
    if let Some(life) = status.life {
        let lifetime = life.max_age().as_secs();
        headers.field("cache-control", |value| {
            value.extend_from_slice(b"private, max-age=");
            value.extend_from_slice(itoa::Buffer::new().format(lifetime).as_bytes());
        });
        let (age, asked) = (life.age(now).as_secs(), matches!(status.how, How::Forwarded { collapsed: false, .. }));
        if !asked || age > 0 {
            headers.number("age", age);
        }
    } else {
        headers.push("cache-control", "no-store");
    }
    headers.push("cache-status", status.header(now));
}

/// What every answer carries. `refused` is the policy that refused, and its `Retry-After`.
fn common(headers: &mut Lines, buckets: &[&Bucket], trace: &Trace, refused: Option<(&String, u64)>) {
    headers.push("vary", &trace.vary);
    headers.push("x-content-type-options", "nosniff");
    headers.push("x-request-id", &trace.request_id);
    if buckets.is_empty() {
        return;
    }
    headers.field("ratelimit-policy", |value| {
        for (number, bucket) in buckets.iter().enumerate() {
            value.extend_from_slice(if number > 0 { b", " } else { b"" });
            value.extend_from_slice(bucket.limiter.told.as_bytes());
        }
    });
    headers.field("ratelimit", |value| {
        for (number, bucket) in buckets.iter().enumerate() {
            let policy = &bucket.limiter.policy;
            let now = bucket.left();
            let next = u64::try_from(now.next_in.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX);
            // The same second as in Retry-After, though a moment has passed.
            let next = refused.filter(|(name, _)| **name == policy.name).map_or(next, |(_, seconds)| seconds);
            let (mut remaining, mut seconds) = (itoa::Buffer::new(), itoa::Buffer::new());
            let comma = if number == 0 { "\"" } else { ", \"" };
            let parts = [comma, &policy.name, "\";r=", remaining.format(now.remaining), ";t=", seconds.format(next)];
            parts.iter().for_each(|part| value.extend_from_slice(part.as_bytes()));
        }
    });
}

/// 429 for a client over its policies, 400 for a request that can never be admitted.
#[must_use]
pub fn refusal(client: &str, buckets: &[&Bucket], refusal: Refusal) -> Box<Problem> {
    let (names, wait) = match refusal {
        Refusal::TooCostly { policy, burst } => {
            return Box::new(Problem::invalid(format!(
                "this request costs more than the burst ({burst}) of policy {policy:?}; ask for less at once"
            )));
        }
        Refusal::Limited { policies, retry_after } => (policies, retry_after),
    };
    let described: Vec<String> = names
        .iter()
        .filter_map(|name| buckets.iter().map(|b| &b.limiter.policy).find(|policy| policy.name == *name))
        .map(|p| {
            format!("policy {:?} ({} requests per {} s, burst {})", p.name, p.requests, p.per.as_secs_f64(), p.burst)
        })
        .collect();
    let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let mut problem = Problem::new(Code::RateLimitExceeded, String::new()).retry_after_ms(ms);
    let seconds = problem.retry_after.unwrap_or(1);
    problem.detail = format!("Client {client:?} is over its {}; try again in {seconds} s.", described.join(" and "));
    problem.violated_policies = names;
    Box::new(problem)
}

/// What is the same for everyone.
#[must_use]
pub fn publish(snapshot: &Snapshot, what: Published) -> Content {
    let document: &Document = match what {
        Published::Description => &snapshot.description,
        Published::Reader => viewer::page(),
        Published::File(name) => viewer::file(name),
    };
    let media = Media::Published(document.media);
    Content { body: document.body.clone().into(), etag: Some(document.etag.clone()), media }
}

/// `GET /v1/providers`: what this client may use, and how it is.
#[must_use]
pub fn providers(snapshot: &Snapshot, client: usize, now: Time) -> Content {
    let access = &snapshot.clients[client].access;
    let rows: Vec<Value> = snapshot
        .providers
        .iter()
        .zip(access)
        .filter_map(|(provider, access)| access.as_ref().map(|access| (provider, access)))
        .map(|(provider, access)| {
            let pause = access.tap.closed_until(now);
            let open = provider.breaker.open_until(now);
            let state = if open.is_some() {
                "down"
            } else if pause.is_some() {
                "degraded"
            } else {
                "ok"
            };
            json!({
                "name": &*provider.name,
                "operations": operations(provider),
                "agents": provider.ids.accept.agent.is_some(),
                "ids": { "recognise": patterns(&provider.ids.recognise), "accept": patterns(&provider.ids.accept) },
                "state": state,
                "retry_at": open.max(pause).map(Time::rfc3339),
            })
        })
        .collect();
    let body = Bytes::from(json!({ "providers": rows }).to_string());
    Content::json(body.clone(), Some(etag(&body)))
}

fn operations(provider: &Provider) -> Vec<&'static str> {
    [&provider.get_session, &provider.list_sessions].into_iter().flatten().map(|operation| operation.name).collect()
}

fn patterns(patterns: &Patterns) -> Value {
    let text = |at: &Option<crate::config::faults::At<String>>| at.as_ref().map(|at| at.value.clone());
    json!({ "agent": text(&patterns.agent), "session": text(&patterns.session) })
}
