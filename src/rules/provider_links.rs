//! Rewrites the URLs in a provider's response headers that lead to the provider, so that they lead to Weir.
//!
//! A client that follows such a URL to the provider would go past Weir, with its Weir key. URLs are read as browsers
//! read them (WHATWG URL), which is the most lenient way. A URL at the provider's host that Weir cannot rewrite is
//! removed.

use crate::rules::link_header::{parameter_value, split_links, unquoted};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use url::{ParseError, Url};

/// Headers whose value is one URL.
const URL_HEADERS: [&str; 6] =
    ["location", "content-location", "operation-location", "azure-asyncoperation", "content-base", "uri"];

/// The address of a provider, in URLs.
#[derive(Debug, Clone)]
pub(crate) struct ProviderAddress {
    /// `None` if the base URL is no URL for browsers; then every absolute URL is removed.
    base: Option<Url>,
}

/// What to do with a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rewritten {
    /// It does not lead to the provider.
    Unchanged,
    /// The same place at Weir.
    Replaced(String),
    /// It leads to the provider, and to no place that Weir has.
    Removed,
}

impl ProviderAddress {
    /// Reads a base URL.
    #[must_use]
    pub(crate) fn new(base_url: &str) -> Self {
        Self { base: Url::parse(base_url).ok() }
    }

    /// Returns the headers that change, each with its new values; no values if the header is removed. `prefix` is the
    /// part of Weir's path before the provider's path.
    #[must_use]
    pub(crate) fn rewrite(&self, headers: &HeaderMap, prefix: &str) -> Vec<(HeaderName, Vec<HeaderValue>)> {
        let names = URL_HEADERS.map(HeaderName::from_static).into_iter().chain([header::LINK, header::REFRESH]);
        names.filter_map(|name| self.rewrite_header(headers, name, prefix)).collect()
    }

    fn rewrite_header(
        &self,
        headers: &HeaderMap,
        name: HeaderName,
        prefix: &str,
    ) -> Option<(HeaderName, Vec<HeaderValue>)> {
        let mut changed = false;
        let mut values = Vec::new();
        for value in headers.get_all(&name) {
            let rewritten = self.value(value.as_bytes(), |text| match name {
                header::LINK => self.link(text, prefix),
                header::REFRESH => self.refresh(text, prefix),
                _ => self.url(text, prefix),
            });
            changed |= rewritten != Rewritten::Unchanged;
            match rewritten {
                Rewritten::Unchanged => values.push(value.clone()),
                Rewritten::Replaced(text) => values.extend(HeaderValue::try_from(text)),
                Rewritten::Removed => {}
            }
        }
        changed.then_some((name, values))
    }

    /// Rewrites a header value. One that is not UTF-8 has two readings; it is removed if one of them leads to the provider.
    fn value(&self, value: &[u8], rewrite: impl Fn(&str) -> Rewritten) -> Rewritten {
        if let Ok(text) = std::str::from_utf8(value) {
            return rewrite(text);
        }
        let latin1: String = value.iter().map(|byte| char::from(*byte)).collect();
        match [rewrite(&latin1), rewrite(&String::from_utf8_lossy(value))] {
            [Rewritten::Unchanged, Rewritten::Unchanged] => Rewritten::Unchanged,
            _ => Rewritten::Removed,
        }
    }

