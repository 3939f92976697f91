//! An outage from its first failure to its end: what is served, what is asked, what is told.

use crate::support::*;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

fn at(seconds_from_now: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    jiff::Timestamp::from_second(i64::try_from(now).unwrap() + seconds_from_now).unwrap().to_string()
}

/// A session of this provider's that answers so.
fn session(sim: &Sim, id: &str, headers: &serde_json::Value, fields: serde_json::Value) {
    let mut session = json!({ "session_id": id, "status": "started" });
    session.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    sim.answers(id, 200, headers, &json!({ "success": true, "session": session }).to_string());
}

#[test]
fn a_session_that_ended_past_settle_costs_no_call() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/agenthuman.yaml", "  default: 30s", "  default: 200ms")
        .edit("providers/agenthuman.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .start(&sim);
    session(&sim, "sess_settled", &json!({}), json!({ "status": "ended", "ended_at": at(-130) }));
    session(&sim, "sess_settling", &json!({}), json!({ "status": "ended", "ended_at": at(-60) }));
    session(&sim, "sess_untold", &json!({}), json!({ "status": "ended" }));
    for (id, source, calls) in
        [("sess_settled", "status", 1), ("sess_settling", "default", 2), ("sess_untold", "default", 2)]
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
fn during_a_pause_and_behind_an_open_breaker_stale_is_served_and_nobody_is_asked() {
    for (status, reason, code) in [(429, "pause", "provider_rate_limited"), (500, "breaker", "provider_unavailable")] {
        let sim = Sim::start();
        let weir = Config::shipped()
            .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
            .edit("providers/vectara.yaml", "failures: 5", "failures: 1")
            .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 5m")
            .start(&sim);
        assert_eq!(weir.get(VECTARA).status, 200);
        weir.make_stale();
        sim.answers("/v2/", status, &json!({ "retry-after": "100" }), "{}");
        let first = weir.get(VECTARA);
        assert_eq!(
            first.header("cache-status"),
            Some(&*format!("weir; fwd=stale; fwd-status={status}; detail=stale-if-error"))
        );
        assert_eq!(sim.calls(), 2);
        let second = weir.get(VECTARA);
        let told = second.header("cache-status").unwrap();
        assert!(told.starts_with("weir; hit; ttl=") && told.ends_with("; detail=stale-if-error"), "{told}");
        let cold = weir.get("/v1/agents/agt_load_1/sessions");
        assert_eq!(cold.code(), (503, code.into()));
        assert_eq!(cold.header("cache-status"), Some(&*format!("weir; detail={code}")));
        assert!(cold.header("retry-after").is_some());
        assert_eq!(sim.calls(), 2, "nobody was asked");
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
fn the_breaker_lets_one_try_and_closes_when_it_succeeds() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit("providers/vectara.yaml", "failures: 5", "failures: 2")
        .edit("providers/vectara.yaml", "open_for: 10s", "open_for: 500ms")
        .start(&sim);
    sim.answers("/v2/", 500, &json!({}), "{}");
    for n in 0..4 {
        weir.get(&format!("/v1/agents/agt_load_{n}/sessions"));
    }
    assert_eq!(sim.calls(), 2, "open after two");
    sim.forget();
    until("it is tried again", || weir.get("/v1/agents/agt_load_7/sessions").status == 200);
    assert_eq!(weir.get("/v1/agents/agt_load_8/sessions").status, 200, "and closed by its success");
    assert_eq!(weir.metric("weir_upstream_breaker_open{provider=\"vectara\"}"), 0.0);
}

#[test]
fn what_the_provider_says_of_age_counts() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    // A cache of the provider's had it for 20 s already.
    session(&sim, "sess_aged", &json!({ "cache-control": "max-age=50", "age": "20" }), json!({}));
    let first = weir.get("/v1/sessions/sess_aged");
    assert_eq!(first.header("cache-control"), Some("private, max-age=50"));
    let age: u64 = first.header("age").unwrap().parse().unwrap();
    assert!((20..25).contains(&age), "{age}");
    // Its age is beyond what this client takes, so the provider is asked; not for the other.
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
    // Most of its lifetime is over by its Date, though nothing says Age.
    session(
        &sim,
        "sess_dated",
        &json!({ "cache-control": "max-age=3600", "date": "Mon, 23 Nov 2020 00:00:00 GMT" }),
        json!({}),
    );
    let dated = weir.get("/v1/sessions/sess_dated");
    assert!(dated.header("cache-control").unwrap() == "private, max-age=0", "{:?}", dated.headers);
    // min-fresh: what will not be good for that long is asked for again.
    session(&sim, "sess_short", &json!({ "cache-control": "max-age=20" }), json!({}));
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
        session(&sim, "sess_never", &json!({ "cache-control": directives }), json!({}));
        for _ in 0..2 {
            let never = weir.get("/v1/sessions/sess_never");
            assert!(
                never.header("cache-status").unwrap().starts_with("weir; fwd=miss; detail=upstream-no-"),
                "{directives}"
            );
        }
        sim.forget();
    }
}

