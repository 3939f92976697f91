//! Decodes a provider file, which has everything that Weir knows about the provider.
//!
//! Patterns, JSONPaths and templates stay text; `rules` compiles them.

use super::conversion::{self, Conversion};
use super::credentials::{self, CredentialConfig};
use super::decode::{self, DecodeContext, Fields};
use super::faults::{Located, Location};
use super::freshness::{self, Freshness};
use super::native::{self, Native};
use super::pages::{self, NextPage, Total};
use super::request_headers::{self, ReadHeaders};
use super::tree::Node;
use super::upstream::{self, Upstream};
use crate::base::model::{FIELDS, Field, FieldType, MODALITIES, Status};
use crate::base::operation::{Operation, PerOperation};
use crate::base::problem::{Code, RULE_CODES};
use std::num::NonZeroU32;

/// The whole file.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// The provider's name: the first part of unified ids, a metric label, and the prefix of native paths.
    pub name: Located<String>,
    /// `http(s)://host[:port][/prefix]`
    pub base_url: Located<String>,
    /// The credential that Weir sends; `None` if it sends none.
    pub credential: Option<CredentialConfig>,
    /// The patterns of the provider's ids.
    pub ids: Ids,
    /// The operations that the provider has.
    pub operations: PerOperation<OperationConfig>,
    /// The rules that map the provider's session to the unified one.
    pub session: Vec<(Field, MappingRule)>,
    /// JSONPaths of further members of the provider's session that are secret.
    pub secrets: Vec<Located<String>>,
    /// The lifetimes of responses.
    pub freshness: Freshness,
    /// How Weir calls the provider.
    pub upstream: Upstream,
    /// How Weir interprets the provider's errors.
    pub errors: Errors,
    /// The request headers of Weir's reads.
    pub headers: ReadHeaders,
    /// How Weir serves the provider's own API.
    pub native: Native,
}

/// The patterns of a provider's ids.
#[derive(Debug, Clone)]
pub struct Ids {
    /// Ids from which Weir recognises the provider, if the request does not name it.
    pub recognise: IdPatterns,
    /// Ids that are valid if the provider is known.
    pub accept: IdPatterns,
}

/// One pattern for each kind of id. A pattern matches a part of the id unless it has the anchors `^` and `$`.
#[derive(Debug, Clone, Default)]
pub struct IdPatterns {
    /// The pattern of agent ids; `None` if the provider has no agents.
    pub agent: Option<Located<String>>,
    /// The pattern of session ids.
    pub session: Option<Located<String>>,
}

/// A request to the provider, and the JSONPaths of the values in its response.
#[derive(Debug, Clone)]
pub struct OperationConfig {
    /// `GET /path/{agent}/…`
    pub request: Located<String>,
    /// Query parameters: name and template.
    pub query: Vec<(String, Located<String>)>,
    /// The JSONPath of the session, or of the array of sessions.
    pub item: Located<String>,
    /// How the list goes on after a page.
    pub next: Option<NextPage>,
    /// Where the number of all sessions is.
    pub total: Option<Total>,
    /// Sessions per page; `None` if one response has all sessions.
    pub max_limit: Option<NonZeroU32>,
}

/// The source of a unified field.
#[derive(Debug, Clone)]
pub struct MappingRule {
    /// The location of the rule.
    pub location: Location,
    /// JSONPaths; the first one that finds a value is used.
    pub from: Vec<Located<String>>,
    /// How the value is converted.
    pub conversion: Conversion,
    /// Values, as text, that count as missing.
    pub absent: Vec<String>,
    /// A fixed value, in place of `from`.
    pub constant: Option<Located<String>>,
    /// The provider's values, each with the unified value.
    pub values: Vec<(String, Located<String>)>,
    /// The unified value if the provider's value is missing or not in `values`.
    pub default: Option<Located<String>>,
    /// Whether Weir leaves the field out for clients without `reveal_secrets`.
    pub secret: bool,
}

