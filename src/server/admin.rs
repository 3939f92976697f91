//! Serves the admin listener: metrics, health, configuration, providers, cache, purge and reload.
//!
//! No response may contain a secret, the digest of a key or a session.

use crate::base::ids::ProviderId;
use crate::base::metrics::AdminMetrics;
use crate::base::model::Time;
use crate::base::problem::{Code, Problem};
use crate::base::request_reply::{Request, Response};
use crate::base::response_headers::ResponseHeaders;
use crate::engine::admin_token::AdminToken;
use crate::engine::open_files::OpenFiles;
use crate::fetch::provider_query::SharedState;
use crate::rules::admin_access::{self, AccessRefusal};
use crate::rules::purge::{Mode, Scope};
use crate::rules::route::SessionName;
use crate::runtime::reload::{Reload, Reloaded};
use crate::runtime::snapshot::Snapshot;
use crate::runtime::{self, Runtime};
use crate::server::admin_gauges;
use crate::server::config_reload::Reloader;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use subtle::ConstantTimeEq;
use tracing_appender::non_blocking::ErrorCounter;

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
    /// The files that the process may open.
    pub files: OpenFiles,
    /// The token that holds if none is configured.
    pub token: Arc<AdminToken>,
    /// Counts the lines of the log that were dropped.
    pub log_dropped: ErrorCounter,
}

/// An endpoint of the admin listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Metrics,
    Live,
    Ready,
    Config,
    Providers,
    Cache,
    Purge,
    Reload,
}

const ENDPOINTS: [(&str, Endpoint); 8] = [
    ("/metrics", Endpoint::Metrics),
    ("/healthz", Endpoint::Live),
    ("/readyz", Endpoint::Ready),
    ("/config", Endpoint::Config),
    ("/providers", Endpoint::Providers),
    ("/cache", Endpoint::Cache),
    ("/cache/purge", Endpoint::Purge),
    ("/reload", Endpoint::Reload),
];

impl Endpoint {
    fn at(path: &str) -> Option<Self> {
        ENDPOINTS.into_iter().find(|(known, _)| *known == path).map(|(_, endpoint)| endpoint)
    }

    /// Returns whether it changes something. Only these endpoints have a request body.
    #[must_use]
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Purge | Self::Reload)
    }

    /// Returns whether monitoring may use it without a token, and under any host name.
    fn is_public(self) -> bool {
        matches!(self, Self::Metrics | Self::Live | Self::Ready)
    }
}

impl AdminEndpoints {
    /// Creates the counters of the usual responses of each endpoint at 0, so that `rate()` sees the first one.
    pub(crate) fn create_series(metrics: &AdminMetrics) {
        for (path, endpoint) in ENDPOINTS {
            let refusals: &[&str] = match endpoint {
                Endpoint::Metrics | Endpoint::Live => &[],
                Endpoint::Ready => &["503"],
                Endpoint::Reload => &["400", "401", "403", "405", "422"],
                _ => &["400", "401", "403", "405"],
            };
            for status in ["200"].iter().chain(refusals) {
                metrics.requests.with_label_values(&[path, *status]);
            }
        }
        metrics.requests.with_label_values(&["other", "404"]);
    }

