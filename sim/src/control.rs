//! Serves the control API of the simulator, under `/_sim/`.
//!
//! | request | effect |
//! |---|---|
//! | `POST /_sim/faults` | plans a fault (see `faults.rs`) |
//! | `DELETE /_sim/faults` | removes all plans and accepts TLS again |
//! | `POST /_sim/refuse-tls` | closes new TLS connections if the body is JSON |
//! | `DELETE /_sim/tokens` | revokes all issued tokens |
//! | `GET /_sim/calls` | returns the number of calls by path and by HTTP version |
//! | `DELETE /_sim/calls` | resets these numbers |
//! | `/_sim/sessions`, any method | replaces the generated sessions (see `World::replace`) |

use crate::faults::Plan;
use crate::http::Reply;
use crate::simulator::Simulator;
use hyper::Method;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

pub(crate) fn respond(sim: &Simulator, method: &Method, path: &str, body: &[u8]) -> Reply {
    let done = (200, json!({}));
    let (status, body) = match (method.as_str(), path) {
        (_, "/_sim/sessions") => (if sim.world.replace(body) { 200 } else { 400 }, json!({})),
        ("POST", "/_sim/faults") => match Plan::parse(body) {
            Ok(plan) => {
                sim.plans.add(plan);
                done
            }
            Err(error) => (400, json!({ "error": error })),
        },
        ("DELETE", "/_sim/faults") => {
            sim.plans.clear();
            sim.refuse_tls.store(false, Ordering::SeqCst);
            done
        }
        ("POST", "/_sim/refuse-tls") => {
            sim.refuse_tls.store(serde_json::from_slice::<Value>(body).is_ok(), Ordering::SeqCst);
            done
        }
        ("DELETE", "/_sim/tokens") => {
            sim.tokens.revoke_all();
            done
        }
        ("GET", "/_sim/calls") => (200, sim.calls.to_json()),
        ("DELETE", "/_sim/calls") => {
            sim.calls.reset();
            done
        }
        _ => (404, json!({ "error": format!("the control API has no {method} {path}") })),
    };
    Reply::json(status, &body)
}
