//! Decodes how the pages of a list follow each other: `next` and `total` of `operations.list_sessions`.

use super::decode::{self, DecodeContext, Fields};
use super::faults::{Located, Location};
use super::tree::Node;

/// The value of `next` for a provider that sends all sessions in one response, and yet has a largest page size.
const NO_NEXT_PAGE: &str = "none";

/// How a list goes on after a page.
#[derive(Debug, Clone)]
pub struct NextPage {
    /// The location of the rule.
    pub location: Location,
    /// What leads to the next page.
    pub way: Way,
    /// Where the list ends; `None` if that is where `way` leads nowhere.
    pub end: Option<End>,
}

/// What leads from a page to the next one.
#[derive(Debug, Clone)]
pub enum Way {
    /// Nothing: one response has all sessions.
    None,
    /// The token at this JSONPath.
    Token(Located<String>),
    /// The token in this response header.
    Header(Located<String>),
    /// The value at this JSONPath in the last session of the page.
    Last(Located<String>),
    /// The page's number. The first page has this one.
    Number(u64),
    /// The number of sessions before the page. The first page has this one.
    Offset(u64),
    /// The URL at this JSONPath.
    Url(Located<String>),
    /// The URL with this relation in the `Link` header (RFC 8288).
    Link(Located<String>),
}

/// What ends a list.
#[derive(Debug, Clone)]
pub enum End {
    /// `false` at this JSONPath.
    More(Located<String>),
    /// A page with fewer sessions than `max_limit`.
    Short,
    /// A page without sessions.
    Empty,
    /// The page with which the list has as many sessions as `total` says.
    Total,
}

/// Where the number of all sessions is.
#[derive(Debug, Clone)]
pub enum Total {
    /// At this JSONPath.
    Body(Located<String>),
    /// In this response header.
    Header(Located<String>),
}

impl Way {
    /// Returns the key of the rule, also for people.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::None => NO_NEXT_PAGE,
            Self::Token(_) => "token",
            Self::Header(_) => "header",
            Self::Last(_) => "last",
            Self::Number(_) => "number",
            Self::Offset(_) => "offset",
            Self::Url(_) => "url",
            Self::Link(_) => "link",
        }
    }

    /// Returns whether a page says itself whether another one follows it.
    fn has_own_end(&self) -> bool {
        !matches!(self, Self::Last(_) | Self::Number(_) | Self::Offset(_))
    }
}

/// Decodes `next`: the JSONPath of a token, `none`, or a mapping with one way to the next page.
pub(super) fn next(node: &Node, cx: &mut DecodeContext<'_>) -> Option<NextPage> {
    decode::mapping_or(node, cx, next_mapping, |node, cx| {
        let text = decode::at_text(node, cx)?;
        let way = if text.value == NO_NEXT_PAGE { Way::None } else { Way::Token(text) };
        Some(NextPage { location: node.location.clone(), way, end: None })
    })
}

fn next_mapping(node: &Node, cx: &mut DecodeContext<'_>) -> Option<NextPage> {
    let before = cx.faults.count();
    let mut fields = Fields::of(node, "next", cx)?;
    let ways: Vec<Way> = [
        fields.optional("token", cx, decode::at_text).map(Way::Token),
        fields.optional("header", cx, decode::at_text).map(Way::Header),
        fields.optional("last", cx, decode::at_text).map(Way::Last),
        fields.optional("number", cx, decode::zero_or_one).map(Way::Number),
        fields.optional("offset", cx, decode::zero_or_one).map(Way::Offset),
        fields.optional("url", cx, decode::at_text).map(Way::Url),
        fields.optional("link", cx, decode::at_text).map(Way::Link),
    ]
    .into_iter()
    .flatten()
    .collect();
    let more = fields.optional("more", cx, decode::at_text);
    let words = [("short", End::Short), ("empty", End::Empty), ("total", End::Total)];
    let end = fields.optional("end", cx, |node, cx| {
        let words: Vec<(&str, usize)> = words.iter().enumerate().map(|(at, (word, _))| (*word, at)).collect();
        decode::one_of(node, cx, "end", &words)
    });
    fields.end(cx);
    if cx.faults.count() > before {
        return None;
    }
    let end = end.and_then(|at| words.into_iter().nth(at)).map(|(_, end)| end);
    match one_rule(ways, more, end) {
        Ok((way, end)) => Some(NextPage { location: node.location.clone(), way, end }),
        Err(fault) => {
            cx.faults.add(&node.location, fault);
            None
        }
    }
}

/// Returns the way to the next page and the end of the list.
///
/// # Errors
/// The keys do not say both, or say one of them twice.
fn one_rule(mut ways: Vec<Way>, more: Option<Located<String>>, end: Option<End>) -> Result<(Way, Option<End>), String> {
    const WAYS: &str = "token, header, last, number, offset, url and link";
    let names: Vec<&str> = ways.iter().map(Way::key).collect();
    let names = names.join(" and ");
    let Some(way) = ways.pop().filter(|_| ways.is_empty()) else {
        let found = if names.is_empty() { "none of them".to_owned() } else { names };
        return Err(format!("next must have exactly one of {WAYS}, and has {found}"));
    };
    let key = way.key();
    match (&way, more, end) {
        (_, Some(_), Some(_)) => Err("next has more and end; write the one that says where the list ends".into()),
        (Way::Header(_) | Way::Url(_) | Way::Link(_), Some(_), None) => Err(format!(
            "more cannot be beside {key}, with which a list ends where the response has no {key}; remove more"
        )),
        (way, None, Some(_)) if way.has_own_end() => Err(format!(
            "end cannot be beside {key}, with which a list ends where the response has no {key}; remove end"
        )),
        (Way::Last(_), None, Some(End::Total)) => {
            Err("end: total needs number or offset; beside last, write end: short or empty, or more".into())
        }
        (way, None, None) if !way.has_own_end() => Err(format!(
            "next with {key} does not say where the list ends; add more: the JSONPath of a boolean, or end: short, \
             empty{}",
            if matches!(way, Way::Last(_)) { "" } else { " or total" }
        )),
        (_, more, end) => Ok((way, more.map(End::More).or(end))),
    }
}

/// Decodes `total`: a JSONPath, or `{ header: NAME }`.
pub(super) fn total(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Total> {
    let in_header = |node: &Node, cx: &mut DecodeContext<'_>| {
        let mut fields = Fields::of(node, "total", cx)?;
        let header = fields.required("header", cx, decode::at_text);
        fields.end(cx);
        header.map(Total::Header)
    };
    decode::mapping_or(node, cx, in_header, |node, cx| decode::at_text(node, cx).map(Total::Body))
}
