//! Every number Weir tells Prometheus, in one struct with its own registry.
//!
//! A room of its own so that names, labels and help stand together: a field's doc comment is its help
//! text. Label values come from config and code, never from traffic.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use std::sync::{Mutex, PoisonError};

/// From a cached hit to a provider's deadline.
const LATENCY: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From a second to a week.
const LIFETIME: &[f64] = &[1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0, 604_800.0];

/// Limits on what comes in that are counted by name, besides those that end connections.
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
    /// What clients asked and got.
    HttpMetrics {
        /// Requests answered.
        requests: IntCounterVec("weir_http_requests_total", ["route", "provider", "client", "status"]),
        /// Requests that ended in a problem, by its code.
        problems: IntCounterVec("weir_http_problems_total", ["provider", "client", "code"]),
        /// Time from the request's header to the end of the answer.
        duration: HistogramVec("weir_http_request_duration_seconds", ["route", "provider", "cache"]; LATENCY),
        /// Requests being answered now.
        in_flight: IntGauge("weir_http_requests_in_flight"),
        /// Weir's own time in a request: its duration without the wait for the provider.
        overhead: HistogramVec("weir_overhead_seconds", ["route"]; LATENCY),
        /// Decisions of clients' rate-limit policies.
        rate_limit: IntCounterVec("weir_rate_limit_requests_total", ["client", "policy", "decision"]),
        /// Clients that watch a session now.
        watchers: IntGauge("weir_watchers"),
        /// Events sent to clients that watch a session.
        watch_events: IntCounterVec("weir_watch_events_total", ["provider", "event"]),
        /// Batches of spans sent to the collector.
        trace_exports: IntCounterVec("weir_trace_exports_total", ["result"]),
        /// Access log lines that could not be written because their reader was too slow.
        access_log_dropped: IntCounter("weir_access_log_dropped_total"),
    }
}

metrics! {
    /// What stands between the network and the first request.
    EdgeMetrics {
        /// Connections of clients that are open.
        connections: IntGauge("weir_connections"),
        /// Connections that Weir ended or refused, by what stood against them.
        ended: IntCounterVec("weir_connections_ended_total", ["reason"]),
        /// What was refused or ended because it was over a limit, by the limit's name in the configuration.
        limited: IntCounterVec("weir_limited_total", ["limit"]),
        /// Failed authentications, by whether they were told so or were over their limit.
        auth_failures: IntCounterVec("weir_auth_failures_total", ["decision"]),
    }
}

metrics! {
    /// What the cache did.
    CacheMetrics {
        /// Requests by what the cache had for them.
        requests: IntCounterVec("weir_cache_requests_total", ["provider", "result"]),
        /// Entries held.
        entries: IntGaugeVec("weir_cache_entries", ["provider"]),
        /// Bytes held, by the cache's own weighing.
        bytes: IntGauge("weir_cache_bytes"),
        /// Entries that left the cache.
        evictions: IntCounterVec("weir_cache_evictions_total", ["cause"]),
        /// Lifetimes given to stored answers, by where they came from.
        ttl: HistogramVec("weir_cache_ttl_seconds", ["provider", "source"]; LIFETIME),
        /// Provider calls that were not needed.
        saved: IntCounterVec("weir_upstream_requests_saved_total", ["provider", "reason"]),
    }
}

metrics! {
    /// What providers were asked and answered.
    UpstreamMetrics {
        /// Calls to providers, by HTTP status or the kind of failure.
        requests: IntCounterVec("weir_upstream_requests_total", ["provider", "operation", "status"]),
        /// Time from a call's start to the end of the provider's answer.
        duration: HistogramVec("weir_upstream_request_duration_seconds", ["provider", "operation"]; LATENCY),
        /// Calls that were not made, by what stood against them.
        refused: IntCounterVec("weir_upstream_refused_total", ["provider", "reason"]),
        /// Requests that broke before their answer: sent once more, or not.
        retries: IntCounterVec("weir_upstream_retries_total", ["provider", "result"]),
        /// Calls to providers under way, those that nobody waits for included.
        calls: IntGauge("weir_upstream_requests_in_flight"),
        /// Whether the provider's breaker is open.
        breaker_open: IntGaugeVec("weir_upstream_breaker_open", ["provider"]),
        /// Whether the provider asked for a pause that lasts, under any credential.
        throttled: IntGaugeVec("weir_upstream_throttled", ["provider"]),
        /// What the provider's configured capacity admits: calls at once by its rate, calls under way at the same time.
        capacity_limit: GaugeVec("weir_upstream_capacity_limit", ["provider", "kind"]),
        /// What of the provider's capacity is left, under the credential that has least.
        capacity_left: GaugeVec("weir_upstream_capacity_left", ["provider", "kind"]),
        /// Fields that could not be taken from a provider's body.
        mapping_failures: IntCounterVec("weir_mapping_failures_total", ["provider", "field", "reason"]),
    }
}

