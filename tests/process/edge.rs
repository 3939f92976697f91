//! What comes before the first request, and what no request may do: TLS, limits, hygiene.

use crate::frames;
use crate::support::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A certificate for localhost and its key, written as PEM.
fn certificate(directory: &Path, name: &str) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(directory.join(format!("{name}.crt")), made.cert.pem()).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
}

/// An authority, and a client's certificate that it signed.
fn authority(directory: &Path) {
    let (ca_key, client_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let client = CertificateParams::new(["a client".to_owned()]).unwrap().signed_by(&client_key, &issuer).unwrap();
    std::fs::write(directory.join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(directory.join("client.crt"), client.pem()).unwrap();
    std::fs::write(directory.join("client.key"), client_key.serialize_pem()).unwrap();
}

fn tls(directory: &Path, more: &str) -> Config {
    let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
    Config::shipped().edit(
        "weir.yaml",
        "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n",
        &format!(
            "  - address: ${{WEIR_LISTEN:-127.0.0.1:8080}}\n    tls: {{ certificate: {}, key: {}{more} }}\n",
            certificate.display(),
            key.display()
        ),
    )
}

/// Status and HTTP version of a request by curl, or its exit code.
fn curl(address: SocketAddr, scheme: &str, options: &[&str]) -> Result<String, i32> {
    let url = format!("{scheme}://localhost:{}{VECTARA}", address.port());
    let mut command = Command::new("curl");
    command.args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version}",
        "-H",
        "X-API-Key: open",
        "--max-time",
        "20",
    ]);
    let output = command
        .args(["--resolve", &format!("localhost:{}:127.0.0.1", address.port())])
        .args(options)
        .arg(url)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(output.status.code().unwrap_or(-1))
    }
}

#[test]
fn a_certificate_is_replaced_without_a_restart_and_a_bad_one_is_a_fault() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    certificate(directory.path(), "server");
    std::fs::copy(path("server.crt"), path("first.crt")).unwrap();
    let sim = Sim::start();
    let weir = tls(directory.path(), "").start(&sim);
    assert_eq!(curl(weir.http, "https", &["--cacert", &path("first.crt")]), Ok("200 2".into()));
    assert_eq!(curl(weir.http, "https", &["--http1.1", "--cacert", &path("first.crt")]), Ok("200 1.1".into()));
    assert!(curl(weir.http, "http", &[]).is_err(), "no answer without TLS");
    certificate(directory.path(), "server");
    assert_eq!(weir.reload().0, 200);
    assert_eq!(curl(weir.http, "https", &["--cacert", &path("server.crt")]), Ok("200 2".into()));
    assert_eq!(curl(weir.http, "https", &["--cacert", &path("first.crt")]), Err(60), "the old one is gone");
    std::fs::copy(path("server.crt"), path("second.crt")).unwrap();
    for (file, words) in [("server.crt", "no certificate as PEM"), ("server.key", "no private key as PEM")] {
        let good = std::fs::read(path(file)).unwrap();
        std::fs::write(path(file), "nonsense").unwrap();
        let (status, faults) = weir.reload();
        assert_eq!(status, 422, "{file}");
        assert!(faults.to_string().contains(words) && faults.to_string().contains("weir.yaml:"), "{faults}");
        assert_eq!(
            curl(weir.http, "https", &["--cacert", &path("second.crt")]),
            Ok("200 2".into()),
            "the good one stays"
        );
        std::fs::write(path(file), good).unwrap();
    }
    assert!(weir.metric("weir_connections_ended_total{reason=\"tls\"}") >= 2.0);
    let mut silent = TcpStream::connect(weir.http).unwrap();
    let _ = silent.write_all(b"\x16");
    assert_eq!(
        curl(weir.http, "https", &["--cacert", &path("server.crt")]),
        Ok("200 2".into()),
        "a stalled handshake holds nobody up"
    );
}

