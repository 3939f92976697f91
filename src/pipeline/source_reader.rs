//! Tracks one source of a list: its position, its current provider page, and its failure. `merged_list` reads the pages.

use crate::base::model::{Field, Time};
use crate::base::problem::{Outcome, Problem};
use crate::engine::request_record::CacheStatus;
use crate::fetch::provider_query::ProviderQuery;
use crate::pipeline::cache_status;
use crate::pipeline::held::HeldView;
use crate::pipeline::obtain::LookedUpQuery;
use crate::rules::page_token::{Position, SourceProgress};
use crate::rules::parameters::Filter;
use crate::rules::provider_body::{PageInfo, UNREADABLE_TIME, UNUSABLE_SESSION};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The limit of provider pages, after the first, that one page of the list reads from a source.
const MAX_FURTHER_PAGES: usize = 5;

/// The state of one source while one page of the list is made.
pub(crate) struct SourceReader {
    /// The position of the source in the list's sources.
    pub source_index: usize,
    /// How far the list has read the source.
    pub progress: SourceProgress,
    /// The provider page that `progress` is in, if it was read.
    pub page: Option<ProviderPage>,
    /// The query for the first page, until it is used.
    pub first: Option<LookedUpQuery>,
    /// How many more pages this reader may read.
    pub pages_left: usize,
    /// The number of the source's sessions, if the provider reports it.
    pub total: Option<u64>,
    /// The cache status of the pages that were read.
    pub status: Option<CacheStatus>,
    /// Why a read failed.
    pub failure: Option<Box<Problem>>,
    /// Whether the source ended too early: its pages were read, but the provider gives no way to the rest.
    pub is_cut: bool,
    /// The times that could not be read on the pages that were read: the field, and the number of sessions.
    unreadable_times: BTreeMap<String, u32>,
    /// The sessions that are left out of the pages that were read: the field that cannot be used, and their number.
    unusable_sessions: BTreeMap<Option<String>, u32>,
}

/// A page of a provider.
pub(crate) struct ProviderPage {
    /// Its sessions.
    pub held: HeldView,
    /// What follows it.
    pub next: NextPage,
    /// Digests of the ids of its sessions, if the position needs them.
    pub ids: Option<Arc<[u64]>>,
}

/// What follows a page of a provider.
pub(crate) enum NextPage {
    /// The page at this position.
    At(Position),
    /// Nothing: the source has no more sessions.
    End,
    /// The provider may have more sessions, but gives no way to them.
    Cut(Box<Problem>),
}

/// The next session of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextSession {
    /// The session at this position of the reader's page.
    Known { item: usize, created_at: Option<Time> },
    /// Unknown until the next page is read.
    Unread,
    /// Unknown, and the reader may read no more pages for this page of the list.
    PageLimit,
    /// The source has no next session, because it has ended or failed.
    None,
}

/// The newest of the sources' next sessions.
pub(crate) struct Newest {
    /// The position of its reader.
    pub reader: usize,
    /// Its position in the reader's page.
    pub item: usize,
    pub created_at: Option<Time>,
}

impl SourceReader {
    /// Creates a reader at this position. `first` is the query for its first page, unless the source has ended.
    #[must_use]
    pub(crate) fn new(source_index: usize, progress: SourceProgress, first: Option<LookedUpQuery>) -> Self {
        let total = if let SourceProgress::End { total } = progress { total } else { None };
        let pages_left = MAX_FURTHER_PAGES + 1;
        let (page, status, failure) = (None, None, None);
        Self {
            source_index,
            progress,
            page,
            first,
            pages_left,
            total,
            status,
            failure,
            is_cut: false,
            unreadable_times: BTreeMap::new(),
            unusable_sessions: BTreeMap::new(),
        }
    }

    /// Returns the query for the first page; `None` if the source has ended.
    #[must_use]
    pub(crate) fn first_query(&self) -> Option<&ProviderQuery> {
        self.first.as_ref().map(|first| &first.query)
    }

    /// Returns the next session that passes the filter, and moves to it. Moves to the next page at the end of a page.
    pub(crate) fn next(&mut self, filter: &Filter) -> NextSession {
        loop {
            let SourceProgress::At(position) = &mut self.progress else { return NextSession::None };
            let Some(ProviderPage { held: HeldView { view, .. }, ids, .. }) = &self.page else {
                return match self.pages_left {
                    _ if self.failure.is_some() => NextSession::None,
                    0 => NextSession::PageLimit,
                    _ => NextSession::Unread,
                };
            };
            let offset = position.offset as usize;
            let mut rest = view.items.get(offset..).unwrap_or_default().iter().zip(offset..);
            if let Some((session, item)) = rest.find(|(item, _)| filter.matches(item.status, item.created_at)) {
                move_to(position, item, ids.as_deref());
                return NextSession::Known { item, created_at: session.created_at };
            }
            match self.page.take().map(|page| page.next) {
                Some(NextPage::At(next)) => self.progress = SourceProgress::At(next),
                Some(NextPage::End) | None => self.progress = SourceProgress::End { total: self.total },
                Some(NextPage::Cut(problem)) => self.cut(problem),
            }
        }
    }

