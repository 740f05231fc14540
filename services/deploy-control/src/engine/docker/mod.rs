//! Containers, through Docker's API on its socket.

pub mod about;
mod image;
mod probe;
mod releases;
mod shim;
mod spec;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bollard::{
    API_DEFAULT_VERSION,
    container::LogOutput,
    errors::Error as ApiError,
    models::{ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummaryStateEnum, EventMessage},
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    },
};
use contracts::{InstanceId, PlanName};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use tokio::sync::{Mutex, OnceCell};

use super::{Capabilities, Engine, EngineError, ErrorKind, Hint, InstanceSpec, Passage, Program, Unit, UnitState};
use crate::config::EngineConfig;
use image::{Image, Images};
use spec::{LABEL_GENERATION, LABEL_INSTANCE, LABEL_PLAN, LABEL_SPEC, LABEL_STACK, STOP_TIMEOUT_S};

/// The oldest API we speak: Debian 12's engine.
const MIN_API: (usize, usize) = (1, 41);
/// How long a question may take.
const ASK: Duration = Duration::from_secs(15);
/// How long making or starting a container may take on a busy host.
const ACT: Duration = Duration::from_secs(60);
/// The wait for a container that is being made.
const BEING_MADE: Duration = Duration::from_millis(20);

/// The Docker engine.
pub struct Docker {
    socket: PathBuf,
    prefix: String,
    /// The network that instances are on; none as a rule.
    network: Option<String>,
    image: String,
    /// The shim's file, and where it is put for containers.
    shim: (PathBuf, PathBuf),
    client: OnceCell<bollard::Docker>,
    images: Mutex<Images>,
    shim_put: OnceCell<PathBuf>,
    /// By how much ids are shifted.
    shift: OnceCell<u32>,
    /// How long a byte may take through a probe.
    passage_timeout: Duration,
}

impl Docker {
    /// The engine behind the configured socket. Nothing is asked yet.
    pub fn new(config: &EngineConfig) -> Self {
        Self {
            socket: config.docker_socket.clone(),
            prefix: config.prefix.clone(),
            network: config.network.clone(),
            image: config.image.clone(),
            shim: (config.shim.clone(), config.shim_folder.clone()),
            client: OnceCell::new(),
            images: Mutex::default(),
            shim_put: OnceCell::new(),
            shift: OnceCell::new(),
            passage_timeout: config.passage_timeout,
        }
    }

    /// The client, its API version agreed on. It connects anew for each call, so it outlives a restart of the engine.
    async fn client(&self) -> Result<&bollard::Docker, EngineError> {
        const TRIED: &str = "connecting to Docker";
        let connect = async {
            let path = self.socket.to_string_lossy();
            let client = bollard::Docker::connect_with_unix(&path, ACT.as_secs(), API_DEFAULT_VERSION)
                .map_err(|error| failed(TRIED, error))?;
            let client = within(ASK, TRIED, client.negotiate_version()).await?;
            let version = client.client_version();
            if (version.major_version, version.minor_version) < MIN_API {
                let said = format!("Docker's API is {version}; 1.41 (Docker 20.10) is the oldest that will do");
                return Err(EngineError::new(ErrorKind::Rejected, said));
            }
            Ok(client)
        };
        self.client.get_or_try_init(|| connect).await
    }

    fn name(&self, id: InstanceId) -> String {
        format!("{}-{id}", self.prefix)
    }

    async fn image(&self, name: &str) -> Result<Image, EngineError> {
        // Held while asking, so that ten at once ask once.
        let mut known = self.images.lock().await;
        if let Some(image) = known.get(name) {
            return Ok(image);
        }
        let tried = format!("looking for the image {name}");
        let image = within(ASK, &tried, self.client().await?.inspect_image(name)).await?.into();
        known.keep(name, &image);
        Ok(image)
    }

    /// Where the shim is for containers.
    async fn shim(&self) -> Result<&PathBuf, EngineError> {
        let put = async {
            let (program, folder) = self.shim.clone();
            let failed = || EngineError::new(ErrorKind::Rejected, "putting the shim where containers find it");
            let put = tokio::task::spawn_blocking(move || shim::put(&program, &folder)).await;
            put.map_err(|error| failed().because(error))?.map_err(|error| failed().because(error))
        };
        self.shim_put.get_or_try_init(|| put).await
    }