#[test]
fn with_an_authority_only_its_clients_get_in() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    certificate(directory.path(), "server");
    authority(directory.path());
    let sim = Sim::start();
    let weir = tls(directory.path(), &format!(", client_ca: {}", path("ca.crt"))).start(&sim);
    let (trust, own) = (path("server.crt"), [path("client.crt"), path("client.key")]);
    assert!(curl(weir.http, "https", &["--cacert", &trust]).is_err());
    certificate(directory.path(), "stranger");
    assert!(
        curl(
            weir.http,
            "https",
            &["--cacert", &trust, "--cert", &path("stranger.crt"), "--key", &path("stranger.key")]
        )
        .is_err()
    );
    assert_eq!(
        curl(weir.http, "https", &["--cacert", &trust, "--cert", &own[0], "--key", &own[1]]),
        Ok("200 2".into())
    );
}

#[test]
fn what_a_listener_asked_for_at_its_start_it_asks_for_until_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    certificate(directory.path(), "server");
    authority(directory.path());
    let sim = Sim::start();
    let weir = tls(directory.path(), &format!(", client_ca: {}", path("ca.crt"))).start(&sim);
    let own = ["--cacert", &path("server.crt"), "--cert", &path("client.crt"), "--key", &path("client.key")];
    let written = weir.config.read("weir.yaml");
    let without = |from: &str| written.lines().filter(|line| !line.contains(from)).collect::<Vec<_>>().join("\n");
    let elsewhere = written.replace("${WEIR_LISTEN:-127.0.0.1:8080}", "127.0.0.1:1");
    let no_authority = written.replace(&format!(", client_ca: {}", path("ca.crt")), "");
    for (what, text) in
        [("address", &elsewhere), ("tls", &without("    tls: { certificate")), ("client_ca", &no_authority)]
    {
        assert_ne!(*text, written, "{what}");
        weir.config.write("weir.yaml", text);
        let mut told = weir.reload();
        // The files may have been read already because they changed.
        if told.1["result"] != "success" {
            weir.config.write("weir.yaml", &format!("{text}\n# {what}\n"));
            told = weir.reload();
        }
        assert_eq!((told.0, &told.1["needs_restart"]), (200, &json!(["listen"])), "{what}: {told:?}");
        let plain = format!("GET {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\nConnection: close\r\n\r\n");
        assert!(try_raw(weir.http, plain.as_bytes()).is_err(), "{what}: never without TLS");
        assert!(curl(weir.http, "https", &own[..2]).is_err(), "{what}: never without the client's certificate");
        assert_eq!(curl(weir.http, "https", &own), Ok("200 2".into()), "{what}");
    }
}

#[test]
fn http2_by_prior_knowledge_only_where_the_listener_says_so() {
    let sim = Sim::start();
    let plain = Config::shipped().start(&sim);
    assert!(curl(plain.http, "http", &["--http2-prior-knowledge"]).is_err());
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    assert_eq!(curl(weir.http, "http", &["--http2-prior-knowledge"]), Ok("200 2".into()));
    assert_eq!(curl(weir.http, "http", &["--http1.1"]), Ok("200 1.1".into()));
    assert_eq!(weir.get(VECTARA).status, 200);
}

#[test]
fn a_long_list_is_whole_over_either_version_and_its_head_says_how_long() {
    let sim = Sim::with(&["--sessions", "100"]);
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let ask = |version: &str, path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", version, "-H", "X-API-Key: open"]).args(more);
        let output = curl.arg(format!("http://{}{path}", weir.http)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer = String::from_utf8(output.stdout).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        (length.parse::<usize>().unwrap(), body.to_owned())
    };
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (path, sessions) in
            [("/v1/agents/agt_load_1/sessions?limit=100", 100), ("/v1/agents/agt_empty/sessions", 0)]
        {
            let (length, body) = ask(version, path, &[]);
            let read: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (read["sessions"].as_array().unwrap().len(), body.len()),
                (sessions, length),
                "{version} {path}"
            );
            // By then it is cached, and older.
            let (told, nothing) = ask(version, path, &["--head"]);
            assert!(
                nothing.is_empty() && told.abs_diff(length) < 20,
                "{version} {path}: {told} of {length}, {nothing:?}"
            );
        }
    }
}

