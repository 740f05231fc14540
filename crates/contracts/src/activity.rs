//! Who uses instances, as the router sees it: what deploy-control asks before it lets one sleep.
//!
//! `GET /activity` on the router's internal listener answers [`ActivityList`], `GET /activity/{id}` one [`Activity`] or 404.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{InstanceId, routes::RouteState};

/// Where all of it is told.
pub const PATH: &str = "/activity";

/// Where it is told of one instance.
pub fn activity_path(id: InstanceId) -> String {
    format!("{PATH}/{id}")
}

/// How an instance is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Activity {
    /// Which.
    pub instance_id: InstanceId,
    /// What the router does with its requests at present. Once it does not say `running`, none that comes from then on is
    /// passed on; those that were before are among `in_flight`.
    pub state: RouteState,
    /// Requests whose answer has not ended, and open WebSockets.
    pub in_flight: u64,
    /// Milliseconds since its owner last used it, in or out, and at most since the router first knew it to run. A stranger's
    /// request is no use of it.
    pub idle_ms: u64,
}

/// Of every instance that the router knows.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ActivityList {
    /// In no order.
    pub instances: Vec<Activity>,
    /// For how many milliseconds the router has been there: what is idle for as long may have been used before.
    #[serde(default)]
    pub up_ms: u64,
}
