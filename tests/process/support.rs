//! Real processes on free ports, and a client that shows exactly what came.

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

/// No wait in these tests is longer; what takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Status and, for a problem, its code.
    pub fn code(&self) -> (u16, String) {
        let code = self.json()["code"].as_str().unwrap_or_default().to_owned();
        (self.status, code)
    }
}

/// Sends bytes on a connection of their own and reads the answer to its end.
pub fn raw(address: SocketAddr, request: &[u8]) -> Answer {
    try_raw(address, request).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(request)))
}

pub fn try_raw(address: SocketAddr, request: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| std::io::Error::other(format!("no answer: {:?}", String::from_utf8_lossy(&bytes))))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Some(Answer { status, headers, body: bytes[end + 4..].to_vec() })
}

pub fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    (text + "\r\n").into_bytes()
}

pub fn send(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    raw(address, &request(method, target, headers))
}

/// A process whose output is kept, and which is gone when the test is.
pub struct Process {
    child: Child,
    pub stdout: Arc<Mutex<Vec<String>>>,
    pub stderr: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let stdout = keep(child.stdout.take().unwrap());
        let stderr = keep(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// Its resident memory in bytes, by the system's word: asking the gateway itself would have it clean up first.
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

    /// The exit status, waited for.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
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
            eprintln!("its stderr:\n{}", self.stderr.lock().unwrap().join("\n"));
        }
    }
}

fn keep(from: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            kept.lock().unwrap().push(line);
        }
    });
    lines
}

/// Waits for a condition, not for a time.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a test has the tool that it needs; says so where it has not, and fails where it must.
pub fn needs(what: &str, found: bool) -> bool {
    if !found {
        eprintln!("SKIPPED: {what} is not installed; scripts/setup installs it");
        assert!(std::env::var_os("CI").is_none(), "CI has {what}");
    }
    found
}

/// The line that begins with `prefix`, waited for; what follows the prefix.
pub fn line_with(lines: &Arc<Mutex<Vec<String>>>, prefix: &str) -> String {
    let mut found = None;
    until(prefix, || {
        found = lines.lock().unwrap().iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
        found.is_some()
    });
    found.unwrap()
}

/// The simulator.
pub struct Sim {
    pub process: Process,
    pub address: SocketAddr,
}

impl Sim {
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-sim"));
        let process = Process::start(command.args(["--listen", "127.0.0.1:0", "--exit-with-stdin"]).args(options));
        let address = line_with(&process.stdout, "listening http=").parse().unwrap();
        Self { process, address }
    }

    fn control(&self, method: &str, path: &str, body: &str) -> Value {
        let length = body.len().to_string();
        let mut bytes = request(method, path, &[("Content-Length", &length)]);
        bytes.extend_from_slice(body.as_bytes());
        let answer = raw(self.address, &bytes);
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Plans a fault for paths with this text in them, for so many calls (0: until forgotten).
    pub fn fault(&self, path: &str, times: u64, fault: &Value) {
        let times = if times == 0 { Value::Null } else { times.into() };
        self.plan(&json!({ "path": path, "times": times, "fault": fault }));
    }

    pub fn plan(&self, plan: &Value) {
        self.control("POST", "/_sim/faults", &plan.to_string());
    }

    /// Makes a path answer this.
    pub fn answers(&self, path: &str, status: u16, headers: &Value, body: &str) {
        self.fault(path, 0, &json!({ "kind": "answer", "status": status, "headers": headers, "body": body }));
    }

    /// Sessions by agent, in place of those made up.
    pub fn sessions(&self, by_agent: &Value) {
        self.control("POST", "/_sim/sessions", &by_agent.to_string());
    }

    pub fn forget(&self) {
        self.control("DELETE", "/_sim/faults", "");
    }

    pub fn calls(&self) -> u64 {
        self.control("GET", "/_sim/calls", "")["total"].as_u64().unwrap()
    }

    pub fn counts(&self) -> Value {
        self.control("GET", "/_sim/calls", "")
    }

    pub fn reset_calls(&self) {
        self.control("DELETE", "/_sim/calls", "");
    }
}

