//! Makes the form of a provider's body that a client without `reveal_secrets` may see.
//!
//! The form is written anew from what Weir has read. The bytes of the provider are never sent: a client can read them in
//! another way than Weir, for example a member that is there twice.

use crate::base::json_text::JsonText;
use crate::base::operation::PerOperation;
use crate::rules::mapping::Mapping;
use crate::rules::provider_body::CompiledOperation;
use bytes::Bytes;

/// Returns a body without its secrets. `own` is the operation whose success the body is; `None` for an error. Returns
/// `None` if nobody can know what the body contains.
#[must_use]
pub fn visible_body(
    operations: &PerOperation<CompiledOperation>,
    own: Option<&CompiledOperation>,
    mapping: &Mapping,
    body: &Bytes,
) -> Option<Bytes> {
    if !mapping.has_secrets() || body.is_empty() {
        return Some(body.clone());
    }
    let mut text = JsonText::parse_cut(body);
    if own.is_some_and(|own| !text.as_mut().is_some_and(|text| own.take_shape(text))) {
        return None;
    }
    let Some(mut text) = text.filter(contains_object) else {
        // The text of an error, or a success without a session.
        return (!mapping.secrets().may_be_in_text(body)).then(|| body.clone());
    };
    if operations.iter().any(|(_, operation)| operation.has_text_as_sessions(&text)) {
        return None;
    }
    let visible: Vec<_> = operations.iter().flat_map(|(_, operation)| operation.visible_names(mapping)).collect();
    mapping.secrets().remove_from(&mut text, &visible);
    let mut out = Vec::with_capacity(body.len());
    text.write(&mut out);
    Some(out.into())
}

fn contains_object(text: &JsonText<'_>) -> bool {
    match text {
        JsonText::Object(_) => true,
        JsonText::Array(items) => items.iter().any(contains_object),
        JsonText::Scalar(_) => false,
    }
}
