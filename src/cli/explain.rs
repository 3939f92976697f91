//! Runs `weir explain`: shows what a gateway with this configuration would do with a request.

use super::{load_without_secrets, print, print_stderr};
use crate::base::ids::ClientId;
use crate::base::metrics::Metrics;
use crate::base::model::parse_time;
use crate::base::request_reply::Request;
use crate::base::typo::unknown;
use crate::config::load::ConfigSource;
use crate::fetch::provider_query::SharedState;
use crate::pipeline::dry_run::{DryRun, GivenBody};
use crate::runtime;
use crate::runtime::snapshot::Snapshot;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The most bytes of a body that are read.
const MAX_BODY: u64 = 64 << 20;
/// The limits of the cache and of buffered bytes. An explanation stores nothing.
const SMALL: u64 = 1 << 10;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The method, such as GET
    method: String,
    /// The path and query, as a client sends them
    path: String,
    /// The client's id; required if there are several clients
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// A header of the request: 'NAME: VALUE'
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// A file with the provider's response body, or - for standard input: also explain its lifetime and its mapping
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// The time of the response, in RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", requires = "body")]
    at: Option<String>,
    /// Show the values in the body, except secrets
    #[arg(long, requires = "body")]
    values: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(source: &ConfigSource, arguments: &Arguments) -> ExitCode {
    let snapshot = match load_without_secrets(source) {
        Ok(snapshot) => Arc::new(snapshot),
        Err(code) => return code,
    };
    match arguments.explanation(&snapshot) {
        Ok((explanation, fails)) => {
            let mut text = String::new();
            match arguments.json {
                true => text = format!("{explanation:#}\n"),
                false => write(&mut text, &explanation, 0),
            }
            print(&text);
            if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            print_stderr(&format!("weir: {error}"));
            ExitCode::from(2)
        }
    }
}

impl Arguments {
    /// Returns the explanation, and whether the request would fail.
    fn explanation(&self, snapshot: &Arc<Snapshot>) -> Result<(Value, bool), String> {
        let client = self.client(snapshot)?;
        let request = self.request()?;
        let at = match &self.at {
            None => runtime::now(),
            Some(text) => parse_time(text).map(|(_, at)| at).ok_or(format!("{text:?} is not an RFC 3339 time"))?,
        };
        let body = self.body.as_deref().map(read).transpose()?;
        let given = body.as_deref().map(|body| GivenBody { body, responded_at: at, values: self.values });
        let metrics = Metrics::new().map_err(|error| error.to_string())?;
        let shared = Arc::new(SharedState::new(metrics, SMALL, SMALL));
        DryRun { snapshot, client, request: &request, shared: &shared }.explain(given.as_ref())
    }

    /// Returns the client.
    fn client(&self, snapshot: &Snapshot) -> Result<ClientId, String> {
        let known: Vec<&str> = snapshot.clients.iter().map(|client| &*client.id).collect();
        match (&self.client, known.as_slice()) {
            (None, [_]) => snapshot.clients.ids().next().ok_or_else(|| "no client is configured".to_owned()),
            (None, _) => Err(format!("missing --client; expected one of: {}", known.join(", "))),
            (Some(id), _) => {
                let at = snapshot.clients.find(|client| *client.id == **id);
                at.ok_or_else(|| unknown("client", id, known.into_iter()))
            }
        }
    }

    fn request(&self) -> Result<Request, String> {
        let method = Method::from_bytes(self.method.as_bytes());
        let method = method.map_err(|_| format!("{:?} is not a valid method", self.method))?;
        let uri: Uri = self.path.parse().map_err(|_| format!("{:?} is not a valid path", self.path))?;
        if !uri.path().starts_with('/') {
            return Err(format!("{:?} is not a valid path; a path begins with /", self.path));
        }
        let host = uri.authority().map_or("localhost", http::uri::Authority::as_str);
        let mut headers = HeaderMap::from_iter(HeaderValue::from_str(host).ok().map(|host| (header::HOST, host)));
        for text in &self.headers {
            let pair = text.split_once(':').and_then(|(name, value)| {
                Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, HeaderValue::from_str(value.trim()).ok()?))
            });
            let (name, value) = pair.ok_or("invalid --header; write NAME: VALUE")?;
            headers.insert(name, value);
        }
        Ok(Request {
            method,
            version: http::Version::HTTP_11,
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            headers: (&headers).into(),
            peer: None,
            form: None,
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

/// Writes a value as text: one line for each member, indented by its depth.
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
            scalar => *out += &format!("{indent}{name}: {}\n", plain(scalar)),
        }
    }
}

/// Returns the line of a mapped field: the result, and each path that was tried.
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
        let kind = tried["type"].as_str().unwrap_or("nothing");
        let reason = tried["reason"].as_str().map_or_else(String::new, |reason| format!(" ({reason})"));
        let value = tried.get("value").map_or_else(String::new, |value| format!(" = {value}"));
        format!("{} {kind}{reason}{value}", plain(&tried["path"]))
    });
    let tried = tried.collect::<Vec<_>>().join(", ");
    let notes = ["required", "secret"].into_iter().filter(|note| field.contains_key(*note));
    let notes: String = notes.map(|note| format!(" [{note}]")).collect();
    let via = if tried.is_empty() { String::new() } else { format!("  tried {tried}") };
    format!("{mark} {:<20} {how}{via}{notes}\n", text("field"))
}

/// Returns a scalar as plain text, without quotes; `-` for null.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
