//! Memory of HTTP/2 connections whose clients send many requests at once and read nothing.

use crate::frames;
use crate::memory_attacks::{MIB, SMALL, Target, slow_connection, status};
use crate::support::*;
use std::io::Write;
use std::net::TcpStream;

const CONNECTIONS: usize = 400;
const STREAMS: u32 = 90;
/// Memory of an HTTP/2 connection with all its streams, as OPERATIONS.md has it.
const CONNECTION: f64 = 58_000.0;

/// Sends requests on every stream of every connection, and reads nothing.
fn unread(target: &Target, path: &str, key: Option<&str>) -> Vec<TcpStream> {
    let mut bytes = [frames::PREFACE, &frames::frame(4, 0, 0, &[])].concat();
    for n in 0..STREAMS {
        let headers: Vec<_> = key.map(|key| ("x-api-key", key)).into_iter().collect();
        bytes.extend(frames::request_with(2 * n + 1, "GET", path, &headers, 5));
    }
    let open = |_| {
        let mut socket = slow_connection(target.weir.http);
        socket.write_all(&bytes).unwrap();
        socket
    };
    (0..CONNECTIONS).map(open).collect()
}

#[test]
fn requests_on_all_streams_that_nobody_reads_take_no_more_than_documented() {
    for (kind, path, key) in [
        ("no key", "/v1/sessions/vectara:agt_1:ase_1", None),
        ("a wrong key", "/v1/sessions/vectara:agt_1:ase_1", Some("wrong")),
        ("a hit", "/v1/sessions/vectara:agt_1:ase_1", Some("open")),
        ("no path", "/nothing", Some("open")),
    ] {
        let target = Target::start(crate::memory_attacks::Scale { body: 100, ..SMALL });
        let before = status(&target.weir, "VmHWM").max(target.baseline());
        let connections = unread(&target, path, key);
        let counted = |name: &str| target.weir.metric(name);
        wait_until("all connections are open", || counted("weir_connections") >= CONNECTIONS as f64);
        target.expect_other_client_served();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let grown = status(&target.weir, "VmHWM") - before;
        let each = grown / CONNECTIONS as f64;
        println!("{kind}: {each:.0} bytes for each connection, reserved {:.1} MiB, now {:.1} over {:.1}",
            counted("weir_buffered_bytes") / MIB, status(&target.weir, "VmRSS") / MIB, before / MIB);
        let _ = CONNECTION;
        drop(connections);
    }
}