    /// Rewrites one URL.
    fn url(&self, reference: &str, prefix: &str) -> Rewritten {
        let Some(base) = &self.base else { return Rewritten::Removed };
        // Browsers ignore line ends and tabs, and read a backslash as a slash.
        let plain: String = reference.chars().filter(|c| !matches!(c, '\t' | '\r' | '\n')).collect();
        let plain = plain.trim_matches(|c: char| c <= ' ').replace('\\', "/");
        // They ignore all but two slashes before a host.
        let plain = match plain.strip_prefix("//") {
            Some(rest) => format!("//{}", rest.trim_start_matches('/')),
            None => plain,
        };
        let url = match Url::parse(&plain) {
            Ok(url) => url,
            // A path relative to the request's leads to the same place below Weir's prefix.
            Err(ParseError::RelativeUrlWithoutBase) if !plain.starts_with('/') => return Rewritten::Unchanged,
            Err(ParseError::RelativeUrlWithoutBase) => match base.join(&plain) {
                Ok(url) => url,
                Err(_) => return Rewritten::Removed,
            },
            Err(_) if self.is_named_in(&plain) => return Rewritten::Removed,
            Err(_) => return Rewritten::Unchanged,
        };
        if !same_host(&url, base) {
            return Rewritten::Unchanged;
        }
        let default_ports = url.port().is_none() && base.port().is_none();
        let same_port = default_ports || url.port_or_known_default() == base.port_or_known_default();
        if !matches!(url.scheme(), "http" | "https") || !same_port {
            return Rewritten::Removed;
        }
        let Some(rest) = url.path().strip_prefix(base.path().trim_end_matches('/')) else { return Rewritten::Removed };
        if !rest.is_empty() && !rest.starts_with('/') {
            return Rewritten::Removed;
        }
        let mut target = format!("{prefix}{}", if rest.is_empty() { "/" } else { rest });
        for (mark, part) in [('?', url.query()), ('#', url.fragment())] {
            target.extend(part.map(|part| format!("{mark}{part}")));
        }
        match target {
            // It would lead to another host.
            target if target.starts_with("//") => Rewritten::Removed,
            target if target == reference => Rewritten::Unchanged,
            target => Rewritten::Replaced(target),
        }
    }

    /// Rewrites the targets and anchors of a `Link` header (RFC 8288, section 3).
    fn link(&self, value: &str, prefix: &str) -> Rewritten {
        let links: Vec<&str> = split_links(value);
        let kept: Vec<String> = links.iter().filter_map(|link| self.one_link(link, prefix)).collect();
        match kept.join(", ") {
            kept if kept.is_empty() => Rewritten::Removed,
            kept if kept == links.join(", ") => Rewritten::Unchanged,
            kept => Rewritten::Replaced(kept),
        }
    }

    /// Returns one link, rewritten. `None` if it leads to the provider and cannot be rewritten, or if it cannot be read: a
    /// client may read it.
    fn one_link(&self, link: &str, prefix: &str) -> Option<String> {
        let (target, mut rest) = link.strip_prefix('<')?.split_once('>')?;
        let mut out = format!("<{}>", self.kept_url(target, prefix)?);
        while !rest.trim_start().is_empty() {
            let parameter = rest.trim_start().strip_prefix(';')?.trim_start();
            let name_end = parameter.find(|c: char| matches!(c, '=' | ';' | '"' | '<') || c.is_whitespace());
            let (name, behind) = parameter.split_at(name_end.unwrap_or(parameter.len()));
            let value = behind.trim_start().strip_prefix('=').map(str::trim_start);
            let (value, after) = match value {
                Some(value) => parameter_value(value)?,
                None => ("", behind),
            };
            let is_anchor = name.eq_ignore_ascii_case("anchor");
            // Of an encoded anchor Weir has no reader.
            if name.eq_ignore_ascii_case("anchor*") {
                return None;
            }
            let before = &rest[..rest.len() - after.len() - value.len()];
            out.push_str(before);
            match is_anchor {
                true => out.push_str(&self.anchor(value, prefix)?),
                false => out.push_str(value),
            }
            rest = after;
        }
        Some(out)
    }

    /// Returns the value of an `anchor` parameter, rewritten.
    fn anchor(&self, value: &str, prefix: &str) -> Option<String> {
        let url = unquoted(value);
        let kept = self.kept_url(&url, prefix)?;
        Some(if kept == url { value.to_owned() } else { format!("\"{kept}\"") })
    }

    /// Returns a URL, rewritten if it leads to the provider. `None` if that is not possible.
    fn kept_url(&self, url: &str, prefix: &str) -> Option<String> {
        match self.url(url, prefix) {
            Rewritten::Unchanged => Some(url.to_owned()),
            Rewritten::Replaced(url) => Some(url),
            Rewritten::Removed => None,
        }
    }

