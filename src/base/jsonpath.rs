//! Compiles and evaluates JSONPath expressions (RFC 9535).
//!
//! A path that consists of names and indexes only is called plain, and is followed directly. All others are evaluated
//! by `jsonpath-rust`.

use crate::base::json_text::JsonText;
use jsonpath_rust::parser::model::{JpQuery, Segment, Selector};
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::js_path_process;
use serde_json::Value;
use std::fmt;

/// A compiled path.
#[derive(Clone)]
pub struct JsonPath {
    text: String,
    compiled: Compiled,
}

#[derive(Clone)]
enum Compiled {
    Plain(Vec<PathStep>),
    Query(JpQuery),
}

#[derive(Clone)]
enum PathStep {
    Name(String),
    /// A negative index counts from the end.
    Index(i64),
}

impl fmt::Debug for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Paths are equal if their texts are equal.
impl PartialEq for JsonPath {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for JsonPath {}

impl JsonPath {
    /// Compiles a path.
    ///
    /// # Errors
    /// What is wrong with the path, in one line for the author of the configuration.
    pub fn compile(text: &str) -> Result<Self, String> {
        if !text.starts_with('$') {
            return Err(format!("{text:?} is not a JSONPath: it must start with $, as in $.created_at"));
        }
        let query =
            parse_json_path(text).map_err(|e| format!("{text:?} is not a JSONPath: {}", last_line(&e.to_string())))?;
        let compiled = plain_steps(&query).map_or(Compiled::Query(query), Compiled::Plain);
        Ok(Self { text: text.to_owned(), compiled })
    }

    /// Returns the path as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the first value at this path.
    #[must_use]
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match &self.compiled {
            Compiled::Plain(steps) => steps.iter().try_fold(value, |at, step| match step {
                PathStep::Name(name) => at.as_object()?.get(name),
                PathStep::Index(index) => {
                    let array = at.as_array()?;
                    array.get(position(*index, array.len())?)
                }
            }),
            Compiled::Query(query) => {
                js_path_process(query, value).ok()?.into_iter().next().map(jsonpath_rust::query::QueryRef::val)
            }
        }
    }

    /// Returns the value at a plain path in a JSON text. `None` if there is no value or the path is not plain.
    #[must_use]
    pub(crate) fn first_text<'j, 't>(&self, text: &'j JsonText<'t>) -> Option<&'j JsonText<'t>> {
        let Compiled::Plain(steps) = &self.compiled else { return None };
        steps.iter().try_fold(text, |at, step| match (step, at) {
            (PathStep::Name(name), _) => at.member(name),
            (PathStep::Index(index), JsonText::Array(items)) => items.get(position(*index, items.len())?),
            (PathStep::Index(_), _) => None,
        })
    }

    /// Returns the value at a plain path in a JSON text, to change it.
    #[must_use]
    pub(crate) fn first_text_mut<'j, 't>(&self, text: &'j mut JsonText<'t>) -> Option<&'j mut JsonText<'t>> {
        let Compiled::Plain(steps) = &self.compiled else { return None };
        steps.iter().try_fold(text, |at, step| match (step, at) {
            (PathStep::Name(name), at) => at.member_mut(name),
            (PathStep::Index(index), JsonText::Array(items)) => {
                let position = position(*index, items.len())?;
                items.get_mut(position)
            }
            (PathStep::Index(_), _) => None,
        })
    }

    /// Returns the names of a plain path, without its indexes.
    #[must_use]
    pub(crate) fn names(&self) -> Option<Vec<&str>> {
        let Compiled::Plain(steps) = &self.compiled else { return None };
        let names = steps.iter().filter_map(|step| match step {
            PathStep::Name(name) => Some(name.as_str()),
            PathStep::Index(_) => None,
        });
        Some(names.collect())
    }

    /// Returns whether the path consists of names and indexes only.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        matches!(self.compiled, Compiled::Plain(_))
    }

    /// Returns whether the path is plain and names a member of an object, which can be removed.
    #[must_use]
    pub fn names_member(&self) -> bool {
        matches!(&self.compiled, Compiled::Plain(steps) if matches!(steps.last(), Some(PathStep::Name(_))))
    }

    /// Returns whether the value at one path can contain the value at the other. `true` if a path is not plain.
    #[must_use]
    pub fn may_overlap(&self, other: &Self) -> bool {
        match (&self.compiled, &other.compiled) {
            (Compiled::Plain(one), Compiled::Plain(another)) => {
                one.iter().zip(another).all(|(one, another)| match (one, another) {
                    (PathStep::Name(one), PathStep::Name(another)) => one == another,
                    // An index from the start and one from the end can name the same element.
                    (PathStep::Index(_), PathStep::Index(_)) => true,
                    _ => false,
                })
            }
            _ => true,
        }
    }
}

