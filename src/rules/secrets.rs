//! Finds and removes the secret members of JSON from a provider, wherever they are.
//!
//! A secret is found by the names in its path, in their order. Other names and arrays may stand between them, because a
//! provider can wrap a session, list it, or send it in an error. Names are compared without case: some clients do so.

use crate::base::json_text::JsonText;
use crate::base::jsonpath::JsonPath;
use crate::rules::secret_text;
use serde_json::Value;
use std::borrow::Cow;

/// How often JSON may be the string of other JSON. The names in a text that is encoded more often are found all the same.
const MAX_EMBEDDED: usize = 16;

/// The paths of all secret members.
#[derive(Debug, Default, Clone)]
pub(crate) struct SecretPaths {
    /// The names of each path.
    paths: Vec<Vec<String>>,
    /// How many names of each path have been found at the top of a body: none.
    start: Vec<usize>,
}

/// The names on the way to a value, without the positions in arrays. The last one comes first.
struct Trail<'t> {
    name: &'t str,
    parent: Option<&'t Trail<'t>>,
}

/// A place in a tree.
struct Place<'p> {
    /// How many names of each path stand above it.
    found: &'p [usize],
    trail: Option<&'p Trail<'p>>,
    /// It is in an array in the place of an object that has a secret member.
    in_container: bool,
}

/// What a name on the way to a value tells.
struct Step {
    /// How many names of each path have been found with this one, if it is a name of a path.
    found: Option<Vec<usize>>,
    /// It is the name of an object that has a secret member.
    is_container: bool,
    /// It is the name of a secret member.
    is_secret: bool,
}

impl Trail<'_> {
    fn is(trail: Option<&Self>, names: &[&str]) -> bool {
        match (trail, names.split_last()) {
            (None, None) => true,
            (Some(trail), Some((last, parents))) => trail.name == *last && Trail::is(trail.parent, parents),
            _ => false,
        }
    }
}

/// JSON from which members can be removed.
pub(crate) trait Tree {
    /// Returns whether this is a string that is not empty.
    fn is_text(&self) -> bool;
    /// Returns the bytes of a string, with the escapes that it has in its text, if it is one.
    fn text(&self) -> Option<&[u8]>;
    /// Returns the bytes of a string without its escapes, if it is one and if it may contain JSON.
    fn embedded(&self) -> Option<Cow<'_, [u8]>>;
    /// Returns whether this is an object or an array.
    fn has_children(&self) -> bool;
    /// Calls `keep` for each element, without a name, and for each member. Removes those for which it returns `false`.
    fn visit(&mut self, keep: &mut dyn FnMut(Option<&str>, &mut Self) -> bool);
}

impl Tree for Value {
    fn is_text(&self) -> bool {
        self.as_str().is_some_and(|text| !text.is_empty())
    }

    fn text(&self) -> Option<&[u8]> {
        self.as_str().map(str::as_bytes)
    }

    fn embedded(&self) -> Option<Cow<'_, [u8]>> {
        self.text().filter(|text| may_be_json(text)).map(Cow::Borrowed)
    }

    fn has_children(&self) -> bool {
        self.is_object() || self.is_array()
    }

    fn visit(&mut self, keep: &mut dyn FnMut(Option<&str>, &mut Self) -> bool) {
        match self {
            Value::Array(items) => items.retain_mut(|item| keep(None, item)),
            Value::Object(members) => members.retain(|name, value| keep(Some(name), value)),
            _ => {}
        }
    }
}

impl Tree for JsonText<'_> {
    fn is_text(&self) -> bool {
        JsonText::is_text(self)
    }

    fn text(&self) -> Option<&[u8]> {
        match self {
            JsonText::Scalar([b'"', text @ .., b'"']) => Some(text),
            _ => None,
        }
    }

    fn embedded(&self) -> Option<Cow<'_, [u8]>> {
        let JsonText::Scalar(raw) = self else { return None };
        let text = self.text().filter(|text| may_be_json(text))?;
        // A string that is not Unicode is read as it is.
        Some(serde_json::from_slice::<String>(raw).map_or(Cow::Borrowed(text), |text| Cow::Owned(text.into_bytes())))
    }

    fn has_children(&self) -> bool {
        !matches!(self, JsonText::Scalar(_))
    }

    fn visit(&mut self, keep: &mut dyn FnMut(Option<&str>, &mut Self) -> bool) {
        match self {
            JsonText::Array(items) => items.retain_mut(|item| keep(None, item)),
            JsonText::Object(members) => members.retain_mut(|member| keep(Some(&member.name), &mut member.value)),
            JsonText::Scalar(_) => {}
        }
    }
}

/// Returns whether a string may contain JSON with members, perhaps in a string of its own.
fn may_be_json(text: &[u8]) -> bool {
    text.iter().any(|byte| matches!(byte, b'{' | b'\\'))
}

