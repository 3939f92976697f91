//! A JSONPath (RFC 9535), compiled once.
//!
//! A room of its own because mapping, lists and error rules all point into provider bodies. Paths of
//! names and indexes alone are walked directly; all others are asked of `jsonpath-rust`.

use jsonpath_rust::parser::model::{JpQuery, Segment, Selector};
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::js_path_process;
use serde_json::Value;
use std::fmt;

/// A compiled path.
#[derive(Clone)]
pub struct JsonPath {
    text: String,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Plain(Vec<Step>),
    Query(JpQuery),
}

#[derive(Clone)]
enum Step {
    Name(String),
    /// Negative counts from the end.
    Index(i64),
}

impl fmt::Debug for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Written alike is alike.
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
    /// What is wrong with it, for the config's author.
    pub fn compile(text: &str) -> Result<Self, String> {
        if !text.starts_with('$') {
            return Err(format!("{text:?} is not a JSONPath: it starts with $, as in $.created_at"));
        }
        let query =
            parse_json_path(text).map_err(|e| format!("{text:?} is not a JSONPath: {}", first_line(&e.to_string())))?;
        let way = plain(&query).map_or(Way::Query(query), Way::Plain);
        Ok(Self { text: text.to_owned(), way })
    }

    /// The path as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first value it finds.
    #[must_use]
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match &self.way {
            Way::Plain(steps) => steps.iter().try_fold(value, |at, step| match step {
                Step::Name(name) => at.as_object()?.get(name),
                Step::Index(index) => {
                    let array = at.as_array()?;
                    array.get(position(*index, array.len())?)
                }
            }),
            Way::Query(query) => {
                js_path_process(query, value).ok()?.into_iter().next().map(jsonpath_rust::query::QueryRef::val)
            }
        }
    }

    /// The value it names, to be changed; `None` too for a path that is not plain.
    pub fn first_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        let Way::Plain(steps) = &self.way else { return None };
        walk_mut(steps, value)
    }

    /// Whether it consists of names and indexes alone.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        matches!(self.way, Way::Plain(_))
    }

    /// Whether it names one member of an object, which can be taken out.
    #[must_use]
    pub fn names_a_member(&self) -> bool {
        matches!(&self.way, Way::Plain(steps) if matches!(steps.last(), Some(Step::Name(_))))
    }

    /// Whether one of the two may lead through what the other names. It is not known of paths that are not plain.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        match (&self.way, &other.way) {
            (Way::Plain(one), Way::Plain(another)) => {
                one.iter().zip(another).all(|(one, another)| match (one, another) {
                    (Step::Name(one), Step::Name(another)) => one == another,
                    // From the end or from the beginning: it may be the same.
                    (Step::Index(_), Step::Index(_)) => true,
                    _ => false,
                })
            }
            _ => true,
        }
    }

    /// Takes the member it names out of `value`. Does nothing for a path that is not plain, for an
    /// array's element, and for `$` itself.
    pub fn remove(&self, value: &mut Value) {
        let Way::Plain(steps) = &self.way else { return };
        let Some((Step::Name(last), parents)) = steps.split_last() else { return };
        if let Some(Value::Object(members)) = walk_mut(parents, value) {
            members.shift_remove(last);
        }
    }
}

fn walk_mut<'v>(steps: &[Step], value: &'v mut Value) -> Option<&'v mut Value> {
    steps.iter().try_fold(value, |at, step| match step {
        Step::Name(name) => at.as_object_mut()?.get_mut(name),
        Step::Index(index) => {
            let array = at.as_array_mut()?;
            let position = position(*index, array.len())?;
            array.get_mut(position)
        }
    })
}

fn position(index: i64, length: usize) -> Option<usize> {
    match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?),
    }
}

fn plain(query: &JpQuery) -> Option<Vec<Step>> {
    let step = |segment: &Segment| match segment {
        Segment::Selector(Selector::Name(name)) => Some(Step::Name(unquoted(name)?)),
        Segment::Selector(Selector::Index(index)) => Some(Step::Index(*index)),
        _ => None,
    };
    query.segments.iter().map(step).collect()
}

/// A name as the parser gives it: bare, or still in its quotes. One with escapes in it is left to
/// the library.
fn unquoted(name: &str) -> Option<String> {
    if name.contains('\\') {
        return None;
    }
    let inner = ['\'', '"'].iter().find_map(|q| name.strip_prefix(*q)?.strip_suffix(*q));
    Some(inner.unwrap_or(name).to_owned())
}

/// The parser's errors are drawings of several lines; a fault is one line.
fn first_line(text: &str) -> String {
    let mut useful = text.lines().map(str::trim).filter(|l| !l.is_empty());
    useful.next_back().unwrap_or("it cannot be parsed").trim_start_matches(['=', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn get(path: &str, value: &Value) -> Option<Value> {
        JsonPath::compile(path).unwrap().first(value).cloned()
    }

    #[test]
    fn paths_meet_where_one_may_lead_through_the_other() {
        for (one, other, meets) in [
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
            assert_eq!((one.meets(&other), other.meets(&one)), (meets, meets), "{one:?} {other:?}");
        }
    }

    #[test]
    fn plain_paths_and_queries_agree() {
        let value = json!({"a": {"b": [10, {"c d": 20}]}, "x": null});
        assert!(JsonPath::compile("$.a.b[1]['c d']").unwrap().names_a_member());
        assert!(
            !JsonPath::compile("$.a.b[1]").unwrap().names_a_member()
                && !JsonPath::compile("$").unwrap().names_a_member()
        );
        assert_eq!(get("$.a.b[1]['c d']", &value), Some(json!(20)));
        assert_eq!(get("$.a.b[-2]", &value), Some(json!(10)));
        assert_eq!(get("$.a.b[-3]", &value), None);
        assert_eq!(get("$.x", &value), Some(Value::Null));
        assert_eq!(get("$.x.y", &value), None);
        assert_eq!(get("$", &value), Some(value.clone()));
        assert!(!JsonPath::compile("$..['c d']").unwrap().names_a_member());
        assert_eq!(get("$..['c d']", &value), Some(json!(20)));
        assert_eq!(get("$.a.b[?@ == 10]", &value), Some(json!(10)));
    }

    #[test]
    fn removing_takes_one_member_and_keeps_the_order() {
        let mut value = json!({"a": 1, "room": {"url": "u", "token": "t", "name": "n"}, "z": 2});
        JsonPath::compile("$.room.token").unwrap().remove(&mut value);
        assert_eq!(value.to_string(), r#"{"a":1,"room":{"url":"u","name":"n"},"z":2}"#);
        JsonPath::compile("$.nothing.here").unwrap().remove(&mut value);
        JsonPath::compile("$").unwrap().remove(&mut value);
        assert_eq!(value["z"], 2);
    }

    #[test]
    fn a_bad_path_says_so_in_one_line() {
        for bad in ["created_at", "$.a[", "$.[", "$['a", ""] {
            let error = JsonPath::compile(bad).unwrap_err();
            assert!(error.contains("is not a JSONPath") && !error.contains('\n'), "{error}");
        }
    }
}
