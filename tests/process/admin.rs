//! The admin listener: which hosts, pages and tokens it accepts, and the limits of its connections.

use crate::support::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

const PURGE: &str = "{\"all\":true}";

/// Sends a request with exactly these lines after the request line, and returns the response.
fn exchange(address: SocketAddr, first_line: &str, fields: &[&str], body: &str) -> Response {
    let text = format!("{first_line}\r\n{}\r\n{body}", fields.iter().map(|f| format!("{f}\r\n")).collect::<String>());
    send_bytes(address, text.as_bytes())
}

/// Sends a request with this `Host`, and with the token.
fn under_host(weir: &Weir, method: &str, path: &str, host: &str) -> u16 {
    let token = format!("Authorization: {}", weir.admin_authorization());
    let fields = [&format!("Host: {host}"), &token, "Connection: close"];
    exchange(weir.admin, &format!("{method} {path} HTTP/1.1"), &fields, "").status
}

#[test]
fn a_web_page_cannot_purge_or_reload_in_the_shipped_configuration() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    assert_eq!(weir.get(VECTARA).status, 200);
    let (host, length) = (format!("Host: {}", weir.admin), format!("Content-Length: {}", PURGE.len()));
    let token = format!("Authorization: {}", weir.admin_authorization());
    let post = |path: &str, fields: &[&str], body: &str| {
        let all = [&[&*host, "Connection: close"], fields].concat();
        exchange(weir.admin, &format!("POST {path} HTTP/1.1"), &all, body)
    };
    // What a page of another site can send.
    for page in
        ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
    {
        let refused = post("/cache/purge", &["Content-Type: text/plain", &length, page], PURGE);
        assert_eq!(refused.code(), (403, "forbidden".into()), "{page}");
        assert_eq!(post("/reload", &[page], "").status, 403, "{page}");
        assert_eq!(post("/reload", &[page, &token], "").status, 403, "{page} with the token");
        for path in ["/metrics", "/healthz", "/readyz", "/config", "/cache", "/nowhere"] {
            assert_eq!(
                exchange(weir.admin, &format!("GET {path} HTTP/1.1"), &[&host, "Connection: close", page], "").status,
                403
            );
            let preflight = [&*host, "Connection: close", page, "Access-Control-Request-Method: POST"];
            let preflight = exchange(weir.admin, &format!("OPTIONS {path} HTTP/1.1"), &preflight, "");
            assert!(preflight.status == 403 && preflight.header("access-control-allow-origin").is_none());
        }
    }
    // Without the headers of a browser, a change needs the token and JSON.
    assert_eq!(post("/cache/purge", &["Content-Type: application/json", &length], PURGE).status, 401);
    assert_eq!(post("/reload", &[], "").status, 401);
    assert_eq!(post("/reload", &["Authorization: Bearer wrong"], "").status, 401);
    let types = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "application/json; charset=utf-16",
    ];
    for content_type in types {
        let refused = post("/cache/purge", &[&token, &format!("Content-Type: {content_type}"), &length], PURGE);
        assert_eq!(refused.code(), (400, "invalid_request".into()), "{content_type}");
    }
    assert_eq!(post("/cache/purge", &[&token, &length], PURGE).status, 400, "no Content-Type");
    assert_eq!(post("/reload", &[&token, "Content-Type: application/json", "Content-Length: 1"], "{").status, 400);
    assert!(weir.metric("weir_cache_entries{provider=\"vectara\"}") >= 1.0, "nothing was purged");
    for content_type in ["application/json", "Application/JSON; charset=UTF-8"] {
        let purged = post("/cache/purge", &[&token, &format!("Content-Type: {content_type}"), &length], PURGE);
        assert_eq!(purged.status, 200, "{content_type}");
    }
    assert_eq!(post("/reload", &[&token], "").status, 200);
    assert_eq!(post("/reload", &[&token, "Content-Type: application/json", "Content-Length: 2"], "{}").status, 200);
    let own = format!("Origin: http://{}", weir.admin);
    assert_eq!(post("/reload", &[&token, &own, "Sec-Fetch-Site: same-origin"], "").status, 200, "a page of its own");
}

