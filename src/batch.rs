//! Up to a hundred sessions by their ids, over all providers.
//!
//! A room of its own because many answers are wanted at once: each id is asked once, however often it is
//! named, and a provider is asked for only so many at the same time. One that fails fails alone.

use crate::cache::Kind;
use crate::conditional::Directives;
use crate::error::{Code, Outcome, Problem};
use crate::fetch::{self, Looked, Served};
use crate::headers::Headers;
use crate::held::Counted;
use crate::listing::worse;
use crate::model::{Form, Show, View, write_json};
use crate::parameters::Shape;
use crate::question::{Asking, Question, Shared};
use crate::ratelimit::Cost;
use crate::route::Name;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use crate::template::Values;
use crate::trace::Trace;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How many sessions of a batch a provider is asked for at the same time.
const AT_ONCE: usize = 16;

/// Sessions to read, for one client.
pub struct Batch<'b> {
    /// What all requests share.
    pub shared: &'b Arc<Shared>,
    /// The configuration in force.
    pub snapshot: &'b Arc<Snapshot>,
    /// The client's position.
    pub client: usize,
    /// Each id as asked, and which session it is, or why it is none.
    pub ids: &'b [(String, Outcome<Name>)],
    /// How they are shown.
    pub shape: &'b Shape,
}

/// One session to read, or why it cannot be.
pub struct Job {
    /// The provider's position, where it is known.
    provider: Option<usize>,
    asked: Outcome<(Question, Looked)>,
}

/// What became of one.
struct Done {
    session: Outcome<Arc<View>>,
    trace: Trace,
}

impl Job {
    /// What is asked.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn question(&self) -> Result<&Question, Box<Problem>> {
        self.asked.as_ref().map(|(question, _)| question).map_err(Clone::clone)
    }

    /// The provider it goes to, and what it costs there.
    #[must_use]
    pub fn cost(&self) -> (Option<usize>, Cost) {
        let hit = self.asked.as_ref().is_ok_and(|(_, looked)| looked.is_hit());
        (self.provider, Cost::one(hit))
    }
}

impl Batch<'_> {
    /// One job for each session, with what the cache has for it; and which of them each id is.
    #[must_use]
    pub fn jobs(&self, headers: &Headers, directives: Directives) -> (Vec<Job>, Vec<usize>) {
        let (mut jobs, mut places) = (Vec::new(), Vec::with_capacity(self.ids.len()));
        let mut known: HashMap<Result<&Name, &str>, usize> = HashMap::new();
        for (id, name) in self.ids {
            let place = *known.entry(name.as_ref().map_err(|_| id.as_str())).or_insert_with(|| {
                let asked = name.clone().and_then(|name| self.look(&name, headers, directives));
                jobs.push(Job { provider: name.as_ref().ok().map(|name| name.provider), asked });
                jobs.len() - 1
            });
            places.push(place);
        }
        (jobs, places)
    }

    fn look(&self, name: &Name, headers: &Headers, directives: Directives) -> Outcome<(Question, Looked)> {
        let asking = Asking::of(self.snapshot, self.client, name.provider, headers)?;
        let values = Values { agent: name.agent.as_deref(), session: Some(&name.session), ..Values::default() };
        let question = Question::new(self.snapshot, (self.client, name.provider), asking, false, &values)?;
        let looked = fetch::look(self.shared, &question, directives, runtime::now());
        Ok((question, looked))
    }

    /// Reads all of them, as a JSON body.
    ///
    /// # Errors
    /// 503 where as many bytes are under way as may be. What fails of a session stands in its result.
    pub async fn read(&self, jobs: Vec<Job>, places: &[usize], trace: &mut Trace) -> Outcome<Bytes> {
        let timeouts = jobs.iter().filter_map(|job| Some(self.snapshot.providers[job.provider?].target.timeout));
        let latest = Instant::now() + timeouts.max().unwrap_or(Duration::ZERO);
        let mut by_provider: HashMap<Option<usize>, Vec<(usize, Job)>> = HashMap::new();
        for (place, job) in jobs.into_iter().enumerate() {
            by_provider.entry(job.provider).or_default().push((place, job));
        }
        let each = by_provider.into_values().map(|jobs| {
            let reads: Vec<_> =
                jobs.into_iter().map(|(place, job)| self.one(place, job, latest, trace.part())).collect();
            stream::iter(reads).buffer_unordered(AT_ONCE).collect::<Vec<_>>()
        });
        let mut done: Vec<(usize, Done)> = join_all(each).await.into_iter().flatten().collect();
        done.sort_by_key(|(place, _)| *place);
        let mut failed = false;
        for (_, Done { session, trace: part }) in &mut done {
            failed |= session.as_ref().is_err_and(|problem| !problem.code.is_not_found());
            trace.waited = trace.waited.max(part.waited);
            if let Some(status) = part.cache.take() {
                trace.cache = Some(worse(trace.cache.take(), status));
            }
            trace.join(part);
        }
        if let Some(status) = trace.cache.as_mut().filter(|_| failed) {
            // Good for this moment only.
            status.life = None;
        }
        let body = self.body(&done, places)?;
        Counted::bytes(body, &self.shared.upstream.budget).ok_or_else(|| {
            let detail = "as many bytes of answers are under way as may be (overload.max_buffered)";
            Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000))
        })
    }

    async fn one(&self, place: usize, job: Job, latest: Instant, mut trace: Trace) -> (usize, Done) {
        let session = match job.asked {
            Err(problem) => {
                let gathered = trace.explain.iter_mut();
                gathered.for_each(|all| all.answers.push(json!({ "problem": problem.to_value(None) })));
                Err(problem)
            }
            Ok((question, looked)) => self.session(&question, looked, latest, &mut trace).await,
        };
        (place, Done { session, trace })
    }

    async fn session(
        &self,
        question: &Question,
        looked: Looked,
        latest: Instant,
        trace: &mut Trace,
    ) -> Outcome<Arc<View>> {
        let Served { entry, status } = fetch::obtain(self.shared, question, looked, Some(latest), trace).await?;
        trace.cache = Some(status);
        if let Kind::NotFound(problem) = &entry.kind {
            return Err(problem.clone());
        }
        let form = if self.shape.native { Form::WithNative } else { Form::Unified };
        let show = Show { secrets: self.snapshot.clients[self.client].reveal_secrets, form };
        fetch::view(self.shared, question, &entry, show, runtime::now())
    }

    fn body(&self, done: &[(usize, Done)], places: &[usize]) -> Outcome<Vec<u8>> {
        let mut out = Vec::with_capacity(1024 * places.len());
        out.extend_from_slice(b"{\"results\":[");
        for (position, ((id, _), place)) in self.ids.iter().zip(places).enumerate() {
            out.extend_from_slice(if position > 0 { b",{\"id\":" } else { b"{\"id\":" });
            write_json(&mut out, id);
            match &done[*place].1.session {
                Ok(view) => {
                    out.extend_from_slice(b",\"session\":");
                    match &self.shape.fields {
                        None => out.extend_from_slice(&view.body),
                        Some(fields) => fields.cut(&view.body, &mut out)?,
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
