//! Credentials whose headers are the same in each request: several headers, and Basic authentication.

use crate::credential_stub::*;
use crate::support::*;

/// Native paths that Weir reads, forwards, and forwards with a body.
const NATIVE: &str = "/agenthuman/v1/sessions/sess_A";
const FORWARDED: &str = "/agenthuman/v1/sessions/sess_A/events";

#[test]
fn several_credential_headers_are_sent_with_every_request_and_never_the_clients_own() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let weir = stub.config("{ headers: { X-Account: canary-account, Authorization: \"Key canary-key\" } }").start(&sim);
    let own = [("X-Account", "mine"), ("X-Weir-Key", "open"), ("Authorization", "mine")];
    assert_eq!(weir.get_with("/v1/sessions/sess_A", &own).status, 200);
    let mut all = stub.take();
    for (method, target) in [("GET", NATIVE), ("HEAD", FORWARDED), ("GET", FORWARDED), ("POST", FORWARDED)] {
        let headers = [&own[..], &[("Cache-Control", "no-cache")]].concat();
        assert_eq!(send(weir.http, method, target, &headers).status, 200, "{method} {target}");
        all.push(stub.one());
    }
    assert_eq!(all.len(), 5);
    for request in all {
        let sent =
            |name: &str| request.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| &**v).collect::<Vec<_>>();
        assert_eq!((sent("x-account"), sent("authorization")), (vec!["canary-account"], vec!["Key canary-key"]));
        assert!(sent("x-weir-key").is_empty());
    }
}

#[test]
fn basic_credentials_are_sent_in_utf8_and_may_have_no_password() {
    let sim = Sim::start();
    for (credentials, expected) in [
        ("{ basic: { username: Aladdin, password: \"open sesame\" } }", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        // RFC 7617, section 2.1.
        ("{ basic: { username: test, password: \"123\u{a3}\" } }", "Basic dGVzdDoxMjPCow=="),
        ("{ basic: { username: key } }", "Basic a2V5Og=="),
        ("{ basic: { username: u, password: \"a:b\" } }", "Basic dTphOmI="),
        ("{ basic: { username: \"\", password: p } }", "Basic OnA="),
    ] {
        let stub = Stub::of_session();
        let weir = stub.config(credentials).start(&sim);
        assert_eq!((weir.get("/v1/sessions/sess_A").status, weir.get(FORWARDED).status), (200, 200));
        let all = stub.take();
        assert!(all.len() == 2 && all.iter().all(|r| r.header("authorization") == Some(expected)), "{all:?}");
    }
}

#[test]
fn a_client_has_its_own_headers_and_shares_entries_only_under_the_same_ones() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let client = |id: &str, credentials: &str| {
        format!("  - {{ id: {id}, keys: [ {{ sha256: SHA({id}) }} ], credentials: {{ agenthuman: {credentials} }} }}\n")
    };
    let clients = |d: &str| {
        "clients:\n".to_owned()
            + &client("a", "{ headers: { x-one: \"1\", x-two: \"2\" } }")
            + &client("b", "{ headers: { X-Two: \"2\", X-One: \"1\" } }")
            + &client("c", "{ headers: { x-one: \"12\", x-two: \"\" } }")
            + &client("d", d)
    };
    let weir = stub
        .config("{ basic: { username: u, password: p } }")
        .clients(&clients("{ basic: { username: u, password: q } }"))
        .start(&sim);
    let get = |key: &str| {
        let response = weir.get_as(key, "/v1/sessions/sess_A");
        assert_eq!(response.status, 200);
        response.header("cache-status").unwrap().contains("hit")
    };
    assert_eq!(["a", "b", "c", "d", "d"].map(get), [false, true, false, false, true]);
    let all = stub.take();
    assert_eq!((all[0].header("x-one"), all[0].header("x-two")), (Some("1"), Some("2")));
    assert_eq!((all[1].header("x-one"), all[1].header("x-two")), (Some("12"), None), "an empty header is not sent");
    assert_eq!(all[2].header("authorization"), Some("Basic dTpx"));
    // A reload with the same credential in another form keeps the entries; a changed one has none.
    weir.config.write("clients.yaml", &expand_digests(&clients("{ header: Authorization, value: \"Basic dTpx\" }")));
    assert_eq!(weir.reload().0, 200);
    assert_eq!((get("a"), get("d")), (true, true));
    weir.config.write("clients.yaml", &expand_digests(&clients("{ basic: { username: u, password: new } }")));
    assert_eq!(weir.reload().0, 200);
    assert_eq!((get("a"), get("d")), (true, false));
    assert_eq!(stub.one().header("authorization"), Some("Basic dTpuZXc="));
}

