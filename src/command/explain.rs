//! `weir explain`: what a gateway with this configuration would make of a request, without one.

use super::{complain, list_faults, print};
use crate::config::load::Source;
use crate::exchange::Request;
use crate::metrics::Metrics;
use crate::model::parse_time;
use crate::question::Shared;
use crate::rehearsal::{Given, Rehearsal};
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The most of a body that is read.
const MAX_BODY: u64 = 64 << 20;
/// Its cache stays empty.
const NO_BYTES: u64 = 1 << 10;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// GET, HEAD, or another
    method: String,
    /// Path and query, as a client sends them
    path: String,
    /// The client's id; may be left out where there is one client
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// A header that the client sends: 'NAME: VALUE'
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// A file with the provider's body, or - for standard input: tells its lifetime and the way to each field
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// When that body came, in RFC 3339; left out: now
    #[arg(long, value_name = "TIME", requires = "body")]
    at: Option<String>,
    /// Show what is found in it; what is secret stays hidden
    #[arg(long, requires = "body")]
    values: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(source: &Source, arguments: &Arguments) -> ExitCode {
    let snapshot = match Snapshot::load(source, None, &[0; 32], runtime::now()) {
        Ok(snapshot) => Arc::new(snapshot),
        Err(faults) => {
            list_faults(&faults);
            return ExitCode::FAILURE;
        }
    };
    match arguments.told(&snapshot) {
        Ok((told, fails)) => {
            let mut text = String::new();
            match arguments.json {
                true => text = format!("{told:#}\n"),
                false => write(&mut text, &told, 0),
            }
            print(&text);
            if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(wrong) => {
            complain(&format!("weir: {wrong}"));
            ExitCode::from(2)
        }
    }
}

impl Arguments {
    fn told(&self, snapshot: &Arc<Snapshot>) -> Result<(Value, bool), String> {
        let client = self.client(snapshot)?;
        let request = self.request()?;
        let at = match &self.at {
            None => runtime::now(),
            Some(text) => parse_time(text).map(|(_, at)| at).ok_or(format!("{text:?} is not an RFC 3339 time"))?,
        };
        let body = self.body.as_deref().map(read).transpose()?;
        let given = body.as_deref().map(|body| Given { body, at, values: self.values });
        let metrics = Metrics::new().map_err(|error| error.to_string())?;
        let shared = Arc::new(Shared::new(metrics, NO_BYTES, NO_BYTES));
        Rehearsal { snapshot, client, request: &request, shared: &shared }.explain(given.as_ref())
    }

    fn client(&self, snapshot: &Snapshot) -> Result<usize, String> {
        let known: Vec<&str> = snapshot.clients.iter().map(|client| &*client.id).collect();
        match (&self.client, known.as_slice()) {
            (None, [_]) => Ok(0),
            (None, _) => Err(format!("say for whom: --client, one of {}", known.join(", "))),
            (Some(id), _) => {
                let at = known.iter().position(|known| known == id);
                at.ok_or_else(|| format!("no client {id:?}; there are {}", known.join(", ")))
            }
        }
    }

    fn request(&self) -> Result<Request, String> {
        let method = Method::from_bytes(self.method.as_bytes());
        let method = method.map_err(|_| format!("{:?} is not a method", self.method))?;
        let uri: Uri = self.path.parse().map_err(|_| format!("{:?} is not a path", self.path))?;
        if !uri.path().starts_with('/') {
            return Err(format!("{:?} is not a path: it begins with /", self.path));
        }
        let host = uri.authority().map_or("localhost", http::uri::Authority::as_str);
        let mut headers = HeaderMap::from_iter(HeaderValue::from_str(host).ok().map(|host| (header::HOST, host)));
        for text in &self.headers {
            let pair = text.split_once(':').and_then(|(name, value)| {
                Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, HeaderValue::from_str(value.trim()).ok()?))
            });
            let (name, value) = pair.ok_or("a header is written NAME: VALUE")?;
            headers.insert(name, value);
        }
        Ok(Request {
            method,
            version: http::Version::HTTP_11,
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            headers: (&headers).into(),
            peer: None,
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_BODY).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_BODY).read_to_end(&mut bytes))
    };
    read.map(|_| bytes).map_err(|error| format!("{}: {error}", file.display()))
}

/// A value for people: a line each, further in for what is inside.
fn write(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let Value::Object(members) = value else { return };
    for (name, value) in members {
        match value {
            Value::Object(inside) if inside.is_empty() => *out += &format!("{indent}{name}: none\n"),
            Value::Object(_) => {
                *out += &format!("{indent}{name}:\n");
                write(out, value, depth + 1);
            }
            Value::Array(all) if name == "fields" => {
                all.iter().for_each(|field| *out += &(indent.clone() + &row(field)));
            }
            Value::Array(all) if all.is_empty() => *out += &format!("{indent}{name}: none\n"),
            Value::Array(all) => {
                for (position, one) in all.iter().enumerate() {
                    *out += &format!("{indent}{name} {}:\n", position + 1);
                    write(out, one, depth + 1);
                }
            }
            plain => *out += &format!("{indent}{name}: {}\n", words(plain)),
        }
    }
}

/// A field of the mapping in one line: what came of it, and each path tried.
fn row(field: &Value) -> String {
    let empty = Map::new();
    let field = field.as_object().unwrap_or(&empty);
    let text = |name: &str| field.get(name).and_then(Value::as_str).unwrap_or_default();
    let mark = match text("found") {
        "path" | "constant" => "+",
        "default" => "=",
        "unusable" => "!",
        _ => "-",
    };
    let how = match text("found") {
        "constant" => format!("constant {:?}", text("constant")),
        "default" => format!("default {:?}", text("default")),
        "unusable" => format!("unusable: {}", text("reason")),
        other => other.to_owned(),
    };
    let tried = field.get("tried").and_then(Value::as_array).into_iter().flatten().map(|tried| {
        let stood = tried["type"].as_str().unwrap_or("nothing");
        let reason = tried["reason"].as_str().map_or_else(String::new, |reason| format!(" ({reason})"));
        let value = tried.get("value").map_or_else(String::new, |value| format!(" = {value}"));
        format!("{} {stood}{reason}{value}", words(&tried["path"]))
    });
    let tried = tried.collect::<Vec<_>>().join(", ");
    let notes = ["required", "secret"].into_iter().filter(|note| field.contains_key(*note));
    let notes: String = notes.map(|note| format!(" [{note}]")).collect();
    let via = if tried.is_empty() { String::new() } else { format!("  tried {tried}") };
    format!("{mark} {:<20} {how}{via}{notes}\n", text("field"))
}

fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
