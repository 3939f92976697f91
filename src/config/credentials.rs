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
    /// Several headers with fixed values, with different names. A header with an empty value is not sent.
    Headers(Vec<(Located<String>, Secret)>),
    /// A user name and a password (RFC 7617).
    Basic {
        /// The user name, without a colon.
        username: Located<String>,
        /// The password; `None` if the file has none.
        password: Option<Secret>,
    },
    /// The client's own credential: the header that the client sends.
    Forward {
        /// The header's name.
        header: Located<String>,
    },
    /// A bearer token that Weir gets and renews (RFC 6749, section 4.4).
    OAuth2(OAuth2),
}

impl CredentialConfig {
    /// Returns the names of the headers that the file gives to the credential.
    #[must_use]
    pub fn header_names(&self) -> Vec<&Located<String>> {
        match self {
            Self::Header { header, .. } | Self::Forward { header } => vec![header],
            Self::Headers(headers) => headers.iter().map(|(name, _)| name).collect(),
            Self::Basic { .. } | Self::OAuth2(_) => Vec::new(),
        }
    }
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

/// The keys of a section, each of which makes a form of its own, and that form.
const FORMS: [(&str, &str); 5] = [
    ("header", "{ header: NAME, value: SECRET }"),
    ("headers", "{ headers: { NAME: SECRET, … } }"),
    ("bearer", "{ bearer: SECRET }"),
    ("basic", "{ basic: { username: NAME, password: SECRET } }"),
    ("oauth2", "{ oauth2: … }"),
];

/// Decodes a section in one of [`FORMS`], or `{ mode: forward, header: NAME }`.
pub(crate) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<CredentialConfig> {
    let before = cx.faults.count();
    let mut fields = Fields::of(node, "credentials", cx)?;
    let mode =
        fields.optional("mode", cx, |node, cx| decode::one_of(node, cx, "mode", &[("swap", false), ("forward", true)]));
    let header = fields.optional("header", cx, decode::at_text);
    let value = fields.optional("value", cx, decode::secret);
    let headers = fields.optional("headers", cx, headers);
    let bearer = fields.optional("bearer", cx, decode::secret);
    let basic = fields.optional("basic", cx, basic);
    let oauth2 = fields.optional("oauth2", cx, oauth2);
    let location = fields.location().clone();
    // `value: ""` and `bearer: ""` count as written: the empty value means no credential.
    let forms: Vec<&str> = FORMS.iter().map(|(key, _)| *key).filter(|key| fields.is_written(key)).collect();
    let has_value = fields.is_written("value");
    fields.end(cx);
    // A key with a fault, or with a wrong name, is the cause of the wrong form.
    if cx.faults.count() > before {
        return None;
    }
    match (mode.unwrap_or(false), forms.as_slice(), has_value) {
        (true, ["header"], false) => Some(CredentialConfig::Forward { header: header? }),
        (false, ["header"], true) => Some(CredentialConfig::Header { header: header?, value: value? }),
        (false, ["headers"], false) => Some(CredentialConfig::Headers(headers?)),
        (false, ["bearer"], false) => Some(bearer_of(bearer?, location)),
        (false, ["basic"], false) => basic,
        (false, ["oauth2"], false) => Some(CredentialConfig::OAuth2(oauth2?)),
        _ => {
            let forms: Vec<&str> = FORMS.iter().map(|(_, form)| *form).collect();
            let forms = format!("{} or {{ mode: forward, header: NAME }}", forms.join(", "));
            cx.faults.add(&location, format!("credentials must be {forms}"));
            None
        }
    }
}

fn bearer_of(Secret(token): Secret, location: Location) -> CredentialConfig {
    let value = if token.is_empty() { token } else { format!("Bearer {token}") };
    CredentialConfig::Header { header: Located { value: "authorization".into(), location }, value: Secret(value) }
}

fn headers(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Vec<(Located<String>, Secret)>> {
    let mut names: Vec<String> = Vec::new();
    let headers = decode::entries(node, "headers", &[], cx, |key, node, cx| {
        let name = key.name.to_ascii_lowercase();
        if names.contains(&name) {
            let message = format!("duplicate header {:?}; names of headers have no letter case", key.name);
            cx.faults.add(&key.location, message);
            return None;
        }
        names.push(name);
        let location = key.location.clone();
        Some((Located { value: key.name.clone(), location }, decode::secret(node, cx)?))
    })?;
    if names.is_empty() && cx.schema.is_none() {
        cx.faults.add(&node.location, "headers has no header; write { NAME: SECRET, … }");
    }
    Some(headers)
}

fn basic(node: &Node, cx: &mut DecodeContext<'_>) -> Option<CredentialConfig> {
    let mut fields = Fields::of(node, "basic", cx)?;
    let username = fields.required("username", cx, |node, cx| {
        let value = decode::text(node, cx)?;
        if let Some(message) = username_fault(&value) {
            cx.faults.add(&node.location, message);
        }
        Some(Located { value, location: node.location.clone() })
    });
    let password = fields.optional("password", cx, |node, cx| {
        let password = decode::secret(node, cx)?;
        if password.0.chars().any(char::is_control) {
            cx.faults.add(&node.location, "a password cannot have control characters (a line break?) (RFC 7617)");
        }
        Some(password)
    });
    let has_fault = password.is_none() && fields.is_written("password");
    fields.end(cx);
    (!has_fault).then_some(CredentialConfig::Basic { username: username?, password })
}

/// Returns what is wrong with a user name (RFC 7617, section 2). The name itself can be a secret.
fn username_fault(name: &str) -> Option<&'static str> {
    if name.contains(':') {
        return Some("a user name cannot have a colon, which ends it (RFC 7617); the password has its own key");
    }
    let has_control = name.chars().any(char::is_control);
    has_control.then_some("a user name cannot have control characters (a line break?) (RFC 7617)")
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