impl SecretPaths {
    /// Takes the names of these paths. All are plain.
    #[must_use]
    pub(crate) fn new(paths: &[JsonPath]) -> Self {
        let names = paths.iter().filter_map(JsonPath::names).filter(|names| !names.is_empty());
        let paths: Vec<Vec<String>> = names.map(|names| names.into_iter().map(str::to_owned).collect()).collect();
        let start = vec![0; paths.len()];
        Self { paths, start }
    }

    /// Returns whether there are none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Removes all secret members. Also removes a string in the place of an object that has a secret member, because it
    /// can contain the secret, and a string or a name that contains JSON with a secret member, or may contain it. A scalar
    /// whose names are exactly those of a path in `visible` stays.
    pub(crate) fn remove_from<T: Tree>(&self, tree: &mut T, visible: &[Vec<&str>]) {
        self.remove_below(tree, &Place { found: &self.start, trail: None, in_container: false }, visible);
    }

    /// Removes the secret members below a place. Returns whether there were any.
    fn remove_below<T: Tree>(&self, tree: &mut T, place: &Place<'_>, visible: &[Vec<&str>]) -> bool {
        let mut removed = false;
        tree.visit(&mut |name, child| {
            let keep = match name {
                None => self.keep_element(child, place, visible, &mut removed),
                Some(name) => self.keep_member(name, child, place, visible, &mut removed),
            };
            removed |= !keep;
            keep
        });
        removed
    }

    fn keep_element<T: Tree>(&self, child: &mut T, at: &Place<'_>, visible: &[Vec<&str>], removed: &mut bool) -> bool {
        *removed |= self.remove_below(child, at, visible);
        !(at.in_container && child.is_text() || self.are_embedded(child, at.found))
    }

    fn keep_member<T: Tree>(
        &self,
        name: &str,
        child: &mut T,
        place: &Place<'_>,
        visible: &[Vec<&str>],
        removed: &mut bool,
    ) -> bool {
        let trail = Trail { name, parent: place.trail };
        let step = self.step(place.found, name);
        let is_secret = step.is_secret || step.is_container && child.is_text();
        if is_secret && (child.has_children() || !visible.iter().any(|names| Trail::is(Some(&trail), names))) {
            return false;
        }
        let found = step.found.as_deref().unwrap_or(place.found);
        let below = Place { found, trail: Some(&trail), in_container: step.is_container };
        *removed |= self.remove_below(child, &below, visible);
        !(self.are_embedded(child, found) || self.may_have_members(name.as_bytes(), place.found))
    }

    /// Reads a name on the way to a value.
    fn step(&self, found: &[usize], name: &str) -> Step {
        let mut step = Step { found: None, is_container: false, is_secret: false };
        for (path, names) in self.paths.iter().enumerate() {
            let count = found[path];
            let mut containers = names[..names.len() - 1].iter().take(count + 1);
            step.is_container |= containers.any(|container| container.eq_ignore_ascii_case(name));
            if names[count].eq_ignore_ascii_case(name) {
                if count + 1 == names.len() {
                    step.is_secret = true;
                } else {
                    step.found.get_or_insert_with(|| found.to_vec())[path] += 1;
                }
            }
        }
        step
    }

    /// Returns whether a value contains a secret member.
    #[must_use]
    pub(crate) fn are_in(&self, value: &Value) -> bool {
        self.are_below(value, &self.start, false)
    }

    /// Returns whether the value at these names contains a secret member, or may be part of one.
    #[must_use]
    pub(crate) fn are_in_value_at(&self, names: &[&str], value: &Value) -> bool {
        let mut found = self.start.clone();
        for name in names {
            let step = self.step(&found, name);
            if step.is_secret {
                return true;
            }
            found = step.found.unwrap_or(found);
        }
        self.are_below(value, &found, false)
    }

    fn are_below(&self, value: &Value, found: &[usize], in_container: bool) -> bool {
        match value {
            Value::Array(items) => {
                items.iter().any(|item| in_container && item.is_text() || self.are_below(item, found, in_container))
            }
            Value::Object(members) => members.iter().any(|(name, value)| {
                let step = self.step(found, name);
                step.is_secret
                    || step.is_container && value.is_text()
                    || self.may_have_members(name.as_bytes(), found)
                    || self.are_below(value, step.found.as_deref().unwrap_or(found), step.is_container)
            }),
            Value::String(_) => self.are_embedded(value, found),
            _ => false,
        }
    }

    /// Returns whether a string contains JSON with a secret member, or may contain it.
    fn are_embedded(&self, tree: &impl Tree, found: &[usize]) -> bool {
        let Some(text) = tree.text() else { return false };
        self.may_have_members(text, found)
            || tree.embedded().is_some_and(|text| self.are_in_json(&text, found, MAX_EMBEDDED))
    }

    /// Returns whether a text is JSON with a secret member. The text can be the string of another one, `levels` times.
    fn are_in_json(&self, text: &[u8], found: &[usize], levels: usize) -> bool {
        let Some(mut json) = JsonText::parse(text) else { return false };
        let place = Place { found, trail: None, in_container: false };
        match json.embedded() {
            Some(inner) => levels > 0 && self.are_in_json(&inner, found, levels - 1),
            None => self.remove_below(&mut json, &place, &[]),
        }
    }

