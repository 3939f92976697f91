//! The responses and metrics of a gateway whose provider fails, whose clients reach their limits, and that reloads.

use super::normalise::{metrics, shape};
use crate::support::*;
use serde_json::{Map, Value, json};

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], rate_limit: standard }\n  \
     - { id: greedy, keys: [ { sha256: SHA(greedy) } ], rate_limit: one }\n  \
     - { id: guest, keys: [ { sha256: SHA(guest), expires_at: 2099-01-01T00:00:00Z } ] }\n";

const BAD_FIELDS: &str = r#"{"key":"ase_1","agent_key":"agt_fields","created_at":5,"metadata":[],"enabled":"perhaps"}"#;

/// Starts a gateway with a certificate, keys that expire, and small limits.
fn start(sim: &Sim) -> Weir {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let listen = "  - address: ${WEIR_LISTEN:-127.0.0.1:8080}\n";
    let tls = "  - address: 127.0.0.1:0\n    tls: { certificate: tls.crt, key: tls.key }\n";
    let capacity = "requests: 5000\n    per: 1m\n    burst: 5000";
    let config = Config::shipped()
        .edit("weir.yaml", listen, &format!("{listen}{tls}"))
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  one: { requests: 1, per: 1h, burst: 1 }\n")
        .edit("providers/palantir.yaml", capacity, "requests: 1\n    per: 1h\n    burst: 1")
        .edit("providers/agenthuman.yaml", "failures: 5", "failures: 1")
        .edit("providers/agenthuman.yaml", "open_for: 10s", "open_for: 1h")
        .edit("providers/vectara.yaml", "stale_while_revalidate: 30s", "stale_while_revalidate: 0s")
        .clients(CLIENTS);
    config.write("tls.crt", &certificate.cert.pem());
    config.write("tls.key", &certificate.signing_key.serialize_pem());
    config.start(sim)
}

pub fn snapshot() -> Value {
    let sim = Sim::start();
    let weir = start(&sim);
    let mut responses = Map::new();
    let mut add = |name: &str, response: Response| {
        assert!(responses.insert(name.to_owned(), shape(&response)).is_none());
    };
    add("within the rate limit", weir.get_as("greedy", VECTARA));
    add("over the rate limit", weir.get_as("greedy", VECTARA));
    sim.plan_fault("/agt_load_1/", 1, &json!({ "kind": "reset" }));
    add("retried", weir.get("/v1/sessions/vectara:agt_load_1:ase_agt_load_1_1"));
    sim.set_response("/agt_fields/", 200, &json!({}), BAD_FIELDS);
    add("invalid optional fields", weir.get("/v1/sessions/vectara:agt_fields:ase_1"));
    sim.set_response("/agt_required/", 200, &json!({}), "{}");
    add("missing required field", weir.get("/v1/sessions/vectara:agt_required:ase_1"));
    sim.set_response("/agt_status/", 500, &json!({}), r#"{"messages":["out of order"]}"#);
    add("provider error", weir.get("/v1/sessions/vectara:agt_status:ase_1"));
    add("native provider error", weir.get("/vectara/v2/agents/agt_status/sessions/ase_1"));
    sim.plan_fault("/agt_cut/", 0, &json!({ "kind": "truncate" }));
    add("incomplete provider response", weir.get("/v1/sessions/vectara:agt_cut:ase_1"));
    sim.plan_fault("/api/", 0, &json!({ "kind": "reset" }));
    add("retry refused by the quota", weir.get(PALANTIR));
    add("call refused by the quota", weir.get(PALANTIR));
    sim.set_response("/v1/sessions/sess_", 500, &json!({}), "{}");
    add("failure that opens the breaker", weir.get(AGENTHUMAN));
    add("call refused by the breaker", weir.get(AGENTHUMAN));
    add("native call refused by the breaker", weir.get("/agenthuman/v1/sessions/sess_01H3Z8G9YR3K2N5M6P7Q8W4T"));
    add("partial list", weir.get("/v1/sessions?agent=agt_customer_support&provider=agenthuman&limit=2"));
    add("purge, soft", purge(&weir, &json!({ "provider": "vectara", "mode": "soft" })));
    sim.set_response("/agt_customer_support/", 429, &json!({ "retry-after": "3000" }), "{}");
    add("stale because the provider throttles", weir.get(VECTARA));
    add("stale during the pause", weir.get(VECTARA));
    add("call refused by the pause", weir.get("/v1/sessions/vectara:agt_pause:ase_1"));
    add("purge", purge(&weir, &json!({ "session": "vectara:agt_customer_support:ase_customer_support_001" })));
    add("purge, nothing named", purge(&weir, &json!({})));
    add("purge, unknown provider", purge(&weir, &json!({ "provider": "nobody" })));
    add("purge, wrong method", weir.admin("GET", "/cache/purge"));
    let reloads = reloads(&weir);
    json!({ "responses": responses, "reloads": reloads, "metrics": metrics(&weir.metrics(), &[weir.http]) })
}

fn purge(weir: &Weir, body: &Value) -> Response {
    weir.post_admin("/cache/purge", &body.to_string())
}

/// The responses of `POST /reload`. Weir also reloads when a file changes, so the results do not depend on which reload
/// comes first: a changed configuration is not part of them.
fn reloads(weir: &Weir) -> Value {
    let unchanged = shape(&weir.post_admin("/reload", ""));
    weir.config.change("weir.yaml", "listen:", "listne:");
    weir.config.change("weir.yaml", "  grace: 10s", "  grace: ten");
    let mut refused = shape(&weir.post_admin("/reload", ""));
    // The programs read the position of a fault; the rest of its line is text.
    for fault in refused["body"]["faults"].as_array_mut().unwrap() {
        let (position, _) = fault.as_str().unwrap().split_once(": ").unwrap();
        *fault = position.rsplit_once('/').unwrap().1.into();
    }
    json!({ "unchanged": unchanged, "refused": refused })
}
