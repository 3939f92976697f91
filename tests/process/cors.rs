//! Tests of CORS: preflights, configured origins, and a provider's own CORS headers.

use crate::support::*;
use serde_json::json;

#[test]
fn cors_permits_only_the_configured_origins() {
    let sim = Sim::start();
    let weir = Config::shipped()
        .edit(
            "weir.yaml",
            "# cors: { origins: [https://app.example], max_age: 10m }",
            "cors: { origins: [https://app.example], max_age: 10m }",
        )
        .start(&sim);
    let request = |method: &str, target: &str, headers: &[(&str, &str)]| send(weir.http, method, target, headers);
    let preflight = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "x-api-key"),
    ];
    for target in [VECTARA, "/vectara/v2/agents/a/sessions/s/events"] {
        let permitted = request("OPTIONS", target, &preflight);
        assert_eq!(
            (permitted.status, permitted.header("access-control-allow-origin")),
            (204, Some("https://app.example")),
            "{target}: a preflight needs no key"
        );
        assert_eq!(
            (permitted.header("access-control-allow-headers"), permitted.header("access-control-max-age")),
            (Some("x-api-key"), Some("600"))
        );
        let evil =
            request("OPTIONS", target, &[("Origin", "https://evil.example"), ("Access-Control-Request-Method", "GET")]);
        assert_eq!((evil.status, evil.header("access-control-allow-origin")), (204, None));
        for origin in [Some("https://app.example"), Some("https://evil.example"), None] {
            let mut headers = vec![("X-API-Key", "open")];
            headers.extend(origin.map(|origin| ("Origin", origin)));
            let response = request("GET", target, &headers);
            assert_eq!(
                response.header("access-control-allow-origin"),
                origin.filter(|o| o.contains("app")),
                "{target}"
            );
            assert!(
                response.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("vary") && v.contains("Origin")),
                "{target}"
            );
        }
    }
    let refused = request("GET", VECTARA, &[("Origin", "https://app.example")]);
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, Some("https://app.example")),
        "a page may read errors too"
    );
    assert_eq!(request("OPTIONS", VECTARA, &[("X-API-Key", "open")]).status, 405, "this is no preflight");
    let without_cors = Config::shipped().start(&sim);
    assert_eq!(send(without_cors.http, "OPTIONS", VECTARA, &preflight).status, 401);
}

#[test]
fn cors_headers_of_a_provider_are_removed() {
    let sim = Sim::start();
    let cors = "cors: { origins: [https://app.example], max_age: 10m }";
    let without_cors = Config::shipped().start(&sim);
    let weir = Config::shipped().edit("weir.yaml", &format!("# {cors}"), cors).start(&sim);
    let provider_headers =
        json!({ "access-control-allow-origin": "*", "access-control-allow-credentials": "true", "vary": "Accept" });
    // Weir streams the first native path through and buffers the second; the provider's 404 reaches the client on both.
    let (events, session) =
        ("/vectara/v2/agents/agt_1/sessions/ase_1/events", "/vectara/v2/agents/agt_1/sessions/ase_1");
    sim.set_response("ase_1", 404, &provider_headers, "{}");
    for (weir, configured) in [(&weir, true), (&without_cors, false)] {
        for target in [events, session] {
            for origin in ["https://app.example", "https://evil.example"] {
                let response = weir.get_with(target, &[("Origin", origin)]);
                let allowed = (configured && origin.contains("app")).then_some(origin);
                assert_eq!(
                    (response.status, response.header("access-control-allow-origin")),
                    (404, allowed),
                    "{target}"
                );
                assert_eq!(response.header("access-control-allow-credentials"), None, "{target}");
                let vary: Vec<&str> = response
                    .headers
                    .iter()
                    .filter(|(n, _)| n.eq_ignore_ascii_case("vary"))
                    .map(|(_, v)| &**v)
                    .collect();
                let vary = vary.join(", ");
                assert!(vary.contains("Accept"), "{target}: the provider's Vary is kept: {vary}");
                assert_eq!(vary.contains("Origin"), configured, "{target}: {vary}");
            }
        }
    }
}
