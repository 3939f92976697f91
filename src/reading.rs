//! From a provider's body to sessions, and from sessions to the JSON that clients get.
//!
//! A room of its own because filling the cache, making a further view of what is stored, checking
//! examples and `weir map` must all read a body in the same way. It stores and fetches nothing.

use crate::config::faults::{At, Faults};
use crate::config::provider;
use crate::error::Outcome;
use crate::error::{Code, Problem};
use crate::jsonpath::JsonPath;
use crate::mapping::{Mapping, Miss};
use crate::model::{Item, Session, Show, Time, View};
use crate::template::{Template, Variable};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A provider's operation, compiled.
#[derive(Debug)]
pub struct Operation {
    /// Its name in keys and metrics.
    pub name: &'static str,
    /// The request.
    pub template: Template,
    /// Sessions a page; 0: all at once.
    pub max_limit: u32,
    item: JsonPath,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    One,
    Page { next: Option<JsonPath>, total: Option<JsonPath> },
}

/// A page's place in its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageInfo {
    /// The provider's token of the next page.
    pub next: Option<String>,
    /// How many there are in all, if known.
    pub total: Option<u64>,
}

/// A body, read.
pub struct Reading<'b> {
    /// The sessions, mapped.
    pub sessions: Vec<Session>,
    /// The provider's objects they were mapped from.
    pub natives: Vec<&'b Value>,
    /// For a list.
    pub page: Option<PageInfo>,
    /// Optional fields that could not be taken.
    pub misses: Vec<Miss>,
}

impl Operation {
    /// Compiles an operation. `name` is `get_session` or `list_sessions`.
    #[must_use]
    pub fn compile(
        name: &'static str,
        config: &provider::Operation,
        has_agents: bool,
        faults: &mut Faults,
    ) -> Option<Self> {
        let mut template = faults.keep(&config.request.place, Template::compile(&config.request.value))?;
        for (parameter, value) in &config.query {
            faults.keep(&value.place, template.add_query(parameter, &value.value));
        }
        let one = name == "get_session";
        let wanted = [(has_agents, Variable::Agent, "{agent}"), (one, Variable::Session, "{session}")];
        for (wanted, variable, text) in wanted {
            if wanted != template.uses(variable) {
                let what = if wanted { "must have" } else { "cannot have" };
                faults.add(&config.request.place, format!("{name} {what} {text} in its request"));
            }
        }
        let mut path = |at: &At<String>| faults.keep(&at.place, JsonPath::compile(&at.value));
        let item = path(&config.item);
        let next = config.next.as_ref().map(&mut path);
        let total = config.total.as_ref().map(&mut path);
        if !one && config.next.is_some() && !template.uses(Variable::PageToken) {
            faults.add(&config.request.place, "next: names a page token, so a query parameter must send {page_token}");
        }
        let shape = if one { Shape::One } else { Shape::Page { next: next.flatten(), total: total.flatten() } };
        Some(Self {
            name,
            template,
            max_limit: config.max_limit.map_or(0, std::num::NonZeroU32::get),
            item: item?,
            shape,
        })
    }

    /// Reads a body that came at `now`.
    ///
    /// # Errors
    /// 502 `provider_invalid_response`, naming what is missing.
    pub fn read<'b>(&self, provider: &Arc<str>, mapping: &Mapping, body: &'b Value, now: Time) -> Outcome<Reading<'b>> {
        let unusable = |what: String| {
            Box::new(Problem::new(Code::ProviderInvalidResponse, format!("{provider}: {what}")).of(provider))
        };
        let found = self.item.first(body);
        let natives: Vec<&Value> = match (&self.shape, found) {
            (Shape::One, Some(native @ Value::Object(_))) => vec![native],
            (Shape::One, _) => return Err(unusable(format!("its body has no session at {}", self.item.as_str()))),
            (Shape::Page { .. }, Some(Value::Array(items))) => items.iter().collect(),
            (Shape::Page { .. }, _) => {
                return Err(unusable(format!("its body has no list of sessions at {}", self.item.as_str())));
            }
        };
        let mut misses = Vec::new();
        let mut sessions = Vec::with_capacity(natives.len());
        for (position, native) in natives.iter().enumerate() {
            let at = if natives.len() > 1 { format!(" in session {position} of its list") } else { String::new() };
            let session = mapping.map(native, now, &mut misses).map_err(|miss| {
                unusable(format!("{} is required and could not be taken from {}{at}", miss.field.name(), miss.path))
            })?;
            sessions.push(session);
        }
        let page = self.page(body, natives.len());
        Ok(Reading { sessions, natives, page, misses })
    }

    fn page(&self, body: &Value, items: usize) -> Option<PageInfo> {
        let Shape::Page { next, total } = &self.shape else { return None };
        let token = next.as_ref().and_then(|path| path.first(body)?.as_str()).filter(|token| !token.is_empty());
        let total = match (total, next) {
            (Some(path), _) => path.first(body).and_then(Value::as_u64),
            // Without pages, what came is all there is.
            (None, None) => u64::try_from(items).ok(),
            (None, Some(_)) => None,
        };
        Some(PageInfo { next: token.map(str::to_owned), total })
    }
}

impl Reading<'_> {
    /// The JSON of these sessions.
    #[must_use]
    pub fn view(&self, mapping: &Mapping, show: Show) -> View {
        let mut body = Vec::with_capacity(1024 * self.sessions.len());
        let mut items = Vec::with_capacity(self.sessions.len());
        for (session, native) in self.sessions.iter().zip(&self.natives) {
            let cut = (show.native && !show.secrets).then(|| mapping.without_secrets(native));
            let start = body.len();
            session.write(&mut body, show, mapping.secret_fields(), Some(cut.as_ref().unwrap_or(native)));
            items.push(Item { start, end: body.len(), status: session.status });
        }
        let body = Bytes::from(body.into_boxed_slice());
        View { etag: etag(&body), body, items }
    }
}

/// A strong entity tag: the first 128 bits of the body's SHA-256.
#[must_use]
pub fn etag(body: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(body);
    let text = format!("\"{}\"", BASE64.encode(&digest[..16]));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("\"\""))
}
