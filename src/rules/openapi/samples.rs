//! Collects the examples and the id schemas of the configured providers for the API description.
//!
//! Examples come from the providers' example files, id schemas from their id patterns.

use crate::base::endpoints::{MAX_ID, ParameterType};
use crate::base::id_pattern;
use crate::base::operation::OperationId;
use crate::config::Config;
use crate::config::faults::Located;
use crate::config::provider::ProviderConfig;
use crate::rules::unified_id;
use serde_json::{Value, json};

/// A provider and the sessions of its examples.
pub(super) struct ProviderSamples<'c> {
    pub(super) name: &'c str,
    pub(super) has_agents: bool,
    config: &'c ProviderConfig,
    /// Sessions of the examples. The session of the example `get` is first.
    sessions: Vec<Value>,
}

/// The samples of all configured providers.
pub(super) struct Samples<'c>(Vec<ProviderSamples<'c>>);

impl<'c> Samples<'c> {
    pub(super) fn of(config: &'c Config) -> Self {
        let samples = |provider: &'c ProviderConfig| ProviderSamples {
            name: &provider.name.value,
            has_agents: provider.ids.accept.agent.is_some(),
            config: provider,
            sessions: sessions(config, &provider.name.value),
        };
        Self(config.providers.iter().map(samples).collect())
    }

    /// Returns a session of an example, of a provider with agents if there is one.
    pub(super) fn session(&self) -> Option<&Value> {
        let mut with_agents_first: Vec<_> = self.0.iter().collect();
        with_agents_first.sort_by_key(|provider| !provider.has_agents);
        with_agents_first.into_iter().find_map(|provider| provider.sessions.first())
    }

    /// Returns the names of the providers for which `filter` returns `true`.
    pub(super) fn names(&self, filter: impl Fn(&ProviderSamples<'_>) -> bool) -> Vec<&'c str> {
        self.0.iter().filter(|provider| filter(provider)).map(|provider| provider.name).collect()
    }

    /// Returns an example id of each provider that has one. With `ended`, it is the id of a session that has ended, so
    /// that a watch of it ends too.
    pub(super) fn ids(&self, value_type: ParameterType, ended: bool) -> Vec<(&'c str, String)> {
        let over = |session: &&Value| !ended || matches!(session["status"].as_str(), Some("ended" | "expired"));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let id = |provider: &ProviderSamples<'_>, session: &Value| match value_type {
            ParameterType::Session | ParameterType::AnyId => text(&session["id"]),
            ParameterType::OwnSession if provider.has_agents => text(&session["provider_session_id"]),
            ParameterType::OwnAgent if provider.has_agents => text(&session["agent"]["id"]),
            ParameterType::Agent if provider.has_agents => {
                text(&session["agent"]["id"]).map(|agent| format!("{}:{agent}", provider.name))
            }
            _ => None,
        };
        let example = |provider: &ProviderSamples<'c>| {
            let session = provider.sessions.iter().find(over)?;
            Some((provider.name, id(provider, session)?))
        };
        self.0.iter().filter_map(example).collect()
    }

    /// Returns the JSON Schema of an id. If a provider's pattern cannot be written in JSON Schema, any text is valid.
    pub(super) fn id_schema(&self, value_type: ParameterType) -> Value {
        let forms: Option<Vec<Vec<Value>>> = self.0.iter().map(|provider| provider.forms(value_type)).collect();
        let mut schema = json!({ "type": "string", "minLength": 1, "maxLength": MAX_ID });
        if let Some(forms) = forms.map(|forms| forms.concat()).filter(|forms| !forms.is_empty()) {
            schema["anyOf"] = forms.into();
        }
        schema
    }
}

