//! Parses a YAML file into a tree in which every node has its line and column.
//!
//! Scalars stay text: the decoder of a field decides its type. After a syntax fault the rest of the file is missing
//! from the tree.

use super::faults::{Faults, Location};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::sync::Arc;

/// The deepest nesting; protects the stack.
const MAX_DEPTH: usize = 32;

/// A value with its location.
#[derive(Debug, Clone)]
pub struct Node {
    /// The location of its first character.
    pub location: Location,
    /// The value.
    pub value: Value,
}

/// The value of a node.
#[derive(Clone)]
pub enum Value {
    /// No value, `~` or `null`.
    Null,
    /// A scalar with its environment variables replaced.
    Text(String),
    /// `[a, b]`
    List(Vec<Node>),
    /// `{a: b}` in the order of the file. Keys are unique.
    Map(Vec<(TreeKey, Node)>),
    /// No value from a file: a decoder that reads it records in the schema what it accepts.
    Probe,
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Probe => f.write_str("probe"),
            // The text can be a secret.
            Value::Text(text) => write!(f, "text of {} bytes", text.len()),
            Value::List(items) => f.debug_list().entries(items).finish(),
            Value::Map(members) => {
                f.debug_map().entries(members.iter().map(|(key, value)| (&key.name, value))).finish()
            }
        }
    }
}

/// A key of a mapping.
#[derive(Debug, Clone)]
pub struct TreeKey {
    /// The key.
    pub name: String,
    /// Its location.
    pub location: Location,
}

/// Returns the value of an environment variable.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The tree of a file.
#[derive(Debug)]
pub struct Document {
    /// The top node; `None` if the file is empty.
    pub root: Option<Node>,
    /// Whether the tree ends at a syntax fault. Then a missing key can be in the rest of the file.
    pub truncated: bool,
}

/// Parses the text of a file.
pub fn parse(file: &Arc<str>, text: &str, env: Env<'_>, faults: &mut Faults) -> Document {
    let mut reader = TreeReader { parser: Parser::new_from_str(text), file, env, faults, truncated: false };
    let root = reader.document();
    Document { root, truncated: reader.truncated }
}

struct TreeReader<'t, 'f> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    file: &'f Arc<str>,
    env: Env<'f>,
    faults: &'f mut Faults,
    truncated: bool,
}

impl<'t> TreeReader<'t, '_> {
    fn next(&mut self) -> Option<(Event<'t>, Location)> {
        if self.truncated {
            return None;
        }
        match self.parser.next()? {
            Ok((event, span)) => Some((event, self.location(span))),
            Err(error) => {
                let mark = error.marker();
                let location = Location { file: self.file.clone(), line: mark.line(), column: mark.col() + 1 };
                self.stop(&location, format!("YAML syntax: {}", error.info()));
                None
            }
        }
    }

    fn location(&self, span: Span) -> Location {
        Location { file: self.file.clone(), line: span.start.line(), column: span.start.col() + 1 }
    }

    fn stop(&mut self, location: &Location, message: String) {
        self.faults.add(location, message);
        self.truncated = true;
    }

    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        while let Some((event, location)) = self.next() {
            match event {
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    self.stop(&location, "second YAML document; a configuration file has only one".into());
                }
                Event::DocumentStart(_) => {}
                other => root = Some(self.node(other, location, 0)),
            }
        }
        root
    }

    fn node(&mut self, event: Event<'t>, location: Location, depth: usize) -> Node {
        let value = match event {
            _ if depth > MAX_DEPTH => {
                self.stop(&location, format!("nested too deeply; at most {MAX_DEPTH} levels"));
                Value::Null
            }
            Event::Scalar(text, style, _, _) => self.scalar(&text, style, &location),
            Event::SequenceStart(..) => self.list(depth),
            Event::MappingStart(..) => self.map(depth),
            Event::Alias(_) => {
                self.stop(&location, "YAML aliases (*name) are not supported; write the value out".into());
                Value::Null
            }
            _ => Value::Null,
        };
        Node { location, value }
    }

    fn list(&mut self, depth: usize) -> Value {
        let mut items = Vec::new();
        while let Some((event, location)) = self.next() {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            items.push(self.node(event, location, depth + 1));
        }
        // The first items are not the list that the user wrote. The first keys of a mapping are valid on their own.
        if self.truncated { Value::Null } else { Value::List(items) }
    }

    fn map(&mut self, depth: usize) -> Value {
        let mut entries: Vec<(TreeKey, Node)> = Vec::new();
        while let Some((event, location)) = self.next() {
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let Event::Scalar(name, ..) = event else {
                self.stop(&location, "a key must be a single value, not a list or mapping".into());
                break;
            };
            let key = TreeKey { name: name.into_owned(), location };
            let Some((event, location)) = self.next() else { break };
            let node = self.node(event, location, depth + 1);
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.name == key.name) {
                let message = format!("duplicate key {:?}; the first one is on line {}", key.name, first.location.line);
                self.faults.add(&key.location, message);
            } else {
                entries.push((key, node));
            }
        }
        Value::Map(entries)
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, location: &Location) -> Value {
        if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null") {
            return Value::Null;
        }
        match expand(text, self.env) {
            Ok(text) => Value::Text(text),
            Err(message) => {
                self.faults.add(location, message);
                Value::Text(text.to_owned())
            }
        }
    }
}

