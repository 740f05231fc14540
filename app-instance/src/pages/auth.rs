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

use super::{Notice, html, texts::Texts};
use crate::{
    app::App,
    session::{cookies, fingerprint, guard, handoff::EnterError, rd, sessions},
};

/// The code is in the address: neither a referrer nor a cache may have it.
const PRIVATE: [(header::HeaderName, &str); 2] =
    [(header::REFERRER_POLICY, "no-referrer"), (header::CACHE_CONTROL, "no-store")];

#[derive(Deserialize)]
pub struct Start {
    rd: Option<String>,
}

/// Binds this browser to the sign-in that begins, and sends it to the portal.
pub async fn start(State(app): State<Arc<App>>, Query(start): Query<Start>) -> Response {
    let rd = rd::checked(start.rd.as_deref(), &app.config.origin);
    let secret = app.entropy.token();
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("bind", &fingerprint(&secret))
        .append_pair("rd", rd)
        .finish();
    let location = format!("{}/open/{}?{query}", app.config.portal, app.config.slug);
    let cookie = cookies::set(cookies::bind(app.secure), &secret, cookies::BIND_S, app.secure);
    (PRIVATE, AppendHeaders([(header::SET_COOKIE, cookie)]), guard::see_other(&location)).into_response()
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
    let bind = cookies::single(&headers, cookies::bind(app.secure));
    let entered = match app.hand_offs.finish(finish.code.as_deref().unwrap_or_default(), bind).await {
        Ok(entered) => entered,
        Err(EnterError::Database(error)) => return Problem::unavailable(error).into_response(),
        Err(EnterError::Invalid) => {
            let page = Notice {
                t: Texts::new(&app, locale, "/"),
                heading: "notice.invalid",
                words: "notice.invalid_words",
                code: Some("code_invalid".into()),
                request_id: service::telemetry::request_id(),
            };
            return (PRIVATE, html(StatusCode::BAD_REQUEST, &page)).into_response();
        }
    };
    // Whatever session this browser had is over: a new one at every sign-in.
    match guard::session(&app, &headers).await {
        Ok(Some(before)) => {
            if let Err(error) = app.sessions.end(&before).await {
                tracing::warn!(%error, "the session before could not be ended");
            }
        }
        Ok(None) => {}
        Err(problem) => return problem.into_response(),
    }
    let mut set = vec![
        cookies::set(cookies::session(app.secure), &entered.session, sessions::ABSOLUTE_MS / 1000, app.secure),
        cookies::clear(cookies::bind(app.secure), app.secure),
    ];
    if let Some((token, until_ms)) = entered.edge {
        let left_s = (until_ms - app.clock.now_ms()) / 1000;
        let name = contracts::instance::edge_cookie_name(app.secure);
        set.push(cookies::set(name, &token, left_s.max(0), app.secure));
    }
    let set: Vec<_> = set.into_iter().map(|cookie| (header::SET_COOKIE, cookie)).collect();
    (PRIVATE, AppendHeaders(set), guard::see_other(&entered.rd)).into_response()
}

/// Ends this browser's session.
pub async fn sign_out(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    if let Some(session) = guard::session(&app, &headers).await? {
        app.sessions.end(&session).await.map_err(Problem::unavailable)?;
    }
    let names = [cookies::session(app.secure), contracts::instance::edge_cookie_name(app.secure)];
    let cleared = names.map(|name| (header::SET_COOKIE, cookies::clear(name, app.secure)));
    Ok((AppendHeaders(cleared), guard::see_other("/auth/signed-out")).into_response())
}

/// Says that the session has ended.
pub async fn signed_out(State(app): State<Arc<App>>, locale: Locale) -> Response {
    let page = Notice {
        t: Texts::new(&app, locale, "/auth/signed-out"),
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
        Some(page @ "/auth/signed-out") => page,
        rd => rd::checked(rd, &app.config.origin),
    };
    let cookie = [(header::SET_COOKIE, locale.set_cookie(app.secure))];
    Ok((AppendHeaders(cookie), guard::see_other(rd)).into_response())
}
