//! From a provider's session to the unified one, by the rules of the provider's file.
//!
//! A room of its own because it is what Weir promises: one schema. It takes a parsed body and the
//! moment it came; it does no IO and knows no provider by name.

use crate::config::faults::{At, Faults};
use crate::config::provider;
use crate::jsonpath::JsonPath;
use crate::model::{FIELDS, Field, Kind, MODALITIES, Session, Status, Time, parse_time};
use serde_json::Value;
use std::sync::Arc;

/// A provider's rules, compiled.
#[derive(Debug)]
pub struct Mapping {
    provider: Arc<str>,
    has_agents: bool,
    rules: Vec<Rule>,
    secret_fields: Vec<Field>,
    secret_paths: Vec<JsonPath>,
}

#[derive(Debug)]
struct Rule {
    field: Field,
    from: Vec<JsonPath>,
    constant: Option<String>,
    values: Vec<(String, String)>,
    default: Option<String>,
}

/// A field that could not be taken from a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// Which.
    pub field: Field,
    /// Why.
    pub reason: Reason,
    /// Where it was looked for.
    pub path: String,
}

/// Why a field could not be taken; the metric's `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A required field is not there.
    Missing,
    /// There is something, of another type than the field's.
    WrongType,
    /// A word that the file's `values` do not have.
    UnknownValue,
}

impl Reason {
    /// The metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Missing => "missing",
            Reason::WrongType => "wrong_type",
            Reason::UnknownValue => "unknown_value",
        }
    }
}

/// How a field came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'m> {
    /// Taken from this path.
    Path(&'m JsonPath),
    /// Fixed by the file.
    Constant,
    /// The rule's default.
    Default,
    /// The file has no rule.
    NoRule,
    /// The rule found nothing.
    Nothing,
    /// The rule found something it cannot use.
    Unusable(Reason),
}

/// A field and the way to it, for people: `weir map`, `weir explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced<'m> {
    /// Which.
    pub field: Field,
    /// What came of it.
    pub found: Found<'m>,
    /// Paths tried, in their order, and what stood at each. What comes after one that was taken is not tried.
    pub tried: Vec<(&'m JsonPath, Stood)>,
    /// What the rule has besides paths.
    pub rule: Option<Written<'m>>,
}

/// What stood at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stood {
    /// Nothing, or `null`, which counts as nothing.
    Nothing {
        /// `null`.
        null: bool,
    },
    /// A value of this type, which was taken.
    Taken(&'static str),
    /// A value of this type, which was not, for this reason.
    Unusable(&'static str, Reason),
}

/// What a rule has besides paths, as its file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written<'m> {
    /// The one value that it always gives.
    pub constant: Option<&'m str>,
    /// Its table of the provider's words and ours.
    pub values: &'m [(String, String)],
    /// What it gives where it finds nothing.
    pub default: Option<&'m str>,
}

