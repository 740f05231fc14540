//! What an instance's container is made from.

use std::{collections::HashMap, path::Path};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use sha2::{Digest, Sha256};

use super::{
    super::{ImageProgram, InstanceSpec, Program},
    image::Image,
};

/// The instance's id.
pub(super) const LABEL_INSTANCE: &str = "beaver.instance";
/// The wish it was made for.
pub(super) const LABEL_GENERATION: &str = "beaver.generation";
/// Whose stack it belongs to: the prefix.
pub(super) const LABEL_STACK: &str = "beaver.stack";
/// The plan it was made by.
pub(super) const LABEL_PLAN: &str = "beaver.plan";
/// The fingerprint.
pub(super) const LABEL_SPEC: &str = "beaver.spec";

/// How long a container may take to end when asked, in seconds: longer than what runs in it gives to what is under way.
pub(super) const STOP_TIMEOUT_S: i32 = 20;

/// Where the shim is in a container.
const SHIM: &str = "/.beaver/shim";

/// A container for this instance, without its image and the labels that are no part of what it is. Its sockets are the same with a network
/// and without.
pub(super) fn container(spec: &InstanceSpec, stack: &str, network: Option<&str>) -> ContainerCreateBody {
    let user = spec.uid.map(|uid| format!("{uid}:{uid}"));
    let mut env: Vec<String> = spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut mounts = vec![
        bind(&spec.folders.inward, "/run/beaver/in", false),
        bind(&spec.folders.outward, "/run/beaver/out", true),
        bind(&spec.folders.data, "/data", false),
    ];
    if spec.program == Program::Workspace {
        mounts.push(bind(&spec.folders.config, "/config", true));
        env.extend([
            "INSTANCE_DATA_DIR=/data".into(),
            "INSTANCE_CONFIG_DIR=/config".into(),
            "INSTANCE_IN_DIR=/run/beaver/in".into(),
            "INSTANCE_OUT_DIR=/run/beaver/out".into(),
            // Where SQLite makes a database smaller: /tmp may not have the room.
            "SQLITE_TMPDIR=/data".into(),
        ]);
    }
    ContainerCreateBody {
        hostname: Some("instance".into()),
        user,
        env: Some(env),
        labels: Some(HashMap::from([
            (LABEL_INSTANCE.into(), spec.id.to_string()),
            (LABEL_STACK.into(), stack.to_owned()),
        ])),
        stop_timeout: Some(STOP_TIMEOUT_S.into()),
        host_config: Some(HostConfig {
            // Everything in and out goes through sockets in the mounted folders.
            network_mode: Some(network.unwrap_or("none").into()),
            mounts: Some(mounts),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".into()]),
            // Nothing about seccomp and AppArmor: what is not said is Docker's own profile, AppArmor's where the host has it.
            security_opt: Some(vec!["no-new-privileges:true".into()]),
            privileged: Some(false),
            ipc_mode: Some("private".into()),
            // With cgroups of the first kind Docker would show the host's.
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            // In memory, and so counted in the instance's own.
            shm_size: Some(64 << 20),
            // Where memory runs out, an instance goes before a service.
            oom_score_adj: Some(500),
            // Without it a parentless child of the instance stays a zombie and counts as a process for ever.
            init: Some(true),
            memory: Some(spec.limits.memory_bytes),
            // Memory and swap together: so there is no swap.
            memory_swap: Some(spec.limits.memory_bytes),
            oom_kill_disable: Some(false),
            nano_cpus: Some(spec.limits.nano_cpus),
            pids_limit: Some(spec.limits.pids),
            // A dump of a crashed program would be handed to a program of the host's.
            ulimits: Some(vec![limit("nofile", 4096), limit("core", 0)]),
            tmpfs: Some(HashMap::from([(
                "/tmp".into(),
                format!("rw,noexec,nosuid,nodev,size={}m,nr_inodes=16k,mode=1777", spec.limits.tmp_bytes >> 20),
            )])),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".into()),
                config: Some(HashMap::from([("max-size".into(), "10m".into()), ("max-file".into(), "3".into())])),
            }),
            // The reconciler alone decides what runs.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Puts the shim between the container and an image's own program.
pub(super) fn behind_the_shim(
    body: &mut ContainerCreateBody,
    program: &ImageProgram,
    image: &Image,
    shim: &Path,
    tmp_bytes: i64,
) {
    let own = [&image.entrypoint[..], &image.command[..]].concat();
    let argv = if program.command.is_empty() { own } else { program.command.clone() };
    body.entrypoint = Some(vec![SHIM.into(), program.port.to_string()]);
    body.cmd = Some(argv);
    // Its health is asked for through the router, and nothing is run in it for that.
    body.healthcheck = Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() });
    if let Some(mounts) = body.host_config.as_mut().and_then(|host| host.mounts.as_mut()) {
        mounts.push(bind(shim, SHIM, true));
        // Docker would make each of these on its disk, beyond any limit, and throw it away with the container.
        mounts.extend(image.volumes.iter().filter(|path| !is_ours(path)).map(|path| in_memory(path, tmp_bytes)));
    }
}

/// Whether a volume of an image is at a place that is mounted anyway.
fn is_ours(path: &str) -> bool {
    ["/data", "/tmp", "/run/beaver/in", "/run/beaver/out", SHIM].contains(&path.trim_end_matches('/'))
}

/// What tells two makings of a container apart. The image by its id, since a tag moves.
pub(super) fn fingerprint(body: &ContainerCreateBody, made_from: &str) -> Result<String, serde_json::Error> {
    // By way of a value, whose maps are sorted: the same body is the same text.
    let text = serde_json::to_value(body)?.to_string();
    let digest = Sha256::new().chain_update(made_from).chain_update([0]).chain_update(text).finalize();
    Ok(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn limit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.into()), soft: Some(most), hard: Some(most) }
}

/// A folder in memory, which is empty at each start.
fn in_memory(target: &str, size_bytes: i64) -> Mount {
    Mount {
        typ: Some(MountType::TMPFS),
        target: Some(target.into()),
        tmpfs_options: Some(MountTmpfsOptions { size_bytes: Some(size_bytes), ..MountTmpfsOptions::default() }),
        ..Mount::default()
    }
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        // Unlike the short form, a mount fails when the folder is missing, rather than making one that is root's.
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.into()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}