#[test]
fn dns_rebinding_reads_nothing_and_monitoring_minds_no_host() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "admin:", "admin:\n  hosts: [Weir.Internal]").start(&sim);
    let port = weir.admin.port();
    for path in ["/config", "/cache"] {
        for host in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1.evil.example", "2130706433"] {
            assert_eq!(under_host(&weir, "GET", path, host), 403, "{path} {host}");
            assert_eq!(under_host(&weir, "HEAD", path, host), 403, "{path} {host}");
        }
        for host in [
            "127.0.0.1",
            &format!("127.0.0.1:{port}"),
            "localhost:1",
            "LOCALHOST.",
            "[::1]",
            "192.0.2.1",
            "weir.internal",
            "WEIR.internal.:80",
        ] {
            assert_eq!(under_host(&weir, "GET", path, host), 200, "{path} {host}");
        }
        let absolute = ["Host: evil.example", "Connection: close"];
        assert_eq!(exchange(weir.admin, &format!("GET http://evil.example{path} HTTP/1.1"), &absolute, "").status, 403);
        let forwarded = ["Host: evil.example", "X-Forwarded-Host: localhost", "Connection: close"];
        assert_eq!(exchange(weir.admin, &format!("GET {path} HTTP/1.1"), &forwarded, "").status, 403);
    }
    assert_eq!(under_host(&weir, "POST", "/reload", "evil.example"), 403);
    for path in ["/metrics", "/healthz", "/readyz"] {
        for host in ["evil.example", "weir:8081", "pod_1", "10.0.0.1:8081"] {
            assert_eq!(under_host(&weir, "GET", path, host), 200, "{path} {host}");
        }
    }
}

#[test]
fn an_admin_request_without_a_host_or_with_an_invalid_one_is_400() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    for path in ["/config", "/metrics", "/healthz"] {
        let get = |version: &str, fields: &[&str]| {
            let all = [fields, &["Connection: close"]].concat();
            exchange(weir.admin, &format!("GET {path} HTTP/{version}"), &all, "").code()
        };
        assert_eq!(get("1.1", &[]).0, 400, "{path}");
        assert_eq!(get("1.1", &["Host: localhost", "Host: localhost"]).0, 400, "{path}");
        for host in ["", "x y", "x/y", "[::1", "u@localhost", "localhost:x", "localhost:99999", "x,y", "::1"] {
            assert_eq!(get("1.1", &[&format!("Host: {host}")]), (400, "invalid_request".into()), "{path} {host}");
            assert_eq!(get("1.0", &[&format!("Host: {host}")]).0, 400, "{path} {host}");
        }
        let bare = exchange(weir.admin, &format!("GET {path} HTTP/1.0"), &[], "");
        assert_eq!(bare.status, 200, "HTTP/1.0 has no Host: {path}");
    }
}

#[test]
fn the_word_bearer_is_accepted_in_any_letter_case() {
    let sim = Sim::start();
    let weir = Config::shipped().env("WEIR_ADMIN_TOKEN", "t0ken").start(&sim);
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        let response = send(weir.admin, "GET", "/config", &[("Authorization", &format!("{scheme} t0ken"))]);
        assert_eq!(response.status, 200, "{scheme}");
    }
    for wrong in ["Basic t0ken", "t0ken", "Bearer", "Bearer t0ke", "bearer T0ken"] {
        assert_eq!(send(weir.admin, "GET", "/config", &[("Authorization", wrong)]).status, 401, "{wrong}");
    }
    assert!(!weir.config.runtime.path().join("weir").exists(), "no token of its own is stored");
}

#[test]
fn the_generated_token_is_private_and_serves_the_commands() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let directory = weir.config.runtime.path().join("weir");
    let file = directory.join(format!("admin-{}.token", weir.admin));
    let mode = |path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&file)), (0o700, 0o600));
    // A second gateway has a token of its own.
    let other = weir.config.run(&["run"], &sim);
    let line = wait_for_line(&other.stderr, "listening http=");
    let other_admin: SocketAddr = line.split_once(" admin=").unwrap().1.parse().unwrap();
    assert_ne!(weir.config.admin_authorization(other_admin), weir.admin_authorization());

    let admin = weir.admin.to_string();
    let run = |arguments: &[&str]| {
        let output = weir.config.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(weir.get(VECTARA).status, 200);
    let purged = run(&["purge", "--all", "--admin", &admin]);
    assert!(purged.0 == Some(0) && purged.1.starts_with("{\"purged\":"), "{purged:?}");
    let reloaded = run(&["reload", "--admin", &admin]);
    assert!(reloaded.0 == Some(0) && reloaded.1.contains("\"unchanged\""), "{reloaded:?}");
    let clients = weir.config.read("clients.yaml");
    weir.config.write("clients.yaml", "clients: 1\n");
    let refused = run(&["reload", "--admin", &admin]);
    assert!(refused.0 == Some(1) && refused.2.contains("clients.yaml:1"), "{refused:?}");
    weir.config.write("clients.yaml", &clients);
    assert_eq!(run(&["reload", "--admin", &other_admin.to_string()]).0, Some(0));
    assert_eq!(run(&["health", "--admin", &admin]).0, Some(0));

    let text = std::fs::read_to_string(&file).unwrap();
    let token = text.trim();
    let shown = String::from_utf8(weir.admin("GET", "/config").body).unwrap() + &weir.metrics();
    assert!(!shown.contains(token) && !weir.process.stderr.lock().unwrap().join("\n").contains(token));
    weir.process.signal("TERM");
    assert!(weir.process.wait().success());
    assert!(!file.exists(), "the file ends with the process");
}

