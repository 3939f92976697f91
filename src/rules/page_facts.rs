//! Reads what a page of a provider says about its list: the way to the next page, and the number of all sessions.
//!
//! Nothing here knows which page it is: the cache stores it for everybody.

use crate::base::json::ParsedJson;
use crate::base::jsonpath::JsonPath;
use crate::rules::link_header::{self, LinkFault};
use crate::rules::page_headers::PageHeaders;
use crate::rules::page_rules::{CompiledEnd, CompiledTotal, CompiledWay, Pages};
use http::HeaderName;
use serde_json::Value;
use std::sync::Arc;

/// The most bytes of a token from a header or from a session. Tokens become parts of Weir's page tokens.
const MAX_TOKEN: usize = 2 << 10;

/// What a page says about its list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFacts {
    /// The token or the URL of the next page.
    pub cursor: Option<String>,
    /// Whether more sessions follow, if the provider says it.
    pub more: Option<bool>,
    /// The number of all sessions, if it is known.
    pub total: Option<u64>,
    /// The number of the page's sessions, with those that cannot be used.
    pub items: u32,
    /// If pages have numbers or offsets: digests of the ids of the usable sessions.
    pub ids: Option<Arc<[u64]>>,
    /// If pages have numbers or offsets: the position of the last usable session among all.
    pub last_usable: u32,
}

/// Why a page does not say how its list goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum PageFault {
    #[error("the next page's token is neither text nor a number")]
    Token,
    #[error("the next page's URL is not text")]
    Url,
    #[error("the next page's token has more than {MAX_TOKEN} bytes")]
    LongToken,
    #[error("the response header {name} does not have one value")]
    Header { name: HeaderName },
    #[error(transparent)]
    Link(#[from] LinkFault),
    #[error("the response body has neither true nor false at {path}, which says whether more sessions follow")]
    NoMore { path: String },
    #[error("the response has no number of all sessions at {place}, with which the list ends")]
    NoTotal { place: String },
}

impl Pages {
    /// Reads what a page says about its list. `items` are all its sessions. The caller adds the digests of their ids.
    ///
    /// # Errors
    /// The page does not say what the file requires.
    pub(crate) fn read(
        &self,
        body: &ParsedJson<'_>,
        items: &[&Value],
        headers: &PageHeaders,
    ) -> Result<PageFacts, PageFault> {
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let more = match &self.end {
            Some(CompiledEnd::More(path)) => Some(more(path, &body.value)?),
            _ => None,
        };
        let is_cut = self.is_cut(count);
        let total = match &self.total {
            Some(CompiledTotal::Body(path)) => path.first(&body.value).and_then(number),
            Some(CompiledTotal::Header(name)) => header_text(headers, name)?.and_then(|text| text.trim().parse().ok()),
            // Without pages, the body has all sessions.
            None => Some(u64::from(count)).filter(|_| matches!(self.way, CompiledWay::None) && !is_cut),
        };
        if let (Some(CompiledEnd::Total), None, Some(place)) = (&self.end, total, self.total_place(headers)) {
            return Err(PageFault::NoTotal { place });
        }
        let cursor = self.cursor(body, items, headers)?;
        Ok(PageFacts { cursor, more, total, items: count, ids: None, last_usable: 0 })
    }

    /// Returns where the number of all sessions should be; `None` if nobody has looked there.
    fn total_place(&self, headers: &PageHeaders) -> Option<String> {
        match self.total.as_ref()? {
            CompiledTotal::Body(path) => Some(path.as_str().to_owned()),
            CompiledTotal::Header(name) => headers.get(name).map(|_| format!("the header {name}")),
        }
    }

    /// Returns whether a page is full although the file says that there is no next page.
    pub(super) fn is_cut(&self, items: u32) -> bool {
        matches!(self.way, CompiledWay::None) && self.max_limit > 0 && items >= self.max_limit
    }

    /// Returns the token or the URL of the next page.
    fn cursor(
        &self,
        body: &ParsedJson<'_>,
        items: &[&Value],
        headers: &PageHeaders,
    ) -> Result<Option<String>, PageFault> {
        let found = match &self.way {
            CompiledWay::None | CompiledWay::Number(_) | CompiledWay::Offset(_) => None,
            // The tokens of existing files have no limit of their own.
            CompiledWay::Token(path) => return text_at(path, body),
            CompiledWay::Url(path) => return text_at(path, body).map_err(|_| PageFault::Url),
            CompiledWay::Last(path) => items.last().and_then(|last| path.first(last)).and_then(token_text),
            CompiledWay::Header(name) => header_text(headers, name)?,
            CompiledWay::Link(relation) => {
                let values = headers.get(&http::header::LINK).unwrap_or_default();
                let values: Result<Vec<&str>, _> = values.iter().map(http::HeaderValue::to_str).collect();
                let values = values.map_err(|_| LinkFault::Malformed)?;
                return Ok(link_header::target(values.into_iter(), relation)?.map(str::to_owned));
            }
        };
        match found {
            Some(token) if token.len() > MAX_TOKEN => Err(PageFault::LongToken),
            found => Ok(found.filter(|token| !token.is_empty())),
        }
    }
}

/// Returns the text of a token; `None` for `null` and for what cannot be one.
fn token_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns the text at a path in a body; `None` if it is missing, `null` or empty.
///
/// # Errors
/// The value is no text.
fn text_at(path: &JsonPath, body: &ParsedJson<'_>) -> Result<Option<String>, PageFault> {
    match path.first(&body.value) {
        // A token that is not Unicode is not the end of the list.
        Some(Value::Null) => match path.first(&body.with_replacements()) {
            Some(Value::Null) | None => Ok(None),
            Some(_) => Err(PageFault::Token),
        },
        None => Ok(None),
        Some(value) => token_text(value).map(|text| Some(text).filter(|text| !text.is_empty())).ok_or(PageFault::Token),
    }
}

/// Returns `true` or `false` at a path in a body.
///
/// # Errors
/// There is neither.
fn more(path: &JsonPath, body: &Value) -> Result<bool, PageFault> {
    match path.first(body) {
        Some(Value::Bool(more)) => Ok(*more),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        _ => Err(PageFault::NoMore { path: path.as_str().to_owned() }),
    }
}

/// Returns a number of sessions. Some providers send it as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Returns the only value of a header; `None` if it is missing, or if nobody has looked for it.
///
/// # Errors
/// It has several values, or is no text.
fn header_text(headers: &PageHeaders, name: &HeaderName) -> Result<Option<String>, PageFault> {
    match headers.get(name).unwrap_or_default() {
        [] => Ok(None),
        [value] => value.to_str().map(|text| Some(text.to_owned())),
        _ => return Err(PageFault::Header { name: name.clone() }),
    }
    .map_err(|_| PageFault::Header { name: name.clone() })
}
