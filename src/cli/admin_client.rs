//! Sends one request to the admin listener of a running gateway.

use crate::config::decode::Secret;
use crate::config::load::ConfigSource;
use crate::engine::admin_token;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The limit for the connection, and for each read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a response that are read.
const MAX_RESPONSE: u64 = 1 << 20;

/// Returns the token for the admin listener at `address`: the configured one, otherwise the one that the running gateway
/// made. Empty if there is none.
pub(super) fn token(source: &ConfigSource, configured: &Secret, address: SocketAddr) -> String {
    match configured.0.as_str() {
        "" => admin_token::find(&source.runtime_directories(), address).unwrap_or_default(),
        configured => configured.to_owned(),
    }
}

/// Sends a request and returns the status and the body of the response. `request` is the method and the path; an empty
/// `token` is not sent.
pub(super) fn send(address: SocketAddr, request: &str, token: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let token = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let length = body.len();
    let content_type = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{token}{content_type}Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| std::io::Error::other("the response is not HTTP"))
}