impl MappingRule {
    fn at(location: &Location) -> Self {
        Self {
            location: location.clone(),
            from: Vec::new(),
            conversion: Conversion::None,
            absent: Vec::new(),
            constant: None,
            values: Vec::new(),
            default: None,
            secret: false,
        }
    }
}

/// How Weir interprets a provider's errors.
#[derive(Debug, Clone, Default)]
pub struct Errors {
    /// JSONPaths of the provider's message for people.
    pub detail: Vec<Located<String>>,
    /// Rules for the problem code; the first one that matches is used.
    pub rules: Vec<ErrorRule>,
}

/// A rule for errors of a provider.
#[derive(Debug, Clone)]
pub struct ErrorRule {
    /// The provider's statuses that the rule matches.
    pub status: Vec<u16>,
    /// The condition on the body, if there is one.
    pub when: Option<BodyCondition>,
    /// The problem code.
    pub code: Code,
}

/// A condition on the body of a provider's error.
#[derive(Debug, Clone)]
pub struct BodyCondition {
    /// The JSONPath of a value.
    pub path: Located<String>,
    /// The pattern that the value must match.
    pub matches: Located<String>,
}

/// Decodes the file. Returns the provider's name, if it is known, and the whole file, if no required part of it is missing
/// or has a fault.
pub fn decode(root: &Node, cx: &mut DecodeContext<'_>) -> (Option<String>, Option<ProviderConfig>) {
    let Some(mut fields) = Fields::of(root, "a provider file", cx) else { return (None, None) };
    let name = fields.required("name", cx, decode::name);
    (name.as_ref().map(|name| name.value.clone()), file(name, fields, cx))
}

