//! Watch tokens: a browser watches one session by a URL, without a key.

use crate::browser::Browser;
use crate::support::*;
use crate::watch_client::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TOKENS: &str = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001/watch-tokens";
const SIGNING_KEY: &str = "a signing key of more than 32 characters";

fn make_as(weir: &Weir, key: &str, path: &str) -> Response {
    send(weir.http, "POST", path, &[("X-API-Key", key)])
}

/// Returns the URL of a watch with a new token of this key.
fn url(weir: &Weir, key: &str) -> String {
    let made = make_as(weir, key, TOKENS);
    assert_eq!(made.status, 200, "{:?}", made.json());
    made.json()["url"].as_str().unwrap().to_owned()
}

fn token(url: &str) -> &str {
    url.split_once("?watch_token=").unwrap().1
}

fn get(weir: &Weir, target: &str) -> Response {
    send(weir.http, "GET", target, &[])
}

/// Requires a 401 whose detail has these words.
fn expect_refused(response: &Response, words: &str) {
    assert_eq!(response.code(), (401, "unauthorized".into()));
    let detail = response.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(words), "{detail}");
}

fn shared(config: Config) -> Config {
    config.env("WEIR_PAGE_TOKEN_KEY", SIGNING_KEY)
}

fn h2c(config: Config) -> Config {
    config.edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
}

/// Seals a token as Weir does, so that a test can choose when it expires.
fn sealed(key: &str, session: [&str; 3], expires_at: i64) -> String {
    let hash = |key: &[u8], purpose: &[u8], parts: &[&[u8]]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(purpose);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().to_vec()
    };
    let signing_key = hash(SIGNING_KEY.as_bytes(), b"weir watch token", &[]);
    let [provider, agent, session] = session.map(str::as_bytes);
    let key = hash(&signing_key, b"key", &[&Sha256::digest(key)]);
    let session = hash(&signing_key, b"session", &[provider, b"agent", agent, session]);
    let payload = [&[1], &expires_at.to_be_bytes()[..], &key[..16], &session[..16]].concat();
    let signature = hash(&signing_key, b"token", &[&payload]);
    format!("weir_watch_{}", BASE64.encode([&payload[..], &signature[..16]].concat()))
}

const SESSION: [&str; 3] = ["vectara", "agt_customer_support", "ase_customer_support_001"];

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[test]
fn a_token_watches_its_session_without_a_key() {
    let sim = Sim::start();
    let weir = h2c(poll_every_second()).start(&sim);
    let before = now();
    let made = make_as(&weir, "open", TOKENS);
    assert_eq!((made.status, made.header("content-type")), (200, Some("application/json")));
    assert_eq!((made.header("cache-control"), made.header("referrer-policy")), (Some("no-store"), Some("no-referrer")));
    assert_eq!((made.header("location"), made.header("etag"), sim.calls()), (None, None, 0));
    let body = made.json();
    let members: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["watch_token", "expires_at", "url"]);
    let url = body["url"].as_str().unwrap();
    assert_eq!(url, format!("{PATH}?watch_token={}", body["watch_token"].as_str().unwrap()));
    let expiry = std::process::Command::new("date").args(["-d", body["expires_at"].as_str().unwrap(), "+%s"]).output();
    let expiry: i64 = String::from_utf8(expiry.unwrap().stdout).unwrap().trim().parse().unwrap();
    assert!((298..=301).contains(&(expiry - before / 1000)), "{body}");

    let with_key = Watcher::start(weir.http, PATH, &[]);
    let (id, data) = with_key.next_session();
    // EventSource uses the URL again to reconnect.
    let watchers: Vec<Watcher> = (0..2).map(|_| Watcher::start_without_key(weir.http, url, &[])).collect();
    for watcher in &watchers {
        assert!(watcher.head.starts_with("HTTP/1.1 200"), "{}", watcher.head);
        let head = watcher.head.to_lowercase();
        for field in ["content-type: text/event-stream", "cache-control: no-store", "referrer-policy: no-referrer"] {
            assert!(head.contains(field), "{head}");
        }
        assert_eq!(watcher.next_session(), (id.clone(), data.clone()));
    }
    let reconnected = Watcher::start_without_key(weir.http, url, &[("Last-Event-ID", &id)]);
    let selected = Watcher::start_without_key(weir.http, &format!("{url}&fields=title"), &[]);
    selected.next_session();
    let spelled = url.replace(':', "%3A").replace("ase_", "%61se_");
    Watcher::start_without_key(weir.http, &spelled, &[]).next_session();
    change_session(&sim, "changed", true);
    assert_eq!(reconnected.next_session().1["title"], "changed");
    assert_eq!(selected.next_session().1, json!({ "title": "changed" }));
    for watcher in &watchers {
        assert_eq!(watcher.next_session().1["title"], "changed");
    }
    let head = send(weir.http, "HEAD", url, &[]);
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let http2 = std::process::Command::new("curl")
        .args(["-sS", "-N", "-i", "--http2-prior-knowledge", "--max-time", "2"])
        .arg(format!("http://{}{url}", weir.http))
        .output()
        .unwrap();
    let text = String::from_utf8(http2.stdout).unwrap();
    assert!(
        text.starts_with("HTTP/2 200")
            && text.contains("referrer-policy: no-referrer")
            && text.contains("event: session"),
        "{text}"
    );
    let http2 = std::process::Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "-X", "POST", "-H", "X-API-Key: open"])
        .arg(format!("http://{}{TOKENS}", weir.http))
        .output()
        .unwrap();
    let again: Value = serde_json::from_slice(&http2.stdout).unwrap();
    Watcher::start_without_key(weir.http, again["url"].as_str().unwrap(), &[]).next_session();
}

