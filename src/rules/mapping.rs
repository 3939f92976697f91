//! Maps a provider's session to the unified session, by the rules of the provider's file.
//!
//! This module does no IO and knows no provider by name.

use crate::base::jsonpath::JsonPath;
use crate::base::model::{FIELDS, Field, FieldType, MODALITIES, Session, Status, Time, parse_time};
use crate::config::conversion::Conversion;
use crate::config::faults::{Faults, Located};
use crate::config::provider;
use crate::rules::conversion;
use crate::rules::field_trace::{FailureReason, FieldSource, FieldTrace, PathResult, RuleValues};
use crate::rules::secrets::SecretPaths;
use crate::rules::unified_id::{AcceptedIds, NotAddressable};
use serde_json::Value;
use std::borrow::Cow;
use std::sync::Arc;

/// The compiled mapping rules of a provider.
#[derive(Debug)]
pub struct Mapping {
    provider: Arc<str>,
    has_agents: bool,
    ids: AcceptedIds,
    rules: Vec<FieldRule>,
    secret_fields: Vec<Field>,
    secret_paths: Vec<JsonPath>,
    secrets: SecretPaths,
}

/// The compiled rule of one field.
#[derive(Debug)]
struct FieldRule {
    field: Field,
    from: Vec<JsonPath>,
    conversion: Conversion,
    /// Values, as text, that count as missing.
    absent: Vec<String>,
    constant: Option<String>,
    values: Vec<(String, String)>,
    default: Option<String>,
}

/// A field that could not be mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingFailure {
    /// The field.
    pub field: Field,
    /// Why it could not be mapped.
    pub reason: FailureReason,
    /// The paths of the field's rule.
    pub path: String,
    /// The provider's word, if the field has a fixed set of words, such as a status. It has at most 64 characters.
    pub word: Option<String>,
}

