//! The seam to what runs instances.
//!
//! An engine knows one thing an instance: its *unit* (a container, a process), found by the instance's id, whoever made it
//! and whenever. It never touches a unit that is not marked as this stack's. Every call may be repeated, and may be
//! abandoned half-way: the next observation tells what came of it.
//!
//! There is no `apply_config`: configuration is files in a folder that the unit has mounted ([`crate::folders`]), the same
//! for every engine on one host, and takes effect with the next start. An engine whose units run elsewhere will need it.

#[cfg(feature = "testing")]
pub mod conformance;
pub mod docker;
#[cfg(feature = "testing")]
pub mod faulty;
pub mod process;
#[cfg(feature = "testing")]
pub mod simulated;

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use contracts::{InstanceId, PlanName};
use futures_util::stream::BoxStream;

use crate::config::{EngineConfig, EngineKind, Limits};

/// What an instance's unit must be.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceSpec {
    /// The instance.
    pub id: InstanceId,
    /// The wish it is made for; a mark for people, no part of the fingerprint.
    pub generation: i64,
    /// The plan it is made by; a mark, no part of the fingerprint.
    pub plan: PlanName,
    /// What runs.
    pub program: Program,
    /// Which release of it is not to run; a way to choose, no part of the fingerprint.
    pub not: Option<NotRelease>,
    /// The user and group id it runs as; `None`: as this process does.
    pub uid: Option<u32>,
    /// Its folders.
    pub folders: UnitFolders,
    /// What it may use.
    pub limits: Limits,
    /// Environment, beyond what the engine itself must set.
    pub env: Vec<(String, String)>,
}

/// A release that an instance does not come up with. Releases are what an image's name leads to at the time, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRelease {
    /// Not this one; any other that the name leads to is fine.
    pub refused: String,
    /// In its place this one, while the engine still has it.
    pub instead: String,
}

/// What an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Beaver's own workspace, which the engine knows.
    Workspace,
    /// Another one's image.
    Image(ImageProgram),
}

/// An image that knows nothing of Beaver: it runs behind the shim, and sees neither its configuration nor more of Beaver
/// than its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageProgram {
    /// The image's name.
    pub image: String,
    /// The program and its arguments; empty: the image's own.
    pub command: Vec<String>,
    /// The port on its loopback that it listens on.
    pub port: u16,
}

/// An instance's folders, as absolute paths outside of its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFolders {
    /// Where it puts its socket.
    pub inward: PathBuf,
    /// Where it finds its ways out; read-only to it.
    pub outward: PathBuf,
    /// Its data.
    pub data: PathBuf,
    /// Its configuration; read-only to it.
    pub config: PathBuf,
    /// Where an engine without logs of its own keeps them.
    pub logs: PathBuf,
}

/// What a unit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitState {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Frozen: its memory is there, it gets no time.
    Paused,
    /// Ended, by itself or not.
    Exited,
    /// Good for nothing but being removed.
    Broken,
}

/// A unit, as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Whose it is.
    pub id: InstanceId,
    /// What it does.
    pub state: UnitState,
    /// What it was made from.
    pub fingerprint: String,
    /// The plan that it was made by.
    pub plan: PlanName,
    /// The release that it runs, by an engine that knows of such.
    pub release: Option<String>,
    /// Which run of it this is: another after each start. Only [`Engine::observe`] says it, and only while it is up.
    pub run: Option<String>,
}

impl Unit {
    /// Whether it holds memory: it runs, or is frozen.
    pub fn is_up(&self) -> bool {
        matches!(self.state, UnitState::Running | UnitState::Paused)
    }
}

/// Something that may have changed. Always only a hint: what is true is observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint(pub InstanceId);

/// What an engine can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name: `docker`, `process`.
    pub name: &'static str,
    /// Its own version, where it has one.
    pub version: String,
    /// Whether an instance is kept from the host and from other instances.
    pub isolates: bool,
    /// Whether it can freeze a unit.
    pub pauses: bool,
}

/// How the router and deploy-control's checks reach an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket at this path. The instance owns the folder: open it through `beneath`.
    Socket(PathBuf),
}

/// What came of passing a byte through a unit's sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// It passed, both ways.
    Free,
    /// It did not: why, and what cures it, in words fit for an operator.
    Blocked(String),
}

/// Why an engine did not do it. The chain of causes is kept.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {attempted}")]
pub struct EngineError {
    /// Which kind.
    pub kind: ErrorKind,
    /// What was tried.
    pub attempted: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of failure that callers act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such unit; from `ensure` and `fingerprint`: no such image or program.
    NotFound,
    /// Something else has the name, or a unit made from another specification.
    Conflict,
    /// The host has no room for it.
    Capacity,
    /// The engine will not do this, however often it is asked.
    Rejected,
    /// The engine cannot be asked.
    Unavailable,
}

impl ErrorKind {
    /// As metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Capacity => "capacity",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Capacity => "no capacity",
            Self::Rejected => "rejected",
            Self::Unavailable => "engine unavailable",
        })
    }
}

impl EngineError {
    /// A failure of this kind, while trying this.
    pub fn new(kind: ErrorKind, attempted: impl Into<String>) -> Self {
        Self { kind, attempted: attempted.into(), source: None }
    }

