//! What operators see of a failing provider: log lines and metrics say why, and clients do not learn where it is.

use crate::support::*;
use crate::tls::write_certificate;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn log(weir: &Weir) -> Vec<String> {
    weir.process.stderr.lock().unwrap().clone()
}

fn failures(weir: &Weir, provider: &str, reason: &str) -> f64 {
    weir.metric(&format!("weir_upstream_failures_total{{provider=\"{provider}\",reason=\"{reason}\"}}"))
}

#[test]
fn the_cause_of_a_failure_is_in_the_log_and_the_metrics_and_not_in_the_response() {
    let sim = Sim::start();
    let directory = tempfile::tempdir().unwrap();
    write_certificate(directory.path(), "server");
    let closed = closed_port();
    let tls = crate::tls::with_tls(directory.path(), "").start(&sim);
    let weir = Config::shipped()
        .env("VECTARA_BASE_URL", &format!("http://{closed}"))
        .env("PALANTIR_BASE_URL", "https://nowhere.invalid")
        // Its certificate is signed by nobody that Weir trusts.
        .env("AGENTHUMAN_BASE_URL", &format!("https://localhost:{}", tls.http.port()))
        .start(&sim);
    let native = "/vectara/v2/agents/agt_load_1/other";
    for (provider, targets, reason, cause) in [
        ("vectara", vec![VECTARA, native], "refused", closed.to_string()),
        ("palantir", vec![PALANTIR], "dns", "nowhere.invalid cannot be resolved".to_owned()),
        ("agenthuman", vec![AGENTHUMAN], "tls", "the TLS handshake with localhost".to_owned()),
    ] {
        assert!(weir.metrics().contains(&format!("{{provider=\"{provider}\",reason=\"{reason}\"}} 0")), "{provider}");
        for target in &targets {
            let before = failures(&weir, provider, reason);
            let response = weir.get(target);
            let body = String::from_utf8_lossy(&response.body).into_owned();
            assert_eq!(response.status, 502, "{provider}: {body}");
            assert!(body.contains("the provider is unreachable"), "{body}");
            for place in ["nowhere", "127.0.0.1", "localhost", &closed.port().to_string()] {
                assert!(!body.contains(place), "{provider}: {body} tells {place}");
            }
            assert!(failures(&weir, provider, reason) > before, "{target}");
        }
        let is_named =
            |line: &&String| line.contains("provider fails") && line.contains(&format!("provider=\"{provider}\""));
        wait_until("the log says why", || log(&weir).iter().any(|line| is_named(&line)));
        let lines = log(&weir);
        let of_provider: Vec<&String> = lines.iter().filter(is_named).collect();
        assert_eq!(of_provider.len(), 1, "{lines:?}");
        assert!(is_log_line(of_provider[0], "WARN", "provider fails"), "{of_provider:?}");
        assert!(of_provider[0].contains(reason) && of_provider[0].contains(&cause), "{of_provider:?}");
    }
}

#[test]
fn an_outage_and_its_end_are_a_few_log_lines() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 100ms")
        .edit("providers/vectara.yaml", "stale_if_error: 10m", "stale_if_error: 0s")
        .start(&sim);
    sim.set_response("/v2/", 500, &json!({}), "{}");
    let get = |n: usize| weir.get_with(&format!("/v1/sessions/vectara:agt_load_{}:ase_{n}", n % 7), &[]).status;
    for n in 0..40 {
        assert!(matches!(get(n), 502 | 503));
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_for_log(&weir.process.stderr, "WARN", "provider fails");
    wait_for_log(&weir.process.stderr, "WARN", "breaker open:");
    wait_for_log(&weir.process.stderr, "INFO", "breaker half-open");
    sim.clear_faults();
    wait_until("the provider works again", || weir.get(VECTARA).status == 200);
    wait_for_log(&weir.process.stderr, "INFO", "breaker closed");
    let lines = log(&weir);
    let about = lines.iter().filter(|line| line.contains("provider=\"vectara\"")).count();
    assert!(about <= 5, "{about} lines: {lines:?}");
    assert!(lines.iter().any(|line| line.contains("status 500")), "{lines:?}");
}

