//! Sends requests to the native routes, with the headers of each provider's SDK.

use crate::support::*;
use serde_json::Value;
use std::io::{BufReader, Write};
use std::net::TcpStream;

pub const VECTARA_SESSION: &str = "/v2/agents/agt_load_1/sessions/ase_agt_load_1_3";
pub const PALANTIR_AGENT: &str = "/api/v2/aipAgents/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
pub const PALANTIR_SESSION: &str = "/api/v2/aipAgents/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";
pub const AGENTHUMAN_SESSION: &str = "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T";

/// Sends a request as the SDK of this provider does.
pub fn vectara(weir: &Weir, method: &str, path: &str, body: Option<&Value>) -> Response {
    send_with_body(
        weir,
        method,
        &format!("/vectara{path}"),
        &[("x-api-key", "open"), ("Accept", "*/*"), ("User-Agent", "vectara/0.4.3"), ("X-Fern-Language", "Python")],
        body,
    )
}

/// Sends a request as the SDK of this provider does.
pub fn palantir(weir: &Weir, method: &str, path: &str, body: Option<&Value>) -> Response {
    send_with_body(
        weir,
        method,
        &format!("/palantir{path}"),
        &[("Authorization", "Bearer open"), ("Accept", "application/json"), ("Accept-Encoding", "gzip, deflate")],
        body,
    )
}

/// Sends a request as the SDK of this provider does.
pub fn agenthuman(weir: &Weir, method: &str, path: &str, body: Option<&Value>) -> Response {
    send_with_body(weir, method, &format!("/agenthuman{path}"), &[("x-api-key", "open")], body)
}

fn send_with_body(weir: &Weir, method: &str, target: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Response {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len().to_string();
    let mut all = headers.to_vec();
    if !body.is_empty() {
        all.extend([("Content-Type", "application/json"), ("Content-Length", &*length)]);
    }
    let mut bytes = request(method, target, &all);
    bytes.extend_from_slice(body.as_bytes());
    send_bytes(weir.http, &bytes)
}

/// Returns the body of the provider's own response, without Weir.
pub fn fetch_directly(sim: &Sim, path: &str, header: (&str, &str)) -> Vec<u8> {
    send(sim.address, "GET", path, &[header]).body
}

/// Returns the `Cache-Status` header, or an empty string.
pub fn cache_status(response: &Response) -> &str {
    response.header("cache-status").unwrap_or_default()
}

/// Sends a request and returns the connection, so that a test can read the response as it arrives.
pub fn open_stream(weir: &Weir, bytes: &[u8]) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    socket.write_all(bytes).unwrap();
    BufReader::new(socket)
}

/// Returns the bytes of a POST request with a JSON body.
pub fn post(target: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let length = body.len().to_string();
    let mut all = vec![("X-API-Key", "open"), ("Content-Type", "application/json"), ("Content-Length", &*length)];
    all.extend_from_slice(headers);
    [&request("POST", target, &all)[..], body.as_bytes()].concat()
}
