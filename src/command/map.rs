//! `weir map`: what a provider's body maps to, and where each field came from.

use super::{complain, list_faults, print};
use crate::config::load::Source;
use crate::json;
use crate::mapping::{Found, Traced};
use crate::model::Show;
use crate::runtime;
use crate::runtime::snapshot::{Provider, Snapshot};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// The most of a body that is read.
const MAX_BODY: u64 = 64 << 20;

pub(super) fn map(source: &Source, provider: &str, file: &Path, reveal_secrets: bool) -> ExitCode {
    let snapshot = match Snapshot::load(source, None, &[0; 32], runtime::now()) {
        Ok(snapshot) => snapshot,
        Err(faults) => {
            list_faults(&faults);
            return ExitCode::FAILURE;
        }
    };
    let Some(provider) = snapshot.provider(provider) else {
        let known: Vec<&str> = snapshot.providers.iter().map(|p| &*p.name).collect();
        complain(&format!("weir: no provider {provider:?}; there are {}", known.join(", ")));
        return ExitCode::from(2);
    };
    let result = read(file).and_then(|body| mapped(provider, &body, reveal_secrets));
    match result {
        Ok(unified) => {
            print(&unified);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("weir: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn read(file: &Path) -> Result<Value, String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_BODY).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_BODY).read_to_string(&mut text))
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    json::parse(text.as_bytes()).map_err(|error| format!("{}: not JSON: {error}", file.display()))
}

/// The body is one session or a page of them: whichever the provider's operations can read.
fn mapped(provider: &Provider, body: &Value, secrets: bool) -> Result<String, String> {
    let mut error = "the provider has no operations".to_owned();
    for operation in [&provider.get_session, &provider.list_sessions].into_iter().flatten() {
        match operation.read(&provider.name, &provider.mapping, body, runtime::now()) {
            Ok(reading) => {
                let view = reading.view(&provider.mapping, Show { secrets, ..Show::default() });
                let mut out = String::new();
                for (item, native) in view.items.iter().zip(&reading.natives) {
                    coverage(provider, native);
                    let unified = json::parse(&view.body[item.start..item.end]).unwrap_or_default();
                    out += &format!("{unified:#}\n");
                }
                return Ok(out);
            }
            // What one session lacks says more than that the body is no list either.
            Err(unreadable) if operation.name == "get_session" => error = unreadable.problem.detail,
            Err(_) => {}
        }
    }
    Err(error)
}

fn coverage(provider: &Provider, native: &Value) {
    for Traced { field, found, .. } in provider.mapping.trace(native) {
        let (mark, how) = match found {
            Found::Path(path) => ("+", path.as_str().to_owned()),
            Found::Constant => ("+", "constant".into()),
            Found::Default => ("=", "default".into()),
            Found::NoRule => ("-", "no rule".into()),
            Found::Nothing => ("-", "not in the body".into()),
            Found::Unusable(reason) => ("!", format!("unusable: {}", reason.as_str())),
        };
        complain(&format!("{mark} {:<20} {how}", field.name()));
    }
}
