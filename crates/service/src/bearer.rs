//! Service tokens: who may call an internal API.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use secrecy::SecretString;

use crate::Problem;

/// The token of an `Authorization: Bearer` header; `None` when there is none or more than one.
pub fn token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Lets only those through who show one of `live` tokens; everybody else gets 401 `service_token_required`.
pub fn require<S: Clone + Send + Sync + 'static>(router: Router<S>, live: Vec<SecretString>) -> Router<S> {
    router.route_layer(middleware::from_fn_with_state(Arc::new(live), check))
}

async fn check(State(live): State<Arc<Vec<SecretString>>>, request: Request, next: Next) -> Response {
    let shown = token(request.headers()).unwrap_or_default();
    // Every value is compared, so that time does not tell which one it is.
    let known = live.iter().fold(false, |known, secret| known | settings::same_secret(secret, shown));
    if known {
        return next.run(request).await;
    }
    let mut response = Problem::new(
        StatusCode::UNAUTHORIZED,
        "service_token_required",
        "Show the service token as Authorization: Bearer.",
    )
    .into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
