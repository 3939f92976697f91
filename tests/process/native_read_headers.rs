//! Request headers of reads: those that are part of the question reach the provider, and each value has its own response.

use crate::scripted_provider::*;
use crate::support::*;
use serde_json::json;

const NATIVE: &str = "/agenthuman/v1/sessions/sess_H";
const UNIFIED: &str = "/v1/sessions/sess_H";

fn start(sim: &Sim, provider: &ScriptedProvider) -> Weir {
    let headers =
        "headers: { fixed: { api-version: '2', x-own: weir }, key: [Api-Version, beta], pass: [x-sdk-lang] }\nids:";
    unlimited()
        .edit("providers/agenthuman.yaml", "\nids:", &format!("\n{headers}"))
        .env("AGENTHUMAN_BASE_URL", &provider.base_url())
        .start(sim)
}

fn body(title: &str) -> Vec<u8> {
    json!({ "session": { "session_id": "sess_H", "status": "started", "metadata": { "title": title } } })
        .to_string()
        .into()
}

fn get(weir: &Weir, target: &str, headers: &[(&str, &str)]) -> Response {
    let mut all = vec![("X-API-Key", "open")];
    all.extend_from_slice(headers);
    send(weir.http, "GET", target, &all)
}

fn title(response: &Response) -> String {
    let json = response.json();
    let session = json.get("session").unwrap_or(&json);
    session["metadata"]["title"].as_str().unwrap_or_else(|| panic!("{}: {json}", response.status)).to_owned()
}

#[test]
fn the_headers_of_a_native_read_reach_the_provider_over_every_version() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    provider.respond(200, "", &body("x"));
    let headers =
        [("API-Version", "7"), ("Beta", "a"), ("beta", "b"), ("X-Sdk-Lang", "go"), ("X-Other", "no"), ("x-own", "me")];
    for target in [NATIVE, "/agenthuman/v1/sessions", "/agenthuman/v1/sessions?filter=x"] {
        for (version, response) in on_every_version(&weir, "GET", target, &headers) {
            assert_eq!(status(&response), if target == NATIVE { 200 } else { 502 }, "{version}: {response}");
            for head in provider.take_heads() {
                for line in ["api-version: 7", "beta: a, b", "x-sdk-lang: go", "x-own: weir"] {
                    assert!(head.contains(&format!("\n{line}\r")), "{version}, {line}: {head}");
                }
                assert!(!head.contains("x-other") && !head.contains("x-own: me"), "{version}: {head}");
            }
        }
    }
    // Without the client's headers: the provider's own default, not the file's.
    get(&weir, "/agenthuman/v1/sessions/sess_I", &[]);
    let head = provider.take_heads().remove(0);
    assert!(head.contains("x-own: weir") && !head.contains("api-version") && !head.contains("beta"), "{head}");
    // Every unified read has the fixed headers, and none of the client's.
    provider.respond(200, "", br#"{"sessions":[]}"#);
    for target in ["/v1/sessions/sess_J", "/v1/sessions:batchGet?id=sess_K", "/v1/sessions?provider=agenthuman"] {
        get(&weir, target, &headers);
        let head = provider.take_heads().remove(0);
        assert!(head.contains("\napi-version: 2\r") && head.contains("x-own: weir"), "{target}: {head}");
        assert!(!head.contains("beta") && !head.contains("x-sdk-lang"), "{target}: {head}");
    }
}

#[test]
fn each_value_of_a_header_has_its_own_response() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    let native: [&[(&str, &str)]; 5] = [
        &[],
        &[("api-version", "1")],
        &[("api-version", "")],
        &[("api-version", "1"), ("beta", "1")],
        &[("beta", "1"), ("x-sdk-lang", "go")],
    ];
    for (number, headers) in native.iter().enumerate() {
        provider.respond(200, "Vary: api-version, BETA\r\n", &body(&number.to_string()));
        let response = get(&weir, NATIVE, headers);
        assert_eq!(title(&response), number.to_string(), "{headers:?}");
        let vary = response.header("vary").unwrap();
        assert!(vary.ends_with(", api-version, beta") && vary.starts_with("Authorization, "), "{vary}");
    }
    provider.respond(200, "", &body("unified"));
    assert_eq!(title(&get(&weir, UNIFIED, native[1])), "unified");
    provider.respond(200, "", &body("new"));
    provider.take_heads();
    for (number, headers) in native.iter().enumerate() {
        assert_eq!(title(&get(&weir, NATIVE, headers)), number.to_string(), "from the cache: {headers:?}");
    }
    // The fixed value is the question of the unified API. What is not part of the question has no entry of its own.
    for same in [&[("api-version", "2")][..], &[("Api-Version", " 2 "), ("x-sdk-lang", "rust")]] {
        assert_eq!(title(&get(&weir, NATIVE, same)), "unified");
    }
    assert_eq!(title(&get(&weir, NATIVE, &[("beta", "1"), ("x-sdk-lang", "rust")])), "4");
    assert!(provider.take_heads().is_empty());
    // A write invalidates all of them.
    send(weir.http, "DELETE", NATIVE, &[("X-API-Key", "open")]);
    for headers in native {
        assert_eq!(title(&get(&weir, NATIVE, headers)), "new", "{headers:?}");
    }
    assert_eq!(title(&get(&weir, UNIFIED, &[])), "new");
}

#[test]
fn a_response_that_varies_by_a_header_outside_of_the_key_is_not_stored() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    for (vary, stored) in [("api-version", true), ("X-Sdk-Lang", false), ("beta, *", false), ("beta, accept", true)] {
        provider.respond(200, &format!("Vary: {vary}\r\n"), &body("x"));
        provider.take_heads();
        for _ in 0..2 {
            assert_eq!(get(&weir, NATIVE, &[("x-sdk-lang", "go")]).status, 200);
        }
        assert_eq!(provider.take_heads().len(), if stored { 1 } else { 2 }, "{vary}");
        assert_eq!(weir.post_admin("/cache/purge", "{\"all\": true}").status, 200);
    }
}

#[test]
fn too_long_headers_of_a_native_read_are_400() {
    let (sim, provider) = (Sim::start(), ScriptedProvider::start());
    let weir = start(&sim, &provider);
    provider.respond(200, "", &body("x"));
    let long = "x".repeat(4097);
    let response = get(&weir, NATIVE, &[("beta", &long)]);
    assert_eq!(response.status, 400);
    assert!(String::from_utf8_lossy(&response.body).contains("api-version, beta, x-sdk-lang"));
    assert!(provider.take_heads().is_empty());
    assert_eq!(get(&weir, NATIVE, &[("beta", &long[..4000])]).status, 200);
}

#[test]
fn the_header_of_a_credential_cannot_be_a_header_of_reads() {
    let headers = "headers:\n  pass: [X-Team-Key]\n\nids:\n";
    let vectara = |config: Config| config.edit("providers/vectara.yaml", "\nids:\n", &format!("\n{headers}"));
    let own = "clients:\n  - { id: a, keys: [ { sha256: SHA(a) } ], credentials: { vectara: { header: x-team-key, value: own } } }\n";
    for (config, faults) in [
        (vectara(Config::shipped()), 0),
        (vectara(Config::shipped()).clients(own), 1),
        (vectara(Config::shipped()).edit("providers/vectara.yaml", "header: x-api-key", "header: x-team-key"), 1),
    ] {
        let (code, lines) = config.check();
        let found = lines.iter().filter(|line| line.contains("is the header of this credential")).count();
        assert_eq!((code, found), (i32::from(faults > 0), faults), "{lines:?}");
    }
}
