//! What a request leaves behind: metrics and one line of the access log. And what Weir says of
//! itself on stderr.
//!
//! A room of its own because observing must cost the line next to nothing: lines go to a thread of
//! their own through a bounded queue, and are dropped and counted when their reader is too slow.

use crate::config::weir::{AccessLog, LogLevel};
use crate::metrics::{HttpMetrics, Metrics};
use crate::model::{Time, write_json};
use crate::runtime::Runtime;
use crate::trace::Trace;
use prometheus::{Histogram, IntCounter};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the last lines may take to be written.
const FLUSH: Duration = Duration::from_secs(2);

/// Lines that may wait for their writer.
const QUEUE: usize = 8192;

/// Says something to the operator, in one line on stderr, if the level in force lets it through.
pub fn say(runtime: &Runtime, level: LogLevel, message: impl FnOnce() -> String) {
    if level <= runtime.snapshot().weir.log {
        // A reader that is gone is no reason to fail, which `eprintln!` would.
        let _ = writeln!(std::io::stderr(), "weir: {}: {}", level.as_str(), message().replace('\n', " "));
    }
}

/// Writes the access log.
pub struct AccessLogger {
    queue: Option<SyncSender<Vec<u8>>>,
    /// Disconnected once the writer has ended.
    ended: Mutex<Receiver<()>>,
    counter: AtomicU32,
}

impl AccessLogger {
    /// A logger on `out`.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static) -> Self {
        let (queue, lines) = sync_channel(QUEUE);
        let (running, ended) = sync_channel(0);
        let write = move || {
            write_lines(out, &lines);
            drop(running);
        };
        // Without its thread the queue has no reader: lines are counted as dropped.
        let _ = std::thread::Builder::new().name("access-log".into()).spawn(write);
        Self { queue: Some(queue), ended: Mutex::new(ended), counter: AtomicU32::new(0) }
    }

    fn wants(&self, mode: AccessLog, status: u16) -> bool {
        match mode {
            AccessLog::On => true,
            AccessLog::Off => false,
            AccessLog::Sample(n) => status >= 500 || self.counter.fetch_add(1, Ordering::Relaxed).is_multiple_of(n),
        }
    }
}

impl Drop for AccessLogger {
    /// Writes what is left, unless its reader has stalled.
    fn drop(&mut self) {
        self.queue = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(FLUSH);
    }
}

/// Writes lines as they come, flushed whenever none is waiting.
fn write_lines(out: impl Write, lines: &Receiver<Vec<u8>>) {
    let mut out = std::io::BufWriter::with_capacity(64 << 10, out);
    while let Ok(line) = lines.recv() {
        let mut written = out.write_all(&line);
        while let Ok(line) = lines.try_recv() {
            written = written.and_then(|()| out.write_all(&line));
        }
        // A reader that is gone does not stop the gateway.
        let _ = written.and_then(|()| out.flush());
    }
}

/// Where requests are counted. What is counted there is mostly of the kind of the last, whose numbers need not be
/// looked up again by their labels.
#[derive(Default)]
pub struct Counters(Option<Kind>);

/// Requests that differ in nothing that is a label, and their numbers.
struct Kind {
    route: &'static str,
    provider: Option<Arc<str>>,
    client: Option<Arc<str>>,
    status: u16,
    cache: &'static str,
    requests: IntCounter,
    duration: Histogram,
    overhead: Histogram,
}

impl Kind {
    fn of(http: &HttpMetrics, trace: &Trace) -> Self {
        let (route, cache) = (trace.route, trace.cache_label());
        let client = trace.client.as_deref().unwrap_or("none");
        let provider = trace.provider.as_deref().unwrap_or("none");
        Self {
            route,
            provider: trace.provider.clone(),
            client: trace.client.clone(),
            status: trace.status,
            cache,
            requests: http.requests.with_label_values(&[route, provider, client, &trace.status.to_string()]),
            duration: http.duration.with_label_values(&[route, provider, cache]),
            overhead: http.overhead.with_label_values(&[route]),
        }
    }

