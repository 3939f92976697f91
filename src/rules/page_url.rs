//! Decides whether Weir follows the URL of a list's next page, and with which query.
//!
//! Weir takes only the query of such a URL. Scheme, host, port and path stay those of the list; a URL that has others is
//! refused. The query may not name another agent, a credential or a method.

use crate::rules::query;
use crate::rules::template::Template;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use url::Url;

/// The most bytes of a URL that is read.
const MAX_URL: usize = 8 << 10;
/// The most bytes of its query, which becomes a part of Weir's page tokens.
const MAX_QUERY: usize = 2 << 10;

/// The list that a page belongs to.
pub(crate) struct ListUrl<'l> {
    /// Returns the URL of its first page.
    pub own_url: &'l dyn Fn() -> Option<String>,
    /// The template of its requests.
    pub template: &'l Template,
    /// Removes the parameters of the credential from a query. Each request gets them anew.
    pub without_credential: &'l dyn for<'q> Fn(&'q str) -> Cow<'q, str>,
}

/// Parameters with a credential, in lower case and without other characters than letters and digits.
const CREDENTIALS: [&str; 29] = [
    "accesskey",
    "accesstoken",
    "apikey",
    "apitoken",
    "auth",
    "authkey",
    "authorization",
    "authtoken",
    "bearer",
    "bearertoken",
    "clientsecret",
    "credential",
    "credentials",
    "idtoken",
    "jwt",
    "key",
    "oauthtoken",
    "passwd",
    "password",
    "privatekey",
    "pwd",
    "refreshtoken",
    "secret",
    "secretkey",
    "sig",
    "signature",
    "subscriptionkey",
    "xapikey",
    "xauthtoken",
];
/// What the names of further such parameters begin with: signed URLs.
const CREDENTIAL_PREFIXES: [&str; 2] = ["xamz", "xgoog"];
/// Parameters that make some servers handle another method.
const METHODS: [&str; 7] =
    ["httpmethod", "method", "methodoverride", "xhttpmethod", "xhttpmethodoverride", "xhttpverb", "xmethodoverride"];