/// A configuration directory: the shipped one, to be changed.
pub struct Config {
    pub directory: TempDir,
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

/// Clients of the tests: `open` without limits, `team` with its own credential at one provider.
const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";

impl Config {
    /// The shipped configuration with one client `open` (its key is `open`) that has no limits.
    pub fn shipped() -> Self {
        let directory = TempDir::new().unwrap();
        copy(&repository().join("config"), directory.path());
        let config = Self { directory, env: Vec::new() };
        config.clients(CLIENTS)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Replaces clients.yaml; `SHA(key)` stands for a key's digest.
    pub fn clients(self, yaml: &str) -> Self {
        self.write("clients.yaml", &digests(yaml));
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

    /// Replaces text that must be there.
    pub fn edit(self, file: &str, from: &str, to: &str) -> Self {
        self.change(file, from, to);
        self
    }

    pub fn change(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{file} has no {from:?}");
        self.write(file, &text.replace(from, to));
    }

    /// A command with this configuration and the simulator's environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("--config").arg(self.directory.path()).args(arguments);
        for name in ["WEIR_CONFIG", "WEIR_ADMIN_TOKEN"] {
            command.env_remove(name);
        }
        command.env("WEIR_LISTEN", "127.0.0.1:0").env("WEIR_ADMIN", "127.0.0.1:0");
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    /// A process of `weir` with the simulator's environment.
    pub fn run(&self, arguments: &[&str], sim: &Sim) -> Process {
        let mut command = self.command(arguments);
        for line in sim.process.stdout.lock().unwrap().iter() {
            if let Some((name, value)) = line.strip_prefix("env ").and_then(|pair| pair.split_once('=')) {
                command.env(name, value);
            }
        }
        Process::start(command.envs(self.env.iter().map(|(n, v)| (n, v))))
    }

    pub fn start(self, sim: &Sim) -> Weir {
        Weir::start(self, sim)
    }

    /// Runs `weir check`; its exit code and lines on stderr, without the directory.
    pub fn check(&self) -> (i32, Vec<String>) {
        let output = self.command(&["check"]).output().unwrap();
        let directory = format!("{}/", self.directory.path().display());
        let text = String::from_utf8(output.stderr).unwrap().replace(&directory, "");
        (output.status.code().unwrap(), text.lines().map(str::to_owned).collect())
    }
}

pub fn digests(yaml: &str) -> String {
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

/// The gateway.
pub struct Weir {
    pub process: Process,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub config: Config,
}

impl Weir {
    fn start(config: Config, sim: &Sim) -> Self {
        let process = config.run(&["run"], sim);
        let line = line_with(&process.stderr, "listening http=");
        let (http, admin) = line.split_once(" admin=").unwrap();
        // The first of several.
        let http = http.split(' ').next().unwrap();
        Self { http: http.parse().unwrap(), admin: admin.parse().unwrap(), process, config }
    }

    /// GET with the key `open`.
    pub fn get(&self, target: &str) -> Answer {
        self.get_as("open", target)
    }

    pub fn get_as(&self, key: &str, target: &str) -> Answer {
        send(self.http, "GET", target, &[("X-API-Key", key)])
    }

    pub fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![("X-API-Key", "open")];
        all.extend_from_slice(headers);
        send(self.http, "GET", target, &all)
    }

    pub fn get_with_key(&self, key: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![("X-API-Key", key)];
        all.extend_from_slice(headers);
        send(self.http, "GET", target, &all)
    }

    pub fn admin(&self, method: &str, path: &str) -> Answer {
        send(self.admin, method, path, &[])
    }

    pub fn metrics(&self) -> String {
        String::from_utf8(self.admin("GET", "/metrics").body).unwrap()
    }

    /// A metric's value; 0 where it was never counted.
    pub fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Makes all that is stored stale; how many entries that were.
    pub fn make_stale(&self) -> u64 {
        let body = "{\"all\": true, \"mode\": \"soft\"}";
        let mut bytes = request("POST", "/cache/purge", &[("Content-Length", &body.len().to_string())]);
        bytes.extend_from_slice(body.as_bytes());
        raw(self.admin, &bytes).json()["purged"].as_u64().unwrap()
    }

    /// Reloads by the admin listener; status and body.
    pub fn reload(&self) -> (u16, Value) {
        let answer = self.admin("POST", "/reload");
        (answer.status, answer.json())
    }
}

pub const VECTARA: &str = "/v1/agents/agt_customer_support/sessions/ase_customer_support_001";
pub const PALANTIR: &str = "/v1/agents/ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1/sessions/ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";
pub const AGENTHUMAN: &str = "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T";

/// A pair of the shipped examples.
pub fn example(case: &str) -> (Value, Value) {
    let read = |side: &str| {
        let path = repository().join(format!("config/examples/{case}.{side}.json"));
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    (read("native"), read("unified"))
}
