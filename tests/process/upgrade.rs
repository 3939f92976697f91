//! One process takes the place of another, and the service manager is told.

use crate::support::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A client that keeps its connection as long as it is told that it may.
pub struct KeepAlive {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
    /// How many it has opened.
    opened: u64,
}

impl KeepAlive {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None, opened: 0 }
    }

    /// The answer's status. Nothing is asked a second time.
    pub fn ask(&mut self, request: &str) -> std::io::Result<u16> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.opened += 1;
                let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
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
        assert!(!chunked, "no answer here is chunked");
        connection.read_exact(&mut vec![0; length])?;
        if !last {
            self.connection = Some(connection);
        }
        Ok(status)
    }
}

/// A request that may not be the last.
pub fn text(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: t\r\nX-API-Key: open\r\n{headers}\r\n")
}

/// The process that takes over, once it accepts requests.
fn successor(weir: &mut Weir, sim: &Sim) -> (SocketAddr, SocketAddr) {
    let process = weir.config.run(&["run", "--upgrade"], sim);
    let line = line_with(&process.stderr, "listening http=");
    let mut before = std::mem::replace(&mut weir.process, process);
    assert_eq!(before.wait().code(), Some(0));
    let told = format!("weir: info: process {} has taken over", weir.process.id());
    until("the old one has said who took over", || before.stderr.lock().unwrap().contains(&told));
    let (http, admin) = line.split_once(" admin=").unwrap();
    (http.split(' ').next().unwrap().parse().unwrap(), admin.parse().unwrap())
}

