//! Lists of providers that repeat their pages, or give no way to the rest of a list.

use crate::lists::{purge_all, walk};
use crate::support::*;
use serde_json::{Value, json};

const REPEATING: &str = "/v1/sessions?agent=agt_load_0";
const WITH_HEALTHY: &str = "/v1/sessions?agent=agt_load_0&provider=agenthuman";

/// Returns the id of session `n` of the repeating source.
fn id(n: usize) -> String {
    format!("vectara:agt_load_0:ase_{n}")
}

/// Makes the simulator respond to list requests of `agt_load_0`: each page has two sessions, and names the page after it.
/// The first page is the one of the token `start`. Returns the ids of all pages in their order.
fn pages(sim: &Sim, pages: &[(&str, Option<&str>)]) -> Vec<String> {
    let page = |number: usize, next: &Option<&str>| {
        let session = |n: usize| {
            json!({ "key": format!("ase_{n}"), "agent_key": "agt_load_0", "enabled": true,
                    "created_at": format!("2024-01-01T00:{:02}:00Z", 59 - n) })
        };
        let sessions = [session(2 * number), session(2 * number + 1)];
        json!({ "sessions": sessions, "metadata": { "page_key": next } }).to_string()
    };
    // The plans of single page tokens come first.
    for (number, (token, next)) in pages.iter().enumerate().skip(1) {
        sim.set_response(&format!("page_key={token}"), 200, &json!({}), &page(number, next));
    }
    sim.set_response("/v2/agents/agt_load_0/sessions", 200, &json!({}), &page(0, &pages[0].1));
    (0..2 * pages.len()).map(id).collect()
}

/// Asserts that the last page of a walk names the source as failed, and that no other page does.
fn assert_failed_at_the_end(reports: &[Value], cause: &str) {
    let (last, before) = reports.split_last().unwrap();
    assert_eq!((&last["partial"], &last["sources"][0]["state"]), (&json!(true), &json!("failed")), "{last}");
    let error = &last["sources"][0]["error"];
    assert_eq!(
        (&error["code"], &error["provider"]),
        (&json!("provider_invalid_response"), &json!("vectara")),
        "{last}"
    );
    assert!(error["detail"].as_str().unwrap().contains(cause), "{error}");
    assert_eq!((&last["next_page_token"], &last["total_count"]), (&Value::Null, &Value::Null));
    assert!(before.iter().all(|page| page["partial"] == false), "{before:#?}");
}

#[test]
fn a_circle_of_page_tokens_gives_every_session_once_and_ends() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let circles: [&[(&str, Option<&str>)]; 5] = [
        &[("start", Some("A")), ("A", Some("A"))],
        &[("start", Some("A")), ("A", Some("B")), ("B", Some("A"))],
        &[("start", Some("A")), ("A", Some("B")), ("B", Some("C")), ("C", Some("A"))],
        &[("start", Some("A")), ("A", Some("B")), ("B", Some("C")), ("C", Some("D")), ("D", Some("A"))],
        &[("start", Some("A")), ("A", Some("B")), ("B", Some("C")), ("C", Some("D")), ("D", Some("D"))],
    ];
    for circle in circles {
        // Pages of one session cross the provider's pages in many responses, pages of 100 in one.
        for limit in [1, 3, 100] {
            sim.clear_faults();
            purge_all(&weir);
            let expected = pages(&sim, circle);
            let mut reports = Vec::new();
            let (ids, _) = walk(&weir, REPEATING, limit, |page| reports.push(page.clone()));
            assert_eq!(ids, expected, "{circle:?}, limit {limit}");
            assert_failed_at_the_end(&reports, "circle");
        }
    }
}

#[test]
fn a_provider_that_ignores_page_tokens_gives_every_session_once() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    for limit in [1, 2, 100] {
        sim.clear_faults();
        purge_all(&weir);
        let expected = pages(&sim, &[("start", Some("always"))]);
        let mut reports = Vec::new();
        let (ids, _) = walk(&weir, REPEATING, limit, |page| reports.push(page.clone()));
        assert_eq!(ids, expected, "limit {limit}");
        assert_failed_at_the_end(&reports, "same page");
    }
    let denied = weir.get(&format!("{REPEATING}&partial=deny"));
    assert_eq!(denied.code(), (502, "provider_invalid_response".into()));
}

