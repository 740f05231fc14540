//! Logs and the request id that ties them together.

use std::{future::Future, io::IsTerminal, sync::OnceLock};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, prelude::*};
use uuid::Uuid;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// How many lines wait for whoever takes them. A container engine that hangs takes none, and what waits for it would wait as
/// long.
const WAITING_LINES: usize = 4096;

/// What counts the lines beyond that.
const DROPPED_LINES: &str = "beaver_log_lines_dropped_total";

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// What is logged; when it is dropped, lines that still wait are written, for which there is a second at most.
#[must_use = "lines that wait are lost with the process"]
pub struct Log {
    _guard: WorkerGuard,
}

/// Starts logging to standard error: `level` as in `RUST_LOG`, `json` or text lines. The first call counts. Nobody waits for
/// whoever reads it: of what is too much for them, the newest lines are lost, and counted.
pub fn init(level: &str, json: bool) -> Log {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES).thread_name("log").finish(std::io::stderr());
    let counter = writer.error_counter();
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let is_first = if json {
        let layer =
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
        registry.with(layer.with_writer(writer)).try_init().is_ok()
    } else {
        let layer = tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal());
        registry.with(layer.with_writer(writer)).try_init().is_ok()
    };
    if is_first {
        let _ = DROPPED.set(counter);
    }
    Log { _guard: guard }
}

/// Has the lines that nobody took counted where the metrics are.
pub(crate) fn count_dropped_lines() {
    let lines = DROPPED.get().map(ErrorCounter::dropped_lines).unwrap_or_default();
    metrics::describe_counter!(DROPPED_LINES, "Lines of the log that nobody took in time.");
    metrics::counter!(DROPPED_LINES).absolute(lines as u64);
}

/// The id of the request this task works for, when it does.
pub fn request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// Runs `work` as part of the request with this id.
pub async fn with_request_id<T>(id: String, work: impl Future<Output = T>) -> T {
    REQUEST_ID.scope(id, work).await
}

/// A new request id.
pub fn new_request_id() -> String {
    Uuid::now_v7().simple().to_string()
}

/// Whether a request id from outside may be taken over into logs: 8 to 64 letters, digits, hyphens or underscores.
pub fn acceptable_request_id(id: &str) -> bool {
    (8..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
