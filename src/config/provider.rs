//! A provider's file as written: all that Weir knows of it.
//!
//! A room of its own because a provider is data: what a new one needs is said here, or the language
//! grows for all. Patterns, paths and templates stay text; the snapshot compiles them.

use super::credentials::{self, Credential};
use super::decode::{self, Cx, Fields};
use super::faults::{At, Place};
use super::freshness::{self, Freshness};
use super::native::{self, Native};
use super::tree::Node;
use super::upstream::{self, Upstream};
use crate::error::{Code, RULE_CODES};
use crate::model::{FIELDS, Field, Kind, MODALITIES, Status};
use std::num::NonZeroU32;

/// The whole file.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its name: first part of unified ids, label, path.
    pub name: At<String>,
    /// `http(s)://host[:port][/prefix]`
    pub base_url: At<String>,
    /// What Weir shows it; `None`: nothing.
    pub credential: Option<Credential>,
    /// How its ids look.
    pub ids: Ids,
    /// Reading one session.
    pub get_session: Option<Operation>,
    /// Reading a list.
    pub list_sessions: Option<Operation>,
    /// How its session becomes a unified one.
    pub session: Vec<(Field, Rule)>,
    /// Further members of its own session that are secret.
    pub secrets: Vec<At<String>>,
    /// How long answers are good for.
    pub freshness: Freshness,
    /// How it is called.
    pub upstream: Upstream,
    /// How its errors are read.
    pub errors: Errors,
    /// How its own API is offered.
    pub native: Native,
}

/// Patterns of ids. `agent` is absent where the provider has no agents.
#[derive(Debug, Clone)]
pub struct Ids {
    /// Tell the provider from a bare id.
    pub recognise: Patterns,
    /// Valid once the provider is known.
    pub accept: Patterns,
}

/// One pattern an id kind; both are matched against the whole id only as far as they anchor themselves.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    /// Of agents.
    pub agent: Option<At<String>>,
    /// Of sessions.
    pub session: Option<At<String>>,
}

/// A request that Weir makes, and where in the answer things are.
#[derive(Debug, Clone)]
pub struct Operation {
    /// `GET /path/{agent}/…`
    pub request: At<String>,
    /// Query parameters: name and template.
    pub query: Vec<(String, At<String>)>,
    /// Path of the session, or of the array of sessions.
    pub item: At<String>,
    /// Path of the next page's token.
    pub next: Option<At<String>>,
    /// Path of the total.
    pub total: Option<At<String>>,
    /// Sessions a page; `None`: the provider gives all at once.
    pub max_limit: Option<NonZeroU32>,
}

/// Where a unified field comes from.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where it stands.
    pub place: Place,
    /// JSONPaths, the first that yields something counts.
    pub from: Vec<At<String>>,
    /// A fixed value, instead of `from`.
    pub constant: Option<At<String>>,
    /// The provider's words and ours.
    pub values: Vec<(String, At<String>)>,
    /// For a word that is not in `values`, and for none.
    pub default: Option<At<String>>,
    /// Left out unless the client may see secrets.
    pub secret: bool,
}

impl Rule {
    fn at(place: &Place) -> Self {
        let (from, values) = (Vec::new(), Vec::new());
        Self { place: place.clone(), from, constant: None, values, default: None, secret: false }
    }
}

