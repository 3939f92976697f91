//! A provider that records each request as it arrives, and responds as the test says.

use crate::support::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

/// A request to the provider, with its bytes unchanged.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut first = lines.first()?.split(' ').map(str::to_owned);
        let (method, target) = (first.next()?, first.next()?);
        let pair = |line: &String| line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()));
        let headers: Vec<_> = lines[1..].iter().filter_map(pair).collect();
        let mut request = Self { method, target, headers, body: String::new() };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        request.body = String::from_utf8_lossy(&body).into_owned();
        Some(request)
    }
}

/// A response: status, header lines with their line ends, and the body.
pub type Reply = (u16, String, String);

/// The provider. Its threads run until the test process ends.
pub struct Stub {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Stub {
    pub fn start(answer: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (received, answer) = (Arc::<Mutex<Vec<Received>>>::default(), Arc::new(answer));
        let seen = received.clone();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(socket.try_clone().unwrap());
                    while let Some(request) = Received::read(&mut reader) {
                        let (status, headers, body) = answer(&request);
                        let body = if request.method == "HEAD" { String::new() } else { body };
                        seen.lock().unwrap().push(request);
                        let length = body.len();
                        let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n");
                        if socket.write_all((head + &body).as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, received }
    }

    /// A provider of the session `sess_A`, and of nothing else.
    pub fn of_session() -> Self {
        let native = example("agenthuman/get").0.to_string();
        Self::start(move |_| (200, "Content-Type: application/json\r\n".into(), native.clone()))
    }

    /// Returns the requests since the last call.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *self.received.lock().unwrap())
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the only request since the last call.
    pub fn one(&self) -> Received {
        let mut all = self.take();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// The shipped configuration with this provider in place of one of its providers, and these credentials of it.
    pub fn config(&self, credentials: &str) -> Config {
        Config::shipped()
            .edit("providers/agenthuman.yaml", SHIPPED, &format!("credentials: {credentials}"))
            .env("AGENTHUMAN_BASE_URL", &self.base_url())
    }
}

/// The credentials of the shipped provider that the stub replaces.
pub const SHIPPED: &str = "credentials: { header: x-api-key, value: \"${AGENTHUMAN_API_KEY:-}\" }";

/// Returns the faults of the shipped configuration with these credentials of its provider.
pub fn faults(credentials: &str) -> String {
    let config = Config::shipped().edit("providers/agenthuman.yaml", SHIPPED, &format!("credentials: {credentials}"));
    let (code, lines) = config.check();
    assert_eq!(code, 1, "{credentials}: {lines:?}");
    lines.join("\n")
}

/// Returns the output of `weir` with these arguments: both streams.
pub fn output(config: &Config, arguments: &[&str]) -> String {
    let output = config.command(arguments).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
