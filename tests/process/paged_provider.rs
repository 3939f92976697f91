//! A provider whose list has pages of every kind, one kind below each path, and the provider files for it.

use crate::support::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

/// The sessions on a page of the provider.
pub const PAGE: usize = 7;

/// The kinds of pages: the provider's name and path, the parameters of the list, and `next`.
pub const KINDS: [(&str, &str, &str); 17] = [
    ("text", "token: '{page_token}'", "$.next"),
    ("token", "token: '{page_token}'", "{ token: $.next, more: $.more }"),
    ("header", "token: '{page_token}'", "{ header: X-Next-Cursor }"),
    ("last-short", "after: '{page_token}'", "{ last: $.id, end: short }"),
    ("last-empty", "after: '{page_token}'", "{ last: $.id, end: empty }"),
    ("last-more", "after: '{page_token}'", "{ last: $.id, more: $.more }"),
    ("number-short", "page: '{page}'", "{ number: 1, end: short }"),
    ("number-empty", "page: '{page}'", "{ number: 0, end: empty }"),
    ("number-total", "page: '{page}'", "{ number: 1, end: total }"),
    ("number-more", "page: '{page}'", "{ number: 0, more: $.more }"),
    ("offset-short", "skip: '{offset}'", "{ offset: 0, end: short }"),
    ("offset-empty", "skip: '{offset}'", "{ offset: 1, end: empty }"),
    ("offset-total", "skip: '{offset}'", "{ offset: 0, end: total }"),
    ("offset-more", "skip: '{offset}'", "{ offset: 1, more: $.more }"),
    ("url", "", "{ url: $.url }"),
    ("url-relative", "", "{ url: $.relative }"),
    ("link", "", "{ link: next }"),
];

/// The list, and what differs from a right one.
#[derive(Default)]
pub struct Listing {
    /// The numbers of the sessions, in the order of the list.
    pub sessions: Vec<usize>,
    /// The most sessions that a page has, whatever the request says.
    pub cap: Option<usize>,
    /// Replaces members of the body; `null` removes one.
    pub body: HashMap<&'static str, Value>,
    /// Replaces headers; an empty text removes one.
    pub headers: HashMap<&'static str, String>,
    /// The targets of the requests.
    pub targets: Vec<String>,
}

/// A provider. Its thread runs until the test process ends.
#[derive(Clone)]
pub struct PagedProvider {
    pub address: SocketAddr,
    pub listing: Arc<Mutex<Listing>>,
}

impl PagedProvider {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let provider = Self { address: listener.local_addr().unwrap(), listing: Arc::default() };
        let own = provider.clone();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                let (mut head, mut reader) = (String::new(), BufReader::new(socket.try_clone().unwrap()));
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
                let target = head.split(' ').nth(1).unwrap_or("/").to_owned();
                let _ = socket.write_all(own.response(&target).as_bytes());
            }
        });
        provider
    }

    /// Replaces the list by sessions 0, 1, … and removes what differed from a right one.
    pub fn fill(&self, count: usize) {
        *self.listing.lock().unwrap() = Listing { sessions: (0..count).collect(), ..Listing::default() };
    }

    pub fn set(&self, change: impl FnOnce(&mut Listing)) {
        change(&mut self.listing.lock().unwrap());
    }

    /// Returns the targets of the requests since the last call.
    pub fn take_targets(&self) -> Vec<String> {
        std::mem::take(&mut self.listing.lock().unwrap().targets)
    }

    /// Responds with one page, by the kind that the path begins with.
    fn response(&self, target: &str) -> String {
        let mut listing = self.listing.lock().unwrap();
        listing.targets.push(target.to_owned());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let kind = path.split('/').nth(1).unwrap_or_default();
        let parameters: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let number = |name: &str| parameters.get(name).map(|text| text.parse::<usize>().unwrap());
        let limit = number("limit").unwrap_or(PAGE).min(listing.cap.unwrap_or(PAGE));
        let position = |id: &str| listing.sessions.iter().position(|session| format!("s-{session}") == id);
        let first = usize::from(matches!(kind, "number-short" | "number-total" | "offset-empty" | "offset-more"));
        let start = match kind.split('-').next().unwrap() {
            "number" => (number("page").unwrap_or(first) - first) * limit,
            "offset" => number("skip").unwrap_or(first) - first,
            "last" => parameters.get("after").map_or(0, |id| position(id).map_or(usize::MAX, |at| at + 1)),
            _ => number("token").unwrap_or(0),
        };
        let all = &listing.sessions;
        let page = all.get(start.min(all.len())..(start + limit).min(all.len())).unwrap_or_default();
        let (next, total) = (start.saturating_add(page.len()), all.len());
        let more = next < total;
        let items: Vec<Value> = page.iter().map(|session| session_json(*session)).collect();
        let (here, query) = (format!("http://{}{path}", self.address), format!("?limit={limit}&token={next}"));
        let mut body = json!({ "items": items, "more": more, "total": total });
        if more {
            let text = |text: String| json!(text);
            body["next"] = text(next.to_string());
            (body["url"], body["relative"]) = (text(format!("{here}{query}")), text(query.clone()));
        }
        let mut headers = HashMap::from([("X-Total-Count", total.to_string())]);
        if more {
            headers.insert("X-Next-Cursor", next.to_string());
            headers.insert("Link", format!("<{here}>; rel=\"first\", <{here}{query}>; rel=\"next\""));
        }
        for (name, value) in &listing.body {
            match value {
                Value::Null => drop(body.as_object_mut().unwrap().remove(*name)),
                value => body[*name] = value.clone(),
            }
        }
        headers.extend(listing.headers.iter().map(|(name, value)| (*name, value.clone())));
        let headers: String = headers
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let body = body.to_string();
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    /// The shipped configuration with a provider file for each kind.
    pub fn config(&self) -> Config {
        let config = Config::shipped();
        for (kind, parameters, next) in KINDS {
            // One of the kinds has its total in a header.
            let total = if kind.contains("total") || kind == "link" { "{ header: X-Total-Count }" } else { "$.total" };
            config.write(&format!("providers/{kind}.yaml"), &self.file(kind, parameters, next, Some(total)));
        }
        config
    }

    /// A provider file.
    pub fn file(&self, name: &str, parameters: &str, next: &str, total: Option<&str>) -> String {
        let total = total.map_or(String::new(), |total| format!("    total: {total}\n"));
        let separator = if parameters.is_empty() { "" } else { ", " };
        format!(
            "name: {name}
base_url: http://{}/{name}
ids: {{ accept: {{ session: '^s-[0-9]+$' }} }}
operations:
  get_session: {{ request: \"GET /things/{{session}}\", item: $ }}
  list_sessions:
    request: GET /things
    query: {{ limit: '{{limit}}'{separator}{parameters} }}
    items: $.items
    next: {next}
{total}    max_limit: {PAGE}
session:
  provider_session_id: $.id
  created_at: $.created
",
            self.address
        )
    }
}

/// A session of the provider. Higher numbers are older.
fn session_json(number: usize) -> Value {
    let minutes = 10_000 - number;
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let created = format!("2024-01-{:02}T{:02}:{minutes:02}:00Z", 1 + hours / 24, hours % 24);
    json!({ "id": format!("s-{number}"), "created": created })
}

/// Returns the unified ids of these sessions.
pub fn ids(kind: &str, sessions: impl IntoIterator<Item = usize>) -> Vec<String> {
    sessions.into_iter().map(|session| format!("{kind}:s-{session}")).collect()
}
