//! Signs and opens page tokens, which contain the position in each source of a list.
//!
//! A token is opaque, versioned and signed. It is bound to the client, the path and the filters of its list. It
//! contains no secret.

use crate::config::decode::Secret;
use crate::rules::cursor_history::CursorHistory;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

const VERSION: u8 = 2;
/// The length of the signature in bytes.
const SIGNATURE: usize = 16;

/// The position in a source at which the next page starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// What leads to the page: the provider's own token, the page's number or offset, or the query of its URL. `None` for
    /// the first page.
    pub page_token: Option<String>,
    /// The page size in requests to the provider.
    pub size: u32,
    /// The number of sessions of that page that the client already has.
    pub offset: u32,
    /// The pages before this one.
    pub history: CursorHistory,
    /// What was read before this position, if the way to the next page does not say it.
    pub mark: Option<Mark>,
}

impl Position {
    /// Returns the beginning of a list that is read in pages of this size.
    #[must_use]
    pub fn first(size: u32) -> Self {
        Self { page_token: None, size, offset: 0, history: CursorHistory::default(), mark: None }
    }
}

/// What a list has read of a source before a position. Numbers of pages and sessions do not say it if sessions are added
/// or removed meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The number of sessions on the pages before this one.
    pub before: u64,
    /// A digest of the id of the session before the position; `None` if there is none or it is not needed.
    pub last: Option<u64>,
    /// The number of all sessions, as the page before this one has it.
    pub total: Option<u64>,
    /// Whether the page begins with the last session of the page before it.
    pub overlaps: bool,
}

/// The progress of a list in one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceProgress {
    /// The source may have more sessions from this position on.
    At(Position),
    /// The client has all sessions of the source.
    End {
        /// The source's total number of sessions, if it gave one.
        total: Option<u64>,
    },
}

/// A page token that this list did not give to this client with these filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page_token is not valid for this client, path, sources and filters; start again without it")]
pub struct InvalidPageToken;

/// Signs and opens tokens.
pub struct Signer {
    key: Vec<u8>,
}

impl Signer {
    /// Creates a signer with the configured key. If that is empty, it uses the random key of this process.
    #[must_use]
    pub fn new(configured: &Secret, random: &[u8; 32]) -> Self {
        let key = if configured.0.is_empty() { random.to_vec() } else { configured.0.clone().into_bytes() };
        Self { key }
    }

    fn mac(&self, binding: &[impl AsRef<str>], payload: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        for part in binding.iter().map(AsRef::as_ref) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac.update(payload);
        Some(mac)
    }

    /// Returns a token with the progress of each source. Only [`Signer::open`] with the same `binding` accepts it.
    #[must_use]
    pub fn seal(&self, binding: &[impl AsRef<str>], sources: &[SourceProgress]) -> String {
        let rows: Vec<Value> = sources
            .iter()
            .map(|source| match source {
                // The first page has no history.
                SourceProgress::At(Position { page_token: None, size, offset, mark: None, .. }) => {
                    json!([null, size, offset])
                }
                SourceProgress::At(Position { page_token, size, offset, history, mark: None }) => {
                    json!([page_token, size, offset, history.encode()])
                }
                SourceProgress::At(Position { page_token, size, offset, history, mark: Some(mark) }) => {
                    let Mark { before, last, total, overlaps } = mark;
                    json!([page_token, size, offset, history.encode(), [before, last, total, overlaps]])
                }
                SourceProgress::End { total } => json!(total),
            })
            .collect();
        let mut bytes = vec![VERSION];
        crate::base::model::write_json(&mut bytes, &rows);
        // HMAC accepts a key of any length, so there always is a MAC.
        if let Some(mac) = self.mac(binding, &bytes) {
            bytes.extend_from_slice(&mac.finalize().into_bytes()[..SIGNATURE]);
        }
        BASE64.encode(bytes)
    }

