//! An instance's row, and the words its columns are written in.

use contracts::{
    AccountId, InstanceId, PlanName, Slug,
    deploy::{Deletion, Desired, Event, Instance, InstanceError, Phase, Sleep},
    routes::{Route, RouteState, SignIn},
};
use serde::{Deserialize, Serialize, de::value::StrDeserializer};

use super::Error;
use crate::engine::NotRelease;

/// An instance, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: InstanceId,
    /// Counts instances from 1.
    pub number: i64,
    /// The user and group id of its files and processes, where it has ones of its own. Never changes, never given twice.
    pub uid: u32,
    /// Its name.
    pub slug: Slug,
    /// Its owner.
    pub account_id: AccountId,
    /// What it is to run.
    pub plan: PlanName,
    /// What is wanted.
    pub desired: Desired,
    /// What was wanted before it was deleted, to which it comes back.
    pub before_deletion: Option<Desired>,
    /// When it was deleted, and until when its data is kept. One that is discarded has none.
    pub deletion: Option<Deletion>,
    /// How deep it is to sleep meanwhile, where it is wanted running.
    pub sleep: Sleep,
    /// By what its owner's programs are known while it does not run.
    pub wake_keys: Vec<String>,
    /// Counts every wish.
    pub generation: i64,
    /// The wish that is fulfilled.
    pub observed_generation: i64,
    /// Counts wishes to be restarted.
    pub restart_generation: i64,
    /// The newest of them after which it was down.
    pub applied_restart_generation: i64,
    /// Counts configurations.
    pub config_generation: i64,
    /// The configuration in force.
    pub applied_config_generation: i64,
    /// The newest configuration that did not hold.
    pub refused_config_generation: i64,
    /// Counts archives that were put in the place of its data.
    pub archive_generation: i64,
    /// The newest of them that is in force, or was taken back.
    pub applied_archive_generation: i64,
    /// The newest of them with which it did not come up.
    pub refused_archive_generation: i64,
    /// What is.
    pub phase: Phase,
    /// What the router was told last; `None` before the first time.
    pub route: Option<RouteState>,
    /// Whether it has its owner and its own identity.
    pub registered: bool,
    /// Which run of its container was found healthy.
    pub ready_run: Option<String>,
    /// When that was.
    pub ready_at_ms: Option<i64>,
    /// Attempts that failed since the last wish or quiet time.
    pub attempts: i64,
    /// Not before this is it tried again.
    pub next_attempt_at_ms: i64,
    /// Why it is failed, or why the last change did not hold.
    pub error: Option<InstanceError>,
    /// Whether its data is over its limit, as last told.
    pub disk_full: bool,
    /// The release with which it was last found healthy.
    pub release: Option<String>,
    /// The release from which it went back.
    pub refused_release: Option<String>,
    /// When its owner last used it, to about a minute, as far as that is known.
    pub last_used_ms: Option<i64>,
    /// Counts writes of this row.
    pub version: i64,
    /// The newest event's seq.
    pub last_event: i64,
    /// When it was accepted.
    pub created_at_ms: i64,
    /// When anything of this last changed.
    pub updated_at_ms: i64,
}

impl Row {
    /// Whether nothing is left to be done about its owner: one that knows nothing of Beaver takes none.
    pub fn has_its_owner(&self) -> bool {
        self.registered || !self.plan.is_workspace()
    }

    /// The configuration that it should run with: the newest that was not refused.
    pub fn config_target(&self) -> i64 {
        if !self.plan.is_workspace() {
            // It reads none. What was given before is for when it is a workspace again.
            return self.applied_config_generation;
        }
        if self.config_generation > self.refused_config_generation {
            self.config_generation
        } else {
            self.applied_config_generation
        }
    }

    /// Which release it is not to run, and which in its place.
    pub fn not_release(&self) -> Option<NotRelease> {
        Some(NotRelease { refused: self.refused_release.clone()?, instead: self.release.clone()? })
    }

    /// Whether a wish to be restarted is open.
    pub fn restart_pending(&self) -> bool {
        self.restart_generation > self.applied_restart_generation
    }

    /// Whether an archive's data is to take the place of its own, or that is to be taken back.
    pub fn archive_pending(&self) -> bool {
        self.archive_generation > self.applied_archive_generation
    }

    /// As its owner and the operator may know it.
    pub fn instance(&self, origin: String) -> Instance {
        Instance {
            id: self.id,
            slug: self.slug.clone(),
            account_id: self.account_id,
            origin,
            plan: self.plan.clone(),
            takes_provider: self.plan.is_workspace(),
            desired: self.desired,
            phase: self.phase,
            error: self.error.clone(),
            waiting: None,
            deletion: self.deletion,
            generation: self.generation,
            observed_generation: self.observed_generation,
            config_generation: self.config_generation,
            applied_config_generation: self.applied_config_generation,
            created_at_ms: self.created_at_ms,
            updated_at_ms: self.updated_at_ms,
        }
    }