    /// Rewrites a `Refresh` header: seconds, then a URL (WHATWG HTML, section 4.2.5.3).
    fn refresh(&self, value: &str, prefix: &str) -> Rewritten {
        let seconds_end = value.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ' ').unwrap_or(value.len());
        let (seconds, rest) = value.split_at(seconds_end);
        let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | ','));
        let rest = match rest.get(..3) {
            Some(word) if word.eq_ignore_ascii_case("url") => match rest[3..].trim_start().strip_prefix('=') {
                Some(url) => url.trim_start(),
                None => rest,
            },
            _ => rest,
        };
        let url = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => rest[1..].split(quote).next().unwrap_or_default(),
            _ => rest,
        };
        match self.url(url, prefix) {
            Rewritten::Replaced(url) => Rewritten::Replaced(format!("{}; url={url}", seconds.trim())),
            rewritten => rewritten,
        }
    }

    /// Returns whether a text contains the provider's host.
    fn is_named_in(&self, text: &str) -> bool {
        let host = self.base.as_ref().and_then(Url::host_str);
        host.is_none_or(|host| text.to_ascii_lowercase().contains(host))
    }
}

/// Compares host names. A dot at the end makes no difference.
fn same_host(one: &Url, other: &Url) -> bool {
    let host = |url: &Url| url.host_str().map(|host| host.trim_end_matches('.').to_ascii_lowercase());
    host(one).is_some() && host(one) == host(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(base: &str, prefix: &str, name: &'static str, value: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())]);
        match ProviderAddress::new(base).rewrite(&headers, prefix).pop() {
            None => Some(value.to_owned()),
            Some((_, values)) => values.first().map(|value| value.to_str().unwrap().to_owned()),
        }
    }

    #[test]
    fn a_location_at_the_provider_becomes_one_at_weir_in_every_spelling() {
        for value in [
            "https://api.example/base/v2/x?y=1#z",
            "HTTPS://API.Example/base/v2/x?y=1#z",
            "//api.example/base/v2/x?y=1#z",
            "///api.example/base/v2/x?y=1#z",
            "\\\\api.example/base/v2/x?y=1#z",
            "/\\api.example/base/v2/x?y=1#z",
            "https:\\\\api.example\\base/v2/x?y=1#z",
            "https:api.example/base/v2/x?y=1#z",
            "https:/api.example/base/v2/x?y=1#z",
            "https://api.example:443/base/v2/x?y=1#z",
            "https://user:password@api.example/base/v2/x?y=1#z",
            "https://api.example./base/v2/x?y=1#z",
            "https://api%2eexample/base/v2/x?y=1#z",
            "http://api.example/base/v2/x?y=1#z",
            "http://api.example:80/base/v2/x?y=1#z",
            " https://api.example/base/v2/x?y=1#z ",
            "ht\ttps://api.exa\tmple/base/v2/x?y=1#z",
            "https://api.example/base/../base/v2/x?y=1#z",
            "/base/v2/x?y=1#z",
        ] {
            for name in ["location", "content-location", "operation-location", "uri"] {
                let found = rewritten("https://api.example/base", "/one", name, value);
                assert_eq!(found.as_deref(), Some("/one/v2/x?y=1#z"), "{name}: {value:?}");
            }
        }
        for (base, value) in [("http://127.0.0.1:81", "http://2130706433:81/x"), ("http://[::1]:81", "//[0:0::1]:81/x")]
        {
            assert_eq!(rewritten(base, "/one", "location", value).as_deref(), Some("/one/x"), "{value}");
        }
        assert_eq!(rewritten("https://a", "/one", "location", "https://a").as_deref(), Some("/one/"));
        assert_eq!(rewritten("https://a", "/one", "location", "https://a?b").as_deref(), Some("/one/?b"));
        assert_eq!(rewritten("https://a", "", "location", "//a/v2").as_deref(), Some("/v2"));
    }

    #[test]
    fn a_location_at_the_provider_that_weir_does_not_have_is_removed() {
        for value in [
            "https://api.example/login",
            "https://api.example/based",
            "https://api.example/base/../x",
            "https://api.example:8443/base/x",
            "wss://api.example/base/x",
            "ftp://api.example/base/x",
            "/login",
            "https://api.example:99999/base",
        ] {
            assert_eq!(rewritten("https://api.example/base", "/one", "location", value), None, "{value}");
        }
        assert_eq!(rewritten("https://a", "", "location", "https://a//evil.example/"), None);
    }

    #[test]
    fn a_value_that_is_not_utf8_is_removed_if_one_reading_leads_to_the_provider() {
        let gone = |value: &[u8]| {
            let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_bytes(value).unwrap())]);
            let rewritten = ProviderAddress::new("http://127.0.0.1:81").rewrite(&headers, "/one");
            rewritten.first().is_some_and(|(_, values)| values.is_empty())
        };
        // An ideographic full stop is a dot for browsers.
        assert!(gone(b"http://127\xe3\x80\x820.0.1:81/x\xff"));
        assert!(gone(b"http://127.0.0.1:81/x\xff"));
        assert!(!gone(b"http://other.example/x\xff") && !gone(b"x\xff"));
    }

    #[test]
    fn other_locations_stay() {
        for value in [
            "https://other.example/api.example",
            "https://api.example.evil/base",
            "x",
            "../x",
            "?y",
            "#z",
            "",
            "mailto:a@api.example",
        ] {
            assert_eq!(rewritten("https://api.example/base", "/one", "location", value).as_deref(), Some(value));
        }
    }

    #[test]
    fn link_and_refresh_lead_to_weir_too() {
        let link = |value: &str| rewritten("https://api.example", "/one", "link", value);
        let next = "<https://API.example/v2?a=1,2>; rel=\"next\"; title=\"a, \\\"b\", <https://other.example/>;rel=x";
        assert_eq!(
            link(next).as_deref(),
            Some("</one/v2?a=1,2>; rel=\"next\"; title=\"a, \\\"b\", <https://other.example/>;rel=x")
        );
        assert_eq!(
            link("<x>; anchor = \"//api.example/y\"; rel=z").as_deref(),
            Some("<x>; anchor = \"/one/y\"; rel=z")
        );
        assert_eq!(link("</v2/a>; rel=next, <b>").as_deref(), Some("</one/v2/a>; rel=next, <b>"));
        for gone in [
            "<https://api.example:1/>; rel=next",
            "<https://api.example/; rel=next",
            "https://api.example/x",
            "<x>; anchor*=UTF-8''https%3A%2F%2Fapi.example%2F",
            "<x>; anchor=\"https://api.example:1/\"",
            "<x>; title=\"a; anchor=\"https://api.example/",
            "<x>; anchor=\"https://api.example/",
            "<x> https://api.example/",
        ] {
            assert_eq!(link(gone), None, "{gone}");
            assert_eq!(
                link(&format!("<x>; rel=y,{gone}")).as_deref().map(|kept| kept.contains("api.example")),
                Some(false)
            );
        }
        for kept in [
            "<https://other.example/?to=https://api.example/>; rel=next",
            "<x>; title=\"about https://api.example/\"; rel=\"next\"",
            "<x>;rel=next;title=api.example;",
            "<x>; title=\"a\\\"\"; anchor=\"y\"",
            "<>;;",
        ] {
            assert_eq!(link(kept).as_deref(), Some(kept), "{kept}");
        }
        for (anchored, expected) in [
            ("<x>; anchor=https://api.example/", "<x>; anchor=\"/one/\""),
            ("<x>; ANCHOR = https://api.example/y;rel=z", "<x>; ANCHOR = \"/one/y\";rel=z"),
            ("<x>; title=\"a\\\"\"; anchor=\"https://api.example/y\"", "<x>; title=\"a\\\"\"; anchor=\"/one/y\""),
            ("<x>; anchor=\"h\\ttps://api.exam\\ple/y\"", "<x>; anchor=\"/one/y\""),
        ] {
            assert_eq!(link(anchored).as_deref(), Some(expected), "{anchored}");
        }
        let numbers = |value: &str| rewritten("http://127.0.0.1:81", "/one", "link", value);
        assert_eq!(
            numbers("<x>; title=\"a\\\"\"; anchor=\"http://2130706433:81/y\"").as_deref(),
            Some("<x>; title=\"a\\\"\"; anchor=\"/one/y\"")
        );
        let refresh = |value: &str| rewritten("https://api.example", "/one", "refresh", value);
        for value in [
            "5; url=https://api.example/x",
            "5;URL='HTTPS://api.example/x' y",
            "5, https://api.example/x",
            "5 url = //api.example/x",
        ] {
            assert_eq!(refresh(value).as_deref(), Some("5; url=/one/x"), "{value}");
        }
        assert_eq!(refresh("5; url=https://api.example:1/x"), None);
        for kept in ["5", "5; url=https://other.example/", ""] {
            assert_eq!(refresh(kept).as_deref(), Some(kept));
        }
    }
}
