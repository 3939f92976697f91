//! Compressed responses: which are, in which coding, and what their headers say.

use crate::support::*;
use serde_json::Value;
use std::io::Read;
use std::process::Command;
use std::sync::Arc;

const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];
/// A session that is long enough.
const LONG: &str = "/v1/agents/agt_customer_support/sessions/ase_customer_support_001?include=native";
const LIST: &str = "/v1/agents/agt_load_1/sessions?limit=100";
const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], explain: true }\n  - { id: trusted, keys: [ { sha256: SHA(trusted) } ], reveal_secrets: true }\n";

fn decoded(response: &Response) -> Vec<u8> {
    let (encoded, mut plain) = (&response.body[..], Vec::new());
    match response.header("content-encoding") {
        None => return response.body.clone(),
        Some("gzip") => flate2::read::GzDecoder::new(encoded).read_to_end(&mut plain),
        Some("br") => brotli::Decompressor::new(encoded, 4096).read_to_end(&mut plain),
        Some("zstd") => zstd::Decoder::new(encoded).unwrap().read_to_end(&mut plain),
        Some(other) => panic!("{other}"),
    }
    .unwrap();
    plain
}

/// Returns all values of a header, separated by commas.
fn all(response: &Response, name: &str) -> String {
    let values = response.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    values.map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
}

fn varies(response: &Response) -> bool {
    all(response, "vary").contains("Accept-Encoding")
}

/// Returns the coding of a response to a request with these values of `Accept-Encoding`, `None` without one.
fn coding_of(weir: &Weir, target: &str, values: &[&str]) -> Option<String> {
    let headers: Vec<(&str, &str)> = values.iter().map(|value| ("Accept-Encoding", *value)).collect();
    let response = weir.get_with(target, &headers);
    assert_eq!(response.status, 200, "{values:?}");
    response.header("content-encoding").map(str::to_owned)
}

/// Returns how often a body was compressed.
fn made(weir: &Weir) -> f64 {
    CODINGS
        .map(|coding| weir.metric(&format!("weir_compression_duration_seconds_count{{encoding=\"{coding}\"}}")))
        .iter()
        .sum()
}

fn assert_never_compressed(response: &Response, what: &str) {
    assert_eq!(response.header("content-encoding"), None, "{what}");
    assert!(!varies(response), "{what}: it does not depend on Accept-Encoding");
}

#[test]
fn a_list_of_100_is_sent_in_each_coding_and_plain_to_a_client_that_does_not_ask() {
    let sim = Sim::with_options(&["--sessions", "100"]);
    let weir = Config::shipped().start(&sim);
    let plain = weir.get(LIST);
    let sessions = plain.json()["sessions"].clone();
    assert_eq!((plain.header("content-encoding"), sessions.as_array().unwrap().len()), (None, 100));
    assert!(varies(&plain), "another client gets another form of it");
    for coding in CODINGS {
        let response = weir.get_with(LIST, &[("Accept-Encoding", coding)]);
        assert_eq!(response.header("content-encoding"), Some(coding));
        assert_eq!(response.header("content-length"), Some(&*response.body.len().to_string()));
        assert!(response.header("etag").unwrap().ends_with(&format!("-{coding}\"")), "{response:?}");
        assert!(response.body.len() * 8 < plain.body.len(), "{coding}: {} bytes", response.body.len());
        let list: Value = serde_json::from_slice(&decoded(&response)).unwrap();
        assert_eq!(list["sessions"], sessions);
        assert!(varies(&response) && response.header("cache-status").unwrap().starts_with("weir; hit"));
    }
    let saved: f64 = CODINGS
        .map(|coding| weir.metric(&format!("weir_compression_saved_bytes_total{{encoding=\"{coding}\"}}")))
        .iter()
        .sum();
    assert!(saved > 2.5 * plain.body.len() as f64, "{saved}");
}

