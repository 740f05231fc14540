//! Logs and the request id that ties them together.

use std::{future::Future, io::IsTerminal, sync::Once};

use tracing_subscriber::{EnvFilter, prelude::*};
use uuid::Uuid;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// Starts logging to standard error: `level` as in `RUST_LOG`, `json` or text lines. The first call counts.
pub fn init(level: &str, json: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
        let registry = tracing_subscriber::registry().with(filter);
        if json {
            let layer = tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false);
            registry.with(layer.with_writer(std::io::stderr)).init();
        } else {
            let layer = tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal());
            registry.with(layer.with_writer(std::io::stderr)).init();
        }
    });
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