    /// The same, with its cause.
    #[must_use]
    pub fn because(self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(cause.into()), ..self }
    }

    /// Counts it, whatever follows from it.
    pub(crate) fn count(&self) {
        metrics::counter!("beaver_engine_errors_total", "kind" => self.kind.word()).increment(1);
    }
}

/// What runs instances.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What it can do. Asks the engine.
    ///
    /// # Errors
    ///
    /// `Unavailable`; `Rejected` when it is too old.
    async fn capabilities(&self) -> Result<Capabilities, EngineError>;

    /// What a unit of this specification would be marked with: changes with anything it is made from.
    ///
    /// # Errors
    ///
    /// `NotFound` when the image is missing; `Unavailable`.
    async fn fingerprint(&self, spec: &InstanceSpec) -> Result<String, EngineError>;

    /// The release that a unit of this specification would be made from; `None` from an engine that knows of none.
    ///
    /// # Errors
    ///
    /// As [`Engine::fingerprint`].
    async fn release(&self, _spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        Ok(None)
    }

    /// Keeps this release, which nothing may be made from any more, from being removed as unused: somebody may have to go
    /// back to it. Fine when it is gone already.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn keep_release(&self, _release: &str) -> Result<(), EngineError> {
        Ok(())
    }

    /// Keeps these releases, and lets go of the others that were kept.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn keep_releases(&self, _releases: &BTreeSet<String>) -> Result<(), EngineError> {
        Ok(())
    }

    /// An instance's unit; `None` when it has none.
    ///
    /// # Errors
    ///
    /// `Conflict` when something that is not ours has its name; `Unavailable`.
    async fn observe(&self, id: InstanceId) -> Result<Option<Unit>, EngineError>;

    /// Every unit of this stack, without its run.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn list(&self) -> Result<Vec<Unit>, EngineError>;

    /// Makes the unit, not started; fine when there is one of the same fingerprint.
    ///
    /// # Errors
    ///
    /// `NotFound` when the image is missing; `Conflict` when there is another one; the others.
    async fn ensure(&self, spec: &InstanceSpec) -> Result<(), EngineError>;

    /// Starts it, or lets it go on when it is paused; fine when it runs.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none; the others.
    async fn start(&self, id: InstanceId) -> Result<(), EngineError>;

    /// Freezes it as it is, until [`Engine::start`]; fine when it is frozen.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none; `Rejected` when it is not up, or this engine cannot; the others.
    async fn pause(&self, id: InstanceId) -> Result<(), EngineError>;

    /// Stops it, frozen or not: asks, and after a while does not ask any more. Fine when it is down or there is none.
    ///
    /// # Errors
    ///
    /// `Conflict` when it is not ours; `Unavailable`.
    async fn stop(&self, id: InstanceId) -> Result<(), EngineError>;

    /// What its program wrote last, some lines of it; nothing where that is not kept, or there is none.
    ///
    /// # Errors
    ///
    /// `Conflict` when it is not ours; `Unavailable`.
    async fn last_lines(&self, _id: InstanceId) -> Result<String, EngineError> {
        Ok(String::new())
    }

    /// Removes it, running or not; its folders stay. Fine when there is none.
    ///
    /// # Errors
    ///
    /// `Conflict` when it is not ours; `Unavailable`.
    async fn remove(&self, id: InstanceId) -> Result<(), EngineError>;

    /// Whether it runs images that a plan names.
    fn runs_images(&self) -> bool {
        true
    }

    /// By how much a unit's user id is another one outside of it.
    ///
    /// # Errors
    ///
    /// `Unavailable`; `Rejected` when it cannot be told.
    async fn id_shift(&self) -> Result<u32, EngineError> {
        Ok(0)
    }

    /// What it depends on whether the sockets in a unit's folders are reached from both sides of its border; `None` where
    /// there is no border. With another answer than before it is to be tried again.
    ///
    /// # Errors
    ///
    /// `NotFound` when the image is missing; `Unavailable`.
    async fn border(&self, _spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        Ok(None)
    }

    /// Passes a byte through a socket in each of the two folders of this specification, which is no instance's, with a unit
    /// that is like an instance's and no instance's either. [`Engine::end_passage`] removes it.
    ///
    /// # Errors
    ///
    /// Of an engine that does not run such a unit.
    async fn try_passage(&self, _spec: &InstanceSpec) -> Result<Passage, EngineError> {
        Ok(Passage::Free)
    }

    /// Removes whatever a try made, this one or one that was killed.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn end_passage(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Where an instance of this specification answers.
    fn endpoint(&self, spec: &InstanceSpec) -> Endpoint {
        Endpoint::Socket(spec.folders.inward.join("http.sock"))
    }

    /// Hints, until the engine is lost; then the stream ends.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    async fn watch(&self) -> Result<BoxStream<'static, Hint>, EngineError>;

    /// Lets go of everything that must not outlive this service.
    async fn close(&self) {}
}

/// A release as people are told of it: an image's id, shortened as Docker does.
pub(crate) fn short_release(release: &str) -> &str {
    let id = release.strip_prefix("sha256:").unwrap_or(release);
    id.get(..12).unwrap_or(id)
}

/// The engine that the settings ask for.
pub fn from_config(config: &EngineConfig) -> Arc<dyn Engine> {
    match config.kind {
        EngineKind::Docker => Arc::new(docker::Docker::new(config)),
        EngineKind::Process => Arc::new(process::Processes::new(config)),
    }
}
