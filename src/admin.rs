//! The admin listener: metrics, health, what is configured, what is cached, reload.
//!
//! A room of its own because it is for operators, on another address, under another secret. Nothing
//! here shows a secret, a key's digest or a session.

use crate::breaker::Room;
use crate::config::weir::LogLevel;
use crate::error::{Code, Problem};
use crate::metrics::Metrics;
use crate::model::Time;
use crate::observe;
use crate::purge::{Mode, Scope};
use crate::question::Shared;
use crate::route::Name;
use crate::runtime::reload::Reloaded;
use crate::runtime::snapshot::Snapshot;
use crate::runtime::{self, Runtime};
use crate::supervisor;
use async_trait::async_trait;
use http::{Method, Response, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The admin endpoints.
pub struct Admin {
    /// What is in force.
    pub runtime: Arc<Runtime>,
    /// Metrics and cache.
    pub shared: Arc<Shared>,
    /// Set once Weir is shutting down.
    pub draining: Arc<AtomicBool>,
}

/// Path, its one method besides HEAD, whether it is open to all.
const PATHS: [(&str, &str, bool); 7] = [
    ("/metrics", "GET", true),
    ("/healthz", "GET", true),
    ("/readyz", "GET", true),
    ("/config", "GET", false),
    ("/cache", "GET", false),
    ("/cache/purge", "POST", false),
    ("/reload", "POST", false),
];

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_close_on_response_before_downstream_finish(true);
        let head = session.req_header();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let token = head.headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        let token = token.map(<[u8]>::to_vec);
        let mut response = match self.permitted(&method, &path, token.as_deref()) {
            Ok(()) if path == "/cache/purge" => match body(session).await {
                Ok(body) => self.purge(&body).await,
                Err(problem) => problem_response(&problem),
            },
            Ok(()) => self.answer(&path).await,
            Err(problem) => problem_response(&problem),
        };
        if method == Method::HEAD {
            response.body_mut().clear();
        }
        response
    }
}

impl Admin {
    fn permitted(&self, method: &Method, path: &str, token: Option<&[u8]>) -> Result<(), Problem> {
        let Some((_, allowed, open)) = PATHS.into_iter().find(|(known, ..)| *known == path) else {
            let known = PATHS.map(|(path, ..)| path).join(", ");
            return Err(Problem::new(Code::NotFound, format!("there is nothing at this path; there are {known}")));
        };
        let wanted = &self.runtime.snapshot().weir.admin.token.0;
        if !open && !wanted.is_empty() && !token.is_some_and(|token| same(token, wanted.as_bytes())) {
            return Err(Problem::new(
                Code::Unauthorized,
                "send Authorization: Bearer with the admin.token of weir.yaml",
            ));
        }
        let fits = method.as_str() == allowed || (*method == Method::HEAD && allowed == "GET");
        if !fits {
            let mut problem = Problem::new(Code::MethodNotAllowed, format!("{path} answers {allowed}"));
            problem.allow = Some(if allowed == "GET" { "GET, HEAD" } else { "POST" });
            return Err(problem);
        }
        Ok(())
    }

    async fn answer(&self, path: &str) -> Response<Vec<u8>> {
        match path {
            "/metrics" => self.metrics(),
            "/healthz" => json_response(200, &json!({ "status": "ok" })),
            "/readyz" if self.draining.load(Ordering::Acquire) => json_response(503, &json!({ "status": "draining" })),
            "/readyz" => {
                json_response(200, &json!({ "status": "ready", "revision": self.runtime.snapshot().revision }))
            }
            "/config" => json_response(200, &self.config()),
            "/cache" => json_response(200, &self.cache()),
            _ => self.reload().await,
        }
    }

