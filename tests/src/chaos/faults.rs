//! What is broken, and how.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use bollard::{
    Docker,
    query_parameters::{
        ListContainersOptionsBuilder, PruneContainersOptionsBuilder, PruneImagesOptionsBuilder,
        PruneNetworksOptionsBuilder, RemoveContainerOptionsBuilder,
    },
};
use clock::Entropy;
use contracts::InstanceId;
use tokio::process::Command;

use super::free_bytes;
use crate::{engine::STACK_LABEL, stack::Stack, wait};

/// A thing that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to deploy-control.
    KillDeploy,
    /// The engine is asked to end, and started again.
    StopEngine,
    /// SIGKILL to the engine, which is started again.
    KillEngine,
    /// An instance's container is removed, running or not.
    RemoveContainer,
    /// An instance's sockets are removed, in and out.
    RemoveSockets,
    /// An instance's run directory is removed.
    RemoveRun,
    /// The data's file system is full for some time.
    FillDisk,
    /// `docker system prune`.
    Prune,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillDeploy => "kill_deploy_control",
            Self::StopEngine => "stop_engine",
            Self::KillEngine => "kill_engine",
            Self::RemoveContainer => "remove_container",
            Self::RemoveSockets => "remove_sockets",
            Self::RemoveRun => "remove_run_directory",
            Self::FillDisk => "fill_disk",
            Self::Prune => "prune",
        })
    }
}

impl Fault {
    /// One of them; those of which there are more ways to go wrong more often.
    pub fn draw(entropy: &Entropy) -> Self {
        match entropy.below(16) {
            0..5 => Self::KillDeploy,
            5 => Self::StopEngine,
            6..8 => Self::KillEngine,
            8..10 => Self::RemoveContainer,
            10 => Self::RemoveSockets,
            11..13 => Self::RemoveRun,
            13..15 => Self::FillDisk,
            _ => Self::Prune,
        }
    }
}

/// Nobody can write anything to speak of into less.
const FULL: u64 = 256 << 10;
/// So often it is tried to take all of it: what could be taken only in part counts to the file's length bit by bit.
const FILLS: usize = 64;

/// A file system that has no room; it has again when this is dropped or [freed](Filled::free).
pub struct Filled(PathBuf);

impl Filled {
    /// Fills the file system that this folder is on.
    ///
    /// # Errors
    /// When the file cannot be made at all.
    pub fn fill(folder: &Path) -> anyhow::Result<Self> {
        // Another may be there still.
        let this = Self(folder.join(format!(".filler-{}", Entropy::system().token())));
        let file = fs::File::options().create(true).append(true).open(&this.0)?;
        // Whatever is freed meanwhile is taken too, down to the last block: what somebody gave back just before comes late.
        for _ in 0..FILLS {
            let room = free_bytes(folder);
            if room < FULL {
                break;
            }
            let length = file.metadata()?.len();
            // Whatever of it there is not any more.
            let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, room);
        }
        ensure!(free_bytes(folder) < FULL, "{} bytes are still free", free_bytes(folder));
        Ok(this)
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn free(self) -> anyhow::Result<()> {
        fs::remove_file(&self.0).context("freeing the disk")
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Breaks it; what stays broken until it is given back. `victim` is whose things are removed.
///
/// # Errors
/// When the engine does not come back, or something could not be broken.
pub async fn strike(
    stack: &mut Stack,
    docker: &Docker,
    fault: Fault,
    victim: Option<InstanceId>,
) -> anyhow::Result<Option<Filled>> {
    let run = victim.map(|id| stack.data_dir().join("run").join(id.to_string()));
    match fault {
        Fault::KillDeploy => kill_process(docker, &stack.container("deploy-control")).await?,
        Fault::StopEngine | Fault::KillEngine => {
            let own = stack.own_engine().context("it has an engine of its own")?;
            match fault {
                Fault::StopEngine => own.stop().await?,
                _ => own.kill().await?,
            }
            own.start_again().await?;
        }
        Fault::RemoveContainer => {
            if let Some(id) = victim {
                remove_instance(docker, stack.prefix(), id).await?;
            }
        }
        Fault::RemoveSockets => {
            for socket in ["in/http.sock", "out/egress.sock", "out/identity.sock"] {
                let _ = run.as_ref().map(|run| fs::remove_file(run.join(socket)));
            }
        }
        Fault::RemoveRun => {
            let _ = run.map(fs::remove_dir_all);
        }
        Fault::FillDisk => return Filled::fill(&stack.data_dir()).map(Some),
        Fault::Prune => prune(docker).await?,
    }
    Ok(None)
}

/// What `docker system prune --force` does.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn prune(docker: &Docker) -> anyhow::Result<()> {
    docker.prune_containers(Some(PruneContainersOptionsBuilder::new().build())).await?;
    docker.prune_networks(Some(PruneNetworksOptionsBuilder::new().build())).await?;
    let dangling = HashMap::from([("dangling".to_owned(), vec!["true".to_owned()])]);
    docker.prune_images(Some(PruneImagesOptionsBuilder::new().filters(&dangling).build())).await?;
    Ok(())
}

/// Removes an instance's container, running or not.
///
/// # Errors
/// When the engine cannot be asked.
pub(super) async fn remove_instance(docker: &Docker, prefix: &str, id: InstanceId) -> anyhow::Result<()> {
    let filters = [("label".to_owned(), vec![format!("{STACK_LABEL}={prefix}"), format!("beaver.instance={id}")])];
    let all = ListContainersOptionsBuilder::new().all(true).filters(&filters.into_iter().collect()).build();
    for container in docker.list_containers(Some(all)).await? {
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        // It may be gone, or going, by the hand of somebody else.
        let _ = docker.remove_container(&container.id.unwrap_or_default(), Some(force)).await;
    }
    Ok(())
}

/// SIGKILL to a container's process, behind the engine's back: `docker kill` would count as somebody's wish.
///
/// # Errors
/// When the engine does not start it again.
pub async fn kill_process(docker: &Docker, container: &str) -> anyhow::Result<()> {
    // It may be coming up just now, after a fault before.
    let pid = wait::until(format!("{container} runs"), Duration::from_secs(60), || async {
        let state = docker.inspect_container(container, None).await?.state.context("no state")?;
        anyhow::Ok(state.pid.filter(|pid| *pid > 0 && state.running == Some(true)))
    })
    .await?;
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status().await?;
    ensure!(status.success(), "kill ended with {status}");
    wait::until("the engine starts it again", Duration::from_secs(60), || async {
        let now = docker.inspect_container(container, None).await?.state.context("no state")?;
        anyhow::Ok((now.running == Some(true) && now.pid != Some(pid)).then_some(()))
    })
    .await
}
