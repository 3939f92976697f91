//! Sends requests to the admin listener of a running gateway, for the commands that talk to one.
//!
//! These commands read of the configuration only what their options do not give: the address, the token, or nothing.

use super::{print, print_faults, print_stderr};
use crate::config::faults::Fault;
use crate::config::load::{self, ConfigSource};
use crate::config::weir;
use crate::engine::admin_token;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

/// The limit for the connection, and for each read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a response that are read.
const MAX_RESPONSE: u64 = 1 << 20;
/// The most bytes of a token file that are read.
const MAX_TOKEN: u64 = 64 << 10;

/// How to reach the admin listener.
#[derive(clap::Args)]
pub(super) struct Connection {
    /// The admin listener: a host name or an IP address, and a port [default: admin.address of weir.yaml]
    #[arg(long, value_name = "ADDRESS", env = "WEIR_ADMIN")]
    admin: Option<AdminAddress>,
    /// The token of the admin listener; with --token-file, other users do not see it in the list of processes [default:
    /// admin.token of weir.yaml, otherwise the token that the running gateway made]
    #[arg(long, value_name = "TOKEN", env = "WEIR_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token, or - for standard input; used in place of --token and WEIR_ADMIN_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// A host and a port, as a user writes them. An empty text counts as not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdminAddress(String);

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name =
            |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let is_named = text.rsplit_once(':').is_some_and(|(host, port)| is_name(host) && port.parse::<u16>().is_ok());
        match text.is_empty() || is_named || text.parse::<SocketAddr>().is_ok() {
            true => Ok(Self(text.to_owned())),
            false => Err("write HOST:PORT, such as localhost:8081, 127.0.0.1:8081 or [::1]:8081".to_owned()),
        }
    }
}

/// An admin listener and the token for it.
pub(super) struct AdminListener {
    /// As a user would write it.
    name: String,
    addresses: Vec<SocketAddr>,
    token: String,
    timeout: Duration,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// No token: health.
    Address,
    /// A token, if there is one.
    Token,
}

impl Connection {
    /// Returns the listener and the token: from the options, otherwise from the configuration.
    ///
    /// # Errors
    /// They are not known. The cause is printed.
    pub(super) fn open(&self, source: &ConfigSource, needs: Needs) -> Result<AdminListener, ExitCode> {
        let failed = |faults: &[Fault], message: &str| {
            print_faults(faults);
            print_stderr(&format!("weir: {message}"));
            ExitCode::FAILURE
        };
        let name = match self.admin() {
            Some(address) => address.0.clone(),
            None => {
                let address = load::read_admin(source, weir::admin_address).map_err(|faults| {
                    failed(
                        &faults,
                        "cannot read the address of the admin listener from the configuration; use --admin ADDRESS",
                    )
                })?;
                address.unwrap_or_else(weir::default_admin_address).to_string()
            }
        };
        let addresses = resolve(&name).map_err(|error| failed(&[], &error))?;
        let token = match self.given_token().map_err(|error| failed(&[], &error))? {
            Some(token) => token,
            None if needs == Needs::Address => String::new(),
            None => token_of(source, &addresses).map_err(|faults| {
                let better = "use --token-file FILE or set WEIR_ADMIN_TOKEN";
                failed(
                    &faults,
                    &format!("cannot read the token of the admin listener from the configuration; {better}"),
                )
            })?,
        };
        Ok(AdminListener { name, addresses, token, timeout: TIMEOUT })
    }

    /// Returns the listener at the given or the configured address, for a question that may stay without an answer. A
    /// configured address of another machine is not asked.
    pub(super) fn open_if_local(&self, source: &ConfigSource, admin: &weir::Admin) -> Option<AdminListener> {
        let addresses = match self.admin() {
            Some(address) => resolve(&address.0).ok()?,
            None => vec![reachable(admin.address)].into_iter().filter(|address| address.ip().is_loopback()).collect(),
        };
        let addresses: Vec<SocketAddr> = addresses.into_iter().filter(|address| address.port() != 0).collect();
        let token = match (self.given_token().ok()?, admin.token.0.as_str()) {
            (Some(token), _) => token,
            (None, "") => stored_token(source, &addresses).unwrap_or_default(),
            (None, configured) => configured.to_owned(),
        };
        let name = addresses.first()?.to_string();
        Some(AdminListener { name, addresses, token, timeout: Duration::from_secs(1) })
    }

