//! Plans: what an instance may be. The operator names them in a file; callers can only name one.
//!
//! The plan of Beaver's own workspaces is always there; one whose name begins with `workspace-` is the same with other limits.
//! Every other one names an image that knows nothing of Beaver, and runs behind the shim.

mod file;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use contracts::PlanName;
use service::Shutdown;
use settings::watched::{CHECK, Watched};
use tokio::sync::watch;

use crate::{
    config::{Idle, Limits},
    engine::Program,
};

pub use file::{FileError, check};

/// What the settings say of plans.
#[derive(Debug, Clone)]
pub struct PlansConfig {
    /// The operator's file, which need not be there.
    pub file: PathBuf,
    /// The plan that a sign-up gets.
    pub default: PlanName,
    /// What the plan of Beaver's own workspaces may use, and every other one as far as it does not say.
    pub limits: Limits,
    /// What an instance's data may take on disk, in bytes, where its plan does not say; `None`: as much as there is.
    pub disk_bytes: Option<u64>,
    /// After how long without use an instance sleeps, where its plan does not say.
    pub idle: Idle,
}

/// One plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What runs.
    pub program: Program,
    /// Its environment, beyond what every instance has.
    pub env: BTreeMap<String, String>,
    /// The path under which it is asked whether it is there.
    pub health: String,
    /// What it may use.
    pub limits: Limits,
    /// What its data may take on disk, in bytes; `None`: as much as there is.
    pub disk_bytes: Option<u64>,
    /// After how long without use it sleeps.
    pub idle: Idle,
}

/// Why a plan cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// The operator's file does not name it, or not any more.
    #[error("there is no such plan")]
    Missing,
    /// It names an image, and this engine runs none.
    #[error("the plan names an image, and this engine runs none")]
    NeedsImages,
}

type Named = BTreeMap<PlanName, Arc<Plan>>;

/// The plans that there are at present. Cloning is cheap.
#[derive(Clone)]
pub struct Plans {
    current: watch::Receiver<Arc<Named>>,
    default: PlanName,
    images: bool,
}

impl Plans {
    /// The plans as the file has them now, and who keeps them so. `images`: whether the engine runs any.
    pub fn open(config: PlansConfig, images: bool) -> (Self, Keeper) {
        let default = config.default.clone();
        let (sender, current) = watch::channel(Arc::new(file::built_in(&config)));
        let mut keeper = Keeper { file: Watched::new(config.file.clone()), config, sender };
        // Where there is no file, nothing is wrong with it, and nothing is looked at.
        metrics::gauge!("beaver_plans_good").set(1.0);
        keeper.look();
        let plans = Self { current, default, images };
        if let Err(error) = plans.get(&plans.default) {
            tracing::error!(plan = %plans.default, "BEAVER_DEFAULT_PLAN: {error}; nobody who signs up gets anything that runs");
        }
        (plans, keeper)
    }

    /// The plan that a sign-up gets.
    pub fn of_sign_ups(&self) -> &PlanName {
        &self.default
    }

    /// The plan of this name.
    ///
    /// # Errors
    /// Each [`NoPlan`].
    pub fn get(&self, name: &PlanName) -> Result<Arc<Plan>, NoPlan> {
        let plan = self.current.borrow().get(name).cloned().ok_or(NoPlan::Missing)?;
        match plan.program {
            Program::Image(_) if !self.images => Err(NoPlan::NeedsImages),
            _ => Ok(plan),
        }
    }

    /// After how long without use anybody may sleep, by any plan; `None`: nobody ever does.
    pub fn soonest_sleep(&self) -> Option<Duration> {
        let current = self.current.borrow();
        current.values().flat_map(|plan| [plan.idle.pause_after, plan.idle.stop_after]).flatten().min()
    }

    /// Waits until they have changed; for ever once nobody keeps them any more.
    pub async fn changed(&mut self) {
        if self.current.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Takes changes of the file over. One with a mistake in it changes nothing.
pub struct Keeper {
    config: PlansConfig,
    file: Watched,
    sender: watch::Sender<Arc<Named>>,
}

impl Keeper {
    /// Keeps the plans as the file has them, until `stop`.
    pub async fn keep(mut self, stop: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK) => self.look(),
                () = stop.cancelled() => return,
            }
        }
    }

    fn look(&mut self) {
        let found = match self.file.look() {
            Ok(None) => return,
            Ok(Some(text)) => file::plans(&self.config, text.as_deref().unwrap_or_default()),
            Err(error) => Err(error.into()),
        };
        metrics::gauge!("beaver_plans_good").set(if found.is_ok() { 1.0 } else { 0.0 });
        match found {
            Ok(plans) => {
                let names: Vec<_> = plans.keys().map(PlanName::as_str).collect();
                tracing::info!(file = %self.file.path().display(), plans = names.join(" "), "the plans");
                self.file.is_good();
                self.sender.send_if_modified(|current| {
                    let changed = **current != plans;
                    *current = Arc::new(plans);
                    changed
                });
            }
            Err(error) => {
                let cause = crate::chain(&error);
                if self.file.is_news(&cause) {
                    tracing::error!(file = %self.file.path().display(), cause, "this file of plans is not taken over");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