#[test]
fn counters_of_providers_and_clients_exist_before_their_first_count() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let metrics = weir.metrics();
    for series in [
        "weir_upstream_failures_total{provider=\"palantir\",reason=\"connect_timeout\"} 0",
        "weir_upstream_refused_total{provider=\"palantir\",reason=\"breaker\"} 0",
        "weir_upstream_retries_total{provider=\"palantir\",result=\"made\"} 0",
        "weir_cache_requests_total{provider=\"palantir\",result=\"stale\"} 0",
        "weir_http_problems_total{client=\"open\",code=\"provider_error\",provider=\"palantir\"} 0",
        "weir_trace_exports_total{result=\"failed\"} 0",
        "weir_upstream_requests_total{operation=\"get_session\",provider=\"palantir\",status=\"connect\"} 0",
        "weir_upstream_requests_total{operation=\"native\",provider=\"palantir\",status=\"502\"} 0",
        "weir_upstream_request_duration_seconds_count{operation=\"list_sessions\",provider=\"palantir\"} 0",
        "weir_mapping_failures_total{field=\"status\",provider=\"vectara\",reason=\"unknown_value\"} 0",
        "weir_mapping_failures_total{field=\"provider_session_id\",provider=\"vectara\",reason=\"missing\"} 0",
        "weir_cache_ttl_seconds_count{provider=\"palantir\",source=\"not_found\"} 0",
        "weir_cache_entries{provider=\"palantir\"} 0",
        "weir_http_requests_total{client=\"open\",provider=\"palantir\",route=\"/v1/sessions/{id}\",status=\"200\"} 0",
        "weir_http_requests_total{client=\"none\",provider=\"none\",route=\"none\",status=\"401\"} 0",
        "weir_http_request_duration_seconds_count{cache=\"hit\",provider=\"palantir\",route=\"/v1/sessions/{id}\"} 0",
        "weir_http_problems_total{client=\"none\",code=\"unauthorized\",provider=\"none\"} 0",
        "weir_overhead_seconds_count{route=\"native\"} 0",
        "weir_admin_requests_total{path=\"/reload\",status=\"401\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line == series), "{series} does not exist");
    }
}

/// Every kind of request, also failing ones: what it counts existed before.
#[test]
fn no_series_without_a_client_is_born_at_its_first_count() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .start(&sim);
    let names = || -> std::collections::BTreeSet<String> {
        let metrics = weir.metrics();
        // Of these histograms, only the usual ones exist from the start.
        let is_rare = |line: &str| {
            line.starts_with("weir_http_request_duration_seconds")
                && ["collapsed", "stale", "bypass"].iter().any(|cache| line.contains(&format!("cache=\"{cache}\"")))
        };
        let own = metrics.lines().filter(|line| line.starts_with("weir_") && !is_rare(line));
        let series = own.filter(|line| !line.contains("client=\""));
        // The revision is that of the file, which changes.
        series
            .filter(|line| !line.contains("weir_config_info"))
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect()
    };
    weir.admin("GET", "/config");
    let before = names();
    for target in [
        VECTARA,
        VECTARA,
        PALANTIR,
        "/v1/agents/agt_customer_support/sessions",
        "/v1/sessions?agent=agt_customer_support",
        "/v1/sessions?agent=agt_customer_support&provider=agenthuman",
        "/v1/sessions:batchGet?id=sess_01H3Z8G9YR3K2N5M6P7Q8W4T",
        "/v1/sessions/agenthuman:missing",
        "/v1/sessions/nobody:x",
        "/v1/providers",
        "/openapi.json",
        "/nowhere",
        "/vectara/v2/agents/agt_customer_support/sessions/ase_customer_support_001",
        "/vectara/v2/agents/agt_customer_support/sessions",
        "/vectara/v2/corpora",
    ] {
        weir.get(target);
    }
    weir.get_with(AGENTHUMAN, &[("Cache-Control", "no-cache")]);
    weir.make_stale();
    sim.set_response("/v1/", 500, &json!({}), "{}");
    sim.plan_fault("/v2/", 0, &json!({ "kind": "reset" }));
    for target in [VECTARA, AGENTHUMAN, "/v1/sessions/agenthuman:other", "/agenthuman/v1/other"] {
        weir.get(target);
    }
    weir.get_as("nobody", VECTARA);
    send(weir.admin, "POST", "/reload", &[("Authorization", "Bearer wrong")]);
    weir.admin("GET", "/nowhere");
    let born: Vec<String> = names().difference(&before).cloned().collect();
    assert!(born.is_empty(), "{born:#?}");

    // A provider that a reload adds has its series before its first request.
    let added = weir.config.read("providers/vectara.yaml").replace("name: vectara", "name: second");
    let recognise = added.split("  recognise:").nth(1).unwrap().split("  accept:").next().unwrap().to_owned();
    weir.config.write("providers/second.yaml", &added.replace(&format!("  recognise:{recognise}"), ""));
    let series = "weir_upstream_requests_total{operation=\"get_session\",provider=\"second\",status=\"connect\"} 0";
    wait_until("the new provider has series", || weir.metrics().contains(series));
}

