//! One page of a list, merged out of the pages of its sources.
//!
//! A room of its own because a client's page and a provider's page are not the same: pages are asked
//! of a provider always in one size, so that they are shared by all who walk the list, and a token
//! holds where in each source the next page begins. A source's own order is never changed; one that fails is
//! named, and read from the same place the next time.

use crate::cache::Kind;
use crate::conditional::Directives;
use crate::cursor::{Position, Reached};
use crate::error::{Code, Outcome, Problem};
use crate::exchange::Body;
use crate::fetch::{self, Looked, Served};
use crate::fields::Fields;
use crate::held::Counted;
use crate::model::{Form, Show, Time, View, write_json};
use crate::parameters::Page;
use crate::question::{Asking, Question, Shared};
use crate::reading::etag;
use crate::route::Source;
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use crate::template::Values;
use crate::trace::{CacheStatus, How, Trace};
use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderValue;
use serde_json::{Value, json};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pages of a source read to fill one of ours, after its first.
const MAX_FURTHER_PAGES: usize = 5;

/// A list to read, for one client.
pub struct List<'l> {
    /// What all requests share.
    pub shared: &'l Arc<Shared>,
    /// The configuration in force.
    pub snapshot: &'l Arc<Snapshot>,
    /// The client's position.
    pub client: usize,
    /// The path's template: a token is good for one path.
    pub path: &'static str,
    /// What of the list.
    pub page: &'l Page,
    /// Where its sessions come from, and as whom each is asked.
    pub sources: Vec<(&'l Source, Asking)>,
    /// The client's directives.
    pub directives: Directives,
}

/// A source as it is read for one page.
pub struct Reader {
    /// Its place among the sources.
    number: usize,
    reached: Reached,
    /// The provider's page that `reached` is in, and the token of the one after it.
    page: Option<(Arc<View>, Option<String>)>,
    /// The first question and what the cache had for it.
    first: Option<(Question, Looked)>,
    /// Pages that may still be read.
    left: usize,
    total: Option<u64>,
    status: Option<CacheStatus>,
    failed: Option<Box<Problem>>,
}

/// Sessions of a page that follow each other.
struct Run {
    view: Arc<View>,
    items: Range<usize>,
}

/// What a reader has to give next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// This session of its page.
    Session(usize, Option<Time>),
    /// Nobody knows before its next page is read.
    Unread,
    /// As `Unread`, and no more pages may be read for this one of ours.
    Spent,
    /// Nothing: it has ended or failed.
    Nothing,
}

