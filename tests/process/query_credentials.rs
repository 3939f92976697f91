//! An API key in the query: it is sent with every request, and nothing else shows it.

use crate::credential_stub::*;
use crate::support::*;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

/// Has characters that are encoded in different ways.
const KEY: &str = "canary/key+1 b";
const SENT: &str = "api_key=canary%2Fkey%2B1%20b";
const CREDENTIALS: &str = "{ query: api_key, value: \"canary/key+1 b\" }";

/// Repeats the URL of each request in its headers and its body.
fn echoing() -> Stub {
    let (native, _) = example("agenthuman/get");
    Stub::start(move |request| {
        let url = format!("http://provider.example{}", request.target);
        let lower = url.replace("%2F", "%2f").replace("%2B", "%2b");
        let next = format!("</v1/next{}>; rel=\"next\"", request.target.trim_start_matches(|c| c != '?'));
        let headers = format!(
            "Content-Type: application/json\r\nX-Url: {url}\r\nLink: {next}\r\nLocation: {lower}\r\nSet-Cookie: u={url}\r\n"
        );
        let texts = format!("no access: {url} {lower} {KEY} {}", KEY.replace(' ', "+"));
        let error = json!({ "error": { "message": texts }, "url": url }).to_string().replace('/', "\\/");
        let mut session = native.clone();
        session["session"]["metadata"] = json!({ "self": texts });
        session["session"]["daily_room"]["url"] = url.clone().into();
        match request.target.split(['?', '/']).nth(3) {
            Some("sess_missing") => (404, headers, error),
            Some("sess_broken") => (500, headers, error),
            Some("sess_odd") => (200, headers, json!({ "session": texts }).to_string()),
            Some("sess_moved") => (302, headers, error),
            _ if request.target.starts_with("/v1/sessions?") => {
                (200, headers, json!({ "sessions": [session["session"]] }).to_string())
            }
            _ => (200, headers, session.to_string()),
        }
    })
}

#[test]
fn the_key_is_sent_with_reads_forwarded_requests_and_watches_and_never_twice() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let weir = stub.config(CREDENTIALS).start(&sim);
    assert_eq!(weir.get("/v1/sessions/sess_A").status, 200);
    assert_eq!(stub.one().target, format!("/v1/sessions/sess_A?{SENT}"));
    // A native read of the same session shares the entry, whatever the client sends as the key.
    for own in ["", "?api_key=mine", "?API%5Fkey=mine&api_key=two", "?api_key=a;api_key=b", "?%2561pi_key=c"] {
        let native = weir.get(&format!("/agenthuman/v1/sessions/sess_A{own}"));
        assert!(native.status == 200 && native.header("cache-status").unwrap().contains("hit"), "{own}");
    }
    assert!(stub.take().is_empty());
    for (method, own, expected) in [
        ("GET", "", format!("?{SENT}")),
        ("HEAD", "?api_key=mine&x=1", format!("?x=1&{SENT}")),
        ("POST", "?x=1&api%5Fkey=mine&y=a%20b&API_KEY", format!("?x=1&y=a%20b&{SENT}")),
        ("DELETE", "?api_key=&api_key=mine", format!("?{SENT}")),
    ] {
        let target = format!("/agenthuman/v1/sessions/sess_A/events{own}");
        assert_eq!(send(weir.http, method, &target, &[("X-Api-Key", "open")]).status, 200);
        assert_eq!(stub.one().target, format!("/v1/sessions/sess_A/events{expected}"), "{method} {own}");
    }
    let other = weir.get("/agenthuman/v1/sessions/sess_A?view=full&api_key=mine");
    assert_eq!((other.status, stub.one().target), (200, format!("/v1/sessions/sess_A?view=full&{SENT}")));
    let mut watch = TcpStream::connect(weir.http).unwrap();
    watch.write_all(b"GET /v1/sessions/sess_W/watch HTTP/1.1\r\nHost: x\r\nX-Api-Key: open\r\n\r\n").unwrap();
    let lines = BufReader::new(watch).lines().map_while(Result::ok);
    assert!(lines.take(40).any(|line| line.starts_with("data: ")));
    assert_eq!(stub.one().target, format!("/v1/sessions/sess_W?{SENT}"));
}

