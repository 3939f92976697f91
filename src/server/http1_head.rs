//! Parses the head of an HTTP/1 request.
//!
//! Refuses every head that two servers could read differently, above all in what frames the body (RFC 9112): otherwise
//! one of them could find a second request in the body. It does no IO and checks nothing else of a request.

use crate::base::problem::{Code, Outcome, Problem};
use crate::base::request_headers::{self, RequestHeaders};
use crate::base::request_reply::Request;
use crate::rules::authority::Authority;
use bytes::BytesMut;
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use std::mem::MaybeUninit;
use std::net::IpAddr;

/// The maximum number of header fields that are parsed. `limits.header_count` is lower and is checked later.
const MAX_FIELDS: usize = 256;

/// The longest method in bytes. It is in logs and traces, also of clients without a key. The longest registered one has 17.
pub(crate) const MAX_METHOD: usize = 32;

/// The head of a request.
pub struct RequestHead {
    /// The request.
    pub request: Request,
    /// The length of the head in bytes.
    pub length: usize,
    /// Whether the client wants to keep the connection.
    pub keep_alive: bool,
    /// The body that follows.
    pub body: BodyFraming,
}

/// How the body behind a head ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// After this many bytes; 0 without a body.
    Length(u64),
    /// With its last chunk.
    Chunked,
}

impl RequestHead {
    /// Returns the bytes of this head with a path as its target, in place of a URL (RFC 9112, section 3.2.2). Pingora parses
    /// them again, and compares the host of a URL by its bytes.
    #[must_use]
    pub(crate) fn in_origin_form(&self, bytes: BytesMut) -> BytesMut {
        let target = bytes.iter().position(|byte| *byte == b' ').map_or(0, |space| space + 1);
        let end = bytes[target..].iter().position(|byte| *byte == b' ').map_or(bytes.len(), |space| target + space);
        if matches!(bytes.get(target), Some(b'/' | b'*')) {
            return bytes;
        }
        let Request { path, query, .. } = &self.request;
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let mut changed = BytesMut::with_capacity(bytes.len() + 1);
        for part in [&bytes[..target], path.as_bytes(), query.as_bytes(), &bytes[end..]] {
            changed.extend_from_slice(part);
        }
        changed
    }

    /// Returns whether a body follows.
    #[must_use]
    pub fn has_body(&self) -> bool {
        self.body != BodyFraming::Length(0)
    }
}

/// Parses the head at the start of `bytes`. Returns `None` if it is not complete yet.
///
/// # Errors
/// The head is invalid or ambiguous. It is then not known where the next request begins.
pub fn parse(bytes: &[u8], peer: Option<IpAddr>) -> Outcome<Option<RequestHead>> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let detail = format!("the request has more than {MAX_FIELDS} header fields");
            return Err(Box::new(Problem::new(Code::HeadersTooLarge, detail)));
        }
        Err(error) => return invalid(format!("invalid HTTP/1 request: {error}")),
    };
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return invalid("invalid HTTP method") };
    if method.as_str().len() > MAX_METHOD {
        return invalid(format!("the method is longer than {MAX_METHOD} bytes"));
    }
    let headers = to_headers(parsed.headers, length);
    let body = body_framing(&headers, version)?;
    let keep_alive = keeps_alive(&headers, version);
    let mut request = Request { method, version, path: String::new(), query: String::new(), headers, peer, form: None };
    read_target(&mut request, target)?;
    Ok(Some(RequestHead { request, length, keep_alive, body }))
}

fn invalid<T>(detail: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Problem::invalid(detail)))
}

/// Copies the fields of a head of `length` bytes. httparse has checked that names are tokens and that values have no
/// control characters.
fn to_headers(fields: &[httparse::Header<'_>], length: usize) -> RequestHeaders {
    let mut headers = RequestHeaders::with_capacity(fields.len(), length);
    fields.iter().for_each(|field| headers.append(field.name, field.value));
    headers
}

/// Returns how the body ends (RFC 9112, section 6.3). Refuses headers from which two servers could read different
/// lengths.
fn body_framing(headers: &RequestHeaders, version: Version) -> Outcome<BodyFraming> {
    let mut lengths = headers.get_all("content-length");
    let (length, another) = (lengths.next(), lengths.next());
    if another.is_some() {
        return invalid("more than one Content-Length header");
    }
    let mut codings = headers.get_all("transfer-encoding");
    if let Some(coding) = codings.next() {
        if version == Version::HTTP_10 {
            return invalid("Transfer-Encoding is not allowed in HTTP/1.0");
        }
        // Weir forwards a body with new framing, so any other coding would get lost.
        if codings.next().is_some() || !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return invalid("unsupported Transfer-Encoding; only one value, chunked, is supported");
        }
        if length.is_some() {
            return invalid("both Content-Length and Transfer-Encoding are present; send only one");
        }
        return Ok(BodyFraming::Chunked);
    }
    let Some(length) = length else { return Ok(BodyFraming::Length(0)) };
    let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    match request_headers::text(length).filter(|_| digits).and_then(|text| text.parse::<u64>().ok()) {
        Some(length) => Ok(BodyFraming::Length(length)),
        None => invalid("invalid Content-Length; it must be one non-negative integer"),
    }
}