/// Why the URL of a next page is not followed. No message has the URL, which can contain a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum UrlFault {
    #[error("it is not a URL (RFC 3986)")]
    Malformed,
    #[error("it has more than {limit} bytes in its {part}")]
    TooLong { part: &'static str, limit: usize },
    #[error("it has another {part} than the list (operations.list_sessions.request at base_url)")]
    Elsewhere { part: &'static str },
    #[error("it has a user name or a password")]
    UserInfo,
    #[error("it has no query, so it is the URL of the first page")]
    NoQuery,
    #[error("its query changes {name:?}, which says whose sessions are in the list")]
    OtherList { name: String },
    #[error("its query has {name:?}, which is the name of a credential or of a method")]
    Forbidden { name: String },
}

/// Returns the query of the next page's URL, without the parameters of the credential: a provider may repeat its whole URL.
/// `own` is the URL of the list's first page.
///
/// # Errors
/// The URL is not one of the same list.
pub(crate) fn next_query(own: &str, list: &ListUrl<'_>, reference: &str) -> Result<String, UrlFault> {
    if reference.len() > MAX_URL {
        return Err(UrlFault::TooLong { part: "length", limit: MAX_URL });
    }
    if !is_strict(reference) {
        return Err(UrlFault::Malformed);
    }
    let own = Url::parse(own).map_err(|_| UrlFault::Malformed)?;
    let next = own.join(reference).map_err(|_| UrlFault::Malformed)?;
    if !next.username().is_empty() || next.password().is_some() {
        return Err(UrlFault::UserInfo);
    }
    let elsewhere = |part| Err(UrlFault::Elsewhere { part });
    match () {
        () if next.scheme() != own.scheme() => return elsewhere("scheme"),
        () if next.host_str().is_none() || next.host_str() != own.host_str() => return elsewhere("host"),
        () if next.port_or_known_default() != own.port_or_known_default() => return elsewhere("port"),
        () if !same_path(next.path(), own.path()) => return elsewhere("path"),
        () => {}
    }
    // The URL parser changes some characters of a query.
    let before_fragment = reference.split('#').next().unwrap_or_default();
    let query = before_fragment.split_once('?').map(|(_, query)| query).filter(|query| !query.is_empty());
    let query = query.map(list.without_credential).filter(|query| !query.is_empty()).ok_or(UrlFault::NoQuery)?;
    if query.len() > MAX_QUERY {
        return Err(UrlFault::TooLong { part: "query", limit: MAX_QUERY });
    }
    check_query(&query, own.query().unwrap_or_default(), list.template)?;
    Ok(query.into_owned())
}

/// Returns whether a text has only the characters of a URL, complete percent-encodings, and a host if it has a scheme.
/// What else a lenient parser accepts, two parsers can read differently.
fn is_strict(reference: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let encoded =
        |rest: &str| rest.get(..2).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    if !reference.bytes().all(is_allowed) || !reference.split('%').skip(1).all(encoded) {
        return false;
    }
    let scheme_end = reference.find([':', '/', '?', '#']).filter(|end| reference[*end..].starts_with(':'));
    let after_scheme = scheme_end.map_or(reference, |end| &reference[end + 1..]);
    match after_scheme.strip_prefix("//") {
        Some(host) => !host.starts_with(['/', '?', '#']) && !host.is_empty(),
        None => scheme_end.is_none(),
    }
}

/// Compares paths by their segments. A segment may be percent-encoded in two ways.
fn same_path(one: &str, other: &str) -> bool {
    let segments = |path| str::split(path, '/').map(|segment| Cow::from(percent_decode_str(segment)));
    segments(one).eq(segments(other))
}

fn check_query(query: &str, own: &str, template: &Template) -> Result<(), UrlFault> {
    let own: Vec<_> = query::pairs(own).flatten().collect();
    for pair in query::pairs(query) {
        let (name, value) = pair.map_err(|_| UrlFault::Malformed)?;
        let same = |(own, own_value): &(Cow<'_, str>, Cow<'_, str>)| *own == name && *own_value == value;
        if template.selects_by(&name) && !own.iter().any(same) {
            return Err(UrlFault::OtherList { name: name.into_owned() });
        }
    }
    // Some servers end a parameter at a semicolon too.
    for pair in query.split(['&', ';']) {
        let (name, _) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8().map_err(|_| UrlFault::Malformed)?;
        if !template.sends_parameter(&name) && is_forbidden(&name) {
            return Err(UrlFault::Forbidden { name: name.into_owned() });
        }
    }
    Ok(())
}

fn is_forbidden(name: &str) -> bool {
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    let name: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    CREDENTIALS.contains(&&*name)
        || METHODS.contains(&&*name)
        || CREDENTIAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        let mut template = Template::compile("GET /v2/agents/{agent}/sessions").unwrap();
        template.add_query("limit", "{limit}").unwrap();
        template.add_query("enabled", "{enabled}").unwrap();
        template.add_query("key", "fixed").unwrap();
        template
    }

    const OWN: &str = "https://api.example/base/v2/agents/a%2Fb/sessions?limit=100&key=fixed";

    /// The credential is the parameter `token_of_weir`.
    fn next_of(own: &str, template: &Template, reference: &str) -> Result<String, UrlFault> {
        let list = ListUrl {
            own_url: &|| None,
            template,
            without_credential: &|query| query::without(query, |name| query::is_same_name(name, "token_of_weir")),
        };
        next_query(own, &list, reference)
    }

    #[test]
    fn the_parameter_of_the_credential_is_left_out() {
        for query in ["page=2&token_of_weir=****", "Token_Of_Weir=**&page=2", "token_of_weir=&page=2&token%5Fof_weir"] {
            assert_eq!(followed(&format!("?{query}")).as_deref(), Ok("page=2"), "{query}");
        }
        assert_eq!(followed("?token_of_weir=****"), Err(UrlFault::NoQuery));
    }

    fn followed(reference: &str) -> Result<String, UrlFault> {
        next_of(OWN, &template(), reference)
    }

    #[test]
    fn every_spelling_of_the_lists_own_url_is_followed() {
        for reference in [
            "https://api.example/base/v2/agents/a%2Fb/sessions?page=2&limit=100",
            "HTTPS://API.Example:443/base/v2/agents/a%2fb/sessions?page=2&limit=100",
            "//api.example/base/v2/agents/a%2Fb/sessions?page=2&limit=100",
            "/base/v2/agents/a%2Fb/sessions?page=2&limit=100",
            "/base/v2/agents/%61%2Fb/sessions?page=2&limit=100",
            "/base/v2/./x/../agents/a%2Fb/sessions?page=2&limit=100#part",
            "sessions?page=2&limit=100",
            "../a%2Fb/sessions?page=2&limit=100",
            "?page=2&limit=100#x?y",
        ] {
            assert_eq!(followed(reference).as_deref(), Ok("page=2&limit=100"), "{reference}");
        }
        for query in ["page=2&x='a'", "cursor=a%2Bb+c==", "filter[x]=1&enabled2=true", "key=fixed&p=1", "at=10:30/5?x"]
        {
            assert_eq!(followed(&format!("?{query}")).as_deref(), Ok(query));
        }
    }

    #[test]
    fn a_url_that_leads_elsewhere_is_refused() {
        for (reference, part) in [
            ("http://api.example/base/v2/agents/a%2Fb/sessions?page=2", "scheme"),
            ("ftp://api.example/base/v2/agents/a%2Fb/sessions?page=2", "scheme"),
            ("https://evil.example/base/v2/agents/a%2Fb/sessions?page=2", "host"),
            ("//evil.example/base/v2/agents/a%2Fb/sessions?page=2", "host"),
            ("https://api.example.evil/base/v2/agents/a%2Fb/sessions?page=2", "host"),
            ("https://api.example./base/v2/agents/a%2Fb/sessions?page=2", "host"),
            ("https://api.example:8443/base/v2/agents/a%2Fb/sessions?page=2", "port"),
            ("//api.example:80/base/v2/agents/a%2Fb/sessions?page=2", "port"),
            ("/v2/agents/a%2Fb/sessions?page=2", "path"),
            ("/base/v2/agents/a/b/sessions?page=2", "path"),
            ("/base/v2/agents/a%252Fb/sessions?page=2", "path"),
            ("/base/v2/agents/c/sessions?page=2", "path"),
            ("/base/v2/agents/a%2Fb/sessions/?page=2", "path"),
            ("/base//v2/agents/a%2Fb/sessions?page=2", "path"),
            ("/base/v2/agents/a%2Fb/sessions/s?page=2", "path"),
            ("/base/V2/agents/a%2Fb/sessions?page=2", "path"),
            ("/base/v2/agents/a%2Fb/sessions/..?page=2", "path"),
            ("/base/v2/agents/a%2Fb/sessions/%2e%2e/sessions/x?page=2", "path"),
            ("/base/v2/agents/a%2Fb/sessions;x?page=2", "path"),
            ("x?page=2", "path"),
        ] {
            assert_eq!(followed(reference), Err(UrlFault::Elsewhere { part }), "{reference}");
        }
        for reference in
            ["https://user@api.example/base?p=2", "//u:p@api.example/base?p=2", "https://:@x@api.example/?p"]
        {
            assert!(matches!(followed(reference), Err(UrlFault::UserInfo | UrlFault::Malformed)), "{reference}");
        }
        for reference in ["#x", "/base/v2/agents/a%2Fb/sessions", "/base/v2/agents/a%2Fb/sessions?", "?#page=2"] {
            assert_eq!(followed(reference), Err(UrlFault::NoQuery), "{reference}");
        }
    }

    #[test]
    fn what_parsers_read_differently_is_refused() {
        for reference in [
            "https:?page=2",
            "https:/base/v2/agents/a%2Fb/sessions?page=2",
            "https:///api.example/base?page=2",
            "///evil.example/?page=2",
            "//?page=2",
            "\\\\evil.example\\?page=2",
            "/\\evil.example?page=2",
            "ht\ttps://evil.example/?page=2",
            " ?page=2",
            "?page=2\r\nHost: evil",
            "?page=\u{e4}",
            "?page=%",
            "?page=%2",
            "?page=%zz",
            "?page=%ff",
            "javascript:alert(1)",
            "?page=\"2\"",
            "?a={page}",
        ] {
            assert_eq!(followed(reference), Err(UrlFault::Malformed), "{reference:?}");
        }
        let long = |length: usize| followed(&format!("?page={}", "1".repeat(length)));
        assert!(long(MAX_QUERY - 5).is_ok());
        assert_eq!(long(MAX_QUERY), Err(UrlFault::TooLong { part: "query", limit: MAX_QUERY }));
        assert_eq!(long(1 << 20), Err(UrlFault::TooLong { part: "length", limit: MAX_URL }));
    }

    #[test]
    fn a_query_cannot_name_another_list_a_credential_or_a_method() {
        for name in [
            "api_key",
            "apikey",
            "API-Key",
            "%61pi_key",
            "access_token",
            "accessToken",
            "X-Amz-Signature",
            "authorization",
            "_method",
            "_METHOD",
            "%5fmethod",
            "http_method",
            "$httpMethod",
            "X-HTTP-Method-Override",
            "_method%00",
            "client_secret",
        ] {
            for query in [format!("?page=2&{name}=DELETE"), format!("?{name}"), format!("?page=2;{name}=DELETE")] {
                assert!(matches!(followed(&query), Err(UrlFault::Forbidden { .. })), "{query}");
            }
        }
        let other = |name: &str| Err(UrlFault::OtherList { name: name.to_owned() });
        assert_eq!(followed("?page=2&enabled=true"), other("enabled"), "the first page has no such filter");
        let mut flat = Template::compile("GET /calls").unwrap();
        flat.add_query("agent_id", "{agent}").unwrap();
        let own = "https://api.example/calls?agent_id=a%2B1";
        let next = |query: &str| next_of(own, &flat, query);
        assert!(next("?page=2").is_ok() && next("?agent_id=a%2B1&page=2").is_ok());
        for query in ["?agent_id=b&page=2", "?agent_id=a%2B1&agent_id=b", "?agent_id=a+1", "?%61gent_id=b"] {
            assert_eq!(next(query), other("agent_id"), "{query}");
        }
    }
}
