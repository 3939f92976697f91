//! Decides which requests reach the admin endpoints: by `Host`, by the page that sent them, and by the body's type.
//!
//! A browser sends requests for any page that it shows. So a page of another site must not read or change anything, even
//! if it gets the admin listener's address under its own name (DNS rebinding). The token is checked elsewhere.

use crate::base::request_headers::{RequestHeaders, text};
use crate::rules::authority::Authority;
use http::Version;
use std::net::IpAddr;

/// Why a request does not reach the admin endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessRefusal {
    #[error("missing Host header; HTTP/1.1 requires exactly one (RFC 9112, section 3.2)")]
    MissingHost,
    #[error("more than one Host header; send exactly one (RFC 9112, section 3.2)")]
    SeveralHosts,
    #[error("invalid Host header; it must be a host name or an IP address, with or without a port")]
    InvalidHost,
    #[error("this Host is not known; use an IP address or localhost, or add the host name to admin.hosts of weir.yaml")]
    UnknownHost,
    #[error(
        "the request comes from a page of another origin (Origin or Sec-Fetch-Site); no page may use this listener"
    )]
    ForeignPage,
    #[error("the body must be JSON; send Content-Type: application/json")]
    NotJson,
}

/// The host in a `Host` header or an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case, without a trailing dot.
    Name(String),
}

/// Checks that the request has one valid `Host`, and that no page of another origin sent it. Returns the host; `None` if
/// an HTTP/1.0 request has none.
fn checked_host(headers: &RequestHeaders, version: Version) -> Result<Option<Host>, AccessRefusal> {
    let mut hosts = headers.get_all("host");
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(AccessRefusal::SeveralHosts);
    }
    let parsed = match host {
        None if version == Version::HTTP_10 => None,
        None => return Err(AccessRefusal::MissingHost),
        Some(host) => Some(text(host).and_then(parse_authority).ok_or(AccessRefusal::InvalidHost)?),
    };
    let same_origin = |origin: &[u8]| {
        let origin = text(origin).map(str::to_ascii_lowercase).unwrap_or_default();
        let (authority, default) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
            (Some(authority), _) => (authority, 80),
            (_, Some(authority)) => (authority, 443),
            _ => return false,
        };
        let (Some((host, port)), Some((own, own_port))) = (parse_authority(authority), &parsed) else { return false };
        host == *own && port.unwrap_or(default) == own_port.unwrap_or(default)
    };
    let from_own_page = |site: &[u8]| matches!(site, b"same-origin" | b"none");
    if !headers.get_all("origin").all(same_origin) || !headers.get_all("sec-fetch-site").all(from_own_page) {
        return Err(AccessRefusal::ForeignPage);
    }
    Ok(parsed.map(|(host, _)| host))
}

/// Checks where a request comes from. `hosts` are the names in `admin.hosts`; `any_host` skips the check of the host's
/// name, but not of its form.
///
/// # Errors
/// The reason why the request is refused.
pub(crate) fn check_source(
    headers: &RequestHeaders,
    version: Version,
    hosts: &[String],
    any_host: bool,
) -> Result<(), AccessRefusal> {
    let known = match checked_host(headers, version)? {
        // Browsers always send a Host, so no page sent this request.
        None | Some(Host::Address(_)) => true,
        Some(Host::Name(name)) => name == "localhost" || hosts.contains(&name),
    };
    if known || any_host { Ok(()) } else { Err(AccessRefusal::UnknownHost) }
}

/// Checks that a body is announced as JSON: a form can send other types to any host without a preflight.
///
/// # Errors
/// It is not.
pub(crate) fn check_content_type(headers: &RequestHeaders) -> Result<(), AccessRefusal> {
    let mut types = headers.get_all("content-type");
    let (Some(value), None) = (types.next().and_then(text), types.next()) else { return Err(AccessRefusal::NotJson) };
    let mut parts = value.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/json"));
    let is_utf8 = |parameter: &str| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    };
    if is_json && parts.all(is_utf8) { Ok(()) } else { Err(AccessRefusal::NotJson) }
}

/// Returns the token of an `Authorization: Bearer` header. The scheme is matched in any letter case (RFC 9110, section
/// 11.1). Several headers count as none.
pub(crate) fn bearer_token(headers: &RequestHeaders) -> Option<&[u8]> {
    let mut values = headers.get_all("authorization");
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.split_at_checked("Bearer".len())?;
    let token = token.strip_prefix(b" ").filter(|_| scheme.eq_ignore_ascii_case(b"bearer"))?;
    Some(token.trim_ascii())
}

