//! The folders and files of instances: `run/<id>/{in,out}` and `instances/<id>/{data,config}`.
//!
//! `in` and `data` belong to the instance, which may put anything there: they are made and given their owner here, with
//! whatever a restored back-up brought, and what is in them is not read. `config` is written here alone and read-only to
//! the instance. All of it goes through [`beneath`], which follows no link and leaves no folder.
//!
//! With the docker engine (as root) everything has the owner it needs; with the process engine everything belongs to the
//! one user there is.

mod archives;
mod configs;
mod files;
mod kinds;
mod tombstone;

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use beneath::Root;
use contracts::{InstanceId, instance::DiskNotice};
use tokio_util::sync::CancellationToken;

use crate::{
    config::InstanceSettings,
    engine::UnitFolders,
    registry::Row,
    strikes::{self, Strikes},
    turns::Turns,
};
use files::Files;
use kinds::{Folder, kinds};

/// The user and group of the router and the other services.
const SERVICES: u32 = 10_001;
/// The largest `config.json` that is read back, in bytes.
const MAX_CONFIG: u64 = 64 << 10;
/// The folder in `run/` of a probe; no instance's id is that.
const PROBE: &str = ".probe";
/// With less than this free, in bytes, a disk is full: a database's next page or two may not fit.
const ANY_ROOM: u64 = 128 << 10;
/// The file that tells an instance that its data is over its limit.
const DISK_NOTICE: &str = "disk.json";
/// The mode of every file in `config`.
const CONFIG_MODE: u32 = 0o400;
/// User ids that may be instances': those of people, the system and our services are below. Above them the kernel keeps some.
const UIDS: std::ops::Range<u32> = 10_100..2_100_000_000;
/// How many of the entries directly in an instance's data are looked at each time.
const LOOKED_AT: usize = 256;
/// The most files that are given to an instance in one go.
const MAX_GIVEN: u64 = 20_000_000;
/// The most names in an instance's data that are measured: with more, it is over any limit.
const MAX_MEASURED: u64 = 1_000_000;
/// The most instances there can be folders of.
const MAX_INSTANCES: usize = 1_000_000;

/// Why a folder or file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("instance files")]
    Files(#[from] beneath::Error),
    /// The file system does not keep owners or modes.
    #[error("the folder {0} does not keep the owner and mode that it is given")]
    Ownerless(String),
    /// A configuration that should be there is not, or cannot be read.
    #[error("configuration {0} is not there any more")]
    Lost(i64),
    /// An archive's data that should be there is not.
    #[error("the data of archive {0} is not there any more")]
    ArchiveLost(i64),
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

impl Error {
    /// Whether the disk is what does not work: full, read-only or failing. It passes, and is nobody's fault.
    pub fn is_of_disk(&self) -> bool {
        use rustix::io::Errno;
        let Self::Files(beneath::Error::Io { source, .. }) = self else { return false };
        let errno = Errno::from_io_error(source);
        errno.is_some_and(|errno| [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO].contains(&errno))
    }
}

/// What there is of an instance's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether all four are there.
    pub complete: bool,
    /// Whether those that are there have the owner and the rights that they need.
    pub owned: bool,
    /// The generation of the current `config.json`.
    pub config: Option<i64>,
    /// The generation that its `config.json` names, whether that counts or not.
    pub written: Option<i64>,
    /// Whether there is no `config.json`, not even one that does not count.
    pub blank: bool,
    /// The time on its tombstone.
    pub tombstone: Option<i64>,
    /// Whether there is anything under the name of its socket.
    pub socket: bool,
}

/// Whose folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whose {
    /// The instance, which there may not be yet.
    pub id: InstanceId,
    /// Its user id.
    pub uid: u32,
}

impl From<&Row> for Whose {
    fn from(row: &Row) -> Self {
        Self { id: row.id, uid: row.uid }
    }
}

/// How much an instance's data takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUse {
    /// So many bytes on disk.
    Bytes(u64),
    /// Too many files, or too deep, to be counted.
    Uncounted,
}

impl DiskUse {
    /// The bytes, where they could be counted.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Uncounted => None,
        }
    }
}

/// The folders of all instances.
#[derive(Debug, Clone)]
pub struct Folders {
    data_dir: Arc<Path>,
    run: Files,
    instances: Files,
    /// Whether each instance's folders are given to its own user; else they stay this process's.
    own_users: bool,
    /// By how much an instance's user id is another one on this host; see [`Folders::shift_ids`].
    shift: Arc<AtomicU32>,
    settings: Arc<InstanceSettings>,
    turns: Turns,
}

