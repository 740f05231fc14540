//! The outermost layer: security headers on everything, and every refusal as a page that says what happened and what
//! to do.

use askama::Template;
use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use contracts::ProblemDetails;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use locale::Locale;

use crate::{
    Portal,
    page::{Layout, page},
    session,
};

#[derive(Template)]
#[template(path = "portal/error.html")]
struct ErrorPage {
    l: Layout,
    title: String,
    what: String,
    todo: String,
    code: String,
    request_id: String,
}

/// Dresses what comes from inside for the outside.
pub async fn dress(State(portal): State<Portal>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let Ok(locale) = Locale::from_request_parts(&mut parts, &portal).await;
    let path = parts.uri.path().to_owned();
    let here = session::here(&parts).to_owned();
    let machine = ["/api/", "/assets/", "/.well-known/"].iter().any(|prefix| path.starts_with(prefix))
        || wants_json(&parts.headers)
        || path == "/events";
    let mut response = next.run(Request::from_parts(parts, body)).await;
    let html = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/html"));
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if failed && !html && !machine {
        response = error_page(response, Layout::new(locale, here, None)).await;
    }
    let handing_on = path.starts_with("/open/") || path == "/login";
    headers(&portal, handing_on, response.headers_mut());
    response
}

/// Whether a script asks, for JSON rather than a page.
pub fn wants_json(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"application/json"))
}

async fn error_page(response: Response, mut l: Layout) -> Response {
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 64 << 10).await.unwrap_or_default();
    let details: Option<ProblemDetails> = serde_json::from_slice(&bytes).ok();
    let status = parts.status;
    let kind = match status.as_u16() {
        403 | 404 | 405 | 413 | 429 | 503 => status.as_str().to_owned(),
        500.. => "500".into(),
        _ => "400".into(),
    };
    // A page that is not there is no place to come back to in another language.
    if status == StatusCode::METHOD_NOT_ALLOWED || status == StatusCode::NOT_FOUND {
        l.here = "/".into();
    }
    let code = details.map_or_else(|| own_code(status).to_owned(), |details| details.code);
    let what = l.texts.get(&format!("error.{code}")).unwrap_or_else(|| l.texts.t(&format!("fail.{kind}.what")));
    let request_id = parts.headers.get(contracts::REQUEST_ID).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    let page = ErrorPage {
        title: l.texts.t(&format!("fail.{kind}.title")).into(),
        todo: l.texts.t(&format!("fail.{kind}.todo")).into(),
        what: what.into(),
        code,
        request_id,
        l,
    };
    let mut dressed = page_or_text(page, status);
    for (name, value) in &parts.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            dressed.headers_mut().append(name, value.clone());
        }
    }
    dressed
}

fn page_or_text(template: ErrorPage, status: StatusCode) -> Response {
    page(status, template).unwrap_or_else(|_| (status, Body::from("error")).into_response())
}

fn own_code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        404 => "not_found",
        405 => "method_not_allowed",
        413 => "payload_too_large",
        500.. => "internal",
        _ => "invalid_request",
    }
}

fn headers(portal: &Portal, handing_on: bool, headers: &mut HeaderMap) {
    // Browsers check form-action along redirects too, and signing in may end in a workspace.
    let workspaces = if handing_on { format!(" {}", portal.public().workspace_origin("*")) } else { String::new() };
    let policy = format!(
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'{workspaces}; base-uri 'none'; frame-ancestors 'none'"
    );
    let mut set = |name: HeaderName, value: &str| {
        // What a handler has set for its own response goes before.
        if let (false, Ok(value)) = (headers.contains_key(&name), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_SECURITY_POLICY, &policy);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "same-origin");
    set(header::CACHE_CONTROL, "no-store");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    set(HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()");
    if portal.public().portal_secure() {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
}