#[test]
fn wrong_headers_and_names_of_users_are_faults_that_show_no_secret() {
    for (credentials, column, message) in [
        ("{ headers: {} }", 25, "headers has no header; write { NAME: SECRET, … }"),
        ("{ headers: canary }", 25, "headers must be a mapping"),
        ("{ headers: { x-a: canary, X-A: canary } }", 40, "duplicate header \"X-A\""),
        ("{ headers: { host: canary } }", 27, "\"host\" is not a header that can carry a credential"),
        ("{ headers: { \"x a\": canary } }", 27, "\"x a\" is not a header that can carry a credential"),
        ("{ headers: { x-a: \"canary\\ncanary\" } }", 27, "characters that are not allowed in a header"),
        ("{ headers: { x-a: [canary] } }", 32, "this must be a single value"),
        ("{ headers: { x-a: canary }, value: canary }", 14, "credentials must be { header: NAME, value: SECRET }"),
        ("{ headers: { x-a: canary }, bearer: canary }", 14, "credentials must be {"),
        ("{ basic: { username: \"canary:x\", password: p } }", 35, "a user name cannot have a colon"),
        ("{ basic: { username: \"canary\\nx\", password: p } }", 35, "a user name cannot have control characters"),
        ("{ basic: { username: u, password: \"canary\\nx\" } }", 48, "a password cannot have control characters"),
        ("{ basic: { password: canary } }", 23, "missing key \"username\""),
        ("{ basic: { username: u, pasword: canary } }", 38, "did you mean \"password\"?"),
        ("{ basic: canary }", 23, "basic must be a mapping"),
    ] {
        let faults = faults(credentials);
        let place = format!("providers/agenthuman.yaml:7:{column}: ");
        assert!(faults.contains(&place) && faults.contains(message), "{credentials}: {faults}");
        assert!(!faults.contains("canary") && faults.lines().count() <= 2, "{credentials}: {faults}");
    }
    let header = Config::shipped()
        .edit(
            "providers/agenthuman.yaml",
            SHIPPED,
            "credentials: { headers: { X-Team: a, x-b: c } }\nheaders: { pass: [x-team] }",
        )
        .check();
    assert!(header.0 == 1 && header.1[0].contains("7:27: X-Team is the header of this credential"), "{header:?}");
}

#[test]
fn empty_values_are_warnings_and_explain_names_the_form_without_its_secret() {
    let config = |credentials: &str| {
        Config::shipped().edit("providers/agenthuman.yaml", SHIPPED, &format!("credentials: {credentials}"))
    };
    for (credentials, warning) in [
        ("{ headers: { x-a: \"\", x-b: canary } }", "7:27: x-a is empty, so Weir does not send it"),
        ("{ basic: { username: \"\", password: canary } }", "7:35: the user name is empty"),
        ("{ basic: { username: canary, password: \"\" } }", "7:35: the password is empty"),
    ] {
        let text = output(&config(credentials), &["check", "--strict"]);
        assert!(text.contains(warning) && !text.contains("canary"), "{text}");
    }
    let without_password = output(&config("{ basic: { username: canary } }"), &["check", "--strict"]);
    assert!(!without_password.contains("password is empty"), "{without_password}");
    for (credentials, kind, header) in [
        ("{ headers: { x-b: canary, x-a: canary } }", "headers", "x-a, x-b"),
        ("{ basic: { username: canary, password: canary } }", "basic", "authorization"),
        ("{ basic: { username: \"${NOT_SET}\", password: { file: /canary } } }", "basic", "authorization"),
    ] {
        let text = output(&config(credentials), &["explain", "GET", "/v1/sessions/sess_A", "--client", "open"]);
        let lines = format!("kind: {kind}\n    header: {header}\n");
        assert!(text.contains(&lines) && !text.replace("/canary", "").contains("canary"), "{text}");
    }
}