    /// The container with the instance's name; an error when it is not ours.
    async fn inspect(&self, id: InstanceId) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let name = self.name(id);
        let tried = format!("inspecting {name}");
        let found = match within(ASK, &tried, self.client().await?.inspect_container(&name, None)).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
        let label = |key| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        if label(LABEL_STACK) != Some(&self.prefix) || label(LABEL_INSTANCE) != Some(&id.to_string()) {
            return Err(EngineError::new(ErrorKind::Conflict, format!("{name} is a container that is not ours")));
        }
        Ok(Some(found))
    }

    async fn network_id(&self, name: &str) -> Result<String, EngineError> {
        let tried = format!("looking for the network {name}");
        match within(ASK, &tried, self.client().await?.inspect_network(name, None)).await {
            Ok(found) => Ok(found.id.unwrap_or_default()),
            // No image is missing.
            Err(error) if error.kind == ErrorKind::NotFound => {
                Err(EngineError::new(ErrorKind::Rejected, tried).because(error))
            }
            Err(error) => Err(error),
        }
    }

    /// The image to use, and by what name: the newest, unless the instance went back from that.
    async fn image_of<'a>(&'a self, spec: &'a InstanceSpec) -> Result<(&'a str, Image), EngineError> {
        let name = match &spec.program {
            Program::Workspace => &self.image,
            Program::Image(program) => &program.image,
        };
        let newest = self.image(name).await?;
        let Some(not) = spec.not.as_ref().filter(|not| not.refused == newest.id) else { return Ok((name, newest)) };
        match self.image(&not.instead).await {
            Ok(image) => Ok((&not.instead, image)),
            Err(error) if error.kind == ErrorKind::NotFound => {
                tracing::warn!(instance = %spec.id, "the image that it went back to was removed; it gets the newest again");
                Ok((name, newest))
            }
            Err(error) => Err(error),
        }
    }

    async fn body(&self, spec: &InstanceSpec) -> Result<(bollard::models::ContainerCreateBody, String), EngineError> {
        let (name, image) = self.image_of(spec).await?;
        let mut body = spec::container(spec, &self.prefix, self.network.as_deref());
        if let Program::Image(program) = &spec.program {
            spec::behind_the_shim(&mut body, program, &image, self.shim().await?, spec.limits.tmp_bytes);
        }
        let made_from = match &self.network {
            // A container finds a network by its id: one that was made anew under the name is another.
            Some(network) => format!("{} {}", image.id, self.network_id(network).await?),
            None => image.id,
        };
        let fingerprint = spec::fingerprint(&body, &made_from)
            .map_err(|error| EngineError::new(ErrorKind::Rejected, "writing the specification").because(error))?;
        // By whatever name, it is the same image.
        body.image = Some(name.to_owned());
        Ok((body, fingerprint))
    }
}

