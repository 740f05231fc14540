//! Instances' configurations: staged beside the current one, and then made current.

use contracts::{
    InstanceId,
    instance::{InstanceConfig, Registration},
    provider::ProviderConfig,
};
use secrecy::{ExposeSecret, SecretString};

use super::{CONFIG_MODE, Error, Folders, MAX_CONFIG};
use crate::registry::Row;

/// The file with an instance's one-time token.
const REGISTRATION: &str = "registration.json";

impl Folders {
    /// Puts a configuration beside the current one, as `config.<generation>.json`, down to the disk. The key in it is in no
    /// other place.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn stage(&self, row: &Row, generation: i64, provider: ProviderConfig) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            this.make_instance(&row)?;
            let config = this.config(&row, generation, Some(provider));
            this.write(&row, &format!("config.{generation}.json"), &serde_json::to_vec(&config)?)
        })
        .await
    }

    /// Makes the staged configuration of this generation the current one. The one without a provider, 0, is made here.
    /// Older ones, to which there is no way back, are removed.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`], [`Error::Files`].
    pub async fn make_current(&self, row: &Row, generation: i64) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            let config = match generation {
                0 => this.config(&row, 0, None),
                _ => {
                    let staged = this.read(row.id, &format!("config.{generation}.json"))?;
                    let provider = staged.ok_or(Error::Lost(generation))?.provider;
                    // The operator's settings may have changed since it was staged.
                    this.config(&row, generation, provider)
                }
            };
            this.write(&row, "config.json", &serde_json::to_vec(&config)?)
        })
        .await
    }

    /// Removes what is of no use any more: a one-time token that has been spent, staged configurations and archives that nothing
    /// can go back to, and what a kill in the middle of writing a file has left. One thing that cannot be removed keeps nobody
    /// from removing the others.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn tidy(&self, row: &Row) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            let configs = this.tidy_configs(&row);
            this.tidy_archives(&row).and(configs)
        })
        .await
    }

    fn tidy_configs(&self, row: &Row) -> Result<(), Error> {
        let mut outcome = Ok(());
        for folder in [row.id.to_string(), format!("{}/config", row.id)] {
            let entries = match self.instances.list(&folder, 1_000) {
                Ok(entries) => entries,
                Err(beneath::Error::NotFound { .. }) => continue,
                Err(error) => {
                    outcome = outcome.and(Err(error));
                    continue;
                }
            };
            for name in entries.iter().map(|entry| entry.name.to_string_lossy()) {
                let is_spent = match (&*name, generation_of(&name)) {
                    // One that does not have its owner yet needs its token.
                    (REGISTRATION, _) => row.registered,
                    // Older than the one in force, or refused.
                    (_, Some(generation)) => {
                        let in_force = row.applied_config_generation;
                        generation < in_force || (in_force < generation && generation <= row.refused_config_generation)
                    }
                    _ => name.starts_with(".tmp-"),
                };
                if is_spent {
                    outcome = outcome.and(self.instances.remove_file(format!("{folder}/{name}")));
                }
            }
        }
        Ok(outcome?)
    }

    /// Removes what was staged for an instance and not wished then: newer than what its row wishes, and than what is in force
    /// whatever the row says of it.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn remove_unwished(&self, row: &Row) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            this.remove_unwished_configs(&row)?;
            this.remove_unwished_archives(&row)
        })
        .await
    }

    pub(super) fn remove_unwished_configs(&self, row: &Row) -> Result<(), Error> {
        let in_force = self.read(row.id, "config.json")?.map_or(0, |config| config.generation);
        let folder = format!("{}/config", row.id);
        let entries = match self.instances.list(&folder, 1_000) {
            Err(beneath::Error::NotFound { .. }) => return Ok(()),
            entries => entries?,
        };
        for name in entries.iter().filter_map(|entry| entry.name.to_str()) {
            if generation_of(name).is_some_and(|staged| staged > row.config_generation.max(in_force)) {
                tracing::info!(instance = %row.id, name, "a configuration that nobody wished is removed");
                self.instances.remove_file(format!("{folder}/{name}"))?;
            }
        }
        Ok(())
    }

    /// Gives the instance its one-time token.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn write_registration(&self, row: &Row, token: SecretString, expires_at_ms: i64) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            let initial_access_token = token.expose_secret().to_owned();
            let registration = Registration { initial_access_token, expires_at_ms };
            this.write(&row, REGISTRATION, &serde_json::to_vec(&registration)?)
        })
        .await
    }

    /// Whether the current configuration is the instance's to read, and nobody else's.
    pub(super) fn can_read_config(&self, row: &Row) -> Result<bool, Error> {
        let Some(uid) = self.owner(row) else { return Ok(true) };
        let meta = self.instances.meta(format!("{}/config/config.json", row.id))?;
        Ok(meta.owner == (uid, uid) && meta.mode == CONFIG_MODE)
    }

    /// A configuration's text; `None` when it is not there or is not one.
    pub(super) fn read(&self, id: InstanceId, name: &str) -> Result<Option<InstanceConfig>, Error> {
        match self.instances.read(format!("{id}/config/{name}"), MAX_CONFIG) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(beneath::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn config(&self, row: &Row, generation: i64, provider: Option<ProviderConfig>) -> InstanceConfig {
        InstanceConfig {
            generation,
            instance_id: row.id,
            slug: row.slug.clone(),
            owner: row.account_id,
            origin: self.origin(row),
            issuer: self.settings.issuer.clone(),
            portal: self.settings.public.portal_origin(),
            provider,
            outlook_mcp: self.settings.outlook_mcp.clone(),
        }
    }
}

/// The generation of a staged configuration, by its file's name.
fn generation_of(name: &str) -> Option<i64> {
    name.strip_prefix("config.")?.strip_suffix(".json")?.parse().ok()
}
