//! The shape of a file, as its decoder reads it: its JSON Schema (draft 2020-12).
//!
//! A room of its own so that there is one description of what may be written, the decoder's. It is run on a node that
//! is whatever is asked of it, and what it asks for is drawn here. Rules between keys are not: `weir check` knows them.

use super::decode::Cx;
use super::faults::{Faults, Place};
use super::tree::{Node, Value};
use super::{clients, provider, weir};
use serde_json::{Map, Value as Json, json};

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `weir.yaml`
    Weir,
    /// `clients.yaml`
    Clients,
    /// One of `providers/*.yaml`
    Provider,
}

/// A variable of the environment may stand in any scalar, as all of it or as a part.
const VARIABLE: &str = r"\$\{[A-Za-z0-9_]+(:-[^}]*)?\}";

/// The file's schema.
#[must_use]
pub fn schema(file: File) -> Json {
    let mut faults = Faults::default();
    let read_file = |_: &str| Err(String::new());
    let mut cx = Cx::new(&mut faults, &read_file, false);
    cx.sketch = Some(Sketch::default());
    let anything = Node { place: Place::top(&"".into()), value: Value::Any };
    let title = match file {
        File::Weir => {
            let _ = weir::decode(&anything, &mut cx);
            "Weir: weir.yaml"
        }
        File::Clients => {
            let _ = clients::decode(&anything, &mut cx);
            "Weir: clients.yaml"
        }
        File::Provider => {
            let _ = provider::decode(&anything, &mut cx);
            "Weir: a provider's file"
        }
    };
    let mut whole = json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "title": title });
    if let (Some(whole), Some(sketch)) = (whole.as_object_mut(), cx.sketch.take()) {
        let drawn = sketch.top.finish();
        whole.extend(drawn.as_object().cloned().unwrap_or_default());
        whole.insert("$defs".to_owned(), definitions());
    }
    whole
}

/// What a scalar must be.
#[derive(Debug, Clone, Copy)]
pub enum Scalar<'w> {
    /// Any text.
    Text,
    /// Any text but an empty one.
    Some,
    /// `true` or `false`.
    Boolean,
    /// A whole number from the first to the second.
    Whole(u64, u64),
    /// From 0 to 1.
    Share,
    /// One integer and a unit.
    Duration,
    /// One integer and perhaps a unit.
    Size,
    /// One of these words.
    Word(&'w [&'w str]),
    /// Text of this pattern.
    Pattern(&'w str),
}

impl Scalar<'_> {
    fn schema(self) -> Json {
        match self {
            Scalar::Text => json!({ "$ref": "#/$defs/text" }),
            Scalar::Some => json!({ "$ref": "#/$defs/some" }),
            Scalar::Boolean => json!({ "$ref": "#/$defs/boolean" }),
            Scalar::Share => {
                json!({ "anyOf": [{ "type": "number", "minimum": 0, "maximum": 1 }, { "$ref": "#/$defs/share" }] })
            }
            Scalar::Duration => json!({ "$ref": "#/$defs/duration" }),
            Scalar::Size => json!({ "$ref": "#/$defs/size" }),
            Scalar::Whole(least, most) => {
                let mut number = json!({ "type": "integer", "minimum": least });
                if most < u64::MAX {
                    number["maximum"] = json!(most);
                }
                json!({ "anyOf": [number, { "$ref": "#/$defs/digits" }] })
            }
            Scalar::Word(words) => json!({ "anyOf": [{ "enum": words }, { "$ref": "#/$defs/variable" }] }),
            // A number or a truth value is text too here.
            Scalar::Pattern(pattern) => {
                json!({ "type": ["string", "number", "boolean"], "pattern": format!("{pattern}|{VARIABLE}") })
            }
        }
    }
}

/// What scalars have in common.
fn definitions() -> Json {
    let text = |pattern: &str| json!({ "type": "string", "pattern": format!("^({pattern})$|{VARIABLE}") });
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let mut some = scalar.clone();
    some["minLength"] = json!(1);
    json!({
        "text": scalar,
        "some": some,
        "boolean": { "anyOf": [{ "type": "boolean" }, text("true|false|on|off")] },
        "digits": text("[0-9]+"),
        "share": text(r"[0-9]*\.?[0-9]*(e[0-9+-]+)?"),
        "duration": text("[0-9]+(ms|s|m|h|d)"),
        "size": { "anyOf": [{ "type": "integer", "minimum": 1 }, text("[0-9]+(B|KiB|MiB|GiB)?")] },
        "variable": { "type": "string", "pattern": VARIABLE },
    })
}

/// What was drawn so far.
#[derive(Debug, Default)]
pub struct Sketch {
    top: Drawn,
    /// Those around it.
    around: Vec<Drawn>,
}

/// One node.
#[derive(Debug, Default)]
struct Drawn {
    /// In which forms it may stand, besides a mapping with known keys.
    forms: Vec<Json>,
    /// Its known keys, if it may be such a mapping, and which of them must be there.
    keys: Option<(Map<String, Json>, Vec<&'static str>)>,
}

impl Drawn {
    fn finish(self) -> Json {
        let mut forms = self.forms;
        if let Some((properties, required)) = self.keys {
            let mut mapping = json!({ "type": "object", "properties": properties, "additionalProperties": false });
            if !required.is_empty() {
                mapping["required"] = json!(required);
            }
            forms.push(mapping);
        }
        forms.dedup();
        match forms.len() {
            1 => forms.swap_remove(0),
            // Of one that nobody reads nothing is wanted.
            0 => json!({}),
            _ => json!({ "anyOf": forms }),
        }
    }
}

impl Sketch {
    /// The node may be a scalar like this.
    pub(super) fn scalar(&mut self, scalar: Scalar<'_>) {
        self.top.forms.push(scalar.schema());
    }

    /// The node may be a mapping with known keys.
    pub(super) fn mapping(&mut self) {
        self.top.keys.get_or_insert_default();
    }

    /// What follows is about something inside the node.
    pub(super) fn enter(&mut self) {
        self.around.push(std::mem::take(&mut self.top));
    }

    fn leave(&mut self) -> Json {
        let around = self.around.pop().unwrap_or_default();
        std::mem::replace(&mut self.top, around).finish()
    }

    /// It was about the value of a key.
    pub(super) fn leave_key(&mut self, key: &'static str, required: bool) {
        let value = self.leave();
        let (known, needed) = self.top.keys.get_or_insert_default();
        known.insert(key.to_owned(), value);
        if required {
            needed.push(key);
        }
    }

    /// It was about the items of a list; one alone may stand for it.
    pub(super) fn leave_list(&mut self) {
        let item = self.leave();
        self.top.forms.push(json!({ "type": "array", "items": item }));
        match item.get("anyOf").and_then(Json::as_array) {
            Some(forms) => self.top.forms.extend(forms.iter().cloned()),
            None => self.top.forms.push(item),
        }
    }

    /// It was about the values of a mapping with free keys, or with these.
    pub(super) fn leave_free(&mut self, keys: &[&str]) {
        let value = self.leave();
        let mut mapping = json!({ "type": "object", "additionalProperties": value });
        if !keys.is_empty() {
            mapping["propertyNames"] = json!({ "enum": keys });
        }
        self.top.forms.push(mapping);
    }
}
