//! Explains a request as a JSON document: its queries, cache entries, lifetimes, mapping and costs.
//!
//! `Weir-Explain` and `weir explain` use the same functions. The document contains no credentials. It contains the types
//! of provider values, and the values themselves only if the caller wants them. Nothing here decides how a request is
//! handled.

use crate::base::ids::ClientId;
use crate::base::memory_budget::{BufferLimit, MemoryShare, without_spare};
use crate::base::model::{Status, Time, write_json};
use crate::base::request_reply::{Body, CallStats, Request, Response};
use crate::config::freshness::Freshness;
use crate::config::weir::Charge;
use crate::engine::cache::{Entry, EntryKind};
use crate::engine::rate_limit::Cost;
use crate::engine::request_record::{CacheOutcome, CacheStatus};
use crate::fetch::call;
use crate::fetch::error::FetchError;
use crate::fetch::provider_query::ProviderQuery;
use crate::fetch::rate_limit_cost::BucketCost;
use crate::rules::field_trace::{FieldSource, FieldTrace, PathResult};
use crate::rules::freshness::{self, AppliedRule, FreshnessDecision, Lifetime, TtlSource, UpstreamLimit};
use crate::rules::mapping::Mapping;
use crate::rules::page_facts::PageFacts;
use crate::rules::page_headers::PageHeaders;
use crate::rules::page_rules::Pages;
use crate::rules::page_token::Position;
use crate::rules::provider_body::CompiledOperation;
use crate::rules::watch_token;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The limit of different mapping traces in one explanation. Sessions with other traces are only counted.
const MAX_TRACES: usize = 5;

/// A JSON object.
type Object = Map<String, Value>;