#[async_trait]
impl Engine for Docker {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        let version = within(ASK, "asking Docker for its version", self.client().await?.version()).await?;
        if let Some(why) = about::refusal(&self.info().await?) {
            return Err(EngineError::new(ErrorKind::Rejected, why));
        }
        Ok(Capabilities {
            name: "docker",
            version: version.version.unwrap_or_default(),
            isolates: self.network.is_none(),
            pauses: true,
        })
    }

    async fn fingerprint(&self, spec: &InstanceSpec) -> Result<String, EngineError> {
        Ok(self.body(spec).await?.1)
    }

    async fn release(&self, spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        Ok(Some(self.image_of(spec).await?.1.id))
    }

    async fn keep_release(&self, release: &str) -> Result<(), EngineError> {
        self.name_release(release).await
    }

    async fn keep_releases(&self, releases: &BTreeSet<String>) -> Result<(), EngineError> {
        self.name_releases(releases).await
    }

    async fn observe(&self, id: InstanceId) -> Result<Option<Unit>, EngineError> {
        Ok(self.inspect(id).await?.map(|found| unit(id, &found)))
    }

    async fn list(&self) -> Result<Vec<Unit>, EngineError> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&self.ours()).build();
        let found = within(ASK, "listing containers", self.client().await?.list_containers(Some(options))).await?;
        let units = found.into_iter().filter_map(|container| {
            let labels = container.labels?;
            Some(Unit {
                // One with our label and no id of ours is somebody's experiment: not ours to touch.
                id: labels.get(LABEL_INSTANCE)?.parse().ok()?,
                state: match container.state? {
                    ContainerSummaryStateEnum::CREATED => UnitState::Created,
                    ContainerSummaryStateEnum::RUNNING
                    | ContainerSummaryStateEnum::RESTARTING
                    | ContainerSummaryStateEnum::STOPPING => UnitState::Running,
                    ContainerSummaryStateEnum::PAUSED => UnitState::Paused,
                    ContainerSummaryStateEnum::EXITED => UnitState::Exited,
                    _ => UnitState::Broken,
                },
                fingerprint: labels.get(LABEL_SPEC).cloned().unwrap_or_default(),
                plan: plan(labels.get(LABEL_PLAN)),
                release: container.image_id,
                run: None,
            })
        });
        Ok(units.collect())
    }

    async fn ensure(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        let (mut body, fingerprint) = self.body(spec).await?;
        body.labels.get_or_insert_default().extend([
            (LABEL_GENERATION.into(), spec.generation.to_string()),
            (LABEL_PLAN.into(), spec.plan.to_string()),
            (LABEL_SPEC.into(), fingerprint.clone()),
        ]);
        let name = self.name(spec.id);
        let tried = format!("creating {name}");
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let client = self.client().await?;
        let deadline = Instant::now() + ACT;
        loop {
            // Created first and looked at when that does not work: the usual case is one call.
            match within(ACT, &tried, client.create_container(Some(options.clone()), body.clone())).await {
                Ok(created) => {
                    for warning in created.warnings {
                        tracing::warn!(instance = %spec.id, warning, "Docker warns");
                    }
                    return Ok(());
                }
                Err(error) if error.kind == ErrorKind::Conflict => match self.observe(spec.id).await? {
                    Some(unit) if unit.fingerprint == fingerprint => return Ok(()),
                    Some(_) => return Err(error),
                    // The name is taken and nothing has it: somebody, perhaps we before a restart, asked for it a moment
                    // ago, and Docker is at it.
                    None if Instant::now() < deadline => tokio::time::sleep(BEING_MADE).await,
                    None => return Err(error),
                },
                Err(error) => return Err(error),
            }
        }
    }

    async fn start(&self, id: InstanceId) -> Result<(), EngineError> {
        let (name, client) = (self.name(id), self.client().await?);
        let tried = format!("starting {name}");
        let Some(found) = self.inspect(id).await? else { return Err(EngineError::new(ErrorKind::NotFound, tried)) };
        match unit(id, &found).state {
            UnitState::Paused => within(ACT, &tried, client.unpause_container(&name)).await,
            _ => within(ACT, &tried, client.start_container(&name, None)).await,
        }
    }

    async fn pause(&self, id: InstanceId) -> Result<(), EngineError> {
        let (name, client) = (self.name(id), self.client().await?);
        let tried = format!("pausing {name}");
        let Some(found) = self.inspect(id).await? else { return Err(EngineError::new(ErrorKind::NotFound, tried)) };
        match unit(id, &found).state {
            UnitState::Paused => Ok(()),
            UnitState::Running => within(ACT, &tried, client.pause_container(&name)).await,
            _ => Err(EngineError::new(ErrorKind::Rejected, format!("{tried}, which is not up"))),
        }
    }

    async fn stop(&self, id: InstanceId) -> Result<(), EngineError> {
        let Some(found) = self.inspect(id).await? else { return Ok(()) };
        let (name, client) = (found.id.as_deref().unwrap_or_default(), self.client().await?);
        let tried = format!("stopping {}", self.name(id));
        if unit(id, &found).state == UnitState::Paused {
            // A frozen process does not hear that it is asked to end.
            within(ACT, &tried, client.unpause_container(name)).await?;
        }
        let options = StopContainerOptionsBuilder::new().t(STOP_TIMEOUT_S).build();
        gone_is_fine(within(ACT, &tried, client.stop_container(name, Some(options))).await)
    }

    async fn remove(&self, id: InstanceId) -> Result<(), EngineError> {
        let Some(found) = self.inspect(id).await? else { return Ok(()) };
        let (name, client) = (found.id.as_deref().unwrap_or_default(), self.client().await?);
        let tried = format!("removing {}", self.name(id));
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match within(ACT, &tried, client.remove_container(name, Some(options))).await {
            // Somebody else is removing it.
            Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
            outcome => gone_is_fine(outcome),
        }
    }

    async fn id_shift(&self) -> Result<u32, EngineError> {
        let ask =
            async { about::id_shift(&self.info().await?).map_err(|why| EngineError::new(ErrorKind::Rejected, why)) };
        self.shift.get_or_try_init(|| ask).await.copied()
    }

    async fn border(&self, spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        self.border_of(spec).await.map(Some)
    }

    async fn try_passage(&self, spec: &InstanceSpec) -> Result<Passage, EngineError> {
        self.probe(spec).await
    }

    async fn end_passage(&self) -> Result<(), EngineError> {
        self.sweep_probes().await
    }

    async fn last_lines(&self, id: InstanceId) -> Result<String, EngineError> {
        let (name, client) = (self.name(id), self.client().await?);
        if self.inspect(id).await?.is_none() {
            return Ok(String::new());
        }
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail("30").build();
        let said = client.logs(&name, Some(options)).map_ok(LogOutput::into_bytes).try_collect::<Vec<_>>();
        let said = within(ASK, &format!("reading the log of {name}"), said).await?;
        Ok(String::from_utf8_lossy(&said.concat()).into_owned())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Hint>, EngineError> {
        let client = self.client().await?.clone();
        // The stream tells of nothing until something happens: find out first whether there is an engine.
        within(ASK, "asking for events", client.ping()).await?;
        let mut filters = self.ours();
        filters.insert("type".into(), vec!["container".into()]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        let hints = events(client, options);
        Ok(hints.boxed())
    }
}

impl Docker {
    fn ours(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".into(), vec![format!("{LABEL_STACK}={}", self.prefix)])])
    }
}

/// The stream borrows its client, so it is driven by a task that owns both and ends when nobody listens.
fn events(
    client: bollard::Docker,
    options: bollard::query_parameters::EventsOptions,
) -> impl futures_util::Stream<Item = Hint> + Send + 'static {
    let (to, from) = tokio::sync::mpsc::channel(256);
    tokio::spawn(async move {
        let mut events = std::pin::pin!(client.events(Some(options)));
        loop {
            let event = tokio::select! {
                () = to.closed() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    if let Some(hint) = hint(&event)
                        && to.send(hint).await.is_err()
                    {
                        return;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(error = %error, "Docker's event stream broke");
                    return;
                }
                None => return,
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(from)
}

fn hint(event: &EventMessage) -> Option<Hint> {
    let attributes = event.actor.as_ref()?.attributes.as_ref()?;
    matches!(event.action.as_deref()?, "die" | "start" | "destroy" | "oom" | "pause" | "unpause")
        .then(|| attributes.get(LABEL_INSTANCE)?.parse().ok().map(Hint))
        .flatten()
}

fn unit(id: InstanceId, found: &ContainerInspectResponse) -> Unit {
    let state = found.state.clone().unwrap_or_default();
    let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
    let kind = match state.status {
        Some(ContainerStateStatusEnum::CREATED) => UnitState::Created,
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::RESTARTING
            | ContainerStateStatusEnum::STOPPING,
        ) => UnitState::Running,
        Some(ContainerStateStatusEnum::PAUSED) => UnitState::Paused,
        Some(ContainerStateStatusEnum::EXITED) => UnitState::Exited,
        _ => UnitState::Broken,
    };
    let up = matches!(kind, UnitState::Running | UnitState::Paused);
    Unit {
        id,
        state: kind,
        fingerprint: labels.and_then(|labels| labels.get(LABEL_SPEC)).cloned().unwrap_or_default(),
        plan: plan(labels.and_then(|labels| labels.get(LABEL_PLAN))),
        release: found.image.clone(),
        run: up.then(|| {
            let container = found.id.as_deref().unwrap_or_default();
            format!("{}@{}", container.get(..12).unwrap_or(container), state.started_at.unwrap_or_default())
        }),
    }
}

/// The plan of a label; a container from before there were any is a workspace's.
fn plan(label: Option<&String>) -> PlanName {
    label.and_then(|name| name.parse().ok()).unwrap_or_default()
}

fn gone_is_fine(outcome: Result<(), EngineError>) -> Result<(), EngineError> {
    match outcome {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

async fn within<T>(
    limit: Duration,
    tried: &str,
    call: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| failed(tried, error)),
        Err(_) => Err(EngineError::new(ErrorKind::Unavailable, format!("{tried}: no answer in {} s", limit.as_secs()))),
    }
}

fn failed(tried: &str, error: ApiError) -> EngineError {
    let kind = match &error {
        ApiError::DockerResponseServerError { status_code, message } => of_answer(*status_code, message),
        // Whatever else goes wrong, the engine did not answer as an engine does.
        _ => ErrorKind::Unavailable,
    };
    EngineError::new(kind, tried).because(error)
}

/// What an answer of the engine means. 500 is what it says to nearly everything, so its words must be looked at.
fn of_answer(status: u16, message: &str) -> ErrorKind {
    const FULL: [&str; 5] = [
        "no space left on device",
        "cannot allocate memory",
        "resource temporarily unavailable",
        "too many open files",
        "disk quota exceeded",
    ];
    let message = message.to_ascii_lowercase();
    if FULL.iter().any(|words| message.contains(words)) {
        return ErrorKind::Capacity;
    }
    match status {
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        502..=504 => ErrorKind::Unavailable,
        // Said while the engine is going down or has lost containerd.
        500 if ["connection refused", "transport is closing", "error while dialing"]
            .iter()
            .any(|said| message.contains(said)) =>
        {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (status, message, kind) in [
            (404, "No such container: x", ErrorKind::NotFound),
            (409, "Conflict. The container name is in use", ErrorKind::Conflict),
            (500, "write /x: No space left on device", ErrorKind::Capacity),
            (500, "OCI runtime create failed", ErrorKind::Rejected),
            (400, "invalid mount config", ErrorKind::Rejected),
            (503, "", ErrorKind::Unavailable),
            (500, "dial unix containerd.sock: connect: connection refused", ErrorKind::Unavailable),
            (500, "transport: Error while dialing: dial unix:///c.sock: timeout", ErrorKind::Unavailable),
        ] {
            assert_eq!(of_answer(status, message), kind, "{status} {message}");
        }
    }
}
