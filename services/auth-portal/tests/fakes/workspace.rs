//! A fake workspace behind a fake router-internal: takes assertions, answers codes and tests.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::post,
};
use contracts::{
    InstanceId,
    instance::HandOffCode,
    provider::{ProviderTest, TestOutcome},
};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::{ROUTER_TOKEN, Shared, problem, shows};

#[derive(Default)]
pub struct Inner {
    /// Not connectable.
    pub away: bool,
    /// What a test finds.
    pub finds: Option<ProviderTest>,
    /// What came: instance, path, body.
    pub calls: Vec<(InstanceId, String, Value)>,
}

#[derive(Clone, Default)]
pub struct Workspace {
    pub inner: Shared<Inner>,
}

impl Workspace {
    pub fn router(&self) -> Router {
        Router::new().route("/instances/{id}/{*path}", post(call)).with_state(self.clone())
    }

    pub fn finds(&self, outcome: TestOutcome, said: Option<&str>) {
        let finding = ProviderTest { outcome, status: None, provider_said: said.map(Into::into) };
        self.inner.lock().finds = Some(finding);
    }
}

async fn call(
    State(workspace): State<Workspace>,
    Path((id, path)): Path<(InstanceId, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !shows(&headers, ROUTER_TOKEN) {
        return problem(401, "service_token_required", None);
    }
    let mut inner = workspace.inner.lock();
    if inner.away {
        return problem(503, "instance_unreachable", None);
    }
    inner.calls.push((id, path.clone(), serde_json::from_slice(&body).unwrap()));
    match path.as_str() {
        "api/auth/login" => Json(HandOffCode { code: "one-time-code".into() }).into_response(),
        "api/auth/logout" => StatusCode::NO_CONTENT.into_response(),
        "api/provider/test" => Json(inner.finds.clone().unwrap()).into_response(),
        _ => problem(404, "not_found", None),
    }
}