/// A value's type in JSON's words.
#[must_use]
pub fn type_of(value: &Value) -> &'static str {
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
    /// Compiles a provider's rules, reporting every fault.
    #[must_use]
    pub fn compile(config: &provider::Provider, faults: &mut Faults) -> Self {
        let mut secret_fields = Vec::new();
        let mut secret_paths = paths(&config.secrets, faults);
        for (path, at) in secret_paths.iter().zip(&config.secrets) {
            require_member(path, at, faults);
        }
        let mut rules = Vec::new();
        for (field, rule) in &config.session {
            let from = paths(&rule.from, faults);
            // A connection's token is one, whether the file says so or not.
            if rule.secret || *field == Field::ConnectionToken {
                secret_fields.push(*field);
                for (path, at) in from.iter().zip(&rule.from) {
                    require_member(path, at, faults);
                }
                secret_paths.extend(from.iter().cloned());
                if REQUIRED.contains(field) || *field == Field::Status {
                    faults.add(&rule.place, format!("{} cannot be secret", field.name()));
                }
            }
            rules.push(Rule {
                field: *field,
                from,
                constant: rule.constant.as_ref().map(|at| at.value.clone()),
                values: rule.values.iter().map(|(theirs, ours)| (theirs.clone(), ours.value.clone())).collect(),
                default: rule.default.as_ref().map(|at| at.value.clone()),
            });
        }
        for (field, rule) in &config.session {
            let shown = !secret_fields.contains(field) && field.kind() != Kind::Object;
            let secret = |at: &&At<String>| secret_paths.iter().any(|secret| secret.as_str() == at.value);
            for at in rule.from.iter().filter(secret).filter(|_| shown) {
                let (path, field) = (&at.value, field.name());
                faults
                    .add(&at.place, format!("{path:?} is secret, and {field} would show it: it can be one of the two"));
            }
        }
        let has_agents = config.ids.accept.agent.is_some();
        if has_agents && !rules.iter().any(|rule| rule.field == Field::AgentId) {
            faults.add(&config.name.place, "ids has agents, so session.agent.id is required: say where it is");
        }
        Self { provider: config.name.value.as_str().into(), has_agents, rules, secret_fields, secret_paths }
    }

    /// Fields that only a client with `reveal_secrets` sees.
    #[must_use]
    pub fn secret_fields(&self) -> &[Field] {
        &self.secret_fields
    }

    /// Whether any member of the provider's object is secret.
    #[must_use]
    pub fn has_secrets(&self) -> bool {
        !self.secret_paths.is_empty()
    }

    /// Whether anything secret may stand in an object field, or around it.
    #[must_use]
    pub fn has_secrets_in(&self, field: Field) -> bool {
        let mut from = self.rules.iter().filter(|rule| rule.field == field).flat_map(|rule| &rule.from);
        from.any(|from| self.secret_paths.iter().any(|secret| secret.meets(from)))
    }

    /// An object's value as it stands in a native session, which may have been cut since it was mapped.
    #[must_use]
    pub fn object<'v>(&self, field: Field, native: &'v Value) -> Option<&'v Value> {
        let rule = self.rules.iter().find(|rule| rule.field == field)?;
        rule.from.iter().filter_map(|path| path.first(native)).find(|value| value.is_object())
    }

    /// The provider's object without its secret members.
    #[must_use]
    pub fn without_secrets(&self, native: &Value) -> Value {
        let mut cut = native.clone();
        self.cut(&mut cut);
        cut
    }

    /// Takes the secret members out of a provider's object. `true` where there was one.
    pub fn cut(&self, native: &mut Value) -> bool {
        let found = self.secret_paths.iter().filter(|path| path.first(native).is_some()).count() > 0;
        self.secret_paths.iter().for_each(|path| path.remove(native));
        found
    }

    /// Maps one session that came at `now`. Optional fields that could not be taken are `null` and
    /// told to `misses`.
    ///
    /// # Errors
    /// The required field that is missing.
    pub fn map(&self, native: &Value, now: Time, misses: &mut Vec<Miss>) -> Result<Session, Miss> {
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
            match rule.take(native, |_, _| ()) {
                (Some(value), Found::Unusable(reason)) => {
                    misses.push(Miss { field: rule.field, reason, path: rule.wanted() });
                    session.set(rule.field, value);
                }
                (Some(value), _) => session.set(rule.field, value),
                (None, Found::Unusable(reason)) => misses.push(Miss { field: rule.field, reason, path: rule.wanted() }),
                (None, _) => {}
            }
        }
        self.finish(&mut session, now)?;
        Ok(session)
    }

    /// What is left once every rule has spoken: required fields, expiry, the unified id.
    fn finish(&self, session: &mut Session, now: Time) -> Result<(), Miss> {
        let text = |field: Field| {
            let missing = || Miss { field, reason: Reason::Missing, path: self.wanted(field) };
            session.values[field as usize].as_str().ok_or_else(missing)
        };
        let own = text(Field::ProviderSessionId)?;
        session.id = if self.has_agents {
            format!("{}:{}:{own}", self.provider, text(Field::AgentId)?)
        } else {
            format!("{}:{own}", self.provider)
        };
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

    fn wanted(&self, field: Field) -> String {
        self.rules.iter().find(|rule| rule.field == field).map_or_else(String::new, Rule::wanted)
    }

    /// For each field, in order: what became of it, and how. For people, not for the line.
    #[must_use]
    pub fn trace(&self, native: &Value) -> Vec<Traced<'_>> {
        FIELDS
            .iter()
            .map(|(field, ..)| {
                let mut tried = Vec::new();
                let Some(rule) = self.rules.iter().find(|rule| rule.field == *field) else {
                    return Traced { field: *field, found: Found::NoRule, tried, rule: None };
                };
                let (_, found) = rule.take(native, |path, stood| tried.push((path, stood)));
                Traced { field: *field, found, tried, rule: Some(rule.written()) }
            })
            .collect()
    }

    /// Whether a session cannot be named without this field.
    #[must_use]
    pub fn requires(&self, field: Field) -> bool {
        REQUIRED.contains(&field) && (field != Field::AgentId || self.has_agents)
    }
}

