//! Watches: the event stream of a session's changes.

use crate::support::*;
use crate::watch_client::*;
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_watch_sends_one_event_at_the_start_and_one_for_each_change() {
    let sim = Sim::start();
    let weir = poll_every_second().start(&sim);
    let plain = weir.get(PATH.trim_end_matches("/watch"));
    let watcher = Watcher::start(weir.http, PATH, &[]);
    assert!(watcher.head.starts_with("HTTP/1.1 200"), "{}", watcher.head);
    let head = watcher.head.to_lowercase();
    assert!(head.contains("content-type: text/event-stream") && head.contains("cache-control: no-store"), "{head}");
    let (id, data) = watcher.next_session();
    assert_eq!((Some(id.as_str()), &data), (plain.header("etag"), &plain.json()));
    change_session(&sim, "second", true);
    let (second, data) = watcher.next_session();
    assert_eq!(data["title"], "second");
    // A poll without a change sends no event, so the next event is the next change.
    let calls = sim.calls();
    wait_until("Weir has polled twice more", || sim.calls() >= calls + 2);
    change_session(&sim, "third", false);
    let (_, data) = watcher.next_session();
    assert_eq!((&data["title"], &data["status"]), (&json!("third"), &json!("disabled")));

    // A watcher whose Last-Event-ID is current gets its first event at the next change. One with an older id gets an
    // event at once.
    let current = weir.get_with(PATH.trim_end_matches("/watch"), &[("Cache-Control", "no-cache")]);
    let up_to_date = Watcher::start(weir.http, PATH, &[("Last-Event-ID", current.header("etag").unwrap())]);
    let outdated = Watcher::start(weir.http, PATH, &[("Last-Event-ID", &second)]);
    assert_eq!(outdated.next_session().1["title"], "third");
    change_session(&sim, "fourth", true);
    assert_eq!(up_to_date.next_session().1["title"], "fourth");
    assert_eq!(outdated.next_session().1["title"], "fourth");
    let fields = Watcher::start(weir.http, &format!("{PATH}?fields=title"), &[]);
    assert_eq!(fields.next_session().1, json!({ "title": "fourth" }));
}

#[test]
fn many_watchers_of_a_session_cost_one_call_per_interval() {
    let sim = Sim::start();
    let weir = poll_every_second().start(&sim);
    // This also holds if the provider forbids caching.
    let mut session = example("vectara/get").0;
    session["name"] = "first".into();
    let no_store = json!({ "cache-control": "no-store" });
    sim.set_response(NATIVE, 200, &no_store, &session.to_string());
    let watchers: Vec<Watcher> = (0..60).map(|_| Watcher::start(weir.http, PATH, &[])).collect();
    for watcher in &watchers {
        assert_eq!(watcher.next_session().1["title"], "first");
    }
    assert_eq!(weir.metric("weir_watchers"), 60.0);
    sim.reset_calls();
    let started = Instant::now();
    for title in ["second", "third"] {
        session["name"] = title.into();
        sim.clear_faults();
        sim.set_response(NATIVE, 200, &no_store, &session.to_string());
        for watcher in &watchers {
            assert_eq!(watcher.next_session().1["title"], title);
        }
    }
    let (calls, limit) = (sim.calls(), started.elapsed().as_secs() + 2);
    assert!(calls <= limit, "{calls} calls in {:?} for 60 watchers", started.elapsed());
    drop(watchers.into_iter().map(|watcher| watcher.stream.shutdown(std::net::Shutdown::Both)).collect::<Vec<_>>());
    wait_until("all watchers are gone", || weir.metric("weir_watchers") == 0.0);
    let calls = sim.calls();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(sim.calls(), calls, "no call without a watcher");
}

#[test]
fn the_stream_ends_when_the_session_has_ended() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("providers/agenthuman.yaml", "watch: 5s", "watch: 1s").start(&sim);
    let path = "/v1/sessions/sess_SIM00000001/watch";
    let native = |status: &str| {
        json!({ "success": true, "session": { "session_id": "sess_SIM00000001", "status": status, "ended_at": "2024-01-01T00:00:00Z" } }).to_string()
    };
    sim.set_response("/v1/sessions/sess_SIM00000001", 200, &json!({}), &native("started"));
    let watcher = Watcher::start(weir.http, path, &[]);
    assert_eq!(watcher.next_session().1["status"], "active");
    sim.clear_faults();
    sim.set_response("/v1/sessions/sess_SIM00000001", 200, &json!({}), &native("ended"));
    let (id, data) = watcher.next_session();
    assert_eq!((&data["status"], watcher.next()), (&json!("ended"), Received::End));
    // A browser reconnects with the last id. The status 204 makes it stop.
    let reconnected = weir.get_with(path, &[("Last-Event-ID", &id)]);
    assert_eq!((reconnected.status, reconnected.body.len()), (204, 0));
    let new_watcher = Watcher::start(weir.http, path, &[]);
    assert_eq!((&new_watcher.next_session().1["status"], new_watcher.next()), (&json!("ended"), Received::End));
}