#[test]
fn another_spelling_of_the_id_is_the_same_session() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let made = make_as(&weir, "open", "/v1/sessions/sess_SIM00000001/watch-tokens").json();
    let url = made["url"].as_str().unwrap();
    assert!(url.starts_with("/v1/sessions/sess_SIM00000001/watch?"), "{url}");
    for target in [
        url.to_owned(),
        url.replace("sess_SIM", "agenthuman:sess_SIM"),
        url.replace("sess_SIM", "agenthuman%3Asess_SIM"),
    ] {
        assert_eq!(send(weir.http, "HEAD", &target, &[]).status, 200, "{target}");
    }
    expect_refused(&get(&weir, &url.replace("00001", "00002")), "for another session");
}

#[test]
fn only_the_watch_of_its_session_accepts_a_token() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let url = url(&weir, "open");
    let token = token(&url);
    let other = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_002/watch";
    expect_refused(&get(&weir, &format!("{other}?watch_token={token}")), "for another session");
    assert_eq!(get(&weir, &format!("/v1/sessions/nobody:x/watch?watch_token={token}")).status, 404);
    let session = PATH.trim_end_matches("/watch");
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
        for target in [
            session,
            VECTARA,
            "/v1/sessions",
            "/v1/sessions:batchGet",
            "/v1/sessions:list",
            "/v1/providers",
            TOKENS,
            "/none",
            "/vectara/v2/agents",
            "/vectara/v1/sessions/x/watch",
        ] {
            let query = format!("{target}?watch_token={token}");
            let refused = send(weir.http, method, &query, &[]);
            assert_eq!(refused.status, 401, "{method} {target}");
            if method == "GET" && !target.starts_with("/vectara") {
                expect_refused(&refused, "only accepted by GET /v1/sessions/{id}/watch; send an API key");
            }
            let keyed = send(weir.http, method, &query, &[("X-API-Key", "open")]);
            assert!((400..500).contains(&keyed.status), "{method} {target}: {}", keyed.status);
        }
        for header in ["X-API-Key", "X-Weir-Key"] {
            assert_eq!(send(weir.http, method, session, &[(header, token)]).status, 401);
        }
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = send(weir.http, method, &url, &[]);
        assert_eq!((refused.code(), refused.header("allow")), ((405, "method_not_allowed".into()), Some("GET, HEAD")));
    }
    for method in ["GET", "HEAD", "PUT"] {
        let refused = send(weir.http, method, TOKENS, &[("X-API-Key", "open")]);
        assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")), "{method}");
    }
    // Both, in every place of a key.
    for (name, value) in
        [("X-API-Key", "open"), ("X-Weir-Key", "open"), ("Authorization", "Bearer open"), ("X-API-Key", "wrong")]
    {
        let both = send(weir.http, "GET", &url, &[(name, value)]);
        assert_eq!(both.code(), (400, "invalid_request".into()));
        assert!(both.json()["detail"].as_str().unwrap().contains("send one of them"));
        assert_eq!(both.header("referrer-policy"), Some("no-referrer"));
    }
    assert_eq!(get(&weir, &format!("{url}&watch_token={token}")).code(), (400, "invalid_request".into()));
    assert_eq!(get(&weir, &format!("{url}&other=1")).code(), (400, "invalid_request".into()));
    assert_eq!(get(&weir, &format!("{PATH}?watch_token=")).code(), (401, "unauthorized".into()));
    assert_eq!(send(weir.admin, "POST", &format!("/reload?watch_token={token}"), &[]).status, 401);
    expect_refused(&send(weir.http, "POST", TOKENS, &[]), "missing API key");
    let unknown = send(weir.http, "POST", &format!("{TOKENS}?fields=id"), &[("X-API-Key", "open")]);
    assert_eq!(unknown.code(), (400, "invalid_request".into()));
    assert_eq!(make_as(&weir, "open", "/v1/sessions/nobody:x/watch-tokens").code(), (404, "provider_not_found".into()));
    assert_eq!(make_as(&weir, "open", "/v1/sessions/vectara:x/watch-tokens").code(), (400, "invalid_request".into()));
}

