//! Attacks on memory: whatever one client does, resident memory stays within the documented bound, and the other client
//! gets its answers meanwhile.
//!
//! `make memory-attacks` runs them at full size, all at the same time, against a release build.

use crate::frames;
use crate::http2_memory;
use crate::support::*;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const MIB: f64 = 1024.0 * 1024.0;
/// Memory of the program without clients: the last term of the formula in OPERATIONS.md.
const PROGRAM: f64 = 50.0 * MIB;
/// Memory of a client connection, as OPERATIONS.md has it.
pub const CONNECTION: f64 = 28_000.0;

/// How much an attack sends, and against which limits.
#[derive(Clone, Copy)]
pub struct Scale {
    pub cache_mib: u32,
    pub buffered_mib: u32,
    /// The length of one session's filler.
    pub body: usize,
    pub batches: usize,
    pub slow_readers: usize,
    pub http2_connections: usize,
    pub streams: usize,
    pub watchers: usize,
    /// HTTP/2 connections with a request on each stream, whose responses nobody reads.
    pub unread: usize,
    pub idle: usize,
}

pub const SMALL: Scale = Scale {
    cache_mib: 8,
    buffered_mib: 48,
    body: 1 << 20,
    batches: 4,
    slow_readers: 100,
    http2_connections: 2,
    streams: 60,
    watchers: 100,
    unread: 50,
    idle: 1500,
};

/// The sizes with which the attacks were reported, and the limits as shipped.
const FULL: Scale = Scale {
    cache_mib: 256,
    buffered_mib: 512,
    body: (4 << 20) - 1000,
    batches: 16,
    slow_readers: 300,
    http2_connections: 4,
    streams: 95,
    watchers: 300,
    unread: 180,
    idle: 2900,
};

const CLIENTS: &str = "clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ], reveal_secrets: true }\n  - { id: other, keys: [ { sha256: SHA(other) } ] }\n";

/// A gateway under attack.
pub struct Target {
    pub weir: Weir,
    pub sim: Sim,
    scale: Scale,
    baseline: f64,
}

impl Target {
    pub fn start(scale: Scale) -> Self {
        Self::with(Config::shipped(), scale)
    }

