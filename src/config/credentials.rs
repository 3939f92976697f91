//! Decodes a `credentials` section: how Weir authenticates to a provider.

use super::decode::{self, DecodeContext, Fields, Secret};
use super::faults::{Located, Location};
use super::jwt;
pub(crate) use super::jwt::{Jwt, JwtAlgorithm, JwtKey};
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
        /// The user name, without a colon. It can be an API key.
        username: Located<Secret>,
        /// The password; `None` if the file has none.
        password: Option<Secret>,
    },
    /// An API key in the query.
    Query {
        /// The name of the parameter.
        name: Located<String>,
        /// The key. If it is empty, Weir sends no credential.
        value: Secret,
    },
    /// The client's own credential: the header that the client sends.
    Forward {
        /// The header's name.
        header: Located<String>,
    },
    /// A bearer token that Weir gets and renews (RFC 6749, section 4.4).
    OAuth2(OAuth2),
    /// A signature of each request (AWS Signature Version 4).
    AwsSigV4(AwsSigV4),
    /// A JSON Web Token that Weir signs.
    Jwt(Box<Jwt>),
}

impl CredentialConfig {
    /// Returns the names of the headers that the file gives to the credential.
    #[must_use]
    pub fn header_names(&self) -> Vec<&Located<String>> {
        match self {
            Self::Header { header, .. } | Self::Forward { header } => vec![header],
            Self::Headers(headers) => headers.iter().map(|(name, _)| name).collect(),
            Self::Basic { .. } | Self::Query { .. } | Self::OAuth2(_) | Self::AwsSigV4(_) | Self::Jwt(_) => Vec::new(),
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

/// An access key of AWS, and what its signatures are for.
#[derive(Debug, Clone)]
pub struct AwsSigV4 {
    /// The id of the access key. If it is empty, Weir sends no credential.
    pub access_key_id: Located<String>,
    /// The secret access key. If it is empty, Weir sends no credential.
    pub secret_access_key: Secret,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
    /// The region, such as `eu-west-1`.
    pub region: String,
    /// The name of the service in signatures, such as `bedrock`.
    pub service: String,
}

/// The keys of a section, each of which makes a form of its own, and that form.
const FORMS: [(&str, &str); 8] = [
    ("header", "{ header: NAME, value: SECRET }"),
    ("headers", "{ headers: { NAME: SECRET, … } }"),
    ("bearer", "{ bearer: SECRET }"),
    ("basic", "{ basic: { username: SECRET, password: SECRET } }"),
    ("query", "{ query: NAME, value: SECRET }"),
    ("oauth2", "{ oauth2: … }"),
    ("jwt", "{ jwt: … }"),
    ("aws_sigv4", "{ aws_sigv4: … }"),
];

/// Decodes a section in one of [`FORMS`], or `{ mode: forward, header: NAME }`.
pub(crate) fn decode(node: &Node, cx: &mut DecodeContext<'_>) -> Option<CredentialConfig> {
    let before = cx.faults.count();
    let mut fields = Fields::of(node, "credentials", cx)?;
    let mode =
        fields.optional("mode", cx, |node, cx| decode::one_of(node, cx, "mode", &[("swap", false), ("forward", true)]));
    let header = fields.optional("header", cx, decode::at_text);
    let query = fields.optional("query", cx, parameter);
    let value = fields.optional("value", cx, decode::secret);
    let headers = fields.optional("headers", cx, headers);
    let bearer = fields.optional("bearer", cx, decode::secret);
    let basic = fields.optional("basic", cx, basic);
    let oauth2 = fields.optional("oauth2", cx, oauth2);
    let jwt = fields.optional("jwt", cx, jwt::decode);
    let aws_sigv4 = fields.optional("aws_sigv4", cx, aws_sigv4);
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
        (false, ["query"], true) => Some(CredentialConfig::Query { name: query?, value: value? }),
        (false, ["headers"], false) => Some(CredentialConfig::Headers(headers?)),
        (false, ["bearer"], false) => Some(bearer_of(bearer?, location)),
        (false, ["basic"], false) => basic,
        (false, ["oauth2"], false) => Some(CredentialConfig::OAuth2(oauth2?)),
        (false, ["jwt"], false) => Some(CredentialConfig::Jwt(Box::new(jwt?))),
        (false, ["aws_sigv4"], false) => Some(CredentialConfig::AwsSigV4(aws_sigv4?)),
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

/// Reads the name of a query parameter.
fn parameter(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    decode::parsed_text(node, cx, "^[!-~]+$", |text| match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("{text:?} is not the name of a query parameter; write one word in ASCII, such as api_key"))
        }
    })
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
        let value = decode::secret(node, cx)?;
        if let Some(message) = username_fault(&value.0) {
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

fn aws_sigv4(node: &Node, cx: &mut DecodeContext<'_>) -> Option<AwsSigV4> {
    let mut fields = Fields::of(node, "aws_sigv4", cx)?;
    let access_key_id = fields.required("access_key_id", cx, |node, cx| {
        let value = decode::text(node, cx)?;
        let is_valid = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let fault = "an access key id has only letters and digits, such as AKIAIOSFODNN7EXAMPLE";
        cx.faults.keep(&node.location, is_valid.then_some(()).ok_or(fault))?;
        Some(Located { value, location: node.location.clone() })
    });
    let one_line = |node: &Node, cx: &mut DecodeContext<'_>| {
        let secret = decode::secret(node, cx)?;
        let is_valid = secret.0.bytes().all(|byte| byte.is_ascii_graphic());
        let fault = "this secret has characters that AWS does not use (a space or a line break?)";
        cx.faults.keep(&node.location, is_valid.then_some(secret).ok_or(fault))
    };
    let secret_access_key = fields.required("secret_access_key", cx, one_line);
    let session_token = fields.optional("session_token", cx, one_line);
    let has_fault = session_token.is_none() && fields.is_written("session_token");
    let word = |node: &Node, cx: &mut DecodeContext<'_>, what: &str, example: &str| {
        decode::parsed_text(node, cx, "^[a-z0-9-]+$", |text| {
            let is_valid = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            is_valid
                .then(|| text.to_owned())
                .ok_or_else(|| format!("{text:?} is not {what}; write small letters, digits and -, such as {example}"))
        })
    };
    let region = fields.required("region", cx, |node, cx| word(node, cx, "a region", "eu-west-1"));
    let service = fields.required("service", cx, |node, cx| {
        let service = word(node, cx, "the name of a service", "bedrock")?;
        let message = "Weir does not sign requests to S3, whose signatures have other rules";
        cx.faults
            .keep(&service.location, if service.value.starts_with("s3") { Err(message) } else { Ok(service.value) })
    });
    fields.end(cx);
    let session_token = if has_fault { return None } else { session_token };
    let (access_key_id, secret_access_key) = (access_key_id?, secret_access_key?);
    Some(AwsSigV4 { access_key_id, secret_access_key, session_token, region: region?.value, service: service? })
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
