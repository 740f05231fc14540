//! Whether the instance takes more disk than it may, as deploy-control says in `disk.json`, which comes and goes.

use std::{io::ErrorKind, path::PathBuf};

use contracts::instance::DiskNotice;
use http::StatusCode;
use service::Problem;

use crate::settings::Settings;

/// The place where it is said.
#[derive(Debug, Clone)]
pub struct Disk {
    notice: PathBuf,
}

impl Disk {
    /// As these settings say where.
    pub fn new(settings: &Settings) -> Self {
        Self { notice: settings.config.join("disk.json") }
    }

    /// How much of what it may take is taken, when that is too much.
    pub fn full(&self) -> Option<DiskNotice> {
        // A few bytes, in the page cache: no reason to leave the thread.
        match std::fs::read(&self.notice) {
            Ok(text) => serde_json::from_slice(&text)
                .inspect_err(|error| tracing::warn!(%error, "disk.json cannot be understood"))
                .ok(),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, "disk.json cannot be read");
                None
            }
        }
    }

    /// For whatever would take more.
    ///
    /// # Errors
    /// 507 `storage_full` (RFC 4918, section 11.5) with this sentence.
    pub fn has_room(&self, sentence: impl FnOnce() -> String) -> Result<(), Problem> {
        match self.full() {
            None => Ok(()),
            Some(_) => Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", sentence())),
        }
    }
}
