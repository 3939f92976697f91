//! Simulates AgentHuman: `/v1/sessions[/{session_id}]`, in the three formats that its documents have had.
//!
//! Session 0 is the one in the documents. The other sessions take turns: a third in the newest format, a third with avatar
//! and room, a third in the oldest format (integer ids).

use crate::http::{Reply, header};
use crate::simulator::Simulator;
use crate::world::{World, pseudo_random};
use hyper::HeaderMap;
use serde_json::{Value, json};

/// Returns the refusal of a request without the right key.
pub(crate) fn refuse(sim: &Simulator, headers: &HeaderMap) -> Option<Reply> {
    match header(headers, "x-api-key") {
        None => Some(Reply::json(401, &json!({ "error": "API key required" }))),
        Some(key) if key != sim.options.agenthuman_key => {
            Some(Reply::json(401, &json!({ "error": "Invalid API key" })))
        }
        Some(_) => None,
    }
}

pub(crate) fn read(sim: &Simulator, rest: &[&str], headers: &HeaderMap) -> Reply {
    if let Some(refusal) = refuse(sim, headers) {
        return refusal;
    }
    match rest {
        [] => {
            let generated = (0..sim.world.sessions).map(|n| session(&sim.world, n)).collect();
            let sessions = sim.world.list("", "session_id", generated);
            Reply::json(200, &json!({ "success": true, "sessions": sessions }))
        }
        [id] => one(sim, id),
        _ => Reply::new(404, String::new()),
    }
}

pub(crate) fn write(sim: &Simulator, method: &str, rest: &[&str], body: &Value) -> Reply {
    let now = || Value::from(sim.world.time(sim.world.elapsed(), 0));
    match (method, rest) {
        ("POST", []) => {
            let id = format!("sess_NEW{:08X}", sim.world.next_number());
            let session = json!({ "session_id": id, "status": "started", "started_at": now(), "ended_at": null, "expiration": null, "duration": 0, "metadata": body["metadata"] });
            sim.world.create("", session.clone());
            Reply::json(200, &json!({ "success": true, "session": session, "message": "Session created" }))
        }
        ("PUT" | "POST", [id, "end"]) => {
            sim.world.patch(id, vec![("/status".into(), "ended".into()), ("/ended_at".into(), now())]);
            one(sim, id)
        }
        ("PUT", [id, "start"]) => {
            sim.world.patch(id, vec![("/status".into(), "started".into()), ("/started_at".into(), now())]);
            Reply::json(
                200,
                &json!({ "success": true, "ws_uri": "wss://sim/", "expiration": null, "message": "started" }),
            )
        }
        _ => Reply::new(404, String::new()),
    }
}

fn one(sim: &Simulator, id: &str) -> Reply {
    match sim.world.get("", "session_id", id, generated(&sim.world, id)) {
        Some(session) => Reply::json(200, &json!({ "success": true, "session": session })),
        None => Reply::json(404, &json!({ "success": false, "error": { "message": "Session not found" } })),
    }
}

/// Returns the generated session with this id.
fn generated(world: &World, id: &str) -> Option<Value> {
    let documented = session(world, 0);
    if documented["session_id"] == id {
        return Some(documented);
    }
    let number = match id.strip_prefix("sess_") {
        Some(rest) => usize::from_str_radix(rest.trim_start_matches("SIM"), 16).ok()?,
        None => id.parse().ok()?,
    };
    let session = (0 < number && number < world.sessions).then(|| session(world, number))?;
    (session["session_id"] == id).then_some(session)
}

fn session(world: &World, n: usize) -> Value {
    if n == 0 {
        let documented = include_str!("../../config/examples/agenthuman/get.native.json");
        return serde_json::from_str::<Value>(documented).unwrap_or_default()["session"].clone();
    }
    let created = -(n as i64) * 20;
    // One in ten has not started, one in three has ended, the others run for two hours.
    let (started, ended) = match (n % 10, n.is_multiple_of(3)) {
        (1, _) => (None, None),
        (_, true) => (Some(created + 5), Some(created + 15)),
        (_, false) => (Some(created + 5), None),
    };
    let time = |seconds: Option<i64>| seconds.map_or(Value::Null, |seconds| world.time(seconds, 0).into());
    let duration = match (started, ended) {
        (Some(started), Some(ended)) => (ended - started).into(),
        (Some(started), None) => (world.elapsed() - started).into(),
        _ => Value::Null,
    };
    let mut session = json!({
        "session_id": format!("sess_SIM{n:08X}"),
        "status": match (started, ended) { (None, _) => "created", (_, None) => "started", _ => "ended" },
        "started_at": time(started),
        "ended_at": time(ended),
        "expiration": time(started.map(|started| started + 7200)),
        "duration": duration,
        "metadata": { "number": n },
    });
    match (n / 3) % 3 {
        0 => session["aspect_ratio"] = "4:3".into(),
        1 => {
            session["avatar"] = json!({ "avatar_id": format!("avat_SIM{:04}", pseudo_random(n as u64) % 100), "name": "Simulated", "url": "https://example.com/sim.jpg" });
            session["session_type"] = "webrtc_video".into();
            session["created_at"] = world.time(created, 0).into();
            let room = format!("room-{n}");
            session["daily_room"] = json!({ "url": format!("https://sim.daily.co/{room}"), "name": room, "token": format!("sim-secret-{n}") });
        }
        _ => {
            session["session_id"] = n.into();
            session["session_type"] = "agent_voice".into();
            session["agent_id"] = (pseudo_random(n as u64) % 50).into();
            if ended.is_some() {
                session["status"] = "completed".into();
            } else if started.is_some() {
                session["status"] = "active".into();
            }
        }
    }
    session
}
