//! Reads provider bodies into sessions, and writes sessions as the JSON that clients get.
//!
//! The cache, `weir map` and the check of the examples all read bodies here, so they all get the same sessions. Nothing
//! here stores or fetches data.

use crate::base::content_coding::EncodedForms;
use crate::base::endpoints::MAX_ID;
use crate::base::json::ParsedJson;
use crate::base::json_text::{JsonText, MAX_DEPTH};
use crate::base::jsonpath::JsonPath;
use crate::base::memory_budget::without_spare;
use crate::base::model::{FIELDS, Field, FieldType, Form, Item, Session, Show, Time, View};
use crate::base::operation::Operation;
use crate::config::faults::Faults;
use crate::config::freshness::Freshness;
use crate::config::provider;
use crate::rules::field_trace::FailureReason;
use crate::rules::freshness::{self, FreshnessDecision, UpstreamLimit};
use crate::rules::mapping::{Mapping, MappingFailure};
use crate::rules::page_facts::{PageFacts, PageFault};
use crate::rules::page_headers::PageHeaders;
use crate::rules::page_rules::{self, Pages};
use crate::rules::pages::id_digest;
use crate::rules::template::{Template, Variable};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::sync::Arc;

/// A compiled operation of a provider.
#[derive(Debug)]
pub struct CompiledOperation {
    /// The operation.
    pub operation: Operation,
    /// Makes the operation's requests.
    pub template: Template,
    /// The most sessions on a page; 0 if the provider sends all at once.
    pub max_limit: u32,
    item: JsonPath,
    /// `None` if the operation returns one session.
    pages: Option<Pages>,
}

/// The code of the warning that a time could not be read. It is `null`, and the filters and the order of a list treat it as
/// missing.
pub(crate) const UNREADABLE_TIME: &str = "unreadable_time";
/// The code of the warning that a session is left out of the list, because Weir cannot use it.
pub(crate) const UNUSABLE_SESSION: &str = "unusable_session";

/// Information about the list in the body of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageInfo {
    /// What the page says about its list.
    pub facts: PageFacts,
    /// The times that could not be read: the field, and the number of the page's sessions.
    pub unreadable_times: Vec<(Field, u32)>,
    /// The sessions that are left out: the field that cannot be used, and the number of sessions. Without a field, the
    /// session as a whole cannot be used.
    pub unusable_sessions: Vec<(Option<Field>, u32)>,
    /// Why the list has no session, if it has one page and none of its sessions can be used.
    pub unusable: Option<Box<BodyFault>>,
}

/// A provider's body that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{provider}: {fault}")]
pub struct UnreadableBody {
    /// The provider.
    pub provider: Arc<str>,
    /// What is wrong with the body.
    pub fault: BodyFault,
}

/// What is wrong with a provider's body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum BodyFault {
    #[error("the response body ({bytes} bytes) is incomplete")]
    Incomplete { bytes: usize },
    #[error("the response body ({bytes} bytes) is not JSON")]
    NotJson { bytes: usize },
    #[error("the response body is encoded as {encoding}, which Weir did not request")]
    Encoded { encoding: String },
    #[error("the response body has no session at {path}")]
    NoSession { path: String },
    #[error("the response body has no list of sessions at {path}")]
    NoList { path: String },
    #[error("the response body has no sessions at the configured path")]
    NoSessions,
    #[error("{} is required and could not be taken from {}", failure.field.name(), failure.path)]
    Required { failure: MappingFailure },
    #[error(
        "{} (from {}) cannot be part of an id: ids.accept does not match it, it has control characters or a dot segment, \
         or the id is longer than {MAX_ID} bytes",
        failure.field.name(),
        failure.path
    )]
    NotAddressable { failure: MappingFailure },
    #[error("the session is nested deeper than {MAX_DEPTH} levels, which is the limit")]
    TooDeep,
    #[error("the session is not a JSON object")]
    NotObject,
    #[error("none of the {count} sessions of the list can be used; the first one: {first}")]
    NoUsableSession { count: usize, first: Box<BodyFault> },
    #[error(transparent)]
    Page(#[from] PageFault),
}