/// Returns whether the client wants to keep the connection (RFC 9112, section 9.3).
fn keeps_alive(headers: &RequestHeaders, version: Version) -> bool {
    let has = |option: &[u8]| {
        let mut options = headers.get_all("connection").flat_map(|value| value.split(|b| *b == b','));
        options.any(|other| other.trim_ascii().eq_ignore_ascii_case(option))
    };
    if version == Version::HTTP_11 { !has(b"close") } else { has(b"keep-alive") && !has(b"close") }
}

/// Reads path and query from a request target in any form (RFC 9112, section 3.2).
fn read_target(request: &mut Request, target: &str) -> Outcome<()> {
    if request.method == Method::CONNECT {
        let allow = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        return Err(Box::new(Problem::method_not_allowed("Weir does not support CONNECT", allow)));
    }
    // A client whose target has no host sends an empty one (RFC 9112, section 3.2).
    let host = request.headers.get("host").filter(|host| !host.is_empty());
    if host.is_some_and(|host| Authority::parse(host).is_none()) {
        return invalid("invalid Host header; it must be HOST or HOST:PORT");
    }
    if target.contains('#') {
        return invalid("the request target must not contain a fragment (#)");
    }
    let path_and_query = if target.starts_with('/') || target == "*" {
        PathAndQuery::try_from(target).ok()
    } else {
        read_absolute_target(request, target)?
    };
    let Some(path_and_query) = path_and_query else {
        return invalid("invalid character in the request target; percent-encode it");
    };
    path_and_query.path().clone_into(&mut request.path);
    path_and_query.query().unwrap_or_default().clone_into(&mut request.query);
    Ok(())
}