/// Returns the JSON type of a value.
#[must_use]
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Mapping {
    /// Compiles a provider's rules and reports all faults.
    #[must_use]
    pub fn compile(config: &provider::ProviderConfig, faults: &mut Faults) -> Self {
        let mut secret_fields = Vec::new();
        let mut secret_paths = paths(&config.secrets, faults);
        for (path, at) in secret_paths.iter().zip(&config.secrets) {
            require_member(path, at, faults);
        }
        let mut rules = Vec::new();
        for (field, rule) in &config.session {
            let from = paths(&rule.from, faults);
            // The connection token is always secret, whatever the file says.
            if rule.secret || *field == Field::ConnectionToken {
                secret_fields.push(*field);
                for (path, at) in from.iter().zip(&rule.from) {
                    require_member(path, at, faults);
                }
                secret_paths.extend(from.iter().cloned());
                if REQUIRED.contains(field) || *field == Field::Status {
                    faults.add(&rule.location, format!("{} cannot be secret", field.name()));
                }
            }
            rules.push(FieldRule {
                field: *field,
                from,
                conversion: rule.conversion,
                absent: rule.absent.clone(),
                constant: rule.constant.as_ref().map(|at| at.value.clone()),
                values: rule.values.iter().map(|(native, unified)| (native.clone(), unified.value.clone())).collect(),
                default: rule.default.as_ref().map(|at| at.value.clone()),
            });
        }
        for (field, rule) in &config.session {
            let visible = !secret_fields.contains(field) && field.field_type() != FieldType::Object;
            let secret = |at: &&Located<String>| secret_paths.iter().any(|secret| secret.as_str() == at.value);
            for at in rule.from.iter().filter(secret).filter(|_| visible) {
                let (path, field) = (&at.value, field.name());
                faults.add(
                    &at.location,
                    format!(
                        "{path:?} is secret, but {field} shows it; mark {field} as secret, or map it from another path"
                    ),
                );
            }
        }
        let has_agents = config.ids.accept.agent.is_some();
        if has_agents && !rules.iter().any(|rule| rule.field == Field::AgentId) {
            faults.add(&config.name.location, "ids has agents, so session.agent.id is required; add it");
        }
        let secrets = SecretPaths::new(&secret_paths);
        let (provider, ids) = (config.name.value.as_str().into(), AcceptedIds::compile(&config.ids.accept));
        Self { provider, has_agents, ids, rules, secret_fields, secret_paths, secrets }
    }

    /// Returns the fields that only clients with `reveal_secrets` see.
    #[must_use]
    pub fn secret_fields(&self) -> &[Field] {
        &self.secret_fields
    }

    /// Returns whether any member of the provider's object is secret.
    #[must_use]
    pub fn has_secrets(&self) -> bool {
        !self.secrets.is_empty()
    }

    /// Returns whether the value of an object field contains a secret, or may be part of one.
    #[must_use]
    pub fn has_secrets_in(&self, field: Field, native: &Value) -> bool {
        let mut from = self.rules.iter().filter(|rule| rule.field == field).flat_map(|rule| &rule.from);
        self.has_secrets()
            && (from.any(|from| self.secret_paths.iter().any(|secret| secret.may_overlap(from)))
                || self.object(field, native).is_some_and(|value| self.secrets.are_in(value)))
    }

    /// Returns the paths of the secret members.
    #[must_use]
    pub(crate) fn secrets(&self) -> &SecretPaths {
        &self.secrets
    }

    /// Returns the names of the paths whose values every client sees.
    #[must_use]
    pub(crate) fn visible_names(&self) -> Vec<Vec<&str>> {
        let visible = self.rules.iter().filter(|rule| !self.secret_fields.contains(&rule.field));
        visible.flat_map(|rule| &rule.from).filter_map(JsonPath::names).collect()
    }

    /// Returns the value of an object field in the provider's object, from which secrets may have been removed.
    #[must_use]
    pub fn object<'v>(&self, field: Field, native: &'v Value) -> Option<&'v Value> {
        let rule = self.rules.iter().find(|rule| rule.field == field)?;
        rule.from.iter().filter_map(|path| path.first(native)).find(|value| value.is_object())
    }

    /// Returns a copy of the provider's object without its secret members.
    #[must_use]
    pub fn without_secrets(&self, native: &Value) -> Value {
        let mut copy = native.clone();
        self.secrets.remove_from(&mut copy, &self.visible_names());
        copy
    }

    /// Returns a session without the visible fields whose text contains a secret, such as a title that is JSON. The ids
    /// stay: without them there is no session.
    #[must_use]
    pub(crate) fn visible_session<'s>(&self, session: &'s Session) -> Cow<'s, Session> {
        let shows_secret = |rule: &&FieldRule| {
            let value = &session.values[rule.field as usize];
            value.is_string()
                && !REQUIRED.contains(&rule.field)
                && !self.secret_fields.contains(&rule.field)
                && rule.from.iter().any(|path| self.secrets.are_in_value_at(&path.names().unwrap_or_default(), value))
        };
        let fields: Vec<Field> = self.rules.iter().filter(shows_secret).map(|rule| rule.field).collect();
        if fields.is_empty() {
            return Cow::Borrowed(session);
        }
        let mut visible = session.clone();
        fields.into_iter().for_each(|field| visible.values[field as usize] = Value::Null);
        Cow::Owned(visible)
    }

    /// Maps one session that arrived at `now`. An optional field that cannot be mapped becomes `null` and is added to
    /// `failures`.
    ///
    /// # Errors
    /// The required field that is missing.
    pub fn map(
        &self,
        native: &Value,
        now: Time,
        failures: &mut Vec<MappingFailure>,
    ) -> Result<Session, MappingFailure> {
        let mut session = Session {
            id: String::new(),
            provider: self.provider.clone(),
            values: std::array::from_fn(|_| Value::Null),
            status: Status::Unknown,
            created_at: None,
            ended_at: None,
            expires_at: None,
        };
        for rule in &self.rules {
            let (value, source) = rule.evaluate(native, |_, _| ());
            if let FieldSource::Unusable(reason) = source {
                let word = self.unknown_word(rule, native);
                failures.push(MappingFailure { field: rule.field, reason, path: rule.paths(), word });
            }
            if let Some(value) = value {
                session.set(rule.field, value);
            }
        }
        self.finish(&mut session, now)?;
        Ok(session)
    }

    /// Checks the required fields and sets the unified id, the status after expiry, and the default modality.
    fn finish(&self, session: &mut Session, now: Time) -> Result<(), MappingFailure> {
        let text = |field: Field| {
            let missing =
                || MappingFailure { field, reason: FailureReason::Missing, path: self.paths_of(field), word: None };
            session.values[field as usize].as_str().ok_or_else(missing)
        };
        let own = text(Field::ProviderSessionId)?;
        let agent = self.has_agents.then(|| text(Field::AgentId)).transpose()?;
        let id = self.ids.write(&self.provider, agent, own);
        session.id = id.map_err(|NotAddressable(field)| MappingFailure {
            field,
            reason: FailureReason::NotAddressable,
            path: self.paths_of(field),
            word: None,
        })?;
        if session.status == Status::Active && session.expires_at.is_some_and(|at| at <= now) {
            session.status = Status::Expired;
        }
        session.values[Field::Status as usize] = session.status.as_str().into();
        let modality = &mut session.values[Field::Modality as usize];
        if modality.is_null() {
            *modality = "unknown".into();
        }
        Ok(())
    }

    /// Returns the provider's value of a status or a modality that is not known, unless it may show a secret.
    pub(crate) fn unknown_word_of(&self, field: Field, native: &Value) -> Option<String> {
        self.rules.iter().find(|rule| rule.field == field).and_then(|rule| self.unknown_word(rule, native))
    }

    fn unknown_word(&self, rule: &FieldRule, native: &Value) -> Option<String> {
        if !matches!(rule.field.field_type(), FieldType::Status | FieldType::Modality) {
            return None;
        }
        rule.from.iter().find_map(|path| {
            let value = path.first(native)?;
            let text = word(value)?;
            let hidden = self.secret_fields.contains(&rule.field)
                || self.secrets.are_in_value_at(&path.names().unwrap_or_default(), value);
            (!hidden).then(|| text.chars().take(MAX_WORD).collect())
        })
    }

    fn paths_of(&self, field: Field) -> String {
        self.rules.iter().find(|rule| rule.field == field).map_or_else(String::new, FieldRule::paths)
    }

    /// Returns how each field is mapped, in the order of the fields. For explanations; it is slower than
    /// [`Mapping::map`].
    #[must_use]
    pub fn trace(&self, native: &Value) -> Vec<FieldTrace<'_>> {
        FIELDS
            .iter()
            .map(|(field, ..)| {
                let mut tried = Vec::new();
                let Some(rule) = self.rules.iter().find(|rule| rule.field == *field) else {
                    return FieldTrace { field: *field, source: FieldSource::NoRule, tried, rule: None };
                };
                let (_, source) = rule.evaluate(native, |path, result| tried.push((path, result)));
                FieldTrace { field: *field, source, tried, rule: Some(rule.values()) }
            })
            .collect()
    }

    /// Returns the fields that can fail to be mapped, each with each reason that its rule can have.
    pub(crate) fn possible_failures(&self) -> impl Iterator<Item = (Field, FailureReason)> {
        self.rules.iter().filter(|rule| rule.constant.is_none()).flat_map(|rule| {
            let missing = self.requires(rule.field).then_some(FailureReason::Missing);
            let unknown = (!rule.values.is_empty()).then_some(FailureReason::UnknownValue);
            let reasons = missing.into_iter().chain([FailureReason::WrongType]).chain(unknown);
            reasons.map(|reason| (rule.field, reason))
        })
    }

    /// Returns whether a session needs this field for its unified id.
    #[must_use]
    pub fn requires(&self, field: Field) -> bool {
        REQUIRED.contains(&field) && (field != Field::AgentId || self.has_agents)
    }
}

