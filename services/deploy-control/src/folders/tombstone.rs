//! The mark beside the data of an instance that is deleted. Without it nothing of the data is removed, whatever a row says.

use contracts::InstanceId;
use serde::{Deserialize, Serialize};

use super::{Error, Folders, MAX_CONFIG};

/// The file's name in the instance's folder, which nobody but this service sees.
const TOMBSTONE: &str = "tombstone.json";

/// What stands on a tombstone.
#[derive(Serialize, Deserialize)]
struct Tombstone {
    data_until_ms: i64,
}

impl Folders {
    /// The time on its tombstone; one that cannot be read is none.
    pub(super) fn tombstone(&self, id: InstanceId) -> Result<Option<i64>, Error> {
        match self.instances.read(format!("{id}/{TOMBSTONE}"), MAX_CONFIG) {
            Ok(bytes) => Ok(serde_json::from_slice::<Tombstone>(&bytes).ok().map(|there| there.data_until_ms)),
            Err(beneath::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a tombstone beside its data, which is kept until this time, in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn put_tombstone(&self, id: InstanceId, data_until_ms: i64) -> Result<(), Error> {
        let this = self.clone();
        self.exclusive(id, move || {
            this.instances.create_dir(id.to_string(), 0o711, None)?;
            let text = serde_json::to_vec(&Tombstone { data_until_ms })?;
            Ok(this.instances.write_atomic(format!("{id}/{TOMBSTONE}"), &text, 0o600, None)?)
        })
        .await
    }

    /// Takes the tombstone away. That there is none is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn take_tombstone(&self, id: InstanceId) -> Result<(), Error> {
        let this = self.clone();
        self.exclusive(id, move || Ok(this.instances.remove_file(format!("{id}/{TOMBSTONE}"))?)).await
    }
}
