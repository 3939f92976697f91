//! Remembers the words of a provider that its file does not know, such as a new status, and logs each of them once.
//!
//! The words come from the provider, so their number and their length are bounded.

use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::warn;

/// The most words of one provider.
const MAX_WORDS: usize = 20;

/// The unknown words of a provider. A reload keeps them while the rules of the provider's file are the same.
#[derive(Debug)]
pub struct UnknownWords {
    provider: Arc<str>,
    words: Mutex<Words>,
}

#[derive(Debug, Default)]
struct Words {
    known: Vec<Word>,
    /// How often other words came after the last one that had room.
    others: u64,
}

#[derive(Debug)]
struct Word {
    field: String,
    word: String,
    count: u64,
}

impl UnknownWords {
    /// Makes an empty list.
    #[must_use]
    pub fn new(provider: Arc<str>) -> Self {
        Self { provider, words: Mutex::default() }
    }

    /// Records that the provider sent `word` for a field.
    pub fn record(&self, field: &str, word: &str) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = words.known.iter_mut().find(|known| known.field == field && known.word == word) {
            known.count += 1;
            return;
        }
        let provider = &*self.provider;
        if words.known.len() < MAX_WORDS {
            words.known.push(Word { field: field.to_owned(), word: word.to_owned(), count: 1 });
            drop(words);
            // `Debug` escapes control characters.
            warn!(
                provider,
                field,
                ?word,
                "the provider's file does not know this word; add it to the values of the field"
            );
            return;
        }
        words.others += 1;
        let is_first = words.others == 1;
        drop(words);
        if is_first {
            warn!(
                provider,
                "the provider sends more than {MAX_WORDS} words that its file does not know; no more are named"
            );
        }
    }

    /// Returns the words for people, and how often others came.
    #[must_use]
    pub fn describe(&self) -> (Vec<Value>, u64) {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |word: &Word| json!({ "field": word.field, "word": word.word, "count": word.count });
        (words.known.iter().map(row).collect(), words.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_and_their_number_is_bounded() {
        let words = UnknownWords::new("p".into());
        for n in 0..25 {
            words.record("status", &format!("W{n}"));
            words.record("status", "W0");
        }
        words.record("modality", "W0");
        let (known, others) = words.describe();
        assert_eq!((known.len(), others), (MAX_WORDS, 6));
        assert_eq!(known[0], json!({ "field": "status", "word": "W0", "count": 26 }));
        assert_eq!(known[19]["word"], "W19");
    }
}
