//! Decides what follows a page of a provider, and where a list ends.
//!
//! A page is read without its place in the list. The place, a [`Position`], decides here.

use crate::rules::cut_list::CutList;
use crate::rules::page_facts::PageFacts;
use crate::rules::page_rules::{CompiledEnd, CompiledWay, Pages};
use crate::rules::page_token::{Mark, Position};
use crate::rules::page_url::{self, UrlFault};
use crate::rules::template::Template;
use fnv::FnvHasher;
use std::hash::Hasher;

/// What leads to the next page, and whether that page begins with the last session of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The token, number, offset or URL.
    pub text: String,
    overlaps: bool,
}

/// The list that a page belongs to.
pub(crate) struct ListUrl<'l> {
    /// Returns the URL of its first page.
    pub own_url: &'l dyn Fn() -> Option<String>,
    /// The template of its requests.
    pub template: &'l Template,
}

impl Pages {
    /// Returns how many sessions of a page the list has already read at this position. It differs from the position's own
    /// number if sessions were added or removed meanwhile.
    ///
    /// # Errors
    /// The page does not have the sessions that follow the position, or not all of them.
    pub(crate) fn locate(&self, at: &Position, page: &PageFacts) -> Result<u32, CutList> {
        let (Some(ids), Some(Mark { last: Some(last), total, overlaps, .. })) = (&page.ids, &at.mark) else {
            return Ok(at.offset);
        };
        let expected = at.offset.checked_sub(1).and_then(|before| ids.get(before as usize));
        if expected == Some(last) {
            return Ok(at.offset);
        }
        let is_start = at.page_token.is_some() && at.offset == u32::from(*overlaps);
        if let Some(found) = ids.iter().position(|id| id == last) {
            let goes_on = || !matches!(self.next_cursor(at, page), Ok(None));
            if is_start && found + 1 == ids.len() && goes_on() {
                return Err(CutList::RepeatedPage);
            }
            return Ok(u32::try_from(found + 1).unwrap_or(u32::MAX));
        }
        // Usually, a page has no session of the page before it.
        let has_moved = match (total, page.total) {
            (Some(before), Some(now)) => now < *before || now - before >= u64::from(page.items.max(1)),
            _ => false,
        };
        if at.offset > 0 || has_moved { Err(CutList::Moved) } else { Ok(0) }
    }

    /// Returns whether a list with this first page has no other one.
    #[must_use]
    pub(crate) fn is_single(&self, page: &PageFacts) -> bool {
        matches!(self.next_cursor(&Position::first(self.max_limit), page), Ok(None) | Err(CutList::FullPage))
    }

    /// Returns what leads from the first page of a list to the next one, for people.
    #[must_use]
    pub fn after_first(&self, page: &PageFacts) -> Option<String> {
        self.next_cursor(&Position::first(self.max_limit), page).ok().flatten().map(|cursor| cursor.text)
    }

    /// Returns what leads to the page after one; `None` if the list ends with it.
    ///
    /// # Errors
    /// The provider may have more sessions, but gives no way to them.
    pub fn next_cursor(&self, at: &Position, page: &PageFacts) -> Result<Option<Cursor>, CutList> {
        let (new, seen) = read_with(at, page);
        let left = page.total.filter(|total| seen < *total);
        let goes_on = match &self.end {
            None if self.is_cut(page.items) => return Err(CutList::FullPage),
            None => page.cursor.is_some(),
            Some(CompiledEnd::More(_)) => page.more == Some(true),
            Some(CompiledEnd::Short) => page.items >= at.size,
            Some(CompiledEnd::Empty) => new > 0,
            Some(CompiledEnd::Total) => left.is_some(),
        };
        let not_all_read = |total| CutList::NotAllRead { seen, total };
        if !goes_on {
            // An end that Weir concludes is checked; one that the provider names is not.
            let is_concluded = matches!(self.end, Some(CompiledEnd::Short | CompiledEnd::Empty));
            return left.filter(|_| is_concluded).map_or(Ok(None), |total| Err(not_all_read(total)));
        }
        let count = |first: u64| at.page_token.as_deref().and_then(|text| text.parse().ok()).unwrap_or(first);
        let (text, overlaps) = match &self.way {
            CompiledWay::Number(_) | CompiledWay::Offset(_) if new == 0 => {
                return Err(left.map_or(CutList::EmptyPage, not_all_read));
            }
            CompiledWay::Number(first) => (count(*first).saturating_add(1).to_string(), false),
            // The next page begins with the last session of this one, so that it shows if sessions moved.
            CompiledWay::Offset(first) if page.last_usable > 0 => {
                (count(*first).saturating_add(page.last_usable.into()).to_string(), true)
            }
            CompiledWay::Offset(first) => (count(*first).saturating_add(page.items.into()).to_string(), false),
            way => (page.cursor.clone().ok_or(CutList::NoWay { key: way.key() })?, false),
        };
        Ok(Some(Cursor { text, overlaps }))
    }

    /// Returns the position after a page; `None` if the list ends with it. `content` is a digest of the page's sessions.
    ///
    /// # Errors
    /// The provider may have more sessions, but gives no way to them.
    pub(crate) fn follow(
        &self,
        at: &Position,
        page: &PageFacts,
        content: Option<&[u8]>,
        list: &ListUrl<'_>,
    ) -> Result<Option<Position>, CutList> {
        let Some(Cursor { text, overlaps }) = self.next_cursor(at, page)? else { return Ok(None) };
        let text = match &self.way {
            CompiledWay::Url(_) | CompiledWay::Link(_) => {
                let own = (list.own_url)().ok_or(UrlFault::Malformed)?;
                page_url::next_query(&own, list.template, &text)?
            }
            _ => text,
        };
        let history = at.history.follow(at.page_token.as_deref(), content, &text)?;
        let counts = self.are_counted() || matches!(self.way, CompiledWay::Last(_));
        let mark = counts.then(|| {
            let last = page.ids.as_ref().and_then(|ids| ids.last().copied()).or(at.mark.and_then(|mark| mark.last));
            Mark { before: read_with(at, page).1, last, total: page.total, overlaps }
        });
        Ok(Some(Position { page_token: Some(text), size: at.size, offset: u32::from(overlaps), history, mark }))
    }
}

/// Returns how many sessions of a page are not on the page before it, and how many the list has read with the page.
fn read_with(at: &Position, page: &PageFacts) -> (u64, u64) {
    let mark = at.mark.unwrap_or_default();
    let new = u64::from(page.items).saturating_sub(mark.overlaps.into());
    (new, mark.before.saturating_add(new))
}

/// Returns a digest of a session's id. It is the same in every process.
#[must_use]
pub(crate) fn id_digest(id: &str) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(id.as_bytes());
    hasher.finish()
}