impl BodyFault {
    /// Returns the field that makes a session unusable, and the reason, as in metrics. Without a field, it is the session as
    /// a whole. `None` if the fault is not one of a session.
    #[must_use]
    pub(crate) fn of_session(&self) -> Option<(Option<Field>, &'static str)> {
        match self {
            Self::Required { failure } | Self::NotAddressable { failure } => {
                Some((Some(failure.field), failure.reason.as_str()))
            }
            Self::TooDeep => Some((None, "too_deep")),
            Self::NotObject => Some((None, FailureReason::WrongType.as_str())),
            _ => None,
        }
    }
}

/// A session of a page that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableSession {
    /// Its position in the provider's list.
    pub position: usize,
    /// Why it cannot be used.
    pub fault: BodyFault,
}

/// The sessions of a body.
pub struct ParsedBody<'b> {
    /// The mapped sessions.
    pub sessions: Vec<Session>,
    /// The provider's objects, in the order of the sessions.
    pub native_objects: Vec<&'b Value>,
    /// `None` for a single session.
    pub page: Option<PageInfo>,
    /// The optional fields that could not be mapped.
    pub mapping_failures: Vec<MappingFailure>,
    /// The sessions of the page that are left out.
    pub unusable: Vec<UnusableSession>,
}

impl CompiledOperation {
    /// Compiles an operation of a provider file.
    #[must_use]
    pub fn compile(
        operation: Operation,
        config: &provider::OperationConfig,
        has_agents: bool,
        faults: &mut Faults,
    ) -> Option<Self> {
        let mut template = faults.keep(&config.request.location, Template::compile(&config.request.value))?;
        for (parameter, value) in &config.query {
            faults.keep(&value.location, template.add_query(parameter, &value.value));
        }
        let name = operation.name();
        let variables =
            [(has_agents, Variable::Agent, "{agent}"), (!operation.is_page(), Variable::Session, "{session}")];
        for (required, variable, text) in variables {
            if required != template.uses(variable) {
                let rule = if required { "must have" } else { "cannot have" };
                faults.add(&config.request.location, format!("{name} {rule} {text} in its request"));
            }
        }
        let item = faults.keep(&config.item.location, JsonPath::compile(&config.item.value));
        let pages = match operation.is_page() {
            true => Some(Pages::compile(config, &template, faults)?),
            false => {
                page_rules::check_single(config, &template, faults);
                None
            }
        };
        Some(Self {
            operation,
            template,
            max_limit: config.max_limit.map_or(0, std::num::NonZeroU32::get),
            item: item?,
            pages,
        })
    }

    /// Returns how the pages of the list follow each other; `None` if the operation returns one session.
    #[must_use]
    pub fn pages(&self) -> Option<&Pages> {
        self.pages.as_ref()
    }

    /// Returns the names of the response headers that a page needs besides its body.
    #[must_use]
    pub(crate) fn page_headers(&self) -> &[HeaderName] {
        self.pages.as_ref().map(Pages::headers).unwrap_or_default()
    }