    /// Returns the progress of each source in a token.
    ///
    /// # Errors
    /// The token is not valid here: it belongs to another client or another list, or it is forged.
    pub fn open(&self, binding: &[impl AsRef<str>], token: &str) -> Result<Vec<SourceProgress>, InvalidPageToken> {
        const INVALID: InvalidPageToken = InvalidPageToken;
        // The limits of a URL and of a form limit its length.
        let bytes = BASE64.decode(token).map_err(|_| INVALID)?;
        // `verify_truncated_left` accepts any length, so the length is fixed here.
        let (payload, signature) = bytes.split_last_chunk::<SIGNATURE>().ok_or(INVALID)?;
        self.mac(binding, payload).ok_or(INVALID)?.verify_truncated_left(signature).map_err(|_| INVALID)?;
        if payload.first() != Some(&VERSION) {
            return Err(INVALID);
        }
        let rows: Vec<Value> = serde_json::from_slice(&payload[1..]).map_err(|_| INVALID)?;
        rows.into_iter().map(|row| progress(row).ok_or(INVALID)).collect()
    }
}

fn progress(row: Value) -> Option<SourceProgress> {
    if !row.is_array() {
        return Some(SourceProgress::End { total: serde_json::from_value(row).ok()? });
    }
    // A token of version 0.1.0 has no history.
    let (page_token, size, offset, history, mark) = match row.as_array()?.len() {
        3 => serde_json::from_value(row).map(|(token, size, offset)| (token, size, offset, None, None)).ok()?,
        4 => serde_json::from_value(row).map(|(token, size, offset, text)| (token, size, offset, text, None)).ok()?,
        _ => serde_json::from_value::<(_, _, _, Option<String>, Option<(_, _, _, _)>)>(row).ok()?,
    };
    let history = history.map_or(Some(CursorHistory::default()), |text| CursorHistory::parse(&text))?;
    let mark = mark.map(|(before, last, total, overlaps)| Mark { before, last, total, overlaps });
    Some(SourceProgress::At(Position { page_token, size, offset, history, mark }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_with_its_own_binding_and_key() {
        let signer = Signer::new(&Secret(String::new()), &[7; 32]);
        let start = CursorHistory::default();
        let history = start.follow(None, Some(b"page"), "eyJ=/+").unwrap();
        let mark = Mark { before: 99, last: Some(u64::MAX), total: Some(u64::MAX), overlaps: true };
        let sources = vec![
            SourceProgress::At(Position {
                page_token: Some("eyJ=/+".into()),
                history,
                offset: 37,
                ..Position::first(100)
            }),
            SourceProgress::End { total: None },
            SourceProgress::At(Position { offset: u32::MAX, ..Position::first(0) }),
            SourceProgress::At(Position { mark: Some(Mark::default()), ..Position::first(5) }),
            SourceProgress::At(Position { page_token: Some("99".into()), mark: Some(mark), ..Position::first(100) }),
            SourceProgress::End { total: Some(127) },
        ];
        let token = signer.seal(&["client", "/v1/x", "status=active"], &sources);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_eq!(signer.open(&["client", "/v1/x", "status=active"], &token), Ok(sources));
        for other in
            [["other", "/v1/x", "status=active"], ["client", "/v1/y", "status=active"], ["client", "/v1/x", ""]]
        {
            assert!(signer.open(&other, &token).is_err());
        }
        assert!(
            signer.open(&["client/v1/x", "", "status=active"], &token).is_err(),
            "the parts of a binding are kept apart"
        );
        let other = Signer::new(&Secret("key".into()), &[7; 32]);
        assert!(other.open(&["client", "/v1/x", "status=active"], &token).is_err());
    }

    fn first_page(size: u32, offset: u32) -> Position {
        Position { offset, ..Position::first(size) }
    }

    #[test]
    fn a_row_of_version_0_1_has_no_history() {
        let position = Position { page_token: Some("x".into()), ..first_page(100, 3) };
        assert_eq!(progress(json!(["x", 100, 3])), Some(SourceProgress::At(position)));
        assert_eq!(progress(json!(["x", 100, 3, "not a history"])), None);
        assert_eq!(progress(json!(["x", 100])), None);
    }

    #[test]
    fn every_changed_character_makes_a_token_invalid() {
        let signer = Signer::new(&Secret("key".into()), &[0; 32]);
        let token = signer.seal(&["c"], &[SourceProgress::At(first_page(10, 1))]);
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert!(signer.open(&["c"], &String::from_utf8(forged).unwrap()).is_err());
        }
        for junk in ["", "A", "!!!", "AAAA", &"A".repeat(100_000)] {
            assert!(signer.open(&["c"], junk).is_err());
        }
    }
}
