//! Merged lists and batches: no session is lost or repeated, whatever the sources do.

use crate::support::*;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};
use std::cell::Cell;
use std::time::Instant;

const AGENTS: [&str; 3] = ["agt_load_0", "agt_load_1", "ri.aip-agents..agent.00000000-0000-0000-0000-000000000002"];
const ALL: &str = "/v1/sessions?agent=agt_load_0&agent=agt_load_1&agent=palantir%3Ari.aip-agents..agent.00000000-0000-0000-0000-000000000002&provider=agenthuman";

/// Returns session `n` in the native shape of a source; `created` is in seconds after the start of 2024.
fn native(source: usize, n: usize, created: Option<u32>) -> Value {
    let created = created.map(|second| format!("2024-01-01T00:00:{second:02}Z"));
    match source {
        0 | 1 => {
            json!({ "key": format!("ase_{source}_{n}"), "agent_key": AGENTS[source], "created_at": created, "enabled": n.is_multiple_of(2) })
        }
        2 => {
            json!({ "rid": format!("ri.aip-agents..session.{n}"), "agentRid": AGENTS[2], "metadata": { "createdTime": created } })
        }
        _ => json!({ "session_id": format!("sess_{n}"), "created_at": created, "status": "ended" }),
    }
}

fn id(source: usize, n: usize) -> String {
    match source {
        0 | 1 => format!("vectara:{}:ase_{source}_{n}", AGENTS[source]),
        2 => format!("palantir:{}:ri.aip-agents..session.{n}", AGENTS[2]),
        _ => format!("agenthuman:sess_{n}"),
    }
}

/// For each source, the creation times of its sessions in the order of its list.
type Sources = Vec<Vec<Option<u32>>>;

fn fill(sim: &Sim, sources: &Sources) {
    let mut all = serde_json::Map::new();
    for (source, times) in sources.iter().enumerate() {
        let sessions: Vec<Value> = times.iter().enumerate().map(|(n, created)| native(source, n, *created)).collect();
        all.insert(AGENTS.get(source).copied().unwrap_or_default().to_owned(), sessions.into());
    }
    sim.set_sessions(&Value::Object(all));
}

/// Merges the sources by a second, independent implementation of the contract: the newest next session comes first, a
/// session without a time precedes all others, and among equals the source that the request names first wins.
fn merged(sources: &Sources) -> Vec<String> {
    let mut read = vec![0; sources.len()];
    let mut all = Vec::new();
    loop {
        let heads = (0..sources.len()).filter_map(|source| Some((source, *sources[source].get(read[source])?)));
        let rank = |created: Option<u32>| created.map_or(u32::MAX, |second| second);
        let Some((source, _)) = heads.min_by_key(|(source, created)| (std::cmp::Reverse(rank(*created)), *source))
        else {
            return all;
        };
        all.push(id(source, read[source]));
        read[source] += 1;
    }
}

/// Follows the page tokens to the end. Returns all ids in order and the number of pages; `inspect` gets each page before
/// the next one is requested.
pub(crate) fn walk(weir: &Weir, path: &str, limit: usize, mut inspect: impl FnMut(&Value)) -> (Vec<String>, usize) {
    let (mut ids, mut token) = (Vec::new(), String::new());
    for page in 1..1000 {
        let response = weir.get(&format!("{path}&limit={limit}{token}"));
        assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
        let body = response.json();
        let sessions = body["sessions"].as_array().unwrap();
        assert!(sessions.len() <= limit);
        ids.extend(sessions.iter().map(|session| session["id"].as_str().unwrap().to_owned()));
        inspect(&body);
        match body["next_page_token"].as_str() {
            Some(next) => token = format!("&page_token={next}"),
            None => return (ids, page),
        }
    }
    panic!("the page walk does not end");
}

/// A configuration with small provider pages, so that each source has several.
fn small_pages() -> Config {
    Config::shipped().edit("providers/vectara.yaml", "max_limit: 100", "max_limit: 3").edit(
        "providers/palantir.yaml",
        "max_limit: 100",
        "max_limit: 4",
    )
}

