//! Writes the access log: one JSON line at the end of each request, and one at the beginning of those that last.
//!
//! A separate thread writes the lines. The queue to it is bounded; lines that do not fit are dropped, so that a slow
//! reader never delays a request.

use crate::base::model::{Time, write_json};
use crate::config::weir::AccessLog;
use crate::engine::request_record::RequestRecord;
use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time limit for writing the queued lines at exit.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of lines that the queue holds.
const QUEUE_LENGTH: usize = 8192;

/// Writes the access log.
pub(crate) struct AccessLogger {
    queue: Option<SyncSender<Vec<u8>>>,
    /// Disconnected once the writer thread has ended.
    writer_ended: Mutex<Receiver<()>>,
    /// Counts requests for sampling.
    counter: AtomicU32,
}

impl AccessLogger {
    /// Starts the thread that writes to `out`.
    #[must_use]
    pub(crate) fn new(out: impl Write + Send + 'static) -> Self {
        let (queue, lines) = sync_channel(QUEUE_LENGTH);
        let (running, writer_ended) = sync_channel(0);
        let write = move || {
            write_lines(out, &lines);
            drop(running);
        };
        // If the thread cannot start, the queue has no reader and every line counts as dropped.
        let _ = std::thread::Builder::new().name("access-log".into()).spawn(write);
        Self { queue: Some(queue), writer_ended: Mutex::new(writer_ended), counter: AtomicU32::new(0) }
    }

    /// Returns whether the mode selects the line at the beginning of this request. Then it selects the one at its end too.
    pub(crate) fn selects_begin(&self, mode: AccessLog, record: &mut RequestRecord) -> bool {
        match mode {
            AccessLog::On => true,
            AccessLog::Off => false,
            AccessLog::Sample(n) => *record.sampled.get_or_insert_with(|| self.is_sampled(n)),
        }
    }

    /// Returns whether the mode selects the line at the end of this request. Sampling always selects 5xx.
    pub(crate) fn selects(&self, mode: AccessLog, record: &RequestRecord) -> bool {
        match mode {
            AccessLog::On => true,
            AccessLog::Off => false,
            AccessLog::Sample(n) => record.status >= 500 || record.sampled.unwrap_or_else(|| self.is_sampled(n)),
        }
    }

    fn is_sampled(&self, one_in: u32) -> bool {
        self.counter.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
    }

    /// Queues a line. Returns `false` if the queue is full and the line is dropped.
    pub(crate) fn log(&self, line: Line) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(line.0).is_ok())
    }
}

impl Drop for AccessLogger {
    /// Waits until the queued lines are written, at most for `FLUSH_TIMEOUT`.
    fn drop(&mut self) {
        self.queue = None;
        let writer_ended = self.writer_ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = writer_ended.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Writes lines until the queue is closed. Flushes whenever the queue is empty.
fn write_lines(out: impl Write, lines: &Receiver<Vec<u8>>) {
    let mut out = std::io::BufWriter::with_capacity(64 << 10, out);
    while let Ok(line) = lines.recv() {
        let mut result = out.write_all(&line);
        while let Ok(line) = lines.try_recv() {
            result = result.and_then(|()| out.write_all(&line));
        }
        // A closed stdout must not stop the gateway.
        let _ = result.and_then(|()| out.flush());
    }
}

/// The end of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// How long the request took until its response: a watch, until its stream began.
    pub response_took: Duration,
    /// How long it took in all.
    pub took: Duration,
    /// How many bytes of the response's body were sent.
    pub sent: usize,
}

/// A line of the access log.
pub(crate) struct Line(Vec<u8>);

impl Line {
    /// Makes the line of a request that began at `at` and lasts. It has no result, so that nobody takes it for the line of
    /// a request.
    pub(crate) fn begin(method: &http::Method, record: &RequestRecord, at: Time) -> Self {
        let mut line = JsonLine::of("begin", method, record, at);
        line.text("trace_id", record.steps.trace_id().as_deref());
        line.finish()
    }

    /// Makes the line of a request that ended at `at`.
    pub(crate) fn end(method: &http::Method, record: &RequestRecord, end: End, at: Time) -> Self {
        let mut line = JsonLine::of("end", method, record, at);
        line.literal("status", itoa::Buffer::new().format(record.status));
        line.text("cache", Some(record.cache_label()));
        line.literal("bytes", itoa::Buffer::new().format(end.sent));
        line.milliseconds("total_ms", end.took);
        line.milliseconds("upstream_ms", record.provider_wait);
        line.text("error", record.error);
        line.text("trace_id", record.steps.trace_id().as_deref());
        line.finish()
    }
}

/// A JSON object that is written member by member. The names of the members need no quoting.
struct JsonLine(Vec<u8>);

impl JsonLine {
    /// Begins the line of an event: who requests what.
    fn of(event: &str, method: &http::Method, record: &RequestRecord, at: Time) -> Self {
        let mut line = Self(Vec::with_capacity(448));
        line.text("time", Some(&at.rfc3339()));
        line.text("event", Some(event));
        line.text("request_id", Some(&record.request_id));
        line.text("client", record.client.as_deref());
        line.address("address", record.address);
        line.text("method", Some(method.as_str()));
        line.text("route", Some(record.route));
        line.text("provider", record.provider.as_deref());
        line
    }

    fn address(&mut self, name: &str, address: Option<IpAddr>) {
        self.literal(name, "");
        // Writing to a Vec cannot fail.
        let _ = match address {
            Some(address) => write!(self.0, "\"{address}\""),
            None => write!(self.0, "null"),
        };
    }

    /// Appends a member whose value is JSON already.
    fn literal(&mut self, name: &str, value: &str) {
        let begin: &[u8] = if self.0.is_empty() { b"{\"" } else { b",\"" };
        for part in [begin, name.as_bytes(), b"\":", value.as_bytes()] {
            self.0.extend_from_slice(part);
        }
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        match value {
            None => self.literal(name, "null"),
            Some(text) => {
                self.literal(name, "");
                write_json(&mut self.0, text);
            }
        }
    }

    /// Appends a duration in milliseconds with three decimals.
    fn milliseconds(&mut self, name: &str, duration: Duration) {
        let micros = duration.as_micros();
        self.literal(name, itoa::Buffer::new().format(micros / 1000));
        let decimals = [b'.', last_digit(micros / 100), last_digit(micros / 10), last_digit(micros)];
        self.0.extend_from_slice(&decimals);
    }

    fn finish(mut self) -> Line {
        self.0.extend_from_slice(b"}\n");
        Line(self.0)
    }
}

/// Returns the last decimal digit of a number, in ASCII.
fn last_digit(number: u128) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or_default()
}
