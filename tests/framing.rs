//! Property tests of message framing: Weir's reading of chunks and responses beside a second one, for any bytes in any
//! parts. `make fuzz` runs the same comparison with inputs that a fuzzer chooses.

// Tests fail by panics.
#![allow(clippy::expect_used, clippy::panic)]

mod reference;

use proptest::prelude::*;
use reference::{Reading, ResponseEnd, chunked, parts, plain_data, response_end};
use weir::testing::{ChunkedBody, Exchange};

/// Bodies near the grammar: pieces that readers treat differently, in any order.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("5\r\nhello\r\n"),
        Just("1\r\nx\r\n"),
        Just("0\r\n"),
        Just("\r\n"),
        Just("\n"),
        Just("\r"),
        Just("2"),
        Just("a"),
        Just(";"),
        Just(";a"),
        Just(";a=b"),
        Just("=\"q\\\"\""),
        Just("\""),
        Just(" "),
        Just("A: b\r\n"),
        Just("junk\r\n"),
        Just("\0"),
        Just("\u{7f}"),
        Just("é"),
        Just("GET / HTTP/1.1\r\n\r\n"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

fn check_chunks(bytes: &[u8], cuts: &[u8]) {
    let (mut reader, mut out, mut used) = (ChunkedBody::default(), Vec::new(), 0);
    let mut fault = None;
    for part in parts(bytes, cuts) {
        match reader.read(part, &mut out) {
            Ok(length) => used += length,
            Err(error) => {
                fault = Some(error);
                break;
            }
        }
    }
    let (data, ended) = plain_data(&out);
    match chunked(bytes) {
        Reading::Complete(expected, length) => {
            assert_eq!((fault, data, ended, used), (None, expected, true, length), "{:?}", bytes.escape_ascii());
        }
        Reading::Incomplete(expected) => {
            // The reference sees a fault only at the end of a line.
            assert!(!ended && !reader.is_complete(), "{}", bytes.escape_ascii());
            assert!(fault.is_some() || data == expected, "{}", bytes.escape_ascii());
        }
        Reading::Invalid => assert!(fault.is_some() && !ended, "{}", bytes.escape_ascii()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_read_as_in_the_second_reading(bytes in body(), cuts in prop::collection::vec(any::<u8>(), 0..5)) {
        check_chunks(&bytes, &cuts);
    }

    #[test]
    fn any_bytes_read_as_in_the_second_reading(bytes in prop::collection::vec(any::<u8>(), 0..60), cuts in prop::collection::vec(any::<u8>(), 0..5)) {
        check_chunks(&bytes, &cuts);
    }

    /// However a response arrives, the same bytes of it are read, and the connection is used again or not.
    #[test]
    fn a_response_reads_the_same_in_any_parts(
        fields in prop::collection::vec(prop_oneof![
            Just("Content-Length: 5"), Just("Content-Length: 0"), Just("Content-Length: 5, 5"), Just("Content-Length : 5"),
            Just("Transfer-Encoding: chunked"), Just("transfer-encoding: Chunked"), Just("Transfer-Encoding: gzip"),
            Just("Connection: close"), Just("X: y"), Just("Content-Length:\r\n 5"), Just("é: x"), Just(""),
        ], 0..4),
        status in prop_oneof![Just(200), Just(204), Just(304), Just(404), Just(100), Just(101)],
        version in prop_oneof![4 => Just("1.1"), 1 => Just("1.0"), 1 => Just("2.0")],
        head in any::<bool>(),
        rest in body(),
        cuts in prop::collection::vec(any::<u8>(), 0..5),
    ) {
        let method = if head { "HEAD" } else { "GET" };
        let lines: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let response = [format!("HTTP/{version} {status} X\r\n{lines}\r\n").into_bytes(), rest].concat();
        let read = |parts: Vec<&[u8]>| {
            let (mut exchange, mut out) = (Exchange::default(), Vec::new());
            exchange.sent(format!("{method} / HTTP/1.1\r\n\r\n").as_bytes());
            let result = parts.into_iter().try_for_each(|part| exchange.received(part, &mut out));
            (result, exchange.is_reusable(), exchange.is_complete(), exchange.closed(), out)
        };
        let (whole, cut) = (read(vec![&response]), read(parts(&response, &cuts)));
        prop_assert_eq!(&whole, &cut);
        prop_assert!(!(whole.1 && whole.0.is_err()), "a refused response leaves no connection");
        let lenient = fields.iter().any(|field| field.contains("\r\n ") || field.contains('é'));
        if status != 100 && !lenient {
            let (result, reusable, complete, closed, _) = &whole;
            match response_end(head, &response) {
                ResponseEnd::After(_, reuse) => {
                    prop_assert_eq!((result.is_ok(), *complete, *reusable), (true, true, reuse));
                }
                // The second reading sees a fault in a chunk only at the end of its line.
                ResponseEnd::Later => prop_assert!(!complete && !reusable && (closed.is_err() || result.is_err())),
                ResponseEnd::WithConnection => {
                    prop_assert_eq!((result.is_ok(), *complete, *reusable, closed.is_ok()), (true, false, false, true));
                }
                ResponseEnd::Uncertain => prop_assert!(result.is_err() && !complete && !reusable),
            }
        }
        // Nothing that is read is longer than what arrived.
        prop_assert!(whole.4.len() <= response.len() + 4);
    }
}