    /// As the router must know it; `None` while it need not.
    pub fn route(&self) -> Option<Route> {
        Some(Route {
            slug: self.slug.clone(),
            instance_id: self.id,
            account_id: self.account_id,
            state: self.route?,
            sign_in: if self.plan.is_workspace() { SignIn::Instance } else { SignIn::Edge },
            wake_keys: match self.route? {
                RouteState::Paused | RouteState::Asleep | RouteState::Starting => self.wake_keys.clone(),
                _ => Vec::new(),
            },
        })
    }
}

/// The word that an enum of the contracts has on the wire; columns hold the same.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("an enum without data is written as a string, not {other:?}"),
    }
}

/// The enum that a column's word stands for.
pub(super) fn read<'a, T: Deserialize<'a>>(column: &'static str, word: &'a str) -> Result<T, Error> {
    T::deserialize(StrDeserializer::<serde::de::value::Error>::new(word)).map_err(|_| Error::Corrupt { column })
}

/// The columns as the driver gives them.
#[derive(sqlx::FromRow)]
pub(super) struct Columns {
    id: String,
    number: i64,
    uid: Option<i64>,
    slug: String,
    account_id: String,
    plan: String,
    desired: String,
    before_deletion: String,
    deleted_at_ms: Option<i64>,
    data_until_ms: Option<i64>,
    sleep: String,
    wake_keys: String,
    generation: i64,
    observed_generation: i64,
    restart_generation: i64,
    applied_restart_generation: i64,
    config_generation: i64,
    applied_config_generation: i64,
    refused_config_generation: i64,
    archive_generation: i64,
    applied_archive_generation: i64,
    refused_archive_generation: i64,
    phase: String,
    route: String,
    registered: i64,
    ready_run: Option<String>,
    ready_at_ms: Option<i64>,
    attempts: i64,
    next_attempt_at_ms: i64,
    error_code: Option<String>,
    error_detail: Option<String>,
    error_cause: Option<String>,
    error_log: Option<String>,
    disk_full: i64,
    release: Option<String>,
    refused_release: Option<String>,
    last_used_ms: Option<i64>,
    version: i64,
    last_event: i64,
    created_at_ms: i64,
    updated_at_ms: i64,
}

impl TryFrom<Columns> for Row {
    type Error = Error;

    fn try_from(c: Columns) -> Result<Self, Error> {
        Ok(Self {
            id: c.id.parse().map_err(|_| Error::Corrupt { column: "id" })?,
            number: c.number,
            uid: c.uid.and_then(|uid| u32::try_from(uid).ok()).ok_or(Error::Corrupt { column: "uid" })?,
            slug: Slug::parse(&c.slug).map_err(|_| Error::Corrupt { column: "slug" })?,
            account_id: c.account_id.parse().map_err(|_| Error::Corrupt { column: "account_id" })?,
            plan: c.plan.parse().map_err(|_| Error::Corrupt { column: "plan" })?,
            desired: read("desired", &c.desired)?,
            before_deletion: match c.before_deletion.as_str() {
                "" => None,
                word => Some(read("before_deletion", word)?),
            },
            deletion: match (c.deleted_at_ms, c.data_until_ms) {
                (Some(asked_at_ms), Some(data_until_ms)) => Some(Deletion { asked_at_ms, data_until_ms }),
                _ => None,
            },
            sleep: read("sleep", &c.sleep)?,
            wake_keys: c.wake_keys.split_whitespace().map(str::to_owned).collect(),
            generation: c.generation,
            observed_generation: c.observed_generation,
            restart_generation: c.restart_generation,
            applied_restart_generation: c.applied_restart_generation,
            config_generation: c.config_generation,
            applied_config_generation: c.applied_config_generation,
            refused_config_generation: c.refused_config_generation,
            archive_generation: c.archive_generation,
            applied_archive_generation: c.applied_archive_generation,
            refused_archive_generation: c.refused_archive_generation,
            phase: read("phase", &c.phase)?,
            route: if c.route.is_empty() { None } else { Some(read("route", &c.route)?) },
            registered: c.registered != 0,
            ready_run: c.ready_run,
            ready_at_ms: c.ready_at_ms,
            attempts: c.attempts,
            next_attempt_at_ms: c.next_attempt_at_ms,
            error: c.error_code.map(|code| InstanceError {
                code,
                detail: c.error_detail.unwrap_or_default(),
                cause: c.error_cause,
                log: c.error_log.unwrap_or_default().lines().map(str::to_owned).collect(),
            }),
            disk_full: c.disk_full != 0,
            release: c.release,
            refused_release: c.refused_release,
            last_used_ms: c.last_used_ms,
            version: c.version,
            last_event: c.last_event,
            created_at_ms: c.created_at_ms,
            updated_at_ms: c.updated_at_ms,
        })
    }
}

/// An event's columns as the driver gives them.
#[derive(sqlx::FromRow)]
pub(super) struct EventColumns {
    seq: i64,
    at_ms: i64,
    code: String,
    actor: String,
    detail: Option<String>,
}

impl TryFrom<EventColumns> for Event {
    type Error = Error;

    fn try_from(c: EventColumns) -> Result<Self, Error> {
        Ok(Self { seq: c.seq, at_ms: c.at_ms, code: read("code", &c.code)?, actor: c.actor, detail: c.detail })
    }
}