    /// Returns whether a text may have all the members that are left of a path, or a string in the place of a container.
    fn may_have_members(&self, text: &[u8], found: &[usize]) -> bool {
        self.paths.iter().zip(found).any(|(path, found)| secret_text::may_have_members(text, path, *found))
    }

    /// Returns whether text that is not a JSON object may contain a secret: it names one, or it may be JSON in another
    /// form, such as a part of a body or UTF-16.
    #[must_use]
    pub(crate) fn may_be_in_text(&self, text: &[u8]) -> bool {
        let lower = text.to_ascii_lowercase();
        let names = self.paths.iter().filter_map(|names| names.last()).map(|name| name.to_ascii_lowercase());
        lower.iter().any(|byte| matches!(byte, b'{' | b'\\' | 0))
            || names.into_iter().any(|name| lower.windows(name.len().max(1)).any(|part| part == name.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secrets(paths: &[&str]) -> SecretPaths {
        SecretPaths::new(&paths.iter().map(|path| JsonPath::compile(path).unwrap()).collect::<Vec<_>>())
    }

    fn cut(paths: &[&str], value: &Value, visible: &[Vec<&str>]) -> Value {
        let secrets = secrets(paths);
        let (text, mut cut, mut out) = (value.to_string(), value.clone(), Vec::new());
        secrets.remove_from(&mut cut, visible);
        let mut tree = JsonText::parse(text.as_bytes()).unwrap();
        secrets.remove_from(&mut tree, visible);
        tree.write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), cut.to_string(), "both forms of JSON agree");
        assert!(visible.is_empty() || !cut.is_null());
        assert!(!visible.is_empty() || secrets.are_in(value) == (cut != *value), "{value}");
        cut
    }

    #[test]
    fn secrets_are_removed_wherever_they_are() {
        let paths = ["$.room.token", "$.key", "$.rooms[0].pin"];
        for (value, expected) in [
            (json!({"room": {"token": "t", "url": "u"}, "z": 1}), json!({"room": {"url": "u"}, "z": 1})),
            (json!({"a": [{"b": {"room": {"token": {"x": 1}}}}]}), json!({"a": [{"b": {"room": {}}}]})),
            (json!({"room": [{"token": "t"}, {"x": {"token": 1}}]}), json!({"room": [{}, {"x": {}}]})),
            (json!({"Room": {"TOKEN": "t"}, "KEY": [1]}), json!({"Room": {}})),
            (json!({"room": "token=t", "key": null}), json!({})),
            (json!({"room": "", "token": "t"}), json!({"room": "", "token": "t"})),
            (json!({"rooms": [{"pin": 1}, {"pin": 2}]}), json!({"rooms": [{}, {}]})),
            (json!([[{"key": 1, "k": 2}]]), json!([[{"k": 2}]])),
            (json!("key"), json!("key")),
            (json!({"room": {"room": "token=t", "a": 1}}), json!({"room": {"a": 1}})),
            (
                json!({"a": " {\"key\": 1}", "b": ["[{\"key\":1}]", "{}"], "c": "{key"}),
                json!({"b": ["{}"], "c": "{key"}),
            ),
            (json!({"room": {"a": "{\"token\": 1}"}, "a": "{\"token\":1}"}), json!({"room": {}, "a": "{\"token\":1}"})),
            (json!({"room": ["t", ["t", {"b": "u"}], 1]}), json!({"room": [[{"b": "u"}], 1]})),
            (json!({"a": "{\"key\":1,\"key\":2}", "b": "x {\"key\":1}"}), json!({})),
            (json!({"a": "\"{\\\"key\\\":1}\"", "b": ["{'key':1}", "{\"room\":\"t\"}"]}), json!({"b": []})),
            (json!({"{\"key\":1}": 1, "b": {"\"{\\\"key\\\":1}\"": 1}}), json!({"b": {}})),
            (json!({"a": "\"{\\\"room\\\":\\\"t\\\"}\"", "b": "\"key\""}), json!({"b": "\"key\""})),
        ] {
            assert_eq!(cut(&paths, &value, &[]), expected, "{value}");
        }
    }

    #[test]
    fn a_visible_path_keeps_its_scalar_and_only_at_its_own_place() {
        let visible = [vec!["next", "key"], vec!["key"]];
        let value = json!({"next": {"key": "n"}, "key": {"x": 1}, "a": {"next": {"key": "s"}}});
        assert_eq!(cut(&["$.key"], &value, &visible), json!({"next": {"key": "n"}, "a": {"next": {}}}));
    }

    #[test]
    fn text_that_names_a_secret_or_may_be_json_may_contain_one() {
        let secrets = secrets(&["$.room.token"]);
        for text in ["\"TOKEN\":1", "{}", "a\\u0074", "t\0o\0k\0"] {
            assert!(secrets.may_be_in_text(text.as_bytes()), "{text}");
        }
        for text in ["", "teapot", "<html><b>502</b></html>", "[1, 2]", "room"] {
            assert!(!secrets.may_be_in_text(text.as_bytes()), "{text}");
        }
    }
}
