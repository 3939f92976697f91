//! Outages and slow providers: which responses Weir serves, which calls it makes, and what the headers say.

use crate::support::*;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

fn timestamp(seconds_from_now: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    jiff::Timestamp::from_second(i64::try_from(now).unwrap() + seconds_from_now).unwrap().to_string()
}

/// Sets the provider's response for a session: its headers and additional members.
fn set_session(sim: &Sim, id: &str, headers: &serde_json::Value, fields: serde_json::Value) {
    let mut session = json!({ "session_id": id, "status": "started" });
    session.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    sim.set_response(id, 200, headers, &json!({ "success": true, "session": session }).to_string());
}

#[test]
fn a_session_that_ended_longer_ago_than_settle_costs_no_further_call() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", "  default: 30s", "  default: 200ms")
        .edit("providers/agenthuman.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .start(&sim);
    set_session(&sim, "sess_settled", &json!({}), json!({ "status": "ended", "ended_at": timestamp(-130) }));
    set_session(&sim, "sess_settling", &json!({}), json!({ "status": "ended", "ended_at": timestamp(-60) }));
    set_session(&sim, "sess_noendtime", &json!({}), json!({ "status": "ended" }));
    for (id, source, calls) in
        [("sess_settled", "status", 1), ("sess_settling", "default", 2), ("sess_noendtime", "default", 2)]
    {
        sim.reset_calls();
        let target = format!("/v1/sessions/{id}");
        let first = weir.get(&target);
        assert_eq!(first.header("cache-status"), Some(&*format!("weir; fwd=miss; stored; detail={source}")), "{id}");
        std::thread::sleep(Duration::from_millis(300));
        let second = weir.get(&target);
        assert_eq!((second.status, sim.calls()), (200, calls), "{id}");
        assert_eq!(second.json(), first.json(), "{id}");
    }
}

#[test]
fn during_a_pause_or_an_open_breaker_stale_entries_are_served_without_calls() {
    for (status, reason, code) in [(429, "pause", "provider_rate_limited"), (500, "breaker", "provider_unavailable")] {
        let sim = Sim::start();
        let weir = Config::shipped()
            .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
            .edit("providers/vectara.yaml", "failures: 5", "failures: 1")
            .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 5m")
            .start(&sim);
        assert_eq!(weir.get(VECTARA).status, 200);
        weir.make_stale();
        sim.set_response("/v2/", status, &json!({ "retry-after": "100" }), "{}");
        let first = weir.get(VECTARA);
        assert_eq!(
            first.header("cache-status"),
            Some(&*format!("weir; fwd=stale; fwd-status={status}; detail=stale-if-error"))
        );
        assert_eq!(sim.calls(), 2);
        let second = weir.get(VECTARA);
        let cache_status = second.header("cache-status").unwrap();
        assert!(
            cache_status.starts_with("weir; hit; ttl=") && cache_status.ends_with("; detail=stale-if-error"),
            "{cache_status}"
        );
        let not_cached = weir.get("/v1/agents/agt_load_1/sessions");
        assert_eq!(not_cached.code(), (503, code.into()));
        assert_eq!(not_cached.header("cache-status"), Some(&*format!("weir; detail={code}")));
        assert!(not_cached.header("retry-after").is_some());
        assert_eq!(sim.calls(), 2, "no further call");
        let refused = format!("weir_upstream_refused_total{{provider=\"vectara\",reason=\"{reason}\"}}");
        assert_eq!(weir.metric(&refused), 2.0, "{reason}");
        let gauges = (
            weir.metric("weir_upstream_breaker_open{provider=\"vectara\"}"),
            weir.metric("weir_upstream_throttled{provider=\"vectara\"}"),
        );
        assert_eq!(gauges, if reason == "breaker" { (1.0, 0.0) } else { (0.0, 1.0) });
    }
}

#[test]
fn the_breaker_opens_after_its_failures_and_closes_after_a_successful_trial() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "failures: 5", "failures: 2")
        .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 500ms")
        .start(&sim);
    sim.set_response("/v2/", 500, &json!({}), "{}");
    for n in 0..4 {
        weir.get(&format!("/v1/agents/agt_load_{n}/sessions"));
    }
    assert_eq!(sim.calls(), 2, "the breaker opens after two failures");
    sim.clear_faults();
    wait_until("a trial call succeeds", || weir.get("/v1/agents/agt_load_7/sessions").status == 200);
    assert_eq!(weir.get("/v1/agents/agt_load_8/sessions").status, 200, "the success closes the breaker");
    assert_eq!(weir.metric("weir_upstream_breaker_open{provider=\"vectara\"}"), 0.0);
}

