//! The mark beside the data of an instance that is deleted. Without it nothing of the data is removed, whatever a row says.

use contracts::{InstanceId, instance::REVOKED};
use serde::{Deserialize, Serialize};

use super::{Error, Folders, MAX_CONFIG, Whose};
use crate::registry::Row;

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

    /// Takes the tombstone away, and leaves word as [`Folders::revoke`] does. That there is none is fine. The unit is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn take_tombstone(&self, row: &Row) -> Result<(), Error> {
        let (this, whose) = (self.clone(), Whose::from(row));
        self.exclusive(whose.id, move || {
            // First, and once more after a kill in between: what is revoked twice is revoked.
            this.leave_word(whose)?;
            Ok(this.instances.remove_file(format!("{}/{TOMBSTONE}", whose.id))?)
        })
        .await
    }

    /// Leaves word for the workspace's next start that no key and no session of before counts any more.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn revoke(&self, row: &Row) -> Result<(), Error> {
        let (this, whose) = (self.clone(), Whose::from(row));
        self.exclusive(whose.id, move || this.leave_word(whose)).await
    }

    fn leave_word(&self, whose: Whose) -> Result<(), Error> {
        let owner = self.owner(whose).map(|uid| (uid, uid));
        match self.instances.write_atomic(format!("{}/data/{REVOKED}", whose.id), b"", 0o600, owner) {
            // Without data there are none.
            Ok(()) | Err(beneath::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