/// The most characters of a provider's word in messages.
const MAX_WORD: usize = 64;
/// The fields of the unified id.
pub(crate) const REQUIRED: [Field; 2] = [Field::ProviderSessionId, Field::AgentId];

fn paths(texts: &[Located<String>], faults: &mut Faults) -> Vec<JsonPath> {
    texts.iter().filter_map(|at| faults.keep(&at.location, JsonPath::compile(&at.value))).collect()
}

fn require_member(path: &JsonPath, at: &Located<String>, faults: &mut Faults) {
    if !path.names_member() {
        let path = path.as_str();
        faults.add(
            &at.location,
            format!("{path:?} is secret, so it must name one member: names and indexes only, with a name at the end"),
        );
    }
}

impl FieldRule {
    /// Returns all paths of the rule, for messages.
    fn paths(&self) -> String {
        self.from.iter().map(JsonPath::as_str).collect::<Vec<_>>().join(", ")
    }

    fn values(&self) -> RuleValues<'_> {
        RuleValues { constant: self.constant.as_deref(), values: &self.values, default: self.default.as_deref() }
    }

    /// Returns the value and its source. Calls `report` for each path that is tried. With `Unusable`, the value is the
    /// default, if there is one.
    fn evaluate<'m>(
        &'m self,
        native: &Value,
        mut report: impl FnMut(&'m JsonPath, PathResult),
    ) -> (Option<TypedValue>, FieldSource<'m>) {
        if let Some(constant) = &self.constant {
            return (Some(TypedValue::text(self.field, constant)), FieldSource::Constant);
        }
        let mut unusable = None;
        for path in &self.from {
            match path.first(native) {
                found @ (None | Some(Value::Null)) => report(path, PathResult::Nothing { null: found.is_some() }),
                Some(value) if self.is_absent(value) => report(path, PathResult::Nothing { null: true }),
                Some(value) => match self.convert(value) {
                    Ok(converted) => {
                        report(path, PathResult::Used(type_of(value)));
                        return (Some(converted), FieldSource::Path(path));
                    }
                    Err(reason) => {
                        report(path, PathResult::Unusable(type_of(value), reason));
                        unusable = unusable.or(Some(reason));
                    }
                },
            }
        }
        let default = self.default.as_deref().map(|text| TypedValue::text(self.field, text));
        match (unusable, &default) {
            (Some(reason), _) => (default, FieldSource::Unusable(reason)),
            (None, Some(_)) => (default, FieldSource::Default),
            (None, None) => (None, FieldSource::Nothing),
        }
    }

    /// Returns whether the file says that this value counts as missing.
    fn is_absent(&self, value: &Value) -> bool {
        !self.absent.is_empty() && word(value).is_some_and(|word| self.absent.iter().any(|absent| *absent == word))
    }

    /// Converts a provider's value to the field's type, as the rule says or by the table `values` if the rule has one.
    fn convert(&self, value: &Value) -> Result<TypedValue, FailureReason> {
        if self.conversion != Conversion::None {
            let (value, time) = conversion::convert(self.conversion, value).ok_or(FailureReason::WrongType)?;
            let kept = time.map(|time| TypedValue { value: value.clone(), time: Some(time) });
            return kept.or_else(|| typed(self.field.field_type(), &value)).ok_or(FailureReason::WrongType);
        }
        if self.values.is_empty() {
            return typed(self.field.field_type(), value).ok_or(FailureReason::WrongType);
        }
        let word = word(value).ok_or(FailureReason::WrongType)?;
        let (_, unified) = self.values.iter().find(|(native, _)| *native == word).ok_or(FailureReason::UnknownValue)?;
        Ok(TypedValue::text(self.field, unified))
    }
}

