//! Request templates: `GET /v2/agents/{agent}/sessions/{session}` and their query parameters.
//!
//! A room of its own because it is where an id could leave its place in a URL: every value is
//! percent-encoded here, and nowhere else are upstream URLs made.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;
use std::fmt::Write;

/// All but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a template may stand in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// The agent's id.
    Agent,
    /// The session's id.
    Session,
    /// Sessions a page.
    Limit,
    /// The provider's page token.
    PageToken,
    /// The `enabled` filter.
    Enabled,
}

/// Name, variable.
const VARIABLES: [(&str, Variable); 5] = [
    ("agent", Variable::Agent),
    ("session", Variable::Session),
    ("limit", Variable::Limit),
    ("page_token", Variable::PageToken),
    ("enabled", Variable::Enabled),
];

/// Values for one request; `None` leaves a query parameter out.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)] // the names are those of the variables
pub struct Values<'v> {
    pub agent: Option<&'v str>,
    pub session: Option<&'v str>,
    pub limit: Option<u32>,
    pub page_token: Option<&'v str>,
    pub enabled: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(Variable),
}

/// A compiled template.
#[derive(Debug, Clone)]
pub struct Template {
    path: Vec<Part>,
    query: Vec<(String, Vec<Part>)>,
}

impl Template {
    /// Compiles `GET /path`. Queries are added with [`Template::add_query`].
    ///
    /// # Errors
    /// What is wrong, for the config's author.
    pub fn compile(request: &str) -> Result<Self, String> {
        let path =
            request.strip_prefix("GET ").map(str::trim).filter(|path| path.starts_with('/')).ok_or_else(|| {
                format!("{request:?} is not a request; write GET and a path, as in GET /v1/sessions/{{session}}")
            })?;
        if let Some(bad) = path.chars().find(|c| matches!(c, '?' | '#' | ' ') || c.is_control() || !c.is_ascii()) {
            return Err(format!("{bad:?} may not stand in a path; query parameters go under query:"));
        }
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err("a path may not have . or .. as a segment".into());
        }
        Ok(Self { path: parts(path)?, query: Vec::new() })
    }

    /// Adds a query parameter.
    ///
    /// # Errors
    /// What is wrong with its value.
    pub fn add_query(&mut self, name: &str, value: &str) -> Result<(), String> {
        self.query.push((encode(name), parts(value)?));
        Ok(())
    }

    /// Whether a variable stands anywhere in it.
    #[must_use]
    pub fn uses(&self, variable: Variable) -> bool {
        let mut all = self.path.iter().chain(self.query.iter().flat_map(|(_, parts)| parts));
        all.any(|part| *part == Part::Variable(variable))
    }

    /// Path and query with the values in their places, each percent-encoded. A query parameter with
    /// a variable that has no value is left out.
    ///
    /// # Errors
    /// Values that make a segment `.` or `..`, in which form or encoded makes no difference: both lead to
    /// another path (RFC 3986, section 6.2.2), so no encoding could help.
    pub fn render(&self, values: &Values<'_>) -> Result<String, &'static str> {
        let mut out = String::with_capacity(160);
        for part in &self.path {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(variable) => {
                    let value = value(*variable, values).unwrap_or_default();
                    // Nearly all ids stand as they are.
                    match value
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
                    {
                        true => out.push_str(&value),
                        false => out.extend(utf8_percent_encode(&value, ENCODED)),
                    }
                }
            }
        }
        // Nearly no path has a segment that begins with a dot, which is quickly told.
        if out.contains("/.") && out.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err("an id cannot be . or ..");
        }
        let mut separator = '?';
        for (name, parts) in &self.query {
            let filled: Option<String> = parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => Some(encode(text)),
                    Part::Variable(variable) => value(*variable, values).map(|v| encode(&v)),
                })
                .collect();
            if let Some(filled) = filled {
                let _ = write!(out, "{separator}{name}={filled}");
                separator = '&';
            }
        }
        Ok(out)
    }
}

/// Values that a request has in a template's places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the variables
pub struct Captured {
    pub agent: Option<String>,
    pub session: Option<String>,
    pub limit: Option<u32>,
    pub page_token: Option<String>,
    pub enabled: Option<bool>,
}