impl List<'_> {
    /// Readers that begin where the token says, or at the start; each with what the cache has for its first page.
    ///
    /// # Errors
    /// 400 for a token that is not this list's, or an id that no path can hold.
    pub fn start(&self) -> Outcome<Vec<Reader>> {
        let places = match &self.page.token {
            None => self.sources.iter().map(|(source, _)| Reached::At(self.beginning(source))).collect(),
            Some(token) => {
                let places = self.snapshot.signer.open(&self.binding(), token);
                places.map_err(|why| Box::new(Problem::invalid(why)))?
            }
        };
        if places.len() != self.sources.len() {
            return Err(Box::new(Problem::invalid("page_token is of another list; start again without it")));
        }
        let now = runtime::now();
        let reader = |(number, reached): (usize, Reached)| {
            let first = match &reached {
                Reached::End { .. } => None,
                Reached::At(position) => {
                    let question = self.question(number, position)?;
                    let looked = fetch::look(self.shared, &question, self.directives, now);
                    Some((question, looked))
                }
            };
            let total = if let Reached::End { total } = reached { total } else { None };
            let left = MAX_FURTHER_PAGES + 1;
            Ok(Reader { number, reached, page: None, first, left, total, status: None, failed: None })
        };
        places.into_iter().enumerate().map(reader).collect()
    }

    fn beginning(&self, source: &Source) -> Position {
        let size = self.snapshot.providers[source.provider].list_sessions.as_ref().map_or(0, |op| op.max_limit);
        Position { page_token: None, size, offset: 0 }
    }

    /// What a token of this list may be used for.
    fn binding(&self) -> Vec<String> {
        let time = |at: Option<Time>| at.map(|at| at.0.to_string()).unwrap_or_default();
        let filter = &self.page.filter;
        let mut binding = vec![
            self.snapshot.clients[self.client].id.to_string(),
            self.path.to_owned(),
            filter.status.map(|s| s.as_str().to_owned()).unwrap_or_default(),
            self.page.enabled.map(|e| e.to_string()).unwrap_or_default(),
            time(filter.created_after),
            time(filter.created_before),
        ];
        for (source, _) in &self.sources {
            binding.push(self.snapshot.providers[source.provider].name.to_string());
            binding.push(source.agent.clone().unwrap_or_default());
        }
        binding
    }

    /// The question for a source's page at a position.
    fn question(&self, number: usize, at: &Position) -> Outcome<Question> {
        let (source, asking) = &self.sources[number];
        let values = Values {
            agent: source.agent.as_deref(),
            session: None,
            limit: (at.size > 0).then_some(at.size),
            page_token: at.page_token.as_deref(),
            enabled: self.page.enabled,
        };
        Question::new(self.snapshot, (self.client, source.provider), asking.clone(), true, &values)
    }

    /// Reads the page as a JSON body.
    ///
    /// # Errors
    /// The failure of a source where none answers, or where none may fail; the token stays usable.
    pub async fn read(&self, mut readers: Vec<Reader>, trace: &mut Trace) -> Outcome<(Body, HeaderValue)> {
        let timeouts = self.sources.iter().map(|(source, _)| self.snapshot.providers[source.provider].target.timeout);
        let latest = Instant::now() + timeouts.max().unwrap_or(Duration::ZERO);
        let chosen = self.merge(&mut readers, latest, trace).await?;
        trace.cache = together(&readers);
        self.judge(&readers)?;
        let sessions = self.sessions(&chosen)?;
        let after = self.after(&readers);
        let etag = tag(&chosen, self.page.shape.fields.as_ref(), &after);
        // Held for this request alone, so many slow readers would hold as many.
        // A part of a stored page holds all of it.
        let held = match (chosen.as_slice(), &self.page.shape.fields) {
            ([run], None) => run.view.body.len(),
            _ => sessions.len(),
        };
        let after = Counted::along(after, held, &self.shared.upstream.budget).ok_or_else(|| {
            let detail = "as many bytes of answers are under way as may be (overload.max_buffered)";
            Box::new(Problem::new(Code::Overloaded, detail).retry_after_ms(1000))
        })?;
        Ok((Body::of([Bytes::from_static(b"{\"sessions\":["), sessions, after]), etag))
    }

    /// Chooses sessions, newest first, and moves the readers on. What is not known is read, from all sources that it is
    /// not known of at the same time.
    async fn merge(&self, readers: &mut [Reader], latest: Instant, trace: &mut Trace) -> Outcome<Vec<Run>> {
        let filter = &self.page.filter;
        let (mut chosen, mut left) = (Vec::new(), self.page.limit);
        let mut heads: Vec<Head> = readers.iter_mut().map(|reader| reader.head(filter)).collect();
        while left > 0 {
            if heads.contains(&Head::Unread) {
                self.read_pages(readers, &heads, latest, trace).await?;
                heads = readers.iter_mut().map(|reader| reader.head(filter)).collect();
                continue;
            }
            // What a source has next cannot be known for now: the order of what all have next cannot either.
            if heads.contains(&Head::Spent) {
                break;
            }
            let Some((number, item)) = newest(&heads) else { break };
            let reader = &mut readers[number];
            if let Some((view, _)) = &reader.page {
                choose(&mut chosen, view, item);
                left -= 1;
            }
            reader.pass(item);
            heads[number] = reader.head(filter);
        }
        Ok(chosen)
    }

    async fn read_pages(
        &self,
        readers: &mut [Reader],
        heads: &[Head],
        latest: Instant,
        trace: &mut Trace,
    ) -> Outcome<()> {
        let unread = readers.iter_mut().zip(heads).filter(|(_, head)| **head == Head::Unread);
        let mut parts = join_all(unread.map(|(reader, _)| self.read_page(reader, latest, trace.part()))).await;
        trace.waited += parts.iter().map(|part| part.waited).max().unwrap_or_default();
        parts.iter_mut().for_each(|part| trace.join(part));
        match readers.iter().find_map(|reader| reader.failed.as_ref()).filter(|_| self.page.deny_partial) {
            None => Ok(()),
            Some(problem) => {
                trace.cache = together(readers);
                Err(problem.clone())
            }
        }
    }

    /// Reads the page in which a source goes on; what became of that.
    async fn read_page(&self, reader: &mut Reader, latest: Instant, mut trace: Trace) -> Trace {
        reader.left -= 1;
        let read = self.ask(reader, latest, &mut trace).await;
        if let Some(status) = trace.cache.take() {
            reader.status = Some(worse(reader.status.take(), status));
        }
        if let Err(problem) = read {
            // It is gone for good: there is nothing to take up again.
            if problem.code.is_not_found() {
                reader.reached = Reached::End { total: None };
            }
            reader.failed = Some(problem);
        }
        trace
    }

    async fn ask(&self, reader: &mut Reader, latest: Instant, trace: &mut Trace) -> Outcome<()> {
        let Reached::At(at) = &reader.reached else { return Ok(()) };
        let (question, looked) = match reader.first.take() {
            Some(first) => first,
            None => {
                let question = self.question(reader.number, at)?;
                let looked = fetch::look(self.shared, &question, self.directives, runtime::now());
                (question, looked)
            }
        };
        let Served { entry, status } = fetch::obtain(self.shared, &question, looked, Some(latest), trace).await?;
        trace.cache = Some(status);
        let (next, total) = match &entry.kind {
            Kind::Page { next, total } => (next, *total),
            Kind::NotFound(problem) => return Err(problem.clone()),
            Kind::Session => {
                return Err(Box::new(Problem::new(Code::InternalError, "a session where a list was stored")));
            }
        };
        let form = if self.page.shape.native { Form::WithNative } else { Form::Unified };
        let show = Show { secrets: self.snapshot.clients[self.client].reveal_secrets, form };
        let view = fetch::view(self.shared, &question, &entry, show, runtime::now())?;
        (reader.total, reader.page) = (total, Some((view, next.clone())));
        Ok(())
    }

    /// Where no source that had something left has answered, their failure is the answer: of several, one that may
    /// pass comes first.
    fn judge(&self, readers: &[Reader]) -> Outcome<()> {
        let answered = readers.iter().any(|reader| reader.failed.is_none() && reader.status.is_some());
        let mut failures: Vec<&Problem> = readers.iter().filter_map(|reader| reader.failed.as_deref()).collect();
        failures.sort_by_key(|problem| problem.code.status() < 500);
        match failures.first() {
            Some(problem) if !answered => Err(Box::new(Problem::clone(problem))),
            _ => Ok(()),
        }
    }

    /// The sessions' JSON, with commas between. Those that follow each other in one page are the very bytes that are
    /// stored.
    fn sessions(&self, chosen: &[Run]) -> Outcome<Bytes> {
        let fields = &self.page.shape.fields;
        if let ([run], None) = (chosen, fields) {
            return Ok(run.view.body.slice(run.place()));
        }
        let mut out = Vec::with_capacity(chosen.iter().map(|run| run.place().len() + 1).sum());
        for run in chosen {
            if !out.is_empty() {
                out.push(b',');
            }
            match fields {
                None => out.extend_from_slice(&run.view.body[run.place()]),
                Some(fields) => run.cut(fields, &mut out)?,
            }
        }
        Ok(out.into())
    }

    /// What stands behind the sessions.
    fn after(&self, readers: &[Reader]) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"],\"next_page_token\":");
        write_json(&mut out, &self.next_token(readers));
        out.extend_from_slice(b",\"total_count\":");
        let total: Option<u64> = readers.iter().map(|reader| reader.total.filter(|_| reader.failed.is_none())).sum();
        write_json(&mut out, &total.filter(|_| self.page.filter.is_open()));
        out.extend_from_slice(b",\"partial\":");
        write_json(&mut out, &readers.iter().any(|reader| reader.failed.is_some()));
        out.extend_from_slice(b",\"sources\":");
        let now = runtime::now();
        write_json(&mut out, &readers.iter().map(|reader| self.row(reader, now)).collect::<Vec<_>>());
        out.push(b'}');
        out
    }

    fn next_token(&self, readers: &[Reader]) -> Option<String> {
        let places: Vec<Reached> = readers.iter().map(|reader| reader.reached.clone()).collect();
        let more = places.iter().any(|place| matches!(place, Reached::At(_)));
        more.then(|| self.snapshot.signer.seal(&self.binding(), &places))
    }

    /// How a source did.
    fn row(&self, reader: &Reader, now: Time) -> Value {
        let source = self.sources[reader.number].0;
        let status = reader.status.as_ref().filter(|_| reader.failed.is_none());
        let state = match (&reader.failed, status.map(|status| status.how)) {
            (Some(problem), _) if problem.code == Code::ProviderRateLimited => "rate_limited",
            (Some(_), _) => "failed",
            (None, None) => "exhausted",
            (None, Some(How::Hit)) => "cached",
            (None, Some(How::Stale(_) | How::StaleOnError { .. })) => "stale",
            (None, Some(_)) => "fresh",
        };
        json!({
            "provider": &*self.snapshot.providers[source.provider].name,
            "agent": source.agent,
            "state": state,
            "age_seconds": status.and_then(|status| status.life).map(|life| life.age(now).as_secs()),
            "error": reader.failed.as_ref().map(|problem| problem.to_value(None)),
        })
    }
}

