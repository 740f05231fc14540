//! The pages of the workspace, and what they load.

mod assets;
mod auth;
mod settings;
pub mod texts;
mod workspace;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::{Request, State},
    middleware::Next,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use contracts::{ProblemDetails, problem::MEDIA_TYPE};
use http::{HeaderMap, StatusCode, header};
use locale::Locale;
use service::Problem;

use crate::{app::App, gateway::Refused, guard};
use texts::Texts;

/// The longest refusal that is made a page, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// The pages that need a session.
pub fn workspace() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(workspace::page))
        .route("/settings", get(settings::page))
        .route("/settings/provider", post(settings::provider))
        .route("/settings/keys", post(settings::make_key))
        .route("/settings/keys/{id}/revoke", post(settings::revoke_key))
}

/// What works without a session: the way in and out, the language, and files that say nothing about anybody.
pub fn open() -> Router<Arc<App>> {
    Router::new()
        .route(sign_in::START, get(auth::start))
        .route(sign_in::FINISH, get(auth::finish))
        .route(sign_in::SIGN_OUT, post(auth::sign_out))
        .route(sign_in::SIGNED_OUT, get(auth::signed_out))
        .route("/language", post(auth::language))
        .route("/assets/style.css", get(assets::style))
        .route("/assets/chat.js", get(assets::script))
        .route("/assets/icon.svg", get(assets::icon))
}

/// A page with one message and the ways on.
#[derive(Template)]
#[template(path = "notice.html")]
struct Notice {
    t: Texts,
    heading: &'static str,
    words: &'static str,
    code: Option<String>,
    request_id: Option<String>,
}

/// The headers that protect pages, and refusals as pages for people who look at them. The gateway's answers are left as
/// they are, but for its refusals to somebody who opens its address in a browser.
pub async fn dress(State(app): State<Arc<App>>, locale: Locale, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let person = accepts_html(request.headers());
    if path == "/v1" || path.starts_with("/v1/") {
        let response = next.run(request).await;
        return match response.extensions().get::<Refused>() {
            Some(Refused(code)) if person => for_programs(&app, locale, code, response.status()),
            _ => response,
        };
    }
    let mut response = next.run(request).await;
    if person && response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE) {
        response = refusal(&app, locale, response).await;
    }
    guard::secure_headers(response.headers_mut(), &app.content_policy);
    response
}

/// The page behind the gateway's addresses, which are no pages.
fn for_programs(app: &App, locale: Locale, code: &'static str, status: StatusCode) -> Response {
    let page = Notice {
        t: Texts::new(app, locale, "/"),
        heading: "notice.programs",
        words: "notice.programs_words",
        code: Some(code.to_owned()),
        request_id: service::telemetry::request_id(),
    };
    let mut response = html(status, &page);
    guard::secure_headers(response.headers_mut(), &app.content_policy);
    response
}

/// Whether a browser asks for a page: its own scripts ask for anything (`*/*`).
fn accepts_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

async fn refusal(app: &App, locale: Locale, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, MAX_REFUSAL).await.unwrap_or_default();
    let details: Option<ProblemDetails> = serde_json::from_slice(&body).ok();
    let (heading, words) = match parts.status {
        StatusCode::NOT_FOUND => ("notice.not_found", "notice.not_found_words"),
        StatusCode::FORBIDDEN => ("notice.refused", "notice.refused_words"),
        status if status.is_server_error() => ("notice.failed", "notice.failed_words"),
        _ => ("notice.wrong", "notice.wrong_words"),
    };
    let page = Notice {
        t: Texts::new(app, locale, "/"),
        heading,
        words,
        code: details.as_ref().map(|details| details.code.clone()),
        request_id: details.and_then(|details| details.request_id),
    };
    for framing in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        parts.headers.remove(framing);
    }
    let mut shown = html(parts.status, &page);
    parts.headers.extend(std::mem::take(shown.headers_mut()));
    *shown.headers_mut() = parts.headers;
    shown
}

/// A page, or 500 when it cannot be made.
fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => (status, Html(text)).into_response(),
        Err(error) => Problem::internal(error).into_response(),
    }
}