#[test]
fn a_token_file_of_a_killed_gateway_is_replaced_and_a_link_is_not_followed() {
    let sim = Sim::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = Config::shipped().env("WEIR_ADMIN", &free.to_string());
    let mut first = config.run(&["run"], &sim);
    wait_for_line(&first.stderr, "listening http=");
    let stale = config.admin_authorization(free);
    first.signal("KILL");
    first.wait();
    assert_eq!(config.admin_authorization(free), stale, "it is left");
    let mut second = config.run(&["run"], &sim);
    wait_for_line(&second.stderr, "listening http=");
    let token = config.admin_authorization(free);
    assert_ne!(token, stale);
    assert_eq!(send(free, "POST", "/reload", &[("Authorization", &stale)]).status, 401);
    assert_eq!(send(free, "POST", "/reload", &[("Authorization", &token)]).status, 200);
    second.signal("TERM");
    second.wait();

    let target = config.path("target");
    std::fs::write(&target, "unchanged").unwrap();
    let file = config.runtime.path().join(format!("weir/admin-{free}.token"));
    std::os::unix::fs::symlink(&target, &file).unwrap();
    let third = config.run(&["run"], &sim);
    wait_for_line(&third.stderr, "listening http=");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "unchanged");
    assert!(std::fs::symlink_metadata(&file).unwrap().is_file());
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn the_generated_token_is_kept_over_an_upgrade() {
    let sim = Sim::start();
    let mut weir = Config::shipped().start(&sim);
    let token = weir.admin_authorization();
    for _ in 0..2 {
        let new = weir.config.run(&["run", "--upgrade"], &sim);
        wait_for_line(&new.stderr, "listening http=");
        assert!(weir.process.wait().success());
        weir.process = new;
        assert_eq!(weir.admin_authorization(), token);
        assert_eq!(send(weir.admin, "POST", "/reload", &[("Authorization", &token)]).status, 200);
    }
    // A reload that sets a token makes only that one valid; one that removes it makes the own one valid again.
    weir.config.change("weir.yaml", "${WEIR_ADMIN_TOKEN:-}", "from-the-file");
    assert_eq!(weir.reload().0, 200);
    assert_eq!(send(weir.admin, "POST", "/reload", &[("Authorization", &token)]).status, 401);
    assert_eq!(weir.admin("GET", "/config").status, 401);
    weir.config.change("weir.yaml", "from-the-file", "${WEIR_ADMIN_TOKEN:-}");
    assert_eq!(send(weir.admin, "POST", "/reload", &[("Authorization", "Bearer from-the-file")]).status, 200);
    assert_eq!(send(weir.admin, "POST", "/reload", &[("Authorization", &token)]).status, 200);
}

#[test]
fn an_admin_connection_over_http_1_0_closes_unless_the_client_asks() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let closed = exchange(weir.admin, "GET /healthz HTTP/1.0", &[], "");
    assert_eq!((closed.status, closed.header("connection")), (200, Some("close")));
    let mut socket = TcpStream::connect(weir.admin).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    for _ in 0..2 {
        socket.write_all(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let head = read_until(&mut socket, "{\"status\":\"ok\"}\n");
        assert!(head.contains("connection: keep-alive"), "{head}");
    }
    // Over HTTP/1.1 it stays open, also behind a body and for pipelined requests.
    let token = weir.admin_authorization();
    let text = format!(
        "POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n5;x=y\r\n{{\"all\r\n7\r\n\":true}}\r\n0\r\n\r\n\
         GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    let answers = String::from_utf8(send_bytes(weir.admin, text.as_bytes()).body).unwrap();
    assert!(answers.starts_with("{\"purged\":") && answers.contains("{\"status\":\"ok\"}"), "{answers}");
}

fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with(end) {
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "{text}");
        text.push(char::from(byte[0]));
    }
    text
}

