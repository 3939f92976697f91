//! Reads up to a hundred sessions by their ids, from all providers.
//!
//! An id that occurs several times is read once. Each provider gets a limited number of calls at a time. A session that
//! fails does not fail the others.

use crate::base::ids::{ClientId, ProviderId};
use crate::base::memory_budget::Reservation;
use crate::base::model::{Time, write_json};
use crate::base::operation::Operation;
use crate::base::problem::{Code, Outcome, Problem};
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::BodyBuilder;
use crate::engine::rate_limit::Cost;
use crate::engine::request_record::{ProviderCost, RequestRecord};
use crate::fetch::CacheLookup;
use crate::fetch::provider_query::{ProviderIdentity, ProviderQuery, QueryTarget, SharedState};
use crate::pipeline::held::{self, HeldView};
use crate::pipeline::obtain::LookedUpQuery;
use crate::pipeline::respond::{Compressible, Content};
use crate::pipeline::{cache_status, obtain, representation};
use crate::rules::cache_control::Directives;
use crate::rules::parameters::Representation;
use crate::rules::provider_body::etag;
use crate::rules::route::{BatchId, SessionName};
use crate::rules::template::Values;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::HeaderValue;
use serde_json::json;
use std::collections::HashMap;
use std::iter;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The limit of sessions that one batch reads from one provider at the same time.
const CALLS_PER_PROVIDER: usize = 16;

/// A batch request of one client.
pub(crate) struct Batch<'b> {
    /// The state that all requests share.
    pub shared: &'b Arc<SharedState>,
    /// The configuration in force.
    pub snapshot: &'b Arc<Snapshot>,
    /// The client.
    pub client: ClientId,
    /// The ids.
    pub ids: &'b [BatchId],
    /// Which fields of the sessions the response contains.
    pub shape: &'b Representation,
    /// When the request arrived.
    pub now: Time,
}

/// The distinct sessions of a batch.
pub(crate) struct BatchJobs {
    /// One job for each distinct session.
    pub jobs: Vec<Job>,
    /// For each id of the request, the position of its job.
    job_of_id: Vec<usize>,
}

/// One session to read.
pub(crate) struct Job {
    /// The provider, if the id names one.
    provider: Option<ProviderId>,
    query: Outcome<LookedUpQuery>,
}

/// The result of one job.
struct BatchItem {
    /// The position of the job.
    job: usize,
    session: Outcome<BatchSession>,
    record: RequestRecord,
}

/// The session that one job has read.
struct BatchSession {
    /// Its JSON: that of a view, or a copy of the selected fields.
    json: Bytes,
    /// The entity tag of the view.
    etag: HeaderValue,
    /// The memory of the JSON.
    memory: Arc<Reservation>,
}

impl Job {
    /// Returns the provider query.
    ///
    /// # Errors
    /// The session has no query: its id is invalid, or the client may not use the provider.
    pub(crate) fn query(&self) -> Result<&ProviderQuery, Box<Problem>> {
        self.query.as_ref().map(|looked_up| &looked_up.query).map_err(Clone::clone)
    }

    /// Returns the cost of the job.
    #[must_use]
    pub(crate) fn cost(&self) -> ProviderCost {
        let hit = self.query.as_ref().is_ok_and(|looked_up| looked_up.lookup.is_hit());
        ProviderCost { provider: self.provider, cost: Cost::one(hit) }
    }
}

