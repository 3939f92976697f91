//! Parses `Accept-Encoding` and orders what a client accepts (RFC 9110, section 12.5.3).

use crate::base::content_coding::ContentCoding;
use crate::base::request_headers;
use http::HeaderValue;

/// The most members of `Accept-Encoding` that Weir reads. No client has more codings than a few.
const MAX_MEMBERS: usize = 32;
/// The weight of a member without one, in thousandths.
const FULL: u16 = 1000;

/// What a client accepts. Weights are in thousandths; 0 means not acceptable, `None` that the client does not list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Accepted {
    codings: [Option<u16>; ContentCoding::ALL.len()],
    identity: Option<u16>,
    any: Option<u16>,
}

/// Parses all values of `Accept-Encoding`. Returns `None` without a value: then the client may not know any coding. A
/// member that is not valid, or names a coding that Weir does not have, is ignored. A coding that is listed several times
/// has its lowest weight.
#[must_use]
pub(crate) fn accepted<'v>(values: impl Iterator<Item = &'v [u8]>) -> Option<Accepted> {
    let mut values = values.peekable();
    values.peek()?;
    let mut accepted = Accepted::default();
    let members = values.flat_map(|value| request_headers::text(value).unwrap_or_default().split(','));
    for member in members.take(MAX_MEMBERS) {
        let (name, parameters) = member.split_once(';').unwrap_or((member, ""));
        let Some(weight) = weight(parameters) else { continue };
        let Some(listed) = accepted.listed(name.trim_matches([' ', '\t'])) else { continue };
        *listed = Some(listed.map_or(weight, |other| other.min(weight)));
    }
    Some(accepted)
}

/// Returns the weight in the parameters of a member, in thousandths. 1000 without one; `None` if it is not valid. Further
/// digits than three are cut off, because some clients send them.
fn weight(parameters: &str) -> Option<u16> {
    let is_weight = |parameter: &&str| parameter.get(..2).is_some_and(|name| name.eq_ignore_ascii_case("q="));
    let mut parameters = parameters.split(';').map(|parameter| parameter.trim_matches([' ', '\t']));
    let Some(weight) = parameters.find(is_weight) else { return Some(FULL) };
    let (whole, decimals) = weight[2..].split_once('.').unwrap_or((&weight[2..], ""));
    if !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths =
        decimals.bytes().chain([b'0'; 3]).take(3).fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(FULL),
        _ => None,
    }
}

impl Accepted {
    /// Returns the place for the weight of a name; `None` if Weir does not have this coding. Names are not case-sensitive,
    /// and `x-gzip` is `gzip` (RFC 9110, section 8.4.1).
    fn listed(&mut self, name: &str) -> Option<&mut Option<u16>> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name {
            "*" => Some(&mut self.any),
            _ if is("identity") => Some(&mut self.identity),
            _ if is("x-gzip") => Some(&mut self.codings[ContentCoding::Gzip as usize]),
            _ => {
                let coding = ContentCoding::ALL.into_iter().find(|coding| is(coding.as_str()))?;
                Some(&mut self.codings[coding as usize])
            }
        }
    }

    /// Returns whether the client accepts a response without a coding.
    #[must_use]
    pub(crate) fn accepts_identity(&self) -> bool {
        self.identity.or(self.any) != Some(0)
    }

    /// Returns what the client accepts, the best first; `None` means without a coding. `enabled` has the codings that Weir
    /// may use, the preferred one first, which decides between equal weights.
    #[must_use]
    pub(crate) fn ranked(&self, enabled: &[ContentCoding]) -> Vec<Option<ContentCoding>> {
        let weight = |coding: &ContentCoding| self.codings[*coding as usize].or(self.any).unwrap_or(0);
        let codings = enabled.iter().filter(|coding| weight(coding) > 0);
        let mut ranked: Vec<_> = codings.map(|coding| (weight(coding), Some(*coding))).collect();
        if self.accepts_identity() {
            // A client that lists codings without a word about identity prefers each of them to it.
            ranked.push((self.identity.or(self.any).unwrap_or(0), None));
        }
        ranked.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        ranked.into_iter().map(|(_, coding)| coding).collect()
    }
}

/// Returns the entity tag of a body in a coding, given that of the body without one. Bodies in different codings have
/// different bytes, so their strong tags differ too (RFC 9110, section 8.8.3.3).
#[must_use]
pub(crate) fn tag(plain: &HeaderValue, coding: Option<ContentCoding>) -> HeaderValue {
    let encoded = coding.and_then(|coding| {
        let opaque = plain.as_bytes().strip_suffix(b"\"")?;
        HeaderValue::from_bytes(&[opaque, b"-", coding.as_str().as_bytes(), b"\""].concat()).ok()
    });
    encoded.unwrap_or_else(|| plain.clone())
}

