//! Request templates with text around a variable, such as `/sessions/{session}.json`: native reads, writes and secrets
//! follow the template.

use crate::native_client::*;
use crate::scripted_provider::*;
use crate::support::*;

const CANARY: &str = "canary-of-a-provider";

fn start(request: &str, provider: &ScriptedProvider) -> (Sim, Weir) {
    let sim = Sim::start();
    let weir = unlimited()
        .edit("providers/agenthuman.yaml", "request: GET /v1/sessions/{session}\n", request)
        .env("AGENTHUMAN_BASE_URL", &provider.base_url())
        .start(&sim);
    (sim, weir)
}

fn session(id: &str) -> Vec<u8> {
    format!(
        "{{\"session\":{{\"session_id\":\"{id}\",\"status\":\"active\",\"daily_room\":{{\"url\":\"u\",\"token\":\"{CANARY}\"}}}}}}"
    )
    .into_bytes()
}

#[test]
fn a_template_with_text_around_the_id_is_read_written_and_cleaned_natively() {
    for (request, native, below) in [
        (
            "request: GET /v1/sessions/{session}.json\n",
            "/agenthuman/v1/sessions/sess_A.json",
            "/agenthuman/v1/sessions/sess_A/end.json",
        ),
        (
            "request: GET /v1/sessions/id-{session}\n",
            "/agenthuman/v1/sessions/id-sess_A",
            "/agenthuman/v1/sessions/id-sess_A/end",
        ),
        (
            "request: GET /v1/sessions('{session}')\n",
            "/agenthuman/v1/sessions('sess_A')",
            "/agenthuman/v1/sessions('sess_A')/end",
        ),
        (
            "request: GET /v1/session\n    query: { name: \"sessions/{session}\" }\n",
            "/agenthuman/v1/session?name=sessions%2Fsess_A",
            "/agenthuman/v1/session?name=sessions%2Fsess_A&x=1",
        ),
    ] {
        let provider = ScriptedProvider::start();
        let (_sim, weir) = start(request, &provider);
        provider.respond(200, "", &session("sess_A"));
        let first = weir.get(native);
        assert_eq!(first.status, 200, "{request}: {}", String::from_utf8_lossy(&first.body));
        assert!(!String::from_utf8_lossy(&first.body).contains(CANARY), "{request}");
        assert!(cache_status(&first).starts_with("weir; fwd=miss; stored"), "{request}: {}", cache_status(&first));
        assert!(cache_status(&weir.get(native)).starts_with("weir; hit"), "{request}");
        for (version, response) in on_every_version(&weir, "GET", native, &[]) {
            assert_eq!(status(&response), 200, "{request} {version}: {response}");
            assert!(!response.contains(CANARY), "{request} {version}: {response}");
        }
        // The unified view has the same entry.
        let unified = weir.get("/v1/sessions/agenthuman:sess_A");
        assert!(cache_status(&unified).starts_with("weir; hit"), "{request}: {}", cache_status(&unified));
        for (method, target) in [("PATCH", native), ("DELETE", native), ("POST", below), ("PUT", below)] {
            assert!(cache_status(&weir.get(native)).starts_with("weir; hit"), "{request}: before {method} {target}");
            assert_eq!(send(weir.http, method, target, &[("X-API-Key", "open")]).status, 200, "{method} {target}");
            let read = weir.get(native);
            assert!(cache_status(&read).starts_with("weir; fwd=miss"), "{method} {target}: {}", cache_status(&read));
        }
        // A write to another session changes nothing.
        let other = native.replace("sess_A", "sess_B");
        assert_eq!(send(weir.http, "DELETE", &other, &[("X-API-Key", "open")]).status, 200, "{other}");
        assert!(cache_status(&weir.get(native)).starts_with("weir; hit"), "{request}: after a write to {other}");
    }
}

#[test]
fn a_path_that_only_nearly_follows_the_template_shows_no_secret() {
    let provider = ScriptedProvider::start();
    let (_sim, weir) = start("request: GET /v1/sessions/{session}.json\n", &provider);
    provider.respond(200, "", &session("sess_A"));
    for path in ["sess_A", "sess_A.xml", ".json", "sess_A.JSON", "sess_A.json.json", "sess_A%2Ejson", "sess_A.json/"] {
        for (version, response) in on_every_version(&weir, "GET", &format!("/agenthuman/v1/sessions/{path}"), &[]) {
            assert!(!response.contains(CANARY), "{path} {version}: {response}");
        }
    }
}
