//! The containers of an attack: made, listened to, removed. Each bears the stack's label and one of its own, and none
//! lives longer than the command, or than ten minutes when the command is killed.

use std::{collections::HashMap, path::Path, time::Duration};

use ::attack::{Answer, Attempt, Call, Plan, READY, Report, World};
use anyhow::{Context, bail};
use bollard::{
    container::LogOutput,
    models::{
        ContainerCreateBody, DeviceMapping, EndpointSettings, HostConfig, Mount, MountType, NetworkCreateRequest,
        NetworkingConfig, ResourcesUlimits, VolumeCreateRequest,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, LogsOptionsBuilder,
    },
};
use futures_util::{StreamExt, future::try_join_all};

use crate::{
    engine::{Engine, STACK_LABEL},
    stack::{SERVICE_ID, Stack},
};

/// The label on everything that an attack makes beside its instances.
pub const ATTACK_LABEL: &str = "beaver.attack";
/// Where the world's router has its data, in every container that has it.
pub const WORLD_DATA: &str = "/world";
/// A folder in the image that anybody may write to, where the root file system may be written at all.
pub const SPOT: &str = "/spot";
/// The program in the image that is root's and has the set-user-id bit.
pub const RISE: &str = "/rise";

/// How long anything that is bounded by itself may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a container may take to say that it is ready.
const STARTING: Duration = Duration::from_secs(30);
/// How many files a control may have open: more than an instance, and no more than an engine may give.
const FILES: i64 = 4_200;
/// Names by which the services are known to each other, and one for the host.
const NAMES: [&str; 3] = ["beaver-authz-service", "beaver-deploy-control", "host.docker.internal"];

/// Where the attack takes place.
pub struct Field<'a> {
    pub engine: &'a Engine,
    pub stack: &'a Stack,
    /// The image of the hostile program.
    pub image: String,
}