impl ProviderSamples<'_> {
    /// Returns the schemas of the provider's ids. `None` if a pattern cannot be written in JSON Schema.
    fn forms(&self, value_type: ParameterType) -> Option<Vec<Value>> {
        let (recognise, accept) = (&self.config.ids.recognise, &self.config.ids.accept);
        let takes = |kind| self.config.operations.iter().any(|(operation, _)| operation.id_kind() == kind);
        let schema = |pattern: String| json!({ "title": self.name, "pattern": pattern });
        let mut forms = Vec::new();
        match value_type {
            ParameterType::Session if takes(OperationId::Session) => {
                let session = in_unified_id(accept.session.as_ref(), true)?;
                if self.has_agents {
                    let agent = in_unified_id(accept.agent.as_ref(), false)?;
                    forms.push(schema(format!("^{}:{agent}:{session}$", self.name)));
                } else {
                    forms.push(schema(format!("^{}:{session}$", self.name)));
                    if recognise.session.is_some() {
                        let recognised = without_anchors(recognise.session.as_ref())?;
                        let both = [format!("^{recognised}$"), format!("^{session}$")];
                        let both = both.map(|pattern| json!({ "pattern": pattern }));
                        forms.push(json!({ "title": self.name, "allOf": both }));
                    }
                }
            }
            ParameterType::OwnSession if takes(OperationId::Session) && self.has_agents => {
                forms.push(schema(format!("^{}$", without_anchors(accept.session.as_ref())?)));
            }
            ParameterType::OwnAgent if self.has_agents => {
                forms.push(schema(format!("^{}$", without_anchors(accept.agent.as_ref())?)));
            }
            ParameterType::Agent if takes(OperationId::Agent) && self.has_agents => {
                forms.push(schema(format!("^({}:)?{}$", self.name, in_unified_id(accept.agent.as_ref(), true)?)));
            }
            _ => {}
        }
        Some(forms)
    }
}

/// Returns the pattern of an id as a part of a unified id. `None` if the pattern is not for the whole id, or if the part can
/// have escapes.
fn in_unified_id(pattern: Option<&Located<String>>, is_last: bool) -> Option<String> {
    let escaped = &unified_id::RESERVED[usize::from(is_last)..];
    let pattern = pattern.filter(|pattern| !id_pattern::can_contain(&pattern.value, escaped));
    without_anchors(pattern)
}

/// Returns a pattern without its anchors, for use inside a longer pattern. `None` if it is not anchored at both ends,
/// or if ECMA-262, and therefore JSON Schema, does not have its syntax.
fn without_anchors(at: Option<&Located<String>>) -> Option<String> {
    let inner = at?.value.strip_prefix('^')?.strip_suffix('$')?;
    let (mut depth, mut in_class, mut escaped) = (0_usize, false, false);
    for c in inner.chars() {
        match c {
            _ if escaped => {
                if matches!(c, 'A' | 'z' | 'p' | 'P' | 'x' | 'u' | 'U') {
                    return None;
                }
                escaped = false;
                continue;
            }
            '\\' => escaped = true,
            '[' if in_class => return None,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth = depth.checked_sub(1)?,
            '|' if depth == 0 && !in_class => return None,
            '^' | '$' if !in_class => return None,
            _ => {}
        }
    }
    let portable = !inner.contains("(?") && !inner.contains("&&") && !escaped;
    portable.then(|| inner.to_owned())
}

/// Returns the sessions of a provider's examples. The session of the example `get` is first.
fn sessions(config: &Config, provider: &str) -> Vec<Value> {
    let mut all: Vec<_> = config.examples.iter().filter(|example| example.provider == provider).collect();
    all.sort_by_key(|example| !example.native_location.file.ends_with("/get.native.json"));
    let read = all.into_iter().filter_map(|example| serde_json::from_str::<Value>(&example.unified).ok());
    read.filter(|session| session["id"].is_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::Location;

    #[test]
    fn anchored_patterns_can_be_used_inside_longer_ones() {
        let read = |pattern: &str| {
            let at = Located { value: pattern.to_owned(), location: Location::top(&"x".into()) };
            without_anchors(Some(&at))
        };
        assert_eq!(read("^[a-z^$|(]{1,5}$").as_deref(), Some("[a-z^$|(]{1,5}"));
        assert_eq!(read(r"^(sess_|\|[0-9]+)\.x$").as_deref(), Some(r"(sess_|\|[0-9]+)\.x"));
        for other in ["^a", "a$", "^a|b$", "^a$|^b$", "^(?i)a$", r"^\p{L}$", r"^a\$", "^[a-z&&[^b]]$"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