    /// Starts Weir with this configuration and the limits of `scale`.
    pub fn with(config: Config, scale: Scale) -> Self {
        let sim = Sim::with_options(&["--sessions", "20"]);
        let weir = config
            .clients(CLIENTS)
            .edit("weir.yaml", "max_bytes: 256MiB", &format!("max_bytes: {}MiB", scale.cache_mib))
            .edit("weir.yaml", "max_buffered: 512MiB", &format!("max_buffered: {}MiB", scale.buffered_mib))
            .edit("weir.yaml", "access_log: on", "access_log: off")
            .edit("weir.yaml", "    # h2c: true ", "    h2c: true ")
            .edit("weir.yaml", "connections_per_address: 5000", "connections_per_address: 20000")
            .edit("providers/vectara.yaml", "    requests: 1000\n", "    requests: 1000000\n")
            .edit("providers/vectara.yaml", "    burst: 1000\n", "    burst: 1000000\n")
            .edit("providers/vectara.yaml", "watch: 5s ", "watch: 1s ")
            .edit("providers/vectara.yaml", "concurrent: 64", "concurrent: 1000")
            .start(&sim);
        let filler = "x".repeat(scale.body);
        let body =
            format!(r#"{{"key":"ase_1","agent_key":"agt_1","enabled":true,"metadata":{{"filler":"{filler}"}}}}"#);
        sim.set_response("/v2/agents/agt_1", 200, &json!({}), &body);
        assert_eq!(weir.get(PALANTIR).status, 200);
        let baseline = resident(&weir);
        Self { weir, sim, scale, baseline }
    }

    /// The resident memory at the start.
    pub fn baseline(&self) -> f64 {
        self.baseline
    }

    /// The documented bound, with this many bytes for connections, and 10 %.
    fn bound(&self, connections: f64) -> f64 {
        let Scale { cache_mib, buffered_mib, .. } = self.scale;
        let limits = 3.0 * f64::from(cache_mib) * MIB + f64::from(buffered_mib) * MIB;
        // A debug build takes more at its start: its program file is larger.
        let program = if std::env::var_os("WEIR_PROGRAM").is_some() { PROGRAM } else { PROGRAM.max(self.baseline) };
        1.1 * (limits + connections + program)
    }

    /// Requires that memory was never over the bound since the start, and prints it.
    fn expect_bounded(&self, attack: &str, connections: usize) {
        self.expect_bounded_with(attack, connections as f64 * CONNECTION);
    }

    /// The same, with this many bytes for all connections.
    pub fn expect_bounded_with(&self, attack: &str, connections: f64) {
        let (peak, bound) = (status(&self.weir, "VmHWM"), self.bound(connections));
        println!(
            "{attack}: {:.0} MiB at the start, peak {:.0} MiB, bound {:.0} MiB; reserved {:.1} MiB",
            self.baseline / MIB,
            peak / MIB,
            bound / MIB,
            self.weir.metric("weir_buffered_bytes") / MIB
        );
        assert!(peak <= bound, "{attack}: {peak} bytes, more than {bound}");
    }

    /// Requires that the other client gets an answer from the cache and one from the provider.
    pub fn expect_other_client_served(&self) {
        for headers in [&[][..], &[("Cache-Control", "no-cache")]] {
            let response = self.weir.get_with_key("other", PALANTIR, headers);
            assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
        }
    }

    /// Waits until nothing is reserved any more.
    pub fn expect_all_released(&self) {
        wait_until("all memory is released", || self.weir.metric("weir_buffered_bytes") == 0.0);
    }

    fn batch(&self, names: impl Iterator<Item = String>) -> (u16, u64) {
        let ids: Vec<String> = names.map(|name| format!("id=vectara:agt_1:{name}")).collect();
        read_discarding(self.weir.http, &format!("/v1/sessions:batchGet?{}", ids.join("&")))
    }
}

/// The resident memory, once scrapes of the metrics have taken what they need: the first ones create series, and each makes a
/// long text.
fn resident(weir: &Weir) -> f64 {
    (0..20).for_each(|_| drop(weir.metrics()));
    status(weir, "VmRSS")
}

/// A number of bytes from `/proc/PID/status`.
pub fn status(weir: &Weir, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", weir.process.id())).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    value.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

fn get(target: &str) -> Vec<u8> {
    request("GET", target, &[("X-API-Key", "open")])
}

/// Sends a GET and reads the whole response without keeping it. Returns the status and the length of the body.
fn read_discarding(address: SocketAddr, target: &str) -> (u16, u64) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(2 * MAX_WAIT)).unwrap();
    socket.write_all(&get(target)).unwrap();
    let (mut head, mut buffer, mut body) = (Vec::new(), vec![0; 1 << 16], None);
    loop {
        let read = socket.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        if let Some(body) = &mut body {
            *body += read as u64;
            continue;
        }
        head.extend_from_slice(&buffer[..read]);
        let end = head.windows(4).position(|window| window == b"\r\n\r\n");
        body = end.map(|end| (head.len() - end - 4) as u64);
    }
    let text = String::from_utf8_lossy(&head);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    let length: Option<u64> =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|length| length.parse().unwrap());
    assert_eq!(length, body, "the whole body arrived: {status}");
    (status, body.unwrap_or_default())
}

