//! A provider that responds to every request with the same bytes and records the requests, and clients of each HTTP
//! version.

use crate::support::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// A provider. Its thread runs until the test process ends.
pub struct ScriptedProvider {
    pub address: SocketAddr,
    response: Arc<Mutex<Vec<u8>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ScriptedProvider {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (response, heads) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (bytes, seen) = (response.clone(), heads.clone());
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                let (mut head, mut reader) = (String::new(), BufReader::new(socket.try_clone().unwrap()));
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
                let length = head
                    .to_ascii_lowercase()
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                let _ = reader.read_exact(&mut body);
                seen.lock().unwrap().push(head);
                let _ = socket.write_all(&bytes.lock().unwrap());
            }
        });
        Self { address, response, heads }
    }

    /// Sets the response: its status, header lines with their line ends, and the body.
    pub fn respond(&self, status: u16, headers: &str, body: &[u8]) {
        self.respond_with_interim("", status, headers, body);
    }

    /// The same, after the bytes of interim responses.
    pub fn respond_with_interim(&self, interim: &str, status: u16, headers: &str, body: &[u8]) {
        let content = match status {
            204 | 304 => String::new(),
            _ => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
        };
        let head = format!("{interim}HTTP/1.1 {status} X\r\n{headers}{content}Connection: close\r\n\r\n");
        *self.response.lock().unwrap() = [head.as_bytes(), body].concat();
    }

    /// Returns the heads of the requests since the last call, in lower case.
    pub fn take_heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap()).iter().map(|head| head.to_ascii_lowercase()).collect()
    }

    /// Returns the base URL for the provider's environment variable.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The shipped configuration with HTTP/2, and without limits of the provider `agenthuman`.
pub fn unlimited() -> Config {
    Config::shipped()
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("providers/agenthuman.yaml", "requests: 60", "requests: 600000")
        .edit("providers/agenthuman.yaml", "burst: 60", "burst: 600000")
        .edit("providers/agenthuman.yaml", "failures: 5", "failures: 1000000")
}

/// Sends a request over HTTP/1.1, HTTP/1.0 and HTTP/2. Returns all bytes of each response as text.
pub fn on_every_version(
    weir: &Weir,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Vec<(&'static str, String)> {
    on_versions(weir, method, target, headers, 3)
}

/// The same over the first `count` versions.
pub fn on_versions(
    weir: &Weir,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    count: usize,
) -> Vec<(&'static str, String)> {
    let mut all = vec![("X-API-Key", "open")];
    all.extend_from_slice(headers);
    let http1 = String::from_utf8(request(method, target, &all)).unwrap();
    let send = |version: &'static str| match version {
        "HTTP/2" => over_http2(weir, method, target, &all),
        version => raw(weir.http, http1.replacen("HTTP/1.1", version, 1).as_bytes()),
    };
    ["HTTP/1.1", "HTTP/1.0", "HTTP/2"].into_iter().take(count).map(|version| (version, send(version))).collect()
}

fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = std::net::TcpStream::connect_timeout(&address, MAX_WAIT).unwrap();
    stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    String::from_utf8_lossy(&received).into_owned()
}

fn over_http2(weir: &Weir, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let mut command = Command::new("curl");
    command.args(["-si", "--http2-prior-knowledge", "--path-as-is", "--max-time", "30"]);
    match method {
        "HEAD" => command.arg("--head"),
        method => command.args(["-X", method]),
    };
    for (name, value) in headers {
        command.args(["-H", &format!("{name}: {value}")]);
    }
    let output = command.arg(format!("http://{}{target}", weir.http)).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the status of the final response in the text of a response.
pub fn status(response: &str) -> u16 {
    let mut statuses = response
        .lines()
        .filter(|line| line.starts_with("HTTP/"))
        .filter_map(|line| line.split(' ').nth(1)?.parse().ok());
    statuses.rfind(|status| *status >= 200).unwrap_or_else(|| panic!("no final response: {response}"))
}