    /// Returns the path for metrics.
    #[must_use]
    pub(crate) fn label(path: &str) -> &'static str {
        ENDPOINTS.into_iter().find(|(known, _)| *known == path).map_or("other", |(known, _)| known)
    }

    /// Checks where a request comes from, its path, its token, its method, and the type of its body, in this order.
    ///
    /// # Errors
    /// The request is not permitted.
    pub(crate) fn permit(&self, request: &Request, has_body: bool, peer: IpAddr) -> Result<Endpoint, Problem> {
        let endpoint = Endpoint::at(&request.path);
        let any_host = endpoint.is_some_and(Endpoint::is_public);
        let hosts = &self.runtime.snapshot().weir.admin.hosts;
        admin_access::check_source(&request.headers, request.version, hosts, any_host).map_err(refused)?;
        let Some(endpoint) = endpoint else {
            let known = ENDPOINTS.map(|(path, _)| path).join(", ");
            return Err(Problem::new(Code::NotFound, format!("unknown path; the admin paths are {known}")));
        };
        self.check_token(request, endpoint, peer)?;
        let is_right_method = match endpoint.changes() {
            true => request.method == Method::POST,
            false => request.method == Method::GET || request.method == Method::HEAD,
        };
        if !is_right_method {
            let methods = if endpoint.changes() { "POST" } else { "GET, HEAD" };
            let detail = format!("{} supports only {methods}", request.path);
            return Err(Problem::method_not_allowed(detail, methods));
        }
        if has_body && endpoint.changes() {
            admin_access::check_content_type(&request.headers).map_err(refused)?;
        }
        Ok(endpoint)
    }

    /// Checks the token, if this request needs one: every request but those of monitoring if a token is configured,
    /// otherwise only a change. This is the only place that compares a token.
    fn check_token(&self, request: &Request, endpoint: Endpoint, _peer: IpAddr) -> Result<(), Problem> {
        let snapshot = self.runtime.snapshot();
        let configured = snapshot.weir.admin.token.0.as_str();
        let expected = match (configured, self.token.get()) {
            _ if endpoint.is_public() => return Ok(()),
            ("", _) if !(endpoint.changes() && request.method == Method::POST) => return Ok(()),
            ("", None) => {
                let detail = "changes need a token, and Weir could not store one of its own; set admin.token in \
                              weir.yaml (WEIR_ADMIN_TOKEN in the shipped configuration)";
                return Err(Problem::new(Code::Forbidden, detail));
            }
            ("", Some(own)) => own,
            (configured, _) => configured,
        };
        let sent = admin_access::bearer_token(&request.headers);
        if sent.is_some_and(|sent| sent.ct_eq(expected.as_bytes()).into()) {
            return Ok(());
        }
        let detail = match configured {
            "" => {
                "missing or wrong admin token; send `Authorization: Bearer` with the token that Weir stored at start (its \
                 log names the file), or use `weir purge` or `weir reload`"
            }
            _ => "missing or wrong admin token; send `Authorization: Bearer` with admin.token of weir.yaml",
        };
        Err(Problem::new(Code::Unauthorized, detail))
    }

    /// Returns the response of a permitted request. `body` is empty except for a change.
    pub(crate) async fn respond(&self, endpoint: Endpoint, body: &[u8]) -> Response {
        match endpoint {
            Endpoint::Metrics => self.metrics(),
            Endpoint::Live => json_response(200, &json!({ "status": "ok" })),
            Endpoint::Ready if self.draining.load(Ordering::Acquire) => {
                json_response(503, &json!({ "status": "draining" }))
            }
            Endpoint::Ready => {
                json_response(200, &json!({ "status": "ready", "revision": self.runtime.snapshot().revision }))
            }
            Endpoint::Config => json_response(200, &self.config()),
            Endpoint::Providers => json_response(200, &provider_states(&self.runtime.snapshot(), runtime::now())),
            Endpoint::Cache => json_response(200, &self.cache()),
            Endpoint::Purge => self.purge(body).await,
            Endpoint::Reload if !body.is_empty() && serde_json::from_slice::<Value>(body).is_err() => {
                problem_response(&Problem::invalid("the body is not valid JSON; a reload needs none"))
            }
            Endpoint::Reload => self.reload().await,
        }
    }

    fn metrics(&self) -> Response {
        self.shared.cache.run_pending_tasks();
        let metrics = &self.shared.metrics;
        metrics.cache.bytes.set(i64::try_from(self.shared.cache.bytes()).unwrap_or(i64::MAX));
        let (snapshot, now) = (self.runtime.snapshot(), runtime::now());
        let connections = self.files.connections(&snapshot.weir.limits).total;
        metrics.edge.connections_limit.set(i64::try_from(connections).unwrap_or(i64::MAX));
        let calls = self.shared.call_limit(&snapshot);
        metrics.upstream.calls_limit.set(i64::try_from(calls).unwrap_or(i64::MAX));
        let text = metrics.expose(|| {
            metrics.http.log_dropped.reset();
            metrics.http.log_dropped.inc_by(self.log_dropped.dropped_lines() as u64);
            admin_gauges::set_providers(metrics, &snapshot, now);
            admin_gauges::set_expiries(metrics, &snapshot, now);
            admin_gauges::set_memory(metrics, &snapshot, &self.shared.upstream.budget);
            for (setting, differs) in self.runtime.restart_settings() {
                metrics.config.needs_restart.with_label_values(&[setting]).set(differs.into());
            }
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
            "needs_restart": self.runtime.needs_restart(),
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

    async fn purge(&self, body: &[u8]) -> Response {
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

    async fn reload(&self) -> Response {
        let Reload { outcome, changed } = self.reloader.reload("POST /reload").await;
        let (status, result, faults) = match outcome {
            Reloaded::Refused(faults) => (422, "failure", Some(faults)),
            Reloaded::Swapped { .. } => (200, "success", None),
            Reloaded::Unchanged { .. } => (200, "unchanged", None),
        };
        let revision = &self.runtime.snapshot().revision;
        let restart = self.runtime.needs_restart();
        let mut answer =
            json!({ "result": result, "revision": revision, "changed": changed, "needs_restart": restart });
        if let Some(faults) = faults {
            answer["faults"] = faults.iter().map(ToString::to_string).collect();
        }
        json_response(status, &answer)
    }
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
                snapshot.routes.read_session_id(id).map_err(Box::<Problem>::from).map_err(|problem| *problem)?;
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

/// Describes the state of each provider, and the words that its file does not know.
fn provider_states(snapshot: &Snapshot, now: Time) -> Value {
    let row = |provider: &runtime::snapshot::Provider| {
        let (words, others) = provider.unknown_words.describe();
        json!({
            "name": &*provider.name,
            "breaker_open": admin_gauges::is_breaker_open(provider, now),
            "throttled": admin_gauges::is_throttled(provider, now),
            "unknown_words": words,
            "other_unknown_words": others,
        })
    };
    json!({ "providers": snapshot.providers.iter().map(row).collect::<Vec<_>>() })
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

fn response(status: u16, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut headers = ResponseHeaders::with_capacity(256);
    headers.push("content-type", content_type);
    headers.number("content-length", body.len() as u64);
    headers.push("cache-control", "no-store");
    Response { status, headers, body: Bytes::from(body).into() }
}

fn json_response(status: u16, value: &Value) -> Response {
    response(status, "application/json", format!("{value}\n").into_bytes())
}

pub(crate) fn problem_response(problem: &Problem) -> Response {
    let body = problem.to_value(None).to_string().into_bytes();
    let mut response = response(problem.code.status(), "application/problem+json", body);
    if let Some(methods) = problem.allow {
        response.headers.push("allow", methods);
    }
    if problem.code == Code::Unauthorized {
        response.headers.push("www-authenticate", "Bearer realm=\"weir-admin\"");
    }
    response
}

fn refused(refusal: AccessRefusal) -> Problem {
    let code = match refusal {
        AccessRefusal::UnknownHost | AccessRefusal::ForeignPage => Code::Forbidden,
        AccessRefusal::MissingHost
        | AccessRefusal::SeveralHosts
        | AccessRefusal::InvalidHost
        | AccessRefusal::NotJson => Code::InvalidRequest,
    };
    Problem::new(code, refusal.to_string())
}
