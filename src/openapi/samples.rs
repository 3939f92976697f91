//! What the description shows and allows of the providers that are configured: their ids, as their own patterns have
//! them and as their own examples use them.
//!
//! Beside the description because providers are data: nothing of it is known before a configuration is.

use crate::config::Config;
use crate::config::faults::At;
use crate::config::provider::Provider;
use crate::endpoints::{MAX_ID, Takes};
use serde_json::{Value, json};

/// A provider, as far as it is described.
pub(super) struct Described<'c> {
    pub(super) name: &'c str,
    pub(super) has_agents: bool,
    config: &'c Provider,
    /// Sessions of its examples, the one named `get` first.
    sessions: Vec<Value>,
}

/// All that are configured.
pub(super) struct Samples<'c>(pub(super) Vec<Described<'c>>);

impl<'c> Samples<'c> {
    pub(super) fn of(config: &'c Config) -> Self {
        let described = |provider: &'c Provider| Described {
            name: &provider.name.value,
            has_agents: provider.ids.accept.agent.is_some(),
            config: provider,
            sessions: sessions(config, &provider.name.value),
        };
        Self(config.providers.iter().map(described).collect())
    }

    /// A session of an example, of a provider with agents if there is one.
    pub(super) fn session(&self) -> Option<&Value> {
        let mut with_agents_first: Vec<_> = self.0.iter().collect();
        with_agents_first.sort_by_key(|provider| !provider.has_agents);
        with_agents_first.into_iter().find_map(|provider| provider.sessions.first())
    }

    /// Names of the providers that fit.
    pub(super) fn names(&self, fits: impl Fn(&Described<'_>) -> bool) -> Vec<&'c str> {
        self.0.iter().filter(|provider| fits(provider)).map(|provider| provider.name).collect()
    }

    /// Ids that the examples use, by provider. Whoever watches wants to see an end: then sessions that have one.
    pub(super) fn ids(&self, takes: Takes, ended: bool) -> Vec<(&'c str, String)> {
        let over = |session: &&Value| !ended || matches!(session["status"].as_str(), Some("ended" | "expired"));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let id = |provider: &Described<'_>, session: &Value| match takes {
            Takes::Session | Takes::AnyId => text(&session["id"]),
            Takes::OwnSession if provider.has_agents => text(&session["provider_session_id"]),
            Takes::OwnAgent if provider.has_agents => text(&session["agent"]["id"]),
            Takes::Agent if provider.has_agents => {
                text(&session["agent"]["id"]).map(|agent| format!("{}:{agent}", provider.name))
            }
            _ => None,
        };
        let of = |provider: &Described<'c>| {
            let session = provider.sessions.iter().find(over)?;
            Some((provider.name, id(provider, session)?))
        };
        self.0.iter().filter_map(of).collect()
    }

    /// What may stand where an id does. Where a provider's patterns cannot be said in JSON Schema, any text.
    pub(super) fn id_schema(&self, takes: Takes) -> Value {
        let forms: Option<Vec<Vec<Value>>> = self.0.iter().map(|provider| provider.forms(takes)).collect();
        let mut schema = json!({ "type": "string", "minLength": 1, "maxLength": MAX_ID });
        if let Some(forms) = forms.map(|forms| forms.concat()).filter(|forms| !forms.is_empty()) {
            schema["anyOf"] = forms.into();
        }
        schema
    }
}

impl Described<'_> {
    /// The forms that an id of its can have; `None` where one cannot be said.
    fn forms(&self, takes: Takes) -> Option<Vec<Value>> {
        let (recognise, accept) = (&self.config.ids.recognise, &self.config.ids.accept);
        let (gets, lists) = (self.config.get_session.is_some(), self.config.list_sessions.is_some());
        let whole = |pattern: String| json!({ "title": self.name, "pattern": pattern });
        let mut forms = Vec::new();
        match takes {
            Takes::Session if gets => {
                let session = inner(accept.session.as_ref())?;
                if self.has_agents {
                    let agent = inner(accept.agent.as_ref())?;
                    forms.push(whole(format!("^{}:{agent}:{session}$", self.name)));
                } else {
                    forms.push(whole(format!("^{}:{session}$", self.name)));
                    if recognise.session.is_some() {
                        let known = inner(recognise.session.as_ref())?;
                        let both = [format!("^{known}$"), format!("^{session}$")];
                        let both = both.map(|pattern| json!({ "pattern": pattern }));
                        forms.push(json!({ "title": self.name, "allOf": both }));
                    }
                }
            }
            Takes::OwnSession if gets && self.has_agents => {
                forms.push(whole(format!("^{}$", inner(accept.session.as_ref())?)));
            }
            Takes::OwnAgent if self.has_agents => forms.push(whole(format!("^{}$", inner(accept.agent.as_ref())?))),
            Takes::Agent if lists && self.has_agents => {
                forms.push(whole(format!("^({}:)?{}$", self.name, inner(accept.agent.as_ref())?)));
            }
            _ => {}
        }
        Some(forms)
    }
}

/// A pattern of whole ids without its anchors, to stand in a longer one; `None` where it is not one, or has what
/// ECMA-262 (and so JSON Schema) does not.
fn inner(at: Option<&At<String>>) -> Option<String> {
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
    let plain = !inner.contains("(?") && !inner.contains("&&") && !escaped;
    plain.then(|| inner.to_owned())
}

/// Single sessions of a provider's examples, the one named `get` first.
fn sessions(config: &Config, provider: &str) -> Vec<Value> {
    let mut all: Vec<_> = config.examples.iter().filter(|example| example.provider == provider).collect();
    all.sort_by_key(|example| !example.native_place.file.ends_with("/get.native.json"));
    let read = all.into_iter().filter_map(|example| serde_json::from_str::<Value>(&example.unified).ok());
    read.filter(|session| session["id"].is_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::faults::Place;

    #[test]
    fn a_pattern_of_whole_ids_can_stand_in_a_longer_one() {
        let read = |pattern: &str| {
            let at = At { value: pattern.to_owned(), place: Place::top(&"x".into()) };
            inner(Some(&at))
        };
        assert_eq!(read("^[a-z^$|(]{1,5}$").as_deref(), Some("[a-z^$|(]{1,5}"));
        assert_eq!(read(r"^(sess_|\|[0-9]+)\.x$").as_deref(), Some(r"(sess_|\|[0-9]+)\.x"));
        for other in ["^a", "a$", "^a|b$", "^a$|^b$", "^(?i)a$", r"^\p{L}$", r"^a\$", "^[a-z&&[^b]]$"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
