//! Detects a provider that repeats its pages, from the few bytes per source that a page token can store.
//!
//! A provider that ignores its page token sends the first page again; another one sends page tokens that form a circle.
//! Both would give a client the same sessions again and again. Nothing here reads a page.

use crate::rules::cut_list::CutList;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use fnv::FnvHasher;
use std::hash::Hasher;

/// The most page tokens that are stored. With the current one, circles of up to four tokens are detected at once.
const TOKENS: usize = 4;
/// The most pages whose digests are stored.
const PAGES: usize = 2;
const DIGEST: usize = 4;

type ShortDigest = [u8; DIGEST];

/// The pages of a source that a list has read, without the current one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CursorHistory {
    /// The number of page tokens that were followed.
    followed: u32,
    /// The token that was followed at the last power of two. A circle of any length leads back to one of these (Brent's
    /// algorithm), at the latest after three times as many pages as there are before its end.
    checkpoint: ShortDigest,
    /// The last tokens, the newest last.
    tokens: Vec<ShortDigest>,
    /// The digests of the last pages that had sessions, the newest last.
    pages: Vec<ShortDigest>,
}

impl CursorHistory {
    /// Checks that the current page is not one of the last pages. `page` is a digest of its sessions; `None` if it has none.
    ///
    /// # Errors
    /// The page was already read.
    pub fn check_page(&self, page: Option<&[u8]>) -> Result<(), CutList> {
        match page.map(digest) {
            Some(page) if self.pages.contains(&page) => Err(CutList::RepeatedPage),
            _ => Ok(()),
        }
    }

    /// Returns the history that belongs to the page after the current one. `current` is the page token of the current page,
    /// `page` the digest of its sessions, and `next` the token that the current page names.
    ///
    /// # Errors
    /// `next` was already followed.
    pub fn follow(&self, current: Option<&str>, page: Option<&[u8]>, next: &str) -> Result<Self, CutList> {
        let mut after = self.clone();
        after.tokens.extend(current.map(|token| digest(token.as_bytes())));
        after.pages.extend(page.map(digest));
        let next = digest(next.as_bytes());
        if after.tokens.contains(&next) || (self.followed > 0 && next == self.checkpoint) {
            return Err(CutList::RepeatedToken);
        }
        after.tokens.drain(..after.tokens.len().saturating_sub(TOKENS));
        after.pages.drain(..after.pages.len().saturating_sub(PAGES));
        after.followed = self.followed.saturating_add(1);
        if after.followed.is_power_of_two() {
            after.checkpoint = next;
        }
        Ok(after)
    }

    /// Returns the history as text, which [`CursorHistory::parse`] reads.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = self.followed.to_be_bytes().to_vec();
        bytes.extend(self.checkpoint);
        bytes.push(u8::try_from(self.tokens.len()).unwrap_or(0));
        bytes.extend(self.tokens.iter().chain(&self.pages).flatten());
        BASE64.encode(bytes)
    }

    /// Reads a history. Returns `None` if the text is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        let (followed, rest) = bytes.split_first_chunk()?;
        let (checkpoint, rest) = rest.split_first_chunk()?;
        let (tokens, rest) = rest.split_first()?;
        let tokens = usize::from(*tokens);
        let (digests, []) = rest.as_chunks::<DIGEST>() else { return None };
        if tokens > TOKENS.min(digests.len()) || digests.len() - tokens > PAGES {
            return None;
        }
        Some(Self {
            followed: u32::from_be_bytes(*followed),
            checkpoint: *checkpoint,
            tokens: digests[..tokens].to_vec(),
            pages: digests[tokens..].to_vec(),
        })
    }
}

/// Returns the same digest in every process. A provider that makes two texts with one digest only ends its own list.
fn digest(text: &[u8]) -> ShortDigest {
    let mut hasher = FnvHasher::default();
    hasher.write(text);
    let [a, b, c, d, e, f, g, h] = hasher.finish().to_be_bytes();
    [a ^ e, b ^ f, c ^ g, d ^ h]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows page tokens 1, 2, … up to `last`, after which the token `back` comes again. Returns the number of pages that
    /// were read before the repetition was noticed.
    fn pages_before_notice(last: usize, back: usize) -> usize {
        let (mut history, mut current) = (CursorHistory::default(), None::<usize>);
        for pages in 1..10_000 {
            let next = match current {
                None => 1,
                Some(token) if token == last => back,
                Some(token) => token + 1,
            };
            let token = current.map(|token| token.to_string());
            match history.follow(token.as_deref(), None, &next.to_string()) {
                Err(cut) => {
                    assert_eq!(cut, CutList::RepeatedToken);
                    return pages;
                }
                Ok(after) => history = CursorHistory::parse(&after.encode()).unwrap(),
            }
            current = Some(next);
        }
        panic!("the circle from {last} to {back} was not noticed");
    }

    #[test]
    fn a_circle_of_up_to_four_tokens_gives_no_page_twice() {
        for before in [0, 1, 2, 3, 7, 50, 1000] {
            for length in 1..=4 {
                let last = before + length;
                assert_eq!(
                    pages_before_notice(last, before + 1),
                    1 + last,
                    "{before} pages, then a circle of {length}"
                );
            }
        }
    }

    #[test]
    fn a_longer_circle_ends_too() {
        for before in [0, 1, 10, 100] {
            for length in [5, 6, 9, 64, 100, 1000] {
                let pages = pages_before_notice(before + length, before + 1);
                assert!(pages <= 3 * (before + length) + 1, "{pages} pages of {before} and a circle of {length}");
            }
        }
    }

    #[test]
    fn a_list_without_a_circle_has_no_repetition() {
        let mut history = CursorHistory::default();
        for page in 0..5000 {
            let (current, next) = (format!("cursor {page}"), format!("cursor {}", page + 1));
            assert_eq!(history.check_page(Some(current.as_bytes())), Ok(()));
            history = history.follow(Some(&current), Some(current.as_bytes()), &next).unwrap();
        }
        assert!(history.encode().len() <= 46, "{}", history.encode().len());
    }

    #[test]
    fn the_same_page_under_another_token_is_noticed_unless_it_is_empty() {
        let start = CursorHistory::default();
        let second = start.follow(None, Some(b"one"), "a").unwrap();
        assert_eq!(second.check_page(Some(b"one")), Err(CutList::RepeatedPage));
        let third = second.follow(Some("a"), Some(b"two"), "b").unwrap();
        assert_eq!(third.check_page(Some(b"one")), Err(CutList::RepeatedPage));
        assert_eq!(third.check_page(Some(b"three")), Ok(()));
        let empty = start.follow(None, None, "a").unwrap();
        assert_eq!(empty.check_page(None), Ok(()), "empty pages may follow each other");
    }

    #[test]
    fn text_that_is_no_history_is_refused() {
        let history = CursorHistory::default().follow(Some("a"), Some(b"p"), "b").unwrap();
        let text = history.encode();
        assert_eq!(CursorHistory::parse(&text), Some(history));
        let many = BASE64.encode([[0; 8].as_slice(), &[9], &[0; 36]].concat());
        for bad in ["", "A", "!", &text[..text.len() - 2], &format!("{text}AAAAAAAAAAAAAAAAAAAAA"), &many] {
            assert_eq!(CursorHistory::parse(bad), None, "{bad}");
        }
    }
}
