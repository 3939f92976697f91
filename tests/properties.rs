//! Property tests: which requests share a cache entry, and that no value leaves its position in a URL template.

// Tests fail by panics.
#![allow(clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use weir::testing::{
    ConfigSource, Key, KeyParts, Operation, Provider, ProviderIdentity, ProviderQuery, QueryTarget, Snapshot, Values,
};

/// Clients that use the shared credential of a provider, that have their own, and that forward one from each request.
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

/// The credential of each client, in the order of `CLIENTS`.
const CREDENTIALS: [&str; 8] =
    ["provider's", "provider's", "one", "two", "one", "one in another header", "forwarded", "forwarded"];

/// The credentials that clients with `mode: forward` send.
const FORWARDED: [&str; 3] = ["one", "two", "Bearer one"];

/// Loads the shipped configuration with `CLIENTS` and one base URL for all providers.
fn snapshot(base_url: &str) -> Arc<Snapshot> {
    let directory = TempDir::new().expect("a directory");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config"), directory.path());
    std::fs::write(directory.path().join("clients.yaml"), CLIENTS).expect("written");
    let mut source = ConfigSource::new(directory.path());
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
    let loaded = Snapshot::load(&source, None, &[7; 32], weir::testing::now());
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

const BASE_URLS: [&str; 4] = [
    "https://provider.example",
    "http://provider.example",
    "https://provider.example:8443",
    "https://provider.example/eu",
];
static SNAPSHOTS: LazyLock<Vec<Arc<Snapshot>>> = LazyLock::new(|| BASE_URLS.iter().map(|url| snapshot(url)).collect());

/// A request after routing. Ids are arbitrary texts here. Numbers are indexes into the tables above.
#[derive(Debug, Clone, PartialEq)]
struct RequestCase {
    base_url: usize,
    client: usize,
    provider: usize,
    list: bool,
    agent: String,
    session: String,
    limit: Option<u32>,
    page_token: Option<String>,
    enabled: Option<bool>,
    /// A query of the client instead of the query that the provider's file describes.
    query: Option<String>,
    forwarded: usize,
}

/// Short texts of the characters that could join two parts of a key, so that near collisions are common.
fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[a1:/%?&=#.;@\\\\\\n\\x00 |\u{e4}-]{1,4}").expect("a pattern")
}

fn request_case() -> impl Strategy<Value = RequestCase> {
    let ids = (text(), text());
    let page = (proptest::option::of(1..4_u32), proptest::option::of(text()), proptest::option::of(any::<bool>()));
    let query_and_credential = (proptest::option::weighted(0.2, text()), 0..FORWARDED.len());
    (0..BASE_URLS.len(), 0..CREDENTIALS.len(), 0..3_usize, any::<bool>(), ids, page, query_and_credential).prop_map(
        |(base_url, client, provider, list, (agent, session), (limit, page_token, enabled), (query, forwarded))| {
            RequestCase {
                base_url,
                client,
                provider,
                list,
                agent,
                session,
                limit,
                page_token,
                enabled,
                query,
                forwarded,
            }
        },
    )
}

/// Two requests that differ in a few parts or in none.
fn pair() -> impl Strategy<Value = (RequestCase, RequestCase)> {
    (request_case(), request_case(), any::<u16>()).prop_map(|(one, other, mask)| {
        let take = |bit: u32| mask & (1 << bit) != 0 && mask & (1 << (bit + 8)) != 0;
        let mut mixed = one.clone();
        if take(0) {
            mixed.base_url = other.base_url;
        }
        if take(1) {
            (mixed.client, mixed.forwarded) = (other.client, other.forwarded);
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

/// Returns the provider at a position.
fn provider_at(snapshot: &Snapshot, position: usize) -> &Provider {
    snapshot.providers.iter().nth(position).expect("a provider")
}

/// Builds the query for a request; `None` if an id is a dot segment, which Weir refuses.
fn build_query(case: &RequestCase) -> Option<ProviderQuery> {
    let values = Values {
        agent: Some(&case.agent),
        session: (!case.list).then_some(&*case.session),
        limit: case.limit,
        page_token: case.page_token.as_deref(),
        enabled: case.enabled,
        ..Values::default()
    };
    let snapshot = &SNAPSHOTS[case.base_url];
    let forwarded = FORWARDED[case.forwarded].as_bytes();
    let headers = [("x-weir-key", &b"weir"[..]), ("x-api-key", forwarded), ("authorization", forwarded)];
    let headers = headers.into_iter().collect();
    let client = snapshot.clients.ids().nth(case.client).expect("a client");
    let provider = snapshot.providers.ids().nth(case.provider).expect("a provider");
    let operation = if case.list { Operation::ListSessions } else { Operation::GetSession };
    let identity = ProviderIdentity::of(snapshot, client, provider, &headers).expect("permitted");
    let result = ProviderQuery::new(snapshot, QueryTarget { client, provider, operation }, identity, &values);
    let is_dot_segment = |text: &str| matches!(text, "." | "..");
    match result {
        Ok(provider_query) => Some(match &case.query {
            Some(query) => provider_query.with_query(query).expect("an operation"),
            None => provider_query,
        }),
        // Nothing else is refused.
        Err(_) if is_dot_segment(&case.agent) || is_dot_segment(&case.session) => None,
        Err(problem) => panic!("{problem:?}"),
    }
}

/// Returns what identifies a cache entry by the contract: provider, base URL, credential, operation, and every value that
/// Weir sends. Written without Weir's code for keys; which values Weir sends is in the providers' files.
fn expected_identity(case: &RequestCase) -> impl PartialEq + std::fmt::Debug {
    let name = provider_at(&SNAPSHOTS[0], case.provider).name.to_string();
    let part = |sent: bool, value: &dyn std::fmt::Debug| sent.then(|| format!("{value:?}"));
    // A query of the client replaces the query that the file describes.
    let described = case.query.is_none();
    let paged = case.list && name != "agenthuman" && described;
    let credential = match CREDENTIALS[case.client] {
        "forwarded" => format!("forwarded {}", FORWARDED[case.forwarded]),
        fixed => fixed.to_owned(),
    };
    (
        (name.clone(), BASE_URLS[case.base_url], credential, case.list, case.query.clone()),
        part(name != "agenthuman", &case.agent),
        part(!case.list, &case.session),
        part(paged, &case.limit),
        part(paged, &case.page_token),
        part(case.list && name == "vectara" && described, &case.enabled),
    )
}

/// Prints values that contain secrets with `{:?}`.
#[test]
fn debug_output_contains_no_secret() {
    let directory = TempDir::new().expect("a directory");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config"), directory.path());
    let mut clients = CLIENTS.replace("value: one", "value: canary-written-out");
    let account = serde_json::json!({
        "client_email": "canary", "private_key_id": "canary", "token_uri": "https://canary.example/t",
        "private_key": include_str!("keys/service-account.pem"),
    });
    let account = serde_json::Value::from(account.to_string()).to_string();
    for (number, form) in [
        "headers: { x-a: canary-a, x-b: canary-b }",
        "basic: { username: canary-user, password: canary-password }",
        "query: key, value: canary-in-the-query",
        "jwt: { algorithm: HS256, key: canary-secret, issuer: i, claims: { a: canary-claim } }",
        &format!("jwt: {{ service_account: {account} }}"),
        "aws_sigv4: { access_key_id: AKID, secret_access_key: canary-secret, session_token: canary-token, region: r, service: s }",
    ]
    .iter()
    .enumerate()
    {
        let key = format!("{number:064}");
        clients += &format!("  - {{ id: form-{number}, keys: [ {{ sha256: \"{key}\" }} ], credentials: {{ vectara: {{ {form} }} }} }}\n");
    }
    std::fs::write(directory.path().join("clients.yaml"), &clients).expect("written");
    let mut source = ConfigSource::new(directory.path());
    for name in ["VECTARA_API_KEY", "PALANTIR_TOKEN", "AGENTHUMAN_API_KEY", "WEIR_ADMIN_TOKEN", "WEIR_PAGE_TOKEN_KEY"] {
        source.overlay.insert(name.into(), format!("canary-{name}"));
    }
    let loaded = weir::testing::load_config(&source);
    let mut printed = vec![format!("{:?} {:?}", loaded.config, loaded.faults)];
    let mut faults = weir::testing::Faults::default();
    let env = |name: &str| Some(format!("canary-{name}"));
    let document = weir::testing::parse_yaml(&"clients.yaml".into(), &clients, &env, &mut faults);
    printed.push(format!("{document:?}"));
    let snapshot = Snapshot::load(&source, None, &[7; 32], weir::testing::now()).expect("it loads");
    for access in snapshot.clients.iter().flat_map(|client| &client.access).flatten() {
        printed.push(format!("{:?}", access.credential));
    }
    let body = serde_json::json!({ "session_id": "canary-id", "status": "started", "x": "canary",
        "daily_room": { "url": "u", "name": "n", "token": "canary-token" } });
    let provider = snapshot.provider("agenthuman").expect("shipped");
    let session = provider.mapping.map(&body, weir::testing::now(), &mut Vec::new()).expect("mapped");
    printed.push(format!("{session:?}"));
    let bytes = bytes::Bytes::from(body.to_string());
    let header = (http::header::AUTHORIZATION, http::HeaderValue::from_static("canary-header"));
    let reply = weir::testing::ProviderReply {
        status: 200,
        headers: [header.clone()].into_iter().collect(),
        body: bytes.clone(),
    };
    let request = weir::testing::ProviderRequest {
        path_and_query: "/x?key=canary".into(),
        owner: "digest".into(),
        credential: vec![header.clone()],
        conditions: vec![header.clone()],
        form: Some("client_secret=canary".into()),
    };
    let mut headers = weir::testing::ResponseHeaders::default();
    headers.extend([header]);
    let response = weir::testing::Response { status: 200, headers, body: bytes.clone().into() };
    let view = weir::testing::View {
        body: bytes,
        items: Vec::new(),
        etag: http::HeaderValue::from_static("canary"),
        encoded: weir::testing::EncodedForms::default(),
    };
    printed.push(format!("{reply:?} {request:?} {response:?} {view:?}"));
    for text in printed {
        assert!(!text.contains("canary") && !text.contains("PRIVATE"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_requests_share_a_cache_entry_exactly_if_every_part_of_their_identity_is_equal((one, other) in pair()) {
        let (Some(first), Some(second)) = (build_query(&one), build_query(&other)) else { return Ok(()) };
        let share = first.key == second.key;
        prop_assert_eq!(share, expected_identity(&one) == expected_identity(&other), "{:?}\n{:?}", one, other);
    }

    /// Also if two sets of parts are equal when they are concatenated.
    #[test]
    fn different_parts_make_different_keys(one in proptest::collection::vec("[a:1\\n0-3]{0,3}", 5), at in 0..4_usize, cut in 0..4_usize, other in proptest::collection::vec("[a:1\\n0-3]{0,3}", 5)) {
        let key = |parts: &[String]| Key::of(KeyParts {
            provider: &parts[0], base_url: &parts[1], credential: &parts[2], operation: &parts[3], path_and_query: &parts[4], headers: "" });
        // The same characters, with the boundary between two parts at another position.
        let mut moved = one.clone();
        let joined = format!("{}{}", one[at], one[at + 1]);
        let cut = cut.min(joined.len());
        (moved[at], moved[at + 1]) = (joined[..cut].to_owned(), joined[cut..].to_owned());
        for other in [&moved, &other] {
            prop_assert_eq!(key(&one) == key(other), one == *other, "{:?} {:?}", one, other);
        }
    }

    /// No value that a client or a provider sends changes the host, the path segments or the parameters of a template.
    #[test]
    fn no_value_leaves_its_position_in_the_url_template(case in request_case()) {
        // A query of the client replaces the template.
        let case = RequestCase { query: None, ..case };
        let Some(provider_query) = build_query(&case) else { return Ok(()) };
        let provider = provider_at(&SNAPSHOTS[case.base_url], case.provider);
        // The URL as Weir sends it, and as a URL parser reads it.
        let sent = provider.target.path(&provider_query.path_and_query);
        let url = format!("{}{sent}", provider.target.origin());
        let parsed: http::Uri = url.parse().expect("a URL");
        let base: http::Uri = provider.base_url.parse().expect("a URL");
        prop_assert_eq!((parsed.scheme(), parsed.authority()), (base.scheme(), base.authority()), "{}", url);
        prop_assert_eq!(parsed.path_and_query().map(http::uri::PathAndQuery::as_str), Some(&*sent), "part of the URL is a fragment");
        let path = parsed.path().strip_prefix(provider.target.path("").as_str()).expect("below the base URL");
        let query = parsed.query().unwrap_or_default();
        let name = &*provider.name;
        let segments: Vec<&str> = path.split('/').collect();
        let expected = match (name, case.list) {
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
        // The query has exactly the parameters that the file names and that have a value, in the order of the file.
        let (limit, page) = (case.limit.is_some(), case.page_token.is_some());
        let written = match (name, case.list) {
            ("vectara", true) => vec![("limit", limit), ("page_key", page), ("enabled", case.enabled.is_some())],
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
