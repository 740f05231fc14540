//! What instances do through their doors out, as the router tells it.
//!
//! On the router's internal listener, with its service token:
//!
//! | call | answer |
//! | --- | --- |
//! | `GET /egress` | 200 [`EgressUsageList`]: for operators |
//! | `GET /egress/{instance_id}` | 200 [`EgressUsage`]; 404 `not_found` for an instance whose doors are not open |
//!
//! An instance's numbers begin with its doors, and again with every start of the router, and are gone with the instance. The
//! same are counters of the metrics (`router_egress_bytes_total`, `router_egress_refused_total`, by `instance`), for
//! whoever keeps them for longer.
//!
//! To deploy-control the router says what was refused, as events of the instance:
//! `POST /api/egress-refusals` with [`EgressReport`], answered 204; instances that are not known are passed over.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::InstanceId;

/// Where deploy-control hears of refusals.
pub const REFUSALS_PATH: &str = "/api/egress-refusals";

/// The most refusals in one [`EgressReport`].
pub const MAX_REPORTED: usize = 200;

/// The longest target, in bytes: a name has 253 at most, a port five.
pub const MAX_TARGET: usize = 260;

/// The path on the router's internal listener that tells an instance's [`EgressUsage`].
pub fn usage_path(id: InstanceId) -> String {
    format!("/egress/{id}")
}

/// What one instance has used, and what it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressUsage {
    /// The instance.
    pub instance_id: InstanceId,
    /// When counting began.
    pub since_ms: i64,
    /// What it sent, in bytes.
    pub bytes_out: u64,
    /// What it received, in bytes.
    pub bytes_in: u64,
    /// Connections to the outside that were made.
    pub connections: u64,
    /// Those that are open.
    pub open_connections: u64,
    /// How many may be open at once.
    pub connection_limit: u64,
    /// Bytes a second in each direction; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_limit: Option<u64>,
    /// How often it was refused.
    pub refused: u64,
    /// The latest refusals, the newest first, each target and reason once.
    pub refusals: Vec<EgressRefusal>,
}

/// Every instance's numbers, in the order of the ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressUsageList {
    /// Of each instance whose doors are open.
    pub instances: Vec<EgressUsage>,
}

/// Something that an instance was refused, or could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressRefusal {
    /// What it asked for: `host:port`, as it wrote it.
    pub target: String,
    /// The code of the problem that the instance was answered with.
    pub code: String,
    /// Of `egress_refused`: `denied` and `not_listed` by the operator's rules, `address` by the kind of address it leads
    /// to, `number` by the way it is written. Of the others, the code again.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// When last.
    pub at_ms: i64,
}

/// Refusals of the rules since the last report, for the instances' event logs. The router says each target and reason
/// once an hour, and so many an hour of each instance, so that nobody fills a log at will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressReport {
    /// At most [`MAX_REPORTED`].
    pub refusals: Vec<ReportedRefusal>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportedRefusal {
    /// Who asked.
    pub instance_id: InstanceId,
    /// For what: `host:port`.
    pub target: String,
    /// Why not: [`EgressRefusal::reason`] of an `egress_refused`.
    pub reason: RefusalReason,
}

/// Why the rules do not let something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The operator blocks it.
    Denied,
    /// The operator lets out only what is listed.
    NotListed,
    /// It leads to an address of a kind that is not let out: private, loopback, metadata, the host's own.
    Address,
    /// It is written as a number that some programs take for an address.
    Number,
}

impl RefusalReason {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::NotListed => "not_listed",
            Self::Address => "address",
            Self::Number => "number",
        }
    }
}
