//! Decodes a `credentials` section: how Weir authenticates to a provider.

use super::decode::{self, DecodeContext, Fields, Secret};
use super::faults::{Located, Location};
use super::tree::Node;

/// The credential that Weir sends to a provider.
#[derive(Debug, Clone)]
pub enum CredentialConfig {
    /// A header with a fixed value.
    Header {
        /// The header's name.
        header: Located<String>,
        /// The header's whole value. If it is empty, Weir sends no credential.
        value: Secret,
    },
    /// The client's own credential: the header that the client sends.
    Forward {
        /// The header's name.
        header: Located<String>,
    },
    /// A bearer token that Weir gets and renews (RFC 6749, section 4.4).
    OAuth2(OAuth2),
}

/// OAuth 2.0 client credentials.
#[derive(Debug, Clone)]
pub struct OAuth2 {
    /// The URL of the token endpoint.
    pub token_url: Located<String>,
    /// The client id.
    pub client_id: String,
    /// The client secret.
    pub client_secret: Secret,
    /// The scope; `None` if the token request has none.
    pub scope: Option<String>,
}

/// Decodes `{ header: NAME, value: SECRET }`, `{ bearer: SECRET }`, `{ oauth2: … }` or
/// `{ mode: forward, header: NAME }`.
pub(crate) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<CredentialConfig> {
    let before = cx.faults.count();
    let mut fields = Fields::of(node, "credentials", cx)?;
    let mode =
        fields.optional("mode", cx, |node, cx| decode::one_of(node, cx, "mode", &[("swap", false), ("forward", true)]));
    let header = fields.optional("header", cx, decode::at_text);
    let value = fields.optional("value", cx, decode::secret);
    let bearer = fields.optional("bearer", cx, decode::secret);
    let oauth2 = fields.optional("oauth2", cx, oauth2);
    let location = fields.location().clone();
    // `value: ""` and `bearer: ""` count as written: the empty value means no credential.
    let written = ["value", "bearer", "oauth2"].map(|key| fields.node(key).is_some());
    fields.end(cx);
    // A key with a fault, or with a wrong name, is the cause of the wrong form.
    if cx.faults.count() > before {
        return None;
    }
    match (mode.unwrap_or(false), header, written) {
        (true, Some(header), [false, false, false]) => Some(CredentialConfig::Forward { header }),
        (false, Some(header), [true, false, false]) => Some(CredentialConfig::Header { header, value: value? }),
        (false, None, [false, true, false]) => Some(bearer_of(bearer?, location)),
        (false, None, [false, false, true]) => Some(CredentialConfig::OAuth2(oauth2?)),
        _ => {
            let forms =
                "{ header: NAME, value: SECRET }, { bearer: SECRET }, { oauth2: … } or { mode: forward, header: NAME }";
            cx.faults.add(&location, format!("credentials must be {forms}"));
            None
        }
    }
}

fn bearer_of(Secret(token): Secret, location: Location) -> CredentialConfig {
    let value = if token.is_empty() { token } else { format!("Bearer {token}") };
    CredentialConfig::Header { header: Located { value: "authorization".into(), location }, value: Secret(value) }
}

fn oauth2(node: &Node, cx: &mut DecodeContext<'_>) -> Option<OAuth2> {
    let mut fields = Fields::of(node, "oauth2", cx)?;
    let token_url = fields.required("token_url", cx, decode::url);
    let client_id = fields.required("client_id", cx, decode::text);
    let client_secret = fields.required("client_secret", cx, decode::secret);
    let scope = fields.optional("scope", cx, decode::text);
    fields.end(cx);
    Some(OAuth2 { token_url: token_url?, client_id: client_id?, client_secret: client_secret?, scope })
}