#[test]
fn series_with_a_client_exist_from_the_start_up_to_a_number() {
    let sim = Sim::start();
    let clients: String = (0..500)
        .map(|n| format!("  - {{ id: client-{n}, keys: [ {{ sha256: SHA({n}) }} ], rate_limit: standard }}\n"))
        .collect();
    let weir = Config::shipped().clients(&format!("clients:\n{clients}")).start(&sim);
    let metrics = weir.metrics();
    let counters = ["weir_http_problems_total{", "weir_http_requests_total{", "weir_rate_limit_requests_total{"];
    let with_client = metrics
        .lines()
        .filter(|line| counters.iter().any(|name| line.starts_with(name)) && line.contains("client=\"client-"));
    assert_eq!(with_client.count(), 5_000);
    assert!(
        metrics
            .contains("weir_http_problems_total{client=\"client-0\",code=\"provider_error\",provider=\"palantir\"} 0")
    );
    // With few clients, also the decisions of their policies.
    let few = Config::shipped().clients("clients:\n  - { id: a, keys: [ { sha256: SHA(a) } ], rate_limit: standard, provider_rate_limits: { vectara: careful } }\n");
    let metrics = few.start(&sim).metrics();
    for policy in ["standard", "careful"] {
        for decision in ["allowed", "limited"] {
            let series =
                format!("weir_rate_limit_requests_total{{client=\"a\",decision=\"{decision}\",policy=\"{policy}\"}} 0");
            assert!(metrics.contains(&series), "{series}");
        }
    }
}