impl Reader {
    /// What is asked first, if there is something left to read.
    #[must_use]
    pub fn question(&self) -> Option<&Question> {
        self.first.as_ref().map(|(question, _)| question)
    }

    /// Whether its first page is in the cache, if it has one to read.
    #[must_use]
    pub fn is_hit(&self) -> Option<bool> {
        self.first.as_ref().map(|(_, looked)| looked.is_hit())
    }

    /// What it has next that passes, past what does not; at a page's end it moves on to the next.
    fn head(&mut self, filter: &crate::parameters::Filter) -> Head {
        loop {
            let Reached::At(at) = &mut self.reached else { return Head::Nothing };
            let Some((view, next)) = &self.page else {
                return match self.left {
                    _ if self.failed.is_some() => Head::Nothing,
                    0 => Head::Spent,
                    _ => Head::Unread,
                };
            };
            let first = at.offset as usize;
            let mut rest = view.items.get(first..).unwrap_or_default().iter().zip(first..);
            if let Some((item, position)) = rest.find(|(item, _)| filter.takes(item.status, item.created_at)) {
                at.offset = u32::try_from(position).unwrap_or(u32::MAX);
                return Head::Session(position, item.created_at);
            }
            self.reached = match next {
                Some(token) => Reached::At(Position { page_token: Some(token.clone()), size: at.size, offset: 0 }),
                None => Reached::End { total: self.total },
            };
            self.page = None;
        }
    }

