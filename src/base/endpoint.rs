//! Defines the types of the table of endpoints, and matches paths with their templates.

/// One path of the API.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The path's template; also its name in metrics and logs.
    pub path: &'static str,
    /// The `operationId` of the OpenAPI description.
    pub operation_id: &'static str,
    /// One line, without a full stop.
    pub summary: &'static str,
    /// Whole sentences.
    pub description: &'static str,
    /// Parameters of the path and of the query. Any other parameter is 400.
    pub parameters: &'static [Parameter],
    /// The methods that it has.
    pub methods: Methods,
    /// The kind of its 200 response.
    pub response: ResponseKind,
}

/// The methods of an endpoint. A form has the parameters of the query, so that they can be longer than a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// GET and HEAD.
    Get,
    /// GET, HEAD and POST.
    GetOrForm,
    /// POST with a form.
    Form,
    /// POST without a body.
    Post,
}

impl Methods {
    /// Returns the value of `Allow`.
    #[must_use]
    pub fn allow(self) -> &'static str {
        match self {
            Methods::Get => "GET, HEAD",
            Methods::GetOrForm => "GET, HEAD, POST",
            Methods::Form | Methods::Post => "POST",
        }
    }

    /// Returns whether GET and HEAD are among them.
    #[must_use]
    pub fn has_get(self) -> bool {
        matches!(self, Methods::Get | Methods::GetOrForm)
    }

    /// Returns whether a POST with a form is among them.
    #[must_use]
    pub fn has_form(self) -> bool {
        matches!(self, Methods::Form | Methods::GetOrForm)
    }
}

/// The kind of an endpoint's 200 response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseKind {
    /// A unified session.
    Session,
    /// A page of sessions.
    Page,
    /// A session or a problem for each id.
    Batch,
    /// Server-sent events.
    Events,
    /// A token for a watch.
    WatchToken,
    /// The configured providers.
    Providers,
    /// The OpenAPI description.
    Description,
    /// The HTML page that shows the description.
    DocsPage,
    /// A style sheet or script of that page.
    DocsFile,
}

impl ResponseKind {
    /// Returns whether the response is the same for every client and needs no key.
    #[must_use]
    pub fn is_public(self) -> bool {
        matches!(self, ResponseKind::Description | ResponseKind::DocsPage | ResponseKind::DocsFile)
    }

    /// Returns whether the response is made of provider data.
    #[must_use]
    pub fn needs_provider(self) -> bool {
        matches!(self, ResponseKind::Session | ResponseKind::Page | ResponseKind::Batch | ResponseKind::Events)
    }
}

/// A parameter of a path or of a query.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The parameter's name.
    pub name: &'static str,
    /// The type of its value.
    pub value_type: ParameterType,
    /// Where it is, and how often it may occur.
    pub location: ParameterLocation,
    /// Whole sentences.
    pub description: &'static str,
    /// A valid value. Empty if the value depends on the configuration or on an earlier response.
    pub example: &'static str,
}

/// Where a parameter is, and how often it may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterLocation {
    /// In the path.
    Path,
    /// In the query, at most once.
    Query,
    /// In the query, any number of times.
    Repeated,
    /// In the query, once or more.
    Required,
}

/// A request header that every path accepts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeaderParameter {
    /// The name, in lower case.
    pub name: &'static str,
    /// The type of its value.
    pub value_type: ParameterType,
    /// Whole sentences.
    pub description: &'static str,
}

/// The type of a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    /// A session id: unified, or the provider's own where that identifies the session.
    Session,
    /// Any text in place of a session id. An invalid id gets its own problem inside the response.
    AnyId,
    /// A provider's own id of a session.
    OwnSession,
    /// A provider's own id of an agent.
    OwnAgent,
    /// An agent: the provider's own id, or `provider:agent`.
    Agent,
    /// The name of a configured provider.
    Name,
    /// A whole number from 1 to 100.
    Limit,
    /// A page token.
    Token,
    /// A watch token.
    WatchToken,
    /// A session's status.
    Status,
    /// `true` or `false`.
    Flag,
    /// An RFC 3339 time.
    Time,
    /// A name of a session field, or several, separated by commas.
    Fields,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Endpoint {
    /// Returns the values of the template's variables if the path matches the template. They are still percent-encoded
    /// and never empty.
    #[must_use]
    pub fn match_path<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let mut values = Vec::new();
        let (mut template, mut rest) = (self.path, path);
        loop {
            match (template.as_bytes(), rest.as_bytes()) {
                ([], []) => return Some(values),
                ([b'{', ..], _) => {
                    let end = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
                    values.push(Some(&rest[..end]).filter(|value| !value.is_empty())?);
                    (template, rest) = (template.split_once('}').map_or("", |(_, after)| after), &rest[end..]);
                }
                ([one, ..], [other, ..]) if one == other => (template, rest) = (&template[1..], &rest[1..]),
                // `%3A` in the path means the same as `:` in the template.
                ([b':', ..], [b'%', b'3', b'a' | b'A', ..]) => (template, rest) = (&template[1..], &rest[3..]),
                _ => return None,
            }
        }
    }

    /// Returns the query parameter with this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.query_parameters().find(|parameter| parameter.name == name)
    }

    /// Returns the query parameters.
    pub fn query_parameters(&self) -> impl Iterator<Item = &'static Parameter> + use<> {
        self.parameters.iter().filter(|parameter| parameter.location != ParameterLocation::Path)
    }
}