#[test]
fn every_kind_of_own_response_is_compressed_and_head_has_the_same_headers() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "  min_size: 1KiB", "  min_size: 200").start(&sim);
    let batch = format!("/v1/sessions:batchGet?id={}&id=nothing", AGENTHUMAN.strip_prefix("/v1/sessions/").unwrap());
    for target in [
        LONG,
        VECTARA,
        &format!("{VECTARA}?fields=id,title,status,metadata,agent,created_at"),
        &batch,
        "/v1/providers",
        "/openapi.json",
        "/docs",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
    ] {
        let plain = weir.get(target);
        assert!(varies(&plain) && plain.header("content-encoding").is_none(), "{target}");
        for coding in CODINGS {
            let asked = [("X-API-Key", "open"), ("Accept-Encoding", coding)];
            let response = send(weir.http, "GET", target, &asked);
            assert_eq!((response.status, response.header("content-encoding")), (200, Some(coding)), "{target}");
            assert_eq!(decoded(&response), plain.body, "{target} {coding}");
            assert!(response.body.len() < plain.body.len());
            let tag = plain.header("etag").unwrap().replace("\"", "");
            assert_eq!(response.header("etag").unwrap(), format!("\"{tag}-{coding}\""));
            let head = send(weir.http, "HEAD", target, &asked);
            let of = |response: &Response| {
                let changing = ["date", "x-request-id", "age", "cache-status"];
                let kept = response.headers.iter().filter(|(name, _)| !changing.contains(&&**name));
                kept.cloned().collect::<Vec<_>>()
            };
            assert_eq!((of(&head), head.body.len()), (of(&response), 0), "{target} {coding}");
        }
    }
}

#[test]
fn a_form_gets_a_compressed_batch() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let form = format!("id={0}&id={0}&id={0}", AGENTHUMAN.strip_prefix("/v1/sessions/").unwrap());
    let length = form.len().to_string();
    let head = request(
        "POST",
        "/v1/sessions:batchGet",
        &[
            ("X-API-Key", "open"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", &length),
            ("Accept-Encoding", "gzip"),
        ],
    );
    let response = send_bytes(weir.http, &[&head[..], form.as_bytes()].concat());
    assert_eq!((response.status, response.header("content-encoding")), (200, Some("gzip")));
    let batch: Value = serde_json::from_slice(&decoded(&response)).unwrap();
    assert_eq!(batch["results"].as_array().unwrap().len(), 3);
}

#[test]
fn accept_encoding_is_read_as_the_rfc_says() {
    let weir_sim = Sim::start();
    let weir = Config::shipped().start(&weir_sim);
    let huge = format!("{}gzip", "x;q=0.1,".repeat(5000));
    for (values, expected) in [
        (&[][..], None),
        (&[""], None),
        (&["gzip"], Some("gzip")),
        (&["GZIP"], Some("gzip")),
        (&["x-gzip"], Some("gzip")),
        (&["gzip, deflate, br, zstd"], Some("zstd")),
        (&["gzip, deflate, br"], Some("br")),
        (&["deflate"], None),
        (&["gzip;q=0"], None),
        (&["gzip;q=0.8, br;q=0.2"], Some("gzip")),
        (&["br;q=0.2", "gzip;q=0.8"], Some("gzip")),
        (&["*"], Some("zstd")),
        (&["*;q=0.1, br"], Some("br")),
        (&["zstd;q=0, *"], Some("br")),
        (&["identity, gzip;q=0.9"], None),
        (&["identity;q=0.5, gzip;q=0.9"], Some("gzip")),
        (&["identity;q=0"], None),
        (&["*;q=0"], None),
        (&["gzip;q=nonsense"], None),
        (&[huge.as_str()], None),
    ] {
        assert_eq!(coding_of(&weir, LONG, values).as_deref(), expected, "{values:?}");
    }
    // Too short, unless the client does not accept it as it is.
    assert_eq!(coding_of(&weir, AGENTHUMAN, &["gzip"]), None);
    assert_eq!(coding_of(&weir, AGENTHUMAN, &["identity;q=0, gzip"]).as_deref(), Some("gzip"));
}

#[test]
fn a_304_is_about_the_coding_that_the_client_has() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let plain = weir.get(LONG).header("etag").unwrap().to_owned();
    let in_coding = |coding: &str| plain.replace("\"", "").replacen("", "\"", 1) + "-" + coding + "\"";
    let (gzip, br) = (in_coding("gzip"), in_coding("br"));
    let ask = |accept: &[&str], tag: &str| {
        let mut headers: Vec<(&str, &str)> = accept.iter().map(|accept| ("Accept-Encoding", *accept)).collect();
        headers.push(("If-None-Match", tag));
        let response = weir.get_with(LONG, &headers);
        assert!(varies(&response), "{accept:?} {tag}");
        if response.status == 304 {
            assert_eq!((response.header("content-encoding"), response.body.len()), (None, 0));
        }
        (response.status, response.header("etag").unwrap().to_owned())
    };
    for (accept, sent, status, tag) in [
        (&["gzip"][..], &*gzip, 304, &gzip),
        (&["gzip"], &format!("W/{gzip}"), 304, &gzip),
        (&["gzip"], &format!("\"x\", {gzip}"), 304, &gzip),
        (&["gzip"], "*", 304, &gzip),
        (&[], "*", 304, &plain),
        // The client has it without a coding, and accepts it so.
        (&["gzip"], &plain, 304, &plain),
        (&[], &plain, 304, &plain),
        (&["gzip, identity;q=0"], &plain, 200, &gzip),
        // It has it in a coding that it does not prefer, but accepts.
        (&["gzip;q=0.5, br"], &gzip, 304, &gzip),
        (&["gzip, br"], &br, 304, &br),
        // It has it in a coding that it does not accept any more.
        (&["gzip"], &br, 200, &gzip),
        (&[], &gzip, 200, &plain),
        (&["gzip;q=0"], &gzip, 200, &plain),
        (&["gzip"], "\"other-gzip\"", 200, &gzip),
    ] {
        assert_eq!(ask(accept, sent), (status, tag.clone()), "{accept:?} {sent}");
    }
}