    /// Moves past a session of its page that was given.
    fn pass(&mut self, item: usize) {
        if let Reached::At(at) = &mut self.reached {
            at.offset = u32::try_from(item + 1).unwrap_or(u32::MAX);
        }
    }
}

impl Run {
    /// Where its sessions stand in the page's JSON.
    fn place(&self) -> Range<usize> {
        let items = &self.view.items[self.items.clone()];
        match (items.first(), items.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }

    /// Appends what these fields have of each session.
    fn cut(&self, fields: &Fields, out: &mut Vec<u8>) -> Outcome<()> {
        for (number, item) in self.view.items[self.items.clone()].iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            fields.cut(&self.view.body[item.start..item.end], out)?;
        }
        Ok(())
    }
}

/// Adds a session to those that are chosen.
fn choose(chosen: &mut Vec<Run>, view: &Arc<View>, item: usize) {
    match chosen.last_mut() {
        Some(run) if run.items.end == item && Arc::ptr_eq(&run.view, view) => run.items.end += 1,
        _ => chosen.push(Run { view: view.clone(), items: item..item + 1 }),
    }
}

/// A list's tag, made of the pages' own tags, which of their sessions were chosen, what of them is shown, and all else
/// that stands in the body: the sessions, which are most of it, need not be digested again.
fn tag(chosen: &[Run], fields: Option<&Fields>, after: &[u8]) -> HeaderValue {
    let mut made_of = Vec::with_capacity(48 * chosen.len() + after.len());
    for Run { view, items } in chosen {
        // Pages' tags are all of one length.
        made_of.extend_from_slice(view.etag.as_bytes());
        made_of.extend([items.start, items.end].iter().flat_map(|place| place.to_le_bytes()));
    }
    made_of.extend(fields.iter().flat_map(|fields| format!("{fields:?}").into_bytes()));
    made_of.extend_from_slice(after);
    etag(&made_of)
}

/// Whose head is the newest: one that does not say when it was made comes first, so that it blocks nothing; of
/// equals, that of the source named first.
fn newest(heads: &[Head]) -> Option<(usize, usize)> {
    let mut best: Option<(Option<Time>, usize, usize)> = None;
    for (number, head) in heads.iter().enumerate() {
        let Head::Session(item, made) = *head else { continue };
        let newer = best.is_none_or(|(than, ..)| match (made, than) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(made), Some(than)) => made > than,
        });
        if newer {
            best = Some((made, number, item));
        }
    }
    best.map(|(_, number, item)| (number, item))
}

/// How the cache took part in all that was read. What is partial is good for this moment only.
fn together(readers: &[Reader]) -> Option<CacheStatus> {
    let all = readers.iter().filter_map(|reader| reader.status.clone());
    let failed = readers.iter().any(|reader| reader.failed.is_some());
    let status = all.fold(None, |one, other| Some(worse(one, other)))?;
    Some(CacheStatus { life: status.life.filter(|_| !failed), ..status })
}

/// Of several answers: a hit only if all were, and the times of the one that ends first.
#[must_use]
pub fn worse(one: Option<CacheStatus>, other: CacheStatus) -> CacheStatus {
    let rank = |status: &CacheStatus| match status.how {
        How::Hit => 0,
        How::Forwarded { collapsed: true, .. } => 1,
        How::Forwarded { .. } | How::Refused(_) => 2,
        How::Stale(_) | How::StaleOnError { .. } => 3,
    };
    let Some(one) = one else { return other };
    let how = if rank(&one) > rank(&other) { one.how } else { other.how };
    let life = [one.life, other.life].into_iter().flatten().min_by_key(|life| life.fresh_until);
    CacheStatus { how, life }
}
