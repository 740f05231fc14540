//! The container engine of this host.

use std::{
    collections::HashMap,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use bollard::{
    API_DEFAULT_VERSION, Docker,
    container::LogOutput,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
    models::{ContainerSummary, ContainerSummaryStateEnum, ImageSummary, SystemInfo},
    query_parameters::{
        InspectNetworkOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, StopContainerOptionsBuilder,
    },
};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use crate::stack::Stack;

/// The oldest API that everything used here works with: Debian 12's engine has it.
pub const OLDEST_API: (usize, usize) = (1, 41);
/// The label on everything that belongs to a stack; its value is the prefix.
pub const STACK_LABEL: &str = "beaver.stack";
/// The label with an instance's id.
pub const INSTANCE_LABEL: &str = "beaver.instance";

const TIMEOUT_S: u64 = 120;

/// Why there is no engine to work with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// There is no socket where one is usually, and no setting names one: this host has no engine.
    None(PathBuf),
    /// The socket that a setting names is not there.
    NoSuchSocket(PathBuf),
    /// The socket may not be opened.
    Forbidden(PathBuf),
    /// Nobody listens on the socket, or what listens does not answer as an engine does.
    Silent(PathBuf, String),
    /// Its API is older than [`OLDEST_API`].
    TooOld(String),
}

/// The engine, and what the checks want to know of it.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
    /// Its version, as it says.
    pub version: String,
    /// Its API's version.
    pub api: String,
    /// What else it says of itself.
    pub about: SystemInfo,
}

/// Connects to the stack's engine and agrees on an API version.
///
/// # Errors
/// Each [`Absence`].
pub async fn connect(socket: PathBuf, named: bool) -> Result<Engine, Absence> {
    match UnixStream::connect(&socket) {
        Ok(_) => {}
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound if named => Absence::NoSuchSocket(socket),
                io::ErrorKind::NotFound => Absence::None(socket),
                io::ErrorKind::PermissionDenied => Absence::Forbidden(socket),
                _ => Absence::Silent(socket, error.to_string()),
            });
        }
    }
    let silent = |error: bollard::errors::Error| Absence::Silent(socket.clone(), error.to_string());
    let docker =
        Docker::connect_with_unix(&socket.display().to_string(), TIMEOUT_S, API_DEFAULT_VERSION).map_err(silent)?;
    // A socket that accepts and then says nothing must not hold up `up` for two minutes.
    let version = tokio::time::timeout(Duration::from_secs(15), docker.version())
        .await
        .map_err(|_| Absence::Silent(socket.clone(), "no answer in 15 s".into()))?
        .map_err(silent)?;
    let api = version.api_version.unwrap_or_default();
    if parse_version(&api).is_none_or(|v| v < OLDEST_API) {
        return Err(Absence::TooOld(api));
    }
    let docker = docker.negotiate_version().await.map_err(silent)?;
    let about = docker.info().await.map_err(silent)?;
    Ok(Engine { docker, version: version.version.unwrap_or_default(), api, about })
}

