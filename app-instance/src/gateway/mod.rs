//! The model gateway: `/v1/models` and `/v1/chat/completions` with an `sk-` key, passed through to the provider byte for
//! byte.

mod body;
mod errors;
pub mod keys;

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use contracts::provider::ProviderConfig;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;

use crate::{app::App, chat::answer::code, upstream};
pub use errors::{Refusal, Refused};
pub use keys::Keys;

/// The largest request body, in bytes: pictures travel in it.
pub const BODY_LIMIT: usize = 24 << 20;

/// Headers of one connection, not of the message (RFC 9110, section 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What of a caller's request is between the caller and this instance alone.
const NOT_FOR_UPSTREAM: [&str; 10] = [
    "authorization",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",
    "referer",
    "x-api-key",
    "x-real-ip",
    "x-request-id",
];

/// What of a provider's answer means nothing, or something wrong, on this instance's origin.
const NOT_FOR_CALLER: [&str; 6] = [
    "alt-svc",
    "content-security-policy",
    "set-cookie",
    "strict-transport-security",
    "x-frame-options",
    "x-request-id",
];

/// The gateway's routes.
pub fn routes(app: Arc<App>) -> Router {
    let open = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1", any(nothing))
        .route("/v1/{*rest}", any(nothing))
        .method_not_allowed_fallback(async || Refusal::method())
        .layer(middleware::from_fn_with_state(app.clone(), require_key))
        .layer(middleware::from_fn(manners));
    open.with_state(app)
}

/// Only a key opens the gateway; a session's cookie does not count, so that no page of another site can use it.
async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match shown_key(request.headers()) {
        Some(key) if app.keys.is_live(key) => next.run(request).await,
        _ => Refusal::bad_key().into_response(),
    }
}

/// The key of `Authorization: Bearer` or `x-api-key`; the first when both are there.
fn shown_key(headers: &HeaderMap) -> Option<&str> {
    service::bearer::token(headers).or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim))
}

/// CORS for browser programs with a key of their own, never with cookies; and what every answer carries.
async fn manners(request: Request, next: Next) -> Response {
    const ANY: HeaderValue = HeaderValue::from_static("*");
    let headers = request.headers();
    let preflight = request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        // `*` does not cover Authorization, so what is asked for is named.
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut response = StatusCode::NO_CONTENT.into_response();
        let to = response.headers_mut();
        to.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        to.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
        to.insert(header::VARY, HeaderValue::from_static("access-control-request-headers"));
        if let Some(asked) = asked {
            to.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
        response
    } else {
        next.run(request).await
    };
    metrics::counter!("beaver_gateway_requests_total", "status" => response.status().as_str().to_owned()).increment(1);
    let to = response.headers_mut();
    let cors: Vec<_> = to.keys().filter(|n| n.as_str().starts_with("access-control-") && !preflight).cloned().collect();
    for name in cors {
        to.remove(name);
    }
    to.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    to.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
    // A provider's answer must never become a page of this origin.
    to.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    to.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    if let Some(id) = service::telemetry::request_id().and_then(|id| HeaderValue::from_str(&id).ok()) {
        to.insert(HeaderName::from_static("request-id"), id);
    }
    response
}

async fn nothing() -> Refusal {
    Refusal::no_such_route()
}

async fn models(State(app): State<Arc<App>>, request: Request) -> Response {
    forward(&app, request, Bytes::new()).await.unwrap_or_else(IntoResponse::into_response)
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) if parts.headers.get(header::CONTENT_LENGTH).is_some_and(is_too_long) => {
            return Refusal::too_large().into_response();
        }
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Refusal::too_large().into_response(),
        Err(_) => return Refusal::unreadable().into_response(),
    };
    /// All of a request that is looked at.
    #[derive(Deserialize)]
    struct Routing<'a> {
        #[serde(borrow, default)]
        model: Option<Cow<'a, str>>,
    }
    match serde_json::from_slice::<Routing<'_>>(&body) {
        // serde would read a list as well, member by member.
        _ if !body.trim_ascii_start().starts_with(b"{") => return Refusal::not_json().into_response(),
        Ok(Routing { model: Some(model) }) if !model.is_empty() => {}
        Ok(_) => return Refusal::model_missing().into_response(),
        Err(_) => return Refusal::not_json().into_response(),
    }
    let request = Request::from_parts(parts, Body::empty());
    forward(&app, request, body).await.unwrap_or_else(IntoResponse::into_response)
}

