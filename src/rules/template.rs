//! Renders and matches request templates: `GET /v2/agents/{agent}/sessions/{session}` and their query parameters.
//!
//! Only this module builds the paths of provider requests. It percent-encodes every value, so that an id cannot change
//! the path.

use crate::rules::path_forms::decoded_forms;
use crate::rules::query;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;
use std::fmt::Write;

/// All characters except the unreserved ones of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A variable of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// The agent's id.
    Agent,
    /// The session's id.
    Session,
    /// Sessions per page.
    Limit,
    /// The provider's page token.
    PageToken,
    /// The page's number.
    Page,
    /// The number of sessions before the page.
    Offset,
    /// The `enabled` filter.
    Enabled,
}

/// The variables with their names in a template.
const VARIABLES: [(&str, Variable); 7] = [
    ("agent", Variable::Agent),
    ("session", Variable::Session),
    ("limit", Variable::Limit),
    ("page_token", Variable::PageToken),
    ("page", Variable::Page),
    ("offset", Variable::Offset),
    ("enabled", Variable::Enabled),
];

/// The values for one request. A query parameter whose value is `None` is left out.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)] // the names are those of the variables
pub struct Values<'v> {
    pub agent: Option<&'v str>,
    pub session: Option<&'v str>,
    pub limit: Option<u32>,
    pub page_token: Option<&'v str>,
    pub page: Option<u64>,
    pub offset: Option<u64>,
    pub enabled: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(Variable),
}

/// A value that makes a path segment `.` or `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(". and .. are not valid ids")]
pub struct DotSegment;

/// A compiled template.
#[derive(Debug, Clone)]
pub struct Template {
    path: Vec<Part>,
    query: Vec<(String, Vec<Part>)>,
}