/// Returns seconds: an integer if there is no fraction.
fn seconds(duration: Duration) -> Value {
    match duration.subsec_millis() {
        0 => duration.as_secs().into(),
        _ => json!(duration.as_millis() as f64 / 1000.0),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn rfc3339(time: Option<Time>) -> Value {
    time.map(Time::rfc3339).into()
}

/// Explains the request line, the client and the revision.
#[must_use]
pub(crate) fn request(snapshot: &Snapshot, client: ClientId, request: &Request) -> Object {
    let client = &snapshot.clients[client];
    let separator = if request.query.is_empty() { "" } else { "?" };
    let query = watch_token::redacted(&request.query);
    let line = format!("{} {}{separator}{query}", request.method, request.path);
    object(json!({
        "request": line,
        "revision": snapshot.revision,
        "client": { "id": &*client.id, "reveal_secrets": client.reveal_secrets, "native": client.native },
    }))
}

/// Explains a query: the request to the provider, its credential, its cache key and the freshness rules.
#[must_use]
pub(crate) fn provider_query(query: &ProviderQuery) -> Object {
    let (provider, subject) = (query.provider(), &query.subject);
    let parts = query.key_parts().ok().map(|parts| {
        let mut key = json!({
            "provider": parts.provider,
            "place": parts.base_url,
            "credential": parts.credential,
            "operation": parts.operation,
            "path_and_query": parts.path_and_query,
        });
        if !parts.headers.is_empty() {
            key["headers"] = parts.headers.lines().collect();
        }
        key
    });
    let mut explained = object(json!({
        "provider": &*provider.name,
        "agent": subject.agent.as_deref(),
        "session": subject.session.as_deref(),
        "operation": query.operation().ok().map(CompiledOperation::name),
        "upstream": format!("GET {}{}", provider.target.origin(), provider.target.path(&query.path_and_query)),
        "credential": credential(query),
        "cache_key": parts,
        "freshness_seconds": freshness_rules(&provider.freshness),
    }));
    let list = query.operation().ok().and_then(CompiledOperation::pages);
    explained.extend(list.map(|list| ("pages".to_owned(), pages(list))));
    explained
}

/// Explains where the credential is sent and where it is configured. Several headers are one text, with commas.
fn credential(query: &ProviderQuery) -> Value {
    let credential = &query.identity.credential;
    let described = credential.describe();
    let names: Vec<&str> = described.headers.iter().map(|name| name.as_str()).collect();
    let mut explained = json!({
        "identity": &*credential.identity,
        "kind": described.kind,
        "header": (!names.is_empty()).then(|| names.join(", ")),
        "from": query.credential_from(),
    });
    if let Some(parameter) = described.parameter {
        explained["parameter"] = parameter.into();
    }
    explained
}

fn object(value: Value) -> Object {
    if let Value::Object(object) = value { object } else { Object::new() }
}

fn freshness_rules(rules: &Freshness) -> Value {
    let by_status = rules.by_status.iter().map(|(status, lifetime)| (status.as_str().to_owned(), seconds(*lifetime)));
    let by_status: Object = by_status.collect();
    json!({
        "default": seconds(rules.default),
        "max": seconds(rules.max),
        "by_status": by_status,
        "settle": seconds(rules.settle),
        "not_found": seconds(rules.not_found),
        "list": seconds(rules.list),
        "watch": seconds(rules.watch),
        "stale_while_revalidate": seconds(rules.stale_while_revalidate),
        "stale_if_error": seconds(rules.stale_if_error),
    })
}

/// Explains the result of a query: the cache, the times, the lifetime and the mapping. `before` is the entry that the
/// lookup found, and `problem` the problem that the client receives.
#[must_use]
pub(crate) fn query_result(
    query: &ProviderQuery,
    before: Option<&Entry>,
    outcome: Result<(&Entry, &CacheStatus), (&FetchError, Option<&CacheStatus>)>,
    problem: Option<Value>,
    waited: Duration,
    now: Time,
) -> Value {
    let mut explanation = provider_query(query);
    let (entry, status, error) = match outcome {
        Ok((entry, status)) => (Some(entry), Some(status), None),
        Err((error, status)) => (None, status, Some(error)),
    };
    explanation.insert(
        "cache".into(),
        json!({
            "result": status.map(|status| status.outcome.label()),
            "status": status.map(|status| status.header(now)),
            "before": before.map(|entry| times(&entry.life, now)),
            "entry": entry.map(|entry| stored(entry, now)),
        }),
    );
    let call_stats = entry.map(|entry| entry.call_stats).or(error.and_then(|error| error.call_stats));
    explanation.insert("timing".into(), timing(waited, call_stats, status));
    // The body is mapped again. The rules and the time are the same, so the result is the same.
    match (entry, error.and_then(FetchError::reply)) {
        (Some(Entry { kind: EntryKind::NotFound(_), life, .. }), _) => {
            let rules = &query.provider().freshness;
            let decision = freshness::of_not_found(rules, life.stored_at);
            explanation.insert("lifetime".into(), lifetime(rules, &decision));
        }
        (Some(entry), _) => {
            let arrival = Arrival { at: entry.life.stored_at, upstream: entry.upstream, headers: &entry.page_headers };
            let _ = add_body(&mut explanation, query, &entry.body, arrival, false);
        }
        (None, Some(reply)) if reply.status == 200 => {
            let names = query.operation().map(CompiledOperation::page_headers).unwrap_or_default();
            let headers = PageHeaders::of(names, &reply.headers, None);
            let arrival = Arrival { at: now, upstream: UpstreamLimit::default(), headers: &headers };
            let _ = add_body(&mut explanation, query, &reply.body, arrival, false);
        }
        _ => {}
    }
    explanation.insert("problem".into(), problem.into());
    Value::Object(explanation)
}

fn times(life: &Lifetime, now: Time) -> Value {
    let fresh = life.fresh_until > now;
    json!({
        "state": if fresh { "fresh" } else if now < life.last() { "stale" } else { "past its last moment" },
        "age_seconds": seconds(life.age(now)),
        "fresh_for_seconds": seconds(life.fresh_until.since(now)),
        "source": life.source.as_str(),
        "stored_at": life.stored_at.rfc3339(),
        "fresh_until": life.fresh_until.rfc3339(),
        "revalidate_until": life.revalidate_until.rfc3339(),
        "error_until": life.error_until.rfc3339(),
    })
}

fn stored(entry: &Entry, now: Time) -> Value {
    let mut stored = object(times(&entry.life, now));
    stored.insert("bytes".into(), entry.body.len().into());
    stored.insert("made_stale_at".into(), rfc3339(entry.soft_purged_at));
    stored.insert("asked_each_time".into(), entry.always_revalidate.into());
    stored.insert("can_be_confirmed".into(), (!entry.conditions.is_empty()).into());
    Value::Object(stored)
}

/// Explains how long the request waited, and the times of the call that fetched the response.
fn timing(waited: Duration, call_stats: Option<CallStats>, status: Option<&CacheStatus>) -> Value {
    let whose = status.map(|status| match status.outcome {
        CacheOutcome::Forwarded { collapsed: false, .. } => "this request's",
        CacheOutcome::Forwarded { .. } => "another's, shared",
        // For a stale response, this is the call that fetched it, not the call that failed.
        CacheOutcome::Hit | CacheOutcome::Stale(_) | CacheOutcome::StaleOnError { .. } => "an earlier one",
        CacheOutcome::Refused(_) => "none",
    });
    let call = call_stats.map(|call_stats| {
        json!({
            "whose": whose,
            "tries": call_stats.tries,
            "turn_ms": millis(call_stats.queue_time),
            "answer_ms": millis(call_stats.response_time),
        })
    });
    json!({
        "waited_ms": millis(waited),
        "collapsed": status.is_some_and(|status| matches!(status.outcome, CacheOutcome::Forwarded { collapsed: true, .. })),
        "call": call,
    })
}

/// When a provider's response arrived, the limits that its headers set, and those that say how a list goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub at: Time,
    pub upstream: UpstreamLimit,
    pub headers: &'a PageHeaders,
}

/// Explains a provider's body: its mapping and its lifetime. Includes values that are not secret
/// if `values` is true.
///
/// # Errors
/// The body is unreadable.
pub(crate) fn add_body(
    explanation: &mut Object,
    query: &ProviderQuery,
    body: &[u8],
    arrival: Arrival<'_>,
    values: bool,
) -> Result<(), Box<FetchError>> {
    let (provider, operation) = (query.provider(), query.operation()?);
    let native = call::parse(provider, body)?;
    let natives = operation.native_objects(&native.value).unwrap_or_default();
    explanation.insert("mapping".into(), mapping(&provider.mapping, &natives, values));
    let parsed = operation.read(&provider.name, &provider.mapping, &native, arrival.headers, arrival.at)?;
    let page = parsed.page.as_ref().map(|page| &page.facts);
    explanation.extend(
        operation.pages().zip(page).map(|(pages, facts)| ("page".to_owned(), self::page(pages, facts, values))),
    );
    let decision = parsed.freshness(&provider.freshness, arrival.at, arrival.upstream);
    explanation.insert("lifetime".into(), lifetime(&provider.freshness, &decision));
    Ok(())
}

/// Explains what a page says about its list. Whether another page follows also depends on the pages before it; this is the
/// answer for the first one.
fn page(pages: &Pages, facts: &PageFacts, values: bool) -> Value {
    let next = pages.next_cursor(&Position::first(pages.max_limit()), facts);
    let mut page = json!({
        "sessions": facts.items,
        "total": facts.total,
        "more": facts.more,
        "goes_on": matches!(next, Ok(Some(_))),
        "fault": next.as_ref().err().map(ToString::to_string),
    });
    if let Some(next) = next.ok().flatten().filter(|_| values) {
        page["next"] = next.text.into();
    }
    page
}

/// Explains how the pages of a list follow each other.
fn pages(pages: &Pages) -> Value {
    let (way, end) = pages.describe();
    json!({ "next": way, "end": end, "max_limit": Some(pages.max_limit()).filter(|limit| *limit > 0) })
}

fn lifetime(rules: &Freshness, decision: &FreshnessDecision) -> Value {
    let FreshnessDecision { life, rule: AppliedRule { source, length }, session, expiry_limit, upstream } = decision;
    json!({
        "source": life.source.as_str(),
        "seconds": seconds(life.total()),
        "why": why(rules, decision),
        "rule": { "source": source.as_str(), "seconds": seconds(*length) },
        "inputs": {
            "came_at": life.stored_at.rfc3339(),
            "status": session.map(|session| session.status.as_str()),
            "expires_at": rfc3339(session.and_then(|session| session.expires_at)),
            "ended_at": rfc3339(session.and_then(|session| session.ended_at)),
            "settled": session.filter(|session| session.status == Status::Ended).map(|session| session.settled),
            "never_past": rfc3339(*expiry_limit),
            "upstream_max_age_seconds": upstream.max_age.map(seconds),
            "upstream_age_seconds": seconds(upstream.age),
            "must_revalidate": upstream.must_revalidate,
        },
    })
}

/// Describes the rule that set the lifetime, and the limit that reduced it.
fn why(rules: &Freshness, decision: &FreshnessDecision) -> String {
    let FreshnessDecision { life, rule: AppliedRule { source, .. }, session, .. } = decision;
    let status = session.map_or("", |session| session.status.as_str());
    let expiry = session.and_then(|session| session.expires_at);
    let expires_in = expiry.map(|at| at.since(life.stored_at).as_secs()).unwrap_or_default();
    let rule = match (source, session) {
        (TtlSource::Default, Some(session)) if session.status == Status::Ended => {
            let settle = rules.settle.as_secs();
            format!("default: the session ended less than settle ({settle} s) ago, or has no end time")
        }
        (TtlSource::Default, _) => format!("default: by_status has no {status}, and expires_at is missing or past"),
        (TtlSource::Status, _) => format!("by_status has {status}"),
        (TtlSource::Max, _) => format!("max: expires_at is {expires_in} s ahead, which is more than max"),
        (TtlSource::ExpiresAt, _) => format!("expires_at is {expires_in} s ahead, which is less than max"),
        (TtlSource::List, _) => "list: a page of a list".to_owned(),
        (TtlSource::NotFound, _) => "not_found: the provider does not have it".to_owned(),
        (TtlSource::Upstream, _) => "the provider's max-age".to_owned(),
    };
    match life.source {
        applied if applied == *source => rule,
        TtlSource::Upstream => format!("{rule}; reduced to the provider's max-age"),
        _ => format!("{rule}; reduced to the expires_at of a live session, which is sooner"),
    }
}

/// The mapping of the sessions whose fields have equal traces.
struct SessionTraces {
    /// The position of the first of these sessions.
    first: usize,
    sessions: usize,
    fields: Value,
}

/// Explains the mapping of each field. Sessions of a list with equal traces have one entry.
fn mapping(mapping: &Mapping, natives: &[&Value], values: bool) -> Value {
    let mut traces: Vec<SessionTraces> = Vec::new();
    let mut sessions_without_trace = 0;
    for (position, native) in natives.iter().enumerate() {
        // Secret fields are removed first, so that no value of them can appear.
        let visible = values.then(|| mapping.without_secrets(native));
        let fields = mapping.trace(native).iter().map(|traced| field(mapping, traced, visible.as_ref())).collect();
        match traces.iter().position(|trace| trace.fields == fields) {
            Some(known) => traces[known].sessions += 1,
            None if traces.len() < MAX_TRACES => {
                traces.push(SessionTraces { first: position, sessions: 1, fields });
            }
            None => sessions_without_trace += 1,
        }
    }
    let traces = traces.into_iter();
    let trace =
        |SessionTraces { first, sessions, fields }| json!({ "sessions": sessions, "first": first, "fields": fields });
    let traces: Vec<Value> = traces.map(trace).collect();
    json!({ "sessions": natives.len(), "ways": traces, "in_other_ways": sessions_without_trace })
}

fn field(mapping: &Mapping, traced: &FieldTrace<'_>, visible: Option<&Value>) -> Value {
    let FieldTrace { field, source, tried, rule } = traced;
    let (how, path, reason) = match source {
        FieldSource::Path(path) => ("path", Some(path.as_str()), None),
        FieldSource::Constant => ("constant", None, None),
        FieldSource::Default => ("default", None, None),
        FieldSource::NoRule => ("no rule", None, None),
        FieldSource::Nothing => ("nothing", None, None),
        FieldSource::Unusable(reason) => ("unusable", None, Some(reason.as_str())),
    };
    let mut explanation = Object::new();
    explanation.insert("field".into(), field.name().into());
    explanation.insert("found".into(), how.into());
    let mut add = |name: &str, value: Value| {
        if !matches!(value, Value::Null | Value::Bool(false)) {
            explanation.insert(name.into(), value);
        }
    };
    add("path", path.into());
    add("reason", reason.into());
    add("required", mapping.requires(*field).into());
    add("secret", mapping.secret_fields().contains(field).into());
    add("constant", rule.and_then(|rule| rule.constant).into());
    add("default", rule.and_then(|rule| rule.default).into());
    let values: Object =
        rule.map(|rule| rule.values).unwrap_or_default().iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    add("values", if values.is_empty() { Value::Null } else { values.into() });
    let tried: Vec<Value> = tried
        .iter()
        .map(|(path, result)| {
            let (found, kind, reason) = match result {
                PathResult::Nothing { null } => (false, null.then_some("null"), None),
                PathResult::Used(kind) => (true, Some(*kind), None),
                PathResult::Unusable(kind, reason) => (true, Some(*kind), Some(reason.as_str())),
            };
            let mut attempt = object(json!({ "path": path.as_str(), "found": found, "type": kind }));
            attempt.extend(reason.map(|reason| ("reason".to_owned(), reason.into())));
            let value = visible.filter(|_| found && !mapping.secret_fields().contains(field));
            let value = value.and_then(|visible| path.first(visible));
            attempt.extend(value.map(|value| ("value".to_owned(), value.clone())));
            Value::Object(attempt)
        })
        .collect();
    add("tried", if tried.is_empty() { Value::Null } else { tried.into() });
    Value::Object(explanation)
}

/// Explains each policy that applies and the cost under it. Includes the remaining tokens if `remaining` is true.
pub(crate) fn limits<'s>(
    snapshot: &'s Snapshot,
    costs: impl Iterator<Item = BucketCost<'s>>,
    remaining: bool,
) -> Value {
    let row = |BucketCost { bucket, provider, cost }: BucketCost<'_>| {
        let policy = &bucket.limiter.policy;
        let Cost { all, misses } = cost;
        let mut row = object(json!({
            "policy": policy.name,
            "for": provider.map_or("everything", |id| &snapshot.providers[id].name),
            "requests": policy.requests,
            "per_seconds": seconds(policy.per),
            "burst": policy.burst,
            "charge": match policy.charge { Charge::All => "all", Charge::Misses => "misses" },
            "cost": match policy.charge { Charge::All => all, Charge::Misses => misses },
        }));
        if remaining {
            let remaining = bucket.remaining();
            row.insert("left".into(), remaining.tokens.into());
            row.insert("next_in_ms".into(), millis(remaining.next_in).into());
        }
        Value::Object(row)
    };
    costs.map(row).collect::<Vec<_>>().into()
}

