//! How much disk each instance uses, and what follows when it is more than it may.
//!
//! The limit is a soft one: what is measured a minute later is over it for a while. The instance is told by a file in its
//! `config` folder and keeps itself from writing more; its owner by an event and by the instance's own page.

use std::{sync::Arc, time::Duration};

use contracts::{
    deploy::{EventCode, Phase},
    instance::DiskNotice,
    routes::RouteState,
};
use service::Shutdown;

use crate::{
    chain,
    folders::{self, Folders},
    hub::Hub,
    plans::Plans,
    registry::{self, NewEvent, Registry, Row},
};

/// How much of the limit must be free again before an instance may write again: a twentieth, so that it does not go to and
/// fro.
const FREED: u64 = 20;

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
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pass() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
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
            if row.route != Some(RouteState::Running) && !row.disk_full {
                continue;
            }
            match self.measure(row).await {
                Ok(is_full) => full += u32::from(is_full),
                Err(error) => {
                    tracing::warn!(instance = %row.id, error = chain(&error), "its disk use could not be measured");
                }
            }
        }
        metrics::gauge!("beaver_instances_disk_full").set(full);
    }

    /// Measures one, and tells of it; whether it is over its limit.
    async fn measure(&self, row: &Row) -> Result<bool, Error> {
        let limit_bytes = match self.plans.get(&row.plan) {
            Ok(plan) => plan.disk_bytes,
            // It goes on as it is, and nobody says now what it may take.
            Err(_) => return Ok(row.disk_full),
        };
        let notice = match limit_bytes {
            // The limit was taken away.
            None if row.disk_full => None,
            None => return Ok(false),
            Some(limit_bytes) => {
                let Some(used) = self.folders.disk_use(row.id).await? else { return Ok(false) };
                let enough = if row.disk_full { limit_bytes - limit_bytes / FREED } else { limit_bytes };
                let is_full = used.bytes().is_none_or(|bytes| bytes > enough);
                is_full.then_some(DiskNotice { used_bytes: used.bytes(), limit_bytes })
            }
        };
        let is_full = notice.is_some();
        // First the file, then what says that it is there: were this the last that is done, the next pass does both.
        self.folders.write_disk_notice(row, notice).await?;
        if is_full != row.disk_full {
            let code = if is_full { EventCode::DiskFull } else { EventCode::DiskFreed };
            tracing::info!(instance = %row.id, is_full, "its data is over its limit, or not any more");
            if let Some(row) = self.registry.set_disk_full(row.id, is_full, NewEvent::of(code)).await? {
                self.hub.publish(&row);
            }
        }
        Ok(is_full)
    }
}
