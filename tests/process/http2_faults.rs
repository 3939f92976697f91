//! Faulty HTTP/2 requests on every route: what they get, and what becomes of their connection.

use crate::frames::{self, GOAWAY, HEADERS, RESET, frame};
use crate::host_values::{routes, start};
use crate::support::*;
use serde_json::{Value, json};
use std::io::Write;

#[test]
fn trailers_with_a_pseudo_header_field_reset_the_stream_on_every_route() {
    let sim = Sim::start();
    let weir = start(&sim);
    let trailers = [&[0x00, 5][..], b":path", &[2], b"/x"].concat();
    for route in routes() {
        for body in [&[][..], &[frame(0, 0, 1, b"hi")]] {
            let mut socket = frames::connect(&weir);
            let request = frames::request(1, "GET", &route, "open", &[], 4);
            socket.write_all(&[request, body.concat(), frame(HEADERS, 5, 1, &trailers)].concat()).unwrap();
            let ended = frames::read_until(&mut socket, |kind, stream, payload| {
                assert!(kind != HEADERS && kind != GOAWAY, "{route} got {payload:?}");
                kind == RESET && stream == 1
            });
            assert!(ended, "{route} is not reset");
            // The connection goes on.
            socket.write_all(&frames::request(3, "GET", &route, "open", &[], 5)).unwrap();
            assert_ne!(frames::response_status(&mut socket, 3), None, "{route}");
        }
    }
}

/// A proxy that speaks HTTP/2 to Weir sends the requests of many clients over one connection.
#[test]
fn invalid_http2_requests_get_a_problem_and_do_not_end_the_connection() {
    let sim = Sim::start();
    let weir = start(&sim);
    let mut socket = frames::connect(&weir);
    let long = "M".repeat(33);
    let mut stream = 1;
    for _ in 0..40 {
        for (method, path, host) in
            [("GET", "/v1/providers#a", "a"), (&long, "/v1/providers", "a"), ("GET", "/v1/providers", "b")]
        {
            socket.write_all(&frames::request(stream, method, path, "open", &[("host", host)], 5)).unwrap();
            let (mut status, mut body) = (None, Vec::new());
            let ended = frames::read_until(&mut socket, |kind, of, payload| {
                assert!(kind != GOAWAY && kind != RESET, "{method} {path} {host}: {payload:?}");
                if of == stream && kind == HEADERS {
                    // `:status: 400`, by its index.
                    status = Some(payload[0]);
                } else if of == stream && kind == 0 {
                    body.extend_from_slice(payload);
                }
                of == stream && body.ends_with(b"}")
            });
            assert!(ended && status == Some(0x8c), "{status:?}");
            let problem: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&problem["code"], &problem["status"]), (&json!("invalid_request"), &json!(400)));
            stream += 2;
        }
    }
    socket.write_all(&frames::get(stream, "open")).unwrap();
    assert_eq!(frames::response_status(&mut socket, stream), Some(200));
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"malformed\"}"), 0.0);
}

#[test]
fn malformed_http2_requests_end_a_connection_only_if_most_are_malformed() {
    let sim = Sim::start();
    let weir = start(&sim);
    let malformed = |stream| frames::request(stream, "GET", "/v1/providers", "open", &[("x-a", " b")], 5);
    let mut socket = frames::connect(&weir);
    for number in 0..100 {
        let stream = 4 * number + 1;
        socket.write_all(&[malformed(stream), frames::get(stream + 2, "open")].concat()).unwrap();
        assert_eq!(frames::response_status(&mut socket, stream + 2), Some(200), "after {number} malformed requests");
    }
    let mut socket = frames::connect(&weir);
    let flood: Vec<u8> = (0..40).flat_map(|number| malformed(2 * number + 1)).collect();
    socket.write_all(&flood).unwrap();
    assert!(frames::read_until(&mut socket, |kind, _, _| kind == GOAWAY), "the client learns that the connection ends");
    assert_eq!(weir.metric("weir_connections_ended_total{reason=\"malformed\"}"), 1.0);
}
