//! From a provider's body to sessions, and from sessions to the JSON that clients get.
//!
//! A room of its own because filling the cache, making a further view of what is stored, checking
//! examples and `weir map` must all read a body in the same way. It stores and fetches nothing.

use crate::config::faults::{At, Faults};
use crate::config::freshness::Freshness;
use crate::config::provider;
use crate::error::{Code, Problem};
use crate::freshness::{self, Reckoning, UpstreamLimit};
use crate::jsonpath::JsonPath;
use crate::mapping::{Mapping, Miss};
use crate::model::{Field, Form, Item, Session, Show, Time, View};
use crate::template::{Template, Variable};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http::HeaderValue;
use prometheus::{Histogram, IntCounter};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::{Arc, OnceLock};

/// A provider's operation, compiled.
#[derive(Debug)]
pub struct Operation {
    /// Its name in keys and metrics.
    pub name: &'static str,
    /// The request.
    pub template: Template,
    /// Sessions a page; 0: all at once.
    pub max_limit: u32,
    /// Where its calls are counted: those answered with 200, and how long they take; once there was one.
    pub counted: OnceLock<(IntCounter, Histogram)>,
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

/// Why a body cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// 502 `provider_invalid_response`, naming what is missing.
    pub problem: Box<Problem>,
    /// The required field that could not be taken, if that is why.
    pub miss: Option<Miss>,
}

impl From<Box<Problem>> for Unreadable {
    fn from(problem: Box<Problem>) -> Self {
        Self { problem, miss: None }
    }
}

impl From<Unreadable> for Box<Problem> {
    fn from(unreadable: Unreadable) -> Self {
        unreadable.problem
    }
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
            counted: OnceLock::new(),
            item: item?,
            shape,
        })
    }

    /// Reads a body that came at `now`.
    ///
    /// # Errors
    /// 502 `provider_invalid_response`, naming what is missing.
    pub fn read<'b>(
        &self,
        provider: &Arc<str>,
        mapping: &Mapping,
        body: &'b Value,
        now: Time,
    ) -> Result<Reading<'b>, Unreadable> {
        let unusable = |what: String| {
            let problem = Problem::new(Code::ProviderInvalidResponse, format!("{provider}: {what}")).of(provider);
            Unreadable { problem: Box::new(problem), miss: None }
        };
        let natives = self.natives(body).map_err(unusable)?;
        let mut misses = Vec::new();
        let mut sessions = Vec::with_capacity(natives.len());
        for (position, native) in natives.iter().enumerate() {
            let at = if natives.len() > 1 { format!(" in session {position} of its list") } else { String::new() };
            let session = mapping.map(native, now, &mut misses).map_err(|miss| {
                let what = format!("{} is required and could not be taken from {}{at}", miss.field.name(), miss.path);
                Unreadable { miss: Some(miss), ..unusable(what) }
            })?;
            sessions.push(session);
        }
        let page = self.page(body, natives.len()).map_err(unusable)?;
        Ok(Reading { sessions, natives, page, misses })
    }

    /// The provider's objects of the sessions in a body.
    ///
    /// # Errors
    /// What is not where it should be.
    pub fn natives<'b>(&self, body: &'b Value) -> Result<Vec<&'b Value>, String> {
        match (&self.shape, self.item.first(body)) {
            (Shape::One, Some(native @ Value::Object(_))) => Ok(vec![native]),
            (Shape::One, _) => Err(format!("its body has no session at {}", self.item.as_str())),
            (Shape::Page { .. }, Some(Value::Array(items))) => Ok(items.iter().collect()),
            (Shape::Page { .. }, _) => Err(format!("its body has no list of sessions at {}", self.item.as_str())),
        }
    }

    /// Whether secrets can be cut from its bodies.
    #[must_use]
    pub fn can_cut(&self) -> bool {
        self.item.is_plain()
    }

    /// The provider's body as a client without `reveal_secrets` may see it: the bytes that came, where nothing
    /// is secret in them. `None` for one without sessions where they should be: nobody knows what is in it.
    #[must_use]
    pub fn without_secrets(&self, mapping: &Mapping, body: &Bytes) -> Option<Bytes> {
        if !mapping.has_secrets() {
            return Some(body.clone());
        }
        let mut value = crate::json::parse(body).ok()?;
        let found = match self.item.first_mut(&mut value) {
            Some(Value::Array(items)) => {
                items.iter_mut().filter_map(|item| mapping.cut(item).then_some(())).count() > 0
            }
            Some(item) => mapping.cut(item),
            None => return None,
        };
        Some(if found { Bytes::from(value.to_string()) } else { body.clone() })
    }

    fn page(&self, body: &Value, items: usize) -> Result<Option<PageInfo>, String> {
        let Shape::Page { next, total } = &self.shape else { return Ok(None) };
        let token = match next.as_ref().and_then(|path| path.first(body)) {
            None | Some(Value::Null) => None,
            Some(Value::String(token)) => Some(token.clone()).filter(|token| !token.is_empty()),
            Some(Value::Number(token)) => Some(token.to_string()),
            Some(_) => return Err("the next page's token is neither text nor a number".to_owned()),
        };
        let total = match (total, next) {
            (Some(path), _) => path.first(body).and_then(Value::as_u64),
            // Without pages, what came is all there is.
            (None, None) => u64::try_from(items).ok(),
            (None, Some(_)) => None,
        };
        Ok(Some(PageInfo { next: token, total }))
    }
}

impl Reading<'_> {
    /// How long it is good for, and why.
    #[must_use]
    pub fn reckon(&self, rules: &Freshness, now: Time, upstream: UpstreamLimit) -> Reckoning {
        match (&self.page, self.sessions.first()) {
            (None, Some(session)) => freshness::of_session(rules, session, now, upstream),
            _ => freshness::of_list(rules, &self.sessions, now, upstream),
        }
    }

    /// The JSON of these sessions.
    #[must_use]
    pub fn view(&self, mapping: &Mapping, show: Show) -> View {
        let mut body = Vec::with_capacity(1024 * self.sessions.len());
        let mut items = Vec::with_capacity(self.sessions.len());
        // Of the provider's object a unified session has the metadata: nothing is cut where that holds no secret.
        let secret = match show.form {
            Form::Unified => mapping.has_secrets_in(Field::Metadata),
            Form::WithNative | Form::Native => mapping.has_secrets(),
        };
        for (session, native) in self.sessions.iter().zip(&self.natives) {
            let cut = (!show.secrets && secret).then(|| mapping.without_secrets(native));
            let cut = cut.as_ref().unwrap_or(native);
            if !items.is_empty() {
                body.push(b',');
            }
            let start = body.len();
            let metadata = mapping.object(Field::Metadata, cut);
            session.write(&mut body, show, mapping.secret_fields(), metadata, Some(cut));
            let (end, status, created_at) = (body.len(), session.status, session.created_at);
            items.push(Item { start, end, status, created_at });
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
