//! Makes the responses that clients get: caching and rate-limit headers, problems, and the list of providers.
//!
//! Nothing here decides how a request is handled. CORS headers come from `rules::cors`.

use crate::base::content_coding::ContentCoding;
use crate::base::ids::ClientId;
use crate::base::model::{Time, View};
use crate::base::problem::{Code, Problem};
use crate::base::request_reply::{Body, ProviderReply, Request, Response};
use crate::base::response_headers::ResponseHeaders;
use crate::config::provider::IdPatterns;
use crate::engine::cache::Key;
use crate::engine::rate_limit::Bucket;
use crate::engine::request_record::{CacheOutcome, RequestRecord};
use crate::rules::cache_control;
use crate::rules::hop_by_hop;
use crate::rules::native_errors::{ErrorValues, NativeErrors};
use crate::rules::provider_body::etag;
use crate::rules::route::DocumentKind;
use crate::rules::swagger_ui::{self, PublicDocument};
use crate::runtime::snapshot::{Provider, Snapshot};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Value, json};
use std::sync::Arc;

/// The usual size of a response's header fields, in bytes.
const HEADER_CAPACITY: usize = 640;

/// A response body and the data for its headers.
pub(crate) struct Content {
    /// The body.
    pub body: Body,
    /// Its strong entity tag.
    pub etag: Option<HeaderValue>,
    /// Its media type, and who may cache it.
    pub media: Media,
    /// Whether it may be compressed.
    pub compressible: Compressible,
    /// The content coding of the body; `None` without one.
    pub coding: Option<ContentCoding>,
    /// The provider's headers of a native list, which say how it goes on.
    pub headers: HeaderMap,
}

/// Whether a body may be compressed, and what keeps its compressed forms.
pub(crate) enum Compressible {
    /// It may not.
    No,
    /// It may, and nothing keeps its forms.
    Once,
    /// It is this view of the cache entry with this key.
    View(Arc<View>, Key),
    /// It is this document.
    Document(DocumentKind),
}

/// The media type of a body, and who may cache it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    /// JSON for one client, which may cache it for the lifetime of the cache entry.
    Json,
    /// This media type, the same for every client.
    Public(&'static str),
}

impl Content {
    /// Returns JSON for one client, which is never compressed.
    #[must_use]
    pub(crate) fn json(body: impl Into<Body>, etag: Option<HeaderValue>) -> Self {
        Self {
            body: body.into(),
            etag,
            media: Media::Json,
            compressible: Compressible::No,
            coding: None,
            headers: HeaderMap::new(),
        }
    }

    /// Lets the body be compressed, unless it can show secrets: the length of a compressed body says something about them.
    #[must_use]
    pub(crate) fn compressible(mut self, how: Compressible, shows_secrets: bool) -> Self {
        if !shows_secrets {
            self.compressible = how;
        }
        self
    }
}