/// Takes a response's body and wraps it, with its explanation, in one JSON body. A JSON body is embedded unchanged, any
/// other body as a string.
///
/// # Errors
/// The string would exceed the share of the memory.
pub(crate) fn wrap(response: &mut Response, explanation: &Object, share: &MemoryShare) -> Result<Body, BufferLimit> {
    /// The most bytes that JSON needs for one byte of a string.
    const ESCAPED: usize = 6;
    let mut headers = Object::new();
    for (name, value) in response.headers.iter() {
        let text = String::from_utf8_lossy(value);
        match headers.get_mut(name) {
            Some(Value::String(earlier)) => *earlier += &format!(", {text}"),
            _ => {
                headers.insert(name.to_owned(), text.into());
            }
        }
    }
    let mut start = b"{\"explain\":".to_vec();
    write_json(&mut start, explanation);
    start.extend_from_slice(format!(",\"status\":{},\"headers\":", response.status).as_bytes());
    write_json(&mut start, &headers);
    start.extend_from_slice(b",\"body\":");
    let mut memory = share.reserve(start.len())?;
    let body = std::mem::take(&mut response.body);
    let body = match body.parts() {
        [] | [_] if body.len() == 0 => Bytes::from_static(b"null").into(),
        [whole] if serde_json::from_slice::<&RawValue>(whole).is_err() => {
            memory.grow(ESCAPED * whole.len())?;
            let mut string = Vec::new();
            write_json(&mut string, &String::from_utf8_lossy(whole));
            let string = without_spare(string);
            memory.resize(start.len() + string.len())?;
            string.into()
        }
        // A body of several parts is Weir's own JSON.
        _ => body,
    };
    Ok(body.between(start.into(), Bytes::from_static(b"}")).holding([Arc::new(memory)]))
}
