//! One call to a provider, from the gate to the cache.
//!
//! A room of its own because this is the coalesced part: it runs once for any number of callers, and
//! reads as a column: gate → credential → upstream → judge → map → store. It knows no caller.

use crate::cache::{Entry, Kind};
use crate::conditional;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{Effort, ProviderFailure, ProviderReply, ProviderRequest};
use crate::freshness::{self, UpstreamLimit};
use crate::gate;
use crate::json;
use crate::model::{Show, Time};
use crate::question::{Landed, Question, Shared};
use crate::reading::Unreadable;
use crate::runtime;
use crate::runtime::snapshot::Provider;
use crate::span::{Fact, Side, Steps};
use crate::trace::Stored;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::time::Instant;

/// Why an answer was not stored, when the provider said so.
const NO_STORE: &str = "upstream-no-store";
/// Why one was not stored that a purge or a write came before.
const OUTDATED: &str = "purged";

/// One call to a provider, from the gate to the cache.
///
/// # Errors
/// The provider's failure, or why it was not asked.
pub async fn call(shared: &Shared, question: &Question, store: bool, mut steps: Steps) -> Landed {
    let landed = in_steps(shared, question, store, &mut steps).await;
    shared.spans.emit(steps.end(Side::Inside, landed.is_err(), || {
        let stored = matches!(landed, Ok((_, Stored::Yes)));
        let mut facts = vec![
            ("weir.provider", Fact::Name(question.provider().name.clone())),
            ("weir.stored", Fact::Word(if stored { "yes" } else { "no" })),
        ];
        facts.extend(question.operation().ok().map(|operation| ("weir.operation", Fact::Word(operation.name))));
        facts.extend(landed.as_ref().err().map(|problem| ("error.type", Fact::Word(problem.code.as_str()))));
        ("call".into(), facts)
    }));
    landed
}

async fn in_steps(shared: &Shared, question: &Question, store: bool, steps: &mut Steps) -> Landed {
    let _under_way = gate::begin(&shared.metrics.upstream, &question.provider().name, question.max_calls())?;
    let (provider, ticket) = (question.provider(), shared.cache.ticket());
    let known = shared.cache.look(&question.key).filter(|known| !known.conditions.is_empty());
    let mut effort = Effort::default();
    let reply = ask_provider(shared, question, known.as_deref(), (steps, &mut effort)).await;
    steps.step("judge and map");
    let now = runtime::now();
    let judged = reply.and_then(|reply| judge(shared, question, &reply, known.as_deref(), now));
    let (mut entry, forbidden) = judged.map_err(|mut problem| {
        problem.effort = (effort.tries > 0).then(|| Box::new(effort));
        problem
    })?;
    entry.effort = effort;
    steps.step("store");
    let entry = Arc::new(entry);
    let no_time = (entry.life.last() <= now && !entry.ask_always).then_some("no-lifetime");
    let not_wanted = (!store).then_some("request-no-store");
    let stored = match forbidden.or(not_wanted).or(no_time) {
        Some(reason) => {
            // The client's wish concerns its own answer; what the provider says concerns what is stored.
            if not_wanted.is_none() {
                shared.cache.supersede(question.key.clone(), ticket);
            }
            Stored::No(reason)
        }
        None => {
            if shared.cache.store(question.key.clone(), entry.clone(), ticket, now) {
                let ttl = shared.metrics.cache.ttl.with_label_values(&[&*provider.name, entry.life.source.as_str()]);
                ttl.observe(entry.life.total().as_secs_f64());
                Stored::Yes
            } else {
                Stored::No(OUTDATED)
            }
        }
    };
    Ok((entry, stored))
}

