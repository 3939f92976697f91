//! AgentHuman: `/v1/sessions[/{session_id}]`, in all three generations of its documents.
//!
//! Session 0 is the documents' own. Of the others, every third is as the newest pages have it, every
//! third with avatar and room, every third as the oldest (integer ids).

use crate::world::mix;
use crate::{Header, Reply, Sim};
use serde_json::{Value, json};

pub(crate) fn refused(sim: &Sim, header: Header<'_>) -> Option<Reply> {
    match header("x-api-key") {
        None => Some(Reply::json(401, &json!({ "error": "API key required" }))),
        Some(key) if key != sim.options.agenthuman_key => {
            Some(Reply::json(401, &json!({ "error": "Invalid API key" })))
        }
        Some(_) => None,
    }
}

pub(crate) fn answer(sim: &Sim, rest: &[&str], header: Header<'_>) -> Reply {
    if let Some(refused) = refused(sim, header) {
        return refused;
    }
    match rest {
        [] => {
            let sessions: Vec<Value> = (0..sim.world.sessions).map(|n| session(sim, n)).collect();
            let sessions = sim.world.now("", "session_id", sessions);
            Reply::json(200, &json!({ "success": true, "sessions": sessions }))
        }
        [id] => match find(sim, id) {
            Some(session) => Reply::json(200, &json!({ "success": true, "session": session })),
            None => Reply::json(404, &json!({ "success": false, "error": { "message": "Session not found" } })),
        },
        _ => Reply::new(404, String::new()),
    }
}

pub(crate) fn find(sim: &Sim, id: &str) -> Option<Value> {
    sim.world.one("", "session_id", id, at_start(sim, id))
}

fn at_start(sim: &Sim, id: &str) -> Option<Value> {
    let documented = session(sim, 0);
    if documented["session_id"] == id {
        return Some(documented);
    }
    let number = match id.strip_prefix("sess_") {
        Some(rest) => usize::from_str_radix(rest.trim_start_matches("SIM"), 16).ok()?,
        None => id.parse().ok()?,
    };
    let session = (0 < number && number < sim.world.sessions).then(|| session(sim, number))?;
    let own = &session["session_id"];
    (own == id || *own == id).then_some(session)
}

fn session(sim: &Sim, n: usize) -> Value {
    if n == 0 {
        let documented = include_str!("../../../config/examples/agenthuman/get.native.json");
        return serde_json::from_str::<Value>(documented).unwrap_or_default()["session"].clone();
    }
    let world = &sim.world;
    let created = -(n as i64) * 20;
    // One in ten was not started, one in three has ended, the others run for two hours.
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
            session["avatar"] = json!({ "avatar_id": format!("avat_SIM{:04}", mix(n as u64) % 100), "name": "Simulated", "url": "https://example.com/sim.jpg" });
            session["session_type"] = "webrtc_video".into();
            session["created_at"] = world.time(created, 0).into();
            let room = format!("room-{n}");
            session["daily_room"] = json!({ "url": format!("https://sim.daily.co/{room}"), "name": room, "token": format!("sim-secret-{n}") });
        }
        _ => {
            session["session_id"] = n.into();
            session["session_type"] = "agent_voice".into();
            session["agent_id"] = (mix(n as u64) % 50).into();
            if ended.is_some() {
                session["status"] = "completed".into();
            } else if started.is_some() {
                session["status"] = "active".into();
            }
        }
    }
    session
}
