//! Who may come in: a session for the workspace, Beaver itself for the internal calls, and no other site for changes.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use service::Problem;
use sign_in::{Redirect, is_same_origin};

use crate::app::App;

/// For pages: without a session, the way to sign in.
pub async fn page(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.sign_in.session(request.headers()).is_some() {
        return next.run(request).await;
    }
    // A form that was sent cannot be sent again after signing in; its page can be seen again.
    let path = match *request.method() {
        Method::GET | Method::HEAD => request.uri().path_and_query().map_or("/", |p| p.as_str()),
        _ => request.uri().path(),
    };
    redirect(app.sign_in.way_in(path))
}

/// For the API: without a session, 401.
pub async fn api(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.sign_in.session(request.headers()).is_some() {
        return next.run(request).await;
    }
    Problem::new(StatusCode::UNAUTHORIZED, "session_ended", "Sign in to the workspace again.").into_response()
}

/// For the internal calls: only the router's internal listener sets the header, and the edge removes it.
pub async fn internal(request: Request, next: Next) -> Response {
    if request.headers().contains_key(contracts::INTERNAL) {
        next.run(request).await
    } else {
        Problem::not_found("not_found").into_response()
    }
}

/// Lets changes through only from pages of this very origin.
pub async fn same_origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if safe || is_same_origin(request.headers(), &app.config.origin) {
        return next.run(request).await;
    }
    Problem::new(StatusCode::FORBIDDEN, "cross_origin", "This must be sent from a page of this workspace.")
        .into_response()
}

/// The content security policy of every page: scripts, styles and calls of this origin alone.
///
/// A form may also lead to the portal: that is where one that was sent after the session's end is sent on to.
///
/// # Errors
/// When `portal` does not fit a header.
pub fn content_policy(portal: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    HeaderValue::try_from(format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         form-action 'self' {portal}; base-uri 'none'; frame-ancestors 'none'"
    ))
}

/// What every answer to a browser carries, unless it says otherwise itself.
pub fn secure_headers(headers: &mut HeaderMap, policy: &HeaderValue) {
    const DEFAULTS: [(HeaderName, &str); 6] = [
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not no-referrer: a form's Origin would then be null.
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in DEFAULTS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert_with(|| policy.clone());
}

/// 303 to a path or URL that has been checked.
pub fn see_other(location: &str) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(error) => Problem::internal(error).into_response(),
    }
}

/// 303 on the way in or out.
pub fn redirect(redirect: Redirect) -> Response {
    match redirect.headers() {
        Ok(headers) => (StatusCode::SEE_OTHER, headers).into_response(),
        Err(error) => Problem::internal(error).into_response(),
    }
}
