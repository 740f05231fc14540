//! The versioned route feed: deploy-control tells the router which slug leads to which instance, and in what state.
//!
//! `GET /api/routes` answers `application/x-ndjson`: one [`RouteMessage`] a line, for as long as the connection lasts.
//! The first is always a [`RouteMessage::Snapshot`], which replaces everything known; changes follow in the order of
//! their versions, without gaps; a heartbeat comes at least every 15 s. A reader that sees a gap, or another epoch,
//! connects again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AccountId, InstanceId, Slug};

/// Where the feed is.
pub const PATH: &str = "/api/routes";

/// One line of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteMessage {
    /// Everything there is.
    Snapshot(RouteSnapshot),
    /// One route is new or has changed.
    Change {
        /// The feed's version after this change: one more than before.
        version: u64,
        /// The route as it is now.
        route: Route,
    },
    /// Whether the engine can be asked. While it cannot, nothing is known of instances: routes stay as they are, and one that
    /// does not answer waits for its host. Until it is said, it can.
    Engine {
        /// Whether it is out of reach.
        away: bool,
    },
    /// Nothing has changed.
    Heartbeat {
        /// The version the reader must be at.
        version: u64,
    },
}

/// Every route, as of one version. Also the form of the router's snapshot on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteSnapshot {
    /// Which run of deploy-control counts the versions.
    pub epoch: String,
    /// The version.
    pub version: u64,
    /// The routes, deleted ones left out.
    pub routes: Vec<Route>,
}

/// One instance, as the router must know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// The name before the base domain.
    pub slug: Slug,
    /// The instance; its sockets are in `run/<id>/`.
    pub instance_id: InstanceId,
    /// Whose it is.
    pub account_id: AccountId,
    /// What it can do at present.
    pub state: RouteState,
    /// Who lets people in.
    #[serde(default)]
    pub sign_in: SignIn,
    /// Until it runs again: the fingerprints of the API keys that it knew as it fell asleep. A program that shows one of them
    /// comes from its owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wake_keys: Vec<String>,
}

/// Who lets people into an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignIn {
    /// The instance itself: it knows its owner and takes the portal's hand-off.
    #[default]
    Instance,
    /// The router's edge, for an image that knows nothing of Beaver: nothing reaches it without its owner's session, and every
    /// request that does carries [`crate::ACCOUNT`], [`crate::SLUG`] and [`crate::USER`], which nobody else can set.
    Edge,
}

/// What a router does with a request for an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// Being made or started: a page that goes on by itself. Its doors out are open already.
    Starting,
    /// Pass it on.
    Running,
    /// Frozen while nobody uses it: wake it for its owner, who notices nothing.
    Paused,
    /// Down while nobody uses it: wake it for its owner, whose browser gets a page that goes on by itself.
    Asleep,
    /// Its owner stopped it.
    Stopped,
    /// It could not be brought up.
    Failed,
    /// Gone for good: forget it and close its doors.
    Deleted,
}