/// Returns a text, a number, `true` or `false` as text.
fn word(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string().into()),
        _ => None,
    }
}

/// A value of the field's type. If it is a time, also parsed.
#[derive(Debug)]
struct TypedValue {
    value: Value,
    time: Option<Time>,
}

impl From<Value> for TypedValue {
    fn from(value: Value) -> Self {
        Self { value, time: None }
    }
}

impl TypedValue {
    /// Creates a value from a text of the provider's file, which the configuration has checked.
    fn text(field: Field, text: &str) -> Self {
        let time = (field.field_type() == FieldType::Time).then(|| parse_time(text)).flatten().map(|(_, time)| time);
        Self { value: text.into(), time }
    }
}

/// Converts a provider's value to a field's type. `None` if the value does not have that type.
fn typed(field_type: FieldType, value: &Value) -> Option<TypedValue> {
    let converted = match (field_type, value) {
        (FieldType::Id, Value::String(text)) => (!text.is_empty()).then(|| value.clone()),
        (FieldType::Id, Value::Number(number)) => number.as_u64().map(|id| id.to_string().into()),
        (FieldType::Text, Value::String(_)) => Some(value.clone()),
        // A placeholder. The view takes the members from the provider's object, after secrets are removed.
        (FieldType::Object, Value::Object(_)) => Some(Value::Object(serde_json::Map::new())),
        (FieldType::Status, Value::String(text)) => Status::parse(text).map(|status| status.as_str().into()),
        (FieldType::Modality, Value::String(text)) => MODALITIES.contains(&text.as_str()).then(|| value.clone()),
        (FieldType::Time, Value::String(text)) => {
            return parse_time(text).map(|(utc, time)| TypedValue { value: utc.into(), time: Some(time) });
        }
        (FieldType::Number, Value::Number(number)) => number.as_f64().filter(|n| *n >= 0.0).map(|_| value.clone()),
        (FieldType::Count, Value::Number(number)) => number.as_u64().map(|_| value.clone()),
        _ => None,
    };
    converted.map(TypedValue::from)
}

