//! The OAuth 2 issuer: what instances and token verifiers ask, without a service token.

mod error;
pub(crate) mod metadata;
mod register;
mod token;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};

use crate::app::App;

/// The largest body, in bytes: a client assertion may have 8 KB.
const BODY_LIMIT: usize = 32 * 1024;
/// Every scope there is. Instances hold it: the right to use the MCP servers that the operator offers them.
const SCOPE: &str = "mcp";

/// `/oauth/*` and `/.well-known/*`.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/oauth/register", post(register::register))
        .route("/oauth/token", post(token::token))
        .route("/.well-known/jwks.json", get(metadata::jwks))
        .route("/.well-known/oauth-authorization-server", get(metadata::server))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
}