#[test]
fn a_compressed_session_is_kept_with_its_entry_and_made_once() {
    let sim = Sim::start();
    let weir = Arc::new(Config::shipped().start(&sim));
    // Many clients wait for one slow call.
    sim.plan(&serde_json::json!({ "path": "ase_customer_support_001", "latency_ms": 300 }));
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let weir = weir.clone();
            std::thread::spawn(move || decoded(&weir.get_with(LONG, &[("Accept-Encoding", "br")])))
        })
        .collect();
    let bodies: Vec<Vec<u8>> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]) && bodies[0].starts_with(b"{\"id\""));
    assert_eq!(made(&weir), 1.0, "not by each waiter");
    let size = weir.metric("weir_cache_bytes");
    let response = weir.get_with(LONG, &[("Accept-Encoding", "gzip")]);
    assert_eq!(weir.metric("weir_cache_bytes"), size + response.body.len() as f64, "the entry weighs more");
    for coding in ["gzip", "br", "gzip"] {
        assert_eq!(coding_of(&weir, LONG, &[coding]).as_deref(), Some(coding));
    }
    assert_eq!((made(&weir), sim.call_counts()["total"].as_u64()), (2.0, Some(1)));
    // A new entry needs new forms.
    weir.post_admin("/cache/purge", "{\"all\": true}");
    assert_eq!(weir.metric("weir_cache_bytes"), 0.0);
    assert_eq!(coding_of(&weir, LONG, &["br"]).as_deref(), Some("br"));
    assert_eq!(made(&weir), 3.0);
}

#[test]
fn what_shows_secrets_or_repeats_the_request_or_streams_is_never_compressed() {
    let sim = Sim::start();
    let weir = Config::shipped().clients(CLIENTS).edit("weir.yaml", "  min_size: 1KiB", "  min_size: 1").start(&sim);
    let asked = [("Accept-Encoding", "gzip, br, zstd")];
    let batch = format!("/v1/sessions:batchGet?id={}", AGENTHUMAN.strip_prefix("/v1/sessions/").unwrap());
    for target in [AGENTHUMAN, LONG, "/v1/agents/agt_customer_support/sessions?limit=50", &batch] {
        let shown = weir.get_with_key("trusted", target, &asked);
        assert_eq!(shown.status, 200, "{target}");
        assert_never_compressed(&shown, target);
        assert_eq!(weir.get_with(target, &asked).header("content-encoding"), Some("zstd"), "{target}");
    }
    let missing = weir.get_with("/v1/sessions/agenthuman:sess_nothing", &asked);
    assert_eq!(missing.status, 404);
    assert_never_compressed(&missing, "a problem");
    assert_never_compressed(&weir.get_with("/v1/sessions?nothing=x", &asked), "a problem");
    assert_never_compressed(&send(weir.http, "GET", VECTARA, &asked), "a problem without a key");
    let explained = weir.get_with(LONG, &[("Accept-Encoding", "gzip"), ("Weir-Explain", "1")]);
    assert_eq!(explained.json()["status"], 200);
    assert_never_compressed(&explained, "an explanation");
    let native = weir.get_with("/vectara/v2/agents/agt_customer_support/sessions/ase_customer_support_001", &asked);
    assert_eq!(native.status, 200);
    assert_never_compressed(&native, "a native read");
    // The session has ended, so the stream ends after its event.
    let watch = weir.get_with(&format!("{AGENTHUMAN}/watch"), &asked);
    assert_eq!((watch.status, watch.header("content-type")), (200, Some("text/event-stream")));
    assert_never_compressed(&watch, "a watch");
    let unchanged = weir.get_with(LONG, &[("Accept-Encoding", "gzip"), ("Cache-Control", "no-transform")]);
    assert_eq!(unchanged.header("content-encoding"), None);
}