#[test]
fn a_source_that_repeats_its_pages_does_not_starve_another() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let healthy: Vec<Value> = (0..9)
        .map(|n| json!({ "session_id": format!("sess_{n}"), "created_at": "2023-01-01T00:00:00Z", "status": "ended" }))
        .collect();
    sim.set_sessions(&json!({ "": healthy }));
    for circle in [&[("start", Some("A"))][..], &[("start", Some("A")), ("A", Some("B")), ("B", Some("A"))]] {
        for limit in [1, 4, 100] {
            sim.clear_faults();
            purge_all(&weir);
            let mut expected = pages(&sim, circle);
            expected.extend((0..9).map(|n| format!("agenthuman:sess_{n}")));
            let (ids, pages) = walk(&weir, WITH_HEALTHY, limit, |_| ());
            assert_eq!(ids, expected, "{circle:?}, limit {limit}");
            assert!(pages <= expected.len() + 2, "{pages} pages for {} sessions", expected.len());
            // No session of the repeating source passes this filter, so its pages are read without any session.
            let filtered = format!("{WITH_HEALTHY}&created_before=2023-06-01T00:00:00Z");
            assert_eq!(walk(&weir, &filtered, limit, |_| ()).0, expected[expected.len() - 9..]);
        }
    }
}

/// A provider file whose list has a largest page size and says what `next` and `query` say.
fn agenthuman(next: &str, query: &str) -> Config {
    Config::shipped().edit(
        "providers/agenthuman.yaml",
        "    request: GET /v1/sessions\n    items: $.sessions\n",
        &format!("    request: GET /v1/sessions\n    items: $.sessions\n    max_limit: 4\n{query}{next}"),
    )
}

#[test]
fn a_full_page_without_a_next_page_is_not_complete() {
    let sim = Sim::start();
    let weir = agenthuman("    next: none\n", "    query: { limit: \"{limit}\" }\n").start(&sim);
    let fill = |count: usize| {
        sim.clear_faults();
        let session = |n| json!({ "session_id": format!("sess_{n}"), "created_at": null, "status": "ended" });
        sim.set_response(
            "/v1/sessions",
            200,
            &json!({}),
            &json!({ "sessions": (0..count).map(session).collect::<Vec<_>>() }).to_string(),
        );
        purge_all(&weir);
        weir.get("/v1/sessions?provider=agenthuman").json()
    };
    for (count, partial, total) in
        [(0, false, json!(0)), (3, false, json!(3)), (4, true, Value::Null), (5, true, Value::Null)]
    {
        let page = fill(count);
        assert_eq!(page["sessions"].as_array().unwrap().len(), count);
        assert_eq!((&page["partial"], &page["total_count"]), (&json!(partial), &total), "{count} sessions: {page}");
        assert_eq!(page["next_page_token"], Value::Null);
        assert_eq!(page["sources"][0]["state"], if partial { "failed" } else { "fresh" });
    }
}

#[test]
fn a_list_with_pages_must_name_its_next_page() {
    for (config, message) in [
        (agenthuman("", ""), "next: none"),
        (agenthuman("    next: none\n", "    query: { page: \"{page_token}\" }\n"), "{page_token} needs next"),
        (agenthuman("    next: $.next\n", ""), "must send {page_token}"),
    ] {
        let (code, lines) = config.check();
        assert_eq!(code, 1, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("agenthuman.yaml") && line.contains(message)), "{lines:#?}");
    }
    for config in [
        agenthuman("    next: none\n", ""),
        agenthuman("    next: $.next\n", "    query: { page: \"{page_token}\" }\n").edit(
            "examples/agenthuman/list.unified.json",
            "\"total_count\": 2",
            "\"total_count\": null",
        ),
    ] {
        let (code, lines) = config.check();
        assert_eq!(code, 0, "{lines:#?}");
    }
}