/// Returns 200, or 304 if the client has this body already.
#[must_use]
pub(crate) fn content(
    request: &Request,
    content: Content,
    buckets: &[&Bucket],
    record: &mut RequestRecord,
    now: Time,
) -> Response {
    let unchanged = content.etag.as_ref().and_then(|tag| tag.to_str().ok());
    // 304 exists for GET and HEAD only (RFC 9110, section 13.1.2).
    let unchanged = request.form.is_none()
        && unchanged.is_some_and(|tag| cache_control::if_none_match_contains(&request.headers, tag));
    let mut headers = ResponseHeaders::with_capacity(HEADER_CAPACITY);
    let media = match content.media {
        Media::Json => "application/json",
        Media::Public(media) => media,
    };
    if !unchanged {
        headers.push("content-type", media);
        headers.number("content-length", content.body.len() as u64);
        if let Some(coding) = content.coding {
            headers.push("content-encoding", coding.as_str());
        }
    }
    if let Some(tag) = content.etag {
        headers.push("etag", tag);
    }
    headers.extend(content.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    match content.media {
        Media::Json => {
            add_cache_headers(&mut headers, record, now);
            add_common_headers(&mut headers, buckets, record, None);
        }
        Media::Public(media) => add_public_headers(&mut headers, media, record),
    }
    record.status = if unchanged { 304 } else { 200 };
    Response { status: record.status, headers, body: if unchanged { Body::default() } else { content.body } }
}

/// Replaces the body of a response by `body`, which contains the original response and its explanation. A status that
/// allows no body becomes 200; `body` contains the original status.
#[must_use]
pub(crate) fn explained(mut response: Response, body: Body, record: &mut RequestRecord) -> Response {
    const REPLACED: [&str; 6] = ["content-type", "content-length", "cache-control", "etag", "age", "last-modified"];
    response.headers.retain(|name| !REPLACED.contains(&name));
    response.headers.push("content-type", "application/json");
    response.headers.number("content-length", body.len() as u64);
    response.headers.push("cache-control", "no-store");
    if matches!(response.status, 204 | 304) {
        response.status = 200;
    }
    record.status = response.status;
    Response { body, ..response }
}

/// Returns a problem as `application/problem+json` (RFC 9457).
#[must_use]
pub(crate) fn problem(problem: &Problem, buckets: &[&Bucket], record: &mut RequestRecord, now: Time) -> Response {
    let body = Bytes::from(problem.to_value(Some(&record.request_id)).to_string());
    record.varies_by_coding = false;
    let mut headers = ResponseHeaders::with_capacity(HEADER_CAPACITY);
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
    if let Some(status) = &record.cache {
        headers.push("cache-status", status.header(now));
    }
    let violated = &problem.violated_policies;
    let refused = match (violated.as_slice(), problem.retry_after) {
        ([name], Some(retry_after)) => Some(RefusedPolicy { name, retry_after }),
        _ => None,
    };
    add_common_headers(&mut headers, buckets, record, refused.as_ref());
    (record.status, record.error) = (problem.code.status(), Some(problem.code.as_str()));
    Response { status: record.status, headers, body: body.into() }
}

/// Removes the body, so that an HTTP/2 response needs no window and no memory.
#[must_use]
pub(crate) fn without_body(mut response: Response) -> Response {
    response.headers.retain(|name| !matches!(name, "content-type" | "content-length"));
    response.headers.number("content-length", 0);
    Response { body: Body::default(), ..response }
}

/// Returns a problem to a native client: the provider's response if there is one, otherwise Weir's problem in the format of
/// the provider's errors. If the provider refused Weir's credential, the client gets Weir's problem.
#[must_use]
pub(crate) fn native(
    problem: &Problem,
    native_errors: Option<&NativeErrors>,
    buckets: &[&Bucket],
    record: &mut RequestRecord,
    now: Time,
) -> Response {
    // Weir sends its request without a condition here, so a 304 is the provider's mistake. The client may have no body.
    let passes = |reply: &&ProviderReply| problem.code != Code::ProviderAuthFailed && reply.status != 304;
    let reply = problem.reply.as_deref().filter(passes);
    let mut response = self::problem(problem, buckets, record, now);
    match (reply, native_errors) {
        (Some(reply), _) => {
            let mut provider_headers = reply.headers.clone();
            // Weir has read the whole body, so the framing of the provider's response does not apply.
            for name in
                hop_by_hop::of_response(&reply.headers).chain([header::TRANSFER_ENCODING, header::CONTENT_LENGTH])
            {
                provider_headers.remove(name);
            }
            // The provider's values replace Weir's.
            let replaced = [header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER];
            response.headers.retain(|name| {
                // Weir's media type is the one of its problem, which the provider's body is not.
                name != "content-type"
                    && !(replaced.iter().any(|replaced| replaced == name) && provider_headers.contains_key(name))
            });
            // Other headers keep Weir's value. `Vary` gets both values.
            let is_set = |name: &HeaderName| *name != header::VARY && response.headers.get(name.as_str()).is_some();
            let missing = provider_headers.iter().filter(|(name, _)| !is_set(name));
            let added: Vec<_> = missing.map(|(name, value)| (name.clone(), value.clone())).collect();
            response.headers.extend(added);
            (response.status, response.body) = (reply.status, reply.body.clone().into());
        }
        (None, Some(native_errors)) => {
            let (code, retry_after) = (problem.code, problem.retry_after);
            let values = ErrorValues { code, detail: &problem.detail, retry_after, request_id: &record.request_id };
            let (body, headers) = native_errors.render(values);
            response.headers.retain(|name| !matches!(name, "content-type" | "content-length"));
            response.headers.push("content-type", "application/json");
            response.headers.extend(headers);
            response.body = Bytes::from(body).into();
        }
        (None, None) => return response,
    }
    response.headers.retain(|name| name != "content-length");
    if response.status == 204 {
        // A 204 has neither a body nor a length (RFC 9110, section 8.6).
        response.body = Body::default();
    } else {
        response.headers.number("content-length", response.body.len() as u64);
    }
    record.status = response.status;
    response
}

/// Returns the head of a response whose body is server-sent events.
#[must_use]
pub(crate) fn events(buckets: &[&Bucket], record: &mut RequestRecord) -> Response {
    let mut headers = ResponseHeaders::with_capacity(HEADER_CAPACITY);
    headers.push("content-type", "text/event-stream");
    headers.push("cache-control", "no-store");
    add_common_headers(&mut headers, buckets, record, None);
    record.status = 200;
    Response { status: 200, headers, body: Body::default() }
}

/// Returns 204. It stops an `EventSource` from reconnecting (WHATWG HTML, section 9.2.3).
#[must_use]
pub(crate) fn no_content(buckets: &[&Bucket], record: &mut RequestRecord) -> Response {
    let mut headers = ResponseHeaders::with_capacity(HEADER_CAPACITY);
    headers.push("cache-control", "no-store");
    add_common_headers(&mut headers, buckets, record, None);
    record.status = 204;
    Response { status: 204, headers, body: Body::default() }
}

/// Returns the response to an `OPTIONS` request whose `Max-Forwards` is 0.
#[must_use]
pub(crate) fn options(allow: &str, buckets: &[&Bucket], record: &mut RequestRecord) -> Response {
    let mut response = no_content(buckets, record);
    response.headers.push("allow", allow);
    response
}

/// Returns the response to a CORS preflight request.
#[must_use]
pub(crate) fn preflight(cors_headers: Vec<(HeaderName, HeaderValue)>, record: &mut RequestRecord) -> Response {
    let mut headers = ResponseHeaders::with_capacity(HEADER_CAPACITY);
    headers.extend(cors_headers);
    headers.push("x-request-id", &record.request_id);
    record.status = 204;
    Response { status: 204, headers, body: Body::default() }
}

/// Returns the headers that Weir adds to a forwarded response.
#[must_use]
pub(crate) fn forwarded_headers(
    buckets: &[&Bucket],
    record: &RequestRecord,
    cache_status: &'static str,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = ResponseHeaders::with_capacity(HEADER_CAPACITY);
    headers.push("cache-status", cache_status);
    add_common_headers(&mut headers, buckets, record, None);
    // Both of these describe the body, and the body is the provider's.
    let added = headers.iter().filter(|(name, _)| !matches!(*name, "vary" | "x-content-type-options"));
    let typed = |(name, value): (&str, &[u8])| Some((name.parse().ok()?, HeaderValue::from_bytes(value).ok()?));
    added.filter_map(typed).collect()
}

/// Adds the headers of a public document. Every cache may store it. A page may load resources from this host only.
fn add_public_headers(headers: &mut ResponseHeaders, media: &str, record: &RequestRecord) {
    headers.push("cache-control", "public, max-age=300");
    if record.varies_by_coding {
        headers.push("vary", "Accept-Encoding");
    }
    headers.push("x-content-type-options", "nosniff");
    headers.push("x-request-id", &record.request_id);
    if media.starts_with("text/html") {
        headers.push("content-security-policy", swagger_ui::POLICY);
        headers.push("referrer-policy", "no-referrer");
    }
}

/// Adds `Cache-Control`, `Age` and `Cache-Status` (RFC 9111, RFC 9211).
fn add_cache_headers(headers: &mut ResponseHeaders, record: &RequestRecord, now: Time) {
    let Some(status) = &record.cache else {
        headers.push("cache-control", "no-store");
        return;
    };
    if let Some(life) = status.life {
        let lifetime = life.max_age().as_secs();
        headers.field("cache-control", |value| {
            value.extend_from_slice(b"private, max-age=");
            value.extend_from_slice(itoa::Buffer::new().format(lifetime).as_bytes());
        });
        let age = life.age(now).as_secs();
        let called_provider = matches!(status.outcome, CacheOutcome::Forwarded { collapsed: false, .. });
        if !called_provider || age > 0 {
            headers.number("age", age);
        }
    } else {
        headers.push("cache-control", "no-store");
    }
    headers.push("cache-status", status.header(now));
}

/// A rate-limit policy that refused the request.
struct RefusedPolicy<'p> {
    name: &'p str,
    /// The value of `Retry-After`, in seconds.
    retry_after: u64,
}

