//! Defines all metrics for Prometheus, in one registry.
//!
//! The doc comment of a metric's field is its help text. Label values come from the configuration and the code, never
//! from traffic.

use crate::base::content_coding::ContentCoding;
use crate::base::request_reply::FailureKind;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use std::sync::{Mutex, PoisonError};

/// Buckets in seconds, from a cache hit to a provider's deadline.
const LATENCY: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets in seconds, from a second to a week.
const LIFETIME: &[f64] = &[1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0, 604_800.0];

/// Values of the label `limit`: the request limits. Limits that close connections are reasons of `ended`.
const LIMITS: [&str; 7] =
    ["body_bytes", "body_timeout", "h2_header_list", "header_bytes", "header_count", "stall_timeout", "url_bytes"];

macro_rules! metrics {
    ($(#[doc = $struct_doc:expr])* $name:ident { $( #[doc = $help:expr] $field:ident : $kind:ident ( $metric:expr $(, [$($label:expr),*])? $(; $buckets:expr)? ), )* }) => {
        $(#[doc = $struct_doc])*
        #[derive(Clone)]
        pub struct $name { $( #[doc = $help] pub $field: $kind, )* }

        impl $name {
            fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
                $( let $field = metrics!(@make $kind, $metric, $help.trim() $(, [$($label),*])? $(; $buckets)?);
                   add(registry, &$field)?; )*
                Ok(Self { $($field),* })
            }
        }
    };
    (@make HistogramVec, $metric:expr, $help:expr, [$($label:expr),*]; $buckets:expr) => {
        HistogramVec::new(HistogramOpts::new($metric, $help).buckets($buckets.to_vec()), &[$($label),*])?
    };
    (@make $kind:ident, $metric:expr, $help:expr, [$($label:expr),*]) => {
        $kind::new(Opts::new($metric, $help), &[$($label),*])?
    };
    (@make $kind:ident, $metric:expr, $help:expr) => { $kind::new($metric, $help)? };
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: &C) -> Result<(), prometheus::Error> {
    registry.register(Box::new(collector.clone()))
}

metrics! {
    /// Metrics of client requests.
    HttpMetrics {
        /// Requests, by HTTP status.
        requests: IntCounterVec("weir_http_requests_total", ["route", "provider", "client", "status"]),
        /// Requests that ended in a problem, by its code.
        problems: IntCounterVec("weir_http_problems_total", ["provider", "client", "code"]),
        /// Time from the request headers to the end of the response.
        duration: HistogramVec("weir_http_request_duration_seconds", ["route", "provider", "cache"]; LATENCY),
        /// Requests in flight.
        in_flight: IntGauge("weir_http_requests_in_flight"),
        /// Weir's own time in a request: its duration without the wait for the provider.
        overhead: HistogramVec("weir_overhead_seconds", ["route"]; LATENCY),
        /// Decisions of the clients' rate-limit policies.
        rate_limit: IntCounterVec("weir_rate_limit_requests_total", ["client", "policy", "decision"]),
        /// Bytes that are reserved for responses, below overload.max_buffered.
        buffered: IntGauge("weir_buffered_bytes"),
        /// Bytes that are reserved for the responses of each client.
        client_buffered: IntGaugeVec("weir_client_buffered_bytes", ["client"]),
        /// Clients that watch a session.
        watchers: IntGauge("weir_watchers"),
        /// Events sent to clients that watch a session.
        watch_events: IntCounterVec("weir_watch_events_total", ["provider", "event"]),
        /// Batches of spans sent to the collector.
        trace_exports: IntCounterVec("weir_trace_exports_total", ["result"]),
        /// Access log lines that were dropped because the log's reader was too slow.
        access_log_dropped: IntCounter("weir_access_log_dropped_total"),
        /// Lines of the log on stderr that were dropped because its reader was too slow.
        log_dropped: IntCounter("weir_log_dropped_total"),
    }
}

metrics! {
    /// Metrics of connections, request limits and authentication.
    EdgeMetrics {
        /// Open client connections.
        connections: IntGauge("weir_connections"),
        /// Client connections that may be open at the same time: limits.connections, or fewer if the process can open too few files.
        connections_limit: IntGauge("weir_connections_limit"),
        /// Connections that Weir refused or closed, by reason.
        ended: IntCounterVec("weir_connections_ended_total", ["reason"]),
        /// Requests over a limit, by the limit's name in the configuration.
        limited: IntCounterVec("weir_limited_total", ["limit"]),
        /// Requests without a valid key, by decision: told is a response at once, limited is 429 after a delay, dropped is no response, undelayed is 429 at once through a proxy.
        auth_failures: IntCounterVec("weir_auth_failures_total", ["decision"]),
        /// Responses to requests without a valid key that are delayed now.
        auth_delayed: IntGauge("weir_auth_failures_delayed"),
    }
}

metrics! {
    /// Metrics of the admin listener.
    AdminMetrics {
        /// Open connections to the admin listener.
        connections: IntGauge("weir_admin_connections"),
        /// Connections to the admin listener that Weir refused or closed, by reason.
        ended: IntCounterVec("weir_admin_connections_ended_total", ["reason"]),
        /// Requests to the admin listener, by path (other for unknown ones) and HTTP status.
        requests: IntCounterVec("weir_admin_requests_total", ["path", "status"]),
    }
}

metrics! {
    /// Metrics of the cache.
    CacheMetrics {
        /// Cache lookups, by result.
        requests: IntCounterVec("weir_cache_requests_total", ["provider", "result"]),
        /// Cache entries.
        entries: IntGaugeVec("weir_cache_entries", ["provider"]),
        /// Weighed size of all cache entries, in bytes.
        bytes: IntGauge("weir_cache_bytes"),
        /// Entries that left the cache, by cause.
        evictions: IntCounterVec("weir_cache_evictions_total", ["cause"]),
        /// Lifetimes of stored responses, by the rule that set them.
        ttl: HistogramVec("weir_cache_ttl_seconds", ["provider", "source"]; LIFETIME),
        /// Calls to providers that were not needed, by reason.
        saved: IntCounterVec("weir_upstream_requests_saved_total", ["provider", "reason"]),
    }
}

metrics! {
    /// Metrics of the compression of responses.
    CompressionMetrics {
        /// Responses that were sent compressed, by content coding.
        responses: IntCounterVec("weir_compressed_responses_total", ["encoding"]),
        /// Bytes that compressed responses did not need, by content coding.
        saved: IntCounterVec("weir_compression_saved_bytes_total", ["encoding"]),
        /// Time that compressing a body took, by content coding. A compressed body that is kept is made once.
        duration: HistogramVec("weir_compression_duration_seconds", ["encoding"]; LATENCY),
        /// Responses that could not be compressed: no memory was left, the result was longer, or the encoder failed.
        skipped: IntCounterVec("weir_compression_skipped_total", ["reason"]),
    }
}

metrics! {
    /// Metrics of calls to providers.
    UpstreamMetrics {
        /// Calls to providers, by HTTP status or the kind of failure.
        requests: IntCounterVec("weir_upstream_requests_total", ["provider", "operation", "status"]),
        /// Calls to providers that failed without a complete response, retried ones included, by reason.
        failures: IntCounterVec("weir_upstream_failures_total", ["provider", "reason"]),
        /// Time from the start of a call to the end of the provider's response.
        duration: HistogramVec("weir_upstream_request_duration_seconds", ["provider", "operation"]; LATENCY),
        /// Calls that Weir did not make, by reason.
        refused: IntCounterVec("weir_upstream_refused_total", ["provider", "reason"]),
        /// Calls that failed before the response began: retried, or not.
        retries: IntCounterVec("weir_upstream_retries_total", ["provider", "result"]),
        /// Calls to providers in flight, including those that no request waits for.
        calls: IntGauge("weir_upstream_requests_in_flight"),
        /// The most calls that may be in flight: overload.max_in_flight, or what the limit of open files permits.
        calls_limit: IntGauge("weir_upstream_requests_limit"),
        /// 1 if the provider's breaker is open, otherwise 0.
        breaker_open: IntGaugeVec("weir_upstream_breaker_open", ["provider"]),
        /// 1 if a pause that the provider requested lasts, under any credential; otherwise 0.
        throttled: IntGaugeVec("weir_upstream_throttled", ["provider"]),
        /// The provider's configured capacity in calls: the burst of its rate, or calls in flight.
        capacity_limit: GaugeVec("weir_upstream_capacity_limit", ["provider", "kind"]),
        /// What is left of the provider's capacity in calls, for the credential that has least left.
        capacity_left: GaugeVec("weir_upstream_capacity_left", ["provider", "kind"]),
        /// Fields that could not be mapped from a provider's body, by reason.
        mapping_failures: IntCounterVec("weir_mapping_failures_total", ["provider", "field", "reason"]),
    }
}

metrics! {
    /// Metrics of the configuration.
    ConfigMetrics {
        /// Reloads of the configuration, by result.
        reloads: IntCounterVec("weir_config_reloads_total", ["result"]),
        /// 1 if the last reload was successful, otherwise 0.
        last_successful: IntGauge("weir_config_last_reload_successful"),
        /// When the running configuration was last confirmed, in seconds since the Unix epoch.
        last_success: Gauge("weir_config_last_reload_success_timestamp_seconds"),
        /// 1 if the setting was changed and takes effect only after a restart, otherwise 0.
        needs_restart: IntGaugeVec("weir_config_needs_restart", ["setting"]),
        /// The revision of the running configuration.
        info: GaugeVec("weir_config_info", ["revision"]),
        /// When the first certificate of the listener's chain expires, in seconds since the Unix epoch.
        certificate_expiry: GaugeVec("weir_tls_certificate_expiry_timestamp_seconds", ["listener"]),
        /// When the client's next key expires, and when its last key does if all expire, in seconds since the Unix epoch.
        key_expiry: GaugeVec("weir_client_key_expiry_timestamp_seconds", ["client", "key"]),
        /// The running version.
        build: GaugeVec("weir_build_info", ["version"]),
    }
}

/// All metrics and their registry.
pub struct Metrics {
    registry: Registry,
    /// Allows one scrape at a time, because each scrape resets some gauges and sets them again.
    scrape: Mutex<()>,
    /// Client requests.
    pub http: HttpMetrics,
    /// Connections, request limits and authentication.
    pub edge: EdgeMetrics,
    /// The admin listener.
    pub admin: AdminMetrics,
    /// The cache.
    pub cache: CacheMetrics,
    /// The compression of responses.
    pub compression: CompressionMetrics,
    /// Calls to providers.
    pub upstream: UpstreamMetrics,
    /// The configuration.
    pub config: ConfigMetrics,
}

impl Metrics {
    /// Creates and registers all metrics.
    ///
    /// # Errors
    /// Two metrics have the same name. Tests exclude this.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let config = ConfigMetrics::register(&registry)?;
        config.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        for result in ["success", "unchanged", "failure"] {
            config.reloads.with_label_values(&[result]);
        }
        let http = HttpMetrics::register(&registry)?;
        let cache = CacheMetrics::register(&registry)?;
        for cause in ["expired", "size", "explicit"] {
            cache.evictions.with_label_values(&[cause]);
        }
        let compression = CompressionMetrics::register(&registry)?;
        for coding in ContentCoding::ALL.map(ContentCoding::as_str) {
            compression.responses.with_label_values(&[coding]);
            compression.saved.with_label_values(&[coding]);
            compression.duration.with_label_values(&[coding]);
        }
        for reason in ["failed", "longer", "memory"] {
            compression.skipped.with_label_values(&[reason]);
        }
        let edge = EdgeMetrics::register(&registry)?;
        for reason in [
            "connections",
            "connections_per_address",
            "h2_resets",
            "header_timeout",
            "idle_timeout",
            "malformed",
            "overloaded",
            "requests_per_connection",
            "stall_timeout",
            "tls",
            "tls_timeout",
        ] {
            edge.ended.with_label_values(&[reason]);
        }
        let admin = AdminMetrics::register(&registry)?;
        for reason in [
            "body_timeout",
            "connections",
            "connections_per_address",
            "header_timeout",
            "idle_timeout",
            "malformed",
            "stall_timeout",
        ] {
            admin.ended.with_label_values(&[reason]);
        }
        for limit in LIMITS {
            edge.limited.with_label_values(&[limit]);
        }
        for decision in ["told", "limited", "dropped", "undelayed"] {
            edge.auth_failures.with_label_values(&[decision]);
        }
        Ok(Self {
            http,
            edge,
            admin,
            cache,
            compression,
            upstream: UpstreamMetrics::register(&registry)?,
            config,
            registry,
            scrape: Mutex::new(()),
        })
    }

    /// Returns all metrics in Prometheus' text format. First calls `update_gauges`, which sets the gauges that are
    /// measured at each scrape.
    #[must_use]
    pub fn expose(&self, update_gauges: impl FnOnce()) -> String {
        let _one_at_a_time = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        update_gauges();
        self.render()
    }

    /// Returns all metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        // Writing to a Vec cannot fail. `gather` leaves out metrics without a sample.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl CacheMetrics {
    /// Counts an entry that the cache stored.
    pub fn added(&self, provider: &str) {
        self.entries.with_label_values(&[provider]).inc();
    }

    /// Counts an entry that left the cache. Without a cause, a newer entry replaced it.
    pub fn removed(&self, provider: &str, cause: Option<&str>) {
        self.entries.with_label_values(&[provider]).dec();
        if let Some(cause) = cause {
            self.evictions.with_label_values(&[cause]).inc();
        }
    }
}

impl UpstreamMetrics {
    /// Counts a call, or an attempt of it, that failed without a complete response.
    pub fn failed(&self, provider: &str, operation: &str, kind: FailureKind) {
        self.requests.with_label_values(&[provider, operation, kind.as_str()]).inc();
        self.failures.with_label_values(&[provider, kind.reason()]).inc();
    }
}

impl ConfigMetrics {
    /// Counts a reload. `result` is `success`, `unchanged` or `failure`.
    pub fn reloaded(&self, result: &str, revision: &str, now_seconds: f64) {
        self.reloads.with_label_values(&[result]).inc();
        self.last_successful.set(i64::from(result != "failure"));
        if result != "failure" {
            self.in_force(revision, now_seconds);
        }
    }

    /// Records that the configuration with this revision is running. `weir_config_info` shows no other revision.
    pub fn in_force(&self, revision: &str, now_seconds: f64) {
        self.last_successful.set(1);
        self.last_success.set(now_seconds);
        self.info.reset();
        self.info.with_label_values(&[revision]).set(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_running_revision_is_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.config.in_force("aaa", 1.0);
        metrics.config.reloaded("success", "bbb", 2.0);
        metrics.config.reloaded("failure", "ccc", 3.0);
        let text = metrics.render();
        assert!(
            text.contains("weir_config_info{revision=\"bbb\"} 1") && !text.contains("aaa") && !text.contains("ccc")
        );
        assert!(text.contains("weir_config_last_reload_successful 0"));
        assert!(text.contains("weir_config_last_reload_success_timestamp_seconds 2"));
        assert!(text.contains("weir_config_reloads_total{result=\"failure\"} 1"));
    }
}