impl Folders {
    /// Makes `run/` and `instances/` where they are missing. With `own_users`, for which this process must
    /// be root, each instance's folders belong to its own user.
    ///
    /// # Errors
    ///
    /// When the data directory is missing or cannot be written.
    pub fn open(data_dir: &Path, own_users: bool, settings: InstanceSettings) -> Result<Self, Error> {
        let root = Root::open(data_dir)?;
        // The router passes through `run`; nobody but this service has anything to do in `instances`.
        root.create_dir("run", 0o755, None)?;
        root.create_dir("instances", 0o711, None)?;
        Ok(Self {
            data_dir: data_dir.into(),
            run: Files::new(root.dir("run")?),
            instances: Files::new(root.dir("instances")?),
            own_users,
            shift: Arc::default(),
            settings: Arc::new(settings),
            turns: Turns::default(),
        })
    }

    /// The same, with a seam at which tests strike.
    #[must_use]
    pub fn with_strikes(self, strikes: Strikes) -> Self {
        let instances = self.instances.with_strikes(strikes.clone());
        Self { run: self.run.with_strikes(strikes), instances, ..self }
    }

    /// The instance's user id; `None` when it runs as this process does.
    pub fn uid(&self, whose: impl Into<Whose>) -> Option<u32> {
        self.own_users.then_some(whose.into().uid)
    }

    /// Gives folders to instances' user ids as they are on this host: so much more than in their containers.
    pub fn shift_ids(&self, shift: u32) {
        self.shift.store(shift, Ordering::SeqCst);
    }

    /// The user and group id on this host of the instance's files.
    fn owner(&self, whose: impl Into<Whose>) -> Option<u32> {
        self.uid(whose).map(|uid| self.on_host(uid))
    }

    fn on_host(&self, uid: u32) -> u32 {
        uid.saturating_add(self.shift.load(Ordering::SeqCst))
    }

    /// The instance's own origin.
    pub fn origin(&self, row: &Row) -> String {
        self.settings.public.workspace_origin(row.slug.as_str())
    }

