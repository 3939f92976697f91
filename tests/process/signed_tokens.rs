//! JSON Web Tokens that Weir signs: sent as they are, or exchanged for an access token. OpenSSL checks the signatures.

use crate::credential_stub::*;
use crate::support::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const SECRET: &str = "canary-secret-canary-secret-canary";
const OWN: &str = "{ jwt: { algorithm: HS256, key: canary-secret-canary-secret-canary, issuer: APIcanary, subject: \"7\", key_id: k1, lifetime: 10m, claims: { video: { roomList: true, room: lobby, limit: 5, tags: [a, 1] }, note: null } } }";

fn key_file(name: &str) -> String {
    std::fs::read_to_string(repository().join("tests/keys").join(name)).unwrap()
}

/// The header and the claims of a token, and what its signature covers with the signature.
fn parts(token: &str) -> (Value, Value, String, Vec<u8>) {
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let json = |text: &str| serde_json::from_slice(&decode(text)).unwrap();
    (json(header), json(claims), format!("{header}.{claims}"), decode(signature))
}

fn seconds() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// Checks a signature of `RS256` with the public key of the tests.
fn verify_rs256(text: &str, signature: &[u8]) {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("text"), text).unwrap();
    std::fs::write(path("signature"), signature).unwrap();
    let public = repository().join("tests/keys/service-account.pub.pem");
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-verify"])
        .arg(public)
        .arg("-signature")
        .args([path("signature"), path("text")])
        .output();
    if require_tool("openssl", output.is_ok()) {
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn a_token_of_its_own_is_sent_with_every_request_and_made_once() {
    let (stub, sim) = (Stub::of_session(), Sim::start());
    let weir = stub.config(OWN).start(&sim);
    let before = seconds();
    for target in ["/v1/sessions/sess_A", "/agenthuman/v1/sessions/sess_A/events", "/v1/sessions/sess_B"] {
        assert_eq!(weir.get(target).status, 200);
    }
    let all = stub.take();
    let sent = all[0].header("authorization").unwrap();
    assert!(all.iter().all(|request| request.header("authorization") == Some(sent)), "{all:?}");
    let (header, mut claims, text, signature) = parts(sent.strip_prefix("Bearer ").unwrap());
    assert_eq!(header, json!({ "alg": "HS256", "typ": "JWT", "kid": "k1" }));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::verify(&key, text.as_bytes(), &signature).unwrap();
    let (issued, expires) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert!((before - 40..=before).contains(&issued) && expires - issued == 600, "{claims}");
    claims.as_object_mut().unwrap().retain(|name, _| !["iat", "exp"].contains(&name.as_str()));
    let video = json!({ "roomList": true, "room": "lobby", "limit": 5, "tags": ["a", 1] });
    assert_eq!(claims, json!({ "video": video, "note": null, "iss": "APIcanary", "sub": "7" }));
    // A reload without a change keeps the token; another claim makes another one.
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/sess_C").status, 200);
    assert_eq!(stub.one().header("authorization"), Some(sent));
    weir.config.change("providers/agenthuman.yaml", "limit: 5", "limit: 6");
    assert_eq!(weir.reload().0, 200);
    let response = weir.get("/v1/sessions/sess_A");
    assert!(response.status == 200 && !response.header("cache-status").unwrap().contains("hit"));
    assert_ne!(stub.one().header("authorization"), Some(sent));
}

/// A token endpoint and a provider in one. The token is `token-N` for the Nth request.
fn exchanging() -> Stub {
    let native = example("agenthuman/get").0.to_string();
    let issued = std::sync::atomic::AtomicU32::new(0);
    Stub::start(move |request| {
        let json = "Content-Type: application/json\r\n".to_owned();
        let token = |n: u32| format!("Bearer canary-token-{n}");
        match request.target.as_str() {
            "/token" if request.body.contains("invalid") => (400, json, "{\"error\":\"invalid_grant\"}".into()),
            "/token" => {
                let n = issued.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                let body =
                    json!({ "access_token": format!("canary-token-{n}"), "expires_in": 3599, "token_type": "Bearer" });
                (200, json, body.to_string())
            }
            // The provider has revoked the first token.
            _ if request.target.contains("revoked") && request.header("authorization") == Some(&token(1)) => {
                (401, json, "{}".into())
            }
            _ => (200, json, native.clone()),
        }
    })
}

/// The key file of a service account.
fn account(url: &str) -> Value {
    json!({
        "type": "service_account", "project_id": "p", "private_key_id": "canary-id",
        "private_key": key_file("service-account.pem"), "client_email": "canary@p.example", "token_uri": url,
    })
}

#[test]
fn a_service_account_exchanges_a_signed_assertion_for_a_token() {
    let (stub, sim, directory) = (exchanging(), Sim::start(), TempDir::new().unwrap());
    let url = format!("{}/token", stub.base_url());
    let file = directory.path().join("key.json");
    std::fs::write(&file, account(&url).to_string()).unwrap();
    let credentials = format!(
        "{{ jwt: {{ service_account: {{ file: {} }}, scope: \"https://a https://b\", subject: u@p.example }} }}",
        file.display()
    );
    let weir = stub.config(&credentials).start(&sim);
    let before = seconds();
    assert_eq!(weir.get("/v1/sessions/sess_A").status, 200);
    assert_eq!(weir.get("/agenthuman/v1/sessions/sess_A/events").status, 200);
    let all = stub.take();
    assert_eq!(
        all.iter().map(|request| &*request.target).collect::<Vec<_>>(),
        ["/token", "/v1/sessions/sess_A", "/v1/sessions/sess_A/events"]
    );
    assert_eq!(
        (all[0].method.as_str(), all[0].header("content-type")),
        ("POST", Some("application/x-www-form-urlencoded"))
    );
    let form: Vec<(String, String)> = url::form_urlencoded::parse(all[0].body.as_bytes()).into_owned().collect();
    assert_eq!(form[0], ("grant_type".into(), "urn:ietf:params:oauth:grant-type:jwt-bearer".into()));
    assert_eq!((form.len(), form[1].0.as_str()), (2, "assertion"));
    let (header, mut claims, text, signature) = parts(&form[1].1);
    assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT", "kid": "canary-id" }));
    let (issued, expires) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert!((before - 40..=before).contains(&issued) && expires - issued == 3600);
    claims.as_object_mut().unwrap().retain(|name, _| !["iat", "exp"].contains(&name.as_str()));
    assert_eq!(
        claims,
        json!({ "iss": "canary@p.example", "sub": "u@p.example", "aud": url, "scope": "https://a https://b" })
    );
    verify_rs256(&text, &signature);
    assert!(all[1..].iter().all(|request| request.header("authorization") == Some("Bearer canary-token-1")));
    // A revoked token is replaced; an equal configuration keeps the token, a new key gets another one.
    assert_eq!(weir.get("/v1/sessions/sess_revoked").status, 200);
    assert_eq!(
        stub.take().iter().map(|request| &*request.target).collect::<Vec<_>>(),
        ["/v1/sessions/sess_revoked", "/token", "/v1/sessions/sess_revoked"]
    );
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/sess_C").status, 200);
    assert_eq!(stub.one().header("authorization"), Some("Bearer canary-token-2"));
    let mut other = account(&url);
    other["client_email"] = "other-canary@p.example".into();
    std::fs::write(&file, other.to_string()).unwrap();
    assert_eq!(weir.reload().0, 200);
    assert_eq!(weir.get("/v1/sessions/sess_A").status, 200);
    assert_eq!(stub.take()[1].header("authorization"), Some("Bearer canary-token-3"));
    let seen = weir.metrics()
        + &weir.process.stderr.lock().unwrap().join("\n")
        + &weir.process.stdout.lock().unwrap().join("\n");
    assert!(!seen.contains("canary") && !seen.contains("PRIVATE"), "{seen}");
}

#[test]
fn an_assertion_that_is_refused_is_a_problem_that_shows_no_key() {
    let (stub, sim) = (
        Stub::start(|_| (400, "Content-Type: application/json\r\n".into(), "{\"error\":\"invalid_grant\"}".into())),
        Sim::start(),
    );
    let credentials = format!(
        "{{ jwt: {{ algorithm: HS256, key: {SECRET}, issuer: i, token_url: \"{}/token\" }} }}",
        stub.base_url()
    );
    let weir = stub.config(&credentials).start(&sim);
    for target in ["/v1/sessions/sess_A", "/agenthuman/v1/sessions/sess_A/events"] {
        let response = weir.get(target);
        let text = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(response.status, 502, "{text}");
        assert!(text.contains("responded with 400 (invalid_grant); check oauth2: or jwt:"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}

#[test]
fn wrong_keys_and_claims_are_faults_that_show_no_key() {
    let own = |from: &str, to: &str| {
        let whole = "{ jwt: { algorithm: HS256, key: canary-key-0123456789-0123456789, issuer: i } }";
        assert!(whole.contains(from));
        whole.replace(from, to)
    };
    let with = |more: &str| own("issuer: i", more);
    let one_key = "{ jwt: { service_account: \"KEY\" } }";
    let account = |text: &str| one_key.replace("KEY", &text.replace('"', "\\\"").replace('\n', "\\n"));
    let email = "{\"client_email\":\"canary\"";
    for (credentials, column, message) in [
        (own("key: canary-key-0123456789-0123456789, ", ""), 21, "jwt must be { service_account: { file: KEY.json }"),
        (with("service_account: canary"), 21, "jwt must be {"),
        (own("HS256", "HS512"), 34, "HS512"),
        (own("HS256", "RS256"), 46, "the key is not an RSA private key of 2048 to 4096 bits in PEM"),
        (with("lifetime: 1m"), 90, "the lifetime of this token must be from 2m to 24h"),
        (with("lifetime: 2h, token_url: \"https://x/t\""), 90, "the lifetime of this token must be from 2m to 1h"),
        (with("scope: s"), 21, "scope is for a token that is exchanged at a token_url"),
        (with("claims: { iss: canary }"), 90, "the claim iss cannot stand here: write issuer: in place of it"),
        (with("claims: { exp: 1 }"), 90, "the claim exp cannot stand here: Weir sets it"),
        (with("claims: canary"), 88, "claims must be a mapping"),
        (with("token_url: canary"), 91, "is not a token URL"),
        (with("isuer: canary"), 80, "did you mean \"issuer\"?"),
        (account("canary"), 40, "this is not the key file of a service account"),
        (account("{}"), 40, "the key file of the service account has no client_email"),
        (account(&format!("{email}}}")), 40, "the key file of the service account has no private_key"),
        (account(&format!("{email},\"private_key\":\"canary\"}}")), 40, "has no token_uri; set token_url"),
        (
            account(&format!("{email},\"private_key\":\"canary\",\"token_uri\":\"https://x\"}}")),
            40,
            "the key is not an RSA private key",
        ),
        ("{ jwt: { service_account: x, issuer: canary } }".into(), 21, "the service account has its own issuer"),
        ("{ jwt: canary }".into(), 21, "jwt must be a mapping"),
    ] {
        let faults = faults(&credentials);
        let place = format!("providers/agenthuman.yaml:7:{column}: ");
        assert!(faults.contains(&place) && faults.contains(message), "{credentials}: {faults}");
        let shown = faults.replace("\"canary\" is not a token URL", "");
        assert!(!shown.contains("canary") && faults.lines().count() <= 2, "{faults}");
    }
}

#[test]
fn weak_keys_are_warnings_and_explain_names_the_form_without_them() {
    let config = |credentials: &str| {
        Config::shipped().edit("providers/agenthuman.yaml", SHIPPED, &format!("credentials: {credentials}"))
    };
    for (credentials, warning) in [
        ("{ jwt: { algorithm: HS256, key: \"\", issuer: i } }", "7:46: the key is empty, so Weir sends no credential"),
        ("{ jwt: { algorithm: HS256, key: canary, issuer: i } }", "7:46: a key of HS256 this short can be guessed"),
        ("{ jwt: { service_account: \"\" } }", "7:40: the key is empty"),
        (
            &*OWN.replace("issuer:", "token_url: \"http://idp.example/t\", issuer:"),
            "the signed token crosses the network without TLS",
        ),
    ] {
        let text = output(&config(credentials), &["check", "--strict"]);
        assert!(text.contains(warning) && !text.contains("canary"), "{text}");
    }
    for credentials in [
        OWN,
        "{ jwt: { service_account: { file: /not/there } } }",
        "{ jwt: { algorithm: RS256, key: \"${NOT_SET}\" } }",
    ] {
        let text = output(&config(credentials), &["explain", "GET", "/v1/sessions/sess_A", "--client", "open"]);
        assert!(text.contains("kind: jwt\n") && !text.contains("canary"), "{text}");
    }
}
