//! Decodes `clients.yaml`: the clients, their keys, limits and permissions.
//!
//! A key is a SHA-256 digest here, so nobody can use the file to call Weir.

use super::credentials::{self, CredentialConfig};
use super::decode::{self, DecodeContext, Fields};
use super::faults::{Located, Location};
use super::tree::Node;
use crate::base::model::{Time, parse_time};

/// A client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The client's name in logs, metrics and problems.
    pub id: Located<String>,
    /// The client's keys; several during a key rotation.
    pub keys: Vec<ClientKey>,
    /// Policies for all requests of the client.
    pub rate_limits: Vec<Located<String>>,
    /// Further policies for requests to one provider.
    pub provider_rate_limits: Vec<(Located<String>, Vec<Located<String>>)>,
    /// The providers that the client may use; `None` means all.
    pub providers: Option<Vec<Located<String>>>,
    /// Whether the client sees secret members.
    pub reveal_secrets: bool,
    /// The client's own credential for a provider, in place of the one in the provider file.
    pub credentials: Vec<(Located<String>, CredentialConfig)>,
    /// Whether the client may use the providers' own APIs.
    pub native: bool,
    /// Whether the client may request explanations.
    pub explain: bool,
}

/// The digest of a key.
#[derive(Clone)]
pub struct ClientKey {
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// The time from which Weir refuses the key; `None` means never.
    pub expires_at: Option<Time>,
    /// The location of the key.
    pub location: Location,
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The digest identifies the key, so it stays hidden too.
        f.debug_struct("Key").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Decodes the file.
pub fn decode(root: &Node, cx: &mut DecodeContext<'_>) -> Vec<ClientConfig> {
    let Some(mut fields) = Fields::of(root, "clients.yaml", cx) else { return Vec::new() };
    let clients = fields.required("clients", cx, |node, cx| decode::list(node, cx, client));
    fields.end(cx);
    clients.unwrap_or_default()
}

fn client(node: &Node, cx: &mut DecodeContext<'_>) -> Option<ClientConfig> {
    let mut fields = Fields::of(node, "a client", cx)?;
    let id = fields.required("id", cx, decode::name);
    let keys = fields.required("keys", cx, |node, cx| decode::list(node, cx, key));
    let rate_limits = fields.optional("rate_limit", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let provider_rate_limits = fields.optional("provider_rate_limits", cx, |node, cx| {
        by_provider(node, "provider_rate_limits", cx, |node, cx| decode::list(node, cx, decode::at_text))
    });
    let mut written = 0;
    let providers = fields.optional("providers", cx, |node, cx| {
        decode::list(node, cx, |node, cx| {
            written += 1;
            decode::at_text(node, cx)
        })
    });
    // A name with a fault may be any provider, so it must not forbid one.
    let providers = providers.filter(|providers| providers.len() == written);
    let reveal_secrets = fields.optional("reveal_secrets", cx, decode::boolean);
    let credentials =
        fields.optional("credentials", cx, |node, cx| by_provider(node, "credentials", cx, credentials::decode));
    let native = fields.optional("native", cx, decode::boolean);
    let explain = fields.optional("explain", cx, decode::boolean);
    fields.end(cx);
    Some(ClientConfig {
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

/// Reads a mapping from provider names to what `read` reads.
fn by_provider<T>(
    node: &Node,
    what: &str,
    cx: &mut DecodeContext<'_>,
    read: impl Fn(&Node, &mut DecodeContext<'_>) -> Option<T>,
) -> Option<Vec<(Located<String>, T)>> {
    decode::entries(node, what, &[], cx, |key, node, cx| {
        let provider = Located { value: key.name.clone(), location: key.location.clone() };
        Some((provider, read(node, cx)?))
    })
}

fn key(node: &Node, cx: &mut DecodeContext<'_>) -> Option<ClientKey> {
    let mut fields = Fields::of(node, "a key", cx)?;
    let sha256 = fields.required("sha256", cx, |node, cx| {
        // The message does not repeat the text: a user can write the key itself here.
        let expected = "this is not a SHA-256 digest; write the 64 hexadecimal digits that `weir key new` prints";
        let digest = |text: &str| {
            let mut digest = [0; 32];
            hex::decode_to_slice(text, &mut digest).map(|()| digest).map_err(|_| expected.to_owned())
        };
        decode::parsed_text(node, cx, "^[0-9A-Fa-f]{64}$", digest).map(|at| at.value)
    });
    let expires_at = fields.optional("expires_at", cx, |node, cx| {
        let fault = |text: &str| format!("{text:?} is not a time; write RFC 3339, such as 2027-01-31T00:00:00Z");
        let time = |text: &str| parse_time(text).map(|(_, time)| time).ok_or_else(|| fault(text));
        decode::parsed_text(node, cx, "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt].*$", time).map(|at| at.value)
    });
    let location = fields.location().clone();
    fields.end(cx);
    Some(ClientKey { sha256: sha256?, expires_at, location })
}
