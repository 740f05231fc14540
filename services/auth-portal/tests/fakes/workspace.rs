//! A fake workspace behind a fake router-internal: takes assertions, answers codes and tests.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use contracts::{
    InstanceId,
    egress::EgressUsage,
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
    /// What the router counts of the one instance there is.
    pub usage: Option<EgressUsage>,
    /// Whose numbers were asked for.
    pub asked: Vec<InstanceId>,
    /// Numbers are asked for and never told.
    pub silent: bool,
    /// What came: instance, path, body.
    pub calls: Vec<(InstanceId, String, Value)>,
}

#[derive(Clone, Default)]
pub struct Workspace {
    pub inner: Shared<Inner>,
}

impl Workspace {
    pub fn router(&self) -> Router {
        Router::new()
            .route("/instances/{id}/{*path}", post(call))
            .route("/egress/{id}", get(usage))
            .with_state(self.clone())
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

async fn usage(State(workspace): State<Workspace>, Path(id): Path<InstanceId>, headers: HeaderMap) -> Response {
    if !shows(&headers, ROUTER_TOKEN) {
        return problem(401, "service_token_required", None);
    }
    let (away, silent, usage) = {
        let mut inner = workspace.inner.lock();
        inner.asked.push(id);
        (inner.away, inner.silent, inner.usage.clone())
    };
    if silent {
        std::future::pending::<()>().await;
    }
    match usage {
        _ if away => problem(503, "unavailable", None),
        Some(usage) if usage.instance_id == id => Json(usage).into_response(),
        _ => problem(404, "not_found", None),
    }
}