/// Connects with a small receive buffer, so that the system takes little of the response for a client that does not read.
pub fn slow_connection(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Sends these requests on one connection each and does not read the responses.
fn without_reading(target: &Target, count: usize, path: impl Fn(usize) -> String) -> Vec<TcpStream> {
    let send = |n| {
        let mut socket = slow_connection(target.weir.http);
        socket.write_all(&get(&path(n))).unwrap();
        socket
    };
    (0..count).map(send).collect()
}

/// Waits until the number of requests that Weir has refused with 503 and of those in flight is `count`.
pub fn wait_for_responses(target: &Target, count: usize) {
    let begun = Instant::now();
    loop {
        let metrics = target.weir.metrics();
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
        let is_counted = |line: &&str| {
            line.starts_with("weir_http_requests_in_flight ")
                || line.starts_with("weir_watchers ")
                || line.starts_with("weir_http_requests_total{client=\"open\"") && line.contains("status=\"503\"")
        };
        let waiting: f64 = metrics.lines().filter(is_counted).map(value).sum();
        let calls = target.weir.metric("weir_upstream_requests_in_flight");
        // Watched sessions are requested again and again.
        let watches = target.weir.metric("weir_watchers") > 0.0;
        if waiting >= count as f64 && (calls == 0.0 || watches) {
            return;
        }
        assert!(begun.elapsed() < MAX_WAIT, "{waiting} of {count} requests wait or are refused, {calls} calls");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn batch_of_one_hundred(target: &Target, number: usize) -> (u16, u64) {
    target.batch((0..100).map(|n| format!("ase_{number}_{n}")))
}

#[test]
fn a_batch_of_a_hundred_big_sessions_is_refused_at_once() {
    let target = Target::start(SMALL);
    let (status, _) = batch_of_one_hundred(&target, 0);
    assert_eq!(status, 503, "a hundred sessions of 1 MiB are more than the client's share of 24 MiB");
    let calls = target.sim.call_counts()["calls"].as_object().unwrap().len();
    assert!(calls < 60, "the batch stops its reads: {calls} calls");
    target.expect_other_client_served();
    assert_eq!(target.batch((0..10).map(|n| format!("ase_{n}"))).0, 200, "the client itself is served again");
    target.expect_all_released();
    target.expect_bounded("one batch", 1);
}

#[test]
fn batches_at_once_leave_the_other_client_its_share() {
    let target = Target::start(SMALL);
    std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..SMALL.batches)
            .map(|number| {
                scope.spawn({
                    let target = &target;
                    move || batch_of_one_hundred(target, number).0
                })
            })
            .collect();
        while attackers.iter().any(|attacker| !attacker.is_finished()) {
            target.expect_other_client_served();
        }
        for attacker in attackers {
            assert_eq!(attacker.join().unwrap(), 503);
        }
    });
    target.expect_all_released();
    target.expect_bounded("batches at once", SMALL.batches);
}

#[test]
fn a_batch_that_names_one_cached_id_a_hundred_times_is_written_from_the_stored_bytes() {
    let target = Target::start(SMALL);
    assert_eq!(target.batch(std::iter::once("ase_1".to_owned())).0, 200);
    let before = status(&target.weir, "VmHWM");
    let (code, length) = target.batch((0..100).map(|_| "ase_1".to_owned()));
    assert_eq!(code, 200);
    assert!(length > 100 * SMALL.body as u64, "{length}");
    let grown = status(&target.weir, "VmHWM") - before;
    assert!(grown < 16.0 * MIB, "memory grew by {grown} bytes for a response of {length} bytes");
    target.expect_all_released();
    target.expect_bounded("one id a hundred times", 1);
}

/// The system itself takes more than 1 MiB for a client that does not read.
const LONG_BODIES: Scale = Scale { body: FULL.body, ..SMALL };

#[test]
fn slow_readers_of_copied_fields_are_refused_beyond_their_share() {
    let target = Target::start(LONG_BODIES);
    let path = |_| "/v1/sessions/vectara:agt_1:ase_1?fields=metadata".to_owned();
    let readers = without_reading(&target, SMALL.slow_readers, path);
    wait_for_responses(&target, SMALL.slow_readers);
    target.expect_other_client_served();
    target.expect_bounded("slow readers of fields", readers.len());
    assert!(target.weir.metric("weir_client_buffered_bytes{client=\"open\"}") <= 24.0 * MIB);
    drop(readers);
    target.expect_all_released();
}

