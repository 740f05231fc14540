//! Our own refusals, in the shape of OpenAI's errors.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::upstream::FailureKind;

/// Marks an answer as one of our own refusals: its code.
#[derive(Debug, Clone, Copy)]
pub struct Refused(pub &'static str);

/// A refusal of the gateway: `{"error":{message,type,param,code}}`.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
    message: &'static str,
}

impl Refusal {
    const fn new(status: StatusCode, kind: &'static str, code: &'static str, message: &'static str) -> Self {
        Self { status, kind, code, param: None, message }
    }

    /// 401.
    pub fn bad_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "invalid_api_key",
            "The API key is missing, wrong or revoked. Make one on this workspace's settings page and send it as \
             Authorization: Bearer sk-… or x-api-key.",
        )
    }

    /// 404.
    pub fn no_such_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "unknown_url",
            "There is no such endpoint here. There are /v1/models and /v1/chat/completions.",
        )
    }

    /// 405.
    pub fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "method_not_allowed",
            "This endpoint does not take this method.",
        )
    }

    /// 400: the body is not JSON.
    pub fn not_json() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "invalid_json",
            "The body is not a JSON object with a model of type string.",
        )
    }

    /// 400: no model.
    pub fn model_missing() -> Self {
        let refusal = Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "missing_required_parameter",
            "The parameter model is missing.",
        );
        Self { param: Some("model"), ..refusal }
    }

    /// 400: the body broke off.
    pub fn unreadable() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_body", "The body could not be read.")
    }

    /// 413.
    pub fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "request_too_large",
            "The body is larger than 24 MB.",
        )
    }

    /// 503: there is no provider.
    pub fn not_configured() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "backend_error",
            "provider_not_configured",
            "This workspace has no AI provider yet. Set provider, model and key on its settings page.",
        )
    }

    /// 502: the provider gave no answer.
    pub fn upstream(kind: FailureKind) -> Self {
        let (code, message) = match kind {
            FailureKind::Refused => (
                "egress_refused",
                "The provider's address is not allowed from this server. Ask the operator, or change the base URL.",
            ),
            FailureKind::Unreachable => {
                ("upstream_unreachable", "The provider cannot be reached from this server. Check its base URL.")
            }
            FailureKind::Timeout => ("upstream_timeout", "The provider did not answer in time."),
            FailureKind::Cut => ("upstream_cut", "The provider's connection broke before its answer was complete."),
        };
        Self::new(StatusCode::BAD_GATEWAY, "backend_error", code, message)
    }

    /// The JSON of the refusal.
    pub fn json(&self) -> String {
        json!({
            "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code }
        })
        .to_string()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.json()).into_response();
        response.extensions_mut().insert(Refused(self.code));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code == "provider_not_configured" {
            // Trying again at once changes nothing: somebody has to fill in a form.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}
