//! Reads `Link` headers (RFC 8288).

/// Why a `Link` header does not name one URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum LinkFault {
    #[error("the Link header of the response cannot be read (RFC 8288)")]
    Malformed,
    #[error("the Link header of the response has two URLs with the same relation")]
    Ambiguous,
}

/// Returns the URL with a relation in the values of `Link` headers; `None` if there is none. A link with another context
/// (`anchor`) is not one of the page.
///
/// # Errors
/// A value cannot be read, or there are several such URLs.
pub(crate) fn target<'h>(values: impl Iterator<Item = &'h str>, relation: &str) -> Result<Option<&'h str>, LinkFault> {
    let mut found = None;
    for link in values.flat_map(split_links) {
        let (target, parameters) = parse(link).ok_or(LinkFault::Malformed)?;
        let has_anchor = parameters.iter().any(|(name, _)| is(name, "anchor") || is(name, "anchor*"));
        // Of several `rel` the first one counts (RFC 8288, section 3.3).
        let relations = parameters.iter().find(|(name, _)| is(name, "rel")).map(|(_, value)| value.as_str());
        if has_anchor || !relations.unwrap_or_default().split_ascii_whitespace().any(|name| is(name, relation)) {
            continue;
        }
        if found.replace(target).is_some_and(|other| other != target) {
            return Err(LinkFault::Ambiguous);
        }
    }
    Ok(found)
}

fn is(name: &str, wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted)
}

/// Returns the target of a link, and its parameters without quotes.
fn parse(link: &str) -> Option<(&str, Vec<(&str, String)>)> {
    let (target, mut rest) = link.strip_prefix('<')?.split_once('>')?;
    let mut parameters = Vec::new();
    while !rest.trim_start().is_empty() {
        let parameter = rest.trim_start().strip_prefix(';')?.trim_start();
        let name_end = parameter.find(|c: char| matches!(c, '=' | ';' | '"' | '<') || c.is_whitespace());
        let (name, behind) = parameter.split_at(name_end.unwrap_or(parameter.len()));
        let (value, after) = match behind.trim_start().strip_prefix('=') {
            Some(value) => parameter_value(value.trim_start())?,
            None => ("", behind),
        };
        parameters.push((name, unquoted(value)));
        rest = after;
    }
    Some((target.trim(), parameters))
}

/// Returns the text of a parameter's value, without quotes and escapes (RFC 9110, section 5.6.4).
pub(crate) fn unquoted(value: &str) -> String {
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let mut escaped = false;
    let is_kept = |c: &char| {
        escaped = *c == '\\' && !escaped;
        !escaped
    };
    quoted.unwrap_or(value).chars().filter(is_kept).collect()
}

/// Splits the value of a link's parameter from what follows it. `None` if its quotes do not close.
pub(crate) fn parameter_value(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return Some(text.split_at(text.find(|c: char| c == ';' || c.is_whitespace()).unwrap_or(text.len())));
    };
    let mut escaped = false;
    let end = quoted.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(text.split_at(end + 2))
}

/// Splits a `Link` header at the commas outside of targets and of quoted strings.
pub(crate) fn split_links(value: &str) -> Vec<&str> {
    let (mut links, mut start) = (Vec::new(), 0);
    let (mut inside, mut escaped) = (None, false);
    for (at, c) in value.char_indices() {
        match (inside, c) {
            (Some('"'), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(close), c) if c == close && !escaped => inside = None,
            (None, '<') => inside = Some('>'),
            (None, '"') => inside = Some('"'),
            (None, ',') => {
                links.push(&value[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        escaped = false;
    }
    links.push(&value[start..]);
    links.into_iter().map(str::trim).filter(|link| !link.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_with_the_relation_is_found_in_every_spelling() {
        for value in [
            "</a?page=2>; rel=\"next\"",
            "</a?page=2>;rel=next",
            "</a?page=2> ; REL = \"Next\" ; title=\"x, y; z\"",
            "</z>; rel=prev, </a?page=2>; rel=\"last next\"",
            "</z>; rel=\"first\"; title=\"<a>; rel=next\", </a?page=2>; rel=\"n\\ext\"",
            "</a?page=2>; rel=next; rel=prev",
            "</a?page=2>; rel=next, </a?page=2>; rel=next",
            "</z>; rel=next; anchor=\"#part\", </a?page=2>; rel=next",
        ] {
            assert_eq!(target([value].into_iter(), "next"), Ok(Some("/a?page=2")), "{value}");
        }
        assert_eq!(target(["</b>; rel=prev", "</a>; rel=next"].into_iter(), "next"), Ok(Some("/a")));
        for none in ["", "</a>", "</a>; rel=prev", "</a>; rel=prev; rel=next", "</a>; title=next", "</a>; rel=nextpage"]
        {
            assert_eq!(target([none].into_iter(), "next"), Ok(None), "{none}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_read_is_not_the_end_of_a_list() {
        for bad in ["/a; rel=next", "</a; rel=next", "</a>; rel=\"next", "</a> rel=next", "<a>; x=\"y\" z"] {
            assert_eq!(target([bad].into_iter(), "next"), Err(LinkFault::Malformed), "{bad}");
        }
        assert_eq!(target(["</a>;rel=next,</b>;rel=next"].into_iter(), "next"), Err(LinkFault::Ambiguous));
    }
}