metrics! {
    /// How configuration went.
    ConfigMetrics {
        /// Reloads of the configuration.
        reloads: IntCounterVec("weir_config_reloads_total", ["result"]),
        /// Whether the last reload was successful.
        last_successful: IntGauge("weir_config_last_reload_successful"),
        /// When the configuration in force was last confirmed, in seconds since the Unix epoch.
        last_success: Gauge("weir_config_last_reload_success_timestamp_seconds"),
        /// The revision in force.
        info: GaugeVec("weir_config_info", ["revision"]),
        /// When the first certificate that a listener shows ends, in seconds since the Unix epoch.
        certificate_expiry: GaugeVec("weir_tls_certificate_expiry_timestamp_seconds", ["listener"]),
        /// When the next of a client's keys ends, and the last where none is without an end, in seconds since the Unix epoch.
        key_expiry: GaugeVec("weir_client_key_expiry_timestamp_seconds", ["client", "key"]),
        /// The version that runs.
        build: GaugeVec("weir_build_info", ["version"]),
    }
}

/// All metrics and their registry.
pub struct Metrics {
    registry: Registry,
    /// One exposition at a time: gauges that are read off when asked are emptied and filled again for each.
    exposing: Mutex<()>,
    /// What clients asked and got.
    pub http: HttpMetrics,
    /// What stands before the first request.
    pub edge: EdgeMetrics,
    /// What the cache did.
    pub cache: CacheMetrics,
    /// What providers answered.
    pub upstream: UpstreamMetrics,
    /// How configuration went.
    pub config: ConfigMetrics,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Two metrics of one name, which the tests rule out.
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
        let edge = EdgeMetrics::register(&registry)?;
        for reason in [
            "connections",
            "connections_per_address",
            "h2_resets",
            "header_timeout",
            "idle_timeout",
            "malformed",
            "requests_per_connection",
            "stall_timeout",
            "tls",
            "tls_timeout",
        ] {
            edge.ended.with_label_values(&[reason]);
        }
        for limit in LIMITS {
            edge.limited.with_label_values(&[limit]);
        }
        for decision in ["told", "limited"] {
            edge.auth_failures.with_label_values(&[decision]);
        }
        Ok(Self {
            http,
            edge,
            cache,
            upstream: UpstreamMetrics::register(&registry)?,
            config,
            registry,
            exposing: Mutex::new(()),
        })
    }

    /// The exposition, as text, once `gauge` has read off what nobody counts.
    #[must_use]
    pub fn expose(&self, gauge: impl FnOnce()) -> String {
        let _one_at_a_time = self.exposing.lock().unwrap_or_else(PoisonError::into_inner);
        gauge();
        self.render()
    }

    /// What is counted, as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        // Writing to a Vec cannot fail; families without a sample are left out by `gather`.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl CacheMetrics {
    /// An entry came in.
    pub fn added(&self, provider: &str) {
        self.entries.with_label_values(&[provider]).inc();
    }

    /// An entry left, by an eviction if there is a cause.
    pub fn removed(&self, provider: &str, cause: Option<&str>) {
        self.entries.with_label_values(&[provider]).dec();
        if let Some(cause) = cause {
            self.evictions.with_label_values(&[cause]).inc();
        }
    }
}

impl ConfigMetrics {
    /// A reload ended: `success`, `unchanged` or `failure`.
    pub fn reloaded(&self, result: &str, revision: &str, now_seconds: f64) {
        self.reloads.with_label_values(&[result]).inc();
        self.last_successful.set(i64::from(result != "failure"));
        if result != "failure" {
            self.in_force(revision, now_seconds);
        }
    }

    /// This revision is in force; it is the only one shown.
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
    fn only_the_current_revision_is_shown() {
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
