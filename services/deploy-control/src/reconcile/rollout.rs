//! How a new release comes to the instances that run another: the canaries first, then some at once, and no further once
//! too many have gone back.
//!
//! A release is what an image's name leads to at the time, by its id. What is known of one is what the rows say.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use contracts::{InstanceId, deploy::Desired};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::registry::Row;

/// A release goes no further once more than one in this many went back from it.
const ONE_IN: usize = 10;

/// How new releases come to instances.
#[derive(Debug, Clone, Copy)]
pub struct RolloutConfig {
    /// So many must be healthy with a release before the others get it; they get it one by one.
    pub canaries: usize,
    /// So many others are down for it at once.
    pub at_once: usize,
}

/// Who runs what, and who went back from what.
pub(super) struct Rollouts {
    config: RolloutConfig,
    rows: Mutex<HashMap<InstanceId, Known>>,
    changed: Notify,
    canary: Semaphore,
    others: Semaphore,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// All of these, of whichever plan, run the same image.
    is_workspace: bool,
    /// Healthy with this one.
    release: Option<String>,
    /// Went back from this one.
    refused: Option<String>,
}

/// What whoever is down anyway may come up with.
pub(super) enum Admission<'a> {
    /// The release: it comes to all.
    Free,
    /// The release, as the one who tries it; for as long as the permit is kept nobody else does.
    Tries(SemaphorePermit<'a>),
    /// What it ran before.
    Later,
}

/// How far a release is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is tried.
    Canaries,
    /// It comes to all.
    Wide,
    /// It goes no further by itself.
    Halted,
}

impl Rollouts {
    pub(super) fn new(config: RolloutConfig) -> Self {
        Self {
            config,
            rows: Mutex::default(),
            changed: Notify::new(),
            canary: Semaphore::new(1),
            others: Semaphore::new(config.at_once),
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<InstanceId, Known>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a row says.
    pub(super) fn note(&self, row: &Row) {
        let known = Known {
            is_workspace: row.plan.is_workspace(),
            release: row.release.clone(),
            refused: row.refused_release.clone(),
        };
        let (before, now) = match row.desired {
            // What is gone, or on its way, says nothing of any release.
            Desired::Deleted => (self.rows().remove(&row.id), None),
            _ => (self.rows().insert(row.id, known.clone()), Some(known)),
        };
        if before != now {
            self.changed.notify_waiters();
        }
    }

    /// How many are healthy with a release, and how many went back from it.
    pub(super) fn counts(&self, release: &str) -> (usize, usize) {
        let rows = self.rows();
        let healthy = rows.values().filter(|known| known.release.as_deref() == Some(release)).count();
        let refused = rows.values().filter(|known| known.refused.as_deref() == Some(release)).count();
        (healthy, refused)
    }

    /// What a new workspace gets instead of this release while it is tried, or goes no further: what most of the others are
    /// healthy with.
    pub(super) fn instead(&self, newest: &str) -> Option<String> {
        if self.is_wide(newest) {
            return None;
        }
        let rows = self.rows();
        let mut healthy = BTreeMap::<_, usize>::new();
        for release in rows.values().filter(|known| known.is_workspace).filter_map(|known| known.release.as_deref()) {
            *healthy.entry(release).or_default() += 1;
        }
        healthy.remove(newest);
        healthy.into_iter().max_by_key(|(_, count)| *count).map(|(release, _)| release.to_owned())
    }

    fn stage(&self, release: &str) -> Stage {
        let (healthy, refused) = self.counts(release);
        if refused * ONE_IN > healthy {
            Stage::Halted
        } else if healthy < self.config.canaries {
            Stage::Canaries
        } else {
            Stage::Wide
        }
    }

    /// Waits until one more may go down for this release; for as long as the permit is kept it counts.
    pub(super) async fn admit(&self, release: &str) -> SemaphorePermit<'_> {
        loop {
            let changed = self.changed.notified();
            let stage = self.stage(release);
            let semaphore = match stage {
                Stage::Canaries => &self.canary,
                Stage::Wide => &self.others,
                Stage::Halted => {
                    changed.await;
                    continue;
                }
            };
            tokio::select! {
                permit = semaphore.acquire() => match permit {
                    // A turn among the others is also one of before it was halted.
                    Ok(permit) if self.stage(release) == stage => return permit,
                    _ => {}
                },
                // It may come to all by now, while the one that tries it is still at it.
                () = changed => {}
            }
        }
    }

    /// What somebody who comes up now, and never ran this release, may come up with.
    pub(super) fn try_admit(&self, release: &str) -> Admission<'_> {
        match self.stage(release) {
            Stage::Wide => Admission::Free,
            Stage::Canaries => self.canary.try_acquire().map_or(Admission::Later, Admission::Tries),
            Stage::Halted => Admission::Later,
        }
    }

    /// Whether it comes to all.
    pub(super) fn is_wide(&self, release: &str) -> bool {
        self.stage(release) == Stage::Wide
    }

    /// Whether [`Rollouts::try_admit`] would give somebody this release now.
    pub(super) fn has_room(&self, release: &str) -> bool {
        match self.stage(release) {
            Stage::Wide => true,
            Stage::Canaries => self.canary.available_permits() > 0,
            Stage::Halted => false,
        }
    }

    /// Waits for a turn to go down for something else of ours: other limits, say.
    pub(super) async fn admit_other(&self) -> Option<SemaphorePermit<'_>> {
        self.others.acquire().await.ok()
    }
}
