//! Helpers of the process tests: starts real processes on free ports and sends HTTP requests byte by byte.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest time that a test waits for anything; after it, the test fails.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Returns the status and the problem's code; the code is empty if the body is no problem.
    pub fn code(&self) -> (u16, String) {
        let code = self.json()["code"].as_str().unwrap_or_default().to_owned();
        (self.status, code)
    }
}

/// Sends bytes on a new connection and reads the response until the connection closes.
pub fn send_bytes(address: SocketAddr, request: &[u8]) -> Response {
    try_send_bytes(address, request).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(request)))
}

pub fn try_send_bytes(address: SocketAddr, request: &[u8]) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, MAX_WAIT)?;
    stream.set_read_timeout(Some(MAX_WAIT))?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse_response(&bytes)
        .ok_or_else(|| std::io::Error::other(format!("not an HTTP response: {:?}", String::from_utf8_lossy(&bytes))))
}

fn parse_response(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Some(Response { status, headers, body: bytes[end + 4..].to_vec() })
}

/// Builds a request without a body that closes its connection.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    (text + "\r\n").into_bytes()
}

pub fn send(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    send_bytes(address, &request(method, target, headers))
}

/// A child process. Its output is collected line by line, and it is killed when this value is dropped.
pub struct Process {
    child: Child,
    pub stdout: Arc<Mutex<Vec<String>>>,
    pub stderr: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let stdout = collect_lines(child.stdout.take().unwrap());
        let stderr = collect_lines(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// Resident memory in bytes, read from `/proc`: a request to the gateway would start its clean-up and change the
    /// result.
    pub fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the exit status.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("stderr of process {}:\n{}", self.child.id(), self.stderr.lock().unwrap().join("\n"));
        }
    }
}

fn collect_lines(from: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let collected = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            collected.lock().unwrap().push(line);
        }
    });
    lines
}

/// Polls until the condition holds; fails after `MAX_WAIT`. `what` names the condition in the failure message.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < MAX_WAIT, "waited {MAX_WAIT:?}, but not yet: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns whether a tool is installed. If not, prints that the test is skipped; in CI it fails the test instead.
pub fn require_tool(tool: &str, installed: bool) -> bool {
    if !installed {
        eprintln!("SKIPPED: {tool} is not installed; scripts/setup tests installs it");
        assert!(std::env::var_os("CI").is_none(), "{tool} must be installed in CI");
    }
    installed
}

/// Waits for a line that begins with `prefix` and returns the rest of it.
pub fn wait_for_line(lines: &Arc<Mutex<Vec<String>>>, prefix: &str) -> String {
    let mut found = None;
    wait_until(prefix, || {
        found = lines.lock().unwrap().iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
        found.is_some()
    });
    found.unwrap()
}

/// Returns whether a line of Weir's log has this level, and this text after the target: `TIME LEVEL weir::…: TEXT …`.
pub fn is_log_line(line: &str, level: &str, text: &str) -> bool {
    let parts = line.split_once(' ').and_then(|(time, rest)| Some((time, rest.trim_start().split_once(' ')?)));
    parts.is_some_and(|(time, (found, rest))| {
        let content = rest.split_once(": ").filter(|(target, _)| target.starts_with("weir::"));
        time.ends_with('Z') && found == level && content.is_some_and(|(_, content)| content.starts_with(text))
    })
}

/// Waits for a line of Weir's log with this level, which begins with this text.
pub fn wait_for_log(lines: &Arc<Mutex<Vec<String>>>, level: &str, text: &str) {
    wait_until(text, || lines.lock().unwrap().iter().any(|line| is_log_line(line, level, text)));
}

/// Returns the path of `weir-sim`, which cargo builds beside `weir`.
pub fn simulator_program() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weir")).with_file_name("weir-sim");
    assert!(path.exists(), "weir-sim is not built: run `cargo build --bins` first");
    path
}

/// The gateway's program: this build, or the one that `WEIR_PROGRAM` names.
pub fn weir_program() -> PathBuf {
    std::env::var_os("WEIR_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_weir").into(), PathBuf::from)
}

/// The simulator process, and its control API under `/_sim/`.
pub struct Sim {
    pub process: Process,
    pub address: SocketAddr,
}

impl Sim {
    pub fn start() -> Self {
        Self::with_options(&[])
    }

    pub fn with_options(options: &[&str]) -> Self {
        let mut command = Command::new(simulator_program());
        let process = Process::start(command.args(["--listen", "127.0.0.1:0", "--exit-with-stdin"]).args(options));
        let address = wait_for_line(&process.stdout, "listening http=").parse().unwrap();
        Self { process, address }
    }