/// Without these a session cannot be named.
const REQUIRED: [Field; 2] = [Field::ProviderSessionId, Field::AgentId];

fn paths(texts: &[At<String>], faults: &mut Faults) -> Vec<JsonPath> {
    texts.iter().filter_map(|at| faults.keep(&at.place, JsonPath::compile(&at.value))).collect()
}

fn require_member(path: &JsonPath, at: &At<String>, faults: &mut Faults) {
    if !path.names_a_member() {
        let path = path.as_str();
        faults
            .add(&at.place, format!("{path:?} is secret, so it must name one member: names and indexes, a name last"));
    }
}

impl Rule {
    fn wanted(&self) -> String {
        self.from.iter().map(JsonPath::as_str).collect::<Vec<_>>().join(", ")
    }

    fn written(&self) -> Written<'_> {
        Written { constant: self.constant.as_deref(), values: &self.values, default: self.default.as_deref() }
    }

    /// The value and how it came about; each path tried is told to `tell`. `Unusable` may come with a value: the
    /// default.
    fn take<'m>(&'m self, native: &Value, mut tell: impl FnMut(&'m JsonPath, Stood)) -> (Option<Taken>, Found<'m>) {
        if let Some(constant) = &self.constant {
            return (Some(Taken::text(self.field, constant)), Found::Constant);
        }
        let mut unusable = None;
        for path in &self.from {
            match path.first(native) {
                found @ (None | Some(Value::Null)) => tell(path, Stood::Nothing { null: found.is_some() }),
                Some(value) => match self.read(value) {
                    Ok(taken) => {
                        tell(path, Stood::Taken(type_of(value)));
                        return (Some(taken), Found::Path(path));
                    }
                    Err(reason) => {
                        tell(path, Stood::Unusable(type_of(value), reason));
                        unusable = unusable.or(Some(reason));
                    }
                },
            }
        }
        let default = self.default.as_deref().map(|text| Taken::text(self.field, text));
        match (unusable, &default) {
            (Some(reason), _) => (default, Found::Unusable(reason)),
            (None, Some(_)) => (default, Found::Default),
            (None, None) => (None, Found::Nothing),
        }
    }

    fn read(&self, value: &Value) -> Result<Taken, Reason> {
        if self.values.is_empty() {
            return typed(self.field.kind(), value).ok_or(Reason::WrongType);
        }
        let word = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => return Err(Reason::WrongType),
        };
        let ours = self.values.iter().find(|(theirs, _)| *theirs == word).ok_or(Reason::UnknownValue)?;
        Ok(Taken::text(self.field, &ours.1))
    }
}

/// A value that was taken, and the moment that it names where it is a time.
#[derive(Debug)]
struct Taken {
    value: Value,
    time: Option<Time>,
}

impl From<Value> for Taken {
    fn from(value: Value) -> Self {
        Self { value, time: None }
    }
}

impl Taken {
    /// What the file says in so many words.
    fn text(field: Field, text: &str) -> Self {
        let time = (field.kind() == Kind::Time).then(|| parse_time(text)).flatten().map(|(_, time)| time);
        Self { value: text.into(), time }
    }
}

/// The value as the field's kind wants it.
fn typed(kind: Kind, value: &Value) -> Option<Taken> {
    let taken = match (kind, value) {
        (Kind::Id, Value::String(text)) => (!text.is_empty()).then(|| value.clone()),
        (Kind::Id, Value::Number(number)) => number.as_u64().map(|id| id.to_string().into()),
        (Kind::Text, Value::String(_)) => Some(value.clone()),
        // What is in it is written as it stands in the provider's object, once that is cut.
        (Kind::Object, Value::Object(_)) => Some(Value::Object(serde_json::Map::new())),
        (Kind::Status, Value::String(text)) => Status::parse(text).map(|status| status.as_str().into()),
        (Kind::Modality, Value::String(text)) => MODALITIES.contains(&text.as_str()).then(|| value.clone()),
        (Kind::Time, Value::String(text)) => {
            return parse_time(text).map(|(utc, time)| Taken { value: utc.into(), time: Some(time) });
        }
        (Kind::Number, Value::Number(number)) => number.as_f64().filter(|n| *n >= 0.0).map(|_| value.clone()),
        (Kind::Count, Value::Number(number)) => number.as_u64().map(|_| value.clone()),
        _ => None,
    };
    taken.map(Taken::from)
}

