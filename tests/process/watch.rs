//! A session watched as it changes.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PATH: &str = "/v1/sessions/vectara:agt_customer_support:ase_customer_support_001/watch";
const NATIVE: &str = "/v2/agents/agt_customer_support/sessions/ase_customer_support_001";

/// What a watcher is sent.
#[derive(Debug, PartialEq)]
enum Sent {
    Event { name: String, id: Option<String>, data: Value },
    Beat,
    End,
}

/// One who watches; what it is sent comes through a channel.
struct Watcher {
    stream: TcpStream,
    head: String,
    sent: Receiver<Sent>,
}

impl Watcher {
    fn start(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: open\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        stream.write_all((text + "\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let (sender, sent) = channel();
        std::thread::spawn(move || {
            while let Some(chunk) = chunk(&mut reader) {
                let Ok(text) = String::from_utf8(chunk) else { return };
                for block in text.split_terminator("\n\n") {
                    let field = |name: &str| {
                        block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
                    };
                    let event = match field("event") {
                        None => Sent::Beat,
                        Some(name) => Sent::Event {
                            name,
                            id: field("id"),
                            data: serde_json::from_str(&field("data").unwrap_or_default()).unwrap(),
                        },
                    };
                    if sender.send(event).is_err() {
                        return;
                    }
                }
            }
            let _ = sender.send(Sent::End);
        });
        Self { stream, head, sent }
    }

    fn next(&self) -> Sent {
        self.sent.recv_timeout(PATIENCE).expect("something is sent")
    }

    /// The next `session` event, past heartbeats.
    fn session(&self) -> (String, Value) {
        loop {
            match self.next() {
                Sent::Beat => {}
                Sent::Event { name, id: Some(id), data } if name == "session" => return (id, data),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// One chunk (RFC 9112, section 7.1); `None` at the end, or where the connection ended.
fn chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let size = usize::from_str_radix(line.trim(), 16).ok().filter(|size| *size > 0)?;
    let mut bytes = vec![0; size + 2];
    reader.read_exact(&mut bytes).ok()?;
    bytes.truncate(size);
    Some(bytes)
}

/// Asked for every second.
fn every_second() -> Config {
    Config::shipped().edit("providers/vectara.yaml", "watch: 5s ", "watch: 1s ")
}

fn changed(sim: &Sim, title: &str, enabled: bool) {
    sim.forget();
    let mut session = example("vectara/get").0;
    session["name"] = title.into();
    session["enabled"] = enabled.into();
    sim.answers(NATIVE, 200, &json!({}), &session.to_string());
}

#[test]
fn one_event_at_once_and_one_for_each_change() {
    let sim = Sim::start();
    let weir = every_second().start(&sim);
    let plain = weir.get(PATH.trim_end_matches("/watch"));
    let watcher = Watcher::start(weir.http, PATH, &[]);
    assert!(watcher.head.starts_with("HTTP/1.1 200"), "{}", watcher.head);
    let head = watcher.head.to_lowercase();
    assert!(head.contains("content-type: text/event-stream") && head.contains("cache-control: no-store"), "{head}");
    let (id, data) = watcher.session();
    assert_eq!((Some(id.as_str()), &data), (plain.header("etag"), &plain.json()));
    changed(&sim, "second", true);
    let (second, data) = watcher.session();
    assert_eq!(data["title"], "second");
    // The same again is no event: the next one is the next change.
    let calls = sim.calls();
    until("it is asked for twice more", || sim.calls() >= calls + 2);
    changed(&sim, "third", false);
    let (_, data) = watcher.session();
    assert_eq!((&data["title"], &data["status"]), (&json!("third"), &json!("disabled")));

    // Who has the last one is told nothing before it changes; who has an older one, at once.
    let current = weir.get_with(PATH.trim_end_matches("/watch"), &[("Cache-Control", "no-cache")]);
    let has_it = Watcher::start(weir.http, PATH, &[("Last-Event-ID", current.header("etag").unwrap())]);
    let has_not = Watcher::start(weir.http, PATH, &[("Last-Event-ID", &second)]);
    assert_eq!(has_not.session().1["title"], "third");
    changed(&sim, "fourth", true);
    assert_eq!(has_it.session().1["title"], "fourth");
    assert_eq!(has_not.session().1["title"], "fourth");
    let fields = Watcher::start(weir.http, &format!("{PATH}?fields=title"), &[]);
    assert_eq!(fields.session().1, json!({ "title": "fourth" }));
}

#[test]
fn any_number_of_watchers_cost_one_call_in_an_interval() {
    let sim = Sim::start();
    let weir = every_second().start(&sim);
    // Also where nothing may be stored.
    let mut session = example("vectara/get").0;
    session["name"] = "first".into();
    let no_store = json!({ "cache-control": "no-store" });
    sim.answers(NATIVE, 200, &no_store, &session.to_string());
    let watchers: Vec<Watcher> = (0..60).map(|_| Watcher::start(weir.http, PATH, &[])).collect();
    for watcher in &watchers {
        assert_eq!(watcher.session().1["title"], "first");
    }
    assert_eq!(weir.metric("weir_watchers"), 60.0);
    sim.reset_calls();
    let begun = Instant::now();
    for title in ["second", "third"] {
        session["name"] = title.into();
        sim.forget();
        sim.answers(NATIVE, 200, &no_store, &session.to_string());
        for watcher in &watchers {
            assert_eq!(watcher.session().1["title"], title);
        }
    }
    let (calls, most) = (sim.calls(), begun.elapsed().as_secs() + 2);
    assert!(calls <= most, "{calls} calls in {:?} for 60 watchers", begun.elapsed());
    drop(watchers.into_iter().map(|watcher| watcher.stream.shutdown(std::net::Shutdown::Both)).collect::<Vec<_>>());
    until("all are gone", || weir.metric("weir_watchers") == 0.0);
    let calls = sim.calls();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(sim.calls(), calls, "nobody watches, nobody asks");
}

#[test]
fn a_session_that_has_ended_ends_the_stream() {
    let sim = Sim::start();
    let weir = Config::shipped().edit("providers/agenthuman.yaml", "watch: 5s", "watch: 1s").start(&sim);
    let path = "/v1/sessions/sess_SIM00000001/watch";
    let native = |status: &str| {
        json!({ "success": true, "session": { "session_id": "sess_SIM00000001", "status": status, "ended_at": "2024-01-01T00:00:00Z" } }).to_string()
    };
    sim.answers("/v1/sessions/sess_SIM00000001", 200, &json!({}), &native("started"));
    let watcher = Watcher::start(weir.http, path, &[]);
    assert_eq!(watcher.session().1["status"], "active");
    sim.forget();
    sim.answers("/v1/sessions/sess_SIM00000001", 200, &json!({}), &native("ended"));
    let (id, data) = watcher.session();
    assert_eq!((&data["status"], watcher.next()), (&json!("ended"), Sent::End));
    // A browser comes back with the last id, and is told to stay away.
    let again = weir.get_with(path, &[("Last-Event-ID", &id)]);
    assert_eq!((again.status, again.body.len()), (204, 0));
    let anew = Watcher::start(weir.http, path, &[]);
    assert_eq!((&anew.session().1["status"], anew.next()), (&json!("ended"), Sent::End));
}

#[test]
fn what_fails_is_told_once_and_what_is_gone_ends() {
    let sim = Sim::start();
    let weir = every_second().start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    watcher.session();
    sim.answers(NATIVE, 500, &json!({}), "{}");
    let Sent::Event { name, id: None, data } = watcher.next() else { panic!("no problem") };
    assert_eq!((name.as_str(), &data["code"]), ("problem", &json!("provider_error")));
    let calls = sim.calls();
    until("it is asked for again", || sim.calls() > calls);
    changed(&sim, "back", true);
    assert_eq!(watcher.session().1["title"], "back");
    sim.forget();
    sim.answers(NATIVE, 404, &json!({}), "{\"messages\":[\"Session not found.\"]}");
    let Sent::Event { data, .. } = watcher.next() else { panic!("no problem") };
    assert_eq!((&data["code"], watcher.next()), (&json!("session_not_found"), Sent::End));
    assert_eq!(
        weir.get("/v1/sessions/vectara:agt_customer_support:ase_none/watch").code(),
        (404, "session_not_found".into())
    );
}

#[test]
fn rights_that_a_reload_takes_away_end_it_and_a_shutdown_does() {
    let sim = Sim::start();
    let mut weir = every_second().clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n").start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    let other =
        Watcher::start(weir.http, &format!("{PATH}?include=native"), &[("X-API-Key", "open"), ("X-Weir-Key", "other")]);
    watcher.session();
    other.session();
    weir.config.write("clients.yaml", &digests("clients:\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n"));
    assert_eq!(weir.reload().0, 200);
    let Sent::Event { name, data, .. } = watcher.next() else { panic!("no problem") };
    assert_eq!((name.as_str(), &data["code"], watcher.next()), ("problem", &json!("unauthorized"), Sent::End));
    changed(&sim, "still there", true);
    assert_eq!(other.session().1["title"], "still there", "who may still is not disturbed");
    let begun = Instant::now();
    weir.process.signal("TERM");
    assert!(weir.process.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(9), "not the whole grace: {:?}", begun.elapsed());
    assert_eq!(other.next(), Sent::End);
}

#[test]
fn watchers_are_bounded_and_heads_do_not_watch() {
    let sim = Sim::start();
    let weir = every_second().edit("weir.yaml", "max_watchers: 10000 ", "max_watchers: 2 ").start(&sim);
    let one = Watcher::start(weir.http, PATH, &[]);
    let _two = Watcher::start(weir.http, PATH, &[]);
    let third = weir.get(PATH);
    assert_eq!(third.code(), (503, "overloaded".into()));
    assert!(third.header("retry-after").is_some());
    one.session();
    one.stream.shutdown(std::net::Shutdown::Both).unwrap();
    until("its place is free", || weir.metric("weir_watchers") < 2.0);
    let head = send(weir.http, "HEAD", PATH, &[("X-API-Key", "open")]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let _third = Watcher::start(weir.http, PATH, &[]);
    until("it watches", || weir.metric("weir_watchers") == 2.0);
}

#[test]
fn silence_is_broken_by_heartbeats() {
    let sim = Sim::start();
    let weir = Config::shipped().start(&sim);
    let watcher = Watcher::start(weir.http, PATH, &[]);
    watcher.session();
    assert_eq!(watcher.next(), Sent::Beat);
}