impl Captured {
    /// As values to render with.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        Values {
            agent: self.agent.as_deref(),
            session: self.session.as_deref(),
            limit: self.limit,
            page_token: self.page_token.as_deref(),
            enabled: self.enabled,
        }
    }

    fn take(&mut self, variable: Variable, text: String) -> Option<()> {
        match variable {
            Variable::Agent => self.agent = Some(text),
            Variable::Session => self.session = Some(text),
            Variable::PageToken => self.page_token = Some(text),
            Variable::Limit => self.limit = Some(text.parse().ok()?),
            Variable::Enabled => self.enabled = Some(text.parse().ok()?),
        }
        Some(())
    }
}

impl Template {
    /// What a request to a provider has in this template's places, if that is all it says: what else it
    /// asks for, this template could not ask.
    #[must_use]
    pub fn read(&self, path: &str, query: &str) -> Option<Captured> {
        let (captured, rest) = self.read_path(path)?;
        let mut captured = captured;
        if rest != 0 {
            return None;
        }
        let mut left: Vec<&(String, Vec<Part>)> = self.query.iter().collect();
        for (name, text) in query_pairs(query)? {
            let at = left.iter().position(|(known, _)| *known == encode(&name))?;
            match left.remove(at).1.as_slice() {
                [Part::Variable(variable)] => captured.take(*variable, text)?,
                [Part::Text(fixed)] if *fixed == text => {}
                _ => return None,
            }
        }
        Some(captured)
    }

    /// What a path at or below this template's has in its places, and how many segments it is below it.
    #[must_use]
    pub fn read_path(&self, path: &str) -> Option<(Captured, usize)> {
        self.read_first(path, usize::MAX)
    }

    /// Whether a lenient reader could take a path for this template's: with other letters' case, empty segments or
    /// percent-encoding where there is none.
    #[must_use]
    pub fn reads_loosely(&self, path: &str) -> bool {
        let decoded = percent_decode_str(path).decode_utf8_lossy().to_ascii_lowercase();
        let mut given = decoded.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default().trim());
        let mut given = given.by_ref().filter(|segment| !segment.is_empty());
        let segments = self.segments();
        let mut wanted = segments.iter().filter(|segment| !segment.is_empty());
        let same = wanted.by_ref().all(|wanted| {
            given.next().is_some_and(|segment| match wanted.as_slice() {
                [Part::Text(text)] => text.eq_ignore_ascii_case(segment),
                _ => true,
            })
        });
        same && given.next().is_none()
    }

    /// The same, of this template's path up to and with the segment that holds `last`.
    #[must_use]
    pub fn read_to(&self, last: Variable, path: &str) -> Option<(Captured, usize)> {
        let at = self.segments().iter().position(|segment| segment.contains(&Part::Variable(last)))?;
        self.read_first(path, at + 1)
    }

    fn read_first(&self, path: &str, most: usize) -> Option<(Captured, usize)> {
        let mut captured = Captured::default();
        let mut given = path.split('/');
        for wanted in self.segments().iter().take(most) {
            let segment = given.next()?;
            match wanted.as_slice() {
                [] if segment.is_empty() => {}
                [Part::Text(text)] if text == segment => {}
                [Part::Variable(variable)] if !segment.is_empty() => {
                    captured.take(*variable, percent_decode_str(segment).decode_utf8().ok()?.into_owned())?;
                }
                _ => return None,
            }
        }
        Some((captured, given.count()))
    }

    /// The path's parts by segment. One that mixes text and variables is never read.
    fn segments(&self) -> Vec<Vec<Part>> {
        let mut all = vec![Vec::new()];
        for part in &self.path {
            match part {
                Part::Variable(_) => all.last_mut().into_iter().for_each(|segment| segment.push(part.clone())),
                Part::Text(text) => {
                    for (position, piece) in text.split('/').enumerate() {
                        if position > 0 {
                            all.push(Vec::new());
                        }
                        if !piece.is_empty() {
                            all.last_mut().into_iter().for_each(|segment| segment.push(Part::Text(piece.to_owned())));
                        }
                    }
                }
            }
        }
        all
    }
}

/// A query's parameters, decoded; `None` where one is not UTF-8.
fn query_pairs(query: &str) -> Option<Vec<(String, String)>> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| decoded(n).zip(decoded(v))).collect()
}