impl Field<'_> {
    /// The name of one of its containers, and of what else there is one of.
    pub fn name(&self, role: &str) -> String {
        format!("{}-attack-{role}", self.stack.prefix)
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(STACK_LABEL.to_owned(), self.stack.prefix.clone()), (ATTACK_LABEL.to_owned(), "1".to_owned())])
    }

    /// A container of the hostile program, told to do this.
    pub fn body(&self, command: &[&str], host_config: HostConfig) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(self.image.clone()),
            cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            labels: Some(self.labels()),
            stop_timeout: Some(0),
            host_config: Some(HostConfig { init: Some(true), ..host_config }),
            ..ContainerCreateBody::default()
        }
    }

    async fn start(&self, role: &str, body: ContainerCreateBody) -> anyhow::Result<String> {
        let name = self.name(role);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let api = self.engine.api();
        api.create_container(Some(options), body).await.with_context(|| format!("the engine does not make {name}"))?;
        api.start_container(&name, None).await.with_context(|| format!("the engine does not start {name}"))?;
        Ok(name)
    }

    /// Starts it, and waits until it says that it is ready. It stays until the end, or until it is removed by name.
    ///
    /// # Errors
    /// When it does not: what it said.
    pub async fn begin(&self, role: &str, body: ContainerCreateBody) -> anyhow::Result<()> {
        let name = self.start(role, body).await?;
        let (mut said, mut ready) = (String::new(), false);
        let waiting = self.hear(&name, |piece| {
            said.push_str(&String::from_utf8_lossy(&piece.clone().into_bytes()));
            ready = said.lines().any(|line| line == READY);
            !ready
        });
        let waited = tokio::time::timeout(STARTING, waiting).await;
        anyhow::ensure!(ready, "{name} does not come up: {said}{}", if waited.is_err() { " (in time)" } else { "" });
        Ok(())
    }

    /// Starts it, listens to it until it ends, removes it; what it wrote to standard output, as far as `most` bytes.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn run(&self, role: &str, body: ContainerCreateBody, most: usize) -> anyhow::Result<Vec<u8>> {
        let name = self.start(role, body).await?;
        let (mut said, mut complained) = (Vec::new(), String::new());
        let hearing = self.hear(&name, |piece| {
            match piece {
                LogOutput::StdErr { message } => complained.push_str(&String::from_utf8_lossy(message)),
                piece => said.extend_from_slice(&piece.clone().into_bytes()),
            }
            said.len() < most
        });
        let heard = tokio::time::timeout(PATIENCE, hearing).await;
        self.engine.remove(&name).await?;
        heard.with_context(|| format!("{name} did not end in time"))??;
        anyhow::ensure!(!said.is_empty() || complained.is_empty(), "{name}: {}", complained.trim());
        Ok(said)
    }

    /// Starts it and waits until it has ended. It stays, with its log.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn end(&self, role: &str, body: ContainerCreateBody) -> anyhow::Result<()> {
        let name = self.start(role, body).await?;
        let ended = async {
            loop {
                let state = self.engine.api().inspect_container(&name, None).await?.state.unwrap_or_default();
                if state.running != Some(true) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.with_context(|| format!("{name} did not end in time"))?
    }

    /// How many bytes the engine has kept of what a container wrote.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn log_size(&self, role: &str) -> anyhow::Result<usize> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let mut logs = self.engine.api().logs(&self.name(role), Some(options));
        let mut size = 0;
        while let Some(piece) = logs.next().await {
            size += piece?.into_bytes().len();
        }
        Ok(size)
    }

    /// Follows what a container says, until it ends or `go_on` says no.
    async fn hear(&self, name: &str, mut go_on: impl FnMut(&LogOutput) -> bool) -> anyhow::Result<()> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(true).build();
        let mut logs = self.engine.api().logs(name, Some(options));
        while let Some(piece) = logs.next().await {
            if !go_on(&piece.with_context(|| format!("listening to {name}"))?) {
                break;
            }
        }
        Ok(())
    }

    /// Has a plan carried out; a report for each of its attempts, `None` for those that were never made.
    ///
    /// # Errors
    /// When the container cannot be run.
    pub async fn try_all(
        &self,
        role: &str,
        body: ContainerCreateBody,
        plan: &Plan,
    ) -> anyhow::Result<Vec<Option<Report>>> {
        let said = self.run(role, body, 16 << 20).await?;
        let mut reports = vec![None; plan.attempts.len()];
        for line in String::from_utf8_lossy(&said).lines() {
            if let Ok(report) = serde_json::from_str::<Report>(line)
                && let Some(place) = reports.get_mut(report.attempt)
            {
                *place = Some(report);
            }
        }
        Ok(reports)
    }

    /// Starts the neighbour of the services, which asks them for us: an ordinary container on their network.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn neighbour(&self) -> anyhow::Result<()> {
        let host_config = HostConfig {
            network_mode: Some(self.stack.env.string("BEAVER_NET")?),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges:true".into()]),
            memory: Some(64 << 20),
            pids_limit: Some(64),
            ..HostConfig::default()
        };
        self.begin("neighbour", self.body(&["wait"], host_config)).await
    }

    /// Has the neighbour make these calls, all at once.
    ///
    /// # Errors
    /// When it cannot be told, or does not answer. That a call has no answer is an [`Answer`] of status 0.
    pub async fn ask(&self, calls: &[Call]) -> anyhow::Result<Vec<Answer>> {
        self.have_asked("neighbour", calls).await
    }

    /// As [`Field::ask`], by another container than the neighbour, which waits too.
    ///
    /// # Errors
    /// As [`Field::ask`].
    pub async fn have_asked(&self, role: &str, calls: &[Call]) -> anyhow::Result<Vec<Answer>> {
        let line = serde_json::to_string(calls)?;
        let said = self.engine.exec_with_line(&self.name(role), &["/attack", "call"], &line).await?;
        Ok(serde_json::from_str(said.trim())?)
    }

    /// Makes the controls' world: a network name space in which every address is its own, with a router in it whose rules
    /// let everything out. `group` may use that router's doors for instance `id`, which are in [`WORLD_DATA`].
    ///
    /// # Errors
    /// When the engine refuses, or it does not come up.
    pub async fn world(&self, world: &World, id: &str, routes: &str, group: u32) -> anyhow::Result<()> {
        let api = self.engine.api();
        let labels = Some(self.labels());
        let name = self.name("world");
        // Nothing leaves it: it has no way out, and what is asked for in it is itself.
        let network = NetworkCreateRequest {
            name: name.clone(),
            internal: Some(true),
            labels: labels.clone(),
            ..Default::default()
        };
        api.create_network(network).await.context("the engine does not make a network")?;
        let volume = VolumeCreateRequest { name: Some(name.clone()), labels, ..Default::default() };
        api.create_volume(volume).await.context("the engine does not make a volume")?;

        let host_config = HostConfig {
            network_mode: Some(name.clone()),
            cap_add: Some(vec!["NET_ADMIN".into()]),
            sysctls: has_ipv6().then(|| HashMap::from([("net.ipv6.conf.all.disable_ipv6".into(), "0".into())])),
            ..HostConfig::default()
        };
        let aliases = EndpointSettings { aliases: Some(NAMES.map(str::to_owned).to_vec()), ..Default::default() };
        let body = ContainerCreateBody {
            user: Some("0:0".into()),
            networking_config: Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(name, aliases)])) }),
            ..self.body(&["world", &serde_json::to_string(world)?], host_config)
        };
        self.begin("world", body).await?;

        let kept = |path: String| ::attack::Prepared::File(path.into(), String::new());
        let lay = Plan {
            prepare: vec![
                ::attack::Prepared::File(format!("{SPOT}/router/routes.json").into(), routes.to_owned()),
                kept(format!("{SPOT}/run/{id}/in/.keep")),
                kept(format!("{SPOT}/run/{id}/out/.keep")),
            ],
            attempts: Vec::new(),
        };
        let user = Some(format!("{SERVICE_ID}:{group}"));
        // A new volume takes the mode of the folder that it is first mounted on: anybody's to write to.
        let host_config = HostConfig {
            network_mode: Some("none".into()),
            mounts: Some(vec![self.world_mount(SPOT, false)]),
            ..HostConfig::default()
        };
        let laid = ContainerCreateBody {
            user: user.clone(),
            ..self.body(&["lay", &serde_json::to_string(&lay)?], host_config)
        };
        self.run("lay", laid, 1 << 16).await?;

        let secret = clock::Entropy::system().token();
        let env = [
            ("BEAVER_DATA_DIR", WORLD_DATA),
            ("BEAVER_EGRESS_ALLOW", "0.0.0.0/0,::/0"),
            ("BEAVER_ROUTER_INTERNAL_TOKEN", &secret),
            ("BEAVER_DEPLOY_TOKEN", &secret),
            ("BEAVER_DEPLOY_URL", "http://127.0.0.1:1"),
            // Not those of the real one: in this world somebody else answers there.
            ("ROUTER_LISTEN", "127.0.0.1:18088"),
            ("ROUTER_INTERNAL_LISTEN", "127.0.0.1:18089"),
        ];
        let router = ContainerCreateBody {
            image: Some(self.stack.image("router-proxy")),
            user,
            env: Some(env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
            labels: Some(self.labels()),
            stop_timeout: Some(0),
            host_config: Some(HostConfig {
                network_mode: Some(self.in_the_world()),
                mounts: Some(vec![self.world_mount(WORLD_DATA, false)]),
                cap_drop: Some(vec!["ALL".into()]),
                memory: Some(256 << 20),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        self.start("world-router", router).await?;
        Ok(())
    }

    /// The network mode of who lives in the world.
    pub fn in_the_world(&self) -> String {
        format!("container:{}", self.name("world"))
    }

    /// The mount with the doors of the world's router.
    pub fn world_mount(&self, target: &str, read_only: bool) -> Mount {
        Mount {
            typ: Some(MountType::VOLUME),
            source: Some(self.name("world")),
            target: Some(target.to_owned()),
            read_only: Some(read_only),
            ..Mount::default()
        }
    }

    /// The control of a hostile instance: in the world, where everything is allowed. It does nothing that its own folders
    /// and name spaces do not end with.
    ///
    /// # Errors
    /// When the plan cannot be written.
    pub fn control(&self, plan: &Plan, tmp: u64) -> anyhow::Result<ContainerCreateBody> {
        let devices = plan.attempts.iter().filter_map(|attempt| match attempt {
            Attempt::Read(path) if path.starts_with("/dev") => Some(path.display().to_string()),
            _ => None,
        });
        let devices = devices.map(|path| DeviceMapping {
            path_on_host: Some(path.clone()),
            path_in_container: Some(path),
            cgroup_permissions: Some("r".into()),
        });
        let devices = devices.collect();
        let host_config = HostConfig {
            network_mode: Some(self.in_the_world()),
            mounts: Some(vec![self.world_mount(WORLD_DATA, true)]),
            // Where user ids are shifted, root in a container is nobody outside of it.
            userns_mode: Some("host".into()),
            // Not privileged as a whole, which some engines cannot give: what its attempts need.
            cap_add: Some(["SYS_ADMIN", "SYS_MODULE", "SYSLOG"].map(str::to_owned).to_vec()),
            security_opt: Some(["seccomp=unconfined", "apparmor=unconfined"].map(str::to_owned).to_vec()),
            devices: Some(devices),
            shm_size: Some(256 << 20),
            tmpfs: Some(larger_tmp(tmp)),
            ulimits: Some(vec![ResourcesUlimits { name: Some("nofile".into()), soft: Some(FILES), hard: Some(FILES) }]),
            ..HostConfig::default()
        };
        Ok(ContainerCreateBody {
            user: Some("0:0".into()),
            ..self.body(&["try", &serde_json::to_string(plan)?], host_config)
        })
    }

    /// Removes everything that this or an earlier attack on this stack made beside its instances.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn sweep(&self) -> anyhow::Result<()> {
        sweep(self.engine, &self.stack.prefix).await
    }
}

/// A /tmp that holds more than this, and any number of files.
pub fn larger_tmp(bytes: u64) -> HashMap<String, String> {
    HashMap::from([("/tmp".to_owned(), format!("rw,size={},mode=1777", bytes + (64 << 20)))])
}

/// Whether this host's kernel speaks IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// Removes whatever an attack on a stack made beside its instances.
///
/// # Errors
/// When the engine refuses.
pub async fn sweep(engine: &Engine, prefix: &str) -> anyhow::Result<()> {
    let mine = [format!("{STACK_LABEL}={prefix}"), ATTACK_LABEL.to_owned()];
    let filters = HashMap::from([("label", mine.iter().map(String::as_str).collect::<Vec<_>>())]);
    let containers = engine.labelled(&filters).await?;
    let ids: Vec<String> = containers.into_iter().filter_map(|container| container.id).collect();
    try_join_all(ids.iter().map(|id| engine.remove(id))).await?;
    let api = engine.api();
    let networks = ListNetworksOptionsBuilder::new().filters(&filters).build();
    for name in api.list_networks(Some(networks)).await?.into_iter().filter_map(|network| network.name) {
        api.remove_network(&name).await.with_context(|| format!("the engine does not remove the network {name}"))?;
    }
    let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
    for volume in api.list_volumes(Some(volumes)).await?.volumes.unwrap_or_default() {
        let options = None::<bollard::query_parameters::RemoveVolumeOptions>;
        if let Err(error) = api.remove_volume(&volume.name, options).await {
            bail!("the engine does not remove the volume {}: {error}", volume.name);
        }
    }
    Ok(())
}
