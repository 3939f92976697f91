//! A YAML file as a tree in which every node knows its line and column.
//!
//! A room of its own because decoders that stop at the first fault cannot report all of them: the
//! tree is read once, then walked. Scalars stay text; the field that reads one decides its type.
//! A syntax fault hides only what stands behind it in the same file.

use super::faults::{Faults, Place};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::sync::Arc;

/// Deeper than any config of ours; protects the walk.
const MAX_DEPTH: usize = 32;

/// A node and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Clone)]
pub enum Value {
    /// Nothing written, `~` or `null`.
    Null,
    /// A scalar, its environment variables filled in.
    Text(String),
    /// `[a, b]`
    List(Vec<Node>),
    /// `{a: b}`, in order; keys are unique.
    Map(Vec<(Key, Node)>),
    /// Whatever is asked of it: not from a file, but to see what a decoder asks for.
    Any,
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Any => f.write_str("anything"),
            // It may be a secret, from the environment or written out.
            Value::Text(text) => write!(f, "text of {} bytes", text.len()),
            Value::List(items) => f.debug_list().entries(items).finish(),
            Value::Map(members) => {
                f.debug_map().entries(members.iter().map(|(key, value)| (&key.name, value))).finish()
            }
        }
    }
}

/// A mapping's key.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key.
    pub name: String,
    /// Where it stands.
    pub place: Place,
}

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A file's tree.
#[derive(Debug)]
pub struct Document {
    /// The top node; `None` for an empty file.
    pub root: Option<Node>,
    /// Whether a syntax fault hid the rest, so that what is missing may stand there.
    pub cut: bool,
}

/// Reads a file's text.
pub fn parse(file: &Arc<str>, text: &str, env: Env<'_>, faults: &mut Faults) -> Document {
    let mut reader = Reader { parser: Parser::new_from_str(text), file, env, faults, cut: false };
    let root = reader.document();
    Document { root, cut: reader.cut }
}

struct Reader<'t, 'f> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    file: &'f Arc<str>,
    env: Env<'f>,
    faults: &'f mut Faults,
    cut: bool,
}

impl<'t> Reader<'t, '_> {
    fn next(&mut self) -> Option<(Event<'t>, Place)> {
        if self.cut {
            return None;
        }
        match self.parser.next()? {
            Ok((event, span)) => Some((event, self.place(span))),
            Err(error) => {
                let mark = error.marker();
                let place = Place { file: self.file.clone(), line: mark.line(), column: mark.col() + 1 };
                self.stop(&place, format!("YAML syntax: {}", error.info()));
                None
            }
        }
    }

    fn place(&self, span: Span) -> Place {
        Place { file: self.file.clone(), line: span.start.line(), column: span.start.col() + 1 }
    }

    fn stop(&mut self, place: &Place, message: String) {
        self.faults.add(place, message);
        self.cut = true;
    }

    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        while let Some((event, place)) = self.next() {
            match event {
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    self.stop(&place, "a second YAML document; a config file holds one".into());
                }
                Event::DocumentStart(_) => {}
                other => root = Some(self.node(other, place, 0)),
            }
        }
        root
    }

    fn node(&mut self, event: Event<'t>, place: Place, depth: usize) -> Node {
        let value = match event {
            _ if depth > MAX_DEPTH => {
                self.stop(&place, format!("nested more than {MAX_DEPTH} deep"));
                Value::Null
            }
            Event::Scalar(text, style, _, _) => self.scalar(&text, style, &place),
            Event::SequenceStart(..) => self.list(depth),
            Event::MappingStart(..) => self.map(depth),
            Event::Alias(_) => {
                self.stop(&place, "YAML aliases (*name) are not supported; write the value out".into());
                Value::Null
            }
            _ => Value::Null,
        };
        Node { place, value }
    }

    fn list(&mut self, depth: usize) -> Value {
        let mut items = Vec::new();
        while let Some((event, place)) = self.next() {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            items.push(self.node(event, place, depth + 1));
        }
        // A list that was cut short is not the list that was meant; a mapping still says something.
        if self.cut { Value::Null } else { Value::List(items) }
    }

    fn map(&mut self, depth: usize) -> Value {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        while let Some((event, place)) = self.next() {
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let Event::Scalar(name, ..) = event else {
                self.stop(&place, "a key must be a plain word".into());
                break;
            };
            let key = Key { name: name.into_owned(), place };
            let Some((event, place)) = self.next() else { break };
            let node = self.node(event, place, depth + 1);
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.name == key.name) {
                let message = format!("{:?} stands here twice; the first is on line {}", key.name, first.place.line);
                self.faults.add(&key.place, message);
            } else {
                entries.push((key, node));
            }
        }
        Value::Map(entries)
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, place: &Place) -> Value {
        if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null") {
            return Value::Null;
        }
        match expand(text, self.env) {
            Ok(text) => Value::Text(text),
            Err(message) => {
                self.faults.add(place, message);
                Value::Text(text.to_owned())
            }
        }
    }
}

/// Fills in `${NAME}` and `${NAME:-default}`. A variable that is set but empty counts as unset for
/// the default, as in a shell.
fn expand(text: &str, env: Env<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner.find('}').ok_or_else(|| format!("{text:?} opens ${{ and does not close it"))?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("${{{name}}} is not a variable's name; write ${{NAME}} or ${{NAME:-default}}"));
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
    fn variables_are_filled_in() {
        let env = |name: &str| (name == "SET").then(|| "value".to_owned()).or((name == "EMPTY").then(String::new));
        assert_eq!(expand("a ${SET} b ${NOT:-c:-d} $x $.y", &env).unwrap(), "a value b c:-d $x $.y");
        assert_eq!(expand("${EMPTY}|${EMPTY:-x}|${NOT:-}", &env).unwrap(), "|x|");
        assert!(expand("${NOT}", &env).unwrap_err().contains("NOT is not set"));
        assert!(expand("${oops", &env).unwrap_err().contains("does not close"));
    }

    #[test]
    fn a_syntax_fault_hides_only_what_is_behind_it() {
        let (document, faults) = read("a: 1\nb: [1, 2\nc: 3\n");
        assert!(document.cut);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("f.yaml:3:") && faults[0].contains("YAML syntax"), "{faults:?}");
        let Some(Node { value: Value::Map(entries), .. }) = document.root else { panic!("no map") };
        assert_eq!(entries[0].0.name, "a");
    }

    #[test]
    fn a_key_twice_an_alias_and_an_unset_variable_are_faults_with_their_place() {
        let (_, faults) = read("a: 1\nb: 2\na: ${NOT}\n");
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("f.yaml:3:1: \"a\" stands here twice"), "{faults:?}");
        assert!(faults[1].starts_with("f.yaml:3:4: the environment variable NOT"), "{faults:?}");
        assert!(read("a: &x 1\nb: *x\n").1[0].contains("aliases"));
        assert!(read("a: 1\n---\nb: 1\n").1[0].contains("second YAML document"));
    }
}