    fn control(&self, method: &str, path: &str, body: &str) -> Value {
        let length = body.len().to_string();
        let mut bytes = request(method, path, &[("Content-Length", &length)]);
        bytes.extend_from_slice(body.as_bytes());
        let response = send_bytes(self.address, &bytes);
        assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
        response.json()
    }

    /// Plans a fault for the next `times` calls whose path contains `path` (0: until `clear_faults`).
    pub fn plan_fault(&self, path: &str, times: u64, fault: &Value) {
        let times = if times == 0 { Value::Null } else { times.into() };
        self.plan(&json!({ "path": path, "times": times, "fault": fault }));
    }

    /// Plans faults and delays; `plan` is the body of `POST /_sim/faults`.
    pub fn plan(&self, plan: &Value) {
        self.control("POST", "/_sim/faults", &plan.to_string());
    }

    /// Answers every call whose path contains `path` with this response.
    pub fn set_response(&self, path: &str, status: u16, headers: &Value, body: &str) {
        self.plan_fault(path, 0, &json!({ "kind": "answer", "status": status, "headers": headers, "body": body }));
    }

    /// Replaces the generated sessions by these, keyed by agent.
    pub fn set_sessions(&self, by_agent: &Value) {
        self.control("POST", "/_sim/sessions", &by_agent.to_string());
    }

    pub fn clear_faults(&self) {
        self.control("DELETE", "/_sim/faults", "");
    }

    /// The number of calls since the start or the last `reset_calls`.
    pub fn calls(&self) -> u64 {
        self.control("GET", "/_sim/calls", "")["total"].as_u64().unwrap()
    }

    /// The same, also by method and path: `{"total": …, "calls": {"GET /…": …}}`.
    pub fn call_counts(&self) -> Value {
        self.control("GET", "/_sim/calls", "")
    }

    pub fn reset_calls(&self) {
        self.control("DELETE", "/_sim/calls", "");
    }
}

/// A temporary copy of the shipped configuration directory.
pub struct Config {
    pub directory: TempDir,
    /// Where the gateway stores the token of its admin listener.
    pub runtime: TempDir,
    env: Vec<(String, String)>,
}

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// One client without limits; both its id and its key are `open`.
const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

impl Config {
    /// The shipped configuration with `CLIENTS` in place of its clients.
    pub fn shipped() -> Self {
        let directory = TempDir::new().unwrap();
        copy(&repository().join("config"), directory.path());
        let config = Self { directory, runtime: TempDir::new().unwrap(), env: Vec::new() };
        config.clients(CLIENTS)
    }