    /// Returns the name in cache keys and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.operation.name()
    }

    /// Reads a body that arrived at `now` with these headers. Of a page, the sessions that cannot be used are left out.
    ///
    /// # Errors
    /// The body has no sessions at the configured path, or it is one session that cannot be used.
    pub fn read<'b>(
        &self,
        provider: &Arc<str>,
        mapping: &Mapping,
        body: &'b ParsedJson<'_>,
        headers: &PageHeaders,
        now: Time,
    ) -> Result<ParsedBody<'b>, UnreadableBody> {
        let unreadable = |fault| UnreadableBody { provider: provider.clone(), fault };
        let all = self.native_objects(&body.value).map_err(unreadable)?;
        let (mut mapping_failures, mut unusable) = (Vec::new(), Vec::new());
        let (mut sessions, mut native_objects) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        for (position, native) in all.iter().enumerate() {
            match read_session(mapping, body, native, now, &mut mapping_failures) {
                Ok(session) => {
                    sessions.push(session);
                    native_objects.push(*native);
                }
                Err(fault) if self.pages.is_some() => unusable.push(UnusableSession { position, fault }),
                Err(fault) => return Err(unreadable(fault)),
            }
        }
        let page = match &self.pages {
            Some(pages) => {
                let facts = pages.read(body, &all, headers).map_err(|fault| unreadable(fault.into()))?;
                Some(page_info(pages, facts, &sessions, &mapping_failures, &unusable))
            }
            None => None,
        };
        Ok(ParsedBody { sessions, native_objects, page, mapping_failures, unusable })
    }

    /// Returns the provider's objects of the sessions in a body.
    ///
    /// # Errors
    /// The body has no session, or no list of sessions, at the configured path.
    pub fn native_objects<'b>(&self, body: &'b Value) -> Result<Vec<&'b Value>, BodyFault> {
        let path = || self.item.as_str().to_owned();
        match (&self.pages, self.item.first(body)) {
            (None, Some(native @ Value::Object(_))) => Ok(vec![native]),
            (None, _) => Err(BodyFault::NoSession { path: path() }),
            (Some(_), Some(Value::Array(items))) => Ok(items.iter().collect()),
            (Some(_), _) => Err(BodyFault::NoList { path: path() }),
        }
    }

    /// Returns whether secrets can be removed from the operation's bodies.
    #[must_use]
    pub fn can_remove_secrets(&self) -> bool {
        self.item.is_plain()
    }

    /// Returns whether a body has a session or a list of sessions at the place that the file names, or `null`. In a list
    /// that has sessions, `null` replaces what is none.
    #[must_use]
    pub(crate) fn take_shape(&self, body: &mut JsonText<'_>) -> bool {
        match (&self.pages, self.item.first_text_mut(body)) {
            (_, Some(found)) if found.is_null() => true,
            (Some(_), Some(JsonText::Array(items))) => {
                let has_sessions = items.iter().any(JsonText::is_object);
                let others = items.iter_mut().filter(|item| has_sessions && !item.is_object());
                others.for_each(|item| *item = JsonText::Scalar(b"null"));
                items.iter().all(|item| item.is_object() || item.is_null())
            }
            (None, Some(found)) => found.is_object(),
            _ => false,
        }
    }

    /// Returns whether a body has a string in the place of a session or of a list: it can contain secrets.
    #[must_use]
    pub(crate) fn has_text_as_sessions(&self, body: &JsonText<'_>) -> bool {
        fn has_text(text: &JsonText<'_>) -> bool {
            text.is_text() || matches!(text, JsonText::Array(items) if items.iter().any(has_text))
        }
        self.item.first_text(body).is_some_and(has_text)
    }

    /// Returns the names of the paths, from the top of a body, whose values every client sees.
    #[must_use]
    pub(crate) fn visible_names<'n>(&'n self, mapping: &'n Mapping) -> Vec<Vec<&'n str>> {
        let item = self.item.names().unwrap_or_default();
        let in_session = mapping.visible_names().into_iter().map(|names| [item.clone(), names].concat());
        let page = self.pages.iter().flat_map(Pages::body_paths);
        in_session.chain(page.filter_map(JsonPath::names)).collect()
    }
}