#[test]
fn a_provider_error_sends_one_problem_event_and_a_missing_session_ends_the_stream() {
    let sim = Sim::start();
    let weir = poll_every_second().start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    watcher.next_session();
    sim.set_response(NATIVE, 500, &json!({}), "{}");
    let Received::Event { name, id: None, data } = watcher.next() else { panic!("not a problem event") };
    assert_eq!((name.as_str(), &data["code"]), ("problem", &json!("provider_error")));
    let calls = sim.calls();
    wait_until("Weir has polled again", || sim.calls() > calls);
    change_session(&sim, "back", true);
    assert_eq!(watcher.next_session().1["title"], "back");
    sim.clear_faults();
    sim.set_response(NATIVE, 404, &json!({}), "{\"messages\":[\"Session not found.\"]}");
    let Received::Event { data, .. } = watcher.next() else { panic!("not a problem event") };
    assert_eq!((&data["code"], watcher.next()), (&json!("session_not_found"), Received::End));
    assert_eq!(
        weir.get("/v1/sessions/vectara:agt_customer_support:ase_none/watch").code(),
        (404, "session_not_found".into())
    );
}

#[test]
fn the_stream_ends_if_a_reload_removes_the_client_and_on_shutdown() {
    let sim = Sim::start();
    let mut weir = poll_every_second().clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n").start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    let other =
        Watcher::start(weir.http, &format!("{PATH}?include=native"), &[("X-API-Key", "open"), ("X-Weir-Key", "other")]);
    watcher.next_session();
    other.next_session();
    weir.config
        .write("clients.yaml", &expand_digests("clients:\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n"));
    assert_eq!(weir.reload().0, 200);
    let Received::Event { name, data, .. } = watcher.next() else { panic!("not a problem event") };
    assert_eq!((name.as_str(), &data["code"], watcher.next()), ("problem", &json!("unauthorized"), Received::End));
    change_session(&sim, "still there", true);
    assert_eq!(other.next_session().1["title"], "still there", "the stream of another client continues");
    let started = Instant::now();
    weir.process.signal("TERM");
    assert!(weir.process.wait().success());
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "the shutdown waited for the whole grace time: {:?}",
        started.elapsed()
    );
    assert_eq!(other.next(), Received::End);
}

#[test]
fn max_watchers_limits_watchers_and_a_head_request_starts_none() {
    let sim = Sim::start();
    let weir = poll_every_second().edit("weir.yaml", "max_watchers: 10000 ", "max_watchers: 2 ").start(&sim);
    let first = Watcher::start(weir.http, PATH, &[]);
    let _second = Watcher::start(weir.http, PATH, &[]);
    let third = weir.get(PATH);
    assert_eq!(third.code(), (503, "overloaded".into()));
    assert!(third.header("retry-after").is_some());
    first.next_session();
    first.stream.shutdown(std::net::Shutdown::Both).unwrap();
    wait_until("the first watcher is gone", || weir.metric("weir_watchers") < 2.0);
    let head = send(weir.http, "HEAD", PATH, &[("X-API-Key", "open")]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let _third = Watcher::start(weir.http, PATH, &[]);
    wait_until("the new watcher is counted", || weir.metric("weir_watchers") == 2.0);
}

#[test]
fn a_stream_without_changes_has_heartbeats() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    watcher.next_session();
    assert_eq!(watcher.next(), Received::Heartbeat);
}

const OTHER: [(&str, &str); 1] = [("X-Weir-Key", "other")];

/// Requires that the stream ends with a problem of this code before its next heartbeat, which comes after 15 s.
fn expect_revoked(watcher: &Watcher, code: &str) {
    let Received::Event { name, data, .. } = watcher.next() else { panic!("a heartbeat or the end came first") };
    assert_eq!((name.as_str(), &data["code"], watcher.next()), ("problem", &json!(code), Received::End));
}