fn value<'v>(variable: Variable, values: &Values<'v>) -> Option<Cow<'v, str>> {
    match variable {
        Variable::Agent => values.agent.map(Cow::from),
        Variable::Session => values.session.map(Cow::from),
        Variable::Limit => values.limit.map(|limit| limit.to_string().into()),
        Variable::PageToken => values.page_token.map(Cow::from),
        Variable::Enabled => values.enabled.map(|enabled| enabled.to_string().into()),
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let close = rest[open..].find('}').ok_or_else(|| format!("{text:?} opens {{ and does not close it"))?;
        let name = &rest[open + 1..open + close];
        let known = || VARIABLES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("}, {");
        let variable = VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, variable)| *variable);
        let variable = variable.ok_or_else(|| format!("{{{name}}} is not a variable; there are {{{}}}", known()))?;
        if open > 0 {
            parts.push(Part::Text(rest[..open].to_owned()));
        }
        parts.push(Part::Variable(variable));
        rest = &rest[open + close + 1..];
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_and_absent_ones_leave_no_trace() {
        let mut template = Template::compile("GET /v2/agents/{agent}/sessions").unwrap();
        template.add_query("limit", "{limit}").unwrap();
        template.add_query("page_key", "{page_token}").unwrap();
        template.add_query("preview", "true").unwrap();
        let values = Values { agent: Some("a/../b?x=1#y"), limit: Some(25), ..Values::default() };
        assert_eq!(
            template.render(&values).unwrap(),
            "/v2/agents/a%2F..%2Fb%3Fx%3D1%23y/sessions?limit=25&preview=true"
        );
        let values = Values { agent: Some("a"), page_token: Some("a=&b"), ..Values::default() };
        assert_eq!(template.render(&values).unwrap(), "/v2/agents/a/sessions?page_key=a%3D%26b&preview=true");
        assert!(template.render(&Values { agent: Some(".."), ..Values::default() }).is_err());
        assert!(template.uses(Variable::Agent) && !template.uses(Variable::Session));
    }

    #[test]
    fn what_was_rendered_is_read_again_and_nothing_else() {
        let mut list = Template::compile("GET /v2/agents/{agent}/sessions").unwrap();
        list.add_query("limit", "{limit}").unwrap();
        list.add_query("preview", "true").unwrap();
        let read = |path, query| list.read(path, query).map(|captured| (captured.agent.unwrap(), captured.limit));
        assert_eq!(read("/v2/agents/a%2Fb/sessions", "limit=7&preview=true"), Some(("a/b".into(), Some(7))));
        assert_eq!(read("/v2/agents/a/sessions", ""), Some(("a".into(), None)), "what is fixed may be left out");
        for (path, query) in [
            ("/v2/agents/a/sessions", "preview=false"),
            ("/v2/agents/a/sessions", "limit=ten"),
            ("/v2/agents/a/sessions", "limit=1&limit=2"),
            ("/v2/agents/a/sessions", "filter=x"),
            ("/v2/agents/a/sessions/", ""),
            ("/v2/agents/a/sessions/s", ""),
            ("/v2/agents//sessions", ""),
            ("/v2/agents/a", ""),
            ("/V2/agents/a/sessions", ""),
        ] {
            assert_eq!(list.read(path, query), None, "{path}?{query}");
        }
        for path in [
            "/v2/agents/a/sessions/",
            "//v2/agents/a/sessions",
            "/V2/agents/a/Sessions",
            "/v2/%61gents/a/sessions",
            "/v2/agents/a/sessions;x",
        ] {
            assert!(list.reads_loosely(path), "{path}");
        }
        assert!(!list.reads_loosely("/v2/agents/a/sessions/s") && !list.reads_loosely("/v2/agents/a"));
        let below =
            |path| list.read_to(Variable::Agent, path).map(|(captured, below)| (captured.agent.unwrap(), below));
        assert_eq!(below("/v2/agents/a"), Some(("a".into(), 0)));
        assert_eq!(below("/v2/agents/a/sessions/s/events"), Some(("a".into(), 3)));
        assert_eq!(below("/v2/agent_aliases/a"), None);
    }

    #[test]
    fn faults_say_what_would_be_right() {
        assert!(Template::compile("POST /x").unwrap_err().contains("write GET"));
        assert!(Template::compile("GET /x?y=1").unwrap_err().contains("under query"));
        assert!(Template::compile("GET /x/{agnt}").unwrap_err().contains("{agent}"));
        assert!(Template::compile("GET /x/{agent").unwrap_err().contains("does not close"));
        assert!(Template::compile("GET /x/../y").is_err());
    }
}
