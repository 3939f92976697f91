//! Defines the HTTP types that all simulated providers share: header lookup, query, reply, streamed body.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Response};
use serde_json::Value;

/// An error that ends the connection without a complete response.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Abort(pub(crate) &'static str);

/// A response body; `Abort` ends the connection inside it.
pub(crate) type Body = UnsyncBoxBody<Bytes, Abort>;

/// Returns the first value of a header if it is visible ASCII.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Decodes the percent-encoding of a path segment or of a query's name or value.
pub(crate) fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The parameters of a query or of a form.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (percent_decode(name), percent_decode(&value.replace('+', " ")))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A response with its whole body, before any planned fault.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn new(status: u16, body: String) -> Self {
        let json = ("content-type".to_owned(), "application/json".to_owned());
        Self { status, headers: vec![json], body: body.into() }
    }

    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::new(status, body.to_string())
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let body = full(self.body.clone());
        self.with_body(body)
    }

    /// Returns the response with another body.
    pub(crate) fn with_body(self, body: Body) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        response.body(body).unwrap_or_else(|_| Response::new(full(Bytes::new())))
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn a_query_is_decoded() {
        let query = Query::parse("a=1+2&b=x%2Fy&a=3&no_value");
        assert_eq!((query.get("a"), query.get("b"), query.get("no_value")), (Some("1 2"), Some("x/y"), None));
    }
}