#[test]
fn the_providers_age_date_and_cache_control_set_freshness() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    // A cache in front of the provider stored the response 20 s ago.
    set_session(&sim, "sess_aged", &json!({ "cache-control": "max-age=50", "age": "20" }), json!({}));
    let first = weir.get("/v1/sessions/sess_aged");
    assert_eq!(first.header("cache-control"), Some("private, max-age=50"));
    let age: u64 = first.header("age").unwrap().parse().unwrap();
    assert!((20..25).contains(&age), "{age}");
    // The age exceeds the first client's max-age, so Weir calls the provider. It does not exceed the second one's.
    assert!(
        weir.get_with("/v1/sessions/sess_aged", &[("Cache-Control", "max-age=10")])
            .header("cache-status")
            .unwrap()
            .starts_with("weir; fwd=request")
    );
    assert!(
        weir.get_with("/v1/sessions/sess_aged", &[("Cache-Control", "max-age=45")])
            .header("cache-status")
            .unwrap()
            .starts_with("weir; hit")
    );
    // There is no Age, but by its Date the response is older than its lifetime.
    set_session(
        &sim,
        "sess_dated",
        &json!({ "cache-control": "max-age=3600", "date": "Mon, 23 Nov 2020 00:00:00 GMT" }),
        json!({}),
    );
    let dated = weir.get("/v1/sessions/sess_dated");
    assert!(dated.header("cache-control").unwrap() == "private, max-age=0", "{:?}", dated.headers);
    // An entry that does not stay fresh for min-fresh is fetched again.
    set_session(&sim, "sess_short", &json!({ "cache-control": "max-age=20" }), json!({}));
    weir.get("/v1/sessions/sess_short");
    assert!(
        weir.get_with("/v1/sessions/sess_short", &[("Cache-Control", "min-fresh=60")])
            .header("cache-status")
            .unwrap()
            .starts_with("weir; fwd=request")
    );
    assert!(
        weir.get_with("/v1/sessions/sess_short", &[("Cache-Control", "min-fresh=5")])
            .header("cache-status")
            .unwrap()
            .starts_with("weir; hit")
    );
    for directives in ["no-store", "no-cache", "private, no-store"] {
        set_session(&sim, "sess_never", &json!({ "cache-control": directives }), json!({}));
        for _ in 0..2 {
            let never = weir.get("/v1/sessions/sess_never");
            assert!(
                never.header("cache-status").unwrap().starts_with("weir; fwd=miss; detail=upstream-no-"),
                "{directives}"
            );
        }
        sim.clear_faults();
    }
}

#[test]
fn without_an_entity_tag_last_modified_revalidates() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    set_session(&sim, "sess_A", &json!({ "last-modified": date }), json!({}));
    let first = weir.get("/v1/sessions/sess_A");
    sim.clear_faults();
    sim.plan(&json!({ "path": "sess_A", "if_header": { "if-modified-since": date }, "fault": { "kind": "answer", "status": 304, "headers": {}, "body": "" } }));
    let again = weir.get_with("/v1/sessions/sess_A", &[("Cache-Control", "no-cache")]);
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.header("cache-status"), Some("weir; fwd=request; stored; detail=default"));
}

#[test]
fn concurrent_reads_of_a_stale_entry_cause_one_refresh() {
    let sim = Sim::start();
    let weir = Arc::new(Config::shipped().start(&sim));
    assert_eq!(weir.get(VECTARA).status, 200);
    assert_eq!(weir.make_stale(), 1);
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 3000 }));
    let readers: Vec<_> = (0..100)
        .map(|_| {
            let weir = weir.clone();
            std::thread::spawn(move || weir.get(VECTARA))
        })
        .collect();
    for reader in readers {
        let response = reader.join().unwrap();
        let cache_status = response.header("cache-status").unwrap();
        assert!(response.status == 200 && cache_status.ends_with("; detail=stale-while-revalidate"), "{cache_status}");
    }
    assert_eq!(sim.calls(), 2);
}

