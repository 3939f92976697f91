//! Merges the pages of several sources into one page of a list.
//!
//! Provider pages always have the provider's largest size, so that all clients share their cache entries. The page token
//! stores the position in each source. The merge keeps the order of each source. A source that fails is reported in the
//! page, and the next page continues it at the same position.

use crate::base::ids::ClientId;
use crate::base::memory_budget::{MemoryShare, Reservation};
use crate::base::model::{Time, write_json};
use crate::base::operation::Operation;
use crate::base::problem::{Code, Outcome};
use crate::base::request_headers::RequestHeaders;
use crate::base::request_reply::{Body, BodyBuilder};
use crate::engine::cache::EntryKind;
use crate::engine::rate_limit::Cost;
use crate::engine::request_record::{CacheOutcome, ProviderCost, RequestRecord};
use crate::fetch::provider_query::{
    IdentityError, ProviderIdentity, ProviderQuery, ProviderQueryError, QueryTarget, SharedState,
};
use crate::pipeline::held::{self, HeldView};
use crate::pipeline::obtain::LookedUpQuery;
use crate::pipeline::respond::{Compressible, Content};
use crate::pipeline::source_reader::{
    NextPage, NextSession, ProviderPage, SourceReader, check_any_succeeded, combined_status, newest,
};
use crate::pipeline::{cache_status, obtain, problems, representation};
use crate::rules::cache_control::Directives;
use crate::rules::cut_list::CutList;
use crate::rules::fields::FieldSelection;
use crate::rules::page_rules::Pages;
use crate::rules::page_token::{Position, SourceProgress};
use crate::rules::page_url::ListUrl;
use crate::rules::parameters::Page;
use crate::rules::provider_body::{BodyFault, UnreadableBody, etag};
use crate::rules::route::ListSource;
use crate::rules::template::Values;
use crate::runtime::snapshot::Snapshot;
use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderValue;
use serde_json::{Value, json};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A list request of one client.
pub(crate) struct List<'l> {
    /// The state that all requests share.
    pub shared: &'l Arc<SharedState>,
    /// The configuration in force.
    pub snapshot: &'l Arc<Snapshot>,
    /// The client.
    pub client: ClientId,
    /// The route's template. A page token is valid for one route.
    pub path: &'static str,
    /// The page's size, token, filter and representation.
    pub page: &'l Page,
    /// The sources.
    pub sources: Vec<IdentifiedSource<'l>>,
    /// The request's cache directives.
    pub directives: Directives,
    /// When the request arrived.
    pub now: Time,
}

/// A source, and the client's identity at its provider.
pub(crate) struct IdentifiedSource<'l> {
    source: &'l ListSource,
    identity: ProviderIdentity,
}

impl<'l> IdentifiedSource<'l> {
    /// Finds the client's identity at a source's provider.
    ///
    /// # Errors
    /// The client may not use the provider, or its request lacks the credential.
    pub(crate) fn of(
        snapshot: &Snapshot,
        client: ClientId,
        source: &'l ListSource,
        headers: &RequestHeaders,
    ) -> Result<Self, IdentityError> {
        Ok(Self { source, identity: ProviderIdentity::of(snapshot, client, source.provider, headers)? })
    }
}

/// Consecutive sessions of one provider page.
struct Run {
    page: HeldView,
    items: Range<usize>,
}

