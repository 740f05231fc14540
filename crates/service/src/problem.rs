//! Refusals as RFC 9457 problem details. What the client sees is the code and a sentence; the cause goes to the log.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use contracts::{ProblemDetails, problem::MEDIA_TYPE};
use http::{HeaderValue, StatusCode, header};

use crate::telemetry;

/// A refusal on its way to a client, with the cause that stays here.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    detail: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    retry_after_s: Option<u64>,
    cause: Option<anyhow::Error>,
}

impl Problem {
    /// A refusal with a stable code and a sentence that says what is wrong and what to do.
    pub fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code: code.into(), detail: detail.into(), field: None, retry_after_s: None, cause: None }
    }

    /// 400 `invalid_request`.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// 404 with this code.
    pub fn not_found(code: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, "There is nothing here, or it is not yours.")
    }

    /// 422 for one field.
    pub fn field(
        field: impl Into<Cow<'static, str>>,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field.into()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail) }
    }

    /// 500 `internal`, with the cause for the log.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong on this side. Try again; if it stays, tell the operator the request id.",
        )
        .cause(cause)
    }

    /// 503 `unavailable` with Retry-After, with the cause for the log.
    pub fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "This cannot be done at the moment. Try again shortly.",
        )
        .retry_after(5)
        .cause(cause)
    }

    /// The same with another status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same, naming the field that is wrong.
    #[must_use]
    pub fn on_field(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same, with a Retry-After in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The same, with a cause for the log.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        &self.code
    }
}

impl From<ProblemDetails> for Problem {
    /// Passes another service's refusal on as it is.
    fn from(details: ProblemDetails) -> Self {
        Self {
            status: StatusCode::from_u16(details.status).unwrap_or(StatusCode::BAD_GATEWAY),
            code: details.code.into(),
            detail: details.detail.into(),
            field: details.field.map(Into::into),
            retry_after_s: None,
            cause: None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            // `{:#}` keeps the whole chain on one line.
            if self.status.is_server_error() {
                tracing::error!(code = %self.code, status = self.status.as_u16(), cause = format!("{cause:#}"), "refused");
            } else {
                tracing::info!(code = %self.code, status = self.status.as_u16(), cause = format!("{cause:#}"), "refused");
            }
        }
        let body = ProblemDetails {
            kind: "about:blank".into(),
            title: self.status.canonical_reason().unwrap_or("Error").into(),
            status: self.status.as_u16(),
            code: self.code.into_owned(),
            detail: self.detail.into_owned(),
            field: self.field.map(Cow::into_owned),
            request_id: telemetry::request_id(),
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_cause_stays_here() {
        let response = telemetry::with_request_id("request-1".into(), async {
            Problem::internal(anyhow::anyhow!("secret path /x")).into_response()
        })
        .await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let details: ProblemDetails = serde_json::from_slice(&body).unwrap();
        assert_eq!((details.code.as_str(), details.request_id.as_deref()), ("internal", Some("request-1")));
        assert!(!String::from_utf8_lossy(&body).contains("/x"));
    }
}
