//! Decides what follows a page of a provider, and where a list ends.
//!
//! A page is read without its place in the list. The place, a [`Position`], decides here.

use crate::rules::cut_list::CutList;
use crate::rules::page_facts::PageFacts;
use crate::rules::page_rules::{CompiledEnd, CompiledWay, Pages};
use crate::rules::page_token::{Mark, Position};
use crate::rules::page_url::{self, ListUrl, UrlFault};
use fnv::FnvHasher;
use std::hash::Hasher;

/// What leads to the next page, and whether that page begins with the last session of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The token, number, offset or URL.
    pub text: String,
    overlaps: bool,
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
            _ => (page.cursor.clone().ok_or(CutList::NoWay { key: self.key })?, false),
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
                page_url::next_query(&own, list, &text)?
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::jsonpath::JsonPath;
    use crate::rules::cursor_history::CursorHistory;
    use crate::rules::template::Template;

    fn pages(way: CompiledWay, end: CompiledEnd) -> Pages {
        Pages { way, key: "offset", end: Some(end), total: None, max_limit: 3, headers: Vec::new() }
    }

    /// A page with these sessions, all usable.
    fn page(sessions: &[u64], total: Option<u64>) -> PageFacts {
        let items = u32::try_from(sessions.len()).unwrap();
        PageFacts {
            items,
            total,
            ids: Some(sessions.into()),
            last_usable: items.saturating_sub(1),
            ..PageFacts::default()
        }
    }

    fn follow(pages: &Pages, at: &Position, page: &PageFacts) -> Result<Option<Position>, CutList> {
        let template = Template::compile("GET /x").unwrap();
        pages.follow(
            at,
            page,
            None,
            &ListUrl { own_url: &|| None, template: &template, without_credential: &|query| query.into() },
        )
    }

    fn after(way: CompiledWay, end: CompiledEnd, sessions: &[u64], total: Option<u64>) -> (Pages, Position) {
        let pages = pages(way, end);
        let next = follow(&pages, &Position::first(3), &page(sessions, total)).unwrap().unwrap();
        (pages, next)
    }

    #[test]
    fn a_page_with_an_offset_begins_with_the_last_session_of_the_page_before() {
        let (pages, next) = after(CompiledWay::Offset(1), CompiledEnd::Short, &[10, 11, 12], None);
        assert_eq!((next.page_token.as_deref(), next.offset), (Some("3"), 1));
        assert_eq!(pages.locate(&next, &page(&[12, 13, 14], None)), Ok(1), "nothing changed");
        assert_eq!(pages.locate(&next, &page(&[11, 12, 13], None)), Ok(2), "one was added");
        assert_eq!(
            pages.locate(&next, &page(&[10, 11, 12], None)),
            Err(CutList::RepeatedPage),
            "the offset is ignored"
        );
        assert_eq!(pages.locate(&next, &page(&[11, 12], None)), Ok(2), "one was added, and the list ends");
        assert_eq!(pages.locate(&next, &page(&[13, 14, 15], None)), Err(CutList::Moved), "one was removed");
        assert_eq!(pages.locate(&next, &page(&[], None)), Err(CutList::Moved));
        let full = page(&[12, 13, 14], None);
        let third = follow(&pages, &next, &full).unwrap().unwrap();
        assert_eq!((third.page_token.as_deref(), third.mark.unwrap().before), (Some("5"), 5));
        assert_eq!(follow(&pages, &third, &page(&[14], None)), Ok(None));
    }

    #[test]
    fn a_page_with_a_number_leaves_out_what_the_page_before_has() {
        let (pages, next) = after(CompiledWay::Number(0), CompiledEnd::Total, &[10, 11, 12], Some(9));
        assert_eq!((next.page_token.as_deref(), next.offset), (Some("1"), 0));
        assert_eq!(pages.locate(&next, &page(&[13, 14, 15], Some(9))), Ok(0), "nothing changed");
        assert_eq!(pages.locate(&next, &page(&[11, 12, 13], Some(11))), Ok(2), "two were added");
        assert_eq!(pages.locate(&next, &page(&[14, 15, 16], Some(8))), Err(CutList::Moved), "one was removed");
        assert_eq!(pages.locate(&next, &page(&[8, 9, 10], Some(14))), Err(CutList::Moved), "a page was added");
        assert_eq!(pages.locate(&next, &page(&[10, 11, 12], Some(9))), Err(CutList::RepeatedPage));
    }

    #[test]
    fn a_position_inside_a_page_follows_its_session() {
        let pages = pages(CompiledWay::Number(0), CompiledEnd::Empty);
        let mark = Some(Mark { last: Some(11), ..Mark::default() });
        let at = Position { offset: 2, mark, ..Position::first(3) };
        for (sessions, expected) in
            [([10, 11, 12], Ok(2)), ([9, 10, 11], Ok(3)), ([11, 12, 13], Ok(1)), ([12, 13, 14], Err(CutList::Moved))]
        {
            assert_eq!(pages.locate(&at, &page(&sessions, None)), expected, "{sessions:?}");
        }
    }

    #[test]
    fn only_an_end_that_weir_concludes_is_compared_with_the_total() {
        let last = || CompiledWay::Last(JsonPath::compile("$.id").unwrap());
        let path = || JsonPath::compile("$.more").unwrap();
        let at = Position::first(3);
        let two = PageFacts { cursor: Some("b".into()), ..page(&[1, 2], Some(5)) };
        let not_all = Err(CutList::NotAllRead { seen: 2, total: 5 });
        assert_eq!(pages(last(), CompiledEnd::Short).next_cursor(&at, &two), not_all);
        assert!(pages(last(), CompiledEnd::Empty).next_cursor(&at, &two).unwrap().is_some());
        let said = |more| PageFacts { more: Some(more), ..two.clone() };
        assert_eq!(pages(last(), CompiledEnd::More(path())).next_cursor(&at, &said(false)), Ok(None));
        assert!(pages(last(), CompiledEnd::More(path())).next_cursor(&at, &said(true)).unwrap().is_some());
        let history = CursorHistory::default().follow(None, None, "a").unwrap();
        let mark = Some(Mark { before: 3, ..Mark::default() });
        let second = Position { page_token: Some("a".into()), history, mark, ..Position::first(3) };
        assert_eq!(pages(last(), CompiledEnd::Short).next_cursor(&second, &two), Ok(None), "five sessions were read");
    }
}