    /// The greatest user id of an instance whose folders are here, whether or not anybody else knows of it; `None` when
    /// there are none, or they have no users of their own.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn greatest_uid(&self) -> Result<Option<u32>, Error> {
        if !self.own_users {
            return Ok(None);
        }
        let this = self.clone();
        blocking(move || {
            let mut greatest = None;
            for entry in this.instances.list("", MAX_INSTANCES)? {
                match this.instances.meta(Path::new(&entry.name).join("data")) {
                    Ok(meta) if UIDS.contains(&meta.owner.0) => {
                        let shifted = meta.owner.0.checked_sub(this.shift.load(Ordering::SeqCst));
                        // One from before ids were shifted is smaller, and is what it is.
                        let uid = shifted.filter(|uid| UIDS.contains(uid)).unwrap_or(meta.owner.0);
                        greatest = greatest.max(Some(uid));
                    }
                    // Nobody's: not there, or still root's.
                    Ok(_) | Err(beneath::Error::NotFound { .. } | beneath::Error::Refused { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(greatest)
        })
        .await
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

    /// Makes what is missing, and gives everything the owner and mode it must have: also all of the instance's data, where
    /// that was put there by somebody else, as when a back-up is restored.
    ///
    /// # Errors
    ///
    /// [`Error::Files`]; [`Error::Ownerless`].
    pub async fn prepare(&self, whose: impl Into<Whose>) -> Result<(), Error> {
        let whose = whose.into();
        let (one, other, this) = (self.clone(), self.clone(), self.clone());
        // Each new folder is made to last, which is a wait for the disk: both sides wait at once.
        let run = blocking(move || one.make_run(whose));
        let instance = blocking(move || {
            other.make_instance(whose)?;
            other.give_data(whose)
        });
        tokio::try_join!(run, instance)?;
        blocking(move || match this.folders(whose).find(|folder| !folder.is_as_it_must()) {
            Some(folder) => Err(Error::Ownerless(folder.path)),
            None => Ok(()),
        })
        .await
    }

    /// Makes the folders of a probe, which is no instance's, anew, for this user; all of them where sockets are.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn make_probe(&self, uid: u32) -> Result<UnitFolders, Error> {
        let this = self.clone();
        blocking(move || {
            this.run.remove_tree(PROBE)?;
            this.run.create_dir(PROBE, 0o755, None)?;
            for (name, mode, owner, _) in kinds(this.own_users.then_some(this.on_host(uid))) {
                this.run.create_dir(format!("{PROBE}/{name}"), mode, owner)?;
            }
            let at = |name| this.data_dir.join("run").join(PROBE).join(name);
            let (inward, outward) = (at("in"), at("out"));
            Ok(UnitFolders { inward, outward, data: at("data"), config: at("config"), logs: at("") })
        })
        .await
    }

    /// Removes what [`Folders::make_probe`] made.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn remove_probe(&self) -> Result<(), Error> {
        let this = self.clone();
        blocking(move || Ok(this.run.remove_tree(PROBE)?)).await
    }

    /// The four folders, and what each must be.
    fn folders(&self, whose: impl Into<Whose>) -> impl Iterator<Item = Folder<'_>> {
        let whose = whose.into();
        let id = whose.id;
        kinds(self.owner(whose)).into_iter().map(move |(name, mode, owner, theirs)| Folder {
            root: if ["in", "out"].contains(&name) { &self.run } else { &self.instances },
            path: format!("{id}/{name}"),
            mode,
            owner,
            theirs,
        })
    }

    fn make_run(&self, whose: Whose) -> Result<(), Error> {
        self.run.create_dir(whose.id.to_string(), 0o755, None)?;
        self.make(whose, &self.run)
    }

    fn make_instance(&self, whose: impl Into<Whose>) -> Result<(), Error> {
        let whose = whose.into();
        self.instances.create_dir(whose.id.to_string(), 0o711, None)?;
        self.make(whose, &self.instances)
    }

    /// Makes those of the four folders that are beneath this.
    fn make(&self, whose: Whose, root: &Files) -> Result<(), Error> {
        for folder in self.folders(whose).filter(|folder| std::ptr::eq(folder.root, root)) {
            folder.root.create_dir(&folder.path, folder.mode, folder.owner)?;
        }
        Ok(())
    }

    /// Gives the instance all of its data, when a look at it finds something that is another's.
    fn give_data(&self, whose: Whose) -> Result<(), Error> {
        let Some(uid) = self.owner(whose) else { return Ok(()) };
        let (path, owner) = (format!("{}/data", whose.id), (uid, uid));
        if !self.instances.is_owned_by(&path, owner, LOOKED_AT)? {
            tracing::info!(instance = %whose.id, uid, "its data is somebody else's, as after a restore; it is given back");
            self.instances.give_tree(&path, owner, MAX_GIVEN)?;
        }
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
            let looks: Vec<_> = this.folders(&row).map(|folder| folder.look()).collect();
            let complete = looks.iter().all(Option::is_some);
            let owned = looks.iter().all(|is_as_it_must| is_as_it_must.unwrap_or(true)) && this.owns_data(&row)?;
            let current = this.read(id, "config.json")?;
            let written = current.as_ref().map(|there| there.generation);
            let config = match current {
                Some(_) if !this.can_read_config(&row)? => None,
                Some(there) => {
                    let expected = this.config(&row, there.generation, there.provider.clone());
                    (serde_json::to_vec(&there)? == serde_json::to_vec(&expected)?).then_some(there.generation)
                }
                None => None,
            };
            let blank = written.is_none()
                && match this.instances.meta(format!("{id}/config/config.json")) {
                    Ok(_) => false,
                    Err(beneath::Error::NotFound { .. }) => true,
                    Err(error) => return Err(error.into()),
                };
            Ok(Seen {
                complete,
                owned,
                config,
                written,
                blank,
                tombstone: this.tombstone(id)?,
                socket: this.has_socket(id),
            })
        })
        .await
    }

    /// Whether there is, or was meant to be, somebody's configuration under this id: what is made ahead has none.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn is_somebodys(&self, id: InstanceId) -> Result<bool, Error> {
        let this = self.clone();
        blocking(move || match this.instances.list(format!("{id}/config"), 1_000) {
            Ok(entries) => Ok(entries.iter().any(|entry| entry.name.to_string_lossy().starts_with("config."))),
            Err(beneath::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// The generation that its `config.json` names; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn written_config(&self, id: InstanceId) -> Result<Option<i64>, Error> {
        let this = self.clone();
        blocking(move || Ok(this.read(id, "config.json")?.map(|there| there.generation))).await
    }

    /// Whether there is anything under the name of the instance's socket.
    pub fn has_socket(&self, id: InstanceId) -> bool {
        self.run.meta(format!("{id}/in/{}", door::HTTP)).is_ok()
    }

    /// Whether a process of the instance takes connections.
    pub fn is_listening(&self, id: InstanceId) -> bool {
        self.is_there(id, door::HTTP)
    }

    /// Asks whichever process of the instance runs to end, by its own door; whether there was one. For those that the engine
    /// does not know of.
    pub fn ask_to_end(&self, id: InstanceId) -> bool {
        self.is_there(id, door::END)
    }

    /// Takes an instance's sockets away from one that is not up. Nothing depends on it.
    pub async fn close_door(&self, id: InstanceId) {
        let this = self.clone();
        let closed = blocking(move || {
            for socket in [door::END, door::HTTP] {
                this.run.remove_file(format!("{id}/in/{socket}"))?;
            }
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::info!(instance = %id, error = crate::chain(&error), "its sockets stay");
        }
    }

    fn is_there(&self, id: InstanceId, socket: &str) -> bool {
        // Busy: so many have knocked already.
        matches!(self.run.connect(format!("{id}/in/{socket}")), Ok(_) | Err(beneath::Error::Busy { .. }))
    }

    /// Those of these instances that miss a folder or, as all of them once had one, their socket.
    ///
    /// # Errors
    ///
    /// [`Error::Ending`].
    pub async fn bereft(&self, rows: Vec<Row>) -> Result<HashSet<InstanceId>, Error> {
        let this = self.clone();
        blocking(move || {
            let lost = |row: &&Row| !this.has_socket(row.id) || !this.folders(*row).all(|folder| folder.exists());
            Ok(rows.iter().filter(lost).map(|row| row.id).collect())
        })
        .await
    }

    /// Whether a look at the instance's data finds nothing that is another's.
    fn owns_data(&self, row: &Row) -> Result<bool, Error> {
        let Some(uid) = self.owner(row) else { return Ok(true) };
        match self.instances.is_owned_by(format!("{}/data", row.id), (uid, uid), LOOKED_AT) {
            // Then there is nothing to give.
            Err(beneath::Error::NotFound { .. } | beneath::Error::Refused { .. }) => Ok(true),
            looked => Ok(looked?),
        }
    }

    /// Removes all of an instance's folders, with whatever is in them; links are removed, not followed. That they are not
    /// there is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn remove(&self, id: InstanceId) -> Result<(), Error> {
        let this = self.clone();
        self.exclusive(id, move || {
            this.run.remove_tree(id.to_string())?;
            Ok(this.instances.remove_tree(id.to_string())?)
        })
        .await
    }

    /// Whether nobody can write anything: the disk is full or read-only.
    pub fn is_disk_out(&self) -> bool {
        let read_only = |room: rustix::fs::StatVfs| room.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        let found = rustix::fs::statvfs(self.data_dir.join("instances"));
        found.is_ok_and(read_only) || self.free_bytes().is_some_and(|free| free < ANY_ROOM)
    }

    /// How much room there is on the disk; `None` when that cannot be told.
    pub fn free_bytes(&self) -> Option<u64> {
        let room = rustix::fs::statvfs(self.data_dir.join("instances")).ok()?;
        Some(room.f_bavail.saturating_mul(room.f_frsize))
    }

    /// How much an instance takes in the two folders it may write to; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn disk_use(&self, id: InstanceId) -> Result<Option<DiskUse>, Error> {
        let this = self.clone();
        blocking(move || {
            let mut sum = None;
            for (root, folder) in [(&this.instances, "data"), (&this.run, "in")] {
                match root.size(format!("{id}/{folder}"), MAX_MEASURED) {
                    Ok(bytes) => sum = Some(sum.unwrap_or(0) + bytes),
                    Err(beneath::Error::TooLarge { .. }) => return Ok(Some(DiskUse::Uncounted)),
                    Err(beneath::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(sum.map(DiskUse::Bytes))
        })
        .await
    }

    /// Whether the instance is told, or may be told, that its data is over its limit.
    pub fn has_disk_notice(&self, id: InstanceId) -> bool {
        !matches!(self.instances.meta(format!("{id}/config/{DISK_NOTICE}")), Err(beneath::Error::NotFound { .. }))
    }

    /// Tells the instance that its data is over its limit, or not any more.
    ///
    /// # Errors
    ///
    /// [`Error::Files`].
    pub async fn write_disk_notice(&self, row: &Row, notice: Option<DiskNotice>) -> Result<(), Error> {
        let (this, row, instance) = (self.clone(), row.clone(), row.id);
        self.exclusive(instance, move || {
            let path = format!("{}/config/{DISK_NOTICE}", row.id);
            let Some(notice) = notice else { return Ok(this.instances.remove_file(path)?) };
            let text = serde_json::to_vec(&notice)?;
            match this.instances.read(&path, MAX_CONFIG) {
                Ok(there) if there == text => Ok(()),
                _ => this.write(&row, DISK_NOTICE, &text),
            }
        })
        .await
    }

    fn write(&self, row: &Row, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let owner = self.owner(row).map(|uid| (uid, uid));
        Ok(self.instances.write_atomic(format!("{}/config/{name}", row.id), bytes, CONFIG_MODE, owner)?)
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
    tokio::task::spawn_blocking(strikes::carried(work)).await?
}