#[test]
fn admin_connections_have_limits_and_deadlines() {
    let sim = Sim::start();
    let mut config = Config::shipped();
    for (from, to) in [
        ("header_timeout: 10s", "header_timeout: 1s"),
        ("idle_timeout: 60s", "idle_timeout: 2s"),
        ("stall_timeout: 30s", "stall_timeout: 1s"),
        ("body_timeout: 2m", "body_timeout: 2s"),
        ("header_bytes: 64KiB", "header_bytes: 8KiB"),
    ] {
        config = config.edit("weir.yaml", from, to);
    }
    let weir = config.start(&sim);
    let token = weir.admin_authorization();
    let connect = || {
        let socket = TcpStream::connect(weir.admin).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        socket
    };
    let rest = |mut socket: TcpStream| {
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    };
    let mut slow_head = connect();
    slow_head.write_all(b"GET /healthz HTTP/1.1\r\nHost:").unwrap();
    let idle = connect();
    let mut slow_body = connect();
    let head = format!(
        "POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n"
    );
    slow_body.write_all(format!("{head}Content-Length: 9\r\n\r\n{{").as_bytes()).unwrap();
    assert!(rest(slow_head).starts_with("HTTP/1.1 408"));
    assert_eq!(rest(idle), "");
    assert!(rest(slow_body).starts_with("HTTP/1.1 408"));
    let mut large = connect();
    large.write_all(format!("{head}Content-Length: 999999\r\n\r\n").as_bytes()).unwrap();
    let refused = rest(large);
    assert!(refused.starts_with("HTTP/1.1 413") && refused.contains("connection: close"), "{refused}");
    let mut chunked = connect();
    chunked.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n50000\r\n").as_bytes()).unwrap();
    assert!(rest(chunked).starts_with("HTTP/1.1 413"));
    let mut bad_chunk = connect();
    bad_chunk.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n;\r\n").as_bytes()).unwrap();
    assert!(rest(bad_chunk).starts_with("HTTP/1.1 400"));
    let long = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert_eq!(send_bytes(weir.admin, long.as_bytes()).status, 431);
    assert_eq!(send_bytes(weir.admin, b"GET / HTTP/9\r\n\r\n").status, 400);
    // A body that no endpoint reads closes the connection, so it cannot be taken for a request.
    let smuggled =
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\nGET /config HTTP/1.1\r\nHost:\r\n\r\n";
    let answer = send_bytes(weir.admin, smuggled.as_bytes());
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(answer.body, b"{\"status\":\"ok\"}\n");
    for reason in ["header_timeout", "idle_timeout", "body_timeout", "malformed"] {
        assert!(weir.metric(&format!("weir_admin_connections_ended_total{{reason=\"{reason}\"}}")) >= 1.0, "{reason}");
    }
    assert!(weir.metric("weir_admin_requests_total{path=\"/healthz\",status=\"200\"}") >= 1.0);
}

#[test]
fn a_flood_of_admin_connections_does_not_starve_clients_nor_the_other_way_round() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let flood: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(weir.admin).unwrap()).collect();
    wait_until("connections are refused", || {
        // Clients are served, while the admin listener refuses this address.
        assert_eq!(weir.get(VECTARA).status, 200);
        let mut refused = 0;
        for mut socket in flood.iter().take(150) {
            socket.set_nonblocking(true).unwrap();
            refused += usize::from(socket.read(&mut [0; 16]).is_ok());
        }
        refused >= 1
    });
    assert_eq!(weir.get(VECTARA).status, 200);
    drop(flood);
    wait_until("the admin listener answers again", || {
        try_send_bytes(weir.admin, &request("GET", "/healthz", &[])).is_ok_and(|response| response.status == 200)
    });
    let reason = "weir_admin_connections_ended_total{reason=\"connections_per_address\"}";
    assert!(weir.metric(reason) >= 22.0, "{}", weir.metric(reason));

    // Four connections take all that clients may have. The admin listener still answers.
    let weir = Config::shipped().edit("weir.yaml", "connections: 20000", "connections: 4").start(&sim);
    let clients: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(weir.http).unwrap()).collect();
    wait_until("clients are refused", || weir.metric("weir_connections_ended_total{reason=\"connections\"}") >= 4.0);
    assert_eq!(weir.admin("GET", "/healthz").status, 200);
    drop(clients);
}

#[test]
fn guesses_of_the_token_take_time_and_the_token_does_not() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let refused = "weir_admin_requests_total{path=\"/reload\",status=\"401\"}";
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| {
        let guess = |n: usize| {
            let token = format!("Bearer guess{n}");
            let bytes = request("POST", "/reload", &[("Authorization", &token), ("Connection", "close")]);
            let mut socket = TcpStream::connect(weir.admin).unwrap();
            socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
            socket.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        };
        let guesses: Vec<_> = (0..30).map(|n| scope.spawn(move || guess(n))).collect();
        wait_until("all guesses have arrived", || weir.metric(refused) == 30.0);
        assert_eq!(weir.reload().0, 200);
        guesses.into_iter().map(|guess| guess.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let answered = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 401")).count();
    let silent = answers.iter().filter(|answer| answer.is_empty()).count();
    assert!(answered + silent == 30 && silent > 0, "{answers:?}");
    wait_for_log(&weir.process.stderr, "WARN", "somebody may be guessing the admin token:");
    let lines =
        weir.process.stderr.lock().unwrap().iter().filter(|line| line.contains("guessing the admin token:")).count();
    assert!((1..=2).contains(&lines), "one line a minute, not {lines}");
}
