//! deploy-control's API: instances, by id and owner. Every call shows the service token (`Authorization: Bearer`).
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /api/instances/reserve` | – | 200 [`Reserved`]: an id for [`RegisterInstance`] |
//! | `POST /api/instances/register` | [`RegisterInstance`] | 202 [`Instance`]; the same again for the same id |
//! | `POST /api/instances/resolve` | [`ResolveInstance`] | 200 [`Instance`] |
//! | `POST /api/instances/configure-provider` | [`ConfigureProvider`] | 202 [`Instance`] |
//! | `POST /api/instances/{id}/stop`, `/start`, `/restart`, `/retry` | [`OnBehalfOf`] | 202 [`Instance`] |
//! | `POST /api/instances/{id}/wake` | [`WakeInstance`] | 202 [`Instance`]; 409 `instance_down` when it does not sleep but is stopped or failed |
//! | `POST /api/instances/{id}/plan` | [`ChangePlan`] | 202 [`Instance`]: for operators |
//! | `POST /api/instances/{id}/delete` | [`DeleteInstance`] | 202 [`Instance`], with its [`Deletion`]; 422 `slug_mismatch` |
//! | `POST /api/instances/{id}/undelete` | [`UndeleteInstance`] | 202 [`Instance`]; 409 `deletion_final` when it is too late |
//! | `POST /api/instances/{id}/discard` | [`OnBehalfOf`] | 202 [`Instance`]; 409 `instance_had_owner` when somebody ever had it |
//! | `GET /api/instances/{id}/export?by=` | – | 200, a tar archive of its data; cut short when it could not be read to its end. 409 `export_needs_stop`, `archive_under_way` |
//! | `POST /api/instances/{id}/restore?by=` | such an archive | 202 [`Instance`]: its data is to be the archive's; 422 `archive_…`, whose detail begins with the entry |
//! | `GET /api/instances?limit=&after=` | – | 200 [`InstanceList`], without those that are gone: for operators |
//! | `GET /api/instances/{id}/events?account_id=&after=&last=` | – | 200 [`EventList`] |
//! | `GET /api/instances/{id}/events/stream?account_id=&after=` | – | SSE: `event: instance`, data [`InstanceUpdate`], id = the last event's `seq` |
//! | `GET /api/releases` | – | 200 [`ReleaseList`]: for operators |
//! | `POST /api/upgrade` | – | 202 [`Upgrade`]: for operators |
//! | `POST /api/egress-refusals` | [`crate::egress::EgressReport`] | 204; from the router |
//! | `GET /api/routes` | – | NDJSON, see [`crate::routes`] |
//!
//! `account_id` is the person the call is made for; another person's instance is 404 `instance_not_found`. `by` is the person
//! likewise, or the operator ([`By`]). What is asked of an instance that is deleted is 409 `instance_deleted`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AccountId, InstanceId, PlanName, Slug, provider::ProviderConfig};

/// An id for an instance, given to one caller only. A workspace that is made ahead may have it, which whoever is taken in under
/// it within ten minutes gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reserved {
    /// The id.
    pub instance_id: InstanceId,
}

/// Asks for an instance. The caller chooses the id, so that a repeated call makes nothing twice.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterInstance {
    /// The instance to be.
    pub instance_id: InstanceId,
    /// Its owner.
    pub account_id: AccountId,
    /// Its name.
    pub slug: Slug,
    /// Its plan, one of the operator's; absent: the one that sign-ups get. Checked by deploy-control, which names the field
    /// when there is no such plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// Gives an instance another plan, whoever owns it. Its data stays.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePlan {
    /// The plan, one of the operator's.
    pub plan: String,
}

/// Asks for the instance of a person by its name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveInstance {
    /// The person.
    pub account_id: AccountId,
    /// The name.
    pub slug: Slug,
}

/// Gives an instance its provider.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigureProvider {
    /// The person.
    pub account_id: AccountId,
    /// The instance.
    pub instance_id: InstanceId,
    /// The provider.
    pub provider: ProviderConfig,
}

/// Whom a change is made for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OnBehalfOf {
    /// The person.
    pub account_id: AccountId,
}

/// Who asks: a person, for an instance of their own, or the operator, for any. On the wire the account's id, or `operator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum By {
    /// Its owner.
    Owner(AccountId),
    /// The operator.
    Operator,
}

impl By {
    /// The person, when it is one.
    pub fn account(self) -> Option<AccountId> {
        match self {
            Self::Owner(account) => Some(account),
            Self::Operator => None,
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(account) => account.fmt(f),
            Self::Operator => f.write_str("operator"),
        }
    }
}

impl From<By> for String {
    fn from(by: By) -> Self {
        by.to_string()
    }
}

impl TryFrom<String> for By {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "operator" => Ok(Self::Operator),
            id => id.parse().map(Self::Owner).map_err(|_| "it is neither an account's id nor operator".into()),
        }
    }
}

/// Stops an instance: for its owner, or over its owner's head.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopInstance {
    /// Its owner.
    pub account_id: AccountId,
    /// Why the operator stops it, where it is not its owner who does: then the operator is told of as who did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_for: Option<String>,
}

