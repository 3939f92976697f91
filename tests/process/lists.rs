//! One list over every provider: nothing lost, nothing twice, whatever the sources do.

use crate::support::*;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};
use std::cell::Cell;
use std::time::Instant;

const AGENTS: [&str; 3] = ["agt_load_0", "agt_load_1", "ri.aip-agents..agent.00000000-0000-0000-0000-000000000002"];
const ALL: &str = "/v1/sessions?agent=agt_load_0&agent=agt_load_1&agent=palantir%3Ari.aip-agents..agent.00000000-0000-0000-0000-000000000002&provider=agenthuman";

/// A session as the source of this number shows it, made so many seconds after 2024 began.
fn native(source: usize, n: usize, made: Option<u32>) -> Value {
    let made = made.map(|second| format!("2024-01-01T00:00:{second:02}Z"));
    match source {
        0 | 1 => {
            json!({ "key": format!("ase_{source}_{n}"), "agent_key": AGENTS[source], "created_at": made, "enabled": n.is_multiple_of(2) })
        }
        2 => {
            json!({ "rid": format!("ri.aip-agents..session.{n}"), "agentRid": AGENTS[2], "metadata": { "createdTime": made } })
        }
        _ => json!({ "session_id": format!("sess_{n}"), "created_at": made, "status": "ended" }),
    }
}

fn id(source: usize, n: usize) -> String {
    match source {
        0 | 1 => format!("vectara:{}:ase_{source}_{n}", AGENTS[source]),
        2 => format!("palantir:{}:ri.aip-agents..session.{n}", AGENTS[2]),
        _ => format!("agenthuman:sess_{n}"),
    }
}

type Made = Vec<Vec<Option<u32>>>;

fn fill(sim: &Sim, sources: &Made) {
    let mut all = serde_json::Map::new();
    for (source, made) in sources.iter().enumerate() {
        let sessions: Vec<Value> = made.iter().enumerate().map(|(n, made)| native(source, n, *made)).collect();
        all.insert(AGENTS.get(source).copied().unwrap_or_default().to_owned(), sessions.into());
    }
    sim.sessions(&Value::Object(all));
}

/// The contract once more, by another hand: of the heads the newest first, one without a time before all, of equals the
/// source named first.
fn merged(sources: &Made) -> Vec<String> {
    let mut read = vec![0; sources.len()];
    let mut all = Vec::new();
    loop {
        let heads = (0..sources.len()).filter_map(|source| Some((source, *sources[source].get(read[source])?)));
        let rank = |made: Option<u32>| made.map_or(u32::MAX, |second| second);
        let Some((source, _)) = heads.min_by_key(|(source, made)| (std::cmp::Reverse(rank(*made)), *source)) else {
            return all;
        };
        all.push(id(source, read[source]));
        read[source] += 1;
    }
}

/// All ids of a walk, in order, and how many pages it took; each page is shown to `look` before the next is asked for.
fn walk(weir: &Weir, path: &str, limit: usize, mut look: impl FnMut(&Value)) -> (Vec<String>, usize) {
    let (mut ids, mut token) = (Vec::new(), String::new());
    for page in 1..1000 {
        let answer = weir.get(&format!("{path}&limit={limit}{token}"));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        let body = answer.json();
        let sessions = body["sessions"].as_array().unwrap();
        assert!(sessions.len() <= limit);
        ids.extend(sessions.iter().map(|session| session["id"].as_str().unwrap().to_owned()));
        look(&body);
        match body["next_page_token"].as_str() {
            Some(next) => token = format!("&page_token={next}"),
            None => return (ids, page),
        }
    }
    panic!("the walk does not end");
}

/// Small pages, so that a source has several.
fn small_pages() -> Config {
    Config::shipped().edit("providers/vectara.yaml", "max_limit: 100", "max_limit: 3").edit(
        "providers/palantir.yaml",
        "max_limit: 100",
        "max_limit: 4",
    )
}