#[test]
fn slow_readers_of_sessions_that_the_cache_has_evicted_are_refused_beyond_their_share() {
    // Each entry takes 8 MiB. The memory of an evicted one is free only once no thread reads the cache any more.
    let target = Target::start(Scale { cache_mib: 32, ..LONG_BODIES });
    let readers = without_reading(&target, SMALL.slow_readers, |n| format!("/v1/sessions/vectara:agt_1:ase_{n}"));
    wait_for_responses(&target, SMALL.slow_readers);
    target.expect_other_client_served();
    target.expect_bounded("slow readers of distinct sessions", readers.len());
    drop(readers);
    target.expect_all_released();
}

/// Opens connections whose streams have no window.
fn zero_window_streams(target: &Target) -> Vec<TcpStream> {
    zero_windows(target, |connection, n| format!("/v1/sessions/vectara:agt_1:ase_{connection}_{n}"))
}

fn zero_windows(target: &Target, path: impl Fn(usize, usize) -> String) -> Vec<TcpStream> {
    let Scale { http2_connections, streams, .. } = target.scale;
    let open = |connection: usize| {
        let mut socket = TcpStream::connect(target.weir.http).unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE is 0.
        let mut bytes = [frames::PREFACE, &frames::frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
        for n in 0..streams {
            let path = path(connection, n);
            bytes.extend(frames::request(2 * u32::try_from(n).unwrap() + 1, "GET", &path, "open", &[], 5));
        }
        socket.write_all(&bytes).unwrap();
        socket
    };
    (0..http2_connections).map(open).collect()
}

#[test]
fn http2_streams_without_a_window_are_refused_beyond_their_share() {
    let target = Target::start(SMALL);
    let connections = zero_window_streams(&target);
    // A refused stream waits for a window too: its problem is a body.
    wait_for_responses(&target, SMALL.http2_connections * SMALL.streams);
    target.expect_other_client_served();
    target.expect_bounded("streams without a window", connections.len());
    assert!(target.weir.metric("weir_client_buffered_bytes{client=\"open\"}") <= 24.0 * MIB);
    drop(connections);
    target.expect_all_released();
}

#[test]
fn watchers_of_big_sessions_are_refused_beyond_their_share() {
    let target = Target::start(SMALL);
    for distinct in [false, true] {
        let path = |n: usize| format!("/v1/sessions/vectara:agt_1:ase_{}/watch", if distinct { n } else { 0 });
        let watchers = without_reading(&target, SMALL.watchers, path);
        wait_for_responses(&target, SMALL.watchers);
        // The session changes, so that each watcher gets another event.
        let filler = "y".repeat(SMALL.body);
        let body =
            format!(r#"{{"key":"ase_1","agent_key":"agt_1","enabled":true,"metadata":{{"filler":"{filler}"}}}}"#);
        target.sim.clear_faults();
        target.sim.set_response("/v2/agents/agt_1", 200, &json!({}), &body);
        target.sim.reset_calls();
        wait_until("the watched sessions are fetched again", || target.sim.calls() >= 2);
        target.expect_other_client_served();
        target.expect_bounded("watchers", watchers.len());
        assert!(target.weir.metric("weir_client_buffered_bytes{client=\"open\"}") <= 24.0 * MIB);
        drop(watchers);
        target.expect_all_released();
    }
}

/// Opens connections, gets one answer on each, and leaves them open.
fn idle_connections(target: &Target, count: usize) -> Vec<TcpStream> {
    let open = |n: usize| {
        let mut socket = TcpStream::connect(target.weir.http).unwrap();
        socket.set_read_timeout(Some(MAX_WAIT)).unwrap();
        if n.is_multiple_of(2) {
            let get = format!("GET {PALANTIR} HTTP/1.1\r\nHost: a\r\nX-API-Key: open\r\n\r\n");
            socket.write_all(get.as_bytes()).unwrap();
            let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
            while !got.ends_with(b"}") {
                let read = socket.read(&mut buffer).unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&got));
                got.extend_from_slice(&buffer[..read]);
            }
        }
        socket
    };
    (0..count).map(open).collect()
}

