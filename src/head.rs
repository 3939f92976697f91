//! The head of an HTTP/1 request: from bytes to a request, and how the connection goes on after it.
//!
//! A room of its own because it is where two readers of the same bytes could differ. It is strict about what
//! frames a request (RFC 9112), knows no socket, and judges nothing else of a request.

use crate::error::{Code, Outcome, Problem};
use crate::exchange::Request;
use crate::headers::{self, Headers};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use std::mem::MaybeUninit;
use std::net::IpAddr;

/// Header fields that are read; the configured limit, which has its own answer, is lower.
const MOST_FIELDS: usize = 256;

/// A request's head.
pub struct Head {
    /// The request.
    pub request: Request,
    /// Its bytes.
    pub length: usize,
    /// The client wants to go on with the connection.
    pub keep_alive: bool,
    /// A body follows.
    pub has_body: bool,
}

/// The head that `bytes` begin with; `None` while it is not whole.
///
/// # Errors
/// Why it cannot be read, or could be read in two ways: where the next request begins is not known then.
pub fn parse(bytes: &[u8], peer: Option<IpAddr>) -> Outcome<Option<Head>> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let detail = format!("more than {MOST_FIELDS} header fields");
            return Err(Box::new(Problem::new(Code::HeadersTooLarge, detail)));
        }
        Err(error) => return invalid(format!("this is not HTTP/1: {error}")),
    };
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return invalid("this method is none") };
    let headers = collected(parsed.headers, length);
    let has_body = has_body(&headers, version)?;
    let keep_alive = keeps_alive(&headers, version);
    let mut request = Request { method, version, path: String::new(), query: String::new(), headers, peer };
    read_target(&mut request, target)?;
    Ok(Some(Head { request, length, keep_alive, has_body }))
}

fn invalid<T>(detail: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Problem::invalid(detail)))
}

/// The fields of a head of this length. What httparse lets through is a token, and a value without control characters.
fn collected(fields: &[httparse::Header<'_>], length: usize) -> Headers {
    let mut headers = Headers::with_capacity(fields.len(), length);
    fields.iter().for_each(|field| headers.append(field.name, field.value));
    headers
}

/// Whether a body follows (RFC 9112, section 6.3). What two readers could take for different lengths is refused.
fn has_body(headers: &Headers, version: Version) -> Outcome<bool> {
    let mut lengths = headers.get_all("content-length");
    let (length, another) = (lengths.next(), lengths.next());
    if another.is_some() {
        return invalid("Content-Length is sent once");
    }
    let mut codings = headers.get_all("transfer-encoding");
    if let Some(coding) = codings.next() {
        if version == Version::HTTP_10 {
            return invalid("HTTP/1.0 has no Transfer-Encoding");
        }
        // Any other would be lost: what is passed on is framed anew.
        if codings.next().is_some() || !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return invalid("the one Transfer-Encoding that is known is chunked");
        }
        if length.is_some() {
            return invalid("a body has a Content-Length or a Transfer-Encoding, not both");
        }
        return Ok(true);
    }
    let Some(length) = length else { return Ok(false) };
    let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    match headers::text(length).filter(|_| digits).and_then(|text| text.parse::<u64>().ok()) {
        Some(length) => Ok(length > 0),
        None => invalid("Content-Length is one whole number"),
    }
}

/// Whether the client wants to go on with the connection (RFC 9112, section 9.3).
fn keeps_alive(headers: &Headers, version: Version) -> bool {
    let said = |token: &[u8]| {
        let mut tokens = headers.get_all("connection").flat_map(|value| value.split(|b| *b == b','));
        tokens.any(|told| told.trim_ascii().eq_ignore_ascii_case(token))
    };
    if version == Version::HTTP_11 { !said(b"close") } else { said(b"keep-alive") && !said(b"close") }
}

/// Path and query, of a target in any of its forms (RFC 9112, section 3.2).
fn read_target(request: &mut Request, target: &str) -> Outcome<()> {
    if request.method == Method::CONNECT {
        let mut problem = Problem::new(Code::MethodNotAllowed, "CONNECT is not for a gateway");
        problem.allow = Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        return Err(Box::new(problem));
    }
    if request.headers.get("host").is_some_and(|host| host.contains(&b'@')) {
        return invalid("a Host has no user in it");
    }
    let read = if target.starts_with('/') || target == "*" {
        PathAndQuery::try_from(target).ok()
    } else {
        absolute(request, target)?
    };
    let Some(read) = read else { return invalid("the path holds characters that must be percent-encoded") };
    read.path().clone_into(&mut request.path);
    read.query().unwrap_or_default().clone_into(&mut request.query);
    Ok(())
}