#[test]
fn compression_is_turned_on_and_off_by_a_reload() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let text = weir.config.read("weir.yaml");
    let start = text.find("compression:").unwrap();
    let section = &text[start..start + text[start..].find("\n\n").unwrap()];
    let reload = |to: &str| {
        weir.config.write("weir.yaml", &text.replace(section, to));
        assert_eq!(weir.reload().0, 200, "{to}");
    };
    assert_eq!(coding_of(&weir, LONG, &["gzip, br"]).as_deref(), Some("br"));
    let compressed = weir.get_with(LONG, &[("Accept-Encoding", "br")]);
    reload("compression: off");
    let off =
        weir.get_with(LONG, &[("Accept-Encoding", "gzip, br"), ("If-None-Match", compressed.header("etag").unwrap())]);
    assert_eq!((off.status, &off.body), (200, &decoded(&compressed)));
    assert_never_compressed(&off, "compression is off");
    reload("compression: { encodings: gzip, min_size: 1B }");
    assert_eq!(coding_of(&weir, LONG, &["gzip, br"]).as_deref(), Some("gzip"));
    assert_eq!(coding_of(&weir, LONG, &["br"]), None);
    assert_eq!(coding_of(&weir, AGENTHUMAN, &["gzip"]).as_deref(), Some("gzip"));
    reload("compression: on");
    assert_eq!(coding_of(&weir, LONG, &["gzip, br"]).as_deref(), Some("br"));
    assert_eq!(coding_of(&weir, AGENTHUMAN, &["gzip"]), None);
    reload("");
    assert_eq!(coding_of(&weir, LONG, &["gzip, br"]).as_deref(), Some("br"), "it is on if the section is missing");
}

#[test]
fn a_body_that_would_become_longer_or_has_no_memory_stays_as_it_is() {
    let sim = Sim::with_options(&["--sessions", "100"]);
    let weir = Config::shipped()
        .edit("weir.yaml", "  min_size: 1KiB", "  min_size: 1")
        .edit("weir.yaml", "max_buffered: 512MiB", "max_buffered: 450KiB")
        .start(&sim);
    let one = format!("{VECTARA}?fields=id");
    assert_eq!(coding_of(&weir, &one, &["gzip"]), None);
    assert_eq!(weir.metric("weir_compression_skipped_total{reason=\"longer\"}"), 1.0);
    assert_eq!(coding_of(&weir, &one, &["gzip, identity;q=0"]).as_deref(), Some("gzip"));
    assert_eq!(coding_of(&weir, "/openapi.json", &["gzip"]), None, "137 KB and the encoder");
    assert_eq!(weir.metric("weir_compression_skipped_total{reason=\"memory\"}"), 1.0);
    assert_eq!(weir.metric("weir_buffered_bytes"), 0.0);
}

#[test]
fn curl_reads_compressed_responses_over_http_1_0_1_1_and_2() {
    let sim = Sim::with_options(&["--sessions", "100"]);
    let weir = Config::shipped().edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        for target in [LIST, "/openapi.json", "/docs/swagger-ui-bundle.js"] {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--compressed", version, "-H", "X-API-Key: open", "-w", "\n%{size_download}"]);
            let output = curl.arg(format!("http://{}{target}", weir.http)).output().unwrap();
            assert!(output.status.success(), "{version} {target}: {}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            let (body, sent) = text.rsplit_once('\n').unwrap();
            assert!(sent.parse::<usize>().unwrap() * 3 < body.len(), "{version} {target}: {sent} of {}", body.len());
            if target != "/docs/swagger-ui-bundle.js" {
                assert!(serde_json::from_str::<Value>(body).unwrap().is_object());
            }
        }
    }
}

#[test]
fn a_watch_knows_the_tag_of_a_compressed_response() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("weir.yaml", "  min_size: 1KiB", "  min_size: 1").start(&sim);
    let tag = weir.get_with(AGENTHUMAN, &[("Accept-Encoding", "gzip")]).header("etag").unwrap().to_owned();
    assert!(tag.ends_with("-gzip\""));
    let watch = weir.get_with(&format!("{AGENTHUMAN}/watch"), &[("Last-Event-ID", &tag)]);
    assert_eq!(watch.status, 204, "{watch:?}");
}