impl List<'_> {
    /// Creates the readers, at the positions of the page token or at the start, and looks up their first pages.
    ///
    /// # Errors
    /// 400 for the token of another list, or for an id that no path can contain.
    pub(crate) fn start(&self) -> Outcome<Vec<SourceReader>> {
        let positions = match &self.page.token {
            None => self.sources.iter().map(|source| SourceProgress::At(self.start_position(source.source))).collect(),
            Some(token) => self.snapshot.signer.open(&self.binding(), token)?,
        };
        if positions.len() != self.sources.len() {
            return Err(problems::other_list());
        }
        let reader = |(source_index, progress): (usize, SourceProgress)| {
            let first = match &progress {
                SourceProgress::End { .. } => None,
                SourceProgress::At(position) => {
                    let query = self.query(source_index, position)?;
                    Some(LookedUpQuery::new(self.shared, query, self.directives, self.now))
                }
            };
            Ok(SourceReader::new(source_index, progress, first))
        };
        positions.into_iter().enumerate().map(reader).collect()
    }

    /// Returns the cost of the first page of a source; `None` if the source has ended.
    #[must_use]
    pub(crate) fn cost(&self, reader: &SourceReader) -> Option<ProviderCost> {
        let hit = reader.first.as_ref()?.lookup.is_hit();
        Some(ProviderCost { provider: Some(self.sources[reader.source_index].source.provider), cost: Cost::one(hit) })
    }

    fn start_position(&self, source: &ListSource) -> Position {
        let size = self.snapshot.providers[source.provider]
            .operations
            .get(Operation::ListSessions)
            .map_or(0, |op| op.max_limit);
        Position::first(size)
    }

    /// Returns the values that a page token of this list is bound to. With another client, route, filter or other sources, the
    /// token is invalid.
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
        for IdentifiedSource { source, .. } in &self.sources {
            binding.push(self.snapshot.providers[source.provider].name.to_string());
            binding.push(source.agent.clone().unwrap_or_default());
            // A position in another kind of pages has another meaning.
            binding.extend(self.pages(source).and_then(Pages::token_kind).map(|kind| format!("next: {kind}")));
        }
        binding
    }

    /// Returns the query for the page of a source at a position.
    fn query(&self, source_index: usize, position: &Position) -> Result<ProviderQuery, ProviderQueryError> {
        let IdentifiedSource { source, identity } = &self.sources[source_index];
        let cursor = position.page_token.as_deref();
        let (of_page, query) = self.pages(source).map(|pages| pages.values(cursor)).unwrap_or_default();
        let values = Values { limit: (position.size > 0).then_some(position.size), ..of_page };
        let values = Values { agent: source.agent.as_deref(), enabled: self.page.enabled, ..values };
        let target = QueryTarget { client: self.client, provider: source.provider, operation: Operation::ListSessions };
        let made = ProviderQuery::new(self.snapshot, target, identity.clone(), &values)?;
        Ok(match query {
            Some(query) => made.with_query(query)?,
            None => made,
        })
    }

    /// Returns the URL of a source's first page.
    fn first_url(&self, source_index: usize, size: u32) -> Option<String> {
        let query = self.query(source_index, &Position::first(size)).ok()?;
        let target = &query.provider().target;
        Some(target.origin() + &target.path(&query.path_and_query))
    }

    /// Returns how the pages of a source follow each other.
    fn pages(&self, source: &ListSource) -> Option<&Pages> {
        self.snapshot.providers[source.provider].operations.get(Operation::ListSessions)?.pages()
    }

    /// Reads the page. The deadline of all sources counts from `started`.
    ///
    /// # Errors
    /// The failure of a source, if every unfinished source failed or the request denies partial pages. The page token
    /// stays valid. 503 if the response buffer limit is reached.
    pub(crate) async fn read(
        &self,
        mut readers: Vec<SourceReader>,
        started: Instant,
        record: &mut RequestRecord,
    ) -> Outcome<Content> {
        let timeouts = self.sources.iter().map(|source| self.snapshot.providers[source.source.provider].target.timeout);
        let deadline = started + timeouts.max().unwrap_or(Duration::ZERO);
        let chosen = self.merge(&mut readers, deadline, record).await?;
        record.cache = combined_status(&readers);
        check_any_succeeded(&readers)?;
        let end = self.end_of_body(&readers);
        let etag = page_etag(&chosen, self.page.shape.fields.as_ref(), &end);
        // The pages without a chosen session.
        drop(readers);
        let shows_secrets = representation::show(self.snapshot, self.client, &self.page.shape).secrets;
        let content = Content::json(self.body(&chosen, end)?, Some(etag));
        Ok(content.compressible(Compressible::Once, shows_secrets))
    }

    /// Chooses the page's sessions, newest first, and moves the readers past them. Pages that are needed at the same time
    /// are read at the same time.
    async fn merge(
        &self,
        readers: &mut [SourceReader],
        deadline: Instant,
        record: &mut RequestRecord,
    ) -> Outcome<Vec<Run>> {
        let filter = &self.page.filter;
        let (mut chosen, mut remaining) = (Vec::new(), self.page.limit);
        let mut next: Vec<NextSession> = readers.iter_mut().map(|reader| reader.next(filter)).collect();
        while remaining > 0 {
            if next.contains(&NextSession::Unread) {
                self.read_pages(readers, &next, deadline, record).await?;
                next = readers.iter_mut().map(|reader| reader.next(filter)).collect();
                continue;
            }
            // Without the next session of every source, the order is unknown.
            if next.contains(&NextSession::PageLimit) {
                break;
            }
            let Some(newest) = newest(&next) else { break };
            let reader = &mut readers[newest.reader];
            if let Some(page) = &reader.page {
                choose(&mut chosen, &page.held, newest.item);
                remaining -= 1;
            }
            reader.advance_past(newest.item);
            next[newest.reader] = reader.next(filter);
        }
        self.check_partial(readers, record)?;
        Ok(chosen)
    }

    /// Fails if a source has failed and the request denies partial pages.
    fn check_partial(&self, readers: &[SourceReader], record: &mut RequestRecord) -> Outcome<()> {
        match readers.iter().find_map(|reader| reader.failure.as_ref()).filter(|_| self.page.deny_partial) {
            None => Ok(()),
            Some(problem) => {
                record.cache = combined_status(readers);
                Err(problem.clone())
            }
        }
    }

    /// Reads the next page of each source whose next session is unread.
    async fn read_pages(
        &self,
        readers: &mut [SourceReader],
        next: &[NextSession],
        deadline: Instant,
        record: &mut RequestRecord,
    ) -> Outcome<()> {
        let unread = readers.iter_mut().zip(next).filter(|(_, next)| **next == NextSession::Unread);
        let reads = unread.map(|(reader, _)| self.read_page(reader, deadline, record.part()));
        let mut parts = join_all(reads).await;
        record.provider_wait += parts.iter().map(|part| part.provider_wait).max().unwrap_or_default();
        parts.iter_mut().for_each(|part| record.join(part));
        self.check_partial(readers, record)
    }

    /// Reads the next page of a source, and returns the record of this read. A failure is stored in the reader.
    async fn read_page(
        &self,
        reader: &mut SourceReader,
        deadline: Instant,
        mut record: RequestRecord,
    ) -> RequestRecord {
        reader.pages_left -= 1;
        let result = self.fetch_page(reader, deadline, &mut record).await;
        if let Some(status) = record.cache.take() {
            reader.status = cache_status::of_all(reader.status.take().into_iter().chain([status]), false);
        }
        if let Err(problem) = result {
            // The next page of the list does not retry a source that does not exist.
            if problem.code.is_not_found() {
                reader.progress = SourceProgress::End { total: None };
            }
            reader.failure = Some(problem);
        }
        record
    }

    async fn fetch_page(
        &self,
        reader: &mut SourceReader,
        deadline: Instant,
        record: &mut RequestRecord,
    ) -> Outcome<()> {
        let SourceProgress::At(position) = &reader.progress else { return Ok(()) };
        let LookedUpQuery { query, lookup } = match reader.first.take() {
            Some(first) => first,
            None => {
                let query = self.query(reader.source_index, position)?;
                LookedUpQuery::new(self.shared, query, self.directives, self.shared.now())
            }
        };
        let now = self.shared.now();
        let mut served = obtain::obtain(self.shared, &query, lookup, Some(deadline), now, record).await?;
        record.cache = Some(served.status.clone());
        let entry = served.entry.clone();
        let info = match &entry.kind {
            EntryKind::Page(info) => info,
            EntryKind::NotFound(error) => return Err((&**error).into()),
            EntryKind::Session => return Err(problems::not_a_list()),
        };
        let show = representation::show(self.snapshot, self.client, &self.page.shape);
        let held = HeldView::of(self.shared, &query, (&mut served).into(), show)?;
        if let Some(fault) = info.unusable.as_ref().filter(|_| position.page_token.is_none()) {
            reader.add_warnings(info);
            let (provider, fault) = (query.provider().name.clone(), BodyFault::clone(fault));
            // The next page of the list does not try it again.
            reader.progress = SourceProgress::End { total: None };
            return Err(UnreadableBody { provider, fault }.into());
        }
        let content = (!held.view.items.is_empty()).then_some(held.view.etag.as_bytes());
        let operation = query.operation()?;
        let pages = operation.pages().ok_or_else(problems::not_a_list)?;
        let located = position.history.check_page(content).and_then(|()| pages.locate(position, &info.facts));
        let cut_problem = |cut: &CutList| problems::cut_list(&query.provider().name, cut);
        match located {
            Err(cut) => reader.cut(cut_problem(&cut)),
            Ok(offset) => {
                let own_url = || self.first_url(reader.source_index, position.size);
                let credential = &query.identity.credential;
                let list = ListUrl {
                    own_url: &own_url,
                    template: &operation.template,
                    without_credential: &|query| credential.without_parameters(query),
                };
                let next = match pages.follow(position, &info.facts, content, &list) {
                    Ok(Some(next)) => NextPage::At(next),
                    Ok(None) => NextPage::End,
                    Err(cut) => NextPage::Cut(cut_problem(&cut)),
                };
                let page = ProviderPage { held: held.clone(), next, ids: info.facts.ids.clone() };
                reader.enter(page, offset, info.facts.total);
            }
        }
        reader.add_warnings(info);
        Ok(())
    }

    /// Makes the body. Long runs of sessions are slices of the stored pages.
    ///
    /// # Errors
    /// What is copied would exceed the client's share of the memory.
    fn body(&self, chosen: &[Run], end: Vec<u8>) -> Outcome<Body> {
        const START: &[u8] = b"{\"sessions\":[";
        let share = self.snapshot.memory_share(self.client, &self.shared.upstream.budget);
        let (mut runs, mut memory) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len() + 1));
        for run in chosen {
            match &self.page.shape.fields {
                None => {
                    runs.push(run.page.view.body.slice(run.byte_range()));
                    memory.push(run.page.memory.clone());
                }
                Some(fields) => {
                    let (copy, reserved) = run.selected(fields, &share)?;
                    runs.push(copy);
                    memory.push(Arc::new(reserved));
                }
            }
        }
        let copied: usize = runs.iter().map(|run| BodyBuilder::copied(run) + 1).sum();
        let size = START.len() + copied + end.len();
        memory.push(Arc::new(share.reserve(size)?));
        // The usual list: one run, which is never copied.
        if let [run] = runs.as_slice() {
            let parts = vec![Bytes::from_static(START), run.clone(), end.into()];
            return Ok(Body::of(parts).holding(memory));
        }
        let mut body = BodyBuilder::with_capacity(size);
        body.text().extend_from_slice(START);
        for (number, run) in runs.iter().enumerate() {
            if number > 0 {
                body.text().push(b',');
            }
            body.stored(run);
        }
        body.text().extend_from_slice(&end);
        Ok(body.finish().holding(memory))
    }

    /// Returns the end of the body, after the sessions.
    fn end_of_body(&self, readers: &[SourceReader]) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"],\"next_page_token\":");
        write_json(&mut out, &self.next_token(readers));
        out.extend_from_slice(b",\"total_count\":");
        let total: Option<u64> = readers.iter().map(|reader| reader.total.filter(|_| reader.failure.is_none())).sum();
        write_json(&mut out, &total.filter(|_| self.page.filter.is_empty()));
        out.extend_from_slice(b",\"partial\":");
        write_json(&mut out, &readers.iter().any(|reader| reader.failure.is_some()));
        out.extend_from_slice(b",\"sources\":");
        let now = self.shared.now();
        write_json(&mut out, &readers.iter().map(|reader| self.source_report(reader, now)).collect::<Vec<_>>());
        out.push(b'}');
        out
    }

    fn next_token(&self, readers: &[SourceReader]) -> Option<String> {
        let positions: Vec<SourceProgress> = readers.iter().map(|reader| reader.progress.clone()).collect();
        let unfinished = positions.iter().any(|position| matches!(position, SourceProgress::At(_)));
        unfinished.then(|| self.snapshot.signer.seal(&self.binding(), &positions))
    }

    /// Returns the item of `sources` in the response for one source.
    fn source_report(&self, reader: &SourceReader, now: Time) -> Value {
        let source = self.sources[reader.source_index].source;
        let status = reader.status.as_ref().filter(|_| reader.failure.is_none());
        let state = match (&reader.failure, status.map(|status| status.outcome)) {
            (Some(problem), _) if problem.code == Code::ProviderRateLimited => "rate_limited",
            (Some(_), _) => "failed",
            (None, None) => "exhausted",
            (None, Some(CacheOutcome::Hit)) => "cached",
            (None, Some(CacheOutcome::Stale(_) | CacheOutcome::StaleOnError { .. })) => "stale",
            (None, Some(_)) => "fresh",
        };
        json!({
            "provider": &*self.snapshot.providers[source.provider].name,
            "agent": source.agent,
            "state": state,
            "age_seconds": status.and_then(|status| status.life).map(|life| life.age(now).as_secs()),
            "warnings": reader.warnings(),
            "error": reader.failure.as_ref().map(|problem| problem.to_value(None)),
        })
    }
}