#[test]
fn a_provider_that_repeats_the_url_does_not_show_the_key_to_anybody() {
    let (stub, sim) = (echoing(), Sim::start());
    let weir = stub
        .config(CREDENTIALS)
        .clients("clients:\n  - { id: open, explain: true, reveal_secrets: true, keys: [ { sha256: SHA(open) } ] }\n  - { id: two, explain: true, keys: [ { sha256: SHA(two) } ] }\n")
        .edit("providers/agenthuman.yaml", "failures: 5", "failures: 1000000")
        .start(&sim);
    let mut seen: Vec<(String, String)> = Vec::new();
    let show = |response: &Response| {
        let headers: Vec<String> = response.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        format!("{}\n{}\n{}", response.status, headers.join("\n"), String::from_utf8_lossy(&response.body))
    };
    let mut targets: Vec<String> =
        ["/v1/sessions?provider=agenthuman", "/v1/sessions?ids=agenthuman:sess_A,agenthuman:sess_broken"]
            .map(Into::into)
            .into();
    for session in ["sess_A", "sess_missing", "sess_broken", "sess_odd", "sess_moved"] {
        targets.push(format!("/v1/sessions/{session}"));
        targets.push(format!("/v1/sessions/{session}?include=native"));
        targets.push(format!("/agenthuman/v1/sessions/{session}"));
        targets.push(format!("/agenthuman/v1/sessions/{session}?view=full"));
        targets.push(format!("/agenthuman/v1/sessions/{session}/events"));
    }
    for target in &targets {
        for (key, headers) in [("open", &[][..]), ("two", &[]), ("two", &[("Weir-Explain", "1")])] {
            seen.push((target.clone(), show(&weir.get_with_key(key, target, headers))));
        }
        let posted = send(weir.http, "POST", target, &[("X-Api-Key", "two"), ("Content-Length", "0")]);
        seen.push((format!("POST {target}"), show(&posted)));
        seen.push((format!("explain {target}"), output(&weir.config, &["explain", "GET", target, "--client", "two"])));
    }
    let masked = seen.iter().filter(|(_, text)| text.contains("api_key=****")).count();
    assert!(masked > 40, "only {masked} responses repeat the URL: does this test still test anything?");
    // What a client follows leads to Weir, which puts the key in again.
    let forwarded = weir.get("/agenthuman/v1/sessions/sess_A/events");
    let link = forwarded.header("link").unwrap();
    let next = link.trim_start_matches('<').split('>').next().unwrap();
    assert!(next.starts_with("/agenthuman/v1/next?api_key=***"), "{link}");
    stub.take();
    assert_eq!(weir.get(next).status, 200);
    assert_eq!(stub.one().target, format!("/v1/next?{SENT}"));
    for path in ["/metrics", "/healthz", "/readyz", "/config", "/cache"] {
        seen.push((path.into(), show(&weir.admin("GET", path))));
    }
    weir.config.change("providers/agenthuman.yaml", "canary/key+1 b", "canary/key\\ncanary");
    seen.push(("reload".into(), weir.reload().1.to_string()));
    seen.push(("stdout".into(), weir.process.stdout.lock().unwrap().join("\n")));
    seen.push(("stderr".into(), weir.process.stderr.lock().unwrap().join("\n")));
    for (place, text) in seen {
        assert!(!text.contains("canary"), "{place}: {text}");
    }
}

#[test]
fn the_key_in_a_streamed_body_is_masked_over_the_ends_of_its_parts() {
    let sim = Sim::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let mut line = String::new();
            let mut head = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                head += &std::mem::take(&mut line);
            }
            assert!(head.to_ascii_lowercase().contains("accept-encoding: identity\r\n"), "{head}");
            socket.set_nodelay(true).unwrap();
            let _ = socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
            for part in ["data: 1\n\n", "data: canary", "/key+", "1 b canar", "y/key", "\n\n", "end canary/"] {
                let _ = socket.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let _ = socket.write_all(b"0\r\n\r\n");
        }
    });
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", SHIPPED, &format!("credentials: {CREDENTIALS}"))
        .env("AGENTHUMAN_BASE_URL", &format!("http://{address}"))
        .start(&sim);
    let response = weir.get_with("/agenthuman/v1/sessions/sess_A/stream", &[("Accept-Encoding", "gzip")]);
    assert_eq!(
        dechunked(&String::from_utf8(response.body).unwrap()),
        "data: 1\n\ndata: ************** canary/key\n\nend canary/"
    );
}

/// The content of a body in chunks.
fn dechunked(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let (chunk, rest) = rest.split_at(usize::from_str_radix(length, 16).unwrap());
        content += chunk;
        body = rest.strip_prefix("\r\n").unwrap();
    }
    content
}

