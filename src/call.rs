//! One call to a provider, from the breaker to the cache.
//!
//! A room of its own because this is the coalesced part: it runs once for any number of callers, and
//! reads as a column: breaker → tap → upstream → judge → map → store. It knows no caller.

use crate::cache::{Entry, Kind};
use crate::conditional;
use crate::error::{Code, Outcome, Problem};
use crate::exchange::{ProviderReply, ProviderRequest};
use crate::freshness::{self, UpstreamLimit};
use crate::model::{Show, Time};
use crate::question::{Landed, Question, Shared};
use crate::runtime;
use crate::runtime::snapshot::{Access, Provider};
use crate::trace::Stored;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// One call to a provider, from the breaker to the cache.
///
/// # Errors
/// The provider's failure, or why it was not asked.
pub async fn call(shared: &Shared, question: &Question, store: bool) -> Landed {
    let (provider, access, epoch) = (question.provider(), question.access()?, shared.cache.epoch());
    let known = shared.cache.look(&question.key).filter(|known| !known.conditions.is_empty());
    let reply = ask_provider(shared, question, access, known.as_deref()).await;
    let now = runtime::now();
    let judged = reply.and_then(|reply| judge(shared, question, reply, known.as_deref(), now));
    match judged {
        Ok((entry, forbidden)) => {
            provider.breaker.record(true, now);
            let entry = Arc::new(entry);
            let no_time = (entry.life.last() <= now && !entry.ask_always).then_some("no-lifetime");
            let not_wanted = (!store).then_some("request-no-store");
            let stored = match forbidden.or(not_wanted).or(no_time) {
                Some(reason) => Stored::No(reason),
                None => {
                    let ttl =
                        shared.metrics.cache.ttl.with_label_values(&[&*provider.name, entry.life.source.as_str()]);
                    ttl.observe(entry.life.total().as_secs_f64());
                    shared.cache.store(question.key.clone(), entry.clone(), epoch, now);
                    Stored::Yes
                }
            };
            Ok((entry, stored))
        }
        Err(problem) => {
            if let Some(seconds) = problem.retry_after.filter(|_| problem.provider_status.is_some()) {
                access.tap.close(now.plus(Duration::from_secs(seconds)));
            }
            let asked = problem.code != Code::ProviderUnavailable
                && (problem.code != Code::ProviderRateLimited || problem.provider_status.is_some());
            // Throttling and refusals are answers: the provider is up.
            let failed =
                matches!(problem.code, Code::ProviderError | Code::ProviderTimeout | Code::ProviderInvalidResponse);
            if asked {
                provider.breaker.record(!failed, now);
            }
            Err(problem)
        }
    }
}

/// Breaker → tap → upstream.
async fn ask_provider(
    shared: &Shared,
    question: &Question,
    access: &Access,
    known: Option<&Entry>,
) -> Outcome<ProviderReply> {
    let (provider, operation, now) = (question.provider(), question.operation()?, runtime::now());
    let name = &provider.name;
    let wait = |code, detail: String, ms: u64| Box::new(Problem::new(code, detail).of(name).retry_after_ms(ms));
    let left = |until: Time| u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
    let refused = |reason| shared.metrics.upstream.refused.with_label_values(&[&**name, reason]).inc();
    if let Some(until) = access.tap.closed_until(now) {
        refused("pause");
        return Err(wait(Code::ProviderRateLimited, format!("{name} asked for a pause, which lasts"), left(until)));
    }
    provider.breaker.admit(now).map_err(|until| {
        refused("breaker");
        wait(Code::ProviderUnavailable, format!("{name} failed repeatedly; it is not asked for a while"), left(until))
    })?;
    // Half of the deadline for the turn leaves half for the answer.
    let latest = tokio::time::Instant::now() + provider.target.timeout / 2;
    let _turn = access.tap.turn(question.client_id(), latest).await.map_err(|wait_for| {
        refused("capacity");
        let ms = u64::try_from(wait_for.0.as_millis()).unwrap_or(u64::MAX);
        wait(Code::ProviderRateLimited, format!("Weir's capacity for {name} is used up"), ms)
    })?;
    let request = ProviderRequest {
        path_and_query: question.path_and_query.clone(),
        credential: access.credential.header.clone(),
        conditions: known.map(|known| known.conditions.clone()).unwrap_or_default(),
    };
    provider.retry_budget.earn();
    let metrics = &shared.metrics.upstream;
    let timer = metrics.duration.with_label_values(&[&**name, operation.name]).start_timer();
    let reply = shared.upstream.get(&provider.target, &request, || provider.retry_budget.take()).await;
    timer.observe_duration();
    let status = match &reply {
        Ok(reply) => reply.status.to_string(),
        Err(failure) => failure.kind.as_str().to_owned(),
    };
    metrics.requests.with_label_values(&[name, operation.name, &status]).inc();
    reply.map_err(|failure| Box::new(provider.errors.judge_failure(&failure)))
}