#[test]
fn background_refreshes_count_against_max_in_flight() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "max_in_flight: 20000", "max_in_flight: 3").start(&sim);
    let list = |n: i32| format!("/v1/agents/agt_load_{n}/sessions");
    assert!((0..3).all(|n| weir.get(&list(n)).status == 200) && weir.get(AGENTHUMAN).status == 200);
    weir.make_stale();
    sim.plan_fault("/v2/", 0, &json!({ "kind": "hang" }));
    let in_flight = || weir.metric("weir_upstream_requests_in_flight");
    for n in 0..3 {
        assert!(weir.get(&list(n)).header("cache-status").unwrap().ends_with("detail=stale-while-revalidate"));
        wait_until("its refresh is in flight", || in_flight() == f64::from(n + 1));
    }
    assert_eq!(weir.metric("weir_http_requests_in_flight"), 0.0, "no client waits for the refreshes");
    let refused = weir.get(PALANTIR);
    assert_eq!(refused.code(), (503, "overloaded".into()));
    assert_eq!(refused.header("cache-status"), Some("weir; detail=overloaded"));
    // Weir skips the refresh and serves the stale entry, even to a client whose max-age requires a new response.
    assert!(weir.get(AGENTHUMAN).header("cache-status").unwrap().ends_with("detail=stale-while-revalidate"));
    let with_max_age = weir.get_with(AGENTHUMAN, &[("Cache-Control", "max-age=100")]);
    assert!(
        with_max_age.header("cache-status").unwrap().ends_with("detail=stale-if-error"),
        "{:?}",
        with_max_age.headers
    );
    assert_eq!(in_flight(), 3.0);
    wait_until("the refreshes reach their deadline", || in_flight() == 0.0);
    sim.clear_faults();
    assert_eq!(weir.get(PALANTIR).status, 200);
}

#[test]
fn max_buffered_limits_all_response_bodies_together() {
    let sim = Sim::start();
    let weir = Arc::new(Config::shipped().edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 1MiB").start(&sim));
    // Each body is below the limit, and all together exceed it. The received parts count until the deadline.
    let part = "x".repeat(400_000);
    let start_slow_provider = move || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let part = part.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().take(5) {
                let (mut socket, part) = (socket.unwrap(), part.clone());
                std::thread::spawn(move || {
                    let _ = std::io::Read::read(&mut socket, &mut [0; 4096]);
                    let _ = std::io::Write::write_all(
                        &mut socket,
                        format!("HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n{part}").as_bytes(),
                    );
                    std::thread::sleep(Duration::from_secs(20));
                });
            }
        });
        address
    };
    drop(weir);
    let weir = Arc::new(
        Config::shipped()
            .edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 1MiB")
            .env("VECTARA_BASE_URL", &format!("http://{}", start_slow_provider()))
            .start(&sim),
    );
    let callers: Vec<_> = (0..5)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || weir.get(&format!("/v1/sessions/vectara:agt_1:ase_{n}")))
        })
        .collect();
    let codes: Vec<String> = callers.into_iter().map(|caller| caller.join().unwrap().code().1).collect();
    let refused = codes.iter().filter(|code| *code == "overloaded").count();
    assert!(refused >= 2 && codes.iter().filter(|code| *code == "provider_timeout").count() >= 1, "{codes:?}");
    assert_eq!(weir.get(PALANTIR).status, 200, "the buffered bytes no longer count");
    let list = weir.get("/v1/sessions?provider=agenthuman&limit=1");
    assert_eq!(list.status, 200);
}

#[test]
fn concurrent_no_cache_requests_are_coalesced_into_one_further_call() {
    let sim = Sim::start();
    let weir = Arc::new(Config::shipped().start(&sim));
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 1500 }));
    let first = weir.clone();
    let first = std::thread::spawn(move || first.get(VECTARA));
    wait_until("the first call is in flight", || sim.calls() == 1);
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let weir = weir.clone();
            std::thread::sleep(Duration::from_millis(3));
            std::thread::spawn(move || weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]))
        })
        .collect();
    let cache_statuses: std::collections::BTreeSet<String> =
        clients.into_iter().map(|client| client.join().unwrap().header("cache-status").unwrap().to_owned()).collect();
    assert_eq!(first.join().unwrap().status, 200);
    assert_eq!(sim.calls(), 2, "one call that began after all requests arrived: {cache_statuses:?}");
}

#[test]
fn an_entry_purged_while_a_request_waits_is_not_served_stale_to_it() {
    let sim = Sim::start();
    let weir = Arc::new(
        Config::shipped()
            .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
            .edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 3s")
            .start(&sim),
    );
    assert_eq!(weir.get(VECTARA).status, 200);
    weir.make_stale();
    sim.plan_fault("/v2/", 0, &json!({ "kind": "hang" }));
    let waiter = weir.clone();
    let waiter = std::thread::spawn(move || waiter.get(VECTARA));
    wait_until("the request waits for the provider", || sim.calls() == 2);
    assert_eq!(weir.post_admin("/cache/purge", "{\"all\":true}").json()["purged"], 1);
    assert_eq!(waiter.join().unwrap().code(), (504, "provider_timeout".into()));
}

