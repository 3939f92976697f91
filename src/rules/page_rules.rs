//! Compiles how the pages of a list follow each other, and checks that the list's requests fit it.

use crate::base::jsonpath::JsonPath;
use crate::config::faults::{Faults, Located, Location};
use crate::config::pages::{End, NextPage, Total, Way};
use crate::config::provider::OperationConfig;
use crate::rules::page_headers;
use crate::rules::template::{Template, Values, Variable};
use http::HeaderName;

/// How the pages of a list follow each other.
#[derive(Debug)]
pub struct Pages {
    pub(super) way: CompiledWay,
    /// The key of the way in the file.
    pub(super) key: &'static str,
    pub(super) end: Option<CompiledEnd>,
    pub(super) total: Option<CompiledTotal>,
    /// The most sessions on a page; 0 if the file does not say it.
    pub(super) max_limit: u32,
    /// The headers that a page needs.
    pub(super) headers: Vec<HeaderName>,
}

/// The compiled form of the value in the file.
#[derive(Debug)]
pub(super) enum CompiledWay {
    None,
    Token(JsonPath),
    Header(HeaderName),
    Last(JsonPath),
    Number(u64),
    Offset(u64),
    Url(JsonPath),
    Link(String),
}

/// The compiled form of the value in the file.
#[derive(Debug)]
pub(super) enum CompiledEnd {
    More(JsonPath),
    Short,
    Empty,
    Total,
}

/// The compiled form of the value in the file.
#[derive(Debug)]
pub(super) enum CompiledTotal {
    Body(JsonPath),
    Header(HeaderName),
}

impl Pages {
    /// Compiles the rules of a list, and checks that its requests fit them.
    #[must_use]
    pub(crate) fn compile(config: &OperationConfig, template: &Template, faults: &mut Faults) -> Option<Self> {
        check(config, template, faults);
        let next = config.next.as_ref();
        let (way, end) = next.map_or((&Way::None, None), |next| (&next.way, next.end.as_ref()));
        let (key, way) = (way.key(), CompiledWay::compile(way, faults));
        let end = match end {
            Some(End::More(path)) => Some(CompiledEnd::More(json_path(path, faults)?)),
            Some(End::Short) => Some(CompiledEnd::Short),
            Some(End::Empty) => Some(CompiledEnd::Empty),
            Some(End::Total) => Some(CompiledEnd::Total),
            None => None,
        };
        let total = match &config.total {
            Some(Total::Body(path)) => Some(CompiledTotal::Body(json_path(path, faults)?)),
            Some(Total::Header(at)) => Some(CompiledTotal::Header(header(at, faults)?)),
            None => None,
        };
        let way = way?;
        let mut headers: Vec<HeaderName> = match &way {
            CompiledWay::Header(name) => vec![name.clone()],
            CompiledWay::Link(_) => vec![http::header::LINK],
            _ => Vec::new(),
        };
        if let Some(CompiledTotal::Header(name)) = &total
            && !headers.contains(name)
        {
            headers.push(name.clone());
        }
        let max_limit = config.max_limit.map_or(0, std::num::NonZeroU32::get);
        Some(Self { way, key, end, total, max_limit, headers })
    }

    /// Returns the most sessions on a page; 0 if the file does not say it.
    #[must_use]
    pub(crate) fn max_limit(&self) -> u32 {
        self.max_limit
    }

    /// Returns the names of the response headers that a page needs besides its body.
    #[must_use]
    pub(crate) fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// Returns the JSONPaths of the values that every client sees.
    pub(crate) fn body_paths(&self) -> impl Iterator<Item = &JsonPath> {
        let way = match &self.way {
            CompiledWay::Token(path) | CompiledWay::Url(path) => Some(path),
            _ => None,
        };
        let more = if let Some(CompiledEnd::More(path)) = &self.end { Some(path) } else { None };
        let total = if let Some(CompiledTotal::Body(path)) = &self.total { Some(path) } else { None };
        way.into_iter().chain(more).chain(total)
    }

    /// Returns what makes the page tokens of this list different from those of other lists. `None` if they are tokens of the
    /// provider.
    #[must_use]
    pub(crate) fn token_kind(&self) -> Option<&'static str> {
        (!matches!(self.way, CompiledWay::None | CompiledWay::Token(_))).then_some(self.key)
    }

    /// Returns how the pages follow each other and what ends the list, for people.
    #[must_use]
    pub(crate) fn describe(&self) -> (String, String) {
        let way = match &self.way {
            CompiledWay::None => "none: one response has all sessions".to_owned(),
            CompiledWay::Token(path) => format!("token at {}", path.as_str()),
            CompiledWay::Header(name) => format!("token in the header {name}"),
            CompiledWay::Last(path) => format!("{} of the last session", path.as_str()),
            CompiledWay::Number(first) => format!("page number, from {first}"),
            CompiledWay::Offset(first) => format!("offset, from {first}"),
            CompiledWay::Url(path) => format!("URL at {}", path.as_str()),
            CompiledWay::Link(relation) => format!("URL with rel={relation} in the header link"),
        };
        let end = match &self.end {
            None if matches!(self.way, CompiledWay::None) => "the response".to_owned(),
            None => "a page without it".to_owned(),
            Some(CompiledEnd::More(path)) => format!("false at {}", path.as_str()),
            Some(CompiledEnd::Short) => format!("a page with fewer than {} sessions", self.max_limit),
            Some(CompiledEnd::Empty) => "a page without sessions".to_owned(),
            Some(CompiledEnd::Total) => "as many sessions as total says".to_owned(),
        };
        (way, end)
    }

    /// Returns whether pages have numbers or offsets, which change their meaning if sessions are added or removed.
    #[must_use]
    pub(crate) fn are_counted(&self) -> bool {
        matches!(self.way, CompiledWay::Number(_) | CompiledWay::Offset(_))
    }

    /// Returns the values of a page's request, and its query string if that is the one of a URL. `cursor` leads to the page.
    #[must_use]
    pub(crate) fn values<'v>(&self, cursor: Option<&'v str>) -> (Values<'v>, Option<&'v str>) {
        let mut values = Values::default();
        let count = |first: u64| Some(cursor.and_then(|text| text.parse().ok()).unwrap_or(first));
        match &self.way {
            CompiledWay::Number(first) => values.page = count(*first),
            CompiledWay::Offset(first) => values.offset = count(*first),
            CompiledWay::Url(_) | CompiledWay::Link(_) => return (values, cursor),
            _ => values.page_token = cursor,
        }
        (values, None)
    }
}