impl ParsedBody<'_> {
    /// Decides how long the body is fresh, and by which rule.
    #[must_use]
    pub fn freshness(&self, rules: &Freshness, now: Time, upstream: UpstreamLimit) -> FreshnessDecision {
        match (&self.page, self.sessions.first()) {
            (None, Some(session)) => freshness::of_session(rules, session, now, upstream),
            _ => freshness::of_list(rules, &self.sessions, now, upstream),
        }
    }

    /// Writes the sessions as JSON.
    #[must_use]
    pub fn view(&self, mapping: &Mapping, show: Show) -> View {
        let mut body = Vec::with_capacity(1024 * self.sessions.len());
        let mut items = Vec::with_capacity(self.sessions.len());
        for (session, native) in self.sessions.iter().zip(&self.native_objects) {
            // A unified session has only the metadata of the provider's object.
            let has_secrets = match show.form {
                Form::Unified => mapping.has_secrets_in(Field::Metadata, native),
                Form::WithNative | Form::Native => mapping.has_secrets(),
            };
            let redacted = (!show.secrets && has_secrets).then(|| mapping.without_secrets(native));
            let native = redacted.as_ref().unwrap_or(native);
            let hides = !show.secrets && mapping.has_secrets();
            let session = if hides { mapping.visible_session(session) } else { Cow::Borrowed(session) };
            if !items.is_empty() {
                body.push(b',');
            }
            let start = body.len();
            let metadata = mapping.object(Field::Metadata, native);
            session.write(&mut body, show, mapping.secret_fields(), metadata, Some(native));
            let (end, status, created_at) = (body.len(), session.status, session.created_at);
            items.push(Item { start, end, status, created_at });
        }
        let body = without_spare(body);
        View { etag: etag(&body), body, items, encoded: EncodedForms::default() }
    }
}

/// Maps one session of a body. Adds its optional fields that cannot be mapped to `failures`, unless it cannot be used.
///
/// # Errors
/// The session cannot be used.
fn read_session(
    mapping: &Mapping,
    body: &ParsedJson<'_>,
    native: &Value,
    now: Time,
    failures: &mut Vec<MappingFailure>,
) -> Result<Session, BodyFault> {
    if !native.is_object() {
        return Err(BodyFault::NotObject);
    }
    if body.is_too_deep(native) {
        return Err(BodyFault::TooDeep);
    }
    let others = failures.len();
    mapping.map(native, now, failures).map_err(|failure| {
        failures.truncate(others);
        match failure.reason {
            FailureReason::NotAddressable => BodyFault::NotAddressable { failure },
            _ => BodyFault::Required { failure },
        }
    })
}

/// Returns what a page says about its list, and what of it cannot be used.
fn page_info(
    pages: &Pages,
    mut facts: PageFacts,
    sessions: &[Session],
    failures: &[MappingFailure],
    unusable: &[UnusableSession],
) -> PageInfo {
    if pages.are_counted() {
        facts.ids = Some(sessions.iter().map(|session| id_digest(&session.id)).collect());
        let is_unusable = |position: &u32| unusable.iter().any(|session| session.position == *position as usize);
        facts.last_usable = (0..facts.items).rev().find(|position| !is_unusable(position)).unwrap_or(0);
    }
    let first = unusable.first().filter(|_| sessions.is_empty());
    let first = first.filter(|_| pages.is_single(&facts));
    let unusable_list = first.map(|first| {
        let (count, first) = (unusable.len(), Box::new(first.fault.clone()));
        Box::new(BodyFault::NoUsableSession { count, first })
    });
    PageInfo {
        facts,
        unreadable_times: unreadable_times(failures),
        unusable_sessions: count_by_field(unusable),
        unusable: unusable_list,
    }
}

/// Counts the unusable sessions by the field that makes them so.
fn count_by_field(unusable: &[UnusableSession]) -> Vec<(Option<Field>, u32)> {
    let mut counts: Vec<(Option<Field>, u32)> = Vec::new();
    for (field, _) in unusable.iter().filter_map(|session| session.fault.of_session()) {
        match counts.iter_mut().find(|(known, _)| *known == field) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => counts.push((field, 1)),
        }
    }
    counts
}

/// Counts the failures of each field that is a time.
fn unreadable_times(failures: &[MappingFailure]) -> Vec<(Field, u32)> {
    let times = FIELDS.iter().filter(|(_, _, _, kind)| *kind == FieldType::Time);
    let counts = times.map(|(field, ..)| {
        let count = failures.iter().filter(|failure| failure.field == *field).count();
        (*field, u32::try_from(count).unwrap_or(u32::MAX))
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Returns a strong entity tag: the first 128 bits of the body's SHA-256.
#[must_use]
pub(crate) fn etag(body: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(body);
    let text = format!("\"{}\"", BASE64.encode(&digest[..16]));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("\"\""))
}