#[test]
fn a_token_on_a_native_host_is_no_key() {
    let sim = Sim::start();
    let config = Config::shipped().edit("providers/vectara.yaml", "  hosts: []", "  hosts: [vectara.local]");
    let weir = config.start(&sim);
    let url = url(&weir, "open");
    let bytes = format!("GET {url} HTTP/1.1\r\nHost: vectara.local\r\nConnection: close\r\n\r\n");
    assert_eq!(send_bytes(weir.http, bytes.as_bytes()).status, 401);
    let bytes = bytes.replace("Connection", "X-API-Key: open\r\nConnection");
    let refused = send_bytes(weir.http, bytes.as_bytes());
    assert_eq!((refused.status, sim.calls()), (400, 0), "no provider gets a token");
}

#[test]
fn an_expired_token_begins_no_watch_and_ends_none() {
    let sim = Sim::start();
    let weir = shared(poll_every_second()).start(&sim);
    let expired = format!("{PATH}?watch_token={}", sealed("open", SESSION, now() - 1));
    expect_refused(&get(&weir, &expired), "has expired; make a new one with POST /v1/sessions/{id}/watch-tokens");
    assert_eq!(
        get(&weir, &expired).header("content-type"),
        Some("application/problem+json"),
        "EventSource stops at it"
    );
    let short = format!("{PATH}?watch_token={}", sealed("open", SESSION, now() + 4000));
    let watcher = Watcher::start_without_key(weir.http, &short, &[]);
    watcher.next_session();
    wait_until("the token has expired", || send(weir.http, "HEAD", &short, &[]).status == 401);
    // Longer than the interval at which Weir checks the client's rights.
    std::thread::sleep(Duration::from_millis(2500));
    change_session(&sim, "changed", true);
    assert_eq!(watcher.next_session().1["title"], "changed", "the watch goes on");
}

