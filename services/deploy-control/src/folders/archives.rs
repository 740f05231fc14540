//! An instance's data on its way out into an archive, and data from an archive on its way in.
//!
//! What comes in is put together in `upload/`, beside the data, which nobody but this service sees. Once it is whole it becomes
//! `archive.<generation>/new`, and a wish makes it count. While the instance is down, the data goes to `archive.<generation>/old`
//! and `new` takes its place; taking that back puts it into `refused` and `old` into its place. Each is a rename, so that what
//! is there tells how far it came, and what was begun can always be brought to its end.

use std::collections::HashMap;

use beneath::Root;
use contracts::{
    InstanceId,
    instance::{FROM_ARCHIVE, FromArchive, SNAPSHOT},
};

use super::{Error, Folders, MAX_GIVEN, MAX_INSTANCES, blocking};
use crate::registry::Row;

/// Where data from an archive is put together.
const UPLOAD: &str = "upload";

/// The folder of one archive's data.
fn archive(id: InstanceId, generation: i64) -> String {
    format!("{id}/archive.{generation}")
}

impl Folders {
    /// The instance's data, to be read.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn data(&self, id: InstanceId) -> Result<Root, Error> {
        let this = self.clone();
        blocking(move || Ok(this.instances.dir(format!("{id}/data"))?)).await
    }

    /// Takes the snapshot away that the instance made of its database.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn remove_snapshot(&self, id: InstanceId) -> Result<(), Error> {
        let this = self.clone();
        blocking(move || Ok(this.instances.remove_file(format!("{id}/data/{SNAPSHOT}"))?)).await
    }

    /// An empty folder for data from an archive. There is one at a time: what was there is removed.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn begin_upload(&self, row: &Row) -> Result<Root, Error> {
        let (this, row) = (self.clone(), row.clone());
        blocking(move || {
            let upload = format!("{}/{UPLOAD}", row.id);
            this.make_instance(&row)?;
            this.instances.remove_tree(&upload)?;
            this.instances.create_dir(&upload, 0o700, None)?;
            let new = format!("{upload}/new");
            this.instances.create_dir(&new, 0o700, None)?;
            Ok(this.instances.dir(new)?)
        })
        .await
    }

    /// Removes what was put together.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn end_upload(&self, id: InstanceId) -> Result<(), Error> {
        let this = self.clone();
        blocking(move || Ok(this.instances.remove_tree(format!("{id}/{UPLOAD}"))?)).await
    }

    /// Removes what was being put together for anybody when this service ended, and what was staged for these and not wished
    /// then.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn end_all_uploads(&self, rows: &[Row]) -> Result<(), Error> {
        let rows: HashMap<_, _> = rows.iter().map(|row| (row.id, row.clone())).collect();
        let this = self.clone();
        blocking(move || {
            for entry in this.instances.list("", MAX_INSTANCES)? {
                match this.instances.remove_tree(std::path::Path::new(&entry.name).join(UPLOAD)) {
                    Ok(()) | Err(beneath::Error::NotFound { .. } | beneath::Error::Refused { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                if let Some(row) = entry.name.to_str().and_then(|name| rows.get(&name.parse().ok()?)) {
                    this.remove_unwished_configs(row)?;
                    this.remove_unwished_archives(row)?;
                }
            }
            Ok(())
        })
        .await
    }

    pub(super) fn remove_unwished_archives(&self, row: &Row) -> Result<(), Error> {
        for (generation, path) in self.archives(row.id)? {
            // One that was put is wished, whatever a registry from before knows: beside it is the instance's own.
            let old = self.instances.meta(format!("{path}/old"));
            let is_staged = self.has(&format!("{path}/new")) && matches!(old, Err(beneath::Error::NotFound { .. }));
            if generation > row.archive_generation && is_staged {
                tracing::info!(instance = %row.id, generation, "data from an archive that nobody wished is removed");
                self.instances.remove_tree(path)?;
            }
        }
        Ok(())
    }

    /// The archives of an instance that there is something of: generation and path.
    fn archives(&self, id: InstanceId) -> Result<Vec<(i64, String)>, Error> {
        let entries = self.instances.list(id.to_string(), 1_000)?;
        let generations =
            entries.iter().filter_map(|entry| entry.name.to_str()?.strip_prefix("archive.")?.parse().ok());
        Ok(generations.map(|generation| (generation, archive(id, generation))).collect())
    }

    /// Makes what was put together the archive of this generation, down to the disk and given to the instance, with the mark
    /// for a program that heeds one. It counts for nothing until somebody wishes it.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn stage_archive(&self, row: &Row, generation: i64, mark: Option<FromArchive>) -> Result<(), Error> {
        let (this, row) = (self.clone(), row.clone());
        blocking(move || {
            let (upload, staged) = (format!("{}/{UPLOAD}", row.id), archive(row.id, generation));
            if let Some(mark) = mark {
                let path = format!("{upload}/new/{FROM_ARCHIVE}");
                this.instances.write_atomic(path, mark.to_string().as_bytes(), 0o600, None)?;
            }
            if let Some(uid) = this.owner(&row) {
                this.instances.give_tree(format!("{upload}/new"), (uid, uid), MAX_GIVEN)?;
            }
            this.instances.sync_all()?;
            // One that nobody wished: this service ended in between.
            this.instances.remove_tree(&staged)?;
            Ok(this.instances.rename(&upload, &staged)?)
        })
        .await
    }

    /// Puts an archive's data in the place of the instance's, which is kept beside it. Its unit is down. What is done already
    /// is not done again.
    ///
    /// # Errors
    ///
    /// [`Error::ArchiveLost`]; [`Error::Files`].
    pub async fn put_archive(&self, id: InstanceId, generation: i64) -> Result<(), Error> {
        let this = self.clone();
        self.exclusive(id, move || {
            let (staged, data) = (archive(id, generation), format!("{id}/data"));
            let (new, old) = (format!("{staged}/new"), format!("{staged}/old"));
            if !this.has(&new) {
                return if this.has(&old) { Ok(()) } else { Err(Error::ArchiveLost(generation)) };
            }
            if !this.has(&old) {
                match this.has(&data) {
                    true => this.instances.rename(&data, &old)?,
                    // It was lost. What tells that this was begun must be there all the same.
                    false => this.instances.create_dir(&old, 0o700, None)?,
                }
            }
            Ok(this.instances.rename(&new, &data)?)
        })
        .await
    }

    /// Puts the instance's own data back. Its unit is down. What is done already is not done again.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn take_archive_back(&self, id: InstanceId, generation: i64) -> Result<(), Error> {
        let this = self.clone();
        self.exclusive(id, move || {
            let (staged, data) = (archive(id, generation), format!("{id}/data"));
            let (old, refused) = (format!("{staged}/old"), format!("{staged}/refused"));
            if !this.has(&old) {
                return Ok(());
            }
            if this.has(&data) && !this.has(&refused) {
                this.instances.rename(&data, &refused)?;
            }
            Ok(this.instances.rename(&old, &data)?)
        })
        .await
    }

    /// Removes what was left of archives that are in force, or were taken back. Nothing goes back to before those.
    pub(super) fn tidy_archives(&self, row: &Row) -> Result<(), Error> {
        if row.applied_archive_generation == 0 {
            return Ok(());
        }
        let mut outcome = Ok(());
        for (generation, path) in self.archives(row.id)? {
            if generation <= row.applied_archive_generation {
                outcome = outcome.and(self.instances.remove_tree(path));
            }
        }
        Ok(outcome?)
    }

    fn has(&self, path: &str) -> bool {
        self.instances.dir(path).is_ok()
    }
}