fn is_too_long(length: &HeaderValue) -> bool {
    length.to_str().ok().and_then(|text| text.parse::<u64>().ok()).is_some_and(|n| n > BODY_LIMIT as u64)
}

async fn forward(app: &App, request: Request, body: Bytes) -> Result<Response, Refusal> {
    let under_way = app.under_way();
    let provider: Arc<ProviderConfig> = app.provider.current().ok_or_else(Refusal::not_configured)?;
    let (mut parts, _) = request.into_parts();
    let path_and_query = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let path_and_query = path_and_query.strip_prefix("/v1").unwrap_or(path_and_query).to_owned();
    let path = path_and_query.split('?').next().unwrap_or_default();
    parts.uri = upstream::url(&provider, &path_and_query).map_err(|_| Refusal::no_such_route())?;
    strip(&mut parts.headers, &NOT_FOR_UPSTREAM);
    upstream::authorize(&provider, path, &mut parts.headers);
    parts.extensions.clear();
    parts.version = http::Version::HTTP_11;

    let answer = app.upstream.send(http::Request::from_parts(parts, Full::new(body))).await;
    let answer = answer.map_err(|failure| {
        tracing::warn!(cause = failure.chain(), "the provider gave no answer");
        metrics::counter!("beaver_gateway_failures_total", "code" => code(failure.kind.outcome())).increment(1);
        Refusal::upstream(failure.kind)
    })?;
    let (mut parts, body) = answer.into_parts();
    let framed =
        [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| parts.headers.contains_key(name));
    strip(&mut parts.headers, &NOT_FOR_CALLER);
    parts.extensions.clear();
    parts.version = http::Version::HTTP_11;
    let events = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
    if events {
        // With a length, the error event behind a cut stream would fill it up, and the end would look like a good one.
        parts.headers.remove(header::CONTENT_LENGTH);
        // For whatever proxy stands in between: pass each piece on as it comes.
        parts.headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        parts.headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    }
    // An error event put behind compressed bytes would be none.
    let room_for_words = events && !parts.headers.contains_key(header::CONTENT_ENCODING);
    Ok(Response::from_parts(parts, Body::new(body::PassThrough::new(body, room_for_words, framed, under_way))))
}

/// Takes out what is for one connection alone, what is Beaver's own, and `also`.
fn strip(headers: &mut HeaderMap, also: &[&str]) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let ours = |name: &str| {
        name.starts_with(contracts::HEADER_PREFIX) || name.starts_with("x-forwarded-") || name.starts_with("sec-fetch-")
    };
    let all: Vec<HeaderName> = headers.keys().filter(|name| ours(name.as_str())).cloned().collect();
    for name in named.into_iter().chain(all) {
        // A caller must not make us drop what frames the message.
        if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP.iter().chain(also) {
        headers.remove(*name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_headers_cookies_and_identity_are_stripped() {
        let mut headers: HeaderMap = [
            ("connection", "close, x-hop, content-length"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-beaver-internal", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("cookie", "beaver_workspace=secret"),
            ("authorization", "Bearer sk-own"),
            ("x-api-key", "sk-own"),
            ("content-length", "3"),
            ("x-stainless-lang", "python"),
        ]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
        strip(&mut headers, &NOT_FOR_UPSTREAM);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-stainless-lang"]);
    }
}