    /// Sets an environment variable for every process of this configuration.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Replaces clients.yaml; see `expand_digests`.
    pub fn clients(self, yaml: &str) -> Self {
        self.write("clients.yaml", &expand_digests(yaml));
        self
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    /// Like `change`, for a chain of calls.
    pub fn edit(self, file: &str, from: &str, to: &str) -> Self {
        self.change(file, from, to);
        self
    }

    /// Replaces every occurrence of `from`; fails if there is none.
    pub fn change(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{file} has no {from:?}");
        self.write(file, &text.replace(from, to));
    }

    /// A `weir` command with this configuration; it listens on free ports.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(weir_program());
        command.arg("--config").arg(self.directory.path()).args(arguments);
        for name in ["WEIR_CONFIG", "WEIR_ADMIN_TOKEN", "RUNTIME_DIRECTORY"] {
            command.env_remove(name);
        }
        command.env("WEIR_LISTEN", "127.0.0.1:0").env("WEIR_ADMIN", "127.0.0.1:0");
        command.env("XDG_RUNTIME_DIR", self.runtime.path());
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    /// The `Authorization` of the token that the gateway at this address made.
    pub fn admin_authorization(&self, admin: SocketAddr) -> String {
        let file = self.runtime.path().join(format!("weir/admin-{admin}.token"));
        let token = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        format!("Bearer {}", token.trim())
    }

    /// Starts `weir` with the simulator as its providers.
    pub fn run(&self, arguments: &[&str], sim: &Sim) -> Process {
        Process::start(&mut self.command_with(arguments, sim))
    }

    /// The command that starts `weir` with the simulator as its providers.
    fn command_with(&self, arguments: &[&str], sim: &Sim) -> Command {
        let mut command = self.command(arguments);
        for line in sim.process.stdout.lock().unwrap().iter() {
            if let Some((name, value)) = line.strip_prefix("env ").and_then(|pair| pair.split_once('=')) {
                command.env(name, value);
            }
        }
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    pub fn start(self, sim: &Sim) -> Weir {
        Weir::start(self, sim)
    }

    /// Starts the gateway by another command, which `wrap` makes of the usual one.
    pub fn start_with(self, sim: &Sim, wrap: impl FnOnce(Command) -> Command) -> Weir {
        let process = Process::start(&mut wrap(self.command_with(&["run"], sim)));
        Weir::of(self, process)
    }

    /// Runs `weir check`. Returns the exit code and the lines on stderr, with paths relative to the directory.
    pub fn check(&self) -> (i32, Vec<String>) {
        let output = self.command(&["check"]).output().unwrap();
        let directory = format!("{}/", self.directory.path().display());
        let text = String::from_utf8(output.stderr).unwrap().replace(&directory, "");
        (output.status.code().unwrap(), text.lines().map(str::to_owned).collect())
    }
}

/// Replaces each `SHA(key)` by the hexadecimal SHA-256 digest of the key.
pub fn expand_digests(yaml: &str) -> String {
    let mut out = String::new();
    let mut rest = yaml;
    while let Some((before, after)) = rest.split_once("SHA(") {
        let (key, after) = after.split_once(')').unwrap();
        let digest: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        out += before;
        out += &digest;
        rest = after;
    }
    out + rest
}

/// The gateway process, and a client of it.
pub struct Weir {
    pub process: Process,
    pub http: SocketAddr,
    /// All listeners for clients; `http` is the first.
    pub listeners: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub config: Config,
}

impl Weir {
    fn start(config: Config, sim: &Sim) -> Self {
        let process = config.run(&["run"], sim);
        Self::of(config, process)
    }

    /// Waits until a started gateway listens.
    pub fn of(config: Config, process: Process) -> Self {
        let line = wait_for_line(&process.stderr, "listening http=");
        let (http, admin) = line.split_once(" admin=").unwrap();
        let listeners: Vec<SocketAddr> =
            http.split(' ').map(|text| text.rsplit('=').next().unwrap().parse().unwrap()).collect();
        Self { http: listeners[0], listeners, admin: admin.parse().unwrap(), process, config }
    }

    /// GET with the key `open`.
    pub fn get(&self, target: &str) -> Response {
        self.get_as("open", target)
    }

    pub fn get_as(&self, key: &str, target: &str) -> Response {
        send(self.http, "GET", target, &[("X-API-Key", key)])
    }

    pub fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Response {
        let mut all = vec![("X-API-Key", "open")];
        all.extend_from_slice(headers);
        send(self.http, "GET", target, &all)
    }

    pub fn get_with_key(&self, key: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        let mut all = vec![("X-API-Key", key)];
        all.extend_from_slice(headers);
        send(self.http, "GET", target, &all)
    }

    pub fn admin(&self, method: &str, path: &str) -> Response {
        send(self.admin, method, path, &[])
    }

    /// The `Authorization` of the token that this gateway made for its admin listener.
    pub fn admin_authorization(&self) -> String {
        self.config.admin_authorization(self.admin)
    }

    /// Sends a JSON body to the admin listener, with its token.
    pub fn post_admin(&self, path: &str, body: &str) -> Response {
        let (length, token) = (body.len().to_string(), self.admin_authorization());
        let mut headers = vec![("Authorization", token.as_str()), ("Content-Length", length.as_str())];
        headers.extend((!body.is_empty()).then_some(("Content-Type", "application/json")));
        send_bytes(self.admin, &[&request("POST", path, &headers)[..], body.as_bytes()].concat())
    }

    pub fn metrics(&self) -> String {
        String::from_utf8(self.admin("GET", "/metrics").body).unwrap()
    }

    /// The value of a series; 0 if `/metrics` does not list it.
    pub fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Makes every cache entry stale. Returns the number of entries.
    pub fn make_stale(&self) -> u64 {
        self.post_admin("/cache/purge", "{\"all\": true, \"mode\": \"soft\"}").json()["purged"].as_u64().unwrap()
    }

    /// Reloads through the admin listener. Returns status and body.
    pub fn reload(&self) -> (u16, Value) {
        let response = self.post_admin("/reload", "");
        (response.status, response.json())
    }
}

pub const VECTARA: &str = "/v1/agents/agt_customer_support/sessions/ase_customer_support_001";
pub const PALANTIR: &str = "/v1/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";
pub const AGENTHUMAN: &str = "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T";

/// The native and the unified body of a shipped example.
pub fn example(case: &str) -> (Value, Value) {
    let read = |side: &str| {
        let path = repository().join(format!("config/examples/{case}.{side}.json"));
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    (read("native"), read("unified"))
}