impl Session {
    fn set(&mut self, field: Field, TypedValue { value, time }: TypedValue) {
        match field {
            Field::Status => self.status = value.as_str().and_then(Status::parse).unwrap_or(Status::Unknown),
            Field::CreatedAt => self.created_at = time,
            Field::EndedAt => self.ended_at = time,
            Field::ExpiresAt => self.expires_at = time,
            _ => {}
        }
        self.values[field as usize] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(field: Field, from: &[&str]) -> FieldRule {
        let from = from.iter().map(|path| JsonPath::compile(path).unwrap()).collect();
        FieldRule {
            field,
            from,
            conversion: Conversion::None,
            absent: Vec::new(),
            constant: None,
            values: Vec::new(),
            default: None,
        }
    }

    fn mapping() -> Mapping {
        let words = |native: &str, unified: &str| (native.to_owned(), unified.to_owned());
        let rules = vec![
            rule(Field::ProviderSessionId, &["$.key", "$.id"]),
            FieldRule { constant: Some("text".into()), ..rule(Field::Modality, &[]) },
            rule(Field::Title, &["$.name", "$.label", "$.other"]),
            FieldRule {
                values: vec![words("true", "active")],
                default: Some("unknown".into()),
                ..rule(Field::Status, &["$.on"])
            },
            rule(Field::CreatedAt, &["$.made"]),
        ];
        let (secret_fields, secret_paths, secrets) = (Vec::new(), Vec::new(), SecretPaths::default());
        Mapping {
            provider: "p".into(),
            has_agents: false,
            ids: AcceptedIds::default(),
            rules,
            secret_fields,
            secret_paths,
            secrets,
        }
    }

    #[test]
    fn a_trace_contains_every_path_tried_with_its_result() {
        let mapping = mapping();
        let native = json!({ "key": null, "id": 7, "name": 5, "label": "l", "other": "o", "on": "maybe" });
        let all = mapping.trace(&native);
        let traced = |field: Field| {
            let trace = &all[field as usize];
            let tried: Vec<_> = trace.tried.iter().map(|(path, result)| (path.as_str(), *result)).collect();
            (trace.source, tried)
        };
        let from = |text: &str| {
            FieldSource::Path(mapping.rules.iter().flat_map(|r| &r.from).find(|p| p.as_str() == text).unwrap())
        };
        assert_eq!(
            traced(Field::ProviderSessionId),
            (from("$.id"), vec![("$.key", PathResult::Nothing { null: true }), ("$.id", PathResult::Used("number"))])
        );
        let wrong = PathResult::Unusable("number", FailureReason::WrongType);
        assert_eq!(
            traced(Field::Title),
            (from("$.label"), vec![("$.name", wrong), ("$.label", PathResult::Used("string"))]),
            "the paths after it are not tried"
        );
        let unknown = PathResult::Unusable("string", FailureReason::UnknownValue);
        assert_eq!(
            traced(Field::Status),
            (FieldSource::Unusable(FailureReason::UnknownValue), vec![("$.on", unknown)])
        );
        assert_eq!(
            traced(Field::CreatedAt),
            (FieldSource::Nothing, vec![("$.made", PathResult::Nothing { null: false })])
        );
        assert_eq!(traced(Field::Modality), (FieldSource::Constant, vec![]));
        assert_eq!(traced(Field::Description), (FieldSource::NoRule, vec![]));
        assert_eq!(all[Field::Status as usize].rule.unwrap().default, Some("unknown"));
        assert!(mapping.requires(Field::ProviderSessionId) && !mapping.requires(Field::AgentId));
        let default = mapping.trace(&json!({}));
        assert_eq!(default[Field::Status as usize].source, FieldSource::Default);
    }

    #[test]
    fn a_trace_agrees_with_the_mapped_session() {
        let mapping = mapping();
        for native in
            [json!({ "id": "a", "name": "n" }), json!({ "key": "k", "made": "2024-01-15T12:00:00Z", "on": true })]
        {
            let mut failures = Vec::new();
            let session = mapping.map(&native, Time(0), &mut failures).unwrap();
            for FieldTrace { field, source, .. } in mapping.trace(&native) {
                let mapped = !session.values[field as usize].is_null();
                let traced = matches!(source, FieldSource::Path(_) | FieldSource::Constant | FieldSource::Default);
                // These two are never null.
                let always = matches!(field, Field::Status | Field::Modality);
                assert!(mapped == traced || always, "{field:?}: {source:?}");
            }
        }
    }
}
