//! What must hold whatever comes in, tried with many generated inputs: who may share an answer.

// A test may fail: that is what it does.
#![allow(clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use weir::cache::{Key, KeyParts};
use weir::config::load::Source;
use weir::question::{Asking, Question};
use weir::runtime::snapshot::Snapshot;
use weir::template::Values;

/// Clients that share a provider's credential, have their own, or have the same one by another way.
const CLIENTS: &str = r#"
clients:
  - { id: shared-1, keys: [ { sha256: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ] }
  - { id: shared-2, keys: [ { sha256: "baaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], reveal_secrets: true }
  - { id: own-1, keys: [ { sha256: "caaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], credentials: {
      vectara: { header: x-api-key, value: one }, palantir: { bearer: one }, agenthuman: { header: x-api-key, value: one } } }
  - { id: own-2, keys: [ { sha256: "daaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], credentials: {
      vectara: { header: x-api-key, value: two }, palantir: { bearer: two }, agenthuman: { header: x-api-key, value: two } } }
  - { id: own-1-again, keys: [ { sha256: "eaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], credentials: {
      vectara: { header: x-api-key, value: one }, palantir: { bearer: one }, agenthuman: { header: x-api-key, value: one } } }
  - { id: own-1-elsewhere, keys: [ { sha256: "faaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], credentials: {
      vectara: { header: x-other-key, value: one }, palantir: { header: x-other-key, value: one }, agenthuman: { bearer: one } } }
  - { id: brings, keys: [ { sha256: "fbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], credentials: {
      vectara: { mode: forward, header: x-api-key }, palantir: { mode: forward, header: authorization }, agenthuman: { mode: forward, header: x-api-key } } }
  - { id: brings-too, keys: [ { sha256: "fcaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" } ], credentials: {
      vectara: { mode: forward, header: x-api-key }, palantir: { mode: forward, header: authorization }, agenthuman: { mode: forward, header: x-api-key } } }
"#;

/// Which credential each of them asks with.
const CREDENTIALS: [&str; 8] =
    ["provider's", "provider's", "one", "two", "one", "one in another header", "brought", "brought"];

/// What clients bring that bring their own.
const BROUGHT: [&str; 3] = ["one", "two", "Bearer one"];

/// The shipped configuration with these clients, at two places that differ in the scheme or the path.
fn snapshot(base_url: &str) -> Arc<Snapshot> {
    let directory = TempDir::new().expect("a directory");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config"), directory.path());
    std::fs::write(directory.path().join("clients.yaml"), CLIENTS).expect("written");
    let mut source = Source::new(directory.path());
    for (name, value) in [
        ("VECTARA_BASE_URL", base_url),
        ("PALANTIR_BASE_URL", base_url),
        ("AGENTHUMAN_BASE_URL", base_url),
        ("VECTARA_API_KEY", "shared"),
        ("PALANTIR_TOKEN", "shared"),
        ("AGENTHUMAN_API_KEY", "shared"),
    ] {
        source.overlay.insert(name.into(), value.into());
    }
    let loaded = Snapshot::load(&source, None, &[7; 32], weir::runtime::now());
    Arc::new(loaded.unwrap_or_else(|faults| panic!("{faults:?}")))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("read").map(|entry| entry.expect("entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

const PLACES: [&str; 4] = [
    "https://provider.example",
    "http://provider.example",
    "https://provider.example:8443",
    "https://provider.example/eu",
];
static SNAPSHOTS: LazyLock<Vec<Arc<Snapshot>>> = LazyLock::new(|| PLACES.iter().map(|place| snapshot(place)).collect());

/// What a client asks, as the router would have it: any text may stand in an id here.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    place: usize,
    client: usize,
    provider: usize,
    list: bool,
    agent: String,
    session: String,
    limit: Option<u32>,
    page_token: Option<String>,
    enabled: Option<bool>,
    /// A query of its own, which the provider's file does not describe.
    query: Option<String>,
    brought: usize,
}

/// Short texts from the characters that could run parts together, so that near misses are common.
fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[a1:/%?&=#.;@\\\\\\n\\x00 |\u{e4}-]{1,4}").expect("a pattern")
}

fn asked() -> impl Strategy<Value = Asked> {
    let ids = (text(), text());
    let page = (proptest::option::of(1..4_u32), proptest::option::of(text()), proptest::option::of(any::<bool>()));
    let own = (proptest::option::weighted(0.2, text()), 0..BROUGHT.len());
    (0..PLACES.len(), 0..CREDENTIALS.len(), 0..3_usize, any::<bool>(), ids, page, own).prop_map(
        |(place, client, provider, list, (agent, session), (limit, page_token, enabled), (query, brought))| Asked {
            place,
            client,
            provider,
            list,
            agent,
            session,
            limit,
            page_token,
            enabled,
            query,
            brought,
        },
    )
}

/// Another one that differs in few parts, or in none.
fn pair() -> impl Strategy<Value = (Asked, Asked)> {
    (asked(), asked(), any::<u16>()).prop_map(|(one, other, mask)| {
        let take = |bit: u32| mask & (1 << bit) != 0 && mask & (1 << (bit + 8)) != 0;
        let mut mixed = one.clone();
        if take(0) {
            mixed.place = other.place;
        }
        if take(1) {
            (mixed.client, mixed.brought) = (other.client, other.brought);
        }
        if take(2) {
            mixed.provider = other.provider;
        }
        if take(3) {
            mixed.list = other.list;
        }
        if take(4) {
            mixed.agent = other.agent;
        }
        if take(5) {
            mixed.session = other.session;
        }
        if take(6) {
            (mixed.page_token, mixed.query) = (other.page_token, other.query);
        }
        if take(7) {
            (mixed.limit, mixed.enabled) = (other.limit, other.enabled);
        }
        (one, mixed)
    })
}

fn question(asked: &Asked) -> Option<Question> {
    let values = Values {
        agent: Some(&asked.agent),
        session: (!asked.list).then_some(&*asked.session),
        limit: asked.limit,
        page_token: asked.page_token.as_deref(),
        enabled: asked.enabled,
    };
    let snapshot = &SNAPSHOTS[asked.place];
    let brought = BROUGHT[asked.brought].as_bytes();
    let headers = [("x-weir-key", &b"weir"[..]), ("x-api-key", brought), ("authorization", brought)];
    let headers = headers.into_iter().collect();
    let asking = Asking::of(snapshot, asked.client, asked.provider, &headers).expect("permitted");
    let made = Question::new(snapshot, (asked.client, asked.provider), asking, asked.list, &values);
    let dots = |text: &str| matches!(text, "." | "..");
    match made {
        Ok(made) => Some(match &asked.query {
            Some(query) => made.with_query(query).expect("an operation"),
            None => made,
        }),
        // Refused, and nothing else is.
        Err(_) if dots(&asked.agent) || dots(&asked.session) => None,
        Err(problem) => panic!("{problem:?}"),
    }
}

/// What decides, by the contract: provider and place, credential, operation, and all that the provider is told.
/// Kept apart from how Weir makes keys; what a provider is told stands in its file.
fn identity(asked: &Asked) -> impl PartialEq + std::fmt::Debug {
    let name = SNAPSHOTS[0].providers[asked.provider].name.to_string();
    let told = |tell: bool, what: &dyn std::fmt::Debug| tell.then(|| format!("{what:?}"));
    // A query of its own stands in the place of the one that the file describes.
    let described = asked.query.is_none();
    let paged = asked.list && name != "agenthuman" && described;
    let credential = match CREDENTIALS[asked.client] {
        "brought" => format!("brought {}", BROUGHT[asked.brought]),
        fixed => fixed.to_owned(),
    };
    (
        (name.clone(), PLACES[asked.place], credential, asked.list, asked.query.clone()),
        told(name != "agenthuman", &asked.agent),
        told(!asked.list, &asked.session),
        told(paged, &asked.limit),
        told(paged, &asked.page_token),
        told(asked.list && name == "vectara" && described, &asked.enabled),
    )
}

/// What a developer's `{:?}` would print of everything that has held a secret.
#[test]
fn debug_output_shows_no_secret() {
    let directory = TempDir::new().expect("a directory");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config"), directory.path());
    let clients = CLIENTS.replace("value: one", "value: canary-written-out");
    std::fs::write(directory.path().join("clients.yaml"), &clients).expect("written");
    let mut source = Source::new(directory.path());
    for name in ["VECTARA_API_KEY", "PALANTIR_TOKEN", "AGENTHUMAN_API_KEY", "WEIR_ADMIN_TOKEN", "WEIR_PAGE_TOKEN_KEY"] {
        source.overlay.insert(name.into(), format!("canary-{name}"));
    }
    let loaded = weir::config::load::load(&source);
    let mut printed = vec![format!("{:?} {:?}", loaded.config, loaded.faults)];
    let mut faults = weir::config::faults::Faults::default();
    let env = |name: &str| Some(format!("canary-{name}"));
    let document = weir::config::tree::parse(&"clients.yaml".into(), &clients, &env, &mut faults);
    printed.push(format!("{document:?}"));
    let snapshot = Snapshot::load(&source, None, &[7; 32], weir::runtime::now()).expect("it loads");
    for access in snapshot.clients.iter().flat_map(|client| &client.access).flatten() {
        printed.push(format!("{:?}", access.credential));
    }
    let body = serde_json::json!({ "session_id": "canary-id", "status": "started", "x": "canary",
        "daily_room": { "url": "u", "name": "n", "token": "canary-token" } });
    let provider = snapshot.provider("agenthuman").expect("shipped");
    let session = provider.mapping.map(&body, weir::runtime::now(), &mut Vec::new()).expect("mapped");
    printed.push(format!("{session:?}"));
    let bytes = bytes::Bytes::from(body.to_string());
    let header = (http::header::AUTHORIZATION, http::HeaderValue::from_static("canary-header"));
    let reply = weir::exchange::ProviderReply {
        status: 200,
        headers: [header.clone()].into_iter().collect(),
        body: bytes.clone(),
    };
    let request = weir::exchange::ProviderRequest {
        path_and_query: "/".into(),
        credential: Some(header.clone()),
        conditions: vec![header.clone()],
        form: Some("client_secret=canary".into()),
    };
    let mut headers = weir::lines::Lines::default();
    headers.extend([header]);
    let answer = weir::exchange::Answer { status: 200, headers, body: bytes.clone().into() };
    let view = weir::model::View { body: bytes, items: Vec::new(), etag: http::HeaderValue::from_static("canary") };
    printed.push(format!("{reply:?} {request:?} {answer:?} {view:?}"));
    for text in printed {
        assert!(!text.contains("canary"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Section 3 of the contract: two requests share an entry exactly if all of these are the same.
    #[test]
    fn two_requests_share_an_entry_only_if_every_part_is_the_same((one, other) in pair()) {
        let (Some(first), Some(second)) = (question(&one), question(&other)) else { return Ok(()) };
        let share = first.key == second.key;
        prop_assert_eq!(share, identity(&one) == identity(&other), "{:?}\n{:?}", one, other);
    }

    /// Whatever text is in the parts, and wherever one ends and the next begins.
    #[test]
    fn no_two_sets_of_parts_make_the_same_key(one in proptest::collection::vec("[a:1\\n0-3]{0,3}", 5), at in 0..4_usize, cut in 0..4_usize, other in proptest::collection::vec("[a:1\\n0-3]{0,3}", 5)) {
        let key = |parts: &[String]| Key::of(KeyParts {
            provider: &parts[0], place: &parts[1], credential: &parts[2], operation: &parts[3], path_and_query: &parts[4],
        });
        // The same characters, with the border between two parts elsewhere.
        let mut moved = one.clone();
        let joined = format!("{}{}", one[at], one[at + 1]);
        let cut = cut.min(joined.len());
        (moved[at], moved[at + 1]) = (joined[..cut].to_owned(), joined[cut..].to_owned());
        for other in [&moved, &other] {
            prop_assert_eq!(key(&one) == key(other), one == *other, "{:?} {:?}", one, other);
        }
    }

    /// Nothing that a client or a provider sends can reach another path, host or query than the template's.
    #[test]
    fn no_value_leaves_its_place_in_the_template(asked in asked()) {
        // A query of its own has no template to leave.
        let asked = Asked { query: None, ..asked };
        let Some(made) = question(&asked) else { return Ok(()) };
        let provider = &SNAPSHOTS[asked.place].providers[asked.provider];
        // As it goes out, and as a reader of URLs reads it.
        let sent = provider.target.path(&made.path_and_query);
        let url = format!("{}{sent}", provider.target.origin());
        let read: http::Uri = url.parse().expect("a URL");
        let place: http::Uri = provider.place.parse().expect("a URL");
        prop_assert_eq!((read.scheme(), read.authority()), (place.scheme(), place.authority()), "{}", url);
        prop_assert_eq!(read.path_and_query().map(http::uri::PathAndQuery::as_str), Some(&*sent), "nothing is read as a fragment");
        let path = read.path().strip_prefix(provider.target.prefix()).expect("below the base URL");
        let query = read.query().unwrap_or_default();
        let name = &*provider.name;
        let segments: Vec<&str> = path.split('/').collect();
        let expected = match (name, asked.list) {
            ("vectara", false) => vec!["", "v2", "agents", "*", "sessions", "*"],
            ("vectara", true) => vec!["", "v2", "agents", "*", "sessions"],
            ("palantir", false) => vec!["", "api", "v2", "aipAgents", "agents", "*", "sessions", "*"],
            ("palantir", true) => vec!["", "api", "v2", "aipAgents", "agents", "*", "sessions"],
            (_, false) => vec!["", "v1", "sessions", "*"],
            (_, true) => vec!["", "v1", "sessions"],
        };
        prop_assert_eq!(segments.len(), expected.len(), "{}", path);
        for (segment, expected) in segments.iter().zip(&expected) {
            prop_assert!(*expected == "*" || segment == expected, "{} of {}", segment, path);
            prop_assert!(segment.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\".contains(&b)), "{}", path);
            prop_assert!(*expected != "*" || !matches!(*segment, "." | ".."), "{}", path);
        }
        // Exactly the parameters that the file names and that have a value, in its order.
        let (limit, page) = (asked.limit.is_some(), asked.page_token.is_some());
        let written = match (name, asked.list) {
            ("vectara", true) => vec![("limit", limit), ("page_key", page), ("enabled", asked.enabled.is_some())],
            ("palantir", true) => vec![("preview", true), ("pageSize", limit), ("pageToken", page)],
            ("palantir", false) => vec![("preview", true)],
            _ => Vec::new(),
        };
        let expected: Vec<&str> = written.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let names: Vec<&str> = pairs.map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name)).collect();
        prop_assert_eq!(&names, &expected, "{}", query);
        prop_assert_eq!(query.matches('=').count(), names.len(), "{}", query);
    }
}