impl Session {
    fn set(&mut self, field: Field, Taken { value, time }: Taken) {
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

    fn rule(field: Field, from: &[&str]) -> Rule {
        let from = from.iter().map(|path| JsonPath::compile(path).unwrap()).collect();
        Rule { field, from, constant: None, values: Vec::new(), default: None }
    }

    fn mapping() -> Mapping {
        let words = |theirs: &str, ours: &str| (theirs.to_owned(), ours.to_owned());
        let rules = vec![
            rule(Field::ProviderSessionId, &["$.key", "$.id"]),
            Rule { constant: Some("text".into()), ..rule(Field::Modality, &[]) },
            rule(Field::Title, &["$.name", "$.label", "$.other"]),
            Rule {
                values: vec![words("true", "active")],
                default: Some("unknown".into()),
                ..rule(Field::Status, &["$.on"])
            },
            rule(Field::CreatedAt, &["$.made"]),
        ];
        let (secret_fields, secret_paths) = (Vec::new(), Vec::new());
        Mapping { provider: "p".into(), has_agents: false, rules, secret_fields, secret_paths }
    }

    #[test]
    fn a_trace_tells_every_path_tried_and_what_stood_there() {
        let mapping = mapping();
        let native = json!({ "key": null, "id": 7, "name": 5, "label": "l", "other": "o", "on": "maybe" });
        let all = mapping.trace(&native);
        let told = |field: Field| {
            let traced = &all[field as usize];
            let tried: Vec<_> = traced.tried.iter().map(|(path, stood)| (path.as_str(), *stood)).collect();
            (traced.found, tried)
        };
        let taken =
            |text: &str| Found::Path(mapping.rules.iter().flat_map(|r| &r.from).find(|p| p.as_str() == text).unwrap());
        assert_eq!(
            told(Field::ProviderSessionId),
            (taken("$.id"), vec![("$.key", Stood::Nothing { null: true }), ("$.id", Stood::Taken("number"))])
        );
        let wrong = Stood::Unusable("number", Reason::WrongType);
        assert_eq!(
            told(Field::Title),
            (taken("$.label"), vec![("$.name", wrong), ("$.label", Stood::Taken("string"))]),
            "what comes after is not tried"
        );
        let unknown = Stood::Unusable("string", Reason::UnknownValue);
        assert_eq!(told(Field::Status), (Found::Unusable(Reason::UnknownValue), vec![("$.on", unknown)]));
        assert_eq!(told(Field::CreatedAt), (Found::Nothing, vec![("$.made", Stood::Nothing { null: false })]));
        assert_eq!(told(Field::Modality), (Found::Constant, vec![]));
        assert_eq!(told(Field::Description), (Found::NoRule, vec![]));
        assert_eq!(all[Field::Status as usize].rule.unwrap().default, Some("unknown"));
        assert!(mapping.requires(Field::ProviderSessionId) && !mapping.requires(Field::AgentId));
        let default = mapping.trace(&json!({}));
        assert_eq!(default[Field::Status as usize].found, Found::Default);
    }

    #[test]
    fn what_is_traced_is_what_is_mapped() {
        let mapping = mapping();
        for native in
            [json!({ "id": "a", "name": "n" }), json!({ "key": "k", "made": "2024-01-15T12:00:00Z", "on": true })]
        {
            let mut misses = Vec::new();
            let session = mapping.map(&native, Time(0), &mut misses).unwrap();
            for Traced { field, found, .. } in mapping.trace(&native) {
                let has = !session.values[field as usize].is_null();
                let told = matches!(found, Found::Path(_) | Found::Constant | Found::Default);
                // These two are never null.
                let always = matches!(field, Field::Status | Field::Modality);
                assert!(has == told || always, "{field:?}: {found:?}");
            }
        }
    }
}