/// Judge → map. The text says why the answer may not be stored, if it may not.
fn judge(
    shared: &Shared,
    question: &Question,
    reply: ProviderReply,
    known: Option<&Entry>,
    now: Time,
) -> Outcome<(Entry, Option<&'static str>)> {
    let provider = question.provider();
    let confirmed = known.filter(|_| reply.status == 304);
    if reply.status != 200 && confirmed.is_none() {
        let problem = provider.errors.judge(&reply, now);
        if !problem.code.is_not_found() {
            return Err(Box::new(problem));
        }
        let entry = Entry {
            subject: question.subject.clone(),
            stale_from: None,
            kind: Kind::NotFound(Box::new(problem)),
            body: reply.body,
            rules: provider.rules,
            life: freshness::of_not_found(&provider.freshness, now),
            upstream: UpstreamLimit::default(),
            conditions: Vec::new(),
            ask_always: false,
            views: Vec::new(),
        };
        return Ok((entry, None));
    }
    let said = conditional::directives(&reply.headers);
    let upstream = UpstreamLimit {
        max_age: said.max_age.map(|max_age| max_age.saturating_sub(conditional::age(&reply.headers, now))),
    };
    let body = confirmed.map_or(reply.body, |known| known.body.clone());
    let unusable = |mut problem: Box<Problem>| {
        problem.provider_status = Some(reply.status);
        problem
    };
    let (mut entry, misses) = entry_of(question, body, upstream, now).map_err(unusable)?;
    entry.conditions = conditional::conditions(&reply.headers);
    if let Some(known) = confirmed.filter(|_| entry.conditions.is_empty()) {
        entry.conditions.clone_from(&known.conditions);
    }
    let failures = &shared.metrics.upstream.mapping_failures;
    for (field, reason) in misses {
        failures.with_label_values(&[&*provider.name, &field, reason]).inc();
    }
    if said.no_cache {
        entry.always_ask();
    }
    let unconfirmable = said.no_cache && entry.conditions.is_empty();
    let forbidden = unconfirmable.then_some("upstream-no-cache");
    Ok((entry, said.no_store.then_some("upstream-no-store").or(forbidden)))
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
) -> Outcome<(Entry, Misses)> {
    let (provider, operation) = (question.provider(), question.operation()?);
    let (kind, life, view, misses) = {
        let native = parse(provider, &body)?;
        let reading = operation.read(&provider.name, &provider.mapping, &native, now)?;
        let life = match (&reading.page, reading.sessions.first()) {
            (None, Some(session)) => freshness::of_session(&provider.freshness, session, now, upstream),
            _ => freshness::of_list(&provider.freshness, &reading.sessions, now, upstream),
        };
        let kind = match &reading.page {
            None => Kind::Session,
            Some(page) => Kind::Page { next: page.next.clone(), total: page.total },
        };
        let view = reading.view(&provider.mapping, Show::default());
        let misses = reading.misses.iter().map(|miss| (miss.field.name(), miss.reason.as_str())).collect();
        (kind, life, view, misses)
    };
    let views = vec![(Show::default(), Arc::new(view))];
    let (subject, rules) = (question.subject.clone(), provider.rules);
    let conditions = Vec::new();
    let entry =
        Entry { subject, kind, body, rules, life, stale_from: None, upstream, conditions, ask_always: false, views };
    Ok((entry, misses))
}

/// A provider's body as JSON.
///
/// # Errors
/// 502 `provider_invalid_response`.
pub fn parse(provider: &Provider, body: &[u8]) -> Outcome<Value> {
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "ends too early",
            _ => "is not JSON",
        };
        let detail = format!("{}: its body ({} bytes) {what}", provider.name, body.len());
        Box::new(Problem::new(Code::ProviderInvalidResponse, detail).of(&provider.name))
    })
}
