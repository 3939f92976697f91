//! Reads the ids of a request: from a path, and as a part of a unified id.

use crate::base::endpoints::MAX_ID;
use crate::rules::route_error::{IdError, IdKind};
use crate::rules::unified_id;
use percent_encoding::percent_decode_str;

/// Decodes an id from a path once, and checks its length.
///
/// # Errors
/// The id is too long, or is not UTF-8.
pub(crate) fn decode_id(segment: &str, kind: IdKind) -> Result<String, IdError> {
    if is_plain(segment) && segment.len() <= MAX_ID {
        return Ok(segment.to_owned());
    }
    let id = percent_decode_str(segment).decode_utf8().map_err(|_| IdError::NotUtf8 { kind })?;
    check_length(&id, kind)?;
    Ok(id.into_owned())
}

/// Returns whether all characters are unencoded and have no meaning in a path. This quick check covers nearly all ids.
fn is_plain(id: &str) -> bool {
    id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':'))
}

/// Checks the length of an id.
///
/// # Errors
/// The id is too long.
pub(crate) fn check_length(id: &str, kind: IdKind) -> Result<(), IdError> {
    if id.len() > MAX_ID { Err(IdError::TooLong { kind }) } else { Ok(()) }
}

/// Returns the provider's own id of a part of a unified id.
///
/// # Errors
/// The part has a reserved character, or a malformed escape.
pub(crate) fn own_id(part: &str, kind: IdKind) -> Result<String, IdError> {
    if let Some(id) = unified_id::read_part(part) {
        return Ok(id.into_owned());
    }
    let character = part.chars().find(|c| unified_id::is_reserved(*c) && *c != '%').unwrap_or('%');
    Err(IdError::Character { kind, character })
}