/// Returns whether a tag is that of a body in any coding or without one, given the latter.
#[must_use]
pub(crate) fn is_tag_of(tag: &HeaderValue, plain: &HeaderValue) -> bool {
    tag == plain || ContentCoding::ALL.into_iter().any(|coding| self::tag(plain, Some(coding)) == *tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContentCoding::{Br, Gzip, Zstd};

    fn ranked_of(values: &[&str], enabled: &[ContentCoding]) -> Vec<&'static str> {
        let accepted = accepted(values.iter().map(|value| value.as_bytes())).unwrap();
        let names = accepted.ranked(enabled).into_iter().map(|coding| coding.map_or("identity", ContentCoding::as_str));
        names.collect()
    }

    fn ranked(value: &str) -> Vec<&'static str> {
        ranked_of(&[value], &ContentCoding::ALL)
    }

    #[test]
    fn weights_decide_and_then_the_order_of_the_configuration() {
        assert_eq!(ranked("gzip, br, zstd"), ["zstd", "br", "gzip", "identity"]);
        assert_eq!(ranked("gzip, deflate, br;q=0.9"), ["gzip", "br", "identity"]);
        assert_eq!(ranked("gzip;q=0.5, br;q=0.501"), ["br", "gzip", "identity"]);
        assert_eq!(ranked_of(&["gzip, br, zstd"], &[Gzip, Zstd]), ["gzip", "zstd", "identity"]);
        assert_eq!(ranked_of(&["gzip;q=0.2", "br;q=0.1"], &[Br, Gzip]), ["gzip", "br", "identity"]);
        assert_eq!(ranked("gzip;q=0.001"), ["gzip", "identity"]);
    }

    #[test]
    fn identity_is_acceptable_unless_it_is_excluded() {
        assert_eq!(ranked("gzip;q=0"), ["identity"]);
        assert_eq!(ranked(""), ["identity"]);
        assert_eq!(ranked("deflate, compress"), ["identity"]);
        assert_eq!(ranked("identity, gzip;q=0.5"), ["identity", "gzip"]);
        assert_eq!(ranked("identity;q=0.5, gzip;q=0.5"), ["gzip", "identity"]);
        assert_eq!(ranked("identity;q=0, gzip"), ["gzip"]);
        assert_eq!(ranked("identity;q=0"), Vec::<&str>::new());
        assert_eq!(ranked("*;q=0"), Vec::<&str>::new());
        assert_eq!(ranked("*;q=0, gzip"), ["gzip"]);
        assert_eq!(ranked("*;q=0, identity"), ["identity"]);
    }

    #[test]
    fn a_star_stands_for_every_coding_that_is_not_listed() {
        assert_eq!(ranked("*"), ["zstd", "br", "gzip", "identity"]);
        assert_eq!(ranked("*, zstd;q=0"), ["br", "gzip", "identity"]);
        assert_eq!(ranked("br;q=1, *;q=0.1"), ["br", "zstd", "gzip", "identity"]);
        assert_eq!(ranked("*;q=0.5, identity;q=0"), ["zstd", "br", "gzip"]);
    }

    #[test]
    fn names_and_weights_are_read_in_every_form() {
        for value in
            ["GZip", " gzip ", "\tgzip\t;\tq=1.000", "gzip;Q=1.", "x-gzip", "X-GZIP;q=1.0", ",,gzip,", "gzip;a=b;q=1"]
        {
            assert_eq!(ranked(value), ["gzip", "identity"], "{value:?}");
        }
        for value in [
            "gzip;q=0.000",
            "gzip;q=0.",
            "gzip;q=0.0009",
            "gzip;q=2",
            "gzip;q=1.5",
            "gzip;q=-1",
            "gzip;q=x",
            "gzip;q=",
            "gzip;q=0.5x",
            "gzip;q=00.5",
            "gzip gzip",
            "gzipped",
            "gzip/br",
            "\u{e4}, gzip",
        ] {
            assert_eq!(ranked(value), ["identity"], "{value:?}");
        }
        assert_eq!(ranked("gzip;q=0.33333333, br;q=0.334"), ["br", "gzip", "identity"]);
        assert_eq!(ranked("gzip, gzip;q=0"), ["identity"], "the lowest weight of a coding");
        assert_eq!(ranked("gzip;q=0, gzip"), ["identity"]);
    }

    #[test]
    fn several_lines_are_one_list_and_a_line_that_is_not_text_has_no_member() {
        let values: [&[u8]; 3] = [b"br;q=0.5", b"\xff gzip", b"gzip"];
        assert_eq!(accepted(values.into_iter()).unwrap().ranked(&[Br, Gzip]), [Some(Gzip), Some(Br), None]);
        assert_eq!(accepted(std::iter::empty()), None);
    }

    #[test]
    fn only_the_first_members_of_a_long_list_are_read() {
        let long = format!("{}gzip", "x,".repeat(MAX_MEMBERS));
        assert_eq!(ranked(&long), ["identity"]);
        assert_eq!(ranked(&long[2..]), ["gzip", "identity"]);
        assert_eq!(ranked(&format!("gzip{}", ",x;q=0.1".repeat(10_000))), ["gzip", "identity"]);
    }

    #[test]
    fn each_coding_has_a_strong_tag_of_its_own() {
        let plain = HeaderValue::from_static("\"abc\"");
        assert_eq!(tag(&plain, None), plain);
        assert_eq!(
            ContentCoding::ALL.map(|coding| tag(&plain, Some(coding))),
            ["\"abc-zstd\"", "\"abc-br\"", "\"abc-gzip\""]
        );
        let is = |tag: &'static str| is_tag_of(&HeaderValue::from_static(tag), &plain);
        assert!(is("\"abc\"") && is("\"abc-br\"") && !is("\"abc-\"") && !is("\"abc-deflate\"") && !is("\"ab-br\""));
    }
}
