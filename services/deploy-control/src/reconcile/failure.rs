//! Why a step did not succeed, and what that means for the instance.

use contracts::deploy::InstanceError;
use service::CallError;

use crate::{
    disk,
    engine::{EngineError, ErrorKind},
    folders,
    passage::Blocked,
    plans::NoPlan,
    registry,
};

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the engine")]
    Engine(#[source] EngineError),
    #[error("the instance's folders")]
    Folders(#[from] folders::Error),
    /// A service that is needed is away; not this instance's fault.
    #[error("a service is away")]
    Away(#[source] CallError),
    /// The router does not follow the routes, so nobody would find it; not this instance's fault.
    #[error("no router follows the routes")]
    Unrouted,
    /// authz or the instance does not take the registration.
    #[error("registration")]
    Refused(#[source] CallError),
    #[error("it was not healthy in time")]
    NotInTime,
    #[error("it ended by itself while starting")]
    Ended,
    #[error("it runs with configuration {runs}, not {wanted}")]
    OldConfig { runs: i64, wanted: i64 },
    #[error("the registry")]
    Registry(#[from] registry::Error),
    #[error("the operator's plan for it")]
    Plan(#[from] NoPlan),
    /// Nothing that is started could be reached; not this instance's fault.
    #[error("sockets do not pass the border of a container")]
    Blocked(#[from] Blocked),
    #[error("its data takes far more disk than it may")]
    Disk,
    /// Somebody uses it, so it does not sleep.
    #[error("it is in use")]
    InUse,
    #[error("its steps did not come to an end")]
    Endless,
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        error.count();
        Self::Engine(error)
    }
}

impl Failure {
    /// A failure of a call. Away when nobody answered, or somebody who says that he cannot at the moment; refused when the
    /// answer would be the same the next time.
    pub(super) fn of_call(error: CallError) -> Self {
        let passes = match &error {
            CallError::Unreachable { .. } => true,
            // About our token: the operator must mend that, and nothing is wrong with this instance.
            CallError::Refused { problem, .. } if problem.code == "service_token_required" => true,
            CallError::Refused { problem, .. } => matches!(problem.status, 429 | 502..=504),
            CallError::Unexpected { status, .. } => *status != 500,
        };
        if passes { Self::Away(error) } else { Self::Refused(error) }
    }

    /// Whether it says that the instance does not come up as it is now.
    pub(super) fn is_unhealthy(&self) -> bool {
        matches!(
            self,
            Self::NotInTime
                | Self::Ended
                | Self::OldConfig { .. }
                | Self::Folders(folders::Error::Lost(_) | folders::Error::ArchiveLost(_))
        )
    }

    /// Whether the engine cannot be asked.
    pub(super) fn is_engine_lost(&self) -> bool {
        matches!(self, Self::Engine(error) if error.kind == ErrorKind::Unavailable)
    }

    /// Whether it was not even tried, since this service ends: that says nothing of the instance.
    pub(super) fn is_of_our_end(&self) -> bool {
        matches!(self, Self::Folders(folders::Error::Ending(error)) if error.is_cancelled())
    }

    /// What is told while nothing can be written.
    pub(super) fn disk_out() -> InstanceError {
        InstanceError {
            code: "storage_failed".into(),
            detail: "The workspace's files could not be written.".into(),
            ..Default::default()
        }
    }

    /// As its owner may know it: a stable code, and a sentence without anything of the inside.
    pub(super) fn told(&self) -> InstanceError {
        let (code, detail) = match self {
            Self::Disk => return disk::exceeded(),
            Self::Engine(error) => match error.kind {
                ErrorKind::Unavailable => ("engine_unavailable", "The container engine cannot be reached."),
                ErrorKind::Capacity => ("engine_capacity", "The server has no room for another workspace at present."),
                ErrorKind::NotFound => ("image_missing", "The program that workspaces run is not installed."),
                ErrorKind::Conflict | ErrorKind::Rejected => {
                    ("engine_rejected", "The container engine refused to run the workspace.")
                }
            },
            Self::Folders(_) => return Self::disk_out(),
            Self::Away(_) | Self::Unrouted => {
                ("registration_failed", "A part of the service is away; this is tried again by itself.")
            }
            Self::Refused(_) => ("registration_failed", "The workspace could not be registered with its owner."),
            Self::NotInTime | Self::OldConfig { .. } => {
                ("not_healthy_in_time", "The workspace started, but did not answer in time.")
            }
            Self::Ended => ("crash_loop", "The workspace ended by itself while it was starting."),
            Self::Plan(NoPlan::Missing) => ("plan_missing", "What this workspace is to run is not set up any more."),
            Self::Plan(NoPlan::NeedsImages) => {
                ("plan_needs_images", "This workspace runs from an image, and there are none on this server.")
            }
            Self::Blocked(_) => {
                ("sockets_blocked", "The server cannot run workspaces at present; this is tried again by itself.")
            }
            Self::Registry(_) | Self::Endless | Self::InUse => ("internal", "Something went wrong on the server."),
        };
        InstanceError { code: code.into(), detail: detail.into(), ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Handle, Runtime};

    use super::*;

    #[test]
    fn what_our_end_kept_from_being_done_says_nothing_of_the_instance() {
        let waits = Runtime::new().unwrap();
        let failure = |on: &Handle, work: fn()| {
            let error = waits.block_on(on.spawn_blocking(work)).unwrap_err();
            Failure::from(folders::Error::from(error))
        };
        let ends = Runtime::new().unwrap();
        let ending = ends.handle().clone();
        ends.shutdown_background();
        assert!(failure(&ending, || {}).is_of_our_end());
        assert!(!failure(waits.handle(), || panic!("a mistake of ours, which counts")).is_of_our_end());
    }
}
