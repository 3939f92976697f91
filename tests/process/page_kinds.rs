//! Lists of providers with pages of every kind: each session comes once, or the list says that it is not complete.

use crate::lists::{purge_all, walk};
use crate::paged_provider::*;
use crate::support::*;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};

/// The numbers of sessions around the provider's page of seven, and some primes.
const LENGTHS: [usize; 11] = [0, 1, 6, 7, 8, 13, 14, 15, 17, 21, 29];

fn path(kind: &str) -> String {
    format!("/v1/sessions?provider={kind}")
}

fn start() -> (Sim, PagedProvider, Weir) {
    let (sim, provider) = (Sim::start(), PagedProvider::start());
    let weir = provider.config().start(&sim);
    (sim, provider, weir)
}

/// Walks a list. Returns its ids, and why its source failed at last.
fn walk_to_end(weir: &Weir, path: &str, limit: usize) -> (Vec<String>, Option<String>) {
    let mut failure = None;
    let (ids, _) = walk(weir, path, limit, |page| {
        let failed = page["sources"].as_array().unwrap().iter().find_map(|source| source["error"]["detail"].as_str());
        assert_eq!(page["partial"], failed.is_some(), "{page}");
        failure = failed.map(str::to_owned).or(failure.take());
    });
    (ids, failure)
}

#[test]
fn a_list_of_any_length_gives_every_session_once_with_every_kind_of_pages() {
    let (_sim, provider, weir) = start();
    for (kind, ..) in KINDS {
        for length in LENGTHS {
            provider.fill(length);
            for limit in [1, 3, 7, 8, 100] {
                purge_all(&weir);
                let (mut total, mut pages) = (Value::Null, 0);
                let (found, _) = walk(&weir, &path(kind), limit, |page| {
                    assert_eq!(page["partial"], false, "{kind}, {length} sessions, limit {limit}: {page}");
                    (total, pages) = (page["total_count"].clone(), pages + 1);
                });
                assert_eq!(found, ids(kind, 0..length), "{kind}, {length} sessions, limit {limit}");
                assert_eq!(total, json!(length), "{kind}, {length} sessions, limit {limit}");
                assert!(pages <= length / limit + 2, "{kind}, {length} sessions, limit {limit}: {pages} pages");
            }
        }
    }
}

#[test]
fn lists_with_every_kind_of_pages_merge() {
    let (sim, provider, weir) = start();
    let count = 20_usize;
    let others: Vec<Value> = (0..9)
        .map(|n| {
            json!({ "session_id": format!("sess_{n}"), "status": "ended",
                         "created_at": format!("2024-01-07T22:{:02}:30Z", 39 - n) })
        })
        .collect();
    sim.set_sessions(&json!({ "": others }));
    let mut runner = TestRunner::new(Cases { cases: 60, failure_persistence: None, ..Cases::default() });
    let case = (prop::sample::subsequence(KINDS.to_vec(), 1..4), 0..count, 1_usize..12);
    let result = runner.run(&case, |(kinds, length, limit)| {
        provider.fill(length);
        purge_all(&weir);
        let sources: String = kinds.iter().map(|(kind, ..)| format!("&provider={kind}")).collect();
        let (found, failure) = walk_to_end(&weir, &format!("/v1/sessions?provider=agenthuman{sources}"), limit);
        prop_assert_eq!(failure, None);
        for (kind, ..) in &kinds {
            let own = |id: &&String| id.starts_with(&format!("{kind}:"));
            prop_assert_eq!(found.iter().filter(own).cloned().collect::<Vec<_>>(), ids(kind, 0..length));
        }
        prop_assert_eq!(found.len(), 9 + kinds.len() * length);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// What happens to a list while a client reads it.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// This many new sessions come first, as in a list with the newest session first.
    Added(usize),
    /// The session at this position disappears.
    Removed(usize),
    Nothing,
}

#[test]
fn a_list_that_changes_while_it_is_read_gives_every_session_once_or_says_that_it_failed() {
    let (_sim, provider, weir) = start();
    let changes = prop_oneof![
        (1_usize..10).prop_map(Change::Added),
        (0_usize..30).prop_map(Change::Removed),
        Just(Change::Nothing),
        Just(Change::Nothing),
    ];
    let kinds: Vec<&str> = KINDS
        .iter()
        .map(|kind| kind.0)
        .filter(|kind| kind.starts_with("number") || kind.starts_with("offset"))
        .collect();
    let case =
        (prop::sample::select(kinds), 0_usize..40, 1_usize..12, any::<bool>(), prop::collection::vec(changes, 12));
    let mut runner = TestRunner::new(Cases { cases: 200, failure_persistence: None, ..Cases::default() });
    let (complete, failed) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let result = runner.run(&case, |(kind, length, limit, purge, changes)| {
        provider.fill(length);
        purge_all(&weir);
        let (mut changes, mut added, mut removed) = (changes.into_iter(), 1000, Vec::new());
        let mut failure = false;
        let (found, _) = walk(&weir, &path(kind), limit, |page| {
            failure |= page["partial"] == true;
            provider.set(|listing| match changes.next().unwrap_or(Change::Nothing) {
                Change::Added(count) => {
                    for _ in 0..count {
                        listing.sessions.insert(0, added);
                        added += 1;
                    }
                }
                // A page number does not show that a session was removed and another one was added.
                Change::Removed(at) if at < listing.sessions.len() && (added == 1000 || kind.starts_with("offset")) => {
                    removed.push(listing.sessions.remove(at));
                }
                _ => {}
            });
            if purge {
                purge_all(&weir);
            }
        });
        let mut distinct = found.clone();
        distinct.sort();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), found.len(), "{}: a session came twice: {:?}", kind, found);
        let stayed: Vec<String> = ids(kind, (0..length).filter(|session| !removed.contains(session)));
        let is_complete = stayed.iter().all(|id| found.contains(id));
        prop_assert!(is_complete || failure, "{}: sessions are missing, and nothing says so: {:?}", kind, found);
        if failure {
            failed.set(failed.get() + 1);
        } else {
            complete.set(complete.get() + 1);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(complete.get() > 40 && failed.get() > 5, "{} complete, {} failed", complete.get(), failed.get());
}