#[test]
fn idle_connections_take_no_more_than_documented() {
    let target = Target::start(SMALL);
    let before = status(&target.weir, "VmRSS");
    let open = idle_connections(&target, SMALL.idle);
    wait_until("all are counted", || target.weir.metric("weir_connections") >= SMALL.idle as f64);
    let each = (status(&target.weir, "VmRSS") - before) / SMALL.idle as f64;
    println!("each idle connection takes {each:.0} bytes");
    assert!(each <= 1.1 * CONNECTION, "{each} bytes");
    target.expect_other_client_served();
    target.expect_bounded("idle connections", open.len());
}

/// Ends the other client's requests, also if the test fails.
struct EndOnDrop<'e>(&'e AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Every attack at the same time. `make memory-attacks` runs it at full size.
#[test]
fn all_attacks_at_once_stay_within_the_bound() {
    let full = std::env::var_os("WEIR_MEMORY_ATTACKS").is_some_and(|size| size == "full");
    let scale =
        if full { FULL } else { Scale { slow_readers: 30, streams: 20, watchers: 30, idle: 200, batches: 2, ..SMALL } };
    let target = Target::start(scale);
    let (ended, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let session = |n: usize| format!("/v1/sessions/vectara:agt_1:ase_{n}");
    std::thread::scope(|scope| {
        let _end = EndOnDrop(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                target.expect_other_client_served();
                answers.fetch_add(2, Ordering::Relaxed);
            }
        });
        let idle = idle_connections(&target, scale.idle);
        let readers = without_reading(&target, scale.slow_readers, |_| format!("{}?fields=metadata", session(1)));
        let watchers = without_reading(&target, scale.watchers, |n| format!("{}/watch", session(n)));
        let streams = zero_window_streams(&target);
        let unread = http2_memory::unread_connections(&target, scale.unread, "/nothing", Some("open"));
        let batches: Vec<_> = (0..scale.batches)
            .map(|number| {
                scope.spawn({
                    let target = &target;
                    move || batch_of_one_hundred(target, number).0
                })
            })
            .collect();
        for batch in batches {
            assert_eq!(batch.join().unwrap(), 503);
        }
        let repeated = target.batch((0..100).map(|_| "ase_1".to_owned()));
        assert!(matches!(repeated.0, 200 | 503), "{repeated:?}");
        let http2 = http2_memory::PLACES * (streams.len() + unread.len());
        let connections = idle.len() + readers.len() + watchers.len() + http2 + scale.batches;
        target.expect_bounded("all attacks", connections);
    });
    assert!(answers.load(Ordering::Relaxed) > 0);
    println!("the other client got {} answers", answers.load(Ordering::Relaxed));
}

#[test]
fn streams_without_a_window_take_no_more_than_a_share_without_a_key_and_for_problems_either() {
    for (path, client) in [("/openapi.json", "none"), ("/v1/sessions/unknown:1", "open")] {
        let target = Target::start(Scale { http2_connections: 12, streams: 95, ..SMALL });
        let connections = zero_windows(&target, |_, _| path.to_owned());
        let (mut waiting, mut refused) = (0.0, 0.0);
        wait_until("every stream waits or is refused", || {
            waiting = target.weir.metric("weir_http_requests_in_flight");
            let metrics = target.weir.metrics();
            let is_refused = |line: &&str| {
                line.starts_with(&format!("weir_http_requests_total{{client=\"{client}\"")) && line.contains("\"503\"")
            };
            let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            refused = metrics.lines().filter(is_refused).map(count).sum();
            waiting + refused >= 1140.0
        });
        println!("{path}: {waiting} streams wait, {refused} have no body");
        assert!(waiting <= 24.0 * MIB / STREAM && refused > 300.0, "{waiting} wait, {refused} are refused");
        target.expect_other_client_served();
        target.expect_bounded("streams without a window", connections.len());
        drop(connections);
        target.expect_all_released();
    }
}