#[test]
fn without_an_entity_tag_a_date_confirms() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    session(&sim, "sess_A", &json!({ "last-modified": date }), json!({}));
    let first = weir.get("/v1/sessions/sess_A");
    sim.forget();
    sim.plan(&json!({ "path": "sess_A", "if_header": { "if-modified-since": date }, "fault": { "kind": "answer", "status": 304, "headers": {}, "body": "" } }));
    let again = weir.get_with("/v1/sessions/sess_A", &[("Cache-Control", "no-cache")]);
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.header("cache-status"), Some("weir; fwd=request; stored; detail=default"));
}

#[test]
fn many_readers_of_a_stale_answer_cause_one_refresh() {
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
        let answer = reader.join().unwrap();
        let told = answer.header("cache-status").unwrap();
        assert!(answer.status == 200 && told.ends_with("; detail=stale-while-revalidate"), "{told}");
    }
    assert_eq!(sim.calls(), 2);
}

#[test]
fn calls_that_nobody_waits_for_are_bounded_too() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "max_in_flight: 20000", "max_in_flight: 3").start(&sim);
    let list = |n: i32| format!("/v1/agents/agt_load_{n}/sessions");
    assert!((0..3).all(|n| weir.get(&list(n)).status == 200) && weir.get(AGENTHUMAN).status == 200);
    weir.make_stale();
    sim.fault("/v2/", 0, &json!({ "kind": "hang" }));
    let under_way = || weir.metric("weir_upstream_requests_in_flight");
    for n in 0..3 {
        assert!(weir.get(&list(n)).header("cache-status").unwrap().ends_with("detail=stale-while-revalidate"));
        until("its call is under way", || under_way() == f64::from(n + 1));
    }
    assert_eq!(weir.metric("weir_http_requests_in_flight"), 0.0, "nobody waits for them");
    let refused = weir.get(PALANTIR);
    assert_eq!(refused.code(), (503, "overloaded".into()));
    assert_eq!(refused.header("cache-status"), Some("weir; detail=overloaded"));
    // A refresh is left out; the stale answer is served all the same, also where it would have to be asked for.
    assert!(weir.get(AGENTHUMAN).header("cache-status").unwrap().ends_with("detail=stale-while-revalidate"));
    let bounded = weir.get_with(AGENTHUMAN, &[("Cache-Control", "max-age=100")]);
    assert!(bounded.header("cache-status").unwrap().ends_with("detail=stale-if-error"), "{:?}", bounded.headers);
    assert_eq!(under_way(), 3.0);
    until("they end by their deadline", || under_way() == 0.0);
    sim.forget();
    assert_eq!(weir.get(PALANTIR).status, 200);
}

#[test]
fn answers_being_read_are_bounded_together() {
    let sim = Sim::start();
    let weir = Arc::new(Config::shipped().edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 1MiB").start(&sim));
    // Each is below the bound, and together they are above it: what has come of them is held until the deadline.
    let part = "x".repeat(400_000);
    let slow = move || {
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
            .env("VECTARA_BASE_URL", &format!("http://{}", slow()))
            .start(&sim),
    );
    let callers: Vec<_> = (0..5)
        .map(|n| {
            let weir = weir.clone();
            std::thread::spawn(move || weir.get(&format!("/v1/sessions/vectara:agt_1:ase_{n}")))
        })
        .collect();
    let codes: Vec<String> = callers.into_iter().map(|caller| caller.join().unwrap().code().1).collect();
    let shed = codes.iter().filter(|code| *code == "overloaded").count();
    assert!(shed >= 2 && codes.iter().filter(|code| *code == "provider_timeout").count() >= 1, "{codes:?}");
    assert_eq!(weir.get(PALANTIR).status, 200, "what was held is given back");
    let list = weir.get("/v1/sessions?provider=agenthuman&limit=1");
    assert_eq!(list.status, 200);
}

#[test]
fn a_hundred_who_want_confirmation_cause_two_calls() {
    let sim = Sim::start();
    let weir = Arc::new(Config::shipped().start(&sim));
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 1500 }));
    let first = weir.clone();
    let first = std::thread::spawn(move || first.get(VECTARA));
    until("the first is under way", || sim.calls() == 1);
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let weir = weir.clone();
            std::thread::sleep(Duration::from_millis(3));
            std::thread::spawn(move || weir.get_with(VECTARA, &[("Cache-Control", "no-cache")]))
        })
        .collect();
    let told: std::collections::BTreeSet<String> =
        callers.into_iter().map(|caller| caller.join().unwrap().header("cache-status").unwrap().to_owned()).collect();
    assert_eq!(first.join().unwrap().status, 200);
    assert_eq!(sim.calls(), 2, "one was asked for after all of them had come: {told:?}");
}

