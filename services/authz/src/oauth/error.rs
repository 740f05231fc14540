//! Refusals as OAuth has them: RFC 6749, section 5.2, and RFC 7591, section 3.2.2.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

/// A refusal of the issuer. Its description says what is wrong with the request and nothing of what is kept here.
#[derive(Debug)]
pub(crate) struct OauthError {
    status: StatusCode,
    error: &'static str,
    description: String,
    /// For `WWW-Authenticate`, where a bearer token was to be shown.
    challenge: Option<&'static str>,
    cause: Option<anyhow::Error>,
}

impl OauthError {
    /// 400 with one of the registered error codes.
    pub fn bad(error: &'static str, description: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, description: description.into(), challenge: None, cause: None }
    }

    /// 401 `invalid_client`: the client could not be authenticated. One text for every reason; the reason is for the log.
    pub fn invalid_client(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            cause: Some(cause.into()),
            ..Self::bad("invalid_client", "the client assertion is not valid")
        }
    }

    /// 401 for a missing or unusable initial access token (RFC 6750, section 3).
    pub fn bearer(shown: bool) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            challenge: Some(if shown { r#"Bearer error="invalid_token""# } else { "Bearer" }),
            ..Self::bad("invalid_token", "an initial access token that is neither used nor over is needed")
        }
    }

    /// 429: authenticated, but too often.
    pub fn too_many() -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..Self::bad("temporarily_unavailable", "too many tokens in a minute; keep a token for as long as it holds")
        }
    }

    /// 500 with the cause for the log.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            cause: Some(cause.into()),
            ..Self::bad("server_error", "something went wrong on this side")
        }
    }
}

impl From<sqlx::Error> for OauthError {
    fn from(error: sqlx::Error) -> Self {
        if store::is_unavailable(&error) {
            return Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                error: "temporarily_unavailable",
                description: "this cannot be done at the moment; try again shortly".into(),
                ..Self::internal(error)
            };
        }
        Self::internal(error)
    }
}

impl IntoResponse for OauthError {
    fn into_response(self) -> Response {
        let (status, error) = (self.status.as_u16(), self.error);
        match &self.cause {
            Some(cause) if self.status.is_server_error() => {
                tracing::error!(status, error, cause = format!("{cause:#}"), "refused");
            }
            Some(cause) => tracing::info!(status, error, cause = format!("{cause:#}"), "refused"),
            None => tracing::info!(status, error, description = self.description, "refused"),
        }
        let body = json!({ "error": self.error, "error_description": self.description });
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"))),
            StatusCode::TOO_MANY_REQUESTS => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("60"))),
            _ => {}
        }
        response
    }
}