    /// Ends the source, which has more sessions that nobody can get. The next page of the list does not try it again.
    pub(crate) fn cut(&mut self, problem: Box<Problem>) {
        (self.progress, self.page) = (SourceProgress::End { total: None }, None);
        (self.failure, self.is_cut) = (Some(problem), true);
    }

    /// Adds what could not be read on a page.
    pub(crate) fn add_warnings(&mut self, page: &PageInfo) {
        for (field, count) in &page.unreadable_times {
            *self.unreadable_times.entry(field.name()).or_default() += count;
        }
        for (field, count) in &page.unusable_sessions {
            *self.unusable_sessions.entry(field.map(Field::name)).or_default() += count;
        }
    }

    /// Returns the warnings about the source, for the client.
    pub(crate) fn warnings(&self) -> Vec<Value> {
        let warning = |code: &str, field: Option<&String>, sessions: u32| json!({ "code": code, "field": field, "sessions": sessions });
        let times = self.unreadable_times.iter().map(|(field, count)| warning(UNREADABLE_TIME, Some(field), *count));
        let sessions = self.unusable_sessions.iter();
        let sessions = sessions.map(|(field, count)| warning(UNUSABLE_SESSION, field.as_ref(), *count));
        times.chain(sessions).collect()
    }

    /// Moves past a session of the current page.
    pub(crate) fn advance_past(&mut self, item: usize) {
        let ids = self.page.as_ref().and_then(|page| page.ids.as_deref());
        if let SourceProgress::At(position) = &mut self.progress {
            move_to(position, item + 1, ids);
        }
    }

    /// Continues on a page of which the list has already read `offset` sessions. `total` is the number of all sessions, as the
    /// page has it.
    pub(crate) fn enter(&mut self, page: ProviderPage, offset: u32, total: Option<u64>) {
        if let SourceProgress::At(position) = &mut self.progress {
            move_to(position, offset as usize, page.ids.as_deref());
        }
        (self.total, self.page) = (total, Some(page));
    }
}

/// Moves to a session of a page, and notes the session before it if the page has digests of ids.
fn move_to(position: &mut Position, item: usize, ids: Option<&[u64]>) {
    position.offset = u32::try_from(item).unwrap_or(u32::MAX);
    if let Some(before) = item.checked_sub(1).and_then(|before| ids?.get(before)) {
        position.mark.get_or_insert_default().last = Some(*before);
    }
}

/// Returns the newest of the sources' next sessions. A session without a creation time counts as newest, so that it does
/// not block its source. Of equal times, the first source wins.
pub(crate) fn newest(next: &[NextSession]) -> Option<Newest> {
    let mut best: Option<Newest> = None;
    for (reader, next) in next.iter().enumerate() {
        let NextSession::Known { item, created_at } = *next else { continue };
        let newer = best.as_ref().is_none_or(|best| match (created_at, best.created_at) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(time), Some(best)) => time > best,
        });
        if newer {
            best = Some(Newest { reader, item, created_at });
        }
    }
    best
}

/// Returns the cache status of all pages that were read.
pub(crate) fn combined_status(readers: &[SourceReader]) -> Option<CacheStatus> {
    let any_failed = readers.iter().any(|reader| reader.failure.is_some());
    cache_status::of_all(readers.iter().filter_map(|reader| reader.status.clone()), any_failed)
}

/// Fails if a source failed and no source was read successfully. A source that ended too early was read.
///
/// # Errors
/// The failure of one source: a temporary failure (5xx) if there is one.
pub(crate) fn check_any_succeeded(readers: &[SourceReader]) -> Outcome<()> {
    let succeeded = readers.iter().any(|reader| reader.status.is_some() && (reader.failure.is_none() || reader.is_cut));
    let mut failures: Vec<&Problem> = readers.iter().filter_map(|reader| reader.failure.as_deref()).collect();
    failures.sort_by_key(|problem| problem.code.status() < 500);
    match failures.first() {
        Some(problem) if !succeeded => Err(Box::new(Problem::clone(problem))),
        _ => Ok(()),
    }
}