#[test]
fn every_session_comes_once_and_in_order_whatever_the_sources_and_the_limit() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    let made = || prop::collection::vec(prop::option::weighted(0.8, 0_u32..6), 0..11);
    let sorted = (prop::collection::vec(made(), 4), any::<[bool; 4]>()).prop_map(|(mut sources, sort)| {
        for (source, _) in sources.iter_mut().zip(sort).filter(|(_, sort)| *sort) {
            source.sort_by_key(|made| std::cmp::Reverse(made.unwrap_or(u32::MAX)));
        }
        sources
    });
    let limit = prop_oneof![Just(1_usize), 2_usize..9, Just(100)];
    let longest = Cell::new(0);
    let mut runner = TestRunner::new(Cases { cases: 40, failure_persistence: None, ..Cases::default() });
    let result = runner.run(&(sorted, limit), |(sources, limit)| {
        fill(&sim, &sources);
        purge_all(&weir);
        let (ids, pages) = walk(&weir, ALL, limit, |page| assert_eq!(page["partial"], false));
        longest.set(longest.get().max(pages));
        prop_assert_eq!(ids, merged(&sources));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(longest.get() > 5, "no walk was longer than {} pages", longest.get());
}

fn purge_all(weir: &Weir) {
    let body = "{\"all\": true}";
    let mut bytes = request("POST", "/cache/purge", &[("Content-Length", &body.len().to_string())]);
    bytes.extend_from_slice(body.as_bytes());
    assert_eq!(raw(weir.admin, &bytes).status, 200);
}

/// Sources of nine sessions each, made in turn.
fn nine_each() -> Made {
    (0..4).map(|source| (0..9).map(|n| Some(50 - 4 * n - source)).collect()).collect()
}

#[test]
fn a_source_that_fails_is_named_and_taken_up_where_it_was_left() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    fill(&sim, &nine_each());
    let mut transcript = Vec::new();
    let mut pages = 0;
    let (ids, _) = walk(&weir, ALL, 5, |page| {
        pages += 1;
        let states: Vec<&str> =
            page["sources"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect();
        transcript.push(format!(
            "page {pages}: {} sessions, partial {}, {states:?}",
            page["sessions"].as_array().unwrap().len(),
            page["partial"]
        ));
        let palantir = &page["sources"][2];
        if (3..=4).contains(&pages) {
            assert_eq!((&page["partial"], &palantir["state"]), (&json!(true), &json!("failed")), "{transcript:#?}");
            assert_eq!(
                (&palantir["error"]["status"], &palantir["error"]["code"]),
                (&json!(502), &json!("provider_error"))
            );
            assert_eq!((&palantir["error"]["provider"], &palantir["age_seconds"]), (&json!("palantir"), &Value::Null));
        } else {
            assert_eq!(page["partial"], false, "{transcript:#?}");
        }
        match pages {
            2 => {
                purge_all(&weir);
                sim.answers("/api/v2/", 500, &json!({}), "{}");
            }
            4 => sim.forget(),
            _ => {}
        }
    });
    eprintln!("{}", transcript.join("\n"));
    let mut sorted = ids.clone();
    sorted.sort();
    let mut expected = merged(&nine_each());
    assert_ne!(ids, expected, "some came later than they would have");
    expected.sort();
    assert_eq!(sorted, expected, "every session once");
}

#[test]
fn where_nobody_answers_it_is_an_error_and_the_token_stays_good() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    fill(&sim, &nine_each());
    let first = weir.get(&format!("{ALL}&limit=5")).json();
    let next = format!("{ALL}&limit=5&page_token={}", first["next_page_token"].as_str().unwrap());
    purge_all(&weir);
    for path in ["/v2/", "/api/v2/", "/v1/sessions"] {
        sim.answers(path, 500, &json!({}), "{}");
    }
    let answer = weir.get(&next);
    assert_eq!(answer.code(), (502, "provider_error".into()));
    sim.forget();
    assert_eq!(weir.get(&next).json()["sessions"].as_array().unwrap().len(), 5);

    // One is throttled: named so, with its retry time; whoever cannot use a part says so.
    purge_all(&weir);
    sim.answers("/api/v2/", 429, &json!({ "retry-after": "7" }), "{}");
    let part = weir.get(&next);
    let body = part.json();
    assert_eq!((part.status, &body["partial"]), (200, &json!(true)));
    assert_eq!((part.header("cache-control"), &body["total_count"]), (Some("no-store"), &Value::Null));
    let palantir = &body["sources"][2];
    assert_eq!((&palantir["state"], &palantir["error"]["retry_after"]), (&json!("rate_limited"), &json!(7)));
    let denied = weir.get(&format!("{next}&partial=deny"));
    assert_eq!(denied.code(), (503, "provider_rate_limited".into()));
    assert!(denied.header("retry-after").is_some());
}

