//! How much disk each instance uses, and what follows when it is more than it may.
//!
//! The limit is a soft one, since data is in a folder of the host's, to which no storage driver gives a quota: what is
//! measured a minute later is over it for a while. The instance is told by a file in its `config` folder and keeps itself
//! from writing more; its owner by an event and by the instance's own page.
//!
//! One that goes on all the same, to more than one and a half times its limit, is stopped, and stays so: whoever wishes it
//! started is told why not, until there is less of it or it may take more.

use std::{sync::Arc, time::Duration};

use contracts::{
    deploy::{EventCode, InstanceError, Phase},
    instance::DiskNotice,
    routes::RouteState,
};
use service::Shutdown;

use crate::{
    chain,
    folders::{self, Folders},
    hub::Hub,
    plans::Plans,
    reconcile::Reconciler,
    registry::{self, NewEvent, Registry, Row},
};

/// How much of the limit must be free again before an instance may write again: a twentieth, so that it does not go to and
/// fro.
const FREED: u64 = 20;

/// How often, in the time between two measurings, it is looked whether the disk fills.
const LOOKS: u32 = 12;
/// How much less room on the disk is a reason to measure at once, in bytes.
const SUDDEN: u64 = 1 << 30;
/// The code of the reason why it is stopped.
const EXCEEDED: &str = "disk_exceeded";

/// How much an instance takes of what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Nobody says at present what it may take, or there is nothing to measure.
    Unknown,
    /// There is no limit.
    Free,
    /// No more than it may.
    Within,
    /// More.
    Over(DiskNotice),
    /// So much more that it must not go on.
    Far(DiskNotice),
}

async fn taken(folders: &Folders, plans: &Plans, row: &Row) -> Result<Taken, folders::Error> {
    // Without its plan it goes on as it is.
    let Ok(plan) = plans.get(&row.plan) else { return Ok(Taken::Unknown) };
    let Some(limit_bytes) = plan.disk_bytes else { return Ok(Taken::Free) };
    let Some(used) = folders.disk_use(row.id).await? else { return Ok(Taken::Unknown) };
    let enough = if row.disk_full { limit_bytes - limit_bytes / FREED } else { limit_bytes };
    let notice = DiskNotice { used_bytes: used.bytes(), limit_bytes };
    Ok(match used.bytes() {
        Some(bytes) if bytes <= enough => Taken::Within,
        Some(bytes) if bytes <= limit_bytes.saturating_add(limit_bytes / 2) => Taken::Over(notice),
        _ => Taken::Far(notice),
    })
}

/// Whether an instance that was over its limit is so far over it that it must not be started.
///
/// # Errors
///
/// When it cannot be measured.
pub async fn is_exceeded(folders: &Folders, plans: &Plans, row: &Row) -> Result<bool, folders::Error> {
    // Those that were not are measured once they run: nobody who signs up waits for this.
    Ok(row.disk_full && matches!(taken(folders, plans, row).await?, Taken::Far(_)))
}

/// Why it is stopped, for its owner.
pub fn exceeded() -> InstanceError {
    let detail = "The workspace takes far more disk space than it may, so it was stopped.";
    InstanceError { code: EXCEEDED.into(), detail: detail.into(), ..Default::default() }
}

/// Measures, one instance after the other.
pub struct Meter {
    /// Who is measured, and where it is written that one is over its limit.
    pub registry: Registry,
    /// What is measured.
    pub folders: Folders,
    /// Who is told.
    pub hub: Arc<Hub>,
    /// What each may take.
    pub plans: Plans,
    /// Who stops those that take far more.
    pub reconciler: Reconciler,
    /// How long after all were measured they are measured again.
    pub every: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the instance's folders")]
    Folders(#[from] folders::Error),
    #[error("the registry")]
    Registry(#[from] registry::Error),
}

impl Meter {
    /// Measures again and again, until `stop`.
    pub async fn run(self, stop: Shutdown) {
        let measuring = async {
            // After a start everybody else has more urgent things to do with the disk.
            tokio::time::sleep(self.every / LOOKS).await;
            loop {
                self.pass().await;
                self.next().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = measuring => {}
        }
    }

    /// Waits until it is time to measure again: at once when the disk fills in no time.
    async fn next(&self) {
        let before = self.folders.free_bytes();
        for _ in 0..LOOKS {
            tokio::time::sleep(self.every / LOOKS).await;
            let now = self.folders.free_bytes();
            if before.zip(now).is_some_and(|(before, now)| before.saturating_sub(now) >= SUDDEN) {
                tracing::info!("the disk fills; instances are measured before it is time");
                return;
            }
        }
    }

    async fn pass(&self) {
        let rows = match self.registry.all().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(error = chain(&error), "instances cannot be read; disk is not measured");
                return;
            }
        };
        let mut full = 0_u32;
        // What is down writes nothing; but one that is over may be mended from outside.
        for row in rows.iter().filter(|row| row.phase != Phase::Deleted) {
            if !matches!(row.route, Some(RouteState::Running | RouteState::Starting)) && !row.disk_full {
                continue;
            }
            let is_full = self.measure(row).await.unwrap_or_else(|error| {
                tracing::warn!(instance = %row.id, error = chain(&error), "its disk use could not be measured");
                row.disk_full
            });
            full += u32::from(is_full);
        }
        metrics::gauge!("beaver_instances_disk_full").set(full);
    }

    /// Measures one, and tells of it; whether it is over its limit.
    async fn measure(&self, row: &Row) -> Result<bool, Error> {
        let taken = taken(&self.folders, &self.plans, row).await?;
        let notice = match taken {
            Taken::Unknown => return Ok(row.disk_full),
            Taken::Free if !row.disk_full => return Ok(false),
            // The limit was taken away, or there is room.
            Taken::Free | Taken::Within => None,
            Taken::Over(notice) | Taken::Far(notice) => Some(notice),
        };
        let is_full = notice.is_some();
        // First the file, then what says that it is there: were this the last that is done, the next pass does both.
        if is_full || self.folders.has_disk_notice(row.id) {
            self.folders.write_disk_notice(row, notice).await?;
        }
        if is_full != row.disk_full {
            let code = if is_full { EventCode::DiskFull } else { EventCode::DiskFreed };
            tracing::info!(instance = %row.id, is_full, "its data is over its limit, or not any more");
            if let Some(row) = self.registry.set_disk_full(row.id, is_full, NewEvent::of(code)).await? {
                self.hub.publish(&row);
            }
        }
        if let Taken::Far(notice) = taken
            && let Some(row) = self.registry.give_up(row, exceeded()).await?
        {
            tracing::warn!(instance = %row.id, ?notice, "its data is far over its limit; it is stopped");
            self.hub.publish(&row);
            self.reconciler.wished(&row);
        }
        Ok(is_full)
    }
}