#[test]
fn wrong_query_keys_are_faults_and_weak_ones_warnings() {
    for (credentials, column, message) in [
        ("{ query: api_key }", 14, "credentials must be {"),
        ("{ query: api_key, value: canary, header: x }", 14, "credentials must be {"),
        ("{ query: \"\", value: canary }", 23, "this value must not be empty"),
        ("{ query: \"a b\", value: canary }", 23, "\"a b\" is not the name of a query parameter"),
        ("{ query: [a], value: canary }", 23, "this must be a single value"),
        ("{ query: api_key, value: \"canary\\nx\" }", 23, "characters that are not allowed in a query"),
    ] {
        let faults = faults(credentials);
        let place = format!("providers/agenthuman.yaml:7:{column}: ");
        assert!(faults.contains(&place) && faults.contains(message) && !faults.contains("canary"), "{faults}");
    }
    let conflicting = Config::shipped()
        .edit("providers/agenthuman.yaml", SHIPPED, "credentials: { query: api_key, value: canary }")
        .edit(
            "providers/agenthuman.yaml",
            "    item: $.session\n",
            "    item: $.session\n    query: { Api.Key: none }\n",
        )
        .check();
    let expected = "7:23: api_key is the parameter of this credential; remove it from the query of get_session";
    assert!(conflicting.0 == 1 && conflicting.1[0].contains(expected), "{conflicting:?}");
    for (value, warning) in [("\"\"", "the credential is empty"), ("canary", "the key is too short to be masked")] {
        let config = Config::shipped().edit(
            "providers/agenthuman.yaml",
            SHIPPED,
            &format!("credentials: {{ query: api_key, value: {value} }}"),
        );
        let text = output(&config, &["check", "--strict"]);
        assert!(text.contains(&format!("7:23: {warning}")) && !text.contains("canary"), "{text}");
    }
}

#[test]
fn a_client_with_its_own_query_key_has_its_own_entries() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let own = |value: &str| {
        format!(
            "clients:\n  - {{ id: open, keys: [ {{ sha256: SHA(open) }} ] }}\n  - {{ id: own, keys: [ {{ sha256: SHA(own) }} ], credentials: {{ agenthuman: {{ query: api_key, value: {value} }} }} }}\n"
        )
    };
    let weir = stub.config(CREDENTIALS).clients(&own("own-canary-1")).start(&sim);
    let get = |key: &str| {
        let response = weir.get_as(key, "/v1/sessions/sess_A");
        assert_eq!(response.status, 200);
        response.header("cache-status").unwrap().contains("hit")
    };
    assert_eq!(["open", "own", "own"].map(get), [false, false, true]);
    assert_eq!(stub.take()[1].target, "/v1/sessions/sess_A?api_key=own-canary-1");
    weir.config.write("clients.yaml", &expand_digests(&own("own-canary-2")));
    assert_eq!(weir.reload().0, 200);
    assert_eq!(["open", "own"].map(get), [true, false]);
    assert_eq!(stub.one().target, "/v1/sessions/sess_A?api_key=own-canary-2");
}

#[test]
fn a_provider_that_repeats_the_key_in_the_next_pages_url_is_read_to_the_end() {
    let (native, _) = example("agenthuman/get");
    let stub = Stub::start(move |request| {
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let page: u32 = query.split('&').find_map(|pair| pair.strip_prefix("page=")?.parse().ok()).unwrap_or(1);
        let mut session = native["session"].clone();
        session["session_id"] = format!("sess_{page}").into();
        let next = (page < 3).then(|| format!("/v1/sessions?page={}&{SENT}", page + 1));
        let body = json!({ "sessions": [session], "next": next }).to_string();
        (200, "Content-Type: application/json\r\n".into(), body)
    });
    let sim = Sim::start();
    let items = "    items: $.sessions\n";
    let config = stub.config(CREDENTIALS).edit(
        "providers/agenthuman.yaml",
        items,
        &format!("{items}    next: {{ url: $.next }}\n"),
    );
    // With pages, the example's list has no total.
    std::fs::remove_file(config.path("examples/agenthuman/list.native.json")).unwrap();
    std::fs::remove_file(config.path("examples/agenthuman/list.unified.json")).unwrap();
    let weir = config.start(&sim);
    let (mut ids, mut token) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = weir.get(&format!("/v1/sessions?provider=agenthuman&limit=1{token}")).json();
        assert_eq!(page["partial"], false, "{page}");
        ids.push(page["sessions"][0]["provider_session_id"].clone());
        token = page["next_page_token"].as_str().map_or(String::new(), |token| format!("&page_token={token}"));
    }
    assert_eq!(json!(ids), json!(["sess_1", "sess_2", "sess_3"]));
    assert_eq!(token, "", "the list ends");
    let sent: Vec<String> = stub.take().into_iter().map(|request| request.target).collect();
    let expected = ["", "page=2&", "page=3&"].map(|page| format!("/v1/sessions?{page}{SENT}"));
    assert_eq!(sent, expected, "the key is there once");
}