#[test]
fn what_of_a_list_is_shown_is_in_its_tag() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let ask = |fields: &str| {
        let answer = weir.get(&format!("/v1/agents/agt_customer_support/sessions?fields={fields}"));
        (answer.json()["sources"].clone(), answer.header("etag").unwrap().to_owned())
    };
    // Their age is in the tag too: two of the same second are held against each other.
    until("two lists are equally old", || {
        let (one, other) = (ask("id"), ask("id,status"));
        let same = one.0 == other.0;
        assert!(!same || one.1 != other.1, "{one:?}");
        same
    });
}

fn limits(config: Config, from: &str, to: &str) -> Config {
    config.edit("weir.yaml", from, to)
}

#[test]
fn connections_are_bounded_in_all_and_by_address() {
    let sim = Sim::start();
    for (edit, reason) in
        [("connections: 20000", "connections"), ("connections_per_address: 5000", "connections_per_address")]
    {
        let (name, _) = edit.split_once(':').unwrap();
        let weir = limits(Config::shipped(), edit, &format!("{name}: 3")).start(&sim);
        let held: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(weir.http).unwrap()).collect();
        until("they are counted", || weir.metric("weir_connections") == 3.0);
        let refused = weir.get(VECTARA);
        assert_eq!(refused.code(), (503, "overloaded".into()), "{reason}");
        assert!(refused.json()["detail"].as_str().unwrap().contains(&format!("limits.{reason})")));
        assert_eq!(weir.metric(&format!("weir_connections_ended_total{{reason=\"{reason}\"}}")), 1.0);
        drop(held);
        until("there is room again", || weir.get(VECTARA).status == 200);
    }
}

/// Sends parts of a request with pauses, on a connection that has had requests before, and reads to its end.
fn slowly(weir: &Weir, before: usize, parts: &[&[u8]], pause: Duration) -> (String, Duration) {
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..before {
        socket.write_all(format!("GET {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n").as_bytes()).unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"}") {
            let mut buffer = [0; 4096];
            let n = socket.read(&mut buffer).unwrap();
            assert!(n > 0, "it was closed: {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..n]);
        }
        assert!(got.starts_with(b"HTTP/1.1 200"));
    }
    let begun = Instant::now();
    for part in parts {
        if socket.write_all(part).is_err() {
            break;
        }
        std::thread::sleep(pause);
    }
    let mut rest = String::new();
    let _ = socket.read_to_string(&mut rest);
    (rest, begun.elapsed())
}

#[test]
fn each_header_has_its_deadline_and_each_wait_its_end() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("weir.yaml", "header_timeout: 10s", "header_timeout: 1s")
        .edit("weir.yaml", "idle_timeout: 60s", "idle_timeout: 2s")
        .start(&sim);
    let dripped: Vec<&[u8]> = b"GET /v1/providers HTTP/1.1\r\nHost: a\r\n".chunks(3).collect();
    for before in [0, 3] {
        let (told, took) = slowly(&weir, before, &dripped, Duration::from_millis(200));
        assert!(told.starts_with("HTTP/1.1 408") && told.contains("request_timeout"), "{before}: {told}");
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"header_timeout\"}"), 2.0);
    for before in [0, 2] {
        let (told, took) = slowly(&weir, before, &[], Duration::ZERO);
        assert_eq!(told, "", "an idle connection is closed without a word");
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(15), "{took:?}");
    }
    // In time, though in pieces.
    let (told, _) = slowly(
        &weir,
        1,
        &[b"GET /v1/providers HTT", b"P/1.1\r\nHost: a\r\nConnection: close\r\nX-API-", b"Key: open\r\n\r\n"],
        Duration::from_millis(50),
    );
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
}

