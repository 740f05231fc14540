//! Who may come in: a session for the workspace, Beaver itself for the internal calls, and no other site for changes.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use service::Problem;

use super::{Session, cookies};
use crate::app::App;

/// The session that the request's cookie names, when it is valid.
///
/// # Errors
/// 503 when the database does not answer.
pub async fn session(app: &App, headers: &HeaderMap) -> Result<Option<Session>, Problem> {
    match cookies::single(headers, cookies::session(app.secure)) {
        Some(token) => app.sessions.find(token).await.map_err(Problem::unavailable),
        None => Ok(None),
    }
}

/// For pages: without a session, the way to sign in.
pub async fn page(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match session(&app, request.headers()).await {
        Err(problem) => problem.into_response(),
        Ok(Some(_)) => next.run(request).await,
        Ok(None) => {
            // A form that was sent cannot be sent again after signing in; its page can be seen again.
            let path = match *request.method() {
                Method::GET | Method::HEAD => request.uri().path_and_query().map_or("/", |p| p.as_str()),
                _ => request.uri().path(),
            };
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("rd", super::rd::checked(Some(path), &app.config.origin))
                .finish();
            see_other(&format!("/auth/start?{query}"))
        }
    }
}

/// For the API: without a session, 401.
pub async fn api(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match session(&app, request.headers()).await {
        Err(problem) => problem.into_response(),
        Ok(Some(_)) => next.run(request).await,
        Ok(None) => {
            Problem::new(StatusCode::UNAUTHORIZED, "session_ended", "Sign in to the workspace again.").into_response()
        }
    }
}

/// For the internal calls: only the router's internal listener sets the header, and the edge removes it.
pub async fn internal(request: Request, next: Next) -> Response {
    if request.headers().contains_key(contracts::INTERNAL) {
        next.run(request).await
    } else {
        Problem::not_found("not_found").into_response()
    }
}

/// Lets changes through only from pages of this very origin. SameSite is no help: neighbours are the same site.
pub async fn same_origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if safe || is_same_origin(request.headers(), &app.config.origin) {
        return next.run(request).await;
    }
    Problem::new(StatusCode::FORBIDDEN, "cross_origin", "This must be sent from a page of this workspace.")
        .into_response()
}

fn is_same_origin(headers: &HeaderMap, origin: &str) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let mut sites = headers.get_all(SITE).iter();
    let (first, second) = (origins.next(), origins.next());
    let (site, other_site) = (sites.next(), sites.next());
    if second.is_some() || other_site.is_some() {
        return false;
    }
    let same_site = site.map(|site| site == "same-origin");
    match first {
        Some(shown) => shown == origin && same_site != Some(false),
        None => same_site == Some(true),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "https://alice.apps.example.com";

    #[test]
    fn only_pages_of_this_origin_change_anything() {
        let allowed = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect();
            is_same_origin(&headers, ORIGIN)
        };
        assert!(allowed(&[("origin", ORIGIN)]));
        assert!(allowed(&[("origin", ORIGIN), ("sec-fetch-site", "same-origin")]));
        assert!(allowed(&[("sec-fetch-site", "same-origin")]));
        for refused in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://bob.apps.example.com")],
            &[("origin", "http://alice.apps.example.com")],
            &[("origin", "https://alice.apps.example.com:444")],
            &[("origin", "https://ALICE.apps.example.com")],
            &[("origin", ORIGIN), ("origin", ORIGIN)],
            &[("origin", ORIGIN), ("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(!allowed(refused), "{refused:?}");
        }
    }
}
