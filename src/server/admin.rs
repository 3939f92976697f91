//! Serves the admin listener: metrics, health, configuration, cache, purge and reload.
//!
//! No response may contain a secret, the digest of a key or a session.

use crate::base::ids::ProviderId;
use crate::base::problem::{Code, Problem};
use crate::fetch::provider_query::SharedState;
use crate::rules::purge::{Mode, Scope};
use crate::rules::route::SessionName;
use crate::runtime::reload::Reloaded;
use crate::runtime::snapshot::Snapshot;
use crate::runtime::{self, Runtime};
use crate::server::admin_gauges;
use crate::server::config_reload::Reloader;
use async_trait::async_trait;
use http::{Method, Response, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use subtle::ConstantTimeEq;

/// The endpoints of the admin listener.
pub(crate) struct AdminEndpoints {
    /// The configuration in force.
    pub runtime: Arc<Runtime>,
    /// Metrics and cache.
    pub shared: Arc<SharedState>,
    /// Set when the shutdown starts.
    pub draining: Arc<AtomicBool>,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
}

/// Each path with its method (`GET` includes `HEAD`), and whether it needs no token.
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
impl ServeHttp for AdminEndpoints {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_close_on_response_before_downstream_finish(true);
        let head = session.req_header();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let token = head.headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        let token = token.map(<[u8]>::to_vec);
        let mut response = match self.permitted(&method, &path, token.as_deref()) {
            Ok(()) if path == "/cache/purge" => match read_body(session).await {
                Ok(body) => self.purge(&body).await,
                Err(problem) => problem_response(&problem),
            },
            Ok(()) => self.respond(&path).await,
            Err(problem) => problem_response(&problem),
        };
        if method == Method::HEAD {
            response.body_mut().clear();
        }
        response
    }
}

impl AdminEndpoints {
    /// Checks path, token and method.
    fn permitted(&self, method: &Method, path: &str, token: Option<&[u8]>) -> Result<(), Problem> {
        let Some((_, allowed, public)) = PATHS.into_iter().find(|(known, ..)| *known == path) else {
            let known = PATHS.map(|(path, ..)| path).join(", ");
            return Err(Problem::new(Code::NotFound, format!("unknown path; the admin paths are {known}")));
        };
        let expected = &self.runtime.snapshot().weir.admin.token.0;
        if !public && !expected.is_empty() && !token.is_some_and(|token| token.ct_eq(expected.as_bytes()).into()) {
            let detail = "missing or wrong admin token; send `Authorization: Bearer` with admin.token of weir.yaml";
            return Err(Problem::new(Code::Unauthorized, detail));
        }
        let matches = method.as_str() == allowed || (*method == Method::HEAD && allowed == "GET");
        if !matches {
            let methods = if allowed == "GET" { "GET, HEAD" } else { "POST" };
            return Err(Problem::method_not_allowed(format!("{path} supports only {methods}"), methods));
        }
        Ok(())
    }

    async fn respond(&self, path: &str) -> Response<Vec<u8>> {
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
        self.shared.cache.run_pending_tasks();
        let metrics = &self.shared.metrics;
        metrics.cache.bytes.set(i64::try_from(self.shared.cache.bytes()).unwrap_or(i64::MAX));
        let (snapshot, now) = (self.runtime.snapshot(), runtime::now());
        let text = metrics.expose(|| {
            admin_gauges::set_providers(metrics, &snapshot, now);
            admin_gauges::set_expiries(metrics, &snapshot, now);
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
        self.shared.cache.run_pending_tasks();
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
        let (scope, mode) = match parse_purge(&self.runtime.snapshot(), body) {
            Ok(purge) => purge,
            Err(problem) => return problem_response(&problem),
        };
        let shared = self.shared.clone();
        // A purge scans every entry, so it must not block a thread that serves requests.
        let purged = tokio::task::spawn_blocking(move || shared.purge(&scope, mode, runtime::now())).await;
        match purged {
            Ok(purged) => json_response(200, &json!({ "purged": purged })),
            Err(_) => problem_response(&Problem::new(Code::InternalError, "the purge failed")),
        }
    }

    async fn reload(&self) -> Response<Vec<u8>> {
        match self.reloader.reload("POST /reload").await {
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

/// Reads the body of a request, up to 64 KiB.
async fn read_body(session: &mut ServerSession) -> Result<Vec<u8>, Problem> {
    const MAX_BODY: usize = 64 << 10;
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = session.read_request_body().await {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(Problem::new(Code::BodyTooLarge, format!("the request body is longer than {MAX_BODY} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Parses the body of a purge request, such as `{"session": ID}`.
fn parse_purge(snapshot: &Snapshot, body: &[u8]) -> Result<(Scope, Mode), Problem> {
    const FORM: &str = "invalid purge request; send one of {\"session\": ID}, {\"agent\": \"PROVIDER:AGENT\"}, \
                        {\"provider\": NAME}, {\"client\": ID}, {\"all\": true}, and optionally \"mode\": \"soft\" or \"hard\"";
    let invalid = || Problem::invalid(FORM);
    let Ok(Value::Object(mut members)) = serde_json::from_slice(body) else { return Err(invalid()) };
    let mode = match members.remove("mode").as_ref().map(Value::as_str) {
        None | Some(Some("hard")) => Mode::Hard,
        Some(Some("soft")) => Mode::Soft,
        Some(_) => return Err(invalid()),
    };
    let mut members = members.into_iter();
    let (Some((name, value)), None) = (members.next(), members.next()) else { return Err(invalid()) };
    let provider = |id: ProviderId| snapshot.providers[id].name.clone();
    let scope = match (name.as_str(), &value) {
        ("all", Value::Bool(true)) => Scope::All,
        ("session", Value::String(id)) => {
            let SessionName { provider: position, agent, session } =
                snapshot.routes.parse_session_id(id).map_err(Box::<Problem>::from).map_err(|problem| *problem)?;
            Scope::Session { provider: provider(position), agent, session }
        }
        ("agent", Value::String(id)) => {
            let agent = snapshot.routes.parse_agent_id(id).map_err(Box::<Problem>::from);
            let (position, agent) = agent.map_err(|problem| *problem)?;
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
        _ => return Err(invalid()),
    };
    Ok((scope, mode))
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
