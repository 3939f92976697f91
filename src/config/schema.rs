//! Returns the JSON Schema (draft 2020-12) of a configuration file.
//!
//! It runs the file's decoder on a probe, a node that has no value, and records what the decoder accepts. So the
//! decoder is the only description of a file. Rules between keys are not in the schema; `weir check` checks them.

use super::decode::DecodeContext;
use super::faults::{Faults, Location};
use super::schema_builder::{SchemaBuilder, definitions};
use super::tree::{Node, Value};
use super::{clients, provider, weir};
use serde_json::{Value as Json, json};

/// A kind of configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `weir.yaml`
    Weir,
    /// `clients.yaml`
    Clients,
    /// One of `providers/*.yaml`
    Provider,
}

/// Returns the schema of a file.
#[must_use]
pub fn schema(file: File) -> Json {
    let mut faults = Faults::default();
    let read_file = |_: &str| Err(String::new());
    let mut cx = DecodeContext::new(&mut faults, &read_file, false);
    cx.schema = Some(SchemaBuilder::default());
    let probe = Node { location: Location::top(&"".into()), value: Value::Probe };
    let title = match file {
        File::Weir => {
            let _ = weir::decode(&probe, &mut cx);
            "Weir: weir.yaml"
        }
        File::Clients => {
            let _ = clients::decode(&probe, &mut cx);
            "Weir: clients.yaml"
        }
        File::Provider => {
            let _ = provider::decode(&probe, &mut cx);
            "Weir: a provider file"
        }
    };
    let mut document = json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "title": title });
    if let (Some(document), Some(built)) = (document.as_object_mut(), cx.schema.take()) {
        document.extend(built.finish().as_object().cloned().unwrap_or_default());
        document.insert("$defs".to_owned(), definitions());
    }
    document
}
