//! Why a request is answered as it is: the facts of it, in words and numbers, as one JSON document.
//!
//! A room of its own because two readers get the same: who sends `Weir-Explain`, out of what the line gathered,
//! and who asks `weir explain` beforehand. It decides nothing and asks nobody; what it tells stands elsewhere. It
//! tells no credential, and of a provider's values no more than their types, unless it is asked to.

use crate::cache::{Entry, Kind};
use crate::call;
use crate::charge::Charged;
use crate::config::freshness::Freshness;
use crate::config::weir::Charge;
use crate::error::{Outcome, Problem};
use crate::exchange::{Answer, Effort, Request};
use crate::freshness::{self, Lifetime, Reckoning, TtlSource, UpstreamLimit};
use crate::mapping::{Found, Mapping, Stood, Traced};
use crate::model::{Status, Time, write_json};
use crate::question::Question;
use crate::ratelimit::Cost;
use crate::runtime::snapshot::Snapshot;
use crate::trace::{CacheStatus, How};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Of a page's sessions, those that came about in the same way are told once; more ways than this are counted.
const WAYS: usize = 5;

/// An object that grows.
type Told = Map<String, Value>;

/// Seconds, with a fraction where there is one.
fn seconds(duration: Duration) -> Value {
    match duration.subsec_millis() {
        0 => duration.as_secs().into(),
        _ => json!(duration.as_millis() as f64 / 1000.0),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn at(time: Option<Time>) -> Value {
    time.map(Time::rfc3339).into()
}

/// Who asks for what.
#[must_use]
pub fn request(snapshot: &Snapshot, client: usize, request: &Request) -> Told {
    let client = &snapshot.clients[client];
    let mark = if request.query.is_empty() { "" } else { "?" };
    let mut told = Told::new();
    told.insert("request".into(), format!("{} {}{mark}{}", request.method, request.path, request.query).into());
    told.insert("revision".into(), snapshot.revision.as_str().into());
    let may = json!({ "id": &*client.id, "reveal_secrets": client.reveal_secrets, "native": client.native });
    told.insert("client".into(), may);
    told
}

/// What a provider is asked, as whom, where its answer is kept, and the rules of how long.
#[must_use]
pub fn question(question: &Question) -> Told {
    let (provider, subject) = (question.provider(), &question.subject);
    let (kind, header) = question.asking.credential.described();
    let parts = question.key_parts().ok().map(|parts| {
        json!({
            "provider": parts.provider,
            "place": parts.place,
            "credential": parts.credential,
            "operation": parts.operation,
            "path_and_query": parts.path_and_query,
        })
    });
    let told = json!({
        "provider": &*provider.name,
        "agent": subject.agent.as_deref(),
        "session": subject.session.as_deref(),
        "operation": question.operation().ok().map(|operation| operation.name),
        "upstream": format!("GET {}{}", provider.target.origin(), provider.target.path(&question.path_and_query)),
        "credential": {
            "identity": &*question.asking.credential.identity,
            "kind": kind,
            "header": header.map(http::HeaderName::as_str),
            "from": question.credential_from(),
        },
        "cache_key": parts,
        "freshness_seconds": rules(&provider.freshness),
    });
    object(told)
}

fn object(value: Value) -> Told {
    if let Value::Object(told) = value { told } else { Told::new() }
}

fn rules(rules: &Freshness) -> Value {
    let by_status: Told =
        rules.by_status.iter().map(|(status, length)| (status.as_str().to_owned(), seconds(*length))).collect();
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

/// How a question was answered: out of the cache or by a call, how long it took, and what was made of it.
/// `before` is what the cache had when it was asked.
#[must_use]
pub fn answered(
    asked: &Question,
    before: Option<&Entry>,
    outcome: Result<(&Entry, &CacheStatus), (&Problem, Option<&CacheStatus>)>,
    waited: Duration,
    now: Time,
) -> Value {
    let mut told = question(asked);
    let (entry, status, problem) = match outcome {
        Ok((entry, status)) => (Some(entry), Some(status), None),
        Err((problem, status)) => (None, status, Some(problem)),
    };
    told.insert(
        "cache".into(),
        json!({
            "result": status.map(|status| status.how.label()),
            "status": status.map(|status| status.header(now)),
            "before": before.map(|entry| times(&entry.life, now)),
            "entry": entry.map(|entry| kept(entry, now)),
        }),
    );
    let effort = entry.map(|entry| entry.effort).or(problem.and_then(|problem| problem.effort.as_deref().copied()));
    told.insert("timing".into(), timing(waited, effort, status));
    // What was made of it can be told anew from its body: by the same rules, as of the same moment.
    match (entry, problem.and_then(|problem| problem.reply.as_deref())) {
        (Some(Entry { kind: Kind::NotFound(problem), life, .. }), _) => {
            let made = freshness::of_not_found(&asked.provider().freshness, life.stored_at);
            told.insert("lifetime".into(), lifetime(&asked.provider().freshness, &made));
            told.insert("problem".into(), problem.to_value(None));
            return Value::Object(told);
        }
        (Some(entry), _) => {
            let _ = body(&mut told, asked, &entry.body, (entry.upstream, entry.life.stored_at), false);
        }
        (None, Some(reply)) if reply.status == 200 => {
            let _ = body(&mut told, asked, &reply.body, (UpstreamLimit::default(), now), false);
        }
        _ => {}
    }
    told.insert("problem".into(), problem.map(|problem| problem.to_value(None)).into());
    Value::Object(told)
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

fn kept(entry: &Entry, now: Time) -> Value {
    let mut told = object(times(&entry.life, now));
    told.insert("bytes".into(), entry.body.len().into());
    told.insert("made_stale_at".into(), at(entry.stale_from));
    told.insert("asked_each_time".into(), entry.ask_always.into());
    told.insert("can_be_confirmed".into(), (!entry.conditions.is_empty()).into());
    Value::Object(told)
}

/// How long this request waited, and what the call took that its answer came by.
fn timing(waited: Duration, effort: Option<Effort>, status: Option<&CacheStatus>) -> Value {
    let whose = status.map(|status| match status.how {
        How::Forwarded { collapsed: false, .. } => "this request's",
        How::Forwarded { .. } => "another's, shared",
        // Of a stale answer, the call that brought it, not the one that failed.
        How::Hit | How::Stale(_) | How::StaleOnError { .. } => "an earlier one",
        How::Refused(_) => "none",
    });
    let call = effort.map(|effort| {
        json!({
            "whose": whose,
            "tries": effort.tries,
            "turn_ms": millis(effort.turn),
            "answer_ms": millis(effort.answer),
        })
    });
    json!({
        "waited_ms": millis(waited),
        "collapsed": status.is_some_and(|status| matches!(status.how, How::Forwarded { collapsed: true, .. })),
        "call": call,
    })
}

/// What a provider's body that came at `now` becomes: its lifetime, and the way to every field. With `values`,
/// also what was found, where it is not secret.
///
/// # Errors
/// Why it is of no use.
pub fn body(
    told: &mut Told,
    question: &Question,
    body: &[u8],
    (upstream, now): (UpstreamLimit, Time),
    values: bool,
) -> Outcome<()> {
    let (provider, operation) = (question.provider(), question.operation()?);
    let native = call::parse(provider, body)?;
    let natives = operation.natives(&native).unwrap_or_default();
    told.insert("mapping".into(), mapping(&provider.mapping, &natives, values));
    let reading = operation.read(&provider.name, &provider.mapping, &native, now)?;
    let made = reading.reckon(&provider.freshness, now, upstream);
    told.insert("lifetime".into(), lifetime(&provider.freshness, &made));
    Ok(())
}

fn lifetime(rules: &Freshness, made: &Reckoning) -> Value {
    let Reckoning { life, rule: (source, length), said, never_past, upstream } = made;
    json!({
        "source": life.source.as_str(),
        "seconds": seconds(life.total()),
        "why": why(rules, made),
        "rule": { "source": source.as_str(), "seconds": seconds(*length) },
        "inputs": {
            "came_at": life.stored_at.rfc3339(),
            "status": said.map(|said| said.status.as_str()),
            "expires_at": at(said.and_then(|said| said.expires_at)),
            "ended_at": at(said.and_then(|said| said.ended_at)),
            "settled": said.filter(|said| said.status == Status::Ended).map(|said| said.settled),
            "never_past": at(*never_past),
            "upstream_max_age_seconds": upstream.max_age.map(seconds),
            "upstream_age_seconds": seconds(upstream.age),
            "must_revalidate": upstream.must_revalidate,
        },
    })
}

/// The rule that spoke, and what then cut what it gave.
fn why(rules: &Freshness, made: &Reckoning) -> String {
    let Reckoning { life, rule: (source, _), said, .. } = made;
    let status = said.map_or("", |said| said.status.as_str());
    let ahead = said.and_then(|said| said.expires_at).map(|at| at.since(life.stored_at).as_secs()).unwrap_or_default();
    let spoke = match (source, said) {
        (TtlSource::Default, Some(said)) if said.status == Status::Ended => {
            let settle = rules.settle.as_secs();
            format!("default: it ended less than settle ({settle} s) ago, or does not say when")
        }
        (TtlSource::Default, _) => format!("default: no by_status for {status}, and no expires_at that lies ahead"),
        (TtlSource::Status, _) => format!("by_status has {status}"),
        (TtlSource::Max, _) => format!("max: expires_at lies {ahead} s ahead, which is more"),
        (TtlSource::ExpiresAt, _) => format!("expires_at lies {ahead} s ahead, less than max"),
        (TtlSource::List, _) => "list: a page of a list".to_owned(),
        (TtlSource::NotFound, _) => "not_found: there is no such thing".to_owned(),
        (TtlSource::Upstream, _) => "the provider's max-age".to_owned(),
    };
    match life.source {
        cut if cut == *source => spoke,
        TtlSource::Upstream => format!("{spoke}; the provider's max-age is less"),
        _ => format!("{spoke}; nothing live is kept past its expires_at, which comes sooner"),
    }
}

/// The way to every field. Sessions of a page that came about in the same way are told once.
fn mapping(mapping: &Mapping, natives: &[&Value], values: bool) -> Value {
    let mut ways: Vec<(usize, usize, Value)> = Vec::new();
    let mut more = 0;
    for (position, native) in natives.iter().enumerate() {
        // What is secret is not in it, so it cannot be told.
        let shown = values.then(|| mapping.without_secrets(native));
        let fields = mapping.trace(native).iter().map(|traced| field(mapping, traced, shown.as_ref())).collect();
        match ways.iter().position(|(_, _, known)| *known == fields) {
            Some(way) => ways[way].1 += 1,
            None if ways.len() < WAYS => ways.push((position, 1, fields)),
            None => more += 1,
        }
    }
    let ways = ways.into_iter();
    let told = |(first, sessions, fields)| json!({ "sessions": sessions, "first": first, "fields": fields });
    json!({ "sessions": natives.len(), "ways": ways.map(told).collect::<Vec<_>>(), "in_other_ways": more })
}

fn field(mapping: &Mapping, traced: &Traced<'_>, shown: Option<&Value>) -> Value {
    let Traced { field, found, tried, rule } = traced;
    let (how, path, reason) = match found {
        Found::Path(path) => ("path", Some(path.as_str()), None),
        Found::Constant => ("constant", None, None),
        Found::Default => ("default", None, None),
        Found::NoRule => ("no rule", None, None),
        Found::Nothing => ("nothing", None, None),
        Found::Unusable(reason) => ("unusable", None, Some(reason.as_str())),
    };
    let mut told = Told::new();
    told.insert("field".into(), field.name().into());
    told.insert("found".into(), how.into());
    let mut add = |name: &str, value: Value| {
        if !matches!(value, Value::Null | Value::Bool(false)) {
            told.insert(name.into(), value);
        }
    };
    add("path", path.into());
    add("reason", reason.into());
    add("required", mapping.requires(*field).into());
    add("secret", mapping.secret_fields().contains(field).into());
    add("constant", rule.and_then(|rule| rule.constant).into());
    add("default", rule.and_then(|rule| rule.default).into());
    let words: Told =
        rule.map(|rule| rule.values).unwrap_or_default().iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    add("values", if words.is_empty() { Value::Null } else { words.into() });
    let tried: Vec<Value> = tried
        .iter()
        .map(|(path, stood)| {
            let (found, kind, reason) = match stood {
                Stood::Nothing { null } => (false, null.then_some("null"), None),
                Stood::Taken(kind) => (true, Some(*kind), None),
                Stood::Unusable(kind, reason) => (true, Some(*kind), Some(reason.as_str())),
            };
            let mut told = object(json!({ "path": path.as_str(), "found": found, "type": kind }));
            told.extend(reason.map(|reason| ("reason".to_owned(), reason.into())));
            let value = shown.filter(|_| found && !mapping.secret_fields().contains(field));
            told.extend(value.and_then(|shown| path.first(shown)).map(|value| ("value".to_owned(), value.clone())));
            Value::Object(told)
        })
        .collect();
    add("tried", if tried.is_empty() { Value::Null } else { tried.into() });
    Value::Object(told)
}

/// Each policy that applies, what the request costs there, and what is left of it: `left` is known where a gateway
/// runs.
pub fn limits<'s>(snapshot: &'s Snapshot, charged: impl Iterator<Item = Charged<'s>>, left: bool) -> Value {
    let row = |Charged { bucket, provider, cost }: Charged<'_>| {
        let policy = &bucket.limiter.policy;
        let Cost { all, misses } = cost;
        let mut told = object(json!({
            "policy": policy.name,
            "for": provider.map_or("everything", |at| &snapshot.providers[at].name),
            "requests": policy.requests,
            "per_seconds": seconds(policy.per),
            "burst": policy.burst,
            "charge": match policy.charge { Charge::All => "all", Charge::Misses => "misses" },
            "cost": match policy.charge { Charge::All => all, Charge::Misses => misses },
        }));
        if left {
            let now = bucket.left();
            told.insert("left".into(), now.remaining.into());
            told.insert("next_in_ms".into(), millis(now.next_in).into());
        }
        Value::Object(told)
    };
    charged.map(row).collect::<Vec<_>>().into()
}

/// An answer and its explanation, as one JSON body. The answer's own is in it as it is, where it is JSON.
#[must_use]
pub fn around(answer: &Answer, explain: &Told) -> Vec<u8> {
    let mut headers = Told::new();
    for (name, value) in answer.headers.iter() {
        let text = String::from_utf8_lossy(value);
        match headers.get_mut(name) {
            Some(Value::String(before)) => *before += &format!(", {text}"),
            _ => {
                headers.insert(name.to_owned(), text.into());
            }
        }
    }
    let mut out = b"{\"explain\":".to_vec();
    write_json(&mut out, explain);
    out.extend_from_slice(format!(",\"status\":{},\"headers\":", answer.status).as_bytes());
    write_json(&mut out, &headers);
    out.extend_from_slice(b",\"body\":");
    match answer.body.whole().as_ref() {
        [] => out.extend_from_slice(b"null"),
        body if serde_json::from_slice::<&RawValue>(body).is_ok() => out.extend_from_slice(body),
        body => write_json(&mut out, &String::from_utf8_lossy(body)),
    }
    out.push(b'}');
    out
}
