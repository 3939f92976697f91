//! Builds a JSON Schema from the calls that a decoder makes.
//!
//! `decode` reports each value that it reads here, in the order in which it reads them. The builder knows no section of
//! the configuration.

use serde_json::{Map, Value as Json, json};

/// Matches a `${NAME}` anywhere in a scalar.
const VARIABLE: &str = r"\$\{[A-Za-z0-9_]+(:-[^}]*)?\}";

/// The values that a scalar accepts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scalar<'s> {
    /// Any text.
    Text,
    /// Any text except the empty one.
    NonEmptyText,
    /// `true` or `false`.
    Boolean,
    /// An integer between two bounds, both included.
    Integer(u64, u64),
    /// A number from 0 to 1.
    Fraction,
    /// One integer and a unit.
    Duration,
    /// One integer and an optional unit.
    Size,
    /// One of these words.
    OneOf(&'s [&'s str]),
    /// Text that matches this pattern.
    Pattern(&'s str),
}

impl Scalar<'_> {
    fn schema(self) -> Json {
        match self {
            Scalar::Text => json!({ "$ref": "#/$defs/text" }),
            Scalar::NonEmptyText => json!({ "$ref": "#/$defs/non_empty_text" }),
            Scalar::Boolean => json!({ "$ref": "#/$defs/boolean" }),
            Scalar::Fraction => {
                json!({ "anyOf": [{ "type": "number", "minimum": 0, "maximum": 1 }, { "$ref": "#/$defs/fraction" }] })
            }
            Scalar::Duration => json!({ "$ref": "#/$defs/duration" }),
            Scalar::Size => json!({ "$ref": "#/$defs/size" }),
            Scalar::Integer(minimum, maximum) => {
                let mut number = json!({ "type": "integer", "minimum": minimum });
                if maximum < u64::MAX {
                    number["maximum"] = json!(maximum);
                }
                json!({ "anyOf": [number, { "$ref": "#/$defs/digits" }] })
            }
            Scalar::OneOf(words) => json!({ "anyOf": [{ "enum": words }, { "$ref": "#/$defs/variable" }] }),
            // The decoder reads an unquoted number or boolean as text.
            Scalar::Pattern(pattern) => {
                json!({ "type": ["string", "number", "boolean"], "pattern": format!("{pattern}|{VARIABLE}") })
            }
        }
    }
}

/// Returns the `$defs` that the schemas of scalars refer to.
pub(super) fn definitions() -> Json {
    let text = |pattern: &str| json!({ "type": "string", "pattern": format!("^({pattern})$|{VARIABLE}") });
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let mut non_empty = scalar.clone();
    non_empty["minLength"] = json!(1);
    let mut duration = text("[0-9]+(ms|s|m|h|d)");
    duration["description"] = json!("One integer and a unit (ms, s, m, h, d), such as 30s.");
    json!({
        "text": scalar,
        "non_empty_text": non_empty,
        "boolean": {
            "description": "true or false; on and off mean the same.",
            "anyOf": [{ "type": "boolean" }, text("true|false|on|off")],
        },
        "digits": text("[0-9]+"),
        "fraction": text(r"[0-9]*\.?[0-9]*(e[0-9+-]+)?"),
        "duration": duration,
        "size": {
            "description": "One integer above 0 and a unit (B, KiB, MiB, GiB), such as 256MiB. An integer without a unit is a number of bytes.",
            "anyOf": [{ "type": "integer", "minimum": 1 }, text("[0-9]+(B|KiB|MiB|GiB)?")],
        },
        "variable": {
            "description": "An environment variable: ${NAME} or ${NAME:-DEFAULT}.",
            "type": "string",
            "pattern": VARIABLE,
        },
    })
}

/// The schema so far: of the current node, and of the nodes around it.
#[derive(Debug, Default)]
pub(super) struct SchemaBuilder {
    current: NodeSchema,
    /// The outermost node comes first.
    parents: Vec<NodeSchema>,
}

/// The schema of one node.
#[derive(Debug, Default)]
struct NodeSchema {
    /// Schemas of the accepted forms, except a mapping with known keys.
    forms: Vec<Json>,
    /// The known keys and the required ones, if the node can be a mapping with known keys.
    keys: Option<(Map<String, Json>, Vec<&'static str>)>,
}

impl NodeSchema {
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
            // The decoder does not read this node, so it accepts everything.
            0 => json!({}),
            _ => json!({ "anyOf": forms }),
        }
    }
}

impl SchemaBuilder {
    /// Returns the schema of the outermost node.
    pub(super) fn finish(self) -> Json {
        self.current.finish()
    }

    /// Adds a scalar to the forms of the current node.
    pub(super) fn scalar(&mut self, scalar: Scalar<'_>) {
        self.current.forms.push(scalar.schema());
    }

    /// Adds a mapping with known keys to the forms of the current node.
    pub(super) fn mapping(&mut self) {
        self.current.keys.get_or_insert_default();
    }

    /// Makes a node inside the current one the current node, until one of the `leave` functions is called.
    pub(super) fn enter(&mut self) {
        self.parents.push(std::mem::take(&mut self.current));
    }

    fn leave(&mut self) -> Json {
        let parent = self.parents.pop().unwrap_or_default();
        std::mem::replace(&mut self.current, parent).finish()
    }

    /// Leaves the value of a known key.
    pub(super) fn leave_key(&mut self, key: &'static str, required: bool) {
        let value = self.leave();
        let (known, needed) = self.current.keys.get_or_insert_default();
        known.insert(key.to_owned(), value);
        if required {
            needed.push(key);
        }
    }

    /// Leaves an item of a list. The item alone is accepted in place of the list.
    pub(super) fn leave_list(&mut self) {
        let item = self.leave();
        self.current.forms.push(json!({ "type": "array", "items": item }));
        match item.get("anyOf").and_then(Json::as_array) {
            Some(forms) => self.current.forms.extend(forms.iter().cloned()),
            None => self.current.forms.push(item),
        }
    }

    /// Leaves a value of a mapping. Its keys are `keys`, or any if `keys` is empty.
    pub(super) fn leave_entries(&mut self, keys: &[&str]) {
        let value = self.leave();
        let mut mapping = json!({ "type": "object", "additionalProperties": value });
        if !keys.is_empty() {
            mapping["propertyNames"] = json!({ "enum": keys });
        }
        self.current.forms.push(mapping);
    }
}
