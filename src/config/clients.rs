//! `clients.yaml` as written: who may call, under which limits.
//!
//! A room of its own because it changes with people, not with software. Keys stand here as digests
//! only; nothing in it can be used to call Weir.

use super::credentials::{self, Credential};
use super::decode::{self, Cx, Fields};
use super::faults::{At, Place};
use super::tree::Node;
use crate::model::{Time, parse_time};

/// One client.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its name in logs, metrics and problems.
    pub id: At<String>,
    /// Digests of its keys; several while a key is being rotated.
    pub keys: Vec<Key>,
    /// Policies for everything it asks.
    pub rate_limits: Vec<At<String>>,
    /// More policies for one provider's routes.
    pub provider_rate_limits: Vec<(At<String>, Vec<At<String>>)>,
    /// Providers it may use; `None`: all.
    pub providers: Option<Vec<At<String>>>,
    /// Whether members marked secret are shown to it.
    pub reveal_secrets: bool,
    /// Its own credentials at a provider, in place of the provider's.
    pub credentials: Vec<(At<String>, Credential)>,
    /// Whether it may use the providers' own APIs.
    pub native: bool,
    /// Whether it may have its requests explained.
    pub explain: bool,
}

/// A key's digest.
#[derive(Clone)]
pub struct Key {
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// When it stops being accepted.
    pub expires_at: Option<Time>,
    /// Where it stands.
    pub place: Place,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A digest is a fingerprint of the key: it is not shown either.
        f.debug_struct("Key").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Reads the file's tree.
pub fn decode(root: &Node, cx: &mut Cx<'_>) -> Vec<Client> {
    let Some(mut fields) = Fields::of(root, "clients.yaml", cx) else { return Vec::new() };
    let clients = fields.required("clients", cx, |node, cx| decode::list(node, cx, client));
    fields.end(cx);
    clients.unwrap_or_default()
}

fn client(node: &Node, cx: &mut Cx<'_>) -> Option<Client> {
    let mut fields = Fields::of(node, "a client", cx)?;
    let id = fields.required("id", cx, decode::name);
    let keys = fields.required("keys", cx, |node, cx| decode::list(node, cx, key));
    let rate_limits = fields.optional("rate_limit", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let provider_rate_limits = fields.optional("provider_rate_limits", cx, |node, cx| {
        by_provider(node, "provider_rate_limits", cx, |node, cx| decode::list(node, cx, decode::at_text))
    });
    let providers = fields.optional("providers", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let reveal_secrets = fields.optional("reveal_secrets", cx, decode::boolean);
    let credentials =
        fields.optional("credentials", cx, |node, cx| by_provider(node, "credentials", cx, credentials::decode));
    let native = fields.optional("native", cx, decode::boolean);
    let explain = fields.optional("explain", cx, decode::boolean);
    fields.end(cx);
    Some(Client {
        id: id?,
        keys: keys.unwrap_or_default(),
        rate_limits: rate_limits.unwrap_or_default(),
        provider_rate_limits: provider_rate_limits.unwrap_or_default(),
        providers,
        reveal_secrets: reveal_secrets.unwrap_or(false),
        credentials: credentials.unwrap_or_default(),
        native: native.unwrap_or(true),
        explain: explain.unwrap_or(false),
    })
}

fn by_provider<T>(
    node: &Node,
    what: &str,
    cx: &mut Cx<'_>,
    read: impl Fn(&Node, &mut Cx<'_>) -> Option<T>,
) -> Option<Vec<(At<String>, T)>> {
    decode::each(node, what, &[], cx, |key, node, cx| {
        let provider = At { value: key.name.clone(), place: key.place.clone() };
        Some((provider, read(node, cx)?))
    })
}

fn key(node: &Node, cx: &mut Cx<'_>) -> Option<Key> {
    let mut fields = Fields::of(node, "a key", cx)?;
    let sha256 = fields.required("sha256", cx, |node, cx| {
        // It may be the key itself that stands there: it is not repeated.
        let wanted = "a key is kept as its SHA-256: 64 hexadecimal digits, as `weir key new` prints them";
        let digest = |text: &str| hex(text).ok_or_else(|| wanted.to_owned());
        decode::shaped(node, cx, "^[0-9A-Fa-f]{64}$", digest).map(|at| at.value)
    });
    let expires_at = fields.optional("expires_at", cx, |node, cx| {
        let wrong = |text: &str| format!("{text:?} is not a time; write RFC 3339 as in 2027-01-31T00:00:00Z");
        let time = |text: &str| parse_time(text).map(|(_, time)| time).ok_or_else(|| wrong(text));
        decode::shaped(node, cx, "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt].*$", time).map(|at| at.value)
    });
    let place = fields.place().clone();
    fields.end(cx);
    Some(Key { sha256: sha256?, expires_at, place })
}

fn hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}