/// `1.41` or `1.29.2` as numbers: the first two.
pub fn parse_version(text: &str) -> Option<(usize, usize)> {
    let mut parts = text.trim().trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Engine {
    /// Where it keeps images and containers, on this host.
    pub fn root(&self) -> Option<PathBuf> {
        self.about.docker_root_dir.as_ref().map(PathBuf::from)
    }

    /// The API itself.
    pub fn api(&self) -> &Docker {
        &self.docker
    }

    /// Connects again to the engine that `up` found before.
    ///
    /// # Errors
    /// When it is away now.
    pub async fn of(stack: &Stack) -> anyhow::Result<Self> {
        let (socket, named) = stack.socket()?;
        connect(socket, named).await.map_err(|absence| anyhow::anyhow!("{}", crate::checks::absence_line(&absence)))
    }

    /// Containers with this label (`name` or `name=value`), running or not.
    pub async fn containers(&self, label: &str) -> anyhow::Result<Vec<ContainerSummary>> {
        self.list(HashMap::from([("label", vec![label])])).await
    }

    /// Containers that these filters of the engine's API match, running or not.
    ///
    /// # Errors
    /// When the engine does not list them.
    pub async fn labelled(&self, filters: &HashMap<&str, Vec<&str>>) -> anyhow::Result<Vec<ContainerSummary>> {
        self.list(filters.clone()).await
    }

    /// The container of exactly this name.
    pub async fn container(&self, name: &str) -> anyhow::Result<Option<ContainerSummary>> {
        let anchored = format!("^/?{name}$");
        Ok(self.list(HashMap::from([("name", vec![anchored.as_str()])])).await?.into_iter().next())
    }

    async fn list(&self, filters: HashMap<&str, Vec<&str>>) -> anyhow::Result<Vec<ContainerSummary>> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.context("the engine does not list containers")
    }

    /// The names of the containers on a network; none when there is no such network.
    pub async fn attached(&self, network: &str) -> anyhow::Result<Vec<String>> {
        let options = InspectNetworkOptionsBuilder::default().build();
        match self.docker.inspect_network(network, Some(options)).await {
            Ok(found) => {
                let names = found.containers.unwrap_or_default().into_values().filter_map(|container| container.name);
                Ok(names.collect())
            }
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("the engine does not tell of the network {network}")),
        }
    }

    /// The workspaces' containers of a stack: its label, and its data in them. Another checkout with the same prefix
    /// has other data.
    pub async fn instances(&self, stack: &Stack) -> anyhow::Result<Vec<ContainerSummary>> {
        let mine = format!("{STACK_LABEL}={}", stack.prefix);
        let filters = HashMap::from([("label", vec![mine.as_str(), INSTANCE_LABEL])]);
        let mut found = self.list(filters).await?;
        found.retain(|container| mounts_elsewhere(container, &stack.data_dir).is_none());
        Ok(found)
    }

    /// The stack's images: by label and under its names.
    pub async fn images(&self, prefix: &str, dangling_only: bool) -> anyhow::Result<Vec<ImageSummary>> {
        let label = format!("{STACK_LABEL}={prefix}");
        let mut filters = HashMap::from([("label", vec![label.as_str()])]);
        if dangling_only {
            filters.insert("dangling", vec!["true"]);
        }
        self.list_images(filters).await
    }

    /// Images, also somebody else's, that deploy-control gave a name to go back to.
    pub async fn releases(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let repository = format!("{prefix}/release");
        let found = self.list_images(HashMap::from([("reference", vec![repository.as_str()])])).await?;
        let names = found.into_iter().flat_map(|image| image.repo_tags);
        Ok(names.filter(|name| name.rsplit_once(':').is_some_and(|(of, _)| of == repository)).collect())
    }

    async fn list_images(&self, filters: HashMap<&str, Vec<&str>>) -> anyhow::Result<Vec<ImageSummary>> {
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        self.docker.list_images(Some(options)).await.context("the engine does not list images")
    }

    /// Removes an image; one that is in use or gone is left.
    pub async fn remove_image(&self, id: &str) {
        let options = RemoveImageOptionsBuilder::default().force(false).build();
        let _ = self.docker.remove_image(id, Some(options), None).await;
    }

    /// Stops a container; one that is stopped or gone is fine.
    pub async fn stop(&self, id: &str, grace_s: i32) -> anyhow::Result<()> {
        let options = StopContainerOptionsBuilder::default().t(grace_s).build();
        settled(self.docker.stop_container(id, Some(options)).await)
    }

    /// Restarts a container, which has as long to end as compose.yaml gives it.
    pub async fn restart(&self, id: &str) -> anyhow::Result<()> {
        Ok(self.docker.restart_container(id, None).await?)
    }

    /// Removes a container by force; one that is gone is fine.
    pub async fn remove(&self, id: &str) -> anyhow::Result<()> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        settled(self.docker.remove_container(id, Some(options)).await)
    }

    /// Asks a service's own health check, which its image brings along: `None` when it is ready, else what it says.
    ///
    /// # Errors
    /// When it cannot be run there.
    pub async fn unmet(&self, container: &str, service: &str) -> anyhow::Result<Option<String>> {
        let program = format!("/{service}");
        let (code, said) = self.exec(container, &[&program, "healthcheck"]).await?;
        Ok((code != 0).then(|| said.trim().trim_start_matches(&format!("{service}: ")).replace('\n', " ")))
    }

    /// Runs a command in a running container; its exit code, and what it said.
    async fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<(i64, String)> {
        let options = CreateExecOptions {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let exec = self.docker.create_exec(container, options).await?;
        let mut said = String::new();
        if let StartExecResults::Attached { mut output, .. } =
            self.docker.start_exec(&exec.id, None::<StartExecOptions>).await?
        {
            while let Some(piece) = output.next().await {
                said.push_str(&String::from_utf8_lossy(&piece?.into_bytes()));
            }
        }
        Ok((self.docker.inspect_exec(&exec.id).await?.exit_code.unwrap_or(-1), said))
    }

    /// Runs a command in a running container with a line on its standard input; its standard output.
    ///
    /// # Errors
    /// When it cannot be run, or ends with another code than 0: what it said.
    pub async fn exec_with_line(&self, container: &str, command: &[&str], line: &str) -> anyhow::Result<String> {
        let options = CreateExecOptions {
            cmd: Some(command.to_vec()),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let exec = self.docker.create_exec(container, options).await?;
        let started = self.docker.start_exec(&exec.id, None::<StartExecOptions>).await?;
        let StartExecResults::Attached { mut output, mut input } = started else {
            anyhow::bail!("the engine does not attach");
        };
        input.write_all(format!("{line}\n").as_bytes()).await?;
        input.flush().await?;
        let (mut said, mut complained) = (String::new(), String::new());
        while let Some(piece) = output.next().await {
            match piece? {
                LogOutput::StdErr { message } => complained.push_str(&String::from_utf8_lossy(&message)),
                piece => said.push_str(&String::from_utf8_lossy(&piece.into_bytes())),
            }
        }
        let code = self.docker.inspect_exec(&exec.id).await?.exit_code.unwrap_or(-1);
        anyhow::ensure!(code == 0, "it ended with {code}: {complained}");
        Ok(said)
    }

    /// The last lines a container wrote, at most `count`.
    pub async fn last_lines(&self, container: &str, count: usize) -> Vec<String> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&count.to_string()).build();
        let mut logs = self.docker.logs(container, Some(options));
        let mut text = String::new();
        while let Some(Ok(piece)) = logs.next().await {
            text.push_str(&String::from_utf8_lossy(&piece.into_bytes()));
        }
        text.lines().map(str::to_owned).collect()
    }
}

