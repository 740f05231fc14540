//! Whether sockets in mounted folders are reached across a container's border: tried with a container that is as an
//! instance's in everything but its name and labels.
//!
//! A mount that lets files through need not let sockets through: Docker Desktop keeps its engine in a virtual machine, and
//! SELinux may forbid the one what it allows the other.

use std::{collections::HashMap, io, time::Duration};

use beneath::Root;
use bollard::{
    container::LogOutput,
    models::{ContainerCreateBody, SystemInfo},
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    },
};
use clock::Entropy;
use contracts::instance::{PROBE, PROBE_FAILED, PROBE_SOCKET};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::{
    ACT, ASK, Docker, EngineError, ErrorKind, InstanceSpec, Passage,
    about::{has_option, is_rootless},
    gone_is_fine,
    spec::{LABEL_INSTANCE, LABEL_STACK},
    within,
};

/// What marks a probe's container.
const LABEL_PROBE: &str = "beaver.probe";
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

impl Docker {
    /// The engine, its host's rules and the container, in one text.
    pub(super) async fn border_of(&self, spec: &InstanceSpec) -> Result<String, EngineError> {
        let info = self.info().await?;
        let (_, container) = self.body(spec).await?;
        let engine = serde_json::json!([
            info.id,
            info.server_version,
            info.operating_system,
            info.kernel_version,
            info.security_options,
            info.docker_root_dir,
            container
        ]);
        let digest = Sha256::digest(engine.to_string());
        Ok(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    pub(super) async fn info(&self) -> Result<SystemInfo, EngineError> {
        within(ASK, "asking Docker about itself", self.client().await?.info()).await
    }

    /// Tries it; a container is left, for [`Docker::sweep_probes`].
    pub(super) async fn probe(&self, spec: &InstanceSpec) -> Result<Passage, EngineError> {
        let (instance, _) = self.body(spec).await?;
        let labels = [(LABEL_STACK.into(), self.prefix.clone()), (LABEL_PROBE.into(), "sockets".into())];
        let body = ContainerCreateBody { labels: Some(labels.into()), cmd: Some(vec![PROBE.into()]), ..instance };
        debug_assert!(!body.labels.iter().any(|labels| labels.contains_key(LABEL_INSTANCE)), "it is no instance");
        let name = format!("{}-{PROBE}", self.prefix);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let client = self.client().await?;
        let outward = Root::open(&spec.folders.outward).and_then(|folder| folder.bind(PROBE_SOCKET, 0o660));
        let outward = outward.map_err(|error| {
            EngineError::new(ErrorKind::Rejected, "listening on a socket in BEAVER_DATA_DIR").because(error)
        })?;
        within(ACT, &format!("creating {name}"), client.create_container(Some(options), body)).await?;
        within(ACT, &format!("starting {name}"), client.start_container(&name, None)).await?;
        let passed = tokio::select! {
            biased;
            passed = pass(&outward, spec) => passed,
            said = self.ended(&name) => Err(said?),
            () = tokio::time::sleep(self.passage_timeout) => {
                Err(format!("nothing came through in {} s", self.passage_timeout.as_secs()))
            }
        };
        Ok(match passed {
            Ok(()) => Passage::Free,
            Err(why) => Passage::Blocked(format!("{why}; {}", cure(&self.info().await?))),
        })
    }

    /// Waits until it has ended by itself; what it said last. One that ended for another reason says nothing of sockets.
    async fn ended(&self, name: &str) -> Result<String, EngineError> {
        let client = self.client().await?;
        let code = loop {
            tokio::time::sleep(LOOK).await;
            let tried = format!("inspecting {name}");
            let state = within(ASK, &tried, client.inspect_container(name, None)).await?.state.unwrap_or_default();
            if state.running == Some(false) {
                break state.exit_code.unwrap_or_default();
            }
        };
        let options = LogsOptionsBuilder::new().stderr(true).tail("20").build();
        let mut said = std::pin::pin!(client.logs(name, Some(options)));
        let mut line = String::new();
        while let Some(Ok(LogOutput::StdErr { message })) = said.next().await {
            line = String::from_utf8_lossy(&message).trim().chars().take(200).collect();
        }
        if code != i64::from(PROBE_FAILED) {
            let said = format!("the image's program does not try it, but ends with {code}: {line}");
            return Err(EngineError::new(ErrorKind::Rejected, said));
        }
        Ok(line)
    }

    /// Removes every probe of this stack.
    pub(super) async fn sweep_probes(&self) -> Result<(), EngineError> {
        let mine = vec![format!("{LABEL_STACK}={}", self.prefix), LABEL_PROBE.to_owned()];
        let filters = HashMap::from([("label".to_owned(), mine)]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let client = self.client().await?;
        let found = within(ASK, "listing probes", client.list_containers(Some(options))).await?;
        for id in found.into_iter().filter_map(|container| container.id) {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            gone_is_fine(within(ACT, "removing a probe", client.remove_container(&id, Some(options))).await)?;
        }
        Ok(())
    }
}

/// A byte through each of the two sockets, there and back.
async fn pass(outward: &UnixListener, spec: &InstanceSpec) -> Result<(), String> {
    let through = |direction: &'static str| move |error: io::Error| format!("the socket in {direction}/: {error}");
    let (mut out, _) = outward.accept().await.map_err(through("out"))?;
    let byte = out.read_u8().await.map_err(through("out"))?;
    out.write_u8(byte).await.map_err(through("out"))?;
    // It listens there since before it came out.
    let inward = Root::open(&spec.folders.inward).and_then(|folder| folder.connect(PROBE_SOCKET));
    let mut inward = inward.map_err(|error| format!("the socket in in/: {error}"))?;
    let [sent] = Entropy::system().bytes();
    inward.write_u8(sent).await.map_err(through("in"))?;
    let back = inward.read_u8().await.map_err(through("in"))?;
    if back == sent { Ok(()) } else { Err("the socket in in/: another byte came back".into()) }
}

/// What an operator can do about it, as far as the engine tells what it is.
fn cure(info: &SystemInfo) -> &'static str {
    if info.operating_system.as_deref().is_some_and(|name| name.contains("Docker Desktop")) {
        "Docker Desktop keeps its engine in a virtual machine: keep BEAVER_DATA_DIR in the distribution's own file system \
         (not /mnt/…) and switch on Settings > Resources > WSL integration for it, or install docker.io in it"
    } else if has_option(info, "name=selinux") {
        "SELinux forbids it: label the data (sudo chcon -R -t container_file_t -l s0 \"$BEAVER_DATA_DIR\"), bring everything \
         up with compose.yaml as it is, and see what else is denied (sudo ausearch -m avc -ts recent)"
    } else if is_rootless(info) {
        "the engine is a rootless one: it must run as the user who owns BEAVER_DATA_DIR, on a file system of this host"
    } else {
        "put BEAVER_DATA_DIR on a local file system of the host that the engine runs on, not on one that is shared or mounted \
         from elsewhere"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_engine_has_its_cure() {
        let info = |system: &str, option: &str| SystemInfo {
            operating_system: Some(system.into()),
            security_options: Some(vec!["name=seccomp,profile=default".into(), option.into()]),
            ..SystemInfo::default()
        };
        for (info, named) in [
            (info("Docker Desktop", "name=cgroupns"), "WSL integration"),
            (info("Fedora Linux 43", "name=selinux"), "container_file_t"),
            (info("Debian", "name=rootless"), "rootless"),
            (info("Debian", "name=apparmor"), "local file system"),
        ] {
            assert!(cure(&info).contains(named) && !cure(&info).contains('\n'), "{named}: {}", cure(&info));
        }
    }
}