#[test]
fn an_agent_that_does_not_exist_is_named_once_and_ends() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    let mut states = Vec::new();
    fill(&sim, &nine_each());
    let path = "/v1/sessions?agent=agt_load_0&agent=agt_nobody";
    let (ids, _) = walk(&weir, path, 4, |page| {
        states.push(format!("{} {}", page["sources"][1]["state"], page["sources"][1]["error"]["code"]));
    });
    assert_eq!(ids.len(), 9);
    assert_eq!(states, ["\"failed\" \"agent_not_found\"", "\"exhausted\" null", "\"exhausted\" null"]);
    assert_eq!(weir.get("/v1/sessions?agent=agt_nobody").code(), (404, "agent_not_found".into()));
}

#[test]
fn filters_are_applied_to_every_source() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    let made = |from: u32| (0..9).map(|n| (n != 4).then_some(from - 2 * n)).collect::<Vec<_>>();
    let sources = vec![made(50), made(49), made(48), made(47)];
    fill(&sim, &sources);
    let (low, high) = (40, 45);
    let path = format!("{ALL}&created_after=2024-01-01T00:00:{low}Z&created_before=2024-01-01T01:00:{high}%2B01:00");
    for limit in [1, 3, 100] {
        let (ids, _) = walk(&weir, &path, limit, |page| assert_eq!(page["total_count"], Value::Null));
        let mut expected = Vec::new();
        for (source, made) in sources.iter().enumerate() {
            for (n, made) in made.iter().enumerate().filter(|(_, made)| made.is_some_and(|at| at >= low && at < high)) {
                expected.push((std::cmp::Reverse(*made), source, id(source, n)));
            }
        }
        expected.sort();
        assert!(expected.len() > 6);
        assert_eq!(ids, expected.into_iter().map(|(.., id)| id).collect::<Vec<_>>(), "limit {limit}");
    }
    let (ended, _) = walk(&weir, &format!("{ALL}&status=ended"), 2, |_| {});
    assert_eq!(ended.len(), 9, "{ended:?}");
    assert_eq!(weir.get(&format!("{ALL}&enabled=true")).code(), (400, "invalid_request".into()));
    let enabled = weir.get("/v1/sessions?agent=agt_load_0&agent=agt_load_1&enabled=true&limit=100").json();
    assert!(enabled["sessions"].as_array().unwrap().iter().all(|s| s["status"] == "active"), "{enabled}");
}

#[test]
fn fields_are_cut_and_a_token_minds_neither_them_nor_the_limit() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    fill(&sim, &nine_each());
    let page = weir.get(&format!("{ALL}&limit=2&fields=status,id")).json();
    let keys = |session: &Value| session.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(page["sessions"].as_array().unwrap().iter().all(|s| keys(s) == ["id", "status"]), "{page}");
    let token = page["next_page_token"].as_str().unwrap();
    let next = weir.get(&format!("{ALL}&limit=3&include=native&page_token={token}")).json();
    let ids: Vec<&str> = next["sessions"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, merged(&nine_each())[2..5]);
    assert!(next["sessions"][0]["native"].is_object());
    let session = weir.get(&format!("{VECTARA}?fields=id,agent")).json();
    assert_eq!(keys(&session), ["id", "agent"]);
    let elsewhere = weir.get(&format!("/v1/sessions?agent=agt_load_0&page_token={token}"));
    assert_eq!(elsewhere.code(), (400, "invalid_request".into()));
    let other_filter = weir.get(&format!("{ALL}&created_after=2024-01-01T00:00:00Z&page_token={token}"));
    assert_eq!(other_filter.code(), (400, "invalid_request".into()));
}