fn position(index: i64, length: usize) -> Option<usize> {
    match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?),
    }
}

fn plain_steps(query: &JpQuery) -> Option<Vec<PathStep>> {
    let step = |segment: &Segment| match segment {
        Segment::Selector(Selector::Name(name)) => Some(PathStep::Name(unquoted(name)?)),
        Segment::Selector(Selector::Index(index)) => Some(PathStep::Index(*index)),
        _ => None,
    };
    query.segments.iter().map(step).collect()
}

/// Removes the quotes that the parser leaves around a name. Returns `None` for a name with escapes, which the library
/// evaluates.
fn unquoted(name: &str) -> Option<String> {
    if name.contains('\\') {
        return None;
    }
    let inner = ['\'', '"'].iter().find_map(|q| name.strip_prefix(*q)?.strip_suffix(*q));
    Some(inner.unwrap_or(name).to_owned())
}

/// Returns the last line of the parser's error, which is a drawing over several lines.
fn last_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.next_back().unwrap_or("it cannot be parsed").trim_start_matches(['=', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn get(path: &str, value: &Value) -> Option<Value> {
        JsonPath::compile(path).unwrap().first(value).cloned()
    }

    #[test]
    fn paths_overlap_if_one_value_can_contain_the_other() {
        for (one, other, overlap) in [
            ("$.metadata.k", "$.metadata", true),
            ("$.metadata", "$.metadata.k", true),
            ("$.a", "$.a", true),
            ("$.a", "$", true),
            ("$.list[0].k", "$.list[-1]", true),
            ("$.ab", "$.a", false),
            ("$.a.b", "$.a.c", false),
            ("$.a[0]", "$.a['0']", false),
            ("$..x", "$.a", true),
        ] {
            let [one, other] = [one, other].map(|path| JsonPath::compile(path).unwrap());
            assert_eq!((one.may_overlap(&other), other.may_overlap(&one)), (overlap, overlap), "{one:?} {other:?}");
        }
    }

    #[test]
    fn plain_paths_and_queries_find_the_same_values() {
        let value = json!({"a": {"b": [10, {"c d": 20}]}, "x": null});
        assert!(JsonPath::compile("$.a.b[1]['c d']").unwrap().names_member());
        assert!(
            !JsonPath::compile("$.a.b[1]").unwrap().names_member() && !JsonPath::compile("$").unwrap().names_member()
        );
        assert_eq!(get("$.a.b[1]['c d']", &value), Some(json!(20)));
        assert_eq!(get("$.a.b[-2]", &value), Some(json!(10)));
        assert_eq!(get("$.a.b[-3]", &value), None);
        assert_eq!(get("$.x", &value), Some(Value::Null));
        assert_eq!(get("$.x.y", &value), None);
        assert_eq!(get("$", &value), Some(value.clone()));
        assert!(!JsonPath::compile("$..['c d']").unwrap().names_member());
        assert_eq!(get("$..['c d']", &value), Some(json!(20)));
        assert_eq!(get("$.a.b[?@ == 10]", &value), Some(json!(10)));
    }

    #[test]
    fn a_plain_path_finds_the_same_value_in_a_json_text() {
        let value = json!({"a": {"b": [10, {"c d": 20}]}, "x": null});
        let text = value.to_string();
        let text = JsonText::parse(text.as_bytes()).unwrap();
        for path in ["$", "$.a.b[1]['c d']", "$.a.b[-2]", "$.a.b[-3]", "$.a[0]", "$.x", "$.x.y", "$.a.b.c"] {
            let path = JsonPath::compile(path).unwrap();
            assert_eq!(path.first_text(&text).map(JsonText::to_value).as_ref(), path.first(&value), "{path:?}");
        }
        let names = |path: &str| JsonPath::compile(path).unwrap().names().map(|names| names.join("/"));
        assert_eq!((names("$.a[0]['b c']"), names("$"), names("$..a")), (Some("a/b c".into()), Some("".into()), None));
    }

    #[test]
    fn the_error_of_an_invalid_path_is_one_line() {
        for bad in ["created_at", "$.a[", "$.[", "$['a", ""] {
            let error = JsonPath::compile(bad).unwrap_err();
            assert!(error.contains("is not a JSONPath") && !error.contains('\n'), "{error}");
        }
    }
}
