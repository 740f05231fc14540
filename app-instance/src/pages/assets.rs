//! The files that pages load, all of this origin.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use sign_in::fingerprint;

const STYLE: &str = concat!(
    include_str!("../../../templates/shared/base.css"),
    include_str!("../../../templates/instance/workspace.css")
);
const SCRIPT: &str = include_str!("../../../templates/instance/chat.js");
const ICON: &str = include_str!("../../../templates/portal/icon.svg");

pub async fn style(headers: HeaderMap) -> Response {
    file(&headers, STYLE, "text/css; charset=utf-8")
}

pub async fn script(headers: HeaderMap) -> Response {
    file(&headers, SCRIPT, "text/javascript; charset=utf-8")
}

pub async fn icon(headers: HeaderMap) -> Response {
    file(&headers, ICON, "image/svg+xml")
}

/// The file, or 304 when the browser has it: an upgrade is seen at once, and nothing is sent twice.
fn file(headers: &HeaderMap, text: &'static str, kind: &'static str) -> Response {
    let tag = format!("\"{}\"", fingerprint(text));
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|shown| shown.as_bytes() == tag.as_bytes());
    let caching = [(header::CACHE_CONTROL, "no-cache".to_owned()), (header::ETAG, tag)];
    if known {
        (StatusCode::NOT_MODIFIED, caching).into_response()
    } else {
        (caching, [(header::CONTENT_TYPE, kind)], text).into_response()
    }
}