#[test]
fn a_connection_has_so_many_requests_and_each_limit_its_answer() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("weir.yaml", "requests_per_connection: 100000", "requests_per_connection: 3")
        .edit("weir.yaml", "header_count: 100", "header_count: 20")
        .edit("weir.yaml", "header_bytes: 64KiB", "header_bytes: 2KiB")
        .edit("weir.yaml", "url_bytes: 8KiB", "url_bytes: 1KiB")
        .edit("weir.yaml", "body_bytes: 64KiB", "body_bytes: 1KiB")
        .start(&sim);
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("HEAD {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n");
    let (mut answers, mut closed) = (0, false);
    while !closed && answers < 10 {
        socket.write_all(request.as_bytes()).unwrap();
        let (mut got, mut one) = (Vec::new(), [0]);
        while !got.ends_with(b"\r\n\r\n") && socket.read(&mut one).unwrap_or(0) > 0 {
            got.push(one[0]);
        }
        answers += 1;
        closed = String::from_utf8_lossy(&got).to_ascii_lowercase().contains("connection: close");
    }
    assert!((3..=4).contains(&answers), "{answers} requests were answered");
    let many: Vec<(String, String)> = (0..30).map(|n| (format!("x-{n}"), "y".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(weir.get_with(VECTARA, &many).code(), (431, "request_too_large".into()));
    assert_eq!(weir.get_with(VECTARA, &[("x-long", &"y".repeat(3000))]).code(), (431, "request_too_large".into()));
    assert_eq!(weir.get(&format!("{VECTARA}?x={}", "y".repeat(2000))).code(), (414, "request_too_large".into()));
    assert_eq!(weir.get_with(VECTARA, &[("Content-Length", "2000")]).code(), (413, "request_too_large".into()));
    for limit in ["header_count", "header_bytes", "url_bytes", "body_bytes"] {
        assert_eq!(weir.metric(&format!("weir_limited_total{{limit=\"{limit}\"}}")), 1.0, "{limit}");
    }
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"requests_per_connection\"}"), 1.0);
    // Before it is asked whose request it is, and before a page's question is answered.
    assert_eq!(
        send(weir.http, "GET", VECTARA, &[("x-long", &"y".repeat(3000))]).code(),
        (431, "request_too_large".into())
    );
    // A body whose length is not told is read past up to the limit, and no further.
    let mut endless = TcpStream::connect(weir.http).unwrap();
    endless.set_read_timeout(Some(PATIENCE)).unwrap();
    let begin =
        format!("GET {VECTARA} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n");
    endless.write_all(begin.as_bytes()).unwrap();
    let _ = endless.write_all(&[b'x'; 50_000]);
    let _ = endless.read_to_end(&mut Vec::new());
    until("it was over the limit", || weir.metric("weir_limited_total{limit=\"body_bytes\"}") == 2.0);
}

#[test]
fn who_guesses_keys_is_slowed_down_by_address() {
    let sim = Sim::start();
    let config =
        || Config::shipped().edit("weir.yaml", "    requests: 120\n    per: 1m", "    requests: 3\n    per: 1h");
    let weir = config().start(&sim);
    for n in 0..3 {
        assert_eq!(weir.get_as(&format!("guess{n}"), VECTARA).code(), (401, "unauthorized".into()));
    }
    let limited = weir.get_as("guess", VECTARA);
    assert_eq!(limited.code(), (429, "rate_limit_exceeded".into()));
    assert_eq!(limited.json()["violated-policies"], json!(["auth_failures"]));
    assert!(limited.header("retry-after").unwrap().parse::<u64>().unwrap() > 600);
    assert_eq!(send(weir.http, "GET", "/vectara/v2/x", &[]).status, 429, "natively too");
    assert_eq!(weir.get(VECTARA).status, 200, "a valid key is let in");
    assert_eq!(
        (
            weir.metric("weir_auth_failures_total{decision=\"told\"}"),
            weir.metric("weir_auth_failures_total{decision=\"limited\"}")
        ),
        (3.0, 2.0)
    );
    // Only a trusted proxy is believed who it is that asks.
    let from = |weir: &Weir, address: &str| {
        send(weir.http, "GET", VECTARA, &[("X-API-Key", "x"), ("X-Forwarded-For", address)]).status
    };
    assert_eq!(from(&weir, "9.9.9.9"), 429);
    let weir =
        config().edit("weir.yaml", "# trusted_proxies: [10.0.0.0/8]", "trusted_proxies: [127.0.0.0/8] #").start(&sim);
    assert!((0..3).all(|_| from(&weir, "8.8.8.8") == 401));
    assert_eq!((from(&weir, "8.8.8.8"), from(&weir, "7.7.7.7, 8.8.8.8"), from(&weir, "9.9.9.9")), (429, 429, 401));
    // A proxy that adds to one header passes on what the client says in the other: that buys no more guesses.
    let guess = |n: u32| {
        let invented = format!("for=10.9.9.{n}");
        let headers = [("X-API-Key", "x"), ("X-Forwarded-For", "6.6.6.6"), ("Forwarded", &invented)];
        send(weir.http, "GET", VECTARA, &headers).status
    };
    assert_eq!((0..5).map(guess).collect::<Vec<_>>(), [401, 401, 401, 429, 429]);
}