#[test]
fn every_session_appears_once_and_in_order_for_any_sources_and_limit() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    let times = || prop::collection::vec(prop::option::weighted(0.8, 0_u32..6), 0..11);
    let sources = (prop::collection::vec(times(), 4), any::<[bool; 4]>()).prop_map(|(mut sources, sort)| {
        for (source, _) in sources.iter_mut().zip(sort).filter(|(_, sort)| *sort) {
            source.sort_by_key(|created| std::cmp::Reverse(created.unwrap_or(u32::MAX)));
        }
        sources
    });
    let limit = prop_oneof![Just(1_usize), 2_usize..9, Just(100)];
    let longest = Cell::new(0);
    let mut runner = TestRunner::new(Cases { cases: 40, failure_persistence: None, ..Cases::default() });
    let result = runner.run(&(sources, limit), |(sources, limit)| {
        fill(&sim, &sources);
        purge_all(&weir);
        let (ids, pages) = walk(&weir, ALL, limit, |page| assert_eq!(page["partial"], false));
        longest.set(longest.get().max(pages));
        prop_assert_eq!(ids, merged(&sources));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(longest.get() > 5, "the longest walk had only {} pages", longest.get());
}

pub(crate) fn purge_all(weir: &Weir) {
    assert_eq!(weir.post_admin("/cache/purge", "{\"all\": true}").status, 200);
}

/// Four sources of nine sessions each, whose creation times alternate between the sources.
fn nine_each() -> Sources {
    (0..4).map(|source| (0..9).map(|n| Some(50 - 4 * n - source)).collect()).collect()
}

#[test]
fn a_failed_source_is_named_and_resumes_where_it_stopped() {
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
                sim.set_response("/api/v2/", 500, &json!({}), "{}");
            }
            4 => sim.clear_faults(),
            _ => {}
        }
    });
    eprintln!("{}", transcript.join("\n"));
    let mut sorted = ids.clone();
    sorted.sort();
    let mut expected = merged(&nine_each());
    assert_ne!(ids, expected, "some sessions come later than without the failure");
    expected.sort();
    assert_eq!(sorted, expected, "every session appears once");
}

#[test]
fn if_every_source_fails_the_list_fails_and_its_page_token_stays_valid() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    fill(&sim, &nine_each());
    let first = weir.get(&format!("{ALL}&limit=5")).json();
    let next = format!("{ALL}&limit=5&page_token={}", first["next_page_token"].as_str().unwrap());
    purge_all(&weir);
    for path in ["/v2/", "/api/v2/", "/v1/sessions"] {
        sim.set_response(path, 500, &json!({}), "{}");
    }
    let response = weir.get(&next);
    assert_eq!(response.code(), (502, "provider_error".into()));
    sim.clear_faults();
    assert_eq!(weir.get(&next).json()["sessions"].as_array().unwrap().len(), 5);

    // The response names a throttled source and its retry time. `partial=deny` turns a partial list into an error.
    purge_all(&weir);
    sim.set_response("/api/v2/", 429, &json!({ "retry-after": "7" }), "{}");
    let partial = weir.get(&next);
    let body = partial.json();
    assert_eq!((partial.status, &body["partial"]), (200, &json!(true)));
    assert_eq!((partial.header("cache-control"), &body["total_count"]), (Some("no-store"), &Value::Null));
    let palantir = &body["sources"][2];
    assert_eq!((&palantir["state"], &palantir["error"]["retry_after"]), (&json!("rate_limited"), &json!(7)));
    let denied = weir.get(&format!("{next}&partial=deny"));
    assert_eq!(denied.code(), (503, "provider_rate_limited".into()));
    assert!(denied.header("retry-after").is_some());
}

