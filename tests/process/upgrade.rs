//! Upgrades: a new process takes over the listeners of the old one, and systemd gets notifications.

use crate::support::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A client that keeps its connection until a response has `Connection: close`.
pub struct KeepAlive {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
    /// The number of connections that it has opened.
    opened: u64,
}

impl KeepAlive {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None, opened: 0 }
    }

    /// Sends the request once and returns the status of the response.
    pub fn send(&mut self, request: &str) -> std::io::Result<u16> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.opened += 1;
                let stream = TcpStream::connect_timeout(&self.address, MAX_WAIT)?;
                stream.set_read_timeout(Some(MAX_WAIT))?;
                BufReader::new(stream)
            }
        };
        connection.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length, mut chunked, mut last) = (0, 0, false, false);
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("closed before the end of the header"));
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(code) = line.strip_prefix("http/1.1 ") {
                status = code[..3].parse().map_err(std::io::Error::other)?;
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().map_err(std::io::Error::other)?;
            } else if line == "transfer-encoding: chunked" {
                chunked = true;
            } else if line == "connection: close" {
                last = true;
            } else if line.is_empty() {
                break;
            }
        }
        assert!(!chunked, "chunked responses are not supported");
        connection.read_exact(&mut vec![0; length])?;
        if !last {
            self.connection = Some(connection);
        }
        Ok(status)
    }
}

/// Returns a GET request that keeps the connection open.
pub fn get_request(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: t\r\nX-API-Key: open\r\n{headers}\r\n")
}

/// Starts a process that takes over from `weir`, and replaces `weir.process` by it. Returns its addresses.
fn take_over(weir: &mut Weir, sim: &Sim) -> (SocketAddr, SocketAddr) {
    let process = weir.config.run(&["run", "--upgrade"], sim);
    let line = wait_for_line(&process.stderr, "listening http=");
    let mut old = std::mem::replace(&mut weir.process, process);
    assert_eq!(old.wait().code(), Some(0));
    wait_for_log(&old.stderr, "INFO", &format!("another process has taken over pid={}", weir.process.id()));
    let (http, admin) = line.split_once(" admin=").unwrap();
    (http.split(' ').next().unwrap().parse().unwrap(), admin.parse().unwrap())
}

