//! `/healthz` (alive), `/readyz` (its needs are met) and `/metrics` (Prometheus text format).

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;

use crate::telemetry;

type More = Arc<dyn Fn() -> String + Send + Sync>;
type Check = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

// One recorder a process: with the process engine, all services share it.
static METRICS: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Fails only when another recorder is there already; then its numbers are somebody else's to show.
    let _ = metrics::set_global_recorder(recorder);
    // Without it a histogram that nobody asks for keeps every value that it was ever given.
    let kept = handle.clone();
    let upkeep = std::thread::Builder::new().name("metrics".into()).stack_size(64 << 10).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP);
            kept.run_upkeep();
        }
    });
    if let Err(error) = upkeep {
        tracing::warn!(%error, "metrics that nobody asks for will take more and more memory");
    }
    handle
});

/// How often the metrics are put together when nobody asks for them.
const UPKEEP: Duration = Duration::from_secs(30);

/// `/metrics` alone, for who answers the others otherwise. What is counted before this is made is not shown.
pub fn metrics_route<S: Clone + Send + Sync + 'static>() -> Router<S> {
    metrics_with(None)
}

fn metrics_with<S: Clone + Send + Sync + 'static>(more: Option<More>) -> Router<S> {
    LazyLock::force(&METRICS);
    let all = async move || {
        telemetry::count_dropped_lines();
        let mut text = METRICS.render();
        text.extend(more.map(|more| more()));
        text
    };
    Router::new().route("/metrics", get(all))
}

/// The named needs of a service.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<(&'static str, Check)>,
    more: Option<More>,
}

impl Health {
    /// No needs yet.
    pub fn new() -> Self {
        LazyLock::force(&METRICS);
        Self::default()
    }

    /// Adds a need; `check` says what is missing, in words fit for an operator. It is given 3 s.
    #[must_use]
    pub fn need<F, Fut>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || Box::pin(check()))));
        self
    }

    /// Adds metrics of the service's own making, in Prometheus' text format, to `/metrics`: whole families, for series that
    /// must go with what they are about.
    #[must_use]
    pub fn metrics(mut self, text: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.more = Some(Arc::new(text));
        self
    }

    /// `/healthz`, `/readyz` and `/metrics`: for internal listeners.
    pub fn routes(self) -> Router {
        let metrics = metrics_with(self.more.clone());
        self.public_routes().merge(metrics)
    }

    /// `/healthz` and `/readyz`.
    pub fn public_routes(self) -> Router {
        Router::new()
            .route("/healthz", get(async || axum::Json(json!({ "status": "ok", "version": crate::VERSION }))))
            .route("/readyz", get(move || self.ready()))
    }

    async fn ready(self) -> impl IntoResponse {
        let checks = self.checks.iter().map(|(name, check)| async move {
            let result = tokio::time::timeout(Duration::from_secs(3), check()).await;
            (*name, result.unwrap_or_else(|_| Err("no answer in 3 s".into())))
        });
        let results = futures_util::future::join_all(checks).await;
        let ready = results.iter().all(|(_, result)| result.is_ok());
        let needs: serde_json::Map<_, _> = results
            .into_iter()
            .map(|(name, result)| (name.into(), result.err().unwrap_or_else(|| "ok".into()).into()))
            .collect();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, axum::Json(json!({ "ready": ready, "needs": needs })))
    }
}