impl CompiledWay {
    fn compile(way: &Way, faults: &mut Faults) -> Option<Self> {
        Some(match way {
            Way::None => Self::None,
            Way::Token(path) => Self::Token(json_path(path, faults)?),
            Way::Header(at) => Self::Header(header(at, faults)?),
            Way::Last(path) => Self::Last(json_path(path, faults)?),
            Way::Number(first) => Self::Number(*first),
            Way::Offset(first) => Self::Offset(*first),
            Way::Url(path) => Self::Url(json_path(path, faults)?),
            Way::Link(at) => Self::Link(faults.keep(&at.location, relation(&at.value))?),
        })
    }
}

fn json_path(at: &Located<String>, faults: &mut Faults) -> Option<JsonPath> {
    faults.keep(&at.location, JsonPath::compile(&at.value))
}

fn header(at: &Located<String>, faults: &mut Faults) -> Option<HeaderName> {
    faults.keep(&at.location, page_headers::name(&at.value))
}

/// Reads the name of a link relation (RFC 8288, section 3.3).
fn relation(text: &str) -> Result<String, String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    match text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_letter) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not the name of a link relation; write next")),
    }
}

/// Checks that the requests of an operation without pages do not name one.
pub(super) fn check_single(config: &OperationConfig, template: &Template, faults: &mut Faults) {
    for (_, name, _) in VARIABLES.into_iter().filter(|(variable, ..)| template.uses(*variable)) {
        faults.add(variable_location(config, name), format!("{{{name}}} is only for lists; remove it"));
    }
}

/// Checks that the rules of a list fit its requests.
fn check(config: &OperationConfig, template: &Template, faults: &mut Faults) {
    let at = &config.request.location;
    let Some(NextPage { location, way, end }) = &config.next else {
        for (variable, name, rule) in VARIABLES {
            if template.uses(variable) {
                faults.add(variable_location(config, name), format!("{{{name}}} needs next: {rule}"));
            }
        }
        if config.max_limit.is_some() {
            let better = "Write `next: none` if the provider sends all sessions in one response";
            let fault = "max_limit: says that the list has pages, so next: must name the next page's token";
            faults.add(at, format!("{fault}. {better}"));
        }
        return;
    };
    let needed = match way {
        Way::Token(_) | Way::Header(_) | Way::Last(_) => Some(Variable::PageToken),
        Way::Number(_) => Some(Variable::Page),
        Way::Offset(_) => Some(Variable::Offset),
        Way::None | Way::Url(_) | Way::Link(_) => None,
    };
    let missing = VARIABLES.iter().find(|(variable, ..)| needed == Some(*variable) && !template.uses(*variable));
    let mut others = VARIABLES.iter().filter(|(variable, ..)| needed != Some(*variable) && template.uses(*variable));
    if let Some((_, name, rule)) = others.next() {
        let which = missing.map_or(String::new(), |(_, missing, _)| format!(", which needs {{{missing}}}"));
        let fault = format!("{{{name}}} needs next: {rule}, but next: is {}{which}", way.key());
        faults.add(variable_location(config, name), fault);
    } else if let Some((variable, name, _)) = missing {
        match variable {
            Variable::PageToken => {
                faults.add(at, "next: names a page token, so a query parameter must send {page_token}");
            }
            _ => {
                let fault = format!("next: counts with {}, so a query parameter must send {{{name}}}", way.key());
                faults.add(location, fault);
            }
        }
    }
    match end {
        Some(End::Short) if config.max_limit.is_none() => {
            faults.add(location, "end: short needs max_limit: how many sessions a full page has");
        }
        Some(End::Total) if config.total.is_none() => {
            faults.add(location, "end: total needs total: where the response has the number of all sessions");
        }
        _ => {}
    }
}

/// The variables of pages, with their names and the rule that gives them a value.
const VARIABLES: [(Variable, &str, &str); 3] = [
    (Variable::PageToken, "page_token", "the JSONPath of the next page's token"),
    (Variable::Page, "page", "{ number: 1 } and its end"),
    (Variable::Offset, "offset", "{ offset: 0 } and its end"),
];

/// Returns the location of the query parameter with a variable, or of the request.
fn variable_location<'c>(config: &'c OperationConfig, name: &str) -> &'c Location {
    let text = format!("{{{name}}}");
    let parameter = config.query.iter().map(|(_, value)| value).find(|value| value.value.contains(&text));
    &parameter.unwrap_or(&config.request).location
}