#[test]
fn pages_of_known_origins_may_read_and_others_may_not() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "weir.yaml",
            "# cors: { origins: [https://app.example], max_age: 10m }",
            "cors: { origins: [https://app.example], max_age: 10m }",
        )
        .start(&sim);
    let ask = |method: &str, target: &str, headers: &[(&str, &str)]| send(weir.http, method, target, headers);
    let preflight = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "x-api-key"),
    ];
    for target in [VECTARA, "/vectara/v2/agents/a/sessions/s/events"] {
        let told = ask("OPTIONS", target, &preflight);
        assert_eq!(
            (told.status, told.header("access-control-allow-origin")),
            (204, Some("https://app.example")),
            "{target}: no key is needed"
        );
        assert_eq!(
            (told.header("access-control-allow-headers"), told.header("access-control-max-age")),
            (Some("x-api-key"), Some("600"))
        );
        let evil =
            ask("OPTIONS", target, &[("Origin", "https://evil.example"), ("Access-Control-Request-Method", "GET")]);
        assert_eq!((evil.status, evil.header("access-control-allow-origin")), (204, None));
        for origin in [Some("https://app.example"), Some("https://evil.example"), None] {
            let mut headers = vec![("X-API-Key", "open")];
            headers.extend(origin.map(|origin| ("Origin", origin)));
            let answer = ask("GET", target, &headers);
            assert_eq!(answer.header("access-control-allow-origin"), origin.filter(|o| o.contains("app")), "{target}");
            assert!(
                answer.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("vary") && v.contains("Origin")),
                "{target}"
            );
        }
    }
    let refused = ask("GET", VECTARA, &[("Origin", "https://app.example")]);
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, Some("https://app.example")),
        "errors can be read"
    );
    assert_eq!(ask("OPTIONS", VECTARA, &[("X-API-Key", "open")]).status, 405, "that is no browser's question");
    let none = Config::shipped().start(&sim);
    assert_eq!(send(none.http, "OPTIONS", VECTARA, &preflight).status, 401);
}

#[test]
fn which_pages_may_read_is_not_for_a_provider_to_say() {
    let sim = Sim::start();
    let cors = "cors: { origins: [https://app.example], max_age: 10m }";
    let without = Config::shipped().start(&sim);
    let weir = Config::shipped().edit("weir.yaml", &format!("# {cors}"), cors).start(&sim);
    let theirs =
        json!({ "access-control-allow-origin": "*", "access-control-allow-credentials": "true", "vary": "Accept" });
    // Passed on, and read whole: its 404 is the provider's own answer too.
    let (events, session) =
        ("/vectara/v2/agents/agt_1/sessions/ase_1/events", "/vectara/v2/agents/agt_1/sessions/ase_1");
    sim.answers("ase_1", 404, &theirs, "{}");
    for (weir, configured) in [(&weir, true), (&without, false)] {
        for target in [events, session] {
            for origin in ["https://app.example", "https://evil.example"] {
                let answer = weir.get_with(target, &[("Origin", origin)]);
                let allowed = (configured && origin.contains("app")).then_some(origin);
                assert_eq!((answer.status, answer.header("access-control-allow-origin")), (404, allowed), "{target}");
                assert_eq!(answer.header("access-control-allow-credentials"), None, "{target}");
                let vary: Vec<&str> =
                    answer.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("vary")).map(|(_, v)| &**v).collect();
                let vary = vary.join(", ");
                assert!(vary.contains("Accept"), "what the provider varies by is kept: {target}: {vary}");
                assert_eq!(vary.contains("Origin"), configured, "{target}: {vary}");
            }
        }
    }
}

