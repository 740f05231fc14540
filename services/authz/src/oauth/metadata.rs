//! What everybody may know of the issuer: its keys (RFC 7517) and its endpoints (RFC 8414).

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use contracts::authz::PublicIssuer;
use http::header;
use serde_json::json;

use super::SCOPE;
use crate::app::App;

/// How long verifiers may keep either. Keys are published a day before they are used, so this is never too long.
const MAX_AGE: (header::HeaderName, &str) = (header::CACHE_CONTROL, "public, max-age=300");

/// The public keys of the issuer.
pub(super) async fn jwks(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([MAX_AGE], axum::Json(app.keys.published()))
}

/// The issuer's metadata, for instances.
pub(super) async fn server(State(app): State<Arc<App>>) -> impl IntoResponse {
    let issuer = &app.config.issuer;
    let metadata = json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth/token"),
        "registration_endpoint": format!("{issuer}/oauth/register"),
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        // Required by RFC 8414; without an authorization endpoint there is none.
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["EdDSA"],
        "scopes_supported": [SCOPE],
    });
    ([MAX_AGE], axum::Json(metadata))
}

/// The metadata under the issuer's public name, for the portal to serve. They tell whoever verifies tokens where the keys are.
/// There is no endpoint beside: tokens are given to instances alone, through their identity sockets.
#[utoipa::path(get, path = "/portal/issuer", tag = "portal", responses((status = 200, body = PublicIssuer)))]
pub(crate) async fn public(State(app): State<Arc<App>>) -> impl IntoResponse {
    let issuer = app.config.public_issuer.clone();
    let metadata = PublicIssuer {
        jwks_uri: format!("{issuer}/.well-known/jwks.json"),
        issuer,
        response_types_supported: vec![],
        grant_types_supported: vec![],
        scopes_supported: vec![SCOPE.into()],
    };
    ([MAX_AGE], axum::Json(metadata))
}
