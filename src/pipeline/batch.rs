//! Reads up to a hundred sessions by their ids, from all providers.
//!
//! An id that occurs several times is read once. Each provider gets a limited number of calls at a time. A session that
//! fails does not fail the others.

use crate::base::ids::{ClientId, ProviderId};
use crate::base::model::{Time, View, write_json};
use crate::base::operation::Operation;
use crate::base::problem::{Outcome, Problem};
use crate::base::request_headers::RequestHeaders;
use crate::engine::memory_budget::BudgetedBytes;
use crate::engine::rate_limit::Cost;
use crate::engine::request_record::{ProviderCost, RequestRecord};
use crate::fetch::provider_query::{ProviderIdentity, ProviderQuery, QueryTarget, SharedState};
use crate::fetch::{self, CacheLookup, Served};
use crate::pipeline::obtain::LookedUpQuery;
use crate::pipeline::{cache_status, obtain, problems, representation};
use crate::rules::cache_control::Directives;
use crate::rules::parameters::Representation;
use crate::rules::route::{BatchId, SessionName};
use crate::rules::template::Values;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use std::collections::HashMap;
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
    session: Outcome<Arc<View>>,
    record: RequestRecord,
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
    /// 503 if the response buffer limit is reached.
    pub(crate) async fn read(&self, jobs: BatchJobs, started: Instant, record: &mut RequestRecord) -> Outcome<Bytes> {
        let BatchJobs { jobs, job_of_id } = jobs;
        let timeouts = jobs.iter().filter_map(|job| Some(self.snapshot.providers[job.provider?].target.timeout));
        let deadline = started + timeouts.max().unwrap_or(Duration::ZERO);
        let mut by_provider: HashMap<Option<ProviderId>, Vec<_>> = HashMap::new();
        for (position, job) in jobs.into_iter().enumerate() {
            let provider = job.provider;
            by_provider.entry(provider).or_default().push(self.run(position, job, deadline, record.part()));
        }
        let reads = by_provider
            .into_values()
            .map(|reads| stream::iter(reads).buffer_unordered(CALLS_PER_PROVIDER).collect::<Vec<_>>());
        let mut items: Vec<BatchItem> = join_all(reads).await.into_iter().flatten().collect();
        items.sort_by_key(|item| item.job);
        let mut any_failed = false;
        for item in &mut items {
            any_failed |= item.session.as_ref().is_err_and(|problem| !problem.code.is_not_found());
            record.provider_wait = record.provider_wait.max(item.record.provider_wait);
            record.join(&mut item.record);
        }
        let statuses = items.iter_mut().filter_map(|item| item.record.cache.take());
        record.cache = cache_status::of_all(statuses, any_failed);
        let body = self.body(&items, &job_of_id)?;
        BudgetedBytes::reserve(body, &self.shared.upstream.budget).ok_or_else(problems::buffer_limit)
    }

    async fn run(&self, position: usize, job: Job, deadline: Instant, mut record: RequestRecord) -> BatchItem {
        let session = match job.query {
            Err(problem) => {
                if let Some(data) = &mut record.explain {
                    data.provider_responses.push(json!({ "problem": problem.to_value(None) }));
                }
                Err(problem)
            }
            Ok(LookedUpQuery { query, lookup }) => self.session(&query, lookup, deadline, &mut record).await,
        };
        BatchItem { job: position, session, record }
    }

    async fn session(
        &self,
        query: &ProviderQuery,
        lookup: CacheLookup,
        deadline: Instant,
        record: &mut RequestRecord,
    ) -> Outcome<Arc<View>> {
        let Served { entry, status } =
            obtain::obtain(self.shared, query, lookup, Some(deadline), self.now, record).await?;
        record.cache = Some(status);
        obtain::check_exists(&entry)?;
        let show = representation::show(self.snapshot, self.client, self.shape);
        Ok(fetch::view(self.shared, query, &entry, show, self.shared.now())?)
    }

    fn body(&self, items: &[BatchItem], job_of_id: &[usize]) -> Outcome<Vec<u8>> {
        let mut out = Vec::with_capacity(1024 * job_of_id.len());
        out.extend_from_slice(b"{\"results\":[");
        for (position, (id, job)) in self.ids.iter().zip(job_of_id).enumerate() {
            out.extend_from_slice(if position > 0 { b",{\"id\":" } else { b"{\"id\":" });
            write_json(&mut out, &id.text);
            match &items[*job].session {
                Ok(view) => {
                    out.extend_from_slice(b",\"session\":");
                    match &self.shape.fields {
                        None => out.extend_from_slice(&view.body),
                        Some(fields) => fields.write_selected(&view.body, &mut out)?,
                    }
                    out.extend_from_slice(b",\"error\":null}");
                }
                Err(problem) => {
                    out.extend_from_slice(b",\"session\":null,\"error\":");
                    write_json(&mut out, &problem.to_value(None));
                    out.push(b'}');
                }
            }
        }
        out.extend_from_slice(b"]}");
        Ok(out)
    }
}