#[test]
fn what_is_purged_while_a_request_waits_is_not_served_to_it() {
    let sim = Sim::start();
    let weir = Arc::new(
        Config::shipped()
            .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
            .edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 3s")
            .start(&sim),
    );
    assert_eq!(weir.get(VECTARA).status, 200);
    weir.make_stale();
    sim.fault("/v2/", 0, &json!({ "kind": "hang" }));
    let waiter = weir.clone();
    let waiter = std::thread::spawn(move || waiter.get(VECTARA));
    until("it waits", || sim.calls() == 2);
    let body = "{\"all\":true}";
    let head = request("POST", "/cache/purge", &[("Content-Length", &body.len().to_string())]);
    assert_eq!(raw(weir.admin, &[&head[..], body.as_bytes()].concat()).json()["purged"], 1);
    assert_eq!(waiter.join().unwrap().code(), (504, "provider_timeout".into()));
}

#[test]
fn a_retry_spends_of_the_quota_and_heeds_a_pause() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "providers/vectara.yaml",
            "requests: 1000\n    per: 1m\n    burst: 1000",
            "requests: 1\n    per: 1h\n    burst: 1",
        )
        .start(&sim);
    sim.fault("/v2/", 0, &json!({ "kind": "reset" }));
    assert_eq!(weir.get(VECTARA).code(), (502, "provider_error".into()));
    assert_eq!(sim.calls(), 1);
    assert_eq!(weir.metric("weir_upstream_retries_total{provider=\"vectara\",result=\"refused\"}"), 1.0);
}

#[test]
fn a_quiet_client_is_not_behind_all_of_a_busy_ones() {
    let sim = Sim::start();
    let weir = Arc::new(
        Config::shipped()
            .clients("clients:\n  - { id: busy, keys: [ { sha256: SHA(busy) } ] }\n  - { id: quiet, keys: [ { sha256: SHA(quiet) } ] }\n")
            .edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1")
            .edit("providers/vectara.yaml", "  timeout: 10s", "  timeout: 60s")
            .start(&sim),
    );
    sim.plan(&json!({ "path": "/v2/", "latency_ms": 300 }));
    let (order, in_flight) = (Arc::new(std::sync::Mutex::new(Vec::new())), |n: u32| f64::from(n));
    let ask = |key: &'static str, n: usize| {
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
        callers.push(ask("busy", n));
        until("it is in the queue", || {
            weir.metric("weir_upstream_requests_in_flight") == in_flight(u32::try_from(n).unwrap() + 1)
        });
    }
    callers.push(ask("quiet", 15));
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let place = order.lock().unwrap().iter().position(|key| *key == "quiet").unwrap();
    assert!(place < 8, "it came {place} of 13");
}

#[test]
fn must_revalidate_is_obeyed_and_a_mislabelled_body_is_taken() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    session(&sim, "sess_must", &json!({ "cache-control": "max-age=60, must-revalidate" }), json!({}));
    assert_eq!(weir.get("/v1/sessions/sess_must").status, 200);
    weir.make_stale();
    sim.forget();
    sim.answers("sess_must", 500, &json!({}), "{}");
    assert_eq!(weir.get("/v1/sessions/sess_must").code(), (502, "provider_error".into()), "never stale");
    assert_eq!(weir.get_with("/v1/sessions/sess_must", &[("Cache-Control", "max-stale")]).status, 502);
    session(&sim, "sess_html", &json!({ "content-type": "text/html" }), json!({}));
    assert_eq!(weir.get("/v1/sessions/sess_html").status, 200, "it is what it should be, whatever it is called");
}

#[test]
fn nothing_live_is_served_past_its_expiry_and_age_says_how_old_it_is() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let expires = std::time::SystemTime::now() + Duration::from_secs(4);
    session(&sim, "sess_soon", &json!({}), json!({ "expiration": at(4) }));
    let list = json!({ "success": true, "sessions": [ { "session_id": "sess_soon", "status": "started", "expiration": at(4) } ] });
    assert_eq!(weir.get("/v1/sessions/sess_soon").json()["status"], "active");
    sim.answers("/v1/sessions", 200, &json!({}), &list.to_string());
    assert_eq!(weir.get("/v1/sessions?provider=agenthuman").status, 200);
    weir.make_stale();
    sim.forget();
    sim.answers("/v1/sessions", 500, &json!({}), "{}");
    let (mut ages, mut late) = (Vec::new(), 0);
    until("it has expired", || {
        for target in ["/v1/sessions/sess_soon", "/v1/sessions?provider=agenthuman"] {
            for headers in [&[][..], &[("Cache-Control", "max-stale")][..]] {
                let answer = weir.get_with(target, headers);
                let over = std::time::SystemTime::now()
                    .duration_since(expires)
                    .is_ok_and(|over| over > Duration::from_secs(1));
                if answer.status == 200 {
                    ages.push(answer.header("age").unwrap().parse::<u64>().unwrap());
                    assert!(!over, "{target} {headers:?}: {:?}", answer.headers);
                } else {
                    late += usize::from(over);
                }
            }
        }
        late >= 8
    });
    assert!(ages.windows(2).all(|pair| pair[0] <= pair[1] + 1) && ages.iter().max() >= Some(&1), "{ages:?}");
}