    fn has(&self, trace: &Trace) -> bool {
        (self.route, self.status, self.cache) == (trace.route, trace.status, trace.cache_label())
            && self.client == trace.client
            && self.provider == trace.provider
    }
}

impl Counters {
    fn count(&mut self, http: &HttpMetrics, trace: &Trace, took: Duration) {
        self.0.take_if(|kind| !kind.has(trace));
        let kind = self.0.get_or_insert_with(|| Kind::of(http, trace));
        kind.requests.inc();
        kind.duration.observe(took.as_secs_f64());
        kind.overhead.observe(took.saturating_sub(trace.waited).as_secs_f64());
        if let Some(code) = trace.error {
            let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or("none").to_owned();
            http.problems.with_label_values(&[&*name(&trace.provider), &*name(&trace.client), code]).inc();
        }
    }
}

/// Counts and logs a request that is over.
#[allow(clippy::too_many_arguments)] // each is another's
pub fn request(
    metrics: &Metrics,
    counters: &mut Counters,
    logger: &AccessLogger,
    mode: AccessLog,
    method: &http::Method,
    trace: &Trace,
    took: Duration,
    now: impl FnOnce() -> Time,
) {
    let http = &metrics.http;
    counters.count(http, trace, took);
    if !logger.wants(mode, trace.status) {
        return;
    }
    let mut line = Line(Vec::with_capacity(384));
    line.text("time", Some(&now().rfc3339()));
    line.text("request_id", Some(&trace.request_id));
    line.text("client", trace.client.as_deref());
    line.text("method", Some(method.as_str()));
    line.text("route", Some(trace.route));
    line.text("provider", trace.provider.as_deref());
    line.bare("status", itoa::Buffer::new().format(trace.status));
    line.text("cache", Some(trace.cache_label()));
    line.bare("bytes", itoa::Buffer::new().format(trace.bytes));
    line.milliseconds("total_ms", took);
    line.milliseconds("upstream_ms", trace.waited);
    line.text("error", trace.error);
    line.text("trace_id", trace.steps.trace_id().as_deref());
    let sent = logger.queue.as_ref().is_some_and(|queue| queue.try_send(line.end()).is_ok());
    if !sent {
        http.access_log_dropped.inc();
    }
}

/// A line being written: a JSON object, member by member. Names are ours and need no quoting.
struct Line(Vec<u8>);

impl Line {
    fn bare(&mut self, name: &str, value: &str) {
        let begin: &[u8] = if self.0.is_empty() { b"{\"" } else { b",\"" };
        for part in [begin, name.as_bytes(), b"\":", value.as_bytes()] {
            self.0.extend_from_slice(part);
        }
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        match value {
            None => self.bare(name, "null"),
            Some(text) => {
                self.bare(name, "");
                write_json(&mut self.0, text);
            }
        }
    }

    /// With microseconds behind the point.
    fn milliseconds(&mut self, name: &str, duration: Duration) {
        let micros = duration.as_micros();
        self.bare(name, itoa::Buffer::new().format(micros / 1000));
        let thousandths = [b'.', digit(micros / 100), digit(micros / 10), digit(micros)];
        self.0.extend_from_slice(&thousandths);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n");
        self.0
    }
}

/// The last digit of a number.
fn digit(number: u128) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_by_the_end_and_sampling_keeps_failures() {
        let (out, metrics) = (Shared::default(), Metrics::new().unwrap());
        let logger = AccessLogger::new(out.clone());
        let (mut trace, mut counters) = (Trace::new("id".into(), "/v1/x"), Counters::default());
        for n in 0..100 {
            trace.status = if n % 50 == 7 { 502 } else { 200 };
            let took = Duration::from_micros(1500);
            let mode = AccessLog::Sample(49);
            request(&metrics, &mut counters, &logger, mode, &http::Method::GET, &trace, took, || Time(0));
        }
        let counted = metrics.render();
        for (status, count) in [(200, 98), (502, 2)] {
            let name = "weir_http_requests_total{client=\"none\",provider=\"none\",route=\"/v1/x\"";
            assert!(counted.contains(&format!("{name},status=\"{status}\"}} {count}\n")), "{counted}");
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