#[test]
fn five_upgrades_under_load_fail_no_request() {
    const UPGRADES: u64 = 5;
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let (http, admin) = (weir.http, weir.admin);
    let stop = Arc::new(AtomicBool::new(false));
    let [served, opened, started]: [Arc<AtomicU64>; 3] = Default::default();
    let persistent_client = |n: usize| {
        // A cache hit, a call to the provider for each request, and a forwarded request.
        let request = match n % 3 {
            0 => get_request(VECTARA, ""),
            1 => get_request(PALANTIR, "Cache-Control: no-cache\r\n"),
            _ => get_request("/vectara/v2/agents/agt_customer_support/sessions?limit=1", "Cache-Control: no-store\r\n"),
        };
        let (stop, served, opened, started) = (stop.clone(), served.clone(), opened.clone(), started.clone());
        std::thread::spawn(move || {
            let (mut client, mut counted) = (KeepAlive::new(http), false);
            while !stop.load(Ordering::SeqCst) {
                let status =
                    client.send(&request).unwrap_or_else(|error| panic!("persistent connection, client {n}: {error}"));
                assert_eq!(status, 200, "{request}");
                served.fetch_add(1, Ordering::SeqCst);
                if !std::mem::replace(&mut counted, true) {
                    started.fetch_add(1, Ordering::SeqCst);
                }
            }
            opened.fetch_add(client.opened, Ordering::SeqCst);
        })
    };
    let reconnecting_client = |n: usize| {
        let (stop, served) = (stop.clone(), served.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let target = if n.is_multiple_of(2) { VECTARA } else { AGENTHUMAN };
                let response = try_send_bytes(http, &request("GET", target, &[("X-API-Key", "open")]));
                let response = response.unwrap_or_else(|error| panic!("new connections, client {n}: {error}"));
                assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
                served.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let load: Vec<_> = (0..12).map(persistent_client).chain((0..4).map(reconnecting_client)).collect();
    let wait_for_requests = |n: u64| {
        let so_far = served.load(Ordering::SeqCst);
        wait_until("the load has sent more requests", || {
            served.load(Ordering::SeqCst) > so_far + n || load.iter().any(std::thread::JoinHandle::is_finished)
        });
    };
    wait_until("every persistent client has a connection", || started.load(Ordering::SeqCst) == 12);
    let mut ids = vec![weir.process.id()];
    for _ in 0..UPGRADES {
        wait_for_requests(200);
        assert_eq!(take_over(&mut weir, &sim), (http, admin), "the addresses stay");
        ids.push(weir.process.id());
    }
    wait_for_requests(200);
    stop.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|thread| thread.join().unwrap());
    ids.dedup();
    assert_eq!(ids.len() as u64, UPGRADES + 1);
    // Each process closed each persistent connection by `Connection: close`.
    assert!(opened.load(Ordering::SeqCst) >= 12 * (UPGRADES + 1));
    eprintln!("{} requests over {UPGRADES} upgrades, none failed", served.load(Ordering::SeqCst));
}

#[test]
fn a_connection_that_is_idle_during_an_upgrade_can_send_one_more_request() {
    let sim = Sim::start();
    let mut weir = Config::shipped().edit("weir.yaml", "grace: 10s", "grace: 50s").start(&sim);
    let mut idle = KeepAlive::new(weir.http);
    assert_eq!(idle.send(&get_request(VECTARA, "")).unwrap(), 200);
    let process = weir.config.run(&["run", "--upgrade"], &sim);
    wait_for_log(&weir.process.stderr, "INFO", &format!("another process has taken over pid={}", process.id()));
    assert_eq!(idle.send(&get_request(VECTARA, "")).unwrap(), 200);
    assert!(idle.connection.is_none(), "the response has Connection: close");
    assert_eq!(weir.process.wait().code(), Some(0));
    wait_for_log(&weir.process.stderr, "INFO", "connections drained connections=1 took_ms=");
    assert_eq!(idle.send(&get_request(VECTARA, "")).unwrap(), 200, "the new process serves it");
    drop(process);
}

#[test]
fn a_failed_upgrade_leaves_the_old_process_serving() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let id = weir.process.id();
    let assert_upgrade_fails = |weir: &Weir, code: i32, message: &str| {
        let mut process = weir.config.run(&["run", "--upgrade"], &sim);
        assert_eq!(process.wait().code(), Some(code));
        wait_until(message, || process.stderr.lock().unwrap().join("\n").contains(message));
        assert_eq!(weir.get(VECTARA).status, 200);
        assert_eq!(weir.admin("GET", "/readyz").status, 200);
    };
    // The new process fails before it contacts the old one.
    let good = weir.config.read("weir.yaml");
    weir.config.write("weir.yaml", &good.replace("grace: 10s", "grace: soon"));
    assert_upgrade_fails(&weir, 78, "\"soon\" is not a duration");
    assert!(!weir.process.stderr.lock().unwrap().join("\n").contains("upgrade"), "the old process was not contacted");
    // The old process has handed over its sockets when the new one fails to bind another address.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = format!("listen:\n  - address: {address}\n");
    let start = good.find("listen:").unwrap();
    let first = start + good[start..].find('\n').unwrap() + 1;
    weir.config.write("weir.yaml", &format!("{listen}{}", &good[first..]));
    assert_upgrade_fails(&weir, 1, &format!("cannot listen on {address}"));
    wait_for_log(&weir.process.stderr, "WARN", "upgrade failed; still serving");
    weir.config.write("weir.yaml", &good);
    take_over(&mut weir, &sim);
    assert_ne!(weir.process.id(), id);
    assert_eq!(weir.get(VECTARA).status, 200);
}