#[test]
fn a_token_ends_with_its_key_and_with_the_right_of_the_client() {
    const CLIENTS: &str = "clients:\n  - { id: two, keys: [ { sha256: SHA(first) }, { sha256: SHA(second) } ] }\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n";
    let sim = Sim::start();
    let weir = poll_every_second().clients(CLIENTS).start(&sim);
    let urls = ["first", "second", "open"].map(|key| url(&weir, key));
    let watchers = urls.each_ref().map(|url| Watcher::start_without_key(weir.http, url, &[]));
    watchers.iter().for_each(|watcher| drop(watcher.next_session()));
    let reload = |clients: &str| {
        weir.config.write("clients.yaml", &expand_digests(clients));
        assert_eq!(weir.reload().0, 200);
    };
    let expect_end = |watcher: &Watcher, code: &str| {
        let Received::Event { name, data, .. } = watcher.next() else { panic!("a heartbeat or the end came first") };
        assert_eq!((name.as_str(), &data["code"], watcher.next()), ("problem", &json!(code), Received::End));
    };
    reload(&CLIENTS.replace("{ sha256: SHA(first) }, ", ""));
    expect_end(&watchers[0], "unauthorized");
    expect_refused(&get(&weir, &urls[0]), "is no longer valid");
    change_session(&sim, "second", true);
    for watcher in &watchers[1..] {
        assert_eq!(watcher.next_session().1["title"], "second", "the other key of the client still holds");
    }
    reload(&CLIENTS.replace("SHA(open) } ]", "SHA(open) } ], providers: [palantir]"));
    expect_end(&watchers[2], "forbidden");
    assert_eq!(get(&weir, &urls[2]).code(), (403, "forbidden".into()));
    assert_eq!(make_as(&weir, "open", TOKENS).code(), (403, "forbidden".into()));
    reload(&CLIENTS.replace("SHA(second) }", "SHA(second), expires_at: 2020-01-01T00:00:00Z }"));
    expect_end(&watchers[1], "unauthorized");
    expect_refused(&get(&weir, &urls[1]), "is no longer valid");
}

#[test]
fn a_token_expires_no_later_than_its_key() {
    let output = std::process::Command::new("date").args(["-u", "-d", "+60 seconds", "+%FT%TZ"]).output().unwrap();
    let expiry = String::from_utf8(output.stdout).unwrap();
    let clients =
        format!("clients:\n  - {{ id: open, keys: [ {{ sha256: SHA(open), expires_at: {} }} ] }}\n", expiry.trim());
    let sim = Sim::start();
    let weir = Config::shipped().clients(&clients).start(&sim);
    let made = make_as(&weir, "open", TOKENS).json();
    assert_eq!(made["expires_at"].as_str().unwrap(), expiry.trim().replace('Z', ".000Z"));
}

#[test]
fn all_instances_with_the_same_key_accept_a_token_and_a_random_key_ends_with_its_process() {
    let sim = Sim::start();
    let (one, two, other) =
        (shared(Config::shipped()).start(&sim), shared(Config::shipped()).start(&sim), Config::shipped().start(&sim));
    let made = url(&one, "open");
    for weir in [&one, &two] {
        assert_eq!(send(weir.http, "HEAD", &made, &[]).status, 200);
    }
    expect_refused(&get(&other, &made), "is not valid");
    expect_refused(&get(&one, &url(&other, "open")), "is not valid");
    let page = one.get("/v1/agents/agt_load_1/sessions?limit=1").json()["next_page_token"].as_str().unwrap().to_owned();
    expect_refused(&get(&one, &format!("{PATH}?watch_token={page}")), "is not valid");
    let token = token(&made);
    assert_eq!(one.get(&format!("/v1/agents/agt_load_1/sessions?limit=1&page_token={token}")).status, 400);
}

#[test]
fn a_token_costs_a_request_and_its_watch_counts_for_the_client() {
    const LIMITED: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: few }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n";
    let sim = Sim::start();
    let weir = poll_every_second()
        .clients(LIMITED)
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  few:\n    requests: 3\n    per: 1h\n")
        .edit("weir.yaml", "max_watchers: 10000 ", "max_watchers: 3 ")
        .start(&sim);
    let made = make_as(&weir, "open", TOKENS);
    assert!(made.header("ratelimit").unwrap().contains("r=2"), "{:?}", made.headers);
    let url = made.json()["url"].as_str().unwrap().to_owned();
    let _one = Watcher::start_without_key(weir.http, &url, &[]);
    let two = Watcher::start_without_key(weir.http, &url, &[]);
    assert!(two.head.to_lowercase().contains("\"few\";r=0"), "{}", two.head);
    let limited = get(&weir, &url);
    assert_eq!(limited.code(), (429, "rate_limit_exceeded".into()));
    assert_eq!(
        (limited.header("referrer-policy"), limited.header("cache-control")),
        (Some("no-referrer"), Some("no-store"))
    );
    assert_eq!(make_as(&weir, "open", TOKENS).status, 429);
    let others = self::url(&weir, "other");
    let _three = Watcher::start_without_key(weir.http, &others, &[]);
    assert_eq!(get(&weir, &others).code(), (503, "overloaded".into()));
    assert_eq!(weir.metric("weir_http_requests_total{client=\"open\",provider=\"vectara\",route=\"/v1/sessions/{id}/watch-tokens\",status=\"200\"}"), 1.0);
}

