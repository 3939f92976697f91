//! Property test of the removal of secrets: random bodies around the shapes of a session and of a list, in which every
//! secret contains a canary. No client without `reveal_secrets` gets the canary.

#![allow(clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use proptest::prelude::*;
use std::fmt::Write;
use std::path::Path;
use std::sync::LazyLock;
use weir::testing::{
    ConfigSource, Form, Operation, PageHeaders, ParsedJson, Provider, Show, Snapshot, now, parse_json, visible_body,
};

const CANARY: &str = "canary-5e55";

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut source = ConfigSource::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("config"));
    for (name, value) in [("VECTARA_API_KEY", "a"), ("PALANTIR_TOKEN", "b"), ("AGENTHUMAN_API_KEY", "c")] {
        source.overlay.insert(name.into(), value.into());
    }
    Snapshot::load(&source, None, &[7; 32], now()).unwrap_or_else(|faults| panic!("{faults:?}"))
});

/// The provider whose sessions have the most secrets: `daily_room.token`, `access_token` and `session_token`.
fn provider() -> &'static Provider {
    SNAPSHOT.providers.iter().find(|provider| &*provider.name == "agenthuman").expect("it is shipped")
}

/// Makes a body from a list of choices, so that a failure can be reduced.
struct Body<'c> {
    choices: std::slice::Iter<'c, u8>,
    text: String,
}

impl Body<'_> {
    fn choose(&mut self, count: u8) -> u8 {
        self.choices.next().map_or(0, |choice| choice % count)
    }

    fn secret(&mut self) {
        let text = [
            "\"canary-5e55\"",
            "{\"a\":\"canary-5e55\"}",
            "[\"canary-5e55\",1]",
            "\"{\\\"token\\\":\\\"canary-5e55\\\"}\"",
            "{\"canary-5e55\":{}}",
        ][usize::from(self.choose(5))];
        self.text.push_str(text);
    }

    /// A string that contains a secret in JSON, or in something like it.
    fn embedded(&mut self) {
        let text = [
            "created",
            r#"{"access_token":"canary-5e55"}"#,
            r#"{"daily_room":{"token":"canary-5e55"},"daily_room":1}"#,
            r#"data: {"session_token" : "canary-5e55"} [end]"#,
            "{'access_token': 'canary-5e55'}",
            r#"{"\u0061ccess_token":["canary-5e55"]}"#,
            r#"{"Daily_Room":"canary-5e55"}"#,
        ][usize::from(self.choose(7))];
        let encoded =
            (0..self.choose(4)).fold(text.to_owned(), |text, _| serde_json::to_string(&text).expect("a string"));
        let literal = serde_json::to_string(&encoded).expect("a string");
        match self.choose(3) {
            0 => _ = write!(self.text, "\"\\ud83d {}", &literal[1..]),
            _ => self.text.push_str(&literal),
        }
    }

    /// A value. `in_room` says whether it is below a room, where a token is secret; `names` are those of its parent.
    fn value(&mut self, depth: u8, in_room: bool) {
        match if depth == 0 { self.choose(4) } else { self.choose(12) } {
            0 => self.text.push_str("null"),
            1 => self.text.push_str("\"text \\ud83d\""),
            2 => self.text.push_str(" 1.50 "),
            3 => self.embedded(),
            4 | 5 => {
                self.text.push_str("[ ");
                for position in 0..self.choose(3) {
                    self.text.push_str(if position > 0 { ",\n" } else { "" });
                    self.value(depth - 1, in_room);
                }
                self.text.push(']');
            }
            _ => self.object(depth, in_room),
        }
    }

    fn object(&mut self, depth: u8, in_room: bool) {
        self.text.push('{');
        for position in 0..self.choose(6) {
            self.text.push_str(if position > 0 { ", " } else { "" });
            match self.choose(11) {
                0 | 1 => self.member("session", |body| body.container(depth, in_room)),
                2 => self.member("sessions", |body| body.container(depth, in_room)),
                3 | 4 => self.member("daily_room", |body| match body.choose(4) {
                    0 => body.text.push_str("\"token=canary-5e55\""),
                    1 => body.text.push_str("[\"canary-5e55\",[\"canary-5e55\"],{\"url\":\"u\"}]"),
                    _ => body.value(depth.saturating_sub(1), true),
                }),
                5 | 6 if in_room => self.member("token", Self::secret),
                5 => self.member("access_token", Self::secret),
                6 => self.member("session_token", Self::secret),
                7 => self.member("session_id", |body| body.text.push_str("\"sess_1\"")),
                8 => self.member("metadata", |body| body.value(depth.saturating_sub(1), in_room)),
                9 => self.member("status", |body| body.value(0, in_room)),
                10 if self.choose(2) == 0 => {
                    self.embedded();
                    self.text.push_str(":1");
                }
                _ => self.member("other", |body| body.value(depth.saturating_sub(1), in_room)),
            }
        }
        self.text.push('}');
    }

    /// The value of a member that should be a session or a list.
    fn container(&mut self, depth: u8, in_room: bool) {
        match self.choose(8) {
            0 => self.text.push_str("\"{\\\"access_token\\\":\\\"canary-5e55\\\"}\""),
            1 => {
                self.text.push('[');
                self.object(depth.saturating_sub(1), in_room);
                self.text.push(']');
            }
            2 => self.value(depth.saturating_sub(1), in_room),
            _ => self.object(depth.saturating_sub(1), in_room),
        }
    }

    fn member(&mut self, name: &str, value: impl FnOnce(&mut Self)) {
        match self.choose(6) {
            // The same name, written in another way.
            0 => _ = write!(self.text, "\"\\u{:04x}{}\":", name.as_bytes()[0], &name[1..]),
            1 => _ = write!(self.text, "\"{}\" : ", name.to_uppercase()),
            _ => _ = write!(self.text, "\"{name}\":"),
        }
        value(self);
    }
}

fn body() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<u8>(), 0..200).prop_map(|choices| {
        let mut body = Body { choices: choices.iter(), text: String::new() };
        body.object(6, false);
        body.text
    })
}

fn contains_canary(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_secret_reaches_a_client_without_reveal_secrets(body in body(), cut in 0..4000_usize) {
        let provider = provider();
        let bytes = Bytes::from(body.clone());
        for own in [Some(Operation::GetSession), Some(Operation::ListSessions), None] {
            let own = own.and_then(|operation| provider.operations.get(operation));
            if let Some(visible) = visible_body(&provider.operations, own, &provider.mapping, &bytes) {
                prop_assert!(!contains_canary(&visible), "{}", String::from_utf8_lossy(&visible));
                prop_assert!(parse_json(&visible).is_ok());
            }
        }
        // A body that ends too early is the text of an error.
        let part = bytes.slice(..cut.min(bytes.len()));
        if let Some(visible) = visible_body(&provider.operations, None, &provider.mapping, &part) {
            prop_assert!(!contains_canary(&visible));
        }
        let Ok(native) = ParsedJson::of(&bytes) else { return Err(TestCaseError::fail("the body is JSON")) };
        for (_, operation) in provider.operations.iter() {
            let Ok(parsed) = operation.read(&provider.name, &provider.mapping, &native, &PageHeaders::default(), now()) else { continue };
            for form in [Form::Unified, Form::WithNative] {
                let view = parsed.view(&provider.mapping, Show { secrets: false, form });
                prop_assert!(!contains_canary(&view.body), "{}", String::from_utf8_lossy(&view.body));
            }
        }
    }
}