/// Deletes an instance: it is down at once, without identity and unknown to visitors; its data is kept for a while.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteInstance {
    /// Who asks.
    #[schema(value_type = String)]
    pub by: By,
    /// Its name, typed by whoever means it.
    pub slug: String,
}

/// Takes a deletion back, while its data is kept.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndeleteInstance {
    /// Who asks.
    #[schema(value_type = String)]
    pub by: By,
}

/// That an instance was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deletion {
    /// When somebody asked for it.
    pub asked_at_ms: i64,
    /// Until when its data is kept, and it can be taken back.
    pub data_until_ms: i64,
}

/// Wakes an instance that sleeps because nobody used it; one that is awake stays so. Never one that somebody stopped, or that
/// could not be brought up.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WakeInstance {
    /// The person; absent when the caller has made sure that it is the owner who came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// What for.
    pub why: WakeReason,
}

/// What an instance is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WakeReason {
    /// Its owner's browser came to it.
    Visit,
    /// A program came with one of its keys.
    Api,
    /// Its owner opens it from the portal.
    Portal,
    /// The other services have something for it that cannot wait: the end of a session.
    Service,
}

impl WakeReason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Visit => "visit",
            Self::Api => "api",
            Self::Portal => "portal",
            Self::Service => "service",
        }
    }
}

/// How deep an instance sleeps that nobody uses. What is wanted of it stays [`Desired::Running`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sleep {
    /// Not at all.
    #[default]
    Awake,
    /// Frozen, its memory kept: it wakes unnoticed.
    Paused,
    /// Down, its data kept: it wakes by a start.
    Stopped,
}

/// What somebody wants an instance to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Up and reachable.
    Running,
    /// Down, with its data kept.
    Stopped,
    /// Gone; its data is kept for a while, see [`Deletion`].
    Deleted,
}

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Accepted; nothing is made yet.
    Accepted,
    /// Its folders and files are being made.
    Preparing,
    /// Its container is being created.
    Creating,
    /// Its container is starting, until it is healthy.
    Starting,
    /// It is healthy and is taking its owner and its identity.
    Registering,
    /// Up and reachable.
    Ready,
    /// Frozen while nobody uses it; the next visit wakes it unnoticed.
    Paused,
    /// Down while nobody uses it; the next visit starts it.
    Asleep,
    /// Being stopped.
    Stopping,
    /// Down because somebody wanted it so.
    Stopped,
    /// It could not be brought up; `error` says why; `/retry` tries again.
    Failed,
    /// The engine cannot be asked at present; what was true last is kept.
    Unknown,
    /// Deleted: down, without identity, unknown to visitors. Its data is kept, and it can be taken back; see [`Deletion`].
    PendingDeletion,
    /// Its data is being removed. Nothing brings it back.
    Deleting,
    /// Gone for good, with its data.
    Deleted,
}

/// An instance, as its owner and the operator may know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub slug: Slug,
    /// Its owner.
    pub account_id: AccountId,
    /// Where a browser finds it: an origin.
    pub origin: String,
    /// Its plan.
    #[serde(default)]
    pub plan: PlanName,
    /// Whether it is one to give a provider to: a program that knows nothing of Beaver takes none.
    #[serde(default = "yes")]
    pub takes_provider: bool,
    /// What is wanted.
    pub desired: Desired,
    /// What is.
    pub phase: Phase,
    /// Why it is failed, or why the last change did not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<InstanceError>,
    /// Where it is in line, while it waits to be brought up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// When it was deleted, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// Counts every wish.
    pub generation: i64,
    /// The wish that is fulfilled.
    pub observed_generation: i64,
    /// Counts every configuration; 0 is the one without a provider.
    pub config_generation: i64,
    /// The configuration that is in force.
    pub applied_config_generation: i64,
    /// When it was accepted.
    pub created_at_ms: i64,
    /// When anything of this last changed.
    pub updated_at_ms: i64,
}

fn yes() -> bool {
    true
}

/// A place in the line of those that are to be brought up. It goes on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waiting {
    /// 1 is next.
    pub position: u32,
    /// What those in front wait for.
    pub waits_for: WaitsFor,
    /// About how many seconds it takes, by what was learned on this host; absent when that cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// What a line waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Others are being brought up just now.
    Turn,
    /// The host is full: until another instance goes down, or there is memory.
    Room,
}

/// Why something did not work: a stable code that pages translate, and an English sentence for whom no translation
/// helps. No path, address or name of anything inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceError {
    /// `engine_unavailable`, `engine_capacity`, `engine_rejected`, `image_missing`, `not_healthy_in_time`,
    /// `crash_loop`, `registration_failed`, `config_not_accepted`, `storage_failed`, `plan_missing`, `plan_needs_images`,
    /// `sockets_blocked`, `disk_exceeded`, `restore_not_accepted`, `internal`.
    pub code: String,
    /// One sentence.
    pub detail: String,
    /// Where something was taken back because the workspace did not come up with it: the code of what was wrong with it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The last lines that its program wrote before it ended, oldest first: few, short, and without anything that looks like a
    /// secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// Instances, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct InstanceList {
    /// The page.
    pub instances: Vec<Instance>,
    /// `after` of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<InstanceId>,
}