#[test]
fn unknown_status_words_are_named_once_in_the_log_and_bounded_in_the_admin_listener() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let providers = || weir.admin("GET", "/providers").json()["providers"].clone();
    let of = |name: &str| providers().as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    let expected = json!({ "name": "agenthuman", "breaker_open": false, "throttled": false, "unknown_words": [], "other_unknown_words": 0 });
    assert_eq!(of("agenthuman"), expected);
    let read = |n: usize, status: &serde_json::Value| {
        let body =
            json!({ "session": { "session_id": format!("sess_{n}x"), "status": status, "session_type": "hologram" } });
        sim.set_response(&format!("/v1/sessions/sess_{n}x"), 200, &json!({}), &body.to_string());
        let response = weir.get_with(&format!("/v1/sessions/agenthuman:sess_{n}x"), &[("Cache-Control", "no-cache")]);
        assert_eq!((response.status, response.json()["status"].clone()), (200, json!("unknown")));
    };
    read(1, &json!("paused"));
    read(1, &json!("paused"));
    read(2, &json!("paused"));
    // Long words are cut, and what can control a terminal is escaped in the log.
    read(3, &json!("x".repeat(5000)));
    read(4, &json!("\u{1b}[31mred\nnew line"));
    // JSON with a secret member is no word.
    read(5, &json!("{\"access_token\": \"hunter2\"}"));
    // Neither is an object or a list.
    read(6, &json!({ "paused": true }));
    read(7, &json!(17));
    let row = of("agenthuman");
    let words = row["unknown_words"].as_array().unwrap();
    let has = |field: &str, word: &str, count: u64| {
        assert!(words.contains(&json!({ "field": field, "word": word, "count": count })), "{word}: {row:#}");
    };
    has("status", "paused", 3);
    has("status", &"x".repeat(64), 1);
    has("status", "\u{1b}[31mred\nnew line", 1);
    has("status", "17", 1);
    has("modality", "hologram", 8);
    assert_eq!(words.len(), 5, "{row:#}");
    wait_until("the last word is logged", || log(&weir).iter().any(|line| line.contains("word=\"17\"")));
    let lines = log(&weir);
    let named = |word: &str| {
        lines.iter().filter(|line| line.contains("does not know this word") && line.contains(word)).count()
    };
    assert_eq!(
        (named("\"paused\""), named("\"hologram\""), named("\\u{1b}[31mred\\nnew line")),
        (1, 1, 1),
        "{lines:#?}"
    );
    assert!(
        !lines.join("").contains("hunter2")
            && !row.to_string().contains("hunter2")
            && !lines.join("").contains('\u{1b}')
    );
    assert_eq!(of("vectara")["unknown_words"], json!([]));

    // At most twenty words of a provider.
    for n in 10..40 {
        read(n, &json!(format!("word-{n}")));
    }
    let row = of("agenthuman");
    assert_eq!(row["unknown_words"].as_array().unwrap().len(), 20);
    assert_eq!(row["other_unknown_words"], 15);
    wait_for_log(&weir.process.stderr, "WARN", "the provider sends more than 20 words");
    let lines = log(&weir);
    assert_eq!(lines.iter().filter(|line| line.contains("does not know this word")).count(), 20);
    assert_eq!(lines.iter().filter(|line| line.contains("no more are named")).count(), 1);
    // A reload with other rules begins anew; one without keeps them.
    weir.config.change("weir.yaml", "grace: 10s", "grace: 11s");
    wait_until("the change is read", || weir.metric("weir_config_reloads_total{result=\"success\"}") >= 1.0);
    assert_eq!(of("agenthuman"), row);
    weir.config.change("providers/agenthuman.yaml", "started: active,", "started: active, paused: pending,");
    wait_until("the rules are others", || of("agenthuman")["unknown_words"] == json!([]));
    sim.set_response(
        "/v1/sessions/sess_1x",
        200,
        &json!({}),
        &json!({ "session": { "session_id": "sess_1x", "status": "paused" } }).to_string(),
    );
    let response = weir.get_with("/v1/sessions/agenthuman:sess_1x", &[("Cache-Control", "no-cache")]);
    assert_eq!(response.json()["status"], "pending");
}

#[test]
fn provider_states_need_the_admin_token_and_show_an_open_breaker() {
    let sim = Sim::start();
    let weir = Config::shipped().env("WEIR_ADMIN_TOKEN", "token").start(&sim);
    assert_eq!(weir.admin("GET", "/providers").status, 401);
    assert_eq!(send(weir.admin, "POST", "/providers", &[("Authorization", "Bearer token")]).status, 405);
    sim.set_response("/v2/", 500, &json!({}), "{}");
    let state = || {
        let response = send(weir.admin, "GET", "/providers", &[("Authorization", "Bearer token")]);
        response.json()["providers"].as_array().unwrap().iter().find(|row| row["name"] == "vectara").unwrap()["breaker_open"].clone()
    };
    assert_eq!(state(), false);
    wait_until("the breaker opens", || {
        (0..8).for_each(|n| drop(weir.get(&format!("/v1/sessions/vectara:agt_load_{n}:ase_{n}"))));
        state() == true
    });
}

#[test]
fn a_stderr_that_nobody_reads_stops_no_request() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n")
        .edit("weir.yaml", "log: info", "log: debug")
        .start(&sim);
    // The thread that reads stderr waits for this.
    let unread = weir.process.stderr.lock().unwrap();
    // More lines than the pipe and the queue hold: each request that fails makes one.
    let (request, count) = ("HEAD /v1/sessions/unknown:1 HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n", 12_000);
    let mut socket = TcpStream::connect(weir.http).unwrap();
    socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
    let mut writer = socket.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(request.repeat(count).as_bytes()).unwrap());
        let (mut seen, mut end, mut buffer) = (0, Vec::new(), [0; 1 << 16]);
        while seen < count {
            let read = socket.read(&mut buffer).unwrap();
            assert!(read > 0, "the connection ends");
            end.extend_from_slice(&buffer[..read]);
            seen += end.windows(4).filter(|four| four == b"\r\n\r\n").count();
            end.drain(..end.len() - 3.min(end.len()));
        }
    });
    assert_eq!(weir.get(VECTARA).status, 200);
    assert!(weir.metric("weir_log_dropped_total") > 0.0);
    drop(unread);
}
