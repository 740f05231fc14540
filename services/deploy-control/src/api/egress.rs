//! What the router tells of instances: events that no work follows from.

use std::collections::HashMap;

use axum::extract::State;
use contracts::{
    InstanceId, ProblemDetails,
    deploy::EventCode,
    egress::{EgressReport, MAX_REPORTED, MAX_TARGET},
};
use http::StatusCode;
use service::{Json, Problem};

use super::Api;
use crate::registry::{self, NewEvent};

/// Takes refusals into the instances' event logs.
#[utoipa::path(post, path = "/api/egress-refusals", request_body = EgressReport, responses(
    (status = 204), (status = 400, body = ProblemDetails), (status = 503, body = ProblemDetails)))]
pub(super) async fn refusals(State(api): State<Api>, Json(body): Json<EgressReport>) -> Result<StatusCode, Problem> {
    let fit = |target: &str| target.len() <= MAX_TARGET && target.bytes().all(|b| b.is_ascii_graphic());
    if body.refusals.len() > MAX_REPORTED || !body.refusals.iter().all(|refusal| fit(&refusal.target)) {
        return Err(Problem::bad_request("Too many refusals, or a target that is none."));
    }
    let mut events: HashMap<InstanceId, Vec<NewEvent>> = HashMap::new();
    for refusal in body.refusals {
        let detail = format!("{} {}", refusal.target, refusal.reason.as_str());
        let event = NewEvent::of(EventCode::EgressRefused).detail(detail);
        events.entry(refusal.instance_id).or_default().push(event);
    }
    for (id, events) in events {
        match api.registry.tell(id, events).await {
            Ok(row) => api.hub.publish(&row),
            // Gone in between, or never here.
            Err(registry::Error::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
