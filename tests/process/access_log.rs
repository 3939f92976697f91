//! The access log: lines at the beginning and at the end of what lasts, and the client's address.

use crate::native_client::{VECTARA_SESSION, open_stream, post};
use crate::support::*;
use crate::watch_client::*;
use serde_json::{Value, json};
use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Returns the lines of this event with this request id.
fn lines(weir: &Weir, event: &str, id: &str) -> Vec<Value> {
    let all = weir.process.stdout.lock().unwrap();
    let parsed = all.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    parsed.filter(|line| line["event"] == event && line["request_id"] == id).collect()
}

/// Waits for the only line of this event with this request id.
fn line(weir: &Weir, event: &str, id: &str) -> Value {
    wait_until(&format!("the {event} of {id} is logged"), || !lines(weir, event, id).is_empty());
    let mut found = lines(weir, event, id);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Checks that a begin line and an end line are about the same request, and that the begin line has no result.
fn assert_pair(begin: &Value, end: &Value) {
    let members = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let expected = ["address", "client", "event", "method", "provider", "request_id", "route", "time", "trace_id"];
    let mut names = members(begin);
    names.sort();
    assert_eq!(names, expected, "{begin}");
    for name in expected.iter().filter(|name| !["event", "time"].contains(name)) {
        assert_eq!(begin[name], end[name], "{begin} {end}");
    }
    for name in ["status", "bytes", "total_ms", "upstream_ms", "cache", "error"] {
        assert!(end.get(name).is_some(), "{end}");
    }
    assert!(begin["time"].as_str() <= end["time"].as_str(), "{begin} {end}");
}

fn h2c(config: Config) -> Config {
    config.edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
}

/// Requests a target over HTTP/2 with the key `open`, until `seconds` have passed. The body is on stdout.
fn curl(address: SocketAddr, target: &str, id: &str, arguments: &[&str]) -> Child {
    Command::new("curl")
        .args(["-sS", "-N", "--http2-prior-knowledge", "-H", "X-API-Key: open", "-H", &format!("X-Request-Id: {id}")])
        .args(arguments)
        .arg(format!("http://{address}{target}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Requests a stream.
const BODY: &str = "{\"stream_response\":true}";

fn total_ms(line: &Value) -> f64 {
    line["total_ms"].as_f64().unwrap()
}

#[test]
fn a_watch_is_logged_when_it_begins_and_when_it_ends_with_its_true_length() {
    let sim = Sim::start();
    let mut weir = h2c(poll_every_second().clients(TWO_CLIENTS)).start(&sim);
    let watch = |id: &str, key: &str| Watcher::start(weir.http, PATH, &[("X-Request-Id", id), ("X-Weir-Key", key)]);
    let begun = Instant::now();
    let (by_client, revoked, at_shutdown) =
        (watch("by-client", "other"), watch("revoked", "open"), watch("shutdown", "other"));
    let http2 = curl(weir.http, PATH, "http2", &["--max-time", "3"]);
    for id in ["by-client", "revoked", "shutdown", "http2"] {
        let begin = line(&weir, "begin", id);
        assert_eq!((&begin["route"], &begin["provider"]), (&json!("/v1/sessions/{id}/watch"), &json!("vectara")));
        assert_eq!((&begin["address"], &begin["method"]), (&json!("127.0.0.1"), &json!("GET")));
        assert!(lines(&weir, "end", id).is_empty(), "{id} has not ended");
    }
    change_session(&sim, "changed", true);
    for watcher in [&by_client, &revoked, &at_shutdown] {
        watcher.next_session();
        assert_eq!(watcher.next_session().1["title"], "changed");
    }
    let received = by_client.length();
    by_client.stream.shutdown(Shutdown::Both).unwrap();
    let end = line(&weir, "end", "by-client");
    assert_pair(&line(&weir, "begin", "by-client"), &end);
    assert_eq!((&end["client"], &end["status"]), (&json!("other"), &json!(200)));
    // Weir notices that the client is gone when it writes a comment to it.
    let bytes = usize::try_from(end["bytes"].as_u64().unwrap()).unwrap();
    assert!((received..received + 10).contains(&bytes), "{received} bytes were received: {end}");
    assert!(total_ms(&end) >= 500.0 && total_ms(&end) <= begun.elapsed().as_secs_f64() * 1000.0, "{end}");

    let body = http2.wait_with_output().unwrap().stdout;
    let end = line(&weir, "end", "http2");
    assert_pair(&line(&weir, "begin", "http2"), &end);
    assert_eq!(end["bytes"].as_u64().unwrap(), body.len() as u64);
    assert!(total_ms(&end) > 2000.0, "{end}");

    weir.config
        .write("clients.yaml", &expand_digests("clients:\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n"));
    assert_eq!(weir.reload().0, 200);
    while revoked.next() != Received::End {}
    let end = line(&weir, "end", "revoked");
    assert_pair(&line(&weir, "begin", "revoked"), &end);
    assert_eq!(end["bytes"].as_u64().unwrap(), revoked.length() as u64);

    // Of a watch, the histogram of durations has the time until its stream began.
    let route = "{cache=\"miss\",provider=\"vectara\",route=\"/v1/sessions/{id}/watch\"}";
    assert!(weir.metric(&format!("weir_http_request_duration_seconds_sum{route}")) < 1.0, "{}", weir.metrics());
    weir.process.signal("TERM");
    assert!(weir.process.wait().success());
    while at_shutdown.next() != Received::End {}
    let end = line(&weir, "end", "shutdown");
    assert_pair(&line(&weir, "begin", "shutdown"), &end);
    assert_eq!(end["bytes"].as_u64().unwrap(), at_shutdown.length() as u64);
}

#[test]
fn a_watch_of_an_ended_session_and_its_head_request_count_once() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let path = "/v1/sessions/sess_SIM00000001/watch";
    let native = json!({ "success": true, "session": { "session_id": "sess_SIM00000001", "status": "ended", "ended_at": "2024-01-01T00:00:00Z" } });
    sim.set_response("/v1/sessions/sess_SIM00000001", 200, &json!({}), &native.to_string());
    let ended = Watcher::start(weir.http, path, &[("X-Request-Id", "ended")]);
    ended.next_session();
    assert_eq!(ended.next(), Received::End);
    let end = line(&weir, "end", "ended");
    assert_pair(&line(&weir, "begin", "ended"), &end);
    assert_eq!(end["bytes"].as_u64().unwrap(), ended.length() as u64);
    let head = send(weir.http, "HEAD", path, &[("X-API-Key", "open"), ("X-Request-Id", "head")]);
    assert_eq!((head.status, line(&weir, "end", "head")["bytes"].as_u64()), (200, Some(0)));
    assert!(lines(&weir, "begin", "head").is_empty());
    let metrics = weir.metrics();
    let counted: f64 = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("weir_http_requests_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    let all = weir.process.stdout.lock().unwrap();
    assert_eq!(all.iter().filter(|line| line.contains("\"event\":\"end\"")).count() as f64, counted);
}

#[test]
fn a_native_stream_is_logged_when_it_begins_and_when_it_ends() {
    let sim = Sim::start();
    let mut weir = h2c(Config::shipped().edit("weir.yaml", "grace: 10s", "grace: 1s")).start(&sim);
    let target = format!("/vectara{VECTARA_SESSION}/events");
    let stream = |id: &str, pace: &str| {
        open_stream(&weir, &post(&target, &[("x-sim-stream", pace), ("X-Request-Id", id)], BODY))
    };
    let (short, mut by_provider, by_client) =
        (stream("short", "2,1"), stream("by-provider", "8,250"), stream("by-client", "600,200"));
    let post = ["-X", "POST", "-d", BODY, "-H", "Content-Type: application/json", "-H", "x-sim-stream: 600,100"];
    let http2 = curl(weir.http, &target, "http2", &[&post[..], &["--max-time", "3"]].concat());
    let mut cut = curl(weir.http, &target, "cut", &post);
    let _cut_http1 = stream("cut-http1", "600,200");
    drop(short);
    for id in ["by-provider", "by-client", "http2", "cut", "cut-http1"] {
        let begin = line(&weir, "begin", id);
        assert_eq!((&begin["route"], &begin["method"]), (&json!("native"), &json!("POST")));
        assert_eq!((&begin["client"], &begin["address"]), (&json!("open"), &json!("127.0.0.1")));
    }
    line(&weir, "end", "short");
    assert!(lines(&weir, "begin", "short").is_empty(), "only what lasts has a line at its beginning");
    let mut text = String::new();
    by_provider.read_to_string(&mut text).unwrap();
    let end = line(&weir, "end", "by-provider");
    assert_pair(&line(&weir, "begin", "by-provider"), &end);
    assert!(total_ms(&end) >= 1500.0 && end["status"] == 201, "{end}");
    let mut by_client = by_client.lines();
    by_client.by_ref().map_while(Result::ok).find(|line| line.contains("word3 ")).unwrap();
    drop(by_client);
    let end = line(&weir, "end", "by-client");
    assert_pair(&line(&weir, "begin", "by-client"), &end);
    assert!(end["bytes"].as_u64().unwrap() > 100, "{end}");
    let body = http2.wait_with_output().unwrap().stdout;
    let end = line(&weir, "end", "http2");
    assert_pair(&line(&weir, "begin", "http2"), &end);
    let bytes = end["bytes"].as_u64().unwrap();
    assert!(bytes >= body.len() as u64 && bytes < body.len() as u64 + 1000, "{} were received: {end}", body.len());
    // The shutdown cuts what is still open after the grace time.
    weir.process.signal("TERM");
    assert!(weir.process.wait().success());
    for id in ["cut", "cut-http1"] {
        let end = line(&weir, "end", id);
        assert_pair(&line(&weir, "begin", id), &end);
        assert!(end["status"] == 201 && end["bytes"].as_u64().unwrap() > 100 && total_ms(&end) > 1000.0, "{end}");
    }
    cut.wait().unwrap();
}

#[test]
fn a_slow_upload_and_a_slow_download_are_logged_when_they_begin_and_with_the_bytes_that_were_sent() {
    let sim = Sim::with_options(&["--sessions", "100"]);
    let weir = h2c(Config::shipped().edit("weir.yaml", "stall_timeout: 30s", "stall_timeout: 3s")).start(&sim);
    // An upload whose body stalls.
    let head = request(
        "POST",
        &format!("/vectara{VECTARA_SESSION}/events"),
        &[("X-API-Key", "open"), ("X-Request-Id", "upload"), ("Content-Length", "1000")],
    );
    let mut upload = TcpStream::connect(weir.http).unwrap();
    upload.write_all(&[&head[..], b"{"].concat()).unwrap();
    line(&weir, "begin", "upload");
    assert!(lines(&weir, "end", "upload").is_empty());
    let end = line(&weir, "end", "upload");
    assert_pair(&line(&weir, "begin", "upload"), &end);
    assert!(end["status"] == 408 && total_ms(&end) > 2500.0, "{end}");

    // A response of Weir's own that nobody reads. The socket buffers take some of it.
    let target = format!("/v1/sessions:batchGet?include=native&id=sess_1{}", "&id=sess_1".repeat(99));
    let mut session =
        json!({ "session_id": "sess_1", "status": "started", "metadata": { "text": "x".repeat(200_000) } });
    session["started_at"] = "2024-01-01T00:00:00Z".into();
    sim.set_response(
        "/v1/sessions/sess_1",
        200,
        &json!({}),
        &json!({ "success": true, "session": session }).to_string(),
    );
    let whole = weir.get(&target).body.len() as u64;
    assert!(whole > 30_000_000, "{whole}");
    let mut download = TcpStream::connect(weir.http).unwrap();
    socket2::SockRef::from(&download).set_recv_buffer_size(4096).unwrap();
    download.write_all(&request("GET", &target, &[("X-API-Key", "open"), ("X-Request-Id", "download")])).unwrap();
    // The window of HTTP/2 is smaller than the body, and curl reads it slowly.
    let mut http2 = curl(weir.http, &target, "http2", &["--limit-rate", "1k"]);
    for id in ["download", "http2"] {
        line(&weir, "begin", id);
        assert!(lines(&weir, "end", id).is_empty());
    }
    http2.kill().unwrap();
    http2.wait().unwrap();
    for id in ["download", "http2"] {
        let end = line(&weir, "end", id);
        assert_pair(&line(&weir, "begin", id), &end);
        let sent = end["bytes"].as_u64().unwrap();
        assert!(end["status"] == 200 && sent > 10_000 && sent < whole, "{end}");
    }
}

#[test]
fn the_address_behind_a_trusted_proxy_is_the_clients() {
    let sim = Sim::start();
    let trusting = Config::shipped()
        .edit("weir.yaml", "# trusted_proxies: [10.0.0.0/8]", "trusted_proxies: [127.0.0.1/32] #")
        .start(&sim);
    let direct = Config::shipped().start(&sim);
    let forwarded = [
        ("X-Forwarded-For", "198.51.100.7, 127.0.0.1", "198.51.100.7"),
        ("Forwarded", "for=\"[2001:db8::7]:4711\"", "2001:db8::7"),
        ("X-Forwarded-For", "6.6.6.6, 198.51.100.8", "198.51.100.8"),
    ];
    for (number, (name, value, address)) in forwarded.into_iter().enumerate() {
        for (kind, target) in [("watch", PATH), ("session", VECTARA), ("native", "/vectara/v2/agents"), ("none", "/x")]
        {
            for (weir, expected) in [(&trusting, address), (&direct, "127.0.0.1")] {
                let id = format!("{kind}-{number}");
                let mut client = TcpStream::connect(weir.http).unwrap();
                let headers = [("X-API-Key", "open"), ("X-Request-Id", &id), (name, value)];
                client.write_all(&request("GET", target, &headers)).unwrap();
                let event = if kind == "watch" { "begin" } else { "end" };
                assert_eq!(line(weir, event, &id)["address"], expected, "{name}: {value}");
                drop(client);
            }
        }
    }
    let refused = send(trusting.http, "GET", VECTARA, &[("X-Request-Id", "keyless"), ("X-Forwarded-For", "192.0.2.1")]);
    assert_eq!((refused.status, &line(&trusting, "end", "keyless")["address"]), (401, &json!("192.0.2.1")));
}

#[test]
fn a_sample_has_both_lines_of_a_request_or_none() {
    let sim = Sim::start();
    let weir = poll_every_second().edit("weir.yaml", "access_log: on", "access_log: { sample: 2 }").start(&sim);
    let ids: Vec<String> = (0..6).map(|number| format!("watch-{number}")).collect();
    for id in &ids {
        let watcher = Watcher::start(weir.http, PATH, &[("X-Request-Id", id)]);
        watcher.next_session();
        watcher.stream.shutdown(Shutdown::Both).unwrap();
    }
    wait_until("all watchers are gone", || weir.metric("weir_watchers") == 0.0);
    let count = |event| ids.iter().map(|id| lines(&weir, event, id).len()).collect::<Vec<_>>();
    wait_until("every begin has its end", || count("begin") == count("end"));
    assert_eq!(count("begin").iter().sum::<usize>(), 3, "one in two");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(count("begin"), count("end"));
}