#[test]
fn a_missing_agent_fails_on_the_first_page_and_is_exhausted_after_it() {
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
    let times = |from: u32| (0..9).map(|n| (n != 4).then_some(from - 2 * n)).collect::<Vec<_>>();
    let sources = vec![times(50), times(49), times(48), times(47)];
    fill(&sim, &sources);
    let (low, high) = (40, 45);
    let path = format!("{ALL}&created_after=2024-01-01T00:00:{low}Z&created_before=2024-01-01T01:00:{high}%2B01:00");
    for limit in [1, 3, 100] {
        let (ids, _) = walk(&weir, &path, limit, |page| assert_eq!(page["total_count"], Value::Null));
        let mut expected = Vec::new();
        for (source, times) in sources.iter().enumerate() {
            let in_range = |created: &Option<u32>| created.is_some_and(|second| second >= low && second < high);
            for (n, created) in times.iter().enumerate().filter(|(_, created)| in_range(created)) {
                expected.push((std::cmp::Reverse(*created), source, id(source, n)));
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
fn times_that_cannot_be_read_are_named_instead_of_a_silently_empty_list() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    // Five of seven vectara sessions have a time in another format, on three provider pages; two have none at all.
    let odd: Vec<Value> = (0..7)
        .map(|n| {
            let created = if n < 5 { json!("01.02.2024 10:00") } else { Value::Null };
            json!({ "key": format!("ase_{n}"), "agent_key": AGENTS[0], "created_at": created, "enabled": true })
        })
        .collect();
    let ended = json!({ "session_id": "sess_0", "created_at": "2024-01-01T00:00:00Z", "status": "ended", "ended_at": "yesterday", "expiration": "soon" });
    sim.set_sessions(&json!({ AGENTS[0]: odd, "": [ended] }));
    let path = "/v1/sessions?agent=agt_load_0&provider=agenthuman&limit=100";
    for _ in ["from the provider", "from the cache"] {
        let page = weir.get(path).json();
        assert_eq!(page["sessions"].as_array().unwrap().len(), 8);
        let warning = |field, sessions| json!({ "code": "unreadable_time", "field": field, "sessions": sessions });
        assert_eq!(page["sources"][0]["warnings"], json!([warning("created_at", 5)]), "{page}");
        assert_eq!(page["sources"][1]["warnings"], json!([warning("ended_at", 1), warning("expires_at", 1)]));
        let filtered = weir.get(&format!("{path}&created_after=2020-01-01T00:00:00Z")).json();
        assert_eq!(filtered["sessions"].as_array().unwrap().len(), 1);
        assert_eq!(filtered["sources"][0]["warnings"], page["sources"][0]["warnings"], "{filtered}");
    }
    // A page that reads one of the three provider pages counts the sessions of that one.
    let first = weir.get("/v1/sessions?agent=agt_load_0&limit=1").json();
    assert_eq!(first["sources"][0]["warnings"][0]["sessions"], 3);
    let metric = "weir_mapping_failures_total{field=\"created_at\",provider=\"vectara\",reason=\"wrong_type\"}";
    assert!(weir.metric(metric) >= 5.0, "{}", weir.metrics());
}

#[test]
fn fields_may_be_repeated_or_separated_by_commas() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let batch = "/v1/sessions:batchGet?id=agenthuman%3Asess_01H3Z8G9YR3K2N5M6P7Q8W4T".to_owned();
    for (path, separator) in [(VECTARA, '?'), ("/v1/sessions?agent=agt_customer_support", '&'), (&batch, '&')] {
        let sessions = |fields: &str| {
            let body = weir.get(&format!("{path}{separator}{fields}")).json();
            let sessions = [&body["sessions"][0], &body["results"][0]["session"], &body];
            sessions.into_iter().find(|session| session["id"].is_string()).unwrap_or(&body).clone()
        };
        let expected = sessions("fields=id,status,created_at");
        assert_eq!(expected.as_object().unwrap().len(), 3, "{expected}");
        for same in [
            "fields=id&fields=status&fields=created_at",
            "fields=created_at&fields=id,status",
            "fields=id&fields=id&fields=status&fields=created_at",
        ] {
            assert_eq!(sessions(same), expected, "{path} {same}");
        }
        for wrong in ["fields=id&fields=nothing", "fields=id&fields=", "fields="] {
            assert_eq!(sessions(wrong)["code"], "invalid_request", "{path} {wrong}");
        }
    }
}

#[test]
fn fields_selects_members_and_a_page_token_works_with_other_fields_and_limits() {
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
    let other_sources = weir.get(&format!("/v1/sessions?agent=agt_load_0&page_token={token}"));
    assert_eq!(other_sources.code(), (400, "invalid_request".into()));
    let other_filter = weir.get(&format!("{ALL}&created_after=2024-01-01T00:00:00Z&page_token={token}"));
    assert_eq!(other_filter.code(), (400, "invalid_request".into()));
}

#[test]
fn total_count_is_the_sum_if_every_source_knows_its_total() {
    let sim = Sim::start();
    let weir = small_pages().start(&sim);
    // This agent's provider sends a total. The other provider has no pages, so its list is complete.
    let path = "/v1/sessions?agent=agt_customer_support&provider=agenthuman";
    let body = weir.get(&format!("{path}&limit=1")).json();
    assert_eq!(body["total_count"], 127 + 1000);
    let mut sources = nine_each();
    // Sessions without a time come first, so this source ends before the other one.
    sources[3] = vec![None; 9];
    fill(&sim, &sources);
    purge_all(&weir);
    let exhausted = |page: &Value| page["sources"][1]["state"] == "exhausted";
    let mut seen = false;
    let (ids, _) = walk(&weir, path, 60, |page| {
        seen |= exhausted(page);
        assert_eq!(page["total_count"], 127 + 9, "also after a source is exhausted: {}", page["sources"]);
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
    // Two sources hang, and one is slow with each of its pages.
    sim.plan_fault("/api/v2/", 0, &json!({ "kind": "hang" }));
    sim.plan_fault("agt_load_1", 0, &json!({ "kind": "hang" }));
    sim.plan(&json!({ "path": "agt_load_0", "latency_ms": 900 }));
    let started = Instant::now();
    let body = weir.get(&format!("{ALL}&limit=100")).json();
    let took = started.elapsed();
    assert!(took.as_secs_f64() < 3.9, "{took:?} for sources that share a deadline of 2 s");
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
fn a_list_costs_one_request_per_source_and_a_batch_one_per_distinct_id() {
    let sim = Sim::start();
    let weir = limited().start(&sim);
    fill(&sim, &nine_each());
    let left = |response: &Response| {
        response.header("ratelimit").unwrap_or_default().split(';').nth(1).unwrap_or_default().to_owned()
    };
    let list = weir.get_as("few", &format!("{ALL}&limit=1"));
    assert_eq!((list.status, left(&list).as_str()), (200, "r=6"), "four sources");
    assert!(list.header("ratelimit").unwrap().contains("\"two\";r=1"), "{:?}", list.header("ratelimit"));
    let batch = weir.get_as(
        "few",
        "/v1/sessions:batchGet?id=agenthuman:sess_1&id=sess_1&id=nobody:1&id=vectara:agt_load_0:ase_0_1",
    );
    assert_eq!((batch.status, left(&batch).as_str()), (200, "r=3"), "three distinct ids, one of an unknown provider");
    let limited = weir.get_as("few", "/v1/sessions:batchGet?id=agenthuman:sess_1&id=vectara:agt_load_0:ase_0_1");
    assert_eq!(limited.code(), (429, "rate_limit_exceeded".into()));
    assert!(limited.json()["detail"].as_str().unwrap().contains("\"two\""), "{}", limited.json());
    let ids: String = (0..11).map(|n| format!("&id=vectara:agt_load_0:ase_0_{n}")).collect();
    let invalid = weir.get_as("few", &format!("/v1/sessions:batchGet?{}", &ids[1..]));
    assert_eq!(invalid.code(), (400, "invalid_request".into()));
    assert_eq!(left(&invalid), "r=3", "an invalid request costs nothing");
}

#[test]
fn a_batch_returns_each_id_in_order_and_fetches_each_session_once() {
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
    let response = weir.get(&path);
    assert_eq!(response.status, 200);
    let body = response.json();
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    for (at, code) in [(3, "session_not_found"), (4, "provider_not_found"), (5, "invalid_request")] {
        assert_eq!((&results[at]["session"], &results[at]["error"]["code"]), (&Value::Null, &json!(code)));
    }
    assert_eq!(results[0]["session"], example("agenthuman/get").1);
    assert_eq!((&results[2]["session"], &results[0]["error"]), (&results[0]["session"], &Value::Null));
    assert_eq!(results[6]["session"], results[1]["session"]);
    assert_eq!(sim.calls(), 3, "{}", sim.call_counts());
    assert!(weir.get(&path).header("cache-status").unwrap().starts_with("weir; hit"));
    assert_eq!(sim.calls(), 3);
    let restricted = weir.get_as("two", &format!("{path}&fields=id")).json();
    assert_eq!(restricted["results"][0]["session"], json!({ "id": ids[0] }));
    assert_eq!(restricted["results"][1]["error"]["code"], "forbidden");
    let metric =
        "weir_http_requests_total{client=\"open\",provider=\"several\",route=\"/v1/sessions:batchGet\",status=\"200\"}";
    assert_eq!(weir.metric(metric), 2.0);
}

#[test]
fn a_batch_sends_sixteen_calls_at_a_time_and_one_failed_call_fails_one_id() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    sim.plan_fault("ase_agt_load_0_7", 0, &json!({ "kind": "reset" }));
    sim.plan(&json!({ "path": "agt_load_0", "latency_ms": 1000 }));
    let ids: String = (1..=40).map(|n| format!("id=vectara:agt_load_0:ase_agt_load_0_{n}&")).collect();
    let (http, path) = (weir.http, format!("/v1/sessions:batchGet?{ids}"));
    let batch = std::thread::spawn(move || send(http, "GET", &path, &[("X-API-Key", "open")]));
    wait_until("sixteen calls are in flight", || sim.calls() >= 16);
    // The retry of the reset call may come in addition.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!((16..=18).contains(&sim.calls()), "{} calls at a time", sim.calls());
    let body = batch.join().unwrap().json();
    let failed: Vec<&Value> = body["results"].as_array().unwrap().iter().filter(|r| r["session"].is_null()).collect();
    assert_eq!((failed.len(), &failed[0]["error"]["code"]), (1, &json!("provider_error")));
}

#[test]
fn the_etag_of_a_list_depends_on_the_requested_fields() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let sources_and_tag = |fields: &str| {
        let response = weir.get(&format!("/v1/agents/agt_customer_support/sessions?fields={fields}"));
        (response.json()["sources"].clone(), response.header("etag").unwrap().to_owned())
    };
    // The tag also depends on the age, so only two lists of the same age show that the fields matter.
    wait_until("two lists have the same age", || {
        let (one, other) = (sources_and_tag("id"), sources_and_tag("id,status"));
        let same_age = one.0 == other.0;
        assert!(!same_age || one.1 != other.1, "{one:?}");
        same_age
    });
}
