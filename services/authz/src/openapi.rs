//! The description of the internal API.

use axum::response::IntoResponse;
use http::header;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

#[derive(OpenApi)]
#[openapi(
    info(title = "authz", description = "Accounts, sessions and instance identity, for Beaver's other services. OAuth 2 endpoints are described by /.well-known/oauth-authorization-server (RFC 8414)."),
    paths(
        crate::sign_up::register, crate::sign_up::slug, crate::sign_in::login, crate::portal::session,
        crate::portal::logout, crate::portal::retry_delivery, crate::portal::assertion, crate::operator::state, crate::operator::register,
        crate::backends::register, crate::backends::revoke, crate::new_instance::make, crate::oauth::metadata::public,
        crate::own_account::list, crate::own_account::end, crate::own_account::change_password,
        crate::suspension::account, crate::suspension::suspend, crate::suspension::suspended,
    ),
    security(("service_token" = [])),
    modifiers(&ServiceToken),
)]
struct Description;

struct ServiceToken;

impl Modify for ServiceToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("service_token", scheme);
    }
}

/// `GET /openapi.json`.
pub(crate) async fn serve() -> impl IntoResponse {
    // Kept for a minute: it changes with the program alone.
    ([(header::CACHE_CONTROL, "max-age=60")], axum::Json(Description::openapi()))
}