#[test]
fn totals_add_up_where_all_are_known() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    // The documents' agent tells its total, and a provider without pages has told all.
    let path = "/v1/sessions?agent=agt_customer_support&provider=agenthuman";
    let body = weir.get(&format!("{path}&limit=1")).json();
    assert_eq!(body["total_count"], 127 + 1000);
    let mut sources = nine_each();
    // Before all others, so that this source ends while the other goes on.
    sources[3] = vec![None; 9];
    fill(&sim, &sources);
    purge_all(&weir);
    let ended = |page: &Value| page["sources"][1]["state"] == "exhausted";
    let mut seen = false;
    let (ids, _) = walk(&weir, path, 60, |page| {
        seen |= ended(page);
        assert_eq!(page["total_count"], 127 + 9, "also when a source has ended: {}", page["sources"]);
    });
    assert!(seen && ids.len() == 127 + 9, "{}", ids.len());
}

#[test]
fn all_sources_share_one_deadline() {
    let sim = Sim::start();
    let timeout = |file: &str, config: Config| config.edit(file, "  timeout: 10s", "  timeout: 2s");
    let mut config = small_pages();
    for file in ["providers/vectara.yaml", "providers/palantir.yaml", "providers/agenthuman.yaml"] {
        config = timeout(file, config);
    }
    let weir = config.start(&sim);
    fill(&sim, &nine_each());
    // Two hang, and one takes long for each of its pages.
    sim.fault("/api/v2/", 0, &json!({ "kind": "hang" }));
    sim.fault("agt_load_1", 0, &json!({ "kind": "hang" }));
    sim.plan(&json!({ "path": "agt_load_0", "latency_ms": 900 }));
    let begun = Instant::now();
    let body = weir.get(&format!("{ALL}&limit=100")).json();
    let took = begun.elapsed();
    assert!(took.as_secs_f64() < 3.9, "{took:?} for sources that have 2 s together");
    let codes: Vec<String> = (0..4).map(|n| body["sources"][n]["error"]["code"].to_string()).collect();
    assert_eq!(codes[1..], ["\"provider_timeout\"", "\"provider_timeout\"", "null"], "{codes:?}");
    assert!(body["sessions"].as_array().unwrap().len() >= 9);
}

const LIMITED: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: few, keys: [ { sha256: SHA(few) } ], rate_limit: ten, provider_rate_limits: { agenthuman: two } }\n";

fn limited() -> Config {
    small_pages().clients(LIMITED).edit(
        "weir.yaml",
        "rate_limits:\n",
        "rate_limits:\n  ten: { requests: 10, per: 1h }\n  two: { requests: 2, per: 1h }\n",
    )
}

#[test]
fn a_list_costs_its_sources_and_a_batch_its_distinct_ids() {
    let sim = Sim::start();
    let weir = limited().start(&sim);
    fill(&sim, &nine_each());
    let left = |answer: &Answer| {
        answer.header("ratelimit").unwrap_or_default().split(';').nth(1).unwrap_or_default().to_owned()
    };
    let list = weir.get_as("few", &format!("{ALL}&limit=1"));
    assert_eq!((list.status, left(&list).as_str()), (200, "r=6"), "four sources");
    assert!(list.header("ratelimit").unwrap().contains("\"two\";r=1"), "{:?}", list.header("ratelimit"));
    let batch = weir.get_as(
        "few",
        "/v1/sessions:batchGet?id=agenthuman:sess_1&id=sess_1&id=nobody:1&id=vectara:agt_load_0:ase_0_1",
    );
    assert_eq!((batch.status, left(&batch).as_str()), (200, "r=3"), "three distinct ids, one of them of nobody");
    let over = weir.get_as("few", "/v1/sessions:batchGet?id=agenthuman:sess_1&id=vectara:agt_load_0:ase_0_1");
    assert_eq!(over.code(), (429, "rate_limit_exceeded".into()));
    assert!(over.json()["detail"].as_str().unwrap().contains("\"two\""), "{}", over.json());
    let ids: String = (0..11).map(|n| format!("&id=vectara:agt_load_0:ase_0_{n}")).collect();
    let never = weir.get_as("few", &format!("/v1/sessions:batchGet?{}", &ids[1..]));
    assert_eq!(never.code(), (400, "invalid_request".into()));
    assert_eq!(left(&never), "r=3", "a request that is refused takes nothing");
}

