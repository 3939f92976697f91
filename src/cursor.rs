//! Page tokens: where in each source of a list the next page begins.
//!
//! A room of its own because a token leaves the house and comes back: it is opaque, versioned and
//! signed, and bound to the client, the path and the filters it was made for. Nothing in it is secret.

use crate::config::decode::Secret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

const VERSION: u8 = 2;
const SIGNATURE: usize = 16;

/// Where in a source the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The provider's own token; `None` for its first page.
    pub page_token: Option<String>,
    /// The size in which its pages are asked for.
    pub size: u32,
    /// Sessions of that page already given.
    pub offset: u32,
}

/// How far a source has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// There is more from here.
    At(Position),
    /// All of it was given.
    End {
        /// How many sessions it had in all, if it said so.
        total: Option<u64>,
    },
}

/// Signs and opens tokens.
pub struct Signer {
    key: Vec<u8>,
}

impl Signer {
    /// A signer with the configured key, or the random one made at start where there is none.
    #[must_use]
    pub fn new(configured: &Secret, random: &[u8; 32]) -> Self {
        let key = if configured.0.is_empty() { random.to_vec() } else { configured.0.clone().into_bytes() };
        Self { key }
    }

    fn sign(&self, binding: &[impl AsRef<str>], payload: &[u8]) -> Option<[u8; SIGNATURE]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        for part in binding.iter().map(AsRef::as_ref) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac.update(payload);
        mac.finalize().into_bytes().get(..SIGNATURE)?.try_into().ok()
    }

    /// A token for these places, one a source. `binding` is what it may be used for.
    #[must_use]
    pub fn seal(&self, binding: &[impl AsRef<str>], places: &[Reached]) -> String {
        let rows: Vec<Value> = places
            .iter()
            .map(|place| match place {
                Reached::At(Position { page_token, size, offset }) => json!([page_token, size, offset]),
                Reached::End { total } => json!(total),
            })
            .collect();
        let mut bytes = vec![VERSION];
        crate::model::write_json(&mut bytes, &rows);
        bytes.extend_from_slice(&self.sign(binding, &bytes).unwrap_or_default());
        BASE64.encode(bytes)
    }

    /// The places in a token.
    ///
    /// # Errors
    /// Why it cannot be used here; it may be another's, of another list, or forged.
    pub fn open(&self, binding: &[impl AsRef<str>], token: &str) -> Result<Vec<Reached>, &'static str> {
        const WRONG: &str =
            "page_token is not one that this list gave to this client with these filters; start again without it";
        if token.len() > 16 << 10 {
            return Err(WRONG);
        }
        let bytes = BASE64.decode(token).map_err(|_| WRONG)?;
        let (payload, signature) = bytes.split_at_checked(bytes.len().saturating_sub(SIGNATURE)).ok_or(WRONG)?;
        let expected = self.sign(binding, payload).ok_or(WRONG)?;
        // Compared whole, so that the time it takes tells nothing.
        let different =
            expected.iter().zip(signature).fold(expected.len() ^ signature.len(), |d, (a, b)| d | usize::from(a ^ b));
        if different != 0 || payload.first() != Some(&VERSION) {
            return Err(WRONG);
        }
        let rows: Vec<Value> = serde_json::from_slice(&payload[1..]).map_err(|_| WRONG)?;
        rows.into_iter().map(|row| reached(row).ok_or(WRONG)).collect()
    }
}

fn reached(row: Value) -> Option<Reached> {
    if !row.is_array() {
        return Some(Reached::End { total: serde_json::from_value(row).ok()? });
    }
    let (page_token, size, offset) = serde_json::from_value(row).ok()?;
    Some(Reached::At(Position { page_token, size, offset }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_for_what_it_was_made_for() {
        let signer = Signer::new(&Secret(String::new()), &[7; 32]);
        let positions = vec![
            Reached::At(Position { page_token: Some("eyJ=/+".into()), size: 100, offset: 37 }),
            Reached::End { total: None },
            Reached::At(Position { page_token: None, size: 0, offset: u32::MAX }),
            Reached::End { total: Some(127) },
        ];
        let token = signer.seal(&["client", "/v1/x", "status=active"], &positions);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_eq!(signer.open(&["client", "/v1/x", "status=active"], &token), Ok(positions));
        for other in
            [["other", "/v1/x", "status=active"], ["client", "/v1/y", "status=active"], ["client", "/v1/x", ""]]
        {
            assert!(signer.open(&other, &token).is_err());
        }
        assert!(signer.open(&["client/v1/x", "", "status=active"], &token).is_err(), "parts do not run together");
        let other = Signer::new(&Secret("key".into()), &[7; 32]);
        assert!(other.open(&["client", "/v1/x", "status=active"], &token).is_err());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let signer = Signer::new(&Secret("key".into()), &[0; 32]);
        let token = signer.seal(&["c"], &[Reached::At(Position { page_token: None, size: 10, offset: 1 })]);
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
