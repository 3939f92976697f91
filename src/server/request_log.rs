//! Records finished requests: log, span, metrics and access log.

use crate::base::metrics::{HttpMetrics, Metrics};
use crate::base::model::Time;
use crate::base::trace_context::Side;
use crate::config::weir::AccessLog;
use crate::engine::request_record::RequestRecord;
use crate::pipeline::Pipeline;
use crate::runtime;
use crate::server::access_log::AccessLogger;
use http::Method;
use prometheus::{Histogram, IntCounter, IntGauge};
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, error};

/// Records finished requests.
pub(crate) struct RequestLog {
    pipeline: Arc<Pipeline>,
    access_log: AccessLogger,
}

impl RequestLog {
    #[must_use]
    pub(crate) fn new(pipeline: Arc<Pipeline>, access_log: AccessLogger) -> Self {
        Self { pipeline, access_log }
    }

    /// Records a finished request.
    pub(crate) fn record(&self, counters: &mut Counters, method: &Method, record: &mut RequestRecord, took: Duration) {
        if let Some(code) = record.error {
            log_failure(code, record);
        }
        let mut steps = std::mem::take(&mut record.steps);
        self.pipeline.shared.spans.emit(steps.end(Side::Server, record.status >= 500, || {
            (format!("{method} {}", record.route).into(), record.trace_attributes(method))
        }));
        record.steps = steps;
        let targets = LogTargets {
            metrics: &self.pipeline.shared.metrics,
            logger: &self.access_log,
            mode: self.pipeline.runtime.snapshot().weir.access_log,
        };
        targets.record(counters, method, record, took, runtime::now);
    }
}

/// Logs the problem code of a request. `internal_error` is a fault of Weir; all others are expected.
fn log_failure(code: &'static str, record: &RequestRecord) {
    let RequestRecord { request_id, route, status, .. } = record;
    if code == "internal_error" {
        error!(request_id, route, status, code, "request failed");
    } else {
        debug!(request_id, route, status, code, "request failed");
    }
}

/// Counts a request as in flight until it is dropped.
pub(crate) struct InFlight(IntGauge);

impl InFlight {
    /// Counts one more request.
    #[must_use]
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Caches the metrics of the last request of a connection. The next one mostly has the same labels, so its metrics need
/// not be looked up.
#[derive(Default)]
pub(crate) struct Counters(Option<LabeledCounters>);

/// Metrics with the labels that they were looked up by.
struct LabeledCounters {
    route: &'static str,
    provider: Option<Arc<str>>,
    client: Option<Arc<str>>,
    status: u16,
    cache: &'static str,
    requests: IntCounter,
    duration: Histogram,
    overhead: Histogram,
}

impl LabeledCounters {
    fn look_up(http: &HttpMetrics, record: &RequestRecord) -> Self {
        let (route, cache) = (record.route, record.cache_label());
        let client = record.client.as_deref().unwrap_or("none");
        let provider = record.provider.as_deref().unwrap_or("none");
        Self {
            route,
            provider: record.provider.clone(),
            client: record.client.clone(),
            status: record.status,
            cache,
            requests: http.requests.with_label_values(&[route, provider, client, &record.status.to_string()]),
            duration: http.duration.with_label_values(&[route, provider, cache]),
            overhead: http.overhead.with_label_values(&[route]),
        }
    }

    fn fits(&self, record: &RequestRecord) -> bool {
        (self.route, self.status, self.cache) == (record.route, record.status, record.cache_label())
            && self.client == record.client
            && self.provider == record.provider
    }
}

impl Counters {
    fn count(&mut self, http: &HttpMetrics, record: &RequestRecord, took: Duration) {
        self.0.take_if(|counters| !counters.fits(record));
        let counters = self.0.get_or_insert_with(|| LabeledCounters::look_up(http, record));
        counters.requests.inc();
        counters.duration.observe(took.as_secs_f64());
        counters.overhead.observe(took.saturating_sub(record.provider_wait).as_secs_f64());
        if let Some(code) = record.error {
            let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or("none").to_owned();
            http.problems.with_label_values(&[&*name(&record.provider), &*name(&record.client), code]).inc();
        }
    }
}

/// The metrics and the access log, which record finished requests.
struct LogTargets<'l> {
    metrics: &'l Metrics,
    logger: &'l AccessLogger,
    mode: AccessLog,
}

impl LogTargets<'_> {
    /// Counts a finished request and writes it to the access log. Calls `now` only if it writes a line.
    fn record(
        &self,
        counters: &mut Counters,
        method: &Method,
        record: &RequestRecord,
        took: Duration,
        now: impl FnOnce() -> Time,
    ) {
        counters.count(&self.metrics.http, record, took);
        if self.logger.selects(self.mode, record.status) && !self.logger.log(method, record, took, now()) {
            self.metrics.http.access_log_dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn sampling_keeps_failures_and_every_line_is_written_before_exit() {
        let (out, metrics) = (SharedBuffer::default(), Metrics::new().unwrap());
        let logger = AccessLogger::new(out.clone());
        let (mut record, mut counters) = (RequestRecord::new("id".into(), "/v1/x"), Counters::default());
        for n in 0..100 {
            record.status = if n % 50 == 7 { 502 } else { 200 };
            let took = Duration::from_micros(1500);
            let targets = LogTargets { metrics: &metrics, logger: &logger, mode: AccessLog::Sample(49) };
            targets.record(&mut counters, &http::Method::GET, &record, took, || Time(0));
        }
        let exposed = metrics.render();
        for (status, count) in [(200, 98), (502, 2)] {
            let name = "weir_http_requests_total{client=\"none\",provider=\"none\",route=\"/v1/x\"";
            assert!(exposed.contains(&format!("{name},status=\"{status}\"}} {count}\n")), "{exposed}");
        }
        drop(logger);
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((first["time"].as_str(), first["total_ms"].as_f64()), (Some("1970-01-01T00:00:00.000Z"), Some(1.5)));
        assert_eq!((first["status"].as_u64(), &first["client"]), (Some(200), &serde_json::Value::Null));
        assert_eq!(text.matches("\"status\":502").count(), 2);
    }
}
