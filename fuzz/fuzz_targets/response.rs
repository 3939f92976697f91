//! Reads arbitrary responses of a provider, cut anywhere: the same result in any parts, and a complete response only with
//! one certain end.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
#[allow(dead_code)]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::{Reading, chunked, parts, plain_data};
use weir::testing::{Exchange, ResponseFault};

type Result = (std::result::Result<(), ResponseFault>, bool, bool, Vec<u8>);

fn read(head: bool, parts: &[&[u8]]) -> Result {
    let (mut exchange, mut out) = (Exchange::default(), Vec::new());
    exchange.sent(if head { b"HEAD / HTTP/1.1\r\n\r\n" } else { b"GET / HTTP/1.1\r\n\r\n" });
    let result = parts.iter().try_for_each(|part| exchange.received(part, &mut out));
    (result, exchange.is_reusable(), exchange.is_complete(), out)
}

fuzz_target!(|input: (bool, Vec<u8>, Vec<u8>)| {
    let (head, bytes, cuts) = input;
    let whole = read(head, &[&bytes]);
    assert_eq!(whole, read(head, &parts(&bytes, &cuts)));
    let (result, reusable, complete, out) = whole;
    assert!(!reusable || (complete && result.is_ok()));
    if head || !complete || result.is_err() {
        return;
    }
    // A complete chunked response has the body of the second reading.
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let once = text.matches("http/").count() == 1 && text.matches("transfer-encoding").count() == 1;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    if let (true, Some(end)) = (once && text.starts_with("http/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n"), end) {
        let Reading::Complete(data, length) = chunked(&bytes[end..]) else { panic!("no complete body") };
        assert_eq!(plain_data(&out[end..]), (data, true));
        assert_eq!(reusable, end + length == bytes.len());
    }
});
