//! Requests whose parameters are longer than a URL may be: forms, at the documented maximum, also behind nginx.

use crate::frames;
use crate::strict_provider::*;
use crate::support::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const BATCH: &str = "/v1/sessions:batchGet";
const LIST: &str = "/v1/sessions:list";

fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], form: &str) -> Response {
    let length = form.len().to_string();
    let all = [headers, &[("X-API-Key", "open"), ("Content-Length", &length)]].concat();
    send_bytes(address, &[&request("POST", path, &all), form.as_bytes()].concat())
}

/// nginx with the settings that it has if one writes none.
struct Nginx {
    process: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx in front of Weir. `None` if it is not installed.
    fn start(weir: &Weir) -> Option<Self> {
        let program = ["nginx", "/usr/sbin/nginx"].into_iter().find(|program| {
            Command::new(program).arg("-v").stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        })?;
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path tmp;\n"));
        let config = format!(
            "daemon off;\nuser root;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{}server {{\nlisten {address};\nlocation / {{ proxy_pass http://{}; }}\n}}\n}}\n",
            temporary.concat(),
            weir.http
        );
        std::fs::write(directory.path().join("nginx.conf"), config).unwrap();
        let prefix = format!("{}/", directory.path().display());
        let process =
            Command::new(program).args(["-p", &prefix, "-c", "nginx.conf"]).stderr(Stdio::null()).spawn().unwrap();
        wait_until("nginx accepts connections", || TcpStream::connect(address).is_ok());
        Some(Self { process, address, _directory: directory })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM ends its workers too.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// The addresses to try: Weir, and nginx in front of it.
fn addresses(weir: &Weir, nginx: Option<&Nginx>) -> Vec<SocketAddr> {
    if nginx.is_none() {
        eprintln!("SKIPPED in part: nginx is not installed");
    }
    [weir.http].into_iter().chain(nginx.map(|nginx| nginx.address)).collect()
}

/// An id of the longest length.
fn long_id(number: usize) -> String {
    let start = format!("palantir:ri.aip-agents..agent.{number:03}");
    let end = format!(":ri.aip-agents..session.{number:03}");
    format!("{start}{}{end}", "a".repeat(256 - start.len() - end.len()))
}

#[test]
fn a_batch_of_a_hundred_longest_ids_is_read() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let nginx = Nginx::start(&weir);
    let form: String = (0..100).map(|number| format!("id={}&", long_id(number))).collect();
    assert!(form.len() > 25_000);
    for address in addresses(&weir, nginx.as_ref()) {
        let response = post(address, BATCH, &[FORM], form.trim_end_matches('&'));
        assert_eq!(response.status, 200, "{:?}", response.json());
        let results = response.json()["results"].as_array().unwrap().clone();
        assert_eq!(results.len(), 100);
        for (number, result) in results.iter().enumerate() {
            assert_eq!(result["id"], json!(long_id(number)));
            assert_ne!(result["problem"]["code"], json!("invalid_request"), "{result}");
        }
    }
    // A URL of this length is refused, and the problem says what to do.
    let response = weir.get_as("open", &format!("{BATCH}?{form}"));
    assert_eq!(response.status, 414);
    assert!(response.json()["detail"].as_str().unwrap().contains("in a form"), "{:?}", response.json());
    // The same over HTTP/2, in several DATA frames.
    let config = Config::shipped().clients(CLIENTS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ");
    let weir = config.start(&sim);
    let mut socket = frames::connect(&weir);
    let headers = [("content-type", FORM.1)];
    let mut bytes = frames::request(1, "POST", BATCH, "open", &headers, 4);
    let parts: Vec<&[u8]> = form.trim_end_matches('&').as_bytes().chunks(10_000).collect();
    for (number, part) in parts.iter().enumerate() {
        bytes.extend(frames::frame(0, u8::from(number + 1 == parts.len()), 1, part));
    }
    socket.write_all(&bytes).unwrap();
    assert_eq!(frames::response_status(&mut socket, 1), Some(200));
}

const AGENTS: usize = 50;
const SESSIONS: usize = 150;

/// A source of sessions whose cursors have 1 KB of random letters.
fn provider() -> StrictProvider {
    StrictProvider::start(|head, connection| {
        let (path, query) = head.path.split_once('?').unwrap_or((&head.path, ""));
        let agent: usize = path.split("agt_").nth(1).and_then(|rest| rest.split('/').next()).unwrap().parse().unwrap();
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let start: usize = value("page_key").map_or(0, |key| key.split('-').next().unwrap().parse().unwrap());
        let limit: usize = value("limit").map_or(10, |limit| limit.parse().unwrap());
        let end = (start + limit).min(SESSIONS);
        let sessions: Vec<Value> = (start..end)
            .map(|n| {
                let seconds = (SESSIONS - n) * AGENTS + agent;
                let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
                json!({ "key": format!("ase_{agent}_{n}"), "agent_key": format!("agt_{agent}"), "enabled": true,
                    "created_at": format!("2024-01-01T{hour:02}:{minute:02}:{second:02}Z") })
            })
            .collect();
        // Letters that no compression shortens much.
        let mut state = (agent * 1000 + end) as u64 + 1;
        let noise: String = (0..1024 - 4)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_~"[(state >> 58) as usize])
            })
            .collect();
        let key = (end < SESSIONS).then(|| format!("{end}-{noise}"));
        connection.respond("200 OK", &json!({ "sessions": sessions, "metadata": { "page_key": key } }).to_string())
    })
}