#[test]
fn an_http2_connection_has_a_time_to_begin_and_so_many_requests() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
    let directory = TempDir::new().unwrap();
    certificate(directory.path(), "server");
    let sim = Sim::start();
    let weir = tls(directory.path(), "").edit("weir.yaml", "header_timeout: 10s", "header_timeout: 1s").start(&sim);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.path().join("server.crt")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let mut client =
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    for begun in [&b""[..], b"PRI * HTTP"] {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(client.clone().into(), name).unwrap();
        let socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        let started = Instant::now();
        stream.write_all(begun).unwrap();
        stream.flush().unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    }
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"header_timeout\"}"), 2.0);
    let weir = Config::shipped()
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .edit("weir.yaml", "requests_per_connection: 100000", "requests_per_connection: 3")
        .edit("weir.yaml", "idle_timeout: 60s", "idle_timeout: 1s")
        .start(&sim);
    let mut socket = frames::connect(&weir);
    let (mut answers, mut told) = (0, false);
    for n in 0..3 {
        socket.write_all(&frames::get(2 * n + 1, "open")).unwrap();
        assert!(frames::until(&mut socket, |kind, stream, _| {
            told |= kind == frames::GOAWAY;
            answers += usize::from(kind == frames::HEADERS);
            kind == 0 && stream == 2 * n + 1
        }));
    }
    told |= frames::until(&mut socket, |kind, _, _| kind == frames::GOAWAY);
    assert_eq!((answers, told), (3, true));
    assert!(!frames::until(&mut socket, |kind, _, _| kind == frames::HEADERS), "and it is closed");
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"requests_per_connection\"}"), 1.0);
    let mut idle = frames::connect(&weir);
    assert!(!frames::until(&mut idle, |kind, _, _| kind == frames::HEADERS));
    assert!(weir.metric("weir_connections_ended_total{reason=\"idle_timeout\"}") >= 1.0);
}

#[test]
fn who_resets_streams_faster_than_they_can_be_answered_loses_the_connection() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let connect = || {
        let mut socket = TcpStream::connect(weir.http).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.write_all(&[frames::PREFACE, &frames::frame(4, 0, 0, &[])].concat()).unwrap();
        socket
    };
    const GOAWAY: u8 = 7;
    // Well-behaved first: headers come back, and no farewell.
    let mut socket = connect();
    socket.write_all(&frames::get(1, "open")).unwrap();
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    while !frames::kinds(&got).contains(&1) {
        let n = socket.read(&mut buffer).unwrap();
        assert!(n > 0, "it was closed");
        got.extend_from_slice(&buffer[..n]);
    }
    assert!(!frames::kinds(&got).contains(&GOAWAY));
    // Rapid reset (CVE-2023-44487).
    let mut socket = connect();
    let flood: Vec<u8> = (0..5000_u32)
        .flat_map(|n| [frames::get(2 * n + 1, "open"), frames::frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let _ = socket.write_all(&flood);
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    assert!(frames::kinds(&got).contains(&GOAWAY), "{:?}", frames::kinds(&got));
    until("it is counted", || weir.metric("weir_connections_ended_total{reason=\"h2_resets\"}") == 1.0);
    // A header list over the limit is refused on its stream; others go on.
    let mut socket = connect();
    let mut block = vec![0x82, 0x86, 0x00, 5];
    block.extend_from_slice(b":path\x01/");
    let large = "y".repeat(100);
    for n in 0..1200 {
        let name = format!("x-{n}");
        block.push(0);
        block.push(u8::try_from(name.len()).unwrap());
        block.extend_from_slice(name.as_bytes());
        block.push(100);
        block.extend_from_slice(large.as_bytes());
    }
    let parts: Vec<&[u8]> = block.chunks(16_000).collect();
    for (n, part) in parts.iter().enumerate() {
        let last = if n + 1 == parts.len() { 4 } else { 0 };
        let bytes = if n == 0 { frames::frame(1, 1 | last, 1, part) } else { frames::frame(9, last, 1, part) };
        let _ = socket.write_all(&bytes);
    }
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    let kinds = frames::kinds(&got);
    assert!(kinds.contains(&GOAWAY) || kinds.contains(&3) || kinds.contains(&1), "{kinds:?}");
    assert!(!String::from_utf8_lossy(&got).contains("\"providers\""));
    assert_eq!(weir.get(VECTARA).status, 200, "others go on");
}
