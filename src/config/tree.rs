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
    /// A scalar with environment variables that are not set. The decoder that reads it decides whether this is a fault.
    Unset(Unset),
    /// A value whose fault is already reported.
    Faulty,
    /// `[a, b]`
    List(Vec<Node>),
    /// `{a: b}` in the order of the file. Keys are unique.
    Map(Vec<(TreeKey, Node)>),
    /// No value from a file: a decoder that reads it records in the schema what it accepts.
    Probe,
}

/// A scalar with environment variables that are not set.
#[derive(Clone)]
pub struct Unset {
    /// The variables, each once.
    pub variables: Vec<String>,
    /// The text, with [`PLACEHOLDER`] in place of each variable that is not set.
    pub text: String,
}

/// Stands for the value of a variable that is not set.
pub(crate) const PLACEHOLDER: &str = "unset";

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Probe => f.write_str("probe"),
            Value::Faulty => f.write_str("faulty"),
            Value::Unset(unset) => write!(f, "unset {:?}", unset.variables),
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
    let mut reader = TreeReader { parser: Parser::new_from_str(text), text, file, env, faults, truncated: false };
    let root = reader.document();
    Document { root, truncated: reader.truncated }
}

struct TreeReader<'t, 'f> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    text: &'t str,
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
                let (line, column) = (mark.line(), mark.col() + 1);
                let tab = find_tab(self.text, line, column, error.info());
                let message = match tab {
                    Some(_) => "a tab, which YAML does not allow here; write spaces",
                    None => error.info(),
                };
                let (line, column) = tab.unwrap_or((line, column));
                let location = Location { file: self.file.clone(), line, column };
                self.stop(&location, format!("YAML syntax: {message}"));
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
        let mut variables = Vec::new();
        match expand(text, self.env, &mut variables) {
            Ok(text) if variables.is_empty() => Value::Text(text),
            Ok(text) => Value::Unset(Unset { variables, text }),
            Err(message) => {
                self.faults.add(location, message);
                Value::Faulty
            }
        }
    }
}

/// Returns line and column of the tab that is the cause of a syntax fault; `None` if the cause is another one. The scanner
/// reports the place where it stopped: behind the tab, or where the value began that the tab ends.
fn find_tab(text: &str, line: usize, column: usize, message: &str) -> Option<(usize, usize)> {
    let tab_in = |line: &str| line.chars().position(|c| c == '\t').map(|before| before + 1);
    let indentation = |line: &str| tab_in(line).filter(|at| line.chars().take(at - 1).all(|c| c == ' '));
    let stopped = text.lines().nth(line.checked_sub(1)?)?;
    let is_tab = |column: &usize| column.checked_sub(1).and_then(|before| stopped.chars().nth(before)) == Some('\t');
    let nearby = indentation(stopped).or_else(|| [column, column.saturating_sub(1)].into_iter().find(is_tab));
    let is_about_tabs = message.contains("tab");
    if nearby.is_none() && is_about_tabs && message.contains("plain scalar") {
        let below = text.lines().enumerate().skip(line);
        return below.filter_map(|(above, line)| Some((above + 1, indentation(line)?))).next();
    }
    nearby.or_else(|| tab_in(stopped).filter(|_| is_about_tabs)).map(|column| (line, column))
}

/// Replaces `${NAME}` and `${NAME:-default}` by the variable or the default. As in a shell, the default also replaces an
/// empty variable. Adds each variable that is not set and has no default to `unset`, and writes [`PLACEHOLDER`] for it.
fn expand(text: &str, env: Env<'_>, unset: &mut Vec<String>) -> Result<String, String> {
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
                out.push_str(PLACEHOLDER);
                if !unset.iter().any(|known| known == name) {
                    unset.push(name.to_owned());
                }
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
        let expand = |text: &str| {
            let mut unset = Vec::new();
            super::expand(text, &env, &mut unset).map(|text| (text, unset))
        };
        assert_eq!(expand("a ${SET} b ${NOT:-c:-d} $x $.y").unwrap(), ("a value b c:-d $x $.y".into(), vec![]));
        assert_eq!(expand("${EMPTY}|${EMPTY:-x}|${NOT:-}").unwrap(), ("|x|".into(), vec![]));
        let unset = vec!["NOT".to_owned(), "NEITHER".to_owned()];
        assert_eq!(expand("${NOT}-${SET}-${NEITHER}-${NOT}").unwrap(), ("unset-value-unset-unset".into(), unset));
        assert!(expand("${oops").unwrap_err().contains("without a closing }"));
    }

    #[test]
    fn a_fault_about_a_tab_points_at_the_tab() {
        for (text, line, column) in [
            ("a:\n\tb: 1\n", 2, 1),
            ("a:\n  b: 1\n\tc: 1\n", 3, 1),
            ("a:\n  b: 1\n  \tc: 1\n", 3, 3),
            ("a:\n  b: x y\n    \tc: 1\nd: 1\n", 3, 5),
            ("a: 1\n# c\n\t- b\n", 3, 1),
            ("a:\t1\nb: [1,\n\t2]\nc:\n\td: 1\n", 1, 3),
            ("b: [1,\n  2]\nc: \"\t\"\nd:\n\te: 1\n", 5, 1),
            ("ä:\n é: ö\n \tc: 1\n", 3, 2),
        ] {
            let (document, faults) = read(text);
            assert!(document.truncated && faults.len() == 1, "{text:?}: {faults:?}");
            let place = format!("f.yaml:{line}:{column}: YAML syntax: a tab, ");
            assert!(faults[0].starts_with(&place), "{text:?}: {faults:?} is not at {place}");
        }
        // The tabs of these texts are allowed; the fault is another one.
        for text in ["a: |\n  x\n  \ty\nb: [\n", "a: 1\t# c\nb: [1\nc: 2\n", "a: \"\tx\"\nb: }\n"] {
            let (_, faults) = read(text);
            assert!(faults.len() == 1 && !faults[0].contains("a tab"), "{text:?}: {faults:?}");
        }
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
    fn a_duplicate_key_an_alias_and_an_invalid_variable_are_faults_with_their_location() {
        let (_, faults) = read("a: 1\nb: 2\na: ${N-T}\n");
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("f.yaml:3:1: duplicate key \"a\""), "{faults:?}");
        assert!(faults[1].starts_with("f.yaml:3:4: ${N-T} is not a variable name"), "{faults:?}");
        assert!(read("a: &x 1\nb: *x\n").1[0].contains("aliases"));
        assert!(read("a: 1\n---\nb: 1\n").1[0].contains("second YAML document"));
    }
}