#[test]
fn a_list_of_fifty_sources_with_long_cursors_is_read_to_its_end() {
    let (sim, provider) = (Sim::start(), provider());
    let config = Config::shipped().clients(CLIENTS).env("VECTARA_BASE_URL", &provider.url());
    let weir = config.edit("providers/vectara.yaml", "requests: 1000", "requests: 100000").start(&sim);
    let nginx = Nginx::start(&weir);
    let sources: String = (0..AGENTS).map(|agent| format!("agent=agt_{agent}&")).collect();
    for address in addresses(&weir, nginx.as_ref()) {
        let (mut seen, mut token, mut longest) = (Vec::new(), String::new(), 0);
        for page in 0.. {
            assert!(page <= AGENTS * SESSIONS / 100, "the list does not end");
            let form = format!("{sources}limit=100{token}");
            longest = longest.max(form.len());
            let response = post(address, LIST, &[FORM], &form);
            assert_eq!(response.status, 200, "page {page}, {} bytes: {:?}", form.len(), response.json());
            let body = response.json();
            assert_eq!(body["partial"], json!(false), "{body}");
            seen.extend(body["sessions"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()));
            match body["next_page_token"].as_str() {
                Some(next) => token = format!("&page_token={next}"),
                None => break,
            }
        }
        assert!(longest > 50_000, "the longest form has {longest} bytes");
        assert_eq!(seen.len(), AGENTS * SESSIONS);
        let newest_first = (0..SESSIONS).flat_map(|n| (0..AGENTS).rev().map(move |agent| (n, agent)));
        let expected: Vec<String> =
            newest_first.map(|(n, agent)| format!("vectara:agt_{agent}:ase_{agent}_{n}")).collect();
        assert!(seen == expected, "in their order, each once");
    }
}

#[test]
fn a_token_of_a_get_is_valid_in_a_form_and_the_other_way_round() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let query = "provider=agenthuman&limit=1";
    let first = weir.get_as("open", &format!("/v1/sessions?{query}")).json();
    let token = first["next_page_token"].as_str().unwrap();
    let by_form = post(weir.http, LIST, &[FORM], &format!("{query}&page_token={token}")).json();
    let by_get = weir.get_as("open", &format!("/v1/sessions?{query}&page_token={token}")).json();
    assert_eq!(by_form, by_get);
    assert_ne!(by_form["sessions"], first["sessions"]);
}

#[test]
fn forms_that_cannot_be_read_get_a_problem() {
    let sim = Sim::start();
    let config = Config::shipped().clients(CLIENTS).edit("weir.yaml", "body_timeout: 2m", "body_timeout: 1s");
    let weir = config.start(&sim);
    let ok = format!("id={}", long_id(1));
    for (headers, form, status, text) in [
        (&[FORM][..], ok.as_str(), 200, ""),
        (&[("Content-Type", "Application/X-WWW-Form-Urlencoded; charset=utf-8")], &ok, 200, ""),
        (&[], &ok, 400, "Content-Type: application/x-www-form-urlencoded"),
        (&[("Content-Type", "application/json")], "{}", 400, "Content-Type: application/x-www-form-urlencoded"),
        (&[FORM], "", 400, "id"),
        (&[FORM], "id=a&fields=nonsense", 400, "nonsense"),
        (&[FORM], "ids=a", 400, "did you mean"),
    ] {
        let response = post(weir.http, BATCH, headers, form);
        assert_eq!(response.status, status, "{headers:?} {form}");
        assert!(status == 200 || response.json()["detail"].as_str().unwrap().contains(text), "{:?}", response.json());
    }
    let response = post(weir.http, &format!("{BATCH}?id=a"), &[FORM], &ok);
    assert_eq!(response.status, 400);
    let huge = "x".repeat((256 << 10) + 1);
    assert_eq!(post(weir.http, BATCH, &[FORM], &huge).status, 413);
    // Without a valid key nothing is read.
    let bytes = request("POST", BATCH, &[FORM, ("X-API-Key", "wrong"), ("Content-Length", "100000")]);
    assert_eq!(send_bytes(weir.http, &bytes).status, 401);
    // It has to arrive in time.
    let bytes = request("POST", BATCH, &[FORM, ("X-API-Key", "open"), ("Content-Length", "10")]);
    assert_eq!(send_bytes(weir.http, &bytes).status, 408);
    for (path, method, allow) in
        [(LIST, "GET", "POST"), (BATCH, "PUT", "GET, HEAD, POST"), ("/v1/sessions", "POST", "GET, HEAD")]
    {
        let response = send_bytes(weir.http, &request(method, path, &[("X-API-Key", "open")]));
        assert_eq!((response.status, response.header("allow")), (405, Some(allow)), "{method} {path}");
    }
}

#[test]
fn a_connection_goes_on_after_a_form() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let form = format!("id={}", long_id(1));
    let head = |framing: &str| {
        format!("POST {BATCH} HTTP/1.1\r\nHost: x\r\nX-API-Key: open\r\nContent-Type: {}\r\n{framing}\r\n\r\n", FORM.1)
    };
    let (first, second) = form.split_at(7);
    let chunks = format!("7\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
    let next = "GET /v1/providers HTTP/1.1\r\nHost: x\r\nX-API-Key: open\r\nConnection: close\r\n\r\n";
    for text in [
        head(&format!("Content-Length: {}", form.len())) + &form + next,
        head("Transfer-Encoding: chunked") + &chunks + next,
    ] {
        let mut socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        // In pieces, so that the body is not in the buffer with the head.
        for piece in text.as_bytes().chunks(100) {
            socket.write_all(piece).unwrap();
        }
        let mut received = String::new();
        socket.read_to_string(&mut received).unwrap();
        assert_eq!(received.matches("HTTP/1.1 200 OK").count(), 2, "{received}");
        assert!(received.contains("\"results\"") && received.contains("\"providers\""), "{received}");
    }
}