#[test]
fn one_client_does_not_take_all_watchers() {
    let sim = Sim::start();
    let weir = poll_every_second()
        .clients(TWO_CLIENTS)
        .edit("weir.yaml", "max_watchers: 10000 ", "max_watchers: 3 ")
        .start(&sim);
    let greedy: Vec<Watcher> = (0..2).map(|_| Watcher::start(weir.http, PATH, &[])).collect();
    for _ in 0..3 {
        let refused = weir.get(PATH);
        assert_eq!(refused.code(), (503, "overloaded".into()));
        assert!(refused.header("retry-after").is_some());
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(detail, "this client watches 2 sessions, which is its share (half of overload.max_watchers)");
    }
    let other = Watcher::start(weir.http, PATH, &OTHER);
    other.next_session();
    let refused = weir.get_as("other", PATH);
    assert_eq!(refused.code(), (503, "overloaded".into()));
    assert!(refused.json()["detail"].as_str().unwrap().starts_with("3 sessions are watched"), "{:?}", refused.json());
    greedy[0].stream.shutdown(std::net::Shutdown::Both).unwrap();
    wait_until("the first watcher is gone", || weir.metric("weir_watchers") < 3.0);
    let again = Watcher::start(weir.http, PATH, &[]);
    again.next_session();
    assert_eq!(weir.metric("weir_watchers"), 3.0);
}

#[test]
fn a_revoked_watcher_ends_at_once_during_a_pause_and_the_other_watcher_of_the_topic_stays() {
    let sim = Sim::start();
    let weir = poll_every_second().clients(TWO_CLIENTS).start(&sim);
    let (revoked, other) = (Watcher::start(weir.http, PATH, &[]), Watcher::start(weir.http, PATH, &OTHER));
    sim.set_response(NATIVE, 429, &json!({ "retry-after": "300" }), "{}");
    for watcher in [&revoked, &other] {
        watcher.next_session();
        let Received::Event { data, .. } = watcher.next() else { panic!("not a problem event") };
        assert_eq!(data["code"], "provider_rate_limited");
    }
    weir.config
        .write("clients.yaml", &expand_digests("clients:\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n"));
    assert_eq!(weir.reload().0, 200);
    expect_revoked(&revoked, "unauthorized");
    assert_eq!(other.next(), Received::Heartbeat);
    assert_eq!(weir.metric("weir_watchers"), 1.0);
}

#[test]
fn a_watcher_without_permission_ends_while_the_breaker_is_open() {
    let sim = Sim::start();
    let weir = poll_every_second()
        .edit("providers/vectara.yaml", "failures: 5", "failures: 1")
        .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 5m")
        .start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    watcher.next_session();
    sim.set_response("/v2/", 500, &json!({}), "{}");
    let Received::Event { data, .. } = watcher.next() else { panic!("not a problem event") };
    assert_eq!(data["code"], "provider_error");
    assert_eq!(weir.metric("weir_upstream_breaker_open{provider=\"vectara\"}"), 1.0);
    weir.config.write(
        "clients.yaml",
        &expand_digests("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], providers: [palantir] }\n"),
    );
    assert_eq!(weir.reload().0, 200);
    expect_revoked(&watcher, "forbidden");
}

#[test]
fn a_watcher_whose_key_expires_ends_while_the_provider_hangs() {
    let sim = Sim::start();
    let output = std::process::Command::new("date").args(["-u", "-d", "+8 seconds", "+%FT%TZ"]).output().unwrap();
    let expiry = String::from_utf8(output.stdout).unwrap();
    let clients =
        format!("clients:\n  - {{ id: open, keys: [ {{ sha256: SHA(open), expires_at: {} }} ] }}\n", expiry.trim());
    let weir = poll_every_second()
        .clients(&clients)
        .edit("providers/vectara.yaml", "timeout: 10s", "timeout: 60s")
        .start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    watcher.next_session();
    sim.plan_fault(NATIVE, 0, &json!({ "kind": "hang" }));
    expect_revoked(&watcher, "unauthorized");
}

#[test]
fn a_revoked_watcher_over_http2_ends_although_the_next_poll_is_far() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .clients(TWO_CLIENTS)
        .edit("providers/vectara.yaml", "watch: 5s ", "watch: 5m ")
        .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
        .start(&sim);
    let curl = std::process::Command::new("curl")
        .args(["-sS", "-N", "--http2-prior-knowledge", "--max-time", "30", "-H", "X-API-Key: open"])
        .arg(format!("http://{}{PATH}", weir.http))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the watcher is counted", || weir.metric("weir_watchers") == 1.0);
    weir.config
        .write("clients.yaml", &expand_digests("clients:\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n"));
    assert_eq!(weir.reload().0, 200);
    let output = curl.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("id: "), "{text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("event: problem\n") && last.contains("\"unauthorized\""), "{text}");
    assert!(!text.contains("\n:\n"), "no heartbeat came before the end: {text}");
}