#[test]
fn five_processes_change_over_under_load_without_a_failed_request() {
    const UPGRADES: u64 = 5;
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let (http, admin) = (weir.http, weir.admin);
    let stop = Arc::new(AtomicBool::new(false));
    let [served, opened, begun]: [Arc<AtomicU64>; 3] = Default::default();
    let kept = |n: usize| {
        // What is stored, what is asked of the provider each time, and what passes through.
        let request = match n % 3 {
            0 => text(VECTARA, ""),
            1 => text(PALANTIR, "Cache-Control: no-cache\r\n"),
            _ => text("/vectara/v2/agents/agt_customer_support/sessions?limit=1", "Cache-Control: no-store\r\n"),
        };
        let (stop, served, opened, begun) = (stop.clone(), served.clone(), opened.clone(), begun.clone());
        std::thread::spawn(move || {
            let (mut client, mut told) = (KeepAlive::new(http), false);
            while !stop.load(Ordering::SeqCst) {
                let status = client.ask(&request).unwrap_or_else(|error| panic!("kept alive, client {n}: {error}"));
                assert_eq!(status, 200, "{request}");
                served.fetch_add(1, Ordering::SeqCst);
                if !std::mem::replace(&mut told, true) {
                    begun.fetch_add(1, Ordering::SeqCst);
                }
            }
            opened.fetch_add(client.opened, Ordering::SeqCst);
        })
    };
    let fresh = |n: usize| {
        let (stop, served) = (stop.clone(), served.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let target = if n.is_multiple_of(2) { VECTARA } else { AGENTHUMAN };
                let answer = try_raw(http, &request("GET", target, &[("X-API-Key", "open")]));
                let answer = answer.unwrap_or_else(|error| panic!("new connections, client {n}: {error}"));
                assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
                served.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let load: Vec<_> = (0..12).map(kept).chain((0..4).map(fresh)).collect();
    let more = |n: u64| {
        let so_far = served.load(Ordering::SeqCst);
        until("load runs", || {
            served.load(Ordering::SeqCst) > so_far + n || load.iter().any(std::thread::JoinHandle::is_finished)
        });
    };
    until("every kept connection is there", || begun.load(Ordering::SeqCst) == 12);
    let mut ids = vec![weir.process.id()];
    for _ in 0..UPGRADES {
        more(200);
        assert_eq!(successor(&mut weir, &sim), (http, admin), "the same addresses");
        ids.push(weir.process.id());
    }
    more(200);
    stop.store(true, Ordering::SeqCst);
    load.into_iter().for_each(|thread| thread.join().unwrap());
    ids.dedup();
    assert_eq!(ids.len() as u64, UPGRADES + 1);
    // Each kept connection ended with each process, by its answer's word.
    assert!(opened.load(Ordering::SeqCst) >= 12 * (UPGRADES + 1));
    eprintln!("{} requests over {UPGRADES} upgrades, none failed", served.load(Ordering::SeqCst));
}

#[test]
fn a_connection_that_is_idle_at_the_change_over_has_one_more_request() {
    let sim = Sim::start();
    let mut weir = Config::shipped().edit("weir.yaml", "grace: 10s", "grace: 50s").start(&sim);
    let mut idle = KeepAlive::new(weir.http);
    assert_eq!(idle.ask(&text(VECTARA, "")).unwrap(), 200);
    let process = weir.config.run(&["run", "--upgrade"], &sim);
    line_with(&weir.process.stderr, &format!("weir: info: process {} has taken over", process.id()));
    assert_eq!(idle.ask(&text(VECTARA, "")).unwrap(), 200);
    assert!(idle.connection.is_none(), "the answer said that it was the last");
    assert_eq!(weir.process.wait().code(), Some(0));
    let said = weir.process.stderr.lock().unwrap().join("\n");
    assert!(said.contains("drained 1 connections in "), "{said}");
    assert_eq!(idle.ask(&text(VECTARA, "")).unwrap(), 200, "by the new one");
    drop(process);
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_process_serving() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let id = weir.process.id();
    let fails = |weir: &Weir, code: i32, why: &str| {
        let mut process = weir.config.run(&["run", "--upgrade"], &sim);
        assert_eq!(process.wait().code(), Some(code));
        until(why, || process.stderr.lock().unwrap().join("\n").contains(why));
        assert_eq!(weir.get(VECTARA).status, 200);
        assert_eq!(weir.admin("GET", "/readyz").status, 200);
    };
    // It is not even asked.
    let good = weir.config.read("weir.yaml");
    weir.config.write("weir.yaml", &good.replace("grace: 10s", "grace: soon"));
    fails(&weir, 78, "\"soon\" is not a duration");
    assert!(!weir.process.stderr.lock().unwrap().join("\n").contains("upgrade"), "it was not asked");
    // It has given its sockets when the new one finds that it cannot have another.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = format!("listen:\n  - address: {address}\n");
    let start = good.find("listen:").unwrap();
    let first = start + good[start..].find('\n').unwrap() + 1;
    weir.config.write("weir.yaml", &format!("{listen}{}", &good[first..]));
    fails(&weir, 1, &format!("cannot listen on {address}"));
    line_with(&weir.process.stderr, "weir: warn: an upgrade began and came to nothing");
    // What connects and says something else is nobody to leave for.
    weir.config.write("weir.yaml", &good);
    successor(&mut weir, &sim);
    assert_ne!(weir.process.id(), id);
    assert_eq!(weir.get(VECTARA).status, 200);
}

#[test]
fn addresses_that_are_new_are_bound_and_those_no_longer_wanted_are_closed() {
    let sim = Sim::start();
    let config = Config::shipped();
    let yaml = config.read("weir.yaml");
    let listen = "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n";
    assert!(yaml.contains(listen));
    let mut weir = config.edit("weir.yaml", listen, &format!("{listen}  - address: 127.0.0.2:0\n")).run_two(&sim);
    let (kept, old) = (weir.http[0], weir.http[1]);
    assert_eq!(send(old, "GET", VECTARA, &[("X-API-Key", "open")]).status, 200);
    // By the address it is bound to, which is not the one that was written.
    weir.config.write("weir.yaml", &yaml.replace(listen, &format!("  - address: 127.0.0.3:0\n  - address: {kept}\n")));
    let process = weir.config.run(&["run", "--upgrade"], &sim);
    let now = addresses(&line_with(&process.stderr, "listening http="));
    assert_eq!(weir.process.wait().code(), Some(0));
    assert_eq!((now.0[0].ip().to_string(), now.0[1], now.1), ("127.0.0.3".to_owned(), kept, weir.admin));
    for address in &now.0 {
        assert_eq!(send(*address, "GET", VECTARA, &[("X-API-Key", "open")]).status, 200);
    }
    assert!(TcpStream::connect(old).is_err());
}

fn addresses(line: &str) -> (Vec<SocketAddr>, SocketAddr) {
    let (http, admin) = line.split_once(" admin=").unwrap();
    (http.split(" http=").map(|http| http.parse().unwrap()).collect(), admin.parse().unwrap())
}

/// A gateway with several listeners.
struct Several {
    process: Process,
    http: Vec<SocketAddr>,
    admin: SocketAddr,
    config: Config,
}

impl Config {
    fn run_two(self, sim: &Sim) -> Several {
        let process = self.run(&["run"], sim);
        let (http, admin) = addresses(&line_with(&process.stderr, "listening http="));
        Several { process, http, admin, config: self }
    }
}

#[test]
fn a_page_token_is_good_in_the_next_process() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let page = |weir: &Weir, token: &str| weir.get(&format!("/v1/agents/agt_load_1/sessions?limit=1{token}"));
    let first = page(&weir, "");
    let token = first.json()["next_page_token"].as_str().unwrap_or_else(|| panic!("{}", first.json())).to_owned();
    successor(&mut weir, &sim);
    let second = page(&weir, &format!("&page_token={token}"));
    assert_eq!(second.status, 200, "{}", second.json());
    assert_ne!(second.json()["sessions"][0]["id"], first.json()["sessions"][0]["id"]);
}

#[test]
fn where_two_processes_meet_is_configured_and_told_when_nobody_is_there() {
    let sim = Sim::start();
    let config = Config::shipped();
    let path = config.path("next.sock").display().to_string();
    // One that a process left behind when it was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    config.change("weir.yaml", "socket: auto", &format!("socket: {path}"));
    let mut weir = config.start(&sim);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut second = Process::start(&mut weir.config.command(&["run"]));
    line_with(
        &second.stderr,
        &format!("weir: warn: no upgrade without a gap: nobody can come to upgrade.socket ({path})"),
    );
    second.signal("TERM");
    assert_eq!(second.wait().code(), Some(0));
    successor(&mut weir, &sim);
    successor(&mut weir, &sim);
    weir.process.signal("TERM");
    assert_eq!(weir.process.wait().code(), Some(0));
    assert!(!std::path::Path::new(&path).exists(), "it is put away at the end");
    let alone = |expected: &str| {
        let output = weir.config.command(&["run", "--upgrade"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(expected), "{said}");
    };
    alone(&format!("no sockets were handed over at {path}: no running Weir can be reached there"));
    weir.config.change("weir.yaml", &format!("socket: {path}"), "socket: off");
    alone("upgrade.socket is off");
}

#[test]
fn a_process_of_another_user_is_given_nothing() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        eprintln!("SKIPPED: only root can be another user");
        return;
    }
    let sim = Sim::start();
    let config = Config::shipped();
    let name = format!("@weir-test-{}", std::process::id());
    config.change("weir.yaml", "socket: auto", &format!("socket: \"{name}\""));
    let weir = config.start(&sim);
    std::fs::set_permissions(weir.config.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The program may lie where another user cannot come.
    let program = weir.config.path("weir");
    std::fs::copy(env!("CARGO_BIN_EXE_weir"), &program).unwrap();
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(weir.config.directory.path())
        .args(["run", "--upgrade"])
        .env("WEIR_LISTEN", "127.0.0.1:0");
    let output = command.env("WEIR_ADMIN", "127.0.0.1:0").uid(65534).gid(65534).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("it runs as user 0, and not as 65534"), "{said}");
    // And one that does not mind who it is.
    let talk = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('\\0'+sys.argv[1]); s.send(b'weir 1 sockets\\n'); print(len(s.recv(100)))";
    let output = Command::new("python3").args(["-c", talk, &name[1..]]).uid(65534).gid(65534).output().unwrap();
    let got = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(got == "0" || got.is_empty(), "{got} {}", String::from_utf8_lossy(&output.stderr));
    line_with(
        &weir.process.stderr,
        "weir: warn: an upgrade began and came to nothing (it runs as user 65534, and not as 0)",
    );
    assert_eq!(weir.get(VECTARA).status, 200);
}

#[test]
fn the_service_manager_is_told() {
    let sim = Sim::start();
    let config = Config::shipped();
    let path = config.directory.path().with_extension("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut bytes = [0; 1024];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let mut weir = config.env("NOTIFY_SOCKET", path.to_str().unwrap()).start(&sim);
    assert_eq!(hear(), "READY=1\n");
    weir.process.signal("HUP");
    let told = hear();
    let now = told.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{told}"));
    assert!(now.trim_end().parse::<u64>().unwrap() > 0);
    assert_eq!(hear(), "READY=1\n");
    successor(&mut weir, &sim);
    // Of two processes, in either order.
    let mut told = [hear(), hear()];
    told.sort();
    assert_eq!(told, [format!("MAINPID={}\nREADY=1\n", weir.process.id()), "READY=1\n".to_owned()]);
    weir.process.signal("TERM");
    assert_eq!(hear(), "STOPPING=1\n");
    std::fs::remove_file(path).unwrap();
}