/// A target that names its host, which must be the one that `Host` names.
fn absolute(request: &mut Request, target: &str) -> Outcome<Option<PathAndQuery>> {
    let Ok(uri) = Uri::try_from(target) else { return Ok(None) };
    let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return invalid("a target is a path, or begins with http:// or https://");
    };
    if authority.as_str().contains('@') {
        return invalid("a target has no user in it");
    }
    match request.headers.get("host") {
        Some(host) if host != authority.as_str().as_bytes() => {
            return invalid("Host and the target name different hosts");
        }
        Some(_) => {}
        None => request.headers.append("host", authority.as_str().as_bytes()),
    }
    Ok(Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Head>, Code> {
        parse(text.as_bytes(), None).map_err(|problem| problem.code)
    }

    fn whole(text: &str) -> Head {
        read(text).unwrap().unwrap()
    }

    #[test]
    fn a_head_is_read_when_it_is_whole_and_no_further() {
        let text = "GET /v1/x?a=b HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-API-Key:  k \r\n\r\n";
        for end in 0..text.len() {
            assert!(read(&text[..end]).unwrap().is_none(), "{end}");
        }
        let head = whole(&format!("{text}GET /next"));
        let request = &head.request;
        assert_eq!((head.length, head.keep_alive, head.has_body), (text.len(), true, false));
        assert_eq!((&*request.path, &*request.query, request.method.as_str()), ("/v1/x", "a=b", "GET"));
        assert_eq!((request.header("x-api-key"), request.header("x-empty")), (Some("k"), Some("")));
    }

    #[test]
    fn a_target_has_one_host_and_one_path() {
        let target = |target: &str, host: &str| {
            read(&format!("GET {target} HTTP/1.1\r\n{host}\r\n")).map(|head| {
                let request = head.unwrap().request;
                (request.path.clone(), request.header("host").unwrap_or_default().to_owned())
            })
        };
        let is = |path: &str, host: &str| Ok((path.to_owned(), host.to_owned()));
        assert_eq!(target("http://a/x?y", "Host: a\r\n"), is("/x", "a"));
        assert_eq!(target("http://a:1", ""), is("/", "a:1"));
        assert_eq!(target("//a/x", "Host: b\r\n"), is("//a/x", "b"));
        assert_eq!(target("*", "Host: b\r\n"), is("*", "b"));
        for (bad, host) in [
            ("http://a/x", "Host: b\r\n"),
            ("http://u@a/x", ""),
            ("/x", "Host: u@a\r\n"),
            ("ftp://a/x", ""),
            ("x", ""),
            ("/a<b", "Host: b\r\n"),
        ] {
            assert_eq!(target(bad, host), Err(Code::InvalidRequest), "{bad} {host}");
        }
        assert_eq!(read("CONNECT a:443 HTTP/1.1\r\n\r\n").err(), Some(Code::MethodNotAllowed));
    }

    #[test]
    fn what_frames_a_body_is_read_in_one_way_or_refused() {
        let body = |version: &str, fields: &str| {
            read(&format!("POST / HTTP/{version}\r\nHost: h\r\n{fields}\r\n")).map(|head| head.unwrap().has_body)
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
    fn a_connection_goes_on_as_the_client_says() {
        let keeps = |version: &str, field: &str| whole(&format!("GET / HTTP/{version}\r\n{field}\r\n")).keep_alive;
        assert!(keeps("1.1", "") && keeps("1.1", "Connection: keep-alive\r\n"));
        assert!(
            !keeps("1.1", "Connection: Upgrade, Close\r\n") && !keeps("1.1", "Connection: x\r\nConnection: close\r\n")
        );
        assert!(!keeps("1.0", "") && keeps("1.0", "Connection: Keep-Alive\r\n"));
        assert!(!keeps("1.0", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn too_many_fields_have_their_own_answer() {
        let fields: String = (0..=MOST_FIELDS).map(|n| format!("x-{n}: y\r\n")).collect();
        assert_eq!(read(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).err(), Some(Code::HeadersTooLarge));
    }
}