fn file(name: Option<Located<String>>, mut fields: Fields<'_>, cx: &mut DecodeContext<'_>) -> Option<ProviderConfig> {
    let base_url = fields.required("base_url", cx, decode::url);
    let credential = fields.optional("credentials", cx, credentials::decode);
    let headers = fields.optional("headers", cx, request_headers::decode).unwrap_or_default();
    let ids = fields.required("ids", cx, ids);
    let operations = fields.required("operations", cx, operations);
    let session = fields.required("session", cx, session);
    let secrets = fields.optional("secrets", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let freshness = fields.optional("freshness", cx, freshness::decode).unwrap_or_default();
    let upstream = fields.optional("upstream", cx, upstream::decode).unwrap_or_default();
    let errors = fields.optional("errors", cx, errors).unwrap_or_default();
    let native = fields.optional("native", cx, native::decode).unwrap_or_default();
    fields.end(cx);
    Some(ProviderConfig {
        name: name?,
        base_url: base_url?,
        credential,
        ids: ids?,
        operations: operations?,
        session: session?,
        secrets: secrets.unwrap_or_default(),
        freshness,
        upstream,
        errors,
        headers,
        native,
    })
}

fn ids(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Ids> {
    let mut fields = Fields::of(node, "ids", cx)?;
    let recognise = fields.optional("recognise", cx, |node, cx| patterns(node, cx, false)).unwrap_or_default();
    let accept = fields.required("accept", cx, |node, cx| patterns(node, cx, true));
    fields.end(cx);
    Some(Ids { recognise, accept: accept? })
}

fn patterns(node: &Node, cx: &mut DecodeContext<'_>, session_required: bool) -> Option<IdPatterns> {
    let mut fields = Fields::of(node, "id patterns", cx)?;
    let agent = fields.optional("agent", cx, decode::at_text);
    let session = if session_required {
        Some(fields.required("session", cx, decode::at_text)?)
    } else {
        fields.optional("session", cx, decode::at_text)
    };
    // A fault in the pattern of agents must not make a provider without agents, whose requests would have other faults.
    let is_faulty = agent.is_none() && fields.is_written("agent");
    fields.end(cx);
    (!is_faulty).then_some(IdPatterns { agent, session })
}

fn operations(node: &Node, cx: &mut DecodeContext<'_>) -> Option<PerOperation<OperationConfig>> {
    let mut fields = Fields::of(node, "operations", cx)?;
    let decoded = PerOperation::make(|kind| fields.optional(kind.name(), cx, |node, cx| operation(node, kind, cx)));
    if !Operation::all().any(|kind| fields.is_written(kind.name())) && !cx.truncated {
        let names: Vec<&str> = Operation::all().map(Operation::name).collect();
        cx.faults.add(fields.location(), format!("operations must have at least one of {}", names.join(", ")));
    }
    fields.end(cx);
    Some(decoded)
}

fn operation(node: &Node, kind: Operation, cx: &mut DecodeContext<'_>) -> Option<OperationConfig> {
    let mut fields = Fields::of(node, "an operation", cx)?;
    let request = fields.required("request", cx, decode::at_text);
    let before = cx.faults.count();
    let query = fields.optional("query", cx, |node, cx| {
        decode::entries(node, "query", &[], cx, |key, node, cx| Some((key.name.clone(), decode::at_text(node, cx)?)))
    });
    let has_faulty_query = cx.faults.count() > before;
    let path = fields.required(kind.body_key(), cx, decode::at_text);
    let (mut next, mut total, mut max_limit) = (None, None, None);
    if kind.is_page() {
        next = fields.optional("next", cx, pages::next);
        total = fields.optional("total", cx, pages::total);
        max_limit = fields.optional("max_limit", cx, decode::positive_integer);
    }
    // A fault in one of these must not make rules between them fail.
    let has_faulty = |key, missing: bool| missing && kind.is_page() && fields.is_written(key);
    let is_faulty = has_faulty("next", next.is_none())
        || has_faulty("total", total.is_none())
        || has_faulty("max_limit", max_limit.is_none());
    fields.end(cx);
    if is_faulty || has_faulty_query {
        return None;
    }
    Some(OperationConfig { request: request?, query: query.unwrap_or_default(), item: path?, next, total, max_limit })
}

fn session(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Vec<(Field, MappingRule)>> {
    let mut rules = Vec::new();
    let mut fields = Fields::of(node, "session", cx)?;
    for (field, group, member, _) in FIELDS {
        if group.is_none() {
            rules.extend(member_rule(field, member, &mut fields, cx));
        }
    }
    for group in ["agent", "connection"] {
        fields.optional(group, cx, |node, cx| {
            let mut members = Fields::of(node, group, cx)?;
            for (field, _, member, _) in FIELDS.into_iter().filter(|row| row.1 == Some(group)) {
                rules.extend(member_rule(field, member, &mut members, cx));
            }
            members.end(cx);
            Some(())
        });
    }
    let location = fields.location().clone();
    fields.end(cx);
    if !cx.truncated && !rules.iter().any(|(field, _)| *field == Field::ProviderSessionId) {
        cx.faults
            .add(&location, "session.provider_session_id is required; write the JSONPath of the provider's session id");
    }
    Some(rules)
}

/// Reads the rule of a field. A rule with a fault becomes one without a source, so that the field does not count as
/// missing.
fn member_rule(
    field: Field,
    member: &'static str,
    fields: &mut Fields<'_>,
    cx: &mut DecodeContext<'_>,
) -> Option<(Field, MappingRule)> {
    let rule = fields.optional(member, cx, |node, cx| rule(field, node, cx));
    let faulty = || fields.is_written(member).then(|| MappingRule::at(fields.location()));
    rule.or_else(faulty).map(|rule| (field, rule))
}

fn rule(field: Field, node: &Node, cx: &mut DecodeContext<'_>) -> Option<MappingRule> {
    decode::mapping_or(
        node,
        cx,
        |node, cx| rule_mapping(field, node, cx),
        |node, cx| {
            let from = decode::list(node, cx, decode::at_text)?;
            Some(MappingRule { from, ..MappingRule::at(&node.location) })
        },
    )
}

fn rule_mapping(field: Field, node: &Node, cx: &mut DecodeContext<'_>) -> Option<MappingRule> {
    let before = cx.faults.count();
    let mut fields = Fields::of(node, "a rule", cx)?;
    let from = fields.optional("from", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let (conversion, count) = conversion::decode(field, &mut fields, cx);
    let absent = fields.optional("absent", cx, |node, cx| decode::list(node, cx, decode::text));
    let constant = fields.optional("const", cx, |node, cx| unified_value(field, node, cx));
    let values = fields.optional("values", cx, |node, cx| {
        decode::entries(node, "values", &[], cx, |key, node, cx| {
            Some((key.name.clone(), unified_value(field, node, cx)?))
        })
    });
    let default = fields.optional("default", cx, |node, cx| unified_value(field, node, cx));
    let secret = fields.optional("secret", cx, decode::boolean).unwrap_or(false);
    fields.end(cx);
    let sources = [from.is_some(), count.is_some(), constant.is_some()];
    let from = from.or(count).unwrap_or_default();
    let (absent, values) = (absent.unwrap_or_default(), values.unwrap_or_default());
    let rule =
        MappingRule { from, conversion, absent, constant, values, default, secret, ..MappingRule::at(&node.location) };
    if cx.faults.count() > before {
        return (!rule.from.is_empty() || rule.constant.is_some()).then_some(rule);
    }
    let fault = if sources.iter().filter(|is_given| **is_given).count() != 1 {
        "a rule must have either from (one or several JSONPaths), count (the same) or const"
    } else if rule.conversion != Conversion::None && (rule.constant.is_some() || !rule.values.is_empty()) {
        "unit, format and as convert what from finds; they do not go with const or values"
    } else if !rule.absent.is_empty() && rule.constant.is_some() {
        "absent is for values that from finds; it does not go with const"
    } else {
        return Some(rule);
    };
    cx.faults.add(&node.location, fault);
    None
}

/// Reads a value of a unified field, for `const`, `values` or `default`. It must be one that the field can have.
fn unified_value(field: Field, node: &Node, cx: &mut DecodeContext<'_>) -> Option<Located<String>> {
    let known: Vec<&str> = match field.field_type() {
        FieldType::Status => Status::ALL.iter().map(|s| s.as_str()).collect(),
        FieldType::Modality => MODALITIES.to_vec(),
        FieldType::Text | FieldType::Id => return decode::at_text(node, cx),
        _ => {
            cx.faults.add(
                &node.location,
                format!("{} cannot have a fixed value; use from to take it from the provider", field.name()),
            );
            return None;
        }
    };
    let words: Vec<(&str, &str)> = known.into_iter().map(|word| (word, word)).collect();
    let value = decode::one_of(node, cx, &field.name(), &words)?.to_owned();
    Some(Located { value, location: node.location.clone() })
}

fn errors(node: &Node, cx: &mut DecodeContext<'_>) -> Option<Errors> {
    let mut fields = Fields::of(node, "errors", cx)?;
    let detail = fields.optional("detail", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let rules = fields.optional("rules", cx, |node, cx| decode::list(node, cx, error_rule));
    fields.end(cx);
    Some(Errors { detail: detail.unwrap_or_default(), rules: rules.unwrap_or_default() })
}

fn error_rule(node: &Node, cx: &mut DecodeContext<'_>) -> Option<ErrorRule> {
    let mut fields = Fields::of(node, "an error rule", cx)?;
    let status = fields.required("status", cx, |node, cx| decode::list(node, cx, decode::error_status));
    let when = fields.optional("when", cx, |node, cx| {
        let mut fields = Fields::of(node, "when", cx)?;
        let path = fields.required("path", cx, decode::at_text);
        let matches = fields.required("matches", cx, decode::at_text);
        fields.end(cx);
        Some(BodyCondition { path: path?, matches: matches? })
    });
    let code = fields.required("code", cx, |node, cx| {
        let words: Vec<(&str, Code)> = RULE_CODES.iter().map(|code| (code.as_str(), *code)).collect();
        decode::one_of(node, cx, "code", &words)
    });
    fields.end(cx);
    Some(ErrorRule { status: status?, when, code: code? })
}
