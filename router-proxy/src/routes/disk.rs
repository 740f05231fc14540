//! The last routes on disk, so that the router routes before deploy-control answers, and without it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use beneath::Root;
use contracts::routes::RouteSnapshot;
use service::Shutdown;

use super::Table;

/// The folder below `BEAVER_DATA_DIR`.
pub const DIR: &str = "router";
const FILE: &str = "routes.json";
/// Far more than ten thousand routes take.
const MAX_BYTES: u64 = 64 << 20;
/// Changes that come closer together than this are written once.
const DEBOUNCE: Duration = Duration::from_millis(300);

/// Makes the router's folder, if need be, and opens it.
///
/// # Errors
/// When it cannot be made or opened.
pub fn open(data_dir: &Path) -> anyhow::Result<Root> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("making {}", data_dir.display()))?;
    let root = Root::open(data_dir)?;
    // In production deploy makes it and gives it to us; by ourselves we make it.
    match root.dir(DIR) {
        Ok(dir) => Ok(dir),
        Err(beneath::Error::NotFound { .. }) => {
            root.create_dir(DIR, 0o700, None)?;
            Ok(root.dir(DIR)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// The last routes; nothing when none were kept.
///
/// # Errors
/// When the file cannot be read or understood; the router then starts without it.
pub fn load(dir: &Root) -> anyhow::Result<Option<RouteSnapshot>> {
    match dir.read(FILE, MAX_BYTES) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("the kept routes are not readable")?)),
        Err(beneath::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the table down soon after each change, and once more at the end.
pub async fn keep(dir: Root, table: Arc<Table>, stop: Shutdown) {
    let mut changes = table.watch();
    // Whatever was learned before this task ran counts too.
    changes.mark_changed();
    loop {
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(DEBOUNCE) => {}
            () = stop.cancelled() => {}
        }
        changes.mark_unchanged();
        if !table.is_known() {
            continue;
        }
        let (dir, snapshot) = (dir.clone(), table.snapshot());
        let written = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let bytes = serde_json::to_vec(&snapshot)?;
            Ok(dir.write_atomic(FILE, &bytes, 0o600, None)?)
        })
        .await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(cause = format!("{error:#}"), "the routes could not be kept on disk"),
            Err(error) => tracing::warn!(%error, "the routes could not be kept on disk"),
        }
    }
}
