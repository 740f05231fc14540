//! Serving: the layers around every router, JSON bodies with readable refusals, and draining.

use std::time::{Duration, Instant};

use axum::{
    Router,
    extract::{FromRequest, MatchedPath, Request, rejection::JsonRejection},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode};
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, UnixListener};
use tower_http::{catch_panic::CatchPanicLayer, limit::RequestBodyLimitLayer};
use tracing::Instrument;

use crate::{Problem, Shutdown, telemetry};

/// How long open requests may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// The largest body an internal API or a form takes, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// `axum::Json` whose rejection is a [`Problem`].
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "json_required",
                "Send JSON with Content-Type: application/json.",
            )),
            Err(rejection) => {
                let status = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    rejection.status()
                } else {
                    StatusCode::BAD_REQUEST
                };
                Err(Problem::new(status, "invalid_request", rejection.body_text()))
            }
        }
    }
}

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Where request ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestIds {
    /// Always a new one: for listeners that strangers reach.
    Own,
    /// The caller's, when it is acceptable: for internal listeners.
    FromCaller,
}

/// The layers around every service: request id, access log, panics as 500, body limit, 404 as a problem.
///
/// The access log has the matched route, never the query or a body: those may hold codes and tokens.
pub fn layers(router: Router, ids: RequestIds) -> Router {
    layers_with_limit(router, ids, BODY_LIMIT)
}

/// As [`layers`], for a service that takes larger bodies: up to `limit` bytes.
pub fn layers_with_limit(router: Router, ids: RequestIds, limit: usize) -> Router {
    router
        .fallback(async || Problem::not_found("not_found"))
        .layer(CatchPanicLayer::custom(|_| Problem::internal(anyhow::anyhow!("a handler panicked")).into_response()))
        .layer(RequestBodyLimitLayer::new(limit))
        .layer(middleware::from_fn(move |request: Request, next: Next| observe(ids, request, next)))
}

async fn observe(ids: RequestIds, request: Request, next: Next) -> Response {
    let shown = request.headers().get(contracts::REQUEST_ID).and_then(|v| v.to_str().ok());
    let id = match (ids, shown) {
        (RequestIds::FromCaller, Some(id)) if telemetry::acceptable_request_id(id) => id.to_owned(),
        _ => telemetry::new_request_id(),
    };
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let span = tracing::info_span!("request", request_id = %id);
    let begun = Instant::now();
    let mut response = telemetry::with_request_id(id.clone(), next.run(request)).instrument(span.clone()).await;
    let route = route.as_deref().unwrap_or("-");
    let probe = matches!(route, "/healthz" | "/readyz" | "/metrics");
    span.in_scope(|| {
        let (status, ms) = (response.status().as_u16(), begun.elapsed().as_millis() as u64);
        if probe {
            tracing::debug!(%method, route, status, ms, "answered")
        } else {
            tracing::info!(%method, route, status, ms, "answered")
        }
    });
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(contracts::REQUEST_ID, value);
    }
    response
}

/// Serves until `stop`, then lets open requests go on for 10 s.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve(listener: TcpListener, router: Router, stop: Shutdown) -> std::io::Result<()> {
    let service = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
    drained(axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future(), stop)
        .await
}

/// As [`serve`], on a Unix socket.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve_unix(listener: UnixListener, router: Router, stop: Shutdown) -> std::io::Result<()> {
    drained(axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future(), stop)
        .await
}

pub(crate) async fn drained(serving: impl Future<Output = std::io::Result<()>>, stop: Shutdown) -> std::io::Result<()> {
    tokio::select! {
        result = serving => result,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!(after_s = DRAIN.as_secs(), "requests still open were cut at the end");
            Ok(())
        }
    }
}