/// How a provider's errors are read.
#[derive(Debug, Clone, Default)]
pub struct Errors {
    /// Where its own words for people are.
    pub detail: Vec<At<String>>,
    /// The first that fits says what an error means.
    pub rules: Vec<ErrorRule>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct ErrorRule {
    /// Provider statuses it is for.
    pub status: Vec<u16>,
    /// JSONPath and pattern that must match too.
    pub when: Option<(At<String>, At<String>)>,
    /// What it is.
    pub code: Code,
}

/// Reads a provider file's tree.
pub fn decode(root: &Node, cx: &mut Cx<'_>) -> Option<Provider> {
    let mut fields = Fields::of(root, "a provider's file", cx)?;
    let name = fields.required("name", cx, decode::name);
    let base_url = fields.required("base_url", cx, decode::at_text);
    let credential = fields.optional("credentials", cx, credentials::decode);
    let ids = fields.required("ids", cx, ids);
    let operations = fields.required("operations", cx, operations);
    let session = fields.required("session", cx, session);
    let secrets = fields.optional("secrets", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let freshness = fields.optional("freshness", cx, freshness::decode).unwrap_or_default();
    let upstream = fields.optional("upstream", cx, upstream::decode).unwrap_or_default();
    let errors = fields.optional("errors", cx, errors).unwrap_or_default();
    let native = fields.optional("native", cx, native::decode).unwrap_or_default();
    fields.end(cx);
    let (get_session, list_sessions) = operations?;
    Some(Provider {
        name: name?,
        base_url: base_url?,
        credential,
        ids: ids?,
        get_session,
        list_sessions,
        session: session?,
        secrets: secrets.unwrap_or_default(),
        freshness,
        upstream,
        errors,
        native,
    })
}

fn ids(node: &Node, cx: &mut Cx<'_>) -> Option<Ids> {
    let mut fields = Fields::of(node, "ids", cx)?;
    let recognise = fields.optional("recognise", cx, |node, cx| patterns(node, cx, false)).unwrap_or_default();
    let accept = fields.required("accept", cx, |node, cx| patterns(node, cx, true));
    fields.end(cx);
    Some(Ids { recognise, accept: accept? })
}

fn patterns(node: &Node, cx: &mut Cx<'_>, session_required: bool) -> Option<Patterns> {
    let mut fields = Fields::of(node, "id patterns", cx)?;
    let agent = fields.optional("agent", cx, decode::at_text);
    let session = if session_required {
        Some(fields.required("session", cx, decode::at_text)?)
    } else {
        fields.optional("session", cx, decode::at_text)
    };
    fields.end(cx);
    Some(Patterns { agent, session })
}

fn operations(node: &Node, cx: &mut Cx<'_>) -> Option<(Option<Operation>, Option<Operation>)> {
    let mut fields = Fields::of(node, "operations", cx)?;
    let get = fields.optional("get_session", cx, |node, cx| operation(node, "item", cx));
    let list = fields.optional("list_sessions", cx, |node, cx| operation(node, "items", cx));
    let given = fields.node("get_session").is_some() || fields.node("list_sessions").is_some();
    if !given && !cx.cut {
        cx.faults.add(fields.place(), "operations needs get_session, list_sessions or both");
    }
    fields.end(cx);
    Some((get, list))
}

fn operation(node: &Node, item: &'static str, cx: &mut Cx<'_>) -> Option<Operation> {
    let mut fields = Fields::of(node, "an operation", cx)?;
    let request = fields.required("request", cx, decode::at_text);
    let query = fields.optional("query", cx, |node, cx| {
        decode::each(node, "query", &[], cx, |key, node, cx| Some((key.name.clone(), decode::at_text(node, cx)?)))
    });
    let path = fields.required(item, cx, decode::at_text);
    let (mut next, mut total, mut max_limit) = (None, None, None);
    if item == "items" {
        next = fields.optional("next", cx, decode::at_text);
        total = fields.optional("total", cx, decode::at_text);
        max_limit = fields.optional("max_limit", cx, decode::positive);
    }
    fields.end(cx);
    Some(Operation { request: request?, query: query.unwrap_or_default(), item: path?, next, total, max_limit })
}

fn session(node: &Node, cx: &mut Cx<'_>) -> Option<Vec<(Field, Rule)>> {
    let mut rules = Vec::new();
    let mut fields = Fields::of(node, "session", cx)?;
    for (field, group, member, _) in FIELDS {
        if group.is_none()
            && let Some(rule) = fields.optional(member, cx, |node, cx| rule(field, node, cx))
        {
            rules.push((field, rule));
        }
    }
    for group in ["agent", "connection"] {
        fields.optional(group, cx, |node, cx| {
            let mut members = Fields::of(node, group, cx)?;
            for (field, _, member, _) in FIELDS.into_iter().filter(|row| row.1 == Some(group)) {
                rules.extend(members.optional(member, cx, |node, cx| rule(field, node, cx)).map(|r| (field, r)));
            }
            members.end(cx);
            Some(())
        });
    }
    let place = fields.place().clone();
    fields.end(cx);
    if !cx.cut && !rules.iter().any(|(field, _)| *field == Field::ProviderSessionId) {
        cx.faults.add(&place, "session.provider_session_id is required: say where the provider's id is");
    }
    Some(rules)
}

fn rule(field: Field, node: &Node, cx: &mut Cx<'_>) -> Option<Rule> {
    decode::either(
        node,
        cx,
        |node, cx| written_rule(field, node, cx),
        |node, cx| {
            let from = decode::list(node, cx, decode::at_text)?;
            Some(Rule { from, ..Rule::at(&node.place) })
        },
    )
}

fn written_rule(field: Field, node: &Node, cx: &mut Cx<'_>) -> Option<Rule> {
    let mut fields = Fields::of(node, "a rule", cx)?;
    let from = fields.optional("from", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let constant = fields.optional("const", cx, |node, cx| word(field, node, cx));
    let values = fields.optional("values", cx, |node, cx| {
        decode::each(node, "values", &[], cx, |key, node, cx| Some((key.name.clone(), word(field, node, cx)?)))
    });
    let default = fields.optional("default", cx, |node, cx| word(field, node, cx));
    let secret = fields.optional("secret", cx, decode::boolean).unwrap_or(false);
    fields.end(cx);
    let (from, values) = (from.unwrap_or_default(), values.unwrap_or_default());
    let rule = Rule { from, constant, values, default, secret, ..Rule::at(&node.place) };
    if rule.from.is_empty() == rule.constant.is_none() {
        cx.faults.add(&node.place, "a rule has either from: (a JSONPath or several) or const:");
        return None;
    }
    Some(rule)
}

/// A value of ours written in the config: it must be one that the field can have.
fn word(field: Field, node: &Node, cx: &mut Cx<'_>) -> Option<At<String>> {
    let known: Vec<&str> = match field.kind() {
        Kind::Status => Status::ALL.iter().map(|s| s.as_str()).collect(),
        Kind::Modality => MODALITIES.to_vec(),
        Kind::Text | Kind::Id => return decode::at_text(node, cx),
        _ => {
            cx.faults.add(&node.place, format!("{} cannot have a fixed value", field.name()));
            return None;
        }
    };
    let words: Vec<(&str, &str)> = known.into_iter().map(|word| (word, word)).collect();
    let value = decode::one_of(node, cx, &field.name(), &words)?.to_owned();
    Some(At { value, place: node.place.clone() })
}

fn errors(node: &Node, cx: &mut Cx<'_>) -> Option<Errors> {
    let mut fields = Fields::of(node, "errors", cx)?;
    let detail = fields.optional("detail", cx, |node, cx| decode::list(node, cx, decode::at_text));
    let rules = fields.optional("rules", cx, |node, cx| decode::list(node, cx, error_rule));
    fields.end(cx);
    Some(Errors { detail: detail.unwrap_or_default(), rules: rules.unwrap_or_default() })
}

fn error_rule(node: &Node, cx: &mut Cx<'_>) -> Option<ErrorRule> {
    let mut fields = Fields::of(node, "an error rule", cx)?;
    let status = fields.required("status", cx, |node, cx| decode::list(node, cx, decode::status));
    let when = fields.optional("when", cx, |node, cx| {
        let mut fields = Fields::of(node, "when", cx)?;
        let path = fields.required("path", cx, decode::at_text);
        let matches = fields.required("matches", cx, decode::at_text);
        fields.end(cx);
        path.zip(matches)
    });
    let code = fields.required("code", cx, |node, cx| {
        let words: Vec<(&str, Code)> = RULE_CODES.iter().map(|code| (code.as_str(), *code)).collect();
        decode::one_of(node, cx, "code", &words)
    });
    fields.end(cx);
    Some(ErrorRule { status: status?, when, code: code? })
}