#[test]
fn an_upgrade_binds_new_addresses_and_closes_removed_ones() {
    let sim = Sim::start();
    let config = Config::shipped();
    let yaml = config.read("weir.yaml");
    let listen = "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n";
    assert!(yaml.contains(listen));
    let mut weir =
        config.edit("weir.yaml", listen, &format!("{listen}  - address: 127.0.0.2:0\n")).start_with_listeners(&sim);
    let (kept, old) = (weir.http[0], weir.http[1]);
    assert_eq!(send(old, "GET", VECTARA, &[("X-API-Key", "open")]).status, 200);
    // The kept listener is found by its bound address, which differs from the configured one (port 0).
    weir.config.write("weir.yaml", &yaml.replace(listen, &format!("  - address: 127.0.0.3:0\n  - address: {kept}\n")));
    let process = weir.config.run(&["run", "--upgrade"], &sim);
    let now = parse_addresses(&wait_for_line(&process.stderr, "listening http="));
    assert_eq!(weir.process.wait().code(), Some(0));
    assert_eq!((now.0[0].ip().to_string(), now.0[1], now.1), ("127.0.0.3".to_owned(), kept, weir.admin));
    for address in &now.0 {
        assert_eq!(send(*address, "GET", VECTARA, &[("X-API-Key", "open")]).status, 200);
    }
    assert!(TcpStream::connect(old).is_err());
}

fn parse_addresses(line: &str) -> (Vec<SocketAddr>, SocketAddr) {
    let (http, admin) = line.split_once(" admin=").unwrap();
    (http.split(" http=").map(|http| http.parse().unwrap()).collect(), admin.parse().unwrap())
}

/// A gateway with several listeners.
struct WeirWithListeners {
    process: Process,
    http: Vec<SocketAddr>,
    admin: SocketAddr,
    config: Config,
}

impl Config {
    fn start_with_listeners(self, sim: &Sim) -> WeirWithListeners {
        let process = self.run(&["run"], sim);
        let (http, admin) = parse_addresses(&wait_for_line(&process.stderr, "listening http="));
        WeirWithListeners { process, http, admin, config: self }
    }
}

#[test]
fn page_tokens_and_watch_tokens_stay_valid_after_an_upgrade() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let page = |weir: &Weir, token: &str| weir.get(&format!("/v1/agents/agt_load_1/sessions?limit=1{token}"));
    let first = page(&weir, "");
    let token = first.json()["next_page_token"].as_str().unwrap_or_else(|| panic!("{}", first.json())).to_owned();
    let made = send(weir.http, "POST", "/v1/sessions/sess_SIM00000001/watch-tokens", &[("X-API-Key", "open")]);
    let watch = made.json()["url"].as_str().unwrap().to_owned();
    take_over(&mut weir, &sim);
    assert_eq!(send(weir.http, "HEAD", &watch, &[]).status, 200);
    let second = page(&weir, &format!("&page_token={token}"));
    assert_eq!(second.status, 200, "{}", second.json());
    assert_ne!(second.json()["sessions"][0]["id"], first.json()["sessions"][0]["id"]);
}