    fn admin(&self) -> Option<&AdminAddress> {
        self.admin.as_ref().filter(|address| !address.0.is_empty())
    }

    fn given_token(&self) -> Result<Option<String>, String> {
        match (&self.token_file, &self.token) {
            (Some(file), _) => read_token(file).map(Some),
            (None, token) => Ok(token.clone().filter(|token| !token.is_empty())),
        }
    }
}

fn read_token(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text))
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    match text.trim() {
        "" => Err(format!("{}: the file has no token", file.display())),
        token => Ok(token.to_owned()),
    }
}

/// Returns the configured token, otherwise the one that the running gateway made. Empty if there is none.
fn token_of(source: &ConfigSource, addresses: &[SocketAddr]) -> Result<String, Vec<Fault>> {
    let stored = stored_token(source, addresses);
    match load::read_admin(source, weir::admin_token) {
        Ok(Some(configured)) if !configured.0.is_empty() => Ok(configured.0),
        Ok(_) => Ok(stored.unwrap_or_default()),
        // The stored token is the one of a gateway without a configured one.
        Err(faults) => stored.ok_or(faults),
    }
}

fn stored_token(source: &ConfigSource, addresses: &[SocketAddr]) -> Option<String> {
    let directories = source.runtime_directories();
    addresses.iter().find_map(|address| admin_token::find(&directories, *address))
}

/// Returns the addresses of a host and port.
fn resolve(name: &str) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<SocketAddr> =
        name.to_socket_addrs().map_err(|error| format!("{name} cannot be resolved: {error}"))?.map(reachable).collect();
    if found.is_empty() { Err(format!("{name} has no address")) } else { Ok(found) }
}

/// Returns an address to connect to: loopback in place of an unspecified address, such as 0.0.0.0.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

impl AdminListener {
    /// Sends a request and returns the status and the body of the response. `request` is the method and the path.
    pub(super) fn send(&self, request: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(self.timeout))?;
        // The address in place of a name: the gateway knows its addresses, and not under which names it is reached.
        let host = stream.peer_addr()?;
        let token = &self.token;
        let token = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let length = body.len();
        let content_type = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{token}{content_type}Content-Length: {length}\r\n\r\n{body}"
        )?;
        let mut response = String::new();
        stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
        let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        status.zip(body).ok_or_else(|| std::io::Error::other("the response is not HTTP"))
    }

    /// Connects to the first address that accepts. A name can have several, such as `localhost`.
    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::other("no address");
        for address in &self.addresses {
            match TcpStream::connect_timeout(address, self.timeout) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends a request and prints the body of a success. `explain` describes any other response.
    pub(super) fn run(&self, request: &str, body: &str, explain: impl Fn(u16, &str) -> String) -> ExitCode {
        match self.send(request, body) {
            Ok((200, body)) => {
                print(&format!("{}\n", body.trim()));
                ExitCode::SUCCESS
            }
            Ok((status, body)) => {
                print_stderr(&explain(status, &body));
                ExitCode::FAILURE
            }
            Err(error) => {
                let better = "--admin ADDRESS names another one";
                print_stderr(&format!("weir: no response from the admin listener at {}: {error}; {better}", self.name));
                ExitCode::FAILURE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_address_is_a_host_and_a_port() {
        for right in ["localhost:8081", "127.0.0.1:1", "[::1]:8081", "weir.example:80", "my_weir-1:80", ""] {
            assert_eq!(right.parse(), Ok(AdminAddress(right.to_owned())), "{right}");
        }
        for wrong in
            ["localhost", ":8081", "localhost:", "localhost:99999", "http://localhost:8081", "::1:8081x", "a b:1"]
        {
            assert!(wrong.parse::<AdminAddress>().is_err(), "{wrong}");
        }
        assert_eq!(resolve("0.0.0.0:8081").unwrap(), [SocketAddr::from(([127, 0, 0, 1], 8081))]);
        assert_eq!(resolve("[::]:8081").unwrap(), ["[::1]:8081".parse::<SocketAddr>().unwrap()]);
        assert!(resolve("localhost:8081").unwrap().iter().all(|address| address.ip().is_loopback()));
    }
}