/// Parses `HOST` or `HOST:PORT`.
fn parse_authority(text: &str) -> Option<(Host, Option<u16>)> {
    let authority = Authority::parse(text.as_bytes())?;
    let name = authority.name();
    let address = name.trim_matches(['[', ']']).parse();
    Some((address.map_or(Host::Name(name), Host::Address), authority.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use AccessRefusal::{ForeignPage, InvalidHost, MissingHost, NotJson, SeveralHosts, UnknownHost};

    fn headers(fields: &[(&str, &str)]) -> RequestHeaders {
        let mut headers = RequestHeaders::with_capacity(fields.len(), 0);
        fields.iter().for_each(|(name, value)| headers.append(name, value.as_bytes()));
        headers
    }

    fn check(fields: &[(&str, &str)]) -> Result<(), AccessRefusal> {
        check_source(&headers(fields), Version::HTTP_11, &["weir.internal".to_owned()], false)
    }

    #[test]
    fn only_addresses_localhost_and_configured_names_are_known_hosts() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8081",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:8081",
            "localhost",
            "LocalHost:9000",
            "localhost.:8081",
            "localhost:",
            "weir.internal",
            "WEIR.internal.:1",
        ] {
            assert_eq!(check(&[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8081",
            "2130706433",
            "127.1",
            "0x7f.1",
            "notlocalhost",
        ] {
            assert_eq!(check(&[("host", host)]), Err(UnknownHost), "{host}");
            assert_eq!(check_source(&headers(&[("host", host)]), Version::HTTP_11, &[], true), Ok(()), "{host}");
        }
        let forwarded = [("host", "evil.example"), ("x-forwarded-host", "localhost")];
        assert_eq!(check(&forwarded), Err(UnknownHost));
    }

    #[test]
    fn an_invalid_host_is_refused_wherever_it_leads() {
        for host in [
            "",
            "x y",
            "x/y",
            "[::1",
            "::1",
            "[::g]",
            "[127.0.0.1]",
            "u@localhost",
            "localhost:x",
            "localhost:99999",
            "a,b",
            "localhost:1:2",
            ".",
            "[::1]x",
            "[fe80::1%]",
            "[fe80::1%25eth0]",
        ] {
            for any_host in [false, true] {
                let checked = check_source(&headers(&[("host", host)]), Version::HTTP_11, &[], any_host);
                assert_eq!(checked, Err(InvalidHost), "{host:?}");
            }
        }
        assert_eq!(check(&[]), Err(MissingHost));
        assert_eq!(check(&[("host", "localhost"), ("host", "localhost")]), Err(SeveralHosts));
        assert_eq!(check_source(&headers(&[]), Version::HTTP_10, &[], false), Ok(()));
    }

    #[test]
    fn a_page_of_another_origin_is_refused_everywhere() {
        let from = |name: &str, value: &str| {
            let fields = headers(&[("host", "localhost:8081"), (name, value)]);
            [false, true].map(|any_host| check_source(&fields, Version::HTTP_11, &[], any_host))
        };
        for origin in ["http://localhost:8081", "https://localhost:8081", "HTTP://LOCALHOST:8081"] {
            assert_eq!(from("origin", origin), [Ok(()); 2], "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost",
            "http://localhost:8082",
            "http://127.0.0.1:8081",
            "file://",
            "http://localhost:8081/x",
        ] {
            assert_eq!(from("origin", origin), [Err(ForeignPage); 2], "{origin}");
        }
        for site in ["cross-site", "same-site", "", "other"] {
            assert_eq!(from("sec-fetch-site", site), [Err(ForeignPage); 2], "{site}");
        }
        for site in ["same-origin", "none"] {
            assert_eq!(from("sec-fetch-site", site), [Ok(()); 2], "{site}");
        }
        let both = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://evil.example")];
        assert_eq!(check(&both), Err(ForeignPage));
        assert_eq!(check(&[("host", "localhost:80"), ("origin", "http://localhost")]), Ok(()), "the default port");
    }

    #[test]
    fn a_body_is_json_in_utf8() {
        let check = |value: &str| check_content_type(&headers(&[("content-type", value)]));
        for value in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert_eq!(check(value), Ok(()), "{value}");
        }
        for value in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=utf-16",
            "text/plain, application/json",
            "application/jsonx",
            "",
        ] {
            assert_eq!(check(value), Err(NotJson), "{value}");
        }
        assert_eq!(check_content_type(&headers(&[])), Err(NotJson));
        let two = headers(&[("content-type", "application/json"), ("content-type", "application/json")]);
        assert_eq!(check_content_type(&two), Err(NotJson));
    }

    #[test]
    fn the_scheme_of_a_token_is_matched_in_any_letter_case() {
        let token = |value: &str| bearer_token(&headers(&[("authorization", value)])).map(<[u8]>::to_vec);
        for value in ["Bearer t", "bearer t", "BEARER  t "] {
            assert_eq!(token(value), Some(b"t".to_vec()), "{value}");
        }
        for value in ["t", "Basic t", "Bearert", "Bearer"] {
            assert_eq!(token(value), None, "{value}");
        }
        assert_eq!(bearer_token(&headers(&[("authorization", "Bearer t"), ("authorization", "Bearer t")])), None);
    }
}
