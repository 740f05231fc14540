//! The public issuer's documents, as authz gives them: the same keys as inside, under the public name.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, header};
use service::Problem;

use crate::{Portal, session::away};

/// `GET /.well-known/jwks.json` (RFC 7517).
pub async fn jwks(State(portal): State<Portal>) -> Result<Response, Problem> {
    pass(&portal, "/.well-known/jwks.json").await
}

/// `GET /.well-known/oauth-authorization-server` (RFC 8414).
pub async fn metadata(State(portal): State<Portal>) -> Result<Response, Problem> {
    pass(&portal, "/portal/issuer").await
}

async fn pass(portal: &Portal, path: &str) -> Result<Response, Problem> {
    let authz = portal.authz();
    let request = authz.request(Method::GET, path).timeout(std::time::Duration::from_secs(10));
    let answer = authz.send(request).await.map_err(away)?;
    let cache = answer.headers().get(header::CACHE_CONTROL).cloned();
    let body = answer.bytes().await.map_err(|error| Problem::unavailable(error.without_url()))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, cache.unwrap_or(HeaderValue::from_static("public, max-age=300"))),
        // Public keys are for programs of any origin.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ];
    Ok((headers, body).into_response())
}
