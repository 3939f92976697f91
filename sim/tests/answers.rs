//! Starts the simulator and reads one session of each provider over HTTP/1.1.
//!
//! `cargo test` builds the program because of this test. The process tests of `weir` start it.

// Tests may panic and read the clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The longest time that the test waits for anything.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A running simulator. It is killed when this value is dropped.
struct Simulator {
    process: Child,
    stdin: Option<ChildStdin>,
    address: SocketAddr,
}

impl Simulator {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_weir-sim"))
            .args(["--listen", "127.0.0.1:0", "--exit-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("weir-sim starts");
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut simulator = Self { process, stdin, address: ([127, 0, 0, 1], 0).into() };
        let deadline = Instant::now() + MAX_WAIT;
        while simulator.address.port() == 0 {
            let line = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.expect("weir-sim prints its address");
            if let Some(address) = line.strip_prefix("listening http=") {
                simulator.address = address.parse().expect("an address");
            }
        }
        simulator
    }

    /// Sends a GET request and returns status and body.
    fn get(&self, target: &str, (name, value): (&str, &str)) -> (u16, String) {
        let mut stream = TcpStream::connect_timeout(&self.address, MAX_WAIT).unwrap();
        stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{name}: {value}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").expect("a response with a body");
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).expect("a status line");
        (status.parse().unwrap(), body.to_owned())
    }

    /// Closes standard input and waits for the exit status.
    fn end(mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(Instant::now() < deadline, "weir-sim still runs {MAX_WAIT:?} after its standard input closed");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn one_session_of_each_provider_is_readable() {
    let agent = "ri.aip-agents..agent.732cd5b4-7ca7-4219-aabb-6e976faf63b1";
    let session = "ri.aip-agents..session.292db3b2-b653-4de6-971c-7e97a7b881d6";
    let sessions = [
        (
            "/v2/agents/agt_customer_support/sessions/ase_customer_support_001".to_owned(),
            ("x-api-key", "zut_sim"),
            "\"id\":\"ase_customer_support_001\"".to_owned(),
        ),
        (
            format!("/api/v2/aipAgents/agents/{agent}/sessions/{session}?preview=true"),
            ("Authorization", "Bearer sim-token"),
            format!("\"rid\":\"{session}\""),
        ),
        (
            "/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T".to_owned(),
            ("x-api-key", "ah_test_sim"),
            "\"session_id\":\"sess_01H3Z8G9YR3K2N5M6P7Q8W4T\"".to_owned(),
        ),
    ];
    let simulator = Simulator::start();
    for (target, credential, id) in &sessions {
        let (status, body) = simulator.get(target, *credential);
        assert!(status == 200 && body.contains(id), "{target}: {status} {body}");
        let (status, body) = simulator.get(target, (credential.0, "wrong"));
        assert!(status == 401 && !body.contains(id), "{target}: {status} {body}");
    }
    simulator.end();
}