#[test]
fn guessed_tokens_count_as_guessed_keys() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "    requests: 120\n", "    requests: 3\n").start(&sim);
    let url = url(&weir, "open");
    let guess = url.replace("watch_token=weir_watch_A", "watch_token=weir_watch_B");
    assert_ne!(guess, url);
    for _ in 0..3 {
        expect_refused(&get(&weir, &guess), "is not valid");
    }
    let limited = get(&weir, &guess);
    assert_eq!(limited.code(), (429, "rate_limit_exceeded".into()));
    assert_eq!(limited.json()["violated-policies"], json!(["auth_failures"]));
    assert_eq!(weir.metric("weir_auth_failures_total{decision=\"limited\"}"), 1.0);
    assert_eq!(weir.metric("weir_auth_failures_total{decision=\"told\"}"), 3.0);
    assert_eq!(send(weir.http, "HEAD", &url, &[]).status, 200, "a valid token works without delay");
    let mut long = get(&weir, &format!("{PATH}?watch_token=weir_watch_{}", "A".repeat(7000)));
    assert_eq!(long.status, 429);
    long = get(&weir, &format!("{PATH}?watch_token=weir_watch_{}", "A".repeat(9000)));
    assert_eq!(long.status, 414);
}

#[test]
fn a_token_shows_no_secrets_and_no_explanations_and_needs_a_credential_of_weir() {
    const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], reveal_secrets: true, explain: true }\n  - { id: own, keys: [ { sha256: SHA(own) } ], credentials: { vectara: { mode: forward, header: x-api-key } } }\n";
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).start(&sim);
    let session = json!({ "session_id": "sess_1", "status": "started", "daily_room": { "url": "u", "name": "n", "token": "room-token" } });
    sim.set_response(
        "/v1/sessions/sess_1",
        200,
        &json!({}),
        &json!({ "success": true, "session": session }).to_string(),
    );
    let made = make_as(&weir, "open", "/v1/sessions/sess_1/watch-tokens").json();
    let target = format!("{}&include=native", made["url"].as_str().unwrap());
    let by_key = Watcher::start(weir.http, "/v1/sessions/sess_1/watch?include=native", &[]);
    assert!(by_key.next_session().1.to_string().contains("room-token"));
    let by_token = Watcher::start_without_key(weir.http, &target, &[("Weir-Explain", "1")]);
    let data = by_token.next_session().1;
    assert!(data["id"] == "agenthuman:sess_1" && !data.to_string().contains("room-token"), "{data}");
    // The check of the rights does not bring them back.
    let started = std::time::Instant::now();
    wait_until("a check of the rights", || started.elapsed() > Duration::from_millis(2500));
    sim.clear_faults();
    let mut changed = session;
    changed["status"] = "ended".into();
    sim.set_response(
        "/v1/sessions/sess_1",
        200,
        &json!({}),
        &json!({ "success": true, "session": changed }).to_string(),
    );
    let data = by_token.next_session().1;
    assert!(data["status"] == "ended" && !data.to_string().contains("room-token"), "{data}");
    let refused = send(weir.http, "POST", TOKENS, &[("X-Weir-Key", "own"), ("X-API-Key", "a-credential")]);
    assert_eq!(refused.code(), (400, "invalid_request".into()));
    assert!(refused.json()["detail"].as_str().unwrap().contains("watch with a key"), "{:?}", refused.json());
    let other = send(weir.http, "POST", "/v1/sessions/sess_1/watch-tokens", &[("X-Weir-Key", "own")]);
    assert_eq!(other.status, 200, "Weir has a credential for this provider");
}

