//! Finds fields of the examples that have a value in the provider's body and could not be mapped, for
//! `weir check --strict`.
//!
//! The unified side of such an example says `null` or the default, so the example itself passes.

use super::map::describe_unusable;
use crate::base::json;
use crate::base::operation::Operation;
use crate::config::Config;
use crate::config::faults::{Fault, Faults};
use crate::rules::field_trace::FieldSource;
use crate::runtime::snapshot::Snapshot;

/// Returns a warning for each field of each example that the rules cannot use, by location.
#[must_use]
pub(super) fn warnings(config: &Config, snapshot: &Snapshot) -> Vec<Fault> {
    let mut warnings = Faults::default();
    for example in &config.examples {
        let Some(provider) = snapshot.provider(&example.provider) else { continue };
        let (native, unified) = (json::parse(example.native.as_bytes()), json::parse(example.unified.as_bytes()));
        let (Ok(native), Ok(unified)) = (native, unified) else { continue };
        let operation = Operation::of_response(|member| unified.get(member).is_some());
        let Some(Ok(objects)) = provider.operations.get(operation).map(|compiled| compiled.native_objects(&native))
        else {
            continue;
        };
        let is_list = operation.is_page();
        for (position, object) in objects.into_iter().enumerate() {
            for trace in provider.mapping.trace(object) {
                if !matches!(trace.source, FieldSource::Unusable(_)) {
                    continue;
                }
                let field = trace.field.name();
                let place = if is_list { format!(" of session {position}") } else { String::new() };
                let came_out = match trace.rule.and_then(|rule| rule.default) {
                    Some(default) => format!("the default {default:?}"),
                    None => "null".to_owned(),
                };
                let found = describe_unusable(&trace, provider, object);
                let better = "correct the rule in the provider's file, or the example";
                warnings.add(
                    &example.native_location,
                    format!("{field}{place} is {came_out}, although the provider sends {found}; {better}"),
                );
            }
        }
    }
    warnings.sorted()
}
