//! Providers whose caching headers contradict themselves, and responses without a body.

use crate::scripted_provider::*;
use crate::support::*;

const NATIVE: &str = "/agenthuman/v1/sessions/sess_N";
const UNIFIED: &str = "/v1/sessions/agenthuman:sess_N";

fn start(provider: &ScriptedProvider) -> (Sim, Weir) {
    let sim = Sim::start();
    let weir = unlimited().env("AGENTHUMAN_BASE_URL", &provider.base_url()).start(&sim);
    (sim, weir)
}

fn session() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples/agenthuman/get.native.json");
    std::fs::read(path).unwrap()
}

#[test]
fn a_304_with_another_entity_tag_does_not_refresh_the_stored_session() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider);
    provider.respond(200, "ETag: \"e1\"\r\nCache-Control: no-cache\r\n", &session());
    assert_eq!(weir.get(UNIFIED).status, 200);
    provider.take_heads();
    provider.respond(304, "ETag: \"e2\"\r\n", b"");
    weir.get(UNIFIED);
    let heads = provider.take_heads();
    assert_eq!(heads.len(), 2, "{heads:#?}");
    assert!(heads[0].contains("if-none-match: \"e1\"") && !heads[1].contains("if-none-match"), "{heads:#?}");
    provider.respond(304, "ETag: \"e1\"\r\n", b"");
    assert_eq!(weir.get(UNIFIED).status, 200);
    assert_eq!(provider.take_heads().len(), 1, "the same entity tag confirms the stored session");
}

#[test]
fn the_first_max_age_and_the_first_age_of_a_provider_count() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider);
    provider.respond(200, "Cache-Control: max-age=5, max-age=600\r\n", &session());
    assert_eq!(weir.get(UNIFIED).header("cache-control"), Some("private, max-age=5"));
    provider.respond(200, "Cache-Control: max-age=20\r\nAge: 15, 0\r\n", &session());
    let aged = weir.get("/v1/sessions/agenthuman:sess_aged");
    assert_eq!((aged.header("age"), aged.header("cache-control")), (Some("15"), Some("private, max-age=20")));
}

#[test]
fn a_response_with_vary_star_is_never_served_again() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider);
    for vary in ["Vary: *\r\n", "Vary: accept, *\r\n", "Vary: accept\r\nVary: *\r\n"] {
        provider.respond(200, vary, &session());
        for _ in 0..2 {
            let response = weir.get(UNIFIED);
            let status = response.header("cache-status").unwrap();
            assert!(status.contains("fwd=") && !status.contains("hit"), "{vary}: {status}");
        }
        assert_eq!(provider.take_heads().len(), 2, "{vary}");
    }
}

#[test]
fn a_described_read_that_is_204_has_no_length_and_no_media_type() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider);
    provider.respond(204, "", b"");
    for method in ["GET", "HEAD"] {
        for (version, response) in on_every_version(&weir, method, NATIVE, &[]) {
            assert_eq!(status(&response), 204, "{version}: {response}");
            let head = response.to_ascii_lowercase();
            assert!(!head.contains("content-length") && !head.contains("\ncontent-type:"), "{version}: {response}");
        }
    }
}

#[test]
fn a_304_without_a_condition_does_not_reach_a_client() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start(&provider);
    provider.respond(304, "ETag: \"e1\"\r\n", b"");
    for headers in [&[][..], &[("If-None-Match", "\"other\"")]] {
        for (version, response) in on_every_version(&weir, "GET", NATIVE, headers) {
            assert_eq!(status(&response), 502, "{version}: {response}");
        }
    }
}
