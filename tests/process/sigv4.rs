//! Requests that Weir signs with AWS Signature Version 4. AWS' own SDK computes each signature again.

use crate::credential_stub::*;
use crate::support::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const CREDENTIALS: &str = "{ aws_sigv4: { access_key_id: AKIDCANARY, secret_access_key: canary/secret+key, region: eu-west-1, service: bedrock } }";
const TEMPORARY: &str = "{ aws_sigv4: { access_key_id: AKIDCANARY, secret_access_key: canary/secret+key, session_token: canary-token, region: eu-west-1, service: bedrock } }";

/// A Python with AWS' SDK, if there is one.
fn python() -> Option<PathBuf> {
    let candidates = [repository().join("target/tools/bin/python"), "python3".into()];
    let has_sdk = |python: &PathBuf| {
        let status = Command::new(python).args(["-c", "import botocore"]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let found = candidates.into_iter().find(has_sdk);
    require_tool("botocore (PyPI)", found.is_some()).then_some(found).flatten()
}

/// Checks the signature of each request with AWS' SDK, if it is installed.
fn verify(requests: &[Received]) {
    assert!(!requests.is_empty());
    let Some(python) = python() else { return };
    let all: Vec<_> = requests
        .iter()
        .map(|r| json!({ "method": r.method, "target": r.target, "headers": r.headers, "body": r.body }))
        .collect();
    let script = repository().join("tests/tools/signatures.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(json!(all).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.trim(), requests.len().to_string(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn reads_and_forwarded_requests_have_the_signature_that_the_sdk_computes() {
    let sim = Sim::start();
    for credentials in [CREDENTIALS, TEMPORARY] {
        let stub = Stub::of_session();
        let weir = stub.config(credentials).start(&sim);
        assert_eq!(weir.get("/v1/sessions/sess_A").status, 200);
        assert_eq!(weir.get("/v1/sessions?provider=agenthuman").status, 502, "the stub has no list");
        let read = stub.take();
        assert_eq!(read[0].header("x-amz-security-token").is_some(), credentials == TEMPORARY);
        let own = [
            ("X-Weir-Key", "open"),
            ("Authorization", "AWS4-HMAC-SHA256 Credential=mine"),
            ("X-Amz-Date", "20200101T000000Z"),
            ("X-Amz-Security-Token", "mine"),
            ("X-Amz-Target", "Service.Operation"),
            ("X-Amz-User-Agent", "sdk  with   spaces"),
        ];
        for (method, target) in [
            ("GET", "/agenthuman/v1/sessions/sess_A/events"),
            ("HEAD", "/agenthuman/v1/sessions/sess_A/events?b=2&a=1&a=0&c&d=x:y/z+%7e*%2A&e=%e1%88%b4"),
            ("DELETE", "/agenthuman/v1/@x/a:b/%40x/arn%3Aaws%3Ax/%E1%88%B4//last/"),
            ("GET", "/agenthuman/v1/x?X-Amz-Signature=abc&x%2Damz-credential=mine&keep=1&X-Amz-Expires=9"),
            ("GET", "/agenthuman/v1/sessions/sess_B?view=a+b"),
        ] {
            assert_eq!(send(weir.http, method, target, &own).status, 200, "{method} {target}");
        }
        let all = stub.take();
        assert_eq!(all.len(), 5);
        assert_eq!(all[3].target, "/v1/x?keep=1", "the client's own signature in the query is dropped");
        assert!(all.iter().take(4).all(|request| request.header("x-amz-target") == Some("Service.Operation")));
        assert!(all.iter().all(|request| request.header("x-amz-security-token") != Some("mine")));
        verify(&[read, all].concat());
    }
}

#[test]
fn a_body_is_forwarded_with_the_digest_that_the_client_sends_and_refused_without_it() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let weir = stub.config(CREDENTIALS).edit("weir.yaml", "    # h2c: true ", "    h2c: true ").start(&sim);
    let target = "/agenthuman/v1/sessions/sess_A/events";
    let post = |body: &str, headers: &[(&str, &str)]| {
        let length = body.len().to_string();
        let headers = [&[("X-Api-Key", "open"), ("Content-Length", &length)], headers].concat();
        send_bytes(weir.http, &[request("POST", target, &headers), body.into()].concat())
    };
    let digest = format!("{:x}", Sha256::digest("{\"a\":1}"));
    for headers in [&[][..], &[("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")], &[("X-Amz-Content-Sha256", &digest[1..])]]
    {
        let refused = post("{\"a\":1}", headers);
        assert_eq!(refused.status, 400, "{headers:?}");
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(text.contains("send X-Amz-Content-Sha256 with the SHA-256 of the body"), "{text}");
    }
    let chunked = "POST /agenthuman/v1/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: open\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n";
    assert_eq!(send_bytes(weir.http, chunked.as_bytes()).status, 400);
    // Over HTTP/2, a body needs no length.
    let url = format!("http://{}{target}", weir.http);
    let curl = Command::new("curl")
        .args([
            "-s",
            "--http2-prior-knowledge",
            "-H",
            "X-Api-Key: open",
            "-H",
            "Transfer-Encoding: chunked",
            "-T",
            "-",
            "-X",
            "POST",
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
            &url,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    if require_tool("curl", curl.is_ok()) {
        let mut curl = curl.unwrap();
        curl.stdin.take().unwrap().write_all(b"{\"a\":1}").unwrap();
        assert_eq!(String::from_utf8_lossy(&curl.wait_with_output().unwrap().stdout), "400");
    }
    assert!(stub.take().is_empty(), "the provider gets no request with a wrong signature");
    assert_eq!(post("{\"a\":1}", &[("X-Amz-Content-Sha256", &digest)]).status, 200);
    assert_eq!(post("", &[]).status, 200);
    let all = stub.take();
    assert_eq!(all[0].body, "{\"a\":1}");
    verify(&all);
    let query = send(weir.http, "GET", "/agenthuman/v1/sessions/sess_A?a=%ff", &[("X-Api-Key", "open")]);
    assert_eq!((query.status, stub.take().len()), (400, 0));
}

#[test]
fn the_providers_clock_is_followed_after_one_refusal() {
    let native = example("agenthuman/get").0.to_string();
    // Ten minutes behind the machine.
    let behind = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
    let date = httpdate::fmt_http_date(behind);
    let minute = date[..22].rsplit(' ').next().unwrap().replace(':', "");
    let stub = Stub::start(move |request| {
        let headers = format!("Content-Type: application/json\r\nDate: {date}\r\n");
        let signed = request.header("x-amz-date").unwrap_or_default();
        match signed.contains(&format!("T{minute}")) || request.target.contains("always") {
            true if request.target.contains("refused") => (403, headers, "{}".into()),
            true => (200, headers, native.clone()),
            false => (403, headers, json!({ "message": "Signature expired" }).to_string()),
        }
    });
    let sim = Sim::start();
    for (first, second) in [
        ("/v1/sessions/sess_A", "/agenthuman/v1/sessions/sess_A/events"),
        ("/agenthuman/v1/sessions/sess_A/events", "/v1/sessions/sess_A"),
    ] {
        let weir = stub.config(CREDENTIALS).start(&sim);
        assert_eq!((weir.get(first).status, stub.take().len()), (200, 2));
        assert_eq!((weir.get(second).status, stub.take().len()), (200, 1), "the clock is known");
        assert_eq!((weir.get("/agenthuman/v1/refused").status, stub.take().len()), (403, 1));
    }
}

#[test]
fn wrong_access_keys_are_faults_and_empty_ones_warnings_and_nothing_shows_them() {
    let edited = |from: &str, to: &str| CREDENTIALS.replace(from, to);
    for (credentials, column, message) in [
        (edited("AKIDCANARY", "\"AKID CANARY\""), 44, "an access key id has only letters and digits"),
        (edited("canary/secret+key", "\"canary key\""), 75, "this secret has characters that AWS does not use"),
        (edited("eu-west-1", "EU-West-1"), 102, "\"EU-West-1\" is not a region"),
        (edited("service: bedrock", "service: S3"), 122, "\"S3\" is not the name of a service"),
        (edited("service: bedrock", "service: s3"), 122, "Weir does not sign requests to S3"),
        (edited(", service: bedrock", ""), 27, "missing key \"service\""),
        (edited("region:", "regoin:"), 94, "did you mean \"region\"?"),
        ("{ aws_sigv4: canary }".into(), 27, "aws_sigv4 must be a mapping"),
    ] {
        let faults = faults(&credentials);
        let place = format!("providers/agenthuman.yaml:7:{column}: ");
        assert!(faults.contains(&place) && faults.contains(message), "{credentials}: {faults}");
        assert!(!faults.to_lowercase().contains("canary"), "{faults}");
    }
    let config = |credentials: &str| {
        Config::shipped().edit("providers/agenthuman.yaml", SHIPPED, &format!("credentials: {credentials}"))
    };
    for (credentials, warning) in [
        (edited("AKIDCANARY", "\"\""), "access_key_id or secret_access_key is empty"),
        (edited("canary/secret+key", "\"\""), "access_key_id or secret_access_key is empty"),
        (TEMPORARY.replace("canary-token", "\"\""), "session_token is empty"),
    ] {
        let text = output(&config(&credentials), &["check", "--strict"]);
        assert!(text.contains(&format!("7:44: {warning}")) && !text.to_lowercase().contains("canary"), "{text}");
    }
    let secret_file = edited("canary/secret+key", "{ file: /not/there }");
    for credentials in [TEMPORARY, &*secret_file] {
        let text = output(&config(credentials), &["explain", "GET", "/v1/sessions/sess_A", "--client", "open"]);
        let lines = "kind: aws_sigv4\n    header: authorization, x-amz-date, x-amz-security-token\n";
        assert!(text.contains(lines) && !text.to_lowercase().contains("canary"), "{text}");
    }
}

#[test]
fn a_rotated_access_key_takes_effect_with_a_reload_and_has_its_own_entries() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "canary/old\n").unwrap();
    let weir =
        stub.config(&CREDENTIALS.replace("canary/secret+key", &format!("{{ file: {} }}", file.display()))).start(&sim);
    let get = || {
        let response = weir.get("/v1/sessions/sess_A");
        assert_eq!(response.status, 200);
        response.header("cache-status").unwrap().contains("hit")
    };
    assert_eq!([get(), get()], [false, true]);
    stub.take();
    std::fs::write(&file, "canary/secret+key\n").unwrap();
    assert_eq!(weir.reload().0, 200);
    assert_eq!([get(), get()], [false, true]);
    verify(&[stub.one()]);
    let seen = weir.metrics()
        + &weir.process.stderr.lock().unwrap().join("\n")
        + &weir.process.stdout.lock().unwrap().join("\n");
    assert!(!seen.to_lowercase().contains("canary"), "{seen}");
}