#[test]
fn the_upgrade_socket_is_configurable_and_a_missing_or_disabled_one_is_reported() {
    let sim = Sim::start();
    let config = Config::shipped();
    let path = config.path("next.sock").display().to_string();
    // A socket file that a killed process left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    config.change("weir.yaml", "socket: auto", &format!("socket: {path}"));
    let mut weir = config.start(&sim);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut second = Process::start(&mut weir.config.command(&["run"]));
    let text = format!("upgrades are not possible: cannot listen on upgrade.socket ({path})");
    wait_for_log(&second.stderr, "WARN", &text);
    second.signal("TERM");
    assert_eq!(second.wait().code(), Some(0));
    take_over(&mut weir, &sim);
    take_over(&mut weir, &sim);
    weir.process.signal("TERM");
    assert_eq!(weir.process.wait().code(), Some(0));
    assert!(!std::path::Path::new(&path).exists(), "the process removes the socket when it ends");
    let assert_upgrade_refused = |expected: &str| {
        let output = weir.config.command(&["run", "--upgrade"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
    };
    assert_upgrade_refused(&format!("cannot take over from {path}: cannot connect to a running Weir"));
    weir.config.change("weir.yaml", &format!("socket: {path}"), "socket: off");
    assert_upgrade_refused("upgrade.socket is off");
}

#[test]
fn a_process_of_another_user_gets_no_sockets() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        eprintln!("SKIPPED: only root can start a process as another user");
        return;
    }
    let sim = Sim::start();
    let config = Config::shipped();
    let name = format!("@weir-test-{}", std::process::id());
    config.change("weir.yaml", "socket: auto", &format!("socket: \"{name}\""));
    let weir = config.start(&sim);
    std::fs::set_permissions(weir.config.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The other user may have no access to the directory of the program.
    let program = weir.config.path("weir");
    std::fs::copy(env!("CARGO_BIN_EXE_weir"), &program).unwrap();
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(weir.config.directory.path())
        .args(["run", "--upgrade"])
        .env("WEIR_LISTEN", "127.0.0.1:0");
    let output = command.env("WEIR_ADMIN", "127.0.0.1:0").uid(65534).gid(65534).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && stderr.contains("the other process runs as user 0, not as user 65534"),
        "{stderr}"
    );
    // This process does not check the user of the other side itself.
    let talk = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('\\0'+sys.argv[1]); s.send(b'weir 1 sockets\\n'); print(len(s.recv(100)))";
    let output = Command::new("python3").args(["-c", talk, &name[1..]]).uid(65534).gid(65534).output().unwrap();
    let received = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(received == "0" || received.is_empty(), "{received} {}", String::from_utf8_lossy(&output.stderr));
    let text = "upgrade failed; still serving: the other process runs as user 65534, not as user 0";
    wait_for_log(&weir.process.stderr, "WARN", text);
    assert_eq!(weir.get(VECTARA).status, 200);
    // Any local user can connect as often as it likes.
    let flood = "import socket,sys\nfor n in range(500):\n  s=socket.socket(socket.AF_UNIX); s.connect('\\0'+sys.argv[1])\n  try: s.send(b'x'); s.recv(100)\n  except OSError: pass";
    let output = Command::new("python3").args(["-c", flood, &name[1..]]).uid(65534).gid(65534).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(weir.get(VECTARA).status, 200);
    let lines = weir.process.stderr.lock().unwrap().iter().filter(|line| line.contains("upgrade failed")).count();
    assert!(lines <= 2, "{lines} lines in the log");
}

#[test]
fn systemd_is_notified_of_start_reload_upgrade_and_stop() {
    let sim = Sim::start();
    let config = Config::shipped();
    let path = config.directory.path().with_extension("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let receive = || {
        let mut bytes = [0; 1024];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let mut weir = config.env("NOTIFY_SOCKET", path.to_str().unwrap()).start(&sim);
    assert_eq!(receive(), "READY=1\n");
    weir.process.signal("HUP");
    let message = receive();
    let now = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{message}"));
    assert!(now.trim_end().parse::<u64>().unwrap() > 0);
    assert_eq!(receive(), "READY=1\n");
    take_over(&mut weir, &sim);
    // The two processes send their messages in any order.
    let mut messages = [receive(), receive()];
    messages.sort();
    assert_eq!(messages, [format!("MAINPID={}\nREADY=1\n", weir.process.id()), "READY=1\n".to_owned()]);
    weir.process.signal("TERM");
    assert_eq!(receive(), "STOPPING=1\n");
    std::fs::remove_file(path).unwrap();
}