/// Reads a target with scheme and host. The host must be the same as in the `Host` header.
fn read_absolute_target(request: &mut Request, target: &str) -> Outcome<Option<PathAndQuery>> {
    let Ok(uri) = Uri::try_from(target) else { return Ok(None) };
    let default_port = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return invalid("invalid request target; it must be a path or begin with http:// or https://"),
    };
    let text = uri.authority().map_or("", |authority| authority.as_str());
    let Some(authority) = Authority::parse(text.as_bytes()) else {
        return invalid("invalid host in the request target; it must be HOST or HOST:PORT");
    };
    match request.headers.get("host").map(Authority::parse) {
        Some(host) if !host.is_some_and(|host| host.is_same(&authority, default_port)) => {
            return invalid("the Host header and the request target name different hosts");
        }
        Some(_) => {}
        None => request.headers.append("host", text.as_bytes()),
    }
    Ok(Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Option<RequestHead>, Code> {
        parse(text.as_bytes(), None).map_err(|problem| problem.code)
    }

    fn parse_complete(text: &str) -> RequestHead {
        parse_text(text).unwrap().unwrap()
    }

    #[test]
    fn a_head_is_parsed_once_it_is_complete_and_bytes_after_it_are_left() {
        let text = "GET /v1/x?a=b HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-API-Key:  k \r\n\r\n";
        for end in 0..text.len() {
            assert!(parse_text(&text[..end]).unwrap().is_none(), "{end}");
        }
        let head = parse_complete(&format!("{text}GET /next"));
        let request = &head.request;
        assert_eq!((head.length, head.keep_alive, head.has_body()), (text.len(), true, false));
        assert_eq!((&*request.path, &*request.query, request.method.as_str()), ("/v1/x", "a=b", "GET"));
        assert_eq!((request.header("x-api-key"), request.header("x-empty")), (Some("k"), Some("")));
    }

    #[test]
    fn a_target_is_read_in_every_form_and_refused_if_it_is_ambiguous() {
        let target = |target: &str, host: &str| {
            parse_text(&format!("GET {target} HTTP/1.1\r\n{host}\r\n")).map(|head| {
                let request = head.unwrap().request;
                (request.path.clone(), request.header("host").unwrap_or_default().to_owned())
            })
        };
        let valid = |path: &str, host: &str| Ok((path.to_owned(), host.to_owned()));
        assert_eq!(target("http://a/x?y", "Host: a\r\n"), valid("/x", "a"));
        assert_eq!(target("http://a:1", ""), valid("/", "a:1"));
        assert_eq!(target("//a/x", "Host: b\r\n"), valid("//a/x", "b"));
        assert_eq!(target("*", "Host: b\r\n"), valid("*", "b"));
        assert_eq!(target("HTTP://EXAMPLE.com:80/x", "Host: example.com\r\n"), valid("/x", "example.com"));
        assert_eq!(target("https://a/x", "Host: A:443\r\n"), valid("/x", "A:443"));
        assert_eq!(target("/x", "Host:\r\n"), valid("/x", ""));
        assert_eq!(target("/x", "Host: [::1]:80\r\n"), valid("/x", "[::1]:80"));
        for (bad, host) in [
            ("http://a/x", "Host: b\r\n"),
            ("http://u@a/x", ""),
            ("/x", "Host: u@a\r\n"),
            ("/x", "Host: x y\r\n"),
            ("/x", "Host: x,y\r\n"),
            ("/x", "Host: x:99999\r\n"),
            ("http://a:443/x", "Host: a\r\n"),
            ("http://a/x", "Host:\r\n"),
            ("http://x,y/", ""),
            ("http:///x", ""),
            ("/x#y", "Host: b\r\n"),
            ("/x?y#z", "Host: b\r\n"),
            ("http://a/#x", "Host: a\r\n"),
            ("http://a#x", "Host: a\r\n"),
            ("#x", "Host: a\r\n"),
            ("ftp://a/x", ""),
            ("x", ""),
            ("/a<b", "Host: b\r\n"),
        ] {
            assert_eq!(target(bad, host), Err(Code::InvalidRequest), "{bad} {host}");
        }
        let method = |length: usize| parse_text(&format!("{} / HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(length)));
        assert!(method(MAX_METHOD).is_ok());
        assert_eq!(method(MAX_METHOD + 1).err(), Some(Code::InvalidRequest));
        assert_eq!(parse_text("CONNECT a:443 HTTP/1.1\r\n\r\n").err(), Some(Code::MethodNotAllowed));
    }

    #[test]
    fn a_head_with_a_url_is_written_with_its_path() {
        let rest = " HTTP/1.1\r\nHost: a\r\nX: http://b/\r\n\r\n";
        for (target, path) in
            [("/x?y", "/x?y"), ("*", "*"), ("http://A:80/x?y", "/x?y"), ("http://a", "/"), ("HTTPS://a:443/", "/")]
        {
            let text = format!("GET {target}{rest}");
            let bytes = parse_complete(&text).in_origin_form(BytesMut::from(text.as_bytes()));
            assert_eq!(bytes, format!("GET {path}{rest}").as_bytes(), "{target}");
        }
    }

    #[test]
    fn ambiguous_body_framing_is_refused() {
        let body = |version: &str, fields: &str| {
            parse_text(&format!("POST / HTTP/{version}\r\nHost: h\r\n{fields}\r\n"))
                .map(|head| head.unwrap().has_body())
        };
        for (fields, has) in [
            ("", false),
            ("Content-Length: 0\r\n", false),
            ("Content-Length: 5\r\n", true),
            ("Transfer-Encoding: Chunked\r\n", true),
        ] {
            assert_eq!(body("1.1", fields), Ok(has), "{fields}");
        }
        for fields in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Content-Length: 0, 9\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "X: a\r\n b\r\n",
            "X: a\0b\r\n",
        ] {
            assert_eq!(body("1.1", fields), Err(Code::InvalidRequest), "{fields}");
        }
        assert_eq!(body("1.0", "Transfer-Encoding: chunked\r\n"), Err(Code::InvalidRequest));
    }

    #[test]
    fn keep_alive_follows_the_version_and_the_connection_header() {
        let keeps =
            |version: &str, field: &str| parse_complete(&format!("GET / HTTP/{version}\r\n{field}\r\n")).keep_alive;
        assert!(keeps("1.1", "") && keeps("1.1", "Connection: keep-alive\r\n"));
        assert!(
            !keeps("1.1", "Connection: Upgrade, Close\r\n") && !keeps("1.1", "Connection: x\r\nConnection: close\r\n")
        );
        assert!(!keeps("1.0", "") && keeps("1.0", "Connection: Keep-Alive\r\n"));
        assert!(!keeps("1.0", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn too_many_header_fields_have_their_own_code() {
        let fields: String = (0..=MAX_FIELDS).map(|n| format!("x-{n}: y\r\n")).collect();
        assert_eq!(parse_text(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).err(), Some(Code::HeadersTooLarge));
    }
}