/// Adds the headers that every response of Weir has. `refused` is the policy that refused the request, if one did.
fn add_common_headers(
    headers: &mut ResponseHeaders,
    buckets: &[&Bucket],
    record: &RequestRecord,
    refused: Option<&RefusedPolicy<'_>>,
) {
    headers.field("vary", |value| {
        value.extend_from_slice(record.vary.as_bytes());
        value.extend_from_slice(if record.varies_by_coding { b", Accept-Encoding" } else { b"" });
    });
    headers.push("x-content-type-options", "nosniff");
    headers.push("x-request-id", &record.request_id);
    if buckets.is_empty() {
        return;
    }
    headers.field("ratelimit-policy", |value| {
        for (number, bucket) in buckets.iter().enumerate() {
            value.extend_from_slice(if number > 0 { b", " } else { b"" });
            value.extend_from_slice(bucket.limiter.policy_header.as_bytes());
        }
    });
    headers.field("ratelimit", |value| {
        for (number, bucket) in buckets.iter().enumerate() {
            let policy = &bucket.limiter.policy;
            let remaining = bucket.remaining();
            let next = u64::try_from(remaining.next_in.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX);
            // The same value as Retry-After, which was computed a moment earlier.
            let next =
                refused.filter(|refused| refused.name == policy.name).map_or(next, |refused| refused.retry_after);
            let (mut tokens, mut seconds) = (itoa::Buffer::new(), itoa::Buffer::new());
            let comma = if number == 0 { "\"" } else { ", \"" };
            let parts = [comma, &policy.name, "\";r=", tokens.format(remaining.tokens), ";t=", seconds.format(next)];
            parts.iter().for_each(|part| value.extend_from_slice(part.as_bytes()));
        }
    });
}

