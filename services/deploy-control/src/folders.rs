//! The folders and files of instances: `run/<id>/{in,out}` and `instances/<id>/{data,config}`.
//!
//! `in` and `data` belong to the instance, which may put anything there: they are made and given their owner here, and
//! never looked into. `config` is written here alone and read-only to the instance, but all of it goes through
//! [`beneath`], which follows no link and leaves no folder.
//!
//! With the docker engine (as root) everything has the owner it needs; with the process engine everything belongs to the
//! one user there is.

use std::path::{Path, PathBuf};

use beneath::Root;
use contracts::{
    InstanceId,
    instance::{InstanceConfig, Registration},
    provider::ProviderConfig,
};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::{config::InstanceSettings, engine::UnitFolders, registry::Row, turns::Turns};

/// The user and group of the router and the other services.
const SERVICES: u32 = 10_001;
/// The largest `config.json` that is read back, in bytes.
const MAX_CONFIG: u64 = 64 << 10;

/// Why a folder or file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("instance files")]
    Files(#[from] beneath::Error),
    /// A configuration that should be there is not, or cannot be read.
    #[error("configuration {0} is not there any more")]
    Lost(i64),
    /// A file could not be written as JSON.
    #[error("writing JSON")]
    Json(#[from] serde_json::Error),
    /// The worker thread is gone: the service is ending.
    #[error("the service is ending")]
    Ending(#[from] tokio::task::JoinError),
    /// Who asked for it does not wait for it any more.
    #[error("it was abandoned")]
    Abandoned,
}

/// What there is of an instance's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether all four are there.
    pub complete: bool,
    /// The generation of the current `config.json`.
    pub config: Option<i64>,
}

/// The folders of all instances.
#[derive(Debug, Clone)]
pub struct Folders {
    data_dir: PathBuf,
    run: Root,
    instances: Root,
    /// The n-th instance's user id is this plus n; `None`: nothing is given away.
    uid_base: Option<u32>,
    settings: InstanceSettings,
    turns: Turns,
}

impl Folders {
    /// Makes `run/` and `instances/` where they are missing. `uid_base` is given when this process is root and instances
    /// run as users of their own.
    ///
    /// # Errors
    ///
    /// When the data directory is missing or cannot be written.
    pub fn open(data_dir: &Path, uid_base: Option<u32>, settings: InstanceSettings) -> Result<Self, Error> {
        let root = Root::open(data_dir)?;
        // The router passes through `run`; nobody but this service has anything to do in `instances`.
        root.create_dir("run", 0o755, None)?;
        root.create_dir("instances", 0o711, None)?;
        Ok(Self {
            data_dir: data_dir.to_owned(),
            run: root.dir("run")?,
            instances: root.dir("instances")?,
            uid_base,
            settings,
            turns: Turns::default(),
        })
    }

    /// The instance's user id; `None` when it runs as this process does.
    pub fn uid(&self, row: &Row) -> Option<u32> {
        // Numbers count from 1 and the base is at most two thousand million: no registry grows past the sum.
        self.uid_base.and_then(|base| base.checked_add(u32::try_from(row.number).ok()?))
    }

    /// The instance's own origin.
    pub fn origin(&self, row: &Row) -> String {
        self.settings.public.workspace_origin(row.slug.as_str())
    }

    /// Where the instance's folders are.
    pub fn paths(&self, id: InstanceId) -> UnitFolders {
        let run = self.data_dir.join("run").join(id.to_string());
        let instance = self.data_dir.join("instances").join(id.to_string());
        UnitFolders {
            inward: run.join("in"),
            outward: run.join("out"),
            data: instance.join("data"),
            config: instance.join("config"),
            logs: instance,
        }
    }

    /// Makes what is missing, and gives everything the owner and mode it must have.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn prepare(&self, row: &Row) -> Result<(), Error> {
        let (this, row) = (self.clone(), row.clone());
        let (that, same) = (this.clone(), row.clone());
        // Each new folder is made to last, which is a wait for the disk: both sides wait at once.
        tokio::try_join!(blocking(move || this.make_run(&row)), blocking(move || that.make_instance(&same)))?;
        Ok(())
    }

    fn make_run(&self, row: &Row) -> Result<(), Error> {
        let id = row.id.to_string();
        // Sockets that are made in a folder with the set-group-id bit get the folder's group: each side may connect to
        // what the other made, and to nothing else.
        let uid = self.uid(row);
        let mode = if uid.is_some() { 0o2750 } else { 0o700 };
        self.run.create_dir(&id, 0o755, None)?;
        self.run.create_dir(format!("{id}/in"), mode, uid.map(|uid| (uid, SERVICES)))?;
        self.run.create_dir(format!("{id}/out"), mode, uid.map(|uid| (SERVICES, uid)))?;
        Ok(())
    }

    fn make_instance(&self, row: &Row) -> Result<(), Error> {
        let id = row.id.to_string();
        let owner = self.uid(row).map(|uid| (uid, uid));
        let config = if owner.is_some() { 0o500 } else { 0o700 };
        self.instances.create_dir(&id, 0o711, None)?;
        self.instances.create_dir(format!("{id}/data"), 0o700, owner)?;
        self.instances.create_dir(format!("{id}/config"), config, owner)?;
        Ok(())
    }

    /// What there is. A current configuration that says something else than this service would write now, since the
    /// operator's settings have changed or the file is damaged, counts as none.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn observe(&self, row: &Row) -> Result<Seen, Error> {
        let (this, row) = (self.clone(), row.clone());
        blocking(move || {
            let id = row.id;
            let complete =
                [(&this.run, "in"), (&this.run, "out"), (&this.instances, "data"), (&this.instances, "config")]
                    .into_iter()
                    .map(|(root, name)| root.dir(format!("{id}/{name}")))
                    .all(|dir| dir.is_ok());
            let config = match this.read(id, "config.json")? {
                Some(there) => {
                    let expected = this.config(&row, there.generation, there.provider.clone());
                    (serde_json::to_value(&there)? == serde_json::to_value(&expected)?).then_some(there.generation)
                }
                None => None,
            };
            Ok(Seen { complete, config })
        })
        .await
    }

    /// A configuration's text; `None` when it is not there or is not one.
    fn read(&self, id: InstanceId, name: &str) -> Result<Option<InstanceConfig>, Error> {
        match self.instances.read(format!("{id}/config/{name}"), MAX_CONFIG) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(beneath::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

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

    /// Removes staged configurations that nothing can go back to any more: older than the one in force, or refused.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn tidy(&self, row: &Row) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            let folder = format!("{}/config", row.id);
            for entry in this.instances.list(&folder, 1_000)? {
                let name = entry.name.to_string_lossy().into_owned();
                let staged = name.strip_prefix("config.").and_then(|rest| rest.strip_suffix(".json"));
                let Some(generation) = staged.and_then(|number| number.parse::<i64>().ok()) else { continue };
                let refused = generation <= row.refused_config_generation && generation > row.applied_config_generation;
                if generation < row.applied_config_generation || refused {
                    this.instances.remove_file(format!("{folder}/{name}"))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Gives the instance its one-time token.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn write_registration(&self, row: &Row, token: SecretString, expires_at_ms: i64) -> Result<(), Error> {
        use secrecy::ExposeSecret;
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            let initial_access_token = token.expose_secret().to_owned();
            let registration = Registration { initial_access_token, expires_at_ms };
            this.write(&row, "registration.json", &serde_json::to_vec(&registration)?)
        })
        .await
    }

    /// Takes the one-time token away once it has been spent.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn remove_registration(&self, id: InstanceId) -> Result<(), Error> {
        let this = self.clone();
        self.exclusive(id, move || Ok(this.instances.remove_file(format!("{id}/config/registration.json"))?)).await
    }

    fn write(&self, row: &Row, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let owner = self.uid(row).map(|uid| (uid, uid));
        Ok(self.instances.write_atomic(format!("{}/config/{name}", row.id), bytes, 0o400, owner)?)
    }

    fn config(&self, row: &Row, generation: i64, provider: Option<ProviderConfig>) -> InstanceConfig {
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

    /// Does it when no other such work for the instance is under way, unless the caller has gone by then. So work that
    /// was abandoned for something newer is over before the newer begins.
    async fn exclusive<T: Send + 'static>(
        &self,
        id: InstanceId,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (lock, abandoned) = (self.turns.of(id), CancellationToken::new());
        let _gone = abandoned.clone().drop_guard();
        blocking(move || {
            let _turn = lock.blocking_lock();
            if abandoned.is_cancelled() { Err(Error::Abandoned) } else { work() }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}