/// Requires that `count` clients, which wait for something, took at most this many bytes each since `before`.
fn expect_each(target: &Target, what: &str, count: usize, before: f64, limit: f64) {
    let each = (status(&target.weir, "VmRSS") - before) / count as f64;
    println!("each {what} takes {each:.0} bytes");
    assert!(each <= 1.1 * limit, "each {what} takes {each} bytes, more than {limit}");
}

/// What is reserved for a watcher itself, without its connection and its events.
const WATCHER: f64 = 32.0 * 1024.0;
/// What is reserved for an HTTP/2 stream itself, without its body.
const STREAM: f64 = 48.0 * 1024.0;

#[test]
fn watchers_and_streams_take_no_more_than_is_reserved_for_them() {
    // So many that what scrapes take and return meanwhile, some megabytes, does not matter.
    let scale = Scale { body: 10, buffered_mib: 256, http2_connections: 16, streams: 95, ..SMALL };
    let count = 1200;
    let target = Target::start(scale);
    // Connections to the provider are not part of the measurement.
    target.weir.config.change("providers/vectara.yaml", "concurrent: 1000", "concurrent: 4");
    wait_until("the reload succeeds", || target.weir.reload().0 == 200);
    let session = |n: usize| format!("/v1/sessions/vectara:agt_1:ase_{n}");
    (0..count).for_each(|n| assert_eq!(target.weir.get(&session(n)).status, 200));
    let before = resident(&target.weir);
    let watchers = without_reading(&target, count, |n| format!("{}/watch", session(n)));
    wait_until("the watchers are counted", || target.weir.metric("weir_watchers") == count as f64);
    target.sim.reset_calls();
    wait_until("all sessions are fetched again", || target.sim.calls() >= count as u64);
    assert!(target.weir.metric("weir_buffered_bytes") >= count as f64 * WATCHER);
    expect_each(&target, "watcher", count, before, CONNECTION + WATCHER);
    drop(watchers);
    target.expect_all_released();
    let (target, count) = (Target::start(scale), scale.http2_connections * scale.streams);
    for connection in 0..scale.http2_connections {
        (0..scale.streams).for_each(|n| {
            target.weir.get(&format!("/v1/sessions/vectara:agt_1:ase_{connection}_{n}"));
        });
    }
    let before = resident(&target.weir);
    let streams = zero_window_streams(&target);
    wait_until("all streams wait", || target.weir.metric("weir_http_requests_in_flight") == count as f64);
    assert!(target.weir.metric("weir_buffered_bytes") >= count as f64 * STREAM);
    expect_each(&target, "stream", count, before, STREAM);
    drop(streams);
    target.expect_all_released();
}

#[test]
fn slow_readers_of_forwarded_downloads_are_refused_beyond_their_share() {
    let target = Target::start(SMALL);
    let path = "/vectara/v2/agents/agt_customer_support/sessions/ase_customer_support_001/artifacts/art_20";
    let before = status(&target.weir, "VmRSS");
    let readers = without_reading(&target, 60, |_| path.to_owned());
    // 24 MiB are 28 times 864 KiB.
    let refused = "weir_http_requests_total{client=\"open\",provider=\"vectara\",route=\"native\",status=\"503\"}";
    wait_until("the others are refused", || target.weir.metric(refused) == 32.0);
    assert_eq!(target.weir.metric("weir_http_requests_in_flight"), 28.0);
    target.expect_other_client_served();
    let other = target.weir.get_as("other", &format!("{}1", path.trim_end_matches("20")));
    assert!(other.status == 200 && other.body.len() > 1 << 20, "{} {}", other.status, other.body.len());
    target.expect_bounded("slow downloads", readers.len());
    let grown = status(&target.weir, "VmRSS") - before - 60.0 * CONNECTION;
    println!("28 slow downloads take {:.1} MiB", grown / MIB);
    drop(readers);
    target.expect_all_released();
}
