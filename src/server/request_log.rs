//! Records finished requests: log, span, metrics and access log.

use crate::base::metrics::{HttpMetrics, Metrics};
use crate::base::model::Time;
use crate::base::trace_context::Side;
use crate::config::weir::AccessLog;
use crate::engine::request_record::RequestRecord;
use crate::pipeline::Pipeline;
use crate::runtime;
use crate::server::access_log::{AccessLogger, End, Line};
use http::Method;
use prometheus::{Histogram, IntCounter, IntGauge};
use std::future::Future;
use std::pin::pin;
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

    /// Returns the line of a request that began `ago`, in case it lasts; `None` if the log does not have the request.
    #[must_use]
    pub(crate) fn begin(&self, method: &Method, record: &mut RequestRecord, ago: Duration) -> Option<Line> {
        let mode = self.pipeline.runtime.snapshot().weir.access_log;
        let selected = self.access_log.selects_begin(mode, record);
        selected.then(|| Line::begin(method, record, runtime::now().minus(ago)))
    }

    /// Writes the line of a request that lasts.
    pub(crate) fn write(&self, line: Option<Line>) {
        if line.is_some_and(|line| !self.access_log.log(line)) {
            self.pipeline.shared.metrics.http.access_log_dropped.inc();
        }
    }

    /// Records a finished request.
    pub(crate) fn record(&self, counters: &mut Counters, method: &Method, record: &mut RequestRecord, end: End) {
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
        targets.record(counters, method, record, end, runtime::now);
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

/// A request that takes longer has a line for its beginning.
const LASTS: Duration = Duration::from_secs(1);

/// Waits for `work`. If it lasts, calls `begin` once. Reads no clock if `work` is ready at once.
pub(crate) async fn with_begin<F: Future>(work: F, begin: impl FnOnce()) -> F::Output {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return result,
        () = async { tokio::time::sleep(LASTS).await } => {}
    }
    begin();
    work.await
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
        end: End,
        now: impl FnOnce() -> Time,
    ) {
        counters.count(&self.metrics.http, record, end.response_took);
        let selected = self.logger.selects(self.mode, record);
        if selected && !self.logger.log(Line::end(method, record, end, now())) {
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
            let end = End { response_took: took, took, sent: 7 };
            let targets = LogTargets { metrics: &metrics, logger: &logger, mode: AccessLog::Sample(49) };
            targets.record(&mut counters, &http::Method::GET, &record, end, || Time(0));
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