/// Which releases of their programs instances run. One that nobody runs and nobody went back from is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseList {
    /// The most widespread first.
    pub releases: Vec<Release>,
}

/// What an image's name led to when instances were made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// The plan of those instances.
    pub plan: PlanName,
    /// The image's id.
    pub release: String,
    /// How many instances were last found healthy with it.
    pub instances: u32,
    /// How many did not come up with it, and went back to the one before.
    pub went_back: u32,
}

/// What came of asking for the newest release again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Upgrade {
    /// How many instances had gone back from a release and may have it again now.
    pub again: u32,
}

/// Something that happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts an instance's events from 1, without gaps.
    pub seq: i64,
    /// When.
    pub at_ms: i64,
    /// What.
    pub code: EventCode,
    /// Who: a person's account id, `operator`, or `beaver` itself.
    pub actor: String,
    /// More of it, where there is any: an [`InstanceError::code`], a generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What can happen to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventCode {
    /// The sign-up was taken.
    Accepted,
    /// Others are brought up first; it waits in line, and goes on by itself.
    Queued,
    /// Folders and the one-time token are there.
    Prepared,
    /// The container is there.
    Created,
    /// The container runs.
    Started,
    /// The instance answers.
    Healthy,
    /// It has its owner and its own identity.
    Registered,
    /// It can be reached at its address.
    Ready,
    /// Somebody wants it stopped.
    StopRequested,
    /// It is stopped.
    Stopped,
    /// Somebody wants it running.
    StartRequested,
    /// Somebody wants it restarted.
    RestartRequested,
    /// Somebody gave it another provider.
    ConfigRequested,
    /// The new provider is in force.
    ConfigApplied,
    /// The new provider did not hold; the one before is back.
    ConfigRolledBack,
    /// Its container was lost or came down by itself, and is made or started again.
    Recovered,
    /// An attempt failed; another follows.
    AttemptFailed,
    /// It is failed; no attempt follows by itself.
    Failed,
    /// Somebody wants another attempt.
    RetryRequested,
    /// The operator gave it another plan; `detail` is its name.
    PlanRequested,
    /// Its container is made anew, for something that is not its owner's; `detail` is why: `release` and, after a space, the
    /// release; `settings`, for other limits or other settings of the operator's; or `broken`.
    RenewalBegun,
    /// It runs another release of its program now; `detail` is the release.
    Upgraded,
    /// It did not come up with a new release, and went back to the one before; `detail` is the new one.
    ReleaseRolledBack,
    /// The operator wants it to have the newest release, also where it went back from that.
    UpgradeRequested,
    /// It is taken back, with its folders, before anybody had it.
    DiscardRequested,
    /// Somebody deleted it; `detail` is until when its data is kept, in Unix milliseconds.
    DeleteRequested,
    /// Somebody took the deletion back.
    UndeleteRequested,
    /// The time is over: its data is removed, for good.
    Deleted,
    /// Somebody downloads its data.
    Exported,
    /// Somebody put data from an archive in the place of its own.
    RestoreRequested,
    /// It runs with the data from the archive.
    Restored,
    /// It did not come up with the data from the archive; its own is back.
    RestoreRolledBack,
    /// It asked for something outside that the rules do not let out; `detail` is the target and, after a space, the
    /// [`crate::egress::RefusalReason`].
    EgressRefused,
    /// The engine cannot be asked.
    EngineLost,
    /// The engine can be asked again.
    EngineBack,
    /// Its data takes more disk than it may; it writes nothing more.
    DiskFull,
    /// There is room again.
    DiskFreed,
    /// Nobody uses it, so it is to sleep; `detail` says how deep, and for how long nobody has.
    SleepRequested,
    /// It is frozen.
    Paused,
    /// It is down until somebody uses it.
    Asleep,
    /// Somebody wants to use it; `detail` is the [`WakeReason`]. By `beaver`: it was not to sleep after all.
    WakeRequested,
    /// It goes on from where it was frozen.
    Woken,
}

/// The name, in `/readyz`, of the need that sockets are reached across the border of a container. What it says of a border
/// that lets none through begins with [`BLOCKED`].
pub const SOCKETS_NEED: &str = "sockets";
/// See [`SOCKETS_NEED`].
pub const BLOCKED: &str = "blocked: ";

/// How many events one answer has at most.
pub const EVENT_PAGE: i64 = 200;

/// Events, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Those with a `seq` over `after` (0 when it is not given): the oldest [`EVENT_PAGE`] of them, or with `last`, from 1
    /// to [`EVENT_PAGE`], so many of the newest.
    pub events: Vec<Event>,
}

/// One message of an instance's stream: the instance as it is, and what is new since the message before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceUpdate {
    /// The instance.
    pub instance: Instance,
    /// The events since the last message; all since `after` in the first one.
    pub events: Vec<Event>,
}