/// Gate → credential → upstream. What it takes is told to `effort`, however it ends.
async fn ask_provider(
    shared: &Shared,
    question: &Question,
    known: Option<&Entry>,
    (steps, effort): (&mut Steps, &mut Effort),
) -> Outcome<ProviderReply> {
    let (provider, operation, asking) = (question.provider(), question.operation()?, &question.asking);
    let (name, metrics) = (&provider.name, &shared.metrics.upstream);
    let begun = Instant::now();
    let deadline = begun + provider.target.timeout;
    // Half of the deadline for the turn leaves half for the answer.
    let latest = deadline - provider.target.timeout / 2;
    let tap = asking.tap(provider);
    steps.step("gate");
    let _turn = gate::pass(metrics, provider, &tap, question.client_id(), latest).await?;
    effort.turn = begun.elapsed();
    let tries = AtomicU32::new(0);
    let counter = |status: &str| metrics.requests.with_label_values(&[name, operation.name, status]);
    let count = |status: &str| counter(status).inc();
    let counters = || (counter("200"), metrics.duration.with_label_values(&[&**name, operation.name]));
    let (answered, duration) = operation.counted.get_or_init(counters);
    let mut again = true;
    loop {
        steps.step("credential");
        let shown = asking.credential.show(&shared.upstream, metrics, deadline).await?;
        steps.ask("upstream");
        let mut conditions = known.map(|known| known.conditions.clone()).unwrap_or_default();
        conditions.extend(steps.headers());
        let request = ProviderRequest {
            path_and_query: question.path_and_query.clone(),
            credential: shown.header.clone(),
            conditions,
            form: None,
        };
        provider.retry_budget.earn();
        tries.fetch_add(1, Ordering::Relaxed);
        let timer = duration.start_timer();
        // A try that is made again was a call too.
        let may_retry = |failure: &ProviderFailure| {
            // It spends of the quota what any call does, and heeds what stands against one.
            let may = gate::again(provider, &tap) && provider.retry_budget.take();
            metrics.retries.with_label_values(&[&**name, if may { "made" } else { "refused" }]).inc();
            if may {
                tries.fetch_add(1, Ordering::Relaxed);
                count(failure.kind.as_str());
            }
            may
        };
        let reply = shared.upstream.ask(&provider.target, &request, deadline, may_retry).await;
        timer.observe_duration();
        (effort.tries, effort.answer) = (tries.load(Ordering::Relaxed), begun.elapsed() - effort.turn);
        match &reply {
            Ok(reply) => {
                match reply.status {
                    200 => answered.inc(),
                    other => count(&other.to_string()),
                }
                steps.fact("http.response.status_code", || Fact::Number(reply.status.into()));
            }
            Err(failure) => {
                count(failure.kind.as_str());
                steps.fact("error.type", || Fact::Word(failure.kind.as_str()));
                steps.failed();
            }
        }
        steps.fact("http.request.method", || Fact::Word("GET"));
        steps.fact("server.address", || Fact::Name(provider.target.authority().into()));
        gate::learn(provider, &tap, &reply);
        let refused =
            again && reply.as_ref().is_ok_and(|reply| reply.status == 401) && asking.credential.refused(&shown);
        // A token may have ended before its time: once more with a new one.
        if !(refused && std::mem::take(&mut again) && gate::again(provider, &tap)) {
            return reply.map_err(|failure| Box::new(provider.errors.judge_failure(&failure)));
        }
    }
}

/// Judge → map. The text says why the answer may not be stored, if it may not.
fn judge(
    shared: &Shared,
    question: &Question,
    reply: &ProviderReply,
    known: Option<&Entry>,
    now: Time,
) -> Outcome<(Entry, Option<&'static str>)> {
    let provider = question.provider();
    let confirmed = known.filter(|_| reply.status == 304);
    let said = conditional::directives(
        reply.headers.get_all(http::header::CACHE_CONTROL).iter().map(http::HeaderValue::as_bytes),
    );
    if reply.status != 200 && confirmed.is_none() {
        let mut problem = provider.errors.judge(reply, now);
        if problem.code == Code::ProviderAuthFailed && question.asking.credential.is_forwarded() {
            problem.code = Code::Unauthorized;
            problem.detail = format!("{} refused the credential that came with this request", provider.name);
        }
        if !problem.code.is_not_found() {
            return Err(Box::new(problem));
        }
        let (kind, life) =
            (Kind::NotFound(Box::new(kept(problem))), freshness::of_not_found(&provider.freshness, now).life);
        // Its body is weighed, though only native clients see it.
        let entry = Entry::new(question.subject.clone(), kind, reply.body.clone(), provider.rules, life);
        return Ok((entry, said.no_store.then_some(NO_STORE)));
    }
    let age = conditional::said_age(&reply.headers);
    // What a 304 does not say anew still holds (RFC 9111, section 4.3.4).
    let unsaid = confirmed.filter(|_| !reply.headers.contains_key(http::header::CACHE_CONTROL));
    let upstream = unsaid.map_or_else(
        || UpstreamLimit {
            max_age: said.max_age.map(|max_age| max_age.saturating_sub(conditional::age(&reply.headers, now))),
            must_revalidate: said.must_revalidate,
            age,
        },
        |known| UpstreamLimit { age, ..known.upstream },
    );
    let body = confirmed.map_or_else(|| reply.body.clone(), |known| known.body.clone());
    let unusable = |mut problem: Box<Problem>| {
        problem.provider_status = Some(reply.status);
        problem.reply = Some(Arc::new(reply.clone()));
        problem
    };
    if confirmed.is_none() {
        plain(provider, &reply.headers).map_err(unusable)?;
    }
    let count = |field: &str, reason: &str| {
        shared.metrics.upstream.mapping_failures.with_label_values(&[&*provider.name, field, reason]).inc();
    };
    let read = entry_of(question, body, upstream, now);
    if let Err(Unreadable { miss: Some(miss), .. }) = &read {
        count(&miss.field.name(), miss.reason.as_str());
    }
    let (mut entry, misses) = read.map_err(|unreadable| unusable(unreadable.problem))?;
    entry.conditions = conditional::conditions(&reply.headers);
    if let Some(known) = confirmed.filter(|_| entry.conditions.is_empty()) {
        entry.conditions.clone_from(&known.conditions);
    }
    misses.iter().for_each(|(field, reason)| count(field, reason));
    if said.no_cache || unsaid.is_some_and(|known| known.ask_always) {
        entry.always_ask();
    }
    let unconfirmable = said.no_cache && entry.conditions.is_empty();
    let forbidden = unconfirmable.then_some("upstream-no-cache");
    if said.no_store {
        entry.always_ask();
    }
    Ok((entry, said.no_store.then_some(NO_STORE).or(forbidden)))
}