#[test]
fn no_token_appears_in_logs_metrics_explanations_problems_or_requests_to_providers() {
    const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], explain: true }\n";
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (sender, exported) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for socket in collector.incoming().flatten() {
            let mut reader = BufReader::new(socket);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|length| length > 0) {}
            let length =
                head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            let _ = reader.read_exact(&mut body);
            let _ = sender.send(String::from_utf8_lossy(&body).into_owned());
            let _ = reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    let sim = Sim::start();
    let config = poll_every_second().clients(CLIENTS).edit("weir.yaml", "log: info ", "log: debug ");
    let text = config.read("weir.yaml").replace("sample: 0.01 ", "sample: 1 ");
    config.write("weir.yaml", &text);
    let mut weir = config.env("WEIR_TRACES_ENDPOINT", &endpoint).start(&sim);
    let url = url(&weir, "open");
    let token = token(&url).to_owned();
    let watcher = Watcher::start_without_key(weir.http, &url, &[]);
    watcher.next_session();
    let mut seen = vec![("a stream".to_owned(), watcher.head.clone())];
    for (target, headers) in [
        (url.clone(), vec![("X-API-Key", "open"), ("Weir-Explain", "1")]),
        (url.replace("_001/", "_002/"), vec![]),
        (format!("{url}&x=1"), vec![]),
        (format!("{VECTARA}?watch_token={token}"), vec![("X-API-Key", "open"), ("Weir-Explain", "1")]),
        (format!("{VECTARA}?watch_token={token}"), vec![]),
        (format!("/vectara/v2/agents?watch_token={token}"), vec![("X-API-Key", "open")]),
        (format!("/vectara/v2/agents?other={token}"), vec![("X-API-Key", "open"), ("Weir-Explain", "1")]),
        (format!("/none?watch_token={token}"), vec![]),
    ] {
        let response = send(weir.http, "GET", &target, &headers);
        assert!((400..500).contains(&response.status), "{target}: {}", response.status);
        let text = format!("{:?} {}", response.headers, String::from_utf8_lossy(&response.body));
        seen.push((target, text));
    }
    for path in ["/metrics", "/config", "/cache", "/providers", "/healthz"] {
        let authorization = weir.admin_authorization();
        let response = send(weir.admin, "GET", path, &[("Authorization", &authorization)]);
        seen.push((path.into(), String::from_utf8_lossy(&response.body).into_owned()));
    }
    let explained = weir
        .config
        .run(&["explain", "--json", "--client", "open", "GET", &format!("{PATH}?watch_token={token}")], &sim);
    let (stdout, stderr) = (explained.stdout.clone(), explained.stderr.clone());
    wait_until("weir explain has its result", || stdout.lock().unwrap().len() + stderr.lock().unwrap().len() > 0);
    std::thread::sleep(Duration::from_millis(300));
    let explanation = stdout.lock().unwrap().join("\n") + &stderr.lock().unwrap().join("\n");
    assert!(explanation.contains("[redacted]"), "{explanation}");
    seen.push(("weir explain".into(), explanation));
    seen.push(("the provider".into(), sim.call_counts().to_string()));
    let span = exported.recv_timeout(MAX_WAIT).expect("spans are exported");
    seen.push(("spans".into(), span));
    weir.process.signal("TERM");
    assert!(weir.process.wait().success());
    seen.extend(exported.try_iter().map(|spans| ("spans".to_owned(), spans)));
    let (stdout, stderr) =
        (weir.process.stdout.lock().unwrap().join("\n"), weir.process.stderr.lock().unwrap().join("\n"));
    assert!(stdout.contains("/v1/sessions/{id}/watch") && stderr.contains("DEBUG"), "{stderr}");
    seen.extend([("stdout".to_owned(), stdout), ("stderr".to_owned(), stderr)]);
    for (place, text) in seen {
        assert!(!text.contains(&token[..30]), "{place}: {text}");
    }
}

