//! Signing in by way of the portal, signing out, and the language.

use std::sync::Arc;

use axum::{
    Form,
    extract::{Query, State},
    response::{AppendHeaders, IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use locale::Locale;
use serde::Deserialize;
use service::Problem;
use sign_in::{FinishError, SIGNED_OUT};

use super::{Notice, html, texts::Texts};
use crate::{app::App, guard};

#[derive(Deserialize)]
pub struct Start {
    rd: Option<String>,
}

/// Binds this browser to the sign-in that begins, and sends it to the portal.
pub async fn start(State(app): State<Arc<App>>, Query(start): Query<Start>) -> Response {
    guard::redirect(app.sign_in.start(start.rd.as_deref()))
}

#[derive(Deserialize)]
pub struct Finish {
    code: Option<String>,
}

/// Exchanges the code for a session, in the browser that began.
pub async fn finish(
    State(app): State<Arc<App>>,
    locale: Locale,
    headers: HeaderMap,
    Query(finish): Query<Finish>,
) -> Response {
    match app.sign_in.finish(&headers, finish.code.as_deref().unwrap_or_default()).await {
        Ok(entered) => guard::redirect(entered),
        Err(FinishError::Kept(error)) => Problem::unavailable(error).into_response(),
        Err(FinishError::Invalid) => {
            let page = Notice {
                t: Texts::new(&app, locale, "/"),
                heading: "notice.invalid",
                words: "notice.invalid_words",
                code: Some("code_invalid".into()),
                request_id: service::telemetry::request_id(),
            };
            // The code is in the address.
            let private = [(header::REFERRER_POLICY, "no-referrer"), (header::CACHE_CONTROL, "no-store")];
            (private, html(StatusCode::BAD_REQUEST, &page)).into_response()
        }
    }
}

/// Ends this browser's session.
pub async fn sign_out(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    app.sign_in.sign_out(&headers).await.map(guard::redirect).map_err(Problem::unavailable)
}

/// Says that the session has ended.
pub async fn signed_out(State(app): State<Arc<App>>, locale: Locale) -> Response {
    let page = Notice {
        t: Texts::new(&app, locale, SIGNED_OUT),
        heading: "notice.signed_out",
        words: "notice.signed_out_words",
        code: None,
        request_id: None,
    };
    html(StatusCode::OK, &page)
}

#[derive(Deserialize)]
pub struct Language {
    locale: String,
    rd: Option<String>,
}

/// Remembers the language.
pub async fn language(State(app): State<Arc<App>>, Form(language): Form<Language>) -> Result<Response, Problem> {
    let locale = Locale::from_code(&language.locale)
        .ok_or_else(|| Problem::field("locale", "locale_unknown", "There is English (en) and Chinese (zh-CN)."))?;
    // The sign-in's own pages are no place to come back to, but the one that says it is over is.
    let rd = match language.rd.as_deref() {
        Some(SIGNED_OUT) => SIGNED_OUT,
        rd => sign_in::checked_rd(rd, &app.config.origin),
    };
    let cookie = [(header::SET_COOKIE, locale.set_cookie(app.secure))];
    Ok((AppendHeaders(cookie), guard::see_other(rd)).into_response())
}
