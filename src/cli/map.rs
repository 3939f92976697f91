//! Runs `weir map`: prints the unified session of a provider's response body, and the source of each field.

use super::{load_without_secrets, print, print_stderr};
use crate::base::json::{self, ParsedJson};
use crate::base::model::Show;
use crate::base::typo::unknown;
use crate::config::load::ConfigSource;
use crate::rules::field_trace::{FieldSource, FieldTrace, PathResult};
use crate::rules::page_headers::PageHeaders;
use crate::rules::provider_body::UnusableSession;
use crate::runtime;
use crate::runtime::snapshot::Provider;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// The most bytes of a body that are read.
const MAX_BODY: u64 = 64 << 20;

pub(super) fn map(source: &ConfigSource, provider: &str, file: &Path, reveal_secrets: bool) -> ExitCode {
    let snapshot = match load_without_secrets(source) {
        Ok(snapshot) => snapshot,
        Err(code) => return code,
    };
    let Some(provider) = snapshot.provider(provider) else {
        let known = snapshot.providers.iter().map(|provider| &*provider.name);
        print_stderr(&format!("weir: {}", unknown("provider", provider, known)));
        return ExitCode::from(2);
    };
    let result = read(file).and_then(|text| {
        let body = ParsedJson::of(&text).map_err(|error| format!("{}: not JSON: {error}", file.display()))?;
        mapped(provider, &body, reveal_secrets)
    });
    match result {
        Ok(unified) => {
            print(&unified);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_stderr(&format!("weir: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_BODY).read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_BODY).read_to_end(&mut text))
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text)
}

/// Maps a body that is one session or a page of sessions: the first operation that can read it is used.
fn mapped(provider: &Provider, body: &ParsedJson<'_>, secrets: bool) -> Result<String, String> {
    // If no operation can read the body, the error of the first one is the most useful: it reads one session.
    let mut first_error = None;
    for (_, operation) in provider.operations.iter() {
        match operation.read(&provider.name, &provider.mapping, body, &PageHeaders::default(), runtime::now()) {
            Ok(parsed) => {
                let view = parsed.view(&provider.mapping, Show { secrets, ..Show::default() });
                let mut out = String::new();
                for UnusableSession { position, fault } in &parsed.unusable {
                    print_stderr(&format!("weir: session {position} of the list is left out: {fault}"));
                }
                for (item, native) in view.items.iter().zip(&parsed.native_objects) {
                    coverage(provider, native);
                    let unified = json::parse(&view.body[item.start..item.end]).unwrap_or_default();
                    out += &format!("{unified:#}\n");
                }
                return Ok(out);
            }
            Err(error) => {
                if first_error.is_none() && error.fault.of_session().is_some() {
                    let objects = operation.native_objects(&body.value).unwrap_or_default();
                    objects.into_iter().for_each(|native| coverage(provider, native));
                }
                first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }
    Err(first_error.unwrap_or_else(|| "the provider has no operations".to_owned()))
}

/// Prints a table of the fields: `+` found, `=` default, `!` unusable, `-` missing. Of what could not be used, it has the
/// path and the type.
fn coverage(provider: &Provider, native: &Value) {
    for trace in provider.mapping.trace(native) {
        let (mark, how) = match trace.source {
            FieldSource::Path(path) => ("+", path.as_str().to_owned()),
            FieldSource::Constant => ("+", "constant".into()),
            FieldSource::Default => ("=", format!("default; nothing at {}", tried(&trace))),
            FieldSource::NoRule => ("-", "no rule".into()),
            FieldSource::Nothing => ("-", format!("not in the body: nothing at {}", tried(&trace))),
            FieldSource::Unusable(_) => ("!", format!("unusable: {}", describe_unusable(&trace, provider, native))),
        };
        print_stderr(&format!("{mark} {:<20} {how}", trace.field.name()));
    }
}

/// Returns the paths that have no value.
fn tried(trace: &FieldTrace<'_>) -> String {
    let paths = trace.tried.iter().map(|(path, result)| match result {
        PathResult::Nothing { null: true } => format!("{} (null)", path.as_str()),
        _ => path.as_str().to_owned(),
    });
    paths.collect::<Vec<_>>().join(", ")
}

/// Describes each value that could not be used: its path, its type and the reason.
pub(super) fn describe_unusable(trace: &FieldTrace<'_>, provider: &Provider, native: &Value) -> String {
    let word =
        provider.mapping.unknown_word_of(trace.field, native).map(|word| format!(" {word:?}")).unwrap_or_default();
    let unusable = trace.tried.iter().filter_map(|(path, result)| match result {
        PathResult::Unusable(kind, reason) => Some((path.as_str(), *kind, *reason)),
        _ => None,
    });
    let described = unusable.enumerate().map(|(position, (path, kind, reason))| {
        // The word is that of the first path.
        let word = if position == 0 { &*word } else { "" };
        format!("{kind}{word} at {path} ({})", reason.as_str())
    });
    described.collect::<Vec<_>>().join(", ")
}