impl Batch<'_> {
    /// Makes the jobs, and looks each session up in the cache.
    #[must_use]
    pub(crate) fn jobs(&self, headers: &RequestHeaders, directives: Directives) -> BatchJobs {
        let (mut jobs, mut job_of_id) = (Vec::new(), Vec::with_capacity(self.ids.len()));
        let mut known: HashMap<Result<&SessionName, &str>, usize> = HashMap::new();
        for BatchId { text, session } in self.ids {
            let job = *known.entry(session.as_ref().map_err(|_| text.as_str())).or_insert_with(|| {
                let valid = session.as_ref().map_err(|error| error.clone().into());
                let query = valid.and_then(|name| self.look_up(name, headers, directives));
                jobs.push(Job { provider: session.as_ref().ok().map(|name| name.provider), query });
                jobs.len() - 1
            });
            job_of_id.push(job);
        }
        BatchJobs { jobs, job_of_id }
    }

    fn look_up(&self, name: &SessionName, headers: &RequestHeaders, directives: Directives) -> Outcome<LookedUpQuery> {
        let identity = ProviderIdentity::of(self.snapshot, self.client, name.provider, headers)?;
        let values = Values { agent: name.agent.as_deref(), session: Some(&name.session), ..Values::default() };
        let target = QueryTarget { client: self.client, provider: name.provider, operation: Operation::GetSession };
        let query = ProviderQuery::new(self.snapshot, target, identity, &values)?;
        Ok(LookedUpQuery::new(self.shared, query, directives, self.now))
    }

    /// Runs the jobs and returns the JSON body. A session that fails has its problem in the body. The deadline of all
    /// jobs counts from `started`.
    ///
    /// # Errors
    /// 503 once the sessions exceed the client's share of the memory. The other jobs are not run then.
    pub(crate) async fn read(&self, jobs: BatchJobs, started: Instant, record: &mut RequestRecord) -> Outcome<Content> {
        let BatchJobs { jobs, job_of_id } = jobs;
        let timeouts = jobs.iter().filter_map(|job| Some(self.snapshot.providers[job.provider?].target.timeout));
        let deadline = started + timeouts.max().unwrap_or(Duration::ZERO);
        let mut by_provider: HashMap<Option<ProviderId>, Vec<_>> = HashMap::new();
        for (position, job) in jobs.into_iter().enumerate() {
            let provider = job.provider;
            by_provider.entry(provider).or_default().push((position, job, record.part()));
        }
        // A future is made when its turn comes: it takes some kilobytes.
        let reads = by_provider.into_values().map(|jobs| {
            let reads = jobs.into_iter().map(|(position, job, record)| self.run(position, job, deadline, record));
            stream::iter(reads).buffer_unordered(CALLS_PER_PROVIDER).try_collect::<Vec<_>>()
        });
        let mut items: Vec<BatchItem> = try_join_all(reads).await?.into_iter().flatten().collect();
        items.sort_by_key(|item| item.job);
        let mut any_failed = false;
        for item in &mut items {
            any_failed |= item.session.as_ref().is_err_and(|problem| !problem.code.is_not_found());
            record.provider_wait = record.provider_wait.max(item.record.provider_wait);
            record.join(&mut item.record);
        }
        let statuses = items.iter_mut().filter_map(|item| item.record.cache.take());
        record.cache = cache_status::of_all(statuses, any_failed);
        self.content(&items, &job_of_id)
    }

    /// Runs one job.
    ///
    /// # Errors
    /// The session would exceed the client's share of the memory.
    async fn run(&self, position: usize, job: Job, deadline: Instant, mut record: RequestRecord) -> Outcome<BatchItem> {
        let session = match job.query {
            Err(problem) => {
                if let Some(data) = &mut record.explain {
                    data.provider_responses.push(json!({ "problem": problem.to_value(None) }));
                }
                Err(problem)
            }
            Ok(LookedUpQuery { query, lookup }) => self.session(&query, lookup, deadline, &mut record).await?,
        };
        Ok(BatchItem { job: position, session, record })
    }

    /// Reads one session.
    ///
    /// # Errors
    /// The session would exceed the client's share of the memory. Another failure is the result of this session.
    async fn session(
        &self,
        query: &ProviderQuery,
        lookup: CacheLookup,
        deadline: Instant,
        record: &mut RequestRecord,
    ) -> Outcome<Outcome<BatchSession>> {
        let served = obtain::try_obtain(self.shared, query, lookup, Some(deadline), self.now, record).await;
        let mut served = match served {
            Ok(served) => served,
            Err(error) if error.is_buffer_limit() => return Err(error.into()),
            Err(error) => return Ok(Err(error.into())),
        };
        record.cache = Some(served.status.clone());
        if let Err(problem) = obtain::check_exists(&served.entry) {
            return Ok(Err(problem));
        }
        let show = representation::show(self.snapshot, self.client, self.shape);
        let HeldView { view, memory } = match HeldView::of(self.shared, query, (&mut served).into(), show) {
            Ok(held) => held,
            Err(problem) if problem.code == Code::Overloaded => return Err(problem),
            Err(problem) => return Ok(Err(problem)),
        };
        let etag = view.etag.clone();
        let Some(fields) = &self.shape.fields else {
            return Ok(Ok(BatchSession { json: view.body.clone(), etag, memory }));
        };
        let (json, memory) = held::selected(fields, iter::once(&*view.body), &query.memory_share(self.shared))?;
        Ok(Ok(BatchSession { json, etag, memory: Arc::new(memory) }))
    }

    /// Makes the response. Long sessions are parts of its body; the rest is copied.
    ///
    /// # Errors
    /// The copies would exceed the client's share of the memory.
    fn content(&self, items: &[BatchItem], job_of_id: &[usize]) -> Outcome<Content> {
        /// The bytes around an id and its session.
        const AROUND: usize = 64;
        let problems: Vec<String> =
            items.iter().map(|item| problem_text(item.session.as_ref().err().map(|problem| &**problem))).collect();
        let size = |(id, job): (&BatchId, &usize)| {
            let session = items[*job].session.as_ref().map_or(0, |session| BodyBuilder::copied(&session.json));
            // An id has no characters that JSON escapes by more than one.
            AROUND + 2 * id.text.len() + session + problems[*job].len()
        };
        let size: usize = self.ids.iter().zip(job_of_id).map(size).sum();
        let share = self.snapshot.memory_share(self.client, &self.shared.upstream.budget);
        let memory = share.reserve(AROUND + size)?;
        let (mut body, mut tags) = (BodyBuilder::with_capacity(AROUND + size), Vec::new());
        body.text().extend_from_slice(b"{\"results\":[");
        for (position, (id, job)) in self.ids.iter().zip(job_of_id).enumerate() {
            body.text().extend_from_slice(if position > 0 { b",{\"id\":" } else { b"{\"id\":" });
            write_json(body.text(), &id.text);
            write_json(&mut tags, &id.text);
            match &items[*job].session {
                Ok(session) => {
                    body.text().extend_from_slice(b",\"session\":");
                    body.stored(&session.json);
                    body.text().extend_from_slice(b",\"error\":null}");
                    tags.extend_from_slice(session.etag.as_bytes());
                }
                Err(_) => {
                    body.text().extend_from_slice(b",\"session\":null,\"error\":");
                    body.text().extend_from_slice(problems[*job].as_bytes());
                    body.text().push(b'}');
                    tags.extend_from_slice(problems[*job].as_bytes());
                }
            }
        }
        body.text().extend_from_slice(b"]}");
        tags.extend(self.shape.fields.iter().flat_map(|fields| format!("{fields:?}").into_bytes()));
        let sessions = items.iter().filter_map(|item| item.session.as_ref().ok());
        let held = sessions.map(|session| session.memory.clone()).chain([Arc::new(memory)]);
        let shows_secrets = representation::show(self.snapshot, self.client, self.shape).secrets;
        let content = Content::json(body.finish().holding(held), Some(etag(&tags)));
        Ok(content.compressible(Compressible::Once, shows_secrets))
    }
}

/// Returns the JSON of a problem; empty without one.
fn problem_text(problem: Option<&Problem>) -> String {
    problem.map_or_else(String::new, |problem| problem.to_value(None).to_string())
}