impl Template {
    /// Compiles `GET /path`. [`Template::add_query`] adds query parameters.
    ///
    /// # Errors
    /// What is wrong, for the author of the configuration.
    pub fn compile(request: &str) -> Result<Self, String> {
        let path =
            request.strip_prefix("GET ").map(str::trim).filter(|path| path.starts_with('/')).ok_or_else(|| {
                format!("{request:?} is not a valid request; write GET and a path, as in GET /v1/sessions/{{session}}")
            })?;
        if let Some(bad) = path.chars().find(|c| matches!(c, '?' | '#' | ' ') || c.is_control() || !c.is_ascii()) {
            return Err(format!("{bad:?} is not allowed in a path; write query parameters under query:"));
        }
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(". and .. are not allowed as segments of a path".into());
        }
        let path = parts(path)?;
        if path.windows(2).any(|pair| matches!(pair, [Part::Variable(_), Part::Variable(_)])) {
            return Err("two variables of a path need text between them, as in {agent}:{session}".into());
        }
        Ok(Self { path, query: Vec::new() })
    }

    /// Adds a query parameter.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub fn add_query(&mut self, name: &str, value: &str) -> Result<(), String> {
        self.query.push((encode(name), parts(value)?));
        Ok(())
    }

    /// Returns whether requests have a query parameter that a server can take for this one.
    #[must_use]
    pub(crate) fn has_parameter(&self, name: &str) -> bool {
        let decoded = |known: &str| percent_decode_str(known).decode_utf8_lossy().into_owned();
        self.query.iter().any(|(known, _)| query::is_same_name(&decoded(known), name))
    }

    /// Returns whether the template contains a variable.
    #[must_use]
    pub fn uses(&self, variable: Variable) -> bool {
        let mut all = self.path.iter().chain(self.query.iter().flat_map(|(_, parts)| parts));
        all.any(|part| *part == Part::Variable(variable))
    }

    /// Returns whether the template sends a query parameter with this name.
    #[must_use]
    pub(crate) fn sends_parameter(&self, name: &str) -> bool {
        self.query.iter().any(|(known, _)| *known == encode(name))
    }

    /// Returns whether a query parameter with this name decides whose sessions are in a list, or which.
    #[must_use]
    pub(crate) fn selects_by(&self, name: &str) -> bool {
        let selects =
            |part: &Part| matches!(part, Part::Variable(Variable::Agent | Variable::Session | Variable::Enabled));
        self.query.iter().any(|(known, parts)| *known == encode(name) && parts.iter().any(selects))
    }

    /// Returns path and query with all values, percent-encoded. A query parameter whose variable has no value is left
    /// out.
    ///
    /// # Errors
    /// A value makes a segment `.` or `..`. Servers treat such a segment as another path even if it is percent-encoded
    /// (RFC 3986, section 6.2.2).
    pub fn render(&self, values: &Values<'_>) -> Result<String, DotSegment> {
        let mut out = String::with_capacity(160);
        for part in &self.path {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(variable) => {
                    let value = value(*variable, values).unwrap_or_default();
                    // Most ids need no encoding.
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
        // Few paths have a segment that starts with a dot, and this check is cheap.
        if out.contains("/.") && out.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(DotSegment);
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

/// The values of a template's variables in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the variables
pub struct Captured {
    pub agent: Option<String>,
    pub session: Option<String>,
    pub limit: Option<u32>,
    pub page_token: Option<String>,
    pub page: Option<u64>,
    pub offset: Option<u64>,
    pub enabled: Option<bool>,
}

impl Captured {
    /// Returns the values for [`Template::render`].
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        Values {
            agent: self.agent.as_deref(),
            session: self.session.as_deref(),
            limit: self.limit,
            page_token: self.page_token.as_deref(),
            page: self.page,
            offset: self.offset,
            enabled: self.enabled,
        }
    }

    /// Takes the values of the variables from a text that these parts make. Text between two variables ends the first one
    /// where it first occurs.
    fn read_parts(&mut self, parts: &[Part], text: &str, decode: impl Fn(&str) -> Option<String>) -> Option<()> {
        let (parts, mut rest) = match parts {
            [before @ .., Part::Text(end)] if !before.is_empty() => (before, text.strip_suffix(end.as_str())?),
            all => (all, text),
        };
        for (position, part) in parts.iter().enumerate() {
            let variable = match part {
                Part::Text(text) => {
                    rest = rest.strip_prefix(text.as_str())?;
                    continue;
                }
                Part::Variable(variable) => *variable,
            };
            let first = rest.chars().next()?.len_utf8();
            let end = match parts.get(position + 1) {
                Some(Part::Text(next)) => first + rest[first..].find(next.as_str())?,
                Some(Part::Variable(_)) => first,
                None => rest.len(),
            };
            let (value, after) = rest.split_at(end);
            self.set(variable, decode(value)?)?;
            rest = after;
        }
        rest.is_empty().then_some(())
    }

    /// Takes the values of the variables from the decoded value of a query parameter. Unlike a segment of a path, it may be
    /// empty.
    fn read_query_value(&mut self, parts: &[Part], text: &str) -> Option<()> {
        match parts {
            [Part::Variable(variable)] => self.set(*variable, text.to_owned()),
            _ => self.read_parts(parts, text, |value| Some(value.to_owned())),
        }
    }

    fn set(&mut self, variable: Variable, text: String) -> Option<()> {
        match variable {
            Variable::Agent => self.agent = Some(text),
            Variable::Session => self.session = Some(text),
            Variable::PageToken => self.page_token = Some(text),
            Variable::Limit => self.limit = Some(text.parse().ok()?),
            Variable::Page => self.page = Some(text.parse().ok()?),
            Variable::Offset => self.offset = Some(text.parse().ok()?),
            Variable::Enabled => self.enabled = Some(text.parse().ok()?),
        }
        Some(())
    }
}

impl Template {
    /// Returns the values of the variables in a request that this template could have rendered. `None` for any other
    /// request, such as one with another query parameter or without an id.
    #[must_use]
    pub fn read(&self, path: &str, query: &str) -> Option<Captured> {
        let (mut captured, below) = self.read_path(path)?;
        if below != 0 {
            return None;
        }
        let mut left: Vec<&(String, Vec<Part>)> = self.query.iter().collect();
        for pair in query::pairs(query).map(Result::ok) {
            let (name, text) = pair?;
            let at = left.iter().position(|(known, _)| *known == encode(&name))?;
            captured.read_query_value(&left.remove(at).1, &text)?;
        }
        self.has_ids(&captured).then_some(captured)
    }

    /// Returns the values of the variables in a path at or below this template's path, and the number of segments below
    /// it.
    #[must_use]
    pub fn read_path(&self, path: &str) -> Option<(Captured, usize)> {
        self.read_segments(path, usize::MAX)
    }

    /// Returns the ids in a request at or below this template's path, from its path and its query, and the number of
    /// segments below it. Ignores other query parameters. `None` if an id is missing or given twice.
    #[must_use]
    pub fn read_ids(&self, path: &str, query: &str) -> Option<(Captured, usize)> {
        let (mut captured, below) = self.read_path(path)?;
        let ids = |parts: &'_ [Part]| {
            parts.iter().any(|part| matches!(part, Part::Variable(Variable::Agent | Variable::Session)))
        };
        let mut left: Vec<_> = self.query.iter().filter(|(_, parts)| ids(parts)).map(|id| (id, false)).collect();
        for (name, text) in query::pairs(query).filter_map(Result::ok) {
            if let Some(((_, parts), found)) = left.iter_mut().find(|((known, _), _)| *known == encode(&name)) {
                if std::mem::replace(found, true) {
                    return None;
                }
                captured.read_query_value(parts, &text)?;
            }
        }
        self.has_ids(&captured).then_some((captured, below))
    }

    /// Returns whether all ids that the template contains are given.
    fn has_ids(&self, captured: &Captured) -> bool {
        let given = |id: &Option<String>| id.as_ref().is_some_and(|id| !id.is_empty());
        (given(&captured.agent) || !self.uses(Variable::Agent))
            && (given(&captured.session) || !self.uses(Variable::Session))
    }

    /// Returns whether a lenient server could treat a path as this template's. Such a server ignores letter case, empty
    /// segments, matrix parameters, file extensions or unnecessary percent-encoding, decodes a path twice, or ends it at
    /// an encoded `?` or `#`.
    #[must_use]
    pub fn matches_leniently(&self, path: &str) -> bool {
        let matches = |form: &String| {
            self.has_segments_of(form)
                || form.split(['?', '#', '\0']).next().is_some_and(|start| self.has_segments_of(start))
        };
        decoded_forms(path).map_or(true, |forms| forms.iter().any(matches))
    }

    fn has_segments_of(&self, path: &str) -> bool {
        let mut given = path.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default().trim());
        let mut given = given.by_ref().filter(|segment| !segment.is_empty());
        let is_text = |text: &str, segment: &str| {
            let start = segment.get(..text.len());
            // Servers disagree on how other characters are compared.
            !segment.is_ascii()
                || start.is_some_and(|start| start.eq_ignore_ascii_case(text))
                    && (segment.len() == text.len() || segment[text.len()..].starts_with('.'))
        };
        let segments = self.segments();
        let mut wanted = segments.iter().filter(|segment| !segment.is_empty());
        let same = wanted.by_ref().all(|wanted| {
            given.next().is_some_and(|segment| match wanted.as_slice() {
                [Part::Text(text)] => is_text(text, segment),
                _ => true,
            })
        });
        same && given.next().is_none()
    }

    /// Like [`Template::read_path`], but uses the template's path only up to the segment with the variable `last`.
    #[must_use]
    pub fn read_to(&self, last: Variable, path: &str) -> Option<(Captured, usize)> {
        let at = self.segments().iter().position(|segment| segment.contains(&Part::Variable(last)))?;
        self.read_segments(path, at + 1)
    }

    /// Matches the first `count` segments of the template.
    fn read_segments(&self, path: &str, count: usize) -> Option<(Captured, usize)> {
        let mut captured = Captured::default();
        let decode = |value: &str| Some(percent_decode_str(value).decode_utf8().ok()?.into_owned());
        let segments = self.segments();
        let mut given = path.split('/').peekable();
        for (position, wanted) in segments.iter().take(count).enumerate() {
            let segment = given.next()?;
            let wanted = match wanted.as_slice() {
                // Below `/sessions/{session}.json` is `/sessions/s1/messages.json`: the extension moves to the end.
                [before @ .., Part::Text(end)]
                    if position + 1 == segments.len()
                        && !before.is_empty()
                        && end.starts_with('.')
                        && given.peek().is_some()
                        && !segment.ends_with(end.as_str()) =>
                {
                    before
                }
                all => all,
            };
            captured.read_parts(wanted, segment, decode)?;
        }
        Some((captured, given.count()))
    }

    /// Returns the parts of each segment of the path.
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

fn value<'v>(variable: Variable, values: &Values<'v>) -> Option<Cow<'v, str>> {
    match variable {
        Variable::Agent => values.agent.map(Cow::from),
        Variable::Session => values.session.map(Cow::from),
        Variable::Limit => values.limit.map(|limit| limit.to_string().into()),
        Variable::PageToken => values.page_token.map(Cow::from),
        Variable::Page => values.page.map(|page| page.to_string().into()),
        Variable::Offset => values.offset.map(|offset| offset.to_string().into()),
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
        let close = rest[open..].find('}').ok_or_else(|| format!("{text:?} has a {{ without }}"))?;
        let name = &rest[open + 1..open + close];
        let names = || VARIABLES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("}, {");
        let variable = VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, variable)| *variable);
        let variable =
            variable.ok_or_else(|| format!("{{{name}}} is not a variable; expected one of: {{{}}}", names()))?;
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
    fn values_are_encoded_and_missing_ones_are_left_out() {
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
    fn only_requests_that_a_template_renders_are_read() {
        let mut list = Template::compile("GET /v2/agents/{agent}/sessions").unwrap();
        list.add_query("limit", "{limit}").unwrap();
        list.add_query("preview", "true").unwrap();
        let read = |path, query| list.read(path, query).map(|captured| (captured.agent.unwrap(), captured.limit));
        assert_eq!(read("/v2/agents/a%2Fb/sessions", "limit=7&preview=true"), Some(("a/b".into(), Some(7))));
        assert_eq!(read("/v2/agents/a/sessions", ""), Some(("a".into(), None)), "fixed parameters may be left out");
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
            "/v2/%2561gents/a/sessions",
            "/v2%252fagents/a%252fsessions",
            "/v2/agents/a/sessions%3fx/y",
            "/v2/agents/a/sessions%2523",
            "/v2/agents/a/sessions%00/b",
            "/v2/agents/a/sessions.json",
            "/v2/agents/a/%u0073essions",
            "/v2/agents/a/%ef%bd%93essions",
            "/v2/agents/a/%c1%b3essions",
        ] {
            assert!(list.matches_leniently(path), "{path}");
        }
        for path in [
            "/v2/agents/a/sessions/s",
            "/v2/agents/a",
            "/v2/agents/a/session",
            "/v2/agents/a/sessionsx",
            "/v3/agents/a/sessions.json",
        ] {
            assert!(!list.matches_leniently(path), "{path}");
        }
        let below =
            |path| list.read_to(Variable::Agent, path).map(|(captured, below)| (captured.agent.unwrap(), below));
        assert_eq!(below("/v2/agents/a"), Some(("a".into(), 0)));
        assert_eq!(below("/v2/agents/a/sessions/s/events"), Some(("a".into(), 3)));
        assert_eq!(below("/v2/agent_aliases/a"), None);
    }

    #[test]
    fn a_template_fits_only_with_all_its_ids() {
        let mut template = Template::compile("GET /v1/session").unwrap();
        for (name, value) in [("id", "{session}"), ("agent", "{agent}"), ("full", "true")] {
            template.add_query(name, value).unwrap();
        }
        let ids = |query: &str| {
            template
                .read_ids("/v1/session", query)
                .map(|(captured, _)| (captured.agent.unwrap(), captured.session.unwrap()))
        };
        let both = Some(("a".to_owned(), "s/1".to_owned()));
        assert!(template.read("/v1/session", "id=s%2F1&agent=a").is_some());
        assert_eq!(ids("id=s%2F1&agent=a"), both);
        assert_eq!(ids("x=%ff&full=no&%69d=s%2f1&agent=a"), both, "with other parameters");
        for query in ["", "id=s", "agent=a", "id=&agent=a", "id=s&agent=", "ID=s&agent=a", "id=s&id=t&agent=a"] {
            assert!(template.read("/v1/session", query).is_none() && ids(query).is_none(), "{query}");
        }
    }

    #[test]
    fn a_template_with_text_around_a_variable_reads_what_it_renders() {
        for (path, mut examples) in [
            ("GET /v1/sessions/{session}.json", vec!["/v1/sessions/.json", "/v1/sessions/a", "/v1/sessions/a.xml"]),
            ("GET /v1/sessions/s-{session}", vec!["/v1/sessions/s-", "/v1/sessions/a"]),
            ("GET /v1/agents({agent}:{session})", vec!["/v1/agents(a)", "/v1/agents(:s)", "/v1/agents(a:)"]),
        ] {
            let template = Template::compile(path).unwrap();
            let agent = template.uses(Variable::Agent).then_some("x:y");
            for session in ["a", "a.json", "s-", "a/b", "\u{e4}.", "a:b)", "%2F"] {
                let values = Values { agent, session: Some(session), ..Values::default() };
                let rendered = template.render(&values).unwrap();
                let read = template.read(&rendered, "").unwrap_or_else(|| panic!("{path}: {rendered}"));
                assert_eq!((read.agent.as_deref(), read.session.as_deref()), (agent, Some(session)), "{rendered}");
                assert_eq!(template.read_ids(&format!("{rendered}/x/y"), "").unwrap().1, 2, "a path below");
            }
            examples.push("/v1/other");
            for other in examples {
                assert_eq!(template.read(other, ""), None, "{path}: {other}");
            }
        }
        let template = Template::compile("GET /v1/sessions/{session}.json").unwrap();
        let (read, below) = template.read_ids("/v1/sessions/a/messages.json", "").unwrap();
        assert_eq!((read.session.as_deref(), below), (Some("a"), 1), "the extension is at the end of the path");
        let mut list = Template::compile("GET /v1/sessions").unwrap();
        list.add_query("key", "{page_token}").unwrap();
        assert_eq!(list.read("/v1/sessions", "key=").unwrap().page_token.as_deref(), Some(""), "an empty value");
        let mut template = Template::compile("GET /v1/session").unwrap();
        template.add_query("name", "sessions/{session}").unwrap();
        assert_eq!(template.read("/v1/session", "name=sessions%2Fa").unwrap().session.as_deref(), Some("a"));
        assert_eq!(template.read_ids("/v1/session", "x=1&name=sessions%2Fa").unwrap().0.session.as_deref(), Some("a"));
        assert!(template.read_ids("/v1/session", "name=a").is_none());
        assert!(Template::compile("GET /v1/{agent}{session}").unwrap_err().contains("text between"));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        assert!(Template::compile("POST /x").unwrap_err().contains("write GET"));
        assert!(Template::compile("GET /x?y=1").unwrap_err().contains("under query"));
        assert!(Template::compile("GET /x/{agnt}").unwrap_err().contains("{agent}"));
        assert!(Template::compile("GET /x/{agent").unwrap_err().contains("without }"));
        assert!(Template::compile("GET /x/../y").is_err());
    }
}