/// Replaces `${NAME}` and `${NAME:-default}` by the variable or the default. As in a shell, the default also replaces an
/// empty variable.
fn expand(text: &str, env: Env<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner.find('}').ok_or_else(|| format!("{text:?} has ${{ without a closing }}"))?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("${{{name}}} is not a variable name; write ${{NAME}} or ${{NAME:-default}}"));
        }
        match (env(name), default) {
            (Some(value), Some(default)) if value.is_empty() => out.push_str(default),
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
                ));
            }
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Document, Vec<String>) {
        let mut faults = Faults::default();
        let env = |name: &str| (name == "SET").then(|| "value".to_owned()).or((name == "EMPTY").then(String::new));
        let document = parse(&"f.yaml".into(), text, &env, &mut faults);
        (document, faults.sorted().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn variables_and_defaults_are_replaced() {
        let env = |name: &str| (name == "SET").then(|| "value".to_owned()).or((name == "EMPTY").then(String::new));
        assert_eq!(expand("a ${SET} b ${NOT:-c:-d} $x $.y", &env).unwrap(), "a value b c:-d $x $.y");
        assert_eq!(expand("${EMPTY}|${EMPTY:-x}|${NOT:-}", &env).unwrap(), "|x|");
        assert!(expand("${NOT}", &env).unwrap_err().contains("NOT is not set"));
        assert!(expand("${oops", &env).unwrap_err().contains("without a closing }"));
    }

    #[test]
    fn the_tree_keeps_what_precedes_a_syntax_fault() {
        let (document, faults) = read("a: 1\nb: [1, 2\nc: 3\n");
        assert!(document.truncated);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("f.yaml:3:") && faults[0].contains("YAML syntax"), "{faults:?}");
        let Some(Node { value: Value::Map(entries), .. }) = document.root else { panic!("no map") };
        assert_eq!(entries[0].0.name, "a");
    }

    #[test]
    fn a_duplicate_key_an_alias_and_an_unset_variable_are_faults_with_their_location() {
        let (_, faults) = read("a: 1\nb: 2\na: ${NOT}\n");
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("f.yaml:3:1: duplicate key \"a\""), "{faults:?}");
        assert!(faults[1].starts_with("f.yaml:3:4: the environment variable NOT"), "{faults:?}");
        assert!(read("a: &x 1\nb: *x\n").1[0].contains("aliases"));
        assert!(read("a: 1\n---\nb: 1\n").1[0].contains("second YAML document"));
    }
}
