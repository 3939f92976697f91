//! Writes Weir's own log to stderr: one line for each event, with time, level, target, message and fields.
//!
//! Only events of Weir itself are written. Libraries emit events too, some of them for every request. Records of the
//! `log` crate, which Pingora makes, are not collected.
//!
//! A separate thread writes the lines, from a bounded queue: a full pipe, which nobody reads, must not stop requests.

use crate::config::weir::LogLevel;
use std::io::{self, Write};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, fmt, reload};

/// The number of lines that the queue holds.
const QUEUE_LENGTH: usize = 8192;

/// The log of this process.
pub(crate) struct Log {
    /// Changes its level.
    pub filter: LogFilter,
    /// Counts the lines that were dropped because the queue was full.
    pub dropped: ErrorCounter,
    /// Writes the queued lines when it is dropped, for at most a second.
    pub writer: WorkerGuard,
}

/// Changes the level of a log.
pub(crate) struct LogFilter(reload::Handle<Targets, Registry>);

impl LogFilter {
    pub(crate) fn set(&self, level: LogLevel) {
        // Fails only if the subscriber is gone, and it lives as long as the process.
        let _ = self.0.reload(targets(level));
    }
}

/// Starts the log of this process.
pub(crate) fn start(level: LogLevel) -> Log {
    let queue = NonBlockingBuilder::default().buffered_lines_limit(QUEUE_LENGTH).thread_name("log");
    let (out, writer) = queue.finish(io::stderr());
    let dropped = out.error_counter();
    let (subscriber, filter) = subscriber(level, move || out.clone());
    // Fails if the process already has a subscriber, which then receives the events.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Log { filter, dropped, writer }
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    Targets::new().with_target("weir", level)
}

fn subscriber<W: Write + 'static>(
    level: LogLevel,
    out: impl Fn() -> W + Send + Sync + 'static,
) -> (impl Subscriber + Send + Sync, LogFilter) {
    let (filter, handle) = reload::Layer::new(targets(level));
    // `log_internal_errors` would print a failed write to stderr with `eprintln!`, which panics if stderr is closed.
    let format = fmt::layer().log_internal_errors(false).with_writer(move || OneLine(out()));
    (tracing_subscriber::registry().with(filter).with(format), LogFilter(handle))
}

/// Keeps each event on one line: text from outside cannot begin a line that looks like another event.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    /// Writes one formatted event. The formatter calls it once for each.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        if text.iter().any(|byte| b"\r\n".contains(byte)) {
            let mut line: Vec<u8> = text.iter().map(|byte| if b"\r\n".contains(byte) { b' ' } else { *byte }).collect();
            line.push(b'\n');
            self.0.write_all(&line)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl SharedBuffer {
        /// Returns the lines that were written since the last call.
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(level: LogLevel) -> (impl Subscriber + Send + Sync, LogFilter, SharedBuffer) {
        let out = SharedBuffer::default();
        let shared = out.clone();
        let (subscriber, filter) = subscriber(level, move || shared.clone());
        (subscriber, filter, out)
    }

    #[test]
    fn a_line_has_time_level_target_message_and_fields() {
        let (subscriber, _filter, out) = log(LogLevel::Info);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(pid = 7, reason = "files changed", left_out = None::<&str>, "one\nmessage\r\n");
        });
        let lines = out.lines();
        let (time, rest) = lines[0].split_once(' ').unwrap();
        assert!(crate::base::model::parse_time(time).is_some() && time.ends_with('Z'), "{time}");
        assert_eq!(rest, " INFO weir::server::diagnostics::tests: one message   pid=7 reason=\"files changed\"");
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn the_level_changes_while_the_log_is_in_use() {
        let (subscriber, filter, out) = log(LogLevel::Warn);
        let all = || {
            tracing::error!("error");
            tracing::warn!("warn");
            tracing::info!("info");
            tracing::debug!("debug");
        };
        tracing::subscriber::with_default(subscriber, || {
            for (level, count) in [(LogLevel::Warn, 2), (LogLevel::Debug, 4), (LogLevel::Error, 1), (LogLevel::Info, 3)]
            {
                filter.set(level);
                all();
                assert_eq!(out.lines().len(), count, "{level:?}");
            }
        });
    }

    #[test]
    fn events_of_libraries_are_not_written() {
        let (subscriber, _filter, out) = log(LogLevel::Debug);
        tracing::subscriber::with_default(subscriber, || tracing::error!(target: "h2::proto", "a library's"));
        assert_eq!(out.lines(), Vec::<String>::new());
    }

    #[test]
    fn a_closed_output_is_ignored() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let (subscriber, _filter) = subscriber(LogLevel::Debug, || Closed);
        tracing::subscriber::with_default(subscriber, || tracing::error!("nobody reads this"));
    }
}