#[test]
fn a_batch_answers_each_id_in_order_and_asks_for_each_once() {
    let sim = Sim::start();
    let weir = Config::shipped().clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: two, keys: [ { sha256: SHA(two) } ], providers: [agenthuman] }\n").start(&sim);
    let ids = [
        "agenthuman:sess_01H3Z8G9YR3K2N5M6P7Q8W4T",
        "vectara:agt_customer_support:ase_customer_support_001",
        "sess_01H3Z8G9YR3K2N5M6P7Q8W4T",
        "vectara:agt_customer_support:ase_none",
        "nobody:x",
        "not an id",
        "vectara:agt_customer_support:ase_customer_support_001",
    ];
    let query: String = ids.map(|id| format!("id={}&", id.replace(' ', "%20"))).concat();
    let path = format!("/v1/sessions:batchGet?{query}");
    let answer = weir.get(&path);
    assert_eq!(answer.status, 200);
    let body = answer.json();
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    for (at, code) in [(3, "session_not_found"), (4, "provider_not_found"), (5, "invalid_request")] {
        assert_eq!((&results[at]["session"], &results[at]["error"]["code"]), (&Value::Null, &json!(code)));
    }
    assert_eq!(results[0]["session"], example("agenthuman/get").1);
    assert_eq!((&results[2]["session"], &results[0]["error"]), (&results[0]["session"], &Value::Null));
    assert_eq!(results[6]["session"], results[1]["session"]);
    assert_eq!(sim.calls(), 3, "{}", sim.counts());
    assert!(weir.get(&path).header("cache-status").unwrap().starts_with("weir; hit"));
    assert_eq!(sim.calls(), 3);
    let theirs = weir.get_as("two", &format!("{path}&fields=id")).json();
    assert_eq!(theirs["results"][0]["session"], json!({ "id": ids[0] }));
    assert_eq!(theirs["results"][1]["error"]["code"], "forbidden");
    let metric =
        "weir_http_requests_total{client=\"open\",provider=\"several\",route=\"/v1/sessions:batchGet\",status=\"200\"}";
    assert_eq!(weir.metric(metric), 2.0);
}

#[test]
fn a_batch_asks_a_provider_for_so_many_at_a_time_and_one_failure_stays_one() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    sim.fault("ase_agt_load_0_7", 0, &json!({ "kind": "reset" }));
    sim.plan(&json!({ "path": "agt_load_0", "latency_ms": 1000 }));
    let ids: String = (1..=40).map(|n| format!("id=vectara:agt_load_0:ase_agt_load_0_{n}&")).collect();
    let (http, path) = (weir.http, format!("/v1/sessions:batchGet?{ids}"));
    let asking = std::thread::spawn(move || send(http, "GET", &path, &[("X-API-Key", "open")]));
    until("sixteen are asked for", || sim.calls() >= 16);
    // One more is the retry of the one that was reset.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!((16..=18).contains(&sim.calls()), "{} at a time", sim.calls());
    let body = asking.join().unwrap().json();
    let failed: Vec<&Value> = body["results"].as_array().unwrap().iter().filter(|r| r["session"].is_null()).collect();
    assert_eq!((failed.len(), &failed[0]["error"]["code"]), (1, &json!("provider_error")));
}