/// The most bytes of a provider's error, headers and body, that are kept for who speaks its language.
const MAX_KEPT: usize = 64 << 10;

/// A problem as it is kept: the provider's answer with bytes of its own, and not if it is long.
fn kept(mut problem: Problem) -> Problem {
    problem.reply = problem.reply.and_then(|reply| {
        let headers = reply.headers.iter().map(|(name, value)| (name.clone(), conditional::copied(value)));
        let headers: http::HeaderMap = headers.collect();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let body = reply.body.clone();
        (bytes + body.len() <= MAX_KEPT).then(|| Arc::new(ProviderReply { status: reply.status, headers, body }))
    });
    problem
}

/// Refuses a body in an encoding: none was asked for, and unpacking one is how a small answer becomes large.
fn plain(provider: &Provider, headers: &http::HeaderMap) -> Outcome<()> {
    let encoding =
        headers.get(http::header::CONTENT_ENCODING).filter(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity"));
    let Some(encoding) = encoding else { return Ok(()) };
    let detail = format!("{}: its body is encoded as {encoding:?}, which was not asked for", provider.name);
    Err(Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name)))
}

/// Fields that could not be taken: name and reason.
pub type Misses = Vec<(String, &'static str)>;

/// An entry from a body that came at `now`, with the view that most clients see.
///
/// # Errors
/// 502 `provider_invalid_response`.
pub fn entry_of(
    question: &Question,
    body: bytes::Bytes,
    upstream: UpstreamLimit,
    now: Time,
) -> Result<(Entry, Misses), Unreadable> {
    let (provider, operation) = (question.provider(), question.operation()?);
    let (kind, life, view, misses) = {
        let native = parse(provider, &body)?;
        let reading = operation.read(&provider.name, &provider.mapping, &native, now)?;
        let life = reading.reckon(&provider.freshness, now, upstream).life;
        let kind = match &reading.page {
            None => Kind::Session,
            Some(page) => Kind::Page { next: page.next.clone(), total: page.total },
        };
        let view = reading.view(&provider.mapping, Show::default());
        let misses = reading.misses.iter().map(|miss| (miss.field.name(), miss.reason.as_str())).collect();
        (kind, life, view, misses)
    };
    let views = vec![(Show::default(), Arc::new(view))];
    let entry = Entry::new(question.subject.clone(), kind, body, provider.rules, life);
    Ok((Entry { upstream, views, ..entry }, misses))
}

/// A provider's body as JSON.
///
/// # Errors
/// 502 `provider_invalid_response`.
pub fn parse(provider: &Provider, body: &[u8]) -> Outcome<Value> {
    json::parse(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "ends too early",
            _ => "is not JSON",
        };
        let detail = format!("{}: its body ({} bytes) {what}", provider.name, body.len());
        Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name))
    })
}
