//! `credentials:` as written: what a provider is shown, and whose it is.

use super::decode::{self, Cx, Fields, Secret};
use super::faults::{At, Place};
use super::tree::Node;

/// What a provider is shown.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A header with a fixed value.
    Header {
        /// Its name.
        header: At<String>,
        /// Its whole value; empty: send none.
        value: Secret,
    },
    /// The header that the client sent: it brings its own credential.
    Forward {
        /// The header's name.
        header: At<String>,
    },
    /// A bearer token that Weir fetches and renews (RFC 6749, section 4.4).
    OAuth2(OAuth2),
}

/// OAuth 2.0 client credentials.
#[derive(Debug, Clone)]
pub struct OAuth2 {
    /// Where tokens are to be had.
    pub token_url: At<String>,
    /// Who asks.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// What for, if the provider wants to know.
    pub scope: Option<String>,
}

/// `{ header: NAME, value: SECRET }`, `{ bearer: SECRET }`, `{ oauth2: … }` or `{ mode: forward, header: NAME }`.
pub fn decode(node: &Node, cx: &mut Cx<'_>) -> Option<Credential> {
    let mut fields = Fields::of(node, "credentials", cx)?;
    let mode =
        fields.optional("mode", cx, |node, cx| decode::one_of(node, cx, "mode", &[("swap", false), ("forward", true)]));
    let header = fields.optional("header", cx, decode::at_text);
    let value = fields.optional("value", cx, decode::secret);
    let bearer = fields.optional("bearer", cx, decode::secret);
    let oauth2 = fields.optional("oauth2", cx, oauth2);
    let place = fields.place().clone();
    // `value: ""` and `bearer: ""` are written, but empty: no credential.
    let written = ["value", "bearer", "oauth2"].map(|key| fields.node(key).is_some());
    let wrong_mode = mode.is_none() && fields.node("mode").is_some();
    fields.end(cx);
    if wrong_mode {
        return None;
    }
    match (mode.unwrap_or(false), header, written) {
        (true, Some(header), [false, false, false]) => Some(Credential::Forward { header }),
        (false, Some(header), [true, false, false]) => Some(Credential::Header { header, value: value? }),
        (false, None, [false, true, false]) => Some(bearer_of(bearer?, place)),
        (false, None, [false, false, true]) => Some(Credential::OAuth2(oauth2?)),
        _ => {
            let forms =
                "{ header: NAME, value: SECRET }, { bearer: SECRET }, { oauth2: … } or { mode: forward, header: NAME }";
            cx.faults.add(&place, format!("credentials are {forms}"));
            None
        }
    }
}

fn bearer_of(Secret(token): Secret, place: Place) -> Credential {
    let value = if token.is_empty() { token } else { format!("Bearer {token}") };
    Credential::Header { header: At { value: "authorization".into(), place }, value: Secret(value) }
}

fn oauth2(node: &Node, cx: &mut Cx<'_>) -> Option<OAuth2> {
    let mut fields = Fields::of(node, "oauth2", cx)?;
    let token_url = fields.required("token_url", cx, decode::at_text);
    let client_id = fields.required("client_id", cx, decode::text);
    let client_secret = fields.required("client_secret", cx, decode::secret);
    let scope = fields.optional("scope", cx, decode::text);
    fields.end(cx);
    Some(OAuth2 { token_url: token_url?, client_id: client_id?, client_secret: client_secret?, scope })
}