#[test]
fn a_retry_counts_against_the_providers_quota() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "providers/vectara.yaml",
            "requests: 1000\n    per: 1m\n    burst: 1000",
            "requests: 1\n    per: 1h\n    burst: 1",
        )
        .start(&sim);
    sim.plan_fault("/v2/", 0, &json!({ "kind": "reset" }));
    assert_eq!(weir.get(VECTARA).code(), (502, "provider_error".into()));
    assert_eq!(sim.calls(), 1);
    assert_eq!(weir.metric("weir_upstream_retries_total{provider=\"vectara\",result=\"refused\"}"), 1.0);
}

#[test]
fn a_client_with_one_request_does_not_wait_for_all_requests_of_a_busy_client() {
    let sim = Sim::start();
    let weir = Arc::new(
        Config::shipped()
            .clients("clients:\n  - { id: busy, keys: [ { sha256: SHA(busy) } ] }\n  - { id: quiet, keys: [ { sha256: SHA(quiet) } ] }\n")
            .edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1")
            .edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 60s")
            .start(&sim),
    );
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 300 }));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let send_list = |key: &'static str, n: usize| {
        let (weir, order) = (weir.clone(), order.clone());
        std::thread::spawn(move || {
            assert_eq!(
                weir.get_as(key, &format!("/v1/agents/agt_load_{}/sessions?limit=1&enabled={}", n % 10, n < 10)).status,
                200
            );
            order.lock().unwrap().push(key);
        })
    };
    let mut callers = Vec::new();
    for n in 0..12 {
        callers.push(send_list("busy", n));
        wait_until("the request is in the queue, or has its response", || {
            let responses = order.lock().unwrap().len();
            weir.metric("weir_upstream_requests_in_flight") + responses as f64 > n as f64
        });
    }
    callers.push(send_list("quiet", 15));
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let position = order.lock().unwrap().iter().position(|key| *key == "quiet").unwrap();
    assert!(position < 8, "response {position} of 13");
}

#[test]
fn must_revalidate_forbids_stale_responses_and_a_wrong_content_type_is_accepted() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    set_session(&sim, "sess_must", &json!({ "cache-control": "max-age=60, must-revalidate" }), json!({}));
    assert_eq!(weir.get("/v1/sessions/sess_must").status, 200);
    weir.make_stale();
    sim.clear_faults();
    sim.set_response("sess_must", 500, &json!({}), "{}");
    assert_eq!(
        weir.get("/v1/sessions/sess_must").code(),
        (502, "provider_error".into()),
        "the stale entry is not served"
    );
    assert_eq!(weir.get_with("/v1/sessions/sess_must", &[("Cache-Control", "max-stale")]).status, 502);
    set_session(&sim, "sess_html", &json!({ "content-type": "text/html" }), json!({}));
    assert_eq!(weir.get("/v1/sessions/sess_html").status, 200, "the body is valid JSON whatever its Content-Type");
}

#[test]
fn an_active_session_is_never_served_after_its_expiration_and_age_grows() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let expires = std::time::SystemTime::now() + Duration::from_secs(4);
    set_session(&sim, "sess_soon", &json!({}), json!({ "expiration": timestamp(4) }));
    let list = json!({ "success": true, "sessions": [ { "session_id": "sess_soon", "status": "started", "expiration": timestamp(4) } ] });
    assert_eq!(weir.get("/v1/sessions/sess_soon").json()["status"], "active");
    sim.set_response("/v1/sessions", 200, &json!({}), &list.to_string());
    assert_eq!(weir.get("/v1/sessions?provider=agenthuman").status, 200);
    weir.make_stale();
    sim.clear_faults();
    sim.set_response("/v1/sessions", 500, &json!({}), "{}");
    let (mut ages, mut refused) = (Vec::new(), 0);
    wait_until("the session has expired", || {
        for target in ["/v1/sessions/sess_soon", "/v1/sessions?provider=agenthuman"] {
            for headers in [&[][..], &[("Cache-Control", "max-stale")][..]] {
                let response = weir.get_with(target, headers);
                let expired = std::time::SystemTime::now()
                    .duration_since(expires)
                    .is_ok_and(|late| late > Duration::from_secs(1));
                if response.status == 200 {
                    ages.push(response.header("age").unwrap().parse::<u64>().unwrap());
                    assert!(!expired, "{target} {headers:?}: {:?}", response.headers);
                } else {
                    refused += usize::from(expired);
                }
            }
        }
        refused >= 8
    });
    assert!(ages.windows(2).all(|pair| pair[0] <= pair[1] + 1) && ages.iter().max() >= Some(&1), "{ages:?}");
}
