//! Finds the names of secret members in a string that may contain JSON, or something like it.
//!
//! A client can read such a string more leniently than Weir: JSON in JSON in a string, a member that is there twice, text
//! before or behind the JSON, comments, single quotes, half of a surrogate pair. So this reader looks for names that
//! stand where a member's name can stand, and for nothing else.

/// How often a string may be encoded in another one.
const MAX_LEVELS: usize = 16;
/// The most bytes between a name and its colon.
const MAX_GAP: usize = 64;

/// Returns whether a string may contain members with all the names of `path` behind the first `found` ones, or a member
/// with the name of a container, that is any of `path` but the last, whose value is a string. `text` may have the escapes
/// of JSON.
#[must_use]
pub(crate) fn may_have_members(text: &[u8], path: &[String], found: usize) -> bool {
    // Without one of these there is neither JSON nor an escape.
    if !text.iter().any(|byte| matches!(byte, b'{' | b'"' | b'\'' | b'\\')) {
        return false;
    }
    let plain = plain_text(text);
    let text = plain.as_deref().unwrap_or(text);
    let named = |name: &String| match plain {
        Some(_) => members(text, name.as_bytes()).next().is_some(),
        None => positions(text, name.as_bytes()).next().is_some(),
    };
    let containers = path.split_last().map_or(&[][..], |(_, containers)| containers);
    path[found..].iter().all(named) || containers.iter().any(|name| members(text, name.as_bytes()).any(is_text))
}

/// Returns a text in lower case without its escapes, those inside of escapes included, and without control characters.
/// `None` if it is encoded too often.
fn plain_text(text: &[u8]) -> Option<Vec<u8>> {
    let mut text: Vec<u8> = text.iter().filter(|byte| !byte.is_ascii_control()).copied().collect();
    for _ in 0..MAX_LEVELS {
        if !text.contains(&b'\\') {
            text.make_ascii_lowercase();
            return Some(text);
        }
        text = without_one_level(&text);
    }
    None
}

/// Removes the outer escapes. Characters beyond ASCII become question marks.
fn without_one_level(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let Some((kind, after)) = rest.split_first() else { break };
        rest = after;
        let digits = match kind {
            b'u' => 4,
            b'x' => 2,
            b'n' | b'r' | b't' | b'b' | b'f' => {
                out.push(b' ');
                continue;
            }
            _ => {
                out.push(*kind);
                continue;
            }
        };
        let code = rest.get(..digits).and_then(|hex| u32::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(code) => {
                rest = &rest[digits..];
                match u8::try_from(code) {
                    Ok(byte) if byte.is_ascii_control() => {}
                    Ok(byte) if byte.is_ascii() => out.push(byte),
                    _ => out.push(b'?'),
                }
            }
            None => out.push(*kind),
        }
    }
    out
}

/// Returns the positions of a name in a text, in any case.
fn positions(text: &[u8], name: &[u8]) -> impl Iterator<Item = usize> {
    let ends = text.windows(name.len().max(1)).enumerate();
    ends.filter(move |(_, part)| part.eq_ignore_ascii_case(name)).map(|(at, _)| at)
}

/// Returns what follows each place where `name` stands as the name of a member can stand: in quotes and before a colon, or
/// after a brace and before a colon or an equals sign.
fn members<'t>(text: &'t [u8], name: &'t [u8]) -> impl Iterator<Item = &'t [u8]> {
    let brace = text.iter().position(|byte| *byte == b'{').unwrap_or(usize::MAX);
    positions(text, name).filter_map(move |at| {
        let (before, behind) = (text[..at].last(), &text[at + name.len()..]);
        if before.is_some_and(|byte| is_word(*byte)) || behind.first().is_some_and(|byte| is_word(*byte)) {
            return None;
        }
        // Between a name and its colon there is whatever looks like a quote, a space or a comment.
        let is_end = |byte: &u8| matches!(byte, b':' | b'=' | b',' | b'{' | b'}' | b'[' | b']');
        let gap = behind.iter().take(MAX_GAP).position(is_end)?;
        let is_quoted = !matches!(behind[0], b' ' | b':' | b'=');
        let is_member = brace < at && matches!(behind[gap], b':' | b'=') || is_quoted && behind[gap] == b':';
        is_member.then(|| &behind[gap + 1..])
    })
}

/// Returns whether a value is a string, or an array that begins with one.
fn is_text(value: &[u8]) -> bool {
    let first = value.iter().find(|byte| !matches!(byte, b' ' | b'['));
    matches!(first, Some(b'"' | b'\''))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(text: &str) -> bool {
        may_have_members(text.as_bytes(), &["room".to_owned(), "access_token".to_owned()], 0)
    }

    #[test]
    fn members_are_found_in_every_spelling() {
        for text in [
            r#"{"room":{"access_token":1}}"#,
            r#"{"access_token":1,"room":2}"#,
            r#"{"Room" : {"ACCESS_TOKEN"	:1}}"#,
            r#"{"room":{"access_token":1},"room":{}}"#,
            r#"data: {"room":{"access_token":1}} and more"#,
            "\u{feff}{\"room\":{\"access_token\"\u{a0}:1}}",
            r#"{"room":{"access_token"/* a */:1"#,
            "{'room':{'access_token':1}}",
            "{room:{access_token:1}}",
            "{room={access_token=1}}",
            r#"{\"room\":{\"access_token\":1}}"#,
            r#"\"{\\\"room\\\":{\\\"access_token\\\":1}}\""#,
            r#"{"ro\u006fm":{"\u0061ccess_token":1}}"#,
            r#"{\"ro\\u006fm\":{\"\\x61ccess_token\":1}}"#,
            r#"\ud83d {"room":{"access_token":1}}"#,
            "{\0\"\0r\0o\0o\0m\0\"\0:\0{\0\"\0a\0c\0c\0e\0s\0s\0_\0t\0o\0k\0e\0n\0\"\0:\x001\0}\0}\0",
            r#"["room":["access_token":1]]"#,
            r#"x {"room":"text"}"#,
            r#"{'room': [ ["text"]]"#,
        ] {
            assert!(may(text), "{text}");
        }
        let path = ["room".to_owned(), "access_token".to_owned()];
        assert!(may_have_members(b"\xff{\"room\":1,\"access_token\":2\xe9", &path, 0));
        assert!(
            may_have_members(br#"{"access_token":1"#, &path, 1) && !may_have_members(br#"{"access_token":1"#, &path, 0)
        );
        let deep = (0..MAX_LEVELS + 1).fold("{\"room\":{\"access_token\":1}}".to_owned(), |text, _| {
            if text.len() > 1 << 20 { text } else { serde_json::to_string(&text).unwrap() }
        });
        assert!(may(&deep));
        let chain = "\\".to_owned() + &"u005c".repeat(100) + "room access_token";
        assert!(may(&chain), "what cannot be read may contain anything that it names");
    }

    #[test]
    fn prose_stays() {
        for text in [
            "",
            "the room and its access_token",
            "room: access_token: see \"below\"",
            r#"{"room":{"token":1}}"#,
            r#"{"access_token":1}"#,
            r#"{"room":1,"access_tokens":"room"}"#,
            r#"{"a":"room","b":"access_token"}"#,
            r#"{"rooms":1,"my_access_token":2}"#,
            r#"He said: "room", "access_token"."#,
            "room=1&access_token=2",
            "{room",
            r"C:\room\access_token",
        ] {
            assert!(!may(text), "{text}");
        }
    }
}