#[test]
fn a_page_of_another_origin_may_make_and_use_tokens_if_cors_permits_it() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "weir.yaml",
            "# cors: { origins: [https://app.example], max_age: 10m }",
            "cors: { origins: [https://app.example], max_age: 10m }",
        )
        .start(&sim);
    let page = ("Origin", "https://app.example");
    let preflight = [page, ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "x-api-key")];
    let permitted = send(weir.http, "OPTIONS", TOKENS, &preflight);
    assert_eq!((permitted.status, permitted.header("access-control-allow-headers")), (204, Some("x-api-key")));
    assert!(permitted.header("access-control-allow-methods").unwrap().contains("POST"));
    let made = send(weir.http, "POST", TOKENS, &[page, ("X-API-Key", "open")]);
    assert_eq!((made.status, made.header("access-control-allow-origin")), (200, Some(page.1)));
    let url = made.json()["url"].as_str().unwrap().to_owned();
    let watcher = Watcher::start_without_key(weir.http, &url, &[page]);
    assert!(
        watcher.head.to_lowercase().contains("access-control-allow-origin: https://app.example"),
        "{}",
        watcher.head
    );
    let evil = Watcher::start_without_key(weir.http, &url, &[("Origin", "https://evil.example")]);
    assert!(!evil.head.to_lowercase().contains("access-control-allow-origin"), "{}", evil.head);
    let refused = send(weir.http, "GET", &format!("{PATH}?watch_token=x"), &[page]);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some(page.1)));
}

/// Serves a page with the script of docs/API.md, and the URLs of watches as the page's own server would.
fn serve_page(listener: TcpListener, weir: SocketAddr) {
    let docs = std::fs::read_to_string(repository().join("docs/API.md")).unwrap();
    let script = docs.split("```js").find(|block| block.contains("new EventSource(")).expect("the docs have a script");
    let script = script.split("```").next().unwrap().to_owned();
    let page = format!(
        "<!doctype html><title>watch</title><script>{script}\nconst seen = [];\n\
         const getUrl = async () => 'http://{weir}' + await (await fetch('/watch-url')).text();\n\
         watch(getUrl, (name, data) => seen.push([name, data]));</script>"
    );
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let mut reader = BufReader::new(socket);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|length| length > 0) {}
            let body = match head.split(' ').nth(1) {
                Some("/watch-url") => {
                    let made = send(weir, "POST", TOKENS, &[("X-API-Key", "open")]);
                    made.json()["url"].as_str().unwrap().to_owned()
                }
                Some("/") => page.clone(),
                _ => String::new(),
            };
            let kind = "Content-Type: text/html\r\nConnection: close";
            let _ =
                write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{kind}\r\n\r\n{body}", body.len());
        }
    });
}

#[test]
fn the_script_of_the_docs_watches_in_a_browser() {
    if !Browser::is_installed() {
        return;
    }
    let sim = Sim::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let cors = format!("cors: {{ origins: [\"{origin}\"], max_age: 10m }}");
    let config =
        poll_every_second().edit("weir.yaml", "# cors: { origins: [https://app.example], max_age: 10m }", &cors);
    let weir = config.start(&sim);
    serve_page(listener, weir.http);
    let profile = tempfile::TempDir::new().unwrap();
    let browser = Browser::start(profile.path());
    browser.command("POST", "/url", &json!({ "url": format!("{origin}/") }));
    let titles = || browser.run("return seen.map(([name, data]) => name + ' ' + data.title)");
    wait_until("the page has the session", || titles().as_array().unwrap().len() == 1);
    change_session(&sim, "changed", true);
    wait_until("the page has the change", || titles().to_string().contains("session changed"));
    // A key that is removed ends the watch; the page's server then gets no new token, and the script stops.
    assert_eq!(weir.metric("weir_watchers"), 1.0);
    weir.config
        .write("clients.yaml", &expand_digests("clients:\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n"));
    assert_eq!(weir.reload().0, 200);
    wait_until("the page has the problem", || {
        browser.run("return seen.some(([name, data]) => name === 'problem' && data.code === 'unauthorized')") == true
    });
    wait_until("nobody watches", || weir.metric("weir_watchers") == 0.0);
}