impl Run {
    /// Returns the position of the sessions in the page's JSON.
    fn byte_range(&self) -> Range<usize> {
        let items = &self.page.view.items[self.items.clone()];
        match (items.first(), items.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }

    /// Copies each session with these fields only.
    ///
    /// # Errors
    /// The copies would exceed the share of the memory.
    fn selected(&self, fields: &FieldSelection, share: &MemoryShare) -> Outcome<(Bytes, Reservation)> {
        let view = &self.page.view;
        let sessions = view.items[self.items.clone()].iter().map(|item| &view.body[item.start..item.end]);
        held::selected(fields, sessions, share)
    }
}

/// Adds a session to the chosen ones.
fn choose(chosen: &mut Vec<Run>, page: &HeldView, item: usize) {
    match chosen.last_mut() {
        Some(run) if run.items.end == item && Arc::ptr_eq(&run.page.view, &page.view) => run.items.end += 1,
        _ => chosen.push(Run { page: page.clone(), items: item..item + 1 }),
    }
}

/// Returns the page's entity tag. It hashes the provider pages' tags, the positions of the chosen sessions, the fields and
/// the rest of the body, which is cheaper than hashing the sessions again.
fn page_etag(chosen: &[Run], fields: Option<&FieldSelection>, end_of_body: &[u8]) -> HeaderValue {
    let mut input = Vec::with_capacity(48 * chosen.len() + end_of_body.len());
    for Run { page, items } in chosen {
        // All pages' tags have the same length, so the input is unambiguous.
        input.extend_from_slice(page.view.etag.as_bytes());
        input.extend([items.start, items.end].iter().flat_map(|position| position.to_le_bytes()));
    }
    input.extend(fields.iter().flat_map(|fields| format!("{fields:?}").into_bytes()));
    input.extend_from_slice(end_of_body);
    etag(&input)
}