/// Whether the engine says the container runs.
pub fn is_running(container: &ContainerSummary) -> bool {
    container.state == Some(ContainerSummaryStateEnum::RUNNING)
}

/// A directory on this host that the container has under a name of ours, but that is not in `data_dir`.
pub fn mounts_elsewhere(container: &ContainerSummary, data_dir: &Path) -> Option<PathBuf> {
    let mounts = container.mounts.as_deref().unwrap_or_default();
    let sources = mounts.iter().filter_map(|mount| mount.source.as_deref()).map(Path::new);
    // A tmpfs has no source.
    let mut data = sources.filter(|source| source.is_absolute() && !source.ends_with("docker.sock"));
    data.find(|source| !source.starts_with(data_dir)).map(Path::to_owned)
}

/// A label of a container.
pub fn label_of<'a>(container: &'a ContainerSummary, label: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(label).map(String::as_str)
}

/// "It is that way already" is no failure.
fn settled(result: Result<(), bollard::errors::Error>) -> anyhow::Result<()> {
    match result {
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 304 | 404 | 409, .. }) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_on_other_data_is_not_ours() {
        let mount = |source: &str| bollard::models::MountPoint { source: Some(source.into()), ..Default::default() };
        let container = |sources: &[&str]| ContainerSummary {
            mounts: Some(sources.iter().map(|source| mount(source)).collect()),
            ..Default::default()
        };
        let data = Path::new("/srv/beaver");
        assert_eq!(mounts_elsewhere(&container(&["/srv/beaver/run", "/var/run/docker.sock", ""]), data), None);
        assert_eq!(mounts_elsewhere(&container(&[]), data), None);
        let other = container(&["/srv/beaver-2/authz"]);
        assert_eq!(mounts_elsewhere(&other, data), Some("/srv/beaver-2/authz".into()));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("1.41"), Some((1, 41)));
        assert_eq!(parse_version("v2.29.7-desktop.1"), Some((2, 29)));
        assert!(parse_version("1.9").unwrap() < OLDEST_API);
        assert_eq!(parse_version("unknown"), None);
    }

    #[tokio::test]
    async fn what_is_missing_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        assert_eq!(connect(path.clone(), false).await.err(), Some(Absence::None(path.clone())));
        assert_eq!(connect(path.clone(), true).await.err(), Some(Absence::NoSuchSocket(path.clone())));
        // A socket file that nobody listens on any more: the engine died. That is an error, not "no engine".
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(connect(path, false).await.err(), Some(Absence::Silent(..))));
    }
}
