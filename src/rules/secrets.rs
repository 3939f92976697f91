//! Finds and removes the secret members of JSON from a provider, wherever they are.
//!
//! A secret is found by the names in its path, in their order. Other names and arrays may stand between them, because a
//! provider can wrap a session, list it, or send it in an error. Names are compared without case: some clients do so.

use crate::base::json;
use crate::base::json_text::JsonText;
use crate::base::jsonpath::JsonPath;
use serde_json::Value;

/// The paths of all secret members.
#[derive(Debug, Default)]
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
    /// Returns the object or array that is written in this string.
    fn embedded(&self) -> Option<Value>;
    /// Returns whether this is an object or an array.
    fn has_children(&self) -> bool;
    /// Calls `keep` for each element, without a name, and for each member. Removes those for which it returns `false`.
    fn visit(&mut self, keep: &mut dyn FnMut(Option<&str>, &mut Self) -> bool);
}

impl Tree for Value {
    fn is_text(&self) -> bool {
        self.as_str().is_some_and(|text| !text.is_empty())
    }

    fn embedded(&self) -> Option<Value> {
        let text = self.as_str()?;
        if !text.trim_start().starts_with(['{', '[']) {
            return None;
        }
        json::parse(text.as_bytes()).ok()
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

    fn embedded(&self) -> Option<Value> {
        let may_be_json =
            matches!(self, JsonText::Scalar(raw @ [b'"', ..]) if raw.iter().any(|byte| b"{[\\".contains(byte)));
        may_be_json.then(|| self.to_value().embedded()).flatten()
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
    /// can contain the secret, and a string that contains JSON with a secret member. A scalar whose names are exactly those of a path in `visible` stays.
    pub(crate) fn remove_from<T: Tree>(&self, tree: &mut T, visible: &[Vec<&str>]) {
        self.remove_below(tree, &self.start, None, visible);
    }

    fn remove_below<T: Tree>(&self, tree: &mut T, found: &[usize], trail: Option<&Trail<'_>>, visible: &[Vec<&str>]) {
        tree.visit(&mut |name, child| {
            let Some(name) = name else {
                self.remove_below(child, found, trail, visible);
                return !self.are_embedded(child, found);
            };
            let trail = Trail { name, parent: trail };
            let (found_here, is_secret) = self.step(found, name, child.is_text());
            if is_secret && (child.has_children() || !visible.iter().any(|names| Trail::is(Some(&trail), names))) {
                return false;
            }
            let found = found_here.as_deref().unwrap_or(found);
            self.remove_below(child, found, Some(&trail), visible);
            !self.are_embedded(child, found)
        });
    }

    /// Returns how many names of each path have been found with this one, if it is a name of a path, and whether its
    /// value is secret.
    fn step(&self, found: &[usize], name: &str, is_text: bool) -> (Option<Vec<usize>>, bool) {
        let mut found_here: Option<Vec<usize>> = None;
        for (path, names) in self.paths.iter().enumerate() {
            let count = found[path];
            let mut containers = names[..names.len() - 1].iter().take(count + 1);
            if is_text && containers.any(|container| container.eq_ignore_ascii_case(name)) {
                return (None, true);
            }
            if names[count].eq_ignore_ascii_case(name) {
                if count + 1 == names.len() {
                    return (None, true);
                }
                found_here.get_or_insert_with(|| found.to_vec())[path] += 1;
            }
        }
        (found_here, false)
    }

    /// Returns whether a value contains a secret member.
    #[must_use]
    pub(crate) fn are_in(&self, value: &Value) -> bool {
        self.are_below(value, &self.start)
    }

    fn are_below(&self, value: &Value, found: &[usize]) -> bool {
        match value {
            Value::Array(items) => items.iter().any(|item| self.are_below(item, found)),
            Value::Object(members) => members.iter().any(|(name, value)| {
                let (found_here, is_secret) = self.step(found, name, value.is_text());
                is_secret || self.are_below(value, found_here.as_deref().unwrap_or(found))
            }),
            Value::String(_) => self.are_embedded(value, found),
            _ => false,
        }
    }

    /// Returns whether a string contains JSON with a secret member.
    fn are_embedded(&self, tree: &impl Tree, found: &[usize]) -> bool {
        tree.is_text() && tree.embedded().is_some_and(|value| self.are_below(&value, found))
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