/// Returns a public document.
#[must_use]
pub(crate) fn document(snapshot: &Snapshot, kind: DocumentKind) -> Content {
    let PublicDocument { media, body, etag, .. } = public_document(snapshot, kind);
    let content = Content::json(body.clone(), Some(etag.clone()));
    Content { media: Media::Public(media), ..content }.compressible(Compressible::Document(kind), false)
}

/// Returns a public document, with its compressed forms.
#[must_use]
pub(crate) fn public_document(snapshot: &Snapshot, kind: DocumentKind) -> &PublicDocument {
    match kind {
        DocumentKind::OpenApi => &snapshot.description,
        DocumentKind::DocsPage => swagger_ui::page(),
        DocumentKind::DocsFile(name) => swagger_ui::file(name),
    }
}

/// Returns the body of `GET /v1/providers`: the providers that this client may use, and their states.
#[must_use]
pub(crate) fn providers(snapshot: &Snapshot, client: ClientId, now: Time) -> Content {
    let access = &snapshot.clients[client].access;
    let rows: Vec<Value> = snapshot
        .providers
        .iter()
        .zip(access)
        .filter_map(|(provider, access)| access.as_ref().map(|access| (provider, access)))
        .map(|(provider, access)| {
            let pause = access.quota.pauses.all_until(now);
            let open = provider.breaker.open_until(now).max(access.breaker.open_until(now));
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
    Content::json(body.clone(), Some(etag(&body))).compressible(Compressible::Once, false)
}

fn operations(provider: &Provider) -> Vec<&'static str> {
    provider.operations.iter().map(|(operation, _)| operation.name()).collect()
}

fn patterns(patterns: &IdPatterns) -> Value {
    let text = |at: &Option<crate::config::faults::Located<String>>| at.as_ref().map(|at| at.value.clone());
    json!({ "agent": text(&patterns.agent), "session": text(&patterns.session) })
}