    fn metrics(&self) -> Response<Vec<u8>> {
        self.shared.cache.settle();
        let metrics = &self.shared.metrics;
        metrics.cache.bytes.set(i64::try_from(self.shared.cache.bytes()).unwrap_or(i64::MAX));
        let (snapshot, now) = (self.runtime.snapshot(), runtime::now());
        let text = metrics.expose(|| {
            gauge_providers(metrics, &snapshot, now);
            gauge_expiries(metrics, &snapshot, now);
        });
        response(200, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
    }

    fn config(&self) -> Value {
        let snapshot = self.runtime.snapshot();
        let error = self.runtime.last_error().map(|error| {
            json!({ "at": error.at.rfc3339(), "faults": error.faults.iter().map(ToString::to_string).collect::<Vec<_>>() })
        });
        json!({
            "revision": snapshot.revision,
            "loaded_at": snapshot.loaded_at.rfc3339(),
            "files": snapshot.files,
            "last_error": error,
            "providers": providers(&snapshot),
            "clients": clients(&snapshot),
            "rate_limits": snapshot.weir.policies.iter().map(|p| json!({
                "name": p.name, "requests": p.requests, "per_seconds": p.per.as_secs_f64(), "burst": p.burst,
            })).collect::<Vec<_>>(),
        })
    }

    fn cache(&self) -> Value {
        self.shared.cache.settle();
        let entries = &self.shared.metrics.cache.entries;
        let by_provider: serde_json::Map<String, Value> = self
            .runtime
            .snapshot()
            .providers
            .iter()
            .map(|provider| (provider.name.to_string(), entries.with_label_values(&[&*provider.name]).get().into()))
            .collect();
        json!({
            "entries": self.shared.cache.entries(),
            "bytes": self.shared.cache.bytes(),
            "max_bytes": self.runtime.started().max_bytes,
            "entries_by_provider": by_provider,
        })
    }

    async fn purge(&self, body: &[u8]) -> Response<Vec<u8>> {
        let (scope, mode) = match purge_wanted(&self.runtime.snapshot(), body) {
            Ok(wanted) => wanted,
            Err(problem) => return problem_response(&problem),
        };
        let shared = self.shared.clone();
        // It looks at every entry: not where requests are answered.
        let purged = tokio::task::spawn_blocking(move || shared.purge(&scope, mode, runtime::now())).await;
        match purged {
            Ok(purged) => json_response(200, &json!({ "purged": purged })),
            Err(_) => problem_response(&Problem::new(Code::InternalError, "the purge did not end")),
        }
    }

    async fn reload(&self) -> Response<Vec<u8>> {
        match reload(&self.runtime, &self.shared, "POST /reload").await {
            Reloaded::Refused(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                json_response(
                    422,
                    &json!({ "result": "failure", "revision": self.runtime.snapshot().revision, "faults": faults }),
                )
            }
            Reloaded::Swapped { revision, restart } => {
                json_response(200, &json!({ "result": "success", "revision": revision, "needs_restart": restart }))
            }
            Reloaded::Unchanged { revision } => {
                json_response(200, &json!({ "result": "unchanged", "revision": revision }))
            }
        }
    }
}

/// What stands against providers now. Without what a reload took away.
fn gauge_providers(metrics: &Metrics, snapshot: &Snapshot, now: Time) {
    let upstream = &metrics.upstream;
    upstream.breaker_open.reset();
    upstream.throttled.reset();
    upstream.capacity_limit.reset();
    upstream.capacity_left.reset();
    for provider in &snapshot.providers {
        let name = &*provider.name;
        let flag = |gauge: &prometheus::IntGaugeVec, on: bool| gauge.with_label_values(&[name]).set(on.into());
        flag(&upstream.breaker_open, provider.breaker.open_until(now).is_some());
        flag(&upstream.throttled, provider.taps().any(|tap| tap.closed_until(now).is_some()));
        let rooms: Vec<Room> = provider.taps().filter_map(|tap| tap.room()).collect();
        let least = |kind, of: fn(&Room) -> (u64, u64)| {
            let least = rooms.iter().map(of).min_by_key(|(_, left)| *left);
            let Some((limit, left)) = least else { return };
            upstream.capacity_limit.with_label_values(&[name, kind]).set(limit as f64);
            upstream.capacity_left.with_label_values(&[name, kind]).set(left as f64);
        };
        least("rate", |room| room.rate);
        least("concurrency", |room| room.concurrency);
    }
}

/// What in the configuration ends by itself, and when.
fn gauge_expiries(metrics: &Metrics, snapshot: &Snapshot, now: Time) {
    let (certificate, key) = (&metrics.config.certificate_expiry, &metrics.config.key_expiry);
    let seconds = |at: Time| at.0 as f64 / 1000.0;
    certificate.reset();
    for (listener, at) in &snapshot.certificates {
        certificate.with_label_values(&[&listener.to_string()]).set(seconds(*at));
    }
    key.reset();
    for client in &snapshot.clients {
        let ends = &client.key_ends;
        if let Some(next) = ends.iter().flatten().filter(|at| **at > now).min() {
            key.with_label_values(&[&*client.id, "next"]).set(seconds(*next));
        }
        // Then it can no longer call at all.
        if let Some(last) = ends.iter().flatten().max().filter(|_| ends.iter().all(Option::is_some)) {
            key.with_label_values(&[&*client.id, "last"]).set(seconds(*last));
        }
    }
}

/// The request's body, if it is not too long.
async fn body(session: &mut ServerSession) -> Result<Vec<u8>, Problem> {
    const LONGEST: usize = 64 << 10;
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = session.read_request_body().await {
        if body.len() + chunk.len() > LONGEST {
            return Err(Problem::new(Code::BodyTooLarge, format!("at most {LONGEST} bytes are accepted")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What `{"session": ID}` and its like mean.
fn purge_wanted(snapshot: &Snapshot, body: &[u8]) -> Result<(Scope, Mode), Problem> {
    const FORM: &str = "send one of {\"session\": ID}, {\"agent\": \"PROVIDER:AGENT\"}, {\"provider\": NAME}, \
                        {\"client\": ID}, {\"all\": true}, and optionally \"mode\": \"soft\" or \"hard\"";
    let wrong = || Problem::invalid(FORM);
    let Ok(Value::Object(mut members)) = serde_json::from_slice(body) else { return Err(wrong()) };
    let mode = match members.remove("mode").as_ref().map(Value::as_str) {
        None | Some(Some("hard")) => Mode::Hard,
        Some(Some("soft")) => Mode::Soft,
        Some(_) => return Err(wrong()),
    };
    let mut members = members.into_iter();
    let (Some((name, value)), None) = (members.next(), members.next()) else { return Err(wrong()) };
    let provider = |position: usize| snapshot.providers[position].name.clone();
    let scope = match (name.as_str(), &value) {
        ("all", Value::Bool(true)) => Scope::All,
        ("session", Value::String(id)) => {
            let Name { provider: position, agent, session } =
                snapshot.routes.session_id(id).map_err(|problem| *problem)?;
            Scope::Session { provider: provider(position), agent, session }
        }
        ("agent", Value::String(id)) => {
            let (position, agent) = snapshot.routes.agent_id(id).map_err(|problem| *problem)?;
            Scope::Agent { provider: provider(position), agent }
        }
        ("provider", Value::String(name)) => match snapshot.provider(name) {
            Some(provider) => Scope::Provider(provider.name.clone()),
            None => return Err(Problem::new(Code::ProviderNotFound, format!("no provider {name:?} is configured"))),
        },
        ("client", Value::String(id)) => {
            let client = snapshot.clients.iter().find(|client| *client.id == **id);
            let client =
                client.ok_or_else(|| Problem::new(Code::NotFound, format!("no client {id:?} is configured")))?;
            let pairs = snapshot.providers.iter().zip(&client.access);
            let pair = |(provider, access): (&runtime::snapshot::Provider, &Option<runtime::snapshot::Access>)| {
                Some((provider.name.clone(), access.as_ref()?.credential.identity.clone()))
            };
            Scope::Credentials(pairs.filter_map(pair).collect())
        }
        _ => return Err(wrong()),
    };
    Ok((scope, mode))
}

/// Reloads where blocking is allowed; counts and tells how it went. All triggers come here.
pub async fn reload(runtime: &Arc<Runtime>, shared: &Arc<Shared>, why: &str) -> Reloaded {
    let reloading = runtime.clone();
    let reload = move || {
        supervisor::reloading();
        let outcome = reloading.reload(runtime::now());
        supervisor::ready();
        outcome
    };
    let outcome = tokio::task::spawn_blocking(reload).await;
    let outcome = outcome.unwrap_or_else(|_| Reloaded::Refused(Vec::new()));
    let seconds = std::time::Duration::from_millis(runtime::now().0.unsigned_abs()).as_secs_f64();
    match &outcome {
        Reloaded::Swapped { revision, restart } => {
            shared.metrics.config.reloaded("success", revision, seconds);
            let restart =
                if restart.is_empty() { String::new() } else { format!("; needs a restart: {}", restart.join(", ")) };
            observe::say(runtime, LogLevel::Info, || format!("config reloaded ({why}): revision {revision}{restart}"));
        }
        Reloaded::Unchanged { revision } => {
            shared.metrics.config.reloaded("unchanged", revision, seconds);
            observe::say(runtime, LogLevel::Debug, || format!("config unchanged ({why}): revision {revision}"));
        }
        Reloaded::Refused(faults) => {
            shared.metrics.config.reloaded("failure", "", seconds);
            observe::say(runtime, LogLevel::Warn, || {
                format!("config not reloaded ({why}): {} faults; the old one stays in force", faults.len())
            });
            faults.iter().for_each(|fault| observe::say(runtime, LogLevel::Warn, || format!("  {fault}")));
        }
    }
    outcome
}

/// Compared whole, so that the time it takes tells nothing but the length.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

fn providers(snapshot: &Snapshot) -> Vec<Value> {
    let row = |provider: &runtime::snapshot::Provider| {
        let upstream = &provider.target;
        json!({ "name": &*provider.name, "origin": upstream.origin(), "timeout_seconds": upstream.timeout.as_secs_f64() })
    };
    snapshot.providers.iter().map(row).collect()
}

fn clients(snapshot: &Snapshot) -> Vec<Value> {
    let row = |client: &runtime::snapshot::Client| {
        let providers = snapshot.providers.iter().zip(&client.access);
        let providers: Vec<&str> = providers.filter(|(_, access)| access.is_some()).map(|(p, _)| &*p.name).collect();
        let limits: Vec<&str> = client.buckets.iter().map(|bucket| bucket.limiter.policy.name.as_str()).collect();
        json!({ "id": &*client.id, "providers": providers, "rate_limits": limits, "reveal_secrets": client.reveal_secrets })
    };
    snapshot.clients.iter().map(row).collect()
}

fn response(status: u16, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let length = response.body().len();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

fn json_response(status: u16, value: &Value) -> Response<Vec<u8>> {
    response(status, "application/json", format!("{value}\n").into_bytes())
}

fn problem_response(problem: &Problem) -> Response<Vec<u8>> {
    let body = problem.to_value(None).to_string().into_bytes();
    let mut response = response(problem.code.status(), "application/problem+json", body);
    if let Some(methods) = problem.allow {
        response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(methods));
    }
    if problem.code == Code::Unauthorized {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer realm=\"weir-admin\""));
    }
    response
}
